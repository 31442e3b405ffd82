//! Streaming: batches, rounds of a resync, and their acknowledgements.

use std::sync::Arc;

use tandem_proto::{
    Epoch, Op, Position, Seq, convert,
    limits::{BATCH_MAX_COPIES, BATCH_MAX_OPS, BATCH_TARGET_BYTES, FEATURE_COPY_RUNS, FEATURE_GROUPS},
    pb::{self, client_message::Body},
};
use tandem_runtime::{memory, mutant};

use crate::{
    commit::Commit,
    link::{
        core::{
            Effect, IN_FLIGHT_MAX_BYTES, IN_FLIGHT_MIN_BYTES, LinkCore, Phase, Round, RoundStage, Stream,
            early::{self, Gate, Queue, Way},
        },
        state::LinkState,
    },
    resync::plan::{Manner, Next, Plan, Step},
};

/// Inodes of a resync from which on its memory is given back at once.
const MANY: u64 = 20_000;
/// From this round on a resync that does not get smaller says so.
const ROUNDS_PATIENCE: u64 = 3;
/// Rounds of a resync after which what comes in is sent as it is.
const EARLY_ROUNDS_MAX: u64 = 8;

impl LinkCore {
    /// Begins a resync: the first round of a staging.
    pub(super) fn begin_round(&mut self) {
        let now = self.now;
        let Phase::Streaming(stream) = &mut self.phase else { return };
        let (frozen, taken) = self.commit.freeze();
        let mut plan = Plan::new(&taken, stream.empty);
        if stream.staged {
            plan.ask_for_all();
        }
        if early::is_slow(self.rate) && stream.features & FEATURE_GROUPS != 0 {
            plan.save_bytes();
        }
        let early = std::mem::take(&mut stream.early);
        let manner = plan.manner();
        let begin = pb::ResyncBegin {
            session: stream.session,
            round: 1,
            full: frozen.unknown_ids,
            s0: Some((&frozen.s0).into()),
        };
        (stream.sent, stream.sent_chain) = (frozen.s0.seq, frozen.s0.chain);
        stream.in_flight.clear();
        (stream.in_flight_bytes, stream.held_back, stream.copying) = (0, false, None);
        stream.round = Some(Round {
            number: 1,
            plan,
            manner,
            stage: RoundStage::Reading,
            begin: Some(begin),
            left: taken.cells(),
            moves_until: None,
            full: frozen.unknown_ids,
            early,
            began: now,
        });
        (stream.gate, stream.gated) = (Gate::default(), false);
        self.rounds += 1;
        self.early_rounds += u64::from(early);
        let (state, why) = match (stream.empty, early) {
            (true, _) => (LinkState::Initial, "first sync"),
            (false, true) => (LinkState::CatchingUp, "the link is slow: what waits is offered by digest first"),
            (false, false) => (LinkState::CatchingUp, "sending what changed while the stream was interrupted"),
        };
        self.become_state(state, why);
    }

