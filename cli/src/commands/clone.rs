//! `tandem clone`: the state of a replica at one exact position, as a folder, without stopping whoever writes.
//!
//! Until it is complete the copy has another name, or holds a file that says so; so a copy that was interrupted is never taken for one.
//! Running the command again removes what such a one left and begins anew.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use tandem_proto::{VolumeName, pb};
use tandem_pull::{Pull, PullError, Pulled, Writer};
use tandem_runtime::{
    connect::{DEFAULT_PORT, ServerAddress},
    durable::sync_directory,
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::Code;

use super::wait::seconds;
use crate::{
    exit::{Exit, Failure},
    mounts::select,
    output::{complain, say},
    render, storage,
};

/// Name of the file that marks an incomplete copy.
const MARKER: &str = ".tandem-clone-incomplete";

/// Options of `tandem clone`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem clone work /tmp/work-now                the replica's state now, as a folder, while the mount is written to
  tandem clone work /tmp/then --at 3:4711        at one exact position")]
pub struct Args {
    /// The state just after this operation, as `tandem status` shows it. One to come is waited for. Default: the last that is durable.
    #[arg(long, value_name = "EPOCH:SEQ", value_parser = place)]
    at: Option<(u64, u64)>,
    /// Gives up waiting for that position after so many seconds, with exit code 1. Default: never.
    #[arg(long, value_name = "S", value_parser = seconds, requires = "at")]
    timeout: Option<Duration>,
    /// The storage daemon. Default: that of the mount of this volume on this host, else the one of this host.
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<ServerAddress>,
    /// Asks a storage daemon of another machine in plaintext.
    #[arg(long, requires = "server")]
    insecure: bool,
    /// Prints what was cloned as JSON.
    #[arg(long)]
    json: bool,
    /// The volume's name.
    #[arg(value_name = "VOLUME")]
    volume: VolumeName,
    /// Where the copy shall be: a folder that does not exist yet, or an empty one.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// A position as people write it.
fn place(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once(':').and_then(|(epoch, seq)| Some((epoch.parse().ok()?, seq.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is no position: write EPOCH:SEQ, two numbers, as tandem status shows it"))
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let server = match &args.server {
        Some(server) => ServerAddress { insecure: args.insecure, ..server.clone() },
        None => server_of(&args.volume).await,
    };
    let server = storage::with_own(&server);
    let at = args.at.map(|(epoch, seq)| pb::Position { epoch, seq, chain: Vec::new().into() });
    let pull = Pull { server, volume: args.volume.clone(), at, wait: args.timeout, reader: "clone".to_owned() };
    let target = Target::begin(&args.dir)?;
    let pulled = match until_signal(fill(&pull, &target)).await {
        Ok(pulled) => pulled,
        Err(failure) => {
            target.give_up();
            return Err(failure);
        }
    };
    target.complete().map_err(|error| {
        Failure::new(Exit::NoAnswer, format!("{}: cannot complete the copy: {error}", args.dir.display()))
    })?;
    report(&args, &pulled)?;
    Ok(Exit::InSync)
}

/// Where the volume's replica is, as far as a mount of this host knows.
async fn server_of(volume: &VolumeName) -> ServerAddress {
    let mounts = select(&[]).await.map(|found| found.mounts).unwrap_or_default();
    let known = mounts.iter().find(|mount| mount.status.volume == volume.as_str());
    let known = known.and_then(|mount| mount.status.server.parse().ok());
    known.unwrap_or_else(|| ServerAddress::new("localhost", DEFAULT_PORT))
}

async fn until_signal(work: impl Future<Output = Result<Pulled, Failure>>) -> Result<Pulled, Failure> {
    let failed = |error: io::Error| Failure::new(Exit::NoAnswer, format!("waiting for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let interrupted = || Failure::new(Exit::Behind, "interrupted; nothing is left of the copy");
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(interrupted()),
        _ = term.recv() => Err(interrupted()),
    }
}

async fn fill(pull: &Pull, target: &Target) -> Result<Pulled, Failure> {
    let writer = Writer::open(&target.filled).map_err(|error| Failure::new(Exit::NoAnswer, error.to_string()))?;
    pull.receive(writer, &mut |_| {}).await.map_err(failure)
}

fn failure(error: PullError) -> Failure {
    let exit = match &error {
        PullError::Server { .. } | PullError::Io { .. } => Exit::NoAnswer,
        PullError::Refused { code: Code::DeadlineExceeded, .. } => Exit::Behind,
        PullError::Refused { code: Code::InvalidArgument, .. } => Exit::Usage,
        PullError::Refused { .. } => Exit::Unreachable,
    };
    Failure::new(exit, error.to_string())
}

/// Says what came of it.
fn report(args: &Args, pulled: &Pulled) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Cloned<'a> {
        volume: &'a str,
        directory: String,
        epoch: u64,
        seq: u64,
        volume_id: String,
        replica_id: String,
        nodes: u64,
        bytes: u64,
        left_out: u64,
    }
    let directory = args.dir.display().to_string();
    if args.json {
        let cloned = Cloned {
            volume: args.volume.as_str(),
            directory,
            epoch: pulled.position.epoch.0,
            seq: pulled.position.seq.0,
            volume_id: pulled.volume_id.to_string(),
            replica_id: pulled.replica_id.to_string(),
            nodes: pulled.nodes,
            bytes: pulled.bytes,
            left_out: pulled.left_out,
        };
        let text = serde_json::to_string(&cloned).map_err(|error| Failure::from(io::Error::other(error)))?;
        say(&format!("{text}\n"))?;
    } else {
        let (volume, position, bytes) = (&args.volume, pulled.position, render::bytes(pulled.bytes));
        say(&format!("{volume} at {position} is in {directory}: {} files and folders, {bytes}\n", pulled.nodes))?;
    }
    if pulled.left_out > 0 {
        complain(&format!(
            "{} owners, devices or attributes are left out: only root may set them. Run it as root for an exact copy",
            pulled.left_out
        ));
    }
    Ok(())
}

/// The folder that is filled.
struct Target {
    /// Where it is filled.
    filled: PathBuf,
    /// Where it is in the end; else it is filled in its place.
    renamed_to: Option<PathBuf>,
}

impl Target {
    /// Makes the folder, and marks it as incomplete.
    fn begin(dir: &Path) -> Result<Target, Failure> {
        let failed = |path: &Path, error: io::Error| Failure::new(Exit::Usage, format!("{}: {error}", path.display()));
        let target = match fs::symlink_metadata(dir) {
            Ok(_) => {
                let dir = dir.canonicalize().map_err(|error| failed(dir, error))?;
                if !is_ours(&dir) && fs::read_dir(&dir).map_err(|error| failed(&dir, error))?.next().is_some() {
                    let message = format!("{} is not empty: give an empty folder, or a new one", dir.display());
                    return Err(Failure::new(Exit::Usage, message));
                }
                Target { filled: dir, renamed_to: None }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let dir = std::path::absolute(dir).map_err(|error| failed(dir, error))?;
                let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
                    return Err(failed(&dir, io::ErrorKind::InvalidInput.into()));
                };
                let mut partial = std::ffi::OsString::from(".");
                partial.push(name);
                partial.push(".tandem-clone");
                let filled = parent.join(partial);
                match fs::create_dir(&filled) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_ours(&filled) => {}
                    answer => answer.map_err(|error| failed(&filled, error))?,
                }
                Target { filled, renamed_to: Some(dir) }
            }
            Err(error) => return Err(failed(dir, error)),
        };
        let begun = fs::write(target.marker(), "tandem clone did not come to its end here\n")
            .and_then(|()| empty(&target.filled));
        begun.map_err(|error| failed(&target.filled, error))?;
        Ok(target)
    }

    fn marker(&self) -> PathBuf {
        self.filled.join(MARKER)
    }

    /// Everything is there and durable: now it may look so.
    fn complete(&self) -> io::Result<()> {
        let folder = fs::File::open(&self.filled)?;
        let (times, mode) = (folder.metadata()?.modified()?, folder.metadata()?.permissions());
        if let Err(error) = fs::remove_file(self.marker()) {
            if error.kind() != io::ErrorKind::PermissionDenied {
                return Err(error);
            }
            // The folder's own mode forbids it.
            folder.set_permissions(fs::Permissions::from_mode(0o700))?;
            fs::remove_file(self.marker())?;
            folder.set_permissions(mode)?;
        }
        folder.set_times(fs::FileTimes::new().set_modified(times).set_accessed(times))?;
        folder.sync_all()?;
        if let Some(to) = &self.renamed_to {
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                &self.filled,
                rustix::fs::CWD,
                to,
                rustix::fs::RenameFlags::NOREPLACE,
            )?;
            if let Some(parent) = to.parent() {
                sync_directory(parent)?;
            }
        }
        Ok(())
    }

    /// Removes what was made. What cannot be removed stays marked.
    fn give_up(&self) {
        let removed = empty(&self.filled).and_then(|()| match &self.renamed_to {
            Some(_) => fs::remove_dir_all(&self.filled),
            None => fs::remove_file(self.marker()),
        });
        if let Err(error) = removed {
            complain(&format!("{} is incomplete and cannot be removed: {error}", self.filled.display()));
        }
    }
}

/// Whether the folder holds what an interrupted clone left.
fn is_ours(dir: &Path) -> bool {
    dir.join(MARKER).symlink_metadata().is_ok()
}

/// Removes everything but the marker.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{MARKER, Target, place};

    #[test]
    fn positions_are_two_numbers() {
        assert_eq!(place("3:170"), Ok((3, 170)));
        for bad in ["", "3", "3:", ":1", "a:1", "3:170:1", "-1:2"] {
            assert!(place(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_new_folder_appears_only_when_it_is_complete() {
        let lab = tempfile::tempdir().expect("a temporary directory");
        let dir = lab.path().join("copy");
        let target = Target::begin(&dir).expect("new");
        fs::write(target.filled.join("half"), "1").expect("writable");
        assert!(!dir.exists());
        // Killed here, and run again.
        let target = Target::begin(&dir).expect("what was left is ours");
        assert_eq!(fs::read_dir(&target.filled).expect("there").count(), 1, "only the marker");
        fs::write(target.filled.join("whole"), "2").expect("writable");
        target.complete().expect("complete");
        assert_eq!(fs::read_dir(&dir).expect("there").count(), 1);
        assert_eq!(fs::read_dir(lab.path()).expect("there").count(), 1);
        assert!(Target::begin(&dir).is_err(), "not empty");
    }

    #[test]
    fn an_empty_folder_is_marked_while_it_is_filled() {
        let lab = tempfile::tempdir().expect("a temporary directory");
        let target = Target::begin(lab.path()).expect("empty");
        fs::write(target.filled.join("half"), "1").expect("writable");
        assert!(lab.path().join(MARKER).exists());
        target.give_up();
        assert_eq!(fs::read_dir(lab.path()).expect("there").count(), 0);
        Target::begin(lab.path()).expect("empty again").complete().expect("complete");
        assert_eq!(fs::read_dir(lab.path()).expect("there").count(), 0);
    }
}
