//! The link to the storage daemon: [`core`] decides (no I/O), [`driver`] connects, sends and receives, [`client`] asks about volumes,
//! [`reading`] reads files for it, [`start`] decides how a mount may start, [`pace`] when batches go.

pub mod claim;
pub mod client;
pub mod core;
pub mod driver;
pub mod pace;
pub mod packer;
mod reading;
mod silence;
#[cfg(test)]
mod sim;
pub mod start;
pub mod state;

pub use self::{core::LinkFacts, state::LinkState};
