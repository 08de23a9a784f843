//! A client's socket that gathers small pieces into one write.
//!
//! h2 sends what it has before it takes a frame whose payload it does not copy, and it copies
//! payloads below 1 KiB only on sockets that do not take several pieces at once; otherwise only
//! those below 256 bytes. So this socket says that it does not: answers with a common value are
//! copied and leave together. What is larger comes as a head of nine bytes and a payload; the
//! head is held back here until the payload comes, and both leave in one system call.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Pieces smaller than this wait for what follows or for the flush.
const HELD_BYTES: usize = 2048;

/// See the module.
pub(super) struct Socket<S = TcpStream> {
    stream: S,
    held: Vec<u8>,
}

// === impl Socket ===

impl<S: AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(stream: S) -> Socket<S> {
        Socket { stream, held: Vec::new() }
    }

    /// Notes that `written` of the held bytes have left; how many more have.
    fn release(&mut self, written: usize) -> io::Result<usize> {
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_held = written.min(self.held.len());
        self.held.drain(..of_held);
        Ok(written - of_held)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.held.len() + bytes.len() < HELD_BYTES {
            this.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        loop {
            let pieces = [IoSlice::new(&this.held), IoSlice::new(bytes)];
            let stream = Pin::new(&mut this.stream);
            let written = ready!(stream.poll_write_vectored(context, &pieces))?;
            let taken = this.release(written)?;
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.held.is_empty() {
            let written = ready!(Pin::new(&mut this.stream).poll_write(context, &this.held))?;
            this.release(written)?;
        }
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;
    use tokio::io::AsyncWriteExt;

    /// Takes at most `room` bytes a call and notes each call.
    #[derive(Default)]
    struct Calls {
        room: usize,
        calls: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Calls {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken: Vec<u8> = bytes.iter().take(self.room).copied().collect();
            let length = taken.len();
            self.calls.push(taken);
            Poll::Ready(Ok(length))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            self.poll_write(context, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The calls that `pieces` and a flush become on a stream that takes `room` bytes a call.
    fn calls(room: usize, pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut socket = Socket::new(Calls { room, calls: Vec::new() });
        let work = async {
            for piece in pieces {
                socket.write_all(piece).await?;
            }
            socket.flush().await
        };
        let done = std::pin::pin!(work).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(done, Poll::Ready(Ok(()))), "nothing here waits");
        socket.stream.calls
    }

    #[test]
    fn small_pieces_leave_together_with_the_flush() {
        assert_eq!(calls(usize::MAX, &[b"ab", b"cd", b"e"]), [b"abcde"]);
    }

    #[test]
    fn a_head_leaves_with_its_payload() {
        let payload = [7; HELD_BYTES];
        let calls = calls(usize::MAX, &[b"head", &payload]);
        assert_eq!(calls, [[b"head".as_slice(), &payload].concat()]);
    }

    #[test]
    fn a_stream_that_takes_little_gets_all_bytes_in_order() {
        let payload: Vec<u8> = (0..HELD_BYTES + 5).map(|n| n as u8).collect();
        let calls = calls(3, &[b"head", &payload, b"tail"]);
        assert_eq!(calls.concat(), [b"head".as_slice(), &payload, b"tail"].concat());
    }

    #[test]
    fn a_stream_that_takes_nothing_is_an_error() {
        let mut socket = Socket::new(Calls::default());
        let mut context = Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut socket).poll_write(&mut context, b"x");
        assert!(matches!(Pin::new(&mut socket).poll_flush(&mut context), Poll::Ready(Err(_))));
    }
}
