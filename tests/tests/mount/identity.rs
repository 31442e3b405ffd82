//! Replicas and folders that are not the ones they were: recognised, never synced over silently, each with its way on.

use std::{fs, path::Path, process::Command, time::Duration};

use tandem_tests::{
    compare,
    harness::{Lab, Mount, MountSpec, Storage, eventually},
    rng::content,
    trials::image::{FileSystem, Image},
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal, files_below, fill_mixed, is_walk_pending};

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg("--").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

fn image(lab: &Lab) -> Result<Image, String> {
    Image::new(FileSystem::Ext4, &lab.path("disk.img"), 64 << 20, &lab.path("disk"))
}

fn synced(lab: &Lab, storage: &Storage, dir: &Path) -> Mount {
    fill_mixed(dir, 30, 41);
    fs::write(dir.join("precious"), "1").expect("writable");
    let mount = lab.mount(storage, "vol", dir);
    assert_replica_equal(&mount, storage, "vol");
    mount
}

fn assert_refused(lab: &Lab, storage: &Storage, dir: &Path, words: &[&str]) {
    let before = files_below(&storage.tree("vol")).len();
    let refused = lab.mount_refused(&MountSpec::new(storage, "vol", dir));
    assert_ne!(refused.code, Some(0), "{refused:#?}");
    for word in words {
        assert!(refused.text().contains(word), "{word:?} is missing: {}", refused.text());
    }
    assert_eq!(files_below(&storage.tree("vol")).len(), before, "the volume is untouched");
}

#[test]
fn restored_replica_is_refused_and_pushed_to_on_demand() {
    let Some(lab) = Lab::new("restored") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = synced(&lab, &storage, &lab.new_dir("folder"));
    mount.unmount();
    storage.daemon().terminate(Duration::from_secs(20)).expect("SIGTERM ends it");
    copy(&storage.data().join("vol"), &lab.path("backup"));
    storage.restart();
    mount.start_again().expect("known");
    fs::write(mount.path().join("precious"), "2").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    storage.daemon().terminate(Duration::from_secs(20)).expect("SIGTERM ends it");
    fs::rename(storage.data().join("vol"), lab.path("the right one")).expect("a directory");
    copy(&lab.path("backup"), &storage.data().join("vol"));
    storage.restart();
    assert_refused(&lab, &storage, mount.path(), &["older", "init=push", "init=pull"]);
    assert_eq!(fs::read(storage.tree("vol").join("precious")).expect("there"), b"1");
    let pushed = lab.mount_with(&MountSpec::new(&storage, "vol", mount.path()).options("init=push"));
    assert_equal_and_unmount(&pushed, &storage, "vol");
}

#[test]
fn emptied_replica_is_refused() {
    let Some(lab) = Lab::new("emptied-replica") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = synced(&lab, &storage, &lab.new_dir("folder"));
    mount.unmount();
    storage.daemon().terminate(Duration::from_secs(20)).expect("SIGTERM ends it");
    fs::rename(storage.data().join("vol"), lab.path("gone")).expect("a directory");
    storage.restart();
    let refused = lab.mount_refused(&MountSpec::new(&storage, "vol", mount.path()));
    assert!(refused.text().contains("gone") && refused.text().contains("init=push"), "{}", refused.text());
    let pushed = lab.mount_with(&MountSpec::new(&storage, "vol", mount.path()).options("init=push"));
    assert_equal_and_unmount(&pushed, &storage, "vol");
}

