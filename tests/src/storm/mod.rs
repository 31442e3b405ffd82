//! A storm: random operations on a tree, from a seed, by any number of workers in any number of processes.
//!
//! [`Generator`] makes up [`Action`]s and learns from their outcome, [`Performer`] carries them out below one directory. Neither knows
//! of TandemFS: [`run`] storms a single tree, [`differential`] does the same things to two and compares each result.

mod action;
pub mod differential;
mod generator;
mod perform;
mod worker;

pub use action::{Action, Move, NodeToMake, Outcome, Path};
pub use generator::{Generator, Shape};
pub use perform::Performer;
pub use worker::{Report, run};
