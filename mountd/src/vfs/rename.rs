//! Rename, with NOREPLACE, EXCHANGE and WHITEOUT: two assignments of names in one op.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use rustix::fs::RenameFlags;
use smallvec::{SmallVec, smallvec};
use tandem_proto::{Change, Changes, Name, NodeKind};

use super::{
    Caller, Child, Journal, Reserved as _, Vfs, VfsError, VfsResult, attr_change, checked_name,
    create::{Born, xattr_changes},
    inodes::{Inode, Locks},
};
use crate::commit::{MarkCell, dirty::DirtySet};

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The directory.
    pub parent: u64,
    /// The name.
    pub name: &'a OsStr,
}

impl<J: Journal> Vfs<J> {
    /// Moves what `from` means to `to`, or exchanges both.
    pub fn rename(&self, caller: Caller, from: Place<'_>, to: Place<'_>, flags: u32) -> VfsResult<()> {
        let flags = RenameFlags::from_bits(flags).ok_or(VfsError::Invalid)?;
        let names = (checked_name(from.name)?, checked_name(to.name)?);
        let (old_dir, new_dir) = (self.inode(from.parent)?, self.inode(to.parent)?);
        let cells = [MarkCell::Dir(old_dir.id), MarkCell::Dir(new_dir.id)];
        let _mark = self.mark_names(&[&old_dir, &new_dir])?;
        let (old_fd, new_fd) = (self.fd(&old_dir)?, self.fd(&new_dir)?);
        loop {
            let moved = self.child(&old_dir, &old_fd, from.name)?;
            let target = self.optional_child(&new_dir, &new_fd, to.name)?;
            let mut inodes: SmallVec<[&Inode; 4]> = SmallVec::from_slice(&[&*old_dir, &*new_dir, &*moved.inode]);
            inodes.extend(target.as_ref().map(|target| &*target.inode));
            let mut locks = Locks::take(&inodes);
            if !self.still_means(&old_fd, from.name, Some(&moved))?
                || !self.still_means(&new_fd, to.name, target.as_ref())?
            {
                continue;
            }
            let border = self.border((&old_dir, &old_fd, from.name), (&new_dir, &new_fd, to.name), &moved, flags)?;
            let both_outside = old_dir.is_outside() && new_dir.is_outside();
            let mut slot = (!both_outside).then(|| self.journal.reserve());
            let renamed = rustix::fs::renameat_with(&old_fd, from.name, &new_fd, to.name, flags);
            let dirs: [(&Inode, &OwnedFd); 2] = [(&old_dir, &old_fd), (&new_dir, &new_fd)];
            let dirs = if old_dir.id == new_dir.id { &dirs[..1] } else { &dirs };
            if let Err(error) = self.failed_names(&mut slot, caller, dirs, renamed) {
                // The kernel takes a call that failed for one that changed nothing; this one may have changed the directory's times.
                if flags.contains(RenameFlags::WHITEOUT) {
                    self.ask_again(&old_dir);
                }
                return Err(error);
            }
            if target.as_ref().is_some_and(|target| target.inode.id == moved.inode.id) {
                // Two names of one object: POSIX keeps both, and nothing changed.
                return Ok(());
            }
            let exchange = flags.contains(RenameFlags::EXCHANGE);
            let exchanged = target.iter().filter(|_| exchange).map(|target| &*target.inode);
            for changed in [&*old_dir, &new_dir, &moved.inode].into_iter().chain(exchanged) {
                self.outdate(changed, caller);
            }
            let mut changes = match border {
                Border::Within => entry_changes((&old_dir, &new_dir), names.clone(), &moved, target.as_ref(), exchange),
                Border::Out => {
                    let (dir, name, old) = (old_dir.id, names.0.clone(), Some(moved.inode.id));
                    smallvec![Change::Entry { dir, name, old, new: None }]
                }
                Border::In | Border::Beyond => Changes::new(),
            };
            if flags.contains(RenameFlags::WHITEOUT) {
                let born = self.adopt(caller, &old_fd, from.name, None);
                let (born, _) = self.unsaid(&cells, born)?;
                // Of a directory with a default ACL it inherits one, as everything born there.
                let xattrs = self.unsaid(&cells, xattr_changes(born.id, &born.fd))?;
                leave_whiteout(&mut changes, &born, xattrs);
            }
            if !old_dir.is_outside() {
                changes.extend(self.dir_mtime(&old_dir, &old_fd));
            }
            if old_dir.id != new_dir.id && !new_dir.is_outside() {
                changes.extend(self.dir_mtime(&new_dir, &new_fd));
            }
            // xfs gives a directory whose parent becomes another by an exchange a new mtime as well.
            let swapped = target.iter().filter(|_| exchange && old_dir.id != new_dir.id);
            for child in swapped.flat_map(|target| [&moved, target]).filter(|child| child.stat.get().is_dir()) {
                changes.extend(self.dir_mtime(&child.inode, &child.fd));
            }
            if border == Border::In {
                // Before the slot counts: ops on it are legal only once it is known there.
                let mut cells = DirtySet::default();
                cells.insert_birth(moved.inode.id);
                cells.insert_name(new_dir.id, &names.1);
                cells.insert_attributes(new_dir.id);
                self.journal.resend(&cells);
            }
            if let Some(slot) = slot {
                slot.fill(caller.origin(), changes);
            }
            if matches!(border, Border::In | Border::Out) {
                let outside = border == Border::Out && moved.stat.get().nlink <= 1;
                moved.inode.set_outside(outside, locks.of(&moved.inode));
            }
            self.backing.remember(&moved.inode.id, &new_dir.id, to.name);
            if self.has_path_rules() {
                let (old, new) = ((&old_dir, from.name.as_bytes()), (&new_dir, to.name.as_bytes()));
                moved.inode.arc().renamed((old.0, old.1), new);
                if let Some(target) = target.as_ref().filter(|_| exchange) {
                    target.inode.arc().renamed((new.0, new.1), old);
                }
            }
            match &target {
                Some(target) if exchange => self.backing.remember(&target.inode.id, &old_dir.id, from.name),
                Some(target) => self.lost_name(&mut locks, target, &new_dir, to.name),
                None => {}
            }
            return Ok(());
        }
    }
}

