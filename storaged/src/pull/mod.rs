//! `Pull`: the whole state of a volume at one exact position, for a folder that is filled from its replica and for `tandem clone`.
//!
//! ```text
//!  hold apply at the position ─┬─ the file system can share extents: snapshot ─► release ─► stream the snapshot
//!                              └─ it cannot: stream the tree ─► release
//! ```
//! Logging, and so every acknowledgement, goes on all the time; only apply stands still while it is held. Who stops reading is given up, so
//! that it cannot hold apply for ever; a volume whose log is about to be full ends its readers.

mod readers;
mod snapshot;
mod walk;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tandem_proto::{
    pb::{self, pull_message::Body},
    position::{Epoch, Position, Seq},
    pull::PullDigest,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub use self::{readers::Readers, snapshot::clear};
use self::{
    readers::{Reader, Stage},
    snapshot::Snapshot,
    walk::{Extents, Sink, each_data, walk},
};
use crate::{
    apply::ApplyError,
    ingest::service::status,
    volume::{
        hold::{Abort, Held, Place},
        thread::{Command, Commands},
        volumes::Volume,
    },
};

/// Messages on their way to the client: 4 MiB of data.
const AHEAD: usize = 16;
/// A client that takes nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(30);
/// So often one that waits for a slow client looks whether it has to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

type Out = mpsc::Sender<Result<pb::PullMessage, Status>>;

/// Waits until the tree is at the position that is asked for, and streams the state there.
pub async fn start(
    volume: Arc<Volume>,
    request: &pb::PullRequest,
) -> Result<ReceiverStream<Result<pb::PullMessage, Status>>, Status> {
    let at = place(request.at.as_ref())?;
    let limit = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms.into()));
    let reader = volume.readers.add(&request.reader, at.as_ref());
    let (held, hold) = hold(&volume, at, limit).await?;
    reader.held(held.position);
    let (out, stream) = mpsc::channel(AHEAD);
    let runtime = tokio::runtime::Handle::current();
    let spawned = std::thread::Builder::new().name("pull".to_owned()).spawn(move || {
        let mut sender =
            Sender { out, runtime, abort: held.abort, reader, digest: PullDigest::default(), nodes: 0, bytes: 0 };
        let directory = volume.directory.display().to_string();
        match send_all(&volume, held.position, hold, &mut sender) {
            Ok(()) => {
                let (nodes, bytes) = (sender.nodes, sender.bytes);
                tracing::info!(directory, position = %held.position, nodes, bytes, "pulled");
            }
            Err(Stop::Gone) => tracing::info!(directory, "the client of a pull left"),
            Err(Stop::Failed(error)) => {
                tracing::warn!(directory, error = error.message(), "pull failed");
                // Nobody to tell if the client left at the same time. Nothing is held any more that this could delay.
                sender.abort = Abort::default();
                let _ = sender.put_message(Err(error));
            }
        }
    });
    spawned.map_err(|error| Status::unavailable(format!("no thread for a pull: {error}")))?;
    Ok(ReceiverStream::new(stream))
}

fn place(at: Option<&pb::Position>) -> Result<Option<Place>, Status> {
    let Some(at) = at else { return Ok(None) };
    let chain = match at.chain.is_empty() {
        true => None,
        false => {
            let position = Position::try_from(at);
            Some(position.map_err(|error| Status::invalid_argument(error.to_string()))?.chain)
        }
    };
    Ok(Some(Place { epoch: Epoch(at.epoch), seq: Seq(at.seq), chain }))
}

/// Lets apply go on, however the pull ends, also while it waits for its position.
#[derive(Debug)]
pub(crate) struct Hold {
    commands: Commands,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A volume that has stopped needs no release.
        let _ = self.commands.send(Command::Release { number: self.number });
    }
}

/// Stops apply at a position.
pub(crate) async fn hold(volume: &Volume, at: Option<Place>, limit: Option<Duration>) -> Result<(Held, Hold), Status> {
    let applied = || volume.facts.lock().applied;
    match hold_with(volume.commands(), at, limit).await {
        Err(Some(status)) => Err(status),
        Err(None) => {
            let at = at.map_or_else(|| "what is durable".to_owned(), |at| format!("{}:{}", at.epoch, at.seq));
            Err(Status::deadline_exceeded(format!("the replica did not reach {at} in time: it is at {}", applied())))
        }
        Ok(held) => Ok(held),
    }
}

/// `None` as an error: the time is over.
async fn hold_with(
    commands: Commands,
    at: Option<Place>,
    limit: Option<Duration>,
) -> Result<(Held, Hold), Option<Status>> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let stopped = || Some(Status::unavailable("the volume has stopped"));
    let (reply, answer) = oneshot::channel();
    // Made first: from here on, whoever drops this future releases.
    let hold = Hold { commands, number: NUMBER.fetch_add(1, Ordering::Relaxed) };
    hold.commands.send(Command::Hold { number: hold.number, at, reply }).map_err(|_| stopped())?;
    let answer = match limit {
        Some(limit) => tokio::time::timeout(limit, answer).await.map_err(|_| None)?,
        None => answer.await,
    };
    let held = answer.map_err(|_| stopped())?.map_err(|refusal| Some(status(&refusal)))?;
    Ok((held, hold))
}

