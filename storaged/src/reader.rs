//! Reading a replica while it is applied: what index, pull and verify use. Every answer is of one moment; a walk is not, unless
//! apply is paused.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tandem_proto::{
    ids::{InodeId, Name},
    op::{Attr, NodeKind},
    position::Position,
    stage::NodeType,
};

use crate::{
    apply::{
        ApplyError,
        error::OnObject as _,
        metadata::{true_attr, true_xattrs},
    },
    catalog::{Catalog, NodeRecord},
    tree::{Area, FsTree, ReplicaTree},
};

/// What the replica has of one inode, with what its file system refused put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaNode {
    /// What it is.
    pub kind: NodeKind,
    /// Its attributes.
    pub attr: Attr,
    /// Size in bytes, of a regular file; else 0.
    pub size: u64,
    /// Where its history began.
    pub born: Position,
}

/// All of an inode. See [`ReplicaReader::whole`].
pub struct Whole<T: ReplicaTree = FsTree> {
    /// What it is.
    pub node: ReplicaNode,
    /// Its extended attributes, sorted by name.
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// Its data, of a regular file.
    pub file: Option<ReplicaFile<T>>,
}

/// Reads a replica. Cheap to clone, may be sent to other threads.
pub struct ReplicaReader<T: ReplicaTree = FsTree> {
    tree: T,
    catalog: Catalog,
    applied: Arc<Mutex<Position>>,
}

impl<T: ReplicaTree> Clone for ReplicaReader<T> {
    fn clone(&self) -> Self {
        ReplicaReader { tree: self.tree.clone(), catalog: self.catalog.clone(), applied: self.applied.clone() }
    }
}

/// An inode may be renamed between the look into the catalog and the look into the tree; so often is it looked for anew.
const ATTEMPTS_MAX: usize = 8;

impl<T: ReplicaTree> ReplicaReader<T> {
    pub(crate) fn new(tree: T, catalog: Catalog, applied: Arc<Mutex<Position>>) -> Self {
        ReplicaReader { tree, catalog, applied }
    }

    /// Position of tree and catalog.
    pub fn applied(&self) -> Position {
        *self.applied.lock()
    }

    /// The catalog that it reads.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The tree that it reads.
    pub(crate) fn tree(&self) -> &T {
        &self.tree
    }

    /// The inode, `None` if the replica has none with this id.
    pub fn node(&self, id: &InodeId) -> Result<Option<ReplicaNode>, ApplyError> {
        let Some((record, node)) = self.open_node(id)? else { return Ok(None) };
        self.node_of(id, &record, &node).map(Some)
    }

    fn node_of(&self, id: &InodeId, record: &NodeRecord, node: &T::Node) -> Result<ReplicaNode, ApplyError> {
        let is = self.tree.stat(node).on("read", id)?;
        let mut attr = true_attr(is.attr, record.side.as_deref());
        attr.mtime = record.dir_mtime.unwrap_or(attr.mtime);
        let size = if record.kind.is_regular() { is.size } else { 0 };
        Ok(ReplicaNode { kind: record.kind.clone(), attr, size, born: record.born })
    }

    /// Its extended attributes, sorted by name.
    pub fn xattrs(&self, id: &InodeId) -> Result<Option<Vec<(Bytes, Bytes)>>, ApplyError> {
        let Some((record, node)) = self.open_node(id)? else { return Ok(None) };
        self.xattrs_of(id, &record, &node).map(Some)
    }

    fn xattrs_of(&self, id: &InodeId, record: &NodeRecord, node: &T::Node) -> Result<Vec<(Bytes, Bytes)>, ApplyError> {
        let mut found = BTreeMap::new();
        for name in self.tree.list_xattrs(node).on("list the attributes of", id)? {
            if let Some(value) = self.tree.xattr(node, &name).on("read an attribute of", id)? {
                found.insert(name, value);
            }
        }
        Ok(true_xattrs(found, record.side.as_deref()))
    }

    /// Everything about an inode in one look: what it is, its extended attributes, and a regular file opened for reading.
    pub fn whole(&self, id: &InodeId) -> Result<Option<Whole<T>>, ApplyError> {
        let Some((record, object)) = self.open_node(id)? else { return Ok(None) };
        let node = self.node_of(id, &record, &object)?;
        let xattrs = self.xattrs_of(id, &record, &object)?;
        let file = node.kind.is_regular().then(|| ReplicaFile { tree: self.tree.clone(), node: object });
        Ok(Some(Whole { node, xattrs, file }))
    }

    /// What a name means.
    pub fn entry(&self, dir: &InodeId, name: &Name) -> Result<Option<InodeId>, ApplyError> {
        Ok(self.catalog.entry(dir, name)?)
    }

    /// Up to `limit` names of a directory after `after`, sorted by name.
    pub fn entries(
        &self,
        dir: &InodeId,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, InodeId)>, ApplyError> {
        Ok(self.catalog.entries(dir, after, limit)?)
    }

    /// All names of an inode.
    pub fn names(&self, id: &InodeId) -> Result<Vec<(InodeId, Name)>, ApplyError> {
        Ok(self.catalog.names(id, usize::MAX)?)
    }

    /// One name of an inode, with the directory that it stands in. `None` if there is no such inode.
    pub fn name(&self, id: &InodeId) -> Result<Option<(InodeId, Name)>, ApplyError> {
        Ok(self.catalog.names(id, 1)?.into_iter().next())
    }

