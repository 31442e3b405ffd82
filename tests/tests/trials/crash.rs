//! `kill -9` of either daemon, and of both, under load.

use tandem_tests::trials::crash::{Victim, trial};

use crate::report;
use tandem_tests::trials::Outcome;

#[test]
fn kills_of_mountd_under_load_lose_nothing_acknowledged() {
    report("crash of mountd", trial(101, Victim::Mountd, 3, false));
}

#[test]
fn kills_of_storaged_under_load_lose_nothing_acknowledged() {
    report("crash of storaged", trial(102, Victim::Storaged, 3, false));
}

#[test]
fn kills_of_both_under_load_lose_nothing_acknowledged() {
    report("crash of both", trial(103, Victim::Both, 3, false));
}

#[test]
#[should_panic(expected = "lacks what was promised")]
fn a_trial_in_which_an_acknowledged_call_is_missing_fails() {
    if let Outcome::Skipped(why) = trial(104, Victim::Storaged, 1, true) {
        panic!("SKIPPED: {why}, so nothing lacks what was promised");
    }
}
