//! The FUSE adapter: the only code that speaks the kernel's protocol. Each request becomes one call of the vfs, each result one
//! answer; what needs a decision is decided there, not here.
//!
//! ```text
//!  kernel ─ /dev/fuse ─► device: take ─► wire: header, fields ─► adapter: which call? ─► vfs
//!    ▲                                                              │ fsync, writes that are held back: they wait, the thread does not
//!    └── device: Reply ◄── convert: structures ◄────────────────────┘ interrupts, gate
//! ```
//! The session loop is ours, and only the vocabulary is fuser's: its own loop keeps FUSE_INTERRUPT to itself and tells the kernel never to
//! send it again, so that a call that waits for the replica could not be interrupted (`docs/decisions/0011`).

mod abi;
mod adapter;
mod awake;
mod buffers;
mod connection;
mod convert;
mod crew;
mod device;
mod dying;
mod gate;
mod inside;
mod interrupts;
mod listing;
mod preempted;
mod processors;
mod serve;
mod splice;
mod wire;

pub use self::{
    connection::{Connection, Waiting, default_busy_poll},
    inside::{NAME as INSIDE_NAME, Tell},
    interrupts::Waits,
};

/// Largest write request: what one op carries.
const WRITE_MAX: u32 = tandem_proto::limits::DATA_MAX as u32;
