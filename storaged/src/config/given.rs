//! What was written where: command line, environment, file. The keys are the flags themselves, so none can be forgotten.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, parser::ValueSource};
use tandem_runtime::settings::{self, Given, Origin, Setting, plain};

use super::{Config, ConfigError, Flags, wrong};
use crate::offline::Offline;

/// Beginning of the names of environment variables.
pub const PREFIX: &str = "TANDEM_STORAGED_";
/// Names the configuration file. No key of a file.
const CONFIG: &str = "config";
/// Flags that say what to do, and are no settings.
const NO_KEYS: &[&str] = &[CONFIG, "help", "version", "check-config"];

/// All keys that a file may hold, in the order of the help.
pub fn keys() -> Vec<String> {
    let command = Flags::command();
    let long = command.get_arguments().filter_map(|argument| argument.get_long());
    long.filter(|name| !NO_KEYS.contains(name)).map(str::to_owned).collect()
}

/// Whether the value of a key is a path.
fn is_path(key: &str) -> bool {
    let command = Flags::command();
    let argument = command.get_arguments().find(|argument| argument.get_long().is_some_and(|name| plain(name) == key));
    let names = argument.and_then(|argument| argument.get_value_names()).unwrap_or_default();
    names.iter().any(|name| matches!(name.as_str(), "DIR" | "FILE"))
}

/// A command line, and the environment that it was written in.
#[derive(Debug)]
pub struct Arguments {
    /// What to do offline.
    pub command: Option<Offline>,
    /// `--check-config`.
    pub check: bool,
    file: Option<PathBuf>,
    given: Vec<Given>,
}

/// Why there are none: what clap prints, or one of ours.
#[derive(Debug, thiserror::Error)]
pub enum BadArguments {
    /// To be printed as it is; help and version are errors to clap.
    #[error(transparent)]
    Clap(#[from] clap::Error),
    /// A key or value.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Arguments {
    /// Of this process.
    pub fn of_process() -> Result<Arguments, BadArguments> {
        Arguments::read(std::env::args_os(), std::env::vars_os())
    }

    /// Takes a command line apart, with the program's own name.
    pub fn read(
        words: impl Iterator<Item = OsString>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Arguments, BadArguments> {
        let matches = Flags::command().try_get_matches_from(words)?;
        let flags = Flags::from_arg_matches(&matches)?;
        let keys = keys();
        let known: Vec<&str> = keys.iter().map(String::as_str).chain([CONFIG]).collect();
        let mut given = settings::from_environment(PREFIX, &known, &[], environment).map_err(ConfigError)?;
        for option in &flags.option {
            given.push(option_of(option, &known)?);
        }
        given.extend(keys.iter().filter_map(|key| flag_of(&matches, key)));
        let (configs, mut given) = given.into_iter().partition::<Vec<_>, _>(|one| one.key == CONFIG);
        let named = configs.into_iter().next_back().and_then(|one| one.value).map(PathBuf::from);
        let file = flags.config.or(named).map(std::path::absolute).transpose();
        let file = file.map_err(|error| ConfigError(format!("--config: {error}")))?;
        given.iter_mut().for_each(|one| one.key = plain(&one.key));
        Ok(Arguments { command: flags.command, check: flags.check_config, file, given })
    }

    fn all(&self) -> Result<Vec<Given>, ConfigError> {
        let keys = keys();
        let known: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut all = match &self.file {
            Some(file) => settings::from_file(file, &known, is_path).map_err(ConfigError)?,
            None => Vec::new(),
        };
        all.extend(self.given.iter().cloned());
        Ok(all)
    }

    /// Reads the file, if there is one, and checks everything together.
    pub fn config(&self) -> Result<Config, ConfigError> {
        self.settings().map(|(config, _)| config)
    }

    /// The same, with what is in effect then and where it was written.
    pub fn settings(&self) -> Result<(Config, Vec<Setting>), ConfigError> {
        let all = self.all()?;
        let config = Config::of(Values::of(&all)?)?;
        let origins = settings::origins(&all);
        let shown = keys().into_iter().map(|key| Setting {
            value: config.show(&key),
            origin: origins.get(&plain(&key)).map_or("default", String::as_str).to_owned(),
            key,
            next: None,
        });
        let shown = shown.collect();
        Ok((config, shown))
    }

    /// The configuration file.
    pub fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }
}

/// `KEY=VALUE`, or `KEY` alone for a flag.
fn option_of(option: &str, known: &[&str]) -> Result<Given, ConfigError> {
    let (key, value) = match option.split_once('=') {
        Some((key, value)) => (key, value),
        None => (option, "true"),
    };
    if !known.iter().any(|name| plain(name) == plain(key)) {
        return wrong(format!("unknown option {key}: {}", settings::hint(key, known)));
    }
    Ok(Given { key: plain(key), value: Some(value.into()), origin: Origin::CommandLine })
}

/// What a flag was given as, if it was.
fn flag_of(matches: &ArgMatches, key: &str) -> Option<Given> {
    let id = plain(key);
    if matches.value_source(&id) != Some(ValueSource::CommandLine) {
        return None;
    }
    // A flag without a value has `true`.
    let value = matches.get_raw(&id).and_then(|mut values| values.next_back()).map(OsString::from);
    Some(Given { key: id, value, origin: Origin::CommandLine })
}

/// The last value of each key.
pub struct Values(BTreeMap<String, String>);

impl Values {
    fn of(all: &[Given]) -> Result<Values, ConfigError> {
        let mut values = BTreeMap::new();
        for one in all {
            let value = one.value.clone().unwrap_or_else(|| "true".into()).into_string();
            let value =
                value.map_err(|_| ConfigError(format!("{}: its value is not UTF-8 ({})", one.key, one.origin)))?;
            values.insert(one.key.clone(), value);
        }
        Ok(Values(values))
    }

    /// As it is written.
    pub fn text(&mut self, key: &str) -> Option<String> {
        self.0.remove(&plain(key))
    }

    /// A path.
    pub fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A number.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => wrong(format!("--{key} {text}: write a number")),
        }
    }

    /// A flag; false if it is not there.
    pub fn flag(&mut self, key: &str) -> Result<bool, ConfigError> {
        match self.text(key).as_deref() {
            None | Some("false" | "no") => Ok(false),
            Some("true" | "yes") => Ok(true),
            Some(text) => wrong(format!("{key} = {text}: write true or false")),
        }
    }
}
