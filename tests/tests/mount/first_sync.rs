//! A folder that holds something is mounted over and used at once, while its first sync runs.

use std::{fs, time::Duration};

use tandem_tests::harness::{Lab, eventually, seconds};

use crate::support::{
    assert_equal_and_unmount, assert_replica_equal, assert_rsync_sees_nothing, fill_mixed, finish_storms,
    storm_processes,
};

#[test]
fn folder_of_mixed_content_is_replicated() {
    let Some(lab) = Lab::new("first-sync") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fill_mixed(&dir, 400, 1);
    let mount = lab.mount(&storage, "vol", &dir);
    let seen = assert_replica_equal(&mount, &storage, "vol");
    assert!(seen.objects > 350, "{seen:?}");
    assert_rsync_sees_nothing(mount.path(), &storage.tree("vol"));
    assert_equal_and_unmount(&mount, &storage, "vol");
    assert_rsync_sees_nothing(&dir, &storage.tree("vol"));
}

#[test]
fn folder_that_is_stormed_during_its_first_sync_is_replicated() {
    let Some(lab) = Lab::new("first-sync-busy") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fill_mixed(&dir, 500, 2);
    let mount = lab.mount(&storage, "vol", &dir);
    let storms = storm_processes(mount.path(), 20, seconds(4).as_secs(), 1, 2);
    // Directories of the folder move while they are being read.
    for round in 0..40 {
        for entry in fs::read_dir(mount.path()).expect("the mount serves").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("dir") && round % 4 == 0 {
                let other = mount.path().join(format!("moved-{name}"));
                let _ = fs::rename(entry.path(), other);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    finish_storms(storms);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn empty_folder_becomes_an_empty_replica_and_goes_live() {
    let Some(lab) = Lab::new("first-sync-empty") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    assert!(eventually(Duration::from_secs(10), || mount.status().state == "live"), "{:#?}", mount.status());
    fs::write(mount.path().join("a"), "first").expect("the mount is writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn storaged_killed_during_the_first_sync_only_delays_it() {
    let Some(lab) = Lab::new("first-sync-cut") else { return };
    lab.allow_lost_peers();
    lab.allow("has no file `state`", "killed while it made the volume, which is made again");
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fill_mixed(&dir, 800, 3);
    let mount = lab.mount(&storage, "vol", &dir);
    for pause in [30, 150, 400] {
        std::thread::sleep(Duration::from_millis(pause));
        storage.kill();
        storage.restart();
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}
