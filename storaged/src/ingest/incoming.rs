//! Messages of a writer, checked once: what passes here is in bounds, and its ops hash to the chain that the sender claims.

use bytes::Bytes;
use tandem_proto::{
    chain::Chain,
    convert,
    ids::Uuid,
    limits::{ATTACH_RUNS_MAX, BATCH_MAX_COPIES, BATCH_MAX_OPS, COPY_MAX},
    op::{Change, Op},
    pb,
    position::{Epoch, Position, Seq},
    protocol::{self, Spoken},
    stage::{Stage, StageData, StageDir, StageNode, StageRecipe},
    verify::{Compared, ITEMS_MAX},
    volume::VolumeName,
};

use super::refusal::{Reason, Refusal};
use crate::verify::Check;

/// Longest client name that is kept; it is for messages only.
const CLIENT_NAME_MAX: usize = 512;

/// A claim of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Of the client's state directory.
    pub client_id: Uuid,
    /// For messages.
    pub client_name: String,
    /// The version that both sides speak.
    pub protocol: u32,
    /// Of one run of mountd.
    pub run_id: Uuid,
    /// The epoch that this run has; `None`: open the next one.
    pub epoch: Option<Epoch>,
    /// Expected volume and replica.
    pub volume_id: Option<Uuid>,
    /// See `volume_id`.
    pub replica_id: Option<Uuid>,
    /// Fence another client that holds the volume.
    pub takeover: bool,
    /// The same, but only if that one is not connected.
    pub succeed: bool,
    /// The state that the folder holds, if the claim is only good for it.
    pub have: Option<Position>,
    /// Runs of this client that may have opened the current epoch; empty: not checked.
    pub runs: Vec<Uuid>,
    /// It understands [`pb::Damaged`].
    pub hears_damage: bool,
}

impl AttachRequest {
    /// Checks an attach message; also which volume it is about, and whether it may be made.
    pub fn check(attach: pb::Attach) -> Result<(VolumeName, bool, AttachRequest), Refusal> {
        let protocol = protocol::choose(Spoken::OURS, Spoken::of_wire(attach.protocol, attach.protocol_oldest))
            .map_err(|error| {
                Refusal::new(Reason::Protocol, error.to_string()).of(error.storage.newest, error.mount.newest)
            })?;
        let volume: VolumeName =
            attach.volume.parse().map_err(|error| Refusal::new(Reason::BadRequest, format!("{error}")))?;
        let expected = |field, id: &[u8]| if id.is_empty() { Ok(None) } else { convert::uuid(field, id).map(Some) };
        if attach.client_name.len() > CLIENT_NAME_MAX {
            return Err(Refusal::new(Reason::BadRequest, "attach.client_name: longer than 512 bytes"));
        }
        if attach.runs.len() > ATTACH_RUNS_MAX {
            let message = format!("attach.runs: {} runs; {ATTACH_RUNS_MAX} are allowed", attach.runs.len());
            return Err(Refusal::new(Reason::BadRequest, message));
        }
        let runs = attach.runs.iter().map(|run| convert::uuid("attach.runs", run)).collect::<Result<_, _>>()?;
        let request = AttachRequest {
            client_id: convert::uuid("attach.client_id", &attach.client_id)?,
            client_name: attach.client_name,
            protocol,
            run_id: convert::uuid("attach.run_id", &attach.run_id)?,
            epoch: (attach.epoch != 0).then_some(Epoch(attach.epoch)),
            volume_id: expected("attach.volume_id", &attach.volume_id)?,
            replica_id: expected("attach.replica_id", &attach.replica_id)?,
            takeover: attach.takeover,
            succeed: attach.succeed,
            have: attach.have.as_ref().map(Position::try_from).transpose()?,
            runs,
            hears_damage: attach.hears_damage,
        };
        Ok((volume, attach.create, request))
    }
}

/// Ops whose chain was recomputed: nothing flipped on the way, and the sender's claim about their chain is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedBatch {
    /// Of all ops.
    pub epoch: Epoch,
    /// Chain before the first op, as the sender claims.
    pub chain_before: Chain,
    /// At least one, dense.
    pub ops: Vec<Op>,
    /// The chain after each op.
    pub chains: Vec<Chain>,
}

impl CheckedBatch {
    /// The first op's seq.
    pub fn first(&self) -> Seq {
        self.ops[0].seq
    }

    /// The last op's seq.
    pub fn last(&self) -> Seq {
        self.ops[self.ops.len() - 1].seq
    }

    /// Recomputes the chain and converts the ops.
    pub fn check(batch: pb::Batch) -> Result<CheckedBatch, Refusal> {
        let bad = |message: String| Refusal::new(Reason::BadRequest, message);
        if batch.ops.is_empty() || batch.ops.len() > BATCH_MAX_OPS {
            return Err(bad(format!("batch.ops: {} ops; 1 to {BATCH_MAX_OPS} are allowed", batch.ops.len())));
        }
        let first = convert::first_seq("batch.first_seq", batch.first_seq)?;
        let chain_before = convert::chain("batch.chain_before", &batch.chain_before)?;
        let claimed = convert::chain("batch.chain_after", &batch.chain_after)?;
        let mut chain = chain_before;
        let mut scratch = Vec::new();
        let mut chains = Vec::with_capacity(batch.ops.len());
        let mut ops = Vec::with_capacity(batch.ops.len());
        for (at, op) in batch.ops.into_iter().enumerate() {
            let seq = first.plus(at as u64);
            chain = convert::chain_after(&chain, seq, &op, &mut scratch);
            chains.push(chain);
            ops.push(convert::op(seq, op)?);
        }
        check_copies(&ops).map_err(bad)?;
        if chain != claimed {
            let message = format!("the ops up to seq {} are not those that were sent: their chain differs", ops.len());
            return Err(Refusal::new(Reason::Diverged, message)
                .of(format!("{claimed:?}"), format!("{chain:?}"))
                .retry());
        }
        Ok(CheckedBatch { epoch: Epoch(batch.epoch), chain_before, ops, chains })
    }

