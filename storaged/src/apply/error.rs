//! Why apply stopped. It never skips: after an error the replica is at a consistent point of its log and goes on from there.

use std::io;

use tandem_proto::ids::InodeId;

use super::record::LogError;
use crate::catalog::CatalogError;

/// Why apply stopped, at which object, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The replica's file system is full. Try the same call again when there is room.
    #[error("cannot {action} {object}: the replica's file system is full; free space there, apply goes on by itself")]
    NoSpace {
        /// What was tried.
        action: &'static str,
        /// On which object.
        object: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The replica's file system failed. Try the same call again later.
    #[error("cannot {action} {object}: {source}; check the replica's file system, apply tries again")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which object.
        object: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The replica's file system could not bring to the disk what it had taken. It says so once, and what it dropped still looks
    /// written: nothing since the checkpoint before can be relied on. [`super::Replica::redo`] writes it again.
    #[error("cannot sync {object}: {source}; what was not on the disk yet is written again from the log")]
    Sync {
        /// What was synced.
        object: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The catalog could not be read or written. Try the same call again later.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Tree, catalog and log do not fit together: somebody changed the tree, or the disk lost something. Needs a full resync.
    #[error(
        "{object} is not what the catalog says: {problem}; the replica was changed from outside or lost data: stop storaged and \
         run tandem-storaged check --repair"
    )]
    Damaged {
        /// Which object.
        object: String,
        /// What is wrong.
        problem: String,
    },
    /// The client sent what has no meaning here. The call had no effect.
    #[error("{object}: {problem}; the two sides disagree, a full resync is needed")]
    Protocol {
        /// Which object.
        object: String,
        /// What is wrong.
        problem: String,
    },
}

impl ApplyError {
    /// Whether the same call may succeed later without anybody's decision.
    pub fn is_retryable(&self) -> bool {
        match self {
            ApplyError::NoSpace { .. }
            | ApplyError::Io { .. }
            | ApplyError::Sync { .. }
            | ApplyError::Catalog(_)
            | ApplyError::Log(_) => true,
            ApplyError::Damaged { .. } | ApplyError::Protocol { .. } => false,
        }
    }

    /// Whether it is room on the disk that was missing.
    pub fn is_no_space(&self) -> bool {
        match self {
            ApplyError::NoSpace { .. } => true,
            ApplyError::Catalog(error) => error.is_no_space(),
            _ => false,
        }
    }

    /// Sorts an answer of the file system.
    pub fn from_io(action: &'static str, object: impl ToString, source: io::Error) -> Self {
        let object = object.to_string();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApplyError::NoSpace { action, object, source },
            _ => ApplyError::Io { action, object, source },
        }
    }

    /// A loud refusal.
    pub fn protocol(object: impl ToString, problem: impl Into<String>) -> Self {
        ApplyError::Protocol { object: object.to_string(), problem: problem.into() }
    }

    /// Something does not fit.
    pub fn damaged(object: impl ToString, problem: impl Into<String>) -> Self {
        ApplyError::Damaged { object: object.to_string(), problem: problem.into() }
    }

    /// An id that should exist and does not.
    pub fn unknown(id: &InodeId) -> Self {
        Self::protocol(id, "the replica has no such inode")
    }
}

/// Adds what was tried on which object to an answer of the file system.
pub trait OnObject<T> {
    /// See [`ApplyError::from_io`].
    fn on(self, action: &'static str, object: impl ToString) -> Result<T, ApplyError>;
}

impl<T> OnObject<T> for io::Result<T> {
    fn on(self, action: &'static str, object: impl ToString) -> Result<T, ApplyError> {
        self.map_err(|source| ApplyError::from_io(action, object, source))
    }
}
