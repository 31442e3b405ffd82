//! Whether a staging can be published: found out before the publish record is durable, because after it there is no way back.
//!
//! The plan is made here once for nothing, over the catalog as the publish will find it, which is the one of now with the inodes
//! that took over an object in place of those that had it. So what a confused sender staged (a directory with two names, a name for
//! what was never born, data for a directory) ends its round, and not the volume.

use std::collections::HashSet;

use tandem_proto::{
    ids::{InodeId, Name},
    stage::NodeType,
};

use super::{
    error::ApplyError,
    objects::Objects,
    plan::{View, plan},
    staging::Staging,
};
use crate::{catalog::Cell, tree::ReplicaTree};

/// Names and objects as the publish of a staging finds them.
pub(super) struct Adopted<'a, T: ReplicaTree> {
    pub(super) objects: &'a Objects<T>,
    pub(super) staging: &'a Staging,
}

impl<T: ReplicaTree> Adopted<'_, T> {
    /// Under which id the catalog has it now; `None`: its object will be another's.
    fn now(&self, id: &InodeId) -> Option<InodeId> {
        match self.staging.adopted.get(id) {
            Some(old) => Some(*old),
            None => (!self.staging.is_claimed(id)).then_some(*id),
        }
    }

    fn then(&self, id: InodeId) -> InodeId {
        self.staging.claimed_by(&id).unwrap_or(id)
    }
}

impl<T: ReplicaTree> View for Adopted<'_, T> {
    fn entry(&self, dir: &InodeId, name: &Name) -> Result<Option<InodeId>, ApplyError> {
        let Some(dir) = self.now(dir) else { return Ok(None) };
        Ok(self.objects.entry(&dir, name)?.map(|id| self.then(id)))
    }

    fn names(&self, id: &InodeId) -> Result<Vec<Cell>, ApplyError> {
        let Some(id) = self.now(id) else { return Ok(Vec::new()) };
        let names = self.objects.names(&id)?;
        Ok(names.into_iter().map(|(dir, name)| (self.then(dir), name)).collect())
    }

    fn entries(&self, dir: &InodeId) -> Result<Vec<(Name, InodeId)>, ApplyError> {
        let Some(dir) = self.now(dir) else { return Ok(Vec::new()) };
        let entries = self.objects.entries(&dir)?;
        Ok(entries.into_iter().map(|(name, id)| (name, self.then(id))).collect())
    }

    fn node_type(&self, id: &InodeId) -> Result<Option<NodeType>, ApplyError> {
        match self.now(id) {
            Some(now) => self.objects.node_type(&now),
            None => Ok(None),
        }
    }

    fn parked(&self) -> Vec<InodeId> {
        self.objects.parked()
    }

    fn is_staged(&self, id: &InodeId) -> bool {
        self.staging.has_new_object(id)
    }
}

impl Staging {
    /// Whether everything that will have a name will have an object, and the plan from the tree as it is to what was staged exists.
    pub fn check_complete<T: ReplicaTree>(&mut self, objects: &Objects<T>) -> Result<(), ApplyError> {
        if let Some(dir) = self.open_listings.iter().next() {
            return Err(ApplyError::protocol(dir, "the end of its listing is missing"));
        }
        self.fold();
        self.check_kinds(objects)?;
        let mut missing = HashSet::new();
        for id in self.base.dirs.values().flat_map(|net| net.names.values().flatten()) {
            if self.is_claimed(id) {
                return Err(ApplyError::protocol(id, "another inode took its object over, and it turned up in an op"));
            }
            if !self.will_have_object(objects, id)? {
                missing.insert(*id);
            }
        }
        // A name of an inode without an object is legal where the directory itself is gone at the end; the planner knows.
        let mut kinds = Vec::new();
        for id in missing {
            if let Some(node) = self.base.nodes.get_mut(&id) {
                kinds.push((id, node.kind.take()));
            }
        }
        let planned = plan(&Adopted { objects, staging: self }, &self.base).map(|_| ());
        for (id, kind) in kinds {
            self.base.nodes.entry(id).or_default().kind = kind;
        }
        planned.map_err(|error| match error {
            // Nothing is: it was only staged.
            ApplyError::Damaged { object, problem } => ApplyError::Protocol { object, problem },
            error => error,
        })
    }

    /// Data is for regular files.
    fn check_kinds<T: ReplicaTree>(&self, objects: &Objects<T>) -> Result<(), ApplyError> {
        for (id, node) in self.base.nodes.iter().filter(|(_, node)| node.data) {
            let is_regular = match &node.kind {
                Some(kind) => kind.is_regular(),
                None => match self.object_of(objects, id)? {
                    Some(object) => objects.known(&object)?.kind.is_regular(),
                    None => true,
                },
            };
            if !is_regular {
                return Err(ApplyError::protocol(id, "it is given data and is no regular file"));
            }
        }
        Ok(())
    }

    fn will_have_object<T: ReplicaTree>(&self, objects: &Objects<T>, id: &InodeId) -> Result<bool, ApplyError> {
        if self.has_new_object(id) {
            return Ok(true);
        }
        let node = self.base.nodes.get(id);
        let made = node.is_some_and(|node| node.birth || node.kind.as_ref().is_some_and(|kind| !kind.is_regular()));
        Ok(made || self.object_of(objects, id)?.is_some())
    }
}
