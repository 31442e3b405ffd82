//! Real mounts, answered by this process, with a journal that only records: the same things done on a mount and on a plain
//! directory have the same results, and the ops that were recorded give what is in the backing directory.

mod support;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, RenameFlags};
use support::{
    model::Model,
    recorder::Recorder,
    rng::{Rng, seed},
};
use tandem_mountd::{
    admin::MountOps as _,
    backing::Backing,
    fuse::Connection,
    mount::{self, MountError, MountSpec, Prepared, Present},
    mounted::Mounted,
    vfs::{FsyncMode, FsyncRules, Vfs},
};

/// A mount of this process. Dropped, it is taken off.
struct TestMount {
    dir: PathBuf,
    backing: Arc<Backing>,
    recorder: Arc<Recorder>,
    mounted: Mounted<Recorder>,
    before: Model,
    ended: mpsc::Receiver<io::Result<()>>,
}

/// Mounts over `dir`; `None`, with a message, where that is not possible.
fn mount_over(dir: &Path) -> Option<TestMount> {
    mount_with(dir, FsyncMode::Local)
}

fn mount_with(dir: &Path, fsync: impl Into<FsyncRules>) -> Option<TestMount> {
    let (dir, present) = mount::survey(dir).expect("a mountpoint");
    let spec = MountSpec {
        source: "localhost:7440:/test".into(),
        allow_other: true,
        read_only: false,
        suid: false,
        dev: false,
        exec: true,
    };
    let Ok(Some(Prepared { fuse, detached })) = mount::prepare(&spec) else {
        eprintln!("SKIPPED: this test needs root and /dev/fuse");
        return None;
    };
    let backing = Arc::new(Backing::open(&dir, present == Present::DeadMount, true).expect("backing"));
    let before = Model::read(&*backing);
    let recorder = Arc::new(Recorder::default());
    let vfs = Arc::new(Vfs::new(backing.clone(), recorder.clone(), fsync).expect("vfs"));
    let connection = Connection::open(fuse, vfs.clone()).expect("handshake");
    let (send, ended) = mpsc::channel();
    thread::spawn(move || {
        let _ = send.send(connection.serve());
    });
    detached.attach(&dir, present).expect("attach");
    let mounted = Mounted::new(dir.clone(), vfs, Vec::new(), Arc::default());
    Some(TestMount { dir, backing, recorder, mounted, before, ended })
}

impl TestMount {
    fn check(&self, context: &str) {
        self.mounted.flush().expect("flush");
        let mut model = self.before.clone();
        for op in self.recorder.ops() {
            model.apply(&op);
        }
        model.assert_equals(&Model::read(&*self.backing), context);
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.dir, true);
    }
}

const NAMES: [&str; 8] = ["a", "b", "c", "a/a", "a/b", "b/a", "b/c", "a/b/c"];

/// What was read or refused, to be compared.
type Outcome = Result<String, i32>;

fn outcome<T: std::fmt::Debug>(result: io::Result<T>) -> Outcome {
    result.map(|value| format!("{value:?}")).map_err(|error| error.raw_os_error().unwrap_or(-1))
}

/// Does one thing below `base`; which one depends on `rng` alone.
fn step(base: &Path, rng: &mut Rng, open: &mut Vec<File>) -> Outcome {
    let one = base.join(rng.pick::<&str>(&NAMES));
    let two = base.join(rng.pick::<&str>(&NAMES));
    let (offset, len) = (rng.below(40_000), rng.below(5_000) as usize);
    let data = rng.bytes(len);
    let choice = rng.below(22);
    match choice {
        0..=3 => {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).mode(*rng.pick(&[0o644, 0o600, 0o751]));
            if choice == 3 {
                options.truncate(true);
            }
            outcome(options.open(&one).and_then(|file| {
                file.write_all_at(&data, offset)?;
                let len = file.metadata()?.len();
                open.push(file);
                Ok(len)
            }))
        }
        4 => outcome(fs::create_dir(&one)),
        5 => outcome(fs::remove_dir(&one)),
        6 | 7 => outcome(fs::remove_file(&one)),
        8 | 9 => outcome(fs::rename(&one, &two)),
        10 => {
            let flags = *rng.pick(&[RenameFlags::NOREPLACE, RenameFlags::EXCHANGE]);
            outcome(rustix::fs::renameat_with(CWD, &one, CWD, &two, flags).map_err(Into::into))
        }
        11 => outcome(fs::hard_link(&one, &two)),
        12 => outcome(std::os::unix::fs::symlink("a/b", &one)),
        13 => outcome(fs::set_permissions(&one, PermissionsExt::from_mode(*rng.pick(&[0o644, 0o700, 0o755])))),
        14 => outcome(OpenOptions::new().append(true).open(&one).and_then(|mut file| file.write_all(&data))),
        15 => outcome(fs::read(&one)),
        16 => outcome(OpenOptions::new().write(true).open(&one).and_then(|file| file.set_len(offset))),
        17 => outcome(
            rustix::fs::setxattr(&one, "user.test", &data[..len.min(20)], rustix::fs::XattrFlags::empty())
                .map_err(Into::into),
        ),
        18 => outcome(fs::metadata(&one).map(|stat| (stat.mode(), stat.nlink(), stat.is_dir() || stat.len() > 0))),
        19 => with_open(rng, open, |file| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, flags, offset, len as u64 + 1)?;
            Ok(file.metadata()?.len())
        }),
        20 => with_open(rng, open, |file| {
            file.write_all_at(&data, offset)?;
            let mut back = vec![0; len];
            file.read_exact_at(&mut back, offset)?;
            Ok((back == data, file.metadata()?.nlink()))
        }),
        _ => {
            if !open.is_empty() {
                let at = rng.below(open.len() as u64) as usize;
                drop(open.swap_remove(at));
            }
            let names = fs::read_dir(&one).map(|entries| {
                let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
                names.sort();
                names
            });
            outcome(names)
        }
    }
}

