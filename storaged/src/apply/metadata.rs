//! Attributes and extended attributes of one inode: set on the object in an order in which none undoes another, and kept in the
//! catalog where the file system refuses them.
//!
//! Order: owner (clears setuid and file capabilities) → extended attributes (an ACL sets mode bits) → mode → mtime.

use std::{collections::BTreeMap, io};

use bytes::Bytes;
use tandem_proto::{
    ids::InodeId,
    op::{Attr, AttrPatch, NodeKind},
};

use super::{
    changeset::XattrNet,
    error::{ApplyError, OnObject as _},
    objects::Objects,
};
use crate::{
    catalog::{NodeRecord, SideRecord},
    tree::ReplicaTree,
};

/// What a daemon without privileges keeps for itself on every object, so that a mode cannot lock it out.
fn own_access(kind: &NodeKind) -> u32 {
    if kind.is_directory() { 0o700 } else { 0o600 }
}

/// Whether the file system says that it does not do this, rather than that it cannot just now.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::EOPNOTSUPP | libc::E2BIG | libc::ERANGE | libc::EINVAL)
    )
}

/// Mode bits with which a program runs as somebody else.
pub(super) const RIGHTS: u32 = 0o6000;
/// The same as an extended attribute.
pub(super) const CAPABILITIES: &[u8] = b"security.capability";

/// A record's side while it is changed.
struct Side {
    now: SideRecord,
    before: Option<Box<SideRecord>>,
}

impl Side {
    fn of(record: &NodeRecord) -> Self {
        Side { now: record.side.as_deref().cloned().unwrap_or_default(), before: record.side.clone() }
    }

    /// Puts it into the record; whether that changed.
    fn store(self, record: &mut NodeRecord) -> bool {
        record.side = (self.now != SideRecord::default()).then(|| Box::new(self.now));
        record.side != self.before
    }
}

impl<T: ReplicaTree> Objects<T> {
    /// Assigns attributes and extended attributes, but not a directory's mtime: see [`Self::restore_dir_mtimes`].
    pub fn set_metadata(
        &mut self,
        id: &InodeId,
        patch: &AttrPatch,
        xattrs: Option<&XattrNet>,
    ) -> Result<(), ApplyError> {
        let mut record = self.known(id)?;
        let node = self.open(id)?;
        let mut side = Side::of(&record);
        // Chown clears bits that are not assigned here and must stand.
        let mut mode = patch.mode;
        if (patch.uid.is_some() || patch.gid.is_some()) && mode.is_none() && side.now.mode.is_none() {
            mode = Some(self.tree.stat(&node).on("read", id)?.attr.mode).filter(|mode| mode & 0o6000 != 0);
        }
        let patch = &AttrPatch { mode, ..*patch };
        let was = self.give(id, &node, &record.kind, (patch, xattrs), &mut side.now)?;
        let mut changed = side.store(&mut record);
        if let Some(mtime) = patch.mtime {
            if record.kind.is_directory() {
                changed |= record.dir_mtime != Some(mtime);
                record.dir_mtime = Some(mtime);
                self.touched.insert(*id);
            } else if was.is_none_or(|was| was.mtime != mtime) {
                self.tree.set_mtime(&node, mtime).on("set the time of", id)?;
            }
        }
        if changed {
            self.catalog.put_node(id, &record)?;
        }
        Ok(())
    }

    /// Owner, extended attributes and mode, in this order. What is refused goes to `side`. Tells what the object had before, if it was
    /// looked at: an op assigns all attributes of which one was changed, and what stands already needs no change of the file system's.
    pub(super) fn give(
        &self,
        id: &InodeId,
        node: &T::Node,
        kind: &NodeKind,
        (patch, xattrs): (&AttrPatch, Option<&XattrNet>),
        side: &mut SideRecord,
    ) -> Result<Option<Attr>, ApplyError> {
        let (was, given) = self.set_owner(id, node, patch, side)?;
        let was = was.filter(|_| !self.again);
        if let Some(xattrs) = xattrs {
            self.set_xattrs(id, node, xattrs, side)?;
        }
        if let Some(mode) = patch.mode.filter(|_| !matches!(kind, NodeKind::Symlink(_))) {
            // An owner that is given, and an ACL, change it.
            let is = was.filter(|_| !given && xattrs.is_none()).map(|was| was.mode);
            self.set_mode(id, node, (is, mode), kind, side)?;
        }
        Ok(was)
    }

    /// What the object had before, if it was looked at, and whether something was given to it.
    fn set_owner(
        &self,
        id: &InodeId,
        node: &T::Node,
        patch: &AttrPatch,
        side: &mut SideRecord,
    ) -> Result<(Option<Attr>, bool), ApplyError> {
        if patch.uid.is_none() && patch.gid.is_none() {
            return Ok((None, false));
        }
        let is = self.tree.stat(node).on("read", id)?.attr;
        let stands = |assigned: Option<u32>, is: u32| assigned.is_none_or(|assigned| assigned == is);
        // Giving an object to its owner is not nothing: it takes file capabilities away, which the mount's call did not.
        let stands = stands(patch.uid, is.uid) && stands(patch.gid, is.gid);
        let given = match stands {
            true => Ok(()),
            false => self.tree.set_owner(node, patch.uid, patch.gid),
        };
        match given {
            Ok(()) => {
                side.uid = if patch.uid.is_some() { None } else { side.uid };
                side.gid = if patch.gid.is_some() { None } else { side.gid };
            }
            Err(error) if is_refusal(&error) => {
                side.uid = patch.uid.filter(|uid| *uid != is.uid).or(if patch.uid.is_some() { None } else { side.uid });
                side.gid = match patch.gid {
                    None => side.gid,
                    // A group that the daemon is a member of can be given without privileges.
                    Some(gid) if gid != is.gid && self.tree.set_owner(node, None, Some(gid)).is_err() => Some(gid),
                    Some(_) => None,
                };
            }
            Err(error) => return Err(ApplyError::from_io("change the owner of", id, error)),
        }
        Ok((Some(is), !stands))
    }

