//! Calls on a real mount that wait: for the replica (`fsync=durable`), or because the link is slower than the writer. They wait
//! without a thread, and a signal ends them.

mod support;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{fs::FileExt as _, fs::OpenOptionsExt as _, thread::JoinHandleExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use support::recorder::Recorder;
use tandem_mountd::{
    backing::Backing,
    fuse::Connection,
    mount::{self, MountSpec, Prepared, Present},
    vfs::{FsyncMode, FsyncRules, Vfs},
};

struct TestMount {
    dir: tempfile::TempDir,
    recorder: Arc<Recorder>,
    vfs: Arc<Vfs<Recorder>>,
}

/// Mounts over a new directory; `None`, with a message, where that is not possible.
fn mount(fsync: impl Into<FsyncRules>) -> Option<TestMount> {
    let dir = tempfile::tempdir().expect("temporary directory");
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
    let backing = Arc::new(Backing::open(dir.path(), false, true).expect("backing"));
    let recorder = Arc::new(Recorder::default());
    let vfs = Arc::new(Vfs::new(backing, recorder.clone(), fsync).expect("vfs"));
    // The other tests of mounts sleep between requests where processors are few.
    let connection = Connection::open(fuse, vfs.clone()).expect("handshake").with_busy_poll(Duration::from_micros(40));
    thread::spawn(move || connection.serve());
    detached.attach(dir.path(), Present::Directory).expect("attach");
    Some(TestMount { dir, recorder, vfs })
}

impl TestMount {
    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// How often `act` waited for the replica.
    fn waits(&self, act: impl FnOnce()) -> usize {
        let before = self.recorder.promises.load(Ordering::Relaxed);
        act();
        self.recorder.promises.load(Ordering::Relaxed) - before
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        // Whoever still waits would keep the mount.
        self.recorder.congested.store(false, Ordering::Relaxed);
        self.recorder.come_back();
        let _ = mount::unmount(self.dir.path(), true);
    }
}

/// Waits for what is about to happen; a limit on what may take for ever if it does not.
fn until(what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} did not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Lets SIGUSR1 interrupt calls, and nothing else.
fn make_signal_harmless() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    // SAFETY: the handler does nothing; without SA_RESTART it only ends the call that waits.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
}

fn signal(thread: &thread::JoinHandle<io::Result<()>>) {
    // SAFETY: the thread is not joined yet, so its id is valid.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
}

#[test]
fn every_kind_of_sync_waits_for_the_replica_where_durable_holds() {
    let mut rules = FsyncRules::from(FsyncMode::Local);
    rules.set_below(b"/db", FsyncMode::Durable).expect("path");
    let Some(mount) = mount(rules) else { return };
    fs::create_dir(mount.path().join("db")).expect("mkdir");
    for (below, waits) in [("db", true), ("", false)] {
        let dir = mount.path().join(below);
        let expect = |times: usize, what: &str| assert_eq!(times > 0, waits, "{what} below /{below}: {times}");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true);
        let file = options.open(dir.join("file")).expect("open");
        assert_eq!(mount.waits(|| file.write_all_at(b"unsynced", 0).expect("write")), 0);
        expect(mount.waits(|| file.sync_all().expect("fsync")), "fsync");
        expect(mount.waits(|| file.sync_data().expect("fdatasync")), "fdatasync");
        // What is only written goes around the kernel's cache, where the kernel does not sync by itself.
        let mut only_written = OpenOptions::new();
        only_written.write(true);
        let part = [libc::iovec { iov_base: b"y".as_ptr().cast_mut().cast(), iov_len: 1 }];
        for options in [&*options, &only_written] {
            for flag in [libc::O_SYNC, libc::O_DSYNC] {
                let mut file = options.clone().custom_flags(flag).open(dir.join("file")).expect("open");
                expect(mount.waits(|| file.write_all(b"x").expect("write")), "O_SYNC or O_DSYNC");
            }
            let file = options.open(dir.join("file")).expect("open");
            for flag in [libc::RWF_SYNC, libc::RWF_DSYNC] {
                expect(
                    mount.waits(|| {
                        // SAFETY: one part of one readable byte.
                        let wrote = unsafe { libc::pwritev2(file.as_raw_fd(), part.as_ptr(), 1, 0, flag) };
                        assert_eq!(wrote, 1);
                    }),
                    "pwritev2",
                );
            }
        }
        expect(mount.waits(|| store_and_msync(&file)), "msync");
        expect(mount.waits(|| File::open(&dir).expect("open").sync_all().expect("fsync")), "fsync of a directory");
    }
}

