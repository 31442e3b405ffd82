//! The activity log: the marks on disk, so that a crash leaves a list of what may differ.
//!
//! One file of framed records (`tandem_runtime::frame`), preallocated with zeroes and written in aligned blocks with
//! `O_DIRECT | O_DSYNC` (without `O_DIRECT` where the file system has none), so that a group commit is one write of one block.
//!
//! ```text
//! Header (volume, replica, floor) | Mark … | Header … | Clear … | zeroes
//! ```
//! The last header counts, and so does the last record of what is suspect. When the file is full, the live marks are written to a new one that replaces it. A torn tail ends the
//! log; a damaged record with good ones behind it means that marks may be missing, and then everything counts as dirty.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tandem_proto::{
    InodeId, Position, Uuid,
    fields::{Fields, put_position},
};
use tandem_runtime::{
    durable,
    frame::{self, Parsed},
};

use crate::commit::{
    MarkCell,
    marks::{Generation, MarkRecord},
};

/// Alignment and unit of writes.
const BLOCK: usize = 4096;
/// Least length of the file: some 10,000 marks between two compactions.
const FILE_MIN: usize = 1 << 20;
/// A write is at most this long; more is split.
const WRITE_MAX: usize = 256 << 10;
const KIND_HEADER: u8 = 1;
const KIND_MARK: u8 = 2;
const KIND_CLEAR: u8 = 3;
const KIND_SUSPECT: u8 = 4;
const RECORD_VERSION: u8 = 1;
/// Headers say since this version which run made the last changes.
const HEADER_VERSION: u8 = 2;
/// Clears in one record.
const CLEARS_MAX: usize = 256;

/// Whose marks these are, and up to where the client relies on the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// The volume; zero before the first attach.
    pub volume_id: Uuid,
    /// The replica; zero before the first attach.
    pub replica_id: Uuid,
    /// Durable before any mark at or below it is cleared.
    pub floor: Position,
    /// The run that made the last changes; its shadow, and no other, says more than the marks.
    pub run: Uuid,
}

/// The backing failed to make something durable. Until the machine is restarted what is read of it may come from memory, so marks up to
/// here stand until a run of another boot has compared what they cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The kernel's boot id of when it failed; zero if it was not to be had.
    pub boot: Uuid,
    /// The last mark of then.
    pub to: Generation,
}

/// What is appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A new header.
    Header(Header),
    /// A mark.
    Mark(MarkRecord),
    /// These generations are cold.
    Clear(Vec<Generation>),
    /// Marks that stand.
    Suspect(Suspect),
}

/// What was found when the log was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last header.
    pub header: Header,
    /// Marks that were not cleared.
    pub marks: Vec<MarkRecord>,
    /// Which of them stand, and in which boot.
    pub suspect: Option<Suspect>,
    /// The log is damaged, so marks may be missing: everything is dirty.
    pub damaged: bool,
}

/// The open log.
#[derive(Debug)]
pub struct ActivityLog {
    path: PathBuf,
    file: File,
    len: usize,
    /// Where the tail's block begins in the file.
    block_start: usize,
    /// Bytes of the block that is being filled.
    tail: Vec<u8>,
    generation: u32,
    writes: u64,
    /// A replacement failed after it may have taken the file's place: what is appended to this one may be read by nobody.
    replaced: bool,
}

impl ActivityLog {
    /// Makes a new log with this header, replacing what was there.
    pub fn create(path: &Path, header: Header) -> io::Result<ActivityLog> {
        Self::create_with(path, 1, &[Record::Header(header)], 0)
    }

