//! The real binary: how it starts, what it refuses, and that what it acknowledged is there after a kill.

mod client;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use client::{Storaged, WithSecret, Writer, attach_message, create, id, name, nowhere, position, rename};
use tandem_proto::{
    ids::InodeId,
    op::{Change, NodeKind},
    pb::{
        self, admin_client::AdminClient, client_message::Body, pull_message, refused::Reason,
        replication_client::ReplicationClient, server_message::Body as Answer,
    },
};
use tempfile::TempDir;
use tonic::Code;

fn dirs() -> (TempDir, TempDir) {
    let dir = || tempfile::tempdir().expect("temporary directory");
    (dir(), dir())
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().expect("ran");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tandem-storaged"))
}

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn wrong_usage_is_named_and_exits_64() {
    let cases: [(&[&str], &str); 4] = [
        (&[], "--data DIR"),
        (&["--data", "/tmp/x", "--listn", "1"], "--listen"),
        (&["--data", "/tmp/x", "--listen", "127.0.0.1:99999"], "ADDR:PORT"),
        (&["--data", "/tmp/x", "--config", "/nowhere/at/all"], "no such file"),
    ];
    for (arguments, says) in cases {
        let (code, output) = run(binary().args(arguments));
        assert_eq!(code, Some(64), "{arguments:?}: {output}");
        assert!(output.contains(says), "{arguments:?}: {output}");
    }
    assert_eq!(run(binary().arg("--help")).0, Some(0));
    assert_eq!(run(binary().arg("--version")).0, Some(0));
}

#[test]
fn an_unknown_key_of_the_config_file_is_an_error_with_a_suggestion() {
    let (data, _) = dirs();
    let file = data.path().join("storaged.toml");
    fs::write(&file, "data = '/tmp/x'\nlisen = '127.0.0.1:0'\n").expect("written");
    let (code, output) = run(binary().arg("--config").arg(&file));
    assert_eq!(code, Some(64));
    assert!(output.contains("unknown key lisen: did you mean listen?"), "{output}");
}

#[test]
fn a_storage_directory_of_another_version_is_refused() {
    let (data, runtime) = dirs();
    fs::write(data.path().join("format"), "tandem storage 99\n").expect("written");
    let (code, output) = run(&mut Storaged::command(data.path(), runtime.path()));
    assert_eq!(code, Some(1));
    assert!(output.contains("format 99"), "{output}");
}

#[test]
fn a_second_storaged_on_the_same_directory_or_port_is_refused() {
    let (data, runtime) = dirs();
    let first = Storaged::start(data.path(), runtime.path());
    let (code, output) = run(&mut Storaged::command(data.path(), runtime.path()));
    assert_eq!(code, Some(1));
    assert!(output.contains("in use by another tandem-storaged"), "{output}");
    let (other, _) = dirs();
    let listen = format!("127.0.0.1:{}", first.port);
    let (code, output) = run(binary().arg("--data").arg(other.path()).args(["--listen", &listen]));
    assert_eq!(code, Some(1));
    assert!(output.contains("another program uses this port"), "{output}");
    assert_eq!(first.stop(), Some(0));
}

