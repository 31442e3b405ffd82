//! The commit: what stands between a change on the backing directory and its way to the replica.
//!
//! ```text
//!   vfs ── mark ──► marks ──cold──► activity log (durable)          link ◄─ take ── window ◄── fill ── vfs
//!    │               ▲  ▲                                             │               │ overflow
//!    └─ reserve ► slot  └── clear ◄── durable, synced backing         └─ ack ─► trim  └─► dirty set ─ freeze ─► resync
//! ```
//! One mutex guards window, dirty set and marks, so that a freeze, an overflow and a fill have one order; no I/O happens under it.
//! The activity log has its own lock, taken before that one; who holds it writes for everybody who waits (group commit).
//!
//! What must hold: a cell that may differ from the replica is in the window, in the dirty set or in what a resync under way has taken
//! from them; and it is covered by a mark on disk. The [`shadow`] repeats the first, exactly, in memory that outlives the daemon.

pub mod activity_log;
pub mod cell;
pub mod closings;
pub mod dirty;
mod divergence;
pub mod intervals;
pub mod marks;
mod news;
mod replica;
pub mod shadow;
mod shadowed;
pub mod throttle;
mod types;
pub mod waiters;
pub mod window;

use std::{
    io, mem,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tandem_proto::{Change, Changes, Epoch, InodeId, Op, Origin, Position, Seq, Uuid};
use tokio::sync::{Notify, watch};

use crate::verify::desk::Desk;

pub use self::types::{ATTRIBUTES, CommitError, CommitFacts, Frozen, MarkCell, MarkCells, Moved, Watermarks};
use self::{
    activity_log::{ActivityLog, Header, Record, Recovered, Suspect},
    dirty::DirtySet,
    marks::{Check, MarkRecord, Marks, Pins},
    shadow::{Event, Intent},
    shadowed::Shadowed,
    throttle::{Congestion, Throttle},
    waiters::{Done, Ticket, Waiters},
    window::Window,
};

/// Names given during a resync that wait to be looked at: some 10 MiB.
const MOVED_MAX: usize = 64 << 10;

struct Inner {
    window: Window,
    /// What differs and no resync has taken.
    dirty: DirtySet,
    /// What the resync under way has taken; back to `dirty` if it fails.
    frozen: Option<DirtySet>,
    marks: Marks,
    /// Begun marks that wait to be written.
    mark_queue: Vec<MarkRecord>,
    header: Header,
    /// Position of `durable`, with its chain, once this run published.
    durable: Option<Position>,
    applied: Option<Seq>,
    /// The op of the first state that this run published.
    first_published: Seq,
    epoch: Epoch,
    waiters: Waiters,
    throttle: Throttle,
    /// Collected while a resync still lists directories.
    moved: Option<Vec<Moved>>,
    fenced: Option<String>,
    /// What the replica has is not what it acknowledged; until the next publish.
    distrusted: bool,
    stopping: bool,
    shadowed: Shadowed,
    /// Cells that the backing directory could not make durable, since the start.
    suspects: u64,
    /// Who receives the stream makes bytes of copies.
    takes_copies: bool,
    /// Marks that stand until the machine was restarted.
    suspect: Option<Suspect>,
    /// The kernel's boot id; zero while it is not known.
    boot: Uuid,
}

/// Shared by FUSE threads, link and resync: `Arc<Commit>`. See the module.
pub struct Commit {
    inner: Mutex<Inner>,
    /// `None` in tests that look at order only.
    log: Mutex<Option<ActivityLog>>,
    read_only: AtomicBool,
    fsync_timeout: Option<Duration>,
    throttles: AtomicBool,
    begun: Instant,
    /// Something was filled, or the window overflowed.
    filled: Notify,
    /// Somebody waits for what was filled.
    hurried: Notify,
    /// Somebody waited for the replica since the link last asked.
    waited: AtomicBool,
    watermarks: watch::Sender<Watermarks>,
    mark_writes: std::sync::atomic::AtomicU64,
    /// Where checks stand in the stream.
    desk: Desk,
    /// Files that were closed, for the replica's hooks.
    closings: closings::Closings,
}

/// Keeps marks from being cleared until it is dropped; drop it after the op's slot is filled.
#[must_use]
pub struct MarkGuard<'a> {
    commit: &'a Commit,
    pins: Pins,
    /// In the shadow the change counts as dirty until then.
    intent: Option<Intent>,
}

/// A reserved place in the order of ops. Dropped without [`Slot::fill`] it is void.
#[must_use]
pub struct Slot<'a> {
    commit: &'a Commit,
    seq: Seq,
    filled: bool,
}

