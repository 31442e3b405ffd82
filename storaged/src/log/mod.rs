//! The replica's append-only log: what makes `durable` true.
//!
//! Promise: once [`Log::append_group`] has returned, its records survive a crash of the process and of the machine, and they are
//! read back in order and exactly. What was never acknowledged may be there or not, but never in part: a torn tail is cut off
//! at the last whole record when the log is opened. Damage in what was acknowledged is never cut off: the log refuses to open.
//!
//! ```text
//! log/format            nonce of this log, format version
//! log/0000000000000003.seg   ┐ preallocated files; frames of tandem_runtime::frame, whose generation is hash(nonce, index),
//! log/0000000000000004.seg   ┘ so that neither an earlier use of the file nor user data in a payload parses as a record
//! log/free-00000001     recycled files, waiting for their next use
//! ```
//!
//! How a torn tail is told from damage: each frame carries the offset up to which the segment was durable when it was written. So
//! a whole frame behind a broken one proves that the broken one was durable, unless both were written between the same two syncs.
//! After each sync a mark is written behind the group, which protects the last group as well once it is on the disk (it is not
//! synced at once: it goes there with the next group, or in the next pause). A segment's header says where the one before it
//! ended.
//!
//! What the records mean is in [`codec`]; who decides what is appended is the volume. The log does no locking: one thread owns it.

pub mod codec;
mod direct;
pub mod disk;
pub mod image;
pub mod mem;
mod open;
mod read;
mod segment;

use std::{collections::BTreeMap, fmt, io};

use tandem_runtime::mutant;

use self::{
    disk::{Blocks, Disk, DiskFile as _},
    segment::{FREE_PREFIX, FRESH, KIND_MARK, Nonce, frame_into, header, segment_name},
};

pub use read::{RawRecord, RawRecords};

/// Groups of a segment that were this large on average make the next one [`Blocks::Allocated`].
const LARGE_GROUP_BYTES: u64 = 256 << 10;

/// A place in the log: just before a record. Ordered as the records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct LogPos {
    /// Index of the segment.
    pub segment: u64,
    /// Byte in it.
    pub offset: u64,
}

impl fmt::Display for LogPos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", segment_name(self.segment), self.offset)
    }
}

/// The log cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused. Nothing was acknowledged; the same call may be repeated.
    #[error("{what} {name}: {source}{}", advice(.source))]
    Io {
        /// Purpose of the call.
        what: &'static str,
        /// File it was about.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Acknowledged data is damaged or missing. Nothing was changed.
    #[error(
        "the log is damaged at {at}: {problem}. Data that was acknowledged may be affected, so it is not repaired by itself. \
         Stop storaged and run tandem-storaged check --repair, or restore the volume from a copy"
    )]
    Damaged {
        /// Where.
        at: LogPos,
        /// What is wrong there.
        problem: String,
    },
    /// Another version wrote this log.
    #[error(
        "the log has format {found}, and this storaged knows format {known}: upgrade tandem-storaged to the version that wrote it"
    )]
    Version {
        /// In the file.
        found: u32,
        /// Of this program.
        known: u32,
    },
}

/// What to do about it, behind the error.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space there, the log goes on by itself",
        _ => "",
    }
}

impl LogError {
    /// Whether there is no room on its disk.
    pub fn is_no_space(&self) -> bool {
        matches!(self, LogError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    fn io(what: &'static str, name: impl Into<String>) -> impl FnOnce(io::Error) -> LogError {
        let name = name.into();
        move |source| LogError::Io { what, name, source }
    }
}

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Length of a segment. A record that does not fit gets a longer one of its own.
    pub segment_bytes: u64,
    /// Recycled files that are kept; more are deleted. Reuse saves block allocation in fdatasync.
    pub free_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { segment_bytes: 16 << 20, free_max: 3 }
    }
}

/// A record to append: its kind (not 0 and not 255), its format version and its payload in parts.
#[derive(Clone, Copy, Debug)]
pub struct Append<'a> {
    /// What it is; see [`codec`].
    pub kind: u8,
    /// Format of the payload.
    pub version: u8,
    /// The bytes.
    pub payload: &'a [u8],
}

/// What [`Log::append_group`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where the first record stands.
    pub at: LogPos,
    /// How many were appended; the caller comes back with the rest.
    pub count: usize,
}

/// The log of one volume.
pub struct Log<D: Disk> {
    disk: D,
    options: LogOptions,
    nonce: Nonce,
    /// End of each closed segment, and of the current one (which is the last).
    ends: BTreeMap<u64, u64>,
    current: Current<D::File>,
    free: Vec<String>,
    next_free: u64,
    buffer: Vec<u8>,
}

struct Current<F> {
    file: F,
    index: u64,
    len: u64,
    /// Where the next frame goes.
    end: u64,
    /// Up to here everything is durable. A mark may stand behind it.
    synced: u64,
    /// Appended since it was begun or opened.
    groups: u64,
    /// Where they begin.
    first: u64,
    /// Nothing may be appended any more: a write or sync failed behind `end`, or the next segment was begun.
    poisoned: bool,
}

