//! A tree in memory for property tests and the simulation, with the crashes of a journaling file system: what was not synced may
//! be lost. Changes of names and attributes are lost from the end on (a prefix of them survives); of file data any part is lost, and
//! data of changes after that end may be there, if it went into room that the file had.
//!
//! Every change goes through a [`Mutation`], of which those since the last sync are kept, so that a crash replays some of them
//! on the synced state. A budget of changes lets a test stop the process at every single step.

use std::{collections::BTreeMap, io, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tandem_proto::{
    op::{Attr, NodeKind, Timestamp},
    stage::NodeType,
};

use super::{Area, Found, ReplicaTree, Stat};
use crate::apply::ObjectIdentity;

/// Number of an object; never reused.
type Ino = u64;

#[derive(Clone, Debug)]
struct Inode {
    kind: NodeKind,
    attr: Attr,
    xattrs: BTreeMap<Bytes, Bytes>,
    data: Vec<u8>,
    names: BTreeMap<Bytes, Ino>,
    links: u64,
}

#[derive(Clone, Debug)]
enum Mutation {
    Create(Ino, Bytes, NodeKind, Ino),
    Link(Ino, Bytes, Ino, Bytes),
    Rename(Ino, Bytes, Ino, Bytes),
    Exchange(Ino, Bytes, Ino, Bytes),
    Unlink(Ino, Bytes),
    Rmdir(Ino, Bytes),
    Owner(Ino, Option<u32>, Option<u32>),
    Mode(Ino, u32),
    Mtime(Ino, Timestamp),
    Xattr(Ino, Bytes, Option<Bytes>),
    Write(Ino, u64, Bytes),
    Punch(Ino, u64, u64),
    Size(Ino, u64),
}

#[derive(Clone, Debug, Default)]
struct State {
    inodes: BTreeMap<Ino, Inode>,
}

/// Syncs that fail.
#[derive(Clone, Copy, Debug, Default)]
struct Failing {
    /// So many work before.
    after: u32,
    /// So many fail then.
    count: u32,
    /// Decides what is lost.
    salt: u64,
    /// One has failed: what readers see is not what the disk will have.
    happened: bool,
}

impl Failing {
    /// Whether the sync that begins now fails.
    fn next(&mut self) -> bool {
        match (self.after, self.count) {
            (_, 0) => false,
            (0, _) => {
                self.count -= 1;
                self.happened = true;
                true
            }
            _ => {
                self.after -= 1;
                false
            }
        }
    }

    fn loses(&self, at: usize) -> bool {
        (self.salt ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd134_2543_de82_ef95) >> 63 == 0
    }
}

struct Disk {
    current: State,
    synced: State,
    /// With the clock of each.
    since_sync: Vec<(u32, Mutation)>,
    failing: Failing,
    next: Ino,
    /// A clock that moves with every change, so that a forgotten mtime shows.
    clock: u32,
    budget: Option<u64>,
    /// After so many more changes each further one fails with ENOSPC.
    room: Option<u64>,
}

/// See the module.
#[derive(Clone)]
pub struct MemTree {
    disk: Arc<Mutex<Disk>>,
}

/// An open object of a [`MemTree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemNode(Ino);

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Inode {
    fn new(kind: NodeKind, clock: u32) -> Self {
        let mode = if kind.is_directory() { 0o700 } else { 0o600 };
        let mode = if matches!(kind, NodeKind::Symlink(_)) { 0o777 } else { mode };
        let mtime = Timestamp { seconds: 4_000_000_000, nanos: clock };
        let attr = Attr { mode, uid: 0, gid: 0, mtime };
        Inode { kind, attr, xattrs: BTreeMap::new(), data: Vec::new(), names: BTreeMap::new(), links: 1 }
    }
}

impl State {
    /// What reaches the disk of a change whose record in the journal did not: data that went into room which the file has.
    fn apply_in_place(&mut self, mutation: &Mutation, clock: u32) -> io::Result<()> {
        let Mutation::Write(ino, offset, data) = mutation else { return Ok(()) };
        let (node, end) = (self.get(*ino)?, offset + data.len() as u64);
        if node.kind.node_type() != NodeType::Regular || end > node.data.len() as u64 {
            return Ok(());
        }
        let mtime = node.attr.mtime;
        self.apply(mutation, clock)?;
        self.get(*ino)?.attr.mtime = mtime;
        Ok(())
    }

    fn get(&mut self, ino: Ino) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| error(libc::ESTALE))
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> io::Result<Ino> {
        let dir = self.inodes.get(&dir).ok_or_else(|| error(libc::ESTALE))?;
        dir.names.get(name).copied().ok_or_else(|| error(libc::ENOENT))
    }

    fn is_below(&self, ino: Ino, top: Ino) -> bool {
        let Some(node) = self.inodes.get(&top) else { return false };
        ino == top || node.names.values().any(|child| self.is_below(ino, *child))
    }

    fn touch(&mut self, dir: Ino, clock: u32) -> io::Result<()> {
        self.get(dir)?.attr.mtime = Timestamp { seconds: 4_000_000_000, nanos: clock };
        Ok(())
    }

    fn unname(&mut self, dir: Ino, name: &Bytes) -> io::Result<()> {
        let ino = self.lookup(dir, name)?;
        self.get(dir)?.names.remove(name);
        let node = self.get(ino)?;
        node.links -= 1;
        Ok(())
    }

    fn apply(&mut self, mutation: &Mutation, clock: u32) -> io::Result<()> {
        match mutation {
            Mutation::Create(dir, name, kind, ino) => {
                if self.lookup(*dir, name).is_ok() {
                    return Err(error(libc::EEXIST));
                }
                self.inodes.insert(*ino, Inode::new(kind.clone(), clock));
                self.get(*dir)?.names.insert(name.clone(), *ino);
                self.touch(*dir, clock)
            }
            Mutation::Link(from, name, to, to_name) => {
                let ino = self.lookup(*from, name)?;
                if self.lookup(*to, to_name).is_ok() {
                    return Err(error(libc::EEXIST));
                }
                if self.get(ino)?.kind.is_directory() {
                    return Err(error(libc::EPERM));
                }
                self.get(ino)?.links += 1;
                self.get(*to)?.names.insert(to_name.clone(), ino);
                self.touch(*to, clock)
            }
            Mutation::Rename(from, name, to, to_name) => self.rename(*from, name, *to, to_name, clock),
            Mutation::Exchange(from, name, to, to_name) => {
                let (a, b) = (self.lookup(*from, name)?, self.lookup(*to, to_name)?);
                if self.is_below(*to, a) || self.is_below(*from, b) {
                    return Err(error(libc::EINVAL));
                }
                self.get(*from)?.names.insert(name.clone(), b);
                self.get(*to)?.names.insert(to_name.clone(), a);
                // As on xfs: a directory whose parent becomes another is touched itself.
                for moved in [a, b] {
                    if from != to && self.get(moved)?.kind.is_directory() {
                        self.touch(moved, clock)?;
                    }
                }
                self.touch(*from, clock)?;
                self.touch(*to, clock)
            }
            Mutation::Unlink(dir, name) => {
                let ino = self.lookup(*dir, name)?;
                if self.get(ino)?.kind.is_directory() {
                    return Err(error(libc::EISDIR));
                }
                self.unname(*dir, name)?;
                self.touch(*dir, clock)
            }
            Mutation::Rmdir(dir, name) => {
                let ino = self.lookup(*dir, name)?;
                let node = self.get(ino)?;
                if !node.kind.is_directory() {
                    return Err(error(libc::ENOTDIR));
                }
                if !node.names.is_empty() {
                    return Err(error(libc::ENOTEMPTY));
                }
                self.unname(*dir, name)?;
                self.touch(*dir, clock)
            }
            change => self.apply_inode(change, clock),
        }
    }

    fn rename(&mut self, from: Ino, name: &Bytes, to: Ino, to_name: &Bytes, clock: u32) -> io::Result<()> {
        let ino = self.lookup(from, name)?;
        if self.is_below(to, ino) {
            return Err(error(libc::EINVAL));
        }
        if let Ok(victim) = self.lookup(to, to_name) {
            if victim == ino {
                return Ok(());
            }
            let directory = self.get(ino)?.kind.is_directory();
            let there = self.get(victim)?;
            match (directory, there.kind.is_directory()) {
                (true, false) => return Err(error(libc::ENOTDIR)),
                (false, true) => return Err(error(libc::EISDIR)),
                (true, true) if !there.names.is_empty() => return Err(error(libc::ENOTEMPTY)),
                _ => self.unname(to, to_name)?,
            }
        }
        self.get(from)?.names.remove(name);
        self.get(to)?.names.insert(to_name.clone(), ino);
        self.touch(from, clock)?;
        self.touch(to, clock)
    }

    fn apply_inode(&mut self, mutation: &Mutation, clock: u32) -> io::Result<()> {
        match mutation {
            Mutation::Owner(ino, uid, gid) => {
                let attr = &mut self.get(*ino)?.attr;
                attr.uid = uid.unwrap_or(attr.uid);
                attr.gid = gid.unwrap_or(attr.gid);
            }
            Mutation::Mode(ino, mode) => self.get(*ino)?.attr.mode = *mode,
            Mutation::Mtime(ino, mtime) => self.get(*ino)?.attr.mtime = *mtime,
            Mutation::Xattr(ino, name, Some(value)) => _ = self.get(*ino)?.xattrs.insert(name.clone(), value.clone()),
            Mutation::Xattr(ino, name, None) => _ = self.get(*ino)?.xattrs.remove(name),
            Mutation::Write(ino, offset, bytes) => {
                let data = &mut self.get(*ino)?.data;
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[start..end].copy_from_slice(bytes);
                self.touch(*ino, clock)?;
            }
            Mutation::Punch(ino, offset, len) => {
                let data = &mut self.get(*ino)?.data;
                let end = (offset + len).min(data.len() as u64) as usize;
                if (*offset as usize) < end {
                    data[*offset as usize..end].fill(0);
                }
                self.touch(*ino, clock)?;
            }
            Mutation::Size(ino, size) => {
                self.get(*ino)?.data.resize(*size as usize, 0);
                self.touch(*ino, clock)?;
            }
            _ => unreachable!("changes of names are applied elsewhere"),
        }
        Ok(())
    }
}

