//! Sockets become exchanges: accepts connections, tells gRPC from pages, ends in order.
//!
//! One task per connection, which also runs the connection's exchanges ([`exchanges`]) and
//! gathers what they send ([`socket`]); hyper finds out by the first bytes whether it speaks
//! HTTP/1.1 or HTTP/2 without TLS. Windows are wide and stream limits high, as etcd's: a single client may
//! have ten thousand watches on one connection. Pings of clients are never punished.
//!
//! *Ending*: listeners close first, the streams that came through them are told, then each
//! connection finishes what it has begun; what is not finished in time is dropped. Listeners
//! that are served by another call go on.

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
use proto::{NamespaceId, PlacementMap, TenantId, group::Groups};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinSet,
};

use crate::{
    RouterConfig, StatusSource, api,
    connection::Connection,
    door::Door,
    grpc::Reply,
    http as pages,
    identify::{Entrance, EtcdId},
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

/// A listener and whom its clients are for.
pub(crate) struct Entry {
    listener: TcpListener,
    entrance: Entrance,
    /// Dropped with the listener, so that others know when the port is free.
    _release: Option<oneshot::Sender<()>>,
}

// === impl Entry ===

impl Entry {
    /// A listener whose clients say whom they mean, if not by its port.
    fn shared(listener: TcpListener) -> Entry {
        Entry::new(listener, None, None)
    }

    /// A listener that was opened for one etcd.
    pub(crate) fn of_etcd(
        listener: TcpListener,
        etcd: EtcdId,
        release: Option<oneshot::Sender<()>>,
    ) -> Entry {
        Entry::new(listener, Some(etcd), release)
    }

    fn new(
        listener: TcpListener,
        etcd: Option<EtcdId>,
        _release: Option<oneshot::Sender<()>>,
    ) -> Entry {
        let port = listener.local_addr().map_or(0, |address| address.port());
        Entry { listener, entrance: Entrance { port, etcd }, _release }
    }

    async fn accept(&self) -> io::Result<(TcpStream, Entrance)> {
        let (stream, _peer) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, self.entrance))
    }
}

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

    /// Replaces the placement map: requests that come from now on go by it, and open streams of
    /// etcds that it moves, freezes or does not have are told. Whether `map` is newer than the
    /// one before it is for the caller to know.
    pub fn place(&self, map: impl Into<Arc<PlacementMap>>) {
        self.door.place(map.into());
    }

    /// The map that requests go by now.
    pub fn map(&self) -> Arc<PlacementMap> {
        self.door.map()
    }

    /// Changes with each map.
    pub(crate) fn placements(&self) -> watch::Receiver<u64> {
        self.door.placements()
    }

    /// Answers clients of `listeners` until `shutdown` resolves and open calls have ended (or
    /// had their time). Whom a client means is seen from its requests.
    pub async fn serve(
        &self,
        listeners: Vec<TcpListener>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> io::Result<()> {
        self.receive(listeners.into_iter().map(Entry::shared).collect(), shutdown).await;
        Ok(())
    }

    /// The same for a listener whose clients all mean one etcd, whatever port it has.
    pub async fn serve_etcd(
        &self,
        tenant: TenantId,
        namespace: NamespaceId,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> io::Result<()> {
        let entry = Entry::of_etcd(listener, (tenant, namespace), None);
        self.receive(vec![entry], shutdown).await;
        Ok(())
    }

    /// Takes connections until `shutdown` resolves, and ends them in order.
    pub(crate) async fn receive(
        &self,
        entries: Vec<Entry>,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        let (closing, closed) = watch::channel(false);
        loop {
            tokio::select! {
                accepted = accept(&entries) => match accepted {
                    Ok((stream, entrance)) => {
                        let door = self.door.clone();
                        let connection = Connection::new(door, entrance, closed.clone());
                        connections.spawn(converse(connection, stream));
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
        drop(entries);
        closing.send_replace(true);
        let finish = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, finish).await.is_err() {
            tracing::info!("dropping connections that did not finish in time");
        }
    }
}

/// The next connection of any listener.
async fn accept(entries: &[Entry]) -> io::Result<(TcpStream, Entrance)> {
    let waiting: Vec<BoxFuture<'_, _>> =
        entries.iter().map(|entry| Box::pin(entry.accept()) as BoxFuture<'_, _>).collect();
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    let (accepted, _, _) = futures::future::select_all(waiting).await;
    accepted
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
async fn converse(connection: Arc<Connection>, stream: TcpStream) {
    let door = connection.door.clone();
    let mut closing = connection.closing();
    let mut closing = pin!(closing.wait_for(|closing| *closing));
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
