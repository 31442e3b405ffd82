//! How a mount may start: resume, first sync, pull, push; everything else is refused with the ways on.

use std::fs;

use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, Storage},
    rng::content,
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal, files_below, fill_mixed};

/// A volume "vol" that was filled by a client that is gone.
fn volume_with_content(lab: &Lab) -> Storage {
    let storage = lab.storage();
    let dir = lab.new_dir("first client");
    fill_mixed(&dir, 120, 11);
    fs::write(dir.join("precious"), "only here").expect("writable");
    let spec = MountSpec::new(&storage, "vol", &dir).state(&lab.path("state of the first client"));
    assert_equal_and_unmount(&lab.mount_with(&spec), &storage, "vol");
    storage
}

#[test]
fn lost_client_is_recovered_by_pull_and_goes_live() {
    let Some(lab) = Lab::new("pull") else { return };
    let storage = volume_with_content(&lab);
    let dir = lab.new_dir("second client");
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &dir).options("init=pull"));
    compare::assert_equal(mount.path(), &lab.path("first client"));
    fs::write(mount.path().join("new"), "written by the second client").expect("writable");
    fs::remove_file(mount.path().join("precious")).expect("pulled");
    assert_equal_and_unmount(&mount, &storage, "vol");
    // From now on the folder is known.
    let mount = lab.mount(&storage, "vol", &dir);
    assert!(mount.path().join("new").exists());
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn folder_that_holds_something_is_not_pulled_over() {
    let Some(lab) = Lab::new("pull-nonempty") else { return };
    let storage = volume_with_content(&lab);
    let dir = lab.new_dir("second client");
    fs::write(dir.join("mine"), "do not touch").expect("writable");
    let refused = lab.mount_refused(&MountSpec::new(&storage, "vol", &dir).options("init=pull"));
    assert_ne!(refused.code, Some(0), "{refused:#?}");
    assert_eq!(fs::read_to_string(dir.join("mine")).expect("untouched"), "do not touch");
    assert_eq!(fs::read_dir(&dir).expect("readable").count(), 1);
}

#[test]
fn push_replaces_the_state_and_keeps_what_it_replaced() {
    let Some(lab) = Lab::new("push") else { return };
    let storage = volume_with_content(&lab);
    let dir = lab.new_dir("second client");
    fill_mixed(&dir, 150, 12);
    // Some of it is there already, under the same name.
    fs::write(dir.join("same"), content(1, 200_000)).expect("writable");
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &dir).options("init=push"));
    assert_replica_equal(&mount, &storage, "vol");
    assert!(!storage.tree("vol").join("precious").exists());
    let kept = files_below(&storage.history("vol"));
    let precious = kept.iter().any(|path| fs::read(path).is_ok_and(|text| text == b"only here"));
    assert!(precious, "what a push replaces stays in history/: {} files kept", kept.len());
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn unknown_folder_on_a_volume_with_content_is_refused_with_the_ways_on() {
    let Some(lab) = Lab::new("refused") else { return };
    let storage = volume_with_content(&lab);
    let before = files_below(&storage.tree("vol")).len();
    for (name, content) in [("empty", None), ("with content", Some("mine"))] {
        let dir = lab.new_dir(name);
        if let Some(content) = content {
            fs::write(dir.join("mine"), content).expect("writable");
        }
        let refused = lab.mount_refused(&MountSpec::new(&storage, "vol", &dir));
        assert_ne!(refused.code, Some(0), "{refused:#?}");
        let text = refused.text();
        // Pushing an empty folder would empty the volume, so it is not named as a way on.
        let way = if content.is_some() { "init=push" } else { "init=pull" };
        assert!(text.contains(way), "the ways on are named: {text}");
        assert_eq!(files_below(&storage.tree("vol")).len(), before, "the volume is untouched");
    }
}

#[test]
fn folder_that_was_swapped_for_another_is_refused() {
    let Some(lab) = Lab::new("swapped") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fill_mixed(&dir, 40, 13);
    let mount = lab.mount(&storage, "vol", &dir);
    assert_equal_and_unmount(&mount, &storage, "vol");
    let before = files_below(&storage.tree("vol")).len();
    fs::rename(&dir, lab.path("moved away")).expect("a directory");
    fs::create_dir(&dir).expect("an empty one in its place");
    let refused = lab.mount_refused(&MountSpec::new(&storage, "vol", &dir));
    assert_ne!(refused.code, Some(0), "an empty folder never wipes a volume: {refused:#?}");
    assert_eq!(files_below(&storage.tree("vol")).len(), before);
    // The folder itself is known wherever it lies.
    let moved = lab.mount(&storage, "vol", &lab.path("moved away"));
    assert_equal_and_unmount(&moved, &storage, "vol");
}

