//! Objects by inode id: where each is, open handles, and the single steps that change names. Every step is one change of the tree
//! followed by the same change of the catalog, so the catalog always says what the tree is, whoever stops when.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    op::NodeKind,
    position::Position,
    stage::NodeType,
};

use super::{
    error::{ApplyError, OnObject as _},
    fresh::Fresh,
    handles::{HANDLES_MAX, Handles},
    kept::{Aside, Keeper},
    litter::Litter,
    plan::View,
    record::ObjectIdentity,
    staging::StagedFile,
};
use crate::{
    catalog::{Catalog, Cell, NodeRecord, SideRecord},
    tree::{Area, ReplicaTree},
};

/// Names that are read from the catalog at once.
const ALL: usize = usize::MAX;

/// Tree and catalog together.
pub struct Objects<T: ReplicaTree> {
    /// The tree.
    pub tree: T,
    /// The catalog.
    pub catalog: Catalog,
    handles: Handles<T::Node>,
    /// Inodes whose object is in the parking area, under its id. Empty but in the middle of a plan.
    pub parked: BTreeSet<InodeId>,
    /// Empty but in a publish, which lends its new files: the objects of those that are not placed are in the staging area, under their ids.
    pub staged: BTreeMap<InodeId, Box<StagedFile>>,
    /// In a publish: staged directories that go into the tree as a whole, see [`super::nests`].
    pub(super) nests: HashMap<InodeId, ObjectIdentity>,
    /// The one of them, by number, into which files are being staged.
    pub(super) nest: Option<(u32, T::Node)>,
    /// Directories whose object's mtime was changed by a step and is not restored yet.
    pub touched: BTreeSet<InodeId>,
    /// What was discarded and is not deleted yet.
    pub litter: Litter<T::Node>,
    /// Number of files that an unfinished staging left.
    pub salvaged: u64,
    /// Devices, and bits that give rights, are in the catalog only.
    pub deny_special: bool,
    /// Keeps what loses its last name.
    pub keeper: Keeper<T::Node>,
    /// The new file that was staged last.
    pub(super) fresh: Option<Fresh<T::Node>>,
    /// What is done now was perhaps done before, and what the tree shows of it never reached its disk: nothing is taken as done.
    pub(super) again: bool,
    /// Of the live op that was begun last all names are done, and not all contents.
    pub in_contents: bool,
    /// Makes names in limbo, discard and history unique.
    counter: u64,
}

/// The name of an inode's object in an area.
pub fn area_name(id: &InodeId) -> Vec<u8> {
    id.to_hex().into_bytes()
}

pub(super) fn show(cell: &Cell) -> String {
    format!("{} in directory {}", cell.1, cell.0)
}

impl<T: ReplicaTree> Objects<T> {
    /// Takes a tree and its catalog.
    pub fn new(tree: T, catalog: Catalog) -> Self {
        Objects {
            tree,
            catalog,
            handles: Handles::new(HANDLES_MAX),
            parked: BTreeSet::new(),
            staged: BTreeMap::new(),
            nests: HashMap::new(),
            nest: None,
            touched: BTreeSet::new(),
            litter: Litter::default(),
            salvaged: 0,
            fresh: None,
            again: false,
            deny_special: false,
            keeper: Keeper::default(),
            in_contents: false,
            counter: 0,
        }
    }

    /// The root was never born: its record begins here.
    pub fn adopt_root(&mut self) -> Result<(), ApplyError> {
        if !self.catalog.has_node(&InodeId::ROOT)? {
            let identity = self.tree.identity(&self.tree.area(Area::Tree)).on("identify", "the root")?;
            let born = Position::default();
            let record = NodeRecord { kind: NodeKind::Directory, identity, born, dir_mtime: None, side: None };
            self.catalog.put_node(&InodeId::ROOT, &record)?;
        }
        Ok(())
    }

    /// Forgets everything but the tree and the catalog.
    pub fn forget(&mut self) {
        self.handles.clear();
        self.parked.clear();
        self.staged.clear();
        self.nests.clear();
        self.nest = None;
        self.fresh = None;
        self.touched.clear();
        self.litter = Litter::default();
        self.keeper.forget();
    }

    /// Forgets open handles.
    pub fn close_handles(&mut self) {
        self.handles.clear();
    }

    /// Forgets the open handle of one object.
    pub fn close_handle(&mut self, id: &InodeId) {
        self.handles.forget(id);
    }

    /// A number that was not used for a name since the start.
    pub fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// The inode's record; an error if there is none.
    pub fn known(&self, id: &InodeId) -> Result<NodeRecord, ApplyError> {
        self.catalog.node(id)?.ok_or_else(|| ApplyError::unknown(id))
    }

