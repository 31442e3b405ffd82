//! Exact comparison of two trees: names as bytes, link structure, types, bytes, size, mode, owner, mtime to the nanosecond,
//! xattrs with ACLs, device numbers, symlink targets. Not atime, ctime, inode numbers or allocation.
//!
//! Works by descriptors, so any depth and any name is fine. Holes are not read. Neither tree may change meanwhile.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, StatxFlags},
    io::Errno,
};

/// What counts.
#[derive(Clone, Debug)]
pub struct Options {
    /// Times of modification.
    pub mtime: bool,
    /// Differences after which the comparison ends.
    pub limit: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { mtime: true, limit: 40 }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where, from the root of both.
    pub path: Vec<u8>,
    /// What is there on the left and on the right.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { b"." } else { self.path.as_slice() };
        write!(f, "{}: {}", path.escape_ascii(), self.what)
    }
}

/// What a comparison saw.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Objects that both trees have.
    pub objects: u64,
    /// Bytes of file data compared, holes not counted.
    pub bytes: u64,
    /// All differences, up to the limit.
    pub differences: Vec<Difference>,
}

impl Comparison {
    /// One line a difference; empty if there is none.
    pub fn report(&self) -> String {
        self.differences.iter().map(|difference| format!("{difference}\n")).collect()
    }
}

/// Compares the trees below two directories, the directories themselves included.
pub fn trees(left: &Path, right: &Path, options: &Options) -> io::Result<Comparison> {
    let mut walk = Walk { options, seen: Comparison::default(), links: [HashMap::new(), HashMap::new()] };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let left = rustix::fs::open(left, flags, Mode::empty())?;
    let right = rustix::fs::open(right, flags, Mode::empty())?;
    let stats = [rustix::fs::fstat(&left)?, rustix::fs::fstat(&right)?];
    walk.attributes(&[], &stats, || asked_again(left.as_fd(), b""));
    let xattrs = [read_xattrs(&fd_path(left.as_fd(), b""))?, read_xattrs(&fd_path(right.as_fd(), b""))?];
    walk.xattrs(&[], &xattrs);
    walk.directory(&[], [left, right])?;
    Ok(walk.seen)
}

/// Panics with the list of differences, if there are any.
pub fn assert_equal(left: &Path, right: &Path) -> Comparison {
    assert_equal_with(left, right, &Options::default())
}

/// Panics with the list of differences that count by `options`, if there are any.
pub fn assert_equal_with(left: &Path, right: &Path, options: &Options) -> Comparison {
    match trees(left, right, options) {
        Ok(seen) if seen.differences.is_empty() => seen,
        Ok(seen) => panic!("{} and {} differ:\n{}", left.display(), right.display(), seen.report()),
        Err(error) => panic!("{} and {} cannot be compared: {error}", left.display(), right.display()),
    }
}

struct Walk<'a> {
    options: &'a Options,
    seen: Comparison,
    /// First path of each inode that has several names.
    links: [HashMap<(u64, u64), Vec<u8>>; 2],
}

