//! The applications of one machine: they change the folder as the vfs of mountd does, and every state is remembered.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tandem_mountd::commit::{Commit, CommitError};
use tandem_proto::{Changes, Origin, Seq};

use crate::{
    rng::Rng,
    sim::{
        backing_disk::BackingDisk,
        folder::{Folder, FolderReader},
        requests::{cells, next_request},
    },
};

/// States of the folder just after each op of one run of mountd.
pub type History = BTreeMap<u64, Folder>;

/// An answer to an fsync that waited for the replica.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// The run that gave it.
    pub run: usize,
    /// Everything up to here is durable.
    pub seq: Seq,
}

/// How far a request comes before its process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaches {
    /// Its mark is on the disk, nothing else happened.
    Mark,
    /// The folder is changed, and nobody was told.
    Folder,
    /// To its end.
    End,
}

/// The applications and their mount's commit.
pub struct Apps {
    /// Chooses what they ask for.
    pub rng: Rng,
    /// The folder.
    pub reader: FolderReader,
    /// What it lies on.
    pub disk: BackingDisk,
    /// Of the running mount.
    pub commit: Arc<Commit>,
    /// The run of mountd.
    pub run: usize,
    /// Every state so far, of every run.
    pub runs: BTreeMap<usize, History>,
    /// Nobody asks for anything any more.
    pub quiet: bool,
    promises: Arc<Mutex<Vec<Promise>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Apps {
    /// On an empty folder.
    pub fn new(rng: Rng, machine: u64, commit: Arc<Commit>) -> Apps {
        let reader = FolderReader::holding(Folder::on_machine(machine));
        let disk = BackingDisk::holding(&reader.folder());
        Apps { rng, reader, disk, commit, run: 0, runs: BTreeMap::new(), quiet: false, promises: Arc::default() }
    }

    /// A run of mountd begins.
    pub fn begin_run(&mut self, run: usize, commit: Arc<Commit>) {
        (self.run, self.commit) = (run, commit);
        // What nobody was told is promised to nobody.
        lock(&self.promises).clear();
        self.draw(Seq(0));
    }

    /// Remembers the state just after `seq`.
    fn draw(&mut self, seq: Seq) {
        let folder = self.reader.folder().clone();
        self.runs.entry(self.run).or_default().insert(seq.0, folder);
    }

    /// The state that a position of a run stands for. Slots that the link takes for a position of its own change nothing.
    pub fn state_at(&self, run: usize, seq: u64) -> Option<&Folder> {
        self.runs.get(&run)?.range(..=seq).next_back().map(|(_, folder)| folder)
    }

    /// One request of an application; returns what it was.
    pub fn request(&mut self) -> String {
        if self.rng.chance(4) {
            return self.sync();
        }
        self.request_until(Reaches::End)
    }

    /// The same, but the process may die in the middle.
    pub fn request_until(&mut self, reaches: Reaches) -> String {
        let request = next_request(&mut self.rng);
        let planned = self.reader.folder().clone().perform(&request);
        let commit = Arc::clone(&self.commit);
        let cells = planned.as_ref().map(cells).unwrap_or_default();
        let mark = match commit.mark(&cells) {
            Ok(mark) => mark,
            Err(CommitError::Fenced(_)) => {
                assert!(commit.read_only(), "a fenced mount refuses changes without asking");
                return "EROFS".to_owned();
            }
            Err(error) => panic!("the activity log can be written: {error}"),
        };
        if reaches == Reaches::Mark {
            // A process that dies lets go of nothing.
            mem::forget(mark);
            return format!("dies before {request:?}");
        }
        let slot = commit.reserve();
        let seq = slot.seq();
        if planned.is_none() {
            // A call that fails leaves a void slot.
            self.draw(seq);
            slot.void();
            return format!("{seq}: void ({request:?})");
        }
        let by_reference = commit.takes_copies();
        let mut happened: Changes = self.reader.folder().perform(&request).expect("it was possible a moment ago");
        self.disk.written(&happened);
        if by_reference {
            happened = self.reader.folder().by_reference(&request, &happened);
        }
        let text = format!("{seq}: {happened:?}");
        if reaches == Reaches::Folder {
            mem::forget((slot, mark));
            return format!("dies after {text}");
        }
        self.draw(seq);
        slot.fill(Origin::default(), happened);
        drop(mark);
        text
    }

    /// An fsync or a sync, of the disk or of the replica too.
    fn sync(&mut self) -> String {
        let file = self.reader.folder().any_file(&mut self.rng);
        match (self.rng.below(4), file) {
            (0, _) => {
                self.disk.sync();
                "syncfs".to_owned()
            }
            (1, Some(id)) => {
                self.disk.sync_one(&id);
                format!("fsync {id}")
            }
            _ => {
                let (run, seq) = (self.run, self.commit.last_reserved());
                let promises = Arc::clone(&self.promises);
                let done = move |answer: Result<(), CommitError>| {
                    if answer.is_ok() {
                        lock(&promises).push(Promise { run, seq });
                    }
                };
                self.commit.when_durable(seq, Box::new(done));
                format!("durable fsync of {seq}")
            }
        }
    }

    /// Answers that came since the last call.
    pub fn take_promises(&mut self) -> Vec<Promise> {
        mem::take(&mut *lock(&self.promises))
    }
}
