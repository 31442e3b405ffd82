//! The shadow against a process that is killed at any store, and against a machine, a mount or a run that is another one.

use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::{Strategy, prop, prop_oneof, proptest};
use tandem_proto::{
    AttrPatch, Chain, Change, Changes, Epoch, InodeId, Name, NodeKind, Op, Origin, Position, Seq, Timestamp, Uuid,
};

use super::{Expected, FileStore, Head, MemStore, Refused, Region, Replayed, ShadowStore, replay};
use crate::commit::{
    ATTRIBUTES, Commit, MarkCell,
    cell::Cell,
    dirty::{DirtyData, DirtyNames, DirtySet, Scope},
};

const HEAD: Head = Head { boot: Uuid([1; 16]), run: Uuid([2; 16]), previous: Uuid([3; 16]), place: 4 };
const EXPECTED: Expected = Expected { boot: Uuid([1; 16]), run: Uuid([2; 16]), place: Some(4) };
const ROOMY: usize = 1 << 20;

fn id(byte: u8) -> InodeId {
    InodeId::new(&[byte; 20]).expect("short")
}

fn name(byte: u8) -> Name {
    Name::new(vec![b'a' + byte; 40]).expect("legal")
}

fn position(seq: u64) -> Position {
    Position { epoch: Epoch(2), seq: Seq(seq), chain: Chain([seq as u8; 16]) }
}

/// Keeps each store apart, to look at the memory between any two.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Recording>>);

#[derive(Default)]
struct Recording {
    image: Vec<u8>,
    /// Stores since the last look: into the image, or (`None`) a new image.
    stores: Vec<(Option<usize>, Vec<u8>)>,
}

struct RecordedRegion(Recorder);

impl Region for RecordedRegion {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.0.lock().stores.push((Some(offset), bytes.to_vec()));
    }

    fn store(&mut self, offset: usize, word: u64) {
        assert!(offset.is_multiple_of(8));
        self.write(offset, &word.to_le_bytes());
    }
}

struct Draft(Vec<u8>);

impl Region for Draft {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn store(&mut self, offset: usize, word: u64) {
        self.write(offset, &word.to_le_bytes());
    }
}

impl ShadowStore for Recorder {
    fn read(&self) -> std::io::Result<Option<Vec<u8>>> {
        Ok(Some(self.0.lock().image.clone()))
    }

    fn replace(&mut self, len: usize, fill: &mut dyn FnMut(&mut dyn Region)) -> std::io::Result<Box<dyn Region>> {
        let mut draft = Draft(vec![0; len]);
        fill(&mut draft);
        self.0.lock().stores.push((None, draft.0));
        Ok(Box::new(RecordedRegion(self.clone())))
    }

