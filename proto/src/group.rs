//! The seam between routers and groups: one trait, whatever lies between them.
//!
//! A router holds an `Arc<dyn Groups>` and does not know whether a group's replica lives in
//! its own process or on another node. Requests and replies are the messages of
//! `cluster/group.proto`; watches are a stream of [`WatchOutput`] through a [`WatchSink`].

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::{
    Error, GroupId, KeyRange, NamespaceId, TenantId,
    cluster::group::{GroupReply, GroupRequest, Refusal, group_reply, refusal::Outcome},
    id, mvccpb,
};

pub use crate::cluster::group::{group_reply::Body as Reply, group_request::Body as Request};

/// Future of a reply.
pub type ReplyFuture = Pin<Box<dyn Future<Output = Result<Reply, GroupError>> + Send>>;

/// Why a request got no answer, and what that says about its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct GroupError {
    /// The row of the error table that a client is told.
    pub error: Error,
    /// Certainly not done, perhaps done, or refused for good.
    pub outcome: Outcome,
    /// Node to try next, if one is known.
    pub leader_node: Option<u64>,
}

impl GroupError {
    /// The machine's own, final answer.
    pub fn refused(error: Error) -> GroupError {
        GroupError { error, outcome: Outcome::Final, leader_node: None }
    }

    /// Had no effect; another try, perhaps at `leader_node`, is safe.
    pub fn not_done(error: Error, leader_node: Option<u64>) -> GroupError {
        GroupError { error, outcome: Outcome::NotDone, leader_node }
    }

    /// May have taken effect.
    pub const fn unknown(error: Error) -> GroupError {
        GroupError { error, outcome: Outcome::Unknown, leader_node: None }
    }

    /// The error as it travels between nodes.
    pub fn to_reply(self) -> GroupReply {
        GroupReply {
            body: Some(group_reply::Body::Refusal(Refusal {
                outcome: self.outcome as i32,
                error: self.error.number(),
                leader_node: self.leader_node.unwrap_or(0),
            })),
        }
    }
}

/// A request to a group that serves all keys, which nobody's router has made: for no tenant, so
/// that a tenant's group answers it only if it is not about keys and leases.
pub fn request_to(group: GroupId, body: Request) -> GroupRequest {
    GroupRequest { group: group.0, range_version: 1, body: Some(body), ..Default::default() }
}

/// The same to the default tenant's only group.
pub fn own_request(body: Request) -> GroupRequest {
    GroupRequest {
        tenant: id::DEFAULT_TENANT.0,
        namespace: id::DEFAULT_NAMESPACE.0,
        ..request_to(id::DEFAULT_GROUP, body)
    }
}

/// Reads a reply that travelled between nodes.
pub fn from_reply(reply: GroupReply) -> Result<Reply, GroupError> {
    match reply.body {
        Some(group_reply::Body::Refusal(refusal)) => Err(GroupError {
            // A number of a newer program: the outcome still tells what may be done.
            error: Error::from_number(refusal.error).unwrap_or(Error::Timeout),
            outcome: refusal.outcome(),
            leader_node: Some(refusal.leader_node).filter(|node| *node != 0),
        }),
        Some(body) => Ok(body),
        None => Err(GroupError::unknown(Error::Timeout)),
    }
}

/// One watch as the group's hub sees it. Client-side matters (ids, fragments, periodic
/// progress) stay with the router.
#[derive(Clone, Debug)]
pub struct WatchSpec {
    /// Whose keys.
    pub tenant: TenantId,
    /// Which part of the tenant.
    pub namespace: NamespaceId,
    /// The group that serves them.
    pub group: GroupId,
    /// Chosen by the router, ascending within the sink; comes back with every output.
    pub key: u64,
    /// Which keys.
    pub range: KeyRange,
    /// First revision wanted; at least 1. ("From now" is resolved by the router, by a
    /// linearizable answer R, to R + 1.)
    pub start_revision: i64,
    /// Send the previous value of a key with its event.
    pub prev_kv: bool,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
}

/// An event, shared by all watches that see it and encoded once for all of them.
#[derive(Debug)]
pub struct WatchEvent {
    event: mvccpb::Event,
    encoded: OnceLock<Bytes>,
}

impl WatchEvent {
    /// Shares an event.
    pub fn new(event: mvccpb::Event) -> Arc<WatchEvent> {
        Arc::new(WatchEvent { event, encoded: OnceLock::new() })
    }

    /// An event that came from another node: its bytes are kept as they are.
    pub fn from_encoded(encoded: Bytes) -> Result<Arc<WatchEvent>, prost::DecodeError> {
        let event = prost::Message::decode(encoded.clone())?;
        Ok(Arc::new(WatchEvent { event, encoded: OnceLock::from(encoded) }))
    }

    /// Its bytes as a message.
    pub fn encoded(&self) -> &Bytes {
        self.encoded.get_or_init(|| prost::Message::encode_to_vec(&self.event).into())
    }
}

impl Deref for WatchEvent {
    type Target = mvccpb::Event;

    fn deref(&self) -> &mvccpb::Event {
        &self.event
    }
}

