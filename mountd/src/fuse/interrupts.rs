//! Which requests wait for something, and what to do when a signal comes to their process.
//!
//! ```text
//!  request taken ─ begin ─► running ─ waits ─► waiting(ticket) ─ answered ─► end
//!                             │ interrupt          │ interrupt
//!                             └─► noted: `waits`   └─► the ticket's wait is ended
//!                                  says so
//!  interrupt of what is not begun yet: kept for a while, because another thread may be about to begin it
//! ```
//! The kernel sends FUSE_INTERRUPT with the number of the request; it needs no answer. Only requests that can wait are begun here.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

/// Interrupts that came before their request was begun. Each thread that takes requests has at most one in hand, so this is plenty.
const EARLY_MAX: usize = 64;

/// See the module. `T`: what ends a wait.
#[derive(Debug)]
pub struct Interrupts<T> {
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    begun: HashMap<u64, Begun<T>>,
    early: VecDeque<u64>,
}

#[derive(Debug)]
enum Begun<T> {
    Running { interrupted: bool },
    Waiting(T),
}

impl<T> Default for Interrupts<T> {
    fn default() -> Self {
        Interrupts { inner: Mutex::new(Inner { begun: HashMap::new(), early: VecDeque::new() }) }
    }
}

impl<T: Copy> Interrupts<T> {
    /// A request that may wait begins.
    pub fn begin(&self, unique: u64) {
        let mut inner = self.inner.lock();
        let early = inner.early.iter().position(|other| *other == unique);
        let interrupted = early.and_then(|at| inner.early.remove(at)).is_some();
        inner.begun.insert(unique, Begun::Running { interrupted });
    }

    /// It waits now. `true`: it was interrupted before, and its wait has to be ended. It may have been answered meanwhile.
    pub fn waits(&self, unique: u64, ticket: T) -> bool {
        let mut inner = self.inner.lock();
        let Some(begun) = inner.begun.get_mut(&unique) else { return false };
        let interrupted = matches!(begun, Begun::Running { interrupted: true });
        *begun = Begun::Waiting(ticket);
        interrupted
    }

    /// It is answered.
    pub fn end(&self, unique: u64) {
        self.inner.lock().begun.remove(&unique);
    }

    /// A signal came to its process. `Some`: its wait has to be ended.
    pub fn interrupt(&self, unique: u64) -> Option<T> {
        let mut inner = self.inner.lock();
        match inner.begun.get_mut(&unique) {
            Some(Begun::Waiting(ticket)) => Some(*ticket),
            Some(Begun::Running { interrupted }) => {
                *interrupted = true;
                None
            }
            None => {
                if inner.early.len() >= EARLY_MAX {
                    inner.early.pop_front();
                }
                inner.early.push_back(unique);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EARLY_MAX, Interrupts};

    #[test]
    fn an_interrupt_finds_its_request_before_while_and_after_it_waits() {
        let interrupts = Interrupts::default();
        // Before it is begun, because another thread has it in hand.
        assert_eq!(interrupts.interrupt(2), None);
        interrupts.begin(2);
        assert!(interrupts.waits(2, 'a'));
        // While it runs.
        interrupts.begin(4);
        assert_eq!(interrupts.interrupt(4), None);
        assert!(interrupts.waits(4, 'b'));
        // While it waits.
        interrupts.begin(6);
        assert!(!interrupts.waits(6, 'c'));
        assert_eq!(interrupts.interrupt(6), Some('c'));
        // After it was answered.
        interrupts.end(6);
        assert_eq!(interrupts.interrupt(6), None);
        assert!(!interrupts.waits(6, 'd'));
    }

    #[test]
    fn interrupts_of_requests_that_cannot_wait_are_forgotten_in_time() {
        let interrupts = Interrupts::<char>::default();
        for unique in 0..1000 {
            assert_eq!(interrupts.interrupt(unique), None);
        }
        assert_eq!(interrupts.inner.lock().early.len(), EARLY_MAX);
    }
}
