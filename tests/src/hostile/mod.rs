//! A client that means harm, over real TLS: it joined, and says what no mount would say.
//!
//! [`Session`] is an attached stream that sends any bytes. [`lies`] are the single messages that no storage daemon may believe, [`crowd`] is
//! many connections that never get to the point. Used by the tests `hostile::` and by `tandem-bench hostile`.

pub mod crowd;
pub mod lies;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use tandem_proto::{
    chain::Chain,
    convert,
    pb::{self, client_message::Body, server_message},
    position::Seq,
};
use tandem_runtime::connect::ServerAddress;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use crate::harness::{Lab, Storage};

/// No answer takes longer.
pub const SOON: Duration = Duration::from_secs(30);
/// The volume for which it joined.
pub const VOLUME: &str = "vol";

/// Joins for [`VOLUME`] under a name; where the identity is.
pub fn join(lab: &Lab, storage: &Storage, name: &str) -> PathBuf {
    let server = format!("127.0.0.1:{}", storage.port());
    let token = lab.tandem(&["invite", VOLUME, "--server", &server, "--address", &server]).expect_success("invite");
    let token = token.stdout.split_whitespace().last().expect("a token").to_owned();
    let path = lab.path(&format!("{name}-{}.pem", storage.port()));
    let identity = path.to_str().expect("plain text");
    lab.tandem(&["join", &server, &token, "--identity", identity, "--name", name]).expect_success("join");
    path
}

/// A connection with this identity.
pub async fn connect(port: u16, identity: &Path) -> Result<Channel, Status> {
    let address = ServerAddress { identity: Some(identity.to_owned()), ..ServerAddress::new("127.0.0.1", port) };
    let channel = address.connect(SOON, None).await;
    channel.map_err(|error| Status::unavailable(format!("{error:?}")))
}

/// Sends bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = pb::ServerMessage;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<pb::ServerMessage>, Status> {
        let bytes = buf.copy_to_bytes(buf.remaining());
        pb::ServerMessage::decode(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = pb::ServerMessage;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

/// An attached stream.
pub struct Session {
    send: mpsc::Sender<Bytes>,
    answers: Streaming<pb::ServerMessage>,
    /// How it was let in.
    pub attached: pb::Attached,
}

/// Who attaches.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Another client is another holder.
    pub client: u8,
    /// A run of it.
    pub run: u8,
    /// The epoch that it has; 0: none yet.
    pub epoch: u64,
    /// Fence whoever holds the volume.
    pub takeover: bool,
}

/// The hostile client's usual run.
pub const RUN: Run = Run { client: 1, run: 2, epoch: 0, takeover: true };

impl Session {
    /// Attaches; or how it was refused.
    pub async fn open(channel: &Channel, run: Run) -> Result<Session, Status> {
        let attach = pb::Attach {
            protocol: tandem_proto::limits::PROTOCOL_VERSION,
            volume: VOLUME.to_owned(),
            client_id: vec![run.client; 16].into(),
            client_name: "hostile".to_owned(),
            run_id: vec![run.run; 16].into(),
            epoch: run.epoch,
            takeover: run.takeover,
            create: true,
            ..Default::default()
        };
        let attach = pb::ClientMessage { body: Some(Body::Attach(attach)) };
        let (send, mut answers) = Self::open_raw(channel, Some(attach.encode_to_vec().into())).await?;
        match answers.message().await?.and_then(|answer| answer.body) {
            Some(server_message::Body::Attached(attached)) => Ok(Session { send, answers, attached }),
            Some(server_message::Body::Refused(refused)) => {
                Err(Status::permission_denied(format!("{:?}: {}", refused.reason(), refused.message)))
            }
            other => Err(Status::internal(format!("not attached: {other:?}"))),
        }
    }

