//! Apply against a naive world: live, with failures, with crashes at every step, and through stagings.

use smallvec::smallvec;
use tandem_proto::{
    chain::Chain,
    chunk::Digest,
    ids::InodeId,
    op::{Attr, Change, Changes, NodeKind, Op, Timestamp},
    position::{Epoch, Position, Seq},
    stage::{
        Content, Listing, NodeState, NodeType, Piece, Stage, StageData, StageDir, StageEntry, StageNode, StageRecipe,
    },
};

use super::{
    ApplyError, NoChunks, Record, Replica,
    testing::{
        Random, assert_same, id, name, picture_of,
        world::{Inode, World},
    },
};
use crate::{
    catalog::{Catalog, store::MemoryStore},
    tree::{Area, FsTree, MemTree, ReplicaTree},
};

fn chain(seq: Seq) -> Chain {
    Chain([seq.0 as u8; 16])
}

fn position(epoch: u64, seq: Seq) -> Position {
    Position { epoch: Epoch(epoch), seq, chain: chain(seq) }
}

/// A replica with its log, as a volume has it.
struct Rig<T: ReplicaTree> {
    replica: Replica<T>,
    tree: T,
    store: MemoryStore,
    log: Vec<Record>,
    epoch: u64,
}

impl<T: ReplicaTree> Rig<T> {
    fn new(tree: T) -> Self {
        let store = MemoryStore::default();
        let catalog = Catalog::in_memory(store.clone()).expect("catalog");
        let mut replica = Replica::open(tree.clone(), catalog).expect("open");
        replica.recover(&Vec::new()).expect("recover nothing");
        Rig { replica, tree, store, log: Vec::new(), epoch: 0 }
    }

    /// A new process on the same tree, with what the catalog's last durable commit had.
    fn reopen(&mut self) -> Result<(), ApplyError> {
        self.store = self.store.after_crash();
        let catalog = Catalog::in_memory(self.store.clone())?;
        self.replica = Replica::open(self.tree.clone(), catalog)?;
        self.replica.recover(&self.log).map(|_| ())
    }

    fn log_op(&mut self, op: &Op) {
        self.log.push(Record::Ops { ops: vec![op.clone()], end: position(self.epoch, op.seq) });
    }

    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.replica.apply(op, chain(op.seq))
    }

    fn check(&self, world: &World, context: &str) {
        // Without privileges the tree differs where the file system refuses; readers must not.
        if !self.tree.is_unprivileged() {
            assert_same(&picture_of(&self.tree), &world.picture(), context);
        }
        let reader = self.replica.reader();
        for (id, node) in &world.inodes {
            let found = reader.node(id).expect("read").unwrap_or_else(|| panic!("{context}: {id} is unknown"));
            assert_eq!((&found.kind, found.attr), (&node.kind, node.attr), "{context}: {id}");
            let xattrs = reader.xattrs(id).expect("xattrs").expect("known");
            assert_eq!(xattrs, node.xattrs.clone().into_iter().collect::<Vec<_>>(), "{context}: xattrs of {id}");
            if let Some(file) = reader.open(id).expect("open") {
                let mut data = vec![0; node.data.len() + 1];
                let read = file.read_at(0, &mut data).expect("read");
                assert_eq!(data[..read], node.data, "{context}: data of {id}");
            }
            let names: Vec<_> = reader.entries(id, None, 1000).expect("names");
            assert_eq!(names, node.names.clone().into_iter().collect::<Vec<_>>(), "{context}: names of {id}");
        }
        assert_eq!(reader.inodes(), world.inodes.len() as u64, "{context}: number of inodes");
        for area in [Area::Parked, Area::Limbo] {
            assert!(
                self.tree.list(&self.tree.area(area)).expect("list").is_empty(),
                "{context}: {area:?} is not empty"
            );
        }
    }
}

