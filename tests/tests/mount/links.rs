//! The link goes away and comes back: outages longer than the window, pauses, drains.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, eventually},
    rng::content,
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal, fill_mixed, finish_storms, storm_processes};

#[test]
fn outage_that_overflows_the_window_is_made_good_by_a_resync() {
    let Some(lab) = Lab::new("overflow") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fill_mixed(&dir, 100, 7);
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &dir).options("window=4M"));
    assert_replica_equal(&mount, &storage, "vol");
    let rounds = mount.status().resync_rounds;

    storage.kill();
    assert!(eventually(Duration::from_secs(10), || mount.status().state == "offline"), "{:#?}", mount.status());
    let limit = mount.status().window_limit_bytes;
    let big = File::create(mount.path().join("big")).expect("local work goes on");
    for block in 0..limit * 2 / (1 << 20) + 4 {
        big.write_all_at(&content(block, 1 << 20), block << 20).expect("local work goes on");
    }
    let begin = Instant::now();
    big.sync_all().expect("fsync is local by default");
    assert!(begin.elapsed() < Duration::from_secs(10), "a local fsync does not wait for the replica");
    drop(big);
    finish_storms(storm_processes(mount.path(), 5000, 2, 1, 2));
    let status = mount.status();
    assert!(status.window_bytes <= limit && status.dirty_cells > 0, "{status:#?}");

    storage.restart();
    assert_replica_equal(&mount, &storage, "vol");
    assert!(mount.status().resync_rounds > rounds, "{:#?}", mount.status());
    fs::write(mount.path().join("after"), "live again").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn short_outage_is_made_good_from_the_window() {
    let Some(lab) = Lab::new("outage") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let rounds = mount.status().resync_rounds;
    storage.kill();
    for at in 0..200 {
        fs::write(mount.path().join(format!("f{at}")), content(at, 3000)).expect("local work goes on");
    }
    storage.restart();
    assert_replica_equal(&mount, &storage, "vol");
    assert_eq!(mount.status().resync_rounds, rounds, "the window held all of it");
}

#[test]
fn paused_link_sends_nothing_and_a_resumed_one_everything() {
    let Some(lab) = Lab::new("pause") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("before"), "1").expect("writable");
    mount.settle();
    let dir = mount.path().to_str().expect("a plain path").to_owned();
    lab.tandem(&["pause", &dir]).expect_success("tandem pause");
    assert!(eventually(Duration::from_secs(5), || mount.status().state == "paused"), "{:#?}", mount.status());
    fs::write(mount.path().join("meanwhile"), "2").expect("local work goes on");
    let waited = lab.tandem(&["wait", &dir, "--timeout", "1"]);
    assert_eq!(waited.code, Some(1), "a paused link reaches nothing: {waited:#?}");
    assert!(!storage.tree("vol").join("meanwhile").exists());
    lab.tandem(&["resume", &dir]).expect_success("tandem resume");
    lab.tandem(&["wait", &dir, "--timeout", "30"]).expect_success("tandem wait");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn umount_with_drain_leaves_an_equal_replica_and_without_it_says_what_is_missing() {
    let Some(lab) = Lab::new("umount") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let dir = mount.path().to_str().expect("a plain path").to_owned();
    for at in 0..300 {
        fs::write(mount.path().join(format!("f{at}")), content(at, 10_000)).expect("writable");
    }
    lab.tandem(&["umount", "--drain", &dir]).expect_success("tandem umount --drain");
    assert!(eventually(Duration::from_secs(10), || mount.daemon().ended().is_some()));
    compare::assert_equal(mount.path(), &storage.tree("vol"));

    mount.start_again().expect("mounted again");
    mount.settle();
    lab.tandem(&["pause", &dir]).expect_success("tandem pause");
    fs::write(mount.path().join("late"), content(1, 5000)).expect("writable");
    let unmounted = lab.tandem(&["umount", &dir]);
    assert_eq!(unmounted.code, Some(1), "1: the replica is behind: {unmounted:#?}");
    assert!(unmounted.text().contains("lacks"), "it says what is not replicated: {unmounted:#?}");
    assert!(eventually(Duration::from_secs(10), || mount.daemon().ended().is_some()));
    assert!(!storage.tree("vol").join("late").exists());

    mount.start_again().expect("mounted again");
    assert_equal_and_unmount(&mount, &storage, "vol");
}
