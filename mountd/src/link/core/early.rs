//! Where the network is what everything waits for: bulk data is held back for a moment, to see what it comes to.
//!
//! A file that is saved again, or copied by a program that reads and writes, is data that the replica has already. Sent as it is written,
//! it would take the link's time all the same. So on a slow link bulk data waits until its writer pauses, but never longer than a part
//! of the time that the link would need for it; and if that would be long, it is not sent as ops at all: its cells become dirty, and a
//! resync offers digests. What is overwritten meanwhile is sent once, inside a range that is published as one step.
//!
//! ```text
//!            bulk, slow link                 writer pauses, much waits
//!   send ──────────────────────► hold ─────────────────────────────────► resync
//!     ▲                           │
//!     └───────────────────────────┘ writer pauses, little waits; or it writes not much faster than the link
//! ```
//! A resync that saved little is followed by a time in which bulk data is sent as it is written. Pure.

use std::time::Duration;

use tandem_proto::{Change, Op, Seq};

/// A link that carries more than this is fast: nothing is ever held back.
const SLOW_BYTES_PER_SECOND: u64 = 16 << 20;
/// Data of one change from which on it is bulk.
const BULK_BYTES: usize = 16 << 10;
/// Small ops that together are so much are bulk as well.
const QUEUE_BYTES: u64 = 64 << 10;
/// A file that is cut, or loses a name, is likely to be written anew: it waits as so much data would, as it may be what the new one is
/// made of.
const CUT_BYTES: u64 = 1 << 20;
/// A writer that did nothing for so long pauses.
const PAUSE: Duration = Duration::from_millis(200);
/// Held back at most for this part of the time that the link needs.
const HELD_PART: u32 = 4;
/// And never for longer than this: a rate is a measurement, and may be wrong.
const HELD_MAX: Duration = Duration::from_secs(5);
/// Data for which the link needs longer than this is offered by digest.
const RESYNC_FROM: Duration = Duration::from_secs(1);
/// After so many resyncs in a row that saved little, the next one is not sooner than the least patience; twice as long each time. The first ones
/// may have been new files, of which nobody can have a chunk.
const FAILURES_MAX: u32 = 3;
const PATIENCE_MIN: Duration = Duration::from_secs(5);
const PATIENCE_MAX: Duration = Duration::from_secs(300);

/// Whether a link of this rate is slow.
pub fn is_slow(rate: Option<u64>) -> bool {
    rate.is_some_and(|rate| rate < SLOW_BYTES_PER_SECOND)
}

/// What is known when a batch could go out.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    /// What the link carries, in bytes a second.
    pub rate: u64,
    /// Highest op that is filled.
    pub filled: Seq,
    /// Bytes that wait.
    pub unsent_bytes: u64,
    /// Bytes on their way.
    pub in_flight_bytes: u64,
    /// The next op is one that cuts a file, or takes a name.
    pub cuts: bool,
    /// The next op has bulk data.
    pub bulk: bool,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Send it.
    Send,
    /// Look again soon.
    Hold,
    /// Offer digests.
    Resync,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    since: Duration,
    moved: Duration,
    filled: Seq,
}

/// Holds bulk data back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate {
    hold: Option<Hold>,
    /// Ops up to here are sent as they are.
    open_until: Seq,
}

impl Gate {
    /// What to do with the op `next`, and those after it.
    pub fn decide(&mut self, next: Seq, queue: &Queue, now: Duration) -> Way {
        let waits = queue.unsent_bytes + queue.in_flight_bytes;
        let gated = queue.bulk || queue.cuts || waits >= QUEUE_BYTES;
        if next <= self.open_until || !gated {
            return Way::Send;
        }
        let hold = self.look(queue.filled, now);
        let needs = |bytes: u64| needs(bytes, queue.rate);
        let pauses = now.saturating_sub(hold.moved) >= PAUSE;
        if pauses && needs(queue.unsent_bytes) >= RESYNC_FROM {
            // The hold stays: whoever asks next whether the writer pauses hears the same.
            return Way::Resync;
        }
        let least = if queue.cuts { CUT_BYTES } else { 0 };
        if pauses || now.saturating_sub(hold.since) >= held(needs(queue.unsent_bytes.max(least))) {
            self.hold = None;
            self.open_until = queue.filled;
            return Way::Send;
        }
        Way::Hold
    }

    fn look(&mut self, filled: Seq, now: Duration) -> Hold {
        let hold = self.hold.get_or_insert(Hold { since: now, moved: now, filled });
        if hold.filled != filled {
            (hold.filled, hold.moved) = (filled, now);
        }
        *hold
    }

    /// The window overflowed at `limit` bytes, so a resync is to come: whether its writer is still at it, and may be waited for.
    pub fn awaits_pause(&mut self, rate: u64, limit: u64, filled: Seq, now: Duration) -> bool {
        let hold = self.look(filled, now);
        let pauses = now.saturating_sub(hold.moved) >= PAUSE;
        !pauses && now.saturating_sub(hold.since) < held(needs(limit, rate))
    }
}

