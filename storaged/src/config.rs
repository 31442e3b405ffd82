//! What the daemon was told to be. The flags are the table of keys: each is a key of the configuration file, an environment variable
//! (`TANDEM_STORAGED_KEY`) and may stand behind `-o` as `KEY=VALUE`. The command line wins over the environment, that over the file, that over defaults.

mod given;
mod hook;
mod show;
mod units;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use tandem_runtime::{connect::KEEPALIVE, dirs};
use tandem_web::Listen;

use self::given::Values;
pub use self::given::{Arguments, BadArguments};
use crate::{
    hooks::HookRule,
    offline::Offline,
    sandbox::{Account, Sandbox},
    volume::settings::{Settings, Special},
};

/// The storage daemon of TandemFS: keeps a replica of folders that are mounted elsewhere.
#[derive(Debug, Parser)]
#[command(name = "tandem-storaged", version, about, max_term_width = 100)]
#[command(
    after_help = "Without a command it serves. The commands work on a storage directory that no storaged uses.\n\n\
    Each option is also a key of the configuration file, an environment variable (TANDEM_STORAGED_LISTEN), and may be written \
    -o KEY=VALUE. SIGHUP reads the file again.\n\n\
    Examples:\n  \
    tandem-storaged --data /srv/tandem                         for mounts of this host\n  \
    tandem-storaged --data /srv/tandem --listen 0.0.0.0:7440   for others, too: let them in by `tandem invite`\n  \
    tandem-storaged --check-config                             what holds, and where it was written"
)]
#[allow(dead_code, reason = "most are read by their names, see `given`")]
struct Flags {
    /// What to do offline
    #[command(subcommand)]
    command: Option<Offline>,
    /// Storage directory: one subdirectory for each volume, its plain files in VOLUME/tree. Made if it does not exist
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one and prints it [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Directory for the local secret [default: $TANDEM_RUNTIME_DIR, /run/tandem or $XDG_RUNTIME_DIR/tandem]
    #[arg(long, value_name = "DIR")]
    runtime: Option<PathBuf>,
    /// A connection that swallows everything is given up after so many seconds; 0: never [default: 2]
    #[arg(long, value_name = "SECONDS")]
    keepalive: Option<String>,
    /// Allow plaintext on an address that is not loopback: whoever is on the way reads, and changes, everything
    #[arg(long)]
    insecure: bool,
    /// Where the page and the metrics are: ADDR:PORT or off. Off loopback they ask for a token, which is in the runtime directory
    /// [default: 127.0.0.1, the port after --listen]
    #[arg(long, value_name = "ADDR:PORT")]
    web: Option<String>,
    /// What is logged: error, warn, info, debug or trace, or a filter such as tandem_storaged=debug,info
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
    /// Log one JSON object a line
    #[arg(long, global = true)]
    log_json: bool,
    /// Deleted and replaced files, and what resyncs replaced, are kept in VOLUME/history up to so many bytes and so long; the oldest
    /// goes first. SIZE, AGE, both with a comma between, `all`, or 0B: no deleted files [default: 10GiB,30d]
    #[arg(long, visible_alias = "keep", value_name = "SIZE,AGE")]
    history_keep: Option<String>,
    /// Command that is run by /bin/sh when a file of a replica was changed and is quiet, with its content on standard input, and when a
    /// directory is; docs/OPERATIONS.md has an example
    #[arg(long, value_name = "COMMAND")]
    hook: Option<String>,
    /// Working directory of hooks, where they may write
    #[arg(long, value_name = "DIR")]
    hook_dir: Option<PathBuf>,
    /// User who runs hooks, never root [default: nobody, if the daemon runs as root; else its own user]
    #[arg(long, value_name = "USER")]
    hook_user: Option<String>,
    /// For how long nothing happens to a file that is quiet [default: 1]
    #[arg(long, value_name = "SECONDS")]
    hook_delay: Option<String>,
    /// A hook that takes longer is ended [default: 60]
    #[arg(long, value_name = "SECONDS")]
    hook_timeout: Option<String>,
    /// Reading for the content index, when it is built anew, takes at most so many bytes a second [default: 128MiB]
    #[arg(long, value_name = "SIZE")]
    index_rate: Option<String>,
    /// Bound of each volume's log: what may be durable and not yet applied, or staged by a resync. At it the writer is held back
    /// [default: 8GiB]
    #[arg(long, value_name = "SIZE")]
    log_max: Option<String>,
    /// Bytes that a volume which is made from now on may hold; `tandem volume set` changes that of one volume [default: no bound]
    #[arg(long, value_name = "SIZE")]
    quota: Option<String>,
    /// Devices and set-user-id bits in the trees of volumes that are made from now on: keep, or deny, where they are in the catalog
    /// only and copies are complete all the same [default: keep]
    #[arg(long, value_name = "keep|deny")]
    special: Option<String>,
    /// As root: the user that the daemon runs as once it has its port and directories. Owners, modes and devices that this user may not
    /// set are kept in the catalog
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Whether the daemon shuts itself out of everything but its directories (Landlock): on, off, or auto, which goes on without
    /// where the kernel cannot [default: auto]
    #[arg(long, value_name = "on|auto|off")]
    sandbox: Option<String>,
    /// The data of a deleted volume is kept so long, or `all` [default: 30d]
    #[arg(long, value_name = "AGE")]
    deleted_keep: Option<String>,
    /// A certificate of your own and its chain (PEM), shown to clients that know the daemon by its host name; those that joined are shown
    /// that of the daemon's own authority
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM), which nobody but the daemon may read
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Authorities (PEM) whose certificates are clients by the name in them; `tandem grant` gives them roles
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Revocation lists (PEM) of those authorities: certificates that they name are nobody's any more. An authority without a list revokes
    /// nothing
    #[arg(long, value_name = "FILE")]
    tls_client_crl: Option<PathBuf>,
    /// One option, as in the configuration file
    #[arg(short = 'o', value_name = "KEY=VALUE", global = true)]
    option: Vec<String>,
    /// Print what holds and where it was written, and end
    #[arg(long)]
    check_config: bool,
}

