//! Load, clones and verdicts.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    databases::{
        Database, Kind, Mode,
        ledger::Ledger,
        postgres::{Postgres, Programs},
        schema,
        sqlite::{Journal, Sqlite},
    },
    harness::{Lab, Mount, MountSpec, Storage, eventually, rpc},
    rng::{Rng, content},
};

/// Clients that commit at the same time.
const WORKERS: usize = 3;
/// Longest pause before a clone.
const PAUSE_MAX_MS: u64 = 700;
/// Time for a resync to begin.
const RESYNC_BEGINS: Duration = Duration::from_secs(60);
/// Time for everything to be applied, on a machine that is busy with other things.
const SETTLES: Duration = Duration::from_secs(350);

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Clones that are judged.
    pub trials: u64,
    /// Of what is random.
    pub seed: u64,
    /// Only clones count that are taken while a resync of so many MiB runs.
    pub resync_mib: Option<u64>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Trials that were judged.
    pub trials: u64,
    /// What was wrong, a line each.
    pub bad: Vec<String>,
    /// Commits that were acknowledged.
    pub commits: u64,
    /// Longest time of a commit.
    pub longest_commit: Duration,
    /// Longest time of a clone.
    pub longest_clone: Duration,
}

/// Runs trials of one database in one mode. `None`, with a message, where it cannot run.
pub fn run(kind: Kind, mode: Mode, options: &Options) -> Option<Report> {
    if let Some(why) = kind.missing() {
        eprintln!("SKIPPED {kind} {mode}: {why}");
        return None;
    }
    let lab = Lab::new(&format!("db-{kind}-{mode}"))?;
    // The database's own user has to come through.
    for dir in [lab.root().to_owned(), lab.root().join("work")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("own directory");
    }
    let storage = lab.storage();
    let spec = MountSpec::new(&storage, "db", &lab.new_dir("mount")).options(&format!("fsync={mode}"));
    let mount = lab.mount_with(&spec);
    let scratch = lab.new_dir("scratch");
    let made: Result<Box<dyn Database>, String> = match (kind, Programs::find()) {
        (Kind::Postgres, Some(programs)) => {
            Postgres::create(programs, mount.path(), &scratch).map(|made| Box::new(made) as _)
        }
        (Kind::Postgres, None) => Err("PostgreSQL is not installed".to_owned()),
        (Kind::SqliteWal, _) => Sqlite::create(mount.path(), Journal::Wal, &scratch).map(|made| Box::new(made) as _),
        (Kind::SqliteJournal, _) => {
            Sqlite::create(mount.path(), Journal::Delete, &scratch).map(|made| Box::new(made) as _)
        }
    };
    let database = made.unwrap_or_else(|error| panic!("{kind} does not start on the mount: {error}"));
    // The first sync has no position that could be cloned.
    mount.wait(SETTLES);
    let trials = Trials {
        name: format!("{kind} {mode}{}", if options.resync_mib.is_some() { " during a resync" } else { "" }),
        lab: &lab,
        storage: &storage,
        mount: &mount,
        database: &*database,
        ledger: Ledger::new(WORKERS),
        durable: mode == Mode::Durable,
        stop: AtomicBool::new(false),
        longest_commit: Mutex::default(),
    };
    Some(trials.run(options))
}

struct Trials<'a> {
    name: String,
    lab: &'a Lab,
    storage: &'a Storage,
    mount: &'a Mount,
    database: &'a dyn Database,
    ledger: Ledger,
    durable: bool,
    stop: AtomicBool,
    longest_commit: Mutex<Duration>,
}

