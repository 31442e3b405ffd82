//! Files that the kernel reads by itself (`passthrough=PATH`): nothing that is read passes the daemon, and everything that is written does.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tandem_tests::{
    compare,
    harness::{Lab, Mount, MountSpec, Storage, eventually},
    rng::content,
};

use crate::support::{MAP_LEN, Map, assert_equal_and_unmount, assert_replica_equal};

const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;
const SOON: Duration = Duration::from_secs(30);
/// After so long what was written may be read past the daemon.
const AT_REST: Duration = Duration::from_millis(300);

fn reads(mount: &Mount) -> u64 {
    mount.status().ops.iter().filter(|op| op.op == "read").map(|op| op.count).sum()
}

/// The kernel has no page of it any more, neither of the mount nor of the backing file.
fn forget_pages(path: &Path) {
    let file = File::open(path).expect("there");
    rustix::fs::fsync(&file).expect("synced");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
}

fn open_both(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("there")
}

/// A mount that is read past the daemon everywhere, and a file of it that is at rest, with `content(seed, MAP_LEN)`.
fn mount_with_file(lab: &Lab, storage: &Storage, seed: u64) -> (Mount, PathBuf) {
    let mount = lab.mount_with(&MountSpec::new(storage, "vol", &lab.new_dir("folder")).options("passthrough=/"));
    mount.settle();
    let path = mount.path().join("file");
    fs::write(&path, content(seed, MAP_LEN)).expect("writable");
    thread::sleep(AT_REST);
    (mount, path)
}

#[test]
fn what_is_below_the_path_is_read_without_the_daemon_and_the_rest_through_it() {
    let Some(lab) = Lab::new("passthrough") else { return };
    let storage = lab.storage();
    let spec =
        MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("passthrough=/media,passthrough=/models/big");
    let mount = lab.mount_with(&spec);
    mount.settle();
    let bytes = content(1, 3 << 20);
    for dir in ["media", "models", "models/big", "else"] {
        fs::create_dir(mount.path().join(dir)).expect("writable");
    }
    let paths = ["media/a", "models/big/b", "models/c", "else/d"].map(|name| mount.path().join(name));
    for path in &paths {
        fs::write(path, &bytes).expect("writable");
    }
    let passes = |path: &Path| {
        // Else what the mount's cache has is no request either.
        forget_pages(path);
        let before = reads(&mount);
        assert!(fs::read(path).expect("readable") == bytes, "{}", path.display());
        reads(&mount) == before
    };
    // Who wrote a file is known to have closed it a moment later only, and until then readers stand beside a writer.
    let passes_at_last = |name: &str| eventually(SOON, || passes(&mount.path().join(name)));
    assert!(passes_at_last("media/a") && passes_at_last("models/big/b"));
    assert!(!passes(&paths[2]) && !passes(&paths[3]));
    // Where it is counts, not where it was made; also for what is in a directory that moves.
    fs::rename(&paths[0], mount.path().join("else/a")).expect("rename");
    fs::rename(mount.path().join("models/big"), mount.path().join("big")).expect("rename");
    fs::rename(&paths[3], mount.path().join("media/d")).expect("rename");
    assert!(!passes(&mount.path().join("else/a")) && !passes(&mount.path().join("big/b")));
    assert!(passes_at_last("media/d"));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn who_reads_past_the_daemon_sees_what_others_write_and_they_what_he_does() {
    let Some(lab) = Lab::new("beside") else { return };
    let storage = lab.storage();
    let (mount, path) = mount_with_file(&lab, &storage, 2);
    let reader = File::open(&path).expect("there");
    let seen = |at: u64| {
        let mut byte = [0];
        reader.read_exact_at(&mut byte, at).expect("within");
        byte[0]
    };
    let mapped = Map::new(&reader, libc::PROT_READ, libc::MAP_SHARED).expect("to be read");
    let open = || OpenOptions::new().write(true).open(&path).expect("there");
    let (writer, other) = (open(), open());
    writer.write_all_at(b"w", 100).expect("writable");
    other.write_all_at(b"b", 5000).expect("writable");
    assert_eq!((seen(100), seen(5000), mapped.read(100), mapped.read(5000)), (b'w', b'b', b'w', b'b'));
    assert_replica_equal(&mount, &storage, "vol");
    // What is cut off and made longer is seen, too.
    writer.set_len(50).expect("writable");
    assert_eq!(reader.metadata().expect("open").len(), 50);
    writer.set_len(MAP_LEN as u64).expect("writable");
    assert_eq!((seen(100), reader.metadata().expect("open").len()), (0, MAP_LEN as u64));
    // Appended, synced at once, and after the name is gone.
    let mut appending = OpenOptions::new().append(true).custom_flags(libc::O_SYNC).open(&path).expect("there");
    appending.write_all(b"end").expect("writable");
    assert_eq!(seen(MAP_LEN as u64), b'e');
    assert_replica_equal(&mount, &storage, "vol");
    fs::remove_file(&path).expect("there");
    writer.write_all_at(b"z", 7).expect("it is open");
    assert_eq!((seen(7), mapped.read(7)), (b'z', b'z'));
    drop((reader, mapped, writer, other, appending));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn who_may_map_it_for_writing_is_refused_while_a_file_is_read_past_the_daemon_and_loses_no_store_after() {
    let Some(lab) = Lab::new("busy") else { return };
    let storage = lab.storage();
    let (mount, path) = mount_with_file(&lab, &storage, 3);
    let reader = File::open(&path).expect("there");
    let refused = OpenOptions::new().read(true).write(true).truncate(true).open(&path).expect_err("it is read");
    assert_eq!(refused.raw_os_error(), Some(libc::ETXTBSY));
    assert!(fs::read(&path).expect("readable") == content(3, MAP_LEN), "who was refused changed nothing");
    // Not him who was going already: the next one is not refused for a release that is on its way.
    drop(reader);
    for at in 0..200 {
        File::open(&path).expect("there");
        open_both(&path).write_all_at(b"n", at).expect("writable");
        thread::sleep(if at % 20 == 0 { AT_REST } else { Duration::ZERO });
    }
    let both = open_both(&path);
    let mapped = Map::new(&both, BOTH, libc::MAP_SHARED).expect("to be written");
    drop(both);
    // A mapping needs no descriptor, and readers go through the mount as long as it is there.
    let reader = File::open(&path).expect("there");
    mapped.store(5000, b'2');
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 5000).expect("within");
    assert_eq!(byte, *b"2");
    drop((mapped, reader));
    assert_replica_equal(&mount, &storage, "vol");
    assert_eq!(fs::read(storage.tree("vol").join("file")).expect("readable")[5000], b'2');
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn what_is_written_beside_a_reader_while_the_daemon_is_killed_is_told_or_refused() {
    let Some(lab) = Lab::new("beside-kill") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let (mount, path) = mount_with_file(&lab, &storage, 4);
    let reader = File::open(&path).expect("there");
    let writer = OpenOptions::new().write(true).open(&path).expect("there");
    writer.write_all_at(b"told", 10).expect("writable");
    mount.kill();
    assert!(writer.write_all_at(b"lost", 20).is_err(), "no write goes around the daemon");
    drop((writer, reader));
    mount.start_again().expect("it starts");
    mount.settle();
    let bytes = fs::read(&path).expect("readable");
    assert!(bytes[10..14] == *b"told" && bytes[20..24] == content(4, MAP_LEN)[20..24]);
    compare::assert_equal(mount.path(), &storage.tree("vol"));
    assert_equal_and_unmount(&mount, &storage, "vol");
}