/// Smallest bound of a log: four segments, and as many again for their reserve.
const LOG_MAX_MIN: u64 = 128 << 20;

/// How much of what resyncs replaced is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepRule {
    /// At most so much.
    pub bytes: Option<u64>,
    /// At most so long.
    pub age: Option<Duration>,
}

/// Bounds of each volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `--history-keep`.
    pub history_keep: KeepRule,
    /// `--index-rate`.
    pub index_rate_bytes: u64,
    /// `--log-max`.
    pub log_max_bytes: u64,
    /// `--hook`.
    pub hook: Option<HookRule>,
    /// `--quota` and `--special`: of volumes that are made.
    pub settings: Settings,
}

impl Default for Limits {
    fn default() -> Self {
        let history_keep = KeepRule { bytes: Some(10 << 30), age: Some(Duration::from_secs(30 * 24 * 3600)) };
        Limits {
            history_keep,
            index_rate_bytes: 128 << 20,
            log_max_bytes: 8 << 30,
            hook: None,
            settings: Settings::default(),
        }
    }
}

impl Limits {
    fn load(
        history_keep: Option<String>,
        index_rate: Option<String>,
        log_max: Option<String>,
    ) -> Result<Limits, ConfigError> {
        let mut limits = Limits::default();
        if let Some(text) = history_keep {
            limits.history_keep = keep_rule(&text)?;
        }
        if let Some(text) = index_rate {
            limits.index_rate_bytes = units::bytes(&text)
                .filter(|rate| *rate > 0)
                .ok_or_else(|| ConfigError(format!("--index-rate {text}: not a size; write it as 128MiB")))?;
        }
        if let Some(text) = log_max {
            limits.log_max_bytes = units::bytes(&text)
                .filter(|max| *max >= LOG_MAX_MIN)
                .ok_or_else(|| ConfigError(format!("--log-max {text}: write a size of at least 128MiB, as 8GiB")))?;
        }
        Ok(limits)
    }
}

/// `10GiB,30d`, `10GiB`, `30d` or `all`.
fn keep_rule(text: &str) -> Result<KeepRule, ConfigError> {
    let mut rule = KeepRule { bytes: None, age: None };
    if text == "all" {
        return Ok(rule);
    }
    for part in text.split(',').map(str::trim) {
        match (units::bytes(part), units::age(part)) {
            // `1m` would be a size and an age: sizes in a rule have their whole unit.
            (_, Some(age)) if rule.age.is_none() => rule.age = Some(age),
            (Some(bytes), None) if rule.bytes.is_none() => rule.bytes = Some(bytes),
            _ => return wrong(format!("--history-keep {text}: write a size, an age or both, as 10GiB,30d, or all")),
        }
    }
    Ok(rule)
}

/// Checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Storage directory.
    pub data: PathBuf,
    /// Where it listens. Off loopback TLS is spoken.
    pub listen: SocketAddr,
    /// Whom the daemon becomes.
    pub account: Option<Account>,
    /// Whether it shuts itself out of other directories.
    pub sandbox: Sandbox,
    /// How long the data of deleted volumes is kept; `None`: for ever.
    pub deleted_keep: Option<Duration>,
    /// Certificates of somebody else's authority.
    pub own_tls: OwnTls,
    /// Plaintext is accepted off loopback too.
    pub insecure: bool,
    /// For the secret.
    pub runtime: PathBuf,
    /// How soon a connection that swallows everything is given up; `None`: never.
    pub keepalive: Option<Duration>,
    /// Where the page is.
    pub web: Listen,
    /// Filter of the log.
    pub log_level: Option<String>,
    /// JSON lines.
    pub log_json: bool,
    /// Bounds of each volume.
    pub limits: Limits,
}

/// The configuration cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

fn wrong<T>(message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(message.into()))
}

