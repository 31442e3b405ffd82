//! The plan from one tree to another: pure, so that swaps, cycles, moves out of what is removed and moves into what is new can be
//! tested by the thousand.
//!
//! ```text
//!  vacate   every name that will mean something else: what lives on is parked (a directory with all below it) or, if a file has
//!           another name that stays, unlinked; then what has no name any more is unlinked or, a directory, discarded as a whole
//!  create   new directories, parents first; then other new objects, straight at their first name
//!  fill     parked objects go to their first name; files get their further names
//! ```
//! After *vacate* no name is in the way of another, and no parked directory lies below another moved one, so the order of *fill*
//! does not matter and no cycle needs to be found.

use std::collections::{BTreeSet, HashMap, HashSet};

use tandem_proto::{
    ids::{InodeId, Name},
    op::NodeKind,
    stage::NodeType,
};

use super::{changeset::Changeset, error::ApplyError};
use crate::catalog::Cell;

/// The tree as it is, by id.
pub trait View {
    /// What a name means.
    fn entry(&self, dir: &InodeId, name: &Name) -> Result<Option<InodeId>, ApplyError>;
    /// All names of an inode; those that a parked object had are not among them.
    fn names(&self, id: &InodeId) -> Result<Vec<Cell>, ApplyError>;
    /// All names of a directory.
    fn entries(&self, dir: &InodeId) -> Result<Vec<(Name, InodeId)>, ApplyError>;
    /// Type of an inode that has an object.
    fn node_type(&self, id: &InodeId) -> Result<Option<NodeType>, ApplyError>;
    /// Inodes that are parked by a run that was interrupted.
    fn parked(&self) -> Vec<InodeId>;
    /// Whether the content of a new file waits in staging.
    fn is_staged(&self, id: &InodeId) -> bool;
}

/// One step. Cells are named by directory id: a step finds the directory wherever it is by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Moves an object from a name to the parking place.
    Park(InodeId, Cell),
    /// Removes a name of what is no directory.
    Unlink(InodeId, Cell),
    /// Removes a directory and everything below it.
    Discard(InodeId, Cell),
    /// Removes a parked object, or a further name of one that is not.
    DropParked(InodeId),
    /// Creates an object.
    Create(InodeId, Cell),
    /// Moves a staged file to its first name.
    PlaceStaged(InodeId, Cell),
    /// Moves a parked object to its first name.
    PlaceParked(InodeId, Cell),
    /// Gives a file a further name.
    Link(InodeId, Cell),
}

/// A row for a name that an inode will have: inode, directory, name.
type Gain<'n> = (&'n InodeId, &'n InodeId, &'n Name);

/// What is to be done, in this order. A first sync has a step for each of its files, so those are rows that were there anyway.
#[derive(Debug)]
pub struct Plan<'n> {
    first: Vec<Step>,
    placed: Vec<Gain<'n>>,
    links: Vec<Step>,
}

impl Plan<'_> {
    /// The steps.
    pub fn into_steps(self) -> impl Iterator<Item = Step> {
        let placed = self.placed.into_iter().map(|(id, dir, name)| Step::PlaceStaged(*id, (*dir, name.clone())));
        self.first.into_iter().chain(placed).chain(self.links)
    }
}

struct Planner<'v, 'n, V> {
    view: &'v V,
    net: &'n Changeset,
    /// Names that inodes will have by assignment: inode, directory, name, in this order once they are collected. A row, because a first
    /// sync has millions.
    gains: Vec<Gain<'n>>,
    alive_dirs: HashMap<InodeId, bool>,
    /// Names that will not mean what they mean now, in order.
    lost: Vec<(Cell, InodeId)>,
    lost_cells: HashSet<Cell>,
    parked: HashSet<InodeId>,
    steps: Vec<Step>,
}

/// Makes the plan from `view` to `view` with `net` over it.
pub fn plan<'n, V: View>(view: &V, net: &'n Changeset) -> Result<Plan<'n>, ApplyError> {
    let mut planner = Planner::new(view, net);
    planner.collect()?;
    planner.close_over_dead_directories()?;
    let kept_out = planner.vacate()?;
    let (placed, links) = planner.fill(kept_out)?;
    planner.keep_gains(&placed);
    Ok(Plan { first: planner.steps, placed: planner.gains, links })
}

