//! A TCP proxy that harms what goes through it: delays, flips bits, cuts in the middle, holds back, is slow, swallows.
//!
//! Each connection has two directions, each with a thread that reads and one that writes; between them is a queue with the time at
//! which a chunk is due. What happens to a chunk is decided when it is read, by the [`Harm`] of that moment and a seed.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::rng::Rng;

const CHUNK: usize = 16 << 10;
/// Chunks that wait in one direction of one connection; beyond that the sender waits, as on a long line.
const QUEUE: usize = 256;
const TICK: Duration = Duration::from_millis(5);

/// What is done to chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harm {
    /// Each chunk arrives this much later.
    pub delay: Duration,
    /// In one of so many chunks one bit is flipped; 0: in none.
    pub flip_one_in: u64,
    /// One of so many chunks is cut somewhere, and the connection ends there; 0: none.
    pub cut_one_in: u64,
    /// Bytes per second of each direction; 0: as fast as it can.
    pub rate: u64,
    /// Nothing arrives any more, and nobody is told.
    pub swallow: bool,
    /// What clients send is held back; their connections are ended, and what was held is delivered after they have come again.
    pub late: bool,
}

#[derive(Debug)]
struct Shared {
    harm: Mutex<Harm>,
    rng: Mutex<Rng>,
    stop: AtomicBool,
    /// Connections made so far.
    connections: AtomicU64,
    /// Chunks that were harmed.
    harmed: AtomicU64,
    /// Bytes that servers sent.
    carried: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn harm(&self) -> Harm {
        *lock(&self.harm)
    }

    fn chance(&self, one_in: u64) -> bool {
        one_in > 0 && lock(&self.rng).below(one_in) == 0
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note_harm(&self) {
        self.harmed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A proxy that listens until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
}

impl Proxy {
    /// Listens on a free port of the loopback device for connections to `upstream`.
    pub fn new(upstream: u16, seed: u64) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            harm: Mutex::default(),
            rng: Mutex::new(Rng::new(seed)),
            stop: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            harmed: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let inner = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, upstream, &inner));
        Ok(Proxy { shared, port })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Does this from now on.
    pub fn harm(&self, harm: Harm) {
        *lock(&self.shared.harm) = harm;
    }

    /// Ends all connections at once.
    pub fn cut(&self) {
        for stream in lock(&self.shared.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes that servers have sent so far; not all of them had to arrive.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }

    /// Chunks that were harmed so far: delayed and slow ones are not counted.
    pub fn harmed(&self) -> u64 {
        self.shared.harmed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.cut();
    }
}

fn accept(listener: &TcpListener, upstream: u16, shared: &Arc<Shared>) {
    while !shared.stopped() {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        // While everything is swallowed the handshake succeeds, as it does through some middle boxes, and then nothing.
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)) else { continue };
        if connect(&client, &server, shared).is_ok() {
            shared.connections.fetch_add(1, Ordering::Relaxed);
            lock(&shared.open).extend([client, server]);
        }
    }
}

fn connect(client: &TcpStream, server: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let number = shared.connections.load(Ordering::Relaxed);
    for (from, to, from_client) in [(client, server, true), (server, client, false)] {
        let (queue, due) = mpsc::sync_channel(QUEUE);
        let direction =
            Direction { from: from.try_clone()?, to: to.try_clone()?, from_client, number, shared: Arc::clone(shared) };
        let writer = direction.clone_streams()?;
        thread::spawn(move || writer.write(&due));
        thread::spawn(move || direction.read(&queue));
    }
    Ok(())
}

/// A chunk and when it is due.
type Due = (Instant, Vec<u8>);

struct Direction {
    from: TcpStream,
    to: TcpStream,
    from_client: bool,
    /// Of the connection.
    number: u64,
    shared: Arc<Shared>,
}

impl Direction {
    fn clone_streams(&self) -> io::Result<Direction> {
        let (from, to) = (self.from.try_clone()?, self.to.try_clone()?);
        Ok(Direction { from, to, shared: Arc::clone(&self.shared), ..*self })
    }

