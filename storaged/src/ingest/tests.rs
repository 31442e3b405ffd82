//! What the receiver promises: exactly once, in order, along one chain, one writer.

use proptest::prelude::{any, prop, proptest};
use tandem_proto::{
    chain::Chain,
    convert,
    ids::Uuid,
    op::Op,
    pb,
    position::{Epoch, Position, Seq},
};

use super::{AttachDecision, BatchDecision, CHAINS_MAX, Chains, Durable, Phase, Receiver};
use crate::ingest::{
    incoming::{AttachRequest, CheckedBatch},
    refusal::Reason,
};

fn request(client: u8, run: u8, epoch: Option<Epoch>) -> AttachRequest {
    AttachRequest {
        protocol: tandem_proto::limits::PROTOCOL_VERSION,
        client_id: Uuid([client; 16]),
        client_name: format!("client {client}"),
        run_id: Uuid([run; 16]),
        epoch,
        ..AttachRequest::default()
    }
}

fn open(receiver: &mut Receiver, client: u8, run: u8) -> u64 {
    match receiver.handle_attach(&request(client, run, None)).expect("granted") {
        AttachDecision::Open { position, writer } => receiver.epoch_opened(position, writer),
        AttachDecision::Resume => panic!("a new epoch was asked for"),
    }
    receiver.begin_session()
}

/// A sender's view: every op there is, and the chain after each.
struct History {
    begin: Position,
    ops: Vec<(Op, Chain)>,
}

impl History {
    fn new(begin: Position, len: u64, salt: u32) -> Self {
        let (mut chain, mut scratch) = (begin.chain, Vec::new());
        let ops = (1..=len)
            .map(|number| {
                let seq = begin.seq.plus(number);
                let mut op = Op { seq, origin: Default::default(), changes: Default::default() };
                op.origin.pid = salt;
                chain = convert::chain_after(&chain, seq, &pb::Op::from(&op), &mut scratch);
                (op, chain)
            })
            .collect();
        History { begin, ops }
    }

    fn position(&self, ops: usize) -> Position {
        match ops {
            0 => self.begin,
            n => Position { epoch: self.begin.epoch, seq: self.begin.seq.plus(n as u64), chain: self.ops[n - 1].1 },
        }
    }

    fn batch(&self, range: std::ops::Range<usize>) -> CheckedBatch {
        let message = pb::Batch {
            session: 1,
            epoch: self.begin.epoch.0,
            first_seq: self.ops[range.start].0.seq.0,
            chain_before: self.position(range.start).chain.0.to_vec().into(),
            chain_after: self.position(range.end).chain.0.to_vec().into(),
            ops: self.ops[range].iter().map(|(op, _)| op.into()).collect(),
        };
        CheckedBatch::check(message).expect("as it was sent")
    }
}

fn live(receiver: &mut Receiver) -> u64 {
    let session = open(receiver, 1, 1);
    let tip = receiver.tip();
    receiver.handle_begin(session, 1, &tip).expect("first round");
    receiver.handle_publish(session, 1, &tip).expect("published");
    receiver.published(tip);
    session
}

fn empty() -> Receiver {
    Receiver::new(Durable { empty: true, ..Default::default() })
}

#[test]
fn live_ops_before_the_first_publish_are_refused() {
    let mut receiver = empty();
    let session = open(&mut receiver, 1, 1);
    let history = History::new(receiver.tip(), 3, 0);
    let refusal = receiver.handle_batch(session, &history.batch(0..3)).expect_err("not published");
    assert_eq!(refusal.reason, Reason::BadRequest);
}

