//! Apply that cannot keep up, or stands still: the log goes on, memory does not grow, and at the bound somebody hears.

use tandem_proto::pb::server_message::Body;

use super::{Incoming, Reason, Rig, Todo, VolumeState, create};
use crate::volume::flow::Bounds;

const BOUNDS: Bounds = Bounds { log_max_bytes: 256 << 10, backlog_bytes: 4 << 10, backlog_ops: 64 };

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.core.bound(BOUNDS);
    rig
}

/// A batch of a few KiB.
fn send_some(rig: &mut Rig) {
    let todos: Vec<Todo> = (0..8).map(|at| Todo::Append(at % 3, vec![at; 300])).collect();
    rig.send(&todos);
    rig.core.flush(rig.now);
}

/// Apply goes on until nothing waits, with the checkpoints that fall due.
fn catch_up(rig: &mut Rig) {
    while rig.core.apply_some(rig.now, 7) > 0 {
        rig.check_tree();
        if rig.core.checkpoint_is_due() {
            rig.core.checkpoint_now(rig.now);
        }
    }
}

#[test]
fn a_tree_that_fails_stops_apply_but_not_the_log_until_that_is_at_its_bound() {
    for crash in [false, true] {
        let mut rig = rig();
        rig.send(&[create(0), create(1), create(2)]);
        rig.core.flush(rig.now);
        rig.core.apply_some(rig.now, 2);
        rig.tree.set_budget(Some(0));
        let mut batches = 0;
        while rig.core.accepts() {
            send_some(&mut rig);
            rig.core.apply_some(rig.now, 9);
            assert!(rig.core.backlog.memory_bytes() < 2 * BOUNDS.backlog_bytes, "after {batches} batches");
            batches += 1;
        }
        rig.listen();
        assert_eq!((rig.acked.durable, rig.acked.applied), (rig.sent.seq.0, 2), "all was acknowledged");
        assert!(batches > 60, "{batches} batches of 3 KiB");
        let facts = rig.facts();
        assert_eq!((facts.state, facts.backlog_ops), (VolumeState::Faulted, rig.sent.seq.0 - 2));
        assert!(facts.log_bytes <= BOUNDS.log_max_bytes, "{}", facts.log_bytes);
        assert!(facts.reason.as_ref().is_some_and(|reason| reason.contains("log-max")), "{:?}", facts.reason);
        assert!(rig.faults.iter().any(|fault| fault.contains("held back")), "{:?}", rig.faults);
        if crash {
            rig.crash(99);
            assert_eq!(rig.core.replica().applied(), rig.sent);
        } else {
            rig.tree.set_budget(None);
            rig.later();
            catch_up(&mut rig);
            rig.listen();
            assert_eq!(rig.acked.applied, rig.sent.seq.0);
            assert_eq!(rig.faults.last().map(String::as_str), Some(""), "told that it is over");
        }
        assert!(rig.core.accepts());
        assert_eq!(rig.facts().backlog_ops, 0);
        rig.check_tree();
    }
}

#[test]
fn a_writer_that_is_held_back_goes_on_as_soon_as_apply_has_made_room() {
    let mut rig = rig();
    rig.core.hold(1, None);
    rig.send(&[create(0), create(1), create(2)]);
    while rig.core.accepts() {
        send_some(&mut rig);
    }
    rig.core.release(1);
    let sent = rig.sent.seq.0;
    while !rig.core.accepts() {
        assert!(rig.core.apply_some(rig.now, 7) > 0);
        if rig.core.checkpoint_is_due() {
            rig.core.checkpoint_now(rig.now);
        }
    }
    let applied = rig.core.replica().applied().seq.0;
    assert!(applied < sent * 3 / 4, "{applied} of {sent}: it need not wait for all");
    send_some(&mut rig);
    catch_up(&mut rig);
    rig.check_tree();
    assert_eq!(rig.core.replica().applied(), rig.sent);
}

#[test]
fn a_reader_that_holds_the_tree_hears_before_the_writer_is_held_back() {
    let mut rig = rig();
    rig.core.hold(1, None);
    let mut decided = rig.core.take_decided();
    let (_, held) = decided.pop().expect("decided");
    let held = held.expect("at once");
    rig.send(&[create(0), create(1), create(2)]);
    while held.abort.why().is_none() {
        assert!(rig.core.accepts(), "the reader goes first");
        send_some(&mut rig);
    }
    assert!(held.abort.why().is_some_and(|why| why.contains("log-max")));
    rig.core.release(1);
    catch_up(&mut rig);
    rig.check_tree();
    assert_eq!(rig.core.replica().applied(), rig.sent);
}

#[test]
fn a_staging_that_fills_the_log_is_given_up_and_the_next_one_has_room() {
    let mut rig = rig();
    rig.send(&[create(0), create(1), create(2)]);
    rig.core.flush(rig.now);
    catch_up(&mut rig);
    let (before, states) = (rig.sent, rig.states.clone());
    rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
    let refused = loop {
        assert!(rig.core.accepts());
        send_some(&mut rig);
        let answers = rig.outbox.drain();
        let refused = answers.into_iter().find_map(|answer| match answer.body {
            Some(Body::Refused(refused)) => Some(refused),
            _ => None,
        });
        if let Some(refused) = refused {
            break refused;
        }
    };
    assert_eq!((refused.reason(), refused.retry), (Reason::Unavailable, true));
    assert!(refused.message.contains("log-max"), "{}", refused.message);
    // What was staged is not part of the history.
    (rig.sent, rig.states) = (before, states);
    rig.attach();
    assert_eq!(rig.sent, before);
    if rig.core.checkpoint_is_due() {
        rig.core.checkpoint_now(rig.now);
    }
    assert!(rig.facts().log_bytes < BOUNDS.log_max_bytes / 4, "{}", rig.facts().log_bytes);
    rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
    send_some(&mut rig);
    rig.handle(Incoming::Publish { round: 1, position: rig.sent });
    rig.listen();
    rig.check_tree();
}
