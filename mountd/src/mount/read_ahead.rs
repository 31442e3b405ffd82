//! How far the kernel reads ahead of who reads a file in order. A FUSE mount begins with 128 KiB, which is a request to the daemon every
//! 128 KiB; more can be had from `/sys/class/bdi` only, as root.

use std::{fs, io, path::Path};

use super::table;

/// What is asked for if the options do not say: one request of nearly the largest length. A page less, so that its answer and its header fit
/// into a pipe of the longest kind that anybody may have (`fuse/splice.rs`).
pub const DEFAULT_BYTES: usize = (1 << 20) - 4096;

/// Sets it for the mount over `dir`.
pub fn set(dir: &Path, bytes: usize) -> io::Result<()> {
    let mount = table::read()?.into_iter().rev().find(|mount| mount.mountpoint == dir);
    let device = mount.ok_or(io::ErrorKind::NotFound)?.device;
    fs::write(Path::new("/sys/class/bdi").join(device).join("read_ahead_kb"), (bytes >> 10).to_string())
}
