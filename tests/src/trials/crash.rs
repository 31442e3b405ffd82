//! Crash trials: `kill -9` of either daemon, or of both, at random moments under load.
//!
//! After each kill, and before the two sides talk again, the replica alone is held against the ledgers: what was acknowledged must be
//! in its tree, and the writer in order must be at a past state that no acknowledged fsync is ahead of. If mountd lives it is stopped
//! (SIGSTOP) for that time, or it would send again what the crash lost. Then the two meet, the load stops, and both sides must be equal.

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    compare,
    harness::{Lab, Mount, MountSpec, Storage, eventually},
    rng::Rng,
    trials::{
        Outcome, PATIENCE,
        ledger::Look,
        load::{Load, Mix, Promises, Tolerated, assert_kept},
        watch::Watch,
    },
};

/// Which daemon is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The mount daemon.
    Mountd,
    /// The storage daemon.
    Storaged,
    /// Both, one right after the other, in random order.
    Both,
}

/// All of them, with their names on a command line.
pub const VICTIMS: [(&str, Victim); 3] =
    [("mountd", Victim::Mountd), ("storaged", Victim::Storaged), ("both", Victim::Both)];

/// The volume of every trial.
pub const VOLUME: &str = "vol";

/// A replica that did not change for so long stands still.
const STILL: Duration = Duration::from_millis(400);

/// One volume that is hit again and again.
pub struct Rig {
    /// The storage daemon.
    pub storage: Storage,
    /// The mount.
    pub mount: Mount,
    /// What was promised by all loads so far, and how closely a replica is held against it.
    promises: Vec<(Arc<Promises>, Look)>,
    watch: Option<Watch>,
    /// Last, because everything above ends before it.
    pub lab: Lab,
}

impl Rig {
    /// Daemons in a new lab; `None` where there can be no mounts. Every fsync is durable.
    pub fn new(name: &str) -> Option<Rig> {
        let lab = Lab::new(name)?;
        let storage = lab.storage();
        let spec = MountSpec::new(&storage, VOLUME, &lab.new_dir("folder")).options("fsync=durable");
        Some(Self::with(lab, storage, &spec))
    }

    /// With a storage daemon that runs, and a mount as given.
    pub fn with(lab: Lab, storage: Storage, spec: &MountSpec) -> Rig {
        lab.allow_lost_peers();
        let mount = lab.mount_with(spec);
        mount.settle();
        let watch = Some(Watch::start(&storage, &mount, VOLUME));
        Rig { storage, mount, promises: Vec::new(), watch, lab }
    }

    /// Starts a load and remembers what it promises.
    pub fn load(&mut self, name: &str, seed: u64, mix: Mix) -> Load {
        let load = Load::start(&self.mount, name, seed, mix);
        self.promises.push((Arc::clone(load.promises()), Look::PastState));
        load
    }

    /// Everything promised so far.
    pub fn all_promises(&self) -> Vec<Arc<Promises>> {
        self.promises.iter().map(|(promises, _)| Arc::clone(promises)).collect()
    }

    /// The folder lost what nobody had synced: of the loads so far only what was acknowledged counts from now on.
    pub fn weaken(&mut self) {
        for (_, look) in &mut self.promises {
            *look = Look::AcknowledgedOnly;
        }
    }

    fn check_promises(&self, root: &Path, when: &str) {
        for (promises, look) in &self.promises {
            assert_kept(&[Arc::clone(promises)], root, *look, when);
        }
    }

    /// Waits until the storage daemon, to which nobody talks, has in its tree what is in its log. What is still on its way through a
    /// slow network arrives before that: nothing may have changed for a while.
    pub fn settle_replica(&self) {
        let mut last = None;
        let mut since = Instant::now();
        let settled = eventually(PATIENCE, || {
            let status = self.storage.volume(VOLUME);
            // A staging whose client is stopped stays; the tree is at the position that was published.
            let published = status.position.as_ref().map_or(0, |position| position.seq);
            let is_settled = match status.state.as_str() {
                "settled" => status.applied == status.durable,
                "staging" => status.applied == published,
                _ => false,
            };
            let now = (status.state.clone(), status.received, status.durable, status.applied, published);
            if last.as_ref() != Some(&now) || !is_settled {
                since = Instant::now();
                last = Some(now);
            }
            since.elapsed() > STILL
        });
        assert!(settled, "the replica alone does not settle: {last:#?}");
    }

    /// Holds the replica's tree against everything promised. Nobody may write to it meanwhile.
    pub fn check_replica(&self, when: &str) {
        self.settle_replica();
        self.check_promises(&self.storage.tree(VOLUME), when);
    }

    /// Waits until all is applied and compares mount and replica.
    pub fn check_equal(&self) -> compare::Comparison {
        self.mount.wait(PATIENCE);
        compare::assert_equal(self.mount.path(), &self.storage.tree(VOLUME))
    }

