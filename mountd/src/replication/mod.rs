//! Wires commit, link and resync of one mount together, and keeps the marks.
//!
//! Threads: the tokio runtime (network only), `resync-reader` (reads files), `mark-keeper` (clears marks, fails late fsyncs, notes
//! that we are alive). None of them is needed for local work to go on.

pub mod dirtiness;
mod keeper;
pub mod remember;
mod renewal;
pub mod shadow;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tandem_proto::{Position, Seq, Timestamp, Uuid, VolumeName, ids::hex};
use tandem_runtime::{connect::ServerAddress, gauge::Gauge, when::now_ns};
use tokio::sync::{mpsc, oneshot, watch};

use self::renewal::Renewal;
use crate::{
    commit::{
        Commit,
        activity_log::Recovered,
        dirty::{DirtySet, Scope},
        throttle::Congestion,
    },
    divergence,
    link::{
        core::{Claim, CoreConfig, LinkCore},
        driver::{Control, Driver, LinkShared, Traffic},
        packer::Packer,
        start::{Decided, Start},
    },
    resync::StateReader,
    state::{StateDir, StateError, random_id},
    verify::Verifier,
};

/// What replication of one mount needs to know.
pub struct ReplicationConfig {
    /// The storage daemon.
    pub server: ServerAddress,
    /// The volume there.
    pub volume: VolumeName,
    /// The locked state directory; its lock is held until [`Replication::shutdown`].
    pub state: StateDir,
    /// Identity of the backing directory.
    pub backing_identity: Vec<u8>,
    /// How the mount starts, see [`crate::link::start::decide`].
    pub decided: Decided,
    /// This run, see [`StateDir::begin_run_durably`].
    pub run: Uuid,
    /// Longest pause between two attempts to connect.
    pub reconnect_max: Duration,
    /// How soon a silent connection counts as lost; `None`: never.
    pub keepalive: Option<Duration>,
    /// Whether the backing directory could be reached around the mount since the last mountd ended: `false` only if that one's dead mount was still in place.
    pub reachable_between: bool,
    /// Where the exact cells are kept that the replica lacks.
    pub shadow: shadow::ShadowConfig,
    /// user@host:/path, for messages.
    pub client_name: String,
    /// Bound of the window; [`DEFAULT_WINDOW_BYTES`].
    pub window_bytes: usize,
    /// Bytes a second that may be sent.
    pub bandwidth_limit: Option<u64>,
    /// A resync stands back behind nobody.
    pub resync_full: bool,
    /// Bound of the dirty set's memory; [`crate::commit::dirty::DIRTY_LIMIT_BYTES`].
    pub dirty_bytes: usize,
    /// Marks that stay hot without use; [`crate::commit::marks::HOT_KEPT`].
    pub marks_hot: usize,
    /// After how long a durable fsync fails; `None`: never.
    pub fsync_timeout: Option<Duration>,
    /// What to do when the link is slower than the writer.
    pub congestion: Congestion,
    /// What is excluded, as it was written.
    pub excludes: Vec<String>,
}

/// Default bound of the window in bytes.
pub const DEFAULT_WINDOW_BYTES: usize = 64 << 20;

/// How long saying good-bye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Replication of one mount, running.
pub struct Replication {
    /// What the vfs commits to.
    pub commit: Arc<Commit>,
    /// The storage daemon.
    pub server: ServerAddress,
    /// The volume there.
    pub volume: VolumeName,
    shared: Arc<LinkShared>,
    control: mpsc::UnboundedSender<Control>,
    state_dir: PathBuf,
    run: Uuid,
    reader: Arc<dyn StateReader>,
    resumed_from: &'static str,
    ending: Mutex<Option<Ending>>,
    verifier: OnceLock<Verifier>,
    runtime: tokio::runtime::Handle,
    renewal: Arc<Renewal>,
}

/// What is taken apart at the end.
struct Ending {
    runtime: tokio::runtime::Runtime,
    link: tokio::task::JoinHandle<()>,
    keeper: keeper::Keeper,
    state: Arc<Mutex<StateDir>>,
    reader: Arc<dyn StateReader>,
}

/// Starting failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The activity log.
    #[error("the activity log {0}: {1}; look at the disk of the state directory")]
    ActivityLog(PathBuf, std::io::Error),
    /// Threads or the runtime.
    #[error("cannot start {0}: {1}")]
    Spawn(&'static str, std::io::Error),
}

/// Whether the activity log of this state directory holds a mark of the root, for [`crate::link::start::StartFacts`]. `true` if it cannot be told.
pub fn root_marked(state: &StateDir) -> bool {
    dirtiness::root_marked(&state.activity_log_path())
}

