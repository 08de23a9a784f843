//! Between nodes: one ordered stream of Raft messages, one stream of requests and one of watches
//! per direction and pair, whatever the number of groups.
//!
//! Nothing here waits for a peer: a full queue drops Raft messages (Raft sends again) and
//! refuses requests. Requests that were handed to a connection which then broke have an
//! unknown outcome; those that were not are certainly not done. Watches have `asker.rs` on the
//! side of the client, `teller.rs` on the side of the hub.

mod asker;
mod packing;
mod teller;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use proto::cluster::group::groups_client::GroupsClient;
use proto::cluster::group::groups_server::{Groups as GroupsService, GroupsServer};
use proto::cluster::group::{
    GroupRequest, ReplyBatch, ReplyFrame, RequestBatch, RequestFrame, WatchAsk, WatchTell,
};
use proto::cluster::raft::peer_client::PeerClient;
use proto::cluster::raft::peer_server::{Peer, PeerServer};
use proto::cluster::raft::{PeerAck, PeerBatch, PeerMessage};
use proto::etcd::Member;
use proto::group::{GroupError, Groups, Reply, WatchControl, WatchSink, from_reply};
use proto::{Error, GroupId, NodeId};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::node::Input;
use crate::worker::{NodeHandle, Outbox};
use asker::Asker;

/// Batches that may wait for one peer.
const PEER_DEPTH: usize = 4096;
/// Requests that may wait for one peer.
const REQUEST_DEPTH: usize = 16_384;
/// Requests or replies packed into one message.
const PACK: usize = 256;
/// Largest message between nodes.
pub const MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Window of a connection and of a stream.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Pause before a broken connection is tried again.
const RECONNECT: Duration = Duration::from_millis(200);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a quiet connection is tried, and how long it may not answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Reply, GroupError>>>>>;

