//! One writer: who holds a volume, who takes it over, and what becomes of the one that is fenced.

use std::{fs, time::Duration};

use tandem_tests::{
    compare,
    harness::{Lab, Mount, MountSpec, Storage, eventually, rpc},
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal, fill_mixed};

fn fenced_within(mount: &Mount, limit: Duration) -> bool {
    eventually(limit, || mount.status().state == "fenced")
}

fn lab(name: &str) -> Option<Lab> {
    let lab = Lab::new(name)?;
    lab.allow_lost_peers();
    for part in ["fenced", "newer epoch", "held by", "attach refused"] {
        lab.allow(part, "the test takes the volume over");
    }
    Some(lab)
}

fn erofs(result: std::io::Result<()>) {
    assert_eq!(result.expect_err("a fenced mount takes no changes").raw_os_error(), Some(libc::EROFS));
}

/// A first client whose last changes did not reach the replica, and a second one that took the volume over.
fn taken_over(lab: &Lab, storage: &Storage) -> (Mount, Mount) {
    let dir = lab.new_dir("first");
    fill_mixed(&dir, 30, 31);
    fs::create_dir_all(dir.join("d/sub")).expect("new");
    for name in ["d/equal", "d/changed", "d/removed", "d/renamed"] {
        fs::write(dir.join(name), "as it was").expect("writable");
    }
    let first = lab.mount(storage, "vol", &dir);
    first.settle();
    lab.tandem(&["pause", &dir.to_string_lossy()]).expect_success("tandem pause");
    assert_eq!(first.status().state, "paused");
    let status = rpc::storage_status(storage.port(), &storage.secret()).expect("it answers");
    assert_eq!(status.volumes[0].client, "", "it is told before the command returns");
    fs::write(dir.join("d/changed"), "only here").expect("local work goes on");
    fs::write(dir.join("d/sub/new"), "only here, too").expect("local work goes on");
    fs::remove_file(dir.join("d/removed")).expect("local work goes on");
    fs::rename(dir.join("d/renamed"), dir.join("d/other name")).expect("local work goes on");
    let second = MountSpec::new(storage, "vol", &lab.new_dir("second")).state(&lab.path("state of the second"));
    let second = lab.mount_with(&second.options("init=pull"));
    lab.tandem(&["resume", &dir.to_string_lossy()]).expect_success("tandem resume");
    assert!(fenced_within(&first, Duration::from_secs(10)), "{:#?}", first.status());
    (first, second)
}

#[test]
fn second_writer_is_refused_with_who_holds_the_volume_and_since_when() {
    let Some(lab) = lab("held") else { return };
    let storage = lab.storage();
    let first = lab.new_dir("first");
    fs::write(first.join("a"), "1").expect("writable");
    let first = lab.mount(&storage, "vol", &first);
    first.settle();
    let second = lab.new_dir("second");
    for options in ["", "init=pull", "takeover"] {
        let spec = MountSpec::new(&storage, "vol", &second).state(&lab.path("state of the second")).options(options);
        let refused = lab.mount_refused(&spec);
        assert_ne!(refused.code, Some(0), "{refused:#?}");
        let text = refused.text();
        for part in [&*first.path().to_string_lossy(), " UTC", "connected now", "takeover"] {
            assert!(text.contains(part), "{part:?} is missing with {options:?}: {text}");
        }
    }
    assert_eq!(fs::read_dir(&second).expect("readable").count(), 0);
    fs::write(first.path().join("b"), "the first goes on").expect("writable");
    assert_equal_and_unmount(&first, &storage, "vol");
}

#[test]
fn takeover_fences_a_connected_writer_before_it_pulls() {
    let Some(lab) = lab("takeover") else { return };
    let storage = lab.storage();
    let first = lab.new_dir("first");
    fill_mixed(&first, 40, 32);
    let first = lab.mount(&storage, "vol", &first);
    first.settle();
    let spec = MountSpec::new(&storage, "vol", &lab.new_dir("second")).state(&lab.path("state of the second"));
    let second = lab.mount_with(&spec.options("init=pull,takeover"));
    assert!(fenced_within(&first, Duration::from_secs(10)), "{:#?}", first.status());
    let status = first.status();
    for part in ["second", " UTC", "tandem divergence"] {
        assert!(status.reason.contains(part), "{part:?} is missing: {}", status.reason);
    }
    assert!(eventually(Duration::from_secs(10), || first.status().fenced_ns > 0), "{:#?}", first.status());
    erofs(fs::write(first.path().join("late"), "x"));
    erofs(fs::create_dir(first.path().join("late")));
    compare::assert_equal(second.path(), first.path());
    fs::write(second.path().join("new"), "of the second").expect("writable");
    assert_equal_and_unmount(&second, &storage, "vol");
    // Nothing was lost: what the first had was acknowledged.
    let listed = lab.tandem(&["divergence", &first.path().to_string_lossy()]);
    assert_eq!(listed.code, Some(0), "{listed:#?}");
    assert!(listed.stdout.contains("nothing differs"), "{listed:#?}");
    first.unmount();
}

