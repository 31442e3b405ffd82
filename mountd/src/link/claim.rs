//! Claiming a volume before anything is mounted: with `-o takeover,init=pull` the other writer is fenced first, so that what is pulled
//! stays the volume's state.

use std::time::Duration;

use tandem_proto::{
    Uuid, VolumeName,
    limits::{PROTOCOL_OLDEST, PROTOCOL_VERSION},
    pb::{self, client_message::Body as Sent, server_message::Body},
};
use tandem_runtime::connect::{KEEPALIVE, ServerAddress};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{self, Described};

/// How long it may take. The storage daemon first brings what it has accepted to its disk.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(30);

/// Who claims what.
#[derive(Clone, Debug)]
pub struct Claimant<'a> {
    /// The storage daemon.
    pub server: &'a ServerAddress,
    /// The volume there.
    pub volume: &'a VolumeName,
    /// What it said of it: the claim is for that one.
    pub described: &'a Described,
    /// This client.
    pub client_id: Uuid,
    /// For messages.
    pub client_name: String,
    /// This run.
    pub run: Uuid,
}

/// Opens the next epoch, which fences whoever holds the volume, and leaves. From a thread without a tokio context.
pub fn fence_blocking(claimant: &Claimant<'_>) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let silent = || format!("{} does not answer the claim within {} s", claimant.server, CLAIM_TIMEOUT.as_secs());
    runtime.block_on(async {
        tokio::time::timeout(CLAIM_TIMEOUT, fence(claimant)).await.unwrap_or_else(|_| Err(silent()))
    })
}

async fn fence(claimant: &Claimant<'_>) -> Result<(), String> {
    let server = claimant.server;
    let mut connection =
        client::connect(server, CLAIM_TIMEOUT, Some(KEEPALIVE), None).await.map_err(|error| error.to_string())?;
    let id = |id: Uuid| bytes::Bytes::copy_from_slice(&id.0);
    let attach = pb::Attach {
        protocol: PROTOCOL_VERSION,
        protocol_oldest: PROTOCOL_OLDEST,
        volume: claimant.volume.to_string(),
        client_id: id(claimant.client_id),
        client_name: claimant.client_name.clone(),
        run_id: id(claimant.run),
        volume_id: id(claimant.described.volume_id),
        replica_id: id(claimant.described.replica_id),
        takeover: true,
        ..Default::default()
    };
    let (out, queue) = mpsc::channel(2);
    let ended = |_| format!("{server} ended the connection");
    out.send(pb::ClientMessage { body: Some(Sent::Attach(attach)) }).await.map_err(ended)?;
    let answers = connection.replicate(ReceiverStream::new(queue)).await;
    let mut answers = answers.map_err(|status| client::status_message(server, &status))?.into_inner();
    let answer = answers.message().await.map_err(|status| client::status_message(server, &status))?;
    match answer.and_then(|answer| answer.body) {
        Some(Body::Attached(attached)) => {
            let detach = Sent::Detach(pb::Detach { session: attached.session });
            out.send(pb::ClientMessage { body: Some(detach) }).await.map_err(ended)?;
            // Until the storage daemon has taken it in.
            let _ = tokio::time::timeout(Duration::from_secs(1), answers.message()).await;
            Ok(())
        }
        Some(Body::Refused(refused)) => Err(refused.message),
        _ => Err(format!("{server} does not answer the claim")),
    }
}