#[tokio::test]
async fn calls_without_the_secret_are_refused_but_health_and_reflection_are_open() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let channel = storaged.channel().await;
    for secret in [None, Some("0".repeat(64).parse().expect("text"))] {
        let mut client = ReplicationClient::with_interceptor(channel.clone(), WithSecret(secret.clone()));
        let refused = client.describe(pb::DescribeRequest { volume: "v".into() }).await.expect_err("no secret");
        assert_eq!(refused.code(), Code::Unauthenticated);
        let mut admin = AdminClient::with_interceptor(channel.clone(), WithSecret(secret));
        let refused = admin.status(pb::StatusRequest::default()).await.expect_err("no secret");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: "tandem.v1.Admin".into() };
    let answer = health.check(request).await.expect("open").into_inner();
    assert_eq!(answer.status, tonic_health::pb::health_check_response::ServingStatus::Serving as i32);
    let describe = pb::DescribeRequest { volume: "v".into() };
    let known = storaged.client().await.describe(describe).await.expect("with the secret").into_inner();
    assert!(!known.exists);
    let mut admin = AdminClient::with_interceptor(channel, WithSecret(Some(storaged.secret())));
    let status = admin.status(pb::StatusRequest::default()).await.expect("with the secret").into_inner();
    assert_eq!((status.daemon.as_str(), status.volumes.len()), ("storaged", 0));
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_kill() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 0)).await.expect("granted");
    assert!(writer.attached.empty);
    assert_eq!(position(&writer.attached.published), nowhere());
    writer.first_sync().await;
    let tree = storaged.tree("vol");
    writer.ops(create(id(2), "new", id(4), "content")).await;
    writer.applied().await;
    assert_eq!(content(&tree.join("a")), "hello");
    assert_eq!(content(&tree.join("d/b")), "abc");
    assert_eq!(content(&tree.join("d/new")), "content");
    // Many ops on the way to the tree; killed as soon as they are durable.
    for number in 0..200u8 {
        writer.ops(create(InodeId::ROOT, &format!("f{number}"), InodeId::new(&[7, number]).expect("short"), "x")).await;
    }
    writer.ops(vec![rename(InodeId::ROOT, "a", id(1), "renamed")]).await;
    writer.durable().await;
    let before = writer.position;
    storaged.kill();

    let storaged = Storaged::start(data.path(), runtime.path());
    let mut client = storaged.client().await;
    let describe = pb::DescribeRequest { volume: "vol".into() };
    let known = client.describe(describe).await.expect("described").into_inner();
    assert_eq!(position(&known.position), before);
    assert!(known.exists && !known.empty && !known.holder_connected);
    assert_eq!(known.holder, "tester@here:/folder");
    assert_eq!(content(&tree.join("renamed")), "hello");
    assert!(!tree.join("a").exists());
    for number in 0..200 {
        assert_eq!(content(&tree.join(format!("f{number}"))), "x");
    }
    // The same run goes on where it was.
    let attach = pb::Attach { volume_id: known.volume_id, replica_id: known.replica_id, ..attach_message("vol", 1, 1) };
    let mut writer = Writer::attach(client, attach).await.expect("granted");
    assert_eq!(writer.position, before);
    writer.ops(vec![rename(InodeId::ROOT, "renamed", id(1), "again")]).await;
    writer.applied().await;
    assert_eq!(content(&tree.join("again")), "hello");
    assert_eq!(storaged.stop(), Some(0));
}

#[tokio::test]
async fn a_staging_that_was_not_published_leaves_nothing_and_a_new_run_publishes_first() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 0)).await.expect("granted");
    writer.first_sync().await;
    let published = writer.position;
    drop(writer);
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 2, 0)).await.expect("granted");
    assert_eq!(position(&writer.attached.published), published);
    assert_eq!((writer.position.epoch.0, writer.position.seq.0), (2, 0));
    writer.begin(1, false).await;
    writer.stage_dir(InodeId::ROOT, &[]).await;
    writer.ops(vec![vec![]]).await;
    writer.barrier().await;
    storaged.kill();
    let storaged = Storaged::start(data.path(), runtime.path());
    assert_eq!(content(&storaged.tree("vol").join("a")), "hello");
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 2, 2)).await.expect("granted");
    assert_eq!((writer.position.epoch.0, writer.position.seq.0), (2, 0));
    // Ops during the staging become part of it.
    writer.begin(1, false).await;
    writer.ops(create(InodeId::ROOT, "staged", id(9), "with it")).await;
    writer.publish(1).await;
    writer.applied().await;
    assert_eq!(content(&storaged.tree("vol").join("staged")), "with it");
    assert_eq!(content(&storaged.tree("vol").join("d/b")), "abc");
}

#[tokio::test]
async fn a_writer_that_asks_hears_how_much_of_its_stream_was_taken() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let attach = pb::Attach { alive_ms: 1, ..attach_message("vol", 1, 0) };
    let mut writer = Writer::attach(storaged.client().await, attach).await.expect("granted");
    writer.begin(1, true).await;
    writer.barrier().await;
    let taken = |answer| match answer {
        Answer::Alive(alive) if alive.received == 3 => Some(alive.waits),
        _ => None,
    };
    // The attach, the begin and the barrier; and it goes on saying so.
    for _ in 0..2 {
        assert!(!writer.answer_of(taken).await, "nothing waits");
    }
}

