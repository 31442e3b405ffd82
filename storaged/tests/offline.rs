//! The offline commands on volumes of a real daemon: what `check` finds, what repair leads to, and that nobody syncs silently over
//! a replica that lost something.

// Not every test uses all of it.
#[allow(dead_code)]
mod client;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use client::{Storaged, WithSecret, Writer, attach_message, create, id, rename};
use serde_json::Value;
use tandem_proto::{
    ids::InodeId,
    pb::{self, admin_client::AdminClient, refused::Reason},
    position::Position,
};
use tempfile::TempDir;

/// A storage directory with one volume `vol` and what is needed to start daemons on it.
struct World {
    data: TempDir,
    runtime: TempDir,
}

impl World {
    fn new() -> World {
        let dir = || tempfile::tempdir().expect("temporary directory");
        World { data: dir(), runtime: dir() }
    }

    fn start(&self) -> Storaged {
        Storaged::start(self.data.path(), self.runtime.path())
    }

    fn volume(&self) -> PathBuf {
        self.data.path().join("vol")
    }

    /// A volume with the files of the first sync and some ops; the daemon was killed when all was applied, or stopped.
    async fn filled(&self, kill: bool) -> (pb::Attached, Position) {
        let storaged = self.start();
        let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 1, 0)).await.expect("granted");
        writer.first_sync().await;
        for number in 0..20u8 {
            let file = InodeId::new(&[7, number]).expect("short");
            writer.ops(create(id(2), &format!("f{number}"), file, "content")).await;
            if number == 9 {
                // What follows is another group, which proves that this one was durable.
                writer.applied().await;
            }
        }
        writer.applied().await;
        let known = (writer.attached.clone(), writer.position);
        if kill {
            storaged.kill();
        } else {
            drop(writer);
            assert_eq!(storaged.stop(), Some(0));
        }
        known
    }

    fn offline(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-storaged"));
        let Output { status, stdout, stderr } =
            command.args(arguments).arg("--data").arg(self.data.path()).output().expect("ran");
        (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
    }

    fn json(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let (code, output) = self.offline(&[arguments, &["--json"]].concat());
        let line = output.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{output}"));
        (code, serde_json::from_str(line).expect("JSON"))
    }

    fn assert_sound(&self) {
        let (code, output) = self.offline(&["check"]);
        assert_eq!(code, Some(0), "{output}");
    }

    /// Flips a byte of the log, somewhere in the record at `at`.
    fn flip(&self, at: &str) {
        let (segment, offset) = at.split_once('+').expect("a place");
        let path = self.volume().join("log").join(segment);
        let mut bytes = fs::read(&path).expect("segment");
        bytes[offset.parse::<usize>().expect("a number") + 33] ^= 1;
        fs::write(path, bytes).expect("written");
    }

    /// The files of the tree with their content.
    fn files(&self) -> Vec<(String, String)> {
        let tree = self.volume().join("tree");
        let mut files = Vec::new();
        let mut open = vec![tree.clone()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).expect("list") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path.strip_prefix(&tree).expect("below").display().to_string();
                    files.push((name, fs::read_to_string(path).expect("text")));
                }
            }
        }
        files.sort();
        files
    }

    async fn state(&self, storaged: &Storaged) -> pb::VolumeStatus {
        let secret = WithSecret(Some(storaged.secret()));
        let mut admin = AdminClient::with_interceptor(storaged.channel().await, secret);
        let status = admin.status(pb::StatusRequest::default()).await.expect("status").into_inner();
        status.volumes.into_iter().next().expect("one volume")
    }

    /// The volume is another replica now: its old mount is told the way on, nothing can be read, and a full sync makes it good.
    async fn assert_needs_a_full_compare(&self, before: &pb::Attached, at: Position) {
        self.assert_sound();
        let storaged = self.start();
        let status = self.state(&storaged).await;
        assert_eq!(status.state, "unproven", "{}", status.reason);
        assert!(status.reason.contains("repaired"), "{}", status.reason);
        let known = pb::Attach {
            volume_id: before.volume_id.clone(),
            replica_id: before.replica_id.clone(),
            ..attach_message("vol", 1, 1)
        };
        let refused = Writer::attach(storaged.client().await, known).await.err().expect("refused");
        assert_eq!(refused.reason(), Reason::OtherVolume);
        assert!(refused.message.contains("init=push"), "{}", refused.message);
        assert!(pull(&storaged).await.expect_err("refused").contains("init=push"));

        let mut writer = Writer::attach(storaged.client().await, attach_message("vol", 9, 0)).await.expect("granted");
        assert!(!writer.attached.empty, "an empty one would be filled without a question");
        assert!(at.is_before(&writer.position), "{at} and then {}", writer.position);
        writer.first_sync().await;
        writer.ops(vec![rename(InodeId::ROOT, "a", id(1), "renamed")]).await;
        writer.applied().await;
        assert_eq!(self.state(&storaged).await.state, "settled");
        pull(&storaged).await.expect("a state again");
        drop(writer);
        assert_eq!(storaged.stop(), Some(0));
        let expected = [("d/b", "abc"), ("renamed", "hello")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(self.files(), expected);
        self.assert_sound();
    }
}

