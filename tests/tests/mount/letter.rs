//! POSIX by the letter: the same calls on a mount and in a plain directory of the same file system give the same answers and contents, also
//! where few programs go. What a mount cannot answer as the file system below it (docs/SEMANTICS.md, P5) is asserted as it is written there.

use std::{
    cell::Cell,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FallocateFlags, XattrFlags},
    process::{Pid, WaitOptions, waitpid},
};
use tandem_tests::{
    compare,
    harness::{Lab, Mount, MountSpec, Storage, eventually},
    rng::Rng,
};

mod contents;

const CACHES: [&str; 2] = ["strict", "writeback"];
const SOON: Duration = Duration::from_secs(20);
/// Within this the kernel is done with attributes that it was told: it stores them under a lock and reads them without (first of all
/// `fuse_change_attributes_common` says that they are valid), which shows where the processor is taken away in between. Old ones that it takes
/// for new it keeps, as nobody changes anything meanwhile.
const STORED_WITHIN: Duration = Duration::from_millis(50);

/// A mount, the folder below it, and a plain directory beside that.
struct Stage {
    lab: Lab,
    storage: Storage,
    mount: Mount,
    folder: PathBuf,
    plain: PathBuf,
}

impl Stage {
    fn new(name: &str, cache: &str) -> Option<Stage> {
        let lab = Lab::new(name)?;
        let storage = lab.storage();
        let [folder, shown, plain] = ["folder", "shown", "plain"].map(|name| lab.new_dir(name));
        let spec = MountSpec::new(&storage, "vol", &shown);
        let mount = lab.mount_with(&spec.options(&format!("cache={cache},backing={}", folder.display())));
        Some(Stage { lab, storage, mount, folder, plain })
    }

    /// The mount, then the plain directory.
    fn both(&self) -> [&Path; 2] {
        [self.mount.path(), &self.plain]
    }

    /// Mount, folder, replica and plain directory have the same. The plain one's times are its own.
    fn end(self) {
        self.mount.settle();
        let tree = self.storage.tree("vol");
        let same = |left: &Path, right: &Path, mtime| {
            let seen = compare::trees(left, right, &compare::Options { mtime, limit: 20 }).expect("both can be read");
            let [one, other] = [left, right].map(Path::display);
            assert!(seen.differences.is_empty(), "{one} and {other} differ:\n{}", seen.report());
        };
        same(self.mount.path(), &self.plain, false);
        same(&self.folder, &tree, true);
        self.mount.unmount();
        same(&self.folder, &tree, true);
        same(&self.folder, &self.plain, false);
        drop(self.lab);
    }
}

fn new_file(path: &Path, bytes: &[u8]) -> File {
    fs::write(path, bytes).expect("writable");
    OpenOptions::new().read(true).write(true).open(path).expect("there")
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in it")
}

/// A process of its own, killed when it is dropped.
struct Child(Option<Pid>);

