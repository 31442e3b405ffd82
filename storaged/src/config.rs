//! Flags and the configuration file: one set of names for both. Flags win over the file, the file over defaults.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::Parser;
use serde::Deserialize;
use tandem_runtime::dirs;

/// The storage daemon of TandemFS: keeps a replica of folders that are mounted elsewhere.
#[derive(Debug, Default, Parser)]
#[command(name = "tandem-storaged", version, about, max_term_width = 100)]
pub struct Flags {
    /// Storage directory: one subdirectory for each volume, its plain files in VOLUME/tree. Made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one and prints it [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Configuration file (TOML); each flag is a key in it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory for the local secret [default: $TANDEM_RUNTIME_DIR, /run/tandem or $XDG_RUNTIME_DIR/tandem]
    #[arg(long, value_name = "DIR")]
    pub runtime: Option<PathBuf>,
    /// What is logged: error, warn, info, debug or trace, or a filter such as tandem_storaged=debug,info
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log one JSON object a line
    #[arg(long)]
    pub log_json: bool,
}

/// What the file may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    data: Option<PathBuf>,
    listen: Option<String>,
    runtime: Option<PathBuf>,
    log_level: Option<String>,
    log_json: Option<bool>,
}

/// The keys of the file.
const KEYS: [&str; 5] = ["data", "listen", "runtime", "log-level", "log-json"];

/// Checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Storage directory.
    pub data: PathBuf,
    /// A loopback address.
    pub listen: SocketAddr,
    /// For the secret.
    pub runtime: PathBuf,
    /// Filter of the log.
    pub log_level: Option<String>,
    /// JSON lines.
    pub log_json: bool,
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
        Ok(Config {
            data,
            listen: listen_address(listen.as_deref().unwrap_or("127.0.0.1:7440"))?,
            runtime: flags.runtime.or(file.runtime).unwrap_or_else(dirs::runtime_dir),
            log_level: flags.log_level.or(file.log_level),
            log_json: flags.log_json || file.log_json.unwrap_or(false),
        })
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

/// An address to listen on: loopback only, because there is no encryption yet.
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
    if !address.ip().is_loopback() {
        return wrong(format!(
            "--listen {text}: not a loopback address, and without encryption only those are allowed. Listen on \
             127.0.0.1:{port} and reach it from another machine through a tunnel: ssh -N -L {port}:127.0.0.1:{port} HOST",
            port = if address.port() == 0 { tandem_runtime::connect::DEFAULT_PORT } else { address.port() }
        ));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{Config, Flags, listen_address, parse};

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
    fn only_loopback_is_listened_on_and_the_way_around_is_said() {
        for good in ["127.0.0.1:0", "[::1]:7440", "localhost:7440", "127.0.0.1", "::1"] {
            assert!(listen_address(good).is_ok(), "{good}");
        }
        assert!(listen_address("0.0.0.0:7440").expect_err("open").to_string().contains("ssh -N -L 7440"));
        assert!(listen_address("nowhere").expect_err("no address").to_string().contains("ADDR:PORT"));
    }

    #[test]
    fn a_missing_storage_directory_is_asked_for() {
        assert!(Config::load(Flags::default()).expect_err("missing").to_string().contains("--data DIR"));
    }
}
