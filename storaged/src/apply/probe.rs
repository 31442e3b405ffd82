//! Looks where things are when the tree may be ahead of the catalog: after a crash, or after a step that failed.
//!
//! Since the checkpoint only names that the log assigns can have changed, so only those are looked at, in directories whose own
//! place is sure. What stands there is recognised by its identity. What is not known was born after the checkpoint, so its whole
//! content is in the log: it goes to limbo, is searched for known objects (which are parked) and deleted. In the end the catalog
//! says what the tree is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tandem_proto::{
    ids::{InodeId, Name},
    stage::NodeType,
};
use tandem_runtime::mutant;

use super::{
    changeset::Changeset,
    error::{ApplyError, OnObject as _},
    objects::{Objects, area_name},
    record::ObjectIdentity,
};
use crate::{
    catalog::Cell,
    tree::{Area, Found, ReplicaTree},
};

#[derive(Default)]
struct Search {
    /// Objects that can be met.
    known: HashMap<ObjectIdentity, InodeId>,
    /// Names that were not looked at yet.
    pending: BTreeMap<InodeId, BTreeSet<Name>>,
    mentioned: BTreeSet<InodeId>,
    gained: BTreeSet<InodeId>,
}

impl Search {
    fn look_at(&mut self, cell: Cell) {
        self.pending.entry(cell.0).or_default().insert(cell.1);
    }

    fn is_pending(&self, cell: &Cell) -> bool {
        self.pending.get(&cell.0).is_some_and(|names| names.contains(&cell.1))
    }
}

impl<T: ReplicaTree> Objects<T> {
    /// See the module.
    pub fn probe(&mut self, net: &Changeset) -> Result<(), ApplyError> {
        self.close_handles();
        let mut search = self.what_to_look_for(net)?;
        loop {
            if !self.look_at_sure_places(&mut search)? && !self.search_limbo(&mut search)? {
                break;
            }
        }
        // Their directories are nowhere: born after the checkpoint, or removed.
        for (dir, names) in std::mem::take(&mut search.pending) {
            for name in names {
                self.catalog.set_entry(&dir, &name, None)?;
            }
        }
        for id in &search.mentioned {
            if !search.gained.contains(id) && self.catalog.node(id)?.is_some() {
                self.forget_tree(id)?;
            }
        }
        Ok(())
    }

    fn what_to_look_for(&mut self, net: &Changeset) -> Result<Search, ApplyError> {
        let mut search = Search::default();
        for (dir, dir_net) in &net.dirs {
            for (name, id) in &dir_net.names {
                search.look_at((*dir, name.clone()));
                search.gained.extend(*id);
                search.mentioned.extend(self.catalog.entry(dir, name)?);
            }
            if dir_net.complete {
                for (name, id) in self.catalog.entries(dir, None, usize::MAX)? {
                    search.look_at((*dir, name));
                    search.mentioned.insert(id);
                }
            }
        }
        search.mentioned.extend(search.gained.iter().copied());
        for id in search.gained.clone() {
            for cell in self.catalog.names(&id, usize::MAX)? {
                search.look_at(cell);
            }
        }
        for id in search.mentioned.clone() {
            if let Some(record) = self.catalog.node(&id)? {
                search.known.insert(record.identity, id);
            }
        }
        for id in self.staged.keys() {
            if let Some(identity) = self.staged_object(id) {
                search.known.insert(identity.clone(), *id);
            }
        }
        self.find_parked(&mut search)?;
        Ok(search)
    }

    fn find_parked(&mut self, search: &mut Search) -> Result<(), ApplyError> {
        self.parked.clear();
        let parking = self.tree.area(Area::Parked);
        for (name, _) in self.tree.list(&parking).on("list", Area::Parked.path())? {
            let found = self.tree.find(&parking, &name).on("look at", Area::Parked.path())?;
            let Some(found) = found else { continue };
            let id = std::str::from_utf8(&name).ok().and_then(InodeId::from_hex);
            let is_it = match id {
                Some(id) => {
                    self.catalog.node(&id)?.is_some_and(|record| record.identity == found.identity)
                        || self.staged_object(&id) == Some(&found.identity)
                }
                None => false,
            };
            match id.filter(|_| is_it) {
                Some(id) => {
                    search.known.insert(found.identity.clone(), id);
                    search.mentioned.insert(id);
                    self.note_parked(search, id, &found)?;
                }
                None => _ = self.move_aside(&parking, &name, Area::Limbo)?,
            }
        }
        Ok(())
    }

