//! The staged model: state that was sent in a resync, and the ops that came meanwhile, held apart from the tree until publish.
//!
//! ```text
//!   round 1: state ← ops ──► base      round 2: state ← ops ──► base      …      publish: base
//! ```
//! Within a round its state is assigned before its ops, in whatever order they arrive; a later round goes over an earlier one.
//! Names and attributes are in the model (memory). Content is in staging files and, for what the tree's object already holds, in
//! place; the extents say which. The model is rebuilt from the log's records after a crash, by the same code with `replay` set.
//!
//! In a full compare an unknown id takes over the object that the replica has under the same directory and name, if it has the
//! same type: the client's ids are new, the files are not. Its content is then compared in place.

use std::collections::{BTreeMap, HashMap, HashSet};

use tandem_proto::{
    ids::InodeId,
    op::{NodeKind, Op},
    position::Position,
    stage::{Content, Listing, StageDir, StageNode, stamp},
};

use super::{
    StageReply,
    changeset::{Changeset, NodeNet},
    compact,
    error::{ApplyError, OnObject as _},
    metadata::true_attr,
    nests::Nests,
    objects::Objects,
    record::{ExtentSource, ObjectIdentity, Record},
    salvage::Salvage,
};
use crate::tree::ReplicaTree;

/// Content of a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file.
    pub offset: u64,
    /// How long.
    pub len: u64,
    /// Where it lies.
    pub source: ExtentSource,
}

/// What one round said of the content of a file that has an object without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundContent {
    /// Which round.
    pub round: u64,
    /// What no extent covers is a hole.
    pub whole: bool,
    /// Size in bytes.
    pub size: u64,
    /// No extent begins before the end of the one before it.
    pub in_order: bool,
    /// In the order in which they came.
    pub extents: Vec<Extent>,
}

impl RoundContent {
    /// Whether an extent covers part of a range. Pieces come in order nearly always, so the last extent answers.
    pub fn overlaps(&self, offset: u64, len: u64) -> bool {
        let covers = |extent: &Extent| extent.offset < offset + len && offset < extent.offset + extent.len;
        match self.extents.last() {
            Some(last) if self.in_order && last.offset + last.len <= offset => false,
            _ => self.extents.iter().any(covers),
        }
    }

    /// Adds an extent.
    pub fn push(&mut self, extent: Extent) {
        match self.extents.last_mut() {
            Some(last) if last.source == extent.source && last.offset + last.len == extent.offset => {
                last.len += extent.len;
            }
            last => {
                self.in_order &= last.is_none_or(|last| last.offset + last.len <= extent.offset);
                self.extents.push(extent);
            }
        }
    }
}

/// Content of one staged file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StagedFile {
    /// Its new object, and the round in which its content went straight into it.
    pub object: Option<(ObjectIdentity, u64)>,
    /// What most files of a first sync have nothing of.
    rare: Option<Box<Rare>>,
    /// Its new object has the attributes that its inode was given: see [`super::fresh`].
    pub dressed: bool,
    /// The number of the nest in which its object stands, from 1 on; 0: it stands at its id. See [`super::nests`].
    pub nest: u32,
    /// In a publish: its object is no longer in the staging area, or never was.
    pub placed: bool,
}

/// Of a staged file that is more than a new one, sent at once: apart, because there may be millions that are no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rare {
    rounds: Vec<RoundContent>,
    salvage: Salvage,
}

static NO_SALVAGE: Salvage = Salvage { confirmed: None, beside: false };

impl StagedFile {
    /// Content beside the object, by round.
    pub fn rounds(&self) -> &[RoundContent] {
        self.rare.as_deref().map_or(&[], |rare| &rare.rounds)
    }

    fn rounds_mut(&mut self) -> &mut Vec<RoundContent> {
        &mut self.rare.get_or_insert_default().rounds
    }

    /// Keeps some of its rounds.
    fn retain_rounds(&mut self, keep: impl Fn(u64) -> bool) {
        if let Some(rare) = &mut self.rare {
            rare.rounds.retain(|staged| keep(staged.round));
        }
    }

    /// What of it came from an unfinished staging.
    pub(super) fn salvage(&self) -> &Salvage {
        self.rare.as_deref().map_or(&NO_SALVAGE, |rare| &rare.salvage)
    }

    /// A range of its object is as it should be.
    pub(super) fn confirm(&mut self, offset: u64, len: u64) {
        if let Some(rare) = &mut self.rare {
            rare.salvage.confirm(offset, len);
        }
    }

