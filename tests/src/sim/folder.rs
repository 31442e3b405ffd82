//! The client's folder in memory: what the backing directory and the vfs are in a real mount.
//!
//! It decides every result as a Linux file system does and says what happened as an op's changes. A resync reads it through
//! [`FolderReader`]. Inode numbers are never reused, and an inode is gone with its last name.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tandem_mountd::resync::{FileReader, ListedEntry, NodeView, StateReader};
use tandem_proto::{Attr, AttrPatch, Change, Changes, InodeId, Name, NodeKind, Timestamp};

use crate::{rng::Rng, sim::picture::Picture};

/// An inode number of the folder; the root is 1.
type Ino = u64;
const ROOT: Ino = 1;
/// Length of a block that can be a hole.
const HOLE: usize = 64;

#[derive(Clone, Debug)]
struct Node {
    kind: NodeKind,
    attr: Attr,
    xattrs: BTreeMap<Bytes, Bytes>,
    data: Vec<u8>,
    names: BTreeMap<Name, Ino>,
    /// Of a directory: where it is. Unused for others.
    parent: Ino,
    links: u32,
    ctime: Timestamp,
}

/// What an application asks for. Directories and files are given by their place among those that exist, so every op means something.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are the arguments of the call that the variant names")]
pub enum Request {
    Create { dir: u64, name: Name, kind: NodeKind },
    Link { file: u64, dir: u64, name: Name },
    Rename { from: (u64, Name), to: (u64, Name), exchange: bool },
    Remove { dir: u64, name: Name },
    Write { file: u64, offset: u64, bytes: Bytes },
    Copy { from: u64, from_offset: u64, file: u64, offset: u64, len: u64 },
    Truncate { file: u64, size: u64 },
    Punch { file: u64, offset: u64, len: u64 },
    SetMode { node: u64, mode: u32 },
    SetOwner { node: u64, uid: u32 },
    SetXattr { node: u64, name: Bytes, value: Option<Bytes> },
}

/// The folder. A copy of it costs little: nodes are shared until they change.
#[derive(Clone, Debug)]
pub struct Folder {
    inodes: BTreeMap<Ino, Arc<Node>>,
    next: Ino,
    clock: i64,
}

/// Id of an inode, as mountd would make it.
pub fn id_of(ino: Ino) -> InodeId {
    if ino == ROOT {
        return InodeId::ROOT;
    }
    let bytes = [b"sim:".as_slice(), &ino.to_be_bytes()].concat();
    InodeId::new(&bytes).expect("12 bytes fit")
}

fn ino_of(id: &InodeId) -> Option<Ino> {
    if id.is_root() {
        return Some(ROOT);
    }
    let bytes = id.as_bytes().strip_prefix(b"sim:")?;
    Some(Ino::from_be_bytes(bytes.try_into().ok()?))
}

impl Default for Folder {
    fn default() -> Self {
        Folder::on_machine(0)
    }
}

impl Folder {
    /// An empty folder. Those of other machines give other ids.
    pub fn on_machine(machine: u64) -> Folder {
        let mut folder = Folder { inodes: BTreeMap::new(), next: (machine << 32) + ROOT + 1, clock: 1_000_000 };
        let root = folder.node(NodeKind::Directory);
        folder.inodes.insert(ROOT, Arc::new(Node { parent: ROOT, ..root }));
        folder
    }

    fn tick(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp { seconds: self.clock / 1000, nanos: (self.clock % 1000) as u32 * 1_000_000 }
    }