    /// Type that an inode's object has in the tree.
    fn object_type(record: &NodeRecord) -> NodeType {
        match &record.side {
            Some(side) if side.placeholder => NodeType::Regular,
            _ => record.kind.node_type(),
        }
    }

    /// Opens an inode's object: a directory for its names, a file for its data.
    pub fn open(&mut self, id: &InodeId) -> Result<T::Node, ApplyError> {
        // Climbs to what is open, then opens downwards: any depth, one handle a level.
        let (mut below, mut at) = (Vec::new(), *id);
        let mut node = loop {
            if at.is_root() {
                break self.tree.area(Area::Tree);
            }
            if let Some(open) = self.handles.get(&at) {
                break open;
            }
            let node_type = Self::object_type(&self.known(&at)?);
            if self.parked.contains(&at) {
                let parking = self.tree.area(Area::Parked);
                let open = self.tree.open(&parking, &area_name(&at), node_type).on("open parked", at)?;
                self.handles.put(at, open.clone());
                break open;
            }
            let names = self.catalog.names(&at, 1)?;
            let (dir, name) =
                names.into_iter().next().ok_or_else(|| ApplyError::damaged(at, "it has no name in the catalog"))?;
            below.push((at, name, node_type));
            at = dir;
            if below.len() > 1 << 20 {
                return Err(ApplyError::damaged(id, "its directories form a loop in the catalog"));
            }
        };
        for (id, name, node_type) in below.into_iter().rev() {
            node = self.tree.open(&node, name.as_bytes(), node_type).on("open", format!("{name} ({id})"))?;
            self.handles.put(id, node.clone());
        }
        Ok(node)
    }

    pub(super) fn name(&mut self, cell: &Cell, id: Option<&InodeId>) -> Result<(), ApplyError> {
        self.catalog.set_entry(&cell.0, &cell.1, id)?;
        self.touched.insert(cell.0);
        self.touch_if_directory(id)
    }

    /// A directory that is given a name by an exchange gets a new mtime on some file systems (xfs), for the sake of its `..`.
    pub fn touch_if_directory(&mut self, id: Option<&InodeId>) -> Result<(), ApplyError> {
        if let Some(id) = id
            && self.catalog.node(id)?.is_some_and(|record| record.kind.is_directory())
        {
            self.touched.insert(*id);
        }
        Ok(())
    }

