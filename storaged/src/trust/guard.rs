//! The guard: looks at each call before any service does. Who calls? May that one use this method at all? Not too often?
//!
//! What is not in its table is for holders of the local secret only: a method that somebody adds is closed until it is listed here, where
//! its service checks the volume.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use http::{Request, Response};
use parking_lot::Mutex;
use tandem_runtime::secret;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    bucket::Bucket,
    caller::{Caller, Opened, Opening},
    door::Peer,
};

/// Joins of everybody together, at once and each second: signing costs time, and a token is not guessed anyway.
const JOINS: (u32, u32) = (50, 10);

/// Who may use a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// Also who has no certificate yet.
    Anybody,
    /// Clients; the service looks at the volume.
    Clients,
    /// Clients, and without the secret whoever reaches the port on this machine: nothing in it is about volumes.
    Open,
    /// Clients, and whoever has a ticket, which the service looks at.
    Tickets,
    /// Holders of the local secret.
    Local,
}

fn method(path: &str) -> For {
    match path {
        "/tandem.v1.Trust/Join" => For::Anybody,
        "/tandem.v1.Copies/Send" => For::Tickets,
        "/tandem.v1.Replication/Describe"
        | "/tandem.v1.Replication/Replicate"
        | "/tandem.v1.Replication/Pull"
        | "/tandem.v1.Admin/Status"
        | "/tandem.v1.Admin/Watch"
        | "/tandem.v1.Archive/History"
        | "/tandem.v1.Archive/Kept"
        | "/tandem.v1.Archive/Fetch"
        | "/tandem.v1.Archive/Tree"
        | "/tandem.v1.Archive/Read"
        | "/tandem.v1.Copies/Put"
        | "/tandem.v1.Copies/Bring"
        | "/tandem.v1.Copies/Permit"
        | "/tandem.v1.Trust/Renew"
        | "/tandem.v1.Trust/Invite"
        | "/tandem.v1.Trust/Grant"
        | "/tandem.v1.Trust/Clients"
        | "/tandem.v1.Trust/Revoke" => For::Clients,
        path if path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.") => For::Open,
        _ => For::Local,
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    secret: Arc<str>,
    joins: Arc<Mutex<Bucket>>,
    /// Of those who have shown nothing.
    strangers: Opened,
}

impl Guard {
    /// That knows the local secret.
    pub fn new(secret: String) -> Guard {
        Guard {
            secret: Arc::from(secret),
            joins: Arc::new(Mutex::new(Bucket::new(JOINS.0, JOINS.1))),
            strangers: Opened::default(),
        }
    }

    fn admit<B>(&self, request: &Request<B>) -> Result<Caller, Status> {
        let wanted = method(request.uri().path());
        match request.extensions().get::<Peer>() {
            Some(Peer::Client(member)) => match wanted {
                For::Local => Err(Status::permission_denied(
                    "this is for who runs the storage daemon: do it on the storage host, as the user that runs tandem-storaged",
                )),
                _ if !member.may_call(Instant::now()) => {
                    Err(Status::resource_exhausted(format!("{} calls too often: wait a moment", member.name)))
                }
                _ => Ok(Caller::Client(member.clone())),
            },
            Some(Peer::Plain(proof)) => {
                let caller = self.admit_plain(request, wanted)?;
                if caller.is_local() {
                    proof.give();
                }
                Ok(caller)
            }
            Some(Peer::Unknown) if matches!(wanted, For::Anybody | For::Tickets) => {
                if self.joins.lock().take(Instant::now()) {
                    return Ok(Caller::Stranger);
                }
                Err(Status::resource_exhausted("too many join at the same time: try again in a moment"))
            }
            Some(Peer::Unknown) => Err(Status::unauthenticated(
                "this storage daemon does not know your certificate: it was revoked, or there was none; join with a new token",
            )),
            Some(Peer::Crowding) => Err(Status::resource_exhausted("this client has too many connections: close some")),
            Some(Peer::Unprotected) => Err(Status::unauthenticated(
                "plaintext is accepted on the storage host itself only: join with a token, and connect with TLS",
            )),
            None => Err(Status::unauthenticated("nobody knows where this call comes from")),
        }
    }

    /// The place of a call until its first message is there. Who has the local secret needs none.
    fn open(&self, caller: &Caller) -> Result<Option<Opening>, Status> {
        let opening = match caller {
            Caller::Local => return Ok(None),
            Caller::Client(member) => member.opens(),
            Caller::Stranger => self.strangers.one_more(),
        };
        let refused = || Status::resource_exhausted("too many calls have begun and said nothing yet: wait a moment");
        opening.map(Some).ok_or_else(refused)
    }

    fn admit_plain<B>(&self, request: &Request<B>, wanted: For) -> Result<Caller, Status> {
        let sent = request.headers().get(secret::METADATA_KEY).and_then(|value| value.to_str().ok());
        if sent.is_some_and(|sent| secret::equal(sent, &self.secret)) {
            return Ok(Caller::Local);
        }
        if matches!(wanted, For::Open | For::Tickets) {
            return Ok(Caller::Stranger);
        }
        Err(Status::unauthenticated(
            "the local secret is missing or wrong: run as the user that runs tandem-storaged, with the same runtime directory \
             ($TANDEM_RUNTIME_DIR); or join with a token",
        ))
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

/// Services behind the guard.
#[derive(Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let admitted = self.guard.admit(&request).and_then(|caller| Ok((self.guard.open(&caller)?, caller)));
        match admitted {
            Ok((opening, caller)) => {
                opening.map(|opening| request.extensions_mut().insert(opening));
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Err(status) => {
                let response = status.into_http();
                Box::pin(async move { Ok(response) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use http::Request;
    use tandem_runtime::secret::METADATA_KEY;
    use tonic::Code;

    use super::{Caller, For, Guard, Peer, method};
    use crate::trust::{caller::Member, door::Proof};

    fn request(path: &str, peer: Option<Peer>, secret: Option<&str>) -> Request<()> {
        let mut request = Request::builder().uri(format!("http://x{path}"));
        if let Some(secret) = secret {
            request = request.header(METADATA_KEY, secret);
        }
        let mut request = request.body(()).expect("a request");
        peer.map(|peer| request.extensions_mut().insert(peer));
        request
    }

    #[test]
    fn each_peer_gets_what_is_for_it_and_a_typed_refusal_for_the_rest() {
        let guard = Guard::new("right".into());
        let client = || Peer::Client(Arc::new(Member::new("me".into(), false, BTreeMap::new())));
        let (status, join, health, unknown) = (
            "/tandem.v1.Admin/Status",
            "/tandem.v1.Trust/Join",
            "/grpc.health.v1.Health/Check",
            "/tandem.v1.New/Thing",
        );
        let plain = || Peer::Plain(Proof::default());
        let code = |path, peer, secret| guard.admit(&request(path, peer, secret)).err().map(|status| status.code());
        assert!(matches!(guard.admit(&request(unknown, Some(plain()), Some("right"))), Ok(Caller::Local)));
        assert_eq!(code(status, Some(plain()), Some("wrong")), Some(Code::Unauthenticated));
        assert_eq!(code(health, Some(plain()), None), None);
        assert_eq!(code(join, Some(plain()), None), Some(Code::Unauthenticated));
        assert_eq!(code(status, Some(client()), None), None);
        assert_eq!(code(unknown, Some(client()), Some("right")), Some(Code::PermissionDenied));
        assert_eq!(code(join, Some(Peer::Unknown), None), None);
        for path in [status, health, unknown] {
            assert_eq!(code(path, Some(Peer::Unknown), Some("right")), Some(Code::Unauthenticated));
            assert_eq!(code(path, Some(Peer::Unprotected), Some("right")), Some(Code::Unauthenticated));
            assert_eq!(code(path, Some(Peer::Crowding), Some("right")), Some(Code::ResourceExhausted));
            assert_eq!(code(path, None, Some("right")), Some(Code::Unauthenticated));
        }
        assert_eq!(method("/tandem.v1.Trust/Join/"), For::Local);
    }

    #[test]
    fn a_client_that_calls_without_end_is_refused_before_any_work() {
        let guard = Guard::new("right".into());
        let peer = Peer::Client(Arc::new(Member::new("me".into(), false, BTreeMap::new())));
        let call = || guard.admit(&request("/tandem.v1.Admin/Status", Some(peer.clone()), None));
        let refused = (0..2000).filter_map(|_| call().err()).next().expect("a bound");
        assert_eq!(refused.code(), Code::ResourceExhausted);
    }
}
