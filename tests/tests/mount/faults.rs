//! Full and read-only disks on either side, and a replica that vanishes in the middle of a write.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, UnmountFlags};
use tandem_tests::{
    harness::{Lab, MountSpec, Storage, eventually},
    rng::content,
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal};

/// A small file system in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: &Path, bytes: u64) -> SmallDisk {
        fs::create_dir_all(path).expect("writable");
        let disk = SmallDisk(path.to_owned());
        disk.mount(MountFlags::empty(), bytes);
        disk
    }

    fn mount(&self, flags: MountFlags, bytes: u64) {
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("no NUL");
        rustix::mount::mount("tmpfs", &self.0, "tmpfs", flags, options.as_c_str()).expect("root may mount");
    }

    fn change(&self, read_only: bool, bytes: u64) {
        let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("no NUL");
        rustix::mount::mount_remount(&self.0, flags, options.as_c_str()).expect("it can be remounted");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn full_disk_of_the_replica_stops_the_link_and_goes_on_when_there_is_room() {
    let Some(lab) = Lab::new("full-replica") else { return };
    for part in ["space", "full", "fault", "ENOSPC", "os error 28", "stopped", "cannot"] {
        lab.allow(part, "the replica's disk is full");
    }
    lab.allow_lost_peers();
    let disk = SmallDisk::new(&lab.path("disk"), 96 << 20);
    let storage = Storage::start_in(&lab, "storage", &disk.0.join("data"));
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("a"), "fits").expect("writable");
    mount.settle();
    let file = File::create(mount.path().join("big")).expect("local work goes on");
    for block in 0..140 {
        file.write_all_at(&content(block, 1 << 20), block << 20).expect("local work goes on");
    }
    drop(file);
    let told = eventually(Duration::from_secs(40), || {
        let status = mount.status();
        status.state != "live" && !(status.reason.is_empty() && status.last_error.is_empty())
    });
    assert!(told, "status says why the link stopped: {:#?}", mount.status());
    fs::write(mount.path().join("b"), "local work still goes on").expect("local work goes on");

    disk.change(false, 1 << 30);
    assert_replica_equal(&mount, &storage, "vol");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn full_disk_of_the_client_gives_enospc_and_the_replica_gets_what_happened() {
    let Some(lab) = Lab::new("full-client") else { return };
    let storage = lab.storage();
    let disk = SmallDisk::new(&lab.path("disk"), 16 << 20);
    let dir = disk.0.join("folder");
    fs::create_dir(&dir).expect("writable");
    let mount = lab.mount(&storage, "vol", &dir);
    let file = File::create(mount.path().join("big")).expect("there is room");
    let mut error = None;
    for block in 0..40 {
        if let Err(refused) = file.write_all_at(&content(block, 1 << 20), block << 20) {
            error = Some(refused);
            break;
        }
    }
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::StorageFull));
    drop(file);
    assert_replica_equal(&mount, &storage, "vol");
    fs::remove_file(mount.path().join("big")).expect("removing needs no room");
    // The kernel tells the daemon a moment later that nobody knows the file any more.
    let room = || fs::write(mount.path().join("small"), "room again").is_ok();
    assert!(eventually(Duration::from_secs(5), room), "there is room again");
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn read_only_folder_is_refused_or_served_read_only() {
    let Some(lab) = Lab::new("read-only-client") else { return };
    let storage = lab.storage();
    let disk = SmallDisk::new(&lab.path("disk"), 16 << 20);
    fs::write(disk.0.join("a"), "1").expect("writable");
    disk.change(true, 16 << 20);
    let spec = MountSpec::new(&storage, "vol", &disk.0);
    match tandem_tests::harness::Mount::start(&lab, &spec) {
        Ok(mount) => {
            assert_replica_equal(&mount, &storage, "vol");
            let error = fs::write(mount.path().join("b"), "2").expect_err("the disk is read-only");
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
            mount.unmount();
        }
        Err(said) => {
            lab.allow("read-only", "it is");
            assert!(said.to_lowercase().contains("read-only"), "{said}");
        }
    }
}

#[test]
fn read_only_disk_of_the_replica_is_said() {
    let Some(lab) = Lab::new("read-only-replica") else { return };
    lab.allow("ead-only", "it is");
    lab.allow("os error 30", "it is");
    lab.allow_lost_peers();
    let disk = SmallDisk::new(&lab.path("disk"), 256 << 20);
    let storage = Storage::start_in(&lab, "storage", &disk.0.join("data"));
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("a"), "1").expect("writable");
    mount.settle();
    storage.daemon().terminate(Duration::from_secs(20)).expect("SIGTERM ends it");
    disk.change(true, 256 << 20);
    let start = tandem_tests::harness::run(
        lab.command("tandem-storaged").arg("--data").arg(storage.data()).args(["--listen", "127.0.0.1:0"]),
        Duration::from_secs(20),
    );
    assert!(start.timed_out || start.text().to_lowercase().contains("read-only"), "{start:#?}");
    fs::write(mount.path().join("b"), "2").expect("local work goes on");
    disk.change(false, 256 << 20);
    storage.restart();
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn replica_that_vanishes_in_the_middle_of_a_write_hangs_nobody() {
    let Some(lab) = Lab::new("vanish") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let path = mount.path().join("big");
    let writer = thread::spawn(move || {
        let file = File::create(&path).expect("writable");
        let begin = Instant::now();
        let mut slowest = Duration::ZERO;
        for block in 0..200 {
            let started = Instant::now();
            file.write_all_at(&content(block, 1 << 20), block << 20).expect("local work goes on");
            slowest = slowest.max(started.elapsed());
        }
        file.sync_all().expect("fsync is local by default");
        (begin.elapsed(), slowest)
    });
    thread::sleep(Duration::from_millis(300));
    storage.kill();
    let (took, slowest) = writer.join().expect("the writer ends");
    eprintln!("200 MiB while the replica vanished: {took:?}, slowest write {slowest:?}");
    assert!(slowest < Duration::from_secs(10), "no call hangs: {slowest:?}");
    storage.restart();
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn sigterm_of_both_daemons_in_the_middle_of_work_loses_nothing() {
    let Some(lab) = Lab::new("sigterm") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    for at in 0..400 {
        fs::write(mount.path().join(format!("f{at}")), content(at, 8000)).expect("writable");
    }
    storage.daemon().terminate(Duration::from_secs(30)).expect("SIGTERM ends storaged");
    fs::write(mount.path().join("alone"), "1").expect("local work goes on");
    mount.daemon().terminate(Duration::from_secs(30)).expect("SIGTERM ends mountd");
    assert!(!tandem_tests::harness::is_mounted(mount.path()), "SIGTERM unmounts");
    storage.restart();
    mount.start_again().expect("mounted again");
    assert_equal_and_unmount(&mount, &storage, "vol");
}
