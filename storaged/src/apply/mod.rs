//! Apply: brings tree and catalog to the state that the log says.
//!
//! ```text
//!   live op ──► live.rs: one system call where that is enough ─────────────────────────┐
//!                  │ anything else                                                     ▼
//!                  ▼                                                         objects.rs: one step = one change of the
//!   changeset.rs: net assignments ──► plan.rs (pure): vacate, create, fill ──► execute.rs      tree, then of the catalog
//!        ▲                                 ▲
//!        │ the log after the checkpoint    │ probe.rs: what the tree really is, by identity
//!   recover.rs, publish.rs ────────────────┘
//!        ▲
//!   staging.rs, content.rs: the staged model of a resync
//! ```
//! **One mechanism.** A live op that has no direct form, a published staging, and the redo of the log after a crash are the same:
//! net assignments to cells, a plan from the tree as it is to the tree as it should be, then data in the order of the log, then
//! attributes (owner, extended attributes, mode, mtime), and at the very end the mtimes of directories that steps touched.
//!
//! **Identity, not names.** The catalog knows each inode's object by its file handle. After a crash the tree may be anywhere
//! between the checkpoint and the end of the log; what stands at a name is recognised, never assumed, so redo is idempotent and may
//! itself be interrupted at any point.
//!
//! **What the file system refuses** (owners for an unprivileged daemon, device nodes, some extended attributes) is kept in the
//! catalog beside the object; readers get it merged. Every other error stops apply loudly at a point from which the same call
//! goes on.
//!
//! **Checkpoint.** The tree is synced, then the catalog is committed together with the position; the log before is not needed any
//! more. A staging begins and ends with a checkpoint, so a publish is always redone from exactly the state that it was staged on.

mod changeset;
mod compact;
mod complete;
mod content;
pub mod error;
mod execute;
mod fresh;
mod handles;
mod kept;
mod litter;
mod live;
mod mend;
pub(crate) mod metadata;
mod nests;
mod objects;
mod plan;
mod probe;
mod publish;
pub mod record;
mod recover;
mod rights;
mod room;
mod salvage;
mod staging;

use std::sync::Arc;

pub(crate) use content::STAGED_WRITE_BACK;
pub use error::ApplyError;
pub(crate) use kept::{CLOSED as KEPT_CLOSED, OPEN as KEPT_OPEN, original_name};
use objects::Objects;
use parking_lot::Mutex;
pub use record::{
    ChunkSource, ExtentSource, LogError, NoChunks, ObjectIdentity, Place, Record, RecordSource, Records, Writer,
};
use recover::Progress;
pub use room::{Growth, INODE_BYTES};
use staging::Staging;
use tandem_proto::{
    chain::Chain,
    ids::InodeId,
    op::{Change, Op},
    position::Position,
    stage::{Piece, Stage, StageNode},
};

#[cfg(doc)]
use crate::tree::Area;
use crate::{catalog::Catalog, reader::ReplicaReader, tree::ReplicaTree};

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Tree and catalog are at this position.
    pub applied: Position,
    /// A staging was under way and was dropped; the writer begins a new one.
    pub staging_dropped: bool,
    /// Regular files whose content may have changed since the checkpoint, for the index.
    pub changed: Vec<InodeId>,
}

/// What a publish did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Regular files whose content may have changed.
    pub changed: Vec<InodeId>,
    /// Inodes that are gone.
    pub removed: Vec<InodeId>,
}

/// Answer to a staged message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StageReply {
    /// Inodes whose state the replica needs.
    pub need_nodes: Vec<InodeId>,
    /// Pieces of which file it needs the bytes of.
    pub need_pieces: Vec<Piece>,
    /// What must be appended to the log, in order: all that there is to log about the message, itself included.
    pub log: Vec<Record>,
}

/// One volume's tree and catalog, brought forward by its log. One thread owns it.
pub struct Replica<T: ReplicaTree> {
    objects: Objects<T>,
    /// What readers see of [`Self::applied`].
    applied: Arc<Mutex<Position>>,
    checkpoint: Position,
    serial: u64,
    /// Serial of the last staging that was begun: each has its own, also those that were dropped.
    begun: u64,
    /// A call failed in the middle: the next one must look before it plans.
    unsettled: bool,
    staging: Option<Box<Staging>>,
}

impl<T: ReplicaTree> Replica<T> {
    /// Takes a tree and its catalog. Nothing is changed before [`Self::recover`], which must come first.
    pub fn open(tree: T, catalog: Catalog) -> Result<Self, ApplyError> {
        let meta = catalog.meta()?;
        Ok(Replica {
            objects: Objects::new(tree, catalog),
            applied: Arc::new(Mutex::new(meta.position)),
            checkpoint: meta.position,
            serial: meta.serial,
            begun: meta.serial,
            unsettled: false,
            staging: None,
        })
    }

