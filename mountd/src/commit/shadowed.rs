//! The commit's side of the shadow: what it is told, and when.
//!
//! Events are recorded in the critical section that they happen in, after window and dirty set changed, so that a rewrite, which asks
//! for what is live, finds them done.

use std::io;

use tandem_proto::{InodeId, Op, Position};

use super::{
    Commit, Inner, MarkCell,
    cell::{Cell, Untimed},
    dirty::DirtySet,
    shadow::{Event, Head, Intent, Live, Shadow, ShadowStore},
};

/// What the commit keeps for its shadow.
#[derive(Default)]
pub(super) struct Shadowed {
    shadow: Option<Shadow>,
    /// Why there is none.
    why_none: String,
    untimed: Untimed,
    /// The replica has what is not dirty if it is here or later.
    floor: Position,
    /// What differs as well if the replica is not at the floor that this run relied on at its start.
    fallback: Option<(Position, DirtySet)>,
}

/// Figures of the shadow, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShadowFacts {
    /// Why a kill of the daemon would cost a compare of all marks; empty: it would not.
    pub missing: String,
    /// Memory that it takes.
    pub bytes: usize,
}

impl Inner {
    /// Records what happened.
    pub(super) fn shadow(&mut self, events: &[Event<'_>]) {
        let Some(mut shadow) = self.shadowed.shadow.take() else { return };
        shadow.append(events, &|live| self.live(live));
        self.shadowed.shadow = Some(shadow);
    }

    fn live(&self, live: &mut Live<'_>) {
        live.floor(&self.shadowed.floor);
        live.dirty(&self.dirty);
        if let Some(frozen) = &self.frozen {
            live.frozen(frozen);
        }
        live.untimed(&self.shadowed.untimed);
        self.window.held().filter(|op| !op.changes.is_empty()).for_each(|op| live.op(op));
    }

    /// A slot was filled; `dropped`: the window kept nothing.
    pub(super) fn shadow_op(&mut self, op: &Op, dropped: bool) {
        if self.shadowed.shadow.is_none() {
            return;
        }
        self.shadowed.untimed.handle_changes(&op.changes);
        let filled = Event::Op { seq: op.seq, changes: &op.changes };
        let gone = Event::Dropped(self.window.base());
        match (op.changes.is_empty(), dropped) {
            (false, true) => self.shadow(&[filled, gone]),
            (false, false) => self.shadow(&[filled]),
            (true, true) => self.shadow(&[gone]),
            (true, false) => {}
        }
    }

    /// The replica has everything up to `position` that is not dirty. `published`: also what was frozen.
    pub(super) fn shadow_gone(&mut self, position: Position, published: bool) {
        self.shadowed.floor = position;
        let gone = [Event::Gone(self.window.base()), Event::Floor(position)];
        if published {
            self.shadow(&[Event::Published, gone[0], gone[1]]);
        } else {
            self.shadow(&gone);
        }
    }

    /// A change of these cells begins.
    pub(super) fn intend(&mut self, cells: &[MarkCell]) -> Option<Intent> {
        let shadow = self.shadowed.shadow.as_mut()?;
        let intent = shadow.intend(cells);
        if shadow.is_spilled(intent) {
            let mut dirty = DirtySet::default();
            cells.iter().for_each(|cell| dirty.insert_cell(&Cell::of_mark(cell)));
            self.shadow(&[Event::Dirty(&dirty)]);
        }
        Some(intent)
    }

    /// It is over.
    pub(super) fn done(&mut self, intent: Option<Intent>) {
        if let (Some(shadow), Some(intent)) = (self.shadowed.shadow.as_mut(), intent) {
            shadow.done(intent);
        }
    }
}

impl Commit {
    /// From here on window and dirty set, as they are now, are shadowed. No change may be under way. `floor`: the replica has everything
    /// else if it is there or later.
    pub fn begin_shadow(
        &self,
        store: Box<dyn ShadowStore>,
        head: Head,
        limit_bytes: usize,
        floor: Position,
    ) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.shadowed.floor = floor;
        let shadow = Shadow::create(store, head, limit_bytes, &|live| inner.live(live))?;
        inner.shadowed.shadow = Some(shadow);
        Ok(())
    }

    /// There is no shadow, for this reason.
    pub fn without_shadow(&self, why: &str) {
        self.inner.lock().shadowed.why_none = why.to_owned();
    }

    /// The dirty set of this run was made from a shadow and is exact only if the replica is at `floor` or later; else `fallback` differs too.
    pub fn rely_on(&self, floor: Position, fallback: DirtySet) {
        self.inner.lock().shadowed.fallback = Some((floor, fallback));
    }

    /// At the first attach of a run the replica holds this state: whether it is what the dirty set relies on. If not, more is dirty now.
    pub fn confirm_floor(&self, published: Option<&Position>) -> bool {
        let Some((floor, fallback)) = self.inner.lock().shadowed.fallback.take() else { return true };
        let there = published.is_some_and(|published| {
            let same = (published.epoch, published.seq) == (floor.epoch, floor.seq);
            !published.is_before(&floor) && (!same || published.chain == floor.chain)
        });
        if !there {
            self.insert_dirty(&fallback);
        }
        there
    }

    /// An inode lost its last name: nobody will tell its mtime.
    pub fn unnamed(&self, id: &InodeId) {
        let mut inner = self.inner.lock();
        if inner.shadowed.shadow.is_some() && inner.shadowed.untimed.forget(id) {
            inner.shadow(&[Event::Unnamed(*id)]);
        }
    }

    /// Figures for status.
    pub fn shadow_facts(&self) -> ShadowFacts {
        let inner = self.inner.lock();
        match &inner.shadowed.shadow {
            Some(shadow) => {
                ShadowFacts { missing: shadow.void().unwrap_or_default().to_owned(), bytes: shadow.bytes() }
            }
            None => ShadowFacts { missing: inner.shadowed.why_none.clone(), bytes: 0 },
        }
    }

    /// At the end of a run, when no change can come any more: nothing is kept in memory for a folder that the replica equals.
    pub fn end_shadow(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let equal = inner.dirty.is_empty()
            && inner.frozen.is_none()
            && inner.durable.is_some_and(|durable| durable.seq == inner.window.last_reserved());
        match &mut inner.shadowed.shadow {
            Some(shadow) if equal => shadow.remove(),
            _ => Ok(()),
        }
    }
}
