//! The client daemon: a FUSE mount over a folder (`fuse`, `vfs`, `backing`) whose changes are numbered (`commit`), streamed (`link`) and,
//! when the stream had a hole, made good by sending state (`resync`).

pub mod admin;
pub mod backing;
pub mod commit;
pub mod daemonize;
pub mod divergence;
pub mod exclude;
pub mod flusher;
pub mod fuse;
pub mod link;
pub mod meters;
pub mod mount;
pub mod mounted;
pub mod options;
pub mod replication;
pub mod resync;
pub mod run;
pub mod state;
pub mod verify;
pub mod vfs;
