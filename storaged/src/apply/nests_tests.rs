//! New directories that a first sync stages as a whole: whatever happens to them meanwhile, the publish is what it would be without.

use tandem_proto::{
    ids::InodeId,
    op::Op,
    position::Seq,
    stage::{Content, Stage, StageData},
};

use super::{Rig, position, publish, recover_with_deaths, seeds, stage, stage_ops};
use crate::{
    apply::{
        ApplyError, Record,
        testing::{Random, id, name, world::World},
    },
    tree::{Area, FsTree, MemTree, ReplicaTree},
};

/// Sends an inode as a mount does that knows the replica to be empty: all its bytes, unasked.
fn send<T: ReplicaTree>(rig: &mut Rig<T>, world: &World, id: &InodeId) -> Result<(), ApplyError> {
    stage(rig, Stage::Node(world.stage_node(id, Content::Whole)))?;
    match world.inodes.get(id) {
        Some(node) if node.kind.is_regular() && !node.data.is_empty() => {
            stage(rig, Stage::Data(StageData { id: *id, offset: 0, data: node.data.clone().into() })).map(|_| ())
        }
        _ => Ok(()),
    }
}

fn begin<T: ReplicaTree>(rig: &mut Rig<T>, round: u64, ops: &[Op], end: &World, full: bool) -> Result<(), ApplyError> {
    let s0 = position(rig.epoch, ops.first().map_or(end.seq, |op| Seq(op.seq.0 - 1)));
    let record = rig.replica.stage_begin(round, full, s0)?;
    rig.log.push(record);
    Ok(())
}

/// Stages all that a folder holds, each inode when it is asked for, and ops before and behind it; at most `limit` inodes.
fn send_all<T: ReplicaTree>(
    rig: &mut Rig<T>,
    (state, end): (&World, &World),
    ops: &[Op],
    (half, limit): (usize, usize),
) -> Result<(), ApplyError> {
    let epoch = rig.epoch;
    stage_ops(rig, &ops[..half], epoch)?;
    send(rig, state, &InodeId::ROOT)?;
    let (mut waiting, mut left) = (vec![InodeId::ROOT], limit);
    while let Some(dir) = waiting.pop() {
        let reply = stage(rig, Stage::Dir(state.stage_dir(&dir)))?;
        for id in reply.need_nodes {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            send(rig, if end.inodes.contains_key(&id) { state } else { end }, &id)?;
        }
        waiting.extend(state.inodes[&dir].names.values().filter(|id| state.inodes[*id].kind.is_directory()));
    }
    stage_ops(rig, &ops[half..], epoch)
}

fn steps(world: &mut World, random: &mut Random, count: usize) -> Vec<Op> {
    (0..count).map(|_| world.step(random)).collect()
}

fn nests<T: ReplicaTree>(rig: &Rig<T>) -> usize {
    rig.replica.objects.left_nests().expect("list").len()
}

/// Some directories, with what else there may be.
fn folder() -> World {
    let (mut random, mut world) = (Random::new(5), World::new(true));
    steps(&mut world, &mut random, 120);
    world
}

fn goes_as_a_whole<T: ReplicaTree>(mut rig: Rig<T>) {
    let mut world = folder();
    let dir = id(9001);
    let regular = world.inodes.values().find(|node| node.kind.is_regular()).cloned().expect("a file");
    let directory = world.inodes.values().find(|node| node.kind.is_directory()).cloned().expect("a directory");
    let files = [("one", id(9002)), ("two", id(9003))];
    world.inodes.extend(files.map(|(_, id)| (id, regular.clone())));
    let names = files.map(|(text, id)| (name(text), id)).into();
    world.inodes.insert(dir, super::Inode { names, ..directory });
    world.inodes.get_mut(&InodeId::ROOT).expect("root").names.insert(name("new directory"), dir);
    rig.epoch = 1;
    begin(&mut rig, 1, &[], &world, true).expect("begun");
    send_all(&mut rig, (&world, &world), &[], (0, usize::MAX)).expect("staged");
    let staging = rig.tree.area(Area::Staging);
    let staged =
        rig.tree.find(&staging, dir.to_hex().as_bytes()).expect("find").expect("it is staged as such").identity;
    rig.replica.stage_sync().expect("complete");
    let record = rig.replica.publish_record(position(1, world.seq));
    rig.log.push(record);
    publish(&mut rig, world.seq).expect("published");
    rig.check(&world, "published");
    assert_eq!(rig.replica.objects.known(&dir).expect("in the tree").identity, staged, "moved, and not made again");
    assert!(rig.tree.list(&rig.tree.area(Area::Staging)).expect("list").is_empty());
}

