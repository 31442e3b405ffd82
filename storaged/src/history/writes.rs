//! Writes that wait to be told with others like them. Pure: the time is that of the ops.

use std::sync::Arc;

use tandem_proto::{
    ids::InodeId,
    op::{Change, Op, Origin},
    position::{Epoch, Position, Seq},
};

/// Files of processes that wait at most.
const WAITING_MAX: usize = 32;
/// A write is told at the latest when another one comes so much later.
const WITHIN_NS: i64 = 1_000_000_000;

/// Writes of one file by one process.
#[derive(Debug)]
pub struct Written {
    /// Who wrote, and when last.
    pub origin: Origin,
    /// The last of them.
    pub seq: Seq,
    /// Their epoch.
    pub epoch: Epoch,
    /// The client.
    pub client: Arc<str>,
    /// The file.
    pub id: InodeId,
    /// The lowest of their offsets.
    pub offset: u64,
    /// All that they wrote.
    pub bytes: u64,
    /// How many there were.
    pub ops: u64,
    begun_ns: i64,
}

impl Written {
    /// Of an op that is one write and nothing else.
    pub fn of(op: &Op, lens: &[u64], position: Position, client: &Arc<str>) -> Option<Written> {
        let ([Change::Data { id, offset, .. }], [bytes]) = (&op.changes[..], lens) else { return None };
        Some(Written {
            origin: op.origin.clone(),
            seq: op.seq,
            epoch: position.epoch,
            client: client.clone(),
            id: *id,
            offset: *offset,
            bytes: *bytes,
            ops: 1,
            begun_ns: op.origin.time_ns,
        })
    }

    fn is_like(&self, other: &Written) -> bool {
        let same_process = self.origin.pid == other.origin.pid && self.origin.process == other.origin.process;
        self.id == other.id
            && same_process
            && self.origin.uid == other.origin.uid
            && self.epoch == other.epoch
            && self.client == other.client
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Writes {
    waiting: Vec<Written>,
}

impl Writes {
    /// Whether those that wait have to be told before this one is added.
    pub fn is_over(&self, next: &Written) -> bool {
        let late = |first: &Written| next.origin.time_ns - first.begun_ns >= WITHIN_NS;
        self.waiting.len() >= WAITING_MAX || self.waiting.first().is_some_and(late)
    }

    /// One more.
    pub fn add(&mut self, written: Written) {
        // The busiest is mostly the last.
        let Some(known) = self.waiting.iter_mut().rev().find(|known| known.is_like(&written)) else {
            self.waiting.push(written);
            return;
        };
        known.offset = known.offset.min(written.offset);
        known.bytes = known.bytes.saturating_add(written.bytes);
        known.ops += 1;
        (known.origin, known.seq) = (written.origin, written.seq);
    }

    /// All that wait, in the order of ops.
    pub fn take(&mut self) -> Vec<Written> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_by_key(|written| (written.epoch, written.seq));
        waiting
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use tandem_proto::{
        ids::InodeId,
        op::{Change, Op, Origin},
        position::{Position, Seq},
    };

    use super::{WITHIN_NS, Writes, Written};

    fn written(seq: u64, pid: u32, time_ns: i64) -> Written {
        let id = InodeId::new(b"f").expect("short");
        let origin = Origin { time_ns, uid: 0, gid: 0, pid, process: "p".into() };
        let changes = smallvec![Change::Data { id, offset: 9, data: "x".into() }];
        let op = Op { seq: Seq(seq), origin, changes };
        Written::of(&op, &[1], Position::default(), &"c".into()).expect("a write")
    }

    #[test]
    fn only_the_same_process_shares_a_line_and_not_for_ever() {
        let mut writes = Writes::default();
        for (seq, pid) in [(1, 7), (2, 8), (3, 7)] {
            writes.add(written(seq, pid, 5));
        }
        assert!(!writes.is_over(&written(4, 7, 4 + WITHIN_NS)));
        assert!(writes.is_over(&written(4, 7, 5 + WITHIN_NS)));
        let told: Vec<_> =
            writes.take().iter().map(|written| (written.seq.0, written.origin.pid, written.ops)).collect();
        assert_eq!(told, [(2, 8, 1), (3, 7, 2)]);
        assert!(writes.take().is_empty() && !writes.is_over(&written(4, 7, i64::MAX)));
    }

    #[test]
    fn an_op_that_says_more_than_one_write_has_its_own_line() {
        let id = InodeId::new(b"f").expect("short");
        let data = Change::Data { id, offset: 0, data: "x".into() };
        let op = Op { seq: Seq(1), origin: Origin::default(), changes: smallvec![data.clone(), data] };
        assert!(Written::of(&op, &[1, 1], Position::default(), &"c".into()).is_none());
    }
}
