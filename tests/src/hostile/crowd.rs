//! Connections that are opened and kept, and never get to the point.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A connection that is not taken within this is not taken at all.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Descriptors beside those of the crowd.
const OTHERS: u64 = 1000;

/// What each of the crowd says first, by turns: nothing, the beginning of a handshake, and beginnings of other protocols.
const FIRST: [&[u8]; 6] = [
    b"",
    &[0x16],
    &[0x16, 3, 1, 2, 0, 1],
    b"PRI * HTTP/2.0\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\n",
];

/// Connections of one attacker.
#[derive(Debug, Default)]
pub struct Crowd(Vec<TcpStream>);

/// Lets this process have descriptors for so many connections; `false` if it may not.
pub fn may_have(connections: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let wanted = connections + OTHERS;
    if limit.current.is_none_or(|current| current >= wanted) {
        return true;
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok()
}

impl Crowd {
    /// One more comes. It may be sent away at once.
    pub fn grow(&mut self, server: SocketAddr) {
        let Ok(mut stream) = TcpStream::connect_timeout(&server, CONNECT_WITHIN) else { return };
        let _ = stream.write_all(FIRST[self.0.len() % FIRST.len()]);
        self.0.push(stream);
    }

    /// Each says one byte more, as slowly as one likes.
    pub fn trickle(&mut self) {
        for stream in &mut self.0 {
            let _ = stream.write_all(&[0]);
        }
    }

    /// How many there were.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody came.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many were not sent away yet.
    pub fn inside(&mut self) -> usize {
        let open = |stream: &mut TcpStream| {
            let _ = stream.set_nonblocking(true);
            // An answer is no end.
            let mut answer = [0; 4096];
            !matches!(stream.read(&mut answer), Ok(0)) && stream.take_error().is_ok_and(|error| error.is_none())
        };
        self.0.iter_mut().map(open).filter(|open| *open).count()
    }
}
