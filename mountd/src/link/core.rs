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

mod attach;
pub mod early;
mod round;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tandem_proto::{
    Chain, Epoch, InodeId, Position, Seq, Uuid, VolumeName, convert,
    limits::FEATURE_PACKED,
    pb::{self, client_message::Body},
};

use crate::{
    commit::{Commit, Watermarks, activity_log::Header},
    link::{
        core::early::{Experience, Gate},
        state::LinkState,
    },
    resync::plan::{Manner, Plan, PlanProgress, StepDone},
    verify::desk::Damaged,
};

/// Sent and not acknowledged: above this the link waits until it is below half of it.
pub const IN_FLIGHT_MAX_BYTES: usize = 16 << 20;
/// On a slow link it is what that carries in a quarter of a second, and at least this: what is on its way cannot be held back any more.
pub const IN_FLIGHT_MIN_BYTES: usize = 256 << 10;
/// Longest pause between two attempts to connect, if nobody says otherwise.
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
    /// What else the first attach claims.
    pub claim: Claim,
    /// Longest pause between two attempts to connect; [`BACKOFF_MAX`].
    pub reconnect_max: Duration,
}

/// What the first attach of a run says beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Fence another client that holds the volume, if it is not connected.
    pub succeed: bool,
    /// The folder holds the state of this position; the claim is good only while the replica holds the same.
    pub have: Option<Position>,
    /// Runs of this client that may have opened the current epoch, this one included; empty: not checked.
    pub runs: Vec<Uuid>,
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
    /// Cells that were to be sent when it began.
    left: usize,
    moves_until: Option<Seq>,
    full: bool,
    /// It is made of what the link could not carry, though the stream was whole.
    early: bool,
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
    /// The last op of a batch with copies that the replica is at.
    copying: Option<Seq>,
    round: Option<Round>,
    empty: bool,
    /// The replica has bytes of a resync that was not finished.
    staged: bool,
    /// What the storage daemon understands, see `limits.rs` of the protocol.
    features: u32,
    /// The link is slow, see [`early`].
    slow: bool,
    in_flight_max: usize,
    gate: Gate,
    /// Bulk data is held back: whether to go on is to be looked at again soon.
    gated: bool,
    /// The next resync is made of what the link could not carry.
    early: bool,
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
    /// Refusals of a full volume since the last publish.
    full_refusals: u32,
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
    /// The replica answers checks.
    verifies: bool,
    resting: bool,
    now: Duration,
    /// What the link carries in bytes a second, if that is known.
    rate: Option<u64>,
    experience: Experience,
    /// Resyncs that were begun because the link could not carry the data.
    early_rounds: u64,
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
    /// Rounds of the resync under way, this one included; 0: none.
    pub round: u64,
    /// Cells that were to be sent when this round began.
    pub round_cells: usize,
    /// Of the resync under way.
    pub progress: Option<(&'static str, PlanProgress, f64)>,
    /// Resyncs that offered by digest what the link could not carry, since the start.
    pub early_rounds: u64,
    /// Bulk data is held back, to see whether digests will do.
    pub gated: bool,
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
            full_refusals: 0,
            jitter: seed | 1,
            effects: VecDeque::new(),
            rounds: 0,
            listed: 0,
            nodes: 0,
            last_error: String::new(),
            fault: String::new(),
            ever_published: false,
            mistakes: 0,
            verifies: false,
            resting: false,
            now: Duration::ZERO,
            rate: None,
            experience: Experience::default(),
            early_rounds: 0,
        }
    }

    /// The link of a mount that was fenced in an earlier run, or that shall only be looked at: it never connects.
    pub fn fenced(config: CoreConfig, commit: Arc<Commit>, reason: &str) -> Self {
        commit.fence(reason);
        let mut core = Self::new(config, commit, 1);
        core.phase = Phase::Halted;
        core.become_state(LinkState::Fenced, reason);
        core
    }

    /// The state.
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// Rounds of resyncs since the start.
    pub fn rounds(&self) -> u64 {
        self.rounds
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
            round: round.map_or(0, |(round, _)| round.number),
            round_cells: round.map_or(0, |(round, _)| round.left),
            progress,
            early_rounds: self.early_rounds,
            gated: self.is_gated(),
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

    /// While it rests, no batches of ops are given out; see [`super::pace`].
    pub fn set_resting(&mut self, resting: bool) {
        self.resting = resting;
    }

    /// What the driver must do now.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// A connection is up.
    pub fn handle_connected(&mut self, now: Duration) {
        self.now = now;
        // What the connection before this one left to do is moot, except saving.
        self.effects.retain(|effect| *effect == Effect::SaveFloor);
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
        // The fault was said on a connection that is no more: whether it is over is not known.
        self.fault.clear();
        if !self.paused {
            self.last_error = why.to_owned();
            self.become_state(LinkState::Offline, why);
        }
        self.back_off(now);
    }

    /// The connection ended as we wanted. Whoever wanted it has said why, and when the next one comes.
    pub fn handle_left(&mut self, now: Duration) {
        if !self.is_disconnected() {
            self.handle_disconnected("the link was ended", now);
        }
        self.now = now;
        self.fault.clear();
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
            (self.attempts, self.full_refusals) = (0, 0);
            self.phase = Phase::Disconnected { retry_at: now };
            self.become_state(LinkState::Offline, "connecting");
        }
    }

    /// What time it is, and what the link carries in bytes a second, as far as that is known. Told before messages are asked for.
    pub fn handle_rate(&mut self, rate: Option<u64>, now: Duration) {
        (self.now, self.rate) = (now, rate);
    }

    /// Whether messages should be compressed if that makes them shorter.
    pub fn packs(&self) -> bool {
        let understood = |stream: &Stream| stream.features & FEATURE_PACKED != 0;
        early::is_slow(self.rate) && matches!(&self.phase, Phase::Streaming(stream) if understood(stream))
    }

    /// Whether bulk data is held back, so that messages should be asked for again soon though nothing happens.
    pub fn is_gated(&self) -> bool {
        matches!(&self.phase, Phase::Streaming(stream) if stream.gated)
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
            Some(Body::Verified(result)) => {
                self.commit.desk().answered(result);
                Ok(())
            }
            Some(Body::Damaged(damaged)) => {
                let files: Result<Vec<Damaged>, _> = damaged.files.into_iter().map(Damaged::try_from).collect();
                self.commit.desk().put_damaged(files.map_err(|error| error.to_string())?);
                Ok(())
            }
            // What the driver watches; it says nothing of the volume.
            Some(Body::Alive(_)) => Ok(()),
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

    /// The message that ends the session in order, if there is one.
    pub fn detach_message(&self) -> Option<pb::ClientMessage> {
        match &self.phase {
            Phase::Streaming(stream) => {
                Some(pb::ClientMessage { body: Some(Body::Detach(pb::Detach { session: stream.session })) })
            }
            _ => None,
        }
    }

    fn leave_stream(&mut self) {
        if let Phase::Streaming(stream) = &self.phase
            && let Some(round) = &stream.round
        {
            self.listed += round.plan.progress().listed;
            self.nodes += round.plan.progress().nodes_done;
        }
        self.commit.set_takes_copies(false);
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
        let base = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(6)).min(self.config.reconnect_max);
        self.attempts = self.attempts.saturating_add(1);
        self.pause_for(base, now);
    }

    fn pause_for(&mut self, base: Duration, now: Duration) {
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
        let open = self.verifies && matches!(state, LinkState::Live | LinkState::Lagging);
        self.commit.desk().set_open(open);
    }

    /// What the replica has.
    pub fn watermarks(&self) -> Watermarks {
        self.commit.facts().watermarks
    }
}
