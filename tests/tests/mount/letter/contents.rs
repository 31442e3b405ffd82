//! Offsets, allocation, mappings and direct access: answers and contents are those of a plain directory.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    ptr,
};

use rustix::{
    fs::{AtFlags, FallocateFlags, SeekFrom, Timespec, Timestamps},
    io::Errno,
};
use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, eventually},
    rng::content,
};

use super::{CACHES, SOON, Stage, new_file};
use crate::support::{Answer, Image, MAP_LEN, Map, answer};

const PAGE: u64 = 4096;
/// The largest file of ext4 with blocks of 4 KiB.
const EXT4_MAX: u64 = (16 << 40) - PAGE;

fn pwrite(file: &File, bytes: &[u8], offset: u64) -> Answer {
    // SAFETY: the bytes live through the call. The offset may be negative for the kernel, which is what is tried.
    answer(unsafe { libc::pwrite(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), offset as i64) })
}

fn pread(file: &File, bytes: &mut [u8], offset: u64) -> Answer {
    // SAFETY: the bytes live through the call, and are only of this caller.
    answer(unsafe { libc::pread(file.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), offset as i64) })
}

/// A call at an offset that may be too far: its answer, that of an fsync after it, and the file's size then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Far {
    call: &'static str,
    answered: Answer,
    synced: Answer,
    size: u64,
}

impl Far {
    /// With cache=writeback the kernel takes such a write before the mount sees it, and owns the size (P5).
    fn is_as_below(self, below: Far, cache: &str) -> bool {
        let writes = cache == "writeback" && self.call.starts_with("pwrite");
        match below.answered {
            Err(Errno::FBIG) if writes => self.answered == Ok(FAR_AWAY.len() as u64) && self.synced == Err(Errno::FBIG),
            // Some bytes fit; of the rest the fsync tells.
            Ok(done) if writes && done < FAR_AWAY.len() as u64 => {
                self.answered == Ok(FAR_AWAY.len() as u64) && self.synced == Err(Errno::FBIG)
            }
            _ => self == below,
        }
    }
}

const FAR_AWAY: &[u8] = b"far away";

/// Calls at an offset that may be too far. After each the file is made as it was before.
fn far(path: &Path, offset: u64, bytes: &[u8]) -> [Far; 8] {
    let file = new_file(path, bytes);
    let none = FallocateFlags::empty();
    let unit = |result: rustix::io::Result<()>| result.map(|()| 0);
    type Call<'a> = (&'static str, &'a dyn Fn() -> Answer);
    let calls: [Call<'_>; 8] = [
        ("pwrite", &|| pwrite(&file, FAR_AWAY, offset)),
        ("pwrite that begins before it", &|| pwrite(&file, FAR_AWAY, offset.wrapping_sub(4))),
        ("pread", &|| pread(&file, &mut [0; 8], offset)),
        // SAFETY: only numbers.
        ("truncate", &|| answer(unsafe { libc::ftruncate(file.as_raw_fd(), offset as i64) } as isize)),
        ("allocate", &|| unit(rustix::fs::fallocate(&file, none, offset, PAGE))),
        ("allocate, not the size", &|| unit(rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, offset, PAGE))),
        ("punch", &|| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            unit(rustix::fs::fallocate(&file, flags, offset, PAGE))
        }),
        ("zero", &|| unit(rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, offset, PAGE))),
    ];
    let seen = calls.map(|(name, call)| {
        let answered = call();
        let synced = unit(rustix::fs::fsync(&file));
        let size = file.metadata().expect("open").len();
        // Also what is allocated behind the end goes.
        file.set_len(bytes.len() as u64 + 1).and_then(|()| file.set_len(bytes.len() as u64)).expect("as before");
        Far { call: name, answered, synced, size }
    });
    drop(file);
    assert!(fs::read(path).expect("readable") == bytes, "{}: {offset:#x} left the content as it was", path.display());
    seen
}

