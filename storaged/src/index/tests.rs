//! The index as a whole, over a plain directory.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tandem_proto::{Chain, Digest, Epoch, InodeId, Position, Seq, chunks};

use super::{Contents, Index, IndexOptions, WorkerState, recipe::PLACES_MAX, testing::PlainFiles};
use crate::apply::{ChunkSource as _, Place};

const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    dir: tempfile::TempDir,
}

fn id(name: &str) -> InodeId {
    InodeId::new(name.as_bytes()).expect("short")
}

fn at(seq: u64) -> Position {
    Position { epoch: Epoch(1), seq: Seq(seq), chain: Chain([seq as u8; 16]) }
}

fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
    out
}

impl World {
    fn new() -> World {
        let world = World { dir: tempfile::tempdir().expect("temporary directory") };
        fs::create_dir(world.tree()).expect("tree");
        world
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn index_dir(&self) -> PathBuf {
        self.dir.path().join("index")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.tree().join(name), bytes).expect("write");
    }

    fn open(&self, applied: Position) -> Index {
        let options = IndexOptions { idle: Duration::from_millis(10), ..IndexOptions::default() };
        self.open_with(applied, &options)
    }

    fn open_with(&self, applied: Position, options: &IndexOptions) -> Index {
        Index::open(&self.index_dir(), Box::new(PlainFiles(self.tree())), applied, options).expect("open")
    }

    /// Every chunk of the file is found, and what is found has the digest.
    fn assert_finds(&self, index: &Index, name: &str) {
        let bytes = fs::read(self.tree().join(name)).expect("read");
        for (offset, len) in chunks(&bytes) {
            let digest = Digest::of(&bytes[offset..offset + len]);
            let places = index.find(&digest);
            assert!(!places.is_empty(), "chunk {offset}+{len} of {name} is not found");
            for place in places {
                let of =
                    fs::read(self.tree().join(String::from_utf8_lossy(place.id.as_bytes()).as_ref())).expect("read");
                let from = place.offset as usize;
                assert_eq!(Digest::of(&of[from..from + place.len as usize]), digest);
            }
        }
        assert_eq!(index.recipe(&id(name)).expect("known").stamp.size, bytes.len() as u64);
    }
}

fn digest_of_first_chunk(bytes: &[u8]) -> Digest {
    let (offset, len) = chunks(bytes).next().expect("not empty");
    Digest::of(&bytes[offset..offset + len])
}

#[test]
fn a_touched_file_is_found_by_its_chunks_and_a_removed_one_is_not() {
    let world = World::new();
    let index = world.open(at(0));
    let bytes = noise("a", 1 << 20);
    world.write("a", &bytes);
    index.touched(id("a"));
    index.applied(at(1));
    assert!(index.wait_for(at(1), PATIENCE));
    world.assert_finds(&index, "a");
    assert_eq!(index.status().files, 1);

    fs::remove_file(world.tree().join("a")).expect("remove");
    index.removed(id("a"));
    index.applied(at(2));
    assert!(index.wait_for(at(2), PATIENCE));
    assert_eq!(index.find(&digest_of_first_chunk(&bytes)), []);
    assert_eq!(index.recipe(&id("a")), None);
    assert_eq!((index.status().files, index.status().chunks), (0, 0));
}

#[test]
fn a_file_that_changed_after_it_was_indexed_leaves_hints_that_its_next_reading_corrects() {
    let world = World::new();
    let index = world.open(at(0));
    let old = noise("old", 300_000);
    world.write("a", &old);
    index.touched(id("a"));
    index.applied(at(1));
    assert!(index.wait_for(at(1), PATIENCE));
    world.write("a", &noise("new", 200_000));
    let stale = index.find(&digest_of_first_chunk(&old));
    assert_eq!(stale.len(), 1, "a hint, which its user checks");

    index.touched(id("a"));
    index.applied(at(2));
    assert!(index.wait_for(at(2), PATIENCE));
    assert_eq!(index.find(&digest_of_first_chunk(&old)), []);
    world.assert_finds(&index, "a");
}