    /// The window gave up in the middle: a further round over what it dropped.
    pub(super) fn continue_round(&mut self) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        let Some(round) = &mut stream.round else { return };
        let (frozen, taken) = self.commit.freeze();
        let left = taken.cells();
        if round.number >= ROUNDS_PATIENCE && left >= round.left {
            self.reason = format!(
                "the link is slower than the writer: round {} of this resync has {left} cells to send, as many as the one before; \
                 it goes on, falling behind (congestion=throttle would slow the writer)",
                round.number + 1
            );
        }
        round.left = left;
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
        (stream.in_flight_bytes, stream.held_back, stream.copying) = (0, false, None);
        (stream.gate, stream.gated) = (Gate::default(), false);
        self.rounds += 1;
    }

    /// The next message for the storage daemon, if there is one. Stage records and barriers come from the steps instead.
    pub fn poll_message(&mut self) -> Option<pb::ClientMessage> {
        self.settle();
        if self.copies_in_round() || self.pass_gate() == Way::Resync {
            self.commit.give_up_window();
            self.settle();
        }
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
                        None => match stream.check_message(&self.commit) {
                            Some(check) => Some(Body::Verify(check)),
                            None if self.resting => None,
                            None => {
                                let epoch = self.epoch.unwrap_or_default();
                                let batch = stream.batch_message(&self.commit, epoch).map(Body::Batch);
                                batch.or_else(|| stream.closed_message(&self.commit, epoch).map(Body::Closed))
                            }
                        },
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
        if round.begin.is_some() || round.stage != RoundStage::Reading {
            return None;
        }
        if !commit.is_keeping() {
            // Another round will follow, and finds what this one began.
            let Next::Step(step) = round.plan.drain() else { return None };
            return Some((step, round.manner, session));
        }
        loop {
            match round.plan.poll() {
                Next::Step(step) => return Some((step, round.manner, session)),
                Next::Wait if !mutant::is("publish-half") => return None,
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
                Next::Wait | Next::Done => {
                    // A slot of its own: the position that is published was nobody's before, so whoever waits for it waits for
                    // this state, also when the application did nothing since the epoch began.
                    let slot = commit.reserve();
                    let s1 = if mutant::is("early-s1") { Seq(0) } else { slot.seq() };
                    slot.void();
                    round.stage = RoundStage::Sending { s1 };
                    return None;
                }
            }
        }
    }

    /// A copy that was committed just when a round began: what it copies is not on the replica yet, so its cells become dirty instead.
    fn copies_in_round(&self) -> bool {
        let Phase::Streaming(stream) = &self.phase else { return false };
        let Some(round) = &stream.round else { return false };
        let next = || self.commit.take(stream.sent, 1, 1).is_some_and(|taken| taken.ops.iter().any(|op| op.copies()));
        round.begin.is_none() && round.stage != RoundStage::Publishing && self.commit.is_keeping() && next()
    }

    /// Whether what waits may be sent as it is, see [`early`].
    fn pass_gate(&mut self) -> Way {
        let (now, rate) = (self.now, self.rate);
        // Who asked for slow writers instead of a replica that falls behind gets those.
        let allowed = self.experience.allows(now) && !self.commit.throttles();
        let Phase::Streaming(stream) = &mut self.phase else { return Way::Send };
        let reading = stream.round.as_ref().is_some_and(|round| round.stage == RoundStage::Reading);
        let publishing = stream.round.as_ref().is_some_and(|round| round.stage == RoundStage::Publishing);
        stream.slow = early::is_slow(rate);
        stream.in_flight_max = match rate {
            Some(rate) if stream.slow => (rate as usize / 4).clamp(IN_FLIGHT_MIN_BYTES, IN_FLIGHT_MAX_BYTES),
            _ => IN_FLIGHT_MAX_BYTES,
        };
        let Some(rate) =
            rate.filter(|_| stream.slow && allowed && !publishing && stream.features & FEATURE_GROUPS != 0)
        else {
            stream.gated &= !self.commit.is_keeping();
            return Way::Send;
        };
        stream.gated &= !self.commit.is_keeping();
        if !self.commit.is_keeping() || self.commit.is_waited_for() {
            // Who waits for the replica waits for these bytes, whatever they come to.
            return Way::Send;
        }
        let Some(next) = self.commit.take(stream.sent, 1, 1) else { return Way::Send };
        let Some(op) = next.ops.first() else { return Way::Send };
        let (cuts, bulk) = early::kind_of(op);
        let (window, _) = self.commit.window_bytes();
        let queue = Queue {
            rate,
            filled: self.commit.filled(),
            unsent_bytes: (window as u64).saturating_sub(stream.in_flight_bytes as u64),
            in_flight_bytes: stream.in_flight_bytes as u64,
            cuts,
            bulk,
        };
        let way = match stream.gate.decide(op.seq, &queue, now) {
            // What is read now belongs to the round that is read; the rest is decided when that is done.
            Way::Resync if reading => Way::Hold,
            Way::Resync if stream.round.as_ref().is_some_and(|round| !round.saves()) => Way::Send,
            way => way,
        };
        stream.gated = way != Way::Send;
        stream.early = way == Way::Resync && stream.round.is_none();
        way
    }

    /// Begins a resync, or a further round, when the window gave up.
    pub(super) fn settle(&mut self) {
        let Phase::Streaming(stream) = &self.phase else { return };
        let (due, first) = match &stream.round {
            None => (self.commit.needs_resync(), true),
            Some(round) => {
                // A file that waits for bytes is sent again from its beginning if they do not come first; that is less than all files.
                let drains = !round.plan.is_drained() && !self.commit.is_crowded();
                let reading = round.stage == RoundStage::Reading && drains;
                let busy = round.stage == RoundStage::Publishing || round.plan.is_busy() || round.begin.is_some();
                (!self.commit.is_keeping() && !reading && !busy, false)
            }
        };
        if !due || self.awaits_pause() {
            return;
        }
        if first { self.begin_round() } else { self.continue_round() }
    }

    /// The window overflowed, and what a slow link could not carry is better read when it is whole: is its writer still at it?
    fn awaits_pause(&mut self) -> bool {
        let (now, allowed) = (self.now, self.experience.allows(self.now) && !self.commit.throttles());
        let (filled, (_, limit)) = (self.commit.filled(), self.commit.window_bytes());
        let overflowed = !self.commit.is_keeping();
        let Phase::Streaming(stream) = &mut self.phase else { return false };
        let slow = self.rate.filter(|rate| early::is_slow(Some(*rate)) && stream.features & FEATURE_GROUPS != 0);
        let Some(rate) = slow.filter(|_| allowed && overflowed) else { return false };
        stream.early = stream.round.is_none();
        stream.gated = stream.gate.awaits_pause(rate, limit as u64, filled, now);
        stream.gated
    }

    pub(super) fn handle_ack(&mut self, ack: &pb::Ack) {
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
        stream.copying = stream.copying.filter(|last| *last > settled);
        while let Some((last, bytes)) = stream.in_flight.front() {
            if *last > settled {
                break;
            }
            stream.in_flight_bytes -= bytes;
            stream.in_flight.pop_front();
        }
        if stream.in_flight_bytes < stream.in_flight_max / 2 {
            stream.held_back = false;
        }
    }

    pub(super) fn handle_published(&mut self, position: Position) -> Result<(), String> {
        let Phase::Streaming(stream) = &mut self.phase else { return Err("Published without a stream".into()) };
        let Some(round) = stream.round.take_if(|round| round.stage == RoundStage::Publishing) else {
            return Err("Published without a Publish".into());
        };
        if round.early {
            let done = round.plan.progress();
            self.experience.learn(done.bytes_done, done.bytes_sent, self.now);
        }
        if (position.seq, position.chain) != (stream.sent, stream.sent_chain) {
            return Err(format!("published {position}, but {} was asked for", stream.sent));
        }
        (stream.empty, stream.staged) = (false, false);
        stream.in_flight.clear();
        (stream.in_flight_bytes, stream.held_back, stream.copying) = (0, false, None);
        self.listed += round.plan.progress().listed;
        self.nodes += round.plan.progress().nodes_done;
        let many = round.plan.progress().nodes_done > MANY;
        self.commit.published(position);
        drop(round);
        if many {
            memory::give_back();
        }
        (self.mistakes, self.full_refusals) = (0, 0);
        if !self.ever_published {
            self.ever_published = true;
            self.config.replace = false;
            self.effects.push_back(Effect::SaveFloor);
        }
        self.become_state(LinkState::Live, "");
        Ok(())
    }
}

