//! Nests: new small files of a new directory, staged under their names in a directory that the publish moves into the tree as a whole.
//!
//! ```text
//!   staging/files/<id of the directory>/<name>   ── one rename ──►   tree/…/<name of the directory>/<name>
//! ```
//! In a first sync onto an empty replica every directory is new, and when a file's turn comes, its name was listed a moment before. Each
//! file costs no rename then, and no place in one directory with all the others. Everywhere else staged files stand at `<id>`, and so do
//! these as soon as anything happens that is not the plain case: the nest is *void*, and emptied before it matters. What it is emptied by
//! is identity, so what was told of names needs not be right. After a crash no nest is known, and all that are there are emptied.
//!
//! A nest is made only where no staging left anything: what stands in one was put there by this staging.

use std::collections::{HashMap, HashSet};

use tandem_proto::{
    ids::{InodeId, Name},
    op::{Change, NodeKind, Op},
    position::Position,
    stage::{Listing, NodeType, StageDir},
};

use super::{
    error::{ApplyError, OnObject as _},
    objects::{Objects, area_name, show},
    record::ObjectIdentity,
    staging::Staging,
};
use crate::{
    catalog::{Cell, NodeRecord},
    tree::{Area, ReplicaTree},
};

/// Names that are remembered until their files come. A mount lists some 50,000 ahead.
const EXPECTED_MAX: usize = 1 << 16;

/// The directory in which new files of one directory stand.
#[derive(Debug)]
struct Nest {
    dir: InodeId,
    identity: ObjectIdentity,
    files: usize,
    /// It is not what the publish can use.
    void: bool,
}

/// The nests of a staging.
#[derive(Debug, Default)]
pub struct Nests {
    /// The replica was empty when the staging began.
    first_sync: bool,
    /// Nests are made.
    on: bool,
    nests: Vec<Nest>,
    by_dir: HashMap<InodeId, u32>,
    /// Where a file that was listed will stand; `None`: it has several names.
    expected: HashMap<InodeId, Option<Cell>>,
    /// Directories whose names were told more than once.
    barred: HashSet<InodeId>,
}

impl Nests {
    /// No file that comes from now on is put into the directory's nest, nor is it used.
    fn bar(&mut self, dir: InodeId) {
        if self.first_sync {
            self.barred.insert(dir);
            self.void(self.by_dir.get(&dir).copied());
        }
    }

    fn void(&mut self, at: Option<u32>) {
        if let Some(nest) = at.and_then(|at| self.nests.get_mut(at as usize)) {
            nest.void = true;
        }
    }
}

impl Staging {
    /// At its beginning: whether it is a first sync, and whether anything is there of another staging.
    pub(super) fn begin_nests<T: ReplicaTree>(&mut self, objects: &Objects<T>) -> Result<(), ApplyError> {
        self.nests.first_sync = objects.catalog.entries(&InodeId::ROOT, None, 1)?.is_empty();
        self.nests.on = self.nests.first_sync && objects.salvaged == 0;
        Ok(())
    }

    /// Names are about to be staged. Call it again if that failed.
    pub(super) fn note_names(&mut self, dir: &StageDir) {
        if !self.nests.first_sync {
            return;
        }
        let again = self.is_named(&dir.dir) || dir.listing != Listing::CompleteEnd;
        if again || dir.dir.is_root() {
            self.nests.bar(dir.dir);
        }
        for entry in &dir.entries {
            let Some((id, NodeType::Regular)) = entry.node else { continue };
            if let Some(file) = self.files.get(&id) {
                self.nests.void(file.nest.checked_sub(1));
            } else if let Some(cell) = self.nests.expected.get_mut(&id) {
                *cell = None;
            } else if self.nests.expected.len() < EXPECTED_MAX {
                self.nests.expected.insert(id, Some((dir.dir, entry.name.clone())));
            }
        }
    }

    /// Ops are about to be staged.
    pub(super) fn note_op_names(&mut self, ops: &[Op]) {
        if !self.nests.first_sync {
            return;
        }
        for change in ops.iter().flat_map(|op| &op.changes) {
            let Change::Entry { dir, new, .. } = change else { continue };
            self.nests.bar(*dir);
            let Some(id) = new else { continue };
            if let Some(cell) = self.nests.expected.get_mut(id) {
                *cell = None;
            }
            self.nests.void(self.files.get(id).and_then(|file| file.nest.checked_sub(1)));
        }
    }

    /// Where a new file was listed, told once.
    pub(super) fn expected_at(&mut self, id: &InodeId) -> Option<Cell> {
        self.nests.expected.remove(id).flatten()
    }

