//! Runs a program to its end, with a limit on its time.

use std::{
    io::Read as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// It was killed because it took longer than its limit.
    pub timed_out: bool,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Panics with its output unless it exited with 0.
    pub fn expect_success(self, what: &str) -> Finished {
        assert!(self.code == Some(0) && !self.timed_out, "{what} failed: {self:#?}");
        self
    }

    /// Standard output and error together, for messages that may go to either.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A binary of the workspace: in `$TANDEM_BIN_DIR`, else in the target directory of the running test.
pub fn binary(name: &str) -> PathBuf {
    let dir = match std::env::var_os("TANDEM_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let test = std::env::current_exe().expect("a running program has a path");
            let dir = test.parent().expect("a program lies in a directory");
            // Tests lie in target/PROFILE/deps, programs in target/PROFILE.
            let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
            dir.to_owned()
        }
    };
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run `cargo test --workspace`, which builds the daemons", path.display());
    path
}

/// Runs a tool of the system to its end; the error says that it is not installed, or what it said.
pub fn system(program: &str, args: &[&str]) -> Result<Finished, String> {
    let found = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH often lacks the directories of the system's tools.
    let path = std::env::join_paths(std::env::split_paths(&found).chain(["/usr/sbin".into(), "/sbin".into()]));
    let mut command = Command::new("env");
    command.env("PATH", path.unwrap_or(found)).arg(program).args(args);
    let finished = run(&mut command, Duration::from_secs(60));
    match finished.code {
        Some(0) => Ok(finished),
        Some(127) => Err(format!("{program} is not installed")),
        _ => Err(format!("{program} {args:?}: {}", finished.text().trim())),
    }
}

/// Runs a command with a limit. Its output is collected, also when it is killed.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let readers = [
        child.stdout.take().map(|mut pipe| collect(move |text| pipe.read_to_end(text))),
        child.stderr.take().map(|mut pipe| collect(move |text| pipe.read_to_end(text))),
    ];
    let mut timed_out = false;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if begin.elapsed() > limit => {
                timed_out = true;
                let _ = child.kill();
                break child.wait().ok();
            }
            Ok(None) => thread::sleep(Duration::from_millis(2)),
            Err(_) => break None,
        }
    };
    let took = begin.elapsed();
    // A daemon that the command left behind may hold its pipes open: do not wait for their end longer than for the command.
    let [stdout, stderr] =
        readers.map(|reader| reader.map_or_else(String::new, |reader| reader.text(status.is_some())));
    Finished { code: status.and_then(|status| status.code()), stdout, stderr, timed_out, took }
}

struct Collector(std::sync::mpsc::Receiver<Vec<u8>>);

fn collect(mut read: impl FnMut(&mut Vec<u8>) -> std::io::Result<usize> + Send + 'static) -> Collector {
    let (send, receive) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let _ = read(&mut text);
        let _ = send.send(text);
    });
    Collector(receive)
}

impl Collector {
    fn text(self, ended: bool) -> String {
        let limit = Duration::from_secs(if ended { 2 } else { 0 });
        match self.0.recv_timeout(limit) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => "(its output is still held open by a process that it left behind)".to_owned(),
        }
    }
}
