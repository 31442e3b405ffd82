//! Mounting: the superblock is made and its handshake is done before it appears anywhere, so the mount appears serving.
//!
//! ```text
//! survey ─► prepare: /dev/fuse, fsopen, fsmount (detached) ─► handshake ─► attach: move_mount over DIR
//!   │ DIR is a dead mount of ours: attach beneath it, then take the dead one off, so that the bare directory never shows
//!   └ not allowed to mount: fusermount3, which mounts first
//! ```

pub mod budget;
pub mod bypass;
pub mod read_ahead;
pub mod table;

mod helper;

pub use self::helper::mount_by_helper;

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags},
};

/// Type under which mounts of ours are listed.
pub const FS_TYPE: &str = "fuse.tandem";
/// The part of the type behind `fuse.`.
pub const SUBTYPE: &str = "tandem";

/// Why the mount cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No such mountpoint.
    #[error("{0}: no such directory; make it first (mkdir -p {0})")]
    Missing(PathBuf),
    /// Not a directory.
    #[error("{0} is not a directory; a mount needs one")]
    NotDirectory(PathBuf),
    /// Already mounted by us.
    #[error(
        "{dir} is already mounted from {source_name}; `tandem umount {dir}` first, or `tandem status` to look at it"
    )]
    Busy {
        /// The mountpoint.
        dir: PathBuf,
        /// What is mounted.
        source_name: String,
    },
    /// A dead mount of somebody else.
    #[error("{dir} is a dead mount of {fs_type}, whose daemon is gone; umount it first (umount {dir})")]
    DeadForeign {
        /// The mountpoint.
        dir: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// A step failed.
    #[error("{step} {dir}: {source}{hint}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The mountpoint.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
}

/// What is at the mountpoint now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// A directory.
    Directory,
    /// A mount of ours whose daemon is gone, over a directory.
    DeadMount,
}

/// Looks at the mountpoint; its absolute path, and what is there.
pub fn survey(dir: &Path) -> Result<(PathBuf, Present), MountError> {
    let failed = |source| MountError::Step { step: "looking at", dir: dir.to_owned(), source, hint: "" };
    let absolute = absolute(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::Missing(dir.to_owned()),
        io::ErrorKind::NotADirectory => MountError::NotDirectory(dir.to_owned()),
        _ => failed(error),
    })?;
    let top = table::read().map_err(failed)?.into_iter().rev().find(|mount| mount.mountpoint == absolute);
    match (look(&absolute), top) {
        (Ok(_), Some(mount)) if mount.fs_type == FS_TYPE => {
            Err(MountError::Busy { dir: absolute, source_name: mount.source })
        }
        (Ok(metadata), _) if !metadata.is_dir() => Err(MountError::NotDirectory(absolute)),
        (Ok(_), _) => Ok((absolute, Present::Directory)),
        (Err(error), Some(mount)) if is_dead(&error) => match mount.fs_type.as_str() {
            FS_TYPE => Ok((absolute, Present::DeadMount)),
            _ => Err(MountError::DeadForeign { dir: absolute, fs_type: mount.fs_type }),
        },
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Err(MountError::Missing(absolute)),
        (Err(error), _) => Err(failed(error)),
    }
}

/// Names the connection to the kernel of the mount that lies uppermost over `dir`: its device, in this boot of the machine.
pub fn connection_name(dir: &Path) -> Option<String> {
    let mount = table::read().ok()?.into_iter().rev().find(|mount| mount.mountpoint == dir)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{}@{}", mount.device, boot.trim()))
}

/// Attributes, and whether somebody answers: a dead mount's attributes may be cached for long, its figures never are.
fn look(dir: &Path) -> io::Result<fs::Metadata> {
    let metadata = fs::metadata(dir)?;
    match rustix::fs::statfs(dir) {
        Err(error) if is_dead(&error.into()) => Err(error.into()),
        _ => Ok(metadata),
    }
}

/// A FUSE mount without its daemon answers this.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// The absolute path without links. The last part is not looked at if it is dead.
fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(dir) {
        Err(error) if is_dead(&error) => {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = dir.file_name().ok_or(error)?;
            Ok(fs::canonicalize(parent)?.join(name))
        }
        other => other,
    }
}

