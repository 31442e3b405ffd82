//! The door: every connection comes in here, and is brought to the house or to the porch.
//!
//! ```text
//!  accept ─► too many? the next one that leaves makes room; if none does, dropped
//!         ─► first byte: TLS ─► handshake ─┬─ certificate of a client that we know ─► house (cut when it is revoked)
//!                                          └─ no certificate, or one that was revoked ─► porch
//!                        other ─► loopback, or --insecure: house, among few until it has shown the local secret;   else porch, which says why
//! ```
//! No peer is waited for on behalf of another: each connection shakes hands in a task of its own. Where those are too many, the oldest that has
//! not finished goes, so that a crowd of silent ones keeps nobody out. Who has to go is still there until its task had its turn, so other tasks
//! have theirs after each connection that is accepted, and where no place is left the next one waits for it.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tandem_runtime::{
    tls::{Fingerprint, HANDSHAKE_TIMEOUT, Wire, now_s},
    watched::Watched,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use super::{
    caller::{Counted, Member},
    own::Foreign,
    registry::Registry,
};

/// Connections at the same time. Each costs a descriptor and some tens of KiB.
const CONNECTIONS_MAX: usize = 4096;
/// Handshakes at the same time.
const SHAKING_MAX: usize = 512;
/// Connections at the porch.
const PORCH_MAX: usize = 128;
/// Connections without TLS of which nobody has shown the local secret yet. Who has it shows it with the first call.
const UNPROVEN_MAX: usize = 256;
/// How long one may stay at the porch: long enough for a join over a bad link.
const PORCH_STAY: Duration = Duration::from_secs(30);
/// Connections that wait to be served.
const READY_MAX: usize = 64;
/// How long one that was accepted waits for the place of another. Where all are of clients that stay, the others wait in the system's queue.
const PLACE_WITHIN: Duration = Duration::from_secs(1);
/// Pause when the system has no descriptor for one more connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Bytes that are read of one connection before the worker looks after others: its buffers may hold some MiB.
const TURN_BYTES: usize = 256 << 10;
/// First byte of a TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// Who is at the other end, as far as the connection tells.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Plaintext where that is allowed: the local secret has to prove the rest.
    Plain(Proof),
    /// A client whose certificate we know.
    Client(Arc<Member>),
    /// TLS without a certificate that we know.
    Unknown,
    /// TLS of a client that has too many connections.
    Crowding,
    /// Plaintext where that is not allowed.
    Unprotected,
}

/// Whether a connection has shown the local secret. Until then it has its place among few, as a stranger has.
#[derive(Clone, Debug, Default)]
pub struct Proof(Arc<AtomicBool>);

