//! What a volume accepts from its writers, fed with events: true continuations, replays, lies, restarts, and messages of any bytes.
//!
//! An input is a program: each step is a byte that says what happens and one or two that say how. The receiver must refuse or accept, and
//! keep its promises: what it accepts moves its tip forward within an epoch, a known op is accepted as the same one only, and a restart
//! remembers what was live.

use prost::Message as _;
use tandem_proto::{
    chain::Chain,
    convert,
    ids::Uuid,
    pb::{self, client_message::Body},
    position::{Epoch, Position, Seq},
};
use tandem_storaged::ingest::{
    incoming::{AttachRequest, CheckedBatch, Incoming},
    receiver::{AttachDecision, BatchDecision, Durable, Phase, Receiver},
};

/// Steps of one input: more find nothing new.
const STEPS_MAX: usize = 400;
/// Ops of a true batch.
const OPS_MAX: u64 = 5;

/// Bytes of the input, one after the other.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
}

/// The receiver, and a writer who knows how to go on.
struct World {
    receiver: Receiver,
    session: u64,
    round: u64,
    /// What was sent last, to be sent again.
    last: Option<pb::Batch>,
    depth: u64,
}

/// Programs that get far.
pub fn seeds() -> Vec<Vec<u8>> {
    // Attach, begin, stage ops, publish; then live ops, some of them again; a restart, and the same run again.
    let first = [0, 0, 2, 0, 3, 2, 4, 0, 3, 3, 5, 0, 3, 1, 7, 0, 0, 0, 3, 2];
    // Two writers that fence each other, with rounds that are given up.
    let second = [0, 0, 2, 0, 4, 0, 3, 1, 0, 0x11, 2, 1, 2, 3, 8, 0, 1, 0, 0, 0x20, 2, 0, 4, 0, 3, 9];
    let attach = pb::ClientMessage { body: Some(Body::Barrier(pb::Barrier { session: 1, token: 3 })) };
    let mut third = vec![0, 0, 6, 0];
    third.extend(attach.encode_length_delimited_to_vec());
    // A second round that the disk refuses again and again (found by libFuzzer).
    let fourth = [0, 0, 2, 0, 2, 0, 8, 0, 8, 0, 8, 0, 2, 0];
    vec![first.to_vec(), second.to_vec(), third, fourth.to_vec()]
}

/// Runs a program. How many of its steps were accepted.
pub fn run(input: &[u8]) -> u64 {
    let receiver = Receiver::new(Durable { empty: true, ..Durable::default() });
    let mut world = World { receiver, session: 0, round: 0, last: None, depth: 1 };
    let mut script = Script(input);
    for _ in 0..STEPS_MAX {
        let Some(step) = script.byte() else { break };
        let before = world.receiver.accepted_tip();
        if world.step(step % 9, &mut script).is_some() {
            world.depth += 1;
        }
        let after = world.receiver.accepted_tip();
        assert!(after.epoch >= before.epoch, "an epoch came back: {before} became {after}");
    }
    world.depth
}

impl World {
    /// `None`: it was refused, or there was nothing to do.
    fn step(&mut self, what: u8, script: &mut Script<'_>) -> Option<()> {
        let how = script.byte().unwrap_or_default();
        match what {
            0 => self.attach(how),
            1 => {
                self.receiver.end_session();
                Some(())
            }
            2 => self.begin(how),
            3 => self.batch(how),
            4 => self.publish(how),
            5 => self.again(how),
            6 => self.message(script),
            7 => {
                let durable = self.receiver.durable();
                let tip = self.receiver.tip();
                self.receiver = Receiver::new(durable);
                assert_eq!(self.receiver.tip(), tip, "a restart remembers what was live");
                Some(())
            }
            _ => {
                self.receiver.begin_failed(self.round);
                self.round = match self.receiver.phase() {
                    Phase::Staging { round, .. } => round,
                    Phase::Opened | Phase::Live => 0,
                };
                Some(())
            }
        }
    }

    fn attach(&mut self, how: u8) -> Option<()> {
        let current = self.receiver.tip().epoch;
        let request = AttachRequest {
            protocol: tandem_proto::limits::PROTOCOL_VERSION,
            client_id: Uuid([how & 1; 16]),
            client_name: "a client".to_owned(),
            run_id: Uuid([how >> 1 & 3; 16]),
            epoch: (how & 8 != 0).then_some(Epoch(current.0 ^ u64::from(how >> 7))),
            takeover: how & 16 != 0,
            succeed: how & 32 != 0,
            runs: if how & 64 != 0 { vec![Uuid([1; 16])] } else { Vec::new() },
            ..AttachRequest::default()
        };
        if let AttachDecision::Open { position, writer } = self.receiver.handle_attach(&request).ok()? {
            self.receiver.epoch_opened(position, writer);
        }
        self.session = self.receiver.begin_session();
        self.round = 0;
        Some(())
    }

