//! The directories that are compared: one of the backing file system, mounts with replication in some state, and peers where they are
//! installed. All lie on one file system.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    peers::{self, Peer},
    report::Kind,
};
use crate::{
    harness::{Lab, Mount, MountSpec, Storage, eventually, rpc, system},
    netlab::proxy::{Harm, Proxy},
};

/// What a lagging link carries, in bytes a second: less than all that is written.
const LAGGING_RATE: u64 = 2 << 20;

/// One that is measured.
pub struct Measured {
    /// What it is.
    pub kind: Kind,
    /// Its number.
    pub number: usize,
    /// Where it is.
    pub dir: PathBuf,
    mount: Option<Mount>,
    _line: Option<Proxy>,
    peer: Option<Peer>,
}

/// All of them.
pub struct Places {
    /// Native first.
    pub all: Vec<Measured>,
    _storage: Option<Storage>,
}

/// Kinds of requests that nobody waits for, or that the kernel also makes ahead.
const NOT_AWAITED: [&str; 3] = ["release", "read", "other"];

impl Measured {
    /// Waits until what was done is on the disk, and on the replica if it is live.
    pub fn quiet(&self) -> io::Result<()> {
        rustix::fs::syncfs(File::open(&self.dir)?)?;
        self.settle();
        // A mount's sync need not reach its backing file system.
        rustix::fs::sync();
        Ok(())
    }

    /// Waits as `tandem wait` does until the replica is equal; `false`, and at once: none follows.
    pub fn settle(&self) -> bool {
        let follows = self.mount.as_ref().filter(|_| self.kind.state == "live");
        follows.inspect(|mount| mount.settle()).is_some()
    }

    /// What a peer cannot do is told, and no fault of ours: its rows stay empty.
    pub fn forgive(&self, done: io::Result<()>) -> io::Result<()> {
        match done {
            Err(error) if self.peer.is_some() => {
                eprintln!("LEFT OUT with {}: {error}", self.kind.title());
                Ok(())
            }
            done => done,
        }
    }

    /// Requests of the kernel that somebody waited for, so far; `None`: no mount of ours.
    pub fn requests(&self) -> Option<u64> {
        let ops = self.mount.as_ref()?.status().ops;
        Some(ops.iter().filter(|figures| !NOT_AWAITED.contains(&&*figures.op)).map(|figures| figures.count).sum())
    }
}

impl Places {
    /// Makes native and these. A peer that is not installed, or does not start, is left out, with a message.
    pub fn make(lab: &Lab, kinds: &[Kind]) -> io::Result<Places> {
        let native = Kind { state: "native".into(), options: String::new() };
        let mut all = Vec::new();
        // One that stays, and one that is killed.
        let (mut storage, mut absent): (Option<Storage>, Option<Storage>) = (None, None);
        for kind in std::iter::once(&native).chain(kinds) {
            let number = all.len();
            let dir = lab.new_dir(&format!("place-{number}"));
            scatter(&dir);
            let (mut mount, mut line, mut peer) = (None, None, None);
            match kind.state.as_str() {
                "native" => {}
                "live" | "paused" | "absent" | "lagging" => {
                    let storage = match kind.state.as_str() {
                        "absent" => &*absent.insert(Storage::start(lab, &format!("absent-{number}"))),
                        _ => &*storage.get_or_insert_with(|| lab.storage()),
                    };
                    let mut spec = MountSpec::new(storage, &format!("vol-{number}"), &dir).options(&kind.options);
                    if kind.state == "lagging" {
                        let slow = Proxy::new(storage.port(), 1)?;
                        slow.harm(Harm { rate: LAGGING_RATE, ..Harm::default() });
                        // A client finds the secret by the port that it connects to.
                        let secret = |port| tandem_runtime::secret::path(&lab.runtime_dir(), port);
                        fs::copy(secret(storage.port()), secret(slow.port()))?;
                        spec.source = format!("127.0.0.1:{}:/vol-{number}", slow.port());
                        line = Some(slow);
                    }
                    let mounted = lab.mount_with(&spec);
                    mounted.settle();
                    bring_to(&kind.state, &mounted, storage)?;
                    mount = Some(mounted);
                }
                name if !peers::NAMES.contains(&name) => {
                    return Err(io::Error::other(format!("{name} is no kind of mount that can be measured")));
                }
                name => match Peer::start(name, &dir, &lab.new_dir(&format!("{name}-{number}"))) {
                    Ok(started) => peer = Some(started),
                    Err(why) => {
                        eprintln!("SKIPPED {name}: {why}");
                        continue;
                    }
                },
            }
            all.push(Measured { kind: kind.clone(), number, dir, mount, _line: line, peer });
        }
        Ok(Places { all, _storage: storage })
    }
}

/// Lets directories below one spread over the disk, as those of a root do, so that one run's do not slow the next one's.
pub fn scatter(dir: &Path) {
    if let Err(why) = system("chattr", &["+T", &dir.display().to_string()]) {
        eprintln!("creates may get slower from run to run: {why}");
    }
}

fn bring_to(state: &str, mount: &Mount, storage: &Storage) -> io::Result<()> {
    let reached = match state {
        "paused" => {
            rpc::pause(&mount.socket()).map_err(|error| io::Error::other(error.to_string()))?;
            eventually(Duration::from_secs(30), || mount.status().state == "paused")
        }
        "absent" => {
            storage.kill();
            eventually(Duration::from_secs(30), || mount.status().state == "offline")
        }
        _ => true,
    };
    if reached { Ok(()) } else { Err(io::Error::other(format!("the mount does not become {state}"))) }
}
