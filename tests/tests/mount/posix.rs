//! What a program may do to a file beyond the everyday: the mount answers as the file system below it does, and the replica follows.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use tandem_tests::{
    harness::{Lab, MountSpec, eventually, seconds},
    rng::content,
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal};

/// Moments of a removal that are tried.
const ROUNDS: u64 = 300;

/// A file without a name, below `dir`.
fn nameless(dir: &Path) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::from_raw_mode(0o640)).expect("O_TMPFILE").into()
}

fn name_it(file: &File, name: &Path) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, path, CWD, name, AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn file_without_a_name_arrives_whole_when_it_gets_one() {
    let Some(lab) = Lab::new("nameless") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let at = |name: &str| mount.path().join(name);
    fs::create_dir(at("d")).expect("new");

    let empty = nameless(mount.path());
    name_it(&empty, &at("empty")).expect("linked");
    let mut small = nameless(&at("d"));
    small.write_all(b"a small content").expect("writable");
    assert_eq!(small.metadata().expect("open").nlink(), 0);
    assert_eq!(fs::read_dir(at("d")).expect("a directory").count(), 0);
    rustix::fs::fsetxattr(&small, "user.kind", b"small", rustix::fs::XattrFlags::empty()).expect("xattr");
    let time = Timespec { tv_sec: -7, tv_nsec: 9 };
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    rustix::fs::futimens(&small, &Timestamps { last_access: omit, last_modification: time }).expect("times");
    name_it(&small, &at("d/small")).expect("linked");
    assert_eq!(name_it(&small, &at("d/small")), Err(rustix::io::Errno::EXIST));
    name_it(&small, &at("d/again")).expect("a second name");
    assert_eq!(small.metadata().expect("open").nlink(), 2);
    let sparse = nameless(mount.path());
    sparse.write_all_at(b"end", 40 << 20).expect("writable");
    name_it(&sparse, &at("sparse")).expect("linked");
    assert_replica_equal(&mount, &storage, "vol");
    // More than one operation can carry.
    let mut large = nameless(mount.path());
    large.write_all(&content(7, 5 << 20)).expect("writable");
    name_it(&large, &at("large")).expect("linked");
    large.write_all_at(b"after it has a name", 3 << 20).expect("writable");
    small.write_all(b", and more").expect("writable");
    assert_replica_equal(&mount, &storage, "vol");
    // Never named, and not to be.
    let secret =
        rustix::fs::open(at("d"), OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL, Mode::RWXU).expect("O_TMPFILE");
    assert_eq!(name_it(&secret.into(), &at("secret")), Err(rustix::io::Errno::NOENT));
    drop((empty, small, sparse, large));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn a_rename_that_failed_half_way_leaves_the_times_of_the_folder_on_the_replica() {
    let Some(lab) = Lab::new("undone") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let at = |name: &str| mount.path().join(name);
    fs::create_dir_all(at("from/moved")).expect("new");
    fs::create_dir_all(at("target/full")).expect("new");
    let old = Timespec { tv_sec: 1_000_000, tv_nsec: 7 };
    let times = Timestamps { last_access: old, last_modification: old };
    rustix::fs::utimensat(CWD, at("from"), &times, AtFlags::empty()).expect("own directory");
    mount.settle();
    let refused = rustix::fs::renameat_with(CWD, at("from/moved"), CWD, at("target"), RenameFlags::WHITEOUT);
    assert!(refused.is_err(), "a directory that is not empty cannot be replaced");
    // ext4 refuses it with ENOTEMPTY, and changed the directory on the way.
    let shown = fs::metadata(at("from")).expect("there");
    assert_equal_and_unmount(&mount, &storage, "vol");
    let below = fs::metadata(at("from")).expect("there");
    assert_eq!((shown.mtime(), shown.mtime_nsec()), (below.mtime(), below.mtime_nsec()));
}

#[test]
fn whiteouts_devices_and_inode_flags_are_those_of_the_folder() {
    let Some(lab) = Lab::new("flags") else { return };
    let storage = lab.storage();
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("suid,dev"));
    let at = |name: &str| mount.path().join(name);
    fs::write(at("hidden"), "moves away").expect("writable");
    rustix::fs::renameat_with(CWD, at("hidden"), CWD, at("moved"), RenameFlags::WHITEOUT).expect("a whiteout");
    assert!(fs::symlink_metadata(at("hidden")).expect("a whiteout").file_type().is_char_device());
    assert_eq!(fs::read_to_string(at("moved")).expect("moved"), "moves away");
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(CWD, at("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), null)
        .expect("a device");
    OpenOptions::new().write(true).open(at("null")).expect("devices were asked for").write_all(b"x").expect("null");

    fs::write(at("log"), "first").expect("writable");
    let shell = |script: &str| {
        let run = Command::new("sh").args(["-c", script]).current_dir(mount.path()).output().expect("a shell");
        (run.status.success(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (set, said) = shell("chattr +a log");
    if set {
        assert!(shell("lsattr log | grep -q -- '-a-'").0, "the flag shows");
        let refused = OpenOptions::new().write(true).open(at("log")).expect_err("may only be appended to");
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let mut log = OpenOptions::new().append(true).open(at("log")).expect("may be appended to");
        log.write_all(b", second").expect("appended");
        drop(log);
        assert_eq!(fs::remove_file(at("log")).expect_err("append only").raw_os_error(), Some(libc::EPERM));
        assert!(shell("chattr -a log && chattr +i log").0);
        assert_eq!(
            File::options().append(true).open(at("log")).expect_err("immutable").raw_os_error(),
            Some(libc::EPERM)
        );
        assert!(shell("chattr -i log").0);
        assert_eq!(fs::read_to_string(at("log")).expect("readable"), "first, second");
    } else {
        eprintln!("SKIPPED: no inode flags here: {said}");
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn devices_and_set_user_id_programs_have_no_effect_unless_asked_for() {
    let Some(lab) = Lab::new("nosuid") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let null = mount.path().join("null");
    rustix::fs::mknodat(CWD, &null, FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3))
        .expect("devices can be kept");
    let refused = OpenOptions::new().write(true).open(&null).expect_err("nodev");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    let flags = rustix::fs::statvfs(mount.path()).expect("mounted").f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOSUID | rustix::fs::StatVfsMountFlags::NODEV));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn with_cache_writeback_what_is_written_arrives_without_a_close() {
    let Some(lab) = Lab::new("writeback") else { return };
    let storage = lab.storage();
    let spec = MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("cache=writeback");
    let mount = lab.mount_with(&spec);
    let status = mount.status();
    assert_eq!((status.cache_mode.as_str(), status.order.as_str()), ("writeback", "fsync and close"));
    let at = |name: &str| mount.path().join(name);
    let appended = at("appended");
    let mut appending = OpenOptions::new().append(true).create(true).open(&appended).expect("writable");
    for _ in 0..500 {
        appending.write_all(b"one line of many\n").expect("writable");
    }
    let tree = storage.tree("vol").join("appended");
    let arrived = eventually(seconds(30), || fs::metadata(&tree).is_ok_and(|there| there.len() == 500 * 17));
    assert!(arrived, "the flush timer asks for what nobody closes");
    // Opened for writing only: the kernel reads the page around it.
    let inside = OpenOptions::new().write(true).open(&appended).expect("writable");
    inside.write_all_at(b"ONE", 17).expect("writable");
    inside.sync_all().expect("fsync");
    fs::write(at("suid"), "program").expect("writable");
    rustix::fs::chmodat(CWD, at("suid"), Mode::from_raw_mode(0o4755), AtFlags::empty()).expect("chmod");
    // The kernel does not know where its own dirty pages are holes.
    let sparse = File::options().write(true).read(true).create_new(true).open(at("sparse")).expect("new");
    sparse.write_all_at(b"data", 8 << 20).expect("writable");
    sparse.write_all_at(b"data", 0).expect("writable");
    let hole = rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(0)).expect("data");
    assert_eq!(hole, 0);
    drop(sparse);
    let unsynced =
        File::options().write(true).create_new(true).custom_flags(libc::O_SYNC).open(at("sync")).expect("new");
    unsynced.write_all_at(&content(3, 100_000), 5).expect("writable");
    drop((appending, inside, unsynced));
    // The kernel knows how large it made the file, not how many blocks that took.
    let told = || fs::metadata(at("sync")).is_ok_and(|there| there.blocks() * 512 >= 100_000);
    assert!(eventually(seconds(30), told), "{:?}", fs::metadata(at("sync")));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn long_reads_are_right_wherever_they_begin_and_end() {
    let Some(lab) = Lab::new("long-reads") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let (path, mut bytes) = (mount.path().join("long"), content(9, (5 << 20) + 1234));
    fs::write(&path, &bytes).expect("writable");
    let compare = |bytes: &[u8]| {
        for flags in [0, libc::O_DIRECT] {
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).expect("there");
            let end = bytes.len();
            for (from, len) in
                [(0, end), (0, 1 << 20), (1, 1 << 20), (4095, 70_000), (2 << 20, 1_500_000), (end - 10, 10)]
            {
                // Nothing of it is left in the kernel's cache of the mount, so the daemon is asked.
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
                let mut read = vec![0; len + 100];
                let mut done = 0;
                while done < len {
                    let more = file.read_at(&mut read[done..], (from + done) as u64).expect("readable");
                    assert!(more > 0, "the file ends at {} of {end} bytes", from + done);
                    done += more;
                }
                let same = read[..len] == bytes[from..from + len];
                assert!(same, "{len} bytes from {from}, opened with {flags:#o}");
            }
            assert_eq!(file.read_at(&mut [0; 1 << 17], end as u64).expect("readable"), 0, "it ends there");
        }
    };
    compare(&bytes);
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("there");
    file.write_all_at(&content(10, 300_000), 700_001).expect("writable");
    bytes[700_001..1_000_001].copy_from_slice(&content(10, 300_000));
    file.set_len(2 << 20).expect("shorter");
    file.set_len(4 << 20).expect("longer, with zeroes");
    bytes.truncate(2 << 20);
    bytes.resize(4 << 20, 0);
    compare(&bytes);
    drop(file);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

/// What was stored before a file was made immutable is stored, as below; who stores it only later is the kernel.
#[test]
fn what_was_written_before_a_file_was_made_immutable_arrives() {
    for cache in ["strict", "writeback"] {
        let Some(lab) = Lab::new("immutable") else { return };
        let storage = lab.storage();
        let spec = MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options(&format!("cache={cache}"));
        let mount = lab.mount_with(&spec);
        let script = "import mmap,subprocess
w=open('written','wb'); w.write(b'x'*100000); w.flush()
m=open('mapped','w+b'); m.truncate(8192); p=mmap.mmap(m.fileno(),8192); p[5000:5005]=b'dirty'
a=open('appended','ab'); a.write(b'y'*100000); a.flush()
for flag,name in (('+i','written'),('+i','mapped'),('+a','appended')): subprocess.run(['chattr',flag,name],check=True)
";
        match Command::new("python3").args(["-c", script]).current_dir(mount.path()).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) if String::from_utf8_lossy(&output.stderr).contains("chattr") => {
                return eprintln!("SKIPPED immutable: {}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => return eprintln!("SKIPPED immutable: python3 is missing"),
        }
        mount.settle();
        let tree = storage.tree("vol");
        assert_eq!(fs::read(tree.join("written")).expect("on the replica"), [b'x'; 100_000], "{cache}");
        assert_eq!(fs::read(tree.join("appended")).expect("on the replica"), [b'y'; 100_000], "{cache}");
        assert_eq!(&fs::read(tree.join("mapped")).expect("on the replica")[5000..5005], b"dirty", "{cache}");
        for name in ["written", "mapped", "appended"] {
            let refused = OpenOptions::new().write(true).open(mount.path().join(name)).expect_err("it is protected");
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{name}");
            let unprotect = Command::new("chattr").args(["-i", "-a", name]).current_dir(mount.path()).status();
            assert!(unprotect.is_ok_and(|status| status.success()));
        }
        assert_equal_and_unmount(&mount, &storage, "vol");
    }
}

/// A file with `chattr +a` can be opened for appending only. What is stored through a mapping of that descriptor after the flag is gone, and
/// what is written through it after `O_APPEND` was taken from it, goes where it is told to.
#[test]
fn what_was_opened_as_append_only_is_written_in_its_middle_once_that_is_allowed() {
    let Some(lab) = Lab::new("append-only") else { return };
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    let mount = lab.mount(&storage, "vol", &folder);
    let script = "import fcntl,mmap,os,subprocess
def chattr(flag): subprocess.run(['chattr',flag,'log'],check=True)
open('log','wb').write(b'a'*100000)
chattr('+a')
log=open('log','a+b',buffering=0); log.write(b'b'*1000)
flags=fcntl.fcntl(log,fcntl.F_GETFL)
fcntl.fcntl(log,fcntl.F_SETFL,flags&~os.O_APPEND)
try:
    os.pwrite(log.fileno(),b'x',50000)
    raise SystemExit('an append-only file was written in its middle')
except PermissionError: pass
chattr('-a')
p=mmap.mmap(log.fileno(),100000)
p[5000:5005]=b'store'; p.flush()
os.pwrite(log.fileno(),b'write',20000)
other=open('other','w+b',buffering=0); other.write(b'copied'*20000)
os.copy_file_range(other.fileno(),log.fileno(),6,0,40000)
fcntl.fcntl(log,fcntl.F_SETFL,flags)
log.write(b'c'*1000)
p[99990:99995]=b'store'; p.close(); log.close()
";
    match Command::new("python3").args(["-c", script]).current_dir(mount.path()).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("chattr") => {
            return eprintln!("SKIPPED append-only: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => return eprintln!("SKIPPED append-only: python3 is missing"),
    }
    let mut expected = [vec![b'a'; 100_000], vec![b'b'; 1000], vec![b'c'; 1000]].concat();
    for (at, bytes) in [(5000, &b"store"[..]), (20_000, b"write"), (40_000, b"copied"), (99_990, b"store")] {
        expected[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let same = fs::read(folder.join("log")).expect("below") == expected;
    assert!(
        same,
        "{} bytes, {} are expected",
        fs::metadata(mount.path().join("log")).expect("there").len(),
        expected.len()
    );
    assert_equal_and_unmount(&mount, &storage, "vol");
}

/// What was opened before is opened below only once it is read. Whatever became of it meanwhile, it is read as it would have been.
#[test]
fn what_was_opened_for_reading_is_read_whatever_happened_to_its_name() {
    let Some(lab) = Lab::new("opened-late") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let at = |name: &str| mount.path().join(name);
    let descriptors =
        || fs::read_dir(format!("/proc/{}/fd", mount.daemon().pid().expect("it runs"))).expect("proc").count();
    let names = ["stays", "removed", "replaced", "moved", "closed", "cut"];
    for name in names {
        fs::write(at(name), content(3, 300_000)).expect("writable");
    }
    let open = |name: &str| {
        let file = File::open(at(name)).expect("there");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
        file
    };
    let before = descriptors();
    let many: Vec<_> = (0..500).map(|_| open("stays")).collect();
    // As an ordinary user it opens each, as it might not be allowed to later.
    let late = descriptors() < before + 100;
    assert_eq!(late, rustix::process::getuid().is_root(), "{before} descriptors, then {}", descriptors());
    drop(many);
    let files: Vec<_> = names.iter().map(|name| open(name)).collect();
    let synced = open("removed");
    let removed = File::open(at("removed")).expect("there");
    fs::remove_file(at("removed")).expect("removed");
    fs::write(at("new"), b"another").expect("writable");
    fs::rename(at("new"), at("replaced")).expect("replaced");
    fs::create_dir(at("d")).expect("new");
    fs::rename(at("moved"), at("d/moved")).expect("moved");
    rustix::fs::chmod(at("closed"), Mode::empty()).expect("closed");
    OpenOptions::new().write(true).open(at("cut")).and_then(|file| file.set_len(100_000)).expect("cut");
    assert_eq!(removed.metadata().expect("open").nlink(), 0);
    synced.sync_all().expect("open");
    let copy = OpenOptions::new().create(true).write(true).truncate(true).open(at("copy")).expect("new");
    let copied = rustix::fs::copy_file_range(&removed, Some(&mut 0), &copy, Some(&mut 0), 300_000);
    assert_eq!(copied.expect("open"), 300_000);
    assert_eq!(rustix::fs::seek(&removed, rustix::fs::SeekFrom::Hole(5)).expect("open"), 300_000);
    for (file, name) in files.iter().zip(names) {
        let mut read = vec![0; 400_000];
        let len = if name == "cut" { 100_000 } else { 300_000 };
        let mut done = 0;
        loop {
            match file.read_at(&mut read[done..], done as u64).expect("open") {
                0 => break,
                more => done += more,
            }
        }
        assert!(read[..done] == content(3, 300_000)[..len], "{name}: {done} bytes");
    }
    drop((files, synced, removed, copy));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

/// With 400 descriptors in all, and more files than that.
#[test]
fn what_could_be_opened_can_be_read_however_few_descriptors_there_are() {
    let Some(lab) = Lab::new("few-descriptors") else { return };
    let storage = lab.storage();
    let mut spec = MountSpec::new(&storage, "vol", &lab.new_dir("folder"));
    spec.tracer = ["prlimit", "--nofile=400:400"].map(Into::into).to_vec();
    let mount = lab.mount_with(&spec);
    let paths: Vec<_> = (0..500).map(|at| mount.path().join(format!("{at}"))).collect();
    for path in &paths {
        fs::write(path, path.as_os_str().as_encoded_bytes()).expect("writable");
        fs::read(path).expect("readable");
    }
    let mut open = Vec::new();
    for path in &paths {
        match File::open(path) {
            Ok(file) => open.push((path, file)),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE)),
        }
    }
    assert!((100..paths.len()).contains(&open.len()), "{}", open.len());
    for (path, file) in &open {
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
        let mut read = vec![0; path.as_os_str().len()];
        file.read_exact_at(&mut read, 0).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(read == path.as_os_str().as_encoded_bytes());
    }
    drop(open);
    assert!(paths.iter().all(|path| File::open(path).is_ok()), "there is room again");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

/// With 400 descriptors in all; one that is open and has no name takes one descriptor, not two.
#[test]
fn what_is_open_can_be_unlinked_however_few_descriptors_there_are() {
    let Some(lab) = Lab::new("few-nameless") else { return };
    let storage = lab.storage();
    let mut spec = MountSpec::new(&storage, "vol", &lab.new_dir("folder"));
    spec.tracer = ["prlimit", "--nofile=400:400"].map(Into::into).to_vec();
    let mount = lab.mount_with(&spec);
    let mut open = Vec::new();
    for at in 0..200 {
        let path = mount.path().join(format!("{at}"));
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match at % 2 {
            0 => options.create_new(true).open(&path),
            _ => options.custom_flags(libc::O_TMPFILE).open(mount.path()),
        };
        let file = file.unwrap_or_else(|error| panic!("{at}: {error}"));
        file.write_all_at(&[at; 100], 0).expect("writable");
        if at % 4 == 0 {
            // Read by somebody who got no descriptor in the daemon yet.
            open.push((at, File::open(&path).expect("room for one more")));
            drop(file);
        } else {
            open.push((at, file));
        }
        if at % 2 == 0 {
            fs::remove_file(&path).unwrap_or_else(|error| panic!("{at}: {error}"));
        }
    }
    for (at, file) in &open {
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
        let mut read = [0; 100];
        file.read_exact_at(&mut read, 0).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(read, [*at; 100]);
        assert_eq!(file.metadata().expect("attributes").nlink(), 0);
    }
    drop(open);
    fs::write(mount.path().join("after"), "all").expect("there is room again");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

/// What is changed around a mount is not replicated. But who opens it sees it, as long as no descriptor is kept that holds what was there.
#[test]
fn a_file_that_was_exchanged_around_the_mount_is_read_as_it_is() {
    let Some(lab) = Lab::new("exchanged") else { return };
    let (storage, folder) = (lab.storage(), lab.new_dir("folder"));
    for at in 0..2500 {
        fs::write(folder.join(format!("other-{at}")), "").expect("writable");
    }
    fs::write(folder.join("file"), "as it was").expect("writable");
    let spec = MountSpec::new(&storage, "vol", &lab.new_dir("mountpoint"));
    let mount = lab.mount_with(&spec.options(&format!("backing={}", folder.display())));
    let path = mount.path().join("file");
    assert_eq!(fs::read(&path).expect("readable"), b"as it was");
    fs::write(folder.join("new"), "as it is").expect("writable");
    fs::rename(folder.join("new"), folder.join("file")).expect("renamed");
    // Asks for a descriptor of each, so that none of the file is kept.
    for at in 0..2500 {
        rustix::fs::listxattr(mount.path().join(format!("other-{at}")), &mut [0u8; 100][..]).expect("attributes");
    }
    let read = || {
        let file = File::open(&path)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let mut read = [0; 8];
        file.read_exact_at(&mut read, 0).map(|()| read)
    };
    let seen = [read(), read()];
    assert!(seen[1].as_ref().is_ok_and(|read| read == b"as it is"), "{seen:?}");
}

/// Its first read comes at any moment of its removal.
#[test]
fn a_file_that_is_removed_while_it_is_first_read_is_read() {
    let Some(lab) = Lab::new("read-and-removed") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let expected = content(4, 5000);
    for round in 0..ROUNDS {
        let path = mount.path().join(format!("{round}"));
        fs::write(&path, &expected).expect("writable");
        let file = File::open(&path).expect("there");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
        let (ready, begun) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                ready.store(true, Ordering::Release);
                while !begun.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_nanos(round * 200_000 / ROUNDS) {
                    std::hint::spin_loop();
                }
                let mut read = [0; 5000];
                let done = file.read_exact_at(&mut read, 0);
                assert!(done.is_ok() && read[..] == expected[..], "round {round}: {done:?}");
            });
            while !ready.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            begun.store(true, Ordering::Release);
            fs::remove_file(&path).expect("there");
        });
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}
