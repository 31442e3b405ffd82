//! What the last passes found, kept in the state directory: `verify.json`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tandem_runtime::durable;

/// Name of the file.
const FILE: &str = "verify.json";

/// What is kept.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Kept {
    /// EPOCH:SEQ at which the last complete pass ended; empty: there was none.
    pub position: String,
    /// Unix time of its end.
    pub time_ns: i64,
    /// Files compared in it.
    pub files: u64,
    /// Bytes compared in it.
    pub bytes: u64,
    /// What could not be compared in it.
    pub unchecked: u64,
    /// Mismatches found by all passes.
    pub mismatches: u64,
    /// Of these, repaired.
    pub repaired: u64,
    /// When the last complete pass ended, on the clock that runs.
    #[serde(skip)]
    pub ended: Option<Instant>,
}

/// Where it is kept.
pub struct Record(PathBuf);

pub(super) fn unix_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

impl Record {
    /// In this state directory.
    pub fn in_directory(state: &Path) -> Record {
        Record(state.join(FILE))
    }

    /// What was kept; nothing if it cannot be read: it decides nothing.
    pub fn load(&self) -> Kept {
        let mut kept: Kept =
            fs::read(&self.0).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        if kept.time_ns > 0 {
            let age = Duration::from_nanos((unix_ns() - kept.time_ns).max(0) as u64);
            kept.ended = Instant::now().checked_sub(age);
        }
        kept
    }

    /// Keeps it.
    pub fn save(&self, kept: &Kept) {
        let bytes = serde_json::to_vec(kept).unwrap_or_default();
        if let Err(error) = durable::replace_file_durably(&self.0, &bytes) {
            tracing::warn!(%error, path = %self.0.display(), "the result of a verify cannot be kept");
        }
    }
}
