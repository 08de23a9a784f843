//! One HTTP/2 connection as the generated clients need it.
//!
//! It stands right on `h2`, because the client shares the cores with the servers. tonic's Channel and
//! hyper's client each add a queue and tasks per request, and send a request's head and body in two
//! packets; here a unary request is one packet and no task. Nothing reconnects, balances or buffers:
//! the number of connections is exactly what was asked for, and a lost connection is an error that the
//! run tells. All clients of a connection share one socket and one task that drives it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Request, Response, Uri};
use http_body::{Body as _, Frame};
use proto::cluster::admin::admin_client::AdminClient;
use proto::etcd;
use proto::etcd::cluster_client::ClusterClient;
use proto::etcd::kv_client::KvClient;
use proto::etcd::lease_client::LeaseClient;
use proto::etcd::maintenance_client::MaintenanceClient;
use proto::etcd::watch_client::WatchClient;
use tokio::net::TcpStream;
use tonic::body::Body;
use tower::Service;

use crate::error::Error;

/// Answers may be as long as a list of many large values.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// How much a server may send ahead, on a stream and on a connection: never the limit.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Written to see whether a server is well; behind all keys of the mixes.
const PROBE_KEY: &[u8] = b"~probe";

/// A shared, open HTTP/2 connection to one endpoint; a clone uses the same socket.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    origin: Uri,
}

impl Connection {
    /// Connects once.
    pub(crate) async fn open(endpoint: &str) -> Result<Connection, Error> {
        let refused = |reason: String| Error::Connect { endpoint: endpoint.to_owned(), reason };
        let origin: Uri = endpoint.parse().map_err(|e| refused(format!("{e}")))?;
        let authority = origin.authority().ok_or_else(|| refused("no host".to_owned()))?;
        if origin.scheme_str() != Some("http") {
            return Err(refused("only http:// is spoken".to_owned()));
        }
        let socket =
            TcpStream::connect(authority.as_str()).await.map_err(|e| refused(format!("{e}")))?;
        socket.set_nodelay(true).map_err(|e| refused(format!("{e}")))?;
        let (sender, driver) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(socket)
            .await
            .map_err(|e| refused(format!("{e}")))?;
        // The error of a broken connection reaches each request on it.
        tokio::spawn(async move { drop(driver.await) });
        Ok(Connection { sender, origin })
    }

    pub(crate) fn kv(&self) -> KvClient<Connection> {
        KvClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Of the etcd that has the host's name.
    pub(crate) fn kv_of(&self, host: &str) -> KvClient<Connection> {
        let origin = Uri::builder().scheme("http").authority(host).path_and_query("/").build();
        KvClient::with_origin(self.clone(), origin.expect("the name of a host is an authority"))
    }

    pub(crate) fn admin(&self) -> AdminClient<Connection> {
        AdminClient::with_origin(self.clone(), self.origin.clone())
    }

    pub(crate) fn watch(&self) -> WatchClient<Connection> {
        WatchClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn lease(&self) -> LeaseClient<Connection> {
        LeaseClient::with_origin(self.clone(), self.origin.clone())
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Connection> {
        ClusterClient::with_origin(self.clone(), self.origin.clone())
    }

    pub(crate) fn maintenance(&self) -> MaintenanceClient<Connection> {
        MaintenanceClient::with_origin(self.clone(), self.origin.clone())
    }
}

// === impl Service ===

impl Service<Request<Body>> for Connection {
    type Response = Response<Answer>;
    type Error = h2::Error;
    type Future = Exchange;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Exchange {
        let (head, body) = request.into_parts();
        match self.sender.send_request(Request::from_parts(head, ()), false) {
            Ok((response, stream)) => {
                let mut upload = Upload { body, stream, held: None };
                // A unary request's body is ready at once and goes out with the head. If it is not,
                // the task polls it again and leaves its own waker.
                match upload.advance(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(()) => {}
                    Poll::Pending => drop(tokio::spawn(upload)),
                }
                Exchange(Ok(response))
            }
            Err(error) => Exchange(Err(Some(error))),
        }
    }
}

/// Waits for the head of the answer.
pub(crate) struct Exchange(Result<ResponseFuture, Option<h2::Error>>);

impl Future for Exchange {
    type Output = Result<Response<Answer>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(response) => Pin::new(response)
                .poll(context)
                .map_ok(|answer| answer.map(|stream| Answer { stream, ended: false })),
            Err(error) => Poll::Ready(Err(error.take().expect("polled once after an error"))),
        }
    }
}

/// The body of a request on its way out. `h2` buffers what the server's window does not let through
/// yet; that is bounded by what the clients have in flight.
struct Upload {
    body: Body,
    stream: SendStream<Bytes>,
    /// A frame is held back until it is known whether it is the last.
    held: Option<Bytes>,
}

impl Upload {
    /// Sends what is ready; done at the end of the body or when the server no longer listens.
    fn advance(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let next = Pin::new(&mut self.body).poll_frame(context);
            let next = next.map(|frame| frame.and_then(|f| f.ok()?.into_data().ok()));
            let ended = matches!(next, Poll::Ready(None));
            let waiting = match &next {
                Poll::Ready(Some(_)) | Poll::Pending => self.held.take(),
                Poll::Ready(None) => Some(self.held.take().unwrap_or_default()),
            };
            if let Some(data) = waiting
                && self.stream.send_data(data, ended).is_err()
            {
                return Poll::Ready(());
            }
            match next {
                Poll::Ready(Some(data)) => self.held = Some(data),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return self.stream.poll_reset(context).map(drop),
            }
        }
    }
}

