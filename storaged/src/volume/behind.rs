//! What follows behind apply and never delays it: the content index and the record of ops.

use std::sync::Arc;

use tandem_proto::{
    ids::InodeId,
    op::{Change, Op},
    position::Position,
};

use crate::{
    apply::{ChunkSource, NoChunks, Published, Recovered},
    history::{History, Surplus},
    hooks::Hooks,
    index::LateIndex,
};

/// Followers of one volume. Each is bounded and drops, with a note, what it cannot take.
#[derive(Default)]
pub struct Behind {
    /// Content index; none in a simulation, or if it could not be opened.
    pub index: Option<Arc<LateIndex>>,
    /// Record of ops.
    pub history: Option<Arc<History>>,
    /// Commands of the administrator.
    pub hooks: Option<Arc<Hooks>>,
    /// Bounds what resyncs replaced.
    pub surplus: Option<Arc<Surplus>>,
}

impl Behind {
    /// Where chunks may be found.
    pub fn chunks(&self) -> &dyn ChunkSource {
        match &self.index {
            Some(index) => &**index,
            None => &NoChunks,
        }
    }

    /// A live op was applied.
    pub fn applied(&self, op: &Op, position: Position, client: &str) {
        if let Some(index) = &self.index {
            let mut last: Option<&InodeId> = None;
            for change in &op.changes {
                let id = match change {
                    Change::Data { id, .. }
                    | Change::Copy { id, .. }
                    | Change::Hole { id, .. }
                    | Change::Size { id, .. } => id,
                    // A file that lost its last name is noticed when its turn comes to be read; renames keep what is known.
                    Change::Birth { .. } | Change::Entry { .. } | Change::Attr { .. } | Change::Xattr { .. } => {
                        continue;
                    }
                };
                if last != Some(id) {
                    index.touched(*id);
                }
                last = Some(id);
            }
            for change in &op.changes {
                if let Change::Entry { old: Some(old), new, .. } = change
                    && new.as_ref() != Some(old)
                {
                    index.lost_name(*old);
                }
            }
        }
        if let Some(history) = &self.history {
            history.op(op, position, client);
        }
        if let Some(hooks) = &self.hooks {
            hooks.applied(op);
        }
    }

    /// Everything up to here was announced.
    pub fn reached(&self, position: Position) {
        if let Some(index) = &self.index {
            index.applied(position);
        }
    }

    /// A staging became the replica's state.
    pub fn published(&self, published: &Published, position: Position, client: &str) {
        if let Some(index) = &self.index {
            published.changed.iter().for_each(|id| index.touched(*id));
            published.removed.iter().for_each(|id| index.removed(*id));
        }
        if let Some(history) = &self.history {
            history.published(&published.changed, published.removed.len(), position, client);
        }
        if let Some(surplus) = &self.surplus {
            surplus.settled(position);
        }
        if let Some(hooks) = &self.hooks {
            published.changed.iter().for_each(|id| hooks.changed(id));
        }
        self.reached(position);
    }

    /// A place of deleted files was closed at this position.
    pub fn closed(&self, position: Position) {
        if let Some(surplus) = &self.surplus {
            surplus.settled(position);
        }
    }

    /// The disk is full: the oldest deleted files give way.
    pub fn make_room(&self) {
        if let Some(surplus) = &self.surplus {
            surplus.make_room();
        }
    }

    /// The replica recovered after a restart.
    pub fn recovered(&self, recovered: &Recovered) {
        if let Some(index) = &self.index {
            recovered.changed.iter().for_each(|id| index.touched(*id));
        }
        if let Some(surplus) = &self.surplus {
            surplus.settled(recovered.applied);
        }
        self.reached(recovered.applied);
    }

    /// Writes what they have and ends their threads.
    pub fn close(&self) {
        if let Some(index) = &self.index {
            index.close();
        }
        if let Some(history) = &self.history {
            history.close();
        }
        if let Some(hooks) = &self.hooks {
            hooks.close();
        }
        if let Some(surplus) = &self.surplus {
            surplus.close();
        }
    }
}
