//! Benches that need daemons of their own, in a temporary directory: `fsync [--writes N]`, `steady [--rate BYTES] [--seconds S]`,
//! `hostile [--seconds S] [--kinds LIST]`, `tls [--mib N] [--rounds N] [--files N]`,
//! `mount [--runs N] [--kinds LIST] [--families LIST] [--options LIST] [--json FILE] [--against FILE] ...`.
//! Prints figures; exit code 1 if one is out of its bound (`--no-bound`: never), and no round trip alone forbids it (`mount`).

use std::{env, fs, path::Path, process::ExitCode, time::Duration};

use tandem_tests::{
    bench::{
        fsync, hostile,
        mount::{self, Plan, Scale, report},
        steady, tls,
    },
    figures,
    harness::{Lab, MountSpec},
};

const USAGE: &str = "usage: tandem-bench fsync [--writes N] [--no-bound]
       tandem-bench steady [--rate BYTES] [--seconds S] [--no-bound]
       tandem-bench hostile [--seconds S] [--kinds crowd,handshakes,lies,calls] [--no-bound]
       tandem-bench tls [--mib N] [--rounds N] [--files N] [--no-bound]
       tandem-bench mount [--runs N] [--kinds paused,live,lagging,absent,bindfs,sshfs,gluster,STATE+OPTION...] [--families data,names,programs,pgbench] [--options LIST]
                          [--mib N] [--files N] [--tree N] [--fsyncs N] [--pgbench S] [--json FILE] [--against FILE] [--no-bound]";

/// What `mount` compares: those with a bound, which are `paused` and `live`, and those that are only told.
const MOUNT_KINDS: &str = "paused,live,lagging,absent,bindfs,sshfs,gluster";

/// A durable fsync may cost so many times the sum of its parts.
const FSYNC_RATIO_MAX: f64 = 1.5;
/// After a steady load the replica is equal within this.
const BEHIND_MAX: Duration = Duration::from_millis(100);
/// Bytes on the wire for each byte written.
const OVERHEAD_MAX: f64 = 1.15;
/// Beside attackers, one fsync in a hundred may take so many times what it takes alone, and so long.
const ATTACKED_MAX: (f64, Duration) = (10.0, Duration::from_millis(50));
/// What attackers may cost the storage daemon.
const ATTACKED_GROWTH_MAX_KIB: u64 = 256 << 10;
/// A first sync over TLS may take so many times the one in the clear, and the lag of a small file so much more.
const TLS_MAX: (f64, Duration) = (1.5, Duration::from_millis(1));

struct Args {
    words: Vec<String>,
}

impl Args {
    fn value(&self, name: &str, default: u64) -> Result<u64, String> {
        match self.words.iter().position(|word| word == name) {
            None => Ok(default),
            Some(at) => {
                let value = self.words.get(at + 1).and_then(|value| value.parse().ok());
                value.ok_or_else(|| format!("{name} needs a number\n{USAGE}"))
            }
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == name)?;
        self.words.get(at + 1).map(String::as_str)
    }

    fn list(&self, name: &str, default: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or(default);
        text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    fn flag(&self, name: &str) -> bool {
        self.words.iter().any(|word| word == name)
    }
}

fn main() -> ExitCode {
    let args = Args { words: env::args().skip(1).collect() };
    let unknown = args.words.iter().any(|word| word.starts_with("--") && !USAGE.contains(&format!("[{word}")));
    let ran = match args.words.first().map(String::as_str).filter(|_| !unknown) {
        Some("fsync") => bench_fsync(&args),
        Some("steady") => bench_steady(&args),
        Some("hostile") => bench_hostile(&args),
        Some("attack") => attack(&args),
        Some("tls") => bench_tls(&args),
        Some("mount") => bench_mount(&args),
        _ => Err(USAGE.to_owned()),
    };
    match ran {
        Ok(within) if within || args.flag("--no-bound") => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(64)
        }
    }
}

fn bench_fsync(args: &Args) -> Result<bool, String> {
    let writes = args.value("--writes", 1000)? as usize;
    let lab = Lab::new("bench-fsync").ok_or("mounts are impossible here")?;
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &dir).options("fsync=durable"));
    mount.settle();
    let measured = fsync::measure(&dir, &lab.new_dir("native"), storage.data(), writes);
    let figures = measured.map_err(|error| error.to_string())?;
    println!("durable fsync of 4 KiB, {writes} times: {figures} (bound {FSYNC_RATIO_MAX})");
    Ok(figures.ratio() <= FSYNC_RATIO_MAX)
}