fn with_open<T: std::fmt::Debug>(rng: &mut Rng, open: &[File], act: impl FnOnce(&File) -> io::Result<T>) -> Outcome {
    match open.len() as u64 {
        0 => Ok(String::new()),
        count => outcome(act(&open[rng.below(count) as usize])),
    }
}

/// Everything below a directory that must be equal on both sides.
fn snapshot(dir: &Path, base: &Path, into: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).expect("list").flatten() {
        let path = entry.path();
        let stat = fs::symlink_metadata(&path).expect("stat");
        let size = if stat.is_file() { stat.len() } else { 0 };
        let content = if stat.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
        let hash = blake3::hash(&content);
        let xattr = {
            let mut value = Vec::with_capacity(64);
            let read = rustix::fs::lgetxattr(&path, "user.test", rustix::buffer::spare_capacity(&mut value));
            read.is_ok().then_some(value)
        };
        let line = format!("{:o} {} {size} {hash} {xattr:?}", stat.mode(), stat.nlink());
        into.insert(path.strip_prefix(base).expect("below").to_owned(), line);
        if stat.is_dir() {
            snapshot(&path, base, into);
        }
    }
}

#[test]
fn the_same_things_have_the_same_results_on_a_mount_and_on_a_plain_directory() {
    for round in 0..4 {
        let seed = seed().wrapping_mul(100).wrapping_add(round);
        let (dir, plain) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let Some(mount) = mount_over(dir.path()) else { return };
        let (mut here, mut there) = (Vec::new(), Vec::new());
        let (mut left, mut right) = (Rng::new(seed), Rng::new(seed));
        for number in 0..800 {
            let mounted = step(&mount.dir, &mut left, &mut here);
            let native = step(plain.path(), &mut right, &mut there);
            assert_eq!(mounted, native, "TANDEM_SEED={seed} step {number}");
        }
        let (mut one, mut two) = (BTreeMap::new(), BTreeMap::new());
        snapshot(&mount.dir, &mount.dir, &mut one);
        snapshot(plain.path(), plain.path(), &mut two);
        assert_eq!(one, two, "TANDEM_SEED={seed}");
        mount.check(&format!("TANDEM_SEED={seed}"));
        drop((here, there));
    }
}

#[test]
fn several_writers_with_renames_of_directories_under_them_leave_complete_ops() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(mount) = mount_over(dir.path()) else { return };
    thread::scope(|scope| {
        for user in 0..4 {
            let base = &mount.dir;
            scope.spawn(move || {
                let mut rng = Rng::new(seed() * 7 + user);
                let mut open = Vec::new();
                for _ in 0..600 {
                    let _ = step(base, &mut rng, &mut open);
                }
            });
        }
    });
    mount.check("storm");
}

#[test]
fn stores_through_a_shared_mapping_arrive_with_a_flush() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(mount) = mount_over(dir.path()) else { return };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mount.dir.join("mapped"));
    let file = file.expect("create");
    file.set_len(8192).expect("size");
    // SAFETY: the mapping is of a file that this test alone uses; it is unmapped below.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            8192,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            0,
        )
    };
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: within the mapping.
    unsafe { memory.cast::<u8>().add(5000).write(b'!') };
    mount.check("mapped and flushed");
    // SAFETY: the mapping made above, not used any more.
    unsafe { libc::munmap(memory, 8192) };
    let backing = fs::read(mount.dir.join("mapped")).expect("read");
    assert_eq!(backing[5000], b'!');
    drop(file);
}

