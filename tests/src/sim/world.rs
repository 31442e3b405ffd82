//! The steps of a simulation and its checkers.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tandem_mountd::{
    commit::{Commit, activity_log::Recovered, dirty::DirtySet},
    link::{
        core::{BACKOFF_MAX, Claim, CoreConfig, Effect, LinkCore},
        state::LinkState,
    },
    replication::dirtiness::after_restart,
    resync::{
        plan::{Manner, Step},
        read::carry_out,
    },
};
use tandem_proto::{
    Position, Seq, Uuid,
    pb::{self, client_message::Body},
    stage::Stage,
};

use crate::{
    rng::Rng,
    sim::{
        apps::Apps,
        folder::FolderReader,
        replica::{Inbound, ReplicaHost},
    },
};

/// How often what goes wrong, in steps of 10,000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Connections are cut.
    pub cuts: u64,
    /// The storage process is killed.
    pub replica_kills: u64,
    /// The storage machine loses power.
    pub power_losses: u64,
    /// mountd is killed.
    pub mount_kills: u64,
    /// Bound of the window in bytes.
    pub window_bytes: usize,
}

struct Connection {
    to_storage: VecDeque<pb::ClientMessage>,
    inbound: Inbound,
    to_mount: VecDeque<pb::ServerMessage>,
}

/// One simulated mount and its storage. See the module above.
pub struct World {
    rng: Rng,
    faults: Faults,
    now: Duration,
    apps: Apps,
    link: LinkCore,
    steps: VecDeque<(Step, Manner, u64)>,
    connection: Option<Connection>,
    storage: ReplicaHost,
    /// Which run of mountd opened an epoch.
    epochs: BTreeMap<u64, usize>,
    /// The highest position that the mount was told is durable.
    acknowledged: Position,
    dir: tempfile::TempDir,
    trace: VecDeque<String>,
    /// Percentage of steps that are requests of applications, for now.
    busy: u64,
    /// Checks of the prefix that looked at a replica.
    checks: u64,
    /// From `TANDEM_SIM_TRACE`: keep the whole trace, of lines that contain this.
    trace_all: Option<String>,
}

/// Lines of the trace that a failure shows.
const TRACE_LINES: usize = 60;

fn dirty_from(recovered: &Recovered) -> DirtySet {
    after_restart(Some(recovered), None)
}

fn message_of(stage: &Stage, session: u64) -> Body {
    match stage {
        Stage::Dir(dir) => Body::StageDir(pb::StageDir { session, ..dir.into() }),
        Stage::Node(node) => Body::StageNode(pb::StageNode { session, ..node.into() }),
        Stage::Recipe(recipe) => Body::StageRecipe(pb::StageRecipe { session, ..recipe.into() }),
        Stage::Data(data) => Body::StageData(pb::StageData { session, ..data.into() }),
    }
}

fn link_of(run: usize, commit: &Arc<Commit>) -> LinkCore {
    let config = CoreConfig {
        volume: "sim".parse().expect("a legal name"),
        client_id: Uuid([3; 16]),
        client_name: "simulation".to_owned(),
        run_id: Uuid((run as u128 + 1).to_be_bytes()),
        create: true,
        takeover: false,
        replace: false,
        claim: Claim::default(),
        reconnect_max: BACKOFF_MAX,
    };
    LinkCore::new(config, Arc::clone(commit), run as u64 + 1)
}

impl World {
    /// A new folder on a new volume.
    pub fn new(seed: u64, faults: Faults) -> World {
        let mut rng = Rng::new(seed);
        let dir = memory_dir();
        let (commit, _) = Commit::open(&activity_log(&dir), faults.window_bytes, None).expect("a new activity log");
        let commit = Arc::new(commit);
        let link = link_of(0, &commit);
        let apps = Apps { rng: rng.fork(), reader: FolderReader::default(), commit, history: Vec::new(), quiet: false };
        let mut world = World {
            rng,
            faults,
            now: Duration::ZERO,
            apps,
            link,
            steps: VecDeque::new(),
            connection: None,
            storage: ReplicaHost::new(),
            epochs: BTreeMap::new(),
            acknowledged: Position::default(),
            dir,
            trace: VecDeque::new(),
            busy: 15,
            checks: 0,
            trace_all: std::env::var("TANDEM_SIM_TRACE").ok(),
        };
        world.begin_run();
        world
    }

