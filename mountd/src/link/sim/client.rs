//! The simulated mount: concurrent operations on the model, committed like the vfs does it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Arc,
};

use tandem_proto::{AttrPatch, Change, Changes, InodeId, Name, NodeKind, Origin, Seq, Timestamp};

use crate::{
    commit::{ATTRIBUTES, Commit, MarkCell, MarkGuard, Slot},
    link::sim::model::{MemFs, Model},
};

/// xorshift; shared, as a step of reading is interrupted by the client.
pub struct Random(Cell<u64>);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    pub fn below(&self, bound: u64) -> u64 {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        (state >> 11) % bound
    }
}

struct Pending {
    guard: MarkGuard<'static>,
    slot: Slot<'static>,
    changes: Changes,
    locks: Vec<InodeId>,
    executed: bool,
}

pub struct Client {
    pub fs: Arc<MemFs>,
    pub commit: &'static Commit,
    pending: RefCell<Vec<Pending>>,
    next_id: Cell<u64>,
    clock: Cell<i64>,
    filled: RefCell<BTreeMap<Seq, Changes>>,
    truth: RefCell<Model>,
    truths: RefCell<BTreeMap<Seq, Model>>,
}

impl Client {
    pub fn new(fs: Arc<MemFs>, commit: &'static Commit, first_id: u64) -> Self {
        let start = fs.0.lock().pruned();
        Client {
            fs,
            commit,
            pending: RefCell::default(),
            next_id: Cell::new(first_id),
            clock: Cell::new(first_id as i64 * 1000),
            filled: RefCell::default(),
            truth: RefCell::new(start.clone()),
            truths: RefCell::new(BTreeMap::from([(Seq(0), start)])),
        }
    }

    pub fn ids_used(&self) -> u64 {
        self.next_id.get()
    }

    /// The state just after op `seq`.
    pub fn truth_at(&self, seq: Seq) -> Option<Model> {
        self.advance_truth();
        self.truths.borrow().get(&seq).cloned()
    }

    /// One random action of some thread.
    pub fn act(&self, random: &Random) {
        match random.below(3) {
            0 => self.start(random),
            1 => self.execute(random),
            _ => self.fill(random),
        }
    }

    pub fn finish_all(&self, random: &Random) {
        while !self.pending.borrow().is_empty() {
            self.execute(random);
            self.fill(random);
        }
    }

    fn execute(&self, random: &Random) {
        let mut pending = self.pending.borrow_mut();
        if pending.is_empty() {
            return;
        }
        let at = random.below(pending.len() as u64) as usize;
        if !pending[at].executed {
            pending[at].executed = true;
            self.fs.0.lock().apply(&pending[at].changes);
        }
    }

    fn fill(&self, random: &Random) {
        let chosen = {
            let mut pending = self.pending.borrow_mut();
            if pending.is_empty() {
                return;
            }
            let at = random.below(pending.len() as u64) as usize;
            if !pending[at].executed {
                return;
            }
            pending.swap_remove(at)
        };
        let seq = chosen.slot.seq();
        self.filled.borrow_mut().insert(seq, chosen.changes.clone());
        self.advance_truth();
        chosen.slot.fill(Origin::default(), chosen.changes);
        drop(chosen.guard);
    }

    fn advance_truth(&self) {
        let (mut truth, mut truths) = (self.truth.borrow_mut(), self.truths.borrow_mut());
        let mut filled = self.filled.borrow_mut();
        loop {
            let next = truths.last_key_value().expect("seq 0").0.next();
            match filled.remove(&next) {
                Some(changes) => truth.apply(&changes),
                // A slot that is nobody's here was voided by the link, for a position of its own.
                None if next <= self.commit.filled() => {}
                None => return,
            }
            truth.prune();
            truths.insert(next, truth.clone());
        }
    }

    fn tick(&self) -> Option<Timestamp> {
        self.clock.set(self.clock.get() + 1);
        Some(Timestamp { seconds: self.clock.get(), nanos: 0 })
    }

    fn touch(&self, id: InodeId) -> Change {
        Change::Attr { id, patch: AttrPatch { mtime: self.tick(), ..Default::default() } }
    }

    fn start(&self, random: &Random) {
        if self.pending.borrow().len() >= 3 {
            return;
        }
        let Some((changes, cells, locks)) = self.invent(random) else { return };
        let busy = self.pending.borrow().iter().any(|other| other.locks.iter().any(|id| locks.contains(id)));
        if busy {
            return;
        }
        let guard = self.commit.mark(&cells).expect("the activity log can be written");
        let slot = self.commit.reserve();
        self.pending.borrow_mut().push(Pending { guard, slot, changes, locks, executed: false });
    }

