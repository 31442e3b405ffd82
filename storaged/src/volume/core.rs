//! One volume's log, tree and catalog, and the order in which they change: everything but threads, sockets and clocks.
//!
//! ```text
//!  handle(message) ─► Receiver: may it? ─► pending ─► flush: append, fsync ─► ack durable ─► backlog ─► apply_some ─► ack applied
//!                                                        (one group)                                        │
//!                                     staged state ─► Replica::stage ─► answers          checkpoint: tree, catalog, `state`,
//!                                                                                                    then the log is recycled
//! ```
//!
//! Promise: nothing is acknowledged as durable before its record is, and nothing is visible in the tree before that either. An
//! error of the disk stops the volume at such a point; [`Core::tick`] tries again. The driver is `super::thread`; the simulation
//! drives the same code on a disk and a tree in memory, which is why time is an argument.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tandem_proto::{
    chain::Chain,
    op::Op,
    pb::{self, server_message::Body},
    position::Position,
};

use super::{
    backlog::Backlog,
    behind::Behind,
    check::Checks,
    flow::Bounds,
    hold::Holds,
    quota::Quota,
    review::Review,
    state::{Identity, STATE_FILE, State, StateError},
    told::Told,
};
use crate::{
    apply::{ApplyError, Record, Replica, record},
    ingest::{incoming::Incoming, outbox::Outbox, receiver::Receiver, refusal::Refusal},
    log::{Append, Log, LogError, LogOptions, LogPos, codec, disk::Disk},
    tree::ReplicaTree,
};

/// How long a disk that refused is left alone.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// When the log is cut short by a checkpoint, which costs a syncfs of the tree.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointRule {
    /// After so many bytes of log.
    pub bytes: u64,
    /// After so long, if anything changed.
    pub age: Duration,
    /// After so long without a change.
    pub idle: Duration,
}

impl Default for CheckpointRule {
    fn default() -> Self {
        CheckpointRule { bytes: 256 << 20, age: Duration::from_secs(120), idle: Duration::from_secs(5) }
    }
}

/// The volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its file `state`.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its tree or catalog.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A file of it.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on which object.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

impl OpenError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> OpenError {
        let what = what.into();
        move |source| OpenError::Io { what, source }
    }
}

impl From<record::LogError> for OpenError {
    fn from(error: record::LogError) -> Self {
        OpenError::Other(error.to_string())
    }
}

/// Ops that were accepted and not yet applied.
pub(super) struct OpRun {
    pub(super) ops: Vec<Op>,
    pub(super) chains: Vec<Chain>,
    pub(super) end: Position,
    pub(super) bytes: usize,
}

/// What becomes true when a record is durable.
pub(super) enum Carries {
    /// Nothing that anybody is told: state of a staging.
    Nothing,
    /// These ops can be applied.
    Ops(OpRun),
    /// The staging holds the ops up to here. Its model took them when they came: what it decides next is decided again by whoever
    /// reads the log, in the same order.
    StagedOps(Position),
}

/// A record that was accepted and is not yet durable.
pub(super) struct Pending {
    pub(super) kind: u8,
    pub(super) payload: Vec<u8>,
    pub(super) carries: Carries,
}

/// What cannot go on for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// Appending to the log.
    Log,
    /// Applying a live op.
    Apply,
    /// Staging a message, which waits in [`Core::held`].
    Stage,
    /// Bringing the tree to a published state.
    Publish,
    /// A checkpoint.
    Checkpoint,
    /// Everything: a sync has failed, and what is not certain to be on the disk is written again.
    Redo,
}

pub(super) struct Fault {
    pub(super) stuck: Stuck,
    pub(super) message: Arc<str>,
    pub(super) retry_at: Instant,
}

/// The writer's end of a session.
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) outbox: Arc<Outbox>,
    pub(super) acked: pb::Ack,
    /// It understands [`pb::Damaged`].
    pub(super) hears_damage: bool,
}

