//! Many seeds of the simulation. A failure prints its seed and how to repeat it: `TANDEM_SIM_SEED=… cargo test -p tandem-tests --test simulation`.
//!
//! `TANDEM_SIM_TRACE=WORD` with it shows every step that mentions WORD (an inode's number as `sim:\0\0\0\0\0\0\0\x0c`, or nothing for all).
//! `TANDEM_SIM_SEEDS` sets how many seeds each mix of faults gets.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tandem_tests::{
    rng::Rng,
    sim::{Faults, World},
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Steps of one run.
const STEPS: u64 = 3000;

/// Returns how many states of the replica were checked.
fn run(name: &str, seed: u64, faults: Faults) -> u64 {
    let mut window = Rng::new(seed ^ 0x77);
    // From nearly nothing, which overflows all the time, to more than a run fills.
    let faults = Faults { window_bytes: *window.pick(&[600, 3000, 20_000, 1 << 20]), ..faults };
    let mut world = World::new(seed, faults);
    let result = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            world.step();
        }
        world.converge();
    }));
    if let Err(panic) = result {
        eprintln!("{name}: seed {seed} failed ({faults:?}). The last steps:\n{}", world.trace());
        eprintln!(
            "repeat it: TANDEM_SIM_SEED={seed} cargo test -p tandem-tests --test simulation {name} -- --nocapture"
        );
        resume_unwind(panic);
    }
    world.looks().1
}

fn seeds(name: &str, faults: Faults) {
    if let Some(seed) = number("TANDEM_SIM_SEED") {
        let _ = run(name, seed, faults);
        return;
    }
    let seeds = number("TANDEM_SIM_SEEDS").unwrap_or(12);
    let checks: u64 = (0..seeds).map(|seed| run(name, seed, faults)).sum();
    println!("{name}: {seeds} seeds, {checks} states of the replica checked");
    assert!(checks > seeds, "a simulation whose replica is never looked at proves nothing");
}

#[test]
fn undisturbed_work_converges() {
    seeds("undisturbed_work_converges", Faults::default());
}

#[test]
fn cut_connections_lose_and_repeat_nothing() {
    seeds("cut_connections_lose_and_repeat_nothing", Faults { cuts: 100, ..Faults::default() });
}

#[test]
fn killed_storage_keeps_what_it_acknowledged() {
    seeds("killed_storage_keeps_what_it_acknowledged", Faults { cuts: 20, replica_kills: 60, ..Faults::default() });
}

#[test]
fn storage_without_power_keeps_what_it_acknowledged() {
    seeds(
        "storage_without_power_keeps_what_it_acknowledged",
        Faults { cuts: 20, power_losses: 60, ..Faults::default() },
    );
}

#[test]
fn killed_mount_resyncs_what_its_marks_say() {
    seeds("killed_mount_resyncs_what_its_marks_say", Faults { cuts: 20, mount_kills: 40, ..Faults::default() });
}

#[test]
fn everything_at_once_still_converges() {
    let faults = Faults { cuts: 60, replica_kills: 25, power_losses: 25, mount_kills: 25, window_bytes: 0 };
    seeds("everything_at_once_still_converges", faults);
}
