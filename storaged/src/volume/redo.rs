//! A sync of the tree that failed.
//!
//! Linux tells a writeback error once, marks the pages clean, and goes on showing what never reached the disk. So another sync that
//! works proves nothing. What the volume does instead:
//!
//! | what was synced | what is lost | what happens |
//! |---|---|---|
//! | staged bytes, before a publish | any of them | the staging is given up, without salvage; the writer stages anew |
//! | the tree, at a checkpoint | any data since the one before | the catalog goes back to that one, and the log is redone |
//! | the tree, at the end of a publish | the same | the same; the publish is redone from the log and from its synced files |
//!
//! Acknowledgements go on meanwhile: they promise the log, which has its own file and its own sync.

use std::time::Instant;

use super::core::{Core, Stuck};
use crate::{apply::ApplyError, ingest::receiver::Phase, ingest::refusal::Refusal, log::disk::Disk, tree::ReplicaTree};

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Stops what relies on the tree; [`Self::redo`] follows with the next tick.
    pub(super) fn sync_failed(&mut self, error: &ApplyError, now: Instant) {
        self.abort_holds(&format!("the replica cannot be read at one position now: {error}"));
        if matches!(self.receiver.phase(), Phase::Staging { .. }) {
            let message = format!("{error}; the resync begins anew, because bytes that it brought may be lost");
            self.end_session(Some(Refusal::unavailable(message)));
        }
        self.set_fault(Stuck::Redo, error, now);
    }

    /// Brings tree and catalog from the last checkpoint to the end of the log once more.
    pub(super) fn redo(&mut self, now: Instant) {
        let published = self.publishing.is_some();
        match self.replica.redo(&self.log.source(self.log.start()), published) {
            Ok(recovered) => {
                tracing::info!(position = %recovered.applied, "redone from the checkpoint before the sync that failed");
                self.backlog.clear();
                self.faults.retain(|fault| !matches!(fault.stuck, Stuck::Apply | Stuck::Publish));
                if self.publishing.take().is_some() {
                    self.staging_start = None;
                }
                self.behind.recovered(&recovered);
                self.send_ack(true);
                self.checkpoint(now);
                self.decide_holds();
            }
            Err(error) if error.is_retryable() => self.set_fault(Stuck::Redo, &error, now),
            Err(error) => self.set_damaged(&error),
        }
    }
}
