//! Into the background: the daemon starts itself again, detached, and the command waits until the mount serves or has failed.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
};

use rustix::io::{FdFlags, fcntl_setfd};

/// Environment variable that tells the started daemon where to report.
const READY_ENV: &str = "TANDEM_READY_FD";
/// What is reported when the mount serves; anything else is the reason why not.
const READY: &[u8] = b"ready";

/// Starts this program again, detached. `Err`: what it said why the mount does not serve.
pub fn start_in_background(program: &OsString, arguments: &[OsString]) -> Result<(), String> {
    let cannot = |what: &str, error: io::Error| format!("cannot start in the background: {what}: {error}");
    let (mut reader, writer) = io::pipe().map_err(|error| cannot("pipe", error))?;
    let this = std::env::current_exe().map_err(|error| cannot("finding this program", error))?;
    let number = writer.as_raw_fd();
    let mut command = Command::new(this);
    command.arg0(program).args(arguments).env(READY_ENV, number.to_string()).stdin(Stdio::null());
    // SAFETY: between fork and exec only async-signal-safe system calls are made.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            if libc::fcntl(number, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|error| cannot("exec", error))?;
    drop(writer);
    let mut said = Vec::new();
    reader.read_to_end(&mut said).map_err(|error| cannot("waiting", error))?;
    if said == READY {
        return Ok(());
    }
    // It has reported and ends; waiting for it leaves no zombie.
    let status = child.wait();
    if said.is_empty() {
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        return Err(format!(
            "the daemon ended before the mount served ({status}); see mountd.log in its state directory"
        ));
    }
    Err(String::from_utf8_lossy(&said).into_owned())
}

/// Where a daemon that was started in the background reports.
pub struct Reporter {
    pipe: Option<File>,
}

impl Reporter {
    /// Of this process. Nobody waits if it was started in the foreground.
    pub fn from_environment() -> Reporter {
        let number = std::env::var(READY_ENV).ok().and_then(|number| number.parse::<i32>().ok());
        let pipe = number.filter(|number| *number > 2).map(|number| {
            // SAFETY: our own parent made this descriptor for us and named it in the environment; nothing else here uses it.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            // Helpers that we start must not hold it open.
            let _ = fcntl_setfd(&fd, FdFlags::CLOEXEC);
            File::from(fd)
        });
        Reporter { pipe }
    }

    /// Whether somebody waits, which means that this is the background.
    pub fn is_background(&self) -> bool {
        self.pipe.is_some()
    }

    /// The mount serves.
    pub fn ready(self) {
        tandem_runtime::notify::ready("the mount serves");
        if let Some(mut pipe) = self.pipe {
            let _ = pipe.write_all(READY);
        }
    }

    /// The mount does not serve.
    pub fn failed(self, why: &str) {
        match self.pipe {
            Some(mut pipe) => {
                let _ = pipe.write_all(why.as_bytes());
            }
            None => eprintln!("tandem-mountd: {why}"),
        }
    }
}

/// From now on standard output and error go to a file, and no directory is held.
pub fn detach_output(log: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    for standard in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both are descriptors of this process; dup2 replaces one by the other at once.
        if unsafe { libc::dup2(file.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    std::env::set_current_dir("/")
}
