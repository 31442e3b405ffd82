//! Which backing directory this is: its file system's identity and its root's, so that another one is never taken for it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Identity of a backing directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    hash: [u8; 32],
}

/// `struct fsuuid2`.
#[repr(C)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID`: `_IOR(0x15, 0, struct fsuuid2)`, since Linux 6.9.
const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500u32 as libc::Ioctl;

impl Identity {
    /// Of the directory `root`, whose own persistent id within its file system is `root_id`.
    pub fn of(root: BorrowedFd<'_>, root_id: &[u8]) -> io::Result<Identity> {
        let mut hasher = blake3::Hasher::new_derive_key("tandemfs 2026 backing identity v1");
        match fs_uuid(root) {
            Some(uuid) => hasher.update(b"uuid").update(&uuid),
            None => hasher.update(b"fsid").update(&fs_id(root)?),
        };
        hasher.update(root_id);
        Ok(Identity { hash: *hasher.finalize().as_bytes() })
    }

    /// As it is kept in the client's state.
    pub fn as_bytes(&self) -> &[u8] {
        &self.hash
    }

    /// Goes into every inode id, so that ids of different backing directories differ.
    pub fn scope(&self) -> [u8; 4] {
        [self.hash[28], self.hash[29], self.hash[30], self.hash[31]]
    }
}

fn fs_uuid(root: BorrowedFd<'_>) -> Option<[u8; 16]> {
    let mut uuid = FsUuid { len: 0, uuid: [0; 16] };
    // SAFETY: the ioctl writes one `struct fsuuid2` to the pointer.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut uuid) };
    (result == 0 && uuid.uuid != [0; 16]).then_some(uuid.uuid)
}

fn fs_id(root: BorrowedFd<'_>) -> io::Result<[u8; 8]> {
    let fs = rustix::fs::fstatvfs(root)?;
    Ok(fs.f_fsid.to_le_bytes())
}
