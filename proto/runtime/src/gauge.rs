//! How fast a connection is, and how fast it may be.
//!
//! The sender of bulk data wants to know whether the network is what it waits for. The kernel knows: while bytes that were handed to it
//! are not sent yet, the network takes less than it is given, and what the other kernel acknowledges meanwhile is what it carries. A
//! receiver that is slow to read stops the sender before that (HTTP/2's window), so it is not taken for a slow network.
//!
//! The same object holds the limit that a person set, and its token bucket.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Time between two looks at a connection.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A network counts as the bottleneck when the kernel had bytes to send at every look for so long: a receiver that waited for a processor
/// is not taken for one.
const BUSY_AFTER: Duration = Duration::from_millis(400);
/// A network that carries less, by what is measured, is away or loses what it is given; it says nothing of what it carries else.
const CARRIES_MIN: u64 = 8 << 10;
/// What may be sent at once under a limit: a tenth of a second of it, within these bounds.
const BURST_MIN_BYTES: u64 = 16 << 10;
const BURST_MAX_BYTES: u64 = 1 << 20;

/// What a look at the kernel's side of a connection shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub at: Instant,
    /// Bytes that the other kernel acknowledged so far.
    pub acked: u64,
    /// Bytes that were not sent yet.
    pub unsent: u32,
}

#[derive(Debug)]
struct Busy {
    since: Look,
    last: Look,
}

#[derive(Debug)]
struct Bucket {
    tokens: u64,
    filled: Instant,
}

/// Rate of one link, through all its connections. Shared by who sends and who decides what to send.
#[derive(Debug)]
pub struct Gauge {
    /// Bytes a second; 0: none.
    limit: AtomicU64,
    /// Bytes a second; 0: the network was never the bottleneck so far.
    measured: AtomicU64,
    busy: Mutex<Option<Busy>>,
    bucket: Mutex<Bucket>,
}

impl Gauge {
    /// Nothing is known. `limit`: bytes a second that may be sent, if there is a limit.
    pub fn new(limit: Option<u64>) -> Gauge {
        Gauge {
            limit: AtomicU64::new(limit.unwrap_or(0)),
            measured: AtomicU64::new(0),
            busy: Mutex::new(None),
            bucket: Mutex::new(Bucket { tokens: BURST_MIN_BYTES, filled: Instant::now() }),
        }
    }

    /// The limit in bytes a second.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Changes the limit.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// What the link carries in bytes a second, as far as it was ever the bottleneck; never more than its limit.
    pub fn rate(&self) -> Option<u64> {
        let measured = Some(self.measured.load(Ordering::Relaxed)).filter(|rate| *rate > 0);
        match (measured, self.limit()) {
            (Some(measured), Some(limit)) => Some(measured.min(limit)),
            (measured, limit) => measured.or(limit),
        }
    }

    /// A new connection begins: what was seen of the one before says nothing of its counters.
    pub fn begin(&self) {
        *self.busy.lock() = None;
    }

    /// Whether it is time to look again.
    pub fn wants_look(&self, now: Instant) -> bool {
        self.busy.lock().as_ref().is_none_or(|busy| now.saturating_duration_since(busy.last.at) >= LOOK_EVERY)
    }

    /// Takes what a look showed.
    pub fn handle_look(&self, look: Look) {
        let mut busy = self.busy.lock();
        let Some(Busy { since, last }) = busy.take() else {
            *busy = Some(Busy { since: look, last: look });
            return;
        };
        let old = self.measured.load(Ordering::Relaxed);
        if last.unsent == 0 || look.unsent == 0 {
            // Not the bottleneck; but it carries at least what it carried.
            if let Some(rate) = rate_between(&last, &look).filter(|rate| old > 0 && *rate > old) {
                self.measured.store(rate, Ordering::Relaxed);
            }
            *busy = Some(Busy { since: look, last: look });
            return;
        }
        let long = look.at.saturating_duration_since(since.at) >= BUSY_AFTER;
        if let Some(rate) = rate_between(&since, &look).filter(|_| long) {
            if rate >= CARRIES_MIN {
                self.measured.store(rate, Ordering::Relaxed);
            }
            *busy = Some(Busy { since: look, last: look });
        } else {
            *busy = Some(Busy { since, last: look });
        }
    }

