//! Names of the tree that somebody changed from outside, found by a verify: afterwards the catalog says what the tree is, and a resync can
//! put it right. Nothing is deleted: what nobody knows goes to `history/`.

use std::collections::HashSet;

use tandem_proto::{ids::Name, position::Position};

use super::{
    Replica,
    changeset::Changeset,
    error::{ApplyError, OnObject as _},
    objects::Objects,
};
use crate::{
    catalog::Cell,
    tree::{Area, ReplicaTree},
};

impl<T: ReplicaTree> Replica<T> {
    /// Looks at these names, from the top down. Where an object is gone, or another one stands, the catalog forgets it; one that stands at
    /// another of these names gets that name. How many unknown objects were moved to history.
    pub fn mend(&mut self, cells: &[Cell]) -> Result<usize, ApplyError> {
        if self.staging.is_some() || self.unsettled {
            return Err(ApplyError::protocol("names of the tree", "apply is in the middle of something"));
        }
        let position = self.applied();
        self.objects.close_handles();
        let kept = self.objects.set_strangers_aside(cells, position)?;
        let (mut net, mut named) = (Changeset::default(), Vec::new());
        for (dir, name) in cells {
            let id = self.objects.catalog.entry(dir, name)?;
            named.extend(id);
            net.set_entry(*dir, name, id);
        }
        // If it stops in the middle, what comes next looks closely as well.
        self.unsettled = true;
        self.objects.probe(&net)?;
        // What has no name any more is gone, with all below it.
        for id in named {
            if self.objects.catalog.has_node(&id)? {
                self.objects.forget_tree(&id)?;
            }
        }
        self.unsettled = false;
        self.checkpoint()?;
        Ok(kept)
    }
}

impl<T: ReplicaTree> Objects<T> {
    /// Moves objects that no inode of these names owns to `history/<position>/`.
    fn set_strangers_aside(&mut self, cells: &[Cell], position: Position) -> Result<usize, ApplyError> {
        let mut ours = HashSet::new();
        for (dir, name) in cells {
            if let Some(id) = self.catalog.entry(dir, name)?
                && let Some(record) = self.catalog.node(&id)?
            {
                ours.insert(record.identity);
            }
        }
        let mut kept = 0;
        for cell in cells {
            // A directory that is gone, or another one, is seen at its own name.
            let Ok(dir) = self.open(&cell.0) else { continue };
            let is_it = self
                .catalog
                .node(&cell.0)?
                .is_some_and(|record| self.tree.identity(&dir).is_ok_and(|identity| identity == record.identity));
            if !is_it {
                self.close_handles();
                continue;
            }
            let Some(found) = self.tree.find(&dir, cell.1.as_bytes()).on("look at", &cell.1)? else { continue };
            if ours.contains(&found.identity) {
                continue;
            }
            self.keep_stranger(&dir, cell, position)?;
            kept += 1;
        }
        // Some handles may be of what is in history now.
        self.close_handles();
        Ok(kept)
    }

    fn keep_stranger(&mut self, dir: &T::Node, cell: &Cell, position: Position) -> Result<(), ApplyError> {
        let (mut path, mut at) = (Vec::new(), cell.0);
        while let Some((parent, name)) = self.catalog.names(&at, 1)?.into_iter().next() {
            path.push(name);
            at = parent;
        }
        let mut kept = self.tree.area(Area::History);
        let place = Name::new(format!("{}-{}", position.epoch, position.seq));
        for name in place.into_iter().chain(path.into_iter().rev()) {
            kept = self.history_dir(&kept, &name)?;
        }
        let mut target = cell.1.as_bytes().to_vec();
        while self.tree.find(&kept, &target).on("look in history at", &cell.1)?.is_some() {
            let suffix = format!(".{}", self.next_number());
            target.truncate(255 - suffix.len());
            target.extend_from_slice(suffix.as_bytes());
        }
        self.tree.rename(dir, cell.1.as_bytes(), &kept, &target).on("move to history", &cell.1)
    }
}
