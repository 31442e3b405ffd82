//! Large reads go from the pages of the backing file to the kernel's pages of the mount without passing through memory of ours: one copy
//! instead of two.
//!
//! ```text
//!  backing file ─ splice: the pages themselves ─► data ─┐ moved, no copy
//!  header of the answer ─ write ──────────────► message ┴─ splice: the kernel copies ─► /dev/fuse
//! ```
//! The header says how long the answer is, so it can be written only once the data is there: hence two pipes.

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

use crate::mount::read_ahead;

/// Reads from this length on are spliced. For shorter ones the calls cost more than the copy.
const SPLICED_MIN: usize = 64 << 10;

/// Length of a pipe: the longest that anybody may have (`/proc/sys/fs/pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;

/// A pipe holds so many pages, and parts of pages count as pages.
const PAGE: usize = 4096;

/// The header takes one of them.
const PAGES_MAX: usize = PIPE_BYTES / PAGE - 1;

/// What the kernel reads ahead by itself can be spliced.
const _: () = assert!(read_ahead::DEFAULT_BYTES <= PAGES_MAX * PAGE);

/// A pipe that never waits: what does not fit is refused.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// A message to the kernel that is put together out of pages.
#[derive(Debug)]
pub struct Message {
    data: Pipe,
    message: Pipe,
    /// What is in `data`.
    len: usize,
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&into, PIPE_BYTES)?;
        Ok(Pipe { out, into })
    }
}

impl Message {
    /// An empty one. Fails if there are no descriptors for it, or its user has too much in pipes (`/proc/sys/fs/pipe-user-pages-soft`).
    pub fn new() -> io::Result<Message> {
        Ok(Message { data: Pipe::new()?, message: Pipe::new()?, len: 0 })
    }

    /// Where its data goes.
    pub fn data(&self) -> &OwnedFd {
        &self.data.into
    }

    /// So much was put there.
    pub fn has(&mut self, len: usize) {
        self.len = len;
    }

    /// Length of its data.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Sends it behind this header. Nothing was sent if that fails, and the message is of no use any more.
    pub fn send(&mut self, header: &[u8], device: &OwnedFd) -> io::Result<()> {
        let whole = io::Error::from(io::ErrorKind::WriteZero);
        if rustix::io::write(&self.message.into, header)? != header.len() {
            return Err(whole);
        }
        let mut left = self.len;
        while left > 0 {
            match splice(&self.data.out, None, &self.message.into, None, left, SpliceFlags::NONBLOCK) {
                Ok(0) => return Err(whole),
                Ok(moved) => left -= moved,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let len = header.len() + self.len;
        // The kernel takes a message whole or not at all.
        let taken = splice(&self.message.out, None, device, None, len, SpliceFlags::empty())?;
        self.len = 0;
        if taken == len { Ok(()) } else { Err(whole) }
    }
}

/// What the reads of a thread go through.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    message: Option<Message>,
    /// It was tried in vain so often since it last went well.
    refused: u32,
    /// So many were not tried since.
    untried: u32,
}

/// After so many times in vain little is spliced any more: the backing file system cannot, or pipes that long may not be had.
const REFUSED_MAX: u32 = 16;
/// One in so many is tried then: what was short may be there again.
const TRIED_EVERY: u32 = 1024;

impl Scratch {
    /// Memory for a read of this length.
    pub fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        &mut self.bytes[..len]
    }

    /// Empty, for a read that is to be spliced; `None`: it is not.
    pub fn message(&mut self, offset: u64, len: usize) -> Option<&mut Message> {
        let pages = (offset as usize % PAGE + len).div_ceil(PAGE);
        if len < SPLICED_MIN || pages > PAGES_MAX {
            return None;
        }
        if self.refused >= REFUSED_MAX {
            self.untried = self.untried.wrapping_add(1);
            if !self.untried.is_multiple_of(TRIED_EVERY) {
                return None;
            }
        }
        if self.message.is_none() {
            self.message = Message::new().inspect_err(|error| tracing::debug!(%error, "no pipe for reads")).ok();
            self.refused = self.refused.saturating_add(u32::from(self.message.is_none()));
        }
        self.message.as_mut()
    }

    /// Whether the message was sent; if not, there may be something left in it.
    pub fn spliced(&mut self, sent: bool) {
        match sent {
            true => self.refused = 0,
            false => {
                self.message = None;
                self.refused = self.refused.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::fd::OwnedFd,
    };

    use super::{Message, PAGE, PAGES_MAX, REFUSED_MAX, SPLICED_MIN, Scratch, TRIED_EVERY};
    use rustix::pipe::{SpliceFlags, splice};

    fn filled(message: &mut Message, file: &File, mut from: u64, len: usize) {
        let put = splice(file, Some(&mut from), message.data(), None, len, SpliceFlags::NONBLOCK).expect("spliced");
        message.has(put);
    }

    #[test]
    fn a_header_and_the_pages_of_a_file_arrive_in_this_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let content: Vec<u8> = (0..PAGES_MAX * PAGE).map(|at| (at / 7) as u8).collect();
        fs::write(dir.path().join("content"), &content).expect("written");
        let file = File::open(dir.path().join("content")).expect("there");
        let mut message = Message::new().expect("pipes");
        for (at, (from, len)) in [(0, content.len()), (4090, 100_000), (9, 1)].into_iter().enumerate() {
            let path = dir.path().join(format!("sent-{at}"));
            let to = OwnedFd::from(File::create(&path).expect("made"));
            filled(&mut message, &file, from as u64, len);
            assert_eq!(message.len(), len);
            message.send(b"header", &to).expect("sent");
            let expected = [b"header", &content[from..from + len]].concat();
            assert!(fs::read(&path).expect("there") == expected, "{len} bytes from {from}");
        }
    }

    #[test]
    fn a_read_is_spliced_if_it_is_long_and_its_pages_fit() {
        let mut scratch = Scratch::default();
        assert!(scratch.message(0, SPLICED_MIN - 1).is_none());
        assert!(scratch.message(0, PAGES_MAX * PAGE).is_some());
        assert!(scratch.message(1, PAGES_MAX * PAGE).is_none(), "it takes a page more");
        assert!(scratch.message(0, PAGES_MAX * PAGE + 1).is_none());
    }

    #[test]
    fn what_was_tried_in_vain_again_and_again_is_left_and_a_failure_leaves_nothing_behind() {
        let mut scratch = Scratch::default();
        for _ in 1..REFUSED_MAX {
            let message = scratch.message(0, SPLICED_MIN).expect("tried again");
            assert_eq!(message.len(), 0);
            message.has(1);
            scratch.spliced(false);
        }
        scratch.message(0, SPLICED_MIN).expect("tried again");
        scratch.spliced(true);
        (0..REFUSED_MAX).for_each(|_| scratch.spliced(false));
        for _ in 1..TRIED_EVERY {
            assert!(scratch.message(0, SPLICED_MIN).is_none());
        }
        scratch.message(0, SPLICED_MIN).expect("one in many is tried");
        scratch.spliced(true);
        scratch.message(0, SPLICED_MIN).expect("it went well, so all are");
    }
}
