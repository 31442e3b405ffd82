//! The real tree: what stands in the file system, seen by the standard library.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use tandem_proto::{
    op::{NodeKind, Timestamp},
    stage::NodeType,
};

use super::FsTree;
use crate::tree::{Area, ReplicaTree};

fn tree() -> (tempfile::TempDir, FsTree) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let tree = FsTree::open(directory.path()).expect("open");
    (directory, tree)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_volume_whose_areas_are_links_is_not_opened_and_nothing_is_made_where_they_lead() {
    for (link, area) in [("tree", "tree"), ("staging", "staging/files"), ("history", "history")] {
        let (directory, outside) = (tempfile::tempdir().expect("inside"), tempfile::tempdir().expect("outside"));
        std::os::unix::fs::symlink(outside.path(), directory.path().join(link)).expect("a link");
        let error = FsTree::open(directory.path()).err().expect("refused").to_string();
        assert!(error.contains(area) && error.contains("symbolic link"), "{error}");
        assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 0);
    }
}

#[test]
fn symlinks_get_owner_time_and_attributes_of_their_own() {
    let (directory, tree) = tree();
    let root = tree.area(Area::Tree);
    std::fs::write(directory.path().join("tree/target"), "x").expect("write");
    let before = std::fs::metadata(directory.path().join("tree/target")).expect("stat");
    let kind = NodeKind::Symlink("target".into());
    let (identity, node) = tree.create(&root, b"link", &kind).expect("create");
    let node = node.expect("a node");
    tree.set_mtime(&node, Timestamp { seconds: 12, nanos: 34 }).expect("time");
    if is_root() {
        tree.set_owner(&node, Some(7), Some(8)).expect("owner");
        tree.set_xattr(&node, b"trusted.note", b"value").expect("set");
        assert_eq!(tree.xattr(&node, b"trusted.note").expect("get").as_deref(), Some(&b"value"[..]));
        assert_eq!(tree.list_xattrs(&node).expect("list"), ["trusted.note"]);
    }
    let link = std::fs::symlink_metadata(directory.path().join("tree/link")).expect("stat");
    assert_eq!((link.mtime(), link.mtime_nsec()), (12, 34));
    if is_root() {
        assert_eq!((link.uid(), link.gid()), (7, 8));
    }
    let after = std::fs::metadata(directory.path().join("tree/target")).expect("stat");
    assert_eq!((before.mtime_nsec(), before.uid()), (after.mtime_nsec(), after.uid()), "the target is untouched");
    let found = tree.find(&root, b"link").expect("find").expect("there");
    assert_eq!((found.identity, found.node_type), (identity.clone(), NodeType::Symlink));
    let opened = tree.open(&root, b"link", NodeType::Symlink).expect("open");
    assert_eq!(tree.identity(&opened).expect("identity"), identity);
}

#[test]
fn special_files_are_created_with_mode_and_time() {
    let (directory, tree) = tree();
    let root = tree.area(Area::Tree);
    let mut kinds = vec![("fifo", NodeKind::Fifo), ("socket", NodeKind::Socket)];
    if is_root() {
        kinds.push(("char", NodeKind::CharDevice { major: 1, minor: 3 }));
        kinds.push(("block", NodeKind::BlockDevice { major: 7, minor: 300 }));
    }
    for (name, kind) in kinds {
        let (_, node) = match tree.create(&root, name.as_bytes(), &kind) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => continue,
            answer => answer.expect("create"),
        };
        let node = node.expect("a node");
        tree.set_mode(&node, 0o641).expect("mode");
        tree.set_mtime(&node, Timestamp { seconds: -5, nanos: 7 }).expect("time");
        let is = std::fs::symlink_metadata(directory.path().join("tree").join(name)).expect("stat");
        assert_eq!((is.mode() & 0o7777, is.mtime(), is.mtime_nsec()), (0o641, -5, 7), "{name}");
        assert_eq!(tree.find(&root, name.as_bytes()).expect("find").expect("there").node_type, kind.node_type());
        if let NodeKind::BlockDevice { major, minor } = kind {
            assert_eq!(is.rdev(), rustix::fs::makedev(major, minor));
            assert!(is.file_type().is_block_device());
        }
    }
}

#[test]
fn identity_survives_a_rename_and_is_not_reused() {
    let (_directory, tree) = tree();
    let root = tree.area(Area::Tree);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let (identity, _) = tree.create(&root, b"a", &NodeKind::Regular).expect("create");
        tree.rename(&root, b"a", &tree.area(Area::Parked), b"b").expect("rename");
        let found = tree.find(&tree.area(Area::Parked), b"b").expect("find").expect("there");
        assert_eq!(found.identity, identity);
        tree.unlink(&tree.area(Area::Parked), b"b").expect("unlink");
        assert!(seen.insert(identity), "an identity came back");
    }
}

