//! Messages, decoded as the codec of both sides decodes them: first how many parts they have, then what they are.

use bytes::Bytes;
use prost::Message;
use tandem_proto::{
    bulk::{self, Unframer},
    codec, convert,
    pb::{self, server_message::Body},
    position::Position,
    shape,
};

/// As [`tandem_proto::codec`] does; `None`: refused.
pub fn decode<M: Message + Default + 'static>(input: &[u8]) -> Option<M> {
    if let Some(shape) = shape::of::<M>() {
        shape::check(shape, input).ok()?;
    }
    M::decode(input).ok()
}

fn position() -> pb::Position {
    pb::Position { epoch: 1, seq: 2, chain: vec![3; 16].into() }
}

/// Answers of a storage daemon.
pub fn server_seeds() -> Vec<Vec<u8>> {
    let attached = pb::Attached {
        session: 1,
        epoch: 1,
        volume_id: vec![1; 16].into(),
        replica_id: vec![2; 16].into(),
        position: Some(position()),
        published: Some(position()),
        ..Default::default()
    };
    let pieces = vec![pb::Piece { offset: 4096, len: 100, ..Default::default() }];
    let bodies = [
        Body::Attached(attached),
        Body::Ack(pb::Ack { received: 9, durable: 8, applied: 7, staged: 0 }),
        Body::NeedNodes(pb::NeedNodes { ids: vec![vec![1; 12].into(), vec![2; 12].into()] }),
        Body::NeedPieces(pb::NeedPieces { id: vec![1; 12].into(), pieces }),
        Body::Published(pb::Published { position: Some(position()) }),
        Body::Refused(pb::Refused { reason: 8, message: "no".into(), ..Default::default() }),
    ];
    bodies.into_iter().map(|body| pb::ServerMessage { body: Some(body) }.encode_to_vec()).collect()
}

/// One answer, as the mount takes it apart.
pub fn server(input: &[u8]) -> u64 {
    let Some(message) = decode::<pb::ServerMessage>(input) else { return 0 };
    let of =
        |position: &Option<pb::Position>| position.as_ref().map(Position::try_from).is_some_and(|read| read.is_ok());
    match message.body {
        None => 1,
        Some(Body::Attached(attached)) => {
            let ids = [("volume_id", &attached.volume_id), ("replica_id", &attached.replica_id)];
            let good = ids.into_iter().filter(|(field, id)| convert::uuid(field, id).is_ok()).count() as u64;
            1 + good + u64::from(of(&attached.position)) + u64::from(of(&attached.published))
        }
        Some(Body::Published(published)) => 1 + u64::from(of(&published.position)),
        Some(Body::NeedPieces(need)) => {
            2 + u64::from(convert::inode_id("id", &need.id).is_ok()) + u64::from(convert::pieces(need.pieces).is_ok())
        }
        Some(Body::Refused(refused)) => 1 + u64::from(refused.reason() != pb::refused::Reason::Unspecified),
        Some(_) => 2,
    }
}

/// Messages of a copy.
pub fn copy_seeds() -> Vec<Vec<u8>> {
    let path = || pb::CopyPath { names: vec!["dir".into(), "*.txt".into()] };
    let open = pb::CopyOpen { volume: "vol".into(), paths: vec![path()], recursive: true, ticket: vec![1; 32].into() };
    let node = pb::PullNode { path: path().names, size: 5, ..Default::default() };
    let up = pb::CopyUp { body: Some(pb::copy_up::Body::Open(open)) };
    let item = pb::CopyItem { node: Some(node), ..Default::default() };
    let down = pb::CopyDown { body: Some(pb::copy_down::Body::Item(item)) };
    // As they travel, too: framed, and the beginning of bulk data.
    let data = vec![7; codec::COVERED_BYTES].into();
    let frame = pb::CopyFrame { item: 3, offset: 1 << 20, data, ..Default::default() };
    let bulk = pb::CopyDown { body: Some(pb::copy_down::Body::Frame(frame)) };
    let mut travels = codec::framed(&down).to_vec();
    travels.extend(bulk::head(&bulk).expect("it is bulk"));
    travels.extend([7; 100]);
    vec![up.encode_to_vec(), down.encode_to_vec(), travels]
}

/// Read as from each side.
pub fn copies(input: &[u8]) -> u64 {
    let (up, down) = (decode::<pb::CopyUp>(input), decode::<pb::CopyDown>(input));
    let decoded =
        u64::from(up.is_some_and(|up| up.body.is_some())) + u64::from(down.is_some_and(|down| down.body.is_some()));
    decoded + unframed(input).min(MESSAGES_COUNTED)
}

/// More messages in one input are no progress, only longer.
const MESSAGES_COUNTED: u64 = 4;

/// Messages out of what a network delivers, in pieces of a length that the input says.
fn unframed(input: &[u8]) -> u64 {
    let step = 1 + 37 * usize::from(input.last().copied().unwrap_or(0));
    let (mut unframer, mut messages) = (Unframer::default(), 0);
    for chunk in input.chunks(step) {
        unframer.push(Bytes::copy_from_slice(chunk));
        loop {
            match unframer.message() {
                Ok(Some(_)) => messages += 1,
                Ok(None) => break,
                Err(_) => return messages,
            }
        }
    }
    messages
}

/// Requests of the services.
pub fn request_seeds() -> Vec<Vec<u8>> {
    let path = vec!["dir".into(), "file".into()];
    let history = pb::HistoryRequest { volume: "vol".into(), path, since_ns: 1, limit: 5 };
    let join = pb::JoinRequest { secret: vec![1; 16].into(), ..Default::default() };
    vec![history.encode_to_vec(), join.encode_to_vec()]
}

/// Read as each of them.
pub fn requests(input: &[u8]) -> u64 {
    let read = [
        decode::<pb::HistoryRequest>(input).is_some(),
        decode::<pb::KeptRequest>(input).is_some(),
        decode::<pb::FetchRequest>(input).is_some(),
        decode::<pb::TreeRequest>(input).is_some(),
        decode::<pb::ReadRequest>(input).is_some(),
        decode::<pb::JoinRequest>(input).is_some(),
        decode::<pb::InviteRequest>(input).is_some(),
        decode::<pb::RevokeRequest>(input).is_some(),
        decode::<pb::PullRequest>(input).is_some(),
        decode::<pb::BringRequest>(input).is_some(),
        decode::<pb::DescribeRequest>(input).is_some(),
    ];
    read.into_iter().filter(|read| *read).count() as u64
}
