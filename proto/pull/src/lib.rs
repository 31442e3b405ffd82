//! The receiving side of `Pull`: fills a folder with the state of a replica at one exact position. `-o init=pull` and `tandem clone`
//! use it.
//!
//! ```text
//!  storaged ── Header(position) ─► Node ─► Data … ─► Link … ─► End(count, digest) ──► [Writer] ──► folder, durable
//! ```
//! Promise: if [`Pull::receive`] succeeds, the folder holds exactly what the replica was at [`Pulled::position`], durably: every byte had
//! its checksum, the whole stream its digest, and everything is synced. If it fails the folder holds some part of it; its caller
//! sees to it that nobody takes that for the whole. Every path is resolved beneath the folder, without following links.

mod write;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tandem_proto::{
    Position, Uuid, VolumeName, convert,
    limits::MESSAGE_MAX_BYTES,
    pb::{self, pull_message::Body, replication_client::ReplicationClient},
    pull::PullDigest,
};
use tandem_runtime::connect::{KEEPALIVE, ServerAddress};
use tokio::sync::mpsc;
use tonic::{Code, Status};

pub use self::write::Writer;

/// No message for so long: the storage daemon is gone.
const STALLED: Duration = Duration::from_secs(60);
/// Messages that came and are not written yet: 8 MiB of data.
const AHEAD: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What was pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Inodes written.
    pub nodes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Devices that only root may make, and attributes that only root may set: left out.
    pub left_out: u64,
    /// The state that it is.
    pub position: Position,
    /// Whose state it is.
    pub volume_id: Uuid,
    /// Which copy of it.
    pub replica_id: Uuid,
}