/// How the mount shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// What is shown as its source.
    pub source: String,
    /// Everybody may use it, as permissions say.
    pub allow_other: bool,
    /// Nobody may write.
    pub read_only: bool,
    /// Set-user-id programs work.
    pub suid: bool,
    /// Device files work.
    pub dev: bool,
    /// Programs run.
    pub exec: bool,
}

/// A superblock that is mounted nowhere yet.
pub struct Prepared {
    /// The connection to the kernel.
    pub fuse: OwnedFd,
    /// The detached mount.
    pub detached: Detached,
}

/// A mount that is nowhere yet. Dropped, it is gone.
pub struct Detached {
    mount: OwnedFd,
}

/// Makes the superblock. `None`: this process may not mount by itself.
pub fn prepare(spec: &MountSpec) -> io::Result<Option<Prepared>> {
    let fuse = match rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fuse) => fuse,
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let context = match rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(rustix::io::Errno::PERM | rustix::io::Errno::NOSYS) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    set("source", &spec.source)?;
    set("subtype", SUBTYPE)?;
    set("fd", &fuse.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &uid.to_string())?;
    set("group_id", &gid.to_string())?;
    rustix::mount::fsconfig_set_flag(&context, "default_permissions")?;
    if spec.allow_other {
        rustix::mount::fsconfig_set_flag(&context, "allow_other")?;
    }
    if spec.read_only {
        rustix::mount::fsconfig_set_flag(&context, "ro")?;
    }
    match rustix::mount::fsconfig_create(&context) {
        Ok(()) => {}
        Err(rustix::io::Errno::PERM) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !spec.suid);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, !spec.dev);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, !spec.exec);
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, spec.read_only);
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok(Some(Prepared { fuse, detached: Detached { mount } }))
}

/// `MOVE_MOUNT_BENEATH`, since Linux 6.5.
const MOVE_MOUNT_BENEATH: MoveMountFlags = MoveMountFlags::from_bits_retain(0x200);

impl Detached {
    /// Attaches it over `dir`. Its daemon must already answer.
    pub fn attach(self, dir: &Path, present: Present) -> Result<(), MountError> {
        let result = match present {
            Present::Directory => self.move_to(dir, MoveMountFlags::empty()),
            Present::DeadMount => self.replace_dead(dir),
        };
        result.map_err(|source| MountError::Step { step: "mounting over", dir: dir.to_owned(), source, hint: "" })
    }

    fn move_to(&self, dir: &Path, flags: MoveMountFlags) -> io::Result<()> {
        let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(rustix::mount::move_mount(&self.mount, c"", CWD, dir, flags)?)
    }

    /// The new mount goes beneath the dead one, which is then taken off. Where the kernel cannot do that there is a moment
    /// in which the directory shows.
    fn replace_dead(&self, dir: &Path) -> io::Result<()> {
        let beneath = self.move_to(dir, MOVE_MOUNT_BENEATH);
        if let Err(error) = &beneath {
            tracing::debug!(%error, "the kernel does not mount beneath");
        }
        rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        if beneath.is_err() { self.move_to(dir, MoveMountFlags::empty()) } else { Ok(()) }
    }
}

/// Takes a mount of ours off. `lazily`: also when it is in use; it then goes when its last user does.
pub fn unmount(dir: &Path, lazily: bool) -> io::Result<()> {
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(dir, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => fusermount_unmount(dir, lazily),
        Err(error) => Err(error.into()),
    }
}

fn fusermount_unmount(dir: &Path, lazily: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").stdin(Stdio::null());
    if lazily {
        command.arg("-z");
    }
    let output = command.arg("--").arg(dir).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match said.contains("busy") {
        true => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        false => Err(io::Error::other(said)),
    }
}

#[cfg(test)]
mod tests {
    use super::{MountError, Present, survey};

    #[test]
    fn a_mountpoint_that_cannot_be_one_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let missing = dir.path().join("missing");
        assert!(matches!(survey(&missing), Err(MountError::Missing(_))));
        let file = dir.path().join("file");
        std::fs::write(&file, b"").expect("write");
        assert!(matches!(survey(&file), Err(MountError::NotDirectory(_))));
        assert!(matches!(survey(dir.path()), Ok((_, Present::Directory))));
    }
}
