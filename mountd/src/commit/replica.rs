//! The side of the commit that link, resync and the keeper of the marks use.

use std::{
    io, mem,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tandem_proto::{Chain, Epoch, Position, Seq, Uuid};
use tandem_runtime::mutant;
use tokio::sync::watch;

use crate::verify::desk::Desk;

use crate::commit::{
    Commit, CommitError, Frozen, MarkCell, Moved, Watermarks,
    activity_log::{Header, Record, Suspect},
    cell::Cell,
    dirty::DirtySet,
    marks::Generation,
    shadow::Event,
    waiters::Done,
    window::Taken,
};

/// Marks cleared in one group.
const CLEAR_MAX: usize = 4096;

impl Commit {
    /// Completes when something was filled since the last time. One task waits.
    pub async fn wait_filled(&self) {
        self.filled.notified().await;
    }

    /// Completes when somebody began to wait for the replica since the last time. One task waits.
    pub async fn wait_hurry(&self) {
        self.hurried.notified().await;
    }

    /// Whether somebody waited for the replica since the last time.
    pub fn take_waited(&self) -> bool {
        self.waited.swap(false, Ordering::Relaxed)
    }

    /// Follows the replica's watermarks.
    pub fn watermarks(&self) -> watch::Receiver<Watermarks> {
        self.watermarks.subscribe()
    }

    /// Adds to what differs (recovered marks, a walk, a full compare).
    pub fn insert_dirty(&self, dirty: &DirtySet) {
        let mut inner = self.inner.lock();
        inner.dirty.merge(dirty);
        inner.shadow(&[Event::Dirty(dirty)]);
    }

    /// A file or directory could not be made durable (a failed fsync): it is compared at once, and after the next restart of the machine
    /// again, with all that is marked now. Blocks on the local disk.
    pub fn not_durable(&self, cell: MarkCell) {
        self.suspect(cell);
        self.keep_suspect();
    }

    /// What the backing directory holds here is not known any more, so it differs.
    pub fn suspect(&self, cell: MarkCell) {
        let mut suspect = DirtySet::default();
        match cell {
            MarkCell::Dir(id) => suspect.insert_directory(id),
            MarkCell::File { id, .. } => suspect.insert_file(id),
        }
        {
            let mut inner = self.inner.lock();
            inner.suspects += 1;
            inner.dirty.merge(&suspect);
            inner.shadow(&[Event::Dirty(&suspect)]);
        }
        // A live link compares it now.
        self.filled.notify_one();
    }

    /// Where the verifier puts its checks into the stream.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// The link looks again: there is a check to send.
    pub fn wake_link(&self) {
        self.filled.notify_one();
    }

    /// Something became part of the volume that no op can say: these cells are sent as they are, and so is everything from here on until the
    /// resync that this begins.
    pub fn resend(&self, cells: &DirtySet) {
        {
            let mut inner = self.inner.lock();
            for op in inner.window.give_up() {
                inner.dirty.insert_op(&op);
            }
            inner.dirty.merge(cells);
            let base = inner.window.base();
            let all = inner.dirty.clone();
            inner.shadow(&[Event::Dropped(base), Event::Dirty(&all)]);
        }
        self.filled.notify_one();
    }

    /// A comparison found that the replica has something else: these cells are sent again.
    pub fn mismatched(&self, cells: &DirtySet) {
        self.insert_dirty(cells);
        // A live link sends it now.
        self.filled.notify_one();
    }

    /// The marks of now stand, in this run and in those after it, until the machine was restarted.
    fn keep_suspect(&self) {
        // Under the log's lock, so that a mark which another thread makes meanwhile is not taken for one of those.
        let mut log = self.log.lock();
        let suspect = {
            let mut inner = self.inner.lock();
            let suspect = Suspect { boot: inner.boot, to: inner.marks.stand() };
            *inner.suspect.insert(suspect)
        };
        if let Err(error) = self.append_durably(&mut log, &[Record::Suspect(suspect)]) {
            tracing::error!(%error, "the activity log cannot be written: a kill of this daemon would forget what is suspect");
        }
    }

    /// In which boot of the machine this run is. What was suspect in an earlier one is on the disk or lost by now: a compare tells.
    pub fn enter_boot(&self, boot: Uuid) {
        let mut inner = self.inner.lock();
        inner.boot = boot;
        if inner.suspect.take_if(|suspect| suspect.boot != boot).is_some() {
            inner.marks.stand_to(Generation(0));
        }
    }

    /// A `syncfs` of the backing failed, which says of no file whether it is on the disk: everything that is marked is compared, and its
    /// marks stand until the machine is restarted, as only then what is read is what is on the disk.
    fn suspect_marks(&self, error: &io::Error) {
        let mut suspect = DirtySet::default();
        {
            let mut inner = self.inner.lock();
            for mark in inner.marks.records() {
                suspect.insert_cell(&Cell::of_mark(&mark.cell));
                suspect.insert_born_since(mark.since);
            }
            let marks = inner.marks.len();
            inner.suspects += marks as u64;
            inner.dirty.merge(&suspect);
            inner.shadow(&[Event::Dirty(&suspect)]);
            tracing::error!(%error, marks, "the backing file system could not be synced: what the marks cover is suspect; look at its disk");
        }
        self.keep_suspect();
        self.filled.notify_one();
    }

    /// Bounds of memory: of the dirty set in bytes, and how many marks stay hot without use.
    pub fn set_bounds(&self, dirty_bytes: usize, marks_hot: usize) {
        let mut inner = self.inner.lock();
        inner.dirty.set_limit_bytes(dirty_bytes);
        inner.marks.keep_hot(marks_hot);
    }

    /// Whether a live stream is not enough: ops were dropped, or cells differ that no op says.
    pub fn needs_resync(&self) -> bool {
        let inner = self.inner.lock();
        !inner.window.is_keeping() || !inner.dirty.is_empty()
    }

    /// The first attach of this run opened an epoch.
    pub fn begin_epoch(&self, epoch: Epoch, chain: Chain) {
        let mut inner = self.inner.lock();
        inner.epoch = epoch;
        inner.window.begin_epoch(chain);
    }

    /// The header of the activity log.
    pub fn header(&self) -> Header {
        self.inner.lock().header
    }

    /// Replaces the header durably.
    pub fn set_header_durably(&self, header: Header) -> io::Result<()> {
        let mut log = self.log.lock();
        self.append_durably(&mut log, &[Record::Header(header)])?;
        self.inner.lock().header = header;
        Ok(())
    }

    /// Filled ops after `after` for one batch; see [`crate::commit::window::Window::take`].
    pub fn take(&self, after: Seq, target_bytes: usize, max_ops: usize) -> Option<Taken> {
        self.inner.lock().window.take(after, target_bytes, max_ops)
    }

    /// Chains of the ops from `first` on, which were sent.
    pub fn record_chains(&self, first: Seq, chains: &[Chain]) {
        self.inner.lock().window.record_chains(first, chains);
    }

    /// The chain at `seq`, if the window knows it.
    pub fn chain_at(&self, seq: Seq) -> Option<Chain> {
        self.inner.lock().window.chain_at(seq)
    }

    /// Whether ops are kept for the stream; else something was dropped and only a resync makes it good.
    pub fn is_keeping(&self) -> bool {
        self.inner.lock().window.is_keeping()
    }

    /// End of the filled prefix.
    pub fn filled(&self) -> Seq {
        self.inner.lock().window.filled()
    }

    /// Bytes in the window.
    pub fn window_bytes(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.window.bytes(), inner.window.limit_bytes())
    }

    /// Whether somebody waits for the replica.
    pub fn is_waited_for(&self) -> bool {
        !self.inner.lock().waiters.is_empty()
    }

    /// Whether the dirty set should be taken soon, while it still knows its cells.
    pub fn is_crowded(&self) -> bool {
        self.inner.lock().dirty.is_crowded()
    }

    /// Whether nothing is dirty outside the window.
    pub fn is_clean(&self) -> bool {
        let inner = self.inner.lock();
        inner.dirty.is_empty() && inner.frozen.is_none()
    }

    /// Begins a resync round, in one critical section: ops up to S0 leave the window for the dirty set, the dirty set is taken (and
    /// kept aside until [`Commit::published`] or [`Commit::thaw`]), and from S0 on ops are kept.
    pub fn freeze(&self) -> (Frozen, DirtySet) {
        let mut inner = self.inner.lock();
        for op in inner.window.give_up() {
            inner.dirty.insert_op(&op);
        }
        let (seq, chain) = inner.window.keep();
        let limit_bytes = inner.dirty.limit_bytes();
        let taken = mem::replace(&mut inner.dirty, DirtySet::bounded(limit_bytes));
        inner.frozen.get_or_insert_with(|| DirtySet::bounded(limit_bytes)).merge(&taken);
        inner.shadow(&[Event::Dropped(seq), Event::Freeze]);
        // Moves of a round before that nobody looked at yet still count: their ops were sent, and the listings may have missed them.
        inner.moved.get_or_insert_default();
        let frozen = Frozen { s0: Position { epoch: inner.epoch, seq, chain }, unknown_ids: taken.unknown_ids() };
        (frozen, taken)
    }

    /// The resync under way came to nothing: all that it took differs again.
    pub fn thaw(&self) {
        let mut inner = self.inner.lock();
        inner.moved = None;
        if let Some(frozen) = inner.frozen.take() {
            inner.dirty.merge(&frozen);
            inner.shadow(&[Event::Thaw]);
        }
    }

    /// Whether who receives the stream makes bytes of copies.
    pub fn set_takes_copies(&self, takes: bool) {
        self.inner.lock().takes_copies = takes;
    }

    /// Whether a copy may be committed as one: the stream is whole, so the replica will have what is copied when its turn comes.
    pub fn takes_copies(&self) -> bool {
        let inner = self.inner.lock();
        inner.takes_copies && inner.window.is_keeping() && inner.dirty.is_empty() && inner.frozen.is_none()
    }

    /// What waits is not sent as ops: its cells differ, and a resync says how.
    pub fn give_up_window(&self) {
        let mut inner = self.inner.lock();
        for op in inner.window.give_up() {
            inner.dirty.insert_op(&op);
        }
        let base = inner.window.base();
        inner.shadow(&[Event::Dropped(base)]);
    }

    /// What the replica has is not what we thought: everything differs, by name and content.
    pub fn distrust(&self) {
        let mut inner = self.inner.lock();
        for op in inner.window.give_up() {
            inner.dirty.insert_op(&op);
        }
        let everything = DirtySet::everything(true);
        inner.dirty.merge(&everything);
        let base = inner.window.base();
        inner.shadow(&[Event::Dropped(base), Event::Dirty(&everything)]);
        inner.distrusted = true;
    }

    /// Whether [`Commit::distrust`] was called and nothing was published since.
    pub fn is_distrusted(&self) -> bool {
        self.inner.lock().distrusted
    }

    /// Names given to existing objects since the last call, with the highest seq that was reserved by now: when that is filled, a further call
    /// has seen every move that happened before this one.
    pub fn take_moved(&self) -> (Vec<Moved>, Seq) {
        let mut inner = self.inner.lock();
        let moved = inner.moved.as_mut().map(mem::take).unwrap_or_default();
        (moved, inner.window.last_reserved())
    }

    /// Every directory is listed: moves need no attention any more.
    pub fn stop_collecting_moves(&self) {
        self.inner.lock().moved = None;
    }

    /// The replica holds ops up to `seq` for the staging under way. They leave the window; their cells stay known until it is published.
    pub fn staged(&self, seq: Seq) {
        let mut inner = self.inner.lock();
        let ops = inner.window.trim(seq);
        if ops.is_empty() {
            return;
        }
        let limit_bytes = inner.dirty.limit_bytes();
        let frozen = inner.frozen.get_or_insert_with(|| DirtySet::bounded(limit_bytes));
        for op in ops {
            frozen.insert_op(&op);
        }
        let base = inner.window.base();
        inner.shadow(&[Event::Staged(base)]);
    }

    /// The resync under way became the replica's state at `position`.
    pub fn published(&self, position: Position) {
        let waiters = {
            let mut inner = self.inner.lock();
            inner.moved = None;
            inner.frozen = None;
            inner.distrusted = false;
            inner.window.trim(position.seq);
            if inner.durable.is_none() {
                inner.first_published = position.seq;
            }
            inner.durable = Some(position);
            inner.shadow_gone(position, true);
            inner.satisfied()
        };
        self.tell(waiters);
    }

    /// Live watermarks. Everything up to `durable` is trimmed.
    pub fn acked(&self, durable: Seq, applied: Seq) {
        let waiters = {
            let mut inner = self.inner.lock();
            let Some(mut position) = inner.durable else { return };
            if durable > position.seq
                && let Some(chain) = inner.window.chain_at(durable)
            {
                position.seq = durable;
                position.chain = chain;
                inner.window.trim(durable);
                inner.durable = Some(position);
                inner.shadow_gone(position, false);
            }
            // Before the replica's tree has come to the first state of this run, what it says of ops means nothing: seq 0 would be true
            // of a tree that lacks everything that the folder held before.
            if inner.applied.is_some() || applied >= inner.first_published {
                inner.applied = inner.applied.max(Some(applied.min(position.seq)));
            }
            inner.satisfied()
        };
        self.tell(waiters);
    }

    fn tell(&self, waiters: Vec<Done>) {
        let now = {
            let inner = self.inner.lock();
            Watermarks { durable: inner.durable.map(|position| position.seq), applied: inner.applied }
        };
        self.watermarks.send_if_modified(|marks| mem::replace(marks, now) != now);
        for waiter in waiters {
            waiter(Ok(()));
        }
    }

    /// What is durable on the replica, with its chain; `None` until this run published.
    pub fn durable(&self) -> Option<Position> {
        self.inner.lock().durable
    }

    /// Lets go of waiters whose time is over, or who were interrupted. `why`: what the link says.
    pub fn expire(&self, now: Instant, why: &str) {
        let expired = self.inner.lock().waiters.expired(now);
        let seconds = self.fsync_timeout.unwrap_or_default().as_secs();
        for (late, done) in expired {
            done(Err(if late { CommitError::Timeout(seconds, why.to_owned()) } else { CommitError::Interrupted }));
        }
    }

    /// A newer writer took the volume: no change may happen any more.
    pub fn fence(&self, reason: &str) {
        self.read_only.store(true, Ordering::Relaxed);
        let waiters = {
            let mut inner = self.inner.lock();
            inner.fenced = Some(reason.to_owned());
            inner.waiters.take_all()
        };
        for waiter in waiters {
            waiter(Err(CommitError::Fenced(reason.to_owned())));
        }
    }

    /// The daemon stops: nobody waits any more.
    pub fn stop(&self) {
        let waiters = {
            let mut inner = self.inner.lock();
            inner.stopping = true;
            inner.waiters.take_all()
        };
        for waiter in waiters {
            waiter(Err(CommitError::Stopping));
        }
    }

    /// Clears marks that nobody needs: replica durable past their last op, backing synced since. The floor is durable with or before
    /// the clears. `all`: also recent ones (at the end). Returns how many were cleared.
    pub fn clear_marks(&self, all: bool, sync_backing: &dyn Fn() -> io::Result<()>) -> io::Result<usize> {
        let (chosen, floor) = {
            let mut inner = self.inner.lock();
            // What the replica has is not what it acknowledged: the floor stays where it is, and the marks with it.
            let Some(durable) = inner.durable.filter(|_| !inner.distrusted) else { return Ok(0) };
            let now = self.begun.elapsed();
            (inner.marks.clearable(durable.seq, true, now, all, CLEAR_MAX), durable)
        };
        if chosen.is_empty() {
            return Ok(0);
        }
        let synced = if mutant::is("clear-unsynced") { Ok(()) } else { sync_backing() };
        let synced = synced.inspect_err(|error| self.suspect_marks(error));
        let result = synced.and_then(|()| {
            let mut log = self.log.lock();
            let (clear, header) = {
                let inner = self.inner.lock();
                (inner.marks.still_clearing(&chosen), Header { floor, ..inner.header })
            };
            let clears = Record::Clear(clear.iter().map(|record| record.generation).collect());
            self.append_durably(&mut log, &[Record::Header(header), clears])?;
            let mut inner = self.inner.lock();
            inner.header = header;
            inner.marks.cleared(&clear);
            Ok(clear.len())
        });
        if result.is_err() {
            self.inner.lock().marks.clear_failed(&chosen);
        }
        result
    }

    /// Makes the floor durable without clearing anything; after [`Commit::distrust`], that there is none, so that a later run compares
    /// everything as well.
    ///
    /// What a run compared because there was no floor may lie in the backing's memory only, and no mark covers it: it is synced before the
    /// floor says that the replica can be relied on. Else a loss of power would leave a folder that lacks what the replica has, silently.
    pub fn save_floor_durably(&self, sync_backing: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        let first = {
            let inner = self.inner.lock();
            inner.durable.is_some() && inner.header.floor.epoch == Epoch(0)
        };
        if first {
            sync_backing()?;
        }
        // Under the log's lock, so that a floor that was written since is never replaced by an older one.
        let mut log = self.log.lock();
        let header = {
            let inner = self.inner.lock();
            match inner.durable {
                _ if inner.distrusted => Header { floor: Position::default(), ..inner.header },
                Some(floor) => Header { floor, ..inner.header },
                None => return Ok(()),
            }
        };
        self.append_durably(&mut log, &[Record::Header(header)])?;
        self.inner.lock().header = header;
        Ok(())
    }

    /// Time since the start, the clock of the marks.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }
}