#[test]
fn large_writes_arrive_whole_while_the_memory_they_were_read_into_is_kept() {
    let dir = tempfile::tempdir().expect("tempdir");
    let Some(mount) = mount_over(dir.path()) else { return };
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    thread::scope(|scope| {
        for (number, readable) in [(0, true), (1, false)] {
            let (path, block) = (mount.dir.join(format!("large-{number}")), &block);
            scope.spawn(move || {
                let mut file =
                    OpenOptions::new().read(readable).write(true).create_new(true).open(path).expect("create");
                for turn in 0..12 {
                    // Each block has content of its own, so that memory used again too early would show.
                    file.write_all(&block[turn * 1000..]).expect("write");
                    file.write_all(&[turn as u8; 5000]).expect("write");
                }
            });
        }
    });
    mount.check("after large writes");
}

#[test]
fn what_is_written_past_the_kernels_cache_shows_to_readers_and_in_mappings() {
    let dir = tempfile::tempdir().expect("tempdir");
    let Some(mount) = mount_over(dir.path()) else { return };
    let path = mount.dir.join("file");
    fs::write(&path, [b'a'; 8192]).expect("write");
    let (reader, writer) = (File::open(&path).expect("read"), OpenOptions::new().write(true).open(&path));
    let writer = writer.expect("open for writing only");
    let mut seen = [0; 2];
    reader.read_exact_at(&mut seen, 4095).expect("read");
    assert_eq!(&seen, b"aa");
    // SAFETY: a fresh mapping of a file of two pages, unmapped below.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            8192,
            libc::PROT_READ,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(&reader),
            0,
        )
    };
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: the mapping is two pages long.
    let mapped = |at: usize| unsafe { memory.cast::<u8>().add(at).read_volatile() };
    assert_eq!(mapped(5000), b'a');
    writer.write_all_at(&[b'b'; 100], 4990).expect("write");
    reader.read_exact_at(&mut seen, 4989).expect("read");
    assert_eq!((&seen, mapped(5000)), (b"ab", b'b'));
    // Who writes and reads sees it as well, and is seen.
    let both = OpenOptions::new().read(true).write(true).open(&path).expect("open for both");
    both.write_all_at(b"c", 4990).expect("write");
    reader.read_exact_at(&mut seen, 4990).expect("read");
    assert_eq!(&seen, b"cb");
    both.read_exact_at(&mut seen, 5089).expect("read");
    assert_eq!(&seen, b"ba");
    // SAFETY: made above, and not used after this.
    unsafe { libc::munmap(memory, 8192) };
    drop((reader, writer, both));
    assert_eq!(fs::read(&path).expect("read")[4989..4992], *b"acb");
    mount.check("after writes past the cache");
}

#[test]
fn unusual_files_names_and_depths_work() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(mount) = mount_over(dir.path()) else { return };

    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff\x01 \n");
    fs::write(mount.dir.join(odd), b"odd").expect("any bytes");
    fs::write(mount.dir.join("x".repeat(255)), b"").expect("255 bytes");
    let too_long = fs::write(mount.dir.join("x".repeat(256)), b"").expect_err("256 bytes");
    assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
    rustix::fs::mknodat(CWD, mount.dir.join("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).expect("fifo");
    rustix::fs::mknodat(
        CWD,
        mount.dir.join("null"),
        rustix::fs::FileType::CharacterDevice,
        Mode::RWXU,
        rustix::fs::makedev(1, 3),
    )
    .expect("device");
    drop(std::os::unix::net::UnixListener::bind(mount.dir.join("socket")).expect("socket"));
    // Deeper than PATH_MAX, step by step.
    let mut at = rustix::fs::open(&mount.dir, rustix::fs::OFlags::DIRECTORY, Mode::empty()).expect("open");
    let name = "d".repeat(200);
    for _ in 0..60 {
        rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).expect("mkdir");
        at = rustix::fs::openat(&at, name.as_str(), rustix::fs::OFlags::DIRECTORY, Mode::empty()).expect("open");
    }
    rustix::fs::symlinkat("deep", &at, "link").expect("symlink");
    // A sparse file, and times before 1970 and after 2038.
    let mut sparse = File::create(mount.dir.join("sparse")).expect("create");
    sparse.seek(SeekFrom::Start(10 << 20)).expect("seek");
    sparse.write_all(b"end").expect("write");
    assert_eq!(rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(0)).expect("data"), 10 << 20);
    for (seconds, nanos) in [(-5, 600_000_000), (5_000_000_000, 7)] {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, mount.dir.join("sparse"), &times, AtFlags::empty()).expect("utimens");
        let stat = fs::metadata(mount.dir.join("sparse")).expect("stat");
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (seconds, nanos));
    }
    drop((sparse, at));
    mount.check("unusual");
}

