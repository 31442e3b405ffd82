//! What a publish would leave is known before it.

use super::{Rig, first_sync, seeds, stage_rounds};
use crate::{
    apply::{
        Growth, INODE_BYTES,
        testing::{Random, world::World},
    },
    tree::MemTree,
};

/// What a tree like this takes, as [`Growth`] counts it.
fn size(world: &World) -> u64 {
    let bytes = |data: &[u8]| data.iter().filter(|byte| **byte != 0).count() as u64;
    world.inodes.values().map(|node| bytes(&node.data) + INODE_BYTES).sum()
}

fn growth_to(rig: &mut Rig<MemTree>, world: &World, full: bool) -> Growth {
    stage_rounds(rig, &[(world, &[])], world, 2, full).expect("staged");
    rig.replica.growth().expect("everything is there")
}

/// A replica, and the world it is equal to.
fn synced(random: &mut Random) -> (Rig<MemTree>, World) {
    let mut world = World::new(true);
    let mut rig = Rig::new(MemTree::new());
    for _ in 0..random.below(60) + 10 {
        world.step(random);
    }
    first_sync(&mut rig, &world);
    (rig, world)
}

#[test]
fn a_publish_leaves_no_more_than_was_foretold() {
    for seed in seeds().start..seeds().end * 4 {
        let mut random = Random::new(seed);
        let (mut rig, old) = synced(&mut random);
        let mut new = old.clone();
        for _ in 0..random.below(60) {
            new.step(&mut random);
        }
        let full = random.below(2) == 0;
        let new = if full { new.with_new_ids(1 << 20) } else { new };
        let Growth { comes, goes } = growth_to(&mut rig, &new, full);
        let (before, after) = (size(&old), size(&new));
        let foretold = (before + comes).checked_sub(goes).unwrap_or_else(|| panic!("seed {seed}: {goes} of {before}"));
        assert!(after <= foretold, "seed {seed}, full {full}: {after} instead of {foretold}");
        // In place, what is staged may replace what is there.
        assert!(foretold <= after + size(&new), "seed {seed}, full {full}: {after}, foretold {foretold}");
    }
}

#[test]
fn what_is_removed_and_what_replaces_it_are_foretold_exactly() {
    for seed in seeds() {
        let mut random = Random::new(seed);
        let (mut rig, old) = synced(&mut random);
        let mut empty = World::new(true);
        empty.seq = old.seq;
        let foretold = growth_to(&mut rig, &empty, false);
        assert_eq!(foretold, Growth { comes: 0, goes: size(&old) - INODE_BYTES }, "seed {seed}");
    }
    // Everything was deleted and written anew.
    let mut random = Random::new(1);
    let (mut rig, world) = synced(&mut random);
    let (foretold, all) = (growth_to(&mut rig, &world.with_new_ids(1 << 20), false), size(&world) - INODE_BYTES);
    assert_eq!(foretold, Growth { comes: all, goes: all });
}
