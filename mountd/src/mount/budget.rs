//! How much of what is written to a mount the kernel may keep dirty.
//!
//! The kernel trusts no FUSE daemon to clean pages, and gives each mount 1 % of the dirty memory, strictly (`/sys/class/bdi`). With
//! `cache=writeback` writers would wait for that most of the time.

use std::{fs, io, path::Path};

use super::table;

/// Gives the mount over `dir` so many percent, and lets it count with all others. Needs root.
pub fn raise(dir: &Path, percent: u32) -> io::Result<()> {
    let mount = table::read()?.into_iter().rev().find(|mount| mount.mountpoint == dir);
    let device = mount.ok_or(io::ErrorKind::NotFound)?.device;
    let bdi = Path::new("/sys/class/bdi").join(device);
    fs::write(bdi.join("max_ratio"), percent.to_string())?;
    fs::write(bdi.join("strict_limit"), "0")
}
