//! What both daemons and the CLI need and is no agreement on the wire: durable files, record framing, the local secret,
//! runtime and state directories, telemetry, TLS, and gRPC connections.

pub mod connect;
pub mod dirs;
pub mod durable;
pub mod failure;
pub mod frame;
pub mod gauge;
pub mod map;
pub mod memory;

pub mod mutant;
pub mod notify;
pub mod priority;
pub mod processors;
pub mod secret;
pub mod settings;
pub mod telemetry;
pub mod tls;
pub mod watched;
pub mod when;
