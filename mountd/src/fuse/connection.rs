//! The connection to the kernel: handshake, serving, and what the daemon tells the kernel unasked.

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc};

use fuser::{INodeNo, MountOption, Session, SessionACL};

use super::Adapter;
use crate::{
    mount::{MountSpec, SUBTYPE},
    vfs::{Journal, Vfs},
};

/// Threads that read requests. Calls may block on the local disk (a cold mark, an fsync), so more than there are cores.
const THREADS: usize = 4;

/// Who may use the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everybody, as file permissions say.
    Everybody,
    /// The daemon's user only.
    Owner,
}

/// A connection to the kernel whose handshake is done.
pub struct Connection<J: Journal> {
    session: Session<Adapter<J>>,
}

impl<J: Journal> Connection<J> {
    /// Takes over a FUSE descriptor whose superblock exists, and shakes hands.
    pub fn open(fuse: OwnedFd, vfs: Arc<Vfs<J>>, audience: Audience) -> io::Result<Connection<J>> {
        let acl = match audience {
            Audience::Everybody => SessionACL::All,
            Audience::Owner => SessionACL::Owner,
        };
        let session = Session::from_fd(Adapter { vfs: vfs.clone() }, fuse, acl, config(acl))?;
        Ok(Connection::new(session, &vfs))
    }

    /// Mounts by fusermount3, for whom the kernel does not allow it, and shakes hands. The mount shows before it serves.
    pub fn mount_by_helper(dir: &Path, spec: &MountSpec, vfs: Arc<Vfs<J>>) -> io::Result<Connection<J>> {
        let mut config = config(if spec.allow_other { SessionACL::All } else { SessionACL::Owner });
        config.mount_options = vec![
            MountOption::FSName(spec.source.clone()),
            MountOption::Subtype(SUBTYPE.to_owned()),
            MountOption::DefaultPermissions,
        ];
        if spec.read_only {
            config.mount_options.push(MountOption::RO);
        }
        if !spec.exec {
            config.mount_options.push(MountOption::NoExec);
        }
        let session = Session::new(Adapter { vfs: vfs.clone() }, dir, &config)?;
        Ok(Connection::new(session, &vfs))
    }

    fn new(session: Session<Adapter<J>>, vfs: &Vfs<J>) -> Connection<J> {
        let notifier = session.notifier();
        vfs.when_attributes_change(Box::new(move |node| {
            // A negative offset: attributes only. It takes no lock that a call under way could hold.
            if let Err(error) = notifier.inval_inode(INodeNo(node), -1, 0) {
                tracing::debug!(%error, node, "the kernel keeps old attributes");
            }
        }));
        Connection { session }
    }

    /// Answers requests until the file system is unmounted.
    pub fn serve(self) -> io::Result<()> {
        end_of_connection(self.session.run())
    }
}

/// The end of the connection shows as ENODEV, which fuser takes for the end. A thread that was just taking a request when the kernel
/// shut the connection gets ECONNABORTED instead (`fuse_dev_do_read`): the same end, seen a moment earlier.
fn end_of_connection(served: io::Result<()>) -> io::Result<()> {
    match served {
        Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        other => other,
    }
}

fn config(acl: SessionACL) -> fuser::Config {
    let mut config = fuser::Config::default();
    config.acl = acl;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::end_of_connection;

    #[test]
    fn a_request_taken_while_the_mount_goes_is_no_broken_connection() {
        assert!(end_of_connection(Err(io::Error::from_raw_os_error(libc::ECONNABORTED))).is_ok());
        assert!(end_of_connection(Err(io::Error::from_raw_os_error(libc::EIO))).is_err());
        assert!(end_of_connection(Ok(())).is_ok());
    }
}
