//! The subcommands, one file each.

pub mod clone;
pub mod divergence;
pub mod pause;
pub mod resume;
pub mod status;
pub mod umount;
pub mod wait;
pub mod watch;
