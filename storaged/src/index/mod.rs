//! The content index of a volume: which chunks a file holds, and where a chunk can be found.
//!
//! ```text
//!  volume thread ── touched / removed / applied ──► inbox (bounded) ──► worker: queue ─► read file ─► cut ─► store (sled)
//!                                                     │ full                      ▲
//!                                                     └──► "rescan" flag ─────────┘ walks the tree, compares stamps
//!  staging ──────── find(digest) ─────────────────────────────────────────────────────────────────────► store
//! ```
//!
//! What it promises: nothing that anybody may rely on. It is derived from tree and catalog, runs behind apply, and each
//! answer is a hint: who gets a [`Place`] reads it and checks the digest. A wrong, old or missing entry costs bytes on the
//! wire and nothing else. So whatever goes wrong here (a full queue, a damaged or lost database, a position that is not the
//! replica's) has one answer: walk the files, compare their stamps with what is stored, and read those that differ.
//!
//! Bounds: [`IndexOptions`]. It leaves to others: what to do with a place, and applying anything.

mod cutter;
mod files;
mod late;
mod pacer;
mod queue;
pub mod recipe;
mod store;
mod verify;
mod worker;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tandem_proto::{Digest, InodeId, Position};

use crate::apply::{ChunkSource, Place};
pub use files::CatalogFiles;
pub use late::LateIndex;
pub use pacer::Pacer;
use recipe::Summary;
pub use recipe::{Chunk, FileStamp, Recipe};
pub use store::Contents;
use store::Store;
pub use verify::{IndexFinding, differs, verify};
use worker::{Event, Worker};

/// Marks a directory whose database failed while it was in use; the next open begins an empty one.
const DAMAGED_MARK: &str = "damaged";
/// The database's own directory, so that it can be removed as a whole.
const STORE_DIR: &str = "sled";
/// Announcements that wait for the worker: 40 bytes each. Beyond it the tree is walked instead.
const INBOX_MAX_EVENTS: usize = 32 << 10;

/// How the index reads the replica. Implemented over tree and catalog, see [`files`].
pub trait ReplicaFiles: Send {
    /// Opens a regular file for reading; `None` if the replica has no such file, or it is none.
    fn open(&self, id: &InodeId) -> io::Result<Option<Box<dyn IndexedFile>>>;
    /// At most `limit` inode ids, in an order of its own, after `after`. None: these were all.
    fn ids_after(&self, after: Option<InodeId>, limit: usize) -> io::Result<Vec<InodeId>>;
    /// How many inode ids there are now.
    fn count(&self) -> u64;
}

/// An open file of the replica.
pub trait IndexedFile {
    /// Its quick check now.
    fn stamp(&self) -> io::Result<FileStamp>;
    /// Reads until `buffer` is full or the file ends; how many bytes.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// The next range at or after `from` that is not a hole; `None`: only holes follow.
    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>>;
    /// What is read next comes from the disk, as far as it is there.
    fn forget_cached(&self) {}
}

/// Bounds of the index.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// Memory of the database's page cache. Measured: a million keys take 300 MiB without a bound.
    pub cache_bytes: u64,
    /// A file is read when it was not touched for so long: one read for a burst of writes.
    pub idle: Duration,
    /// What is due waits at most so much longer while the replica is changed, or others use the processors.
    pub stand_back_max: Duration,
    /// Large files must be left alone longer: one second for so many bytes, so that a large file that is written now and then
    /// is not read over and over.
    pub idle_bytes_per_second: u64,
    /// A walk reads at most so much: the disk is the replica's first. Files that were touched are read as fast as they can be.
    pub rebuild_bytes_per_second: u64,
    /// Files that wait; about 200 bytes each.
    pub waiting_max_files: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        IndexOptions {
            cache_bytes: 32 << 20,
            idle: Duration::from_secs(1),
            stand_back_max: Duration::from_secs(10),
            idle_bytes_per_second: 256 << 20,
            rebuild_bytes_per_second: 128 << 20,
            waiting_max_files: 128 << 10,
        }
    }
}

/// The index cannot be used. The volume serves without it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Its directory cannot be made or emptied.
    #[error("index directory {}: {source}; check its owner and the free space", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its database failed.
    #[error("index: cannot {what}: {reason}; the index is rebuilt at the next start")]
    Store {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// The worker thread cannot be started.
    #[error("index: cannot start its worker thread: {0}")]
    Thread(io::Error),
}

/// What the worker does now.
///
/// ```text
///  (Opening)
///            ┌──────────────► Idle ◄──────────────┐
///            │                 │ file due          │ nothing waits
///  Rebuilding┼─ done           ▼                   │
///   ▲   ▲    └────────────► Indexing ──────────────┘
///   │   └── overflow ──────────┘
///   └─ open: lost, or at another position        any ─► Failed (for good) | Stopped
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Its database is being opened.
    Opening,
    /// Nothing waits.
    Idle,
    /// Reads files that were touched.
    Indexing,
    /// Walks all files; so many were looked at.
    Rebuilding {
        /// Inodes that were looked at.
        done: u64,
        /// Of how many, when it began.
        total: u64,
    },
    /// The database failed; the index answers nothing until the next start.
    Failed(String),
    /// Closed.
    Stopped,
}

