//! What xfs does otherwise than ext4, seen through a mount.

use std::fs;

use rustix::fs::{CWD, RenameFlags};
use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, Storage},
    trials::image::{FileSystem, Image},
};

/// xfs gives a directory a new mtime when an exchange gives it another parent; on the replica that may be xfs as well, or not.
#[test]
fn directories_exchanged_on_xfs_have_equal_times_on_the_replica() {
    let disk = tempfile::tempdir().expect("a temporary directory");
    let image = match Image::new(FileSystem::Xfs, &disk.path().join("image"), 1 << 30, &disk.path().join("mount")) {
        Ok(image) => image,
        Err(why) => return eprintln!("SKIPPED exchange on xfs: {why}"),
    };
    let Some(lab) = Lab::new("exchange") else { return };
    lab.allow_lost_peers();
    let storage = Storage::start_in(&lab, "storage", &image.dir().join("data"));
    let folder = image.dir().join("folder");
    fs::create_dir(&folder).expect("writable");
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &folder));
    for dir in ["a", "b", "a/x", "b/y", "a/x/inner"] {
        fs::create_dir(folder.join(dir)).expect("writable");
    }
    fs::write(folder.join("b/file"), "1").expect("writable");
    mount.settle();
    let exchange = |one: &str, other: &str| {
        let swapped = rustix::fs::renameat_with(CWD, folder.join(one), CWD, folder.join(other), RenameFlags::EXCHANGE);
        swapped.expect("both are there");
        mount.settle();
        compare::assert_equal(&folder, &storage.tree("vol"));
    };
    exchange("a/x", "b/y");
    exchange("a/x", "b/file");
    storage.kill();
    storage.restart();
    exchange("a/x", "b/file");
    mount.unmount();
    compare::assert_equal(&folder, &storage.tree("vol"));
}

/// xfs lists each ACL a second time as `trusted.SGI_ACL_*`; a copy of that, sent beside the ACL, would bring an older ACL back.
#[test]
fn access_lists_on_xfs_follow_a_change_of_mode() {
    let disk = tempfile::tempdir().expect("a temporary directory");
    let image = match Image::new(FileSystem::Xfs, &disk.path().join("image"), 1 << 30, &disk.path().join("mount")) {
        Ok(image) => image,
        Err(why) => return eprintln!("SKIPPED access lists on xfs: {why}"),
    };
    let Some(lab) = Lab::new("acl") else { return };
    lab.allow_lost_peers();
    let storage = Storage::start_in(&lab, "storage", &image.dir().join("data"));
    let folder = image.dir().join("folder");
    fs::create_dir(&folder).expect("writable");
    fs::write(folder.join("before"), "1").expect("writable");
    let acl = |path: &str, mask: u8| {
        let entry = |tag: u8, perm: u8, id: u32| [&[tag, 0, perm, 0][..], &id.to_le_bytes()].concat();
        let value = [
            &[2, 0, 0, 0][..],
            &entry(1, 7, u32::MAX),
            &entry(2, 6, 1000),
            &entry(4, 5, u32::MAX),
            &entry(0x10, mask, u32::MAX),
            &entry(0x20, 4, u32::MAX),
        ];
        let set = rustix::fs::setxattr(
            folder.join(path),
            "system.posix_acl_access",
            &value.concat(),
            rustix::fs::XattrFlags::empty(),
        );
        set.expect("xfs has ACLs");
    };
    acl("before", 7);
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &folder));
    fs::write(folder.join("after"), "2").expect("writable");
    acl("after", 7);
    mount.settle();
    compare::assert_equal(&folder, &storage.tree("vol"));
    for file in ["before", "after"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        fs::set_permissions(folder.join(file), mode).expect("own file");
    }
    mount.settle();
    compare::assert_equal(&folder, &storage.tree("vol"));
    // The last changes come by a resync, which assigns complete sets.
    storage.kill();
    acl("before", 3);
    mount.kill();
    storage.restart();
    mount.start_again().expect("mounted again");
    mount.settle();
    mount.unmount();
    compare::assert_equal(&folder, &storage.tree("vol"));
}
