//! A thread that serves: takes requests while it has a place among the takers, answers them, and polls while they come quickly.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tandem_runtime::memory;

use super::{
    abi,
    adapter::Adapter,
    awake::Awake,
    buffers::{Buffer, Buffers},
    crew::{Crew, Poll},
    device::{Device, Took},
    splice::Scratch,
    wire,
};
use crate::vfs::{CacheMode, Journal};

/// What a thread takes requests from.
#[derive(Debug)]
pub struct Queue {
    /// Sleeps until there is one.
    waiting: Arc<Device>,
    /// Says at once that there is none; `None`: polling is off, or cannot be had.
    polling: Option<Arc<Device>>,
    /// How long to poll.
    limit: Duration,
}

/// A request that was taken.
struct Request<'a> {
    len: usize,
    device: &'a Arc<Device>,
    at_once: bool,
}

enum Next<'a> {
    Request(Request<'a>),
    /// Nothing came while it was polled for.
    Nothing,
    /// The file system is unmounted.
    End,
}

impl Queue {
    /// Over descriptors of one connection.
    pub fn new(waiting: Arc<Device>, limit: Duration) -> Queue {
        let polling = if limit.is_zero() { None } else { waiting.another_polled().map(Arc::new).ok() };
        Queue { waiting, polling, limit }
    }

    fn poll(&self, buffer: &mut [u8], poll: &mut Poll, since: Instant, awake: &Awake) -> io::Result<Next<'_>> {
        let Some(device) = &self.polling else { return Ok(Next::Nothing) };
        if poll.is_quick() {
            awake.hold();
        }
        let patience = poll.patience(self.limit, since);
        if patience.is_zero() {
            return Ok(Next::Nothing);
        }
        let mut at_once = true;
        loop {
            match device.try_take(buffer)? {
                Took::Request(len) => {
                    poll.handle_waited(since.elapsed(), self.limit);
                    return Ok(Next::Request(Request { len, device, at_once }));
                }
                Took::Nothing if since.elapsed() > patience => {
                    awake.release();
                    return Ok(Next::Nothing);
                }
                Took::Nothing => at_once = false,
                Took::End => return Ok(Next::End),
            }
        }
    }

    /// For the last one who takes.
    fn wait(&self, buffer: &mut [u8], poll: &mut Poll, since: Instant, awake: &Awake) -> io::Result<Next<'_>> {
        if !poll.is_quick() {
            // They came quickly, and do not any more; what was wished then need not have been taken back by a poll in vain.
            awake.release();
        }
        let Some(len) = self.waiting.take(buffer)? else { return Ok(Next::End) };
        poll.handle_waited(since.elapsed(), self.limit);
        Ok(Next::Request(Request { len, device: &self.waiting, at_once: false }))
    }
}

/// Serves as thread `number` until the file system is unmounted.
pub fn serve<J: Journal>(
    number: usize,
    queue: &Queue,
    crew: &Crew,
    buffers: &Arc<Buffers>,
    adapter: &Adapter<J>,
) -> io::Result<()> {
    let (mut buffer, mut scratch, mut poll) = (buffers.buffer(), Scratch::default(), Poll::default());
    if adapter.vfs.cache_mode() == CacheMode::Writeback {
        become_flusher();
    }
    adapter.vfs.journal().hold_news();
    let rest = || {
        buffers.trim();
        adapter.vfs.rest();
        memory::give_back();
    };
    while crew.enter(rest) {
        let ended = take_turns(number, queue, crew, (&mut buffer, &mut scratch), &mut poll, adapter);
        match ended {
            Ok(false) => {}
            Ok(true) => crew.stop(),
            Err(error) => {
                crew.stop();
                return Err(error);
            }
        }
    }
    Ok(())
}

