//! What several situations need: a folder of mixed content, and the comparison of everything with everything.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileExt as _, PermissionsExt as _, symlink},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    ptr,
};

use rustix::{
    fs::{CWD, FileType, Mode, XattrFlags},
    io::Errno,
};
use tandem_tests::{
    compare,
    harness::{Lab, Mount, Storage},
    rng::{Rng, content},
};

/// Makes about `files` files of all kinds below `dir`: sizes from nothing to a MiB, holes, links, pipes, odd names, xattrs, ACLs.
pub fn fill_mixed(dir: &Path, files: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut dirs = vec![dir.to_owned()];
    let mut last = None;
    for at in 0..files {
        let parent = rng.pick(&dirs).clone();
        match rng.below(20) {
            0..3 => {
                let sub = parent.join(format!("dir{at}"));
                fs::create_dir(&sub).expect("new name");
                fs::set_permissions(&sub, fs::Permissions::from_mode(0o750)).expect("own directory");
                dirs.push(sub);
            }
            3 => symlink(format!("../target{at}"), parent.join(format!("link{at}"))).expect("new name"),
            4 => {
                let path = parent.join(format!("pipe{at}"));
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("new name");
            }
            5 => {
                if let Some(last) = &last {
                    fs::hard_link(last, parent.join(format!("hard{at}"))).expect("new name");
                }
            }
            6 => {
                let file = File::create(parent.join(format!("holes{at}"))).expect("new name");
                file.set_len(40 << 20).expect("sparse");
                file.write_all_at(&content(at as u64, 9000), 20 << 20).expect("room");
            }
            7 => {
                let name = [b"odd \xff\n".as_slice(), at.to_string().as_bytes()].concat();
                fs::write(parent.join(OsStr::from_bytes(&name)), content(at as u64, 100)).expect("new name");
            }
            kind => {
                let len = if kind == 8 { rng.index(1 << 20) } else { rng.index(20_000) };
                let path = parent.join(format!("file{at}"));
                fs::write(&path, content(at as u64, len)).expect("new name");
                if kind == 9 {
                    rustix::fs::setxattr(&path, "user.note", b"a note", XattrFlags::empty()).expect("xattrs are known");
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).expect("own file");
                }
                if kind == 10 {
                    std::os::unix::fs::chown(&path, Some(1234), Some(4321)).expect("root may");
                }
                last = Some(path);
            }
        }
    }
}

/// The token of an invitation to a volume, for a client that finds the storage daemon at `address`. Called on its own host.
pub fn invite(lab: &Lab, storage: &Storage, volume: &str, address: &str) -> String {
    let server = format!("127.0.0.1:{}", storage.port());
    let invited = lab.tandem(&["invite", volume, "--server", &server, "--address", address]).expect_success("invite");
    invited.stdout.split_whitespace().last().expect("a token").to_owned()
}

/// Joins with a token under a name; the new identity.
pub fn join(lab: &Lab, address: &str, token: &str, name: &str) -> PathBuf {
    let path = lab.path(&format!("{name}.pem"));
    let identity = path.to_str().expect("plain text");
    lab.tandem(&["join", address, token, "--name", name, "--identity", identity]).expect_success("join");
    path
}

/// Waits until everything is applied, then compares mount and replica.
pub fn assert_replica_equal(mount: &Mount, storage: &Storage, volume: &str) -> compare::Comparison {
    mount.settle();
    compare::assert_equal(mount.path(), &storage.tree(volume))
}

/// Compares, unmounts, and compares the folder below with the replica again.
pub fn assert_equal_and_unmount(mount: &Mount, storage: &Storage, volume: &str) {
    assert_replica_equal(mount, storage, volume);
    mount.unmount();
    compare::assert_equal(mount.path(), &storage.tree(volume));
}

