//! The subcommands, one file each.

pub mod clients;
pub mod clone;
pub mod completions;
pub mod config;
pub mod cp;
pub mod divergence;
pub mod doctor;
pub mod grant;
pub mod history;
pub mod invite;
pub mod join;
pub mod pause;
pub mod restore;
pub mod resume;
pub mod revoke;
pub mod scrub;
pub mod status;
pub mod top;
pub mod umount;
pub mod verify;
pub mod volume;
pub mod wait;
pub mod watch;