#[test]
fn changes_made_while_unmounted_are_found_at_the_next_mount() {
    let Some(lab) = Lab::new("offline-changes") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fill_mixed(&dir, 120, 14);
    fs::create_dir(dir.join("a")).expect("new");
    fs::create_dir(dir.join("b")).expect("new");
    for at in 0..20 {
        fs::write(dir.join(format!("a/{at}")), content(at, 5000)).expect("writable");
    }
    let mount = lab.mount(&storage, "vol", &dir);
    assert_equal_and_unmount(&mount, &storage, "vol");

    fs::write(dir.join("a/0"), content(99, 5000)).expect("writable");
    fs::remove_file(dir.join("a/1")).expect("there");
    fs::rename(dir.join("a/2"), dir.join("b/moved")).expect("there");
    fs::rename(dir.join("a/3"), dir.join("a/4")).expect("there");
    fs::hard_link(dir.join("a/5"), dir.join("b/linked")).expect("there");
    fs::create_dir_all(dir.join("new/deep/tree")).expect("new");
    fs::write(dir.join("new/deep/tree/file"), "found").expect("writable");
    fs::rename(dir.join("b"), dir.join("new/b")).expect("there");

    mount.start_again().expect("mounted again");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn another_backing_directory_is_replicated_and_stays_where_it_is() {
    let Some(lab) = Lab::new("backing") else { return };
    let storage = lab.storage();
    let backing = lab.new_dir("backing");
    fill_mixed(&backing, 60, 15);
    let spec =
        MountSpec::new(&storage, "vol", &lab.new_dir("mountpoint")).options(&format!("backing={}", backing.display()));
    let mount = lab.mount_with(&spec);
    fs::write(mount.path().join("new"), "through the mount").expect("writable");
    assert_replica_equal(&mount, &storage, "vol");
    mount.unmount();
    compare::assert_equal(&backing, &storage.tree("vol"));
    assert_eq!(fs::read_dir(mount.path()).expect("readable").count(), 0);
}

#[test]
fn two_mounts_on_one_storage_do_not_meet() {
    let Some(lab) = Lab::new("two-volumes") else { return };
    let storage = lab.storage();
    let (one, two) = (lab.new_dir("one"), lab.new_dir("two"));
    fill_mixed(&one, 80, 16);
    fill_mixed(&two, 80, 17);
    let (one, two) = (lab.mount(&storage, "one", &one), lab.mount(&storage, "two", &two));
    fs::rename(one.path(), two.path().join("x")).expect_err("a mountpoint is busy, and another file system");
    fs::write(one.path().join("n"), "1").expect("writable");
    fs::write(two.path().join("n"), "2").expect("writable");
    assert_equal_and_unmount(&one, &storage, "one");
    assert_equal_and_unmount(&two, &storage, "two");
}

#[test]
fn command_returns_when_the_mount_serves_in_the_background() {
    let Some(lab) = Lab::new("background") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let spec = MountSpec::new(&storage, "vol", &dir);
    let mounted = tandem_tests::harness::run(
        lab.command("tandem-mountd").args(spec.args(false)),
        std::time::Duration::from_secs(60),
    );
    let path = dir.to_str().expect("a plain path");
    assert!(tandem_tests::harness::is_mounted(&dir), "{mounted:#?}");
    let mounted = mounted.expect_success("tandem-mountd");
    assert!(!mounted.stdout.contains("held open") && !mounted.stderr.contains("held open"), "{mounted:#?}");
    fs::write(dir.join("a"), "1").expect("it serves");
    lab.tandem(&["wait", path, "--timeout", "30"]).expect_success("tandem wait");
    compare::assert_equal(&dir, &storage.tree("vol"));
    lab.tandem(&["umount", "--drain", path]).expect_success("tandem umount");
    assert!(!tandem_tests::harness::is_mounted(&dir));
}
