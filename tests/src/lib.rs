//! Tests of TandemFS that need more than one part of it: real daemons, real mounts, faults, simulation.
//!
//! [`compare`] says whether two trees are equal, [`storm`] changes a tree at random, [`harness`] runs real daemons,
//! [`trials`] hits them with faults under load, [`sim`] runs the production core of both sides on simulated disks and a simulated network,
//! [`fuzz`] feeds mutated input to whatever reads what others wrote, [`hostile`] is a client that means harm.
//! The tests themselves are in `tests/tests`.

pub mod bench;
pub mod browser;
pub mod compare;
pub mod databases;
pub mod figures;
pub mod fuzz;
pub mod generic;
pub mod harness;
pub mod hostile;
pub mod netlab;
pub mod rng;
pub mod sim;
pub mod storm;
pub mod trials;
