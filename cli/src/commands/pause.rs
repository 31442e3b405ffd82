//! `tandem pause`: the link stops, local work goes on, what changes meanwhile is sent after `tandem resume`.

use std::path::PathBuf;

use tandem_proto::pb::PauseRequest;
use tandem_runtime::failure::said;
use tonic::Status;

use crate::{
    exit::{Exit, Failure},
    mounts::{Mount, select},
    output::{complain, say},
};

/// Options of `tandem pause`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem pause ~/work                            local work goes on, nothing is sent
  tandem resume ~/work; tandem wait ~/work       what was missing is sent")]
pub struct Args {
    /// A mountpoint, or a path on it; default: all mounts of this user.
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let ask = async |mount: &Mount| mount.control().pause(PauseRequest {}).await.map(drop);
    ask_each(args.dir, ask, "paused; go on with: tandem resume").await
}

/// Asks every mount that is meant, and says what came of it: `done` behind the mountpoint, or why not.
pub async fn ask_each(
    dir: Option<PathBuf>,
    ask: impl AsyncFn(&Mount) -> Result<(), Status>,
    done: &str,
) -> Result<Exit, Failure> {
    let found = select(dir.as_slice()).await?;
    let mut exit = found.report_silent();
    for mount in &found.mounts {
        let place = &mount.status.mountpoint;
        match ask(mount).await {
            Ok(()) => say(&format!("{place} {done}\n"))?,
            Err(status) => {
                complain(&format!("{place}: {}", said(&status)));
                exit = Exit::NoAnswer;
            }
        }
    }
    Ok(exit)
}
