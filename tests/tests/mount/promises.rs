//! Promises beyond equality: durable fsync, catch-up that costs what changed, a replica that is older than it should be, one writer.

use std::{
    fs::{self, File},
    io::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, eventually, is_mounted, run},
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal, fill_mixed, is_walk_pending};

#[test]
fn durable_fsync_returns_when_the_replica_has_it_and_fails_when_it_has_not() {
    let Some(lab) = Lab::new("durable") else { return };
    lab.allow_lost_peers();
    lab.allow("not durable on the replica", "an fsync that cannot be kept fails, and says so");
    let storage = lab.storage();
    let spec = MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("fsync=durable,fsync_timeout=2");
    let mount = lab.mount_with(&spec);
    mount.settle();
    let mut file = File::create(mount.path().join("f")).expect("writable");
    for round in 0..20u32 {
        file.write_all(&round.to_le_bytes()).expect("writable");
        file.sync_all().expect("the replica is there");
        let status = mount.status();
        assert!(status.durable >= status.seq.saturating_sub(1), "what fsync covered is durable: {status:#?}");
    }
    // What fsync promised survives both daemons.
    storage.kill();
    mount.kill();
    storage.restart();
    let copy = fs::read(storage.tree("vol").join("f")).expect("on the replica");
    assert_eq!(copy.len(), 80);
    mount.start_again().expect("mounted again");
    mount.settle();

    storage.kill();
    let mut file = File::create(mount.path().join("g")).expect("local work goes on");
    file.write_all(b"nobody has it").expect("local work goes on");
    let begin = Instant::now();
    let error = file.sync_all().expect_err("no replica, so the promise cannot be kept");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(begin.elapsed() >= Duration::from_millis(1500), "it waited: {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(10), "and not for ever: {:?}", begin.elapsed());
    drop(file);
    storage.restart();
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn catching_up_after_a_kill_reads_what_changed_and_not_what_exists() {
    let Some(lab) = Lab::new("no-scan") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    for at in 0..300 {
        fs::create_dir(dir.join(format!("d{at}"))).expect("new");
        fs::write(dir.join(format!("d{at}/f")), at.to_string()).expect("new");
    }
    let mount = lab.mount(&storage, "vol", &dir);
    assert_replica_equal(&mount, &storage, "vol");
    // A clean unmount lets go of all marks; the walk of the next mount is for changes around it.
    mount.unmount();
    mount.start_again().expect("mounted again");
    mount.settle();
    // That it is over is saved in a moment; a kill before that makes the next mount walk again.
    let state = lab.state_dir();
    assert!(eventually(Duration::from_secs(30), || !is_walk_pending(&state)), "the walk is not noted as done");
    fs::write(mount.path().join("d7/f"), "changed").expect("writable");
    fs::rename(mount.path().join("d8/f"), mount.path().join("d9/g")).expect("renamed");
    mount.kill();
    mount.start_again().expect("a dead mount of our own is replaced");
    assert_replica_equal(&mount, &storage, "vol");
    let status = mount.status();
    assert!(status.listed_dirs < 30, "{} directories were listed for changes in 3", status.listed_dirs);
    assert!(status.stat_nodes < 60, "{} inodes were read for 5 that changed", status.stat_nodes);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn replica_that_was_replaced_by_an_older_copy_is_not_synced_over() {
    let Some(lab) = Lab::new("older") else { return };
    lab.allow_lost_peers();
    lab.allow("older", "the test brings an older copy");
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("a"), "1").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    let stop = || storage.daemon().terminate(Duration::from_secs(20)).expect("SIGTERM ends it");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let copied = run(Command::new("cp").arg("-a").arg(from).arg(to), Duration::from_secs(60));
        copied.expect_success("cp -a");
    };
    stop();
    copy(&storage.data().join("vol"), &lab.path("older copy"));
    storage.restart();
    mount.start_again().expect("mounted again");
    fs::write(mount.path().join("b"), "2").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    stop();
    fs::rename(storage.data().join("vol"), lab.path("right one")).expect("a directory");
    copy(&lab.path("older copy"), &storage.data().join("vol"));
    storage.restart();

    match mount.start_again() {
        Err(said) => assert!(said.contains("older") || said.contains("init=push"), "{said}"),
        Ok(()) => {
            let told = eventually(Duration::from_secs(10), || mount.status().reason.contains("older"));
            assert!(told, "status says so: {:#?}", mount.status());
            assert_eq!(fs::read_to_string(mount.path().join("b")).expect("local work goes on"), "2");
            mount.unmount();
        }
    }
    assert!(!storage.tree("vol").join("b").exists(), "the older copy is untouched");
    let pushed = lab.mount_with(&MountSpec::new(&storage, "vol", mount.path()).options("init=push"));
    assert_equal_and_unmount(&pushed, &storage, "vol");
}

#[test]
fn writer_whose_volume_another_folder_takes_over_is_fenced_or_the_other_is_refused() {
    let Some(lab) = Lab::new("fence") else { return };
    lab.allow_lost_peers();
    lab.allow("fenced", "the test fences");
    lab.allow("held", "the test claims a held volume");
    let storage = lab.storage();
    let first = lab.new_dir("first");
    fill_mixed(&first, 30, 21);
    let first = lab.mount(&storage, "vol", &first);
    first.settle();
    let second = lab.new_dir("second");
    fs::write(second.join("mine"), "of the second").expect("writable");
    let spec = MountSpec::new(&storage, "vol", &second).options("init=push").state(&lab.path("state of the second"));
    match tandem_tests::harness::Mount::start(&lab, &spec) {
        Err(said) => {
            assert!(said.contains("unmount"), "it says what to do: {said}");
            fs::write(first.path().join("still"), "served").expect("the first goes on");
            assert_equal_and_unmount(&first, &storage, "vol");
        }
        Ok(second) => {
            assert_replica_equal(&second, &storage, "vol");
            assert!(eventually(Duration::from_secs(10), || first.status().state == "fenced"), "{:#?}", first.status());
            let error = fs::write(first.path().join("late"), "x").expect_err("a fenced mount takes no changes");
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
            assert!(fs::read_dir(first.path()).expect("reading goes on").count() > 5);
            assert_equal_and_unmount(&second, &storage, "vol");
        }
    }
}

#[test]
fn mount_helper_takes_what_mount_gives_it() {
    let Some(lab) = Lab::new("helper") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fs::write(dir.join("a"), "1").expect("writable");
    let helper = lab.path("mount.tandem");
    std::os::unix::fs::symlink(tandem_tests::harness::binary("tandem-mountd"), &helper).expect("new name");
    let mut command = Command::new(&helper);
    command.env("TANDEM_RUNTIME_DIR", lab.runtime_dir()).env("TANDEM_STATE_DIR", lab.state_dir());
    command.arg(format!("127.0.0.1:{}:/vol", storage.port())).arg(&dir).args(["-n", "-v", "-o", "rw,noatime,_netdev"]);
    let mounted = run(&mut command, Duration::from_secs(60));
    assert!(is_mounted(&dir), "{mounted:#?}");
    mounted.expect_success("mount.tandem");
    let path = dir.to_str().expect("a plain path");
    lab.tandem(&["wait", path, "--timeout", "30"]).expect_success("tandem wait");
    compare::assert_equal(&dir, &storage.tree("vol"));
    run(Command::new("umount").arg(&dir), Duration::from_secs(20)).expect_success("umount");
    assert!(!is_mounted(&dir));
}
