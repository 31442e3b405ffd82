//! `tandem verify`: what differs is found, told, repaired and kept; what does not differ is never told, whatever programs do meanwhile.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use tandem_tests::{
    compare,
    harness::{Finished, Lab, Mount, Storage, eventually},
    rng::content,
};

use crate::support::{assert_replica_equal, files_below, fill_mixed, finish_storms, storm_processes};

const PATIENCE: Duration = Duration::from_secs(60);

fn verify(lab: &Lab, path: &Path) -> (Finished, serde_json::Value) {
    let path = path.to_str().expect("a plain path");
    let said = lab.tandem(&["verify", "--now", "--json", path]);
    let value = serde_json::from_str(said.stdout.trim()).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    (said, value)
}

fn number(value: &serde_json::Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field} in {value}"))
}

/// Everything that differs is found and repaired; the second look finds nothing.
fn assert_found_and_repaired(
    lab: &Lab,
    mount: &Mount,
    storage: &Storage,
    path: &Path,
    least: u64,
) -> serde_json::Value {
    let (said, found) = verify(lab, path);
    assert_eq!(said.code, Some(2), "{said:#?}");
    let mismatches = number(&found, "mismatches");
    assert!(mismatches >= least && number(&found, "repaired") == mismatches, "{said:#?}");
    mount.settle();
    compare::assert_equal(mount.path(), &storage.tree("vol"));
    let (said, again) = verify(lab, path);
    assert!(said.code == Some(0) && number(&again, "mismatches") == 0, "{said:#?}");
    found
}

/// A mount that is in step, with what is in `sub/large` and `sub/small`.
fn mount_of_two(lab: &Lab, storage: &Storage) -> (Mount, Vec<u8>, Vec<u8>) {
    let dir = lab.new_dir("folder");
    fs::create_dir(dir.join("sub")).expect("new");
    let (large, small) = (content(1, 5 << 20), content(2, 3000));
    fs::write(dir.join("sub/large"), &large).expect("new");
    fs::write(dir.join("sub/small"), &small).expect("new");
    let mount = lab.mount(storage, "vol", &dir);
    mount.settle();
    (mount, large, small)
}

#[test]
fn one_byte_flipped_behind_the_replicas_back_is_found_repaired_and_kept() {
    let Some(lab) = Lab::new("verify-flip") else { return };
    lab.allow("is not equal to", "what this test does");
    let storage = lab.storage();
    let (mount, large, small) = mount_of_two(&lab, &storage);
    let (said, before) = verify(&lab, mount.path());
    assert!(said.code == Some(0) && number(&before, "files") == 3, "{said:#?}");
    let tree = storage.tree("vol");
    for (name, at, good) in [("sub/large", (3 << 20) + 17, &large), ("sub/small", 1234, &small)] {
        let file = File::options().write(true).open(tree.join(name)).expect("on the replica");
        let times = fs::metadata(tree.join(name)).expect("there").modified().expect("known");
        file.write_all_at(&[!good[at]], at as u64).expect("writable");
        // As bit rot does it: nothing but the byte.
        file.set_modified(times).expect("own file");
    }
    let found = assert_found_and_repaired(&lab, &mount, &storage, mount.path(), 2);
    let told = found["found"].to_string();
    assert!(told.contains("/sub/large: bytes 3145728 to 4194304") && told.contains("/sub/small"), "{told}");
    let kept = files_below(&storage.history("vol"));
    let rotten = kept.iter().find(|path| path.ends_with("sub/large")).unwrap_or_else(|| panic!("{kept:?}"));
    let rotten = fs::read(rotten).expect("kept");
    assert!(rotten.len() == large.len() && rotten[(3 << 20) + 17] == !large[(3 << 20) + 17], "what the replica had");
    let list = fs::read_to_string(storage.history("vol").join("mismatches.jsonl")).expect("written");
    assert!(list.lines().count() >= 2 && list.contains("replica_digest"), "{list}");
    let status = mount.status().verify.expect("it verifies");
    assert!(status.mismatches >= 2 && status.repaired == status.mismatches && status.time_ns > 0, "{status:?}");
    assert!(status.recent.iter().any(|text| text.contains("/sub/small")), "{status:?}");
}