#[test]
fn offsets_that_are_too_far_are_refused_as_below_and_change_nothing() {
    let bytes = content(1, 10_000);
    let largest = i64::MAX as u64;
    let offsets = [
        (1 << 40, "a TiB"),
        (EXT4_MAX - PAGE, "the last page of ext4"),
        (EXT4_MAX - 1, "the last byte of ext4"),
        (EXT4_MAX, "behind it"),
        (EXT4_MAX + 1, "one more"),
        (16 << 40, "16 TiB"),
        (1 << 50, "a PiB"),
        (largest - PAGE, "the last page of all"),
        (largest - 1, "the last byte of all"),
        (largest, "the largest number"),
        (u64::MAX, "-1"),
        (1 << 63, "the least number"),
    ];
    for cache in CACHES {
        let Some(stage) = Stage::new("far", cache) else { return };
        let mut differ = Vec::new();
        for (at, (offset, what)) in offsets.into_iter().enumerate() {
            let [mount, plain] = stage.both().map(|dir| far(&dir.join(format!("far{at}")), offset, &bytes));
            for (mount, plain) in
                mount.into_iter().zip(plain).filter(|(mount, plain)| !mount.is_as_below(*plain, cache))
            {
                differ.push(format!("{cache}, {what}: {mount:?} on the mount, {plain:?} in a plain directory"));
            }
            // The kernel knows only the largest offset of all file systems (P5), so a seek may work on the mount.
            let seeks = stage.both().map(|dir| {
                let file = File::open(dir.join(format!("far{at}"))).expect("there");
                rustix::fs::seek(&file, SeekFrom::Start(offset))
            });
            if seeks[0] != seeks[1] && seeks != [Ok(offset), Err(Errno::INVAL)] {
                differ.push(format!("{cache}, {what}: {seeks:?} by lseek"));
            }
        }
        assert!(differ.is_empty(), "{}", differ.join("\n"));
        // A write that the kernel could not store is told once more, to the next who syncs the whole mount. Else that is `wait`.
        let all = File::open(stage.mount.path()).expect("there");
        let told = rustix::fs::syncfs(&all);
        assert!(told.is_ok() || (cache == "writeback" && told == Err(Errno::FBIG)), "{cache}: {told:?}");
        drop(all);
        stage.end();
    }
}

