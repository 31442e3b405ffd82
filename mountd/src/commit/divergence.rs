//! What the replica does not have, for a person to look at. Nothing is decided here and nothing changes.

use crate::commit::{Commit, MarkCell, dirty::DirtySet};

impl Commit {
    /// Every cell that may differ from the replica: what is dirty, what a resync has taken, and the ops that are not acknowledged.
    pub fn unreplicated(&self) -> DirtySet {
        let inner = self.inner.lock();
        let mut all = inner.dirty.clone();
        if let Some(frozen) = &inner.frozen {
            all.merge(frozen);
        }
        for op in inner.window.ops() {
            all.insert_op(&op);
        }
        all
    }

    /// Cells that a resync under way has taken: they count as not replicated until it is published.
    pub fn taken_cells(&self) -> usize {
        self.inner.lock().frozen.as_ref().map_or(0, |frozen| frozen.cells().max(1))
    }

    /// Why no change may happen any more, if that is so.
    pub fn fenced(&self) -> Option<String> {
        self.inner.lock().fenced.clone()
    }

    /// The inodes of the marks that were made last, at most `max`.
    pub fn marked_lately(&self, max: usize) -> Vec<tandem_proto::InodeId> {
        let mut records = self.inner.lock().marks.records();
        records.sort_unstable_by_key(|record| std::cmp::Reverse(record.generation));
        let mut ids = Vec::new();
        for record in records {
            let (MarkCell::Dir(id) | MarkCell::File { id, .. }) = record.cell;
            if record.cell != crate::commit::marks::EVERYTHING && !ids.contains(&id) {
                ids.push(id);
            }
            if ids.len() == max {
                break;
            }
        }
        ids
    }
}
