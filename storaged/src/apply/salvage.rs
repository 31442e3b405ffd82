//! Salvage: what a staging that was not finished brought is not sent again.
//!
//! A staging ends without a publish when its session is lost or either side crashes. Its files stay where they are, in
//! `staging/files`, and the staging after it finds them by inode id (in a nest, [`super::nests`], by the name that was listed): it goes on with the same file, and a piece that the writer
//! names by digest counts as there if the bytes at its place hash to it. They are hints. Nothing of them is part of the new staging
//! before that is so, what was not confirmed is cleared before the publish, and a file that was torn by a power loss only costs its
//! bytes once more.
//!
//! Bounds: there is at most one object and one file of ranges for an inode; all of it is deleted by the publish that follows, and
//! what no staging has taken is deleted when the disk is full.

use tandem_proto::{ids::InodeId, stage::NodeType};

use super::{
    content::ranges_name,
    error::{ApplyError, OnObject as _},
    objects::{Objects, area_name},
    record::ObjectIdentity,
    staging::Staging,
};
use crate::{
    catalog::Cell,
    tree::{Area, ReplicaTree},
};

/// What a staged file has from an unfinished staging.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvage {
    /// Its object was found: ranges, from start to end, of which the writer has said that they are right.
    pub confirmed: Option<Vec<(u64, u64)>>,
    /// The file with content beside its object was found.
    pub beside: bool,
}

impl Salvage {
    /// A range of the object is as it should be.
    pub fn confirm(&mut self, offset: u64, len: u64) {
        let Some(confirmed) = &mut self.confirmed else { return };
        match confirmed.last_mut() {
            Some(last) if last.1 == offset => last.1 += len,
            _ => confirmed.push((offset, offset.saturating_add(len))),
        }
    }
}

impl<T: ReplicaTree> Objects<T> {
    /// A staging was given up: from here on its files are salvage.
    pub fn keep_salvage(&mut self) -> Result<(), ApplyError> {
        self.staged.clear();
        let left = self.tree.list(&self.tree.area(Area::Staging)).on("list", Area::Staging.path())?;
        self.salvaged = left.len() as u64;
        Ok(())
    }

    fn has_staging_file(&self, name: &[u8]) -> Result<bool, ApplyError> {
        let staging = self.tree.area(Area::Staging);
        let found = self.tree.find(&staging, name).on("look for a staging file", String::from_utf8_lossy(name))?;
        Ok(found.is_some_and(|found| found.node_type == NodeType::Regular))
    }

    /// Finds the salvaged file that shall be called `wanted`; it may be called `other`.
    fn salvaged_as(&mut self, wanted: &[u8], other: &[u8]) -> Result<bool, ApplyError> {
        if self.salvaged == 0 {
            return Ok(false);
        }
        if self.has_staging_file(wanted)? {
            return Ok(true);
        }
        if !self.has_staging_file(other)? {
            return Ok(false);
        }
        let staging = self.tree.area(Area::Staging);
        self.tree
            .rename(&staging, other, &staging, wanted)
            .on("rename a salvaged file to", String::from_utf8_lossy(wanted))?;
        Ok(true)
    }

    /// The object that an unfinished staging left for a new file that was `listed` there, with its new size.
    pub fn salvaged_object(
        &mut self,
        id: &InodeId,
        size: u64,
        listed: Option<&Cell>,
    ) -> Result<Option<ObjectIdentity>, ApplyError> {
        let listed = listed.filter(|_| self.salvaged > 0);
        let found = self.salvaged_as(&area_name(id), &ranges_name(id))?
            || listed.map_or(Ok(false), |listed| self.salvage_from_nest(id, listed))?;
        if !found {
            return Ok(None);
        }
        let node = self.staging_file(&area_name(id))?;
        self.tree.set_size(&node, size).on("stage", id)?;
        self.tree.identity(&node).on("identify the staged", id).map(Some)
    }

    /// Whether an unfinished staging left content for a file that has an object; `staged`: one of this staging.
    pub fn salvage_beside(&mut self, id: &InodeId, staged: bool) -> Result<bool, ApplyError> {
        let ranges = ranges_name(id);
        let other = if staged { ranges.clone() } else { area_name(id) };
        self.salvaged_as(&ranges, &other)
    }

    /// Deletes salvage that `staging` has not taken. Whether there was any.
    pub fn drop_salvage(&mut self, staging: Option<&Staging>) -> Result<bool, ApplyError> {
        if self.salvaged == 0 {
            return Ok(false);
        }
        self.salvaged = 0;
        let mut kept = std::collections::HashSet::new();
        for id in staging.into_iter().flat_map(|staging| staging.files.keys()) {
            kept.extend([area_name(id), ranges_name(id)]);
        }
        let area = self.tree.area(Area::Staging);
        let mut dropped = false;
        for (name, node_type) in self.tree.list(&area).on("list", Area::Staging.path())? {
            if node_type == NodeType::Directory {
                // A nest of a staging that is over: one that found any makes none.
                self.flatten(&area, &name, Area::Staging)?;
                dropped = true;
            } else if !kept.contains(&name[..]) {
                self.tree.unlink(&area, &name).on("delete from", Area::Staging.path())?;
                dropped = true;
            }
        }
        Ok(dropped)
    }
}