impl WorkerState {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            WorkerState::Opening => "opening".to_owned(),
            WorkerState::Idle => "idle".to_owned(),
            WorkerState::Indexing => "indexing".to_owned(),
            WorkerState::Rebuilding { done, total } => format!("rebuilding, {done} of {total} inodes compared"),
            WorkerState::Failed(reason) => format!("failed: {reason}"),
            WorkerState::Stopped => "stopped".to_owned(),
        }
    }
}

/// The index as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexStatus {
    /// What the worker does.
    pub worker: WorkerState,
    /// Files with a recipe.
    pub files: u64,
    /// Different chunks that can be found.
    pub chunks: u64,
    /// Files that wait to be indexed.
    pub files_behind: u64,
    /// Everything up to here is indexed; `None`: not known until the tree was walked.
    pub position: Option<Position>,
}

/// What the worker and everybody else share.
struct Shared {
    store: Store,
    dir: PathBuf,
    /// An announcement was lost: the tree must be walked.
    rescan: AtomicBool,
    stop: AtomicBool,
    failed: AtomicBool,
    /// Announcements about files that the worker has not looked at.
    announced: AtomicU64,
    /// Who waits for the worker.
    awaited: AtomicUsize,
    status: Mutex<IndexStatus>,
}

impl Shared {
    /// Switches the index off, for good, and makes the next open begin anew.
    fn fail(&self, error: &IndexError) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            tracing::error!(%error, "the content index is switched off; resyncs may send more than they need");
            if let Err(error) = fs::write(self.dir.join(DAMAGED_MARK), error.to_string()) {
                tracing::warn!(%error, dir = %self.dir.display(), "cannot mark the index as damaged");
            }
            self.status.lock().worker = WorkerState::Failed(error.to_string());
        }
    }
}

