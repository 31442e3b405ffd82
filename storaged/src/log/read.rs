//! Reading the log back, in order.

use bytes::Bytes;

use super::{
    Log, LogError, LogPos,
    disk::{Disk, DiskFile as _},
    segment::{self, KIND_MARK, Segment, segment_name},
};

/// A record as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// Where it stands.
    pub at: LogPos,
    /// What it is.
    pub kind: u8,
    /// Format of the payload.
    pub version: u8,
    /// The bytes; they share memory with the other records of their segment.
    pub payload: Bytes,
}

/// See [`Log::records_from`].
pub struct RawRecords<'a, D: Disk> {
    log: &'a Log<D>,
    next: LogPos,
    loaded: Option<(u64, Bytes)>,
}

impl<D: Disk> Log<D> {
    /// The records from `from` (a record's place, or the start of a segment) to the end.
    pub fn records_from(&self, from: LogPos) -> RawRecords<'_, D> {
        let offset = from.offset.max(segment::HEADER_BYTES);
        RawRecords { log: self, next: LogPos { offset, ..from }, loaded: None }
    }
}

impl<D: Disk> RawRecords<'_, D> {
    /// The bytes of the segment that `next` is in, up to its end.
    fn load(&mut self, end: u64) -> Result<Bytes, LogError> {
        let index = self.next.segment;
        if let Some((loaded, bytes)) = &self.loaded
            && *loaded == index
        {
            return Ok(bytes.clone());
        }
        let name = segment_name(index);
        let file = self.log.disk.open(&name).map_err(LogError::io("opening", name.clone()))?;
        let mut bytes = vec![0; end as usize];
        file.read_exact_at(&mut bytes, 0).map_err(LogError::io("reading", name))?;
        let bytes = Bytes::from(bytes);
        self.loaded = Some((index, bytes.clone()));
        Ok(bytes)
    }

    fn step(&mut self) -> Result<Option<RawRecord>, LogError> {
        loop {
            // Behind what is durable there is only a mark, which may be in memory.
            let current = &self.log.current;
            let synced = (self.next.segment == current.index).then_some(current.synced);
            let Some(end) = synced.or_else(|| self.log.ends.get(&self.next.segment).copied()) else {
                if self.next.segment > self.log.current.index {
                    return Ok(None);
                }
                let problem = "the segment is not part of the log any more".to_owned();
                return Err(LogError::Damaged { at: self.next, problem });
            };
            if self.next.offset >= end {
                self.next = LogPos { segment: self.next.segment + 1, offset: segment::HEADER_BYTES };
                continue;
            }
            let bytes = self.load(end)?;
            let generation = self.log.nonce.generation(self.next.segment);
            let segment = Segment { index: self.next.segment, generation, bytes: &bytes };
            let at = self.next;
            let frame =
                segment.frame_at(at.offset).map_err(|problem| LogError::Damaged { at, problem: problem.to_owned() })?;
            self.next.offset += frame.len;
            if frame.kind != KIND_MARK {
                let payload = bytes.slice_ref(frame.payload);
                return Ok(Some(RawRecord { at, kind: frame.kind, version: frame.version, payload }));
            }
        }
    }
}

impl<D: Disk> Iterator for RawRecords<'_, D> {
    type Item = Result<RawRecord, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            // An iterator that goes on after damage would skip records.
            self.next = LogPos { segment: u64::MAX, offset: 0 };
        }
        step.transpose()
    }
}