/// One volume. See the module.
pub struct Core<D: Disk, T: ReplicaTree> {
    pub(super) identity: Identity,
    /// Holds `state`.
    pub(super) home: D,
    pub(super) log: Log<D>,
    pub(super) replica: Replica<T>,
    pub(super) receiver: Receiver,
    pub(super) behind: Behind,
    pub(super) rule: CheckpointRule,
    pub(super) session: Option<Session>,
    pub(super) attached_ns: i64,
    pub(super) pending: Vec<Pending>,
    pub(super) pending_bytes: usize,
    /// Something in `pending` waits for its acknowledgement.
    pub(super) urgent: bool,
    pub(super) backlog: Backlog,
    pub(super) bounds: Bounds,
    /// The writer was told that it is held back.
    pub(super) told_held_back: bool,
    /// Where the record of the staging's first round stands.
    pub(super) staging_start: Option<LogPos>,
    /// Highest seq that is held durably for the staging.
    pub(super) staged: u64,
    /// Bytes of small files that were staged and that nothing has brought to the disk yet.
    pub(super) staged_behind: u64,
    /// A publish is durable, and the tree is not there yet.
    pub(super) publishing: Option<Position>,
    /// The message that staging could not take.
    pub(super) held: Option<Incoming>,
    /// It begins with a copy that follows another one at once.
    pub(super) among_copies: bool,
    /// At most one of each kind.
    pub(super) faults: Vec<Fault>,
    pub(super) damaged: Option<Arc<str>>,
    /// See [`State::unproven`].
    pub(super) unproven: Option<Arc<str>>,
    pub(super) last_error: Arc<str>,
    /// The faults that the writer, and the log of the daemon, were told of.
    told: Told,
    /// Whether the reserve is there; `None`: nobody looked.
    pub(super) reserve: Option<bool>,
    /// How much the volume may hold.
    pub(super) quota: Quota,
    /// Rights of the tree are looked at.
    pub(super) review: Option<Review>,
    /// Who reads the tree at one position.
    pub(super) holds: Holds,
    /// What a verifying mount asked for.
    pub(super) checks: Checks,
    /// What it found to differ, since the start.
    pub(super) mismatches: u64,
    pub(super) durable: Position,
    /// Bytes that were logged since the last checkpoint.
    pub(super) checkpoint_bytes: u64,
    /// Bytes that were logged since the start.
    pub(super) logged_bytes: u64,
    /// Bytes of records whose ops were applied since then.
    pub(super) applied_bytes: u64,
    pub(super) checkpoint_at: Instant,
    pub(super) changed_at: Option<Instant>,
    /// When the mark of the last group is made durable.
    pub(super) mark_due: Option<Instant>,
    /// When the place of deleted files was closed last.
    pub(super) kept_at: Instant,
    /// When an acknowledgement that only says what is applied goes out by itself.
    pub(super) ack_due: Option<Instant>,
}