    /// Makes the object of a new file in the nest of its directory. `None`: it has none, or may not.
    pub(super) fn make_in_nest<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        id: &InodeId,
        (dir, name): &Cell,
    ) -> Result<Option<(ObjectIdentity, T::Node)>, ApplyError> {
        if !self.nests.on || self.nests.barred.contains(dir) {
            return Ok(None);
        }
        let Some((at, node)) = self.nest_of(objects, dir)? else { return Ok(None) };
        match objects.tree.create(&node, name.as_bytes(), &NodeKind::Regular) {
            Ok((identity, made)) => {
                let made = match made {
                    Some(made) => made,
                    None => objects.tree.open(&node, name.as_bytes(), NodeType::Regular).on("stage", id)?,
                };
                if let Some(nest) = self.nests.nests.get_mut(at as usize) {
                    nest.files += 1;
                }
                self.files.entry(*id).or_default().nest = at + 1;
                Ok(Some((identity, made)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                self.nests.bar(*dir);
                Ok(None)
            }
            Err(error) => Err(ApplyError::from_io("stage", id, error)),
        }
    }

    /// The nest of a directory that the replica does not have.
    fn nest_of<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        dir: &InodeId,
    ) -> Result<Option<(u32, T::Node)>, ApplyError> {
        if let Some((at, node)) = objects.nest.as_ref().filter(|(at, _)| self.nests.by_dir.get(dir) == Some(at)) {
            return Ok(Some((*at, node.clone())));
        }
        let (staging, name) = (objects.tree.area(Area::Staging), area_name(dir));
        let at = match self.nests.by_dir.get(dir) {
            Some(at) => *at,
            None if objects.catalog.has_node(dir)? => return Ok(None),
            None => {
                let identity = match objects.tree.create(&staging, &name, &NodeKind::Directory) {
                    Ok((identity, _)) => identity,
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        self.nests.bar(*dir);
                        return Ok(None);
                    }
                    Err(error) => return Err(ApplyError::from_io("stage the directory", dir, error)),
                };
                let at = self.nests.nests.len() as u32;
                self.nests.nests.push(Nest { dir: *dir, identity, files: 0, void: false });
                self.nests.by_dir.insert(*dir, at);
                at
            }
        };
        let node = objects.tree.open(&staging, &name, NodeType::Directory).on("open the staged directory", dir)?;
        objects.nest = Some((at, node.clone()));
        Ok(Some((at, node)))
    }

    /// The file's object stands at its id from here on.
    pub(super) fn leave_nest<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        id: &InodeId,
    ) -> Result<(), ApplyError> {
        let Some(at) = self.files.get(id).and_then(|file| file.nest.checked_sub(1)) else { return Ok(()) };
        if let Some(dir) = self.nests.nests.get(at as usize).map(|nest| nest.dir) {
            self.nests.bar(dir);
        }
        self.empty_void_nests(objects)
    }

    /// All staged files stand at their ids from here on.
    pub(super) fn leave_nests<T: ReplicaTree>(&mut self, objects: &mut Objects<T>) -> Result<(), ApplyError> {
        self.nests.on = false;
        self.nests.nests.iter_mut().for_each(|nest| nest.void = true);
        self.empty_void_nests(objects)
    }

    /// Files in void nests go to their ids. If it fails it may be called again.
    fn empty_void_nests<T: ReplicaTree>(&mut self, objects: &mut Objects<T>) -> Result<(), ApplyError> {
        let void = |nest: &&Nest| nest.void && nest.files > 0;
        let dirs: Vec<InodeId> = self.nests.nests.iter().filter(void).map(|nest| nest.dir).collect();
        if dirs.is_empty() {
            return Ok(());
        }
        objects.nest = None;
        let mut whose = HashMap::new();
        for (id, file) in &mut self.files {
            let Some(at) = file.nest.checked_sub(1) else { continue };
            if self.nests.nests.get(at as usize).is_some_and(|nest| nest.void)
                && let Some((identity, _)) = &file.object
            {
                whose.insert(identity.clone(), *id);
            }
        }
        for dir in dirs {
            objects.empty_nest(&area_name(&dir), &whose)?;
            if let Some(nest) = self.nests.by_dir.get(&dir).and_then(|at| self.nests.nests.get_mut(*at as usize)) {
                nest.files = 0;
            }
        }
        for file in self.files.values_mut() {
            let at = file.nest.checked_sub(1).and_then(|at| self.nests.nests.get(at as usize));
            if at.is_some_and(|nest| nest.void) {
                file.nest = 0;
            }
        }
        Ok(())
    }

    /// Before the publish: which nests become directories of the tree. Those that hold anything but what their directory will hold of
    /// staged files, each by its one name, are emptied.
    pub(super) fn settle_nests<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
    ) -> Result<HashMap<InodeId, ObjectIdentity>, ApplyError> {
        objects.nest = None;
        let nests = &mut self.nests;
        let mut named: Vec<Vec<&Name>> = nests.nests.iter().map(|_| Vec::new()).collect();
        if !nests.nests.is_empty() {
            for (dir, net) in &self.base.dirs {
                for (name, id) in &net.names {
                    let file = id.as_ref().and_then(|id| self.files.get(id));
                    let Some(at) = file.and_then(|file| file.nest.checked_sub(1)) else { continue };
                    match nests.nests.get(at as usize) {
                        Some(nest) if nest.dir == *dir => named[at as usize].push(name),
                        _ => nests.void(Some(at)),
                    }
                }
            }
        }
        for (nest, names) in nests.nests.iter_mut().zip(named) {
            let is_new = self
                .base
                .nodes
                .get(&nest.dir)
                .is_some_and(|node| node.kind.as_ref().is_some_and(NodeKind::is_directory) && !node.birth)
                && !objects.catalog.has_node(&nest.dir)?;
            nest.void = nest.void || !is_new || names.len() != nest.files || !objects.nest_holds(&nest.dir, &names)?;
        }
        self.empty_void_nests(objects)?;
        let useful = self.nests.nests.iter().filter(|nest| !nest.void);
        Ok(useful.map(|nest| (nest.dir, nest.identity.clone())).collect())
    }

    /// The same for a publish that was begun before, or is done again after a crash: nothing is known of any nest.
    pub(super) fn forget_nests<T: ReplicaTree>(&mut self, objects: &mut Objects<T>) -> Result<(), ApplyError> {
        objects.nest = None;
        self.nests = Nests::default();
        for file in self.files.values_mut() {
            file.nest = 0;
        }
        let found = objects.left_nests()?;
        if found.is_empty() {
            return Ok(());
        }
        let with_objects = self.files.iter().filter_map(|(id, file)| Some((file.object.as_ref()?.0.clone(), *id)));
        let whose = with_objects.collect();
        found.iter().try_for_each(|name| objects.empty_nest(name, &whose))
    }
}

