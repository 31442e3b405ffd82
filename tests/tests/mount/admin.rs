//! What people and tools ask the daemons: the `tandem` command, and a generic gRPC client that knows nothing beforehand.

use std::{fs, path::Path, process::Command, time::Duration};

use prost::Message as _;
use tandem_proto::pb::{self, admin_client::AdminClient};
use tandem_tests::{
    generic,
    harness::{Lab, eventually, rpc},
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, transport::Channel};

/// What grpcurl does: list the services, fetch the schema of one, call a method.
async fn check_reflection(channel: Channel, expected: &[&str], secret: Option<&str>) -> Result<(), Status> {
    let names = generic::services(channel.clone()).await?;
    for name in expected {
        assert!(names.iter().any(|found| found == name), "{name} is missing in {names:?}");
    }
    let schema = generic::schema(channel.clone(), "tandem.v1.Admin").await?;
    let mentions = |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
    assert!(mentions(&schema, "StatusReply") && mentions(&schema, "Watch"), "the schema of Admin");
    let status = generic::call(channel, "/tandem.v1.Admin/Status", secret).await?;
    assert!(mentions(&status, "vol"), "the status tells of the volume: {status:?}");
    Ok(())
}

async fn check_health(channel: Channel) -> Result<(), Status> {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let reply = HealthClient::new(channel).check(HealthCheckRequest::default()).await?.into_inner();
    assert_eq!(reply.status(), ServingStatus::Serving);
    Ok(())
}

#[test]
fn generic_client_lists_services_by_reflection_and_reads_the_status_of_both_daemons() {
    let Some(lab) = Lab::new("reflection") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let secret = storage.secret();
    rpc::block_on(async {
        let channel = rpc::tcp(storage.port()).await?;
        check_reflection(
            channel.clone(),
            &["tandem.v1.Admin", "tandem.v1.Replication", "grpc.health.v1.Health"],
            Some(&secret),
        )
        .await?;
        check_health(channel).await?;
        let channel = rpc::unix(&mount.socket()).await?;
        check_reflection(
            channel.clone(),
            &["tandem.v1.Admin", "tandem.v1.MountControl", "grpc.health.v1.Health"],
            None,
        )
        .await?;
        check_health(channel).await
    })
    .expect("both daemons answer");

    let status = storage.status().expect("the secret opens it");
    assert_eq!(status.daemon, "storaged");
    assert!(
        eventually(Duration::from_secs(5), || storage.volume("vol").state == "settled"),
        "{:#?}",
        storage.volume("vol")
    );
    let status = mount.status();
    assert_eq!((status.volume.as_str(), status.state.as_str()), ("vol", "live"), "{status:#?}");
    assert_eq!(Path::new(&status.mountpoint), mount.path());
    assert_eq!(status.ops_behind, 0);
}

#[test]
fn storaged_tells_strangers_nothing_but_health_and_reflection() {
    let Some(lab) = Lab::new("strangers") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let refused = rpc::storage_status(storage.port(), "0000").expect_err("a wrong secret");
    assert!(matches!(refused.code(), Code::Unauthenticated | Code::PermissionDenied), "{refused}");
    let refused = rpc::block_on(async {
        AdminClient::new(rpc::tcp(storage.port()).await?).status(pb::StatusRequest::default()).await.map(|_| ())
    });
    let refused = refused.expect_err("no secret");
    assert!(matches!(refused.code(), Code::Unauthenticated | Code::PermissionDenied), "{refused}");
    let refused = rpc::block_on(async {
        let mut client = pb::replication_client::ReplicationClient::new(rpc::tcp(storage.port()).await?);
        client.describe(pb::DescribeRequest { volume: "vol".to_owned() }).await.map(|_| ())
    });
    assert!(refused.is_err(), "replication needs the secret too");

    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let secret = fs::metadata(tandem_runtime::secret::path(&lab.runtime_dir(), storage.port())).expect("the secret");
    assert_eq!(secret.mode() & 0o777, 0o600);
    let socket = fs::metadata(mount.socket()).expect("the socket");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.mode() & 0o077, 0, "others may not connect");
    assert_eq!(fs::metadata(storage.data().join("vol")).expect("the volume").mode() & 0o777, 0o700);
}

#[test]
fn watch_tells_of_changes() {
    let Some(lab) = Lab::new("watch") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let before = mount.status().seq;
    let path = mount.path().join("new");
    let seen = rpc::block_on(async {
        let mut client = AdminClient::new(rpc::unix(&mount.socket()).await?);
        let request = pb::WatchRequest { volume: String::new(), interval_ms: 50 };
        let mut replies = client.watch(request).await?.into_inner();
        let first = replies.next().await.ok_or_else(|| Status::internal("the stream ended"))??;
        let write = tokio::task::spawn_blocking(move || fs::write(path, "1").expect("writable"));
        write.await.map_err(|error| Status::internal(error.to_string()))?;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while tokio::time::Instant::now() < deadline {
            let reply = replies.next().await.ok_or_else(|| Status::internal("the stream ended"))??;
            if reply.mounts.iter().any(|mount| mount.applied > before) {
                return Ok((first.encoded_len() > 0, true));
            }
        }
        Ok((true, false))
    });
    assert_eq!(seen.expect("mountd answers"), (true, true), "a status now, and one after the change");
}

#[test]
fn tandem_status_is_readable_and_stable_as_json() {
    let Some(lab) = Lab::new("status") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    assert!(eventually(Duration::from_secs(5), || mount.status().state == "live"));
    let text = lab.tandem(&["status"]).expect_success("tandem status").stdout;
    assert!(text.contains("vol") && text.contains("live"), "{text}");
    let json = lab.tandem(&["status", "--json"]).expect_success("tandem status --json").stdout;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert!(value.to_string().contains("\"vol\""), "{value}");
    storage.kill();
    let offline = eventually(Duration::from_secs(10), || lab.tandem(&["status"]).code == Some(2));
    assert!(offline, "2: replica unreachable: {:#?}", lab.tandem(&["status"]));
    storage.restart();
    assert!(
        eventually(Duration::from_secs(15), || lab.tandem(&["status"]).code == Some(0)),
        "{:#?}",
        lab.tandem(&["status"])
    );
}

#[test]
fn tandem_wait_flushes_what_a_mapping_still_holds() {
    let Some(lab) = Lab::new("wait") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let script = "import mmap,os,subprocess,sys
f=open('m','w+b'); f.truncate(8192); m=mmap.mmap(f.fileno(),8192)
m[5000:5005]=b'dirty'
open('ready','w').close()
sys.stdin.read()
";
    let mut python = match Command::new("python3")
        .args(["-c", script])
        .current_dir(mount.path())
        .stdin(std::process::Stdio::piped())
        .spawn()
    {
        Ok(python) => python,
        Err(_) => return eprintln!("SKIPPED wait: python3 is missing"),
    };
    assert!(eventually(Duration::from_secs(20), || mount.path().join("ready").exists()));
    let path = mount.path().to_str().expect("a plain path").to_owned();
    lab.tandem(&["wait", &path, "--timeout", "30"]).expect_success("tandem wait");
    let bytes = fs::read(storage.tree("vol").join("m")).expect("on the replica");
    assert_eq!(&bytes[5000..5005], b"dirty");
    drop(python.stdin.take());
    python.wait().expect("it ends");
}
