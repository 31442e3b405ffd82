//! Words of the commit that its parts and its users share.

use smallvec::SmallVec;
use tandem_proto::{InodeId, Name, Position, Seq};

use super::throttle::Congestion;

/// What a mark of the activity log covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MarkCell {
    /// The names of a directory, its attributes, and every object born in it while it is marked, recursively.
    Dir(InodeId),
    /// [`tandem_proto::limits::MARK_BLOCK`] bytes of a file; [`ATTRIBUTES`] is its attributes, xattrs and size.
    File {
        /// The inode.
        id: InodeId,
        /// Offset divided by the block length.
        block: u64,
    },
}

/// The block number that means an inode's attributes, xattrs and size.
pub const ATTRIBUTES: u64 = u64::MAX;

/// The cells of one op.
pub type MarkCells = SmallVec<[MarkCell; 4]>;

/// Why a change may not go on, or cannot be promised.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The activity log could not be written: the change must not happen. EIO.
    #[error("the activity log cannot be written: {0}; look at the disk of the state directory")]
    ActivityLog(String),
    /// A newer writer fenced this mount. EROFS.
    #[error("this mount is fenced: {0}")]
    Fenced(String),
    /// Not durable on the replica within the fsync timeout. EIO.
    #[error("not durable on the replica within {0} s: {1}")]
    Timeout(u64, String),
    /// A signal came while the replica was away. EINTR.
    #[error("interrupted while waiting for the replica")]
    Interrupted,
    /// The daemon stops. EIO.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What the replica has of this run. `None` until this run published something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// In its log, durably, with everything before.
    pub durable: Option<Seq>,
    /// In its tree.
    pub applied: Option<Seq>,
}

/// Where a resync round begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Ops up to here are in the state that is read from now on.
    pub s0: Position,
    /// Whether ids may be unknown to the replica, see [`crate::commit::dirty::DirtySet::unknown_ids`].
    pub unknown_ids: bool,
}

/// A name that an op after S0 gave to an object that it did not create: the object may have left a directory before it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Directory.
    pub dir: InodeId,
    /// Name in it.
    pub name: Name,
}

/// Figures for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitFacts {
    /// Highest seq handed out.
    pub reserved: Seq,
    /// End of the filled prefix.
    pub filled: Seq,
    /// See [`Watermarks`].
    pub watermarks: Watermarks,
    /// Epoch of this run; 0 before the first attach.
    pub epoch: u64,
    /// Bytes in the window.
    pub window_bytes: usize,
    /// Their bound.
    pub window_limit_bytes: usize,
    /// Whether the window streams; else ops go to the dirty set.
    pub keeping: bool,
    /// Cells that may differ, those of a resync under way included.
    pub dirty_cells: usize,
    /// Memory for them.
    pub dirty_bytes: usize,
    /// Bound of the memory of each of the two sets.
    pub dirty_limit_bytes: usize,
    /// Cells that the backing directory could not make durable, since the start.
    pub suspects: u64,
    /// Marks.
    pub marks: usize,
    /// Writes to the activity log.
    pub mark_writes: u64,
    /// What happens when the link is slower than the writer.
    pub congestion: Congestion,
    /// Calls that wait for the replica.
    pub waiting: usize,
    /// Unix time of the oldest op in the window.
    pub oldest_time_ns: Option<i64>,
}