    /// A position that is the tip, or near it, or a lie.
    fn near(&self, how: u8) -> Position {
        let tip = self.receiver.accepted_tip();
        match how % 5 {
            0 | 1 => tip,
            2 => Position { seq: tip.seq.plus(u64::from(how)), chain: Chain([how; 16]), ..tip },
            3 => Position { chain: Chain([how; 16]), ..tip },
            _ => Position { epoch: Epoch(tip.epoch.0 + 1), seq: Seq(u64::MAX), chain: tip.chain },
        }
    }

    fn begin(&mut self, how: u8) -> Option<()> {
        let round = if how & 128 != 0 { 1 } else { self.round + 1 };
        self.receiver.handle_begin(self.session, round, &self.near(how)).ok()?;
        self.round = round;
        Some(())
    }

    fn publish(&mut self, how: u8) -> Option<()> {
        let position = self.near(how);
        self.receiver.handle_publish(self.session, self.round, &position).ok()?;
        assert_eq!(position, self.receiver.accepted_tip(), "what is published is what was accepted");
        self.receiver.published(position);
        assert_eq!(self.receiver.phase(), Phase::Live);
        Some(())
    }

    /// Ops that follow the tip, changed by some bits of `how`.
    fn batch(&mut self, how: u8) -> Option<()> {
        let tip = self.receiver.accepted_tip();
        let ops = 1 + u64::from(how) % OPS_MAX;
        let mut chain = tip.chain;
        let mut scratch = Vec::new();
        let made: Vec<pb::Op> = (1..=ops)
            .map(|at| {
                let origin = pb::Origin { pid: u32::from(how), ..Default::default() };
                let op = pb::Op { origin: Some(origin), changes: Vec::new() };
                chain = convert::chain_after(&chain, Seq(tip.seq.0.saturating_add(at)), &op, &mut scratch);
                op
            })
            .collect();
        let lie = |bit: u8| u64::from(how >> bit & 1);
        let batch = pb::Batch {
            session: self.session,
            epoch: tip.epoch.0.wrapping_add(lie(7)),
            first_seq: tip.seq.0.saturating_add(1 + lie(6)),
            chain_before: tip.chain.0.to_vec().into(),
            chain_after: chain.0.to_vec().into(),
            ops: made,
        };
        self.last = Some(batch.clone());
        self.accept(batch)
    }

    /// The last batch again: whole, or without its first op.
    fn again(&mut self, how: u8) -> Option<()> {
        let mut batch = self.last.clone()?;
        if how & 1 != 0 && batch.ops.len() > 1 {
            let mut scratch = Vec::new();
            let before = convert::chain("chain", &batch.chain_before).ok()?;
            let first = convert::chain_after(&before, Seq(batch.first_seq), &batch.ops.remove(0), &mut scratch);
            batch.chain_before = first.0.to_vec().into();
            batch.first_seq += 1;
        }
        batch.session = self.session;
        self.accept(batch)
    }

    fn accept(&mut self, batch: pb::Batch) -> Option<()> {
        let checked = CheckedBatch::check(batch).ok()?;
        let before = self.receiver.accepted_tip();
        let BatchDecision::Accept { skip, staged } = self.receiver.handle_batch(self.session, &checked).ok()?;
        let after = self.receiver.accepted_tip();
        let fresh = (checked.ops.len() - skip) as u64;
        assert_eq!(after.seq.0, before.seq.0 + fresh, "each op is accepted once");
        assert_eq!(staged, matches!(self.receiver.phase(), Phase::Staging { .. }));
        if fresh > 0 {
            assert_eq!((after.epoch, after.seq), (checked.epoch, checked.last()), "and in order");
        }
        Some(())
    }

    /// A message of any bytes.
    fn message(&mut self, script: &mut Script<'_>) -> Option<()> {
        let message = pb::ClientMessage::decode_length_delimited(&mut script.0).ok()?;
        let (_, incoming) = Incoming::check(message).ok()?;
        match incoming {
            Incoming::Batch(batch) => self.receiver.handle_batch(self.session, &batch).ok().map(|_| ()),
            Incoming::Begin { round, s0, .. } => {
                self.receiver.handle_begin(self.session, round, &s0).ok()?;
                self.round = round;
                Some(())
            }
            Incoming::Stage(_) => self.receiver.handle_stage(self.session).ok(),
            Incoming::Publish { round, position } => {
                self.receiver.handle_publish(self.session, round, &position).ok()?;
                self.receiver.published(position);
                Some(())
            }
            _ => Some(()),
        }
    }
}
