//! Content-defined chunks and their digests: both sides must cut alike, so the parameters are part of the agreement.

use std::fmt;

/// blake3 of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// From raw bytes; `None` unless there are 32.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Digest)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::ids::hex(&self.0[..8]))
    }
}

/// No chunk is shorter, but the last of a file. Half the average: measured 40 % faster than a quarter.
pub const CHUNK_MIN: usize = 32 << 10;
/// Average length of a chunk.
pub const CHUNK_AVERAGE: usize = 64 << 10;
/// No chunk is longer.
pub const CHUNK_MAX: usize = 256 << 10;

/// Cuts `bytes` into content-defined chunks: `(offset, length)`, dense, in order.
///
/// To cut a stream, hand in at least [`CHUNK_MAX`] bytes at a time, use all chunks but the last, and hand in the rest again
/// with what follows; at the end of the file the last one counts too. The cut points are then those of the whole file.
pub fn chunks(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> + '_ {
    fastcdc::v2020::FastCDC::new(bytes, CHUNK_MIN, CHUNK_AVERAGE, CHUNK_MAX).map(|chunk| (chunk.offset, chunk.length))
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_MAX, chunks};

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    #[test]
    fn bytes_inserted_at_the_start_keep_most_chunks() {
        let before = noise(4 << 20);
        let after = [b"0123456789".as_slice(), &before].concat();
        let digests = |bytes: &[u8]| -> std::collections::HashSet<_> {
            chunks(bytes).map(|(at, len)| super::Digest::of(&bytes[at..at + len])).collect()
        };
        let (old, new) = (digests(&before), digests(&after));
        assert!(new.difference(&old).count() <= 3, "{} of {} chunks are new", new.difference(&old).count(), new.len());
    }

    #[test]
    fn a_stream_is_cut_like_the_whole() {
        let bytes = noise(3 << 20);
        let whole: Vec<_> = chunks(&bytes).collect();
        let (mut streamed, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let end = (at + 2 * CHUNK_MAX).min(bytes.len());
            let mut cuts: Vec<_> = chunks(&bytes[at..end]).collect();
            if end < bytes.len() {
                cuts.pop();
            }
            streamed.extend(cuts.iter().map(|(offset, len)| (at + offset, *len)));
            at += cuts.iter().map(|(_, len)| len).sum::<usize>();
        }
        assert_eq!(whole, streamed);
    }
}