#[test]
fn a_staging_collects_ops_and_publish_makes_them_the_tip() {
    let mut receiver = empty();
    let session = open(&mut receiver, 1, 1);
    let history = History::new(receiver.tip(), 9, 0);
    receiver.handle_begin(session, 1, &history.position(2)).expect("begun behind two ops that are in the state");
    let accepted = receiver.handle_batch(session, &history.batch(2..5)).expect("staged");
    assert_eq!(accepted, BatchDecision::Accept { skip: 0, staged: true });
    assert!(receiver.is_empty());
    // The window overflowed: the next round begins later.
    receiver.handle_begin(session, 2, &history.position(7)).expect("second round");
    receiver.handle_batch(session, &history.batch(7..8)).expect("staged");
    assert_eq!(receiver.handle_publish(session, 2, &history.position(7)).expect_err("not the tip").reason, Reason::Gap);
    assert_eq!(
        receiver.handle_publish(session, 1, &history.position(8)).expect_err("other round").reason,
        Reason::BadRequest
    );
    receiver.handle_publish(session, 2, &history.position(8)).expect("published");
    receiver.published(history.position(8));
    assert_eq!(receiver.phase(), Phase::Live);
    let accepted = receiver.handle_batch(session, &history.batch(8..9)).expect("live");
    assert_eq!(accepted, BatchDecision::Accept { skip: 0, staged: false });
}

#[test]
fn a_broken_staging_goes_back_to_where_it_came_from() {
    let mut receiver = empty();
    let session = live(&mut receiver);
    let history = History::new(receiver.tip(), 9, 0);
    receiver.handle_batch(session, &history.batch(0..2)).expect("live");
    receiver.handle_begin(session, 1, &history.position(4)).expect("begun");
    receiver.handle_batch(session, &history.batch(4..6)).expect("staged");
    receiver.end_session();
    assert_eq!((receiver.phase(), receiver.tip()), (Phase::Live, history.position(2)));
    let session = receiver.begin_session();
    receiver.handle_batch(session, &history.batch(1..4)).expect("goes on at the tip");
    assert_eq!(receiver.tip(), history.position(4));
}

#[test]
fn gap_divergence_and_other_epochs_are_refused_with_what_was_expected() {
    let mut receiver = empty();
    let session = live(&mut receiver);
    let history = History::new(receiver.tip(), 9, 0);
    receiver.handle_batch(session, &history.batch(0..4)).expect("live");
    let gap = receiver.handle_batch(session, &history.batch(5..6)).expect_err("4 is missing");
    assert_eq!((gap.reason, gap.expected.as_str(), gap.found.as_str()), (Reason::Gap, "5", "6"));
    let other = History::new(history.begin, 9, 7);
    for range in [4..6, 0..2, 2..9] {
        let refusal = receiver.handle_batch(session, &other.batch(range)).expect_err("another history");
        assert_eq!(refusal.reason, Reason::Diverged);
    }
    let older = History::new(Position { epoch: Epoch(0), ..history.begin }, 9, 0);
    assert_eq!(receiver.handle_batch(session, &older.batch(4..5)).expect_err("old").reason, Reason::Fenced);
    assert_eq!(receiver.tip(), history.position(4), "no refused batch moved it");
}

#[test]
fn a_newer_session_ends_the_older_one() {
    let mut receiver = empty();
    let old = live(&mut receiver);
    let history = History::new(receiver.tip(), 2, 0);
    let epoch = receiver.tip().epoch;
    assert_eq!(receiver.handle_attach(&request(1, 1, Some(epoch))).expect("same run"), AttachDecision::Resume);
    let new = receiver.begin_session();
    let refusal = receiver.handle_batch(old, &history.batch(0..1)).expect_err("late bytes");
    assert_eq!(refusal.reason, Reason::StaleSession);
    receiver.handle_batch(new, &history.batch(0..1)).expect("current");
}

