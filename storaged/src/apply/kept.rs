//! What lost its last name is kept for a time: deleted and replaced files and deleted directories, by the path that they had.
//!
//! ```text
//!  unlink, rmdir, rename over, a directory that a resync removed ─► history/open/PATH ──full or old──► history/deleted-EPOCH-SEQ/PATH
//! ```
//! A directory that was deleted is empty there, and has the attributes that it had; one that holds something was made for what it holds.
//! Keeping is one rename, so it costs apply about what deleting costs. When it was deleted is the change time of the object, which
//! the rename sets. The bound of all that lies in `history/` is [`crate::history::Surplus`]'s; it deletes whole places, the oldest first.
//!
//! No promise about the replica rests on it: where keeping fails (a full disk, a path that is too long) the object is deleted as ever,
//! and of what was deleted after the last checkpoint before a power loss some may be missing.
//! A name that is deleted or replaced again within [`AGAIN_NS`] keeps its last version only: journals of databases would fill it otherwise.

use std::collections::HashMap;

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    position::Position,
    stage::NodeType,
};

use super::{
    error::{ApplyError, OnObject as _},
    objects::{Objects, show},
};
use crate::{
    catalog::Cell,
    tree::{Area, ReplicaTree},
};

/// The place that is being filled.
pub const OPEN: &str = "open";
/// Before the position at which a place was closed.
pub const CLOSED: &str = "deleted-";

/// Files in one place: what is deleted together when there is too much.
const FILES_MAX: u64 = 8192;
/// Bytes in one place.
const BYTES_MAX: u64 = 256 << 20;
/// See the module.
const AGAIN_NS: i64 = 10_000_000_000;
/// Names whose last version is known.
const LAST_MAX: usize = 1024;
/// A longer path is not kept: whoever lists and deletes goes by paths.
const PATH_MAX_BYTES: usize = 3000;

/// What is moved aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aside {
    /// No directory.
    File,
    /// An empty directory.
    Empty,
    /// A directory with what it holds.
    Tree,
}

/// State of keeping.
pub struct Keeper<N> {
    /// Whether anything is kept.
    pub on: bool,
    /// When the op under way happened.
    pub time_ns: i64,
    files: u64,
    bytes: u64,
    /// The directory that was kept into last, by the id of the one that it stands for.
    dir: Option<(InodeId, N)>,
    last: HashMap<Cell, (i64, Vec<u8>)>,
    closed: bool,
    failing: bool,
    /// Whether the open place is this run's: one that an earlier run left holds an unknown number of files.
    begun: bool,
}

impl<N> Default for Keeper<N> {
    fn default() -> Self {
        Keeper {
            on: false,
            time_ns: 0,
            files: 0,
            bytes: 0,
            dir: None,
            last: HashMap::new(),
            closed: false,
            failing: false,
            begun: false,
        }
    }
}

impl<N> Keeper<N> {
    /// Something got another path.
    pub fn moved(&mut self) {
        self.dir = None;
    }

    /// Forgets what it knows of the tree.
    pub fn forget(&mut self) {
        self.dir = None;
        self.last.clear();
    }
}

/// Takes the suffix away that [`Objects::free_name`] may have given.
pub fn original_name(kept: &[u8]) -> &[u8] {
    let Some(rest) = kept.strip_suffix(b"~") else { return kept };
    let digits = rest.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    match rest[..rest.len() - digits].strip_suffix(b".~") {
        Some(name) if digits > 0 && !name.is_empty() => name,
        _ => kept,
    }
}

impl<T: ReplicaTree> Objects<T> {
    /// A name in a directory of `history/` that is free: the wanted one, or with a number (`.~7~`) behind it.
    pub(super) fn free_name(&mut self, dir: &T::Node, wanted: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let mut name = wanted.to_vec();
        let ambiguous = original_name(wanted).len() != wanted.len();
        while (ambiguous && name == wanted) || self.tree.find(dir, &name).on("look in", "the history")?.is_some() {
            let suffix = format!(".~{}~", self.next_number());
            name.clear();
            name.extend_from_slice(&wanted[..wanted.len().min(255 - suffix.len())]);
            name.extend_from_slice(suffix.as_bytes());
        }
        Ok(name)
    }

    /// Whether this inode is kept when it loses a name.
    pub(super) fn keeps(&self, id: &InodeId) -> Result<bool, ApplyError> {
        Ok(self.keeper.on && self.is_last_name(id)? && !self.known(id)?.kind.is_directory())
    }

    /// Keeps an inode that is about to lose its last name, at which it stands. Whether it was.
    pub(super) fn keep_last_name(
        &mut self,
        id: &InodeId,
        at: (&T::Node, &[u8]),
        cell: &Cell,
    ) -> Result<bool, ApplyError> {
        Ok(self.keeps(id)? && self.keep_aside(at, cell, Aside::File)?)
    }

