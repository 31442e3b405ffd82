//! How durations of calls are counted: in buckets with fixed bounds, so that they can be added up and told to Prometheus.

/// Upper bounds of the buckets in seconds; what is longer than the last is in one more.
pub const BUCKETS_SECONDS: [f64; 14] =
    [5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 10e-3, 50e-3, 250e-3, 1.0, 10.0];

/// Number of buckets.
pub const BUCKETS: usize = BUCKETS_SECONDS.len() + 1;

/// The bucket of a duration.
pub fn bucket(nanoseconds: u64) -> usize {
    let seconds = nanoseconds as f64 * 1e-9;
    BUCKETS_SECONDS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS_SECONDS.len())
}

/// The duration in seconds below which the part `q` of what was counted is: the bound of its bucket. 0 if nothing was counted.
pub fn quantile(buckets: &[u64], q: f64) -> f64 {
    let all: u64 = buckets.iter().sum();
    let wanted = (all as f64 * q).ceil().max(1.0);
    let mut seen = 0;
    for (at, count) in buckets.iter().enumerate() {
        seen += count;
        if *count > 0 && seen as f64 >= wanted {
            let last = BUCKETS_SECONDS[BUCKETS_SECONDS.len() - 1];
            return BUCKETS_SECONDS.get(at).copied().unwrap_or(last);
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, bucket, quantile};

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let mut buckets = [0; BUCKETS];
        assert_eq!(quantile(&buckets, 0.5), 0.0);
        for nanoseconds in [4_000, 9_000, 9_500, 2_000_000] {
            buckets[bucket(nanoseconds)] += 1;
        }
        assert_eq!((quantile(&buckets, 0.5), quantile(&buckets, 0.99)), (10e-6, 2.5e-3));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