    /// A random operation that is legal now, with the cells that it marks and the objects that it locks.
    fn invent(&self, random: &Random) -> Option<(Changes, Vec<MarkCell>, Vec<InodeId>)> {
        let model = self.fs.0.lock().pruned();
        let pick = |wanted: bool| {
            let ids: Vec<InodeId> =
                model.nodes.iter().filter(|(_, node)| node.dir == wanted).map(|(id, _)| *id).collect();
            (!ids.is_empty()).then(|| ids[random.below(ids.len() as u64) as usize])
        };
        let name = || Name::new(vec![b'a' + random.below(5) as u8]).expect("legal");
        let dir = pick(true)?;
        let mut changes = Changes::new();
        match random.below(10) {
            0..=2 => {
                let name = name();
                if model.child(&dir, &name).is_some() {
                    return None;
                }
                self.next_id.set(self.next_id.get() + 1);
                let id = InodeId::new(&self.next_id.get().to_be_bytes()).expect("short");
                let kind = if random.below(3) == 0 { NodeKind::Directory } else { NodeKind::Regular };
                changes.push(Change::Birth { id, kind });
                changes.push(self.touch(id));
                changes.push(Change::Entry { dir, name, old: None, new: Some(id) });
                changes.push(self.touch(dir));
                Some((changes, vec![MarkCell::Dir(dir)], vec![dir, id]))
            }
            3 | 4 => {
                let id = pick(false)?;
                let offset = random.below(40);
                let data = vec![random.below(255) as u8 + 1; random.below(30) as usize + 1].into();
                changes.push(Change::Data { id, offset, data });
                // A multiple of the clock only: the stamp must not always give the change away.
                Some((changes, vec![MarkCell::File { id, block: 0 }], vec![id]))
            }
            5 => {
                let id = pick(false)?;
                changes.push(match random.below(3) {
                    0 => Change::Size { id, size: random.below(50) },
                    1 => Change::Hole { id, offset: random.below(40), len: random.below(30) },
                    _ => self.touch(id),
                });
                let cells = vec![MarkCell::File { id, block: 0 }, MarkCell::File { id, block: ATTRIBUTES }];
                Some((changes, cells, vec![id]))
            }
            6 => {
                let name = name();
                let old = model.child(&dir, &name)?;
                if model.nodes[&old].dir && model.list(&old).next().is_some() {
                    return None;
                }
                changes.push(Change::Entry { dir, name, old: Some(old), new: None });
                changes.push(self.touch(dir));
                Some((changes, vec![MarkCell::Dir(dir)], vec![dir, old]))
            }
            7 => {
                let (id, name) = (pick(false)?, name());
                if model.child(&dir, &name).is_some() {
                    return None;
                }
                changes.push(Change::Entry { dir, name, old: None, new: Some(id) });
                changes.push(self.touch(dir));
                Some((changes, vec![MarkCell::Dir(dir)], vec![dir, id]))
            }
            _ => self.invent_rename(random, &model, dir, name(), pick(true)?, name()),
        }
    }

    fn invent_rename(
        &self,
        random: &Random,
        model: &Model,
        dir: InodeId,
        name: Name,
        to: InodeId,
        to_name: Name,
    ) -> Option<(Changes, Vec<MarkCell>, Vec<InodeId>)> {
        let moved = model.child(&dir, &name)?;
        let victim = model.child(&to, &to_name);
        if victim == Some(moved) {
            return None;
        }
        let is_dir = |id: &InodeId| model.nodes[id].dir;
        let exchange = victim.is_some() && random.below(3) == 0;
        let directories = is_dir(&moved) || victim.is_some_and(|victim| is_dir(&victim));
        if directories && !self.pending.borrow().is_empty() {
            // The kernel lets one rename of directories happen at a time; here nothing else either.
            return None;
        }
        if model.is_beneath(to, moved) {
            return None;
        }
        if let Some(victim) = victim {
            let full = is_dir(&victim) && model.list(&victim).next().is_some();
            let legal =
                if exchange { !model.is_beneath(dir, victim) } else { is_dir(&victim) == is_dir(&moved) && !full };
            if !legal || victim == dir || victim == to {
                return None;
            }
        }
        let mut changes = Changes::new();
        changes.push(Change::Entry { dir, name, old: Some(moved), new: if exchange { victim } else { None } });
        changes.push(Change::Entry { dir: to, name: to_name, old: victim, new: Some(moved) });
        changes.push(self.touch(dir));
        changes.push(self.touch(to));
        let locks = [Some(dir), Some(to), Some(moved), victim].into_iter().flatten().collect();
        Some((changes, vec![MarkCell::Dir(dir), MarkCell::Dir(to)], locks))
    }
}
