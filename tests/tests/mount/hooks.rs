//! Hooks of the storage daemon: a command that runs when a file has become quiet.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use tandem_tests::harness::{Lab, Storage, eventually};

const LIMIT: Duration = Duration::from_secs(30);

/// A binary STL of one triangle.
fn mesh() -> Vec<u8> {
    let mut mesh = vec![0; 80];
    mesh.extend(1u32.to_le_bytes());
    for number in [0., 0., 1., 0., 0., 0., 1.5, 0., 0., 0., -2., 0.25f32] {
        mesh.extend(number.to_le_bytes());
    }
    mesh.extend([0, 0]);
    mesh
}

fn storage_with_hook(lab: &Lab, command: &str, out: &Path, delay: &str) -> Storage {
    // Written by somebody who is not root.
    fs::set_permissions(out, fs::Permissions::from_mode(0o777)).expect("ours");
    for above in out.ancestors().skip(1).take_while(|above| above.starts_with(lab.root())) {
        fs::set_permissions(above, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    let out = out.to_str().expect("a plain path");
    Storage::start_with(
        lab,
        "storaged",
        &["--hook", command, "--hook-dir", out, "--hook-delay", delay, "--hook-timeout", "5"],
    )
}

#[test]
fn a_received_mesh_becomes_a_table_of_its_vertices() {
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED the example of a hook: python3 is not installed");
        return;
    }
    let Some(lab) = Lab::new("hooks") else { return };
    let out = lab.new_dir("out");
    // A copy that others may read, wherever the sources are.
    let script = out.join("stl-to-csv");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/hooks/stl-to-csv"), &script).expect("the example");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("ours");
    let command = "case $TANDEM_PATH in *.stl) echo \"$TANDEM_DIGEST $TANDEM_POSITION $(id -u)\" > seen; ./stl-to-csv;; \
                   *bad) echo broken >&2; exit 3;; esac";
    let storage = storage_with_hook(&lab, command, &out, "0.2");
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    // As programs save: under another name first.
    fs::write(mount.path().join("part.tmp"), mesh()).expect("writable");
    fs::rename(mount.path().join("part.tmp"), mount.path().join("part.stl")).expect("renamed");
    mount.settle();
    assert!(eventually(LIMIT, || out.join("part.csv").exists()), "{:#?}", storage.volume("vol"));
    let table = fs::read_to_string(out.join("part.csv")).expect("text");
    assert_eq!(table, "triangle,x,y,z\n0,0,0,0\n0,1.5,0,0\n0,0,-2,0.25\n");
    let seen = fs::read_to_string(out.join("seen")).expect("text");
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words[0], blake3::hash(&mesh()).to_hex().as_str());
    assert!(words[1].contains(':') && words[2] != "0", "a position, and not as root: {seen}");
    // A failure is tried again, then told.
    fs::write(mount.path().join("bad"), "x").expect("writable");
    let told = || {
        let volume = storage.volume("vol");
        volume.hooks_failed >= 1 && volume.hooks_last_error.contains("broken")
    };
    assert!(eventually(LIMIT, told), "{:#?}", storage.volume("vol"));
}

#[test]
fn a_file_that_is_closed_is_complete_and_one_that_stays_open_is_not() {
    let Some(lab) = Lab::new("hooks-closed") else { return };
    let out = lab.new_dir("out");
    // Who waited for quiet would wait for ten minutes.
    let storage = storage_with_hook(&lab, "touch \"seen$(basename $TANDEM_PATH)\"", &out, "600");
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let mut open = fs::File::create(mount.path().join("-open")).expect("writable");
    open.write_all(b"more is to come").expect("writable");
    fs::write(mount.path().join("-closed"), "all of it").expect("writable");
    assert!(eventually(LIMIT, || out.join("seen-closed").exists()), "{:#?}", storage.volume("vol"));
    mount.settle();
    assert!(!out.join("seen-open").exists());
    drop(open);
    assert!(eventually(LIMIT, || out.join("seen-open").exists()), "{:#?}", storage.volume("vol"));
}
