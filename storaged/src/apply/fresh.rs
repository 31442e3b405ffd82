//! The new file that was staged last: it stays open until another one comes, and gets its attributes while it is.
//!
//! Of many small files the messages are: inode, bytes, inode, bytes. With the object at hand each costs a create, a write and its attributes;
//! it is opened once, and its publish is a rename. What was not whole by then, was given bytes later, or has attributes that the file system
//! refuses, is dressed by the publish as every other object is, and after a restart so are all: this is no part of the log.

use tandem_proto::{ids::InodeId, op::NodeKind};

use super::{
    changeset::NodeNet,
    error::{ApplyError, OnObject as _},
    objects::Objects,
    staging::Staging,
};
use crate::{catalog::SideRecord, tree::ReplicaTree};

/// Files up to this length get their size by being written. Longer ones get it first, which keeps their writes from changing it.
pub(super) const SIZED_LATE_MAX: u64 = 64 << 10;

/// See the module.
pub struct Fresh<N> {
    id: InodeId,
    node: N,
    size: u64,
    /// How far the object reaches.
    reached: u64,
}

impl<T: ReplicaTree> Objects<T> {
    /// An object was made for a new file of this size.
    pub(super) fn begin_fresh(&mut self, id: &InodeId, node: T::Node, size: u64) -> Result<(), ApplyError> {
        let mut reached = 0;
        if size > SIZED_LATE_MAX {
            self.tree.set_size(&node, size).on("stage", id)?;
            reached = size;
        }
        self.fresh = Some(Fresh { id: *id, node, size, reached });
        Ok(())
    }

    /// The object, if it is the one at hand.
    pub(super) fn fresh_node(&self, id: &InodeId) -> Option<T::Node> {
        self.fresh.as_ref().filter(|fresh| fresh.id == *id).map(|fresh| fresh.node.clone())
    }

    /// Its bytes reach so far.
    pub(super) fn fresh_reaches(&mut self, id: &InodeId, end: u64) {
        if let Some(fresh) = self.fresh.as_mut().filter(|fresh| fresh.id == *id) {
            fresh.reached = fresh.reached.max(end);
        }
    }

    /// Gives an object all that the state of its inode says; whether all of it could be given.
    fn dress(&self, id: &InodeId, node: &T::Node, net: &NodeNet) -> Result<bool, ApplyError> {
        let mut side = SideRecord::default();
        let attr = net.attr.patch();
        self.give(id, node, &NodeKind::Regular, (&attr, net.xattrs.as_deref()), &mut side)?;
        if let Some(mtime) = attr.mtime {
            self.tree.set_mtime(node, mtime).on("set the time of", id)?;
        }
        Ok(side == SideRecord::default())
    }
}

impl Staging {
    /// Ends with the file at hand, if it is not `but`. If it fails it may be called again.
    pub(super) fn leave_fresh<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        but: Option<&InodeId>,
    ) -> Result<(), ApplyError> {
        let Some(fresh) = objects.fresh.as_ref().filter(|fresh| Some(&fresh.id) != but) else { return Ok(()) };
        let whole = fresh.reached == fresh.size && fresh.size <= SIZED_LATE_MAX;
        if fresh.reached < fresh.size {
            objects.tree.set_size(&fresh.node, fresh.size).on("stage", fresh.id)?;
        }
        if whole && let Some(net) = self.stated(&fresh.id) {
            // What fails here is tried by the publish, and said there.
            let dressed = objects.dress(&fresh.id, &fresh.node, net).unwrap_or(false);
            let id = fresh.id;
            self.set_dressed(&id, dressed);
        }
        objects.fresh = None;
        Ok(())
    }
}
