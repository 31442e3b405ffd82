//! `tandem cp`: out of volumes, into volumes, between storage daemons; resumed where it stopped.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

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

/// Lets the user of a lab reach a storage daemon by TLS with a role, at its own address and at another one of it.
fn join(lab: &Lab, storage: &Storage, volume: &str, role: &str, port: u16) {
    let server = format!("127.0.0.1:{}", storage.port());
    let invited = lab.tandem(&["invite", volume, "--server", &server, "--address", &server, "--role", role]);
    let token = invited.expect_success("tandem invite").stdout.split_whitespace().last().expect("a token").to_owned();
    lab.tandem(&["join", &server, &token, "--name", "me@test"]).expect_success("tandem join");
    let identity = |port: u16| lab.state_dir().join(format!("identities/127.0.0.1:{port}.pem"));
    if port != storage.port() {
        fs::copy(identity(storage.port()), identity(port)).expect("copied");
    }
}

#[test]
fn a_copy_between_joined_hosts_goes_by_tls_and_survives_a_kill_of_either_storage_daemon() {
    let Some(lab) = Lab::new("cp-tls") else { return };
    lab.allow_lost_peers();
    lab.allow("a copy into a volume ended", "its daemon, or that of its source, is killed");
    let (near, far) = (Storage::start(&lab, "near"), Storage::start(&lab, "far"));
    let proxy = Proxy::new(near.port(), 1).expect("a free port");
    let from = lab.new_dir("from");
    let size = 40 << 20;
    fs::write(from.join("big"), numbered(size)).expect("writable");
    (0..50).for_each(|at| fs::write(from.join(format!("small{at}")), numbered(at * 90)).expect("writable"));
    let near_at = format!("127.0.0.1:{}:/v/", near.port());
    lab.tandem(&["cp", "-rp", &text(&from), &near_at]).expect_success("tandem cp into a volume");
    join(&lab, &near, "v", "reader", proxy.port());
    join(&lab, &far, "w", "writer", far.port());

    proxy.harm(Harm { rate: 16 << 20, ..Harm::default() });
    let mut command = lab.command("tandem");
    // The secrets of the storage daemons are somebody else's here.
    command.env("TANDEM_RUNTIME_DIR", lab.new_dir("nobody's"));
    let source = format!("127.0.0.1:{}:/v/from", proxy.port());
    command.args(["cp", "-rp", &source, &format!("127.0.0.1:{}:/w/", far.port())]);
    let mut copy = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
    let carried = |at_least: u64| assert!(eventually(seconds(30), || proxy.carried() >= at_least), "it came to a stop");
    carried(10 << 20);
    near.kill();
    near.restart();
    carried(22 << 20);
    far.kill();
    far.restart();
    let ended = copy.wait().expect("ended");
    let mut said = String::new();
    copy.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(ended.success(), "{said}");
    assert_same(&from, &far.tree("w").join("from"));
    let twice = proxy.carried() - size as u64;
    assert!(twice < 2 * (10 << 20), "{twice} bytes came twice");
    // What a reader may not: into the volume that it reads.
    let refused = lab
        .command("tandem")
        .env("TANDEM_RUNTIME_DIR", lab.path("nobody's"))
        .args(["cp", &text(&from.join("big")), &source])
        .output()
        .expect("runs");
    assert!(!refused.status.success(), "{refused:?}");
}

#[test]
fn a_copy_onto_a_disk_that_is_full_says_so_and_goes_on_when_there_is_room() {
    let Some(lab) = Lab::new("cp-full") else { return };
    for part in ["space", "full", "a copy into a volume ended", "os error 28", "No space left", "index"] {
        lab.allow(part, "its disk is full");
    }
    let disk = lab.new_dir("disk");
    let mount = |options: &str| {
        let ran = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&disk).status();
        ran.is_ok_and(|status| status.success())
    };
    if !mount("size=112m") {
        eprintln!("SKIPPED cp-full: a tmpfs cannot be mounted here");
        return;
    }
    let _unmount = Unmount(disk.clone());
    let far = Storage::start_in(&lab, "far", &disk.join("data"));
    let from = lab.path("big");
    fs::write(&from, numbered(120 << 20)).expect("writable");
    let to = format!("127.0.0.1:{}:/w/", far.port());
    let mut copy = lab.command("tandem");
    copy.args(["cp", "-p", &text(&from), &to]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut copy = copy.spawn().expect("started");
    let room = || rustix::fs::statvfs(&disk).expect("mounted").f_bavail;
    assert!(eventually(seconds(30), || room() == 0), "it fills the disk");
    assert!(!far.tree("w").join("big").exists(), "no name before it is whole");
    assert!(mount("remount,size=400m"));
    // It had failed, and says what to do; or it waited, and went on by itself.
    let went_on = copy.wait().expect("ended").success();
    let mut said = String::new();
    copy.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(went_on || said.contains("make room, and run the command again"), "{said}");
    let again = lab.tandem(&["cp", "-p", &text(&from), &to]).expect_success("tandem cp, with room");
    assert!(went_on || again.stdout.contains("were there already"), "{again:#?}");
    assert!(fs::read(far.tree("w").join("big")).expect("copied") == fs::read(&from).expect("there"));
}

/// Takes a file system off, lazily: its storage daemon ends with the lab.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
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
