//! A journal that keeps every op, and objects when a rule of the commit is broken.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tandem_mountd::{
    commit::{CommitError, MarkCell, waiters::Ticket},
    vfs::{Journal, Reserved, journal::Promise},
};
use tandem_proto::{Changes, Origin, Seq};

/// Keeps ops in the order of their seqs.
#[derive(Default)]
pub struct Recorder {
    slots: Mutex<Vec<Option<Changes>>>,
    marked: Mutex<Vec<MarkCell>>,
    /// How often somebody waited for the replica.
    pub promises: AtomicUsize,
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

    /// How many ops there are.
    pub fn len(&self) -> usize {
        self.slots.lock().len()
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

    fn when_durable(&self, _seq: Seq, done: Promise) -> Option<Ticket> {
        self.promises.fetch_add(1, Ordering::Relaxed);
        done(Ok(()));
        None
    }

    fn interrupt(&self, _ticket: Ticket) {}

    fn suspect(&self, _cell: MarkCell) {}

    fn read_only(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }
}
