//! From the command line to a serving mount, and to its end. What is decided elsewhere is put together here.
//!
//! ```text
//! options ─► survey mountpoint ─► backing directory ─► state directory (lock) ─► ask the server ─► decide the start
//!   ─► pull, if asked ─► superblock ─► replication ─► handshake ─► serve ─► attach ─► admin socket ─► "ready"
//! end: unmounted (from outside, by `tandem umount`, by a signal) ─► settle ─► replication says good-bye ─► exit
//! ```

mod error;
mod reload;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock, mpsc},
    thread,
    time::Duration,
};

use tandem_proto::Uuid;
use tandem_runtime::{settings::Effective, telemetry};

pub use self::error::RunError;
use self::{error::system, reload::Reload};
use crate::{
    admin,
    backing::{Backing, BackingError, IdForm},
    commit::Commit,
    daemonize::{self, Reporter},
    flusher::Flusher,
    fuse::{Connection, Tell},
    link::{
        claim::{self, Claimant},
        client::{Described, describe_blocking},
        start::{Decided, Init, Start, StartFacts, decide},
    },
    mount::{self, MountSpec, Prepared, Present, bypass},
    mounted::Mounted,
    options::{self, Options, Request},
    replication::{
        self, Replication, ReplicationConfig,
        shadow::{BackingPlace, ShadowConfig, shadow_path, unique_mount_id},
    },
    resync::{StateReader, pull},
    state::StateDir,
    verify::Verifier,
    vfs::{CacheMode, Vfs},
};

/// Exit code for a command line that cannot be understood (EX_USAGE).
const EXIT_USAGE: u8 = 64;
/// How long the server has to say what it knows of the volume.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a mountd that is about to end may hold the state directory: it says good-bye to the server after its mount is gone.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long those who still use a mount that was ended by a signal have.
const END_GRACE: Duration = Duration::from_secs(10);

