//! Names of any bytes, any depth, permissions of other users, and attributes that must arrive as they are.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    process::Command,
};

use rustix::fs::{AtFlags, Mode, OFlags};
use tandem_tests::{harness::Lab, rng::content};

use crate::support::{assert_equal_and_unmount, assert_replica_equal};

#[test]
fn names_of_any_bytes_and_any_depth_arrive() {
    let Some(lab) = Lab::new("names") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    for byte in 1..=255u8 {
        if byte != b'/' && byte != b'.' {
            fs::write(mount.path().join(OsStr::from_bytes(&[byte])), [byte]).expect("any byte but NUL and slash");
        }
    }
    fs::write(mount.path().join(OsStr::from_bytes(&[0xff; 255])), "longest").expect("255 bytes");
    fs::write(mount.path().join(OsStr::from_bytes(&[b'x'; 256])), "").expect_err("256 bytes are too many");
    // 200 directories with names of 60 bytes: 12,000 bytes of path, which no call takes at once.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(mount.path(), flags, Mode::empty()).expect("the mount serves");
    for level in 0..200 {
        let name = format!("{level:-<60}");
        rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).expect("any depth");
        at = rustix::fs::openat(&at, &name, flags, Mode::empty()).expect("just made");
    }
    let file = rustix::fs::openat(&at, "bottom", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644));
    File::from(file.expect("any depth")).write_all(b"deep").expect("writable");
    drop(at);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn names_that_are_asked_for_in_order_mean_what_they_mean_when_they_are_asked_for() {
    let Some(lab) = Lab::new("in-order") else { return };
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    let name = |at: usize| format!("{at:04}");
    for at in 0..500 {
        fs::write(folder.join(name(at)), content(at as u64, at)).expect("writable");
    }
    // The kernel knows none of them yet, so each is asked for; and the daemon may have looked at the next one before.
    let mount = lab.mount(&storage, "vol", &folder);
    let mut removed = 0;
    for at in 0..500 {
        let next = mount.path().join(name(at + 1));
        let found = fs::symlink_metadata(mount.path().join(name(at)));
        match (at % 50).checked_sub(40) {
            Some(0) => fs::remove_file(&next).expect("there"),
            Some(1) => {
                assert_eq!(found.expect_err("removed").raw_os_error(), Some(libc::ENOENT));
                removed += 1;
                continue;
            }
            Some(2) => fs::rename(mount.path().join(name(at - 2)), &next).expect("there"),
            Some(3) => {
                assert_eq!(found.expect("renamed").len(), at as u64 - 3, "{at}");
                continue;
            }
            Some(4) => File::options().append(true).open(&next).expect("there").write_all(b"more").expect("writable"),
            Some(5) => {
                assert_eq!(found.expect("there").len(), at as u64 + 4, "{at}");
                continue;
            }
            _ => {}
        }
        assert_eq!(found.expect("there").len(), at as u64, "{at}");
    }
    assert_eq!(removed, 10);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn file_that_is_open_while_it_is_renamed_or_unlinked_stays_usable() {
    let Some(lab) = Lab::new("open-files") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let at = |name: &str| mount.path().join(name);
    let open = |name: &str| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(at(name));
    let mut moved = open("moved").expect("writable");
    let mut gone = open("gone").expect("writable");
    let replaced = open("replaced").expect("writable");
    gone.write_all(b"before").expect("writable");
    fs::create_dir(at("d")).expect("new");
    fs::rename(at("moved"), at("d/elsewhere")).expect("renamed while open");
    moved.write_all(b"written after the rename").expect("still open");
    fs::remove_file(at("gone")).expect("unlinked while open");
    gone.write_all(b" and after").expect("still open");
    gone.seek(SeekFrom::Start(0)).expect("still open");
    let mut text = String::new();
    gone.read_to_string(&mut text).expect("still open");
    assert_eq!(text, "before and after");
    gone.set_len(3).expect("still open");
    assert_eq!(gone.metadata().expect("still open").len(), 3);
    assert_eq!(gone.metadata().expect("still open").nlink(), 0);
    fs::write(at("new"), "wins").expect("writable");
    fs::rename(at("new"), at("replaced")).expect("renamed over an open file");
    replaced.write_all_at(b"into the nameless one", 0).expect("still open");
    fs::rename(at("d"), at("e")).expect("a directory that is written into");
    moved.write_all(b" and after the directory's").expect("still open");
    drop((moved, gone, replaced));
    assert_eq!(fs::read_to_string(at("replaced")).expect("readable"), "wins");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn other_users_work_with_their_own_rights() {
    let Some(lab) = Lab::new("users") else { return };
    let storage = lab.storage();
    // The way there must be open to others; the lab's own directory is private.
    fs::set_permissions(lab.root(), fs::Permissions::from_mode(0o755)).expect("own directory");
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o1777)).expect("own directory");
    fs::write(mount.path().join("secret"), "of root").expect("writable");
    fs::set_permissions(mount.path().join("secret"), fs::Permissions::from_mode(0o600)).expect("own file");
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(mount.path()).uid(12345).gid(12345);
        command.output().expect("sh is there")
    };
    let output =
        shell("umask 027; echo hello > mine && mkdir dir && echo x > dir/f && ln mine dir/l && chmod 4755 mine");
    assert!(output.status.success(), "{output:?}");
    assert!(!shell("cat secret").status.success(), "others may not read it");
    assert!(!shell("rm -f secret && test ! -e secret").status.success(), "the sticky bit keeps it");
    assert!(!shell("chown 1 mine").status.success(), "only root may give files away");
    let mine = fs::metadata(mount.path().join("mine")).expect("made");
    assert_eq!((mine.uid(), mine.gid(), mine.mode() & 0o7777), (12345, 12345, 0o4755));
    // A write of somebody who is not root takes setuid away.
    assert!(shell("echo more >> mine").status.success());
    assert_eq!(fs::metadata(mount.path().join("mine")).expect("made").mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(mount.path().join("dir")).expect("made").mode() & 0o7777, 0o750);
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn attributes_of_all_kinds_arrive_exactly() {
    let Some(lab) = Lab::new("attributes") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let script = "set -e
        mkdir d; setfacl -d -m u:1001:rwx,g:1002:rx d; setfacl -m u:1003:r d
        touch d/inherits; mkdir d/also; touch d/also/deeper
        echo x > f; setfacl -m u:1001:rw f; setfattr -n user.k -v v f; setfattr -n user.empty f; setfattr -n trusted.t -v t f
        setfattr -n user.gone -v v f; setfattr -x user.gone f
        setfattr -h -n trusted.link -v l f; chown 1:2 f; chmod 2751 f
        ln -s f s; chown -h 3:4 s; touch -h -d @1.5 s
        touch -d @-5.000000001 old; touch -d @4000000000.999999999 late
        mknod c c 1 3; mknod b b 7 99; mkfifo p; chmod 1777 d
        printf abc > t; touch -d @1000000000.123456789 t; touch -d @1000000001.5 d";
    let output = Command::new("sh").args(["-c", script]).current_dir(mount.path()).output().expect("sh is there");
    assert!(output.status.success(), "{output:?}");
    let seen = assert_replica_equal(&mount, &storage, "vol");
    assert_eq!(seen.objects, 12, "{seen:?}");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn holes_ranges_and_appends_arrive_exactly() {
    let Some(lab) = Lab::new("extents") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let path = mount.path().join("f");
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&path).expect("writable");
    file.set_len(1 << 40).expect("a TiB of nothing");
    file.write_all_at(b"end", (1 << 40) - 3).expect("writable");
    file.write_all_at(&content(1, 1 << 20), 5 << 30).expect("writable");
    let script = "set -e
        fallocate -p -o 5368709120 -l 100000 f
        fallocate -z -o 5368909120 -l 4097 f
        fallocate -l 300000 g; printf x >> g; truncate -s 100000 g; truncate -s 200000 g; printf yy >> g
        fallocate -z -n -o 150000 -l 200000 g
        cp --reflink=never --sparse=always g h; cat g >> h; dd if=g of=i bs=5000 seek=7 conv=notrunc status=none";
    let output = Command::new("sh").args(["-c", script]).current_dir(mount.path()).output().expect("sh is there");
    assert!(output.status.success(), "{output:?}");
    drop(file);
    assert_replica_equal(&mount, &storage, "vol");
    let replica = fs::metadata(storage.tree("vol").join("f")).expect("on the replica");
    assert!(replica.blocks() * 512 < 16 << 20, "holes stay holes: {} blocks", replica.blocks());
    let stat = rustix::fs::statat(rustix::fs::CWD, &path, AtFlags::empty()).expect("there");
    assert_eq!(stat.st_size, 1 << 40);
    assert_equal_and_unmount(&mount, &storage, "vol");
}
