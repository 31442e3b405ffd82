//! What is measured, and what each row may cost beside the same work on the backing file system.

/// How a ratio is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The mount's throughput as a part of the native one: more is better.
    Rate,
    /// The mount's time as a multiple of the native one: less is better.
    Time,
}

/// The bound of a row for replication paused and live.
type Bounds = [Option<f64>; 2];

/// One kind of work.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What is done.
    pub name: &'static str,
    /// How its ratio is made.
    pub measure: Measure,
    strict: Bounds,
    writeback: Bounds,
    /// What bounds it, whatever the file system does.
    bounded: Bounded,
}

/// What a file system behind FUSE cannot do anything about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounded {
    /// Each call is a request or several, which it waits for.
    ByCalls,
    /// The kernel answers by itself, from what it keeps of a file.
    ByPageCache,
    /// Several ask at once, or ahead of who wants it.
    ByNothing,
}

const fn rate(name: &'static str, paused: f64, live: f64) -> Row {
    let bounds = [Some(paused), Some(live)];
    Row { name, measure: Measure::Rate, strict: bounds, writeback: bounds, bounded: Bounded::ByCalls }
}

const fn time(name: &'static str, paused: f64, live: f64) -> Row {
    Row { measure: Measure::Time, ..rate(name, paused, live) }
}

impl Row {
    /// Other bounds where the kernel keeps written pages.
    const fn with_writeback(self, paused: f64, live: f64) -> Row {
        Row { writeback: [Some(paused), Some(live)], ..self }
    }

    /// Bounds for `cache=strict` only.
    const fn strict_only(self) -> Row {
        Row { writeback: [None, None], ..self }
    }

    /// Several ask at once, or ahead of who wants it.
    const fn overlapping(self) -> Row {
        Row { bounded: Bounded::ByNothing, ..self }
    }

    /// The kernel has all of it.
    const fn cached(self) -> Row {
        Row { bounded: Bounded::ByPageCache, ..self }
    }

    /// What bounds it in a mount of these options.
    pub fn bounded(&self, options: &str) -> Bounded {
        match self.bounded {
            // With a write cache the kernel writes when it likes.
            Bounded::ByCalls if options.contains("cache=writeback") => Bounded::ByNothing,
            bounded => bounded,
        }
    }

    /// The bound for a kind of mount, as its options and its state say.
    pub fn bound(&self, options: &str, state: &str) -> Option<f64> {
        let bounds = if options.contains("cache=writeback") { self.writeback } else { self.strict };
        match state {
            "paused" => bounds[0],
            "live" => bounds[1],
            _ => None,
        }
    }

    /// The ratio of two times for the same work.
    pub fn ratio(&self, native_seconds: f64, seconds: f64) -> f64 {
        match self.measure {
            Measure::Rate => native_seconds / seconds,
            Measure::Time => seconds / native_seconds,
        }
    }

    /// Whether a ratio is within a bound.
    pub fn within(&self, ratio: f64, bound: f64) -> bool {
        match self.measure {
            Measure::Rate => ratio >= bound,
            Measure::Time => ratio <= bound,
        }
    }
}

/// After a burst of sequential writes a live replica is equal within the time that the data takes at this rate, in bytes a second.
pub const EQUAL_RATE_MIN: f64 = 0.3 * GIB;
/// Bytes.
pub const GIB: f64 = (1 << 30) as f64;

/// Names of the rows, for who measures them.
pub mod name {
    #![allow(missing_docs, reason = "the texts say it")]
    pub const WRITE_LARGE: &str = "sequential write 1 MiB";
    /// Beside the table, as native has no replica.
    pub const EQUAL: &str = "equal after sequential write";
    pub const WRITE_SMALL: &str = "sequential write 4 KiB";
    pub const WRITE_RANDOM: &str = "random write 4 KiB";
    pub const WRITE_FSYNC: &str = "4 KiB write + fsync";
    pub const READ_COLD: &str = "sequential read, cold";
    pub const READ_WARM: &str = "sequential read, warm";
    pub const READ_RANDOM: &str = "random read 4 KiB, warm";
    pub const CREATE: &str = "create + write 4 KiB + close";
    pub const OPEN: &str = "open + read + close";
    pub const STAT_COLD: &str = "stat, cold";
    pub const STAT_WARM: &str = "stat, warm";
    pub const TAR: &str = "tar x";
    pub const GIT_ADD: &str = "git add";
    pub const GIT_STATUS: &str = "git status again";
    pub const FIND: &str = "find, warm";
    pub const UNLINK: &str = "unlink";
    pub const REMOVE_TREE: &str = "rm -rf";
    pub const PGBENCH: &str = "pgbench, 4 clients";
}

/// All rows, in the order of the table.
pub const ROWS: [Row; 18] = [
    rate(name::WRITE_LARGE, 0.30, 0.15).with_writeback(0.50, 0.20),
    rate(name::WRITE_SMALL, 0.15, 0.10).with_writeback(0.90, 0.40),
    rate(name::WRITE_RANDOM, 0.12, 0.08).with_writeback(0.90, 0.30),
    rate(name::WRITE_FSYNC, 0.70, 0.55),
    rate(name::READ_COLD, 1.0, 1.0).strict_only().overlapping(),
    rate(name::READ_WARM, 0.90, 0.90).strict_only().cached(),
    rate(name::READ_RANDOM, 0.95, 0.95).strict_only().cached(),
    time(name::CREATE, 8.0, 10.0),
    time(name::OPEN, 6.0, 6.0),
    time(name::STAT_COLD, 3.0, 3.0),
    time(name::STAT_WARM, 1.05, 1.05).cached(),
    time(name::TAR, 7.0, 9.0),
    time(name::GIT_ADD, 1.5, 2.0),
    time(name::GIT_STATUS, 1.1, 1.1).overlapping(),
    time(name::FIND, 2.0, 2.0),
    time(name::UNLINK, 4.5, 6.0),
    time(name::REMOVE_TREE, 4.0, 5.0),
    rate(name::PGBENCH, 0.65, 0.50).overlapping(),
];
