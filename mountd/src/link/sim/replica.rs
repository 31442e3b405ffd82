//! A naive replica: keeps everything it is told and computes the state anew at each publish, by the rules of `replication.proto`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use tandem_proto::{
    Chain, Change, Digest, InodeId, Name, Op, Position, Seq, convert,
    pb::{self, client_message::Body, server_message::Body as Reply},
    stage::{Content, Listing, NodeType, StageData, StageDir, StageNode, StageRecipe},
};

use crate::link::sim::model::{Model, Node};

enum Assigned {
    Names { dir: InodeId, complete: bool, names: BTreeMap<Name, Option<InodeId>> },
    Node(StageNode),
    Data(StageData),
}

#[derive(Default)]
struct Round {
    state: Vec<Assigned>,
    ops: Vec<Op>,
}

#[derive(Default)]
struct Staging {
    rounds: Vec<Round>,
    parts: BTreeMap<InodeId, BTreeMap<Name, Option<InodeId>>>,
    tip: Position,
}

impl Staging {
    fn round(&mut self) -> &mut Round {
        self.rounds.last_mut().expect("a round began")
    }

    fn nodes(&self) -> BTreeSet<InodeId> {
        let ops = self.rounds.iter().flat_map(|round| &round.ops).flat_map(|op| &op.changes);
        let births = ops.filter_map(|change| if let Change::Birth { id, .. } = change { Some(*id) } else { None });
        let staged = self.rounds.iter().flat_map(|round| &round.state).filter_map(|assigned| match assigned {
            Assigned::Node(StageNode { id, state: Some(_) }) => Some(*id),
            _ => None,
        });
        births.chain(staged).collect()
    }
}

pub struct Replica {
    pub model: Model,
    births: BTreeMap<InodeId, Position>,
    /// The state that `model` is.
    pub position: Position,
    tip: Position,
    chains: BTreeMap<Seq, Chain>,
    live: bool,
    pub empty: bool,
    session: u64,
    run: Vec<u8>,
    staging: Option<Staging>,
    /// Bytes of stagings that were cut, by inode and offset: hints for recipes.
    salvage: BTreeMap<InodeId, BTreeMap<u64, Bytes>>,
    pub salvaged: u64,
    pub replies: VecDeque<Reply>,
    /// Positions reached since the last look, with the state there.
    pub reached: Vec<(Position, Model)>,
    pub publishes: u64,
}

impl Replica {
    pub fn new() -> Self {
        Replica {
            model: Model::new(),
            births: BTreeMap::new(),
            position: Position::default(),
            tip: Position::default(),
            chains: BTreeMap::new(),
            live: false,
            empty: true,
            session: 0,
            run: Vec::new(),
            staging: None,
            salvage: BTreeMap::new(),
            salvaged: 0,
            replies: VecDeque::new(),
            reached: Vec::new(),
            publishes: 0,
        }
    }

    pub fn cut(&mut self) {
        if let Some(staging) = self.staging.take() {
            for assigned in staging.rounds.into_iter().flat_map(|round| round.state) {
                if let Assigned::Data(data) = assigned {
                    self.salvage.entry(data.id).or_default().insert(data.offset, data.data);
                }
            }
        }
        self.replies.clear();
        self.session += 1;
    }

    pub fn handle(&mut self, message: pb::ClientMessage) {
        match message.body.expect("a body") {
            Body::Attach(attach) => self.attach(&attach),
            Body::Batch(batch) => self.batch(batch),
            Body::Begin(begin) => self.begin(&begin),
            Body::StageDir(stage) => {
                let stage = StageDir::try_from(stage).expect("legal");
                self.stage_dir(stage);
            }
            Body::StageNode(stage) => {
                let stage = StageNode::try_from(stage).expect("legal");
                self.staging.as_mut().expect("a round").round().state.push(Assigned::Node(stage));
            }
            Body::StageRecipe(stage) => {
                let stage = StageRecipe::try_from(stage).expect("legal");
                self.recipe(&stage);
            }
            Body::StageData(stage) => {
                let stage = StageData::try_from(stage).expect("legal");
                self.staging.as_mut().expect("a round").round().state.push(Assigned::Data(stage));
            }
            Body::Barrier(barrier) => {
                self.replies.push_back(Reply::Barrier(pb::BarrierReached { token: barrier.token }))
            }
            Body::Publish(publish) => self.publish(&publish),
            Body::Verify(_) => unreachable!("it does not say that it verifies"),
            Body::Packed(_) => panic!("a packed message to a replica that does not know them"),
            Body::Detach(_) | Body::Closed(_) => {}
        }
    }

