//! Situations of the commit as a whole. Order and convergence are tested by the link's simulation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tandem_proto::{AttrPatch, Chain, Change, Changes, Epoch, InodeId, Name, NodeKind, Origin, Position, Seq, Uuid};

use super::{ATTRIBUTES, Commit, CommitError, MarkCell};

fn id(byte: u8) -> InodeId {
    InodeId::new(&[byte]).expect("short")
}

fn birth(dir: InodeId, new: InodeId) -> Changes {
    let name = Name::new(new.to_hex()).expect("legal");
    let entry = Change::Entry { dir, name, old: None, new: Some(new) };
    [Change::Birth { id: new, kind: NodeKind::Regular }, entry].into_iter().collect()
}

fn touch(id: InodeId) -> Changes {
    [Change::Attr { id, patch: AttrPatch::default() }].into_iter().collect()
}

fn position(seq: u64) -> Position {
    Position { epoch: Epoch(1), seq: Seq(seq), chain: Chain([5; 16]) }
}

fn opened(dir: &tempfile::TempDir) -> Commit {
    Commit::open(&dir.path().join("activity.log"), 1 << 20, Some(Duration::from_millis(1))).expect("opened").0
}

fn do_op(commit: &Commit, cells: &[MarkCell], changes: Changes) -> Seq {
    let guard = commit.mark(cells).expect("marked");
    let slot = commit.reserve();
    let seq = slot.seq();
    slot.fill(Origin::default(), changes);
    drop(guard);
    seq
}

#[test]
fn files_born_in_a_marked_directory_cost_no_write_of_their_own() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    for file in 1..100 {
        do_op(&commit, &[MarkCell::Dir(InodeId::ROOT)], birth(InodeId::ROOT, id(file)));
        do_op(&commit, &[MarkCell::File { id: id(file), block: 0 }], touch(id(file)));
    }
    assert_eq!(commit.facts().mark_writes, 1);
    do_op(&commit, &[MarkCell::File { id: id(200), block: 0 }], touch(id(200)));
    assert_eq!(commit.facts().mark_writes, 2, "a file that was there before needs its own mark");
}

#[test]
fn marks_are_cleared_only_when_durable_and_synced_and_then_written_anew() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    let cell = [MarkCell::Dir(id(1))];
    let (synced, sync) = (AtomicUsize::new(0), || std::io::Result::Ok(()));
    let syncing = || {
        synced.fetch_add(1, Ordering::Relaxed);
        sync()
    };
    do_op(&commit, &cell, touch(id(1)));
    assert_eq!(commit.clear_marks(true, &syncing).expect("nothing to do"), 0, "nothing is published");
    let (_, taken) = commit.freeze();
    assert!(!taken.is_empty());
    commit.published(position(1));
    let guard = commit.mark(&cell).expect("hot");
    assert_eq!(commit.clear_marks(true, &syncing).expect("in use"), 0);
    drop(guard);
    assert_eq!((commit.clear_marks(true, &syncing).expect("cleared"), synced.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(commit.header().floor, position(1));
    let writes = commit.facts().mark_writes;
    do_op(&commit, &cell, touch(id(1)));
    assert_eq!(commit.facts().mark_writes, writes + 1);
    drop(commit);
    let (_, recovered) = Commit::open(&dir.path().join("activity.log"), 1, None).expect("opened");
    let recovered = recovered.expect("there was one");
    assert_eq!(recovered.marks.iter().map(|mark| mark.cell).collect::<Vec<_>>(), cell);
    assert_eq!(recovered.header.floor, position(1));
}

#[test]
fn a_failed_sync_makes_what_is_marked_suspect_until_a_run_after_a_restart_of_the_machine_has_compared_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let opened_in = |boot: u8| {
        let commit = opened(&dir);
        commit.enter_boot(Uuid([boot; 16]));
        commit
    };
    let commit = opened_in(1);
    let cell = [MarkCell::Dir(id(1))];
    do_op(&commit, &cell, touch(id(1)));
    let _ = commit.freeze();
    commit.published(position(1));
    assert!(!commit.needs_resync());
    assert!(commit.clear_marks(true, &|| Err(std::io::Error::other("disk"))).is_err());
    assert!(commit.needs_resync(), "it is compared");
    assert_eq!((commit.facts().marks, commit.facts().suspects), (1, 1));
    let _ = commit.freeze();
    commit.published(position(1));
    // Linux tells of a failed write once: a sync that works now proves nothing about what was written before.
    assert_eq!(commit.clear_marks(true, &|| Ok(())).expect("nothing may be cleared"), 0);
    do_op(&commit, &[MarkCell::Dir(id(2))], touch(id(2)));
    let _ = commit.freeze();
    commit.published(position(2));
    assert_eq!(commit.clear_marks(true, &|| Ok(())).expect("what was marked since"), 1);
    // A run of the same boot compares what the kernel shows from memory, and so proves nothing either, however often it is opened anew.
    for _ in 0..2 {
        drop(opened_in(1));
        let commit = opened_in(1);
        assert_eq!(commit.facts().marks, 1);
        let _ = commit.freeze();
        commit.published(position(3));
        assert_eq!(commit.clear_marks(true, &|| Ok(())).expect("the same boot"), 0);
        do_op(&commit, &[MarkCell::Dir(id(2))], touch(id(2)));
        let _ = commit.freeze();
        commit.published(position(4));
        assert_eq!(commit.clear_marks(true, &|| Ok(())).expect("what was marked since"), 1);
    }
    let commit = opened_in(2);
    assert_eq!(commit.facts().marks, 1);
    let _ = commit.freeze();
    commit.published(position(4));
    assert_eq!(commit.clear_marks(true, &|| Ok(())).expect("compared after the restart"), 1);
}

