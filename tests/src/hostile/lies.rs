//! Single messages that no storage daemon may believe. Each is sent on a live stream of its own, and must be refused by type.

use bytes::Bytes;
use prost::Message as _;
use tandem_proto::{
    limits::MESSAGE_MAX_BYTES,
    pb::{self, change::Kind, client_message::Body},
};

use super::Session;

/// What is wrong, and the bytes of the message.
pub type Lie = (String, Bytes);

fn encoded(body: Option<Body>) -> Bytes {
    pb::ClientMessage { body }.encode_to_vec().into()
}

fn entry(dir: &[u8], name: &[u8]) -> Kind {
    let (dir, name, new) = (dir.to_vec().into(), name.to_vec().into(), vec![7; 8].into());
    Kind::Entry(pb::Entry { dir, name, old: Bytes::new(), new })
}

/// Names that are none: they would leave the directory, or end too early.
pub const NAMES: [&[u8]; 8] = [b"", b".", b"..", b"/etc/passwd", b"a/b", b"../../etc/passwd", b"a\0b", &[b'x'; 256]];

/// All lies, for a session that is live.
pub fn all(session: &Session) -> Vec<Lie> {
    let mut lies = names(session);
    lies.extend(changes(session));
    lies.extend(batches(session));
    lies.extend(stages(session));
    lies.extend(counts());
    lies
}

fn names(session: &Session) -> Vec<Lie> {
    let (number, at) = (session.attached.session, session.position());
    let mut lies = Vec::new();
    for name in NAMES {
        let shown = String::from_utf8_lossy(name).into_owned();
        let batch = session.batch(&at, vec![entry(b"", name)]);
        lies.push((format!("a name {shown:?}"), encoded(Some(Body::Batch(batch)))));
        let entries = vec![pb::StageEntry { name: name.to_vec().into(), id: vec![7; 8].into(), ..Default::default() }];
        let stage = pb::StageDir { session: number, entries, ..Default::default() };
        lies.push((format!("a staged name {shown:?}"), encoded(Some(Body::StageDir(stage)))));
    }
    lies
}

fn changes(session: &Session) -> Vec<Lie> {
    let at = session.position();
    let id = || Bytes::from(vec![7; 8]);
    let data = |offset, len: usize| Kind::Data(pb::Data { id: id(), offset, data: vec![0; len].into() });
    let birth =
        |r#type: i32| Kind::Birth(pb::Birth { id: id(), kind: Some(pb::NodeKind { r#type, ..Default::default() }) });
    let copy = |from_offset, len| {
        Kind::Copy(pb::Copy { id: id(), offset: 0, from: id(), from_offset, len, data: Bytes::new() })
    };
    let attr = |mode, nanos| {
        Kind::Attr(pb::Attr { id: id(), mode: Some(mode), mtime_s: Some(1), mtime_ns: nanos, ..Default::default() })
    };
    let kinds = [
        ("an id that is too long", entry(&[1; 32], b"a")),
        ("data beyond the end of everything", data(u64::MAX - 1, 64)),
        ("data that ends beyond it", data(i64::MAX as u64 - 1, 64)),
        ("data of two MiB in one change", data(0, 2 << 20)),
        ("a hole that wraps around", Kind::Hole(pb::Hole { id: id(), offset: u64::MAX - 1, len: u64::MAX })),
        ("a size beyond everything", Kind::Size(pb::Size { id: id(), size: u64::MAX })),
        ("a copy of 4 GiB", copy(0, 4 << 30)),
        ("a copy from beyond everything", copy(u64::MAX - 5, 10)),
        ("a type that there is not", birth(99)),
        ("no type", birth(0)),
        ("a mode with bits of a type", attr(0o140_777, 0)),
        ("a time with too many nanoseconds", attr(0o644, u32::MAX)),
        ("an attribute without a name", Kind::Xattr(pb::Xattr { id: id(), name: Bytes::new(), value: None })),
        (
            "an attribute with NUL in its name",
            Kind::Xattr(pb::Xattr { id: id(), name: "user.a\0b".into(), value: None }),
        ),
        ("a link to a NUL", link(b"a\0b")),
        ("a link that is too long", link(&[b'x'; 5000])),
    ];
    let of = |(what, kind): (&str, Kind)| (what.to_owned(), encoded(Some(Body::Batch(session.batch(&at, vec![kind])))));
    kinds.into_iter().map(of).collect()
}

