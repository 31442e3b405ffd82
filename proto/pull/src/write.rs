//! Writes pulled inodes beneath a folder.
//!
//! What an earlier, interrupted run left is overwritten, never trusted: size and mtime of a file that was being written when the
//! state was read say nothing about its bytes.

use std::{
    ffi::CString,
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{FileExt as _, PermissionsExt as _},
        },
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use tandem_proto::{Attr, NodeKind, convert, pb};

use crate::{PullError, Pulled};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// A regular file that is being filled.
struct Filling {
    shown: String,
    file: File,
    attr: Attr,
    xattrs: Vec<(Bytes, Bytes)>,
    size: u64,
}

type Xattrs = Vec<(Bytes, Bytes)>;

/// Fills one folder. It can be run again over what an earlier run left.
pub struct Writer {
    directory: PathBuf,
    root: OwnedFd,
    filling: Option<Filling>,
    /// Directories get their attributes at the end: filling them changes their mtime, and a mode may forbid it.
    directories: Vec<(Vec<u8>, Attr, Xattrs)>,
    received: u64,
    pulled: Pulled,
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}

/// Joins checked names.
fn joined(path: &[Bytes]) -> Result<Vec<u8>, PullError> {
    let mut joined = Vec::new();
    for name in path {
        let name = convert::name("path", name.clone()).map_err(invalid)?;
        if !joined.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(name.as_bytes());
    }
    Ok(joined)
}

fn invalid(error: convert::Invalid) -> PullError {
    PullError::Io { path: "what the replica sent".into(), source: io::Error::new(io::ErrorKind::InvalidData, error) }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn on<E: Into<io::Error>>(path: &[u8]) -> impl FnOnce(E) -> PullError + '_ {
    |error| PullError::Io { path: shown(path), source: error.into() }
}

impl Writer {
    /// Writes into an existing folder.
    pub fn open(directory: &Path) -> Result<Writer, PullError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root =
            rustix::fs::openat(CWD, directory, flags, Mode::empty()).map_err(on(directory.as_os_str().as_bytes()))?;
        Ok(Writer {
            directory: directory.to_owned(),
            root,
            filling: None,
            directories: Vec::new(),
            received: 0,
            pulled: Pulled::default(),
        })
    }

    /// What was written so far.
    pub fn pulled(&self) -> Pulled {
        self.pulled
    }

    /// Inodes that came, the root included.
    pub fn received(&self) -> u64 {
        self.received
    }

    fn beneath(&self, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { &b"."[..] } else { path };
        Ok(rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, BENEATH)?)
    }

    /// The directory that holds `path`, and the last name.
    fn parent<'a>(&self, path: &'a [u8]) -> Result<(OwnedFd, &'a [u8]), PullError> {
        let (dir, name) = split(path);
        let dir = self.beneath(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).map_err(on(path))?;
        Ok((dir, name))
    }

    /// Makes an inode. Directories get their attributes, and files their mtime, when they are filled.
    pub fn node(&mut self, node: pb::PullNode) -> Result<(), PullError> {
        self.finish_file()?;
        self.received += 1;
        let path = joined(&node.path)?;
        let attr = convert::attr_complete(&node.attr).map_err(invalid)?;
        let xattrs = convert::xattr_set(node.xattrs).map_err(invalid)?;
        let kind = node.kind.ok_or_else(|| on(&path)(io::Error::from(io::ErrorKind::InvalidData)))?;
        let kind = NodeKind::try_from(kind).map_err(invalid)?;
        if path.is_empty() {
            self.directories.push((path, attr, xattrs));
            return Ok(());
        }
        self.pulled.nodes += 1;
        let (dir, name) = self.parent(&path)?;
        match &kind {
            NodeKind::Directory => {
                match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(on(&path)(error)),
                }
                // One of an earlier run has its own mode already, which may forbid filling it.
                let made = self.beneath(&path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map_err(on(&path))?;
                rustix::fs::fchmod(&made, Mode::RWXU).map_err(on(&path))?;
                self.directories.push((path, attr, xattrs));
                Ok(())
            }
            NodeKind::Regular => self.begin_file(path, attr, xattrs, node.size),
            NodeKind::Symlink(target) => {
                make_anew(&dir, name, |dir, name| rustix::fs::symlinkat(&target[..], dir, name)).map_err(on(&path))?;
                self.pulled.left_out += set_special(&dir, name, &attr, &xattrs, true).map_err(on(&path))?;
                Ok(())
            }
            NodeKind::Fifo => self.special(&dir, &path, FileType::Fifo, (0, 0), &attr, &xattrs),
            NodeKind::Socket => self.special(&dir, &path, FileType::Socket, (0, 0), &attr, &xattrs),
            NodeKind::CharDevice { major, minor } => {
                self.special(&dir, &path, FileType::CharacterDevice, (*major, *minor), &attr, &xattrs)
            }
            NodeKind::BlockDevice { major, minor } => {
                self.special(&dir, &path, FileType::BlockDevice, (*major, *minor), &attr, &xattrs)
            }
        }
    }

    fn special(
        &mut self,
        dir: &OwnedFd,
        path: &[u8],
        kind: FileType,
        device: (u32, u32),
        attr: &Attr,
        xattrs: &[(Bytes, Bytes)],
    ) -> Result<(), PullError> {
        let (_, name) = split(path);
        let device = rustix::fs::makedev(device.0, device.1);
        let mode = Mode::from_raw_mode(0o600);
        match make_anew(dir, name, |dir, name| rustix::fs::mknodat(dir, name, kind, mode, device)) {
            Ok(()) => {
                self.pulled.left_out += set_special(dir, name, attr, xattrs, false).map_err(on(path))?;
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                tracing::warn!(path = shown(path), "only root may make a device: it is left out");
                self.pulled.left_out += 1;
                Ok(())
            }
            Err(error) => Err(on(path)(error)),
        }
    }

    fn begin_file(
        &mut self,
        path: Vec<u8>,
        attr: Attr,
        xattrs: Vec<(Bytes, Bytes)>,
        size: u64,
    ) -> Result<(), PullError> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW;
        let fd = match self.beneath(&path, flags, Mode::from_raw_mode(0o600)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                // Complete from an earlier run, with a mode that forbids its owner to write. Written anew.
                let (dir, name) = self.parent(&path)?;
                rustix::fs::unlinkat(&dir, name, AtFlags::empty()).map_err(on(&path))?;
                self.beneath(&path, flags, Mode::from_raw_mode(0o600))
            }
            result => result,
        };
        let file = File::from(fd.map_err(on(&path))?);
        file.set_len(0).and_then(|()| file.set_len(size)).map_err(on(&path))?;
        self.filling = Some(Filling { shown: shown(&path), file, attr, xattrs, size });
        Ok(())
    }

    /// Writes bytes of the file that came last.
    pub fn data(&mut self, data: &pb::PullData) -> Result<(), PullError> {
        let Some(filling) = &self.filling else {
            return Err(on(b"data")(io::Error::new(io::ErrorKind::InvalidData, "it belongs to no file")));
        };
        let fails = |source| PullError::Io { path: filling.shown.clone(), source };
        let end = data.offset.checked_add(data.data.len() as u64);
        if crc32c::crc32c(&data.data) != data.crc32c || end.is_none_or(|end| end > filling.size) {
            return Err(fails(io::Error::new(io::ErrorKind::InvalidData, "the bytes are not those that were sent")));
        }
        filling.file.write_all_at(&data.data, data.offset).map_err(fails)?;
        self.pulled.bytes += data.data.len() as u64;
        Ok(())
    }

    fn finish_file(&mut self) -> Result<(), PullError> {
        let Some(filling) = self.filling.take() else { return Ok(()) };
        self.pulled.left_out += set_open(&filling.file, &filling.attr, &filling.xattrs)
            .map_err(|source| PullError::Io { path: filling.shown.clone(), source })?;
        Ok(())
    }

    /// Gives an inode that came a further name.
    pub fn link(&mut self, link: &pb::PullLink) -> Result<(), PullError> {
        self.finish_file()?;
        let (path, target) = (joined(&link.path)?, joined(&link.target)?);
        let (dir, name) = self.parent(&path)?;
        let (target_dir, target_name) = self.parent(&target)?;
        make_anew(&dir, name, |dir, name| rustix::fs::linkat(&target_dir, target_name, dir, name, AtFlags::empty()))
            .map_err(on(&path))
    }

    /// Attributes of directories, and everything on disk.
    pub fn finish(&mut self) -> Result<Pulled, PullError> {
        self.finish_file()?;
        for (path, attr, xattrs) in std::mem::take(&mut self.directories).iter().rev() {
            let dir = self.beneath(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map_err(on(path))?;
            self.pulled.left_out += set_open(&File::from(dir), attr, xattrs).map_err(on(path))?;
        }
        rustix::fs::syncfs(&self.root).map_err(on(self.directory.as_os_str().as_bytes()))?;
        Ok(self.pulled)
    }
}

