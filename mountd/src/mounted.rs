//! A mount that serves, as the admin service and signals handle it.

use std::{
    ffi::OsStr,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use tandem_proto::{Seq, pb};
use tandem_runtime::settings::Setting;

use crate::{
    admin::{MountFacts, MountOps},
    backing::{handle::Handle, sys},
    fuse::{self, Waiting},
    meters::Meters,
    mount,
    vfs::{Journal, Vfs, inodes::Inode},
};

/// Calls that wait and are told one by one.
const WAITING_SHOWN: usize = 10;

/// The mount.
pub struct Mounted<J> {
    dir: PathBuf,
    vfs: Arc<Vfs<J>>,
    bypass: Vec<String>,
    meters: Arc<Meters>,
    /// Which calls wait.
    waiting: Option<Waiting>,
    /// How long written data may wait in the kernel.
    flush_interval: Duration,
    /// What it was told to be.
    settings: Arc<Mutex<Vec<Setting>>>,
}

impl<J: Journal> Mounted<J> {
    /// `dir` is mounted and answered by `vfs`; `bypass` are those who held something of it before.
    pub fn new(dir: PathBuf, vfs: Arc<Vfs<J>>, bypass: Vec<String>, meters: Arc<Meters>) -> Mounted<J> {
        let settings = Arc::default();
        Mounted { dir, vfs, bypass, meters, waiting: None, flush_interval: Duration::ZERO, settings }
    }

    /// Written data may wait in the kernel so long.
    #[must_use]
    pub fn with_flush_interval(mut self, interval: Duration) -> Mounted<J> {
        self.flush_interval = interval;
        self
    }

    /// What tells which calls wait.
    #[must_use]
    pub fn with_waiting(mut self, waiting: Waiting) -> Mounted<J> {
        self.waiting = Some(waiting);
        self
    }

    /// Calls that wait for the replica, those first that wait longest.
    fn waiting(&self) -> Vec<pb::WaitingCall> {
        let mut waiting = self.waiting.as_ref().map_or_else(Vec::new, |waiting| waiting());
        waiting.sort_unstable_by_key(|(_, waits)| waits.since);
        waiting.truncate(WAITING_SHOWN);
        let call = |(what, waits): (&str, fuse::Waits)| {
            // 0 in another pid namespace; and who is told of may have ended meanwhile.
            let process = fs::read_to_string(format!("/proc/{}/comm", waits.thread)).unwrap_or_default();
            pb::WaitingCall {
                what: what.to_owned(),
                path: self.vfs.shown_path(waits.node).unwrap_or_default(),
                seconds: waits.since.elapsed().as_secs_f64(),
                pid: waits.thread,
                process: process.trim_end().to_owned(),
            }
        };
        waiting.into_iter().map(call).collect()
    }

    /// What it was told to be, as it is now.
    #[must_use]
    pub fn with_settings(mut self, settings: Arc<Mutex<Vec<Setting>>>) -> Mounted<J> {
        self.settings = settings;
        self
    }

    fn busy(&self) -> Vec<pb::BusyFile> {
        let path = |(node, bytes)| Some(pb::BusyFile { path: self.vfs.shown_path(node)?, bytes });
        self.meters.busiest().into_iter().filter_map(path).collect()
    }

    /// What answers it.
    pub fn vfs(&self) -> &Arc<Vfs<J>> {
        &self.vfs
    }

    /// Takes the mount off, also from under those who use it. Where it is off already, because umount(8) was faster, there is nothing to do.
    pub fn end(&self) {
        if let Err(error) = mount::unmount(&self.dir, false)
            && error.raw_os_error() != Some(libc::EINVAL)
        {
            tracing::info!(%error, "the mount is in use; it goes when its last user does");
            if let Err(error) = mount::unmount(&self.dir, true) {
                tracing::warn!(%error, "the mount cannot be taken off");
            }
        }
    }
}

/// Objects that the daemon may not read and that `status` lists by name.
const UNREADABLE_SHOWN: usize = 10;

/// Type of a FUSE file handle: node id and generation (`FILEID_INO64_GEN`).
const FUSE_HANDLE: u8 = 0x81;

/// Pushes dirty pages of shared mappings into the daemon, and waits for them: `syncfs` alone starts it and does not wait. Not by fsync, which also
/// has the kernel set times, and those of a file that was made immutable meanwhile are refused.
fn sync_mount<J: Journal>(dir: &Path, vfs: &Vfs<J>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = uninterrupted(|| rustix::fs::open(dir, flags, Mode::empty()))?;
    uninterrupted(|| rustix::fs::syncfs(&root))?;
    for inode in vfs.mappable() {
        // Who cannot be opened any more has no name, and no mapping that counts.
        if let Ok(file) = open_through_mount(&root, vfs, &inode) {
            uninterrupted(|| sys::write_pages(&file))?;
        }
    }
    Ok(())
}

/// How often a call is made again that says it was interrupted.
const INTERRUPTED_MAX: usize = 10;

/// Does it again while it says EINTR. No signal is meant for this thread, so it is not its own: a sync also tells of what went wrong with the
/// pages of others since the last one, and theirs may be killed at any moment (seen while stress-ng ended its workers, `cache=writeback`).
fn uninterrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        match call() {
            Err(rustix::io::Errno::INTR) if tries < INTERRUPTED_MAX => {}
            other => return other,
        }
    }
}