#[test]
fn a_reopened_index_at_the_replicas_position_reads_nothing_again() {
    let world = World::new();
    world.write("a", &noise("a", 100_000));
    let index = world.open(at(5));
    assert!(index.wait_for(at(5), PATIENCE));
    index.close();
    assert_eq!(index.status().worker, WorkerState::Stopped);
    drop(index);

    // Not announced, so only a walk could see it.
    world.write("b", &noise("b", 100_000));
    let index = world.open(at(5));
    assert_eq!(index.status().position, Some(at(5)));
    world.assert_finds(&index, "a");
    index.touched(id("a"));
    index.applied(at(6));
    assert!(index.wait_for(at(6), PATIENCE));
    assert_eq!(index.recipe(&id("b")), None);
}

#[test]
fn an_index_at_another_position_is_brought_up_to_date_by_a_walk() {
    let world = World::new();
    world.write("kept", &noise("kept", 100_000));
    world.write("gone", &noise("gone", 100_000));
    world.write("changed", &noise("before", 100_000));
    let index = world.open(at(5));
    assert!(index.wait_for(at(5), PATIENCE));
    assert_eq!(index.status().files, 3);
    drop(index);

    fs::remove_file(world.tree().join("gone")).expect("remove");
    world.write("changed", &noise("after", 100_000));
    world.write("new", &noise("new", 100_000));
    let index = world.open(at(9));
    // Served while the walk runs.
    world.assert_finds(&index, "kept");
    assert!(index.wait_for(at(9), PATIENCE));
    for name in ["kept", "changed", "new"] {
        world.assert_finds(&index, name);
    }
    assert_eq!(index.recipe(&id("gone")), None);
    assert_eq!(index.find(&digest_of_first_chunk(&noise("before", 100_000))), []);
    assert_eq!(index.status().files, 3);
}

fn damage(dir: &Path, how: fn(&Path)) {
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() { damage(&path, how) } else { how(&path) }
    }
}

#[test]
fn a_lost_or_damaged_database_is_built_anew() {
    type Fault = fn(&World);
    let faults: [(&str, Fault); 5] = [
        ("removed", |world| fs::remove_dir_all(world.index_dir()).expect("remove")),
        ("emptied files", |world| damage(&world.index_dir(), |path| fs::write(path, b"").expect("truncate"))),
        ("garbage", |world| damage(&world.index_dir(), |path| fs::write(path, noise("x", 70_000)).expect("write"))),
        ("a file in its place", |world| {
            fs::remove_dir_all(world.index_dir().join(super::STORE_DIR)).expect("remove");
            fs::write(world.index_dir().join(super::STORE_DIR), b"?").expect("write");
        }),
        ("marked as damaged", |world| {
            fs::write(world.index_dir().join(super::DAMAGED_MARK), b"").expect("mark");
        }),
    ];
    for (what, fault) in faults {
        let world = World::new();
        world.write("a", &noise("a", 500_000));
        let index = world.open(at(3));
        assert!(index.wait_for(at(3), PATIENCE), "{what}");
        drop(index);
        fault(&world);
        let index = world.open(at(3));
        assert!(index.wait_for(at(3), PATIENCE), "{what}: {:?}", index.status());
        world.assert_finds(&index, "a");
        drop(index);
        let index = world.open(at(3));
        assert_eq!(index.status().position, Some(at(3)), "{what}: a rebuilt index lasts");
    }
}

/// Where a digest had more places than are kept, which of them are kept depends on the order of things.
fn comparable(mut contents: Contents) -> Contents {
    let crowded: Vec<Digest> = {
        let mut places: std::collections::HashMap<Digest, usize> = Default::default();
        let chunks = contents.files.values().flat_map(|recipe| &recipe.chunks);
        chunks.for_each(|chunk| *places.entry(chunk.digest).or_default() += 1);
        places.into_iter().filter(|(_, count)| *count > PLACES_MAX).map(|(digest, _)| digest).collect()
    };
    crowded.iter().for_each(|digest| drop(contents.places.remove(digest)));
    contents
}

