//! A client's machine: its folder, its activity log, and the run of mountd on it.

use std::{cell::RefCell, collections::VecDeque, fs, path::PathBuf, sync::Arc, time::Duration};

use tandem_mountd::{
    commit::{Commit, shadow::MemStore},
    link::core::{BACKOFF_MAX, Claim, CoreConfig, LinkCore},
    replication::shadow::{BackingPlace, Ground},
    resync::plan::{Manner, Step},
};
use tandem_proto::{Position, Uuid, pb};

use crate::{
    rng::Rng,
    sim::{
        apps::{Apps, Reaches},
        replica::Inbound,
    },
};

/// Writes to the activity log are torn at multiples of this.
const SECTOR: usize = 512;

/// A connection, with what is under way on it.
pub struct Connection {
    /// Sent and not arrived.
    pub to_storage: VecDeque<pb::ClientMessage>,
    /// Its end at the storage.
    pub inbound: Inbound,
    /// Answered and not arrived.
    pub to_mount: VecDeque<pb::ServerMessage>,
    /// What arrived at the storage last, for the net to repeat.
    pub last_batch: Option<pb::Batch>,
    /// Someone said on it what this mount never said.
    pub forged: bool,
    /// So many times it takes no message.
    pub full_for: u64,
}

impl Connection {
    /// A connection that nothing was said on yet.
    pub fn new() -> Connection {
        Connection {
            to_storage: VecDeque::new(),
            inbound: Inbound::new(),
            to_mount: VecDeque::new(),
            last_batch: None,
            forged: false,
            full_for: 0,
        }
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

/// How a machine's run of mountd ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process is killed; the folder stands.
    Kill,
    /// The machine loses power.
    PowerLoss,
}

/// See the module.
pub struct Machine {
    /// Its number; also that of its client id.
    pub number: usize,
    /// Folder, applications and commit.
    pub apps: Apps,
    /// The link of the run.
    pub link: LinkCore,
    /// What is to be read for a resync.
    pub steps: VecDeque<(Step, Manner, u64)>,
    /// To the storage.
    pub connection: Option<Connection>,
    /// What its mountd was told is durable.
    pub acknowledged: Position,
    /// It takes the volume over and replaces what is there, until that is published.
    pub pushes: bool,
    /// A person paused it.
    pub paused: bool,
    /// Someone spoke in its name, and it has published nothing since: after three times in a row it would wait for a person.
    pub forged: bool,
    /// Runs since the last that was attached, that one included: the current epoch is of one of them, or of another machine.
    attempts: Vec<usize>,
    window_bytes: usize,
    /// In memory that outlives a process and not the machine.
    shadow: MemStore,
    boot: u8,
    dir: tempfile::TempDir,
}

fn run_id(run: usize) -> Uuid {
    Uuid((run as u128 + 1).to_be_bytes())
}

fn link_of(machine: usize, run: usize, pushes: bool, attempts: &[usize], commit: &Arc<Commit>) -> LinkCore {
    let config = CoreConfig {
        volume: "sim".parse().expect("a legal name"),
        client_id: Uuid([3 + machine as u8; 16]),
        client_name: format!("machine {machine}"),
        run_id: run_id(run),
        create: true,
        takeover: pushes,
        replace: pushes,
        claim: Claim { runs: attempts.iter().map(|run| run_id(*run)).collect(), ..Claim::default() },
        reconnect_max: BACKOFF_MAX,
    };
    LinkCore::new(config, Arc::clone(commit), run as u64 + 1)
}

/// The activity log is a real file, whose every write is synced: in memory that is free.
fn memory_dir() -> tempfile::TempDir {
    let in_memory = tempfile::Builder::new().prefix("tandem-sim-").tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

impl Machine {
    /// A machine with an empty folder, whose mountd is starting.
    pub fn new(number: usize, run: usize, pushes: bool, window_bytes: usize, rng: Rng) -> Machine {
        let commit = Arc::new(Commit::in_memory(1));
        let mut machine = Machine {
            number,
            apps: Apps::new(rng, number as u64, Arc::clone(&commit)),
            link: link_of(number, run, pushes, &[], &commit),
            steps: VecDeque::new(),
            connection: None,
            acknowledged: Position::default(),
            pushes,
            paused: false,
            forged: false,
            attempts: Vec::new(),
            window_bytes,
            shadow: MemStore::default(),
            boot: 0,
            dir: memory_dir(),
        };
        machine.start(run);
        machine
    }

    fn activity_log(&self) -> PathBuf {
        self.dir.path().join("activity.log")
    }

    /// Starts mountd over what the run before left.
    pub fn start(&mut self, run: usize) {
        self.let_go();
        let (commit, recovered) =
            Commit::open(&self.activity_log(), self.window_bytes, None).expect("the activity log opens");
        // Small enough to be rewritten now and then, and to overflow in the largest windows.
        let limit_bytes = 150_000 + 4096 * (1 + run % 8);
        let ground = Ground {
            store: self.shadow.clone(),
            limit_bytes,
            boot: Some(Uuid([self.boot; 16])),
            place: BackingPlace::Mount(1),
            run: run_id(run),
        };
        match &recovered {
            Some(recovered) => ground.resume(&commit, Some(recovered)).map(|_exact| ()),
            None => ground.begin_anew(&commit),
        }
        .expect("the activity log can be written");
        let commit = Arc::new(commit);
        self.attempts.push(run);
        self.link = link_of(self.number, run, self.pushes, &self.attempts, &commit);
        self.apps.begin_run(run, commit);
    }

    /// Starts mountd with `-o takeover,init=push`: marks and floor of an earlier life say nothing about this one.
    pub fn start_pushing(&mut self, run: usize) {
        self.let_go();
        let _missing = fs::remove_file(self.activity_log());
        (self.pushes, self.acknowledged) = (true, Position::default());
        self.start(run);
    }

    /// The old run must let go of its log before a new one opens it.
    fn let_go(&mut self) {
        let placeholder = Arc::new(Commit::in_memory(1));
        self.link = link_of(self.number, self.apps.run, false, &[], &placeholder);
        self.apps.commit = placeholder;
        self.steps.clear();
        self.paused = false;
    }

    /// mountd ends, at any instruction; with the machine or without. Start it again afterwards.
    pub fn end(&mut self, how: End, rng: &mut Rng) -> String {
        let reaches = *rng.pick(&[Reaches::Mark, Reaches::Folder, Reaches::End]);
        let before = fs::read(self.activity_log()).expect("there is a log");
        let mut text = self.apps.request_until(reaches);
        // What the old run still does when it is dropped is not what a killed process does.
        self.shadow = self.shadow.after_kill();
        if how == End::PowerLoss {
            if reaches == Reaches::Mark {
                // In the middle of writing the mark: any of its sectors are there.
                self.tear_log(&before, rng);
            }
            let folder = self.apps.reader.folder().clone();
            let found = self.apps.disk.lose_power(&folder, rng);
            text.push_str(&format!("; {} of {} inodes are found", found.len(), folder.len()));
            *self.apps.reader.folder() = found;
            self.boot = self.boot.wrapping_add(1);
        }
        self.let_go();
        text
    }

    fn tear_log(&self, before: &[u8], rng: &mut Rng) {
        let path = self.activity_log();
        let mut after = fs::read(&path).expect("there is a log");
        // A log that was made anew replaced the old one by a rename.
        if before.len() != after.len() || before[..8] != after[..8] {
            return;
        }
        for (old, new) in before.chunks(SECTOR).zip(after.chunks_mut(SECTOR)) {
            if old != new && rng.chance(50) {
                new.copy_from_slice(old);
            }
        }
        fs::write(path, after).expect("written");
    }

    /// The keeper of the marks looks. While it syncs the folder's file system, applications go on.
    pub fn clear_marks(&mut self, rng: &mut Rng, may_fail: bool) -> Vec<String> {
        let commit = Arc::clone(&self.apps.commit);
        let all = rng.chance(50);
        let fails = may_fail && rng.chance(20);
        let shared = RefCell::new((&mut self.apps, Vec::new(), rng));
        let cleared = commit.clear_marks(all, &|| {
            let (apps, meanwhile, rng) = &mut *shared.borrow_mut();
            if fails {
                apps.disk.sync_failed(rng);
                meanwhile.push("syncfs fails".to_owned());
                return Err(std::io::Error::from_raw_os_error(libc::EIO));
            }
            apps.disk.sync();
            while !apps.quiet && rng.chance(60) {
                meanwhile.push(apps.request());
            }
            Ok(())
        });
        let meanwhile = shared.into_inner().1;
        assert!(cleared.is_ok() || fails, "marks are cleared: {cleared:?}");
        meanwhile
    }

    /// The first state of the run was published.
    pub fn save_floor(&mut self) {
        let commit = Arc::clone(&self.apps.commit);
        let disk = RefCell::new(&mut self.apps.disk);
        let saved = commit.save_floor_durably(&|| {
            disk.borrow_mut().sync();
            Ok(())
        });
        saved.expect("the activity log can be written");
    }

    /// Time passes.
    pub fn tick(&mut self, now: Duration) {
        self.link.handle_tick(now);
    }

    /// Notes what its mountd was told.
    pub fn note_durable(&mut self) {
        if self.link.session().is_some() {
            self.attempts = vec![self.apps.run];
        }
        if let Some(durable) = self.apps.commit.durable()
            && self.acknowledged.is_before(&durable)
        {
            self.acknowledged = durable;
            (self.pushes, self.forged) = (false, false);
        }
    }
}