    /// A path from the root, by the inode's first name; the root has none. `None` if there is no such inode.
    pub fn path(&self, id: &InodeId) -> Result<Option<Vec<Name>>, ApplyError> {
        let (mut path, mut at) = (Vec::new(), *id);
        while !at.is_root() {
            let Some((dir, name)) = self.name(&at)? else { return Ok(None) };
            path.push(name);
            at = dir;
        }
        path.reverse();
        Ok(Some(path))
    }

    /// Up to `limit` inode ids after `after`, in an order that does not change.
    pub fn ids(&self, after: Option<&InodeId>, limit: usize) -> Result<Vec<InodeId>, ApplyError> {
        Ok(self.catalog.ids(after, limit)?)
    }

    /// How many inodes the replica has, the root included.
    pub fn inodes(&self) -> u64 {
        self.catalog.inodes()
    }

    /// Opens a regular file for reading. `None` if there is none with this id.
    pub fn open(&self, id: &InodeId) -> Result<Option<ReplicaFile<T>>, ApplyError> {
        match self.open_node(id)? {
            Some((record, node)) if record.kind.is_regular() => Ok(Some(ReplicaFile { tree: self.tree.clone(), node })),
            _ => Ok(None),
        }
    }

    /// Opens a directory, to look at what stands in it. `None` if there is none with this id.
    pub(crate) fn directory(&self, id: &InodeId) -> Result<Option<T::Node>, ApplyError> {
        match self.open_node(id)? {
            Some((record, node)) if record.kind.is_directory() => Ok(Some(node)),
            _ => Ok(None),
        }
    }

    /// All of what stands at a name of an open directory, which should be this inode; `None` if that is a directory. Another object there
    /// is an error of the kind `NotFound`.
    pub(crate) fn child(&self, dir: &T::Node, name: &Name, id: &InodeId) -> Result<Option<Whole<T>>, ApplyError> {
        let displaced = || ApplyError::from_io("find", id, io::ErrorKind::NotFound.into());
        let record = self.catalog.node(id)?.ok_or_else(displaced)?;
        if record.kind.is_directory() {
            return Ok(None);
        }
        let object = self.tree.open(dir, name.as_bytes(), object_type(&record)).on("open", id)?;
        if self.tree.identity(&object).on("identify", id)? != record.identity {
            return Err(displaced());
        }
        let node = self.node_of(id, &record, &object)?;
        let xattrs = self.xattrs_of(id, &record, &object)?;
        let file = node.kind.is_regular().then(|| ReplicaFile { tree: self.tree.clone(), node: object });
        Ok(Some(Whole { node, xattrs, file }))
    }

    /// The object of an inode. It is what it should be by its identity, not by the names that led to it.
    fn open_node(&self, id: &InodeId) -> Result<Option<(NodeRecord, T::Node)>, ApplyError> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..ATTEMPTS_MAX {
            let Some(record) = self.catalog.node(id)? else { return Ok(None) };
            let Some(path) = self.path(id)? else { continue };
            match self.walk(&path, &record) {
                Ok(Some(node)) => return Ok(Some((record, node))),
                Ok(None) => {}
                Err(error) => last = error,
            }
        }
        Err(ApplyError::from_io("find", id, last))
    }

    fn walk(&self, path: &[Name], record: &NodeRecord) -> io::Result<Option<T::Node>> {
        let node_type = object_type(record);
        let mut node = self.tree.area(Area::Tree);
        for (at, name) in path.iter().enumerate() {
            let node_type = if at + 1 == path.len() { node_type } else { NodeType::Directory };
            node = self.tree.open(&node, name.as_bytes(), node_type)?;
        }
        Ok((self.tree.identity(&node)? == record.identity).then_some(node))
    }
}

/// Type of an inode's object in the tree.
fn object_type(record: &NodeRecord) -> NodeType {
    match &record.side {
        Some(side) if side.placeholder => NodeType::Regular,
        _ => record.kind.node_type(),
    }
}

/// A regular file of the replica, open for reading. It stays readable when it is renamed or removed.
pub struct ReplicaFile<T: ReplicaTree = FsTree> {
    tree: T,
    node: T::Node,
}

impl<T: ReplicaTree> ReplicaFile<T> {
    /// Reads at an offset until `buffer` is full or the file ends; how many bytes.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.tree.read_at(&self.node, offset, buffer)
    }

    /// The next range at or after `from` that is not a hole; `None`: only holes follow.
    pub fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        self.tree.next_data(&self.node, from)
    }

    /// What is read next comes from the disk, as far as it is there.
    pub fn forget_cached(&self) {
        self.tree.forget_cached(&self.node, 0, 0);
    }

    /// Its size now.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.tree.stat(&self.node)?.size)
    }
}

impl ReplicaFile<FsTree> {
    /// The same file, opened anew for reading.
    pub fn reopened(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.node.as_fd().as_raw_fd()))
    }

    /// What it is read by.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.node.as_fd()
    }

    /// Makes an empty file share this one's data, which then stays as it is now. Fails where the file system cannot.
    pub fn share_with(&self, file: &File) -> io::Result<()> {
        Ok(rustix::fs::ioctl_ficlone(file, &self.node)?)
    }
}
