//! `tandem clone`: the replica's state at one exact position, while somebody writes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tandem_tests::{
    compare,
    harness::{Lab, Storage, eventually},
};

use crate::support::{fill_mixed, finish_storms, storm_processes};

fn server(storage: &Storage) -> String {
    format!("127.0.0.1:{}", storage.port())
}

fn text(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

fn clone_of(lab: &Lab, storage: &Storage, name: &str, more: &[&str]) -> PathBuf {
    let dir = lab.path(name);
    let (server, to) = (server(storage), text(&dir));
    let mut args = vec!["clone", "vol", &to, "--server", &server];
    args.extend(more);
    lab.tandem(&args).expect_success("tandem clone");
    dir
}

#[test]
fn a_clone_is_equal_to_the_folder_in_everything() {
    let Some(lab) = Lab::new("clone") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    fill_mixed(&dir, 200, 31);
    let mount = lab.mount(&storage, "vol", &dir);
    mount.settle();
    let copy = clone_of(&lab, &storage, "copy", &[]);
    compare::assert_equal(mount.path(), &copy);
    // Into an empty folder, and without saying where: the mount knows.
    let empty = lab.new_dir("empty");
    let said = lab.tandem(&["clone", "vol", &text(&empty)]).expect_success("tandem clone");
    assert!(said.stdout.contains("vol at "), "{said:#?}");
    compare::assert_equal(mount.path(), &empty);
    let refused = lab.tandem(&["clone", "vol", &text(&empty)]);
    assert!(refused.code == Some(64) && refused.stderr.contains("not empty"), "{refused:#?}");
    assert_eq!(fs::read_dir(storage.data().join("vol/staging/clones")).expect("made").count(), 0, "nothing is left");
}

#[test]
fn a_position_to_come_is_waited_for_and_one_that_has_passed_is_refused() {
    let Some(lab) = Lab::new("clone-at") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("first"), "1").expect("writable");
    mount.settle();
    let status = mount.status();
    let (epoch, seq) = (status.epoch, status.seq);
    let next = format!("{epoch}:{}", seq + 1);
    let copy = lab.path("copy");
    let mut waiting = lab.command("tandem");
    waiting.args(["clone", "vol", &text(&copy), "--at", &next, "--server", &server(&storage)]);
    let mut waiting = waiting.stdout(Stdio::null()).spawn().expect("tandem was built");
    let workers = || storage.volume("vol").workers;
    let waits =
        eventually(Duration::from_secs(20), || workers().iter().any(|worker| worker.state.contains("waits for")));
    assert!(waits && waiting.try_wait().expect("a child").is_none(), "it waits");
    assert!(lab.path(".copy.tandem-clone").exists() && !copy.exists(), "nothing looks complete");
    // One op each, and many more behind the one that is meant.
    for at in 0..200 {
        fs::create_dir(mount.path().join(format!("dir{at}"))).expect("new");
    }
    assert!(waiting.wait().expect("a child").success());
    let names: Vec<_> = fs::read_dir(&copy).expect("complete").flatten().map(|entry| entry.file_name()).collect();
    assert!(names.len() == 2 && copy.join("dir0").is_dir() && copy.join("first").is_file(), "{names:?}");

    let passed = lab.tandem(&["clone", "vol", &text(&lab.path("late")), "--at", &next, "--server", &server(&storage)]);
    assert!(passed.code == Some(2) && passed.stderr.contains("the oldest that it still has is"), "{passed:#?}");
    let future = format!("{epoch}:{}", seq + 100_000);
    let late = text(&lab.path("late"));
    let timed_out =
        lab.tandem(&["clone", "vol", &late, "--at", &future, "--timeout", "0.3", "--server", &server(&storage)]);
    assert!(timed_out.code == Some(1) && timed_out.stderr.contains("did not reach"), "{timed_out:#?}");
    assert!(!lab.path("late").exists() && !lab.path(".late.tandem-clone").exists(), "nothing is left");
    mount.settle();
}

#[test]
fn clones_under_a_storm_are_states_that_the_folder_had_and_nothing_waits_for_them() {
    let Some(lab) = Lab::new("clone-storm") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::create_dir(mount.path().join("storm")).expect("new");
    // A counter in two files, the second always after the first: a true past has them equal, or the first one ahead by one.
    let (one, two) = (mount.path().join("one"), mount.path().join("two"));
    fs::write(&one, "0").expect("writable");
    fs::write(&two, "0").expect("writable");
    mount.settle();
    let storms = storm_processes(&mount.path().join("storm"), 77, 3, 1, 1);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 1.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                // Slow enough that apply follows: a clone waits for what is durable before it.
                std::thread::sleep(Duration::from_millis(5));
                for file in [&one, &two] {
                    let partial = mount.path().join("partial");
                    fs::write(&partial, count.to_string()).expect("writable");
                    fs::rename(&partial, file).expect("there");
                }
            }
        });
        for at in 0..5 {
            let copy = clone_of(&lab, &storage, &format!("copy{at}"), &[]);
            let count = |name: &str| -> u64 {
                fs::read_to_string(copy.join(name)).expect("there").parse().expect("whole, because it was renamed")
            };
            let (one, two) = (count("one"), count("two"));
            assert!(one == two || one == two + 1, "{one} and {two} were never together in the folder");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    finish_storms(storms);
    mount.settle();
    let copy = clone_of(&lab, &storage, "last", &[]);
    compare::assert_equal(mount.path(), &copy);
    compare::assert_equal(mount.path(), &storage.tree("vol"));
}
