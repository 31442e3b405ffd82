//! A staging that was not finished helps the next one, and never harms it.

use tandem_proto::{
    ids::InodeId,
    op::{Attr, NodeKind, Op},
    stage::{Content, NodeState, Piece, Stage, StageData, StageDir, StageNode, StageRecipe},
};

use super::{Rig, diverged, piece, position, publish, recover_with_deaths, seeds, stage, stage_ops, stage_rounds};
use crate::{
    apply::{
        ApplyError, Record,
        testing::{Random, id, name, world::World},
    },
    tree::{FsTree, MemTree, ReplicaTree},
};

const PIECE: usize = 16;

fn pieces(data: &[u8]) -> Vec<Piece> {
    (0..data.len()).step_by(PIECE).map(|at| piece(data, at, PIECE.min(data.len() - at))).collect()
}

fn begin<T: ReplicaTree>(rig: &mut Rig<T>, epoch: u64, world: &World) {
    rig.epoch = epoch;
    let record = rig.replica.stage_begin(1, false, position(epoch, world.seq)).expect("begun");
    rig.log.push(record);
}

/// Sends a file; only the first `limit` of the pieces that are asked for. Returns how many were.
fn send_file<T: ReplicaTree>(rig: &mut Rig<T>, file: &InodeId, data: &[u8], content: Content, limit: usize) -> usize {
    let attr = Attr { mode: 0o644, uid: 0, gid: 0, mtime: Default::default() };
    let kind = NodeKind::Regular;
    let state = Some(NodeState { kind, attr, xattrs: Vec::new(), size: data.len() as u64, content });
    stage(rig, Stage::Node(StageNode { id: *file, state })).expect("staged");
    let recipe = StageRecipe { id: *file, pieces: pieces(data) };
    let needed = stage(rig, Stage::Recipe(recipe)).expect("staged").need_pieces;
    for piece in needed.iter().take(limit) {
        let bytes = data[piece.offset as usize..(piece.offset + piece.len) as usize].to_vec().into();
        stage(rig, Stage::Data(StageData { id: *file, offset: piece.offset, data: bytes })).expect("staged");
    }
    needed.len()
}

/// What ends a staging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    SessionLost,
    Killed,
}

fn end<T: ReplicaTree>(rig: &mut Rig<T>, end: End) {
    match end {
        End::SessionLost => {
            rig.replica.stage_drop().expect("dropped");
            rig.log.push(Record::StageDropped);
        }
        End::Killed => rig.reopen().expect("reopened"),
    }
}

fn bytes_of(count: usize, salt: u8) -> Vec<u8> {
    (0..count).map(|at| (at as u8).wrapping_mul(31) ^ salt | 1).collect()
}

/// A file in the root, at its state in `world`.
fn put_into(world: &mut World, file: InodeId, data: &[u8]) {
    let attr = Attr { mode: 0o644, uid: 0, gid: 0, mtime: Default::default() };
    let (kind, data) = (NodeKind::Regular, data.to_vec());
    let inode = super::Inode { kind, attr, xattrs: Default::default(), data, names: Default::default() };
    world.inodes.insert(file, inode);
    world.inodes.get_mut(&InodeId::ROOT).expect("root").names.insert(name("file"), file);
}

fn only_what_is_missing_is_asked_for<T: ReplicaTree>(make: impl Fn() -> T) {
    for (is_new, ended) in
        [(true, End::SessionLost), (true, End::Killed), (false, End::SessionLost), (false, End::Killed)]
    {
        let context = format!("new file: {is_new}, {ended:?}");
        let (file, mut world) = (id(50), World::new(true));
        let mut rig = Rig::new(make());
        let content = if is_new { Content::Whole } else { Content::Ranges };
        put_into(&mut world, file, &bytes_of(10 * PIECE, 77));
        if is_new {
            super::first_sync(&mut rig, &World::new(true));
        } else {
            super::first_sync(&mut rig, &world);
        }
        assert_eq!(rig.replica.salvaged_files(), 0, "{context}");
        let data = bytes_of(10 * PIECE, 5);
        begin(&mut rig, 2, &world);
        assert_eq!(send_file(&mut rig, &file, &data, content, 6), 10, "{context}");
        end(&mut rig, ended);
        assert_eq!(rig.replica.salvaged_files(), 1, "{context}");
        // One of the pieces that were there is another one by now, one is a hole.
        let mut now = data.clone();
        now[0] ^= 2;
        now[2 * PIECE..3 * PIECE].fill(0);
        begin(&mut rig, 3, &world);
        assert_eq!(send_file(&mut rig, &file, &now, content, 2), 5, "{context}: four were not sent, one has changed");
        end(&mut rig, ended);
        begin(&mut rig, 4, &world);
        let whole = StageDir { ..world.stage_dir(&InodeId::ROOT) };
        stage(&mut rig, Stage::Dir(whole)).expect("staged");
        stage(&mut rig, Stage::Node(world.stage_node(&InodeId::ROOT, Content::Unchanged))).expect("staged");
        assert_eq!(send_file(&mut rig, &file, &now, content, 10), 3, "{context}");
        put_into(&mut world, file, &now);
        rig.replica.stage_sync().expect("complete");
        let record = rig.replica.publish_record(position(4, world.seq));
        rig.log.push(record);
        publish(&mut rig, world.seq).expect("published");
        rig.check(&world, &context);
        assert_eq!(rig.replica.salvaged_files(), 0, "{context}");
    }
}

