//! New names: files, directories, special files, symbolic and hard links.
//!
//! What is born belongs to its caller, as the backing file system would have made it for that caller: umask or default ACL are
//! applied by the backing itself, the group of a setgid directory is inherited, everything else is given to the caller.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    sync::Arc,
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use smallvec::smallvec;
use tandem_proto::{Change, Changes, InodeId, Name};

use super::{
    Caller, Entry, Journal, Opened, Reserved as _, Vfs, VfsError, VfsResult, attr_change,
    caller::adopt_umask,
    checked_name,
    data::backing_flags,
    inodes::{Inode, Locks},
    mtime_change,
};
use crate::{
    backing::sys::{self, Stat},
    commit::{ATTRIBUTES, MarkCell},
};

/// What a call that makes something needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Making<'a> {
    /// Who makes it.
    pub caller: Caller,
    /// Its umask.
    pub umask: u32,
    /// Directory.
    pub parent: u64,
    /// Name in it.
    pub name: &'a OsStr,
}

/// Something that was just made.
pub(super) struct Born {
    pub id: InodeId,
    pub stat: Stat,
    pub fd: OwnedFd,
}

impl<J: Journal> Vfs<J> {
    /// Creates and opens a regular file. If it exists and `flags` do not forbid it, it is opened.
    pub fn create(&self, making: Making<'_>, mode: u32, flags: i32) -> VfsResult<(Entry, Opened)> {
        self.room_for_another()?;
        let open_flags = backing_flags(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let result = self.make(making, false, |dir, name| {
            rustix::fs::openat(dir, name, open_flags, Mode::from_raw_mode(mode & 0o7777)).map(Some)
        });
        match result {
            Ok((entry, fd, inode)) => self.opened(entry, fd, inode, flags),
            Err(VfsError::Backing(error))
                if error.raw_os_error() == Some(libc::EEXIST) && flags & libc::O_EXCL == 0 =>
            {
                self.create_existing(making, flags)
            }
            Err(error) => Err(error),
        }
    }

    fn create_existing(&self, making: Making<'_>, flags: i32) -> VfsResult<(Entry, Opened)> {
        let mut entry = self.lookup(making.caller, making.parent, making.name)?;
        let opened = self.open(entry.node, flags);
        let opened = match opened {
            Ok(opened) if flags & libc::O_TRUNC != 0 => {
                let truncate = super::SetAttr { size: Some(0), ..super::SetAttr::default() };
                match self.setattr(making.caller, entry.node, Some(opened.handle), truncate) {
                    Ok(stat) => {
                        entry.stat = stat;
                        Ok(opened)
                    }
                    Err(error) => {
                        let _ = self.release(making.caller, opened.handle);
                        Err(error)
                    }
                }
            }
            other => other,
        };
        // The lookup is not answered to the kernel if opening failed.
        opened.inspect_err(|_| self.forget(entry.node, 1)).map(|opened| (entry, opened))
    }

    /// Makes a directory.
    pub fn mkdir(&self, making: Making<'_>, mode: u32) -> VfsResult<Entry> {
        let (entry, fd, inode) = self.make(making, true, |dir, name| {
            rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode & 0o7777)).map(|()| None)
        })?;
        // Something is usually made in it next.
        self.backing.keep_path_fd(&inode.id, Arc::new(fd));
        Ok(entry)
    }

    /// Makes a regular or special file.
    pub fn mknod(&self, making: Making<'_>, mode: u32, device: u64) -> VfsResult<Entry> {
        let kind = FileType::from_raw_mode(mode);
        let entry = self.make(making, false, |dir, name| {
            rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), device).map(|()| None)
        })?;
        Ok(entry.0)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, making: Making<'_>, target: &OsStr) -> VfsResult<Entry> {
        let entry = self.make(making, false, |dir, name| rustix::fs::symlinkat(target, dir, name).map(|()| None))?;
        Ok(entry.0)
    }

    /// Gives an inode another name.
    pub fn link(&self, caller: Caller, node: u64, parent: u64, name: &OsStr) -> VfsResult<Entry> {
        let op_name = checked_name(name)?;
        let (inode, dir) = (self.inode(node)?, self.inode(parent)?);
        let cells = [MarkCell::Dir(dir.id), MarkCell::File { id: inode.id, block: ATTRIBUTES }];
        let _mark = if dir.is_outside() { None } else { Some(self.mark(&cells)?) };
        let (fd, dir_fd) = (self.fd(&inode)?, self.fd(&dir)?);
        let outside = self.leaves_out(&dir, &dir_fd, name, false);
        let mut locks = Locks::take(&[&inode, &dir]);
        let nameless = locks.of(&inode).unnamed && !inode.is_outside();
        if !nameless && outside != inode.is_outside() {
            // All names of a file are on one side of the border.
            return Err(VfsError::CrossDevice);
        }
        if nameless && !outside {
            let (file, place) = ((&*inode, &*fd), (&*dir, &*dir_fd));
            self.link_first(caller, file, place, (name, op_name), locks.of(&inode))?;
        } else {
            let mut slot = (!dir.is_outside()).then(|| self.journal.reserve());
            self.failed_names(&mut slot, caller, &[(&dir, &dir_fd)], link_fd(&fd, &dir_fd, name))?;
            if nameless {
                inode.set_outside(true, locks.of(&inode));
                inode.pin(None);
            }
            let mut changes = Changes::new();
            if !outside {
                changes.push(Change::Entry { dir: dir.id, name: op_name, old: None, new: Some(inode.id) });
            }
            if let Some(slot) = slot {
                changes.extend(self.dir_mtime(&dir, &dir_fd));
                slot.fill(caller.origin(), changes);
            }
        }
        self.outdate(&dir, caller);
        let stat = sys::stat(&fd)?;
        self.backing.remember(&inode.id, &dir.id, name);
        let inode = self.inodes.remember(inode.id, &stat);
        self.saw_name(&inode, &dir, name);
        Ok(self.entry(&inode, stat))
    }

    /// The common way of everything that is born: `make` makes it, and may return its descriptor.
    fn make(
        &self,
        making: Making<'_>,
        is_directory: bool,
        make: impl FnOnce(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<Option<OwnedFd>>,
    ) -> VfsResult<(Entry, OwnedFd, Arc<Inode>)> {
        let Making { caller, umask, parent, name } = making;
        let op_name = checked_name(name)?;
        let dir = self.inode(parent)?;
        let cells = [MarkCell::Dir(dir.id)];
        let _mark = self.mark_names(&[&dir])?;
        let dir_fd = self.fd(&dir)?;
        let outside = self.leaves_out(&dir, &dir_fd, name, is_directory);
        adopt_umask(umask)?;
        let lock = dir.lock();
        let mut slot = (!dir.is_outside()).then(|| self.journal.reserve());
        let made = self.failed_names(&mut slot, caller, &[(&dir, &dir_fd)], make(dir_fd.as_fd(), name))?;
        let born = self.adopt(caller, &dir_fd, name, made).and_then(|(born, dir_stat)| {
            // What is excluded changes nothing but the time of its directory.
            let (changes, has_xattrs) = match outside {
                true => (smallvec![mtime_change(dir.id, &dir_stat)], true),
                false => birth_changes(&dir, op_name, &born, &dir_stat)?,
            };
            Ok((born, changes, has_xattrs))
        });
        let born = born.inspect_err(|_| {
            // What cannot be told to the replica must not stay.
            let _ = remove_born(dir_fd.as_fd(), name);
        });
        self.outdate(&dir, caller);
        // Also if it went again: the directory's mtime is another.
        let (born, changes, has_xattrs) = self.unsaid(&cells, born)?;
        if let Some(slot) = slot {
            slot.fill(caller.origin(), changes);
        }
        self.backing.remember(&born.id, &dir.id, name);
        let inode = self.inodes.remember(born.id, &born.stat);
        self.saw_name(&inode, &dir, name);
        // Who has found it already and moves it takes its lock before that of the directory if its number is lower, and then waits for ours:
        // all that needs the directory is done.
        let mut state = inode.try_lock().unwrap_or_else(|| {
            drop(lock);
            inode.lock()
        });
        if outside {
            inode.set_outside(true, &mut state);
        }
        state.born(born.stat.mode, has_xattrs);
        drop(state);
        Ok((self.entry(&inode, born.stat), born.fd, inode))
    }

    /// Gives what was just made to its caller and looks at what resulted, and at the directory.
    pub(super) fn adopt(
        &self,
        caller: Caller,
        dir_fd: &OwnedFd,
        name: &OsStr,
        made: Option<OwnedFd>,
    ) -> VfsResult<(Born, Stat)> {
        let fd = match made {
            Some(fd) => fd,
            None => sys::open_path_at(dir_fd, name)?,
        };
        let dir_stat = sys::stat(dir_fd)?;
        let mut stat = sys::stat(&fd)?;
        // A group that is not ours was inherited, too: xfs gives a whiteout that of the directory that the renamed object goes to.
        let inherits_group = dir_stat.mode & libc::S_ISGID != 0 || stat.gid != self.daemon.gid;
        let uid = (stat.uid != caller.uid).then_some(caller.uid);
        let gid = (!inherits_group && stat.gid != caller.gid).then_some(caller.gid);
        if uid.is_some() || gid.is_some() {
            match sys::chown(fd.as_fd(), uid, gid) {
                // An ordinary user's daemon cannot give away; the mount then serves that user only.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) && self.daemon.uid != 0 => {}
                other => other?,
            }
            if !stat.is_dir() && stat.mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
                // Giving away cleared them.
                sys::chmod(&fd, stat.mode & 0o7777)?;
            }
            stat = sys::stat(&fd)?;
        }
        let id = self.backing.id_of(&fd, &stat)?;
        Ok((Born { id, stat, fd }, dir_stat))
    }
}