#[tokio::test]
async fn writers_are_refused_with_the_reason() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let attach = |attach: pb::Attach| async { Writer::attach(storaged.client().await, attach).await };
    let reason = |refused: Result<Writer, pb::Refused>| refused.err().expect("refused").reason();
    let missing = pb::Attach { create: false, ..attach_message("vol", 1, 0) };
    assert_eq!(reason(attach(missing).await), Reason::NoVolume);
    let protocol = pb::Attach { protocol: 99, ..attach_message("vol", 1, 0) };
    assert_eq!(reason(attach(protocol).await), Reason::Protocol);
    assert_eq!(reason(attach(attach_message("../etc", 1, 0)).await), Reason::BadRequest);
    let mut first = attach(attach_message("vol", 1, 0)).await.expect("granted");
    first.first_sync().await;
    let other = pb::Attach { client_id: vec![2; 16].into(), ..attach_message("vol", 5, 0) };
    assert_eq!(reason(attach(other.clone()).await), Reason::Held);
    let wrong = pb::Attach { volume_id: vec![9; 16].into(), ..attach_message("vol", 1, 1) };
    assert_eq!(reason(attach(wrong).await), Reason::OtherVolume);
    // Refused claims disturbed nobody.
    first.ops(create(InodeId::ROOT, "x", id(20), "x")).await;
    first.applied().await;
    let taken = attach(pb::Attach { takeover: true, ..other }).await.expect("granted");
    let fenced = loop {
        if let pb::server_message::Body::Refused(refused) = first.answer().await {
            break refused;
        }
    };
    assert_eq!(fenced.reason(), Reason::Fenced);
    assert_eq!(reason(attach(attach_message("vol", 1, 1)).await), Reason::Fenced);
    drop(taken);
}

#[tokio::test]
async fn versions_that_overlap_agree_and_others_hear_which_side_to_upgrade() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let attach = |newest, oldest| {
        let attach = pb::Attach { protocol: newest, protocol_oldest: oldest, ..attach_message("vol", 1, 0) };
        async { Writer::attach(storaged.client().await, attach).await }
    };
    let ours = tandem_proto::limits::PROTOCOL_VERSION;
    let refused = attach(ours + 5, ours + 2).await.err().expect("too new");
    assert_eq!(refused.reason(), Reason::Protocol);
    assert!(refused.message.contains("upgrade the storage daemon"), "{}", refused.message);
    let refused = attach(0, 0).await.err().expect("too old");
    assert!(refused.message.contains("upgrade the mount"), "{}", refused.message);
    // A mount of before ranges says one version only, and knows none of the features; a newer one speaks ours, too.
    let mut old = attach(1, 0).await.expect("granted");
    old.first_sync().await;
    drop(old);
    let mut newer = Writer::attach(
        storaged.client().await,
        pb::Attach { protocol: ours + 5, protocol_oldest: 1, ..attach_message("vol", 1, 1) },
    )
    .await
    .expect("granted");
    newer.ops(create(InodeId::ROOT, "x", id(20), "x")).await;
    newer.applied().await;
    assert_eq!(content(&data.path().join("vol/tree/x")), "x");
}

#[tokio::test]
async fn a_pull_sends_the_whole_state_at_one_position() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 0)).await.expect("granted");
    writer.first_sync().await;
    let link = Change::Entry { dir: id(2), name: name("link"), old: None, new: Some(id(1)) };
    writer.ops(vec![vec![link]]).await;
    writer.applied().await;
    let pull = pb::PullRequest { volume: "vol".into(), ..Default::default() };
    let mut stream = storaged.client().await.pull(pull).await.expect("pulled").into_inner();
    let mut seen = Vec::new();
    while let Some(message) = stream.message().await.expect("whole") {
        let path = |path: &[bytes::Bytes]| {
            path.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>().join("/")
        };
        seen.push(match message.body.expect("a body") {
            pull_message::Body::Header(header) => {
                assert_eq!(position(&header.position), writer.position);
                "header".to_owned()
            }
            pull_message::Body::Node(node) => format!("/{} {}", path(&node.path), node.size),
            pull_message::Body::Data(data) => format!("{:?}", data.data),
            pull_message::Body::Link(link) => format!("/{} = /{}", path(&link.path), path(&link.target)),
            pull_message::Body::End(end) => format!("end {} {}", end.nodes, end.bytes),
        });
    }
    let expected = ["header", "/ 0", "/a 5", "b\"hello\"", "/d 0", "/d/b 3", "b\"abc\"", "/d/link = /a", "end 4 8"];
    assert_eq!(seen, expected);
    // Apply goes on.
    writer.ops(create(InodeId::ROOT, "after", id(30), "x")).await;
    writer.applied().await;
}

