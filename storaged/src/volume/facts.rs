//! What others may see of a volume: a small copy that its thread replaces after each step.

use std::sync::Arc;

use tandem_proto::{ids::Uuid, position::Position};

use super::core::{Core, Stuck};
use crate::{ingest::receiver::Phase, log::disk::Disk, tree::ReplicaTree};

/// A volume's state in one word, as `status` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeState {
    /// Log, tree and catalog are of one position.
    #[default]
    Settled,
    /// Ops wait for apply, or apply is under way.
    Applying,
    /// State is staged.
    Staging,
    /// It was repaired: what it holds is no state of the folder until the next full resync is published.
    Unproven,
    /// The disk refused; it is tried again.
    Faulted,
    /// It needs a person.
    Damaged,
}

impl VolumeState {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            VolumeState::Settled => "settled",
            VolumeState::Applying => "applying",
            VolumeState::Staging => "staging",
            VolumeState::Unproven => "unproven",
            VolumeState::Faulted => "faulted",
            VolumeState::Damaged => "damaged",
        }
    }
}

/// What may be seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// In one word.
    pub state: VolumeState,
    /// Why, if it is not well.
    pub reason: Option<Arc<str>>,
    /// Accepted.
    pub received: u64,
    /// Where the next batch begins.
    pub durable: Position,
    /// The state that the replica holds.
    pub published: Position,
    /// In the tree.
    pub applied: Position,
    /// Nothing was ever published.
    pub empty: bool,
    /// Who wrote last: name and client id.
    pub holder: Option<(Arc<str>, Uuid)>,
    /// The run that opened the epoch.
    pub holder_run: Uuid,
    /// Whether that one is attached.
    pub connected: bool,
    /// Unix time of its attach.
    pub attached_ns: i64,
    /// Records that are kept.
    pub log_bytes: u64,
    /// Bytes that were appended to it since the start.
    pub logged_bytes: u64,
    /// At which the writer is held back.
    pub log_max_bytes: u64,
    /// Durable ops that wait for apply.
    pub backlog_ops: u64,
    /// Bytes of their records.
    pub backlog_bytes: u64,
    /// Files with bytes of an unfinished staging.
    pub salvaged_files: u64,
    /// What its mount found to differ, since the start.
    pub mismatches: u64,
    /// That it may hold.
    pub quota_bytes: Option<u64>,
    /// That it holds at most, if it has a quota.
    pub used_bytes: u64,
    /// Special files are not made in its tree.
    pub denies_special: bool,
    /// The last error, also if it is over.
    pub last_error: Arc<str>,
}

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// What may be seen now. `before` lends what did not change.
    pub fn facts(&self, before: &Facts) -> Facts {
        let staging = matches!(self.receiver.phase(), Phase::Staging { .. });
        let state = if self.damaged.is_some() {
            VolumeState::Damaged
        } else if !self.faults.is_empty() {
            VolumeState::Faulted
        } else if self.publishing.is_some() || !self.backlog.is_empty() {
            VolumeState::Applying
        } else if staging {
            VolumeState::Staging
        } else if self.unproven.is_some() {
            VolumeState::Unproven
        } else {
            VolumeState::Settled
        };
        let reason = self
            .damaged
            .clone()
            .or_else(|| self.held_back_reason())
            .or_else(|| self.faults.first().map(|fault| fault.message.clone()))
            .or_else(|| self.unproven.clone());
        let holder = self.receiver.writer().map(|writer| match &before.holder {
            Some((name, id)) if *id == writer.client_id && **name == *writer.name => (name.clone(), *id),
            _ => (Arc::from(writer.name.as_str()), writer.client_id),
        });
        Facts {
            state,
            reason,
            received: self.receiver.accepted_tip().seq.0,
            durable: self.durable,
            published: self.published(),
            applied: self.replica.applied(),
            empty: self.receiver.is_empty(),
            holder,
            holder_run: self.receiver.writer().map_or_else(Uuid::default, |writer| writer.run_id),
            connected: self.session.is_some(),
            attached_ns: self.attached_ns,
            log_bytes: self.log.bytes(),
            logged_bytes: self.logged_bytes,
            log_max_bytes: self.bounds.log_max_bytes,
            backlog_ops: self.backlog.ops(),
            backlog_bytes: self.backlog.bytes(),
            salvaged_files: self.replica.salvaged_files(),
            mismatches: self.mismatches,
            quota_bytes: self.quota.limit(),
            used_bytes: self.quota.used(),
            denies_special: self.replica.denies_special(),
            last_error: self.last_error.clone(),
        }
    }

    /// Whether a publish is under way that outlives this step.
    pub fn is_publishing(&self) -> bool {
        self.publishing.is_some() || self.is_stuck(Stuck::Publish)
    }
}