/// The old name means a whiteout now, a device 0:0 that was just born: what an overlay file system hides a lower file with.
fn leave_whiteout(changes: &mut Changes, born: &Born, xattrs: Changes) {
    if let Some(Change::Entry { new, .. }) = changes.first_mut() {
        *new = Some(born.id);
    }
    changes.insert_many(0, xattrs);
    changes.insert(0, attr_change(born.id, &born.stat));
    changes.insert(0, Change::Birth { id: born.id, kind: NodeKind::CharDevice { major: 0, minor: 0 } });
}

/// How a rename stands to what is excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Border {
    /// Both names are part of the volume.
    Within,
    /// Neither is.
    Beyond,
    /// It leaves the volume.
    Out,
    /// It becomes part of it.
    In,
}

impl<J: Journal> Vfs<J> {
    /// A file may cross the border, and is removed or sent as it is then. A directory may not: programs move it by copying, as between
    /// file systems. So does one below which patterns match by where they are.
    fn border(
        &self,
        (old_dir, old_fd, old_name): (&Inode, &OwnedFd, &OsStr),
        (new_dir, new_fd, new_name): (&Inode, &OwnedFd, &OsStr),
        moved: &Child<'_>,
        flags: RenameFlags,
    ) -> VfsResult<Border> {
        let excludes = self.backing.excludes();
        if excludes.is_empty() {
            return Ok(Border::Within);
        }
        let is_directory = moved.stat.get().is_dir();
        let out = |dir: &Inode, fd: &OwnedFd, name: &OsStr| self.leaves_out(dir, fd, name, is_directory);
        let border = match (out(old_dir, old_fd, old_name), out(new_dir, new_fd, new_name)) {
            (false, false) => Border::Within,
            (true, true) => Border::Beyond,
            (false, true) => Border::Out,
            (true, false) => Border::In,
        };
        let crosses = matches!(border, Border::In | Border::Out);
        if border != Border::Within && flags.contains(RenameFlags::WHITEOUT) {
            return Err(VfsError::Invalid);
        }
        if crosses && (is_directory || flags.contains(RenameFlags::EXCHANGE)) {
            return Err(VfsError::CrossDevice);
        }
        if is_directory && border == Border::Within && excludes.has_paths() {
            let reaches = |fd: &OwnedFd, name: &OsStr| {
                let mut place = self.backing.place_of(fd.as_fd());
                place.push(name.as_bytes().to_vec());
                let names: Vec<&[u8]> = place.iter().map(Vec::as_slice).collect();
                excludes.reaches_below(&names)
            };
            if reaches(old_fd, old_name) || reaches(new_fd, new_name) {
                return Err(VfsError::CrossDevice);
            }
        }
        Ok(border)
    }
}

fn entry_changes(
    (old_dir, new_dir): (&Inode, &Inode),
    (old_name, new_name): (Name, Name),
    moved: &Child<'_>,
    target: Option<&Child<'_>>,
    exchange: bool,
) -> Changes {
    let (moved, target) = (moved.inode.id, target.map(|target| target.inode.id));
    let stays = if exchange { target } else { None };
    let mut changes = Changes::new();
    changes.push(Change::Entry { dir: old_dir.id, name: old_name, old: Some(moved), new: stays });
    changes.push(Change::Entry { dir: new_dir.id, name: new_name, old: target, new: Some(moved) });
    changes
}
