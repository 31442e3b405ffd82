//! A journal that keeps every op, and objects when a rule of the commit is broken.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Instant,
};

use parking_lot::Mutex;
use tandem_mountd::{
    commit::{
        CommitError, MarkCell,
        waiters::{INTERRUPT_GRACE, Ticket, Waiters},
    },
    vfs::{Journal, Reserved, journal::Promise},
};
use tandem_proto::{Changes, Origin, Seq};

/// Keeps ops in the order of their seqs.
#[derive(Default)]
pub struct Recorder {
    slots: Mutex<Vec<Option<Changes>>>,
    marked: Mutex<Vec<MarkCell>>,
    /// Whether the replica is away: who waits for it goes on waiting.
    pub away: AtomicBool,
    waiters: Mutex<Waiters>,
    /// How often somebody waited for the replica.
    pub promises: AtomicUsize,
    /// Whether writes are to be held back.
    pub congested: AtomicBool,
    /// Whether the mount is fenced.
    pub fenced: AtomicBool,
}

impl Recorder {
    /// All ops, in order. None may be open.
    pub fn ops(&self) -> Vec<Changes> {
        let slots = self.slots.lock();
        slots.iter().map(|slot| slot.clone().expect("every reserved slot was filled or voided")).collect()
    }

    /// The cells that were marked since the last call.
    #[allow(dead_code, reason = "not every test that shares this looks at marks")]
    pub fn take_marked(&self) -> Vec<MarkCell> {
        std::mem::take(&mut self.marked.lock())
    }

    /// How many wait for the replica.
    #[allow(dead_code, reason = "not every test that shares this waits")]
    pub fn waiting(&self) -> usize {
        self.waiters.lock().len()
    }

    /// The replica is back, and has everything.
    #[allow(dead_code, reason = "not every test that shares this waits")]
    pub fn come_back(&self) {
        self.away.store(false, Ordering::Relaxed);
        let waiters = self.waiters.lock().take_all();
        for done in waiters {
            done(Ok(()));
        }
    }

    /// How many ops there are.
    pub fn len(&self) -> usize {
        self.slots.lock().len()
    }

    /// How many ops were reserved and are not filled.
    #[allow(dead_code, reason = "not every test that shares this looks at slots")]
    pub fn open(&self) -> usize {
        self.slots.lock().iter().filter(|slot| slot.is_none()).count()
    }
}

/// A reserved slot.
pub struct RecordedSlot<'a> {
    recorder: &'a Recorder,
    index: usize,
}

impl RecordedSlot<'_> {
    fn set(&self, changes: Changes) {
        self.recorder.slots.lock()[self.index].get_or_insert(changes);
    }
}

impl Reserved for RecordedSlot<'_> {
    fn fill(self, _origin: Origin, changes: Changes) {
        let bytes: usize = changes.iter().map(|change| change.data_len()).sum();
        assert!(changes.len() <= tandem_proto::limits::CHANGES_MAX && bytes <= 2 * tandem_proto::limits::DATA_MAX);
        self.set(changes);
    }

    fn fill_without_data(self, _origin: Origin, _changes: Changes) {
        panic!("a model of ops cannot know what was not said");
    }

    fn void(self) {}
}

impl Drop for RecordedSlot<'_> {
    fn drop(&mut self) {
        self.set(Changes::new());
    }
}

impl Journal for Recorder {
    type Guard<'a> = ();
    type Slot<'a> = RecordedSlot<'a>;

    fn mark(&self, cells: &[MarkCell]) -> Result<(), CommitError> {
        assert!(!cells.is_empty());
        self.marked.lock().extend_from_slice(cells);
        Ok(())
    }

    fn reserve(&self) -> RecordedSlot<'_> {
        let mut slots = self.slots.lock();
        slots.push(None);
        RecordedSlot { recorder: self, index: slots.len() - 1 }
    }

    fn last_reserved(&self) -> Seq {
        Seq(self.len() as u64)
    }

    fn when_durable(&self, seq: Seq, done: Promise) -> Option<Ticket> {
        self.promises.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return Some(self.waiters.lock().add(seq, None, done));
        }
        done(Ok(()));
        None
    }

    fn interrupt(&self, ticket: Ticket) {
        let mut waiters = self.waiters.lock();
        let now = Instant::now();
        waiters.interrupt(ticket, now);
        let expired = waiters.expired(now + INTERRUPT_GRACE);
        drop(waiters);
        for (_, done) in expired {
            done(Err(CommitError::Interrupted));
        }
    }

    fn suspect(&self, _cell: MarkCell) {}

    fn not_durable(&self, _cell: MarkCell) {}

    fn congested(&self) -> bool {
        self.congested.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }
}
