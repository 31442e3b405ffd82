//! Figures: printed, and held only to bounds so loose that a slow machine passes. `scripts/accept` holds a release build to the issue's.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tandem_tests::{
    harness::{Lab, Mount, Storage, eventually, median},
    rng::content,
};

use crate::support::assert_equal_and_unmount;

/// Time from now until the path shows on the replica with this content.
fn until_there(path: &Path, expected: &[u8]) -> Duration {
    let begin = Instant::now();
    while fs::read(path).ok().as_deref() != Some(expected) {
        assert!(begin.elapsed() < Duration::from_secs(20), "{} is not on the replica after 20 s", path.display());
        thread::yield_now();
    }
    begin.elapsed()
}

/// Renames in the mount; returns the time until the replica shows it and the bytes that went out.
fn rename(mount: &Mount, storage: &Storage, from: &str, to: &str) -> (Duration, u64) {
    mount.settle();
    let sent = mount.status().sent_bytes;
    let tree = storage.tree("vol");
    let begin = Instant::now();
    fs::rename(mount.path().join(from), mount.path().join(to)).expect("renamed");
    assert!(eventually(Duration::from_secs(20), || tree.join(to).exists()), "{to} is not on the replica after 20 s");
    let took = begin.elapsed();
    mount.settle();
    (took, mount.status().sent_bytes - sent)
}

#[test]
fn new_small_files_reach_the_replica_at_once() {
    let Some(lab) = Lab::new("lag") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let mut times = Vec::new();
    for at in 0..200 {
        let (name, bytes) = (format!("f{at}"), content(at, 4096));
        fs::write(mount.path().join(&name), &bytes).expect("writable");
        times.push(until_there(&storage.tree("vol").join(&name), &bytes));
    }
    let middle = median(&mut times);
    println!(
        "lag from close() of a new 4 KiB file to its bytes on the replica: median {middle:?}, longest {:?}",
        times[199]
    );
    assert!(middle < Duration::from_millis(250), "{middle:?}");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn rename_of_a_large_file_or_directory_is_one_small_record() {
    let Some(lab) = Lab::new("rename") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let file = File::create(mount.path().join("large")).expect("writable");
    file.set_len(1 << 30).expect("sparse");
    drop(file);
    fs::create_dir(mount.path().join("many")).expect("new");
    for at in 0..5000 {
        File::create(mount.path().join(format!("many/{at}"))).expect("new");
    }
    for (what, from, to) in [("1 GiB file", "large", "large2"), ("directory of 5,000 files", "many", "many2")] {
        let (took, sent) = rename(&mount, &storage, from, to);
        println!("rename of a {what}: {took:?}, {sent} bytes sent");
        assert!(sent < 1024, "{sent} bytes for a rename");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}
