//! When the link sends batches: at once after a rest, and then at most every [`REST`], unless somebody waits for the replica, or has just
//! waited.
//!
//! ```text
//!            sent all there was                 the rest is over
//!   ready ────────────────────────► resting ──────────────────────► ready
//!    ▲ ▲ │ the same, and somebody     │  somebody waits (hurry)
//!    │ └─┘ waited since the last      │
//!    └────────────────────────────────┘
//! ```
//! Who has waited once will wait again: a database writes and calls fsync, again and again, and what it writes is on its way before it asks.
//!
//! Each batch costs both daemons the same, however few ops it has: some ten hand-overs between threads, a write to the log and an
//! acknowledgement. Sent one by one, the ops of a program that makes many files kept a processor busy that the program needed
//! (`docs/decisions/0031`). Pure: time is an argument.

use std::time::Duration;

/// Least time between two looks for ops. The timer of the runtime counts in milliseconds, so it is one to two of them in fact.
pub const REST: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    until: Option<Duration>,
}

impl Pace {
    /// Everything there was has been sent. `waited`: somebody waited for the replica since the last time.
    pub fn handle_sent(&mut self, now: Duration, waited: bool) {
        self.until = (!waited).then_some(now + REST);
    }

    /// Somebody waits for what was not sent yet.
    pub fn handle_hurry(&mut self) {
        self.until = None;
    }

    /// How long to rest from now on; `None`: batches may go.
    pub fn rest(&mut self, now: Duration) -> Option<Duration> {
        self.until = self.until.filter(|until| *until > now);
        self.until.map(|until| until - now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Pace, REST};

    #[test]
    fn the_first_goes_at_once_the_next_after_a_rest_and_what_is_or_was_waited_for_at_once() {
        let (mut pace, now) = (Pace::default(), Duration::from_secs(7));
        assert_eq!(pace.rest(now), None);
        pace.handle_sent(now, false);
        assert_eq!(pace.rest(now + REST / 4), Some(REST * 3 / 4));
        assert_eq!(pace.rest(now + REST), None);
        pace.handle_sent(now + REST, false);
        pace.handle_hurry();
        assert_eq!(pace.rest(now + REST), None);
        pace.handle_sent(now + REST, true);
        assert_eq!(pace.rest(now + REST), None);
    }
}