/// What a hub tells a router about one client stream, in order.
#[derive(Clone, Debug)]
pub enum WatchOutput {
    /// Events of one or more whole revisions, ascending. `revision` is the header: the
    /// revision of the events (synced) or the hub's current one (catching up).
    Events {
        /// The watch.
        key: u64,
        /// For the response header; never below the last event.
        revision: i64,
        /// Shared by all watches that see the same change.
        events: Vec<Arc<WatchEvent>>,
    },
    /// Everything up to `revision` that concerns the watches of this sink went out before
    /// this. Answer to [`WatchControl::progress`], then not sent at all when one is not synced,
    /// and to [`WatchControl::progress_at`]. It says nothing of watches created after it was asked
    /// for: their keys are above `newest`.
    Progress {
        /// The hub's current revision.
        revision: i64,
        /// Highest key of a watch that the hub knew of.
        newest: u64,
    },
    /// The same for one watch; answer to [`WatchControl::watch_progress`].
    WatchProgress {
        /// The watch.
        key: u64,
        /// The hub's current revision.
        revision: i64,
    },
    /// History that the watch needs is compacted; it is gone. `revision` is the compacted one.
    Compacted {
        /// The watch.
        key: u64,
        /// First revision that can still be watched.
        revision: i64,
    },
    /// The replica lost touch, was removed, or stops: create the watch anew elsewhere, from
    /// the last delivered revision on.
    Closed {
        /// The watch.
        key: u64,
    },
}

/// Where a hub puts what it has for one client stream. Bounded: a full sink is a slow
/// client, whose watches the hub serves from history when there is room again.
///
/// A hub that lets go of its sink has closed all watches of it, told or not: a full sink
/// cannot be told.
pub trait WatchSink: Send + Sync {
    /// Takes an output, or gives it back when there is no room.
    fn offer(&self, output: WatchOutput) -> Result<(), WatchOutput>;
    /// Is the client gone?
    fn is_closed(&self) -> bool;
}

/// A client stream's hand on its watches at one group's hub. Dropping it cancels all.
pub trait WatchControl: Send + Sync {
    /// Adds a watch.
    fn create(&self, spec: WatchSpec);
    /// Removes a watch; outputs already offered may still arrive.
    fn cancel(&self, key: u64);
    /// Asks for [`WatchOutput::Progress`].
    fn progress(&self);
    /// Asks for [`WatchOutput::Progress`] as soon as the hub has reached `revision` and the watches
    /// of the sink are synced that were created before. Unlike [`WatchControl::progress`] it is
    /// not forgotten; of several asks that wait only the lowest revision and the one that was
    /// asked for last are kept, and one answer may be the answer to both.
    fn progress_at(&self, revision: i64);
    /// Asks for [`WatchOutput::WatchProgress`] if the watch is synced and got nothing since
    /// the last such ask.
    fn watch_progress(&self, key: u64);
}

/// All groups that can be reached from here.
pub trait Groups: Send + Sync {
    /// Sends a request to its group. Finds the leader by itself and repeats what was
    /// certainly not done until the request's time is up; never repeats what may have been.
    fn call(&self, request: GroupRequest) -> ReplyFuture;

    /// Opens a client stream's watches at a replica of `group`.
    fn watch(&self, group: GroupId, sink: Arc<dyn WatchSink>) -> Box<dyn WatchControl>;

    /// Newest revision that this node's replica of the group may show, 0 if there is none.
    fn revision(&self, _group: GroupId) -> i64 {
        0
    }

    /// Is this node's replica of the group a learner, or not yet told what it is?
    fn is_learner(&self, _group: GroupId) -> bool {
        false
    }

    /// Ids of the cluster and of the node that answers here.
    fn identity(&self) -> Identity;

    /// Has the group had no leader for three election timeouts, as far as this node knows?
    fn leaderless(&self, group: GroupId) -> bool;
}

/// What headers say about who answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// Of the tenant's virtual cluster.
    pub cluster_id: u64,
    /// Of the member the client talks to.
    pub member_id: u64,
}

/// Bytes that a put or a transaction adds at most, by etcd's formula (server/etcdserver/
/// quota.go): the larger branch counts, nested transactions too.
pub fn cost(request: &Request) -> i64 {
    const PUT_OVERHEAD: i64 = 256;
    const LEASE: i64 = 64;
    fn put(put: &crate::etcd::PutRequest) -> i64 {
        PUT_OVERHEAD + length(&put.key) + length(&put.value)
    }
    fn length(bytes: &Bytes) -> i64 {
        i64::try_from(bytes.len()).unwrap_or(i64::MAX)
    }
    fn ops(list: &[crate::etcd::RequestOp]) -> i64 {
        use crate::etcd::request_op::Request as Op;
        list.iter()
            .map(|op| match &op.request {
                Some(Op::RequestPut(request)) => put(request),
                Some(Op::RequestTxn(request)) => txn(request),
                _ => 0,
            })
            .sum()
    }
    fn txn(request: &crate::etcd::TxnRequest) -> i64 {
        ops(&request.success).max(ops(&request.failure))
    }
    match request {
        Request::Put(request) => put(request),
        Request::Txn(request) => txn(request),
        Request::LeaseGrant(_) => LEASE,
        _ => 0,
    }
}
