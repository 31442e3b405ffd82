//! What a mount was asked to be: command line, `-o` list and configuration file, which share one table of keys.
//!
//! `tandem-mountd SOURCE DIR [-f] [-o OPTIONS] [--KEY[=VALUE]]`, and the same as `mount.tandem SOURCE DIR [-sfnv] [-o OPTIONS]`,
//! as mount(8) calls it. In names `-` and `_` are equal. What is unknown is an error that names the nearest known one.

use std::{
    ffi::OsString,
    fmt::Write as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use tandem_proto::VolumeName;
use tandem_runtime::{
    connect::{KEEPALIVE, ServerAddress},
    dirs,
    telemetry::LogOptions,
};
use tandem_web::Listen;

use crate::{
    commit::{dirty::DIRTY_LIMIT_BYTES, marks::HOT_KEPT, shadow, throttle::Congestion},
    exclude::Excludes,
    fuse::default_busy_poll,
    link::{core::BACKOFF_MAX, start::Init},
    mount::read_ahead,
    replication::DEFAULT_WINDOW_BYTES,
    verify,
    vfs::{CacheMode, FsyncMode, FsyncRules},
};

/// How long written data waits in the kernel with `cache=writeback`.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// The kernel itself writes what is 30 s old.
const FLUSH_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Share of the kernel's dirty memory that a mount with `cache=writeback` may take: the default of FUSE is 1 %, some 48 MB, at which
/// writers wait.
const DIRTY_PERCENT: u32 = 60;
/// Smallest window: a batch and some ops beside it.
const WINDOW_MIN_BYTES: usize = 4 << 20;
/// Below it not even the questions whether the other side is there would get through in time.
const BANDWIDTH_MIN: usize = 16 << 10;
/// Smallest shadow.
const SHADOW_MIN_BYTES: usize = 4 << 20;

/// `HOST[:PORT]:/VOLUME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The storage daemon.
    pub server: ServerAddress,
    /// The volume there.
    pub volume: VolumeName,
    /// As it was written, for the table of mounts.
    pub text: String,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        let Some((server, volume)) = text.rsplit_once(":/") else {
            return Err(format!("{text:?} is not a source: write HOST[:PORT]:/VOLUME, for example localhost:/home"));
        };
        let server = server.parse()?;
        let volume = volume.parse::<VolumeName>().map_err(|error| error.to_string())?;
        Ok(Source { server, volume, text: text.to_owned() })
    }
}

/// Everything that a mount was asked to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the replica is.
    pub source: Source,
    /// The mountpoint as it was written.
    pub dir: PathBuf,
    /// The settings.
    pub settings: Settings,
}

