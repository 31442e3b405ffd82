//! Two network namespaces with a wire between them, and somebody who copies everything that is on it.
//!
//! [`Ends::new`] is called in a namespace ([`super::in_namespace`]): that is the near end, and what [`Ends::far`] runs is at the far one.
//! [`Wiretap`] has each frame from the kernel (`AF_PACKET`), as it has for tcpdump; [`Capture`] puts the streams of TCP together again and
//! [`tls13`] reads them as what anybody on the way can read: the records of TLS.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use super::in_namespace;
use crate::harness::system;

/// The near end.
pub const NEAR: &str = "10.231.9.1";
/// The far end.
pub const FAR: &str = "10.231.9.2";
/// The near end's device.
pub const WIRE: &str = "wire0";
/// Longest frame: the kernel hands over segments that a network card would cut later.
const FRAME_MAX: usize = 256 << 10;
/// What the kernel keeps until it is read; what does not fit is counted, and then nothing is proven.
const KERNEL_BUFFER_BYTES: libc::c_int = 64 << 20;
/// How long the reader sleeps before it looks whether it is to end.
const LOOK_EVERY: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 50_000 };

type Job = Box<dyn FnOnce() + Send>;

/// Both ends of a wire; the far one is a thread in a namespace of its own, which lives as long as this and what was started there.
pub struct Ends {
    jobs: mpsc::Sender<Job>,
}

impl Ends {
    /// A wire from the namespace of this thread to a new one. The error says why there can be none here.
    pub fn new() -> Result<Ends, String> {
        let near = rustix::thread::gettid().as_raw_nonzero().to_string();
        let (jobs, todo) = mpsc::channel::<Job>();
        let (made, ready) = mpsc::channel();
        thread::spawn(move || {
            let told = made.clone();
            let lived = in_namespace(move || {
                let wired = lay(&near);
                let _ = made.send(wired);
                todo.into_iter().for_each(|job| job());
            });
            if let Err(error) = lived {
                let _ = told.send(Err(error));
            }
        });
        ready.recv().unwrap_or_else(|_| Err("the far end panicked".to_owned()))?;
        let near = format!("{NEAR}/24");
        for args in [&["addr", "add", &near, "dev", WIRE][..], &["link", "set", WIRE, "up"]] {
            system("ip", args)?;
        }
        Ok(Ends { jobs })
    }

    /// Runs work at the far end: what it starts is there. Panics if it panics.
    pub fn far<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, answer) = mpsc::channel();
        let job = Box::new(move || {
            let _ = send.send(work());
        });
        self.jobs.send(job).expect("the far end lives");
        answer.recv().expect("the work at the far end does not panic")
    }
}

/// Called at the far end.
fn lay(near: &str) -> Result<(), String> {
    let far = format!("{FAR}/24");
    system("ip", &["link", "add", "wire1", "type", "veth", "peer", "name", WIRE, "netns", near])?;
    system("ip", &["addr", "add", &far, "dev", "wire1"])?;
    system("ip", &["link", "set", "wire1", "up"]).map(|_| ())
}

/// Copies the frames of one device until it is ended.
pub struct Wiretap {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<io::Result<Capture>>,
}

fn answered(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Sets an option of a socket.
fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value lives through the call and is as long as is said.
    let answer = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), len)
    };
    answered(answer).map(|_| ())
}

fn packet_socket(device: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: a plain call.
    let fd = answered(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SO_RCVBUFFORCE, &KERNEL_BUFFER_BYTES)?;
    set(&socket, libc::SO_RCVTIMEO, &LOOK_EVERY)?;
    let name = std::ffi::CString::new(device)?;
    // SAFETY: the name is NUL-terminated.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address has the kernel's layout and lives through the call.
    answered(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}

/// Frames that the kernel had no room for.
fn lost(socket: &OwnedFd) -> io::Result<u32> {
    let mut counts = [0u32; 2];
    let mut len = size_of_val(&counts) as libc::socklen_t;
    // SAFETY: the counts have the kernel's layout (two numbers), the length is theirs, and both live through the call.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            counts.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    answered(answer)?;
    Ok(counts[1])
}

impl Wiretap {
    /// Begins; what is sent after this is in the capture.
    pub fn start(device: &str) -> io::Result<Wiretap> {
        let socket = packet_socket(device)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = thread::spawn(move || {
            let mut capture = Capture::default();
            let mut frame = vec![0u8; FRAME_MAX];
            loop {
                let last = stopped.load(Ordering::Relaxed);
                // SAFETY: the buffer is as long as is said and lives through the call.
                let read = unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
                match usize::try_from(read) {
                    Ok(len) => capture.take(&frame[..len]),
                    Err(_) => match io::Error::last_os_error() {
                        error if error.kind() == io::ErrorKind::Interrupted => {}
                        // Nothing came for a while: all of it is read if it was to end before.
                        error if error.kind() == io::ErrorKind::WouldBlock && last => break,
                        error if error.kind() == io::ErrorKind::WouldBlock => {}
                        error => return Err(error),
                    },
                }
            }
            capture.lost = lost(&socket)?;
            Ok(capture)
        });
        Ok(Wiretap { stop, reader })
    }

    /// Ends when the wire is quiet.
    pub fn end(self) -> io::Result<Capture> {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader of the wire panicked")))
    }
}

/// One end of a connection.
pub type End = (Ipv4Addr, u16);

/// One direction of a connection, as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    begins_at: Option<u32>,
    /// What was sent, in order. Gaps are zeroes.
    pub bytes: Vec<u8>,
    /// How many of them were seen.
    seen: BTreeMap<usize, usize>,
}

