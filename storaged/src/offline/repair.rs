//! `check --repair`: the way out of damage.
//!
//! ```text
//!  only what nothing needs is damaged ──► exact: redo the log, begin a new one; same replica, same position
//!  anything else ──► redo what can be read ─► new catalog from the tree ─► new log ─► `state`: new replica id, unproven
//! ```
//! In the second case operations that were acknowledged may be missing from the tree, or be there only in part. So the volume
//! becomes **another replica**: its mount is refused with the way on (`-o init=push`, a full compare by content), nothing is
//! synced over silently, and until then nobody may read a state from it.
//!
//! Nothing is deleted: what was damaged goes to `damaged/N` in the volume's directory. The order of steps is such that a crash
//! leaves a volume that is still damaged and can be repaired again; `state` is written last.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use tandem_proto::{
    chain::Chain,
    ids::Uuid,
    position::{Epoch, Position, Seq},
};
use tandem_runtime::durable;

use super::{
    OfflineError,
    check::{Assessment, check_volume},
    log_check::Upto,
    rebuild::{Ids, rebuild},
    report::{Part, Repaired, Report},
};
use crate::{
    apply::Replica,
    catalog::Catalog,
    ingest::receiver::Durable,
    log::{Log, LogOptions, disk::DirDisk, disk::Disk as _},
    tree::FsTree,
    volume::{
        state::{Identity, STATE_FILE, State},
        volumes::random_id,
    },
};

/// Serial of a rebuilt catalog: something was published, and the new log knows no publish.
const SERIAL: u64 = 1;

/// Makes a damaged volume usable, and says how.
pub fn repair(directory: &Path, found: &mut Assessment) -> Result<(), OfflineError> {
    let aside = make_aside(directory)?;
    if let Ok(state) = fs::read(directory.join(STATE_FILE)) {
        let path = aside.join(STATE_FILE);
        durable::replace_file_durably(&path, &state).map_err(OfflineError::io("cannot copy to", &path))?;
    }
    let report = serde_json::to_vec_pretty(&found.report).unwrap_or_default();
    let path = aside.join("report.json");
    durable::replace_file_durably(&path, &report).map_err(OfflineError::io("cannot write", &path))?;
    let only_the_log = [Part::State, Part::Catalog, Part::Tree].iter().all(|part| !found.report.is_damaged(*part));
    let exact = only_the_log && found.records_fit && begin_new_log_exactly(directory, &aside, found)?;
    let what = if exact {
        "nothing that was acknowledged is lost; its mount goes on by itself".to_owned()
    } else {
        rebuild_all(directory, &aside, found)?
    };
    let kept_in = aside.display().to_string();
    found.report.repaired = Some(Repaired { kept_in, exact, what });
    let after = check_volume(&found.report.volume, directory, false)?;
    match after.report.findings.iter().find(|_| !after.report.is_sound()) {
        None => Ok(()),
        Some(finding) => Err(OfflineError::Other(format!(
            "volume {} was repaired, and is still damaged: {}. Move {} away and let its mount sync again",
            found.report.volume,
            finding.what,
            directory.display()
        ))),
    }
}

/// Takes the tree of a repaired volume for its state.
pub fn accept(directory: &Path, report: &mut Report) -> Result<(), OfflineError> {
    let path = directory.join(STATE_FILE);
    let bytes = fs::read(&path).map_err(OfflineError::io("cannot read", &path))?;
    let state = State::decode(&bytes).map_err(|error| OfflineError::Other(error.to_string()))?;
    if state.unproven.is_none() {
        return Err(OfflineError::Other(format!(
            "there is nothing to accept: volume {} was not repaired, or was compared in full since",
            report.volume
        )));
    }
    write_state(directory, &State { unproven: None, ..state })?;
    report.note(
        Part::State,
        "the tree is taken as it is for the volume's state; a folder can be filled from it (-o init=pull)",
    );
    Ok(())
}

fn make_aside(directory: &Path) -> Result<PathBuf, OfflineError> {
    let parent = directory.join("damaged");
    durable::create_private_dir(&parent).map_err(OfflineError::io("cannot make", &parent))?;
    let mut number = 1;
    loop {
        let aside = parent.join(number.to_string());
        match fs::create_dir(&aside) {
            Ok(()) => {
                durable::sync_directory(&parent).map_err(OfflineError::io("cannot sync", &parent))?;
                return Ok(aside);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(OfflineError::io("cannot make", &aside)(error)),
        }
    }
}

fn write_state(directory: &Path, state: &State) -> Result<(), OfflineError> {
    let path = directory.join(STATE_FILE);
    durable::replace_file_durably(&path, &state.encode()).map_err(OfflineError::io("cannot write", &path))
}

fn open_replica(directory: &Path) -> Result<Replica<FsTree>, OfflineError> {
    let tree = FsTree::open(directory).map_err(OfflineError::io("cannot open the tree of", directory))?;
    let catalog = Catalog::open(&directory.join("catalog"))?;
    Ok(Replica::open(tree, catalog)?)
}

/// Redoes the log from its image and begins a new one. Whether that led to the position that was acknowledged.
fn begin_new_log_exactly(directory: &Path, aside: &Path, found: &Assessment) -> Result<bool, OfflineError> {
    let (Some(image), Some(state)) = (&found.image, &found.state) else { return Ok(false) };
    let mut replica = open_replica(directory)?;
    if let Err(error) = replica.recover(image) {
        if error.is_retryable() {
            return Err(error.into());
        }
        return Ok(false);
    }
    let mut durable = found.durable.clone();
    durable.empty &= replica.is_empty();
    if durable.live && replica.applied() != durable.tip {
        return Ok(false);
    }
    drop(replica);
    let log = new_log(directory)?;
    swap(directory, aside, "log")?;
    let state = State { durable, log_start: log.start(), log_end: log.synced_end(), ..state.clone() };
    write_state(directory, &state)?;
    Ok(true)
}

/// A new log beside the old one.
fn new_log(directory: &Path) -> Result<Log<DirDisk>, OfflineError> {
    let path = directory.join("log.new");
    remove_if_there(&path)?;
    let disk = DirDisk::open_or_create(&path).map_err(OfflineError::io("cannot make", &path))?;
    let log = Log::create(disk.clone(), LogOptions::default(), random_id()?)?;
    disk.sync_names().map_err(OfflineError::io("cannot sync", &path))?;
    Ok(log)
}

fn remove_if_there(path: &Path) -> Result<(), OfflineError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(OfflineError::io("cannot delete", path)(error))
        }
        _ => Ok(()),
    }
}