#[tokio::test]
async fn a_new_small_file_is_in_the_tree_within_milliseconds() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 0)).await.expect("granted");
    writer.first_sync().await;
    let text = "x".repeat(4096);
    let mut took = Vec::new();
    for number in 0..100u8 {
        let file = InodeId::new(&[8, number]).expect("short");
        let started = Instant::now();
        writer.ops(create(InodeId::ROOT, &format!("small{number}"), file, &text)).await;
        writer.applied().await;
        took.push(started.elapsed());
    }
    took.sort();
    println!("median {:?}, worst {:?}", took[50], took[99]);
    // The aim is 1 ms with optimization; this only notices a timer or a poll on the way.
    assert!(took[50] < Duration::from_millis(20), "median {:?}", took[50]);
}

#[tokio::test]
async fn an_index_that_was_lost_or_emptied_is_rebuilt_while_the_volume_serves() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 0)).await.expect("granted");
    writer.first_sync().await;
    drop(writer);
    let files = |storaged: &Storaged| {
        let (port, secret) = (storaged.port, storaged.secret());
        async move {
            let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("address");
            let channel = channel.connect().await.expect("connected");
            let mut admin = AdminClient::with_interceptor(channel, WithSecret(Some(secret)));
            let reply = admin.status(pb::StatusRequest::default()).await.expect("status").into_inner();
            (reply.volumes[0].index_files, reply.volumes[0].index_to_walk)
        }
    };
    let patience = Instant::now() + Duration::from_secs(60);
    while files(&storaged).await != (2, 0) {
        assert!(Instant::now() < patience, "{:?}", files(&storaged).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(storaged.stop(), Some(0));
    let index = data.path().join("vol/index/sled");
    for lose in ["all of it", "what is in its files"] {
        if lose == "all of it" {
            fs::remove_dir_all(&index).expect("removed");
        } else {
            for entry in fs::read_dir(&index).expect("list") {
                let path = entry.expect("entry").path();
                if path.is_file() {
                    fs::write(path, b"").expect("emptied");
                }
            }
        }
        let storaged = Storaged::start(data.path(), runtime.path());
        // It serves at once, whatever the index does.
        let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 2, 0)).await.expect("granted");
        writer.begin(1, false).await;
        writer.publish(1).await;
        while files(&storaged).await != (2, 0) {
            assert!(Instant::now() < patience, "{lose}: {:?}", files(&storaged).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(writer);
        assert_eq!(storaged.stop(), Some(0));
    }
}

#[tokio::test]
async fn a_volume_that_cannot_be_opened_leaves_the_others_alone() {
    let (data, runtime) = dirs();
    let storaged = Storaged::start(data.path(), runtime.path());
    for volume in ["good", "bad"] {
        let mut writer = Writer::attach(storaged.client().await, attach_message(volume, 1, 0)).await.expect("granted");
        writer.first_sync().await;
    }
    assert_eq!(storaged.stop(), Some(0));
    let state = data.path().join("bad/state");
    fs::write(&state, content(&state).replace("\"format\": 1", "\"format\": 9")).expect("written");
    let storaged = Storaged::start(data.path(), runtime.path());
    let mut admin = AdminClient::with_interceptor(storaged.channel().await, WithSecret(Some(storaged.secret())));
    let status = admin.status(pb::StatusRequest::default()).await.expect("status").into_inner();
    let states: Vec<_> = status.volumes.iter().map(|v| (v.volume.as_str(), v.state.as_str())).collect();
    assert_eq!(states, [("bad", "damaged"), ("good", "settled")]);
    assert!(status.volumes[0].reason.contains("format 9"), "{}", status.volumes[0].reason);
    let refused = Writer::attach(storaged.client().await, attach_message("bad", 1, 1)).await.err().expect("refused");
    assert_eq!(refused.reason(), Reason::Version);
    Writer::attach(storaged.client().await, attach_message("good", 1, 1)).await.expect("granted");
}

/// The names of a folder with one file, and what the file holds by digest; which pieces the replica asks for.
async fn stage_by_digest(writer: &mut Writer, data: &[u8]) -> Vec<pb::Piece> {
    let (root, file, session) = (InodeId::ROOT, id(1), writer.attached.session);
    writer.begin(1, true).await;
    writer.stage_node(root, NodeKind::Directory, 0).await;
    writer.stage_dir(root, &[("a", file, NodeKind::Regular)]).await;
    writer.stage_node(file, NodeKind::Regular, data.len() as u64).await;
    let pieces = data.chunks(64 << 10).zip(0..).map(|(bytes, at)| {
        let (offset, len) = (at * (64 << 10), bytes.len() as u64);
        tandem_proto::stage::Piece::chunk(offset, len, Some(tandem_proto::chunk::Digest::of(bytes)))
    });
    let pieces = tandem_proto::convert::piece_messages(&pieces.collect::<Vec<_>>());
    let id = file.as_bytes().to_vec().into();
    writer.send(Body::StageRecipe(pb::StageRecipe { session, id, pieces })).await;
    let answers = writer.barrier().await;
    answers
        .into_iter()
        .flat_map(|answer| match answer {
            Answer::NeedPieces(need) => need.pieces,
            _ => Vec::new(),
        })
        .collect()
}

async fn send_pieces(writer: &mut Writer, data: &[u8], pieces: &[pb::Piece]) {
    for piece in pieces {
        let bytes = data[piece.offset as usize..(piece.offset + piece.len) as usize].to_vec();
        let message = pb::StageData {
            session: writer.attached.session,
            id: id(1).as_bytes().to_vec().into(),
            offset: piece.offset,
            crc32c: crc32c::crc32c(&bytes),
            data: bytes.into(),
        };
        writer.send(Body::StageData(message)).await;
    }
    writer.barrier().await;
}

#[tokio::test]
async fn what_a_first_sync_brought_before_a_kill_is_not_asked_for_again() {
    let (data, runtime) = dirs();
    let file: Vec<u8> = (0..10 * (64 << 10) + 100u32).map(|at| (at / 7) as u8 ^ (at >> 11) as u8).collect();
    let storaged = Storaged::start(data.path(), runtime.path());
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 0)).await.expect("granted");
    assert!(!writer.attached.staged, "there was nothing yet");
    let needed = stage_by_digest(&mut writer, &file).await;
    assert_eq!(needed.len(), 11);
    send_pieces(&mut writer, &file, &needed[..7]).await;
    storaged.kill();

    let storaged = Storaged::start(data.path(), runtime.path());
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 1)).await.expect("granted");
    assert!(writer.attached.staged && writer.attached.empty);
    let needed = stage_by_digest(&mut writer, &file).await;
    assert_eq!(needed.len(), 4, "seven were there");
    // The connection breaks as well.
    send_pieces(&mut writer, &file, &needed[..1]).await;
    drop(writer);
    let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 1)).await.expect("granted");
    assert!(writer.attached.staged);
    let needed = stage_by_digest(&mut writer, &file).await;
    assert_eq!(needed.len(), 3);
    send_pieces(&mut writer, &file, &needed).await;
    writer.publish(1).await;
    writer.applied().await;
    assert!(std::fs::read(storaged.tree("vol").join("a")).expect("there") == file);
    let writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 1)).await.expect("granted");
    assert!(!writer.attached.staged, "a publish ends it");
    assert_eq!(storaged.stop(), Some(0));
}