fn held(needs: Duration) -> Duration {
    (needs / HELD_PART).min(HELD_MAX)
}

fn needs(bytes: u64, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}

/// Whether an op cuts a file or takes a name, and whether it has bulk data.
pub fn kind_of(op: &Op) -> (bool, bool) {
    let cuts = op.changes.iter().any(|change| match change {
        Change::Size { .. } => true,
        Change::Entry { old, new, .. } => old.is_some() && new.is_none() && op.changes.len() == 1,
        _ => false,
    });
    (cuts, op.changes.iter().any(|change| change.data_len() >= BULK_BYTES))
}

/// Whether digests pay, by experience.
#[derive(Clone, Copy, Debug, Default)]
pub struct Experience {
    not_before: Duration,
    patience: Duration,
    failures: u32,
}

impl Experience {
    /// Whether to try.
    pub fn allows(&self, now: Duration) -> bool {
        now >= self.not_before
    }

    /// A resync of `covered` bytes sent `sent` of them.
    pub fn learn(&mut self, covered: u64, sent: u64, now: Duration) {
        if sent <= covered / 2 {
            *self = Experience::default();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES_MAX {
            return;
        }
        self.patience = (self.patience * 2).clamp(PATIENCE_MIN, PATIENCE_MAX);
        self.not_before = now + self.patience;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tandem_proto::Seq;

    use super::{Experience, Gate, Queue, Way};

    fn queue(filled: u64, unsent_bytes: u64) -> Queue {
        Queue { rate: 2_500_000, filled: Seq(filled), unsent_bytes, in_flight_bytes: 0, cuts: false, bulk: true }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_file_that_is_written_fast_is_held_until_its_writer_pauses() {
        let mut gate = Gate::default();
        for step in 0..256 {
            assert_eq!(gate.decide(Seq(1), &queue(step + 1, (step + 1) << 20), ms(2 * step)), Way::Hold, "step {step}");
        }
        assert_eq!(gate.decide(Seq(1), &queue(256, 256 << 20), ms(700)), Way::Hold);
        assert_eq!(gate.decide(Seq(1), &queue(256, 256 << 20), ms(711)), Way::Resync);
    }

    #[test]
    fn little_data_is_held_for_a_part_of_the_time_that_it_needs() {
        let mut gate = Gate::default();
        assert_eq!(gate.decide(Seq(1), &queue(1, 100_000), ms(0)), Way::Hold);
        assert_eq!(gate.decide(Seq(1), &queue(1, 100_000), ms(11)), Way::Send);
        // What was there when that was decided goes at once.
        assert_eq!(gate.decide(Seq(1), &queue(1, 100_000), ms(11)), Way::Send);
        assert_eq!(gate.decide(Seq(2), &queue(2, 100_000), ms(12)), Way::Hold);
    }

    #[test]
    fn a_rate_that_is_wrong_holds_nothing_for_long() {
        let mut gate = Gate::default();
        let slow = |filled| Queue { rate: 400, cuts: true, ..queue(filled, 300) };
        assert_eq!(gate.decide(Seq(1), &slow(1), ms(0)), Way::Hold);
        // Its writer goes on, so that it never pauses.
        for step in 1..50 {
            assert_eq!(gate.decide(Seq(1), &slow(step), ms(100 * step)), Way::Hold);
        }
        assert_eq!(gate.decide(Seq(1), &slow(50), ms(5_000)), Way::Send);
    }

    #[test]
    fn a_writer_that_is_not_much_faster_than_the_link_is_not_held() {
        let mut gate = Gate::default();
        let (mut next, mut held) = (1, 0);
        for step in 1..1000u64 {
            // 100 kB each 10 ms are four times what the link carries; half of that is sent at once.
            if gate.decide(Seq(next), &queue(step, (step - next + 1) * 50_000), ms(10 * step)) == Way::Hold {
                held += 1;
            } else {
                next = step + 1;
            }
        }
        assert!(held < 600 && next > 900, "{held} of 1000 looks were in vain, and op {next} is next");
    }

    #[test]
    fn what_saved_nothing_is_not_tried_again_soon() {
        let mut experience = Experience::default();
        assert!(experience.allows(ms(0)));
        experience.learn(100, 90, ms(0));
        experience.learn(100, 90, ms(0));
        assert!(experience.allows(ms(0)), "new files are no rule");
        experience.learn(100, 90, ms(0));
        assert!(!experience.allows(ms(4_900)) && experience.allows(ms(5_000)));
        experience.learn(100, 90, ms(5_000));
        assert!(!experience.allows(ms(14_900)) && experience.allows(ms(15_000)));
        experience.learn(100, 1, ms(15_000));
        assert!(experience.allows(ms(15_000)));
    }
}
