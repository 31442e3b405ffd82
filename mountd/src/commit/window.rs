//! The window: the ops that the replica may still need, in memory, bounded in bytes.
//!
//! ```text
//!         base                sent              filled               next
//!  gone ───┤ filled, durable?  │ filled, waits   │ reserved or filled  │
//!          └── chain known ────┘                 └ first reserved slot ┘
//! ```
//! Seqs are dense: every reserved slot is filled or voided. Only the filled prefix is ever sent. Trimming at `durable` moves `base`.
//! When the bytes of the filled prefix pass the bound, all of it is handed back to be put into the dirty set, and the window keeps
//! nothing until the next resync says from where on ops are wanted again. Pure: no I/O, no clock.

use std::{collections::VecDeque, sync::Arc};

use tandem_proto::{Chain, Change, InodeId, Op, Seq};

/// What an op costs beside its data: the struct, its slot, its chain.
const OP_OVERHEAD_BYTES: usize = 256;

#[derive(Clone, Debug)]
enum SlotState {
    Reserved,
    Filled(Arc<Op>),
}

/// Ops to be sent, in order.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Chain at the op before the first; known because it was recorded when that one was sent.
    pub chain_before: Chain,
    /// The ops, dense.
    pub ops: Vec<Arc<Op>>,
}

/// See the module.
#[derive(Debug)]
pub struct Window {
    limit_bytes: usize,
    base: Seq,
    base_chain: Chain,
    slots: VecDeque<SlotState>,
    /// Chains of base+1, base+2, ... as far as they were computed.
    chains: VecDeque<Chain>,
    filled: Seq,
    bytes: usize,
    keeping: bool,
}

fn cost(op: &Op) -> usize {
    OP_OVERHEAD_BYTES + op.changes.iter().map(|change| 96 + change.data_len()).sum::<usize>()
}

impl Window {
    /// An empty window that keeps nothing until [`Window::keep`].
    pub fn new(limit_bytes: usize) -> Self {
        Window {
            limit_bytes,
            base: Seq(0),
            base_chain: Chain::default(),
            slots: VecDeque::new(),
            chains: VecDeque::new(),
            filled: Seq(0),
            bytes: 0,
            keeping: false,
        }
    }

    /// The next seq; its slot must be filled or voided.
    pub fn reserve(&mut self) -> Seq {
        self.slots.push_back(SlotState::Reserved);
        self.last_reserved()
    }

    /// The highest seq that was handed out.
    pub fn last_reserved(&self) -> Seq {
        self.base.plus(self.slots.len() as u64)
    }

    /// End of the filled prefix.
    pub fn filled(&self) -> Seq {
        self.filled
    }

    /// Ops up to here are gone.
    pub fn base(&self) -> Seq {
        self.base
    }

    /// The newest op that touches an inode, or may: what a reserved slot will hold is not known. If none that is held does, the last that
    /// is gone.
    pub fn last_of(&self, id: &InodeId) -> Seq {
        let touches = |change: &Change| match change {
            Change::Birth { id: of, .. }
            | Change::Attr { id: of, .. }
            | Change::Xattr { id: of, .. }
            | Change::Data { id: of, .. }
            | Change::Copy { id: of, .. }
            | Change::Hole { id: of, .. }
            | Change::Size { id: of, .. } => of == id,
            Change::Entry { dir, old, new, .. } => dir == id || old.as_ref() == Some(id) || new.as_ref() == Some(id),
        };
        let newest = self.slots.iter().enumerate().rev().find(|(_, slot)| match slot {
            SlotState::Filled(op) => op.changes.iter().any(touches),
            SlotState::Reserved => true,
        });
        newest.map_or(self.base, |(at, _)| self.base.plus(at as u64 + 1))
    }

    /// Bytes held, data and overhead.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bound of [`Window::bytes`]; ops behind a reserved slot may pass it, a few per thread.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Whether filled ops are kept for the stream.
    pub fn is_keeping(&self) -> bool {
        self.keeping
    }

