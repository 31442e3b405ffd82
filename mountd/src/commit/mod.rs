//! The commit: marks before a change, a numbered slot during it, the op in the window after it.

use smallvec::SmallVec;
use tandem_proto::{Changes, InodeId, Origin, Seq};

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
    /// The daemon stops. EIO.
    #[error("the daemon is stopping")]
    Stopping,
}

/// Shared by FUSE threads, link and resync: `Arc<Commit>`.
pub struct Commit {
    _private: (),
}

/// Keeps marks from being cleared until it is dropped.
pub struct MarkGuard<'a> {
    _commit: &'a Commit,
}

/// A reserved place in the order of ops. Dropped without [`Slot::fill`] it is void.
pub struct Slot<'a> {
    _commit: &'a Commit,
    seq: Seq,
}

impl Commit {
    /// Step 1 of a change. Returns at once when all cells are hot (or covered by the mark of the directory they were born in);
    /// else makes their marks durable. Blocks on the local disk only.
    pub fn mark(&self, _cells: &[MarkCell]) -> Result<MarkGuard<'_>, CommitError> {
        Ok(MarkGuard { _commit: self })
    }

    /// Step 2, with the cells' locks held, before the system call. Never blocks.
    pub fn reserve(&self) -> Slot<'_> {
        Slot { _commit: self, seq: Seq(1) }
    }

    /// The highest seq that was handed out.
    pub fn last_reserved(&self) -> Seq {
        Seq(0)
    }

    /// Calls `done` (from another thread, or at once) when everything up to `seq` is durable on the replica, or with why not.
    pub fn when_durable(&self, _seq: Seq, done: Box<dyn FnOnce(Result<(), CommitError>) + Send>) {
        done(Ok(()));
    }

    /// Whether mutating calls must be refused with EROFS (fenced).
    pub fn read_only(&self) -> bool {
        false
    }
}

impl Slot<'_> {
    /// Its number.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Step 3, still under the locks: what happened.
    pub fn fill(self, _origin: Origin, _changes: Changes) {}

    /// Nothing happened (the system call failed).
    pub fn void(self) {}
}
