//! Opening a log: finds where it ends, cuts a torn tail, refuses damage.

use super::{
    BTreeMap, Current, Log, LogError, LogOptions, LogPos, begin_segment,
    disk::{Blocks, Disk, DiskFile as _},
    segment::{FREE_PREFIX, HEADER_BYTES, Nonce, Segment, segment_index, segment_name},
};

/// File that says that this is a log and what makes its records its own.
const FORMAT_FILE: &str = "format";
const FORMAT: u32 = 1;

impl<D: Disk> Log<D> {
    /// Makes the log of a new volume. Must not exist.
    pub fn create(disk: D, options: LogOptions, nonce: [u8; 16]) -> Result<Self, LogError> {
        let nonce = Nonce(nonce);
        let mut free = Vec::new();
        let file = begin_segment(&disk, &mut free, &nonce, 1, 0, options.segment_bytes, Blocks::Written)?;
        let mut format = format!("tandem log {FORMAT}\n").into_bytes();
        format.extend_from_slice(tandem_proto::ids::hex(&nonce.0).as_bytes());
        format.push(b'\n');
        disk.replace_durably(FORMAT_FILE, &format).map_err(LogError::io("writing", FORMAT_FILE))?;
        let current = Current {
            file,
            index: 1,
            len: options.segment_bytes,
            end: HEADER_BYTES,
            synced: HEADER_BYTES,
            groups: 0,
            first: HEADER_BYTES,
            poisoned: false,
        };
        let ends = BTreeMap::from([(1, HEADER_BYTES)]);
        Ok(Log { disk, options, nonce, ends, current, free, next_free: 1, buffer: Vec::new() })
    }

    /// Whether there is a log on this disk.
    pub fn exists(disk: &D) -> Result<bool, LogError> {
        Ok(disk.read_small(FORMAT_FILE).map_err(LogError::io("reading", FORMAT_FILE))?.is_some())
    }

    /// Opens the log after a stop or a crash. `start` and `end` are where the volume's state says that it begins and that it
    /// reached at least: what lies before `start` is recycled, and a log that ends before `end` is damaged.
    pub fn open(disk: D, options: LogOptions, start: LogPos, end: LogPos) -> Result<Self, LogError> {
        let nonce = read_format(&disk)?;
        let mut indexes = Vec::new();
        let mut free = Vec::new();
        for name in disk.list().map_err(LogError::io("listing", "log"))? {
            match segment_index(&name) {
                Some(index) if index >= start.segment => indexes.push(index),
                // Recycled, but the crash came before its new name was durable.
                Some(_) => free.push(name),
                None if name.starts_with(FREE_PREFIX) => free.push(name),
                None => {}
            }
        }
        indexes.sort_unstable();
        let (ends, last) = find_ends(&disk, &nonce, &indexes, start, &mut free)?;
        let index = *ends.keys().next_back().unwrap_or(&start.segment);
        let reached = LogPos { segment: index, offset: ends.get(&index).copied().unwrap_or(0) };
        if reached < end {
            let problem = format!("it ends here, and it was durable up to {end}");
            return Err(LogError::Damaged { at: reached, problem });
        }
        let next_free = rename_free(&disk, &mut free)?;
        // A segment that was begun and removed again must not come back after something was appended to the one before it.
        disk.sync_names().map_err(LogError::io("syncing the names of", "log"))?;
        let file = disk.open(&segment_name(index)).map_err(LogError::io("opening", segment_name(index)))?;
        cut_tail(&file, index, reached.offset, &last)?;
        let len = last.len() as u64;
        let end = reached.offset;
        let current = Current { file, index, len, end, synced: end, groups: 0, first: end, poisoned: false };
        let mut log = Log { disk, options, nonce, ends, current, free, next_free, buffer: Vec::new() };
        while log.free.len() > options.free_max {
            if let Some(name) = log.free.pop() {
                log.disk.remove(&name).map_err(LogError::io("deleting", name))?;
            }
        }
        log.mark_durable();
        Ok(log)
    }
}

/// Gives all recycled files names of recycled files: one that still has a segment's name would be taken for that segment.
/// Returns the next number for such a name.
fn rename_free<D: Disk>(disk: &D, free: &mut [String]) -> Result<u64, LogError> {
    let number = |name: &str| u64::from_str_radix(name.strip_prefix(FREE_PREFIX)?, 16).ok();
    let mut next = free.iter().filter_map(|name| number(name)).max().map_or(1, |largest| largest + 1);
    for name in free.iter_mut().filter(|name| segment_index(name).is_some()) {
        let renamed = format!("{FREE_PREFIX}{next:08x}");
        next += 1;
        disk.rename(name, &renamed).map_err(LogError::io("recycling", name.clone()))?;
        *name = renamed;
    }
    Ok(next)
}