/// What the keys set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `backing=DIR`; `None`: the mountpoint itself.
    pub backing: Option<PathBuf>,
    /// `init=pull|push`.
    pub init: Option<Init>,
    /// `takeover`.
    pub takeover: bool,
    /// `keepalive=SECONDS`; `None`: a silent connection is never given up.
    pub keepalive: Option<Duration>,
    /// `reconnect_max=SECONDS`.
    pub reconnect_max: Duration,
    /// `fsync=local|durable[:PATH]`, any number.
    pub fsync: FsyncRules,
    /// `fsync_timeout=SECONDS`; `None`: wait for ever.
    pub fsync_timeout: Option<Duration>,
    /// `cache=strict|writeback`.
    pub cache_mode: CacheMode,
    /// `flush_interval=SECONDS`.
    pub flush_interval: Duration,
    /// `dirty_budget=PERCENT`.
    pub dirty_percent: u32,
    /// `congestion=lag|throttle`.
    pub congestion: Congestion,
    /// What stays local.
    pub exclude: Excludes,
    /// Comparisons of folder and replica in the background.
    pub verify: verify::Rule,
    /// `window=SIZE`.
    pub window_bytes: usize,
    /// `bwlimit=SIZE`, in bytes a second; `None`: no limit.
    pub bandwidth_limit: Option<u64>,
    /// `dirty_max=SIZE`.
    pub dirty_bytes: usize,
    /// `shadow_max=SIZE`; 0: none.
    pub shadow_bytes: usize,
    /// `marks_hot=COUNT`.
    pub marks_hot: usize,
    /// `busy_poll=MICROSECONDS`; zero: never.
    pub busy_poll: Duration,
    /// `read_ahead=SIZE`.
    pub read_ahead_bytes: usize,
    /// `state=DIR`.
    pub state: PathBuf,
    /// `runtime=DIR`.
    pub runtime: PathBuf,
    /// `web=ADDR:PORT|off`.
    pub web: Listen,
    /// `log_level`, `log_json`.
    pub log: LogOptions,
    /// `weak_ids`: files without lasting identity are accepted.
    pub weak_ids: bool,
    /// `allow_other`; `None`: as root yes, else no.
    pub allow_other: Option<bool>,
    /// `ro`.
    pub read_only: bool,
    /// `suid`.
    pub suid: bool,
    /// `dev`.
    pub dev: bool,
    /// `exec`.
    pub exec: bool,
    /// `insecure`: plaintext also to another machine.
    pub insecure: bool,
    /// `identity=FILE`; `None`: the one of the server's address.
    pub identity: Option<PathBuf>,
    /// `-f`, `--foreground`.
    pub foreground: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            backing: None,
            init: None,
            takeover: false,
            keepalive: Some(KEEPALIVE),
            reconnect_max: BACKOFF_MAX,
            fsync: FsyncRules::default(),
            fsync_timeout: None,
            cache_mode: CacheMode::default(),
            flush_interval: FLUSH_INTERVAL,
            dirty_percent: DIRTY_PERCENT,
            congestion: Congestion::default(),
            exclude: Excludes::default(),
            verify: verify::Rule::default(),
            window_bytes: DEFAULT_WINDOW_BYTES,
            bandwidth_limit: None,
            dirty_bytes: DIRTY_LIMIT_BYTES,
            shadow_bytes: shadow::DEFAULT_LIMIT_BYTES,
            marks_hot: HOT_KEPT,
            busy_poll: default_busy_poll(),
            read_ahead_bytes: read_ahead::DEFAULT_BYTES,
            state: dirs::state_dir(),
            runtime: dirs::runtime_dir(),
            web: Listen::default(),
            log: LogOptions::default(),
            weak_ids: false,
            allow_other: None,
            read_only: false,
            // A folder that came over a network brings no privileges with it, unless the administrator says so.
            suid: false,
            dev: false,
            exec: true,
            insecure: false,
            identity: None,
            foreground: false,
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Request {
    /// To mount.
    Mount(Box<Options>),
    /// To check the options only (`mount -f`).
    Check,
    /// To print this.
    Print(String),
}

/// The command line cannot be understood. Exit code 64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

fn usage<T>(message: impl Into<String>) -> Result<T, UsageError> {
    Err(UsageError(message.into()))
}

/// A key, whether it takes a value, and what it says in the help. One line each, in the order of the help.
const KEYS: &[(&str, Option<&str>, &str)] = &[
    ("backing", Some("DIR"), "keep the files in DIR instead of in the mountpoint itself"),
    ("init", Some("pull|push"), "fill an empty folder from the replica, or make the replica like the folder"),
    (
        "takeover",
        None,
        "fence another mount that holds the volume; with init, or if the folder holds the replica's state",
    ),
    (
        "fsync",
        Some("MODE[:PATH]"),
        "what fsync waits for: local (the disk here) or durable (also the replica's log); for all, or below PATH",
    ),
    ("fsync_timeout", Some("SECONDS"), "fail a durable fsync with EIO after this time (0: wait)"),
    ("keepalive", Some("SECONDS"), "how soon a connection that swallows everything is given up (2; 0: never)"),
    ("reconnect_max", Some("SECONDS"), "longest pause between attempts to connect (2)"),
    ("bwlimit", Some("SIZE"), "bytes a second that may be sent; 0: as fast as the link goes (0)"),
    ("window", Some("SIZE"), "memory for changes that wait to be sent (64M)"),
    (
        "dirty_max",
        Some("SIZE"),
        "memory for what differs, name by name and range by range, before it is told coarsely (64M)",
    ),
    (
        "shadow_max",
        Some("SIZE"),
        "memory in the runtime directory that keeps it if the daemon is killed (64M; 0: none)",
    ),
    ("marks_hot", Some("COUNT"), "cells that may be changed without a write to the activity log, the last used (1024)"),
    (
        "busy_poll",
        Some("MICROSECONDS"),
        "how long to look for the kernel's next request without sleeping, while they come quickly (40; 0: never)",
    ),
    ("read_ahead", Some("SIZE"), "how far the kernel reads ahead; needs root (1M)"),
    ("state", Some("DIR"), "where what must outlive the daemon is kept"),
    ("runtime", Some("DIR"), "where the daemon's socket is"),
    (
        "web",
        Some("ADDR:PORT|off"),
        "where the daemon's page and metrics are (127.0.0.1, port 7450 or the next free one)",
    ),
    ("log_level", Some("LEVEL"), "error, warn, info, debug or trace, or a filter"),
    ("log_json", None, "log one JSON object a line"),
    (
        "cache",
        Some("strict|writeback"),
        "strict: every write arrives in order; writeback: small writes are faster, order at fsync and close only",
    ),
    ("flush_interval", Some("SECONDS"), "with cache=writeback: how long written data may wait in the kernel (0.2)"),
    ("dirty_budget", Some("PERCENT"), "with cache=writeback: share of the kernel's dirty memory for this mount (60)"),
    (
        "congestion",
        Some("lag|throttle"),
        "when the link is slower than the writer: fall behind, or slow the writer (lag)",
    ),
    (
        "verify_every",
        Some("SECONDS"),
        "time between two comparisons of the folder with the replica in the background (86400; 0: none)",
    ),
    ("verify_rate", Some("SIZE"), "bytes that such a comparison reads a second (32M)"),
    (
        "exclude",
        Some("GLOB"),
        "keep what matches local: *.o by name, /build or a/**/b from the root of the mount, NAME/ only directories; repeatable",
    ),
    ("weak_ids", None, "accept a file system whose files have no lasting identity"),
    ("allow_other", None, "let other users in, as permissions say (the default for root)"),
    (
        "identity",
        Some("FILE"),
        "the certificate to connect with; default: the one that `tandem join` got for this server",
    ),
    ("insecure", None, "plaintext also to another machine: whoever is on the way reads and changes everything"),
    ("config", Some("FILE"), "read keys from a TOML file first"),
];

