//! Trials: real daemons on real mounts under load, hit by one fault after the other, and checked after each.
//!
//! A trial is repeated from its seed as far as chance allows: the seed fixes what is done and which fault comes when, the machine
//! decides what it meets. The pieces know nothing of each other:
//!
//! - [`ledger`]: writers that note, outside the mount, what was acknowledged to them, and say what a tree lacks of it;
//! - [`prefix`]: a writer whose every state is a function of one number, so that a tree says whether it is a past state;
//! - [`load`]: those, with fio and a storm of random operations beside them;
//! - [`watch`]: polls positions and objects when one goes back;
//! - [`image`]: file systems on loop devices that lose power;
//! - [`crash`], [`power`], [`full`], [`network`]: the trials themselves.
//!
//! A trial panics with what it found; [`repeat`] runs many and says which seeds failed. The checkers are tested on plain directories
//! that were tampered with, so that each is known to object.

pub mod crash;
pub mod full;
pub mod image;
pub mod ledger;
pub mod load;
pub mod network;
pub mod power;
pub mod prefix;
pub mod watch;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// What a run of trials came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Trials that held.
    pub good: u64,
    /// Seeds of those that did not.
    pub failed: Vec<u64>,
    /// Why trials could not be made here.
    pub skipped: Vec<String>,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: Tally) {
        self.good += other.good;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }
}

/// What one trial says of itself.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It held; one line about it.
    Held(String),
    /// It cannot be made here.
    Skipped(String),
}

/// Runs `trial` with `count` seeds from `first` on. A panic of the trial is its failure; the next one runs all the same.
pub fn repeat(name: &str, first: u64, count: u64, trial: impl Fn(u64) -> Outcome) -> Tally {
    let mut tally = Tally::default();
    for seed in first..first + count {
        let begin = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| trial(seed))) {
            Ok(Outcome::Held(text)) => {
                tally.good += 1;
                println!("{name} seed {seed}: held, {:.1} s; {text}", begin.elapsed().as_secs_f64());
            }
            Ok(Outcome::Skipped(why)) => {
                println!("{name} seed {seed}: SKIPPED, {why}");
                tally.skipped.push(format!("{name}: {why}"));
            }
            Err(_) => {
                println!("{name} seed {seed}: FAILED after {:.1} s", begin.elapsed().as_secs_f64());
                tally.failed.push(seed);
            }
        }
    }
    tally
}

/// How long anything may take that has to end: a recovery, a catch-up. Long, because machines that run trials are busy.
pub const PATIENCE: Duration = Duration::from_secs(180);
