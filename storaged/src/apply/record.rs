//! What the log of a volume keeps, as apply reads it back: the vocabulary between apply (which decides what must be kept) and
//! the log (which frames and syncs it).
//!
//! A record is written before the effect that it describes is visible in `tree/`. Bytes of staged files are not in the log:
//! they lie in `staging/` and are synced before the `Publish` record is written.

use smallvec::SmallVec;
use tandem_proto::{
    chunk::Digest,
    ids::{InodeId, Uuid},
    op::Op,
    position::Position,
    stage::Stage,
};

/// Name by which the tree's file system knows an object, whatever it is called: its file handle, or inode number and birth
/// time. Two objects never have the same one, also not one after the other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectIdentity(SmallVec<[u8; 24]>);

impl ObjectIdentity {
    /// Longest identity in bytes: a kind byte, a handle type and the largest file handle of Linux (MAX_HANDLE_SZ).
    pub const MAX: usize = 160;

    /// From the bytes of a record; `None` if they are too many.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= Self::MAX).then(|| ObjectIdentity(SmallVec::from_slice(bytes)))
    }

    /// Its bytes, for a record.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for ObjectIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "object:{}", tandem_proto::ids::hex(&self.0))
    }
}

/// Who opened an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Writer {
    /// Of the client's state directory.
    pub client_id: Uuid,
    /// Of one run of mountd.
    pub run_id: Uuid,
    /// For messages.
    pub name: String,
}

/// Where the content of a staged extent comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentSource {
    /// Zeroes.
    Hole,
    /// The same offset of the staging file.
    Staged,
    /// The tree's object already holds it there.
    InPlace,
}

/// One record of a volume's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A writer opened an epoch. The replica's state stays what it was until a publish in that epoch.
    Epoch {
        /// `(epoch, 0)` with the chain that the epoch begins with.
        position: Position,
        /// Who.
        writer: Writer,
    },
    /// Live ops of one epoch, dense.
    Ops {
        /// The ops.
        ops: Vec<Op>,
        /// Position after the last one.
        end: Position,
    },
    /// A round of a staging begins; round 1 begins a new staging and drops an older one.
    StageBegin {
        /// Number of the staging; see [`Record::Publish`].
        serial: u64,
        /// Its round, from 1.
        round: u64,
        /// Everything is compared.
        full: bool,
        /// Ops up to here are in the state.
        s0: Position,
    },
    /// State as it was sent: `Dir` and `Node` only. Recipes and data are kept as the extents that resulted.
    Stage(Stage),
    /// The staging file of a new regular file.
    StagedFile {
        /// The file.
        id: InodeId,
        /// Its object, which will be the tree's.
        identity: ObjectIdentity,
        /// The round whose state it holds.
        round: u64,
    },
    /// Content of a staged file is known.
    StagedExtent {
        /// The file.
        id: InodeId,
        /// Where in it.
        offset: u64,
        /// How long.
        len: u64,
        /// Where it lies.
        source: ExtentSource,
    },
    /// Ops that arrived during a staging; they take effect with its publish.
    StagedOps {
        /// The ops.
        ops: Vec<Op>,
        /// Position after the last one.
        end: Position,
    },
    /// The staging under way was given up.
    StageDropped,
    /// The staging is the replica's state from here on.
    Publish {
        /// Which staging. Serials rise; those up to the catalog's are done.
        serial: u64,
        /// The position that was reached.
        position: Position,
    },
}

/// The log could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the log cannot be read: {0}")]
pub struct LogError(pub String);

/// What [`RecordSource::records`] yields.
pub type Records<'a> = Box<dyn Iterator<Item = Result<Record, LogError>> + 'a>;

/// The log as apply reads it: in order, as often as it likes.
pub trait RecordSource {
    /// All records that the log still has, the oldest first: at least those after the checkpoint. Records before it may be among
    /// them and are skipped by position and serial.
    fn records(&self) -> Result<Records<'_>, LogError>;
}

/// Records in memory.
impl RecordSource for Vec<Record> {
    fn records(&self) -> Result<Records<'_>, LogError> {
        Ok(Box::new(self.iter().cloned().map(Ok)))
    }
}

/// Where bytes with some digest may lie in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub id: InodeId,
    /// Where in it.
    pub offset: u64,
    /// How long.
    pub len: u32,
}

/// Finds chunks by digest. Answers are hints: what is found is read and checked before it is used.
pub trait ChunkSource {
    /// Places that may hold it, the likeliest first.
    fn find(&self, digest: &Digest) -> Vec<Place>;
}

/// Knows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoChunks;

impl ChunkSource for NoChunks {
    fn find(&self, _digest: &Digest) -> Vec<Place> {
        Vec::new()
    }
}
