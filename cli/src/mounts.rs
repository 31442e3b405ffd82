//! Finds the mounts of this host and the daemons behind them.
//!
//! Each mountd listens on `mount-KEY.sock` in the runtime directory. A socket that refuses is what a killed daemon left; it
//! matters only if its mount is still there, and that the kernel knows. A socket that takes the call and does not answer is a
//! daemon that hangs. A dead mount is counted as ours if such a left-over socket is there, or if it was asked for by name.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tandem_proto::pb::{
    MountStatus, Setting, StatusReply, StatusRequest, admin_client::AdminClient,
    mount_control_client::MountControlClient,
};
use tandem_runtime::{connect, dirs, failure::said};
use tokio::{task::JoinSet, time::timeout};
use tonic::transport::Channel;

use crate::{
    exit::{Exit, Failure},
    mountinfo,
    output::complain,
    render,
};

/// How long a daemon of this host may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A mount whose daemon answers.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Where it listens.
    pub socket: PathBuf,
    /// What it is.
    pub daemon: Daemon,
    /// What it said.
    pub status: MountStatus,
    channel: Channel,
}

/// A daemon as it describes itself.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started, in nanoseconds since 1970.
    pub started_ns: i64,
    /// Where its page is; empty: nowhere.
    pub web: String,
    /// What it was told to be; empty: it does not tell us.
    pub settings: Vec<Setting>,
}

impl Daemon {
    /// From its answer.
    pub fn of(reply: &StatusReply) -> Daemon {
        Daemon {
            version: reply.version.clone(),
            pid: reply.pid,
            started_ns: reply.started_ns,
            web: reply.web.clone(),
            settings: reply.settings.clone(),
        }
    }
}

impl Mount {
    /// To ask it for its status.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    /// To steer it.
    pub fn control(&self) -> MountControlClient<Channel> {
        MountControlClient::new(self.channel.clone())
    }

    fn mountpoint(&self) -> &Path {
        Path::new(&self.status.mountpoint)
    }
}

/// A mount, or a daemon, that does not answer.
#[derive(Clone, Debug)]
pub struct Silent {
    /// The mountpoint, or the socket if it is not known.
    pub place: PathBuf,
    /// Why, and what to do.
    pub reason: String,
    /// The daemon is gone and its mount is still there.
    pub dead_mount: bool,
    /// Whether it may be of this user and runtime directory.
    ours: bool,
}

/// Everything on this host.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Mounts, by mountpoint.
    pub mounts: Vec<Mount>,
    /// What does not answer.
    pub silent: Vec<Silent>,
}

impl Found {
    /// Complains of what does not answer.
    pub fn report_silent(&self) -> Exit {
        for silent in &self.silent {
            complain(&render::silent_line(silent));
        }
        if self.silent.is_empty() { Exit::InSync } else { Exit::NoAnswer }
    }
}

/// Asks every daemon of this user for its status.
async fn discover() -> Result<Found, Failure> {
    let runtime = dirs::runtime_dir();
    let mut asked = JoinSet::new();
    for socket in sockets(&runtime)? {
        asked.spawn(ask(socket));
    }
    let mut found = Found::default();
    let mut left_over = false;
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Answer::Mounts(mounts)) => found.mounts.extend(mounts),
            Ok(Answer::Nobody) => left_over = true,
            Ok(Answer::Silent(silent)) => found.silent.push(silent),
            Err(error) => return Err(Failure::new(Exit::NoAnswer, format!("asking a daemon failed: {error}"))),
        }
    }
    for mountpoint in mountinfo::mountpoints()? {
        // A living mount that nobody claims belongs to another user or runtime directory.
        if !found.mounts.iter().any(|mount| mount.mountpoint() == mountpoint) && mountinfo::is_dead(&mountpoint) {
            let reason = format!(
                "its daemon is gone; mount it again, or take it away with: tandem umount {}",
                quoted(&mountpoint.to_string_lossy())
            );
            found.silent.push(Silent { place: mountpoint, reason, dead_mount: true, ours: left_over });
        }
    }
    found.mounts.sort_by(|left, right| left.status.mountpoint.cmp(&right.status.mountpoint));
    found.silent.sort_by(|left, right| left.place.cmp(&right.place));
    Ok(found)
}

