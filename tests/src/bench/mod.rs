//! What a mount costs, measured beside what it is compared with in one run, so that ratios hold on any machine.

pub mod echo;
pub mod fsync;
pub mod hostile;
pub mod mount;
pub mod steady;
pub mod tls;
