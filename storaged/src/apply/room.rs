//! What a publish would change in the size of the tree: known before it, so that a volume with a quota refuses what does not fit and takes
//! what replaces as much as it brings.
//!
//! Blocks that files have are known, those that they will have are not always: what is staged beside a file may fall on what is there or
//! on holes. It then counts as if it fell on holes, as far as the file's size allows. Data of ops is in the log and no part of this.

use std::collections::HashSet;

use tandem_proto::{ids::InodeId, stage::NodeType};

use super::{
    complete::Adopted,
    content::ranges_name,
    error::{ApplyError, OnObject as _},
    objects::{Objects, area_name},
    plan::leaving,
    record::ExtentSource,
    staging::{StagedFile, Staging},
};
use crate::tree::{Area, ReplicaTree};

/// What an inode costs beside its blocks: so nobody fills a disk with empty files.
pub const INODE_BYTES: u64 = 512;
/// Files end with a block.
const BLOCK_BYTES: u64 = 4096;

/// What a publish does to the size of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Bytes that come, at most.
    pub comes: u64,
    /// Bytes that go.
    pub goes: u64,
}

impl<T: ReplicaTree> Objects<T> {
    /// What a publish of `staging` would do to the size of the tree.
    pub fn growth(&mut self, staging: &mut Staging) -> Result<Growth, ApplyError> {
        staging.fold();
        staging.leave_nests(self)?;
        let gone = leaving(&Adopted { objects: self, staging }, &staging.base)?;
        let mut growth = Growth::default();
        for id in &gone {
            let object = staging.adopted.get(id).unwrap_or(id);
            growth.goes += self.allocated(object)? + INODE_BYTES;
        }
        let gone: HashSet<InodeId> = gone.into_iter().collect();
        for (id, file) in staging.files.iter().filter(|(id, _)| !gone.contains(id)) {
            self.add_file(staging, id, file, &mut growth)?;
        }
        for (id, node) in &staging.base.nodes {
            let is_new = node.kind.is_some() && staging.object_of(self, id)?.is_none();
            growth.comes += if is_new { INODE_BYTES } else { 0 };
        }
        Ok(growth)
    }

    fn add_file(
        &mut self,
        staging: &Staging,
        id: &InodeId,
        file: &StagedFile,
        growth: &mut Growth,
    ) -> Result<(), ApplyError> {
        let before = match (&file.object, staging.object_of(self, id)?) {
            (Some(_), _) => {
                let staged = self.staged_bytes(&area_name(id))?;
                growth.comes += staged;
                staged
            }
            (None, Some(object)) => self.allocated(&object)?,
            (None, None) => 0,
        };
        let Some(last) = file.rounds().last() else { return Ok(()) };
        let is_beside = |round: &super::staging::RoundContent| {
            round.extents.iter().any(|extent| extent.source == ExtentSource::Staged)
        };
        let beside = if file.rounds().iter().any(is_beside) { self.staged_bytes(&ranges_name(id))? } else { 0 };
        let most = last.size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        let after = before.saturating_add(beside).min(most);
        growth.comes += after.saturating_sub(before);
        growth.goes += before.saturating_sub(after);
        Ok(())
    }

    fn allocated(&mut self, id: &InodeId) -> Result<u64, ApplyError> {
        let node = self.open(id)?;
        self.tree.allocated(&node).on("look at", id)
    }

    fn staged_bytes(&mut self, name: &[u8]) -> Result<u64, ApplyError> {
        let show = || String::from_utf8_lossy(name).into_owned();
        match self.tree.open(&self.tree.area(Area::Staging), name, NodeType::Regular) {
            Ok(node) => self.tree.allocated(&node).on("look at the staged", show()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(ApplyError::from_io("look at the staged", show(), error)),
        }
    }
}
