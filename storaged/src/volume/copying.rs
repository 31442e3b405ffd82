//! Copies: ops that are made of what the ops before them led to.
//!
//! ```text
//!   batch ─► up_to_copy ─┬► what comes before the first copy, or that copy alone ─► taken
//!                        └► the rest ─► held, and taken up behind it
//! ```
//! A copy is read from the tree, so all before it must be applied. A batch with copies is therefore taken in parts, one copy at a time: the
//! replica has the bytes of one in memory, however many come together. The part that waits is [`Core::held`], as of any other message, so
//! nothing overtakes it, and the thread looks at everything else in between.

use std::time::Instant;

use super::core::Core;
use crate::{
    ingest::{
        incoming::{CheckedBatch, Incoming},
        receiver::Phase,
        refusal::{Reason, Refusal},
    },
    log::disk::Disk,
    tree::ReplicaTree,
};

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// What of a message can be taken in one go, and what follows it.
    pub(super) fn up_to_copy(&mut self, message: Incoming) -> (Incoming, Option<CheckedBatch>) {
        let Incoming::Batch(mut batch) = message else { return (message, None) };
        let tip = self.receiver.accepted_tip().seq;
        let rest = match batch.ops.iter().position(|op| op.copies() && op.seq > tip) {
            Some(at) => batch.split_off(at.max(1)),
            None => None,
        };
        (Incoming::Batch(batch), rest)
    }

    /// Puts the rest of a batch behind what waits of it already.
    pub(super) fn keep_rest(&mut self, rest: Option<CheckedBatch>) {
        let Some(rest) = rest.filter(|_| self.session.is_some()) else {
            self.among_copies = false;
            return;
        };
        match &mut self.held {
            // It could not be taken for now, and neither can the rest.
            Some(Incoming::Batch(first)) => {
                first.append(rest);
                self.among_copies = false;
            }
            _ => {
                self.among_copies = rest.ops.first().is_some_and(|op| op.copies());
                self.held = Some(Incoming::Batch(rest));
            }
        }
    }

    /// Whether copies follow one another without a pause: then one acknowledgement is enough for them.
    pub(super) fn is_among_copies(&self) -> bool {
        self.among_copies
            && self.held.is_some()
            && self.faults.is_empty()
            && !self.is_held()
            && !self.quota.is_waiting()
    }

    /// Makes bytes of what a batch copies. `None`: it waits until the tree is where the ops before it lead to, and so does what comes after
    /// it.
    pub(super) fn make_copies(
        &mut self,
        mut batch: CheckedBatch,
        now: Instant,
    ) -> Result<Option<CheckedBatch>, Refusal> {
        let tip = self.receiver.accepted_tip().seq;
        if !batch.ops.iter().any(|op| op.copies() && op.seq > tip) {
            return Ok(Some(batch));
        }
        if matches!(self.receiver.phase(), Phase::Staging { .. }) {
            let message = "a copy in a resync: there is nothing yet that it could be made of";
            return Err(Refusal::new(Reason::BadRequest, message));
        }
        if !self.settle(now) {
            self.held = Some(Incoming::Batch(batch));
            return Ok(None);
        }
        for change in batch.ops.iter_mut().filter(|op| op.seq > tip).flat_map(|op| &mut op.changes) {
            self.replica.make_copy(change).map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
        }
        Ok(Some(batch))
    }
}
