//! Durable ops that wait for apply: the next ones in memory, the others by their place in the log.
//!
//! ```text
//!   push ─► ready (bounded memory) ─► front, advance: apply
//!     └───► spilled: counted, and read back from the log when `ready` has run low ─┘
//! ```
//! Logging, and so every acknowledgement, goes on while apply is slow, held by a reader or stuck on a full disk: what waits costs a
//! place in the log, not memory. The bound is that of the log; see [`super::flow`].

use std::collections::VecDeque;

use tandem_proto::{chain::Chain, op::Op, position::Position};

use super::core::OpRun;
use crate::log::{Log, LogError, LogPos, codec, disk::Disk};

/// A run of ops on its way to the tree.
struct Ready {
    run: OpRun,
    done: usize,
    at: LogPos,
}

/// Ops that are only in the log.
#[derive(Clone, Copy, Debug)]
struct Spilled {
    /// A record at or before the first of them.
    from: LogPos,
    /// Where the op before them led.
    before: Position,
    /// The last of them.
    end: Position,
    ops: u64,
    bytes: u64,
}

/// See the module.
pub struct Backlog {
    ready: VecDeque<Ready>,
    ready_bytes: usize,
    ready_ops: usize,
    spilled: Option<Spilled>,
    max_bytes: usize,
    max_ops: usize,
}

impl Backlog {
    /// Nothing waits. Up to so much of what will wait is in memory, and one run more.
    pub fn new(max_bytes: usize, max_ops: usize) -> Self {
        Backlog { ready: VecDeque::new(), ready_bytes: 0, ready_ops: 0, spilled: None, max_bytes, max_ops }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.spilled.is_none()
    }

    /// Number of ops that wait.
    pub fn ops(&self) -> u64 {
        let done = self.ready.front().map_or(0, |ready| ready.done);
        (self.ready_ops - done) as u64 + self.spilled.map_or(0, |spilled| spilled.ops)
    }

    /// Bytes of their records, in whole runs.
    pub fn bytes(&self) -> u64 {
        self.ready_bytes as u64 + self.spilled.map_or(0, |spilled| spilled.bytes)
    }

    /// Bytes of their records that are in memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// The last op that waits.
    pub fn end(&self) -> Option<Position> {
        self.spilled.map(|spilled| spilled.end).or_else(|| self.ready.back().map(|ready| ready.run.end))
    }

    /// Where the log must be kept from.
    pub fn oldest(&self) -> Option<LogPos> {
        self.ready.front().map(|ready| ready.at).or_else(|| self.spilled.map(|spilled| spilled.from))
    }

    fn is_full(&self) -> bool {
        self.ready_bytes >= self.max_bytes || self.ready_ops >= self.max_ops
    }

    /// Adds ops whose record is durable, at or after `at`.
    pub fn push(&mut self, run: OpRun, at: LogPos) {
        let (ops, bytes, is_full) = (run.ops.len() as u64, run.bytes as u64, self.is_full());
        match (&mut self.spilled, self.ready.back()) {
            (Some(spilled), _) => {
                spilled.end = run.end;
                spilled.ops += ops;
                spilled.bytes += bytes;
            }
            (None, Some(last)) if is_full => {
                self.spilled = Some(Spilled { from: at, before: last.run.end, end: run.end, ops, bytes });
            }
            _ => self.make_ready(run, at),
        }
    }

    fn make_ready(&mut self, run: OpRun, at: LogPos) {
        self.ready_bytes += run.bytes;
        self.ready_ops += run.ops.len();
        self.ready.push_back(Ready { run, done: 0, at });
    }

    /// The next op, with the chain after it. [`Self::refill`] comes first.
    pub fn front(&self) -> Option<(&Op, Chain)> {
        let ready = self.ready.front()?;
        Some((&ready.run.ops[ready.done], ready.run.chains[ready.done]))
    }

    /// The next op was applied; returns the bytes of the run that ended with it, or 0.
    pub fn advance(&mut self) -> usize {
        let Some(ready) = self.ready.front_mut() else { return 0 };
        ready.done += 1;
        if ready.done < ready.run.ops.len() {
            return 0;
        }
        let (bytes, ops) = (ready.run.bytes, ready.run.ops.len());
        self.ready_bytes -= bytes;
        self.ready_ops -= ops;
        self.ready.pop_front();
        bytes
    }

    /// Forgets everything: it was applied in another way.
    pub fn clear(&mut self) {
        *self = Backlog::new(self.max_bytes, self.max_ops);
    }

    /// Reads back what comes next, if nothing is in memory any more.
    pub fn refill<D: Disk>(&mut self, log: &Log<D>) -> Result<(), LogError> {
        let Some(mut spilled) = self.spilled.filter(|_| self.ready.is_empty()) else { return Ok(()) };
        for raw in log.records_from(spilled.from) {
            let raw = raw?;
            let at = raw.at;
            let read = codec::live_ops_after(raw, &spilled.before);
            let Some(read) = read.map_err(|problem| LogError::Damaged { at, problem })? else { continue };
            let codec::LiveOps { ops, chains, end, bytes } = read;
            let run = OpRun { ops, chains, end, bytes };
            spilled.before = run.end;
            spilled.from = at;
            spilled.ops = spilled.ops.saturating_sub(run.ops.len() as u64);
            spilled.bytes = spilled.bytes.saturating_sub(run.bytes as u64);
            self.make_ready(run, at);
            let all = (spilled.before.epoch, spilled.before.seq) >= (spilled.end.epoch, spilled.end.seq);
            self.spilled = (!all).then_some(spilled);
            if all || self.is_full() {
                return Ok(());
            }
        }
        let problem = format!("the ops after {} are not in it, and they were durable", spilled.before);
        Err(LogError::Damaged { at: spilled.from, problem })
    }
}
