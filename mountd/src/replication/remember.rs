//! What the state directory learns while the mount runs: whose replica it has, that it was published, that it is fenced.

use std::path::Path;

use parking_lot::Mutex;
use tandem_proto::{Position, Uuid};

use super::keeper::unix_now_ns;
use crate::{
    commit::Commit,
    divergence::stored,
    resync::StateReader,
    state::{Fenced, StateDir, Witness, position_text},
};

/// Inodes whose time of change is remembered.
const WITNESSES_MAX: usize = 8;

/// Notes what is new. Cheap if nothing is. `run`: this one; zero for a mount that was fenced from its start, of which nothing is new.
pub(super) fn save(commit: &Commit, state: &Mutex<StateDir>, run: Uuid) {
    if run == Uuid::default() {
        return;
    }
    save_ids(commit, state);
    save_run(commit, state, run);
    save_fence(commit, state);
}

/// Whose replica we have, for the next start; the activity log has it too, written before anything was sent.
fn save_ids(commit: &Commit, state: &Mutex<StateDir>) {
    let header = commit.header();
    if header.volume_id == Uuid::default() {
        return;
    }
    let (volume, replica) = (header.volume_id.to_string(), header.replica_id.to_string());
    let published = commit.durable().is_some();
    let mut state = state.lock();
    let known = state.state();
    let settled = !published || (known.synced && known.walk_since_ns.is_none() && known.pulled.is_none());
    if known.volume_id == volume && known.replica_id == replica && settled {
        return;
    }
    let saved = state.update_durably(|state| {
        (state.volume_id, state.replica_id) = (volume, replica);
        if published {
            (state.synced, state.walk_since_ns, state.pulled) = (true, None, None);
        }
    });
    if let Err(error) = saved {
        tracing::warn!(%error, "whose replica this folder has could not be saved; trying again");
    }
}

/// Once this run has opened an epoch, no earlier one can be the last.
fn save_run(commit: &Commit, state: &Mutex<StateDir>, run: Uuid) {
    if commit.facts().epoch == 0 {
        return;
    }
    let run = run.to_string();
    let mut state = state.lock();
    if state.state().runs == [run.as_str()] {
        return;
    }
    if let Err(error) = state.update_durably(|state| state.runs = vec![run]) {
        tracing::warn!(%error, "the run could not be saved; trying again");
    }
}

/// A fence is for ever, so it is durable, with what differs.
fn save_fence(commit: &Commit, state: &Mutex<StateDir>) {
    let Some(reason) = commit.fenced() else { return };
    let mut state = state.lock();
    if state.state().fenced.is_some() {
        return;
    }
    save_divergence(commit, state.path());
    // The replica has everything up to here, and the marks of what it does not have stand. A run that has no floor yet keeps none.
    let unsynced = || Err(std::io::Error::other("the folder was not synced since it was first published"));
    if let Err(error) = commit.save_floor_durably(&unsynced) {
        tracing::warn!(%error, "the floor could not be saved");
    }
    let fenced = Fenced { reason, since_ns: unix_now_ns() };
    if let Err(error) = state.update_durably(|state| state.fenced = Some(fenced)) {
        tracing::warn!(%error, "that this mount is fenced could not be saved; trying again");
    }
}

/// Writes down what differs. A call that was under way when the fence came may still add to it, so this is done again at the end.
pub(super) fn save_divergence(commit: &Commit, state_dir: &Path) {
    if let Err(error) = stored::save_durably(state_dir, &commit.unreplicated()) {
        tracing::warn!(%error, "what is not replicated could not be written down; the marks have it, more coarsely");
    }
}

/// That the folder was filled from the replica's state at this position: from now on it is known.
pub fn note_pulled(state: &mut StateDir, of: &Pulled<'_>) -> Result<(), crate::state::StateError> {
    state.update_durably(|state| {
        state.pulled = Some(position_text(&of.position));
        (state.volume_id, state.replica_id) = (of.volume_id.to_string(), of.replica_id.to_string());
        (state.volume, state.server) = (of.volume.to_owned(), of.server.to_owned());
        state.backing_identity = tandem_proto::ids::hex(of.backing_identity);
        (state.fenced, state.walk_since_ns, state.clean_unmount_ns) = (None, None, None);
        state.synced = false;
    })
}

/// What a folder was filled from.
#[derive(Clone, Copy, Debug)]
pub struct Pulled<'a> {
    /// The state.
    pub position: Position,
    /// Whose.
    pub volume_id: Uuid,
    /// Which copy of it.
    pub replica_id: Uuid,
    /// Name of the volume.
    pub volume: &'a str,
    /// Where it was asked.
    pub server: &'a str,
    /// The folder.
    pub backing_identity: &'a [u8],
}

/// Looks at inodes that were changed lately. What it returns may be remembered once the backing file system was synced after it.
pub(super) fn look_at_witnesses(commit: &Commit, reader: &dyn StateReader) -> Vec<Witness> {
    let mut witnesses = Vec::new();
    for id in commit.marked_lately(WITNESSES_MAX) {
        if let Ok(Some(view)) = reader.node(&id) {
            let id = tandem_proto::ids::hex(id.as_bytes());
            witnesses.push(Witness { id, ctime_s: view.ctime.seconds, ctime_ns: view.ctime.nanos });
        }
    }
    witnesses
}

/// Remembers them.
pub(super) fn save_witnesses(state: &Mutex<StateDir>, witnesses: Vec<Witness>) {
    let mut state = state.lock();
    if witnesses.is_empty() || state.state().witnesses == witnesses {
        return;
    }
    if let Err(error) = state.update_durably(|state| state.witnesses = witnesses) {
        tracing::debug!(%error, "witnesses");
    }
}

/// Whether the folder is older than it was when it was left: an inode that was changed for certain was not.
pub fn went_back_in_time(state: &StateDir, reader: &dyn StateReader) -> bool {
    state.state().witnesses.iter().any(|witness| {
        let id = stored::unhex(&witness.id).and_then(|id| tandem_proto::InodeId::new(&id));
        let view = id.and_then(|id| reader.node(&id).ok().flatten());
        view.is_some_and(|view| (view.ctime.seconds, view.ctime.nanos) < (witness.ctime_s, witness.ctime_ns))
    })
}
