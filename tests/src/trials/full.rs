//! Full disks: a small image under either side fills up under load, and is given room again.
//!
//! When the replica's disk is full the mount goes on locally, its status says why nothing is sent, and everything goes on by itself
//! when there is room. When the client's disk is full programs get ENOSPC, and the replica gets what happened.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::FallocateFlags;

use crate::{
    harness::{Lab, MountSpec, Storage, eventually},
    rng::Rng,
    trials::{
        Outcome, PATIENCE,
        crash::{Rig, VOLUME, random_pause},
        image::{FileSystem, Image},
        load::{Mix, Tolerated},
    },
};

/// Whose disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The folder's and the client's state.
    Client,
    /// The replica's.
    Storage,
}

/// All of them, with their names on a command line.
pub const SIDES: [(&str, Side); 2] = [("client", Side::Client), ("storage", Side::Storage)];

const IMAGE_BYTES: u64 = 768 << 20;
/// Room that the ballast leaves; the load needs seconds to use it up.
const ROOM_BYTES: u64 = 12 << 20;

/// A file that takes the room.
struct Ballast(PathBuf);

impl Ballast {
    fn take(dir: &Path, room: u64) -> Ballast {
        let path = dir.join("ballast");
        let file = File::create(&path).expect("a new file system takes a file");
        let mut at = 0;
        // In steps, because another file system keeps back what it likes.
        while free(dir) > room + (4 << 20) {
            let len = (free(dir) - room).min(64 << 20);
            if rustix::fs::fallocate(&file, FallocateFlags::empty(), at, len).is_err() {
                break;
            }
            at += len;
        }
        Ballast(path)
    }

    fn give_back(self) {
        fs::remove_file(&self.0).expect("removing needs no room");
    }
}

fn free(dir: &Path) -> u64 {
    let stat = rustix::fs::statvfs(dir).expect("a mounted file system");
    stat.f_bavail * stat.f_frsize
}

/// `small` is the disk that fills, under the given side; the folder of a small replica lies on `other`, of the same kind, because each
/// kind has limits of its own.
fn rig(small: &Image, other: &Image, side: Side) -> Option<Rig> {
    let lab = Lab::new("full")?;
    for part in ["space", "full", "fault", "ENOSPC", "os error 28", "stopped", "cannot", "No room", "no room"] {
        lab.allow(part, "a disk is full");
    }
    let storage = match side {
        Side::Storage => Storage::start_in(&lab, "storage", &small.dir().join("data")),
        Side::Client => Storage::start_in(&lab, "storage", &other.dir().join("data")),
    };
    let client = if side == Side::Client { small } else { other };
    let (folder, state) = (client.dir().join("folder"), client.dir().join("state"));
    fs::create_dir_all(&folder).expect("there is room yet");
    let spec = MountSpec::new(&storage, VOLUME, &folder).options("fsync=durable").state(&state);
    Some(Rig::with(lab, storage, &spec))
}

fn fill(rig: &mut Rig, image: &Image, side: Side, point: u64, rng: &mut Rng) {
    let ballast = Ballast::take(image.dir(), ROOM_BYTES);
    let mix = Mix { fio: true, rate: 0, storm: 2, prefix: false };
    let load = rig.load(&format!("{point}"), rng.bits(), mix);
    let is_full = eventually(PATIENCE, || free(image.dir()) < (1 << 20) || told(rig, side));
    assert!(is_full, "the load does not fill the disk: {} bytes are free", free(image.dir()));
    if side == Side::Storage {
        assert!(eventually(PATIENCE, || told(rig, side)), "status does not tell: {:#?}", rig.mount.status());
        let path = rig.mount.path().join(format!("meanwhile-{point}"));
        fs::write(path, "local work goes on").expect("the folder's disk has room");
    }
    random_pause(rng, Duration::from_millis(1500));
    ballast.give_back();
    match side {
        Side::Storage => {
            rig.wait_for_acks(&load);
            let errors = load.stop(Tolerated::Nothing);
            assert!(errors.is_empty(), "the load met errors: {errors:?}");
        }
        Side::Client => {
            let errors = load.stop(Tolerated::Full);
            assert!(errors.is_empty(), "the load met errors other than a full disk: {errors:?}");
        }
    }
    rig.check_equal();
    rig.assert_monotonic();
}

/// Whether status says that, and why, nothing reaches the replica.
fn told(rig: &Rig, side: Side) -> bool {
    let status = rig.mount.status();
    let why = format!("{} {}", status.reason, status.last_error);
    side == Side::Storage && status.ops_behind > 0 && (why.contains("full") || why.contains("space"))
}

/// `points` times full and roomy again.
pub fn trial(seed: u64, file_system: FileSystem, side: Side, points: u64) -> Outcome {
    let mut rng = Rng::new(seed);
    let dir = match tempfile::Builder::new().prefix("tandem-full-").tempdir() {
        Ok(dir) => dir,
        Err(error) => return Outcome::Skipped(error.to_string()),
    };
    let image = |name: &str, bytes| {
        Image::new(file_system, &dir.path().join(format!("{name}.img")), bytes, &dir.path().join(name))
    };
    let (small, other) = match (image("small", IMAGE_BYTES), image("other", 4 * IMAGE_BYTES)) {
        (Ok(small), Ok(other)) => (small, other),
        (Err(why), _) | (_, Err(why)) => return Outcome::Skipped(why),
    };
    let Some(mut rig) = rig(&small, &other, side) else { return Outcome::Skipped("no mounts here".to_owned()) };
    for point in 0..points {
        fill(&mut rig, &small, side, point, &mut rng);
    }
    let answers = rig.finish();
    Outcome::Held(format!("{points} times full, {answers} positions seen"))
}
