//! A stream's handler as the response body itself.
//!
//! The handler is a future that the body owns; hyper polls the body when the client can take
//! more, and so runs the handler. What the handler sends is laid into the [`Outlet`], one
//! frame at a time, and [`Outlet::send`] goes on when the frame has left. So a slow client
//! stops its handler, nothing piles up here, and no task or channel stands between.
//!
//! Invariant: `send` is awaited by the handler itself, never inside a set of futures that polls
//! its members only when they are woken: it is the next poll of the body that lets it go on.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::Frame;
use parking_lot::Mutex;
use tonic::{Code, Status};

use super::trailers;
use crate::{door::Door, metrics::Rpc};

/// Where a handler puts frames.
pub(crate) struct Outlet {
    slot: Arc<Mutex<Option<Bytes>>>,
    door: Arc<Door>,
    rpc: Rpc,
}

// === impl Outlet ===

impl Outlet {
    /// Sends a frame that holds `messages` messages.
    pub(crate) async fn send(&self, frame: Bytes, messages: u64) {
        let mut frame = Some(frame);
        poll_fn(|_| {
            let mut slot = self.slot.lock();
            match (slot.is_none(), frame.take()) {
                (true, None) => Poll::Ready(()),
                (true, Some(frame)) => {
                    *slot = Some(frame);
                    Poll::Pending
                }
                (false, waiting) => {
                    frame = waiting;
                    Poll::Pending
                }
            }
        })
        .await;
        self.door.metrics.sent(self.rpc, messages);
    }
}

type Handler = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// A running stream.
pub(crate) struct Live {
    /// Gone once the stream has ended.
    handler: Option<Handler>,
    slot: Arc<Mutex<Option<Bytes>>>,
    door: Arc<Door>,
    rpc: Rpc,
}

// === impl Live ===

impl Live {
    pub(crate) fn new<F>(door: Arc<Door>, rpc: Rpc, run: impl FnOnce(Outlet) -> F) -> Live
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let slot = Arc::new(Mutex::new(None));
        let outlet = Outlet { slot: slot.clone(), door: door.clone(), rpc };
        Live { handler: Some(Box::pin(run(outlet))), slot, door, rpc }
    }

    pub(crate) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let Some(handler) = self.handler.as_mut() else { return Poll::Ready(None) };
        match handler.as_mut().poll(context) {
            Poll::Pending => match self.slot.lock().take() {
                Some(frame) => Poll::Ready(Some(Frame::data(frame))),
                None => Poll::Pending,
            },
            Poll::Ready(outcome) => {
                self.handler = None;
                let code = outcome.as_ref().err().map_or(Code::Ok, Status::code);
                self.door.metrics.handled(self.rpc, code);
                Poll::Ready(Some(Frame::trailers(trailers(&outcome))))
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.handler.is_some() {
            self.door.metrics.handled(self.rpc, Code::Cancelled);
        }
    }
}
