//! What the load did and when: the oracle of a trial. It knows nothing of files, replicas or positions.
//!
//! Each worker commits numbers 1, 2, 3 … one after the other. Begin and acknowledgement of each commit get a stamp of one clock, so "A was
//! acknowledged before B began" is a comparison of two numbers. A copy is a state that the database may recover to only if it has
//! with each commit all that were acknowledged before that one began.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug)]
struct Commit {
    begun: u64,
    acked: Option<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    clock: u64,
    workers: Vec<Vec<Commit>>,
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// The commits of all workers.
#[derive(Debug)]
pub struct Ledger(Mutex<Inner>);

impl Ledger {
    /// A ledger for so many workers.
    pub fn new(workers: usize) -> Self {
        Ledger(Mutex::new(Inner { clock: 0, workers: vec![Vec::new(); workers] }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker begins its next commit: its number.
    pub fn begin(&self, worker: usize) -> u64 {
        let mut inner = self.inner();
        let begun = inner.tick();
        inner.workers[worker].push(Commit { begun, acked: None });
        inner.workers[worker].len() as u64
    }

    /// The database said that it is done.
    pub fn acknowledged(&self, worker: usize) {
        let mut inner = self.inner();
        let stamp = inner.tick();
        if let Some(commit) = inner.workers[worker].last_mut() {
            commit.acked = Some(stamp);
        }
    }

    /// The time now, for [`Self::check`].
    pub fn now(&self) -> u64 {
        self.inner().tick()
    }

    /// Commits that were acknowledged so far.
    pub fn total(&self) -> u64 {
        let count = |commits: &Vec<Commit>| commits.iter().filter(|commit| commit.acked.is_some()).count() as u64;
        self.inner().workers.iter().map(count).sum()
    }

    /// Whether a copy with the first `found[worker]` commits of each worker can be a true past, and has everything that was
    /// acknowledged before `must`. Returns how many that were.
    pub fn check(&self, found: &[u64], must: u64) -> Result<u64, String> {
        let inner = self.inner();
        assert_eq!(found.len(), inner.workers.len(), "one number a worker");
        for (worker, (commits, found)) in inner.workers.iter().zip(found).enumerate() {
            if *found > commits.len() as u64 {
                return Err(format!("worker {worker} began {} commits, and the copy has {found}", commits.len()));
            }
        }
        // The latest beginning of a commit that is there: all that were acknowledged before it must be there as well.
        let last = |commits: &Vec<Commit>, found: u64| Some(commits[(found as usize).checked_sub(1)?].begun);
        let newest = inner.workers.iter().zip(found).filter_map(|(commits, found)| last(commits, *found)).max();
        let mut promised = 0;
        for (worker, (commits, found)) in inner.workers.iter().zip(found).enumerate() {
            let before =
                |stamp: u64| commits.partition_point(|commit| commit.acked.is_some_and(|acked| acked < stamp)) as u64;
            let (earlier, due) = (before(newest.unwrap_or(0)), before(must));
            if *found < earlier {
                return Err(format!(
                    "commit {} of worker {worker} is missing, and one that began after its acknowledgement is there",
                    found + 1
                ));
            }
            if *found < due {
                return Err(format!(
                    "commit {} of worker {worker} is missing: it was acknowledged before the clone was asked for",
                    found + 1
                ));
            }
            promised += due;
        }
        Ok(promised)
    }
}

#[cfg(test)]
mod tests {
    use super::Ledger;

    #[test]
    fn a_copy_that_lacks_an_earlier_or_an_acknowledged_commit_is_no_true_past() {
        let ledger = Ledger::new(2);
        ledger.begin(0);
        ledger.acknowledged(0);
        let between = ledger.now();
        ledger.begin(1);
        ledger.begin(0);
        ledger.acknowledged(1);
        assert_eq!(ledger.check(&[1, 1], between), Ok(1));
        assert_eq!(ledger.check(&[2, 0], between), Ok(1), "they overlapped, so each may be there without the other");
        assert_eq!(ledger.check(&[0, 0], 0), Ok(0), "before everything");
        assert!(ledger.check(&[0, 1], 0).expect_err("order").contains("began after"));
        assert!(ledger.check(&[0, 0], between).expect_err("lost").contains("was acknowledged"));
        assert!(ledger.check(&[3, 0], 0).expect_err("invented").contains("began 2"));
        assert_eq!(ledger.total(), 2);
    }
}
