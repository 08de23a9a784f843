//! One request on its way to a replica that answers it, here or on another node.
//!
//! | request | may be answered by |
//! |---|---|
//! | what changes something, leases | the leader |
//! | linearizable read | any replica, once the leader has confirmed it; of a split tenant the leader |
//! | part of a read over groups | any replica, once it has applied what home named |
//! | serializable read | any replica as it is |
//! | description, hash, own members | this replica as it is; without one any other |
//!
//! Where this node has a replica that can be used, reads are answered by it, and the leader is
//! the one that it knows. Otherwise the other nodes are asked: first who is said to lead (by a
//! refusal, by who answered last), then the rest. Each is asked once in a pass; between passes
//! there are growing pauses.
//!
//! Invariants:
//! - What may have been done is not repeated, but for what changes nothing.
//! - What came from another node is not passed on: `peers` is `None`.

use std::sync::Arc;
use std::time::Duration;

use proto::cluster::group::refusal::Outcome;
use proto::cluster::group::{DescribeRequest, GroupRequest};
use proto::group::{GroupError, Reply, Request};
use proto::{Error, GroupId, NodeId};

use super::directory::Directory;
use crate::access;
use crate::charter;
use crate::machine::txn;
use crate::node::{Answer, Reading};
use crate::transport::Peers;
use crate::worker::{GroupView, NodeHandle};

/// Pauses between passes, in milliseconds; the last one repeats.
const PAUSES_MS: [u64; 6] = [1, 5, 10, 25, 50, 100];

/// Who may answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Leader,
    Confirmed,
    AnyRows,
    AsItIs,
}

impl Needs {
    /// Of a group that has its tenant for itself.
    fn asked(request: &GroupRequest) -> Needs {
        match request.read_at {
            // A replica that has applied enough says as much as the leader.
            Some(_) => Needs::Confirmed,
            None => Needs::of(request.body.as_ref()),
        }
    }

    fn of(body: Option<&Request>) -> Needs {
        let Some(body) = body else { return Needs::Leader };
        match body {
            body if access::is_serializable(body) => Needs::AnyRows,
            Request::Range(_) | Request::Linearize(_) | Request::Span(_) => Needs::Confirmed,
            Request::Txn(request) if txn::is_read_only(request) => Needs::Confirmed,
            Request::MemberList(list) if list.linearizable => Needs::Confirmed,
            Request::MemberList(_) | Request::HashKv(_) | Request::Describe(_) => Needs::AsItIs,
            _ => Needs::Leader,
        }
    }
}

/// Does the request change nothing that could be changed twice?
fn is_repeatable(body: Option<&Request>) -> bool {
    Needs::of(body) != Needs::Leader
        || matches!(
            body,
            Some(
                Request::LeaseKeepAlive(_) | Request::LeaseTimeToLive(_) | Request::LeaseLeases(_)
            )
        )
}

/// Who asks.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) node: NodeId,
    pub(super) handle: NodeHandle,
    pub(super) peers: Option<Arc<Peers>>,
    pub(super) directory: Arc<Directory>,
    /// How long another node may take for a read before the next one is asked; doubled each time,
    /// for it may be a long read.
    pub(super) patience: Duration,
}

/// Who is asked.
#[derive(Clone, Copy)]
enum Place {
    Here,
    There(NodeId),
}

/// How another node is asked.
struct Ask {
    node: NodeId,
    needs: Needs,
    /// No replica here knows of the group's leader.
    is_far: bool,
    /// For reads.
    patience: Duration,
}

/// What was tried for a request.
#[derive(Default)]
struct Search {
    /// In this pass.
    tried: Vec<NodeId>,
    /// Said to lead by who refused last.
    hint: Option<NodeId>,
    passes: usize,
    /// Reads that were given up for being slow.
    slow: u32,
    /// The value cannot be read here, or where it was asked for.
    damaged: Option<GroupError>,
}

// === impl Caller ===

impl Caller {
    /// Asks until there is an answer; the caller sets the time.
    pub(super) async fn run(self, request: GroupRequest) -> Result<Reply, GroupError> {
        let id = GroupId(request.group);
        let mut needs = Needs::asked(&request);
        let mut search = Search::default();
        loop {
            let view = self.handle.group(id);
            let is_split = view.as_ref().is_some_and(|view| view.shared.published.is_split());
            if is_split && needs == Needs::Confirmed && request.read_at.is_none() {
                needs = Needs::Leader;
            }
            let Some(place) = self.place(id, needs, view.as_ref(), &search) else {
                let Some(pause) = search.pause(self.peers.is_some()) else {
                    return Err(search.damaged.unwrap_or_else(|| nobody(view.as_ref())));
                };
                if self.directory.is_gone(&request) {
                    // It was merged: its keys are another group's, which the router knows.
                    return Err(GroupError::not_done(Error::StaleRange, None));
                }
                tokio::time::sleep(pause).await;
                continue;
            };
            let (node, tried) = match (place, &view) {
                (Place::Here, Some(view)) => (self.node, self.here(view, needs, &request).await),
                (Place::Here, None) => (self.node, Err(nobody(None))),
                (Place::There(node), _) => {
                    let is_far = view.as_ref().is_none_or(|view| !view.shared.is_usable());
                    let patience = self.patience * (1 << search.slow.min(8));
                    let ask = Ask { node, needs, is_far, patience };
                    (node, self.there(ask, request.clone()).await)
                }
            };
            match tried {
                Err(error) if self.goes_on(&mut search, node, needs, &request, error) => {}
                other => return other,
            }
        }
    }