struct PeerLink {
    address: String,
    raft: mpsc::Sender<Vec<PeerMessage>>,
    requests: mpsc::Sender<RequestFrame>,
    waiting: Waiting,
    /// It could not be reached when it was tried last.
    down: Arc<AtomicBool>,
    watches: Arc<Asker>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for PeerLink {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// This node's side of all connections to other nodes.
pub struct Peers {
    node: NodeId,
    cluster: u64,
    runtime: tokio::runtime::Handle,
    links: Mutex<BTreeMap<NodeId, Arc<PeerLink>>>,
    unreachable: mpsc::UnboundedSender<NodeId>,
    retired: mpsc::UnboundedSender<GroupId>,
    members: Mutex<BTreeMap<GroupId, Box<[NodeId]>>>,
    next: AtomicU64,
}

/// What [`Peers`] reports.
pub struct PeerReports {
    /// Nodes that cannot be reached. At most one per try to connect.
    pub unreachable: mpsc::UnboundedReceiver<NodeId>,
    /// Groups of which this node was removed as a member.
    pub retired: mpsc::UnboundedReceiver<GroupId>,
}

impl Peers {
    /// Connections of `node` in `cluster`; must be called inside a runtime.
    pub fn new(node: NodeId, cluster: u64) -> (Arc<Peers>, PeerReports) {
        let (unreachable, unreachable_receiver) = mpsc::unbounded_channel();
        let (retired, retired_receiver) = mpsc::unbounded_channel();
        let peers = Peers {
            node,
            cluster,
            runtime: tokio::runtime::Handle::current(),
            links: Mutex::default(),
            unreachable,
            retired,
            members: Mutex::default(),
            next: AtomicU64::new(1),
        };
        let reports = PeerReports { unreachable: unreachable_receiver, retired: retired_receiver };
        (Arc::new(peers), reports)
    }

    /// Nodes of the members of a group, as last applied here.
    pub fn members_of(&self, group: GroupId) -> Box<[NodeId]> {
        self.members.lock().get(&group).cloned().unwrap_or_default()
    }

    /// Makes a node reachable at `address` (an URL), before any group said so.
    pub fn introduce(&self, node: NodeId, address: &str) {
        if node == self.node {
            return;
        }
        let mut links = self.links.lock();
        if links.get(&node).is_some_and(|link| link.address == address) {
            return;
        }
        links.insert(node, Arc::new(self.link(node, address)));
    }

    fn link(&self, node: NodeId, address: &str) -> PeerLink {
        let (raft, raft_receiver) = mpsc::channel(PEER_DEPTH);
        let (requests, request_receiver) = mpsc::channel(REQUEST_DEPTH);
        let waiting = Waiting::default();
        let to = Target { node, from: self.node, cluster: self.cluster, address: address.into() };
        let unreachable = self.unreachable.clone();
        let down = Arc::new(AtomicBool::new(false));
        let (watches, steps) = Asker::new();
        let ask = run_requests(to.clone(), request_receiver, waiting.clone(), down.clone());
        let tasks = vec![
            self.runtime.spawn(run_raft(to.clone(), raft_receiver, unreachable)),
            self.runtime.spawn(ask),
            self.runtime.spawn(asker::run(to, steps)),
        ];
        PeerLink { address: address.into(), raft, requests, waiting, down, watches, tasks }
    }

    /// Is there a way to a node, as far as is known?
    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.links.lock().get(&node).is_some_and(|link| !link.down.load(Ordering::Relaxed))
    }

    /// Runs something beside the connections.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Opens a client stream's watches at a node's replica of `group`; gives the sink back if no
    /// way to the node is known.
    pub fn watch(
        &self,
        node: NodeId,
        group: GroupId,
        sink: Arc<dyn WatchSink>,
    ) -> Result<Box<dyn WatchControl>, Arc<dyn WatchSink>> {
        match self.links.lock().get(&node) {
            Some(link) => Ok(link.watches.open(group, sink)),
            None => Err(sink),
        }
    }

    /// Sends a request to a node and waits for its reply.
    pub async fn call(&self, node: NodeId, request: GroupRequest) -> Result<Reply, GroupError> {
        let link = self.links.lock().get(&node).cloned();
        let Some(link) = link else { return Err(GroupError::not_done(Error::NoLeader, None)) };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        link.waiting.lock().insert(id, sender);
        let _forget = Forget { waiting: &link.waiting, id };
        let frame = RequestFrame { id, request: Some(request) };
        if link.requests.try_send(frame).is_err() {
            return Err(GroupError::not_done(Error::TooManyRequests, None));
        }
        let answer = receiver.await;
        answer.unwrap_or(Err(GroupError::unknown(Error::TimeoutConnectionLost)))
    }
}

/// Forgets a request that nobody waits for any more.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

impl Outbox for Peers {
    fn send(&self, to: NodeId, messages: Vec<PeerMessage>) {
        let link = self.links.lock().get(&to).cloned();
        if let Some(link) = link {
            // A full queue is a slow or dead peer: Raft sends again.
            let _ = link.raft.try_send(messages);
        }
    }

    fn members(&self, group: GroupId, members: &[Member]) {
        for member in members {
            if let Some(address) = member.peer_ur_ls.first() {
                self.introduce(NodeId(member.id), address);
            }
        }
        let nodes = members.iter().map(|member| NodeId(member.id)).collect();
        self.members.lock().insert(group, nodes);
    }