impl<T: ReplicaTree> Objects<T> {
    /// Nests that are in the staging area.
    pub(super) fn left_nests(&self) -> Result<Vec<bytes::Bytes>, ApplyError> {
        let found = self.tree.list(&self.tree.area(Area::Staging)).on("list", Area::Staging.path())?;
        Ok(found.into_iter().filter(|(_, kind)| *kind == NodeType::Directory).map(|(name, _)| name).collect())
    }

    /// Moves what stands in a nest to its id, and removes the nest. What is nobody's is deleted.
    fn empty_nest(&mut self, nest: &[u8], whose: &HashMap<ObjectIdentity, InodeId>) -> Result<(), ApplyError> {
        let staging = self.tree.area(Area::Staging);
        let node = match self.tree.open(&staging, nest, NodeType::Directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            answer => answer.on("open a nest", String::from_utf8_lossy(nest))?,
        };
        for (name, node_type) in self.tree.list(&node).on("list a nest", String::from_utf8_lossy(nest))? {
            let found = self.tree.find(&node, &name).on("look at the staged", String::from_utf8_lossy(&name))?;
            match found.and_then(|found| whose.get(&found.identity)) {
                Some(id) => self.tree.rename(&node, &name, &staging, &area_name(id)).on("stage", id)?,
                None if node_type == NodeType::Directory => _ = self.move_aside(&node, &name, Area::Discard)?,
                None => self.tree.unlink(&node, &name).on("delete from", Area::Staging.path())?,
            }
        }
        self.tree.rmdir(&staging, nest).on("remove a nest", String::from_utf8_lossy(nest))
    }

    /// Whether a nest holds files with these names, and nothing else. Names that were cut look like others: no.
    fn nest_holds(&self, dir: &InodeId, names: &[&Name]) -> Result<bool, ApplyError> {
        let node = match self.tree.open(&self.tree.area(Area::Staging), &area_name(dir), NodeType::Directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            answer => answer.on("open the staged directory", dir)?,
        };
        let found = self.tree.list(&node).on("list the staged directory", dir)?;
        let found: HashSet<&[u8]> = found.iter().map(|(name, _)| &name[..]).collect();
        Ok(found.len() == names.len() && names.iter().all(|name| found.contains(name.as_bytes())))
    }

    /// A nest becomes a directory of the tree, with all that it holds.
    pub(super) fn place_nest(
        &mut self,
        id: &InodeId,
        cell: &Cell,
        identity: ObjectIdentity,
        born: Position,
    ) -> Result<(), ApplyError> {
        let (staging, dir) = (self.tree.area(Area::Staging), self.open(&cell.0)?);
        self.tree.rename(&staging, &area_name(id), &dir, cell.1.as_bytes()).on("place", show(cell))?;
        let record = NodeRecord { kind: NodeKind::Directory, identity, born, dir_mtime: None, side: None };
        self.catalog.put_node(id, &record)?;
        self.name(cell, Some(id))
    }

    /// What a staging that was not finished left of a file in a nest goes to its id. Whether there was anything.
    pub(super) fn salvage_from_nest(&mut self, id: &InodeId, (dir, name): &Cell) -> Result<bool, ApplyError> {
        let staging = self.tree.area(Area::Staging);
        let nest = match self.tree.open(&staging, &area_name(dir), NodeType::Directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            answer => answer.on("open a nest of", dir)?,
        };
        let found = self.tree.find(&nest, name.as_bytes()).on("look for a staging file", id)?;
        if found.is_none_or(|found| found.node_type != NodeType::Regular) {
            return Ok(false);
        }
        self.tree.rename(&nest, name.as_bytes(), &staging, &area_name(id)).on("rename a salvaged file to", id)?;
        Ok(true)
    }
}