    fn attach(&mut self, attach: &pb::Attach) {
        self.cut();
        let published = self.position;
        if attach.epoch == 0 {
            let epoch = self.tip.epoch.0 + 1;
            let chain = Chain::begin(&[b"sim", &epoch.to_le_bytes()]);
            self.tip = Position { epoch: tandem_proto::Epoch(epoch), seq: Seq(0), chain };
            self.chains = BTreeMap::from([(Seq(0), chain)]);
            (self.live, self.run) = (false, attach.run_id.to_vec());
        } else {
            assert_eq!((attach.epoch, &attach.run_id[..]), (self.tip.epoch.0, &self.run[..]));
        }
        self.replies.push_back(Reply::Attached(pb::Attached {
            session: self.session,
            epoch: self.tip.epoch.0,
            volume_id: Bytes::from_static(&[1; 16]),
            replica_id: Bytes::from_static(&[2; 16]),
            position: Some((&self.tip).into()),
            applied: if self.live { self.tip.seq.0 } else { 0 },
            empty: self.empty,
            published: Some((&published).into()),
            staged: !self.salvage.is_empty(),
            verifies: false,
            features: 0,
            protocol: 1,
        }));
    }

    fn begin(&mut self, begin: &pb::ResyncBegin) {
        let s0 = convert::position("s0", &begin.s0).expect("legal");
        let tip = match (&self.staging, begin.round) {
            (Some(staging), round) if round > 1 => {
                assert_eq!(round, staging.rounds.len() as u64 + 1);
                staging.tip
            }
            (_, round) => {
                assert_eq!(round, 1);
                self.tip
            }
        };
        assert!(s0.seq > tip.seq || s0 == tip, "state of {s0:?} after {tip:?}");
        if begin.round == 1 {
            self.staging = Some(Staging::default());
        }
        let staging = self.staging.as_mut().expect("a staging");
        staging.rounds.push(Round::default());
        staging.tip = s0;
    }

    fn batch(&mut self, batch: pb::Batch) {
        assert_eq!(batch.epoch, self.tip.epoch.0);
        let before = Chain::from_slice(&batch.chain_before).expect("a chain");
        let (mut seq, mut chain, mut scratch) = (Seq(batch.first_seq - 1), before, Vec::new());
        let tip = self.staging.as_ref().map_or(self.tip, |staging| staging.tip);
        assert!(self.staging.is_some() || self.live, "no batch before the first publish");
        assert!(seq <= tip.seq, "a gap: {seq} after {}", tip.seq);
        if self.staging.is_none() {
            assert_eq!(self.chains.get(&seq), Some(&chain), "another history before {seq}");
        } else if seq == tip.seq {
            assert_eq!(tip.chain, chain, "another history at {seq}");
        }
        for message in batch.ops {
            seq = seq.next();
            chain = convert::chain_after(&chain, seq, &message, &mut scratch);
            let op = convert::op(seq, message).expect("legal");
            self.take_op(op, chain);
        }
        assert_eq!(Chain::from_slice(&batch.chain_after), Some(chain));
    }

    fn take_op(&mut self, op: Op, chain: Chain) {
        let seq = op.seq;
        if let Some(staging) = &mut self.staging {
            if seq == staging.tip.seq.next() {
                staging.tip = Position { seq, chain, ..staging.tip };
                staging.round().ops.push(op);
            }
            return;
        }
        if seq <= self.tip.seq {
            assert_eq!(self.chains.get(&seq), Some(&chain), "a duplicate of another history");
            return;
        }
        self.tip = Position { seq, chain, ..self.tip };
        self.chains.insert(seq, chain);
        self.note_births(&op, self.tip);
        self.model.apply(&op.changes);
        self.model.prune();
        self.position = self.tip;
        self.reached.push((self.position, self.model.clone()));
    }

    fn note_births(&mut self, op: &Op, at: Position) {
        for change in &op.changes {
            if let Change::Birth { id, .. } = change {
                self.births.insert(*id, at);
            }
        }
    }

    fn stage_dir(&mut self, stage: StageDir) {
        let staging = self.staging.as_mut().expect("a round");
        let known = staging.nodes();
        let mut need = Vec::new();
        for entry in &stage.entries {
            let Some((id, _)) = entry.node else { continue };
            let born =
                stage.born_since.is_some_and(|since| self.births.get(&id).is_some_and(|at| !at.is_before(&since)));
            let missing = !self.model.nodes.contains_key(&id) && !known.contains(&id);
            let differs =
                self.model.nodes.contains_key(&id) && entry.stamp.is_some() && self.model.stamp(&id) != entry.stamp;
            if born || missing || differs {
                need.push(Bytes::copy_from_slice(id.as_bytes()));
            }
        }
        if !need.is_empty() {
            self.replies.push_back(Reply::NeedNodes(pb::NeedNodes { ids: need }));
        }
        let names: BTreeMap<_, _> =
            stage.entries.into_iter().map(|entry| (entry.name, entry.node.map(|(id, _)| id))).collect();
        match stage.listing {
            Listing::Partial => staging.round().state.push(Assigned::Names { dir: stage.dir, complete: false, names }),
            Listing::CompletePart => staging.parts.entry(stage.dir).or_default().extend(names),
            Listing::CompleteEnd => {
                let mut all = staging.parts.remove(&stage.dir).unwrap_or_default();
                all.extend(names);
                staging.round().state.push(Assigned::Names { dir: stage.dir, complete: true, names: all });
            }
        }
    }

