//! Copies: several in one batch, ones that cannot be made for now, and ones that ask for too much.

use tandem_proto::{
    chain::Chain,
    convert,
    ids::InodeId,
    limits::{BATCH_MAX_COPIES, COPY_MAX},
    op::{Change, Changes, Op},
    pb::{self, server_message::Body},
    position::Seq,
};

use super::{CheckedBatch, Reason, Rig, Todo, create};

/// What the volume's thread does in its rounds.
fn rounds(rig: &mut Rig) {
    for _ in 0..100 {
        if rig.core.wants_flush() {
            rig.core.flush(rig.now);
        }
        rig.core.apply_some(rig.now, 16);
        rig.check_tree();
        rig.core.take_held(rig.now);
    }
}

/// A run of copies, each of which needs what the one before led to.
fn run() -> Vec<Todo> {
    vec![
        create(0),
        create(1),
        Todo::Copy(0, 1),
        Todo::Append(0, vec![7; 50]),
        Todo::Copy(0, 1),
        Todo::Copy(1, 0),
        Todo::Copy(0, 0),
        Todo::Copy(0, 1),
        Todo::Append(1, vec![9; 10]),
    ]
}

#[test]
fn copies_of_one_batch_are_made_one_by_one_and_one_acknowledgement_speaks_for_a_run_of_them() {
    let mut rig = Rig::new();
    rig.send(&run());
    assert!(!rig.core.accepts(), "what follows the batch waits for its rest");
    rounds(&mut rig);
    let acks = rig.listen().iter().filter(|answer| matches!(answer, Body::Ack(_))).count();
    assert_eq!((rig.acked.durable, rig.acked.applied), (rig.sent.seq.0, rig.sent.seq.0));
    assert!(acks <= 6, "{acks} acknowledgements");
    assert_eq!(rig.picture(), rig.states[&rig.sent.seq.0]);
    // What was made is in the log: nothing needs to be there that it could be made of again.
    for seed in [1, 99, u64::MAX] {
        rig.crash(seed);
        assert_eq!(rig.core.replica().applied(), rig.sent);
        rig.check_tree();
    }
}

#[test]
fn a_full_disk_among_copies_is_waited_for_and_nothing_is_taken_twice() {
    let mut rig = Rig::new();
    rig.send(&[create(0), create(1)]);
    rounds(&mut rig);
    rig.tree.set_budget(Some(0));
    rig.send(&run());
    rounds(&mut rig);
    rig.listen();
    assert!(!rig.faults.is_empty());
    assert!(rig.core.replica().applied().seq < rig.sent.seq);
    rig.tree.set_budget(None);
    rig.later();
    rounds(&mut rig);
    rig.listen();
    assert_eq!(rig.acked.applied, rig.sent.seq.0);
    assert_eq!(rig.picture(), rig.states[&rig.sent.seq.0]);
}

fn check(ops: Vec<Changes>) -> Result<CheckedBatch, Reason> {
    let (mut chain, mut scratch, mut encoded) = (Chain::default(), Vec::new(), Vec::new());
    for (at, changes) in ops.into_iter().enumerate() {
        let seq = Seq(at as u64 + 1);
        let op = pb::Op::from(&Op { seq, origin: Default::default(), changes });
        chain = convert::chain_after(&chain, seq, &op, &mut scratch);
        encoded.push(op);
    }
    let batch = pb::Batch {
        session: 1,
        epoch: 1,
        first_seq: 1,
        chain_before: Chain::default().0.to_vec().into(),
        chain_after: chain.0.to_vec().into(),
        ops: encoded,
    };
    CheckedBatch::check(batch).map_err(|refusal| refusal.reason)
}

fn copy(len: u64) -> Change {
    let id = |number| InodeId::new(&[number; 8]).expect("short");
    Change::Copy { id: id(1), offset: 0, from: id(2), from_offset: 0, len, data: None }
}

#[test]
fn copies_that_come_to_more_than_one_record_of_the_log_holds_are_refused() {
    assert!(check(vec![Changes::from_iter([copy(COPY_MAX)])]).is_ok());
    assert_eq!(check(vec![Changes::from_iter([copy(COPY_MAX + 1)])]), Err(Reason::BadRequest));
    assert_eq!(check(vec![Changes::from_iter([copy(COPY_MAX), copy(1)])]), Err(Reason::BadRequest));
    let data = Change::Data { id: InodeId::new(&[1; 8]).expect("short"), offset: 0, data: vec![1; 9].into() };
    assert_eq!(check(vec![Changes::from_iter([copy(COPY_MAX - 8), data])]), Err(Reason::BadRequest));
    let many = |count| check((0..count).map(|_| Changes::from_iter([copy(1)])).collect());
    assert!(many(BATCH_MAX_COPIES).is_ok());
    assert_eq!(many(BATCH_MAX_COPIES + 1), Err(Reason::BadRequest));
}

#[test]
fn the_longest_copy_goes_through_the_log_and_back() {
    let mut rig = Rig::new();
    rig.core.bound(crate::volume::flow::Bounds::default());
    rig.send(&[create(0), create(1)]);
    let begun = rig.states[&rig.sent.seq.0].values().next().map_or(0, Vec::len);
    rig.send(&[Todo::Append(0, vec![1; (1 << 20) - begun])]);
    // Doubled until one copy of it is as long as a copy may be.
    for _ in 0..5 {
        rig.send(&[Todo::Copy(0, 0)]);
        rounds_unchecked(&mut rig);
    }
    rig.send(&[Todo::Copy(0, 1), Todo::Append(1, vec![2; 100])]);
    rounds_unchecked(&mut rig);
    rig.listen();
    assert_eq!(rig.acked.applied, rig.sent.seq.0);
    let longest = rig.states[&rig.sent.seq.0].values().map(Vec::len).max();
    assert!(longest.is_some_and(|longest| longest as u64 > COPY_MAX), "{longest:?}");
    rig.check_tree();
    rig.crash(7);
    assert_eq!(rig.core.replica().applied(), rig.sent);
    rig.check_tree();
}

/// The same for files that are too long to be compared at each step.
fn rounds_unchecked(rig: &mut Rig) {
    for _ in 0..10 {
        rig.core.flush(rig.now);
        rig.core.apply_some(rig.now, 16);
        rig.core.take_held(rig.now);
    }
}
