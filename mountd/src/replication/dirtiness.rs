//! What differs after a restart: the marks of the run before, turned into a dirty set. Pure but for reading the log.

use std::path::Path;

use tandem_proto::{InodeId, Timestamp, limits::MARK_BLOCK};

use crate::commit::{
    ATTRIBUTES, MarkCell,
    activity_log::{ActivityLog, Header, Recovered},
    dirty::{DirtySet, Scope},
    marks::{EVERYTHING, WHOLE_FILE},
};

/// The cells of the recovered marks, and a walk if the folder could be reached around the mount.
pub fn after_restart(recovered: Option<&Recovered>, walk_since: Option<Timestamp>) -> DirtySet {
    let mut dirty = DirtySet::default();
    // Without a log nothing is known: the core sees a floor of zero and compares everything.
    let Some(recovered) = recovered else { return dirty };
    if recovered.damaged {
        return DirtySet::everything(true);
    }
    for mark in &recovered.marks {
        // The earliest mark's position for all: an object that was born under one mark may have moved under another.
        dirty.insert_born_since(mark.since);
        match mark.cell {
            EVERYTHING => dirty.insert_scope(Scope::Everything),
            MarkCell::Dir(id) => dirty.insert_directory(id),
            MarkCell::File { id, block: ATTRIBUTES } => dirty.insert_attributes(id),
            MarkCell::File { id, block: WHOLE_FILE } => dirty.insert_file(id),
            MarkCell::File { id, block } => {
                let start = block.saturating_mul(MARK_BLOCK);
                dirty.insert_range(id, start, start.saturating_add(MARK_BLOCK));
            }
        }
    }
    if let Some(since) = walk_since {
        dirty.insert_scope(Scope::Walk(since));
    }
    dirty
}

/// The header of the log there, if it can be read.
pub fn header(path: &Path) -> Option<Header> {
    let (_, recovered) = ActivityLog::open(path).ok()??;
    (!recovered.damaged).then_some(recovered.header)
}

/// See [`super::root_marked`].
pub fn root_marked(path: &Path) -> bool {
    match ActivityLog::open(path) {
        Ok(Some((_, recovered))) => {
            recovered.damaged
                || recovered
                    .marks
                    .iter()
                    .any(|mark| mark.cell == MarkCell::Dir(InodeId::ROOT) || mark.cell == EVERYTHING)
        }
        Ok(None) => false,
        Err(_) => true,
    }
}
