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
