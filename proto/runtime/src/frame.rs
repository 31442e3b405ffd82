//! Records in files: framed so that a torn, flipped or recycled one is recognised.
//!
//! ```text
//! magic u32 | generation u32 | kind u8, version u8, reserved u16 | len u32 | crc32c u32 | payload (len bytes)
//! ```
//! Little endian. The crc covers the header before it and the payload. The generation names the file's use: bytes of an
//! earlier use of recycled space carry another one and never parse. Zeroes (preallocated space) are the clean end.

use crc32c::{crc32c, crc32c_append};

/// Length of a record's header in bytes.
pub const HEADER_LEN: usize = 20;
const MAGIC: u32 = u32::from_le_bytes(*b"TdRc");
/// No record is longer. It bounds what a hostile length can make us read; a batch is at most 8 MiB, a copy with its bytes 32 MiB.
pub const PAYLOAD_MAX: usize = 33 << 20;

/// A record as it stands in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is; the file's owner gives the meaning.
    pub kind: u8,
    /// Format of the payload.
    pub version: u8,
    /// The bytes.
    pub payload: &'a [u8],
    /// Bytes of header and payload together.
    pub len: usize,
}

/// What stands at a place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole record.
    Record(Frame<'a>),
    /// A record begins here and needs so many bytes in all.
    NeedMore(usize),
    /// Nothing was ever written here in this generation: zeroes, or a record of an older use.
    End,
    /// Something else: a torn or damaged record.
    Damaged(&'static str),
}

/// Appends a record to `out`. The payload must not be longer than [`PAYLOAD_MAX`].
pub fn append(out: &mut Vec<u8>, generation: u32, kind: u8, version: u8, payload: &[u8]) {
    append_parts(out, generation, kind, version, &[payload]);
}

/// Appends a record whose payload is the concatenation of `parts`.
pub fn append_parts(out: &mut Vec<u8>, generation: u32, kind: u8, version: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    assert!(len <= PAYLOAD_MAX, "a record of {len} bytes; callers split");
    let start = out.len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&generation.to_le_bytes());
    out.extend_from_slice(&[kind, version, 0, 0]);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    let crc = parts.iter().fold(crc32c(&out[start..]), |crc, part| crc32c_append(crc, part));
    out.extend_from_slice(&crc.to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Looks at what `bytes` begins with.
pub fn parse(bytes: &[u8], generation: u32) -> Parsed<'_> {
    let word = |at: usize| bytes.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let (Some(magic), Some(found), Some(len), Some(crc)) = (word(0), word(4), word(12), word(16)) else {
        return if bytes.iter().all(|byte| *byte == 0) { Parsed::End } else { Parsed::NeedMore(HEADER_LEN) };
    };
    if bytes[..HEADER_LEN].iter().all(|byte| *byte == 0) {
        return Parsed::End;
    }
    if magic != MAGIC {
        return Parsed::Damaged("no record begins here");
    }
    if found != generation {
        return Parsed::End;
    }
    let len = len as usize;
    if len > PAYLOAD_MAX {
        return Parsed::Damaged("the length is beyond the bound");
    }
    let Some(payload) = bytes.get(HEADER_LEN..HEADER_LEN + len) else {
        return Parsed::NeedMore(HEADER_LEN + len);
    };
    if crc32c_append(crc32c(&bytes[..16]), payload) != crc {
        return Parsed::Damaged("the checksum does not fit");
    }
    Parsed::Record(Frame { kind: bytes[8], version: bytes[9], payload, len: HEADER_LEN + len })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{HEADER_LEN, Parsed, append, parse};

    #[test]
    fn records_of_another_generation_are_the_end() {
        let mut bytes = Vec::new();
        append(&mut bytes, 7, 1, 1, b"payload");
        assert!(matches!(parse(&bytes, 7), Parsed::Record(frame) if frame.payload == b"payload"));
        assert_eq!(parse(&bytes, 8), Parsed::End);
        assert_eq!(parse(&[0; 64], 7), Parsed::End);
        assert_eq!(parse(&[], 7), Parsed::End);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_yields_another_record(payload: Vec<u8>, at: usize, bit in 0..8u32) {
            let mut bytes = Vec::new();
            append(&mut bytes, 3, 9, 1, &payload);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            assert!(!matches!(parse(&bytes, 3), Parsed::Record(_)));
        }

        #[test]
        fn a_torn_record_is_never_whole(payload: Vec<u8>, keep: usize, generation in any::<u32>()) {
            let mut bytes = Vec::new();
            append(&mut bytes, generation, 9, 1, &payload);
            bytes.truncate(keep % (HEADER_LEN + payload.len()));
            assert!(!matches!(parse(&bytes, generation), Parsed::Record(_)));
        }

        #[test]
        fn anything_parses_without_a_panic(bytes: Vec<u8>, generation: u32) {
            let _ = parse(&bytes, generation);
        }
    }
}