/// Options of mount(8) that a file system has to accept, and that mean nothing here.
const IGNORED: &[&str] = &[
    "rw",
    "auto",
    "noauto",
    "_netdev",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "defaults",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "diratime",
    "nodiratime",
    "async",
    "default_permissions",
    "nosuid",
    "nodev",
    "exec",
    "remount",
];

/// Understands a command line, without the program's own name. `as_helper`: called by mount(8) as `mount.tandem`.
pub fn parse(arguments: &[OsString], as_helper: bool) -> Result<Request, UsageError> {
    let mut parser =
        Parser { arguments, at: 0, positional: Vec::new(), pairs: Vec::new(), fake: false, foreground: false };
    if let Some(text) = parser.run(as_helper)? {
        return Ok(Request::Print(text));
    }
    let Parser { positional, pairs, fake, foreground, .. } = parser;
    let (source, dir) = match <[OsString; 2]>::try_from(positional) {
        Ok([source, dir]) => (source, PathBuf::from(dir)),
        Err(other) => {
            return usage(format!("expected SOURCE and DIR, found {} argument(s); try --help", other.len()));
        }
    };
    let mut source: Source = match source.to_str() {
        Some(source) => source.parse().map_err(UsageError)?,
        None => return usage(format!("{source:?} is not a source: write HOST[:PORT]:/VOLUME")),
    };
    let mut settings = Settings { foreground, ..Settings::default() };
    for file in pairs.iter().filter(|(key, _)| key == "config").filter_map(|(_, value)| value.clone()) {
        for (key, value) in read_config(Path::new(&file))? {
            settings.set(&key, value)?;
        }
    }
    for (key, value) in pairs {
        settings.set(&key, value)?;
    }
    source.server.insecure = settings.insecure;
    source.server.identity = settings.identity.clone();
    if fake {
        return Ok(Request::Check);
    }
    Ok(Request::Mount(Box::new(Options { source, dir, settings })))
}

type Pair = (String, Option<OsString>);

struct Parser<'a> {
    arguments: &'a [OsString],
    at: usize,
    positional: Vec<OsString>,
    pairs: Vec<Pair>,
    fake: bool,
    foreground: bool,
}

