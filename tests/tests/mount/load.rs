//! Much at once: large directories, deep trees, many open files, many processes. `scripts/load` does the same in earnest, with figures.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::IoSliceMut,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tandem_tests::{
    harness::{Lab, eventually},
    rng::content,
};

use crate::support::{assert_equal_and_unmount, finish_storms, storm_processes};

const ENTRIES: usize = 10_000;
const DEPTH: usize = 1000;
const OPEN: usize = 2000;
const SOON: Duration = Duration::from_secs(30);

/// Empty files `stays0` and so on, made below the mount, where it is fast.
fn fill(folder: &Path, entries: usize) {
    for at in 0..entries {
        File::create_new(folder.join(format!("stays{at}"))).expect("a new name");
    }
}

/// Makes and removes names beside those that stay, until it is told to stop.
fn come_and_go(dir: &Path, stop: &AtomicBool) {
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        let (new, renamed) = (dir.join(format!("new{at}")), dir.join(format!("renamed{at}")));
        File::create_new(&new).expect("a new name");
        fs::rename(&new, &renamed).expect("renamed");
        if at >= 50 {
            fs::remove_file(dir.join(format!("renamed{}", at - 50))).expect("it is there");
        }
        at += 1;
    }
}

#[test]
fn large_directory_is_listed_whole_while_names_come_and_go() {
    let Some(lab) = Lab::new("large-dir") else { return };
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    fill(&folder, ENTRIES);
    let mount = lab.mount(&storage, "vol", &folder);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| come_and_go(mount.path(), &stop));
        let outcome = std::panic::catch_unwind(|| {
            for _ in 0..3 {
                let mut seen = BTreeMap::new();
                for entry in fs::read_dir(mount.path()).expect("a directory") {
                    *seen.entry(entry.expect("an entry").file_name()).or_insert(0) += 1;
                }
                let stays = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"stays");
                assert_eq!(seen.keys().filter(|name| stays(name)).count(), ENTRIES, "none is missing");
                assert!(seen.iter().all(|(name, times)| !stays(name) || *times == 1), "none is there twice");
            }
        });
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_equal_and_unmount(&mount, &storage, "vol");
}

fn subdir(dir: &OwnedFd) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, "d", flags, Mode::empty()).expect("any depth")
}

#[test]
fn tree_of_a_thousand_levels_is_made_moved_and_removed() {
    let Some(lab) = Lab::new("deep") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(mount.path(), flags, Mode::empty()).expect("the mount serves");
    let mut at = root.try_clone().expect("a descriptor");
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).expect("any depth");
        at = subdir(&at);
    }
    let file = rustix::fs::openat(&at, "bottom", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("any depth");
    File::from(file).write_all_at(b"deep", 0).expect("writable");
    // What is far above and below each other may not change places.
    let loops = rustix::fs::renameat(&root, "d", &at, "loop").expect_err("into itself");
    assert_eq!(loops, rustix::io::Errno::INVAL);
    rustix::fs::renameat(&root, "d", &root, "moved").expect("renamed");
    mount.settle();
    let replica = rustix::fs::open(storage.tree("vol").join("moved"), flags, Mode::empty()).expect("it arrived");
    let bottom = (1..DEPTH).fold(replica, |dir, _| subdir(&dir));
    assert_eq!(rustix::fs::statat(&bottom, "bottom", AtFlags::empty()).expect("it arrived").st_size, 4);
    drop((root, at, bottom));
    let removed = Command::new("rm").arg("-rf").arg(mount.path().join("moved")).status().expect("rm is installed");
    assert!(removed.success());
    assert_equal_and_unmount(&mount, &storage, "vol");
}

/// This process may open as many files as the system lets it; how many that are.
fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit");
    limit.maximum.unwrap_or(u64::MAX)
}

