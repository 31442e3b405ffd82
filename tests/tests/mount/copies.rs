//! `tandem cp`: out of volumes, into volumes, between storage daemons; resumed where it stopped.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Stdio};

use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, Storage, eventually, seconds},
    netlab::proxy::{Harm, Proxy},
};

use crate::support::fill_mixed;

fn text(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

#[test]
fn files_of_a_volume_are_copied_and_resumed() {
    let Some(lab) = Lab::new("cp") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let big: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.join("big"), &big).expect("writable");
    fs::create_dir(dir.join("many")).expect("writable");
    fill_mixed(&dir.join("many"), 100, 77);
    for name in ["one.log", "two.log", "other"] {
        fs::write(dir.join(name), name).expect("writable");
    }
    let mount = lab.mount(&storage, "vol", &dir);
    mount.settle();
    let from = |path: &str| format!("127.0.0.1:{}:/vol/{path}", storage.port());
    let to = lab.new_dir("to");

    // What is there of a file is not sent again; what is there and is not of the file is not taken for it.
    fs::write(to.join(".big.tandem-part"), &big[..5 << 20]).expect("writable");
    let said = lab.tandem(&["cp", &from("big"), &text(&to)]).expect_success("tandem cp");
    assert!(said.stdout.contains("5.0 MiB were there already"), "{said:#?}");
    assert!(fs::read(to.join("big")).expect("copied") == big);
    fs::write(to.join(".big.tandem-part"), vec![1; 5 << 20]).expect("writable");
    let said = lab.tandem(&["cp", &from("big"), &text(&to)]).expect_success("tandem cp");
    assert!(!said.stdout.contains("already") && fs::read(to.join("big")).expect("copied") == big, "{said:#?}");
    assert!(!to.join(".big.tandem-part").exists());

    lab.tandem(&["cp", &from("*.log"), &text(&to)]).expect_success("tandem cp of a pattern");
    assert!(to.join("one.log").exists() && to.join("two.log").exists() && !to.join("other").exists());

    // The storage daemon dies, and comes again with another secret.
    let again = lab.new_dir("again");
    std::thread::scope(|scope| {
        let (source, target) = (from("many"), text(&again));
        let lab = &lab;
        let copying = scope.spawn(move || lab.tandem(&["cp", "-rp", &source, &target]));
        storage.kill();
        storage.restart();
        let said = copying.join().expect("no panic");
        // Killed before the list was there, there is nothing to go on with.
        if said.code != Some(0) {
            lab.tandem(&["cp", "-rp", &from("many"), &text(&again)]).expect_success("tandem cp -rp");
        }
    });
    mount.settle();
    for entry in fs::read_dir(dir.join("many")).expect("listed") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_file() {
            let copied = fs::read(again.join("many").join(entry.file_name())).expect("copied");
            assert!(copied == fs::read(entry.path()).expect("there"), "{:?}", entry.file_name());
        }
    }
    compare::assert_equal(mount.path(), &storage.tree("vol"));
    // A volume that is mounted here is written by its mount; one that a mount elsewhere holds is not written.
    let said = lab.tandem(&["cp", &text(&to.join("big")), &from("new")]).expect_success("tandem cp into a mount");
    assert!(said.stderr.contains("through its mount"), "{said:#?}");
    mount.settle();
    assert!(fs::read(storage.tree("vol").join("new")).expect("replicated") == big);
    mount.unmount();
    let refused = lab.tandem(&["cp", &text(&to.join("big")), &from("newer")]);
    assert!(refused.code == Some(2) && refused.stderr.contains("a volume has one writer"), "{refused:#?}");
}

#[test]
fn a_folder_goes_into_a_volume_of_its_own_and_is_mounted_from_there() {
    let Some(lab) = Lab::new("cp-into") else { return };
    let storage = lab.storage();
    let at = |path: &str| format!("127.0.0.1:{}:{path}", storage.port());
    let from = lab.new_dir("pictures");
    fill_mixed(&from, 120, 5);
    // What is copied: no pipes, and each name of a file is a file.
    remove_pipes(&from);
    let said = lab.tandem(&["cp", "-rp", &text(&from), &at("/archive/")]).expect_success("tandem cp into a volume");
    assert!(!said.stdout.contains("already"), "{said:#?}");
    assert_same(&from, &storage.tree("archive").join("pictures"));

    // Once more nothing is sent, and what was changed is.
    let said = lab.tandem(&["cp", "-rp", &text(&from), &at("/archive/")]).expect_success("tandem cp again");
    assert!(said.stdout.contains(" files, 0 B, "), "{said:#?}");
    fs::write(from.join("changed"), "one").expect("writable");
    fs::create_dir(from.join("late")).expect("writable");
    fs::write(from.join("late/file"), vec![7; 100_000]).expect("writable");
    lab.tandem(&["cp", "-rp", &text(&from), &at("/archive")]).expect_success("tandem cp of what is new");
    fs::write(from.join("changed"), "two").expect("writable");
    lab.tandem(&["cp", "-p", &text(&from.join("changed")), &at("/archive/pictures/changed")])
        .expect_success("tandem cp");
    assert_same(&from, &storage.tree("archive").join("pictures"));
    let missing = lab.tandem(&["cp", &text(&from.join("changed")), &at("/archive/no/such/folder")]);
    assert!(missing.code == Some(2) && missing.stderr.contains("no folder /no"), "{missing:#?}");

    // The volume is like any other: sound after a kill, and a mount begins with what it holds.
    storage.kill();
    storage.restart();
    let dir = lab.new_dir("folder");
    let mount = lab.mount_with(&MountSpec::new(&storage, "archive", &dir).options("init=pull"));
    fs::write(dir.join("pictures/new"), "of the mount").expect("writable");
    mount.settle();
    compare::assert_equal(&dir, &storage.tree("archive"));
}

