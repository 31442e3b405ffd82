//! A staging that contradicts itself ends before its publish record, and harms nothing.

use smallvec::smallvec;
use tandem_proto::{
    ids::InodeId,
    op::{Attr, Change, Changes, NodeKind, Op},
    stage::{Content, Listing, NodeState, Stage, StageDir, StageEntry, StageNode},
};

use super::{Rig, first_sync, position, publish, stage, stage_ops};
use crate::{
    apply::{
        ApplyError,
        testing::{id, name, picture_of, world::World},
    },
    tree::MemTree,
};

fn directory(content: Content) -> Option<NodeState> {
    let attr = Attr { mode: 0o755, uid: 0, gid: 0, mtime: Default::default() };
    Some(NodeState { kind: NodeKind::Directory, attr, xattrs: Vec::new(), size: 0, content })
}

fn names(dir: InodeId, entries: &[(&str, InodeId)]) -> Stage {
    let entry = |(text, id): &(&str, InodeId)| StageEntry {
        name: name(text),
        node: Some((*id, tandem_proto::stage::NodeType::Directory)),
        stamp: None,
    };
    let entries = entries.iter().map(entry).collect();
    Stage::Dir(StageDir { dir, listing: Listing::Partial, entries, born_since: None })
}

fn ops(rig: &mut Rig<MemTree>, changes: Changes) {
    let seq = rig.replica.applied().seq.next();
    stage_ops(rig, &[Op { seq, origin: Default::default(), changes }], rig.epoch).expect("staged");
}

/// Begins a staging, lets `confuse` stage something, and expects its end to be refused.
fn is_refused(what: &str, confuse: impl Fn(&mut Rig<MemTree>)) {
    let mut world = World::new(true);
    let mut rig = Rig::new(MemTree::new());
    first_sync(&mut rig, &world);
    rig.epoch = 1;
    let live = |seq: u64, changes| Op { seq: tandem_proto::position::Seq(seq), origin: Default::default(), changes };
    let old = Change::Birth { id: id(9), kind: NodeKind::Directory };
    let named = Change::Entry { dir: InodeId::ROOT, name: name("old"), old: None, new: Some(id(9)) };
    let first = world.seq.0 + 1;
    rig.apply(&live(first, smallvec![old, named])).expect("live");
    let record = rig.replica.stage_begin(1, false, position(1, rig.replica.applied().seq)).expect("begun");
    rig.log.push(record);
    confuse(&mut rig);
    match rig.replica.stage_sync() {
        Err(ApplyError::Protocol { .. }) => {}
        other => panic!("{what}: {other:?}"),
    }
    rig.replica.stage_drop().expect("dropped");
    let gone = Change::Entry { dir: InodeId::ROOT, name: name("old"), old: Some(id(9)), new: None };
    rig.apply(&live(first + 1, smallvec![gone])).unwrap_or_else(|error| panic!("{what}: {error}"));
    world.seq = rig.replica.applied().seq;
    rig.check(&world, what);
}

#[test]
fn a_directory_with_two_names_ends_the_round_and_not_the_volume() {
    is_refused("a new one", |rig| {
        stage(rig, Stage::Node(StageNode { id: id(5), state: directory(Content::Unchanged) })).expect("staged");
        stage(rig, names(InodeId::ROOT, &[("a", id(5)), ("b", id(5))])).expect("staged");
    });
    is_refused("an old one", |rig| {
        let named = |text: &str| Change::Entry { dir: InodeId::ROOT, name: name(text), old: None, new: Some(id(9)) };
        ops(rig, smallvec![named("a"), named("b")]);
    });
}

#[test]
fn a_name_for_what_was_never_born_ends_the_round() {
    is_refused("staged", |rig| {
        stage(rig, names(InodeId::ROOT, &[("a", id(5))])).expect("staged");
    });
    is_refused("in an op", |rig| {
        ops(rig, smallvec![Change::Entry { dir: InodeId::ROOT, name: name("a"), old: None, new: Some(id(5)) }]);
    });
}

#[test]
fn data_for_a_directory_ends_the_round() {
    is_refused("data", |rig| {
        ops(rig, smallvec![Change::Data { id: id(9), offset: 0, data: "bytes".into() }]);
    });
}

#[test]
fn names_in_what_is_no_directory_end_the_round() {
    is_refused("names", |rig| {
        let file = Change::Birth { id: id(5), kind: NodeKind::Regular };
        let named = Change::Entry { dir: InodeId::ROOT, name: name("f"), old: None, new: Some(id(5)) };
        let below = Change::Entry { dir: id(5), name: name("x"), old: None, new: Some(id(9)) };
        ops(rig, smallvec![file, named, below]);
    });
}

#[test]
fn a_new_file_that_its_writer_may_not_read_is_empty_and_a_known_one_keeps_what_it_has() {
    let mut rig = Rig::new(MemTree::new());
    first_sync(&mut rig, &World::new(true));
    let closed = |content, size| {
        let attr = Attr { mode: 0, uid: 7, gid: 7, mtime: Default::default() };
        let state = NodeState { kind: NodeKind::Regular, attr, xattrs: Vec::new(), size, content };
        Stage::Node(StageNode { id: id(5), state: Some(state) })
    };
    let named =
        StageEntry { name: name("f"), node: Some((id(5), tandem_proto::stage::NodeType::Regular)), stamp: None };
    let size = |rig: &Rig<MemTree>| picture_of(&rig.tree)[&vec![name("f")]].data.len();
    for (epoch, content, bytes) in [(1, Content::Unchanged, 0), (2, Content::Whole, 3), (3, Content::Unchanged, 3)] {
        rig.epoch = epoch;
        let at = position(epoch, rig.replica.applied().seq);
        let record = rig.replica.stage_begin(1, false, at).expect("begun");
        rig.log.push(record);
        let listing = Listing::Partial;
        let dir = StageDir { dir: InodeId::ROOT, listing, entries: vec![named.clone()], born_since: None };
        stage(&mut rig, Stage::Dir(dir)).expect("staged");
        stage(&mut rig, closed(content, 3)).expect("staged");
        rig.replica.stage_sync().expect("nothing is missing");
        let record = rig.replica.publish_record(at);
        rig.log.push(record);
        publish(&mut rig, at.seq).expect("published");
        assert_eq!(size(&rig), bytes, "{content:?}");
    }
}

#[test]
fn a_live_op_on_an_inode_without_a_name_is_passed_over() {
    let mut world = World::new(true);
    let mut rig = Rig::new(MemTree::new());
    first_sync(&mut rig, &world);
    let seq = world.seq.next();
    let changes = smallvec![
        Change::Data { id: id(77), offset: 0, data: "bytes".into() },
        Change::Size { id: id(77), size: 2 },
        Change::Attr { id: id(77), patch: Attr { mode: 0o600, uid: 0, gid: 0, mtime: Default::default() }.into() },
        Change::Xattr { id: id(77), name: "user.x".into(), value: None },
    ];
    rig.apply(&Op { seq, origin: Default::default(), changes }).expect("what has no name has no state");
    world.seq = seq;
    rig.check(&world, "unchanged");
}
