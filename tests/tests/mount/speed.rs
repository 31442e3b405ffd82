//! Figures: printed, and held only to bounds so loose that a slow machine passes. `scripts/accept` holds a release build to the issue's.

use std::{fs::File, time::Duration};

use tandem_tests::{figures, harness::Lab};

use crate::support::assert_equal_and_unmount;

#[test]
fn new_small_files_reach_the_replica_at_once() {
    let Some(lab) = Lab::new("lag") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let lags = figures::lags(mount.path(), &storage.tree("vol"), 200).expect("each arrives");
    println!(
        "lag from close() of a new 4 KiB file to its bytes on the replica: median {:?}, longest {:?}",
        lags[100], lags[199]
    );
    assert!(lags[100] < Duration::from_millis(250), "{lags:?}");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn rename_of_a_large_file_or_directory_is_one_small_record() {
    let Some(lab) = Lab::new("rename") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let large = File::create(mount.path().join("large")).expect("writable");
    large.set_len(1 << 30).expect("sparse");
    drop(large);
    figures::write_many(&mount.path().join("many"), 5000).expect("writable");
    for (what, from, to) in [("1 GiB file", "large", "large-2"), ("directory of 5,000 files", "many", "many-2")] {
        let seen = figures::rename(&mount.socket(), mount.path(), &storage.tree("vol"), from, to).expect("it arrives");
        println!("rename of a {what}: {:?}, {} bytes sent", seen.took, seen.sent_bytes);
        assert!(seen.sent_bytes < 1024, "{seen:?}");
        assert!(seen.took < Duration::from_secs(2), "{seen:?}");
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
}
