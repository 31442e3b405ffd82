//! Every bound that both sides rely on, with its reason.

/// Newest version of the replication protocol that is spoken, see [`crate::protocol`].
pub const PROTOCOL_VERSION: u32 = 1;
/// Oldest one.
pub const PROTOCOL_OLDEST: u32 = 1;
/// Longest file name in bytes (NAME_MAX of every Linux file system).
pub const NAME_MAX: usize = 255;
/// Longest inode id in bytes; see [`crate::InodeId`].
pub const INODE_ID_MAX: usize = 31;
/// Longest symlink target in bytes (PATH_MAX with its NUL).
pub const TARGET_MAX: usize = 4095;
/// Longest name of an extended attribute (XATTR_NAME_MAX).
pub const XATTR_NAME_MAX: usize = 255;
/// Largest value of an extended attribute (XATTR_SIZE_MAX).
pub const XATTR_VALUE_MAX: usize = 65536;
/// Most bytes of data in one change. FUSE asks for at most 1 MiB in one write.
pub const DATA_MAX: usize = 1 << 20;
/// Most changes in one op.
pub const CHANGES_MAX: usize = 64;
/// A batch is closed when its data reaches this; above 256 KiB a message gains nothing (measured: decode cost is linear).
pub const BATCH_TARGET_BYTES: usize = 512 << 10;
/// A batch holds at most this many ops.
pub const BATCH_MAX_OPS: usize = 1024;
/// Largest gRPC message that is accepted. A batch may pass its target by one op (64 changes of 1 MiB never occur together:
/// a sender splits copies), so this leaves room for a few.
pub const MESSAGE_MAX_BYTES: usize = 8 << 20;
/// Entries in one StageDir message.
pub const STAGE_ENTRIES_MAX: usize = 1024;
/// Pieces in one StageRecipe message.
pub const PIECES_MAX: usize = 1024;
/// Largest file offset that Linux knows (loff_t).
pub const OFFSET_MAX: u64 = i64::MAX as u64;
/// Bytes of a file that one mark of the activity log covers.
pub const MARK_BLOCK: u64 = 4 << 20;
/// Fixed blocks by which dirty extents are compared by digest when only a mark is known.
pub const COMPARE_BLOCK: u64 = 64 << 10;
/// Runs that an attach may name: a client remembers those that may have opened an epoch and did not hear of it.
pub const ATTACH_RUNS_MAX: usize = 64;
/// [`Attached.features`](crate::pb::Attached): pieces longer than a chunk, with the digest of their first chunk.
pub const FEATURE_GROUPS: u32 = 1;
/// Copies from another file of the volume, as ops.
pub const FEATURE_COPIES: u32 = 2;
/// Longest copy in one op, with what else the op carries: 256 MiB are eight of them. The replica holds one in memory while it is logged, and a
/// record of its log is hardly longer than that (`PAYLOAD_MAX` of the runtime's frames).
pub const COPY_MAX: u64 = 32 << 20;
/// Copies in one batch. The replica makes them one by one, and acknowledges the last: a gigabyte, a few seconds of its disk.
pub const BATCH_MAX_COPIES: usize = 32;
/// Compressed messages.
pub const FEATURE_PACKED: u32 = 4;
/// The storage daemon has hooks: it wants to be told which files were closed after they were open for writing.
pub const FEATURE_CLOSED: u32 = 8;
/// Files that one [`Closed`](crate::pb::Closed) names.
pub const CLOSED_MAX: usize = 256;
/// Several copies in one batch, and other ops beside them.
pub const FEATURE_COPY_RUNS: u32 = 16;
/// Longest piece with a digest; longer than [`DATA_MAX`] it is a group of chunks. The replica reads it at once to check it.
pub const GROUP_MAX: u64 = 8 << 20;