    fn node(&mut self, kind: NodeKind) -> Node {
        let now = self.tick();
        let mode = match kind {
            NodeKind::Directory => 0o755,
            NodeKind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let attr = Attr { mode, uid: 0, gid: 0, mtime: now };
        let (xattrs, names) = (BTreeMap::new(), BTreeMap::new());
        Node { kind, attr, xattrs, data: Vec::new(), names, parent: ROOT, links: 1, ctime: now }
    }

    fn pick(&self, place: u64, wanted: impl Fn(&Node) -> bool) -> Option<Ino> {
        let fitting: Vec<Ino> =
            self.inodes.iter().filter(|(_, node)| wanted(node.as_ref())).map(|(ino, _)| *ino).collect();
        (!fitting.is_empty()).then(|| fitting[(place % fitting.len() as u64) as usize])
    }

    fn dir(&self, place: u64) -> Ino {
        self.pick(place, |node| node.kind.is_directory()).unwrap_or(ROOT)
    }

    fn file(&self, place: u64) -> Option<Ino> {
        self.pick(place, |node| node.kind.is_regular())
    }

    fn get(&mut self, ino: Ino) -> &mut Node {
        Arc::make_mut(self.inodes.get_mut(&ino).expect("names and places lead to inodes that exist"))
    }

    fn lookup(&self, dir: Ino, name: &Name) -> Option<Ino> {
        self.inodes.get(&dir)?.names.get(name).copied()
    }

    /// Whether `ino` is `top` or lies below it.
    fn is_within(&self, mut ino: Ino, top: Ino) -> bool {
        loop {
            if ino == top {
                return true;
            }
            if ino == ROOT {
                return false;
            }
            ino = self.inodes[&ino].parent;
        }
    }

    fn touch(&mut self, ino: Ino, changes: &mut Changes) {
        let now = self.tick();
        let node = self.get(ino);
        node.attr.mtime = now;
        node.ctime = now;
        changes.push(Change::Attr { id: id_of(ino), patch: AttrPatch { mtime: Some(now), ..Default::default() } });
    }

    fn entry(&mut self, dir: Ino, name: &Name, new: Option<Ino>, changes: &mut Changes) -> Option<Ino> {
        let old = match new {
            Some(new) => self.get(dir).names.insert(name.clone(), new),
            None => self.get(dir).names.remove(name),
        };
        let (dir_id, old_id, new_id) = (id_of(dir), old.map(id_of), new.map(id_of));
        changes.push(Change::Entry { dir: dir_id, name: name.clone(), old: old_id, new: new_id });
        if let Some(new) = new
            && self.get(new).kind.is_directory()
        {
            self.get(new).parent = dir;
        }
        old
    }

    fn lose_name(&mut self, ino: Ino) {
        let node = self.get(ino);
        node.links -= 1;
        if node.links == 0 {
            self.inodes.remove(&ino);
        }
    }

    /// What a copy that happened is called where the replica has what was copied: the same, without its bytes.
    pub fn by_reference(&self, request: &Request, happened: &Changes) -> Changes {
        let Request::Copy { from, from_offset, .. } = request else { return happened.clone() };
        let source = self.file(*from).map(id_of);
        let said = happened.iter().map(|change| match (change, source) {
            (Change::Data { id, offset, data }, Some(from)) => {
                let (from_offset, len) = (*from_offset, data.len() as u64);
                Change::Copy { id: *id, offset: *offset, from, from_offset, len, data: None }
            }
            _ => change.clone(),
        });
        said.collect()
    }

    /// Does what is asked; `None`: it failed with an errno, and nothing changed.
    pub fn perform(&mut self, request: &Request) -> Option<Changes> {
        let mut changes = Changes::new();
        match request {
            Request::Create { dir, name, kind } => self.create(self.dir(*dir), name, kind, &mut changes)?,
            Request::Link { file, dir, name } => {
                let (ino, dir) = (self.pick(*file, |node| !node.kind.is_directory())?, self.dir(*dir));
                if self.lookup(dir, name).is_some() {
                    return None;
                }
                self.entry(dir, name, Some(ino), &mut changes);
                self.get(ino).links += 1;
                self.touch(dir, &mut changes);
            }
            Request::Rename { from, to, exchange } => {
                let (from_dir, to_dir) = (self.dir(from.0), self.dir(to.0));
                self.rename((from_dir, &from.1), (to_dir, &to.1), *exchange, &mut changes)?;
            }
            Request::Remove { dir, name } => {
                let dir = self.dir(*dir);
                let ino = self.lookup(dir, name)?;
                if !self.inodes[&ino].names.is_empty() {
                    return None;
                }
                self.entry(dir, name, None, &mut changes);
                self.lose_name(ino);
                self.touch(dir, &mut changes);
            }
            _ => self.on_node(request, &mut changes)?,
        }
        Some(changes)
    }

    fn create(&mut self, dir: Ino, name: &Name, kind: &NodeKind, changes: &mut Changes) -> Option<()> {
        if self.lookup(dir, name).is_some() {
            return None;
        }
        let node = self.node(kind.clone());
        let ino = self.next;
        self.next += 1;
        changes.push(Change::Birth { id: id_of(ino), kind: kind.clone() });
        changes.push(Change::Attr { id: id_of(ino), patch: node.attr.into() });
        self.inodes.insert(ino, Arc::new(node));
        self.entry(dir, name, Some(ino), changes);
        self.touch(dir, changes);
        Some(())
    }

    fn rename(&mut self, from: (Ino, &Name), to: (Ino, &Name), exchange: bool, changes: &mut Changes) -> Option<()> {
        let moved = self.lookup(from.0, from.1)?;
        let there = self.lookup(to.0, to.1);
        if self.is_within(to.0, moved) || there == Some(moved) {
            return None;
        }
        match there {
            Some(there) if exchange => {
                if self.is_within(from.0, there) {
                    return None;
                }
                self.entry(from.0, from.1, Some(there), changes);
                self.entry(to.0, to.1, Some(moved), changes);
            }
            None if exchange => return None,
            _ => {
                if let Some(there) = there {
                    let (a, b) = (&self.inodes[&moved], &self.inodes[&there]);
                    if a.kind.is_directory() != b.kind.is_directory()
                        || !b.names.is_empty()
                        || self.is_within(from.0, there)
                    {
                        return None;
                    }
                }
                self.entry(from.0, from.1, None, changes);
                self.entry(to.0, to.1, Some(moved), changes);
                if let Some(there) = there {
                    self.lose_name(there);
                }
            }
        }
        self.touch(from.0, changes);
        if to.0 != from.0 {
            self.touch(to.0, changes);
        }
        Some(())
    }

    fn on_node(&mut self, request: &Request, changes: &mut Changes) -> Option<()> {
        match request {
            Request::Write { file, offset, bytes } => {
                let ino = self.file(*file)?;
                let data = &mut self.get(ino).data;
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                data.resize(data.len().max(end), 0);
                data[start..end].copy_from_slice(bytes);
                changes.push(Change::Data { id: id_of(ino), offset: *offset, data: bytes.clone() });
                self.touch(ino, changes);
            }
            Request::Copy { from, from_offset, file, offset, len } => {
                let (from, ino) = (self.file(*from)?, self.file(*file)?);
                let source = &self.inodes[&from].data;
                let end = (*from_offset + *len).min(source.len() as u64) as usize;
                let bytes =
                    Bytes::copy_from_slice(source.get(*from_offset as usize..end).filter(|bytes| !bytes.is_empty())?);
                let overlaps = from == ino && from_offset.abs_diff(*offset) < bytes.len() as u64;
                if overlaps {
                    // EINVAL
                    return None;
                }
                let data = &mut self.get(ino).data;
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                data.resize(data.len().max(end), 0);
                data[start..end].copy_from_slice(&bytes);
                changes.push(Change::Data { id: id_of(ino), offset: *offset, data: bytes });
                self.touch(ino, changes);
            }
            Request::Truncate { file, size } => {
                let ino = self.file(*file)?;
                self.get(ino).data.resize(*size as usize, 0);
                changes.push(Change::Size { id: id_of(ino), size: *size });
                self.touch(ino, changes);
            }
            Request::Punch { file, offset, len } => {
                let ino = self.file(*file)?;
                let data = &mut self.get(ino).data;
                let end = (*offset + *len).min(data.len() as u64) as usize;
                if (*offset as usize) < end {
                    data[*offset as usize..end].fill(0);
                }
                changes.push(Change::Hole { id: id_of(ino), offset: *offset, len: *len });
                self.touch(ino, changes);
            }
            Request::SetMode { node, mode } => {
                let ino = self.pick(*node, |node| !matches!(node.kind, NodeKind::Symlink(_)))?;
                self.get(ino).attr.mode = *mode;
                self.changed(ino, AttrPatch { mode: Some(*mode), ..Default::default() }, changes);
            }
            Request::SetOwner { node, uid } => {
                let ino = self.pick(*node, |_| true)?;
                self.get(ino).attr.uid = *uid;
                self.changed(ino, AttrPatch { uid: Some(*uid), ..Default::default() }, changes);
            }
            Request::SetXattr { node, name, value } => {
                let ino = self.pick(*node, |node| node.kind.is_regular() || node.kind.is_directory())?;
                let xattrs = &mut self.get(ino).xattrs;
                match value {
                    Some(value) => _ = xattrs.insert(name.clone(), value.clone()),
                    None => _ = xattrs.remove(name)?,
                }
                self.get(ino).ctime = self.tick();
                changes.push(Change::Xattr { id: id_of(ino), name: name.clone(), value: value.clone() });
            }
            _ => return None,
        }
        Some(())
    }

    fn changed(&mut self, ino: Ino, patch: AttrPatch, changes: &mut Changes) {
        let now = self.tick();
        self.get(ino).ctime = now;
        changes.push(Change::Attr { id: id_of(ino), patch });
    }

    /// Does again what happened before, by id. `lost` says of each piece of data, in order, that it never came.
    pub fn redo(&mut self, changes: &[Change], mut lost: impl FnMut(&InodeId, u64) -> bool) {
        for change in changes {
            self.redo_one(change, &mut lost);
        }
        // As the file system does: with its last name an inode is gone.
        self.inodes.retain(|ino, node| *ino == ROOT || node.links > 0);
    }

    fn redo_one(&mut self, change: &Change, lost: &mut dyn FnMut(&InodeId, u64) -> bool) {
        let now = self.tick();
        let known = |id: &InodeId| ino_of(id).expect("the folder made the id");
        match change {
            Change::Birth { id, kind } => {
                let node = Node { links: 0, ..self.node(kind.clone()) };
                self.inodes.insert(known(id), Arc::new(node));
            }
            Change::Entry { dir, name, old: _, new } => {
                let (dir, new) = (known(dir), new.as_ref().map(known));
                let there = self.lookup(dir, name);
                if let Some(new) = new {
                    let node = self.get(new);
                    node.links += 1;
                    node.parent = dir;
                    self.get(dir).names.insert(name.clone(), new);
                } else {
                    self.get(dir).names.remove(name);
                }
                if let Some(there) = there {
                    self.get(there).links -= 1;
                }
            }
            Change::Attr { id, patch } => {
                let Some(node) = self.inodes.get_mut(&known(id)).map(Arc::make_mut) else { return };
                let attr = &mut node.attr;
                attr.mode = patch.mode.unwrap_or(attr.mode);
                attr.uid = patch.uid.unwrap_or(attr.uid);
                attr.gid = patch.gid.unwrap_or(attr.gid);
                attr.mtime = patch.mtime.unwrap_or(attr.mtime);
                node.ctime = now;
            }
            Change::Xattr { id, name, value } => {
                let node = self.get(known(id));
                match value {
                    Some(value) => _ = node.xattrs.insert(name.clone(), value.clone()),
                    None => _ = node.xattrs.remove(name),
                }
                node.ctime = now;
            }
            Change::Data { id, offset, data } => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                let lost = lost(id, *offset);
                let into = &mut self.get(known(id)).data;
                into.resize(into.len().max(end), 0);
                if !lost {
                    into[start..end].copy_from_slice(data);
                }
            }
            Change::Hole { id, offset, len } => {
                let into = &mut self.get(known(id)).data;
                let end = (*offset + *len).min(into.len() as u64) as usize;
                if (*offset as usize) < end {
                    into[*offset as usize..end].fill(0);
                }
            }
            Change::Copy { .. } => unreachable!("the simulated applications make no copies"),
            Change::Size { id, size } => self.get(known(id)).data.resize(*size as usize, 0),
        }
    }

