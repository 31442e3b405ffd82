//! The messages of a resync: state that was read, on its way to be published as one step.

use bytes::Bytes;

use crate::{
    chunk::Digest,
    ids::{InodeId, Name},
    op::{Attr, NodeKind},
    position::Position,
};

/// How much of a directory a [`StageDir`] lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// It assigns the names that it holds.
    Partial,
    /// Part of a complete listing; more follow.
    CompletePart,
    /// The last part: names that no part held := none.
    CompleteEnd,
}

/// One name of a staged directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageEntry {
    /// The name.
    pub name: Name,
    /// What it means; `None`: nothing.
    pub node: Option<(InodeId, NodeType)>,
    /// Quick check of the inode, see [`stamp`]; `None`: not given.
    pub stamp: Option<u64>,
}

/// A quick check of an inode: equal stamps mean equal type, attributes and size (and link text length), so only what differs is
/// asked for. It proves nothing about data; who needs proof compares digests. Directories count without size and mtime-only
/// differences do show. Never 0.
pub fn stamp(node: NodeType, attr: &Attr, size: u64) -> u64 {
    let size = if node == NodeType::Regular { size } else { 0 };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[node as u8]);
    for word in [attr.mode, attr.uid, attr.gid, attr.mtime.nanos] {
        hasher.update(&word.to_le_bytes());
    }
    hasher.update(&attr.mtime.seconds.to_le_bytes());
    hasher.update(&size.to_le_bytes());
    let mut cut = [0; 8];
    cut.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(cut).max(1)
}

/// Type of an inode, without what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum NodeType {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Named pipe.
    Fifo = 4,
    /// Unix socket.
    Socket = 5,
    /// Character device.
    CharDevice = 6,
    /// Block device.
    BlockDevice = 7,
}

impl NodeKind {
    /// The type of it.
    pub fn node_type(&self) -> NodeType {
        match self {
            NodeKind::Regular => NodeType::Regular,
            NodeKind::Directory => NodeType::Directory,
            NodeKind::Symlink(_) => NodeType::Symlink,
            NodeKind::Fifo => NodeType::Fifo,
            NodeKind::Socket => NodeType::Socket,
            NodeKind::CharDevice { .. } => NodeType::CharDevice,
            NodeKind::BlockDevice { .. } => NodeType::BlockDevice,
        }
    }
}

/// Names of one directory as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageDir {
    /// The directory.
    pub dir: InodeId,
    /// How much of it.
    pub listing: Listing,
    /// Its names.
    pub entries: Vec<StageEntry>,
    /// Also ask for ids that were born at or after this.
    pub born_since: Option<Position>,
}

/// Which data of a [`StageNode`] follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// None: no data cell of it is dirty.
    Unchanged,
    /// That of the dirty extents; the rest stands.
    Ranges,
    /// All: what is not sent is a hole.
    Whole,
}

/// One inode as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageNode {
    /// The inode.
    pub id: InodeId,
    /// `None`: it has no name any more.
    pub state: Option<NodeState>,
}

/// The state of one inode, without its names and data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// What it is.
    pub kind: NodeKind,
    /// All attributes.
    pub attr: Attr,
    /// All extended attributes, by name.
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// Size in bytes, of a regular file; else 0.
    pub size: u64,
    /// Which data follows.
    pub content: Content,
}

/// What an extent holds, by digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file.
    pub offset: u64,
    /// How long.
    pub len: u64,
    /// Of its bytes; `None`: zeroes.
    pub digest: Option<Digest>,
    /// Of its first chunk, if it is a group of chunks.
    pub first: Option<Digest>,
}

impl Piece {
    /// One chunk, or zeroes.
    pub fn chunk(offset: u64, len: u64, digest: Option<Digest>) -> Piece {
        Piece { offset, len, digest, first: None }
    }
}

/// What extents of a staged file hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRecipe {
    /// The file.
    pub id: InodeId,
    /// Its extents, in order, not overlapping.
    pub pieces: Vec<Piece>,
}

/// Bytes of a staged file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageData {
    /// The file.
    pub id: InodeId,
    /// Where in it.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
}

/// A staged record, as it is sent and as the replica's log keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Names.
    Dir(StageDir),
    /// An inode.
    Node(StageNode),
    /// Data by digest.
    Recipe(StageRecipe),
    /// Data.
    Data(StageData),
}
