//! The command itself: what bad input gets.

use std::process::{Command, Output};

fn mountd(arguments: &[&str]) -> Output {
    let runtime = tempfile::tempdir().expect("temporary directory");
    Command::new(env!("CARGO_BIN_EXE_tandem-mountd"))
        .args(arguments)
        .env("TANDEM_RUNTIME_DIR", runtime.path())
        .env("TANDEM_STATE_DIR", runtime.path().join("state"))
        .output()
        .expect("the binary runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_command_line_that_makes_no_sense_is_exit_64() {
    for (arguments, expected) in [
        (&["localhost:/v"][..], "SOURCE and DIR"),
        (&["localhost", "/tmp"], "HOST[:PORT]:/VOLUME"),
        (&["localhost:/../x", "/tmp"], "volume name"),
        (&["localhost:99999:/v", "/tmp"], "port"),
        (&["localhost:/v", "/tmp", "-o", "bakcing=/x"], "did you mean backing?"),
        (&["localhost:/v", "/tmp", "--fsync=never"], "local or durable"),
    ] {
        let output = mountd(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(expected), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn a_mountpoint_that_cannot_be_one_is_exit_1_with_what_to_do() {
    let output = mountd(&["localhost:/v", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("mkdir -p /nowhere/at/all"), "{}", said(&output));
    let output = mountd(&["localhost:/v", "/proc/self/status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("not a directory"), "{}", said(&output));
}

#[test]
fn a_host_that_does_not_answer_is_named_and_the_folder_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("file"), b"mine").expect("write");
    let path = dir.path().to_str().expect("text");
    // Port 1 answers nowhere; once detached, once in the foreground.
    for flags in [&[][..], &["-f"]] {
        let output = mountd(&[&["localhost:1:/v", path], flags].concat());
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("localhost:1 does not answer"), "{}", said(&output));
        assert_eq!(std::fs::read(dir.path().join("file")).expect("read"), b"mine");
    }
}

#[test]
fn state_inside_the_mount_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path().canonicalize().expect("path");
    let state = dir.join("state");
    let arguments = ["localhost:1:/v", dir.to_str().expect("text"), "--state", state.to_str().expect("text")];
    let output = mountd(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("choose a place outside"), "{}", said(&output));
    assert!(!state.exists());
}

#[test]
fn help_and_version_are_no_errors() {
    for flag in ["--help", "--version"] {
        let output = mountd(&[flag]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("tandem-mountd"));
    }
}