impl Stream {
    fn take(&mut self, seq: u32, payload: &[u8]) {
        let Some(begin) = self.begins_at else { return };
        if payload.is_empty() {
            return;
        }
        let at = seq.wrapping_sub(begin) as usize;
        let end = at + payload.len();
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(payload);
        let longest = self.seen.entry(at).or_default();
        *longest = end.max(*longest);
    }

    /// Whether its beginning and each byte of it were seen.
    pub fn is_whole(&self) -> bool {
        let mut to = 0;
        for (from, end) in &self.seen {
            if *from > to {
                return false;
            }
            to = to.max(*end);
        }
        self.begins_at.is_some() && to == self.bytes.len()
    }
}

/// What was on the wire.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    /// All frames, one behind the other.
    pub frames: Vec<u8>,
    /// Both directions of each connection: from, to.
    pub streams: BTreeMap<(End, End), Stream>,
    /// IPv4 packets that are no TCP.
    pub others: usize,
    /// Frames that the kernel had no room for.
    pub lost: u32,
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

impl Capture {
    fn take(&mut self, frame: &[u8]) {
        self.frames.extend_from_slice(frame);
        // A frame that is cut short has no more to say.
        let _ = self.packet(frame);
    }

    fn packet(&mut self, frame: &[u8]) -> Option<()> {
        const IPV4: usize = 0x0800;
        const TCP: u8 = 6;
        if number(frame.get(12..14)?) != IPV4 {
            return None;
        }
        let packet = frame.get(14..)?;
        let packet = packet.get(..number(packet.get(2..4)?).max(20).min(packet.len()))?;
        let header = usize::from(packet.first()? & 15) * 4;
        if packet.get(9)? != &TCP {
            self.others += 1;
            return None;
        }
        let segment = packet.get(header..)?;
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
        let port = |at: usize| Some(number(segment.get(at..at + 2)?) as u16);
        let stream = self.streams.entry(((address(12)?, port(0)?), (address(16)?, port(2)?))).or_default();
        let seq = number(segment.get(4..8)?) as u32;
        let payload = segment.get(usize::from(segment.get(12)? >> 4) * 4..)?;
        let is_first = segment.get(13)? & 2 != 0;
        if is_first {
            stream.begins_at = Some(seq.wrapping_add(1));
        }
        stream.take(seq, payload);
        Some(())
    }

    /// Whether this was on the wire as it stands: in a frame, or over the edge of two.
    pub fn tells(&self, secret: &[u8]) -> bool {
        let within = |bytes: &[u8]| {
            let first = secret[0];
            let mut at = 0;
            while let Some(found) = bytes[at..].iter().position(|byte| *byte == first) {
                if bytes[at + found..].starts_with(secret) {
                    return true;
                }
                at += found + 1;
            }
            false
        };
        within(&self.frames) || self.streams.values().any(|stream| within(&stream.bytes))
    }
}

/// What a stream says to whoever has no key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Messages of the handshake that are in the clear: the hello.
    pub hellos: usize,
    /// Records that are encrypted.
    pub sealed: usize,
}

/// A stream is not TLS 1.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotTls(String);

impl fmt::Display for NotTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const CHANGE_CIPHER: u8 = 20;
const HANDSHAKE: u8 = 22;
const SEALED: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const VERSION_13: usize = 0x0304;