/// What a volume is made of.
pub struct Parts<D: Disk, T: ReplicaTree> {
    /// Holds `state`.
    pub home: D,
    /// Holds the log.
    pub log_disk: D,
    /// Sizes of the log.
    pub log_options: LogOptions,
    /// Tree and catalog.
    pub replica: Replica<T>,
    /// When to make a checkpoint.
    pub rule: CheckpointRule,
}

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Makes what a new volume needs beside tree and catalog. `state` is written last: without it the volume does not exist.
    pub fn create(parts: &Parts<D, T>, identity: Identity, nonce: [u8; 16]) -> Result<(), OpenError>
    where
        D: Clone,
    {
        let log = Log::create(parts.log_disk.clone(), parts.log_options, nonce)?;
        let state = State {
            identity,
            durable: crate::ingest::receiver::Durable { empty: true, ..Default::default() },
            attached_ns: 0,
            log_start: log.start(),
            log_end: log.synced_end(),
            unproven: None,
        };
        parts.home.replace_durably(STATE_FILE, &state.encode()).map_err(OpenError::io("writing the file `state`"))
    }

    /// Opens a volume and recovers it: afterwards the tree is at the end of its log. Call [`Self::follow`] before anything else.
    pub fn open(parts: Parts<D, T>, now: Instant) -> Result<(Self, crate::apply::Recovered), OpenError> {
        let Parts { home, log_disk, log_options, mut replica, rule } = parts;
        let bytes = home
            .read_small(STATE_FILE)
            .and_then(|bytes| bytes.ok_or(std::io::ErrorKind::NotFound.into()))
            .map_err(OpenError::io("reading the file `state`"))?;
        let state = State::decode(&bytes)?;
        let mut log = Log::open(log_disk, log_options, state.log_start, state.log_end)?;
        let recovered = match replica.recover(&log.source(state.log_start)) {
            Err(error) if error.is_no_space() => {
                // The next attempt to open it has their room.
                log.drop_spares()?;
                return Err(error.into());
            }
            answer => answer?,
        };
        let state_writer = state.durable.writer.clone();
        let mut durable = state.durable;
        let mut unproven = state.unproven.map(Arc::from);
        for record in record::RecordSource::records(&log.source(state.log_start))? {
            let record = record?;
            if matches!(record, Record::Publish { .. }) {
                unproven = None;
            }
            note(&mut durable, record);
        }
        durable.empty &= replica.is_empty();
        let at_end = !durable.live || replica.applied() == durable.tip;
        if !at_end {
            return Err(OpenError::Other(format!(
                "the tree is at {} and the log ends at {}: they are not of one volume, or one of them was restored from an \
                 older copy. Stop storaged and run tandem-storaged check --repair: then its mount can sync again",
                replica.applied(),
                durable.tip
            )));
        }
        let bounds = Bounds::default();
        // Of an epoch that was opened after the last checkpoint, the time is not known.
        let attached_ns = if durable.writer == state_writer { state.attached_ns } else { 0 };
        let mut core = Core {
            identity: state.identity,
            home,
            log,
            replica,
            durable: durable.tip,
            receiver: Receiver::new(durable),
            behind: Behind::default(),
            rule,
            session: None,
            attached_ns,
            pending: Vec::new(),
            pending_bytes: 0,
            urgent: false,
            backlog: Backlog::new(bounds.backlog_bytes, bounds.backlog_ops),
            bounds,
            told_held_back: false,
            staging_start: None,
            staged: 0,
            staged_behind: 0,
            publishing: None,
            held: None,
            among_copies: false,
            faults: Vec::new(),
            damaged: None,
            unproven,
            last_error: Arc::from(""),
            told: Told::default(),
            reserve: None,
            quota: Quota::default(),
            review: None,
            holds: Holds::default(),
            checks: Checks::default(),
            mismatches: 0,
            checkpoint_bytes: 0,
            logged_bytes: 0,
            applied_bytes: 0,
            checkpoint_at: now,
            changed_at: None,
            mark_due: None,
            kept_at: now,
            ack_due: None,
        };
        core.receiver.note_since(attached_ns);
        // Recovery ended with a checkpoint of its own, so the log before it has done its work.
        core.write_state()?;
        Ok((core, recovered))
    }

    /// Sets what follows behind apply.
    pub fn follow(&mut self, behind: Behind) {
        self.behind = behind;
    }

    /// Whether deleted and replaced files are kept for a time.
    pub fn keep_deleted(&mut self, on: bool) {
        self.replica.keep_deleted(on);
    }

    /// Who this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Decides what is accepted; for looking.
    pub fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// Tree and catalog; for looking.
    pub fn replica(&self) -> &Replica<T> {
        &self.replica
    }

    /// Everything up to here survives a crash.
    pub fn durable(&self) -> Position {
        self.durable
    }

    pub(super) fn is_stuck(&self, kind: Stuck) -> bool {
        self.faults.iter().any(|fault| fault.stuck == kind)
    }

    /// Whether there is something to flush, apply or take up again right now.
    pub fn has_work(&self) -> bool {
        self.damaged.is_none()
            && ((self.urgent && !self.is_stuck(Stuck::Log))
                || (self.can_apply() && !self.backlog.is_empty())
                || self.can_finish_publish()
                || self.replica.has_litter()
                || self.can_review()
                || self.can_take_held())
    }

    /// When [`Self::tick`] has something to do next.
    pub fn next_tick(&self) -> Option<Instant> {
        if self.damaged.is_some() {
            return None;
        }
        let retries = self.faults.iter().map(|fault| fault.retry_at);
        retries.chain(self.checkpoint_due_at()).chain(self.mark_due).chain(self.ack_due).min()
    }

    fn checkpoint_due_at(&self) -> Option<Instant> {
        if self.is_held() || self.publishing.is_some() || !self.faults.is_empty() {
            return None;
        }
        let changed = self.changed_at?;
        Some((self.checkpoint_at + self.rule.age).max(changed).min(changed + self.rule.idle))
    }

    /// Does what time asks for: another try, a checkpoint, a spare segment.
    pub fn tick(&mut self, now: Instant) {
        if self.damaged.is_some() {
            return;
        }
        self.retry(now);
        if self.ack_due.is_some_and(|due| due <= now) {
            self.send_ack(false);
        }
        if self.mark_due.is_some_and(|due| due <= now) {
            self.mark_due = None;
            self.log.sync_mark();
        }
        if self.checkpoint_due_at().is_some_and(|due| due <= now) {
            self.checkpoint(now);
            // After the checkpoint, because that may have recycled a file that serves.
            if let Err(error) = self.log.prepare_spare() {
                tracing::debug!(%error, "no spare log segment");
            }
        }
    }

    pub(super) fn can_apply(&self) -> bool {
        !self.is_held() && !self.is_stuck(Stuck::Apply) && !self.is_stuck(Stuck::Redo) && self.publishing.is_none()
    }

    fn can_take_held(&self) -> bool {
        // A reader that holds the tree is in the way of what waits for apply only.
        let waits = self.publishing.is_some() || (self.is_held() && !self.backlog.is_empty());
        self.held.is_some() && self.faults.is_empty() && !waits && !self.quota.is_waiting()
    }

    /// Takes up what had to wait: the tree of a publish, and the message after it.
    pub fn take_held(&mut self, now: Instant) {
        if self.can_finish_publish() {
            self.finish_publish(now);
        }
        if self.can_take_held()
            && let (Some(session), Some(message)) = (self.session.as_ref().map(|s| s.number), self.held.take())
        {
            self.handle(session, message, now);
        }
    }

    fn retry(&mut self, now: Instant) {
        let (due, later): (Vec<_>, _) = std::mem::take(&mut self.faults).into_iter().partition(|f| f.retry_at <= now);
        self.faults = later;
        if due.is_empty() {
            return;
        }
        for fault in due {
            match fault.stuck {
                Stuck::Log => self.flush(now),
                Stuck::Apply => {
                    self.apply_some(now, 1);
                }
                Stuck::Stage => self.take_held(now),
                Stuck::Publish => self.finish_publish(now),
                Stuck::Checkpoint => self.checkpoint(now),
                Stuck::Redo => self.redo(now),
            }
        }
        if self.faults.is_empty() && self.damaged.is_none() {
            tracing::info!("the fault is over");
            self.told.forget();
            self.send(Body::Fault(pb::Fault::default()));
        }
    }

    /// Notes what cannot go on, tells the writer, and tries again later.
    pub(super) fn set_fault(&mut self, stuck: Stuck, error: &dyn std::error::Error, now: Instant) {
        let message: Arc<str> = Arc::from(error.to_string());
        if self.told.is_due(&message, now) {
            tracing::warn!(error = %message, "stopped at a consistent point, trying again");
            self.send(Body::Fault(pb::Fault { message: message.to_string() }));
        }
        self.last_error = message.clone();
        self.faults.retain(|fault| fault.stuck != stuck);
        self.faults.push(Fault { stuck, message, retry_at: now + RETRY_AFTER });
    }

    /// Apply failed in a way that no retry helps.
    pub(super) fn set_damaged(&mut self, error: &dyn std::error::Error) {
        tracing::error!(%error, "the volume stops");
        let message: Arc<str> = Arc::from(error.to_string());
        self.last_error = message.clone();
        self.damaged = Some(message);
        self.end_session(Some(self.damaged_refusal()));
    }

    pub(super) fn damaged_refusal(&self) -> Refusal {
        let why = self.damaged.as_deref().unwrap_or("");
        Refusal::new(crate::ingest::refusal::Reason::Damaged, format!("the volume cannot be used: {why}"))
    }

    pub(super) fn send(&self, body: Body) {
        if let Some(session) = &self.session {
            session.outbox.send(body);
        }
    }

    /// Ends the session, with a refusal or without.
    pub(super) fn end_session(&mut self, refusal: Option<Refusal>) {
        if let Some(session) = self.session.take() {
            session.outbox.close(refusal.map(Into::into));
        }
        self.receiver.end_session();
        self.drop_checks();
        self.held = None;
        self.among_copies = false;
        self.faults.retain(|fault| fault.stuck != Stuck::Stage);
    }

    /// Appends records that nothing waits for but the caller.
    pub(super) fn append_now(&mut self, record: &Record) -> Result<LogPos, LogError> {
        let Some((kind, payload)) = codec::encode(record) else { return Ok(self.log.end()) };
        let appended = self.log.append_group(&[Append { kind, version: codec::VERSION, payload: &payload }])?;
        Ok(appended.at)
    }

    pub(super) fn write_state(&mut self) -> Result<(), LogError> {
        let (end, log_start) = (self.log.synced_end(), self.log_needed_from());
        let state = State {
            identity: self.identity,
            durable: self.receiver_durable(),
            attached_ns: self.attached_ns,
            log_start,
            log_end: end,
            unproven: self.unproven.as_deref().map(str::to_owned),
        };
        self.home.replace_durably(STATE_FILE, &state.encode()).map_err(|source| LogError::Io {
            what: "replacing",
            name: STATE_FILE.to_owned(),
            source,
        })?;
        self.log.recycle_before(log_start)
    }

    /// What the receiver accepted, as far as it is durable: ops that are pending are not part of it.
    fn receiver_durable(&self) -> crate::ingest::receiver::Durable {
        crate::ingest::receiver::Durable { tip: self.durable, ..self.receiver.durable() }
    }
}

/// Moves what survived forward by one record.
pub(crate) fn note(durable: &mut crate::ingest::receiver::Durable, record: Record) {
    match record {
        Record::Epoch { position, writer } => {
            durable.tip = position;
            durable.live = false;
            durable.writer = Some(writer);
        }
        Record::Ops { end, .. } => durable.tip = end,
        Record::Publish { position, .. } => {
            durable.tip = position;
            durable.live = true;
            durable.empty = false;
        }
        Record::StageBegin { .. }
        | Record::Stage(_)
        | Record::StagedFile { .. }
        | Record::StagedExtent { .. }
        | Record::StagedOps { .. }
        | Record::StageDropped => {}
    }
}