impl Parser<'_> {
    /// `Some`: only print this.
    fn run(&mut self, as_helper: bool) -> Result<Option<String>, UsageError> {
        while let Some(argument) = self.arguments.get(self.at) {
            self.at += 1;
            let bytes = argument.as_bytes();
            if let Some(long) = bytes.strip_prefix(b"--") {
                match long {
                    b"help" => return Ok(Some(help())),
                    b"version" => return Ok(Some(format!("tandem-mountd {}", env!("CARGO_PKG_VERSION")))),
                    b"foreground" => self.foreground = true,
                    _ => self.long(long)?,
                }
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                if let Some(text) = self.short(&bytes[1..], as_helper)? {
                    return Ok(Some(text));
                }
            } else {
                self.positional.push(argument.clone());
            }
        }
        Ok(None)
    }

    fn long(&mut self, long: &[u8]) -> Result<(), UsageError> {
        let (key, value) = split_pair(long)?;
        let takes_value = KEYS.iter().any(|(name, argument, _)| *name == key && argument.is_some());
        let value = match value {
            None if takes_value => Some(self.next(&format!("--{key}"))?),
            value => value,
        };
        self.pairs.push((key, value));
        Ok(())
    }

    fn short(&mut self, letters: &[u8], as_helper: bool) -> Result<Option<String>, UsageError> {
        for (at, letter) in letters.iter().enumerate() {
            let rest = &letters[at + 1..];
            match letter {
                b'o' => {
                    let list = if rest.is_empty() { self.next("-o")? } else { OsString::from_vec(rest.to_vec()) };
                    for option in list.as_bytes().split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
                        self.pairs.push(split_pair(option)?);
                    }
                    return Ok(None);
                }
                b't' | b'N' if as_helper => {
                    if rest.is_empty() {
                        self.next("-t")?;
                    }
                    return Ok(None);
                }
                b'f' if as_helper => self.fake = true,
                b'f' => self.foreground = true,
                // Sloppy, no mtab, verbose: nothing to do.
                b's' | b'n' | b'v' => {}
                b'h' => return Ok(Some(help())),
                b'V' => return Ok(Some(format!("tandem-mountd {}", env!("CARGO_PKG_VERSION")))),
                other => return usage(format!("unknown flag -{}; try --help", char::from(*other))),
            }
        }
        Ok(None)
    }

    fn next(&mut self, of: &str) -> Result<OsString, UsageError> {
        let value = self.arguments.get(self.at).cloned();
        self.at += 1;
        value.ok_or_else(|| UsageError(format!("{of} needs a value; try --help")))
    }
}

/// `key=value`; in the key `-` is `_`, except for a leading one that mount(8) uses (`_netdev`, `x-...`).
fn split_pair(option: &[u8]) -> Result<Pair, UsageError> {
    let (key, value) = match option.iter().position(|byte| *byte == b'=') {
        Some(at) => (&option[..at], Some(OsString::from_vec(option[at + 1..].to_vec()))),
        None => (option, None),
    };
    match std::str::from_utf8(key) {
        Ok(key) if !key.is_empty() => Ok((key.replace('-', "_"), value)),
        _ => usage(format!("{:?} is not an option", String::from_utf8_lossy(option))),
    }
}

