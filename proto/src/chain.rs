//! The running hash over ops that makes equal positions mean equal histories.
//!
//! It is defined per op, not per batch, so that a sender may cut batches anew after a reconnect:
//! `chain(n) = blake3(chain(n-1) ‖ seq n ‖ length ‖ crc32c(op n))` cut to 16 bytes, where the op is its protobuf encoding.
//! The crc covers the bytes, so a receiver that recomputes the chain has also checked that nothing flipped on the way.

use std::fmt;

use crate::position::Seq;

/// Running hash over a history, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Chain(pub [u8; 16]);

impl Chain {
    /// The chain after one more op.
    pub fn after(&self, seq: Seq, encoded_len: u64, encoded_crc32c: u32) -> Chain {
        let mut input = [0u8; 36];
        input[..16].copy_from_slice(&self.0);
        input[16..24].copy_from_slice(&seq.0.to_le_bytes());
        input[24..32].copy_from_slice(&encoded_len.to_le_bytes());
        input[32..].copy_from_slice(&encoded_crc32c.to_le_bytes());
        Self::cut(&blake3::hash(&input))
    }

    /// The chain that a new history begins with: bound to what came before it and to who begins it.
    pub fn begin(parts: &[&[u8]]) -> Chain {
        let mut hasher = blake3::Hasher::new_derive_key("tandemfs 2026 chain begin v1");
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self::cut(&hasher.finalize())
    }

    /// From raw bytes; `None` unless there are 16.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Chain)
    }

    fn cut(hash: &blake3::Hash) -> Chain {
        let mut cut = [0; 16];
        cut.copy_from_slice(&hash.as_bytes()[..16]);
        Chain(cut)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::ids::hex(&self.0))
    }
}