/// The whole program.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    tandem_runtime::priority::begin();
    tandem_runtime::memory::keep();
    let (program, arguments) = match arguments.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => (OsString::from("tandem-mountd"), &[][..]),
    };
    let name = Path::new(&program).file_name().unwrap_or_default().to_owned();
    match options::parse(arguments, name.to_string_lossy().starts_with("mount.")) {
        Err(error) => {
            eprintln!("tandem-mountd: {error}");
            ExitCode::from(EXIT_USAGE)
        }
        Ok(Request::Print(text)) => {
            let _ = writeln!(io::stdout(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Ok(Request::Check) => ExitCode::SUCCESS,
        Ok(Request::Mount(options)) => mount_and_serve(&program, arguments, &options),
    }
}

fn mount_and_serve(program: &OsString, arguments: &[OsString], options: &Options) -> ExitCode {
    let reporter = Reporter::from_environment();
    if !options.settings.foreground && !reporter.is_background() {
        return match daemonize::start_in_background(program, arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("tandem-mountd: {why}");
                ExitCode::FAILURE
            }
        };
    }
    // Before any thread exists, so that all of them leave these signals to the one that waits for them.
    let signals = Signals::block();
    match start(options, &reporter) {
        Ok(running) => {
            reporter.ready();
            running.wait(signals)
        }
        Err(error) => {
            reporter.failed(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// A mount that serves.
struct Running {
    mounted: Arc<Mounted<Commit>>,
    replication: Arc<Replication>,
    ended: mpsc::Receiver<End>,
    send_end: mpsc::Sender<End>,
    admin: admin::AdminServer,
    flusher: Option<Flusher>,
    reload: Reload,
}

enum End {
    Unmounted(io::Result<()>),
    GraceIsOver,
}

/// What is known before anything is started.
struct Place {
    dir: PathBuf,
    present: Present,
    backing: Arc<Backing>,
    reachable_between: bool,
    /// The connection of the dead mount that was found, see [`mount::connection_name`].
    dead: Option<String>,
    bypass: Vec<String>,
}

fn start(options: &Options, reporter: &Reporter) -> Result<Running, RunError> {
    let settings = &options.settings;
    if !reporter.is_background() {
        telemetry::start(&settings.log).map_err(RunError::Log)?;
    }
    raise_descriptor_limit();
    let mut place = open_place(options)?;
    let key = StateDir::key(place.backing.identity().as_bytes());
    let mut state = StateDir::open_within(&settings.state, &key, LOCK_WAIT)?;
    replication::remember_ids(&mut state)?;
    place.compare_with(&state);
    let (decided, described) = decide_start(options, &place, &state)?;
    let run = if decided.start == Start::Fenced { Uuid::default() } else { state.begin_run_durably()? };
    let decided = match decided.start {
        Start::Pull => fill_folder(options, &place, &mut state, run, decided, described.as_ref())?,
        Start::Resume if pull::is_half_done(state.path()) => return Err(RunError::HalfPulled(place.dir)),
        Start::Resume | Start::Fenced => decided,
        Start::Push | Start::FirstSync => {
            pull::forget_half_done(state.path()).map_err(system("removing the note of a pull"))?;
            decided
        }
    };
    let fenced = decided.start == Start::Fenced;
    if fenced {
        eprintln!("tandem-mountd: {} is mounted read-only: {}", place.dir.display(), decided.why);
    }
    let backing_dir = place.backing.dir().display().to_string();
    state.update_durably(|state| state.backing_dir = backing_dir)?;
    if reporter.is_background() {
        daemonize::detach_output(&state.path().join("mountd.log")).map_err(system("opening the log"))?;
        telemetry::start(&settings.log).map_err(RunError::Log)?;
    }
    let spec = mount_spec(options, fenced);
    let prepared = mount::prepare(&spec).map_err(|source| RunError::Fuse { dir: place.dir.clone(), source })?;
    let replication = Arc::new(replication::start(
        ReplicationConfig {
            server: options.source.server.clone(),
            volume: options.source.volume.clone(),
            state,
            backing_identity: place.backing.identity().as_bytes().to_vec(),
            decided,
            run,
            reconnect_max: settings.reconnect_max,
            keepalive: settings.keepalive,
            // Where handles do not open, only a walk finds what the marks name.
            reachable_between: place.reachable_between || place.backing.id_form() != IdForm::HandlesOpen,
            shadow: ShadowConfig {
                path: shadow_path(&settings.runtime, &key),
                limit_bytes: settings.shadow_bytes,
                place: backing_place(options, &place),
            },
            client_name: client_name(place.backing.dir()),
            window_bytes: settings.window_bytes,
            bandwidth_limit: settings.bandwidth_limit,
            resync_full: settings.resync_full,
            dirty_bytes: settings.dirty_bytes,
            marks_hot: settings.marks_hot,
            fsync_timeout: settings.fsync_timeout,
            congestion: settings.congestion,
            excludes: settings.exclude.texts(),
        },
        place.backing.clone(),
    )?);
    let result = serve(options, place, &spec, prepared, &replication, &key);
    if result.is_err() {
        // Nothing was changed through a mount, but it is also not the end of one.
        replication.shutdown(false, false);
    }
    result
}

/// Makes the mount appear and answers it.
fn serve(
    options: &Options,
    place: Place,
    spec: &MountSpec,
    prepared: Option<Prepared>,
    replication: &Arc<Replication>,
    key: &str,
) -> Result<Running, RunError> {
    let settings = &options.settings;
    let fuse_failed = |source| RunError::Fuse { dir: place.dir.clone(), source };
    let vfs = Vfs::new(place.backing.clone(), replication.commit.clone(), settings.fsync.clone());
    let vfs = vfs.map_err(system("looking at the backing directory"))?.with_cache_mode(settings.cache_mode);
    let vfs = vfs.with_passthrough(settings.passthrough.clone());
    let vfs = Arc::new(vfs);
    let (fuse, detached) = match prepared {
        Some(Prepared { fuse, detached }) => (fuse, Some(detached)),
        None => (mount::mount_by_helper(&place.dir, spec).map_err(fuse_failed)?, None),
    };
    let connection = Connection::open(fuse, vfs.clone()).map_err(fuse_failed)?;
    let connection = connection.with_busy_poll(settings.busy_poll);
    let (meters, waiting) = (connection.meters(), connection.waiting());
    let teller: Arc<OnceLock<Tell>> = Arc::default();
    let inside = teller.clone();
    connection.show_inside(Box::new(move |name| inside.get().map_or_else(String::new, |tell| tell(name))));
    let (send_end, ended) = mpsc::channel();
    let settling = vfs.clone();
    spawn("settler", move || settling.run_settler())?;
    let end = send_end.clone();
    spawn("fuse", move || {
        let _ = end.send(End::Unmounted(connection.serve()));
    })?;
    if let Some(detached) = detached {
        detached.attach(&place.dir, place.present)?;
    }
    if let Some(connection) = mount::connection_name(&place.dir) {
        replication.note_mounted(&connection);
    }
    if let Err(error) = mount::read_ahead::set(&place.dir, settings.read_ahead_bytes) {
        tracing::debug!(%error, "the kernel reads ahead as far as it likes");
    }
    let (flush_interval, flusher) = start_flusher(options, &place.dir, &vfs)?;
    let verifier = Verifier::start(
        vfs.clone(),
        place.backing.clone(),
        replication.commit.clone(),
        replication.state_dir(),
        settings.verify,
    );
    replication.verify_with(verifier.map_err(system("starting a thread"))?);
    let effective = Effective::default();
    // Read a moment ago, and understood then.
    *effective.lock() = options.layers.settings().map(|(_, shown)| shown).unwrap_or_default();
    let mounted = Mounted::new(place.dir.clone(), vfs, place.bypass, meters).with_flush_interval(flush_interval);
    let mounted = Arc::new(mounted.with_waiting(waiting).with_settings(effective.clone()));
    let socket = admin::socket_path(&settings.runtime, key);
    let admin = admin::serve(&socket, settings.web, replication.clone(), mounted.clone()).map_err(|source| {
        let _ = mount::unmount(&place.dir, true);
        RunError::System { what: "opening the admin socket, or the page", source }
    })?;
    let _ = teller.set(admin.teller());
    tracing::info!(dir = %place.dir.display(), source = %options.source.text, "mounted");
    let reload = Reload::new(options.layers.clone(), effective, replication.clone());
    Ok(Running { mounted, replication: replication.clone(), ended, send_end, admin, flusher, reload })
}

/// What `cache=writeback` needs beside the kernel's part: a share of the dirty memory, and the timer.
fn start_flusher(
    options: &Options,
    dir: &Path,
    vfs: &Arc<Vfs<Commit>>,
) -> Result<(Duration, Option<Flusher>), RunError> {
    let settings = &options.settings;
    if settings.cache_mode == CacheMode::Strict {
        return Ok((Duration::ZERO, None));
    }
    if let Err(error) = mount::budget::raise(dir, settings.dirty_percent) {
        tracing::info!(%error, "the kernel keeps little of what is written to this mount; as root it would keep more");
    }
    let interval = settings.flush_interval;
    let flusher = Flusher::start(dir.to_owned(), vfs.clone(), interval).map_err(system("starting a thread"))?;
    Ok((interval, Some(flusher)))
}

fn open_place(options: &Options) -> Result<Place, RunError> {
    let settings = &options.settings;
    if settings.passthrough.pass_any() && !rustix::process::geteuid().is_root() {
        return Err(RunError::NeedsRoot("passthrough"));
    }
    let (dir, mut present) = mount::survey(&options.dir)?;
    // A change would wait for a mark in a file that waits for the change.
    for (key, path) in [("state", &settings.state), ("runtime", &settings.runtime)] {
        if path.starts_with(&dir) {
            return Err(RunError::Inside { key, path: path.clone(), dir });
        }
    }
    let dead = if present == Present::DeadMount { mount::connection_name(&dir) } else { None };
    let in_place = settings.backing.is_none();
    let backing_dir = match &settings.backing {
        Some(backing) => {
            let failed = |source| BackingError::Open { dir: backing.clone(), source };
            backing.canonicalize().map_err(failed)?
        }
        None => dir.clone(),
    };
    let beneath = in_place && present == Present::DeadMount;
    let mut reachable_between = !beneath;
    let opened = match Backing::open(&backing_dir, beneath, settings.weak_ids) {
        Err(BackingError::Open { source, .. }) if beneath && source.raw_os_error() == Some(libc::EPERM) => {
            // Who may not look beneath a mount has to take the dead one off first.
            mount::unmount(&dir, true).map_err(system("taking the dead mount off"))?;
            present = Present::Directory;
            reachable_between = true;
            Backing::open(&backing_dir, false, settings.weak_ids)
        }
        other => other,
    };
    let mut backing = opened?;
    backing.exclude(settings.exclude.clone());
    let backing = Arc::new(backing);
    let bypass = if beneath { Vec::new() } else { bypass::holders(&backing_dir) };
    Ok(Place { dir, present, backing, reachable_between, dead, bypass })
}

/// Whether what is in the backing directory is what the last run left in memory of the kernel.
fn backing_place(options: &Options, place: &Place) -> BackingPlace {
    match (place.reachable_between, place.present) {
        (false, _) => BackingPlace::BeneathOwnMount,
        (true, Present::DeadMount) if options.settings.backing.is_none() => BackingPlace::Unknown,
        (true, _) => unique_mount_id(place.backing.dir()),
    }
}

impl Place {
    /// What the state remembers of the last mount. The folder was out of reach since then only if it was that mount that died here.
    fn compare_with(&mut self, state: &StateDir) {
        if !self.reachable_between && self.dead.as_deref() != Some(state.state().mounted_as.as_str()) {
            tracing::info!("the dead mount here was another one: changes around the mount are looked for");
            self.reachable_between = true;
        }
    }
}

fn decide_start(options: &Options, place: &Place, state: &StateDir) -> Result<(Decided, Option<Described>), RunError> {
    let Options { source, settings, .. } = options;
    if replacing(settings.init).is_none() && replication::remember::went_back_in_time(state, &*place.backing) {
        return Err(RunError::WentBack(place.backing.dir().to_owned()));
    }
    let described = describe_blocking(&source.server, &source.volume, DESCRIBE_TIMEOUT);
    let decided = decide(&StartFacts {
        state: state.state(),
        client_id: state.client_id(),
        backing_identity: place.backing.identity().as_bytes(),
        backing_empty: is_empty(&place.backing).map_err(system("listing the folder"))?,
        root_marked: replication::root_marked(state),
        floor: replication::floor(state),
        half_pulled: pull::is_half_done(state.path()),
        described: described.as_ref().map_err(ToString::to_string),
        init: settings.init,
        takeover: settings.takeover,
        look_only: settings.read_only,
        volume: source.volume.as_str(),
        server: &source.server.to_string(),
        elsewhere: state.elsewhere(&settings.state, place.backing.dir(), source.volume.as_str()),
    })?;
    Ok((decided, described.ok()))
}

/// A push replaces whatever was, so the past of the folder does not matter.
fn replacing(init: Option<Init>) -> Option<Init> {
    init.filter(|init| *init == Init::Push)
}

/// Fills the folder from the replica, telling how far it is, unless it was filled before; how to go on then.
fn fill_folder(
    options: &Options,
    place: &Place,
    state: &mut StateDir,
    run: Uuid,
    decided: Decided,
    described: Option<&Described>,
) -> Result<Decided, RunError> {
    let Options { source, .. } = options;
    if decided.have.is_some() {
        return Ok(decided);
    }
    if let (true, Some(described)) = (decided.takeover, described) {
        let claimant = Claimant {
            server: &source.server,
            volume: &source.volume,
            described,
            client_id: state.client_id(),
            client_name: client_name(place.backing.dir()),
            run,
        };
        // What is pulled must stay the state of the volume.
        claim::fence_blocking(&claimant).map_err(RunError::Claim)?;
    }
    let directory = match place.present {
        Present::Directory => place.backing.dir().to_owned(),
        // Only our own descriptor reaches it.
        Present::DeadMount => {
            PathBuf::from(format!("/proc/self/fd/{}/.", std::os::fd::AsRawFd::as_raw_fd(&place.backing.root())))
        }
    };
    let shows = io::stderr().is_terminal();
    let pulled = pull::pull_blocking(&source.server, &source.volume, &directory, state.path(), &mut |pulled| {
        if shows {
            eprint!("\rpulled {} files and folders, {} MiB ", pulled.nodes, pulled.bytes >> 20);
        }
    })?;
    eprintln!(
        "{}pulled {} files and folders, {} MiB ",
        if shows { "\r" } else { "" },
        pulled.nodes,
        pulled.bytes >> 20
    );
    replication::remember::note_pulled(
        state,
        &replication::remember::Pulled {
            position: pulled.position,
            volume_id: pulled.volume_id,
            replica_id: pulled.replica_id,
            volume: source.volume.as_str(),
            server: &source.server.to_string(),
            backing_identity: place.backing.identity().as_bytes(),
        },
    )?;
    pull::forget_half_done(state.path()).map_err(system("removing the note of a pull"))?;
    Ok(Decided { takeover: false, have: Some(pulled.position), ..decided })
}

fn mount_spec(options: &Options, fenced: bool) -> MountSpec {
    let settings = &options.settings;
    MountSpec {
        source: options.source.text.clone(),
        allow_other: settings.allow_other.unwrap_or(rustix::process::geteuid().is_root()),
        // What a fenced mount holds is not to be changed by anybody.
        read_only: settings.read_only || fenced,
        suid: settings.suid,
        dev: settings.dev,
        exec: settings.exec,
    }
}

/// Whether the folder has no entries.
fn is_empty(backing: &Backing) -> io::Result<bool> {
    let mut found = false;
    let listed = backing.list(&tandem_proto::InodeId::ROOT, &mut |entry| {
        // A fresh file system has a lost+found, which says nothing.
        if entry.name.as_bytes() == b"lost+found" {
            return Ok(());
        }
        found = true;
        Err(io::ErrorKind::Interrupted.into())
    });
    match listed {
        Err(_) if found => Ok(false),
        other => other.map(|_| true),
    }
}

/// user@host:/path, for people.
fn client_name(dir: &Path) -> String {
    // Services and lines of /etc/fstab have no USER.
    let user = std::env::var("USER").unwrap_or_else(|_| match rustix::process::geteuid() {
        id if id.is_root() => "root".to_owned(),
        id => id.as_raw().to_string(),
    });
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}:{}", host.trim(), dir.display())
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<(), RunError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(system("starting a thread"))?;
    Ok(())
}

/// Every open file of the mount is one of ours.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}

impl Running {
    /// Until the mount is gone.
    fn wait(self, signals: Signals) -> ExitCode {
        let Running { mounted, replication, ended, send_end, admin, flusher, reload } = self;
        let ending = mounted.clone();
        let watching = spawn("signals", move || {
            // A terminal that goes away says so with the same signal.
            let of_terminal = io::stdin().is_terminal();
            while signals.wait() == libc::SIGHUP && !of_terminal {
                reload.now();
            }
            drop(reload);
            tracing::info!("asked to end");
            ending.end();
            thread::sleep(END_GRACE);
            let _ = send_end.send(End::GraceIsOver);
        });
        if let Err(error) = watching {
            tracing::error!(%error, "signals are not answered");
        }
        let (clean, code) = match ended.recv() {
            Ok(End::Unmounted(Ok(()))) => (true, ExitCode::SUCCESS),
            Ok(End::Unmounted(Err(error))) => {
                tracing::error!(%error, "the connection to the kernel broke");
                (false, ExitCode::FAILURE)
            }
            Ok(End::GraceIsOver) | Err(_) => {
                tracing::warn!("the mount is still in use by somebody, who is cut off now");
                (false, ExitCode::SUCCESS)
            }
        };
        drop(flusher);
        mounted.vfs().settle_all();
        mounted.vfs().stop_settler();
        let empty = is_empty(mounted.vfs().backing()).unwrap_or(false);
        drop(admin);
        if let Some(verifier) = replication.verifier() {
            verifier.stop();
        }
        replication.shutdown(clean, empty);
        tracing::info!("ended");
        code
    }
}

/// SIGTERM and SIGINT, which end the mount, and SIGHUP; kept for one thread.
struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    fn block() -> Signals {
        // SAFETY: the set is initialised by sigemptyset before it is used; the calls touch nothing else.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Signals { set }
        }
    }

    /// Until one of them comes; which.
    fn wait(&self) -> libc::c_int {
        let mut signal = 0;
        // SAFETY: both pointers are to live objects of the right types.
        unsafe { libc::sigwait(&raw const self.set, &raw mut signal) };
        signal
    }
}
