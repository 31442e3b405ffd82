//! A file system in memory that knows nothing but ops. If it equals the backing directory after any run, the ops are complete:
//! nothing changed without saying so, and nothing was said that did not happen.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tandem_mountd::resync::StateReader;
use tandem_proto::{Attr, Change, Changes, InodeId, Name, NodeKind, Timestamp};

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    kind: NodeKind,
    attr: Attr,
    xattrs: BTreeMap<Bytes, Bytes>,
    data: Vec<u8>,
    names: usize,
}

/// The file system.
#[derive(Clone, Debug, Default)]
pub struct Model {
    nodes: HashMap<InodeId, Node>,
    entries: HashMap<InodeId, BTreeMap<Name, InodeId>>,
}

impl Model {
    /// As the backing directory is now.
    pub fn read(reader: &dyn StateReader) -> Model {
        let mut model = Model::default();
        model.read_node(reader, InodeId::ROOT);
        model.nodes.get_mut(&InodeId::ROOT).expect("the root").names = 1;
        model.read_dir(reader, InodeId::ROOT);
        model
    }

    fn read_node(&mut self, reader: &dyn StateReader, id: InodeId) {
        let view = reader.node(&id).expect("readable").expect("there");
        let mut data = Vec::new();
        if view.kind.is_regular() {
            let file = reader.open(&id).expect("readable").expect("there");
            data = vec![0; view.size as usize];
            assert_eq!(file.read_at(0, &mut data).expect("readable"), data.len());
        }
        let xattrs = view.xattrs.into_iter().collect();
        self.nodes.insert(id, Node { kind: view.kind, attr: view.attr, xattrs, data, names: 0 });
    }

    fn read_dir(&mut self, reader: &dyn StateReader, dir: InodeId) {
        let mut listed = Vec::new();
        let there = reader.list(&dir, &mut |entry| {
            listed.push(entry);
            Ok(())
        });
        assert!(there.expect("readable"));
        for entry in listed {
            if !self.nodes.contains_key(&entry.id) {
                self.read_node(reader, entry.id);
                if self.nodes[&entry.id].kind.is_directory() {
                    self.read_dir(reader, entry.id);
                }
            }
            self.nodes.get_mut(&entry.id).expect("just read").names += 1;
            self.entries.entry(dir).or_default().insert(entry.name, entry.id);
        }
    }

    /// Applies one op. Panics if it makes no sense.
    pub fn apply(&mut self, changes: &Changes) {
        let mut lost = Vec::new();
        for change in changes {
            self.apply_change(change, &mut lost);
        }
        for id in lost {
            if self.nodes.get(&id).is_some_and(|node| node.names == 0) {
                self.nodes.remove(&id);
                let left = self.entries.remove(&id).unwrap_or_default();
                assert!(left.is_empty(), "directory {id} lost its name with entries in it: {left:?}");
            }
        }
    }

    fn node(&mut self, id: &InodeId) -> &mut Node {
        self.nodes.get_mut(id).unwrap_or_else(|| panic!("an op names {id}, which has no name"))
    }

    fn apply_change(&mut self, change: &Change, lost: &mut Vec<InodeId>) {
        match change {
            Change::Birth { id, kind } => {
                let attr = Attr { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default() };
                let node = Node { kind: kind.clone(), attr, xattrs: BTreeMap::new(), data: Vec::new(), names: 0 };
                assert!(self.nodes.insert(*id, node).is_none(), "{id} is born twice");
            }
            Change::Entry { dir, name, old, new } => {
                assert!(self.node(dir).kind.is_directory());
                let names = self.entries.entry(*dir).or_default();
                let was = match new {
                    Some(new) => names.insert(name.clone(), *new),
                    None => names.remove(name),
                };
                assert_eq!(was, *old, "what {name} meant before");
                if let Some(old) = old {
                    self.node(old).names -= 1;
                    lost.push(*old);
                }
                if let Some(new) = new {
                    self.node(new).names += 1;
                }
            }
            Change::Attr { id, patch } => {
                let attr = &mut self.node(id).attr;
                attr.mode = patch.mode.unwrap_or(attr.mode);
                attr.uid = patch.uid.unwrap_or(attr.uid);
                attr.gid = patch.gid.unwrap_or(attr.gid);
                attr.mtime = patch.mtime.unwrap_or(attr.mtime);
            }
            Change::Xattr { id, name, value } => {
                let xattrs = &mut self.node(id).xattrs;
                match value {
                    Some(value) => xattrs.insert(name.clone(), value.clone()),
                    None => xattrs.remove(name),
                };
            }
            Change::Data { id, offset, data } => {
                let file = &mut self.node(id).data;
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[start..end].copy_from_slice(data);
            }
            Change::Hole { id, offset, len } => {
                let file = &mut self.node(id).data;
                let end = (*offset as usize + *len as usize).min(file.len());
                file[(*offset as usize).min(end)..end].fill(0);
            }
            Change::Copy { .. } => unreachable!("this journal takes no copies"),
            Change::Size { id, size } => self.node(id).data.resize(*size as usize, 0),
        }
    }

    /// Panics with the first difference.
    pub fn assert_equals(&self, other: &Model, context: &str) {
        self.compare_dir(other, &InodeId::ROOT, "", context);
        assert_eq!(self.nodes.len(), other.nodes.len(), "{context}: inodes that nobody names");
    }

    fn compare_dir(&self, other: &Model, dir: &InodeId, path: &str, context: &str) {
        let nothing = BTreeMap::new();
        let (here, there) = (self.entries.get(dir).unwrap_or(&nothing), other.entries.get(dir).unwrap_or(&nothing));
        self.compare_node(other, dir, path, context);
        assert_eq!(here, there, "{context}: names in {path:?}");
        for (name, id) in here {
            let path = format!("{path}/{name}");
            self.compare_node(other, id, &path, context);
            if self.nodes[id].kind.is_directory() {
                self.compare_dir(other, id, &path, context);
            }
        }
    }

    fn compare_node(&self, other: &Model, id: &InodeId, path: &str, context: &str) {
        let (here, there) = (&self.nodes[id], &other.nodes[id]);
        let brief = |node: &Node| (node.kind.clone(), node.attr, node.xattrs.clone(), node.data.len(), node.names);
        assert_eq!(brief(here), brief(there), "{context}: {path:?}");
        if let Some(at) = here.data.iter().zip(&there.data).position(|(left, right)| left != right) {
            panic!("{context}: {path:?} differs at {at} of {}", here.data.len());
        }
    }
}
