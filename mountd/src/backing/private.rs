//! The daemon's own way to the backing directory, which stays when something is mounted over it.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags},
    thread::UnshareFlags,
};

/// How the backing directory is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A detached mount of its own: what is mounted in it later, or was before, is not seen.
    PrivateMount,
    /// A plain descriptor (not allowed to mount).
    Descriptor,
}

/// Opens the directory so that later mounts over it do not matter.
pub fn open(dir: &Path) -> io::Result<(OwnedFd, Hold)> {
    let (tree, hold) =
        match rustix::mount::open_tree(CWD, dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC) {
            Ok(tree) => (tree, Hold::PrivateMount),
            Err(rustix::io::Errno::PERM | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                (rustix::fs::openat(CWD, dir, flags, Mode::empty())?, Hold::Descriptor)
            }
            Err(error) => return Err(error.into()),
        };
    Ok((real_descriptor(&tree)?, hold))
}

/// Opens the directory that lies beneath a mount at `dir`, without touching that mount: in a mount namespace of a thread of
/// its own, which ends with it.
pub fn open_beneath(dir: &Path) -> io::Result<(OwnedFd, Hold)> {
    let dir: PathBuf = dir.to_owned();
    let tree = thread::Builder::new()
        .name("beneath".to_owned())
        .spawn(move || -> io::Result<OwnedFd> {
            // SAFETY: only this thread's file system attributes and mount namespace are unshared; it runs nothing else.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }?;
            // Otherwise the unmount below would reach every other namespace.
            rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
            rustix::mount::unmount(&dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            Ok(rustix::mount::open_tree(CWD, &dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
        })?
        .join()
        .map_err(|_| io::Error::other("the thread that looks beneath the dead mount panicked"))??;
    Ok((real_descriptor(&tree)?, Hold::PrivateMount))
}

/// File handles are opened relative to a real descriptor; an O_PATH one does not do.
fn real_descriptor(tree: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(tree, c".", flags, Mode::empty())?)
}
