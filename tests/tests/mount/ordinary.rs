//! A mount that an ordinary user made, through fusermount3: no capabilities, so objects are found by their names, not by handles, and what
//! that user may not read the daemon cannot read either.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tandem_tests::{
    compare,
    harness::{Lab, Mount, MountSpec, Storage},
};

/// Who that is.
const USER: u32 = 65534;
/// Runs a program as that user.
const AS_USER: [&str; 5] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
const STEPS: &str = "1500";

fn as_user(program: &str, args: &[&str]) -> std::io::Result<Output> {
    Command::new(AS_USER[0]).args(&AS_USER[1..]).arg(program).args(args).output()
}

/// What a shell of the user does in a directory.
fn shell(dir: &Path, script: &str) {
    let text = dir.to_str().expect("plain text");
    expect_good(&as_user("sh", &["-ec", &format!("cd \"$0\"; {script}"), text]).expect("setpriv is installed"));
}

fn torture(args: &[&str]) {
    expect_good(&as_user(env!("CARGO_BIN_EXE_tandem-torture"), args).expect("setpriv is installed"));
}

fn expect_good(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn missing() -> Option<&'static str> {
    if Command::new("fusermount3").arg("--version").output().is_err() {
        return Some("fusermount3 is missing");
    }
    if !as_user("sh", &["-c", "exec 3<>/dev/fuse"]).is_ok_and(|output| output.status.success()) {
        return Some("/dev/fuse is for root only");
    }
    // Only root's programs may be somewhere where nobody else may look.
    match as_user(env!("CARGO_BIN_EXE_tandem-torture"), &[]) {
        Ok(output) if output.status.code() == Some(1) => None,
        _ => Some("another user cannot run the tools of the tests here"),
    }
}

fn give(path: &Path) {
    chown(path, Some(USER), Some(USER)).expect("root may");
}

/// The local secret, as if the user had started the storage daemon.
fn share_secret(lab: &Lab) {
    for entry in fs::read_dir(lab.runtime_dir()).expect("a directory").flatten() {
        give(&entry.path());
    }
}

/// A folder that belongs to the user, and what a mount of it needs.
struct Ordinary {
    lab: Lab,
    storage: Storage,
    folder: PathBuf,
    shown: PathBuf,
}

impl Ordinary {
    fn new(name: &str) -> Option<Ordinary> {
        let lab = Lab::new(name)?;
        if let Some(why) = missing() {
            eprintln!("SKIPPED: {why}");
            return None;
        }
        let storage = lab.storage();
        let [folder, shown, state] = ["folder", "shown", "user-state"].map(|name| lab.new_dir(name));
        for dir in [&folder, &shown, &state, &lab.runtime_dir()] {
            give(dir);
        }
        share_secret(&lab);
        for dir in [lab.root().to_owned(), lab.root().join("work")] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("the lab's own");
        }
        Some(Ordinary { lab, storage, folder, shown })
    }

    fn mount(&self) -> Mount {
        let options = format!("backing={}", self.folder.display());
        let spec = MountSpec::new(&self.storage, "vol", &self.shown).options(&options);
        self.lab.mount_with(&spec.state(&self.lab.path("user-state")).run_by(&AS_USER))
    }

    fn replica(&self, name: &str) -> PathBuf {
        self.storage.tree("vol").join(name)
    }
}

#[test]
fn what_an_ordinary_user_may_not_read_is_listed_and_follows_when_it_may() {
    let Some(ordinary) = Ordinary::new("ordinary") else { return };
    let Ordinary { lab, storage, folder, shown } = &ordinary;
    shell(folder, "echo open > open; echo secret > closed; mkdir -p shut/deep; echo inner > shut/deep/inner");
    shell(folder, "chmod 0 closed shut");
    let mount = ordinary.mount();
    mount.settle();
    assert_eq!(mount.status().unreadable, ["/closed", "/shut"]);
    let closed = fs::metadata(ordinary.replica("closed")).expect("its name is known");
    assert_eq!((closed.mode() & 0o7777, closed.len()), (0, 0), "nothing of its content is made up");
    assert_eq!(fs::read_dir(ordinary.replica("shut")).expect("root may").count(), 0);

    // Written while the replica is away, and closed before it is read.
    lab.allow_lost_peers();
    storage.kill();
    shell(shown, "echo more >> open; chmod 0 open");
    mount.kill();
    mount.detach();
    storage.restart();
    share_secret(lab);
    mount.start_again().expect("mounted again");
    mount.settle();
    assert_eq!(mount.status().unreadable, ["/closed", "/open", "/shut"]);
    let open = fs::metadata(ordinary.replica("open")).expect("there").mode();
    assert_eq!(open & 0o7777, 0, "attributes are replicated");

    shell(shown, "chmod 600 closed; chmod 644 open; chmod 755 shut; echo newer >> shut/deep/inner");
    mount.settle();
    assert_eq!(mount.status().unreadable, [""; 0]);
    compare::assert_equal(folder, &storage.tree("vol"));
    mount.unmount();
}

#[test]
fn mount_of_an_ordinary_user_answers_as_a_plain_directory_does() {
    let Some(ordinary) = Ordinary::new("ordinary-twin") else { return };
    let Ordinary { lab, storage, folder, shown } = &ordinary;
    let plain = lab.new_dir("plain");
    give(&plain);
    let mount = ordinary.mount();
    mount.settle();
    let [left, right] = [shown, &plain].map(|dir| dir.to_str().expect("plain text"));
    for seed in ["1", "2"] {
        torture(&["twin", left, right, seed, STEPS]);
        // The user may not read all of its own files; root may, below the mount.
        compare::assert_equal_with(folder, &plain, &compare::Options { mtime: false, limit: 20 });
    }
    // What is closed now may have been sent in part only.
    for dir in [shown, &plain] {
        shell(dir, "chmod -R u+rwX .");
    }
    mount.settle();
    compare::assert_equal(folder, &storage.tree("vol"));
    // What was known by its names is found again after a restart; what is closed has not changed.
    lab.allow_lost_peers();
    mount.kill();
    mount.detach();
    mount.start_again().expect("mounted again");
    torture(&["twin", left, right, "3", STEPS]);
    shell(shown, "chmod -R u+rwX .");
    mount.settle();
    compare::assert_equal(folder, &storage.tree("vol"));
    mount.unmount();
}
