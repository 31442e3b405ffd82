//! What the two sides of TandemFS agree on: wire messages, positions, ops, inode ids, digests, chunking, limits.
//!
//! Nothing here does I/O. Generated protobuf types stay in [`pb`] and are turned into the domain types in [`convert`],
//! which also checks every bound: what passes it is safe to use (names cannot leave a directory, lengths are bounded).

pub mod bulk;
pub mod chain;
pub mod chunk;
pub mod codec;
pub mod convert;
pub mod fields;
pub mod figures;
pub mod ids;
pub mod limits;
pub mod op;
pub mod packed;
pub mod position;
pub mod protocol;
pub mod pull;
pub mod shape;
pub mod stage;
pub mod verify;
pub mod volume;

/// Generated protobuf messages and gRPC stubs of `tandem.v1`. Stops at [`convert`].
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod pb {
    tonic::include_proto!("tandem.v1");

    /// Encoded descriptors of all files, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tandem.bin"));
}

pub use chain::Chain;
pub use chunk::{Digest, chunks};
pub use convert::Invalid;
pub use ids::{InodeId, Name, Uuid};
pub use op::{Attr, AttrPatch, Change, Changes, NodeKind, Op, Origin, Timestamp};
pub use position::{COUNT_MAX, Epoch, Position, Seq};
pub use volume::VolumeName;