impl Default for MemTree {
    fn default() -> Self {
        Self::new()
    }
}

impl MemTree {
    /// An empty tree.
    pub fn new() -> Self {
        let mut state = State::default();
        for area in Area::ALL {
            state.inodes.insert(area as Ino, Inode::new(NodeKind::Directory, 0));
        }
        let disk = Disk {
            current: state.clone(),
            synced: state,
            since_sync: Vec::new(),
            failing: Failing::default(),
            next: 100,
            clock: 1,
            budget: None,
            room: None,
        };
        MemTree { disk: Arc::new(Mutex::new(disk)) }
    }

    /// After so many more changes every further one fails, as if the process had died; `None`: no limit.
    pub fn set_budget(&self, changes: Option<u64>) {
        self.disk.lock().budget = changes;
    }

    /// After so many more changes every further one fails with ENOSPC; `None`: there is room.
    pub fn set_room(&self, changes: Option<u64>) {
        self.disk.lock().room = changes;
    }

    /// After `after` more syncs the next `count` fail, as Linux does it: the error is told once, and about half of the data that was
    /// not on the disk yet, by `salt`, never gets there, although readers go on seeing it. Names and attributes have a journal.
    pub fn fail_syncs(&self, after: u32, count: u32, salt: u64) {
        let mut disk = self.disk.lock();
        let happened = disk.failing.happened;
        disk.failing = Failing { after, count, salt, happened };
    }

