//! When the link sends batches: at once after a rest, and then at most every [`REST`], more rarely while they come without a pause
//! ([`REST_MAX`]), unless somebody waits for the replica, or has just waited.
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
//! acknowledgement, and on the wire some 300 bytes. Sent one by one, the ops of a program that makes many files kept a processor busy that
//! the program needed (`docs/decisions/0031`). Pure: time is an argument.

use std::time::Duration;

/// Least time between two looks for ops. The timer of the runtime counts in milliseconds, so it is one to two of them in fact.
pub const REST: Duration = Duration::from_millis(1);
/// The rest doubles up to this while ops come without a pause.
pub const REST_MAX: Duration = Duration::from_millis(4);

/// So long after somebody waited the link's thread runs as soon as it is woken. Otherwise it would take a processor, each time that there
/// is something to send, from who is writing.
pub const PROMPT_FOR: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// The end of the last rest, and how long that was.
    last: Option<(Duration, Duration)>,
    resting: bool,
    /// When somebody waited last.
    waited: Option<Duration>,
}

impl Pace {
    /// Everything there was has been sent. `waited`: somebody waited for the replica since the last time.
    pub fn handle_sent(&mut self, now: Duration, waited: bool) {
        if waited {
            self.handle_hurry(now);
            return;
        }
        let rest = match self.last {
            Some((until, rest)) if now < until + REST => (rest * 2).min(REST_MAX),
            _ => REST,
        };
        self.last = Some((now + rest, rest));
        self.resting = true;
    }

    /// Somebody waits for what was not sent yet.
    pub fn handle_hurry(&mut self, now: Duration) {
        *self = Pace { waited: Some(now), ..Pace::default() };
    }

    /// Whether somebody waits, or did a moment ago.
    pub fn is_prompt(&self, now: Duration) -> bool {
        self.waited.is_some_and(|waited| now < waited + PROMPT_FOR)
    }

    /// How long to rest from now on; `None`: batches may go.
    pub fn rest(&mut self, now: Duration) -> Option<Duration> {
        let until = self.last.filter(|_| self.resting).map(|(until, _)| until).filter(|until| *until > now);
        self.resting = until.is_some();
        until.map(|until| until - now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PROMPT_FOR, Pace, REST, REST_MAX};

    #[test]
    fn the_first_goes_at_once_the_next_after_a_rest_and_what_is_or_was_waited_for_at_once() {
        let (mut pace, now) = (Pace::default(), Duration::from_secs(7));
        assert_eq!(pace.rest(now), None);
        pace.handle_sent(now, false);
        assert_eq!(pace.rest(now + REST / 4), Some(REST * 3 / 4));
        assert_eq!(pace.rest(now + REST), None);
        pace.handle_sent(now + REST, false);
        assert!(!pace.is_prompt(now));
        pace.handle_hurry(now + REST);
        assert_eq!(pace.rest(now + REST), None);
        pace.handle_sent(now + 2 * REST, true);
        assert_eq!(pace.rest(now + 2 * REST), None);
        pace.handle_sent(now + 3 * REST, false);
        assert!(pace.is_prompt(now + PROMPT_FOR) && !pace.is_prompt(now + 2 * REST + PROMPT_FOR));
    }

    #[test]
    fn the_rest_grows_while_ops_come_without_a_pause_and_is_short_again_after_one() {
        let (mut pace, mut now) = (Pace::default(), Duration::from_secs(7));
        let mut rests = Vec::new();
        for _ in 0..5 {
            pace.handle_sent(now, false);
            let rest = pace.rest(now).unwrap_or_default();
            rests.push(rest);
            // The runtime's timer is late.
            now += rest + REST / 2;
            assert_eq!(pace.rest(now), None);
        }
        assert_eq!(rests, [REST, REST * 2, REST_MAX, REST_MAX, REST_MAX]);
        now += REST * 2;
        pace.handle_sent(now, false);
        assert_eq!(pace.rest(now), Some(REST));
    }
}
