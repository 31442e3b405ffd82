//! Carries out a plan, and the data changes of ops.

use std::{collections::BTreeSet, io};

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    op::{Change, NodeKind},
    position::Position,
    stage::NodeType,
};

use super::{
    changeset::Changeset,
    error::{ApplyError, OnObject as _},
    objects::Objects,
    plan::{Step, plan},
};
use crate::{
    catalog::Cell,
    tree::{Area, ReplicaTree},
};

/// Steps between two looks whether the catalog holds too much in memory.
const RELIEVE_EVERY: usize = 4096;

/// How a plan is carried out.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// The tree may be ahead of the catalog: look before planning.
    pub probe: bool,
    /// What loses its last name is kept in `history/` under this position instead of being destroyed.
    pub keep_as: Option<Position>,
    /// Birth of inodes for which the assignments give none.
    pub born: Position,
}

/// What a plan changed.
#[derive(Debug, Default)]
pub struct Settled {
    /// Inodes that are gone and were mentioned in the plan itself.
    pub removed: Vec<InodeId>,
}

/// Longest name that file systems take, in bytes.
const NAME_MAX: usize = 255;
/// What is left of such a name where something has to be put behind it.
const LONG_NAME_KEPT: usize = 220;

impl<T: ReplicaTree> Objects<T> {
    /// Brings names and objects to what `net` says. Data, attributes and directory mtimes follow separately.
    pub fn settle(&mut self, net: &Changeset, manner: Manner) -> Result<Settled, ApplyError> {
        if manner.probe {
            self.probe(net)?;
        }
        let plan = plan(self, net)?;
        let mut settled = Settled::default();
        let mut lost = BTreeSet::new();
        for (at, step) in plan.into_steps().enumerate() {
            self.step(&step, net, manner)?;
            if at % RELIEVE_EVERY == 0 {
                self.catalog.relieve()?;
            }
            if let Step::Unlink(id, _) | Step::Discard(id, _) | Step::DropParked(id) = step {
                lost.insert(id);
            }
        }
        for id in lost {
            if self.catalog.node(&id)?.is_none() {
                settled.removed.push(id);
            }
        }
        if manner.probe {
            // An inode that an interrupted attempt removed, and that is given a name only where nothing is reached any more.
            for id in net.dirs.values().flat_map(|dir| dir.names.values().flatten()) {
                if self.catalog.has_node(id)? {
                    self.forget_tree(id)?;
                }
            }
        }
        self.catalog.relieve()?;
        Ok(settled)
    }

    fn step(&mut self, step: &Step, net: &Changeset, manner: Manner) -> Result<(), ApplyError> {
        let born =
            |id: &InodeId| net.nodes.get(id).and_then(|node| node.born.as_deref().copied()).unwrap_or(manner.born);
        match step {
            Step::Park(id, cell) => self.park(id, cell),
            Step::Unlink(id, cell) => match manner.keep_as {
                Some(position) if self.is_last_name(id)? => self.keep(id, cell, position),
                _ => self.unlink(id, cell),
            },
            Step::Discard(id, cell) => match manner.keep_as {
                Some(position) => self.keep(id, cell, position),
                None => self.discard(id, cell),
            },
            Step::DropParked(id) => self.drop_parked(id),
            Step::Create(id, cell) => {
                let kind = net.nodes.get(id).and_then(|node| node.kind.as_ref());
                let kind = kind.ok_or_else(|| ApplyError::protocol(id, "it has a name and was never born"))?;
                match self.nests.remove(id) {
                    Some(identity) => self.place_nest(id, cell, identity, born(id)),
                    None => self.create(id, kind, cell, born(id)),
                }
            }
            Step::PlaceStaged(id, cell) => self.place_staged(id, cell, born(id)),
            Step::PlaceParked(id, cell) => self.place_parked(id, cell),
            Step::Link(id, cell) => self.link(id, cell),
        }
    }

    pub(super) fn is_last_name(&self, id: &InodeId) -> Result<bool, ApplyError> {
        Ok(self.catalog.names(id, 2)?.len() == 1)
    }