#[test]
fn a_daemon_that_is_to_be_somebody_else_is_that_one_and_refuses_what_belongs_to_others() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let (data, runtime) = dirs();
    // Others may pass through the directories above, not look into ours.
    let (own, secrets) = (data.path().join("own"), runtime.path().join("own"));
    for dir in [&data, &runtime] {
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("chmod");
    }
    let command = |own: &Path| {
        let mut command = binary();
        command.args(["--listen", "127.0.0.1:0", "--web", "off", "--user", "nobody", "--data"]);
        command.arg(own).arg("--runtime").arg(&secrets);
        command
    };
    let mut daemon = command(&own).stdout(std::process::Stdio::piped()).spawn().expect("started");
    let mut line = String::new();
    let output = daemon.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("a line");
    assert!(line.contains("listening"), "{line:?}");
    let status = content(Path::new(&format!("/proc/{}/status", daemon.id())));
    let uid = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&own).expect("made"));
    assert_ne!(uid, 0);
    assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    daemon.kill().expect("killed");
    daemon.wait().expect("waited for");

    fs::create_dir_all(data.path().join("roots/vol")).expect("made");
    let (code, said) = run(&mut command(&data.path().join("roots")));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("chown -R nobody"), "{said}");
    let (code, said) = run(binary().args(["--data", "/tmp/x", "--user", "root"]));
    assert_eq!(code, Some(64), "{said}");
}
