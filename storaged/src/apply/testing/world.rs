//! A folder in memory that does what a mount does: random calls, each of which yields the op that mountd would send.

use std::collections::BTreeMap;

use bytes::Bytes;
use smallvec::smallvec;
use tandem_proto::{
    ids::{InodeId, Name},
    op::{Attr, AttrPatch, Change, Changes, NodeKind, Op, Origin, Timestamp},
    position::Seq,
    stage::{Content, Listing, NodeState, StageDir, StageEntry, StageNode, stamp},
};

use super::{DIRECTORY, Picture, Random, Shown, id, name, number_groups};

/// One inode.
#[derive(Clone, Debug)]
pub struct Inode {
    /// What it is.
    pub kind: NodeKind,
    /// Attributes.
    pub attr: Attr,
    /// Extended attributes.
    pub xattrs: BTreeMap<Bytes, Bytes>,
    /// Content.
    pub data: Vec<u8>,
    /// Names, of a directory.
    pub names: BTreeMap<Name, InodeId>,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct World {
    /// By id.
    pub inodes: BTreeMap<InodeId, Inode>,
    /// Number of the last op.
    pub seq: Seq,
    next: u64,
    clock: i64,
    /// Attributes that only root may set are changed too.
    pub privileged: bool,
}

type Cell = (InodeId, Name);

impl World {
    /// An empty folder.
    pub fn new(privileged: bool) -> Self {
        let mut world = World { inodes: BTreeMap::new(), seq: Seq(0), next: 1, clock: 1_000_000, privileged };
        let root = world.inode(DIRECTORY);
        world.inodes.insert(InodeId::ROOT, root);
        world
    }

    fn now(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp { seconds: self.clock, nanos: (self.clock as u32 * 7) % 1_000_000_000 }
    }

