//! The planner against a naive twin: a tree of ids on which steps are carried out one by one, as strictly as a file system.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Strategy, prop, proptest};
use tandem_proto::{
    ids::{InodeId, Name},
    op::NodeKind,
    stage::NodeType,
};

use super::{Step, View};
use crate::{
    apply::{
        changeset::{Changeset, NodeNet},
        error::ApplyError,
        testing::{id, name},
    },
    catalog::Cell,
};

/// Ids below this are directories, others files.
const DIRS: u64 = 12;
const IDS: u64 = 20;

fn node_type(id: u64) -> NodeType {
    if id < DIRS { NodeType::Directory } else { NodeType::Regular }
}

#[derive(Clone, Debug, Default)]
struct Twin {
    exists: BTreeSet<InodeId>,
    cells: BTreeMap<Cell, InodeId>,
    parked: BTreeSet<InodeId>,
    staged: BTreeSet<InodeId>,
}

fn plan<V: View>(view: &V, net: &Changeset) -> Result<Vec<Step>, ApplyError> {
    Ok(super::plan(view, net)?.into_steps().collect())
}

fn type_of(id: &InodeId) -> NodeType {
    let number = id.as_bytes().last().copied().unwrap_or(0);
    node_type(u64::from(number))
}

impl View for Twin {
    fn entry(&self, dir: &InodeId, name: &Name) -> Result<Option<InodeId>, ApplyError> {
        Ok(self.cells.get(&(*dir, name.clone())).copied())
    }

    fn names(&self, id: &InodeId) -> Result<Vec<Cell>, ApplyError> {
        Ok(self.cells.iter().filter(|(_, of)| *of == id).map(|(cell, _)| cell.clone()).collect())
    }

    fn entries(&self, dir: &InodeId) -> Result<Vec<(Name, InodeId)>, ApplyError> {
        let of = self.cells.iter().filter(|((at, _), _)| at == dir);
        Ok(of.map(|((_, name), id)| (name.clone(), *id)).collect())
    }

    fn node_type(&self, id: &InodeId) -> Result<Option<NodeType>, ApplyError> {
        Ok(self.exists.contains(id).then(|| type_of(id)))
    }

    fn parked(&self) -> Vec<InodeId> {
        self.parked.iter().copied().collect()
    }

    fn is_staged(&self, id: &InodeId) -> bool {
        self.staged.contains(id)
    }
}

impl Twin {
    fn is_reachable(&self, id: &InodeId) -> bool {
        let (mut at, mut steps) = (*id, 0);
        while !at.is_root() {
            let Some(cell) = self.cells.iter().find(|(_, of)| **of == at).map(|(cell, _)| cell) else { return false };
            at = cell.0;
            steps += 1;
            if steps > 100 {
                return false;
            }
        }
        true
    }

    /// Removes directories that hang in the air, with all below them.
    fn drop_unreachable(&mut self) {
        loop {
            let dead: Vec<Cell> = self.cells.keys().filter(|(dir, _)| !self.is_reachable(dir)).cloned().collect();
            if dead.is_empty() {
                break;
            }
            for cell in dead {
                self.cells.remove(&cell);
            }
        }
        let named: BTreeSet<InodeId> = self.cells.values().copied().collect();
        self.exists.retain(|id| id.is_root() || named.contains(id));
    }

    fn take(&mut self, id: &InodeId, cell: &Cell) {
        assert_eq!(self.cells.remove(cell), Some(*id), "{cell:?} is not {id}");
    }

    fn put(&mut self, id: &InodeId, cell: &Cell) {
        assert!(self.exists.contains(&cell.0), "{} does not exist when {id} is put into it", cell.0);
        assert_eq!(type_of(&cell.0), NodeType::Directory);
        assert_eq!(self.cells.insert(cell.clone(), *id), None, "{cell:?} is in the way of {id}");
        assert!(self.parked.iter().any(|top| self.is_below(&cell.0, top)) || self.is_reachable(&cell.0));
    }

    fn is_below(&self, id: &InodeId, top: &InodeId) -> bool {
        let (mut at, mut steps) = (*id, 0);
        loop {
            if at == *top {
                return true;
            }
            let Some(cell) = self.cells.iter().find(|(_, of)| **of == at).map(|(cell, _)| cell) else { return false };
            at = cell.0;
            steps += 1;
            assert!(steps < 100, "a loop");
        }
    }