    /// Fills a reserved slot. Returns the ops that the window cannot keep, oldest first: their cells are dirty now.
    #[must_use]
    pub fn fill(&mut self, op: impl Into<Arc<Op>>) -> Vec<Arc<Op>> {
        let op = op.into();
        let Some(at) = op.seq.0.checked_sub(self.base.0 + 1) else {
            debug_assert!(false, "slot {} was given up before it was filled", op.seq);
            return vec![op];
        };
        let at = at as usize;
        debug_assert!(matches!(self.slots.get(at), Some(SlotState::Reserved)), "slot {} filled twice", op.seq);
        self.bytes += cost(&op);
        self.slots[at] = SlotState::Filled(op);
        let mut prefix = (self.filled.0 - self.base.0) as usize;
        while matches!(self.slots.get(prefix), Some(SlotState::Filled(_))) {
            prefix += 1;
        }
        self.filled = self.base.plus(prefix as u64);
        if !self.keeping || self.bytes > self.limit_bytes { self.give_up() } else { Vec::new() }
    }

    /// Stops keeping ops: hands back the filled prefix. Ops that are filled later come back from [`Window::fill`].
    #[must_use]
    pub fn give_up(&mut self) -> Vec<Arc<Op>> {
        self.keeping = false;
        let (chain, known) = (self.last_chain(), self.chain_at(self.filled));
        let dropped = self.remove_to(self.filled);
        match known {
            // All of it was sent: the replica may have it, and then compares this chain.
            Some(chain) => self.base_chain = chain,
            // Nobody computed the chain over the dropped ops. Their number, after a known chain, names this history as well:
            // one run of one epoch has one op for each seq.
            None => self.base_chain = Chain::begin(&[b"dropped", &chain.0, &self.base.0.to_le_bytes()]),
        }
        dropped
    }

