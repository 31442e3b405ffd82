//! Readers of a replica that are slow, that leave, or that come while it is catching up: none of them stops whoever writes.

use std::{fs, process::Command, thread, time::Duration};

use tandem_proto::pb::{PullRequest, pull_message::Body, replication_client::ReplicationClient};
use tandem_runtime::secret::METADATA_KEY;
use tandem_tests::{
    compare,
    harness::{Lab, Storage, eventually, rpc},
    rng::content,
};
use tonic::Request;

use crate::support::Image;

/// Asks for the whole state and reads only how it begins; leaves after `meanwhile`.
fn with_slow_reader(storage: &Storage, meanwhile: impl FnOnce()) {
    let (begun, begins) = std::sync::mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let read = || {
        rpc::block_on(async {
            let mut client = ReplicationClient::new(rpc::tcp(storage.port()).await?);
            let mut request = Request::new(PullRequest { volume: "vol".to_owned(), ..Default::default() });
            request.metadata_mut().insert(METADATA_KEY, storage.secret().parse().expect("hexadecimal"));
            let mut messages = client.pull(request).await?.into_inner();
            let first = messages.message().await?.and_then(|message| message.body);
            begun.send(first).expect("the test waits for it");
            // The connection lives on; nothing is read from it.
            let _ = ended.await;
            Ok(())
        })
    };
    thread::scope(|scope| {
        let reader = scope.spawn(read);
        let first = begins.recv().expect("the storage daemon answers");
        assert!(matches!(first, Some(Body::Header(_))), "{first:?}");
        meanwhile();
        let _ = end.send(());
        reader.join().expect("it does not panic").expect("the storage daemon answers");
    });
}

#[test]
fn a_reader_that_stops_reading_holds_apply_and_not_the_writer() {
    let Some(lab) = Lab::new("slow-reader") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fs::write(dir.join("big"), content(1, 64 << 20)).expect("writable");
    let mount = lab.mount(&storage, "vol", &dir);
    mount.settle();
    let durable = || storage.volume("vol").durable;
    let before = durable();
    with_slow_reader(&storage, || {
        fs::write(mount.path().join("new"), "acknowledged").expect("writable");
        let seq = mount.status().seq;
        assert!(eventually(Duration::from_secs(20), || durable() >= seq && seq > before), "logging goes on");
        assert!(!storage.tree("vol").join("new").exists(), "the reader was promised a tree that stands still");
        let workers = storage.volume("vol").workers;
        assert!(workers.iter().any(|worker| worker.state.contains("holds apply")), "{workers:?}");
    });
    mount.settle();
    compare::assert_equal(mount.path(), &storage.tree("vol"));
}

#[test]
fn where_extents_can_be_shared_a_reader_holds_nothing_and_gets_the_state_that_was() {
    let Some(lab) = Lab::new("snapshot") else { return };
    let Some(image) = Image::new(&lab, &["mkfs.xfs", "-q", "-m", "reflink=1"]) else { return };
    let storage = Storage::start_in(&lab, "storage", &image.mountpoint.join("data"));
    let dir = lab.new_dir("folder");
    fs::write(dir.join("big"), content(1, 64 << 20)).expect("writable");
    fs::write(dir.join("small"), "before").expect("writable");
    let mount = lab.mount(&storage, "vol", &dir);
    mount.settle();
    with_slow_reader(&storage, || {
        fs::write(mount.path().join("small"), "after").expect("writable");
        fs::write(mount.path().join("big"), content(2, 64 << 20)).expect("writable");
        mount.settle();
        compare::assert_equal(mount.path(), &storage.tree("vol"));
    });
    let clones = image.mountpoint.join("data/vol/staging/clones");
    let gone = eventually(Duration::from_secs(20), || fs::read_dir(&clones).is_ok_and(|mut all| all.next().is_none()));
    assert!(gone, "the snapshot of a reader that left is removed");
    let copy = lab.path("copy");
    let server = format!("127.0.0.1:{}", storage.port());
    let args = ["clone", "vol", copy.to_str().expect("plain"), "--server", &server];
    lab.tandem(&args).expect_success("tandem clone");
    compare::assert_equal(mount.path(), &copy);
    assert!(storage.daemon().log_text().contains("snapshot made"), "{}", storage.daemon().log_text());
    mount.unmount();
    drop(mount);
    storage.kill();
}

#[test]
fn while_the_replica_catches_up_the_old_position_is_what_is_cloned() {
    let Some(lab) = Lab::new("clone-resync") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fs::create_dir(dir.join("d")).expect("new");
    fs::write(dir.join("d/old"), content(3, 100_000)).expect("writable");
    let spec = tandem_tests::harness::MountSpec::new(&storage, "vol", &dir).options("window=4M");
    let mount = lab.mount_with(&spec);
    mount.settle();
    let old = lab.path("old");
    let copied = Command::new("cp").arg("-a").arg(mount.path()).arg(&old).status().expect("cp is there");
    assert!(copied.success());
    rpc::pause(&mount.socket()).expect("mountd answers");
    fs::rename(mount.path().join("d"), mount.path().join("e")).expect("there");
    for at in 0..20 {
        fs::write(mount.path().join(format!("new{at}")), content(at, 3 << 20)).expect("writable");
    }
    let server = format!("127.0.0.1:{}", storage.port());
    rpc::resume(&mount.socket()).expect("mountd answers");
    let mut seen = 0;
    // Until the new position is there, each clone is the old one, whole; then it is the new one, whole.
    for at in 0.. {
        let copy = lab.path(&format!("copy{at}"));
        let args = ["clone", "vol", copy.to_str().expect("plain"), "--server", &server];
        lab.tandem(&args).expect_success("tandem clone");
        if !copy.join("d").exists() {
            compare::assert_equal(mount.path(), &copy);
            break;
        }
        compare::assert_equal(&old, &copy);
        seen += 1;
    }
    eprintln!("{seen} clones of the old position");
    mount.settle();
    compare::assert_equal(mount.path(), &storage.tree("vol"));
}
