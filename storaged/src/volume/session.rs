//! What a volume does with its writer: attach, messages, answers.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tandem_proto::{
    limits::{FEATURE_CLOSED, FEATURE_COPIES, FEATURE_COPY_RUNS, FEATURE_GROUPS, FEATURE_PACKED},
    pb::{self, server_message::Body},
    position::Position,
    stage::{Stage, StageNode},
};

use super::core::{Carries, Core, OpRun, Pending, Session, Stuck};
use crate::{
    apply::{ApplyError, Record, STAGED_WRITE_BACK},
    ingest::{
        incoming::{AttachRequest, CheckedBatch, Incoming},
        outbox::Outbox,
        receiver::{AttachDecision, BatchDecision, Phase},
        refusal::{Reason, Refusal},
    },
    log::{codec, disk::Disk},
    tree::ReplicaTree,
};

/// Staged bytes of small files after which the disk begins to take them: so the sync at the end, which everybody waits for, finds little to do.
const STAGED_AHEAD_BYTES: u64 = 16 << 20;

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Whether so much was staged that the disk should begin with it now. Asked once.
    pub fn wants_staged_ahead(&mut self) -> bool {
        let wants = self.staged_behind >= STAGED_AHEAD_BYTES;
        if wants {
            self.staged_behind = 0;
        }
        wants
    }

    /// Claims the volume. On success the answer is in the outbox, and the number of the new session is returned; older sessions
    /// have ended before the position was read.
    pub fn attach(
        &mut self,
        request: &AttachRequest,
        outbox: Arc<Outbox>,
        now: Instant,
        unix_ns: i64,
    ) -> Result<u64, Refusal> {
        if self.damaged.is_some() {
            return Err(self.damaged_refusal());
        }
        self.check_identity(request)?;
        // Decided before anybody is disturbed, and again below: ending a session may change what is decided.
        self.receiver.handle_attach(request)?;
        self.flush(now);
        if let Some(fault) = self.faults.iter().find(|fault| matches!(fault.stuck, Stuck::Log | Stuck::Publish)) {
            return Err(Refusal::unavailable(format!("the replica cannot go on for now: {}", fault.message)));
        }
        if self.publishing.is_some() {
            return Err(Refusal::unavailable("the replica is being brought to the state that was published"));
        }
        match self.receiver.handle_attach(request)? {
            AttachDecision::Resume => {
                if request.epoch.is_none() {
                    self.check_state(request)?;
                }
                let message = "a newer session of the same mount took its place";
                self.end_session(Some(Refusal::new(Reason::StaleSession, message).retry()));
                self.drop_staging(now)?;
            }
            AttachDecision::Open { position, writer } => {
                self.check_state(request)?;
                let record = Record::Epoch { position, writer: writer.clone() };
                let dropped = self.drop_staging(now);
                let opened = dropped
                    .and_then(|()| self.append_now(&record).map_err(|error| Refusal::unavailable(error.to_string())));
                if let Err(refusal) = opened {
                    // Nobody is fenced by an epoch that is not durable; but the session may have lost its staging.
                    self.end_session(Some(refusal.clone()));
                    return Err(refusal);
                }
                let since = tandem_runtime::when::utc(unix_ns);
                let message = format!("{} opened a newer epoch of the volume, {since}", request.client_name);
                self.end_session(Some(Refusal::new(Reason::Fenced, message)));
                self.receiver.epoch_opened(position, writer);
                self.durable = position;
                self.attached_ns = unix_ns;
                self.receiver.note_since(unix_ns);
                self.changed_at = Some(now);
                tracing::info!(epoch = %position.epoch, client = request.client_name, "epoch opened");
            }
        }
        let number = self.receiver.begin_session();
        self.staged = 0;
        let answer = self.attached(number, request.protocol);
        outbox.send(Body::Attached(answer));
        self.session = Some(Session { number, outbox, acked: pb::Ack::default(), hears_damage: request.hears_damage });
        if let Some(fault) = self.faults.first() {
            self.send(Body::Fault(pb::Fault { message: fault.message.to_string() }));
        }
        tracing::info!(session = number, client = request.client_name, position = %self.durable, "attached");
        Ok(number)
    }

    fn attached(&self, session: u64, protocol: u32) -> pb::Attached {
        let tip = self.receiver.tip();
        let published = self.published();
        let closed = if self.behind.hooks.is_some() { FEATURE_CLOSED } else { 0 };
        pb::Attached {
            session,
            epoch: tip.epoch.0,
            volume_id: bytes::Bytes::copy_from_slice(&self.identity.volume_id.0),
            replica_id: bytes::Bytes::copy_from_slice(&self.identity.replica_id.0),
            position: Some((&tip).into()),
            applied: if published.epoch == tip.epoch { self.replica.applied().seq.0 } else { 0 },
            empty: self.receiver.is_empty(),
            published: Some((&published).into()),
            staged: self.replica.salvaged_files() > 0,
            verifies: true,
            protocol,
            features: FEATURE_GROUPS | FEATURE_COPIES | FEATURE_PACKED | FEATURE_COPY_RUNS | closed,
        }
    }

    /// The state that the replica durably holds; with ops that wait for apply.
    pub fn published(&self) -> Position {
        match self.receiver.phase() {
            Phase::Live | Phase::Staging { live: true, .. } => self.receiver.tip(),
            Phase::Opened | Phase::Staging { live: false, .. } => {
                self.backlog.end().unwrap_or_else(|| self.replica.applied())
            }
        }
    }

    /// A claim that is only good for one state of the replica is refused if it holds another.
    fn check_state(&self, request: &AttachRequest) -> Result<(), Refusal> {
        let (Some(have), found) = (request.have, self.published()) else { return Ok(()) };
        if have == found {
            return Ok(());
        }
        let by = self.receiver.writer().map_or("another writer", |writer| &writer.name);
        let message = format!(
            "the folder holds the state of position {have}, and the replica is at {found}: {by} wrote meanwhile. Empty the folder and \
             mount with -o init=pull, or use -o init=push if the folder is meant to replace what the replica holds (which is kept in its \
             history)"
        );
        Err(Refusal::new(Reason::Moved, message).of(have, found))
    }

    fn check_identity(&self, request: &AttachRequest) -> Result<(), Refusal> {
        let checks = [
            ("volume", request.volume_id, self.identity.volume_id),
            ("replica", request.replica_id, self.identity.replica_id),
        ];
        for (what, expected, found) in checks {
            if let Some(expected) = expected
                && expected != found
            {
                if let Some(why) = &self.unproven {
                    let message = format!(
                        "{why}. What this folder relied on may be missing, so both must be compared in full: unmount, then mount \
                         with -o init=push (the replica becomes equal to this folder)"
                    );
                    return Err(Refusal::new(Reason::OtherVolume, message).of(expected, found));
                }
                let message = format!(
                    "this is another {what} than the one this folder was synced to: it was made anew, or the storage daemon was \
                     replaced. Nothing was changed. If it is the right one, mount with -o init=push or -o init=pull"
                );
                return Err(Refusal::new(Reason::OtherVolume, message).of(expected, found));
            }
        }
        Ok(())
    }

    /// Takes one message of a session. Call it only while [`Core::accepts`].
    pub fn handle(&mut self, session: u64, message: Incoming, now: Instant) {
        if self.session.as_ref().is_none_or(|current| current.number != session) {
            // Late bytes of a session that has ended; its stream was told why.
            return;
        }
        if let Err(refusal) = self.take(session, message, now) {
            // A full volume is asked again and again; once is enough for the log.
            if refusal.reason == Reason::Quota && std::mem::replace(&mut self.quota.told, true) {
                tracing::debug!(session, %refusal, "refused");
            } else {
                tracing::warn!(session, reason = ?refusal.reason, %refusal, "refused");
            }
            self.end_session(Some(refusal));
        }
    }

    fn take(&mut self, session: u64, message: Incoming, now: Instant) -> Result<(), Refusal> {
        let grows = matches!(
            message,
            Incoming::Batch(_) | Incoming::Stage(_) | Incoming::Bring { .. } | Incoming::Begin { .. }
        );
        if let (true, Err(refusal)) = (grows, self.check_staging_fits()) {
            self.last_error = Arc::from(refusal.message.as_str());
            self.end_session(Some(refusal.clone()));
            self.drop_staging(now)?;
            return Err(refusal);
        }
        let (message, rest) = self.up_to_copy(message);
        self.take_part(session, message, now)?;
        self.keep_rest(rest);
        Ok(())
    }

    fn take_part(&mut self, session: u64, message: Incoming, now: Instant) -> Result<(), Refusal> {
        let Some(message) = self.check_quota(message, now)? else { return Ok(()) };
        match message {
            Incoming::Batch(batch) => self.take_batch(session, batch, now),
            Incoming::Begin { round, full, s0 } => self.take_begin(session, round, full, s0, now),
            Incoming::Stage(stage) => self.take_stage(session, stage, now),
            Incoming::Bring { node, name } => self.take_brought(session, node, name, now),
            Incoming::Barrier(token) => {
                self.receiver.check_session(session)?;
                self.send(Body::Barrier(pb::BarrierReached { token }));
                Ok(())
            }
            Incoming::Publish { round, position } => self.take_publish(session, round, position, now),
            Incoming::Check(check) => self.take_check(check),
            Incoming::Detach => {
                self.flush(now);
                self.end_session(None);
                tracing::info!(session, position = %self.durable, "the client left");
                Ok(())
            }
        }
    }

    fn take_batch(&mut self, session: u64, batch: CheckedBatch, now: Instant) -> Result<(), Refusal> {
        let Some(batch) = self.make_copies(batch, now)? else { return Ok(()) };
        let BatchDecision::Accept { skip, staged } = self.receiver.handle_batch(session, &batch)?;
        let end = self.receiver.accepted_tip();
        let CheckedBatch { mut ops, mut chains, .. } = batch;
        ops.drain(..skip);
        chains.drain(..skip);
        if ops.is_empty() {
            // Known ones: the acknowledgement says so.
            self.send_ack(true);
            return Ok(());
        }
        let record = if staged { Record::StagedOps { ops, end } } else { Record::Ops { ops, end } };
        let encoded = codec::encode(&record);
        let (Record::StagedOps { ops, end } | Record::Ops { ops, end }) = record else { return Ok(()) };
        let Some((kind, payload)) = encoded else { return Ok(()) };
        let carries = if staged {
            self.replica.stage_ops(&ops, end).map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
            Carries::StagedOps(end)
        } else {
            let bytes = payload.len();
            Carries::Ops(OpRun { ops, chains, end, bytes })
        };
        self.push(Pending { kind, payload, carries });
        self.urgent = true;
        Ok(())
    }

    fn push(&mut self, pending: Pending) {
        self.pending_bytes += pending.payload.len();
        self.pending.push(pending);
    }

    fn take_begin(&mut self, session: u64, round: u64, full: bool, s0: Position, now: Instant) -> Result<(), Refusal> {
        if let Some(why) = self.unproven.as_ref().filter(|_| round == 1 && !full) {
            let message = format!("{why}: it must be compared in full, mount with -o init=push");
            return Err(Refusal::new(Reason::Damaged, message));
        }
        // What came before belongs before it: flushed, and applied or staged.
        if !self.settle(now) {
            self.held = Some(Incoming::Begin { round, full, s0 });
            return Ok(());
        }
        self.receiver.handle_begin(session, round, &s0)?;
        let begun = self.replica.stage_begin(round, full, s0);
        let record = match begun {
            Ok(record) => record,
            Err(error) => {
                // The receiver is told again by the retry; a staging that failed to begin is none.
                return self.stage_failed(error, Incoming::Begin { round, full, s0 }, now);
            }
        };
        let at = match self.append_now(&record) {
            Ok(at) => at,
            Err(error) => {
                // Without its record there is no staging. What cannot be dropped now is dropped by the next one.
                let _ = self.replica.stage_drop();
                return Err(Refusal::unavailable(error.to_string()));
            }
        };
        if round == 1 {
            self.staging_start = Some(at);
            self.quota.staging_ended(false);
        }
        self.staged = s0.seq.0;
        self.changed_at = Some(now);
        Ok(())
    }

    fn take_stage(&mut self, session: u64, stage: Stage, now: Instant) -> Result<(), Refusal> {
        self.receiver.handle_stage(session)?;
        let id = match &stage {
            Stage::Recipe(recipe) => Some(recipe.id),
            Stage::Dir(_) | Stage::Node(_) | Stage::Data(_) => None,
        };
        let small = match &stage {
            // What follows in a file is brought to the disk as it comes.
            Stage::Data(data) if data.offset < STAGED_WRITE_BACK => data.data.len() as u64,
            _ => 0,
        };
        let reply = match self.replica.stage(stage.clone(), self.behind.chunks()) {
            Ok(reply) => reply,
            Err(error) => return self.stage_failed(error, Incoming::Stage(stage), now),
        };
        self.push_staged(&reply.log);
        self.staged_behind += small;
        let wire = |id: &tandem_proto::InodeId| bytes::Bytes::copy_from_slice(id.as_bytes());
        if !reply.need_nodes.is_empty() {
            self.send(Body::NeedNodes(pb::NeedNodes { ids: reply.need_nodes.iter().map(wire).collect() }));
        }
        if let Some(id) = id.filter(|_| !reply.need_pieces.is_empty()) {
            let mut pieces = tandem_proto::convert::piece_messages(&reply.need_pieces);
            pieces.iter_mut().for_each(|piece| piece.digest.clear());
            self.send(Body::NeedPieces(pb::NeedPieces { id: wire(&id), pieces }));
        }
        Ok(())
    }

    fn push_staged(&mut self, records: &[Record]) {
        for record in records {
            if let Some((kind, payload)) = codec::encode(record) {
                self.push(Pending { kind, payload, carries: Carries::Nothing });
            }
        }
    }

    fn take_brought(&mut self, session: u64, node: StageNode, name: Bytes, now: Instant) -> Result<(), Refusal> {
        self.receiver.handle_stage(session)?;
        match self.replica.stage_brought(&node, &name) {
            Ok(reply) => self.push_staged(&reply.log),
            Err(error) => return self.stage_failed(error, Incoming::Bring { node, name }, now),
        }
        Ok(())
    }

    /// Staging could not take a message: a full disk is waited for, nonsense is refused.
    fn stage_failed(&mut self, error: ApplyError, message: Incoming, now: Instant) -> Result<(), Refusal> {
        match error {
            ApplyError::Damaged { .. } => self.set_damaged(&error),
            ApplyError::Protocol { .. } => return Err(Refusal::new(Reason::BadRequest, error.to_string())),
            ApplyError::Sync { .. } => {
                if let Incoming::Begin { round, .. } = &message {
                    // There is no staging yet that could have lost anything.
                    self.receiver.begin_failed(*round);
                    self.held = Some(message);
                }
                self.sync_failed(&error, now);
            }
            _ => {
                self.make_room(&error, now);
                if let Incoming::Begin { round, .. } = &message {
                    self.receiver.begin_failed(*round);
                }
                self.held = Some(message);
                self.set_fault(Stuck::Stage, &error, now);
            }
        }
        Ok(())
    }

    fn take_publish(&mut self, session: u64, round: u64, position: Position, now: Instant) -> Result<(), Refusal> {
        self.receiver.handle_publish(session, round, &position)?;
        if !self.settle(now) {
            self.held = Some(Incoming::Publish { round, position });
            return Ok(());
        }
        if let Err(error) = self.replica.stage_sync() {
            return self.stage_failed(error, Incoming::Publish { round, position }, now);
        }
        let record = self.replica.publish_record(position);
        if let Err(error) = self.append_now(&record) {
            self.held = Some(Incoming::Publish { round, position });
            self.set_fault(Stuck::Stage, &error, now);
            return Ok(());
        }
        self.receiver.published(position);
        self.quota.staging_ended(true);
        self.durable = position;
        self.staged = 0;
        self.publishing = Some(position);
        self.send(Body::Published(pb::Published { position: Some((&position).into()) }));
        self.send_ack(true);
        self.finish_publish(now);
        Ok(())
    }

    /// The session's stream broke.
    pub fn closed(&mut self, session: u64) {
        if self.session.as_ref().is_some_and(|current| current.number == session) {
            tracing::info!(session, position = %self.durable, "the connection to the client ended");
            self.end_session(None);
        }
    }

    /// Gives an unfinished staging up.
    fn drop_staging(&mut self, now: Instant) -> Result<(), Refusal> {
        if self.staging_start.is_none() {
            return Ok(());
        }
        self.flush(now);
        self.replica.stage_drop().map_err(|error| Refusal::unavailable(error.to_string()))?;
        self.append_now(&Record::StageDropped).map_err(|error| Refusal::unavailable(error.to_string()))?;
        self.staging_start = None;
        self.quota.staging_ended(false);
        Ok(())
    }

    /// Tells the writer its watermarks, if they changed or if it asks again.
    ///
    /// Between a publish and its tree `applied` stays what was said last, and if that is the published seq already, nothing is said: the
    /// writer would take the tree for being there.
    pub(super) fn send_ack(&mut self, again: bool) {
        self.ack_due = None;
        let mut ack = self.watermarks();
        if let (Some(position), Some(session)) = (self.publishing, &self.session) {
            if session.acked.applied >= position.seq.0 {
                return;
            }
            ack.applied = session.acked.applied;
        }
        if let Some(session) = &mut self.session
            && (again || session.acked != ack)
        {
            session.acked = ack;
            session.outbox.send(Body::Ack(ack));
        }
    }

    fn watermarks(&self) -> pb::Ack {
        let epoch = self.durable.epoch;
        let applied = self.replica.applied();
        let staging = matches!(self.receiver.phase(), Phase::Staging { .. });
        pb::Ack {
            received: self.receiver.accepted_tip().seq.0,
            durable: self.durable.seq.0,
            applied: if applied.epoch == epoch { applied.seq.0 } else { 0 },
            staged: if staging { self.staged } else { 0 },
        }
    }
}
