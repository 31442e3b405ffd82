//! The marks: which cells may be changed without a disk write first, because the activity log already names them.
//!
//! ```text
//!          begin            written              clearable (replica durable past its last op, idle)
//!   cold ───────► writing ─────────► hot ──────────────────────────────► clearing
//!    ▲  ▲            │                ▲                                     │   │
//!    │  └────────────┘ failed         └───────── begin: a new generation ───┘   │ synced the backing, clear written
//!    └──────────────────────────────────────────────────────────────────────────┘
//! ```
//! The law: a change that the replica may lack (or the backing may lose in a crash, while the replica has it) lies in a cell whose mark
//! is on disk. A clear names the generation that it clears, so a mark that was made again meanwhile stands.
//!
//! An object that was born in a directory after that directory's mark is covered by it, recursively, as recovery compares every
//! object of a marked directory that was born since. An object that leaves its directory takes another directory's cover only if
//! that one's mark is older than its birth; else its next change needs a mark of its own.
//! Pure: no I/O; time is an argument.

use std::{collections::VecDeque, time::Duration};

use smallvec::SmallVec;
use tandem_proto::{Change, Changes, InodeId, Position, Seq};
use tandem_runtime::{map::QuickMap, mutant};

use crate::commit::{ATTRIBUTES, MarkCell};

/// Default of how many marks, the last used, stay hot however long nothing happens.
pub const HOT_KEPT: usize = 1024;
/// A mark that was used within this time stays hot.
pub const IDLE: Duration = Duration::from_secs(60);
/// A file with more marked blocks than this is marked as a whole: bounds the marks of a huge file that is written all over.
pub const FILE_BLOCKS_MAX: u32 = 256;
/// Beyond so many marks one mark covers everything. Reached only if the replica is away while very much changes.
pub const MARKS_MAX: usize = 200_000;
/// Births that are remembered; forgetting one costs a mark at its next change, nothing else.
pub const BIRTHS_MAX: usize = 131_072;
/// Depth of directories born in directories that is followed.
const COVER_DEPTH_MAX: usize = 64;

/// The block number that stands for a whole file.
pub const WHOLE_FILE: u64 = u64::MAX - 1;

/// The mark that covers everything: a file cell of the root, which is no file.
pub const EVERYTHING: MarkCell = MarkCell::File { id: InodeId::ROOT, block: WHOLE_FILE };

/// Number of one making of a mark; never used twice in one activity log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// A mark as it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRecord {
    /// What it covers.
    pub cell: MarkCell,
    /// Which making of it.
    pub generation: Generation,
    /// Objects born in it after this position are covered by it.
    pub since: Position,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MarkState {
    Writing,
    Hot,
    Clearing,
}

#[derive(Clone, Debug)]
struct Mark {
    state: MarkState,
    record: MarkRecord,
    /// Last reserved seq of this run when it was made: births after it are covered.
    since_seq: Seq,
    last_used: Duration,
    last_seq: Seq,
    pins: u32,
}

#[derive(Clone, Copy, Debug)]
struct Birth {
    dir: InodeId,
    at: Seq,
}

/// The marks that one change relies on.
pub type Pins = SmallVec<[MarkCell; 4]>;

/// Whether a change may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Yes; these marks were pinned.
    Covered(Pins),
    /// These cells have to be marked, or their marks are being written.
    Cold(Pins),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Marks {
    marks: QuickMap<MarkCell, Mark>,
    blocks: QuickMap<InodeId, u32>,
    births: QuickMap<InodeId, Birth>,
    birth_order: VecDeque<InodeId>,
    last_generation: u64,
    /// Instead of [`HOT_KEPT`].
    hot_kept: Option<usize>,
    /// Marks up to this generation are not cleared: the backing failed to make durable what they cover.
    suspect_to: Generation,
}

impl Marks {
    /// The marks that an earlier run left. They stay until something was published in this run.
    pub fn recovered(records: &[MarkRecord]) -> Self {
        let mut marks = Marks::default();
        for record in records {
            marks.last_generation = marks.last_generation.max(record.generation.0);
            let mark = Mark {
                state: MarkState::Hot,
                record: *record,
                since_seq: Seq(0),
                last_used: Duration::ZERO,
                last_seq: Seq(0),
                pins: 0,
            };
            marks.insert(record.cell, mark);
        }
        marks
    }

    /// Number of marks on disk or on their way there.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// All marks as records, for a compacted log.
    pub fn records(&self) -> Vec<MarkRecord> {
        self.marks.values().map(|mark| mark.record).collect()
    }

    /// Whether a change of these cells may go on now; pins what it relies on.
    pub fn check(&mut self, cells: &[MarkCell], now: Duration) -> Check {
        let (mut pins, mut cold) = (Pins::new(), Pins::new());
        for cell in cells {
            match self.covering(cell) {
                Some(mark) if !pins.contains(&mark) => pins.push(mark),
                Some(_) => {}
                None if !cold.contains(cell) => cold.push(*cell),
                None => {}
            }
        }
        if !cold.is_empty() {
            return Check::Cold(cold);
        }
        for pin in &pins {
            if let Some(mark) = self.marks.get_mut(pin) {
                mark.pins += 1;
                mark.last_used = now;
            }
        }
        Check::Covered(pins)
    }