    fn carry_out(&mut self, step: &Step) {
        match step {
            Step::Park(id, cell) => {
                self.take(id, cell);
                assert!(self.parked.insert(*id), "{id} is parked twice");
            }
            Step::Unlink(id, cell) => {
                assert_eq!(type_of(id), NodeType::Regular);
                self.take(id, cell);
            }
            Step::Discard(id, cell) => {
                assert_eq!(type_of(id), NodeType::Directory);
                self.take(id, cell);
                let below: Vec<Cell> = self.cells.keys().filter(|(dir, _)| self.is_below(dir, id)).cloned().collect();
                for cell in below {
                    self.cells.remove(&cell);
                }
                self.exists.remove(id);
            }
            Step::DropParked(id) => assert!(self.parked.remove(id)),
            Step::Create(id, cell) => {
                assert!(self.exists.insert(*id), "{id} is created twice");
                self.put(id, cell);
            }
            Step::PlaceStaged(id, cell) => {
                assert!(self.staged.remove(id) && self.exists.insert(*id));
                self.put(id, cell);
            }
            Step::PlaceParked(id, cell) => {
                assert!(self.parked.remove(id), "{id} is not parked");
                self.put(id, cell);
            }
            Step::Link(id, cell) => {
                assert_eq!(type_of(id), NodeType::Regular);
                assert!(self.cells.values().any(|of| of == id), "{id} has no name to link from");
                self.put(id, cell);
            }
        }
    }
}

/// A tree: each directory below one with a smaller rank, files anywhere and often.
fn tree() -> impl Strategy<Value = Twin> {
    let ranks = prop::collection::vec(0..1000u32, DIRS as usize);
    let places = prop::collection::vec((0..1000usize, 0..5u8, 0..4u8), IDS as usize * 2);
    (ranks, places).prop_map(|(ranks, places)| {
        let mut order: Vec<u64> = (1..DIRS).collect();
        order.sort_by_key(|dir| ranks[*dir as usize]);
        let mut twin = Twin { exists: [InodeId::ROOT].into(), ..Twin::default() };
        let mut dirs = vec![InodeId::ROOT];
        for (at, (place, called, keep)) in places.iter().enumerate() {
            let number = if at < order.len() { order[at] } else { DIRS + (at as u64 % (IDS - DIRS)) };
            let cell = (dirs[place % dirs.len()], name(["a", "b", "c", "d", "e"][usize::from(*called)]));
            if *keep == 0 || twin.cells.contains_key(&cell) {
                continue;
            }
            twin.cells.insert(cell, id(number));
            twin.exists.insert(id(number));
            if number < DIRS {
                dirs.push(id(number));
            }
        }
        twin
    })
}

fn difference(from: &Twin, to: &Twin, complete: bool) -> Changeset {
    let mut net = Changeset::default();
    for (cell, id) in &to.cells {
        if complete || from.cells.get(cell) != Some(id) {
            net.set_entry(cell.0, &cell.1, Some(*id));
        }
    }
    for cell in from.cells.keys() {
        if complete {
            net.dirs.entry(cell.0).or_default().complete = true;
        } else if !to.cells.contains_key(cell) {
            net.set_entry(cell.0, &cell.1, None);
        }
    }
    for id in &to.exists {
        let kind = if type_of(id) == NodeType::Directory { NodeKind::Directory } else { NodeKind::Regular };
        net.nodes.insert(*id, Box::new(NodeNet { kind: Some(kind), ..NodeNet::default() }));
    }
    net
}