    /// What of it came from an unfinished staging, to be changed.
    pub(super) fn salvage_mut(&mut self) -> &mut Salvage {
        &mut self.rare.get_or_insert_default().salvage
    }
}

/// A staging under way.
#[derive(Debug)]
pub struct Staging {
    /// Its number.
    pub serial: u64,
    /// Its round.
    pub round: u64,
    /// Everything is compared.
    pub full: bool,
    /// Position of the last staged op, or of the state's beginning.
    pub end: Position,
    pub(super) base: Changeset,
    state: Changeset,
    ops: Changeset,
    /// Content of regular files.
    pub files: BTreeMap<InodeId, Box<StagedFile>>,
    /// Inodes that take over an object: new id → old id.
    pub adopted: BTreeMap<InodeId, InodeId>,
    claimed: HashMap<InodeId, InodeId>,
    listed: HashSet<InodeId>,
    /// Directories of whose complete listing parts are missing.
    pub(super) open_listings: HashSet<InodeId>,
    /// What a message did and the log has not: it failed in the middle, and its next attempt does not do that again.
    pub(super) unlogged: Vec<Record>,
    pub(super) nests: Nests,
    nodes_pace: compact::Pace,
    files_pace: compact::Pace,
}

impl Staging {
    /// An empty staging.
    pub fn new(serial: u64, full: bool, s0: Position) -> Self {
        Staging {
            serial,
            round: 1,
            full,
            end: s0,
            base: Changeset::default(),
            state: Changeset::default(),
            ops: Changeset::default(),
            files: BTreeMap::new(),
            adopted: BTreeMap::new(),
            claimed: HashMap::new(),
            listed: HashSet::new(),
            open_listings: HashSet::new(),
            unlogged: Vec::new(),
            nests: Nests::default(),
            nodes_pace: Default::default(),
            files_pace: Default::default(),
        }
    }

    /// The next round begins.
    pub fn next_round(&mut self, round: u64, full: bool, s0: Position) -> Result<(), ApplyError> {
        if round != self.round + 1 {
            return Err(ApplyError::protocol("resync", format!("round {round} after round {}", self.round)));
        }
        self.fold();
        self.round = round;
        self.full |= full;
        self.end = s0;
        Ok(())
    }

    pub(super) fn fold(&mut self) {
        for id in self.ops.nodes.keys() {
            if let Some(file) = self.files.get_mut(id) {
                file.dressed = false;
            }
        }
        self.base.merge(std::mem::take(&mut self.state));
        self.nodes_pace = Default::default();
        self.base.merge(std::mem::take(&mut self.ops));
    }

    /// What all of it comes to.
    pub fn net(&mut self) -> &Changeset {
        self.fold();
        &self.base
    }

    /// Whether any op changes data.
    pub fn has_op_data(&self) -> bool {
        [&self.base, &self.ops].into_iter().any(|set| set.nodes.values().any(|node| node.data))
    }

    /// Stages ops.
    pub fn assign_ops(&mut self, ops: &[Op], end: Position) {
        for op in ops {
            self.ops.assign_op(op, Position { seq: op.seq, ..end });
        }
        self.end = end;
    }

    /// Whether names of a directory were told.
    pub(super) fn is_named(&self, dir: &InodeId) -> bool {
        [&self.base, &self.state, &self.ops].into_iter().any(|set| set.dirs.contains_key(dir))
    }

    fn is_born(&self, id: &InodeId) -> bool {
        [&self.base, &self.state, &self.ops]
            .into_iter()
            .any(|set| set.nodes.get(id).is_some_and(|node| node.kind.is_some()))
    }

    /// The state of an inode that this round was told.
    pub(super) fn stated(&self, id: &InodeId) -> Option<&NodeNet> {
        self.state.nodes.get(id).map(|node| &**node)
    }

    pub(super) fn set_dressed(&mut self, id: &InodeId, dressed: bool) {
        if let Some(file) = self.files.get_mut(id) {
            file.dressed = dressed;
        }
    }

    /// Whether the publish has no attributes to give to a file.
    pub fn is_dressed(&self, id: &InodeId) -> bool {
        self.files.get(id).is_some_and(|file| file.dressed)
    }

    /// Whether its object was taken over by another id.
    pub fn is_claimed(&self, id: &InodeId) -> bool {
        self.claimed.contains_key(id)
    }

    /// Which id took its object over.
    pub fn claimed_by(&self, id: &InodeId) -> Option<InodeId> {
        self.claimed.get(id).copied()
    }

