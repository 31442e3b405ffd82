//! What programs of earlier versions left on a disk: it is opened, gone on with, and equal at the end; what a newer one wrote is refused with the
//! side that is to be upgraded. The fixtures are file systems, see `tests/fixtures/make`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tandem_runtime::tls::Identity;
use tandem_tests::{
    compare,
    harness::{Lab, Mount, MountSpec, Storage, eventually},
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal};

const SOON: Duration = Duration::from_secs(30);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The numbers of all fixtures.
fn numbers() -> Vec<String> {
    let names = fs::read_dir(fixtures()).expect("the fixtures").flatten().map(|entry| entry.file_name());
    let mut numbers: Vec<String> =
        names.filter_map(|name| Some(name.to_str()?.strip_suffix(".list")?.to_owned())).collect();
    numbers.sort();
    assert!(!numbers.is_empty(), "the fixtures are part of the tests");
    numbers
}

/// A disk of earlier programs, mounted.
struct Disk {
    at: PathBuf,
}

impl Disk {
    /// `None`: this machine mounts no files.
    fn open(lab: &Lab, number: &str, how: &str) -> Option<Disk> {
        let (image, at) = (lab.path(&format!("{number}-{how}.ext4")), lab.new_dir(&format!("{number}-{how}")));
        let packed = fixtures().join(format!("{number}-{how}.ext4.gz"));
        let unpacked = fs::File::create(&image).expect("room");
        let status = Command::new("gzip").arg("-dc").arg(&packed).stdout(unpacked).status().expect("gzip is there");
        assert!(status.success(), "{} cannot be unpacked", packed.display());
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).stderr(Stdio::null()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: no file system can be mounted from a file here");
            return None;
        }
        Some(Disk { at })
    }

    fn storage(&self, lab: &Lab) -> Storage {
        Storage::start_in(lab, "storage", &self.at.join("data"))
    }

    fn folder(&self) -> PathBuf {
        self.at.join("folder")
    }

    fn spec(&self, storage: &Storage) -> MountSpec {
        MountSpec::new(storage, "vol", &self.folder()).state(&self.at.join("state"))
    }

    fn mount(&self, lab: &Lab, storage: &Storage) -> Mount {
        lab.mount_with(&self.spec(storage))
    }

    /// The state directory of the folder's mount.
    fn state_of_mount(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.at.join("state/mounts")).expect("there").flatten();
        entries.next().expect("one").path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a test that fails leaves daemons that its lab ends later.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// Path, kind, mode, owner, size of what is no directory, target.
fn listed(dir: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let format = "%P\\t%y\\t%m\\t%U:%G\\t%s\\t%l\\n";
    let found = Command::new("find").arg(dir).args(["-name", "lost+found", "-prune", "-o", "-printf", format]).output();
    lines_of(&found.expect("find is there").stdout)
}

fn lines_of(text: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
        // The size of a directory is its file system's business.
        if fields[1] == b"d" {
            fields[4] = b"";
        }
        all.insert(fields[0].to_vec(), fields[1..].join(&b'\t'));
    }
    all
}

fn assert_is_what_was_left(tree: &Path, number: &str) {
    let list = fs::read(fixtures().join(format!("{number}.list"))).expect("its list");
    let (mut expected, mut found) = (lines_of(&list), listed(tree));
    // The root's own mode is the storage daemon's.
    assert!(expected.remove(&Vec::new()).is_some() && found.remove(&Vec::new()).is_some());
    assert_eq!(found, expected, "fixture {number}");
    let sums = fixtures().join(format!("{number}.sums"));
    let checked = Command::new("sha256sum").args(["--quiet", "-c"]).arg(&sums).current_dir(tree).output();
    let checked = checked.expect("sha256sum is there");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn what_earlier_programs_left_when_they_were_stopped_is_gone_on_with_as_it_is() {
    for number in numbers() {
        let Some(lab) = Lab::new(&format!("formats-{number}")) else { return };
        let Some(disk) = Disk::open(&lab, &number, "stopped") else { return };
        let storage = disk.storage(&lab);
        let status = storage.volume("vol");
        assert_eq!((status.quota_bytes, status.special.as_str(), status.epoch), (1 << 30, "keep", 1));
        assert_is_what_was_left(&storage.tree("vol"), &number);
        let server = format!("127.0.0.1:{}", storage.port());
        let clients = lab.tandem(&["clients", "--server", &server]).expect_success("clients").stdout;
        assert!(clients.contains("me@fixture") && clients.contains("vol:writer"), "{clients}");
        let identity = fs::read_dir(disk.at.join("joined/identities")).expect("there").flatten().next();
        let identity = Identity::load(&identity.expect("one").path()).expect("readable").expect("there");
        assert_eq!(identity.client, "me@fixture");
        let copy = lab.path("copy");
        let words = ["clone", "vol", copy.to_str().expect("plain text"), "--server", &server];
        lab.tandem(&words).expect_success("clone");
        assert_is_what_was_left(&copy, &number);

        let mount = disk.mount(&lab, &storage);
        mount.settle();
        assert_eq!((mount.status().epoch, mount.status().resumed_from.as_str()), (2, "marks"), "it is no first sync");
        fs::write(mount.path().join("dir/new"), "by a newer one").expect("writable");
        assert_equal_and_unmount(&mount, &storage, "vol");
    }
}

#[test]
fn what_earlier_programs_left_when_they_were_killed_is_redone_and_what_was_not_sent_arrives() {
    for number in numbers() {
        let Some(lab) = Lab::new(&format!("formats-killed-{number}")) else { return };
        let Some(disk) = Disk::open(&lab, &number, "killed") else { return };
        let storage = disk.storage(&lab);
        let numbers = fs::read_to_string(storage.tree("vol").join("dir/numbers")).expect("readable");
        assert!(numbers.ends_with("2000\nmore\n"), "the log was redone");
        assert!(!storage.tree("vol").join("unsent").exists());
        let mount = disk.mount(&lab, &storage);
        assert_replica_equal(&mount, &storage, "vol");
        let arrived = fs::read_to_string(storage.tree("vol").join("unsent")).expect("arrived");
        assert_eq!(arrived, "never sent\n");
        mount.unmount();
        compare::assert_equal(&disk.folder(), &storage.tree("vol"));
    }
}

#[test]
fn what_a_newer_program_wrote_is_refused_with_what_to_upgrade() {
    let Some(lab) = Lab::new("formats-newer") else { return };
    let Some(disk) = Disk::open(&lab, numbers().last().expect("one"), "stopped") else { return };
    let volume = disk.at.join("data/vol");
    let bump = |path: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(path).expect("text");
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replacen(from, to, 1)).expect("written");
    };
    lab.allow("cannot be opened", "a volume of a newer version is said");
    bump(&volume.join("log/format"), "log 1", "log 99");
    let storage = disk.storage(&lab);
    let told = || storage.volume("vol").reason;
    assert!(eventually(SOON, || told().contains("99")), "{}", told());
    assert!(told().contains("upgrade"), "{}", told());
    storage.daemon().terminate(SOON);
    bump(&volume.join("log/format"), "log 99", "log 1");
    storage.restart();
    bump(&disk.state_of_mount().join("state.json"), "\"version\": 1", "\"version\": 99");
    let refused = lab.mount_refused(&disk.spec(&storage)).stderr;
    assert!(refused.contains("99") && refused.contains("upgrade tandem-mountd"), "{refused}");
    bump(&disk.state_of_mount().join("state.json"), "\"version\": 99", "\"version\": 1");
    let mount = disk.mount(&lab, &storage);
    assert_equal_and_unmount(&mount, &storage, "vol");
}