    /// The ops that are held, in order; those behind a reserved slot too.
    pub fn ops(&self) -> impl Iterator<Item = Arc<Op>> + '_ {
        self.slots.iter().filter_map(|slot| match slot {
            SlotState::Filled(op) => Some(op.clone()),
            SlotState::Reserved => None,
        })
    }

    /// From here on ops are kept. Returns the position (seq and chain) that the stream begins after: the end of the filled prefix.
    pub fn keep(&mut self) -> (Seq, Chain) {
        debug_assert_eq!(self.base, self.filled, "give_up comes first");
        self.keeping = true;
        (self.base, self.base_chain)
    }

    /// Sets the chain of the epoch's begin, before anything was sent in it.
    pub fn begin_epoch(&mut self, chain: Chain) {
        self.base_chain = Chain::begin(&[b"epoch", &chain.0, &self.base.0.to_le_bytes()]);
        if self.base.0 == 0 {
            self.base_chain = chain;
        }
    }

    /// Forgets ops up to `to`, which the replica has; returns them. Never goes beyond the filled prefix.
    pub fn trim(&mut self, to: Seq) -> Vec<Arc<Op>> {
        let to = to.min(self.filled);
        if to <= self.base {
            return Vec::new();
        }
        match self.chain_at(to) {
            Some(chain) => {
                let removed = self.remove_to(to);
                self.base_chain = chain;
                removed
            }
            // Acknowledged without having been sent: the caller checks acks against what it sent, so this cannot be.
            None => Vec::new(),
        }
    }

    /// The chain at `seq`, if that is the base or an op of the window whose chain was recorded.
    pub fn chain_at(&self, seq: Seq) -> Option<Chain> {
        if seq == self.base {
            return Some(self.base_chain);
        }
        let at = seq.0.checked_sub(self.base.0 + 1)?;
        self.chains.get(at as usize).copied()
    }

    /// Records the chains of the ops from `first` on, computed by who sent them.
    pub fn record_chains(&mut self, first: Seq, chains: &[Chain]) {
        for (at, chain) in chains.iter().enumerate() {
            let seq = first.plus(at as u64);
            if seq <= self.filled && seq == self.base.plus(self.chains.len() as u64 + 1) {
                self.chains.push_back(*chain);
            }
        }
    }

    /// Filled ops after `after`, at least one if there is one, up to about `target_bytes` and `max_ops`. `None`: nothing is filled
    /// there, or `after` is not in the window.
    pub fn take(&self, after: Seq, target_bytes: usize, max_ops: usize) -> Option<Taken> {
        if after < self.base || after >= self.filled {
            return None;
        }
        let chain_before = self.chain_at(after)?;
        let (mut ops, mut bytes) = (Vec::new(), 0);
        let start = (after.0 - self.base.0) as usize;
        for slot in self.slots.range(start..(self.filled.0 - self.base.0) as usize) {
            let SlotState::Filled(op) = slot else { break };
            let size = op.changes.iter().map(|change| 64 + change.data_len()).sum::<usize>();
            if !ops.is_empty() && (bytes + size > target_bytes || ops.len() >= max_ops) {
                break;
            }
            bytes += size;
            ops.push(op.clone());
        }
        Some(Taken { chain_before, ops })
    }

    /// All ops that are held, also those behind a slot that is not filled.
    pub fn held(&self) -> impl Iterator<Item = &Op> {
        self.slots.iter().filter_map(|slot| match slot {
            SlotState::Filled(op) => Some(&**op),
            SlotState::Reserved => None,
        })
    }

    /// Bytes held for ops after `seq`.
    pub fn bytes_after(&self, seq: Seq) -> usize {
        let start = seq.0.saturating_sub(self.base.0) as usize;
        if start == 0 {
            return self.bytes;
        }
        let slots = self.slots.range(start.min(self.slots.len())..);
        slots.map(|slot| if let SlotState::Filled(op) = slot { cost(op) } else { 0 }).sum()
    }

    /// When the oldest op that is held was done, in Unix nanoseconds of its origin.
    pub fn oldest_time_ns(&self) -> Option<i64> {
        self.slots.iter().find_map(|slot| match slot {
            SlotState::Filled(op) if op.origin.time_ns != 0 => Some(op.origin.time_ns),
            _ => None,
        })
    }

    fn last_chain(&self) -> Chain {
        self.chains.back().copied().unwrap_or(self.base_chain)
    }

    fn remove_to(&mut self, to: Seq) -> Vec<Arc<Op>> {
        let count = (to.0 - self.base.0) as usize;
        let mut removed = Vec::with_capacity(count);
        for slot in self.slots.drain(..count) {
            if let SlotState::Filled(op) = slot {
                self.bytes -= cost(&op);
                removed.push(op);
            }
        }
        self.chains.drain(..count.min(self.chains.len()));
        self.base = to;
        removed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop, prop_oneof, proptest};
    use tandem_proto::{Chain, Change, InodeId, Op, Origin, Seq};

    use super::Window;

    fn op(seq: Seq, len: usize) -> Op {
        let id = InodeId::new(&seq.0.to_le_bytes()).expect("short");
        let data = vec![seq.0 as u8; len].into();
        Op { seq, origin: Origin::default(), changes: [Change::Data { id, offset: 0, data }].into_iter().collect() }
    }

    fn chain(seq: Seq) -> Chain {
        Chain::begin(&[&seq.0.to_le_bytes()])
    }

    #[test]
    fn a_slot_that_is_not_filled_holds_back_what_follows() {
        let mut window = Window::new(1 << 20);
        let _ = window.keep();
        let (a, b, c) = (window.reserve(), window.reserve(), window.reserve());
        assert!(window.fill(op(b, 1)).is_empty());
        assert!(window.take(Seq(0), 1 << 20, 10).is_none());
        assert!(window.fill(op(a, 1)).is_empty());
        let taken = window.take(Seq(0), 1 << 20, 10).expect("two are filled");
        assert_eq!(taken.ops.iter().map(|op| op.seq).collect::<Vec<_>>(), [a, b]);
        assert_eq!((window.filled(), window.last_reserved()), (b, c));
    }

    #[test]
    fn the_last_op_of_an_inode_is_the_newest_that_touches_it_or_is_not_filled() {
        let mut window = Window::new(1 << 20);
        let _ = window.keep();
        let id = |seq: Seq| InodeId::new(&seq.0.to_le_bytes()).expect("short");
        let (a, b, c) = (window.reserve(), window.reserve(), window.reserve());
        assert!(window.fill(op(a, 1)).is_empty() && window.fill(op(c, 1)).is_empty());
        assert_eq!((window.last_of(&id(a)), window.last_of(&id(c))), (b, c), "{b} may be about any of them");
        assert!(window.fill(op(b, 1)).is_empty());
        assert_eq!((window.last_of(&id(a)), window.last_of(&id(Seq(77)))), (a, Seq(0)));
    }

    #[test]
    fn overflow_hands_back_the_whole_prefix_and_keeps_nothing() {
        let mut window = Window::new(3000);
        let _ = window.keep();
        let mut dropped = Vec::new();
        for _ in 0..5 {
            let seq = window.reserve();
            dropped.extend(window.fill(op(seq, 1000)));
        }
        assert_eq!(dropped.iter().map(|op| op.seq.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(!window.is_keeping());
        assert_eq!((window.bytes(), window.base()), (0, Seq(5)));
        let (base, chain) = window.keep();
        assert_eq!((base, Some(chain)), (Seq(5), window.chain_at(Seq(5))));
    }

    #[derive(Clone, Debug)]
    enum Do {
        Reserve,
        Fill(prop::sample::Index, usize),
        Trim(u64),
        Send,
        GiveUp,
        Keep,
    }

    fn todo() -> impl Strategy<Value = Do> {
        prop_oneof![
            4 => proptest::strategy::Just(Do::Reserve),
            4 => (proptest::arbitrary::any::<prop::sample::Index>(), 0..400usize).prop_map(|(at, len)| Do::Fill(at, len)),
            1 => (0..40u64).prop_map(Do::Trim),
            2 => proptest::strategy::Just(Do::Send),
            1 => proptest::strategy::Just(Do::GiveUp),
            1 => proptest::strategy::Just(Do::Keep),
        ]
    }

    proptest! {
        /// Every filled op is exactly once: in the window, trimmed, or handed back; what is sent is dense and in order.
        #[test]
        fn no_op_is_lost_or_doubled(script in prop::collection::vec(todo(), 1..120)) {
            let mut window = Window::new(4000);
            let (mut open, mut gone, mut sent) = (Vec::new(), std::collections::BTreeSet::new(), Seq(0));
            let mut filled_count = 0;
            for step in script {
                let mut removed = Vec::new();
                match step {
                    Do::Reserve => open.push(window.reserve()),
                    Do::Fill(at, len) if !open.is_empty() => {
                        let seq = open.swap_remove(at.index(open.len()));
                        filled_count += 1;
                        removed = window.fill(op(seq, len));
                    }
                    Do::Fill(..) => {}
                    Do::Trim(back) => removed = window.trim(Seq(sent.0.saturating_sub(back))),
                    Do::Send => {
                        sent = sent.max(window.base());
                        if let Some(taken) = window.take(sent, 1000, 3) {
                            for (at, op) in taken.ops.iter().enumerate() {
                                assert_eq!(op.seq, sent.plus(at as u64 + 1));
                            }
                            let chains: Vec<_> = taken.ops.iter().map(|op| chain(op.seq)).collect();
                            window.record_chains(sent.next(), &chains);
                            sent = sent.plus(taken.ops.len() as u64);
                            assert_eq!(window.chain_at(sent), Some(chain(sent)));
                        }
                    }
                    Do::GiveUp => removed = window.give_up(),
                    Do::Keep => if !window.is_keeping() { let _ = window.keep(); },
                }
                for op in removed {
                    assert!(gone.insert(op.seq), "{} came back twice", op.seq);
                    assert!(op.seq <= window.base());
                }
                assert!(window.base() <= window.filled() && window.filled() <= window.last_reserved());
                assert!(window.chain_at(window.base()).is_some());
                assert_eq!(gone.len() as u64, window.base().0);
                let first_open = open.iter().min().copied().unwrap_or(window.last_reserved().next());
                assert_eq!(window.filled().next(), first_open);
                let held = window.slots.iter().filter(|slot| matches!(slot, super::SlotState::Filled(_))).count();
                assert_eq!(held + gone.len(), filled_count);
            }
        }
    }
}