    /// The position that the durable catalog has. Records up to here are not needed any more.
    pub fn checkpoint_position(&self) -> Position {
        self.checkpoint
    }

    /// Whether nothing was ever published.
    pub fn is_empty(&self) -> bool {
        self.serial == 0 && self.applied() == Position::default()
    }

    /// Redoes everything after the checkpoint and makes a new checkpoint. An unfinished staging is dropped; its files are kept, see
    /// [`Self::salvaged_files`].
    pub fn recover(&mut self, log: &dyn RecordSource) -> Result<Recovered, ApplyError> {
        self.unsettled = true;
        self.objects.in_contents = false;
        self.objects.adopt_root()?;
        self.objects.litter.added();
        let mut progress = Progress {
            applied: self.checkpoint,
            serial: self.serial,
            begun: self.begun,
            changed: Default::default(),
            staging_dropped: false,
        };
        let (applied, reached) = (self.applied.clone(), &mut self.checkpoint);
        let redone = self.objects.recover(log, &mut progress, &mut |objects, position, serial| {
            objects.sync()?;
            objects.catalog.checkpoint_durably(position, serial)?;
            *reached = position;
            // In a redo the old position is shown until it is reached again.
            let mut applied = applied.lock();
            if applied.is_before(&position) {
                *applied = position;
            }
            Ok(())
        });
        // It looked closely already: what is not as expected now was changed from outside.
        redone.map_err(damage)?;
        if progress.serial > self.serial {
            self.objects.clear_staging()?;
        }
        self.serial = progress.serial;
        self.begun = progress.begun;
        self.staging = None;
        self.objects.keep_salvage()?;
        self.unsettled = false;
        let changed = progress.changed.into_iter().filter(|id| self.objects.catalog.has_node(id).unwrap_or(true));
        let changed = changed.collect();
        self.checkpoint()?;
        Ok(Recovered { applied: self.applied(), staging_dropped: progress.staging_dropped, changed })
    }

    /// A sync failed: goes back to the last checkpoint and redoes the log from there. A staging under way is gone, with all its bytes;
    /// unless `published`: its bytes were synced before, and the redo needs them. Until it has worked nothing else may be called.
    pub fn redo(&mut self, log: &dyn RecordSource, published: bool) -> Result<Recovered, ApplyError> {
        self.staging = None;
        if !published {
            // They can be read, but whether they are on the disk nobody knows.
            self.objects.clear_staging()?;
        }
        self.objects.forget();
        self.objects.catalog.revert()?;
        let meta = self.objects.catalog.meta()?;
        (self.checkpoint, self.serial) = (meta.position, meta.serial);
        self.recover(log)
    }

    /// Makes bytes of a copy, from the tree as it is now. Other changes are left as they are.
    pub fn make_copy(&mut self, change: &mut Change) -> Result<(), ApplyError> {
        let Change::Copy { from, from_offset, len, data, .. } = change else { return Ok(()) };
        match self.objects.read_exactly(from, *from_offset, *len)? {
            Some(bytes) => *data = Some(bytes.into()),
            None => {
                let problem = format!("it has no {len} bytes at {from_offset} that could be copied");
                return Err(ApplyError::protocol(*from, problem));
            }
        }
        Ok(())
    }

    /// Applies a live op whose record is durable. After a retryable error call it again with the same op.
    pub fn apply(&mut self, op: &Op, chain_after: Chain) -> Result<(), ApplyError> {
        let before = self.applied();
        if op.seq != before.seq.next() {
            let problem = format!("op {} after {}", op.seq, before.seq);
            return Err(ApplyError::protocol("the op stream", problem));
        }
        let position = Position { epoch: before.epoch, seq: op.seq, chain: chain_after };
        let was_unsettled = std::mem::replace(&mut self.unsettled, true);
        let mut answer = self.objects.apply_op(op, position, was_unsettled);
        if let Err(surprise) = &answer
            && !was_unsettled
            && live::is_surprise(surprise)
        {
            tracing::warn!(seq = op.seq.0, %surprise, "the tree is not as expected, looking closer");
            answer = self.objects.apply_op(op, position, true);
        }
        if let Err(error) = answer {
            // A refused op had no effect.
            self.unsettled = was_unsettled || !matches!(error, ApplyError::Protocol { .. });
            return Err(damage(error));
        }
        self.unsettled = false;
        *self.applied.lock() = position;
        Ok(())
    }

    /// Ends a batch. Readers see every op as it is applied; this only bounds memory.
    pub fn commit_batch(&mut self) -> Result<(), ApplyError> {
        Ok(self.objects.catalog.relieve()?)
    }