    /// Begins to mark those of `cells` that are cold; the records must be written, then [`Marks::written`] or [`Marks::failed`] called.
    pub fn begin(&mut self, cells: &[MarkCell], since: Position, since_seq: Seq, now: Duration) -> Vec<MarkRecord> {
        let mut records = Vec::new();
        for cell in cells {
            let cell = self.widened(cell);
            if self.marks.get(&cell).is_some_and(|mark| mark.state != MarkState::Clearing) {
                continue;
            }
            self.last_generation += 1;
            let record = MarkRecord { cell, generation: Generation(self.last_generation), since };
            let (pins, last_seq) = self.marks.get(&cell).map_or((0, Seq(0)), |old| (old.pins, old.last_seq));
            let mark = Mark { state: MarkState::Writing, record, since_seq, last_used: now, last_seq, pins };
            self.insert(cell, mark);
            records.push(record);
        }
        records
    }

    /// The records are durable.
    pub fn written(&mut self, records: &[MarkRecord]) {
        for record in records {
            if let Some(mark) = self.marks.get_mut(&record.cell)
                && mark.record.generation == record.generation
            {
                mark.state = MarkState::Hot;
            }
        }
    }

    /// The records could not be written: nothing may rely on them. They may be on disk all the same, which does no harm.
    pub fn failed(&mut self, records: &[MarkRecord]) {
        self.remove(records.iter().map(|record| (record.cell, record.generation)));
    }

    /// The change that pinned these is over; its op has at most `last_reserved`.
    pub fn unpin(&mut self, pins: &Pins, last_reserved: Seq) {
        for pin in pins {
            if let Some(mark) = self.marks.get_mut(pin) {
                mark.pins = mark.pins.saturating_sub(1);
                mark.last_seq = mark.last_seq.max(last_reserved);
            }
        }
    }

    /// Learns births and moves from an op. Called under the lock that [`Marks::check`] runs under, when the op's slot is filled.
    pub fn handle_op(&mut self, seq: Seq, changes: &Changes) {
        for change in changes {
            match change {
                Change::Birth { id, .. } => {
                    self.births.remove(id);
                    let first = changes.iter().find_map(|change| match change {
                        Change::Entry { dir, new: Some(new), .. } if new == id => Some(*dir),
                        _ => None,
                    });
                    if let Some(dir) = first {
                        self.insert_birth(*id, Birth { dir, at: seq });
                    }
                }
                Change::Entry { dir, old: Some(old), new, .. } if *new != Some(*old) => self.leave(*dir, old, changes),
                Change::Entry { dir, old: None, new: Some(new), .. } => self.link(*dir, new, changes),
                _ => {}
            }
        }
    }

    /// Marks that may be cleared when the backing was synced after this call: they become `clearing`. At most `max`. `published`: this run
    /// published once, which read everything that the marks of earlier runs cover. `all`: also those that are in use or recent.
    pub fn clearable(
        &mut self,
        durable: Seq,
        published: bool,
        now: Duration,
        all: bool,
        max: usize,
    ) -> Vec<MarkRecord> {
        let mut idle: Vec<(Duration, MarkRecord)> = self
            .marks
            .values()
            .filter(|mark| {
                mark.state == MarkState::Hot
                    && mark.record.generation > self.suspect_to
                    && mark.pins == 0
                    && mark.last_seq <= durable
                    && published
                    && (all || now.saturating_sub(mark.last_used) >= IDLE)
            })
            .map(|mark| (mark.last_used, mark.record))
            .collect();
        idle.sort_by_key(|(last_used, record)| (*last_used, record.generation));
        let kept = if all { 0 } else { self.hot_kept.unwrap_or(HOT_KEPT) };
        let count = self.marks.len().saturating_sub(kept).min(idle.len()).min(max);
        let chosen: Vec<MarkRecord> = idle.into_iter().take(count).map(|(_, record)| record).collect();
        for record in &chosen {
            if let Some(mark) = self.marks.get_mut(&record.cell) {
                mark.state = MarkState::Clearing;
            }
        }
        chosen
    }

    /// So many marks stay hot.
    pub fn keep_hot(&mut self, kept: usize) {
        self.hot_kept = Some(kept);
    }

    /// The backing failed to make something durable and does not say what: what the marks of now cover may be lost when the machine is
    /// restarted, although the replica has it. They stand until it was, and what they cover was compared. Returns the last of them.
    pub fn stand(&mut self) -> Generation {
        self.suspect_to = Generation(self.last_generation);
        self.suspect_to
    }

    /// Marks up to this one stand, as an earlier run of the same boot has said; zero: none.
    pub fn stand_to(&mut self, to: Generation) {
        self.suspect_to = to;
        // A mark that is made now is none of them.
        self.last_generation = self.last_generation.max(to.0);
    }

