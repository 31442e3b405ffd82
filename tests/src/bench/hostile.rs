//! What clients feel while others attack: the durable fsync of one, first alone, then beside attackers of each kind on one core.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::{Lab, MountSpec, Storage, rpc},
    hostile::{self, RUN, Session, crowd, lies},
    rng::content,
};

/// Connections of the crowd.
const CROWD: usize = 10_000;
/// Between two writes of the client that is measured.
const PAUSE: Duration = Duration::from_millis(3);
/// What an attacker has at least before the measurement begins.
const WARM: Duration = Duration::from_secs(3);

/// What an attacker does, until it is killed.
pub const KINDS: [&str; 4] = ["crowd", "handshakes", "lies", "calls"];

/// Times of one client's durable fsyncs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The middle one.
    pub p50: Duration,
    /// One in a hundred takes longer.
    pub p99: Duration,
    /// How many there were.
    pub count: usize,
}

/// What one run showed.
#[derive(Clone, Debug)]
pub struct Figures {
    /// With nobody else.
    pub idle: Times,
    /// Beside all attackers at once.
    pub attacked: Times,
    /// What the storage daemon's memory grew by, at its highest.
    pub grown_kib: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |times: &Times| {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            format!("p50 {:.2} ms, p99 {:.2} ms of {}", ms(times.p50), ms(times.p99), times.count)
        };
        write!(
            f,
            "durable write of 4 KiB: alone {}; attacked {}; the storage daemon grew by {} MiB",
            show(&self.idle),
            show(&self.attacked),
            self.grown_kib >> 10
        )
    }
}

/// A figure of `/proc/PID/status`, in KiB.
fn memory_kib(storage: &Storage, what: &str) -> u64 {
    let pid = storage.daemon().pid().unwrap_or_default();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

fn times(folder: &Path, time: Duration) -> io::Result<Times> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join("probe"))?;
    let data = content(1, 4096);
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let at = took.len() as u64 % 1000;
        let started = Instant::now();
        file.write_all_at(&data, at * 4096)?;
        file.sync_all()?;
        took.push(started.elapsed());
        thread::sleep(PAUSE);
    }
    took.sort_unstable();
    let part = |of: usize| took.get(took.len() * of / 100).copied().unwrap_or_default();
    Ok(Times { p50: part(50), p99: part(99), count: took.len() })
}

/// Ends with this.
struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// Another process of this program, niced, on the first core.
fn attacker(kind: &str, port: u16, identity: &Path) -> io::Result<Attacker> {
    let mut command = Command::new("nice");
    command.args(["-n", "19", "taskset", "-c", "0"]).arg(std::env::current_exe()?);
    command.args(["attack", kind, &port.to_string()]).arg(identity).stdin(Stdio::null());
    command.stdout(Stdio::null()).spawn().map(Attacker)
}

/// Measures for so long each time. `kinds`: of attackers.
pub fn measure(lab: &Lab, time: Duration, kinds: &[String]) -> io::Result<Figures> {
    lab.allow_lost_peers();
    lab.allow("refused", "the attackers lie");
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    let server = format!("127.0.0.1:{}", storage.port());
    let invited = lab.tandem(&["invite", "victim", "--server", &server, "--address", &server]).expect_success("invite");
    let token = invited.stdout.split_whitespace().last().unwrap_or_default().to_owned();
    lab.tandem(&["join", &server, &token, "--name", "victim"]).expect_success("join");
    let mount = lab.mount_with(&MountSpec::new(&storage, "victim", &folder).options("fsync=durable"));
    mount.settle();
    times(&folder, Duration::from_secs(1))?;
    let idle = times(&folder, time)?;
    let before = memory_kib(&storage, "VmRSS");
    let attackers = kinds.iter().map(|kind| {
        let identity = hostile::join(lab, &storage, &format!("attacker-{kind}"));
        attacker(kind, storage.port(), &identity)
    });
    let mut attackers: Vec<Attacker> = attackers.collect::<io::Result<_>>()?;
    thread::sleep(WARM);
    let attacked = times(&folder, time)?;
    for (attacker, kind) in attackers.iter_mut().zip(kinds) {
        if let Some(status) = attacker.0.try_wait()? {
            return Err(io::Error::other(format!("the attacker of kind {kind} ended: {status}")));
        }
    }
    let grown_kib = memory_kib(&storage, "VmHWM").saturating_sub(before);
    drop(attackers);
    mount.settle();
    mount.unmount();
    Ok(Figures { idle, attacked, grown_kib })
}

/// Attacks until it is killed; returns only if it cannot go on.
pub fn attack(kind: &str, port: u16, identity: &Path) -> Result<(), String> {
    match kind {
        "crowd" => {
            if !crowd::may_have(CROWD as u64) {
                return Err("no descriptors for a crowd".to_owned());
            }
            let mut crowd = crowd::Crowd::default();
            loop {
                if crowd.len() < CROWD {
                    crowd.grow(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
                } else {
                    crowd.trickle();
                    thread::sleep(Duration::from_millis(500));
                }
            }
        }
        "handshakes" => loop {
            // The answer does not matter, also not that there is none.
            let _ = rpc::block_on(hostile::connect(port, identity));
        },
        "lies" => loop {
            let _ = rpc::block_on(lie(port, identity));
        },
        "calls" => loop {
            let _ = rpc::block_on(calls(port, identity));
        },
        _ => Err(format!("no such attack: {kind}; there are {KINDS:?}")),
    }
}

async fn lie(port: u16, identity: &Path) -> Result<(), tonic::Status> {
    let channel = hostile::connect(port, identity).await?;
    let mut session = Session::open(&channel, RUN).await?;
    session.go_live().await?;
    let lies = lies::all(&session);
    drop(session);
    for (_, bytes) in lies {
        let session = Session::open(&channel, RUN).await?;
        session.send_raw(bytes).await;
        let _ = tokio::time::timeout(hostile::SOON, session.refused()).await;
    }
    Ok(())
}

async fn calls(port: u16, identity: &Path) -> Result<(), tonic::Status> {
    use tandem_proto::pb::{StatusRequest, admin_client::AdminClient};
    let channel = hostile::connect(port, identity).await?;
    for _ in 0..1000 {
        // Most are refused: too many.
        let _ = AdminClient::new(channel.clone()).status(StatusRequest::default()).await;
    }
    Ok(())
}