    /// Of changes whose record in the journal was lost, the data that reached room which a file has already.
    pub fn redo_in_place(&mut self, changes: &[Change], mut reached: impl FnMut(&InodeId) -> bool) {
        for change in changes {
            let Change::Data { id, offset, data } = change else { continue };
            let Some(node) = ino_of(id).and_then(|ino| self.inodes.get_mut(&ino)) else { continue };
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if node.kind.is_regular() && end <= node.data.len() && reached(id) {
                Arc::make_mut(node).data[start..end].copy_from_slice(data);
            }
        }
    }

    /// What a file system never uses twice goes on where `before` had come to.
    pub fn go_on_from(&mut self, before: &Folder) {
        self.next = self.next.max(before.next);
        self.clock = self.clock.max(before.clock);
    }

    /// Id of one of the regular files.
    pub fn any_file(&self, rng: &mut Rng) -> Option<InodeId> {
        self.file(rng.bits() >> 8).map(id_of)
    }

    /// Number of inodes.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.inodes.len() == 1
    }

    /// The whole state in a form that can be compared and read: see [`Picture`].
    pub fn picture(&self) -> Picture {
        let mut picture = Picture::default();
        self.draw(ROOT, "", &mut BTreeMap::new(), &mut picture);
        picture
    }

    fn draw(&self, ino: Ino, path: &str, seen: &mut BTreeMap<Ino, String>, picture: &mut Picture) {
        let node = &self.inodes[&ino];
        let first = seen.entry(ino).or_insert_with(|| path.to_owned()).clone();
        let size = if node.kind.is_regular() { node.data.len() } else { 0 };
        let xattrs = node.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        picture.add(path, &first, &node.kind, &node.attr, size, &node.data, &xattrs);
        picture.ids.insert(path.to_owned(), id_of(ino));
        for (name, child) in &node.names {
            self.draw(*child, &format!("{path}/{name}"), seen, picture);
        }
    }
}