    /// Creates an object at a name that is free.
    pub fn create(&mut self, id: &InodeId, kind: &NodeKind, cell: &Cell, born: Position) -> Result<(), ApplyError> {
        let dir = self.open(&cell.0)?;
        let mut side = None;
        let device = matches!(kind, NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. });
        let symlink = matches!(kind, NodeKind::Symlink(_));
        let made = match device && self.deny_special {
            true => Err(std::io::ErrorKind::PermissionDenied.into()),
            false => self.tree.create(&dir, cell.1.as_bytes(), kind),
        };
        let created = match made {
            // xfs takes a quarter of the target that ext4 takes.
            Err(error)
                if device && error.kind() == std::io::ErrorKind::PermissionDenied
                    || symlink && error.raw_os_error() == Some(libc::ENAMETOOLONG) =>
            {
                let mode = symlink.then_some(0o777);
                side = Some(Box::new(SideRecord { placeholder: true, mode, ..SideRecord::default() }));
                self.tree.create(&dir, cell.1.as_bytes(), &NodeKind::Regular)
            }
            answer => answer,
        };
        let (identity, node) = created.on("create", show(cell))?;
        let record = NodeRecord { kind: kind.clone(), identity, born, dir_mtime: None, side };
        self.catalog.put_node(id, &record)?;
        self.name(cell, Some(id))?;
        if let Some(node) = node {
            self.handles.put(*id, node);
        }
        Ok(())
    }

    /// Gives a file a further name.
    pub fn link(&mut self, id: &InodeId, cell: &Cell) -> Result<(), ApplyError> {
        let names = self.catalog.names(id, 1)?;
        let from = names.first().ok_or_else(|| ApplyError::damaged(id, "it has no name to link from"))?;
        let (from_dir, dir) = (self.open(&from.0)?, self.open(&cell.0)?);
        self.tree.link(&from_dir, from.1.as_bytes(), &dir, cell.1.as_bytes()).on("link", show(cell))?;
        self.name(cell, Some(id))
    }

    /// Removes a name of what is no directory; the inode with its last name.
    pub fn unlink(&mut self, id: &InodeId, cell: &Cell) -> Result<(), ApplyError> {
        let dir = self.open(&cell.0)?;
        if !self.keep_last_name(id, (&dir, cell.1.as_bytes()), cell)? {
            self.tree.unlink(&dir, cell.1.as_bytes()).on("unlink", show(cell))?;
        }
        self.name(cell, None)?;
        self.forget_if_nameless(id)
    }

    /// Removes an empty directory.
    pub fn rmdir(&mut self, id: &InodeId, cell: &Cell) -> Result<(), ApplyError> {
        let dir = self.open(&cell.0)?;
        if !self.keep_aside((&dir, cell.1.as_bytes()), cell, Aside::Empty)? {
            self.tree.rmdir(&dir, cell.1.as_bytes()).on("remove directory", show(cell))?;
        }
        self.name(cell, None)?;
        self.forget_if_nameless(id)
    }

    /// Renames, replacing what is there.
    pub fn rename(&mut self, id: &InodeId, from: &Cell, to: &Cell) -> Result<(), ApplyError> {
        let (from_dir, to_dir) = (self.open(&from.0)?, self.open(&to.0)?);
        let victim = self.catalog.entry(&to.0, &to.1)?;
        self.keeper.moved();
        let kept = match &victim {
            Some(victim) if self.keeps(victim)? => self.keep_replaced(victim, (&from_dir, from), (&to_dir, to))?,
            _ => false,
        };
        if !kept {
            self.tree
                .rename(&from_dir, from.1.as_bytes(), &to_dir, to.1.as_bytes())
                .on("rename", format!("{} to {}", show(from), show(to)))?;
        }
        self.name(from, None)?;
        self.name(to, Some(id))?;
        match victim {
            Some(victim) => self.forget_if_nameless(&victim),
            None => Ok(()),
        }
    }

    /// Swaps two names.
    pub fn exchange(&mut self, one: (&InodeId, &Cell), other: (&InodeId, &Cell)) -> Result<(), ApplyError> {
        let (one_dir, other_dir) = (self.open(&one.1.0)?, self.open(&other.1.0)?);
        self.keeper.moved();
        self.tree
            .exchange(&one_dir, one.1.1.as_bytes(), &other_dir, other.1.1.as_bytes())
            .on("exchange", format!("{} and {}", show(one.1), show(other.1)))?;
        self.name(one.1, Some(other.0))?;
        self.name(other.1, Some(one.0))
    }

    /// Moves an object from a name to the parking area.
    pub fn park(&mut self, id: &InodeId, cell: &Cell) -> Result<(), ApplyError> {
        let dir = self.open(&cell.0)?;
        let parking = self.tree.area(Area::Parked);
        self.keeper.moved();
        self.tree.rename(&dir, cell.1.as_bytes(), &parking, &area_name(id)).on("park", show(cell))?;
        self.parked.insert(*id);
        self.name(cell, None)
    }

    /// Moves a parked object to a name that is free.
    pub fn place_parked(&mut self, id: &InodeId, cell: &Cell) -> Result<(), ApplyError> {
        let (parking, dir) = (self.tree.area(Area::Parked), self.open(&cell.0)?);
        self.tree.rename(&parking, &area_name(id), &dir, cell.1.as_bytes()).on("place", show(cell))?;
        self.parked.remove(id);
        self.name(cell, Some(id))
    }

    /// Moves a staged file to a name that is free.
    pub fn place_staged(&mut self, id: &InodeId, cell: &Cell, born: Position) -> Result<(), ApplyError> {
        let identity = self.staged_object(id).cloned();
        let identity = identity.ok_or_else(|| ApplyError::damaged(id, "it was not staged"))?;
        // In a nest it came with its directory.
        if self.staged.get(id).is_none_or(|file| file.nest == 0) {
            let (staging, dir) = (self.tree.area(Area::Staging), self.open(&cell.0)?);
            self.tree.rename(&staging, &area_name(id), &dir, cell.1.as_bytes()).on("place", show(cell))?;
        }
        self.record_staged(id, identity, born)?;
        self.name(cell, Some(id))
    }

    /// The object of a new file, while it is in the staging area.
    pub(super) fn staged_object(&self, id: &InodeId) -> Option<&ObjectIdentity> {
        let file = self.staged.get(id).filter(|file| !file.placed)?;
        file.object.as_ref().map(|(identity, _)| identity)
    }

    /// A staged object became an inode's.
    pub fn record_staged(&mut self, id: &InodeId, identity: ObjectIdentity, born: Position) -> Result<(), ApplyError> {
        if let Some(file) = self.staged.get_mut(id) {
            file.placed = true;
        }
        let record = NodeRecord { kind: NodeKind::Regular, identity, born, dir_mtime: None, side: None };
        Ok(self.catalog.put_node(id, &record)?)
    }

    /// Removes a parked object that nothing needs, or that has names besides.
    pub fn drop_parked(&mut self, id: &InodeId) -> Result<(), ApplyError> {
        let parking = self.tree.area(Area::Parked);
        if self.known(id)?.kind.is_directory() {
            self.handles.forget(id);
            self.discard_object(&parking, &area_name(id))?;
            self.parked.remove(id);
            return self.forget_tree(id);
        }
        self.tree.unlink(&parking, &area_name(id)).on("remove parked", id)?;
        self.parked.remove(id);
        self.forget_if_nameless(id)
    }

    /// Removes a directory and everything below it, in the tree by one rename.
    pub fn discard(&mut self, id: &InodeId, cell: &Cell) -> Result<(), ApplyError> {
        let dir = self.open(&cell.0)?;
        if self.keep_aside((&dir, cell.1.as_bytes()), cell, Aside::Tree)? {
            self.handles.forget(id);
        } else {
            self.discard_object(&dir, cell.1.as_bytes())?;
        }
        self.name(cell, None)?;
        self.forget_tree(id)
    }

    /// Moves an object out of the way into an area that is emptied later.
    pub fn move_aside(&mut self, dir: &T::Node, name: &[u8], area: Area) -> Result<Vec<u8>, ApplyError> {
        let target = self.tree.area(area);
        loop {
            let aside = self.next_number().to_string().into_bytes();
            if self.tree.find(&target, &aside).on("look at", area.path())?.is_none() {
                self.tree.rename(dir, name, &target, &aside).on(
                    "set aside",
                    Name::new(Bytes::copy_from_slice(name)).map_or_else(String::new, |name| name.to_string()),
                )?;
                return Ok(aside);
            }
        }
    }

    fn discard_object(&mut self, dir: &T::Node, name: &[u8]) -> Result<(), ApplyError> {
        self.move_aside(dir, name, Area::Discard)?;
        self.litter.added();
        Ok(())
    }

    /// Forgets an inode without a name. Its object is gone or aside.
    pub fn forget_if_nameless(&mut self, id: &InodeId) -> Result<(), ApplyError> {
        if !id.is_root() && !self.parked.contains(id) && self.catalog.names(id, 1)?.is_empty() {
            self.handles.forget(id);
            self.touched.remove(id);
            self.catalog.remove_node(id)?;
        }
        Ok(())
    }

    /// Forgets a directory without a name and what it holds, but for what has other names.
    pub fn forget_tree(&mut self, top: &InodeId) -> Result<(), ApplyError> {
        let mut nameless = vec![*top];
        while let Some(id) = nameless.pop() {
            if id.is_root() || self.parked.contains(&id) || !self.catalog.names(&id, 1)?.is_empty() {
                continue;
            }
            for (name, child) in self.catalog.entries(&id, None, ALL)? {
                self.catalog.set_entry(&id, &name, None)?;
                nameless.push(child);
            }
            self.forget_if_nameless(&id)?;
        }
        Ok(())
    }

    /// Deletes what an area holds, however deep. It flattens instead of descending: one level needs one handle.
    pub fn empty_area(&mut self, area: Area) -> Result<(), ApplyError> {
        let top = self.tree.area(area);
        loop {
            let found = self.tree.list(&top).on("list", area.path())?;
            if found.is_empty() {
                return Ok(());
            }
            for (name, node_type) in found {
                if node_type == NodeType::Directory {
                    self.flatten(&top, &name, area)?;
                } else {
                    self.tree.unlink(&top, &name).on("delete from", area.path())?;
                }
            }
        }
    }

    pub(super) fn flatten(&mut self, top: &T::Node, name: &[u8], area: Area) -> Result<(), ApplyError> {
        let dir = self.tree.open(top, name, NodeType::Directory).on("open in", area.path())?;
        for (child, node_type) in self.tree.list(&dir).on("list in", area.path())? {
            if node_type == NodeType::Directory {
                self.move_aside(&dir, &child, area)?;
            } else {
                self.tree.unlink(&dir, &child).on("delete from", area.path())?;
            }
        }
        self.tree.rmdir(top, name).on("delete from", area.path())
    }
}

impl<T: ReplicaTree> View for Objects<T> {
    fn entry(&self, dir: &InodeId, name: &Name) -> Result<Option<InodeId>, ApplyError> {
        Ok(self.catalog.entry(dir, name)?)
    }

    fn names(&self, id: &InodeId) -> Result<Vec<Cell>, ApplyError> {
        Ok(self.catalog.names(id, ALL)?)
    }

    fn entries(&self, dir: &InodeId) -> Result<Vec<(Name, InodeId)>, ApplyError> {
        Ok(self.catalog.entries(dir, None, ALL)?)
    }

    fn node_type(&self, id: &InodeId) -> Result<Option<NodeType>, ApplyError> {
        if id.is_root() {
            return Ok(Some(NodeType::Directory));
        }
        Ok(self.catalog.node(id)?.map(|node| node.kind.node_type()))
    }

    fn parked(&self) -> Vec<InodeId> {
        self.parked.iter().copied().collect()
    }

    fn is_staged(&self, id: &InodeId) -> bool {
        self.staged_object(id).is_some()
    }
}
