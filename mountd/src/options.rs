//! What a mount was asked to be: command line, `-o` list, environment and configuration file, which share one table of keys ([`keys`]).
//!
//! `tandem-mountd SOURCE DIR [-f] [-o OPTIONS] [--KEY[=VALUE]]`, and the same as `mount.tandem SOURCE DIR [-sfnv] [-o OPTIONS]`,
//! as mount(8) calls it. In names `-` and `_` are equal. What is unknown is an error that names the nearest known one. Later wins: the file,
//! the environment, the command line in its order; a key that may have several values collects them.

pub mod keys;
mod line;
mod values;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use tandem_proto::VolumeName;
use tandem_runtime::{
    connect::{KEEPALIVE, ServerAddress},
    dirs,
    settings::{self, Given, Setting},
    telemetry::LogOptions,
    tls::OwnFiles,
};
use tandem_web::Listen;

use self::keys::{CONFIG, DEFAULT_FILE, KEYS, LISTS, PREFIX};
use crate::{
    commit::{dirty::DIRTY_LIMIT_BYTES, marks::HOT_KEPT, shadow, throttle::Congestion},
    exclude::Excludes,
    fuse::default_busy_poll,
    link::{core::BACKOFF_MAX, start::Init},
    mount::read_ahead,
    replication::DEFAULT_WINDOW_BYTES,
    verify,
    vfs::{CacheMode, FsyncRules, ReadRules},
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
    /// Where they come from.
    pub layers: Layers,
}

/// Where settings come from, so that the file can be read again.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Read before the rest.
    files: Vec<PathBuf>,
    /// Of the environment and the command line.
    given: Vec<Given>,
}

impl Layers {
    /// Reads the files, and puts everything together. Also what is in effect then, and where it was written.
    pub fn settings(&self) -> Result<(Settings, Vec<Setting>), UsageError> {
        let mut all = Vec::new();
        for file in &self.files {
            all.extend(settings::from_file(file, &keys::names(), keys::is_path).map_err(UsageError)?);
        }
        all.extend(self.given.iter().cloned());
        let mut settings = Settings::default();
        for one in &all {
            settings
                .set(&one.key, one.value.clone())
                .map_err(|UsageError(why)| UsageError(format!("{why} ({})", one.origin)))?;
        }
        settings.own.complete().map_err(UsageError)?;
        if settings.passthrough.pass_any() && settings.cache_mode == CacheMode::Writeback {
            return usage("passthrough and cache=writeback exclude each other in the kernel: leave one of them out");
        }
        let origins = settings::origins(&all);
        let shown = KEYS.iter().map(|(name, ..)| Setting {
            key: (*name).to_owned(),
            value: settings.show(name),
            origin: origins.get(*name).map_or("default", String::as_str).to_owned(),
            next: None,
        });
        Ok((settings.clone(), shown.collect()))
    }
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
    /// `passthrough=PATH`, any number.
    pub passthrough: ReadRules,
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
    /// `resync=full`.
    pub resync_full: bool,
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
    /// `ca=FILE`, `cert=FILE`, `key=FILE`: certificates of one's own.
    pub own: OwnFiles,
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
            passthrough: ReadRules::default(),
            fsync_timeout: None,
            cache_mode: CacheMode::default(),
            flush_interval: FLUSH_INTERVAL,
            dirty_percent: DIRTY_PERCENT,
            congestion: Congestion::default(),
            exclude: Excludes::default(),
            verify: verify::Rule::default(),
            window_bytes: DEFAULT_WINDOW_BYTES,
            bandwidth_limit: None,
            resync_full: false,
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
            own: OwnFiles::default(),
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

/// Understands a command line, without the program's own name. `as_helper`: called by mount(8) as `mount.tandem`.
pub fn parse(arguments: &[OsString], as_helper: bool) -> Result<Request, UsageError> {
    parse_in(arguments, as_helper, std::env::vars_os())
}

/// The same in this environment.
fn parse_in(
    arguments: &[OsString],
    as_helper: bool,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Request, UsageError> {
    let line = line::read(arguments, as_helper)?;
    if let Some(text) = line.print {
        return Ok(Request::Print(text));
    }
    let known: Vec<&str> = keys::names().into_iter().chain([CONFIG]).collect();
    let mut given = settings::from_environment(PREFIX, &known, LISTS, environment).map_err(UsageError)?;
    given.extend(line.given);
    for one in given.iter_mut().filter(|one| keys::is_path(&one.key)) {
        // The daemon leaves its working directory, and reads its file again later.
        one.value = match one.value.take() {
            Some(path) => Some(values::absolute(&one.key, path)?.into_os_string()),
            None => None,
        };
    }
    let (configs, given) = given.into_iter().partition::<Vec<_>, _>(|one| one.key == CONFIG);
    // The last place that names files is the one that counts.
    let origin = configs.last().map(|last| last.origin.clone());
    let named = configs.into_iter().filter(|one| Some(&one.origin) == origin.as_ref());
    let mut files: Vec<PathBuf> = named.filter_map(|one| one.value).map(PathBuf::from).collect();
    if files.is_empty() && Path::new(DEFAULT_FILE).exists() {
        files.push(PathBuf::from(DEFAULT_FILE));
    }
    let layers = Layers { files, given };
    let (settings, shown) = layers.settings()?;
    if line.check {
        return Ok(Request::Print(settings::table(&shown)));
    }
    let (source, dir) = match <[OsString; 2]>::try_from(line.positional) {
        Ok([source, dir]) => (source, PathBuf::from(dir)),
        Err(other) => {
            return usage(format!("expected SOURCE and DIR, found {} argument(s); try --help", other.len()));
        }
    };
    let mut source: Source = match source.to_str() {
        Some(source) => source.parse().map_err(UsageError)?,
        None => return usage(format!("{source:?} is not a source: write HOST[:PORT]:/VOLUME")),
    };
    source.server.insecure = settings.insecure;
    source.server.identity = settings.identity.clone();
    source.server.own = settings.own.clone().given();
    if line.fake {
        return Ok(Request::Check);
    }
    Ok(Request::Mount(Box::new(Options { source, dir, settings, layers })))
}

#[cfg(test)]
mod tests;
