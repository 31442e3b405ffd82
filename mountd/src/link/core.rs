//! What the link does, without doing it: messages and time in, messages and steps of reading out. Pure but for the shared [`Commit`].
//!
//! ```text
//!  disconnected ──connected──► attaching ──Attached──► streaming { round: None }          live
//!      ▲   (back-off)                          │            ▲  │ the window gave up
//!      │                                       │  published │  ▼
//!      └── cut, refused with retry ◄───────────┴───► streaming { round: Some }           catching-up
//!  halted: refused for good (fenced, other volume, older replica): only a person can go on
//! ```
//! A round: freeze (S0), `ResyncBegin`, steps of the [`Plan`] while batches after S0 flow; when the plan is done S1 is what is reserved by
//! then; when everything up to S1 is filled and sent, `Publish`. If the window overflows, steps that are out are awaited, and a further
//! round of the same staging begins. If the connection breaks, everything that was taken differs again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tandem_proto::{
    Chain, Epoch, InodeId, Position, Seq, Uuid, VolumeName, convert,
    limits::{BATCH_MAX_OPS, BATCH_TARGET_BYTES, PROTOCOL_VERSION},
    pb::{self, client_message::Body},
};

use crate::{
    commit::{Commit, Watermarks, activity_log::Header, dirty::DirtySet},
    link::state::LinkState,
    resync::plan::{Manner, Next, Plan, PlanProgress, Step, StepDone},
};

/// Sent and not acknowledged: above this the link waits ...
pub const IN_FLIGHT_HIGH_BYTES: usize = 16 << 20;
/// ... until it is below this.
pub const IN_FLIGHT_LOW_BYTES: usize = 8 << 20;
/// Longest pause between two attempts to connect.
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// After so many refused streams in a row only a person can go on.
const MISTAKES_MAX: u32 = 3;
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Who attaches to what.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// The volume.
    pub volume: VolumeName,
    /// This client.
    pub client_id: Uuid,
    /// For messages.
    pub client_name: String,
    /// This run of mountd.
    pub run_id: Uuid,
    /// Make the volume if there is none.
    pub create: bool,
    /// Fence another client that holds the volume.
    pub takeover: bool,
    /// The folder replaces whatever the replica holds: no check of the floor, everything is compared.
    pub replace: bool,
}

/// A round of a resync.
#[derive(Debug)]
struct Round {
    number: u64,
    plan: Plan,
    manner: Manner,
    stage: RoundStage,
    /// `ResyncBegin` that was not sent yet.
    begin: Option<pb::ResyncBegin>,
    moves_until: Option<Seq>,
    full: bool,
    began: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoundStage {
    Reading,
    /// All is read; publish when everything up to here was sent.
    Sending {
        s1: Seq,
    },
    /// `Publish` was sent.
    Publishing,
}

#[derive(Debug)]
struct Stream {
    session: u64,
    sent: Seq,
    sent_chain: Chain,
    /// Last seq and bytes of batches that were not acknowledged.
    in_flight: VecDeque<(Seq, usize)>,
    in_flight_bytes: usize,
    held_back: bool,
    round: Option<Round>,
    empty: bool,
}

#[derive(Debug)]
enum Phase {
    Disconnected {
        retry_at: Duration,
    },
    Attaching {
        sent: bool,
    },
    /// Attached; ids must be saved before anything else.
    Saving(pb::Attached),
    Streaming(Box<Stream>),
    Halted,
}

/// What the driver must do beside sending and reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this header durable, then call [`LinkCore::handle_saved`].
    SaveHeader(Header),
    /// The first state of this run was published: make the floor durable.
    SaveFloor,
    /// End the connection.
    Disconnect,
}

/// See the module.
#[derive(Debug)]
pub struct LinkCore {
    config: CoreConfig,
    commit: Arc<Commit>,
    phase: Phase,
    epoch: Option<Epoch>,
    state: LinkState,
    reason: String,
    paused: bool,
    attempts: u32,
    jitter: u64,
    effects: VecDeque<Effect>,
    rounds: u64,
    listed: u64,
    nodes: u64,
    last_error: String,
    fault: String,
    ever_published: bool,
    /// Refusals that mean that one side is wrong, since the last publish.
    mistakes: u32,
    now: Duration,
}

