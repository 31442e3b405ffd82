//! The same operations on a mount and on a plain directory: the same results, the same trees, and the replica equal to both.

use std::time::Instant;

use tandem_tests::{
    compare,
    harness::{Lab, MountSpec, seconds},
    storm::{Shape, differential},
};

/// Seeds from `TANDEM_TEST_SEED` on, at least so many, for as long as the test may take. `mtime`: the mount shows the times that the
/// folder has.
fn run(options: &str, seeds: u64, mtime: bool) {
    let Some(lab) = Lab::new("twin") else { return };
    let storage = lab.storage();
    let spec = MountSpec::new(&storage, "vol", &lab.new_dir("folder"));
    let mount = lab.mount_with(&spec.options(options));
    let plain = lab.new_dir("plain");
    let begin = Instant::now();
    let first: u64 = std::env::var("TANDEM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut seed = first;
    while seed < first + seeds || begin.elapsed() < seconds(3) {
        if let Err(divergence) = differential::run(mount.path(), &plain, seed, 2500, Shape::default()) {
            panic!("TANDEM_TEST_SEED={first}, seed {seed}, {options} (left is the mount): {divergence}");
        }
        compare::assert_equal_with(mount.path(), &plain, &compare::Options { mtime: false, limit: 20 });
        mount.settle();
        compare::assert_equal_with(mount.path(), &storage.tree("vol"), &compare::Options { mtime, limit: 20 });
        seed += 1;
    }
    println!("{options}: {} seeds, equal", seed - first);
    mount.unmount();
    compare::assert_equal(mount.path(), &storage.tree("vol"));
}

#[test]
fn mount_answers_as_a_plain_directory_does() {
    run("cache=strict", 3, true);
}

#[test]
fn mount_with_the_kernels_write_cache_answers_as_a_plain_directory_does() {
    // Within one tick of its clock the kernel takes a time of its own for the one that the folder has.
    run("cache=writeback", 2, false);
}
