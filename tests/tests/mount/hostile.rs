//! Clients that mean harm, over real TLS: each gets a typed refusal, nobody else notices, and memory stays bounded.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::Bytes;
use tandem_proto::pb::{
    self, admin_client::AdminClient, change::Kind, client_message::Body, refused::Reason, server_message,
};
use tandem_runtime::tls::{Identity, now_s};
use tandem_storaged::trust::ca::Authority;
use tandem_tests::{
    harness::{Lab, MountSpec, Storage, eventually, rpc},
    hostile::{self, RUN, Run, SOON, Session, crowd, lies},
    rng::content,
};
use tonic::{Code, Status};

use crate::support::assert_equal_and_unmount;

/// What an attack may cost the storage daemon.
const GROWTH_MAX_KIB: u64 = 256 << 10;

fn resident_kib(storage: &Storage) -> u64 {
    let pid = storage.daemon().pid().expect("it runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("the kernel tells");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

fn assert_bounded(storage: &Storage, before_kib: u64) {
    let grown = resident_kib(storage).saturating_sub(before_kib);
    assert!(grown < GROWTH_MAX_KIB, "the storage daemon grew by {grown} KiB");
}

async fn status(storage: &Storage, identity: &Path) -> Result<(), Status> {
    AdminClient::new(hostile::connect(storage.port(), identity).await?)
        .status(pb::StatusRequest::default())
        .await
        .map(|_| ())
}

#[test]
fn writer_that_lies_is_refused_by_type_for_each_lie_and_others_do_not_notice() {
    let Some(lab) = Lab::new("liars") else { return };
    for part in ["refused", "session", "damaged", "chain", "stream"] {
        lab.allow(part, "this client lies");
    }
    let storage = lab.storage();
    let identity = hostile::join(&lab, &storage, "liar");
    let dir = lab.new_dir("others");
    let mount = lab.mount(&storage, "others", &dir);
    let before = resident_kib(&storage);
    rpc::block_on(async {
        let channel = hostile::connect(storage.port(), &identity).await?;
        let mut first = Session::open(&channel, RUN).await?;
        first.go_live().await?;
        let count = lies::all(&first).len();
        drop(first);
        for at in 0..count {
            let session = Session::open(&channel, RUN).await?;
            let (what, bytes) = lies::all(&session).swap_remove(at);
            session.send_raw(bytes).await;
            let end = tokio::time::timeout(SOON, session.refused()).await;
            let refused =
                end.unwrap_or_else(|_| panic!("{what}: no answer")).unwrap_or_else(|end| panic!("{what}: {end}"));
            assert!(refused.reason != 0 && !refused.message.is_empty(), "{what}: {refused:?}");
        }
        Ok(())
    })
    .expect("the storage daemon answers");
    fs::write(dir.join("file"), "1").expect("writable");
    mount.settle();
    assert_eq!(fs::read_dir(storage.tree("vol")).expect("a tree").count(), 0, "nothing was written");
    assert_bounded(&storage, before);
}

#[test]
fn messages_that_are_replayed_or_reordered_change_nothing() {
    let Some(lab) = Lab::new("replays") else { return };
    for part in ["refused", "session", "stream", "epoch"] {
        lab.allow(part, "this client lies");
    }
    let storage = lab.storage();
    let identity = hostile::join(&lab, &storage, "replayer");
    let file = storage.tree("vol").join("file");
    let content = || fs::read_to_string(&file).unwrap_or_default();
    rpc::block_on(async {
        let channel = hostile::connect(storage.port(), &identity).await?;
        let mut session = Session::open(&channel, RUN).await?;
        session.go_live().await?;
        let born = session.batch(&session.position(), new_file());
        let first = session.batch(&hostile::after(&born), data("first"));
        let second = session.batch(&hostile::after(&first), data("other"));
        for batch in [&born, &first, &second] {
            session.send(Body::Batch(batch.clone())).await;
        }
        session.applied(second.first_seq).await?;
        assert_eq!(content(), "other");
        // All of it once more: it is known, and not done again.
        for batch in [&born, &first, &second] {
            session.send(Body::Batch(batch.clone())).await;
        }
        session.send(Body::Barrier(pb::Barrier { session: session.attached.session, token: 9 })).await;
        while !matches!(session.next().await?, server_message::Body::Barrier(reached) if reached.token == 9) {}
        assert_eq!(content(), "other", "a batch that was replayed was done again");
        // The second before the first, both new.
        let third = session.batch(&hostile::after(&second), data("third"));
        let fourth = session.batch(&hostile::after(&third), data("4th.."));
        session.send(Body::Batch(fourth.clone())).await;
        assert_eq!(session.refused().await?.reason(), Reason::Gap);
        // Another op in the place of one that is known.
        let session = Session::open(&channel, RUN).await?;
        let number = session.attached.session;
        let forged = session.batch(&hostile::after(&born), data("forge"));
        session.send(Body::Batch(forged)).await;
        assert_eq!(session.refused().await?.reason(), Reason::Diverged);
        // What an older session sent.
        let session = Session::open(&channel, RUN).await?;
        session.send(Body::Batch(pb::Batch { session: number, ..third.clone() })).await;
        assert_eq!(session.refused().await?.reason(), Reason::StaleSession);
        // What an older epoch sent, and its attach.
        let mut newer = Session::open(&channel, Run { client: 5, ..RUN }).await?;
        newer.go_live().await?;
        newer.send(Body::Batch(pb::Batch { session: newer.attached.session, ..third })).await;
        assert_eq!(newer.refused().await?.reason(), Reason::Fenced);
        let fenced = Session::open(&channel, Run { epoch: first.epoch, ..RUN }).await.err().expect("it is fenced");
        assert!(fenced.message().starts_with("Fenced"), "{fenced}");
        Ok(())
    })
    .expect("the storage daemon answers");
    assert_eq!(content(), "other", "none of it was done");
}

/// A file in the root.
fn new_file() -> Vec<Kind> {
    let kind = pb::NodeKind { r#type: pb::FileType::Regular.into(), ..Default::default() };
    let attr = pb::Attr { mode: Some(0o644), uid: Some(0), gid: Some(0), mtime_s: Some(1), ..Default::default() };
    let id = || Bytes::from_static(b"a file's");
    let entry = pb::Entry { name: "file".into(), new: id(), ..Default::default() };
    vec![
        Kind::Birth(pb::Birth { id: id(), kind: Some(kind) }),
        Kind::Attr(pb::Attr { id: id(), ..attr }),
        Kind::Entry(entry),
    ]
}

fn data(text: &'static str) -> Vec<Kind> {
    vec![Kind::Data(pb::Data { id: Bytes::from_static(b"a file's"), offset: 0, data: text.into() })]
}

/// Somebody on the way who sends a record of TLS again, or two in the other order, as often as is left to do. Their port.
fn meddler(storage: &Storage, left: &Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (upstream, left) = (storage.port(), left.clone());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
            let (Ok(mut from), Ok(mut to)) = (server.try_clone(), client.try_clone()) else { continue };
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let left = left.clone();
            thread::spawn(move || {
                let _ = meddle(client, &server, &left);
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

/// Passes records of a client on; those of its handshake as they are.
fn meddle(mut client: TcpStream, mut server: &TcpStream, left: &AtomicUsize) -> std::io::Result<()> {
    const HANDSHAKE: usize = 6;
    let mut read = || {
        let mut record = vec![0; 5];
        client.read_exact(&mut record)?;
        let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(5 + len, 0);
        client.read_exact(&mut record[5..]).map(|()| record)
    };
    for number in 0.. {
        let mut record = read()?;
        let harm = if number < HANDSHAKE { None } else { Some(left) };
        let less =
            |left: &AtomicUsize| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match harm.map(less) {
            Some(Ok(left)) if left % 2 == 0 => record.extend_from_within(..),
            Some(Ok(_)) => record = [read()?, record].concat(),
            _ => {}
        }
        server.write_all(&record)?;
    }
    Ok(())
}

#[test]
fn records_that_are_replayed_or_reordered_on_the_way_end_the_connection_and_nothing_is_lost_or_done_twice() {
    let Some(lab) = Lab::new("records") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let left = Arc::new(AtomicUsize::new(0));
    let port = meddler(&storage, &left);
    let identity = hostile::join(&lab, &storage, "client");
    let source = format!("127.0.0.1:{port}:/vol");
    let options = format!("identity={}", identity.display());
    let mount = lab.mount_with(&MountSpec {
        source,
        mountpoint: lab.new_dir("folder"),
        options,
        state: None,
        tracer: Vec::new(),
    });
    mount.settle();
    left.store(4, Ordering::Relaxed);
    for round in 0..40 {
        fs::write(mount.path().join(format!("file{}", round % 7)), content(round, 20_000)).expect("writable");
    }
    assert!(eventually(SOON, || left.load(Ordering::Relaxed) == 0), "the stream goes on each time");
    mount.settle();
    assert!(mount.daemon().log_text().contains("to=offline"), "a record that came twice ended nothing");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn streams_that_say_nothing_are_bounded_and_other_clients_are_served() {
    /// More than may wait for their first message.
    const SILENT: usize = 60;
    let Some(lab) = Lab::new("silent") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let (mute, other) = (hostile::join(&lab, &storage, "mute"), hostile::join(&lab, &storage, "other"));
    rpc::block_on(async {
        let channel = hostile::connect(storage.port(), &mute).await?;
        let (mut open, mut refused) = (Vec::new(), 0);
        for _ in 0..SILENT {
            match Session::open_raw(&channel, None).await {
                Ok(stream) => open.push(stream),
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && !open.is_empty(), "{} are open", open.len());
        let another = hostile::connect(storage.port(), &other).await?;
        Session::open(&another, RUN).await?.go_live().await?;
        // A place is free again when a stream has ended.
        drop(open);
        let mut again = Session::open(&channel, Run { client: 7, ..RUN }).await;
        for _ in 0..1000 {
            if again.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            again = Session::open(&channel, Run { client: 7, ..RUN }).await;
        }
        again.map(drop)
    })
    .expect("another client is served");
}

#[test]
fn connections_of_one_client_beyond_its_bound_are_refused_and_other_clients_are_served() {
    /// More than a client may have.
    const MANY: usize = 70;
    let Some(lab) = Lab::new("crowding") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let (greedy, other) = (hostile::join(&lab, &storage, "greedy"), hostile::join(&lab, &storage, "other"));
    rpc::block_on(async {
        let (mut open, mut refused) = (Vec::new(), 0);
        for _ in 0..MANY {
            let channel = hostile::connect(storage.port(), &greedy).await?;
            match AdminClient::new(channel.clone()).status(pb::StatusRequest::default()).await {
                Ok(_) => open.push(channel),
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && open.len() < MANY, "{} are open", open.len());
        status(&storage, &other).await
    })
    .expect("another client is served");
}

#[test]
fn frames_that_claim_gigabytes_or_hold_garbage_are_refused_without_memory() {
    let Some(lab) = Lab::new("claims") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let identity = hostile::join(&lab, &storage, "client");
    let before = resident_kib(&storage);
    // A gRPC frame: one byte of flags, four of length, and what is there of it. 0x7f7f7f7f is 2 GiB.
    let frames = ["\0\x7f\x7f\x7f\x7f", "\0\0\0\0\x02\x12\x7f", "\x01\0\0\0\x01x", "\0\0\0\0\x05aaaaa", "nonsense"];
    let paths = ["/tandem.v1.Replication/Replicate", "/tandem.v1.Replication/Describe", "/tandem.v1.Trust/Join"];
    rpc::block_on(async {
        for (path, frame) in paths.iter().flat_map(|path| frames.iter().map(move |frame| (*path, *frame))) {
            let mut channel = hostile::connect(storage.port(), &identity).await?;
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
    assert_bounded(&storage, before);
}

#[test]
fn certificates_that_are_not_this_storage_daemons_or_are_over_let_nobody_in() {
    let Some(lab) = Lab::new("certificates") else { return };
    lab.allow_lost_peers();
    let (storage, other) = (lab.storage(), Storage::start(&lab, "other"));
    let (good, foreign) = (hostile::join(&lab, &storage, "good"), hostile::join(&lab, &other, "foreign"));
    let revoked = hostile::join(&lab, &storage, "revoked");
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
        // One that was good until a moment ago.
        status(&storage, &revoked).await?;
        let server = format!("127.0.0.1:{}", storage.port());
        lab.tandem(&["revoke", "revoked", "--server", &server]).expect_success("revoke");
        let refused = status(&storage, &revoked).await.expect_err("it was revoked");
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
fn ten_thousand_connections_that_never_get_to_the_point_keep_no_client_out() {
    const CROWD: usize = 10_000;
    /// A client comes each time so many more are there.
    const LOOK_EVERY: usize = 2000;
    let Some(lab) = Lab::new("crowd") else { return };
    lab.allow_lost_peers();
    if !crowd::may_have(CROWD as u64) {
        eprintln!("SKIPPED crowd: no descriptors for it");
        return;
    }
    let storage = lab.storage();
    let identity = hostile::join(&lab, &storage, "client");
    let before = resident_kib(&storage);
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, storage.port()));
    let mut crowd = crowd::Crowd::default();
    for at in 0..CROWD {
        crowd.grow(server);
        if at % LOOK_EVERY == 0 {
            // Slowly, so that they seem to be alive.
            crowd.trickle();
            rpc::block_on(status(&storage, &identity)).expect("a client is served");
            storage.status().expect("so is who has the secret");
        }
    }
    assert!(crowd.len() > CROWD / 2, "{} of them came", crowd.len());
    rpc::block_on(status(&storage, &identity)).expect("a client is served beside the crowd");
    storage.status().expect("so is who has the secret");
    assert_bounded(&storage, before);
    // Most were sent away; who is left is within the bounds of who is not known.
    assert!(eventually(SOON, || crowd.inside() < 1200), "{} of them are still inside", crowd.inside());
}
