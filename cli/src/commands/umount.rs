//! `tandem umount`: unmounts, and says what the replica does not have yet.
//!
//! Nothing is lost by unmounting: what the replica lacks is in the folder, and its marks are in the state directory, so it
//! follows at the next mount. A mount whose daemon died is taken away by hand, because nobody else can.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tandem_proto::pb::{UnmountReply, UnmountRequest};
use tandem_runtime::failure::said;

use super::wait::{milliseconds, seconds};
use crate::{
    exit::{Exit, Failure},
    mounts::{Mount, Silent, select},
    output::{complain, say},
    render,
};

/// How long a daemon may take to end after it has unmounted.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `tandem umount`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem umount ~/work                           says what the replica lacks; it follows at the next mount
  tandem umount --drain ~/work                   first sends it")]
pub struct Args {
    /// First waits until the replica has everything.
    #[arg(long)]
    drain: bool,
    /// With --drain: gives up after so many seconds, stays mounted, and ends with exit code 1.
    #[arg(long, value_name = "S", value_parser = seconds, requires = "drain")]
    timeout: Option<Duration>,
    /// Also when files are open on it.
    #[arg(short, long, visible_alias = "lazy")]
    force: bool,
    /// The mountpoint.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let found = select(std::slice::from_ref(&args.dir)).await?;
    if let Some(silent) = found.silent.first() {
        return take_away(silent);
    }
    let Some(mount) = found.mounts.first() else {
        return Err(Failure::new(Exit::NoAnswer, format!("{} is not mounted", args.dir.display())));
    };
    let place = mount.status.mountpoint.clone();
    if std::fs::canonicalize(&args.dir).ok().as_deref() != Some(Path::new(&place)) {
        let message = format!("{} is no mountpoint; it is on the mount at {place}", args.dir.display());
        return Err(Failure::new(Exit::Usage, message));
    }
    let request = UnmountRequest { drain: args.drain, force: args.force, timeout_ms: milliseconds(args.timeout) };
    let reply = match mount.control().unmount(request).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => {
            let message = format!("{place}: cannot unmount: {}", said(&status));
            return Err(Failure::new(Exit::NoAnswer, message));
        }
    };
    let exit = if lacks_nothing(&reply) { Exit::InSync } else { Exit::Behind };
    if !reply.unmounted {
        complain(&format!("{place} is still mounted: {}; {}", reply.reason, lacking(&reply)));
        return Ok(Exit::Behind);
    }
    until_ended(mount).await;
    let kept = if lacks_nothing(&reply) {
        String::new()
    } else {
        format!(" (it is in {}, and follows at the next mount)", mount.status.backing)
    };
    say(&format!("{place} unmounted; {}{kept}\n", lacking(&reply)))?;
    Ok(exit)
}

fn lacks_nothing(reply: &UnmountReply) -> bool {
    reply.ops_behind == 0 && reply.bytes_behind == 0 && reply.dirty_cells == 0
}

fn lacking(reply: &UnmountReply) -> String {
    if lacks_nothing(reply) {
        return "the replica has everything".to_owned();
    }
    let mut parts = vec![format!("{} operations", reply.ops_behind), render::bytes(reply.bytes_behind)];
    if reply.dirty_cells > 0 {
        parts.push(format!("{} dirty cells", reply.dirty_cells));
    }
    format!("the replica lacks {}", parts.join(", "))
}

/// Waits until the daemon is gone, so that the next mount finds its state unlocked.
async fn until_ended(mount: &Mount) {
    let end = Instant::now() + END_TIMEOUT;
    while Instant::now() < end {
        if tokio::net::UnixStream::connect(&mount.socket).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    complain(&format!("pid {} has unmounted and does not end; see its log", mount.daemon.pid));
}

fn take_away(silent: &Silent) -> Result<Exit, Failure> {
    if !silent.dead_mount {
        return Err(Failure::new(Exit::NoAnswer, render::silent_line(silent)));
    }
    let place = silent.place.display();
    let detached = if rustix::process::geteuid().is_root() {
        rustix::mount::unmount(&silent.place, rustix::mount::UnmountFlags::DETACH).map_err(|error| error.to_string())
    } else {
        by_helper(&silent.place)
    };
    detached.map_err(|why| {
        Failure::new(Exit::NoAnswer, format!("{place}: its daemon is gone, and unmounting fails: {why}"))
    })?;
    say(&format!(
        "{place} unmounted; its daemon was gone already, so what the replica lacks is not known: it follows at the next mount\n"
    ))?;
    Ok(Exit::InSync)
}

/// What may unmount for a user who is not root.
fn by_helper(place: &Path) -> Result<(), String> {
    let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(place).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("fusermount3: {error}; install fuse3")),
    }
}
