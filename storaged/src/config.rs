//! Flags and the configuration file: one set of names for both. Flags win over the file, the file over defaults.

mod hook;
mod units;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Parser;
use serde::Deserialize;
use tandem_runtime::{connect::KEEPALIVE, dirs};
use tandem_web::Listen;

use crate::{
    hooks::HookRule,
    offline::Offline,
    sandbox::{Account, Sandbox},
    volume::settings::{Settings, Special},
};

/// The storage daemon of TandemFS: keeps a replica of folders that are mounted elsewhere.
#[derive(Debug, Default, Parser)]
#[command(name = "tandem-storaged", version, about, max_term_width = 100)]
#[command(after_help = "Without a command it serves. The commands work on a storage directory that no storaged uses.")]
pub struct Flags {
    /// What to do offline
    #[command(subcommand)]
    pub command: Option<Offline>,
    /// Storage directory: one subdirectory for each volume, its plain files in VOLUME/tree. Made if it does not exist
    #[arg(long, value_name = "DIR", global = true)]
    pub data: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one and prints it [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Configuration file (TOML); each flag is a key in it
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Directory for the local secret [default: $TANDEM_RUNTIME_DIR, /run/tandem or $XDG_RUNTIME_DIR/tandem]
    #[arg(long, value_name = "DIR")]
    pub runtime: Option<PathBuf>,
    /// A connection that swallows everything is given up after so many seconds; 0: never [default: 2]
    #[arg(long, value_name = "SECONDS")]
    pub keepalive: Option<f64>,
    /// Allow plaintext on an address that is not loopback: whoever is on the way reads, and changes, everything
    #[arg(long)]
    pub insecure: bool,
    /// Where the page and the metrics are: ADDR:PORT or off. Off loopback they ask for a token, which is in the runtime directory
    /// [default: 127.0.0.1, the port after --listen]
    #[arg(long, value_name = "ADDR:PORT")]
    pub web: Option<String>,
    /// What is logged: error, warn, info, debug or trace, or a filter such as tandem_storaged=debug,info
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
    /// Log one JSON object a line
    #[arg(long, global = true)]
    pub log_json: bool,
    /// Deleted and replaced files, and what resyncs replaced, are kept in VOLUME/history up to so many bytes and so long; the oldest
    /// goes first. SIZE, AGE, both with a comma between, `all`, or 0B: no deleted files [default: 10GiB,30d]
    #[arg(long, visible_alias = "keep", value_name = "SIZE,AGE")]
    pub history_keep: Option<String>,
    /// Command that is run by /bin/sh when a file of a replica was changed and is quiet, with its content on standard input, and when a
    /// directory is; docs/OPERATIONS.md has an example
    #[arg(long, value_name = "COMMAND")]
    pub hook: Option<String>,
    /// Working directory of hooks, where they may write
    #[arg(long, value_name = "DIR")]
    pub hook_dir: Option<PathBuf>,
    /// User who runs hooks, never root [default: nobody, if the daemon runs as root; else its own user]
    #[arg(long, value_name = "USER")]
    pub hook_user: Option<String>,
    /// For how long nothing happens to a file that is quiet [default: 1]
    #[arg(long, value_name = "SECONDS")]
    pub hook_delay: Option<f64>,
    /// A hook that takes longer is ended [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub hook_timeout: Option<f64>,
    /// Reading for the content index, when it is built anew, takes at most so many bytes a second [default: 128MiB]
    #[arg(long, value_name = "SIZE")]
    pub index_rate: Option<String>,
    /// Bound of each volume's log: what may be durable and not yet applied, or staged by a resync. At it the writer is held back
    /// [default: 8GiB]
    #[arg(long, value_name = "SIZE")]
    pub log_max: Option<String>,
    /// Bytes that a volume which is made from now on may hold; `tandem volume set` changes that of one volume [default: no bound]
    #[arg(long, value_name = "SIZE")]
    pub quota: Option<String>,
    /// Devices and set-user-id bits in the trees of volumes that are made from now on: keep, or deny, where they are in the catalog
    /// only and copies are complete all the same [default: keep]
    #[arg(long, value_name = "keep|deny")]
    pub special: Option<String>,
    /// As root: the user that the daemon runs as once it has its port and directories. Owners, modes and devices that this user may not
    /// set are kept in the catalog
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Whether the daemon shuts itself out of everything but its directories (Landlock): on, off, or auto, which goes on without
    /// where the kernel cannot [default: auto]
    #[arg(long, value_name = "on|auto|off")]
    pub sandbox: Option<String>,
    /// The data of a deleted volume is kept so long, or `all` [default: 30d]
    #[arg(long, value_name = "AGE")]
    pub deleted_keep: Option<String>,
}

/// What the file may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    data: Option<PathBuf>,
    listen: Option<String>,
    runtime: Option<PathBuf>,
    keepalive: Option<f64>,
    insecure: Option<bool>,
    web: Option<String>,
    log_level: Option<String>,
    log_json: Option<bool>,
    history_keep: Option<String>,
    index_rate: Option<String>,
    log_max: Option<String>,
    quota: Option<String>,
    special: Option<String>,
    user: Option<String>,
    sandbox: Option<String>,
    deleted_keep: Option<String>,
    hook: Option<String>,
    hook_dir: Option<PathBuf>,
    hook_user: Option<String>,
    hook_delay: Option<f64>,
    hook_timeout: Option<f64>,
}

