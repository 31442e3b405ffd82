//! Runs seeds, one after the other or many at once, and says how a failure is repeated.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use crate::sim::{Faults, Keep, World};

/// Steps of one run.
pub const STEPS: u64 = 3000;

/// What a run that found nothing did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Equal for equal runs.
    pub hash: String,
    /// States of the replica that were compared.
    pub states: u64,
    /// Fsyncs that returned durable.
    pub promises: u64,
    /// Takeovers that fenced another machine.
    pub fenced: u64,
    /// What happened, if it was kept.
    pub trace: String,
}

/// A run in which a checker objected.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What the checker says.
    pub why: String,
    /// What happened before, if it was kept.
    pub trace: String,
}

/// One run.
pub fn run(seed: u64, faults: Faults, steps: u64, keep: Keep) -> Result<Report, Failure> {
    let mut world = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(seed, faults, keep));
        for _ in 0..steps {
            world.step();
        }
        world.converge();
    }));
    let trace = world.as_ref().map(|world| world.trace().text()).unwrap_or_default();
    match (result, &world) {
        (Ok(()), Some(world)) => {
            let checks = world.checks();
            let (states, promises, fenced) = (checks.states, checks.promises, checks.fenced);
            Ok(Report { hash: world.trace().hash(), states, promises, fenced, trace })
        }
        (Ok(()), None) => Ok(Report::default()),
        (Err(panic), _) => {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Failure { seed, why: why.unwrap_or_else(|| "a panic without words".to_owned()), trace })
        }
    }
}

/// What many seeds did together.
#[derive(Clone, Debug, Default)]
pub struct Total {
    /// Runs.
    pub runs: u64,
    /// See [`Report`].
    pub states: u64,
    /// See [`Report`].
    pub promises: u64,
    /// See [`Report`].
    pub fenced: u64,
    /// The first failure of each thread.
    pub failures: Vec<Failure>,
}

/// Runs `count` seeds from `first` on, on so many threads, until all are done or one fails. Each seed has its own mix of faults.
pub fn run_all(first: u64, count: u64, jobs: usize, steps: u64, progress: &(dyn Fn(u64) + Sync)) -> Total {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Total::default());
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let seed = first + at;
                    let answer = run(seed, Faults::of_seed(seed), steps, Keep::Nothing);
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    total.runs += 1;
                    match answer {
                        Ok(report) => {
                            total.states += report.states;
                            total.promises += report.promises;
                            total.fenced += report.fenced;
                        }
                        Err(failure) => {
                            total.failures.push(failure);
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    progress(total.runs);
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}