    /// Number of changes since the last sync.
    pub fn unsynced(&self) -> usize {
        self.disk.lock().since_sync.len()
    }

    /// Loses power: of the changes since the last sync the first `keep` survive, without the data changes that `lose` picks by
    /// number. Handles from before are void. Also lifts the budget.
    pub fn crash(&self, keep: usize, lose: impl Fn(usize) -> bool) {
        let mut disk = self.disk.lock();
        let mut state = disk.synced.clone();
        for (at, (clock, mutation)) in disk.since_sync.iter().enumerate() {
            let data = matches!(mutation, Mutation::Write(..) | Mutation::Punch(..));
            if !(data && lose(at)) {
                // A change may need one of data that was lost; then it is lost too.
                let _ = if at < keep { state.apply(mutation, *clock) } else { state.apply_in_place(mutation, *clock) };
            }
        }
        disk.current = state.clone();
        disk.synced = state;
        disk.since_sync.clear();
        disk.failing = Failing::default();
        (disk.budget, disk.room) = (None, None);
    }

    fn change(&self, mutation: Mutation) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if let Some(budget) = &mut disk.budget {
            if *budget == 0 {
                return Err(io::Error::other("the simulated process has stopped"));
            }
            *budget -= 1;
        }
        if let Some(room) = &mut disk.room {
            if *room == 0 {
                return Err(error(libc::ENOSPC));
            }
            *room -= 1;
        }
        disk.clock += 1;
        let clock = disk.clock;
        disk.current.apply(&mutation, clock)?;
        disk.since_sync.push((clock, mutation));
        Ok(())
    }

    fn with<V>(&self, node: &MemNode, read: impl FnOnce(&Inode) -> V) -> io::Result<V> {
        let disk = self.disk.lock();
        disk.current.inodes.get(&node.0).map(read).ok_or_else(|| error(libc::ESTALE))
    }
}

