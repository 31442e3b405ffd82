//! What fsync waits for, on real mounts: by path, for a replica that is away, until a signal comes; and writers that are slowed
//! instead of letting the replica fall behind.

use std::{
    fs::{self, File},
    io::Write as _,
    process::Command,
    thread,
    time::Duration,
};

use tandem_tests::{
    harness::{Lab, MountSpec, eventually},
    rng::content,
};

use crate::support::assert_equal_and_unmount;

#[test]
fn fsync_below_a_durable_path_waits_for_the_replica_and_elsewhere_it_does_not() {
    let Some(lab) = Lab::new("fsync-path") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let spec = MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("fsync=durable:/db,fsync=local:/db/tmp");
    let mount = lab.mount_with(&spec);
    mount.settle();
    for dir in ["db", "db/tmp", "home"] {
        fs::create_dir(mount.path().join(dir)).expect("writable");
    }
    mount.wait(Duration::from_secs(60));
    storage.kill();
    for local in ["home/f", "db/tmp/f"] {
        let mut file = File::create(mount.path().join(local)).expect("writable");
        file.write_all(b"x").expect("writable");
        file.sync_all().expect("a local fsync does not need the replica");
    }
    let path = mount.path().join("db/f");
    let waiting = thread::spawn(move || {
        let mut file = File::create(path)?;
        file.write_all(b"x")?;
        file.sync_data()
    });
    assert!(eventually(Duration::from_secs(20), || mount.status().waiting_fsyncs == 1), "it waits, and status says so");
    // It is told apart where the file is now, not where it was made.
    fs::rename(mount.path().join("home/f"), mount.path().join("db/g")).expect("rename");
    let moved = File::open(mount.path().join("db/g")).expect("open");
    let also_waiting = thread::spawn(move || moved.sync_all());
    assert!(eventually(Duration::from_secs(20), || mount.status().waiting_fsyncs == 2), "both wait");
    storage.restart();
    for thread in [waiting, also_waiting] {
        thread.join().expect("no panic").expect("the replica is back, and has it");
    }
    // What was acknowledged is in the log; the tree follows.
    let before = storage.tree("vol").join("db/tmp/f");
    let there = eventually(Duration::from_secs(20), || fs::read(&before).is_ok_and(|bytes| bytes == b"x"));
    assert!(there, "everything before is there");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn a_program_that_waits_for_a_replica_that_is_away_can_be_interrupted() {
    let Some(lab) = Lab::new("fsync-signal") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("fsync=durable"));
    mount.settle();
    storage.kill();
    // What ends dd. It catches SIGINT, and then waits like any program whose disk is slow.
    for (name, signal) in [("one", libc::SIGTERM), ("two", libc::SIGKILL)] {
        let target = format!("of={}", mount.path().join(name).display());
        let mut child = Command::new("dd")
            .args(["if=/dev/zero", "count=1", "conv=fsync", "status=none", &target])
            .spawn()
            .expect("dd");
        assert!(eventually(Duration::from_secs(20), || mount.status().waiting_fsyncs == 1), "it waits");
        // Status says who waits, for which file.
        let status = mount.status();
        let [call] = &status.waiting[..] else { panic!("{status:#?}") };
        let told = (call.what.as_str(), call.path.as_str(), call.pid, call.process.as_str());
        assert_eq!(told, ("fsync", format!("/{name}").as_str(), child.id(), "dd"));
        assert!(status.state == "offline" && status.state_since_ns > 0, "{status:#?}");
        // SAFETY: the child was not waited for yet, so its number is its own.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        assert!(eventually(Duration::from_secs(20), || child.try_wait().expect("ours").is_some()), "it ends");
        assert!(eventually(Duration::from_secs(20), || mount.status().waiting_fsyncs == 0), "nobody waits any more");
    }
    storage.restart();
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn a_throttled_writer_waits_instead_of_letting_the_window_overflow() {
    let Some(lab) = Lab::new("throttle") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let spec = MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("congestion=throttle,window=4M");
    let mount = lab.mount_with(&spec);
    mount.settle();
    let rounds = mount.status().resync_rounds;
    let block = content(3, 256 << 10);
    // Many times the window, faster than any replica that makes it durable.
    thread::scope(|scope| {
        for writer in 0..2 {
            let (mount, block) = (&mount, &block);
            scope.spawn(move || {
                let mut file = File::create(mount.path().join(format!("f{writer}"))).expect("writable");
                for _ in 0..192 {
                    file.write_all(block).expect("writable");
                }
            });
        }
    });
    mount.wait(Duration::from_secs(120));
    let status = mount.status();
    assert_eq!((status.resync_rounds, status.held_writes), (rounds, 0), "the window held: {status:#?}");
    assert_eq!(status.congestion, "throttle");
    // Without a replica nobody waits for it.
    storage.kill();
    let mut file = File::create(mount.path().join("alone")).expect("writable");
    for _ in 0..64 {
        file.write_all(&block).expect("local work goes on");
    }
    drop(file);
    storage.restart();
    assert_equal_and_unmount(&mount, &storage, "vol");
}
