//! How messages travel: protobuf, with a checksum of the whole message at its end.
//!
//! TCP's own checksum lets one flipped bit in some ten thousand pass, and off the wire nothing checks at all. A message that changed on
//! the way must not look like a mistake of the peer, let alone be believed: it ends the stream, like a cable that was pulled, and what
//! was not acknowledged is sent again.
//!
//! ```text
//! protobuf of the message ‖ tag of field 536870911 (fixed32) ‖ crc32c of the protobuf before it
//! ```
//! Frames of a copy with much data go without: the digest of the whole file covers their bytes, and what else is in them is compared
//! with what was asked for; two more passes over each byte cost a copy a tenth of its time.
//!
//! The trailer is an unknown field to everybody else, so generic clients read our messages; theirs come without it and are accepted.
//! It cannot be lost by a flipped bit without the message itself being whole: whoever flips one in the trailer has flipped none before.
//!
//! A message that is whole and has more parts than it may have ([`crate::shape`]) is not decoded at all.

use std::{any::Any, fmt, marker::PhantomData};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{pb, shape};

/// Tag of the highest field number, which no message uses: as long as a tag can be, so that nobody's data ends like it by chance.
const TAG: [u8; 5] = [0xfd, 0xff, 0xff, 0xff, 0x0f];
const TRAILER: usize = TAG.len() + 4;

/// Encodes `T`, decodes `U`. Named in the generated code.
pub struct CheckedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CheckedCodec<T, U> {
    fn default() -> Self {
        CheckedCodec(PhantomData)
    }
}

impl<T, U> fmt::Debug for CheckedCodec<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckedCodec")
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for CheckedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = CheckedEncoder<T>;
    type Decoder = CheckedDecoder<U>;

    fn encoder(&mut self) -> CheckedEncoder<T> {
        CheckedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> CheckedDecoder<U> {
        CheckedDecoder(PhantomData)
    }
}

/// Appends the checksum.
pub struct CheckedEncoder<T>(PhantomData<T>);

impl<T> fmt::Debug for CheckedEncoder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckedEncoder")
    }
}

/// Frames of a copy with so much data are covered by the digest of their file.
pub const COVERED_BYTES: usize = 64 << 10;

/// Whether something else finds out if this message changes on its way.
fn is_covered(message: &dyn Any) -> bool {
    let body = message.downcast_ref::<pb::CopyDown>().and_then(|down| down.body.as_ref());
    matches!(body, Some(pb::copy_down::Body::Frame(frame)) if frame.data.len() >= COVERED_BYTES && !frame.last)
}

impl<T: Message + 'static> Encoder for CheckedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if is_covered(&item) {
            buf.reserve(item.encoded_len());
            return item.encode(buf).map_err(room);
        }
        let len = item.encoded_len();
        buf.reserve(len + TRAILER);
        let start = buf.chunk_mut().as_mut_ptr().cast_const();
        item.encode(buf).map_err(room)?;
        let end = buf.chunk_mut().as_mut_ptr().cast_const();
        assert!(end == start.wrapping_add(len), "room for all of it was reserved, so it lies in one piece");
        // SAFETY: the `len` bytes from `start` to `end` were written just now, into room that was reserved and did not move since, as
        // the assertion shows; they are read before anything else is written.
        let crc = crc32c::crc32c(unsafe { std::slice::from_raw_parts(start, len) });
        buf.put_slice(&TAG);
        buf.put_u32_le(crc);
        Ok(())
    }
}

/// A message as gRPC sends it, uncompressed, with its checksum if it has one.
pub fn framed<T: Message + 'static>(item: &T) -> Bytes {
    let len = item.encoded_len();
    let mut out = BytesMut::with_capacity(5 + len + TRAILER);
    let trailer = if is_covered(item) { 0 } else { TRAILER };
    out.put_u8(0);
    out.put_u32((len + trailer) as u32);
    item.encode_raw(&mut out);
    if trailer > 0 {
        let crc = crc32c::crc32c(&out[5..]);
        out.put_slice(&TAG);
        out.put_u32_le(crc);
    }
    out.freeze()
}

/// Checks and decodes the bytes of a message that came.
pub fn decode<U: Message + Default + 'static>(message: Bytes) -> Result<U, Status> {
    check::<U>(&message)?;
    U::decode(message).map_err(undecoded)
}

fn undecoded(error: prost::DecodeError) -> Status {
    Status::invalid_argument(format!("a message cannot be decoded: {error}"))
}

fn room(error: prost::EncodeError) -> Status {
    Status::internal(format!("a message cannot be encoded: {error}"))
}

/// Checks it.
pub struct CheckedDecoder<U>(PhantomData<U>);

impl<U> fmt::Debug for CheckedDecoder<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckedDecoder")
    }
}

/// Whether these bytes are as they were sent, as far as they can tell.
fn is_whole(message: &[u8]) -> bool {
    let Some((body, trailer)) = message.len().checked_sub(TRAILER).map(|at| message.split_at(at)) else { return true };
    match trailer.strip_prefix(&TAG) {
        Some(crc) => crc == crc32c::crc32c(body).to_le_bytes(),
        None => true,
    }
}

/// That the message is whole, and no more than it may be.
fn check<U: 'static>(message: &[u8]) -> Result<(), Status> {
    if !is_whole(message) {
        return Err(Status::data_loss("a message changed on its way: its checksum is wrong"));
    }
    let Some(shape) = shape::of::<U>() else { return Ok(()) };
    shape::check(shape, message).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl<U: Message + Default + 'static> Decoder for CheckedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message lies in one piece; one that does not is brought into one.
        if buf.chunk().len() == buf.remaining() {
            check::<U>(buf.chunk())?;
            return U::decode(buf).map(Some).map_err(undecoded);
        }
        let bytes = buf.copy_to_bytes(buf.remaining());
        decode(bytes).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::{COVERED_BYTES, TAG, is_covered, is_whole};
    use crate::pb;

    fn sent() -> Vec<u8> {
        let message = pb::StageDir { session: 7, dir: "dir".into(), listing: 1, ..Default::default() };
        let mut bytes = message.encode_to_vec();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&TAG);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_flipped_bit_is_seen_or_lies_in_the_trailer() {
        let bytes = sent();
        assert!(is_whole(&bytes));
        let body = bytes.len() - super::TRAILER;
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let in_tag = (body..body + TAG.len()).contains(&(bit / 8));
            assert!(!is_whole(&flipped) || in_tag, "bit {bit}");
        }
    }

    #[test]
    fn the_trailer_is_an_unknown_field_to_others_and_not_asked_of_them() {
        let bytes = sent();
        let read = pb::StageDir::decode(&bytes[..]).expect("it is protobuf");
        assert_eq!((read.session, &read.dir[..]), (7, &b"dir"[..]));
        assert!(is_whole(&read.encode_to_vec()), "without a trailer");
        assert!(is_whole(b""));
    }

    #[test]
    fn only_much_data_of_a_copy_goes_without() {
        let down = |len: usize, last| pb::CopyDown {
            body: Some(pb::copy_down::Body::Frame(pb::CopyFrame {
                data: vec![1; len].into(),
                last,
                ..Default::default()
            })),
        };
        assert!(is_covered(&down(COVERED_BYTES, false)));
        assert!(!is_covered(&down(COVERED_BYTES, true)) && !is_covered(&down(100, false)));
        assert!(!is_covered(&pb::StageDir::default()));
    }
}
