//! The naive model that both sides of the simulation are compared by, and the client's file system in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
};

use parking_lot::Mutex;
use tandem_proto::{
    Attr, Change, Changes, InodeId, Name, NodeKind, Timestamp,
    stage::{NodeType, stamp},
};

use crate::resync::{FileReader, ListedEntry, NodeView, StateReader};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub dir: bool,
    pub mtime: i64,
    pub data: Vec<u8>,
}

/// A tree by inode id. Missing nodes are kept apart, so that a named one is noticed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub nodes: BTreeMap<InodeId, Node>,
    pub names: BTreeMap<(InodeId, Name), InodeId>,
}

pub fn attr(mtime: i64) -> Attr {
    Attr { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { seconds: mtime, nanos: 0 } }
}

impl Model {
    pub fn new() -> Self {
        let mut model = Model::default();
        model.nodes.insert(InodeId::ROOT, Node { dir: true, mtime: 0, data: Vec::new() });
        model
    }

    pub fn apply(&mut self, changes: &Changes) {
        for change in changes {
            match change {
                Change::Birth { id, kind } => {
                    let node = Node { dir: kind.is_directory(), mtime: 0, data: Vec::new() };
                    self.nodes.entry(*id).or_insert(node);
                }
                Change::Entry { dir, name, new, .. } => self.assign(*dir, name, *new),
                Change::Attr { id, patch } => {
                    if let (Some(node), Some(mtime)) = (self.nodes.get_mut(id), patch.mtime) {
                        node.mtime = mtime.seconds;
                    }
                }
                Change::Data { id, offset, data } => self.write(id, *offset as usize, data, true),
                Change::Copy { .. } => unreachable!("nothing in this simulation takes copies"),
                Change::Hole { id, offset, len } => self.write(id, *offset as usize, &vec![0; *len as usize], false),
                Change::Size { id, size } => {
                    if let Some(node) = self.nodes.get_mut(id) {
                        node.data.resize(*size as usize, 0);
                    }
                }
                Change::Xattr { .. } => {}
            }
        }
    }

    pub fn assign(&mut self, dir: InodeId, name: &Name, new: Option<InodeId>) {
        match new {
            Some(id) => self.names.insert((dir, name.clone()), id),
            None => self.names.remove(&(dir, name.clone())),
        };
    }

    pub fn write(&mut self, id: &InodeId, offset: usize, bytes: &[u8], grow: bool) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        let mut end = offset + bytes.len();
        if end > node.data.len() {
            if grow {
                node.data.resize(end, 0);
            }
            end = end.min(node.data.len());
        }
        if offset < end {
            node.data[offset..end].copy_from_slice(&bytes[..end - offset]);
        }
    }

    pub fn list(&self, dir: &InodeId) -> impl Iterator<Item = (&Name, &InodeId)> {
        let dir = *dir;
        self.names.iter().filter(move |((of, _), _)| *of == dir).map(|((_, name), id)| (name, id))
    }

    pub fn child(&self, dir: &InodeId, name: &Name) -> Option<InodeId> {
        self.names.get(&(*dir, name.clone())).copied()
    }

    /// Removes what cannot be reached. Panics if a name leads to nothing: the replica would have refused the round.
    pub fn prune(&mut self) {
        let (mut reached, mut queue) = (BTreeSet::new(), vec![InodeId::ROOT]);
        while let Some(id) = queue.pop() {
            if reached.insert(id) {
                assert!(self.nodes.contains_key(&id), "{id} has a name and was never sent");
                queue.extend(self.list(&id).map(|(_, id)| *id));
            }
        }
        self.nodes.retain(|id, _| reached.contains(id));
        self.names.retain(|(dir, _), _| reached.contains(dir));
    }

    pub fn pruned(&self) -> Model {
        let mut model = self.clone();
        model.prune();
        model
    }

    pub fn stamp(&self, id: &InodeId) -> Option<u64> {
        let node = self.nodes.get(id)?;
        Some(stamp(node_type(node), &attr(node.mtime), node.data.len() as u64))
    }

    /// The first difference, in words.
    pub fn difference(&self, other: &Model) -> Option<String> {
        for key in self.names.keys().chain(other.names.keys()) {
            let (mine, theirs) = (self.names.get(key), other.names.get(key));
            if mine != theirs {
                return Some(format!("name {key:?}: {mine:?} and {theirs:?}"));
            }
        }
        for id in self.nodes.keys().chain(other.nodes.keys()) {
            let (mine, theirs) = (self.nodes.get(id), other.nodes.get(id));
            if mine != theirs {
                return Some(format!("inode {id}: {mine:?} and {theirs:?}"));
            }
        }
        None
    }

    pub fn has_name(&self, id: &InodeId) -> bool {
        id.is_root() || self.names.values().any(|named| named == id)
    }

    /// Whether `dir` lies in or below `top`.
    pub fn is_beneath(&self, dir: InodeId, top: InodeId) -> bool {
        let mut at = dir;
        loop {
            if at == top {
                return true;
            }
            match self.names.iter().find(|(_, id)| **id == at) {
                Some(((parent, _), _)) => at = *parent,
                None => return false,
            }
        }
    }
}

