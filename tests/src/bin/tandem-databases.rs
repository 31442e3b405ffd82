//! Databases on the mount, started again from clones of their replica. `scripts/databases` runs it.
//!
//! `tandem-databases [--trials N] [--kind postgres|sqlite-wal|sqlite-journal] [--mode local|durable] [--during-resync] [--resync-mib N]
//! [--seed N]`. Without a kind or mode: all of them. Exit code 1 if one trial was not good, 2 if one could not be run.

use std::{env, process::ExitCode};

use tandem_tests::databases::{Kind, Mode, Options, run};

struct Args {
    kinds: Vec<Kind>,
    modes: Vec<Mode>,
    options: Options,
}

fn parse() -> Result<Args, String> {
    let mut args = Args {
        kinds: Kind::ALL.to_vec(),
        modes: vec![Mode::Local, Mode::Durable],
        options: Options { trials: 20, seed: 1, resync_mib: None },
    };
    let mut resync_mib = 1024;
    let mut during_resync = false;
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--during-resync" {
            during_resync = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value, or is not known"))?;
        let number = || value.parse::<u64>().map_err(|error| format!("{word} {value}: {error}"));
        match word.as_str() {
            "--trials" => args.options.trials = number()?,
            "--seed" => args.options.seed = number()?,
            "--resync-mib" => resync_mib = number()?,
            "--kind" => args.kinds = vec![value.parse()?],
            "--mode" => args.modes = vec![value.parse()?],
            _ => return Err(format!("{word} is not known")),
        }
    }
    args.options.resync_mib = during_resync.then_some(resync_mib);
    Ok(args)
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(why) => {
            eprintln!("tandem-databases: {why}");
            return ExitCode::from(64);
        }
    };
    let (mut bad, mut skipped, mut lines) = (Vec::new(), false, Vec::new());
    for kind in &args.kinds {
        for mode in &args.modes {
            let Some(report) = run(*kind, *mode, &args.options) else {
                skipped = true;
                continue;
            };
            let during = if args.options.resync_mib.is_some() { " during a resync" } else { "" };
            lines.push(format!(
                "{kind} {mode}{during}: {} of {} good; {} commits, the longest took {:.2} s; the longest clone took {:.2} s",
                report.trials.saturating_sub(report.bad.len() as u64),
                args.options.trials,
                report.commits,
                report.longest_commit.as_secs_f64(),
                report.longest_clone.as_secs_f64()
            ));
            bad.extend(report.bad);
        }
    }
    lines.iter().for_each(|line| println!("{line}"));
    bad.iter().for_each(|line| println!("BAD {line}"));
    match (bad.is_empty(), skipped) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(2),
        (true, false) => ExitCode::SUCCESS,
    }
}
