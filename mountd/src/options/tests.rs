//! What command lines mean.

use std::{ffi::OsString, time::Duration};

use super::{Options, Request, parse};
use crate::{
    link::start::Init,
    vfs::{FsyncMode, FsyncRules},
};

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

fn options(line: &str) -> Options {
    match parse(&words(line), false) {
        Ok(Request::Mount(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    match parse(&words(line), false) {
        Err(error) => error.to_string(),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn sources_are_understood_with_port_and_ipv6() {
    let source = options("[::1]:99:/vol /mnt").source;
    assert_eq!((source.server.host.as_str(), source.server.port, source.volume.as_str()), ("::1", 99, "vol"));
    assert_eq!(options("localhost:/vol /mnt").source.server.port, 7440);
    for bad in ["localhost /mnt", "localhost:vol /mnt", "localhost:0:/vol /mnt", "h:x:/vol /mnt", "h:/../etc /mnt"] {
        refused(bad);
    }
}

#[test]
fn every_way_of_writing_an_option_is_the_same() {
    for line in [
        "h:/v /m -o fsync=durable,fsync_timeout=30,init=push,window=8M",
        "-ofsync=durable,fsync-timeout=30 h:/v --init=push /m --window 8M",
        "h:/v /m --fsync durable --fsync-timeout 30s -o init=push,rw,_netdev,nofail,x-systemd.automount --window=8192k",
    ] {
        let settings = options(line).settings;
        assert_eq!(settings.fsync, FsyncRules::from(FsyncMode::Durable), "{line}");
        assert_eq!(settings.fsync_timeout, Some(Duration::from_secs(30)));
        assert_eq!(settings.init, Some(Init::Push));
        assert_eq!(settings.window_bytes, 8 << 20);
    }
}

#[test]
fn fsync_takes_a_rule_for_the_mount_and_any_number_for_paths() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("mount.toml");
    std::fs::write(&file, "fsync = [\"durable\", \"local:/tmp\", \"durable:/tmp/db\"]\n").expect("write");
    for line in [
        "h:/v /m -o fsync=durable,fsync=local:/tmp,fsync=durable:/tmp/db".to_owned(),
        "h:/v /m --fsync local:/tmp --fsync durable:/tmp//db/ -o fsync=durable".to_owned(),
        format!("h:/v /m --config {}", file.display()),
    ] {
        assert_eq!(options(&line).settings.fsync.to_string(), "durable,local:/tmp,durable:/tmp/db", "{line}");
    }
    assert!(refused("h:/v /m -o fsync=durable:db").contains("begins with /"));
    assert!(refused("h:/v /m -o fsync=never:/db").contains("local or durable"));
}

#[test]
fn what_is_unknown_is_refused_with_the_nearest_known() {
    assert!(refused("h:/v /m -o bakcing=/x").contains("did you mean backing?"));
    assert!(refused("h:/v /m -o fsyncc=local").contains("did you mean fsync?"));
    assert!(refused("h:/v /m -o zzzzzzzz").contains("--help"));
    assert!(refused("h:/v /m -o fsync=always").contains("local or durable"));
    assert!(refused("h:/v /m -o backing").contains("needs a value"));
    assert!(refused("h:/v").contains("SOURCE and DIR"));
    assert!(refused("h:/v /m -o window=1").contains("at least 4M"));
}

#[test]
fn a_mount_helper_may_be_asked_to_pretend() {
    assert!(matches!(parse(&words("h:/v /m -sfnv -o rw"), true), Ok(Request::Check)));
    let foreground = parse(&words("h:/v /m -f"), false);
    assert!(matches!(foreground, Ok(Request::Mount(options)) if options.settings.foreground));
}

#[test]
fn a_configuration_file_has_the_same_keys_and_yields_to_the_command_line() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("mount.toml");
    std::fs::write(&file, "fsync = \"durable\"\nlog-json = true\nfsync_timeout = 5\n").expect("write");
    let line = format!("h:/v /m --config {} -o fsync_timeout=7", file.display());
    let settings = options(&line).settings;
    assert!(settings.log.json && settings.fsync == FsyncRules::from(FsyncMode::Durable));
    assert_eq!(settings.fsync_timeout, Some(Duration::from_secs(7)));
    std::fs::write(&file, "nonsense = 1\n").expect("write");
    assert!(refused(&line).contains("nonsense"));
}
