//! Cells as bytes: what the shadow is made of.
//!
//! ```text
//! tag u8 | id: len u8, bytes | by tag: name (len u8, bytes), range (start u64, end u64), position, time
//! ```
//! Little endian. Encoding an op needs no memory of its own, and knows of its data only where it lies.

use tandem_proto::{
    Change, Changes, InodeId, Name, Position, Timestamp,
    fields::{Fields, put_id, put_position},
    limits::MARK_BLOCK,
};
use tandem_runtime::map::QuickSet;

use crate::commit::{
    ATTRIBUTES, MarkCell,
    dirty::{DirtyData, DirtyNames, DirtySet, Scope},
    marks::{EVERYTHING, WHOLE_FILE},
};

/// What may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// An inode that the replica may not know.
    Birth(InodeId),
    /// One name of a directory.
    Name(InodeId, Name),
    /// All names of a directory.
    Directory(InodeId),
    /// Attributes, xattrs and size of an inode.
    Node(InodeId),
    /// The same, and the op told its mtime.
    Timed(InodeId),
    /// An extent of a file.
    Range(InodeId, u64, u64),
    /// All data of a file.
    File(InodeId),
    /// More than cells.
    Scope(Scope),
    /// Ids may be unknown to the replica.
    UnknownIds,
    /// See [`DirtySet::born_since`].
    BornSince(Position),
}

const BIRTH: u8 = 1;
const NAME: u8 = 2;
const DIRECTORY: u8 = 3;
const NODE: u8 = 4;
const TIMED: u8 = 5;
const RANGE: u8 = 6;
const FILE: u8 = 7;
const WALK: u8 = 8;
const ALL: u8 = 9;
const UNKNOWN_IDS: u8 = 10;
const BORN_SINCE: u8 = 11;

/// What an encoded cell takes at most.
pub const CELL_MAX: usize = 1 + 32 + 256;

fn put_tagged(out: &mut Vec<u8>, tag: u8, id: &InodeId) {
    out.push(tag);
    put_id(out, id);
}

fn put_range(out: &mut Vec<u8>, id: &InodeId, start: u64, end: u64) {
    put_tagged(out, RANGE, id);
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&end.to_le_bytes());
}

fn put_name(out: &mut Vec<u8>, dir: &InodeId, name: &Name) {
    put_tagged(out, NAME, dir);
    out.push(name.as_bytes().len() as u8);
    out.extend_from_slice(name.as_bytes());
}

/// Appends the cells that an op assigns: those of [`DirtySet::insert_op`].
pub fn put_changes(out: &mut Vec<u8>, changes: &Changes) {
    for change in changes {
        match change {
            Change::Birth { id, .. } => put_tagged(out, BIRTH, id),
            Change::Entry { dir, name, .. } => put_name(out, dir, name),
            Change::Attr { id, patch } if patch.mtime.is_some() => put_tagged(out, TIMED, id),
            Change::Attr { id, .. } | Change::Xattr { id, .. } => put_tagged(out, NODE, id),
            Change::Data { id, offset, data } => put_range(out, id, *offset, offset + data.len() as u64),
            Change::Copy { id, offset, len, .. } | Change::Hole { id, offset, len } => {
                put_range(out, id, *offset, offset.saturating_add(*len))
            }
            Change::Size { id, size } => put_range(out, id, *size, u64::MAX),
        }
    }
}

impl Cell {
    /// What a change that only its marks are known of may have changed.
    pub fn of_mark(mark: &MarkCell) -> Cell {
        match mark {
            cell if *cell == EVERYTHING => Cell::Scope(Scope::Everything),
            MarkCell::Dir(id) => Cell::Directory(*id),
            MarkCell::File { id, block: ATTRIBUTES } => Cell::Node(*id),
            MarkCell::File { id, block: WHOLE_FILE } => Cell::File(*id),
            MarkCell::File { id, block } => {
                let start = block.saturating_mul(MARK_BLOCK);
                Cell::Range(*id, start, start.saturating_add(MARK_BLOCK))
            }
        }
    }

    /// Appends its bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Cell::Birth(id) => put_tagged(out, BIRTH, id),
            Cell::Name(dir, name) => put_name(out, dir, name),
            Cell::Directory(id) => put_tagged(out, DIRECTORY, id),
            Cell::Node(id) => put_tagged(out, NODE, id),
            Cell::Timed(id) => put_tagged(out, TIMED, id),
            Cell::Range(id, start, end) => put_range(out, id, *start, *end),
            Cell::File(id) => put_tagged(out, FILE, id),
            Cell::Scope(Scope::Walk(since)) => {
                put_tagged(out, WALK, &InodeId::ROOT);
                out.extend_from_slice(&since.seconds.to_le_bytes());
                out.extend_from_slice(&since.nanos.to_le_bytes());
            }
            Cell::Scope(Scope::Cells) => {}
            Cell::Scope(Scope::Everything) => put_tagged(out, ALL, &InodeId::ROOT),
            Cell::UnknownIds => put_tagged(out, UNKNOWN_IDS, &InodeId::ROOT),
            Cell::BornSince(position) => {
                put_tagged(out, BORN_SINCE, &InodeId::ROOT);
                put_position(out, position);
            }
        }
    }

    /// The reverse of [`Cell::put`].
    pub fn take(fields: &mut Fields<'_>) -> Option<Cell> {
        let (tag, id) = (fields.u8()?, fields.id()?);
        Some(match tag {
            BIRTH => Cell::Birth(id),
            NAME => {
                let len = fields.u8()?;
                Cell::Name(id, Name::new(fields.bytes(usize::from(len))?.to_vec())?)
            }
            DIRECTORY => Cell::Directory(id),
            NODE => Cell::Node(id),
            TIMED => Cell::Timed(id),
            RANGE => Cell::Range(id, fields.u64()?, fields.u64()?),
            FILE => Cell::File(id),
            WALK => {
                let seconds = fields.i64()?;
                let nanos = fields.u32()?;
                Cell::Scope(Scope::Walk(Timestamp { seconds, nanos }))
            }
            ALL => Cell::Scope(Scope::Everything),
            UNKNOWN_IDS => Cell::UnknownIds,
            BORN_SINCE => Cell::BornSince(fields.position()?),
            _ => return None,
        })
    }
}

