//! What is fed, and with what it begins.

use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message as _;
use tandem_mountd::options;
use tandem_proto::{
    VolumeName, chunks, convert, packed,
    pb::{self, client_message::Body},
};
use tandem_pull::Writer;
use tandem_runtime::{
    connect::ServerAddress,
    frame,
    tls::{Identity, Token},
};
use tandem_storaged::{
    ingest::incoming::{AttachRequest, Incoming},
    log::{Log, LogOptions, LogPos, codec, mem::MemDisk},
    trust::ca::Authority,
    volume::state::State,
};

use super::{kept, receiver, stored, wire};

/// Something that reads what others wrote.
pub struct Target {
    /// On the command line.
    pub name: &'static str,
    /// Of what it is.
    pub what: &'static str,
    /// Good inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Takes any input; more if it got further. 0: it was refused at once.
    pub run: fn(&[u8]) -> u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "client-message",
        what: "messages of a writer, as the storage daemon checks them",
        seeds: client_seeds,
        run: client_message,
    },
    Target {
        name: "pull",
        what: "a storage daemon's answer to a pull, as it is written to a folder",
        seeds: pull_seeds,
        run: pull,
    },
    Target { name: "log-segment", what: "a segment of the log, at recovery", seeds: segment_seeds, run: segment },
    Target { name: "log-record", what: "the payload of a record of the log", seeds: record_seeds, run: record },
    Target {
        name: "receiver",
        what: "what a volume accepts from its writers, as a program of events",
        seeds: receiver::seeds,
        run: receiver::run,
    },
    Target {
        name: "server-message",
        what: "messages of a storage daemon, as a mount reads them",
        seeds: wire::server_seeds,
        run: wire::server,
    },
    Target {
        name: "copies",
        what: "messages of tandem cp, from both sides",
        seeds: wire::copy_seeds,
        run: wire::copies,
    },
    Target { name: "requests", what: "requests of all services", seeds: wire::request_seeds, run: wire::requests },
    Target { name: "catalog", what: "records of the catalog", seeds: stored::catalog_seeds, run: stored::catalog },
    Target { name: "index", what: "records of the content index", seeds: stored::index_seeds, run: stored::index },
    Target { name: "frame", what: "a framed record", seeds: frame_seeds, run: framed },
    Target { name: "state", what: "the state file of a volume", seeds: state_seeds, run: state },
    Target { name: "kept", what: "what a mount keeps of its folder", seeds: kept::seeds, run: kept::run },
    Target { name: "token", what: "a token of tandem invite", seeds: token_seeds, run: token },
    Target { name: "identity", what: "a client's identity file", seeds: identity_seeds, run: identity },
    Target { name: "request", what: "a request for a certificate", seeds: request_seeds, run: request },
    Target { name: "names", what: "addresses, sources, volumes and options", seeds: name_seeds, run: names },
    Target { name: "chunks", what: "content, as it is cut into chunks", seeds: chunk_seeds, run: cut },
];

fn encoded(body: Body) -> Vec<u8> {
    pb::ClientMessage { body: Some(body) }.encode_to_vec()
}

fn id(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 12])
}