impl Commit {
    /// A commit over the activity log at `path`, which is made if there is none. Returns what it said: the caller makes a dirty set of it.
    pub fn open(
        path: &Path,
        window_bytes: usize,
        fsync_timeout: Option<Duration>,
    ) -> io::Result<(Commit, Option<Recovered>)> {
        let (log, recovered) = match ActivityLog::open(path)? {
            Some((log, recovered)) => (log, Some(recovered)),
            None => (ActivityLog::create(path, Header::default())?, None),
        };
        let (mut marks, header) = match &recovered {
            Some(recovered) => (Marks::recovered(&recovered.marks), recovered.header),
            None => (Marks::default(), Header::default()),
        };
        let suspect = recovered.as_ref().and_then(|recovered| recovered.suspect);
        if let Some(suspect) = suspect {
            marks.stand_to(suspect.to);
        }
        let commit = Self::with(Some(log), marks, header, window_bytes, fsync_timeout);
        commit.inner.lock().suspect = suspect;
        Ok((commit, recovered))
    }

    /// A commit in memory only, for tests of order and convergence.
    pub fn in_memory(window_bytes: usize) -> Commit {
        Self::with(None, Marks::default(), Header::default(), window_bytes, None)
    }

    fn with(
        log: Option<ActivityLog>,
        marks: Marks,
        header: Header,
        window_bytes: usize,
        fsync_timeout: Option<Duration>,
    ) -> Commit {
        Commit {
            inner: Mutex::new(Inner {
                window: Window::new(window_bytes),
                dirty: DirtySet::default(),
                frozen: None,
                marks,
                mark_queue: Vec::new(),
                header,
                durable: None,
                applied: None,
                first_published: Seq(0),
                epoch: Epoch(0),
                waiters: Waiters::default(),
                throttle: Throttle::default(),
                moved: None,
                fenced: None,
                distrusted: false,
                stopping: false,
                shadowed: Shadowed::default(),
                suspects: 0,
                takes_copies: false,
                suspect: None,
                boot: Uuid::default(),
            }),
            log: Mutex::new(log),
            read_only: AtomicBool::new(false),
            fsync_timeout,
            throttles: AtomicBool::new(false),
            begun: Instant::now(),
            filled: Notify::new(),
            hurried: Notify::new(),
            waited: AtomicBool::new(false),
            watermarks: watch::Sender::new(Watermarks::default()),
            mark_writes: std::sync::atomic::AtomicU64::new(0),
            desk: Desk::default(),
            closings: closings::Closings::default(),
        }
    }

