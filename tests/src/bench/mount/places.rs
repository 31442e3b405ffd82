//! The directories that are compared: one of the backing file system, mounts with replication in some state, and peers where they are
//! installed. All lie on one file system.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::report::Kind;
use crate::{
    harness::{Lab, Mount, MountSpec, Storage, eventually, is_mounted, rpc, system},
    netlab::proxy::{Harm, Proxy},
};

/// What a lagging link carries, in bytes a second: less than all that is written.
const LAGGING_RATE: u64 = 2 << 20;
/// Where distributions put OpenSSH's server of files.
const SFTP_SERVERS: [&str; 3] =
    ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];

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
    _peer: Option<Peer>,
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
        if let Some(mount) = self.mount.as_ref().filter(|_| self.kind.state == "live") {
            mount.settle();
        }
        // A mount's sync need not reach its backing file system.
        rustix::fs::sync();
        Ok(())
    }

    /// Requests of the kernel that somebody waited for, so far; `None`: no mount of ours.
    pub fn requests(&self) -> Option<u64> {
        let ops = self.mount.as_ref()?.status().ops;
        Some(ops.iter().filter(|figures| !NOT_AWAITED.contains(&&*figures.op)).map(|figures| figures.count).sum())
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
                name => match Peer::start(name, &dir, &lab.new_dir(&format!("peer-{number}")))? {
                    Some(started) => peer = Some(started),
                    None => continue,
                },
            }
            all.push(Measured { kind: kind.clone(), number, dir, mount, _line: line, _peer: peer });
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
    children: Vec<Child>,
    dir: PathBuf,
}

impl Peer {
    /// `bindfs`, or `sshfs` without a network or a cipher: a socket to the server of files. `None`: not installed.
    fn start(name: &str, dir: &Path, backing: &Path) -> io::Result<Option<Peer>> {
        let sftp = SFTP_SERVERS.iter().find(|path| fs::exists(path).unwrap_or(false));
        let children = match (name, sftp) {
            ("bindfs" | "sshfs", _) if !is_installed(name) => None,
            ("bindfs", _) => {
                let child = Command::new(name).arg("-f").arg(backing).arg(dir).stdin(Stdio::null()).spawn()?;
                Some(vec![child])
            }
            ("sshfs", None) => None,
            ("sshfs", Some(server)) => Some(start_sshfs(server, dir, backing)?),
            _ => return Err(io::Error::other(format!("{name} is no kind of mount that can be measured"))),
        };
        let Some(children) = children else {
            eprintln!("SKIPPED {name}: not installed");
            return Ok(None);
        };
        let peer = Peer { children, dir: dir.to_owned() };
        if !eventually(Duration::from_secs(10), || is_mounted(dir)) {
            return Err(io::Error::other(format!("{name} does not mount")));
        }
        Ok(Some(peer))
    }
}

fn is_installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| fs::exists(dir.join(program)).unwrap_or(false))
}

fn start_sshfs(server: &str, dir: &Path, backing: &Path) -> io::Result<Vec<Child>> {
    let (near, far) = UnixStream::pair()?;
    let ends = |end: UnixStream| Ok::<_, io::Error>((Stdio::from(OwnedFd::from(end.try_clone()?)), OwnedFd::from(end)));
    let ((served_in, served_out), (client_in, client_out)) = (ends(far)?, ends(near)?);
    let server = Command::new(server).stdin(served_in).stdout(served_out).spawn()?;
    let client = Command::new("sshfs")
        .args(["-f", "-o", "passive"])
        .arg(format!(":{}", backing.display()))
        .arg(dir)
        .stdin(client_in)
        .stdout(client_out)
        .spawn()?;
    Ok(vec![client, server])
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