#[test]
fn a_discarded_directory_is_deleted_in_slices_also_after_a_restart() {
    for restart in [false, true] {
        let (mut random, mut world) = (Random::new(3), World::new(true));
        let mut rig = Rig::new(MemTree::new());
        for _ in 0..200 {
            world.step(&mut random);
        }
        first_sync(&mut rig, &world);
        while rig.replica.has_litter() {
            rig.replica.tidy(10);
        }
        // Everything goes at once.
        let mut empty = World::new(true);
        empty.seq = world.seq;
        empty.inodes =
            [(InodeId::ROOT, Inode { names: Default::default(), ..world.inodes[&InodeId::ROOT].clone() })].into();
        stage_all(&mut rig, &empty, &empty, &[], 2, false).expect("published");
        rig.check(&empty, "without what was discarded");
        let left = |rig: &Rig<MemTree>| rig.tree.list(&rig.tree.area(Area::Discard)).expect("list").len();
        assert!(left(&rig) > 0, "the publish did not wait for it");
        rig.replica.tidy(2);
        assert!(rig.replica.has_litter(), "a slice is bounded");
        if restart {
            rig.reopen().expect("opened");
        }
        let mut slices = 0;
        while rig.replica.has_litter() {
            rig.replica.tidy(5);
            slices += 1;
        }
        assert!(slices > 5, "{slices}");
        assert_eq!(left(&rig), 0);
        rig.check(&empty, "afterwards");
    }
}

/// A root as the first op leaves it: the world's root has attributes that nobody sent.
fn first_sync<T: ReplicaTree>(rig: &mut Rig<T>, world: &World) {
    stage_all(rig, world, world, &[], 1, true).expect("first sync");
}

fn piece(data: &[u8], offset: usize, len: usize) -> Piece {
    let bytes = &data[offset..offset + len];
    let digest = bytes.iter().any(|byte| *byte != 0).then(|| Digest::of(bytes));
    Piece::chunk(offset as u64, len as u64, digest)
}

fn stage<T: ReplicaTree>(rig: &mut Rig<T>, stage: Stage) -> Result<super::StageReply, ApplyError> {
    let reply = rig.replica.stage(stage, &NoChunks)?;
    rig.log.extend(reply.log.iter().cloned());
    Ok(reply)
}

fn stage_node<T: ReplicaTree>(rig: &mut Rig<T>, world: &World, id: &InodeId) -> Result<(), ApplyError> {
    let Some(node) = world.inodes.get(id) else {
        return stage(rig, Stage::Node(world.stage_node(id, Content::Whole))).map(|_| ());
    };
    stage(rig, Stage::Node(world.stage_node(id, Content::Whole)))?;
    if node.kind.is_regular() && node.data.len() % 2 == 1 {
        // A mount sends small files without asking, and large ones to an empty replica.
        stage(rig, Stage::Data(StageData { id: *id, offset: 0, data: node.data.clone().into() }))?;
    } else if node.kind.is_regular() && !node.data.is_empty() {
        let pieces = (0..node.data.len()).step_by(16);
        let pieces = pieces.map(|at| piece(&node.data, at, 16.min(node.data.len() - at))).collect();
        let reply = stage(rig, Stage::Recipe(StageRecipe { id: *id, pieces }))?;
        for need in reply.need_pieces {
            let (from, to) = (need.offset as usize, (need.offset + need.len) as usize);
            let data = node.data[from..to].to_vec().into();
            stage(rig, Stage::Data(StageData { id: *id, offset: need.offset, data }))?;
        }
    }
    Ok(())
}

