//! `tandem verify`: compares a folder with its replica while both are used, and repairs what differs.
//!
//! The mount does the work, and goes on if this command is interrupted only as far as it already was: nobody waits for it then.

use std::{fs, os::unix::ffi::OsStrExt as _, path::PathBuf};

use serde::Serialize;
use tandem_proto::pb::{Progress, VerifyReply, VerifyRequest};
use tandem_runtime::failure::said;

use crate::{
    bar::Bar,
    exit::{Exit, Failure},
    mounts::{Mount, select},
    output::{complain, say},
    render,
};

/// Options of `tandem verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem verify                                  all mounts, as slowly as in the background
  tandem verify --now ~/db                       what is below a folder, at full speed")]
pub struct Args {
    /// At full speed. Default: as slowly as in the background, so that programs do not notice (verify_rate).
    #[arg(long)]
    now: bool,
    /// Prints the result as JSON, one object a mount.
    #[arg(long)]
    json: bool,
    /// A path on a mount, which is compared with what is below it; default: all mounts of this user.
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
}

/// What came of one mount.
#[derive(Debug, Serialize)]
struct Outcome {
    volume: String,
    path: String,
    files: u64,
    bytes: u64,
    seconds: f64,
    mismatches: u64,
    repaired: u64,
    unchecked: u64,
    position: String,
    reason: String,
    found: Vec<String>,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let paths: Vec<PathBuf> = args.path.iter().cloned().collect();
    let found = select(&paths).await?;
    let mut exit = found.report_silent();
    for mount in found.mounts {
        let below = match &args.path {
            None => PathBuf::new(),
            Some(path) => {
                let wrong = |why: String| Failure::new(Exit::NoAnswer, format!("{}: {why}", path.display()));
                let path = fs::canonicalize(path).map_err(|error| wrong(error.to_string()))?;
                let below = path.strip_prefix(&mount.status.mountpoint).map_err(|error| wrong(error.to_string()))?;
                below.to_owned()
            }
        };
        exit = exit.max(verify(mount, below, &args).await);
    }
    Ok(exit)
}

async fn verify(mount: Mount, below: PathBuf, args: &Args) -> Exit {
    let place = mount.status.mountpoint.clone();
    let path = below.as_os_str().as_bytes().to_vec().into();
    let mut replies = match mount.control().verify(VerifyRequest { path, now: args.now }).await {
        Ok(replies) => replies.into_inner(),
        Err(status) => {
            complain(&format!("{place}: {}", said(&status)));
            return Exit::NoAnswer;
        }
    };
    let (mut bar, mut found) = (Bar::default(), Vec::new());
    let last = loop {
        match replies.message().await {
            Ok(Some(reply)) if reply.done => break reply,
            Ok(Some(reply)) if !reply.found.is_empty() => {
                bar.clear();
                complain(&format!("{place}: {}", reply.found));
                found.push(reply.found);
            }
            Ok(Some(reply)) => bar.show(&progress(&reply)),
            Ok(None) | Err(_) => {
                bar.clear();
                complain(&format!("{place}: its daemon ended before it was done; see its log"));
                return Exit::NoAnswer;
            }
        }
    };
    bar.clear();
    let outcome = outcome(&mount, below.display().to_string(), &last, found);
    let text =
        if args.json { serde_json::to_string(&outcome).unwrap_or_default() + "\n" } else { words(&place, &outcome) };
    if say(&text).is_err() {
        return Exit::NoAnswer;
    }
    match (outcome.reason.is_empty(), outcome.mismatches) {
        (false, _) => Exit::Behind,
        (true, 0) => Exit::InSync,
        (true, _) => Exit::Unreachable,
    }
}

fn progress(reply: &VerifyReply) -> Progress {
    Progress {
        what: "verify".to_owned(),
        files_done: reply.files_done,
        files_total: reply.files_total,
        bytes_done: reply.bytes_done,
        bytes_total: reply.bytes_total,
        seconds: reply.seconds,
    }
}

fn outcome(mount: &Mount, path: String, last: &VerifyReply, found: Vec<String>) -> Outcome {
    Outcome {
        volume: mount.status.volume.clone(),
        path: format!("/{path}"),
        files: last.files_done,
        bytes: last.bytes_done,
        seconds: last.seconds,
        mismatches: last.mismatches,
        repaired: last.repaired,
        unchecked: last.unchecked,
        position: last.position.clone(),
        reason: last.reason.clone(),
        found,
    }
}

fn words(place: &str, outcome: &Outcome) -> String {
    let (files, bytes) = (outcome.files, render::bytes(outcome.bytes));
    let compared = format!("{files} files, {bytes} compared in {}", render::seconds(outcome.seconds));
    let mut text = match outcome.mismatches {
        0 if outcome.reason.is_empty() => format!("{place}: equal at {}; {compared}", outcome.position),
        0 => format!("{place}: no mismatch so far; {compared}"),
        mismatches => format!("{place}: {mismatches} mismatches, {} repaired; {compared}", outcome.repaired),
    };
    if outcome.unchecked > 0 {
        text.push_str(&format!("; {} changed all the time and could not be compared as a whole", outcome.unchecked));
    }
    if !outcome.reason.is_empty() {
        text.push_str(&format!("; it did not come to its end: {}", outcome.reason));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::{Outcome, words};

    fn outcome(mismatches: u64, reason: &str) -> Outcome {
        Outcome {
            volume: "v".into(),
            path: "/".into(),
            files: 3,
            bytes: 2048,
            seconds: 2.0,
            mismatches,
            repaired: mismatches,
            unchecked: 0,
            position: "1:7".into(),
            reason: reason.into(),
            found: Vec::new(),
        }
    }

    #[test]
    fn the_result_is_said_in_one_line() {
        assert_eq!(words("/m", &outcome(0, "")), "/m: equal at 1:7; 3 files, 2.0 KiB compared in 2.0 s\n");
        assert_eq!(words("/m", &outcome(1, "")), "/m: 1 mismatches, 1 repaired; 3 files, 2.0 KiB compared in 2.0 s\n");
        assert!(words("/m", &outcome(0, "the mount ends")).contains("did not come to its end: the mount ends"));
    }
}
