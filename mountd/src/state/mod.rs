//! The state directory of one mount: what must outlive the daemon, kept outside the user's tree.
//!
//! ```text
//! <state>/mounts/<key>/  lock          held (flock) by the mountd that uses the directory
//!                        state.json    who we are and what we belong to; versioned, replaced durably
//!                        activity.log  marks and floor (commit/activity_log.rs)
//!                        alive         its mtime is about the last time when a mountd ran
//!                        mountd.log    of a daemon in the background
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{FlockOperation, flock};
use tandem_runtime::durable;

use serde::{Deserialize, Serialize};
use tandem_proto::{Chain, Epoch, Position, Seq, Uuid, limits::ATTACH_RUNS_MAX};

/// Format of `state.json`.
pub const STATE_VERSION: u32 = 1;

/// The state directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another mountd has it.
    #[error(
        "the folder is already mounted by another tandem-mountd (it holds {0}): unmount it first, or `tandem status`"
    )]
    Locked(PathBuf),
    /// Written by a newer version.
    #[error("{path} has format {found}, this version knows {STATE_VERSION}: upgrade tandem-mountd")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Not what was written.
    #[error("{path} cannot be understood ({why}): move it away to start anew with `-o init=push` or `-o init=pull`")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The disk failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The content of `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct MountState {
    /// Format.
    pub version: u32,
    /// This client, hexadecimal; made with the directory.
    pub client_id: String,
    /// Volume name of the last mount.
    pub volume: String,
    /// Server of the last mount.
    pub server: String,
    /// The volume that this folder belongs to, hexadecimal; empty until the first attach.
    pub volume_id: String,
    /// The replica of it, hexadecimal; empty until the first attach.
    pub replica_id: String,
    /// Identity of the backing directory, hexadecimal.
    pub backing_identity: String,
    /// Up to where the client relied on the replica when this was written, for people; the activity log has the one that counts.
    pub floor: String,
    /// Whether the replica was ever complete.
    pub synced: bool,
    /// A walk for changes around the mount was begun and not published: Unix time in nanoseconds from which on it looks. The next
    /// walk must not begin later, or what this one did not send yet is never looked at again.
    pub walk_since_ns: Option<i64>,
    /// Patterns of what the last mount excluded.
    pub excludes: Vec<String>,
    /// Set while not mounted after a clean unmount: Unix time in nanoseconds.
    pub clean_unmount_ns: Option<i64>,
    /// Whether the folder was empty at that unmount.
    pub empty_when_left: bool,
    /// Set for good when a newer writer took the volume; only a decision of the user (`init`, `takeover`) ends it.
    pub fenced: Option<Fenced>,
    /// The folder was filled from the replica's state at this position ([`position_text`]), and nothing was published since.
    pub pulled: Option<String>,
    /// Runs of mountd that may have opened the volume's current epoch, hexadecimal: the last one that was attached, then those that began
    /// since and never heard whether they were.
    pub runs: Vec<String>,
    /// Where the backing directory was, for messages.
    pub backing_dir: String,
    /// The kernel's name of the last mount's connection, see [`crate::mount::connection_name`].
    pub mounted_as: String,
    /// Inodes whose time of change was known when all that is cleared was on disk: a folder in which one is older went back in time.
    pub witnesses: Vec<Witness>,
}

/// Why a mount is fenced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Fenced {
    /// What the storage daemon said, and the ways on.
    pub reason: String,
    /// Unix time in nanoseconds at which this mount heard of it.
    pub since_ns: i64,
}

/// An inode and its time of last change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Witness {
    /// Inode id, hexadecimal.
    pub id: String,
    /// Unix time, seconds.
    pub ctime_s: i64,
    /// And nanoseconds.
    pub ctime_ns: u32,
}

/// A position with its chain, as [`MountState::pulled`] holds it.
pub fn position_text(position: &Position) -> String {
    format!("{position}:{}", Uuid(position.chain.0))
}

/// The reverse of [`position_text`].
pub fn parse_position(text: &str) -> Option<Position> {
    let mut parts = text.split(':');
    let (epoch, seq, chain) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
    Some(Position { epoch: Epoch(epoch), seq: Seq(seq), chain: Chain(Uuid::from_hex(chain)?.0) })
}

