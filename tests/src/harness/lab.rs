//! A temporary directory with daemons in it.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::harness::{
    Finished, MountSpec,
    daemon::Daemon,
    mount::{self, Mount},
    run::{binary, run},
    seconds,
    storage::Storage,
    turns::Turn,
};

/// Time that a test may take beyond `TANDEM_TEST_SECONDS` before everything it started is killed.
const PATIENCE: Duration = Duration::from_secs(420);
/// Lines of each log shown when a test fails.
const TAIL_LINES: usize = 60;

/// Where one test lives. Dropping it ends all daemons, unmounts, and checks the logs.
#[derive(Debug)]
pub struct Lab {
    dir: Option<tempfile::TempDir>,
    allowed: Mutex<Vec<(String, String)>>,
    daemons: Arc<Mutex<Vec<Arc<Daemon>>>>,
    mountpoints: Mutex<Vec<PathBuf>>,
    /// See [`Lab::patient`].
    patient: AtomicBool,
    // Dropping the sender ends the watchdog.
    _watchdog: mpsc::Sender<()>,
    _turn: Turn,
}

fn missing() -> Option<&'static str> {
    if !Path::new("/dev/fuse").exists() {
        Some("/dev/fuse is missing")
    } else if !rustix::process::geteuid().is_root() {
        Some("mounting needs root")
    } else {
        None
    }
}

impl Lab {
    /// A new lab; `None`, with a message, where mounts are impossible.
    pub fn new(name: &str) -> Option<Lab> {
        if let Some(why) = missing() {
            eprintln!("SKIPPED {name}: {why}");
            return None;
        }
        let turn = Turn::wait();
        let dir = tempfile::Builder::new().prefix(&format!("tandem-{name}-")).tempdir().expect("a temporary directory");
        for part in ["run", "state", "logs", "work"] {
            fs::create_dir(dir.path().join(part)).expect("the temporary directory is writable");
        }
        let daemons = Arc::new(Mutex::new(Vec::new()));
        let watchdog = watch(name.to_owned(), Arc::clone(&daemons));
        Some(Lab {
            dir: Some(dir),
            // Names that are made, removed and made as another kind within a moment can still meet in `history/` (docs/LIMITS.md). The replica
            // is right all the same; tests of what is kept look at what is kept.
            allowed: Mutex::new(vec![("a deleted file is not kept".to_owned(), "storms of names".to_owned())]),
            daemons,
            mountpoints: Mutex::default(),
            patient: AtomicBool::new(true),
            _watchdog: watchdog,
            _turn: turn,
        })
    }

    /// The lab's directory.
    pub fn root(&self) -> &Path {
        self.dir.as_ref().expect("only drop takes it").path()
    }

