//! `tandem watch`: the status of each mount again at each change.

use std::path::PathBuf;

use tandem_proto::pb::WatchRequest;
use tandem_runtime::failure::said;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    bar::Bar,
    exit::{Exit, Failure},
    json::Report,
    mounts::{Found, Mount, select},
    output::{complain, say},
    render, when,
};

/// Changes that wait to be printed. When the terminal is slower, the daemons wait, and send the newest.
const WAITING_MAX: usize = 16;

/// Options of `tandem watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem watch                                   a line at each change, until interrupted
  tandem watch --json | jq -r '.mounts[0].state' for programs")]
pub struct Args {
    /// Prints JSON, one object a line; docs/status-json.md describes it.
    #[arg(long)]
    json: bool,
    /// At most one line in so many milliseconds for each mount.
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u32).range(50..))]
    interval: u32,
    /// Mountpoints, or paths on them; default: all mounts of this user.
    #[arg(value_name = "MOUNT")]
    mounts: Vec<PathBuf>,
}

/// Runs until interrupted, or until no watched daemon is left.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let found = select(&args.mounts).await?;
    found.report_silent();
    let (send, mut changes) = mpsc::channel(WAITING_MAX);
    let mut watchers = JoinSet::new();
    for mount in found.mounts {
        watchers.spawn(watch(mount, args.interval, send.clone()));
    }
    drop(send);
    let (mut last, mut bar) = (std::collections::HashMap::new(), Bar::default());
    while let Some(mount) = changes.recv().await {
        if let Some(progress) = mount.status.progress.as_ref().filter(|_| !args.json && Bar::is_seen()) {
            // Written over, so that what it is at does not push away what was said before.
            bar.show_of(&mount.status.mountpoint, progress);
            continue;
        }
        // That time passes is no change.
        let mut ageless = mount.clone();
        ageless.status.state_since_ns = 0;
        ageless.status.waiting.iter_mut().for_each(|call| call.seconds = call.seconds.min(1.0));
        if let Some(verify) = &mut ageless.status.verify {
            verify.time_ns = verify.time_ns.min(1);
        }
        let news = shown(&ageless, args.json);
        if last.get(&mount.socket) != Some(&news) {
            bar.clear();
            let when = if args.json { String::new() } else { format!("{}  ", when::shown(when::now_ns())) };
            say(&format!("{when}{}", shown(&mount, args.json)))?;
            last.insert(mount.socket, news);
        }
    }
    Err(Failure::new(Exit::NoAnswer, "no watched daemon is left"))
}

fn shown(mount: &Mount, json: bool) -> String {
    if json {
        let exit = Exit::of_mount(&mount.status);
        return Report::of_mounts(&Found { mounts: vec![mount.clone()], silent: Vec::new() }, exit).line();
    }
    let lines = render::table(&[render::mount_row(&mount.status)]);
    format!("{}\n{}", lines.join("\n"), render::indented(&render::mount_notes(&mount.status), &[]))
}

async fn watch(mut mount: Mount, interval_ms: u32, changes: mpsc::Sender<Mount>) {
    let place = mount.status.mountpoint.clone();
    let request = WatchRequest { volume: mount.status.volume.clone(), interval_ms };
    let mut stream = match mount.admin().watch(request).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return complain(&format!("{place}: {}", said(&status))),
    };
    loop {
        match stream.message().await {
            Ok(Some(reply)) => {
                for status in reply.mounts {
                    mount.status = status;
                    if changes.send(mount.clone()).await.is_err() {
                        return;
                    }
                }
            }
            Ok(None) => return complain(&format!("{place}: its daemon has ended")),
            Err(status) => return complain(&format!("{place}: its daemon has ended: {}", said(&status))),
        }
    }
}
