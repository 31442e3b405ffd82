//! A log as it lies on its disk, looked at without changing anything: for `inspect`, `check` and repair.
//!
//! [`Log::open`](super::Log::open) either goes on with a log or refuses it. An image says what there is: how far the records that
//! the volume still needs can be read, and what is wrong behind that or in front of it. It needs no whole `format` file: each
//! segment's header names its own generation.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    LogError, LogPos,
    codec::decode_raw,
    disk::{Disk, DiskFile as _},
    open::read_format,
    read::RawRecord,
    segment::{FREE_PREFIX, HEADER_BYTES, KIND_MARK, Nonce, Segment, generation_in, segment_index, segment_name},
};
use crate::apply::record::{self, RecordSource, Records};

/// One segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentImage {
    /// What its frames carry.
    generation: u32,
    /// Length of the file.
    pub len: u64,
    /// Where its whole records end.
    pub end: u64,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogProblem {
    /// Where.
    pub at: LogPos,
    /// What.
    pub problem: String,
}

/// See the module.
pub struct Image<D: Disk> {
    disk: D,
    from: LogPos,
    end: LogPos,
    /// The segments that hold what is needed, as far as they can be read.
    pub segments: BTreeMap<u64, SegmentImage>,
    /// Recycled files and older segments.
    pub free: usize,
    /// Acknowledged records that are needed are damaged or missing from here on.
    pub damage: Option<LogProblem>,
    /// What is wrong where nothing is needed any more.
    pub harmless: Vec<LogProblem>,
}

impl<D: Disk> Image<D> {
    /// Looks at a log that is needed from `from` on (`None`: from its first segment on) and was durable up to `reached`.
    /// Fails only if the disk does; a log that is not there is damage.
    pub fn read(disk: D, from: Option<LogPos>, reached: LogPos) -> Result<Self, LogError> {
        let mut indexes = Vec::new();
        let mut free = 0;
        for name in disk.list().map_err(LogError::io("listing", "log"))? {
            match segment_index(&name) {
                Some(index) if from.is_none_or(|from| index >= from.segment) => indexes.push(index),
                Some(_) => free += 1,
                None => free += usize::from(name.starts_with(FREE_PREFIX)),
            }
        }
        indexes.sort_unstable();
        let first = LogPos { segment: indexes.first().copied().unwrap_or(1), offset: HEADER_BYTES };
        let from = from.unwrap_or(first);
        let from = LogPos { offset: from.offset.max(HEADER_BYTES), ..from };
        let mut image =
            Image { disk, from, end: from, segments: BTreeMap::new(), free, damage: None, harmless: Vec::new() };
        let nonce = match read_format(&image.disk) {
            Ok(nonce) => Some(nonce),
            Err(error @ LogError::Io { .. }) => return Err(error),
            Err(LogError::Damaged { at, problem }) => {
                image.harmless.push(LogProblem { at, problem });
                None
            }
            Err(error @ LogError::Version { .. }) => return Err(error),
        };
        image.scan(&indexes, nonce)?;
        if image.damage.is_none() && image.end < reached {
            let problem = format!("it ends here, and it was durable up to {reached}");
            image.damage = Some(LogProblem { at: image.end, problem });
        }
        Ok(image)
    }

    /// Where the records begin that are needed.
    pub fn start(&self) -> LogPos {
        self.from
    }

    /// Up to where they can be read.
    pub fn end(&self) -> LogPos {
        self.end
    }