impl<F> Current<F> {
    /// What the file after it is prepared for. Groups of a writer that is in a hurry are large, and their segment is written at once: to write
    /// it twice would halve what the disk can take. Small ones are each synced, and a change of metadata would cost each of them.
    fn blocks_of_next(&self) -> Blocks {
        match (self.end - self.first) / self.groups.max(1) >= LARGE_GROUP_BYTES {
            true => Blocks::Allocated,
            false => Blocks::Written,
        }
    }

    /// How many of `records` fit. Room for the mark that follows a group is always left.
    fn room_for(&self, records: &[Append<'_>]) -> usize {
        let mut end = self.end + segment::frame_bytes(0);
        records
            .iter()
            .take_while(|record| {
                end += segment::frame_bytes(record.payload.len());
                end <= self.len
            })
            .count()
    }
}

impl<D: Disk> Log<D> {
    /// Where the next record will stand.
    pub fn end(&self) -> LogPos {
        LogPos { segment: self.current.index, offset: self.current.end }
    }

    /// Everything before it is durable; records begin there or follow.
    pub fn synced_end(&self) -> LogPos {
        LogPos { segment: self.current.index, offset: self.current.synced }
    }

    /// Where the oldest record stands that is still kept.
    pub fn start(&self) -> LogPos {
        let segment = self.ends.keys().next().copied().unwrap_or(self.current.index);
        LogPos { segment, offset: segment::HEADER_BYTES }
    }

    /// Bytes of records that are kept.
    pub fn bytes(&self) -> u64 {
        self.ends.values().sum()
    }

