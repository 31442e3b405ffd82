//! The checkers: what must hold, whatever the implementation does. They know messages, positions and states, and nothing of how either side
//! works. A broken promise is a panic that says which.

use std::{collections::BTreeMap, sync::Arc};

use tandem_proto::{
    Epoch, Position, Seq, convert,
    pb::{self, refused::Reason, server_message::Body},
};

use crate::sim::{
    apps::Promise,
    machine::{Connection, Machine},
    picture::Picture,
    replica::ReplicaHost,
};

/// Who opened an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opener {
    /// The machine.
    pub machine: usize,
    /// The run of mountd on it.
    pub run: usize,
}

/// What was seen so far.
#[derive(Default)]
pub struct Checks {
    /// Which run opened which epoch.
    epochs: BTreeMap<u64, Opener>,
    /// The highest position that the storage said is durable.
    told: Position,
    /// The highest position that the tree was seen at.
    seen: Position,
    /// How often a tree was compared.
    pub states: u64,
    /// How many fsyncs were answered.
    pub promises: u64,
    /// How many epochs ended because another machine took over.
    pub fenced: u64,
    last_compared: Option<(Position, Arc<Picture>)>,
}

fn order(position: &Position) -> (u64, u64) {
    (position.epoch.0, position.seq.0)
}

impl Checks {
    /// The run that may write.
    pub fn holder(&self) -> Option<Opener> {
        self.epochs.last_key_value().map(|(_, opener)| *opener)
    }

    /// After each step of the storage: who holds it, and how far it is.
    pub fn look_at(&mut self, storage: &ReplicaHost) {
        let Some(core) = storage.core() else { return };
        let epoch = core.receiver().tip().epoch;
        if let Some(writer) = core.receiver().writer() {
            let opener = Opener {
                machine: usize::from(writer.client_id.0[0] - 3),
                run: u128::from_be_bytes(writer.run_id.0) as usize - 1,
            };
            let before = self.epochs.last_key_value().map(|(epoch, opener)| (*epoch, *opener));
            if let Some((last, holder)) = before {
                assert!(epoch.0 >= last, "fence: epoch {epoch} after {last}");
                self.fenced += u64::from(epoch.0 > last && opener.machine != holder.machine);
            }
            let known = *self.epochs.entry(epoch.0).or_insert(opener);
            assert_eq!(known, opener, "fence: two runs write in epoch {epoch}");
        }
        if core.receiver().is_empty() {
            return;
        }
        let applied = core.replica().applied();
        assert!(
            order(&applied) >= order(&self.seen),
            "monotonic: the tree was at {}, and now it is at {applied}",
            self.seen
        );
        assert!(
            order(&applied) > order(&self.seen) || self.seen.chain == applied.chain,
            "monotonic: {applied} had another history a moment ago"
        );
        self.seen = applied;
    }

    /// What the storage answers to a connection, at the moment when it does. `held`: this machine held the volume when the step began.
    pub fn answered(&mut self, message: &pb::ServerMessage, machine: &Machine, connection: &Connection, held: bool) {
        let holder = self.holder();
        let holds = holder == Some(Opener { machine: machine.number, run: machine.apps.run });
        match &message.body {
            Some(Body::Refused(refused)) => check_refusal(refused, holds, connection.forged),
            Some(Body::Attached(attached)) => {
                assert!(
                    holds && self.epochs.last_key_value().map(|(epoch, _)| *epoch) == Some(attached.epoch),
                    "fence: {holder:?} holds the volume, and run {} of machine {} is attached to epoch {}",
                    machine.apps.run,
                    machine.number,
                    attached.epoch
                );
                let position = convert::position("attached", &attached.position).expect("a position");
                if order(&position) > order(&self.told) {
                    self.told = position;
                }
            }
            Some(Body::Ack(ack)) => {
                assert!(holds || held, "fence: the ops of a fenced run are acknowledged: {ack:?}");
                let epoch = Epoch(connection.inbound.epoch.unwrap_or_default());
                let told = Position { epoch, seq: Seq(ack.durable), ..Position::default() };
                if order(&told) > order(&self.told) {
                    self.told = told;
                }
            }
            Some(Body::Published(published)) => {
                assert!(holds || held, "fence: a fenced run publishes");
                let position = convert::position("published", &published.position).expect("a position");
                if order(&position) > order(&self.told) {
                    self.told = position;
                }
            }
            _ => {}
        }
    }

    /// The storage came back: nothing that it acknowledged is gone.
    pub fn came_back(&mut self, storage: &ReplicaHost) {
        self.last_compared = None;
        let Some(core) = storage.core() else { return };
        let durable = core.durable();
        assert!(
            order(&durable) >= order(&self.told),
            "lost acknowledgement: {} was said to be durable, and the storage came back at {durable}",
            self.told
        );
    }

    /// An fsync returned.
    pub fn promised(&mut self, promise: Promise) {
        self.promises += 1;
        let epoch = self.epochs.iter().find(|(_, opener)| opener.run == promise.run).map(|(epoch, _)| *epoch);
        let Some(epoch) = epoch else { panic!("fsync: run {} never wrote, but its fsyncs return", promise.run) };
        assert!(
            order(&self.told) >= (epoch, promise.seq.0),
            "fsync: an fsync of {}:{} returned, and the storage said no more than {}",
            epoch,
            promise.seq,
            self.told
        );
    }

    /// The replica is at a state that the folder had, and at the one that its position says.
    pub fn prefix(&mut self, storage: &ReplicaHost, machines: &[Machine]) {
        let Some(core) = storage.core() else { return };
        let position = core.replica().applied();
        if core.receiver().is_empty() || position.epoch.0 == 0 {
            return;
        }
        if self.last_compared.as_ref().is_some_and(|(last, _)| *last == position) {
            return;
        }
        let opener = self.epochs.get(&position.epoch.0);
        let opener =
            opener.unwrap_or_else(|| panic!("the replica is in epoch {}, which nobody opened", position.epoch));
        let expected = machines[opener.machine].apps.state_at(opener.run, position.seq.0);
        let expected = expected.unwrap_or_else(|| panic!("prefix: the replica is at {position}, which never happened"));
        let (expected, found) = (expected.picture(), Arc::new(storage.picture()));
        self.states += 1;
        assert!(
            *found == expected,
            "prefix: at {position} the replica is not what the folder was:\n{}",
            expected.differences(&found)
        );
        self.last_compared = Some((position, found));
    }
}

/// Between two sides that are right, other refusals never come. The mount would mend them by a full compare, which hides the fault.
fn check_refusal(refused: &pb::Refused, holds: bool, forged: bool) {
    let reason = refused.reason();
    let legal = match reason {
        Reason::StaleSession | Reason::Unavailable => true,
        Reason::Fenced | Reason::Held => !holds,
        Reason::Diverged | Reason::Gap => forged,
        _ => false,
    };
    assert!(legal, "the storage refused the mount: {refused:?}");
}