/// Up to where the folder relies on its replica, for [`crate::link::start::StartFacts`].
pub fn floor(state: &StateDir) -> Option<Position> {
    dirtiness::header(&state.activity_log_path()).map(|header| header.floor).filter(|floor| floor.epoch.0 > 0)
}

/// A run that was killed moments after its first attach noted whose replica it has in the activity log only: takes it from there, so that
/// the folder is not a stranger to its own volume.
pub fn remember_ids(state: &mut StateDir) -> Result<(), StateError> {
    if !state.state().volume_id.is_empty() {
        return Ok(());
    }
    let Some(header) = dirtiness::header(&state.activity_log_path()) else { return Ok(()) };
    if header.volume_id == Uuid::default() {
        return Ok(());
    }
    state.update_durably(|state| {
        (state.volume_id, state.replica_id) = (header.volume_id.to_string(), header.replica_id.to_string());
    })
}

/// Starts link, resync and the keeper of the marks. Connecting goes on in the background.
pub fn start(config: ReplicationConfig, reader: Arc<dyn StateReader>) -> Result<Replication, ReplicationError> {
    let ReplicationConfig { server, volume, mut state, decided, run, .. } = config;
    let start = decided.start;
    let log_path = state.activity_log_path();
    let fresh = !matches!(start, Start::Resume | Start::Fenced);
    if fresh {
        // Marks and floor of an earlier life say nothing about this one.
        match std::fs::remove_file(&log_path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ReplicationError::ActivityLog(log_path, error));
            }
            _ => {}
        }
    }
    let (commit, recovered) = Commit::open(&log_path, config.window_bytes, config.fsync_timeout)
        .map_err(|error| ReplicationError::ActivityLog(log_path, error))?;
    let commit = Arc::new(commit);
    commit.set_bounds(config.dirty_bytes, config.marks_hot);
    commit.set_congestion(config.congestion);
    let replace = matches!(start, Start::Push | Start::Pull);
    let since = if fresh {
        None
    } else {
        let left = state.state().clean_unmount_ns.or_else(|| state.last_alive_ns());
        // What a fenced folder lacks is known exactly: nothing that was changed through its mount is to be listed as possible.
        let slack = if start == Start::Fenced { WALK_SLACK_NS - FENCED_SLACK_NS } else { 0 };
        let left = left.map(|left| left.saturating_add(slack));
        walk_since(state.state().walk_since_ns, left, config.reachable_between)
    };
    // What was excluded and is not, or the other way round, is found by listing every directory.
    let excludes_changed = !fresh && state.state().excludes != config.excludes;
    let since = if excludes_changed { Some(since.map_or_else(now_ns, |since| since.min(now_ns()))) } else { since };
    let failed = |error| ReplicationError::ActivityLog(state.activity_log_path(), error);
    let ground = shadow::Ground::of(&config.shadow).map_err(failed)?;
    let mut resumed_from = "";
    if fresh {
        ground.begin_anew(&commit).map_err(failed)?;
    } else {
        let mut walk = DirtySet::default();
        if let Some(since) = since {
            walk.insert_scope(Scope::Walk(timestamp(since)));
        }
        commit.insert_dirty(&walk);
        // Of a mount that was fenced, what was written down is exact, and holds after a crash of the machine too.
        match divergence::stored::load(state.path()).filter(|_| start == Start::Fenced) {
            Some(stored) => commit.insert_dirty(&stored),
            None => {
                let exact = ground.resume(&commit, recovered.as_ref()).map_err(failed)?;
                resumed_from = if exact { "shadow" } else { "marks" };
            }
        }
        mend_header(&commit, &state, recovered.as_ref())?;
    }
    if start != Start::Fenced {
        divergence::stored::forget(state.path())
            .map_err(|error| ReplicationError::ActivityLog(state.path().join(divergence::stored::FILE), error))?;
    }
    state.update_durably(|state| {
        state.walk_since_ns = since;
        state.excludes.clone_from(&config.excludes);
        state.volume = volume.to_string();
        state.server = server.to_string();
        state.backing_identity = hex(&config.backing_identity);
        state.clean_unmount_ns = None;
        state.empty_when_left = false;
        if fresh {
            state.synced = false;
        }
        if fresh && start != Start::Pull {
            (state.volume_id, state.replica_id, state.pulled) = (String::new(), String::new(), None);
        }
        if start != Start::Fenced {
            state.fenced = None;
        }
    })?;
    let core_config = CoreConfig {
        volume: volume.clone(),
        client_id: state.client_id(),
        client_name: config.client_name,
        run_id: run,
        create: fresh,
        takeover: decided.takeover,
        replace,
        claim: Claim { succeed: decided.succeed, have: decided.have, runs: state.runs() },
        reconnect_max: config.reconnect_max,
    };
    let seed = u64::from_le_bytes(random_id()?.0[..8].try_into().unwrap_or([1; 8]));
    let core = match start {
        Start::Fenced => LinkCore::fenced(core_config, commit.clone(), &decided.why),
        _ => LinkCore::new(core_config, commit.clone(), seed),
    };
    let shared = Arc::new(LinkShared {
        facts: Mutex::new(core.facts()),
        state_since_ns: AtomicI64::new(now_ns()),
        changed: watch::Sender::new(0),
        traffic: Traffic::default(),
        gauge: Arc::new(Gauge::new(config.bandwidth_limit)),
        packer: Packer::default(),
        resync_full: AtomicBool::new(config.resync_full),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One: what a message is handed through from the window to the socket wakes nobody. There is one connection.
        .worker_threads(1)
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(|error| ReplicationError::Spawn("the network runtime", error))?;
    let (control, controls) = mpsc::unbounded_channel();
    let state_dir = state.path().to_owned();
    let state = Arc::new(Mutex::new(state));
    let driver = Driver::start(
        core,
        commit.clone(),
        (server.clone(), config.keepalive),
        reader.clone(),
        shared.clone(),
        controls,
    )
    .map_err(|error| ReplicationError::Spawn("the resync reader", error))?;
    let keeper = keeper::Keeper::start(commit.clone(), reader.clone(), shared.clone(), state.clone(), run)
        .map_err(|error| ReplicationError::Spawn("the mark keeper", error))?;
    let link = runtime.spawn(driver.run());
    let renewal = Arc::new(Renewal::default());
    runtime.spawn(renewal::run(server.clone(), renewal.clone()));
    let handle = runtime.handle().clone();
    let ending = Mutex::new(Some(Ending { runtime, link, keeper, state, reader: reader.clone() }));
    Ok(Replication {
        commit,
        server,
        volume,
        shared,
        control,
        state_dir,
        run,
        resumed_from,
        reader,
        ending,
        verifier: OnceLock::new(),
        runtime: handle,
        renewal,
    })
}

/// Slack of a walk: file systems stamp with a coarse clock.
const WALK_SLACK_NS: i64 = 2_000_000_000;

/// The same for a list that only a person looks at: a tick of the kernel's clock and some.
const FENCED_SLACK_NS: i64 = 20_000_000;

/// From when on changes around the mount have to be looked for, in Unix nanoseconds; `None`: there can be none.
fn walk_since(pending: Option<i64>, left: Option<i64>, reachable_between: bool) -> Option<i64> {
    match (reachable_between, pending) {
        (false, pending) => pending,
        (true, pending) => {
            let left = left.unwrap_or(WALK_SLACK_NS) - WALK_SLACK_NS;
            Some(pending.map_or(left, |pending| pending.min(left)))
        }
    }
}

fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanos: u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}

