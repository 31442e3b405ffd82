//! Databases on the mount, and on clones of their replica.
//!
//! A trial: while several clients commit, `tandem clone` takes the replica's state at a random moment; the database is started from the
//! copy and asked for its integrity; [`ledger`] says whether it may have what it has: no commit without all earlier ones, and with
//! `fsync=durable` every commit that was acknowledged before the clone was asked for. Nothing helps the database but its own crash
//! recovery. During a resync the copy is the state before it.

pub mod ledger;
pub mod postgres;
mod schema;
pub mod shell;
pub mod sqlite;
mod trial;

use std::{fmt, path::Path, str::FromStr};

use self::shell::Shell;
pub use self::trial::{Options, Report, run};

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// SQLite with a write-ahead log.
    SqliteWal,
    /// SQLite with a rollback journal.
    SqliteJournal,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Postgres, Kind::SqliteWal, Kind::SqliteJournal];

    fn name(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::SqliteWal => "sqlite-wal",
            Kind::SqliteJournal => "sqlite-journal",
        }
    }

    /// What is missing to run it here.
    pub fn missing(self) -> Option<&'static str> {
        let has = |program: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|dir| dir.join(program).exists())
        };
        match self {
            _ if !has("stdbuf") => Some("stdbuf is not installed"),
            Kind::Postgres if postgres::Programs::find().is_none() => Some("PostgreSQL is not installed"),
            Kind::SqliteWal | Kind::SqliteJournal if !has("sqlite3") => Some("sqlite3 is not installed"),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == text);
        kind.ok_or_else(|| format!("{text:?} is none of postgres, sqlite-wal, sqlite-journal"))
    }
}

/// What the mount's fsync means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On the local disk.
    Local,
    /// In the replica's log as well.
    Durable,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Local => "local",
            Mode::Durable => "durable",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "local" => Ok(Mode::Local),
            "durable" => Ok(Mode::Durable),
            _ => Err(format!("{text:?} is neither local nor durable")),
        }
    }
}

/// A database that runs on a mount.
pub trait Database: Sync {
    /// A client of it.
    fn connect(&self) -> Result<Shell, String>;
    /// How a transaction begins.
    fn begin(&self) -> &'static str;
    /// What is done now and then beside the load.
    fn churn(&self) -> &'static str {
        ""
    }
    /// Starts it from a copy of the mount and checks everything; how many commits of each worker it has.
    fn verify(&self, copy: &Path, workers: usize) -> Result<Vec<u64>, String>;
}
