//! The tree of plain files, behind a trait so that apply also runs on a simulated one.
//!
//! A tree knows objects, names and areas; it knows nothing of inode ids, positions or the catalog. Every call names one object by
//! an open directory and one name in it, so nothing from the wire can lead out of an area: a [`tandem_proto::ids::Name`] has no
//! slash and is neither `.` nor `..`, and the last component is never followed.

pub mod fs;
mod fs_meta;
pub mod mem;
pub mod rush;

use std::io;

use bytes::Bytes;
pub use fs::{FsTree, read_full_at};
pub use mem::MemTree;
use tandem_proto::{
    op::{Attr, NodeKind, Timestamp},
    stage::NodeType,
};

use crate::apply::ObjectIdentity;

/// A directory of a volume that apply works in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The plain tree.
    Tree,
    /// Content of staged files: `<id>` and `<id>.ranges`.
    Staging,
    /// Objects on their way from one name to another: `<id>`.
    Parked,
    /// Objects that recovery found and does not know.
    Limbo,
    /// What is to be deleted.
    Discard,
    /// What a resync replaced or removed, by position.
    History,
    /// Files of a copy into the volume that is under way (`copies`).
    Incoming,
}

impl Area {
    /// All of them.
    pub const ALL: [Area; 7] =
        [Area::Tree, Area::Staging, Area::Parked, Area::Limbo, Area::Discard, Area::History, Area::Incoming];

    /// Its path below the volume's directory.
    pub fn path(self) -> &'static str {
        match self {
            Area::Tree => "tree",
            Area::Staging => "staging/files",
            Area::Parked => "staging/parked",
            Area::Limbo => "staging/limbo",
            Area::Discard => "staging/discard",
            Area::History => "history",
            Area::Incoming => "staging/incoming",
        }
    }
}

/// What stands at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The object.
    pub identity: ObjectIdentity,
    /// Its type in the tree.
    pub node_type: NodeType,
}

/// An object's state in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its type in the tree.
    pub node_type: NodeType,
    /// Attributes.
    pub attr: Attr,
    /// Size in bytes.
    pub size: u64,
    /// Number of names.
    pub links: u64,
}

/// Tree, staging areas and history of one volume. Clones share it.
pub trait ReplicaTree: Clone + Send + Sync + 'static {
    /// An open object. Clones share it.
    type Node: Clone + Send + Sync + 'static;

    /// The directory of an area.
    fn area(&self, area: Area) -> Self::Node;
    /// Opens what stands at a name: a regular file for reading and writing, a directory for use as one, others for their
    /// attributes. Fails with `NotFound` if there is nothing, and somehow if it has another type.
    fn open(&self, dir: &Self::Node, name: &[u8], node_type: NodeType) -> io::Result<Self::Node>;
    /// What stands at a name.
    fn find(&self, dir: &Self::Node, name: &[u8]) -> io::Result<Option<Found>>;
    /// Creates an object that does not inherit ACLs, accessible to its owner only. The node is returned where that costs nothing.
    fn create(
        &self,
        dir: &Self::Node,
        name: &[u8],
        kind: &NodeKind,
    ) -> io::Result<(ObjectIdentity, Option<Self::Node>)>;
    /// Gives an object that is no directory a further name.
    fn link(&self, from: &Self::Node, name: &[u8], to: &Self::Node, to_name: &[u8]) -> io::Result<()>;
    /// Renames, replacing what stands there.
    fn rename(&self, from: &Self::Node, name: &[u8], to: &Self::Node, to_name: &[u8]) -> io::Result<()>;
    /// Swaps what two names mean.
    fn exchange(&self, from: &Self::Node, name: &[u8], to: &Self::Node, to_name: &[u8]) -> io::Result<()>;
    /// Removes a name of what is no directory.
    fn unlink(&self, dir: &Self::Node, name: &[u8]) -> io::Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, dir: &Self::Node, name: &[u8]) -> io::Result<()>;
    /// All names of a directory with their types.
    fn list(&self, dir: &Self::Node) -> io::Result<Vec<(Bytes, NodeType)>>;
    /// Which object it is.
    fn identity(&self, node: &Self::Node) -> io::Result<ObjectIdentity>;
    /// Its state.
    fn stat(&self, node: &Self::Node) -> io::Result<Stat>;
    /// Bytes that its content takes on the disk.
    fn allocated(&self, node: &Self::Node) -> io::Result<u64>;
    /// Sets owner and group, those that are given.
    fn set_owner(&self, node: &Self::Node, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    /// Sets the permission bits. Not for symlinks.
    fn set_mode(&self, node: &Self::Node, mode: u32) -> io::Result<()>;
    /// Sets the modification time.
    fn set_mtime(&self, node: &Self::Node, mtime: Timestamp) -> io::Result<()>;
    /// Names of its extended attributes that are state.
    fn list_xattrs(&self, node: &Self::Node) -> io::Result<Vec<Bytes>>;
    /// An extended attribute.
    fn xattr(&self, node: &Self::Node, name: &[u8]) -> io::Result<Option<Bytes>>;
    /// Sets an extended attribute.
    fn set_xattr(&self, node: &Self::Node, name: &[u8], value: &[u8]) -> io::Result<()>;
    /// Removes an extended attribute; it may be missing.
    fn remove_xattr(&self, node: &Self::Node, name: &[u8]) -> io::Result<()>;
    /// Reads until the buffer is full or the file ends.
    fn read_at(&self, node: &Self::Node, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all bytes.
    fn write_at(&self, node: &Self::Node, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Zeroes a range, if possible without keeping blocks; never grows the file.
    fn punch(&self, node: &Self::Node, offset: u64, len: u64) -> io::Result<()>;
    /// Cuts the file, or grows it with zeroes.
    fn set_size(&self, node: &Self::Node, size: u64) -> io::Result<()>;
    /// The next range at or after `from` that is not a hole.
    fn next_data(&self, node: &Self::Node, from: u64) -> io::Result<Option<(u64, u64)>>;
    /// Makes everything durable.
    fn sync(&self) -> io::Result<()>;
    /// Brings most of what is not durable to the disk, so that the [`Self::sync`] that follows is short. Proves nothing: an error is
    /// told to that one as well.
    fn sync_ahead(&self) {}
    /// Begins to bring a range of a file to the disk. Waits only for what was begun long before, so that not much is in the disk's queue.
    fn write_back(&self, _node: &Self::Node, _offset: u64, _len: u64) {}
    /// Gives up what is in memory of a range of a file (0 bytes: up to its end), if it is on the disk: it is read from there then.
    fn forget_cached(&self, _node: &Self::Node, _offset: u64, _len: u64) {}
    /// Copies a range of one file to the same place of another that ends behind it or grows; how much was copied. 0 where the file
    /// system cannot do it by itself.
    fn copy_range(&self, _from: &Self::Node, _to: &Self::Node, _offset: u64, _len: u64) -> io::Result<u64> {
        Ok(0)
    }
    /// Whether mode bits can lock the daemon out: it then keeps its own access and the catalog the true mode.
    fn is_unprivileged(&self) -> bool;
}

/// Whether an extended attribute is replicated state: what the kernel's security modules label by themselves is not, nor is the second
/// face that xfs gives to ACLs, through which an older one would come back.
pub fn is_state_xattr(name: &[u8]) -> bool {
    !name.starts_with(b"security.selinux")
        && !name.starts_with(b"security.ima")
        && !name.starts_with(b"security.evm")
        && !name.starts_with(b"security.SMACK")
        && !name.starts_with(b"trusted.SGI_ACL_")
}