/// A folder that applications change while a resync reads it.
#[derive(Clone, Debug, Default)]
pub struct FolderReader(Arc<Mutex<Folder>>);

impl FolderReader {
    /// A reader of this folder.
    pub fn holding(folder: Folder) -> Self {
        FolderReader(Arc::new(Mutex::new(folder)))
    }

    /// The folder itself.
    pub fn folder(&self) -> MutexGuard<'_, Folder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(folder: &Folder, name: &Name, ino: Ino) -> ListedEntry {
        let node = &folder.inodes[&ino];
        ListedEntry {
            name: name.clone(),
            id: id_of(ino),
            node_type: node.kind.node_type(),
            attr: node.attr,
            size: node.data.len() as u64,
            ctime: node.ctime,
        }
    }
}

impl StateReader for FolderReader {
    fn node(&self, id: &InodeId) -> io::Result<Option<NodeView>> {
        let folder = self.folder();
        let node = ino_of(id).and_then(|ino| folder.inodes.get(&ino));
        Ok(node.map(|node| NodeView {
            kind: node.kind.clone(),
            attr: node.attr,
            xattrs: node.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            size: node.data.len() as u64,
            ctime: node.ctime,
        }))
    }

    fn entry(&self, dir: &InodeId, name: &Name) -> io::Result<Option<ListedEntry>> {
        let folder = self.folder();
        let found = ino_of(dir).and_then(|dir| folder.lookup(dir, name));
        Ok(found.map(|ino| Self::listed(&folder, name, ino)))
    }

