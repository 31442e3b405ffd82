//! How a mount may start: a pure decision, never a guess.

use tandem_proto::{Position, Uuid};
use tandem_runtime::when;

use crate::{link::client::Described, state::MountState};

/// `-o init=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Fill the empty folder from the replica, then go live. A folder that is known and not empty resumes, so that it can stand in fstab.
    Pull,
    /// The folder replaces the replica's state, which is kept in `history/`.
    Push,
}

/// What the decision is made from.
#[derive(Clone, Debug)]
pub struct StartFacts<'a> {
    /// What the state directory remembers.
    pub state: &'a MountState,
    /// This client.
    pub client_id: Uuid,
    /// Identity of the backing directory, as in the state.
    pub backing_identity: &'a [u8],
    /// Whether the folder has no entries.
    pub backing_empty: bool,
    /// Whether the activity log holds a mark for the root (then names in it may have been removed through the mount); see
    /// [`crate::commit::Commit`]. `true` if unknown.
    pub root_marked: bool,
    /// Up to where the folder relies on the replica, as the activity log says; `None`: it never did.
    pub floor: Option<Position>,
    /// A pull began to fill the folder and did not end.
    pub half_pulled: bool,
    /// What the storage daemon said; `Err`: it does not answer, and why.
    pub described: Result<&'a Described, String>,
    /// `-o init=`, if given.
    pub init: Option<Init>,
    /// `-o takeover`.
    pub takeover: bool,
    /// `-o ro`: who only looks may look at a folder that another client has taken the volume from.
    pub look_only: bool,
    /// Volume name, for messages.
    pub volume: &'a str,
    /// Server, for messages.
    pub server: &'a str,
    /// What else is known of this place, for the refusal of an unknown folder: another file system was mounted here.
    pub elsewhere: Option<String>,
}

/// How the mount starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Known folder, known replica: partial resync or a walk, whatever the state directory says.
    Resume,
    /// The volume is new or empty: everything is sent.
    FirstSync,
    /// Fill the folder first ([`crate::resync::pull`]), unless the state says that it was filled; then a full compare.
    Pull,
    /// Full compare; the replica's surplus goes to history.
    Push,
    /// Read-only, without a link.
    Fenced,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// How it starts.
    pub start: Start,
    /// Fence another client, whatever it does.
    pub takeover: bool,
    /// Fence another client if it is not connected.
    pub succeed: bool,
    /// The replica must be here when the volume is claimed.
    pub have: Option<Position>,
    /// With [`Start::Fenced`]: why.
    pub why: String,
}

impl Decided {
    fn to(start: Start) -> Decided {
        Decided { start, takeover: false, succeed: false, have: None, why: String::new() }
    }
}

/// A refusal with the ways on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartRefused(pub String);

fn refuse<T>(why: impl Into<String>) -> Result<T, StartRefused> {
    Err(StartRefused(why.into()))
}

/// Decides how the mount may start.
///
/// | folder | replica | without `init` |
/// |---|---|---|
/// | known | known, at or after the floor | resume |
/// | known | does not answer | resume, offline for now |
/// | known | gone, another one, empty now, older | refused |
/// | known, but emptied around the mount | not empty | refused |
/// | known | taken over by another client | refused; `takeover` if the replica is where this folder left it; `ro`: fenced |
/// | known, was fenced | any | fenced |
/// | any other | none or empty | first sync |
/// | any other | not empty, or does not answer | refused |
///
/// `init` replaces this, but never fences a client that is connected: that needs `takeover` as well.
pub fn decide(facts: &StartFacts<'_>) -> Result<Decided, StartRefused> {
    let known = is_known(facts);
    if let Some(fenced) = facts.state.fenced.as_ref().filter(|_| known)
        && !facts.takeover
        && !(facts.init == Some(Init::Pull) && facts.backing_empty)
        && facts.init != Some(Init::Push)
    {
        return Ok(Decided { why: fenced.reason.clone(), ..Decided::to(Start::Fenced) });
    }
    let described = match &facts.described {
        Ok(described) => *described,
        Err(why) => return decide_offline(facts, why),
    };
    match facts.init {
        Some(Init::Push) => return decide_push(facts, described),
        Some(Init::Pull) if !resumes_instead(facts, described) => return decide_pull(facts, described),
        Some(Init::Pull) | None => {}
    }
    if !known {
        if described.exists && !described.empty {
            return Err(unknown_folder(facts, described));
        }
        return Ok(Decided::to(Start::FirstSync));
    }
    check_replica(facts, described)?;
    if facts.state.pulled.is_some() {
        return Ok(filled(facts));
    }
    if is_stranger(facts, described) {
        return decide_taken(facts, described);
    }
    check_position(facts, described)?;
    if facts.backing_empty && !described.empty && !is_empty_for_a_reason(facts) {
        return refuse(format!(
            "the folder is empty, but it was not when it was mounted last, and volume {} on {} holds its files. Use -o init=pull \
             to fill it from the replica, or -o init=push if the files are meant to be gone",
            facts.volume, facts.server
        ));
    }
    Ok(Decided::to(Start::Resume))
}

