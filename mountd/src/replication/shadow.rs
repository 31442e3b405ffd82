//! Which shadow counts at a start, and the shadow of the run that begins.
//!
//! ```text
//! read the old one ─► (boot, run, place fit?) ─► dirty set ─► new shadow in its place ─► activity log names the new run ─► changes
//! ```
//! Killed between any two of these, the next start finds a shadow that counts, or the marks.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use tandem_proto::{Position, Uuid};

use crate::{
    commit::{
        Commit,
        activity_log::{Header, Recovered},
        shadow::{Expected, FileStore, Head, Refused, Replayed, ShadowStore, replay},
    },
    replication::dirtiness,
    state::random_id,
};

/// Through which mount the backing directory is reached. Only as long as that stands the backing holds what it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingPlace {
    /// The last run's dead mount still lies over it: what is beneath is what that run had.
    BeneathOwnMount,
    /// Unique id of the mount, see [`unique_mount_id`].
    Mount(u64),
    /// It cannot be told.
    Unknown,
}

/// What the shadow of a mount needs.
#[derive(Clone, Debug)]
pub struct ShadowConfig {
    /// Its file, on a tmpfs.
    pub path: PathBuf,
    /// Bound of its memory; 0: none is kept.
    pub limit_bytes: usize,
    /// See [`BackingPlace`].
    pub place: BackingPlace,
}

/// Where the shadow of the mount with this state key lies.
pub fn shadow_path(runtime_dir: &Path, key: &str) -> PathBuf {
    runtime_dir.join(format!("mount-{}.shadow", &key[..key.len().min(16)]))
}

/// The id of the mount that `path` is reached through; never used twice in one boot.
pub fn unique_mount_id(path: &Path) -> BackingPlace {
    /// Since Linux 6.8.
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return BackingPlace::Unknown };
    // SAFETY: the path ends with a zero and the buffer is a zeroed `struct statx`.
    let found = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        let flags = libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
        let result = libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, STATX_MNT_ID_UNIQUE, &raw mut found);
        (result == 0).then_some(found)
    };
    match found {
        Some(found) if found.stx_mask & STATX_MNT_ID_UNIQUE != 0 && found.stx_mnt_id != 0 => {
            BackingPlace::Mount(found.stx_mnt_id)
        }
        _ => BackingPlace::Unknown,
    }
}

fn boot_id() -> io::Result<Uuid> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Uuid::from_hex(&text.trim().replace('-', "")).ok_or_else(|| io::Error::other("the kernel's boot id is none"))
}

/// What a run has to keep its shadow with.
#[derive(Clone, Debug)]
pub struct Ground<S> {
    /// Where it lies.
    pub store: S,
    /// See [`ShadowConfig::limit_bytes`].
    pub limit_bytes: usize,
    /// The kernel's boot id, if it tells.
    pub boot: Option<Uuid>,
    /// See [`BackingPlace`].
    pub place: BackingPlace,
    /// The run that begins: an id that was never used.
    pub run: Uuid,
}

impl Ground<FileStore> {
    /// On this machine.
    pub fn of(config: &ShadowConfig) -> io::Result<Ground<FileStore>> {
        let boot = boot_id().inspect_err(|error| tracing::warn!(%error, "the kernel's boot id cannot be read")).ok();
        Ok(Ground {
            store: FileStore::new(config.path.clone()),
            limit_bytes: config.limit_bytes,
            boot,
            place: config.place,
            run: random_id().map_err(io::Error::other)?,
        })
    }
}

impl<S: ShadowStore + Clone + 'static> Ground<S> {
    /// Makes the dirty set of a resumed run from the last one's shadow, or else from its marks, and begins the shadow of this one.
    /// Whether it is exact.
    pub fn resume(&self, commit: &Commit, recovered: Option<&Recovered>) -> io::Result<bool> {
        let marked = dirtiness::after_restart(recovered, None);
        let floor = commit.header().floor;
        let Some(replayed) = self.old(commit, recovered) else {
            commit.insert_dirty(&marked);
            self.begin(commit, self.mount_id(0), floor)?;
            return Ok(false);
        };
        tracing::info!(
            cells = replayed.dirty.cells(), under_way = replayed.coarse, floor = %replayed.floor,
            "the shadow of the last run tells what the replica may lack"
        );
        commit.insert_dirty(&replayed.dirty);
        commit.rely_on(replayed.floor, marked);
        self.begin(commit, self.mount_id(replayed.place), replayed.floor)?;
        Ok(true)
    }

    /// Begins the shadow of a run that nothing was left for.
    pub fn begin_anew(&self, commit: &Commit) -> io::Result<()> {
        self.begin(commit, self.mount_id(0), commit.header().floor)
    }

    fn mount_id(&self, before: u64) -> u64 {
        match self.place {
            BackingPlace::Mount(id) => id,
            BackingPlace::BeneathOwnMount => before,
            BackingPlace::Unknown => 0,
        }
    }

    fn old(&self, commit: &Commit, recovered: Option<&Recovered>) -> Option<Replayed> {
        let boot = self.boot?;
        if recovered.is_none_or(|recovered| recovered.damaged) {
            return None;
        }
        let place = match self.place {
            BackingPlace::BeneathOwnMount => None,
            BackingPlace::Mount(id) => Some(id),
            BackingPlace::Unknown => Some(0),
        };
        let expected = Expected { boot, run: commit.header().run, place };
        match self.store.read().map(|bytes| bytes.map(|bytes| replay(&bytes, &expected))) {
            Ok(Some(Ok(replayed))) => return Some(replayed),
            Ok(Some(Err(why @ (Refused::Boot | Refused::Run)))) => tracing::info!(%why, "the shadow is old"),
            Ok(Some(Err(why))) => tracing::warn!(%why, "the shadow does not count; the marks do"),
            Err(error) => tracing::warn!(%error, "the shadow cannot be read; the marks count"),
            Ok(None) => {}
        }
        None
    }

    fn begin(&self, commit: &Commit, place: u64, floor: Position) -> io::Result<()> {
        commit.enter_boot(self.boot.unwrap_or_default());
        let header = commit.header();
        let begun = match self.boot {
            _ if self.limit_bytes == 0 => Err(io::Error::other("switched off (option shadow_max=0)")),
            None => Err(io::Error::other("the kernel's boot id cannot be read")),
            Some(boot) => {
                let head = Head { boot, run: self.run, previous: header.run, place };
                commit.begin_shadow(Box::new(self.store.clone()), head, self.limit_bytes, floor)
            }
        };
        if let Err(error) = begun {
            tracing::warn!(%error, "there is no shadow: a kill of this daemon would cost a compare of all marked cells");
            commit.without_shadow(&error.to_string());
            let _ = self.store.clone().remove();
        }
        // Durable before the first change: from here on no older shadow counts.
        commit.set_header_durably(Header { run: self.run, ..header })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{BackingPlace, unique_mount_id};

    #[test]
    fn a_mount_has_one_id_and_another_one_another() {
        let (here, proc) = (unique_mount_id(Path::new("/")), unique_mount_id(Path::new("/proc")));
        if here == BackingPlace::Unknown {
            eprintln!("skipped: this kernel has no unique mount ids");
            return;
        }
        assert_eq!(here, unique_mount_id(Path::new("/")));
        assert_ne!(here, proc);
    }
}
