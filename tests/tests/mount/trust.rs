//! Who may talk to a storage daemon: joining, roles, renewal and revocation, over real TLS.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tandem_proto::pb::{
    self, admin_client::AdminClient, client_message::Body, replication_client::ReplicationClient, server_message,
    trust_client::TrustClient,
};
use tandem_runtime::connect::ServerAddress;
use tandem_tests::harness::{Finished, Lab, MountSpec, Storage, eventually, rpc};
use tonic::{Code, Status, transport::Channel};

use crate::support::assert_equal_and_unmount;

const SOON: Duration = Duration::from_secs(30);

fn server(storage: &Storage) -> String {
    format!("127.0.0.1:{}", storage.port())
}

/// The token of an invitation.
fn invite(lab: &Lab, storage: &Storage, volume: &str, more: &[&str]) -> String {
    let server = server(storage);
    let arguments = [&["invite", volume, "--server", &server, "--address", &server], more].concat();
    let finished = lab.tandem(&arguments).expect_success("invite");
    finished.stdout.split_whitespace().last().expect("a token").to_owned()
}

fn join(lab: &Lab, storage: &Storage, token: &str, identity: Option<&Path>) -> Finished {
    let server = server(storage);
    let mut arguments = vec!["join", &server, token, "--name", "me@test"];
    if let Some(identity) = identity {
        arguments.extend(["--identity", identity.to_str().expect("plain text")]);
    }
    lab.tandem(&arguments)
}

/// Where the lab keeps the identity for this storage daemon.
fn identity(lab: &Lab, storage: &Storage) -> PathBuf {
    lab.state_dir().join("identities").join(format!("{}.pem", server(storage)))
}

fn address(storage: &Storage, identity: &Path) -> ServerAddress {
    ServerAddress { identity: Some(identity.to_owned()), ..ServerAddress::new("127.0.0.1", storage.port()) }
}

async fn connect(address: &ServerAddress) -> Result<Channel, Status> {
    address.connect(SOON, None).await.map_err(|error| Status::unavailable(format!("{error:?}")))
}

