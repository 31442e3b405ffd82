//! `tandem pause`: the link stops, local work goes on, what changes meanwhile is sent after `tandem resume`.

use std::path::PathBuf;

use tandem_proto::pb::PauseRequest;

use crate::{
    exit::{Exit, Failure},
    mounts::{Found, said, select},
    output::{complain, say},
    render,
};

/// Options of `tandem pause`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A mountpoint, or a path on it; default: all mounts of this user.
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let found = select(&args.dir.into_iter().collect::<Vec<_>>()).await?;
    let mut exit = report_silent(&found);
    for mount in found.mounts {
        let place = &mount.status.mountpoint;
        match mount.control().pause(PauseRequest {}).await {
            Ok(_) => say(&format!("{place} paused; go on with: tandem resume\n"))?,
            Err(status) => {
                complain(&format!("{place}: {}", said(&status)));
                exit = Exit::NoAnswer;
            }
        }
    }
    Ok(exit)
}

/// Complains of what does not answer.
pub fn report_silent(found: &Found) -> Exit {
    for silent in &found.silent {
        complain(&render::silent_line(silent));
    }
    if found.silent.is_empty() { Exit::InSync } else { Exit::NoAnswer }
}
