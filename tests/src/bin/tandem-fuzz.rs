//! Feeds mutated input to decoders, for as long as one likes: see [`tandem_tests::fuzz`] and `scripts/fuzz`.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tandem_tests::fuzz::{TARGETS, run};

const USAGE: &str =
    "usage: tandem-fuzz [TARGET ...] [--minutes N] [--seed S]; without a target, all of them one after the other";

fn main() -> ExitCode {
    let (mut minutes, mut seed, mut names) = (1.0, None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<f64>().ok());
        match argument.as_str() {
            "--minutes" => match number() {
                Some(given) => minutes = given,
                None => return usage(),
            },
            "--seed" => match number() {
                Some(given) => seed = Some(given as u64),
                None => return usage(),
            },
            name if TARGETS.iter().any(|target| target.name == name) => names.push(name.to_owned()),
            _ => return usage(),
        }
    }
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = seed.unwrap_or_else(clock);
    let mut exit = ExitCode::SUCCESS;
    for target in TARGETS.iter().filter(|target| names.is_empty() || names.iter().any(|name| name == target.name)) {
        let time = Duration::from_secs_f64((minutes * 60.0).clamp(0.0, 1e7));
        match run(target, seed, u64::MAX, time) {
            Ok(given) => println!("{}: {given} inputs, nothing found ({})", target.name, target.what),
            Err(found) => {
                println!("{}: seed {seed}: {}\ninput: {:?}", target.name, found.what, found.input);
                exit = ExitCode::FAILURE;
            }
        }
    }
    exit
}

fn usage() -> ExitCode {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    eprintln!("{USAGE}\ntargets: {}", names.join(" "));
    ExitCode::from(64)
}
