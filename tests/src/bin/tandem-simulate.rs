//! The simulation for use by hand and by `scripts/simulate`.
//!
//! `tandem-simulate [--seeds N] [--first S] [--jobs J] [--steps N]` runs many seeds, each with a mix of faults of its own.
//! `--seed S [--trace WORD]` runs one, twice, demands that both runs are the same, and shows what happened. `--mutants` (of a build
//! with debug assertions) breaks one rule after the other and demands that a checker objects. Exit code 1: one did, or none did.

use std::{
    env, panic,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use tandem_runtime::mutant;
use tandem_tests::sim::{
    Faults, Keep,
    run::{Failure, STEPS, run, run_all},
};

const USAGE: &str =
    "usage: scripts/simulate [--seeds N] [--first S] [--seed S [--trace WORD]] [--jobs J] [--steps N] [--mutants]";

/// Seeds that are run if nobody says how many.
const SEEDS: u64 = 1000;

struct Arguments {
    seeds: Option<u64>,
    first: u64,
    seed: Option<u64>,
    jobs: usize,
    steps: u64,
    mutants: bool,
    trace: Option<String>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Arguments> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut arguments =
        Arguments { seeds: None, first: 0, seed: None, jobs, steps: STEPS, mutants: false, trace: None };
    while let Some(word) = words.next() {
        if word == "--mutants" {
            arguments.mutants = true;
            continue;
        }
        let value = words.next()?;
        match word.as_str() {
            "--seeds" => arguments.seeds = Some(value.parse().ok()?),
            "--first" => arguments.first = value.parse().ok()?,
            "--seed" => arguments.seed = Some(value.parse().ok()?),
            "--jobs" => arguments.jobs = value.parse().ok()?,
            "--steps" => arguments.steps = value.parse().ok()?,
            "--trace" => arguments.trace = Some(value),
            _ => return None,
        }
    }
    Some(arguments)
}

fn main() -> ExitCode {
    let Some(arguments) = parse(env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    // A failure is reported with its seed; the place in the code matters only to who looks closer.
    if env::var_os("RUST_BACKTRACE").is_none() {
        panic::set_hook(Box::new(|_| {}));
    }
    let passed = match (arguments.mutants, arguments.seed) {
        (true, _) => mutants(&arguments),
        (false, Some(seed)) => one(seed, &arguments),
        (false, None) => many(&arguments),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(failure: &Failure) {
    println!("seed {} failed: {}", failure.seed, failure.why);
}

fn many(arguments: &Arguments) -> bool {
    let (begun, seeds) = (Instant::now(), arguments.seeds.unwrap_or(SEEDS));
    let total = run_all(arguments.first, seeds, arguments.jobs, arguments.steps, &|done| {
        if done.is_multiple_of(1000) {
            eprintln!("{done} seeds");
        }
    });
    println!(
        "{} seeds in {:.1} s: {} states of the replica compared, {} durable fsyncs kept, {} machines fenced",
        total.runs,
        begun.elapsed().as_secs_f64(),
        total.states,
        total.promises,
        total.fenced
    );
    for failure in &total.failures {
        show(failure);
        println!("repeat it: scripts/simulate --seed {} --steps {}", failure.seed, arguments.steps);
    }
    total.failures.is_empty()
}

fn one(seed: u64, arguments: &Arguments) -> bool {
    let faults = Faults::of_seed(seed);
    let keep = arguments.trace.clone().map_or(Keep::Last, Keep::All);
    println!("seed {seed}: {faults:?}");
    let (first, second) = (run(seed, faults, arguments.steps, keep.clone()), run(seed, faults, arguments.steps, keep));
    match (first, second) {
        (Ok(first), Ok(second)) => {
            if first.hash != second.hash {
                println!("not the same again: something in the run is not decided by the seed");
                let differs = first.trace.lines().zip(second.trace.lines()).find(|(one, other)| one != other);
                differs.inspect(|(one, other)| println!("first:  {one}\nsecond: {other}"));
            } else {
                println!("{}run {}: nothing found", first.trace, first.hash);
            }
            first.hash == second.hash
        }
        (Err(failure), second) => {
            println!("what happened last:\n{}", failure.trace);
            show(&failure);
            if second.err().is_none_or(|second| second.why != failure.why) {
                println!("and it is not the same again: something in the run is not decided by the seed");
            }
            false
        }
        (Ok(_), Err(failure)) => {
            println!("only the second run failed: something in it is not decided by the seed");
            show(&failure);
            false
        }
    }
}

/// One process for each mutant: a rule is broken for a whole process.
fn mutants(arguments: &Arguments) -> bool {
    if !cfg!(debug_assertions) {
        eprintln!(
            "this build has no rules that can be broken: `scripts/simulate --mutants` builds one that has (with debug assertions)"
        );
        return false;
    }
    let program = env::current_exe().expect("a running program has a path");
    let seeds = arguments.seeds.unwrap_or(SEEDS).to_string();
    if env::var_os(mutant::VARIABLE).is_some() {
        eprintln!("{} is set: unset it, every rule is broken in its turn", mutant::VARIABLE);
        return false;
    }
    // What fails without a mutant says nothing about any.
    if !many(arguments) {
        return false;
    }
    let mut all = true;
    for mutant in mutant::ALL {
        let begun = Instant::now();
        let output = Command::new(&program)
            .args(["--seeds", &seeds, "--jobs", &arguments.jobs.to_string(), "--steps", &arguments.steps.to_string()])
            .args(["--first", &arguments.first.to_string()])
            .env(mutant::VARIABLE, mutant.name)
            .stderr(Stdio::null())
            .output();
        let text = match output {
            Ok(output) if output.status.code() == Some(1) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Ok(_) => String::new(),
            Err(error) => panic!("{}: {error}", program.display()),
        };
        let objection = text.lines().find(|line| line.contains(" failed: "));
        println!("{:20} {} ({})", mutant.name, if objection.is_some() { "caught" } else { "NOT CAUGHT" }, mutant.rule);
        println!("{:20} {:.1} s: {}", "", begun.elapsed().as_secs_f64(), objection.unwrap_or("no checker objected"));
        all &= objection.is_some();
    }
    all
}