    /// How many of `wanted` bytes may be sent now; else when to ask again.
    pub fn may_send(&self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        let Some(limit) = self.limit() else { return Ok(wanted) };
        let burst = (limit / 10).clamp(BURST_MIN_BYTES, BURST_MAX_BYTES);
        let mut bucket = self.bucket.lock();
        let new = now.saturating_duration_since(bucket.filled).as_secs_f64() * limit as f64;
        if new >= 1.0 {
            bucket.tokens = bucket.tokens.saturating_add(new as u64).min(burst);
            bucket.filled = now;
        }
        // Not byte by byte: a packet at least, or all that is wanted.
        let least = (wanted as u64).min(1400);
        if bucket.tokens < least {
            let missing = (least - bucket.tokens) as f64 / limit as f64;
            return Err(Duration::from_secs_f64(missing).max(Duration::from_millis(1)));
        }
        Ok(wanted.min(bucket.tokens as usize))
    }

    /// So many bytes were sent.
    pub fn sent(&self, bytes: usize) {
        if self.limit().is_some() {
            let mut bucket = self.bucket.lock();
            bucket.tokens = bucket.tokens.saturating_sub(bytes as u64);
        }
    }
}

fn rate_between(from: &Look, to: &Look) -> Option<u64> {
    let seconds = to.at.checked_duration_since(from.at)?.as_secs_f64();
    let bytes = to.acked.checked_sub(from.acked)?;
    (seconds > 0.0).then(|| (bytes as f64 / seconds) as u64)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Gauge, Look};

    fn look(begun: Instant, ms: u64, acked: u64, unsent: u32) -> Look {
        Look { at: begun + Duration::from_millis(ms), acked, unsent }
    }

    #[test]
    fn a_network_that_never_had_to_be_waited_for_has_no_rate() {
        let (gauge, begun) = (Gauge::new(None), Instant::now());
        for step in 0..50 {
            gauge.handle_look(look(begun, step * 100, step * 1000, u32::from(step % 3 == 0) * 9));
        }
        assert_eq!(gauge.rate(), None);
    }

    #[test]
    fn a_network_that_is_waited_for_has_the_rate_of_its_acknowledgements() {
        let (gauge, begun) = (Gauge::new(None), Instant::now());
        for step in 0..20 {
            gauge.handle_look(look(begun, step * 100, step * 250_000, 1000));
        }
        assert_eq!(gauge.rate(), Some(2_500_000));
        // It became faster, which shows also when it is no bottleneck.
        gauge.handle_look(look(begun, 2000, 6_000_000, 0));
        gauge.handle_look(look(begun, 2100, 8_000_000, 0));
        assert_eq!(gauge.rate(), Some(20_000_000));
    }

    #[test]
    fn a_network_that_is_away_has_no_rate() {
        let (gauge, begun) = (Gauge::new(None), Instant::now());
        for step in 0..50 {
            gauge.handle_look(look(begun, step * 100, step * 46, 1000));
        }
        assert_eq!(gauge.rate(), None);
    }

    #[test]
    fn a_limit_holds_over_time() {
        let (gauge, begun) = (Gauge::new(Some(1_000_000)), Instant::now());
        let (mut sent, mut now) = (0, begun);
        while now < begun + Duration::from_secs(4) {
            match gauge.may_send(50_000, now) {
                Ok(part) => {
                    gauge.sent(part);
                    sent += part;
                }
                Err(wait) => now += wait,
            }
        }
        assert!((3_900_000..4_200_000).contains(&sent), "{sent} bytes in 4 s at 1 MB/s");
        assert_eq!(gauge.rate(), Some(1_000_000));
    }
}