#[test]
fn a_new_directory_goes_into_the_tree_as_a_whole_in_memory() {
    goes_as_a_whole(Rig::new(MemTree::new()));
}

#[test]
fn a_new_directory_goes_into_the_tree_as_a_whole_on_a_real_file_system() {
    let directory = tempfile::tempdir().expect("temporary directory");
    goes_as_a_whole(Rig::new(FsTree::open(directory.path()).expect("areas")));
}

#[test]
fn what_happens_to_new_directories_before_their_publish_is_published() {
    let mut used = 0;
    for seed in seeds().start..seeds().end * 8 {
        let (mut random, mut world) = (Random::new(seed), World::new(true));
        let (before, between) = (20 + random.below(80), random.below(12));
        steps(&mut world, &mut random, before);
        let at_s0 = world.clone();
        let mut ops = steps(&mut world, &mut random, between);
        let read = world.clone();
        let more = random.below(12);
        ops.extend(steps(&mut world, &mut random, more));
        let mut rig = Rig::new(MemTree::new());
        rig.epoch = 2;
        if random.below(4) == 0 {
            // Another staging, that came to nothing, left its files.
            begin(&mut rig, 1, &ops, &world, true).expect("begun");
            send_all(&mut rig, (&at_s0, &at_s0), &[], (0, random.below(60))).expect("staged");
            if random.below(2) == 0 {
                rig.replica.stage_drop().expect("dropped");
                rig.log.push(Record::StageDropped);
            } else {
                rig.reopen().expect("reopened");
            }
        }
        begin(&mut rig, 1, &ops, &world, random.below(2) == 0).expect("begun");
        let state = if random.below(2) == 0 { &at_s0 } else { &read };
        let half = if random.below(2) == 0 { 0 } else { random.below(ops.len() + 1) };
        send_all(&mut rig, (state, &world), &ops, (half, usize::MAX)).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        if random.below(4) == 0 {
            let going = random.below(20);
            steps(&mut world, &mut random, going);
            begin(&mut rig, 2, &[], &world, false).expect("begun");
            let (state, all) = (world.clone(), world.inodes.keys().copied().collect::<Vec<_>>());
            send_all(&mut rig, (&state, &state), &[], (0, usize::MAX)).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            for id in all {
                send(&mut rig, &state, &id).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            }
        }
        used += usize::from(nests(&rig) > 0);
        rig.replica.stage_sync().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let record = rig.replica.publish_record(position(2, world.seq));
        rig.log.push(record);
        let budget = (random.below(3) > 0).then(|| random.below(120) as u64);
        rig.tree.set_budget(budget);
        let mut published = publish(&mut rig, world.seq);
        while published.is_err() && random.below(3) > 0 {
            rig.tree.set_budget((random.below(3) > 0).then(|| random.below(120) as u64));
            published = publish(&mut rig, world.seq);
        }
        rig.tree.set_budget(None);
        if published.is_err() {
            recover_with_deaths(&mut rig, &mut random, seed);
        }
        rig.check(&world, &format!("seed {seed}"));
    }
    assert!(used > 0, "nests were made");
}

/// Named, and sent, in one directory; then another directory has it as well.
#[test]
fn a_file_that_turns_up_under_a_second_name_is_one_file() {
    for also_in_first in [false, true] {
        let mut world = folder();
        let (first, second, file) = (id(9001), id(9002), id(9003));
        let like = |wanted: fn(&super::Inode) -> bool| world.inodes.values().find(|node| wanted(node)).cloned();
        let directory = like(|node| node.kind.is_directory()).expect("a directory");
        let regular = like(|node| node.kind.is_regular()).expect("a file");
        for dir in [first, second] {
            let mut node = super::Inode { names: Default::default(), ..directory.clone() };
            node.names.insert(name("file"), file);
            if also_in_first && dir == first {
                node.names.insert(name("other"), file);
            }
            world.inodes.insert(dir, node);
        }
        world.inodes.insert(file, regular);
        let root = world.inodes.get_mut(&InodeId::ROOT).expect("root");
        root.names.insert(name("first"), first);
        root.names.insert(name("second"), second);
        let mut rig = Rig::new(MemTree::new());
        rig.epoch = 1;
        begin(&mut rig, 1, &[], &world, true).expect("begun");
        send_all(&mut rig, (&world, &world), &[], (0, usize::MAX)).expect("staged");
        rig.replica.stage_sync().expect("complete");
        let record = rig.replica.publish_record(position(1, world.seq));
        rig.log.push(record);
        publish(&mut rig, world.seq).expect("published");
        rig.check(&world, &format!("also in the first: {also_in_first}"));
    }
}
