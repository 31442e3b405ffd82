//! A mount of a lab.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::mount::UnmountFlags;
use tandem_proto::pb;

use crate::harness::{Lab, Storage, daemon::Daemon, eventually, rpc};

/// What to mount where.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// `HOST:PORT:/VOLUME`.
    pub source: String,
    /// The directory to mount over.
    pub mountpoint: PathBuf,
    /// `-o`, if not empty.
    pub options: String,
    /// `--state`; else the lab's.
    pub state: Option<PathBuf>,
    /// What runs the daemon and becomes it; empty: nothing does.
    pub tracer: Vec<OsString>,
}

impl MountSpec {
    /// A volume of this storage, without options.
    pub fn new(storage: &Storage, volume: &str, mountpoint: &Path) -> Self {
        let source = format!("127.0.0.1:{}:/{volume}", storage.port());
        MountSpec { source, mountpoint: mountpoint.to_owned(), options: String::new(), state: None, tracer: Vec::new() }
    }

    /// The same with options.
    #[must_use]
    pub fn options(mut self, options: &str) -> Self {
        self.options = options.to_owned();
        self
    }

    /// The same with a state directory of its own.
    #[must_use]
    pub fn state(mut self, state: &Path) -> Self {
        self.state = Some(state.to_owned());
        self
    }

    /// The same, run by a program that becomes the daemon.
    #[must_use]
    pub fn run_by(mut self, tracer: &[&str]) -> Self {
        self.tracer = tracer.iter().map(|word| (*word).into()).collect();
        self
    }

    /// Arguments of tandem-mountd.
    pub fn args(&self, foreground: bool) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![self.source.clone().into(), self.mountpoint.clone().into()];
        if foreground {
            args.push("-f".into());
        }
        if let Some(state) = &self.state {
            args.extend(["--state".into(), state.into()]);
        }
        if !self.options.is_empty() {
            args.extend(["-o".into(), self.options.clone().into()]);
        }
        args
    }
}

/// A mountd in the foreground.
#[derive(Clone, Debug)]
pub struct Mount {
    daemon: Arc<Daemon>,
    mountpoint: PathBuf,
    runtime: PathBuf,
    socket: Arc<Mutex<PathBuf>>,
}

/// Time in which a mount must serve. A pull of a test's tree fits in it.
const START_LIMIT: Duration = Duration::from_secs(90);

impl Mount {
    /// Starts it and waits until it serves; its log if it ended instead.
    pub fn start(lab: &Lab, spec: &MountSpec) -> Result<Mount, String> {
        let daemon = lab.daemon("mount", "tandem-mountd");
        daemon.run_by(&spec.tracer.iter().map(OsString::as_os_str).collect::<Vec<_>>());
        let mut args = spec.args(true);
        if let Some(seconds) = lab.keepalive() {
            args.extend(["-o".into(), format!("keepalive={seconds}").into()]);
        }
        daemon.set_args(args);
        let mount = Mount {
            daemon,
            mountpoint: spec.mountpoint.clone(),
            runtime: lab.runtime_dir(),
            socket: Arc::new(Mutex::new(PathBuf::new())),
        };
        lab.will_unmount(&spec.mountpoint);
        mount.start_again()?;
        Ok(mount)
    }

    /// Starts it again with the same arguments and waits until it serves.
    pub fn start_again(&self) -> Result<(), String> {
        self.daemon.start();
        let mut ended = None;
        let serves = eventually(START_LIMIT, || {
            ended = self.daemon.ended();
            ended.is_some() || self.find_socket()
        });
        match ended {
            Some(status) => Err(format!("mountd ended ({status}):\n{}", self.daemon.log_text())),
            None if serves => Ok(()),
            None => Err(format!("mountd does not serve after {START_LIMIT:?}:\n{}", self.daemon.log_text())),
        }
    }

    /// Finds the socket behind which our process answers; an older one may be left from a run that was killed.
    fn find_socket(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.runtime) else { return false };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_socket = name.to_str().is_some_and(|name| name.starts_with("mount-") && name.ends_with(".sock"));
            if !is_socket {
                continue;
            }
            if rpc::mount_status(&entry.path()).is_ok_and(|status| Some(status.pid) == self.daemon.pid()) {
                *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = entry.path();
                return true;
            }
        }
        false
    }

    /// Its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The process.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Its status; panics if it does not answer.
    pub fn status(&self) -> pb::MountStatus {
        let reply = rpc::mount_status(&self.socket()).unwrap_or_else(|error| panic!("mountd does not answer: {error}"));
        reply.mounts.into_iter().next().unwrap_or_else(|| panic!("mountd tells of no mount"))
    }

    /// Waits until everything done so far is applied; panics with the reason if it is not within `limit`.
    pub fn wait(&self, limit: Duration) {
        match rpc::wait(&self.socket(), limit) {
            Ok(reply) if reply.reached => {}
            Ok(reply) => panic!("not applied within {limit:?}: {reply:?}\n{:#?}", self.status()),
            Err(error) => panic!("mountd does not answer a wait: {error}"),
        }
    }

    /// [`Self::wait`] with a limit that fits every test.
    pub fn settle(&self) {
        self.wait(Duration::from_secs(300));
    }

    /// SIGKILL. The dead mount stays.
    pub fn kill(&self) {
        self.daemon.kill();
    }

    /// Detaches a mount whose daemon is gone.
    pub fn detach(&self) {
        unmount_lazily(&self.mountpoint);
    }

    /// Unmounts as umount(8) does and waits for the daemon's end.
    pub fn unmount(&self) {
        let begin = std::time::Instant::now();
        loop {
            match rustix::mount::unmount(&self.mountpoint, UnmountFlags::empty()) {
                Ok(()) => break,
                // A process that just exited may still be on its way out.
                Err(rustix::io::Errno::BUSY) if begin.elapsed() < Duration::from_secs(60) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => panic!("umount {}: {error}", self.mountpoint.display()),
            }
        }
        let ended =
            eventually(Duration::from_secs(150), || self.daemon.ended().is_some() || self.daemon.pid().is_none());
        assert!(ended, "mountd runs on 150 s after its mount is gone:\n{}", self.daemon.log_text());
    }
}

/// Detaches whatever is mounted at a path, all of it, without waiting.
pub(super) fn unmount_lazily(mountpoint: &Path) {
    for _ in 0..4 {
        if !is_mounted(mountpoint) || rustix::mount::unmount(mountpoint, UnmountFlags::DETACH).is_err() {
            break;
        }
    }
}

/// Whether a FUSE file system is mounted there, alive or dead.
pub fn is_mounted(mountpoint: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = mountpoint.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    table.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.nth(4) == Some(&wanted) && line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("fuse"))
    })
}
