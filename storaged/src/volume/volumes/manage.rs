//! Volumes that people make, rename and take away while storaged serves.
//!
//! ```text
//!  rename: stop its thread ─► rename its directory ─► open it again under the new name
//!  delete: stop its thread ─► move its directory to .deleted/NAME-TIME ─► (after --deleted-keep) remove it
//! ```
//! A crash between the steps leaves the directory under one name or the other, and the next start finds it there.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tandem_proto::volume::VolumeName;
use tandem_runtime::durable;

use super::{Broken, Command, Entry, Volumes, open_entry, stopping};
use crate::{
    config::Limits,
    ingest::refusal::Refusal,
    volume::{
        review::Marker,
        settings::{Settings, Special},
    },
};

/// Where deleted volumes are. No volume can have the name.
const DELETED: &str = ".deleted";
/// How long whoever reads a volume may take to let go of it.
const LET_GO: Duration = Duration::from_secs(10);
/// Between two looks for deleted volumes whose time is over.
const LOOK_EVERY: Duration = Duration::from_secs(6 * 3600);

/// A volume could not be made, renamed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// There is none of that name.
    #[error("there is no volume {0} here")]
    Missing(VolumeName),
    /// The name is taken.
    #[error("there is a volume {0} already: choose another name")]
    Exists(VolumeName),
    /// A mount is connected.
    #[error("volume {0} is mounted by {1}: unmount it there first, or force it")]
    Mounted(VolumeName, String),
    /// It does not stop or open.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why.
        source: io::Error,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ManageError {
    let what = what.into();
    move |source| ManageError::Io { what, source }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Volumes {
    /// Makes an empty volume. Blocks on the disk.
    pub fn create(&self, name: &VolumeName) -> Result<(), ManageError> {
        if self.get(name).is_some() {
            return Err(ManageError::Exists(name.clone()));
        }
        self.serving_or_made(name)?;
        Ok(())
    }

    /// Changes what a volume may hold; what is not given stays. Returns what it is then. Blocks on the disk.
    pub fn configure(
        &self,
        name: &VolumeName,
        quota: Option<Option<u64>>,
        special: Option<Special>,
    ) -> Result<Settings, ManageError> {
        // One at a time, and not while the volume is renamed.
        let _making = self.making.lock();
        let volume = match self.get(name) {
            Some(Entry::Open(volume)) => volume,
            Some(Entry::Broken(broken)) => return Err(broken.refusal.clone().into()),
            None => return Err(ManageError::Missing(name.clone())),
        };
        let failed = || failed(format!("changing the settings of volume {name}"));
        let before = Settings::load(&volume.directory).map_err(failed())?;
        let settings = Settings { quota: quota.unwrap_or(before.quota), special: special.unwrap_or(before.special) };
        if settings != before {
            if settings.special != before.special {
                Marker::of(&volume.directory).set_durably().map_err(failed())?;
            }
            settings.store(&volume.directory).map_err(failed())?;
            volume.tell(Command::Configure { settings })?;
            tracing::info!(volume = %name, ?settings, "settings changed");
        }
        Ok(settings)
    }

    /// Those of volumes that are made or opened now.
    fn limits(&self) -> Limits {
        self.limits.lock().clone()
    }

    /// Changes what can change while volumes are open: what is kept of deleted files, and what is made from now on. The rest of the limits
    /// counts for volumes that are opened later.
    pub fn set_limits(&self, limits: &Limits) {
        *self.limits.lock() = limits.clone();
        for (_, entry) in self.all() {
            if let Entry::Open(volume) = entry
                && let Some(surplus) = &volume.surplus
            {
                surplus.set_rule(limits.history_keep);
            }
        }
    }

    /// Gives a volume another name. Blocks until it has stopped and started.
    pub fn rename(&self, name: &VolumeName, to: &VolumeName, force: bool) -> Result<(), ManageError> {
        let stopped = self.making.lock();
        if *stopped {
            return Err(stopping().into());
        }
        let (from, target) = (self.data.join(name.as_str()), self.data.join(to.as_str()));
        if self.get(to).is_some() || target.exists() {
            return Err(ManageError::Exists(to.clone()));
        }
        self.close(name, force)?;
        let renamed = fs::rename(&from, &target).and_then(|()| durable::sync_directory(&self.data));
        // Where it is now, whatever happened.
        let (now, directory) = if target.exists() { (to, target) } else { (name, from) };
        let entry = open_entry(directory, &self.limits());
        let mut entries = self.entries.lock();
        entries.remove(name);
        entries.insert(now.clone(), entry);
        drop(entries);
        renamed.map_err(failed(format!("renaming volume {name} to {to}")))?;
        tracing::info!(volume = %name, to = %to, "volume renamed");
        Ok(())
    }

    /// Takes a volume away, and says where its data is. Blocks until it has stopped.
    pub fn delete(&self, name: &VolumeName, force: bool) -> Result<PathBuf, ManageError> {
        let stopped = self.making.lock();
        if *stopped {
            return Err(stopping().into());
        }
        self.close(name, force)?;
        let kept = self.data.join(DELETED);
        let from = self.data.join(name.as_str());
        let target = kept.join(format!("{name}-{}", now_s()));
        let moved = durable::create_private_dir(&kept)
            .and_then(|()| fs::rename(&from, &target))
            .and_then(|()| durable::sync_directory(&kept))
            .and_then(|()| durable::sync_directory(&self.data));
        if let Err(error) = moved {
            if from.exists() {
                let entry = open_entry(from, &self.limits());
                self.entries.lock().insert(name.clone(), entry);
            }
            return Err(failed(format!("moving volume {name} to {}", target.display()))(error));
        }
        self.entries.lock().remove(name);
        tracing::info!(volume = %name, kept = %target.display(), "volume deleted");
        Ok(target)
    }

    /// Stops a volume's thread and waits until nobody uses it. Who comes meanwhile is told to try again.
    fn close(&self, name: &VolumeName, force: bool) -> Result<(), ManageError> {
        let entry = self.get(name).ok_or_else(|| ManageError::Missing(name.clone()))?;
        let Entry::Open(volume) = entry else { return Ok(()) };
        let holder = {
            let facts = volume.facts.lock();
            facts.holder.as_ref().filter(|_| facts.connected).map(|(holder, _)| holder.to_string())
        };
        if let (Some(holder), false) = (holder, force) {
            return Err(ManageError::Mounted(name.clone(), holder));
        }
        let refusal = Refusal::unavailable(format!("volume {name} is being renamed or deleted"));
        let broken = Broken { directory: volume.directory.clone(), refusal };
        self.entries.lock().insert(name.clone(), Entry::Broken(Arc::new(broken)));
        // A thread that is gone has stopped already.
        let _ = volume.tell(Command::Stop);
        if let Some(thread) = volume.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!(volume = %name, "the volume's thread panicked");
        }
        // The index is closed with the last user.
        let begun = Instant::now();
        while Arc::strong_count(&volume) > 1 && begun.elapsed() < LET_GO {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Removes deleted volumes whose time is over, now and from time to time. `None`: they are kept.
    pub fn remove_deleted(&self, keep: Option<Duration>) -> io::Result<()> {
        let (Some(keep), directory) = (keep, self.data.join(DELETED)) else { return Ok(()) };
        std::thread::Builder::new().name("deleted volumes".to_owned()).spawn(move || {
            loop {
                for path in expired(&directory, keep, now_s()) {
                    match fs::remove_dir_all(&path) {
                        Ok(()) => tracing::info!(directory = %path.display(), "a deleted volume was removed"),
                        Err(error) => {
                            tracing::warn!(directory = %path.display(), %error, "a deleted volume cannot be removed")
                        }
                    }
                }
                std::thread::sleep(LOOK_EVERY);
            }
        })?;
        Ok(())
    }
}

/// Deleted volumes whose time is over: by the time in their names, which nothing changes.
fn expired(directory: &Path, keep: Duration, now_s: u64) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let over = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let deleted_s = name.rsplit_once('-').and_then(|(_, time)| time.parse::<u64>().ok());
        deleted_s.is_some_and(|deleted_s| deleted_s.saturating_add(keep.as_secs()) < now_s)
    };
    entries.flatten().map(|entry| entry.path()).filter(over).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::expired;

    #[test]
    fn a_deleted_volume_goes_when_its_time_is_over_and_nothing_else_does() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["old-100", "new-950", "a-b-100", "strange", "later-99999999999999999999"] {
            fs::create_dir(dir.path().join(name)).expect("made");
        }
        let mut gone: Vec<_> = expired(dir.path(), Duration::from_secs(100), 1000)
            .iter()
            .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned())
            .collect();
        gone.sort();
        assert_eq!(gone, ["a-b-100", "old-100"]);
        assert!(expired(&dir.path().join("missing"), Duration::ZERO, 1).is_empty());
    }
}