/// Reads a stream as TLS 1.3: the hello is in the clear, a server's says version 1.3, and each byte behind it is in a sealed record.
/// A record that the end of the stream cut counts as far as it goes.
pub fn tls13(stream: &[u8]) -> Result<Records, NotTls> {
    let mut records = Records::default();
    let mut rest = stream;
    while !rest.is_empty() {
        let at = stream.len() - rest.len();
        let wrong = |what: String| Err(NotTls(format!("at byte {at}: {what}")));
        let Some(head) = rest.get(..5) else { break };
        let (kind, len) = (head[0], number(&head[3..5]));
        if head[1] != 3 || len > (1 << 14) + 256 {
            return wrong(format!("{head:?} is no record of TLS"));
        }
        let Some(body) = rest.get(5..5 + len) else { break };
        match kind {
            HANDSHAKE if records.sealed == 0 => {
                check_hello(body).map_err(|what| NotTls(format!("at byte {at}: {what}")))?;
                records.hellos += 1;
            }
            CHANGE_CIPHER if body == [1] => {}
            SEALED if records.hellos > 0 => records.sealed += 1,
            _ => return wrong(format!("a record of kind {kind} after {records:?}")),
        }
        rest = &rest[5 + len..];
    }
    if records.hellos == 0 { Err(NotTls("it has no hello".to_owned())) } else { Ok(records) }
}

/// That a message of the handshake in the clear is a hello, and nothing behind it; a server's has to say which version.
fn check_hello(body: &[u8]) -> Result<(), String> {
    let short = || "a hello that is cut short".to_owned();
    let len = number(body.get(1..4).ok_or_else(short)?);
    if len + 4 != body.len() {
        return Err(format!("a hello of {len} bytes in a record of {}", body.len()));
    }
    match body[0] {
        CLIENT_HELLO => Ok(()),
        SERVER_HELLO if server_version(body) == Some(VERSION_13) => Ok(()),
        SERVER_HELLO => Err(format!("a server that speaks version {:x?}", server_version(body))),
        kind => Err(format!("a message of kind {kind} in the clear")),
    }
}

/// Of the extension `supported_versions`, which only 1.3 and later have.
fn server_version(hello: &[u8]) -> Option<usize> {
    const SUPPORTED_VERSIONS: usize = 43;
    // Head, version of old, random, session, cipher suite, compression.
    let session = usize::from(*hello.get(38)?);
    let mut rest = hello.get(39 + session + 3..)?;
    rest = rest.get(2..2 + number(rest.get(..2)?))?;
    while let (Some(kind), Some(len)) = (rest.get(..2), rest.get(2..4)) {
        let value = rest.get(4..4 + number(len))?;
        if number(kind) == SUPPORTED_VERSIONS {
            return Some(number(value));
        }
        rest = &rest[4 + value.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Capture, NotTls, Records, tls13};

    /// A frame of TCP from port 1 to port 2.
    fn frame(seq: u32, first: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2]);
        frame.extend(seq.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, if first { 2 } else { 0 }, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn streams_are_put_together_across_order_repetition_and_the_end_of_numbers() {
        let mut capture = Capture::default();
        let begin = u32::MAX - 2;
        for (seq, first, payload) in
            [(begin, true, &b""[..]), (2, false, b"cret"), (begin.wrapping_add(1), false, b"a se")]
        {
            capture.take(&frame(seq, first, payload));
        }
        capture.take(&frame(2, false, b"cret"));
        let stream = capture.streams.values().next().expect("one direction");
        assert!(stream.is_whole(), "{stream:?}");
        assert_eq!(stream.bytes, b"a secret");
        assert!(capture.tells(b"secret") && !capture.tells(b"secrets"));
        capture.take(&frame(20, false, b"later"));
        assert!(!capture.streams.values().next().expect("one direction").is_whole(), "a gap is seen");
    }

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 3, 3][..], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    fn server_hello(version: u8) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0x13, 1, 0, 0, 6, 0, 43, 0, 2, 3, version]);
        record(22, &[&[2, 0, 0, body.len() as u8][..], &body].concat())
    }

    #[test]
    fn only_a_hello_of_version_13_and_sealed_records_pass() {
        let sealed = record(23, &[9; 100]);
        let good = [server_hello(4), record(20, &[1]), sealed.clone(), sealed.clone()].concat();
        assert_eq!(tls13(&good), Ok(Records { hellos: 1, sealed: 2 }));
        assert_eq!(tls13(&good[..good.len() - 7]), Ok(Records { hellos: 1, sealed: 1 }));
        let bad = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            [server_hello(3), sealed.clone()].concat(),
            [server_hello(4), record(22, &[11, 0, 0, 0])].concat(),
            [server_hello(4), sealed, b"GET / HTTP/1.1\r\n".to_vec()].concat(),
            Vec::new(),
        ];
        for stream in bad {
            assert!(matches!(tls13(&stream), Err(NotTls(_))), "{stream:?}");
        }
    }
}
