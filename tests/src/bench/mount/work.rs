//! The work itself: the same calls and programs in any directory, timed.

use std::{
    fs::{self, File, OpenOptions},
    hint::black_box,
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use super::rows::name;
use crate::rng::{Rng, content};

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Length of the large file.
    pub large_bytes: u64,
    /// Files that are made, looked at and removed one by one.
    pub files: u64,
    /// Files of the tree for tar, git and find.
    pub tree_files: u64,
    /// Writes with an fsync each.
    pub fsyncs: u64,
    /// Seconds of pgbench; 0: none.
    pub pgbench_seconds: u64,
}

/// Where the work is done.
pub struct Place<'a> {
    /// An empty directory.
    pub dir: &'a Path,
    /// Waits until nothing done so far keeps disk or link busy.
    pub quiet: &'a dyn Fn() -> io::Result<()>,
    /// Waits as `tandem wait` does until the replica is equal; `false`, and at once: none follows.
    pub settle: &'a dyn Fn() -> bool,
    /// Requests so far that somebody waited for; none where nobody counts them.
    pub requests: &'a dyn Fn() -> Option<u64>,
}

/// What a piece of work took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Took {
    /// Its time.
    pub seconds: f64,
    /// Requests to the mount that it waited for, if they were counted.
    pub requests: Option<u64>,
}

/// Takes what a row took.
pub type Record<'a> = &'a mut dyn FnMut(&'static str, Took);

const SMALL: usize = 4096;
const LARGE: usize = 1 << 20;
/// See [`Place::timed_of_many`].
const MANY: u64 = 10;

impl Place<'_> {
    fn timed(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<Took> {
        let before = (self.requests)();
        let took = timed(act)?;
        let requests = before.zip((self.requests)()).map(|(before, after)| after - before);
        Ok(Took { requests, ..took })
    }

    /// What one time takes of some, for what is over in some milliseconds: one alone would tell of the machine more than of the mount.
    fn timed_of_many(&self, mut act: impl FnMut() -> io::Result<()>) -> io::Result<Took> {
        let all = self.timed(|| (0..MANY).try_for_each(|_| act()))?;
        Ok(Took { seconds: all.seconds / MANY as f64, requests: all.requests.map(|requests| requests / MANY) })
    }
}

fn timed(act: impl FnOnce() -> io::Result<()>) -> io::Result<Took> {
    let begun = Instant::now();
    act()?;
    Ok(Took { seconds: begun.elapsed().as_secs_f64(), requests: None })
}

/// Makes the kernel forget: 1 pages, 2 names and inodes, 3 both.
fn drop_caches(what: u8) -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", what.to_string())
}

fn write_all(file: &File, block: &[u8], bytes: u64) -> io::Result<()> {
    let mut file = file;
    (0..bytes / block.len() as u64).try_for_each(|_| file.write_all(block))
}

fn read_all(path: &Path, buffer: &mut [u8]) -> io::Result<()> {
    let mut file = File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}

/// Reads and writes of one large file.
pub fn data(place: &Place<'_>, scale: &Scale, record: Record<'_>) -> io::Result<()> {
    let block = content(1, LARGE);
    let path = place.dir.join("large");
    (place.quiet)()?;
    let file = File::create(&path)?;
    let mut written = Instant::now();
    let took = place.timed(|| {
        write_all(&file, &block, scale.large_bytes)?;
        // Not later: the replica goes on while requests are counted.
        written = Instant::now();
        Ok(())
    })?;
    record(name::WRITE_LARGE, took);
    if (place.settle)() {
        record(name::EQUAL, Took { seconds: written.elapsed().as_secs_f64(), requests: None });
    }
    // Beside who writes a file others read it through the mount, whatever the options say.
    drop(file);
    (place.quiet)()?;
    cold_read(place, &path, record)?;
    warm_reads(&path, scale, record)?;
    OpenOptions::new().write(true).open(&path)?.set_len(0)?;
    let synced = small_writes(place, scale, record)?;
    fsyncs(place, scale, &synced, record)?;
    synced.set_len(0)
}

/// A read of a large file of which the kernel has nothing.
pub fn cold_read(place: &Place<'_>, path: &Path, record: Record<'_>) -> io::Result<()> {
    let mut buffer = vec![0; LARGE];
    drop_caches(3)?;
    record(name::READ_COLD, place.timed(|| read_all(path, &mut buffer))?);
    Ok(())
}

/// Reads of what the kernel has of a large file, which asks nobody for it.
pub fn warm_reads(path: &Path, scale: &Scale, record: Record<'_>) -> io::Result<()> {
    let mut buffer = vec![0; LARGE];
    read_all(path, &mut buffer)?;
    record(name::READ_WARM, timed(|| read_all(path, &mut buffer))?);
    let (reader, blocks) = (File::open(path)?, scale.large_bytes / SMALL as u64);
    let mut rng = Rng::new(3);
    let reads = blocks.min(200_000);
    let random = timed(|| {
        (0..reads).try_for_each(|_| reader.read_exact_at(&mut buffer[..SMALL], rng.below(blocks) * SMALL as u64))
    })?;
    record(name::READ_RANDOM, random);
    Ok(())
}

