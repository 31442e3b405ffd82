//! The shadow's file, mapped. It belongs on a tmpfs; elsewhere it works as well, but its pages are written to the disk now and then.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use tandem_runtime::durable;

use super::{Region, ShadowStore};

/// A longer file is not one of ours.
const READ_MAX: u64 = 1 << 32;

/// Keeps the shadow in a file.
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// At this path; its directory is made if need be.
    pub fn new(path: PathBuf) -> FileStore {
        FileStore { path }
    }
}

impl ShadowStore for FileStore {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::metadata(&self.path) {
            Ok(found) if found.len() > READ_MAX => Err(io::Error::other("the shadow is longer than it can be")),
            Ok(_) => fs::read(&self.path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace(&mut self, len: usize, fill: &mut dyn FnMut(&mut dyn Region)) -> io::Result<Box<dyn Region>> {
        durable::create_private_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        let next = self.path.with_extension("next");
        let made = Mapping::create(&next, len).and_then(|mut region| {
            fill(&mut region);
            fs::rename(&next, &self.path)?;
            Ok(region)
        });
        match made {
            Ok(region) => Ok(Box::new(region)),
            Err(error) => {
                let _ = fs::remove_file(&next);
                let what = format!("no memory for the shadow in {}: {error}", self.path.display());
                Err(io::Error::new(error.kind(), what))
            }
        }
    }

    fn remove(&mut self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping is memory of the process like any other, owned by this value, and used through `&mut self` only.
unsafe impl Send for Mapping {}

impl Mapping {
    fn create(path: &Path, len: usize) -> io::Result<Mapping> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // All of it must be there before it is mapped: a store into a page that the file system has no room for would kill the daemon.
        reserve(&file, len)?;
        // SAFETY: a new shared mapping of a file that is `len` long; the result is checked.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start: start.cast(), len })
    }
}

fn reserve(file: &File, len: usize) -> io::Result<()> {
    // SAFETY: a call on an open descriptor without pointers.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len as libc::off_t) } {
        0 => Ok(()),
        libc::EOPNOTSUPP | libc::EINVAL => {
            let zeroes = vec![0; 1 << 16];
            let mut file = file;
            (0..len.div_ceil(zeroes.len())).try_for_each(|_| file.write_all(&zeroes))
        }
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl Region for Mapping {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(bytes.len() <= self.len && offset <= self.len - bytes.len(), "a write beyond the shadow");
        // SAFETY: the range lies in the mapping, which nobody else borrows; `bytes` is memory of its own.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(offset), bytes.len()) };
    }

    fn store(&mut self, offset: usize, word: u64) {
        assert!(offset.is_multiple_of(8) && self.len >= 8 && offset <= self.len - 8, "a word beyond the shadow");
        // SAFETY: the word lies in the mapping and is aligned, as the mapping begins at a page.
        let place = unsafe { AtomicU64::from_ptr(self.start.add(offset).cast()) };
        // Release: neither compiler nor processor moves the stores before it behind it.
        place.store(word.to_le(), Ordering::Release);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `create` with this length; nobody has a reference into it.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
