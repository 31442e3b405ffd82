//! The dirty set: the cells that may differ from the replica.
//!
//! Exact at first: single names, byte ranges, attributes. At its byte bound it is coarsened, which only ever grows what it covers:
//! a directory's names become the whole directory and a file's ranges the whole file; if that is not enough, everything is dirty.
//! Pure.

use std::collections::{BTreeSet, HashMap};

use tandem_proto::{Change, InodeId, Name, Op, Position, Timestamp};

use crate::commit::intervals::Intervals;

/// Default bound of a dirty set's memory before it is coarsened: 64 MiB, some 500,000 cells.
pub const DIRTY_LIMIT_BYTES: usize = 64 << 20;

const DIR_COST: usize = 160;
const NODE_COST: usize = 160;
const RANGE_COST: usize = 48;
const NAME_COST: usize = 64;
/// Directories and files with at least so many cells are coarsened first.
const COARSEN_FROM: usize = 8;

/// Dirty names of one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirtyNames {
    /// These names.
    Some(BTreeSet<Name>),
    /// All names: a complete listing.
    All,
}

/// Dirty data of one file.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum DirtyData {
    /// None.
    #[default]
    Clean,
    /// These extents.
    Ranges(Intervals),
    /// All of it.
    All,
}

/// What may differ of one inode.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DirtyNode {
    /// It was born in a dropped op: the replica may not know it.
    pub born: bool,
    /// Its data.
    pub data: DirtyData,
}

/// What is dirty beyond single cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Scope {
    /// Nothing.
    #[default]
    Cells,
    /// Every directory is listed with stamps; inodes changed at or after this are compared whole.
    Walk(Timestamp),
    /// Every directory is listed and every inode compared whole.
    Everything,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct DirtySet {
    dirs: HashMap<InodeId, DirtyNames>,
    nodes: HashMap<InodeId, DirtyNode>,
    scope: Scope,
    /// Ids may be unknown to the replica or belong to other files there: match by path, keep surplus.
    unknown_ids: bool,
    born_since: Option<Position>,
    bytes: usize,
    limit_bytes: usize,
}

impl Default for DirtySet {
    fn default() -> Self {
        Self::bounded(DIRTY_LIMIT_BYTES)
    }
}

impl DirtySet {
    /// An empty one that is coarsened beyond so much memory.
    pub fn bounded(limit_bytes: usize) -> Self {
        DirtySet {
            dirs: HashMap::new(),
            nodes: HashMap::new(),
            scope: Scope::Cells,
            unknown_ids: false,
            born_since: None,
            bytes: 0,
            limit_bytes,
        }
    }

    /// See [`DirtySet::bounded`].
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Whether it has used so much of its room that it should be taken before it must be coarsened.
    pub fn is_crowded(&self) -> bool {
        self.bytes > self.limit_bytes / 2
    }

    /// Changes the bound.
    pub fn set_limit_bytes(&mut self, limit_bytes: usize) {
        self.limit_bytes = limit_bytes;
        self.coarsen_to(limit_bytes);
    }

    /// Everything, by name and content. `unknown_ids`: also what the ids mean.
    pub fn everything(unknown_ids: bool) -> Self {
        DirtySet { scope: Scope::Everything, unknown_ids, ..Default::default() }
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty() && self.nodes.is_empty() && self.scope == Scope::Cells && !self.unknown_ids
    }

    /// Dirty names.
    pub fn dirs(&self) -> &HashMap<InodeId, DirtyNames> {
        &self.dirs
    }

    /// Dirty inodes.
    pub fn nodes(&self) -> &HashMap<InodeId, DirtyNode> {
        &self.nodes
    }

    /// What is dirty beyond cells.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// See [`DirtySet::everything`].
    pub fn unknown_ids(&self) -> bool {
        self.unknown_ids
    }

    /// Inodes of listed directories that were born at or after this may differ from the replica in any cell.
    pub fn born_since(&self) -> Option<Position> {
        self.born_since
    }

    /// Number of cells.
    pub fn cells(&self) -> usize {
        let names = self.dirs.values().map(|names| match names {
            DirtyNames::Some(names) => names.len(),
            DirtyNames::All => 1,
        });
        let data = self.nodes.values().map(|node| match &node.data {
            DirtyData::Ranges(ranges) => 1 + ranges.len(),
            _ => 1,
        });
        names.sum::<usize>() + data.sum::<usize>() + usize::from(self.scope != Scope::Cells)
    }

    /// Memory, estimated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Every cell of this op.
    pub fn insert_op(&mut self, op: &Op) {
        for change in &op.changes {
            self.insert_change(change);
        }
        self.coarsen_to(self.limit_bytes);
    }

    fn insert_change(&mut self, change: &Change) {
        if self.scope == Scope::Everything {
            return;
        }
        match change {
            Change::Birth { id, .. } => self.insert_birth(*id),
            Change::Entry { dir, name, .. } => self.insert_name(*dir, name),
            Change::Attr { id, .. } | Change::Xattr { id, .. } => self.insert_attributes(*id),
            Change::Data { id, offset, data } => self.insert_range(*id, *offset, offset + data.len() as u64),
            Change::Copy { id, offset, len, .. } | Change::Hole { id, offset, len } => {
                self.insert_range(*id, *offset, offset + len)
            }
            // What lay behind the new end is gone even if the file grows again later, so it counts as changed.
            Change::Size { id, size } => self.insert_range(*id, *size, u64::MAX),
        }
    }