    /// Position of tree and catalog.
    pub fn applied(&self) -> Position {
        *self.applied.lock()
    }

    /// Begins a round; round 1 makes a checkpoint and drops an older staging. Log the returned record before anything staged.
    pub fn stage_begin(&mut self, round: u64, full: bool, s0: Position) -> Result<Record, ApplyError> {
        match &mut self.staging {
            Some(staging) if round > 1 => {
                staging.leave_fresh(&mut self.objects, None)?;
                staging.next_round(round, full, s0)?;
            }
            _ if round != 1 => return Err(ApplyError::protocol("resync", format!("round {round} is the first one"))),
            _ => {
                self.stage_drop()?;
                self.checkpoint()?;
                self.begun += 1;
                let mut staging = Box::new(Staging::new(self.begun, full, s0));
                staging.begin_nests(&self.objects)?;
                self.staging = Some(staging);
            }
        }
        Ok(Record::StageBegin { serial: self.begun, round, full, s0 })
    }

    fn staging(&mut self) -> Result<(&mut Staging, &mut Objects<T>), ApplyError> {
        let staging = self.staging.as_deref_mut();
        let staging = staging.ok_or_else(|| ApplyError::protocol("resync", "no staging was begun"))?;
        Ok((staging, &mut self.objects))
    }

    /// Stages state. Log what the reply says.
    pub fn stage(&mut self, stage: Stage, chunks: &dyn ChunkSource) -> Result<StageReply, ApplyError> {
        let (staging, objects) = self.staging()?;
        let mut reply = StageReply::default();
        let at_hand = match &stage {
            Stage::Data(data) => Some(&data.id),
            Stage::Dir(_) | Stage::Node(_) | Stage::Recipe(_) => None,
        };
        staging.leave_fresh(objects, at_hand)?;
        match stage {
            Stage::Dir(dir) => {
                staging.stage_dir(objects, &dir, false, &mut reply)?;
                reply.log.insert(0, Record::Stage(Stage::Dir(dir)));
            }
            Stage::Node(node) => {
                staging.stage_node(objects, &node, false, &mut reply)?;
                reply.log.insert(0, Record::Stage(Stage::Node(node)));
            }
            Stage::Recipe(recipe) => staging.stage_recipe(objects, &recipe, chunks, &mut reply)?,
            Stage::Data(data) => staging.stage_data(objects, &data, &mut reply)?,
        }
        Ok(reply)
    }

    /// Stages a new regular file whose content stands at a name of [`Area::Incoming`], and stays there until its publish. Log what the
    /// reply says.
    pub fn stage_brought(&mut self, node: &StageNode, name: &[u8]) -> Result<StageReply, ApplyError> {
        let (staging, objects) = self.staging()?;
        let mut reply = StageReply::default();
        staging.leave_fresh(objects, None)?;
        staging.stage_brought(objects, node, name, &mut reply)?;
        reply.log.insert(0, Record::Stage(Stage::Node(node.clone())));
        Ok(reply)
    }

    /// Stages ops; log them as [`Record::StagedOps`] first.
    pub fn stage_ops(&mut self, ops: &[Op], end: Position) -> Result<(), ApplyError> {
        let staging = self.staging()?.0;
        staging.note_op_names(ops);
        staging.assign_ops(ops, end);
        Ok(())
    }

    /// Whether devices, and bits that give rights, are in the catalog only from now on.
    pub fn deny_special(&mut self, on: bool) {
        self.objects.deny_special = on;
    }

    /// Whether they are.
    pub fn denies_special(&self) -> bool {
        self.objects.deny_special
    }

    /// From now on what loses its last name is kept in `history/`, see [`kept`].
    pub fn keep_deleted(&mut self, on: bool) {
        self.objects.keeper.on = on;
    }

    /// Closes the place where deleted files are kept if it is full, or if it is `old`. Whether one was closed since the last call.
    pub fn close_kept(&mut self, old: bool) -> bool {
        let position = self.applied();
        self.objects.close_kept(old, position)
    }

    /// Makes staged bytes durable and checks that the staging can be published. Call it before the publish record is logged.
    pub fn stage_sync(&mut self) -> Result<(), ApplyError> {
        let (staging, objects) = self.staging()?;
        staging.leave_fresh(objects, None)?;
        staging.check_complete(objects)?;
        staging.finish_content(objects)?;
        objects.sync()
    }

    /// What a publish of the staging would do to the size of the tree, but for the data of its ops.
    pub fn growth(&mut self) -> Result<Growth, ApplyError> {
        let (staging, objects) = self.staging()?;
        objects.growth(staging)
    }

    /// The record to log durably before [`Self::publish`].
    pub fn publish_record(&self, position: Position) -> Record {
        Record::Publish { serial: self.begun, position }
    }

