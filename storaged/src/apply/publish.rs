//! Publish: the staged model becomes the tree. Idempotent: it may be repeated from any point of itself, until its checkpoint.

use std::collections::HashMap;

use tandem_proto::{ids::InodeId, op::Op, position::Position};

use super::{
    Published,
    error::ApplyError,
    execute::{Manner, data_target},
    objects::Objects,
    record::{Record, RecordSource},
    staging::Staging,
};
use crate::tree::{Area, ReplicaTree};

impl<T: ReplicaTree> Objects<T> {
    /// Brings tree and catalog to the staged state. `probe`: an earlier attempt may have done part of it.
    pub fn publish(
        &mut self,
        staging: &mut Staging,
        position: Position,
        log: &dyn RecordSource,
        probe: bool,
    ) -> Result<Published, ApplyError> {
        self.adopt(staging)?;
        staging.fold();
        self.nests = HashMap::new();
        if probe {
            staging.forget_nests(self)?;
        } else {
            self.nests = staging.settle_nests(self)?;
        }
        for (id, file) in &mut staging.files {
            file.placed = file.object.is_none() || self.catalog.has_node(id)?;
        }
        // Lent and not copied: there may be millions.
        self.staged = std::mem::take(&mut staging.files);
        let keep_as = staging.full.then_some(position);
        let settled = self.settle(&staging.base, Manner { probe, keep_as, born: position });
        staging.files = std::mem::take(&mut self.staged);
        self.nests = HashMap::new();
        let settled = settled?;
        self.publish_data(staging, log)?;
        self.assign_metadata(&staging.base, &|id| staging.is_dressed(id))?;
        let mut changed = Vec::with_capacity(staging.files.len());
        for (id, node) in &staging.net().nodes {
            if node.data && self.catalog.has_node(id)? {
                changed.push(*id);
            }
        }
        changed.extend(staging.files.keys().filter(|id| self.catalog.has_node(id).unwrap_or(false)));
        changed.sort_unstable();
        changed.dedup();
        Ok(Published { changed, removed: settled.removed })
    }

    /// Inodes that took over an object get its record, its names and, if it is a directory, what it holds.
    fn adopt(&mut self, staging: &Staging) -> Result<(), ApplyError> {
        for (new, old) in &staging.adopted {
            // An interrupted attempt did it already.
            let Some(mut record) = self.catalog.node(old)? else { continue };
            record.born = staging.end;
            self.catalog.put_node(new, &record)?;
            for (dir, name) in self.catalog.names(old, usize::MAX)? {
                self.catalog.set_entry(&dir, &name, Some(new))?;
            }
            for (name, child) in self.catalog.entries(old, None, usize::MAX)? {
                self.catalog.set_entry(old, &name, None)?;
                self.catalog.set_entry(new, &name, Some(&child))?;
            }
            self.catalog.remove_node(old)?;
            self.close_handle(old);
        }
        self.catalog.relieve()?;
        Ok(())
    }

    /// Round by round: content that lies beside its object, then the data of the round's ops, out of the log.
    fn publish_data(&mut self, staging: &Staging, log: &dyn RecordSource) -> Result<(), ApplyError> {
        let beside = staging.files.values().any(|file| !file.rounds().is_empty());
        if !beside && !staging.has_op_data() {
            return Ok(());
        }
        let mut current = 0;
        for record in log.records()? {
            match record? {
                Record::StageBegin { serial, round, .. } if serial == staging.serial => {
                    current = round;
                    self.publish_round(staging, round)?;
                }
                // Another one, that was dropped.
                Record::StageBegin { .. } => current = 0,
                Record::StagedOps { ops, .. } if current > 0 => self.publish_ops(staging, current, &ops)?,
                Record::Publish { serial, .. } if serial == staging.serial => break,
                _ => {}
            }
        }
        if current < staging.round {
            let problem = format!("the log has {current} rounds of the staging, {} were begun", staging.round);
            return Err(ApplyError::damaged("log", problem));
        }
        Ok(())
    }

    fn publish_round(&mut self, staging: &Staging, round: u64) -> Result<(), ApplyError> {
        for (id, file) in &staging.files {
            let Some(content) = file.rounds().iter().find(|content| content.round == round) else { continue };
            if self.catalog.has_node(id)? {
                self.apply_round(id, content)?;
            }
        }
        Ok(())
    }

    fn publish_ops(&mut self, staging: &Staging, round: u64, ops: &[Op]) -> Result<(), ApplyError> {
        for change in ops.iter().flat_map(|op| &op.changes) {
            let Some(id) = data_target(change) else { continue };
            // A new object that a later round began holds what came before.
            let object = staging.files.get(id).and_then(|file| file.object.as_ref());
            let is_older = object.is_some_and(|(_, begun)| *begun > round);
            if !is_older && self.catalog.has_node(id)? {
                self.apply_data(change)?;
            }
        }
        Ok(())
    }

    /// Deletes what a staging left: only when its publish is durable.
    pub fn clear_staging(&mut self) -> Result<(), ApplyError> {
        self.staged.clear();
        self.salvaged = 0;
        self.empty_area(Area::Staging)
    }

    /// Makes the tree durable.
    pub fn sync(&self) -> Result<(), ApplyError> {
        self.tree.sync().map_err(|source| ApplyError::Sync { object: "the replica's tree", source })
    }

    /// The names part of a redo of live ops, over a tree that may be ahead.
    pub fn redo(&mut self, net: &super::changeset::Changeset, born: Position) -> Result<(), ApplyError> {
        self.settle(net, Manner { probe: true, keep_as: None, born }).map(|_| ())
    }

    /// The data part of a redo, for inodes that live.
    pub fn redo_data(&mut self, op: &Op, changed: &mut std::collections::BTreeSet<InodeId>) -> Result<(), ApplyError> {
        for change in &op.changes {
            if let Some(id) = data_target(change)
                && self.catalog.has_node(id)?
            {
                self.apply_data(change)?;
                changed.insert(*id);
            }
        }
        Ok(())
    }
}
