//! The link's I/O: one tokio task that connects, sends what [`LinkCore`] gives out and hands it what arrives; one thread that reads files.
//!
//! ```text
//!  window ─ filled ─►┐                          ┌─► reader thread ─ staged records ─►┐
//!                    │ session loop ── steps ───┘                                    ├─► one bounded channel ─► gRPC
//!  storage daemon ──►┘             └── batches, begin, publish ─────────────────────►┘
//! ```
//! The channel bounds what is read ahead. The loop never waits for the channel alone, so answers are always taken in, and the two sides
//! cannot wait for each other.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
        mpsc as thread_mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prost::Message as _;
use tandem_proto::pb::{self, client_message::Body, server_message};
use tandem_runtime::{
    connect::ServerAddress,
    gauge::Gauge,
    priority::{self, Priority},
    when,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use crate::{
    commit::Commit,
    link::{
        client,
        core::{Effect, LinkCore, LinkFacts},
        pace::Pace,
        packer::Packer,
        reading::{Job, JobDone, read_jobs},
        silence::Silence,
        state::LinkState,
    },
    resync::StateReader,
};

/// Messages between the two producers and gRPC. Data comes in pieces of at most 1 MiB, so this bounds read-ahead to 16 MiB.
const OUTGOING_MAX: usize = 16;
/// How long connecting and attaching may take before the attempt counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often bulk data that is held back is looked at.
const GATE_TICK: Duration = Duration::from_millis(10);
/// How often time is told to the core.
const TICK: Duration = Duration::from_millis(100);

/// What a person may ask of the link.
#[derive(Debug)]
pub enum Control {
    /// Stop it. Answered when it stands, and the storage daemon was told, if it could be.
    Pause(oneshot::Sender<()>),
    /// Let it go on.
    Resume,
    /// Say good-bye and end.
    Stop,
}

/// Counters of the link, for status.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes of encoded messages sent.
    pub sent_bytes: AtomicU64,
    /// Received.
    pub received_bytes: AtomicU64,
}

/// What others see of the link.
#[derive(Debug)]
pub struct LinkShared {
    /// The newest facts.
    pub facts: Mutex<LinkFacts>,
    /// Unix time since when its state is what it is.
    pub state_since_ns: AtomicI64,
    /// Told at each change of state or reason.
    pub changed: watch::Sender<u64>,
    /// Counters.
    pub traffic: Traffic,
    /// What the link carries, and may carry.
    pub gauge: Arc<Gauge>,
    /// Whether messages are compressed.
    pub packer: Packer,
    /// `resync=full`: what reads and sends for a resync stands back behind nobody.
    pub resync_full: AtomicBool,
}

impl LinkShared {
    /// How a thread works that does the work of a resync.
    pub(super) fn patience(&self) -> Priority {
        if self.resync_full.load(Ordering::Relaxed) { Priority::Usual } else { Priority::Patient }
    }
}

/// Everything the link's task needs.
pub struct Driver {
    core: LinkCore,
    commit: Arc<Commit>,
    server: ServerAddress,
    keepalive: Option<Duration>,
    reader: Arc<dyn StateReader>,
    shared: Arc<LinkShared>,
    control: mpsc::UnboundedReceiver<Control>,
    jobs: thread_mpsc::Sender<Job>,
    done: mpsc::UnboundedReceiver<JobDone>,
    begun: Instant,
    connection: u64,
    pace: Pace,
    /// State and rounds as they were shown, see [`Driver::show_turn`].
    shown: Option<(LinkState, u64)>,
    /// To be paused once the storage daemon was told.
    leaving: Option<oneshot::Sender<()>>,
    stopping: bool,
}

enum SessionEnd {
    /// The connection is over, for this reason.
    Cut(String),
    /// The core wants it ended.
    Wanted,
    /// The daemon stops.
    Stopped,
}

