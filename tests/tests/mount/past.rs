//! The past of a volume: what was done, by whom, and what was deleted and is had back.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use tandem_tests::{compare, harness::Lab};

fn text(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

#[test]
fn deleted_and_replaced_files_are_listed_and_had_back() {
    let Some(lab) = Lab::new("restore") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let at = |name: &str| mount.path().join(name);
    fs::create_dir_all(at("docs/deep/empty")).expect("writable");
    fs::set_permissions(at("docs/deep/empty"), fs::Permissions::from_mode(0o2710)).expect("ours");
    fs::set_permissions(at("docs/deep"), fs::Permissions::from_mode(0o750)).expect("ours");
    fs::write(at("docs/deep/report"), vec![b'r'; 300_000]).expect("writable");
    fs::set_permissions(at("docs/deep/report"), fs::Permissions::from_mode(0o640)).expect("ours");
    fs::write(at("docs/saved"), "first").expect("writable");
    fs::write(at("linked"), "two names").expect("writable");
    fs::hard_link(at("linked"), at("other name")).expect("linked");
    mount.settle();
    let report = fs::metadata(at("docs/deep/report")).expect("there");
    // Saved anew as editors do, deleted with its folder, and one of two names taken away.
    fs::write(at("docs/saved.tmp"), "second").expect("writable");
    fs::rename(at("docs/saved.tmp"), at("docs/saved")).expect("renamed");
    fs::remove_dir_all(at("docs/deep")).expect("removed");
    fs::remove_file(at("linked")).expect("removed");
    mount.settle();
    storage.kill();
    storage.restart();
    mount.settle();
    compare::assert_equal(mount.path(), &storage.data().join("vol/tree"));

    let listed = lab.tandem(&["history", "--deleted", &text(mount.path())]).expect_success("tandem history --deleted");
    assert!(listed.stdout.contains("docs/deep/report") && listed.stdout.contains("docs/saved"), "{listed:#?}");
    assert!(!listed.stdout.contains("linked"), "the other name holds it: {listed:#?}");

    lab.tandem(&["restore", &text(&at("docs/deep"))]).expect_success("tandem restore");
    let restored = fs::metadata(at("docs/deep/report")).expect("restored");
    assert_eq!(fs::read(at("docs/deep/report")).expect("restored"), vec![b'r'; 300_000]);
    assert_eq!(restored.permissions(), report.permissions());
    // Directories, too, with what they were.
    let mode = |name: &str| fs::metadata(at(name)).expect("restored").permissions().mode() & 0o7777;
    assert_eq!((mode("docs/deep"), mode("docs/deep/empty")), (0o750, 0o2710));
    assert!(fs::read_dir(at("docs/deep/empty")).expect("listed").next().is_none());
    assert_eq!(restored.modified().expect("a time"), report.modified().expect("a time"));

    let refused = lab.tandem(&["restore", &text(&at("docs/saved"))]);
    assert!(refused.code == Some(1) && refused.stderr.contains("--overwrite"), "{refused:#?}");
    assert_eq!(fs::read(at("docs/saved")).expect("untouched"), b"second");
    let aside = lab.path("aside");
    lab.tandem(&["restore", &text(&at("docs/saved")), "--to", &text(&aside)]).expect_success("tandem restore --to");
    assert_eq!(fs::read(aside.join("saved")).expect("restored"), b"first");
    lab.tandem(&["restore", "--overwrite", &text(&at("docs/saved"))]).expect_success("tandem restore --overwrite");
    assert_eq!(fs::read(at("docs/saved")).expect("restored"), b"first");
    mount.settle();
    compare::assert_equal(mount.path(), &storage.data().join("vol/tree"));
    let nothing = lab.tandem(&["restore", &text(&at("never was"))]);
    assert!(nothing.code == Some(2) && nothing.stderr.contains("nothing that was deleted"), "{nothing:#?}");
}

#[test]
fn history_tells_what_was_done_by_which_process() {
    let Some(lab) = Lab::new("history") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let script = "mkdir d && echo text > d/a && mv d/a d/b && rm d/b";
    let ran = std::process::Command::new("sh").args(["-c", script]).current_dir(mount.path()).status();
    assert!(ran.expect("sh runs").success());
    mount.settle();
    let told = lab.tandem(&["history", "--json", &text(mount.path())]).expect_success("tandem history");
    let items: Vec<serde_json::Value> =
        told.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let done = |what: &str, path: &str| items.iter().find(|item| item["what"] == what && item["path"] == path);
    assert!(done("created", "/d").is_some_and(|item| item["process"] == "mkdir"), "{items:#?}");
    assert!(done("renamed", "/d/a").is_some_and(|item| item["to"] == "/d/b" && item["process"] == "mv"), "{items:#?}");
    assert!(done("deleted", "/d/b").is_some_and(|item| item["process"] == "rm"), "{items:#?}");
    let server = format!("127.0.0.1:{}", storage.port());
    let below = lab.tandem(&["history", "--volume", "vol", "--server", &server, "d/b"]);
    let below = below.expect_success("tandem history of a volume by name");
    assert!(below.stdout.lines().count() >= 2 && !below.stdout.contains("created     /d \n"), "{below:#?}");
}