/// The inodes that have no name any more in `view` with `net` over it.
pub fn leaving<V: View>(view: &V, net: &Changeset) -> Result<Vec<InodeId>, ApplyError> {
    let mut planner = Planner::new(view, net);
    planner.collect()?;
    planner.close_over_dead_directories()?;
    let lost: BTreeSet<InodeId> = std::mem::take(&mut planner.lost).into_iter().map(|(_, id)| id).collect();
    let mut gone = Vec::new();
    for id in lost {
        if !planner.is_alive(&id)? {
            gone.push(id);
        }
    }
    Ok(gone)
}

impl<'v, 'n, V: View> Planner<'v, 'n, V> {
    fn new(view: &'v V, net: &'n Changeset) -> Self {
        Planner {
            view,
            net,
            gains: Vec::new(),
            alive_dirs: HashMap::new(),
            lost: Vec::new(),
            lost_cells: HashSet::new(),
            parked: view.parked().into_iter().collect(),
            steps: Vec::new(),
        }
    }

    /// Changed cells, from the assignments.
    fn collect(&mut self) -> Result<(), ApplyError> {
        let net = self.net;
        let mut dirs: Vec<_> = net.dirs.iter().collect();
        dirs.sort_by(|left, right| left.0.cmp(right.0));
        self.gains.reserve_exact(dirs.iter().map(|(_, net)| net.names.len()).sum());
        for (dir, net) in &dirs {
            if self.node_type_then(dir)?.is_some_and(|node| node != NodeType::Directory) {
                return Err(ApplyError::protocol(dir, "it is given names and is no directory"));
            }
            for (name, id) in &net.names {
                if let Some(id) = id {
                    if id.is_root() {
                        return Err(ApplyError::protocol(dir, "the root is given a name"));
                    }
                    self.gains.push((id, dir, name));
                }
                let now = self.view.entry(dir, name)?;
                if let Some(now) = now.filter(|now| Some(*now) != *id) {
                    self.lose((**dir, name.clone()), now);
                }
            }
            if net.complete {
                for (name, now) in self.view.entries(dir)? {
                    if !net.names.contains_key(&name) {
                        self.lose((**dir, name), now);
                    }
                }
            }
        }
        self.gains.sort_unstable();
        self.lose_other_names_of_directories()
    }

    /// Names that an inode will have by assignment.
    fn gained(&self, id: &InodeId) -> &[Gain<'n>] {
        let from = self.gains.partition_point(|gain| gain.0 < id);
        let count = self.gains[from..].iter().take_while(|gain| gain.0 == id).count();
        &self.gains[from..from + count]
    }

    /// Type of an inode at the end, as far as anybody said.
    fn node_type_then(&self, id: &InodeId) -> Result<Option<NodeType>, ApplyError> {
        let is = self.view.node_type(id)?;
        Ok(is.or_else(|| self.net.nodes.get(id)?.kind.as_ref().map(NodeKind::node_type)))
    }

    /// A directory has one name: one that gains another loses the one it has, assigned or not.
    fn lose_other_names_of_directories(&mut self) -> Result<(), ApplyError> {
        let mut moved = Vec::new();
        for gains in self.gains.chunk_by(|one, other| one.0 == other.0) {
            let id = *gains[0].0;
            if self.view.node_type(&id)? == Some(NodeType::Directory) {
                let names = self.view.names(&id)?;
                let stays = |(dir, name): &Cell| gains.iter().any(|gain| gain.1 == dir && gain.2 == name);
                moved.extend(names.into_iter().filter(|cell| !stays(cell)).map(|cell| (cell, id)));
            }
        }
        moved.sort();
        for (cell, id) in moved {
            if self.net.assigned(&cell.0, &cell.1).is_none() {
                self.lose(cell, id);
            }
        }
        Ok(())
    }

    fn lose(&mut self, cell: Cell, id: InodeId) {
        if self.lost_cells.insert(cell.clone()) {
            self.lost.push((cell, id));
        }
    }

    /// Names that an inode has now and keeps, wherever they are.
    fn kept(&self, id: &InodeId) -> Result<Vec<Cell>, ApplyError> {
        let names = self.view.names(id)?;
        Ok(names.into_iter().filter(|cell| !self.lost_cells.contains(cell)).collect())
    }

