//! Whether messages are compressed: on a slow link, as long as it makes them shorter.
//!
//! A message that does not get shorter costs the attempt, some milliseconds a megabyte; after it the next few are not tried, and more of
//! them each time, so that data which is compressed already is sent at the full rate. Shared by the two producers of messages.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use prost::Message as _;
use tandem_proto::{packed, pb};

/// Only messages of this length are worth it, and tell anything.
const PACK_FROM_BYTES: usize = 512;
/// Most messages that are passed over after one that did not get shorter.
const SKIP_MAX: u32 = 4;

/// See the module.
#[derive(Debug, Default)]
pub struct Packer {
    /// The link is slow, and the other side understands it.
    wanted: AtomicBool,
    skip: AtomicU32,
    skipped: AtomicU32,
    before_bytes: AtomicU64,
    after_bytes: AtomicU64,
}

impl Packer {
    /// Says whether it is worth trying.
    pub fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// The message, compressed if that pays; and the bytes that it is on the wire.
    pub fn pack(&self, message: pb::ClientMessage) -> (pb::ClientMessage, u64) {
        let len = message.encoded_len();
        if !self.wanted.load(Ordering::Relaxed) || len < PACK_FROM_BYTES {
            return (message, len as u64);
        }
        let (skip, skipped) = (self.skip.load(Ordering::Relaxed), self.skipped.fetch_add(1, Ordering::Relaxed));
        if skipped < skip {
            return (message, len as u64);
        }
        self.skipped.store(0, Ordering::Relaxed);
        let Some(packed) = packed::pack(&message) else {
            self.skip.store((skip * 2).clamp(1, SKIP_MAX), Ordering::Relaxed);
            return (message, len as u64);
        };
        self.skip.store(0, Ordering::Relaxed);
        let after = packed.encoded_len() as u64;
        self.before_bytes.fetch_add(len as u64, Ordering::Relaxed);
        self.after_bytes.fetch_add(after, Ordering::Relaxed);
        (packed, after)
    }

    /// For people.
    pub fn describe(&self) -> String {
        let (before, after) = (self.before_bytes.load(Ordering::Relaxed), self.after_bytes.load(Ordering::Relaxed));
        let so_far = if before == 0 {
            "nothing so far".to_owned()
        } else {
            format!("{} MiB became {} MiB", before >> 20, after.div_ceil(1 << 20))
        };
        match (self.wanted.load(Ordering::Relaxed), self.skip.load(Ordering::Relaxed)) {
            (false, _) if before == 0 => "off: the link is fast enough".to_owned(),
            (false, _) => format!("off: the link is fast enough now ({so_far})"),
            (true, 0) => format!("zstd: {so_far}"),
            (true, _) => format!("zstd, tried now and then: the data does not get shorter ({so_far})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::{self, client_message::Body};

    use super::Packer;

    fn message(data: Vec<u8>) -> pb::ClientMessage {
        pb::ClientMessage { body: Some(Body::StageData(pb::StageData { data: data.into(), ..Default::default() })) }
    }

    #[test]
    fn data_that_does_not_get_shorter_is_tried_ever_less_often() {
        let packer = Packer::default();
        let text = || message(b"again and ".repeat(1000));
        assert!(packer.pack(text()).1 > 9000, "nobody wants it");
        packer.set_wanted(true);
        assert!(packer.pack(text()).1 < 1000);
        let mut noise = vec![0; 9000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for _ in 0..200 {
            assert!(packer.pack(message(noise.clone())).1 > 9000);
        }
        let until = (0..100).position(|_| packer.pack(text()).1 < 1000).expect("it is tried again");
        assert!(until <= 4, "after {until} messages");
        assert!(packer.pack(text()).1 < 1000, "and from then on always");
        assert!(packer.describe().starts_with("zstd: "), "{}", packer.describe());
    }
}
