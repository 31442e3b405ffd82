//! Who calls, and what that one may do.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tandem_proto::{pb, volume::VolumeName};
use tokio::sync::watch;
use tonic::Status;

use super::bucket::Bucket;
use crate::ingest::refusal::{Reason, Refusal};

/// Calls of one client at once, and then each second. A mount makes a few when it starts; bulk is one call.
const CALLS: (u32, u32) = (500, 100);
/// Connections of one client at once. A mount has one, and some for a moment.
pub const CONNECTIONS_MAX: u32 = 64;

/// Calls of one client whose first message is still on its way. Until it is there it may be as long as a message may be, and nothing else
/// bounds how many bytes wait.
pub const OPENING_MAX: u32 = 32;

/// What a client may do with a volume. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See it and copy it.
    Reader,
    /// Mount it.
    Writer,
    /// Invite and revoke for it.
    Admin,
}

impl Role {
    /// From the wire.
    pub fn of(role: i32) -> Option<Role> {
        match pb::Role::try_from(role) {
            Ok(pb::Role::Reader) => Some(Role::Reader),
            Ok(pb::Role::Writer) => Some(Role::Writer),
            Ok(pb::Role::Admin) => Some(Role::Admin),
            _ => None,
        }
    }

    /// To the wire.
    pub fn wire(self) -> pb::Role {
        match self {
            Role::Reader => pb::Role::Reader,
            Role::Writer => pb::Role::Writer,
            Role::Admin => pb::Role::Admin,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Reader => "reader",
            Role::Writer => "writer",
            Role::Admin => "admin",
        })
    }
}

/// A client that joined, as its connections and calls see it.
#[derive(Debug)]
pub struct Member {
    /// What it is called here.
    pub name: String,
    /// Another authority vouches for the name.
    pub named: bool,
    grants: RwLock<BTreeMap<VolumeName, Role>>,
    /// Counted up to cut all its connections.
    cut: watch::Sender<u64>,
    connections: AtomicU32,
    seen_s: AtomicI64,
    refused: AtomicU64,
    calls: Mutex<Bucket>,
    opened: Opened,
}

/// One connection of a client, counted while it lives.
#[derive(Debug)]
pub struct Counted(Arc<Member>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts calls whose first message is still on its way.
#[derive(Clone, Debug, Default)]
pub struct Opened(Arc<AtomicU32>);

/// One such call, until the last of its clones is dropped. It is among the extensions of the request; who takes the request apart to wait for the
/// first message of a stream keeps a clone until it is there.
#[derive(Clone, Debug)]
pub struct Opening {
    _place: Arc<Place>,
}

#[derive(Debug)]
struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Opened {
    /// One more, unless there are too many.
    pub fn one_more(&self) -> Option<Opening> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let opening = Opening { _place: Arc::new(Place(self.0.clone())) };
        (before < OPENING_MAX).then_some(opening)
    }
}

impl Opening {
    /// That of a request, if it has one.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Opening> {
        request.extensions().get::<Opening>().cloned()
    }
}

impl Member {
    /// With these roles.
    pub fn new(name: String, named: bool, grants: BTreeMap<VolumeName, Role>) -> Member {
        Member {
            name,
            named,
            grants: RwLock::new(grants),
            cut: watch::Sender::new(0),
            connections: AtomicU32::new(0),
            seen_s: AtomicI64::new(0),
            refused: AtomicU64::new(0),
            calls: Mutex::new(Bucket::new(CALLS.0, CALLS.1)),
            opened: Opened::default(),
        }
    }

    /// Its role for a volume.
    pub fn role(&self, volume: &VolumeName) -> Option<Role> {
        self.grants.read().get(volume).copied()
    }

    /// The volumes of which it is an administrator.
    pub fn administers(&self) -> Vec<VolumeName> {
        self.grants.read().iter().filter(|(_, role)| **role == Role::Admin).map(|(name, _)| name.clone()).collect()
    }

    /// Replaces its roles; with `cut` its connections end, so that nothing goes on under an old one. How many there were.
    pub fn set_grants(&self, grants: BTreeMap<VolumeName, Role>, cut: bool) -> u32 {
        *self.grants.write() = grants;
        if cut {
            self.cut.send_modify(|cuts| *cuts += 1);
        }
        self.connections()
    }

    /// Counts a connection, unless there are too many.
    pub fn connected(self: &Arc<Self>, now_s: i64) -> Option<(Counted, watch::Receiver<u64>)> {
        // Subscribed first: a cut between this and the look at the roles must be seen.
        let cut = self.cut.subscribe();
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self.clone());
        if before >= CONNECTIONS_MAX {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.seen_s.store(now_s, Ordering::Relaxed);
        Some((counted, cut))
    }

