//! A mount that serves, as the admin service and signals handle it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};

use crate::{
    admin::{MountFacts, MountOps},
    mount,
    vfs::{FsyncMode, Journal, Vfs},
};

/// The mount.
pub struct Mounted<J> {
    dir: PathBuf,
    vfs: Arc<Vfs<J>>,
    fsync: FsyncMode,
    bypass: Vec<String>,
}

impl<J: Journal> Mounted<J> {
    /// `dir` is mounted and answered by `vfs`; `bypass` are those who held something of it before.
    pub fn new(dir: PathBuf, vfs: Arc<Vfs<J>>, fsync: FsyncMode, bypass: Vec<String>) -> Mounted<J> {
        Mounted { dir, vfs, fsync, bypass }
    }

    /// What answers it.
    pub fn vfs(&self) -> &Arc<Vfs<J>> {
        &self.vfs
    }

    /// Takes the mount off, also from under those who use it.
    pub fn end(&self) {
        if let Err(error) = mount::unmount(&self.dir, false) {
            tracing::info!(%error, "the mount is in use; it goes when its last user does");
            if let Err(error) = mount::unmount(&self.dir, true) {
                tracing::warn!(%error, "the mount cannot be taken off");
            }
        }
    }
}

/// Pushes dirty pages of shared mappings into the daemon.
fn sync_mount(dir: &Path) -> io::Result<()> {
    let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::syncfs(fd)?)
}

impl<J: Journal> MountOps for Mounted<J> {
    fn flush(&self) -> io::Result<()> {
        sync_mount(&self.dir)?;
        self.vfs.settle_all();
        Ok(())
    }

    fn unmount(&self, force: bool) -> io::Result<()> {
        mount::unmount(&self.dir, force)
    }

    fn facts(&self) -> MountFacts {
        MountFacts {
            mountpoint: self.dir.display().to_string(),
            backing: self.vfs.backing().dir().display().to_string(),
            not_crossed: self.vfs.backing().nested_mounts(),
            bypass: self.bypass.clone(),
            cache_mode: "strict".to_owned(),
            fsync_mode: match self.fsync {
                FsyncMode::Local => "local".to_owned(),
                FsyncMode::Durable => "durable".to_owned(),
            },
        }
    }
}