/// As long as the thread has its place; whether the file system is unmounted.
fn take_turns<J: Journal>(
    number: usize,
    queue: &Queue,
    crew: &Crew,
    (buffer, scratch): (&mut Buffer, &mut Scratch),
    poll: &mut Poll,
    adapter: &Adapter<J>,
) -> io::Result<bool> {
    let mut backlog = 0;
    loop {
        let since = Instant::now();
        let mut next = queue.poll(buffer.for_reading(), poll, since, crew.awake())?;
        if matches!(next, Next::Nothing) {
            if crew.retire() {
                return Ok(false);
            }
            next = queue.wait(buffer.for_reading(), poll, since, crew.awake())?;
        }
        let Request { len, device, at_once } = match next {
            Next::Request(request) => request,
            Next::Nothing => continue,
            Next::End => return Ok(true),
        };
        let kind = wire::request(&buffer.bytes()[..len]).map_or(0, |(header, _)| header.opcode);
        if crew.is_slow(kind) {
            crew.awake().release();
            crew.leave();
            let begun = Instant::now();
            adapter.handle(buffer, len, device, scratch);
            adapter.vfs.journal().tell_news();
            crew.note(kind, begun.elapsed());
            return Ok(false);
        }
        let begun = crew.begin(number, &mut backlog, at_once);
        adapter.handle(buffer, len, device, scratch);
        adapter.vfs.journal().tell_news();
        if !crew.done(number, kind, begun) {
            return Ok(false);
        }
    }
}

/// Kinds of requests that are taken for slow until they are known: they wait for a disk.
pub const SLOW_KINDS: [u32; 4] =
    [abi::opcode::FSYNC, abi::opcode::FSYNCDIR, abi::opcode::FALLOCATE, abi::opcode::COPY_FILE_RANGE];

/// `PR_SET_IO_FLUSHER`, since Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that its dirty pages are written by this thread, so that it neither makes it wait until there are fewer of them, nor
/// reclaims memory by writing more. Where it may not say so, writes are slower when memory is short.
fn become_flusher() {
    // SAFETY: it sets two flags of this thread.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result < 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the kernel does not take this thread for a flusher");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::OwnedFd,
        sync::Arc,
        time::{Duration, Instant},
    };

    use rustix::pipe::PipeFlags;

    use super::{
        super::awake::testing::{AT_ONCE, WHENEVER, Wishes},
        Device, Next, Poll, Queue,
    };

    const LIMIT: Duration = Duration::from_micros(100);

    fn queue() -> (Queue, OwnedFd) {
        let (taken, asked) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
        let device = Arc::new(Device::new(taken));
        (Queue { waiting: device.clone(), polling: Some(device), limit: LIMIT }, asked)
    }

    fn quick() -> Poll {
        let mut poll = Poll::default();
        (0..2).for_each(|_| poll.handle_waited(Duration::ZERO, LIMIT));
        poll
    }

    #[test]
    fn processors_are_kept_awake_while_requests_come_quickly_and_may_sleep_after_a_poll_in_vain() {
        let ((queue, asked), wishes) = (queue(), Wishes::new());
        let awake = wishes.awake();
        rustix::io::write(&asked, b"request").expect("asked");
        let begun = Instant::now();
        // Where others want the processor, nobody polls.
        while begun.elapsed() < Duration::from_secs(120) && wishes.last() != Some(WHENEVER) {
            let next = queue.poll(&mut [0; 100], &mut quick(), Instant::now(), &awake).expect("polled");
            let came = matches!(next, Next::Request(_));
            assert!(!came || wishes.all() == [AT_ONCE], "{:?}", wishes.all());
        }
        assert_eq!(wishes.all(), [AT_ONCE, WHENEVER]);
    }

    #[test]
    fn who_waits_for_requests_that_do_not_come_quickly_lets_processors_sleep() {
        let ((queue, asked), wishes) = (queue(), Wishes::new());
        let awake = wishes.awake();
        awake.hold();
        rustix::io::write(&asked, b"request").expect("asked");
        queue.wait(&mut [0; 100], &mut quick(), Instant::now(), &awake).expect("taken");
        assert_eq!(wishes.all(), [AT_ONCE], "as long as they do");
        rustix::io::write(&asked, b"request").expect("asked");
        queue.wait(&mut [0; 100], &mut Poll::default(), Instant::now(), &awake).expect("taken");
        assert_eq!(wishes.all(), [AT_ONCE, WHENEVER]);
    }
}
