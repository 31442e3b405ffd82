//! Files on their way from one place to another (`tandem cp`): what both ends of a copy do, whatever stands behind them.
//!
//! ```text
//!   who has the files                                   who gets them
//!   list: item, item, …, listed ──────────────────────► [Receiver] ─► [Destination]: makes directories, knows what is there
//!                     ◄────────── want(item, so many bytes are there, their digest)
//!   [send_file] ─ frame, frame, …, last(digest) ──────► [Partial]: appends, hashes ─► whole ─► [Destination]: under its name
//! ```
//! Promise: a file is handed over as whole only if all its bytes have the digest that the other end computed while it read them. What had
//! arrived when something broke is named by its digest, and not sent again. Both ends work on files only; the network is their callers'.
//! Frames are bounded ([`FRAME_BYTES`]), and files asked for ahead ([`AHEAD`]); who writes slowly is sent to slowly.

mod partial;
pub mod pattern;
mod receive;
mod send;

pub use self::{
    partial::{LocalFile, Partial},
    receive::{Counted, Destination, Failed, Receiver, Taken, Whole},
    send::{Readable, digest_of, piece_of, send_file},
};

/// Bytes in one frame.
pub const FRAME_BYTES: usize = 256 << 10;
/// Files that are asked for before the first of them is there: small ones then follow each other without a round trip.
pub const AHEAD: usize = 256;
/// Items of one copy. Each takes some hundred bytes on both ends.
pub const ITEMS_MAX: usize = 4_000_000;
