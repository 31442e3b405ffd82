//! The whole storage daemon, traced: with symlinks planted in a replica's tree, no call of any thread opens or changes anything outside.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};
use tandem_tests::{
    compare,
    harness::{Lab, Mount, MountSpec, Storage, binary, eventually, run, system},
    rng::content,
};

const SOON: Duration = Duration::from_secs(30);
/// Rounds of changes below a name that is a directory and a link by turns.
const ROUNDS: u64 = 60;
/// Every planted name has this in it, and nothing else has.
const PLANTED: &str = "planted";
/// System calls that touch a name itself, never what a link at it leads to.
const NAME_ONLY: [&str; 13] = [
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
    "mknodat",
    "symlink",
    "symlinkat",
    "readlink",
    "readlinkat",
    "rmdir",
];

/// strace as it becomes the program that it traces, with all its threads; what files are called is shown with each descriptor.
const STRACE: [&str; 14] = [
    "strace",
    "-D",
    "-f",
    "--seccomp-bpf",
    "-y",
    "-A",
    "-q",
    "-s",
    "4096",
    "-e",
    "signal=none",
    "-e",
    "trace=%file,open_by_handle_at",
    "-o",
];

fn tracer(trace: &Path) -> Vec<&OsStr> {
    STRACE.iter().map(OsStr::new).chain([trace.as_os_str()]).collect()
}

/// What lies outside, and must stay as it is.
fn picture(outside: &Path) -> Vec<(PathBuf, u32, i64, i64, Vec<u8>)> {
    let mut all = vec![outside.to_owned(), outside.join("victim"), outside.join("sub"), outside.join("sub/inner")];
    all.sort();
    let look = |path: PathBuf| {
        let metadata = fs::symlink_metadata(&path).expect("it is still there");
        let bytes = if metadata.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
        (path, metadata.mode(), metadata.ctime(), metadata.ctime_nsec(), bytes)
    };
    all.into_iter().map(look).collect()
}

/// The call of a line of the trace: `PID call(...)`, or `PID <... call resumed>...`.
fn call(line: &str) -> &str {
    let rest = line.split_once(' ').map_or(line, |(_, rest)| rest.trim_start());
    let rest = rest.strip_prefix("<... ").unwrap_or(rest);
    rest.split(['(', ' ']).next().unwrap_or_default()
}

/// Why a line of the trace must not be there.
fn offends(line: &str, outside: &str) -> Option<&'static str> {
    if line.contains(&format!("<{outside}")) {
        return Some("it has something outside open");
    }
    if !line.contains(PLANTED) {
        return None;
    }
    // Each name that is given stands in quotes; what was read from a link stands behind the names.
    let names = line.split('"').skip(1).step_by(2).filter(|name| name.contains(PLANTED));
    let call = call(line);
    for name in names {
        let below = name.split('/').rev().skip(1).any(|part| part.contains(PLANTED));
        let careful = match call {
            "openat2" => line.contains("RESOLVE_NO_SYMLINKS") && line.contains("RESOLVE_BENEATH"),
            _ if below => false,
            "linkat" | "name_to_handle_at" => !line.contains("AT_SYMLINK_FOLLOW"),
            call if NAME_ONLY.contains(&call) || call.starts_with('l') => true,
            _ => line.contains("AT_SYMLINK_NOFOLLOW") || line.contains("O_NOFOLLOW"),
        };
        if !careful {
            return Some("it follows a link that may be at this name");
        }
    }
    None
}

