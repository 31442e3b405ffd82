//! Seeds of the simulation, in mixes of faults that each show one promise, and in mixes of everything. `scripts/simulate` runs thousands.
//!
//! A failure prints its seed: repeat it with `TANDEM_SIM_SEED=… cargo test -p tandem-tests --test simulation NAME -- --nocapture`;
//! `TANDEM_SIM_TRACE=WORD` with it shows every step that mentions WORD, and `TANDEM_SIM_SEEDS` sets how many seeds each mix gets.

use std::process::Command;

use tandem_runtime::mutant;
use tandem_tests::sim::{
    Faults, Keep,
    run::{Report, run},
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Steps of one run.
const STEPS: u64 = 2500;

fn one(name: &str, seed: u64, faults: Faults) -> Report {
    let keep = std::env::var("TANDEM_SIM_TRACE").map_or(Keep::Last, Keep::All);
    run(seed, faults, STEPS, keep).unwrap_or_else(|failure| {
        eprintln!("{name}: seed {seed} failed ({faults:?}). The last steps:\n{}", failure.trace);
        eprintln!(
            "repeat it: TANDEM_SIM_SEED={seed} cargo test -p tandem-tests --test simulation {name} -- --nocapture"
        );
        panic!("seed {seed}: {}", failure.why);
    })
}

fn seeds(name: &str, faults: impl Fn(u64) -> Faults) {
    seeds_of(name, 8, faults);
}

fn seeds_of(name: &str, usual: u64, faults: impl Fn(u64) -> Faults) {
    if let Some(seed) = number("TANDEM_SIM_SEED") {
        println!("{:?}", one(name, seed, faults(seed)));
        return;
    }
    let seeds = number("TANDEM_SIM_SEEDS").unwrap_or(usual);
    let states: u64 = (0..seeds).map(|seed| one(name, seed, faults(seed)).states).sum();
    println!("{name}: {seeds} seeds, {states} states of the replica compared");
    assert!(states > seeds, "a simulation whose replica is never looked at proves nothing");
}

#[test]
fn undisturbed_work_converges() {
    seeds("undisturbed_work_converges", |_| Faults::default());
}

#[test]
fn cut_connections_lose_and_repeat_nothing() {
    seeds("cut_connections_lose_and_repeat_nothing", |_| Faults { cuts: 100, duplicates: 100, ..Faults::default() });
}

#[test]
fn killed_storage_keeps_what_it_acknowledged() {
    let faults = Faults { cuts: 20, storage_kills: 60, ..Faults::default() };
    seeds("killed_storage_keeps_what_it_acknowledged", |_| faults);
}

#[test]
fn storage_without_power_keeps_what_it_acknowledged() {
    let faults = Faults { cuts: 20, storage_power: 60, ..Faults::default() };
    seeds("storage_without_power_keeps_what_it_acknowledged", |_| faults);
}

#[test]
fn killed_mount_resyncs_what_its_marks_say() {
    let faults = Faults { cuts: 20, mount_kills: 40, ..Faults::default() };
    seeds("killed_mount_resyncs_what_its_marks_say", |_| faults);
}

#[test]
fn replica_follows_a_client_that_lost_power() {
    let faults = Faults { cuts: 20, client_power: 40, ..Faults::default() };
    seeds("replica_follows_a_client_that_lost_power", |_| faults);
}

#[test]
fn taken_over_volume_fences_the_older_writer() {
    let faults = Faults { cuts: 40, takeovers: 30, mount_kills: 10, ..Faults::default() };
    seeds("taken_over_volume_fences_the_older_writer", |_| faults);
}

#[test]
fn full_storage_stops_at_a_consistent_point_and_goes_on() {
    let faults = Faults { storage_full: 60, storage_kills: 20, ..Faults::default() };
    seeds("full_storage_stops_at_a_consistent_point_and_goes_on", |_| faults);
}

#[test]
fn ops_of_another_history_are_never_taken_for_known_ones() {
    let faults = Faults { forgeries: 30, duplicates: 50, cuts: 20, ..Faults::default() };
    seeds("ops_of_another_history_are_never_taken_for_known_ones", |_| faults);
}

#[test]
fn everything_at_once_still_converges() {
    seeds_of("everything_at_once_still_converges", 100, Faults::of_seed);
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..4 {
        let name = "one_seed_is_one_run";
        assert_eq!(one(name, seed, Faults::of_seed(seed)), one(name, seed, Faults::of_seed(seed)), "seed {seed}");
    }
}

/// What nobody would notice, nobody checks: each rule that a build like this one can break is broken, in a process of its own.
#[test]
fn each_broken_rule_is_noticed() {
    let output = Command::new(env!("CARGO_BIN_EXE_tandem-simulate"))
        .args(["--mutants", "--seeds", "200"])
        .output()
        .expect("the simulation for use by hand starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let caught = said.lines().filter(|line| line.contains(" caught (")).count();
    assert_eq!(caught, mutant::ALL.len(), "{said}");
}
