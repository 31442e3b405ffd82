//! Finds deleted and replaced files in `history/`, and reads them.
//!
//! Places are `open` (being filled), `deleted-EPOCH-SEQ` (closed) and `EPOCH-SEQ` (what a resync replaced); in each a file stands at the
//! path that it had, and a deleted directory, empty. Everything is opened beneath `history/`, without following links: neither a place nor a path of a request can
//! lead elsewhere.

use std::{
    collections::BinaryHeap,
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use tandem_proto::{ids::Name, pb};

use crate::apply::{KEPT_CLOSED, KEPT_OPEN, original_name};

/// Files that one answer lists.
pub const LIMIT_MAX: usize = 100_000;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// A kept file, ordered by when it was deleted, the newest first: a heap then gives up the oldest.
struct ByTime(pb::KeptItem);

impl PartialEq for ByTime {
    fn eq(&self, other: &Self) -> bool {
        self.0.deleted_ns == other.0.deleted_ns
    }
}

impl Eq for ByTime {}

impl PartialOrd for ByTime {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByTime {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.deleted_ns.cmp(&self.0.deleted_ns)
    }
}

fn is_place(name: &str) -> bool {
    let position = name.strip_prefix(KEPT_CLOSED).unwrap_or(name).split_once('-');
    name == KEPT_OPEN || position.is_some_and(|(epoch, seq)| epoch.parse::<u64>().is_ok() && seq.parse::<u64>().is_ok())
}

fn ns(seconds: i64, nanos: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

fn file_type(mode: u32) -> pb::FileType {
    match mode & libc::S_IFMT {
        libc::S_IFREG => pb::FileType::Regular,
        libc::S_IFDIR => pb::FileType::Directory,
        libc::S_IFLNK => pb::FileType::Symlink,
        libc::S_IFIFO => pb::FileType::Fifo,
        libc::S_IFSOCK => pb::FileType::Socket,
        libc::S_IFCHR => pb::FileType::CharDevice,
        _ => pb::FileType::BlockDevice,
    }
}

/// What is kept at or below `top`, the newest `limit`, oldest first. Blocks on the disk.
pub fn list(history: &Path, top: &[Bytes], limit: usize) -> io::Result<Vec<pb::KeptItem>> {
    let limit = if limit == 0 { LIMIT_MAX } else { limit.min(LIMIT_MAX) };
    let mut found = BinaryHeap::new();
    let entries = match fs::read_dir(history) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if let Some(place) = name.to_str().filter(|place| is_place(place)) {
            walk(&history.join(place), place, top, limit, &mut found)?;
        }
    }
    let mut items: Vec<_> = found.into_iter().map(|item| item.0).collect();
    items.sort_by_key(|item| item.deleted_ns);
    Ok(items)
}

/// Of a directory; what went meanwhile counts as one that holds something.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn walk(directory: &Path, place: &str, top: &[Bytes], limit: usize, found: &mut BinaryHeap<ByTime>) -> io::Result<()> {
    let why = if place == KEPT_OPEN || place.starts_with(KEPT_CLOSED) { "deleted" } else { "resynced" };
    let mut open: Vec<(PathBuf, Vec<Bytes>)> = vec![(directory.to_owned(), Vec::new())];
    while let Some((path, stored)) = open.pop() {
        let entries = match fs::read_dir(&path) {
            // Closed, or deleted for room, in the middle.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let mut here = stored.clone();
            here.push(Bytes::from(entry.file_name().into_vec()));
            let original: Vec<Bytes> = here.iter().map(|name| Bytes::copy_from_slice(original_name(name))).collect();
            let shared = original.len().min(top.len());
            if original[..shared] != top[..shared] {
                continue;
            }
            let Ok(is) = entry.metadata() else { continue };
            if is.is_dir() && !is_empty(&entry.path()) {
                open.push((entry.path(), here));
                continue;
            }
            if original.len() < top.len() {
                continue;
            }
            found.push(ByTime(pb::KeptItem {
                place: place.to_owned(),
                path: original,
                deleted_ns: ns(is.ctime(), is.ctime_nsec()),
                r#type: file_type(is.mode()).into(),
                size: if is.is_file() { is.len() } else { 0 },
                mtime_ns: ns(is.mtime(), is.mtime_nsec()),
                why: why.to_owned(),
                stored: here,
            }));
            if found.len() > limit {
                found.pop();
            }
        }
    }
    Ok(())
}

/// A kept file, opened.
pub struct Kept {
    /// What it is, as a node without a path.
    pub node: pb::PullNode,
    /// Its data, of a regular file.
    pub file: Option<File>,
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.to_owned())
}