/// What a birth is, and whether it came with xattrs.
fn birth_changes(dir: &Inode, name: Name, born: &Born, dir_stat: &Stat) -> VfsResult<(Changes, bool)> {
    let mut changes: Changes = smallvec![
        Change::Birth { id: born.id, kind: sys::kind(&born.fd, &born.stat)? },
        attr_change(born.id, &born.stat),
    ];
    let xattrs = xattr_changes(born.id, &born.fd)?;
    let has_xattrs = !xattrs.is_empty();
    changes.extend(xattrs);
    changes.push(Change::Entry { dir: dir.id, name, old: None, new: Some(born.id) });
    changes.push(mtime_change(dir.id, dir_stat));
    Ok((changes, has_xattrs))
}

/// What a new inode has beside its attributes: inherited ACLs, labels, and what it was given before its first name.
pub(super) fn xattr_changes(id: InodeId, fd: impl AsFd) -> VfsResult<Changes> {
    let xattrs = sys::xattrs(fd)?.into_iter();
    Ok(xattrs.map(|(name, value)| Change::Xattr { id, name, value: Some(value) }).collect())
}

fn remove_born(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(rustix::io::Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
        other => other,
    }
}

/// Links by descriptor; without the right to do so, by its magic link.
pub(super) fn link_fd(fd: impl AsFd, dir: impl AsFd, name: &OsStr) -> rustix::io::Result<()> {
    let (fd, dir) = (fd.as_fd(), dir.as_fd());
    match rustix::fs::linkat(fd, c"", dir, name, AtFlags::EMPTY_PATH) {
        Err(rustix::io::Errno::NOENT) => {
            let path = sys::ProcPath::new(fd);
            let path = OsStr::from_bytes(path.as_str().as_bytes());
            rustix::fs::linkat(rustix::fs::CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)
        }
        other => other,
    }
}
