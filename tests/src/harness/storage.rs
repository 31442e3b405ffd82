//! A storage daemon of a lab.

use std::{
    ffi::{OsStr, OsString},
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tandem_proto::pb;

use crate::harness::{Lab, daemon::Daemon, eventually, rpc};

/// A storaged with its own data directory. The port stays the same over restarts.
#[derive(Clone, Debug)]
pub struct Storage {
    daemon: Arc<Daemon>,
    data: PathBuf,
    runtime: PathBuf,
    port: u16,
}

/// Time in which a daemon must begin to serve, recovery of a large log included.
const START_LIMIT: Duration = Duration::from_secs(60);

fn secrets(runtime: &Path) -> Vec<u16> {
    let Ok(entries) = fs::read_dir(runtime) else { return Vec::new() };
    let port = |name: OsString| name.to_str()?.strip_prefix("storaged-")?.strip_suffix(".secret")?.parse().ok();
    entries.flatten().filter_map(|entry| port(entry.file_name())).collect()
}

impl Storage {
    /// Starts one in a new directory `name` of the lab.
    pub fn start(lab: &Lab, name: &str) -> Storage {
        Self::start_in(lab, name, &lab.root().join(name))
    }

    /// Starts one with this data directory.
    pub fn start_in(lab: &Lab, name: &str, data: &Path) -> Storage {
        Self::start_in_with(lab, name, data, &[])
    }

    /// Starts one in a new directory `name` of the lab, with more flags.
    pub fn start_with(lab: &Lab, name: &str, flags: &[&str]) -> Storage {
        Self::start_in_with(lab, name, &lab.root().join(name), flags)
    }

    /// Starts one in a new directory `name` of the lab that listens on all addresses, loopback included.
    pub fn start_open(lab: &Lab, name: &str) -> Storage {
        Self::start_daemon(lab.daemon(name, "tandem-storaged"), lab, &lab.root().join(name), "0.0.0.0", &[])
    }

    /// Starts one in a new directory `name` of the lab as the program that `tracer` runs: its arguments come behind the tracer's, which
    /// has to become the daemon itself.
    pub fn start_under(lab: &Lab, name: &str, tracer: &[&OsStr], flags: &[&str]) -> Storage {
        let daemon = lab.daemon_under(name, "tandem-storaged", tracer);
        Self::start_daemon(daemon, lab, &lab.root().join(name), "127.0.0.1", flags)
    }

    fn start_in_with(lab: &Lab, name: &str, data: &Path, flags: &[&str]) -> Storage {
        Self::start_daemon(lab.daemon(name, "tandem-storaged"), lab, data, "127.0.0.1", flags)
    }

    fn start_daemon(daemon: Arc<Daemon>, lab: &Lab, data: &Path, host: &str, flags: &[&str]) -> Storage {
        let runtime = lab.runtime_dir();
        let before = secrets(&runtime);
        // A page near the port could take the port of another storaged that is started again.
        let keepalive = lab.keepalive().map(|seconds| ["--keepalive".into(), OsString::from(seconds)]);
        let args = |listen: &str| {
            let ours = ["--data".into(), data.into(), "--listen".into(), OsString::from(listen), "--web".into()];
            let more = ["127.0.0.1:0"].iter().chain(flags).map(OsString::from);
            ours.into_iter().chain(more).chain(keepalive.clone().into_iter().flatten()).collect()
        };
        daemon.set_args(args(&format!("{host}:0")));
        daemon.start();
        let mut port = 0;
        let found = eventually(START_LIMIT, || {
            assert!(daemon.ended().is_none(), "storaged ended at its start:\n{}", daemon.log_text());
            port = secrets(&runtime).into_iter().find(|port| !before.contains(port)).unwrap_or(0);
            port != 0
        });
        assert!(found, "storaged wrote no secret within {START_LIMIT:?}:\n{}", daemon.log_text());
        daemon.set_args(args(&format!("{host}:{port}")));
        let storage = Storage { daemon, data: data.to_owned(), runtime, port };
        storage.wait_until_serving();
        storage
    }

    fn wait_until_serving(&self) {
        let serves = eventually(START_LIMIT, || {
            assert!(self.daemon.ended().is_none(), "storaged ended at its start:\n{}", self.daemon.log_text());
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
        assert!(serves, "storaged does not listen after {START_LIMIT:?}:\n{}", self.daemon.log_text());
    }

    /// Starts it again on the same port and waits until it serves.
    pub fn restart(&self) {
        self.daemon.start();
        self.wait_until_serving();
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.daemon.kill();
    }

    /// The process.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The plain tree of a volume.
    pub fn tree(&self, volume: &str) -> PathBuf {
        self.data.join(volume).join("tree")
    }

    /// What a volume kept of states that were replaced.
    pub fn history(&self, volume: &str) -> PathBuf {
        self.data.join(volume).join("history")
    }

    /// The local secret; `None` while there is none.
    pub fn try_secret(&self) -> Option<String> {
        let path = tandem_runtime::secret::path(&self.runtime, self.port);
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    }

    /// The local secret.
    pub fn secret(&self) -> String {
        let path = tandem_runtime::secret::path(&self.runtime, self.port);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    /// Its status.
    pub fn status(&self) -> Result<pb::StatusReply, tonic::Status> {
        rpc::storage_status(self.port, &self.secret())
    }

    /// Status of one volume; panics if it is not there.
    pub fn volume(&self, volume: &str) -> pb::VolumeStatus {
        let status = self.status().unwrap_or_else(|error| panic!("storaged does not answer: {error}"));
        let found = status.volumes.iter().find(|status| status.volume == volume).cloned();
        found.unwrap_or_else(|| panic!("no volume {volume} in {status:#?}"))
    }
}
