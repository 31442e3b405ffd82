//! Wires commit, link and resync of one mount together.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tandem_proto::VolumeName;
use tandem_runtime::connect::ServerAddress;

use crate::{commit::Commit, link::start::Start, resync::StateReader, state::StateDir};

/// What replication of one mount needs to know.
pub struct ReplicationConfig {
    /// The storage daemon.
    pub server: ServerAddress,
    /// The volume there.
    pub volume: VolumeName,
    /// The locked state directory; its lock is held until [`Replication::shutdown`].
    pub state: StateDir,
    /// Identity of the backing directory.
    pub backing_identity: Vec<u8>,
    /// How the mount starts, see [`crate::link::start::decide`].
    pub start: Start,
    /// user@host:/path, for messages.
    pub client_name: String,
    /// Bound of the window; [`DEFAULT_WINDOW_BYTES`].
    pub window_bytes: usize,
    /// After how long a durable fsync fails; `None`: never.
    pub fsync_timeout: Option<Duration>,
}

/// Default bound of the window in bytes.
pub const DEFAULT_WINDOW_BYTES: usize = 64 << 20;

/// Replication of one mount, running.
pub struct Replication {
    /// What the vfs commits to.
    pub commit: Arc<Commit>,
    state_dir: PathBuf,
}

/// Starting failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The activity log or another file of the state directory.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    /// Threads or the runtime.
    #[error("cannot start {0}: {1}")]
    Spawn(&'static str, std::io::Error),
}

/// Starts link, resync and the keeper of the marks. Returns at once: connecting goes on in the background.
pub fn start(_config: ReplicationConfig, _reader: Arc<dyn StateReader>) -> Result<Replication, ReplicationError> {
    Err(ReplicationError::Spawn("replication", std::io::Error::other("not built yet")))
}

impl Replication {
    /// The state directory.
    pub fn state_dir(&self) -> &PathBuf {
        &self.state_dir
    }

    /// Ends the link, makes floor and the clean-unmount time durable, releases the lock. Call it after the last file system
    /// call was answered and before (or right after) the mount is gone; later calls do nothing. Never waits for the network longer than a second.
    /// `clean`: the file system was unmounted in order, so what is in the folder is what was committed. `empty`: the folder has no entries.
    pub fn shutdown(&self, _clean: bool, _empty: bool) {}
}
