//! One command for one event.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tandem_proto::ids::{InodeId, Name, hex};

use super::{Event, HookRule};
use crate::{reader::ReplicaReader, tree::FsTree};

/// How often one looks whether a command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What of a command's complaint is kept.
const COMPLAINT_MAX: u64 = 1000;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// What happened.
    pub event: Event,
    /// To whom.
    pub id: InodeId,
}

fn path_of(names: &[Name]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    let mut path = PathBuf::from("/");
    path.extend(names.iter().map(|name| std::ffi::OsStr::from_bytes(name.as_bytes())));
    path
}

fn digest(file: &mut File) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        };
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(hex(hasher.finalize().as_bytes()))
}

impl Job {
    /// Runs the command; `Ok(false)`: there is nothing to tell any more. An error says what went wrong.
    pub fn run(&self, rule: &HookRule, volume: &str, reader: &ReplicaReader<FsTree>) -> Result<bool, String> {
        let Some(names) = reader.path(&self.id).map_err(|error| error.to_string())? else { return Ok(false) };
        let path = path_of(&names);
        let position = reader.applied();
        let shown = path.display().to_string();
        let failed = |error: io::Error| format!("{shown}: {error}");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &rule.command]).env_clear().env("PATH", PATH).current_dir(&rule.directory);
        command.env("TANDEM_EVENT", self.event.as_str()).env("TANDEM_VOLUME", volume).env("TANDEM_PATH", &path);
        command.env("TANDEM_POSITION", format!("{}:{}", position.epoch, position.seq));
        match self.event {
            Event::Directory => {
                command.stdin(Stdio::null());
            }
            Event::File => {
                let Some(file) = reader.open(&self.id).map_err(|error| error.to_string())? else { return Ok(false) };
                let mut file = file.reopened().map_err(failed)?;
                command.env("TANDEM_DIGEST", digest(&mut file).map_err(failed)?).stdin(Stdio::from(file));
            }
        }
        if let Some((uid, gid)) = rule.user {
            // Groups go with the uid: the standard library drops those of root.
            command.uid(uid).gid(gid);
        }
        let complaint = complaint_file().map_err(failed)?;
        let errors = complaint.as_fd().try_clone_to_owned().map_err(failed)?;
        command.stdout(Stdio::null()).stderr(Stdio::from(errors)).process_group(0);
        let child = command.spawn().map_err(failed)?;
        match wait(child, rule.timeout).map_err(failed)? {
            Some(status) if status.success() => Ok(true),
            Some(status) => Err(format!("{shown}: the hook ended with {status}{}", complained(complaint))),
            None => Err(format!("{shown}: the hook took longer than {} s and was ended", rule.timeout.as_secs())),
        }
    }
}

/// Memory for what a command says on standard error.
fn complaint_file() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC)?))
}

fn complained(mut file: File) -> String {
    let mut text = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(COMPLAINT_MAX).read_to_end(&mut text));
    match read {
        Ok(1..) => format!(": {}", String::from_utf8_lossy(&text).trim()),
        _ => String::new(),
    }
}

/// `None`: it took too long, and was killed with all that it started.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