    /// `is`: what it has, if that is known.
    fn set_mode(
        &self,
        id: &InodeId,
        node: &T::Node,
        (is, mode): (Option<u32>, u32),
        kind: &NodeKind,
        side: &mut SideRecord,
    ) -> Result<(), ApplyError> {
        // Of a directory these bits say something about groups, and give nobody rights.
        let denied = if self.deny_special && !kind.is_directory() { mode & RIGHTS } else { 0 };
        if !self.tree.is_unprivileged() && !side.placeholder {
            side.mode = (denied != 0).then_some(mode);
            if is == Some(mode & !denied) {
                return Ok(());
            }
            return self.tree.set_mode(node, mode & !denied).on("change the mode of", id);
        }
        match self.tree.set_mode(node, (mode & !denied) | own_access(kind)) {
            Err(error) if !is_refusal(&error) => return Err(ApplyError::from_io("change the mode of", id, error)),
            _ => {}
        }
        let is = self.tree.stat(node).on("read", id)?.attr.mode;
        side.mode = (is != mode).then_some(mode);
        Ok(())
    }

    fn set_xattrs(
        &self,
        id: &InodeId,
        node: &T::Node,
        xattrs: &XattrNet,
        side: &mut SideRecord,
    ) -> Result<(), ApplyError> {
        if xattrs.complete {
            side.xattrs.retain(|name, _| xattrs.values.contains_key(name));
            for name in self.tree.list_xattrs(node).on("list the attributes of", id)? {
                if !matches!(xattrs.values.get(&name), Some(Some(_))) {
                    self.set_xattr(id, node, &name, None, side)?;
                }
            }
        }
        for (name, value) in &xattrs.values {
            self.set_xattr(id, node, name, value.as_ref(), side)?;
        }
        Ok(())
    }

    fn set_xattr(
        &self,
        id: &InodeId,
        node: &T::Node,
        name: &Bytes,
        value: Option<&Bytes>,
        side: &mut SideRecord,
    ) -> Result<(), ApplyError> {
        let denied = self.deny_special && name.as_ref() == CAPABILITIES;
        let attempt = || match value {
            // What it had is taken away, as it would have been replaced.
            Some(_) if denied => {
                self.tree.remove_xattr(node, name).and_then(|()| Err(io::Error::from_raw_os_error(libc::EPERM)))
            }
            Some(value) => self.tree.set_xattr(node, name, value),
            None => self.tree.remove_xattr(node, name),
        };
        let mut answer = attempt();
        if answer.as_ref().is_err_and(|error| self.is_full_for_xattrs_only(error)) {
            // Or the disk was full until a moment ago: what is deleted to make room goes meanwhile.
            answer = attempt();
        }
        match answer {
            Ok(()) => _ = side.xattrs.remove(name),
            Err(error) if is_refusal(&error) || self.is_full_for_xattrs_only(&error) => {
                let is = self.tree.xattr(node, name).unwrap_or_default();
                if is.as_ref() == value {
                    side.xattrs.remove(name);
                } else {
                    side.xattrs.insert(name.clone(), value.cloned());
                }
            }
            Err(error) => return Err(ApplyError::from_io("set an extended attribute of", id, error)),
        }
        Ok(())
    }

    /// A file system also answers ENOSPC when the room for one inode's attributes is used up. It is that if a new object still
    /// has room.
    fn is_full_for_xattrs_only(&self, error: &io::Error) -> bool {
        if error.raw_os_error() != Some(libc::ENOSPC) {
            return false;
        }
        let (staging, name) = (self.tree.area(crate::tree::Area::Staging), b"room");
        let room = self.tree.create(&staging, name, &NodeKind::Regular).and_then(|(_, node)| match node {
            Some(node) => self.tree.write_at(&node, 0, &[1; 64 << 10]),
            None => Ok(()),
        });
        let _ = self.tree.unlink(&staging, name);
        room.is_ok()
    }

    /// Gives directories the mtime that was assigned, after the steps that touched them.
    pub fn restore_dir_mtimes(&mut self) -> Result<(), ApplyError> {
        while let Some(id) = self.touched.first().copied() {
            if let Some(mtime) = self.catalog.node(&id)?.and_then(|record| record.dir_mtime) {
                let node = self.open(&id)?;
                self.tree.set_mtime(&node, mtime).on("set the time of", id)?;
            }
            self.touched.remove(&id);
        }
        Ok(())
    }
}

/// What attributes should be, given those of the object and what was refused.
pub fn true_attr(is: Attr, side: Option<&SideRecord>) -> Attr {
    let Some(side) = side else { return is };
    Attr { mode: side.mode.unwrap_or(is.mode), uid: side.uid.unwrap_or(is.uid), gid: side.gid.unwrap_or(is.gid), ..is }
}

/// What extended attributes should be, likewise; sorted by name.
pub fn true_xattrs(is: BTreeMap<Bytes, Bytes>, side: Option<&SideRecord>) -> Vec<(Bytes, Bytes)> {
    let mut should = is;
    for (name, value) in side.iter().flat_map(|side| &side.xattrs) {
        match value {
            Some(value) => _ = should.insert(name.clone(), value.clone()),
            None => _ = should.remove(name),
        }
    }
    should.into_iter().collect()
}
