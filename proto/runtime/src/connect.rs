//! gRPC connections to daemons: addresses as people write them, the local secret, Unix sockets.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use hyper_util::rt::TokioIo;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Channel, Endpoint},
};

use crate::secret;

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
}

/// Port that is meant when none is written.
pub const DEFAULT_PORT: u16 = 7440;

impl ServerAddress {
    /// Whether the host is this machine's loopback: the only place where plaintext is allowed.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// An endpoint with our windows, keepalive and `connect_timeout`.
    pub fn endpoint(&self, connect_timeout: Duration) -> Result<Endpoint, tonic::transport::Error> {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        Ok(Endpoint::from_shared(format!("http://{host}:{}", self.port))?
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(1))
            .keep_alive_while_idle(true))
    }

    /// Sends the local secret with every call, if this is a loopback address and there is one.
    pub fn credentials(&self) -> Credentials {
        let secret = if self.is_loopback() { secret::read(self.port) } else { None };
        Credentials { secret: secret.and_then(|secret| secret.parse().ok()) }
    }
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
        Ok(ServerAddress { host: host.to_owned(), port })
    }
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
    use super::ServerAddress;

    #[test]
    fn addresses_as_people_write_them() {
        let parse = |text: &str| text.parse::<ServerAddress>();
        assert_eq!(parse("localhost").expect("host").to_string(), "localhost:7440");
        assert_eq!(parse("[::1]:99").expect("IPv6").to_string(), "[::1]:99");
        assert!(parse("[::1]").expect("IPv6").is_loopback());
        assert!(!parse("10.0.0.1:7440").expect("IPv4").is_loopback());
        for bad in ["", ":7440", "a:0", "a:x", "::1", "a:70000", "[::1", "a b"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
