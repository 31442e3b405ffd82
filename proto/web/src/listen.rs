//! Where a daemon's page is: a loopback port by default, another address with a token, or nowhere.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use tokio::net::TcpListener;

/// Ports that are tried one after the other where none was asked for.
const PORTS_TRIED: u16 = 20;

/// What was asked for: `off`, `ADDR:PORT`, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Listen {
    /// On loopback, on the daemon's own port or one near it.
    #[default]
    Default,
    /// Nowhere.
    Off,
    /// Here, or the daemon does not start.
    At(SocketAddr),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Default => Ok(()),
            Listen::Off => f.write_str("off"),
            Listen::At(address) => address.fmt(f),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if text == "off" {
            return Ok(Listen::Off);
        }
        let address = text.replace("localhost:", "127.0.0.1:").parse();
        address.map(Listen::At).map_err(|_| format!("web={text}: write ADDR:PORT, for example 127.0.0.1:7450, or off"))
    }
}

/// The page cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address that was asked for cannot be had.
    #[error("cannot listen on {address} for the page: {source}; choose another with web=ADDR:PORT, or web=off")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The token could not be written.
    #[error("cannot write the page's token {path}: {source}")]
    Token {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listening {
    /// Where.
    pub address: SocketAddr,
    pub(crate) listener: TcpListener,
    pub(crate) token: String,
}

impl Listening {
    /// Where people find it.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Opens the socket. Needs a tokio context. `first`: the port that is tried first where none was asked for; 0: any. The token is
    /// kept in `runtime`, and made if there is none.
    pub fn open(asked: Listen, first: u16, runtime: &Path) -> Result<Option<Listening>, ListenError> {
        let listening = match asked {
            Listen::Off => return Ok(None),
            Listen::Default => near(first),
            Listen::At(address) => {
                bind(address).map_err(|source| ListenError::Address { address, source }).map(Some)?
            }
        };
        let Some((address, listener)) = listening else { return Ok(None) };
        let token = token(&runtime.join(format!("web-{}.token", address.port())))?;
        Ok(Some(Listening { address, listener, token }))
    }
}

fn near(first: u16) -> Option<(SocketAddr, TcpListener)> {
    let ports = if first == 0 { 0..0 } else { first..first.saturating_add(PORTS_TRIED) };
    let found = ports.chain([0]).find_map(|port| bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok());
    if found.is_none() {
        tracing::info!("no port on loopback for the page");
    }
    found
}

fn bind(address: SocketAddr) -> io::Result<(SocketAddr, TcpListener)> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok((listener.local_addr()?, TcpListener::from_std(listener)?))
}

/// The token in a file that only this user can read; made if there is none.
fn token(path: &Path) -> Result<String, ListenError> {
    let failed = |source| ListenError::Token { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(token) if token.trim().len() >= 32 => return Ok(token.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(|error| failed(io::Error::other(error.to_string())))?;
    let token = tandem_proto::ids::hex(&random);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| writeln!(file, "{token}")).map_err(failed)?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::{Listen, token};

    #[test]
    fn an_address_or_off_is_asked_for() {
        assert_eq!("off".parse(), Ok(Listen::Off));
        assert!(matches!("localhost:7450".parse(), Ok(Listen::At(address)) if address.ip().is_loopback()));
        assert!("7450".parse::<Listen>().expect_err("no address").contains("off"));
    }

    #[test]
    fn a_token_is_made_once_and_is_private() {
        let dir = tempfile();
        let path = dir.join("token");
        let made = token(&path).expect("made");
        assert_eq!(token(&path).expect("read"), made);
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).expect("there"));
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_dir_all(dir).expect("ours");
    }

    fn tempfile() -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("tandem-web-token-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("writable");
        dir
    }
}
