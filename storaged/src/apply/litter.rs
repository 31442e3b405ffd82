//! What was removed and is still on the disk: a directory that was discarded with all that it held is one rename, and deleting it
//! is as long as it is large. So it is deleted in slices, between other work and when there is none, and after a restart the rest.

use bytes::Bytes;
use tandem_proto::stage::NodeType;

use super::{
    error::{ApplyError, OnObject as _},
    objects::Objects,
};
use crate::tree::{Area, ReplicaTree};

/// Where deleting is. Everything in it can be found again by listing the area.
pub struct Litter<N> {
    /// Something was added that was not listed yet.
    unlisted: bool,
    top: Vec<(Bytes, NodeType)>,
    open: Option<Open<N>>,
}

/// A directory that is being emptied.
struct Open<N> {
    name: Bytes,
    node: N,
    children: Vec<(Bytes, NodeType)>,
}

impl<N> Default for Litter<N> {
    fn default() -> Self {
        Litter { unlisted: false, top: Vec::new(), open: None }
    }
}

impl<N> Litter<N> {
    /// Something was moved to the area.
    pub fn added(&mut self) {
        self.unlisted = true;
    }

    /// Whether there is nothing to delete.
    pub fn is_empty(&self) -> bool {
        !self.unlisted && self.top.is_empty() && self.open.is_none()
    }
}

impl<T: ReplicaTree> Objects<T> {
    /// Deletes up to `limit` objects that were discarded. Whether any are left. After an error the rest waits until more is discarded,
    /// or for the next start.
    pub fn tidy(&mut self, limit: usize) -> Result<bool, ApplyError> {
        let mut litter = std::mem::take(&mut self.litter);
        for _ in 0..limit {
            if litter.is_empty() {
                break;
            }
            self.tidy_one(&mut litter)?;
        }
        // Directories that were found on the way were moved up.
        litter.unlisted |= self.litter.unlisted;
        self.litter = litter;
        Ok(!self.litter.is_empty())
    }

    fn tidy_one(&mut self, litter: &mut Litter<T::Node>) -> Result<(), ApplyError> {
        let area = Area::Discard;
        let top = self.tree.area(area);
        if let Some(open) = &mut litter.open {
            match open.children.pop() {
                Some((child, NodeType::Directory)) => {
                    // Flattened instead of descended into: one level needs one handle.
                    let node = open.node.clone();
                    let aside = self.move_aside(&node, &child, area)?;
                    litter.top.push((aside.into(), NodeType::Directory));
                }
                Some((child, _)) => self.tree.unlink(&open.node, &child).on("delete from", area.path())?,
                None => {
                    self.tree.rmdir(&top, &open.name).on("delete from", area.path())?;
                    litter.open = None;
                }
            }
            return Ok(());
        }
        match litter.top.pop() {
            Some((name, NodeType::Directory)) => {
                let node = self.tree.open(&top, &name, NodeType::Directory).on("open in", area.path())?;
                let children = self.tree.list(&node).on("list in", area.path())?;
                litter.open = Some(Open { name, node, children });
            }
            Some((name, _)) => self.tree.unlink(&top, &name).on("delete from", area.path())?,
            None => {
                litter.unlisted = false;
                litter.top = self.tree.list(&top).on("list", area.path())?;
            }
        }
        Ok(())
    }
}
