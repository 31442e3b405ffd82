//! Attributes of the real tree's objects. One way for objects that are open, another for those of which only the place is held
//! (symlinks, fifos, sockets, devices): the latter through `/proc/self/fd`, whose link leads to the object itself.

use std::{io, os::fd::AsRawFd as _};

use bytes::Bytes;
use rustix::{
    fs::XattrFlags,
    fs::{
        AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, chmod, chownat, fchmod, fchown, fgetxattr,
        flistxattr, fremovexattr, fsetxattr, futimens, getxattr, listxattr, removexattr, setxattr, utimensat,
    },
    io::Errno,
};
use tandem_proto::{limits::XATTR_VALUE_MAX, op::Timestamp};

use super::{fs::FsNode, is_state_xattr};

/// XATTR_LIST_MAX of Linux.
const LIST_MAX: usize = 65536;

fn proc_path(node: &FsNode) -> String {
    format!("/proc/self/fd/{}", node.fd.as_raw_fd())
}

pub fn set_owner(node: &FsNode, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    if node.path_only {
        return Ok(chownat(&*node.fd, c"", uid, gid, AtFlags::EMPTY_PATH)?);
    }
    Ok(fchown(&*node.fd, uid, gid)?)
}

pub fn set_mode(node: &FsNode, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    if node.path_only {
        return Ok(chmod(proc_path(node), mode)?);
    }
    Ok(fchmod(&*node.fd, mode)?)
}

pub fn set_mtime(node: &FsNode, mtime: Timestamp) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() },
    };
    if node.path_only {
        return Ok(utimensat(&*node.fd, c"", &times, AtFlags::EMPTY_PATH)?);
    }
    Ok(futimens(&*node.fd, &times)?)
}

pub fn list_xattrs(node: &FsNode) -> io::Result<Vec<Bytes>> {
    let mut room = [0u8; 1024];
    let list = |buffer: &mut [u8]| match node.path_only {
        true => listxattr(proc_path(node), buffer),
        false => flistxattr(&*node.fd, buffer),
    };
    let mut large = Vec::new();
    let names = match list(&mut room) {
        Ok(len) => &room[..len],
        Err(Errno::RANGE) => {
            large.resize(LIST_MAX, 0);
            let len = list(&mut large)?;
            &large[..len]
        }
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_state_xattr(name));
    Ok(names.map(Bytes::copy_from_slice).collect())
}

pub fn xattr(node: &FsNode, name: &[u8]) -> io::Result<Option<Bytes>> {
    let mut value = vec![0; XATTR_VALUE_MAX];
    let answer = match node.path_only {
        true => getxattr(proc_path(node), name, &mut value),
        false => fgetxattr(&*node.fd, name, &mut value),
    };
    match answer {
        Ok(len) => Ok(Some(Bytes::copy_from_slice(&value[..len]))),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub fn set_xattr(node: &FsNode, name: &[u8], value: &[u8]) -> io::Result<()> {
    match node.path_only {
        true => setxattr(proc_path(node), name, value, XattrFlags::empty())?,
        false => fsetxattr(&*node.fd, name, value, XattrFlags::empty())?,
    }
    Ok(())
}

pub fn remove_xattr(node: &FsNode, name: &[u8]) -> io::Result<()> {
    let answer = match node.path_only {
        true => removexattr(proc_path(node), name),
        false => fremovexattr(&*node.fd, name),
    };
    match answer {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        answer => Ok(answer?),
    }
}

/// An object begins without the ACLs of its directory: the ones that it has are sent.
pub fn drop_inherited_acls(node: &FsNode) -> io::Result<()> {
    for name in list_xattrs(node)? {
        if name.starts_with(b"system.posix_acl_") {
            remove_xattr(node, &name)?;
        }
    }
    Ok(())
}