    /// Appends records as one group and makes them durable. As many as fit into a segment are taken, at least one: the caller
    /// comes back with the rest. After an error none was taken, and the same or other records may be appended.
    pub fn append_group(&mut self, records: &[Append<'_>]) -> Result<Appended, LogError> {
        assert!(!records.is_empty(), "an empty group is never appended");
        let count = self.fit(records)?;
        let at = self.write_group(&records[..count])?;
        Ok(Appended { at, count })
    }

    /// Rolls if needed, and says how many of `records` go into the current segment.
    fn fit(&mut self, records: &[Append<'_>]) -> Result<usize, LogError> {
        let fits = if self.current.poisoned { 0 } else { self.current.room_for(records) };
        if fits > 0 {
            return Ok(fits);
        }
        let largest = segment::frame_bytes(records[0].payload.len());
        self.roll(segment::HEADER_BYTES + largest + segment::frame_bytes(0))?;
        let fits = self.current.room_for(records);
        assert!(fits > 0, "a fresh segment holds at least the record that it was made for");
        Ok(fits)
    }

    fn write_group(&mut self, records: &[Append<'_>]) -> Result<LogPos, LogError> {
        let start = self.current.end;
        let durable = self.current.synced;
        let generation = self.nonce.generation(self.current.index);
        self.buffer.clear();
        for record in records {
            frame_into(&mut self.buffer, generation, record.kind, record.version, durable, record.payload);
        }
        let name = || segment_name(self.current.index);
        let file = &self.current.file;
        let written = file.write_all_at(&self.buffer, start).map_err(LogError::io("writing", name())).and_then(|()| {
            match mutant::is("ack-before-fsync") {
                true => Ok(()),
                false => file.sync_data().map_err(LogError::io("syncing", name())),
            }
        });
        if let Err(error) = written {
            // A failed sync may have dropped the pages: nothing behind `end` can be trusted or synced again.
            self.current.poisoned = true;
            return Err(error);
        }
        self.current.end = start + self.buffer.len() as u64;
        self.current.synced = self.current.end;
        self.current.groups += 1;
        self.ends.insert(self.current.index, self.current.end);
        Ok(LogPos { segment: self.current.index, offset: start })
    }

    /// Writes the mark that says that everything before it is durable. Not synced: it goes to the disk with the next group.
    /// Called after the acknowledgement, because it only protects against damage.
    pub fn mark_durable(&mut self) {
        if self.current.poisoned || self.current.end + segment::frame_bytes(0) > self.current.len {
            return;
        }
        let start = self.current.end;
        self.buffer.clear();
        let generation = self.nonce.generation(self.current.index);
        frame_into(&mut self.buffer, generation, KIND_MARK, 1, self.current.synced, &[]);
        match self.current.file.write_all_at(&self.buffer, start) {
            Ok(()) => {
                self.current.end = start + self.buffer.len() as u64;
                self.ends.insert(self.current.index, self.current.end);
            }
            Err(_) => self.current.poisoned = true,
        }
    }

    /// Makes the mark durable: when there is a pause, so that a writer that waits for each op never waits for a mark.
    pub fn sync_mark(&mut self) {
        if !self.current.poisoned && self.current.end > self.current.synced && self.current.file.sync_data().is_err() {
            // The records before it were durable already. What a failed sync dropped cannot be known.
            self.current.poisoned = true;
        }
    }

    /// Begins the next segment, which will hold at least `need` bytes. Everything in the one before is durable.
    fn roll(&mut self, need: u64) -> Result<(), LogError> {
        // A mark may stand behind the last group, written and not synced. It is worth no sync: it is left out.
        self.current.end = self.current.synced;
        self.ends.insert(self.current.index, self.current.end);
        let index = self.current.index + 1;
        let previous_end = self.current.end;
        let len = need.max(self.options.segment_bytes);
        let blocks = if need > self.options.segment_bytes { Blocks::Allocated } else { self.current.blocks_of_next() };
        // From here on the header of the next segment may be on the disk, also if this fails: nothing may follow in this one.
        self.current.poisoned = true;
        let file = begin_segment(&self.disk, &mut self.free, &self.nonce, index, previous_end, len, blocks)?;
        let len = file.len().map_err(LogError::io("reading the length of", segment_name(index)))?;
        self.ends.insert(index, segment::HEADER_BYTES);
        self.current = Current {
            file,
            index,
            len,
            end: segment::HEADER_BYTES,
            synced: segment::HEADER_BYTES,
            groups: 0,
            first: segment::HEADER_BYTES,
            poisoned: false,
        };
        Ok(())
    }

    /// Makes a file ready for the next roll, so that a roll costs no allocation. Called when there is nothing else to do.
    pub fn prepare_spare(&mut self) -> Result<bool, LogError> {
        if !self.free.is_empty() {
            return Ok(false);
        }
        let name = format!("{FREE_PREFIX}{:08x}", self.next_free);
        self.next_free += 1;
        self.disk
            .create(&name, self.options.segment_bytes, Blocks::Written)
            .map_err(LogError::io("preallocating a log segment", name.clone()))?;
        self.free.push(name);
        Ok(true)
    }

    /// Deletes the files that wait to become segments: the disk is full, and the tree needs their room more. How many there were.
    pub fn drop_spares(&mut self) -> Result<usize, LogError> {
        let mut dropped = 0;
        while let Some(name) = self.free.last() {
            self.disk.remove(name).map_err(LogError::io("deleting", name.clone()))?;
            self.free.pop();
            dropped += 1;
        }
        Ok(dropped)
    }

    /// Gives up everything before `keep_from`: segments that lie wholly before it are recycled or deleted.
    pub fn recycle_before(&mut self, keep_from: LogPos) -> Result<(), LogError> {
        while let Some(index) = self.ends.keys().next().copied() {
            if index >= keep_from.segment || index == self.current.index {
                return Ok(());
            }
            let name = segment_name(index);
            if self.free.len() < self.options.free_max {
                let free = format!("{FREE_PREFIX}{:08x}", self.next_free);
                self.next_free += 1;
                self.disk.rename(&name, &free).map_err(LogError::io("recycling", name))?;
                self.free.push(free);
            } else {
                self.disk.remove(&name).map_err(LogError::io("deleting", name))?;
            }
            self.ends.remove(&index);
        }
        Ok(())
    }
}

/// Makes the file of segment `index` from a recycled or a new one. The header is durable before the file has a segment's name,
/// because a recycled file may hold a header that an earlier attempt wrote for the same index.
fn begin_segment<D: Disk>(
    disk: &D,
    free: &mut Vec<String>,
    nonce: &Nonce,
    index: u64,
    previous_end: u64,
    len: u64,
    blocks: Blocks,
) -> Result<D::File, LogError> {
    let name = segment_name(index);
    let (file, made) = take_free(disk, free, len, blocks, &format!("{FREE_PREFIX}{FRESH}"))?;
    let header = header(nonce, index, previous_end);
    let begun = file
        .write_all_at(&header, 0)
        .and_then(|()| file.sync_data())
        .and_then(|()| disk.rename(&made, &name))
        .and_then(|()| disk.sync_names());
    if let Err(error) = begun {
        // The next attempt begins it anew.
        let _ = disk.remove(&made).or_else(|_| disk.remove(&name));
        return Err(LogError::io("beginning", name)(error));
    }
    Ok(file)
}

/// A recycled file of at least `len` bytes, or a new one called `fresh`. Shorter ones are deleted.
fn take_free<D: Disk>(
    disk: &D,
    free: &mut Vec<String>,
    len: u64,
    blocks: Blocks,
    fresh: &str,
) -> Result<(D::File, String), LogError> {
    while let Some(candidate) = free.last().cloned() {
        let file = disk.open(&candidate).map_err(LogError::io("opening", candidate.clone()))?;
        let long_enough = file.len().map_err(LogError::io("reading the length of", candidate.clone()))? >= len;
        free.pop();
        if long_enough {
            return Ok((file, candidate));
        }
        disk.remove(&candidate).map_err(LogError::io("deleting", candidate))?;
    }
    let file = disk.create(fresh, len, blocks).map_err(LogError::io("preallocating", fresh))?;
    Ok((file, fresh.to_owned()))
}

#[cfg(test)]
mod tests;
