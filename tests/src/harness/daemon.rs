//! One daemon process that can be killed and started again, and its log.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::harness::eventually;

/// A daemon that is or was running.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    args: Mutex<Vec<OsString>>,
    /// What runs the program, with its arguments; empty: it is run as it is.
    tracer: Mutex<Vec<OsString>>,
    envs: Vec<(String, OsString)>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    /// A daemon that does not run yet. Its standard output and error go to `log`.
    pub fn new(name: &str, program: PathBuf, envs: Vec<(String, OsString)>, log: PathBuf) -> Self {
        let (args, tracer) = (Mutex::default(), Mutex::default());
        Daemon { name: name.to_owned(), program, args, tracer, envs, log, child: Mutex::new(None) }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it logs.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Arguments of the next start.
    pub fn set_args(&self, args: Vec<OsString>) {
        *self.args.lock().unwrap_or_else(PoisonError::into_inner) = args;
    }

    /// From its next start on it is run by this program, whose process becomes it.
    pub fn run_by(&self, tracer: &[&OsStr]) {
        let tracer = tracer.iter().map(|word| (*word).to_owned()).collect();
        *self.tracer.lock().unwrap_or_else(PoisonError::into_inner) = tracer;
    }

    /// Starts it; it must not be running.
    pub fn start(&self) {
        let mut child = self.child();
        assert!(child.is_none(), "{} runs already", self.name);
        let args = self.args.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut log: File =
            OpenOptions::new().create(true).append(true).open(&self.log).expect("the lab's directory is writable");
        let _ = writeln!(log, "--- {} {:?}", self.program.display(), args);
        let out = log.try_clone().expect("a descriptor can be copied");
        let tracer = self.tracer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut words = tracer.into_iter().chain([self.program.clone().into()]).chain(args);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words).envs(self.envs.iter().cloned()).stdin(Stdio::null()).stdout(out).stderr(log);
        *child = Some(command.spawn().unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.name)));
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// How it ended, if it ended by itself.
    pub fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.child();
        let status = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        if status.is_some() {
            *child = None;
        }
        status
    }

    /// SIGKILL, and waits until it is gone. Nothing happens if it does not run.
    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        if let Some(pid) = self.pid() {
            // SAFETY: sends a signal to a child that was not waited for, so the id is still its own.
            unsafe { libc::kill(pid as libc::pid_t, signal) };
        }
    }

    /// SIGTERM, then waits; `None` if it did not end within `limit`.
    pub fn terminate(&self, limit: Duration) -> Option<ExitStatus> {
        self.signal(libc::SIGTERM);
        let mut status = None;
        eventually(limit, || {
            status = self.ended();
            status.is_some()
        });
        status
    }

    /// All that it logged, over all its runs.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
