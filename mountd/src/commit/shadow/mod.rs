//! The shadow: the exact cells of window and dirty set in memory that outlives the daemon, so that a `kill -9` costs what the replica
//! really lacks, not all that the marks cover.
//!
//! ```text
//!   head: boot, run, place │ intents: one slot for each change under way │ half 0: records … │ half 1: records …
//!                            (its mark cells, before the backing is touched)  └── the active one; a rewrite fills the other and flips
//! ```
//! It lies in a file of the runtime directory (tmpfs), mapped, and is written with plain stores: a killed process leaves every store
//! that it made. A record counts when the length behind it is stored; a rewrite counts when the active half is stored; a file that had
//! to grow replaces the old one when it is whole. So at every instruction the shadow covers what the replica may lack:
//!
//! - a change under way is an *intent* from before its system call until after its op is recorded;
//! - an op is recorded when its slot is filled, in the same critical section;
//! - records that take something away are written after the replica acknowledged it.
//!
//! It says nothing after a machine crash (the backing may have lost what was not synced), on another mount of the backing file system
//! (the same), or if another run came in between: then the marks of the activity log count, which cover more. What does not fit its
//! bound makes it void until a publish makes it fit again. Pure but for the memory, which is a [`ShadowStore`].

mod file;
mod mem;
mod replay;
#[cfg(test)]
mod tests;

use std::io;

use tandem_proto::{Changes, InodeId, Op, Position, Seq, Uuid, fields::put_position};
use tandem_runtime::frame;

pub use self::{
    file::FileStore,
    mem::MemStore,
    replay::{Expected, Refused, Replayed, records, replay},
};
use crate::commit::{
    MarkCell, MarkCells,
    cell::{Cell, Untimed, put_changes},
    dirty::{DirtySet, Scope},
    marks::WHOLE_FILE,
};

/// Default bound of the shadow's memory: two halves of 32 MiB, for some 500,000 cells. It begins with 2 MiB.
pub const DEFAULT_LIMIT_BYTES: usize = 64 << 20;
/// Least length of a half: some 10,000 ops between two rewrites.
const HALF_MIN: usize = if cfg!(test) { 4 << 10 } else { 1 << 20 };
/// Payload of one record of a rewrite.
const CHUNK_BYTES: usize = 32 << 10;

/// "TNDMSHD" and the version of the layout.
const VERSION: u64 = u64::from_le_bytes(*b"TNDMSHD\x01");
const AT_VERSION: usize = 0;
const AT_ACTIVE: usize = 8;
const AT_VOID: usize = 16;
const AT_HALF_LEN: usize = 24;
const AT_COMMITTED: usize = 32;
const AT_HEAD: usize = 64;
const HEAD_LEN: usize = 56;
const AT_INTENTS: usize = 4096;
/// Changes under way that have a slot of their own: FUSE threads, and calls that wait. More are recorded as dirty until the next rewrite.
const INTENTS: usize = 512;
const INTENT_LEN: usize = 256;
const AT_HALVES: usize = AT_INTENTS + INTENTS * INTENT_LEN;

const KIND_OP: u8 = 1;
const KIND_MOVED: u8 = 2;
const KIND_STEP: u8 = 3;
const KIND_DIRTY: u8 = 4;
const KIND_FROZEN: u8 = 5;
const KIND_UNTIMED: u8 = 6;
const KIND_UNNAMED: u8 = 7;
const KIND_FLOOR: u8 = 8;
const RECORD_VERSION: u8 = 1;

const TO_REPLICA: u8 = 0;
const TO_DIRTY: u8 = 1;
const TO_FROZEN: u8 = 2;

const STEP_FREEZE: u8 = 0;
const STEP_THAW: u8 = 1;
const STEP_PUBLISHED: u8 = 2;

/// Memory that outlives the process.
pub trait Region: Send {
    /// Stores bytes. A crash in the middle leaves some of them.
    fn write(&mut self, offset: usize, bytes: &[u8]);
    /// Stores 8 bytes at a multiple of 8, after everything before: a crash leaves the old or the new word.
    fn store(&mut self, offset: usize, word: u64);
}

/// Where regions come from.
pub trait ShadowStore: Send {
    /// What an earlier process left; `None`: nothing.
    fn read(&self) -> io::Result<Option<Vec<u8>>>;
    /// Makes a zeroed region of this length, lets it be filled, and then puts it in the place of the one before, at once.
    fn replace(&mut self, len: usize, fill: &mut dyn FnMut(&mut dyn Region)) -> io::Result<Box<dyn Region>>;
    /// Removes what is there. The region that is in use stays usable.
    fn remove(&mut self) -> io::Result<()>;
}