impl Child {
    /// Other threads of this program may hold any lock of its memory, so `work` may only call the system, and not allocate.
    fn fork(work: impl FnOnce() -> i32) -> Child {
        // SAFETY: the child only calls the system (see above) and ends by _exit, so that nothing of this process is run or dropped twice.
        match unsafe { libc::fork() } {
            0 => {
                let code = work();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(code) }
            }
            -1 => panic!("no child: {}", io::Error::last_os_error()),
            pid => Child(Pid::from_raw(pid)),
        }
    }

    fn end(mut self) -> i32 {
        let pid = self.0.take().expect("it was not waited for");
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("a child").expect("it ended");
        status.exit_status().unwrap_or_else(|| panic!("it did not exit by itself: {status:?}"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

const WRITERS: u8 = 4;
const RECORDS: usize = 500;

/// One process: appends its records, each by one write.
fn append_records(path: &CString, writer: u8, record: &mut [u8]) -> i32 {
    // SAFETY: the path lives through the call.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_APPEND) };
    for at in 0..RECORDS {
        record.fill(b'a' + writer);
        record[..8].copy_from_slice(&(at as u64).to_be_bytes());
        // SAFETY: the record lives through the call and has that length.
        let done = unsafe { libc::write(fd, record.as_ptr().cast(), record.len()) };
        if done != record.len() as isize {
            return 1;
        }
    }
    // Ends without a close, as a process may.
    0
}

fn assert_whole_records(bytes: &[u8], len: usize, whose: &str) {
    assert_eq!(bytes.len(), len * RECORDS * usize::from(WRITERS), "{whose}: none is missing");
    let mut next = [0; WRITERS as usize];
    for record in bytes.chunks(len) {
        let (number, fill) = record.split_at(8);
        let writer = usize::from(fill[0] - b'a');
        assert!(fill.iter().all(|byte| *byte == fill[0]), "{whose}: a record is torn");
        assert_eq!(number, (next[writer] as u64).to_be_bytes(), "{whose}: records of writer {writer} in their order");
        next[writer] += 1;
    }
}

/// An ACL that says no more than a mode, as `setxattr` takes it.
fn acl_of(mode: u32) -> Vec<u8> {
    let entry =
        |(tag, perm): (u16, u32)| [&tag.to_le_bytes()[..], &(perm as u16 & 7).to_le_bytes(), &[0xff; 4]].concat();
    let (owner, group, other) = ((1, mode >> 6), (4, mode >> 3), (0x20, mode));
    [&2_u32.to_le_bytes()[..], &[owner, group, other].map(entry).concat()].concat()
}

/// A file that says in its content which inode it is.
fn put_signed(dir: &Path, name: &str) -> io::Result<()> {
    let new = dir.join("new");
    let mut file = File::create(&new)?;
    write!(file, "{name} {}", file.metadata()?.ino())?;
    fs::rename(new, dir.join(name))
}

/// What a name meant when it was opened, and what that says it is; `None`: there is none.
fn signature(dir: &Path, name: &str) -> io::Result<Option<(String, String)>> {
    let mut file = match File::open(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some((format!("{name} {}", file.metadata()?.ino()), text)))
}

/// The kernel is told what a name means before the daemon knows all that it keeps of it (`InodeTable::expect`).
#[test]
fn a_name_that_the_kernel_forgot_never_means_another_object_whoever_replaces_it_meanwhile() {
    const FOR: Duration = Duration::from_secs(3);
    let names: Vec<String> = (0..20).map(|at| format!("file-{at}")).collect();
    let forget = || fs::write("/proc/sys/vm/drop_caches", "2").is_ok();
    for cache in CACHES {
        let Some(stage) = Stage::new("letter-cold", cache) else { return };
        let (dir, begun) = (stage.mount.path(), Instant::now());
        names.iter().for_each(|name| put_signed(dir, name).expect("made"));
        if !forget() {
            eprintln!("SKIPPED: the kernel may not be told to forget what it knows");
            return;
        }
        let looked = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = Rng::new(7);
                while begun.elapsed() < FOR {
                    let name = &names[rng.index(names.len())];
                    match rng.below(4) {
                        0 => _ = fs::remove_file(dir.join(name)),
                        _ => put_signed(dir, name).expect("replaced"),
                    }
                }
            });
            scope.spawn(|| {
                while begun.elapsed() < FOR {
                    forget();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut looked = 0;
                        while begun.elapsed() < FOR {
                            for name in &names {
                                if let Some((is, says)) = signature(dir, name).expect(name) {
                                    assert_eq!(is, says);
                                    looked += 1;
                                }
                            }
                        }
                        looked
                    })
                })
                .collect();
            readers.into_iter().map(|reader| reader.join().expect("right")).sum::<u64>()
        });
        assert!(looked > 100, "{looked}");
        for name in names.iter().filter(|name| dir.join(name).exists()) {
            fs::copy(dir.join(name), stage.plain.join(name)).expect("copied");
        }
        stage.end();
    }
}