/// Pause between two looks at a lock that a daemon about to end still holds.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The opened, locked state directory of one mount.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    key: String,
    state: MountState,
    _lock: File,
}

impl StateDir {
    /// [`StateDir::open`], waiting up to `wait` for a mountd that is about to end: its mount is gone a moment before its lock.
    pub fn open_within(root: &Path, key: &str, wait: Duration) -> Result<StateDir, StateError> {
        let deadline = Instant::now() + wait;
        loop {
            match Self::open(root, key) {
                Err(StateError::Locked(_)) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
                other => return other,
            }
        }
    }

    /// Opens or makes `<root>/mounts/<key>` and locks it. `key` is [`StateDir::key`] of the backing's identity.
    pub fn open(root: &Path, key: &str) -> Result<StateDir, StateError> {
        let path = root.join("mounts").join(key);
        durable::create_private_dir(&path).map_err(|source| io_error("making", &path, source))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| io_error("opening", &lock_path, source))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StateError::Locked(path)),
            Err(error) => return Err(io_error("locking", &lock_path, error.into())),
        }
        let state_path = path.join("state.json");
        let state = match fs::read(&state_path) {
            Ok(bytes) => parse_state(&state_path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => new_state()?,
            Err(source) => return Err(io_error("reading", &state_path, source)),
        };
        let dir = StateDir { path, key: key.to_owned(), state, _lock: lock };
        dir.write_durably()?;
        Ok(dir)
    }

    /// The directory name for a backing identity: 32 hexadecimal digits.
    pub fn key(backing_identity: &[u8]) -> String {
        blake3::hash(backing_identity).to_hex()[..32].to_owned()
    }

    /// The key that this directory was opened with.
    pub fn own_key(&self) -> &str {
        &self.key
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the activity log is.
    pub fn activity_log_path(&self) -> PathBuf {
        self.path.join("activity.log")
    }

    /// What is remembered.
    pub fn state(&self) -> &MountState {
        &self.state
    }

    /// This client.
    pub fn client_id(&self) -> Uuid {
        Uuid::from_hex(&self.state.client_id).unwrap_or_default()
    }

    /// Changes what is remembered, durably.
    pub fn update_durably(&mut self, change: impl FnOnce(&mut MountState)) -> Result<(), StateError> {
        change(&mut self.state);
        self.write_durably()
    }

    /// A new run begins: its id, noted durably before anybody can hear of it.
    pub fn begin_run_durably(&mut self) -> Result<Uuid, StateError> {
        let run = random_id()?;
        self.update_durably(|state| {
            // The first is the one that was attached; of the others the oldest is the least likely to have been.
            if state.runs.len() >= ATTACH_RUNS_MAX {
                state.runs.remove(1);
            }
            state.runs.push(run.to_string());
        })?;
        Ok(run)
    }

    /// Whether another backing directory, which belongs to this volume, was at this place before: perhaps its file system is not mounted.
    pub fn elsewhere(&self, root: &Path, backing_dir: &Path, volume: &str) -> Option<String> {
        let others = fs::read_dir(root.join("mounts")).ok()?;
        let known = others.flatten().filter(|entry| entry.file_name() != self.key.as_str()).any(|entry| {
            let bytes = fs::read(entry.path().join("state.json")).unwrap_or_default();
            let state: MountState = serde_json::from_slice(&bytes).unwrap_or_default();
            !state.volume_id.is_empty() && state.volume == volume && Path::new(&state.backing_dir) == backing_dir
        });
        known.then(|| {
            format!(
                "{} is not the directory that was mounted here before: that one lies on another file system, which may not be mounted, or \
                 was moved or replaced.",
                backing_dir.display()
            )
        })
    }

    /// Runs that may have opened the current epoch.
    pub fn runs(&self) -> Vec<Uuid> {
        self.state.runs.iter().filter_map(|run| Uuid::from_hex(run)).collect()
    }

    /// Notes that a mountd runs. Not durable: an earlier time only makes a walk compare more.
    pub fn touch_alive(&self) -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.path.join("alive"))?;
        file.set_modified(SystemTime::now())
    }

    /// About when a mountd last ran: Unix time in nanoseconds.
    pub fn last_alive_ns(&self) -> Option<i64> {
        let modified = fs::metadata(self.path.join("alive")).ok()?.modified().ok()?;
        i64::try_from(modified.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
    }

    fn write_durably(&self) -> Result<(), StateError> {
        let path = self.path.join("state.json");
        let bytes = serde_json::to_vec_pretty(&self.state).map_err(|error| io_error("writing", &path, error.into()))?;
        durable::replace_file_durably(&path, &bytes).map_err(|source| io_error("writing", &path, source))
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io { what, path: path.to_owned(), source }
}

fn new_state() -> Result<MountState, StateError> {
    Ok(MountState { version: STATE_VERSION, client_id: random_id()?.to_string(), ..Default::default() })
}

/// A new random id.
pub fn random_id() -> Result<Uuid, StateError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| io_error("reading", Path::new("/dev/urandom"), io::Error::other(error.to_string())))?;
    Ok(Uuid(id))
}

