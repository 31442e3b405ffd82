//! What a volume may hold on its storage host: a quota, and special files that are in the catalog only.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, Storage, eventually},
    rng::content,
};

use crate::support::assert_replica_equal;

const SOON: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;
/// A file capability as the kernel keeps it: version 2, effective, CAP_NET_RAW.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn volume(lab: &Lab, storage: &Storage, arguments: &[&str]) -> String {
    let server = format!("127.0.0.1:{}", storage.port());
    let arguments = [&["volume"], arguments, &["--server", &server]].concat();
    lab.tandem(&arguments).expect_success("tandem volume").stdout
}

fn blocks_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.metadata().map_or(0, |metadata| metadata.blocks() * 512)).sum()
}

#[test]
fn full_volume_stops_its_writer_with_the_reason_and_goes_on_when_there_is_room() {
    let Some(lab) = Lab::new("quota") else { return };
    lab.allow("quota", "a full volume is said once");
    let storage = lab.storage();
    let said = volume(&lab, &storage, &["create", "vol", "--quota", "8MiB"]);
    assert!(said.contains("a quota of 8.0 MiB"), "{said}");
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let at = |name: &str| mount.path().join(name);
    fs::write(at("first"), content(1, 5 * MIB)).expect("writable");
    mount.settle();
    // A file that is written again and again takes no more room than once.
    for round in 0..6 {
        fs::write(at("again"), content(round, MIB)).expect("writable");
    }
    assert_replica_equal(&mount, &storage, "vol");

    fs::write(at("second"), content(2, 20 * MIB)).expect("the folder is not bounded");
    assert!(eventually(SOON, || mount.status().reason.contains("quota")), "{:?}", mount.status());
    assert_eq!(fs::read(at("second")).expect("readable"), content(2, 20 * MIB), "local work goes on");
    let shown = storage.volume("vol");
    assert_eq!((shown.quota_bytes, shown.special.as_str()), (8 << 20, "keep"));
    let held = blocks_below(&storage.tree("vol"));
    assert!(held <= (8 << 20) + (1 << 20), "the replica holds {held} bytes");

    fs::remove_file(at("second")).expect("removable");
    fs::write(at("third"), content(3, MIB)).expect("writable");
    assert_replica_equal(&mount, &storage, "vol");

    fs::write(at("fourth"), content(4, 20 * MIB)).expect("writable");
    assert!(eventually(SOON, || mount.status().reason.contains("quota")), "{:?}", mount.status());
    let said = volume(&lab, &storage, &["set", "vol", "--quota", "none"]);
    assert!(said.contains("no quota"), "{said}");
    assert_replica_equal(&mount, &storage, "vol");
    mount.unmount();
}

#[test]
fn content_that_is_replaced_within_the_quota_gets_through_a_resync_and_more_than_the_quota_does_not() {
    let Some(lab) = Lab::new("replaced") else { return };
    lab.allow("quota", "a full volume is said once");
    lab.allow_lost_peers();
    let storage = lab.storage();
    volume(&lab, &storage, &["create", "vol", "--quota", "8MiB"]);
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("window=4M"));
    let at = |name: &str| mount.path().join(name);
    fs::write(at("old"), content(1, 6 * MIB)).expect("writable");
    assert_replica_equal(&mount, &storage, "vol");

    // Nothing of it is known to the replica, and both do not fit beside each other.
    storage.daemon().terminate(SOON).expect("it ends");
    fs::write(at("new"), content(2, 6 * MIB)).expect("writable");
    fs::rename(at("new"), at("old")).expect("replaced");
    storage.restart();
    assert_replica_equal(&mount, &storage, "vol");

    // This fits beside it, and would be too much at the end.
    storage.daemon().terminate(SOON).expect("it ends");
    fs::write(at("more"), content(3, 5 * MIB)).expect("writable");
    storage.restart();
    assert!(eventually(SOON, || mount.status().reason.contains("would hold")), "{:?}", mount.status());
    assert!(!storage.tree("vol").join("more").exists(), "the replica stays as it is");
    fs::remove_file(at("more")).expect("removable");
    fs::write(at("less"), content(4, MIB)).expect("writable");
    assert_replica_equal(&mount, &storage, "vol");
    mount.unmount();
}

#[test]
fn one_volume_at_its_quota_leaves_the_others_alone() {
    let Some(lab) = Lab::new("quotas") else { return };
    lab.allow("quota", "a full volume is said once");
    let storage = Storage::start_with(&lab, "storage", &["--quota", "1MiB"]);
    volume(&lab, &storage, &["create", "roomy", "--quota", "none"]);
    let (small, roomy) =
        (lab.mount(&storage, "small", &lab.new_dir("small")), lab.mount(&storage, "roomy", &lab.new_dir("roomy")));
    fs::write(small.path().join("large"), content(1, 4 * MIB)).expect("writable");
    assert!(eventually(SOON, || small.status().reason.contains("quota")), "{:?}", small.status());
    fs::write(roomy.path().join("large"), content(2, 4 * MIB)).expect("writable");
    assert_replica_equal(&roomy, &storage, "roomy");
    storage.daemon().terminate(SOON).expect("it ends");
    storage.restart();
    assert_eq!(storage.volume("small").quota_bytes, 1 << 20, "a quota outlives the daemon");
    fs::remove_file(small.path().join("large")).expect("removable");
    assert_replica_equal(&small, &storage, "small");
    small.unmount();
    roomy.unmount();
}

