//! What the process gives away before it serves: its privileges, if it was asked to, and everything but its own directories.
//!
//! ```text
//!  root ─► directories given to the account ─► setgroups, setgid, setuid ─► seccomp ─► Landlock: storage, runtime, hooks; a little to read ─► threads
//! ```
//! Called while the process has one thread: both bind a thread and those that it makes later. What it forbids is forbidden also to
//! code that an attacker brought in, and to the commands that hooks run.

mod seccomp;

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, chown},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags};
use tandem_runtime::durable;

use crate::config::Config;

/// `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sandbox {
    /// Without it the daemon does not start.
    On,
    /// Where the kernel has it.
    #[default]
    Auto,
    /// Not.
    Off,
}

impl Sandbox {
    /// As it is written.
    pub fn parse(text: &str) -> Option<Sandbox> {
        match text {
            "on" => Some(Sandbox::On),
            "auto" => Some(Sandbox::Auto),
            "off" => Some(Sandbox::Off),
            _ => None,
        }
    }

    /// The reverse.
    pub fn as_str(self) -> &'static str {
        match self {
            Sandbox::On => "on",
            Sandbox::Auto => "auto",
            Sandbox::Off => "off",
        }
    }
}

/// `--user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// As it was written.
    pub name: String,
    /// User.
    pub uid: u32,
    /// Its group; there are no others.
    pub gid: u32,
}

/// The daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A directory is not the account's.
    #[error(
        "{} belongs to user {owner}, and --user {user} could not use it: stop storaged, run `chown -R {user}: {}`, and see that {user} may \
         enter the directories above it",
        path.display(), path.display()
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// Whose it should be.
        user: String,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel cannot.
    #[error("--sandbox on: this kernel has no Landlock of version 2 or later ({0}); use auto or off")]
    Missing(io::Error),
    /// The kernel cannot.
    #[error("--sandbox on: this kernel filters no system calls (seccomp: {0}); use auto or off")]
    NoFilter(io::Error),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> SandboxError {
    let what = what.into();
    move |source| SandboxError::Io { what, source }
}

/// Gives away what the configuration says. `Ok(false)`: there is no Landlock here, or it is off.
/// `file`: the configuration, which may be read again.
pub fn enter(config: &Config, file: Option<&Path>) -> Result<bool, SandboxError> {
    for directory in [&config.data, &config.runtime] {
        durable::create_private_dir(directory).map_err(failed(format!("making {}", directory.display())))?;
    }
    if let Some(account) = &config.account {
        become_account(account, &[&config.data, &config.runtime])?;
    }
    if config.sandbox == Sandbox::Off {
        return Ok(false);
    }
    match seccomp::forbid() {
        Ok(()) => {}
        Err(error) if config.sandbox == Sandbox::On => return Err(SandboxError::NoFilter(error)),
        Err(error) => tracing::info!(%error, "the kernel has no seccomp: no system calls are forbidden"),
    }
    match shut_out(config, file) {
        Ok(()) => Ok(true),
        Err(error) if config.sandbox == Sandbox::On => Err(SandboxError::Missing(error)),
        Err(error) => {
            tracing::info!(%error, "the kernel has no Landlock: the daemon is not shut out of other directories");
            Ok(false)
        }
    }
}

fn become_account(account: &Account, directories: &[&PathBuf]) -> Result<(), SandboxError> {
    for directory in directories {
        let metadata = fs::metadata(directory).map_err(failed(format!("looking at {}", directory.display())))?;
        if metadata.uid() == account.uid {
            continue;
        }
        let is_empty = fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
        if metadata.uid() != 0 || !is_empty {
            let (path, user) = ((*directory).clone(), account.name.clone());
            return Err(SandboxError::Foreign { path, owner: metadata.uid(), user });
        }
        chown(directory, Some(account.uid), Some(account.gid)).map_err(failed(format!(
            "giving {} to {}",
            directory.display(),
            account.name
        )))?;
    }
    // SAFETY: plain calls of the C library; the first takes no groups, so it reads nothing through the pointer.
    let dropped = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0 && libc::setgid(account.gid) == 0 && libc::setuid(account.uid) == 0
    };
    // There is no way back, or something is very wrong.
    // SAFETY: a plain call.
    if !dropped || unsafe { libc::setuid(0) } == 0 {
        let what = format!("becoming user {}", account.name);
        return Err(SandboxError::Io { what, source: io::Error::last_os_error() });
    }
    Ok(())
}

/// Rights on a file system, as the kernel numbers them.
mod rights {
    pub const EXECUTE: u64 = 1 << 0;
    pub const READ_FILE: u64 = 1 << 2;
    pub const READ_DIR: u64 = 1 << 3;
    /// All of version 1.
    pub const V1: u64 = (1 << 13) - 1;
    /// Renaming and linking between directories: without it Landlock forbids both altogether.
    pub const REFER: u64 = 1 << 13;
    pub const TRUNCATE: u64 = 1 << 14;
    pub const READ: u64 = READ_FILE | READ_DIR;
}