#[test]
fn damage_that_a_scrub_of_the_replica_finds_is_repaired_by_its_mount() {
    let Some(lab) = Lab::new("verify-scrub") else { return };
    lab.allow("is not equal to", "what this test does");
    lab.allow("a scrub found a file", "what this test does");
    let storage = lab.storage();
    let (mount, large, small) = mount_of_two(&lab, &storage);
    let server = format!("127.0.0.1:{}", storage.port());
    let scrub = || lab.tandem(&["volume", "scrub", "vol", "--server", &server]);
    let judged = || {
        let said = scrub();
        assert_eq!(said.code, Some(0), "{said:#?}");
        !said.stdout.contains("could not be judged")
    };
    assert!(eventually(PATIENCE, judged), "the index does not come to know the files");
    // What is written meanwhile is no damage.
    fs::write(mount.path().join("sub/busy"), content(3, 300_000)).expect("room");
    assert_eq!(scrub().code, Some(0));
    let tree = storage.tree("vol");
    for (name, at, good) in [("sub/large", (3 << 20) + 17, &large), ("sub/small", 1234, &small)] {
        let file = File::options().write(true).open(tree.join(name)).expect("on the replica");
        file.write_all_at(&[!good[at]], at as u64).expect("writable");
    }
    let said = scrub();
    assert_eq!(said.code, Some(2), "{said:#?}");
    assert!(said.stdout.contains("2 files are damaged"), "{said:#?}");
    for name in ["/sub/large", "/sub/small"] {
        let told = said.stderr.lines().any(|line| line.contains(name) && line.contains("the folder's is good"));
        assert!(told, "{said:#?}");
    }
    let is = |name: &str, good: &[u8]| fs::read(tree.join(name)).is_ok_and(|found| found == good);
    let repaired = || {
        let verify = mount.status().verify.unwrap_or_default();
        is("sub/large", &large) && is("sub/small", &small) && verify.repaired >= 2
    };
    assert!(eventually(PATIENCE, repaired), "{:#?}", mount.status());
    mount.settle();
    compare::assert_equal(mount.path(), &tree);
    assert!(eventually(PATIENCE, judged), "it is well again, and the index knows it");
    let list = fs::read_to_string(storage.history("vol").join("mismatches.jsonl")).expect("kept as evidence");
    assert!(list.lines().count() >= 2, "{list}");
}

#[test]
fn edits_made_by_hand_in_the_replicas_tree_are_undone() {
    let Some(lab) = Lab::new("verify-edits") else { return };
    lab.allow("is not equal to", "what this test does");
    lab.allow("names of the tree were mended", "what this test does");
    lab.allow("the tree is not as expected", "what this test does");
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    for sub in ["kept", "moved", "gone/deep"] {
        fs::create_dir_all(dir.join(sub)).expect("new");
        for at in 0..5 {
            fs::write(dir.join(sub).join(format!("file{at}")), content(at, 500)).expect("new");
        }
    }
    let mount = lab.mount(&storage, "vol", &dir);
    mount.settle();
    let tree = storage.tree("vol");
    fs::write(tree.join("kept/new"), "from outside").expect("writable");
    fs::create_dir(tree.join("added")).expect("writable");
    fs::write(tree.join("added/inside"), "from outside").expect("writable");
    fs::remove_file(tree.join("kept/file0")).expect("there");
    fs::write(tree.join("kept/other"), "saved anew").expect("writable");
    fs::rename(tree.join("kept/other"), tree.join("kept/file1")).expect("there");
    fs::rename(tree.join("kept/file2"), tree.join("moved/file2 by hand")).expect("there");
    fs::set_permissions(tree.join("kept/file3"), fs::Permissions::from_mode(0o600)).expect("own file");
    fs::remove_dir_all(tree.join("gone")).expect("there");
    rustix::fs::setxattr(tree.join("moved"), "user.by", b"hand", rustix::fs::XattrFlags::empty()).expect("known");
    assert_found_and_repaired(&lab, &mount, &storage, mount.path(), 5);
    let kept: Vec<String> =
        files_below(&storage.history("vol")).iter().map(|path| path.display().to_string()).collect();
    assert!(kept.iter().any(|path| path.ends_with("added/inside")), "nothing is destroyed: {kept:?}");
    assert!(kept.iter().any(|path| path.contains("kept/file1")), "nothing is destroyed: {kept:?}");
    // It goes on as before.
    fs::write(mount.path().join("kept/file0"), "again").expect("writable");
    fs::remove_dir_all(mount.path().join("gone")).expect("writable");
    assert_replica_equal(&mount, &storage, "vol");
}

#[test]
fn verify_of_a_folder_that_is_written_all_the_time_gives_no_false_alarm() {
    let Some(lab) = Lab::new("verify-storm") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fill_mixed(&dir, 150, 77);
    let mount = lab.mount(&storage, "vol", &dir);
    mount.settle();
    let mut storms = storm_processes(mount.path(), 4711, 4, 1, 3);
    let mut passes = 0;
    while storms.iter_mut().any(|storm| storm.try_wait().expect("a child").is_none()) {
        let (said, found) = verify(&lab, mount.path());
        assert!(said.code == Some(0) && number(&found, "mismatches") == 0, "{said:#?}");
        passes += 1;
    }
    finish_storms(storms);
    let (said, found) = verify(&lab, mount.path());
    assert!(said.code == Some(0) && number(&found, "unchecked") == 0, "{said:#?}");
    eprintln!("{passes} passes during the storm, {} files", number(&found, "files"));
    assert_replica_equal(&mount, &storage, "vol");
}
