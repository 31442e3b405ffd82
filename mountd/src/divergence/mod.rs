//! What a fenced mount holds and its replica does not: kept over restarts, listed by path, never merged and never dropped.
//!
//! ```text
//!  window, dirty set ──Commit::unreplicated──► DirtySet ──► stored.rs: `divergence.json` in the state directory, durably
//!                                                 │
//!                                                 └──walk of the folder──► items.rs: one item a path
//! ```
//! When a mount hears that it is fenced its cells are exact; they are written down, because the marks that outlive the daemon are coarse.
//! Listing walks the folder once, by name: a fenced folder does not change through its mount, and who asks is a person.

pub mod items;
pub mod stored;
