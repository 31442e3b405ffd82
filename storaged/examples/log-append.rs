//! What one group commit of the replica's log costs, in one run: the production log through the page cache and around it, and the
//! bare system calls that each could be made of. Run it with `scripts/bench/log`.

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

fn measure(times: usize, mut once: impl FnMut(usize) -> io::Result<()>) -> io::Result<Vec<Duration>> {
    (0..times)
        .map(|number| {
            let started = Instant::now();
            once(number)?;
            Ok(started.elapsed())
        })
        .collect()
}

/// The production log.
fn log(directory: &Path, disk: DirDisk, bytes: usize, times: usize) -> io::Result<Vec<Duration>> {
    let mut log = Log::create(disk, LogOptions::default(), [7; 16]).map_err(io::Error::other)?;
    let payload = vec![5; bytes];
    let record = [Append { kind: 2, version: 1, payload: &payload }];
    // A first turn, so that what is measured runs in recycled segments, as it does in a volume.
    for _ in 0..(4 * SEGMENT as usize / bytes) {
        log.append_group(&record).map_err(io::Error::other)?;
        log.recycle_before(log.end()).map_err(io::Error::other)?;
    }
    let took = measure(times, |_| {
        let appended = log.append_group(&record).map_err(io::Error::other)?;
        log.mark_durable();
        log.recycle_before(appended.at).map_err(io::Error::other)
    });
    std::fs::remove_dir_all(directory)?;
    took
}

/// One file of zeroes, written block after block.
fn bare(path: &Path, flags: i32, call: bool, bytes: usize, times: usize) -> io::Result<Vec<Duration>> {
    let file: File = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let zeroes = vec![0; 1 << 20];
    for at in 0..SEGMENT >> 20 {
        file.write_all_at(&zeroes, at << 20)?;
    }
    file.sync_all()?;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let storage = vec![5; bytes + BLOCK];
    let start = storage.as_ptr().align_offset(BLOCK);
    let took = measure(times, |number| {
        let at = (number * bytes) as u64 % (SEGMENT - bytes as u64) / BLOCK as u64 * BLOCK as u64;
        file.write_all_at(&storage[start..start + bytes], at)?;
        if call { file.sync_data() } else { Ok(()) }
    });
    std::fs::remove_file(path)?;
    took
}

fn main() -> io::Result<()> {
    let base: PathBuf = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let base = base.join(format!("tandem-log-bench-{}", std::process::id()));
    std::fs::create_dir_all(&base)?;
    for (bytes, times) in CASES {
        let path = base.join("bare");
        let direct = libc::O_DIRECT;
        show("bare: page cache, fdatasync", bytes, bare(&path, 0, true, bytes, times)?);
        show("bare: O_DIRECT, fdatasync", bytes, bare(&path, direct, true, bytes, times)?);
        show("bare: O_DIRECT|O_DSYNC", bytes, bare(&path, direct | libc::O_DSYNC, false, bytes, times)?);
        let directory = base.join("log");
        let buffered = log(&directory, DirDisk::open_or_create(&directory)?.buffered(), bytes, times)?;
        let buffered = show("log: page cache", bytes, buffered);
        let direct = log(&directory, DirDisk::open_or_create(&directory)?, bytes, times)?;
        let direct = show("log: direct", bytes, direct);
        println!(
            "{:34} {:>5} KiB  {:.2} times the latency\n",
            "log: direct to page cache",
            bytes >> 10,
            direct as f64 / buffered as f64
        );
    }
    std::fs::remove_dir_all(base)
}
