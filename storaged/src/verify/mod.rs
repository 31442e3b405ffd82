//! Compares the replica with what its mount says it should hold: the storage side of `tandem verify`.
//!
//! ```text
//!  writer's stream: … ops ─ VerifyCheck ─ ops …      volume's thread: hold apply at that place ─► job
//!                                                    this thread: read tree and catalog, compare ─► Checked
//!                                                    volume's thread: release, mend names ─► VerifyResult
//! ```
//! Promise: what is compared is the replica at exactly the position where the check stands in the stream, so a writer that runs on
//! causes no false alarm. Only apply stands still meanwhile, for the time of reading what one check names.
//!
//! [`compare`] computes what the replica has; [`evidence`] keeps what differs before it is repaired.

mod compare;
mod evidence;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        mpsc::{Receiver, Sender, channel},
    },
};

use tandem_proto::{
    pb,
    verify::{Compared, Item},
};

use self::compare::{Comparer, Seen};
use crate::{
    apply::ApplyError,
    catalog::Cell,
    index::LateIndex,
    reader::ReplicaReader,
    tree::FsTree,
    volume::{
        hold::Held,
        thread::{Command, Commands},
    },
};

/// A check of a session, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Whose.
    pub session: u64,
    /// Names it in the answer.
    pub token: u64,
    /// The last op before it.
    pub seq: u64,
    /// What is compared.
    pub items: Vec<Compared>,
    /// What differs differed before: keep the content, mend the names.
    pub confirm: bool,
}

/// What came of a check.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Why nothing was compared; empty: it was.
    pub unchecked: String,
    /// What differs.
    pub findings: Vec<pb::VerifyFinding>,
    /// Names whose object is not the one that the catalog means.
    pub mend: Vec<Cell>,
    /// Inodes that the replica has.
    pub inodes: u64,
}

impl Outcome {
    /// Nothing was compared.
    pub fn unchecked(why: impl Into<String>) -> Outcome {
        Outcome { unchecked: why.into(), ..Outcome::default() }
    }
}

/// A check whose position is held.
pub struct Job {
    /// Of the hold.
    pub number: u64,
    /// What to compare.
    pub check: Check,
    /// Where.
    pub held: Held,
}

/// The thread of one volume that compares.
pub struct Checker {
    jobs: Sender<Job>,
}

impl Checker {
    /// Starts it. It ends when this is dropped.
    pub fn start(
        directory: &Path,
        reader: ReplicaReader<FsTree>,
        index: Option<Arc<LateIndex>>,
        commands: Weak<Commands>,
    ) -> std::io::Result<Checker> {
        let (jobs, received) = channel();
        let worker = Worker { directory: directory.to_owned(), reader, index, commands };
        std::thread::Builder::new().name("verify".to_owned()).spawn(move || worker.run(&received))?;
        Ok(Checker { jobs })
    }

    /// Hands it a job; it comes back as [`Command::Checked`].
    pub fn compare(&self, job: Job) -> Result<(), Job> {
        self.jobs.send(job).map_err(|refused| refused.0)
    }
}

struct Worker {
    directory: PathBuf,
    reader: ReplicaReader<FsTree>,
    index: Option<Arc<LateIndex>>,
    /// Not a sender of its own: the volume's thread ends when nobody can tell it anything.
    commands: Weak<Commands>,
}

impl Worker {
    fn run(self, jobs: &Receiver<Job>) {
        while let Ok(Job { number, check, held }) = jobs.recv() {
            let outcome = self.compare(&check, &held);
            let Some(commands) = self.commands.upgrade() else { return };
            if commands.send(Command::Checked { number, session: check.session, token: check.token, outcome }).is_err()
            {
                return;
            }
        }
    }

    fn compare(&self, check: &Check, held: &Held) -> Outcome {
        let mut outcome = Outcome { inodes: self.reader.inodes(), ..Outcome::default() };
        let comparer = Comparer { reader: &self.reader, thorough: check.confirm };
        for (at, compared) in check.items.iter().enumerate() {
            if let Some(why) = held.abort.why() {
                return Outcome::unchecked(why.to_string());
            }
            let seen = match comparer.look(&compared.item, compared.digest.is_none()) {
                Ok(seen) => seen,
                Err(error) => Seen::problem(format!("it cannot be read: {error}")),
            };
            if seen.problem.is_empty() && seen.digest == compared.digest {
                continue;
            }
            let good = if check.confirm { self.judge(&compared.item, held) } else { String::new() };
            if check.confirm {
                self.keep(compared, &seen, &good, held);
                outcome.mend.extend(seen.mend);
            }
            outcome.findings.push(pb::VerifyFinding {
                item: at as u32,
                digest: seen.digest.map(|digest| bytes::Bytes::copy_from_slice(&digest.0)).unwrap_or_default(),
                problem: seen.problem,
                good,
            });
        }
        outcome
    }

    /// What the index knows of a file that differs.
    fn judge(&self, item: &Item, held: &Held) -> String {
        let (Item::Node { id, .. } | Item::Extent { id, .. }, Some(index)) = (item, &self.index) else {
            return String::new();
        };
        match index.judge(id, held.position, &crate::index::CatalogFiles::new(self.reader.clone())) {
            None => String::new(),
            Some(true) => "the replica's data has not changed since its index read it: perhaps the folder was changed around the mount, or \
                           on its disk"
                .to_owned(),
            Some(false) => "the replica's data changed after its index read it, and no operation did that: it was changed in its tree, or \
                            on its disk; the folder's is good"
                .to_owned(),
        }
    }

    fn keep(&self, compared: &Compared, seen: &Seen, good: &str, held: &Held) {
        let kept = evidence::Evidence { directory: &self.directory, reader: &self.reader, position: held.position };
        let result: Result<(), ApplyError> = kept.keep(compared, seen, good);
        if let Err(error) = result {
            tracing::warn!(%error, "the evidence of a mismatch cannot be kept");
        }
    }
}