fn changes() -> Vec<pb::Change> {
    use pb::change::Kind;
    let name = Bytes::from_static(b"file");
    let kind = pb::NodeKind { r#type: pb::FileType::Regular.into(), ..Default::default() };
    let kinds = vec![
        Kind::Birth(pb::Birth { id: id(1), kind: Some(kind) }),
        Kind::Entry(pb::Entry { dir: id(2), name: name.clone(), old: Bytes::new(), new: id(1) }),
        Kind::Attr(pb::Attr { id: id(1), mode: Some(0o644), mtime_s: Some(-1), ..Default::default() }),
        Kind::Xattr(pb::Xattr { id: id(1), name: "user.a".into(), value: Some(name) }),
        Kind::Data(pb::Data { id: id(1), offset: 4096, data: vec![7; 100].into() }),
        Kind::Hole(pb::Hole { id: id(1), offset: 0, len: 1 << 40 }),
        Kind::Size(pb::Size { id: id(1), size: 1 << 50 }),
    ];
    kinds.into_iter().map(|kind| pb::Change { kind: Some(kind) }).collect()
}

fn client_seeds() -> Vec<Vec<u8>> {
    let position = pb::Position { epoch: 1, seq: 5, chain: vec![3; 16].into() };
    let attach = pb::Attach {
        protocol: tandem_proto::limits::PROTOCOL_VERSION,
        volume: "vol".into(),
        client_id: vec![1; 16].into(),
        client_name: "me@here:/home".into(),
        run_id: vec![2; 16].into(),
        have: Some(position.clone()),
        runs: vec![vec![2; 16].into()],
        ..Default::default()
    };
    let op = pb::Op { origin: Some(pb::Origin { process: "cp".into(), ..Default::default() }), changes: changes() };
    let mut scratch = Vec::new();
    let before = convert::chain("chain", &[3; 16]).expect("sixteen bytes");
    let after = convert::chain_after(&before, tandem_proto::Seq(6), &op, &mut scratch);
    let batch = pb::Batch {
        session: 1,
        epoch: 1,
        first_seq: 6,
        chain_before: position.chain.clone(),
        chain_after: after.0.to_vec().into(),
        ops: vec![op],
    };
    let entry = pb::StageEntry { name: "a".into(), id: id(1), r#type: pb::FileType::Regular.into(), stamp: 1 };
    let listing = pb::Listing::CompleteEnd.into();
    let dir =
        pb::StageDir { session: 1, dir: id(2), listing, entries: vec![entry], born_since: Some(position.clone()) };
    let pieces = vec![pb::Piece { offset: 0, len: 100, digest: vec![1; 32].into(), ..Default::default() }];
    let recipe = pb::StageRecipe { session: 1, id: id(1), pieces };
    let many = pb::StageRecipe { pieces: vec![recipe.pieces[0].clone(); 100], ..recipe.clone() };
    let packed = packed::pack(&pb::ClientMessage { body: Some(Body::StageRecipe(many)) }).expect("it gets shorter");
    let items = vec![pb::VerifyItem { kind: 1, id: id(1), digest: vec![1; 32].into(), ..Default::default() }];
    vec![
        encoded(Body::Verify(pb::VerifyCheck { session: 1, token: 1, seq: 5, items, confirm: false })),
        packed.encode_to_vec(),
        encoded(Body::Attach(attach)),
        encoded(Body::Batch(batch)),
        encoded(Body::StageDir(dir)),
        encoded(Body::StageRecipe(recipe)),
        encoded(Body::Publish(pb::Publish { session: 1, round: 1, position: Some(position) })),
    ]
}

fn client_message(input: &[u8]) -> u64 {
    let Some(message) = wire::decode::<pb::ClientMessage>(input) else { return 0 };
    let Ok(message) = packed::unpack(message) else { return 1 };
    match message.body {
        Some(Body::Attach(attach)) => 1 + u64::from(AttachRequest::check(attach).is_ok()),
        _ => 1 + 2 * u64::from(Incoming::check(message).is_ok()),
    }
}

/// Messages one after the other, each with its length before it.
fn sequence(messages: &[pb::PullMessage]) -> Vec<u8> {
    messages.iter().flat_map(prost::Message::encode_length_delimited_to_vec).collect()
}

fn pull_seeds() -> Vec<Vec<u8>> {
    use pb::pull_message::Body;
    let attr =
        pb::Attr { id: Bytes::new(), mode: Some(0o755), uid: Some(0), gid: Some(0), mtime_s: Some(1), mtime_ns: 0 };
    let node = |path: &[&str], kind: pb::FileType, size| {
        let path = path.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
        let target = if kind == pb::FileType::Symlink { "../../etc".into() } else { Bytes::new() };
        let kind = pb::NodeKind { r#type: kind.into(), target, ..Default::default() };
        Body::Node(pb::PullNode { path, kind: Some(kind), attr: Some(attr.clone()), xattrs: Vec::new(), size })
    };
    let data: Bytes = b"hello".to_vec().into();
    let checksum = crc32c::crc32c(&data);
    let link = pb::PullLink { path: vec!["again".into()], target: vec!["dir".into(), "file".into()] };
    let bodies = [
        node(&[], pb::FileType::Directory, 0),
        node(&["dir"], pb::FileType::Directory, 0),
        node(&["dir", "file"], pb::FileType::Regular, 5),
        Body::Data(pb::PullData { offset: 0, data, crc32c: checksum }),
        Body::Link(link),
        node(&["link"], pb::FileType::Symlink, 0),
        node(&["link", "x"], pb::FileType::Regular, 0),
    ];
    let messages: Vec<_> = bodies.into_iter().map(|body| pb::PullMessage { body: Some(body) }).collect();
    vec![sequence(&messages[..5]), sequence(&messages)]
}

fn pull(mut input: &[u8]) -> u64 {
    use pb::pull_message::Body;
    let Ok(dir) = tempfile::tempdir() else { return 1 };
    let inner = dir.path().join("inner");
    if std::fs::create_dir(&inner).is_err() {
        return 1;
    }
    let Ok(mut writer) = Writer::open(&inner) else { return 1 };
    let mut depth = 0;
    while let Ok(message) = pb::PullMessage::decode_length_delimited(&mut input) {
        depth += 1;
        // A hole of the size of everything is legal; making it costs this test nothing, syncing would.
        let went = match message.body {
            Some(Body::Node(node)) if node.size > 1 << 40 => break,
            Some(Body::Node(node)) => writer.node(node),
            Some(Body::Data(data)) => writer.data(&data),
            Some(Body::Link(link)) => writer.link(&link),
            _ => break,
        };
        if went.is_err() || input.is_empty() {
            break;
        }
    }
    drop(writer);
    let names = std::fs::read_dir(dir.path()).map_or(0, Iterator::count);
    assert_eq!(names, 1, "something was written beside the folder");
    depth
}

const OPTIONS: LogOptions = LogOptions { segment_bytes: 4096, free_max: 1 };
const START: LogPos = LogPos { segment: 1, offset: 0 };

fn new_log() -> (MemDisk, Log<MemDisk>) {
    let disk = MemDisk::default();
    let log = Log::create(disk.clone(), OPTIONS, [7; 16]).expect("an empty disk");
    (disk, log)
}

fn segment_name(disk: &MemDisk) -> String {
    use tandem_storaged::log::disk::Disk as _;
    let names = disk.list().unwrap_or_default();
    names.into_iter().find(|name| disk.content(name).is_some()).unwrap_or_default()
}

fn segment_seeds() -> Vec<Vec<u8>> {
    let (disk, mut log) = new_log();
    for record in record_seeds() {
        let (kind, payload) = (record[0], &record[1..]);
        let append = tandem_storaged::log::Append { kind, version: codec::VERSION, payload };
        log.append_group(&[append]).expect("room");
    }
    vec![disk.content(&segment_name(&disk)).unwrap_or_default()]
}

fn segment(input: &[u8]) -> u64 {
    let (disk, log) = new_log();
    drop(log);
    disk.damage(&segment_name(&disk), |bytes| {
        let len = bytes.len().min(input.len());
        bytes[..len].copy_from_slice(&input[..len]);
    });
    let Ok(log) = Log::open(disk, OPTIONS, START, START) else { return 1 };
    let mut depth = 1;
    for record in log.records_from(log.start()) {
        let Ok(record) = record else { break };
        depth += 1 + u64::from(codec::decode_raw(record).is_ok());
    }
    depth
}

fn record_seeds() -> Vec<Vec<u8>> {
    let batch = pb::Batch {
        first_seq: 1,
        epoch: 1,
        chain_after: vec![5; 16].into(),
        ops: vec![pb::Op { origin: None, changes: changes() }],
        ..Default::default()
    };
    // Its kind goes before it; 2 is that of ops.
    let mut ops = vec![2];
    ops.extend(batch.encode_to_vec());
    vec![ops]
}

fn record(input: &[u8]) -> u64 {
    let Some((kind, payload)) = input.split_first() else { return 0 };
    1 + u64::from(codec::decode(*kind, codec::VERSION, Bytes::copy_from_slice(payload)).is_ok())
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, 1, 2, 3, b"payload");
    vec![bytes]
}

fn framed(input: &[u8]) -> u64 {
    let _ = frame::parse(input, 1);
    1
}

fn state_seeds() -> Vec<Vec<u8>> {
    Vec::from([b"tandem volume 1\n".to_vec()])
}

fn state(input: &[u8]) -> u64 {
    1 + u64::from(State::decode(input).is_ok())
}

fn token_seeds() -> Vec<Vec<u8>> {
    let address = ServerAddress::new("storage.example", 7440);
    let token = Token { ca: tandem_runtime::tls::Fingerprint([7; 32]), secret: [9; 16], address };
    vec![token.to_string().into_bytes()]
}

fn token(input: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(input);
    1 + u64::from(text.parse::<Token>().is_ok())
}

fn identity_seeds() -> Vec<Vec<u8>> {
    let key = "-----BEGIN PRIVATE KEY-----\nAQEBAQ==\n-----END PRIVATE KEY-----\n";
    let certificate = "-----BEGIN CERTIFICATE-----\nAgICAg==\n-----END CERTIFICATE-----\n";
    let head = "tandem identity 1\nclient: me\nexpires: 5\nrenew-after: 3\n";
    vec![format!("{head}{key}{certificate}{certificate}").into_bytes()]
}

fn identity(input: &[u8]) -> u64 {
    1 + u64::from(Identity::parse(&String::from_utf8_lossy(input)).is_ok())
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    Authority::open_or_create(dir.path()).expect("a new CA")
});

fn request_seeds() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::generate().expect("a key");
    vec![rcgen::CertificateParams::default().serialize_request(&key).expect("a request").der().to_vec()]
}