#[test]
fn a_line_that_follows_a_planted_link_is_seen() {
    let bad = [
        r#"1 openat(5</d/vol/tree>, "planted", O_RDONLY) = 3</d/vol/tree/planted>"#,
        r#"1 openat2(5</d/vol/tree>, "planted/victim", {flags=O_RDWR, resolve=RESOLVE_NO_XDEV}, 24) = 3</o/victim>"#,
        r#"1 openat2(5</d/vol/tree>, "other", {flags=O_RDWR}, 24) = 3</outside/victim>"#,
        r#"1 newfstatat(5</d/vol/tree>, "planted", {st_mode=S_IFDIR}, 0) = 0"#,
        r#"1 unlinkat(5</d/vol/tree>, "planted/victim", 0) = 0"#,
        r#"1 fchmodat(5</d/vol/tree>, "planted", 0644) = 0"#,
        r#"1 <... openat2 resumed>) = 7</outside/sub>"#,
    ];
    for line in bad {
        assert!(offends(line, "/outside").is_some(), "{line}");
    }
    let good = [
        r#"1 unlinkat(5</d/vol/tree>, "planted", 0) = 0"#,
        r#"1 openat2(5</d/t>, "planted", {flags=O_PATH, resolve=RESOLVE_NO_SYMLINKS|RESOLVE_BENEATH}, 24) = -1 ELOOP"#,
        r#"1 readlinkat(5</d/vol/tree>, "planted", "/outside", 256) = 8"#,
        r#"1 statx(5</d/vol/tree>, "planted", AT_SYMLINK_NOFOLLOW, STATX_TYPE, {stx_mask=STATX_TYPE}) = 0"#,
        r#"1 symlinkat("/outside/planted", 5</d/vol/tree>, "planted") = 0"#,
        r#"1 openat2(5</d/vol/tree>, "file", {flags=O_RDWR}, 24) = 3</d/vol/tree/file>"#,
    ];
    for line in good.iter().filter(|line| !line.contains("symlinkat")) {
        assert_eq!(offends(line, "/outside"), None, "{line}");
    }
}

/// A link in the place of what stands at `name` in the replica's tree.
fn plant(tree: &Path, name: &str, target: &Path, aside: &Path) {
    fs::rename(tree.join(name), aside.join(name)).expect("the attacker may");
    symlink(target, tree.join(name)).expect("the attacker may");
}

/// Changes of all kinds at and below names where links are planted, as a writer makes them who knows of nothing.
fn changes(folder: &Path) {
    let at = |name: &str| folder.join(name);
    let (dir, file) = (at("planted-dir"), at("planted-file"));
    fs::write(&file, "changed").expect("writable");
    fs::OpenOptions::new().write(true).open(&file).and_then(|file| file.set_len(3)).expect("writable");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).expect("own file");
    std::os::unix::fs::chown(&file, Some(1234), Some(1234)).expect("root may");
    rustix::fs::setxattr(&file, "user.note", b"a note", XattrFlags::empty()).expect("xattrs are known");
    fs::write(dir.join("victim"), "changed").expect("writable");
    fs::write(dir.join("new"), "new").expect("writable");
    fs::create_dir(dir.join("sub/deeper")).expect("a new name");
    fs::rename(at("elsewhere"), dir.join("elsewhere")).expect("renamable");
    fs::remove_file(dir.join("sub/inner")).expect("removable");
    fs::hard_link(&file, dir.join("hard")).expect("linkable");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("own directory");
}

