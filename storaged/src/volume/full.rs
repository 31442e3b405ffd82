//! What a volume does when it is at its quota: the decision is in [`super::quota`], here it is carried out.

use std::{sync::Arc, time::Instant};

use super::{
    core::Core,
    quota::{Cost, Verdict},
    settings::Special,
};
use crate::{
    ingest::{
        incoming::Incoming,
        receiver::Phase,
        refusal::{Reason, Refusal},
    },
    log::disk::Disk,
    tree::ReplicaTree,
};

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Sets or lifts the volume's quota.
    pub fn set_quota(&mut self, limit: Option<u64>) {
        self.quota.set(limit);
    }

    /// Sets what becomes of devices and set-user-id bits that come from now on.
    pub fn set_special(&mut self, special: Special) {
        self.replica.deny_special(special == Special::Deny);
    }

    /// Whether the volume is to be measured now: what was accepted is in the tree by then.
    pub fn wants_measure(&self) -> bool {
        self.quota.wants() && self.backlog.is_empty() && !self.urgent && self.publishing.is_none()
    }

    /// The volume is being measured from now on.
    pub fn measure_begins(&mut self, now: Instant) {
        self.quota.begin(now);
    }

    /// It was; `None`: it could not be.
    pub fn measured(&mut self, used: Option<u64>, now: Instant) {
        self.quota.measured(used, now);
    }

    /// Hands a message back if the volume has room for it. `None`: the volume is measured first, and the message is taken up again.
    pub(super) fn check_quota(&mut self, message: Incoming, now: Instant) -> Result<Option<Incoming>, Refusal> {
        if self.quota.limit().is_none() {
            return Ok(Some(message));
        }
        if matches!(message, Incoming::Publish { .. }) {
            // What was made of chunks that the replica had was not counted.
            self.quota.want();
        }
        let Some(bytes) = Cost::bytes_of(&message) else { return Ok(Some(message)) };
        let cost = Cost { bytes, staged: matches!(self.receiver.phase(), Phase::Staging { .. }) };
        match self.quota.verdict(cost, now) {
            Verdict::Fits => {
                self.quota.note(cost);
                Ok(Some(message))
            }
            Verdict::Measure => {
                self.quota.want();
                self.held = Some(message);
                Ok(None)
            }
            Verdict::Over => {
                let refusal = Refusal::new(Reason::Quota, self.quota.message()).retry();
                self.last_error = Arc::from(refusal.message.as_str());
                Err(refusal)
            }
        }
    }
}