/// Which run of which boot wrote it, over which mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Head {
    /// The kernel's boot id.
    pub boot: Uuid,
    /// The run, as the activity log's header names it.
    pub run: Uuid,
    /// The run before: nothing was changed by this one until the activity log names it.
    pub previous: Uuid,
    /// Unique id of the mount through which the backing directory is reached; 0: unknown.
    pub place: u64,
}

/// What happens to window and dirty set.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A slot was filled.
    Op {
        /// Its number.
        seq: Seq,
        /// What happened.
        changes: &'a Changes,
    },
    /// The replica has the ops up to here.
    Gone(Seq),
    /// The ops up to here left the window for the dirty set.
    Dropped(Seq),
    /// The ops up to here are staged: they belong to the frozen set.
    Staged(Seq),
    /// The dirty set was frozen.
    Freeze,
    /// What was frozen is dirty again.
    Thaw,
    /// What was frozen is published.
    Published,
    /// More is dirty.
    Dirty(&'a DirtySet),
    /// An inode lost its last name.
    Unnamed(InodeId),
    /// The replica has everything else up to here.
    Floor(Position),
}

/// Names a change under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent(u32);

/// Everything that is live, for a rewrite.
pub struct Live<'a> {
    out: &'a mut Vec<u8>,
    generation: u32,
}

impl Live<'_> {
    /// An op of the window.
    pub fn op(&mut self, op: &Op) {
        put_event(self.out, self.generation, &Event::Op { seq: op.seq, changes: &op.changes });
    }

    /// The dirty set.
    pub fn dirty(&mut self, dirty: &DirtySet) {
        put_cells(self.out, self.generation, KIND_DIRTY, &mut |each| dirty.each_cell(each));
    }

    /// The frozen set.
    pub fn frozen(&mut self, frozen: &DirtySet) {
        put_cells(self.out, self.generation, KIND_FROZEN, &mut |each| frozen.each_cell(each));
    }

    /// Inodes whose mtime is still to be told.
    pub fn untimed(&mut self, untimed: &Untimed) {
        put_cells(self.out, self.generation, KIND_UNTIMED, &mut |each| {
            untimed.iter().for_each(|id| each(&Cell::Node(*id)));
        });
    }

    /// See [`Event::Floor`].
    pub fn floor(&mut self, floor: &Position) {
        put_event(self.out, self.generation, &Event::Floor(*floor));
    }
}

/// Gives out cells to who takes them.
type EachCell<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&Cell));

fn put_cells(out: &mut Vec<u8>, generation: u32, kind: u8, all: EachCell<'_>) {
    let mut payload = Vec::new();
    all(&mut |cell| {
        cell.put(&mut payload);
        if payload.len() >= CHUNK_BYTES {
            frame::append(out, generation, kind, RECORD_VERSION, &payload);
            payload.clear();
        }
    });
    if !payload.is_empty() {
        frame::append(out, generation, kind, RECORD_VERSION, &payload);
    }
}

fn put_event(out: &mut Vec<u8>, generation: u32, event: &Event<'_>) {
    let mut payload = Vec::with_capacity(160);
    let moved = |to: u8, seq: Seq, payload: &mut Vec<u8>| {
        payload.push(to);
        payload.extend_from_slice(&seq.0.to_le_bytes());
        KIND_MOVED
    };
    let step = |step: u8, payload: &mut Vec<u8>| {
        payload.push(step);
        KIND_STEP
    };
    let kind = match event {
        Event::Op { seq, changes } => {
            payload.extend_from_slice(&seq.0.to_le_bytes());
            put_changes(&mut payload, changes);
            KIND_OP
        }
        Event::Gone(seq) => moved(TO_REPLICA, *seq, &mut payload),
        Event::Dropped(seq) => moved(TO_DIRTY, *seq, &mut payload),
        Event::Staged(seq) => moved(TO_FROZEN, *seq, &mut payload),
        Event::Freeze => step(STEP_FREEZE, &mut payload),
        Event::Thaw => step(STEP_THAW, &mut payload),
        Event::Published => step(STEP_PUBLISHED, &mut payload),
        Event::Dirty(dirty) => {
            put_cells(out, generation, KIND_DIRTY, &mut |each| dirty.each_cell(each));
            return;
        }
        Event::Unnamed(id) => {
            Cell::Node(*id).put(&mut payload);
            KIND_UNNAMED
        }
        Event::Floor(position) => {
            put_position(&mut payload, position);
            KIND_FLOOR
        }
    };
    frame::append(out, generation, kind, RECORD_VERSION, &payload);
}

