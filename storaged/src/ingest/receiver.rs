//! What a volume accepts from its writers: a pure state machine.
//!
//! Promise: ops are accepted exactly once, in seq order, along one chain; a newer epoch fences the older ones and a newer session
//! ends the older ones. It decides and remembers; logging, applying and answering is done by the volume, which tells it what
//! became true ([`Receiver::epoch_opened`], [`Receiver::published`]).
//!
//! ```text
//!            epoch opened              Begin                      Publish (durable)
//!   (none) ───────────────► Opened ─────────────► Staging ─────────────────────────► Live ◄─┐ Batch
//!                             ▲                    │  ▲ │ Batch, Stage, next Begin     │     ┘
//!                             └── session ended ───┘  └─┘◄──────────── Begin ──────────┘
//!                                 (or back to Live, if this epoch had published before)
//! ```

use std::collections::VecDeque;

use tandem_proto::{
    chain::Chain,
    position::{Epoch, Position, Seq},
};
use tandem_runtime::mutant;

use super::{
    incoming::{AttachRequest, CheckedBatch},
    refusal::{Reason, Refusal},
};
use crate::apply::record::Writer;

/// Chains that are remembered, to check duplicates: 1 MiB. A client resends at most its window.
const CHAINS_MAX: usize = 64 << 10;

/// No writer comes to so many ops; what lies above is nonsense, and could not be counted on from.
const SEQ_MAX: u64 = u64::MAX / 2;

/// What the current epoch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The epoch has published nothing: the replica's state is still of an earlier one. Only a resync is legal.
    Opened,
    /// The replica follows the writer, op by op.
    Live,
    /// State is staged; ops are staged with it.
    Staging {
        /// Of the rounds, which count from 1.
        round: u64,
        /// The last op that is part of the staging.
        tip: Position,
        /// Where it goes back to if it is given up.
        live: bool,
    },
}

/// Kinds of messages, as the table of legal transitions knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Ops.
    Batch,
    /// A round begins.
    Begin,
    /// State.
    Stage,
    /// The staging ends.
    Publish,
}

/// The one table: what is legal when.
fn legal(phase: &Phase, kind: MessageKind) -> bool {
    use MessageKind::{Batch, Begin, Publish, Stage};
    match (phase, kind) {
        (Phase::Opened, Begin) => true,
        (Phase::Opened, Batch | Stage | Publish) => false,
        (Phase::Live, Batch | Begin) => true,
        (Phase::Live, Stage | Publish) => false,
        (Phase::Staging { .. }, Batch | Begin | Stage | Publish) => true,
    }
}

/// What to do with an attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachDecision {
    /// The run goes on in its epoch.
    Resume,
    /// Make this epoch durable, then call [`Receiver::epoch_opened`].
    Open {
        /// Where it begins.
        position: Position,
        /// Who.
        writer: Writer,
    },
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchDecision {
    /// Take all ops but the first `skip`, which are known already; all of them if it is as many as there are.
    Accept {
        /// Known ops.
        skip: usize,
        /// They belong to the staging.
        staged: bool,
    },
}

/// What survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// The current epoch and where its ops ended: the next batch begins after it.
    pub tip: Position,
    /// Whether this epoch has published.
    pub live: bool,
    /// Nothing was ever published.
    pub empty: bool,
    /// Who opened the epoch.
    pub writer: Option<Writer>,
}

/// Decides for one volume.
#[derive(Clone, Debug)]
pub struct Receiver {
    phase: Phase,
    /// The last live op that was accepted, or where the epoch began.
    tip: Position,
    empty: bool,
    writer: Option<Writer>,
    /// Unix time at which the writer opened the epoch; for messages.
    since_ns: i64,
    session: Option<u64>,
    sessions: u64,
    chains: Chains,
}

/// The chain after each of the last ops.
#[derive(Clone, Debug)]
struct Chains {
    /// Seq of the first in `after`.
    first: Seq,
    after: VecDeque<Chain>,
}

impl Chains {
    fn begin(position: &Position) -> Self {
        Chains { first: position.seq, after: VecDeque::from([position.chain]) }
    }

    fn at(&self, seq: Seq) -> Option<Chain> {
        self.after.get(usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?).copied()
    }

    fn extend(&mut self, chains: &[Chain]) {
        self.after.extend(chains);
        let surplus = self.after.len().saturating_sub(CHAINS_MAX);
        self.after.drain(..surplus);
        self.first = self.first.plus(surplus as u64);
    }
}

