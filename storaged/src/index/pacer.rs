//! Bounds how fast a walk reads. Pure: time is an argument.

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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Pacer;

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