fn move_aside(directory: &Path, aside: &Path, part: &str) -> Result<(), OfflineError> {
    let from = directory.join(part);
    match fs::rename(&from, aside.join(part)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(OfflineError::io("cannot move aside", &from)(error))
        }
        _ => Ok(()),
    }
}

/// Puts `<part>.new` in the place of `<part>`, which goes aside.
fn swap(directory: &Path, aside: &Path, part: &str) -> Result<(), OfflineError> {
    move_aside(directory, aside, part)?;
    let new = directory.join(format!("{part}.new"));
    fs::rename(&new, directory.join(part)).map_err(OfflineError::io("cannot rename", &new))?;
    durable::sync_directory(aside).map_err(OfflineError::io("cannot sync", aside))?;
    durable::sync_directory(directory).map_err(OfflineError::io("cannot sync", directory))
}

/// Applies what can be read of the log, as far as that is possible; whether tree and catalog are at one position then.
fn redo(directory: &Path, found: &Assessment) -> Result<bool, OfflineError> {
    let Some(image) = found.image.as_ref().filter(|_| !found.report.is_damaged(Part::Catalog)) else {
        return Ok(false);
    };
    match open_replica(directory)?.recover(&Upto(image)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_retryable() => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "what can be read of the log cannot be redone");
            Ok(false)
        }
    }
}

/// See the module: the second case.
fn rebuild_all(directory: &Path, aside: &Path, found: &Assessment) -> Result<String, OfflineError> {
    let redone = redo(directory, found)?;
    if !redone {
        // It may hold objects on their way from one name to another.
        move_aside(directory, aside, "staging")?;
    }
    let tree = FsTree::open(directory).map_err(OfflineError::io("cannot open the tree of", directory))?;
    let position = next_history(found)?;
    let catalog_dir = directory.join("catalog.new");
    remove_if_there(&catalog_dir)?;
    durable::create_private_dir(&catalog_dir).map_err(OfflineError::io("cannot make", &catalog_dir))?;
    let catalog = Catalog::open(&catalog_dir)?;
    let adopted = rebuild(&tree, &catalog, &mut Ids::new(random_id()?), position)?;
    catalog.checkpoint_durably(position, SERIAL)?;
    drop(catalog);
    let log = new_log(directory)?;
    swap(directory, aside, "catalog")?;
    swap(directory, aside, "log")?;
    // Its ids are gone. It is rebuilt while storaged serves.
    remove_if_there(&directory.join("index"))?;
    let volume_id = match &found.state {
        Some(state) => state.identity.volume_id,
        None => Uuid(random_id()?),
    };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let first = found.report.findings.first().map_or("", |finding| &finding.what);
    let state = State {
        identity: Identity { volume_id, replica_id: Uuid(random_id()?) },
        durable: Durable { tip: position, live: false, empty: false, writer: found.durable.writer.clone() },
        attached_ns: found.state.as_ref().map_or(0, |state| state.attached_ns),
        log_start: log.start(),
        log_end: log.synced_end(),
        unproven: Some(format!("the replica was repaired after damage (Unix time {seconds}: {first})")),
    };
    write_state(directory, &state)?;
    let redone = if redone { "what can be read of its log was redone" } else { "its log could not be redone" };
    Ok(format!(
        "{redone}; its catalog was made anew from the {} inodes of its tree. Acknowledged operations may be missing, so it counts as \
         another replica: unmount its folder and mount it with -o init=push, which compares everything and makes the replica equal. If \
         that folder is lost, tandem-storaged check --accept takes the tree as it is",
        adopted.inodes
    ))
}

/// The position of a history that begins here: after everything that anybody may know of the volume, and equal to nothing.
fn next_history(found: &Assessment) -> Result<Position, OfflineError> {
    let known = [found.durable.tip.epoch, found.catalog_position.epoch];
    let epoch = Epoch(known.into_iter().map(|epoch| epoch.0).max().unwrap_or(0) + 1);
    Ok(Position { epoch, seq: Seq(0), chain: Chain(random_id()?) })
}