/// Pulling failed. What was written stays.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The storage daemon does not answer, or ended in the middle.
    #[error("pulling from {server}: {why}")]
    Server {
        /// The address.
        server: String,
        /// The cause.
        why: String,
    },
    /// The storage daemon answered that it cannot be had.
    #[error("{why}")]
    Refused {
        /// What kind.
        code: Code,
        /// Its words.
        why: String,
    },
    /// The local disk.
    #[error("writing {path}: {source}")]
    Io {
        /// What was written.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Pull {
    /// From whom.
    pub server: ServerAddress,
    /// Of which volume.
    pub volume: VolumeName,
    /// Its state there, which may be in the future; else the last that is durable. An empty chain is not compared.
    pub at: Option<pb::Position>,
    /// How long to wait for that position.
    pub wait: Option<Duration>,
    /// What it is for, as the storage daemon's status shows it.
    pub reader: String,
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

impl Pull {
    fn failed(&self, why: impl Into<String>) -> PullError {
        PullError::Server { server: self.server.to_string(), why: why.into() }
    }

    fn refused(&self, status: &Status) -> PullError {
        let why = match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => {
                format!("{} does not let us in: {}", self.server, status.message())
            }
            Code::Unimplemented => {
                format!("{} is no tandem-storaged, or of another version: {}", self.server, status.message())
            }
            code => match std::error::Error::source(status) {
                // Not a word of the other side: the connection broke.
                Some(source) => return self.failed(root_cause(source)),
                None => return PullError::Refused { code, why: format!("{}: {}", self.server, status.message()) },
            },
        };
        PullError::Refused { code: status.code(), why }
    }

    async fn connect(&self) -> Result<tonic::Streaming<pb::PullMessage>, PullError> {
        let unreachable = |error: tonic::transport::Error| {
            self.failed(format!("it does not answer ({}): is tandem-storaged running there?", root_cause(&error)))
        };
        self.server.may_connect().map_err(|error| self.failed(error.to_string()))?;
        let channel = self.server.connect(CONNECT_TIMEOUT, Some(KEEPALIVE)).await.map_err(unreachable)?;
        let mut client = ReplicationClient::with_interceptor(channel, self.server.credentials())
            .max_decoding_message_size(MESSAGE_MAX_BYTES);
        let timeout_ms = self.wait.map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1));
        let (volume, at, reader) = (self.volume.to_string(), self.at.clone(), self.reader.clone());
        let call = client.pull(pb::PullRequest { volume, at, timeout_ms, reader }).await;
        Ok(call.map_err(|status| self.refused(&status))?.into_inner())
    }

    /// Fills the folder of `writer`. `progress` is called now and then. The disk is another thread's, so that a slow one does not keep the
    /// connection from showing that it lives. Whoever drops this waits until that thread has ended.
    pub async fn receive(&self, writer: Writer, progress: &mut dyn FnMut(Pulled)) -> Result<Pulled, PullError> {
        let mut messages = self.connect().await?;
        let shown = Arc::new(Mutex::new(Pulled::default()));
        let mut filling = Filling::start(self.clone(), writer, shown.clone())?;
        loop {
            let message = tokio::time::timeout(STALLED, messages.message()).await;
            let message = message.map_err(|_| self.failed(format!("no answer for {} s", STALLED.as_secs())))?;
            let message = message.map_err(|status| self.refused(&status))?;
            let Some(message) = message else { return Err(self.failed("the stream ended before its end")) };
            let last = matches!(message.body, Some(Body::End(_)));
            let taken = filling.give(message).await;
            progress(*shown.lock().unwrap_or_else(PoisonError::into_inner));
            if last || !taken {
                return filling.end().unwrap_or_else(|| Err(self.failed("the thread that writes panicked")));
            }
        }
    }

    /// Writes what comes; `None`: no more comes, and the end was not there.
    fn write(
        &self,
        mut writer: Writer,
        messages: &mut mpsc::Receiver<pb::PullMessage>,
        shown: &Mutex<Pulled>,
    ) -> Result<Pulled, PullError> {
        let mut digest = PullDigest::default();
        let mut header = None;
        while let Some(message) = messages.blocking_recv() {
            if !matches!(message.body, Some(Body::End(_))) {
                digest.add(&message);
            }
            match message.body {
                Some(Body::Header(found)) => header = Some(self.header(&found)?),
                Some(Body::Node(node)) => {
                    writer.node(node)?;
                    *shown.lock().unwrap_or_else(PoisonError::into_inner) = writer.pulled();
                }
                Some(Body::Data(data)) => writer.data(&data)?,
                Some(Body::Link(link)) => writer.link(&link)?,
                Some(Body::End(end)) => {
                    self.check_end(&end, &writer, &digest)?;
                    let Some((position, volume_id, replica_id)) = header else {
                        return Err(self.failed("it did not say of which position its state is"));
                    };
                    return Ok(Pulled { position, volume_id, replica_id, ..writer.finish()? });
                }
                None => return Err(self.failed("a message that this version does not know: upgrade this side")),
            }
        }
        Err(self.failed("the stream ended before its end"))
    }

    fn header(&self, header: &pb::PullHeader) -> Result<(Position, Uuid, Uuid), PullError> {
        let parsed = || {
            Ok::<_, convert::Invalid>((
                convert::position("position", &header.position)?,
                convert::uuid("volume_id", &header.volume_id)?,
                convert::uuid("replica_id", &header.replica_id)?,
            ))
        };
        parsed().map_err(|error| self.failed(error.to_string()))
    }

    fn check_end(&self, end: &pb::PullEnd, writer: &Writer, digest: &PullDigest) -> Result<(), PullError> {
        if end.nodes != writer.received() {
            return Err(self.failed(format!("{} inodes were announced and {} came", end.nodes, writer.received())));
        }
        if end.digest != digest.value().0[..] {
            return Err(self.failed(
                "what came is not what was sent (the digests differ): try again; if it happens again, both sides are of \
                 different versions",
            ));
        }
        Ok(())
    }

    /// [`Self::receive`], from a thread without a tokio context.
    pub fn receive_blocking(&self, writer: Writer, progress: &mut dyn FnMut(Pulled)) -> Result<Pulled, PullError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| self.failed(error.to_string()))?;
        runtime.block_on(self.receive(writer, progress))
    }
}

/// The thread that writes.
struct Filling {
    /// Taken when no more comes.
    messages: Option<mpsc::Sender<pb::PullMessage>>,
    thread: Option<JoinHandle<Result<Pulled, PullError>>>,
}

impl Filling {
    fn start(pull: Pull, writer: Writer, shown: Arc<Mutex<Pulled>>) -> Result<Filling, PullError> {
        let (messages, mut received) = mpsc::channel(AHEAD);
        let failed = pull.failed("no thread can be started");
        let thread = std::thread::Builder::new()
            .name("pull".to_owned())
            .spawn(move || pull.write(writer, &mut received, &shown))
            .map_err(|_| failed)?;
        Ok(Filling { messages: Some(messages), thread: Some(thread) })
    }

    /// Hands a message over; `false`: the thread has ended with an error.
    async fn give(&self, message: pb::PullMessage) -> bool {
        match &self.messages {
            Some(messages) => messages.send(message).await.is_ok(),
            None => false,
        }
    }

    /// No more comes: what came of it. `None`: it panicked.
    fn end(&mut self) -> Option<Result<Pulled, PullError>> {
        self.messages = None;
        let thread = self.thread.take()?;
        // It syncs what it wrote, which may take long; the connection is not needed any more.
        thread.join().ok()
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            // Whoever gave up deletes next what was written.
            let _ = thread.join();
        }
    }
}

/// An error of the local disk.
pub fn io_error(path: &Path, source: io::Error) -> PullError {
    PullError::Io { path: path.display().to_string(), source }
}