#[test]
fn a_small_file_gets_its_attributes_while_it_is_staged_and_again_if_more_bytes_come() {
    let attr = Attr { mode: 0o640, uid: 7, gid: 8, mtime: Timestamp { seconds: 99, nanos: 5 } };
    let (early, late) = (id(1), id(2));
    let node = |id: InodeId| {
        let state = NodeState { kind: NodeKind::Regular, attr, xattrs: Vec::new(), size: 4, content: Content::Whole };
        Stage::Node(StageNode { id, state: Some(state) })
    };
    let data = |id: InodeId| Stage::Data(StageData { id, offset: 0, data: b"data"[..].into() });
    let mut rig = Rig::new(MemTree::new());
    rig.epoch = 1;
    let begun = rig.replica.stage_begin(1, true, position(1, Seq(0))).expect("begun");
    rig.log.push(begun);
    let entry = |(named, id): (&str, InodeId)| StageEntry {
        name: name(named),
        node: Some((id, NodeType::Regular)),
        stamp: Some(1),
    };
    let entries = [("early", early), ("late", late)].map(entry).to_vec();
    let names = Stage::Dir(StageDir { dir: InodeId::ROOT, listing: Listing::CompleteEnd, entries, born_since: None });
    for message in [names, node(late), data(late), node(early), data(early), data(late)] {
        stage(&mut rig, message).expect("staged");
    }
    let of = |rig: &Rig<MemTree>, area: Area, named: &[u8]| {
        let node = rig.tree.open(&rig.tree.area(area), named, NodeType::Regular).expect("there");
        rig.tree.stat(&node).expect("read").attr
    };
    assert_eq!(of(&rig, Area::Staging, early.to_hex().as_bytes()), attr, "before the publish");
    assert_ne!(of(&rig, Area::Staging, late.to_hex().as_bytes()), attr, "it was written to since");
    rig.replica.stage_sync().expect("synced");
    let record = rig.replica.publish_record(position(1, Seq(0)));
    rig.log.push(record);
    publish(&mut rig, Seq(0)).expect("published");
    for named in ["early", "late"] {
        assert_eq!(of(&rig, Area::Tree, named.as_bytes()), attr, "{named}");
    }
}

/// Stages all of `state`, which may be newer than where `ops` begin, then the ops, and publishes.
fn stage_all<T: ReplicaTree>(
    rig: &mut Rig<T>,
    state: &World,
    end: &World,
    ops: &[Op],
    epoch: u64,
    full: bool,
) -> Result<(), ApplyError> {
    stage_rounds(rig, &[(state, ops)], end, epoch, full)?;
    publish(rig, end.seq)
}

fn stage_rounds<T: ReplicaTree>(
    rig: &mut Rig<T>,
    rounds: &[(&World, &[Op])],
    end: &World,
    epoch: u64,
    full: bool,
) -> Result<(), ApplyError> {
    rig.epoch = epoch;
    for (round, (state, ops)) in rounds.iter().enumerate() {
        let s0 = position(epoch, ops.first().map_or(end.seq, |op| Seq(op.seq.0 - 1)));
        let record = rig.replica.stage_begin(round as u64 + 1, full, s0)?;
        rig.log.push(record);
        let half = ops.len() / 2;
        stage_ops(rig, &ops[..half], epoch)?;
        stage_node(rig, state, &InodeId::ROOT)?;
        let mut waiting = vec![InodeId::ROOT];
        while let Some(dir) = waiting.pop() {
            let reply = stage(rig, Stage::Dir(state.stage_dir(&dir)))?;
            for id in reply.need_nodes {
                // It may be gone, or changed, by the time it is read.
                stage_node(rig, if end.inodes.contains_key(&id) { state } else { end }, &id)?;
            }
            waiting.extend(state.inodes[&dir].names.values().filter(|id| state.inodes[*id].kind.is_directory()));
        }
        // Stamps prove neither data nor extended attributes; a mount sends those whose cells are dirty.
        for id in state.inodes.keys() {
            stage_node(rig, state, id)?;
        }
        stage_ops(rig, &ops[half..], epoch)?;
    }
    rig.replica.stage_sync()?;
    let record = rig.replica.publish_record(position(epoch, end.seq));
    rig.log.push(record);
    Ok(())
}

fn publish<T: ReplicaTree>(rig: &mut Rig<T>, seq: Seq) -> Result<(), ApplyError> {
    let log = rig.log.clone();
    rig.replica.publish(position(rig.epoch, seq), &log).map(|_| ())
}

fn stage_ops<T: ReplicaTree>(rig: &mut Rig<T>, ops: &[Op], epoch: u64) -> Result<(), ApplyError> {
    if let Some(last) = ops.last() {
        let end = position(epoch, last.seq);
        rig.log.push(Record::StagedOps { ops: ops.to_vec(), end });
        rig.replica.stage_ops(ops, end)?;
    }
    Ok(())
}

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("TANDEM_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(25);
    let first = std::env::var("TANDEM_SEED").ok().and_then(|first| first.parse().ok()).unwrap_or(1);
    first..first + count
}