    /// Opens the log and reads what it says. `None`: there is none.
    pub fn open(path: &Path) -> io::Result<Option<(ActivityLog, Recovered)>> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let generation = generation_of(&bytes);
        let mut recovered = recover(&bytes);
        if recovered.damaged {
            // The fresh file is whole, so it must say by itself that marks may be missing: without a floor everything is compared.
            recovered.header.floor = Position::default();
        }
        // A fresh file: what follows a torn tail is gone, and generations need no place to go on from.
        let mut records = vec![Record::Header(recovered.header)];
        records.extend(recovered.suspect.map(Record::Suspect));
        records.extend(recovered.marks.iter().map(|mark| Record::Mark(*mark)));
        let log = Self::create_with(path, generation.wrapping_add(1), &records, 0)?;
        Ok(Some((log, recovered)))
    }

    /// Appends the records; they are durable when this returns. `live` gives all live records (header and marks), for when the file is full.
    pub fn append_durably(&mut self, records: &[Record], live: impl FnOnce() -> Vec<Record>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            encode(record, self.generation, &mut bytes);
        }
        if self.replaced || self.block_start + self.tail.len() + bytes.len() > self.len {
            let mut all = live();
            all.extend_from_slice(records);
            // Until a replacement is known to be in place, nothing is durable: neither file may be the one that the next start reads.
            self.replaced = true;
            let generation = self.generation.wrapping_add(1);
            self.generation = generation;
            *self = Self::create_with(&self.path, generation, &all, self.writes + 1)?;
            return Ok(());
        }
        let kept = self.tail.len();
        self.tail.extend_from_slice(&bytes);
        match self.write_tail() {
            Ok(()) => Ok(()),
            Err(error) => {
                self.tail.truncate(kept);
                Err(error)
            }
        }
    }

    /// Writes to the file since the start.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    fn create_with(path: &Path, generation: u32, records: &[Record], writes: u64) -> io::Result<ActivityLog> {
        let mut bytes = Vec::new();
        for record in records {
            encode(record, generation, &mut bytes);
        }
        let len = (bytes.len() * 4).max(FILE_MIN).next_multiple_of(BLOCK);
        let next = path.with_extension("next");
        let block_start = bytes.len() / BLOCK * BLOCK;
        let tail = bytes[block_start..].to_vec();
        bytes.resize(len, 0);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        // Zeroes are written, not only allocated: a write into unwritten extents costs a journal commit each.
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        durable::sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        let file = open_for_blocks(path)?;
        Ok(ActivityLog { path: path.to_owned(), file, len, block_start, tail, generation, writes, replaced: false })
    }

    /// Writes the tail in whole blocks and keeps the last, partly filled one.
    fn write_tail(&mut self) -> io::Result<()> {
        let padded = self.tail.len().next_multiple_of(BLOCK);
        let mut written = 0;
        // From the back to the front a torn group would show later records before earlier ones; so front to back, block order.
        while written < padded {
            let end = (written + WRITE_MAX).min(padded);
            let mut block = AlignedBlock::new(end - written);
            let have = self.tail.len().min(end);
            block.as_mut()[..have - written].copy_from_slice(&self.tail[written..have]);
            self.file.write_all_at(block.as_mut(), (self.block_start + written) as u64)?;
            written = end;
        }
        self.writes += 1;
        let full = self.tail.len() / BLOCK * BLOCK;
        self.tail.drain(..full);
        self.block_start += full;
        Ok(())
    }
}

fn open_for_blocks(path: &Path) -> io::Result<File> {
    let open = |flags: i32| OpenOptions::new().write(true).custom_flags(flags).open(path);
    match open(libc::O_DIRECT | libc::O_DSYNC) {
        Ok(file) => Ok(file),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(libc::O_DSYNC),
        Err(error) => Err(error),
    }
}

/// Memory at a block boundary, as O_DIRECT wants it.
struct AlignedBlock {
    start: *mut u8,
    layout: Layout,
}