    /// Whether a directory can be reached from the root at the end. Of several names that it was given in the course of a
    /// staging, those in directories that are gone do not count, so all its ways up are looked at; a loop reaches nothing.
    fn is_alive_dir(&mut self, id: &InodeId) -> Result<bool, ApplyError> {
        if id.is_root() {
            return Ok(true);
        }
        if let Some(known) = self.alive_dirs.get(id) {
            return Ok(*known);
        }
        let mut below: HashMap<InodeId, Vec<InodeId>> = HashMap::new();
        let (mut seen, mut look_at, mut reached) = (HashSet::from([*id]), vec![*id], Vec::new());
        while let Some(at) = look_at.pop() {
            let gained = self.gained(&at).iter().map(|(_, dir, _)| **dir);
            let mut above: Vec<InodeId> = gained.collect();
            if above.is_empty() {
                above.extend(self.kept(&at)?.into_iter().map(|(dir, _)| dir));
            }
            for dir in above {
                below.entry(dir).or_default().push(at);
                match self.alive_dirs.get(&dir) {
                    Some(true) => reached.push(dir),
                    Some(false) => {}
                    None if dir.is_root() => reached.push(dir),
                    None if seen.insert(dir) => look_at.push(dir),
                    None => {}
                }
            }
        }
        let mut alive = HashSet::new();
        while let Some(dir) = reached.pop() {
            if alive.insert(dir) {
                reached.extend(below.remove(&dir).into_iter().flatten());
            }
        }
        for dir in seen {
            self.alive_dirs.insert(dir, alive.contains(&dir));
        }
        Ok(alive.contains(id))
    }

    /// The names of an inode at the end that can be reached: gained ones that it does not have yet, and kept ones.
    fn final_cells(&mut self, id: &InodeId) -> Result<(Vec<Cell>, Vec<Cell>), ApplyError> {
        let kept = self.kept(id)?;
        let cells = self.gained(id).iter().map(|(_, dir, name)| (**dir, (*name).clone()));
        let gained: Vec<Cell> = cells.filter(|cell| !kept.contains(cell)).collect();
        let mut reachable = |cells: Vec<Cell>| -> Result<Vec<Cell>, ApplyError> {
            let mut left = Vec::new();
            for cell in cells {
                if self.is_alive_dir(&cell.0)? {
                    left.push(cell);
                }
            }
            Ok(left)
        };
        Ok((reachable(gained)?, reachable(kept)?))
    }

    fn is_alive(&mut self, id: &InodeId) -> Result<bool, ApplyError> {
        if self.view.node_type(id)? == Some(NodeType::Directory) {
            return self.is_alive_dir(id);
        }
        let (gained, kept) = self.final_cells(id)?;
        Ok(!gained.is_empty() || !kept.is_empty())
    }

    /// What a dead directory holds loses its name there, too; only what lives on needs a step for it.
    fn close_over_dead_directories(&mut self) -> Result<(), ApplyError> {
        let mut at = 0;
        let mut seen = HashSet::new();
        let mut dead: Vec<InodeId> = Vec::new();
        loop {
            while let Some((_, id)) = self.lost.get(at).cloned() {
                at += 1;
                if self.view.node_type(&id)? == Some(NodeType::Directory) && !self.is_alive_dir(&id)? {
                    dead.push(id);
                }
            }
            let Some(dir) = dead.pop() else { return Ok(()) };
            if !seen.insert(dir) {
                continue;
            }
            for (name, child) in self.view.entries(&dir)? {
                let directory = self.view.node_type(&child)? == Some(NodeType::Directory);
                if directory && !self.is_alive_dir(&child)? {
                    dead.push(child);
                }
                self.lose((dir, name), child);
            }
        }
    }

    /// First half: makes room. Returns the files that live on without any name for now, by parking.
    fn vacate(&mut self) -> Result<HashSet<InodeId>, ApplyError> {
        let mut parked_now = self.parked.clone();
        let mut discards = Vec::new();
        for (cell, id) in std::mem::take(&mut self.lost) {
            let in_dead_dir = !self.is_alive_dir(&cell.0)?;
            let directory = self.view.node_type(&id)? == Some(NodeType::Directory);
            if !self.is_alive(&id)? {
                match (in_dead_dir, directory) {
                    (true, _) => {}
                    (false, true) => discards.push(Step::Discard(id, cell)),
                    (false, false) => self.steps.push(Step::Unlink(id, cell)),
                }
                continue;
            }
            let has_another = !directory && (parked_now.contains(&id) || !self.final_cells(&id)?.1.is_empty());
            if !has_another {
                parked_now.insert(id);
                self.steps.push(Step::Park(id, cell));
            } else if !in_dead_dir {
                self.steps.push(Step::Unlink(id, cell));
            }
        }
        self.steps.append(&mut discards);
        Ok(parked_now)
    }

