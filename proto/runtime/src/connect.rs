//! gRPC connections to daemons: addresses as people write them, TLS or the local secret, Unix sockets.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Channel, Endpoint},
};

use crate::{
    gauge::Gauge,
    secret,
    tls::{ClientTls, Fingerprint, HANDSHAKE_TIMEOUT, Identity, OwnFiles, Trusting, Wire, identities, path_for},
    watched::Watched,
};

/// Flow-control window of one stream: a real round trip needs it (measured).
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// Flow-control window of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// HTTP/2 frame size asked for by the receiver of bulk data: the one setting that matters on loopback (measured).
pub const FRAME_BYTES: u32 = 64 << 10;

/// How soon a connection that swallows everything counts as lost, if nobody says otherwise.
pub const KEEPALIVE: Duration = Duration::from_secs(2);

/// Address of a storaged: `HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Plaintext is accepted although it is not on this machine: whoever is on the way reads, and changes, everything.
    pub insecure: bool,
    /// The identity to connect with; `None`: the one of this address, if it was joined.
    pub identity: Option<PathBuf>,
    /// Certificates of one's own, instead of an identity.
    pub own: Option<OwnFiles>,
}

/// How a storage daemon is reached.
#[derive(Debug)]
enum Route {
    Plain,
    Tls(ClientTls),
}

/// The address is another machine's that we did not join, and plaintext is for this one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} was not joined: run `tandem invite VOLUME` on the storage host, and here, as the same user, `tandem join {0} TOKEN`; plaintext is for \
     this machine only, unless `insecure` asks for it"
)]
pub struct NotAllowed(pub String);

/// Port that is meant when none is written.
pub const DEFAULT_PORT: u16 = 7440;

impl ServerAddress {
    /// Whether the host is this machine's loopback: the only place where plaintext is allowed.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// An address, with what is usual.
    pub fn new(host: impl Into<String>, port: u16) -> ServerAddress {
        ServerAddress { host: host.into(), port, insecure: false, identity: None, own: None }
    }

    /// The identity that would be used, if plaintext was not asked for.
    pub fn identity_path(&self) -> PathBuf {
        self.identity.clone().unwrap_or_else(|| path_for(&identities(), self))
    }

    /// The same, in plaintext with the local secret if that is this host's and we may read it: who runs a storage daemon may do more than
    /// the client that he is as well.
    pub fn as_local(&self) -> ServerAddress {
        let local =
            self.identity.is_none() && self.own.is_none() && self.is_loopback() && secret::read(self.port).is_some();
        ServerAddress { insecure: self.insecure || local, ..self.clone() }
    }

    fn is_plain(&self) -> bool {
        self.insecure
            || (self.identity.is_none() && self.own.is_none() && self.is_loopback() && !self.identity_path().exists())
    }

    /// How the connection is protected, for people.
    pub fn protection(&self) -> &'static str {
        match (self.is_plain(), self.is_loopback()) {
            (false, _) => "tls",
            (true, true) => "loopback",
            (true, false) => "plaintext",
        }
    }

    /// Refuses a connection that would go over a network in plaintext without being asked to.
    pub fn may_connect(&self) -> Result<(), NotAllowed> {
        let allowed = self.is_plain() || self.identity.is_some() || self.own.is_some() || self.identity_path().exists();
        if allowed { Ok(()) } else { Err(NotAllowed(self.to_string())) }
    }

    /// TLS where we have joined, plaintext on this machine or where it was asked for.
    fn route(&self) -> io::Result<Route> {
        if self.is_plain() {
            return Ok(Route::Plain);
        }
        if let Some(files) = &self.own {
            let own = Box::new(files.load().map_err(io::Error::other)?);
            let tls = ClientTls::new(Trusting::Own { own, host: self.host.clone() });
            return Ok(Route::Tls(tls.map_err(|error| io::Error::other(format!("certificates of our own: {error}")))?));
        }
        let path = self.identity_path();
        let identity = Identity::load(&path).map_err(io::Error::other)?;
        let identity = identity.ok_or_else(|| match &self.identity {
            Some(path) => io::Error::new(io::ErrorKind::NotFound, format!("there is no identity {}", path.display())),
            None => io::Error::other(NotAllowed(self.to_string())),
        })?;
        let tls = ClientTls::new(Trusting::Joined(Box::new(identity)));
        Ok(Route::Tls(tls.map_err(|error| io::Error::other(format!("the identity {}: {error}", path.display())))?))
    }

    /// Connects, with our windows. A connection that swallows everything for `keepalive` is given up; `None`: never.
    pub async fn connect(
        &self,
        connect_timeout: Duration,
        keepalive: Option<Duration>,
    ) -> Result<Channel, tonic::transport::Error> {
        self.connect_gauged(connect_timeout, keepalive, None).await
    }

    /// The same; what is sent is measured, and limited, by `gauge`.
    pub async fn connect_gauged(
        &self,
        connect_timeout: Duration,
        keepalive: Option<Duration>,
        gauge: Option<Arc<Gauge>>,
    ) -> Result<Channel, tonic::transport::Error> {
        let server = self.clone();
        // Looked at for each connection: an identity may have been renewed.
        self.connect_by(connect_timeout, keepalive, gauge, move || server.route()).await
    }

    /// Connects to a storage daemon that was not joined yet: its CA has this fingerprint, and we have no certificate.
    pub async fn connect_introduced(
        &self,
        connect_timeout: Duration,
        ca: Fingerprint,
    ) -> Result<Channel, tonic::transport::Error> {
        let route = move || ClientTls::new(Trusting::Introduced(ca)).map(Route::Tls).map_err(io::Error::other);
        self.connect_by(connect_timeout, Some(KEEPALIVE), None, route).await
    }

    async fn connect_by(
        &self,
        connect_timeout: Duration,
        keepalive: Option<Duration>,
        gauge: Option<Arc<Gauge>>,
        route: impl Fn() -> io::Result<Route> + Clone + Send + 'static,
    ) -> Result<Channel, tonic::transport::Error> {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let mut endpoint = Endpoint::from_shared(format!("http://{host}:{}", self.port))?
            .connect_timeout(connect_timeout.max(HANDSHAKE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            // Copies, clones and pulls are received here.
            .max_frame_size(FRAME_BYTES);
        if let Some(bound) = keepalive {
            let Heartbeat { interval, .. } = Heartbeat::within(bound);
            endpoint = endpoint
                .http2_keep_alive_interval(interval)
                .keep_alive_timeout(bound * LATE)
                .keep_alive_while_idle(true);
        }
        let (host, port) = (self.host.clone(), self.port);
        let connector = move |_| {
            let (host, route, gauge) = (host.clone(), route.clone(), gauge.clone());
            async move {
                let route = route()?;
                let stream = tokio::time::timeout(connect_timeout, open(&host, port));
                let stream = stream.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                let watched = Watched::new(stream, keepalive)?;
                let watched = match gauge {
                    Some(gauge) => watched.gauged(gauge),
                    None => watched,
                };
                Ok::<_, io::Error>(TokioIo::new(match route {
                    Route::Plain => Wire::Plain(watched),
                    Route::Tls(tls) => Wire::tls(tls.connect(watched).await?.into()),
                }))
            }
        };
        endpoint.connect_with_connector(tower::service_fn(connector)).await
    }

    /// Sends the local secret with every call, if plaintext is allowed there and there is one.
    pub fn credentials(&self) -> Credentials {
        let secret = if self.is_plain() { secret::read(self.port) } else { None };
        Credentials { secret: secret.and_then(|secret| secret.parse().ok()) }
    }
}

/// `localhost` is this machine whatever a name server says (RFC 6761), as plaintext and the local secret go there; and a bare machine
/// may know no names at all.
async fn open(host: &str, port: u16) -> io::Result<TcpStream> {
    if host == "localhost" {
        let here = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        return TcpStream::connect(here.as_slice()).await;
    }
    TcpStream::connect((host, port)).await
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("{text:?} is not an address ({why}): write HOST, HOST:PORT or [IPv6]:PORT"));
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, port)) => (host, port.strip_prefix(':').or(Some(""))),
                None => return bad("the bracket is not closed"),
            },
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => return bad("an IPv6 address needs brackets"),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() || host.contains('/') || host.chars().any(char::is_whitespace) {
            return bad("no host");
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return bad("the port is not a number from 1 to 65535"),
            },
        };
        Ok(ServerAddress::new(host, port))
    }
}