impl Walk<'_> {
    fn full(&self) -> bool {
        self.seen.differences.len() >= self.options.limit
    }

    fn differ(&mut self, path: &[u8], what: String) {
        if !self.full() {
            self.seen.differences.push(Difference { path: path.to_vec(), what });
        }
    }

    fn directory(&mut self, path: &[u8], dirs: [OwnedFd; 2]) -> io::Result<()> {
        let mut names: BTreeMap<Vec<u8>, [bool; 2]> = BTreeMap::new();
        for (side, dir) in dirs.iter().enumerate() {
            for name in list(dir.as_fd())? {
                names.entry(name).or_default()[side] = true;
            }
        }
        for (name, there) in names {
            if self.full() {
                break;
            }
            let mut child = path.to_vec();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(&name);
            match there {
                [true, true] => {
                    if let Err(error) = self.object(&child, [dirs[0].as_fd(), dirs[1].as_fd()], &name) {
                        self.differ(&child, format!("cannot be compared: {error}"));
                    }
                }
                [true, false] => self.differ(&child, format!("only on the left ({})", describe(&dirs[0], &name))),
                _ => self.differ(&child, format!("only on the right ({})", describe(&dirs[1], &name))),
            }
        }
        Ok(())
    }

    fn object(&mut self, path: &[u8], dirs: [BorrowedFd<'_>; 2], name: &[u8]) -> io::Result<()> {
        self.seen.objects += 1;
        let stats = [
            rustix::fs::statat(dirs[0], name, AtFlags::SYMLINK_NOFOLLOW)?,
            rustix::fs::statat(dirs[1], name, AtFlags::SYMLINK_NOFOLLOW)?,
        ];
        let types = stats.map(|stat| FileType::from_raw_mode(stat.st_mode));
        if types[0] != types[1] {
            self.differ(path, format!("type {:?} | {:?}", types[0], types[1]));
            return Ok(());
        }
        if types[0] != FileType::Directory && !self.first_name(path, &stats) {
            return Ok(());
        }
        self.attributes(path, &stats, || asked_again(dirs[0], name));
        let xattrs = [read_xattrs(&fd_path(dirs[0], name))?, read_xattrs(&fd_path(dirs[1], name))?];
        self.xattrs(path, &xattrs);
        match types[0] {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = [
                    rustix::fs::openat(dirs[0], name, flags, Mode::empty())?,
                    rustix::fs::openat(dirs[1], name, flags, Mode::empty())?,
                ];
                self.directory(path, inner)?;
            }
            FileType::RegularFile => self.bytes(path, dirs, name, &stats)?,
            FileType::Symlink => {
                let targets = [
                    rustix::fs::readlinkat(dirs[0], name, Vec::new())?,
                    rustix::fs::readlinkat(dirs[1], name, Vec::new())?,
                ];
                if targets[0] != targets[1] {
                    self.differ(path, format!("target {:?} | {:?}", targets[0], targets[1]));
                }
            }
            FileType::CharacterDevice | FileType::BlockDevice if stats[0].st_rdev != stats[1].st_rdev => {
                self.differ(path, format!("device {:#x} | {:#x}", stats[0].st_rdev, stats[1].st_rdev));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether this is the first name of its inode on both sides; records a difference of the link structure.
    fn first_name(&mut self, path: &[u8], stats: &[Stat; 2]) -> bool {
        let mut firsts = [None, None];
        for side in 0..2 {
            let inode = (stats[side].st_dev, stats[side].st_ino);
            match self.links[side].get(&inode) {
                Some(first) => firsts[side] = Some(first.clone()),
                None if stats[side].st_nlink > 1 => {
                    self.links[side].insert(inode, path.to_vec());
                }
                None => {}
            }
        }
        if firsts[0] != firsts[1] {
            let show = |first: &Option<Vec<u8>>| match first {
                Some(first) => format!("link of {}", first.escape_ascii()),
                None => "a file of its own".to_owned(),
            };
            self.differ(path, format!("{} | {}", show(&firsts[0]), show(&firsts[1])));
        }
        firsts == [None, None]
    }

    fn attributes(&mut self, path: &[u8], [left, right]: &[Stat; 2], asked_again: impl FnOnce() -> Option<(i64, u32)>) {
        let is_link = FileType::from_raw_mode(left.st_mode) == FileType::Symlink;
        if !is_link && left.st_mode != right.st_mode {
            self.differ(path, format!("mode {:o} | {:o}", left.st_mode & 0o7777, right.st_mode & 0o7777));
        }
        if (left.st_uid, left.st_gid) != (right.st_uid, right.st_gid) {
            self.differ(path, format!("owner {}:{} | {}:{}", left.st_uid, left.st_gid, right.st_uid, right.st_gid));
        }
        let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
        if self.options.mtime && time(left) != time(right) {
            let ((ls, ln), (rs, rn)) = (time(left), time(right));
            let again = match asked_again() {
                Some((seconds, nanos)) if (seconds, u64::from(nanos)) != (ls, ln) => {
                    format!(" (asked past the kernel's cache, the left says {seconds}.{nanos:09})")
                }
                _ => String::new(),
            };
            self.differ(path, format!("mtime {ls}.{ln:09} | {rs}.{rn:09}{again}"));
        }
    }

    fn xattrs(&mut self, path: &[u8], [left, right]: &[Xattrs; 2]) {
        if left == right {
            return;
        }
        let names: std::collections::BTreeSet<&Vec<u8>> = left.keys().chain(right.keys()).collect();
        for name in names {
            let show = |value: Option<&Vec<u8>>| match value {
                Some(value) => format!(
                    "{} bytes {}",
                    value.len(),
                    value.iter().take(16).map(|b| format!("{b:02x}")).collect::<String>()
                ),
                None => "none".to_owned(),
            };
            if left.get(name) != right.get(name) {
                let (left, right) = (show(left.get(name)), show(right.get(name)));
                self.differ(path, format!("xattr {}: {left} | {right}", name.escape_ascii()));
            }
        }
    }

    fn bytes(&mut self, path: &[u8], dirs: [BorrowedFd<'_>; 2], name: &[u8], stats: &[Stat; 2]) -> io::Result<()> {
        if stats[0].st_size != stats[1].st_size {
            self.differ(path, format!("size {} | {}", stats[0].st_size, stats[1].st_size));
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let files = [
            File::from(rustix::fs::openat(dirs[0], name, flags, Mode::empty())?),
            File::from(rustix::fs::openat(dirs[1], name, flags, Mode::empty())?),
        ];
        let size = stats[0].st_size as u64;
        let mut at = 0;
        let mut buffers = [vec![0; 1 << 20], vec![0; 1 << 20]];
        while at < size {
            // What is a hole on both sides is equal.
            let data = next_data(&files[0], at, size).min(next_data(&files[1], at, size));
            if data >= size {
                break;
            }
            at = data & !4095;
            let len = (size - at).min(1 << 20) as usize;
            for (file, buffer) in files.iter().zip(&mut buffers) {
                file.read_exact_at(&mut buffer[..len], at)?;
            }
            self.seen.bytes += len as u64;
            if buffers[0][..len] != buffers[1][..len] {
                let place = (0..len).find(|&i| buffers[0][i] != buffers[1][i]).unwrap_or(0);
                let end = (0..len).rfind(|&i| buffers[0][i] != buffers[1][i]).unwrap_or(0);
                let (l, r) = (buffers[0][place], buffers[1][place]);
                let (from, to) = (at + place as u64, at + end as u64);
                self.differ(path, format!("bytes differ from {from} to {to} of {size} (first {l:#04x} | {r:#04x})"));
                return Ok(());
            }
            at += len as u64;
        }
        Ok(())
    }
}

/// Where data begins at or after `at`; a file system that does not know says `at`.
fn next_data(file: &File, at: u64, size: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(Errno::NXIO) => size,
        Err(_) => at,
    }
}

fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// The mtime of an object as its file system says it now, not as the kernel remembers it of a mount.
fn asked_again(dir: BorrowedFd<'_>, name: &[u8]) -> Option<(i64, u32)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let seen = rustix::fs::statx(dir, name, flags, StatxFlags::MTIME).ok()?;
    Some((seen.stx_mtime.tv_sec, seen.stx_mtime.tv_nsec))
}

fn describe(dir: &OwnedFd, name: &[u8]) -> String {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => format!("{:?}, {} bytes", FileType::from_raw_mode(stat.st_mode), stat.st_size),
        Err(error) => error.to_string(),
    }
}

fn fd_path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let dir = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    if name.is_empty() { dir.join(".") } else { dir.join(OsStr::from_bytes(name)) }
}

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

fn read_xattrs(path: &Path) -> io::Result<Xattrs> {
    let mut names = vec![0u8; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Err(Errno::OPNOTSUPP) => 0,
        len => len?,
    };
    let mut xattrs = BTreeMap::new();
    // What xfs shows as trusted.SGI_ACL_* are the ACLs, which are compared by their common names.
    let counts =
        |name: &&[u8]| !name.is_empty() && *name != b"security.selinux" && !name.starts_with(b"trusted.SGI_ACL_");
    for name in names[..len].split(|byte| *byte == 0).filter(counts) {
        let mut value = vec![0u8; 64 << 10];
        match rustix::fs::lgetxattr(path, name, &mut value) {
            Ok(len) => {
                value.truncate(len);
                xattrs.insert(name.to_vec(), value);
            }
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{Options, trees};

    fn report(left: &Path, right: &Path) -> String {
        trees(left, right, &Options { mtime: false, ..Options::default() }).expect("both can be read").report()
    }

    fn pair() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        for side in [&left, &right] {
            fs::create_dir_all(side.join("d")).expect("new");
            fs::write(side.join("d/f"), "same").expect("new");
            fs::hard_link(side.join("d/f"), side.join("g")).expect("new");
        }
        (dir, left, right)
    }

    #[test]
    fn equal_trees_have_no_difference() {
        let (_dir, left, right) = pair();
        assert_eq!(report(&left, &right), "");
    }

    #[test]
    fn each_kind_of_difference_is_seen() {
        let (_dir, left, right) = pair();
        fs::write(left.join("only"), "").expect("new");
        fs::remove_file(right.join("g")).expect("there");
        fs::write(right.join("g"), "same").expect("new");
        fs::write(left.join("d/h"), [0, 1, 2]).expect("new");
        fs::write(right.join("d/h"), [0, 1, 3]).expect("new");
        std::os::unix::fs::symlink("a", left.join("s")).expect("new");
        std::os::unix::fs::symlink("b", right.join("s")).expect("new");
        let report = report(&left, &right);
        for expected in [
            "only: only on the left",
            "g: link of d/f | a file of its own",
            "d/h: bytes differ from 2 to 2",
            "s: target",
        ] {
            assert!(report.contains(expected), "{expected:?} is missing in:\n{report}");
        }
    }
}
