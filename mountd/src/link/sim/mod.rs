//! A deterministic simulation of the client's side: the production commit, link core, plan and reading against an in-memory folder and a
//! naive replica, with cuts, late fills, overflowing windows, pauses and crashes of the client.
//!
//! Checked: whenever the replica reaches a position, its state equals the folder's just after that op (prefix); at the end, both are
//! equal (convergence). A failure names its seed: `TANDEM_SIM_SEED=n cargo test -p tandem-mountd sim`.

mod client;
mod model;
mod replica;

use std::{collections::VecDeque, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tandem_proto::{
    Seq, Uuid,
    pb::{self, client_message::Body},
    stage::Stage,
};

use self::{
    client::{Client, Random},
    model::{MemFs, Model},
    replica::Replica,
};
use crate::{
    commit::{Commit, shadow::MemStore},
    link::{
        LinkState,
        core::{BACKOFF_MAX, Claim, CoreConfig, Effect, LinkCore},
    },
    replication::shadow::{BackingPlace, Ground},
    resync::{
        plan::{Manner, Step, StepDone},
        read,
    },
};

struct World {
    random: Random,
    client: Client,
    commit: Arc<Commit>,
    core: LinkCore,
    replica: Replica,
    connected: bool,
    to_replica: VecDeque<pb::ClientMessage>,
    jobs: VecDeque<(Step, Manner, u64)>,
    now: Duration,
    runs: u8,
    boot: u8,
    window: usize,
    log: PathBuf,
    shadow: MemStore,
    paused: bool,
    /// The applications have stopped.
    quiet: bool,
    _dir: tempfile::TempDir,
}

fn config(run: u8) -> CoreConfig {
    CoreConfig {
        volume: "v".parse().expect("legal"),
        client_id: Uuid([9; 16]),
        client_name: "sim".into(),
        run_id: Uuid([run; 16]),
        create: true,
        takeover: false,
        replace: false,
        claim: Claim::default(),
        reconnect_max: BACKOFF_MAX,
    }
}

/// `boot`: another one than the last run's is a machine crash, after which the shadow says nothing.
fn open_commit(log: &std::path::Path, window: usize, store: &MemStore, boot: u8, run: u8) -> &'static Arc<Commit> {
    let (commit, recovered) = Commit::open(log, window, None).expect("the log can be opened");
    // Small enough to be rewritten now and then, and to overflow in the largest windows.
    let limit_bytes = 150_000 + 4096 * (1 + usize::from(run % 8));
    let (boot, run) = (Some(Uuid([boot; 16])), Uuid([run; 16]));
    let ground = Ground { store: store.clone(), limit_bytes, boot, place: BackingPlace::Mount(1), run };
    ground.resume(&commit, recovered.as_ref()).expect("the log can be written");
    // Slots borrow their commit; a simulated run is short, so it may stay.
    Box::leak(Box::new(Arc::new(commit)))
}

impl World {
    fn new(seed: u64) -> World {
        let random = Random::new(seed);
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("activity.log");
        let window = [1500, 4000, 1 << 20][random.below(3) as usize];
        let shadow = MemStore::default();
        let commit = open_commit(&log, window, &shadow, 0, 1);
        let fs = Arc::new(MemFs(Mutex::new(Model::new())));
        World {
            client: Client::new(fs, commit, 0),
            core: LinkCore::new(config(1), commit.clone(), seed),
            commit: commit.clone(),
            random,
            replica: Replica::new(),
            connected: false,
            to_replica: VecDeque::new(),
            jobs: VecDeque::new(),
            now: Duration::ZERO,
            runs: 1,
            boot: 0,
            window,
            log,
            shadow,
            paused: false,
            quiet: false,
            _dir: dir,
        }
    }

    fn cut(&mut self) {
        // What is on its way arrives in part.
        let arrives = self.random.below(self.to_replica.len() as u64 + 1) as usize;
        for message in self.to_replica.drain(..arrives).collect::<Vec<_>>() {
            self.replica.handle(message);
            self.check();
        }
        self.to_replica.clear();
        self.jobs.clear();
        self.replica.cut();
        self.connected = false;
        self.core.handle_disconnected("cut", self.now);
    }

    fn crash(&mut self) {
        if self.connected {
            self.cut();
        }
        // What the old run's slots still do when they are dropped is not what a killed process does.
        self.shadow = self.shadow.after_kill();
        self.boot += u8::from(self.random.below(4) == 0);
        let fs = self.client.fs.clone();
        fs.0.lock().prune();
        self.runs += 1;
        let commit = open_commit(&self.log, self.window, &self.shadow, self.boot, self.runs);
        self.client = Client::new(fs, commit, self.client.ids_used() + 10);
        self.commit = commit.clone();
        self.core = LinkCore::new(config(self.runs), commit.clone(), u64::from(self.runs));
        self.paused = false;
    }

    /// Whatever the replica reached is a state that the folder had.
    fn check(&mut self) {
        for (position, model) in self.replica.reached.drain(..) {
            let truth = self.client.truth_at(position.seq).expect("only filled ops are sent");
            if let Some(difference) = model.difference(&truth) {
                panic!("at {position} the replica differs from the folder: {difference}");
            }
        }
    }