    /// Second half: brings everything to its names. Also which of the gains are the first names of staged files, in order, and the steps
    /// for further names.
    fn fill(&mut self, parked: HashSet<InodeId>) -> Result<(Vec<usize>, Vec<Step>), ApplyError> {
        let begin = self.steps.len();
        let mut fill = Fill::default();
        let mut at = 0;
        while let Some((id, ..)) = self.gains.get(at).copied() {
            let names = self.gains[at..].iter().take_while(|gain| gain.0 == id).count();
            self.fill_one(id, at, parked.contains(id), &mut fill)?;
            at += names;
        }
        let mut nameless: Vec<InodeId> = parked.iter().filter(|id| self.gained(id).is_empty()).copied().collect();
        nameless.sort_unstable();
        for id in nameless {
            self.fill_one(&id, at, true, &mut fill)?;
        }
        self.steps.splice(begin..begin, created_in_order(fill.created));
        Ok((fill.placed, fill.links))
    }

    /// One inode, whose gains begin at `at`.
    fn fill_one(&mut self, id: &InodeId, at: usize, is_parked: bool, fill: &mut Fill) -> Result<(), ApplyError> {
        let (gained, kept) = self.final_cells(id)?;
        let node_type = self.view.node_type(id)?;
        let directory = self.node_type_then(id)? == Some(NodeType::Directory);
        if directory && gained.len() + kept.len() > 1 {
            return Err(ApplyError::protocol(id, "a directory would have two names"));
        }
        let mut gained = gained.into_iter();
        if is_parked && !kept.is_empty() {
            self.steps.push(Step::DropParked(*id));
        } else if kept.is_empty() {
            match gained.next() {
                None if is_parked => self.steps.push(Step::DropParked(*id)),
                None => {}
                Some(cell) if is_parked => self.steps.push(Step::PlaceParked(*id, cell)),
                Some(cell) if self.view.is_staged(id) => {
                    let is_it = |gain: &Gain<'_>| *gain.1 == cell.0 && *gain.2 == cell.1;
                    fill.placed.extend(self.gains[at..].iter().position(is_it).map(|behind| at + behind));
                }
                Some(cell) => {
                    let kind = self.net.nodes.get(id).and_then(|node| node.kind.as_ref());
                    match kind {
                        _ if node_type.is_some() => {
                            return Err(ApplyError::damaged(id, "it has a name in the log and no object"));
                        }
                        None => return Err(ApplyError::protocol(id, "it has a name and was never born")),
                        Some(kind) if kind.is_directory() => fill.created.push((*id, cell)),
                        Some(_) => self.steps.push(Step::Create(*id, cell)),
                    }
                }
            }
        }
        fill.links.extend(gained.map(|cell| Step::Link(*id, cell)));
        Ok(())
    }

    /// Keeps of the gains those at these places, which are sorted.
    fn keep_gains(&mut self, places: &[usize]) {
        let (mut places, mut at) = (places.iter().copied().peekable(), 0);
        self.gains.retain(|_| {
            let keep = places.next_if_eq(&at).is_some();
            at += 1;
            keep
        });
    }
}

/// What [`Planner::fill`] collects beside the steps.
#[derive(Default)]
struct Fill {
    created: Vec<(InodeId, Cell)>,
    placed: Vec<usize>,
    links: Vec<Step>,
}

/// Directories, parents first.
fn created_in_order(created: Vec<(InodeId, Cell)>) -> Vec<Step> {
    let mut waiting: HashMap<InodeId, Cell> = created.iter().cloned().collect();
    let mut steps = Vec::with_capacity(created.len());
    for (id, _) in &created {
        let (mut chain, mut at) = (Vec::new(), *id);
        while let Some(cell) = waiting.remove(&at) {
            let parent = cell.0;
            chain.push(Step::Create(at, cell));
            at = parent;
        }
        steps.extend(chain.into_iter().rev());
    }
    steps
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
