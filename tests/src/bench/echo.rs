//! A round trip by the transport that both daemons use: a batch with 4 KiB goes over gRPC, an acknowledgement comes back, and nothing
//! else happens.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tandem_proto::pb::{
    self,
    client_message::Body,
    replication_client::ReplicationClient,
    replication_server::{Replication, ReplicationServer},
    server_message,
};
use tokio::{net::TcpListener, runtime::Builder, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Messages that may wait; there is one at a time.
const WAITING_MAX: usize = 4;

/// Answers each message.
struct Echo;

#[tonic::async_trait]
impl Replication for Echo {
    async fn describe(&self, _: Request<pb::DescribeRequest>) -> Result<Response<pb::DescribeReply>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    type ReplicateStream = ReceiverStream<Result<pb::ServerMessage, Status>>;

    async fn replicate(
        &self,
        request: Request<Streaming<pb::ClientMessage>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let mut stream = request.into_inner();
        let (answers, answered) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            while let Ok(Some(_)) = stream.message().await {
                let ack = server_message::Body::Ack(pb::Ack { durable: 1, ..Default::default() });
                if answers.send(Ok(pb::ServerMessage { body: Some(ack) })).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }

    type PullStream = ReceiverStream<Result<pb::PullMessage, Status>>;

    async fn pull(&self, _: Request<pb::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        Err(Status::unimplemented("an echo"))
    }
}

/// A running echo, and the way to it. Each side has a thread of its own, as the daemons have.
pub struct GrpcEcho {
    asks: mpsc::Sender<Bytes>,
    answers: mpsc::Receiver<Result<(), Status>>,
}

fn message(data: Bytes) -> pb::ClientMessage {
    let data = pb::StageData { session: 1, data, ..Default::default() };
    pb::ClientMessage { body: Some(Body::StageData(data)) }
}

async fn ask(port: u16, asks: mpsc::Receiver<Bytes>, answers: &mpsc::Sender<Result<(), Status>>) -> Result<(), Status> {
    let channel = crate::harness::rpc::tcp(port).await?;
    let asked = tokio_stream::StreamExt::map(ReceiverStream::new(asks), message);
    let mut stream = ReplicationClient::new(channel).replicate(asked).await?.into_inner();
    while stream.message().await?.is_some() {
        if answers.send(Ok(())).await.is_err() {
            break;
        }
    }
    Ok(())
}

impl GrpcEcho {
    /// Starts both sides; they end with the process, or when this is dropped.
    pub fn start() -> io::Result<GrpcEcho> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (serving, asking) =
            (Builder::new_current_thread().enable_all().build()?, Builder::new_current_thread().enable_all().build()?);
        thread::spawn(move || {
            serving.block_on(async {
                let incoming = TcpListenerStream::new(TcpListener::from_std(listener)?);
                let served = Server::builder().tcp_nodelay(true).add_service(ReplicationServer::new(Echo));
                served.serve_with_incoming(incoming).await.map_err(io::Error::other)
            })
        });
        let (asks, asked) = mpsc::channel(WAITING_MAX);
        let (told, answers) = mpsc::channel(WAITING_MAX);
        thread::spawn(move || {
            asking.block_on(async {
                if let Err(status) = ask(port, asked, &told).await {
                    let _ = told.send(Err(status)).await;
                }
            });
        });
        Ok(GrpcEcho { asks, answers })
    }

    /// Sends `data` and waits for the answer.
    pub fn round_trip(&mut self, data: &Bytes) -> io::Result<Duration> {
        let begun = Instant::now();
        let gone = || io::Error::other("the echo ended");
        self.asks.blocking_send(data.clone()).map_err(|_| gone())?;
        self.answers.blocking_recv().ok_or_else(gone)?.map_err(io::Error::other)?;
        Ok(begun.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::GrpcEcho;

    #[test]
    fn each_message_is_answered() {
        let mut echo = GrpcEcho::start().expect("loopback");
        for _ in 0..3 {
            echo.round_trip(&Bytes::from_static(&[7; 4096])).expect("an answer");
        }
    }
}
