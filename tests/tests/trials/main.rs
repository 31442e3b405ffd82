//! A few trials of each kind, as a test: `scripts/trials` runs as many as one likes. Where a trial cannot be made it says SKIPPED.
//!
//! A program of its own, because trials in a network namespace and on loop devices should not share a process with other tests.

mod crash;
mod full;
mod network;
mod power;
mod xfs;

use tandem_tests::trials::Outcome;

fn report(name: &str, outcome: Outcome) {
    match outcome {
        Outcome::Held(text) => println!("{name}: {text}"),
        Outcome::Skipped(why) => eprintln!("SKIPPED {name}: {why}"),
    }
}
