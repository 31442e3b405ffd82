//! What command lines mean.

use std::{ffi::OsString, time::Duration};

use super::{
    Options, Request,
    keys::{KEYS, PREFIX},
    parse, parse_in,
};
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
fn passthrough_takes_any_number_of_paths_and_no_write_cache() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("mount.toml");
    std::fs::write(&file, "passthrough = [\"/media\", \"/models/big/\"]\n").expect("write");
    for line in [
        "h:/v /m -o passthrough=/media,passthrough=/models//big".to_owned(),
        "h:/v /m --passthrough /media --passthrough /models/big".to_owned(),
        format!("h:/v /m --config {}", file.display()),
    ] {
        assert_eq!(options(&line).settings.passthrough.passing(), ["/media", "/models/big"], "{line}");
    }
    assert_eq!(options("h:/v /m -o passthrough=/").settings.passthrough.passing(), ["/"]);
    assert!(!options("h:/v /m").settings.passthrough.pass_any());
    assert!(refused("h:/v /m -o passthrough=media").contains("begins with /"));
    assert!(refused("h:/v /m -o passthrough=/media/../etc").contains("passthrough=/media"));
    assert!(refused("h:/v /m -o passthrough=/media,cache=writeback").contains("exclude each other"));
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

/// Settings of a line in an environment, and with a configuration file.
fn shown(line: &str, environment: &[(&str, &str)], key: &str) -> String {
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    match parse_in(&words(line), false, environment) {
        Ok(Request::Mount(options)) => options.settings.show(key),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn every_option_is_a_flag_a_key_of_the_file_and_a_variable_and_later_ones_win() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("mount.toml");
    let values = |key: &'static str, kind: Option<&'static str>| match (key, kind) {
        (_, None) => ["true", "false"],
        ("ca" | "cert" | "key", _) => ["/one", "/two"],
        (_, Some("DIR" | "FILE")) => ["/one", "/two"],
        (_, Some("SIZE")) => ["8M", "16M"],
        (_, Some("SECONDS")) => ["3", "4"],
        (_, Some("COUNT" | "MICROSECONDS" | "PERCENT")) => ["50", "60"],
        (_, Some("LEVEL")) => ["warn", "debug"],
        (_, Some("ADDR:PORT|off")) => ["127.0.0.1:1", "off"],
        (_, Some("GLOB")) => ["*.o", "*.o"],
        (_, Some("PATH")) => ["/one", "/one"],
        (_, Some("MODE[:PATH]")) => ["durable", "local"],
        (_, Some(choices)) => {
            let (one, two) = choices.split_once('|').expect("a choice");
            [one, two]
        }
    };
    for (key, kind, _) in KEYS {
        let [one, two] = values(key, *kind);
        // What needs something beside it.
        let beside: String = ["ca", "cert", "key"]
            .iter()
            .filter(|other| ["ca", "cert", "key"].contains(key) && *other != key)
            .map(|other| format!(" --{other}=/x"))
            .collect();
        let line = format!("h:/v /m --config {}{beside}", file.display());
        let variable = tandem_runtime::settings::variable(PREFIX, key);
        let write = |text: String| std::fs::write(&file, text).expect("written");
        write(format!("{} = {one:?}\n", key.replace('_', "-")));
        let from_file = shown(&line, &[], key);
        assert_ne!(from_file, "", "{key} is not shown");
        write(format!("{key} = {two:?}\n"));
        let ways = [
            shown(&line, &[(&variable, one)], key),
            shown(&format!("{line} -o {key}={one}"), &[(&variable, two)], key),
            shown(&format!("{line} --{key}={one}"), &[(&variable, two)], key),
            // What is shown can be written.
            shown(&format!("{line} -o {key}={from_file}"), &[], key),
        ];
        assert_eq!(ways, [(); 4].map(|()| from_file.clone()), "{key}");
        if kind.is_none() {
            assert_eq!(shown(&format!("{line} --{key}"), &[(&variable, two)], key), from_file, "{key}");
        }
    }
    let unknown = [("TANDEM_MOUNTD_BAKCING".into(), "/x".into())].into_iter();
    let error = parse_in(&words("h:/v /m"), false, unknown).expect_err("unknown").to_string();
    assert!(error.contains("did you mean backing?"), "{error}");
}

#[test]
fn what_is_in_effect_tells_where_it_was_written() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("mount.toml");
    std::fs::write(&file, "window = '8M'\ncongestion = 'throttle'\n").expect("written");
    let options = options(&format!("h:/v /m --config {} -o window=16M", file.display()));
    let (_, settings) = options.layers.settings().expect("good");
    let of = |key: &str| {
        let found = settings.iter().find(|setting| setting.key == key).expect("a key");
        (found.value.clone(), found.origin.clone())
    };
    assert_eq!(of("window"), ("16M".into(), format!("command line, {}", file.display())));
    assert_eq!(of("congestion"), ("throttle".into(), file.display().to_string()));
    assert_eq!(of("cache"), ("strict".into(), "default".into()));
    // A file that is changed is read again, and one that makes no sense is refused.
    std::fs::write(&file, "congestion = 'lag'\n").expect("written");
    assert_eq!(options.layers.settings().expect("good").0.congestion.as_str(), "lag");
    std::fs::write(&file, "congestion = 'never'\n").expect("written");
    let error = options.layers.settings().expect_err("no such value").to_string();
    assert!(error.contains("lag or throttle") && error.contains("mount.toml"), "{error}");
}

#[test]
fn certificates_of_ones_own_need_all_three_files() {
    assert!(refused("h:/v /m -o ca=/a,cert=/b").contains("all three"));
    let server = options("h:/v /m -o ca=/a,cert=/b,key=/c").source.server;
    assert_eq!(server.protection(), "tls");
    assert!(server.may_connect().is_ok());
}
