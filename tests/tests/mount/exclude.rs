//! `-o exclude=GLOB`: what matches stays local, whatever is done to it, and the rest is replicated as ever.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use tandem_tests::harness::{Lab, Mount, MountSpec, Storage};

use crate::support::{assert_rsync_sees_nothing, files_below};

/// Names below a directory, without it.
fn names(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        files_below(dir).iter().map(|path| path.strip_prefix(dir).expect("below").to_owned()).collect();
    found.sort();
    found
}

fn assert_only_the_rest(mount: &Mount, storage: &Storage, local: &[&str]) {
    mount.settle();
    let (mut here, there) = (names(mount.path()), names(&storage.tree("vol")));
    for name in local {
        assert!(here.contains(&PathBuf::from(name)), "{name} is still here: {here:?}");
    }
    here.retain(|path| !local.contains(&path.to_str().expect("plain")));
    assert_eq!(here, there);
    for path in &there {
        let (here, there) = (mount.path().join(path), storage.tree("vol").join(path));
        assert!(fs::read(&here).expect("readable") == fs::read(&there).expect("readable"), "{path:?}");
    }
}

#[test]
fn what_is_excluded_stays_local_and_a_rename_across_the_border_creates_or_deletes() {
    let Some(lab) = Lab::new("exclude") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    for sub in ["build/deep", "src/cache", "docs"] {
        fs::create_dir_all(dir.join(sub)).expect("new");
    }
    for path in ["build/deep/x", "src/a.o", "src/a.c", "src/cache/page", "docs/build"] {
        fs::write(dir.join(path), path).expect("new");
    }
    let spec = MountSpec::new(&storage, "vol", &dir).options("exclude=*.o,exclude=/build,exclude=cache/");
    let mount = lab.mount_with(&spec);
    let at = |path: &str| mount.path().join(path);
    let local = ["build/deep/x", "src/a.o", "src/cache/page"];
    assert_only_the_rest(&mount, &storage, &local);
    assert!(!storage.tree("vol").join("build").exists() && !storage.tree("vol").join("src/cache").exists());

    // Everything that can be done to what is excluded.
    File::options().append(true).open(at("src/a.o")).and_then(|mut file| file.write_all(b"more")).expect("writable");
    fs::write(at("src/b.o"), "new").expect("writable");
    fs::create_dir(at("build/made")).expect("writable");
    fs::write(at("build/made/y"), "new").expect("writable");
    fs::rename(at("build/made/y"), at("build/y")).expect("within");
    fs::remove_dir(at("build/made")).expect("empty");
    fs::rename(at("src/b.o"), at("docs/c.o")).expect("within");
    fs::hard_link(at("build/y"), at("build/z")).expect("within");
    rustix::fs::setxattr(at("build/y"), "user.x", b"1", rustix::fs::XattrFlags::empty()).expect("known");
    fs::remove_file(at("build/z")).expect("there");
    let local = ["build/deep/x", "build/y", "src/a.o", "docs/c.o", "src/cache/page"];
    assert_only_the_rest(&mount, &storage, &local);

    // Across the border: a delete, a create with all content, and what is written afterwards.
    fs::rename(at("src/a.c"), at("src/gone.o")).expect("out");
    fs::write(at("src/gone.o"), "not seen").expect("writable");
    fs::rename(at("docs/c.o"), at("docs/come")).expect("in");
    let mut come = File::options().append(true).open(at("docs/come")).expect("writable");
    come.write_all(b" and more").expect("writable");
    come.sync_all().expect("synced");
    drop(come);
    let local = ["build/deep/x", "build/y", "src/a.o", "src/gone.o", "src/cache/page"];
    assert_only_the_rest(&mount, &storage, &local);
    assert_eq!(fs::read_to_string(storage.tree("vol").join("docs/come")).expect("sent"), "new and more");

    // A directory and a link do not cross; programs copy then.
    let crosses = fs::rename(at("docs"), at("build/docs")).expect_err("refused");
    assert_eq!(crosses.raw_os_error(), Some(libc::EXDEV));
    let crosses = fs::hard_link(at("docs/come"), at("docs/come.o")).expect_err("refused");
    assert_eq!(crosses.raw_os_error(), Some(libc::EXDEV));
    let moved =
        std::process::Command::new("mv").args([at("docs"), at("build/docs")]).status().expect("mv is installed");
    assert!(moved.success() && !storage.tree("vol").join("build").exists());
    mount.settle();
    assert!(!storage.tree("vol").join("docs").exists());

    // A verify honours it, and a mount without the patterns sends what was local.
    let said = lab.tandem(&["verify", "--now", mount.path().to_str().expect("plain")]);
    assert_eq!(said.code, Some(0), "{said:#?}");
    assert_eq!(mount.status().excludes, ["*.o", "/build", "cache/"]);
    mount.unmount();
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &dir));
    mount.settle();
    assert_rsync_sees_nothing(mount.path(), &storage.tree("vol"));
}
