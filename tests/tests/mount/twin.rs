//! The same operations on a mount and on a plain directory: the same results, the same trees, and the replica equal to both.

use tandem_tests::{
    compare,
    harness::{Lab, seconds},
    storm::{Shape, differential},
};

use crate::support::assert_replica_equal;

#[test]
fn mount_answers_as_a_plain_directory_does() {
    let Some(lab) = Lab::new("twin") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let plain = lab.new_dir("plain");
    let begin = std::time::Instant::now();
    let first: u64 = std::env::var("TANDEM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut seed = first;
    while seed < first + 3 || begin.elapsed() < seconds(3) {
        if let Err(divergence) = differential::run(mount.path(), &plain, seed, 2500, Shape::default()) {
            panic!("TANDEM_TEST_SEED={first}, seed {seed} (left is the mount): {divergence}");
        }
        compare::assert_equal_with(mount.path(), &plain, &compare::Options { mtime: false, limit: 20 });
        assert_replica_equal(&mount, &storage, "vol");
        seed += 1;
    }
}
