//! A deterministic simulation of one mount and its storage: the production code of both sides, on disks in memory and a network in memory.
//!
//! ```text
//!  Folder ─ops─► Commit ◄──► LinkCore ══ messages, that can be cut ══ Core ─► Log on MemDisk
//!    ▲   (production)       (production)                        (production) └► Replica on MemTree (production)
//!    └── requests of a seed; a resync reads it through FolderReader
//! ```
//! A [`World`] takes one small step after the other, chosen by its seed: a request of an application, a message sent or delivered, a group
//! commit, an op applied, a cut, a crash of either side. The checkers look on: a replica is always at a state the folder had
//! (prefix), its position never goes back and nothing acknowledged is lost, and when the faults end both sides become equal (convergence),
//! in the catalog too. Repeating a seed repeats the run.

mod apps;
mod backing_disk;
mod checks;
mod faults;
mod folder;
mod forge;
mod machine;
mod picture;
mod replica;
mod requests;
pub mod run;
mod trace;
mod world;

pub use checks::Checks;
pub use faults::{Fault, Faults};
pub use folder::{Folder, FolderReader, Request, id_of};
pub use picture::Picture;
pub use replica::ReplicaHost;
pub use trace::{Keep, Trace};
pub use world::World;