#[test]
fn client_that_joined_mounts_over_tls_and_is_cut_when_it_is_revoked() {
    let Some(lab) = Lab::new("join") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let token = invite(&lab, &storage, "vol", &[]);
    join(&lab, &storage, &token, None).expect_success("join");
    let again = join(&lab, &storage, &token, Some(&lab.path("again.pem")));
    assert!(again.code == Some(3) && again.stderr.contains("not good"), "a token is good once: {again:#?}");

    let dir = lab.new_dir("folder");
    let mount = lab.mount(&storage, "vol", &dir);
    fs::write(dir.join("before"), "1").expect("writable");
    mount.settle();
    let status = mount.status();
    assert_eq!((status.security.as_str(), status.state.as_str()), ("tls", "live"), "{status:#?}");
    let clients = lab.tandem(&["clients", "--server", &server(&storage)]).expect_success("clients");
    assert!(clients.stdout.contains("me@test") && clients.stdout.contains("vol:writer"), "{clients:#?}");

    lab.tandem(&["revoke", "me@test", "--server", &server(&storage)]).expect_success("revoke");
    let cut = || !storage.volume("vol").client.contains('@') && mount.status().state == "offline";
    assert!(eventually(SOON, cut), "{:#?}", mount.status());
    let says = || mount.status().reason.contains("revoked");
    assert!(eventually(SOON, says), "the reason is said: {:#?}", mount.status());
    // Local work goes on, and arrives once the client has joined anew.
    fs::write(dir.join("after"), "2").expect("writable");
    let token = invite(&lab, &storage, "vol", &[]);
    join(&lab, &storage, &token, None).expect_success("join again");
    mount.settle();
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn role_decides_what_a_client_may_do_and_other_volumes_are_not_told_from_ones_that_do_not_exist() {
    let Some(lab) = Lab::new("roles") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let others = lab.mount(&storage, "others", &lab.new_dir("others"));
    let dir = lab.new_dir("folder");
    let mount = lab.mount(&storage, "vol", &dir);
    fs::write(dir.join("file"), "1").expect("writable");
    mount.settle();
    others.settle();
    let reader = lab.path("reader.pem");
    let token = invite(&lab, &storage, "vol", &["--role", "reader"]);
    join(&lab, &storage, &token, Some(&reader)).expect_success("join");
    let address = address(&storage, &reader);
    rpc::block_on(async {
        let channel = connect(&address).await?;
        let mut admin = AdminClient::new(channel.clone());
        let seen = admin.status(pb::StatusRequest::default()).await?.into_inner().volumes;
        assert_eq!(seen.iter().map(|volume| volume.volume.as_str()).collect::<Vec<_>>(), ["vol"]);
        assert_eq!(seen[0].directory, "", "paths of the storage host are not told");
        let mut replication = ReplicationClient::new(channel.clone());
        let mut describe = async |volume: &str| {
            let described = replication.describe(pb::DescribeRequest { volume: volume.to_owned() }).await;
            described.map_err(|status| (status.code(), status.message().replace(volume, "VOLUME")))
        };
        assert!(describe("vol").await.is_ok());
        let (code, there) = describe("others").await.expect_err("not its volume");
        assert_eq!((Code::PermissionDenied, there.clone()), (code, describe("nothing").await.expect_err("nor this").1));
        let pull = |volume: &str| pb::PullRequest { volume: volume.to_owned(), ..Default::default() };
        let mut replication = ReplicationClient::new(channel.clone());
        assert!(replication.pull(pull("vol")).await?.into_inner().message().await?.is_some());
        assert_eq!(replication.pull(pull("others")).await.expect_err("not its").code(), Code::PermissionDenied);
        let mut trust = TrustClient::new(channel.clone());
        let wish = pb::InviteRequest { volume: "vol".into(), role: pb::Role::Admin.into(), ..Default::default() };
        assert_eq!(trust.invite(wish).await.expect_err("no admin").code(), Code::PermissionDenied);
        let wish = pb::RevokeRequest { client: "me@test".into(), volume: String::new() };
        assert_eq!(trust.revoke(wish).await.expect_err("no admin").code(), Code::PermissionDenied);
        assert_eq!(trust.clients(pb::ClientsRequest {}).await?.into_inner().clients.len(), 1, "itself");
        let attach = attach("vol");
        let mut answers = replication.replicate(tokio_stream::iter([attach])).await?.into_inner();
        let answer = answers.message().await?.and_then(|answer| answer.body);
        let Some(server_message::Body::Refused(refused)) = answer else { panic!("a reader attached: {answer:?}") };
        assert_eq!(refused.reason(), pb::refused::Reason::Forbidden, "{refused:?}");
        Ok(())
    })
    .expect("the storage daemon answers");
    assert_eq!(mount.status().state, "live", "who holds the volume did not notice");
    let refused = lab.mount_refused(
        &MountSpec::new(&storage, "others", &lab.new_dir("third")).options(&format!("identity={}", reader.display())),
    );
    assert!(refused.text().contains("no role"), "{refused:#?}");
}

fn attach(volume: &str) -> pb::ClientMessage {
    let attach = pb::Attach {
        protocol: tandem_proto::limits::PROTOCOL_VERSION,
        volume: volume.to_owned(),
        client_id: vec![1; 16].into(),
        client_name: "hostile".to_owned(),
        run_id: vec![2; 16].into(),
        takeover: true,
        ..Default::default()
    };
    pb::ClientMessage { body: Some(Body::Attach(attach)) }
}

#[test]
fn certificate_is_renewed_before_it_expires_and_the_link_goes_on() {
    let Some(lab) = Lab::new("renewal") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let token = invite(&lab, &storage, "vol", &[]);
    join(&lab, &storage, &token, None).expect_success("join");
    let path = identity(&lab, &storage);
    let before = fs::read_to_string(&path).expect("the identity");
    let due = before.lines().map(|line| if line.starts_with("renew-after") { "renew-after: 1" } else { line });
    let due = due.collect::<Vec<_>>().join("\n") + "\n";
    fs::write(&path, &due).expect("own file");
    let dir = lab.new_dir("folder");
    let mount = lab.mount(&storage, "vol", &dir);
    let renewed = || fs::read_to_string(&path).is_ok_and(|text| text != due);
    assert!(eventually(SOON, renewed), "it is renewed: {:#?}", mount.status());
    fs::write(dir.join("file"), "1").expect("writable");
    mount.settle();
    // The new one is good for new connections, after a restart too.
    storage.daemon().terminate(SOON).expect("it stops");
    storage.restart();
    fs::write(dir.join("file"), "2").expect("writable");
    mount.settle();
    assert!(eventually(SOON, || mount.status().identity_expires_s > 0), "{:#?}", mount.status());
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn volume_is_renamed_and_deleted_by_who_runs_storaged_and_its_data_is_kept() {
    let Some(lab) = Lab::new("volumes") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let server = server(&storage);
    let volume = |arguments: &[&str]| lab.tandem(&[&["volume"], arguments, &["--server", &server]].concat());
    let dir = lab.new_dir("folder");
    let mount = lab.mount(&storage, "first", &dir);
    fs::write(dir.join("file"), "1").expect("writable");
    mount.settle();
    let refused = volume(&["delete", "first", "--yes"]);
    assert!(refused.code == Some(3) && refused.stderr.contains("mounted by"), "{refused:#?}");
    let refused = volume(&["delete", "first"]);
    assert!(refused.code == Some(64) && refused.stderr.contains("--yes"), "{refused:#?}");
    mount.unmount();
    volume(&["create", "second"]).expect_success("create");
    let refused = volume(&["rename", "first", "second"]);
    assert!(refused.stderr.contains("already"), "{refused:#?}");
    volume(&["rename", "first", "third"]).expect_success("rename");

    // The folder goes on under the new name without sending anything again.
    let mount = lab.mount(&storage, "third", &dir);
    fs::write(dir.join("file"), "2").expect("writable");
    mount.settle();
    assert_equal_and_unmount(&mount, &storage, "third");
    volume(&["delete", "third", "--yes"]).expect_success("delete");
    let listed = volume(&["list"]);
    assert!(listed.stdout.contains("second") && !listed.stdout.contains("third"), "{listed:#?}");
    let kept = fs::read_dir(storage.data().join(".deleted")).expect("it is kept").flatten().next().expect("a volume");
    assert_eq!(fs::read_to_string(kept.path().join("tree/file")).expect("its data"), "2");
    assert!(volume(&["delete", "third", "--yes"]).stderr.contains("no volume third"));
}

/// What went over the wire, in both directions of all connections.
type Heard = Arc<Mutex<Vec<u8>>>;

fn listen_in(mut from: TcpStream, mut to: TcpStream, heard: Heard) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        heard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}

/// Somebody on the way, who passes everything on and remembers it. Its port.
fn eavesdropper(storage: &Storage) -> (u16, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (heard, upstream) = (Heard::default(), storage.port());
    let all = heard.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
            let (Ok(back_from), Ok(back_to)) = (server.try_clone(), client.try_clone()) else { continue };
            let (there, back) = (all.clone(), all.clone());
            thread::spawn(move || listen_in(client, server, there));
            thread::spawn(move || listen_in(back_from, back_to, back));
        }
    });
    (port, heard)
}

#[test]
fn wire_carries_tls_and_no_name_or_byte_of_the_files() {
    let Some(lab) = Lab::new("wire") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let (port, heard) = eavesdropper(&storage);
    let token = invite(&lab, &storage, "secretvolume", &[]);
    let through = format!("127.0.0.1:{port}");
    lab.tandem(&["join", &through, &token]).expect_success("join");
    let dir = lab.new_dir("folder");
    let source = format!("{through}:/secretvolume");
    let mount = lab.mount_with(&MountSpec {
        source,
        mountpoint: dir.clone(),
        options: String::new(),
        state: None,
        tracer: Vec::new(),
    });
    fs::write(dir.join("telltale-name"), "telltale-content".repeat(100)).expect("writable");
    mount.settle();
    assert_eq!(mount.status().security, "tls");
    assert_eq!(fs::read(storage.tree("secretvolume").join("telltale-name")).expect("replicated").len(), 1600);
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(heard.len() > 2000 && heard.starts_with(&[0x16, 3]), "a handshake, then records");
    for secret in ["telltale-name", "telltale-content", "secretvolume", "tandem.v1"] {
        let told = heard.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!told, "{secret} was readable on the way");
    }
    mount.unmount();
}