#[test]
fn an_index_rebuilt_from_nothing_equals_the_one_that_was_kept_up_live() {
    let world = World::new();
    let live = world.open(at(0));
    let mut seq = 0;
    // Files come, grow, shrink, are overwritten with what others hold, and go.
    for round in 0..60u64 {
        let name = format!("file{}", round * 7 % 11);
        let path = world.tree().join(&name);
        match round % 5 {
            0 | 1 => world.write(&name, &noise(&format!("{}", round % 9), 30_000 + 70_000 * (round as usize % 4))),
            2 => world.write(&name, &[noise("shared", 90_000), noise(&name, 40_000)].concat()),
            3 if path.exists() => {
                fs::OpenOptions::new().write(true).open(&path).expect("opened").set_len(20_000).expect("cut");
            }
            _ if path.exists() => fs::remove_file(&path).expect("removed"),
            _ => {}
        }
        if path.exists() {
            live.touched(id(&name))
        } else {
            live.removed(id(&name))
        }
        seq += 1;
        live.applied(at(seq));
        if round % 4 == 0 {
            assert!(live.wait_for(at(seq), PATIENCE));
        }
    }
    assert!(live.wait_for(at(seq), PATIENCE));
    let kept_up = comparable(live.contents());
    assert!(kept_up.files.len() > 3 && kept_up.places.len() > 10, "{} files", kept_up.files.len());
    drop(live);
    fs::remove_dir_all(world.index_dir()).expect("removed");
    let rebuilt = world.open(at(seq));
    assert!(rebuilt.wait_for(at(seq), PATIENCE));
    assert_eq!(comparable(rebuilt.contents()), kept_up);
}

#[test]
fn an_index_that_lost_all_its_files_is_rebuilt_even_if_it_claims_the_position() {
    let world = World::new();
    let index = world.open(at(7));
    assert!(index.wait_for(at(7), PATIENCE));
    drop(index);
    // Not announced: the stored position says that everything is indexed.
    world.write("a", &noise("a", 100_000));
    world.write("b", &noise("b", 100_000));
    let index = world.open(at(7));
    assert!(matches!(index.status().worker, WorkerState::Rebuilding { total: 2, .. } | WorkerState::Idle));
    assert!(index.wait_for(at(7), PATIENCE));
    world.assert_finds(&index, "a");
    world.assert_finds(&index, "b");
}

#[test]
fn a_full_queue_ends_in_a_walk_and_loses_no_file() {
    let world = World::new();
    let options = IndexOptions { idle: Duration::from_millis(50), waiting_max_files: 3, ..IndexOptions::default() };
    let index = world.open_with(at(0), &options);
    assert!(index.wait_for(at(0), PATIENCE));
    for number in 0..50 {
        let name = format!("file{number}");
        world.write(&name, &noise(&name, 10_000));
        index.touched(id(&name));
    }
    index.applied(at(50));
    assert!(index.wait_for(at(50), PATIENCE), "{:?}", index.status());
    for number in 0..50 {
        world.assert_finds(&index, &format!("file{number}"));
    }
}

/// Announces another file again and again until a file that was announced before is indexed, or so long; whether it is. `None`: this thread
/// was held up in between.
fn indexed_beside_changes(stand_back_max: Duration) -> Option<bool> {
    let world = World::new();
    let idle = Duration::from_secs(1);
    let options = IndexOptions { idle, stand_back_max, ..IndexOptions::default() };
    let index = world.open_with(at(0), &options);
    assert!(index.wait_for(at(0), PATIENCE));
    world.write("a", &noise("a", 10_000));
    index.touched(id("a"));
    let begun = Instant::now();
    let mut last = begun;
    while begun.elapsed() < 2 * idle {
        index.touched(id("busy"));
        std::thread::sleep(Duration::from_millis(5));
        if last.elapsed() > idle / 8 {
            return None;
        }
        if index.recipe(&id("a")).is_some() {
            return Some(true);
        }
        last = Instant::now();
    }
    let beside = index.recipe(&id("a")).is_some();
    index.applied(at(1));
    assert!(index.wait_for(at(1), PATIENCE), "who waits for it is not kept waiting");
    world.assert_finds(&index, "a");
    Some(beside)
}

