//! `tandem revoke`: a client may not come back, and what it has open is cut.

use tandem_proto::{VolumeName, pb};

use crate::{
    exit::{Exit, Failure},
    output::say,
    storage::Which,
};

/// Options of `tandem revoke`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem revoke me@laptop                        all of its roles; it is cut at once
  tandem revoke me@laptop --volume work          one of them")]
pub struct Args {
    /// The client, as `tandem clients` calls it.
    client: String,
    /// Only its role for this volume.
    #[arg(long)]
    volume: Option<VolumeName>,
    #[command(flatten)]
    which: Which,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let volume = args.volume.map_or_else(String::new, |volume| volume.to_string());
    let mut client = args.which.trust().await?;
    let request = pb::RevokeRequest { client: args.client.clone(), volume };
    let reply = args.which.call(client.revoke(request)).await?;
    say(&format!("{} revoked; connections cut: {}\n", args.client, reply.connections))?;
    Ok(Exit::InSync)
}
