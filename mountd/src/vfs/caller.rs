//! Who makes a call: for ownership and umask of what is made, and for the envelope of its op.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rustix::{fs::Mode, thread::UnshareFlags};
use tandem_proto::Origin;

/// The process that makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its file system user.
    pub uid: u32,
    /// Its file system group.
    pub gid: u32,
    /// Its id; 0 if it is of another pid namespace.
    pub pid: u32,
}

/// How long a process name is taken for granted (exec changes it).
const NAME_LIFE: Duration = Duration::from_millis(500);
/// Process names that a thread keeps.
const NAMES_MAX: usize = 32;

struct CachedName {
    pid: u32,
    read: Instant,
    name: Bytes,
}

thread_local! {
    static NAMES: RefCell<Vec<CachedName>> = const { RefCell::new(Vec::new()) };
    /// The umask of this thread, once its file system attributes are its own.
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

impl Caller {
    /// The daemon itself, for what no caller asked for.
    pub fn daemon() -> Caller {
        Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: std::process::id(),
        }
    }

    /// The envelope of an op of this caller, now.
    pub fn origin(&self) -> Origin {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Origin {
            time_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            uid: self.uid,
            gid: self.gid,
            pid: self.pid,
            process: process_name(self.pid),
        }
    }

    /// Whether the caller is of this group. Read from /proc, because a request carries one group only.
    pub fn in_group(&self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", self.pid)) else { return false };
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
        groups.is_some_and(|groups| groups.split_whitespace().any(|group| group.parse() == Ok(gid)))
    }
}

/// Name of a process, read at most once in a while.
fn process_name(pid: u32) -> Bytes {
    if pid == 0 {
        return Bytes::new();
    }
    NAMES.with_borrow_mut(|names| {
        let now = Instant::now();
        if let Some(cached) = names.iter().find(|cached| cached.pid == pid && now - cached.read < NAME_LIFE) {
            return cached.name.clone();
        }
        let mut name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.last() == Some(&b'\n') {
            name.pop();
        }
        let name = Bytes::from(name);
        names.retain(|cached| cached.pid != pid);
        if names.len() >= NAMES_MAX {
            names.remove(0);
        }
        names.push(CachedName { pid, read: now, name: name.clone() });
        name
    })
}

/// Gives this thread, and no other, the umask of a caller, so that the backing file system applies it itself: a default ACL of
/// the directory replaces the umask, and only the file system knows.
pub fn adopt_umask(umask: u32) -> std::io::Result<()> {
    let umask = umask & 0o777;
    UMASK.with(|current| {
        if current.get() == Some(umask) {
            return Ok(());
        }
        if current.get().is_none() {
            // SAFETY: only the file system attributes (umask, working directory) become this thread's own; descriptors stay shared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        }
        rustix::process::umask(Mode::from_raw_mode(umask));
        current.set(Some(umask));
        Ok(())
    })
}
