//! `reindex`: builds the content index of a volume anew, while nobody serves it.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use super::{OfflineError, say};
use crate::{
    index::{CatalogFiles, Index, IndexOptions, WorkerState},
    volume::{core::Core, volumes::parts},
};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Brings the volume to the end of its log, and indexes every file.
pub fn reindex(name: &str, directory: &Path) -> Result<u8, OfflineError> {
    let started = Instant::now();
    let (mut core, _) = Core::open(parts(directory)?, started)?;
    let reader = core.replica().reader();
    let path = directory.join("index");
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(OfflineError::io("cannot delete", &path)(error));
        }
        _ => {}
    }
    // Nobody else needs the disk.
    let options = IndexOptions { rebuild_bytes_per_second: u64::MAX, ..IndexOptions::default() };
    let applied = reader.applied();
    let index = Index::open(&path, Box::new(CatalogFiles::new(reader)), applied, &options)?;
    while !index.wait_for(applied, TELL_EVERY) {
        let status = index.status();
        if let WorkerState::Failed(reason) = status.worker {
            return Err(OfflineError::Other(reason));
        }
        eprintln!("{name}: {}", status.worker.describe());
    }
    index.close();
    let status = index.status();
    core.stop(Instant::now());
    say(&format!(
        "{name}: {} files, {} chunks indexed at {applied} in {:.1} s\n",
        status.files,
        status.chunks,
        started.elapsed().as_secs_f64()
    ));
    Ok(0)
}