#[test]
fn backing_file_system_that_is_not_mounted_is_not_a_deletion_of_everything() {
    let Some(lab) = Lab::new("not-mounted") else { return };
    let storage = lab.storage();
    let mut image = image(&lab).expect("loop devices");
    let mount = synced(&lab, &storage, image.dir());
    mount.unmount();
    image.unmount().expect("nobody uses it");
    assert_refused(&lab, &storage, image.dir(), &["not the directory that was mounted here before", "not be mounted"]);
    // Also without the server, and also if something lies in the bare directory.
    fs::write(image.dir().join("stray"), "x").expect("writable");
    assert_refused(&lab, &storage, image.dir(), &["not the directory that was mounted here before", "init=push"]);
    fs::remove_file(image.dir().join("stray")).expect("there");
    image.mount().expect("it was mounted before");
    mount.start_again().expect("the right one");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn folder_that_was_restored_from_a_snapshot_is_refused_and_pushed_on_demand() {
    let Some(lab) = Lab::new("went-back") else { return };
    let storage = lab.storage();
    let mut image = image(&lab).expect("loop devices");
    let mount = synced(&lab, &storage, image.dir());
    mount.unmount();
    image.unmount().expect("nobody uses it");
    let snapshot = lab.path("snapshot.img");
    fs::copy(lab.path("disk.img"), &snapshot).expect("room");
    image.mount().expect("it was mounted before");
    mount.start_again().expect("known");
    fs::write(mount.path().join("precious"), "2").expect("writable");
    fs::write(mount.path().join("later"), content(3, 30_000)).expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    image.unmount().expect("nobody uses it");
    fs::copy(&snapshot, lab.path("disk.img")).expect("room");
    image.mount().expect("it was mounted before");
    assert_refused(&lab, &storage, image.dir(), &["older than it was", "snapshot", "init=push", "init=pull"]);
    let pushed = lab.mount_with(&MountSpec::new(&storage, "vol", image.dir()).options("init=push"));
    assert_replica_equal(&pushed, &storage, "vol");
    assert_eq!(fs::read(storage.tree("vol").join("precious")).expect("there"), b"1");
    let kept = files_below(&storage.history("vol"));
    assert!(kept.iter().any(|path| path.ends_with("later")), "what it replaced is kept: {kept:#?}");
    pushed.unmount();
}

#[test]
fn copied_folder_is_unknown() {
    let Some(lab) = Lab::new("copied-folder") else { return };
    let storage = lab.storage();
    let mount = synced(&lab, &storage, &lab.new_dir("folder"));
    mount.unmount();
    let copied = lab.path("copy");
    copy(mount.path(), &copied);
    assert_refused(&lab, &storage, &copied, &["never attached", "init=push"]);
}

#[test]
fn copy_of_the_clients_state_fences_nobody_silently() {
    let Some(lab) = Lab::new("copied-state") else { return };
    lab.allow_lost_peers();
    lab.allow("fenced", "the test uses a copy");
    let storage = lab.storage();
    let mount = synced(&lab, &storage, &lab.new_dir("folder"));
    mount.unmount();
    // As a machine and its clone have them: the same folder, the same state, and one of them writes.
    let copied = lab.path("state of the clone");
    copy(&lab.state_dir(), &copied);
    mount.start_again().expect("the original");
    fs::write(mount.path().join("precious"), "2").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    let spec = MountSpec::new(&storage, "vol", mount.path()).state(&copied);
    let refused = lab.mount_refused(&spec);
    for part in ["taken over", "init=push"] {
        assert!(refused.text().contains(part), "{part:?} is missing: {}", refused.text());
    }
    // The original is still known.
    mount.start_again().expect("the original");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn init_pull_can_stay_in_fstab() {
    let Some(lab) = Lab::new("fstab") else { return };
    let storage = lab.storage();
    let first = synced(&lab, &storage, &lab.new_dir("first"));
    first.unmount();
    let dir = lab.new_dir("second");
    let spec = MountSpec::new(&storage, "vol", &dir).state(&lab.path("state")).options("init=pull");
    let mount = lab.mount_with(&spec);
    compare::assert_equal(&dir, first.path());
    fs::write(dir.join("new"), "kept").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    mount.start_again().expect("it resumes");
    assert_eq!(fs::read(dir.join("new")).expect("there"), b"kept");
    // Emptied through the mount means emptied.
    for entry in fs::read_dir(&dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removable");
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
    mount.start_again().expect("it resumes");
    assert_eq!(fs::read_dir(&dir).expect("readable").count(), 0);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn ten_thousand_files_changed_around_the_mount_do_not_delay_it_and_are_made_equal() {
    let Some(lab) = Lab::new("walk") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    for at in 0..10_000 {
        if at % 100 == 0 {
            fs::create_dir(dir.join(format!("d{}", at / 100))).expect("new");
        }
        fs::write(dir.join(format!("d{}/f{at}", at / 100)), at.to_string()).expect("writable");
    }
    let mount = lab.mount(&storage, "vol", &dir);
    assert_equal_and_unmount(&mount, &storage, "vol");
    for at in (0..10_000).step_by(500) {
        fs::write(dir.join(format!("d{}/f{at}", at / 100)), "changed around the mount").expect("writable");
    }
    fs::remove_file(dir.join("d7/f701")).expect("there");
    fs::rename(dir.join("d8"), dir.join("d9/d8")).expect("there");
    let begun = std::time::Instant::now();
    mount.start_again().expect("known");
    let served = begun.elapsed();
    let before = mount.status();
    assert_replica_equal(&mount, &storage, "vol");
    let status = mount.status();
    eprintln!(
        "served after {served:?} (then {} directories were listed), equal after {:?}: {} listed, {} inodes read, {} bytes sent",
        before.listed_dirs,
        begun.elapsed(),
        status.listed_dirs,
        status.stat_nodes,
        status.sent_bytes
    );
    assert!(status.listed_dirs >= 100, "the walk looks at every directory");
    assert!(status.sent_bytes < 2 << 20, "names and stamps travel, not data: {}", status.sent_bytes);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn what_others_changed_is_on_the_folders_disk_before_it_is_on_the_replica() {
    let Some(lab) = Lab::new("walk-power") else { return };
    let mut image = match image(&lab) {
        Ok(image) => image,
        Err(why) => return eprintln!("SKIPPED: {why}"),
    };
    lab.allow_lost_peers();
    for part in ["os error 5", "Input/output error", "EIO", "shut down"] {
        lab.allow(part, "its disk is shut down by this test");
    }
    lab.allow("the shadow does not count", "the folder's file system is mounted anew");
    let storage = lab.storage();
    let (dir, state) = (image.dir().join("folder"), image.dir().join("state"));
    fs::create_dir(&dir).expect("a new file system takes a directory");
    fill_mixed(&dir, 30, 43);
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &dir).state(&state));
    assert_equal_and_unmount(&mount, &storage, "vol");
    fs::write(dir.join("around"), "written by somebody whom nobody watched").expect("writable");
    mount.start_again().expect("known");
    mount.settle();
    assert!(eventually(Duration::from_secs(20), || !is_walk_pending(&state)), "the walk does not end");
    assert!(storage.tree("vol").join("around").exists(), "the walk has found it");
    mount.kill();
    image.cut();
    mount.detach();
    image.recover();
    assert!(dir.join("around").exists(), "the replica has what the folder lost");
    mount.start_again().expect("known");
    assert_equal_and_unmount(&mount, &storage, "vol");
}
