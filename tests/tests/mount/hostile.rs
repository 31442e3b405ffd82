//! Clients that mean harm, over real TLS: each gets a typed refusal, nobody else notices, and memory stays bounded.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tandem_proto::pb::{
    self, admin_client::AdminClient, client_message::Body, replication_client::ReplicationClient, server_message,
};
use tandem_runtime::{
    connect::ServerAddress,
    tls::{Identity, now_s},
};
use tandem_storaged::trust::ca::Authority;
use tandem_tests::harness::{Lab, Storage, rpc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

const SOON: Duration = Duration::from_secs(30);
/// What an attack may cost the storage daemon.
const GROWTH_MAX_KIB: u64 = 256 << 10;

/// A client that joined for volume `vol`, and its identity.
fn joined(lab: &Lab, storage: &Storage) -> PathBuf {
    let server = format!("127.0.0.1:{}", storage.port());
    let token = lab.tandem(&["invite", "vol", "--server", &server, "--address", &server]).expect_success("invite");
    let token = token.stdout.split_whitespace().last().expect("a token").to_owned();
    let path = lab.path(&format!("identity-{}.pem", storage.port()));
    let identity = path.to_str().expect("plain text");
    lab.tandem(&["join", &server, &token, "--identity", identity]).expect_success("join");
    path
}

fn address(storage: &Storage, identity: &Path) -> ServerAddress {
    ServerAddress { identity: Some(identity.to_owned()), ..ServerAddress::new("127.0.0.1", storage.port()) }
}

async fn connect(storage: &Storage, identity: &Path) -> Result<Channel, Status> {
    let channel = address(storage, identity).connect(SOON, None).await;
    channel.map_err(|error| Status::unavailable(format!("{error:?}")))
}

fn resident_kib(storage: &Storage) -> u64 {
    let pid = storage.daemon().pid().expect("it runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("the kernel tells");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

async fn status(storage: &Storage, identity: &Path) -> Result<(), Status> {
    AdminClient::new(connect(storage, identity).await?).status(pb::StatusRequest::default()).await.map(|_| ())
}

/// An attached stream.
struct Session {
    send: mpsc::Sender<pb::ClientMessage>,
    answers: Streaming<pb::ServerMessage>,
    attached: pb::Attached,
}

fn message(body: Body) -> pb::ClientMessage {
    pb::ClientMessage { body: Some(body) }
}

impl Session {
    async fn open(channel: &Channel) -> Result<Session, Status> {
        let (send, stream) = mpsc::channel(64);
        let attach = pb::Attach {
            protocol: tandem_proto::limits::PROTOCOL_VERSION,
            volume: "vol".to_owned(),
            client_id: vec![1; 16].into(),
            client_name: "hostile".to_owned(),
            run_id: vec![2; 16].into(),
            create: true,
            ..Default::default()
        };
        send.send(message(Body::Attach(attach))).await.expect("the stream is open");
        let mut replication = ReplicationClient::new(channel.clone());
        let mut answers = replication.replicate(ReceiverStream::new(stream)).await?.into_inner();
        match answers.message().await?.and_then(|answer| answer.body) {
            Some(server_message::Body::Attached(attached)) => Ok(Session { send, answers, attached }),
            other => Err(Status::internal(format!("not attached: {other:?}"))),
        }
    }

    fn batch(&self, changes: Vec<pb::change::Kind>) -> pb::Batch {
        let position = self.attached.position.clone().unwrap_or_default();
        let changes = changes.into_iter().map(|kind| pb::Change { kind: Some(kind) }).collect();
        pb::Batch {
            session: self.attached.session,
            epoch: self.attached.epoch,
            first_seq: 1,
            chain_before: position.chain,
            chain_after: vec![9; 16].into(),
            ops: vec![pb::Op { origin: None, changes }],
        }
    }

    /// Sends it, and says how the stream ended.
    async fn ends_with(mut self, body: Option<Body>) -> Result<pb::Refused, Status> {
        let _ = self.send.send(pb::ClientMessage { body }).await;
        loop {
            match self.answers.message().await? {
                Some(pb::ServerMessage { body: Some(server_message::Body::Refused(refused)) }) => return Ok(refused),
                Some(_) => {}
                None => return Err(Status::aborted("the stream ended without a word")),
            }
        }
    }
}

fn entry(dir: &[u8], name: &[u8]) -> pb::change::Kind {
    let (dir, name, new) = (dir.to_vec().into(), name.to_vec().into(), vec![7; 8].into());
    pb::change::Kind::Entry(pb::Entry { dir, name, old: Default::default(), new })
}

/// What is sent on a stream of its own each.
fn attacks(session: &Session) -> Vec<(String, Option<Body>)> {
    let (number, epoch) = (session.attached.session, session.attached.epoch);
    let mut attacks: Vec<(String, Option<Body>)> = Vec::new();
    let names: [&[u8]; 7] = [b"", b".", b"..", b"/etc/passwd", b"a/b", b"a\0b", &[b'x'; 256]];
    for name in names {
        let batch = session.batch(vec![entry(b"", name)]);
        attacks.push((format!("a name {:?}", String::from_utf8_lossy(name)), Some(Body::Batch(batch))));
        let entries = vec![pb::StageEntry { name: name.to_vec().into(), id: vec![7; 8].into(), ..Default::default() }];
        let stage = pb::StageDir { session: number, entries, ..Default::default() };
        attacks.push((format!("a staged name {:?}", String::from_utf8_lossy(name)), Some(Body::StageDir(stage))));
    }
    let mut add = |what: &str, body: Option<Body>| attacks.push((what.to_owned(), body));
    add("an id that is too long", Some(Body::Batch(session.batch(vec![entry(&[1; 32], b"a")]))));
    let data = pb::Data { id: vec![7; 8].into(), offset: u64::MAX - 1, data: vec![0; 64].into() };
    add("data beyond the end of everything", Some(Body::Batch(session.batch(vec![pb::change::Kind::Data(data)]))));
    let hole = pb::Hole { id: vec![7; 8].into(), offset: u64::MAX - 1, len: u64::MAX };
    add("a hole that wraps around", Some(Body::Batch(session.batch(vec![pb::change::Kind::Hole(hole)]))));
    let batch = || session.batch(vec![entry(b"", b"a")]);
    add("a chain that is not the ops'", Some(Body::Batch(batch())));
    add("no ops", Some(Body::Batch(pb::Batch { ops: Vec::new(), ..batch() })));
    add("seq 0", Some(Body::Batch(pb::Batch { first_seq: 0, ..batch() })));
    add("the last seq of all", Some(Body::Batch(pb::Batch { first_seq: u64::MAX, ..batch() })));
    add("another epoch", Some(Body::Batch(pb::Batch { epoch: epoch + 7, ops: vec![pb::Op::default()], ..batch() })));
    add(
        "another session",
        Some(Body::Batch(pb::Batch { session: number + 1, ops: vec![pb::Op::default()], ..batch() })),
    );
    add("a chain of the wrong length", Some(Body::Batch(pb::Batch { chain_before: vec![1; 5].into(), ..batch() })));
    add("nothing", None);
    add("a second attach", Some(Body::Attach(pb::Attach::default())));
    let publish = pb::Publish { session: number, round: 9, position: None };
    add("a publish of nothing", Some(Body::Publish(publish)));
    let stage = pb::StageData { session: number, id: vec![7; 8].into(), offset: 0, data: vec![1].into(), crc32c: 5 };
    add("staged bytes with a wrong checksum", Some(Body::StageData(stage)));
    let pieces = vec![pb::Piece { offset: 0, len: u64::MAX, digest: vec![1; 32].into(), ..Default::default() }];
    let recipe = pb::StageRecipe { session: number, id: vec![7; 8].into(), pieces };
    add("a piece of all bytes there are", Some(Body::StageRecipe(recipe)));
    attacks
}

#[test]
fn writer_that_lies_is_refused_by_type_for_each_lie_and_others_do_not_notice() {
    let Some(lab) = Lab::new("liars") else { return };
    for part in ["refused", "session", "damaged", "chain", "stream"] {
        lab.allow(part, "this client lies");
    }
    let storage = lab.storage();
    let identity = joined(&lab, &storage);
    let dir = lab.new_dir("others");
    let mount = lab.mount(&storage, "others", &dir);
    let before = resident_kib(&storage);
    rpc::block_on(async {
        let channel = connect(&storage, &identity).await?;
        let count = attacks(&Session::open(&channel).await?).len();
        for at in 0..count {
            let session = Session::open(&channel).await?;
            let (what, body) = attacks(&session).swap_remove(at);
            let end = tokio::time::timeout(SOON, session.ends_with(body)).await;
            let refused =
                end.unwrap_or_else(|_| panic!("{what}: no answer")).unwrap_or_else(|end| panic!("{what}: {end}"));
            assert!(refused.reason != 0 && !refused.message.is_empty(), "{what}: {refused:?}");
        }
        Ok(())
    })
    .expect("the storage daemon answers");
    fs::write(dir.join("file"), "1").expect("writable");
    mount.settle();
    assert!(!storage.tree("vol").join("a").exists() && !Path::new("/etc/passwd/").exists(), "nothing was written");
    let grown = resident_kib(&storage).saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "the storage daemon grew by {grown} KiB");
}

#[test]
fn frames_that_claim_gigabytes_or_hold_garbage_are_refused_without_memory() {
    let Some(lab) = Lab::new("claims") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let identity = joined(&lab, &storage);
    let before = resident_kib(&storage);
    // A gRPC frame: one byte of flags, four of length, and what is there of it. 0x7f7f7f7f is 2 GiB.
    let frames = ["\0\x7f\x7f\x7f\x7f", "\0\0\0\0\x02\x12\x7f", "\x01\0\0\0\x01x", "\0\0\0\0\x05aaaaa", "nonsense"];
    let paths = ["/tandem.v1.Replication/Replicate", "/tandem.v1.Replication/Describe", "/tandem.v1.Trust/Join"];
    rpc::block_on(async {
        for (path, frame) in paths.iter().flat_map(|path| frames.iter().map(move |frame| (*path, *frame))) {
            let mut channel = connect(&storage, &identity).await?;
            let request = http::Request::post(format!("http://storaged{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(tonic::body::Body::new((*frame).to_owned()))
                .expect("a request");
            std::future::poll_fn(|cx| tower::Service::poll_ready(&mut channel, cx)).await.expect("ready");
            let response = tokio::time::timeout(SOON, tower::Service::call(&mut channel, request)).await;
            let response = response.unwrap_or_else(|_| panic!("{path} {frame:?}: no answer"));
            // A stream is answered with its beginning; what ends it comes in its trailers.
            if let Ok(response) = response
                && let Some(code) = response.headers().get("grpc-status")
            {
                assert_ne!(code, "0", "{path} {frame:?}");
            }
        }
        status(&storage, &identity).await
    })
    .expect("the storage daemon answers");
    let grown = resident_kib(&storage).saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "the storage daemon grew by {grown} KiB");
}

#[test]
fn certificates_that_are_not_this_storage_daemons_or_are_over_let_nobody_in() {
    let Some(lab) = Lab::new("certificates") else { return };
    lab.allow_lost_peers();
    let (storage, other) = (lab.storage(), Storage::start(&lab, "other"));
    let (good, foreign) = (joined(&lab, &storage), joined(&lab, &other));
    let load = |path: &Path| Identity::load(path).expect("readable").expect("there");
    // A certificate of another CA, shown to this one.
    let mixed = lab.path("mixed.pem");
    Identity { ca: load(&good).ca, ..load(&foreign) }.store(&mixed).expect("stored");
    let authority = Authority::open_or_create(&storage.data().join(".trust")).expect("the CA");
    let made = |name: &str, life_s: i64| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
        let issued = authority.issue_for(request.der(), life_s).expect("issued");
        let key = rustls_key(&key);
        let identity = Identity { key, certificate: issued.certificate.into(), ..load(&good) };
        let path = lab.path(name);
        Identity { expires_s: now_s() + 1000, ..identity }.store(&path).expect("stored");
        path
    };
    // Of this CA, but over; and one that the registry does not know.
    let (over, unknown) = (made("over.pem", -10), made("unknown.pem", 1000));
    rpc::block_on(async {
        status(&storage, &good).await?;
        for path in [&mixed, &over] {
            assert!(status(&storage, path).await.is_err(), "{}", path.display());
        }
        let refused = status(&storage, &unknown).await.expect_err("nobody knows it");
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        // Our own certificate, shown by somebody who says to be the storage daemon we joined elsewhere.
        let swapped = status(&storage, &foreign).await.expect_err("another storage daemon");
        assert!(!format!("{swapped:?}").is_empty());
        status(&storage, &good).await
    })
    .expect("the storage daemon answers");
}

fn rustls_key(key: &rcgen::KeyPair) -> rustls::pki_types::PrivateKeyDer<'static> {
    rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into())
}

