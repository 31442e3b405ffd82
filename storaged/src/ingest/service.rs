//! The gRPC service `Replication`: turns streams into commands for the volumes' threads, and back.
//!
//! File I/O never happens here. A session's messages wait for the volume's thread in bounded memory: who sends faster than the
//! disk takes is slowed by HTTP/2's flow control.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tandem_proto::{
    ids::InodeId,
    limits::CLOSED_MAX,
    packed,
    pb::{self, client_message::Body, replication_server::Replication, server_message},
    position::{Epoch, Seq},
    volume::VolumeName,
};
use tandem_runtime::priority::{self, Priority};
use tokio::{
    sync::oneshot,
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    incoming::{AttachRequest, Incoming},
    outbox::{Outbox, OutboxStream},
    refusal::{Reason, Refusal},
};
use crate::{
    pull,
    trust::caller::{Caller, Opening, Role},
    volume::{
        facts::Facts,
        thread::Command,
        volumes::{Entry, Volume, Volumes},
    },
};

/// How long the first message of a stream may take.
const ATTACH_WITHIN: Duration = Duration::from_secs(20);

/// The service.
pub struct ReplicationService {
    volumes: Arc<Volumes>,
}

impl ReplicationService {
    /// Serves these volumes.
    pub fn new(volumes: Arc<Volumes>) -> Self {
        ReplicationService { volumes }
    }
}

fn volume_name(name: &str) -> Result<VolumeName, Status> {
    name.parse().map_err(|error: tandem_proto::volume::InvalidVolumeName| Status::invalid_argument(error.to_string()))
}

/// So much of one stream is taken in before others have their turn: 16 MiB may be there already, and take 10 ms.
const TURN_BYTES: usize = 256 << 10;

/// How long a volume may be busy before who asks for it hears that. Below what a mount waits for an answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(4);

/// A client is told no more often than this that its stream is read.
const ALIVE_MIN: Duration = Duration::from_millis(250);

/// What is true of a volume now. A mount decides by it whether the replica is the one it knows, so an older answer is worse than none.
async fn look(volume: &Volume) -> Result<Facts, Status> {
    let (reply, facts) = oneshot::channel();
    volume.tell(Command::Look { reply }).map_err(|refusal| status(&refusal))?;
    match tokio::time::timeout(LOOK_TIMEOUT, facts).await {
        Ok(Ok(facts)) => Ok(facts),
        Ok(Err(_)) => Err(status(&Refusal::unavailable("the volume has stopped"))),
        Err(_) => Err(status(&Refusal::unavailable(format!(
            "the volume was busy for {} s; look at its disk, and try again",
            LOOK_TIMEOUT.as_secs()
        )))),
    }
}

/// A refusal as a gRPC status, where there is no stream to send it on.
pub fn status(refusal: &Refusal) -> Status {
    match refusal.reason {
        Reason::NoVolume => Status::not_found(&refusal.message),
        Reason::Unavailable => Status::unavailable(&refusal.message),
        Reason::Damaged => Status::data_loss(&refusal.message),
        _ => Status::failed_precondition(&refusal.message),
    }
}

#[tonic::async_trait]
impl Replication for ReplicationService {
    async fn describe(&self, request: Request<pb::DescribeRequest>) -> Result<Response<pb::DescribeReply>, Status> {
        let caller = Caller::of(&request);
        let name = volume_name(&request.into_inner().volume)?;
        caller.may(&name, Role::Reader)?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let volume = match self.volumes.get(&name) {
            None => return Ok(Response::new(pb::DescribeReply { version, ..Default::default() })),
            Some(Entry::Broken(broken)) => return Err(status(&broken.refusal)),
            Some(Entry::Open(volume)) => volume,
        };
        let facts = look(&volume).await?;
        let id = |id: &tandem_proto::Uuid| bytes::Bytes::copy_from_slice(&id.0);
        let (holder, holder_id) =
            facts.holder.map_or_else(Default::default, |(name, client)| (name.to_string(), id(&client)));
        Ok(Response::new(pb::DescribeReply {
            exists: true,
            volume_id: id(&volume.identity.volume_id),
            replica_id: id(&volume.identity.replica_id),
            position: Some((&facts.published).into()),
            empty: facts.empty,
            holder,
            holder_id,
            holder_connected: facts.connected,
            holder_since_ns: facts.attached_ns as u64,
            holder_run: id(&facts.holder_run),
            version,
        }))
    }

    type ReplicateStream = OutboxStream;

    async fn replicate(
        &self,
        request: Request<Streaming<pb::ClientMessage>>,
    ) -> Result<Response<OutboxStream>, Status> {
        let outbox = Arc::new(Outbox::default());
        let (caller, opening) = (Caller::of(&request), Opening::of(&request));
        let session = serve(self.volumes.clone(), caller, opening, request.into_inner(), outbox.clone());
        tokio::spawn(async move {
            let _ = session.await;
        });
        Ok(Response::new(OutboxStream(outbox)))
    }

    type PullStream = ReceiverStream<Result<pb::PullMessage, Status>>;

    async fn pull(&self, request: Request<pb::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let name = volume_name(&request.volume)?;
        caller.may(&name, Role::Reader)?;
        let volume = self.volumes.serving(&name).map_err(|refusal| status(&refusal))?;
        Ok(Response::new(pull::start(volume, &request).await?))
    }
}