/// Writes of a page, in order and at random; to this file.
pub fn small_writes(place: &Place<'_>, scale: &Scale, record: Record<'_>) -> io::Result<File> {
    let (block, bytes) = (&content(1, SMALL), scale.large_bytes / 4);
    let file = OpenOptions::new().write(true).create_new(true).open(place.dir.join("small"))?;
    (place.quiet)()?;
    record(name::WRITE_SMALL, place.timed(|| write_all(&file, block, bytes))?);
    (place.quiet)()?;
    let (blocks, mut rng) = (bytes / SMALL as u64, Rng::new(5));
    let writes = blocks.min(50_000);
    let random =
        place.timed(|| (0..writes).try_for_each(|_| file.write_all_at(block, rng.below(blocks) * SMALL as u64)))?;
    record(name::WRITE_RANDOM, random);
    Ok(file)
}

fn fsyncs(place: &Place<'_>, scale: &Scale, file: &File, record: Record<'_>) -> io::Result<()> {
    let (block, blocks, mut rng) = (content(1, SMALL), scale.large_bytes / 4 / SMALL as u64, Rng::new(6));
    (place.quiet)()?;
    let synced = place.timed(|| {
        (0..scale.fsyncs).try_for_each(|_| {
            file.write_all_at(&block, rng.below(blocks) * SMALL as u64)?;
            file.sync_all()
        })
    })?;
    record(name::WRITE_FSYNC, synced);
    Ok(())
}

/// Names and attributes of many small files.
pub fn names(place: &Place<'_>, scale: &Scale, record: Record<'_>) -> io::Result<()> {
    let (block, mut buffer) = (content(2, SMALL), [0; SMALL]);
    let dir = place.dir.join("many");
    fs::create_dir(&dir)?;
    let paths: Vec<PathBuf> = (0..scale.files).map(|at| dir.join(format!("file-{at:06}"))).collect();
    (place.quiet)()?;
    record(name::CREATE, place.timed(|| paths.iter().try_for_each(|path| File::create(path)?.write_all(&block)))?);
    (place.quiet)()?;
    // Blocks stay in memory: what is measured is looking them up, not the disk.
    drop_caches(2)?;
    let look = || {
        paths.iter().try_for_each(|path| {
            // Not by the standard library: it asks for the time of birth, which the kernel asks a file system behind FUSE for once more.
            black_box(rustix::fs::lstat(path)?);
            io::Result::Ok(())
        })
    };
    record(name::STAT_COLD, place.timed(look)?);
    record(name::STAT_WARM, place.timed_of_many(look)?);
    let mut open = || paths.iter().try_for_each(|path| File::open(path)?.read_exact(&mut buffer));
    open()?;
    record(name::OPEN, place.timed_of_many(open)?);
    (place.quiet)()?;
    record(name::UNLINK, place.timed(|| paths.iter().try_for_each(fs::remove_file))?);
    Ok(())
}

fn program(dir: &Path, program: &str, args: &[&str]) -> io::Result<()> {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    match command.status()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("{program} {args:?} in {}: {status}", dir.display()))),
    }
}

/// What programs do with a tree of source files.
pub fn programs(place: &Place<'_>, archive: &Path, record: Record<'_>) -> io::Result<()> {
    let tree = place.dir.join("tree");
    fs::create_dir(&tree)?;
    unpack(place, &tree, archive, record)?;
    (place.quiet)()?;
    program(&tree, "find", &[".", "-type", "f"])?;
    record(name::FIND, place.timed_of_many(|| program(&tree, "find", &[".", "-type", "f"]))?);
    program(&tree, "git", &["init", "-q"])?;
    (place.quiet)()?;
    record(name::GIT_ADD, place.timed(|| program(&tree, "git", &["add", "-A"]))?);
    (place.quiet)()?;
    program(&tree, "git", &["status", "--porcelain"])?;
    record(name::GIT_STATUS, place.timed_of_many(|| program(&tree, "git", &["status", "--porcelain"]))?);
    (place.quiet)()?;
    record(name::REMOVE_TREE, place.timed(|| program(place.dir, "rm", &["-rf", "tree"]))?);
    Ok(())
}

/// Unpacks an archive into a directory.
pub fn unpack(place: &Place<'_>, tree: &Path, archive: &Path, record: Record<'_>) -> io::Result<()> {
    let archive = archive.to_str().ok_or_else(|| io::Error::other("the archive's path is no text"))?;
    (place.quiet)()?;
    record(name::TAR, place.timed(|| program(tree, "tar", &["xf", archive]))?);
    Ok(())
}

/// Makes an archive of a tree that looks like sources: directories of some 20 files, most of them short.
pub fn make_archive(scratch: &Path, files: u64) -> io::Result<PathBuf> {
    let (tree, archive) = (scratch.join("sources"), scratch.join("sources.tar"));
    let mut rng = Rng::new(11);
    for at in 0..files {
        let dir = tree.join(format!("part-{}", at / 400)).join(format!("module-{}", at / 20));
        if at % 20 == 0 {
            fs::create_dir_all(&dir)?;
        }
        // Most are some KiB, a few are long.
        let len = 200 + rng.below(6000) + if rng.chance(3) { rng.below(120_000) } else { 0 };
        let text: String = content(at, len as usize / 2).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(dir.join(format!("source-{at}.rs")), text)?;
    }
    let text = archive.to_str().ok_or_else(|| io::Error::other("the archive's path is no text"))?;
    program(&tree, "tar", &["cf", text, "."])?;
    fs::remove_dir_all(&tree)?;
    Ok(archive)
}