fn live_ops_lead_to_the_world<T: ReplicaTree>(make: impl Fn() -> T, privileged: bool) {
    for seed in seeds() {
        let (mut random, mut world) = (Random::new(seed), World::new(privileged));
        let mut rig = Rig::new(make());
        first_sync(&mut rig, &world);
        for _ in 0..150 {
            let op = world.step(&mut random);
            rig.apply(&op).unwrap_or_else(|error| panic!("seed {seed}, {op:?}: {error}"));
        }
        rig.check(&world, &format!("seed {seed}"));
    }
}

#[test]
fn live_ops_lead_to_the_world_in_memory() {
    live_ops_lead_to_the_world(MemTree::new, true);
}

#[test]
fn live_ops_lead_to_the_world_on_a_real_file_system() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let number = std::cell::Cell::new(0);
    let make = || {
        number.set(number.get() + 1);
        FsTree::open(&directory.path().join(number.get().to_string())).expect("open")
    };
    live_ops_lead_to_the_world(make, true);
}

/// xfs takes 1,023 bytes, ext4 4,095; what none takes stands for both.
#[test]
fn a_link_text_that_the_file_system_does_not_take_is_kept_in_the_catalog() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut rig = Rig::new(FsTree::open(directory.path()).expect("areas"));
    first_sync(&mut rig, &World::new(true));
    let (link, kind) = (id(50), NodeKind::Symlink(vec![b'x'; 5000].into()));
    let attr = Attr { mode: 0o777, uid: 0, gid: 0, mtime: Timestamp { seconds: 7, nanos: 8 } };
    let changes = smallvec![
        Change::Birth { id: link, kind: kind.clone() },
        Change::Attr { id: link, patch: attr.into() },
        Change::Entry { dir: InodeId::ROOT, name: name("link"), old: None, new: Some(link) },
    ];
    let seq = rig.replica.applied().seq.next();
    rig.apply(&Op { seq, origin: Default::default(), changes }).expect("apply goes on");
    let found = rig.replica.reader().node(&link).expect("read").expect("known");
    assert_eq!((found.kind, found.attr, found.size), (kind, attr, 0));
}

#[test]
fn bytes_that_were_staged_beside_a_long_file_are_moved_into_it_on_a_real_file_system() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut rig = Rig::new(FsTree::open(directory.path()).expect("areas"));
    first_sync(&mut rig, &World::new(true));
    let (file, step) = (id(50), 1 << 20);
    let content: Vec<u8> = (0..9 * step + 4321_u32).map(|at| (at ^ (at >> 9) ^ (at >> 17)) as u8).collect();
    let before = step as usize + 99;
    let attr = Attr { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { seconds: 7, nanos: 8 } };
    let changes = smallvec![
        Change::Birth { id: file, kind: NodeKind::Regular },
        Change::Attr { id: file, patch: attr.into() },
        Change::Entry { dir: InodeId::ROOT, name: name("file"), old: None, new: Some(file) },
        Change::Data { id: file, offset: 0, data: content[..before].to_vec().into() },
    ];
    let seq = rig.replica.applied().seq.next();
    rig.apply(&Op { seq, origin: Default::default(), changes }).expect("applied");
    rig.epoch = 2;
    let begun = rig.replica.stage_begin(1, false, position(2, seq)).expect("begun");
    rig.log.push(begun);
    let size = content.len() as u64;
    let state = NodeState { kind: NodeKind::Regular, attr, xattrs: Vec::new(), size, content: Content::Ranges };
    stage(&mut rig, Stage::Node(StageNode { id: file, state: Some(state) })).expect("staged");
    for at in (before..content.len()).step_by(step as usize) {
        let data = content[at..content.len().min(at + step as usize)].to_vec().into();
        stage(&mut rig, Stage::Data(StageData { id: file, offset: at as u64, data })).expect("staged");
    }
    rig.replica.stage_sync().expect("synced");
    let record = rig.replica.publish_record(position(2, seq));
    rig.log.push(record);
    publish(&mut rig, seq).expect("published");
    let node =
        rig.replica.tree().open(&rig.replica.tree().area(Area::Tree), b"file", NodeType::Regular).expect("there");
    let mut found = vec![0; content.len() + 1];
    assert_eq!(rig.replica.tree().read_at(&node, 0, &mut found).expect("read"), content.len());
    assert!(found[..content.len()] == content[..], "what was staged is where it belongs");
}