/// Exchanges a directory of the tree with a link, again and again, while the writer works below it.
fn race(storage: &Storage, mount: &Mount, link: &Path) {
    let raced = storage.tree("vol").join("planted-race");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &raced, CWD, link, RenameFlags::EXCHANGE);
                thread::yield_now();
            }
            // As it was.
            if fs::symlink_metadata(&raced).is_ok_and(|metadata| metadata.is_symlink()) {
                let _ = renameat_with(CWD, &raced, CWD, link, RenameFlags::EXCHANGE);
            }
        });
        for round in 0..ROUNDS {
            let dir = mount.path().join("planted-race");
            fs::write(dir.join("victim"), content(round, 3000)).expect("writable");
            fs::write(dir.join(format!("new{round}")), "new").expect("writable");
            fs::create_dir_all(dir.join(format!("sub/dir{round}"))).expect("writable");
            fs::set_permissions(dir.join("victim"), fs::Permissions::from_mode(0o600 + (round % 8) as u32))
                .expect("own file");
            thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn storage_daemon_with_symlinks_planted_in_its_tree_opens_nothing_outside_it() {
    let Some(lab) = Lab::new("traced") else { return };
    let trace = lab.path("trace");
    let probe = lab.path("probe");
    let probed = [&tracer(&probe)[1..], &[OsStr::new("true")]].concat();
    let probed: Vec<&str> = probed.iter().map(|word| word.to_str().expect("plain text")).collect();
    if let Err(error) = system("strace", &probed) {
        eprintln!("SKIPPED traced: {error}");
        return;
    }
    for part in ["vol", "replica", "tree", "apply", "verify"] {
        lab.allow(part, "the replica is tampered with");
    }
    lab.allow_lost_peers();
    let outside = lab.new_dir("outside");
    fs::create_dir(outside.join("sub")).expect("own directory");
    fs::write(outside.join("victim"), "other people's").expect("writable");
    fs::write(outside.join("sub/inner"), "other people's").expect("writable");

    // Nothing but the way in which it opens things holds it back here.
    let storage = Storage::start_under(&lab, "storage", &tracer(&trace), &["--sandbox", "off"]);
    let folder = lab.new_dir("folder");
    for dir in ["planted-dir", "planted-race"] {
        fs::create_dir_all(folder.join(dir).join("sub")).expect("writable");
        fs::write(folder.join(dir).join("victim"), "mine").expect("writable");
        fs::write(folder.join(dir).join("sub/inner"), "mine").expect("writable");
    }
    for file in ["planted-file", "elsewhere", "other"] {
        fs::write(folder.join(file), content(1, 9000)).expect("writable");
    }
    let mount = lab.mount(&storage, "vol", &folder);
    mount.settle();
    let before = picture(&outside);
    let (tree, aside) = (storage.tree("vol"), lab.new_dir("aside"));
    plant(&tree, "planted-dir", &outside, &aside);
    plant(&tree, "planted-file", &outside.join("victim"), &aside);
    symlink(&outside, tree.join("planted-more")).expect("the attacker may");
    let link = lab.path("link");
    symlink(&outside, &link).expect("the attacker may");

    changes(mount.path());
    race(&storage, &mount, &link);
    // A volume whose tree was changed from outside while ops waited for it is repaired offline, and the mount fills in what was moved away.
    storage.kill();
    let mut command = Command::new(tracer(&trace)[0]);
    command
        .args(&tracer(&trace)[1..])
        .arg(binary("tandem-storaged"))
        .arg("check")
        .arg("--data")
        .arg(storage.data())
        .arg("--repair");
    let repaired = run(&mut command, Duration::from_secs(120));
    assert!(!repaired.timed_out, "{repaired:#?}");
    storage.restart();
    mount.unmount();
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &folder).options("init=push"));
    mount.settle();
    let seen = compare::trees(mount.path(), &tree, &compare::Options::default()).expect("readable");
    let to = lab.path("copy");
    let server = format!("127.0.0.1:{}", storage.port());
    let cloned = lab.tandem(&["clone", "vol", to.to_str().expect("plain text"), "--server", &server]);
    mount.unmount();
    assert!(storage.daemon().terminate(SOON).is_some(), "it ends");

    assert_eq!(picture(&outside), before, "something outside was changed");
    let read = || String::from_utf8_lossy(&fs::read(&trace).unwrap_or_default()).into_owned();
    assert!(eventually(SOON, || read().trim_end().ends_with("+++")), "the trace is complete");
    let lines = read();
    let outside = outside.to_str().expect("plain text");
    let bad: Vec<_> = lines.lines().filter_map(|line| offends(line, outside).map(|why| (why, line))).collect();
    assert!(bad.is_empty(), "{} of {} calls: {:#?}", bad.len(), lines.lines().count(), &bad[..bad.len().min(10)]);
    let met = lines.lines().filter(|line| line.contains(PLANTED)).count();
    assert!(met > 100, "the daemon met the links: {met} lines");
    assert!(seen.differences.is_empty(), "{}", seen.report());
    cloned.expect_success("clone");
}