/// `rsync -aHAXn --delete --itemize-changes` must have nothing to do.
pub fn assert_rsync_sees_nothing(left: &Path, right: &Path) {
    let mut command = Command::new("rsync");
    command.args(["-aHAXn", "--delete", "--itemize-changes"]).arg(left.join("")).arg(right.join(""));
    let output = command.output().expect("rsync is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.is_empty(), "rsync would change:\n{text}");
}

/// Storms `dir` by processes of their own.
pub fn storm_processes(dir: &Path, seed: u64, seconds: u64, processes: u64, workers: u64) -> Vec<Child> {
    let start = |process: u64| {
        Command::new(env!("CARGO_BIN_EXE_tandem-torture"))
            .arg("storm")
            .arg(dir)
            .args([(seed + 100 * process).to_string(), seconds.to_string(), workers.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was built beside this test")
    };
    (0..processes).map(start).collect()
}

/// Waits for storms and panics if one met an error that a healthy file system never gives.
pub fn finish_storms(storms: Vec<Child>) -> String {
    let mut all = String::new();
    for storm in storms {
        let output = storm.wait_with_output().expect("a child can be waited for");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "a storm met errors: {text}");
        all.push_str(&text);
    }
    eprint!("{all}");
    all
}

/// All files below a directory.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found
}

/// Whether a state directory says that a walk for changes around one of its mounts was begun and is not over.
pub fn is_walk_pending(state_dir: &Path) -> bool {
    let mounts = fs::read_dir(state_dir.join("mounts")).expect("a state directory that was used").flatten();
    let states: Vec<String> =
        mounts.filter_map(|entry| fs::read_to_string(entry.path().join("state.json")).ok()).collect();
    assert!(!states.is_empty(), "no mount left its state in {}", state_dir.display());
    states.iter().any(|state| state.contains("\"walk_since_ns\"") && !state.contains("\"walk_since_ns\": null"))
}

/// A file system of another kind, in a file.
pub struct Image {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
}

impl Image {
    /// `mkfs` and its options make it. `None`, and said so: not here.
    pub fn new(lab: &Lab, mkfs: &[&str]) -> Option<Image> {
        let (image, mountpoint) = (lab.path("image"), lab.new_dir("imaged"));
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let file = fs::File::create(&image).expect("writable");
        file.set_len(700 << 20).expect("sparse");
        let made = ran(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image))
            && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mountpoint));
        if !made {
            eprintln!("SKIPPED: no image can be made and mounted here ({}, loop devices)", mkfs[0]);
        }
        made.then_some(Image { mountpoint })
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH);
    }
}

/// What a call answered: a number, or why not.
pub type Answer = Result<u64, Errno>;

/// What a call answered that tells a failure by -1.
pub fn answer(done: isize) -> Answer {
    let error = || Errno::from_io_error(&io::Error::last_os_error()).expect("a call of the system failed");
    u64::try_from(done).map_err(|_| error())
}

/// A mapping of the first two pages of a file.
pub struct Map(*mut u8);

/// Length of a [`Map`].
pub const MAP_LEN: usize = 2 * 4096;

impl Map {
    /// With `PROT_*` and `MAP_*`.
    pub fn new(file: &File, protection: i32, flags: i32) -> Result<Map, Errno> {
        // SAFETY: a fresh mapping at an address that the kernel chooses; nobody else knows of it.
        let base = unsafe { libc::mmap(ptr::null_mut(), MAP_LEN, protection, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED { Err(answer(-1).expect_err("-1")) } else { Ok(Map(base.cast())) }
    }

    /// What is there.
    pub fn read(&self, at: usize) -> u8 {
        assert!(at < MAP_LEN);
        // SAFETY: within the mapping, which is readable and not longer than the file.
        unsafe { self.0.add(at).read_volatile() }
    }

    /// Stores a byte.
    pub fn store(&self, at: usize, byte: u8) {
        assert!(at < MAP_LEN);
        // SAFETY: within the mapping, which is writable and not longer than the file.
        unsafe { self.0.add(at).write_volatile(byte) }
    }

    /// Has it written, and waits.
    pub fn sync(&self) -> Answer {
        // SAFETY: the address and length of the mapping.
        answer(unsafe { libc::msync(self.0.cast(), MAP_LEN, libc::MS_SYNC) } as isize)
    }

    /// Changes `PROT_*`.
    pub fn protect(&self, protection: i32) -> Answer {
        // SAFETY: the address and length of the mapping; it stays readable.
        answer(unsafe { libc::mprotect(self.0.cast(), MAP_LEN, protection) } as isize)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is not used after this.
        unsafe { libc::munmap(self.0.cast(), MAP_LEN) };
    }
}
