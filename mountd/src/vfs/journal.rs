//! What the vfs needs of the commit: the three steps of a change, as a trait, so that tests can record ops.

use tandem_proto::{Changes, InodeId, Origin, Position, Seq};

use crate::commit::{Commit, CommitError, MarkCell, MarkGuard, Slot, dirty::DirtySet, waiters::Ticket};

/// Called once with the fate of a promise.
pub type Promise = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// The commit, see [`Commit`].
pub trait Journal: Send + Sync + 'static {
    /// Keeps marks hot until it is dropped.
    type Guard<'a>
    where
        Self: 'a;
    /// A reserved place in the order of ops.
    type Slot<'a>: Reserved
    where
        Self: 'a;

    /// See [`Commit::mark`].
    fn mark(&self, cells: &[MarkCell]) -> Result<Self::Guard<'_>, CommitError>;
    /// See [`Commit::reserve`].
    fn reserve(&self) -> Self::Slot<'_>;
    /// See [`Commit::last_reserved`].
    fn last_reserved(&self) -> Seq;
    /// See [`Commit::when_durable`].
    fn when_durable(&self, seq: Seq, done: Promise) -> Option<Ticket>;
    /// See [`Commit::interrupt`].
    fn interrupt(&self, ticket: Ticket);
    /// See [`Commit::suspect`].
    fn suspect(&self, cell: MarkCell);
    /// See [`Commit::not_durable`].
    fn not_durable(&self, cell: MarkCell);
    /// See [`Commit::congested`].
    fn congested(&self) -> bool;
    /// See [`Commit::read_only`].
    fn read_only(&self) -> bool;
    /// See [`Commit::takes_copies`].
    fn takes_copies(&self) -> bool {
        false
    }
    /// See [`Commit::unnamed`].
    fn unnamed(&self, _id: &InodeId) {}
    /// See [`Commit::position_of`].
    fn position_of(&self, _id: &InodeId) -> Position {
        Position::default()
    }
    /// See [`Commit::closed`].
    fn closed(&self, _id: &InodeId) {}
    /// See [`Commit::hold_news`].
    fn hold_news(&self) {}
    /// See [`Commit::tell_news`].
    fn tell_news(&self) {}
    /// See [`Commit::hurry`].
    fn hurry(&self) {}
    /// See [`Commit::resend`].
    fn resend(&self, _cells: &DirtySet) {}
}

/// A reserved place in the order of ops. Dropped, it is void.
pub trait Reserved {
    /// What happened.
    fn fill(self, origin: Origin, changes: Changes);
    /// See [`Slot::fill_without_data`].
    fn fill_without_data(self, origin: Origin, changes: Changes);
    /// Nothing happened.
    fn void(self);
}

impl Journal for Commit {
    type Guard<'a> = MarkGuard<'a>;
    type Slot<'a> = Slot<'a>;

    fn mark(&self, cells: &[MarkCell]) -> Result<MarkGuard<'_>, CommitError> {
        Commit::mark(self, cells)
    }

    fn reserve(&self) -> Slot<'_> {
        Commit::reserve(self)
    }

    fn last_reserved(&self) -> Seq {
        Commit::last_reserved(self)
    }

    fn hold_news(&self) {
        Commit::hold_news(self);
    }

    fn tell_news(&self) {
        Commit::tell_news(self);
    }

    fn hurry(&self) {
        Commit::hurry(self);
    }

    fn when_durable(&self, seq: Seq, done: Promise) -> Option<Ticket> {
        Commit::when_durable(self, seq, done)
    }

    fn interrupt(&self, ticket: Ticket) {
        Commit::interrupt(self, ticket);
    }

    fn suspect(&self, cell: MarkCell) {
        Commit::suspect(self, cell);
    }

    fn not_durable(&self, cell: MarkCell) {
        Commit::not_durable(self, cell);
    }

    fn congested(&self) -> bool {
        Commit::congested(self)
    }

    fn read_only(&self) -> bool {
        Commit::read_only(self)
    }

    fn takes_copies(&self) -> bool {
        Commit::takes_copies(self)
    }

    fn unnamed(&self, id: &InodeId) {
        Commit::unnamed(self, id);
    }

    fn position_of(&self, id: &InodeId) -> Position {
        Commit::position_of(self, id)
    }

    fn closed(&self, id: &InodeId) {
        Commit::closed(self, id);
    }

    fn resend(&self, cells: &DirtySet) {
        Commit::resend(self, cells);
    }
}

impl Reserved for Slot<'_> {
    fn fill(self, origin: Origin, changes: Changes) {
        Slot::fill(self, origin, changes);
    }

    fn fill_without_data(self, origin: Origin, changes: Changes) {
        Slot::fill_without_data(self, origin, changes);
    }

    fn void(self) {
        Slot::void(self);
    }
}