/// What may be read beside our own directories: names of users and hosts, time zones, our own figures. A copy from another host is told
/// its name: `/etc/resolv.conf` is often a link to what one of these programs writes, and `nsswitch.conf` may name libraries that look
/// names up.
const READABLE: [&str; 10] = [
    "/etc",
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/usr/share/zoneinfo",
    "/usr/lib",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/nscd",
];
/// What a hook may read and run, and where it may write as anybody may.
const HOOKS_READ: &str = "/";
const HOOKS_WRITE: [&str; 3] = ["/tmp", "/var/tmp", "/dev"];

fn shut_out(config: &Config, file: Option<&Path>) -> io::Result<()> {
    let version = landlock_version()?;
    let mut all = rights::V1 | rights::REFER;
    if version >= 3 {
        all |= rights::TRUNCATE;
    }
    let rules = Ruleset::new(all)?;
    for own in [&config.data, &config.runtime] {
        rules.allow(own, all)?;
    }
    for readable in READABLE {
        rules.allow_if_there(Path::new(readable), rights::READ)?;
    }
    // A file that is replaced is another one, so it is its directory that may be read.
    for directory in file.into_iter().chain(config.own_tls.files()).filter_map(Path::parent) {
        rules.allow_if_there(directory, rights::READ)?;
    }
    if let Some(hook) = &config.limits.hook {
        rules.allow(Path::new(HOOKS_READ), rights::READ | rights::EXECUTE)?;
        rules.allow(&hook.directory, all)?;
        for writable in HOOKS_WRITE {
            rules.allow_if_there(Path::new(writable), all & !rights::EXECUTE)?;
        }
    }
    rustix::thread::set_no_new_privs(true)?;
    rules.restrict()
}

fn answered(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// 2 or later.
fn landlock_version() -> io::Result<libc::c_long> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel takes no pointer and only answers.
    let version = answered(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u64>(), 0usize, VERSION)
    })?;
    if version >= 2 { Ok(version) } else { Err(io::Error::from(io::ErrorKind::Unsupported)) }
}

/// A Landlock ruleset that is being made.
struct Ruleset {
    fd: OwnedFd,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

impl Ruleset {
    /// `handled`: rights that nothing has but by a rule.
    fn new(handled: u64) -> io::Result<Ruleset> {
        // SAFETY: the attribute is one 64-bit number here, which is long enough for every version, and lives through the call.
        let fd = answered(unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, size_of::<u64>(), 0u32)
        })?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Ruleset { fd: unsafe { OwnedFd::from_raw_fd(fd as i32) } })
    }

    /// At and below a directory.
    fn allow(&self, directory: &Path, allowed: u64) -> io::Result<()> {
        const PATH_BENEATH: libc::c_uint = 1;
        let parent =
            rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let rule = PathBeneath { allowed, parent: parent.as_raw_fd() };
        // SAFETY: the rule has the kernel's layout and lives through the call, as does the descriptor in it.
        answered(unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, self.fd.as_raw_fd(), PATH_BENEATH, &raw const rule, 0u32)
        })?;
        Ok(())
    }

    fn allow_if_there(&self, directory: &Path, allowed: u64) -> io::Result<()> {
        match self.allow(directory, allowed) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(()),
            answer => answer,
        }
    }

    /// From here on this thread, and what it starts, has no other rights.
    fn restrict(self) -> io::Result<()> {
        // SAFETY: a descriptor and a number.
        answered(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_raw_fd(), 0u32) })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io, thread};

    use super::{Ruleset, landlock_version, rights};

    #[test]
    fn a_thread_that_is_shut_out_works_in_its_directory_and_nowhere_else() {
        let Ok(version) = landlock_version() else {
            eprintln!("SKIPPED: no Landlock here");
            return;
        };
        assert!(version >= 2);
        let (inside, outside) = (tempfile::tempdir().expect("inside"), tempfile::tempdir().expect("outside"));
        fs::write(outside.path().join("secret"), "other people's").expect("written");
        let (own, other) = (inside.path().to_owned(), outside.path().to_owned());
        let shut_out = thread::spawn(move || {
            let all = rights::V1 | rights::REFER;
            let rules = Ruleset::new(all).expect("a ruleset");
            rules.allow(&own, all).expect("allowed");
            rustix::thread::set_no_new_privs(true).expect("no new privileges");
            rules.restrict().expect("restricted");
            fs::create_dir(own.join("a")).and_then(|()| fs::write(own.join("file"), "x")).expect("its own");
            fs::rename(own.join("file"), own.join("a/file")).expect("renamed between directories");
            std::os::unix::fs::symlink(other.join("secret"), own.join("planted")).expect("a link");
            let refused = |answer: io::Result<Vec<u8>>| answer.expect_err("refused").kind();
            assert_eq!(refused(fs::read(own.join("planted"))), io::ErrorKind::PermissionDenied);
            assert_eq!(refused(fs::read(other.join("secret"))), io::ErrorKind::PermissionDenied);
            assert!(fs::write(other.join("new"), "x").is_err() && fs::remove_file(other.join("secret")).is_err());
        });
        shut_out.join().expect("as it should be");
        assert_eq!(fs::read_to_string(outside.path().join("secret")).expect("only that thread"), "other people's");
    }
}
