//! What a volume does when it is at its quota: the decision is in [`super::quota`], here it is carried out.

use std::{sync::Arc, time::Instant};

use super::{
    core::Core,
    quota::{Cost, To, Used, Verdict},
    settings::Special,
};
use crate::{
    apply::ApplyError,
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

    /// Sets what becomes of devices and set-user-id bits that come from now on; whether that is another thing than before.
    pub fn set_special(&mut self, special: Special) -> bool {
        let (before, deny) = (self.replica.denies_special(), special == Special::Deny);
        self.replica.deny_special(deny);
        before != deny
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
    pub fn measured(&mut self, used: Option<Used>, now: Instant) {
        self.quota.measured(used, now);
    }

    /// Hands a message back if the volume has room for it. `None`: the volume is measured first, and the message is taken up again.
    pub(super) fn check_quota(&mut self, message: Incoming, now: Instant) -> Result<Option<Incoming>, Refusal> {
        if self.quota.limit().is_none() {
            return Ok(Some(message));
        }
        if matches!(message, Incoming::Publish { .. }) {
            return self.check_publish(message);
        }
        let Some(bytes) = Cost::bytes_of(&message) else { return Ok(Some(message)) };
        let to = match (self.receiver.phase(), &message) {
            (Phase::Staging { .. }, Incoming::Batch(_)) => To::Log,
            (Phase::Staging { .. }, Incoming::Stage(_)) => To::Staging,
            _ => To::Tree,
        };
        let cost = Cost { bytes, to };
        match self.quota.verdict(cost, now) {
            Verdict::Fits => {
                self.quota.note(cost);
                Ok(Some(message))
            }
            Verdict::Measure => Ok(self.measure_first(message)),
            // What an earlier resync left gives way.
            Verdict::Over if to == To::Staging && self.replica.drop_salvage().unwrap_or(false) => {
                Ok(self.measure_first(message))
            }
            Verdict::Over => Err(self.over(self.quota.message())),
        }
    }

    /// The same for a publish, whose bytes are all there: what is left when it is done?
    fn check_publish(&mut self, message: Incoming) -> Result<Option<Incoming>, Refusal> {
        match self.quota.publish_verdict(None) {
            Verdict::Fits => return Ok(Some(message)),
            Verdict::Measure => return Ok(self.measure_first(message)),
            Verdict::Over => {}
        }
        let growth = match self.replica.growth() {
            Ok(growth) => growth,
            // What is wrong with it is said when it is taken.
            Err(ApplyError::Protocol { .. }) => return Ok(Some(message)),
            Err(error) => return Err(Refusal::unavailable(format!("what the resync leaves cannot be told: {error}"))),
        };
        match self.quota.publish_verdict(Some(growth)) {
            Verdict::Fits => Ok(Some(message)),
            Verdict::Measure => Ok(self.measure_first(message)),
            Verdict::Over => Err(self.over(self.quota.publish_message(growth))),
        }
    }

    fn measure_first(&mut self, message: Incoming) -> Option<Incoming> {
        self.quota.want();
        self.held = Some(message);
        None
    }

    fn over(&mut self, message: String) -> Refusal {
        let refusal = Refusal::new(Reason::Quota, message).retry();
        self.last_error = Arc::from(refusal.message.as_str());
        refusal
    }
}