    fn effects(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::SaveHeader(header) => {
                    self.commit.set_header_durably(header).expect("written");
                    self.core.handle_saved();
                }
                Effect::SaveFloor => self.commit.save_floor_durably(&|| Ok(())).expect("written"),
                Effect::Disconnect if self.connected => self.cut(),
                Effect::Disconnect => {}
            }
        }
    }

    fn run_job(&mut self) {
        let Some((step, manner, session)) = self.jobs.pop_front() else { return };
        let (client, random, queue, quiet) = (&self.client, &self.random, &mut self.to_replica, self.quiet);
        let done = match &step {
            Step::Barrier(token) => {
                let body = Body::Barrier(pb::Barrier { session, token: *token });
                queue.push_back(pb::ClientMessage { body: Some(body) });
                StepDone::default()
            }
            step => {
                let mut sink = |stage: Stage| {
                    // Others work while this is read.
                    if !quiet && random.below(3) == 0 {
                        client.act(random);
                    }
                    let body = match &stage {
                        Stage::Dir(stage) => Body::StageDir(stage.into()),
                        Stage::Node(stage) => Body::StageNode(stage.into()),
                        Stage::Recipe(stage) => Body::StageRecipe(stage.into()),
                        Stage::Data(stage) => Body::StageData(stage.into()),
                    };
                    queue.push_back(pb::ClientMessage { body: Some(body) });
                    Ok(())
                };
                read::carry_out(step, manner, &*client.fs, &mut sink).expect("memory can be read")
            }
        };
        self.core.handle_step_done(&done);
    }

    fn network(&mut self) {
        match self.random.below(5) {
            0 => {
                if let Some(message) = self.core.poll_message() {
                    self.to_replica.push_back(message);
                }
            }
            1 => {
                if let Some(step) = self.core.poll_step() {
                    self.jobs.push_back(step);
                }
                self.run_job();
            }
            2 => {
                if let Some(message) = self.to_replica.pop_front() {
                    self.replica.handle(message);
                    self.check();
                }
            }
            3 => {
                if let Some(body) = self.replica.replies.pop_front() {
                    let message = pb::ServerMessage { body: Some(body) };
                    self.core.handle_message(message, self.now).expect("legal");
                }
            }
            _ => {
                if self.random.below(4) == 0 {
                    let ack = self.replica.ack();
                    self.replica.replies.push_back(ack);
                }
            }
        }
        self.effects();
    }

    fn step(&mut self, faults: bool) {
        self.now += Duration::from_millis(10);
        if !self.connected {
            if self.core.connect_at().is_some_and(|at| at <= self.now) {
                self.connected = true;
                self.core.handle_connected(self.now);
            }
        } else {
            self.network();
        }
        if !faults {
            return;
        }
        match self.random.below(400) {
            0..=119 => self.client.act(&self.random),
            120 if self.connected => self.cut(),
            121 if self.random.below(3) == 0 => self.crash(),
            122 => {
                self.paused = !self.paused;
                self.core.handle_pause(self.paused, self.now);
                self.effects();
            }
            123 | 124 => {
                self.commit.clear_marks(true, &|| Ok(())).expect("cleared");
            }
            _ => {}
        }
    }

    fn settle(&mut self) {
        if self.paused {
            self.paused = false;
            self.core.handle_pause(false, self.now);
        }
        self.quiet = true;
        self.client.finish_all(&self.random);
        for _ in 0..60_000 {
            self.step(false);
            let all = self.commit.last_reserved();
            if self.core.state() == LinkState::Live && self.commit.durable().is_some_and(|at| at.seq == all) {
                let folder = self.client.fs.0.lock().pruned();
                assert_eq!(self.replica.model.difference(&folder), None, "not equal at the end");
                self.quiet = false;
                return;
            }
        }
        panic!("no convergence: {:?} {:?}", self.core.facts(), self.commit.facts());
    }
}

/// What a seed came across.
#[derive(Default)]
struct Seen {
    salvaged: u64,
}

fn run(seed: u64) -> Seen {
    let mut world = World::new(seed);
    for _ in 0..4 {
        for _ in 0..700 {
            world.step(true);
        }
        world.settle();
    }
    assert!(world.replica.publishes > 0 && world.commit.last_reserved() >= Seq(0));
    Seen { salvaged: world.replica.salvaged }
}

/// Seeds that failed once. 264: a freeze of a further round forgot moves of the round before, so a file that left an unlisted directory
/// was never sent.
const REGRESSIONS: [u64; 1] = [264];

#[test]
fn cuts_crashes_and_overflows_leave_a_prefix_and_end_equal() {
    let seeds = match std::env::var("TANDEM_SIM_SEED") {
        Ok(seed) => seed.parse::<u64>().map(|seed| seed..seed + 1).expect("TANDEM_SIM_SEED is a number"),
        Err(_) => {
            let count = std::env::var("TANDEM_SIM_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(100);
            1..count + 1
        }
    };
    let (mut salvaged, one) = (0, seeds.end - seeds.start == 1);
    for seed in REGRESSIONS.into_iter().chain(seeds) {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(seen) => salvaged += seen.salvaged,
            Err(panic) => {
                eprintln!("seed {seed} failed: TANDEM_SIM_SEED={seed} cargo test -p tandem-mountd sim");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(one || salvaged > 0, "no resync that was cut was continued");
}