    /// Step 1 of a change. Returns at once when all cells are hot (or covered by the mark of the directory they were born in);
    /// else makes their marks durable. Blocks on the local disk only.
    pub fn mark(&self, cells: &[MarkCell]) -> Result<MarkGuard<'_>, CommitError> {
        loop {
            {
                let mut inner = self.inner.lock();
                if let Some(reason) = &inner.fenced {
                    return Err(CommitError::Fenced(reason.clone()));
                }
                if inner.stopping {
                    // The next mountd may own the log already.
                    return Err(CommitError::Stopping);
                }
                let now = self.begun.elapsed();
                match inner.marks.check(cells, now) {
                    Check::Covered(pins) => {
                        let intent = inner.intend(cells);
                        return Ok(MarkGuard { commit: self, pins, intent });
                    }
                    Check::Cold(cold) => {
                        let (since, since_seq) = inner.born_since_now();
                        let records = inner.marks.begin(&cold, since, since_seq, now);
                        inner.mark_queue.extend(records);
                    }
                }
            }
            self.write_marks_durably()?;
        }
    }

    /// Writes the begun marks of everybody who waits, in one write.
    fn write_marks_durably(&self) -> Result<(), CommitError> {
        let mut log = self.log.lock();
        let group = mem::take(&mut self.inner.lock().mark_queue);
        if group.is_empty() {
            return Ok(());
        }
        let records: Vec<Record> = group.iter().map(|record| Record::Mark(*record)).collect();
        let result = self.append_durably(&mut log, &records);
        let mut inner = self.inner.lock();
        match result {
            Ok(()) => {
                inner.marks.written(&group);
                Ok(())
            }
            Err(error) => {
                inner.marks.failed(&group);
                Err(CommitError::ActivityLog(error.to_string()))
            }
        }
    }

    fn append_durably(&self, log: &mut Option<ActivityLog>, records: &[Record]) -> io::Result<()> {
        let Some(log) = log else { return Ok(()) };
        self.mark_writes.fetch_add(1, Ordering::Relaxed);
        log.append_durably(records, || {
            let inner = self.inner.lock();
            let marks = inner.marks.records().into_iter().map(Record::Mark);
            let suspect = inner.suspect.map(Record::Suspect);
            std::iter::once(Record::Header(inner.header)).chain(suspect).chain(marks).collect()
        })
    }

    /// Step 2, with the cells' locks held, before the system call. Never blocks.
    pub fn reserve(&self) -> Slot<'_> {
        let seq = self.inner.lock().window.reserve();
        Slot { commit: self, seq, filled: false }
    }

    /// The highest seq that was handed out.
    pub fn last_reserved(&self) -> Seq {
        self.inner.lock().window.last_reserved()
    }

    /// Calls `done` (from another thread, or at once) when everything up to `seq` is durable on the replica, or with why not. The ticket
    /// is for [`Commit::interrupt`]; there is none if `done` was called.
    pub fn when_durable(&self, seq: Seq, done: Done) -> Option<Ticket> {
        let refused = {
            let mut inner = self.inner.lock();
            if inner.durable.is_some_and(|durable| durable.seq >= seq) {
                Ok(())
            } else if let Some(reason) = &inner.fenced {
                Err(CommitError::Fenced(reason.clone()))
            } else if inner.stopping {
                Err(CommitError::Stopping)
            } else {
                let deadline = self.fsync_timeout.map(|timeout| Instant::now() + timeout);
                let ticket = inner.waiters.add(seq, deadline, done);
                self.hurry_for(seq, inner);
                return Some(ticket);
            }
        };
        done(refused);
        None
    }

    /// A signal came to a call that waits: it is let go with EINTR if it still waits after [`waiters::INTERRUPT_GRACE`].
    pub fn interrupt(&self, ticket: Ticket) {
        self.inner.lock().waiters.interrupt(ticket, Instant::now());
    }

    /// A file that was open for writing is closed: all that was written is in ops up to the last one that was reserved.
    pub fn closed(&self, id: &InodeId) {
        if self.closings.are_wanted() {
            self.closings.add(self.last_reserved(), *id);
            if !news::keep_back() {
                self.filled.notify_one();
            }
        }
    }

    /// Files that were closed, and whose replica's hooks want to be told.
    pub fn closings(&self) -> &closings::Closings {
        &self.closings
    }

    /// What to do when the link is slower than the writer.
    pub fn set_congestion(&self, congestion: Congestion) {
        self.throttles.store(congestion == Congestion::Throttle, Ordering::Relaxed);
    }

    /// Whether writers are slowed rather than left to outrun the link.
    pub fn throttles(&self) -> bool {
        self.throttles.load(Ordering::Relaxed)
    }

    /// Whether there is a connection over which the window can drain.
    pub fn set_connected(&self, connected: bool) {
        self.inner.lock().throttle.set_connected(connected);
    }

    /// Whether writes have to be held back now, see [`throttle`].
    pub fn congested(&self) -> bool {
        if !self.throttles.load(Ordering::Relaxed) {
            return false;
        }
        let mut inner = self.inner.lock();
        let (bytes, limit, keeping) = (inner.window.bytes(), inner.window.limit_bytes(), inner.window.is_keeping());
        inner.throttle.is_closed(bytes, limit, keeping)
    }

    /// Whether mutating calls must be refused with EROFS (fenced).
    pub fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Figures for status.
    pub fn facts(&self) -> CommitFacts {
        let inner = self.inner.lock();
        let frozen = inner.frozen.as_ref();
        CommitFacts {
            reserved: inner.window.last_reserved(),
            filled: inner.window.filled(),
            watermarks: *self.watermarks.borrow(),
            epoch: inner.epoch.0,
            window_bytes: inner.window.bytes(),
            window_limit_bytes: inner.window.limit_bytes(),
            keeping: inner.window.is_keeping(),
            dirty_cells: inner.dirty.cells() + frozen.map_or(0, DirtySet::cells),
            dirty_bytes: inner.dirty.bytes() + frozen.map_or(0, DirtySet::bytes),
            dirty_limit_bytes: inner.dirty.limit_bytes(),
            suspects: inner.suspects,
            marks: inner.marks.len(),
            mark_writes: self.mark_writes.load(Ordering::Relaxed),
            congestion: if self.throttles.load(Ordering::Relaxed) { Congestion::Throttle } else { Congestion::Lag },
            waiting: inner.waiters.len(),
            oldest_time_ns: inner.window.oldest_time_ns(),
        }
    }

    /// A position that holds the last change of an inode, for who waits for it: exact while the op is in the window, else the last one
    /// that the window has let go of. Without a chain: it is not compared.
    pub fn position_of(&self, id: &InodeId) -> Position {
        let inner = self.inner.lock();
        let window = &inner.window;
        let seq = if window.is_keeping() { window.last_of(id) } else { window.last_reserved() };
        Position { epoch: inner.epoch, seq, ..Position::default() }
    }

    /// `sendable`: not so, it must not leave the window but as dirty cells.
    fn fill(&self, op: Op, sendable: bool) {
        {
            let op = Arc::new(op);
            let mut inner = self.inner.lock();
            while !sendable && inner.window.filled().next() < op.seq {
                // Behind a slot that is not filled it would stay, and be sent. Who holds that one waits for no lock and no network.
                drop(inner);
                std::thread::yield_now();
                inner = self.inner.lock();
            }
            inner.marks.handle_op(op.seq, &op.changes);
            inner.note_moves(&op.changes);
            let mut dropped = inner.window.fill(op.clone());
            if !sendable {
                dropped.extend(inner.window.give_up());
            }
            for op in &dropped {
                inner.dirty.insert_op(op);
            }
            inner.shadow_op(&op, !dropped.is_empty());
            inner.bound_moves();
        }
        if !news::keep_back() {
            self.filled.notify_one();
        }
    }

    /// From now on what this thread fills is not told to the link before [`Commit::tell_news`]. To wake the link costs more than a
    /// write, and takes this thread's processor away: the application has its answer first.
    pub fn hold_news(&self) {
        news::hold();
    }

    /// Somebody waits for the replica, or will in a moment: what was filled goes at once, see [`crate::link::pace`].
    pub fn hurry(&self) {
        let inner = self.inner.lock();
        self.hurry_for(inner.window.filled(), inner);
    }

    /// To wake the link for what it has sent would take a processor from who works on it.
    fn hurry_for(&self, seq: Seq, inner: MutexGuard<'_, Inner>) {
        self.waited.store(true, Ordering::Relaxed);
        if !inner.is_on_its_way(seq) {
            drop(inner);
            self.hurried.notify_one();
        }
    }

    /// Tells the link what this thread has filled since [`Commit::hold_news`]: after the answer, and before a call that takes long.
    pub fn tell_news(&self) {
        if news::take() {
            self.filled.notify_one();
        }
    }
}