#[test]
fn fenced_mount_lists_and_exports_what_the_replica_does_not_have_also_after_a_restart() {
    let Some(lab) = lab("divergence") else { return };
    let storage = lab.storage();
    let (first, second) = taken_over(&lab, &storage);
    let place = first.path().to_string_lossy().into_owned();
    let check = |when: &str| {
        erofs(fs::write(first.path().join("late"), "x"));
        let listed = lab.tandem(&["divergence", &place]);
        assert_eq!(listed.code, Some(1), "{when}: {listed:#?}");
        for part in ["d/changed", "d/sub/new", "d/removed", "d/renamed", "'d/other name'", "created", "removed"] {
            assert!(listed.stdout.contains(part), "{when}: {part:?} is missing: {listed:#?}");
        }
        assert!(!listed.stdout.contains("d/equal"), "{when}: only what differs is listed: {listed:#?}");
        let export = lab.path(&format!("export {when}"));
        lab.tandem(&["divergence", "--export", &export.to_string_lossy(), &place]).expect_success("export");
        assert_eq!(fs::read(export.join("tree/d/changed")).expect("copied"), b"only here");
        assert_eq!(fs::read(export.join("tree/d/sub/new")).expect("copied"), b"only here, too");
        assert_eq!(fs::read(export.join("tree/d/other name")).expect("copied"), b"as it was");
        assert!(!export.join("tree/d/equal").exists());
        let removed = fs::read_to_string(export.join("removed")).expect("written");
        let mut removed: Vec<_> = removed.lines().collect();
        removed.sort_unstable();
        assert_eq!(removed, ["d/removed", "d/renamed"]);
    };
    check("live");
    first.unmount();
    first.start_again().expect("a fenced folder is mounted read-only");
    assert_eq!(first.status().state, "fenced");
    check("after a restart");
    first.kill();
    first.start_again().expect("a fenced folder is mounted read-only");
    assert_eq!(first.status().state, "fenced");
    check("after a kill");
    // Its changes are nowhere on the replica.
    assert_replica_equal(&second, &storage, "vol");
    assert_eq!(fs::read(storage.tree("vol").join("d/changed")).expect("there"), b"as it was");
    second.unmount();
    first.unmount();

    // The way on: this folder is right.
    let pushed = lab.mount_with(&MountSpec::new(&storage, "vol", first.path()).options("init=push"));
    fs::write(pushed.path().join("late"), "it is the writer again").expect("writable");
    assert_equal_and_unmount(&pushed, &storage, "vol");
    let again = lab.mount(&storage, "vol", first.path());
    assert_equal_and_unmount(&again, &storage, "vol");
}

#[test]
fn folder_that_was_taken_over_while_it_was_not_mounted_is_refused_and_can_be_looked_at() {
    let Some(lab) = lab("taken-unmounted") else { return };
    let storage = lab.storage();
    let first = lab.new_dir("first");
    fs::write(first.join("a"), "1").expect("writable");
    let first = lab.mount(&storage, "vol", &first);
    assert_equal_and_unmount(&first, &storage, "vol");
    let spec = MountSpec::new(&storage, "vol", &lab.new_dir("second")).state(&lab.path("state of the second"));
    let second = lab.mount_with(&spec.options("init=pull"));
    fs::write(second.path().join("b"), "2").expect("writable");
    assert_equal_and_unmount(&second, &storage, "vol");
    let refused = lab.mount_refused(&MountSpec::new(&storage, "vol", first.path()));
    for part in ["taken over by", "second", " UTC", "init=pull", "init=push", "-o ro"] {
        assert!(refused.text().contains(part), "{part:?} is missing: {}", refused.text());
    }
    let looked = lab.mount_with(&MountSpec::new(&storage, "vol", first.path()).options("ro"));
    assert_eq!(looked.status().state, "fenced");
    erofs(fs::write(looked.path().join("late"), "x"));
    looked.unmount();
    // Looking decided nothing.
    let refused = lab.mount_refused(&MountSpec::new(&storage, "vol", first.path()));
    assert!(refused.text().contains("taken over by"), "{}", refused.text());
}