    /// Open connections.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// When it last connected; 0: not since storaged started.
    pub fn seen_s(&self) -> i64 {
        self.seen_s.load(Ordering::Relaxed)
    }

    /// What its limits refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// One more call begins; `None`: too many have begun and said nothing yet.
    pub fn opens(&self) -> Option<Opening> {
        let opening = self.opened.one_more();
        if opening.is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        opening
    }

    /// May it make one more call now?
    pub fn may_call(&self, now: Instant) -> bool {
        let may = self.calls.lock().take(now);
        if !may {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        may
    }
}

/// Who makes a call.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Has the local secret: may do everything.
    Local,
    /// A client with a certificate.
    Client(Arc<Member>),
    /// Nobody whom we know.
    Stranger,
}

/// The caller may not do it. The same words whether there is such a volume or not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{who} has no role for volume {volume} that allows this ({needed} or more): ask whoever administers it for `tandem invite {volume} --role {needed}`"
)]
pub struct Denied {
    who: String,
    volume: VolumeName,
    needed: Role,
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Status {
        Status::permission_denied(denied.to_string())
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Refusal {
        Refusal::new(Reason::Forbidden, denied.to_string())
    }
}

impl Caller {
    /// As the guard found; without a guard nobody is known.
    pub fn of<T>(request: &tonic::Request<T>) -> Caller {
        request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Stranger)
    }

    /// Lets it pass, or says why not. Before the volume is looked up.
    pub fn may(&self, volume: &VolumeName, needed: Role) -> Result<(), Denied> {
        let who = match self {
            Caller::Local => return Ok(()),
            Caller::Client(member) if member.role(volume).is_some_and(|role| role >= needed) => return Ok(()),
            Caller::Client(member) => member.name.clone(),
            Caller::Stranger => "a client without a certificate".to_owned(),
        };
        Err(Denied { who, volume: volume.clone(), needed })
    }

    /// Whether it may know of a volume.
    pub fn sees(&self, volume: &VolumeName) -> bool {
        self.may(volume, Role::Reader).is_ok()
    }

    /// Whether it has the local secret.
    pub fn is_local(&self) -> bool {
        matches!(self, Caller::Local)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::{CONNECTIONS_MAX, Caller, Member, OPENING_MAX, Role};

    fn member(grants: &[(&str, Role)]) -> Arc<Member> {
        let grants: BTreeMap<_, _> = grants.iter().map(|(name, role)| (name.parse().expect("a name"), *role)).collect();
        Arc::new(Member::new("me@here".into(), false, grants))
    }

    #[test]
    fn a_client_may_what_its_role_says_and_hears_the_same_of_what_is_there_and_what_is_not() {
        let caller = Caller::Client(member(&[("mine", Role::Writer), ("seen", Role::Reader)]));
        let may = |volume: &str, role| caller.may(&volume.parse().expect("a name"), role);
        assert!(may("mine", Role::Reader).is_ok() && may("mine", Role::Writer).is_ok());
        assert!(may("mine", Role::Admin).is_err() && may("seen", Role::Writer).is_err());
        let denied = may("other", Role::Reader).expect_err("not its volume").to_string();
        assert!(denied.contains("me@here") && denied.contains("other"), "{denied}");
        assert!(Caller::Stranger.may(&"mine".parse().expect("a name"), Role::Reader).is_err());
    }

    #[test]
    fn calls_that_have_said_nothing_are_bounded_and_one_that_has_gives_its_place_back() {
        let member = member(&[]);
        let mut open: Vec<_> = (0..OPENING_MAX).map(|_| member.opens().expect("within the bound")).collect();
        let kept = open.last().cloned();
        assert!(member.opens().is_none());
        open.pop();
        assert!(member.opens().is_none(), "a clone keeps the place");
        drop(kept);
        assert!(member.opens().is_some());
        assert_eq!(member.refused(), 2);
    }

    #[test]
    fn connections_beyond_the_bound_are_refused_and_counted() {
        let member = member(&[]);
        let open: Vec<_> = (0..CONNECTIONS_MAX).map(|_| member.connected(1).expect("within the bound")).collect();
        assert!(member.connected(2).is_none());
        assert_eq!((member.connections(), member.refused()), (CONNECTIONS_MAX, 1));
        drop(open);
        assert_eq!(member.connections(), 0);
        assert!(member.connected(3).is_some());
    }
}
