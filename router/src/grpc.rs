//! gRPC on the wire: five bytes of frame, one message, a status in the trailers.
//!
//! Written by hand instead of taken from a framework, for three reasons. *Cost*: a framework
//! allocates an 8 KiB buffer for each message read and another for each written, and boxes
//! several layers; here a small request is read into memory of exactly its size, so that a
//! key kept by a store does not keep a whole socket buffer. *Texts*: oversized and malformed
//! messages get the words that Go's gRPC server uses. *Streams*: a stream's handler runs
//! inside the response body ([`live`]), so that an event wakes one task, not two, and several
//! messages leave in one frame.
//!
//! ```text
//! +------------+------------------+-----------+
//! | compressed | length, 4 bytes  | message   |   no compression is spoken, as in etcd
//! +------------+------------------+-----------+
//! ```

pub(crate) mod inbound;
pub(crate) mod live;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use hyper::body::{Body, Frame, SizeHint};
use prost::Message;
use tonic::Status;

use crate::{door::Door, metrics::Rpc};
use live::Live;

/// Bytes before each message.
pub(crate) const FRAME_HEADER_BYTES: usize = 5;

/// Puts one message behind what `buffer` holds.
pub(crate) fn append(buffer: &mut BytesMut, message: &impl Message) {
    append_with(buffer, message.encoded_len(), |buffer| message.encode_raw(buffer));
}

/// Puts a message of `length` bytes, written by `write`, behind what `buffer` holds.
pub(crate) fn append_with(buffer: &mut BytesMut, length: usize, write: impl FnOnce(&mut BytesMut)) {
    buffer.reserve(FRAME_HEADER_BYTES + length);
    buffer.put_u8(0);
    // A response above 4 GiB cannot be framed; etcd's own limit is 2 GiB.
    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    let start = buffer.len();
    write(buffer);
    debug_assert_eq!(buffer.len() - start, length, "the message has the announced length");
}

/// One message as a frame of its own.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let mut buffer = BytesMut::with_capacity(FRAME_HEADER_BYTES + message.encoded_len());
    append(&mut buffer, message);
    buffer.freeze()
}

/// What a client is sent.
#[derive(Default)]
pub(crate) enum Reply {
    /// Nothing: the headers said all.
    #[default]
    Empty,
    /// One message and a good status.
    Whole(Option<Bytes>),
    /// Trailers that say "OK".
    Trailers,
    /// A page of plain HTTP.
    Page(Option<Bytes>),
    /// A running stream.
    Live(Live),
}

// === impl Reply ===

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        match this {
            Reply::Empty => Poll::Ready(None),
            Reply::Whole(message) => {
                let frame = message.take().map(|message| Ok(Frame::data(message)));
                *this = Reply::Trailers;
                if frame.is_some() {
                    return Poll::Ready(frame);
                }
                Pin::new(this).poll_frame(context)
            }
            Reply::Trailers => {
                *this = Reply::Empty;
                Poll::Ready(Some(Ok(Frame::trailers(good_trailers()))))
            }
            Reply::Page(page) => Poll::Ready(page.take().map(|page| Ok(Frame::data(page)))),
            Reply::Live(live) => live.poll_frame(context).map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Empty | Reply::Page(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Empty | Reply::Page(None) => SizeHint::with_exact(0),
            Reply::Page(Some(page)) => SizeHint::with_exact(page.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const OK: HeaderValue = HeaderValue::from_static("0");

fn good_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", OK);
    trailers
}

/// Trailers that say `outcome`.
pub(crate) fn trailers(outcome: &Result<(), Status>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    match outcome {
        Ok(()) => return good_trailers(),
        Err(status) => {
            if status.add_header(&mut trailers).is_err() {
                trailers.insert("grpc-status", HeaderValue::from_static("2"));
            }
        }
    }
    trailers
}

/// A response whose headers are gRPC's.
pub(crate) fn respond(reply: Reply) -> Response<Reply> {
    let mut response = Response::new(reply);
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    response
}

/// Answers a unary call and counts it.
pub(crate) fn finish<M: Message>(
    door: &Door,
    rpc: Rpc,
    outcome: Result<M, Status>,
) -> Response<Reply> {
    match outcome {
        Ok(message) => {
            door.metrics.sent(rpc, 1);
            door.metrics.handled(rpc, tonic::Code::Ok);
            respond(Reply::Whole(Some(frame(&message))))
        }
        Err(status) => refuse(door, rpc, status),
    }
}

/// Answers a call with an error alone, and counts it.
pub(crate) fn refuse(door: &Door, rpc: Rpc, status: Status) -> Response<Reply> {
    door.metrics.handled(rpc, status.code());
    status.into_http()
}

/// Answers with a stream that `run` feeds through its outlet; counted when it ends.
pub(crate) fn stream<F>(
    door: Arc<Door>,
    rpc: Rpc,
    run: impl FnOnce(live::Outlet) -> F,
) -> Response<Reply>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    respond(Reply::Live(Live::new(door, rpc, run)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_five_bytes_and_the_message() {
        let bytes = frame(&proto::etcd::LeaseRevokeRequest { id: 5 });
        assert_eq!(bytes.as_ref(), [0, 0, 0, 0, 2, 8, 5]);
    }

    #[test]
    fn a_message_without_fields_is_a_frame_of_length_zero() {
        assert_eq!(frame(&proto::etcd::StatusRequest {}).as_ref(), [0; 5]);
    }

    #[test]
    fn messages_follow_each_other_in_one_buffer() {
        let mut buffer = BytesMut::new();
        append(&mut buffer, &proto::etcd::StatusRequest {});
        append(&mut buffer, &proto::etcd::LeaseRevokeRequest { id: 5 });
        assert_eq!(buffer.as_ref(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 8, 5]);
    }
}
