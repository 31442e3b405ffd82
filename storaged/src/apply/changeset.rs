//! Net assignments: what a run of ops and staged state comes to, cell by cell. The last assignment to a cell wins, so a set is
//! independent of where in the run the tree already is. Data is not in it: it stays in the log and in staging.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    op::{AttrPatch, Change, NodeKind, Op, Timestamp},
    position::Position,
    stage::NodeState,
};

/// Names of one directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirNet {
    /// Every name that is not in `names` := none.
    pub complete: bool,
    /// What was assigned.
    pub names: BTreeMap<Name, Option<InodeId>>,
}

/// Extended attributes of one inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XattrNet {
    /// Those that are not in `values` := none.
    pub complete: bool,
    /// What was assigned; `None`: removed.
    pub values: BTreeMap<Bytes, Option<Bytes>>,
}

/// Of an inode without any, which nearly all are: one for all.
static NO_XATTRS: LazyLock<Arc<XattrNet>> =
    LazyLock::new(|| Arc::new(XattrNet { complete: true, values: BTreeMap::new() }));

/// An [`AttrPatch`] in half of its room: there may be millions.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    mode: u32,
    uid: u32,
    gid: u32,
    /// Low and high half: a row of words of four bytes fits behind anything.
    seconds: [u32; 2],
    nanos: u32,
    /// Which of them are assigned; the others are 0.
    has: u8,
}

const HAS_MODE: u8 = 1;
const HAS_UID: u8 = 2;
const HAS_GID: u8 = 4;
const HAS_MTIME: u8 = 8;

impl Packed {
    /// What is assigned.
    pub fn patch(&self) -> AttrPatch {
        let has = |bit: u8| self.has & bit != 0;
        let seconds = u64::from(self.seconds[0]) | u64::from(self.seconds[1]) << 32;
        AttrPatch {
            mode: has(HAS_MODE).then_some(self.mode),
            uid: has(HAS_UID).then_some(self.uid),
            gid: has(HAS_GID).then_some(self.gid),
            mtime: has(HAS_MTIME).then_some(Timestamp { seconds: seconds as i64, nanos: self.nanos }),
        }
    }

    /// Puts `later` over it.
    pub fn assign(&mut self, later: &AttrPatch) {
        for (mine, bit, theirs) in [
            (&mut self.mode, HAS_MODE, later.mode),
            (&mut self.uid, HAS_UID, later.uid),
            (&mut self.gid, HAS_GID, later.gid),
        ] {
            if let Some(theirs) = theirs {
                *mine = theirs;
                self.has |= bit;
            }
        }
        if let Some(Timestamp { seconds, nanos }) = later.mtime {
            let seconds = seconds as u64;
            (self.seconds, self.nanos) = ([seconds as u32, (seconds >> 32) as u32], nanos);
            self.has |= HAS_MTIME;
        }
    }
}

impl From<AttrPatch> for Packed {
    fn from(patch: AttrPatch) -> Self {
        let mut packed = Packed::default();
        packed.assign(&patch);
        packed
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.patch().fmt(f)
    }
}

/// One inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNet {
    /// It came to exist, or its kind was stated.
    pub kind: Option<NodeKind>,
    /// It came to exist in an op, which is how it begins empty.
    pub birth: bool,
    /// Where that happened; of a round's state all the same.
    pub born: Option<Arc<Position>>,
    /// Attributes.
    pub attr: Packed,
    /// Extended attributes.
    pub xattrs: Option<Arc<XattrNet>>,
    /// An op changed its data or size.
    pub data: bool,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changeset {
    /// By directory.
    pub dirs: BTreeMap<InodeId, DirNet>,
    /// By inode. In boxes: of what comes in order a tree's leaves are half empty, and there may be millions.
    pub nodes: BTreeMap<InodeId, Box<NodeNet>>,
    /// The last position that was assigned: they come in runs.
    position: Arc<Position>,
}

/// Puts `later` over `patch`.
pub fn merge_attr(patch: &mut AttrPatch, later: &AttrPatch) {
    patch.mode = later.mode.or(patch.mode);
    patch.uid = later.uid.or(patch.uid);
    patch.gid = later.gid.or(patch.gid);
    patch.mtime = later.mtime.or(patch.mtime);
}

/// A name that does not keep the message alive from which it came.
fn own(name: &Name) -> Name {
    Name::new(Bytes::copy_from_slice(name.as_bytes())).unwrap_or_else(|| name.clone())
}

impl NodeNet {
    /// Sets one extended attribute.
    pub fn set_xattr(&mut self, name: &Bytes, value: Option<&Bytes>) {
        let xattrs = Arc::make_mut(self.xattrs.get_or_insert_default());
        xattrs.values.insert(Bytes::copy_from_slice(name), value.map(|value| Bytes::copy_from_slice(value)));
    }

