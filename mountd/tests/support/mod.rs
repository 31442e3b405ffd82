//! What the tests of the mount side share: a journal that records ops, a model that they are applied to, and random numbers.
#![allow(dead_code)]

pub mod model;
pub mod recorder;
pub mod rng;