/// Encodes an intent; as coarse as it must be to fit its slot.
fn intent_bytes(cells: &[MarkCell]) -> Vec<u8> {
    const ROOM: usize = INTENT_LEN - 8;
    let encode = |cells: &mut dyn Iterator<Item = MarkCell>| {
        let mut bytes = Vec::new();
        cells.for_each(|cell| Cell::of_mark(&cell).put(&mut bytes));
        bytes
    };
    let exact = encode(&mut cells.iter().copied());
    if exact.len() <= ROOM {
        return exact;
    }
    let mut wide: Vec<MarkCell> = cells
        .iter()
        .map(|cell| match cell {
            MarkCell::Dir(id) => MarkCell::Dir(*id),
            MarkCell::File { id, .. } => MarkCell::File { id: *id, block: WHOLE_FILE },
        })
        .collect();
    wide.sort_unstable();
    wide.dedup();
    let wide = encode(&mut wide.into_iter());
    if wide.len() <= ROOM {
        return wide;
    }
    let mut all = Vec::new();
    Cell::Scope(Scope::Everything).put(&mut all);
    all
}

fn intent_word(bytes: &[u8]) -> u64 {
    bytes.len() as u64 | u64::from(crc32c::crc32c(bytes)) << 32
}

/// The shadow of one run. See the module.
pub struct Shadow {
    store: Box<dyn ShadowStore>,
    region: Box<dyn Region>,
    head: Head,
    limit: usize,
    half_len: usize,
    active: usize,
    generation: u32,
    /// Bytes of records in the active half.
    committed: usize,
    /// Why it counts for nothing.
    void: Option<String>,
    intents: Vec<Option<MarkCells>>,
    free: Vec<u32>,
    scratch: Vec<u8>,
}