fn bench_steady(args: &Args) -> Result<bool, String> {
    let (rate, seconds) = (args.value("--rate", 20_000_000)?, args.value("--seconds", 20)?);
    let lab = Lab::new("bench-steady").ok_or("mounts are impossible here")?;
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let mount = lab.mount(&storage, "vol", &dir);
    mount.settle();
    let measured = steady::measure(&dir, &mount.socket(), rate, Duration::from_secs(seconds));
    let measured = measured.map_err(|error| error.to_string())?;
    println!("random writes of 4 KiB: {measured} (bounds {BEHIND_MAX:?} and {OVERHEAD_MAX})");
    let equal = figures::status(&mount.socket()).is_ok_and(|status| status.ops_behind == 0);
    Ok(equal && measured.behind <= BEHIND_MAX && measured.overhead() <= OVERHEAD_MAX)
}

fn bench_hostile(args: &Args) -> Result<bool, String> {
    let time = Duration::from_secs(args.value("--seconds", 10)?);
    let kinds = args.list("--kinds", &hostile::KINDS.join(","));
    let lab = Lab::new("bench-hostile").ok_or("mounts are impossible here")?;
    let figures = hostile::measure(&lab, time, &kinds).map_err(|error| error.to_string())?;
    println!("{figures} (bounds {} x and {:?})", ATTACKED_MAX.0, ATTACKED_MAX.1);
    let p99 = figures.attacked.p99;
    let soon = p99 <= ATTACKED_MAX.1 && p99.as_secs_f64() <= ATTACKED_MAX.0 * figures.idle.p99.as_secs_f64();
    Ok(soon && figures.grown_kib <= ATTACKED_GROWTH_MAX_KIB)
}

/// `attack KIND PORT IDENTITY`: one attacker of `hostile`.
fn attack(args: &Args) -> Result<bool, String> {
    let [_, kind, port, identity] = args.words.as_slice() else { return Err(USAGE.to_owned()) };
    let port = port.parse().map_err(|_| USAGE.to_owned())?;
    hostile::attack(kind, port, Path::new(identity)).map(|()| true)
}

fn bench_tls(args: &Args) -> Result<bool, String> {
    let scale = tls::Scale {
        bytes: args.value("--mib", 4096)? << 20,
        rounds: args.value("--rounds", 3)?,
        files: args.value("--files", 200)?,
    };
    let lab = Lab::new("bench-tls").ok_or("mounts are impossible here")?;
    let figures = tls::measure(&lab, &scale).map_err(|error| error.to_string())?;
    println!("{figures} (bounds {} and {:?} more)", TLS_MAX.0, TLS_MAX.1);
    Ok(figures.ratio() <= TLS_MAX.0 && figures.more_lag() <= TLS_MAX.1)
}

fn bench_mount(args: &Args) -> Result<bool, String> {
    let scale = Scale {
        large_bytes: args.value("--mib", 1024)? << 20,
        files: args.value("--files", 5000)?,
        tree_files: args.value("--tree", 6000)?,
        fsyncs: args.value("--fsyncs", 500)?,
        pgbench_seconds: args.value("--pgbench", 5)?,
    };
    let options = args.text("--options").unwrap_or_default();
    let kinds = args.list("--kinds", MOUNT_KINDS).into_iter();
    // `paused+busy_poll=0`: a state, and options of its own.
    let kinds = kinds.map(|kind| {
        let (state, own) = kind.split_once('+').unwrap_or((&kind, options));
        report::Kind { state: state.to_owned(), options: own.replace('+', ",") }
    });
    let kinds = kinds.collect();
    let plan = Plan { scale, runs: args.value("--runs", 5)? as usize, kinds, families: args.list("--families", "") };
    let before = match args.text("--against") {
        Some(path) => Some(fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?),
        None => None,
    };
    let before = before.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| error.to_string())?;
    let lab = Lab::new("bench-mount").ok_or("mounts are impossible here")?;
    lab.allow_lost_peers();
    let (kinds, samples) = mount::measure(&lab, &plan).map_err(|error| error.to_string())?;
    let missed = report::print(&samples, &kinds, before.as_ref());
    if let Some(path) = args.text("--json") {
        let text = format!("{:#}\n", report::as_json(&samples, &kinds));
        fs::write(path, text).map_err(|error| format!("{path}: {error}"))?;
    }
    // What no file system behind FUSE could keep here is told, and is no fault of this one.
    Ok(missed.iter().all(|missed| missed.forbidden.is_some()))
}
