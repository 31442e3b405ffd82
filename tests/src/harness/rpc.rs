//! Blocking calls of the daemons' gRPC services.

use std::{future::Future, path::Path, time::Duration};

use tandem_proto::pb::{self, admin_client::AdminClient, mount_control_client::MountControlClient};
use tandem_runtime::{connect, secret::METADATA_KEY};
use tonic::{Request, Status, transport::Channel};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longer than any wait that a test asks for.
const CALL_LIMIT: Duration = Duration::from_secs(400);
/// For what is answered at once. A network that swallows packets may swallow the end of a connection, too: then nothing ever comes.
const STATUS_LIMIT: Duration = Duration::from_secs(20);

/// Runs one conversation to its end, with a limit.
pub fn block_on<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    block_on_within(CALL_LIMIT, call)
}

fn block_on_within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime needs a few descriptors");
    runtime.block_on(async {
        match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {limit:?}"))),
        }
    })
}

/// A channel to a daemon's Unix socket.
pub async fn unix(socket: &Path) -> Result<Channel, Status> {
    connect::unix(socket.to_owned(), CONNECT_LIMIT).await.map_err(|error| Status::unavailable(error.to_string()))
}

/// A channel to a storaged of this machine.
pub async fn tcp(port: u16) -> Result<Channel, Status> {
    let address = connect::ServerAddress::new("127.0.0.1", port);
    let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    address.connect(CONNECT_LIMIT, None).await.map_err(unavailable)
}

/// Status of the mountd behind a socket.
pub fn mount_status(socket: &Path) -> Result<pb::StatusReply, Status> {
    block_on(async {
        let mut client = AdminClient::new(unix(socket).await?);
        Ok(client.status(pb::StatusRequest::default()).await?.into_inner())
    })
}

/// Status of a storaged.
pub fn storage_status(port: u16, secret: &str) -> Result<pb::StatusReply, Status> {
    block_on_within(STATUS_LIMIT, async {
        let mut request = Request::new(pb::StatusRequest::default());
        let secret = secret.parse().map_err(|_| Status::invalid_argument("the secret is no text"))?;
        request.metadata_mut().insert(METADATA_KEY, secret);
        Ok(AdminClient::new(tcp(port).await?).status(request).await?.into_inner())
    })
}

/// Waits until everything done so far is applied.
pub fn wait(socket: &Path, limit: Duration) -> Result<pb::WaitReply, Status> {
    block_on(async {
        let request = pb::WaitRequest { path: String::new(), timeout_ms: limit.as_millis() as u32 };
        Ok(MountControlClient::new(unix(socket).await?).wait(request).await?.into_inner())
    })
}

/// Stops the link.
pub fn pause(socket: &Path) -> Result<(), Status> {
    block_on(async {
        MountControlClient::new(unix(socket).await?).pause(pb::PauseRequest::default()).await.map(|_| ())
    })
}

/// Lets the link go on.
pub fn resume(socket: &Path) -> Result<(), Status> {
    block_on(async {
        MountControlClient::new(unix(socket).await?).resume(pb::ResumeRequest::default()).await.map(|_| ())
    })
}