fn identity_of(ino: Ino) -> ObjectIdentity {
    ObjectIdentity::new(&ino.to_le_bytes()).unwrap_or_else(|| unreachable!("eight bytes fit"))
}

fn bytes(name: &[u8]) -> Bytes {
    Bytes::copy_from_slice(name)
}

impl ReplicaTree for MemTree {
    type Node = MemNode;

    fn area(&self, area: Area) -> MemNode {
        MemNode(area as Ino)
    }

    fn open(&self, dir: &MemNode, name: &[u8], node_type: NodeType) -> io::Result<MemNode> {
        let ino = self.disk.lock().current.lookup(dir.0, name)?;
        let found = self.with(&MemNode(ino), |node| node.kind.node_type())?;
        if found == node_type { Ok(MemNode(ino)) } else { Err(error(libc::ENOTDIR)) }
    }

    fn find(&self, dir: &MemNode, name: &[u8]) -> io::Result<Option<Found>> {
        let ino = match self.disk.lock().current.lookup(dir.0, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            answer => answer?,
        };
        let node_type = self.with(&MemNode(ino), |node| node.kind.node_type())?;
        Ok(Some(Found { identity: identity_of(ino), node_type }))
    }

    fn create(&self, dir: &MemNode, name: &[u8], kind: &NodeKind) -> io::Result<(ObjectIdentity, Option<MemNode>)> {
        let ino = {
            let mut disk = self.disk.lock();
            disk.next += 1;
            disk.next
        };
        self.change(Mutation::Create(dir.0, bytes(name), kind.clone(), ino))?;
        Ok((identity_of(ino), Some(MemNode(ino))))
    }

    fn link(&self, from: &MemNode, name: &[u8], to: &MemNode, to_name: &[u8]) -> io::Result<()> {
        self.change(Mutation::Link(from.0, bytes(name), to.0, bytes(to_name)))
    }

    fn rename(&self, from: &MemNode, name: &[u8], to: &MemNode, to_name: &[u8]) -> io::Result<()> {
        self.change(Mutation::Rename(from.0, bytes(name), to.0, bytes(to_name)))
    }

    fn exchange(&self, from: &MemNode, name: &[u8], to: &MemNode, to_name: &[u8]) -> io::Result<()> {
        self.change(Mutation::Exchange(from.0, bytes(name), to.0, bytes(to_name)))
    }

    fn unlink(&self, dir: &MemNode, name: &[u8]) -> io::Result<()> {
        self.change(Mutation::Unlink(dir.0, bytes(name)))
    }