    /// Moves an object to `history/<position>/` under the path that it has.
    fn keep(&mut self, id: &InodeId, cell: &Cell, position: Position) -> Result<(), ApplyError> {
        let (mut path, mut at) = (Vec::new(), cell.0);
        while let Some((dir, name)) = self.catalog.names(&at, 1)?.into_iter().next() {
            path.push(name);
            at = dir;
        }
        let mut kept = self.tree.area(Area::History);
        let place = Name::new(Bytes::from(format!("{}-{}", position.epoch, position.seq)));
        for name in place.into_iter().chain(path.into_iter().rev()) {
            kept = self.history_dir(&kept, &name)?;
        }
        // A name may be kept twice for one position when a publish is interrupted.
        let target = self.free_name(&kept, cell.1.as_bytes())?;
        let dir = self.open(&cell.0)?;
        self.tree.rename(&dir, cell.1.as_bytes(), &kept, &target).on("move to history", id)?;
        self.catalog.set_entry(&cell.0, &cell.1, None)?;
        self.touched.insert(cell.0);
        self.close_handle(id);
        self.forget_tree(id)
    }

    pub(super) fn history_dir(&mut self, parent: &T::Node, name: &Name) -> Result<T::Node, ApplyError> {
        let (mut wanted, mut shortened) = (name.as_bytes().to_vec(), false);
        loop {
            match self.tree.open(parent, &wanted, NodeType::Directory) {
                Ok(dir) => return Ok(dir),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.tree.create(parent, &wanted, &NodeKind::Directory).on("make in history", name)?;
                }
                // A file was kept under the name that is now needed for a directory.
                Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) && wanted.len() < NAME_MAX => {
                    wanted.push(b'~')
                }
                // There is no room behind it: a part of it, told apart by its digest.
                Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) && !shortened => {
                    shortened = true;
                    wanted.truncate(LONG_NAME_KEPT);
                    wanted.extend_from_slice(format!("~{}", &blake3::hash(name.as_bytes()).to_hex()[..16]).as_bytes());
                }
                Err(error) => return Err(ApplyError::from_io("open in history", name, error)),
            }
        }
    }

    /// Carries out a change of data or size; others are nothing here.
    pub fn apply_data(&mut self, change: &Change) -> Result<(), ApplyError> {
        let Some(id) = data_target(change).filter(|_| self.tree.is_unprivileged()) else {
            return self.apply_data_only(change);
        };
        // The kernel takes setuid and setgid from a file that somebody without privileges writes to. The mount's writer had its own
        // rights, and what became of the bits comes as an op.
        let node = self.open(id)?;
        let mode = self.tree.stat(&node).on("read", id)?.attr.mode;
        self.apply_data_only(change)?;
        if mode & 0o6000 != 0 {
            self.tree.set_mode(&node, mode).on("change the mode of", id)?;
        }
        Ok(())
    }

    fn apply_data_only(&mut self, change: &Change) -> Result<(), ApplyError> {
        let answer = match change {
            Change::Data { id, offset, data } => {
                let node = self.open(id)?;
                (id, "write to", self.tree.write_at(&node, *offset, data))
            }
            Change::Copy { id, offset, data, .. } => {
                let Some(data) = data else {
                    return Err(ApplyError::protocol(id, "a copy of which no bytes were made"));
                };
                let node = self.open(id)?;
                (id, "write to", self.tree.write_at(&node, *offset, data))
            }
            Change::Hole { id, offset, len } => {
                let node = self.open(id)?;
                (id, "punch a hole into", self.tree.punch(&node, *offset, *len))
            }
            Change::Size { id, size } => {
                let node = self.open(id)?;
                (id, "change the size of", self.tree.set_size(&node, *size))
            }
            Change::Birth { .. } | Change::Entry { .. } | Change::Attr { .. } | Change::Xattr { .. } => return Ok(()),
        };
        let (id, action, result) = answer;
        match result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::EISDIR | libc::EINVAL)) => {
                Err(ApplyError::protocol(id, format!("it is given data and is no regular file ({error})")))
            }
            result => result.on(action, id),
        }
    }

    /// Assigns attributes and extended attributes of every inode of `net` that the replica has, but for those that have them, then the mtimes of directories.
    pub fn assign_metadata(&mut self, net: &Changeset, has_it: &dyn Fn(&InodeId) -> bool) -> Result<(), ApplyError> {
        for (id, node) in net.nodes.iter().filter(|(id, _)| !has_it(id)) {
            if self.catalog.has_node(id)? && (node.attr != Default::default() || node.xattrs.is_some()) {
                self.set_metadata(id, &node.attr.patch(), node.xattrs.as_deref())?;
            }
        }
        self.restore_dir_mtimes()
    }
}

/// The inode whose data a change assigns.
pub fn data_target(change: &Change) -> Option<&InodeId> {
    match change {
        Change::Data { id, .. } | Change::Copy { id, .. } | Change::Hole { id, .. } | Change::Size { id, .. } => {
            Some(id)
        }
        Change::Birth { .. } | Change::Entry { .. } | Change::Attr { .. } | Change::Xattr { .. } => None,
    }
}
