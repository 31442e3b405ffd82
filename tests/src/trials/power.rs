//! Power loss trials: the file system under either side, or under both, is shut down without a flush of its journal, under load.
//!
//! The client's folder and its state directory lie on one image, the storage daemon's directory on another. After a cut the daemon is
//! killed (or was killed right before), the image is mounted again, and:
//!
//! - the replica alone must have all that was acknowledged, and be a past state, whoever lost power;
//! - the recovered folder must have all that was acknowledged;
//! - when the two have met, both are equal: the replica follows what the client's file system recovered.
//!
//! What lives in the runtime directory does not survive either: it is on tmpfs where people run this.

use std::{fs, path::Path, sync::Arc, thread, time::Duration};

use crate::{
    harness::{Daemon, Lab, MountSpec, Storage, eventually},
    rng::Rng,
    trials::{
        Outcome, PATIENCE,
        crash::{Rig, Stopped, VOLUME, random_pause},
        image::{FileSystem, Image},
        ledger::Look,
        load::{Load, Mix, Promises, Tolerated, assert_kept},
    },
};

/// Who loses power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The machine with the mount.
    Client,
    /// The machine with the replica.
    Storage,
    /// Both at about the same time.
    Both,
}

/// All of them, with their names on a command line.
pub const SIDES: [(&str, Side); 3] = [("client", Side::Client), ("storage", Side::Storage), ("both", Side::Both)];

const IMAGE_BYTES: u64 = 3 << 30;

impl Side {
    fn client(self) -> bool {
        self != Side::Storage
    }

    fn storage(self) -> bool {
        self != Side::Client
    }
}

/// The two disks. Dropped after the daemons that use them.
struct Disks {
    client: Image,
    storage: Image,
    _dir: tempfile::TempDir,
}

impl Disks {
    fn new(file_system: FileSystem) -> Result<Disks, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("loop devices need root".to_owned());
        }
        let dir = tempfile::Builder::new().prefix("tandem-disks-").tempdir().map_err(|error| error.to_string())?;
        let image = |name: &str| {
            Image::new(file_system, &dir.path().join(format!("{name}.img")), IMAGE_BYTES, &dir.path().join(name))
        };
        Ok(Disks { client: image("client")?, storage: image("storage")?, _dir: dir })
    }
}

fn rig(disks: &Disks) -> Option<Rig> {
    let lab = Lab::new("power")?;
    for part in ["os error 5", "Input/output error", "EIO", "shut down"] {
        lab.allow(part, "its disk is shut down by this test");
    }
    let storage = Storage::start_in(&lab, "storage", &disks.storage.dir().join("data"));
    let folder = disks.client.dir().join("folder");
    fs::create_dir(&folder).expect("a new file system takes a directory");
    let spec =
        MountSpec::new(&storage, VOLUME, &folder).options("fsync=durable").state(&disks.client.dir().join("state"));
    Some(Rig::with(lab, storage, &spec))
}

/// What a machine keeps in memory only: everything of the mounts, or of the storage daemons.
fn forget_runtime(runtime: &Path, of_storage: bool) {
    for entry in fs::read_dir(runtime).into_iter().flatten().flatten() {
        let is_storage = entry.file_name().to_string_lossy().starts_with("storaged-");
        if is_storage == of_storage {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// The power of one machine goes.
///
/// An fsync that is under way while the shutdown call runs may return 0 although nothing became durable (the kernel finds its
/// transaction gone and takes it for done). No machine without power returns from a call, so the daemon must not hear of it: it is
/// killed before, or stopped before and killed after, which cuts what is under way in the middle.
fn cut(image: &Image, daemon: &Daemon, rng: &mut Rng) {
    if rng.chance(50) {
        daemon.kill();
        image.cut();
    } else {
        daemon.signal(libc::SIGSTOP);
        random_pause(rng, Duration::from_millis(10));
        image.cut();
        daemon.kill();
    }
}

/// The client's disk dies while its daemon lives on for a moment: programs get errors, and nothing acknowledged from now on counts.
fn disk_dies(image: &Image, daemon: &Daemon, promises: &Promises, rng: &mut Rng) {
    promises.close();
    image.cut();
    random_pause(rng, Duration::from_millis(100));
    daemon.kill();
}

fn lose_power(rig: &Rig, disks: &Disks, side: Side, promises: &Promises, rng: &mut Rng) {
    let client_first = rng.chance(50);
    let client = |rng: &mut Rng| match rng.chance(25) {
        true => disk_dies(&disks.client, rig.mount.daemon(), promises, rng),
        false => cut(&disks.client, rig.mount.daemon(), rng),
    };
    if side.client() && client_first {
        client(rng);
    }
    if side.storage() {
        cut(&disks.storage, rig.storage.daemon(), rng);
    }
    if side.client() && !client_first {
        client(rng);
    }
}

/// One loss: load, cut, each side alone, both together.
fn loss(rig: &mut Rig, disks: &mut Disks, point: u64, side: Side, rng: &mut Rng, lie: bool) -> u64 {
    let load = rig.load(&format!("{point}"), rng.bits(), Mix::any(rng));
    let promises = Arc::clone(load.promises());
    eventually(PATIENCE, || promises.acked() > 5);
    random_pause(rng, Duration::from_millis(3000));
    lose_power(rig, disks, side, &promises, rng);
    if lie {
        promises.lie();
    }
    let stopped = (!side.client()).then(|| Stopped::new(&rig.mount));
    if side.storage() {
        forget_runtime(&rig.lab.runtime_dir(), true);
        disks.storage.recover();
        rig.storage.restart();
    }
    rig.check_replica(&format!("after power loss {point} of {side:?}"));
    drop(stopped);
    if side.client() {
        recover_client(rig, disks, load, point);
    } else {
        rig.wait_for_acks(&load);
        let errors = load.stop(Tolerated::Nothing);
        assert!(errors.is_empty(), "the load met errors: {errors:?}");
    }
    rig.check_equal();
    assert_kept(&rig.all_promises(), &rig.storage.tree(VOLUME), Look::AcknowledgedOnly, "when both have met");
    rig.assert_monotonic();
    promises.acked()
}

fn recover_client(rig: &mut Rig, disks: &mut Disks, load: Load, point: u64) {
    let errors = load.stop(Tolerated::Gone);
    assert!(errors.is_empty(), "the load met errors: {errors:?}");
    rig.mount.detach();
    forget_runtime(&rig.lab.runtime_dir(), false);
    disks.client.recover();
    // The past of the folder is now what its file system recovered, of which no more is known than what was acknowledged.
    rig.weaken();
    assert_kept(&rig.all_promises(), rig.mount.path(), Look::AcknowledgedOnly, "as its file system recovered it");
    rig.mount.start_again().unwrap_or_else(|error| panic!("no mount after power loss {point}: {error}"));
}

/// `points` power losses of one volume. With `lie` the trial has to fail.
pub fn trial(seed: u64, file_system: FileSystem, side: Side, points: u64, lie: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let mut disks = match Disks::new(file_system) {
        Ok(disks) => disks,
        Err(why) => return Outcome::Skipped(why),
    };
    let Some(mut rig) = rig(&disks) else { return Outcome::Skipped("no mounts here".to_owned()) };
    let mut acked = 0;
    for point in 0..points {
        acked += loss(&mut rig, &mut disks, point, side, &mut rng, lie && point + 1 == points);
    }
    let answers = rig.finish();
    // The last unmount of the folder is lazy inside; its file system is free a moment later.
    thread::sleep(Duration::from_millis(50));
    Outcome::Held(format!("{points} power losses, {acked} acknowledged calls, {answers} positions seen"))
}
