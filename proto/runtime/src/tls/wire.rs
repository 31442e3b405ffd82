//! A connection of either side, encrypted or not.
//!
//! With TLS 1.3 a client has finished its handshake before the server looks at its certificate. What the server says of it crosses what the
//! client writes, which then meets a closed connection: the reason is there to be read all the same, and is what the client hears.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use super::client::explained;
use crate::watched::Watched;

/// What may come before the reason for which a connection was closed. Nobody reads it any more.
const BEFORE_REASON_MAX_BYTES: usize = 64 << 10;

/// What HTTP/2 runs on.
pub enum Wire {
    /// Plaintext.
    Plain(Watched),
    /// TLS.
    Tls(Box<Encrypted>),
}

/// See the module.
pub struct Encrypted {
    stream: TlsStream<Watched>,
    /// A write failed, and the reason is waited for.
    broken: Option<io::Error>,
}

impl Wire {
    /// A connection whose handshake is done, as far as this side can tell.
    pub fn tls(stream: TlsStream<Watched>) -> Wire {
        Wire::Tls(Box::new(Encrypted { stream, broken: None }))
    }
}

impl Encrypted {
    /// Writes by `write`; a connection that is broken is asked why.
    fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TlsStream<Watched>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        if self.broken.is_none() {
            match ready!(write(Pin::new(&mut self.stream), cx)) {
                Err(error) if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset) => {
                    self.broken = Some(error);
                }
                answer => return Poll::Ready(answer),
            }
        }
        // What closed the connection wakes whoever reads: this waits for what the kernel has, not for the other side.
        let reason = ready!(self.poll_reason(cx));
        let error = reason.or(self.broken.take());
        Poll::Ready(Err(error.unwrap_or_else(|| BrokenPipe.into())))
    }

    /// What the other side said before it closed the connection.
    fn poll_reason(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Error>> {
        let (mut buffer, mut read) = ([0; 4096], 0);
        while read < BEFORE_REASON_MAX_BYTES {
            let mut into = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut into)) {
                Err(error) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
                    return Poll::Ready(Some(explained(error)));
                }
                Ok(()) if !into.filled().is_empty() => read += into.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(None)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Wire::Tls(tls) => Pin::new(&mut tls.stream).poll_read(cx, buffer).map_err(explained),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls(tls) => tls.poll_with(cx, |stream, cx| stream.poll_write(cx, bytes)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Wire::Tls(tls) => tls.poll_with(cx, |stream, cx| stream.poll_write_vectored(cx, slices)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Plain(stream) => stream.is_write_vectored(),
            Wire::Tls(tls) => tls.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(tls) => tls.poll_with(cx, |stream, cx| stream.poll_flush(cx)),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }
}
