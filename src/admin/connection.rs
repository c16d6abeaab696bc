//! Connections with limits: how many at once, and how long each may stay silent or dawdle.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// Connections at once; more wait in the kernel's queue.
const MAXIMUM_CONNECTIONS: usize = 64;

/// From the opening of a connection, or from the last byte that we sent, to the end of the next request's header.
/// Trickling bytes does not extend it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after the system refused to accept (out of file descriptors, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Accepts connections within limits.
#[derive(Debug)]
pub(super) struct LimitedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    header_timeout: Duration,
}

impl LimitedListener {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, permits: Arc::new(Semaphore::new(MAXIMUM_CONNECTIONS)), header_timeout: HEADER_TIMEOUT }
    }

    #[cfg(test)]
    pub(super) fn with_limits(listener: TcpListener, connections: usize, header_timeout: Duration) -> Self {
        Self { listener, permits: Arc::new(Semaphore::new(connections)), header_timeout }
    }
}

impl axum::serve::Listener for LimitedListener {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    /// Cancel safety: safe; a permit that was taken is given back.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed, so there always is a permit.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let deadline = Box::pin(sleep(self.header_timeout));
                    let stream =
                        LimitedStream { stream, deadline, header_timeout: self.header_timeout, _permit: permit };
                    return (stream, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection; trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that is closed when its peer is too slow, in either direction.
#[derive(Debug)]
pub(super) struct LimitedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    header_timeout: Duration,
    _permit: Option<OwnedSemaphorePermit>,
}

impl LimitedStream {
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the HTTP client is too slow"))
    }

    /// Bytes went out: the peer has the whole time again.
    fn written(&mut self, outcome: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(outcome) => {
                self.deadline.set(sleep_until(Instant::now() + self.header_timeout));
                Poll::Ready(outcome)
            }
            Poll::Pending => self.poll_deadline(context).map(Err),
        }
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.poll_deadline(context) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Pin::new(&mut self.stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
