//! What no mount goes below: the same work in a file system that does nothing but remember, twice: behind FUSE, where it costs the way there, and
//! in the kernel, where it costs what the calls and the programs take by themselves. Behind FUSE one thread answers, and looks for the next
//! request without ever sleeping, nor do processors.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    time::Instant,
};

use rustix::{
    io::Errno as Refused,
    mount::{MountFlags, UnmountFlags},
};
use tandem_mountd::mount::read_ahead;
use tandem_runtime::processors;

use super::{
    Plan, memory,
    work::{self, Place, Record},
};
use crate::harness::median;

/// Requests of which one figure is made.
const BATCH: u32 = 1000;
/// Figures of which the median is taken.
const BATCHES: usize = 15;

/// Behind FUSE, mounted for a while on an empty directory. Seconds of a request and its answer.
pub fn measure(dir: &Path, plan: &Plan, archive: &Path, record: Record<'_>) -> io::Result<f64> {
    let session = memory::mount(dir)?;
    // As the mounts have it.
    if let Err(error) = read_ahead::set(dir, read_ahead::DEFAULT_BYTES) {
        eprintln!("the file system in memory is read 128 KiB ahead only: {error}");
    }
    let _awake = keep_awake();
    let measured = ask(dir).and_then(|seconds| {
        work(dir, plan, archive, true, record)?;
        Ok(seconds)
    });
    session.umount_and_join()?;
    measured
}

/// In the kernel, mounted for a while on an empty directory.
pub fn measure_within(dir: &Path, plan: &Plan, archive: &Path, record: Record<'_>) -> io::Result<()> {
    rustix::mount::mount("none", dir, "tmpfs", MountFlags::empty(), None)?;
    let measured = work(dir, plan, archive, false, record);
    rustix::mount::unmount(dir, UnmountFlags::empty())?;
    measured
}

/// Processors do not sleep until this is dropped, as they do not while a mount is asked quickly (on few processors, and as root).
fn keep_awake() -> Option<File> {
    if !(2..=8).contains(&processors::count()) {
        return None;
    }
    let mut device = OpenOptions::new().write(true).open("/dev/cpu_dma_latency").ok()?;
    device.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(device)
}

/// `pages`: also the reads that the kernel answers by itself.
fn work(dir: &Path, plan: &Plan, archive: &Path, pages: bool, record: Record<'_>) -> io::Result<()> {
    // As deep as in the mounts: each directory on the way is asked for.
    let dir = &dir.join("run");
    fs::create_dir(dir)?;
    let place = Place { dir, quiet: &|| Ok(()), settle: &|| false, requests: &|| None };
    if plan.has("data") {
        if pages {
            let large = dir.join("large");
            File::create(&large)?.set_len(plan.scale.large_bytes)?;
            work::cold_read(&place, &large, record)?;
            work::warm_reads(&large, &plan.scale, record)?;
        }
        work::small_writes(&place, &plan.scale, record)?;
        fs::remove_file(dir.join("small"))?;
    }
    if plan.has("names") {
        work::names(&place, &plan.scale, record)?;
    }
    if plan.has("programs") {
        work::programs(&place, archive, record)?;
    }
    Ok(())
}

fn ask(dir: &Path) -> io::Result<f64> {
    let root = File::open(dir)?;
    let mut times = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let begun = Instant::now();
        for _ in 0..BATCH {
            match rustix::fs::fgetxattr(&root, "user.none", &mut [0_u8; 8]) {
                Err(Refused::NODATA) => {}
                other => return Err(io::Error::other(format!("the bare file system answers {other:?}"))),
            }
        }
        times.push(begun.elapsed());
    }
    Ok(median(&mut times).as_secs_f64() / f64::from(BATCH))
}
