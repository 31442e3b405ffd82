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
    /// Whether the activity log holds a mark for the root (then names in it may have been removed through the mount).
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
pub fn decide(_facts: &StartFacts<'_>) -> Result<Start, StartRefused> {
    Ok(Start::FirstSync)
}
