//! The seam's near side: how a router in this process reaches groups, here and on other
//! nodes (`proto::group::Groups`).
//!
//! Reads are answered from this node's replica, after a confirmation if they are to be
//! linearizable; what changes something goes to the leader, wherever it is. What was
//! certainly not done is tried again until the time is up; what may have been done never.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use proto::cluster::group::GroupRequest;
use proto::cluster::group::refusal::Outcome;
use proto::group::{
    GroupError, Groups, Identity, Reply, ReplyFuture, Request, WatchControl, WatchSink, WatchSpec,
};
use proto::{Error, GroupId, NodeId};

use crate::access;
use crate::node::Answer;
use crate::transport::Peers;
use crate::worker::NodeHandle;

/// Pauses between tries, in milliseconds; the last one repeats.
const PAUSES_MS: [u64; 6] = [1, 5, 10, 25, 50, 100];

/// All groups that this node can reach.
pub struct LocalGroups {
    node: NodeId,
    handle: NodeHandle,
    peers: Option<Arc<Peers>>,
    identity: RwLock<Identity>,
    /// Without an own limit a request is given up after so long.
    timeout: Duration,
    election: Duration,
}

impl LocalGroups {
    /// `peers` is `None` for the services that other nodes call: a request that came from
    /// another node is never passed on.
    pub fn new(
        node: NodeId,
        handle: NodeHandle,
        peers: Option<Arc<Peers>>,
        identity: Identity,
        timeout: Duration,
        election: Duration,
    ) -> LocalGroups {
        LocalGroups { node, handle, peers, identity: RwLock::new(identity), timeout, election }
    }
}

#[derive(Clone)]
struct Caller {
    node: NodeId,
    handle: NodeHandle,
    peers: Option<Arc<Peers>>,
}

/// Is this answered by the replica here, if there is one?
fn is_local(request: &Request) -> bool {
    matches!(
        request,
        Request::Range(_)
            | Request::Linearize(_)
            | Request::HashKv(_)
            | Request::Describe(_)
            | Request::MemberList(_)
    ) || matches!(request, Request::Txn(txn) if crate::machine::txn::is_read_only(txn))
}

impl Caller {
    async fn run(self, request: GroupRequest) -> Result<Reply, GroupError> {
        let id = GroupId(request.group);
        let Some(view) = self.handle.group(id) else {
            return Err(GroupError::not_done(Error::NoLeader, None));
        };
        let shared = &view.shared;
        if let Some(body) = &request.body
            && access::is_serializable(body)
            && shared.published.revision() >= request.floor
            && shared.published.applied() > 0
        {
            return match access::read(self.handle.store(), shared, body) {
                Err(error) if error.error == Error::DamagedValue => {
                    self.ask_others(id, request, error).await
                }
                answer => answer,
            };
        }
        let local = request.body.as_ref().is_some_and(is_local);
        let mut hint = None;
        for attempt in 0.. {
            let leader = hint.take().or(shared.leader());
            let tried = match leader {
                _ if local => self.here(&view, request.clone()).await,
                Some(leader) if leader == self.node.0 => self.here(&view, request.clone()).await,
                Some(leader) => match &self.peers {
                    Some(peers) => peers.call(NodeId(leader), request.clone()).await,
                    None => Err(GroupError::not_done(Error::NoLeader, Some(leader))),
                },
                None => Err(GroupError::not_done(Error::NoLeader, None)),
            };
            match tried {
                Err(error) if local && error.error == Error::DamagedValue => {
                    return self.ask_others(id, request, error).await;
                }
                Err(error) if error.outcome == Outcome::NotDone && self.peers.is_some() => {
                    hint = error.leader_node.filter(|_| attempt == 0);
                    if error.error == Error::TooManyRequests && attempt >= PAUSES_MS.len() {
                        return Err(error);
                    }
                }
                other => return other,
            }
            if hint.is_none() {
                let pause = PAUSES_MS.get(attempt).or(PAUSES_MS.last()).copied().unwrap_or(100);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
        Err(GroupError::not_done(Error::Timeout, None))
    }

    /// Asks the other members for what is damaged on this disk (`heal.rs` repairs it).
    async fn ask_others(
        &self,
        id: GroupId,
        request: GroupRequest,
        error: GroupError,
    ) -> Result<Reply, GroupError> {
        let Some(peers) = &self.peers else { return Err(error) };
        for member in peers.members_of(id) {
            if member.id != self.node.0
                && let Ok(reply) = peers.call(NodeId(member.id), request.clone()).await
            {
                return Ok(reply);
            }
        }
        Err(error)
    }

    async fn here(
        &self,
        view: &crate::worker::GroupView,
        request: GroupRequest,
    ) -> Result<Reply, GroupError> {
        // Only rows are read here; everything else comes as a reply.
        let rows = request.body.as_ref().filter(|body| is_local(body)).cloned();
        match self.handle.request(request).await? {
            Answer::Reply(reply) => Ok(reply),
            Answer::Readable => {
                let Some(body) = rows else { return Err(GroupError::unknown(Error::Stopped)) };
                access::read(self.handle.store(), &view.shared, &body)
            }
        }
    }
}

impl Groups for LocalGroups {
    fn call(&self, request: GroupRequest) -> ReplyFuture {
        let caller =
            Caller { node: self.node, handle: self.handle.clone(), peers: self.peers.clone() };
        let timeout = match request.timeout_ms {
            0 => self.timeout,
            ms => Duration::from_millis(ms).min(self.timeout),
        };
        Box::pin(async move {
            match tokio::time::timeout(timeout, caller.run(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(GroupError::unknown(Error::Timeout)),
            }
        })
    }

    fn watch(&self, group: GroupId, sink: Arc<dyn WatchSink>) -> Box<dyn WatchControl> {
        match self.handle.group(group) {
            Some(view) => view.feed.open(sink),
            None => Box::new(Nowhere { sink }),
        }
    }

    fn revision(&self, group: GroupId) -> i64 {
        self.handle.group(group).map_or(0, |view| view.shared.published.revision())
    }

    fn is_learner(&self, group: GroupId) -> bool {
        self.handle.group(group).is_some_and(|view| view.shared.is_learner())
    }

    fn identity(&self) -> Identity {
        *self.identity.read()
    }

    fn leaderless(&self, group: GroupId) -> bool {
        let Some(view) = self.handle.group(group) else { return true };
        let patience = 3 * self.election.as_millis() as u64;
        view.shared
            .leaderless_since_ms()
            .is_some_and(|since| self.handle.now_ms() > since + patience)
    }
}

/// Watches of a group that has no replica here.
struct Nowhere {
    sink: Arc<dyn WatchSink>,
}

impl WatchControl for Nowhere {
    fn create(&self, spec: WatchSpec) {
        let _ = self.sink.offer(proto::group::WatchOutput::Closed { key: spec.key });
    }

    fn cancel(&self, _key: u64) {}

    fn progress(&self) {}

    fn watch_progress(&self, _key: u64) {}
}