    fn rmdir(&self, dir: &MemNode, name: &[u8]) -> io::Result<()> {
        self.change(Mutation::Rmdir(dir.0, bytes(name)))
    }

    fn list(&self, dir: &MemNode) -> io::Result<Vec<(Bytes, NodeType)>> {
        let names = self.with(dir, |node| node.names.clone())?;
        names.into_iter().map(|(name, ino)| Ok((name, self.with(&MemNode(ino), |n| n.kind.node_type())?))).collect()
    }

    fn identity(&self, node: &MemNode) -> io::Result<ObjectIdentity> {
        self.with(node, |_| identity_of(node.0))
    }

    fn stat(&self, node: &MemNode) -> io::Result<Stat> {
        self.with(node, |inode| Stat {
            node_type: inode.kind.node_type(),
            attr: inode.attr,
            size: inode.data.len() as u64,
            links: inode.links,
        })
    }

    /// Zeroes are holes here.
    fn allocated(&self, node: &MemNode) -> io::Result<u64> {
        self.with(node, |inode| inode.data.iter().filter(|byte| **byte != 0).count() as u64)
    }

    fn set_owner(&self, node: &MemNode, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.change(Mutation::Owner(node.0, uid, gid))
    }

    fn set_mode(&self, node: &MemNode, mode: u32) -> io::Result<()> {
        self.change(Mutation::Mode(node.0, mode))
    }

    fn set_mtime(&self, node: &MemNode, mtime: Timestamp) -> io::Result<()> {
        self.change(Mutation::Mtime(node.0, mtime))
    }

    fn list_xattrs(&self, node: &MemNode) -> io::Result<Vec<Bytes>> {
        self.with(node, |inode| inode.xattrs.keys().cloned().collect())
    }

    fn xattr(&self, node: &MemNode, name: &[u8]) -> io::Result<Option<Bytes>> {
        self.with(node, |inode| inode.xattrs.get(name).cloned())
    }

    fn set_xattr(&self, node: &MemNode, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.change(Mutation::Xattr(node.0, bytes(name), Some(bytes(value))))
    }

    fn remove_xattr(&self, node: &MemNode, name: &[u8]) -> io::Result<()> {
        self.change(Mutation::Xattr(node.0, bytes(name), None))
    }

    fn read_at(&self, node: &MemNode, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(node, |inode| {
            let from = inode.data.get(offset as usize..).unwrap_or_default();
            let len = from.len().min(buffer.len());
            buffer[..len].copy_from_slice(&from[..len]);
            len
        })
    }

    fn write_at(&self, node: &MemNode, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Mutation::Write(node.0, offset, bytes(data)))
    }

    fn punch(&self, node: &MemNode, offset: u64, len: u64) -> io::Result<()> {
        self.change(Mutation::Punch(node.0, offset, len))
    }

    fn set_size(&self, node: &MemNode, size: u64) -> io::Result<()> {
        self.change(Mutation::Size(node.0, size))
    }

    fn next_data(&self, node: &MemNode, from: u64) -> io::Result<Option<(u64, u64)>> {
        self.with(node, |inode| {
            let data = inode.data.get(from as usize..)?;
            let start = data.iter().position(|byte| *byte != 0)?;
            let len = data[start..].iter().position(|byte| *byte == 0).unwrap_or(data.len() - start);
            Some((from + start as u64, from + (start + len) as u64))
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if disk.budget == Some(0) {
            return Err(io::Error::other("the simulated process has stopped"));
        }
        let fails = disk.failing.next();
        if !disk.failing.happened {
            disk.synced = disk.current.clone();
            disk.since_sync.clear();
            return Ok(());
        }
        for (at, (clock, mutation)) in std::mem::take(&mut disk.since_sync).into_iter().enumerate() {
            let data = matches!(mutation, Mutation::Write(..) | Mutation::Punch(..));
            if !(fails && data && disk.failing.loses(at)) {
                let _ = disk.synced.apply(&mutation, clock);
            }
        }
        if fails { Err(error(libc::EIO)) } else { Ok(()) }
    }

    fn is_unprivileged(&self) -> bool {
        false
    }
}
