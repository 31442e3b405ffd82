//! Apply: brings tree and catalog to the state that the log says.

pub mod error;
pub mod record;

pub use error::ApplyError;
pub use record::{
    ChunkSource, ExtentSource, LogError, NoChunks, ObjectIdentity, Place, Record, RecordSource, Records, Writer,
};
use tandem_proto::{
    chain::Chain,
    ids::InodeId,
    op::Op,
    position::Position,
    stage::{Piece, Stage},
};

use crate::{catalog::Catalog, reader::ReplicaReader, tree::ReplicaTree};

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Tree and catalog are at this position.
    pub applied: Position,
    /// A staging was under way and was dropped; the writer begins a new one.
    pub staging_dropped: bool,
    /// Regular files whose content may have changed since the checkpoint, for the index.
    pub changed: Vec<InodeId>,
}

/// What a publish did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Regular files whose content may have changed.
    pub changed: Vec<InodeId>,
    /// Inodes that are gone.
    pub removed: Vec<InodeId>,
}

/// Answer to a staged message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StageReply {
    /// Inodes whose state the replica needs.
    pub need_nodes: Vec<InodeId>,
    /// Pieces of which file it needs the bytes of.
    pub need_pieces: Vec<Piece>,
    /// What must be appended to the log, in order: all that there is to log about the message, itself included.
    pub log: Vec<Record>,
}

/// One volume's tree and catalog, brought forward by its log. One thread owns it.
pub struct Replica<T: ReplicaTree> {
    _tree: T,
    _catalog: Catalog,
}

impl<T: ReplicaTree> Replica<T> {
    /// Takes a tree and its catalog. Nothing is changed before [`Self::recover`], which must come first.
    pub fn open(_tree: T, _catalog: Catalog) -> Result<Self, ApplyError> {
        unimplemented!()
    }

    /// The position that the durable catalog has. Records up to here are not needed any more.
    pub fn checkpoint_position(&self) -> Position {
        unimplemented!()
    }

    /// Whether nothing was ever published.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }

    /// Redoes everything after the checkpoint and makes a new checkpoint. An unfinished staging is dropped.
    pub fn recover(&mut self, _log: &dyn RecordSource) -> Result<Recovered, ApplyError> {
        unimplemented!()
    }

    /// Applies a live op whose record is durable. After a retryable error call it again with the same op.
    pub fn apply(&mut self, _op: &Op, _chain_after: Chain) -> Result<(), ApplyError> {
        unimplemented!()
    }

    /// Ends a batch. Readers see every op at once as it is applied, so this only bounds memory.
    pub fn commit_batch(&mut self) -> Result<(), ApplyError> {
        unimplemented!()
    }

    /// Position of tree and catalog.
    pub fn applied(&self) -> Position {
        unimplemented!()
    }

    /// Begins a round; round 1 makes a checkpoint and drops an older staging. Log the returned record before anything staged.
    pub fn stage_begin(&mut self, _round: u64, _full: bool, _s0: Position) -> Result<Record, ApplyError> {
        unimplemented!()
    }

    /// Stages state. Log what the reply says.
    pub fn stage(&mut self, _stage: Stage, _chunks: &dyn ChunkSource) -> Result<StageReply, ApplyError> {
        unimplemented!()
    }

    /// Stages ops; log them as [`Record::StagedOps`] first.
    pub fn stage_ops(&mut self, _ops: &[Op], _end: Position) -> Result<(), ApplyError> {
        unimplemented!()
    }

    /// Makes staged bytes durable and checks that the staging can be published. Call it before the publish record is logged.
    pub fn stage_sync(&mut self) -> Result<(), ApplyError> {
        unimplemented!()
    }

    /// The record to log durably before [`Self::publish`].
    pub fn publish_record(&self, _position: Position) -> Record {
        unimplemented!()
    }

    /// Makes the staging the replica's state and makes a checkpoint. `log` has at least the records from its `StageBegin` on.
    /// After a retryable error call it again.
    pub fn publish(&mut self, _position: Position, _log: &dyn RecordSource) -> Result<Published, ApplyError> {
        unimplemented!()
    }

    /// Gives the staging under way up; log [`Record::StageDropped`]. No effect without one.
    pub fn stage_drop(&mut self) -> Result<(), ApplyError> {
        unimplemented!()
    }

    /// Makes tree and catalog durable at [`Self::applied`] and returns it. The log before it may be recycled then.
    pub fn checkpoint(&mut self) -> Result<Position, ApplyError> {
        unimplemented!()
    }

    /// A reader for other threads.
    pub fn reader(&self) -> ReplicaReader<T> {
        unimplemented!()
    }
}