/// Opens an inode that the kernel has in use, by its handle on our mount; where that is not allowed, by its names.
fn open_through_mount<J: Journal>(root: &OwnedFd, vfs: &Vfs<J>, inode: &Inode) -> io::Result<OwnedFd> {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&((inode.node >> 32) as u32).to_ne_bytes());
    bytes[4..8].copy_from_slice(&(inode.node as u32).to_ne_bytes());
    bytes[8..].copy_from_slice(&(inode.generation as u32).to_ne_bytes());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let by_handle = Handle::from_parts(FUSE_HANDLE, &bytes).map(|handle| handle.open(root, flags));
    if let Some(Ok(file)) = by_handle {
        return Ok(file);
    }
    let names = vfs.backing().names_of(&inode.id).ok_or(io::ErrorKind::NotFound)?;
    let (last, dirs) = names.split_last().ok_or(io::ErrorKind::NotFound)?;
    let mut at = root.try_clone()?;
    for name in dirs {
        at = sys::open_path_at(&at, OsStr::from_bytes(name.as_bytes()))?;
    }
    let last = OsStr::from_bytes(last.as_bytes());
    Ok(rustix::fs::openat(&at, last, flags | OFlags::CLOEXEC, Mode::empty())?)
}

impl<J: Journal> MountOps for Mounted<J> {
    fn flush(&self) -> io::Result<()> {
        sync_mount(&self.dir, &self.vfs)?;
        self.vfs.settle_all();
        Ok(())
    }

    fn unmount(&self, force: bool) -> io::Result<()> {
        mount::unmount(&self.dir, force)
    }

    fn settings(&self) -> Vec<Setting> {
        self.settings.lock().clone()
    }

    fn oldest_unreplicated_fsync(&self, durable: Seq) -> f64 {
        self.meters.oldest_unreplicated(durable)
    }

    fn facts(&self) -> MountFacts {
        MountFacts {
            mountpoint: self.dir.display().to_string(),
            backing: self.vfs.backing().dir().display().to_string(),
            not_crossed: self.vfs.backing().not_crossed(),
            bypass: self.bypass.clone(),
            cache_mode: self.vfs.cache_mode(),
            flush_interval: self.flush_interval,
            fsync_mode: self.vfs.fsync_rules().to_string(),
            excludes: self.vfs.backing().excludes().texts(),
            held_writes: self.vfs.held_writes(),
            unreadable: self.vfs.backing().unreadable(UNREADABLE_SHOWN),
            known_inodes: self.vfs.inodes_known(),
            open_files: self.vfs.open_files(),
            files_read_ahead: self.vfs.files_read_ahead(),
            ops: self.meters.figures(),
            bytes: self.meters.bytes(),
            busy: self.busy(),
            waiting: self.waiting(),
            own_inside: self.vfs.backing().has_in_root(fuse::INSIDE_NAME),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::{INTERRUPTED_MAX, uninterrupted};

    #[test]
    fn what_was_interrupted_is_done_again_and_not_for_ever() {
        let mut left = 3;
        let twice = uninterrupted(|| {
            left -= 1;
            if left > 0 { Err(Errno::INTR) } else { Ok(()) }
        });
        assert_eq!((twice, left), (Ok(()), 0));
        let mut tries = 0;
        let always: Result<(), Errno> = uninterrupted(|| {
            tries += 1;
            Err(Errno::INTR)
        });
        assert_eq!((always, tries), (Err(Errno::INTR), INTERRUPTED_MAX));
        assert_eq!(uninterrupted(|| Err::<(), _>(Errno::IO)), Err(Errno::IO));
    }
}
