//! Compressed messages: a whole [`pb::ClientMessage`] inside another one.
//!
//! Whether it pays is the sender's to find out; here is only how. What is unpacked is bounded by [`MESSAGE_MAX_BYTES`], whatever the
//! message says of itself, and a packed message holds no other packed one.

use prost::Message as _;

use crate::{
    convert::Invalid,
    limits::MESSAGE_MAX_BYTES,
    pb::{self, client_message::Body},
    shape,
};

/// zstd's fastest ordinary level: 300 MB/s, which is more than any link carries for which it is asked.
const LEVEL: i32 = 1;
/// Shorter messages are left as they are.
const PACK_FROM: usize = 512;

/// The message, compressed; `None` if it is short or does not get shorter by a twentieth.
pub fn pack(message: &pb::ClientMessage) -> Option<pb::ClientMessage> {
    let len = message.encoded_len();
    if !(PACK_FROM..=MESSAGE_MAX_BYTES).contains(&len) || matches!(message.body, Some(Body::Packed(_))) {
        return None;
    }
    let data = zstd::bulk::compress(&message.encode_to_vec(), LEVEL).ok()?;
    if data.len() + data.len() / 20 >= len {
        return None;
    }
    let packed = pb::Packed { codec: pb::packed::Codec::Zstd.into(), len: len as u32, data: data.into() };
    Some(pb::ClientMessage { body: Some(Body::Packed(packed)) })
}

/// The message itself, or what was packed in it.
pub fn unpack(message: pb::ClientMessage) -> Result<pb::ClientMessage, Invalid> {
    let invalid = |problem: String| Invalid { field: "packed", problem };
    let Some(Body::Packed(packed)) = message.body else { return Ok(message) };
    if packed.codec() != pb::packed::Codec::Zstd {
        return Err(invalid(format!("codec {} is not known; upgrade the storage daemon", packed.codec)));
    }
    if packed.len as usize > MESSAGE_MAX_BYTES {
        return Err(invalid(format!("{} bytes in one message", packed.len)));
    }
    let bytes =
        zstd::bulk::decompress(&packed.data, packed.len as usize).map_err(|error| invalid(format!("zstd: {error}")))?;
    if bytes.len() != packed.len as usize {
        return Err(invalid(format!("{} bytes, and it says {}", bytes.len(), packed.len)));
    }
    if let Some(shape) = shape::of::<pb::ClientMessage>() {
        shape::check(shape, &bytes).map_err(|error| invalid(error.to_string()))?;
    }
    let inner = pb::ClientMessage::decode(&bytes[..]).map_err(|error| invalid(error.to_string()))?;
    match inner.body {
        Some(Body::Packed(_)) => Err(invalid("a packed message in a packed message".to_owned())),
        None => Err(invalid("nothing is packed in it".to_owned())),
        Some(_) => Ok(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::{pack, unpack};
    use crate::pb::{self, client_message::Body};

    fn message(data: Vec<u8>) -> pb::ClientMessage {
        let stage = pb::StageData { session: 7, id: "file".into(), offset: 9, data: data.into(), crc32c: 1 };
        pb::ClientMessage { body: Some(Body::StageData(stage)) }
    }

    #[test]
    fn what_gets_shorter_is_packed_and_comes_out_as_it_was() {
        let text = message(b"the same again, ".repeat(5000));
        let packed = pack(&text).expect("text gets shorter");
        assert!(prost::Message::encoded_len(&packed) < 1000);
        assert!(pack(&packed).is_none());
        assert_eq!(unpack(packed).expect("it was packed here"), text);
        assert_eq!(unpack(text.clone()).expect("not packed"), text);
    }

    #[test]
    fn what_does_not_get_shorter_is_left_alone() {
        let mut noise = vec![0; 9000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert!(pack(&message(noise)).is_none());
        assert!(pack(&message(vec![1; 100])).is_none(), "it is short");
    }

    #[test]
    fn a_packed_message_that_lies_is_refused_and_takes_no_more_memory_than_a_message_may() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("zeroes");
        let packed = |codec: i32, len: u32, data: &[u8]| pb::ClientMessage {
            body: Some(Body::Packed(pb::Packed { codec, len, data: data.to_vec().into() })),
        };
        for (codec, len, data) in
            [(1, 1000, &bomb[..]), (1, u32::MAX, &bomb[..]), (1, 100, b"no zstd at all"), (7, 100, b"?"), (1, 0, &[])]
        {
            assert!(unpack(packed(codec, len, data)).is_err(), "{codec} {len}");
        }
        // Four million empty ops in some hundred bytes.
        let mut ops = vec![0x12, 0x80, 0x80, 0x80, 0x04];
        ops.extend([0x32, 0].repeat(4 << 20));
        let len = ops.len() as u32;
        let ops = zstd::bulk::compress(&ops[..(8 << 20)], 1).expect("they are all the same");
        assert!(ops.len() < 2000 && unpack(packed(1, len.min(8 << 20), &ops)).is_err());
        let inner = prost::Message::encode_to_vec(&packed(1, 100, b"x"));
        let nested = zstd::bulk::compress(&inner, 1).expect("short");
        assert!(unpack(packed(1, inner.len() as u32, &nested)).is_err());
    }
}
