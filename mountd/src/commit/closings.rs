//! Files that programs closed after they had them open for writing: a hint for the hooks of a replica that has some.
//!
//! Bounded, and never part of the state: what is forgotten is told to the hooks by nothing happening to the file for a while.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tandem_proto::{InodeId, Seq, limits::CLOSED_MAX};

/// Closed files that wait for the link; the oldest go.
const WAITING_MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct Closings {
    wanted: AtomicBool,
    /// How many wait, for who only wants to know whether any.
    count: AtomicUsize,
    waiting: Mutex<VecDeque<(Seq, InodeId)>>,
}

impl Closings {
    /// Whether the replica has hooks. What waits is of another connection.
    pub fn set_wanted(&self, wanted: bool) {
        let mut waiting = self.waiting.lock();
        waiting.clear();
        self.count.store(0, Ordering::Relaxed);
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Whether anybody is told.
    pub fn are_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// A file was closed; what was written is in ops up to `seq`.
    pub fn add(&self, seq: Seq, id: InodeId) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back((seq, id));
        self.count.store(waiting.len(), Ordering::Relaxed);
    }

    /// Takes those whose ops were sent, up to `sent`: up to which, and which.
    pub fn take(&self, sent: Seq) -> Option<(Seq, Vec<InodeId>)> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut waiting = self.waiting.lock();
        let most = waiting.len().min(CLOSED_MAX);
        let ready = waiting.iter().take(most).take_while(|(seq, _)| *seq <= sent).count();
        let taken: Vec<_> = waiting.drain(..ready).collect();
        self.count.store(waiting.len(), Ordering::Relaxed);
        let (last, _) = *taken.last()?;
        Some((last, taken.into_iter().map(|(_, id)| id).collect()))
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::{InodeId, Seq, limits::CLOSED_MAX};

    use super::{Closings, WAITING_MAX};

    #[test]
    fn a_closed_file_is_told_after_its_ops_were_sent() {
        let closings = Closings::default();
        let id = |name: &[u8]| InodeId::new(name).expect("short");
        for (seq, name) in [(3, b"a"), (5, b"b"), (9, b"c")] {
            closings.add(Seq(seq), id(name));
        }
        assert_eq!(closings.take(Seq(2)), None);
        assert_eq!(closings.take(Seq(5)), Some((Seq(5), vec![id(b"a"), id(b"b")])));
        closings.set_wanted(true);
        assert_eq!(closings.take(Seq(9)), None, "of another connection");
        (0..2 * WAITING_MAX as u64).for_each(|seq| closings.add(Seq(seq), id(b"d")));
        let (last, first) = closings.take(Seq(u64::MAX)).expect("some");
        assert_eq!((first.len(), last.0), (CLOSED_MAX, (WAITING_MAX + CLOSED_MAX - 1) as u64));
    }
}