#[test]
fn thousands_of_open_files_are_usable_and_counted_until_they_are_closed() {
    let Some(lab) = Lab::new("open") else { return };
    if raise_limit() < 3 * OPEN as u64 {
        eprintln!("SKIPPED: too few descriptors allowed here");
        return;
    }
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    fill(&folder, OPEN);
    let mount = lab.mount(&storage, "vol", &folder);
    let open = |at: usize| File::options().read(true).write(true).open(mount.path().join(format!("stays{at}")));
    let files: Vec<File> = (0..OPEN).map(|at| open(at).expect("one of many")).collect();
    assert_eq!(mount.status().open_files, OPEN as u64);
    for (at, file) in files.iter().enumerate() {
        if at % 3 == 0 {
            fs::remove_file(mount.path().join(format!("stays{at}"))).expect("removable while it is open");
        }
        file.write_all_at(at.to_string().as_bytes(), 0).expect("writable");
    }
    for (at, file) in files.iter().enumerate() {
        let mut bytes = [0; 8];
        let read = file.read_at(&mut bytes, 0).expect("readable");
        assert_eq!(bytes[..read], *at.to_string().as_bytes());
        assert_eq!(file.metadata().expect("open").nlink(), u64::from(at % 3 != 0));
    }
    drop(files);
    let closed = eventually(SOON, || mount.status().open_files == 0);
    assert!(closed, "{:#?}", mount.status());
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn sixty_four_processes_at_once_leave_an_equal_replica() {
    let Some(lab) = Lab::new("crowd") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    finish_storms(storm_processes(mount.path(), 64_000, 2, 64, 1));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn what_the_kernel_forgets_is_forgotten() {
    let Some(lab) = Lab::new("forget") else { return };
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    fill(&folder, ENTRIES);
    let mount = lab.mount(&storage, "vol", &folder);
    for entry in fs::read_dir(mount.path()).expect("a directory") {
        entry.expect("an entry").metadata().expect("it is there");
    }
    let known = mount.status().known_inodes;
    assert!(known > ENTRIES as u64, "{known}");
    // Names and inodes that nobody uses.
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "2") {
        eprintln!("SKIPPED: the kernel's caches cannot be dropped here: {error}");
        return;
    }
    let forgotten = eventually(SOON, || mount.status().known_inodes < known / 10);
    assert!(forgotten, "{:#?}", mount.status());
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn a_file_that_is_not_in_memory_is_read_ahead_of_who_reads_it_in_order() {
    const LEN: usize = 64 << 20;
    const PIECE: usize = 1 << 20;
    let Some(lab) = Lab::new("readahead") else { return };
    let (storage, folder) = (lab.storage(), lab.new_dir("folder"));
    let bytes = content(3, LEN);
    fs::write(folder.join("file"), &bytes).expect("writable");
    let below = File::open(folder.join("file")).expect("there");
    let mount = lab.mount(&storage, "vol", &folder);
    mount.settle();
    rustix::fs::fsync(&below).expect("synced");
    rustix::fs::fadvise(&below, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
    let is_cold = |from: usize| {
        let mut byte = [0];
        let parts = &mut [IoSliceMut::new(&mut byte)];
        let read = rustix::io::preadv2(&below, parts, from as u64, rustix::io::ReadWriteFlags::NOWAIT);
        read == Err(rustix::io::Errno::AGAIN)
    };
    if !is_cold(LEN / 2) {
        eprintln!("SKIPPED: the folder is in memory");
        return;
    }
    let file = File::open(mount.path().join("file")).expect("there");
    let (mut piece, mut is_ahead) = (vec![0; PIECE], false);
    for (at, expected) in bytes.chunks(PIECE).enumerate() {
        file.read_exact_at(&mut piece, (at * PIECE) as u64).expect("readable");
        assert!(piece == expected, "piece {at}");
        if !is_ahead {
            is_ahead = mount.status().files_read_ahead == 1;
            // The kernel's own reading ahead may be enough for a daemon that is not optimised.
            rustix::fs::fadvise(&below, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
        }
    }
    assert!(is_ahead);
    let ended = eventually(SOON, || mount.status().files_read_ahead == 0);
    assert!(ended, "{:#?}", mount.status());
    drop((file, below));
    assert_equal_and_unmount(&mount, &storage, "vol");
}