impl Inner {
    /// Whether the link has taken the op to send it.
    fn is_on_its_way(&self, seq: Seq) -> bool {
        self.window.is_keeping() && self.window.chain_at(seq).is_some()
    }

    /// From which position on births in a mark made now are covered by it. The replica numbers births of this run only once this run
    /// has published; before that the floor is a bound that is never too late.
    fn born_since_now(&self) -> (Position, Seq) {
        let reserved = self.window.last_reserved();
        match self.durable {
            Some(durable) => (Position { epoch: durable.epoch, seq: reserved, chain: durable.chain }, reserved),
            None => (self.header.floor, reserved),
        }
    }

    fn note_moves(&mut self, changes: &Changes) {
        let Some(moved) = &mut self.moved else { return };
        for change in changes {
            let Change::Entry { dir, name, new: Some(new), .. } = change else { continue };
            let born_here = changes.iter().any(|other| matches!(other, Change::Birth { id, .. } if id == new));
            if !born_here {
                moved.push(Moved { dir: *dir, name: name.clone() });
            }
        }
    }

    /// Nobody looks at the moves while the link stands still. Past their bound they become dirty names, for a further round: what the
    /// window holds goes with them, which is what asks for one.
    fn bound_moves(&mut self) {
        let Some(moved) = self.moved.as_mut().filter(|moved| moved.len() > MOVED_MAX) else { return };
        let mut dirty = DirtySet::default();
        for Moved { dir, name } in mem::take(moved) {
            dirty.insert_name(dir, &name);
        }
        for op in self.window.give_up() {
            dirty.insert_op(&op);
        }
        self.dirty.merge(&dirty);
        let base = self.window.base();
        self.shadow(&[Event::Dropped(base), Event::Dirty(&dirty)]);
    }

    /// Takes the waiters that `durable` satisfies.
    fn satisfied(&mut self) -> Vec<Done> {
        self.durable.map(|durable| self.waiters.satisfied(durable.seq)).unwrap_or_default()
    }
}

impl Slot<'_> {
    /// Its number.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Step 3, still under the locks: what happened.
    pub fn fill(mut self, origin: Origin, changes: Changes) {
        self.filled = true;
        self.commit.fill(Op { seq: self.seq, origin, changes }, true);
    }

    /// The same for a change that is more than an op can carry: `changes` name its cells. They and all that waits to be sent become
    /// dirty, as if the window had overflowed, so that the replica gets the state, as one step.
    pub fn fill_without_data(mut self, origin: Origin, changes: Changes) {
        self.filled = true;
        self.commit.fill(Op { seq: self.seq, origin, changes }, false);
    }

    /// Nothing happened (the system call failed).
    pub fn void(self) {}
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.commit.fill(Op { seq: self.seq, origin: Origin::default(), changes: Changes::new() }, true);
        }
    }
}

impl Drop for MarkGuard<'_> {
    fn drop(&mut self) {
        let mut inner = self.commit.inner.lock();
        let last = inner.window.last_reserved();
        inner.marks.unpin(&self.pins, last);
        inner.done(self.intent.take());
    }
}

#[cfg(test)]
mod tests;
