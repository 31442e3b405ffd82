//! An index that is opened beside a volume that serves already: opening its database takes seconds at a million files.
//!
//! ```text
//!  volume's thread ── announcements ──► kept here until it is open ──► Index          (too many: the tree is walked)
//! ```

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tandem_proto::{Digest, InodeId, Position};

use super::{Index, IndexError, IndexOptions, IndexStatus, Recipe, ReplicaFiles, WorkerState, worker::Event};
use crate::apply::{ChunkSource, Place};

/// How long a resync waits for it: bytes that it would find cost more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Announcements that are kept while it is opened; 40 bytes each.
const KEPT_MAX: usize = 32 << 10;

#[derive(Default)]
struct Kept {
    events: Vec<Event>,
    /// Some did not fit.
    lost: bool,
    closed: bool,
    failed: Option<String>,
}

#[derive(Default)]
struct Shared {
    index: OnceLock<Index>,
    kept: Mutex<Kept>,
    /// Told when it is open, or will not be.
    decided: Condvar,
}

/// See the module. Only a look for chunks waits until it is open.
pub struct LateIndex {
    shared: Arc<Shared>,
    opener: Mutex<Option<JoinHandle<()>>>,
}

impl LateIndex {
    /// Opens the index of `dir`, of a replica that is at `applied` now, in a thread of its own.
    pub fn open(
        dir: &Path,
        files: Box<dyn ReplicaFiles>,
        applied: Position,
        options: IndexOptions,
    ) -> Result<LateIndex, IndexError> {
        let shared = Arc::new(Shared::default());
        let (theirs, dir) = (shared.clone(), dir.to_owned());
        let opener = std::thread::Builder::new()
            .name("index open".to_owned())
            .spawn(move || theirs.opened(Index::open(&dir, files, applied, &options)))
            .map_err(IndexError::Thread)?;
        Ok(LateIndex { shared, opener: Mutex::new(Some(opener)) })
    }

    fn announce(&self, event: Event) {
        if let Some(index) = self.shared.index.get() {
            return index.announce(event);
        }
        let mut kept = self.shared.kept.lock();
        // It may have come about meanwhile; it does so under this lock.
        match self.shared.index.get() {
            Some(index) => index.announce(event),
            None if kept.events.len() < KEPT_MAX && kept.failed.is_none() => kept.events.push(event),
            None => kept.lost = true,
        }
    }

    /// See [`Index::touched`].
    pub fn touched(&self, id: InodeId) {
        self.announce(Event::Touched(id));
    }

    /// See [`Index::lost_name`].
    pub fn lost_name(&self, id: InodeId) {
        self.announce(Event::LostName(id));
    }

    /// See [`Index::removed`].
    pub fn removed(&self, id: InodeId) {
        self.announce(Event::Removed(id));
    }

    /// See [`Index::applied`].
    pub fn applied(&self, position: Position) {
        self.announce(Event::Applied(position));
    }

    /// See [`Index::recipe`].
    pub fn recipe(&self, id: &InodeId) -> Option<Recipe> {
        self.shared.index.get()?.recipe(id)
    }

    /// See [`Index::wait_for`].
    pub fn wait_for(&self, position: Position, timeout: Duration) -> bool {
        self.shared.index.get().is_some_and(|index| index.wait_for(position, timeout))
    }

    /// See [`Index::judge`].
    pub fn judge(&self, id: &InodeId, at: Position, files: &dyn ReplicaFiles) -> Option<bool> {
        self.shared.index.get()?.judge(id, at, files)
    }

    /// For `status`.
    pub fn status(&self) -> IndexStatus {
        if let Some(index) = self.shared.index.get() {
            return index.status();
        }
        let worker = match &self.shared.kept.lock().failed {
            Some(why) => WorkerState::Failed(why.clone()),
            None => WorkerState::Opening,
        };
        IndexStatus { worker, files: 0, chunks: 0, files_behind: 0, position: None }
    }

    /// Ends the worker and writes what it has.
    pub fn close(&self) {
        self.shared.kept.lock().closed = true;
        if let Some(opener) = self.opener.lock().take()
            && opener.join().is_err()
        {
            tracing::error!("the thread that opens the index panicked");
        }
        if let Some(index) = self.shared.index.get() {
            index.close();
        }
    }
}

impl Shared {
    /// The index, when it is open.
    fn wait(&self) -> Option<&Index> {
        if let Some(index) = self.index.get() {
            return Some(index);
        }
        let mut kept = self.kept.lock();
        while self.index.get().is_none() && kept.failed.is_none() && !kept.closed {
            if self.decided.wait_for(&mut kept, PATIENCE).timed_out() {
                break;
            }
        }
        self.index.get()
    }

    fn opened(&self, opened: Result<Index, IndexError>) {
        let mut kept = self.kept.lock();
        match opened {
            Ok(index) => {
                if kept.closed {
                    return;
                }
                let events = std::mem::take(&mut kept.events);
                events.into_iter().for_each(|event| index.announce(event));
                if kept.lost {
                    index.rescan();
                }
                // Under the lock, so that nothing is kept any more.
                let _ = self.index.set(index);
            }
            Err(error) => {
                tracing::warn!(%error, "the volume has no content index");
                kept.events = Vec::new();
                kept.failed = Some(error.to_string());
            }
        }
        self.decided.notify_all();
    }
}

impl ChunkSource for LateIndex {
    fn find(&self, digest: &Digest) -> Vec<Place> {
        self.shared.wait().map(|index| index.find(digest)).unwrap_or_default()
    }
}

impl Drop for LateIndex {
    fn drop(&mut self) {
        self.close();
    }
}
