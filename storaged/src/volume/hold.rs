//! Readers that need the tree at one exact position.
//!
//! ```text
//!            hold                    applied == target                 release
//!  (reader) ──────► waiting ───────────────────────────────► held ───────────────► apply goes on
//!                      │ applied > target, or it can never come  │ abort: the reader hears, and releases
//!                      └──────────► refused                      └──────────────────────────────────► (the same)
//! ```
//! Promise: while a reader is held, `tree/` and catalog stand still at the position that it was told. Apply stops exactly there and
//! nowhere else; logging, and so every acknowledgement, goes on. A position is reached by applying ops, or by a publish that ends
//! there; one that a publish passed over never existed on the replica and is refused.

use std::sync::{Arc, OnceLock};

use tandem_proto::{
    chain::Chain,
    position::{Epoch, Position, Seq},
};

use super::core::{Core, Stuck};
use crate::{
    ingest::refusal::{Reason, Refusal},
    log::disk::Disk,
    tree::ReplicaTree,
};

/// Readers that wait for a position or hold one. Each costs a thread and a stream.
const READERS_MAX: usize = 16;

/// Tells a reader that it has to end, and why.
#[derive(Clone, Debug, Default)]
pub struct Abort(Arc<OnceLock<Arc<str>>>);

impl Abort {
    /// Why the reader must end; `None`: it may go on.
    pub fn why(&self) -> Option<Arc<str>> {
        self.0.get().cloned()
    }

    fn set(&self, why: &Arc<str>) {
        // The first reason counts.
        let _ = self.0.set(why.clone());
    }
}

/// A position that is asked for by its numbers, and by its chain if the asker knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the writer's run.
    pub epoch: Epoch,
    /// The last op that is part of it.
    pub seq: Seq,
    /// The history that led there.
    pub chain: Option<Chain>,
}

impl Place {
    fn order(&self) -> (Epoch, Seq) {
        (self.epoch, self.seq)
    }
}

impl From<Position> for Place {
    fn from(position: Position) -> Self {
        Place { epoch: position.epoch, seq: position.seq, chain: Some(position.chain) }
    }
}

/// The tree stands still.
#[derive(Clone, Debug)]
pub struct Held {
    /// Where.
    pub position: Position,
    /// Whether it has to end.
    pub abort: Abort,
}

/// A decision for a reader: its number, and what became of it.
pub type Decided = (u64, Result<Held, Refusal>);

/// All readers of a volume.
#[derive(Debug, Default)]
pub(super) struct Holds {
    waiting: Vec<(u64, Place)>,
    held: Vec<(u64, Abort)>,
    decided: Vec<Decided>,
}

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Whether a reader holds the tree where it is.
    pub fn is_held(&self) -> bool {
        !self.holds.held.is_empty()
    }

    /// Asks that apply stops at a position; without one, at the last that is durable now. [`Self::take_decided`] tells what came of
    /// it. Every hold needs its [`Self::release`], also one that was refused.
    pub fn hold(&mut self, number: u64, at: Option<Place>) {
        let newest = self.newest();
        if at.is_none() && self.receiver.is_empty() && newest.epoch == Epoch(0) {
            let message = "there is no state yet: the volume's first sync has not been completed";
            self.holds.decided.push((number, Err(Refusal::new(Reason::Gap, message))));
            return;
        }
        let target = at.unwrap_or_else(|| newest.into());
        if self.holds.waiting.len() + self.holds.held.len() >= READERS_MAX {
            let message = format!("{READERS_MAX} readers of this volume are at work already: try again later");
            self.holds.decided.push((number, Err(Refusal::unavailable(message))));
            return;
        }
        if let Some(refusal) = self.unproven_refusal() {
            self.holds.decided.push((number, Err(refusal)));
            return;
        }
        self.holds.waiting.push((number, target));
        self.decide_holds();
    }

    /// A replica that was repaired is at no position.
    fn unproven_refusal(&self) -> Option<Refusal> {
        let why = self.unproven.as_ref()?;
        let message = format!(
            "there is no state to read: {why}. Its mount must sync it in full first (-o init=push). If that folder is lost, stop \
             storaged and take the tree as it is with tandem-storaged check --accept"
        );
        Some(Refusal::new(Reason::Damaged, message))
    }

    /// A reader ends, or gives up waiting.
    pub fn release(&mut self, number: u64) {
        self.holds.waiting.retain(|(waiting, _)| *waiting != number);
        self.holds.held.retain(|(held, _)| *held != number);
        self.holds.decided.retain(|(decided, _)| *decided != number);
    }

    /// Tells all readers that hold the tree to end. They release it themselves, so that none reads a tree that moves.
    pub fn abort_holds(&mut self, why: &str) {
        let why: Arc<str> = Arc::from(why);
        for (_, abort) in &self.holds.held {
            abort.set(&why);
        }
    }

    /// What was decided since the last call.
    pub fn take_decided(&mut self) -> Vec<Decided> {
        std::mem::take(&mut self.holds.decided)
    }

    /// The last position that the tree will reach by what is durable.
    fn newest(&self) -> Position {
        let applied = self.publishing.unwrap_or_else(|| self.replica.applied());
        self.backlog.end().unwrap_or(applied)
    }

    /// Looks whether a reader's position is reached. Called after each op and each publish, and now and then for those whose position
    /// will never come.
    pub fn decide_holds(&mut self) {
        if self.holds.waiting.is_empty() {
            return;
        }
        let applied = self.replica.applied();
        // An op that failed in the middle left a tree of no position.
        let between = self.publishing.is_some() || self.is_stuck(Stuck::Apply) || self.is_stuck(Stuck::Redo);
        let ended = self.backlog.is_empty() && self.publishing.is_none();
        let mut waiting = std::mem::take(&mut self.holds.waiting);
        waiting.retain(|(number, target)| {
            let at = (applied.epoch, applied.seq);
            let decision = if target.order() == at && !between {
                match target.chain {
                    Some(chain) if chain != applied.chain => Err(other_history(&applied)),
                    _ => Ok(()),
                }
            } else if target.order() < at || (target.order() == at && self.is_stuck(Stuck::Apply)) {
                Err(passed(target, &applied))
            } else if ended && target.epoch < self.durable.epoch && target.order() > at {
                Err(never(target, &applied))
            } else {
                return true;
            };
            let decision = decision.map(|()| {
                let abort = Abort::default();
                self.holds.held.push((*number, abort.clone()));
                Held { position: applied, abort }
            });
            self.holds.decided.push((*number, decision));
            false
        });
        self.holds.waiting = waiting;
    }
}

fn shown(place: &Place) -> String {
    format!("{}:{}", place.epoch, place.seq)
}

fn passed(target: &Place, applied: &Position) -> Refusal {
    let message = format!(
        "position {} cannot be obtained any more: the replica is past it, and the oldest that it still has is {applied}",
        shown(target)
    );
    Refusal::new(Reason::Gap, message).of(shown(target), applied)
}

fn never(target: &Place, applied: &Position) -> Refusal {
    let message = format!(
        "position {} does not exist: epoch {} ended at {applied} on the replica, which is the oldest that it still has",
        shown(target),
        target.epoch
    );
    Refusal::new(Reason::Gap, message).of(shown(target), applied)
}

fn other_history(applied: &Position) -> Refusal {
    Refusal::new(
        Reason::Diverged,
        format!("the replica has another history at {applied} than the one that was asked for"),
    )
}
