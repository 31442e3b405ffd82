//! Who reads the replica now: for `status`.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use parking_lot::Mutex;
use tandem_proto::position::Position;

use crate::volume::hold::Place;

/// How far a reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// For its position.
    Waits,
    /// Apply stands still for it.
    Holds,
    /// It reads a snapshot, and holds nothing.
    Snapshot,
}

#[derive(Debug)]
struct Row {
    what: String,
    at: String,
    stage: Stage,
    bytes: u64,
    begun: Instant,
}

/// All readers of a volume. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readers(Arc<Mutex<BTreeMap<u64, Row>>>);

impl Readers {
    /// Notes a reader, until the answer is dropped.
    pub fn add(&self, what: &str, at: Option<&Place>) -> Reader {
        let mut rows = self.0.lock();
        let number = rows.last_key_value().map_or(0, |(number, _)| number + 1);
        let at = at.map_or_else(|| "what is durable".to_owned(), |at| format!("{}:{}", at.epoch, at.seq));
        // It came over the wire, and goes on people's terminals.
        let what = if what.is_empty() { "pull" } else { what };
        let what = what.chars().filter(|c| !c.is_control()).take(100).collect();
        rows.insert(number, Row { what, at, stage: Stage::Waits, bytes: 0, begun: Instant::now() });
        Reader { readers: self.clone(), number }
    }

    /// Each with a name and a state in words.
    pub fn describe(&self) -> Vec<(String, String)> {
        let rows = self.0.lock();
        let describe = |row: &Row| {
            let what = match row.stage {
                Stage::Waits => format!("waits for {}", row.at),
                Stage::Holds => format!("holds apply at {}", row.at),
                Stage::Snapshot => format!("reads a snapshot of {}", row.at),
            };
            let (mib, seconds) = (row.bytes >> 20, row.begun.elapsed().as_secs());
            (row.what.clone(), format!("{what}, {mib} MiB sent, {seconds} s"))
        };
        rows.values().map(describe).collect()
    }
}

/// One reader; it is not shown any more when this is dropped.
#[derive(Debug)]
pub struct Reader {
    readers: Readers,
    number: u64,
}

impl Reader {
    fn change(&self, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.readers.0.lock().get_mut(&self.number) {
            change(row);
        }
    }

    /// It has its position.
    pub fn held(&self, position: Position) {
        self.change(|row| (row.at, row.stage) = (position.to_string(), Stage::Holds));
    }

    /// It goes on.
    pub fn stage(&self, stage: Stage) {
        self.change(|row| row.stage = stage);
    }

    /// So much was sent.
    pub fn sent(&self, bytes: u64) {
        self.change(|row| row.bytes = bytes);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers.0.lock().remove(&self.number);
    }
}
