//! What `tandem-storaged` does with a storage directory that nobody serves: `inspect`, `check`, `reindex`.
//!
//! ```text
//!  inspect ── looks at state, log and catalog; changes nothing
//!  check ──── the same, then what a start would do (redo of the log), then catalog against tree and index
//!     └─ --repair: what is damaged goes to VOLUME/damaged/N, the volume opens again
//!  reindex ── builds the content index anew
//! ```
//! The storage directory is locked meanwhile, so no daemon can use it. Exit codes: 0 sound or done, 1 it could not be done, 2 damage
//! was found and is still there, 3 damage was found and repaired, 64 wrong usage.

mod check;
mod inspect;
mod log_check;
mod rebuild;
mod reindex;
mod repair;
mod report;
mod tree_check;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use tandem_proto::volume::VolumeName;

use crate::{
    apply::ApplyError,
    catalog::CatalogError,
    index::IndexError,
    log::LogError,
    storage::{Storage, StorageError},
    volume::{core::OpenError, state::STATE_FILE},
};

pub use check::check_volume;
pub use report::{Finding, Part, Report, Severity};

/// Damage was found and is still there.
pub const EXIT_DAMAGED: u8 = 2;
/// Damage was found and repaired.
pub const EXIT_REPAIRED: u8 = 3;

/// The offline commands.
#[derive(Debug, Subcommand)]
pub enum Offline {
    /// Show what a volume's files say: state, positions, log, catalog. Changes nothing
    #[command(after_help = "Examples:
  tandem-storaged inspect --data /srv/tandem             all volumes, a few lines each
  tandem-storaged inspect work --records                 and what is in the log of one")]
    Inspect(InspectArgs),
    /// Verify log, catalog, tree and index of volumes, after bringing them to the end of their log
    #[command(after_help = "Examples:
  tandem-storaged check --data /srv/tandem               all volumes; exit code 0 sound, 2 damaged
  tandem-storaged check work --read-files                also what each file holds
  tandem-storaged check work --repair                    makes it usable again; what was damaged is kept")]
    Check(CheckArgs),
    /// Build the content index of volumes anew
    #[command(after_help = "Examples:
  tandem-storaged reindex work --data /srv/tandem        reads every file of it")]
    Reindex(VolumesArgs),
}

/// Which volumes.
#[derive(Clone, Debug, Default, Args)]
pub struct VolumesArgs {
    /// Volumes; all, if none is named
    pub volumes: Vec<String>,
}

/// Of `inspect`.
#[derive(Clone, Debug, Default, Args)]
pub struct InspectArgs {
    /// Volumes; all, if none is named
    pub volumes: Vec<String>,
    /// List the records of the log
    #[arg(long)]
    pub records: bool,
    /// One JSON object a volume
    #[arg(long)]
    pub json: bool,
}

/// Of `check`.
#[derive(Clone, Debug, Default, Args)]
pub struct CheckArgs {
    /// Volumes; all, if none is named
    pub volumes: Vec<String>,
    /// Make damaged volumes usable again. What was damaged is kept in VOLUME/damaged
    #[arg(long)]
    pub repair: bool,
    /// Read all files, and compare them with the digests of the index
    #[arg(long)]
    pub read_files: bool,
    /// Take the tree of a repaired volume as it is for the volume's state, if the folder that could be compared with it is lost
    #[arg(long)]
    pub accept: bool,
    /// One JSON object a volume
    #[arg(long)]
    pub json: bool,
}

/// An offline command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The storage directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// There is no such volume.
    #[error("there is no volume {volume} in {data}")]
    NoVolume {
        /// As it was named.
        volume: String,
        /// The storage directory.
        data: String,
    },
    /// A file or a directory.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The volume cannot be opened.
    #[error("the volume cannot be opened: {0}; tandem-storaged check says more")]
    Open(#[from] OpenError),
    /// Its log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its tree or catalog.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Its index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

impl OfflineError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OfflineError {
        let path = path.display().to_string();
        move |source| OfflineError::Io { what, path, source }
    }
}

/// Carries out an offline command on the storage directory `data`; the exit code.
pub fn run(data: &Path, command: &Offline) -> Result<u8, OfflineError> {
    let storage = Storage::open_existing(data)?;
    let volumes = match command {
        Offline::Inspect(args) => &args.volumes,
        Offline::Check(args) => &args.volumes,
        Offline::Reindex(args) => &args.volumes,
    };
    let (mut worst, mut failed) = (0, None);
    for (name, directory) in wanted(storage.path(), volumes)? {
        let code = match command {
            Offline::Inspect(args) => inspect::inspect(&name, &directory, args),
            Offline::Check(args) => check::check(&name, &directory, args),
            Offline::Reindex(_) => reindex::reindex(&name, &directory),
        };
        match code {
            // Repaired is better news than damaged, whatever the numbers say.
            Ok(code) if (worst, code) != (EXIT_DAMAGED, EXIT_REPAIRED) => {
                worst = if code == EXIT_DAMAGED { code } else { worst.max(code) };
            }
            Ok(_) => {}
            // The other volumes are not worse for it.
            Err(error) => {
                eprintln!("tandem-storaged: volume {name}: {error}");
                failed = Some(name);
            }
        }
    }
    match failed {
        Some(name) => Err(OfflineError::Other(format!("not everything could be done; volume {name} failed"))),
        None => Ok(worst),
    }
}

/// The volumes that are meant: those named, or every directory that looks like one.
fn wanted(data: &Path, names: &[String]) -> Result<Vec<(String, PathBuf)>, OfflineError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data).map_err(OfflineError::io("cannot list", data))? {
        let name = entry.map_err(OfflineError::io("cannot list", data))?.file_name();
        let Some(name) = name.to_str().filter(|name| name.parse::<VolumeName>().is_ok()) else { continue };
        let directory = data.join(name);
        if directory.join(STATE_FILE).exists() || directory.join("tree").is_dir() {
            found.push((name.to_owned(), directory));
        }
    }
    found.sort();
    if names.is_empty() {
        return Ok(found);
    }
    let data = data.display().to_string();
    let named = |name: &String| {
        let known = found.iter().find(|(known, _)| known == name).cloned();
        known.ok_or_else(|| OfflineError::NoVolume { volume: name.clone(), data: data.clone() })
    };
    names.iter().map(named).collect()
}

/// Writes to standard output. Who closed it does not want to hear.
fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}
