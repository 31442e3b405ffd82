//! Recovery: brings tree and catalog from the checkpoint to the end of the log.
//!
//! The records after a checkpoint are, by construction, `[Ops…]` then at most one staging that was published and is not
//! checkpointed, then `[Ops…]`: a staging begins with a checkpoint and ends with one. So there are up to three steps, each of
//! which is complete before the next begins, and the tree can be ahead of the catalog in one of them only.

use std::collections::BTreeSet;

use tandem_proto::{
    ids::InodeId,
    op::Op,
    position::{Epoch, Position},
    stage::Stage,
};

use super::{
    StageReply,
    changeset::Changeset,
    error::ApplyError,
    objects::Objects,
    record::{Record, RecordSource},
    staging::{Extent, Staging},
};
use crate::tree::ReplicaTree;

/// Where recovery is.
pub struct Progress {
    /// Tree and catalog are at this position.
    pub applied: Position,
    /// Serial of the last publish in it.
    pub serial: u64,
    /// Highest serial of a staging in the log.
    pub begun: u64,
    /// Files whose data may have changed.
    pub changed: BTreeSet<InodeId>,
    /// A staging was found that nothing published.
    pub staging_dropped: bool,
}

/// What follows in the log.
enum Next {
    /// Ops up to here.
    Ops(Changeset, Position),
    /// A publish, of this staging.
    Publish(Box<Staging>, Position),
    /// Nothing but perhaps an unfinished staging.
    End { staging: bool },
}

fn is_new(progress: &Progress, epoch: Epoch, op: &Op) -> bool {
    (epoch, op.seq) > (progress.applied.epoch, progress.applied.seq)
}

impl<T: ReplicaTree> Objects<T> {
    /// Redoes everything after the progress. The caller makes a checkpoint of each step that `checkpoint` is called for.
    pub fn recover(
        &mut self,
        log: &dyn RecordSource,
        progress: &mut Progress,
        checkpoint: &mut dyn FnMut(&mut Self, Position, u64) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        self.again = true;
        loop {
            match self.next(log, progress)? {
                Next::End { staging } => {
                    self.again = false;
                    progress.staging_dropped = staging;
                    return Ok(());
                }
                Next::Ops(net, end) => {
                    self.redo(&net, end)?;
                    self.redo_ops_data(log, progress, end)?;
                    self.assign_metadata(&net, &|_| false)?;
                    progress.applied = end;
                }
                Next::Publish(mut staging, position) => {
                    let published = self.publish(&mut staging, position, log, true)?;
                    progress.changed.extend(published.changed);
                    progress.applied = position;
                    progress.serial = staging.serial;
                }
            }
            checkpoint(self, progress.applied, progress.serial)?;
        }
    }

    fn next(&mut self, log: &dyn RecordSource, progress: &mut Progress) -> Result<Next, ApplyError> {
        let mut ops: Option<(Changeset, Position)> = None;
        let mut staging: Option<Box<Staging>> = None;
        for record in log.records()? {
            match record? {
                Record::Ops { ops: batch, end } => {
                    for op in batch.iter().filter(|op| is_new(progress, end.epoch, op)) {
                        let (net, upto) = ops.get_or_insert_with(Default::default);
                        net.assign_op(op, Position { seq: op.seq, ..end });
                        *upto = end;
                    }
                }
                Record::StageBegin { serial, .. } if serial <= progress.serial => staging = None,
                Record::StageBegin { serial, round, full, s0 } => {
                    progress.begun = progress.begun.max(serial);
                    // Ops before a staging were checkpointed when it began, unless nothing was staged yet.
                    if ops.is_some() {
                        break;
                    }
                    match &mut staging {
                        Some(running) if running.serial == serial && round > 1 => {
                            running.next_round(round, full, s0)?
                        }
                        _ => staging = Some(Box::new(Staging::new(serial, full, s0))),
                    }
                }
                Record::StageDropped => staging = None,
                Record::Publish { serial, position } if serial > progress.serial => {
                    let staging = staging.filter(|staging| staging.serial == serial).ok_or_else(|| {
                        ApplyError::damaged("log", format!("publish {serial} has no staging before it"))
                    })?;
                    return Ok(Next::Publish(staging, position));
                }
                record => {
                    if let Some(staging) = &mut staging {
                        self.replay(staging, record)?;
                    }
                }
            }
        }
        Ok(match ops {
            Some((net, end)) => Next::Ops(net, end),
            None => Next::End { staging: staging.is_some() },
        })
    }

    fn replay(&mut self, staging: &mut Staging, record: Record) -> Result<(), ApplyError> {
        let mut reply = StageReply::default();
        match record {
            Record::Stage(Stage::Dir(dir)) => staging.stage_dir(self, &dir, true, &mut reply),
            Record::Stage(Stage::Node(node)) => staging.stage_node(self, &node, true, &mut reply),
            Record::StagedFile { id, identity, round } => {
                staging.note_object(&id, identity, round);
                Ok(())
            }
            Record::StagedExtent { id, offset, len, source } => {
                staging.note_extent(&id, Extent { offset, len, source })
            }
            Record::StagedOps { ops, end } => {
                staging.assign_ops(&ops, end);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn redo_ops_data(
        &mut self,
        log: &dyn RecordSource,
        progress: &mut Progress,
        upto: Position,
    ) -> Result<(), ApplyError> {
        for record in log.records()? {
            let Record::Ops { ops, end } = record? else { continue };
            for op in &ops {
                if is_new(progress, end.epoch, op) && (end.epoch, op.seq) <= (upto.epoch, upto.seq) {
                    self.redo_data(op, &mut progress.changed)?;
                }
            }
        }
        Ok(())
    }
}
