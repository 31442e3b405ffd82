//! `/dev/fuse`: one request per read, one answer per write.

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};

use super::{
    abi::{DEV_IOC_BACKING_CLOSE, DEV_IOC_BACKING_OPEN, DEV_IOC_CLONE, NOTIFY_INVAL_INODE},
    splice::Message,
    wire::Out,
};
use crate::vfs::BackingFiles;

/// What a look for a request finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Took {
    /// One of this length.
    Request(usize),
    /// None.
    Nothing,
    /// The file system is unmounted.
    End,
}

/// A descriptor of the connection to the kernel.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Over a descriptor whose superblock exists.
    pub fn new(fd: OwnedFd) -> Device {
        Device { fd }
    }

    /// Another descriptor of the same connection, with a queue of its own for what it has read and not answered yet.
    pub fn another(&self) -> io::Result<Device> {
        let fd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let mut source = self.fd.as_raw_fd() as u32;
        // SAFETY: the ioctl reads one u32 from the pointer.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), DEV_IOC_CLONE, &raw mut source) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Device { fd }) }
    }

    /// Another descriptor, for [`Device::try_take`].
    pub fn another_polled(&self) -> io::Result<Device> {
        let device = self.another()?;
        rustix::fs::fcntl_setfl(&device.fd, OFlags::NONBLOCK)?;
        Ok(device)
    }

    /// Takes one request if there is one. For [`Device::another_polled`]; on another descriptor it waits.
    pub fn try_take(&self, buffer: &mut [u8]) -> io::Result<Took> {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(len) => Ok(Took::Request(len)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(Took::Nothing),
            Err(error) => end_of_connection(error.into()).map(|()| Took::End),
        }
    }

    /// Takes one request; how long it is. `None`: the file system is unmounted.
    pub fn take(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(len) => return Ok(Some(len)),
                // ENOENT: the request was taken back while it was read.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(error) => return end_of_connection(error.into()).map(|()| None),
            }
        }
    }

    /// Makes the kernel ask for the attributes of a node again. It takes no lock that a call under way could hold.
    pub fn forget_attributes(&self, node: u64) -> io::Result<()> {
        // A negative offset: attributes only.
        let message = Out::default().u64(node).u64((-1i64) as u64).u64(0);
        self.write(0, NOTIFY_INVAL_INODE, message, &[])
    }

    /// An answer out of pages. Nothing was sent if that fails.
    fn splice(&self, unique: u64, message: &mut Message) -> io::Result<()> {
        let len = message.len();
        message.send(Out::default().message(unique, 0, len), &self.fd)
    }

    /// One message, with what follows it. The kernel takes it whole or not at all.
    fn write(&self, unique: u64, code: i32, mut out: Out, data: &[u8]) -> io::Result<()> {
        let message = out.message(unique, code, data.len());
        match data {
            [] => rustix::io::write(&self.fd, message)?,
            data => rustix::io::writev(&self.fd, &[IoSlice::new(message), IoSlice::new(data)])?,
        };
        Ok(())
    }
}

impl BackingFiles for Arc<Device> {
    fn add(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        // `struct fuse_backing_map`: descriptor, flags, padding.
        let mut map = [file.as_raw_fd(), 0, 0, 0];
        // SAFETY: the ioctl reads 16 bytes from the pointer.
        let number = unsafe { libc::ioctl(self.fd.as_raw_fd(), DEV_IOC_BACKING_OPEN, map.as_mut_ptr()) };
        u32::try_from(number).map_err(|_| io::Error::last_os_error())
    }

    fn remove(&self, number: u32) {
        let mut number = number;
        // SAFETY: the ioctl reads one u32 from the pointer.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), DEV_IOC_BACKING_CLOSE, &raw mut number) } < 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "the kernel keeps a backing file");
        }
    }
}

/// The end of the connection shows as ENODEV. A thread that was just taking a request when the kernel shut the connection gets
/// ECONNABORTED instead (`fuse_dev_do_read`): the same end, seen a moment earlier.
fn end_of_connection(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ECONNABORTED) => Ok(()),
        _ => Err(error),
    }
}

/// The answer that a request waits for; it can be given later, from any thread. Dropped without one, the answer is EIO.
#[derive(Debug)]
#[must_use]
pub struct Reply {
    unique: u64,
    device: Option<Arc<Device>>,
}

impl Reply {
    /// To this request, which was taken from this device.
    pub fn new(unique: u64, device: &Arc<Device>) -> Reply {
        Reply { unique, device: Some(device.clone()) }
    }

    /// Done; nothing to say.
    pub fn ok(self) {
        self.send(0, Out::default(), &[]);
    }

    /// Refused, or failed.
    pub fn error(self, errno: i32) {
        self.send(-errno, Out::default(), &[]);
    }

    /// Done, with this.
    pub fn data(self, data: &[u8]) {
        self.send(0, Out::default(), data);
    }

    /// Done, with the data of this message; back if it cannot be sent so.
    pub fn pages(mut self, message: &mut Message) -> Result<(), Reply> {
        let Some(device) = self.device.take() else { return Ok(()) };
        device.splice(self.unique, message).map_err(|error| {
            tracing::debug!(%error, "an answer is copied that could not be spliced");
            self.device = Some(device);
            self
        })
    }

    /// Done, with these two.
    pub fn parts(self, first: Out, second: &[u8]) {
        self.send(0, first, second);
    }

    /// Done, with this structure.
    pub fn out(self, out: Out) {
        self.send(0, out, &[]);
    }

    /// Some requests are not answered.
    pub fn none(mut self) {
        self.device = None;
    }

    fn send(mut self, code: i32, out: Out, data: &[u8]) {
        let Some(device) = self.device.take() else { return };
        match device.write(self.unique, code, out, data) {
            Ok(()) => {}
            // Its process was killed before the request was taken, or the mount is gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ECONNABORTED)) => {
                tracing::debug!(%error, "nobody waits for an answer any more");
            }
            Err(error) => tracing::error!(%error, "the kernel does not take an answer"),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            tracing::error!(unique = self.unique, "a request was dropped unanswered");
            let _ = device.write(self.unique, -libc::EIO, Out::default(), &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::end_of_connection;

    #[test]
    fn a_request_taken_while_the_mount_goes_is_no_broken_connection() {
        assert!(end_of_connection(io::Error::from_raw_os_error(libc::ECONNABORTED)).is_ok());
        assert!(end_of_connection(io::Error::from_raw_os_error(libc::ENODEV)).is_ok());
        assert!(end_of_connection(io::Error::from_raw_os_error(libc::EIO)).is_err());
    }
}
