//! The debug log: readable on a terminal, JSON with a flag, level by flag and environment.

use std::{io, io::IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt};

/// How a daemon logs.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Filter as `tracing` knows it (`info`, `tandem_mountd=debug,info`); `None`: `$TANDEM_LOG`, else `info`.
    pub level: Option<String>,
    /// One JSON object a line.
    pub json: bool,
}

/// Starts logging to standard error. Fails with a message if the filter does not parse.
pub fn start(options: &LogOptions) -> Result<(), String> {
    let level = options.level.clone().or_else(|| std::env::var("TANDEM_LOG").ok()).unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(&level)
        .map_err(|error| format!("log level {level:?}: {error}; use error, warn, info, debug or trace"))?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = if options.json {
        builder.json().try_init()
    } else {
        builder.with_ansi(io::stderr().is_terminal()).with_target(false).try_init()
    };
    result.map_err(|error| error.to_string())
}
