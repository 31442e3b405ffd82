//! Volumes: each is owned by one thread, which owns its log, tree and catalog.
//!
//! [`core`] is what happens and in which order, without threads; [`thread`] drives it; [`volumes`] finds, makes and opens the
//! volumes of a storage directory; [`hold`] is for readers that need one exact position; [`facts`] is what `status` may see. A volume that cannot be opened or fails is reported and
//! leaves the others alone.

mod backlog;
pub mod behind;
mod check;
mod commit;
mod copying;
pub mod core;
pub mod facts;
pub mod flow;
mod full;
pub mod hold;
pub mod quota;
mod redo;
mod reserve;
pub mod review;
mod session;
pub mod settings;
pub mod state;
pub mod thread;
mod told;
pub mod volumes;

#[cfg(test)]
mod tests;