impl std::fmt::Debug for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Commit({:?})", self.facts())
    }
}

/// Figures for status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkFacts {
    /// State.
    pub state: &'static str,
    /// Why it is not live.
    pub reason: String,
    /// The last error, also when it is over.
    pub last_error: String,
    /// Rounds of resyncs since the start.
    pub rounds: u64,
    /// Directories listed since the start.
    pub listed: u64,
    /// Inodes read since the start.
    pub nodes: u64,
    /// Of the resync under way.
    pub progress: Option<(&'static str, PlanProgress, f64)>,
}

impl LinkCore {
    /// A link that is not connected. `seed` makes the jitter of reconnects.
    pub fn new(config: CoreConfig, commit: Arc<Commit>, seed: u64) -> Self {
        LinkCore {
            config,
            commit,
            phase: Phase::Disconnected { retry_at: Duration::ZERO },
            epoch: None,
            state: LinkState::Offline,
            reason: "connecting".into(),
            paused: false,
            attempts: 0,
            jitter: seed | 1,
            effects: VecDeque::new(),
            rounds: 0,
            listed: 0,
            nodes: 0,
            last_error: String::new(),
            fault: String::new(),
            ever_published: false,
            mistakes: 0,
            now: Duration::ZERO,
        }
    }

    /// The state.
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// Why it is not live.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Figures for status.
    pub fn facts(&self) -> LinkFacts {
        let round = match &self.phase {
            Phase::Streaming(stream) => stream.round.as_ref().map(|round| (round, stream.empty)),
            _ => None,
        };
        let now = round.map_or(PlanProgress::default(), |(round, _)| round.plan.progress());
        let progress = round.map(|(round, empty)| {
            let what = match (empty, round.full) {
                (true, _) => "first sync",
                (false, true) => "full compare",
                (false, false) => "resync",
            };
            (what, round.plan.progress(), self.now.saturating_sub(round.began).as_secs_f64())
        });
        LinkFacts {
            state: self.state.as_str(),
            reason: if self.fault.is_empty() { self.reason.clone() } else { self.fault.clone() },
            last_error: self.last_error.clone(),
            rounds: self.rounds,
            listed: self.listed + now.listed,
            nodes: self.nodes + now.nodes_done,
            progress,
        }
    }

    /// The session that is streaming.
    pub fn session(&self) -> Option<u64> {
        match &self.phase {
            Phase::Streaming(stream) => Some(stream.session),
            _ => None,
        }
    }

    /// When to connect; `None`: connected, or not at all for now.
    pub fn connect_at(&self) -> Option<Duration> {
        match self.phase {
            Phase::Disconnected { retry_at } if !self.paused => Some(retry_at),
            _ => None,
        }
    }

    /// Whether the connection should be ended.
    pub fn is_disconnected(&self) -> bool {
        matches!(self.phase, Phase::Disconnected { .. } | Phase::Halted)
    }

    /// What the driver must do now.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// A connection is up.
    pub fn handle_connected(&mut self, now: Duration) {
        self.now = now;
        if matches!(self.phase, Phase::Disconnected { .. }) {
            self.phase = Phase::Attaching { sent: false };
        }
    }

    /// The connection ended or did not come about.
    pub fn handle_disconnected(&mut self, why: &str, now: Duration) {
        self.now = now;
        if self.is_disconnected() {
            if self.paused || matches!(self.phase, Phase::Halted) {
                return;
            }
        } else {
            self.leave_stream();
        }
        if !self.paused {
            self.last_error = why.to_owned();
            self.become_state(LinkState::Offline, why);
        }
        self.back_off(now);
    }

    /// Stops or restarts the link by hand.
    pub fn handle_pause(&mut self, pause: bool, now: Duration) {
        self.now = now;
        if self.paused == pause || matches!(self.phase, Phase::Halted) {
            return;
        }
        self.paused = pause;
        if pause {
            if !self.is_disconnected() {
                self.leave_stream();
                self.effects.push_back(Effect::Disconnect);
            }
            self.phase = Phase::Disconnected { retry_at: now };
            self.become_state(LinkState::Paused, "paused by hand; `tandem resume` goes on");
        } else {
            self.attempts = 0;
            self.phase = Phase::Disconnected { retry_at: now };
            self.become_state(LinkState::Offline, "connecting");
        }
    }

