//! Storms of random operations by several processes, with daemons killed in the middle.

use std::{thread, time::Duration};

use tandem_tests::harness::{Lab, seconds};

use crate::support::{assert_equal_and_unmount, assert_replica_equal, finish_storms, storm_processes};

#[test]
fn storm_of_several_processes_leaves_an_equal_replica() {
    let Some(lab) = Lab::new("storm") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    finish_storms(storm_processes(mount.path(), 1000, seconds(5).as_secs(), 2, 2));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn storaged_killed_and_restarted_in_a_storm_catches_up() {
    let Some(lab) = Lab::new("storm-storaged") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let time = seconds(8);
    let storms = storm_processes(mount.path(), 2000, time.as_secs(), 2, 2);
    for down in [0, 300, 1000] {
        thread::sleep(time / 4);
        storage.kill();
        thread::sleep(Duration::from_millis(down));
        storage.restart();
    }
    finish_storms(storms);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn mountd_killed_in_a_storm_and_mounted_again_catches_up() {
    let Some(lab) = Lab::new("storm-mountd") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    for round in 0..3 {
        let storms = storm_processes(mount.path(), 3000 + round, 60, 2, 2);
        thread::sleep(seconds(6) / 3);
        mount.kill();
        finish_storms(storms);
        mount.start_again().expect("a dead mount of our own is replaced");
        if round != 1 {
            assert_replica_equal(&mount, &storage, "vol");
        }
    }
    finish_storms(storm_processes(mount.path(), 3100, 1, 1, 2));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn both_daemons_killed_at_once_and_started_again_end_up_equal() {
    let Some(lab) = Lab::new("storm-both") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    for round in 0..2 {
        let storms = storm_processes(mount.path(), 4000 + round, 60, 1, 3);
        thread::sleep(seconds(4) / 2);
        storage.kill();
        mount.kill();
        finish_storms(storms);
        storage.restart();
        mount.start_again().expect("a dead mount of our own is replaced");
        assert_replica_equal(&mount, &storage, "vol");
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}
