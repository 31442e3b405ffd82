//! File handles of the kernel: an identity that outlives renames and remounts, and opens its object again.

use std::{
    ffi::{CStr, OsStr},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    thread,
    time::Duration,
};

use rustix::fs::OFlags;

/// Largest handle that the kernel makes (MAX_HANDLE_SZ).
const BYTES_MAX: usize = 128;

/// A name of 255 bytes and its NUL.
const NAME_BYTES: usize = 256;

/// How long an inode may take to be made: a turn of the journal at most.
const BIRTH: Duration = Duration::from_micros(500);
/// So often it is waited for; then it is memory that is short.
const BIRTHS_MAX: u32 = 400;

/// `struct file_handle` with room for the largest.
#[repr(C)]
#[derive(Clone, Copy)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; BYTES_MAX],
}

/// A kernel's file handle.
#[derive(Clone, Copy)]
pub struct Handle {
    raw: Raw,
}

impl Handle {
    /// From its parts; `None` if they cannot be a handle.
    pub fn from_parts(kind: u8, bytes: &[u8]) -> Option<Handle> {
        let mut raw = Raw { len: bytes.len() as u32, kind: i32::from(kind), bytes: [0; BYTES_MAX] };
        raw.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Handle { raw })
    }

    /// The handle of the object behind a descriptor. `EOPNOTSUPP`: its file system has none.
    pub fn of(fd: impl AsFd) -> io::Result<Handle> {
        Self::query(fd.as_fd(), c"", libc::AT_EMPTY_PATH)
    }

    /// The handle of what a name means; of a symbolic link its own.
    pub fn at(dir: impl AsFd, name: &OsStr) -> io::Result<Handle> {
        let mut bytes = [0u8; NAME_BYTES];
        let Some(room) = bytes.get_mut(..name.len()).filter(|room| room.len() < NAME_BYTES) else {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        };
        room.copy_from_slice(name.as_bytes());
        let Ok(name) = CStr::from_bytes_until_nul(&bytes) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        Self::query(dir.as_fd(), name, 0)
    }

    fn query(dir: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> io::Result<Handle> {
        let mut raw = Raw { len: BYTES_MAX as u32, kind: 0, bytes: [0; BYTES_MAX] };
        let mut mount_id = 0i32;
        // SAFETY: the pointers are to live objects; `raw.len` says how many bytes the kernel may write behind the header.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                dir.as_raw_fd(),
                name.as_ptr(),
                &raw mut raw,
                &raw mut mount_id,
                flags,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Handle { raw }) }
    }

    /// Type of the handle, if it is one of the registered ones.
    pub fn kind(&self) -> Option<u8> {
        u8::try_from(self.raw.kind).ok()
    }

    /// Opaque bytes of the handle.
    pub fn bytes(&self) -> &[u8] {
        &self.raw.bytes[..(self.raw.len as usize).min(BYTES_MAX)]
    }

    /// Opens the object; `mount` is any real descriptor of its file system. `ESTALE`: it is gone.
    pub fn open(&self, mount: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
        let mut tries = 0;
        loop {
            match self.open_once(mount.as_fd(), flags) {
                // Not for want of memory: the object is gone, and another one is being born under its number. The kernel does not wait for
                // that (`iget_locked` finds an inode with I_CREATING and gives none), and ext4 takes it for a failed allocation.
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && tries < BIRTHS_MAX => {
                    tries += 1;
                    thread::sleep(BIRTH);
                }
                other => return other,
            }
        }
    }

    fn open_once(&self, mount: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
        let mut raw = self.raw;
        let flags = (flags | OFlags::CLOEXEC).bits() as libc::c_int;
        // SAFETY: the pointer is to a live handle that the kernel only reads.
        let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use rustix::fs::OFlags;

    use super::Handle;

    #[test]
    fn an_object_whose_number_is_given_to_another_one_is_gone_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = File::open(dir.path()).expect("a directory");
        if Handle::of(&root).and_then(|handle| handle.open(&root, OFlags::PATH)).is_err() {
            eprintln!("SKIPPED: objects cannot be opened by handle here");
            return;
        }
        let path = |number: usize| dir.path().join(format!("f{number}"));
        let made: Vec<Handle> =
            (0..64).map(|number| Handle::of(File::create(path(number)).expect("room")).expect("it has one")).collect();
        (0..64).for_each(|number| fs::remove_file(path(number)).expect("it is there"));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Their numbers are used again, one after the other.
                for _ in 0..100 {
                    (0..64).for_each(|number| drop(File::create(path(number)).expect("room")));
                    (0..64).for_each(|number| fs::remove_file(path(number)).expect("it is there"));
                }
                over.store(true, Ordering::Relaxed);
            });
            while !over.load(Ordering::Relaxed) {
                for handle in &made {
                    let error = handle.open(&root, OFlags::PATH).expect_err("it was removed");
                    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
                }
            }
        });
    }
}
