//! Mutated input for everything that reads what others wrote: messages, log segments, tokens, certificates, names.
//!
//! A [`Target`] takes any bytes and must neither panic nor take long; what it makes of them is its own affair. [`run`] begins with inputs that
//! are good, and changes them: bits, runs, lengths, pieces of one put into another. An input that gets further than others (its target
//! says so) is kept as a start for more. The same seed gives the same inputs.
//!
//! That needs nothing but a test, and runs with all others. `fuzz/` feeds the same targets by libFuzzer, which sees which branches an input
//! takes and so gets further: `scripts/fuzz --coverage`.

mod kept;
mod mutate;
mod receiver;
mod stored;
mod targets;
mod wire;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use crate::rng::Rng;

pub use targets::{TARGETS, Target};

/// The target of this name; panics if there is none.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target {name}"))
}

/// No input may take more of a processor: a length that is believed shows as time or memory. Not by the clock, which goes on while the
/// machine does something else.
const SLOW: Duration = Duration::from_secs(30);
/// Longest input.
pub const INPUT_MAX_BYTES: usize = 64 << 10;
/// Inputs that are kept as starts.
const CORPUS_MAX: usize = 512;

/// An input that a target did not bear.
#[derive(Clone, Debug)]
pub struct Found {
    /// What happened.
    pub what: String,
    /// The input.
    pub input: Vec<u8>,
}

/// Feeds a target until it has had `inputs`, or `time` is over. How many it had, or what was found.
pub fn run(target: &Target, seed: u64, inputs: u64, time: Duration) -> Result<u64, Found> {
    let mut rng = Rng::new(seed);
    let mut corpus = (target.seeds)();
    let mut furthest = 0;
    let begun = Instant::now();
    let mut given = 0;
    while given < inputs && begun.elapsed() < time {
        let fresh = corpus.get(given as usize).cloned();
        let input = fresh.unwrap_or_else(|| mutate::mutate(&mut rng, &corpus, INPUT_MAX_BYTES));
        given += 1;
        let started = processor_time();
        let depth = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)))
            .map_err(|panic| Found { what: message(&*panic), input: input.clone() })?;
        let took = processor_time().saturating_sub(started);
        if took > SLOW {
            return Err(Found { what: format!("it took {took:?} of a processor"), input });
        }
        if depth > furthest && given > corpus.len() as u64 {
            corpus.push(input);
            furthest = depth;
            if corpus.len() > CORPUS_MAX {
                corpus.remove(0);
            }
        }
    }
    Ok(given)
}

/// What this thread has used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{env, sync::Mutex, thread, time::Duration};

    use super::{TARGETS, Target, run, target};

    /// How long each target is fed, in seconds: `.ci/run` says a minute. `scripts/fuzz` runs for as long as one likes.
    const SECONDS: &str = "TANDEM_FUZZ_SECONDS";

    #[test]
    fn every_decoder_bears_mutated_input() {
        let seconds = env::var(SECONDS).map_or(1, |text| text.parse().expect("a number of seconds"));
        let left = Mutex::new(TARGETS.iter());
        let work = || {
            let next = || left.lock().expect("nobody panics in here").next();
            while let Some(target) = next() {
                match run(target, 1, u64::MAX, Duration::from_secs(seconds)) {
                    Ok(given) => println!("{}: {given} inputs", target.name),
                    Err(found) => panic!("{}: {}: {:?}", target.name, found.what, found.input),
                }
            }
        };
        thread::scope(|scope| {
            (0..thread::available_parallelism().map_or(1, usize::from)).for_each(|_| _ = scope.spawn(work))
        });
    }

    #[test]
    fn every_target_has_its_program_for_libfuzzer() {
        let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("it is there");
        for target in TARGETS {
            let program = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{}.rs", target.name)));
            assert!(program.is_ok_and(|text| text.contains(&format!("\"{}\"", target.name))), "{}", target.name);
            assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{} is not built", target.name);
        }
    }

    #[test]
    fn good_input_is_taken_as_it_is() {
        for target in TARGETS {
            for seed in (target.seeds)() {
                assert!((target.run)(&seed) > 0, "{}: what it begins with is good", target.name);
            }
        }
    }

    #[test]
    fn inputs_that_were_not_borne_once_are_borne() {
        // A record of the shadow that moves ops up to the last number that there is.
        let mut moved = vec![
            1, 8, 1, 32, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 9, 9, 9, 9, 9, 105,
            100, 2, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 51, 2, 0, 0, 0, 0, 0, 0, 0,
        ];
        moved.extend([1; 15]);
        moved.extend([0; 4]);
        moved.extend([1; 14]);
        moved.extend([3; 7]);
        moved.extend([1, 1, 8, 5, 5, 5, 5, 5, 5, 5, 5, 3, 1, 1, 255, 255, 255, 255, 68]);
        moved.extend([7; 39]);
        moved.push(3);
        moved.extend([7; 7]);
        (target("kept").run)(&moved);
    }

    #[test]
    fn an_input_that_makes_its_target_panic_is_found() {
        let bomb = Target {
            name: "bomb",
            what: "panics when its first byte is odd and its second is not",
            seeds: || vec![vec![0, 0, 0, 0]],
            run: |input| {
                assert!(input.len() < 2 || input[0] % 2 == 0 || input[1] % 2 == 1, "bang");
                1
            },
        };
        let found = run(&bomb, 1, 100_000, Duration::from_secs(20)).expect_err("it goes off");
        assert_eq!(found.what, "bang");
    }
}