    fn merge(&mut self, later: NodeNet) {
        if later.kind.is_some() {
            self.kind = later.kind;
            self.born = later.born.or_else(|| self.born.take());
            self.birth |= later.birth;
        }
        self.attr.assign(&later.attr.patch());
        if let Some(xattrs) = later.xattrs {
            match &mut self.xattrs {
                Some(mine) if !xattrs.complete => {
                    Arc::make_mut(mine).values.extend(Arc::unwrap_or_clone(xattrs).values);
                }
                mine => *mine = Some(xattrs),
            }
        }
        self.data |= later.data;
    }
}

impl Changeset {
    /// Nothing is assigned.
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty() && self.nodes.is_empty()
    }

    fn shared(&mut self, position: Position) -> Arc<Position> {
        if *self.position != position {
            self.position = Arc::new(position);
        }
        self.position.clone()
    }

    /// `(dir, name) := id`.
    pub fn set_entry(&mut self, dir: InodeId, name: &Name, id: Option<InodeId>) {
        self.dirs.entry(dir).or_default().names.insert(own(name), id);
    }

    /// Assigns what an op assigns. `position` is the op's.
    pub fn assign_op(&mut self, op: &Op, position: Position) {
        for change in &op.changes {
            match change {
                Change::Birth { id, kind } => {
                    let position = self.shared(position);
                    let node = self.nodes.entry(*id).or_default();
                    node.kind = Some(kind.clone());
                    node.birth = true;
                    node.born = Some(position);
                }
                Change::Entry { dir, name, new, .. } => self.set_entry(*dir, name, *new),
                Change::Attr { id, patch } => self.nodes.entry(*id).or_default().attr.assign(patch),
                Change::Xattr { id, name, value } => {
                    self.nodes.entry(*id).or_default().set_xattr(name, value.as_ref());
                }
                Change::Data { id, .. }
                | Change::Copy { id, .. }
                | Change::Hole { id, .. }
                | Change::Size { id, .. } => {
                    self.nodes.entry(*id).or_default().data = true;
                }
            }
        }
    }

    /// Assigns an inode's state.
    pub fn assign_node(&mut self, id: InodeId, state: &NodeState, position: Position) {
        let position = self.shared(position);
        let node = self.nodes.entry(id).or_default();
        node.kind = Some(state.kind.clone());
        node.born = Some(position);
        node.attr = AttrPatch::from(state.attr).into();
        if state.xattrs.is_empty() {
            node.xattrs = Some(NO_XATTRS.clone());
            return;
        }
        let mut xattrs = XattrNet { complete: true, values: BTreeMap::new() };
        for (name, value) in &state.xattrs {
            xattrs.values.insert(Bytes::copy_from_slice(name), Some(Bytes::copy_from_slice(value)));
        }
        node.xattrs = Some(Arc::new(xattrs));
    }

    /// Puts `later` over this.
    pub fn merge(&mut self, later: Changeset) {
        if self.is_empty() {
            *self = later;
            return;
        }
        for (dir, net) in later.dirs {
            match self.dirs.get_mut(&dir) {
                Some(mine) if !net.complete => mine.names.extend(net.names),
                _ => _ = self.dirs.insert(dir, net),
            }
        }
        for (id, net) in later.nodes {
            match self.nodes.get_mut(&id) {
                Some(mine) => mine.merge(*net),
                None => _ = self.nodes.insert(id, net),
            }
        }
    }

    /// What a name was assigned; outer `None`: nothing.
    pub fn assigned(&self, dir: &InodeId, name: &Name) -> Option<Option<InodeId>> {
        let net = self.dirs.get(dir)?;
        match net.names.get(name) {
            Some(id) => Some(*id),
            None => net.complete.then_some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::op::{AttrPatch, Timestamp};

    use super::{NodeNet, Packed};

    #[test]
    fn attributes_that_are_packed_are_what_they_were_and_a_later_patch_covers_an_earlier_one() {
        let times = [(0, 0), (-1, 999_999_999), (i64::MIN, 1), (i64::MAX, 7), (1 << 32, 0)];
        let times = times.map(|(seconds, nanos)| Some(Timestamp { seconds, nanos }));
        for mtime in times.into_iter().chain([None]) {
            for word in [None, Some(0), Some(0o7777), Some(u32::MAX)] {
                let patch = AttrPatch { mode: word, uid: None, gid: word, mtime };
                assert_eq!(Packed::from(patch).patch(), patch);
                let mut both = Packed::from(AttrPatch { mode: Some(1), uid: Some(2), gid: Some(3), mtime: times[0] });
                both.assign(&patch);
                let expected = AttrPatch {
                    mode: word.or(Some(1)),
                    uid: Some(2),
                    gid: word.or(Some(3)),
                    mtime: mtime.or(times[0]),
                };
                assert_eq!(both.patch(), expected);
            }
        }
    }

    #[test]
    fn an_inode_of_a_first_sync_takes_no_more_memory_than_it_was_made_for() {
        assert!(size_of::<NodeNet>() <= 88, "{}", size_of::<NodeNet>());
        let file = size_of::<super::super::staging::StagedFile>();
        assert!(file <= 72, "{file}");
    }
}
