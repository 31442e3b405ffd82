//! How many parts a message may have, looked at before it is decoded.
//!
//! An empty op takes two bytes on the wire and some ninety in memory. So a message that is no longer than a message may be could still cost
//! fifty times its length, and be refused for its count only when it had all of that. [`check`] walks over the encoded fields without
//! keeping anything, and stops at the first part that is too many. What parts a message may have, and how many, is in [`of`];
//! messages that are not listed there hold nothing that is repeated, or come from who is trusted.
//!
//! Protobuf merges a field that comes again into the first one. Parts are therefore counted over the whole message.

use std::any::TypeId;

use crate::{
    limits::{ATTACH_RUNS_MAX, BATCH_MAX_OPS, CHANGES_MAX, PIECES_MAX, STAGE_ENTRIES_MAX},
    pb,
    verify::ITEMS_MAX,
};

/// Names of a path. Nothing bounds how deep a tree may be; 64 Ki levels are 2 MiB in memory.
const PATH_NAMES_MAX: usize = 64 << 10;
/// Extended attributes of an inode: Linux lists 64 KiB of names, of two bytes at least.
const XATTRS_MAX: usize = 32 << 10;
/// What an answer of a storage daemon may list.
const LISTED_MAX: usize = 64 << 10;

/// A field of a message that holds bytes or a message.
#[derive(Debug)]
struct Part {
    field: u64,
    /// So many in the whole message that was received; `None`: it is one of a kind and costs what it holds.
    max: Option<(usize, &'static str)>,
    /// What is in it.
    shape: &'static Shape,
}

/// The parts of a message.
#[derive(Debug)]
pub struct Shape(&'static [Part]);

const fn one(field: u64, shape: &'static Shape) -> Part {
    Part { field, max: None, shape }
}

const fn many(field: u64, max: usize, what: &'static str, shape: &'static Shape) -> Part {
    Part { field, max: Some((max, what)), shape }
}

static LEAF: Shape = Shape(&[]);
static OP: Shape = Shape(&[many(2, BATCH_MAX_OPS * CHANGES_MAX, "changes", &LEAF)]);
static BATCH: Shape = Shape(&[many(6, BATCH_MAX_OPS, "ops", &OP)]);
static ATTACH: Shape = Shape(&[many(13, ATTACH_RUNS_MAX, "runs", &LEAF)]);
static STAGE_DIR: Shape = Shape(&[many(4, STAGE_ENTRIES_MAX, "entries", &LEAF)]);
static STAGE_NODE: Shape = Shape(&[many(6, XATTRS_MAX, "extended attributes", &LEAF)]);
static RECIPE: Shape = Shape(&[many(3, PIECES_MAX, "pieces", &LEAF)]);
static VERIFY: Shape = Shape(&[many(4, ITEMS_MAX, "items", &LEAF)]);
static CLIENT: Shape = Shape(&[
    one(1, &ATTACH),
    one(2, &BATCH),
    one(4, &STAGE_DIR),
    one(5, &STAGE_NODE),
    one(6, &RECIPE),
    one(35, &VERIFY),
]);
static PATH: Shape = Shape(&[many(1, PATH_NAMES_MAX, "names", &LEAF)]);
static NODE: Shape =
    Shape(&[many(1, PATH_NAMES_MAX, "names", &LEAF), many(4, XATTRS_MAX, "extended attributes", &LEAF)]);
static LINK: Shape = Shape(&[many(1, PATH_NAMES_MAX, "names", &LEAF), many(2, PATH_NAMES_MAX, "names", &LEAF)]);
static PULL: Shape = Shape(&[one(2, &NODE), one(4, &LINK)]);
static COPY_OPEN: Shape = Shape(&[many(2, PATH_NAMES_MAX, "paths", &PATH)]);
static COPY_UP: Shape = Shape(&[one(1, &COPY_OPEN)]);
static COPY_INTO: Shape = Shape(&[one(2, &PATH)]);
static COPY_ITEM: Shape = Shape(&[one(1, &NODE)]);
static COPY_DOWN: Shape = Shape(&[one(1, &COPY_INTO), one(2, &COPY_ITEM)]);
static BRING: Shape = Shape(&[one(1, &COPY_INTO), one(2, &COPY_OPEN)]);
static ARCHIVED: Shape = Shape(&[many(2, PATH_NAMES_MAX, "names", &LEAF)]);
static FETCH: Shape = Shape(&[many(3, PATH_NAMES_MAX, "names", &LEAF)]);
static NEED_NODES: Shape = Shape(&[many(1, LISTED_MAX, "ids", &LEAF)]);
static NEED_PIECES: Shape = Shape(&[many(2, LISTED_MAX, "pieces", &LEAF)]);
static VERIFIED: Shape = Shape(&[many(3, LISTED_MAX, "findings", &LEAF)]);
static SERVER: Shape = Shape(&[one(4, &NEED_NODES), one(5, &NEED_PIECES), one(35, &VERIFIED)]);

/// The shape of a type of message; `None`: nothing in it needs a bound.
pub fn of<M: 'static>() -> Option<&'static Shape> {
    let asked = TypeId::of::<M>();
    let known: [(TypeId, &'static Shape); 11] = [
        (TypeId::of::<pb::ClientMessage>(), &CLIENT),
        (TypeId::of::<pb::ServerMessage>(), &SERVER),
        (TypeId::of::<pb::PullMessage>(), &PULL),
        (TypeId::of::<pb::CopyUp>(), &COPY_UP),
        (TypeId::of::<pb::CopyDown>(), &COPY_DOWN),
        (TypeId::of::<pb::BringRequest>(), &BRING),
        (TypeId::of::<pb::HistoryRequest>(), &ARCHIVED),
        (TypeId::of::<pb::KeptRequest>(), &ARCHIVED),
        (TypeId::of::<pb::FetchRequest>(), &FETCH),
        (TypeId::of::<pb::TreeRequest>(), &ARCHIVED),
        (TypeId::of::<pb::ReadRequest>(), &ARCHIVED),
    ];
    known.into_iter().find(|(id, _)| *id == asked).map(|(_, shape)| shape)
}

/// Why a message is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misshapen {
    /// It has more of something than any message may have.
    #[error("a message with more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// It is no protobuf, or uses groups, which nobody sends.
    #[error("a message that is no protobuf")]
    Malformed,
}

/// Walks over an encoded message. What passes has no more parts than its shape allows.
pub fn check(shape: &'static Shape, message: &[u8]) -> Result<(), Misshapen> {
    let mut counts = Counts(Vec::new());
    walk(shape, message, &mut counts)
}

/// How many there are of each part, over the whole message. A message has a handful of kinds.
struct Counts(Vec<(*const Part, usize)>);

impl Counts {
    fn add(&mut self, part: &'static Part) -> Result<(), Misshapen> {
        let Some((max, what)) = part.max else { return Ok(()) };
        let at = std::ptr::from_ref(part);
        let known = self.0.iter_mut().find(|(known, _)| *known == at);
        let count = match known {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                self.0.push((at, 1));
                1
            }
        };
        if count > max { Err(Misshapen::TooMany { what, max }) } else { Ok(()) }
    }
}

/// Two levels down at most are repeated, so this goes four levels deep at most.
fn walk(shape: &'static Shape, mut rest: &[u8], counts: &mut Counts) -> Result<(), Misshapen> {
    const VARINT: u64 = 0;
    const FIXED64: u64 = 1;
    const BYTES: u64 = 2;
    const FIXED32: u64 = 5;
    let skip = |rest: &mut &[u8], len: usize| {
        *rest = rest.get(len..).ok_or(Misshapen::Malformed)?;
        Ok(())
    };
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match tag & 7 {
            VARINT => drop(varint(&mut rest)?),
            FIXED64 => skip(&mut rest, 8)?,
            FIXED32 => skip(&mut rest, 4)?,
            BYTES => {
                let len = usize::try_from(varint(&mut rest)?).map_err(|_| Misshapen::Malformed)?;
                let body = rest.get(..len).ok_or(Misshapen::Malformed)?;
                if let Some(part) = shape.0.iter().find(|part| part.field == tag >> 3) {
                    counts.add(part)?;
                    if !part.shape.0.is_empty() {
                        walk(part.shape, body, counts)?;
                    }
                }
                rest = &rest[len..];
            }
            _ => return Err(Misshapen::Malformed),
        }
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Result<u64, Misshapen> {
    let mut value = 0u64;
    for (at, byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *rest = &rest[at + 1..];
            return Ok(value);
        }
    }
    Err(Misshapen::Malformed)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::{Misshapen, check, of};
    use crate::{
        limits::{BATCH_MAX_OPS, STAGE_ENTRIES_MAX},
        pb::{self, client_message::Body},
    };

    fn checked(body: Body) -> Result<(), Misshapen> {
        let shape = of::<pb::ClientMessage>().expect("it has one");
        check(shape, &pb::ClientMessage { body: Some(body) }.encode_to_vec())
    }

    fn batch(ops: usize, changes: usize) -> Body {
        let op = pb::Op { origin: Some(pb::Origin::default()), changes: vec![pb::Change::default(); changes] };
        Body::Batch(pb::Batch { session: 1, epoch: 2, ops: vec![op; ops], ..Default::default() })
    }

    #[test]
    fn as_many_parts_as_are_allowed_pass_and_one_more_does_not() {
        assert_eq!(checked(batch(BATCH_MAX_OPS, 64)), Ok(()));
        assert_eq!(checked(batch(BATCH_MAX_OPS + 1, 0)), Err(Misshapen::TooMany { what: "ops", max: BATCH_MAX_OPS }));
        assert!(matches!(checked(batch(1, 65_537)), Err(Misshapen::TooMany { what: "changes", .. })));
        let dir = |entries| {
            Body::StageDir(pb::StageDir { entries: vec![pb::StageEntry::default(); entries], ..Default::default() })
        };
        assert_eq!(checked(dir(STAGE_ENTRIES_MAX)), Ok(()));
        assert!(checked(dir(STAGE_ENTRIES_MAX + 1)).is_err());
    }

    #[test]
    fn parts_that_are_merged_by_the_decoder_are_counted_together() {
        let shape = of::<pb::ClientMessage>().expect("it has one");
        let once = pb::ClientMessage { body: Some(batch(BATCH_MAX_OPS, 0)) }.encode_to_vec();
        let twice = [once.clone(), once].concat();
        let decoded = pb::ClientMessage::decode(&twice[..]).expect("protobuf merges");
        let Some(Body::Batch(batch)) = decoded.body else { panic!("a batch") };
        assert_eq!(batch.ops.len(), 2 * BATCH_MAX_OPS, "which is why");
        assert!(check(shape, &twice).is_err());
    }

    #[test]
    fn what_is_no_protobuf_is_refused_and_what_is_unknown_is_passed_over() {
        let shape = of::<pb::ClientMessage>().expect("it has one");
        // A length beyond the end, a varint without an end, a group, a length that does not fit into memory.
        for bad in
            [&[0x12, 5, 0][..], &[0xff; 11], &[0x0b, 0x0c], &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]]
        {
            assert_eq!(check(shape, bad), Err(Misshapen::Malformed), "{bad:?}");
        }
        // Fields that no version has yet: a number, bytes, and fixed ones.
        assert_eq!(
            check(shape, &[0xa0, 6, 1, 0xa2, 6, 2, 1, 2, 0xa5, 6, 1, 2, 3, 4, 0xa1, 6, 1, 2, 3, 4, 5, 6, 7, 8]),
            Ok(())
        );
        assert!(of::<pb::StatusRequest>().is_none());
    }
}
