//! What an outage of the replica costs afterwards: what changed, not what exists; and what the marks cost meanwhile.
//!
//! `TANDEM_TEST_FILES`: files in the one directory. `TANDEM_TEST_OUTAGE_MIB`: written during the long outage. With `TANDEM_TEST_STRICT`
//! the times are held to what the project promises, which only a release build on a machine that does nothing else can keep.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use tandem_proto::pb::MountStatus;
use tandem_tests::{
    harness::{Lab, Mount, MountSpec, Storage, eventually},
    rng::content,
};

use crate::support::assert_equal_and_unmount;

/// Files that are saved during the outage, as editors do it.
const SAVED: usize = 10;
const SIZE: usize = 4096;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Bytes that all files below a directory take on the disk.
fn allocated(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => allocated(&entry.path()),
        Ok(found) => found.blocks() * 512,
        // It was moved meanwhile.
        Err(_) => 0,
    });
    sizes.sum()
}

fn files() -> usize {
    number("TANDEM_TEST_FILES", 2000)
}

fn is_strict() -> bool {
    std::env::var_os("TANDEM_TEST_STRICT").is_some()
}

/// Resident memory of a process at its highest, in bytes; without what it maps of files.
fn memory(pid: Option<u32>) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.expect("it runs"))).expect("proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a field of it");
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse::<u64>().expect("a number of KiB") << 10
}

/// A mounted folder with many files in one directory, equal on the replica.
fn mounted_with_files(lab: &Lab, storage: &Storage) -> Mount {
    let folder = lab.new_dir("folder");
    let many = folder.join("many");
    fs::create_dir(&many).expect("writable");
    for file in 0..files() {
        fs::write(many.join(format!("file-{file:06}")), format!("{file}").repeat(8)).expect("writable");
    }
    let mount = lab.mount(storage, "vol", &folder);
    mount.wait(Duration::from_secs(300));
    mount.settle();
    mount
}

fn save_some(dir: &Path, salt: u8) {
    for file in 0..SAVED {
        let temporary = dir.join(format!(".file-{file:06}.tmp"));
        fs::write(&temporary, vec![salt + file as u8; SIZE]).expect("local work goes on");
        fs::rename(&temporary, dir.join(format!("file-{file:06}"))).expect("local work goes on");
    }
}

fn is_saved(tree: &Path, salt: u8) -> bool {
    (0..SAVED).all(|file| {
        fs::read(tree.join(format!("many/file-{file:06}"))).is_ok_and(|bytes| bytes == vec![salt + file as u8; SIZE])
            && !tree.join(format!("many/.file-{file:06}.tmp")).exists()
    })
}

fn wire_bytes(status: &MountStatus) -> u64 {
    status.sent_bytes + status.received_bytes
}

