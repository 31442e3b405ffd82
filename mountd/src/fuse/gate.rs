//! Writes that are held back while the link is slower than the writer (`congestion=throttle`). The request waits, not the thread that
//! took it; a thread of its own carries out what may go on.
//!
//! What must hold: a write whose process got a signal goes on at once, so that nobody is stuck and no write fails because of it; what
//! the kernel writes back from the page cache is never held back, because memory may be short; what is held back is bounded, and
//! beyond that writes go on (the window then overflows, and the dirty set takes over).

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fuser::WriteFlags;
use parking_lot::{Condvar, Mutex};

use super::{
    device::{Device, Reply},
    interrupts::Waits,
    wire::{self, Fields},
};

/// Memory for requests that are held back: each is at most 1 MiB, of one thread of an application.
const HELD_MAX_BYTES: usize = 32 << 20;
/// How often it is looked whether the link has caught up, while something is held back.
const TICK: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
    inner: Mutex<Inner>,
    wake: Condvar,
    /// How many are held back, for who only wants to know whether any.
    count: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Inner {
    held: VecDeque<Held>,
    /// Go on whatever the link says.
    released: VecDeque<Held>,
    bytes: usize,
    stopping: bool,
}

/// A request that is held back.
#[derive(Debug)]
pub struct Held {
    /// Names it.
    unique: u64,
    /// When it was taken.
    since: Instant,
    /// All of it.
    pub bytes: Vec<u8>,
    /// Where its answer goes.
    pub device: Arc<Device>,
}

impl Gate {
    /// How many writes are held back, now and whenever it is looked at.
    pub fn count(&self) -> Arc<AtomicUsize> {
        self.count.clone()
    }

    /// Whether this write was taken to be held back.
    pub fn holds_back(
        &self,
        unique: u64,
        mut fields: Fields<'_>,
        congested: impl FnOnce() -> bool,
        bytes: &[u8],
        device: &Arc<Device>,
    ) -> bool {
        // Those that came before go first.
        if self.count.load(Ordering::Relaxed) == 0 && !congested() {
            return false;
        }
        // The flags are behind handle, offset and size.
        let flags = fields.bytes(20).and_then(|_| fields.u32()).unwrap_or_default();
        if WriteFlags::from_bits_retain(flags).contains(WriteFlags::FUSE_WRITE_CACHE) {
            return false;
        }
        let mut inner = self.inner.lock();
        if inner.stopping || inner.bytes + bytes.len() > HELD_MAX_BYTES {
            return false;
        }
        inner.bytes += bytes.len();
        inner.held.push_back(Held { unique, since: Instant::now(), bytes: bytes.to_vec(), device: device.clone() });
        self.count.fetch_add(1, Ordering::Relaxed);
        drop(inner);
        self.wake.notify_one();
        true
    }

    /// Those that are held back.
    pub fn waiting(&self) -> Vec<Waits> {
        let inner = self.inner.lock();
        let waits = |held: &Held| {
            let (header, _) = wire::request(&held.bytes).ok()?;
            Some(Waits { thread: header.pid, node: header.node, since: held.since })
        };
        inner.held.iter().filter_map(waits).collect()
    }

    /// A signal came to the process of a request: if it is held back, it goes on now.
    pub fn interrupt(&self, unique: u64) -> bool {
        let mut inner = self.inner.lock();
        let found = inner.held.iter().position(|held| held.unique == unique);
        let Some(held) = found.and_then(|at| inner.held.remove(at)) else { return false };
        inner.released.push_back(held);
        drop(inner);
        self.wake.notify_one();
        true
    }

    /// The next one that may go on; waits for it. `None`: it is over.
    pub fn next(&self, congested: impl Fn() -> bool) -> Option<Held> {
        let mut inner = self.inner.lock();
        loop {
            if inner.stopping {
                return None;
            }
            let next = match inner.released.pop_front() {
                Some(held) => Some(held),
                None if !inner.held.is_empty() && !congested() => inner.held.pop_front(),
                None => None,
            };
            if let Some(held) = next {
                inner.bytes -= held.bytes.len();
                self.count.fetch_sub(1, Ordering::Relaxed);
                return Some(held);
            }
            match inner.held.is_empty() {
                true => self.wake.wait(&mut inner),
                false => drop(self.wake.wait_for(&mut inner, TICK)),
            }
        }
    }

    /// The connection is gone, and with it who waits for answers.
    pub fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.stopping = true;
        for held in
            inner.held.drain(..).collect::<Vec<_>>().into_iter().chain(inner.released.drain(..).collect::<Vec<_>>())
        {
            Reply::new(held.unique, &held.device).none();
        }
        drop(inner);
        self.wake.notify_all();
    }
}
