//! `tandem wait`: returns when everything done before the call is applied on the replica.
//!
//! The mount flushes its dirty pages inside the call, so "done before" is meant as applications mean it: what `write` has
//! returned counts, synced or not.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::Duration,
};

use tandem_proto::pb::{StatusRequest, WaitRequest};
use tandem_runtime::failure::said;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    bar::Bar,
    exit::{Exit, Failure},
    mounts::{Mount, select},
    output::complain,
};

/// How much later than its own timeout a daemon may answer.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is shown how far a resync is.
const SHOW_EVERY: Duration = Duration::from_millis(300);

/// Options of `tandem wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem wait                                    until all that was done on all mounts is on their replicas
  tandem wait ~/report.txt --timeout 60          of one mount; exit code 1 if it takes longer than a minute")]
pub struct Args {
    /// Gives up after so many seconds, with exit code 1. Default: never.
    #[arg(long, value_name = "S", value_parser = seconds)]
    timeout: Option<Duration>,
    /// A mountpoint, or a path on it; default: all mounts of this user.
    #[arg(value_name = "PATH|MOUNTPOINT")]
    path: Option<PathBuf>,
}

/// A time in seconds, with a fraction if wanted.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no number of seconds from 0 to 4000000");
    let value: f64 = text.parse().map_err(|_| bad())?;
    if (0.0..=4e6).contains(&value) { Ok(Duration::from_secs_f64(value)) } else { Err(bad()) }
}

/// A timeout as the daemons take it, where 0 is no limit: no time at all becomes the shortest.
pub fn milliseconds(timeout: Option<Duration>) -> u32 {
    timeout.map_or(0, |timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1))
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let paths: Vec<PathBuf> = args.path.iter().cloned().collect();
    let found = select(&paths).await?;
    let mut exit = found.report_silent();
    let text = args.path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let mut waits = JoinSet::new();
    for mount in found.mounts {
        waits.spawn(wait(mount, text.clone(), args.timeout));
    }
    while let Some(ended) = waits.join_next().await {
        exit = exit.max(ended.unwrap_or(Exit::NoAnswer));
    }
    Ok(exit)
}

async fn wait(mount: Mount, path: String, limit: Option<Duration>) -> Exit {
    let place = mount.status.mountpoint.clone();
    let request = WaitRequest { path, timeout_ms: milliseconds(limit) };
    let mut control = mount.control();
    let call = shown(&mount, control.wait(request));
    let answer = match limit {
        Some(limit) => timeout(limit + GRACE, call).await,
        None => Ok(call.await),
    };
    let reply = match answer {
        Err(_) => {
            complain(&format!("{place}: its daemon does not answer; see its log"));
            return Exit::NoAnswer;
        }
        Ok(Err(status)) => {
            complain(&format!("{place}: {}", said(&status)));
            return Exit::NoAnswer;
        }
        Ok(Ok(reply)) => reply.into_inner(),
    };
    if reply.reached {
        return Exit::InSync;
    }
    let lacking = reply.seq.saturating_sub(reply.applied);
    let why = if reply.reason.is_empty() { "the time is over" } else { reply.reason.as_str() };
    complain(&format!("{place}: {why}; the replica lacks {lacking} of the operations done before the call"));
    match mount.status.state.as_str() {
        // No wait will ever end well.
        "fenced" => Exit::Unreachable,
        _ => Exit::Behind,
    }
}

/// Shows on a terminal how far a resync is while the call lasts.
async fn shown<T>(mount: &Mount, call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    let mut bar = Bar::default();
    loop {
        tokio::select! {
            answer = &mut call => {
                bar.clear();
                return answer;
            }
            () = tokio::time::sleep(SHOW_EVERY), if io::stderr().is_terminal() => {
                let status = mount.admin().status(StatusRequest::default()).await;
                let mounts = status.map(|status| status.into_inner().mounts).unwrap_or_default();
                match mounts.first().and_then(|mount| mount.progress.as_ref()) {
                    Some(progress) => bar.show(progress),
                    None => bar.clear(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{milliseconds, seconds};

    #[test]
    fn times_that_make_no_sense_are_refused() {
        for bad in ["", "x", "-1", "nan", "inf", "1e30", "5s"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn no_time_at_all_is_not_no_limit() {
        assert_eq!(milliseconds(None), 0);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 1);
        assert_eq!(milliseconds(Some(Duration::from_secs(2))), 2000);
    }
}
