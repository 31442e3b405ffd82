//! SQLite, with a write-ahead log or a rollback journal.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::databases::{Database, schema, shell::Shell};

/// A database file on a mount.
#[derive(Debug)]
pub struct Sqlite {
    file: PathBuf,
    journal: Journal,
    scratch: PathBuf,
    shells: AtomicU64,
}

/// How it commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// Write-ahead log.
    Wal,
    /// Rollback journal, which is deleted at each commit.
    Delete,
}

const NAME: &str = "bank.sqlite";

impl Sqlite {
    /// Makes the database in a directory of the mount. `scratch` is for messages.
    pub fn create(mount: &Path, journal: Journal, scratch: &Path) -> Result<Self, String> {
        let file = mount.join(NAME);
        let sqlite = Sqlite { file, journal, scratch: scratch.to_owned(), shells: AtomicU64::new(0) };
        let mode = match journal {
            Journal::Wal => "wal",
            Journal::Delete => "delete",
        };
        let mut shell = sqlite.open(&sqlite.file)?;
        let answer = shell.ask(&format!("PRAGMA journal_mode={mode};"))?;
        if answer != [mode] {
            return Err(format!("SQLite does not take journal mode {mode} on the mount: {answer:?}"));
        }
        shell.ask(&schema::create())?;
        Ok(sqlite)
    }

    fn open(&self, file: &Path) -> Result<Shell, String> {
        let number = self.shells.fetch_add(1, Ordering::Relaxed);
        let errors = self.scratch.join(format!("sqlite-{number}.err"));
        let path = file.to_str().ok_or("the path is no text")?;
        let mut shell = Shell::start("sqlite3", &["-batch", "-bail", "-noheader", "-list", path], &errors)?;
        // A rollback journal commits by its deletion, which only EXTRA makes durable before the commit returns.
        let synchronous = if self.journal == Journal::Wal { "FULL" } else { "EXTRA" };
        shell.ask(&format!(".timeout 60000\nPRAGMA synchronous={synchronous};\nPRAGMA wal_autocheckpoint=200;"))?;
        Ok(shell)
    }
}

impl Database for Sqlite {
    fn connect(&self) -> Result<Shell, String> {
        self.open(&self.file)
    }

    fn begin(&self) -> &'static str {
        "BEGIN IMMEDIATE"
    }

    fn verify(&self, copy: &Path, workers: usize) -> Result<Vec<u64>, String> {
        let mut shell = self.open(&copy.join(NAME))?;
        let checked = shell.ask("PRAGMA integrity_check;")?;
        if checked != ["ok"] {
            return Err(format!("integrity_check: {}", checked.join("; ")));
        }
        schema::check(&mut shell, workers)
    }
}
