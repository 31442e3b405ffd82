//! Fields of fixed form in files and keys: little endian, in the order in which they were put.
//!
//! Whoever reads gets `None` for what is not what was put, and says what that means for the file.

use crate::{
    chain::Chain,
    ids::InodeId,
    position::{COUNT_MAX, Epoch, Position, Seq},
};

/// Takes fields off the front of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields(bytes)
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// A fixed number of bytes.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    /// A byte.
    pub fn u8(&mut self) -> Option<u8> {
        let [byte] = self.take()?;
        Some(byte)
    }

    /// A number.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// A number.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// A number.
    pub fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }

    /// An id behind a byte with its length.
    pub fn id(&mut self) -> Option<InodeId> {
        let len = self.u8()?;
        InodeId::new(self.bytes(usize::from(len))?)
    }

    /// A counter that others count on from: `None` beyond [`COUNT_MAX`].
    pub fn count(&mut self) -> Option<u64> {
        self.u64().filter(|count| *count <= COUNT_MAX)
    }

    /// What [`put_position`] put.
    pub fn position(&mut self) -> Option<Position> {
        Some(Position { epoch: Epoch(self.count()?), seq: Seq(self.count()?), chain: Chain(self.take()?) })
    }

    /// What was not taken yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, if nothing is left.
    pub fn end<T>(self, value: T) -> Option<T> {
        self.is_empty().then_some(value)
    }
}

/// Appends a position.
pub fn put_position(out: &mut Vec<u8>, position: &Position) {
    out.extend_from_slice(&position.epoch.0.to_le_bytes());
    out.extend_from_slice(&position.seq.0.to_le_bytes());
    out.extend_from_slice(&position.chain.0);
}

/// Appends an id, behind a byte with its length.
pub fn put_id(out: &mut Vec<u8>, id: &InodeId) {
    let bytes = id.as_bytes();
    // An id is no longer than 255 bytes.
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::{Fields, put_id, put_position};
    use crate::{
        chain::Chain,
        ids::InodeId,
        position::{COUNT_MAX, Epoch, Position, Seq},
    };

    #[test]
    fn counters_that_cannot_be_counted_on_from_are_not_taken() {
        let position = Position { seq: Seq(COUNT_MAX + 1), ..Default::default() };
        let mut out = Vec::new();
        put_position(&mut out, &position);
        assert_eq!(Fields::new(&out).position(), None);
        assert_eq!(Fields::new(&u64::MAX.to_le_bytes()).count(), None);
    }

    #[test]
    fn what_was_put_is_taken_and_nothing_that_was_cut() {
        let position = Position { epoch: Epoch(3), seq: Seq(COUNT_MAX), chain: Chain([8; 16]) };
        let mut out = vec![7];
        put_id(&mut out, &InodeId::ROOT);
        put_position(&mut out, &position);
        out.extend_from_slice(&(-5i64).to_le_bytes());
        let read = |bytes: &[u8]| {
            let mut fields = Fields::new(bytes);
            let value = (fields.u8()?, fields.id()?, fields.position()?, fields.i64()?);
            fields.end(value)
        };
        assert_eq!(read(&out), Some((7, InodeId::ROOT, position, -5)));
        for cut in 0..out.len() {
            assert_eq!(read(&out[..cut]), None, "cut at {cut}");
        }
        out.push(0);
        assert_eq!(read(&out), None, "something follows");
    }
}
