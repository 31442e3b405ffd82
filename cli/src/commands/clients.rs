//! `tandem clients`: who has joined a storage daemon, with which roles.

use std::time::{SystemTime, UNIX_EPOCH};

use tandem_proto::pb;

use crate::{
    exit::{Exit, Failure},
    output::say,
    render,
    storage::Which,
};

/// Options of `tandem clients`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem clients                                 on the storage host: who has joined, and may do what")]
pub struct Args {
    #[command(flatten)]
    which: Which,
}

fn role(role: i32) -> &'static str {
    match pb::Role::try_from(role) {
        Ok(pb::Role::Reader) => "reader",
        Ok(pb::Role::Writer) => "writer",
        Ok(pb::Role::Admin) => "admin",
        _ => "unknown",
    }
}

fn row(client: &pb::ClientEntry, now_s: i64) -> Vec<String> {
    let grants: Vec<_> = client.grants.iter().map(|grant| format!("{}:{}", grant.volume, role(grant.role))).collect();
    let days = (client.expires_s - now_s).div_euclid(24 * 3600);
    let certificate = match client.expires_s {
        0 => "of another authority".to_owned(),
        expires if expires <= now_s => "expired".to_owned(),
        _ => format!("good for {days} d"),
    };
    let connected = match (client.connections, client.seen_s) {
        (0, 0) => "not seen".to_owned(),
        (0, _) => "not connected".to_owned(),
        (1, _) => "1 connection".to_owned(),
        (several, _) => format!("{several} connections"),
    };
    vec![client.name.clone(), connected, certificate, grants.join(" ")]
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let mut client = args.which.trust().await?;
    let reply = args.which.call(client.clients(pb::ClientsRequest {})).await?;
    if reply.clients.is_empty() {
        say(&format!("no client has joined {}; see: tandem invite --help\n", args.which.server()))?;
    }
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let rows: Vec<_> = reply.clients.iter().map(|client| row(client, now_s)).collect();
    for line in render::table(&rows) {
        say(&format!("{line}\n"))?;
    }
    Ok(Exit::InSync)
}