/// Inodes whose content was changed by an op that did not tell the mtime: that follows as an op of its own when the writing pauses, so
/// until then their mtime differs without a cell that says so.
#[derive(Clone, Debug, Default)]
pub struct Untimed(QuickSet<InodeId>);

impl Untimed {
    /// Learns from an op.
    pub fn handle_changes(&mut self, changes: &Changes) {
        for change in changes {
            match change {
                Change::Data { id, .. }
                | Change::Copy { id, .. }
                | Change::Hole { id, .. }
                | Change::Size { id, .. } => {
                    self.0.insert(*id);
                }
                Change::Attr { id, patch } if patch.mtime.is_some() => {
                    self.0.remove(id);
                }
                _ => {}
            }
        }
    }

    /// Learns from a cell of an op.
    pub fn handle_cell(&mut self, cell: &Cell) {
        match cell {
            Cell::Range(id, ..) => {
                self.0.insert(*id);
            }
            Cell::Timed(id) => {
                self.0.remove(id);
            }
            _ => {}
        }
    }

    /// Adds one.
    pub fn insert(&mut self, id: InodeId) {
        self.0.insert(id);
    }

    /// It has no name any more. Whether it was one of them.
    pub fn forget(&mut self, id: &InodeId) -> bool {
        self.0.remove(id)
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &InodeId> {
        self.0.iter()
    }
}

impl DirtySet {
    /// Adds what a cell says.
    pub fn insert_cell(&mut self, cell: &Cell) {
        match cell {
            Cell::Birth(id) => self.insert_birth(*id),
            Cell::Name(dir, name) => self.insert_name(*dir, name),
            Cell::Directory(id) => self.insert_directory(*id),
            Cell::Node(id) | Cell::Timed(id) => self.insert_attributes(*id),
            Cell::Range(id, start, end) => self.insert_range(*id, *start, *end),
            Cell::File(id) => self.insert_file(*id),
            Cell::Scope(scope) => self.insert_scope(*scope),
            Cell::UnknownIds => self.insert_unknown_ids(),
            Cell::BornSince(position) => self.insert_born_since(*position),
        }
    }

    /// Gives out all of it, cell by cell.
    pub fn each_cell(&self, each: &mut dyn FnMut(&Cell)) {
        each(&Cell::Scope(self.scope()));
        if self.unknown_ids() {
            each(&Cell::UnknownIds);
        }
        if let Some(since) = self.born_since() {
            each(&Cell::BornSince(since));
        }
        for (dir, names) in self.dirs() {
            match names {
                DirtyNames::All => each(&Cell::Directory(*dir)),
                DirtyNames::Some(names) => names.iter().for_each(|name| each(&Cell::Name(*dir, name.clone()))),
            }
        }
        for (id, node) in self.nodes() {
            each(&if node.born { Cell::Birth(*id) } else { Cell::Node(*id) });
            match &node.data {
                DirtyData::Clean => {}
                DirtyData::Ranges(ranges) => ranges.iter().for_each(|(start, end)| each(&Cell::Range(*id, start, end))),
                DirtyData::All => each(&Cell::File(*id)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::{Chain, Epoch, InodeId, Name, Position, Seq, Timestamp};

    use super::{CELL_MAX, Cell, Fields};
    use crate::commit::dirty::Scope;

    #[test]
    fn every_cell_comes_back_and_no_cut_one_does() {
        let id = InodeId::new(&[7; 31]).expect("short");
        let position = Position { epoch: Epoch(3), seq: Seq(9), chain: Chain([4; 16]) };
        let cells = [
            Cell::Birth(id),
            Cell::Name(id, Name::new(vec![b'x'; 255]).expect("legal")),
            Cell::Directory(InodeId::ROOT),
            Cell::Node(id),
            Cell::Timed(id),
            Cell::Range(id, 5, u64::MAX),
            Cell::File(id),
            Cell::Scope(Scope::Everything),
            Cell::Scope(Scope::Walk(Timestamp { seconds: -1, nanos: 7 })),
            Cell::UnknownIds,
            Cell::BornSince(position),
        ];
        for cell in &cells {
            let mut bytes = Vec::new();
            cell.put(&mut bytes);
            assert!(bytes.len() <= CELL_MAX, "{cell:?}");
            let mut fields = Fields::new(&bytes);
            assert_eq!(Cell::take(&mut fields).as_ref(), Some(cell));
            assert!(fields.is_empty());
            for cut in 0..bytes.len() {
                assert_eq!(Cell::take(&mut Fields::new(&bytes[..cut])), None, "{cell:?} cut at {cut}");
            }
        }
    }
}
