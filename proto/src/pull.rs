//! The digest over a pull: both sides compute it from what they sent or got, and compare it at the end.
//!
//! It covers every message before the end, in order: each as its encoding, with its length before it. Both sides encode what they
//! know of a message, so a field that only one of them knows makes the digests differ; then the versions do not fit.

use prost::Message as _;

use crate::{chunk::Digest, pb};

/// Digest of the messages of one pull.
#[derive(Clone, Debug, Default)]
pub struct PullDigest {
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
}

impl PullDigest {
    /// Takes one more message into account.
    pub fn add(&mut self, message: &pb::PullMessage) {
        self.buffer.clear();
        // A vector grows: encoding into it does not fail.
        let _ = message.encode_length_delimited(&mut self.buffer);
        self.hasher.update(&self.buffer);
    }

    /// The digest of all that was added.
    pub fn value(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::PullDigest;
    use crate::pb::{PullData, PullMessage, pull_message::Body};

    #[test]
    fn order_and_bytes_count() {
        let data =
            |offset| PullMessage { body: Some(Body::Data(PullData { offset, data: vec![7; 9].into(), crc32c: 1 })) };
        let of = |offsets: &[u64]| {
            let mut digest = PullDigest::default();
            offsets.iter().for_each(|offset| digest.add(&data(*offset)));
            digest.value()
        };
        assert_eq!(of(&[1, 2]), of(&[1, 2]));
        assert_ne!(of(&[1, 2]), of(&[2, 1]));
        assert_ne!(of(&[1, 2]), of(&[1]));
    }
}
