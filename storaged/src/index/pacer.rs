//! Bounds how fast a walk reads, and what the worker takes of a processor beside others. Pure: time is an argument.

use std::time::{Duration, Instant};

/// Credit that may be saved up by not reading.
const BURST: Duration = Duration::from_millis(100);

/// Counts what was read against a rate.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_second: u64,
    /// When everything that was read so far would have been read at the rate.
    paid: Instant,
}

impl Pacer {
    /// Reading at most so fast.
    pub fn new(bytes_per_second: u64, now: Instant) -> Pacer {
        Pacer { bytes_per_second: bytes_per_second.max(1), paid: now }
    }

    /// So many bytes were read: how long to wait before the next ones.
    pub fn read(&mut self, bytes: u64, now: Instant) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.paid = self.paid.max(earliest) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.paid.saturating_duration_since(now)
    }
}

/// It works for so long before it rests.
const STINT: Duration = Duration::from_millis(5);
/// And rests so many times as long: who is woken finds a processor idle that it would have to be fetched from, and its memory where it was.
const RESTS: u32 = 3;
/// Longest rest.
const REST_MAX: Duration = Duration::from_millis(100);

/// A worker that takes a quarter of a processor.
#[derive(Debug, Default)]
pub struct Stints {
    worked: Duration,
}

impl Stints {
    /// It worked for so long: how long to rest.
    pub fn worked(&mut self, took: Duration) -> Duration {
        self.worked += took;
        if self.worked < STINT {
            return Duration::ZERO;
        }
        (std::mem::take(&mut self.worked) * RESTS).min(REST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Pacer, REST_MAX, Stints};

    #[test]
    fn three_quarters_of_a_processor_are_left_and_rests_are_few_and_short() {
        let mut stints = Stints::default();
        let rests: Vec<Duration> = (0..1000).map(|_| stints.worked(Duration::from_micros(200))).collect();
        assert_eq!(rests.iter().sum::<Duration>(), 3 * Duration::from_millis(200));
        assert_eq!(rests.iter().filter(|rest| !rest.is_zero()).count(), 40);
        assert_eq!(stints.worked(Duration::from_secs(10)), REST_MAX);
    }

    #[test]
    fn a_rate_is_kept_over_any_time_and_little_is_saved_up() {
        let mut now = Instant::now();
        let start = now;
        let mut pacer = Pacer::new(1 << 20, now);
        for _ in 0..100 {
            now += pacer.read(1 << 20, now);
        }
        let took = now - start;
        assert!(took >= Duration::from_secs(99) && took <= Duration::from_secs(101), "{took:?}");
        now += Duration::from_secs(3600);
        assert!(pacer.read(1 << 20, now) >= Duration::from_millis(800));
        assert_eq!(Pacer::new(u64::MAX, now).read(1 << 40, now).as_millis(), 0);
    }
}