/// A mount sends all attributes with every change of one.
#[test]
fn a_file_that_is_touched_keeps_its_capabilities_on_a_real_file_system() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut rig = Rig::new(FsTree::open(directory.path()).expect("areas"));
    first_sync(&mut rig, &World::new(true));
    let (file, key) = (id(50), bytes::Bytes::from_static(b"security.capability"));
    // cap_net_bind_service, permitted and effective, as setcap writes it.
    let value = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
    let patch = |seconds| {
        let mtime = Timestamp { seconds, nanos: 0 };
        Change::Attr { id: file, patch: Attr { mode: 0o755, uid: 0, gid: 0, mtime }.into() }
    };
    let ops: [Changes; 3] = [
        smallvec![
            Change::Birth { id: file, kind: NodeKind::Regular },
            patch(1),
            Change::Entry { dir: InodeId::ROOT, name: name("tool"), old: None, new: Some(file) }
        ],
        smallvec![Change::Xattr { id: file, name: key.clone(), value: Some(value.clone().into()) }],
        smallvec![patch(2)],
    ];
    for (at, changes) in ops.into_iter().enumerate() {
        let seq = rig.replica.applied().seq.next();
        rig.apply(&Op { seq, origin: Default::default(), changes }).unwrap_or_else(|error| panic!("op {at}: {error}"));
    }
    let xattrs = rig.replica.reader().xattrs(&file).expect("read").expect("known");
    assert_eq!(xattrs, [(key, value.into())]);
}

#[test]
fn a_step_that_fails_is_done_when_the_op_is_tried_again() {
    for seed in seeds() {
        let (mut random, mut world) = (Random::new(seed), World::new(true));
        let mut rig = Rig::new(MemTree::new());
        first_sync(&mut rig, &world);
        for _ in 0..60 {
            let op = world.step(&mut random);
            rig.tree.set_budget(Some(random.below(6) as u64));
            while let Err(error) = rig.apply(&op) {
                assert!(error.is_retryable(), "seed {seed}, {op:?}: {error}");
                let more = random.below(12) as u64 + 1;
                rig.tree.set_budget((more < 11).then_some(more));
            }
            rig.tree.set_budget(None);
        }
        rig.check(&world, &format!("seed {seed}"));
    }
}

/// Recovers, dying on the way a few times.
fn recover_with_deaths(rig: &mut Rig<MemTree>, random: &mut Random, seed: u64) {
    for _ in 0..random.below(4) {
        let keep = random.below(rig.tree.unsynced() + 1);
        let power = random.below(2) == 0;
        if power {
            let lose = random.below(5);
            rig.tree.crash(keep, |at| lose > 0 && at % 5 < lose);
        }
        rig.tree.set_budget(Some(random.below(60) as u64));
        if let Err(error) = rig.reopen() {
            assert!(error.is_retryable(), "seed {seed}: {error}");
        }
    }
    rig.tree.set_budget(None);
    rig.reopen().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
}

#[test]
fn after_a_crash_at_any_step_the_log_is_redone_over_whatever_the_tree_became() {
    for seed in seeds().start..seeds().end * 6 {
        let (mut random, mut world) = (Random::new(seed), World::new(true));
        let mut rig = Rig::new(MemTree::new());
        for _ in 0..random.below(40) {
            world.step(&mut random);
        }
        first_sync(&mut rig, &world);
        let total = 10 + random.below(50);
        let (mut alive, dies_at) = (true, random.below(total));
        for at in 0..total {
            let op = world.step(&mut random);
            rig.log_op(&op);
            if at == dies_at {
                rig.tree.set_budget(Some(random.below(5) as u64));
            }
            if alive && random.below(25) == 0 {
                let _ = rig.replica.checkpoint();
            }
            alive = alive && rig.apply(&op).is_ok();
        }
        recover_with_deaths(&mut rig, &mut random, seed);
        rig.check(&world, &format!("seed {seed}"));
        for _ in 0..10 {
            let op = world.step(&mut random);
            rig.apply(&op).unwrap_or_else(|error| panic!("seed {seed}, {op:?}: {error}"));
        }
        rig.check(&world, &format!("seed {seed} and on"));
    }
}

