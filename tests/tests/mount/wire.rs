//! What work costs on the wire: copies, and a link that is slow.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use tandem_tests::{
    harness::{Lab, Mount, MountSpec, Storage, eventually, rpc},
    rng::content,
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal};

const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that `work` and its replication cost.
fn cost(mount: &Mount, work: impl FnOnce()) -> u64 {
    mount.settle();
    let before = mount.status().sent_bytes;
    work();
    mount.settle();
    mount.status().sent_bytes - before
}

/// That `work` comes to cost less than `most`: what is offered is found once the replica's index knows what its files hold, which is soon
/// and not at once.
fn becomes_cheap(mount: &Mount, storage: &Storage, most: u64, mut work: impl FnMut()) {
    let indexed = || {
        let status = rpc::storage_status(storage.port(), &storage.secret());
        status.is_ok_and(|status| {
            status.volumes.iter().all(|volume| volume.index_behind == 0 && volume.index_chunks > 0)
                && status.volumes.iter().all(|volume| volume.workers.iter().any(|worker| worker.state == "idle"))
        })
    };
    let mut costs = Vec::new();
    for _ in 0..4 {
        assert!(eventually(PATIENCE, indexed), "the index does not come to rest");
        costs.push(cost(mount, &mut work));
        if costs.iter().any(|cost| *cost < most) {
            return;
        }
    }
    panic!("{costs:?} bytes were sent, and never less than {most}: {:#?}", mount.status());
}

fn save_again(path: &Path, before: &[u8]) {
    let temporary = path.with_extension("tmp");
    let data = [before, &fs::read(path).expect("it is there")].concat();
    let mut file = File::create(&temporary).expect("the mount is writable");
    for part in data.chunks(100_000) {
        file.write_all(part).expect("room");
    }
    file.sync_all().expect("synced");
    fs::rename(&temporary, path).expect("renamed");
}