impl Receiver {
    /// Goes on from what survived.
    pub fn new(durable: Durable) -> Self {
        let chains = Chains::begin(&durable.tip);
        let phase = if durable.live { Phase::Live } else { Phase::Opened };
        let Durable { tip, empty, writer, .. } = durable;
        Receiver { phase, tip, empty, writer, since_ns: 0, session: None, sessions: 0, chains }
    }

    /// What must survive: everything accepted counts, so call it when all of that is durable.
    pub fn durable(&self) -> Durable {
        let live = matches!(self.phase, Phase::Live | Phase::Staging { live: true, .. });
        Durable { tip: self.tip, live, empty: self.empty, writer: self.writer.clone() }
    }

    /// The last accepted live op.
    pub fn tip(&self) -> Position {
        self.tip
    }

    /// What the epoch is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The attached session.
    pub fn session(&self) -> Option<u64> {
        self.session
    }

    /// Who opened the epoch.
    pub fn writer(&self) -> Option<&Writer> {
        self.writer.as_ref()
    }

    /// When the writer opened the epoch, for messages.
    pub fn note_since(&mut self, unix_ns: i64) {
        self.since_ns = unix_ns;
    }

    /// Whether nothing was ever published.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Decides about a claim. Nothing changes; the caller ends the older session, makes what must be durable durable, and calls
    /// [`Self::begin_session`].
    pub fn handle_attach(&self, request: &AttachRequest) -> Result<AttachDecision, Refusal> {
        if let Some(epoch) = request.epoch {
            return self.handle_return(request, epoch);
        }
        if self.writer.as_ref().is_some_and(|writer| {
            (writer.run_id, writer.client_id) == (request.run_id, request.client_id) && self.tip.epoch > Epoch(0)
        }) {
            // Its answer was lost, or this is a claim that the network kept back: the run has its epoch.
            return Ok(AttachDecision::Resume);
        }
        self.check_holder(request)?;
        let epoch = Epoch(self.tip.epoch.0 + 1);
        // Bound to the whole history before it and to who begins it.
        let chain = Chain::begin(&[
            &self.tip.epoch.0.to_le_bytes(),
            &self.tip.seq.0.to_le_bytes(),
            &self.tip.chain.0,
            &epoch.0.to_le_bytes(),
            &request.client_id.0,
            &request.run_id.0,
        ]);
        let writer = Writer { client_id: request.client_id, run_id: request.run_id, name: request.client_name.clone() };
        Ok(AttachDecision::Open { position: Position { epoch, seq: Seq(0), chain }, writer })
    }

    /// Whether this claim may end the epoch that somebody else opened.
    fn check_holder(&self, request: &AttachRequest) -> Result<(), Refusal> {
        let Some(writer) = self.writer.as_ref().filter(|_| !self.empty) else { return Ok(()) };
        let connected = self.session.is_some();
        let same_client = writer.client_id == request.client_id;
        let known_run = request.runs.is_empty() || request.runs.contains(&writer.run_id);
        if (same_client && known_run) || request.takeover || (request.succeed && !connected) {
            return Ok(());
        }
        if same_client {
            return Err(self.fenced_by_copy(writer).of(writer.run_id, request.run_id));
        }
        let now = if connected { "is connected now" } else { "is not connected now" };
        let ways = match (connected, request.succeed) {
            (true, true) => "unmount it there first, or add -o takeover, which fences it",
            _ => {
                "take it over with -o takeover and init=pull (this folder is filled from the replica) or init=push (this folder \
                 replaces the replica's state)"
            }
        };
        let message = format!(
            "the volume is held by {}, which has it since {} and {now}; {ways}",
            writer.name,
            tandem_runtime::when::utc(self.since_ns)
        );
        Err(Refusal::new(Reason::Held, message).of(&writer.name, &request.client_name))
    }

    fn fenced_by_copy(&self, writer: &Writer) -> Refusal {
        let message = format!(
            "epoch {} was opened at {} by a mount ({}) that has the identity of this one, and that this one knows nothing of: the \
             state directory of one of them is a copy, or an old one. What this mount did not replicate stays in its folder",
            self.tip.epoch,
            tandem_runtime::when::utc(self.since_ns),
            writer.name
        );
        Refusal::new(Reason::Fenced, message)
    }

    /// A run comes back to the epoch that it opened.
    fn handle_return(&self, request: &AttachRequest, epoch: Epoch) -> Result<AttachDecision, Refusal> {
        let current = self.tip.epoch;
        if mutant::is("epoch-unchecked") {
            return Ok(AttachDecision::Resume);
        }
        if epoch < current {
            return Err(self.fenced(epoch));
        }
        if epoch > current {
            let message = format!(
                "the mount has epoch {epoch} and this replica only knows epoch {current}: it is older than the one that was \
                 written to. Mount again, so that both sides are compared in full"
            );
            return Err(Refusal::new(Reason::Diverged, message).of(current, epoch));
        }
        match &self.writer {
            Some(writer) if writer.run_id == request.run_id && writer.client_id == request.client_id => {
                Ok(AttachDecision::Resume)
            }
            _ => Err(self.fenced(epoch)),
        }
    }