#[test]
fn after_an_outage_only_what_was_saved_meanwhile_travels() {
    let Some(lab) = Lab::new("outage") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = mounted_with_files(&lab, &storage);
    let before = mount.status();
    storage.kill();
    save_some(&mount.path().join("many"), 1);
    storage.restart();
    assert!(eventually(Duration::from_secs(60), || mount.status().state != "offline"), "{:#?}", mount.status());
    let begin = Instant::now();
    assert!(eventually(Duration::from_secs(60), || is_saved(&storage.tree("vol"), 1)), "{:#?}", mount.status());
    let took = begin.elapsed();
    let after = mount.status();
    println!(
        "outage, {} files: equal {took:.3?} after the connection, {} bytes on the wire, {} directories listed, {} inodes read",
        files(),
        wire_bytes(&after) - wire_bytes(&before),
        after.listed_dirs - before.listed_dirs,
        after.stat_nodes - before.stat_nodes
    );
    assert!(!is_strict() || took < Duration::from_millis(200), "{took:?}");
    assert_eq!((after.listed_dirs, after.stat_nodes), (before.listed_dirs, before.stat_nodes), "nothing was looked at");
    assert!(wire_bytes(&after) - wire_bytes(&before) < 100 << 10, "{after:#?}");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn a_kill_during_an_outage_costs_no_listing_either() {
    let Some(lab) = Lab::new("outage-kill") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = mounted_with_files(&lab, &storage);
    storage.kill();
    save_some(&mount.path().join("many"), 1);
    mount.kill();
    storage.restart();
    let begin = Instant::now();
    mount.start_again().expect("a known folder");
    assert!(eventually(Duration::from_secs(60), || is_saved(&storage.tree("vol"), 1)), "{:#?}", mount.status());
    let took = begin.elapsed();
    mount.wait(Duration::from_secs(60));
    let after = mount.status();
    println!(
        "outage and kill -9, {} files: equal {took:.3?} after the start, {} bytes on the wire, {} directories listed, {} inodes read",
        files(),
        wire_bytes(&after),
        after.listed_dirs,
        after.stat_nodes
    );
    assert!(!is_strict() || took < Duration::from_secs(1), "{took:?}");
    assert_eq!(after.resumed_from, "shadow");
    // The directory itself, and what was saved; each under its two names it is one inode.
    assert_eq!(after.listed_dirs, 0, "{after:#?}");
    assert!(after.stat_nodes <= 2 + 2 * SAVED as u64, "{after:#?}");
    assert!(wire_bytes(&after) < 200 << 10, "{after:#?}");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn mtimes_that_were_not_told_yet_survive_a_kill() {
    let Some(lab) = Lab::new("outage-mtime") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = mounted_with_files(&lab, &storage);
    // Written and durable on the replica, but still open: its mtime is told when the writing pauses.
    let path = mount.path().join("many/file-000001");
    let file = fs::OpenOptions::new().write(true).open(&path).expect("writable");
    std::os::unix::fs::FileExt::write_all_at(&file, b"new", 0).expect("writable");
    let tree = storage.tree("vol");
    assert!(eventually(Duration::from_secs(20), || {
        fs::read(tree.join("many/file-000001")).is_ok_and(|bytes| bytes.starts_with(b"new"))
    }));
    mount.kill();
    drop(file);
    mount.start_again().expect("a known folder");
    mount.wait(Duration::from_secs(60));
    assert_eq!(mount.status().listed_dirs, 0);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn a_first_sync_that_is_cut_goes_on_with_what_was_staged() {
    const FILES: usize = 12;
    const LEN: usize = 8 << 20;
    let Some(lab) = Lab::new("outage-first") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    for file in 0..FILES {
        fs::write(folder.join(format!("big{file}")), content(file as u64, LEN)).expect("writable");
    }
    let mount = lab.mount(&storage, "vol", &folder);
    let all = (FILES * LEN) as u64;
    // Of what was sent, only what the storage daemon has written can be gone on with; the rest is in the link's buffers.
    let staging = storage.data().join("vol/staging");
    let half = || mount.status().sent_bytes > all / 2 && allocated(&staging) > all / 4;
    assert!(eventually(Duration::from_secs(120), half), "{:#?}", mount.status());
    storage.kill();
    let (cut, staged) = (mount.status(), allocated(&staging));
    storage.restart();
    mount.wait(Duration::from_secs(300));
    let sent = mount.status().sent_bytes;
    println!("cut after {} of {all} bytes, {staged} of them staged, {sent} in all", cut.sent_bytes);
    if cut.sent_bytes < all {
        // Nothing that was staged travels twice.
        assert!(sent - cut.sent_bytes < all.saturating_sub(staged) + (16 << 20), "{sent} bytes for {all}");
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn a_long_outage_keeps_memory_bounded_and_the_old_state_obtainable() {
    const WINDOW: &str = "8M";
    let Some(lab) = Lab::new("outage-long") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    fs::write(folder.join("before"), b"the state before the outage").expect("writable");
    let window = std::env::var("TANDEM_TEST_WINDOW").unwrap_or(WINDOW.to_owned());
    let spec = MountSpec::new(&storage, "vol", &folder).options(&format!("window={window}"));
    let mount = lab.mount_with(&spec);
    mount.settle();
    storage.kill();
    assert!(eventually(Duration::from_secs(30), || mount.status().state == "offline"), "{:#?}", mount.status());
    let mib = number("TANDEM_TEST_OUTAGE_MIB", 96);
    let begin = Instant::now();
    for part in 0..mib / 16 {
        let path = mount.path().join(format!("part-{part:04}"));
        fs::write(&path, content(part as u64, 16 << 20)).expect("local work goes on");
    }
    fs::remove_file(mount.path().join("before")).expect("local work goes on");
    let wrote = begin.elapsed();
    let status = mount.status();
    assert!(status.window_bytes <= status.window_limit_bytes, "{status:#?}");
    assert!(status.dirty_bytes <= status.dirty_limit_bytes, "{status:#?}");
    let during = memory(mount.daemon().pid());
    assert!(during < status.window_limit_bytes + status.dirty_limit_bytes + (192 << 20), "{during} bytes of memory");

    storage.restart();
    let begin = Instant::now();
    // While it catches up the replica is where it was.
    let copy = lab.path("copy");
    let mut cloned = Duration::ZERO;
    let server = format!("127.0.0.1:{}", storage.port());
    let old = lab.tandem(&["clone", "--server", &server, "vol", copy.to_str().expect("a plain path")]);
    if old.code == Some(0) && copy.join("before").exists() {
        cloned = begin.elapsed();
        assert!(fs::read_dir(&copy).expect("readable").count() == 1, "nothing of what is on its way");
    }
    mount.wait(Duration::from_secs(1800));
    let caught_up = begin.elapsed();
    let (after, storage_memory) = (memory(mount.daemon().pid()), memory(storage.daemon().pid()));
    println!(
        "long outage: {mib} MiB written in {wrote:.1?} ({:.0} MiB/s), caught up in {caught_up:.1?} ({:.0} MiB/s); old state cloned in \
         {cloned:.1?}; memory of mountd {} MiB during, {} MiB after, of storaged {} MiB",
        mib as f64 / wrote.as_secs_f64(),
        mib as f64 / caught_up.as_secs_f64(),
        during >> 20,
        after >> 20,
        storage_memory >> 20
    );
    assert!(storage_memory < 768 << 20, "{storage_memory} bytes of memory");
    assert!(!is_strict() || !cloned.is_zero(), "the old state was not obtainable: {old:?}");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn unpacking_and_hot_blocks_cost_few_writes_of_marks() {
    use std::os::unix::fs::FileExt as _;
    let Some(lab) = Lab::new("marks") else { return };
    let storage = lab.storage();
    let source = lab.new_dir("source");
    for dir in 0..100 {
        let dir = source.join(format!("tree/d{}/d{dir}", dir % 10));
        fs::create_dir_all(&dir).expect("writable");
        (0..50).for_each(|file| fs::write(dir.join(format!("f{file}")), vec![b'x'; 100]).expect("writable"));
    }
    let archive = lab.path("archive.tar");
    let tar = |args: &[&std::ffi::OsStr]| {
        let done = std::process::Command::new("tar").args(args).status().expect("tar is there");
        assert!(done.success(), "tar {args:?}");
    };
    tar(&["-C".as_ref(), source.as_ref(), "-cf".as_ref(), archive.as_ref(), "tree".as_ref()]);
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();

    let before = mount.status().mark_writes;
    tar(&["-C".as_ref(), mount.path().as_ref(), "-xpf".as_ref(), archive.as_ref()]);
    let unpacked = mount.status().mark_writes - before;

    let path = mount.path().join("hot");
    let file = fs::OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).expect("writable");
    file.set_len(64 << 20).expect("room");
    (0..16).for_each(|block| file.write_all_at(&[1], block << 22).expect("writable"));
    let before = mount.status().mark_writes;
    for round in 0..2000u64 {
        file.write_all_at(&[round as u8; 4096], (round * 7919 % (16 << 10)) << 12).expect("writable");
    }
    let hot = mount.status().mark_writes - before;
    println!("marks: {unpacked} writes for 5,000 unpacked files, {hot} for 2,000 random writes into hot blocks");
    assert!(unpacked < 50, "{unpacked} writes of marks for 5,000 files");
    assert_eq!(hot, 0, "a hot cell costs nothing");
    drop(file);
    assert_equal_and_unmount(&mount, &storage, "vol");
}