/// One session, from its attach to the end of its stream.
async fn serve(
    volumes: Arc<Volumes>,
    caller: Caller,
    opening: Option<Opening>,
    mut stream: Streaming<pb::ClientMessage>,
    outbox: Arc<Outbox>,
) -> Option<()> {
    let (volume, session, alive_ms) = match attach(&volumes, &caller, opening, &mut stream, &outbox).await {
        Ok(attached) => attached,
        Err(refusal) => {
            tracing::info!(reason = ?refusal.reason, %refusal, "attach refused");
            outbox.close(Some(refusal.into()));
            return None;
        }
    };
    let mut alive = Alive::new(alive_ms, outbox.clone());
    let mut turn = 0;
    // The stream's end, in order or broken, ends the session.
    while !outbox.is_closed() {
        // A session that was ended by another one must not go on holding what its client has begun to send.
        let message = tokio::select! {
            message = alive.tell_while(false, stream.message()) => message,
            () = outbox.ended() => break,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                if let Some(refusal) = unreadable(&error) {
                    tracing::info!(session, %refusal, "the stream ends: a message cannot be read");
                    outbox.close(Some(refusal.into()));
                }
                break;
            }
        };
        alive.received += 1;
        // Volumes' threads wait for these, and these for nobody.
        priority::take(Priority::Prompt);
        let len = message.encoded_len();
        if let Err(refusal) = alive.tell_while(true, forward(&volume, session, message)).await {
            tracing::warn!(session, reason = ?refusal.reason, %refusal, "refused");
            outbox.close(Some(refusal.into()));
            break;
        }
        turn += len;
        if turn >= TURN_BYTES {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
    volume.tell(Command::Closed { session }).ok()
}

/// A message that came and is none that may be sent: too long, with too many parts, or no protobuf. Bytes that changed on the way look the
/// same, so nothing is held against the client, and it may come again. `None`: the stream broke.
fn unreadable(error: &Status) -> Option<Refusal> {
    let is_message = matches!(error.code(), Code::OutOfRange | Code::InvalidArgument);
    is_message.then(|| Refusal::unavailable(format!("a message cannot be read: {}", error.message())))
}

/// Tells a client regularly how far its stream was read, if it asked for that.
struct Alive {
    due: Option<Interval>,
    received: u64,
    outbox: Arc<Outbox>,
}

impl Alive {
    /// The attach was received.
    fn new(every_ms: u32, outbox: Arc<Outbox>) -> Alive {
        let due = (every_ms > 0).then(|| {
            let mut due = interval(Duration::from_millis(every_ms.into()).max(ALIVE_MIN));
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            due
        });
        Alive { due, received: 1, outbox }
    }

    /// Completes with `work`, and tells meanwhile. `waits`: what was received waits for the volume.
    async fn tell_while<T>(&mut self, waits: bool, work: impl Future<Output = T>) -> T {
        let Some(due) = &mut self.due else { return work.await };
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = due.tick() => self.outbox.send(server_message::Body::Alive(pb::Alive { received: self.received, waits })),
            }
        }
    }
}

async fn attach(
    volumes: &Arc<Volumes>,
    caller: &Caller,
    opening: Option<Opening>,
    stream: &mut Streaming<pb::ClientMessage>,
    outbox: &Arc<Outbox>,
) -> Result<(Arc<Volume>, u64, u32), Refusal> {
    let bad = |message: &str| Refusal::new(Reason::BadRequest, message);
    // A stream that breaks, or is damaged, before its first message is the network's doing: the client comes again by itself.
    let broken = |error: Status| {
        unreadable(&error).unwrap_or_else(|| Refusal::unavailable(format!("no attach came: {}", error.message())))
    };
    let first = tokio::time::timeout(ATTACH_WITHIN, stream.message()).await;
    let first = first.map_err(|_| Refusal::unavailable("no attach came in time"))?.map_err(broken)?;
    drop(opening);
    let Some(pb::ClientMessage { body: Some(Body::Attach(attach)) }) = first else {
        return Err(bad("the first message of a stream is an attach"));
    };
    let alive_ms = attach.alive_ms;
    let (name, create, request) = AttachRequest::check(attach)?;
    caller.may(&name, Role::Writer)?;
    let volume = match volumes.serving(&name) {
        Err(refusal) if refusal.reason == Reason::NoVolume && create => {
            let volumes = volumes.clone();
            let made = tokio::task::spawn_blocking(move || volumes.serving_or_made(&name)).await;
            made.map_err(|_| Refusal::unavailable("making the volume failed: see storaged's log"))??
        }
        other => other?,
    };
    let (reply, answer) = oneshot::channel();
    volume.tell(Command::Attach { request: Box::new(request), outbox: outbox.clone(), reply })?;
    let session = answer.await.map_err(|_| Refusal::unavailable("the volume has stopped"))??;
    Ok((volume, session, alive_ms))
}

/// Hands a message to the volume's thread, when there is memory for it.
async fn forward(volume: &Volume, session: u64, message: pb::ClientMessage) -> Result<(), Refusal> {
    let message = packed::unpack(message)?;
    if let Some(Body::Closed(closed)) = &message.body
        && let Some(hooks) = &volume.hooks
    {
        // A hint: of a session that is over it means nothing, and does no harm.
        if closed.ids.len() > CLOSED_MAX {
            return Err(Refusal::new(Reason::BadRequest, format!("closed.ids: at most {CLOSED_MAX} files at a time")));
        }
        let ids = closed.ids.iter().filter_map(|id| InodeId::new(id));
        hooks.closed(Epoch(closed.epoch), Seq(closed.seq), ids);
        return Ok(());
    }
    let kib = 1 + (message.encoded_len() >> 10) as u32;
    let (named, message) = Incoming::check(message)?;
    if named != session {
        let message = format!("a message of session {named} on the stream of session {session}");
        return Err(Refusal::new(Reason::StaleSession, message).of(session, named));
    }
    let permit = volume.memory.clone().acquire_many_owned(kib).await;
    let permit = permit.map_err(|_| Refusal::unavailable("the volume has stopped"))?;
    volume.tell(Command::Message { session, message: Box::new(message), permit })
}