#[test]
fn ranges_are_allocated_punched_zeroed_and_moved_as_below() {
    let [keep, punch, zero] = [FallocateFlags::KEEP_SIZE, FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
    let [collapse, insert] = [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE];
    let modes = [
        ("allocate", FallocateFlags::empty()),
        ("allocate-keep", keep),
        ("punch", punch | keep),
        ("punch-size", punch),
        ("zero", zero),
        ("zero-keep", zero | keep),
        ("punch-zero", punch | zero | keep),
        ("collapse", collapse),
        ("collapse-keep", collapse | keep),
        ("insert", insert),
        ("insert-keep", insert | keep),
    ];
    let ranges = [
        ("pages", 2 * PAGE, 3 * PAGE),
        ("first", 0, PAGE),
        ("odd", 5000, 7001),
        ("in-a-page", 4100, 50),
        ("over-the-end", 9 * PAGE, 4 * PAGE),
        ("to-the-end", 7 * PAGE, 3 * PAGE + 123),
        ("at-the-end", 10 * PAGE + 123, PAGE),
        ("behind-the-end", 20 * PAGE, PAGE),
        ("nothing", PAGE, 0),
        ("odd-behind", 100_001, 777),
    ];
    let bytes = content(2, 10 * PAGE as usize + 123);
    for cache in CACHES {
        let Some(stage) = Stage::new("ranges", cache) else { return };
        for ((mode_name, mode), (range_name, from, len)) in
            modes.into_iter().flat_map(|mode| ranges.map(|range| (mode, range)))
        {
            let name = format!("{mode_name}-{range_name}");
            let moves = mode.intersects(collapse | insert);
            let [mount, plain] = stage.both().map(|dir| {
                let file = new_file(&dir.join(&name), &bytes);
                rustix::fs::fallocate(&file, mode, from, len)
            });
            if moves && len > 0 {
                // The kernel's FUSE refuses these before it asks (P5).
                assert_eq!(mount, Err(Errno::OPNOTSUPP), "{cache}: {name}");
                assert!(fs::read(stage.mount.path().join(&name)).expect("readable") == bytes, "{cache}: {name}");
                fs::write(stage.plain.join(&name), &bytes).expect("writable");
            } else {
                assert_eq!(mount, plain, "{cache}: {name}");
            }
            let [mount, plain] = stage.both().map(|dir| fs::read(dir.join(&name)).expect("readable"));
            assert!(mount == plain, "{cache}: {name}: the contents differ");
        }
        stage.end();
    }
}

/// Private and shared mappings of a file, each step with what is seen then: a byte, or the answer.
fn mappings(dir: &Path) -> Vec<(&'static str, Answer)> {
    let path = dir.join("mapped");
    let bytes = content(3, MAP_LEN + 100);
    let file = new_file(&path, &bytes);
    let reader = File::open(&path).expect("there");
    let writer = OpenOptions::new().write(true).open(&path).expect("there");
    let (read, both) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
    let stored = !bytes[5000];

    let mut seen = Vec::new();
    let private = Map::new(&reader, both, libc::MAP_PRIVATE).expect("of a descriptor for reading");
    let shared = Map::new(&file, both, libc::MAP_SHARED).expect("of a descriptor for both");
    private.store(5000, stored);
    seen.push(("a private store synced", private.sync()));
    seen.push(("its mapper sees it", Ok(u64::from(private.read(5000) == stored))));
    seen.push(("a shared mapping does not", Ok(u64::from(shared.read(5000) == bytes[5000]))));
    drop(file);
    assert!(fs::read(&path).expect("readable") == bytes, "{}: nor does a reader", path.display());
    // What others store is seen through the page that was not copied, and not through that which was.
    shared.store(10, !bytes[10]);
    shared.store(5001, !bytes[5001]);
    seen.push(("shared stores synced", shared.sync()));
    seen.push(("a shared store in a page not copied", Ok(u64::from(private.read(10) == !bytes[10]))));
    seen.push(("a shared store in a copied page", Ok(u64::from(private.read(5001) == bytes[5001]))));
    seen.push(("a write", pwrite(&writer, b"written", 200)));
    seen.push(("seen by both", Ok(u64::from(private.read(200) == b'w' && shared.read(200) == b'w'))));
    drop((private, shared));

    let shared = Map::new(&reader, read, libc::MAP_SHARED).expect("to be read");
    seen.push(("made writable", shared.protect(both)));
    for (name, file, protection, flags) in [
        ("shared, of a reader, writable", &reader, both, libc::MAP_SHARED),
        ("shared, of a reader, writable only", &reader, libc::PROT_WRITE, libc::MAP_SHARED),
        ("validated, of a reader, writable", &reader, both, libc::MAP_SHARED_VALIDATE),
        ("shared, of a writer", &writer, both, libc::MAP_SHARED),
        ("private, of a writer", &writer, read, libc::MAP_PRIVATE),
        ("MAP_SYNC", &reader, read, libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC),
        ("neither", &reader, read, 0),
    ] {
        seen.push((name, Map::new(file, protection, flags).map(|_| 0)));
    }
    seen
}

#[test]
fn private_stores_stay_private_and_a_reader_cannot_map_for_writing() {
    for cache in CACHES {
        let Some(stage) = Stage::new("mappings", cache) else { return };
        let [mount, plain] = stage.both().map(mappings);
        assert_eq!(mount, plain, "{cache}");
        for (step, seen) in plain {
            let expected = match step {
                "made writable" => Err(Errno::ACCESS),
                _ if step.contains(", of a ") => Err(Errno::ACCESS),
                "MAP_SYNC" => Err(Errno::OPNOTSUPP),
                "neither" => Err(Errno::INVAL),
                "a write" => Ok(7),
                _ if step.ends_with("synced") => Ok(0),
                _ => Ok(1),
            };
            // A file system of persistent memory knows MAP_SYNC.
            assert!(seen == expected || (step == "MAP_SYNC" && seen.is_ok()), "{step}: {seen:?}");
        }
        stage.end();
    }
}

/// Stores into all pages of a file through a mapping; what the msync said.
pub fn store(file: &File, byte: u8) -> Answer {
    let len = file.metadata().expect("open").len() as usize;
    // SAFETY: a new mapping of a file that stays as long until it is unmapped below, and is only of this function.
    unsafe {
        let at = libc::mmap(ptr::null_mut(), len, libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        at.cast::<u8>().write_bytes(byte, len);
        let synced = answer(libc::msync(at, len, libc::MS_SYNC) as isize);
        libc::munmap(at, len);
        synced
    }
}

/// The kernel looks at no count of what it writes back, so a write that was done in part must be told as one that failed.
#[test]
fn pages_that_the_disk_has_no_room_for_are_told_by_the_sync_after_them() {
    for cache in CACHES {
        let Some(lab) = Lab::new("no-room") else { return };
        let Some(image) = Image::new(&lab, &["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0"]) else { return };
        let storage = lab.storage();
        let folder = image.mountpoint.join("folder");
        fs::create_dir(&folder).expect("new");
        let spec = MountSpec::new(&storage, "vol", &lab.new_dir("shown"));
        let mount = lab.mount_with(&spec.options(&format!("cache={cache},backing={}", folder.display())));
        mount.settle();
        let room = || {
            let figures = rustix::fs::statvfs(&image.mountpoint).expect("mounted");
            figures.f_bavail * figures.f_frsize
        };
        let fill = File::create(image.mountpoint.join("fill")).expect("writable");
        rustix::fs::fallocate(&fill, FallocateFlags::empty(), 0, room() - (300 << 10)).expect("room");
        let left = room();
        assert!((200 << 10..=300 << 10).contains(&left), "{left}");
        for (kib, mapped) in [320, 400, 512, 1024].into_iter().flat_map(|kib| [(kib, true), (kib, false)]) {
            let (what, path) = (format!("{cache}, {kib} KiB, mapped {mapped}"), mount.path().join("file"));
            let file = new_file(&path, b"");
            if mapped {
                file.set_len(kib << 10).expect("a hole");
                let synced = store(&file, 1);
                assert!(matches!(synced, Err(Errno::NOSPC | Errno::IO)), "{what}: {synced:?}");
            } else {
                let written = file.write_all_at(&vec![1; (kib as usize) << 10], 0).and_then(|()| file.sync_all());
                let error = written.expect_err(&what);
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{what}");
            }
            drop(file);
            // It is told once more to who syncs everything next, which must not be who compares.
            let _ = rustix::fs::syncfs(File::open(mount.path()).expect("there"));
            mount.settle();
            let seen = compare::trees(&folder, &storage.tree("vol"), &compare::Options { mtime: true, limit: 20 });
            let seen = seen.expect("both can be read");
            assert!(seen.differences.is_empty(), "{what}:\n{}", seen.report());
            fs::remove_file(&path).expect("there");
            assert!(eventually(SOON, || room() >= left), "{what}: {} of {left}", room());
        }
        mount.unmount();
        drop(mount);
        storage.kill();
    }
}

/// Sets both times of a file; which it has then.
fn timed(dir: &Path, name: &str, time: Timespec) -> [(i64, i64); 2] {
    let path = dir.join(name);
    File::create(&path).expect("writable");
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::empty()).expect("any time is taken");
    let there = fs::metadata(&path).expect("there");
    [(there.atime(), there.atime_nsec()), (there.mtime(), there.mtime_nsec())]
}

#[test]
fn times_are_kept_to_the_ends_of_what_the_file_system_below_keeps() {
    // Those of ext4, of 32 bits, and others.
    let seconds =
        [i64::MIN / 2, -(1 << 40), -(1 << 31) - 1, -(1 << 31), -(1 << 31) + 1, -1, 0, 1, (1 << 31) - 1, 1 << 31];
    let late =
        [(1 << 32) - 1, 1 << 32, (1 << 34) - (1 << 31) - 2, (1 << 34) - (1 << 31) - 1, (1 << 34) - (1 << 31), 1 << 40];
    for cache in CACHES {
        let Some(stage) = Stage::new("times", cache) else { return };
        for (at, tv_sec) in seconds.into_iter().chain(late).enumerate() {
            for tv_nsec in [0, 1, 999_999_999] {
                let name = format!("{at}-{tv_nsec}");
                let [mount, plain] = stage.both().map(|dir| timed(dir, &name, Timespec { tv_sec, tv_nsec }));
                // With cache=writeback the kernel shows a time as it was set (P5).
                let kept = plain == [(tv_sec, tv_nsec); 2];
                assert!(
                    mount == plain || (cache == "writeback" && !kept),
                    "{cache}: {tv_sec} {tv_nsec}: {mount:?} {plain:?}"
                );
            }
        }
        stage.end();
    }
}

#[test]
fn size_of_the_file_system_is_that_of_the_folder() {
    let Some(stage) = Stage::new("statfs", "strict") else { return };
    new_file(&stage.mount.path().join("file"), b"asked by a file");
    new_file(&stage.plain.join("file"), b"asked by a file");
    for name in ["", "file"] {
        let [mount, plain] = stage.both().map(|dir| rustix::fs::statvfs(dir.join(name)).expect("it answers"));
        let fixed = |of: &rustix::fs::StatVfs| (of.f_bsize, of.f_frsize, of.f_blocks, of.f_files, of.f_namemax);
        assert_eq!(fixed(&mount), fixed(&plain), "{name}");
        // Others write meanwhile.
        let slack = (plain.f_blocks / 20).max((1 << 30) / plain.f_frsize);
        for (what, mount, plain) in
            [("free", mount.f_bfree, plain.f_bfree), ("available", mount.f_bavail, plain.f_bavail)]
        {
            assert!(mount.abs_diff(plain) <= slack, "{what}: {mount} blocks and {plain}");
        }
        let inodes = mount.f_ffree.abs_diff(plain.f_ffree);
        assert!(inodes <= (plain.f_files / 20).max(10_000), "{inodes} free inodes more or less");
    }
    stage.end();
}

/// Bytes whose address is a multiple of a page, plus `odd`.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new(len: usize, odd: usize) -> Aligned {
        let bytes = vec![0; len + 2 * PAGE as usize];
        let begin = bytes.as_ptr().align_offset(PAGE as usize) + odd;
        Aligned(bytes, begin)
    }

    fn get(&mut self, len: usize) -> &mut [u8] {
        &mut self.0[self.1..][..len]
    }
}

