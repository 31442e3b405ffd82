//! Reading a replica while it is applied: what index, pull and verify use. Every answer is of one moment; a walk is not.

use std::sync::Arc;

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    op::{Attr, NodeKind},
    position::Position,
};

use crate::{
    apply::ApplyError,
    tree::{FsTree, ReplicaTree},
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

/// Reads a replica. Cheap to clone, may be sent to other threads.
pub struct ReplicaReader<T: ReplicaTree = FsTree> {
    _tree: Arc<T>,
}

impl<T: ReplicaTree> Clone for ReplicaReader<T> {
    fn clone(&self) -> Self {
        ReplicaReader { _tree: self._tree.clone() }
    }
}

impl<T: ReplicaTree> ReplicaReader<T> {
    /// The inode, `None` if the replica has none with this id.
    pub fn node(&self, _id: &InodeId) -> Result<Option<ReplicaNode>, ApplyError> {
        unimplemented!()
    }

    /// Its extended attributes, sorted by name.
    pub fn xattrs(&self, _id: &InodeId) -> Result<Option<Vec<(Bytes, Bytes)>>, ApplyError> {
        unimplemented!()
    }

    /// What a name means.
    pub fn entry(&self, _dir: &InodeId, _name: &Name) -> Result<Option<InodeId>, ApplyError> {
        unimplemented!()
    }

    /// Up to `limit` names of a directory after `after`, sorted by name.
    pub fn entries(
        &self,
        _dir: &InodeId,
        _after: Option<&Name>,
        _limit: usize,
    ) -> Result<Vec<(Name, InodeId)>, ApplyError> {
        unimplemented!()
    }

    /// All names of an inode.
    pub fn names(&self, _id: &InodeId) -> Result<Vec<(InodeId, Name)>, ApplyError> {
        unimplemented!()
    }

    /// A path from the root, by the inode's first name; the root has none. `None` if there is no such inode.
    pub fn path(&self, _id: &InodeId) -> Result<Option<Vec<Name>>, ApplyError> {
        unimplemented!()
    }

    /// Up to `limit` inode ids after `after`, sorted.
    pub fn ids(&self, _after: Option<&InodeId>, _limit: usize) -> Result<Vec<InodeId>, ApplyError> {
        unimplemented!()
    }

    /// How many inodes the replica has, the root included.
    pub fn inodes(&self) -> u64 {
        unimplemented!()
    }

    /// Opens a regular file for reading. `None` if there is none with this id.
    pub fn open(&self, _id: &InodeId) -> Result<Option<ReplicaFile<T>>, ApplyError> {
        unimplemented!()
    }
}

/// A regular file of the replica, open for reading.
pub struct ReplicaFile<T: ReplicaTree = FsTree> {
    _tree: Arc<T>,
}

impl<T: ReplicaTree> ReplicaFile<T> {
    /// Reads at an offset until `buffer` is full or the file ends; how many bytes.
    pub fn read_at(&self, _offset: u64, _buffer: &mut [u8]) -> std::io::Result<usize> {
        unimplemented!()
    }

    /// The next range at or after `from` that is not a hole; `None`: only holes follow.
    pub fn next_data(&self, _from: u64) -> std::io::Result<Option<(u64, u64)>> {
        unimplemented!()
    }

    /// Its size now.
    pub fn size(&self) -> std::io::Result<u64> {
        unimplemented!()
    }
}
