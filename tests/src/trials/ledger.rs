//! Writers that remember what was acknowledged to them, and check a tree against it.
//!
//! What a writer notes lives in the memory of the trial, outside the mount and outside the daemons, so no crash of either touches it.
//! `attempted` is noted before the first system call of a step, `acked` after the call that makes it durable has returned 0. A tree
//! that holds less than `acked` lost an acknowledged write; one that holds more than `attempted` made something up.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::rng::content;

const RECORD: usize = 512;
const SLOTS: u64 = 32;
const SLOT: usize = 4096;
/// Files that the writer of names keeps.
const KEPT: u64 = 8;

/// How a writer makes things durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Appends records; fdatasync after each.
    Append,
    /// Appends records through O_DSYNC.
    AppendDsync,
    /// Overwrites blocks of one file at random; fsync after each.
    Slots,
    /// Saves a document as editors do: temporary file, fsync, rename, fsync of the directory.
    Replace,
    /// Creates files and removes old ones; fsync of the file and of the directory.
    Names,
}

/// All kinds.
pub const KINDS: [Kind; 5] = [Kind::Append, Kind::AppendDsync, Kind::Slots, Kind::Replace, Kind::Names];

/// How closely a tree is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It must be a past state of the mount: nothing half done, nothing made up.
    PastState,
    /// Only what was acknowledged must be there: a file system that lost power may have kept any part of the rest.
    AcknowledgedOnly,
}

#[derive(Clone, Debug, Default)]
struct Facts {
    attempted: u64,
    acked: u64,
    /// For each slot: the version attempted, the version acknowledged.
    slots: Vec<(u64, u64)>,
    /// Steps of the prefix writer that were complete before the last acknowledged call began.
    floor: u64,
    /// Nothing that is acknowledged from now on counts.
    closed: bool,
}

/// One writer and what it knows.
#[derive(Debug)]
pub struct Writer {
    kind: Kind,
    dir: String,
    seed: u64,
    facts: Mutex<Facts>,
}

