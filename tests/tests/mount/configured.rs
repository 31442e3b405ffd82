//! Configuration: files, variables and options of both daemons, what is in effect, and what SIGHUP changes.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;
use tandem_tests::harness::{Lab, Mount, MountSpec, Storage, eventually};

use crate::support::assert_equal_and_unmount;

const SOON: Duration = Duration::from_secs(30);

/// A setting as `tandem status --json` tells it: value, origin, what comes at the next start.
fn setting(report: &Value, key: &str) -> (String, String, Option<String>) {
    let daemon = report.pointer("/mounts/0/daemon").or_else(|| report.pointer("/volumes/0/daemon")).expect("a daemon");
    let settings = daemon["settings"].as_array().expect("its settings");
    let found = settings.iter().find(|setting| setting["key"] == key).expect("the key");
    let text = |name: &str| found[name].as_str().map(str::to_owned);
    (text("value").expect("text"), text("origin").expect("text"), text("next"))
}

fn report(lab: &Lab, arguments: &[&str]) -> Value {
    let finished = lab.tandem(&[&["status", "--json"], arguments].concat());
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:#?}"))
}

fn of_mount(lab: &Lab, mount: &Mount, key: &str) -> (String, String, Option<String>) {
    setting(&report(lab, &[mount.path().to_str().expect("plain text")]), key)
}

fn of_storage(lab: &Lab, storage: &Storage, key: &str) -> (String, String, Option<String>) {
    setting(&report(lab, &["--server", &format!("127.0.0.1:{}", storage.port())]), key)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain text")
}

#[test]
fn mount_takes_its_file_again_at_sighup_and_tells_where_each_value_was_written() {
    let Some(lab) = Lab::new("reload-mount") else { return };
    let (storage, dir, file) = (lab.storage(), lab.new_dir("folder"), lab.path("mount.toml"));
    fs::write(&file, "bwlimit = '64M'\nwindow = '8M'\n").expect("written");
    let spec = MountSpec::new(&storage, "vol", &dir);
    let mount = lab.mount_with(&spec.options(&format!("config={},cache=strict", text(&file))));
    let origin = text(&file).to_owned();
    assert_eq!(of_mount(&lab, &mount, "bwlimit"), ("64M".into(), origin.clone(), None));
    assert_eq!(of_mount(&lab, &mount, "cache"), ("strict".into(), "command line".into(), None));
    assert_eq!(of_mount(&lab, &mount, "fsync"), ("local".into(), "default".into(), None));
    assert_eq!(mount.status().bandwidth_limit, 64 << 20);
    let shown = lab.tandem(&["status", "-v", text(&dir)]).stdout;
    assert!(shown.contains(&format!("bwlimit = 64M ({origin})")), "{shown}");

    fs::write(&file, "bwlimit = '32M'\nwindow = '16M'\ncongestion = 'throttle'\n").expect("written");
    mount.daemon().signal(libc::SIGHUP);
    assert!(eventually(SOON, || mount.status().bandwidth_limit == 32 << 20), "{}", mount.daemon().log_text());
    assert!(eventually(SOON, || mount.status().congestion == "throttle"));
    // The window is allotted at the start.
    let waits = || of_mount(&lab, &mount, "window") == ("8M".into(), origin.clone(), Some("16M".into()));
    assert!(eventually(SOON, waits), "{:?}", of_mount(&lab, &mount, "window"));

    lab.allow("all stays as it is", "a file that makes no sense is said");
    fs::write(&file, "bwlimt = '1M'\n").expect("written");
    mount.daemon().signal(libc::SIGHUP);
    assert!(eventually(SOON, || mount.daemon().log_text().contains("did you mean bwlimit?")));
    assert_eq!(mount.status().bandwidth_limit, 32 << 20);
    fs::write(dir.join("file"), "the mount goes on").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn storage_daemon_takes_its_file_again_at_sighup_and_goes_on_serving() {
    let Some(lab) = Lab::new("reload-storage") else { return };
    let file = lab.path("storaged.toml");
    fs::write(&file, "history-keep = '1GiB,2d'\nquota = '1GiB'\n").expect("written");
    let storage = Storage::start_with(&lab, "storage", &["--config", text(&file), "-o", "deleted-keep=3d"]);
    let dir = lab.new_dir("folder");
    let mount = lab.mount(&storage, "vol", &dir);
    // Made by its first attach.
    mount.settle();
    assert_eq!(of_storage(&lab, &storage, "history-keep"), ("1G,2d".into(), text(&file).into(), None));
    assert_eq!(of_storage(&lab, &storage, "deleted-keep"), ("3d".into(), "command line".into(), None));
    assert_eq!(storage.volume("vol").quota_bytes, 1 << 30);

    fs::write(&file, "history-keep = '2GiB'\nquota = '2GiB'\nindex-rate = '64MiB'\n").expect("written");
    storage.daemon().signal(libc::SIGHUP);
    assert!(eventually(SOON, || storage.volume("vol").history_limit_bytes == 2 << 30));
    let waits = || of_storage(&lab, &storage, "index-rate").2 == Some("64M".into());
    assert!(eventually(SOON, waits), "{:?}", of_storage(&lab, &storage, "index-rate"));
    // A quota of the configuration is for volumes that are made from now on.
    let other = lab.mount(&storage, "other", &lab.new_dir("other"));
    other.settle();
    assert_eq!((storage.volume("vol").quota_bytes, storage.volume("other").quota_bytes), (1 << 30, 2 << 30));
    fs::write(dir.join("file"), "the stream goes on").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    other.unmount();
}

#[test]
fn configuration_is_checked_by_the_daemon_that_will_read_it() {
    let Some(lab) = Lab::new("config-check") else { return };
    let (mount, storage) = (lab.path("mount.toml"), lab.path("storaged.toml"));
    fs::write(&mount, "fsync = ['durable', 'local:/tmp']\n").expect("written");
    fs::write(&storage, "data = '/srv/tandem'\nlog_level = 'debug'\n").expect("written");
    let good = lab.tandem(&["config", "check", "-v", text(&mount), text(&storage)]).expect_success("config check");
    assert!(good.stdout.contains("fsync = \"durable,local:/tmp\""), "{good:#?}");
    assert!(good.stdout.contains("log-level = \"debug\""), "{good:#?}");
    fs::write(&storage, "data = '/srv/tandem'\nlog_levle = 'debug'\n").expect("written");
    let bad = lab.tandem(&["config", "check", text(&storage)]);
    assert!(bad.code == Some(64) && bad.stderr.contains("did you mean log-level?"), "{bad:#?}");
}