impl Settings {
    fn set(&mut self, key: &str, value: Option<OsString>) -> Result<(), UsageError> {
        match (key, value) {
            ("config", Some(_)) => {}
            ("backing", Some(dir)) => self.backing = Some(absolute(key, dir)?),
            ("state", Some(dir)) => self.state = absolute(key, dir)?,
            ("runtime", Some(dir)) => self.runtime = absolute(key, dir)?,
            ("init", Some(value)) => {
                self.init = Some(one_of(key, &value, &[("pull", Init::Pull), ("push", Init::Push)])?)
            }
            ("fsync", Some(value)) => fsync_rule(&mut self.fsync, &value)?,
            ("fsync_timeout", Some(value)) => self.fsync_timeout = seconds(key, &value)?,
            ("takeover", value) => self.takeover = flag(key, value)?,
            ("keepalive", Some(value)) => self.keepalive = seconds(key, &value)?,
            ("reconnect_max", Some(value)) => match seconds(key, &value)? {
                Some(longest) => self.reconnect_max = longest,
                None => return usage("option reconnect_max=0: write seconds, for example 2"),
            },
            ("busy_poll", Some(value)) => self.busy_poll = busy_poll(&value)?,
            ("read_ahead", Some(value)) => self.read_ahead_bytes = size("read_ahead", &value, 4 << 10, "4K")?,
            ("bwlimit", Some(value)) => self.bandwidth_limit = bandwidth(&value)?,
            ("window", Some(value)) => self.window_bytes = window(&value)?,
            ("dirty_max", Some(value)) => self.dirty_bytes = size(key, &value, 1 << 20, "1M")?,
            ("shadow_max", Some(value)) => self.shadow_bytes = shadow_size(&value)?,
            ("marks_hot", Some(value)) => self.marks_hot = marks(&value)?,
            ("exclude", Some(value)) => {
                let text = value.to_str().ok_or_else(|| UsageError("option exclude: a pattern is UTF-8".to_owned()))?;
                self.exclude.add(text).map_err(|why| UsageError(format!("option exclude: {why}")))?;
            }
            ("verify_every", Some(value)) => self.verify.every = seconds(key, &value)?,
            ("verify_rate", Some(value)) => self.verify.rate_bytes = size(key, &value, 64 << 10, "64K")? as u64,
            ("congestion", Some(value)) => {
                let modes = [("lag", Congestion::Lag), ("throttle", Congestion::Throttle)];
                self.congestion = one_of(key, &value, &modes)?;
            }
            ("cache", Some(value)) => {
                let modes = [("strict", CacheMode::Strict), ("writeback", CacheMode::Writeback)];
                self.cache_mode = one_of(key, &value, &modes)?;
            }
            ("flush_interval", Some(value)) => match seconds(key, &value)? {
                Some(interval) if interval <= FLUSH_INTERVAL_MAX => self.flush_interval = interval,
                _ => return usage("option flush_interval: write seconds, more than 0 and at most 30, for example 0.2"),
            },
            ("dirty_budget", Some(value)) => match value.to_string_lossy().trim_end_matches('%').parse() {
                Ok(percent @ 1..=100) => self.dirty_percent = percent,
                _ => return usage("option dirty_budget: write a number from 1 to 100, for example 60"),
            },
            ("web", Some(value)) => self.web = value.to_string_lossy().parse().map_err(UsageError)?,
            ("log_level", Some(value)) => self.log.level = Some(value.to_string_lossy().into_owned()),
            ("log_json", value) => self.log.json = flag(key, value)?,
            ("weak_ids", value) => self.weak_ids = flag(key, value)?,
            ("allow_other", value) => self.allow_other = Some(flag(key, value)?),
            ("identity", Some(file)) => self.identity = Some(absolute(key, file)?),
            ("insecure", value) => self.insecure = flag(key, value)?,
            ("foreground", value) => self.foreground = flag(key, value)?,
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("suid", None) => self.suid = true,
            ("nosuid", None) => self.suid = false,
            ("dev", None) => self.dev = true,
            ("nodev", None) => self.dev = false,
            ("exec", None) => self.exec = true,
            ("noexec", None) => self.exec = false,
            (key, _) if IGNORED.contains(&key) || key.starts_with("x_") || key == "comment" => {}
            (key, None) if KEYS.iter().any(|(name, argument, _)| *name == key && argument.is_some()) => {
                return usage(format!("option {key} needs a value: {key}=..."));
            }
            (key, _) => return unknown(key),
        }
        Ok(())
    }
}

/// The daemon leaves its working directory, so paths must not depend on it.
fn absolute(key: &str, dir: OsString) -> Result<PathBuf, UsageError> {
    std::path::absolute(PathBuf::from(dir)).map_err(|error| UsageError(format!("option {key}: {error}")))
}

fn unknown<T>(key: &str) -> Result<T, UsageError> {
    let known =
        KEYS.iter().map(|(name, ..)| *name).chain(IGNORED.iter().copied()).chain(["ro", "suid", "dev", "noexec"]);
    let nearest = known.map(|name| (distance(key, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= 3.min(key.len() / 2) => {
            usage(format!("unknown option {key:?}; did you mean {name}?"))
        }
        _ => usage(format!("unknown option {key:?}; `tandem-mountd --help` lists them")),
    }
}

/// Edits that lead from one word to the other.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(l != r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

fn one_of<T: Copy>(key: &str, value: &OsString, choices: &[(&str, T)]) -> Result<T, UsageError> {
    let chosen = choices.iter().find(|(name, _)| value.as_os_str() == *name);
    chosen.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        UsageError(format!("option {key}={}: use {}", value.to_string_lossy(), names.join(" or ")))
    })
}

fn flag(key: &str, value: Option<OsString>) -> Result<bool, UsageError> {
    match value {
        None => Ok(true),
        Some(value) => one_of(key, &value, &[("true", true), ("false", false), ("yes", true), ("no", false)]),
    }
}

/// `MODE` for the mount, `MODE:/PATH` for what lies at or below a path of it.
fn fsync_rule(rules: &mut FsyncRules, value: &OsString) -> Result<(), UsageError> {
    const MODES: &[(&str, FsyncMode)] = &[("local", FsyncMode::Local), ("durable", FsyncMode::Durable)];
    let bytes = value.as_bytes();
    let Some(at) = bytes.iter().position(|byte| *byte == b':') else {
        rules.set_mount(one_of("fsync", value, MODES)?);
        return Ok(());
    };
    let mode = one_of("fsync", &OsString::from_vec(bytes[..at].to_vec()), MODES)?;
    rules.set_below(&bytes[at + 1..], mode).map_err(|why| {
        UsageError(format!("option fsync={}: {why}; for example fsync=durable:/db", value.to_string_lossy()))
    })
}

