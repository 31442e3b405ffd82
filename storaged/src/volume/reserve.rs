//! The reserve: a file that holds some blocks of the disk for the checkpoint that a full one needs.
//!
//! The tree may take the last block of a disk. What would make room then, the log of what is applied, goes with a checkpoint only, and that
//! needs some pages for the catalog and a block for `state`: they come from here. The file is given up for that, and made again with the
//! first room that there is. It is a help: without it, and where something else takes its blocks, the log stays until there is room.

use super::core::Core;
use crate::{
    log::disk::{Blocks, Disk},
    tree::ReplicaTree,
};

/// Name of the file, in the volume's directory.
const FILE: &str = "reserve";
/// Its length. A checkpoint of what one op changed takes a tenth of it.
const BYTES: u64 = if cfg!(test) { 4096 } else { 1 << 20 };

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Makes the reserve if it is not there and there is room for it.
    pub(super) fn keep_reserve(&mut self) {
        if self.has_reserve() {
            return;
        }
        match self.home.create(FILE, BYTES, Blocks::Allocated) {
            Ok(_) => self.reserve = Some(true),
            Err(error) => {
                tracing::debug!(%error, "no room for the reserve");
                // What was allocated of it is for others.
                let _ = self.home.remove(FILE);
            }
        }
    }

    /// Gives the reserve up. Whether it was there.
    pub(super) fn give_reserve(&mut self) -> bool {
        let given = self.has_reserve() && self.home.remove(FILE).is_ok();
        if given {
            self.reserve = Some(false);
        }
        given
    }

    fn has_reserve(&mut self) -> bool {
        if self.reserve.is_none() {
            self.reserve = self.home.list().ok().map(|names| names.iter().any(|name| name == FILE));
        }
        self.reserve == Some(true)
    }
}