/// Makes a name, replacing one of an earlier run.
fn make_anew(dir: &OwnedFd, name: &[u8], make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>) -> io::Result<()> {
    match make(dir, name) {
        Err(rustix::io::Errno::EXIST) => {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            Ok(make(dir, name)?)
        }
        result => Ok(result?),
    }
}

/// Only root gives files away and sets some attributes: how many were left out for that, 0 or 1.
fn unless_refused(result: rustix::io::Result<()>) -> io::Result<u64> {
    match result {
        Err(rustix::io::Errno::PERM) => Ok(1),
        result => Ok(result.map(|()| 0)?),
    }
}

fn times(attr: &Attr) -> Timestamps {
    let mtime = Timespec { tv_sec: attr.mtime.seconds, tv_nsec: i64::from(attr.mtime.nanos) };
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn set_open(file: &File, attr: &Attr, xattrs: &[(Bytes, Bytes)]) -> io::Result<u64> {
    let (uid, gid) = (Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)));
    let mut left_out = unless_refused(rustix::fs::fchown(file, uid, gid))?;
    file.set_permissions(Permissions::from_mode(attr.mode))?;
    for (name, value) in xattrs {
        left_out += unless_refused(rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty()))?;
    }
    rustix::fs::futimens(file, &times(attr))?;
    Ok(left_out)
}

/// Attributes of what cannot be opened.
fn set_special(dir: &OwnedFd, name: &[u8], attr: &Attr, xattrs: &[(Bytes, Bytes)], link: bool) -> io::Result<u64> {
    let (uid, gid) = (Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)));
    let mut left_out = unless_refused(rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
    if !link {
        // Just made by us in a folder of ours, and no link: nothing else can be meant.
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(attr.mode), AtFlags::empty())?;
    }
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let path = CString::new(path)?;
    for (name, value) in xattrs {
        left_out += unless_refused(rustix::fs::lsetxattr(&path, &name[..], value, XattrFlags::empty()))?;
    }
    rustix::fs::utimensat(dir, name, &times(attr), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(left_out)
}