    /// Makes the staging the replica's state and makes a checkpoint. `log` has at least the records from its `StageBegin` on.
    /// After a retryable error call it again.
    pub fn publish(&mut self, position: Position, log: &dyn RecordSource) -> Result<Published, ApplyError> {
        let probe = std::mem::replace(&mut self.unsettled, true);
        self.objects.in_contents = false;
        let (staging, objects) = self.staging()?;
        let published = match objects.publish(staging, position, log, probe) {
            Err(surprise) if !probe && live::is_surprise(&surprise) => {
                tracing::warn!(%position, %surprise, "the tree is not as expected, looking closer");
                objects.publish(staging, position, log, true)
            }
            answer => answer,
        };
        let published = published.map_err(damage)?;
        objects.sync()?;
        let serial = staging.serial;
        objects.catalog.checkpoint_durably(position, serial)?;
        self.serial = serial;
        self.checkpoint = position;
        *self.applied.lock() = position;
        self.unsettled = false;
        self.staging = None;
        // What is left over is deleted by whatever staging or recovery comes next.
        if let Err(error) = self.objects.clear_staging() {
            tracing::warn!(%error, "the staging area could not be emptied");
        }
        Ok(published)
    }

    /// Gives the staging under way up; log [`Record::StageDropped`]. No effect without one. The bytes that it held stay as salvage.
    pub fn stage_drop(&mut self) -> Result<(), ApplyError> {
        if self.staging.take().is_some() {
            self.objects.fresh = None;
            self.objects.nest = None;
            self.objects.keep_salvage()?;
        }
        Ok(())
    }

    /// Number of files that hold bytes of a staging that was not finished. The next staging takes from them what it is asked for by
    /// digest, so that nothing is sent twice; a publish ends them.
    pub fn salvaged_files(&self) -> u64 {
        self.objects.salvaged
    }

    /// Deletes salvage that the staging under way has not taken: the disk is full. Whether there was any.
    pub fn drop_salvage(&mut self) -> Result<bool, ApplyError> {
        self.objects.drop_salvage(self.staging.as_deref())
    }

    /// Makes tree and catalog durable at [`Self::applied`] and returns it. The log before it may be recycled then.
    pub fn checkpoint(&mut self) -> Result<Position, ApplyError> {
        let position = self.applied();
        if self.unsettled {
            return Err(ApplyError::Io {
                action: "make a checkpoint of",
                object: format!("position {position}"),
                source: std::io::Error::other("the op after it failed in the middle"),
            });
        }
        self.checkpoint_here()
    }

    /// Whether [`Self::checkpoint_in_need`] can work.
    pub fn can_checkpoint_in_need(&self) -> bool {
        !self.unsettled || self.objects.in_contents
    }

    /// The same on a full disk, also where the op after the position failed when only contents and attributes were missing. All its names
    /// are in tree and catalog then, nothing is parked, and a redo that begins with that op assigns the names that they have, and
    /// all of its contents once more.
    pub fn checkpoint_in_need(&mut self) -> Result<Position, ApplyError> {
        if self.can_checkpoint_in_need() { self.checkpoint_here() } else { self.checkpoint() }
    }

    fn checkpoint_here(&mut self) -> Result<Position, ApplyError> {
        let position = self.applied();
        if position != self.checkpoint || self.objects.catalog.uncommitted_rows() > 0 {
            self.objects.sync()?;
            self.objects.catalog.checkpoint_durably(position, self.serial)?;
            self.checkpoint = position;
        }
        Ok(position)
    }

    /// Whether something that was removed is still on the disk.
    pub fn has_litter(&self) -> bool {
        !self.objects.litter.is_empty()
    }

    /// Deletes up to so many objects that were removed before. What fails is left for later: nothing depends on it.
    pub fn tidy(&mut self, limit: usize) {
        if let Err(error) = self.objects.tidy(limit) {
            tracing::warn!(%error, "what was removed cannot be deleted for now");
        }
    }

    /// The tree, to bring it to the disk ahead of a checkpoint.
    pub fn tree(&self) -> T {
        self.objects.tree.clone()
    }

    /// A reader for other threads.
    pub fn reader(&self) -> ReplicaReader<T> {
        ReplicaReader::new(self.objects.tree.clone(), self.objects.catalog.clone(), self.applied.clone())
    }
}

/// An unexpected answer after a closer look is damage: trying again would not help.
fn damage(error: ApplyError) -> ApplyError {
    if !live::is_surprise(&error) {
        return error;
    }
    match error {
        ApplyError::Io { action, object, source } => {
            ApplyError::damaged(object, format!("the file system refuses to {action} it: {source}"))
        }
        other => other,
    }
}

#[cfg(test)]
mod figures;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
