//! How a mount may start: a pure decision, never a guess.

use tandem_proto::Uuid;

use crate::{link::client::Described, state::MountState};

/// `-o init=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Fill the empty folder from the replica, then go live.
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
    /// What the storage daemon said; `Err`: it does not answer, and why.
    pub described: Result<&'a Described, String>,
    /// `-o init=`, if given.
    pub init: Option<Init>,
    /// Volume name, for messages.
    pub volume: &'a str,
    /// Server, for messages.
    pub server: &'a str,
}

/// How the mount starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Known folder, known replica: partial resync or a walk, whatever the state directory says.
    Resume,
    /// The volume is new or empty: everything is sent.
    FirstSync,
    /// Fill the folder first ([`crate::resync::pull`]), then a full compare.
    Pull,
    /// Full compare; the replica's surplus goes to history.
    Push,
}

/// A refusal with the ways on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartRefused(pub String);

/// Decides how the mount may start.
///
/// | folder | replica | without `init` |
/// |---|---|---|
/// | known | known, at or after the floor | resume |
/// | known | does not answer | resume, offline for now |
/// | known | gone, another one, empty now | refused |
/// | known, but emptied around the mount | not empty | refused |
/// | any other | none or empty | first sync |
/// | any other | not empty, or does not answer | refused |
pub fn decide(facts: &StartFacts<'_>) -> Result<Start, StartRefused> {
    let described = match &facts.described {
        Ok(described) => *described,
        Err(why) => return decide_offline(facts, why),
    };
    match facts.init {
        Some(Init::Pull) => return decide_pull(facts, described),
        Some(Init::Push) => {
            return Ok(if described.exists && !described.empty { Start::Push } else { Start::FirstSync });
        }
        None => {}
    }
    let known = is_known(facts);
    if !known {
        if described.exists && !described.empty {
            return Err(unknown_folder(facts, described));
        }
        return Ok(Start::FirstSync);
    }
    let (volume, server) = (facts.volume, facts.server);
    if !described.exists {
        return Err(StartRefused(format!(
            "volume {volume}, which this folder was attached to, is gone from {server}. If that is the right server and the volume is \
             lost, mount with -o init=push to make it anew from this folder; else check the server's --data directory"
        )));
    }
    if described.volume_id.to_string() != facts.state.volume_id
        || described.replica_id.to_string() != facts.state.replica_id
    {
        return Err(StartRefused(format!(
            "volume {volume} on {server} is not the one that this folder was attached to (another volume, or a copy of it). Mount another \
             volume name, or use -o init=push to replace what it holds by this folder (kept in its history), or mount an empty folder with -o init=pull"
        )));
    }
    if described.empty && facts.state.synced {
        return Err(StartRefused(format!(
            "volume {volume} on {server} is empty, but was complete before: it was restored from somewhere, or its disk is not mounted. Look at the \
             server's --data directory, or use -o init=push to fill it from this folder"
        )));
    }
    if !described.empty && described.holder_id != Uuid::default() && described.holder_id != facts.client_id {
        return Err(StartRefused(format!(
            "volume {volume} was taken over by {} since this folder was mounted last. Mount an empty folder with -o init=pull to have its state, or \
             use -o init=push to replace it by this folder (what it holds is kept in its history)",
            holder(described)
        )));
    }
    let legitimately_empty =
        facts.root_marked || (facts.state.clean_unmount_ns.is_some() && facts.state.empty_when_left);
    if facts.backing_empty && !described.empty && !legitimately_empty {
        return Err(StartRefused(format!(
            "the folder is empty, but it was not when it was mounted last, and volume {volume} on {server} holds its files. Use -o init=pull \
             to fill it from the replica, or -o init=push if the files are meant to be gone"
        )));
    }
    Ok(Start::Resume)
}

fn is_known(facts: &StartFacts<'_>) -> bool {
    !facts.state.volume_id.is_empty()
        && facts.state.volume == facts.volume
        && facts.state.backing_identity == tandem_proto::ids::hex(facts.backing_identity)
}

fn holder(described: &Described) -> String {
    let connected = if described.holder_connected { ", which is connected now" } else { "" };
    if described.holder.is_empty() { "another client".to_owned() } else { format!("{}{connected}", described.holder) }
}

fn decide_offline(facts: &StartFacts<'_>, why: &str) -> Result<Start, StartRefused> {
    if is_known(facts)
        && facts.init.is_none()
        && !(facts.backing_empty && !facts.state.empty_when_left && !facts.root_marked)
    {
        return Ok(Start::Resume);
    }
    let first = if is_known(facts) { "" } else { " A folder's first mount needs its server." };
    Err(StartRefused(format!("{why}.{first}")))
}

fn decide_pull(facts: &StartFacts<'_>, described: &Described) -> Result<Start, StartRefused> {
    let (volume, server) = (facts.volume, facts.server);
    if !described.exists || described.empty {
        return Err(StartRefused(format!(
            "volume {volume} on {server} holds nothing to pull; mount without init=pull to send this folder there"
        )));
    }
    if described.holder_connected && described.holder_id != facts.client_id {
        return Err(StartRefused(format!(
            "volume {volume} is written by {}: unmount it there first",
            holder(described)
        )));
    }
    Ok(Start::Pull)
}

