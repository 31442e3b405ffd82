//! Rights that files of the tree give to whoever runs them (set-user-id, set-group-id, capabilities), brought to what the volume says of
//! them now, after that was changed: `special=deny` takes them out of the tree, `special=keep` gives them back. What is true is the same
//! before and after, so a crash in between costs nothing but another look.
//!
//! To take a right away, the catalog has to hold it durably first: then the tree may lose it. To give it back the tree is first, and the
//! checkpoint that makes the catalog forget it syncs the tree before.

use bytes::Bytes;
use tandem_proto::{ids::InodeId, op::AttrPatch};

use super::{
    Replica,
    changeset::XattrNet,
    error::{ApplyError, OnObject as _},
    metadata::{CAPABILITIES, RIGHTS, true_attr},
    objects::Objects,
};
use crate::tree::ReplicaTree;

/// A file whose rights are not where they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    id: InodeId,
    mode: u32,
    capabilities: Option<Bytes>,
}

impl<T: ReplicaTree> Replica<T> {
    /// Whether nothing is under way that changes the tree in steps.
    pub fn is_at_rest(&self) -> bool {
        self.staging.is_none() && !self.unsettled
    }

    /// Looks at so many inodes after this one: what is misplaced among them, and the last one; `None`: there are no more.
    pub fn misplaced_rights(
        &mut self,
        after: Option<&InodeId>,
        limit: usize,
    ) -> Result<(Vec<Misplaced>, Option<InodeId>), ApplyError> {
        let ids = self.objects.catalog.ids(after, limit)?;
        let mut found = Vec::new();
        for id in &ids {
            found.extend(self.objects.misplaced(id)?);
        }
        Ok((found, ids.last().copied()))
    }

    /// Notes rights in the catalog. A checkpoint follows before [`Self::place_rights`].
    pub fn note_rights(&mut self, found: &[Misplaced]) -> Result<(), ApplyError> {
        for Misplaced { id, mode, capabilities } in found {
            let mut record = self.objects.known(id)?;
            let mut side = record.side.take().unwrap_or_default();
            side.mode = Some(*mode);
            if let Some(value) = capabilities {
                side.xattrs.insert(Bytes::from_static(CAPABILITIES), Some(value.clone()));
            }
            record.side = Some(side);
            self.objects.catalog.put_node(id, &record)?;
        }
        Ok(())
    }

    /// Puts rights where they belong.
    pub fn place_rights(&mut self, found: Vec<Misplaced>) -> Result<(), ApplyError> {
        for Misplaced { id, mode, capabilities } in found {
            let patch = AttrPatch { mode: Some(mode), ..AttrPatch::default() };
            let values =
                capabilities.map(|value| (Bytes::from_static(CAPABILITIES), Some(value))).into_iter().collect();
            self.objects.set_metadata(&id, &patch, Some(&XattrNet { complete: false, values }))?;
        }
        Ok(())
    }
}

impl<T: ReplicaTree> Objects<T> {
    fn misplaced(&mut self, id: &InodeId) -> Result<Option<Misplaced>, ApplyError> {
        let Some(record) = self.catalog.node(id)?.filter(|record| record.kind.is_regular()) else { return Ok(None) };
        let node = self.open(id)?;
        let is = self.tree.stat(&node).on("look at", id)?.attr;
        let mode = true_attr(is, record.side.as_deref()).mode;
        let there = self.tree.xattr(&node, CAPABILITIES).on("read the capabilities of", id)?;
        let noted = record.side.as_ref().and_then(|side| side.xattrs.get(CAPABILITIES).cloned());
        let capabilities = noted.unwrap_or_else(|| there.clone());
        let wrong = match self.deny_special {
            true => is.mode & RIGHTS != 0 || there.is_some(),
            false => is.mode & RIGHTS != mode & RIGHTS || there != capabilities,
        };
        Ok(wrong.then_some(Misplaced { id: *id, mode, capabilities }))
    }
}