async fn pull(storaged: &Storaged) -> Result<(), String> {
    let request = pb::PullRequest { volume: "vol".into(), ..Default::default() };
    let mut stream =
        storaged.client().await.pull(request).await.map_err(|error| error.message().to_owned())?.into_inner();
    while stream.message().await.map_err(|error| error.message().to_owned())?.is_some() {}
    Ok(())
}

fn places(records: &Value, kind: &str) -> Vec<String> {
    let records = records["records"].as_array().expect("records");
    let of_kind = records.iter().filter(|record| record["kind"] == kind);
    of_kind.map(|record| record["at"].as_str().expect("a place").to_owned()).collect()
}

#[tokio::test]
async fn a_volume_that_was_stopped_or_killed_is_sound_and_can_be_inspected() {
    for kill in [false, true] {
        let world = World::new();
        let (attached, at) = world.filled(kill).await;
        let (code, inspected) = world.json(&["inspect", "--records"]);
        assert_eq!(code, Some(0));
        assert_eq!(inspected["position"], at.to_string());
        let replica = tandem_proto::ids::hex(&attached.replica_id);
        assert_eq!(inspected["state"]["replica_id"], replica.as_str());
        assert_eq!(places(&inspected, "ops").is_empty(), !kill, "a stop leaves nothing to redo");
        let (code, report) = world.json(&["check"]);
        assert_eq!(code, Some(0), "{report}");
        assert_eq!(report["position"], at.to_string());
        assert_eq!(report["names_compared"], 23);
        assert_eq!(report["catalog"]["directories"], 2);
        assert!(world.offline(&["check"]).1.contains("vol: sound"));
        assert!(world.offline(&["inspect", "--records"]).1.contains("position"));
        // Checking has harmed nothing.
        let storaged = world.start();
        let attach = pb::Attach {
            volume_id: attached.volume_id.clone(),
            replica_id: attached.replica_id.clone(),
            ..attach_message("vol", 1, 1)
        };
        let writer = Writer::attach(storaged.client().await, attach).await.expect("granted");
        assert_eq!(writer.position, at);
    }
}

#[tokio::test]
async fn a_storage_directory_that_is_in_use_or_is_none_is_refused() {
    let world = World::new();
    world.filled(false).await;
    let storaged = world.start();
    for command in ["inspect", "check", "reindex"] {
        let (code, output) = world.offline(&[command]);
        assert_eq!(code, Some(1));
        assert!(output.contains("in use by another tandem-storaged"), "{output}");
    }
    drop(storaged);
    let (code, output) = world.offline(&["check", "other"]);
    assert_eq!(code, Some(1));
    assert!(output.contains("no volume other"), "{output}");
    let (code, output) = World::new().offline(&["check"]);
    assert_eq!(code, Some(1));
    assert!(output.contains("format"), "{output}");
    assert_eq!(world.offline(&["chek"]).0, Some(64));
}

#[tokio::test]
async fn damage_of_what_the_log_does_not_need_any_more_is_repaired_exactly() {
    let world = World::new();
    let (attached, at) = world.filled(false).await;
    // Behind the header of the segment; all of it was applied when the daemon stopped.
    world.flip("0000000000000001.seg+36");
    let storaged = world.start();
    let status = world.state(&storaged).await;
    assert_eq!(status.state, "damaged");
    assert!(status.reason.contains("check --repair"), "{}", status.reason);
    drop(storaged);
    assert_eq!(world.offline(&["check"]).0, Some(2));
    let (code, report) = world.json(&["check", "--repair"]);
    assert_eq!((code, &report["repaired"]["exact"]), (Some(3), &Value::Bool(true)), "{report}");
    world.assert_sound();
    let storaged = world.start();
    let attach = pb::Attach {
        volume_id: attached.volume_id.clone(),
        replica_id: attached.replica_id.clone(),
        ..attach_message("vol", 1, 1)
    };
    let mut writer = Writer::attach(storaged.client().await, attach).await.expect("the same replica");
    assert_eq!(writer.position, at);
    writer.ops(vec![rename(InodeId::ROOT, "a", id(1), "renamed")]).await;
    writer.applied().await;
}

#[tokio::test]
async fn a_log_that_lost_acknowledged_ops_becomes_a_replica_that_must_be_compared_in_full() {
    let world = World::new();
    let (attached, at) = world.filled(true).await;
    let ops = places(&world.json(&["inspect", "--records"]).1, "ops");
    world.flip(&ops[0]);
    let (code, output) = world.offline(&["check"]);
    assert_eq!(code, Some(2));
    assert!(output.contains("was written after it was durable") && output.contains("--repair"), "{output}");
    assert_eq!(world.offline(&["check"]).0, Some(2), "only looked at");
    let (code, report) = world.json(&["check", "--repair"]);
    assert_eq!((code, &report["repaired"]["exact"]), (Some(3), &Value::Bool(false)), "{report}");
    assert!(world.volume().join("damaged/1/log").is_dir(), "nothing is thrown away");
    world.assert_needs_a_full_compare(&attached, at).await;
}

