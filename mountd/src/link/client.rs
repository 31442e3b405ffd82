//! Asking a storage daemon about a volume, and connecting to it.

use std::time::Duration;

use tandem_proto::{Position, Uuid, VolumeName};
use tandem_runtime::connect::ServerAddress;

/// What the storage daemon says of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Described {
    /// Whether there is such a volume.
    pub exists: bool,
    /// Its id.
    pub volume_id: Uuid,
    /// The replica's id.
    pub replica_id: Uuid,
    /// Where it is, durably.
    pub position: Position,
    /// Nothing was ever published.
    pub empty: bool,
    /// Who wrote last.
    pub holder: String,
    /// Its client id; zero if nobody.
    pub holder_id: Uuid,
    /// Whether it is connected now.
    pub holder_connected: bool,
    /// Version of the storage daemon.
    pub version: String,
}

/// The storage daemon could not be asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DescribeError {
    /// No connection.
    #[error("{server} does not answer ({why}): is tandem-storaged running there? Start it, or check host and port")]
    Unreachable {
        /// The address.
        server: String,
        /// The cause.
        why: String,
    },
    /// It answered with an error.
    #[error("{server} refused: {why}")]
    Refused {
        /// The address.
        server: String,
        /// The cause.
        why: String,
    },
    /// The address is remote, and plaintext is allowed on loopback only.
    #[error(
        "{0} is not on this machine, and links without TLS are only allowed on loopback: use localhost, or a tunnel to it"
    )]
    NotLoopback(String),
}

/// Describe, from a thread without a tokio context.
pub fn describe_blocking(
    _server: &ServerAddress,
    _volume: &VolumeName,
    _timeout: Duration,
) -> Result<Described, DescribeError> {
    Ok(Described::default())
}
