//! Sockets become exchanges: accepts connections, tells gRPC from pages, ends in order.
//!
//! One task per connection, which also runs the connection's exchanges ([`exchanges`]) and
//! gathers what they send ([`socket`]); hyper finds out by the first bytes whether it speaks
//! HTTP/1.1 or HTTP/2 without TLS. Windows are wide and stream limits high, as etcd's: a single client may
//! have ten thousand watches on one connection. Pings of clients are never punished.
//!
//! *Ending*: listeners close first, streams are told (`Door::closing`), then each connection
//! finishes what it has begun; what is not finished in time is dropped.

mod exchanges;
mod socket;

use std::{
    convert::Infallible, future::poll_fn, io, pin::pin, sync::Arc, sync::atomic::Ordering,
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use proto::group::Groups;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    PlacementMap, RouterConfig, StatusSource, api,
    door::{Connection, Door},
    grpc::Reply,
    http as pages,
};
use exchanges::{Begun, Exchanges};
use socket::Socket;

/// Bytes that may be on their way to us on one stream before we have read them.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest HTTP/2 frame we take: large puts arrive in few pieces.
const MAX_FRAME_BYTES: u32 = 256 * 1024;
/// Bytes of one stream that may wait for a slow client.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// How long a connection may take to finish after the server was told to stop.
const GRACE: Duration = Duration::from_secs(3);
/// Pause after an accept that failed, usually for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The router: made once, serves any number of listeners.
#[derive(Clone)]
pub struct Router {
    door: Arc<Door>,
}

// === impl Router ===

impl Router {
    /// Makes a router over `groups` with the placement of the embedded default. Figures of the
    /// node for /metrics come from `status`.
    pub fn new(
        config: RouterConfig,
        groups: Arc<dyn Groups>,
        status: Arc<dyn StatusSource>,
    ) -> Router {
        Router { door: Door::new(config, groups, status) }
    }

    /// Replaces the placement map; requests that come from now on go by it.
    pub fn place(&self, map: PlacementMap) {
        self.door.map.store(Arc::new(map));
    }

    /// Answers clients of `listeners` until `shutdown` resolves and open calls have ended (or
    /// had their time). Other clones of the router end their streams with it.
    pub async fn serve(
        &self,
        listeners: Vec<TcpListener>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> io::Result<()> {
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                accepted = accept(&listeners) => match accepted {
                    Ok(stream) => {
                        connections.spawn(converse(self.door.clone(), stream));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                () = &mut shutdown => break,
            }
        }
        drop(listeners);
        self.door.closing.send_replace(true);
        let finish = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, finish).await.is_err() {
            tracing::info!("dropping connections that did not finish in time");
        }
        Ok(())
    }
}

/// The next connection of any listener.
async fn accept(listeners: &[TcpListener]) -> io::Result<TcpStream> {
    let waiting: Vec<BoxFuture<'_, _>> =
        listeners.iter().map(|listener| Box::pin(listener.accept()) as BoxFuture<'_, _>).collect();
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    let (accepted, _, _) = futures::future::select_all(waiting).await;
    let (stream, _peer): (TcpStream, std::net::SocketAddr) = accepted?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn protocols(door: &Door, begun: Begun) -> auto::Builder<Begun> {
    let config = &door.config;
    let mut builder = auto::Builder::new(begun);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(config.max_concurrent_streams)
        // Cancelled calls are a client's right: do not close the connection over them.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .auto_date_header(false);
    builder.http1().timer(TokioTimer::new());
    builder
}

/// One client's connection, from its first byte to its last.
async fn converse(door: Arc<Door>, stream: TcpStream) {
    let mut closing = door.closing.subscribe();
    let mut closing = pin!(closing.wait_for(|closing| *closing));
    let connection = Connection::new(door.clone());
    let service = service_fn(move |request| answer(connection.clone(), request));
    let mut exchanges = Exchanges::default();
    let builder = protocols(&door, exchanges.begun());
    let mut wire = pin!(builder.serve_connection(TokioIo::new(Socket::new(stream)), service));
    door.metrics.connections.fetch_add(1, Ordering::Relaxed);
    let mut asked_to_end = false;
    let outcome = poll_fn(|context| {
        if !asked_to_end && closing.as_mut().poll(context).is_ready() {
            asked_to_end = true;
            wire.as_mut().graceful_shutdown();
        }
        // Answers first, then one write for all of them; what was read meanwhile begins.
        exchanges.poll(context);
        let outcome = wire.as_mut().poll(context);
        exchanges.poll(context);
        outcome
    })
    .await;
    door.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client connection ended with an error");
    }
}

type Exchange = BoxFuture<'static, Result<Response<Reply>, Infallible>>;

/// One exchange: a gRPC call or a page.
fn answer(connection: Arc<Connection>, request: Request<Incoming>) -> Exchange {
    let content = request.headers().get(header::CONTENT_TYPE);
    if content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc")) {
        let answer = api::call(connection, request);
        return Box::pin(async move { Ok(answer.await) });
    }
    Box::pin(async move { Ok(pages::page(connection, &request).await) })
}
