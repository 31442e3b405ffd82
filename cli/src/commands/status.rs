//! `tandem status`: one line per volume, details on demand, or JSON.

use std::path::PathBuf;

use tandem_proto::pb::{StatusReply, StatusRequest, admin_client::AdminClient};
use tandem_runtime::connect::ServerAddress;

use crate::{
    exit::{Exit, Failure},
    json::Report,
    mounts::{Daemon, Found, select},
    output::say,
    render,
    storage::{self, ANSWER_TIMEOUT},
};

/// Options of `tandem status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem status                                  all mounts of this user, a line each
  tandem status -v ~/work                        all about one, also where its page is
  tandem status --server storage.example         the volumes of a storage daemon
  tandem status --json | jq .exit_code           for scripts: 0 in sync, 1 behind, 2 needs a person")]
pub struct Args {
    /// Prints JSON; docs/status-json.md describes it.
    #[arg(long)]
    json: bool,
    /// Prints details.
    #[arg(short, long)]
    verbose: bool,
    /// Asks this storage daemon instead of the mounts of this host.
    #[arg(long, value_name = "HOST[:PORT]", conflicts_with = "mounts")]
    server: Option<ServerAddress>,
    /// Asks a storage daemon of another machine in plaintext.
    #[arg(long, requires = "server")]
    insecure: bool,
    /// Mountpoints, or paths on them; default: all mounts of this user.
    #[arg(value_name = "MOUNT")]
    mounts: Vec<PathBuf>,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    match &args.server {
        Some(server) => of_server(&args, &ServerAddress { insecure: args.insecure, ..server.clone() }).await,
        None => of_mounts(&args).await,
    }
}

async fn of_mounts(args: &Args) -> Result<Exit, Failure> {
    let found = match select(&args.mounts).await {
        Err(failure) if args.json && args.mounts.is_empty() => {
            say(&Report::of_mounts(&Found::default(), Exit::NoAnswer).pretty())?;
            return Err(failure);
        }
        other => other?,
    };
    let exit = worst(&found);
    if args.json {
        say(&Report::of_mounts(&found, exit).pretty())?;
        return Ok(exit);
    }
    let rows: Vec<_> = found.mounts.iter().map(|mount| render::mount_row(&mount.status)).collect();
    for (line, mount) in render::table(&rows).iter().zip(&found.mounts) {
        let line = render::coloured(line, &mount.status.state, Exit::of_mount(&mount.status));
        let details = if args.verbose { render::mount_details(mount) } else { Vec::new() };
        say(&format!("{line}\n{}", render::indented(&render::mount_notes(&mount.status), &details)))?;
    }
    found.report_silent();
    Ok(exit)
}

/// The exit code of these mounts together.
pub fn worst(found: &Found) -> Exit {
    let answered = found.mounts.iter().map(|mount| Exit::of_mount(&mount.status)).max().unwrap_or(Exit::InSync);
    if found.silent.is_empty() { answered } else { answered.max(Exit::NoAnswer) }
}

async fn of_server(args: &Args, server: &ServerAddress) -> Result<Exit, Failure> {
    let reply = ask_server(server).await?;
    let daemon = Daemon::of(&reply);
    let exit = reply.volumes.iter().map(Exit::of_volume).max().unwrap_or(Exit::InSync);
    if args.json {
        say(&Report::of_volumes(&daemon, &reply.volumes, exit).pretty())?;
        return Ok(exit);
    }
    if reply.volumes.is_empty() {
        say(&format!("{server} has no volume yet; the first mount makes one\n"))?;
    }
    let rows: Vec<_> = reply.volumes.iter().map(render::volume_row).collect();
    for (line, volume) in render::table(&rows).iter().zip(&reply.volumes) {
        let line = render::coloured(line, &volume.state, Exit::of_volume(volume));
        let details = if args.verbose { render::volume_details(volume) } else { Vec::new() };
        say(&format!("{line}\n{}", render::indented(&render::volume_notes(volume), &details)))?;
    }
    if args.verbose {
        say(&format!("{server}: {}\n", render::daemon(&daemon)))?;
        say(&render::indented(&[], &render::settings(&daemon)))?;
    }
    Ok(exit)
}

/// The volumes of a storage daemon, one line each.
pub async fn of_volumes(server: &ServerAddress) -> Result<Exit, Failure> {
    let args = Args { json: false, verbose: false, server: None, insecure: false, mounts: Vec::new() };
    of_server(&args, server).await
}

async fn ask_server(server: &ServerAddress) -> Result<StatusReply, Failure> {
    let mut client = AdminClient::new(storage::connect(server).await?);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.status(StatusRequest::default())).await;
    match answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time"))) {
        Ok(reply) => Ok(reply.into_inner()),
        Err(status) => Err(storage::refused(server, &status)),
    }
}
