//! Bounds: what a volume takes from its writer, and when it holds it back.
//!
//! | what grows | bound | at the bound |
//! |---|---|---|
//! | ops that wait for apply, in memory | `backlog_bytes`, `backlog_ops` | the others wait in the log only |
//! | the log, because apply is slow, held or stuck | `log_max_bytes` less a reserve | readers are told to end, then the writer is held back |
//! | the log, because a staging goes on | the same | the staging is given up, its bytes stay as salvage |
//! | records that wait for their sync | [`GROUP_MAX_BYTES`] | the writer is held back |
//!
//! To hold a writer back is to leave its messages where they are; its window fills and its own rule for congestion decides.

use std::sync::Arc;

use tandem_proto::pb::{self, server_message::Body};

use super::{
    backlog::Backlog,
    core::{Core, Stuck},
};
use crate::{
    ingest::{receiver::Phase, refusal::Refusal},
    log::{LogPos, disk::Disk},
    tree::ReplicaTree,
};

/// Records of one group commit.
pub const GROUP_MAX_BYTES: usize = 8 << 20;

/// Bounds of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the log, of which a sixteenth is the reserve. It is the time that apply may stand still: 8 GiB are 40 s of a writer
    /// with 200 MB/s.
    pub log_max_bytes: u64,
    /// Durable ops that wait for apply in memory. 32 MiB are a fraction of a second of apply.
    pub backlog_bytes: usize,
    /// The same for small ops, which cost apply time and not memory.
    pub backlog_ops: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { log_max_bytes: 8 << 30, backlog_bytes: 32 << 20, backlog_ops: 16 << 10 }
    }
}

impl Bounds {
    fn reserve(&self) -> u64 {
        self.log_max_bytes / 16
    }
}

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Sets the bounds. Call it before anything is taken.
    pub fn bound(&mut self, bounds: Bounds) {
        assert!(self.backlog.is_empty(), "bounds are set before the first message");
        self.bounds = bounds;
        self.backlog = Backlog::new(bounds.backlog_bytes, bounds.backlog_ops);
    }

    /// The bounds.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Whether messages can be taken now. If not, they wait where they are.
    pub fn accepts(&self) -> bool {
        let stuck = self.is_stuck(Stuck::Log) || self.held.is_some();
        !stuck && self.pending_bytes < GROUP_MAX_BYTES && !self.is_held_back()
    }

    fn log_reaches(&self, bytes: u64) -> bool {
        self.log.bytes() + self.pending_bytes as u64 >= bytes
    }

    /// The log is at its bound, but for the reserve.
    pub(super) fn log_is_full(&self) -> bool {
        self.log_reaches(self.bounds.log_max_bytes - self.bounds.reserve())
    }

    /// Whether state comes in that nothing relies on before its publish.
    pub fn is_staging(&self) -> bool {
        matches!(self.receiver.phase(), Phase::Staging { .. })
    }

    /// The writer waits because apply is too far behind. A staging is given up instead: it cannot end while it waits.
    pub(super) fn is_held_back(&self) -> bool {
        !self.backlog.is_empty() && !self.is_staging() && self.log_is_full()
    }

    /// Why the writer is held back, for people.
    pub(super) fn held_back_reason(&self) -> Option<Arc<str>> {
        if !self.is_held_back() {
            return None;
        }
        let why = match self.faults.first() {
            Some(fault) => fault.message.to_string(),
            None if self.is_held() => "a reader holds the tree".to_owned(),
            None => "apply is slower than the writer".to_owned(),
        };
        let (bytes, max) = (self.log.bytes() >> 20, self.bounds.log_max_bytes >> 20);
        Some(Arc::from(format!(
            "the log is at its bound ({bytes} of {max} MiB, log-max), so the writer is held back: {why}"
        )))
    }

    /// A staging keeps its whole log. At the bound it is given up rather than stopped, because stopped it could never end.
    pub(super) fn check_staging_fits(&self) -> Result<(), Refusal> {
        if !self.is_staging() || !self.log_reaches(self.bounds.log_max_bytes) {
            return Ok(());
        }
        let max = self.bounds.log_max_bytes >> 20;
        Err(Refusal::unavailable(format!(
            "the resync was given up: its records and the ops that came meanwhile fill the log ({max} MiB, log-max). What it brought \
             is kept and not sent again; if this happens again, raise log-max on the storage daemon"
        )))
    }

    /// Where the log is needed from.
    pub(super) fn log_needed_from(&self) -> LogPos {
        let end = self.log.synced_end();
        self.backlog.oldest().into_iter().chain(self.staging_start).min().unwrap_or(end)
    }

    /// Whether a checkpoint would let part of a log go that is at its bound.
    pub(super) fn checkpoint_makes_room(&self) -> bool {
        self.log_is_full()
            && self.log_needed_from().segment > self.log.start().segment
            && (self.backlog.is_empty() || self.applied_bytes >= self.rule.bytes.min(self.bounds.reserve()))
    }

    /// Looks whether a bound was reached or left: readers end in time, and the writer hears.
    pub(super) fn note_bounds(&mut self) {
        if self.log_reaches(self.bounds.log_max_bytes - 2 * self.bounds.reserve()) && self.is_held() {
            let max = self.bounds.log_max_bytes >> 20;
            self.abort_holds(&format!(
                "the replica was held at one position for so long that its log reached its reserve ({max} MiB, log-max): it goes on. \
                 Try again, or raise log-max on the storage daemon"
            ));
        }
        let reason = self.held_back_reason();
        if reason.is_some() == self.told_held_back {
            return;
        }
        self.told_held_back = reason.is_some();
        match reason {
            Some(message) => {
                tracing::warn!(%message, "held back");
                self.last_error = message.clone();
                self.send(Body::Fault(pb::Fault { message: message.to_string() }));
            }
            None => {
                tracing::info!("the writer goes on");
                if self.faults.is_empty() {
                    self.send(Body::Fault(pb::Fault::default()));
                }
            }
        }
    }
}