    fn read(mut self, queue: &mpsc::SyncSender<Due>) {
        let mut buffer = vec![0; CHUNK];
        // Time at which the line is free again, when it is slow.
        let mut free = Instant::now();
        let mut held: Vec<Vec<u8>> = Vec::new();
        loop {
            let len = match self.from.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(len) => len,
            };
            if !self.from_client {
                self.shared.carried.fetch_add(len as u64, Ordering::Relaxed);
            }
            let harm = self.shared.harm();
            let mut chunk = buffer[..len].to_vec();
            if harm.swallow {
                self.shared.note_harm();
                continue;
            }
            if harm.late && self.from_client {
                held.push(chunk);
                // Some more is collected first, then the client loses its connection.
                if held.len() == 4 {
                    let _ = self.from.shutdown(Shutdown::Both);
                }
                continue;
            }
            if self.shared.chance(harm.flip_one_in) {
                let bit = lock(&self.shared.rng).below(len as u64 * 8);
                chunk[(bit / 8) as usize] ^= 1 << (bit % 8);
                self.shared.note_harm();
            }
            let is_cut = self.shared.chance(harm.cut_one_in);
            if is_cut {
                chunk.truncate(lock(&self.shared.rng).index(len));
                self.shared.note_harm();
            }
            let now = Instant::now();
            free = free.max(now);
            // No rate, no wait.
            free += Duration::from_micros((chunk.len() as u64 * 1_000_000).checked_div(harm.rate).unwrap_or(0));
            if queue.send((free + harm.delay, chunk)).is_err() || is_cut {
                break;
            }
        }
        self.deliver_late(queue, held);
    }

    /// What was held back arrives when the client has come again. The writer ends, and with it both streams, when `queue` is dropped.
    fn deliver_late(&self, queue: &mpsc::SyncSender<Due>, held: Vec<Vec<u8>>) {
        if held.is_empty() {
            return;
        }
        let begin = Instant::now();
        let came_again = || self.shared.connections.load(Ordering::Relaxed) > self.number + 1;
        while !came_again() && begin.elapsed() < Duration::from_secs(5) && !self.shared.stopped() {
            thread::sleep(TICK);
        }
        thread::sleep(Duration::from_millis(100));
        for chunk in held {
            self.shared.note_harm();
            if queue.send((Instant::now(), chunk)).is_err() {
                break;
            }
        }
        // Time for the other side to read it before the connection ends.
        thread::sleep(Duration::from_millis(100));
    }

    fn write(mut self, due: &mpsc::Receiver<Due>) {
        while let Ok((when, chunk)) = due.recv() {
            thread::sleep(when.saturating_duration_since(Instant::now()));
            if self.to.write_all(&chunk).is_err() {
                break;
            }
        }
        let _ = self.to.shutdown(Shutdown::Both);
        // With late bytes on their way the other direction must not end this one's target; its own end does.
        if !self.from_client || !self.shared.harm().late {
            let _ = self.from.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Ipv4Addr, TcpListener, TcpStream},
        thread,
        time::{Duration, Instant},
    };

    use super::{Harm, Proxy};

    /// A server that answers each connection with what it reads, until the client says that it has finished.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let (mut reader, mut writer) = (stream.try_clone().expect("open"), stream);
                    let _ = std::io::copy(&mut reader, &mut writer);
                });
            }
        });
        port
    }

    fn exchange(port: u16, sent: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(1))).expect("not zero");
        stream.write_all(sent).expect("open");
        let mut got = vec![0; sent.len()];
        let mut at = 0;
        while at < got.len() {
            match stream.read(&mut got[at..]) {
                Ok(0) | Err(_) => break,
                Ok(len) => at += len,
            }
        }
        got.truncate(at);
        got
    }

    #[test]
    fn a_harmless_proxy_passes_all_bytes() {
        let proxy = Proxy::new(echo(), 1).expect("a free port");
        let sent: Vec<u8> = (0..200_000u32).map(|at| at as u8).collect();
        assert_eq!(exchange(proxy.port(), &sent), sent);
        assert_eq!((proxy.connections(), proxy.harmed()), (1, 0));
    }

    #[test]
    fn each_harm_is_done() {
        let proxy = Proxy::new(echo(), 1).expect("a free port");
        let sent = vec![7; 1000];
        proxy.harm(Harm { delay: Duration::from_millis(50), ..Harm::default() });
        let begin = Instant::now();
        assert_eq!(exchange(proxy.port(), &sent), sent);
        assert!(begin.elapsed() >= Duration::from_millis(100), "once there and once back");
        proxy.harm(Harm { flip_one_in: 1, ..Harm::default() });
        let got = exchange(proxy.port(), &sent);
        assert!(got.len() == 1000 && got != sent, "bits are flipped and none is lost");
        proxy.harm(Harm { cut_one_in: 1, ..Harm::default() });
        assert!(exchange(proxy.port(), &sent).len() < 1000);
        proxy.harm(Harm { swallow: true, ..Harm::default() });
        assert!(exchange(proxy.port(), &sent).is_empty());
        assert!(proxy.harmed() > 3);
    }
}