/// Why a pull ends before its end.
pub enum Stop {
    /// Nobody listens any more.
    Gone,
    /// The replica could not be read.
    Failed(Status),
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        Stop::Failed(Status::internal(error.to_string()))
    }
}

fn check(abort: &Abort) -> Result<(), Stop> {
    match abort.why() {
        Some(why) => Err(Stop::Failed(Status::aborted(why.to_string()))),
        None => Ok(()),
    }
}

/// Sends to the client what a walk finds.
struct Sender {
    out: Out,
    runtime: tokio::runtime::Handle,
    /// Only while the tree is held; afterwards nothing has to end.
    abort: Abort,
    reader: Reader,
    digest: PullDigest,
    nodes: u64,
    bytes: u64,
}

impl Sender {
    fn put_message(&self, message: Result<pb::PullMessage, Status>) -> Result<(), Stop> {
        let mut message = match self.out.try_send(message) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Stop::Gone),
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        let begun = Instant::now();
        while begun.elapsed() < STALLED {
            check(&self.abort)?;
            match self.runtime.block_on(self.out.send_timeout(message, LOOK_EVERY)) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(Stop::Gone),
                Err(mpsc::error::SendTimeoutError::Timeout(back)) => message = back,
            }
        }
        let why = format!("the reader took nothing for {} s, and was given up", STALLED.as_secs());
        tracing::warn!(why, "a pull ends");
        Err(Stop::Gone)
    }
}

impl Sink for Sender {
    fn put(&mut self, body: Body) -> Result<(), Stop> {
        match &body {
            Body::Node(_) => self.nodes += 1,
            Body::Data(data) => {
                self.bytes += data.data.len() as u64;
                self.reader.sent(self.bytes);
            }
            Body::Header(_) | Body::Link(_) | Body::End(_) => {}
        }
        let message = pb::PullMessage { body: Some(body) };
        self.digest.add(&message);
        self.put_message(Ok(message))
    }

    fn data(&mut self, file: &dyn Extents, _: u64) -> Result<(), Stop> {
        each_data(file, |data| {
            check(&self.abort)?;
            self.put(Body::Data(data))
        })
    }

    fn check(&self) -> Result<(), Stop> {
        check(&self.abort)
    }
}

/// Sends everything.
fn send_all(volume: &Volume, position: Position, hold: Hold, sender: &mut Sender) -> Result<(), Stop> {
    let id = |id: &tandem_proto::Uuid| Bytes::copy_from_slice(&id.0);
    sender.put(Body::Header(pb::PullHeader {
        volume_id: id(&volume.identity.volume_id),
        replica_id: id(&volume.identity.replica_id),
        position: Some((&position).into()),
    }))?;
    match Snapshot::begin(&volume.directory, sender.abort.clone()) {
        Ok(Some(mut snapshot)) => {
            let begun = Instant::now();
            walk(&volume.reader, &mut snapshot)?;
            drop(hold);
            sender.reader.stage(Stage::Snapshot);
            // Nothing moves under the snapshot, so nothing has to end.
            sender.abort = Abort::default();
            tracing::info!(%position, milliseconds = begun.elapsed().as_millis() as u64, "snapshot made");
            snapshot.replay(sender)?;
        }
        Ok(None) => {
            walk(&volume.reader, sender)?;
            sender.check()?;
            drop(hold);
        }
        Err(error) => {
            tracing::info!(%error, "no snapshot: apply stands still until the client has all");
            walk(&volume.reader, sender)?;
            sender.check()?;
            drop(hold);
        }
    }
    let digest = Bytes::copy_from_slice(&sender.digest.value().0);
    sender.put_message(Ok(pb::PullMessage {
        body: Some(Body::End(pb::PullEnd { nodes: sender.nodes, bytes: sender.bytes, digest })),
    }))
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        task::{Context, Waker},
        time::Duration,
    };

    use super::hold_with;
    use crate::volume::thread::Command;

    #[test]
    fn a_client_that_leaves_while_it_waits_for_its_position_lets_apply_go_on() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (commands, received) = std::sync::mpsc::channel();
        runtime.block_on(async {
            let mut waiting = Box::pin(hold_with(commands, None, Some(Duration::from_secs(60))));
            assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        });
        let Ok(Command::Hold { number, .. }) = received.try_recv() else { panic!("it asks for a hold") };
        let Ok(Command::Release { number: released }) = received.try_recv() else {
            panic!("apply would stand still for ever")
        };
        assert_eq!(number, released);
    }
}
