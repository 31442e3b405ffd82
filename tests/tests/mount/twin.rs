//! The same operations on a mount and on a plain directory: the same results, the same trees, and the replica equal to both.

use std::{path::Path, time::Instant};

use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, seconds},
    storm::{Shape, differential},
};

/// Seeds from `TANDEM_TEST_SEED` on, at least so many, for as long as the test may take. `mtime`: the mount shows the times that the
/// folder has. `inode_flags`: what chattr may set.
fn run(options: &str, seeds: u64, mtime: bool, inode_flags: &'static [u32]) {
    let Some(lab) = Lab::new("twin") else { return };
    let storage = lab.storage();
    let [folder, shown, plain] = ["folder", "shown", "plain"].map(|name| lab.new_dir(name));
    let spec = MountSpec::new(&storage, "vol", &shown);
    let mount = lab.mount_with(&spec.options(&format!("{options},backing={}", folder.display())));
    let begin = Instant::now();
    let first: u64 = std::env::var("TANDEM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut seed = first;
    let shape = Shape::default();
    let shape = Shape { inode_flags: if shape.privileged { inode_flags } else { &[] }, ..shape };
    while seed < first + seeds || begin.elapsed() < seconds(3) {
        if let Err(divergence) = differential::run(mount.path(), &plain, seed, 2500, shape.clone()) {
            panic!("TANDEM_TEST_SEED={first}, seed {seed}, {options} (left is the mount): {divergence}");
        }
        let same = |left: &Path, right: &Path, mtime| {
            let seen = compare::trees(left, right, &compare::Options { mtime, limit: 20 }).expect("both can be read");
            let [one, other] = [left, right].map(Path::display);
            assert!(seen.differences.is_empty(), "seed {seed}: {one} and {other} differ:\n{}", seen.report());
        };
        same(mount.path(), &plain, false);
        mount.settle();
        same(&folder, &storage.tree("vol"), true);
        same(mount.path(), &folder, mtime);
        seed += 1;
    }
    println!("{options}: {} seeds, equal", seed - first);
    mount.unmount();
    compare::assert_equal(&folder, &storage.tree("vol"));
}

#[test]
fn mount_answers_as_a_plain_directory_does() {
    // None, immutable, append-only, synchronous, no dump, no atime, synchronous directory, some of them.
    run("cache=strict", 3, true, &[0, 0x10, 0x20, 0x08, 0x40, 0x80, 0x1_0000, 0xC8]);
}

#[test]
fn mount_whose_files_the_kernel_reads_itself_answers_as_a_plain_directory_does() {
    run("passthrough=/", 2, true, &[0, 0x10, 0x20, 0x08, 0x40, 0x80, 0x1_0000, 0xC8]);
}

#[test]
fn mount_with_the_kernels_write_cache_answers_as_a_plain_directory_does() {
    // Within one tick of its clock the kernel takes a time of its own for the one that the folder has.
    // Flags that forbid a write are known too late in this mode (SEMANTICS, P5), so none of them.
    run("cache=writeback", 2, false, &[0, 0x08, 0x40, 0x80, 0x1_0000, 0xC8]);
}