#[test]
fn a_hole_keeps_the_size_and_frees_blocks() {
    let (directory, tree) = tree();
    let root = tree.area(Area::Tree);
    let node = tree.create(&root, b"a", &NodeKind::Regular).expect("create").1.expect("a node");
    tree.write_at(&node, 0, &vec![7; 1 << 20]).expect("write");
    tree.punch(&node, 4096, 1 << 30).expect("punch");
    tree.punch(&node, 1 << 40, 5).expect("beyond the end");
    tree.set_size(&node, 1 << 40).expect("grow");
    let is = std::fs::metadata(directory.path().join("tree/a")).expect("stat");
    assert_eq!(is.len(), 1 << 40);
    assert_eq!(tree.next_data(&node, 0).expect("seek").map(|(start, _)| start), Some(0));
    assert_eq!(tree.next_data(&node, 2 << 20).expect("seek"), None);
    tree.write_at(&node, (1 << 40) + 5, &[0; 3]).expect("zeroes are data and grow the file");
    assert_eq!(tree.stat(&node).expect("stat").size, (1 << 40) + 8);
}

#[test]
fn nothing_follows_a_symlink_out_of_the_tree() {
    let (directory, tree) = tree();
    std::fs::create_dir(directory.path().join("outside")).expect("mkdir");
    std::os::unix::fs::symlink("../outside", directory.path().join("tree/dir")).expect("symlink");
    std::os::unix::fs::symlink("../outside/file", directory.path().join("tree/file")).expect("symlink");
    let root = tree.area(Area::Tree);
    assert!(tree.open(&root, b"dir", NodeType::Directory).is_err());
    assert!(tree.open(&root, b"file", NodeType::Regular).is_err());
    assert!(tree.open(&root, b"..", NodeType::Directory).is_err());
    assert!(tree.create(&root, b"file", &NodeKind::Regular).is_err());
}

#[test]
fn a_new_object_has_no_acl_of_its_directory() {
    let (directory, tree) = tree();
    let root = tree.area(Area::Tree);
    // version 2; user::rwx, user:5:rwx, group::r-x, mask::rwx, other::---
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, id) in [(1u16, 7u16, u32::MAX), (2, 7, 5), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    if tree.set_xattr(&root, b"system.posix_acl_default", &acl).is_err() {
        eprintln!("skipped: the file system of the temporary directory has no ACLs");
        return;
    }
    for kind in [NodeKind::Regular, NodeKind::Directory, NodeKind::Fifo] {
        let name = format!("{:?}", kind.node_type());
        let node = tree.create(&root, name.as_bytes(), &kind).expect("create").1.expect("a node");
        assert_eq!(tree.list_xattrs(&node).expect("list"), Vec::<bytes::Bytes>::new(), "{name}");
        tree.set_xattr(&node, b"system.posix_acl_access", &acl).expect("set");
        tree.set_mode(&node, 0o640).expect("mode");
        let mode = std::fs::metadata(directory.path().join("tree").join(&name)).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640, "{name}");
    }
}

#[test]
fn a_name_that_the_file_system_does_not_take_is_cut_and_told_from_others() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let tree = FsTree::open_with_names_of(directory.path(), 64).expect("opened");
    let root = tree.area(Area::Tree);
    let long = |last: u8| [vec![b'n'; 200], vec![last]].concat();
    let mut identities = Vec::new();
    for last in [b'a', b'b'] {
        identities.push(tree.create(&root, &long(last), &NodeKind::Regular).expect("made").0);
    }
    assert_ne!(identities[0], identities[1]);
    let listed = tree.list(&root).expect("listed");
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|(name, _)| name.len() == 64 && name.starts_with(b"nnn")), "{listed:?}");
    // What is listed can be used as it is.
    for (name, node_type) in &listed {
        tree.open(&root, name, *node_type).expect("opened");
    }
    tree.rename(&root, &long(b'a'), &root, &long(b'c')).expect("renamed");
    assert_eq!(tree.find(&root, &long(b'a')).expect("looked"), None);
    assert_eq!(tree.find(&root, &long(b'c')).expect("looked").map(|found| found.identity), Some(identities[0].clone()));
    tree.link(&root, &long(b'c'), &root, b"short").expect("linked");
    tree.unlink(&root, &long(b'c')).expect("removed");
    tree.unlink(&root, &long(b'b')).expect("removed");
    assert_eq!(tree.list(&root).expect("listed").len(), 1);
}