impl Proof {
    /// It has.
    pub fn give(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bounds a crowd: each that enters beyond the bound makes the oldest leave.
#[derive(Debug)]
struct Crowd {
    inside: Mutex<VecDeque<oneshot::Sender<()>>>,
    max: usize,
}

impl Crowd {
    fn new(max: usize) -> Crowd {
        Crowd { inside: Mutex::new(VecDeque::new()), max }
    }

    /// What it returns ends when its place is needed.
    fn enter(&self) -> oneshot::Receiver<()> {
        let (place, leave) = oneshot::channel();
        let mut inside = self.inside.lock();
        if inside.len() >= self.max {
            inside.retain(|other| !other.is_closed());
        }
        if inside.len() >= self.max {
            inside.pop_front();
        }
        inside.push_back(place);
        leave
    }
}

/// A connection that is served.
pub struct Guest {
    wire: Wire,
    peer: Peer,
    /// Bytes that were read since others had their turn.
    turn: usize,
    /// Ends the connection.
    leave: Pin<Box<dyn Future<Output = ()> + Send>>,
    _counted: (Place, Option<Counted>),
}

/// One of [`CONNECTIONS_MAX`].
type Place = OwnedSemaphorePermit;

/// Those that are free.
struct Places(Arc<Semaphore>);

impl Places {
    fn new(max: usize) -> Places {
        Places(Arc::new(Semaphore::new(max)))
    }

    /// The next one, if there is one within [`PLACE_WITHIN`].
    async fn take(&self) -> Option<Place> {
        tokio::time::timeout(PLACE_WITHIN, self.0.clone().acquire_owned()).await.ok()?.ok()
    }
}

/// See the module.
pub struct Door {
    registry: Arc<Registry>,
    tls: RwLock<Tls>,
    insecure: bool,
    keepalive: Option<Duration>,
    places: Places,
    shaking: Crowd,
    porch: Crowd,
    unproven: Crowd,
    to_house: mpsc::Sender<io::Result<Guest>>,
    to_porch: mpsc::Sender<io::Result<Guest>>,
}

/// How handshakes are answered.
#[derive(Clone)]
pub struct Tls {
    /// What is shown, and what is asked for.
    pub config: Arc<rustls::ServerConfig>,
    /// Names clients whose certificates are not ours.
    pub foreign: Arc<Foreign>,
}

/// Where connections come out.
pub struct Rooms {
    /// Of clients, and of this machine.
    pub house: mpsc::Receiver<io::Result<Guest>>,
    /// Of everybody else.
    pub porch: mpsc::Receiver<io::Result<Guest>>,
}

impl Door {
    /// With the way to answer handshakes.
    pub fn new(registry: Arc<Registry>, tls: Tls, insecure: bool, keepalive: Option<Duration>) -> (Arc<Door>, Rooms) {
        let ((to_house, house), (to_porch, porch)) = (mpsc::channel(READY_MAX), mpsc::channel(READY_MAX));
        let door = Door {
            registry,
            tls: RwLock::new(tls),
            insecure,
            keepalive,
            places: Places::new(CONNECTIONS_MAX),
            shaking: Crowd::new(SHAKING_MAX),
            porch: Crowd::new(PORCH_MAX),
            unproven: Crowd::new(UNPROVEN_MAX),
            to_house,
            to_porch,
        };
        (Arc::new(door), Rooms { house, porch })
    }

    /// Answers connections from now on with other certificates. Those that are open go on.
    pub fn answer_with(&self, tls: Tls) {
        *self.tls.write() = tls;
    }

    /// Lets in who comes, until it is dropped.
    pub async fn stand(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer was gone already.
                    tracing::debug!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            // Before its place, which may be that of the oldest.
            let leave = self.shaking.enter();
            let Some(place) = self.places.take().await else {
                tracing::debug!(%from, CONNECTIONS_MAX, "a connection was sent away: there are as many as may be");
                continue;
            };
            let door = self.clone();
            tokio::spawn(async move {
                let receiving = tokio::time::timeout(HANDSHAKE_TIMEOUT, door.receive(stream, from, place));
                tokio::select! {
                    received = receiving => match received {
                        Ok(Ok(guest)) => door.show_in(guest).await,
                        Ok(Err(error)) => tracing::debug!(%from, %error, "a connection was refused"),
                        Err(_) => tracing::debug!(%from, "a connection did not finish its handshake in time"),
                    },
                    _ = leave => tracing::debug!(%from, "a connection that had not finished its handshake gave way"),
                }
            });
            tokio::task::yield_now().await;
        }
    }

    async fn show_in(&self, guest: Guest) {
        let room = match guest.peer {
            Peer::Plain(_) | Peer::Client(_) => &self.to_house,
            Peer::Unknown | Peer::Crowding | Peer::Unprotected => &self.to_porch,
        };
        // Nobody serves any more: the daemon stops.
        let _ = room.send(Ok(guest)).await;
    }

    async fn receive(&self, stream: TcpStream, from: SocketAddr, place: Place) -> io::Result<Guest> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let here = is_loopback(&from) && is_loopback(&stream.local_addr()?);
        let watched = Watched::new(stream, self.keepalive)?;
        if first[0] != TLS_HANDSHAKE {
            let may = here || self.insecure;
            let peer = if may { Peer::Plain(Proof::default()) } else { Peer::Unprotected };
            return Ok(self.guest(Wire::Plain(watched), peer, None, place));
        }
        let answer = self.tls.read().clone();
        let tls = TlsAcceptor::from(answer.config).accept(watched).await?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let joined = chain.first().and_then(|certificate| self.registry.find(&Fingerprint::of(certificate)));
        let named = || answer.foreign.name_of(chain).and_then(|name| self.registry.find_named(&name));
        let member = joined.or_else(named);
        let wire = Wire::tls(tls.into());
        let Some(member) = member else { return Ok(self.guest(wire, Peer::Unknown, None, place)) };
        match member.connected(now_s()) {
            None => Ok(self.guest(wire, Peer::Crowding, None, place)),
            Some((counted, mut cut)) => {
                let mut guest = self.guest(wire, Peer::Client(member), Some(counted), place);
                guest.leave = Box::pin(async move {
                    let _ = cut.changed().await;
                });
                Ok(guest)
            }
        }
    }

