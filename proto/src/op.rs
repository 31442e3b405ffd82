//! Ops: one replicated change as it happened, made of blind assignments to cells.
//!
//! A change says what a cell *is* now, never how it got there, and names objects by id, never by path. So any run of ops may be
//! redone from an earlier or a fuzzy state: after the last assignment to each cell, the result is the same.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    ids::{InodeId, Name},
    position::Seq,
};

/// Unix time; `nanos` is 0..1_000_000_000 also before 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds to add.
    pub nanos: u32,
}

/// What never changes in an inode's life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link with its target.
    Symlink(Bytes),
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl NodeKind {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self, NodeKind::Directory)
    }

    /// Whether it is a regular file.
    pub fn is_regular(&self) -> bool {
        matches!(self, NodeKind::Regular)
    }
}

/// All replicated attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attr {
    /// Permission bits with setuid, setgid and sticky (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
}

/// The attributes that an op assigns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct AttrPatch {
    /// See [`Attr::mode`].
    pub mode: Option<u32>,
    /// See [`Attr::uid`].
    pub uid: Option<u32>,
    /// See [`Attr::gid`].
    pub gid: Option<u32>,
    /// See [`Attr::mtime`].
    pub mtime: Option<Timestamp>,
}

impl From<Attr> for AttrPatch {
    fn from(attr: Attr) -> Self {
        AttrPatch { mode: Some(attr.mode), uid: Some(attr.uid), gid: Some(attr.gid), mtime: Some(attr.mtime) }
    }
}

/// A blind assignment to one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An inode comes to exist; its first name follows in the same op.
    Birth {
        /// The new inode.
        id: InodeId,
        /// What it is.
        kind: NodeKind,
    },
    /// `(dir, name) := new`.
    Entry {
        /// Directory.
        dir: InodeId,
        /// Name in it.
        name: Name,
        /// What the name meant before.
        old: Option<InodeId>,
        /// What it means now.
        new: Option<InodeId>,
    },
    /// `inode := attributes`, those that are present.
    Attr {
        /// The inode.
        id: InodeId,
        /// Resulting values.
        patch: AttrPatch,
    },
    /// `(inode, name) := value`; also POSIX ACLs.
    Xattr {
        /// The inode.
        id: InodeId,
        /// Full name with its namespace, without NUL.
        name: Bytes,
        /// `None`: removed.
        value: Option<Bytes>,
    },
    /// `extent := bytes`; a shorter file grows to the extent's end.
    Data {
        /// The file.
        id: InodeId,
        /// Where in it.
        offset: u64,
        /// What it holds now.
        data: Bytes,
    },
    /// `extent := what another extent holds`, just before this op; a shorter file grows to the extent's end.
    Copy {
        /// The file.
        id: InodeId,
        /// Where in it.
        offset: u64,
        /// The file that is read; may be the same.
        from: InodeId,
        /// Where in it.
        from_offset: u64,
        /// How long.
        len: u64,
        /// What it was, once the replica has made bytes of it.
        data: Option<Bytes>,
    },
    /// `extent := zeroes`; never grows the file.
    Hole {
        /// The file.
        id: InodeId,
        /// Where in it.
        offset: u64,
        /// How long.
        len: u64,
    },
    /// `size := n`; cut, or grown with zeroes.
    Size {
        /// The file.
        id: InodeId,
        /// New size in bytes.
        size: u64,
    },
}

impl Change {
    /// Bytes of file data that it carries.
    pub fn data_len(&self) -> usize {
        match self {
            Change::Data { data, .. } => data.len(),
            Change::Copy { data: Some(data), .. } => data.len(),
            Change::Xattr { value: Some(value), .. } => value.len(),
            _ => 0,
        }
    }
}

impl Op {
    /// Whether it copies what the replica has.
    pub fn copies(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, Change::Copy { .. }))
    }
}

/// The changes of one op; nearly all have at most three.
pub type Changes = SmallVec<[Change; 2]>;

/// Who did it and when: for people (history), never for decisions.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Origin {
    /// Unix time in nanoseconds.
    pub time_ns: i64,
    /// Caller's user.
    pub uid: u32,
    /// Caller's group.
    pub gid: u32,
    /// Caller's process.
    pub pid: u32,
    /// Its name, if known.
    pub process: Bytes,
}

/// One replicated change as it happened. Without changes it is a voided slot, which keeps seqs dense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its number.
    pub seq: Seq,
    /// Who and when.
    pub origin: Origin,
    /// What is assigned, in order.
    pub changes: Changes,
}
