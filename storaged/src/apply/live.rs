//! Live ops, one at a time: the common ones are one system call on their names. Everything else, and everything that meets a tree
//! which is not as expected, goes the general way of probe and plan.

use smallvec::SmallVec;
use tandem_proto::{
    ids::{InodeId, Name},
    op::{AttrPatch, Change, NodeKind, Op},
    position::Position,
};

use super::{
    changeset::{Changeset, merge_attr},
    error::ApplyError,
    execute::{Manner, data_target},
    objects::Objects,
};
use crate::{catalog::Cell, tree::ReplicaTree};

/// A name that an op assigns.
type Assigned = (Cell, Option<InodeId>);

/// Whether the tree answered that it does not look like the catalog says.
pub fn is_surprise(error: &ApplyError) -> bool {
    let ApplyError::Io { source, .. } = error else { return false };
    matches!(
        source.raw_os_error(),
        Some(
            libc::ENOENT
                | libc::EEXIST
                | libc::ENOTDIR
                | libc::EISDIR
                | libc::ENOTEMPTY
                | libc::EINVAL
                | libc::ELOOP
                | libc::ESTALE
        )
    )
}

impl<T: ReplicaTree> Objects<T> {
    /// Applies one op. `retried`: an earlier attempt may have done part of it.
    pub fn apply_op(&mut self, op: &Op, position: Position, retried: bool) -> Result<(), ApplyError> {
        if !retried {
            self.check_known(op)?;
        }
        self.keeper.time_ns = op.origin.time_ns;
        self.in_contents = false;
        let done = !retried && self.apply_names_directly(op, position)?;
        if !done && op.changes.iter().any(|change| matches!(change, Change::Entry { .. })) {
            let mut net = Changeset::default();
            net.assign_op(op, position);
            self.settle(&net, Manner { probe: retried, keep_as: None, born: position })?;
        }
        self.in_contents = true;
        self.apply_contents(op)?;
        self.restore_dir_mtimes()?;
        self.in_contents = false;
        Ok(())
    }

    /// In live apply every inode that an op gives a name, or names to, exists or is born in it. Checked before anything is done. Data and
    /// attributes of an inode that the replica does not have are passed over, here as in a redo: what has no name has no state.
    fn check_known(&self, op: &Op) -> Result<(), ApplyError> {
        let born =
            |id: &InodeId| op.changes.iter().any(|change| matches!(change, Change::Birth { id: new, .. } if new == id));
        for change in &op.changes {
            let Change::Entry { dir, new, .. } = change else { continue };
            for id in [Some(dir), new.as_ref()].into_iter().flatten() {
                if !self.catalog.has_node(id)? && !born(id) {
                    return Err(ApplyError::unknown(id));
                }
            }
        }
        Ok(())
    }

    /// Does what the op does to names if it is one of the common forms. Whether it was.
    fn apply_names_directly(&mut self, op: &Op, position: Position) -> Result<bool, ApplyError> {
        let mut assigned: SmallVec<[Assigned; 2]> = SmallVec::new();
        for change in &op.changes {
            if let Change::Entry { dir, name, new, .. } = change {
                assigned.push(((*dir, name.clone()), *new));
            }
        }
        match &assigned[..] {
            [] => Ok(true),
            [(cell, new)] => self.apply_one_name(op, position, cell, new.as_ref()),
            [(one, one_new), (other, other_new)] => {
                let (one_now, other_now) = (self.entry_now(one)?, self.entry_now(other)?);
                match (one_new, other_new) {
                    (None, Some(id)) if one_now == Some(*id) => self.rename_directly(id, one, other, other_now),
                    (Some(id), None) if other_now == Some(*id) => self.rename_directly(id, other, one, one_now),
                    (Some(one_id), Some(other_id))
                        if one_now == Some(*other_id) && other_now == Some(*one_id) && one_id != other_id =>
                    {
                        self.exchange((other_id, one), (one_id, other))?;
                        Ok(true)
                    }
                    _ => Ok(false),
                }
            }
            _ => Ok(false),
        }
    }

    fn entry_now(&self, (dir, name): &(InodeId, Name)) -> Result<Option<InodeId>, ApplyError> {
        Ok(self.catalog.entry(dir, name)?)
    }

    fn apply_one_name(
        &mut self,
        op: &Op,
        position: Position,
        cell: &Cell,
        new: Option<&InodeId>,
    ) -> Result<bool, ApplyError> {
        match (self.entry_now(cell)?, new) {
            (None, None) => Ok(true),
            (Some(now), Some(new)) => Ok(now == *new),
            (Some(now), None) => {
                if self.known(&now)?.kind.is_directory() {
                    if !self.catalog.entries(&now, None, 1)?.is_empty() {
                        return Ok(false);
                    }
                    self.rmdir(&now, cell)?;
                } else {
                    self.unlink(&now, cell)?;
                }
                Ok(true)
            }
            (None, Some(new)) => match self.catalog.node(new)? {
                None => {
                    let kind = op.changes.iter().find_map(|change| match change {
                        Change::Birth { id, kind } if id == new => Some(kind),
                        _ => None,
                    });
                    let Some(kind) = kind else { return Err(ApplyError::unknown(new)) };
                    self.create(new, kind, cell, position)?;
                    Ok(true)
                }
                Some(record) if record.kind == NodeKind::Directory => Ok(false),
                Some(_) => {
                    self.link(new, cell)?;
                    Ok(true)
                }
            },
        }
    }

    fn rename_directly(
        &mut self,
        id: &InodeId,
        from: &Cell,
        to: &Cell,
        victim: Option<InodeId>,
    ) -> Result<bool, ApplyError> {
        if let Some(victim) = victim {
            let (directory, over) = (self.known(id)?.kind.is_directory(), self.known(&victim)?.kind.is_directory());
            let full = over && !self.catalog.entries(&victim, None, 1)?.is_empty();
            if victim == *id || directory != over || full {
                return Ok(false);
            }
        }
        self.rename(id, from, to)?;
        Ok(true)
    }

    /// Data in order, then attributes: what comes first in the op must not spoil what comes last.
    fn apply_contents(&mut self, op: &Op) -> Result<(), ApplyError> {
        let mut patches: SmallVec<[(InodeId, AttrPatch); 2]> = SmallVec::new();
        let mut xattrs = Changeset::default();
        for change in &op.changes {
            if let Some(id) = data_target(change)
                && self.catalog.has_node(id)?
            {
                self.apply_data(change)?;
            }
            let (id, patch) = match change {
                Change::Attr { id, patch } => (id, *patch),
                Change::Xattr { id, name, value } => {
                    xattrs.nodes.entry(*id).or_default().set_xattr(name, value.as_ref());
                    (id, AttrPatch::default())
                }
                _ => continue,
            };
            match patches.iter_mut().find(|(of, _)| of == id) {
                Some((_, mine)) => merge_attr(mine, &patch),
                None => patches.push((*id, patch)),
            }
        }
        for (id, patch) in patches {
            // What lost its last name in this op has no state any more.
            if self.catalog.has_node(&id)? {
                let xattrs = xattrs.nodes.get(&id).and_then(|node| node.xattrs.as_deref());
                self.set_metadata(&id, &patch, xattrs)?;
            }
        }
        Ok(())
    }
}