    /// Time passed.
    pub fn handle_tick(&mut self, now: Duration) {
        self.now = now;
        let Phase::Streaming(stream) = &self.phase else { return };
        if stream.round.is_some() {
            return;
        }
        let (bytes, limit) = self.commit.window_bytes();
        match self.state {
            LinkState::Live if bytes > limit / 2 => {
                self.become_state(LinkState::Lagging, "the replica is slower than the writer");
            }
            LinkState::Lagging if bytes < limit / 4 => self.become_state(LinkState::Live, ""),
            _ => {}
        }
    }

    /// The ids were made durable.
    pub fn handle_saved(&mut self) {
        if let Phase::Saving(attached) = &self.phase {
            let attached = attached.clone();
            if let Err(why) = self.attached(&attached) {
                self.halt(&why);
            }
        }
    }

    /// Something could not be saved or read locally: the link stops, with the reason in status, and tries again.
    pub fn handle_local_failure(&mut self, why: &str, now: Duration) {
        self.effects.push_back(Effect::Disconnect);
        self.handle_disconnected(why, now);
    }

    /// A step is done.
    pub fn handle_step_done(&mut self, done: &StepDone) {
        if let Phase::Streaming(stream) = &mut self.phase
            && let Some(round) = &mut stream.round
        {
            round.plan.handle_done(done);
        }
    }

    /// A message of the storage daemon. An error is one of the protocol: the connection must end.
    pub fn handle_message(&mut self, message: pb::ServerMessage, now: Duration) -> Result<(), String> {
        use pb::server_message::Body;
        self.now = now;
        match message.body {
            None => Err("the storage daemon sent a message that this version does not know".into()),
            Some(Body::Attached(attached)) => self.handle_attached(attached),
            Some(Body::Refused(refused)) => {
                self.handle_refused(&refused, now);
                Ok(())
            }
            Some(Body::Ack(ack)) => {
                self.handle_ack(&ack);
                Ok(())
            }
            Some(Body::NeedNodes(need)) => {
                let ids: Result<Vec<InodeId>, _> =
                    need.ids.iter().map(|id| convert::inode_id("need_nodes.ids", id)).collect();
                let ids = ids.map_err(|error| error.to_string())?;
                self.with_plan(|plan| plan.handle_need_nodes(&ids));
                Ok(())
            }
            Some(Body::NeedPieces(need)) => {
                let id = convert::inode_id("need_pieces.id", &need.id).map_err(|error| error.to_string())?;
                let pieces = convert::pieces(need.pieces).map_err(|error| error.to_string())?;
                self.with_plan(|plan| plan.handle_need_pieces(id, pieces));
                Ok(())
            }
            Some(Body::Barrier(barrier)) => {
                self.with_plan(|plan| plan.handle_barrier(barrier.token));
                Ok(())
            }
            Some(Body::Published(published)) => {
                let position =
                    convert::position("published.position", &published.position).map_err(|error| error.to_string())?;
                self.handle_published(position)
            }
            Some(Body::Fault(fault)) => {
                if !fault.message.is_empty() {
                    self.last_error = fault.message.clone();
                }
                self.fault = fault.message;
                Ok(())
            }
        }
    }

    fn with_plan(&mut self, act: impl FnOnce(&mut Plan)) {
        if let Phase::Streaming(stream) = &mut self.phase
            && let Some(round) = &mut stream.round
        {
            act(&mut round.plan);
            // What was asked for after all was read is read before it is published.
            if matches!(round.stage, RoundStage::Sending { .. }) {
                round.stage = RoundStage::Reading;
            }
        }
    }