    fn inode(&mut self, kind: NodeKind) -> Inode {
        let mode = match kind {
            NodeKind::Directory => 0o755,
            NodeKind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let mtime = self.now();
        let attr = Attr { mode, uid: 0, gid: 0, mtime };
        Inode { kind, attr, xattrs: BTreeMap::new(), data: Vec::new(), names: BTreeMap::new() }
    }

    fn ids(&self, wanted: impl Fn(&Inode) -> bool) -> Vec<InodeId> {
        self.inodes.iter().filter(|(_, node)| wanted(node)).map(|(id, _)| *id).collect()
    }

    fn dirs(&self) -> Vec<InodeId> {
        self.ids(|node| node.kind.is_directory())
    }

    fn files(&self) -> Vec<InodeId> {
        self.ids(|node| node.kind.is_regular())
    }

    /// All names.
    pub fn cells(&self) -> Vec<(Cell, InodeId)> {
        let each = |(dir, node): (&InodeId, &Inode)| -> Vec<(Cell, InodeId)> {
            node.names.iter().map(|(name, id)| ((*dir, name.clone()), *id)).collect()
        };
        self.inodes.iter().flat_map(each).collect()
    }

    fn random_name(random: &mut Random) -> Name {
        name(["a", "b", "c", "d", "x y", "\u{e9}", "long-long-long-long-long-long-name"][random.below(7)])
    }

    fn is_below(&self, id: &InodeId, top: &InodeId) -> bool {
        id == top || self.inodes[top].names.values().any(|child| self.is_below(id, child))
    }

    fn touch(&mut self, dir: InodeId) -> Change {
        let mtime = self.now();
        self.inodes.get_mut(&dir).expect("a directory").attr.mtime = mtime;
        Change::Attr { id: dir, patch: AttrPatch { mtime: Some(mtime), ..AttrPatch::default() } }
    }

    fn assign(&mut self, cell: &Cell, new: Option<InodeId>) -> Change {
        let names = &mut self.inodes.get_mut(&cell.0).expect("a directory").names;
        let old = match new {
            Some(new) => names.insert(cell.1.clone(), new),
            None => names.remove(&cell.1),
        };
        Change::Entry { dir: cell.0, name: cell.1.clone(), old, new }
    }

    fn collect_garbage(&mut self) {
        loop {
            let named: Vec<InodeId> = self.cells().into_iter().map(|(_, id)| id).collect();
            let before = self.inodes.len();
            self.inodes.retain(|id, _| id.is_root() || named.contains(id));
            if self.inodes.len() == before {
                return;
            }
        }
    }

    fn create(&mut self, random: &mut Random) -> Option<Changes> {
        let dir = random.pick(&self.dirs())?;
        let cell = (dir, Self::random_name(random));
        if self.inodes[&dir].names.contains_key(&cell.1) {
            return None;
        }
        let kind = match random.below(8) {
            0..=2 => DIRECTORY,
            3 => NodeKind::Symlink(Bytes::from_static(b"../to\xff")),
            4 => NodeKind::Fifo,
            _ => NodeKind::Regular,
        };
        let new = id(self.next);
        self.next += 1;
        let node = self.inode(kind.clone());
        let attr = node.attr;
        self.inodes.insert(new, node);
        let mut changes: Changes = smallvec![Change::Birth { id: new, kind }];
        changes.push(Change::Attr { id: new, patch: attr.into() });
        changes.push(self.assign(&cell, Some(new)));
        changes.push(self.touch(dir));
        Some(changes)
    }

    fn link(&mut self, random: &mut Random) -> Option<Changes> {
        let file = random.pick(&self.ids(|node| !node.kind.is_directory()))?;
        let cell = (random.pick(&self.dirs())?, Self::random_name(random));
        if self.inodes[&cell.0].names.contains_key(&cell.1) {
            return None;
        }
        Some(smallvec![self.assign(&cell, Some(file)), self.touch(cell.0)])
    }

    fn remove(&mut self, random: &mut Random) -> Option<Changes> {
        let (cell, id) = random.pick(&self.cells())?;
        if !self.inodes[&id].names.is_empty() {
            return None;
        }
        Some(smallvec![self.assign(&cell, None), self.touch(cell.0)])
    }

    fn rename(&mut self, random: &mut Random) -> Option<Changes> {
        let (from, id) = random.pick(&self.cells())?;
        let to = (random.pick(&self.dirs())?, Self::random_name(random));
        let directory = self.inodes[&id].kind.is_directory();
        if directory && self.is_below(&to.0, &id) {
            return None;
        }
        if let Some(victim) = self.inodes[&to.0].names.get(&to.1) {
            let there = &self.inodes[victim];
            if *victim == id || there.kind.is_directory() != directory || !there.names.is_empty() {
                return None;
            }
        }
        let mut changes: Changes = smallvec![self.assign(&from, None), self.assign(&to, Some(id))];
        changes.push(self.touch(from.0));
        if to.0 != from.0 {
            changes.push(self.touch(to.0));
        }
        Some(changes)
    }

    fn exchange(&mut self, random: &mut Random) -> Option<Changes> {
        let (one, a) = random.pick(&self.cells())?;
        let (other, b) = random.pick(&self.cells())?;
        if a == b || self.is_below(&other.0, &a) || self.is_below(&one.0, &b) {
            return None;
        }
        let mut changes: Changes = smallvec![self.assign(&one, Some(b)), self.assign(&other, Some(a))];
        changes.push(self.touch(one.0));
        if one.0 != other.0 {
            changes.push(self.touch(other.0));
        }
        Some(changes)
    }

    fn write(&mut self, random: &mut Random) -> Option<Changes> {
        let file = random.pick(&self.files())?;
        let (offset, len) = (random.below(40), 1 + random.below(30));
        let byte = random.below(256) as u8;
        let mtime = self.now();
        let node = self.inodes.get_mut(&file).expect("a file");
        node.attr.mtime = mtime;
        let mut changes = Changes::new();
        match random.below(4) {
            0 => {
                let end = (offset + len).min(node.data.len());
                if offset < end {
                    node.data[offset..end].fill(0);
                }
                changes.push(Change::Hole { id: file, offset: offset as u64, len: len as u64 });
            }
            1 => {
                node.data.resize(offset, 0);
                changes.push(Change::Size { id: file, size: offset as u64 });
            }
            _ => {
                if node.data.len() < offset + len {
                    node.data.resize(offset + len, 0);
                }
                node.data[offset..offset + len].fill(byte);
                changes.push(Change::Data { id: file, offset: offset as u64, data: vec![byte; len].into() });
            }
        }
        changes.push(Change::Attr { id: file, patch: AttrPatch { mtime: Some(mtime), ..AttrPatch::default() } });
        Some(changes)
    }

    fn set_attributes(&mut self, random: &mut Random) -> Option<Changes> {
        let id = random.pick(&self.ids(|node| matches!(node.kind, NodeKind::Regular | NodeKind::Directory)))?;
        let mtime = self.now();
        let privileged = self.privileged;
        let node = self.inodes.get_mut(&id).expect("an inode");
        if random.below(2) == 0 {
            let key = Bytes::from_static([&b"user.a"[..], b"user.b"][random.below(2)]);
            let value = (random.below(3) > 0).then(|| Bytes::from(vec![random.below(256) as u8; 3]));
            match &value {
                Some(value) => _ = node.xattrs.insert(key.clone(), value.clone()),
                None => _ = node.xattrs.remove(&key),
            }
            return Some(smallvec![Change::Xattr { id, name: key, value }]);
        }
        let mut patch = AttrPatch { mode: Some(0o700 + random.below(0o77) as u32), ..AttrPatch::default() };
        patch.mtime = Some(mtime);
        if privileged {
            patch.uid = Some(random.below(3) as u32);
            patch.gid = Some(random.below(3) as u32);
        }
        node.attr.mode = patch.mode.unwrap_or(node.attr.mode);
        node.attr.uid = patch.uid.unwrap_or(node.attr.uid);
        node.attr.gid = patch.gid.unwrap_or(node.attr.gid);
        node.attr.mtime = mtime;
        Some(smallvec![Change::Attr { id, patch }])
    }

    /// Does something and tells what.
    pub fn step(&mut self, random: &mut Random) -> Op {
        let changes = loop {
            let done = match random.below(20) {
                0..=5 => self.create(random),
                6 => self.link(random),
                7..=8 => self.remove(random),
                9..=12 => self.rename(random),
                13 => self.exchange(random),
                14..=17 => self.write(random),
                _ => self.set_attributes(random),
            };
            if let Some(changes) = done {
                break changes;
            }
        };
        self.collect_garbage();
        self.seq = self.seq.next();
        Op { seq: self.seq, origin: Origin::default(), changes }
    }

    /// What a walk would show.
    pub fn picture(&self) -> Picture {
        let (mut picture, mut groups) = (Picture::new(), BTreeMap::<InodeId, Vec<Vec<Name>>>::new());
        let mut waiting = vec![(Vec::new(), InodeId::ROOT)];
        while let Some((path, id)) = waiting.pop() {
            let node = &self.inodes[&id];
            for (name, child) in &node.names {
                let mut below = path.clone();
                below.push(name.clone());
                waiting.push((below, *child));
            }
            groups.entry(id).or_default().push(path.clone());
            let (node_type, attr) = (node.kind.node_type(), node.attr);
            let (xattrs, data) = (node.xattrs.clone(), node.data.clone());
            picture.insert(path, Shown { group: 0, node_type, attr, xattrs, data });
        }
        number_groups(&mut picture, groups.into_values());
        picture
    }

    /// The whole listing of a directory.
    pub fn stage_dir(&self, dir: &InodeId) -> StageDir {
        let entries = self.inodes[dir].names.iter().map(|(name, id)| {
            let node = &self.inodes[id];
            let node_type = node.kind.node_type();
            let stamp = Some(stamp(node_type, &node.attr, node.data.len() as u64));
            StageEntry { name: name.clone(), node: Some((*id, node_type)), stamp }
        });
        StageDir { dir: *dir, listing: Listing::CompleteEnd, entries: entries.collect(), born_since: None }
    }

    /// The state of an inode.
    pub fn stage_node(&self, id: &InodeId, content: Content) -> StageNode {
        let state = self.inodes.get(id).map(|node| NodeState {
            kind: node.kind.clone(),
            attr: node.attr,
            xattrs: node.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            size: node.data.len() as u64,
            content,
        });
        StageNode { id: *id, state }
    }

    /// The same folder on another disk: all ids are new.
    pub fn with_new_ids(&self, offset: u64) -> World {
        let renumber = |id: &InodeId| -> InodeId {
            if id.is_root() {
                return *id;
            }
            let mut bytes = [0; 8];
            bytes[4..].copy_from_slice(id.as_bytes());
            super::id(u64::from_be_bytes(bytes) + offset)
        };
        let mut world = self.clone();
        world.next += offset;
        world.inodes = self
            .inodes
            .iter()
            .map(|(id, node)| {
                let mut node = node.clone();
                node.names = node.names.iter().map(|(name, id)| (name.clone(), renumber(id))).collect();
                (renumber(id), node)
            })
            .collect();
        world
    }
}
