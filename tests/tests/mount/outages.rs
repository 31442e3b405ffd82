//! What an outage of the replica costs afterwards: what changed, not what exists. `TANDEM_TEST_FILES`: files in the one directory.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use tandem_proto::pb::MountStatus;
use tandem_tests::{
    harness::{Lab, Mount, Storage, eventually},
    rng::content,
};

use crate::support::assert_equal_and_unmount;

/// Files that are saved during the outage, as editors do it.
const SAVED: usize = 10;
const SIZE: usize = 4096;

fn files() -> usize {
    std::env::var("TANDEM_TEST_FILES").ok().and_then(|text| text.parse().ok()).unwrap_or(2000)
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
    let begin = Instant::now();
    assert!(eventually(Duration::from_secs(60), || is_saved(&storage.tree("vol"), 1)), "{:#?}", mount.status());
    let after = mount.status();
    println!("{} files: {:?}, {} bytes", files(), begin.elapsed(), wire_bytes(&after) - wire_bytes(&before));
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
    println!("{} files: {took:?}, {} bytes", files(), wire_bytes(&after));
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
    assert!(eventually(Duration::from_secs(120), || mount.status().sent_bytes > all / 2), "{:#?}", mount.status());
    storage.kill();
    let cut = mount.status();
    storage.restart();
    mount.wait(Duration::from_secs(300));
    let sent = mount.status().sent_bytes;
    println!("cut after {} of {all} bytes, {sent} in all", cut.sent_bytes);
    if cut.sent_bytes < all {
        // Beside what was on its way when it was cut (the link's buffers), nothing travels twice.
        assert!(sent < all + all / 4 + (16 << 20), "{sent} bytes for {all}");
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}