/// The index of one volume. Its methods never wait for its worker; any thread may call them.
pub struct Index {
    shared: Arc<Shared>,
    inbox: SyncSender<Event>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Index {
    /// Opens the index in `dir` for a replica that is at `applied`, and starts its worker. An index that is lost, damaged, of
    /// another format or at another position is brought up to date in the background, while it serves.
    pub fn open(
        dir: &Path,
        files: Box<dyn ReplicaFiles>,
        applied: Position,
        options: &IndexOptions,
    ) -> Result<Index, IndexError> {
        let (store, summary) = open_store(dir, options)?;
        let total = files.count();
        // An index without a file beside a tree that has some was lost, whatever it says of itself.
        let lost = summary.files == 0 && total > 1;
        let current = summary.complete && summary.position == applied && !lost;
        let status = IndexStatus {
            worker: if current { WorkerState::Idle } else { WorkerState::Rebuilding { done: 0, total } },
            files: summary.files,
            chunks: summary.digests,
            files_behind: 0,
            position: current.then_some(applied),
        };
        let shared = Arc::new(Shared {
            store,
            dir: dir.to_owned(),
            rescan: AtomicBool::new(!current),
            stop: AtomicBool::new(false),
            announced: AtomicU64::new(0),
            awaited: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            status: Mutex::new(status),
        });
        let (inbox, events) = sync_channel(INBOX_MAX_EVENTS);
        let worker = Worker::new(Arc::clone(&shared), events, files, summary, applied, options.clone());
        let thread = std::thread::Builder::new()
            .name("index".to_owned())
            .spawn(move || worker.run())
            .map_err(IndexError::Thread)?;
        Ok(Index { shared, inbox, worker: Mutex::new(Some(thread)) })
    }

    /// The data of a file changed. Call it when the change is in the tree and the catalog shows it.
    pub fn touched(&self, id: InodeId) {
        self.announce(Event::Touched(id));
    }

    /// A file lost a name, by a rename or an unlink; it may have another.
    pub fn lost_name(&self, id: InodeId) {
        self.announce(Event::LostName(id));
    }

    /// A file is no longer in the replica.
    pub fn removed(&self, id: InodeId) {
        self.announce(Event::Removed(id));
    }

    /// Everything up to `position` was announced.
    pub fn applied(&self, position: Position) {
        self.announce(Event::Applied(position));
    }

    /// Every file may have changed, for instance because a whole state was published.
    pub fn rescan(&self) {
        self.shared.rescan.store(true, Ordering::SeqCst);
    }

    /// What a file held when it was last read; `None` if it was not read yet.
    pub fn recipe(&self, id: &InodeId) -> Option<Recipe> {
        self.answer(|store| store.recipe(id))
    }

    /// Whether a file still holds what was read after the last op that changed it; `None`: not known now.
    pub fn judge(&self, id: &InodeId, at: Position, files: &dyn ReplicaFiles) -> Option<bool> {
        let indexed = self.status().position.is_some_and(|position| !position.is_before(&at));
        if !indexed || self.shared.rescan.load(Ordering::SeqCst) {
            return None;
        }
        let recipe = self.recipe(id)?;
        let file = files.open(id).ok()??;
        let same_size = file.stamp().ok()?.size == recipe.stamp.size;
        Some(same_size && verify::compare_content(&*file, &recipe).ok()?.is_none())
    }

    /// All that it holds, sorted: to compare it with another one.
    pub fn contents(&self) -> Contents {
        self.answer(|store| store.contents())
    }

    /// For `status`.
    pub fn status(&self) -> IndexStatus {
        let mut status = self.shared.status.lock().clone();
        status.files_behind += self.shared.announced.load(Ordering::SeqCst);
        status
    }

    /// Waits until everything up to `position` is indexed; `false` on timeout, or if the index failed.
    pub fn wait_for(&self, position: Position, timeout: Duration) -> bool {
        self.shared.awaited.fetch_add(1, Ordering::Relaxed);
        if let Some(worker) = &*self.worker.lock() {
            worker.thread().unpark();
        }
        let reached = self.reaches(position, Instant::now() + timeout);
        self.shared.awaited.fetch_sub(1, Ordering::Relaxed);
        reached
    }

    fn reaches(&self, position: Position, end: Instant) -> bool {
        loop {
            // In this order: the worker takes the position away before it takes the flag.
            let known = !self.shared.rescan.load(Ordering::SeqCst);
            let status = self.status();
            if known && status.position.is_some_and(|reached| !reached.is_before(&position)) {
                return true;
            }
            if matches!(status.worker, WorkerState::Failed(_) | WorkerState::Stopped) || Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the worker and writes what it has. Files that still wait are found by the next open.
    pub fn close(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let Some(worker) = self.worker.lock().take() else { return };
        worker.thread().unpark();
        // Wakes a worker that sleeps on an empty inbox; a full one needs no waking.
        let _ = self.inbox.try_send(Event::Wake);
        if worker.join().is_err() {
            tracing::error!("the index's worker panicked");
        }
    }

    fn announce(&self, event: Event) {
        let about_a_file = event.is_about_a_file();
        if about_a_file {
            self.shared.announced.fetch_add(1, Ordering::SeqCst);
        }
        // Never blocks the volume's thread: what does not fit is found by walking the tree.
        if self.inbox.try_send(event).is_err() {
            if about_a_file {
                self.shared.announced.fetch_sub(1, Ordering::SeqCst);
            }
            self.rescan();
        }
    }

    fn answer<T: Default>(&self, look: impl FnOnce(&Store) -> Result<T, IndexError>) -> T {
        if self.shared.failed.load(Ordering::Relaxed) {
            return T::default();
        }
        look(&self.shared.store).unwrap_or_else(|error| {
            self.shared.fail(&error);
            T::default()
        })
    }
}

impl ChunkSource for Index {
    fn find(&self, digest: &Digest) -> Vec<Place> {
        self.answer(|store| store.places(digest))
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.close();
    }
}

/// Opens the database; one that cannot be used is replaced by an empty one.
fn open_store(dir: &Path, options: &IndexOptions) -> Result<(Store, Summary), IndexError> {
    let at_dir = |source| IndexError::Directory { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(at_dir)?;
    match usable_store(dir, options) {
        Ok(opened) => return Ok(opened),
        Err(reason) => tracing::warn!(dir = %dir.display(), reason, "the content index is rebuilt"),
    }
    let store_dir = dir.join(STORE_DIR);
    let removed = match fs::remove_dir_all(&store_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(&store_dir),
        other => other,
    };
    if let Err(error) = removed.or_else(not_found_is_fine) {
        return Err(at_dir(error));
    }
    let (store, _) = Store::open(&store_dir, options.cache_bytes)?;
    fs::remove_file(dir.join(DAMAGED_MARK)).or_else(not_found_is_fine).map_err(at_dir)?;
    Ok((store, Summary::default()))
}

/// The database as it is, or why it is of no use.
fn usable_store(dir: &Path, options: &IndexOptions) -> Result<(Store, Summary), String> {
    if dir.join(DAMAGED_MARK).exists() {
        return Err("its database failed when it was last used".to_owned());
    }
    let (store, summary) = Store::open(&dir.join(STORE_DIR), options.cache_bytes).map_err(|error| error.to_string())?;
    match summary {
        Some(summary) => Ok((store, summary)),
        None if store.is_blank().map_err(|error| error.to_string())? => Ok((store, Summary::default())),
        None => Err("it is of another format".to_owned()),
    }
}

fn not_found_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