#[test]
fn only_what_is_missing_is_asked_for_again_in_memory() {
    only_what_is_missing_is_asked_for(MemTree::new);
}

#[test]
fn only_what_is_missing_is_asked_for_again_on_a_real_file_system() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let number = std::cell::Cell::new(0);
    only_what_is_missing_is_asked_for(|| {
        number.set(number.get() + 1);
        FsTree::open(&directory.path().join(number.get().to_string())).expect("open")
    });
}

#[test]
fn what_a_staging_left_and_the_next_one_does_not_say_is_not_in_the_file() {
    let (file, mut world) = (id(50), World::new(true));
    let mut rig = Rig::new(MemTree::new());
    super::first_sync(&mut rig, &world);
    begin(&mut rig, 2, &world);
    send_file(&mut rig, &file, &bytes_of(8 * PIECE, 5), Content::Whole, 8);
    end(&mut rig, End::SessionLost);
    let mut now = vec![0; 6 * PIECE];
    now[PIECE..2 * PIECE].copy_from_slice(&bytes_of(PIECE, 9));
    put_into(&mut world, file, &now);
    begin(&mut rig, 3, &world);
    stage(&mut rig, Stage::Dir(world.stage_dir(&InodeId::ROOT))).expect("staged");
    stage(&mut rig, Stage::Node(world.stage_node(&file, Content::Whole))).expect("staged");
    let data = now[PIECE..2 * PIECE].to_vec().into();
    stage(&mut rig, Stage::Data(StageData { id: file, offset: PIECE as u64, data })).expect("staged");
    stage(&mut rig, Stage::Node(world.stage_node(&InodeId::ROOT, Content::Unchanged))).expect("staged");
    rig.replica.stage_sync().expect("complete");
    let record = rig.replica.publish_record(position(3, world.seq));
    rig.log.push(record);
    rig.reopen().expect("redone");
    rig.check(&world, "after the publish");
}

#[test]
fn a_full_disk_makes_salvage_give_way_but_not_what_is_staged() {
    let (file, world) = (id(50), World::new(true));
    let mut rig = Rig::new(MemTree::new());
    super::first_sync(&mut rig, &world);
    begin(&mut rig, 2, &world);
    let data = bytes_of(8 * PIECE, 5);
    send_file(&mut rig, &file, &data, Content::Whole, 8);
    send_file(&mut rig, &id(51), &data, Content::Whole, 8);
    end(&mut rig, End::SessionLost);
    begin(&mut rig, 3, &world);
    assert_eq!(send_file(&mut rig, &file, &data, Content::Whole, 0), 0);
    assert!(rig.replica.drop_salvage().expect("dropped"), "one file nobody took");
    assert!(!rig.replica.drop_salvage().expect("dropped"), "nothing is left");
    assert_eq!(send_file(&mut rig, &id(51), &data, Content::Whole, 0), 8, "it is gone");
    rig.replica.stage_sync().expect("the other one is there");
}

/// Stages until something fails, as a crash in the middle would leave it.
fn stage_in_part(rig: &mut Rig<MemTree>, state: &World, ops: &[Op], random: &mut Random) -> Result<(), ApplyError> {
    rig.tree.set_budget(Some(random.below(40) as u64));
    let staged = stage_rounds(rig, &[(state, ops)], state, rig.epoch, random.below(3) == 0);
    rig.tree.set_budget(None);
    // What was logged of its end is of a publish that never was.
    rig.log.retain(|record| !matches!(record, Record::Publish { serial, .. } if *serial > 1));
    staged
}

#[test]
fn whatever_stagings_were_broken_off_the_one_that_is_published_is_the_world() {
    for seed in seeds().start..seeds().end * 6 {
        let mut random = Random::new(seed);
        let (mut rig, at_s0, _, mut world, ops) = diverged(&mut random);
        rig.epoch = 2;
        for _ in 0..1 + random.below(3) {
            let _ = stage_in_part(&mut rig, &at_s0, &ops, &mut random);
            match random.below(3) {
                0 => end(&mut rig, End::SessionLost),
                1 => end(&mut rig, End::Killed),
                _ => {
                    // Power loss: what was staged is torn.
                    let keep = random.below(rig.tree.unsynced() + 1);
                    rig.tree.crash(keep, |at| at % 3 == 0);
                    end(&mut rig, End::Killed);
                }
            }
            rig.epoch += 1;
        }
        for _ in 0..random.below(20) {
            world.step(&mut random);
        }
        let (state, epoch) = (world.clone(), rig.epoch);
        let more: Vec<Op> = (0..random.below(8)).map(|_| world.step(&mut random)).collect();
        let full = random.below(3) == 0;
        stage_rounds(&mut rig, &[(&state, &[])], &state, epoch, full)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        rig.log.pop();
        stage_ops(&mut rig, &more, epoch).expect("staged");
        rig.replica.stage_sync().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let record = rig.replica.publish_record(position(epoch, world.seq));
        rig.log.push(record);
        if random.below(2) == 0 {
            publish(&mut rig, world.seq).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        } else {
            rig.tree.set_budget(Some(random.below(100) as u64));
            let _ = publish(&mut rig, world.seq);
            recover_with_deaths(&mut rig, &mut random, seed);
        }
        rig.check(&world, &format!("seed {seed}"));
    }
}
