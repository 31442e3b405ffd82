//! The debug log: readable on a terminal, JSON with a flag, level by flag and environment. The level can be changed later.

use std::{io, io::IsTerminal as _, sync::OnceLock};

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

/// Environment variable for the level of every program.
const LEVEL_ENV: &str = "TANDEM_LOG";

/// How a daemon logs.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Filter as `tracing` knows it (`info`, `tandem_mountd=debug,info`); `None`: `$TANDEM_LOG`, else `info`.
    pub level: Option<String>,
    /// One JSON object a line.
    pub json: bool,
}

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

impl LogOptions {
    /// The level in effect.
    pub fn effective_level(&self) -> String {
        self.level.clone().or_else(|| std::env::var(LEVEL_ENV).ok()).unwrap_or_else(|| "info".to_owned())
    }

    fn filter(&self) -> Result<EnvFilter, String> {
        let level = self.effective_level();
        EnvFilter::try_new(&level)
            .map_err(|error| format!("log level {level:?}: {error}; use error, warn, info, debug or trace"))
    }
}

/// Starts logging to standard error. Fails with a message if the filter does not parse.
pub fn start(options: &LogOptions) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(options.filter()?);
    let to_stderr = fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let result = if options.json {
        registry.with(to_stderr.json()).try_init()
    } else {
        registry.with(to_stderr.with_ansi(io::stderr().is_terminal()).with_target(false)).try_init()
    };
    let _ = FILTER.set(handle);
    result.map_err(|error| error.to_string())
}

/// Changes the level of what was started.
pub fn set_level(options: &LogOptions) -> Result<(), String> {
    let filter = options.filter()?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}
