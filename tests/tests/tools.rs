//! The tools of the tests, tested on plain directories: a storm must be repeatable, and a comparison must see what a storm does.

use std::{fs, path::Path, process::Command, sync::atomic::AtomicBool, thread, time::Duration};

use tandem_tests::{
    compare,
    harness::binary,
    storm::{self, Shape, differential},
};

#[test]
fn the_same_seed_on_two_plain_directories_gives_equal_results_and_trees() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    fs::create_dir(&left).expect("new");
    fs::create_dir(&right).expect("new");
    for seed in 0..4 {
        if let Err(divergence) = differential::run(&left, &right, seed, 3000, Shape::default()) {
            panic!("seed {seed}: {divergence}");
        }
        let seen = compare::assert_equal_with(&left, &right, &compare::Options { mtime: false, limit: 20 });
        assert!(seen.objects > 50, "a storm leaves something: {seen:?}");
    }
}

#[test]
fn many_workers_on_one_plain_directory_meet_no_unexpected_error() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let stop = AtomicBool::new(false);
    let root = dir.path();
    let reports: Vec<storm::Report> = thread::scope(|scope| {
        let run = |seed| storm::run(root, seed, Shape::default(), Duration::from_secs(2), &stop);
        let workers: Vec<_> = (0..4).map(|seed| scope.spawn(move || run(seed))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect()
    });
    for report in reports {
        assert!(report.unexpected.is_empty(), "{report:#?}");
        assert!(report.succeeded * 3 > report.actions, "most actions mean something: {report:#?}");
    }
}

#[test]
fn programs_work_on_a_mount_and_leave_the_same_in_the_folder_and_on_the_replica() {
    programs_work("strict");
}

#[test]
fn programs_work_where_the_kernel_keeps_what_is_written() {
    programs_work("writeback");
}

fn programs_work(cache: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/conformance");
    let programs = binary("tandem-storaged");
    let only = "perms,rsync,tar,git,sqlite,lmdb,rocksdb,redis,postgres,stress";
    let output = Command::new(script)
        .args(["--short", "--cache", cache, "--only", only, "--bin"])
        .arg(programs.parent().expect("a directory"))
        .output()
        .expect("bash is there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    // 77: no root, or no /dev/fuse.
    assert!(matches!(output.status.code(), Some(0 | 77)), "{said}");
}

#[test]
fn a_copy_that_lost_one_thing_is_seen() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    fs::create_dir(&left).expect("new");
    fs::create_dir(&right).expect("new");
    differential::run(&left, &right, 7, 1500, Shape::default()).expect("equal");
    fs::create_dir(right.join("surplus")).expect("new");
    let seen = compare::trees(&left, &right, &compare::Options { mtime: false, limit: 20 }).expect("readable");
    assert_eq!(seen.differences.len(), 1, "{}", seen.report());
}
