//! Net assignments: what a run of ops and staged state comes to, cell by cell. The last assignment to a cell wins, so a set is
//! independent of where in the run the tree already is. Data is not in it: it stays in the log and in staging.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    op::{AttrPatch, Change, NodeKind, Op},
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
    pub attr: AttrPatch,
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
        merge_attr(&mut self.attr, &later.attr);
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
                Change::Attr { id, patch } => merge_attr(&mut self.nodes.entry(*id).or_default().attr, patch),
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
        node.attr = state.attr.into();
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