    /// A path in the lab for the test's own things; not created.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join("work").join(name)
    }

    /// A new empty directory in the lab.
    pub fn new_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("the lab is writable");
        path
    }

    /// TANDEM_RUNTIME_DIR of everything in the lab.
    pub fn runtime_dir(&self) -> PathBuf {
        self.root().join("run")
    }

    /// TANDEM_STATE_DIR of the mounts in the lab.
    pub fn state_dir(&self) -> PathBuf {
        self.root().join("state")
    }

    /// From now on daemons are started with the keepalive that users have. Without this they have a longer one: on a machine that is
    /// busy with other tests a daemon may well be silent for two seconds, and a test of something else is not about that.
    pub fn impatient(&self) {
        self.patient.store(false, Ordering::Relaxed);
    }

    /// Seconds of keepalive for daemons, where it is not that of users.
    pub(super) fn keepalive(&self) -> Option<&'static str> {
        self.patient.load(Ordering::Relaxed).then_some("30")
    }

    /// Lets daemons log a WARN or ERROR that contains `part`.
    pub fn allow(&self, part: &str, why: &str) {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).push((part.to_owned(), why.to_owned()));
    }

    /// Lets daemons log what a peer that is killed or cut off makes them log.
    pub fn allow_lost_peers(&self) {
        for part in [
            "connection",
            "connect",
            "transport",
            "stream",
            "lost",
            "offline",
            "unreachable",
            "session",
            "hung up",
            "closed",
        ] {
            self.allow(part, "the peer is killed or cut off by this test");
        }
    }

    pub(super) fn envs(&self) -> Vec<(String, OsString)> {
        let log = std::env::var_os("TANDEM_LOG").unwrap_or_else(|| "info".into());
        vec![
            ("TANDEM_RUNTIME_DIR".to_owned(), self.runtime_dir().into()),
            ("TANDEM_STATE_DIR".to_owned(), self.state_dir().into()),
            ("TANDEM_LOG".to_owned(), log),
            ("RUST_BACKTRACE".to_owned(), "1".into()),
        ]
    }

    pub(super) fn daemon(&self, name: &str, program: &str) -> Arc<Daemon> {
        let mut daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        let log = self.root().join("logs").join(format!("{name}-{}.log", daemons.len()));
        let daemon = Arc::new(Daemon::new(name, binary(program), self.envs(), log));
        daemons.push(Arc::clone(&daemon));
        daemon
    }

    /// A daemon that another program runs, and becomes.
    pub(super) fn daemon_under(&self, name: &str, program: &str, tracer: &[&OsStr]) -> Arc<Daemon> {
        let daemon = self.daemon(name, program);
        daemon.run_by(tracer);
        daemon
    }

    pub(super) fn will_unmount(&self, mountpoint: &Path) {
        self.mountpoints.lock().unwrap_or_else(PoisonError::into_inner).push(mountpoint.to_owned());
    }

    /// A command with the lab's environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        command.envs(self.envs());
        command
    }

    /// Runs the `tandem` command.
    pub fn tandem(&self, args: &[&str]) -> Finished {
        run(self.command("tandem").args(args), Duration::from_secs(300))
    }

    /// A storage daemon on a free port, serving.
    pub fn storage(&self) -> Storage {
        Storage::start(self, "storage")
    }

    /// A mount in the foreground, serving. Panics with its log if it does not come up.
    pub fn mount(&self, storage: &Storage, volume: &str, dir: &Path) -> Mount {
        self.mount_with(&MountSpec::new(storage, volume, dir))
    }

    /// A mount with options.
    pub fn mount_with(&self, spec: &MountSpec) -> Mount {
        match Mount::start(self, spec) {
            Ok(mount) => mount,
            Err(ended) => panic!("{spec:?} did not come up: {ended}"),
        }
    }

    /// A mount that is expected to be refused: what it said. Panics if it serves, or if it says nothing for 40 s.
    pub fn mount_refused(&self, spec: &MountSpec) -> Finished {
        let finished = run(self.command("tandem-mountd").args(spec.args(true)), Duration::from_secs(120));
        if finished.timed_out {
            mount::unmount_lazily(&spec.mountpoint);
            panic!("{spec:?} was neither refused nor did it end: {finished:#?}");
        }
        finished
    }

    fn unexpected_lines(&self) -> Vec<String> {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        let daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        for daemon in daemons.iter() {
            for line in daemon.log_text().lines() {
                let panicked = line.contains("panicked at");
                let bad = panicked || line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("ERROR ");
                if bad && (panicked || !allowed.iter().any(|(part, _)| line.contains(part.as_str()))) {
                    lines.push(format!("{}: {line}", daemon.name()));
                }
            }
        }
        lines
    }

    fn stop_everything(&self) {
        for mountpoint in self.mountpoints.lock().unwrap_or_else(PoisonError::into_inner).iter().rev() {
            mount::unmount_lazily(mountpoint);
        }
        for daemon in self.daemons.lock().unwrap_or_else(PoisonError::into_inner).iter().rev() {
            daemon.kill();
        }
        for mountpoint in self.mountpoints.lock().unwrap_or_else(PoisonError::into_inner).iter().rev() {
            mount::unmount_lazily(mountpoint);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop_everything();
        if thread::panicking() {
            show_tails(&self.daemons);
            if std::env::var_os("TANDEM_TEST_KEEP").is_some() {
                let kept = self.dir.take().map(tempfile::TempDir::keep);
                eprintln!("kept: {kept:?}");
            }
            return;
        }
        let lines = self.unexpected_lines();
        if !lines.is_empty() {
            show_tails(&self.daemons);
            panic!(
                "unexpected lines in the daemons' logs (a test may allow them with a reason):\n{}",
                lines.join("\n")
            );
        }
    }
}

fn show_tails(daemons: &Mutex<Vec<Arc<Daemon>>>) {
    for daemon in daemons.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let text = daemon.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        eprintln!(
            "---- log of {} (last {} of {} lines) ----\n{}",
            daemon.name(),
            tail.len(),
            lines.len(),
            tail.join("\n")
        );
    }
}

/// A daemon that hangs would hang the test in an uninterruptible call. Killing mountd ends the FUSE connection and frees it.
fn watch(name: String, daemons: Arc<Mutex<Vec<Arc<Daemon>>>>) -> mpsc::Sender<()> {
    let (alive, ended) = mpsc::channel::<()>();
    let limit = PATIENCE + seconds(0);
    thread::spawn(move || {
        if ended.recv_timeout(limit) != Err(mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        eprintln!("{name}: still running after {limit:?}; killing its daemons");
        show_tails(&daemons);
        for daemon in daemons.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            daemon.signal(libc::SIGKILL);
        }
        if ended.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name}: does not end even so; aborting");
            std::process::abort();
        }
    });
    alive
}
