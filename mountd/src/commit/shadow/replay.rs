//! What a shadow says after its daemon was killed: everything that the replica may lack, and from which position on it may be lacked.

use std::collections::BTreeMap;

use tandem_proto::{Position, Seq, Uuid, fields::Fields};
use tandem_runtime::frame::{self, Frame, Parsed};

use super::{
    AT_ACTIVE, AT_COMMITTED, AT_HALF_LEN, AT_HALVES, AT_HEAD, AT_INTENTS, AT_VERSION, AT_VOID, HEAD_LEN, Head,
    INTENT_LEN, INTENTS, KIND_DIRTY, KIND_FLOOR, KIND_FROZEN, KIND_MOVED, KIND_OP, KIND_STEP, KIND_UNNAMED,
    KIND_UNTIMED, RECORD_VERSION, STEP_FREEZE, STEP_PUBLISHED, STEP_THAW, TO_DIRTY, TO_FROZEN, TO_REPLICA, VERSION,
};
use crate::commit::{
    cell::{Cell, Untimed},
    dirty::DirtySet,
};

/// What a shadow must be to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The kernel's boot id.
    pub boot: Uuid,
    /// The run that the activity log names.
    pub run: Uuid,
    /// Unique id of the mount through which the backing directory is reached; `None`: nobody could reach it since.
    pub place: Option<u64>,
}

/// Why a shadow does not count: the marks do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The format.
    #[error("it was written by another version")]
    Version,
    /// The machine crashed or was restarted.
    #[error("it is of another boot of this machine")]
    Boot,
    /// Changes were made without it.
    #[error("it is not of the last run")]
    Run,
    /// The backing file system may have lost what was not synced.
    #[error("the backing file system was mounted anew, or it cannot be told")]
    Place,
    /// Its bound was passed.
    #[error("it did not hold everything")]
    Void,
    /// A bit is wrong.
    #[error("it is damaged")]
    Damaged,
}

/// What differs, exactly.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Everything that the replica may lack if it is at `floor` or later.
    pub dirty: DirtySet,
    /// See `dirty`.
    pub floor: Position,
    /// Changes that were under way: known by their marks only.
    pub coarse: usize,
    /// The mount that it was written over.
    pub place: u64,
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn head(bytes: &[u8]) -> Option<Head> {
    let block = bytes.get(AT_HEAD..AT_HEAD + HEAD_LEN)?;
    let crc = bytes.get(AT_HEAD + HEAD_LEN..AT_HEAD + HEAD_LEN + 4)?;
    if crc32c::crc32c(block).to_le_bytes() != *crc {
        return None;
    }
    let mut fields = Fields::new(block);
    Some(Head {
        boot: Uuid(fields.take()?),
        run: Uuid(fields.take()?),
        previous: Uuid(fields.take()?),
        place: fields.u64()?,
    })
}

/// Reads a shadow.
pub fn replay(bytes: &[u8], expected: &Expected) -> Result<Replayed, Refused> {
    if word(bytes, AT_VERSION) != Some(VERSION) {
        return Err(Refused::Version);
    }
    let head = head(bytes).ok_or(Refused::Damaged)?;
    if head.boot != expected.boot {
        return Err(Refused::Boot);
    }
    // A run that was killed before the activity log named it changed nothing.
    if expected.run == Uuid::default() || (head.run != expected.run && head.previous != expected.run) {
        return Err(Refused::Run);
    }
    if expected.place.is_some_and(|place| place == 0 || place != head.place) {
        return Err(Refused::Place);
    }
    if word(bytes, AT_VOID) != Some(0) {
        return Err(Refused::Void);
    }
    let (dirty, floor, coarse) = content(bytes).ok_or(Refused::Damaged)?;
    Ok(Replayed { dirty, floor, coarse, place: head.place })
}

fn content(bytes: &[u8]) -> Option<(DirtySet, Position, usize)> {
    let half_len = usize::try_from(word(bytes, AT_HALF_LEN)?).ok()?;
    let active = usize::try_from(word(bytes, AT_ACTIVE)?).ok().filter(|active| *active < 2)?;
    let committed = usize::try_from(word(bytes, AT_COMMITTED + 8 * active)?).ok()?;
    let start = AT_HALVES.checked_add(active.checked_mul(half_len)?)?;
    let records = bytes.get(start..start.checked_add(half_len)?)?.get(..committed)?;
    let mut bins = bins_of(records)?;
    let mut coarse = 0;
    for index in 0..INTENTS {
        coarse += usize::from(bins.handle_intent(bytes, index)?);
    }
    let (dirty, floor) = bins.into_dirty()?;
    Some((dirty, floor, coarse))
}