/// A line, by a process of a user without rights of its own.
fn append_as_nobody(path: &Path, line: &str) {
    let wrote = std::process::Command::new("sh")
        .args(["-c", "echo \"$1\" >> \"$0\""])
        .arg(path)
        .arg(line)
        .uid(65534)
        .gid(65534)
        .status()
        .expect("a shell of another user");
    assert!(wrote.success());
}

#[test]
fn a_write_that_takes_suid_away_is_seen_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(mount) = mount_over(dir.path()) else { return };
    let path = mount.dir.join("program");
    fs::write(&path, b"x").expect("write");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).expect("chmod");
    fs::set_permissions(&mount.dir, PermissionsExt::from_mode(0o755)).expect("chmod");
    append_as_nobody(&path, "y");
    // Only the mode is asked for, which the kernel would otherwise answer from its cache.
    let asked = rustix::fs::statx(CWD, &path, AtFlags::empty(), rustix::fs::StatxFlags::MODE).expect("statx");
    assert_eq!(asked.stx_mode & 0o7777, 0o777);
    // Without the right to execute sgid means locking, which only the group may ask for.
    fs::set_permissions(&path, PermissionsExt::from_mode(0o2767)).expect("chmod");
    append_as_nobody(&path, "z");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o767);
    mount.check("suid");
}

#[test]
fn a_listing_goes_on_while_entries_come_and_go() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(mount) = mount_over(dir.path()) else { return };
    for number in 0..3000 {
        fs::write(mount.dir.join(format!("file{number}")), b"").expect("write");
    }
    let mut seen = std::collections::HashSet::new();
    for (number, entry) in fs::read_dir(&mount.dir).expect("list").enumerate() {
        let entry = entry.expect("entry");
        assert!(seen.insert(entry.file_name()), "{:?} twice", entry.file_name());
        if number % 3 == 0 {
            fs::remove_file(entry.path()).expect("remove");
        }
    }
    assert_eq!(seen.len(), 3000);
    assert_eq!(fs::read_dir(&mount.dir).expect("list").count(), 2000);
    mount.check("listing");
}

#[test]
fn a_dead_mount_is_replaced_and_the_bare_directory_never_shows() {
    let dir = tempfile::tempdir().expect("dir");
    fs::write(dir.path().join("bare"), b"").expect("write");
    let Some(mount) = mount_over(dir.path()) else { return };
    fs::write(mount.dir.join("through the mount"), b"x").expect("write");
    assert!(matches!(mount::survey(dir.path()), Err(MountError::Busy { .. })));
    // As if its daemon had been killed.
    let held = File::open(mount.dir.join("bare")).expect("open");
    let busy = rustix::mount::unmount(&mount.dir, rustix::mount::UnmountFlags::FORCE);
    assert_eq!(busy, Err(rustix::io::Errno::BUSY), "a forced unmount cuts the connection, and fails as it is in use");
    assert!(mount.ended.recv_timeout(Duration::from_secs(5)).expect("it ends").is_ok());
    assert!(fs::read_dir(&mount.dir).is_err());
    let (path, present) = mount::survey(dir.path()).expect("ours, dead");
    assert_eq!((path, present), (mount.dir.clone(), Present::DeadMount));

    let mut again = mount_over(dir.path()).expect("mounted again");
    assert_eq!(fs::read(again.dir.join("through the mount")).expect("read"), b"x");
    let ours = mount::table::read().expect("table").into_iter().filter(|line| line.mountpoint == again.dir).count();
    assert_eq!(ours, 1, "the dead one is gone");
    fs::write(again.dir.join("bare"), b"not bare").expect("write");
    again.check("after the second life");
    again.mounted.unmount(false).expect("unmount");
    assert!(again.ended.recv_timeout(Duration::from_secs(5)).expect("it ends").is_ok());
    let mut left = String::new();
    File::open(dir.path().join("bare")).expect("open").read_to_string(&mut left).expect("read");
    assert_eq!(left, "not bare", "the files are where they were");
    again.dir = PathBuf::from("/nonexistent");
    std::mem::forget(mount);
    drop(held);
}