#[test]
fn a_newer_epoch_fences_the_older_for_ever() {
    let mut receiver = empty();
    live(&mut receiver);
    let old = receiver.tip().epoch;
    assert_eq!(receiver.handle_attach(&request(2, 2, None)).expect_err("held").reason, Reason::Held);
    let takeover = AttachRequest { takeover: true, ..request(2, 2, None) };
    match receiver.handle_attach(&takeover).expect("takeover") {
        AttachDecision::Open { position, writer } => receiver.epoch_opened(position, writer),
        AttachDecision::Resume => panic!("a new epoch was asked for"),
    }
    receiver.begin_session();
    assert_eq!(receiver.handle_attach(&request(1, 1, Some(old))).expect_err("old run").reason, Reason::Fenced);
    // Also after a restart, and also for another run that claims the new epoch.
    let receiver = Receiver::new(receiver.durable());
    assert_eq!(receiver.handle_attach(&request(1, 1, Some(old))).expect_err("old run").reason, Reason::Fenced);
    let stolen = request(1, 1, Some(Epoch(old.0 + 1)));
    assert_eq!(receiver.handle_attach(&stolen).expect_err("not its epoch").reason, Reason::Fenced);
    let unknown = request(2, 2, Some(Epoch(old.0 + 9)));
    assert_eq!(receiver.handle_attach(&unknown).expect_err("an older replica").reason, Reason::Diverged);
}

#[test]
fn who_succeeds_a_writer_that_left_does_not_fence_one_that_is_connected() {
    let mut receiver = empty();
    live(&mut receiver);
    receiver.note_since(1_795_238_269_000_000_000);
    let succeed = AttachRequest { succeed: true, ..request(2, 2, None) };
    let refusal = receiver.handle_attach(&succeed).expect_err("the holder is connected");
    assert_eq!(refusal.reason, Reason::Held);
    for part in ["client 1", "2026-11-21 05:17:49 UTC", "connected now", "takeover"] {
        assert!(refusal.message.contains(part), "{part:?} is missing: {refusal}");
    }
    receiver.end_session();
    assert_eq!(receiver.handle_attach(&request(2, 2, None)).expect_err("no claim").reason, Reason::Held);
    receiver.handle_attach(&succeed).expect("nobody is disturbed");
}

#[test]
fn a_copy_of_a_clients_state_is_fenced_by_the_other_copy() {
    let mut receiver = empty();
    live(&mut receiver);
    let run = |byte: u8| Uuid([byte; 16]);
    // The original goes on as run 3; the copy only knows of run 1.
    receiver.handle_attach(&AttachRequest { runs: vec![run(1), run(3)], ..request(1, 3, None) }).expect("it was run 1");
    open(&mut receiver, 1, 3);
    let copy = AttachRequest { runs: vec![run(1), run(4)], ..request(1, 4, None) };
    let refusal = receiver.handle_attach(&copy).expect_err("run 3 wrote meanwhile");
    assert_eq!(refusal.reason, Reason::Fenced);
    assert!(refusal.message.contains("copy"), "{refusal}");
    receiver.handle_attach(&AttachRequest { takeover: true, ..copy }).expect("somebody decided");
}

#[test]
fn claims_that_the_network_kept_back_fence_nobody() {
    let mut receiver = empty();
    live(&mut receiver);
    let run = |byte: u8| Uuid([byte; 16]);
    let old = AttachRequest { runs: vec![run(1)], ..request(1, 1, None) };
    assert_eq!(receiver.handle_attach(&old).expect("its own epoch"), AttachDecision::Resume);
    receiver.handle_attach(&AttachRequest { runs: vec![run(1), run(2)], ..request(1, 2, None) }).expect("the next run");
    open(&mut receiver, 1, 2);
    assert_eq!(receiver.handle_attach(&old).expect_err("an older run").reason, Reason::Fenced);
}

#[test]
fn a_seq_that_nobody_can_count_on_from_is_refused() {
    let mut receiver = empty();
    let session = open(&mut receiver, 1, 1);
    let s0 = Position { seq: Seq(u64::MAX), ..receiver.tip() };
    assert_eq!(receiver.handle_begin(session, 1, &s0).expect_err("nonsense").reason, Reason::BadRequest);
}

#[test]
fn the_same_client_comes_back_with_a_new_run_at_once() {
    let mut receiver = empty();
    live(&mut receiver);
    let before = receiver.tip();
    open(&mut receiver, 1, 9);
    assert!(before.is_before(&receiver.tip()));
    assert_eq!(receiver.phase(), Phase::Opened);
}