fn is_known(facts: &StartFacts<'_>) -> bool {
    !facts.state.volume_id.is_empty()
        && (facts.state.volume == facts.volume || was_renamed(facts))
        && facts.state.backing_identity == tandem_proto::ids::hex(facts.backing_identity)
}

/// Whether the volume that we know has another name now: it is the same volume and the same copy of it, and the old name is not meant.
fn was_renamed(facts: &StartFacts<'_>) -> bool {
    facts.described.as_ref().is_ok_and(|described| {
        described.exists
            && described.volume_id.to_string() == facts.state.volume_id
            && described.replica_id.to_string() == facts.state.replica_id
    })
}

/// Whether it is known that the folder was emptied through the mount, or was empty before.
fn is_empty_for_a_reason(facts: &StartFacts<'_>) -> bool {
    facts.root_marked || (facts.state.clean_unmount_ns.is_some() && facts.state.empty_when_left)
}

/// Whether somebody else wrote last: another client, or a copy of this one's state.
fn is_stranger(facts: &StartFacts<'_>, described: &Described) -> bool {
    if described.empty || described.holder_id == Uuid::default() {
        return false;
    }
    let run = described.holder_run.to_string();
    let other_run = !facts.state.runs.is_empty() && described.holder_run != Uuid::default();
    described.holder_id != facts.client_id || (other_run && !facts.state.runs.contains(&run))
}

/// A pull ended and nothing was published since: the folder is that state, and what was changed in it.
fn filled(facts: &StartFacts<'_>) -> Decided {
    let have = facts.state.pulled.as_deref().and_then(crate::state::parse_position);
    Decided { takeover: facts.takeover, succeed: true, have, ..Decided::to(Start::Pull) }
}

/// With init=pull: whether the folder was filled long ago.
fn resumes_instead(facts: &StartFacts<'_>, described: &Described) -> bool {
    let foreign = facts.state.fenced.is_some() || is_stranger(facts, described);
    let empty = facts.backing_empty && (foreign || !is_empty_for_a_reason(facts));
    is_known(facts) && !facts.half_pulled && !empty
}

fn holder(described: &Described) -> String {
    let name = if described.holder.is_empty() { "another client" } else { &described.holder };
    let connected = if described.holder_connected { ", connected now" } else { ", not connected now" };
    format!("{name} (since {}{connected})", when::utc(described.holder_since_ns))
}

/// The replica is the one that the folder was attached to.
fn check_replica(facts: &StartFacts<'_>, described: &Described) -> Result<(), StartRefused> {
    let (volume, server) = (facts.volume, facts.server);
    if !described.exists {
        return refuse(format!(
            "volume {volume}, which this folder was attached to, is gone from {server}. If that is the right server and the volume is \
             lost, mount with -o init=push to make it anew from this folder; else check the server's --data directory"
        ));
    }
    if described.volume_id.to_string() != facts.state.volume_id
        || described.replica_id.to_string() != facts.state.replica_id
    {
        return refuse(format!(
            "volume {volume} on {server} is not the one that this folder was attached to (another volume, or a copy of it). Mount another \
             volume name, or use -o init=push to replace what it holds by this folder (kept in its history), or mount an empty folder with -o init=pull"
        ));
    }
    if described.empty && facts.state.synced {
        return refuse(format!(
            "volume {volume} on {server} is empty, but was complete before: it was restored from somewhere, or its disk is not mounted. Look at the \
             server's --data directory, or use -o init=push to fill it from this folder"
        ));
    }
    Ok(())
}

/// The replica has what the folder has forgotten.
fn check_position(facts: &StartFacts<'_>, described: &Described) -> Result<(), StartRefused> {
    let (Some(floor), found) = (facts.floor, described.position) else { return Ok(()) };
    let same_place = (found.epoch, found.seq) == (floor.epoch, floor.seq);
    if described.empty || !(found.is_before(&floor) || (same_place && found.chain != floor.chain)) {
        return Ok(());
    }
    let how = if same_place { "has another history" } else { "is older: it was restored from a copy, or is one" };
    refuse(format!(
        "volume {} on {} is at {found}, and this folder relies on it up to {floor}, so the replica {how}. Put the right one in its place, \
         or use -o init=push to make it equal to this folder (what it holds is kept in its history), or mount an empty folder with -o init=pull",
        facts.volume, facts.server
    ))
}