    /// A stream whose first message is this, if it says anything.
    pub async fn open_raw(
        channel: &Channel,
        first: Option<Bytes>,
    ) -> Result<(mpsc::Sender<Bytes>, Streaming<pb::ServerMessage>), Status> {
        let (send, stream) = mpsc::channel(64);
        if let Some(first) = first {
            let _ = send.send(first).await;
        }
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let path = http::uri::PathAndQuery::from_static("/tandem.v1.Replication/Replicate");
        let answers = client.streaming(Request::new(ReceiverStream::new(stream)), path, Raw).await?.into_inner();
        Ok((send, answers))
    }

    /// Begins and publishes an empty folder, if the epoch has not published: from here on ops are legal.
    pub async fn go_live(&mut self) -> Result<(), Status> {
        let (session, s0) = (self.attached.session, self.attached.position.clone());
        let published =
            self.attached.published.as_ref().is_some_and(|published| published.epoch == self.attached.epoch);
        if published {
            return Ok(());
        }
        self.send(Body::Begin(pb::ResyncBegin { session, round: 1, full: true, s0: s0.clone() })).await;
        let attr = pb::Attr { mode: Some(0o755), uid: Some(0), gid: Some(0), mtime_s: Some(1), ..Default::default() };
        let kind = Some(pb::NodeKind { r#type: pb::FileType::Directory.into(), ..Default::default() });
        let content = pb::Content::Whole.into();
        self.send(Body::StageNode(pb::StageNode { session, kind, attr: Some(attr), content, ..Default::default() }))
            .await;
        self.send(Body::Publish(pb::Publish { session, round: 1, position: s0 })).await;
        loop {
            match self.next().await? {
                server_message::Body::Published(_) => return Ok(()),
                server_message::Body::Refused(refused) => return Err(Status::internal(refused.message)),
                _ => {}
            }
        }
    }

    /// Sends a message.
    pub async fn send(&self, body: Body) {
        self.send_raw(pb::ClientMessage { body: Some(body) }.encode_to_vec()).await;
    }

    /// Sends any bytes as a message.
    pub async fn send_raw(&self, bytes: impl Into<Bytes>) {
        // A stream that was refused meanwhile takes no more.
        let _ = self.send.send(bytes.into()).await;
    }

    /// The next answer.
    pub async fn next(&mut self) -> Result<server_message::Body, Status> {
        loop {
            match self.answers.message().await? {
                Some(pb::ServerMessage { body: Some(body) }) => return Ok(body),
                Some(_) => {}
                None => return Err(Status::aborted("the stream ended without a word")),
            }
        }
    }

    /// Waits until ops up to `seq` are applied.
    pub async fn applied(&mut self, seq: u64) -> Result<(), Status> {
        loop {
            match self.next().await? {
                server_message::Body::Ack(ack) if ack.applied >= seq => return Ok(()),
                server_message::Body::Refused(refused) => return Err(Status::internal(refused.message)),
                _ => {}
            }
        }
    }

    /// How the stream is refused.
    pub async fn refused(mut self) -> Result<pb::Refused, Status> {
        loop {
            if let server_message::Body::Refused(refused) = self.next().await? {
                return Ok(refused);
            }
        }
    }

    /// A batch of one op as it has to be, after this position of the epoch.
    pub fn batch(&self, after: &pb::Position, changes: Vec<pb::change::Kind>) -> pb::Batch {
        let changes = changes.into_iter().map(|kind| pb::Change { kind: Some(kind) }).collect();
        let op = pb::Op { origin: None, changes };
        let before = convert::chain("chain", &after.chain).unwrap_or(Chain([0; 16]));
        let chain = convert::chain_after(&before, Seq(after.seq + 1), &op, &mut Vec::new());
        pb::Batch {
            session: self.attached.session,
            epoch: self.attached.epoch,
            first_seq: after.seq + 1,
            chain_before: after.chain.clone(),
            chain_after: chain.0.to_vec().into(),
            ops: vec![op],
        }
    }

    /// Where the next batch goes on.
    pub fn position(&self) -> pb::Position {
        self.attached.position.clone().unwrap_or_default()
    }
}

/// Where a batch of one op ends.
pub fn after(batch: &pb::Batch) -> pb::Position {
    pb::Position { epoch: batch.epoch, seq: batch.first_seq, chain: batch.chain_after.clone() }
}
