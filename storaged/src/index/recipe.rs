//! What the index stores, as bytes: versioned, checked on every read.
//!
//! A file's recipe is a header (stamp, size, number of chunks) and parts. A part holds the chunks that begin in one
//! [`PART_BYTES`] of the file, so a value stays below 100 KiB however large the file is, and the same chunk at the same
//! offset is always in the same part. A value that does not decode is `None`: the index is a hint, so a damaged value is a
//! lost value and the file is read again.

use tandem_proto::{
    Chain, Digest, Epoch, Position, Seq,
    fields::{Fields, put_id},
};

use crate::apply::Place;

/// Version of every value here. Another one makes the index a foreign one, which is rebuilt.
pub const FORMAT: u8 = 1;
/// Bytes of a file whose chunks are stored together.
pub const PART_BYTES: u64 = 64 << 20;
/// Places that are kept for one digest. More would only help if the first four had all changed since.
pub const PLACES_MAX: usize = 4;

const CHUNK_LEN: usize = 8 + 4 + 32;

/// Quick check of a file: equal stamps mean that nobody wrote to it since, as far as the replica tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileStamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of modification, seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Time of change, seconds and nanoseconds: nobody can set it, so it shows what `mtime` hides. Zero where unknown.
    pub ctime: (i64, i64),
}

/// One chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u32,
    /// blake3 of its bytes.
    pub digest: Digest,
}

/// What a file held when it was last read: zeroes wherever no chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The file as it was then.
    pub stamp: FileStamp,
    /// Its chunks by offset.
    pub chunks: Vec<Chunk>,
}

/// What stands in front of a recipe's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The file as it was when it was read.
    pub stamp: FileStamp,
    /// Chunks in all parts.
    pub chunks: u64,
}

/// Counts and position of the whole index, stored with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Summary {
    /// Everything up to here is indexed.
    pub position: Position,
    /// Whether `position` was ever reached; a first build that was cut short has none.
    pub complete: bool,
    /// Files with a recipe.
    pub files: u64,
    /// Different digests.
    pub digests: u64,
}

fn version(fields: &mut Fields<'_>) -> Option<()> {
    (fields.u8()? == FORMAT).then_some(())
}

impl Header {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        for word in [self.stamp.size, self.chunks] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.stamp.mtime.0, self.stamp.mtime.1, self.stamp.ctime.0, self.stamp.ctime.1] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// The reverse of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let mut fields = Fields::new(bytes);
        version(&mut fields)?;
        let (size, chunks) = (fields.u64()?, fields.u64()?);
        let mtime = (fields.i64()?, fields.i64()?);
        let ctime = (fields.i64()?, fields.i64()?);
        fields.end(Header { stamp: FileStamp { size, mtime, ctime }, chunks })
    }
}

impl Summary {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, u8::from(self.complete)];
        for word in [self.position.epoch.0, self.position.seq.0, self.files, self.digests] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.position.chain.0);
        out
    }

    /// The reverse of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Summary> {
        let mut fields = Fields::new(bytes);
        version(&mut fields)?;
        let complete = fields.u8()? == 1;
        let (epoch, seq) = (Epoch(fields.count()?), Seq(fields.count()?));
        let (files, digests) = (fields.u64()?, fields.u64()?);
        let position = Position { epoch, seq, chain: Chain(fields.take()?) };
        fields.end(Summary { position, complete, files, digests })
    }
}

/// A part as it is stored.
pub fn encode_part(chunks: &[Chunk]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + chunks.len() * CHUNK_LEN);
    out.push(FORMAT);
    for chunk in chunks {
        out.extend_from_slice(&chunk.offset.to_le_bytes());
        out.extend_from_slice(&chunk.len.to_le_bytes());
        out.extend_from_slice(&chunk.digest.0);
    }
    out
}

/// The reverse of [`encode_part`].
pub fn decode_part(bytes: &[u8]) -> Option<Vec<Chunk>> {
    let mut fields = Fields::new(bytes);
    version(&mut fields)?;
    let mut chunks = Vec::with_capacity(fields.rest().len() / CHUNK_LEN);
    while !fields.is_empty() {
        let offset = fields.u64()?;
        let len = fields.u32()?;
        chunks.push(Chunk { offset, len, digest: Digest(fields.take()?) });
    }
    Some(chunks)
}

/// The places of a digest as they are stored.
pub fn encode_places(places: &[Place]) -> Vec<u8> {
    let mut out = vec![FORMAT];
    for place in places {
        put_id(&mut out, &place.id);
        out.extend_from_slice(&place.offset.to_le_bytes());
        out.extend_from_slice(&place.len.to_le_bytes());
    }
    out
}

/// The reverse of [`encode_places`].
pub fn decode_places(bytes: &[u8]) -> Option<Vec<Place>> {
    let mut fields = Fields::new(bytes);
    version(&mut fields)?;
    let mut places = Vec::with_capacity(PLACES_MAX);
    while !fields.is_empty() {
        places.push(Place { id: fields.id()?, offset: fields.u64()?, len: fields.u32()? });
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;
    use tandem_proto::{COUNT_MAX, Chain, Digest, Epoch, InodeId, Position, Seq};

    use super::{Chunk, FileStamp, Header, Place, Summary, decode_part, decode_places, encode_part, encode_places};

    #[test]
    fn values_survive_their_encoding() {
        let stamp = FileStamp { size: 7, mtime: (-3, 999_999_999), ctime: (1 << 40, 0) };
        let header = Header { stamp, chunks: 3 };
        assert_eq!(Header::decode(&header.encode()), Some(header));
        let position = Position { epoch: Epoch(3), seq: Seq(COUNT_MAX), chain: Chain([8; 16]) };
        let summary = Summary { position, complete: true, files: 1, digests: 2 };
        assert_eq!(Summary::decode(&summary.encode()), Some(summary));
        let chunks = [Chunk { offset: 1 << 40, len: 5, digest: Digest([1; 32]) }];
        assert_eq!(decode_part(&encode_part(&chunks)).as_deref(), Some(&chunks[..]));
        let id = InodeId::new(&[1; 31]).expect("31 bytes");
        let places = [Place { id, offset: 4, len: 2 }, Place { id: InodeId::ROOT, offset: 0, len: 0 }];
        assert_eq!(decode_places(&encode_places(&places)).as_deref(), Some(&places[..]));
    }

    #[test]
    fn values_of_another_version_are_lost_values() {
        let mut bytes = Header { stamp: FileStamp::default(), chunks: 0 }.encode();
        bytes[0] = 2;
        assert_eq!(Header::decode(&bytes), None);
    }

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic(bytes: Vec<u8>) {
            let _ = (Header::decode(&bytes), Summary::decode(&bytes), decode_part(&bytes), decode_places(&bytes));
        }
    }
}
