//! Places in a volume's history.

use std::fmt;

use crate::chain::Chain;

/// Fencing token of one run of one writer. A newer epoch fences every older one for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// Largest epoch and largest seq that any message or file may name: what is counted on from there cannot overflow, and no volume that
/// is real gets near (a million ops a second for 146,000 years).
pub const COUNT_MAX: u64 = 1 << 62;

/// Number of an op in its epoch: dense, from 1. Seq 0 is the state that the epoch began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The seq of the op after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    /// This many ops later.
    pub fn plus(self, ops: u64) -> Seq {
        Seq(self.0 + ops)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A state of a volume: the one just after op `seq` of `epoch`. Equal positions mean equal histories, because of `chain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// The writer's run.
    pub epoch: Epoch,
    /// The last op that is part of the state.
    pub seq: Seq,
    /// Running hash up to that op.
    pub chain: Chain,
}

impl Position {
    /// Whether this position is before `other`. Chains do not order.
    pub fn is_before(&self, other: &Position) -> bool {
        (self.epoch, self.seq) < (other.epoch, other.seq)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}
