//! `tandem resume`: the link goes on after `tandem pause`.

use std::path::PathBuf;

use tandem_proto::pb::ResumeRequest;

use super::pause::ask_each;
use crate::{
    exit::{Exit, Failure},
    mounts::Mount,
};

/// Options of `tandem resume`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem resume ~/work; tandem wait ~/work       sends what was missing, and waits for it")]
pub struct Args {
    /// A mountpoint, or a path on it; default: all mounts of this user.
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let ask = async |mount: &Mount| mount.control().resume(ResumeRequest {}).await.map(drop);
    ask_each(args.dir, ask, "resumed; wait until it has caught up with: tandem wait").await
}
