//! What one group commit of the replica's log costs, in one run: the production log through the page cache and around it, and the
//! bare system calls that each could be made of. Run it with `scripts/bench/log [DIR [SHARE]]`; SHARE 10 does a tenth.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tandem_storaged::log::{Append, Log, LogOptions, disk::DirDisk};

/// A payload and how often it is appended.
const CASES: [(usize, usize); 3] = [(4 << 10, 2000), (64 << 10, 1000), (1 << 20, 300)];
const BLOCK: usize = 4096;
const SEGMENT: u64 = 16 << 20;

fn percentile(sorted: &[Duration], percent: usize) -> u128 {
    sorted[(sorted.len() - 1) * percent / 100].as_micros()
}

fn show(what: &str, bytes: usize, mut took: Vec<Duration>) -> u128 {
    took.sort();
    let (half, most) = (percentile(&took, 50), percentile(&took, 99));
    let total: Duration = took.iter().sum();
    let rate = (bytes * took.len()) as f64 / total.as_secs_f64() / f64::from(1 << 20);
    println!("{what:34} {:>5} KiB  p50 {half:>6} us  p99 {most:>6} us  {rate:>7.0} MiB/s", bytes >> 10);
    half
}

/// One way to make an append durable.
trait Way {
    fn name(&self) -> &'static str;
    fn append(&mut self) -> io::Result<()>;
}

/// The production log.
struct LogWay {
    name: &'static str,
    log: Log<DirDisk>,
    payload: Vec<u8>,
}

impl LogWay {
    fn new(name: &'static str, disk: DirDisk, bytes: usize) -> io::Result<LogWay> {
        let log = Log::create(disk, LogOptions::default(), [7; 16]).map_err(io::Error::other)?;
        let mut way = LogWay { name, log, payload: vec![5; 1 << 20] };
        // So that what is measured runs in recycled segments, as it does in a volume.
        for _ in 0..(4 * SEGMENT) >> 20 {
            way.append()?;
        }
        way.payload.truncate(bytes);
        Ok(way)
    }
}

impl Way for LogWay {
    fn name(&self) -> &'static str {
        self.name
    }

    fn append(&mut self) -> io::Result<()> {
        let record = [Append { kind: 2, version: 1, payload: &self.payload }];
        let appended = self.log.append_group(&record).map_err(io::Error::other)?;
        self.log.mark_durable();
        self.log.recycle_before(appended.at).map_err(io::Error::other)
    }
}

/// One file of zeroes, written block after block.
struct BareWay {
    name: &'static str,
    file: File,
    call: bool,
    bytes: usize,
    storage: Vec<u8>,
    at: u64,
}

impl BareWay {
    fn new(name: &'static str, path: &Path, flags: i32, call: bool, bytes: usize) -> io::Result<BareWay> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let zeroes = vec![0; 1 << 20];
        for at in 0..SEGMENT >> 20 {
            file.write_all_at(&zeroes, at << 20)?;
        }
        file.sync_all()?;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
        Ok(BareWay { name, file, call, bytes, storage: vec![5; bytes + BLOCK], at: 0 })
    }
}

impl Way for BareWay {
    fn name(&self) -> &'static str {
        self.name
    }

    fn append(&mut self) -> io::Result<()> {
        let start = self.storage.as_ptr().align_offset(BLOCK);
        self.file.write_all_at(&self.storage[start..start + self.bytes], self.at)?;
        self.at = (self.at + self.bytes as u64) % SEGMENT;
        if self.call { self.file.sync_data() } else { Ok(()) }
    }
}

fn ways(base: &Path, bytes: usize) -> io::Result<Vec<Box<dyn Way>>> {
    let disk = |name: &str| DirDisk::open_or_create(&base.join(format!("{name}-{bytes}")));
    let file = |name: &str| base.join(format!("{name}-{bytes}"));
    let (direct, dsync) = (libc::O_DIRECT, libc::O_DIRECT | libc::O_DSYNC);
    Ok(vec![
        Box::new(LogWay::new("log: page cache", disk("log-buffered")?.buffered(), bytes)?),
        Box::new(LogWay::new("log: O_DIRECT|O_DSYNC", disk("log-direct")?, bytes)?),
        Box::new(BareWay::new("bare: page cache, fdatasync", &file("bare-buffered"), 0, true, bytes)?),
        Box::new(BareWay::new("bare: O_DIRECT, fdatasync", &file("bare-direct"), direct, true, bytes)?),
        Box::new(BareWay::new("bare: O_DIRECT|O_DSYNC", &file("bare-dsync"), dsync, false, bytes)?),
    ])
}

/// The ways take turns, so that whatever else the machine does hits all of them alike.
fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let base: PathBuf = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let share = arguments.next().and_then(|text| text.to_str()?.parse().ok()).unwrap_or(1);
    let base = base.join(format!("tandem-log-bench-{}", std::process::id()));
    std::fs::create_dir_all(&base)?;
    for (bytes, times) in CASES {
        let mut ways = ways(&base, bytes)?;
        let mut took = vec![Vec::new(); ways.len()];
        for _ in 0..times / share {
            for (way, took) in ways.iter_mut().zip(&mut took) {
                let started = Instant::now();
                way.append()?;
                took.push(started.elapsed());
            }
        }
        let mut first = 0;
        for (way, took) in ways.iter().zip(took) {
            let half = show(way.name(), bytes, took);
            first = if first == 0 { half } else { first };
            println!("{:34} {:.2} of the first", "", half as f64 / first.max(1) as f64);
        }
    }
    std::fs::remove_dir_all(base)
}