/// A replica at some state, and a world that went on from there: some of it before S0, the rest as ops.
fn diverged(random: &mut Random) -> (Rig<MemTree>, World, World, World, Vec<Op>) {
    let mut world = World::new(true);
    let mut rig = Rig::new(MemTree::new());
    for _ in 0..random.below(60) {
        world.step(random);
    }
    first_sync(&mut rig, &world);
    for _ in 0..random.below(5) {
        let op = world.step(random);
        rig.log_op(&op);
        rig.apply(&op).expect("live");
    }
    for _ in 0..random.below(60) {
        world.step(random);
    }
    let at_s0 = world.clone();
    let mut ops = Vec::new();
    let mut read = world.clone();
    for step in 0..random.below(30) {
        ops.push(world.step(random));
        if step == 10 {
            read = world.clone();
        }
    }
    (rig, at_s0, read, world, ops)
}

#[test]
fn a_staging_of_fuzzy_state_and_ops_publishes_the_world() {
    for seed in seeds().start..seeds().end * 4 {
        let mut random = Random::new(seed);
        let (mut rig, at_s0, read, world, ops) = diverged(&mut random);
        let state = if random.below(2) == 0 { &at_s0 } else { &read };
        let full = random.below(3) == 0;
        stage_all(&mut rig, state, &world, &ops, 2, full).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        rig.check(&world, &format!("seed {seed}"));
    }
}

#[test]
fn a_second_round_goes_over_the_first() {
    for seed in seeds().start..seeds().end * 4 {
        let mut random = Random::new(seed);
        let (mut rig, at_s0, _, mut world, ops) = diverged(&mut random);
        for _ in 0..random.below(30) {
            world.step(&mut random);
        }
        let second = world.clone();
        let more: Vec<Op> = (0..random.below(15)).map(|_| world.step(&mut random)).collect();
        let rounds: [(&World, &[Op]); 2] = [(&at_s0, &ops), (&second, &more)];
        stage_rounds(&mut rig, &rounds, &world, 2, false).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        if random.below(2) == 0 {
            publish(&mut rig, world.seq).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        } else {
            recover_with_deaths(&mut rig, &mut random, seed);
        }
        rig.check(&world, &format!("seed {seed}"));
    }
}

#[test]
fn a_publish_that_is_interrupted_at_any_step_is_completed() {
    for seed in seeds().start..seeds().end * 4 {
        let mut random = Random::new(seed);
        let (mut rig, at_s0, _, mut world, ops) = diverged(&mut random);
        stage_rounds(&mut rig, &[(&at_s0, &ops)], &world, 2, random.below(3) == 0).expect("staging");
        rig.tree.set_budget(Some(random.below(150) as u64));
        let published = publish(&mut rig, world.seq);
        if random.below(2) == 0 && published.is_err() {
            while publish(&mut rig, world.seq).is_err() {
                let more = random.below(100) as u64;
                rig.tree.set_budget((more < 80).then_some(more));
            }
            rig.tree.set_budget(None);
        } else {
            for _ in 0..random.below(5) {
                let op = world.step(&mut random);
                rig.log_op(&op);
            }
            recover_with_deaths(&mut rig, &mut random, seed);
        }
        rig.check(&world, &format!("seed {seed}"));
    }
}

#[test]
fn a_folder_with_new_ids_takes_the_files_over_and_keeps_the_surplus() {
    for seed in seeds().start..seeds().end * 3 {
        let mut random = Random::new(seed);
        let (mut rig, at_s0, _, _, _) = diverged(&mut random);
        let before = picture_of(&rig.tree);
        let world = at_s0.with_new_ids(100_000);
        stage_rounds(&mut rig, &[(&world, &[])], &world, 2, true).expect("staging");
        if random.below(2) == 0 {
            publish(&mut rig, world.seq).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        } else {
            rig.tree.set_budget(Some(random.below(150) as u64));
            let _ = publish(&mut rig, world.seq);
            recover_with_deaths(&mut rig, &mut random, seed);
        }
        rig.check(&world, &format!("seed {seed}"));
        let after = world.picture();
        let is_surplus = |group: usize| {
            before.iter().all(|(path, shown)| shown.group != group || (path.len() == 1 && !after.contains_key(path)))
        };
        if let Some((path, _)) = before.iter().find(|(_, shown)| is_surplus(shown.group)) {
            let history = rig.tree.area(Area::History);
            let kept = rig.tree.list(&history).expect("list");
            assert!(!kept.is_empty(), "seed {seed}: {path:?} is not in history");
        }
    }
}

