//! The directories that are compared: one of the backing file system, mounts with replication in some state, and peers where they are
//! installed. All lie on one file system.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::report::Kind;
use crate::harness::{Lab, Mount, MountSpec, Storage, eventually, is_mounted, rpc, system};

/// One that is measured.
pub struct Measured {
    /// What it is.
    pub kind: Kind,
    /// Its number.
    pub number: usize,
    /// Where it is.
    pub dir: PathBuf,
    mount: Option<Mount>,
    _peer: Option<Peer>,
}

/// All of them.
pub struct Places {
    /// Native first.
    pub all: Vec<Measured>,
    _storage: Option<Storage>,
}

impl Measured {
    /// Waits until what was done is on the disk, and on the replica if it is live.
    pub fn quiet(&self) -> io::Result<()> {
        rustix::fs::syncfs(File::open(&self.dir)?)?;
        if let Some(mount) = self.mount.as_ref().filter(|_| self.kind.state == "live") {
            mount.settle();
        }
        // A mount's sync need not reach its backing file system.
        rustix::fs::sync();
        Ok(())
    }
}

impl Places {
    /// Makes native and these. A peer that is not installed is left out, with a message.
    pub fn make(lab: &Lab, kinds: &[Kind]) -> io::Result<Places> {
        let native = Kind { state: "native".into(), options: String::new() };
        let mut all = Vec::new();
        // One that stays, and one that is killed.
        let (mut storage, mut absent): (Option<Storage>, Option<Storage>) = (None, None);
        for kind in std::iter::once(&native).chain(kinds) {
            let number = all.len();
            let dir = lab.new_dir(&format!("place-{number}"));
            // Directories below it spread over the disk, as those of a root do, so that one run's do not slow the next one's.
            if let Err(why) = system("chattr", &["+T", &dir.display().to_string()]) {
                eprintln!("creates may get slower from run to run: {why}");
            }
            let (mut mount, mut peer) = (None, None);
            match kind.state.as_str() {
                "native" => {}
                "live" | "paused" | "absent" => {
                    let storage = match kind.state.as_str() {
                        "absent" => &*absent.insert(Storage::start(lab, &format!("absent-{number}"))),
                        _ => &*storage.get_or_insert_with(|| lab.storage()),
                    };
                    let spec = MountSpec::new(storage, &format!("vol-{number}"), &dir).options(&kind.options);
                    let mounted = lab.mount_with(&spec);
                    mounted.settle();
                    bring_to(&kind.state, &mounted, storage)?;
                    mount = Some(mounted);
                }
                name => match Peer::start(name, &dir, &lab.new_dir(&format!("peer-{number}")))? {
                    Some(started) => peer = Some(started),
                    None => continue,
                },
            }
            all.push(Measured { kind: kind.clone(), number, dir, mount, _peer: peer });
        }
        Ok(Places { all, _storage: storage })
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

/// Another FUSE file system over a directory, ended when it is dropped.
pub struct Peer {
    child: Child,
    dir: PathBuf,
}

impl Peer {
    /// `bindfs`; `None`: not installed.
    fn start(name: &str, dir: &Path, backing: &Path) -> io::Result<Option<Peer>> {
        if name != "bindfs" {
            return Err(io::Error::other(format!("{name} is no kind of mount that can be measured")));
        }
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|dir| fs::exists(dir.join(name)).unwrap_or(false));
        if !found {
            eprintln!("SKIPPED {name}: not installed");
            return Ok(None);
        }
        let child = Command::new(name).arg("-f").arg(backing).arg(dir).stdin(Stdio::null()).spawn()?;
        let peer = Peer { child, dir: dir.to_owned() };
        if !eventually(Duration::from_secs(10), || is_mounted(dir)) {
            return Err(io::Error::other(format!("{name} does not mount")));
        }
        Ok(Some(peer))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