impl Future for Upload {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.advance(context)
    }
}

/// The body of an answer.
pub(crate) struct Answer {
    stream: RecvStream,
    ended: bool,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match ready!(self.stream.poll_data(context)) {
            Some(Ok(data)) => {
                // The window may be filled again.
                let released = self.stream.flow_control().release_capacity(data.len());
                Poll::Ready(Some(released.map(|()| Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(self.stream.poll_trailers(context));
                self.ended = true;
                Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
            }
        }
    }
}

// === Endpoints ===

/// Opens `count` connections, round robin over the endpoints.
pub(crate) async fn open_all(endpoints: &[String], count: usize) -> Result<Vec<Connection>, Error> {
    stream::iter((0..count).map(|n| Connection::open(&endpoints[n % endpoints.len()])))
        .buffered(32)
        .try_collect()
        .await
}

/// The same endpoints, the leader's first: a run with one client then means the same for every
/// system. Without an answer about the leader the order stays.
pub(crate) async fn leader_first(endpoints: &[String]) -> Result<Vec<String>, Error> {
    let mut ordered = endpoints.to_vec();
    for (at, endpoint) in endpoints.iter().enumerate() {
        let connection = Connection::open(endpoint).await?;
        let status = connection.maintenance().status(etcd::StatusRequest {}).await;
        let Ok(status) = status.map(tonic::Response::into_inner) else { continue };
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            ordered[..=at].rotate_right(1);
            break;
        }
    }
    Ok(ordered)
}

/// Opens a connection to the leader.
pub(crate) async fn open_leader(endpoints: &[String]) -> Result<Connection, Error> {
    Connection::open(&leader_first(endpoints).await?[0]).await
}

/// Waits until each endpoint answers a put; tells how long that took.
pub(crate) async fn wait_healthy(endpoints: &[String], limit: Duration) -> Result<Duration, Error> {
    let started = Instant::now();
    for endpoint in endpoints {
        loop {
            let refusal = match takes_put(endpoint).await {
                Ok(()) => break,
                Err(refusal) => refusal,
            };
            if started.elapsed() > limit {
                return Err(refusal);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(started.elapsed())
}

async fn takes_put(endpoint: &str) -> Result<(), Error> {
    let connection = Connection::open(endpoint).await?;
    let request = etcd::PutRequest { key: PROBE_KEY.into(), ..Default::default() };
    let refused = |reason: String| Error::Connect { endpoint: endpoint.to_owned(), reason };
    match tokio::time::timeout(Duration::from_secs(5), connection.kv().put(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(refused(status.to_string())),
        Err(_) => Err(refused("no answer within 5 s".to_owned())),
    }
}