    fn scan(&mut self, indexes: &[u64], nonce: Option<Nonce>) -> Result<(), LogError> {
        let mut before: Option<(u64, u32, Vec<u8>)> = None;
        for &index in indexes {
            let bytes = read_whole(&self.disk, index)?;
            let generation = nonce.map(|nonce| nonce.generation(index)).or_else(|| generation_in(&bytes));
            let generation = generation.unwrap_or_default();
            let segment = Segment { index, generation, bytes: &bytes };
            let previous_end = segment.previous_end();
            if previous_end.is_none() && before.is_some() {
                if segment.proof_behind(0).is_some() || indexes.last() != Some(&index) {
                    self.damaged(index, 0, "the segment's header is not whole".to_owned());
                    return Ok(());
                }
                // The crash came while it was begun; nothing was ever acknowledged in it.
                break;
            }
            match &before {
                Some((last, last_generation, last_bytes)) if last + 1 == index => {
                    let last = Segment { index: *last, generation: *last_generation, bytes: last_bytes };
                    if !self.closed(&last, previous_end.unwrap_or(0)) {
                        return Ok(());
                    }
                }
                None if index == self.from.segment => {
                    if previous_end.is_none() {
                        let at = LogPos { segment: index, offset: 0 };
                        self.harmless.push(LogProblem { at, problem: "the segment's header is not whole".to_owned() });
                    }
                    self.look_before_start(&segment);
                }
                _ => {
                    self.damaged(index, 0, "the segment before it is missing".to_owned());
                    return Ok(());
                }
            }
            before = Some((index, generation, bytes));
        }
        match &before {
            Some((index, generation, bytes)) => {
                self.last(&Segment { index: *index, generation: *generation, bytes });
            }
            None => self.damage = Some(LogProblem { at: self.from, problem: "the segment is missing".to_owned() }),
        }
        Ok(())
    }

    /// What stands before the place from which the log is needed.
    fn look_before_start(&mut self, segment: &Segment<'_>) {
        let (reached, problem) = segment.scan(HEADER_BYTES, self.from.offset);
        if reached != self.from.offset {
            let at = LogPos { segment: segment.index, offset: reached };
            self.harmless.push(LogProblem { at, problem: format!("{problem}, before what is needed") });
        }
    }

    fn first_offset(&self, index: u64) -> u64 {
        if index == self.from.segment { self.from.offset } else { HEADER_BYTES }
    }

    fn damaged(&mut self, index: u64, offset: u64, problem: String) {
        self.damage = Some(LogProblem { at: LogPos { segment: index, offset }, problem });
    }

    fn note_segment(&mut self, segment: &Segment<'_>, end: u64) {
        let len = segment.bytes.len() as u64;
        self.segments.insert(segment.index, SegmentImage { generation: segment.generation, len, end });
        self.end = LogPos { segment: segment.index, offset: end };
    }

    /// A segment that another one follows: it must be whole up to `end`. Whether it is.
    fn closed(&mut self, segment: &Segment<'_>, end: u64) -> bool {
        // Nothing is needed of a segment whose end is before the start.
        let first = self.first_offset(segment.index).min(end);
        let (reached, problem) = segment.scan(first, end);
        self.note_segment(segment, reached);
        if reached != end {
            self.damaged(segment.index, reached, format!("{problem}, but the segment went on to byte {end}"));
        }
        reached == end
    }

    fn last(&mut self, segment: &Segment<'_>) {
        let (end, problem) = segment.scan(self.first_offset(segment.index), segment.bytes.len() as u64);
        self.note_segment(segment, end);
        if let Some(proof) = segment.proof_behind(end) {
            let problem = format!("{problem}, but the record at {proof} was written after it was durable");
            self.damaged(segment.index, end, problem);
        }
    }

    /// The records that are needed and can be read.
    pub fn raw_records(&self) -> ImageRecords<'_, D> {
        ImageRecords { image: self, next: self.from, loaded: None }
    }
}

impl<D: Disk> RecordSource for Image<D> {
    fn records(&self) -> Result<Records<'_>, record::LogError> {
        Ok(Box::new(self.raw_records().map(|raw| match raw {
            Ok(raw) => decode_raw(raw),
            Err(error) => Err(record::LogError(error.to_string())),
        })))
    }
}

fn read_whole<D: Disk>(disk: &D, index: u64) -> Result<Vec<u8>, LogError> {
    let name = segment_name(index);
    let file = disk.open(&name).map_err(LogError::io("opening", name.clone()))?;
    let len = file.len().map_err(LogError::io("reading the length of", name.clone()))?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(LogError::io("reading", name))?;
    Ok(bytes)
}

/// See [`Image::raw_records`].
pub struct ImageRecords<'a, D: Disk> {
    image: &'a Image<D>,
    next: LogPos,
    loaded: Option<(u64, Bytes)>,
}

