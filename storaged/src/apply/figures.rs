//! What apply costs on the real tree and catalog. Run with
//! `cargo test --release -p tandem-storaged --lib apply::figures -- --ignored --nocapture`.

use std::time::Instant;

use smallvec::smallvec;
use tandem_proto::{
    chain::Chain,
    ids::InodeId,
    op::{Attr, AttrPatch, Change, NodeKind, Op, Origin, Timestamp},
    position::{Epoch, Position, Seq},
    stage::{Content, Listing, NodeState, NodeType, Stage, StageData, StageDir, StageEntry, StageNode},
};

use super::{
    NoChunks, Record, Replica,
    testing::{id, name},
};
use crate::{catalog::Catalog, tree::FsTree};

const FILES: u64 = 20_000;
const DIRS: u64 = 200;

fn attr() -> Attr {
    Attr { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { seconds: 1_700_000_000, nanos: 5 } }
}

fn at(seq: u64) -> Position {
    Position { epoch: Epoch(1), seq: Seq(seq), chain: Chain::default() }
}

fn node(id: InodeId, kind: NodeKind, size: u64) -> Stage {
    let state = NodeState { kind, attr: attr(), xattrs: Vec::new(), size, content: Content::Whole };
    Stage::Node(StageNode { id, state: Some(state) })
}

fn stage_folder(replica: &mut Replica<FsTree>, log: &mut Vec<Record>) {
    log.push(replica.stage_begin(1, true, at(0)).expect("begin"));
    let mut stage = |stage: Stage| log.extend(replica.stage(stage, &NoChunks).expect("stage").log);
    let listing = |dir: InodeId, children: Vec<(u64, NodeType)>| {
        let entry = |(child, node_type): (u64, NodeType)| StageEntry {
            name: name(&format!("name-{child}")),
            node: Some((id(child), node_type)),
            stamp: Some(1),
        };
        let entries = children.into_iter().map(entry).collect();
        Stage::Dir(StageDir { dir, listing: Listing::CompleteEnd, entries, born_since: None })
    };
    stage(listing(InodeId::ROOT, (1..=DIRS).map(|dir| (dir, NodeType::Directory)).collect()));
    for dir in 1..=DIRS {
        stage(node(id(dir), NodeKind::Directory, 0));
        let files: Vec<u64> = (0..FILES / DIRS).map(|file| 1000 + dir * 1000 + file).collect();
        stage(listing(id(dir), files.iter().map(|file| (*file, NodeType::Regular)).collect()));
        for file in files {
            stage(node(id(file), NodeKind::Regular, 4096));
            stage(Stage::Data(StageData { id: id(file), offset: 0, data: vec![7; 4096].into() }));
        }
    }
}

fn op(seq: u64, changes: tandem_proto::op::Changes) -> Op {
    Op { seq: Seq(seq), origin: Origin::default(), changes }
}

fn touched(dir: InodeId) -> Change {
    Change::Attr { id: dir, patch: AttrPatch { mtime: Some(attr().mtime), ..AttrPatch::default() } }
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let tree = FsTree::open(directory.path()).expect("tree");
    let catalog = Catalog::open(directory.path()).expect("catalog");
    let mut replica = Replica::open(tree, catalog).expect("replica");
    replica.recover(&Vec::new()).expect("recover");
    let mut log = Vec::new();
    let start = Instant::now();
    stage_folder(&mut replica, &mut log);
    println!("{FILES} files staged in {:?}", start.elapsed());
    let start = Instant::now();
    replica.stage_sync().expect("sync");
    println!("synced in {:?}", start.elapsed());
    let start = Instant::now();
    replica.publish(at(0), &log).expect("publish");
    println!("published in {:?}", start.elapsed());

    let mut seq = 0;
    let mut run = |what: &str, count: u64, make: &mut dyn FnMut(u64) -> Vec<tandem_proto::op::Changes>| {
        let start = Instant::now();
        for number in 0..count {
            for changes in make(number) {
                seq += 1;
                replica.apply(&op(seq, changes), Chain::default()).expect("apply");
            }
        }
        println!("{what}: {:?} each", start.elapsed() / count as u32);
        let start = Instant::now();
        replica.checkpoint().expect("checkpoint");
        println!("  checkpoint {:?}", start.elapsed());
    };
    run("create, write 4 KiB, mtime", 10_000, &mut |number| {
        let (dir, file) = (id(1 + number % 10), id(1_000_000 + number));
        let entry = Change::Entry { dir, name: name(&format!("new-{number}")), old: None, new: Some(file) };
        let birth = Change::Birth { id: file, kind: NodeKind::Regular };
        let all = Change::Attr { id: file, patch: attr().into() };
        vec![
            smallvec![birth, all, entry, touched(dir)],
            smallvec![Change::Data { id: file, offset: 0, data: vec![1; 4096].into() }],
            smallvec![touched(file)],
        ]
    });
    run("overwrite 4 KiB", 10_000, &mut |number| {
        vec![smallvec![Change::Data { id: id(1_000_000 + number % 100), offset: 0, data: vec![2; 4096].into() }]]
    });
    run("rename of a directory", 1000, &mut |number| {
        let (from, to) = (format!("name-{}", 100), "renamed".to_owned());
        let (from, to) = if number % 2 == 0 { (from, to) } else { (to, from) };
        let gone = Change::Entry { dir: InodeId::ROOT, name: name(&from), old: Some(id(100)), new: None };
        let there = Change::Entry { dir: InodeId::ROOT, name: name(&to), old: None, new: Some(id(100)) };
        vec![smallvec![gone, there, touched(InodeId::ROOT)]]
    });
    run("unlink", 10_000, &mut |number| {
        let (dir, file) = (id(1 + number % 10), id(1_000_000 + number));
        let gone = Change::Entry { dir, name: name(&format!("new-{number}")), old: Some(file), new: None };
        vec![smallvec![gone, touched(dir)]]
    });
}