    fn retired(&self, group: GroupId) {
        let _ = self.retired.send(group);
    }
}

#[derive(Clone)]
struct Target {
    node: NodeId,
    from: NodeId,
    cluster: u64,
    address: String,
}

async fn connect(address: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(address.to_string()).ok()?;
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .connect()
        .await
        .ok()
}

/// Keeps a stream of Raft messages to a peer.
async fn run_raft(
    to: Target,
    receiver: mpsc::Receiver<Vec<PeerMessage>>,
    unreachable: mpsc::UnboundedSender<NodeId>,
) {
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    loop {
        if let Some(channel) = connect(&to.address).await {
            let mut client = PeerClient::new(channel)
                .max_encoding_message_size(MESSAGE_BYTES)
                .max_decoding_message_size(MESSAGE_BYTES);
            let target = to.clone();
            let source = receiver.clone();
            let stream = futures::stream::unfold(source, move |source| {
                let target = target.clone();
                async move {
                    let mut messages = {
                        let mut receiver = source.lock().await;
                        let mut messages = receiver.recv().await?;
                        while let Ok(more) = receiver.try_recv() {
                            messages.extend(more);
                            if messages.len() >= PACK {
                                break;
                            }
                        }
                        messages
                    };
                    let batch = PeerBatch {
                        cluster: target.cluster,
                        from_node: target.from.0,
                        to_node: target.node.0,
                        messages: std::mem::take(&mut messages),
                    };
                    Some((batch, source))
                }
            });
            if let Err(status) = client.exchange(stream).await {
                tracing::debug!(node = to.node.0, %status, "the stream to a peer ended");
            }
        }
        let _ = unreachable.send(to.node);
        // What waited is old news by now.
        {
            let mut receiver = receiver.lock().await;
            while receiver.try_recv().is_ok() {}
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Keeps a stream of requests to a peer and hands out the replies.
async fn run_requests(
    to: Target,
    receiver: mpsc::Receiver<RequestFrame>,
    waiting: Waiting,
    down: Arc<AtomicBool>,
) {
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    loop {
        if let Some(channel) = connect(&to.address).await {
            down.store(false, Ordering::Relaxed);
            let mut client = GroupsClient::new(channel)
                .max_encoding_message_size(MESSAGE_BYTES)
                .max_decoding_message_size(MESSAGE_BYTES);
            let stream = futures::stream::unfold(receiver.clone(), |source| async move {
                let mut frames = Vec::new();
                {
                    let mut receiver = source.lock().await;
                    receiver.recv_many(&mut frames, PACK).await;
                }
                (!frames.is_empty()).then_some((RequestBatch { frames }, source))
            });
            if let Ok(replies) = client.call(of_cluster(to.cluster, stream)).await {
                let mut replies = replies.into_inner();
                while let Ok(Some(batch)) = replies.message().await {
                    let mut waiting = waiting.lock();
                    for frame in batch.frames {
                        if let Some(sender) = waiting.remove(&frame.id) {
                            let _ = sender.send(from_reply(frame.reply.unwrap_or_default()));
                        }
                    }
                }
            }
        }
        down.store(true, Ordering::Relaxed);
        // Frames still in the queue never left: those who wait for them may try elsewhere.
        let mut unsent = Vec::new();
        {
            let mut receiver = receiver.lock().await;
            while let Ok(frame) = receiver.try_recv() {
                unsent.push(frame.id);
            }
        }
        disconnected(&waiting, &unsent);
        tokio::time::sleep(RECONNECT).await;
    }
}

/// The header that says which cluster a stream is of.
pub const CLUSTER: &str = "atoll-cluster";

/// Says of a stream of requests which cluster it is of.
fn of_cluster<T>(cluster: u64, stream: T) -> Request<T> {
    let mut request = Request::new(stream);
    request.metadata_mut().insert(CLUSTER, cluster.into());
    request
}

/// Tells who waits at a broken connection: those whose requests never left may try
/// elsewhere, for the others the outcome is unknown.
fn disconnected(waiting: &Waiting, unsent: &[u64]) {
    let mut waiting = waiting.lock();
    for id in unsent {
        if let Some(sender) = waiting.remove(id) {
            let _ = sender.send(Err(GroupError::not_done(Error::NoLeader, None)));
        }
    }
    for (_, sender) in waiting.drain() {
        let _ = sender.send(Err(GroupError::unknown(Error::TimeoutConnectionLost)));
    }
}

/// The services that other nodes call.
pub struct PeerServices {
    node: NodeId,
    cluster: u64,
    handle: NodeHandle,
    groups: Arc<dyn Groups>,
}

impl PeerServices {
    /// Services of `node`; requests are answered through `groups`, by this node alone.
    pub fn new(node: NodeId, cluster: u64, handle: NodeHandle, groups: Arc<dyn Groups>) -> Self {
        PeerServices { node, cluster, handle, groups }
    }

    /// Group ids are the same in every cluster: a stream of another one is refused. A node that
    /// does not know yet which cluster it is of says nothing.
    fn check_cluster<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let said = request.metadata().get(CLUSTER).map(|said| said.to_str().unwrap_or_default());
        match said {
            Some(said) if said != self.cluster.to_string() => Err(Error::ClusterIdMismatch.into()),
            _ => Ok(()),
        }
    }

    /// Serves on `listener` until `shutdown` ends, and `others` beside its own services.
    pub async fn serve(
        self,
        listener: tokio::net::TcpListener,
        others: Routes,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let this = Arc::new(self);
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        Server::builder()
            .initial_connection_window_size(WINDOW_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_routes(others)
            .add_service(
                PeerServer::from_arc(this.clone())
                    .max_decoding_message_size(MESSAGE_BYTES)
                    .max_encoding_message_size(MESSAGE_BYTES),
            )
            .add_service(
                GroupsServer::from_arc(this)
                    .max_decoding_message_size(MESSAGE_BYTES)
                    .max_encoding_message_size(MESSAGE_BYTES),
            )
            .serve_with_incoming_shutdown(incoming, shutdown)
            .await
    }
}

#[tonic::async_trait]
impl Peer for PeerServices {
    async fn exchange(
        &self,
        request: Request<Streaming<PeerBatch>>,
    ) -> Result<Response<PeerAck>, Status> {
        let mut stream = request.into_inner();
        while let Some(batch) = stream.message().await? {
            if batch.cluster != self.cluster || batch.to_node != self.node.0 {
                return Err(Error::ClusterIdMismatch.into());
            }
            let from = NodeId(batch.from_node);
            for message in batch.messages {
                self.handle.input(Input::Peer { from, message });
            }
        }
        Ok(Response::new(PeerAck {}))
    }
}

#[tonic::async_trait]
impl GroupsService for PeerServices {
    type CallStream =
        std::pin::Pin<Box<dyn futures::Stream<Item = Result<ReplyBatch, Status>> + Send>>;

    async fn call(
        &self,
        request: Request<Streaming<RequestBatch>>,
    ) -> Result<Response<Self::CallStream>, Status> {
        self.check_cluster(&request)?;
        let mut stream = request.into_inner();
        let (sender, receiver) = mpsc::channel::<ReplyFrame>(REQUEST_DEPTH);
        let groups = self.groups.clone();
        tokio::spawn(async move {
            while let Ok(Some(batch)) = stream.message().await {
                for frame in batch.frames {
                    let Some(request) = frame.request else { continue };
                    let reply = groups.call(request);
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        let reply = match reply.await {
                            Ok(body) => proto::cluster::group::GroupReply { body: Some(body) },
                            Err(error) => error.to_reply(),
                        };
                        // The asker may have gone.
                        let _ = sender.send(ReplyFrame { id: frame.id, reply: Some(reply) }).await;
                    });
                }
            }
        });
        let replies = ReceiverStream::new(receiver)
            .ready_chunks(PACK)
            .map(|frames| Ok(ReplyBatch { frames }));
        Ok(Response::new(Box::pin(replies)))
    }
    type WatchStream =
        std::pin::Pin<Box<dyn futures::Stream<Item = Result<WatchTell, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchAsk>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.check_cluster(&request)?;
        let tells = teller::serve(self.groups.clone(), request.into_inner());
        Ok(Response::new(Box::pin(tells)))
    }
}