/// How many times the keepalive an answer to a ping may come late, behind data: [`Watched`] finds out what is dead.
pub const LATE: u32 = 15;

/// When HTTP/2 asks whether the other side is there, and how long it waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// After so long without anything read.
    pub interval: Duration,
    /// Nothing at all for so long after that: gone.
    pub timeout: Duration,
}

impl Heartbeat {
    /// One that notices within `bound`, with some time left for being noticed.
    pub fn within(bound: Duration) -> Heartbeat {
        Heartbeat { interval: bound * 2 / 5, timeout: bound * 9 / 20 }
    }
}

/// Bytes that wait in the kernel to be sent at most. Questions and their answers queue behind them, so on a slow link more would look
/// like a dead one: autotuning takes up to 4 MiB, which are 4 s at 1 MB/s.
const UNSENT_MAX_BYTES: libc::c_int = 256 << 10;

/// Prepares a connected TCP socket of either side. `keepalive`: after so long without an acknowledgement of the other kernel it is broken.
pub fn prepare_socket(socket: BorrowedFd<'_>, keepalive: Option<Duration>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_NODELAY, 1)?;
    set_tcp(socket, libc::TCP_NOTSENT_LOWAT, UNSENT_MAX_BYTES)?;
    let bound = keepalive.map_or(0, |bound| bound.as_millis());
    set_tcp(socket, libc::TCP_USER_TIMEOUT, libc::c_int::try_from(bound).unwrap_or(0))
}

fn set_tcp(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is a live c_int, and its length is given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Adds the local secret to calls. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    secret: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(secret) = &self.secret {
            request.metadata_mut().insert(secret::METADATA_KEY, secret.clone());
        }
        Ok(request)
    }
}

/// Connects to a daemon's Unix socket.
pub async fn unix(path: PathBuf, timeout: Duration) -> Result<Channel, tonic::transport::Error> {
    // The URI is required by HTTP/2 and not used: the connector knows the path.
    Endpoint::from_static("http://localhost")
        .connect_timeout(timeout)
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        }))
        .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Heartbeat, ServerAddress};

    #[test]
    fn a_heartbeat_notices_before_its_bound_is_over() {
        let bound = Duration::from_secs(2);
        let Heartbeat { interval, timeout } = Heartbeat::within(bound);
        assert!(interval + timeout < bound && interval + timeout > bound / 2);
    }

    #[test]
    fn addresses_as_people_write_them() {
        let parse = |text: &str| text.parse::<ServerAddress>();
        assert_eq!(parse("localhost").expect("host").to_string(), "localhost:7440");
        assert_eq!(parse("[::1]:99").expect("IPv6").to_string(), "[::1]:99");
        assert!(parse("[::1]").expect("IPv6").is_loopback());
        let mut far = parse("10.0.0.1:7440").expect("IPv4");
        assert!(far.may_connect().is_err());
        far.insecure = true;
        assert!(far.may_connect().is_ok());
        for bad in ["", ":7440", "a:0", "a:x", "::1", "a:70000", "[::1", "a b"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
