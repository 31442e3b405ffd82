//! Which requests wait for something, and what to do when a signal comes to their process.
//!
//! ```text
//!  request taken ─ begin ─► running ─ waits ─► waiting(ticket) ─ answered ─► end
//!                             │ signal             │ signal
//!                             └────────► signalled ◄┘ looked at until it is answered: if its thread is dying, its wait is ended
//!  signal for what is not begun yet: kept for a while, because another thread may be about to begin it
//! ```
//! The kernel sends FUSE_INTERRUPT with the number of the request, once for each request, whatever the signal was; it needs no answer. Only
//! requests that can wait are begun here.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// Signals that came before their request was begun. Each thread that takes requests has at most one in hand, so this is plenty.
const EARLY_MAX: usize = 64;
/// How often it is looked whether one that got a signal is dying: the signal may be a later one, which the kernel does not tell.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// See the module. `T`: what ends a wait.
#[derive(Debug)]
pub struct Interrupts<T> {
    inner: Mutex<Inner<T>>,
    wake: Condvar,
}

#[derive(Debug)]
struct Inner<T> {
    begun: HashMap<u64, Begun<T>>,
    early: VecDeque<u64>,
    stopping: bool,
}

#[derive(Debug)]
struct Begun<T> {
    thread: u32,
    node: u64,
    since: Instant,
    ticket: Option<T>,
    signalled: bool,
}

/// A request that waits, for who is asked why a program stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// The thread that asked.
    pub thread: u32,
    /// The inode that it is about.
    pub node: u64,
    /// When it was taken.
    pub since: Instant,
}

impl<T> Default for Interrupts<T> {
    fn default() -> Self {
        let inner = Inner { begun: HashMap::new(), early: VecDeque::new(), stopping: false };
        Interrupts { inner: Mutex::new(inner), wake: Condvar::new() }
    }
}

impl<T: Copy> Interrupts<T> {
    /// A request of a thread about an inode begins that may wait.
    pub fn begin(&self, unique: u64, thread: u32, node: u64) {
        let since = Instant::now();
        let mut inner = self.inner.lock();
        let early = inner.early.iter().position(|other| *other == unique);
        let signalled = early.and_then(|at| inner.early.remove(at)).is_some();
        inner.begun.insert(unique, Begun { thread, node, since, ticket: None, signalled });
    }

    /// It waits now. It may have been answered meanwhile.
    pub fn waits(&self, unique: u64, ticket: T) {
        if let Some(begun) = self.inner.lock().begun.get_mut(&unique) {
            begun.ticket = Some(ticket);
            // Else there is nothing to look at yet, and a durable fsync need not wake a thread for it.
            if begun.signalled {
                self.wake.notify_one();
            }
        }
    }

    /// It is answered.
    pub fn end(&self, unique: u64) {
        self.inner.lock().begun.remove(&unique);
    }

    /// Those that wait.
    pub fn waiting(&self) -> Vec<Waits> {
        let inner = self.inner.lock();
        let waiting = inner.begun.values().filter(|begun| begun.ticket.is_some());
        waiting.map(|begun| Waits { thread: begun.thread, node: begun.node, since: begun.since }).collect()
    }

    /// A signal came to its process.
    pub fn signal(&self, unique: u64) {
        let mut inner = self.inner.lock();
        match inner.begun.get_mut(&unique) {
            Some(begun) => {
                begun.signalled = true;
                self.wake.notify_one();
            }
            None => {
                if inner.early.len() >= EARLY_MAX {
                    inner.early.pop_front();
                }
                inner.early.push_back(unique);
            }
        }
    }

    /// Those that wait and got a signal, with their threads; waits until there is one. `None`: it is over.
    pub fn next_signalled(&self) -> Option<Vec<(u32, T)>> {
        let mut inner = self.inner.lock();
        loop {
            if inner.stopping {
                return None;
            }
            let signalled = inner.begun.values().filter(|begun| begun.signalled);
            let found: Vec<_> = signalled.filter_map(|begun| Some((begun.thread, begun.ticket?))).collect();
            if !found.is_empty() {
                return Some(found);
            }
            self.wake.wait(&mut inner);
        }
    }

    /// Until it is time to look again.
    pub fn rest(&self) {
        let mut inner = self.inner.lock();
        if !inner.stopping {
            self.wake.wait_for(&mut inner, LOOK_EVERY);
        }
    }

    /// The connection is gone.
    pub fn stop(&self) {
        self.inner.lock().stopping = true;
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{EARLY_MAX, Interrupts};

    #[test]
    fn a_signal_finds_its_request_before_while_and_after_it_waits() {
        let interrupts = Interrupts::default();
        // Before it is begun, because another thread has it in hand.
        interrupts.signal(2);
        interrupts.begin(2, 12, 1);
        interrupts.waits(2, 'a');
        assert_eq!(interrupts.next_signalled(), Some(vec![(12, 'a')]));
        interrupts.end(2);
        // While it runs.
        interrupts.begin(4, 14, 1);
        interrupts.signal(4);
        interrupts.waits(4, 'b');
        assert_eq!(interrupts.next_signalled(), Some(vec![(14, 'b')]));
        assert_eq!(interrupts.next_signalled(), Some(vec![(14, 'b')]), "until it is answered");
        interrupts.end(4);
        // While it waits, beside one that got none.
        interrupts.begin(6, 16, 1);
        interrupts.begin(8, 18, 1);
        interrupts.waits(6, 'c');
        interrupts.waits(8, 'd');
        interrupts.signal(6);
        assert_eq!(interrupts.next_signalled(), Some(vec![(16, 'c')]));
        // Who waits is told, signal or not.
        let mut waiting: Vec<_> = interrupts.waiting().iter().map(|waits| (waits.thread, waits.node)).collect();
        waiting.sort_unstable();
        assert_eq!(waiting, [(16, 1), (18, 1)]);
        // After it was answered.
        interrupts.end(6);
        interrupts.signal(6);
        interrupts.waits(6, 'e');
        interrupts.stop();
        assert_eq!(interrupts.next_signalled(), None);
    }

    #[test]
    fn signals_for_requests_that_cannot_wait_are_forgotten_in_time() {
        let interrupts = Interrupts::<char>::default();
        for unique in 0..1000 {
            interrupts.signal(unique);
        }
        assert_eq!(interrupts.inner.lock().early.len(), EARLY_MAX);
    }
}
