//! Asking a storage daemon about a volume, and connecting to it.

use std::{sync::Arc, time::Duration};

use tandem_proto::{
    Position, Uuid, VolumeName, convert,
    limits::MESSAGE_MAX_BYTES,
    pb::{self, replication_client::ReplicationClient},
};
use tandem_runtime::{
    connect::{Credentials, KEEPALIVE, NotAllowed, ServerAddress},
    failure::root_cause,
    gauge::Gauge,
};
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};

/// A connection that carries the local secret.
pub type Client = ReplicationClient<InterceptedService<Channel, Credentials>>;

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
    /// Unix time of its attach; for messages.
    pub holder_since_ns: i64,
    /// The run of it that opened the current epoch; zero if it is not known.
    pub holder_run: Uuid,
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
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
}

/// Connects. Plaintext is for loopback only, unless it was asked for. `keepalive`: how soon a connection that swallows everything is given up. `gauge`
/// measures and limits what is sent.
pub async fn connect(
    server: &ServerAddress,
    timeout: Duration,
    keepalive: Option<Duration>,
    gauge: Option<Arc<Gauge>>,
) -> Result<Client, DescribeError> {
    server.may_connect()?;
    let unreachable = |why: String| DescribeError::Unreachable { server: server.to_string(), why };
    let channel =
        server.connect_gauged(timeout, keepalive, gauge).await.map_err(|error| unreachable(root_cause(&error)))?;
    // The secret is read at each connection: a storaged that was restarted has a new one.
    Ok(ReplicationClient::with_interceptor(channel, server.credentials())
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES))
}

/// What a failed call means to people.
pub fn status_message(server: &ServerAddress, status: &Status) -> String {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => format!("{server} does not let us in: {}", status.message()),
        Code::Unimplemented => format!("{server} is no tandem-storaged, or of another version: {}", status.message()),
        _ => match std::error::Error::source(status) {
            Some(source) => format!("{server}: {}", root_cause(source)),
            None => format!("{server}: {}", status.message()),
        },
    }
}

/// Asks what a volume is, without claiming it.
pub async fn describe(
    server: &ServerAddress,
    volume: &VolumeName,
    timeout: Duration,
) -> Result<Described, DescribeError> {
    let work = async {
        let mut client = connect(server, timeout, Some(KEEPALIVE), None).await?;
        let request = pb::DescribeRequest { volume: volume.to_string() };
        let refused = |why: String| DescribeError::Refused { server: server.to_string(), why };
        let reply = match client.describe(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if status.code() == Code::Unavailable => {
                return Err(DescribeError::Unreachable {
                    server: server.to_string(),
                    why: status.message().to_owned(),
                });
            }
            Err(status) => return Err(refused(status_message(server, &status))),
        };
        described(reply).map_err(|error| refused(error.to_string()))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(DescribeError::Unreachable {
            server: server.to_string(),
            why: format!("no answer within {} s", timeout.as_secs_f32()),
        }),
    }
}

fn described(reply: pb::DescribeReply) -> Result<Described, convert::Invalid> {
    if !reply.exists {
        return Ok(Described { version: reply.version, ..Default::default() });
    }
    Ok(Described {
        exists: true,
        volume_id: convert::uuid("volume_id", &reply.volume_id)?,
        replica_id: convert::uuid("replica_id", &reply.replica_id)?,
        position: match &reply.position {
            Some(position) => position.try_into()?,
            None => Position::default(),
        },
        empty: reply.empty,
        holder: reply.holder,
        holder_id: if reply.holder_id.is_empty() {
            Uuid::default()
        } else {
            convert::uuid("holder_id", &reply.holder_id)?
        },
        holder_connected: reply.holder_connected,
        holder_since_ns: i64::try_from(reply.holder_since_ns).unwrap_or(0),
        holder_run: if reply.holder_run.is_empty() {
            Uuid::default()
        } else {
            convert::uuid("holder_run", &reply.holder_run)?
        },
        version: reply.version,
    })
}

/// Describe, from a thread without a tokio context.
pub fn describe_blocking(
    server: &ServerAddress,
    volume: &VolumeName,
    timeout: Duration,
) -> Result<Described, DescribeError> {
    let failed =
        |error: std::io::Error| DescribeError::Unreachable { server: server.to_string(), why: error.to_string() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(describe(server, volume, timeout))
}
