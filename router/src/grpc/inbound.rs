//! Messages out of a request body.
//!
//! Most requests are one small message in one HTTP frame. It is copied into memory of exactly
//! its size: a slice of the socket's buffer would cost no copy, but whoever keeps the key (a
//! store, a watch) would keep the buffer. Large messages are taken as they came if they came
//! in one piece, and put together once if not.
//!
//! Invariant: nothing is allocated on the word of a length that the limit does not allow.

use std::{future::poll_fn, marker::PhantomData, pin::Pin};

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use prost::Message;
use tonic::Status;

use super::FRAME_HEADER_BYTES;

/// Messages of at least this size may share memory with the buffer they came in.
const SHARED_BYTES: usize = 16 * 1024;

/// Where requests come from. hyper's own in life, bytes in tests.
pub(crate) type Source = Incoming;

/// The length that a frame header announces, checked against `limit`.
fn announced(header: &[u8], limit: usize) -> Result<usize, Status> {
    let &[compressed, a, b, c, d, ..] = header else {
        return Err(Status::internal("grpc: a frame header is five bytes"));
    };
    if compressed != 0 {
        return Err(Status::unimplemented(
            "grpc: Decompressor is not installed for the message's grpc-encoding",
        ));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > limit {
        return Err(Status::resource_exhausted(format!(
            "grpc: received message larger than max ({length} vs. {limit})"
        )));
    }
    Ok(length)
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message)
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}

/// Takes a whole message off the front of `chunk`, if it is there.
fn take(chunk: &mut Bytes, limit: usize) -> Result<Option<Bytes>, Status> {
    if chunk.len() < FRAME_HEADER_BYTES {
        return Ok(None);
    }
    let length = announced(chunk, limit)?;
    if chunk.len() - FRAME_HEADER_BYTES < length {
        return Ok(None);
    }
    chunk.advance(FRAME_HEADER_BYTES);
    let message = chunk.split_to(length);
    if length >= SHARED_BYTES {
        Ok(Some(message))
    } else {
        Ok(Some(Bytes::copy_from_slice(&message)))
    }
}

/// The messages of one request.
pub(crate) struct Inbound<M> {
    body: Source,
    limit: usize,
    /// What came and was not taken yet: in one piece...
    chunk: Bytes,
    /// ... or the beginning of a message that goes on in the next chunk.
    partial: BytesMut,
    message: PhantomData<fn() -> M>,
}

// === impl Inbound ===

impl<M: Message + Default> Inbound<M> {
    pub(crate) fn new(body: Source, limit: usize) -> Inbound<M> {
        Inbound { body, limit, chunk: Bytes::new(), partial: BytesMut::new(), message: PhantomData }
    }

    /// The only message of a unary request, and its size.
    pub(crate) async fn only(mut self) -> Result<(M, usize), Status> {
        match self.next_bytes().await? {
            Some(message) => {
                let bytes = message.len();
                Ok((decode(message)?, bytes))
            }
            None => Err(Status::internal("grpc: the request has no message")),
        }
    }

    /// The next message; `None` when the client will send no more. May be dropped while it
    /// waits without losing anything.
    pub(crate) async fn next(&mut self) -> Result<Option<M>, Status> {
        self.next_bytes().await?.map(decode).transpose()
    }

    async fn next_bytes(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.take_complete()? {
                return Ok(Some(message));
            }
            let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            match frame {
                None if self.partial.is_empty() => return Ok(None),
                None => return Err(Status::internal("grpc: the stream ends inside a message")),
                Some(Err(_)) => return Err(Status::cancelled("context canceled")),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.put(data)?;
                    }
                }
            }
        }
    }

    /// A complete message of what has come; the rest moves to `partial`.
    fn take_complete(&mut self) -> Result<Option<Bytes>, Status> {
        assert!(self.chunk.is_empty() || self.partial.is_empty(), "bytes wait in one place");
        if !self.chunk.is_empty() {
            let message = take(&mut self.chunk, self.limit)?;
            if message.is_none() {
                let rest = std::mem::take(&mut self.chunk);
                self.begin_partial(&rest)?;
            }
            return Ok(message);
        }
        if self.partial.len() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let whole = FRAME_HEADER_BYTES + announced(&self.partial, self.limit)?;
        if self.partial.len() < whole {
            return Ok(None);
        }
        let mut message = self.partial.split_to(whole).freeze();
        message.advance(FRAME_HEADER_BYTES);
        self.chunk = std::mem::take(&mut self.partial).freeze();
        Ok(Some(message))
    }

    fn begin_partial(&mut self, rest: &[u8]) -> Result<(), Status> {
        if rest.len() >= FRAME_HEADER_BYTES {
            self.partial.reserve(FRAME_HEADER_BYTES + announced(rest, self.limit)?);
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    fn put(&mut self, data: Bytes) -> Result<(), Status> {
        if self.partial.is_empty() {
            self.chunk = data;
            return Ok(());
        }
        let known = self.partial.len() >= FRAME_HEADER_BYTES;
        self.partial.extend_from_slice(&data);
        if !known && self.partial.len() >= FRAME_HEADER_BYTES {
            let length = announced(&self.partial, self.limit)?;
            self.partial.reserve((FRAME_HEADER_BYTES + length).saturating_sub(self.partial.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_above_the_limit_gets_the_words_of_go() {
        let status = announced(&[0, 0, 0x20, 0, 1], 0x20_0000).unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "grpc: received message larger than max (2097153 vs. 2097152)"
        );
    }

    #[test]
    fn a_message_at_the_limit_is_read() {
        assert_eq!(announced(&[0, 0, 0x20, 0, 0], 0x20_0000).ok(), Some(0x20_0000));
    }

    #[test]
    fn a_compressed_message_is_refused() {
        assert_eq!(announced(&[1, 0, 0, 0, 1], 10).unwrap_err().code(), tonic::Code::Unimplemented);
    }

    #[test]
    fn messages_leave_a_chunk_one_by_one() {
        let mut chunk = Bytes::from_static(&[0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(take(&mut chunk, 9).ok().flatten().as_deref(), Some(&[7][..]));
        assert_eq!(take(&mut chunk, 9).ok().flatten().as_deref(), Some(&[][..]));
        assert!(matches!(take(&mut chunk, 9), Ok(None)));
        assert_eq!(chunk.len(), 3);
    }
}