    /// One name of a directory; the directory's attributes too, as its mtime changed.
    pub fn insert_name(&mut self, dir: InodeId, name: &Name) {
        if !self.dirs.contains_key(&dir) {
            self.bytes += DIR_COST;
            self.dirs.insert(dir, DirtyNames::Some(BTreeSet::new()));
        }
        if let Some(DirtyNames::Some(names)) = self.dirs.get_mut(&dir)
            && names.insert(name.clone())
        {
            self.bytes += NAME_COST + name.as_bytes().len();
        }
    }

    /// All names of a directory.
    pub fn insert_directory(&mut self, dir: InodeId) {
        match self.dirs.insert(dir, DirtyNames::All) {
            None => self.bytes += DIR_COST,
            Some(DirtyNames::Some(names)) => self.bytes -= names_cost(&names),
            Some(DirtyNames::All) => {}
        }
    }

    /// Attributes, xattrs and size of an inode.
    pub fn insert_attributes(&mut self, id: InodeId) {
        self.node(id);
    }

    /// An inode that the replica may not know.
    pub fn insert_birth(&mut self, id: InodeId) {
        self.node(id).born = true;
    }

    /// An extent of a file.
    pub fn insert_range(&mut self, id: InodeId, start: u64, end: u64) {
        let node = self.node(id);
        // A born inode is sent whole anyway.
        if node.born || node.data == DirtyData::All {
            return;
        }
        if node.data == DirtyData::Clean {
            node.data = DirtyData::Ranges(Intervals::default());
        }
        if let DirtyData::Ranges(ranges) = &mut node.data {
            let before = ranges.len();
            ranges.insert(start, end);
            let after = ranges.len();
            self.bytes = self.bytes + after * RANGE_COST - before * RANGE_COST;
        }
    }

    /// All data of a file.
    pub fn insert_file(&mut self, id: InodeId) {
        let node = self.node(id);
        if let DirtyData::Ranges(ranges) = std::mem::replace(&mut node.data, DirtyData::All) {
            self.bytes -= ranges.len() * RANGE_COST;
        }
    }

    /// Widens the scope.
    pub fn insert_scope(&mut self, scope: Scope) {
        // Of two walks the earlier time covers more.
        self.scope = match (self.scope, scope) {
            (Scope::Walk(a), Scope::Walk(b)) => Scope::Walk(a.min(b)),
            (a, b) => a.max(b),
        };
    }

    /// See [`DirtySet::everything`].
    pub fn insert_unknown_ids(&mut self) {
        self.unknown_ids = true;
    }