impl Shadow {
    /// A new shadow that holds what `live` gives out. From its end on it counts in place of an older one.
    pub fn create(
        mut store: Box<dyn ShadowStore>,
        head: Head,
        limit: usize,
        live: &dyn Fn(&mut Live<'_>),
    ) -> io::Result<Shadow> {
        let generation = 1;
        let mut records = Vec::new();
        live(&mut Live { out: &mut records, generation });
        let half_len = half_for(records.len(), limit).ok_or_else(|| too_much(records.len(), limit))?;
        let region = store.replace(AT_HALVES + 2 * half_len, &mut |region| {
            fill(region, &head, half_len, &records);
        })?;
        Ok(Shadow {
            store,
            region,
            head,
            limit,
            half_len,
            active: 0,
            generation,
            committed: records.len(),
            void: None,
            intents: Vec::new(),
            free: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Why it counts for nothing, if so.
    pub fn void(&self) -> Option<&str> {
        self.void.as_deref()
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        AT_HALVES + 2 * self.half_len
    }

    /// A change of these cells begins. Until [`Shadow::done`] they count as dirty.
    pub fn intend(&mut self, cells: &[MarkCell]) -> Intent {
        let index = self.free.pop().unwrap_or_else(|| {
            self.intents.push(None);
            self.intents.len() as u32 - 1
        });
        self.intents[index as usize] = Some(MarkCells::from_slice(cells));
        if (index as usize) < INTENTS {
            self.write_intent(index as usize, cells);
        }
        Intent(index)
    }

    /// Whether a change has no slot of its own: its cells must be recorded as dirty with [`Event::Dirty`] before it begins.
    pub fn is_spilled(&self, intent: Intent) -> bool {
        intent.0 as usize >= INTENTS
    }

    /// The change is over, and recorded.
    pub fn done(&mut self, intent: Intent) {
        let index = intent.0 as usize;
        if index < INTENTS {
            self.region.store(AT_INTENTS + index * INTENT_LEN, 0);
        }
        self.intents[index] = None;
        self.free.push(intent.0);
    }

    fn write_intent(&mut self, index: usize, cells: &[MarkCell]) {
        let bytes = intent_bytes(cells);
        let at = AT_INTENTS + index * INTENT_LEN;
        self.region.write(at + 8, &bytes);
        self.region.store(at, intent_word(&bytes));
    }

    /// Records events that happened together. `live` is what is live after them.
    pub fn append(&mut self, events: &[Event<'_>], live: &dyn Fn(&mut Live<'_>)) {
        if self.void.is_some() {
            // What is dirty becomes little when it is published.
            if events.iter().any(|event| matches!(event, Event::Published)) {
                self.rewrite(live);
            }
            return;
        }
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        for event in events {
            put_event(&mut bytes, self.generation, event);
        }
        if self.committed + bytes.len() <= self.half_len {
            let half = AT_HALVES + self.active * self.half_len;
            self.region.write(half + self.committed, &bytes);
            self.committed += bytes.len();
            self.region.store(AT_COMMITTED + 8 * self.active, self.committed as u64);
        } else {
            self.rewrite(live);
        }
        self.scratch = bytes;
    }

    /// Writes what is live to the other half, or to a longer file, and makes that the one that counts.
    fn rewrite(&mut self, live: &dyn Fn(&mut Live<'_>)) {
        let generation = self.generation.wrapping_add(1).max(1);
        let mut records = Vec::new();
        live(&mut Live { out: &mut records, generation });
        for cells in self.intents.iter().skip(INTENTS).flatten() {
            put_cells(&mut records, generation, KIND_DIRTY, &mut |each| {
                cells.iter().for_each(|cell| each(&Cell::of_mark(cell)));
            });
        }
        let Some(half_len) = half_for(records.len(), self.limit) else {
            let why = too_much(records.len(), self.limit).to_string();
            return self.give_up(why);
        };
        if half_len > self.half_len {
            if let Err(error) = self.grow(half_len, generation, &records) {
                self.give_up(error.to_string());
            }
            return;
        }
        let other = 1 - self.active;
        self.region.store(AT_COMMITTED + 8 * other, 0);
        self.region.write(AT_HALVES + other * self.half_len, &records);
        self.region.store(AT_COMMITTED + 8 * other, records.len() as u64);
        self.region.store(AT_ACTIVE, other as u64);
        if self.void.take().is_some() {
            self.region.store(AT_VOID, 0);
        }
        (self.active, self.generation, self.committed) = (other, generation, records.len());
    }

    fn grow(&mut self, half_len: usize, generation: u32, records: &[u8]) -> io::Result<()> {
        let (head, intents) = (self.head, &self.intents);
        self.region = self.store.replace(AT_HALVES + 2 * half_len, &mut |region| {
            for (index, cells) in intents.iter().enumerate().take(INTENTS) {
                if let Some(cells) = cells {
                    let bytes = intent_bytes(cells);
                    let at = AT_INTENTS + index * INTENT_LEN;
                    region.write(at + 8, &bytes);
                    region.store(at, intent_word(&bytes));
                }
            }
            fill(region, &head, half_len, records);
        })?;
        (self.half_len, self.active, self.generation, self.committed) = (half_len, 0, generation, records.len());
        self.void = None;
        Ok(())
    }

    fn give_up(&mut self, why: String) {
        self.region.store(AT_VOID, 1);
        if self.void.is_none() {
            tracing::warn!(
                why,
                "the shadow cannot hold what differs: a kill of this daemon would cost a compare of all marked cells"
            );
        }
        self.void = Some(why);
    }

    /// Nothing differs, and the run ends: no memory is kept for that.
    pub fn remove(&mut self) -> io::Result<()> {
        self.store.remove()
    }
}

/// Length of a half for so many live bytes: as many again have room. `None`: more than the bound.
fn half_for(live: usize, limit: usize) -> Option<usize> {
    let most = limit.saturating_sub(AT_HALVES) / 2 / 4096 * 4096;
    if live > most / 4 * 3 {
        return None;
    }
    Some((live * 2).max(HALF_MIN).next_power_of_two().min(most))
}

fn too_much(live: usize, limit: usize) -> io::Error {
    io::Error::other(format!("{live} bytes of cells do not fit its bound of {limit} (option shadow_max)"))
}

fn fill(region: &mut dyn Region, head: &Head, half_len: usize, records: &[u8]) {
    let mut bytes = Vec::with_capacity(HEAD_LEN + 8);
    for id in [head.boot, head.run, head.previous] {
        bytes.extend_from_slice(&id.0);
    }
    bytes.extend_from_slice(&head.place.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    region.write(AT_HEAD, &bytes);
    region.store(AT_HALF_LEN, half_len as u64);
    region.write(AT_HALVES, records);
    region.store(AT_COMMITTED, records.len() as u64);
    region.store(AT_VERSION, VERSION);
}