proptest! {
    #[test]
    fn a_plan_leads_from_any_tree_to_any_other(from in tree(), to in tree(), complete: bool, staged in 0..4u64) {
        let (mut twin, mut to) = (from, to);
        to.drop_unreachable();
        twin.drop_unreachable();
        for number in DIRS..IDS {
            if !twin.exists.contains(&id(number)) && to.exists.contains(&id(number)) && number % 4 < staged {
                twin.staged.insert(id(number));
            }
        }
        let steps = plan(&twin, &difference(&twin, &to, complete)).expect("a plan");
        for step in &steps {
            twin.carry_out(step);
        }
        assert_eq!(twin.cells, to.cells);
        assert!(twin.parked.is_empty());
        twin.drop_unreachable();
        assert_eq!(plan(&twin, &difference(&twin, &to, true)).expect("a plan"), []);
    }

    #[test]
    fn a_plan_that_is_cut_off_is_completed_by_the_next(from in tree(), to in tree(), cut in 0..30usize) {
        let (mut twin, mut to) = (from, to);
        to.drop_unreachable();
        twin.drop_unreachable();
        let net = difference(&twin, &to, true);
        for step in plan(&twin, &net).expect("a plan").iter().take(cut) {
            twin.carry_out(step);
        }
        let named: BTreeSet<InodeId> = twin.cells.values().chain(&twin.parked).copied().collect();
        twin.exists.retain(|id| id.is_root() || named.contains(id));
        for step in &plan(&twin, &net).expect("a plan") {
            twin.carry_out(step);
        }
        assert_eq!(twin.cells, to.cells);
        assert!(twin.parked.is_empty());
    }
}

fn world(cells: &[(u64, &str, u64)]) -> Twin {
    let cells: BTreeMap<Cell, InodeId> = cells.iter().map(|(dir, at, to)| ((id(*dir), name(at)), id(*to))).collect();
    let exists = cells.values().copied().chain([InodeId::ROOT]).collect();
    Twin { exists, cells, ..Twin::default() }
}

fn carried_out(from: &[(u64, &str, u64)], to: &[(u64, &str, u64)]) -> Vec<Step> {
    let (mut twin, to) = (world(from), world(to));
    let steps = plan(&twin, &difference(&twin, &to, false)).expect("a plan");
    for step in &steps {
        twin.carry_out(step);
    }
    assert_eq!(twin.cells, to.cells);
    steps
}

#[test]
fn a_directory_that_is_moved_under_its_former_child_is_parked_first() {
    let steps = carried_out(&[(0, "a", 1), (1, "b", 2)], &[(0, "b", 2), (2, "a", 1)]);
    assert!(matches!(steps[0], Step::Park(..)));
}

#[test]
fn what_lives_on_is_taken_out_of_a_directory_that_is_removed() {
    let steps = carried_out(&[(0, "a", 1), (1, "f", 15), (1, "b", 2), (2, "g", 16)], &[(0, "f", 15), (0, "g", 16)]);
    let discarded = steps.iter().position(|step| matches!(step, Step::Discard(..))).expect("a discard");
    assert!(steps[..discarded].iter().all(|step| matches!(step, Step::Park(..))));
}

#[test]
fn a_file_with_a_name_that_stays_is_not_moved() {
    let steps = carried_out(&[(0, "a", 15), (0, "b", 15)], &[(0, "b", 15), (0, "c", 15)]);
    assert_eq!(steps.len(), 2, "{steps:?}");
}

#[test]
fn names_for_an_inode_that_never_was_are_refused_unless_their_directory_is_gone() {
    let twin = world(&[(0, "a", 1)]);
    let mut net = Changeset::default();
    net.set_entry(id(1), &name("x"), Some(id(15)));
    assert!(matches!(plan(&twin, &net), Err(ApplyError::Protocol { .. })));
    net.set_entry(id(0), &name("a"), None);
    assert!(matches!(&plan(&twin, &net).expect("a plan")[..], [Step::Discard(..)]));
}

#[test]
fn a_directory_with_two_names_is_refused() {
    let twin = world(&[(0, "a", 1)]);
    let mut net = Changeset::default();
    net.set_entry(id(0), &name("b"), Some(id(1)));
    net.set_entry(id(0), &name("c"), Some(id(1)));
    assert!(matches!(plan(&twin, &net), Err(ApplyError::Protocol { .. })));
}

#[test]
fn of_two_names_of_a_directory_the_one_that_is_reached_counts() {
    let twin = world(&[(0, "a", 1)]);
    let mut net = Changeset::default();
    // An earlier round listed it in a directory that nothing names any more.
    net.set_entry(id(2), &name("x"), Some(id(1)));
    net.set_entry(id(0), &name("a"), None);
    net.set_entry(id(0), &name("b"), Some(id(1)));
    let steps = plan(&twin, &net).expect("a plan");
    assert!(matches!(&steps[..], [Step::Park(..), Step::PlaceParked(..)]), "{steps:?}");
}
