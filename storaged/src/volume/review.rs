//! After `special` of a volume was changed: the rights of what is in its tree already are brought to it, a few inodes at a time, between
//! everything else. See `apply/rights.rs`. A mark beside the settings (`Marker`) says that it is not done, so a restart begins it again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use tandem_proto::ids::InodeId;
use tandem_runtime::durable;

use super::core::Core;
use crate::{apply::ApplyError, log::disk::Disk, tree::ReplicaTree};

/// Inodes that are looked at in one step: a millisecond or two.
const STEP_INODES: usize = 64;

/// How far it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Review {
    after: Option<InodeId>,
    moved: u64,
}

/// The file that says that a review is not done.
#[derive(Clone, Debug)]
pub struct Marker(PathBuf);

impl Marker {
    /// Of a volume's directory.
    pub fn of(volume: &Path) -> Marker {
        Marker(volume.join("settings.review"))
    }

    /// Whether one is to be made.
    pub fn is_set(&self) -> bool {
        self.0.exists()
    }

    /// Asks for one, before the settings say what it brings about.
    pub fn set_durably(&self) -> io::Result<()> {
        durable::replace_file_durably(&self.0, b"")
    }

    /// It is done.
    pub fn clear(&self) -> io::Result<()> {
        fs::remove_file(&self.0)
    }
}

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Looks at everything, from the beginning.
    pub fn begin_review(&mut self) {
        self.review = Some(Review::default());
    }

    /// Whether there is something to look at, and nothing in the way.
    pub fn can_review(&self) -> bool {
        let clear = self.faults.is_empty() && self.damaged.is_none() && self.publishing.is_none() && !self.is_held();
        self.review.is_some() && clear && self.replica.is_at_rest()
    }

    /// Looks at a few inodes; whether these were the last ones.
    pub fn review_some(&mut self, now: Instant) -> bool {
        let Some(mut review) = self.review.filter(|_| self.can_review()) else { return false };
        match self.review_after(&mut review, now) {
            Ok(true) => {
                self.review = Some(review);
                false
            }
            Ok(false) => {
                self.review = None;
                // What was given back is in the tree for good before the mark goes.
                self.checkpoint(now);
                tracing::info!(
                    files = review.moved,
                    "set-user-id bits and capabilities of the tree are as `special` says"
                );
                self.faults.is_empty()
            }
            Err(error) => {
                self.review = None;
                tracing::warn!(%error, "the rights in the tree could not be brought to what `special` says; the next start tries again");
                false
            }
        }
    }

    /// Whether there are more.
    fn review_after(&mut self, review: &mut Review, now: Instant) -> Result<bool, ApplyError> {
        let (found, last) = self.replica.misplaced_rights(review.after.as_ref(), STEP_INODES)?;
        if !found.is_empty() {
            if self.replica.denies_special() {
                self.replica.note_rights(&found)?;
                self.checkpoint(now);
                if !self.faults.is_empty() || self.damaged.is_some() {
                    // Not known to be durable: they stay where they are, and this is looked at again.
                    return Ok(true);
                }
            }
            review.moved += found.len() as u64;
            self.replica.place_rights(found)?;
        }
        review.after = last;
        Ok(last.is_some())
    }
}