/// A last part that fails in the middle, while a file is given back to the id that turned up: what came before it counts, and the
/// copy that was broken off is made anew.
#[test]
fn a_listing_whose_last_part_finds_the_disk_full_is_staged_whole_when_it_comes_again() {
    for (budget, redone) in (0..5).flat_map(|budget| [(budget, false), (budget, true)]) {
        let context = format!("budget {budget}, redone {redone}");
        let attr = Attr { mode: 0o644, uid: 0, gid: 0, mtime: Default::default() };
        let (kind, data) = (NodeKind::Regular, vec![7; 100]);
        let file = Inode { kind, attr, xattrs: Default::default(), data, names: Default::default() };
        let mut world = World::new(true);
        let call = |world: &mut World, text: &str, number| {
            world.inodes.insert(id(number), file.clone());
            world.inodes.get_mut(&InodeId::ROOT).expect("root").names.insert(name(text), id(number));
        };
        call(&mut world, "a", 50);
        let mut rig = Rig::new(MemTree::new());
        first_sync(&mut rig, &world);
        // The file was renamed, and a new one like it has its name.
        call(&mut world, "a", 51);
        call(&mut world, "b", 50);
        rig.epoch = 2;
        let record = rig.replica.stage_begin(1, true, position(2, world.seq)).expect("begun");
        rig.log.push(record);
        let whole = world.stage_dir(&InodeId::ROOT);
        let part = |listing, at: usize| {
            Stage::Dir(StageDir { listing, entries: vec![whole.entries[at].clone()], ..whole.clone() })
        };
        stage(&mut rig, part(Listing::CompletePart, 0)).expect("staged");
        stage_node(&mut rig, &world, &id(51)).expect("staged");
        rig.tree.set_budget(Some(budget));
        let failed = stage(&mut rig, part(Listing::CompleteEnd, 1)).is_err();
        rig.tree.set_budget(None);
        if failed {
            stage(&mut rig, part(Listing::CompleteEnd, 1)).expect("there is room again");
        }
        stage_node(&mut rig, &world, &InodeId::ROOT).expect("staged");
        rig.replica.stage_sync().expect("complete");
        let record = rig.replica.publish_record(position(2, world.seq));
        rig.log.push(record);
        let done = if redone { rig.reopen() } else { publish(&mut rig, world.seq) };
        done.unwrap_or_else(|error| panic!("{context}: {error}"));
        rig.check(&world, &context);
    }
}

#[test]
fn a_stranger_in_the_tree_gives_way_to_live_ops_and_to_a_publish() {
    let mut random = Random::new(7);
    let mut world = World::new(true);
    let mut rig = Rig::new(MemTree::new());
    for _ in 0..30 {
        world.step(&mut random);
    }
    for name in world.inodes[&InodeId::ROOT].names.keys() {
        let root = rig.tree.area(Area::Tree);
        rig.tree.create(&root, name.as_bytes(), &NodeKind::Fifo).expect("a stranger");
    }
    first_sync(&mut rig, &world);
    rig.check(&world, "after the publish");
    for _ in 0..100 {
        let op = world.step(&mut random);
        for change in &op.changes {
            let Change::Entry { dir: InodeId::ROOT, name, old: None, new: Some(_) } = change else { continue };
            let root = rig.tree.area(Area::Tree);
            rig.tree.create(&root, name.as_bytes(), &NodeKind::Fifo).expect("a stranger");
        }
        rig.apply(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        rig.check(&world, "live");
    }
}

#[path = "nests_tests.rs"]
mod nests;

#[path = "salvage_tests.rs"]
mod salvage;

#[path = "complete_tests.rs"]
mod complete;

#[path = "room_tests.rs"]
mod room;
