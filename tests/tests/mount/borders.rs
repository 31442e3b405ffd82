//! Where the volume ends within the folder: nested mounts and subvolumes are no part of it, and `status` says so.

use std::{fs, path::Path, process::Command};

use rustix::mount::{MountFlags, UnmountFlags};
use tandem_tests::harness::{Lab, Mount, eventually, seconds};

use crate::support::{Image, assert_equal_and_unmount, assert_replica_equal};

fn not_crossed(mount: &Mount) -> Vec<String> {
    mount.status().not_crossed
}

fn shown(path: &Path) -> String {
    path.to_str().expect("plain").to_owned()
}

#[test]
fn subvolumes_are_left_out_and_listed() {
    let Some(lab) = Lab::new("subvolumes") else { return };
    let Some(image) = Image::new(&lab, &["mkfs.btrfs", "-q"]) else { return };
    let storage = lab.storage();
    let folder = image.mountpoint.join("folder");
    fs::create_dir_all(folder.join("deep/er")).expect("new");
    let subvolume = |verb: &str, path: &Path| {
        let output = Command::new("btrfs").args(["-q", "subvolume", verb]).arg(path).output().expect("btrfs-progs");
        assert!(output.status.success(), "{output:?}");
    };
    let inner = folder.join("deep/er/inner");
    subvolume("create", &inner);
    fs::write(inner.join("apart"), "not of the volume").expect("writable");
    fs::write(folder.join("deep/file"), "of the volume").expect("writable");
    let mount = lab.mount(&storage, "vol", &folder);
    mount.settle();
    assert_eq!(not_crossed(&mount), [shown(&inner)], "seen by the first sync");
    assert!(!mount.path().join("deep/er/inner").exists(), "not on the mount");
    assert!(!storage.tree("vol").join("deep/er/inner").exists(), "not on the replica");

    // It is named where it is now.
    fs::rename(mount.path().join("deep"), mount.path().join("moved")).expect("what holds it can be renamed");
    assert_eq!(not_crossed(&mount), [shown(&folder.join("moved/er/inner"))]);
    let error = fs::remove_dir(mount.path().join("moved/er")).expect_err("not empty below");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
    assert_replica_equal(&mount, &storage, "vol");
    mount.unmount();
    drop(mount);
    let kept = folder.join("moved/er/inner");
    assert_eq!(fs::read_to_string(kept.join("apart")).expect("untouched"), "not of the volume");

    let mount = lab.mount(&storage, "vol", &folder);
    // Beneath the mount, which is over the folder.
    assert!(fs::read_dir(mount.path().join("moved/er")).expect("a directory").next().is_none(), "not listed either");
    assert_eq!(not_crossed(&mount), [shown(&kept)], "seen by who listed the directory");
    mount.unmount();
    drop(mount);
    subvolume("delete", &kept);
    let mount = lab.mount(&storage, "vol", &folder);
    mount.settle();
    assert!(not_crossed(&mount).is_empty());
    assert_equal_and_unmount(&mount, &storage, "vol");
}

/// Root's daemon holds the folder by a mount of its own: beneath a nested mount it sees the directory, which is part of the folder.
#[test]
fn beneath_a_nested_mount_the_directory_is_part_of_the_volume() {
    let Some(lab) = Lab::new("nested") else { return };
    let storage = lab.storage();
    let folder = lab.new_dir("folder");
    let nested = folder.join("nested");
    fs::create_dir(&nested).expect("new");
    fs::write(nested.join("beneath"), "of the folder").expect("writable");
    rustix::mount::mount("none", &nested, "tmpfs", MountFlags::empty(), None).expect("root mounts");
    let unmount = Unmount(&nested);
    fs::write(nested.join("above"), "of the other").expect("writable");
    let spec = tandem_tests::harness::MountSpec::new(&storage, "vol", &lab.new_dir("mountpoint"));
    let mount = lab.mount_with(&spec.options(&format!("backing={}", folder.display())));
    mount.settle();
    assert_eq!(not_crossed(&mount), [shown(&nested)]);
    assert!(!mount.path().join("nested/above").exists(), "what is mounted there is not crossed");
    let read = |root: &Path| fs::read_to_string(root.join("nested/beneath")).expect("of the folder");
    assert_eq!(read(mount.path()), "of the folder");
    assert_eq!(read(&storage.tree("vol")), "of the folder");
    drop(unmount);
    assert!(eventually(seconds(10), || not_crossed(&mount).is_empty()));
    assert_replica_equal(&mount, &storage, "vol");
    mount.unmount();
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
    }
}