/// A listing tells what its names are; who lists a directory beside who changes one in it must not bring back what that was before.
#[test]
fn a_directory_shows_its_own_times_whoever_lists_it_with_others_meanwhile() {
    let toggle = |path: &Path| match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => {}
        Err(_) => fs::remove_file(path).expect("it was there"),
    };
    let times = |path: &Path| {
        let seen = fs::metadata(path).expect("there");
        (seen.mtime_nsec(), seen.ctime_nsec(), seen.nlink())
    };
    for cache in CACHES {
        let Some(stage) = Stage::new("letter-listed", cache) else { return };
        let (parent, below) = (stage.mount.path(), stage.folder.join("dir"));
        let dir = parent.join("dir");
        fs::create_dir(&dir).expect("made");
        (0..40).for_each(|at| drop(File::create(parent.join(format!("{at}"))).expect("made")));
        let done = AtomicBool::new(false);
        let otherwise = std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        fs::read_dir(parent).expect("listed").for_each(drop);
                    }
                });
            }
            let otherwise = (0..400_u64).filter(|round| {
                // Otherwise the kernel lists from its memory.
                toggle(&parent.join("new"));
                std::thread::sleep(Duration::from_micros(round % 300));
                toggle(&dir.join("new"));
                std::thread::sleep(Duration::from_millis(2));
                !eventually(STORED_WITHIN, || times(&dir) == times(&below))
            });
            let otherwise = otherwise.count();
            done.store(true, Ordering::Relaxed);
            otherwise
        });
        assert_eq!(otherwise, 0, "cache={cache}");
    }
}

/// Makes changes of a file while others ask for its attributes all the time; how often one of the last change's was not what the folder below has.
fn seen_otherwise(
    stage: &Stage,
    rounds: u32,
    change: &dyn Fn(&File, u32),
    look: &dyn Fn(&fs::Metadata) -> (u32, i64, u64),
) -> u32 {
    let [shown, below] = [stage.mount.path(), &stage.folder].map(|dir| dir.join("file"));
    let file = OpenOptions::new().read(true).write(true).open(&shown).expect("opened");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::metadata(&shown).expect("there");
                }
            });
        }
        let mut otherwise = 0;
        for round in 0..rounds {
            // The ones before make everybody ask, the last one is what is looked for.
            for part in 0..4 {
                change(&file, (4 * round + part).wrapping_mul(2_654_435_761) >> 20);
            }
            std::thread::sleep(Duration::from_millis(1));
            let same = || {
                let [shown, below] = [&shown, &below].map(|path| look(&fs::metadata(path).expect("there")));
                shown == below
            };
            otherwise += u32::from(!eventually(STORED_WITHIN, same));
        }
        done.store(true, Ordering::Relaxed);
        otherwise
    })
}

