//! What a resync reads of the backing directory: names, attributes and data by inode id.
//!
//! The backing directory implements it; resync and its tests use nothing else. Reads run while the mount is used, so an object may
//! change or vanish at any time: that is `None`, `false` or a short read, never an error. EACCES means that the daemon, being an ordinary
//! user's, may not read it; any other error means that the backing directory itself failed.

use std::io;

use bytes::Bytes;
use tandem_proto::{Attr, InodeId, Name, NodeKind, Timestamp, stage::NodeType};

/// Whether reading was refused because the daemon lacks the right, not because something is wrong.
pub fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EACCES)
}

/// `None`: we may not read it.
pub fn allowed<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_refusal(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One inode as it is now, without its names and data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// What it is.
    pub kind: NodeKind,
    /// All attributes.
    pub attr: Attr,
    /// All extended attributes that are replicated, by name.
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// Size in bytes of a regular file; else 0.
    pub size: u64,
    /// Time of its last change of any kind, as the file system says.
    pub ctime: Timestamp,
}

/// One name of a directory, with what a listing learns of its inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEntry {
    /// The name.
    pub name: Name,
    /// Its inode.
    pub id: InodeId,
    /// Type of the inode.
    pub node_type: NodeType,
    /// All attributes of the inode.
    pub attr: Attr,
    /// Size in bytes of a regular file; else 0.
    pub size: u64,
    /// Time of the inode's last change of any kind.
    pub ctime: Timestamp,
}

/// Reads current state of the backing directory. All calls block on the local disk only.
pub trait StateReader: Send + Sync {
    /// The inode; `None` if it is gone (stale handle, or no name left).
    fn node(&self, id: &InodeId) -> io::Result<Option<NodeView>>;
    /// What `name` means in `dir`; `None` if nothing, or if `dir` is gone.
    fn entry(&self, dir: &InodeId, name: &Name) -> io::Result<Option<ListedEntry>>;
    /// Calls `each` for every name of `dir`, without `.`, `..` and nested mounts. `false`: the directory is gone.
    /// An error of `each` ends the listing and is returned.
    fn list(&self, dir: &InodeId, each: &mut dyn FnMut(ListedEntry) -> io::Result<()>) -> io::Result<bool>;
    /// Opens a regular file for reading; `None` if it is gone.
    fn open(&self, id: &InodeId) -> io::Result<Option<Box<dyn FileReader>>>;
    /// `syncfs` of the backing file system: all that was changed before the call is on its disk afterwards.
    fn sync_durable(&self) -> io::Result<()>;
}

/// An open regular file.
pub trait FileReader: Send {
    /// Reads at `offset`; fewer bytes than asked for only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// The next extent at or after `from` that may hold data (`SEEK_DATA`, `SEEK_HOLE`), as `(start, end)`; `None`: only holes up to the end.
    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>>;
    /// Size now.
    fn size(&self) -> io::Result<u64>;
}