    /// Waits until each of these loads was acknowledged more than before: the promise works again.
    pub fn wait_for_acks(&self, load: &Load) {
        let before = load.promises().acked();
        let goes_on = eventually(PATIENCE, || load.promises().acked() > before + 5);
        assert!(goes_on, "no durable call returns any more: {:#?}", self.mount.status());
    }

    /// Unmounts, compares the folder below as well, and ends the watch. Returns the answers that the watch had.
    pub fn finish(mut self) -> u64 {
        self.check_equal();
        self.mount.unmount();
        compare::assert_equal(self.mount.path(), &self.storage.tree(VOLUME));
        self.check_promises(self.mount.path(), "at the end");
        self.watch.take().map_or(0, Watch::finish)
    }

    /// Positions that went back so far.
    pub fn assert_monotonic(&self) {
        let wrong = self.watch.as_ref().map(Watch::went_back).unwrap_or_default();
        assert!(wrong.is_empty(), "a position went back:\n{}", wrong.join("\n"));
    }
}

/// A mountd that is stopped until this is dropped: it hears nothing and sends nothing, and who calls its mount waits.
#[derive(Debug)]
pub struct Stopped(Mount);

impl Stopped {
    /// SIGSTOP.
    pub fn new(mount: &Mount) -> Stopped {
        mount.daemon().signal(libc::SIGSTOP);
        Stopped(mount.clone())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.daemon().signal(libc::SIGCONT);
    }
}

/// Sleeps between two bounds; short times are as likely as long ones, because interesting moments are near each other.
pub fn random_pause(rng: &mut Rng, longest: Duration) {
    let scale = rng.below(4);
    let bound = (longest.as_millis() as u64) >> (scale * 2);
    thread::sleep(Duration::from_millis(rng.below(bound.max(2))));
}

fn kill(rig: &Rig, victim: Victim, rng: &mut Rng) {
    match victim {
        Victim::Mountd => rig.mount.kill(),
        Victim::Storaged => rig.storage.kill(),
        Victim::Both if rng.chance(50) => {
            rig.storage.kill();
            random_pause(rng, Duration::from_millis(20));
            rig.mount.kill();
        }
        Victim::Both => {
            rig.mount.kill();
            random_pause(rng, Duration::from_millis(20));
            rig.storage.kill();
        }
    }
}

/// One crash: load, kill, the replica alone, both again, equal. Returns acknowledged calls and the time to be equal again.
fn crash(rig: &mut Rig, point: u64, victim: Victim, rng: &mut Rng, lie: bool) -> (u64, Duration) {
    let load = rig.load(&format!("{point}"), rng.bits(), Mix::any(rng));
    let promises = Arc::clone(load.promises());
    eventually(PATIENCE, || promises.acked() > 5);
    random_pause(rng, Duration::from_millis(2500));
    kill(rig, victim, rng);
    // A kill during the recovery, the catch-up or the first contact after a kill is a crash as well.
    while rng.chance(30) {
        restart(rig, victim);
        random_pause(rng, Duration::from_millis(600));
        kill(rig, victim, rng);
    }
    if lie {
        promises.lie();
    }
    let stopped = (victim == Victim::Storaged).then(|| Stopped::new(&rig.mount));
    if victim != Victim::Mountd {
        rig.storage.restart();
    }
    rig.check_replica(&format!("after crash {point} of {victim:?}"));
    let begin = Instant::now();
    drop(stopped);
    if victim == Victim::Storaged {
        rig.wait_for_acks(&load);
    }
    let tolerated = if victim == Victim::Storaged { Tolerated::Nothing } else { Tolerated::Gone };
    let errors = load.stop(tolerated);
    assert!(errors.is_empty(), "the load met errors: {errors:?}");
    if victim != Victim::Storaged {
        rig.mount.start_again().unwrap_or_else(|error| panic!("no mount after crash {point}: {error}"));
    }
    rig.check_equal();
    rig.assert_monotonic();
    (promises.acked(), begin.elapsed())
}

fn restart(rig: &Rig, victim: Victim) {
    if victim != Victim::Mountd {
        rig.storage.restart();
    }
    if victim != Victim::Storaged {
        rig.mount.start_again().unwrap_or_else(|error| panic!("no mount between two crashes: {error}"));
    }
}

/// `points` crashes of one volume. With `lie` the trial has to fail: a call is claimed that nobody acknowledged.
pub fn trial(seed: u64, victim: Victim, points: u64, lie: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let Some(mut rig) = Rig::new("crash") else { return Outcome::Skipped("no mounts here".to_owned()) };
    let (mut acked, mut slowest) = (0, Duration::ZERO);
    for point in 0..points {
        let (new, took) = crash(&mut rig, point, victim, &mut rng, lie && point + 1 == points);
        acked += new;
        slowest = slowest.max(took);
    }
    let answers = rig.finish();
    Outcome::Held(format!(
        "{points} crashes, {acked} acknowledged calls, equal again after at most {:.1} s, {answers} positions seen",
        slowest.as_secs_f64()
    ))
}