#[test]
fn crowd_of_connections_that_never_speak_keeps_no_client_out() {
    /// Connections that are opened, and kept open as long as the other side likes.
    const CROWD: usize = 3000;
    let Some(lab) = Lab::new("crowd") else { return };
    lab.allow_lost_peers();
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(16_384), maximum: Some(limit.maximum.unwrap_or(65_536).max(16_384)) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        eprintln!("SKIPPED crowd: no descriptors for it");
        return;
    }
    let storage = lab.storage();
    let identity = joined(&lab, &storage);
    let before = resident_kib(&storage);
    let mut crowd = Vec::new();
    for at in 0..CROWD {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", storage.port())) else { continue };
        // Some say nothing, some begin a handshake, some something else, and none goes on.
        let first: &[u8] = [&b""[..], &[0x16], &[0x16, 3, 1, 2, 0, 1], b"PRI * HTTP/2.0\r\n"][at % 4];
        let _ = stream.write_all(first);
        crowd.push(stream);
        if at % 500 == 0 {
            rpc::block_on(status(&storage, &identity)).expect("a client is served");
        }
    }
    rpc::block_on(status(&storage, &identity)).expect("a client is served beside the crowd");
    let grown = resident_kib(&storage).saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "the storage daemon grew by {grown} KiB");
}
