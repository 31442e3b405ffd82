//! Ordinary programs in a mount: git, tar, rsync, SQLite, an editor's way of saving.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::Path,
    process::Command,
};

use tandem_tests::harness::Lab;

use crate::support::{assert_equal_and_unmount, assert_replica_equal, assert_rsync_sees_nothing, fill_mixed};

fn run(dir: &Path, program: &str, args: &[&dyn AsRef<OsStr>]) -> String {
    let mut command = Command::new(program);
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    for arg in args {
        command.arg(arg.as_ref());
    }
    let output = command.output().unwrap_or_else(|error| panic!("{program} is not installed: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn make_repository(dir: &Path) {
    fs::create_dir(dir).expect("new");
    run(dir, "git", &[&"init", &"-q"]);
    for round in 0..3 {
        for at in 0..60 {
            let sub = dir.join(format!("part{}", at % 7));
            fs::create_dir_all(&sub).expect("writable");
            fs::write(sub.join(format!("source{at}.txt")), format!("round {round} of {at}\n").repeat(50))
                .expect("writable");
        }
        run(dir, "git", &[&"add", &"."]);
        run(dir, "git", &[&"-c", &"user.name=t", &"-c", &"user.email=t@example.org", &"commit", &"-qm", &"round"]);
    }
}

#[test]
fn git_tar_and_rsync_work_in_a_mount_and_the_replica_is_equal() {
    let Some(lab) = Lab::new("everyday") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    let repository = lab.path("repository");
    make_repository(&repository);

    run(mount.path(), "git", &[&"clone", &"-q", &repository, &"clone"]);
    let clone = mount.path().join("clone");
    run(&clone, "git", &[&"checkout", &"-q", &"HEAD~1"]);
    run(&clone, "git", &[&"checkout", &"-q", &"-"]);
    assert_eq!(run(&clone, "git", &[&"status", &"--porcelain"]), "");
    run(&clone, "git", &[&"gc", &"-q"]);
    run(&clone, "git", &[&"fsck"]);

    let mixed = lab.new_dir("mixed");
    fill_mixed(&mixed, 200, 5);
    let archive = lab.path("mixed.tar");
    run(&mixed, "tar", &[&"-cf", &archive, &"--xattrs", &"."]);
    fs::create_dir(mount.path().join("untarred")).expect("writable");
    run(&mount.path().join("untarred"), "tar", &[&"-xpf", &archive, &"--xattrs"]);
    run(lab.root(), "rsync", &[&"-aHAX", &mixed.join(""), &mount.path().join("rsynced")]);
    assert_rsync_sees_nothing(&mixed, &mount.path().join("rsynced"));
    run(mount.path(), "rm", &[&"-r", &"untarred"]);

    assert_replica_equal(&mount, &storage, "vol");
    assert_rsync_sees_nothing(mount.path(), &storage.tree("vol"));
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn sqlite_in_both_journal_modes_opens_on_the_replica() {
    let Some(lab) = Lab::new("sqlite") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    for mode in ["wal", "delete"] {
        let mut script = format!("pragma journal_mode={mode};\ncreate table t(a integer primary key, b blob);\n");
        for at in 0..60 {
            script.push_str(&format!("insert into t(b) select randomblob(2000) from generate_series(1,20); update t set b=randomblob(10) where a%7={};\n", at % 7));
        }
        script.push_str("vacuum; select count(*) from t;\n");
        let name = format!("{mode}.db");
        let count = run(mount.path(), "sqlite3", &[&name.as_str(), &script]);
        assert!(count.trim().ends_with("1200"), "{count}");
    }
    assert_equal_and_unmount(&mount, &storage, "vol");
    for mode in ["wal", "delete"] {
        let copy = lab.path(&format!("copy-{mode}.db"));
        fs::copy(storage.tree("vol").join(format!("{mode}.db")), &copy).expect("on the replica");
        assert_eq!(run(lab.root(), "sqlite3", &[&copy, &"pragma integrity_check;"]).trim(), "ok");
    }
}

#[test]
fn saving_by_temporary_file_and_rename_leaves_the_last_version() {
    let Some(lab) = Lab::new("save") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    for round in 0..300 {
        let temporary = mount.path().join(".text.swp");
        fs::write(&temporary, format!("version {round}\n")).expect("writable");
        File::open(&temporary).and_then(|file| file.sync_all()).expect("fsync works");
        fs::rename(&temporary, mount.path().join("text")).expect("rename works");
    }
    assert_replica_equal(&mount, &storage, "vol");
    assert_eq!(fs::read_to_string(storage.tree("vol").join("text")).expect("on the replica"), "version 299\n");
}