    /// Who is asked next; `None` when all were, or nobody is known.
    fn place(
        &self,
        id: GroupId,
        needs: Needs,
        view: Option<&GroupView>,
        search: &Search,
    ) -> Option<Place> {
        let can_answer = |view: &&GroupView| match needs {
            Needs::AsItIs => !view.shared.is_stopped(),
            _ => view.shared.is_usable(),
        };
        let here = view.filter(can_answer);
        if here.is_some() && search.damaged.is_none() && needs != Needs::Leader {
            return (!search.has_tried(self.node)).then_some(Place::Here);
        }
        let led = |view: &GroupView| view.shared.leader().map(NodeId);
        let said = match needs {
            Needs::Leader => search.hint.or(view.and_then(led)),
            _ => search.hint,
        };
        if let (Some(node), false) = (said, said.is_some_and(|node| search.has_tried(node))) {
            if node != self.node {
                return self.peers.is_some().then_some(Place::There(node));
            }
            if here.is_some() {
                return Some(Place::Here);
            }
        }
        // A replica that can be used knows its leader better than anybody else.
        if needs == Needs::Leader && here.is_some() {
            return None;
        }
        let others = self.others(id, needs == Needs::Leader);
        others.into_iter().find(|node| !search.has_tried(*node)).map(Place::There)
    }

    /// The other nodes that have a replica, as far as is known: first who answered last, those
    /// that cannot be reached at the end.
    pub(super) fn others(&self, id: GroupId, led: bool) -> Vec<NodeId> {
        let Some(peers) = &self.peers else { return Vec::new() };
        let mut nodes = self.directory.replicas(id);
        for member in peers.members_of(id) {
            if !nodes.contains(&member) {
                nodes.push(member);
            }
        }
        nodes.retain(|node| *node != self.node);
        if !nodes.is_empty() {
            // Each node begins elsewhere, so that the replicas share the reads.
            let first = self.node.0 as usize % nodes.len();
            nodes.rotate_left(first);
        }
        let known = if led { self.directory.leader(id) } else { self.directory.reader(id) };
        nodes.sort_by_cached_key(|node| (!peers.is_reachable(*node), Some(*node) != known));
        nodes
    }

    /// Is there to be another try? Notes what the refusal says.
    fn goes_on(
        &self,
        search: &mut Search,
        node: NodeId,
        needs: Needs,
        request: &GroupRequest,
        error: GroupError,
    ) -> bool {
        let is_here = node == self.node;
        match error.outcome {
            _ if self.peers.is_none() => return false,
            Outcome::Final if error.error == Error::DamagedValue && needs != Needs::Leader => {
                search.damaged = Some(error);
            }
            Outcome::Final => return false,
            Outcome::Unknown if is_here || !is_repeatable(request.body.as_ref()) => return false,
            Outcome::Unknown => search.slow += u32::from(error.error == Error::Timeout),
            // The router has to route it anew.
            Outcome::NotDone if error.error.is_stale() => return false,
            Outcome::NotDone
                if error.error == Error::TooManyRequests && search.passes >= PAUSES_MS.len() =>
            {
                return false;
            }
            Outcome::NotDone => search.hint = error.leader_node.map(NodeId),
        }
        search.tried.push(node);
        true
    }

