//! From accepted to durable to applied: group commit, apply, publish, checkpoint.

use std::time::{Duration, Instant};

use super::core::{Carries, Core, OpenError, Stuck};
use crate::{
    apply::ApplyError,
    ingest::refusal::Refusal,
    log::{Append, LogError, LogPos, codec, disk::Disk},
    tree::{ReplicaTree, rush},
};
use tandem_runtime::memory;

/// Objects that are deleted at a time: less than a millisecond, unless they are large.
const TIDY_SLICE: usize = 32;
/// For so long deleted files go to one place at most.
const KEPT_OPEN_FOR: Duration = Duration::from_secs(600);
/// How long after the last group its mark is made durable: not between the ops of a writer that waits for each.
const MARK_AFTER: Duration = Duration::from_millis(50);
/// How long an acknowledgement waits that says of no op that it is durable, only that it is applied.
const APPLIED_ACK_DELAY: Duration = Duration::from_millis(1);
/// How long the acknowledgement of a run of copies waits for the last of them.
const COPIES_ACK_DELAY: Duration = Duration::from_millis(500);
/// Inodes that a publish changed, from which on the memory that it took is given back at once.
const MANY: usize = 20_000;
/// Staged state that waits in memory to be logged together.
const UNHURRIED_MAX_BYTES: usize = 1 << 20;

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Whether something waits for its acknowledgement, or so much is pending that it should not become more. Staged state alone
    /// can wait: nobody relies on it before its publish.
    pub fn wants_flush(&self) -> bool {
        self.urgent || self.pending_bytes >= UNHURRIED_MAX_BYTES
    }

    /// Makes everything that is pending durable, as few syncs as the log allows, and acknowledges it.
    pub fn flush(&mut self, now: Instant) {
        if self.pending.is_empty() || self.is_stuck(Stuck::Log) || self.damaged.is_some() {
            return;
        }
        if self.pending.iter().any(|record| matches!(record.carries, Carries::Ops(_))) {
            rush::note();
        }
        while !self.pending.is_empty() {
            let records: Vec<_> = self
                .pending
                .iter()
                .map(|record| Append { kind: record.kind, version: codec::VERSION, payload: &record.payload })
                .collect();
            match self.log.append_group(&records) {
                Ok(appended) => self.became_durable(appended.at, appended.count),
                Err(error) => {
                    if error.is_no_space() {
                        self.give_way(now);
                    }
                    return self.set_fault(Stuck::Log, &error, now);
                }
            }
        }
        self.urgent = false;
        self.changed_at = Some(now);
        if self.is_among_copies() {
            // The last of the run speaks for all of them, unless that takes long.
            self.ack_due.get_or_insert(now + COPIES_ACK_DELAY);
        } else {
            self.send_ack(false);
        }
        self.note_bounds();
        // After the acknowledgement: it costs a write, and protects against damage only.
        self.log.mark_durable();
        self.mark_due = Some(now + MARK_AFTER);
    }

    fn became_durable(&mut self, at: LogPos, count: usize) {
        for record in self.pending.drain(..count) {
            self.pending_bytes -= record.payload.len();
            self.checkpoint_bytes += record.payload.len() as u64;
            self.logged_bytes += record.payload.len() as u64;
            match record.carries {
                Carries::Nothing => {}
                Carries::Ops(run) => {
                    self.durable = run.end;
                    self.backlog.push(run, at);
                }
                Carries::StagedOps(end) => self.staged = end.seq.0,
            }
        }
    }

    /// Applies up to `limit` ops of the backlog; returns how many.
    pub fn apply_some(&mut self, now: Instant, limit: usize) -> usize {
        let mut done = 0;
        self.decide_holds();
        while done < limit && self.can_apply() && self.damaged.is_none() {
            match self.backlog.refill(&self.log) {
                Ok(()) => {}
                Err(error @ LogError::Io { .. }) => {
                    self.set_fault(Stuck::Apply, &error, now);
                    break;
                }
                Err(error) => {
                    self.set_damaged(&error);
                    break;
                }
            }
            let Some((op, chain)) = self.backlog.front() else { break };
            match self.replica.apply(op, chain) {
                Ok(()) => {}
                Err(error) if error.is_retryable() => {
                    self.make_room(&error, now);
                    self.set_fault(Stuck::Apply, &error, now);
                    break;
                }
                Err(error) => {
                    self.set_damaged(&error);
                    break;
                }
            }
            let client = self.receiver.writer().map_or("", |writer| &writer.name);
            self.behind.applied(op, self.replica.applied(), client);
            done += 1;
            self.applied_bytes += self.backlog.advance() as u64;
            self.decide_holds();
        }
        if done > 0 {
            if let Err(error) = self.replica.commit_batch() {
                self.set_fault(Stuck::Apply, &error, now);
            }
            self.behind.reached(self.replica.applied());
            self.close_kept(false);
            // Nobody's fsync waits for this, and the next flush says it too.
            let delay = if self.is_among_copies() { COPIES_ACK_DELAY } else { APPLIED_ACK_DELAY };
            self.ack_due.get_or_insert(now + delay);
            self.note_bounds();
        }
        done
    }

    /// Flushes and applies everything; whether that was possible.
    pub(super) fn settle(&mut self, now: Instant) -> bool {
        self.flush(now);
        while self.pending.is_empty() && !self.backlog.is_empty() && self.apply_some(now, usize::MAX) > 0 {}
        let done = self.pending.is_empty() && self.backlog.is_empty() && self.damaged.is_none();
        done && self.publishing.is_none() && !self.is_stuck(Stuck::Redo)
    }

    /// Whether the tree waits to be brought to a published state, and nothing is in the way.
    pub(super) fn can_finish_publish(&self) -> bool {
        let stuck = self.is_stuck(Stuck::Publish) || self.is_stuck(Stuck::Redo);
        self.publishing.is_some() && !self.is_held() && !stuck && self.damaged.is_none()
    }

    /// Brings the tree to the published state. It is durable already, so this is tried until it works. A reader that holds the tree is
    /// waited for.
    pub(super) fn finish_publish(&mut self, now: Instant) {
        let Some(position) = self.publishing.filter(|_| !self.is_held()) else { return };
        let from = self.staging_start.unwrap_or_else(|| self.log.start());
        match self.replica.publish(position, &self.log.source(from)) {
            Ok(published) => {
                self.publishing = None;
                self.staging_start = None;
                // It was a full one: nothing else is accepted before it.
                self.unproven = None;
                let client = self.receiver.writer().map_or("", |writer| &writer.name);
                self.behind.published(&published, position, client);
                tracing::info!(%position, changed = published.changed.len(), removed = published.removed.len(), "published");
                self.send_ack(true);
                self.checkpoint(now);
                if published.changed.len() + published.removed.len() > MANY {
                    memory::give_back();
                }
                self.decide_holds();
            }
            Err(error @ ApplyError::Sync { .. }) => self.sync_failed(&error, now),
            Err(error) if error.is_retryable() => self.set_fault(Stuck::Publish, &error, now),
            Err(error) => self.set_damaged(&error),
        }
    }

    /// Closes the place of deleted files when it is full, or if it is `old`.
    fn close_kept(&mut self, old: bool) {
        if self.replica.close_kept(old) {
            self.behind.closed(self.replica.applied());
        }
    }

    /// Makes room in the tree if that is what was missing.
    pub(super) fn make_room(&mut self, error: &ApplyError, now: Instant) {
        if !error.is_no_space() {
            return;
        }
        if let Err(error) = self.log.drop_spares() {
            tracing::warn!(%error, "spare segments of the log could not be deleted");
        }
        self.give_way(now);
    }

    /// On a full disk, deleted files, bytes that are kept only to save their being sent again, and the log of what is applied give way.
    fn give_way(&mut self, now: Instant) {
        self.close_kept(true);
        self.behind.make_room();
        match self.replica.drop_salvage() {
            Ok(true) => tracing::warn!("the disk is full: bytes of an unfinished resync were deleted"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "bytes of an unfinished resync could not be deleted"),
        }
        self.shorten_log(now);
    }

    /// Makes a checkpoint where that lets part of the log go, although something is at fault.
    fn shorten_log(&mut self, now: Instant) {
        if self.log_needed_from().segment > self.log.start().segment {
            self.checkpoint_in_need(now);
        }
    }

    pub(super) fn checkpoint_in_need(&mut self, now: Instant) {
        let possible = self.replica.can_checkpoint_in_need() && self.publishing.is_none() && !self.is_held();
        if !possible || self.is_stuck(Stuck::Redo) || self.damaged.is_some() {
            return;
        }
        let before = self.log.bytes();
        let mut done = self.write_checkpoint();
        if done.is_err() && self.give_reserve() {
            done = self.write_checkpoint();
        }
        match done {
            Ok(()) => {
                tracing::info!(from = before, to = self.log.bytes(), "the disk is full: the log was cut short");
                // At once, before the tree takes what the log gave.
                self.keep_reserve();
                self.checkpointed(now);
            }
            Err(OpenError::Apply(error @ ApplyError::Sync { .. })) => self.sync_failed(&error, now),
            // The fault that led here is told, and tried again.
            Err(error) => tracing::debug!(%error, "no checkpoint on the full disk"),
        }
    }

    fn write_checkpoint(&mut self) -> Result<(), OpenError> {
        self.replica.checkpoint_in_need()?;
        Ok(self.write_state()?)
    }

    /// Makes tree and catalog durable where they are, then lets the log before that go.
    pub(super) fn checkpoint(&mut self, now: Instant) {
        if let Err(error) = self.replica.checkpoint() {
            if matches!(error, ApplyError::Sync { .. }) {
                self.sync_failed(&error, now);
            } else if error.is_retryable() {
                self.set_fault(Stuck::Checkpoint, &error, now);
            } else {
                self.set_damaged(&error);
            }
            return;
        }
        if let Err(error) = self.write_state() {
            return self.set_fault(Stuck::Checkpoint, &error, now);
        }
        self.tidy();
        if now.saturating_duration_since(self.kept_at) >= KEPT_OPEN_FOR {
            self.kept_at = now;
            self.close_kept(true);
        }
        if self.faults.is_empty() {
            self.keep_reserve();
        }
        self.checkpointed(now);
    }

    fn checkpointed(&mut self, now: Instant) {
        self.checkpoint_bytes = 0;
        self.applied_bytes = 0;
        self.checkpoint_at = now;
        self.changed_at = if self.backlog.is_empty() { None } else { Some(now) };
        self.note_bounds();
    }

    /// Deletes a little of what was removed before.
    pub fn tidy(&mut self) {
        if self.damaged.is_none() && self.replica.has_litter() {
            self.replica.tidy(TIDY_SLICE);
        }
    }

    /// Whether so much was logged that a checkpoint should not wait for a pause.
    pub fn checkpoint_is_due(&self) -> bool {
        (self.checkpoint_bytes >= self.rule.bytes || self.checkpoint_makes_room())
            && !self.is_held()
            && self.publishing.is_none()
            && self.faults.is_empty()
    }

    /// Makes a checkpoint that [`Self::checkpoint_is_due`] asked for.
    pub fn checkpoint_now(&mut self, now: Instant) {
        self.checkpoint(now);
    }

    /// Stops: everything accepted is made durable and applied, the log is left short.
    pub fn stop(&mut self, now: Instant) {
        self.end_session(Some(Refusal::unavailable("the storage daemon is stopping")));
        if self.damaged.is_none() && self.settle(now) && self.publishing.is_none() {
            self.checkpoint(now);
        }
        self.behind.close();
    }
}