impl AlignedBlock {
    fn new(len: usize) -> Self {
        assert!(len > 0, "an empty block is never written");
        let layout =
            Layout::from_size_align(len, BLOCK).expect("a block's length and alignment are small powers of two");
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        AlignedBlock { start, layout }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` was allocated with this size, is zeroed, and is borrowed through `self` only.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }
}

impl Drop for AlignedBlock {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}

fn encode(record: &Record, generation: u32, out: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(96);
    match record {
        Record::Header(header) => {
            payload.extend_from_slice(&header.volume_id.0);
            payload.extend_from_slice(&header.replica_id.0);
            put_position(&mut payload, &header.floor);
            payload.extend_from_slice(&header.run.0);
            frame::append(out, generation, KIND_HEADER, HEADER_VERSION, &payload);
        }
        Record::Mark(mark) => {
            payload.extend_from_slice(&mark.generation.0.to_le_bytes());
            put_position(&mut payload, &mark.since);
            let (tag, block, id) = match &mark.cell {
                MarkCell::Dir(id) => (0, 0, id),
                MarkCell::File { id, block } => (1, *block, id),
            };
            payload.push(tag);
            payload.extend_from_slice(&block.to_le_bytes());
            payload.extend_from_slice(id.as_bytes());
            frame::append(out, generation, KIND_MARK, RECORD_VERSION, &payload);
        }
        Record::Clear(generations) => {
            for group in generations.chunks(CLEARS_MAX) {
                let payload: Vec<u8> = group.iter().flat_map(|cleared| cleared.0.to_le_bytes()).collect();
                frame::append(out, generation, KIND_CLEAR, RECORD_VERSION, &payload);
            }
        }
        Record::Suspect(suspect) => {
            payload.extend_from_slice(&suspect.boot.0);
            payload.extend_from_slice(&suspect.to.0.to_le_bytes());
            frame::append(out, generation, KIND_SUSPECT, RECORD_VERSION, &payload);
        }
    }
}

fn decode(kind: u8, version: u8, payload: &[u8]) -> Option<Record> {
    let newest = if kind == KIND_HEADER { HEADER_VERSION } else { RECORD_VERSION };
    if version == 0 || version > newest {
        return None;
    }
    let mut fields = Fields::new(payload);
    match kind {
        KIND_HEADER => Some(Record::Header(Header {
            volume_id: Uuid(fields.take()?),
            replica_id: Uuid(fields.take()?),
            floor: fields.position()?,
            run: if version == 1 { Uuid::default() } else { Uuid(fields.take()?) },
        })),
        KIND_MARK => {
            let generation = Generation(fields.count()?);
            let since = fields.position()?;
            let [tag] = fields.take()?;
            let block = fields.u64()?;
            let id = InodeId::new(fields.rest())?;
            let cell = if tag == 0 { MarkCell::Dir(id) } else { MarkCell::File { id, block } };
            Some(Record::Mark(MarkRecord { cell, generation, since }))
        }
        KIND_CLEAR => {
            let mut generations = Vec::new();
            while let Some(generation) = fields.u64() {
                generations.push(Generation(generation));
            }
            Some(Record::Clear(generations))
        }
        KIND_SUSPECT => Some(Record::Suspect(Suspect { boot: Uuid(fields.take()?), to: Generation(fields.count()?) })),
        _ => None,
    }
}

/// That of the first record.
fn generation_of(bytes: &[u8]) -> u32 {
    bytes.get(4..8).map_or(1, |word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

/// What the bytes of a log say.
pub fn recover(bytes: &[u8]) -> Recovered {
    let generation = generation_of(bytes);
    let mut recovered = Recovered::default();
    let (mut at, mut header_seen) = (0, false);
    let mut marks: std::collections::BTreeMap<Generation, MarkRecord> = std::collections::BTreeMap::new();
    loop {
        match frame::parse(&bytes[at..], generation) {
            Parsed::Record(found) => {
                match decode(found.kind, found.version, found.payload) {
                    Some(Record::Header(header)) => (recovered.header, header_seen) = (header, true),
                    Some(Record::Mark(mark)) => {
                        marks.insert(mark.generation, mark);
                    }
                    Some(Record::Clear(generations)) => {
                        for generation in generations {
                            marks.remove(&generation);
                        }
                    }
                    Some(Record::Suspect(suspect)) => recovered.suspect = Some(suspect),
                    None => recovered.damaged = true,
                }
                at += found.len;
            }
            Parsed::End => break,
            Parsed::NeedMore(_) | Parsed::Damaged(_) => {
                recovered.damaged |= good_record_follows(bytes, at + 1, generation);
                break;
            }
        }
    }
    recovered.damaged |= !header_seen;
    recovered.marks = marks.into_values().collect();
    recovered
}

fn good_record_follows(bytes: &[u8], from: usize, generation: u32) -> bool {
    let mut prefix = Vec::new();
    frame::append(&mut prefix, generation, 0, 0, &[]);
    let magic = &prefix[..8];
    (from..bytes.len().saturating_sub(8))
        .any(|at| &bytes[at..at + 8] == magic && matches!(frame::parse(&bytes[at..], generation), Parsed::Record(_)))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tandem_proto::{Chain, Epoch, InodeId, Position, Seq, Uuid};

    use super::{ActivityLog, Header, Record, Recovered};
    use crate::commit::{
        MarkCell,
        marks::{Generation, MarkRecord},
    };

    fn mark(generation: u64) -> MarkRecord {
        // No zero bytes at the end: a cut there would be no cut.
        let id = InodeId::new(&(generation | 0xff << 56).to_le_bytes()).expect("short");
        let cell =
            if generation.is_multiple_of(2) { MarkCell::Dir(id) } else { MarkCell::File { id, block: generation * 3 } };
        let since = Position { epoch: Epoch(2), seq: Seq(generation), chain: Chain([3; 16]) };
        MarkRecord { cell, generation: Generation(generation), since }
    }

    fn header(seq: u64) -> Header {
        let floor = Position { epoch: Epoch(1), seq: Seq(seq), chain: Chain([7; 16]) };
        Header { volume_id: Uuid([1; 16]), replica_id: Uuid([2; 16]), floor, run: Uuid([4; 16]) }
    }

    fn reopen(path: &Path) -> (ActivityLog, Recovered) {
        ActivityLog::open(path).expect("readable").expect("there")
    }

    /// With their clears they fill the file a little more than once. Each is a synchronous write.
    const MARKS: u64 = 10_000;

    #[test]
    fn marks_and_clears_survive_reopening_and_compaction() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("activity.log");
        let mut log = ActivityLog::create(&path, header(1)).expect("new");
        // Many in one write, as each write waits for the disk.
        for first in (1..=MARKS).step_by(20) {
            let marked = |generation| [Record::Mark(mark(generation)), Record::Clear(vec![Generation(generation - 1)])];
            let records: Vec<_> = (first..first + 20).flat_map(marked).collect();
            let live = || vec![Record::Header(header(1)), Record::Mark(mark(first - 1))];
            log.append_durably(&records, live).expect("append");
        }
        assert!(log.generation > 1, "the file was full once");
        log.append_durably(&[Record::Header(header(9))], Vec::new).expect("append");
        drop(log);
        for _ in 0..2 {
            let (_, recovered) = reopen(&path);
            assert_eq!(recovered.header, header(9));
            assert_eq!(recovered.marks, [mark(MARKS)]);
            assert!(!recovered.damaged);
        }
    }

    #[test]
    fn torn_at_every_byte_the_records_before_are_found() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("activity.log");
        let mut log = ActivityLog::create(&path, header(1)).expect("new");
        let mut ends = vec![0; 1];
        for generation in 1..=60 {
            log.append_durably(&[Record::Mark(mark(generation))], Vec::new).expect("append");
            ends.push(log.block_start + log.tail.len());
        }
        let mut whole = fs::read(&path).expect("read");
        whole.truncate(16 << 10);
        for cut in (ends[1]..=ends[60]).step_by(7).chain(ends.iter().copied().skip(1)) {
            let mut torn = whole.clone();
            torn[cut..].fill(0);
            let found = super::recover(&torn);
            let expected = ends.iter().skip(1).filter(|end| **end <= cut).count();
            assert_eq!(found.marks.len(), expected, "cut at {cut}");
            assert!(!found.damaged, "a torn tail is no damage: cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_record_with_good_ones_behind_it_makes_everything_dirty() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("activity.log");
        let mut log = ActivityLog::create(&path, header(1)).expect("new");
        for generation in 1..=10 {
            log.append_durably(&[Record::Mark(mark(generation))], Vec::new).expect("append");
        }
        let mut bytes = fs::read(&path).expect("read");
        bytes[300] ^= 1;
        assert!(super::recover(&bytes).damaged);
        assert!(super::recover(&[]).damaged);
        // Starting opens the log more than once, and may be killed in between: the log that replaces a damaged one claims no floor, so
        // that everything is compared.
        fs::write(&path, &bytes).expect("damage");
        assert!(reopen(&path).1.damaged);
        let again = reopen(&path).1;
        assert_eq!((again.header.floor, again.header.volume_id), (Position::default(), header(1).volume_id));
    }
}
