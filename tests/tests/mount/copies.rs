//! `tandem cp`: files of a volume to this machine, resumed where they stopped.

use std::{fs, path::Path};

use tandem_tests::{compare, harness::Lab};

use crate::support::fill_mixed;

fn text(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

#[test]
fn files_of_a_volume_are_copied_and_resumed() {
    let Some(lab) = Lab::new("cp") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let big: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.join("big"), &big).expect("writable");
    fs::create_dir(dir.join("many")).expect("writable");
    fill_mixed(&dir.join("many"), 100, 77);
    for name in ["one.log", "two.log", "other"] {
        fs::write(dir.join(name), name).expect("writable");
    }
    let mount = lab.mount(&storage, "vol", &dir);
    mount.settle();
    let from = |path: &str| format!("127.0.0.1:{}:/vol/{path}", storage.port());
    let to = lab.new_dir("to");

    // What is there of a file is not sent again; what is there and is not of the file is not taken for it.
    fs::write(to.join(".big.tandem-part"), &big[..5 << 20]).expect("writable");
    let said = lab.tandem(&["cp", &from("big"), &text(&to)]).expect_success("tandem cp");
    assert!(said.stdout.contains("5.0 MiB were there already"), "{said:#?}");
    assert!(fs::read(to.join("big")).expect("copied") == big);
    fs::write(to.join(".big.tandem-part"), vec![1; 5 << 20]).expect("writable");
    let said = lab.tandem(&["cp", &from("big"), &text(&to)]).expect_success("tandem cp");
    assert!(!said.stdout.contains("already") && fs::read(to.join("big")).expect("copied") == big, "{said:#?}");
    assert!(!to.join(".big.tandem-part").exists());

    lab.tandem(&["cp", &from("*.log"), &text(&to)]).expect_success("tandem cp of a pattern");
    assert!(to.join("one.log").exists() && to.join("two.log").exists() && !to.join("other").exists());

    // The storage daemon dies, and comes again with another secret.
    std::thread::scope(|scope| {
        let (source, target) = (from("many"), text(&lab.path("again")));
        let lab = &lab;
        let copying = scope.spawn(move || lab.tandem(&["cp", "-rp", &source, &target]));
        storage.kill();
        storage.restart();
        let said = copying.join().expect("no panic");
        // Killed before the list was there, there is nothing to go on with.
        if said.code != Some(0) {
            lab.tandem(&["cp", "-rp", &from("many"), &text(&lab.path("again"))]).expect_success("tandem cp -rp");
        }
    });
    mount.settle();
    for entry in fs::read_dir(dir.join("many")).expect("listed") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_file() {
            let copied = fs::read(lab.path("again").join(entry.file_name())).expect("copied");
            assert!(copied == fs::read(entry.path()).expect("there"), "{:?}", entry.file_name());
        }
    }
    compare::assert_equal(mount.path(), &storage.tree("vol"));
    let refused = lab.tandem(&["cp", &text(&to.join("big")), &from("new")]);
    assert!(refused.code == Some(64) && refused.stderr.contains("mount it"), "{refused:#?}");
}