    /// Whether it is a new file whose content waits in an object of its own.
    pub fn has_new_object(&self, id: &InodeId) -> bool {
        self.files.get(id).is_some_and(|file| file.object.is_some())
    }

    /// Whether an earlier round gave the file data, so that what the tree holds is not what the round began with.
    pub fn has_earlier_data(&self, id: &InodeId) -> bool {
        self.base.nodes.get(id).is_some_and(|node| node.data)
            || self.files.get(id).is_some_and(|file| file.rounds().iter().any(|round| round.round < self.round))
    }

    /// The object that a staged id has in the tree: its own or an adopted one.
    pub fn object_of<T: ReplicaTree>(&self, objects: &Objects<T>, id: &InodeId) -> Result<Option<InodeId>, ApplyError> {
        if let Some(old) = self.adopted.get(id) {
            return Ok(Some(*old));
        }
        if self.claimed.contains_key(id) {
            return Ok(None);
        }
        Ok(objects.catalog.has_node(id)?.then_some(*id))
    }

    /// Stages names. The reply asks for what the replica does not have. If it fails it may be called again with the same part.
    pub fn stage_dir<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        dir: &StageDir,
        replay: bool,
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        self.note_names(dir);
        self.note_listing(dir);
        let bound = self.object_of(objects, &dir.dir)?;
        if self.full {
            for (id, _) in dir.entries.iter().filter_map(|entry| entry.node) {
                if objects.catalog.has_node(&id)? {
                    self.listed.insert(id);
                    self.give_back(objects, &id, replay)?;
                }
            }
        }
        for entry in &dir.entries {
            self.state.set_entry(dir.dir, &entry.name, entry.node.map(|(id, _)| id));
            let Some((id, node_type)) = entry.node else { continue };
            if self.full && !self.adopted.contains_key(&id) && !objects.catalog.has_node(&id)? {
                let there = bound.map(|bound| objects.catalog.entry(&bound, &entry.name)).transpose()?.flatten();
                if let Some(there) = there {
                    let record = objects.known(&there)?;
                    let free = !self.claimed.contains_key(&there) && !self.listed.contains(&there);
                    if free && record.kind.node_type() == node_type && !self.is_born(&id) {
                        self.adopted.insert(id, there);
                        self.claimed.insert(there, id);
                    }
                }
            }
            if !replay && self.is_needed(objects, &id, entry.stamp, dir.born_since.as_ref())? {
                reply.need_nodes.push(id);
            }
        }
        if dir.listing == Listing::CompleteEnd {
            // Only now: a last part that fails and comes again must not begin a new listing without the parts before it.
            self.open_listings.remove(&dir.dir);
            if let Some(net) = self.state.dirs.get_mut(&dir.dir) {
                compact::listing(&mut net.names);
            }
        }
        reply.log.append(&mut self.unlogged);
        Ok(())
    }

    /// A complete listing replaces what was listed before; it counts when its last part is there.
    fn note_listing(&mut self, dir: &StageDir) {
        let net = self.state.dirs.entry(dir.dir).or_default();
        if dir.listing == Listing::Partial {
            return;
        }
        if self.open_listings.insert(dir.dir) {
            net.names.clear();
        }
        net.complete |= dir.listing == Listing::CompleteEnd;
    }

    fn is_needed<T: ReplicaTree>(
        &self,
        objects: &mut Objects<T>,
        id: &InodeId,
        theirs: Option<u64>,
        born_since: Option<&Position>,
    ) -> Result<bool, ApplyError> {
        if self.state.nodes.get(id).is_some_and(|node| node.kind.is_some()) {
            return Ok(false);
        }
        if self.base.nodes.contains_key(id) {
            // What the tree has of it is older than what an earlier round staged.
            return Ok(theirs.is_some());
        }
        let Some(record) = objects.catalog.node(id)? else {
            // Born in an op of this staging: the ops have all of it.
            return Ok(!self.is_born(id));
        };
        if born_since.is_some_and(|since| !record.born.is_before(since)) {
            return Ok(true);
        }
        let Some(theirs) = theirs else { return Ok(false) };
        let node = objects.open(id)?;
        let is = objects.tree.stat(&node).on("read", id)?;
        let mut attr = true_attr(is.attr, record.side.as_deref());
        attr.mtime = record.dir_mtime.unwrap_or(attr.mtime);
        Ok(stamp(record.kind.node_type(), &attr, is.size) != theirs)
    }

    /// Stages an inode. The reply may log the object that its content goes to.
    pub fn stage_node<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        node: &StageNode,
        replay: bool,
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        let Some(state) = &node.state else {
            // Its names say the same; what was staged of it is void.
            self.state.nodes.remove(&node.id);
            return Ok(());
        };
        let object = self.object_of(objects, &node.id)?;
        if let Some(object) = &object {
            let kind = objects.known(object)?.kind;
            let same = if *object == node.id { kind == state.kind } else { kind.node_type() == state.kind.node_type() };
            if !same {
                return self.stage_other_kind(objects, node, replay, reply);
            }
            // An adopted link that leads elsewhere, or another device, cannot be changed in place.
            if kind != state.kind {
                self.release(&node.id);
            }
        }
        self.state.assign_node(node.id, state, self.end);
        if matches!(state.kind, NodeKind::Regular) {
            let object = self.object_of(objects, &node.id)?;
            self.begin_content(objects, &node.id, object.is_some(), state.content, state.size, replay, reply)?;
        }
        self.nodes_pace.keep(&mut self.state.nodes);
        self.files_pace.keep(&mut self.files);
        Ok(())
    }

    /// The inode of a file that was brought.
    pub(super) fn assign_brought(&mut self, node: &StageNode) {
        if let Some(state) = &node.state {
            self.state.assign_node(node.id, state, self.end);
        }
    }

    fn stage_other_kind<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        node: &StageNode,
        replay: bool,
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        if !self.adopted.contains_key(&node.id) {
            return Err(ApplyError::protocol(node.id, "the inode has another kind on the replica"));
        }
        self.release(&node.id);
        self.stage_node(objects, node, replay, reply)
    }

    /// An adoption is undone.
    fn release(&mut self, id: &InodeId) -> Option<InodeId> {
        let old = self.adopted.remove(id)?;
        self.claimed.remove(&old);
        Some(old)
    }

    /// An inode that was adopted by another id turns up under its own: it gets its object back, and the other one a copy.
    fn give_back<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        old: &InodeId,
        replay: bool,
    ) -> Result<(), ApplyError> {
        let Some(new) = self.claimed.get(old).copied() else { return Ok(()) };
        if self.files.contains_key(&new) {
            self.detach_content(objects, &new, old, replay)?;
        }
        // Last: until the copy is whole, another attempt must find that it is needed.
        self.release(&new);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn begin_content<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        id: &InodeId,
        has_object: bool,
        content: Content,
        size: u64,
        replay: bool,
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        let round = self.round;
        let born = self.is_born_by_ops(id);
        let file = self.files.entry(*id).or_default();
        file.dressed = false;
        let again = matches!(&file.object, Some((_, at)) if *at == round);
        if !has_object && content == Content::Whole && (file.object.is_none() && !born || again) {
            if !replay {
                self.begin_object(objects, id, size, round, reply)?;
            }
            return Ok(());
        }
        if !has_object && content == Content::Unchanged && file.object.is_none() && !born {
            // The writer may not read it, and there is nothing here: an empty file stands for it until it may.
            if !replay {
                self.begin_object(objects, id, 0, round, reply)?;
            }
            return Ok(());
        }
        if !replay && content != Content::Unchanged {
            let beside = objects.salvage_beside(id, file.object.is_some())?;
            if beside || file.salvage().beside {
                file.salvage_mut().beside = beside;
            }
        }
        file.retain_rounds(|of| of != round);
        file.rounds_mut().push(RoundContent {
            round,
            whole: content == Content::Whole,
            size,
            in_order: true,
            extents: Vec::new(),
        });
        Ok(())
    }

    /// Whether an op of an earlier round made the file, so that it has an object only at publish.
    fn is_born_by_ops(&self, id: &InodeId) -> bool {
        self.base.nodes.get(id).is_some_and(|node| node.birth)
    }

    /// The log says which object a staged file has (replay).
    pub fn note_object(&mut self, id: &InodeId, identity: ObjectIdentity, round: u64) {
        let file = self.files.entry(*id).or_default();
        file.object = Some((identity, round));
        file.retain_rounds(|of| of > round);
    }

    /// The log says where content lies (replay).
    pub fn note_extent(&mut self, id: &InodeId, extent: Extent) -> Result<(), ApplyError> {
        let round = self.round;
        let rare = self.files.get_mut(id).and_then(|file| file.rare.as_deref_mut());
        let content = rare.and_then(|rare| rare.rounds.iter_mut().find(|of| of.round == round));
        let content = content.ok_or_else(|| ApplyError::protocol(id, "content before its inode"))?;
        content.push(extent);
        Ok(())
    }
}