/// The kernel takes attributes that were asked for before such a change, and told after it, for newer.
#[test]
fn what_a_call_changes_beside_is_what_everybody_sees_who_asks_meanwhile() {
    let acl = |file: &File, mode: u32| {
        rustix::fs::fsetxattr(file, "system.posix_acl_access", &acl_of(mode & 0o777), XattrFlags::empty())
            .expect("set");
    };
    let xattr = |file: &File, value: u32| {
        rustix::fs::fsetxattr(file, "user.some", &value.to_le_bytes(), XattrFlags::empty()).expect("set");
    };
    let allocate = |file: &File, place: u32| {
        let flags = FallocateFlags::KEEP_SIZE
            | if place & 1 == 0 { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::empty() };
        rustix::fs::fallocate(file, flags, u64::from(place & !1) << 11, 4096).expect("done");
    };
    for cache in CACHES {
        let Some(stage) = Stage::new("letter-beside", cache) else { return };
        for dir in stage.both() {
            File::create(dir.join("file")).expect("made");
        }
        let plain = File::open(stage.plain.join("file")).expect("opened");
        if rustix::fs::fsetxattr(&plain, "system.posix_acl_access", &acl_of(0o640), XattrFlags::empty()).is_err() {
            println!("SKIPPED: no ACLs here");
            return;
        }
        assert_eq!(
            seen_otherwise(&stage, 600, &acl, &|seen| (seen.mode(), 0, 0)),
            0,
            "the mode that an ACL set, cache={cache}"
        );
        // With the kernel's write cache the times are the kernel's.
        if cache == "strict" {
            let times = |seen: &fs::Metadata| (0, seen.ctime_nsec(), 0);
            assert_eq!(seen_otherwise(&stage, 600, &xattr, &times), 0, "the ctime of an extended attribute");
            let blocks = |seen: &fs::Metadata| (0, seen.mtime_nsec(), seen.blocks());
            assert_eq!(seen_otherwise(&stage, 600, &allocate, &blocks), 0, "the mtime and blocks of an extent");
            let name = |place: u32| stage.mount.path().join(["one", "another"][place as usize % 2]);
            fs::hard_link(stage.mount.path().join("file"), name(0)).expect("linked");
            let at = Cell::new(0);
            let rename = |_: &File, _: u32| {
                fs::rename(name(at.get()), name(at.get() + 1)).expect("renamed");
                at.set(at.get() + 1);
            };
            assert_eq!(seen_otherwise(&stage, 800, &rename, &times), 0, "the ctime of what was renamed");
            fs::write(stage.mount.path().join("file"), [7; 4096]).expect("written");
            let store = |file: &File, byte: u32| _ = contents::store(file, byte as u8);
            let mtime = |seen: &fs::Metadata| (0, seen.mtime_nsec(), 0);
            assert_eq!(
                seen_otherwise(&stage, 800, &store, &mtime),
                0,
                "the mtime of what was stored through a mapping"
            );
        }
    }
}

#[test]
fn records_that_several_processes_append_are_whole_and_there_once() {
    for cache in CACHES {
        let Some(stage) = Stage::new("append", cache) else { return };
        // Less than a page, more than one, and more than one request of some caches.
        for (name, len) in [("small", 61), ("large", 5003)] {
            for dir in stage.both() {
                let path = dir.join(name);
                File::create_new(&path).expect("new");
                let (path_of_child, mut record) = (c_path(&path), vec![0; len]);
                let writers: Vec<_> = (0..WRITERS)
                    .map(|writer| Child::fork(|| append_records(&path_of_child, writer, &mut record)))
                    .collect();
                assert!(writers.into_iter().all(|writer| writer.end() == 0), "{cache}: each record is one write");
                assert_whole_records(&fs::read(&path).expect("readable"), len, &format!("{cache} {}", path.display()));
            }
            stage.mount.settle();
            for dir in [&stage.folder, &stage.storage.tree("vol")] {
                let bytes = fs::read(dir.join(name)).expect("it arrived");
                assert_whole_records(&bytes, len, &format!("{cache} {}", dir.display()));
            }
            // In which order the writers came is chance, so the plain one cannot be compared with the mount.
            for dir in stage.both() {
                fs::remove_file(dir.join(name)).expect("there");
            }
        }
        stage.end();
    }
}

/// A kind of lock: 0 is flock, else the command of fcntl.
const FLOCK: i32 = 0;
const KINDS: [(&str, i32); 3] = [("flock", FLOCK), ("posix", libc::F_SETLK), ("ofd", libc::F_OFD_SETLK)];