/// The keys of the file.
const KEYS: &[&str] = &[
    "data",
    "listen",
    "runtime",
    "web",
    "log-level",
    "log-json",
    "history-keep",
    "index-rate",
    "hook",
    "hook-dir",
    "hook-user",
    "hook-delay",
    "hook-timeout",
    "log-max",
    "keepalive",
    "insecure",
    "deleted-keep",
    "quota",
    "special",
    "user",
    "sandbox",
];
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

impl Config {
    /// Merges flags with the file that they name, and checks the result.
    pub fn load(flags: Flags) -> Result<Config, ConfigError> {
        let file = match &flags.config {
            None => File::default(),
            Some(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|error| ConfigError(format!("--config {}: {}", path.display(), reason(&error))))?;
                parse(&text).map_err(|error| ConfigError(format!("--config {}: {error}", path.display())))?
            }
        };
        let Some(data) = flags.data.or(file.data) else {
            return wrong("no storage directory: give --data DIR, or the key data in the file that --config names");
        };
        let listen = flags.listen.or(file.listen);
        let hook = hook::Given {
            command: flags.hook.or(file.hook),
            directory: flags.hook_dir.or(file.hook_dir),
            user: flags.hook_user.or(file.hook_user),
            delay: flags.hook_delay.or(file.hook_delay),
            timeout: flags.hook_timeout.or(file.hook_timeout),
        };
        let hook = hook.rule().map_err(ConfigError)?;
        let account =
            flags.user.or(file.user).map(|name| hook::account("--user", name)).transpose().map_err(ConfigError)?;
        let sandbox = flags.sandbox.or(file.sandbox).map_or(Ok(Sandbox::default()), |text| {
            Sandbox::parse(&text).ok_or_else(|| ConfigError(format!("--sandbox {text}: write on, auto or off")))
        })?;
        let insecure = flags.insecure || file.insecure.unwrap_or(false);
        Ok(Config {
            data,
            insecure,
            listen: listen_address(listen.as_deref().unwrap_or("127.0.0.1:7440"))?,
            runtime: flags.runtime.or(file.runtime).unwrap_or_else(|| match account {
                // That of root's mounts is nobody else's.
                Some(_) => dirs::storaged_runtime_dir(),
                None => dirs::runtime_dir(),
            }),
            account,
            sandbox,
            deleted_keep: deleted_keep(flags.deleted_keep.or(file.deleted_keep))?,
            keepalive: keepalive(flags.keepalive.or(file.keepalive))?,
            web: flags.web.or(file.web).map_or(Ok(Listen::default()), |web| web.parse()).map_err(ConfigError)?,
            log_level: flags.log_level.or(file.log_level),
            log_json: flags.log_json || file.log_json.unwrap_or(false),
            limits: Limits {
                hook,
                settings: settings(flags.quota.or(file.quota), flags.special.or(file.special))?,
                ..Limits::load(
                    flags.history_keep.or(file.history_keep),
                    flags.index_rate.or(file.index_rate),
                    flags.log_max.or(file.log_max),
                )?
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

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    }
}

fn parse(text: &str) -> Result<File, String> {
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    // `_` and `-` are the same in names.
    let written: Vec<String> = table.keys().cloned().collect();
    for key in written {
        let name = key.replace('_', "-");
        if !KEYS.contains(&name.as_str()) {
            let like =
                KEYS.iter().min_by_key(|known| distance(&name, known)).filter(|known| distance(&name, known) <= 3);
            let hint = match like {
                Some(known) => format!("did you mean {known}?"),
                None => format!("the keys are {}", KEYS.join(", ")),
            };
            return Err(format!("unknown key {key}: {hint}"));
        }
        if let Some(value) = table.remove(&key)
            && table.insert(name.clone(), value).is_some()
        {
            return Err(format!("the key {name} is there twice"));
        }
    }
    table.try_into().map_err(|error: toml::de::Error| error.to_string())
}

/// Edit distance, for suggestions.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, r) in right.iter().enumerate() {
            let above = row[column + 1];
            row[column + 1] = (diagonal + usize::from(l != *r)).min(above + 1).min(row[column] + 1);
            diagonal = above;
        }
    }
    row[right.len()]
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
mod tests {
    use std::io::Write as _;

