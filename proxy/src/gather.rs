//! Writes of one HTTP/2 connection, gathered: what all its streams have to say in one turn of the worker leaves in one
//! system call, and between sidecars in one TLS record.
//!
//! h2 writes and flushes after each DATA frame above 256 octets, which makes one write a response however many are ready.
//! Here a flush is only asked for: a task of the connection's own does it when its turn comes, which is after every task
//! that was ready before. So nothing waits longer than the worker's queue is long, and a connection with one request at a
//! time writes as often as before.
//!
//! Only that task writes to the stream; the connection puts octets into the buffer and waits while it is full. A write
//! that fails is told at the next one, as a full socket buffer would have it too.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Octets that are gathered before the connection waits for them to be written. Chosen: two of the largest DATA frames
/// (RFC 9113 §4.2), or two TLS records (RFC 8446 §5.1); held only while there is something to write.
const GATHERED_BYTES: usize = 2 * 16 * 1024;

/// A stream whose writes are gathered. Belongs to one worker's thread.
pub struct Gather<S>(Rc<RefCell<Gathered<S>>>);

/// Shared by the connection and the task that writes for it.
struct Gathered<S> {
    stream: S,
    buffer: BytesMut,
    /// Something in the buffer, or in the stream's own, is to leave. Set by the connection, ended by the task.
    flush: bool,
    /// The connection let go: what is gathered leaves if the peer takes it at once, then the stream is closed.
    abandoned: bool,
    /// What became of the last write, until it is told.
    failed: Option<io::Error>,
    /// The task, since it last ran.
    writer: Option<Waker>,
    /// The connection, while it waits for room or for the end of a flush.
    waiting: Option<Waker>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Gather<S> {
    /// Gathers what is written to `stream`. Must be called on a worker's thread.
    pub fn new(stream: S) -> Self {
        let gathered = Rc::new(RefCell::new(Gathered {
            stream,
            buffer: BytesMut::new(),
            flush: false,
            abandoned: false,
            failed: None,
            writer: None,
            waiting: None,
        }));
        let shared = gathered.clone();
        tokio::task::spawn_local(poll_fn(move |cx| shared.borrow_mut().poll_writer(cx)));
        Self(gathered)
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// The task: writes whenever it is asked to, until the connection has let go.
    fn poll_writer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.writer = Some(cx.waker().clone());
        if self.flush {
            match self.poll_drain(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.buffer = BytesMut::new();
                    self.failed = Some(error);
                }
                // Nobody would end the wait for a peer that does not read.
                Poll::Pending if self.abandoned => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            self.flush = false;
            if let Some(waiting) = self.waiting.take() {
                waiting.wake();
            }
        }
        if self.abandoned {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.buffer)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(len) => self.buffer.advance(len),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        // An idle connection holds no buffer.
        self.buffer = BytesMut::new();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Room for one more write of the connection, in octets.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let room = GATHERED_BYTES - self.buffer.len();
        if room == 0 {
            self.wait(cx);
            return Poll::Pending;
        }
        if self.buffer.is_empty() {
            self.buffer.reserve(FIRST_BYTES);
        }
        Poll::Ready(Ok(room))
    }

    /// Everything written so far has left.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if self.flush || !self.buffer.is_empty() {
            self.wait(cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn wait(&mut self, cx: &Context<'_>) {
        self.waiting = Some(cx.waker().clone());
        self.ask();
    }

    fn ask(&mut self) {
        self.flush = true;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gathered = &mut *self.0.borrow_mut();
        let len = ready!(gathered.poll_room(cx))?.min(buf.len());
        gathered.buffer.extend_from_slice(&buf[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gathered = &mut *self.0.borrow_mut();
        let room = ready!(gathered.poll_room(cx))?;
        let mut left = room;
        for buf in bufs {
            let len = left.min(buf.len());
            gathered.buffer.extend_from_slice(&buf[..len]);
            left -= len;
        }
        Poll::Ready(Ok(room - left))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Asks for what was written to leave; it does when the worker has come round.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gathered = &mut *self.0.borrow_mut();
        if let Some(error) = gathered.failed.take() {
            return Poll::Ready(Err(error));
        }
        if !gathered.buffer.is_empty() && !gathered.flush {
            gathered.ask();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gathered = &mut *self.0.borrow_mut();
        ready!(gathered.poll_flushed(cx))?;
        Pin::new(&mut gathered.stream).poll_shutdown(cx)
    }
}

impl<S> Drop for Gather<S> {
    /// The task writes what can be written at once, then ends and closes the stream.
    fn drop(&mut self) {
        let gathered = &mut *self.0.borrow_mut();
        gathered.abandoned = true;
        gathered.flush |= !gathered.buffer.is_empty();
        if let Some(writer) = gathered.writer.take() {
            writer.wake();
        }
    }
}

/// First allocation of the buffer: most turns have less to say.
const FIRST_BYTES: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::LocalSet;

    use super::*;

    /// Counts writes.
    struct Counted(DuplexStream, Rc<std::cell::Cell<usize>>);

    impl AsyncRead for Counted {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1.set(self.1.get() + 1);
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    fn pair(capacity: usize) -> (Gather<Counted>, DuplexStream, Rc<std::cell::Cell<usize>>) {
        let (near, far) = duplex(capacity);
        let writes = Rc::new(std::cell::Cell::new(0));
        (Gather::new(Counted(near, writes.clone())), far, writes)
    }

    #[tokio::test]
    async fn what_is_flushed_many_times_in_one_turn_leaves_in_one_write() {
        LocalSet::new()
            .run_until(async {
                let (mut near, mut far, writes) = pair(1 << 20);
                for _ in 0..10 {
                    near.write_all(b"0123456789").await.unwrap();
                    near.flush().await.unwrap();
                }
                let mut read = [0; 100];
                far.read_exact(&mut read).await.unwrap();
                assert_eq!((&read[..], writes.get()), (&b"0123456789".repeat(10)[..], 1));
            })
            .await;
    }

    #[tokio::test]
    async fn a_slow_reader_holds_the_writer_up_and_loses_nothing() {
        LocalSet::new()
            .run_until(async {
                let (mut near, mut far, _) = pair(1000);
                let sent: Vec<u8> = (0..10 * GATHERED_BYTES).map(|at| (at % 251) as u8).collect();
                let expected = sent.clone();
                let writer = tokio::task::spawn_local(async move {
                    near.write_all(&sent).await.unwrap();
                    near.shutdown().await.unwrap();
                });
                let mut read = Vec::new();
                far.read_to_end(&mut read).await.unwrap();
                writer.await.unwrap();
                assert!(read == expected);
            })
            .await;
    }

    #[tokio::test]
    async fn what_was_gathered_leaves_after_the_connection_let_go() {
        LocalSet::new()
            .run_until(async {
                let (mut near, mut far, _) = pair(1000);
                near.write_all(b"goodbye").await.unwrap();
                drop(near);
                let mut read = Vec::new();
                far.read_to_end(&mut read).await.unwrap();
                assert_eq!(read, b"goodbye");
            })
            .await;
    }

    #[tokio::test]
    async fn a_connection_let_go_does_not_wait_for_a_peer_that_does_not_read() {
        LocalSet::new()
            .run_until(async {
                let (mut near, mut far, _) = pair(4);
                near.write_all(b"goodbye").await.unwrap();
                near.flush().await.unwrap();
                tokio::task::yield_now().await;
                drop(near);
                tokio::task::yield_now().await;
                let mut read = Vec::new();
                far.read_to_end(&mut read).await.unwrap();
                assert_eq!(read, b"good");
            })
            .await;
    }

    #[tokio::test]
    async fn a_failed_write_is_told_at_the_next() {
        LocalSet::new()
            .run_until(async {
                let (mut near, far, _) = pair(4);
                drop(far);
                near.write_all(b"lost").await.unwrap();
                near.flush().await.unwrap();
                tokio::task::yield_now().await;
                assert!(near.write_all(b"more").await.is_err());
            })
            .await;
    }
}