#[test]
fn direct_reads_and_writes_answer_as_below() {
    let page = PAGE as usize;
    // Where, how much, and how far from a multiple of a page in memory.
    let calls = [
        ("aligned", 0, page, 0),
        ("large", PAGE, 1 << 20, 0),
        ("inside", 70 * PAGE, 3 * page, 0),
        ("over the end", 310 * PAGE, 20 * page, 0),
        ("at the end", 330 * PAGE, page, 0),
        ("behind the end", 400 * PAGE, 2 * page, 0),
        ("odd offset", 5 * PAGE + 100, page, 0),
        ("odd length", 8 * PAGE, 1000, 0),
        ("odd address", 9 * PAGE, page, 13),
        ("odd all", 1_000_001, 70_001, 7),
        ("sectors", 512, 1024, 512),
        ("nothing", 0, 0, 0),
    ];
    for cache in CACHES {
        let Some(stage) = Stage::new("direct", cache) else { return };
        let open =
            |dir: &Path, flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(dir.join("direct"));
        for dir in stage.both() {
            new_file(&dir.join("direct"), &content(4, 320 * page + 77)).sync_all().expect("stored");
        }
        let [Ok(mount), Ok(plain)] = stage.both().map(|dir| open(dir, libc::O_DIRECT)) else {
            return eprintln!("SKIPPED direct: no O_DIRECT here");
        };
        // What the file system below refuses for its alignment works on the mount, as without the flag (P5).
        let buffered = open(&stage.plain, 0).expect("there");
        for (at, (name, offset, len, odd)) in calls.into_iter().enumerate() {
            let same = |what: &str, mount: Answer, plain: Answer, without: &dyn Fn() -> Answer| {
                let expected = if plain == Err(Errno::INVAL) { without() } else { plain };
                assert_eq!(mount, expected, "{cache}: {what} {name}; {plain:?} in a plain directory");
            };
            let mut bytes = [(); 3].map(|()| Aligned::new(len, odd));
            let [of_mount, of_plain, of_buffered] = bytes.each_mut().map(|bytes| bytes.get(len));
            let on_mount = pread(&mount, of_mount, offset);
            let on_plain = pread(&plain, of_plain, offset);
            let without = pread(&buffered, of_buffered, offset);
            same("read", on_mount, on_plain, &|| without);
            assert!(of_mount == of_buffered, "{cache}: {name}: other bytes are read");

            let mut bytes = Aligned::new(len, odd);
            bytes.get(len).copy_from_slice(&content(100 + at as u64, len));
            let bytes = bytes.get(len);
            let (on_mount, on_plain) = (pwrite(&mount, bytes, offset), pwrite(&plain, bytes, offset));
            same("write", on_mount, on_plain, &|| pwrite(&buffered, bytes, offset));
            let sizes = [&mount, &plain].map(|file| file.metadata().expect("open").len());
            assert_eq!(sizes[0], sizes[1], "{cache}: {name}: its size then");
        }
        // Who reads through the page cache sees what was written around it, and the other way.
        let through = open(stage.mount.path(), 0).expect("there");
        let mut aligned = Aligned::new(page, 0);
        for (fill, writer, reader) in [(1, &mount, &through), (2, &through, &mount), (3, &mount, &through)] {
            aligned.get(page).fill(fill);
            writer.write_all_at(aligned.get(page), 10 * PAGE).expect("writable");
            aligned.get(page).fill(0);
            reader.read_exact_at(aligned.get(page), 10 * PAGE).expect("readable");
            assert!(aligned.get(page).iter().all(|byte| *byte == fill), "{cache}: round {fill}");
        }
        plain.write_all_at(aligned.get(page), 10 * PAGE).expect("writable");
        drop((mount, plain, buffered, through));
        stage.end();
    }
}