/// Somebody else has the volume.
fn decide_taken(facts: &StartFacts<'_>, described: &Described) -> Result<Decided, StartRefused> {
    let (volume, server) = (facts.volume, facts.server);
    let left_it_there = facts.floor == Some(described.position);
    if facts.takeover && left_it_there {
        return Ok(Decided { takeover: true, have: Some(described.position), ..Decided::to(Start::Resume) });
    }
    let taken = format!("volume {volume} was taken over by {} since this folder was mounted last", holder(described));
    let ways = "Mount an empty folder with -o init=pull to have its state, or use -o init=push to replace it by this folder (what it holds is \
                kept in its history); add takeover while the other one is connected";
    if facts.look_only {
        let why = format!("{taken}. `tandem divergence` lists what the replica does not have of this folder. {ways}");
        return Ok(Decided { why, ..Decided::to(Start::Fenced) });
    }
    let not_there = match (facts.takeover, facts.floor) {
        (true, Some(floor)) => {
            format!(
                " -o takeover alone needs a folder that holds the replica's state, {}; this one left it at {floor}.",
                described.position
            )
        }
        (true, None) => " -o takeover alone needs a folder that holds the replica's state.".to_owned(),
        (false, _) if left_it_there => {
            " Nothing was changed since, so -o takeover goes on from this folder.".to_owned()
        }
        (false, _) => String::new(),
    };
    refuse(format!(
        "{taken} on {server}.{not_there} {ways}. With -o ro it is mounted to be looked at (`tandem divergence`)"
    ))
}

fn decide_offline(facts: &StartFacts<'_>, why: &str) -> Result<Decided, StartRefused> {
    let known = is_known(facts);
    let emptied = facts.backing_empty && !facts.state.empty_when_left && !facts.root_marked;
    if known && facts.state.pulled.is_some() && facts.init != Some(Init::Push) {
        return Ok(filled(facts));
    }
    if known && facts.init != Some(Init::Push) && !facts.half_pulled && !emptied && facts.state.fenced.is_none() {
        return Ok(Decided::to(Start::Resume));
    }
    let first = if known { "" } else { " A folder's first mount needs its server." };
    refuse(format!("{why}.{first}{}", facts.elsewhere.as_ref().map_or(String::new(), |text| format!(" {text}"))))
}

/// Only `-o takeover` ends somebody who is connected.
fn check_connected(facts: &StartFacts<'_>, described: &Described) -> Result<(), StartRefused> {
    if described.holder_connected && !facts.takeover && is_stranger(facts, described) {
        return refuse(format!(
            "volume {} on {} is held by {}: unmount it there first, or add -o takeover, which fences it (it becomes read-only, and keeps \
             what it did not replicate)",
            facts.volume,
            facts.server,
            holder(described)
        ));
    }
    Ok(())
}

fn decide_push(facts: &StartFacts<'_>, described: &Described) -> Result<Decided, StartRefused> {
    check_connected(facts, described)?;
    let start = if described.exists && !described.empty { Start::Push } else { Start::FirstSync };
    Ok(Decided { takeover: facts.takeover, succeed: true, ..Decided::to(start) })
}

fn decide_pull(facts: &StartFacts<'_>, described: &Described) -> Result<Decided, StartRefused> {
    let (volume, server) = (facts.volume, facts.server);
    if !described.exists || described.empty {
        return refuse(format!(
            "volume {volume} on {server} holds nothing to pull; mount without init=pull to send this folder there"
        ));
    }
    if !facts.backing_empty && !facts.half_pulled {
        return refuse(
            "the folder is not empty, and init=pull fills an empty one only. Empty it, mount another folder, or use -o init=push",
        );
    }
    check_connected(facts, described)?;
    Ok(Decided { takeover: facts.takeover, succeed: true, ..Decided::to(Start::Pull) })
}

fn unknown_folder(facts: &StartFacts<'_>, described: &Described) -> StartRefused {
    let (volume, server) = (facts.volume, facts.server);
    let and = if described.holder_connected { ",takeover" } else { "" };
    let ways = if facts.backing_empty {
        format!("-o init=pull{and} fills this empty folder from the replica")
    } else {
        format!(
            "-o init=push{and} makes the replica equal to this folder (what it holds is kept in its history); -o init=pull{and}, on an \
             empty folder, fills that from the replica"
        )
    };
    let belongs = if facts.state.volume_id.is_empty() { "was never attached to it" } else { "belongs to another one" };
    let elsewhere = facts.elsewhere.as_ref().map_or(String::new(), |text| format!("{text} "));
    StartRefused(format!(
        "{elsewhere}Volume {volume} on {server} already holds files and is held by {}, and this folder {belongs}, so it is not clear which \
         is right: {ways}",
        holder(described)
    ))
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