#[tokio::test]
async fn whatever_is_lost_of_a_volume_check_repair_is_a_way_on() {
    type Fault = fn(&Path);
    let faults: [(&str, Fault); 9] = [
        ("log gone", |volume| fs::remove_dir_all(volume.join("log")).expect("removed")),
        ("catalog gone", |volume| fs::remove_dir_all(volume.join("catalog")).expect("removed")),
        ("catalog garbage", |volume| fs::write(volume.join("catalog/catalog.redb"), [7; 99_999]).expect("written")),
        ("catalog cut", |volume| {
            let file = fs::OpenOptions::new().write(true).open(volume.join("catalog/catalog.redb")).expect("opened");
            file.set_len(5000).expect("cut");
        }),
        ("state gone", |volume| fs::remove_file(volume.join("state")).expect("removed")),
        ("state garbage", |volume| fs::write(volume.join("state"), "{}").expect("written")),
        ("a file gone", |volume| fs::remove_file(volume.join("tree/d/f3")).expect("removed")),
        ("a file replaced", |volume| {
            fs::copy(volume.join("tree/a"), volume.join("tree/new")).expect("copied");
            fs::rename(volume.join("tree/new"), volume.join("tree/a")).expect("renamed");
        }),
        ("a file added and a directory moved", |volume| {
            fs::create_dir(volume.join("tree/e")).expect("made");
            fs::rename(volume.join("tree/d"), volume.join("tree/e/d")).expect("moved");
        }),
    ];
    for (what, fault) in faults {
        let world = World::new();
        let (attached, at) = world.filled(what.len() % 2 == 0).await;
        fault(&world.volume());
        let (code, output) = world.offline(&["check"]);
        assert_eq!(code, Some(2), "{what}: {output}");
        let (code, output) = world.offline(&["check", "--repair"]);
        assert_eq!(code, Some(3), "{what}: {output}");
        assert!(output.contains("init=push"), "{what}: {output}");
        // The epoch may be lost with `state` and log; it is not used to tell replicas apart.
        let at = if what.starts_with("state") { Position::default() } else { at };
        world.assert_needs_a_full_compare(&attached, at).await;
    }
}

#[tokio::test]
async fn a_volume_copied_to_another_place_is_recognised_by_check() {
    let world = World::new();
    let (attached, at) = world.filled(false).await;
    let copy = world.data.path().join("copy");
    let copied = Command::new("cp").arg("-a").arg(world.volume()).arg(&copy).status().expect("cp");
    assert!(copied.success());
    fs::remove_dir_all(world.volume()).expect("removed");
    fs::rename(&copy, world.volume()).expect("renamed");
    let (code, output) = world.offline(&["check"]);
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("copied or restored"), "{output}");
    assert_eq!(world.offline(&["check", "--repair"]).0, Some(3));
    world.assert_needs_a_full_compare(&attached, at).await;
}

#[tokio::test]
async fn a_repaired_tree_whose_folder_is_lost_can_be_accepted_and_read() {
    let world = World::new();
    world.filled(true).await;
    let (code, output) = world.offline(&["check", "--accept"]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("nothing to accept"), "{output}");
    fs::remove_dir_all(world.volume().join("catalog")).expect("removed");
    assert_eq!(world.offline(&["check", "--accept"]).0, Some(2), "damage is repaired first");
    assert_eq!(world.offline(&["check", "--repair"]).0, Some(3));
    let storaged = world.start();
    pull(&storaged).await.expect_err("not a state");
    drop(storaged);
    assert_eq!(world.offline(&["check", "--accept"]).0, Some(0));
    let storaged = world.start();
    assert_eq!(world.state(&storaged).await.state, "settled");
    pull(&storaged).await.expect("taken as it is");
}

#[tokio::test]
async fn a_file_that_rots_is_found_by_reading_and_mended_by_a_full_compare() {
    let world = World::new();
    let (attached, at) = world.filled(false).await;
    let (code, output) = world.offline(&["reindex"]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("22 files"), "{output}");
    let (code, report) = world.json(&["check", "--read-files"]);
    assert_eq!((code, &report["files_read"]), (Some(0), &Value::from(22)), "{report}");
    let path = world.volume().join("tree/d/b");
    let times = fs::metadata(&path).expect("stat").modified().expect("mtime");
    let file = fs::OpenOptions::new().write(true).open(&path).expect("opened");
    std::os::unix::fs::FileExt::write_all_at(&file, b"X", 1).expect("written");
    file.set_modified(times).expect("set");
    world.assert_sound();
    let (code, report) = world.json(&["check", "--read-files", "--repair"]);
    assert_eq!(code, Some(3), "{report}");
    assert!(report.to_string().contains("is not what it was when it was indexed"), "{report}");
    world.assert_needs_a_full_compare(&attached, at).await;
}

#[tokio::test]
async fn an_index_that_is_lost_is_a_note_and_no_damage() {
    let world = World::new();
    world.filled(false).await;
    fs::remove_dir_all(world.volume().join("index")).expect("removed");
    let (code, output) = world.offline(&["check"]);
    assert_eq!(code, Some(0));
    assert!(output.contains("rebuilt while storaged serves"), "{output}");
}