fn link(target: &[u8]) -> Kind {
    let kind =
        pb::NodeKind { r#type: pb::FileType::Symlink.into(), target: target.to_vec().into(), ..Default::default() };
    Kind::Birth(pb::Birth { id: vec![7; 8].into(), kind: Some(kind) })
}

fn batches(session: &Session) -> Vec<Lie> {
    let (number, epoch, at) = (session.attached.session, session.attached.epoch, session.position());
    let good = || session.batch(&at, Vec::new());
    let wrong_chain = Bytes::from(vec![9; 16]);
    let lies = [
        ("a chain that is not the ops'", pb::Batch { chain_after: wrong_chain.clone(), ..good() }),
        ("another history before it", session.batch(&pb::Position { chain: wrong_chain, ..at.clone() }, Vec::new())),
        ("a gap", session.batch(&pb::Position { seq: at.seq + 5, ..at.clone() }, Vec::new())),
        ("no ops", pb::Batch { ops: Vec::new(), ..good() }),
        ("seq 0", pb::Batch { first_seq: 0, ..good() }),
        ("the last seq of all", pb::Batch { first_seq: u64::MAX, ..good() }),
        ("an epoch that was not opened", pb::Batch { epoch: epoch + 7, ..good() }),
        ("an epoch of before", pb::Batch { epoch: epoch.saturating_sub(1), ..good() }),
        ("another session", pb::Batch { session: number + 1, ..good() }),
        ("a chain of the wrong length", pb::Batch { chain_before: vec![1; 5].into(), ..good() }),
    ];
    lies.into_iter().map(|(what, batch)| (what.to_owned(), encoded(Some(Body::Batch(batch))))).collect()
}

fn stages(session: &Session) -> Vec<Lie> {
    let number = session.attached.session;
    let id = || Bytes::from(vec![7; 8]);
    let pieces = |len| vec![pb::Piece { offset: 0, len, digest: vec![1; 32].into(), ..Default::default() }];
    let recipe = |pieces| Body::StageRecipe(pb::StageRecipe { session: number, id: id(), pieces });
    let lies = [
        ("nothing", None),
        ("a second attach", Some(Body::Attach(pb::Attach::default()))),
        ("a publish of nothing", Some(Body::Publish(pb::Publish { session: number, round: 9, position: None }))),
        (
            "staged bytes with a wrong checksum",
            Some(Body::StageData(pb::StageData {
                session: number,
                id: id(),
                offset: 0,
                data: vec![1].into(),
                crc32c: 5,
            })),
        ),
        ("a piece of all bytes there are", Some(recipe(pieces(u64::MAX)))),
        ("a piece of 4 GiB", Some(recipe(pieces(4 << 30)))),
        (
            "a round of the last seq of all",
            Some(Body::Begin(pb::ResyncBegin {
                session: number,
                round: 1,
                full: true,
                s0: Some(pb::Position { seq: u64::MAX, ..session.position() }),
            })),
        ),
        ("state while no resync is under way", Some(recipe(pieces(4096)))),
        ("a check of nothing", Some(Body::Verify(pb::VerifyCheck { session: number, ..Default::default() }))),
    ];
    lies.into_iter().map(|(what, body)| (what.to_owned(), encoded(body))).collect()
}

/// A field of bytes with this tag that claims a length and has less.
fn claims(tag: u8, len: u64, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    prost::encoding::encode_varint(len, &mut message);
    message.extend_from_slice(bytes);
    message
}

/// A message whose body is a batch (field 2) of so many empty ops (field 6), two bytes each.
pub fn empty_ops(count: usize) -> Vec<u8> {
    claims(0x12, 2 * count as u64, &[0x32, 0].repeat(count))
}

fn counts() -> Vec<Lie> {
    let longest = (MESSAGE_MAX_BYTES - 64) / 2;
    let many = empty_ops(longest);
    let packed = |data: Vec<u8>, len: usize| {
        let packed = pb::Packed { codec: pb::packed::Codec::Zstd.into(), len: len as u32, data: data.into() };
        encoded(Some(Body::Packed(packed)))
    };
    // What zstd makes of them: some hundred bytes.
    let bomb = zstd::bulk::compress(&many, 1).unwrap_or_default();
    let lies: [(&str, Bytes); 9] = [
        ("a batch that claims 4 GiB", claims(0x12, 4 << 30, b"x").into()),
        ("a batch that claims all there is", claims(0x12, u64::MAX, b"x").into()),
        ("four million ops", many.clone().into()),
        ("four million ops in some hundred bytes", packed(bomb.clone(), many.len())),
        ("a packed message that claims 4 GiB", packed(bomb.clone(), u32::MAX as usize)),
        ("a packed message that is no such thing", packed(b"nothing of the kind".to_vec(), 100)),
        ("a message that is too long", vec![0; MESSAGE_MAX_BYTES + 1].into()),
        ("bytes that mean nothing", Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")),
        ("groups within groups", vec![0x0b; 100_000].into()),
    ];
    lies.into_iter().map(|(what, bytes)| (what.to_owned(), bytes)).collect()
}
