//! Other FUSE file systems, to compare with. What they need is started by the bench itself, keeps its files in the lab, and is ended with it,
//! each process by its number: those of the machine, if it has some, are left alone.

use std::{
    fs,
    io::{self, Error},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use super::places::scatter;
use crate::harness::{eventually, is_mounted, system};

/// All that can be compared.
pub const NAMES: [&str; 3] = ["bindfs", "sshfs", "gluster"];

/// Where distributions put OpenSSH's server of files.
const SFTP_SERVERS: [&str; 3] =
    ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];
/// Gluster's volume.
const VOLUME: &str = "bench";
/// A peer is there within this.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A process that was asked to end has ended within this.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Another FUSE file system over a directory, ended when it is dropped.
pub struct Peer {
    children: Vec<Child>,
    dir: PathBuf,
    // Dropped after the mount that needs it.
    gluster: Option<Gluster>,
}

impl Peer {
    /// Mounts one of [`NAMES`] on `dir`; its files are below `home`. Else the reason, such as that it is not installed.
    pub fn start(name: &str, dir: &Path, home: &Path) -> io::Result<Peer> {
        let backing = home.join("files");
        fs::create_dir_all(&backing)?;
        scatter(&backing);
        let mut peer = Peer { children: Vec::new(), dir: dir.to_owned(), gluster: None };
        match name {
            "bindfs" => {
                let mut bindfs = Command::new(find(name)?);
                peer.children.push(bindfs.arg("-f").arg(&backing).arg(dir).stdin(Stdio::null()).spawn()?);
            }
            "sshfs" => peer.start_sshfs(&backing)?,
            _ => {
                let gluster = peer.gluster.insert(Gluster::start(home, &backing)?);
                peer.children.push(gluster.mount(dir)?);
            }
        }
        // Gluster's mount is there before its volume is.
        if !eventually(START_LIMIT, || is_mounted(dir) && fs::read_dir(dir).is_ok()) {
            return Err(Error::other("it does not mount"));
        }
        Ok(peer)
    }

    /// Without a network or a cipher: a socket to the server of files.
    fn start_sshfs(&mut self, backing: &Path) -> io::Result<()> {
        let server = SFTP_SERVERS.iter().find(|path| fs::exists(path).unwrap_or(false));
        let (server, client) = (server.ok_or_else(|| Error::other("no sftp-server is installed"))?, find("sshfs")?);
        let (near, far) = UnixStream::pair()?;
        let ends = |end: UnixStream| Ok::<_, Error>((Stdio::from(OwnedFd::from(end.try_clone()?)), OwnedFd::from(end)));
        let ((served_in, served_out), (client_in, client_out)) = (ends(far)?, ends(near)?);
        self.children.push(Command::new(server).stdin(served_in).stdout(served_out).spawn()?);
        let mut client = Command::new(client);
        client.args(["-f", "-o", "passive"]).arg(format!(":{}", backing.display())).arg(&self.dir);
        self.children.push(client.stdin(client_in).stdout(client_out).spawn()?);
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = unmount(&self.dir, UnmountFlags::DETACH);
        self.children.iter_mut().for_each(end_child);
    }
}

fn end_child(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Where a program is. A user's PATH often lacks the directories of the system's tools.
fn find(program: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = dirs.map(|dir| dir.join(program)).find(|path| fs::exists(path).unwrap_or(false));
    found.ok_or_else(|| Error::other(format!("{program} is not installed")))
}

/// A daemon of Gluster that serves a volume of one brick, at an address of its own of the loopback device.
struct Gluster {
    daemon: Child,
    home: PathBuf,
    host: String,
}

impl Gluster {
    fn start(home: &Path, brick: &Path) -> io::Result<Gluster> {
        let (program, _) = (find("glusterd")?, (find("gluster")?, find("glusterfsd")?, find("glusterfs")?));
        for part in ["work", "run", "log"] {
            fs::create_dir_all(home.join(part))?;
        }
        // Programs of Gluster look for its daemon at one port only, and it refuses bricks of 127.0.0.1.
        let [_, high, middle, low] = process::id().to_be_bytes();
        let host = format!("127.{}.{middle}.{low}", 64 | high);
        let (settings, dir) = (home.join("glusterd.vol"), home.display());
        let text = format!(
            "volume management
    type mgmt/glusterd
    option working-directory {dir}/work
    option run-directory {dir}/run
    option logging-directory {dir}/log
    option glusterd-sockfile {dir}/run/glusterd.socket
    option transport-type socket
    option transport.socket.bind-address {host}
end-volume
"
        );
        fs::write(&settings, text)?;
        let mut command = Command::new(program);
        command.arg("--no-daemon").arg("-f").arg(settings);
        command.arg("-l").arg(home.join("log/glusterd.log")).arg("-p").arg(home.join("run/glusterd.pid"));
        let mut gluster =
            Gluster { daemon: command.stdin(Stdio::null()).spawn()?, home: home.to_owned(), host: host.clone() };
        let listens = || fs::exists(home.join("run/glusterd.socket")).unwrap_or(false);
        eventually(START_LIMIT, || listens() || !matches!(gluster.daemon.try_wait(), Ok(None)));
        if !listens() {
            return Err(Error::other("glusterd does not start: is its port 24007 in use?"));
        }
        gluster.tell(&["volume", "create", VOLUME, &format!("{host}:{}", brick.display()), "force"])?;
        gluster.tell(&["volume", "start", VOLUME])?;
        Ok(gluster)
    }

    fn tell(&self, words: &[&str]) -> io::Result<()> {
        let socket = format!("--glusterd-sock={}/run/glusterd.socket", self.home.display());
        let log = format!("--log-file={}/log/cli.log", self.home.display());
        let args = [&["--mode=script", &socket, &log], words].concat();
        system("gluster", &args).map(drop).map_err(Error::other)
    }

    fn mount(&self, dir: &Path) -> io::Result<Child> {
        let mut client = Command::new(find("glusterfs")?);
        client.arg("--no-daemon").arg("-l").arg(self.home.join("log/mount.log"));
        client.args(["-s", &self.host]).arg(format!("--volfile-id={VOLUME}")).arg(dir);
        client.stdin(Stdio::null()).spawn()
    }

    /// The processes of the brick, which are no children of ours; and what they were started with.
    fn bricks(&self) -> Vec<(Pid, Vec<String>)> {
        let files = fs::read_dir(self.home.join("run/vols").join(VOLUME)).into_iter().flatten().flatten();
        let pids = files.filter_map(|file| Pid::from_raw(fs::read_to_string(file.path()).ok()?.trim().parse().ok()?));
        let bricks = pids.filter_map(|pid| {
            let words = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
            // A number may be another's since.
            words.contains(self.home.to_str()?).then(|| (pid, words.split('\0').map(str::to_owned).collect()))
        });
        bricks.collect()
    }
}

impl Drop for Gluster {
    fn drop(&mut self) {
        // First, as it would start a brick again.
        end_child(&mut self.daemon);
        let bricks = self.bricks();
        for (pid, words) in &bricks {
            let _ = kill_process(*pid, Signal::TERM);
            // The only thing outside of the lab.
            if let Some(socket) = words.iter().skip_while(|word| *word != "-S").nth(1) {
                let _ = fs::remove_file(socket);
            }
        }
        eventually(END_LIMIT, || self.bricks().is_empty());
        for (pid, _) in self.bricks() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