#[test]
fn denied_special_files_are_in_the_catalog_and_copies_are_complete() {
    let Some(lab) = Lab::new("special") else { return };
    let storage = lab.storage();
    volume(&lab, &storage, &["create", "vol", "--special", "deny"]);
    let folder = lab.new_dir("folder");
    // What is there before the mount comes with the first sync, what is made in it as ops.
    fs::write(folder.join("early"), "program").expect("writable");
    fs::set_permissions(folder.join("early"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &folder).options("suid,dev"));
    let at = |name: &str| mount.path().join(name);
    let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(CWD, at("null"), kind, mode, rustix::fs::makedev(1, 3)).expect("a device");
    for name in ["program", "other"] {
        fs::write(at(name), "program").expect("writable");
    }
    fs::set_permissions(at("program"), fs::Permissions::from_mode(0o6711)).expect("chmod");
    rustix::fs::setxattr(at("other"), "security.capability", &NET_RAW, XattrFlags::empty()).expect("root may");
    fs::create_dir(at("shared")).expect("new name");
    fs::set_permissions(at("shared"), fs::Permissions::from_mode(0o2775)).expect("chmod");
    mount.settle();

    let tree = storage.tree("vol");
    let mode = |name: &str| fs::symlink_metadata(tree.join(name)).expect("there").mode() & 0o7777;
    assert!(!fs::symlink_metadata(tree.join("null")).expect("a name").file_type().is_char_device());
    assert_eq!((mode("program"), mode("early"), mode("shared")), (0o711, 0o755, 0o2775));
    let mut value = [0; 64];
    assert!(
        rustix::fs::getxattr(tree.join("other"), "security.capability", &mut value).is_err(),
        "no capability there"
    );
    assert_eq!(storage.volume("vol").special, "deny");

    let path = mount.path().to_str().expect("plain text");
    lab.tandem(&["verify", "--now", path]).expect_success("verify counts them equal");
    let (to, server) = (lab.path("copy"), format!("127.0.0.1:{}", storage.port()));
    lab.tandem(&["clone", "vol", to.to_str().expect("plain text"), "--server", &server]).expect_success("clone");
    compare::assert_equal(mount.path(), &to);
    mount.unmount();
}

#[test]
fn rights_that_are_in_the_tree_follow_a_change_of_special_also_over_a_restart() {
    let Some(lab) = Lab::new("review") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &lab.new_dir("folder")).options("suid,dev"));
    let at = |name: &str| mount.path().join(name);
    for number in 0..150 {
        fs::write(at(&format!("plain-{number}")), "text").expect("writable");
    }
    for name in ["program", "other"] {
        fs::write(at(name), "program").expect("writable");
    }
    fs::set_permissions(at("program"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    rustix::fs::setxattr(at("other"), "security.capability", &NET_RAW, XattrFlags::empty()).expect("root may");
    assert_replica_equal(&mount, &storage, "vol");
    let tree = storage.tree("vol");
    let gives_rights = || {
        let mode = fs::symlink_metadata(tree.join("program")).expect("there").mode();
        let capable = rustix::fs::getxattr(tree.join("other"), "security.capability", &mut [0; 64]).is_ok();
        (mode & 0o6000 != 0, capable)
    };
    assert_eq!(gives_rights(), (true, true));

    volume(&lab, &storage, &["set", "vol", "--special", "deny"]);
    storage.kill();
    storage.restart();
    assert!(eventually(SOON, || gives_rights() == (false, false)), "{:?}", gives_rights());
    mount.settle();
    lab.tandem(&["verify", "--now", mount.path().to_str().expect("plain text")]).expect_success("they count as equal");
    let marker = tree.with_file_name("settings.review");
    assert!(eventually(SOON, || !marker.exists()), "it is done");

    volume(&lab, &storage, &["set", "vol", "--special", "keep"]);
    assert!(eventually(SOON, || gives_rights() == (true, true)), "{:?}", gives_rights());
    assert_replica_equal(&mount, &storage, "vol");
    mount.unmount();
}

#[test]
fn storage_daemon_gives_up_what_it_does_not_need() {
    let Some(lab) = Lab::new("confined") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("file"), "data").expect("writable");
    assert_replica_equal(&mount, &storage, "vol");
    let log = storage.daemon().log_text();
    if log.contains("no Landlock") {
        eprintln!("SKIPPED: this kernel has no Landlock");
        return;
    }
    assert!(log.contains("shut out of everything but its own directories"), "{log}");
    mount.unmount();
}