fn node_type(node: &Node) -> NodeType {
    if node.dir { NodeType::Directory } else { NodeType::Regular }
}

/// The client's backing directory.
#[derive(Debug)]
pub struct MemFs(pub Mutex<Model>);

impl MemFs {
    fn listed(model: &Model, name: &Name, id: &InodeId) -> Option<ListedEntry> {
        let node = model.nodes.get(id)?;
        Some(ListedEntry {
            name: name.clone(),
            id: *id,
            node_type: node_type(node),
            attr: attr(node.mtime),
            size: node.data.len() as u64,
            ctime: Timestamp::default(),
        })
    }
}

struct MemFile(Vec<u8>);

impl FileReader for MemFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let offset = (offset as usize).min(self.0.len());
        let len = buffer.len().min(self.0.len() - offset);
        buffer[..len].copy_from_slice(&self.0[offset..offset + len]);
        Ok(len)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let is_data = |at: &usize| self.0[*at] != 0;
        let Some(start) = (from as usize..self.0.len()).find(is_data) else { return Ok(None) };
        let end = (start..self.0.len()).find(|at| !is_data(at)).unwrap_or(self.0.len());
        Ok(Some((start as u64, end as u64)))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

impl StateReader for MemFs {
    fn node(&self, id: &InodeId) -> io::Result<Option<NodeView>> {
        let model = self.0.lock();
        let Some(node) = model.nodes.get(id).filter(|_| model.has_name(id)) else { return Ok(None) };
        Ok(Some(NodeView {
            kind: if node.dir { NodeKind::Directory } else { NodeKind::Regular },
            attr: attr(node.mtime),
            xattrs: Vec::new(),
            size: node.data.len() as u64,
            ctime: Timestamp::default(),
        }))
    }

    fn entry(&self, dir: &InodeId, name: &Name) -> io::Result<Option<ListedEntry>> {
        let model = self.0.lock();
        Ok(model.child(dir, name).and_then(|id| MemFs::listed(&model, name, &id)))
    }

    /// In a random-looking place of the listing others may change the directory, as with a real one.
    fn list(&self, dir: &InodeId, each: &mut dyn FnMut(ListedEntry) -> io::Result<()>) -> io::Result<bool> {
        let names: Vec<Name> = self.0.lock().list(dir).map(|(name, _)| name.clone()).collect();
        for name in names {
            let entry = self.entry(dir, &name)?;
            if let Some(entry) = entry {
                each(entry)?;
            }
        }
        Ok(self.0.lock().nodes.contains_key(dir))
    }

    fn open(&self, id: &InodeId) -> io::Result<Option<Box<dyn FileReader>>> {
        let mut data = match self.0.lock().nodes.get(id) {
            Some(node) if !node.dir => node.data.clone(),
            _ => return Ok(None),
        };
        Ok(Some(Box::new(MemFile(mem::take(&mut data)))))
    }

    fn sync_durable(&self) -> io::Result<()> {
        Ok(())
    }
}