#[test]
fn copies_are_made_by_the_replica() {
    let Some(lab) = Lab::new("wire-copies") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let (doc, copy) = (mount.path().join("doc"), mount.path().join("copy"));
    let bytes = content(1, 40 << 20);
    fs::write(&doc, &bytes).expect("room");
    let sent = cost(&mount, || {
        fs::copy(&doc, &copy).expect("copied");
    });
    assert!(sent < 8 << 10, "{sent} bytes were sent for a copy of 40 MiB");
    // What is copied is what the ops before made of the source, also if it is changed at once and right behind.
    for round in 0..20 {
        let file = File::options().write(true).open(&doc).expect("it is there");
        file.write_all_at(&content(round, 70_000), round * 90_001).expect("room");
        fs::copy(&doc, mount.path().join(format!("copy{}", round % 3))).expect("copied");
        file.write_all_at(&content(round + 100, 70_000), round * 90_001).expect("room");
    }
    // Inside one file, and from behind its holes.
    let file = File::options().read(true).write(true).open(&copy).expect("it is there");
    file.set_len(100 << 20).expect("sparse");
    let (mut from, mut to) = (39 << 20, 90 << 20);
    let copied = rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 5 << 20).expect("copied");
    assert!(copied > 0);
    drop(file);
    assert_replica_equal(&mount, &storage, "vol");
    // A replica that was away when they were made gets what they came to.
    lab.allow_lost_peers();
    storage.kill();
    fs::copy(&doc, mount.path().join("offline")).expect("copied");
    storage.restart();
    fs::copy(&doc, mount.path().join("right-after")).expect("copied");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn zeroes_that_are_written_are_sent_as_ranges() {
    let Some(lab) = Lab::new("wire-zeroes") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let (doc, new) = (mount.path().join("doc"), mount.path().join("new"));
    fs::write(&doc, content(1, 3_000_000)).expect("room");
    let sent = cost(&mount, || {
        fs::write(&new, vec![0; 20 << 20]).expect("room");
        let file = File::options().write(true).open(&doc).expect("it is there");
        // Inside the file, across its end, and behind it.
        for (offset, len) in [(1_000_001, 500_000), (2_900_001, 300_000), (5_000_003, 70_000)] {
            file.write_all_at(&vec![0; len], offset).expect("room");
        }
        file.write_all_at(b"end", 6_000_000).expect("room");
    });
    assert!(sent < 16 << 10, "{sent} bytes were sent for 20 MiB of zeroes");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn copies_survive_a_kill_of_the_storage_daemon_right_behind_them() {
    let Some(lab) = Lab::new("wire-copies-kill") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let doc = mount.path().join("doc");
    fs::write(&doc, content(1, 3 << 20)).expect("room");
    mount.settle();
    for round in 0..4u64 {
        for at in 0..10 {
            fs::copy(&doc, mount.path().join(format!("copy{round}-{at}"))).expect("copied");
            let file = File::options().write(true).open(&doc).expect("it is there");
            file.write_all_at(&content(round * 10 + at, 5000), at * 100_000).expect("room");
        }
        storage.kill();
        storage.restart();
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn what_the_replica_has_costs_digests_on_a_slow_link() {
    let Some(lab) = Lab::new("wire-slow") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fs::write(dir.join("doc"), content(3, 6 << 20)).expect("room");
    let first = lab.mount(&storage, "vol", &dir);
    first.settle();
    first.unmount();
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &dir).options("bwlimit=512K"));
    // What is saved before is part of the comparison that the mount begins with.
    assert!(eventually(PATIENCE, || mount.status().state == "live"), "{:#?}", mount.status());
    let doc = mount.path().join("doc");
    becomes_cheap(&mount, &storage, 200 << 10, || save_again(&doc, b""));
    assert!(mount.status().offered_rounds > 0, "{:#?}", mount.status());
    becomes_cheap(&mount, &storage, 800 << 10, || save_again(&doc, b"0123456789"));
    becomes_cheap(&mount, &storage, 200 << 10, || {
        let mut from = File::open(&doc).expect("it is there");
        let mut to = File::create(dir.join("copied")).expect("the mount is writable");
        let mut part = vec![0; 64 << 10];
        while let len @ 1.. = from.read(&mut part).expect("readable") {
            to.write_all(&part[..len]).expect("room");
        }
    });
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn new_data_on_a_slow_link_arrives_at_its_rate_and_text_is_compressed() {
    let Some(lab) = Lab::new("wire-limit") else { return };
    let storage = lab.storage();
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("bwlimit=2M"));
    mount.settle();
    let text = "the same again, ".repeat(250_000);
    let sent = cost(&mount, || fs::write(mount.path().join("text"), &text).expect("room"));
    assert!(sent < 1 << 20, "{sent} bytes for 4 MB of text: {}", mount.status().compression);
    let begun = Instant::now();
    fs::write(mount.path().join("noise"), content(5, 5 << 20)).expect("room");
    mount.settle();
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1500), "5 MiB in {took:?} at 2 MiB/s");
    assert_eq!(mount.status().bandwidth_limit, 2 << 20);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

/// How nice the mount's thread that reads for a resync is, compared with the daemon's first one.
fn patience(pid: u32) -> Option<i64> {
    let nice = |task: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{task}/stat")).ok()?;
        // Behind the name, which may hold anything: the 19th field is the 17th of what follows.
        stat.rsplit_once(") ")?.1.split(' ').nth(16)?.parse::<i64>().ok()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let named = |task: &str| fs::read_to_string(format!("/proc/{pid}/task/{task}/comm")).unwrap_or_default();
    let mut tasks = tasks.map(|task| task.file_name().to_string_lossy().into_owned());
    Some(nice(&tasks.find(|task| named(task).trim() == "resync-reader")?)? - nice(&pid.to_string())?)
}

#[test]
fn a_resync_stands_back_behind_other_programs_unless_it_is_told_not_to() {
    let Some(lab) = Lab::new("wire-patience") else { return };
    let storage = lab.storage();
    for (volume, options, gentle) in [("gentle", "", true), ("full", "resync=full", false)] {
        let dir = lab.new_dir(volume);
        fs::write(dir.join("file"), content(1, 1 << 20)).expect("room");
        let mount = lab.mount_with(&MountSpec::new(&storage, volume, &dir).options(options));
        mount.settle();
        let nicer = mount.daemon().pid().and_then(patience).expect("a thread that reads");
        assert_eq!(nicer > 0, gentle, "{nicer}");
        assert_equal_and_unmount(&mount, &storage, volume);
    }
}