    /// Renames over what is kept: the name means one or the other at any time. Whether it was.
    pub(super) fn keep_replaced(
        &mut self,
        victim: &InodeId,
        from: (&T::Node, &Cell),
        to: (&T::Node, &Cell),
    ) -> Result<bool, ApplyError> {
        let exchanged = self.tree.exchange(from.0, from.1.1.as_bytes(), to.0, to.1.1.as_bytes());
        if exchanged.is_err() {
            // Some file systems cannot; whatever it was, the plain rename says.
            return Ok(false);
        }
        if !self.keep_aside((from.0, from.1.1.as_bytes()), to.1, Aside::File)? {
            self.tree.unlink(from.0, from.1.1.as_bytes()).on("unlink", show(from.1))?;
        }
        self.close_handle(victim);
        Ok(true)
    }

    /// Moves what stands at a name to the open place, under the path of `cell`. Whether it could.
    pub(super) fn keep_aside(&mut self, at: (&T::Node, &[u8]), cell: &Cell, what: Aside) -> Result<bool, ApplyError> {
        if !self.keeper.on {
            return Ok(false);
        }
        match self.try_keep(at, cell, what) {
            Ok(kept) => {
                self.keeper.failing = false;
                Ok(kept)
            }
            Err(error @ ApplyError::Damaged { .. }) => Err(error),
            Err(error) => {
                if !std::mem::replace(&mut self.keeper.failing, true) {
                    tracing::warn!(%error, "a deleted file is not kept; further ones without a word, until one is");
                }
                self.keeper.forget();
                Ok(false)
            }
        }
    }

    fn try_keep(&mut self, at: (&T::Node, &[u8]), cell: &Cell, what: Aside) -> Result<bool, ApplyError> {
        let Some(dir) = self.kept_dir(&cell.0)? else { return Ok(false) };
        let now = self.keeper.time_ns;
        let soon = |then: i64| what != Aside::Tree && (0..AGAIN_NS).contains(&(now - then));
        let again = self.keeper.last.get(cell).filter(|(then, _)| soon(*then));
        let again = again.map(|(_, target)| target.clone());
        let over = |target: &Vec<u8>| self.tree.rename(at.0, at.1, &dir, target).is_ok();
        let target = match again.filter(over) {
            Some(target) => target,
            // Nothing to replace, or what is kept there is of the other kind, or holds something.
            None => {
                let target = self.free_name(&dir, cell.1.as_bytes())?;
                self.tree.rename(at.0, at.1, &dir, &target).on("move to the history", show(cell))?;
                target
            }
        };
        if self.keeper.last.len() >= LAST_MAX {
            self.keeper.last.clear();
        }
        if what != Aside::Tree {
            self.keeper.last.insert(cell.clone(), (now, target.clone()));
        }
        if what == Aside::File {
            // Only what can be opened without harm; the others have no size.
            if let Ok(node) = self.tree.open(&dir, &target, NodeType::Regular)
                && let Ok(is) = self.tree.stat(&node)
            {
                self.keeper.bytes += is.size;
            }
        }
        self.keeper.files += 1;
        Ok(true)
    }

    /// The directory of the open place that stands for one of the tree.
    fn kept_dir(&mut self, id: &InodeId) -> Result<Option<T::Node>, ApplyError> {
        if let Some((of, dir)) = &self.keeper.dir
            && of == id
        {
            return Ok(Some(dir.clone()));
        }
        let (mut path, mut at, mut len) = (Vec::new(), *id, 0);
        while let Some((dir, name)) = self.catalog.names(&at, 1)?.into_iter().next() {
            len += name.as_bytes().len() + 1;
            if len > PATH_MAX_BYTES {
                return Ok(None);
            }
            path.push(name);
            at = dir;
        }
        if !at.is_root() {
            return Ok(None);
        }
        let mut kept = self.tree.area(Area::History);
        for name in Name::new(Bytes::from_static(OPEN.as_bytes())).into_iter().chain(path.into_iter().rev()) {
            kept = self.history_dir(&kept, &name)?;
        }
        self.keeper.dir = Some((*id, kept.clone()));
        Ok(Some(kept))
    }

    /// See [`super::Replica::close_kept`].
    pub(super) fn close_kept(&mut self, old: bool, position: Position) -> bool {
        let full = self.keeper.files >= FILES_MAX || self.keeper.bytes >= BYTES_MAX;
        if full || (old && (self.keeper.files > 0 || !self.keeper.begun)) {
            let history = self.tree.area(Area::History);
            let name = format!("{CLOSED}{}-{}", position.epoch, position.seq);
            let taken = self.tree.find(&history, name.as_bytes());
            if matches!(taken, Ok(None)) {
                match self.tree.rename(&history, OPEN.as_bytes(), &history, name.as_bytes()) {
                    Ok(()) => self.keeper.closed = true,
                    Err(error) => tracing::debug!(%error, "the place of deleted files stays open"),
                }
                self.keeper.forget();
                (self.keeper.files, self.keeper.bytes, self.keeper.begun) = (0, 0, true);
            }
        }
        std::mem::take(&mut self.keeper.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::original_name;

    #[test]
    fn only_a_number_between_tildes_is_taken_away() {
        for (kept, original) in
            [("a.~12~", "a"), ("a.~~", "a.~~"), ("a.7", "a.7"), ("a~", "a~"), (".~1~", ".~1~"), ("a.~1~.~2~", "a.~1~")]
        {
            assert_eq!(original_name(kept.as_bytes()), original.as_bytes());
        }
    }
}
