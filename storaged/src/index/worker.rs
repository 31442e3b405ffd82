//! The thread behind the index: takes announcements, reads files that were left alone, walks the tree when it must.
//!
//! It takes what others leave of the processors, reads one file at a time, and takes announcements between reads, so the inbox stays short
//! while a large file is read. It alone edits the store.

use std::{
    collections::VecDeque,
    io,
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering, mpsc::Receiver},
    time::{Duration, Instant},
};

use tandem_proto::{InodeId, Position};
use tandem_runtime::{
    priority::{self, Priority},
    processors,
};

use super::{
    IndexError, IndexOptions, IndexedFile, ReplicaFiles, Shared, WorkerState,
    cutter::{CutError, cut},
    pacer::{Pacer, Stints},
    queue::{Due, Queue, Task},
    recipe::{Chunk, FileStamp, Header, Summary},
    store::{Edit, part_of},
};

/// Ids that a walk asks for at a time.
const WALK_PAGE: usize = 512;
/// Longest sleep while files wait, so that announcements are taken before the inbox fills.
const NAP: Duration = Duration::from_millis(100);
/// Longest sleep while nothing waits.
const REST: Duration = Duration::from_secs(1);
/// A replica is being changed if a file was announced within this part of the time after which one is due.
const CHANGES_PART: u32 = 4;
/// Where more than this part of the files waits that may, there is no time for manners.
const MUCH_PART: usize = 4;
/// How often a position that moved is stored, and the store flushed, at most.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// A walk that cannot list the replica's files is tried again after this.
const WALK_RETRY: Duration = Duration::from_secs(30);

/// What the volume announces.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A file's data changed.
    Touched(InodeId),
    /// A file lost a name.
    LostName(InodeId),
    /// A file is gone.
    Removed(InodeId),
    /// Everything up to here was announced.
    Applied(Position),
    /// Look whether to stop.
    Wake,
}

impl Event {
    /// Whether it says that a file may have to be read, or forgotten.
    pub fn is_about_a_file(&self) -> bool {
        matches!(self, Event::Touched(_) | Event::LostName(_) | Event::Removed(_))
    }
}

/// A walk over everything: first the replica's files against the index, then the index's files against the replica.
#[derive(Debug, Default)]
struct Walk {
    /// The second half.
    over_recipes: bool,
    after: Option<InodeId>,
    page: VecDeque<InodeId>,
    done: u64,
    total: u64,
}

/// How reading one file ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Stored,
    /// It was written to meanwhile.
    Changed,
}

/// State of the thread.
pub struct Worker {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    files: Box<dyn ReplicaFiles>,
    options: IndexOptions,
    queue: Queue,
    walk: Option<Walk>,
    walk_not_before: Instant,
    applied: Position,
    summary: Summary,
    flushed: Instant,
    unflushed: bool,
    pacer: Pacer,
    stints: Stints,
    /// See [`Worker::rest`].
    begun: Instant,
    /// When a file was announced last.
    announced: Option<Instant>,
}

impl Worker {
    /// Ready to run.
    pub fn new(
        shared: Arc<Shared>,
        events: Receiver<Event>,
        files: Box<dyn ReplicaFiles>,
        summary: Summary,
        applied: Position,
        options: IndexOptions,
    ) -> Worker {
        let now = Instant::now();
        Worker {
            queue: Queue::new(options.idle, options.waiting_max_files),
            pacer: Pacer::new(options.rebuild_bytes_per_second, now),
            shared,
            events,
            files,
            options,
            walk: None,
            walk_not_before: now,
            applied,
            summary,
            flushed: now,
            unflushed: false,
            stints: Stints::default(),
            begun: now,
            announced: None,
        }
    }

    /// Works until the index is closed or its store fails.
    pub fn run(mut self) {
        priority::settle(Priority::Spare);
        let mut result = Ok(());
        while result.is_ok() && !self.stopping() {
            result = self.turn();
        }
        self.drain();
        if let Err(error) = result.and_then(|()| self.record(true)) {
            self.shared.fail(&error);
            return;
        }
        self.shared.status.lock().worker = WorkerState::Stopped;
    }

    fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst) || self.shared.failed.load(Ordering::Relaxed)
    }

    /// One piece of work, or one sleep.
    fn turn(&mut self) -> Result<(), IndexError> {
        self.drain();
        let now = Instant::now();
        self.begun = now;
        let stands_back = self.stands_back(now);
        if !stands_back && let Some(due) = self.queue.pop_due(now) {
            self.work_on(due, now)?;
            self.show(WorkerState::Indexing)?;
            self.rest();
            return Ok(());
        }
        if self.walk.is_none() && now >= self.walk_not_before && self.shared.rescan.load(Ordering::SeqCst) {
            let total = self.files.count();
            self.show(WorkerState::Rebuilding { done: 0, total })?;
            self.shared.rescan.store(false, Ordering::SeqCst);
            self.walk = Some(Walk { total, ..Walk::default() });
        }
        if self.walk.is_some() {
            return self.walk_on();
        }
        self.record(false)?;
        if stands_back {
            self.show(WorkerState::Indexing)?;
            std::thread::park_timeout(NAP.min(self.options.idle));
            return Ok(());
        }
        self.show(WorkerState::Idle)?;
        self.sleep(now);
        Ok(())
    }

    /// Whether there is time: nobody waits for what it does, and not too much waits to be done.
    fn has_time(&self) -> bool {
        self.shared.awaited.load(Ordering::Relaxed) == 0
            && self.queue.len() < self.options.waiting_max_files / MUCH_PART
    }

    /// Whether files that are due wait on, for a moment: while the replica is changed, its processors and its disk are for that; and beside
    /// programs that run, each answer that they wait for would have to be fetched from a processor that is busy with this.
    fn stands_back(&mut self, now: Instant) -> bool {
        let recently = self.options.idle / CHANGES_PART;
        let changes = self.announced.is_some_and(|at| now.saturating_duration_since(at) < recently);
        let waits = self.queue.due_since(now).is_some_and(|since| now < since + self.options.stand_back_max);
        waits && self.has_time() && (changes || processors::are_in_use())
    }

    /// After work that began when it last rested, or took something to do.
    fn rest(&mut self) {
        let rest = self.stints.worked(self.begun.elapsed());
        if !rest.is_zero() && self.has_time() && !self.stopping() {
            std::thread::park_timeout(rest);
        }
        self.begun = Instant::now();
    }

    fn sleep(&mut self, now: Instant) {
        match self.queue.next_due() {
            // Not on the inbox: a busy volume would wake the thread for each announcement.
            Some(due) => std::thread::park_timeout(due.saturating_duration_since(now).min(NAP)),
            None => {
                if let Ok(event) = self.events.recv_timeout(REST) {
                    self.take(event, Instant::now());
                    // One waking for all that a busy volume announces in this time.
                    std::thread::park_timeout(NAP.min(self.options.idle));
                }
            }
        }
    }

    fn drain(&mut self) {
        let now = Instant::now();
        while let Ok(event) = self.events.try_recv() {
            self.take(event, now);
        }
    }

    fn take(&mut self, event: Event, now: Instant) {
        let about_a_file = event.is_about_a_file();
        let touched = match event {
            Event::Touched(id) => self.queue.touch(id, Task::Index, now, self.applied),
            Event::LostName(id) => self.queue.touch(id, Task::Check, now, self.applied),
            Event::Removed(id) => self.queue.touch(id, Task::Forget, now, self.applied),
            Event::Applied(position) => {
                self.applied = position;
                Ok(())
            }
            Event::Wake => Ok(()),
        };
        if touched.is_err() {
            self.shared.rescan.store(true, Ordering::SeqCst);
        }
        if about_a_file {
            self.announced = Some(now);
            // It is in the queue now; for a moment it counts in neither, or twice.
            self.shared.status.lock().files_behind = self.queue.len() as u64;
            self.shared.announced.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn work_on(&mut self, due: Due, now: Instant) -> Result<(), IndexError> {
        let done = match due.task {
            Task::Forget => return self.forget(&due.id),
            Task::Check => self.forget_if_gone(&due.id),
            Task::Index => self.read_file(&due.id, Some((due, now))),
        };
        match done {
            Ok(()) => Ok(()),
            Err(CutError::Step(error)) => Err(error),
            Err(CutError::Read(error)) => {
                tracing::debug!(id = %due.id, %error, "a file cannot be read for the index; its chunks are forgotten");
                self.forget(&due.id)
            }
        }
    }

    /// Indexes a file; without `due` (in a walk) only if its stamp is not the stored one.
    fn read_file(&mut self, id: &InodeId, due: Option<(Due, Instant)>) -> Result<(), CutError<IndexError>> {
        let Some(file) = self.files.open(id)? else {
            return self.forget(id).map_err(CutError::Step);
        };
        let stamp = file.stamp()?;
        if let Some((due, now)) = due {
            let needed = Duration::from_secs_f64(stamp.size as f64 / self.options.idle_bytes_per_second.max(1) as f64);
            if now.saturating_duration_since(due.last) < needed {
                self.queue.put_back(due, needed);
                return Ok(());
            }
        }
        // In a walk only: of a file that was touched we know that it differs, whatever its times say.
        if due.is_none() {
            let known = self.shared.store.header(id).map_err(CutError::Step)?;
            if known.is_some_and(|header| header.stamp == stamp) {
                return Ok(());
            }
        }
        if self.read_chunks(id, &*file, stamp, due.is_none())? == Outcome::Changed {
            let now = Instant::now();
            let since = due.map_or(self.summary.position, |(due, _)| due.since);
            self.queue.put_back(Due { id: *id, task: Task::Index, since, last: now }, self.options.idle);
        }
        Ok(())
    }

    fn read_chunks(
        &mut self,
        id: &InodeId,
        file: &dyn IndexedFile,
        stamp: FileStamp,
        paced: bool,
    ) -> Result<Outcome, CutError<IndexError>> {
        let shared = Arc::clone(&self.shared);
        let mut edit = Edit::new(&shared.store, self.summary);
        let mut part: Vec<Chunk> = Vec::new();
        let mut next_part = 0;
        let mut count = 0;
        let mut step = |found: &[Chunk]| -> Result<ControlFlow<()>, IndexError> {
            for chunk in found {
                let of_chunk = part_of(chunk.offset);
                if of_chunk > next_part {
                    edit.replace_part(id, next_part, &part)?;
                    // A hole may span very many parts.
                    if of_chunk > next_part + 1 {
                        edit.cut_parts(id, next_part + 1..=of_chunk - 1)?;
                    }
                    next_part = of_chunk;
                    part.clear();
                }
                part.push(*chunk);
                count += 1;
            }
            match paced {
                true => self.pace(found.iter().map(|chunk| u64::from(chunk.len)).sum()),
                false => self.rest(),
            }
            self.drain();
            let go_on = !self.stopping() && !self.queue.contains(id);
            Ok(if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        };
        let whole = cut(file, &mut step)?;
        let unchanged = file.stamp()? == stamp;
        let finish = |edit: &mut Edit<'_>| -> Result<(), IndexError> {
            edit.replace_part(id, next_part, &part)?;
            if next_part < u32::MAX {
                edit.cut_parts(id, next_part + 1..=u32::MAX)?;
            }
            edit.finish_file(id, Header { stamp, chunks: count })
        };
        if whole && unchanged {
            finish(&mut edit).map_err(CutError::Step)?;
        }
        let position = self.position();
        self.summary = edit.commit(if whole && unchanged { position } else { None }).map_err(CutError::Step)?;
        self.unflushed = true;
        Ok(if whole && unchanged { Outcome::Stored } else { Outcome::Changed })
    }

    /// Waits as long as the rate asks for, and takes announcements meanwhile.
    fn pace(&mut self, bytes: u64) {
        let now = Instant::now();
        let until = now + self.pacer.read(bytes, now);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stopping() {
                return;
            }
            std::thread::park_timeout(left.min(NAP));
            self.drain();
        }
    }

    fn forget(&mut self, id: &InodeId) -> Result<(), IndexError> {
        let shared = Arc::clone(&self.shared);
        let mut edit = Edit::new(&shared.store, self.summary);
        edit.remove_file(id)?;
        if edit.is_empty() {
            return Ok(());
        }
        self.summary = edit.commit(self.position())?;
        self.unflushed = true;
        Ok(())
    }

    /// One file of the walk.
    fn walk_on(&mut self) -> Result<(), IndexError> {
        let Some(mut walk) = self.walk.take() else { return Ok(()) };
        let Some(id) = walk.page.pop_front() else {
            return self.next_page(walk);
        };
        walk.after = Some(id);
        // What the second half looks at was counted in the first.
        walk.done += u64::from(!walk.over_recipes);
        let (done, total) = (walk.done, walk.total.max(walk.done));
        // What waits is read in its turn.
        if !self.queue.contains(&id) {
            let looked = if walk.over_recipes { self.forget_if_gone(&id) } else { self.read_file(&id, None) };
            match looked {
                Ok(()) => {}
                Err(CutError::Step(error)) => return Err(error),
                Err(CutError::Read(error)) => {
                    tracing::debug!(%id, %error, "a file cannot be read for the index; its chunks are forgotten");
                    self.forget(&id)?;
                }
            }
        }
        self.walk = Some(walk);
        if done.is_multiple_of(64) { self.show(WorkerState::Rebuilding { done, total }) } else { Ok(()) }
    }

    fn forget_if_gone(&mut self, id: &InodeId) -> Result<(), CutError<IndexError>> {
        match self.files.open(id)? {
            Some(_) => Ok(()),
            None => self.forget(id).map_err(CutError::Step),
        }
    }

    fn next_page(&mut self, walk: Walk) -> Result<(), IndexError> {
        let ids = if walk.over_recipes {
            self.shared.store.files_after(walk.after, WALK_PAGE)?
        } else {
            match self.files.ids_after(walk.after, WALK_PAGE) {
                Ok(ids) => ids,
                Err(error) => {
                    self.postpone_walk(&error);
                    return Ok(());
                }
            }
        };
        self.walk = match (ids.is_empty(), walk.over_recipes) {
            (false, _) => Some(Walk { page: ids.into(), ..walk }),
            (true, false) => Some(Walk { over_recipes: true, after: None, ..walk }),
            (true, true) => None,
        };
        Ok(())
    }

    fn postpone_walk(&mut self, error: &io::Error) {
        tracing::warn!(%error, "the replica's files cannot be listed for the content index; tried again later");
        self.shared.rescan.store(true, Ordering::SeqCst);
        self.walk_not_before = Instant::now() + WALK_RETRY;
    }

    /// Up to where everything is indexed; `None` while only a walk can tell.
    fn position(&self) -> Option<Position> {
        let known = self.walk.is_none() && !self.shared.rescan.load(Ordering::SeqCst);
        known.then(|| self.queue.indexed(self.applied))
    }

    /// Stores a position that moved without a file being read, and flushes: now and then, or now.
    fn record(&mut self, now: bool) -> Result<(), IndexError> {
        if !now && self.flushed.elapsed() < FLUSH_EVERY {
            return Ok(());
        }
        let position = self.position();
        if position.is_some_and(|position| !self.summary.complete || position != self.summary.position) {
            let shared = Arc::clone(&self.shared);
            self.summary = Edit::new(&shared.store, self.summary).commit(position)?;
            self.unflushed = true;
        }
        if std::mem::take(&mut self.unflushed) {
            self.shared.store.flush()?;
        }
        self.flushed = Instant::now();
        Ok(())
    }

    fn show(&mut self, state: WorkerState) -> Result<(), IndexError> {
        let position = self.position();
        let mut status = self.shared.status.lock();
        status.worker = state;
        status.files = self.summary.files;
        status.chunks = self.summary.digests;
        status.files_behind = self.queue.len() as u64;
        status.position = position;
        Ok(())
    }
}