#[test]
fn chains_that_are_too_old_are_a_gap_and_memory_is_bounded() {
    let mut chains = Chains::begin(&Position::default());
    chains.extend(&vec![Chain([1; 16]); 2 * CHAINS_MAX]);
    assert_eq!(chains.after.len(), CHAINS_MAX);
    assert_eq!(chains.at(Seq(2 * CHAINS_MAX as u64)), Some(Chain([1; 16])));
    assert_eq!(chains.at(Seq(5)), None);
    assert_eq!(chains.at(Seq(2 * CHAINS_MAX as u64 + 1)), None);
}

#[test]
fn a_flipped_bit_in_a_batch_is_noticed() {
    let history = History::new(Position { epoch: Epoch(1), ..Default::default() }, 3, 0);
    let mut ops: Vec<pb::Op> = history.ops.iter().map(|(op, _)| op.into()).collect();
    ops[1].origin = Some(pb::Origin { uid: 1, ..Default::default() });
    let message = pb::Batch {
        session: 1,
        epoch: 1,
        first_seq: 1,
        chain_before: vec![0; 16].into(),
        chain_after: history.position(3).chain.0.to_vec().into(),
        ops,
    };
    assert_eq!(CheckedBatch::check(message).expect_err("changed").reason, Reason::Diverged);
}

proptest! {
    /// Whatever is cut, repeated, reordered and reconnected: each op is accepted once, in order.
    #[test]
    fn ops_are_accepted_exactly_once_and_in_order(
        sends in prop::collection::vec((0..40usize, 1..12usize, any::<bool>()), 1..80),
    ) {
        let mut receiver = empty();
        let mut session = live(&mut receiver);
        let history = History::new(receiver.tip(), 64, 0);
        let mut accepted = Vec::new();
        for (start, len, reconnect) in sends {
            if reconnect {
                let attach = request(1, 1, Some(history.begin.epoch));
                assert_eq!(receiver.handle_attach(&attach), Ok(AttachDecision::Resume));
                session = receiver.begin_session();
            }
            let batch = history.batch(start..start + len);
            match receiver.handle_batch(session, &batch) {
                Ok(BatchDecision::Accept { skip, staged: false }) => {
                    accepted.extend(batch.ops[skip..].iter().map(|op| op.seq));
                }
                Ok(other) => panic!("{other:?}"),
                Err(refusal) => {
                    assert_eq!(refusal.reason, Reason::Gap);
                    assert!(start > accepted.len());
                }
            }
            let expected: Vec<Seq> = (1..=accepted.len() as u64).map(Seq).collect();
            assert_eq!(accepted, expected);
            assert_eq!(receiver.tip(), history.position(accepted.len()));
        }
    }

    /// No order of messages panics, and the position never goes back.
    #[test]
    fn any_order_of_messages_keeps_the_invariants(
        steps in prop::collection::vec((0..8u8, 0..20usize, 0..4u64), 1..100),
    ) {
        let mut receiver = empty();
        let mut session = open(&mut receiver, 1, 1);
        let mut run = 1;
        let mut history = History::new(receiver.tip(), 40, 0);
        let mut reached = receiver.tip();
        for (kind, at, number) in steps {
            match kind {
                0 | 1 => drop(receiver.handle_batch(session, &history.batch(at..at + 1 + number as usize))),
                2 => drop(receiver.handle_begin(session, number, &history.position(at))),
                3 => drop(receiver.handle_stage(session)),
                4 => {
                    let position = receiver.accepted_tip();
                    if receiver.handle_publish(session, number, &position).is_ok() {
                        receiver.published(position);
                    }
                }
                5 => session = receiver.begin_session(),
                6 => receiver.end_session(),
                _ => {
                    run += 1;
                    session = open(&mut receiver, 1, run);
                    history = History::new(receiver.tip(), 40, at as u32);
                }
            }
            assert!(!receiver.tip().is_before(&reached));
            reached = receiver.tip();
        }
    }
}