    fn handle_attached(&mut self, attached: pb::Attached) -> Result<(), String> {
        if !matches!(self.phase, Phase::Attaching { .. }) {
            return Err("the storage daemon sent Attached twice".into());
        }
        let id = |field, bytes: &[u8]| convert::uuid(field, bytes).map_err(|error| error.to_string());
        let volume_id = id("attached.volume_id", &attached.volume_id)?;
        let replica_id = id("attached.replica_id", &attached.replica_id)?;
        let header = self.commit.header();
        if header.volume_id == volume_id && header.replica_id == replica_id {
            return self.attached(&attached).or_else(|why| {
                self.halt(&why);
                Ok(())
            });
        }
        if header.volume_id != Uuid::default() && !self.config.replace {
            self.halt("the storage daemon has another volume under this name than the one this folder belongs to; unmount, then \
                       mount with -o init=push (the folder replaces it) or another volume name");
            return Ok(());
        }
        self.phase = Phase::Saving(attached);
        // A new replica: nothing of an older one's floor counts.
        self.effects.push_back(Effect::SaveHeader(Header { volume_id, replica_id, floor: Position::default() }));
        Ok(())
    }

    /// Decides how to go on: the error is one that only a person can mend.
    fn attached(&mut self, attached: &pb::Attached) -> Result<(), String> {
        let position = convert::position("attached.position", &attached.position).map_err(|error| error.to_string())?;
        let epoch = Epoch(attached.epoch);
        let known_epoch = self.epoch;
        if known_epoch.is_none() {
            self.check_floor(attached)?;
            self.epoch = Some(epoch);
            self.commit.begin_epoch(epoch, if position.epoch == epoch { position.chain } else { Chain::default() });
        }
        self.attempts = 0;
        self.fault.clear();
        let mut stream = Stream {
            session: attached.session,
            sent: Seq(0),
            sent_chain: Chain::default(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            held_back: false,
            round: None,
            empty: attached.empty,
        };
        let same = known_epoch == Some(epoch)
            && position.epoch == epoch
            && self.commit.durable().is_some()
            && self.commit.is_keeping()
            && self.commit.is_clean()
            && self.commit.chain_at(position.seq) == Some(position.chain);
        if same {
            (stream.sent, stream.sent_chain) = (position.seq, position.chain);
            self.phase = Phase::Streaming(Box::new(stream));
            self.commit.acked(position.seq, Seq(attached.applied));
            self.become_state(LinkState::Live, "");
        } else {
            self.phase = Phase::Streaming(Box::new(stream));
            self.begin_round();
        }
        Ok(())
    }

    /// At the first attach of a run: is the replica at least where this client relies on it?
    fn check_floor(&mut self, attached: &pb::Attached) -> Result<(), String> {
        let floor = self.commit.header().floor;
        let published = match &attached.published {
            Some(position) => Some(Position::try_from(position).map_err(|error| error.to_string())?),
            None => None,
        };
        if self.config.replace {
            self.commit.insert_dirty(&DirtySet::everything(true));
            return Ok(());
        }
        if floor.epoch == Epoch(0) {
            // Never complete so far.
            self.commit.insert_dirty(&DirtySet::everything(!attached.empty));
            return Ok(());
        }
        let older = "mount with -o init=push to make it equal to this folder (what it holds is kept in its history)";
        match published {
            None => Err(format!("the replica is empty, but this folder relies on it up to {floor}; {older}")),
            Some(_) if attached.empty => {
                Err(format!("the replica is empty, but this folder relies on it up to {floor}; {older}"))
            }
            Some(published) if published.is_before(&floor) => Err(format!(
                "the replica is at {published}, older than {floor}, up to which this folder relies on it; {older}"
            )),
            Some(published)
                if (published.epoch, published.seq) == (floor.epoch, floor.seq) && published.chain != floor.chain =>
            {
                Err(format!("the replica has another history at {floor} than this folder; {older}"))
            }
            Some(_) => Ok(()),
        }
    }

    fn handle_refused(&mut self, refused: &pb::Refused, now: Duration) {
        use pb::refused::Reason;
        let mut message = refused.message.clone();
        if !refused.expected.is_empty() || !refused.found.is_empty() {
            message = format!("{message} (expected {}, found {})", refused.expected, refused.found);
        }
        self.last_error = message.clone();
        self.effects.push_back(Effect::Disconnect);
        let attaching = matches!(self.phase, Phase::Attaching { .. });
        match refused.reason() {
            Reason::Fenced => {
                self.leave_stream();
                self.phase = Phase::Halted;
                self.commit.fence(&message);
                self.become_state(LinkState::Fenced, &message);
            }
            // The same claim would be refused again.
            Reason::Diverged if attaching => self.halt(&message),
            Reason::Gap | Reason::Diverged | Reason::BadRequest if !attaching && self.mistakes < MISTAKES_MAX => {
                // The two sides do not agree on what the replica has. What it has is never assumed then: everything is compared.
                self.mistakes += 1;
                tracing::error!(message, "the replica refused the stream; everything is compared");
                self.leave_stream();
                self.commit.distrust();
                self.become_state(LinkState::Offline, &message);
                self.back_off(now);
            }
            _ if refused.retry
                || matches!(refused.reason(), Reason::StaleSession | Reason::Unavailable | Reason::Gap) =>
            {
                self.leave_stream();
                self.become_state(LinkState::Offline, &message);
                self.back_off(now);
            }
            _ => self.halt(&message),
        }
    }

    fn handle_ack(&mut self, ack: &pb::Ack) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        let bounded = |seq: u64| Seq(seq).min(stream.sent);
        let settled = match &stream.round {
            None => {
                let durable = bounded(ack.durable);
                self.commit.acked(durable, bounded(ack.applied));
                durable
            }
            Some(_) => {
                let staged = bounded(ack.staged);
                self.commit.staged(staged);
                staged
            }
        };
        while let Some((last, bytes)) = stream.in_flight.front() {
            if *last > settled {
                break;
            }
            stream.in_flight_bytes -= bytes;
            stream.in_flight.pop_front();
        }
        if stream.in_flight_bytes < IN_FLIGHT_LOW_BYTES {
            stream.held_back = false;
        }
    }