impl Trials<'_> {
    fn run(&self, options: &Options) -> Report {
        let mut report = Report::default();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    let rng = Rng::new(options.seed.wrapping_mul(31).wrapping_add(worker as u64));
                    scope.spawn(move || self.work(worker, rng))
                })
                .collect();
            let mut rng = Rng::new(options.seed);
            eventually(Duration::from_secs(60), || self.ledger.total() > 5);
            while report.trials < options.trials && !self.stop.load(Ordering::Relaxed) {
                self.trial(options, &mut rng, &mut report);
            }
            self.stop.store(true, Ordering::Relaxed);
            for worker in workers {
                if let Err(error) = worker.join().expect("a worker does not panic") {
                    report.bad.push(format!("{}: the load failed: {error}", self.name));
                }
            }
        });
        self.last(&mut report);
        report.commits = self.ledger.total();
        report.longest_commit = *self.longest_commit.lock().expect("nobody panicked");
        report
    }

    /// Commits until it is told to stop.
    fn work(&self, worker: usize, mut rng: Rng) -> Result<(), String> {
        let result = self.database.connect().and_then(|mut shell| {
            while !self.stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let n = self.ledger.begin(worker);
                shell.ask(&schema::transfer(self.database.begin(), worker, n, &mut rng))?;
                self.ledger.acknowledged(worker);
                let mut longest = self.longest_commit.lock().expect("nobody panicked");
                *longest = begun.elapsed().max(*longest);
                drop(longest);
                if n.is_multiple_of(200) && !self.database.churn().is_empty() {
                    shell.ask(self.database.churn())?;
                }
                // Not as fast as it can: a clone waits for what was durable before it, and apply shares its processors.
                thread::sleep(Duration::from_millis(rng.below(6)));
            }
            Ok(())
        });
        if result.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        result
    }

    fn state(&self) -> String {
        self.mount.status().state
    }

    /// One clone at a random moment, and its verdict.
    fn trial(&self, options: &Options, rng: &mut Rng, report: &mut Report) {
        if let Some(mib) = options.resync_mib
            && self.state() != "catching-up"
        {
            self.begin_resync(mib, options.seed.wrapping_add(report.trials));
        }
        thread::sleep(Duration::from_millis(rng.below(PAUSE_MAX_MS)));
        let catching_up = self.state() == "catching-up";
        let copy = self.lab.path(&format!("copy{}", report.trials));
        let (verdict, took) = self.judge(&copy);
        if options.resync_mib.is_some() && !catching_up {
            // Between two resyncs: does not count as one during a resync, but must be good all the same.
            if let Err(why) = &verdict {
                report.bad.push(format!("{} between resyncs: {why}", self.name));
            }
            let _ = fs::remove_dir_all(&copy);
            return;
        }
        report.trials += 1;
        report.longest_clone = took.max(report.longest_clone);
        let which = format!("{} {} of {}", self.name, report.trials, options.trials);
        match verdict {
            Ok(said) => {
                println!("{which}: good, {said}");
                let _ = fs::remove_dir_all(&copy);
            }
            Err(why) => {
                // Out of the lab, which ends with the run.
                let kept = std::env::temp_dir().join(format!("tandem-bad-{}-{}", std::process::id(), report.trials));
                let _ = fs::rename(&copy, &kept);
                println!("{which}: BAD: {why}; the copy is {}", kept.display());
                report.bad.push(format!("{which}: {why}"));
            }
        }
    }

    /// Takes a clone, starts the database from it, and judges it. Also how long the clone took.
    fn judge(&self, copy: &Path) -> (Result<String, String>, Duration) {
        let must = if self.durable { self.ledger.now() } else { 0 };
        let begun = Instant::now();
        let server = format!("127.0.0.1:{}", self.storage.port());
        let path = copy.to_str().expect("the paths of a lab are text");
        let cloned = self.lab.tandem(&["clone", "db", path, "--server", &server, "--json"]);
        let took = begun.elapsed();
        if cloned.code != Some(0) {
            return (Err(format!("tandem clone failed: {}", cloned.text().trim())), took);
        }
        let verdict = self.database.verify(copy, WORKERS).and_then(|found| {
            let promised = self.ledger.check(&found, must)?;
            let position = position(&cloned.stdout).unwrap_or_default();
            Ok(format!(
                "at {position} with {} commits, {promised} of them promised; cloned in {:.2} s",
                found.iter().sum::<u64>(),
                took.as_secs_f64()
            ))
        });
        (verdict, took)
    }

    /// Makes the mount owe its replica a file of so many MiB.
    fn begin_resync(&self, mib: u64, fill: u64) {
        let file: PathBuf = self.mount.path().join("big");
        // Clones between two resyncs would copy it.
        let emptied = File::create(&file);
        emptied.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.mount.wait(SETTLES);
        rpc::pause(&self.mount.socket()).expect("mountd answers");
        let mut big = File::create(&file).expect("the mount is writable");
        let block = content(fill, 1 << 20);
        for at in 0..mib {
            let mut block = block.clone();
            block[..8].copy_from_slice(&at.to_le_bytes());
            big.write_all(&block).expect("there is room");
        }
        drop(big);
        rpc::resume(&self.mount.socket()).expect("mountd answers");
        let begins = eventually(RESYNC_BEGINS, || self.state() == "catching-up");
        assert!(begins, "no resync begins: {:#?}", self.mount.status());
    }

    /// When nobody writes any more, a clone has everything.
    fn last(&self, report: &mut Report) {
        let _ = fs::remove_file(self.mount.path().join("big"));
        self.mount.wait(SETTLES);
        let must = self.ledger.now();
        let copy = self.lab.path("last");
        let (verdict, _) = self.judge(&copy);
        let complete = verdict
            .and_then(|_| self.database.verify(&copy, WORKERS))
            .and_then(|found| self.ledger.check(&found, must));
        if let Err(why) = complete {
            report.bad.push(format!("{} at the end: {why}", self.name));
        }
    }
}

fn position(json: &str) -> Option<String> {
    let number = |key: &str| {
        let rest = json.split_once(&format!("\"{key}\":"))?.1;
        Some(rest.chars().take_while(char::is_ascii_digit).collect::<String>())
    };
    Some(format!("{}:{}", number("epoch")?, number("seq")?))
}