/// What the records of a half come to; `None`: they are damaged.
pub fn records(records: &[u8]) -> Option<(DirtySet, Position)> {
    bins_of(records)?.into_dirty()
}

fn bins_of(records: &[u8]) -> Option<Bins<'_>> {
    let mut bins = Bins::default();
    let generation = records.get(4..8).map_or(0, |word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let mut at = 0;
    while at < records.len() {
        let Parsed::Record(found) = frame::parse(&records[at..], generation) else { return None };
        bins.handle(&found)?;
        at += found.len;
    }
    Some(bins)
}

/// Window, dirty and frozen set as the records leave them.
#[derive(Default)]
struct Bins<'a> {
    ops: BTreeMap<Seq, &'a [u8]>,
    dirty: DirtySet,
    frozen: DirtySet,
    untimed: Untimed,
    floor: Option<Position>,
}

fn each_cell(bytes: &[u8], mut each: impl FnMut(Cell)) -> Option<()> {
    let mut fields = Fields::new(bytes);
    while !fields.is_empty() {
        each(Cell::take(&mut fields)?);
    }
    Some(())
}

fn insert(set: &mut DirtySet, cells: &[u8]) -> Option<()> {
    each_cell(cells, |cell| set.insert_cell(&cell))?;
    set.coarsen_to(set.limit_bytes());
    Some(())
}

impl<'a> Bins<'a> {
    fn handle(&mut self, found: &Frame<'a>) -> Option<()> {
        if found.version != RECORD_VERSION {
            return None;
        }
        let mut fields = Fields::new(found.payload);
        match found.kind {
            KIND_OP => {
                let seq = Seq(fields.count()?);
                each_cell(fields.rest(), |cell| self.untimed.handle_cell(&cell))?;
                self.ops.insert(seq, fields.rest());
            }
            KIND_MOVED => {
                let [to] = fields.take()?;
                self.move_ops(to, Seq(fields.count()?))?;
            }
            KIND_STEP => {
                let [step] = fields.take()?;
                self.step(step)?;
            }
            KIND_DIRTY => insert(&mut self.dirty, found.payload)?,
            KIND_FROZEN => insert(&mut self.frozen, found.payload)?,
            KIND_UNTIMED => each_cell(found.payload, |cell| {
                if let Cell::Node(id) = cell {
                    self.untimed.insert(id);
                }
            })?,
            KIND_UNNAMED => each_cell(found.payload, |cell| {
                if let Cell::Node(id) = cell {
                    self.untimed.forget(&id);
                }
            })?,
            KIND_FLOOR => self.floor = Some(fields.position()?),
            _ => return None,
        }
        Some(())
    }

    fn move_ops(&mut self, to: u8, seq: Seq) -> Option<()> {
        let later = self.ops.split_off(&seq.next());
        let moved = std::mem::replace(&mut self.ops, later);
        let set = match to {
            TO_REPLICA => return Some(()),
            TO_DIRTY => &mut self.dirty,
            TO_FROZEN => &mut self.frozen,
            _ => return None,
        };
        moved.into_values().try_for_each(|cells| insert(set, cells))
    }

    fn step(&mut self, step: u8) -> Option<()> {
        match step {
            STEP_FREEZE => {
                let taken = std::mem::take(&mut self.dirty);
                self.frozen.merge(&taken);
            }
            STEP_THAW => {
                let taken = std::mem::take(&mut self.frozen);
                self.dirty.merge(&taken);
            }
            STEP_PUBLISHED => self.frozen = DirtySet::default(),
            _ => return None,
        }
        Some(())
    }

    /// Whether a change was under way in this slot.
    fn handle_intent(&mut self, bytes: &[u8], index: usize) -> Option<bool> {
        let at = AT_INTENTS + index * INTENT_LEN;
        let word = word(bytes, at)?;
        if word == 0 {
            return Some(false);
        }
        let len = (word & u64::from(u32::MAX)) as usize;
        let cells = bytes.get(at + 8..at + INTENT_LEN)?.get(..len)?;
        if u64::from(crc32c::crc32c(cells)) != word >> 32 {
            return None;
        }
        insert(&mut self.dirty, cells)?;
        Some(true)
    }

    fn into_dirty(mut self) -> Option<(DirtySet, Position)> {
        for cells in self.ops.values() {
            insert(&mut self.dirty, cells)?;
        }
        self.dirty.merge(&self.frozen);
        for id in self.untimed.iter() {
            self.dirty.insert_attributes(*id);
        }
        Some((self.dirty, self.floor?))
    }
}