    fn begin_run(&mut self) {
        self.apps.history.push(BTreeMap::new());
        self.apps.draw(Seq(0));
    }

    fn note(&mut self, text: impl Into<String>) {
        let text: String = text.into();
        if let Some(word) = &self.trace_all {
            if !word.is_empty() && !text.contains(word) && !text.contains("ResyncBegin") && !text.contains("Published")
            {
                return;
            }
        } else if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace.push_back(text.chars().take(300).collect());
    }

    /// What happened last, for a failure.
    pub fn trace(&self) -> String {
        self.trace.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// One small step, chosen by the seed.
    pub fn step(&mut self) {
        let faults = self.faults;
        let fault = self.rng.below(10_000);
        let bounds = [faults.cuts, faults.replica_kills, faults.power_losses, faults.mount_kills];
        let mut below = 0;
        for (kind, share) in bounds.into_iter().enumerate() {
            below += share;
            if fault < below {
                return self.fail(kind);
            }
        }
        if self.rng.chance(1) {
            // Idle, as people are; busy, as builds are; and more than the link can take.
            self.busy = *self.rng.pick(&[0, 2, 5, 15, 40]);
        }
        if self.rng.chance(self.busy) {
            return self.request();
        }
        if self.rng.chance(4) {
            return self.pass_time();
        }
        self.network_step();
    }

    fn fail(&mut self, kind: usize) {
        match kind {
            0 => {
                self.note("cut");
                self.cut();
            }
            1 | 2 => self.crash_storage(kind == 2),
            _ => self.kill_mount(),
        }
    }

    fn request(&mut self) {
        let text = self.apps.request();
        self.note(text);
        // A burst fills the window faster than the link empties it.
        if self.rng.chance(3) {
            for _ in 0..self.rng.below(60) {
                let text = self.apps.request();
                self.note(text);
            }
        }
    }

    fn pass_time(&mut self) {
        let passed = Duration::from_millis(self.rng.below(400));
        self.now += passed;
        self.link.handle_tick(self.now);
        self.storage.tick(passed);
    }

    fn network_step(&mut self) {
        match self.rng.below(7) {
            0 => self.connect(),
            1 => self.send(),
            2 => self.read(),
            3 => self.deliver_to_storage(),
            4 => self.deliver_to_mount(),
            5 => self.storage.flush(),
            _ => {
                let limit = 1 + self.rng.index(8);
                self.storage.apply(limit);
                self.check_prefix();
            }
        }
        self.carry_out_effects();
    }

    fn connect(&mut self) {
        let due = self.link.connect_at().is_some_and(|at| at <= self.now);
        if due && self.connection.is_none() && self.storage.core().is_some() {
            let connection =
                Connection { to_storage: VecDeque::new(), inbound: Inbound::new(), to_mount: VecDeque::new() };
            self.connection = Some(connection);
            self.note("connected");
            self.link.handle_connected(self.now);
        }
    }

    fn send(&mut self) {
        if let Some(connection) = &mut self.connection
            && connection.to_storage.len() < 20
            && let Some(message) = self.link.poll_message()
        {
            connection.to_storage.push_back(message);
        }
        if let Some(step) = self.link.poll_step() {
            self.steps.push_back(step);
        }
    }

    /// Reads for the resync, while applications go on.
    fn read(&mut self) {
        let Some((step, manner, session)) = self.steps.pop_front() else { return };
        let Some(connection) = &mut self.connection else { return };
        let apps = &mut self.apps;
        let reader = apps.reader.clone();
        let mut meanwhile = Vec::new();
        if let Step::Barrier(token) = step {
            let body = Body::Barrier(pb::Barrier { session, token });
            connection.to_storage.push_back(pb::ClientMessage { body: Some(body) });
        }
        let done = carry_out(&step, manner, &reader, &mut |stage| {
            let body = message_of(&stage, session);
            connection.to_storage.push_back(pb::ClientMessage { body: Some(body) });
            if !apps.quiet && apps.rng.chance(15) {
                meanwhile.push(apps.request());
            }
            Ok(())
        });
        let done = done.expect("the folder can be read");
        self.note(format!("read {step:?}"));
        for text in meanwhile {
            self.note(format!("  meanwhile {text}"));
        }
        self.link.handle_step_done(&done);
    }

    fn deliver_to_storage(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if !self.storage.accepts() {
            return;
        }
        let Some(message) = connection.to_storage.pop_front() else { return };
        let text = format!("storage takes {message:?}");
        self.storage.deliver(&mut connection.inbound, message);
        self.note(text);
        let Some(core) = self.storage.core() else { return };
        if let Some(writer) = core.receiver().writer() {
            let run = u128::from_be_bytes(writer.run_id.0) as usize - 1;
            self.epochs.insert(core.receiver().tip().epoch.0, run);
        }
    }

    fn deliver_to_mount(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let ended = connection.inbound.outbox.is_closed();
        connection.to_mount.extend(connection.inbound.outbox.drain());
        match connection.to_mount.pop_front() {
            Some(message) => {
                let text = format!("mount takes {message:?}");
                check_refusal(&message);
                let handled = self.link.handle_message(message, self.now);
                self.note(text);
                if let Err(why) = handled {
                    panic!("the mount does not understand the storage: {why}");
                }
                self.note_durable();
            }
            None if ended => self.cut(),
            None => {}
        }
    }

    fn note_durable(&mut self) {
        if let Some(durable) = self.apps.commit.durable()
            && self.acknowledged.is_before(&durable)
        {
            self.acknowledged = durable;
        }
    }

    fn carry_out_effects(&mut self) {
        while let Some(effect) = self.link.poll_effect() {
            match effect {
                Effect::SaveHeader(header) => {
                    self.apps.commit.set_header_durably(header).expect("the activity log can be written");
                    self.link.handle_saved();
                }
                Effect::SaveFloor => self.apps.commit.save_floor_durably().expect("the activity log can be written"),
                Effect::Disconnect => self.cut(),
            }
        }
        if self.rng.chance(2) {
            let _cleared = self.apps.commit.clear_marks(self.rng.chance(50), &|| Ok(())).expect("clearing works");
        }
    }

    fn cut(&mut self) {
        self.steps.clear();
        if let Some(connection) = self.connection.take() {
            self.storage.closed(&connection.inbound);
            self.link.handle_disconnected("cut", self.now);
        }
    }

    fn crash_storage(&mut self, power: bool) {
        if self.rng.chance(60) {
            // In the middle of whatever comes next.
            let budget = self.rng.below(25);
            self.note(format!("storage will die after {budget} changes"));
            self.storage.set_budget(Some(budget));
            for _ in 0..self.rng.below(40) {
                match self.rng.below(4) {
                    0 => self.deliver_to_storage(),
                    1 => self.storage.flush(),
                    2 => self.storage.apply(4),
                    _ => self.storage.tick(Duration::from_millis(700)),
                }
            }
        }
        self.stop_storage(power);
        self.cut();
        // Recovery may be interrupted as well; it must be able to begin again.
        while self.rng.chance(30) {
            let budget = self.rng.below(30);
            self.note(format!("recovery will die after {budget} changes"));
            self.storage.set_budget(Some(budget));
            let _opened = self.storage.try_start();
            let power = power && self.rng.chance(50);
            self.stop_storage(power);
        }
        self.start_storage();
    }

    fn stop_storage(&mut self, power: bool) {
        if power {
            self.note("storage loses power");
            self.storage.lose_power(&mut self.rng);
        } else {
            self.note("storage is killed");
            self.storage.set_budget(None);
            self.storage.kill();
        }
    }

    fn start_storage(&mut self) {
        self.storage.start();
        self.check_prefix();
        let Some(core) = self.storage.core() else { return };
        assert!(
            !core.durable().is_before(&self.acknowledged),
            "a lost acknowledgement: the mount was told {} is durable, and the storage is at {}",
            self.acknowledged,
            core.durable()
        );
    }

    fn kill_mount(&mut self) {
        self.note("mountd is killed");
        self.cut();
        let path = activity_log(&self.dir);
        let run = self.apps.history.len();
        // The old one must let go of its log before the new one opens it.
        let placeholder = Arc::new(Commit::in_memory(1));
        self.link = link_of(run, &placeholder);
        self.apps.commit = placeholder;
        let (commit, recovered) = Commit::open(&path, self.faults.window_bytes, None).expect("the activity log opens");
        let recovered = recovered.expect("there was one");
        commit.insert_dirty(&dirty_from(&recovered));
        self.apps.commit = Arc::new(commit);
        self.link = link_of(run, &self.apps.commit);
        self.begin_run();
    }

    /// The replica is at a state that the folder had, and at the one that its position says.
    fn check_prefix(&mut self) {
        let Some(core) = self.storage.core() else { return };
        if core.receiver().is_empty() {
            return;
        }
        let position = core.replica().applied();
        if position.epoch.0 == 0 {
            return;
        }
        let run = self.epochs.get(&position.epoch.0);
        let run = *run.unwrap_or_else(|| panic!("the replica is in epoch {}, which nobody opened", position.epoch));
        // Slots that the link takes for a position of its own change nothing: the state is that of the op before.
        let expected = self.apps.history[run].range(..=position.seq.0).next_back().map(|(_, picture)| picture);
        let expected = expected.unwrap_or_else(|| panic!("the replica is at {position}, which never happened"));
        let found = self.storage.picture();
        self.checks += 1;
        assert!(
            found == **expected,
            "at {position} the replica is not what the folder was:\n{}",
            expected.differences(&found)
        );
    }

    fn is_settled(&self) -> bool {
        let commit = &self.apps.commit;
        let last = commit.last_reserved();
        let all = |seq: Option<Seq>| seq.is_some_and(|seq| seq >= last);
        let marks = commit.facts().watermarks;
        self.link.state() == LinkState::Live && commit.is_clean() && all(marks.durable) && all(marks.applied)
    }

    /// Ends all faults and lets both sides become equal. Panics if they do not.
    pub fn converge(&mut self) {
        self.note("faults end");
        self.apps.quiet = true;
        for round in 0..20_000 {
            self.connect();
            self.send();
            self.read();
            self.deliver_to_storage();
            self.storage.flush();
            self.storage.apply(usize::MAX);
            self.deliver_to_mount();
            self.carry_out_effects();
            if round % 10 == 0 {
                self.now += Duration::from_millis(100);
                self.link.handle_tick(self.now);
                self.storage.tick(Duration::from_millis(100));
            }
            if self.is_settled() {
                return self.check_equal();
            }
        }
        let (state, reason) = (self.link.state(), self.link.reason().to_owned());
        panic!("no convergence: the link is {state} ({reason}), {:?}", self.apps.commit.facts());
    }

    fn check_equal(&mut self) {
        let expected = self.apps.reader.folder().picture();
        let found = self.storage.picture();
        assert!(found == expected, "not equal at the end:\n{}", expected.differences(&found));
        // It must also be so after the storage process dies and recovers, twice.
        for _ in 0..2 {
            self.storage.kill();
            self.cut();
            self.start_storage();
            let found = self.storage.picture();
            assert!(found == expected, "not equal after a restart:\n{}", expected.differences(&found));
        }
    }

    /// Number of objects in the folder, and of states of the replica that were checked; for looking at what seeds do.
    pub fn looks(&self) -> (usize, u64) {
        (self.apps.reader.folder().len(), self.checks)
    }
}

/// Between two sides that are right, these refusals never come. The mount would mend them by a full compare, which hides the fault.
fn check_refusal(message: &pb::ServerMessage) {
    use pb::refused::Reason;
    let Some(pb::server_message::Body::Refused(refused)) = &message.body else { return };
    let legal = matches!(refused.reason(), Reason::StaleSession | Reason::Unavailable);
    assert!(legal, "the storage refused the mount: {refused:?}");
}

/// The activity log is a real file, whose every write is synced: in memory that is free.
fn memory_dir() -> tempfile::TempDir {
    let in_memory = tempfile::Builder::new().prefix("tandem-sim-").tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

fn activity_log(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("activity.log")
}