    /// With the leave of its room.
    fn guest(&self, wire: Wire, peer: Peer, counted: Option<Counted>, place: Place) -> Guest {
        let leave: Pin<Box<dyn Future<Output = ()> + Send>> = match &peer {
            Peer::Client(_) => Box::pin(std::future::pending()),
            Peer::Plain(proof) => {
                let (leave, proof) = (self.unproven.enter(), proof.clone());
                Box::pin(async move {
                    let _ = leave.await;
                    if proof.is_given() {
                        std::future::pending::<()>().await;
                    }
                })
            }
            Peer::Unknown | Peer::Crowding | Peer::Unprotected => {
                let leave = self.porch.enter();
                Box::pin(async move {
                    let _ = tokio::time::timeout(PORCH_STAY, leave).await;
                })
            }
        };
        Guest { wire, peer, turn: 0, leave, _counted: (place, counted) }
    }
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

impl Guest {
    fn must_leave(&mut self, cx: &mut Context<'_>) -> bool {
        let leaves = self.leave.as_mut().poll(cx).is_ready();
        if leaves {
            // Polled again by whoever looks next.
            self.leave = Box::pin(std::future::ready(()));
        }
        leaves
    }
}

fn sent_away<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the storage daemon ended this connection")))
}

impl AsyncRead for Guest {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.must_leave(cx) {
            return sent_away();
        }
        if this.turn >= TURN_BYTES {
            // Others have their turn.
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.wire).poll_read(cx, buffer);
        this.turn = if read.is_ready() { this.turn + buffer.filled().len() - before } else { 0 };
        read
    }
}

impl AsyncWrite for Guest {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.must_leave(cx) {
            return sent_away();
        }
        Pin::new(&mut this.wire).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.must_leave(cx) {
            return sent_away();
        }
        Pin::new(&mut this.wire).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }
}

impl Connected for Guest {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Crowd, PLACE_WITHIN, Places};

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_has_that_of_the_next_one_that_leaves() {
        let places = Places::new(2);
        let (first, _second) = (places.take().await.expect("free"), places.take().await);
        let leaves = async {
            tokio::time::sleep(PLACE_WITHIN / 20).await;
            drop(first);
        };
        let (third, ()) = tokio::join!(places.take(), leaves);
        assert!(third.is_some());
        let waited = std::time::Instant::now();
        assert!(places.take().await.is_none(), "both stay");
        assert!(waited.elapsed() >= PLACE_WITHIN - Duration::from_millis(50));
    }

    #[test]
    fn in_a_crowd_the_oldest_that_is_still_there_gives_way() {
        let crowd = Crowd::new(3);
        let mut first = crowd.enter();
        drop(crowd.enter());
        let mut third = crowd.enter();
        let mut fourth = crowd.enter();
        // The second had left by itself.
        assert!(first.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
        let mut fifth = crowd.enter();
        assert!(first.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Closed));
        for other in [&mut third, &mut fourth, &mut fifth] {
            assert!(other.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
        }
    }
}