    fn fenced(&self, found: Epoch) -> Refusal {
        let by = self.writer.as_ref().map_or("another writer", |writer| &writer.name);
        let message = format!(
            "epoch {found} is fenced: {by} opened epoch {}, {}. What this mount did not replicate stays in its folder",
            self.tip.epoch,
            tandem_runtime::when::utc(self.since_ns)
        );
        Refusal::new(Reason::Fenced, message).of(self.tip.epoch, found)
    }

    /// The epoch is durable.
    pub fn epoch_opened(&mut self, position: Position, writer: Writer) {
        assert!(position.epoch > self.tip.epoch, "an epoch only follows a lower one");
        self.phase = Phase::Opened;
        self.tip = position;
        self.chains = Chains::begin(&position);
        self.writer = Some(writer);
        self.session = None;
    }

    /// The attach is granted. Ends every older session and gives an unfinished staging up; returns the new session.
    pub fn begin_session(&mut self) -> u64 {
        self.end_session();
        self.sessions += 1;
        self.session = Some(self.sessions);
        self.sessions
    }

    /// The session's stream broke, or it left, or was refused. The holder stays the holder.
    pub fn end_session(&mut self) {
        self.session = None;
        if let Phase::Staging { live, .. } = self.phase {
            self.phase = if live { Phase::Live } else { Phase::Opened };
            self.chains = Chains::begin(&self.tip);
        }
    }

    /// Why `session` is not the current one.
    pub fn check_session(&self, session: u64) -> Result<(), Refusal> {
        if self.session == Some(session) {
            return Ok(());
        }
        let current = self.session.map_or("none".to_owned(), |session| session.to_string());
        let message = format!("session {session} has ended: a newer one took its place");
        Err(Refusal::new(Reason::StaleSession, message).of(current, session))
    }

    fn check_legal(&self, session: u64, kind: MessageKind) -> Result<(), Refusal> {
        self.check_session(session)?;
        if legal(&self.phase, kind) {
            return Ok(());
        }
        let phase = match self.phase {
            Phase::Opened => "this epoch has not published yet: begin a resync",
            Phase::Live => "no resync is under way",
            Phase::Staging { .. } => "a resync is under way",
        };
        Err(Refusal::new(Reason::BadRequest, format!("{kind:?} is not legal now: {phase}")))
    }

    /// Decides about ops, and remembers those that it accepts.
    pub fn handle_batch(&mut self, session: u64, batch: &CheckedBatch) -> Result<BatchDecision, Refusal> {
        self.check_legal(session, MessageKind::Batch)?;
        if batch.epoch < self.tip.epoch {
            return Err(self.fenced(batch.epoch));
        }
        if batch.epoch > self.tip.epoch {
            let message = format!("ops of epoch {}, which was not opened here", batch.epoch);
            return Err(Refusal::new(Reason::BadRequest, message).of(self.tip.epoch, batch.epoch));
        }
        let tip = self.accepted_tip();
        let skip = self.known(&tip, batch)?;
        let fresh = &batch.chains[skip..];
        if let Some(chain) = fresh.last().copied() {
            self.chains.extend(fresh);
            self.move_tip(Position { epoch: tip.epoch, seq: batch.last(), chain });
        }
        self.check_invariants();
        Ok(BatchDecision::Accept { skip, staged: matches!(self.phase, Phase::Staging { .. }) })
    }

    /// How many of the ops were accepted before, after checking that they are the same ones.
    fn known(&self, tip: &Position, batch: &CheckedBatch) -> Result<usize, Refusal> {
        let next = tip.seq.next();
        if batch.first() > next {
            let message = format!("the ops from seq {next} on are missing");
            return Err(Refusal::new(Reason::Gap, message).of(next, batch.first()).retry());
        }
        let skip = (next.0 - batch.first().0).min(batch.ops.len() as u64) as usize;
        // The chain is a running hash: if it fits at the last op that both have, all before it are equal too.
        let (seq, found) = match skip {
            0 => (tip.seq, batch.chain_before),
            known => (batch.ops[known - 1].seq, batch.chains[known - 1]),
        };
        match self.chains.at(seq) {
            Some(expected) if expected == found || mutant::is("duplicate-by-seq") => Ok(skip),
            Some(expected) => {
                let message = format!("the history at seq {seq} of epoch {} is another one", tip.epoch);
                Err(Refusal::new(Reason::Diverged, message).of(format!("{expected:?}"), format!("{found:?}")))
            }
            None => {
                let message =
                    format!("seq {seq} is too far back to be checked: attach again and go on at the position");
                Err(Refusal::new(Reason::Gap, message).of(next, batch.first()).retry())
            }
        }
    }