fn request(input: &[u8]) -> u64 {
    1 + u64::from(AUTHORITY.issue(input).is_ok())
}

fn name_seeds() -> Vec<Vec<u8>> {
    ["localhost:7440:/home", "[::1]:7440:/a.b-c", "fsync=durable:/db,window=64M,keepalive=2"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

fn names(input: &[u8]) -> u64 {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};
    let text = String::from_utf8_lossy(input);
    let parsed = u64::from(text.parse::<ServerAddress>().is_ok()) + u64::from(text.parse::<VolumeName>().is_ok());
    let source = u64::from(text.parse::<options::Source>().is_ok());
    let arguments = ["localhost:/home", "/mnt", "-o"].map(OsString::from);
    let arguments: Vec<_> = arguments.into_iter().chain([OsString::from_vec(input.to_vec())]).collect();
    // A configuration file is another's business, and must not be read here.
    if text.contains("config") {
        return 1;
    }
    1 + parsed + source + u64::from(options::parse(&arguments, false).is_ok())
}

fn chunk_seeds() -> Vec<Vec<u8>> {
    vec![crate::rng::content(1, 60_000)]
}

fn cut(input: &[u8]) -> u64 {
    let mut at = 0;
    for (offset, len) in chunks(input) {
        assert_eq!(offset, at, "chunks follow each other");
        at += len;
    }
    assert_eq!(at, input.len(), "chunks cover what they are cut from");
    1
}
