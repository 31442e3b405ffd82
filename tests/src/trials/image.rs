//! File systems on loop devices that lose power.
//!
//! [`Image::cut`] is the shutdown call of ext4 and xfs without a flush of the journal: from then on nothing reaches the image, neither
//! pages nor journal, as when the power goes. [`Image::recover`] unmounts what is left and mounts the image again, which replays the
//! journal; it makes sure that the kernel let go of the old file system in between, or the "recovered" one would be its page cache.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::UnmountFlags;

use crate::harness::{eventually, system};

const LIMIT: Duration = Duration::from_secs(60);
/// `_IOR('X', 125, __u32)`: EXT4_IOC_SHUTDOWN, and XFS_IOC_GOINGDOWN.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// EXT4_GOING_FLAGS_NOLOGFLUSH, XFS_FSOP_GOING_FLAGS_NOLOGFLUSH.
const NOLOGFLUSH: u32 = 2;

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 that commits its journal only when somebody asks, so that a cut loses as much as it may.
    Ext4,
    /// xfs.
    Xfs,
}

/// Both, with their names on a command line.
pub const FILE_SYSTEMS: [(&str, FileSystem); 2] = [("ext4", FileSystem::Ext4), ("xfs", FileSystem::Xfs)];

/// A mounted image. Dropping it unmounts it and gives the loop device back.
#[derive(Debug)]
pub struct Image {
    file_system: FileSystem,
    file: PathBuf,
    dir: PathBuf,
    device: Option<PathBuf>,
}

impl Image {
    /// A new file system of this size, its image `file`, mounted at `dir`. The error says why there can be none here.
    pub fn new(file_system: FileSystem, file: &Path, bytes: u64, dir: &Path) -> Result<Image, String> {
        let text = |error: io::Error| format!("{}: {error}", file.display());
        File::create(file).and_then(|image| image.set_len(bytes)).map_err(text)?;
        fs::create_dir_all(dir).map_err(text)?;
        let path = file.to_string_lossy();
        match file_system {
            FileSystem::Ext4 => system("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1,nodiscard", &path])?,
            FileSystem::Xfs => system("mkfs.xfs", &["-q", "-f", "-K", &path])?,
        };
        let mut image = Image { file_system, file: file.to_owned(), dir: dir.to_owned(), device: None };
        image.mount()?;
        Ok(image)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Mounts it, with what is on the image now.
    pub fn mount(&mut self) -> Result<(), String> {
        let found = system("losetup", &["--find", "--show", &self.file.to_string_lossy()])?;
        let device = PathBuf::from(found.stdout.trim());
        self.device = Some(device.clone());
        let (kind, options) = match self.file_system {
            FileSystem::Ext4 => ("ext4", "commit=600"),
            FileSystem::Xfs => ("xfs", ""),
        };
        let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(&device, &self.dir, kind, flags, options.as_c_str())
            .map_err(|error| format!("{} on {}: {error}", device.display(), self.dir.display()))
    }

    /// The power goes: nothing that is not on the image yet will ever be.
    pub fn cut(&self) {
        let root = File::open(&self.dir).expect("the root of a mounted file system can be opened");
        let flag = NOLOGFLUSH;
        // SAFETY: the descriptor is open, and the call reads one u32 behind the pointer, which lives through it.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, std::ptr::from_ref(&flag)) };
        assert_eq!(result, 0, "shutdown of {}: {}", self.dir.display(), io::Error::last_os_error());
    }

    /// Whether the kernel still has the file system, mounted somewhere or not.
    fn is_alive(&self) -> bool {
        let Some(name) = self.device.as_ref().and_then(|device| device.file_name()) else { return false };
        let place = match self.file_system {
            FileSystem::Ext4 => "/proc/fs/ext4",
            FileSystem::Xfs => "/sys/fs/xfs",
        };
        Path::new(place).join(name).exists()
    }

    /// Unmounts, and waits until the kernel has let go of it. Whoever used it must be gone.
    pub fn unmount(&mut self) -> Result<(), String> {
        let mut last = String::new();
        let gone = eventually(LIMIT, || match rustix::mount::unmount(&self.dir, UnmountFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => !self.is_alive(),
            Err(error) => {
                last = error.to_string();
                false
            }
        });
        if !gone {
            return Err(format!("{} does not go: {last}", self.dir.display()));
        }
        self.detach()
    }

    fn detach(&mut self) -> Result<(), String> {
        match self.device.take() {
            Some(device) => system("losetup", &["--detach", &device.to_string_lossy()]).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The power is back: the file system is mounted again, from what is on the image.
    pub fn recover(&mut self) {
        self.unmount().and_then(|()| self.mount()).unwrap_or_else(|error| panic!("no recovery: {error}"));
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            let _ = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH);
            let _ = self.detach();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::{FILE_SYSTEMS, Image};

    #[test]
    fn a_cut_keeps_what_was_synced_and_loses_what_was_not() {
        for (name, file_system) in FILE_SYSTEMS {
            if !rustix::process::geteuid().is_root() {
                eprintln!("SKIPPED: loop devices need root");
                return;
            }
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut image =
                match Image::new(file_system, &dir.path().join("image"), 512 << 20, &dir.path().join("mount")) {
                    Ok(image) => image,
                    Err(why) => {
                        eprintln!("SKIPPED {name}: {why}");
                        continue;
                    }
                };
            let (kept, lost) = (image.dir().join("kept"), image.dir().join("lost"));
            fs::write(&kept, "synced").expect("writable");
            File::open(&kept).and_then(|file| file.sync_all()).expect("it can be synced");
            File::open(image.dir()).and_then(|dir| dir.sync_all()).expect("it can be synced");
            fs::write(&lost, "not synced").expect("writable");
            image.cut();
            assert!(fs::write(image.dir().join("late"), "").is_err(), "{name}: nothing goes after a cut");
            image.recover();
            assert_eq!(fs::read_to_string(&kept).expect("it was synced"), "synced", "{name}");
            assert!(!lost.exists(), "{name}: what was never synced is gone");
        }
    }
}