impl Driver {
    /// Prepares the driver and starts the reading thread. `keepalive`: how soon a connection that swallows everything is given up.
    pub fn start(
        core: LinkCore,
        commit: Arc<Commit>,
        (server, keepalive): (ServerAddress, Option<Duration>),
        reader: Arc<dyn StateReader>,
        shared: Arc<LinkShared>,
        control: mpsc::UnboundedReceiver<Control>,
    ) -> io::Result<Driver> {
        let (jobs, job_queue) = thread_mpsc::channel();
        let (done_sender, done) = mpsc::unbounded_channel();
        let (thread_shared, thread_reader) = (shared.clone(), reader.clone());
        std::thread::Builder::new()
            .name("resync-reader".into())
            .spawn(move || read_jobs(&job_queue, &done_sender, &*thread_reader, &thread_shared))?;
        Ok(Driver {
            core,
            commit,
            server,
            keepalive,
            reader,
            shared,
            control,
            jobs,
            done,
            begun: Instant::now(),
            connection: 0,
            pace: Pace::default(),
            shown: None,
            leaving: None,
            stopping: false,
        })
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Runs until [`Control::Stop`].
    pub async fn run(mut self) {
        while !self.stopping {
            self.show();
            let Some(at) = self.core.connect_at() else {
                self.idle(None).await;
                continue;
            };
            let now = self.now();
            if at > now {
                self.idle(Some(at - now)).await;
                continue;
            }
            match self.session().await {
                SessionEnd::Cut(why) => {
                    tracing::debug!(why, "the link was cut");
                    let now = self.now();
                    self.core.handle_disconnected(&why, now);
                }
                SessionEnd::Wanted => {
                    let now = self.now();
                    self.core.handle_left(now);
                }
                SessionEnd::Stopped => break,
            }
        }
        self.show();
    }

    /// Waits while there is no connection.
    async fn idle(&mut self, wait: Option<Duration>) {
        let wait = wait.unwrap_or(Duration::from_secs(1));
        tokio::select! {
            control = self.control.recv() => self.handle_control(control),
            _ = tokio::time::sleep(wait) => {}
            Some(_) = self.done.recv() => {}
        }
        // What this run left to do is moot without a connection, except saving.
        while let Some(effect) = self.core.poll_effect() {
            if let Effect::SaveFloor = effect {
                self.save(Effect::SaveFloor).await;
            }
        }
    }

    fn handle_control(&mut self, control: Option<Control>) {
        let now = self.now();
        match control {
            // The storage daemon is told first: who comes next is refused while it thinks that this mount is connected.
            Some(Control::Pause(done)) if self.core.detach_message().is_some() => self.leaving = Some(done),
            Some(Control::Pause(done)) => {
                self.core.handle_pause(true, now);
                let _ = done.send(());
            }
            Some(Control::Resume) => self.core.handle_pause(false, now),
            Some(Control::Stop) | None => self.stopping = true,
        }
        self.show();
    }

    fn show(&self) {
        let facts = self.core.facts();
        self.commit.set_connected(matches!(facts.state, "initial" | "live" | "lagging" | "catching-up"));
        self.take_priority();
        let mut shown = self.shared.facts.lock();
        let changed = shown.state != facts.state || shown.reason != facts.reason;
        if shown.state != facts.state {
            self.shared.state_since_ns.store(when::now_ns(), Ordering::Relaxed);
        }
        *shown = facts;
        drop(shown);
        if changed {
            self.shared.changed.send_modify(|count| *count += 1);
        }
    }

    /// The network runtime has one thread, which is this one.
    fn take_priority(&self) {
        priority::take(match self.core.state() {
            LinkState::Initial | LinkState::CatchingUp => self.shared.patience(),
            _ if self.pace.is_prompt(self.now()) => Priority::Prompt,
            _ => Priority::Usual,
        });
    }

    /// Shows a change of state at once, and not with the next tick: who waited for an op that a resync published, and then asks for the
    /// status, must not be told of the time before it. This thread serves both, so it is enough to do so before it waits.
    fn show_turn(&mut self) {
        let turn = (self.core.state(), self.core.rounds());
        if self.shown != Some(turn) {
            self.shown = Some(turn);
            self.show();
        }
    }

    async fn save(&mut self, effect: Effect) -> bool {
        let (commit, reader) = (self.commit.clone(), self.reader.clone());
        let saved = tokio::task::spawn_blocking(move || match effect {
            Effect::SaveHeader(header) => commit.set_header_durably(header),
            Effect::SaveFloor => commit.save_floor_durably(&|| reader.sync_durable()),
            Effect::Disconnect => Ok(()),
        });
        match saved.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                let now = self.now();
                self.core.handle_local_failure(&format!("the activity log cannot be written: {error}"), now);
                false
            }
            Err(_) => false,
        }
    }

    /// One connection from start to end.
    async fn session(&mut self) -> SessionEnd {
        self.connection += 1;
        let timeout = self.keepalive.map_or(CONNECT_TIMEOUT, |bound| bound.min(CONNECT_TIMEOUT));
        let gauge = Some(self.shared.gauge.clone());
        let mut connection =
            // No longer than a dead connection is kept: what the network swallowed is sent anew by an attempt of its own.
            match tokio::time::timeout(timeout, client::connect(&self.server, timeout, self.keepalive, gauge)).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return SessionEnd::Cut(error.to_string()),
                Err(_) => return SessionEnd::Cut(format!("{} does not answer", self.server)),
            };
        let now = self.now();
        self.core.handle_connected(now);
        let (out, queue) = mpsc::channel(OUTGOING_MAX);
        let mut silence = self.keepalive.map(|keepalive| Silence::new(keepalive, now));
        if let Some(mut attach) = self.core.poll_message() {
            if let (Some(Body::Attach(attach)), Some(silence)) = (&mut attach.body, &silence) {
                attach.alive_ms = silence.alive_ms();
            }
            // The channel is empty.
            let _ = out.try_send(attach);
        }
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let call = connection.replicate(ReceiverStream::new(queue).map(move |message| {
            count.fetch_add(1, Ordering::Relaxed);
            message
        }));
        let mut inbound = match tokio::time::timeout(CONNECT_TIMEOUT, call).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return SessionEnd::Cut(client::status_message(&self.server, &status)),
            Err(_) => return SessionEnd::Cut(format!("{} does not answer the attach", self.server)),
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = self.now();
            self.core.handle_rate(self.shared.gauge.rate(), now);
            self.shared.packer.set_wanted(self.core.packs());
            if let Some(end) = self.hand_out(&out).await {
                return end;
            }
            self.show_turn();
            let gated = self.core.is_gated();
            let full = out.capacity() == 0;
            let now = self.now();
            let rest = self.pace.rest(now);
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        self.shared.traffic.received_bytes.fetch_add(message.encoded_len() as u64, Ordering::Relaxed);
                        let now = self.now();
                        if let Some(silence) = &mut silence {
                            silence.heard(now);
                            if let Some(server_message::Body::Alive(alive)) = &message.body {
                                silence.alive(alive, now);
                                continue;
                            }
                        }
                        if let Err(why) = self.core.handle_message(message, now) {
                            return SessionEnd::Cut(why);
                        }
                    }
                    Ok(None) => return SessionEnd::Cut(format!("{} ended the connection", self.server)),
                    Err(status) => return SessionEnd::Cut(client::status_message(&self.server, &status)),
                },
                // While batches rest, who fills ops wakes nobody.
                () = self.commit.wait_filled(), if rest.is_none() => {}
                () = tokio::time::sleep(rest.unwrap_or_default()), if rest.is_some() => {}
                () = self.commit.wait_hurry() => {
                    self.pace.handle_hurry(self.now());
                    self.take_priority();
                }
                permit = out.reserve(), if full => if permit.is_err() {
                    return SessionEnd::Cut(format!("{} ended the connection", self.server));
                },
                Some(done) = self.done.recv() => if let Some(end) = self.handle_job_done(done) {
                    return end;
                },
                control = self.control.recv() => self.handle_control(control),
                () = tokio::time::sleep(GATE_TICK), if gated => {}
                _ = tick.tick() => {
                    let now = self.now();
                    if let Some(why) = silence.as_mut().and_then(|silence| silence.verdict(sent.load(Ordering::Relaxed), now)) {
                        return SessionEnd::Cut(format!("{}: {why}", self.server));
                    }
                    self.core.handle_tick(now);
                    self.show();
                }
            }
            if self.stopping {
                self.say_goodbye(&out, &mut inbound).await;
                return SessionEnd::Stopped;
            }
            if let Some(done) = self.leaving.take() {
                self.say_goodbye(&out, &mut inbound).await;
                let now = self.now();
                self.core.handle_pause(true, now);
                self.show();
                let _ = done.send(());
            }
        }
    }

    fn handle_job_done(&mut self, done: JobDone) -> Option<SessionEnd> {
        if done.connection != self.connection {
            return None;
        }
        match done.result {
            Ok(done) => self.core.handle_step_done(&done),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Some(SessionEnd::Cut(format!("{} ended the connection", self.server)));
            }
            Err(error) => {
                tracing::error!(%error, "reading the backing directory for a resync");
                return Some(SessionEnd::Cut(format!("reading the backing directory: {error}; look at its disk")));
            }
        }
        None
    }

    /// Hands out everything that can go out now.
    async fn hand_out(&mut self, out: &mpsc::Sender<pb::ClientMessage>) -> Option<SessionEnd> {
        let now = self.now();
        let resting = self.pace.rest(now).is_some();
        self.core.set_resting(resting);
        let mut sent_ops = false;
        loop {
            let mut idle = true;
            while let Some(effect) = self.core.poll_effect() {
                idle = false;
                match effect {
                    Effect::Disconnect => {
                        self.show();
                        return Some(SessionEnd::Wanted);
                    }
                    Effect::SaveHeader(header) => {
                        if self.save(Effect::SaveHeader(header)).await {
                            self.core.handle_saved();
                        }
                    }
                    Effect::SaveFloor => {
                        self.save(Effect::SaveFloor).await;
                        self.show();
                    }
                }
            }
            while let Ok(permit) = out.try_reserve() {
                let Some(message) = self.core.poll_message() else {
                    if sent_ops {
                        let now = self.now();
                        self.pace.handle_sent(now, self.commit.take_waited());
                    }
                    break;
                };
                idle = false;
                sent_ops |= matches!(message.body, Some(Body::Batch(_)));
                let (message, len) = self.shared.packer.pack(message);
                self.shared.traffic.sent_bytes.fetch_add(len, Ordering::Relaxed);
                permit.send(message);
            }
            while let Some((step, manner, session)) = self.core.poll_step() {
                idle = false;
                let job = Job { step, manner, session, connection: self.connection, out: out.clone() };
                if self.jobs.send(job).is_err() {
                    return Some(SessionEnd::Cut("the reading thread ended; see the log".into()));
                }
            }
            if idle || out.capacity() == 0 {
                return None;
            }
        }
    }

    /// Detach, and a moment for the storage daemon to take it in.
    async fn say_goodbye(
        &mut self,
        out: &mpsc::Sender<pb::ClientMessage>,
        inbound: &mut tonic::Streaming<pb::ServerMessage>,
    ) {
        if let Some(message) = self.core.detach_message()
            && out.send_timeout(message, Duration::from_millis(300)).await.is_ok()
        {
            let _ = tokio::time::timeout(Duration::from_millis(500), async {
                while let Ok(Some(message)) = inbound.message().await {
                    let now = self.begun.elapsed();
                    let _ = self.core.handle_message(message, now);
                }
            })
            .await;
        }
    }
}
