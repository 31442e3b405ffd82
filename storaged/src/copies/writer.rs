//! The writer that copies into a volume: a client like a mount, within this process. What it publishes is published whole.

use std::{collections::BTreeMap, sync::Arc};

use tandem_proto::{
    Chain, convert,
    ids::{InodeId, Uuid},
    limits::{CHANGES_MAX, STAGE_ENTRIES_MAX},
    op::{AttrPatch, Change, Op, Origin},
    pb::{self, server_message::Body},
    position::{Position, Seq},
    stage::{Listing, Stage, StageDir, StageEntry, StageNode},
};
use tokio::sync::oneshot;
use tokio_stream::StreamExt as _;

use crate::{
    ingest::{
        incoming::{AttachRequest, CheckedBatch, Incoming},
        outbox::{Outbox, OutboxStream},
        refusal::{Reason, Refusal},
    },
    volume::{thread::Command, volumes::Volume},
};

/// What one publish brings.
#[derive(Default)]
pub struct Step {
    /// Inodes without content: directories, links, the root.
    pub nodes: Vec<StageNode>,
    /// New regular files with their names in the incoming area.
    pub brought: Vec<(StageNode, String)>,
    /// Names.
    pub entries: BTreeMap<InodeId, Vec<StageEntry>>,
    /// Attributes that change with it.
    pub attrs: BTreeMap<InodeId, AttrPatch>,
}

impl Step {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.brought.is_empty() && self.entries.is_empty() && self.attrs.is_empty()
    }
}

/// See the module. Dropping it ends its session.
pub struct Writer {
    volume: Arc<Volume>,
    session: u64,
    answers: OutboxStream,
    position: Position,
    /// Nothing was ever published.
    pub empty: bool,
}

fn random() -> Result<[u8; 16], Refusal> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Refusal::unavailable("no random numbers"))?;
    Ok(bytes)
}

/// An inode id that nobody else makes: mounts make theirs of file handles, which never begin like this.
pub fn new_id() -> Result<InodeId, Refusal> {
    let mut id = [0xfc; 20];
    id[4..].copy_from_slice(&random()?);
    InodeId::new(&id).ok_or_else(|| Refusal::unavailable("no id"))
}

/// The client that copies into volumes of this storage daemon: the same for every copy, so that one follows another.
fn client_of(volume: &Volume) -> Uuid {
    let mut hasher = blake3::Hasher::new_derive_key("tandemfs 2026 client of copies v1");
    hasher.update(&volume.identity.replica_id.0);
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Uuid(id)
}

impl Writer {
    /// Claims the volume, unless somebody else holds it.
    pub async fn attach(volume: Arc<Volume>, client: &str) -> Result<Writer, Refusal> {
        let request = AttachRequest {
            protocol: tandem_proto::limits::PROTOCOL_VERSION,
            client_id: client_of(&volume),
            client_name: format!("tandem cp of {client}"),
            run_id: Uuid(random()?),
            ..AttachRequest::default()
        };
        let (reply, attached) = oneshot::channel();
        let outbox = Arc::new(Outbox::default());
        let mut answers = OutboxStream(outbox.clone());
        volume.tell(Command::Attach { request: Box::new(request), outbox, reply })?;
        let stopped = || Refusal::unavailable("the volume has stopped");
        let session = attached.await.map_err(|_| stopped())??;
        let Some(Ok(pb::ServerMessage { body: Some(Body::Attached(attached)) })) = answers.next().await else {
            return Err(stopped());
        };
        let position = convert::position("attached.position", &attached.position)?;
        Ok(Writer { volume, session, answers, position, empty: attached.empty })
    }

    async fn tell(&self, message: Incoming) -> Result<(), Refusal> {
        let permit = self.volume.memory.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Refusal::unavailable("the volume has stopped"))?;
        self.volume.tell(Command::Message { session: self.session, message: Box::new(message), permit })
    }

    /// Publishes a step. `waits` hears what holds it up.
    pub async fn publish(&mut self, step: Step, waits: &mut (dyn FnMut(&str) + Send)) -> Result<(), Refusal> {
        self.tell(Incoming::Begin { round: 1, full: false, s0: self.position }).await?;
        for node in step.nodes {
            self.tell(Incoming::Stage(Stage::Node(node))).await?;
        }
        for (node, name) in step.brought {
            self.tell(Incoming::Bring { node, name: name.into() }).await?;
        }
        // After the inodes, so that none of them is asked for.
        for (dir, entries) in step.entries {
            for part in entries.chunks(STAGE_ENTRIES_MAX) {
                let entries = part.to_vec();
                let dir = StageDir { dir, listing: Listing::Partial, entries, born_since: None };
                self.tell(Incoming::Stage(Stage::Dir(dir))).await?;
            }
        }
        // At least one op, also without a change: another state has another position.
        let changes: Vec<_> = step.attrs.into_iter().map(|(id, patch)| Change::Attr { id, patch }).collect();
        let mut parts: Vec<&[Change]> = changes.chunks(CHANGES_MAX).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        for part in parts {
            let batch = self.batch(part);
            self.position = Position { seq: batch.last(), chain: batch.chains[0], ..self.position };
            self.tell(Incoming::Batch(batch)).await?;
        }
        self.tell(Incoming::Publish { round: 1, position: self.position }).await?;
        self.published(waits).await?;
        self.empty = false;
        Ok(())
    }

    fn batch(&self, changes: &[Change]) -> CheckedBatch {
        let seq: Seq = self.position.seq.next();
        let op = Op { seq, origin: Origin::default(), changes: changes.iter().cloned().collect() };
        let chain: Chain = convert::chain_after(&self.position.chain, seq, &pb::Op::from(&op), &mut Vec::new());
        CheckedBatch {
            epoch: self.position.epoch,
            chain_before: self.position.chain,
            ops: vec![op],
            chains: vec![chain],
        }
    }

    async fn published(&mut self, waits: &mut (dyn FnMut(&str) + Send)) -> Result<(), Refusal> {
        let mut published = false;
        while let Some(Ok(message)) = self.answers.next().await {
            match message.body {
                Some(Body::Published(_)) => published = true,
                // It is in the tree, too.
                Some(Body::Ack(ack)) if published && ack.applied >= self.position.seq.0 => return Ok(()),
                Some(Body::Refused(refused)) => {
                    let reason = Reason::try_from(refused.reason).unwrap_or(Reason::Unspecified);
                    return Err(Refusal::new(reason, refused.message));
                }
                Some(Body::Fault(fault)) => waits(&fault.message),
                _ => {}
            }
        }
        Err(Refusal::unavailable("the volume was taken over, or its storage daemon is stopping"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The volume's thread may have ended.
        let _ = self.volume.tell(Command::Closed { session: self.session });
    }
}