    fn recipe(&mut self, stage: &StageRecipe) {
        let staging = self.staging.as_mut().expect("a round");
        let mut need = Vec::new();
        for piece in &stage.pieces {
            let range = piece.offset as usize..(piece.offset + piece.len) as usize;
            let bytes = match piece.digest {
                None => Some(vec![0; piece.len as usize]),
                Some(digest) => {
                    let have =
                        self.model.nodes.get(&stage.id).and_then(|node| node.data.get(range)).map(<[u8]>::to_vec);
                    let own = have.filter(|bytes| Digest::of(bytes) == digest);
                    let left = self.salvage.get(&stage.id).and_then(|file| file.get(&piece.offset));
                    let left = left.filter(|bytes| Digest::of(bytes) == digest).map(|bytes| bytes.to_vec());
                    self.salvaged += u64::from(own.is_none() && left.is_some());
                    own.or(left)
                }
            };
            match bytes {
                Some(bytes) => {
                    let data = StageData { id: stage.id, offset: piece.offset, data: bytes.into() };
                    staging.round().state.push(Assigned::Data(data));
                }
                None => need.push(tandem_proto::stage::Piece::chunk(piece.offset, piece.len, None)),
            }
        }
        if !need.is_empty() {
            let id = Bytes::copy_from_slice(stage.id.as_bytes());
            self.replies.push_back(Reply::NeedPieces(pb::NeedPieces { id, pieces: convert::piece_messages(&need) }));
        }
    }

    fn publish(&mut self, publish: &pb::Publish) {
        let position = convert::position("publish", &publish.position).expect("legal");
        let staging = self.staging.take().expect("a staging");
        assert_eq!(position, staging.tip, "what is published is what was staged");
        assert!(staging.parts.is_empty(), "a listing was not closed");
        for round in staging.rounds {
            for assigned in &round.state {
                self.assign(assigned, position);
            }
            for op in &round.ops {
                let at = Position { seq: op.seq, ..position };
                self.note_births(op, at);
                self.model.apply(&op.changes);
            }
        }
        self.model.prune();
        (self.tip, self.position) = (position, position);
        (self.live, self.empty) = (true, false);
        self.chains = BTreeMap::from([(position.seq, position.chain)]);
        self.publishes += 1;
        self.salvage.clear();
        self.reached.push((position, self.model.clone()));
        self.replies.push_back(Reply::Published(pb::Published { position: Some((&position).into()) }));
    }

    fn assign(&mut self, assigned: &Assigned, at: Position) {
        match assigned {
            Assigned::Names { dir, complete, names } => {
                if *complete {
                    self.model.names.retain(|(of, name), _| of != dir || names.contains_key(name));
                }
                for (name, id) in names {
                    self.model.assign(*dir, name, *id);
                }
            }
            Assigned::Node(StageNode { state: None, .. }) => {}
            Assigned::Node(StageNode { id, state: Some(state) }) => {
                let dir = state.kind.node_type() == NodeType::Directory;
                let known = self.model.nodes.contains_key(id);
                assert!(dir || known || state.content == Content::Whole, "{id} is unknown and not sent whole");
                if !known {
                    self.births.insert(*id, at);
                }
                let node = self.model.nodes.entry(*id).or_insert(Node { dir, mtime: 0, data: Vec::new() });
                node.mtime = state.attr.mtime.seconds;
                if state.content == Content::Whole {
                    node.data.clear();
                }
                node.data.resize(state.size as usize, 0);
            }
            Assigned::Data(data) => self.model.write(&data.id, data.offset as usize, &data.data, false),
        }
    }

    /// The watermarks, as they would be told now.
    pub fn ack(&self) -> Reply {
        Reply::Ack(pb::Ack {
            received: self.tip.seq.0,
            durable: self.tip.seq.0,
            applied: self.tip.seq.0,
            staged: self.staging.as_ref().map_or(0, |staging| staging.tip.seq.0),
        })
    }
}