    fn remove(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Recorder {
    /// Looks at the memory after each store that was made, and in the middle of the longer ones.
    fn each_instant(&self, mut look: impl FnMut(&[u8])) {
        let mut recording = self.0.lock();
        for (offset, bytes) in std::mem::take(&mut recording.stores) {
            match offset {
                None => recording.image = bytes,
                Some(at) => {
                    if bytes.len() > 8 {
                        let half = bytes.len() / 2;
                        recording.image[at..at + half].copy_from_slice(&bytes[..half]);
                        look(&recording.image);
                    }
                    recording.image[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            look(&recording.image);
        }
    }
}

/// Whether `set` covers every cell of `wanted`.
fn covers(set: &DirtySet, wanted: &DirtySet) -> Result<(), String> {
    if set.scope() == Scope::Everything {
        return Ok(());
    }
    if wanted.scope() == Scope::Everything {
        return Err("everything".into());
    }
    for (dir, names) in wanted.dirs() {
        let covered = match (set.dirs().get(dir), names) {
            (Some(DirtyNames::All), _) => true,
            (Some(DirtyNames::Some(have)), DirtyNames::Some(names)) => names.is_subset(have),
            _ => false,
        };
        if !covered {
            return Err(format!("names of {dir}: {names:?}"));
        }
    }
    for (id, node) in wanted.nodes() {
        let Some(have) = set.nodes().get(id) else { return Err(format!("{id}")) };
        let data = match (&have.data, &node.data) {
            (DirtyData::All, _) | (_, DirtyData::Clean) => true,
            (DirtyData::Ranges(have), DirtyData::Ranges(ranges)) => ranges
                .iter()
                .all(|(start, end)| have.iter().any(|(have_start, have_end)| have_start <= start && end <= have_end)),
            _ => false,
        };
        if !have.born && (node.born || !data) {
            return Err(format!("{node:?} of {id}, have {have:?}"));
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
enum Do {
    /// A change: which inode, what, and how many other steps it takes to be done.
    Change(u8, u8, u8),
    Finish,
    Ack(u8),
    Freeze,
    Stage(u8),
    Publish,
    Thaw,
    Unnamed(u8),
}

fn script() -> impl Strategy<Value = Vec<Do>> {
    let step = prop_oneof![
        12 => (0..6u8, 0..7u8, 0..5u8).prop_map(|(id, what, wait)| Do::Change(id, what, wait)),
        6 => proptest::strategy::Just(Do::Finish),
        2 => (0..20u8).prop_map(Do::Ack),
        1 => proptest::strategy::Just(Do::Freeze),
        1 => (0..20u8).prop_map(Do::Stage),
        1 => proptest::strategy::Just(Do::Publish),
        1 => proptest::strategy::Just(Do::Thaw),
        1 => (0..6u8).prop_map(Do::Unnamed),
    ];
    prop::collection::vec(step, 1..150)
}

fn change(target: u8, what: u8) -> (Vec<MarkCell>, Changes) {
    let (id, dir) = (id(target), id(target % 3 + 10));
    let file = |block| MarkCell::File { id, block };
    let mtime = || AttrPatch { mtime: Some(Timestamp::default()), ..Default::default() };
    let (cells, changes): (_, Vec<Change>) = match what {
        0 => (
            vec![MarkCell::Dir(dir)],
            vec![
                Change::Birth { id, kind: NodeKind::Regular },
                Change::Entry { dir, name: name(target), old: None, new: Some(id) },
            ],
        ),
        1 => (vec![MarkCell::Dir(dir)], vec![Change::Entry { dir, name: name(target), old: Some(id), new: None }]),
        2 => (vec![file(ATTRIBUTES)], vec![Change::Attr { id, patch: mtime() }]),
        3 => (vec![file(1)], vec![Change::Data { id, offset: 5 << 20, data: vec![1; 100].into() }]),
        4 => (vec![file(0)], vec![Change::Hole { id, offset: 70 * u64::from(target), len: 50 }]),
        5 => (
            vec![MarkCell::Dir(dir), MarkCell::Dir(InodeId::ROOT)],
            vec![
                Change::Entry { dir, name: name(target), old: Some(id), new: None },
                Change::Entry { dir: InodeId::ROOT, name: name(target), old: None, new: Some(id) },
            ],
        ),
        _ => (vec![file(ATTRIBUTES)], vec![Change::Xattr { id, name: "user.x".into(), value: None }]),
    };
    (cells, changes.into_iter().collect())
}

/// What the replica lacks, by the naive way: the ops themselves.
#[derive(Default)]
struct Truth {
    window: Vec<Op>,
    dirty: Vec<Op>,
    frozen: Vec<Op>,
    /// Of a change that is not told yet the marks cover everything: a birth by its directory.
    under_way: Vec<Vec<MarkCell>>,
    untimed: std::collections::BTreeSet<InodeId>,
}

impl Truth {
    fn lacks(&self) -> DirtySet {
        let mut set = DirtySet::default();
        self.window.iter().chain(&self.dirty).chain(&self.frozen).for_each(|op| set.insert_op(op));
        self.under_way.iter().flatten().for_each(|cell| set.insert_cell(&Cell::of_mark(cell)));
        self.untimed.iter().for_each(|id| set.insert_attributes(*id));
        set
    }

    fn filled(&mut self, op: Op) {
        for change in &op.changes {
            match change {
                Change::Data { id, .. } | Change::Hole { id, .. } => {
                    self.untimed.insert(*id);
                }
                Change::Attr { id, .. } => {
                    self.untimed.remove(id);
                }
                _ => {}
            }
        }
        self.window.push(op);
    }
}

/// Runs a script with the shadow's memory looked at after every store: what the replica lacks is always covered. A change under way
/// counts as soon as its mark is taken, as its system call may come at once.
fn run(script: Vec<Do>, window_bytes: usize, limit: usize) -> (usize, usize) {
    let commit = Commit::in_memory(window_bytes);
    let recorder = Recorder::default();
    commit.begin_shadow(Box::new(recorder.clone()), HEAD, limit, position(0)).expect("memory");
    let (mut truth, mut pending) = (Truth::default(), Vec::new());
    let (mut looks, mut void) = (0, 0);
    recorder.each_instant(|_| {});
    let _ = commit.freeze();
    commit.published(position(0));
    recorder.each_instant(|_| {});
    for step in script {
        match step {
            Do::Change(target, what, wait) => {
                let (cells, changes) = change(target, what);
                let guard = commit.mark(&cells).expect("in memory");
                let slot = commit.reserve();
                look(&recorder, &truth, &mut looks, &mut void);
                truth.under_way.push(cells);
                pending.push((guard, slot, changes, wait));
            }
            Do::Finish if !pending.is_empty() => {
                let at = pending.iter().position(|(.., wait)| *wait == 0).unwrap_or(0);
                pending.iter_mut().for_each(|(.., wait)| *wait = wait.saturating_sub(1));
                let (guard, slot, changes, _) = pending.remove(at);
                let op = Op { seq: slot.seq(), origin: Origin::default(), changes: changes.clone() };
                slot.fill(Origin::default(), changes);
                look(&recorder, &truth, &mut looks, &mut void);
                truth.under_way.remove(at);
                truth.filled(op);
                drop(guard);
            }
            Do::Finish => {}
            Do::Ack(back) => {
                let (to, base) = (commit.filled().0.saturating_sub(u64::from(back)), commit.durable());
                if commit.is_keeping() && base.is_some_and(|base| base.seq.0 < to) {
                    let first = base.expect("published").seq.next();
                    let chains: Vec<_> = (first.0..=to).map(|seq| Chain([seq as u8; 16])).collect();
                    commit.record_chains(first, &chains);
                    if commit.chain_at(Seq(to)).is_some() {
                        truth.window.retain(|op| op.seq.0 > to);
                        commit.acked(Seq(to), Seq(to));
                    }
                }
            }
            Do::Freeze => {
                let (filled, truth) = (commit.filled(), &mut truth);
                let (taken, kept) = truth.window.drain(..).partition(|op| op.seq <= filled);
                truth.dirty.extend::<Vec<Op>>(taken);
                truth.window = kept;
                truth.frozen.append(&mut truth.dirty);
                let _ = commit.freeze();
            }
            Do::Stage(back) => {
                let to = Seq(commit.filled().0.saturating_sub(u64::from(back)));
                if commit.chain_at(to).is_some() {
                    let (staged, kept): (Vec<_>, _) = truth.window.drain(..).partition(|op| op.seq <= to);
                    truth.frozen.extend(staged);
                    truth.window = kept;
                    commit.staged(to);
                }
            }
            Do::Publish => {
                let at = commit.filled();
                if commit.is_keeping() && commit.chain_at(at).is_some() {
                    truth.frozen.clear();
                    truth.window.retain(|op| op.seq > at);
                    commit.published(position(at.0));
                }
            }
            Do::Thaw => {
                truth.dirty.append(&mut truth.frozen);
                commit.thaw();
            }
            Do::Unnamed(target) => {
                truth.untimed.remove(&id(target));
                commit.unnamed(&id(target));
            }
        }
        look(&recorder, &truth, &mut looks, &mut void);
    }
    (looks, void)
}

fn look(recorder: &Recorder, truth: &Truth, looks: &mut usize, void: &mut usize) {
    let lacks = truth.lacks();
    recorder.each_instant(|image| {
        *looks += 1;
        match replay(image, &EXPECTED) {
            Ok(replayed) => covers(&replayed.dirty, &lacks).unwrap_or_else(|cell| panic!("lost: {cell}")),
            Err(Refused::Void) => *void += 1,
            Err(why) => panic!("{why}"),
        }
    });
}

proptest! {
    #[test]
    fn a_kill_after_any_store_loses_nothing(
        script in script(),
        window_bytes in prop_oneof![2000..8000usize, proptest::strategy::Just(1 << 20)],
        limit in prop_oneof![144_000..155_000usize, proptest::strategy::Just(ROOMY)],
    ) {
        run(script, window_bytes, limit);
    }
}

#[test]
fn a_shadow_without_room_is_void_until_a_publish_makes_room() {
    let mut script: Vec<Do> = (0..200).flat_map(|at| [Do::Change(at % 6, at % 7, 0), Do::Finish]).collect();
    script.extend([Do::Freeze, Do::Publish]);
    let room_for_little = super::AT_HALVES + 2 * 4096;
    let (looks, void) = run(script, 1 << 20, room_for_little);
    assert!(void > 0 && looks > void);
    // The end of the script is looked at as well: it is not void any more.
    let mut script: Vec<Do> = (0..200).flat_map(|at| [Do::Change(at % 6, at % 7, 0), Do::Finish]).collect();
    script.extend([Do::Freeze, Do::Publish]);
    let (_, ended_void) = run(script, 1 << 20, ROOMY);
    assert_eq!(ended_void, 0);
}

#[test]
fn without_work_under_way_it_is_exact() {
    let commit = Commit::in_memory(1 << 20);
    let store = MemStore::default();
    commit.begin_shadow(Box::new(store.clone()), HEAD, ROOMY, position(0)).expect("memory");
    let _ = commit.freeze();
    commit.published(position(0));
    let mut wanted = DirtySet::default();
    for target in 0..6 {
        let (cells, changes) = change(target, 5);
        let guard = commit.mark(&cells).expect("in memory");
        let slot = commit.reserve();
        wanted.insert_op(&Op { seq: slot.seq(), origin: Origin::default(), changes: changes.clone() });
        slot.fill(Origin::default(), changes);
        drop(guard);
    }
    let Replayed { dirty, floor, coarse, .. } = read(&store, &EXPECTED).expect("counts");
    assert_eq!((dirty.dirs(), dirty.nodes(), dirty.scope()), (wanted.dirs(), wanted.nodes(), Scope::Cells));
    assert_eq!((floor, coarse), (position(0), 0));
}

fn read(store: &MemStore, expected: &Expected) -> Result<Replayed, Refused> {
    replay(&store.read().expect("memory").expect("there"), expected)
}

#[test]
fn of_another_boot_run_or_mount_it_says_nothing() {
    let commit = Commit::in_memory(1 << 20);
    let store = MemStore::default();
    commit.begin_shadow(Box::new(store.clone()), HEAD, ROOMY, position(7)).expect("memory");
    let refused = |expected: Expected| read(&store, &expected).map(|_| ());
    assert_eq!(refused(EXPECTED), Ok(()));
    assert_eq!(refused(Expected { run: HEAD.previous, ..EXPECTED }), Ok(()), "killed before its name was durable");
    assert_eq!(refused(Expected { place: None, ..EXPECTED }), Ok(()));
    assert_eq!(refused(Expected { boot: Uuid([9; 16]), ..EXPECTED }), Err(Refused::Boot));
    assert_eq!(refused(Expected { run: Uuid([9; 16]), ..EXPECTED }), Err(Refused::Run));
    assert_eq!(refused(Expected { run: Uuid::default(), ..EXPECTED }), Err(Refused::Run));
    assert_eq!(refused(Expected { place: Some(5), ..EXPECTED }), Err(Refused::Place));
    assert_eq!(refused(Expected { place: Some(0), ..EXPECTED }), Err(Refused::Place));
}

#[test]
fn a_replica_behind_the_floor_makes_the_marks_count_as_well() {
    let marked = DirtySet::everything(false);
    let at = |commit: &Commit, published: Option<Position>| {
        commit.rely_on(position(5), marked.clone());
        (commit.confirm_floor(published.as_ref()), !commit.is_clean())
    };
    assert_eq!(at(&Commit::in_memory(1), Some(position(5))), (true, false));
    assert_eq!(at(&Commit::in_memory(1), Some(position(6))), (true, false));
    assert_eq!(at(&Commit::in_memory(1), Some(position(4))), (false, true));
    assert_eq!(at(&Commit::in_memory(1), Some(Position { chain: Chain([9; 16]), ..position(5) })), (false, true));
    assert_eq!(at(&Commit::in_memory(1), None), (false, true));
}

#[test]
fn more_changes_at_once_than_it_has_slots_for_are_all_in_it() {
    let commit = Commit::in_memory(1 << 20);
    let store = MemStore::default();
    commit.begin_shadow(Box::new(store.clone()), HEAD, ROOMY, position(0)).expect("memory");
    let dirs: Vec<InodeId> =
        (0..600u16).map(|number| InodeId::new(&[number.to_le_bytes(), [7, 7]].concat()).expect("short")).collect();
    let guards: Vec<_> = dirs.iter().map(|dir| commit.mark(&[MarkCell::Dir(*dir)]).expect("in memory")).collect();
    let dirty = read(&store, &EXPECTED).expect("counts").dirty;
    assert!(dirs.iter().all(|dir| dirty.dirs().contains_key(dir)));
    drop(guards);
    let kept = read(&store, &EXPECTED).expect("counts").dirty.dirs().len();
    assert!(kept < 600, "those with a slot are gone with their change");
}

#[test]
fn a_file_that_is_killed_behind_is_found_with_all_that_was_stored() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::new(dir.path().join("runtime/mount.shadow"));
    assert_eq!(store.read().expect("readable"), None);
    let commit = Commit::in_memory(1 << 20);
    commit.begin_shadow(Box::new(store.clone()), HEAD, ROOMY, position(3)).expect("there is room");
    let _ = commit.freeze();
    for round in 0..400u16 {
        let (cells, changes) = change((round % 6) as u8, (round % 7) as u8);
        let guard = commit.mark(&cells).expect("in memory");
        commit.reserve().fill(Origin::default(), changes);
        drop(guard);
    }
    let guard = commit.mark(&[MarkCell::Dir(id(99))]).expect("in memory");
    let found = replay(&store.read().expect("readable").expect("there"), &EXPECTED).expect("counts");
    assert_eq!(found.coarse, 1);
    assert!(found.dirty.dirs().contains_key(&id(99)) && found.dirty.nodes().len() >= 6);
    drop(guard);
    let mut bytes = store.read().expect("readable").expect("there");
    bytes[super::AT_HALVES + 30] ^= 1;
    let half = found_half(&bytes);
    bytes[super::AT_HALVES + half + 30] ^= 1;
    assert_eq!(replay(&bytes, &EXPECTED).map(|_| ()), Err(Refused::Damaged));
}

fn found_half(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[super::AT_HALF_LEN..super::AT_HALF_LEN + 8].try_into().expect("8")) as usize
}
