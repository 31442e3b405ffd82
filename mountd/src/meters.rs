//! What is asked of the mount, counted: calls by kind and duration, bytes, the busiest files, and fsyncs that the replica lacks.
//!
//! On the way of every request, so it costs a few atomic additions; files are counted by sampling. Everything is bounded.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tandem_proto::{
    Seq,
    figures::{BUCKETS, bucket},
    pb,
};
use tandem_runtime::map::QuickMap;

/// Kinds of calls that are told apart, by opcode of the kernel.
const KINDS: [(&str, &[u32]); 16] = [
    ("lookup", &[1]),
    ("getattr", &[3, 52]),
    ("setattr", &[4]),
    ("read", &[15]),
    ("write", &[16]),
    ("open", &[14]),
    ("create", &[8, 35, 51]),
    ("mkdir", &[9]),
    ("unlink", &[10, 11]),
    ("rename", &[12, 45]),
    ("link", &[6, 13]),
    ("fsync", &[20, 30]),
    ("readdir", &[28, 44]),
    ("xattr", &[21, 22, 23, 24]),
    ("release", &[18, 25, 29]),
    ("other", &[]),
];
const OTHER: usize = KINDS.len() - 1;
const OPCODES: usize = 64;

const fn kind_of(opcode: u32) -> u8 {
    let mut kind = 0;
    while kind < OTHER {
        let mut at = 0;
        while at < KINDS[kind].1.len() {
            if KINDS[kind].1[at] == opcode {
                return kind as u8;
            }
            at += 1;
        }
        kind += 1;
    }
    OTHER as u8
}

const fn table() -> [u8; OPCODES] {
    let mut table = [0; OPCODES];
    let mut opcode = 0;
    while opcode < OPCODES {
        table[opcode] = kind_of(opcode as u32);
        opcode += 1;
    }
    table
}

static KIND_OF: [u8; OPCODES] = table();

/// One in so many reads and writes is counted for its file.
const SAMPLED: u64 = 8;
/// Files that are counted at a time.
const FILES_MAX: usize = 1024;
/// How long files are counted before the busiest are told.
const FILES_FOR: Duration = Duration::from_secs(2);
/// Files that are told.
const BUSIEST: usize = 10;
/// Fsyncs that are remembered, and how much apart: the oldest is exact within that.
const SYNCS_MAX: usize = 1024;
const SYNCS_APART_NS: i64 = 100_000_000;

#[derive(Default)]
struct Kind {
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

struct Files {
    began: Instant,
    now: QuickMap<u64, u64>,
    /// Bytes a second, of the time before.
    before: Vec<(u64, u64)>,
}

/// See the module.
pub struct Meters {
    kinds: [Kind; KINDS.len()],
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    tick: AtomicU64,
    files: Mutex<Files>,
    syncs: Mutex<VecDeque<(Seq, i64)>>,
}

impl Default for Meters {
    fn default() -> Self {
        Meters {
            kinds: Default::default(),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            tick: AtomicU64::new(0),
            files: Mutex::new(Files { began: Instant::now(), now: QuickMap::default(), before: Vec::new() }),
            syncs: Mutex::default(),
        }
    }
}

fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

impl Files {
    fn turn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.began);
        if elapsed < FILES_FOR {
            return;
        }
        self.before.clear();
        // Long ago is not now.
        if elapsed < FILES_FOR * 2 {
            let rate = |bytes: u64| (bytes as f64 / elapsed.as_secs_f64()) as u64;
            self.before.extend(self.now.iter().map(|(node, bytes)| (*node, rate(*bytes))));
            self.before.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
            self.before.truncate(BUSIEST);
        }
        self.now.clear();
        self.began = now;
    }
}

impl Meters {
    /// A call was answered, or is parked.
    pub fn called(&self, opcode: u32, begin: Instant) {
        let nanoseconds = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let kind = KIND_OF.get(opcode as usize).map_or(OTHER, |kind| usize::from(*kind));
        let kind = &self.kinds[kind];
        kind.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        kind.buckets[bucket(nanoseconds)].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of a file were read.
    pub fn read(&self, node: u64, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touched(node, bytes);
    }

    /// Bytes of a file were written.
    pub fn written(&self, node: u64, bytes: usize) {
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touched(node, bytes);
    }

    fn touched(&self, node: u64, bytes: usize) {
        if !self.tick.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLED) {
            return;
        }
        // Who would have to wait does not count.
        let Some(mut files) = self.files.try_lock() else { return };
        files.turn(Instant::now());
        if files.now.len() < FILES_MAX || files.now.contains_key(&node) {
            *files.now.entry(node).or_default() += bytes as u64 * SAMPLED;
        }
    }

    /// An fsync returned that covers everything up to `seq`.
    pub fn synced(&self, seq: Seq) {
        let now = now_ns();
        let mut syncs = self.syncs.lock();
        let apart = syncs.back().is_none_or(|(_, last)| now - last >= SYNCS_APART_NS);
        if apart && syncs.len() < SYNCS_MAX {
            syncs.push_back((seq, now));
        }
    }

    /// Age in seconds of the oldest fsync that the replica lacks.
    pub fn oldest_unreplicated(&self, durable: Seq) -> f64 {
        let mut syncs = self.syncs.lock();
        while syncs.front().is_some_and(|(seq, _)| *seq <= durable) {
            syncs.pop_front();
        }
        syncs.front().map_or(0.0, |(_, then)| (now_ns() - then).max(0) as f64 / 1e9)
    }

    /// The busiest nodes, with bytes a second.
    pub fn busiest(&self) -> Vec<(u64, u64)> {
        let mut files = self.files.lock();
        files.turn(Instant::now());
        files.before.clone()
    }

    /// Bytes read and written since the start.
    pub fn bytes(&self) -> (u64, u64) {
        (self.read_bytes.load(Ordering::Relaxed), self.written_bytes.load(Ordering::Relaxed))
    }

    /// All kinds of calls that there were.
    pub fn figures(&self) -> Vec<pb::OpFigures> {
        let figures = KINDS.iter().zip(&self.kinds).map(|((op, _), kind)| {
            let buckets: Vec<u64> = kind.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
            let seconds = kind.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
            pb::OpFigures { op: (*op).to_owned(), count: buckets.iter().sum(), seconds, buckets }
        });
        figures.filter(|figures| figures.count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tandem_proto::Seq;

    use super::Meters;

    #[test]
    fn calls_are_counted_by_kind() {
        let meters = Meters::default();
        for opcode in [16, 16, 1, 9999] {
            meters.called(opcode, Instant::now());
        }
        let figures = meters.figures();
        let counts: Vec<_> = figures.iter().map(|figures| (figures.op.as_str(), figures.count)).collect();
        assert_eq!(counts, [("lookup", 1), ("write", 2), ("other", 1)]);
    }

    #[test]
    fn an_fsync_counts_until_the_replica_has_it() {
        let meters = Meters::default();
        assert_eq!(meters.oldest_unreplicated(Seq(0)), 0.0);
        meters.synced(Seq(5));
        meters.synced(Seq(6));
        assert!(meters.oldest_unreplicated(Seq(4)) > 0.0);
        assert_eq!(meters.oldest_unreplicated(Seq(5)), 0.0);
    }
}
