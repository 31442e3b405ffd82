//! The storage directory as a whole: its format, and that only one storaged uses it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use tandem_runtime::durable;

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
/// Format of the directory: which volumes there are and where. What is in a volume has a format of its own.
const FORMAT: u32 = 1;

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The system refused.
    #[error("the storage directory {}: {what}: {source}{}", path.display(), hint(source))]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the storage directory {} is in use by another tandem-storaged{}: stop that one first, or use another --data", path.display(), holder(.pid))]
    Locked {
        /// Which.
        path: PathBuf,
        /// Of the other process, if known.
        pid: String,
    },
    /// Another version made it.
    #[error(
        "the storage directory {} has format {found}, and this tandem-storaged knows format {FORMAT}: upgrade \
         tandem-storaged to the version that made it, or name another --data", path.display()
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// In its format file.
        found: String,
    },
    /// It holds something else.
    #[error(
        "{} is not empty and is not a storage directory ({FORMAT_FILE} is missing, {found} is there): give an empty or a new \
         directory with --data", path.display()
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// One name in it.
        found: String,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "; it lies on a read-only file system: remount it writable, or use another --data"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space there, or use another --data",
        io::ErrorKind::PermissionDenied => "; run as its owner, or use another --data",
        _ => "",
    }
}

fn holder(pid: &str) -> String {
    if pid.is_empty() { String::new() } else { format!(" (process {pid})") }
}

/// A storage directory that is ours while this lives.
#[derive(Debug)]
pub struct Storage {
    path: PathBuf,
    _lock: File,
}

impl Storage {
    /// Locks a storage directory and checks its format; an empty or missing one is made.
    pub fn open_or_create(path: &Path) -> Result<Storage, StorageError> {
        let failed = |what| move |source| StorageError::Io { path: path.to_owned(), what, source };
        durable::create_private_dir(path).map_err(failed("cannot be made"))?;
        // From here on the working directory does not matter.
        let path = path.canonicalize().map_err(failed("cannot be opened"))?;
        let failed = |what| {
            let path = path.clone();
            move |source| StorageError::Io { path: path.clone(), what, source }
        };
        let format = match fs::read_to_string(path.join(FORMAT_FILE)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("its format cannot be read")(error)),
        };
        match &format {
            Some(text) => check_format(&path, text)?,
            None => check_empty(&path, failed("cannot be listed"))?,
        }
        let lock = lock(&path, failed("cannot be locked"))?;
        if format.is_none() {
            let text = format!("tandem storage {FORMAT}\n");
            durable::replace_file_durably(&path.join(FORMAT_FILE), text.as_bytes())
                .map_err(failed("its format cannot be written"))?;
        }
        Ok(Storage { path, _lock: lock })
    }

    /// Locks a storage directory that exists, for work without a daemon.
    pub fn open_existing(path: &Path) -> Result<Storage, StorageError> {
        let text = fs::read_to_string(path.join(FORMAT_FILE)).map_err(|source| StorageError::Io {
            path: path.to_owned(),
            what: "is not one: its file `format` cannot be read",
            source,
        })?;
        check_format(path, &text)?;
        Self::open_or_create(path)
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn check_format(path: &Path, text: &str) -> Result<(), StorageError> {
    let found = text.trim().strip_prefix("tandem storage ").unwrap_or("unknown");
    if found.parse() == Ok(FORMAT) {
        return Ok(());
    }
    Err(StorageError::Version { path: path.to_owned(), found: found.to_owned() })
}

fn check_empty(path: &Path, failed: impl Fn(io::Error) -> StorageError) -> Result<(), StorageError> {
    for entry in fs::read_dir(path).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name().to_string_lossy().into_owned();
        // A file system's own directory, and what a start that failed leaves.
        if name != "lost+found" && name != LOCK_FILE && name != format!("{FORMAT_FILE}.partial") {
            return Err(StorageError::Foreign { path: path.to_owned(), found: name });
        }
    }
    Ok(())
}

fn lock(path: &Path, failed: impl Fn(io::Error) -> StorageError) -> Result<File, StorageError> {
    let file = path.join(LOCK_FILE);
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)
        .map_err(&failed)?;
    match rustix::fs::flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
            return Err(StorageError::Locked { path: path.to_owned(), pid });
        }
        Err(error) => return Err(failed(error.into())),
    }
    // For the message of the next one that comes.
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(&failed)?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::{Storage, StorageError};

    #[test]
    fn a_directory_is_used_by_one_at_a_time_and_again_later() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = Storage::open_or_create(dir.path()).expect("made");
        let error = Storage::open_or_create(dir.path()).expect_err("locked");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Storage::open_or_create(dir.path()).expect("free again");
    }

    #[test]
    fn another_version_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("format"), "tandem storage 7\n").expect("written");
        let error = Storage::open_or_create(dir.path()).expect_err("newer");
        assert!(error.to_string().contains("format 7"), "{error}");
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("thesis.tex"), "").expect("written");
        assert!(matches!(Storage::open_or_create(dir.path()), Err(StorageError::Foreign { .. })));
    }
}