impl<D: Disk> ImageRecords<'_, D> {
    fn step(&mut self) -> Result<Option<RawRecord>, LogError> {
        loop {
            let index = self.next.segment;
            let Some(segment) = self.image.segments.get(&index) else { return Ok(None) };
            if self.next.offset >= segment.end {
                self.next = LogPos { segment: index + 1, offset: HEADER_BYTES };
                continue;
            }
            let bytes = match &self.loaded {
                Some((loaded, bytes)) if *loaded == index => bytes.clone(),
                _ => {
                    let bytes = Bytes::from(read_whole(&self.image.disk, index)?);
                    self.loaded = Some((index, bytes.clone()));
                    bytes
                }
            };
            let at = self.next;
            let frames = Segment { index, generation: segment.generation, bytes: &bytes };
            let frame =
                frames.frame_at(at.offset).map_err(|problem| LogError::Damaged { at, problem: problem.to_owned() })?;
            self.next.offset += frame.len;
            if frame.kind != KIND_MARK {
                let payload = bytes.slice_ref(frame.payload);
                return Ok(Some(RawRecord { at, kind: frame.kind, version: frame.version, payload }));
            }
        }
    }
}

impl<D: Disk> Iterator for ImageRecords<'_, D> {
    type Item = Result<RawRecord, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.next = LogPos { segment: u64::MAX, offset: 0 };
        }
        step.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::Image;
    use crate::log::{Append, Log, LogOptions, LogPos, mem::MemDisk, segment::segment_name};

    const OPTIONS: LogOptions = LogOptions { segment_bytes: 4096, free_max: 2 };

    /// A log of many segments; the places of its records.
    fn filled() -> (MemDisk, Vec<LogPos>) {
        let disk = MemDisk::default();
        let mut log = Log::create(disk.clone(), OPTIONS, [7; 16]).expect("created");
        let mut places = Vec::new();
        for number in 0..100u8 {
            let payload = [number; 200];
            places.push(log.append_group(&[Append { kind: 3, version: 1, payload: &payload }]).expect("appended").at);
            log.mark_durable();
        }
        (disk, places)
    }

    fn numbers(image: &Image<MemDisk>) -> Vec<u8> {
        image.raw_records().map(|record| record.expect("whole").payload[0]).collect()
    }

    #[test]
    fn a_whole_log_is_read_from_its_start_also_without_its_format_file() {
        let (disk, places) = filled();
        let image = Image::read(disk.clone(), None, places[99]).expect("read");
        assert_eq!((image.damage.clone(), numbers(&image)), (None, (0..100).collect()));
        let image = Image::read(disk.clone(), Some(places[40]), places[99]).expect("read");
        assert_eq!(numbers(&image), (40..100).collect::<Vec<_>>());
        disk.forget_small("format");
        let image = Image::read(disk, Some(places[40]), places[99]).expect("read");
        assert_eq!((image.damage.clone(), image.harmless.len()), (None, 1));
        assert_eq!(numbers(&image), (40..100).collect::<Vec<_>>());
    }

    #[test]
    fn damage_before_the_start_is_harmless_and_behind_it_ends_what_can_be_read() {
        let (disk, places) = filled();
        let start = places[50];
        assert!(start.offset > places[48].offset, "both in one segment");
        disk.damage(&segment_name(start.segment), |bytes| bytes[places[48].offset as usize + 30] ^= 1);
        assert!(Log::open(disk.clone(), OPTIONS, start, start).is_err(), "a log that is used is stricter");
        let image = Image::read(disk.clone(), Some(start), places[99]).expect("read");
        assert_eq!((image.damage.clone(), image.harmless.len()), (None, 1));
        assert_eq!(numbers(&image), (50..100).collect::<Vec<_>>());
        disk.damage(&segment_name(places[70].segment), |bytes| bytes[places[70].offset as usize + 30] ^= 1);
        let image = Image::read(disk.clone(), Some(start), places[99]).expect("read");
        assert_eq!(image.damage.as_ref().map(|damage| damage.at), Some(places[70]));
        assert_eq!(numbers(&image), (50..70).collect::<Vec<_>>());
    }

    #[test]
    fn a_missing_segment_and_a_log_that_is_too_short_are_damage() {
        let (disk, places) = filled();
        let beyond = LogPos { segment: places[99].segment + 1, offset: 0 };
        assert!(Image::read(disk.clone(), None, beyond).expect("read").damage.is_some());
        crate::log::disk::Disk::remove(&disk, &segment_name(places[50].segment)).expect("removed");
        let image = Image::read(disk, None, places[99]).expect("read");
        assert!(image.damage.as_ref().expect("damage").problem.contains("missing"));
        assert_eq!(numbers(&image).last().map(|last| *last < 50), Some(true));
    }
}