    /// The last op that was accepted, live or staged.
    pub fn accepted_tip(&self) -> Position {
        match self.phase {
            Phase::Staging { tip, .. } => tip,
            Phase::Opened | Phase::Live => self.tip,
        }
    }

    fn move_tip(&mut self, to: Position) {
        match &mut self.phase {
            Phase::Staging { tip, .. } => *tip = to,
            Phase::Opened | Phase::Live => self.tip = to,
        }
    }

    /// Decides about a round.
    pub fn handle_begin(&mut self, session: u64, round: u64, s0: &Position) -> Result<(), Refusal> {
        self.check_legal(session, MessageKind::Begin)?;
        let (expected, live) = match self.phase {
            Phase::Opened => (1, false),
            Phase::Live => (1, true),
            Phase::Staging { round, live, .. } => (round + 1, live),
        };
        if round != 1 && round != expected {
            let message = format!("round {round} begins, and round {expected} would be next");
            return Err(Refusal::new(Reason::BadRequest, message).of(expected, round));
        }
        if s0.seq.0 > SEQ_MAX {
            let message = format!("begin.s0: {} is not the seq of an op", s0.seq);
            return Err(Refusal::new(Reason::BadRequest, message));
        }
        if s0.epoch != self.tip.epoch {
            let message = "the round is of another epoch than the session";
            return Err(Refusal::new(Reason::BadRequest, message).of(self.tip.epoch, s0.epoch));
        }
        // A new staging replaces what an older one held, so only live ops bind it.
        let tip = if round == 1 { self.tip } else { self.accepted_tip() };
        if s0.seq < tip.seq {
            let message = format!("the state of the round is from before seq {}, which the replica has", tip.seq);
            return Err(Refusal::new(Reason::Gap, message).of(tip.seq, s0.seq));
        }
        if s0.seq == tip.seq && s0.chain != tip.chain {
            let message = format!("the history at seq {} of epoch {} is another one", tip.seq, tip.epoch);
            return Err(
                Refusal::new(Reason::Diverged, message).of(format!("{:?}", tip.chain), format!("{:?}", s0.chain))
            );
        }
        self.phase = Phase::Staging { round, tip: *s0, live };
        self.chains = Chains::begin(s0);
        self.check_invariants();
        Ok(())
    }

    /// The disk refused what [`Self::handle_begin`] accepted; the same message will come again.
    pub fn begin_failed(&mut self, round: u64) {
        if let Phase::Staging { live, .. } = self.phase
            && round == 1
        {
            self.phase = if live { Phase::Live } else { Phase::Opened };
            self.chains = Chains::begin(&self.tip);
        } else if let Phase::Staging { round: current, .. } = &mut self.phase
            && *current == round
        {
            *current -= 1;
        }
    }

    /// Decides about staged state.
    pub fn handle_stage(&self, session: u64) -> Result<(), Refusal> {
        self.check_legal(session, MessageKind::Stage)
    }

    /// Decides about a publish. When it is durable, call [`Self::published`].
    pub fn handle_publish(&self, session: u64, round: u64, position: &Position) -> Result<(), Refusal> {
        self.check_legal(session, MessageKind::Publish)?;
        let Phase::Staging { round: current, tip, .. } = self.phase else { return Ok(()) };
        if round != current {
            let message = format!("round {round} would be published, and round {current} is under way");
            return Err(Refusal::new(Reason::BadRequest, message).of(current, round));
        }
        if *position != tip {
            let reason = if position.seq == tip.seq { Reason::Diverged } else { Reason::Gap };
            let message = format!("position {position} would be published, and the last staged op is {tip}");
            return Err(Refusal::new(reason, message).of(format!("{tip:?}"), format!("{position:?}")));
        }
        Ok(())
    }

    /// The staging became the replica's state, durably.
    pub fn published(&mut self, position: Position) {
        self.phase = Phase::Live;
        self.tip = position;
        self.empty = false;
        self.check_invariants();
    }

    fn check_invariants(&self) {
        let tip = self.accepted_tip();
        assert_eq!(self.chains.at(tip.seq), Some(tip.chain), "the remembered chain ends at the tip");
        assert!(!self.tip.is_before(&Position { epoch: tip.epoch, ..Position::default() }), "the tip is of this epoch");
        assert!(tip.seq >= self.tip.seq, "a staging never goes behind the live ops");
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