#[test]
fn a_file_that_could_not_be_made_durable_keeps_the_marks_of_then() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    commit.enter_boot(Uuid([1; 16]));
    let cell = MarkCell::File { id: id(1), block: 0 };
    do_op(&commit, &[cell], touch(id(1)));
    commit.not_durable(cell);
    assert!(commit.needs_resync(), "it is compared");
    let _ = commit.freeze();
    commit.published(position(1));
    assert_eq!(commit.clear_marks(true, &|| Ok(())).expect("nothing may be cleared"), 0);
}

#[test]
fn files_that_are_unpacked_and_hot_blocks_cost_few_mark_writes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    let number = |number: u32| InodeId::new(&number.to_le_bytes()).expect("short");
    // As tar does it: 100 directories, some in others, 50 files each; each is written, then its owner, mode and times are set.
    for dir in 0..100u32 {
        let parent = if dir % 10 == 0 { InodeId::ROOT } else { number(dir - 1) };
        do_op(&commit, &[MarkCell::Dir(parent)], birth(parent, number(dir)));
        for file in 0..50u32 {
            let file = number(1000 + dir * 50 + file);
            do_op(&commit, &[MarkCell::Dir(number(dir))], birth(number(dir), file));
            do_op(&commit, &[MarkCell::File { id: file, block: 0 }], touch(file));
            do_op(&commit, &[MarkCell::File { id: file, block: ATTRIBUTES }], touch(file));
        }
        do_op(&commit, &[MarkCell::File { id: number(dir), block: ATTRIBUTES }], touch(number(dir)));
    }
    let unpacked = commit.facts().mark_writes;
    assert!(unpacked < 50, "{unpacked} writes for 5,000 files");
    let big = number(999_999);
    for round in 0..2000u64 {
        do_op(&commit, &[MarkCell::File { id: big, block: round * 7 % 16 }], touch(big));
    }
    assert_eq!(commit.facts().mark_writes - unpacked, 16, "one for each cold block, none for a hot one");
}

#[test]
fn a_durable_fsync_waits_for_its_position_or_fails_in_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    let results = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let wait = |seq: Seq| {
        let results = results.clone();
        commit.when_durable(seq, Box::new(move |result| results.lock().push(result)));
    };
    let first = do_op(&commit, &[], touch(id(1)));
    wait(first);
    assert!(results.lock().is_empty(), "nothing is published");
    let _ = commit.freeze();
    commit.published(position(first.0));
    assert!(matches!(results.lock().pop(), Some(Ok(()))));
    let second = do_op(&commit, &[], touch(id(1)));
    wait(second);
    commit.expire(Instant::now() + Duration::from_secs(1), "offline");
    assert!(matches!(results.lock().pop(), Some(Err(CommitError::Timeout(..)))));
    wait(second);
    commit.fence("somebody else");
    assert!(matches!(results.lock().pop(), Some(Err(CommitError::Fenced(_)))));
    assert!(commit.read_only() && commit.mark(&[MarkCell::Dir(id(1))]).is_err());
}

