//! Follows the records of a log: does each parse, and does each begin where the one before ended?

use std::collections::BTreeMap;

use serde::Serialize;
use tandem_proto::{chain::Chain, convert, op::Op, pb, position::Position};

use crate::{
    apply::{
        Record,
        record::{RecordSource, Records},
    },
    ingest::receiver::Durable,
    log::{LogPos, disk::Disk, image::Image},
    volume::core::note,
};

/// What a log holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogFigures {
    /// How many of each kind.
    pub records: BTreeMap<&'static str, u64>,
    /// Live and staged ops.
    pub ops: u64,
    /// A staging was begun, and neither published nor dropped.
    pub unfinished_staging: bool,
}

/// Follows the chain of ops.
#[derive(Debug, Default)]
pub struct Follower {
    /// What was counted.
    pub figures: LogFigures,
    tip: Option<Position>,
    staged: Option<Position>,
    scratch: Vec<u8>,
}

/// The word for a record's kind.
pub fn kind(record: &Record) -> &'static str {
    match record {
        Record::Epoch { .. } => "epoch",
        Record::Ops { .. } => "ops",
        Record::StageBegin { .. } => "stage_begin",
        Record::Stage(_) => "stage",
        Record::StagedFile { .. } => "staged_file",
        Record::StagedExtent { .. } => "staged_extent",
        Record::StagedOps { .. } => "staged_ops",
        Record::StageDropped => "stage_dropped",
        Record::Publish { .. } => "publish",
    }
}

impl Follower {
    /// Takes the next record; what is wrong with it, if anything is.
    pub fn take(&mut self, record: &Record) -> Option<String> {
        *self.figures.records.entry(kind(record)).or_default() += 1;
        match record {
            Record::Epoch { position, .. } => {
                let before = self.tip.replace(*position);
                self.staged = None;
                before
                    .filter(|before| position.epoch <= before.epoch)
                    .map(|before| format!("epoch {} was opened after {before}, and epochs only rise", position.epoch))
            }
            Record::Ops { ops, end } => {
                let problem = self.follow(self.tip, ops, end);
                self.tip = Some(*end);
                problem
            }
            Record::StageBegin { round, s0, .. } => {
                self.figures.unfinished_staging = true;
                // Between rounds the ops go on; only the first says where they begin.
                self.staged = (*round == 1).then_some(*s0);
                None
            }
            Record::StagedOps { ops, end } => {
                let problem = self.follow(self.staged, ops, end);
                self.staged = Some(*end);
                problem
            }
            Record::Publish { position, .. } => {
                self.figures.unfinished_staging = false;
                (self.tip, self.staged) = (Some(*position), None);
                None
            }
            Record::StageDropped => {
                self.figures.unfinished_staging = false;
                self.staged = None;
                None
            }
            Record::Stage(_) | Record::StagedFile { .. } | Record::StagedExtent { .. } => None,
        }
    }

    fn follow(&mut self, before: Option<Position>, ops: &[Op], end: &Position) -> Option<String> {
        self.figures.ops += ops.len() as u64;
        let before = before?;
        let first = ops.first()?;
        if before.epoch != end.epoch || first.seq != before.seq.next() {
            return Some(format!("op {}:{} follows {before}: ops are missing between them", end.epoch, first.seq));
        }
        let mut chain: Chain = before.chain;
        for op in ops {
            chain = convert::chain_after(&chain, op.seq, &pb::Op::from(op), &mut self.scratch);
        }
        (chain != end.chain).then(|| format!("the chain of the ops up to {end} is not the one that was acknowledged"))
    }
}

/// Follows a whole log. `durable` is moved to its end; each problem is told with its place.
pub fn follow<D: Disk>(image: &Image<D>, durable: &mut Durable, found: &mut dyn FnMut(String)) -> LogFigures {
    let mut follower = Follower::default();
    for raw in image.raw_records() {
        let (at, record) = match raw {
            Ok(raw) => (raw.at, crate::log::codec::decode_raw(raw).map_err(|error| error.0)),
            Err(error) => (LogPos::default(), Err(error.to_string())),
        };
        match record {
            Ok(record) => {
                if let Some(problem) = follower.take(&record) {
                    found(format!("{at}: {problem}"));
                }
                note(durable, record);
            }
            Err(problem) => {
                found(problem);
                break;
            }
        }
    }
    follower.figures
}

/// The records of a log up to a place behind which nothing can be used.
pub struct Upto<'a, D: Disk>(pub &'a Image<D>);

impl<D: Disk> RecordSource for Upto<'_, D> {
    /// Records that do not parse end it: what follows them cannot be redone.
    fn records(&self) -> Result<Records<'_>, crate::apply::LogError> {
        let records = self.0.records()?;
        Ok(Box::new(records.take_while(Result::is_ok)))
    }
}
