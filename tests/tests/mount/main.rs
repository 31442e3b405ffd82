//! Real daemons, real mounts: what a person does with TandemFS, and what goes wrong meanwhile.
//!
//! One program with all mount tests, because linking the daemons' libraries once is what takes the time. Each file is one situation.

mod admin;
mod bad_input;
mod borders;
mod capture;
mod clones;
mod configured;
mod confined;
mod copies;
mod everyday;
mod exclude;
mod faults;
mod first_sync;
mod formats;
mod fsync;
mod hooks;
mod hostile;
mod identity;
mod letter;
mod link_faults;
mod links;
mod load;
mod many;
mod names;
mod ordinary;
mod outages;
mod own_certificates;
mod page;
mod passthrough;
mod past;
mod posix;
mod promises;
mod readers;
mod speed;
mod starts;
mod storms;
mod support;
mod takeover;
mod traced;
mod trust;
mod twin;
mod verify;
mod wire;
