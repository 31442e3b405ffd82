//! `tandem resume`: the link goes on after `tandem pause`.

use std::path::PathBuf;

use tandem_proto::pb::ResumeRequest;

use super::pause::report_silent;
use crate::{
    exit::{Exit, Failure},
    mounts::{said, select},
    output::{complain, say},
};

/// Options of `tandem resume`.
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
        match mount.control().resume(ResumeRequest {}).await {
            Ok(_) => say(&format!("{place} resumed; wait until it has caught up with: tandem wait\n"))?,
            Err(status) => {
                complain(&format!("{place}: {}", said(&status)));
                exit = Exit::NoAnswer;
            }
        }
    }
    Ok(exit)
}