/// Certificates that the daemon did not make itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnTls {
    /// `--tls-cert`, `--tls-key`.
    pub shown: Option<(PathBuf, PathBuf)>,
    /// `--tls-client-ca`.
    pub client_ca: Option<PathBuf>,
    /// `--tls-client-crl`.
    pub client_crl: Option<PathBuf>,
}

impl OwnTls {
    /// The files that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let shown = self.shown.iter().flat_map(|(cert, key)| [cert.as_path(), key.as_path()]);
        shown.chain(self.client_ca.as_deref()).chain(self.client_crl.as_deref())
    }
}

impl Config {
    /// Checks what was given.
    fn of(mut values: Values) -> Result<Config, ConfigError> {
        let Some(data) = values.path("data") else {
            return wrong("no storage directory: give --data DIR, or the key data in the file that --config names");
        };
        let hook = hook::Given {
            command: values.text("hook"),
            directory: values.path("hook-dir"),
            user: values.text("hook-user"),
            delay: values.number("hook-delay")?,
            timeout: values.number("hook-timeout")?,
        };
        let hook = hook.rule().map_err(ConfigError)?;
        let account = values.text("user").map(|name| hook::account("--user", name)).transpose().map_err(ConfigError)?;
        let sandbox = values.text("sandbox").map_or(Ok(Sandbox::default()), |text| {
            Sandbox::parse(&text).ok_or_else(|| ConfigError(format!("--sandbox {text}: write on, auto or off")))
        })?;
        let shown = match (values.path("tls-cert"), values.path("tls-key")) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert, key)),
            _ => return wrong("--tls-cert and --tls-key belong together: give both"),
        };
        let (client_ca, client_crl) = (values.path("tls-client-ca"), values.path("tls-client-crl"));
        if client_crl.is_some() && client_ca.is_none() {
            return wrong("--tls-client-crl revokes certificates of --tls-client-ca: give both");
        }
        Ok(Config {
            data,
            insecure: values.flag("insecure")?,
            listen: listen_address(values.text("listen").as_deref().unwrap_or("127.0.0.1:7440"))?,
            runtime: values.path("runtime").unwrap_or_else(|| match account {
                // That of root's mounts is nobody else's.
                Some(_) => dirs::storaged_runtime_dir(),
                None => dirs::runtime_dir(),
            }),
            account,
            sandbox,
            own_tls: OwnTls { shown, client_ca, client_crl },
            deleted_keep: deleted_keep(values.text("deleted-keep"))?,
            keepalive: keepalive(values.number("keepalive")?)?,
            web: values.text("web").map_or(Ok(Listen::default()), |web| web.parse()).map_err(ConfigError)?,
            log_level: values.text("log-level"),
            log_json: values.flag("log-json")?,
            limits: Limits {
                hook,
                settings: settings(values.text("quota"), values.text("special"))?,
                ..Limits::load(values.text("history-keep"), values.text("index-rate"), values.text("log-max"))?
            },
        })
    }
}

fn settings(quota: Option<String>, special: Option<String>) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    if let Some(text) = quota {
        match units::bytes(&text) {
            Some(bytes) if bytes > 0 => settings.quota = Some(bytes),
            _ => return wrong(format!("--quota {text}: not a size; write it as 100GiB")),
        }
    }
    if let Some(text) = special {
        settings.special =
            Special::parse(&text).ok_or_else(|| ConfigError(format!("--special {text}: write keep or deny")))?;
    }
    Ok(settings)
}

/// How long deleted volumes are kept if nobody says otherwise.
const DELETED_KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

fn deleted_keep(age: Option<String>) -> Result<Option<Duration>, ConfigError> {
    match age.as_deref() {
        None => Ok(Some(DELETED_KEEP)),
        Some("all") => Ok(None),
        Some(text) => match units::age(text) {
            Some(age) => Ok(Some(age)),
            None => wrong(format!("--deleted-keep {text}: write an age, as 30d, or all")),
        },
    }
}

fn keepalive(seconds: Option<f64>) -> Result<Option<Duration>, ConfigError> {
    match seconds {
        None => Ok(Some(KEEPALIVE)),
        Some(0.0) => Ok(None),
        Some(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        Some(seconds) => wrong(format!("--keepalive {seconds}: write seconds, for example 2; 0 never gives up")),
    }
}

/// An address to listen on.
fn listen_address(text: &str) -> Result<SocketAddr, ConfigError> {
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let address = match (local, text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
        (Some(port), ..) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        (None, Ok(address), _) => address,
        (None, Err(_), Ok(ip)) => SocketAddr::new(ip, tandem_runtime::connect::DEFAULT_PORT),
        (None, Err(_), Err(_)) => {
            return wrong(format!(
                "--listen {text}: not an address; write ADDR:PORT, for example 127.0.0.1:7440 or [::1]:7440"
            ));
        }
    };
    Ok(address)
}

#[cfg(test)]
mod tests;