/// What the bytes of `state.json`, which is at `path`, say.
pub fn parse_state(path: &Path, bytes: &[u8]) -> Result<MountState, StateError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let damaged = |why: String| StateError::Damaged { path: path.to_owned(), why };
    let versioned: Versioned = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if versioned.version != STATE_VERSION {
        return Err(StateError::Version { path: path.to_owned(), found: versioned.version });
    }
    let state: MountState = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if Uuid::from_hex(&state.client_id).is_none() {
        return Err(damaged("client_id is no id".into()));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tandem_proto::{Chain, Epoch, Position, Seq, limits::ATTACH_RUNS_MAX};

    use super::{StateDir, StateError, parse_position, position_text};

    #[test]
    fn what_is_remembered_survives_and_the_lock_is_exclusive() {
        let root = tempfile::tempdir().expect("temporary directory");
        let key = StateDir::key(b"some folder");
        let mut dir = StateDir::open(root.path(), &key).expect("new");
        let client = dir.client_id();
        dir.update_durably(|state| state.volume = "v".into()).expect("written");
        assert!(matches!(StateDir::open(root.path(), &key), Err(StateError::Locked(_))));
        drop(dir);
        let dir = StateDir::open(root.path(), &key).expect("again");
        assert_eq!((dir.client_id(), dir.state().volume.as_str()), (client, "v"));
    }

    #[test]
    fn runs_that_may_have_been_attached_are_remembered_within_a_bound() {
        let root = tempfile::tempdir().expect("temporary directory");
        let mut dir = StateDir::open(root.path(), "k").expect("new");
        let first = dir.begin_run_durably().expect("written");
        let later: Vec<_> = (0..70).map(|_| dir.begin_run_durably().expect("written")).collect();
        drop(dir);
        let runs = StateDir::open(root.path(), "k").expect("again").runs();
        assert_eq!((runs.len(), runs[0]), (ATTACH_RUNS_MAX, first));
        assert_eq!(runs.last(), later.last());
    }

    #[test]
    fn a_position_survives_its_text() {
        let position = Position { epoch: Epoch(3), seq: Seq(9), chain: Chain([7; 16]) };
        assert_eq!(parse_position(&position_text(&position)), Some(position));
        assert_eq!(parse_position("3:9"), None);
    }

    #[test]
    fn the_lock_of_a_daemon_that_is_about_to_end_is_waited_for() {
        let root = tempfile::tempdir().expect("temporary directory");
        let ending = StateDir::open(root.path(), "k").expect("new");
        let end = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(ending);
        });
        assert!(StateDir::open_within(root.path(), "k", Duration::from_secs(20)).is_ok());
        end.join().expect("ended");
    }

    #[test]
    fn a_state_of_a_newer_version_is_refused() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = StateDir::open(root.path(), "k").expect("new").path().join("state.json");
        std::fs::write(&path, br#"{"version": 99}"#).expect("written");
        assert!(matches!(StateDir::open(root.path(), "k"), Err(StateError::Version { found: 99, .. })));
        std::fs::write(&path, b"{").expect("written");
        assert!(matches!(StateDir::open(root.path(), "k"), Err(StateError::Damaged { .. })));
    }
}