    /// Takes what follows the first `at` ops away; `None`: there is nothing.
    pub fn split_off(&mut self, at: usize) -> Option<CheckedBatch> {
        if at == 0 || at >= self.ops.len() {
            return None;
        }
        let (ops, chains) = (self.ops.split_off(at), self.chains.split_off(at));
        Some(CheckedBatch { epoch: self.epoch, chain_before: self.chains[at - 1], ops, chains })
    }

    /// Puts back what [`Self::split_off`] took.
    pub fn append(&mut self, rest: CheckedBatch) {
        self.ops.extend(rest.ops);
        self.chains.extend(rest.chains);
    }
}

/// What copies may ask for: one op of them becomes one record of the log, which has a bound.
fn check_copies(ops: &[Op]) -> Result<(), String> {
    let bytes = |change: &Change| match change {
        Change::Copy { len, .. } => *len,
        other => other.data_len() as u64,
    };
    let (mut copies, made) = (0, |change: &Change| matches!(change, Change::Copy { data: Some(_), .. }));
    for op in ops.iter().filter(|op| op.copies()) {
        copies += 1;
        if op.changes.iter().any(made) {
            return Err(format!("op {}: a copy comes without bytes", op.seq));
        }
        let asked = op.changes.iter().map(bytes).fold(0, u64::saturating_add);
        if asked > COPY_MAX {
            return Err(format!("op {}: {asked} bytes are copied; at most {COPY_MAX} are allowed in one op", op.seq));
        }
    }
    if copies > BATCH_MAX_COPIES {
        return Err(format!("{copies} copies in one batch; at most {BATCH_MAX_COPIES} are allowed"));
    }
    Ok(())
}

/// A message of an attached writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Ops.
    Batch(CheckedBatch),
    /// A round begins.
    Begin {
        /// From 1.
        round: u64,
        /// Everything is compared.
        full: bool,
        /// Ops up to here are in the state.
        s0: Position,
    },
    /// State.
    Stage(Stage),
    /// A new regular file whose content a copy has brought already. Never from outside: see `copies`.
    Bring {
        /// What it is to be.
        node: StageNode,
        /// Its name in the area of incoming files.
        name: Bytes,
    },
    /// Asks for an answer when everything before is answered.
    Barrier(u64),
    /// Staging becomes the replica's state.
    Publish {
        /// The round that ends.
        round: u64,
        /// Of the last op.
        position: Position,
    },
    /// What the writer wants compared at this place.
    Check(Check),
    /// The writer leaves.
    Detach,
}

impl Incoming {
    /// Checks a message; also the session that it names.
    pub fn check(message: pb::ClientMessage) -> Result<(u64, Incoming), Refusal> {
        use pb::client_message::Body;
        let bad = |message: &str| Err(Refusal::new(Reason::BadRequest, message));
        Ok(match message.body {
            None => return bad("a message of an unknown kind; the mount may be newer: upgrade the storage daemon"),
            Some(Body::Attach(_)) => return bad("a second attach on one stream"),
            Some(Body::Batch(batch)) => (batch.session, Incoming::Batch(CheckedBatch::check(batch)?)),
            Some(Body::Begin(begin)) => {
                if begin.round == 0 {
                    return bad("begin.round: rounds count from 1");
                }
                let s0 = convert::position("begin.s0", &begin.s0)?;
                (begin.session, Incoming::Begin { round: begin.round, full: begin.full, s0 })
            }
            Some(Body::StageDir(dir)) => (dir.session, Incoming::Stage(Stage::Dir(StageDir::try_from(dir)?))),
            Some(Body::StageNode(node)) => (node.session, Incoming::Stage(Stage::Node(StageNode::try_from(node)?))),
            Some(Body::StageRecipe(recipe)) => {
                (recipe.session, Incoming::Stage(Stage::Recipe(StageRecipe::try_from(recipe)?)))
            }
            Some(Body::StageData(data)) => (data.session, Incoming::Stage(Stage::Data(StageData::try_from(data)?))),
            Some(Body::Barrier(barrier)) => (barrier.session, Incoming::Barrier(barrier.token)),
            Some(Body::Publish(publish)) => {
                let position = convert::position("publish.position", &publish.position)?;
                (publish.session, Incoming::Publish { round: publish.round, position })
            }
            Some(Body::Verify(check)) => (check.session, Incoming::Check(checked(check)?)),
            Some(Body::Closed(_)) => return bad("a file that was closed: this storage daemon did not ask for that"),
            Some(Body::Packed(_)) => return bad("a packed message that was not unpacked"),
            Some(Body::Detach(detach)) => (detach.session, Incoming::Detach),
        })
    }
}

fn checked(check: pb::VerifyCheck) -> Result<Check, Refusal> {
    if check.items.is_empty() || check.items.len() > ITEMS_MAX {
        let message = format!("verify.items: {} items; 1 to {ITEMS_MAX} are allowed", check.items.len());
        return Err(Refusal::new(Reason::BadRequest, message));
    }
    let items = check.items.into_iter().map(Compared::try_from).collect::<Result<_, _>>()?;
    let pb::VerifyCheck { session, token, seq, confirm, .. } = check;
    Ok(Check { session, token, seq, items, confirm })
}
