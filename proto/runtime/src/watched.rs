//! A TCP connection that notices when it is dead, and not when it is only slow.
//!
//! HTTP/2's pings see to it that something comes in regularly. Their answers alone are no measure: on a slow link with deep queues one may
//! come seconds late behind our own data, and ending the connection would end the very transfer that delays it. So a connection is dead
//! when for some time nothing at all was read and the other kernel has acknowledged next to nothing either.
//!
//! With a [`Gauge`] it also measures what the network carries, and sends no faster than its limit.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Interval, MissedTickBehavior, Sleep, interval, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{
    connect::{Heartbeat, prepare_socket},
    gauge::{Gauge, Look},
};

/// Looks at a connection until it counts as dead. Looks are counted, not time, so that a process that was stopped meanwhile does not end
/// connections that only waited for it.
const LOOKS: u32 = 8;
/// Acknowledged bytes between two looks that are more than pings.
const PROGRESS_MIN_BYTES: u64 = 1 << 10;

/// A connection of either side.
pub struct Watched {
    stream: TcpStream,
    watch: Option<Watch>,
    gauge: Option<Arc<Gauge>>,
    /// Until the limit lets the next bytes go.
    pause: Option<Pin<Box<Sleep>>>,
}

struct Watch {
    looks: Interval,
    silent: u32,
    acked: u64,
}

impl Watched {
    /// Takes a connected socket over. `keepalive`: how soon it counts as dead; `None`: never.
    pub fn new(stream: TcpStream, keepalive: Option<Duration>) -> io::Result<Watched> {
        prepare_socket(stream.as_fd(), keepalive)?;
        let watch = keepalive.map(|bound| {
            let Heartbeat { interval: ping, timeout } = Heartbeat::within(bound);
            let mut looks = interval((ping + timeout) / LOOKS);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Watch { looks, silent: 0, acked: 0 }
        });
        Ok(Watched { stream, watch, gauge: None, pause: None })
    }

    /// Measures with this gauge, and keeps to its limit.
    pub fn gauged(mut self, gauge: Arc<Gauge>) -> Watched {
        gauge.begin();
        self.gauge = Some(gauge);
        self
    }

    /// How many of `wanted` bytes may go now.
    fn poll_limit(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        let Some(gauge) = &self.gauge else { return Poll::Ready(wanted) };
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match gauge.may_send(wanted, Instant::now()) {
                Ok(part) => return Poll::Ready(part),
                Err(wait) => self.pause = Some(Box::pin(sleep(wait))),
            }
        }
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        let Some(gauge) = &self.gauge else { return };
        if let Poll::Ready(Ok(bytes)) = result {
            gauge.sent(*bytes);
        }
        let now = Instant::now();
        if gauge.wants_look(now)
            && let Some((acked, unsent)) = progress(&self.stream)
        {
            gauge.handle_look(Look { at: now, acked, unsent });
        }
    }

    /// Nothing can be done on the connection now: is it dead?
    fn or_dead<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(watch) = self.watch.as_mut().filter(|_| result.is_pending()) else { return result };
        if watch.is_dead(cx, &self.stream) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "nothing comes from the other side any more",
            )));
        }
        result
    }
}

impl Watch {
    fn is_dead(&mut self, cx: &mut Context<'_>, stream: &TcpStream) -> bool {
        while self.looks.poll_tick(cx).is_ready() {
            let acked = bytes_acked(stream);
            self.silent = if acked - self.acked.min(acked) >= PROGRESS_MIN_BYTES { 0 } else { self.silent + 1 };
            self.acked = acked;
        }
        self.silent > LOOKS
    }
}

/// What the other kernel has acknowledged; 0 if ours does not tell.
fn bytes_acked(stream: &TcpStream) -> u64 {
    progress(stream).map_or(0, |(acked, _)| acked)
}

/// What the other kernel has acknowledged, and what ours has not sent yet; `None` if it does not tell.
fn progress(stream: &TcpStream) -> Option<(u64, u32)> {
    /// Where `struct tcp_info` has `tcpi_bytes_acked`, since Linux 4.1, and `tcpi_notsent_bytes`, since 4.6.
    const ACKED: usize = 120;
    const UNSENT: usize = 144;
    let mut info = [0u8; UNSENT + 4];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the buffer is live and its length is given; the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    if result != 0 || len as usize != info.len() {
        return None;
    }
    let acked = info[ACKED..ACKED + 8].try_into().map(u64::from_ne_bytes).ok()?;
    Some((acked, info[UNSENT..].try_into().map(u32::from_ne_bytes).ok()?))
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if let (Poll::Ready(_), Some(watch)) = (&result, &mut this.watch) {
            watch.silent = 0;
        }
        this.or_dead(cx, result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Poll::Ready(part) = this.poll_limit(cx, bytes.len()) else { return this.or_dead(cx, Poll::Pending) };
        let result = Pin::new(&mut this.stream).poll_write(cx, &bytes[..part]);
        this.wrote(&result);
        this.or_dead(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        let Poll::Ready(part) = this.poll_limit(cx, wanted) else { return this.or_dead(cx, Poll::Pending) };
        let result = if part == wanted {
            Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
        } else {
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            Pin::new(&mut this.stream).poll_write(cx, &first[..part.min(first.len())])
        };
        this.wrote(&result);
        this.or_dead(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Connected for Watched {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::Watched;

    #[test]
    fn silence_ends_a_connection_and_a_slow_transfer_does_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
            let (mut other, _) = listener.accept().await.expect("accepted");
            let watched = Watched::new(stream, Some(Duration::from_millis(400))).expect("prepared");
            let (mut reading, mut writing) = tokio::io::split(watched);
            // Nothing comes back for several times the bound, but what we send is taken, slowly.
            let slow = async {
                let mut piece = vec![0; 64 << 10];
                for _ in 0..40 {
                    other.read_exact(&mut piece).await.expect("it is sent");
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
                other.write_all(b"x").await.expect("still there");
                // From now on it only stays open.
                other
            };
            let send = async {
                let piece = vec![1; 64 << 10];
                while writing.write_all(&piece).await.is_ok() {}
            };
            let receive = async {
                let mut byte = [0];
                reading.read_exact(&mut byte).await.expect("a slow connection is not a dead one");
                let error = reading.read_exact(&mut byte).await.expect_err("nobody answers any more");
                assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
            };
            let (_open, (), ()) = tokio::join!(slow, send, receive);
        });
    }
}
