//! One segment file: its name, its header, its frames.

use tandem_runtime::frame::{self, Frame, HEADER_LEN, Parsed};

use super::LogPos;

/// What names of segments end in.
pub(super) const SEGMENT_SUFFIX: &str = ".seg";
/// What names of recycled files begin with.
pub(super) const FREE_PREFIX: &str = "free-";
/// What follows that in the name of a file that is being made.
pub(super) const FRESH: &str = "fresh";
/// Kind of the frame that says that everything before it is durable.
pub(super) const KIND_MARK: u8 = 0;
/// Kind of the frame that a segment begins with.
pub(super) const KIND_HEADER: u8 = 255;
const HEADER_VERSION: u8 = 1;
/// Bytes of the durable end that precede each payload.
const DURABLE_BYTES: usize = 8;
/// Length of a segment's header frame: index and end of the previous segment.
pub(super) const HEADER_BYTES: u64 = (HEADER_LEN + 16) as u64;

/// What makes this log's records its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonce(pub [u8; 16]);

impl Nonce {
    /// The generation of the frames in segment `index`.
    pub(super) fn generation(&self, index: u64) -> u32 {
        let mut hasher = blake3::Hasher::new_derive_key("tandemfs 2026 log segment generation v1");
        hasher.update(&self.0);
        hasher.update(&index.to_le_bytes());
        let hash = hasher.finalize();
        let bytes = hash.as_bytes();
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

/// File name of a segment.
pub(super) fn segment_name(index: u64) -> String {
    format!("{index:016x}{SEGMENT_SUFFIX}")
}

/// The reverse of [`segment_name`].
pub(super) fn segment_index(name: &str) -> Option<u64> {
    let index = u64::from_str_radix(name.strip_suffix(SEGMENT_SUFFIX)?, 16).ok()?;
    (segment_name(index) == name).then_some(index)
}

/// The generation that a segment's bytes claim for themselves, if its header is whole: for a log whose nonce is lost.
pub(super) fn generation_in(bytes: &[u8]) -> Option<u32> {
    let generation = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    matches!(frame::parse(bytes, generation), Parsed::Record(frame) if frame.kind == KIND_HEADER).then_some(generation)
}

/// Bytes that a record with such a payload takes.
pub(super) fn frame_bytes(payload_len: usize) -> u64 {
    (HEADER_LEN + DURABLE_BYTES + payload_len) as u64
}

/// Appends a frame that is written when the segment is durable up to `durable`.
pub(super) fn frame_into(out: &mut Vec<u8>, generation: u32, kind: u8, version: u8, durable: u64, payload: &[u8]) {
    frame::append_parts(out, generation, kind, version, &[&durable.to_le_bytes(), payload]);
}

/// The header frame of segment `index`.
pub(super) fn header(nonce: &Nonce, index: u64, previous_end: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES as usize);
    let parts: [&[u8]; 2] = [&index.to_le_bytes(), &previous_end.to_le_bytes()];
    frame::append_parts(&mut out, nonce.generation(index), KIND_HEADER, HEADER_VERSION, &parts);
    out
}

/// A whole frame with what it notes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted<'a> {
    pub(super) kind: u8,
    pub(super) version: u8,
    pub(super) durable: u64,
    pub(super) payload: &'a [u8],
    pub(super) len: u64,
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

fn noted(frame: Frame<'_>) -> Option<Noted<'_>> {
    let (durable, payload) = frame.payload.split_at_checked(DURABLE_BYTES)?;
    Some(Noted { kind: frame.kind, version: frame.version, durable: word(durable), payload, len: frame.len as u64 })
}

/// A segment's bytes, for looking at.
pub(super) struct Segment<'a> {
    pub(super) index: u64,
    pub(super) generation: u32,
    pub(super) bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    /// End of the segment before this one, if the header is whole.
    pub(super) fn previous_end(&self) -> Option<u64> {
        match frame::parse(self.bytes, self.generation) {
            Parsed::Record(frame) if frame.kind == KIND_HEADER && frame.payload.len() == 16 => {
                (word(&frame.payload[..8]) == self.index).then(|| word(&frame.payload[8..]))
            }
            _ => None,
        }
    }

    /// The frame at `offset`, or why there is none.
    pub(super) fn frame_at(&self, offset: u64) -> Result<Noted<'a>, &'static str> {
        let bytes = self.bytes.get(offset as usize..).unwrap_or(&[]);
        match frame::parse(bytes, self.generation) {
            Parsed::Record(frame) => match noted(frame) {
                Some(noted) if noted.kind != KIND_HEADER => Ok(noted),
                _ => Err("a record of an unknown form"),
            },
            Parsed::End => Err("no record begins here"),
            Parsed::NeedMore(_) => Err("the record is cut off"),
            Parsed::Damaged(problem) => Err(problem),
        }
    }

    /// Follows the frames from `from`; returns where they end and why.
    pub(super) fn scan(&self, from: u64, stop: u64) -> (u64, &'static str) {
        let mut at = from;
        while at < stop {
            match self.frame_at(at) {
                Ok(frame) => at += frame.len,
                Err(problem) => return (at, problem),
            }
        }
        (at, "")
    }

    /// Whether a whole frame stands behind `offset` that proves that `offset` was durable once; where.
    pub(super) fn proof_behind(&self, offset: u64) -> Option<LogPos> {
        let mut at = offset as usize;
        let pattern = &frame_pattern(self.generation);
        while let Some(found) = find(&self.bytes[at.min(self.bytes.len())..], pattern) {
            at += found;
            if let Ok(frame) = self.frame_at(at as u64)
                && frame.durable > offset
                && frame.durable <= at as u64
            {
                return Some(LogPos { segment: self.index, offset: at as u64 });
            }
            at += 1;
        }
        None
    }
}

/// The first bytes of each frame of a generation.
fn frame_pattern(generation: u32) -> [u8; 8] {
    let mut probe = Vec::new();
    frame::append(&mut probe, generation, KIND_MARK, 1, &[]);
    let mut pattern = [0; 8];
    pattern.copy_from_slice(&probe[..8]);
    pattern
}

fn find(haystack: &[u8], needle: &[u8; 8]) -> Option<usize> {
    let mut at = 0;
    while let Some(found) = haystack.get(at..)?.iter().position(|byte| *byte == needle[0]) {
        at += found;
        if haystack.get(at..at + needle.len())? == needle {
            return Some(at);
        }
        at += 1;
    }
    None
}