    fn list(&self, dir: &InodeId, each: &mut dyn FnMut(ListedEntry) -> io::Result<()>) -> io::Result<bool> {
        let entries: Vec<ListedEntry> = {
            let folder = self.folder();
            let Some(node) = ino_of(dir).and_then(|dir| folder.inodes.get(&dir)) else { return Ok(false) };
            node.names.iter().map(|(name, ino)| Self::listed(&folder, name, *ino)).collect()
        };
        entries.into_iter().try_for_each(each)?;
        Ok(true)
    }

    fn open(&self, id: &InodeId) -> io::Result<Option<Box<dyn FileReader>>> {
        let folder = self.folder();
        let node = ino_of(id).and_then(|ino| folder.inodes.get(&ino));
        let is_regular = node.is_some_and(|node| node.kind.is_regular());
        drop(folder);
        let reader = OpenFile { folder: self.clone(), id: *id };
        Ok(is_regular.then(|| Box::new(reader) as Box<dyn FileReader>))
    }

    fn sync_durable(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads of a file see what it holds at that moment, also when it changed since it was opened; after its last name is gone, nothing.
struct OpenFile {
    folder: FolderReader,
    id: InodeId,
}

impl OpenFile {
    fn with<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        let folder = self.folder.folder();
        let node = ino_of(&self.id).and_then(|ino| folder.inodes.get(&ino));
        read(node.map_or(&[], |node| &node.data))
    }
}

impl FileReader for OpenFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.with(|data| {
            let from = data.get(offset as usize..).unwrap_or_default();
            let len = from.len().min(buffer.len());
            buffer[..len].copy_from_slice(&from[..len]);
            len
        }))
    }

    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        Ok(self.with(|data| {
            // Blocks of zeroes are holes, as on a disk.
            let is_hole = |at: &usize| data[*at * HOLE..data.len().min((at + 1) * HOLE)].iter().all(|byte| *byte == 0);
            let blocks = from as usize / HOLE..data.len().div_ceil(HOLE);
            let first = blocks.clone().find(|at| !is_hole(at))?;
            let end = (first..blocks.end).find(is_hole).map_or(data.len(), |at| at * HOLE);
            Some((from.max((first * HOLE) as u64), end as u64))
        }))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.with(|data| data.len() as u64))
    }
}