    /// See [`DirtySet::born_since`]; the earlier position covers more.
    pub fn insert_born_since(&mut self, position: Position) {
        if self.born_since.is_none_or(|since| position.is_before(&since)) {
            self.born_since = Some(position);
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &DirtySet) {
        for (dir, names) in &other.dirs {
            match names {
                DirtyNames::All => self.insert_directory(*dir),
                DirtyNames::Some(names) => names.iter().for_each(|name| self.insert_name(*dir, name)),
            }
        }
        for (id, node) in &other.nodes {
            self.insert_attributes(*id);
            if node.born {
                self.insert_birth(*id);
            }
            match &node.data {
                DirtyData::Clean => {}
                DirtyData::Ranges(ranges) => ranges.iter().for_each(|(start, end)| self.insert_range(*id, start, end)),
                DirtyData::All => self.insert_file(*id),
            }
        }
        self.insert_scope(other.scope);
        self.unknown_ids |= other.unknown_ids;
        if let Some(since) = other.born_since {
            self.insert_born_since(since);
        }
        self.coarsen_to(self.limit_bytes);
    }

    /// Makes it smaller than `limit_bytes` by covering more.
    pub fn coarsen_to(&mut self, limit_bytes: usize) {
        if self.bytes <= limit_bytes {
            return;
        }
        for names in self.dirs.values_mut() {
            if let DirtyNames::Some(some) = names
                && some.len() >= COARSEN_FROM
            {
                self.bytes -= names_cost(some);
                *names = DirtyNames::All;
            }
        }
        for node in self.nodes.values_mut() {
            if let DirtyData::Ranges(ranges) = &node.data
                && ranges.len() >= COARSEN_FROM
            {
                self.bytes -= ranges.len() * RANGE_COST;
                node.data = DirtyData::All;
            }
        }
        // Well below the bound, or the next insert would scan everything again.
        if self.bytes > limit_bytes / 4 * 3 {
            let unknown_ids = self.unknown_ids;
            *self = DirtySet { scope: Scope::Everything, unknown_ids, ..Self::bounded(self.limit_bytes) };
        }
    }

    fn node(&mut self, id: InodeId) -> &mut DirtyNode {
        let bytes = &mut self.bytes;
        self.nodes.entry(id).or_insert_with(|| {
            *bytes += NODE_COST;
            DirtyNode::default()
        })
    }
}

fn names_cost(names: &BTreeSet<Name>) -> usize {
    names.iter().map(|name| NAME_COST + name.as_bytes().len()).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{Just, Strategy, prop, prop_oneof, proptest};
    use tandem_proto::{AttrPatch, Change, InodeId, Name, NodeKind, Op, Seq};

    use super::{DirtyData, DirtyNames, DirtySet, Scope};

    fn id(byte: u8) -> InodeId {
        InodeId::new(&[byte]).expect("short")
    }

    fn change() -> impl Strategy<Value = Change> {
        let ids = (0..6u8).prop_map(id);
        prop_oneof![
            (ids.clone(), Just(NodeKind::Regular)).prop_map(|(id, kind)| Change::Birth { id, kind }),
            (ids.clone(), 0..20u8).prop_map(|(dir, name)| Change::Entry {
                dir,
                name: Name::new(vec![b'a' + name]).expect("legal"),
                old: None,
                new: None
            }),
            ids.clone().prop_map(|id| Change::Attr { id, patch: AttrPatch::default() }),
            (ids.clone(), 0..100u64, 1..20usize).prop_map(|(id, offset, len)| Change::Data {
                id,
                offset,
                data: vec![0; len].into()
            }),
            (ids.clone(), 0..100u64, 0..20u64).prop_map(|(id, offset, len)| Change::Hole { id, offset, len }),
            (ids, 0..100u64).prop_map(|(id, size)| Change::Size { id, size }),
        ]
    }

    #[test]
    fn it_is_crowded_before_it_has_to_be_coarsened_and_no_more_once_it_was_taken() {
        let mut set = DirtySet::bounded(20 * super::NODE_COST);
        (0..10).for_each(|byte| set.insert_attributes(id(byte)));
        assert!(!set.is_crowded());
        set.insert_attributes(id(10));
        assert!(set.is_crowded() && set.scope() == Scope::Cells);
        assert!(!std::mem::replace(&mut set, DirtySet::bounded(20 * super::NODE_COST)).is_empty());
        assert!(!set.is_crowded());
    }

    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Cell {
        Name(InodeId, Name),
        Node(InodeId),
        Byte(InodeId, u64),
    }

    fn naive(change: &Change) -> Vec<Cell> {
        match change {
            Change::Birth { id, .. } | Change::Attr { id, .. } | Change::Xattr { id, .. } => vec![Cell::Node(*id)],
            Change::Entry { dir, name, .. } => vec![Cell::Name(*dir, name.clone())],
            Change::Data { id, offset, data } => {
                (*offset..offset + data.len() as u64).map(|at| Cell::Byte(*id, at)).collect()
            }
            Change::Copy { id, offset, len, .. } | Change::Hole { id, offset, len } => {
                (*offset..offset + len).map(|at| Cell::Byte(*id, at)).collect()
            }
            Change::Size { id, size } => (*size..130).map(|at| Cell::Byte(*id, at)).collect(),
        }
    }

    fn covers(set: &DirtySet, cell: &Cell) -> bool {
        set.scope() == Scope::Everything
            || match cell {
                Cell::Name(dir, name) => match set.dirs().get(dir) {
                    Some(DirtyNames::All) => true,
                    Some(DirtyNames::Some(names)) => names.contains(name),
                    None => false,
                },
                Cell::Node(id) => set.nodes().contains_key(id),
                Cell::Byte(id, at) => set.nodes().get(id).is_some_and(|node| {
                    node.born
                        || match &node.data {
                            DirtyData::All => true,
                            DirtyData::Ranges(ranges) => ranges.contains(*at),
                            DirtyData::Clean => false,
                        }
                }),
            }
    }

    proptest! {
        /// Against the naive twin: every cell is covered; without coarsening and births no byte or name more than that.
        #[test]
        fn covers_every_cell_and_is_exact_until_coarsened(
            ops in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..30),
            limit in prop_oneof![Just(usize::MAX), 200..4000usize],
            cut in 0..30usize,
        ) {
            let (mut left, mut right, mut cells) = (DirtySet::default(), DirtySet::default(), BTreeSet::new());
            for (at, changes) in ops.into_iter().enumerate() {
                cells.extend(changes.iter().flat_map(naive));
                let op = Op { seq: Seq(at as u64 + 1), origin: Default::default(), changes: changes.into_iter().collect() };
                let side = if at < cut { &mut left } else { &mut right };
                side.insert_op(&op);
                side.coarsen_to(limit);
            }
            left.merge(&right);
            left.coarsen_to(limit);
            assert!(cells.iter().all(|cell| covers(&left, cell)));
            assert!(left.bytes() <= limit);
            if limit == usize::MAX {
                for byte in (0..6u8).flat_map(|node| (0..130).map(move |at| Cell::Byte(id(node), at))) {
                    let Cell::Byte(node, _) = &byte else { continue };
                    let born = left.nodes().get(node).is_some_and(|node| node.born);
                    assert!(born || covers(&left, &byte) == cells.contains(&byte), "{byte:?}");
                }
            }
        }
    }
}