/// The mounts that hold these paths, or all if none is given. Fails if a path is on none, or if there is none at all.
pub async fn select(paths: &[PathBuf]) -> Result<Found, Failure> {
    let mut all = discover().await?;
    if paths.is_empty() {
        all.silent.retain(|silent| silent.ours);
        if all.mounts.is_empty() && all.silent.is_empty() {
            let looked = dirs::runtime_dir();
            let message = format!("no mount of this user is running (looked in {})", looked.display());
            return Err(Failure::new(Exit::NoAnswer, message));
        }
        return Ok(all);
    }
    let mut chosen = Found::default();
    for path in paths {
        match holder(&all, path)? {
            Holder::Mount(mount) if chosen.mounts.iter().any(|known| known.socket == mount.socket) => {}
            Holder::Mount(mount) => chosen.mounts.push(mount.clone()),
            Holder::Silent(silent) => chosen.silent.push(silent.clone()),
        }
    }
    Ok(chosen)
}

/// Who holds a path.
enum Holder<'a> {
    Mount(&'a Mount),
    Silent(&'a Silent),
}

/// The mount whose mountpoint is the longest prefix of the path.
fn holder<'a>(all: &'a Found, path: &Path) -> Result<Holder<'a>, Failure> {
    let path = resolve(path).map_err(|error| Failure::new(Exit::NoAnswer, format!("{}: {error}", path.display())))?;
    let mounts = all.mounts.iter().map(|mount| (mount.mountpoint(), Holder::Mount(mount)));
    let silent = all.silent.iter().map(|silent| (silent.place.as_path(), Holder::Silent(silent)));
    mounts
        .chain(silent)
        .filter(|(mountpoint, _)| path.starts_with(mountpoint))
        .max_by_key(|(mountpoint, _)| mountpoint.components().count())
        .map(|(_, holder)| holder)
        .ok_or_else(|| {
            let message = format!("{} is on no mount of TandemFS that runs here; see: tandem status", path.display());
            Failure::new(Exit::NoAnswer, message)
        })
}

/// The canonical path. On a dead mount nothing can be resolved, so there its text must do.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => std::path::absolute(path),
        other => other,
    }
}

/// Text as a shell would take it.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn sockets(runtime: &Path) -> Result<Vec<PathBuf>, Failure> {
    let listed = match fs::read_dir(runtime) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let message = format!("runtime directory {}: {error}", runtime.display());
            return Err(Failure::new(Exit::NoAnswer, message));
        }
    };
    let ours = |name: &str| name.starts_with("mount-") && name.ends_with(".sock");
    Ok(listed
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(ours))
        .map(|entry| entry.path())
        .collect())
}

/// What came of asking one socket.
enum Answer {
    Mounts(Vec<Mount>),
    /// Nobody listens any more.
    Nobody,
    Silent(Silent),
}

async fn ask(socket: PathBuf) -> Answer {
    // Looked at first, because the error of a gRPC connection does not tell a refusal from the rest.
    match tokio::net::UnixStream::connect(&socket).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            return Answer::Nobody;
        }
        _ => {}
    }
    let silent =
        |reason: String| Answer::Silent(Silent { place: socket.clone(), reason, dead_mount: false, ours: true });
    let channel = match connect::unix(socket.clone(), ANSWER_TIMEOUT).await {
        Ok(channel) => channel,
        Err(error) => return silent(format!("cannot connect: {}", with_causes(&error))),
    };
    let mut admin = AdminClient::new(channel.clone());
    match timeout(ANSWER_TIMEOUT, admin.status(StatusRequest::default())).await {
        Err(_) => silent(format!("no answer within {} s; see its log", ANSWER_TIMEOUT.as_secs())),
        Ok(Err(status)) => silent(said(&status)),
        Ok(Ok(reply)) => {
            let reply = reply.into_inner();
            let daemon = Daemon::of(&reply);
            let mount =
                |status| Mount { socket: socket.clone(), daemon: daemon.clone(), status, channel: channel.clone() };
            Answer::Mounts(reply.mounts.into_iter().map(mount).collect())
        }
    }
}

/// An error and what lies under it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn paths_are_quoted_only_where_a_shell_needs_it() {
        assert_eq!(quoted("/home/u/work"), "/home/u/work");
        assert_eq!(quoted("/my files"), "'/my files'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