fn seconds(key: &str, value: &OsString) -> Result<Option<Duration>, UsageError> {
    let text = value.to_string_lossy();
    match text.strip_suffix('s').unwrap_or(&text).parse::<f64>() {
        Ok(0.0) => Ok(None),
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 * 365.0 => Ok(Some(Duration::from_secs_f64(seconds))),
        _ => usage(format!("option {key}={text}: write seconds, for example 30; 0 waits for ever")),
    }
}

fn window(value: &OsString) -> Result<usize, UsageError> {
    size("window", value, WINDOW_MIN_BYTES, "4M")
}

/// Bytes a second; 0: no limit.
fn bandwidth(value: &OsString) -> Result<Option<u64>, UsageError> {
    if value == "0" {
        return Ok(None);
    }
    size("bwlimit", value, BANDWIDTH_MIN, "16K").map(|bytes| Some(bytes as u64))
}

/// A number of bytes, with K, M or G behind it.
fn size(key: &str, value: &OsString, least: usize, least_text: &str) -> Result<usize, UsageError> {
    let text = value.to_string_lossy();
    let (digits, shift) = match text.trim_end_matches(['B', 'b', 'i']).as_bytes() {
        [digits @ .., b'K' | b'k'] => (digits.len(), 10),
        [digits @ .., b'M' | b'm'] => (digits.len(), 20),
        [digits @ .., b'G' | b'g'] => (digits.len(), 30),
        digits => (digits.len(), 0),
    };
    match text[..digits].parse::<usize>().ok().and_then(|number| number.checked_mul(1 << shift)) {
        Some(bytes) if bytes >= least => Ok(bytes),
        _ => usage(format!("option {key}={text}: write a size of at least {least_text}, for example 64M")),
    }
}

/// 0 switches the shadow off.
fn shadow_size(value: &OsString) -> Result<usize, UsageError> {
    if value == "0" { Ok(0) } else { size("shadow_max", value, SHADOW_MIN_BYTES, "4M (0: none)") }
}

fn busy_poll(value: &OsString) -> Result<Duration, UsageError> {
    match value.to_string_lossy().parse() {
        Ok(micros @ 0..=10_000) => Ok(Duration::from_micros(micros)),
        _ => usage(format!("option busy_poll={}: write microseconds, up to 10000", value.to_string_lossy())),
    }
}

fn marks(value: &OsString) -> Result<usize, UsageError> {
    match value.to_string_lossy().parse() {
        Ok(count @ 16..=100_000) => Ok(count),
        _ => usage(format!("option marks_hot={}: write a number from 16 to 100000", value.to_string_lossy())),
    }
}

/// A TOML file of the same keys.
fn read_config(file: &Path) -> Result<Vec<Pair>, UsageError> {
    let failed = |why: String| UsageError(format!("configuration {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| failed(error.to_string()))?;
    let mut pairs = Vec::new();
    for (key, value) in table {
        // What may be given several times is a list there.
        let values = match value {
            toml::Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => value.to_string(),
                other => return Err(failed(format!("{key} is a {}, expected a plain value", other.type_str()))),
            };
            pairs.push((key.replace('-', "_"), Some(OsString::from(value))));
        }
    }
    Ok(pairs)
}

fn help() -> String {
    let mut text = String::from(
        "Mounts a folder and keeps a replica of it in step on a storage daemon.\n\n\
         usage: tandem-mountd HOST[:PORT]:/VOLUME DIR [-f] [-o OPTION,...] [--OPTION[=VALUE]]\n\
         \x20      mount -t tandem HOST[:PORT]:/VOLUME DIR [-o OPTION,...]\n\n\
         -f, --foreground       stay in the foreground and log to standard error\n\
         \noptions, for -o, as --flags, and as keys of the configuration file:\n",
    );
    for (name, value, what) in KEYS {
        let shown = value.map_or_else(|| (*name).to_owned(), |value| format!("{name}={value}"));
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {shown:<22} {what}");
    }
    text.push_str("  ro, suid, dev, noexec  as mount(8) has them; nosuid and nodev are the default\n");
    text
}

#[cfg(test)]
mod tests;