fn unknown_folder(facts: &StartFacts<'_>, described: &Described) -> StartRefused {
    let (volume, server) = (facts.volume, facts.server);
    let ways = if facts.backing_empty {
        "-o init=pull fills this empty folder from the replica"
    } else {
        "-o init=push makes the replica equal to this folder (what it holds is kept in its history); -o init=pull, on an empty folder, \
         fills that from the replica"
    };
    let belongs = if facts.state.volume_id.is_empty() { "was never attached to it" } else { "belongs to another one" };
    StartRefused(format!(
        "volume {volume} on {server} already holds files (written by {}), and this folder {belongs}, so it is not clear which is right: {ways}",
        holder(described)
    ))
}

#[cfg(test)]
mod tests {
    use tandem_proto::Uuid;

    use super::{Init, Start, StartFacts, StartRefused, decide};
    use crate::{link::client::Described, state::MountState};

    const CLIENT: Uuid = Uuid([1; 16]);

    fn described() -> Described {
        Described {
            exists: true,
            volume_id: Uuid([2; 16]),
            replica_id: Uuid([3; 16]),
            holder_id: CLIENT,
            holder: "me".into(),
            ..Default::default()
        }
    }

    fn known() -> MountState {
        MountState {
            volume: "v".into(),
            volume_id: Uuid([2; 16]).to_string(),
            replica_id: Uuid([3; 16]).to_string(),
            backing_identity: "aa".into(),
            ..Default::default()
        }
    }

    struct Case {
        state: MountState,
        described: Result<Described, String>,
        empty: bool,
        marked: bool,
        init: Option<Init>,
    }

    fn run(case: Case) -> Result<Start, StartRefused> {
        decide(&StartFacts {
            state: &case.state,
            client_id: CLIENT,
            backing_identity: &[0xaa],
            backing_empty: case.empty,
            root_marked: case.marked,
            described: case.described.as_ref().map_err(Clone::clone),
            init: case.init,
            volume: "v",
            server: "localhost:7440",
        })
    }

    fn case() -> Case {
        Case { state: known(), described: Ok(described()), empty: false, marked: false, init: None }
    }

    fn refused(case: Case, words: &[&str]) {
        let message = run(case).expect_err("refused").to_string();
        for word in words {
            assert!(message.contains(word), "{word:?} is missing: {message}");
        }
    }

    #[test]
    fn a_known_folder_resumes_also_without_its_server() {
        assert_eq!(run(case()), Ok(Start::Resume));
        assert_eq!(run(Case { described: Err("x".into()), ..case() }), Ok(Start::Resume));
    }

    #[test]
    fn an_empty_or_unknown_folder_never_wipes_a_volume() {
        let unknown = MountState::default;
        refused(Case { state: unknown(), ..case() }, &["init=push", "init=pull"]);
        refused(Case { state: unknown(), empty: true, ..case() }, &["init=pull"]);
        refused(Case { empty: true, ..case() }, &["init=pull", "init=push"]);
        refused(Case { state: MountState { backing_identity: "bb".into(), ..known() }, ..case() }, &["init=push"]);
        assert_eq!(run(Case { empty: true, marked: true, ..case() }), Ok(Start::Resume));
    }

    #[test]
    fn new_and_empty_volumes_are_synced_to() {
        let state = MountState::default;
        let none = Described::default();
        assert_eq!(run(Case { state: state(), described: Ok(none.clone()), ..case() }), Ok(Start::FirstSync));
        let empty = Described { empty: true, ..described() };
        assert_eq!(run(Case { state: state(), described: Ok(empty), empty: true, ..case() }), Ok(Start::FirstSync));
        refused(Case { described: Ok(none.clone()), ..case() }, &["gone", "init=push"]);
        assert_eq!(run(Case { described: Ok(none), init: Some(Init::Push), ..case() }), Ok(Start::FirstSync));
    }

    #[test]
    fn other_replicas_and_other_writers_are_refused() {
        refused(
            Case { described: Ok(Described { replica_id: Uuid([9; 16]), ..described() }), ..case() },
            &["not the one"],
        );
        let taken = Described { holder_id: Uuid([9; 16]), holder: "them".into(), ..described() };
        refused(Case { described: Ok(taken), ..case() }, &["them", "taken over"]);
        assert_eq!(run(Case { init: Some(Init::Push), ..case() }), Ok(Start::Push));
    }

    #[test]
    fn pull_needs_something_to_pull() {
        assert_eq!(run(Case { init: Some(Init::Pull), empty: true, ..case() }), Ok(Start::Pull));
        refused(Case { init: Some(Init::Pull), described: Ok(Described::default()), ..case() }, &["nothing to pull"]);
        refused(Case { init: Some(Init::Pull), described: Err("no answer".into()), ..case() }, &["no answer"]);
    }
}