    /// Of marks chosen by [`Marks::clearable`], those that no change took up again: their clears may be written.
    pub fn still_clearing(&self, records: &[MarkRecord]) -> Vec<MarkRecord> {
        if mutant::is("clear-any-generation") {
            let newest = records.iter().filter_map(|record| self.marks.get(&record.cell)).map(|mark| mark.record);
            return records.iter().copied().chain(newest).collect();
        }
        let clearing = |record: &&MarkRecord| {
            self.marks
                .get(&record.cell)
                .is_some_and(|mark| mark.record.generation == record.generation && mark.state == MarkState::Clearing)
        };
        records.iter().filter(clearing).copied().collect()
    }

    /// The clears are written (or may be).
    pub fn cleared(&mut self, records: &[MarkRecord]) {
        self.remove(records.iter().map(|record| (record.cell, record.generation)));
    }

    /// Clearing did not come about: the marks stand.
    pub fn clear_failed(&mut self, records: &[MarkRecord]) {
        for record in records {
            if let Some(mark) = self.marks.get_mut(&record.cell)
                && mark.record.generation == record.generation
                && mark.state == MarkState::Clearing
            {
                mark.state = MarkState::Hot;
            }
        }
    }

    /// The hot mark that covers `cell`.
    fn covering(&self, cell: &MarkCell) -> Option<MarkCell> {
        let hot = |cell: &MarkCell| self.marks.get(cell).is_some_and(|mark| mark.state == MarkState::Hot);
        let id = match cell {
            MarkCell::Dir(id) => *id,
            MarkCell::File { id, .. } => *id,
        };
        let whole = MarkCell::File { id, block: WHOLE_FILE };
        for candidate in [*cell, whole, EVERYTHING] {
            if hot(&candidate) {
                return Some(candidate);
            }
        }
        let mut birth = self.births.get(&id)?;
        for _ in 0..COVER_DEPTH_MAX {
            let dir = MarkCell::Dir(birth.dir);
            if let Some(mark) = self.marks.get(&dir)
                && mark.state == MarkState::Hot
                && mark.since_seq < birth.at
            {
                return Some(dir);
            }
            birth = self.births.get(&birth.dir)?;
        }
        None
    }

    /// `id` got a name in `dir`. A file with names in several directories may lose the one that covers it, and then nothing would tell of what
    /// was written to it: from now on it needs marks of its own.
    fn link(&mut self, dir: InodeId, id: &InodeId, changes: &Changes) {
        let born_or_moved = changes.iter().any(|change| match change {
            Change::Birth { id: born, .. } => born == id,
            Change::Entry { old, .. } => *old == Some(*id),
            _ => false,
        });
        if !born_or_moved && self.births.get(id).is_some_and(|birth| birth.dir != dir) {
            self.births.remove(id);
        }
    }

    /// `id` lost a name in `dir`.
    fn leave(&mut self, dir: InodeId, id: &InodeId, changes: &Changes) {
        let Some(birth) = self.births.get(id).copied() else { return };
        if birth.dir != dir {
            return;
        }
        let mut names = changes.iter().filter_map(|change| match change {
            Change::Entry { dir, new: Some(new), .. } if new == id => Some(*dir),
            _ => None,
        });
        let target = names.find(|target| {
            *target == dir
                || self
                    .marks
                    .get(&MarkCell::Dir(*target))
                    .is_some_and(|mark| mark.state == MarkState::Hot && mark.since_seq < birth.at)
        });
        match target {
            Some(target) => {
                self.births.insert(*id, Birth { dir: target, at: birth.at });
            }
            None => {
                self.births.remove(id);
            }
        }
    }

    fn insert_birth(&mut self, id: InodeId, birth: Birth) {
        if self.births.insert(id, birth).is_none() {
            self.birth_order.push_back(id);
        }
        while self.birth_order.len() > BIRTHS_MAX {
            if let Some(oldest) = self.birth_order.pop_front() {
                self.births.remove(&oldest);
            }
        }
    }

    /// The cell that is marked for `cell`: a bigger one if there are too many.
    fn widened(&self, cell: &MarkCell) -> MarkCell {
        if self.marks.len() >= MARKS_MAX {
            return EVERYTHING;
        }
        match cell {
            MarkCell::File { id, block }
                if *block != ATTRIBUTES && self.blocks.get(id).is_some_and(|blocks| *blocks >= FILE_BLOCKS_MAX) =>
            {
                MarkCell::File { id: *id, block: WHOLE_FILE }
            }
            cell => *cell,
        }
    }

    fn insert(&mut self, cell: MarkCell, mark: Mark) {
        if self.marks.insert(cell, mark).is_none()
            && let MarkCell::File { id, .. } = cell
        {
            *self.blocks.entry(id).or_default() += 1;
        }
    }

    fn remove(&mut self, which: impl Iterator<Item = (MarkCell, Generation)>) {
        for (cell, generation) in which {
            if self.marks.get(&cell).is_none_or(|mark| mark.record.generation != generation) {
                continue;
            }
            self.marks.remove(&cell);
            if let MarkCell::File { id, .. } = cell
                && let Some(blocks) = self.blocks.get_mut(&id)
            {
                *blocks -= 1;
                if *blocks == 0 {
                    self.blocks.remove(&id);
                }
            }
        }
    }
}
