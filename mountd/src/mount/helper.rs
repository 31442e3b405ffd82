//! Mounting by fusermount3, for whom the kernel does not allow it: the helper mounts, and hands the descriptor over.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
};

use super::{MountSpec, SUBTYPE};

/// Mounts over `dir`; the FUSE descriptor. The mount shows before it serves.
pub fn mount_by_helper(dir: &Path, spec: &MountSpec) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let number = theirs.as_raw_fd();
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(options(spec)).arg("--").arg(dir);
    command.env("_FUSE_COMMFD", number.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only fcntl is called, which is safe there; the descriptor is open in the child as in the parent.
    unsafe {
        command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let child = command.spawn()?;
    // Or the helper's end would never show.
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output()?;
    received?.ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        io::Error::other(if said.is_empty() { format!("fusermount3 failed ({})", output.status) } else { said })
    })
}

fn options(spec: &MountSpec) -> String {
    // A comma or a backslash would end the value.
    let source = spec.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = format!("fsname={source},subtype={SUBTYPE},default_permissions");
    for (given, option) in [(spec.allow_other, ",allow_other"), (spec.read_only, ",ro"), (!spec.exec, ",noexec")] {
        if given {
            options.push_str(option);
        }
    }
    options
}

/// Room for one descriptor in a control message, aligned as its header wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// The descriptor that is sent over a socket; `None`: the other side ended without.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let (mut byte, mut control) = ([0u8; 1], Control([0; 64]));
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: all zeroes is a message header without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    loop {
        // SAFETY: the header points to live buffers of the lengths that it says.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match received {
            0 => return Ok(None),
            received if received > 0 => break,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    // SAFETY: the kernel filled the header; the macros stay within `msg_controllen`.
    let (header, data) = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return Ok(None);
        }
        (header.read_unaligned(), libc::CMSG_DATA(header).cast::<i32>())
    };
    if header.cmsg_level != libc::SOL_SOCKET || header.cmsg_type != libc::SCM_RIGHTS {
        return Ok(None);
    }
    // SAFETY: a message of this type holds at least one descriptor, which the kernel just made and nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(data.read_unaligned()) };
    Ok(Some(fd))
}

#[cfg(test)]
mod tests {
    use super::options;
    use crate::mount::MountSpec;

    #[test]
    fn a_source_with_commas_stays_one_option() {
        let spec = MountSpec {
            source: "h:/a,b".into(),
            allow_other: false,
            read_only: true,
            suid: false,
            dev: false,
            exec: true,
        };
        assert_eq!(options(&spec), "fsname=h:/a\\,b,subtype=tandem,default_permissions,ro");
    }
}
