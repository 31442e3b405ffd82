//! A steady load: 20 MB/s of random 4 KiB writes. How long after its end the replica is equal, and what it cost on the wire.

use std::{
    fmt,
    fs::OpenOptions,
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    figures,
    rng::{Rng, content},
};

/// Bytes of a write.
const WRITE_BYTES: u64 = 4096;
/// Length of the file.
const FILE_BYTES: u64 = 256 << 20;

/// What one run showed.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Bytes that were written.
    pub written_bytes: u64,
    /// How long that took.
    pub took: Duration,
    /// From the last write to an equal replica.
    pub behind: Duration,
    /// Encoded bytes that were sent.
    pub sent_bytes: u64,
    /// Writes to the activity log.
    pub mark_writes: u64,
}

impl Figures {
    /// Bytes on the wire for each byte written.
    pub fn overhead(&self) -> f64 {
        self.sent_bytes as f64 / self.written_bytes as f64
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} MB/s for {:.1} s; equal {:.3} s after the end; wire {:.3} of the data; {} writes to the activity log",
            self.written_bytes as f64 / 1e6 / self.took.as_secs_f64(),
            self.took.as_secs_f64(),
            self.behind.as_secs_f64(),
            self.overhead(),
            self.mark_writes
        )
    }
}

/// Measures on a live mount whose daemon answers at `socket`.
pub fn measure(mount: &Path, socket: &Path, rate: u64, time: Duration) -> io::Result<Figures> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mount.join("bench-steady"))?;
    let block = content(1, 1 << 20);
    for at in 0..FILE_BYTES >> 20 {
        file.write_all_at(&block, at << 20)?;
    }
    file.sync_all()?;
    figures::settle(socket)?;
    let before = figures::status(socket)?;
    let mut rng = Rng::new(7);
    let data = content(2, 1 << 20);
    let (begun, mut written) = (Instant::now(), 0u64);
    while begun.elapsed() < time {
        let part = (rng.below((1 << 20) - WRITE_BYTES)) as usize;
        let offset = rng.below(FILE_BYTES / WRITE_BYTES) * WRITE_BYTES;
        file.write_all_at(&data[part..part + WRITE_BYTES as usize], offset)?;
        written += WRITE_BYTES;
        let due = Duration::from_secs_f64(written as f64 / rate as f64);
        if let Some(early) = due.checked_sub(begun.elapsed()).filter(|early| *early > Duration::from_millis(1)) {
            thread::sleep(early);
        }
    }
    let ended = Instant::now();
    figures::settle(socket)?;
    let behind = ended.elapsed();
    let after = figures::status(socket)?;
    Ok(Figures {
        written_bytes: written,
        took: ended - begun,
        behind,
        sent_bytes: after.sent_bytes - before.sent_bytes,
        mark_writes: after.mark_writes - before.mark_writes,
    })
}