    async fn here(
        &self,
        view: &GroupView,
        needs: Needs,
        request: &GroupRequest,
    ) -> Result<Reply, GroupError> {
        let shared = &view.shared;
        let version = request.range_version;
        let read = |body: &Request, reading| {
            access::read(self.handle.store(), shared, body, version, reading)
        };
        if let (Needs::AnyRows, Some(body)) = (needs, &request.body)
            && shared.published.revision() >= request.floor
            && request.read_at.is_none()
        {
            shared.work.request(request, || self.handle.now_ms());
            charter::admit(&shared.published.charter(), request)
                .map_err(|error| GroupError::not_done(error, None))?;
            return read(body, Reading::Newest);
        }
        if let Some(Request::LeaseKeepAlive(ask)) = &request.body
            && version == shared.published.range_version()
            && charter::admit(&shared.published.charter(), request).is_ok()
            && let Some(reply) = access::keep_alive(shared, ask.id, self.handle.now_ms())
        {
            shared.work.request(request, || self.handle.now_ms());
            return Ok(reply);
        }
        // Only rows are read here; everything else comes as a reply.
        let rows = request.body.as_ref().filter(|_| Needs::asked(request) != Needs::Leader);
        let rows = rows.cloned();
        match self.handle.request(request.clone()).await {
            Ok(Answer::Reply(reply)) => Ok(reply),
            Ok(Answer::Readable(reading)) => match rows {
                Some(body) => read(&body, reading),
                None => Err(GroupError::unknown(Error::Stopped)),
            },
            Err(error) => {
                if error.error == Error::Quarantined {
                    shared.stop();
                    view.feed.shut();
                }
                Err(error)
            }
        }
    }

    /// Asks another node.
    async fn there(&self, ask: Ask, mut request: GroupRequest) -> Result<Reply, GroupError> {
        let Ask { node, needs, is_far, patience } = ask;
        let Some(peers) = &self.peers else {
            return Err(GroupError::not_done(Error::NoLeader, None));
        };
        let id = GroupId(request.group);
        if needs == Needs::Leader {
            let answer = peers.call(node, request).await;
            if is_far {
                self.heard(id, node, needs, &answer);
            }
            return answer;
        }
        let patience_ms = patience.as_millis() as u64;
        request.timeout_ms = match request.timeout_ms {
            0 => patience_ms,
            asked => asked.min(patience_ms),
        };
        let answer = tokio::time::timeout(patience, peers.call(node, request)).await;
        let answer = answer.unwrap_or(Err(GroupError::unknown(Error::Timeout)));
        if is_far {
            self.heard(id, node, needs, &answer);
        }
        answer
    }

    /// Notes what an answer says about a group that has no replica here.
    fn heard(&self, id: GroupId, node: NodeId, needs: Needs, answer: &Result<Reply, GroupError>) {
        let now_ms = self.handle.now_ms();
        let by_leader = matches!(needs, Needs::Leader | Needs::Confirmed);
        match answer {
            Err(error) if error.outcome != Outcome::Final => {
                let silent = matches!(
                    error.error,
                    Error::NoLeader
                        | Error::Timeout
                        | Error::TimeoutLeaderFail
                        | Error::TimeoutConnectionLost
                );
                if error.leader_node.is_some_and(|leader| leader != node.0) {
                    self.directory.has_leader(id, now_ms);
                } else if silent && needs != Needs::AsItIs {
                    self.directory.no_leader(id, now_ms);
                }
                if error.error != Error::TooManyRequests {
                    self.directory.failed(id, node);
                }
            }
            _ => {
                if needs == Needs::Leader {
                    self.directory.led(id, node);
                } else {
                    self.directory.gave(id, node);
                }
                if by_leader {
                    self.directory.has_leader(id, now_ms);
                }
            }
        }
    }

    /// Asks the replicas of a group that has none here whether it has a leader, until one says
    /// so.
    pub(super) async fn ask_for_leader(self, id: GroupId) {
        let range_version = self.directory.range_version(id);
        let body = Some(Request::Describe(DescribeRequest {}));
        let request = GroupRequest { group: id.0, range_version, body, ..GroupRequest::default() };
        for node in self.others(id, true) {
            let patience = self.patience / 4;
            let ask = Ask { node, needs: Needs::AsItIs, is_far: true, patience };
            let answer = self.there(ask, request.clone()).await;
            if let Ok(Reply::Describe(description)) = answer
                && description.leader != 0
            {
                return self.directory.has_leader(id, self.handle.now_ms());
            }
        }
        self.directory.no_leader(id, self.handle.now_ms());
    }
}

/// What is told when nobody can be asked.
fn nobody(view: Option<&GroupView>) -> GroupError {
    match view {
        Some(view) if view.shared.is_stopped() => GroupError::not_done(Error::Quarantined, None),
        _ => {
            let leader = view.and_then(|view| view.shared.leader());
            GroupError::not_done(Error::NoLeader, leader)
        }
    }
}

// === impl Search ===

impl Search {
    fn has_tried(&self, node: NodeId) -> bool {
        self.tried.contains(&node)
    }

    /// Ends a pass. Says how long to wait before the next, or that there is none.
    fn pause(&mut self, may_repeat: bool) -> Option<Duration> {
        if !may_repeat || self.damaged.is_some() {
            return None;
        }
        let pause = PAUSES_MS.get(self.passes).or(PAUSES_MS.last()).copied().unwrap_or(100);
        self.passes += 1;
        self.tried.clear();
        self.hint = None;
        Some(Duration::from_millis(pause))
    }
}
