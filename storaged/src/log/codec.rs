//! Records as they stand in the log, and the log as apply reads it.
//!
//! A payload is a protobuf message: of the wire where the record came over it, else one that is defined here. Format version 1.

use bytes::Bytes;
use prost::Message as _;
use tandem_proto::{
    chain::Chain,
    convert,
    op::Op,
    pb,
    position::Position,
    stage::{Stage, StageDir, StageNode},
};

use super::{Log, LogPos, RawRecord, disk::Disk};
use crate::apply::record::{self, ExtentSource, ObjectIdentity, Record, RecordSource, Records, Writer};

/// Format of all payloads.
pub const VERSION: u8 = 1;

mod kind {
    pub(super) const EPOCH: u8 = 1;
    pub(super) const OPS: u8 = 2;
    pub(super) const STAGE_BEGIN: u8 = 3;
    pub(super) const STAGE_DIR: u8 = 4;
    pub(super) const STAGE_NODE: u8 = 5;
    pub(super) const STAGED_FILE: u8 = 6;
    pub(super) const STAGED_EXTENT: u8 = 7;
    pub(super) const STAGED_OPS: u8 = 8;
    pub(super) const STAGE_DROPPED: u8 = 9;
    pub(super) const PUBLISH: u8 = 10;
}

#[derive(Clone, PartialEq, prost::Message)]
struct EpochRecord {
    #[prost(message, tag = "1")]
    position: Option<pb::Position>,
    #[prost(bytes = "bytes", tag = "2")]
    client_id: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    run_id: Bytes,
    #[prost(string, tag = "4")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StageBeginRecord {
    #[prost(uint64, tag = "1")]
    serial: u64,
    #[prost(uint64, tag = "2")]
    round: u64,
    #[prost(bool, tag = "3")]
    full: bool,
    #[prost(message, tag = "4")]
    s0: Option<pb::Position>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StagedFileRecord {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    identity: Bytes,
    #[prost(uint64, tag = "3")]
    round: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StagedExtentRecord {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(uint64, tag = "2")]
    offset: u64,
    #[prost(uint64, tag = "3")]
    len: u64,
    #[prost(uint32, tag = "4")]
    source: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PublishRecord {
    #[prost(uint64, tag = "1")]
    serial: u64,
    #[prost(message, tag = "2")]
    position: Option<pb::Position>,
}

fn ops_message(ops: &[Op], end: &Position) -> pb::Batch {
    pb::Batch {
        session: 0,
        epoch: end.epoch.0,
        first_seq: end.seq.0 + 1 - ops.len() as u64,
        chain_before: Bytes::new(),
        chain_after: Bytes::copy_from_slice(&end.chain.0),
        ops: ops.iter().map(Into::into).collect(),
    }
}

fn source_number(source: ExtentSource) -> u32 {
    match source {
        ExtentSource::Hole => 1,
        ExtentSource::Staged => 2,
        ExtentSource::InPlace => 3,
    }
}

fn copied(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// The kind and the payload of a record. Apply never logs a staged recipe or staged data as such: [`None`].
pub fn encode(record: &Record) -> Option<(u8, Vec<u8>)> {
    Some(match record {
        Record::Epoch { position, writer } => {
            let message = EpochRecord {
                position: Some(position.into()),
                client_id: copied(&writer.client_id.0),
                run_id: copied(&writer.run_id.0),
                name: writer.name.clone(),
            };
            (kind::EPOCH, message.encode_to_vec())
        }
        Record::Ops { ops, end } => (kind::OPS, ops_message(ops, end).encode_to_vec()),
        Record::StagedOps { ops, end } => (kind::STAGED_OPS, ops_message(ops, end).encode_to_vec()),
        Record::StageBegin { serial, round, full, s0 } => {
            let message = StageBeginRecord { serial: *serial, round: *round, full: *full, s0: Some(s0.into()) };
            (kind::STAGE_BEGIN, message.encode_to_vec())
        }
        Record::Stage(Stage::Dir(dir)) => (kind::STAGE_DIR, pb::StageDir::from(dir).encode_to_vec()),
        Record::Stage(Stage::Node(node)) => (kind::STAGE_NODE, pb::StageNode::from(node).encode_to_vec()),
        Record::Stage(Stage::Recipe(_) | Stage::Data(_)) => return None,
        Record::StagedFile { id, identity, round } => {
            let (id, identity) = (copied(id.as_bytes()), copied(identity.as_bytes()));
            let message = StagedFileRecord { id, identity, round: *round };
            (kind::STAGED_FILE, message.encode_to_vec())
        }
        Record::StagedExtent { id, offset, len, source } => {
            let source = source_number(*source);
            let message = StagedExtentRecord { id: copied(id.as_bytes()), offset: *offset, len: *len, source };
            (kind::STAGED_EXTENT, message.encode_to_vec())
        }
        Record::StageDropped => (kind::STAGE_DROPPED, Vec::new()),
        Record::Publish { serial, position } => {
            let message = PublishRecord { serial: *serial, position: Some(position.into()) };
            (kind::PUBLISH, message.encode_to_vec())
        }
    })
}

fn message<T: prost::Message + Default>(payload: Bytes) -> Result<T, String> {
    T::decode(payload).map_err(|error| error.to_string())
}

fn said<T>(result: Result<T, tandem_proto::Invalid>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn ops(payload: Bytes) -> Result<(Vec<Op>, Position), String> {
    let batch: pb::Batch = message(payload)?;
    if batch.ops.is_empty() {
        return Err("a batch without ops".to_owned());
    }
    let first = said(convert::first_seq("batch.first_seq", batch.first_seq))?;
    let epoch = said(convert::epoch("batch.epoch", batch.epoch))?;
    let last = first.plus(batch.ops.len() as u64 - 1);
    let chain = Chain::from_slice(&batch.chain_after).ok_or("a batch without its chain")?;
    let ops: Result<Vec<Op>, _> =
        batch.ops.into_iter().enumerate().map(|(at, op)| convert::op(first.plus(at as u64), op)).collect();
    Ok((said(ops)?, Position { epoch, seq: last, chain }))
}

/// The record of a kind and a payload, or what is wrong with it.
pub fn decode(kind: u8, version: u8, payload: Bytes) -> Result<Record, String> {
    if version != VERSION {
        return Err(format!(
            "its format is {version}, and this storaged knows {VERSION}: upgrade tandem-storaged to the version that wrote it"
        ));
    }
    Ok(match kind {
        kind::EPOCH => {
            let epoch: EpochRecord = message(payload)?;
            Record::Epoch {
                position: said(convert::position("position", &epoch.position))?,
                writer: Writer {
                    client_id: said(convert::uuid("client_id", &epoch.client_id))?,
                    run_id: said(convert::uuid("run_id", &epoch.run_id))?,
                    name: epoch.name,
                },
            }
        }
        kind::OPS => {
            let (ops, end) = ops(payload)?;
            Record::Ops { ops, end }
        }
        kind::STAGED_OPS => {
            let (ops, end) = ops(payload)?;
            Record::StagedOps { ops, end }
        }
        kind::STAGE_BEGIN => {
            let begin: StageBeginRecord = message(payload)?;
            let s0 = said(convert::position("s0", &begin.s0))?;
            Record::StageBegin { serial: begin.serial, round: begin.round, full: begin.full, s0 }
        }
        kind::STAGE_DIR => Record::Stage(Stage::Dir(said(StageDir::try_from(message::<pb::StageDir>(payload)?))?)),
        kind::STAGE_NODE => Record::Stage(Stage::Node(said(StageNode::try_from(message::<pb::StageNode>(payload)?))?)),
        kind::STAGED_FILE => {
            let file: StagedFileRecord = message(payload)?;
            Record::StagedFile {
                id: said(convert::inode_id("id", &file.id))?,
                identity: ObjectIdentity::new(&file.identity).ok_or("an identity that is too long")?,
                round: file.round,
            }
        }
        kind::STAGED_EXTENT => {
            let extent: StagedExtentRecord = message(payload)?;
            let source = match extent.source {
                1 => ExtentSource::Hole,
                2 => ExtentSource::Staged,
                3 => ExtentSource::InPlace,
                other => return Err(format!("an extent of unknown source {other}")),
            };
            said(convert::extent("extent", extent.offset, extent.len))?;
            let id = said(convert::inode_id("id", &extent.id))?;
            Record::StagedExtent { id, offset: extent.offset, len: extent.len, source }
        }
        kind::STAGE_DROPPED => Record::StageDropped,
        kind::PUBLISH => {
            let publish: PublishRecord = message(payload)?;
            let position = said(convert::position("position", &publish.position))?;
            Record::Publish { serial: publish.serial, position }
        }
        other => return Err(format!("unknown kind {other}")),
    })
}

/// Decodes a record that was read.
pub fn decode_raw(raw: RawRecord) -> Result<Record, record::LogError> {
    let at = raw.at;
    decode(raw.kind, raw.version, raw.payload).map_err(|problem| record::LogError(format!("{at}: {problem}")))
}

/// Live ops that were read back.
pub struct LiveOps {
    /// The ops.
    pub ops: Vec<Op>,
    /// The chain after each.
    pub chains: Vec<Chain>,
    /// Position after the last one.
    pub end: Position,
    /// Bytes of their record.
    pub bytes: usize,
}

/// The live ops of a record that begin after `before`, or what is wrong with them; `None` if it has none. Their chain is computed
/// anew, so that what is applied is what was acknowledged.
pub fn live_ops_after(raw: RawRecord, before: &Position) -> Result<Option<LiveOps>, String> {
    if raw.kind != kind::OPS {
        return Ok(None);
    }
    if raw.version != VERSION {
        return decode(raw.kind, raw.version, raw.payload).map(|_| None);
    }
    let bytes = raw.payload.len();
    let batch: pb::Batch = message(raw.payload)?;
    if (batch.epoch, batch.first_seq) <= (before.epoch.0, before.seq.0) {
        return Ok(None);
    }
    if (batch.epoch, batch.first_seq) != (before.epoch.0, before.seq.next().0) {
        return Err(format!("ops from {}:{} on follow position {before}", batch.epoch, batch.first_seq));
    }
    let (mut end, mut scratch) = (*before, Vec::new());
    let (mut ops, mut chains) = (Vec::with_capacity(batch.ops.len()), Vec::with_capacity(batch.ops.len()));
    for op in batch.ops {
        let seq = end.seq.next();
        end = Position { seq, chain: convert::chain_after(&end.chain, seq, &op, &mut scratch), ..end };
        chains.push(end.chain);
        ops.push(said(convert::op(seq, op))?);
    }
    if batch.chain_after != end.chain.0[..] {
        return Err(format!("its ops do not lead to the chain that was acknowledged at {end}"));
    }
    Ok(Some(LiveOps { ops, chains, end, bytes }))
}

/// A log from some place on, as apply reads it.
pub struct LogRecords<'a, D: Disk> {
    log: &'a Log<D>,
    from: LogPos,
}

impl<D: Disk> Log<D> {
    /// All records from `from` on.
    pub fn source(&self, from: LogPos) -> LogRecords<'_, D> {
        LogRecords { log: self, from: from.max(self.start()) }
    }
}

impl<D: Disk> RecordSource for LogRecords<'_, D> {
    fn records(&self) -> Result<Records<'_>, record::LogError> {
        Ok(Box::new(self.log.records_from(self.from).map(|raw| match raw {
            Ok(raw) => decode_raw(raw),
            Err(error) => Err(record::LogError(error.to_string())),
        })))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use smallvec::smallvec;
    use tandem_proto::{
        COUNT_MAX,
        chain::Chain,
        ids::{InodeId, Name, Uuid},
        op::{Change, Op},
        position::{Epoch, Position, Seq},
        stage::{Listing, Stage, StageDir, StageEntry, StageNode},
    };

    use super::{VERSION, decode, encode, pb};
    use crate::apply::record::{ExtentSource, ObjectIdentity, Record, Writer};

    #[test]
    fn every_record_survives_the_log() {
        let id = InodeId::new(b"id").expect("short");
        let position = Position { epoch: Epoch(3), seq: Seq(8), chain: Chain([5; 16]) };
        let change = Change::Data { id, offset: 7, data: "bytes".into() };
        let op = |seq| Op { seq: Seq(seq), origin: Default::default(), changes: smallvec![change.clone()] };
        let entry = StageEntry { name: Name::new("n").expect("legal"), node: None, stamp: Some(4) };
        let dir =
            StageDir { dir: InodeId::ROOT, listing: Listing::CompleteEnd, entries: vec![entry], born_since: None };
        let records = [
            Record::Epoch {
                position,
                writer: Writer { client_id: Uuid([1; 16]), run_id: Uuid([2; 16]), name: "me".into() },
            },
            Record::Ops { ops: vec![op(7), op(8)], end: position },
            Record::StageBegin { serial: 9, round: 1, full: true, s0: position },
            Record::Stage(Stage::Dir(dir)),
            Record::Stage(Stage::Node(StageNode { id, state: None })),
            Record::StagedFile { id, identity: ObjectIdentity::new(&[9; 40]).expect("short"), round: 2 },
            Record::StagedExtent { id, offset: 1, len: 2, source: ExtentSource::InPlace },
            Record::StagedOps { ops: vec![op(8)], end: position },
            Record::StageDropped,
            Record::Publish { serial: 9, position },
        ];
        for record in records {
            let (kind, payload) = encode(&record).expect("kept in the log");
            assert_eq!(decode(kind, VERSION, payload.into()), Ok(record));
        }
    }

    #[test]
    fn ops_whose_numbers_nothing_can_be_counted_from_are_refused() {
        let op = Op { seq: Seq(1), origin: Default::default(), changes: smallvec![] };
        let ops = Record::Ops { ops: vec![op], end: Position { epoch: Epoch(1), seq: Seq(1), ..Default::default() } };
        let (kind, payload) = encode(&ops).expect("kept in the log");
        let good = pb::Batch::decode(&payload[..]).expect("a batch");
        for (epoch, first_seq) in [(1, 0), (1, u64::MAX), (1, COUNT_MAX + 1), (u64::MAX, 1)] {
            let bad = pb::Batch { epoch, first_seq, ..good.clone() };
            let problem = decode(kind, VERSION, bad.encode_to_vec().into()).expect_err("no such ops");
            assert!(problem.contains("batch."), "{problem}");
        }
    }

    #[test]
    fn records_of_another_version_and_kind_are_named_as_such() {
        assert!(decode(1, 2, Default::default()).expect_err("newer").contains("upgrade tandem-storaged"));
        assert!(decode(77, VERSION, Default::default()).expect_err("unknown").contains("unknown kind"));
    }
}