    fn handle_published(&mut self, position: Position) -> Result<(), String> {
        let Phase::Streaming(stream) = &mut self.phase else { return Err("Published without a stream".into()) };
        let Some(round) = stream.round.take_if(|round| round.stage == RoundStage::Publishing) else {
            return Err("Published without a Publish".into());
        };
        if (position.seq, position.chain) != (stream.sent, stream.sent_chain) {
            return Err(format!("published {position}, but {} was asked for", stream.sent));
        }
        stream.empty = false;
        stream.in_flight.clear();
        (stream.in_flight_bytes, stream.held_back) = (0, false);
        self.listed += round.plan.progress().listed;
        self.nodes += round.plan.progress().nodes_done;
        self.commit.published(position);
        self.mistakes = 0;
        if !self.ever_published {
            self.ever_published = true;
            self.config.replace = false;
            self.effects.push_back(Effect::SaveFloor);
        }
        self.become_state(LinkState::Live, "");
        Ok(())
    }

    /// Begins a resync: the first round of a staging.
    fn begin_round(&mut self) {
        let now = self.now;
        let Phase::Streaming(stream) = &mut self.phase else { return };
        let (frozen, taken) = self.commit.freeze();
        let plan = Plan::new(&taken, stream.empty);
        let manner = plan.manner();
        let begin = pb::ResyncBegin {
            session: stream.session,
            round: 1,
            full: frozen.unknown_ids,
            s0: Some((&frozen.s0).into()),
        };
        (stream.sent, stream.sent_chain) = (frozen.s0.seq, frozen.s0.chain);
        stream.in_flight.clear();
        (stream.in_flight_bytes, stream.held_back) = (0, false);
        stream.round = Some(Round {
            number: 1,
            plan,
            manner,
            stage: RoundStage::Reading,
            begin: Some(begin),
            moves_until: None,
            full: frozen.unknown_ids,
            began: now,
        });
        self.rounds += 1;
        let (state, why) = if stream.empty {
            (LinkState::Initial, "first sync")
        } else {
            (LinkState::CatchingUp, "sending what changed while the stream was interrupted")
        };
        self.become_state(state, why);
    }