/// A lost or damaged activity log: whose replica we have is known from the state; that it was ever complete is forgotten, so everything
/// is compared, also if this run ends before it is done.
fn mend_header(commit: &Commit, state: &StateDir, recovered: Option<&Recovered>) -> Result<(), ReplicationError> {
    let mut header = commit.header();
    if header.volume_id == Uuid::default()
        && let (Some(volume), Some(replica)) =
            (Uuid::from_hex(&state.state().volume_id), Uuid::from_hex(&state.state().replica_id))
    {
        (header.volume_id, header.replica_id) = (volume, replica);
    }
    if recovered.is_none_or(|recovered| recovered.damaged) {
        tracing::warn!("the activity log is missing or damaged: everything is compared");
        header.floor = Position::default();
    }
    if header == commit.header() {
        return Ok(());
    }
    commit.set_header_durably(header).map_err(|error| ReplicationError::ActivityLog(state.activity_log_path(), error))
}

impl Replication {
    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// How the link is protected, for status.
    pub fn security(&self) -> &'static str {
        self.server.protection()
    }

    /// Unix time when our certificate expires; 0: none is used.
    pub fn identity_expires_s(&self) -> i64 {
        self.renewal.expires_s()
    }

    /// Compares folder and replica from now on, and when asked to. Only the first counts.
    pub fn verify_with(&self, verifier: Verifier) {
        let _ = self.verifier.set(verifier);
    }

    /// Who compares folder and replica.
    pub fn verifier(&self) -> Option<&Verifier> {
        self.verifier.get()
    }

    /// What a resync reads.
    pub fn reader(&self) -> &Arc<dyn StateReader> {
        &self.reader
    }

    /// What told what differed at the start, for status.
    pub fn resumed_from(&self) -> &'static str {
        self.resumed_from
    }

    /// What the link shows.
    pub fn link(&self) -> &Arc<LinkShared> {
        &self.shared
    }

    /// The runtime that network work of this mount runs on.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// What the folder holds and the replica does not, in the order of names; see [`divergence::items::list`].
    pub fn list_divergence(
        &self,
        each: &mut dyn FnMut(divergence::items::Item) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        divergence::items::list(&self.commit.unreplicated(), &*self.reader, each)
    }

    /// Notes under which name the kernel knows the mount, so that a later start recognises its remains.
    pub fn note_mounted(&self, connection: &str) {
        let ending = self.ending.lock();
        let Some(ending) = ending.as_ref() else { return };
        let saved = ending.state.lock().update_durably(|state| state.mounted_as = connection.to_owned());
        if let Err(error) = saved {
            tracing::warn!(%error, "the next mount looks for changes around this one");
        }
    }

    /// Unix time in nanoseconds since when this mount is fenced, as far as it is written down.
    pub fn fenced_since_ns(&self) -> i64 {
        let ending = self.ending.lock();
        let state = ending.as_ref().map(|ending| ending.state.lock());
        state.and_then(|state| state.state().fenced.as_ref().map(|fenced| fenced.since_ns)).unwrap_or(0)
    }

    /// Stops the link; local work goes on. Completes when the link stands, which may take until an attempt to connect has ended (some seconds).
    pub async fn pause(&self) {
        let (done, stands) = oneshot::channel();
        // An error on either way: the link has ended, and stands.
        let _ = self.control.send(Control::Pause(done));
        let _ = stands.await;
    }

    /// Lets the link go on.
    pub fn resume(&self) {
        let _ = self.control.send(Control::Resume);
    }

    /// Completes when everything up to `seq` is applied on the replica.
    pub async fn wait_applied(&self, seq: Seq) {
        let mut watermarks = self.commit.watermarks();
        // An error would mean that the commit is gone; it lives as long as `self`.
        let _ = watermarks.wait_for(|marks| marks.applied.is_some_and(|applied| applied >= seq)).await;
    }

    /// Ends the link, makes floor and the clean-unmount time durable, releases the lock. Call it after the last file system call was
    /// answered; later calls do nothing. Never waits for the network longer than a second or two.
    /// `clean`: the file system was unmounted in order, so what is in the folder is what was committed. `empty`: the folder has no entries.
    pub fn shutdown(&self, clean: bool, empty: bool) {
        let Some(ending) = self.ending.lock().take() else { return };
        let _ = self.control.send(Control::Stop);
        let link = ending.link;
        let _ = ending.runtime.block_on(async { tokio::time::timeout(GOODBYE_TIMEOUT, link).await });
        ending.keeper.stop();
        // What the keeper had not noted yet: a mount may end moments after its first sync.
        remember::save(&self.commit, &ending.state, self.run);
        if self.commit.fenced().is_some() {
            remember::save_divergence(&self.commit, &self.state_dir);
        }
        self.commit.stop();
        let reader = ending.reader;
        let witnesses = remember::look_at_witnesses(&self.commit, &*reader);
        let cleared = if clean { self.commit.clear_marks(true, &|| reader.sync_durable()) } else { Ok(0) };
        if matches!(cleared, Ok(1..)) {
            remember::save_witnesses(&ending.state, witnesses);
        }
        if let Err(error) = cleared.and_then(|_| self.commit.save_floor_durably(&|| reader.sync_durable())) {
            tracing::warn!(%error, "the marks stand; the next mount compares more than it must");
        }
        if clean && let Err(error) = self.commit.end_shadow() {
            tracing::debug!(%error, "the shadow could not be removed");
        }
        let floor = self.commit.header().floor.to_string();
        let mut state = ending.state.lock();
        let saved = state.update_durably(|state| {
            state.floor = floor;
            if clean {
                state.clean_unmount_ns = Some(keeper::unix_now_ns());
                state.empty_when_left = empty;
            }
        });
        if let Err(error) = saved {
            tracing::warn!(%error, "the next mount looks for changes since this one began");
        }
        drop(state);
        ending.runtime.shutdown_timeout(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::{WALK_SLACK_NS, walk_since};

    #[test]
    fn a_walk_that_was_not_finished_is_begun_again_from_where_it_began() {
        let (early, late) = (100 * WALK_SLACK_NS, 200 * WALK_SLACK_NS);
        assert_eq!(walk_since(Some(early), Some(late), true), Some(early));
        assert_eq!(walk_since(Some(early), Some(late), false), Some(early));
    }

    #[test]
    fn a_folder_that_nobody_could_reach_is_not_walked() {
        assert_eq!(walk_since(None, Some(5 * WALK_SLACK_NS), false), None);
        assert_eq!(walk_since(None, Some(5 * WALK_SLACK_NS), true), Some(4 * WALK_SLACK_NS));
        assert_eq!(walk_since(None, None, true), Some(0));
    }
}
