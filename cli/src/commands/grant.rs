//! `tandem grant`: gives a client a role for a volume.

use tandem_proto::{VolumeName, pb};

use crate::{
    exit::{Exit, Failure},
    output::say,
    storage::Which,
};

/// Options of `tandem grant`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem grant me@laptop work --role reader      who joined may only read it from now on
  tandem grant laptop.example work               the name in a certificate of --tls-client-ca may mount it")]
pub struct Args {
    /// The client, as `tandem clients` calls it; or the name in its certificate, where another authority vouches for clients.
    client: String,
    /// The volume; the first mount of a writer makes it.
    volume: VolumeName,
    /// What it may do there, instead of what it might before.
    #[arg(long, default_value = "writer", value_parser = ["reader", "writer", "admin"])]
    role: String,
    #[command(flatten)]
    which: Which,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let role = match args.role.as_str() {
        "reader" => pb::Role::Reader,
        "admin" => pb::Role::Admin,
        _ => pb::Role::Writer,
    };
    let mut client = args.which.trust().await?;
    let request = pb::GrantRequest { client: args.client.clone(), volume: args.volume.to_string(), role: role.into() };
    args.which.call(client.grant(request)).await?;
    say(&format!("{} is {} of volume {} now\n", args.client, args.role, args.volume))?;
    Ok(Exit::InSync)
}