    /// The window gave up in the middle: a further round over what it dropped.
    fn continue_round(&mut self) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        let Some(round) = &mut stream.round else { return };
        let (frozen, taken) = self.commit.freeze();
        round.plan.merge(&taken);
        round.manner = round.plan.manner();
        round.number += 1;
        round.stage = RoundStage::Reading;
        round.moves_until = None;
        round.begin = Some(pb::ResyncBegin {
            session: stream.session,
            round: round.number,
            full: round.full || frozen.unknown_ids,
            s0: Some((&frozen.s0).into()),
        });
        (stream.sent, stream.sent_chain) = (frozen.s0.seq, frozen.s0.chain);
        stream.in_flight.clear();
        (stream.in_flight_bytes, stream.held_back) = (0, false);
        self.rounds += 1;
    }

    /// The next message for the storage daemon, if there is one. Stage records and barriers come from the steps instead.
    pub fn poll_message(&mut self) -> Option<pb::ClientMessage> {
        self.settle();
        let message = match &mut self.phase {
            Phase::Attaching { sent } if !*sent => {
                *sent = true;
                Some(Body::Attach(self.attach_message()))
            }
            Phase::Streaming(stream) => {
                let publish = stream.publish_message(self.epoch.unwrap_or_default());
                match stream.round.as_mut().and_then(|round| round.begin.take()) {
                    Some(begin) => Some(Body::Begin(begin)),
                    None => match publish {
                        Some(publish) => Some(Body::Publish(publish)),
                        None => {
                            let epoch = self.epoch.unwrap_or_default();
                            stream.batch_message(&self.commit, epoch).map(Body::Batch)
                        }
                    },
                }
            }
            _ => None,
        };
        message.map(|body| pb::ClientMessage { body: Some(body) })
    }

    /// The next step of reading, with how and for which session.
    pub fn poll_step(&mut self) -> Option<(Step, Manner, u64)> {
        self.settle();
        let commit = self.commit.clone();
        let Phase::Streaming(stream) = &mut self.phase else { return None };
        let session = stream.session;
        let round = stream.round.as_mut()?;
        // The begin goes first, and what is read for it is read after its freeze.
        if round.begin.is_some() || round.stage != RoundStage::Reading || !commit.is_keeping() {
            return None;
        }
        loop {
            match round.plan.poll() {
                Next::Step(step) => return Some((step, round.manner, session)),
                Next::Wait => return None,
                Next::CheckMoves => {
                    let (moved, reserved) = commit.take_moved();
                    if !moved.is_empty() {
                        round.plan.handle_moves(&moved);
                        round.moves_until = None;
                        continue;
                    }
                    let until = *round.moves_until.get_or_insert(reserved);
                    if commit.filled() < until {
                        return None;
                    }
                    // One more look: what was filled between the two looks.
                    let (moved, _) = commit.take_moved();
                    if !moved.is_empty() {
                        round.plan.handle_moves(&moved);
                        round.moves_until = None;
                        continue;
                    }
                    commit.stop_collecting_moves();
                    round.plan.no_moves();
                }
                Next::Done => {
                    // A slot of its own: the position that is published was nobody's before, so whoever waits for it waits for
                    // this state, also when the application did nothing since the epoch began.
                    let slot = commit.reserve();
                    let s1 = slot.seq();
                    slot.void();
                    round.stage = RoundStage::Sending { s1 };
                    return None;
                }
            }
        }
    }

    /// Begins a resync, or a further round, when the window gave up.
    fn settle(&mut self) {
        let Phase::Streaming(stream) = &self.phase else { return };
        if self.commit.is_keeping() {
            return;
        }
        match &stream.round {
            None => self.begin_round(),
            Some(round) if round.stage == RoundStage::Publishing || round.plan.is_busy() || round.begin.is_some() => {}
            Some(_) => self.continue_round(),
        }
    }

    /// The message that ends the session in order, if there is one.
    pub fn detach_message(&self) -> Option<pb::ClientMessage> {
        match &self.phase {
            Phase::Streaming(stream) => {
                Some(pb::ClientMessage { body: Some(Body::Detach(pb::Detach { session: stream.session })) })
            }
            _ => None,
        }
    }

    fn attach_message(&self) -> pb::Attach {
        let header = self.commit.header();
        let known = header.volume_id != Uuid::default() && !self.config.replace;
        let id = |id: Uuid| if known { bytes::Bytes::copy_from_slice(&id.0) } else { bytes::Bytes::new() };
        pb::Attach {
            protocol: PROTOCOL_VERSION,
            volume: self.config.volume.to_string(),
            client_id: bytes::Bytes::copy_from_slice(&self.config.client_id.0),
            client_name: self.config.client_name.clone(),
            run_id: bytes::Bytes::copy_from_slice(&self.config.run_id.0),
            epoch: self.epoch.map_or(0, |epoch| epoch.0),
            create: self.config.create && !known,
            volume_id: id(header.volume_id),
            replica_id: id(header.replica_id),
            takeover: self.config.takeover && self.epoch.is_none(),
        }
    }

    fn leave_stream(&mut self) {
        if let Phase::Streaming(stream) = &self.phase
            && let Some(round) = &stream.round
        {
            self.listed += round.plan.progress().listed;
            self.nodes += round.plan.progress().nodes_done;
        }
        self.commit.thaw();
    }

    fn halt(&mut self, why: &str) {
        self.leave_stream();
        self.phase = Phase::Halted;
        self.last_error = why.to_owned();
        self.effects.push_back(Effect::Disconnect);
        self.become_state(LinkState::Offline, why);
    }

    fn back_off(&mut self, now: Duration) {
        let base = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(6)).min(BACKOFF_MAX);
        self.attempts = self.attempts.saturating_add(1);
        // xorshift: half to all of the base, so that many clients do not come back in step.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let part = 500 + (self.jitter % 501) as u32;
        self.phase = Phase::Disconnected { retry_at: now + base * part / 1000 };
    }

    fn become_state(&mut self, state: LinkState, reason: &str) {
        debug_assert!(self.state.may_become(state), "{} -> {state}", self.state);
        if self.state != state {
            tracing::info!(volume = %self.config.volume, from = %self.state, to = %state, reason, "link");
        }
        self.state = state;
        self.reason = reason.to_owned();
    }

    /// What the replica has.
    pub fn watermarks(&self) -> Watermarks {
        self.commit.facts().watermarks
    }
}

