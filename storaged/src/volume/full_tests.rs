//! A disk that is full while the log holds what is applied already: a checkpoint makes room, also where an op failed in the middle.

use super::{Rig, Todo, create, parts};
use crate::{
    log::disk::Disk as _,
    volume::core::{Core, OpenError},
};

/// Applied ops that fill several segments of the log.
fn filled() -> Rig {
    let mut rig = Rig::new();
    rig.send(&[create(0), create(1), create(2)]);
    fill(&mut rig);
    rig
}

fn fill(rig: &mut Rig) {
    for at in 0..40 {
        rig.send(&[Todo::Append(at % 3, vec![at; 1000])]);
        rig.core.flush(rig.now);
        rig.core.apply_some(rig.now, 9);
    }
    assert!(rig.facts().log_bytes > 32 << 10, "{}", rig.facts().log_bytes);
}

fn heal(rig: &mut Rig) {
    rig.log.fail_writes_after(None);
    rig.tree.set_room(None);
    rig.later();
    rig.core.apply_some(rig.now, 9);
    rig.listen();
    assert_eq!(rig.faults.last().map(String::as_str), Some(""), "told that it is over");
    assert_eq!(rig.acked.applied, rig.sent.seq.0);
    rig.check_tree();
}

#[test]
fn a_log_that_finds_no_room_lets_go_what_is_applied() {
    for crash in [false, true] {
        let mut rig = filled();
        rig.log.fail_writes_after(Some(0));
        rig.send(&[create(4)]);
        rig.core.flush(rig.now);
        assert!(rig.facts().log_bytes < 16 << 10, "{}: one segment is left", rig.facts().log_bytes);
        rig.check_tree();
        if crash {
            rig.log.fail_writes_after(None);
            rig.crash(3);
            assert_eq!(rig.core.replica().applied().seq.0, rig.sent.seq.0 - 1);
            rig.check_tree();
        } else {
            heal(&mut rig);
        }
    }
}

#[test]
fn the_reserve_is_given_up_for_a_checkpoint_that_finds_no_room_and_is_made_again() {
    let mut rig = filled();
    let has_reserve = |rig: &Rig| rig.home.list().expect("list").iter().any(|name| name == "reserve");
    rig.core.checkpoint(rig.now);
    assert!(has_reserve(&rig));
    fill(&mut rig);
    rig.home.fail_writes_after(Some(0));
    rig.log.fail_writes_after(Some(0));
    rig.send(&[create(4)]);
    rig.core.flush(rig.now);
    assert!(!has_reserve(&rig), "`state` found no room");
    rig.home.fail_writes_after(None);
    heal(&mut rig);
    rig.core.checkpoint(rig.now);
    assert!(has_reserve(&rig));
}

#[test]
fn a_tree_that_finds_no_room_gets_that_of_the_log_also_in_the_middle_of_an_op() {
    let kinds: [&dyn Fn() -> Todo; 4] =
        [&|| create(4), &|| create(1), &|| Todo::Append(1, vec![9; 700]), &|| Todo::Rename(1, 2)];
    let mut cut_short = 0;
    for (kind, room, crash) in
        (0..4).flat_map(|kind| (0..6).flat_map(move |room| [(kind, room, false), (kind, room, true)]))
    {
        let mut rig = filled();
        rig.tree.set_room(Some(room));
        rig.send(&[kinds[kind]()]);
        rig.core.flush(rig.now);
        rig.core.apply_some(rig.now, 9);
        let is_done = rig.core.replica().applied() == rig.sent;
        let (spares, shortened) = (rig.spares(), rig.facts().log_bytes < 16 << 10);
        assert!(is_done || spares <= 2, "{spares} spare segments");
        cut_short += usize::from(!is_done && shortened);
        if crash {
            rig.tree.set_room(None);
            rig.crash(room * 7 + kind as u64);
            assert_eq!(rig.core.replica().applied(), rig.sent);
            rig.check_tree();
        } else if !is_done {
            heal(&mut rig);
        }
    }
    assert!(cut_short >= 8, "{cut_short}: in the middle of contents the log could be cut short");
}

#[test]
fn a_volume_whose_log_finds_the_disk_full_when_it_is_opened_gives_its_spare_segments() {
    let mut rig = filled();
    rig.core.checkpoint(rig.now);
    rig.send(&[create(4)]);
    rig.core.flush(rig.now);
    assert!(rig.spares() > 0);
    rig.tree.set_room(Some(0));
    let opened = Core::open(parts(&rig.home, &rig.log, &rig.tree, &rig.store.after_crash()), rig.now).map(|_| ());
    assert!(matches!(&opened, Err(OpenError::Apply(error)) if error.is_no_space()), "{opened:?}");
    assert_eq!(rig.spares(), 0);
    rig.tree.set_room(None);
    rig.crash(1);
    assert_eq!(rig.core.replica().applied(), rig.sent);
    rig.check_tree();
}
