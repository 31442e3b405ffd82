//! Syncs of the tree that fail and lose data, as Linux does it.

use std::time::Duration;

use proptest::prelude::{any, prop, proptest};
use tandem_proto::pb::server_message::Body;

use super::{Incoming, Reason, Rig, Step, VolumeState, create, step, todo};

/// Until the volume is well again.
fn heal(rig: &mut Rig) {
    for _ in 0..20 {
        rig.now += Duration::from_secs(60);
        rig.core.tick(rig.now);
        rig.core.take_held(rig.now);
        rig.core.apply_some(rig.now, 99);
    }
    assert_ne!(rig.facts().state, VolumeState::Faulted, "{:?}", rig.facts().reason);
}

fn refused(rig: &Rig) -> Option<(Reason, bool)> {
    rig.outbox.drain().into_iter().find_map(|message| match message.body {
        Some(Body::Refused(refused)) => Some((refused.reason(), refused.retry)),
        _ => None,
    })
}

#[test]
fn a_checkpoint_whose_sync_fails_is_redone_from_the_one_before() {
    for salt in 0..20 {
        let mut rig = Rig::new();
        rig.send(&[create(1), create(2), super::Todo::Append(1, vec![5; 900])]);
        rig.core.flush(rig.now);
        rig.core.apply_some(rig.now, 9);
        rig.tree.fail_syncs(0, 1 + (salt % 3) as u32, salt);
        rig.now += Duration::from_secs(60);
        rig.core.tick(rig.now);
        assert_eq!(rig.facts().state, VolumeState::Faulted);
        // The log goes on.
        rig.send(&[create(3)]);
        rig.core.flush(rig.now);
        rig.listen();
        assert_eq!(rig.acked.durable, 4);
        assert_eq!(rig.core.apply_some(rig.now, 9), 0, "nothing is built on what may be lost");
        assert_eq!(rig.core.replica().applied().seq.0, 3, "and the position does not go back");
        heal(&mut rig);
        rig.listen();
        assert_eq!(rig.acked.applied, 4);
        rig.check_tree();
        rig.crash(0);
        rig.check_tree();
    }
}

#[test]
fn a_staging_whose_bytes_may_be_lost_is_given_up_without_salvage_and_staged_anew() {
    for salt in 0..20 {
        let mut rig = Rig::new();
        let (before, states) = (rig.sent, rig.states.clone());
        let begin = |rig: &mut Rig| {
            rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
            rig.send(&[create(1), create(2)]);
            rig.handle(Incoming::Publish { round: 1, position: rig.sent });
        };
        rig.tree.fail_syncs(0, 1, salt);
        begin(&mut rig);
        assert_eq!(refused(&rig), Some((Reason::Unavailable, true)));
        heal(&mut rig);
        assert_eq!(rig.facts().salvaged_files, 0);
        (rig.sent, rig.states) = (before, states);
        rig.attach();
        begin(&mut rig);
        rig.listen();
        rig.check_tree();
        rig.crash(salt);
        rig.check_tree();
        assert_eq!(rig.core.durable().seq.0, 2);
    }
}

#[test]
fn a_publish_whose_last_sync_fails_is_redone() {
    for salt in 0..20 {
        let mut rig = Rig::new();
        rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
        rig.send(&[create(1), create(2)]);
        // That of the staged bytes works.
        rig.tree.fail_syncs(1, 1 + (salt % 2) as u32, salt);
        rig.handle(Incoming::Publish { round: 1, position: rig.sent });
        assert_eq!(rig.facts().state, VolumeState::Faulted);
        assert!(rig.core.is_publishing());
        heal(&mut rig);
        rig.listen();
        assert_eq!((rig.acked.durable, rig.acked.applied), (2, 2));
        rig.check_tree();
        rig.crash(salt);
        rig.check_tree();
    }
}

proptest! {
    /// Whatever syncs fail, once the volume is well again and has made a checkpoint, the disk has what was acknowledged.
    #[test]
    fn syncs_that_fail_anywhere_lose_nothing_that_was_acknowledged(
        steps in prop::collection::vec((step(), any::<u64>()), 1..25),
    ) {
        let mut rig = Rig::new();
        for (step, salt) in steps {
            if salt % 4 == 0 {
                rig.tree.fail_syncs((salt >> 8) as u32 % 3, 1 + (salt >> 16) as u32 % 2, salt);
            }
            match step {
                Step::Send(todos) if rig.core.accepts() => rig.send(&todos),
                Step::Flush => rig.core.flush(rig.now),
                Step::Apply(limit) => _ = rig.core.apply_some(rig.now, limit),
                Step::Resync(todos, true) if rig.core.accepts() => {
                    rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
                    // It may have to wait for a redo.
                    (0..5).for_each(|_| rig.later());
                    if rig.core.accepts() && !rig.outbox.is_closed() {
                        rig.send(&todos);
                        rig.handle(Incoming::Publish { round: 1, position: rig.sent });
                    }
                }
                _ => {
                    rig.now += Duration::from_secs(60);
                    rig.core.tick(rig.now);
                }
            }
            rig.later();
            if rig.outbox.is_closed() {
                heal(&mut rig);
                let tip = rig.core.receiver().tip();
                rig.states.retain(|seq, _| *seq <= tip.seq.0);
                rig.attach();
            }
        }
        rig.tree.fail_syncs(0, 0, 0);
        heal(&mut rig);
        rig.core.flush(rig.now);
        heal(&mut rig);
        let durable = rig.core.durable();
        rig.check_tree();
        rig.crash(0);
        assert_eq!(rig.core.replica().applied(), durable);
        rig.check_tree();
        let _ = todo;
    }
}
