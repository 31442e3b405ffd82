//! The figures by which a mount is judged: how soon a change shows on the replica, and how many bytes it took.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tandem_proto::pb;

use crate::{harness::rpc, rng::content};

/// Longest time that anything here waits for the replica.
const LIMIT: Duration = Duration::from_secs(60);

fn too_late(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{} did not show on the replica within {LIMIT:?}", path.display()))
}

fn until(path: &Path, there: impl Fn() -> bool) -> io::Result<Duration> {
    let begin = Instant::now();
    while !there() {
        if begin.elapsed() > LIMIT {
            return Err(too_late(path));
        }
        thread::yield_now();
    }
    Ok(begin.elapsed())
}

/// Creates `count` files of 4 KiB, one after the other; for each the time from its `close` to its bytes on the replica.
/// The times are sorted.
pub fn lags(mount: &Path, tree: &Path, count: u64) -> io::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for at in 0..count {
        let (name, bytes) = (format!("lag-{at}"), content(at, 4096));
        fs::write(mount.join(&name), &bytes)?;
        let copy = tree.join(&name);
        times.push(until(&copy, || fs::read(&copy).is_ok_and(|found| found == bytes))?);
    }
    times.sort_unstable();
    Ok(times)
}

/// A rename, seen from both sides.
#[derive(Clone, Copy, Debug)]
pub struct Rename {
    /// From the call to the new name on the replica.
    pub took: Duration,
    /// Encoded bytes that the mount sent for it.
    pub sent_bytes: u64,
}

/// Status of the mount behind a socket.
pub fn status(socket: &Path) -> io::Result<pb::MountStatus> {
    let reply = rpc::mount_status(socket).map_err(|error| io::Error::other(error.to_string()))?;
    reply.mounts.into_iter().next().ok_or_else(|| io::Error::other("mountd tells of no mount"))
}

/// Waits until all is applied.
pub fn settle(socket: &Path) -> io::Result<()> {
    match rpc::wait(socket, Duration::from_secs(300)) {
        Ok(reply) if reply.reached => Ok(()),
        Ok(reply) => Err(io::Error::other(format!("not applied: {}", reply.reason))),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// Renames `from` to `to` in a mount that is otherwise quiet.
pub fn rename(socket: &Path, mount: &Path, tree: &Path, from: &str, to: &str) -> io::Result<Rename> {
    settle(socket)?;
    // Times of modification follow writes after a moment of quiet; they are not part of the rename.
    thread::sleep(Duration::from_secs(3));
    settle(socket)?;
    let before = status(socket)?.sent_bytes;
    let begin = Instant::now();
    fs::rename(mount.join(from), mount.join(to))?;
    let copy = tree.join(to);
    until(&copy, || copy.exists())?;
    let took = begin.elapsed();
    settle(socket)?;
    Ok(Rename { took, sent_bytes: status(socket)?.sent_bytes - before })
}

/// Makes a file of this many bytes that are no zeroes.
pub fn write_large(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let block = content(bytes, 1 << 20);
    for _ in 0..bytes >> 20 {
        file.write_all(&block)?;
    }
    Ok(())
}

/// Makes a directory of this many small files.
pub fn write_many(dir: &Path, files: u64) -> io::Result<()> {
    fs::create_dir(dir)?;
    (0..files).try_for_each(|at| fs::write(dir.join(at.to_string()), at.to_string()))
}

/// The socket of the mountd that serves `mountpoint`.
pub fn socket_of(runtime_dir: &Path, mountpoint: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(runtime_dir)?.flatten() {
        let path = entry.path();
        let is_socket = path.extension().is_some_and(|extension| extension == "sock");
        if is_socket && status(&path).is_ok_and(|status| Path::new(&status.mountpoint) == mountpoint) {
            return Ok(path);
        }
    }
    Err(io::Error::other(format!("no mountd serves {} (asked in {})", mountpoint.display(), runtime_dir.display())))
}