/// Tries, without waiting, to take a lock of bytes `from..from + 10` (of the whole file by flock): 0 or the errno. Allocates nothing.
fn lock(fd: RawFd, kind: i32, what: i32, from: i64) -> i32 {
    // SAFETY: flock(2) has only numbers; fcntl(2) is given a struct flock that lives through the call, and is plain numbers.
    let failed = unsafe {
        if kind == FLOCK {
            let what = [(libc::F_RDLCK, libc::LOCK_SH), (libc::F_WRLCK, libc::LOCK_EX), (libc::F_UNLCK, libc::LOCK_UN)]
                .into_iter()
                .find_map(|(of_fcntl, of_flock)| (of_fcntl == what).then_some(of_flock));
            libc::flock(fd, what.unwrap_or(0) | libc::LOCK_NB)
        } else {
            let mut range: libc::flock = std::mem::zeroed();
            (range.l_type, range.l_whence, range.l_start, range.l_len) = (what as i16, libc::SEEK_SET as i16, from, 10);
            libc::fcntl(fd, kind, &range)
        }
    };
    if failed == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
}

/// The same by another process, which opens the file itself.
fn other_locks(path: &Path, kind: i32, what: i32, from: i64) -> i32 {
    let path = c_path(path);
    // SAFETY: the path lives through the call.
    Child::fork(|| lock(unsafe { libc::open(path.as_ptr(), libc::O_RDWR) }, kind, what, from)).end()
}

/// A process that says when it is ready and then stays until it is told to go, or is killed.
struct Staying {
    child: Child,
    go: io::PipeWriter,
}

impl Staying {
    fn fork(first: impl FnOnce() -> i32) -> Staying {
        let [(ready, say_ready), (wait, go)] = [(); 2].map(|()| io::pipe().expect("descriptors"));
        let child = Child::fork(|| {
            let mut byte = [first() as u8];
            // SAFETY: the byte lives through the calls. The child does not use its end of `go`, so that it also goes when this process ends.
            unsafe {
                libc::close(go.as_raw_fd());
                libc::write(say_ready.as_raw_fd(), byte.as_ptr().cast(), 1);
                libc::read(wait.as_raw_fd(), byte.as_mut_ptr().cast(), 1);
            }
            0
        });
        let mut outcome = [0];
        (&ready).read_exact(&mut outcome).expect("it says when it is ready");
        assert_eq!(outcome, [0], "it could do what it should before it stays");
        Staying { child, go }
    }

    fn go(mut self) {
        self.go.write_all(b"g").expect("it waits");
        self.child.end();
    }
}

/// Situations of locks in a directory, each with its answer: 0, or the errno of who asks for a lock last.
fn locks(dir: &Path) -> Vec<(String, i32)> {
    let mut seen = Vec::new();
    let (read, write, none) = (libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK);
    for (name, kind) in KINDS {
        let path = dir.join(name);
        let file = new_file(&path, b"a file with locks");
        let fd = file.as_raw_fd();
        fs::hard_link(&path, dir.join(format!("{name}-other-name"))).expect("linked");
        let mut saw = |what: &str, answer| seen.push((format!("{name}: {what}"), answer));
        saw("first", lock(fd, kind, write, 0));
        saw("against a writer", other_locks(&path, kind, write, 0));
        saw("shared against a writer", other_locks(&path, kind, read, 5));
        saw("by another name", other_locks(&dir.join(format!("{name}-other-name")), kind, write, 0));
        saw("bytes beside it", other_locks(&path, kind, write, 10));
        saw("made shared", lock(fd, kind, read, 0));
        saw("shared against shared", other_locks(&path, kind, read, 0));
        saw("exclusive against shared", other_locks(&path, kind, write, 0));
        saw("unlocked", lock(fd, kind, none, 0));
        saw("after the unlock", other_locks(&path, kind, write, 0));
        let reader = File::open(&path).expect("there");
        saw("exclusive, of what is open for reading", lock(reader.as_raw_fd(), kind, write, 0));
        // Not by the close, see below.
        lock(reader.as_raw_fd(), kind, none, 0);
        drop(reader);

        lock(fd, kind, write, 0);
        let again = OpenOptions::new().read(true).write(true).open(&path).expect("there");
        saw("same process, another descriptor", lock(again.as_raw_fd(), kind, write, 0));
        saw("inherited descriptor", Child::fork(|| lock(fd, kind, write, 0)).end());
        lock(fd, kind, write, 0);
        drop(again);
        saw("after the close of another descriptor", other_locks(&path, kind, write, 0));

        lock(fd, kind, write, 0);
        let copy = Staying::fork(|| 0);
        drop(file);
        saw("closed, a child has a copy", other_locks(&path, kind, write, 0));
        copy.go();
        // A test beside this one may fork meanwhile, so that a copy of the descriptor is there for a moment.
        let free = || eventually(SOON, || other_locks(&path, kind, write, 0) == 0);
        saw("the last copy closed", i32::from(!free()));

        let inside = c_path(&path);
        // SAFETY: the path lives through the call.
        let holder = Staying::fork(|| lock(unsafe { libc::open(inside.as_ptr(), libc::O_RDWR) }, kind, write, 0));
        saw("against another process", other_locks(&path, kind, write, 0));
        // Dropping it kills it.
        drop(holder);
        saw("its process killed", i32::from(!free()));
    }
    seen.extend(locks_of_different_kinds(dir));
    seen
}

