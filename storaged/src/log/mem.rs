//! A disk in memory that forgets what was not synced: what the simulation runs the production log on.
//!
//! A crash keeps, per file, an arbitrary part of the writes that were not synced, each torn at a sector; names that were not synced
//! come back in the state after some prefix of the changes. What was synced stands. A sync that fails loses some of what it was to write:
//! readers see it until the power goes, and a later sync does not bring it to the disk.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::disk::{Blocks, Disk, DiskFile};

/// A write is torn at multiples of this.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct FileState {
    /// As readers see it.
    live: Vec<u8>,
    /// As a crash leaves it, but for `unsynced`.
    durable: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

impl FileState {
    /// A sync failed: half of what it was to write is marked as written all the same.
    fn lose_some(&mut self, seed: &mut u64) {
        self.unsynced.retain(|_| random(seed) & 1 == 0);
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Default)]
struct State {
    files: Vec<FileState>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    unsynced_names: Vec<NameChange>,
    small: BTreeMap<String, Vec<u8>>,
    fail_writes: Option<i32>,
    fail_syncs: Option<i32>,
    crashes: u64,
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

/// An open file of a [`MemDisk`]. After a crash it answers EIO, like the descriptor of a process that is gone.
#[derive(Debug)]
pub struct MemFile {
    disk: MemDisk,
    file: usize,
    crashes: u64,
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Create(name, file) => {
            names.insert(name.clone(), *file);
        }
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

/// splitmix64: all that a crash needs of randomness.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl MemDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power loss, as `seed` decides. Open files become unusable.
    pub fn crash(&self, seed: u64) {
        let mut seed = seed;
        let mut state = self.state();
        let state = &mut *state;
        for file in &mut state.files {
            let mut kept = std::mem::take(&mut file.durable);
            for (offset, data) in std::mem::take(&mut file.unsynced) {
                for (at, sector) in data.chunks(SECTOR).enumerate() {
                    if random(&mut seed) & 1 == 0 {
                        put(&mut kept, offset as usize + at * SECTOR, sector);
                    }
                }
            }
            file.live.clone_from(&kept);
            file.durable = kept;
        }
        let changes = std::mem::take(&mut state.unsynced_names);
        let kept = random(&mut seed) as usize % (changes.len() + 1);
        for change in &changes[..kept] {
            apply(&mut state.durable_names, change);
        }
        state.names = state.durable_names.clone();
        state.crashes += 1;
    }

    /// The process dies, the machine stays up: everything that was written stands, open files become unusable.
    pub fn kill(&self) {
        self.state().crashes += 1;
    }

    /// Lets the write after `good` more fail with ENOSPC, and all after it; `None`: none fails.
    pub fn fail_writes_after(&self, good: Option<i32>) {
        self.state().fail_writes = good;
    }

    /// The same with EIO for syncs.
    pub fn fail_syncs_after(&self, good: Option<i32>) {
        self.state().fail_syncs = good;
    }

    /// Changes stored bytes behind everybody's back, as a bad disk does.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if let Some(file) = state.names.get(name).copied() {
            let file = &mut state.files[file];
            change(&mut file.live);
            file.durable.clone_from(&file.live);
            file.unsynced.clear();
        }
    }

    /// Loses a small file behind everybody's back.
    pub fn forget_small(&self, name: &str) {
        self.state().small.remove(name);
    }

    /// The bytes of a file as readers see them.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        state.names.get(name).map(|file| state.files[*file].live.clone())
    }

    fn handle(&self, file: usize) -> MemFile {
        let crashes = self.state().crashes;
        MemFile { disk: self.clone(), file, crashes }
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn countdown(left: &mut Option<i32>, error: i32) -> io::Result<()> {
    match left {
        Some(0) => Err(io::Error::from_raw_os_error(error)),
        Some(left) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl Disk for MemDisk {
    type File = MemFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<MemFile> {
        let file = self.state().names.get(name).copied().ok_or_else(missing)?;
        Ok(self.handle(file))
    }

    fn create(&self, name: &str, len: u64, _blocks: Blocks) -> io::Result<MemFile> {
        let file = {
            let mut state = self.state();
            countdown(&mut state.fail_writes, libc::ENOSPC)?;
            let zeroes = vec![0; len as usize];
            state.files.push(FileState { live: zeroes.clone(), durable: zeroes, unsynced: Vec::new() });
            let file = state.files.len() - 1;
            let change = NameChange::Create(name.to_owned(), file);
            apply(&mut state.names, &change);
            state.unsynced_names.push(change);
            file
        };
        Ok(self.handle(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.names.contains_key(from) {
            return Err(missing());
        }
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        apply(&mut state.names, &change);
        state.unsynced_names.push(change);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.names.contains_key(name) {
            return Err(missing());
        }
        let change = NameChange::Remove(name.to_owned());
        apply(&mut state.names, &change);
        state.unsynced_names.push(change);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state();
        countdown(&mut state.fail_syncs, libc::EIO)?;
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn read_small(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state().small.get(name).cloned())
    }

    fn replace_durably(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        countdown(&mut state.fail_writes, libc::ENOSPC)?;
        state.small.insert(name.to_owned(), bytes.to_owned());
        Ok(())
    }
}

impl MemFile {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.crashes != self.crashes {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        act(&mut state)
    }
}

impl DiskFile for MemFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.files[self.file].live.len() as u64))
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|state| {
            let live = &state.files[self.file].live;
            let from = live.get(offset as usize..offset as usize + bytes.len());
            bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state| {
            countdown(&mut state.fail_writes, libc::ENOSPC)?;
            let file = &mut state.files[self.file];
            put(&mut file.live, offset as usize, bytes);
            file.unsynced.push((offset, bytes.to_owned()));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state| {
            let failed = countdown(&mut state.fail_syncs, libc::EIO);
            let mut seed = state.crashes ^ self.file as u64;
            let file = &mut state.files[self.file];
            if let Err(error) = failed {
                file.lose_some(&mut seed);
                return Err(error);
            }
            for (offset, data) in std::mem::take(&mut file.unsynced) {
                put(&mut file.durable, offset as usize, &data);
            }
            Ok(())
        })
    }
}
