//! The subcommands, one file each.

pub mod clone;
pub mod divergence;
pub mod history;
pub mod pause;
pub mod restore;
pub mod resume;
pub mod status;
pub mod top;
pub mod umount;
pub mod wait;
pub mod watch;