impl Round {
    /// Whether digests have paid so far, so that a further round may offer what came meanwhile instead of sending it.
    fn saves(&self) -> bool {
        let done = self.plan.progress();
        self.number < EARLY_ROUNDS_MAX && done.bytes_sent <= done.bytes_done / 2
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

    /// What the verifier asks at this place of a live stream.
    fn check_message(&self, commit: &Commit) -> Option<pb::VerifyCheck> {
        if self.round.is_some() {
            return None;
        }
        let check = commit.desk().take_check(self.sent)?;
        Some(pb::VerifyCheck { session: self.session, ..check })
    }

    /// What the hooks of the replica want to know.
    fn closed_message(&self, commit: &Commit, epoch: Epoch) -> Option<pb::Closed> {
        let (seq, ids) = commit.closings().take(self.sent)?;
        let ids = ids.iter().map(|id| bytes::Bytes::copy_from_slice(id.as_bytes())).collect();
        Some(pb::Closed { session: self.session, epoch: epoch.0, seq: seq.0, ids })
    }

    /// Cuts a batch at its copies, where it has to be; whether copies are left in it.
    ///
    /// A copy is made of what all ops before it led to, so the replica makes them one by one. While it does, those that follow gather, and
    /// go together: a batch and its acknowledgement cost more than a copy. Whoever waits for the replica does not wait for that.
    fn copies_of(&self, ops: &mut Vec<Arc<Op>>, waited_for: bool) -> bool {
        let Some(first) = ops.iter().position(|op| op.copies()) else { return false };
        if self.round.is_some() || self.features & FEATURE_COPY_RUNS == 0 {
            ops.truncate(first.max(1));
            return first == 0;
        }
        if self.copying.is_some() && !waited_for {
            ops.truncate(first);
            return false;
        }
        let beyond = ops.iter().enumerate().filter(|(_, op)| op.copies()).nth(BATCH_MAX_COPIES);
        if let Some((at, _)) = beyond {
            ops.truncate(at);
        }
        true
    }

    fn batch_message(&mut self, commit: &Commit, epoch: Epoch) -> Option<pb::Batch> {
        // Between Publish and Published nothing is sent: the batch would belong to neither staging nor stream.
        if self.round.as_ref().is_some_and(|round| round.stage == RoundStage::Publishing) {
            return None;
        }
        if self.held_back || self.gated {
            return None;
        }
        let mut taken = commit.desk().up_to_next(self.sent, |room| {
            let most = usize::try_from(room).unwrap_or(usize::MAX).min(BATCH_MAX_OPS);
            commit.take(self.sent, BATCH_TARGET_BYTES, most)
        })?;
        let copies = self.copies_of(&mut taken.ops, commit.is_waited_for());
        if taken.ops.is_empty() {
            return None;
        }
        if self.slow {
            // What is small goes before the gate is asked about what is not.
            let bulk = taken.ops.iter().skip(1).position(|op| matches!(early::kind_of(op), (true, _) | (_, true)));
            taken.ops.truncate(bulk.map_or(usize::MAX, |at| at + 1));
        }
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
        if copies {
            self.copying = Some(last);
        }
        self.in_flight.push_back((last, bytes));
        self.in_flight_bytes += bytes;
        self.held_back = self.in_flight_bytes > self.in_flight_max;
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