fn dir_sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Writer {
    /// A writer in directory `dir` below the root of a tree.
    pub fn new(kind: Kind, dir: &str, seed: u64) -> Self {
        let facts = Facts { slots: vec![(0, 0); SLOTS as usize], ..Facts::default() };
        Writer { kind, dir: dir.to_owned(), seed, facts: Mutex::new(facts) }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acknowledged steps.
    pub fn acked(&self) -> u64 {
        self.facts().acked
    }

    /// Steps of the prefix writer that the last acknowledgement covers.
    pub fn floor(&self) -> u64 {
        self.facts().floor
    }

    /// The power goes: what is acknowledged later was not acknowledged by a machine that ran.
    pub fn close(&self) {
        self.facts().closed = true;
    }

    /// Claims a step that nobody acknowledged, so that a check must object. For tests of the trials.
    pub fn lie(&self) {
        let mut facts = self.facts();
        facts.attempted += 1;
        facts.acked = facts.attempted;
        for slot in &mut facts.slots {
            *slot = (slot.0 + 1, slot.0 + 1);
        }
    }

    fn bytes(&self, what: u64, version: u64, len: usize) -> Vec<u8> {
        let mut bytes = content(self.seed ^ what.rotate_left(32) ^ version.wrapping_mul(0x9e37_79b9_7f4a_7c15), len);
        bytes[..8].copy_from_slice(&version.to_le_bytes());
        bytes
    }

    fn document(&self, version: u64) -> Vec<u8> {
        self.bytes(1, version, 100 + (version.wrapping_mul(7919) % 20_000) as usize)
    }

    /// Writes below `root` until `stop` or an error. `prefix` counts the complete steps of the prefix writer.
    pub fn run(&self, root: &Path, prefix: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
        let dir = root.join(&self.dir);
        fs::create_dir_all(&dir)?;
        // The names on the way are part of what an acknowledgement means.
        let mut above = dir.as_path();
        while let Some(parent) = above.parent().filter(|_| above != root) {
            dir_sync(parent)?;
            above = parent;
        }
        let file = self.open(&dir)?;
        let mut step = self.facts().attempted;
        while !stop.load(Ordering::Relaxed) {
            self.step(&dir, file.as_ref(), step, prefix)?;
            step += 1;
        }
        Ok(())
    }

    fn open(&self, dir: &Path) -> io::Result<Option<File>> {
        let flags = if self.kind == Kind::AppendDsync { libc::O_DSYNC } else { 0 };
        let open =
            || OpenOptions::new().create(true).truncate(false).write(true).custom_flags(flags).open(dir.join("file"));
        match self.kind {
            Kind::Replace | Kind::Names => Ok(None),
            Kind::Append | Kind::AppendDsync => {
                let file = open()?;
                dir_sync(dir)?;
                Ok(Some(file))
            }
            Kind::Slots => {
                let file = open()?;
                for slot in 0..SLOTS {
                    file.write_all_at(&self.bytes(slot, 0, SLOT), slot * SLOT as u64)?;
                }
                file.sync_all()?;
                dir_sync(dir)?;
                // From here on every slot must be there.
                let mut facts = self.facts();
                facts.acked = u64::from(!facts.closed);
                facts.attempted = 1;
                Ok(Some(file))
            }
        }
    }

    fn step(&self, dir: &Path, file: Option<&File>, step: u64, prefix: &AtomicU64) -> io::Result<()> {
        let slot = self.seed.wrapping_add(step).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20;
        let slot = (slot % SLOTS) as usize;
        {
            let mut facts = self.facts();
            facts.attempted = step + 1;
            facts.slots[slot].0 = step + 1;
        }
        let before = prefix.load(Ordering::SeqCst);
        // What was complete before the call that is acknowledged began is covered; what `perform` does first only adds to that.
        match (self.kind, file) {
            (Kind::Append, Some(file)) => {
                file.write_all_at(&self.bytes(0, step, RECORD), step * RECORD as u64)?;
                file.sync_data()?;
            }
            (Kind::AppendDsync, Some(file)) => {
                file.write_all_at(&self.bytes(0, step, RECORD), step * RECORD as u64)?;
            }
            (Kind::Slots, Some(file)) => {
                file.write_all_at(&self.bytes(slot as u64, step + 1, SLOT), (slot * SLOT) as u64)?;
                file.sync_all()?;
            }
            (Kind::Replace, _) => self.replace(dir, step + 1)?,
            _ => self.names(dir, step)?,
        }
        let mut facts = self.facts();
        if facts.closed {
            return Ok(());
        }
        facts.acked = step + 1;
        facts.slots[slot].1 = step + 1;
        facts.floor = facts.floor.max(before);
        Ok(())
    }

    fn replace(&self, dir: &Path, version: u64) -> io::Result<()> {
        let temporary = dir.join("document.new");
        let file = File::create(&temporary)?;
        file.write_all_at(&self.document(version), 0)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join("document"))?;
        dir_sync(dir)
    }

    fn names(&self, dir: &Path, step: u64) -> io::Result<()> {
        let file = File::create(dir.join(format!("f{step}")))?;
        file.write_all_at(&self.bytes(2, step, 700), 0)?;
        file.sync_all()?;
        if step >= KEPT {
            fs::remove_file(dir.join(format!("f{}", step - KEPT)))?;
        }
        dir_sync(dir)
    }

    /// What is wrong with a tree, by what this writer knows.
    pub fn check(&self, root: &Path, look: Look) -> Vec<String> {
        let dir = root.join(&self.dir);
        let facts = self.facts().clone();
        let found = match self.kind {
            Kind::Append | Kind::AppendDsync => self.check_records(&dir, &facts, look),
            Kind::Slots => self.check_slots(&dir, &facts, look),
            Kind::Replace => self.check_document(&dir, &facts),
            Kind::Names => self.check_names(&dir, &facts, look),
        };
        let name = |what: String| format!("{} ({:?}, {} acknowledged): {what}", self.dir, self.kind, facts.acked);
        found.into_iter().map(name).collect()
    }

    fn check_records(&self, dir: &Path, facts: &Facts, look: Look) -> Vec<String> {
        let bytes = match read(&dir.join("file")) {
            Ok(bytes) => bytes,
            Err(error) => return vec![error],
        };
        let mut wrong = Vec::new();
        let records = bytes.len() as u64 / RECORD as u64;
        if records < facts.acked {
            wrong.push(format!("only {records} records: an acknowledged write is missing"));
        }
        let until = if look == Look::PastState { records } else { records.min(facts.acked) };
        let good = |at: &u64| {
            let from = *at as usize * RECORD;
            bytes[from..from + RECORD] == self.bytes(0, *at, RECORD)
        };
        if let Some(at) = (0..until).find(|at| !good(at)) {
            wrong.push(format!("record {at} of {records} is not what was written"));
        }
        if look == Look::PastState && (records > facts.attempted || !bytes.len().is_multiple_of(RECORD)) {
            wrong.push(format!("{} bytes, but only {} records were ever begun", bytes.len(), facts.attempted));
        }
        wrong
    }

    fn check_slots(&self, dir: &Path, facts: &Facts, look: Look) -> Vec<String> {
        if facts.acked == 0 && look == Look::AcknowledgedOnly {
            return Vec::new();
        }
        let bytes = match read(&dir.join("file")) {
            Ok(bytes) => bytes,
            Err(error) => return vec![error],
        };
        if facts.acked == 0 {
            return Vec::new();
        }
        let mut wrong = Vec::new();
        for slot in 0..SLOTS as usize {
            let (attempted, acked) = facts.slots[slot];
            let Some(found) = bytes.get(slot * SLOT..(slot + 1) * SLOT) else {
                wrong.push(format!("slot {slot} is missing: the file has {} bytes", bytes.len()));
                break;
            };
            let version = version_of(found);
            if version < acked {
                wrong.push(format!("slot {slot} holds version {version}, acknowledged was {acked}"));
            } else if version > attempted || found != self.bytes(slot as u64, version, SLOT) {
                wrong.push(format!("slot {slot} holds what was never written (version {version} of {attempted})"));
            }
        }
        wrong
    }

    fn check_document(&self, dir: &Path, facts: &Facts) -> Vec<String> {
        let path = dir.join("document");
        if facts.acked == 0 && !path.exists() {
            return Vec::new();
        }
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return vec![error],
        };
        let version = version_of(&bytes);
        if version < facts.acked {
            return vec![format!("the document is version {version}: a later one was acknowledged")];
        }
        if version > facts.attempted || bytes != self.document(version) {
            return vec![format!("the document ({} bytes, version {version}) was never written", bytes.len())];
        }
        Vec::new()
    }

    fn check_names(&self, dir: &Path, facts: &Facts, look: Look) -> Vec<String> {
        let mut wrong = Vec::new();
        for step in facts.attempted.saturating_sub(KEPT)..facts.acked {
            match read(&dir.join(format!("f{step}"))) {
                Ok(bytes) if bytes == self.bytes(2, step, 700) => {}
                Ok(bytes) => wrong.push(format!("f{step} ({} bytes) is not what was written", bytes.len())),
                Err(error) => wrong.push(error),
            }
        }
        let names: BTreeSet<u64> = match fs::read_dir(dir) {
            Ok(entries) => entries.flatten().filter_map(|entry| number(&entry.path())).collect(),
            Err(_) => BTreeSet::new(),
        };
        let removed = facts.acked.saturating_sub(KEPT);
        if let Some(step) = names.iter().find(|step| **step < removed) {
            wrong.push(format!("f{step} is there again: its removal was acknowledged"));
        }
        if look == Look::PastState
            && let Some(step) = names.iter().find(|step| **step >= facts.attempted)
        {
            wrong.push(format!("f{step} was never made"));
        }
        wrong
    }
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix('f')?.parse().ok()
}