#[test]
fn what_is_due_waits_while_the_replica_is_changed_and_not_for_ever() {
    for (stand_back_max, expected) in [(PATIENCE, false), (Duration::ZERO, true)] {
        let seen = (0..10).find_map(|_| indexed_beside_changes(stand_back_max));
        assert_eq!(seen, Some(expected), "{stand_back_max:?}");
    }
}

#[test]
fn a_walk_goes_on_while_files_that_are_due_wait_for_who_changes_others() {
    let world = World::new();
    let idle = Duration::from_secs(1);
    let options = IndexOptions { idle, stand_back_max: Duration::from_secs(3600), ..IndexOptions::default() };
    let index = world.open_with(at(0), &options);
    assert!(index.wait_for(at(0), PATIENCE));
    ["a", "b"].iter().for_each(|name| world.write(name, &noise(name, 10_000)));
    index.touched(id("a"));
    let begun = Instant::now();
    let mut rescanned = false;
    // `b` was never announced.
    while index.recipe(&id("b")).is_none() {
        assert!(begun.elapsed() < PATIENCE, "{:?}", index.status());
        index.touched(id("busy"));
        std::thread::sleep(Duration::from_millis(5));
        if !rescanned && begun.elapsed() > 2 * idle {
            index.rescan();
            rescanned = true;
        }
    }
}

#[test]
fn files_that_wait_when_the_index_is_closed_are_found_at_the_next_open() {
    let world = World::new();
    let options = IndexOptions { idle: Duration::from_secs(3600), ..IndexOptions::default() };
    let index = world.open_with(at(1), &options);
    assert!(index.wait_for(at(1), PATIENCE));
    world.write("a", &noise("a", 10_000));
    index.touched(id("a"));
    index.applied(at(2));
    drop(index);

    let index = world.open(at(2));
    assert!(index.wait_for(at(2), PATIENCE));
    world.assert_finds(&index, "a");
}

#[test]
fn a_large_file_must_be_left_alone_longer() {
    let world = World::new();
    let options =
        IndexOptions { idle: Duration::from_millis(1), idle_bytes_per_second: 1000, ..IndexOptions::default() };
    let index = world.open_with(at(0), &options);
    assert!(index.wait_for(at(0), PATIENCE));
    world.write("small", b"x");
    world.write("large", &noise("large", 1 << 20));
    index.touched(id("small"));
    index.touched(id("large"));
    index.applied(at(1));
    assert!(!index.wait_for(at(1), Duration::from_millis(500)));
    assert!(index.recipe(&id("small")).is_some());
    assert_eq!(index.recipe(&id("large")), None);
    assert_eq!(index.status().files_behind, 1);
}

#[test]
fn a_file_that_lost_a_name_is_forgotten_only_if_it_is_gone() {
    let world = World::new();
    world.write("kept", &noise("kept", 10_000));
    world.write("gone", &noise("gone", 10_000));
    let index = world.open(at(1));
    assert!(index.wait_for(at(1), PATIENCE));
    fs::remove_file(world.tree().join("gone")).expect("remove");
    index.lost_name(id("kept"));
    index.lost_name(id("gone"));
    index.applied(at(2));
    assert!(index.wait_for(at(2), PATIENCE));
    world.assert_finds(&index, "kept");
    assert_eq!(index.recipe(&id("gone")), None);
}

#[test]
fn the_same_bytes_in_two_files_have_two_places() {
    let world = World::new();
    let bytes = noise("both", 40_000);
    world.write("a", &bytes);
    world.write("b", &bytes);
    let index = world.open(at(1));
    assert!(index.wait_for(at(1), PATIENCE));
    let mut places = index.find(&digest_of_first_chunk(&bytes));
    places.sort_by_key(|place| place.id);
    let len = chunks(&bytes).next().expect("a chunk").1 as u32;
    let expected = ["a", "b"].map(|name| Place { id: id(name), offset: 0, len });
    assert_eq!(places, expected);
}