#[test]
fn a_copy_between_storage_daemons_survives_two_cuts_and_a_kill_and_sends_nothing_twice() {
    let Some(lab) = Lab::new("cp-between") else { return };
    let (near, far) = (Storage::start(&lab, "near"), Storage::start(&lab, "far"));
    let proxy = Proxy::new(near.port(), 1).expect("a free port");
    // The proxy is another address of the same storage daemon.
    let secret = |port: u16| lab.runtime_dir().join(format!("storaged-{port}.secret"));
    fs::copy(secret(near.port()), secret(proxy.port())).expect("copied");
    let from = lab.new_dir("from");
    let size = 48 << 20;
    fs::write(from.join("big"), numbered(size)).expect("writable");
    fs::create_dir(from.join("many")).expect("writable");
    (0..300).for_each(|at| fs::write(from.join(format!("many/{at}")), numbered(at * 50)).expect("writable"));
    let near_at = |path: &str| format!("127.0.0.1:{}:{path}", near.port());
    lab.tandem(&["cp", "-rp", &text(&from), &near_at("/v/")]).expect_success("tandem cp into a volume");

    proxy.harm(Harm { rate: 24 << 20, ..Harm::default() });
    let copy = || {
        let mut command = lab.command("tandem");
        command.args(["cp", "-rp", &format!("127.0.0.1:{}:/v/from", proxy.port())]);
        command.arg(format!("127.0.0.1:{}:/w/", far.port()));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started")
    };
    let carried = |at_least: u64| assert!(eventually(seconds(30), || proxy.carried() >= at_least), "it came to a stop");
    let mut first = copy();
    carried(12 << 20);
    proxy.cut();
    carried(24 << 20);
    first.kill().expect("killed");
    first.wait().expect("ended");
    let mut second = copy();
    carried(proxy.carried() + (8 << 20));
    proxy.cut();
    assert!(second.wait().expect("ended").success());
    assert_same(&from, &far.tree("w").join("from"));
    // Of each cut, and of the kill, what was on its way may come again: what the proxy and the kernel hold.
    let twice = proxy.carried() - size as u64;
    assert!(twice < 3 * (10 << 20), "{twice} bytes came twice");
    assert!(fs::read_dir(far.data().join("w/staging/incoming")).expect("there").next().is_none());
}

/// Bytes of which no two blocks are equal.
fn numbered(len: usize) -> Vec<u8> {
    let mut bytes = vec![1; len];
    bytes.chunks_mut(512).enumerate().for_each(|(at, block)| {
        let number = (at as u64 + 1).to_le_bytes();
        let len = block.len().min(8);
        block[..len].copy_from_slice(&number[..len]);
    });
    bytes
}

fn remove_pipes(dir: &Path) {
    for entry in fs::read_dir(dir).expect("listed") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            remove_pipes(&entry.path());
        } else if !kind.is_file() && !kind.is_symlink() {
            fs::remove_file(entry.path()).expect("removed");
        }
    }
}

/// Like `compare`, but links between names are not copied, and neither are extended attributes.
fn assert_same(left: &Path, right: &Path) {
    let names = |dir: &Path| {
        let names = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(left), names(right), "{}", left.display());
    for name in names(left) {
        let (left, right) = (left.join(&name), right.join(&name));
        let (one, other) = [&left, &right].map(|path| fs::symlink_metadata(path).expect("there")).into();
        assert_eq!(one.mode(), other.mode(), "{}", left.display());
        if one.is_dir() {
            assert_same(&left, &right);
        } else if one.is_symlink() {
            assert_eq!(fs::read_link(&left).expect("a link"), fs::read_link(&right).expect("a link"));
        } else {
            assert!(fs::read(&left).expect("there") == fs::read(&right).expect("there"), "{}", left.display());
        }
        if !one.is_symlink() {
            assert_eq!((one.mtime(), one.mtime_nsec()), (other.mtime(), other.mtime_nsec()), "{}", left.display());
        }
    }
}