    use super::{Config, Flags, KeepRule, listen_address, parse};

    fn load(text: &str, flags: Flags) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.write_all(text.as_bytes()).expect("written");
        let flags = Flags { config: Some(file.path().to_owned()), ..flags };
        Config::load(flags).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text = "data = '/from/file'\nlisten = '127.0.0.1:1'\nlog_json = true\n";
        let flags = Flags { listen: Some("[::1]:2".into()), ..Default::default() };
        let config = load(text, flags).expect("good");
        assert_eq!(config.data.to_str(), Some("/from/file"));
        assert_eq!(config.listen.to_string(), "[::1]:2");
        assert!(config.log_json);
        let config = load("data = 'x'", Flags::default()).expect("good");
        assert_eq!(config.listen.to_string(), "127.0.0.1:7440");
    }

    #[test]
    fn an_unknown_key_is_named_with_the_one_that_was_meant() {
        assert!(parse("log-levl = 'info'").expect_err("unknown").contains("did you mean log-level?"));
        assert!(parse("colour = 'red'").expect_err("unknown").contains("the keys are data"));
        assert!(parse("log-json = 'yes'").is_err());
        assert!(parse("log-json = true\nlog_json = true").is_err());
    }

    #[test]
    fn what_is_kept_of_history_is_a_size_an_age_or_both() {
        let keep = |text: &str| {
            let flags = Flags { history_keep: Some(text.to_owned()), ..Default::default() };
            load("data = 'x'", flags).map(|config| config.limits.history_keep)
        };
        let day = std::time::Duration::from_secs(24 * 3600);
        assert_eq!(keep("5GiB,7d"), Ok(KeepRule { bytes: Some(5 << 30), age: Some(7 * day) }));
        assert_eq!(keep("1d"), Ok(KeepRule { bytes: None, age: Some(day) }));
        assert_eq!(keep("all"), Ok(KeepRule { bytes: None, age: None }));
        for wrong in ["", "5GiB,7GiB", "ever", "1d,2d"] {
            assert!(keep(wrong).expect_err("refused").contains("10GiB,30d"), "{wrong}");
        }
        let file = load("data = 'x'\nindex_rate = '1MiB'\nhistory-keep = '2d'", Flags::default()).expect("good");
        assert_eq!(file.limits.index_rate_bytes, 1 << 20);
        assert_eq!(file.limits.history_keep.age, Some(2 * day));
    }

    #[test]
    fn an_address_is_a_number_with_or_without_a_port() {
        for good in ["127.0.0.1:0", "[::1]:7440", "localhost:7440", "127.0.0.1", "::1", "0.0.0.0:7440"] {
            assert!(listen_address(good).is_ok(), "{good}");
        }
        assert!(listen_address("nowhere").expect_err("no address").to_string().contains("ADDR:PORT"));
    }

    #[test]
    fn a_missing_storage_directory_is_asked_for() {
        assert!(Config::load(Flags::default()).expect_err("missing").to_string().contains("--data DIR"));
    }
}
