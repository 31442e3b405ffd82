//! What bad input gets: a clear message with what to do, soon, and nothing changed.

use std::{fs, time::Duration};

use tandem_tests::harness::{Finished, Lab, MountSpec, binary, run};

use crate::support::assert_equal_and_unmount;

/// The message names what was wrong, and the command failed soon.
fn assert_refused(refused: &Finished, parts: &[&str]) {
    assert!(refused.code.is_some_and(|code| code != 0), "refused by an exit code: {refused:#?}");
    assert!(refused.took < Duration::from_secs(30), "refused soon: {refused:#?}");
    let text = refused.text().to_lowercase();
    for part in parts {
        assert!(text.contains(&part.to_lowercase()), "{part:?} is missing in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn mountpoint_that_does_not_exist() {
    let Some(lab) = Lab::new("bad-mountpoint") else { return };
    let storage = lab.storage();
    let missing = lab.path("missing");
    assert_refused(&lab.mount_refused(&MountSpec::new(&storage, "vol", &missing)), &["missing"]);
    let file = lab.path("file");
    fs::write(&file, "").expect("writable");
    assert_refused(&lab.mount_refused(&MountSpec::new(&storage, "vol", &file)), &["directory"]);
    assert!(!storage.data().join("vol").exists(), "no volume was made");
}

#[test]
fn host_that_does_not_answer() {
    let Some(lab) = Lab::new("bad-host") else { return };
    let dir = lab.new_dir("folder");
    fs::write(dir.join("a"), "1").expect("writable");
    // A port of which nobody listens: bound, then given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let spec = |source: &str| MountSpec {
        source: source.to_owned(),
        mountpoint: dir.clone(),
        options: String::new(),
        state: None,
        tracer: Vec::new(),
    };
    let refused = lab.mount_refused(&spec(&format!("127.0.0.1:{port}:/vol")));
    assert_refused(&refused, &[&port.to_string()]);
    // A socket that accepts and never speaks.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = mute.local_addr().expect("bound").port();
    assert_refused(&lab.mount_refused(&spec(&format!("127.0.0.1:{port}:/vol"))), &[&port.to_string()]);
    assert_refused(&lab.mount_refused(&spec("no-such-host.invalid:/vol")), &["no-such-host.invalid"]);
    assert_eq!(fs::read_to_string(dir.join("a")).expect("untouched"), "1");
}

#[test]
fn unknown_option_volume_or_port() {
    let Some(lab) = Lab::new("bad-words") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let spec = MountSpec::new(&storage, "vol", &dir);
    assert_refused(&lab.mount_refused(&spec.clone().options("fsnyc=durable")), &["fsnyc"]);
    assert_refused(&lab.mount_refused(&spec.clone().options("init=sideways")), &["sideways"]);
    for source in
        ["127.0.0.1:99999:/vol", "127.0.0.1:/bad volume!", "127.0.0.1", ":/vol", "127.0.0.1:/", "127.0.0.1:/../x"]
    {
        let bad = MountSpec { source: source.to_owned(), ..spec.clone() };
        assert_refused(&lab.mount_refused(&bad), &[]);
    }
    let storaged = run(
        lab.command("tandem-storaged").args(["--listen", "127.0.0.1:0", "--no-such-flag"]),
        Duration::from_secs(10),
    );
    assert_refused(&storaged, &["no-such-flag"]);
    let tandem = lab.tandem(&["frobnicate"]);
    assert_eq!(tandem.code, Some(64), "usage errors are 64: {tandem:#?}");
}

#[test]
fn port_that_is_taken() {
    let Some(lab) = Lab::new("bad-port") else { return };
    let storage = lab.storage();
    let listen = format!("127.0.0.1:{}", storage.port());
    let data = lab.path("other data");
    let second = run(
        lab.command("tandem-storaged").arg("--data").arg(&data).args(["--listen", &listen]),
        Duration::from_secs(20),
    );
    assert_refused(&second, &[&storage.port().to_string()]);
    assert!(storage.status().is_ok(), "the first one still answers, with its secret");
}

#[test]
fn storage_directory_of_another_version() {
    let Some(lab) = Lab::new("bad-version") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("a"), "1").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    storage.daemon().terminate(Duration::from_secs(20)).expect("SIGTERM ends it");
    let format = storage.data().join("format");
    let was = fs::read_to_string(&format).expect("the format file");
    fs::write(&format, "999\n").expect("writable");
    let start = run(
        lab.command("tandem-storaged").arg("--data").arg(storage.data()).args(["--listen", "127.0.0.1:0"]),
        Duration::from_secs(20),
    );
    assert_refused(&start, &["version"]);
    fs::write(&format, was).expect("writable");
    storage.restart();
    mount.start_again().expect("all is as it was");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn storage_directory_that_is_in_use_or_holds_something_else() {
    let Some(lab) = Lab::new("bad-data") else { return };
    let storage = lab.storage();
    let start = |data: &std::path::Path| {
        run(
            lab.command("tandem-storaged").arg("--data").arg(data).args(["--listen", "127.0.0.1:0"]),
            Duration::from_secs(20),
        )
    };
    assert_refused(&start(storage.data()), &[]);
    let file = lab.path("a file");
    fs::write(&file, "").expect("writable");
    assert_refused(&start(&file), &["a file"]);
}

#[test]
fn volume_that_this_client_attached_before_and_that_is_gone() {
    let Some(lab) = Lab::new("bad-gone") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let mount = lab.mount(&storage, "vol", &dir);
    fs::write(mount.path().join("a"), "1").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    storage.kill();
    fs::rename(storage.data().join("vol"), lab.path("volume that is gone")).expect("a directory");
    storage.restart();
    let refused = lab.mount_refused(&MountSpec::new(&storage, "vol", &dir));
    assert_refused(&refused, &["vol", "init=push"]);
    assert!(!storage.data().join("vol").exists(), "no volume was made in its place");
    let pushed = lab.mount_with(&MountSpec::new(&storage, "vol", &dir).options("init=push"));
    assert_equal_and_unmount(&pushed, &storage, "vol");
}

#[test]
fn second_mount_of_the_same_folder() {
    let Some(lab) = Lab::new("bad-twice") else { return };
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let mount = lab.mount(&storage, "vol", &dir);
    assert_refused(&lab.mount_refused(&MountSpec::new(&storage, "vol", &dir)), &[]);
    fs::write(mount.path().join("a"), "still served").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn programs_explain_themselves() {
    for (program, words) in [
        ("tandem-storaged", &["--data", "--listen", "--config"][..]),
        ("tandem-mountd", &["state=", "-o", "-f"]),
        ("tandem", &["status", "wait", "umount", "pause", "resume"]),
    ] {
        let help = run(std::process::Command::new(binary(program)).arg("--help"), Duration::from_secs(10));
        let help = help.expect_success(program).text();
        for word in words {
            assert!(help.contains(word), "{program} --help tells of {word}: {help}");
        }
    }
}