fn store_and_msync(file: &File) {
    file.set_len(4096).expect("size");
    let (read, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping of a file that this test alone uses, unmapped below; the store is within it.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), 4096, read, shared, file.as_raw_fd(), 0);
        assert_ne!(memory, libc::MAP_FAILED);
        memory.cast::<u8>().add(100).write(b'!');
        assert_eq!(libc::msync(memory, 4096, libc::MS_SYNC), 0);
        libc::munmap(memory, 4096);
    }
}

#[test]
fn many_fsyncs_wait_without_a_thread_and_go_on_together() {
    let Some(mount) = mount(FsyncMode::Durable) else { return };
    mount.recorder.away.store(true, Ordering::Relaxed);
    // Many more than there are threads that serve.
    let waiting: Vec<_> = (0..20)
        .map(|number| {
            let path = mount.path().join(format!("file{number}"));
            thread::spawn(move || File::create(path)?.sync_all())
        })
        .collect();
    until("twenty wait", || mount.recorder.waiting() == 20);
    // The mount still serves.
    fs::write(mount.path().join("another"), b"x").expect("write");
    assert_eq!(fs::read(mount.path().join("another")).expect("read"), b"x");
    mount.recorder.come_back();
    for thread in waiting {
        thread.join().expect("thread").expect("fsync");
    }
}

#[test]
fn a_signal_that_is_caught_does_not_end_an_fsync() {
    let Some(mount) = mount(FsyncMode::Durable) else { return };
    make_signal_harmless();
    mount.recorder.away.store(true, Ordering::Relaxed);
    let dir = mount.path().to_owned();
    // The standard library would begin an interrupted fsync again.
    let fsync = |file: File| -> io::Result<()> { Ok(rustix::fs::fsync(file)?) };
    // Made before: the kernel holds the directory's lock while its fsync waits, and a create would wait for that.
    let file = File::create(dir.join("file")).expect("create");
    let of_file = thread::spawn(move || fsync(file));
    let of_directory = thread::spawn(move || fsync(File::open(dir)?));
    until("both wait", || mount.recorder.waiting() == 2);
    signal(&of_file);
    signal(&of_directory);
    // Time to do the wrong thing; a mount that does the right one passes however long this is.
    thread::sleep(Duration::from_millis(800));
    assert_eq!(mount.recorder.waiting(), 2, "a database would have given up");
    mount.recorder.come_back();
    of_file.join().expect("thread").expect("it is durable");
    of_directory.join().expect("thread").expect("it is durable");
}

#[test]
fn a_process_that_waits_for_the_replica_can_be_killed() {
    let Some(mount) = mount(FsyncMode::Durable) else { return };
    mount.recorder.away.store(true, Ordering::Relaxed);
    let path = mount.path().join("file");
    let mut child = Command::new("dd")
        .args(["if=/dev/zero", "bs=4k", "count=1", "conv=fsync"])
        .arg(format!("of={}", path.display()))
        .stderr(Stdio::null())
        .spawn()
        .expect("dd");
    until("it waits", || mount.recorder.waiting() == 1);
    // The kernel tells of this one only; the next has to be noticed all the same.
    // SAFETY: a signal that dd catches, to our own child.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGUSR1) };
    thread::sleep(Duration::from_millis(100));
    child.kill().expect("kill");
    child.wait().expect("it ends");
    until("nobody waits", || mount.recorder.waiting() == 0);
}

#[test]
fn writes_are_held_back_while_the_link_is_slower_and_a_signal_lets_them_go_on() {
    let Some(mount) = mount(FsyncMode::Local) else { return };
    make_signal_harmless();
    let path = |number: usize| mount.path().join(format!("file{number}"));
    for number in 0..10 {
        File::create(path(number)).expect("create");
    }
    mount.recorder.congested.store(true, Ordering::Relaxed);
    let writers: Vec<_> = (0..10)
        .map(|number| {
            let path = path(number);
            thread::spawn(move || OpenOptions::new().write(true).open(path)?.write_all(b"held"))
        })
        .collect();
    until("ten are held back", || mount.vfs.held_writes() == 10);
    // Everything else goes on, also with the files that are not written.
    fs::write(path(11), b"").expect("create");
    assert_eq!(fs::read(path(0)).expect("read"), b"");
    signal(&writers[0]);
    until("one goes on", || mount.vfs.held_writes() == 9);
    let mut writers = writers.into_iter();
    writers.next().expect("ten").join().expect("thread").expect("the write is done, not refused");
    assert_eq!(fs::read(path(0)).expect("read"), b"held");
    assert_eq!(fs::read(path(1)).expect("read"), b"");
    mount.recorder.congested.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.join().expect("thread").expect("write");
    }
    assert!((0..10).all(|number| fs::read(path(number)).expect("read") == b"held"));
}