#[test]
fn a_slot_that_is_dropped_is_void_and_holds_nobody_back() {
    let commit = Commit::in_memory(1 << 20);
    let _ = commit.freeze();
    let (first, second) = (commit.reserve(), commit.reserve());
    second.fill(Origin::default(), touch(id(1)));
    assert_eq!(commit.filled(), Seq(0));
    drop(first);
    assert_eq!(commit.filled(), Seq(2));
    let taken = commit.take(Seq(0), 1 << 20, 10).expect("two ops");
    assert!(taken.ops[0].changes.is_empty());
}

#[test]
fn threads_that_mark_at_once_share_writes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let commit = &commit;
            scope.spawn(move || {
                for block in 0..20 {
                    do_op(commit, &[MarkCell::File { id: id(thread), block }], touch(id(thread)));
                }
            });
        }
    });
    let facts = commit.facts();
    assert_eq!((facts.marks, facts.reserved, facts.filled), (160, Seq(160), Seq(160)));
    assert!(facts.mark_writes <= 160);
}

#[test]
fn what_is_applied_before_the_first_state_of_a_run_is_there_does_not_count() {
    let commit = Commit::in_memory(1 << 20);
    commit.begin_epoch(Epoch(2), Chain::default());
    let _ = commit.freeze();
    commit.reserve().void();
    commit.published(Position { epoch: Epoch(2), seq: Seq(1), chain: Chain::default() });
    commit.acked(Seq(1), Seq(0));
    assert_eq!(commit.facts().watermarks.applied, None, "the tree is still on its way to what was published");
    commit.acked(Seq(1), Seq(1));
    assert_eq!(commit.facts().watermarks.applied, Some(Seq(1)));
}

#[test]
fn a_born_file_that_is_linked_into_another_directory_needs_marks_of_its_own_from_then_on() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    let (file, other) = (id(1), id(2));
    do_op(&commit, &[MarkCell::Dir(InodeId::ROOT)], birth(InodeId::ROOT, file));
    let entry = Change::Entry { dir: other, name: Name::new("l").expect("legal"), old: None, new: Some(file) };
    do_op(&commit, &[MarkCell::Dir(other)], [entry].into_iter().collect());
    let before = commit.facts().mark_writes;
    do_op(&commit, &[MarkCell::File { id: file, block: 0 }], touch(file));
    assert_eq!(commit.facts().mark_writes, before + 1, "its first name may go, and the mark of the second be cleared");
}

#[test]
fn nothing_is_marked_any_more_once_the_daemon_stops() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    do_op(&commit, &[MarkCell::Dir(InodeId::ROOT)], birth(InodeId::ROOT, id(1)));
    commit.stop();
    assert!(matches!(commit.mark(&[MarkCell::Dir(InodeId::ROOT)]), Err(CommitError::Stopping)), "also where it is hot");
}

#[test]
fn a_distrusted_history_is_compared_in_full_by_a_later_run_too() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let commit = opened(&dir);
    do_op(&commit, &[MarkCell::Dir(id(1))], touch(id(1)));
    let _ = commit.freeze();
    commit.published(position(1));
    commit.save_floor_durably(&|| Ok(())).expect("written");
    assert_eq!(commit.header().floor, position(1));
    commit.distrust();
    commit.save_floor_durably(&|| Ok(())).expect("written");
    assert_eq!(
        commit.clear_marks(true, &|| Ok(())).expect("nothing to do"),
        0,
        "what the replica acknowledged means nothing"
    );
    drop(commit);
    let commit = opened(&dir);
    assert_eq!(commit.header().floor, Position::default(), "the next run compares everything");
    let _ = commit.freeze();
    commit.published(position(2));
    commit.save_floor_durably(&|| Ok(())).expect("written");
    assert_eq!(commit.header().floor, position(2));
}

#[test]
fn moves_that_nobody_looks_at_become_dirty_names_at_their_bound() {
    let commit = Commit::in_memory(1 << 30);
    let _ = commit.freeze();
    for at in 0..=super::MOVED_MAX as u32 {
        let name = Name::new(format!("n{at}")).expect("legal");
        let renamed = Change::Entry { dir: id(1), name, old: None, new: Some(id(2)) };
        commit.reserve().fill(Origin::default(), [renamed].into_iter().collect());
    }
    let (moved, _) = commit.take_moved();
    assert!(moved.is_empty(), "they wait no more");
    assert!(!commit.is_keeping(), "a further round is asked for");
    let (_, taken) = commit.freeze();
    assert!(taken.dirs().contains_key(&id(1)), "which looks at the names");
}