fn version_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let len = bytes.len().min(8);
    word[..len].copy_from_slice(&bytes[..len]);
    u64::from_le_bytes(word)
}

/// A file that is not there is empty: whether something is missing is for the caller to say.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{} cannot be read: {error}", PathBuf::from(path).display())),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        os::unix::fs::FileExt as _,
        path::Path,
        sync::atomic::{AtomicBool, AtomicU64},
        thread,
        time::Duration,
    };

    use super::{KINDS, Kind, Look, Writer};

    fn written(kind: Kind, dir: &Path) -> Writer {
        let writer = Writer::new(kind, "a/b", 77);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let work = scope.spawn(|| writer.run(dir, &AtomicU64::new(0), &stop));
            while writer.acked() < 20 {
                thread::sleep(Duration::from_millis(1));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            work.join().expect("no panic").expect("a plain directory");
        });
        writer
    }

    #[test]
    fn a_plain_directory_keeps_all_that_it_acknowledged() {
        for kind in KINDS {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let writer = written(kind, dir.path());
            for look in [Look::PastState, Look::AcknowledgedOnly] {
                assert_eq!(writer.check(dir.path(), look), Vec::<String>::new());
            }
        }
    }

    #[test]
    fn an_acknowledged_step_that_is_not_there_is_missed() {
        for kind in KINDS {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let writer = written(kind, dir.path());
            writer.lie();
            for look in [Look::PastState, Look::AcknowledgedOnly] {
                assert!(!writer.check(dir.path(), look).is_empty(), "{kind:?}");
            }
        }
    }

    #[test]
    fn a_tree_without_anything_is_missed() {
        for kind in KINDS {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let writer = written(kind, dir.path());
            fs::remove_dir_all(dir.path().join("a")).expect("there");
            assert!(!writer.check(dir.path(), Look::AcknowledgedOnly).is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn bytes_that_nobody_wrote_are_seen() {
        for (kind, name) in
            [(Kind::Append, "file"), (Kind::AppendDsync, "file"), (Kind::Slots, "file"), (Kind::Replace, "document")]
        {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let writer = written(kind, dir.path());
            let file = OpenOptions::new().write(true).open(dir.path().join("a/b").join(name)).expect("there");
            file.write_all_at(b"!", 50).expect("writable");
            assert!(!writer.check(dir.path(), Look::AcknowledgedOnly).is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn a_removed_name_that_comes_back_is_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let writer = written(Kind::Names, dir.path());
        fs::write(dir.path().join("a/b/f0"), "again").expect("writable");
        assert!(!writer.check(dir.path(), Look::AcknowledgedOnly).is_empty());
    }
}