    /// An object is in the parking area: its names are not sure any more, and a directory has none.
    fn note_parked(&mut self, search: &mut Search, id: InodeId, found: &Found) -> Result<(), ApplyError> {
        self.parked.insert(id);
        if let Some(identity) = self.staged_object(&id).cloned() {
            self.record_staged(&id, identity, Default::default())?;
        }
        for cell in self.catalog.names(&id, usize::MAX)? {
            if found.node_type == NodeType::Directory {
                self.catalog.set_entry(&cell.0, &cell.1, None)?;
            }
            search.look_at(cell);
        }
        Ok(())
    }

    /// Looks at the pending names of every directory whose place is sure. Whether there were any.
    fn look_at_sure_places(&mut self, search: &mut Search) -> Result<bool, ApplyError> {
        let mut progress = false;
        let dirs: Vec<InodeId> = search.pending.keys().copied().collect();
        for dir in dirs {
            if !self.is_sure(search, &dir)? {
                continue;
            }
            let node = self.open(&dir)?;
            for name in search.pending.remove(&dir).unwrap_or_default() {
                self.look(search, &node, &(dir, name))?;
            }
            progress = true;
        }
        Ok(progress)
    }

    /// Whether a directory is where the catalog says, or parked.
    fn is_sure(&self, search: &Search, dir: &InodeId) -> Result<bool, ApplyError> {
        let (mut at, mut steps) = (*dir, 0u32);
        loop {
            if at.is_root() || self.parked.contains(&at) {
                return Ok(true);
            }
            let names = self.catalog.names(&at, usize::MAX)?;
            match names.first() {
                Some(cell) if names.len() == 1 && !search.is_pending(cell) => at = cell.0,
                _ => return Ok(false),
            }
            steps += 1;
            if steps > 1 << 20 {
                return Err(ApplyError::damaged(dir, "its directories form a loop in the catalog"));
            }
        }
    }

    fn look(&mut self, search: &mut Search, dir: &T::Node, cell: &Cell) -> Result<(), ApplyError> {
        let found = self.tree.find(dir, cell.1.as_bytes()).on("look at", &cell.1)?;
        let mut known = found.as_ref().and_then(|found| search.known.get(&found.identity)).copied();
        if mutant::is("redo-by-name") && found.is_some() {
            known = self.catalog.entry(&cell.0, &cell.1)?.or(known);
        }
        match (found, known) {
            (None, _) => _ = self.catalog.set_entry(&cell.0, &cell.1, None)?,
            (Some(found), Some(id)) => {
                if let Some(identity) = self.staged_object(&id).cloned() {
                    self.record_staged(&id, identity, Default::default())?;
                }
                if found.node_type == NodeType::Directory {
                    for other in self.catalog.names(&id, usize::MAX)? {
                        self.catalog.set_entry(&other.0, &other.1, None)?;
                    }
                }
                self.catalog.set_entry(&cell.0, &cell.1, Some(&id))?;
                self.touch_if_directory(Some(&id))?;
            }
            (Some(_), None) => {
                self.move_aside(dir, cell.1.as_bytes(), Area::Limbo)?;
                self.catalog.set_entry(&cell.0, &cell.1, None)?;
            }
        }
        self.touched.insert(cell.0);
        Ok(())
    }

    /// Empties limbo; known objects in it are parked. Whether there were any.
    fn search_limbo(&mut self, search: &mut Search) -> Result<bool, ApplyError> {
        let (limbo, parking) = (self.tree.area(Area::Limbo), self.tree.area(Area::Parked));
        let mut progress = false;
        loop {
            let names = self.tree.list(&limbo).on("list", Area::Limbo.path())?;
            if names.is_empty() {
                return Ok(progress);
            }
            for (name, _) in names {
                let Some(found) = self.tree.find(&limbo, &name).on("look at", Area::Limbo.path())? else { continue };
                match search.known.get(&found.identity).copied() {
                    Some(id) if self.parked.contains(&id) => {
                        self.tree.unlink(&limbo, &name).on("remove a name of", id)?;
                    }
                    Some(id) => {
                        self.tree.rename(&limbo, &name, &parking, &area_name(&id)).on("park", id)?;
                        self.note_parked(search, id, &found)?;
                        progress = true;
                    }
                    None if found.node_type == NodeType::Directory => self.open_up(&limbo, &name)?,
                    None => self.tree.unlink(&limbo, &name).on("delete from", Area::Limbo.path())?,
                }
            }
        }
    }

    /// Brings what an unknown directory holds into limbo itself.
    fn open_up(&mut self, limbo: &T::Node, name: &[u8]) -> Result<(), ApplyError> {
        let dir = self.tree.open(limbo, name, NodeType::Directory).on("open in", Area::Limbo.path())?;
        for (child, _) in self.tree.list(&dir).on("list in", Area::Limbo.path())? {
            self.move_aside(&dir, &child, Area::Limbo)?;
        }
        self.tree.rmdir(limbo, name).on("delete from", Area::Limbo.path())
    }
}
