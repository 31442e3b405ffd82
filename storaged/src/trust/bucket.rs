//! A bound on how often somebody may do something: so many at once, and then so many a second. Pure; time is an argument.

use std::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Bucket {
    burst: f64,
    per_second: f64,
    left: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// A full one.
    pub fn new(burst: u32, per_second: u32) -> Bucket {
        Bucket { burst: burst.into(), per_second: per_second.into(), left: burst.into(), at: None }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        if let Some(at) = self.at {
            let gained = now.saturating_duration_since(at).as_secs_f64() * self.per_second;
            self.left = (self.left + gained).min(self.burst);
        }
        self.at = Some(now);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Bucket;

    #[test]
    fn a_burst_is_let_through_and_then_only_the_rate() {
        let (mut bucket, start) = (Bucket::new(3, 10), Instant::now());
        let taken = |bucket: &mut Bucket, after| (0..10).filter(|_| bucket.take(start + after)).count();
        assert_eq!(taken(&mut bucket, Duration::ZERO), 3);
        assert_eq!(taken(&mut bucket, Duration::from_millis(200)), 2);
        assert_eq!(taken(&mut bucket, Duration::from_secs(60)), 3);
    }
}