/// Opens a file that [`list`] found.
pub fn open(history: &Path, place: &str, stored: &[Bytes]) -> io::Result<Kept> {
    if !is_place(place) || stored.is_empty() {
        return Err(invalid("no such place"));
    }
    let mut path = PathBuf::from(place);
    for name in stored {
        let name = Name::new(name.clone()).ok_or_else(|| invalid("no file name"))?;
        path.push(OsStr::from_bytes(name.as_bytes()));
    }
    let root = rustix::fs::openat(CWD, history, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let object = rustix::fs::openat2(&root, &path, flags, Mode::empty(), BENEATH)?;
    let is = rustix::fs::fstat(&object)?;
    let by_fd = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&object)));
    let mut kind = pb::NodeKind { r#type: file_type(is.st_mode).into(), ..Default::default() };
    let mut file = None;
    match file_type(is.st_mode) {
        pb::FileType::Regular | pb::FileType::Directory => file = Some(File::open(&by_fd)?),
        pb::FileType::Symlink => {
            kind.target = Bytes::from(rustix::fs::readlinkat(&object, "", Vec::new())?.into_bytes());
        }
        pb::FileType::CharDevice | pb::FileType::BlockDevice => {
            (kind.rdev_major, kind.rdev_minor) = (rustix::fs::major(is.st_rdev), rustix::fs::minor(is.st_rdev));
        }
        _ => {}
    }
    let attr = pb::Attr {
        id: Bytes::new(),
        mode: Some(is.st_mode & 0o7777),
        uid: Some(is.st_uid),
        gid: Some(is.st_gid),
        mtime_s: Some(is.st_mtime),
        mtime_ns: is.st_mtime_nsec as u32,
    };
    let xattrs = match &file {
        Some(file) => xattrs(file)?,
        None => Vec::new(),
    };
    let file = file.filter(|_| kind.r#type() == pb::FileType::Regular);
    let size = if file.is_some() { is.st_size.cast_unsigned() } else { 0 };
    Ok(Kept { node: pb::PullNode { path: Vec::new(), kind: Some(kind), attr: Some(attr), xattrs, size }, file })
}

/// Extended attributes that are state.
fn xattrs(file: &File) -> io::Result<Vec<pb::Xattr>> {
    let mut names = vec![0; 64 << 10];
    let len = match rustix::fs::flistxattr(file, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        len => len?,
    };
    let mut found = Vec::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !crate::tree::is_state_xattr(name) {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let Ok(len) = rustix::fs::fgetxattr(file, name, &mut value[..]) else { continue };
        value.truncate(len);
        found.push(pb::Xattr { id: Bytes::new(), name: Bytes::copy_from_slice(name), value: Some(Bytes::from(value)) });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;
    use tandem_proto::pb::FileType;

    use super::{is_place, list, open};

    #[test]
    fn kept_files_are_found_by_the_path_that_they_had() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for (place, path) in
            [("open", "a/f"), ("open", "a/f.~3~"), ("deleted-1-9", "a/b/g"), ("1-4", "h"), ("ops", "x")]
        {
            let file = dir.path().join(place).join(path);
            fs::create_dir_all(file.parent().expect("below")).expect("made");
            fs::write(file, path).expect("written");
        }
        let names = |top: &[&'static str]| {
            let top: Vec<_> = top.iter().map(|name| Bytes::from_static(name.as_bytes())).collect();
            let found = list(dir.path(), &top, 0).expect("listed");
            let mut found: Vec<_> = found.iter().map(|item| item.path.join(&b'/').escape_ascii().to_string()).collect();
            found.sort();
            found
        };
        assert_eq!(names(&[]), ["a/b/g", "a/f", "a/f", "h"]);
        assert_eq!(names(&["a", "f"]), ["a/f", "a/f"]);
        assert_eq!(names(&["a", "b"]), ["a/b/g"]);
        assert!(names(&["z"]).is_empty());
        fs::create_dir(dir.path().join("open/a.~7~")).expect("made");
        assert_eq!(names(&["a"]), ["a", "a/b/g", "a/f", "a/f"], "a directory that was deleted is empty");
        let deleted = open(dir.path(), "open", &[Bytes::from_static(b"a.~7~")]).expect("there");
        assert!(deleted.file.is_none() && deleted.node.kind.is_some_and(|kind| kind.r#type() == FileType::Directory));
        let path = ["a", "f.~3~"].map(|name| Bytes::from_static(name.as_bytes()));
        assert_eq!(open(dir.path(), "open", &path).expect("there").node.size, 7);
        assert!(
            open(dir.path(), "..", &path).is_err() && open(dir.path(), "open", &[Bytes::from_static(b"..")]).is_err()
        );
        assert!(!is_place("ops") && !is_place("..") && is_place("3-4"));
    }
}
