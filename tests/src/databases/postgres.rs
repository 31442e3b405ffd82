//! PostgreSQL: a server on the mount, and one on each copy.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{
    databases::{Database, schema, shell::Shell},
    harness::{Finished, run},
};

/// Settings that make it write, switch its log and checkpoint often.
const SETTINGS: &str = "listen_addresses = ''
fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = 16MB
min_wal_size = 4MB
max_wal_size = 16MB
checkpoint_timeout = 30s
autovacuum_naptime = 3s
autovacuum_vacuum_threshold = 20
jit = off
";
const LIMIT: Duration = Duration::from_secs(180);

/// Who runs servers: PostgreSQL refuses to run as root.
#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

/// The programs, wherever they are installed.
#[derive(Clone, Debug)]
pub struct Programs {
    directory: PathBuf,
    account: Account,
}

impl Programs {
    /// Finds them; `None` if PostgreSQL or its user is not installed.
    pub fn find() -> Option<Programs> {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
        let mut found: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
        found.retain(|bin| bin.join("initdb").exists() && bin.join("pg_amcheck").exists());
        found.sort();
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        let line = passwd.lines().find(|line| line.starts_with("postgres:"))?;
        let mut fields = line.split(':').skip(2);
        let account = Account { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? };
        Some(Programs { directory: found.pop()?, account })
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Finished, String> {
        let mut command = Command::new(self.directory.join(program));
        command.args(args).current_dir("/").uid(self.account.uid).gid(self.account.gid);
        let finished = run(&mut command, LIMIT);
        if finished.code != Some(0) {
            return Err(format!("{program} {args:?} failed: {}", finished.text().trim()));
        }
        Ok(finished)
    }

    fn own_dir(&self, path: &Path) -> Result<(), String> {
        let made = fs::create_dir_all(path).and_then(|()| chown(path, Some(self.account.uid), Some(self.account.gid)));
        made.map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// A server that runs. Dropping it kills it hard; [`Self::stop`] is the orderly way.
#[derive(Debug)]
struct Server {
    programs: Programs,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    shells: AtomicU64,
    stopped: bool,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the paths of a lab are text")
}

impl Server {
    fn start(programs: &Programs, data: &Path, scratch: &Path, name: &str) -> Result<Server, String> {
        let sockets = scratch.join(name);
        programs.own_dir(&sockets)?;
        let log = sockets.join("log");
        let options = format!("-k {}", text(&sockets));
        let server = Server {
            programs: programs.clone(),
            data: data.to_owned(),
            sockets,
            log,
            shells: AtomicU64::new(0),
            stopped: false,
        };
        let started = programs
            .run("pg_ctl", &["-D", text(data), "-w", "-t", "120", "-l", text(&server.log), "-o", &options, "start"]);
        match started {
            Ok(_) => Ok(server),
            Err(why) => Err(format!("{why}\n{}", server.log_tail())),
        }
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn connect(&self) -> Result<Shell, String> {
        let number = self.shells.fetch_add(1, Ordering::Relaxed);
        let errors = self.sockets.join(format!("psql-{number}.err"));
        let psql = self.programs.directory.join("psql");
        let args = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", text(&self.sockets), "-U", "postgres"];
        Shell::start(text(&psql), &[&args[..], &["-d", "postgres"]].concat(), &errors)
    }

    fn stop(&mut self, how: &str) -> Result<(), String> {
        self.stopped = true;
        self.programs.run("pg_ctl", &["-D", text(&self.data), "-w", "-t", "120", "-m", how, "stop"]).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped {
            let _ = self.stop("immediate");
        }
    }
}

/// A server whose files are on a mount.
#[derive(Debug)]
pub struct Postgres {
    programs: Programs,
    scratch: PathBuf,
    server: Server,
    copies: AtomicU64,
}

const NAME: &str = "pg";

impl Postgres {
    /// Makes a cluster in a directory of the mount and starts its server. `scratch` is for sockets and messages, outside the mount.
    pub fn create(programs: Programs, mount: &Path, scratch: &Path) -> Result<Self, String> {
        let data = mount.join(NAME);
        programs.own_dir(&data)?;
        let args = ["-D", text(&data), "-A", "trust", "-U", "postgres", "-k", "--wal-segsize=1", "-E", "UTF8"];
        programs.run("initdb", &[&args[..], &["--locale=C"]].concat())?;
        let config = data.join("postgresql.auto.conf");
        fs::write(&config, SETTINGS).map_err(|error| format!("{}: {error}", config.display()))?;
        let server = Server::start(&programs, &data, scratch, "server")?;
        let mut shell = server.connect()?;
        shell.ask("CREATE EXTENSION amcheck;")?;
        shell.ask(&schema::create())?;
        Ok(Postgres { programs, scratch: scratch.to_owned(), server, copies: AtomicU64::new(0) })
    }
}

impl Database for Postgres {
    fn connect(&self) -> Result<Shell, String> {
        self.server.connect()
    }

    fn begin(&self) -> &'static str {
        "BEGIN"
    }

    fn churn(&self) -> &'static str {
        "CHECKPOINT;"
    }

    fn verify(&self, copy: &Path, workers: usize) -> Result<Vec<u64>, String> {
        let data = copy.join(NAME);
        // It names a process of this machine, which lives, because it is the one that was cloned under.
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let name = format!("copy{}", self.copies.fetch_add(1, Ordering::Relaxed));
        let mut server = Server::start(&self.programs, &data, &self.scratch, &name)?;
        let found = schema::check(&mut server.connect()?, workers)?;
        let sockets = server.sockets.clone();
        let checked = self.programs.run(
            "pg_amcheck",
            &["-h", text(&sockets), "-U", "postgres", "-d", "postgres", "--heapallindexed", "--no-dependent-toast"],
        )?;
        if !checked.text().trim().is_empty() {
            return Err(format!("pg_amcheck: {}", checked.text().trim()));
        }
        server.stop("fast")?;
        self.programs.run("pg_checksums", &["--check", "-D", text(&data)])?;
        let log = server.log_text();
        match log.lines().find(|line| ["PANIC", "invalid page", "checksum"].iter().any(|bad| line.contains(bad))) {
            Some(bad) => Err(format!("its log says: {bad}")),
            None => Ok(found),
        }
    }
}

/// Accounts of pgbench, in units of 100,000: some 150 MB, which fits any memory.
const PGBENCH_SCALE: &str = "10";

/// Transactions a second of `pgbench` (TPC-B, 4 clients) with the settings of a fresh cluster in `data`, which is made if it is missing.
/// `scratch` is for sockets and messages.
pub fn pgbench(programs: &Programs, data: &Path, scratch: &Path, seconds: u64) -> Result<f64, String> {
    let fresh = !data.exists();
    if fresh {
        programs.own_dir(data)?;
        programs.run("initdb", &["-D", text(data), "-A", "trust", "-U", "postgres", "--locale=C"])?;
        fs::write(data.join("postgresql.auto.conf"), "listen_addresses = ''\n").map_err(|error| error.to_string())?;
    }
    programs.own_dir(scratch)?;
    let mut server = Server::start(programs, data, scratch, "server")?;
    let sockets = server.sockets.clone();
    let client = ["-h", text(&sockets), "-U", "postgres"];
    if fresh {
        programs.run("pgbench", &[&client[..], &["-i", "-q", "-s", PGBENCH_SCALE, "postgres"]].concat())?;
    }
    let seconds = seconds.to_string();
    let ran = programs.run("pgbench", &[&client[..], &["-c", "4", "-T", &seconds, "postgres"]].concat())?;
    server.stop("fast")?;
    let rate = ran.stdout.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.ok_or_else(|| format!("pgbench tells no rate: {}", ran.text()))
}
