//! Trials by hand and by scripts: real daemons under load, hit by faults until one breaks a promise.
//!
//! Each kind prints one line a trial and ends with a count. Exit code 1: a trial failed; its seed is printed. 2: nothing could be tried.

use std::{env, process::ExitCode};

use tandem_tests::trials::{Outcome, Tally, crash, full, image, network, power, repeat};

const USAGE: &str = "usage: tandem-trials crash [--trials N] [--kind mountd|storaged|both] [--seed S] [--points P]
       tandem-trials power [--trials N] [--kind client|storage|both] [--fs ext4|xfs] [--seed S] [--points P]
       tandem-trials full [--trials N] [--kind client|storage] [--fs ext4|xfs] [--seed S] [--points P]
       tandem-trials network [--trials N] [--kind loss|cut|black-hole|delay|slow|flip|truncate|late] [--seed S] [--points P]
       --trials counts faults of each kind; --points of them hit one volume before a new one is made";

struct Args {
    trials: u64,
    seed: u64,
    points: u64,
    kind: Option<String>,
    fs: Option<String>,
    lie: bool,
}

fn parse(args: &[String]) -> Result<Args, String> {
    let mut parsed = Args { trials: 50, seed: 1, points: 5, kind: None, fs: None, lie: false };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let mut value = || args.next().cloned().ok_or_else(|| format!("{flag} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        match flag.as_str() {
            "--trials" => parsed.trials = number(value()?)?,
            "--seed" => parsed.seed = number(value()?)?,
            "--points" => parsed.points = number(value()?)?.max(1),
            "--kind" => parsed.kind = Some(value()?),
            "--fs" => parsed.fs = Some(value()?),
            // Breaks the trial's own expectation, so that one can see it object.
            "--lie" => parsed.lie = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(parsed)
}

fn wanted(chosen: &Option<String>, name: &str) -> bool {
    chosen.as_deref().is_none_or(|chosen| chosen == name)
}

/// `--trials` faults, `--points` of them on each volume.
fn spread(name: &str, args: &Args, trial: impl Fn(u64, u64) -> Outcome) -> Tally {
    let points = |seed: u64| args.points.min(args.trials - (seed - args.seed) * args.points);
    repeat(name, args.seed, args.trials.div_ceil(args.points), |seed| trial(seed, points(seed)))
}

fn run(what: &str, args: &Args) -> Result<Tally, String> {
    let mut all = Tally::default();
    match what {
        "crash" => {
            for (name, victim) in crash::VICTIMS.into_iter().filter(|(name, _)| wanted(&args.kind, name)) {
                let trial = |seed, points| crash::trial(seed, victim, points, args.lie);
                all.add(spread(&format!("crash of {name}"), args, trial));
            }
        }
        "power" => {
            for (fs, file_system) in image::FILE_SYSTEMS.into_iter().filter(|(name, _)| wanted(&args.fs, name)) {
                for (name, side) in power::SIDES.into_iter().filter(|(name, _)| wanted(&args.kind, name)) {
                    let trial = |seed, points| power::trial(seed, file_system, side, points, args.lie);
                    all.add(spread(&format!("power loss of {name} on {fs}"), args, trial));
                }
            }
        }
        "full" => {
            for (fs, file_system) in image::FILE_SYSTEMS.into_iter().filter(|(name, _)| wanted(&args.fs, name)) {
                for (name, side) in full::SIDES.into_iter().filter(|(name, _)| wanted(&args.kind, name)) {
                    let trial = |seed, points| full::trial(seed, file_system, side, points);
                    all.add(spread(&format!("full disk of {name} on {fs}"), args, trial));
                }
            }
        }
        "network" => {
            for (name, fault) in network::FAULTS.into_iter().filter(|(name, _)| wanted(&args.kind, name)) {
                let trial = |seed, points| network::trial(seed, fault, points);
                all.add(spread(&format!("network, {name}"), args, trial));
            }
        }
        other => return Err(format!("unknown trials {other}")),
    }
    Ok(all)
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((what, rest)) = args.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    let tally = match parse(rest).and_then(|args| run(what, &args)) {
        Ok(tally) => tally,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    println!("{} held, {} failed {:?}, {} skipped", tally.good, tally.failed.len(), tally.failed, tally.skipped.len());
    if !tally.failed.is_empty() {
        ExitCode::FAILURE
    } else if tally.good == 0 {
        eprintln!("nothing was tried: {}", tally.skipped.join("; "));
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}
