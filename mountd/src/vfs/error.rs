//! Why a file system call fails, and the one place that turns it into an errno.

use std::io;

use crate::commit::CommitError;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// The backing directory says so.
    #[error(transparent)]
    Backing(#[from] io::Error),
    /// The change may not happen, or cannot be promised.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The kernel names an inode that is not known, or whose object is gone.
    #[error("inode {0} is gone")]
    Stale(u64),
    /// The kernel names a handle that is not open.
    #[error("handle {0} is not open")]
    BadHandle(u64),
    /// A name of more than 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// No name at all (with a slash, or empty).
    #[error("not a file name")]
    BadName,
    /// The name means nothing.
    #[error("no such name")]
    NotFound,
    /// A newer writer fenced this mount.
    #[error("the mount is fenced")]
    ReadOnly,
    /// Into or out of a nested mount or subvolume, which is not part of the volume.
    #[error("another file system")]
    CrossDevice,
    /// This mount does not do that.
    #[error("not supported")]
    Unsupported,
    /// Arguments that make no sense.
    #[error("invalid argument")]
    Invalid,
}

/// Result of a file system call.
pub type VfsResult<T> = Result<T, VfsError>;

impl VfsError {
    /// What the application gets.
    pub fn errno(&self) -> i32 {
        match self {
            VfsError::Backing(error) => error.raw_os_error().unwrap_or(libc::EIO),
            VfsError::Commit(CommitError::Fenced(_)) | VfsError::ReadOnly => libc::EROFS,
            VfsError::Commit(CommitError::Interrupted) => libc::EINTR,
            VfsError::Commit(CommitError::ActivityLog(_) | CommitError::Timeout(..) | CommitError::Stopping) => {
                libc::EIO
            }
            VfsError::Stale(_) => libc::ESTALE,
            VfsError::BadHandle(_) => libc::EBADF,
            VfsError::NameTooLong => libc::ENAMETOOLONG,
            VfsError::BadName | VfsError::Invalid => libc::EINVAL,
            VfsError::NotFound => libc::ENOENT,
            VfsError::CrossDevice => libc::EXDEV,
            VfsError::Unsupported => libc::EOPNOTSUPP,
        }
    }
}

impl From<rustix::io::Errno> for VfsError {
    fn from(errno: rustix::io::Errno) -> Self {
        VfsError::Backing(errno.into())
    }
}
