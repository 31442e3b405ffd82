//! The state directory of one mount: what must outlive the daemon, kept outside the user's tree.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tandem_proto::Uuid;

/// Format of `state.json`.
pub const STATE_VERSION: u32 = 1;

/// The state directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another mountd has it.
    #[error(
        "the folder is already mounted by another tandem-mountd (it holds {0}): unmount it first, or `tandem status`"
    )]
    Locked(PathBuf),
    /// Written by a newer version.
    #[error("{path} has format {found}, this version knows {STATE_VERSION}: upgrade tandem-mountd")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Not what was written.
    #[error("{path} cannot be understood ({why}): move it away to start anew with `-o init=push` or `-o init=pull`")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The disk failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A position as `state.json` holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct SavedPosition {
    /// Epoch.
    pub epoch: u64,
    /// Seq.
    pub seq: u64,
    /// Chain in hexadecimal.
    pub chain: String,
}

/// The content of `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct MountState {
    /// Format.
    pub version: u32,
    /// This client, hexadecimal; made with the directory.
    pub client_id: String,
    /// Volume name of the last mount.
    pub volume: String,
    /// Server of the last mount.
    pub server: String,
    /// The volume that this folder belongs to, hexadecimal; empty until the first attach.
    pub volume_id: String,
    /// The replica of it, hexadecimal; empty until the first attach.
    pub replica_id: String,
    /// Identity of the backing directory, hexadecimal.
    pub backing_identity: String,
    /// Whether the replica was ever complete.
    pub synced: bool,
    /// Up to where the client relies on the replica.
    pub floor: SavedPosition,
    /// Set while not mounted after a clean unmount: Unix time in nanoseconds.
    pub clean_unmount_ns: Option<i64>,
    /// Whether the folder was empty at that unmount.
    pub empty_when_left: bool,
}

/// The opened, locked state directory of one mount.
pub struct StateDir {
    path: PathBuf,
    state: MountState,
}

impl StateDir {
    /// Opens or makes `<root>/mounts/<key>` and locks it. `key` is [`StateDir::key`] of the backing's identity.
    pub fn open(root: &Path, key: &str) -> Result<StateDir, StateError> {
        Ok(StateDir { path: root.join("mounts").join(key), state: MountState::default() })
    }

    /// The directory name for a backing identity: 32 hexadecimal digits.
    pub fn key(backing_identity: &[u8]) -> String {
        blake3::hash(backing_identity).to_hex()[..32].to_owned()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is remembered.
    pub fn state(&self) -> &MountState {
        &self.state
    }

    /// This client.
    pub fn client_id(&self) -> Uuid {
        Uuid::from_hex(&self.state.client_id).unwrap_or_default()
    }
}
