//! The price of a durable fsync after a write of 4 KiB on the mount, against the parts that it cannot do without: the same on the
//! backing file system, an append and fdatasync where the replica's log lies, and a round trip over loopback: by gRPC, which both daemons
//! speak, and by a bare socket, for comparison. They take turns. The call alone is what is judged; with the write before it, as an application
//! feels it, is told beside it.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::echo::GrpcEcho;
use crate::{harness::median, rng::content};

/// Bytes of a write.
const WRITE_BYTES: usize = 4096;
/// Length of the files that are written.
const FILE_BYTES: u64 = 4 << 20;
/// Writes of each kind before the next kind has its turn: long enough that threads and caches are warm, as with a database that goes on.
const TURN: usize = 250;

/// Medians of one run.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Fsync after a write, on the backing file system.
    pub native: Duration,
    /// Append and fdatasync on the file system of the replica.
    pub log: Duration,
    /// 4 KiB there by gRPC, an acknowledgement back.
    pub round_trip: Duration,
    /// 4 KiB there by a bare socket, 64 bytes back.
    pub socket: Duration,
    /// Fsync after a write, on the mount.
    pub mount: Duration,
    /// Write and fsync together, on the backing file system and on the mount.
    pub with_write: (Duration, Duration),
}

impl Figures {
    /// The mount's time as a multiple of the sum of its parts.
    pub fn ratio(&self) -> f64 {
        self.mount.as_secs_f64() / (self.native + self.log + self.round_trip).as_secs_f64()
    }

    /// The same for a write and its fsync together.
    pub fn ratio_with_write(&self) -> f64 {
        let (native, mount) = self.with_write;
        mount.as_secs_f64() / (native + self.log + self.round_trip).as_secs_f64()
    }

    /// The first as if the round trip were that of a bare socket.
    pub fn ratio_to_socket(&self) -> f64 {
        self.mount.as_secs_f64() / (self.native + self.log + self.socket).as_secs_f64()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |time: Duration| time.as_micros();
        write!(
            f,
            "p50 µs of an fsync: native {}, log {}, round trip {} by gRPC, {} by a bare socket, mount {}; ratio {:.2} ({:.2} with the bare \
             socket); with the write before it: native {}, mount {}, ratio {:.2}",
            micros(self.native),
            micros(self.log),
            micros(self.round_trip),
            micros(self.socket),
            micros(self.mount),
            self.ratio(),
            self.ratio_to_socket(),
            micros(self.with_write.0),
            micros(self.with_write.1),
            self.ratio_with_write()
        )
    }
}

/// A file that is full, so that writes change nothing but data.
fn full_file(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.write_all(&content(1, FILE_BYTES as usize))?;
    file.sync_all()?;
    Ok(file)
}

/// Times of calls, and of each with what goes before it.
#[derive(Default)]
struct Times {
    calls: Vec<Duration>,
    whole: Vec<Duration>,
}

impl Times {
    /// Takes a turn: `before`, then the call.
    fn turn(
        &mut self,
        mut before: impl FnMut(u64) -> io::Result<()>,
        mut call: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        for _ in 0..TURN {
            let begun = Instant::now();
            before(self.calls.len() as u64)?;
            let called = Instant::now();
            call()?;
            self.calls.push(called.elapsed());
            self.whole.push(begun.elapsed());
        }
        Ok(())
    }

    fn write_and_sync(&mut self, file: &File, data: &[u8]) -> io::Result<()> {
        // Spread over the file, not in order.
        let blocks = FILE_BYTES / WRITE_BYTES as u64;
        let place = |at: u64| at.wrapping_mul(379) % blocks * WRITE_BYTES as u64;
        self.turn(|at| file.write_all_at(data, place(at)), || file.sync_all())
    }
}

/// Answers each 4 KiB with 64 bytes, as the storage daemon answers a batch, until the other side ends.
fn answer(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut data = [0; WRITE_BYTES];
    while stream.read_exact(&mut data).is_ok() {
        stream.write_all(&data[..64])?;
    }
    Ok(())
}

/// Measures. `mount`: a mount with `fsync=durable` that is live; `native`: a directory of its backing file system; `storage`: one of
/// the replica's.
pub fn measure(mount: &Path, native: &Path, storage: &Path, writes: usize) -> io::Result<Figures> {
    let data = content(2, WRITE_BYTES);
    let (on_mount, on_native) = (full_file(&mount.join("bench-fsync"))?, full_file(&native.join("bench-fsync"))?);
    let log = full_file(&storage.join("bench-log"))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answering = thread::spawn(move || answer(&listener));
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let [mut natives, mut logs, mut sockets, mut mounts, mut trips] = <[Times; 5]>::default();
    let (mut echo, message) = (GrpcEcho::start()?, Bytes::copy_from_slice(&data));
    let mut reply = [0; 64];
    while mounts.calls.len() < writes {
        mounts.write_and_sync(&on_mount, &data)?;
        natives.write_and_sync(&on_native, &data)?;
        logs.turn(|at| log.write_all_at(&data, at * WRITE_BYTES as u64 % FILE_BYTES), || log.sync_data())?;
        trips.turn(|_| Ok(()), || echo.round_trip(&message).map(drop))?;
        sockets.turn(
            |_| Ok(()),
            || {
                stream.write_all(&data)?;
                stream.read_exact(&mut reply)
            },
        )?;
    }
    drop(stream);
    answering.join().map_err(|_| io::Error::other("the answering thread panicked"))??;
    Ok(Figures {
        native: median(&mut natives.calls),
        // The daemon's append is part of what its log costs.
        log: median(&mut logs.whole),
        round_trip: median(&mut trips.calls),
        socket: median(&mut sockets.calls),
        mount: median(&mut mounts.calls),
        with_write: (median(&mut natives.whole), median(&mut mounts.whole)),
    })
}