impl Stream {
    fn publish_message(&mut self, epoch: Epoch) -> Option<pb::Publish> {
        let round = self.round.as_mut()?;
        let RoundStage::Sending { s1 } = round.stage else { return None };
        if self.sent < s1 {
            return None;
        }
        round.stage = RoundStage::Publishing;
        let position = Position { epoch, seq: self.sent, chain: self.sent_chain };
        Some(pb::Publish { session: self.session, round: round.number, position: Some((&position).into()) })
    }

    fn batch_message(&mut self, commit: &Commit, epoch: Epoch) -> Option<pb::Batch> {
        // Between Publish and Published nothing is sent: the batch would belong to neither staging nor stream.
        if self.round.as_ref().is_some_and(|round| round.stage == RoundStage::Publishing) {
            return None;
        }
        if self.held_back {
            return None;
        }
        let taken = commit.take(self.sent, BATCH_TARGET_BYTES, BATCH_MAX_OPS)?;
        let first = self.sent.next();
        let (mut chain, mut scratch, mut chains, mut bytes) = (taken.chain_before, Vec::new(), Vec::new(), 0);
        let mut ops = Vec::with_capacity(taken.ops.len());
        for op in &taken.ops {
            let message = pb::Op::from(&**op);
            chain = convert::chain_after(&chain, op.seq, &message, &mut scratch);
            bytes += scratch.len();
            chains.push(chain);
            ops.push(message);
        }
        commit.record_chains(first, &chains);
        let last = self.sent.plus(ops.len() as u64);
        (self.sent, self.sent_chain) = (last, chain);
        self.in_flight.push_back((last, bytes));
        self.in_flight_bytes += bytes;
        self.held_back = self.in_flight_bytes > IN_FLIGHT_HIGH_BYTES;
        Some(pb::Batch {
            session: self.session,
            epoch: epoch.0,
            first_seq: first.0,
            chain_before: bytes::Bytes::copy_from_slice(&taken.chain_before.0),
            chain_after: bytes::Bytes::copy_from_slice(&chain.0),
            ops,
        })
    }
}