pub(super) fn read_format<D: Disk>(disk: &D) -> Result<Nonce, LogError> {
    let damaged = |problem: &str| LogError::Damaged { at: LogPos::default(), problem: problem.to_owned() };
    let bytes = disk.read_small(FORMAT_FILE).map_err(LogError::io("reading", FORMAT_FILE))?;
    let text =
        bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| damaged("its format file is gone"))?;
    let mut lines = text.lines();
    let version = lines.next().and_then(|line| line.strip_prefix("tandem log ")).and_then(|text| text.parse().ok());
    match version {
        Some(FORMAT) => {}
        Some(found) => return Err(LogError::Version { found, known: FORMAT }),
        None => return Err(damaged("its format file is not one")),
    }
    lines
        .next()
        .and_then(tandem_proto::Uuid::from_hex)
        .map(|uuid| Nonce(uuid.0))
        .ok_or_else(|| damaged("its format file has no nonce"))
}

/// The end of each segment, and the bytes of the last one.
fn find_ends<D: Disk>(
    disk: &D,
    nonce: &Nonce,
    indexes: &[u64],
    start: LogPos,
    free: &mut Vec<String>,
) -> Result<(BTreeMap<u64, u64>, Vec<u8>), LogError> {
    let mut ends = BTreeMap::new();
    let mut before: Option<(u64, Vec<u8>)> = None;
    for &index in indexes {
        let bytes = read_segment(disk, index)?;
        let segment = Segment { index, generation: nonce.generation(index), bytes: &bytes };
        let at = LogPos { segment: index, offset: 0 };
        let Some(previous_end) = segment.previous_end() else {
            if segment.proof_behind(0).is_some() || indexes.last() != Some(&index) || before.is_none() {
                return Err(LogError::Damaged { at, problem: "the segment's header is not whole".to_owned() });
            }
            // The crash came while it was begun; nothing was ever acknowledged in it.
            free.push(segment_name(index));
            break;
        };
        match &before {
            Some((last, bytes)) if last + 1 == index => {
                let segment = Segment { index: *last, generation: nonce.generation(*last), bytes };
                ends.insert(*last, closed_end(&segment, previous_end)?);
            }
            None if index == start.segment => {}
            _ => return Err(LogError::Damaged { at, problem: "the segment before it is missing".to_owned() }),
        }
        before = Some((index, bytes));
    }
    let Some((index, bytes)) = before else {
        return Err(LogError::Damaged { at: start, problem: "the segment is missing".to_owned() });
    };
    let segment = Segment { index, generation: nonce.generation(index), bytes: &bytes };
    ends.insert(index, open_end(&segment)?);
    Ok((ends, bytes))
}

fn read_segment<D: Disk>(disk: &D, index: u64) -> Result<Vec<u8>, LogError> {
    let name = segment_name(index);
    let file = disk.open(&name).map_err(LogError::io("opening", name.clone()))?;
    let len = file.len().map_err(LogError::io("reading the length of", name.clone()))?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(LogError::io("reading", name))?;
    Ok(bytes)
}

/// A segment that another one follows: the follower says where it ended, and everything up to there was durable.
fn closed_end(segment: &Segment<'_>, end: u64) -> Result<u64, LogError> {
    let (reached, problem) = segment.scan(HEADER_BYTES, end);
    if reached == end {
        return Ok(end);
    }
    let at = LogPos { segment: segment.index, offset: reached };
    Err(LogError::Damaged { at, problem: format!("{problem}, but the segment went on to byte {end}") })
}

/// The last segment: ends at the first record that is not whole, if that was never acknowledged.
fn open_end(segment: &Segment<'_>) -> Result<u64, LogError> {
    let (end, problem) = segment.scan(HEADER_BYTES, segment.bytes.len() as u64);
    match segment.proof_behind(end) {
        None => Ok(end),
        Some(proof) => {
            let at = LogPos { segment: segment.index, offset: end };
            Err(LogError::Damaged {
                at,
                problem: format!("{problem}, but the record at {proof} was written after it was durable"),
            })
        }
    }
}

/// Overwrites what follows the end, durably: the rest of a torn group must not parse after something else was appended.
fn cut_tail<F: super::disk::DiskFile>(file: &F, index: u64, end: u64, bytes: &[u8]) -> Result<(), LogError> {
    let tail = bytes.get(end as usize..).unwrap_or(&[]);
    let used = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // What stands before the end is written once more, for from now on it counts as durable: it may be there only in memory since the
    // process was killed, and if a sync of that process had failed, the kernel holds it for written and no further sync brings it.
    let mut whole = bytes.get(..end as usize).unwrap_or(bytes).to_vec();
    whole.resize(whole.len() + used, 0);
    file.write_all_at(&whole, 0)
        .and_then(|()| file.sync_data())
        .map_err(LogError::io("cutting the torn tail of", segment_name(index)))
}