fn locks_of_different_kinds(dir: &Path) -> Vec<(String, i32)> {
    let path = dir.join("kinds");
    let file = new_file(&path, b"a file with locks");
    let mut seen = Vec::new();
    for (name, kind) in KINDS {
        for (other, other_kind) in KINDS {
            assert_eq!(lock(file.as_raw_fd(), kind, libc::F_WRLCK, 0), 0);
            seen.push((format!("{other} against {name}"), other_locks(&path, other_kind, libc::F_WRLCK, 0)));
            assert_eq!(lock(file.as_raw_fd(), kind, libc::F_UNLCK, 0), 0);
        }
    }
    // Who waits gets it when it is free.
    assert_eq!(lock(file.as_raw_fd(), libc::F_SETLK, libc::F_WRLCK, 0), 0);
    let (path, fd) = (c_path(&path), file.as_raw_fd());
    let waits = Child::fork(|| {
        // SAFETY: the path lives through the call.
        lock(unsafe { libc::open(path.as_ptr(), libc::O_RDWR) }, libc::F_SETLKW, libc::F_WRLCK, 0)
    });
    std::thread::sleep(Duration::from_millis(100));
    lock(fd, libc::F_SETLK, libc::F_UNLCK, 0);
    seen.push(("waiting".to_owned(), waits.end()));
    seen
}

#[test]
fn locks_are_kept_and_lost_as_in_a_plain_directory() {
    for cache in CACHES {
        let Some(stage) = Stage::new("locks", cache) else { return };
        let [mount, plain] = stage.both().map(locks);
        assert_eq!(mount, plain, "{cache}");
        // And the plain directory's are those of the books, or this test is none.
        let of = |situation: &str| plain.iter().find(|(name, _)| name == situation).expect("it was seen").1;
        for (situation, expected) in [
            ("flock: against a writer", libc::EAGAIN),
            ("flock: closed, a child has a copy", libc::EAGAIN),
            ("flock: after the close of another descriptor", libc::EAGAIN),
            ("flock: inherited descriptor", 0),
            ("flock: its process killed", 0),
            ("flock: the last copy closed", 0),
            ("posix: against a writer", libc::EAGAIN),
            ("posix: bytes beside it", 0),
            ("posix: by another name", libc::EAGAIN),
            ("posix: inherited descriptor", libc::EAGAIN),
            ("posix: after the close of another descriptor", 0),
            ("posix: closed, a child has a copy", 0),
            ("posix: its process killed", 0),
            ("posix: exclusive, of what is open for reading", libc::EBADF),
            ("ofd: same process, another descriptor", libc::EAGAIN),
            ("ofd: after the close of another descriptor", libc::EAGAIN),
            ("ofd: closed, a child has a copy", libc::EAGAIN),
            ("ofd against posix", libc::EAGAIN),
            ("posix against flock", 0),
            ("waiting", 0),
        ] {
            assert_eq!(of(situation), expected, "{situation}");
        }
        stage.end();
    }
}
