//! The seam's near side: how a router in this process reaches groups, here and on other
//! nodes (`proto::group::Groups`).
//!
//! A group that has a replica here is reached through it: reads are answered by it, after a
//! confirmation if they are to be linearizable, watches by its hub, and what changes something
//! goes to the leader, wherever it is. Any other group is reached at the nodes that have it, as
//! the placement map says ([`LocalGroups::locate`]); so it is while the replica here waits for its
//! first snapshot, and when it is quarantined. Which node a request tries is decided in
//! `local/search.rs`, what is known of the others stands in `local/directory.rs`.
//!
//! What was certainly not done is tried again until the time is up; what may have been done never.

mod directory;
mod search;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use proto::cluster::group::GroupRequest;
use proto::group::{
    GroupError, Groups, Identity, ReplyFuture, WatchControl, WatchOutput, WatchSink, WatchSpec,
};
use proto::{Error, GroupId, NodeId, PlacementMap};

use crate::transport::Peers;
use crate::worker::{GroupView, NodeHandle};
use directory::Directory;
use search::Caller;

/// All groups that this node can reach.
pub struct LocalGroups {
    caller: Caller,
    identity: RwLock<Identity>,
    /// Without an own limit a request is given up after so long.
    timeout: Duration,
    election: Duration,
}

// === impl LocalGroups ===

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
        let directory = Arc::new(Directory::new(election));
        let caller = Caller { node, handle, peers, directory, patience: 2 * election };
        LocalGroups { caller, identity: RwLock::new(identity), timeout, election }
    }

    /// Finds the replicas of groups by `map` from now on. Nodes must be introduced to
    /// [`Peers`], or members of a group here, to be found.
    pub fn locate(&self, map: Arc<PlacementMap>) {
        self.caller.directory.locate(map);
    }

    /// The replica here, if it can be asked and watched.
    fn usable(&self, group: GroupId) -> Option<GroupView> {
        self.caller.handle.group(group).filter(|view| view.shared.is_usable())
    }

    /// The other nodes that have a replica, those that cannot be reached last; who asks again
    /// gets another one first.
    fn watched_at(&self, group: GroupId) -> Vec<NodeId> {
        let mut nodes = self.caller.others(group, false);
        let Some(peers) = &self.caller.peers else { return nodes };
        let reachable = nodes.iter().take_while(|node| peers.is_reachable(**node)).count();
        if let Some(reachable) = nodes.get_mut(..reachable).filter(|nodes| !nodes.is_empty()) {
            let first = self.caller.directory.turn() as usize % reachable.len();
            reachable.rotate_left(first);
        }
        nodes
    }
}

impl Groups for LocalGroups {
    fn call(&self, request: GroupRequest) -> ReplyFuture {
        let caller = self.caller.clone();
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

    fn watch(&self, group: GroupId, mut sink: Arc<dyn WatchSink>) -> Box<dyn WatchControl> {
        if let Some(view) = self.usable(group) {
            return view.feed.open(sink);
        }
        if let Some(peers) = &self.caller.peers {
            for node in self.watched_at(group) {
                match peers.watch(node, group, sink) {
                    Ok(control) => return control,
                    Err(back) => sink = back,
                }
            }
        }
        Box::new(Nowhere { sink })
    }

    fn revision(&self, group: GroupId) -> i64 {
        self.caller.handle.group(group).map_or(0, |view| view.shared.published.revision())
    }

    /// Only of a node that was added as a member with etcd's commands: a learner that placement
    /// has put here is in nobody's way.
    fn is_learner(&self, group: GroupId) -> bool {
        self.caller.handle.group(group).is_some_and(|view| view.shared.is_learner())
    }

    fn identity(&self) -> Identity {
        *self.identity.read()
    }

    fn leaderless(&self, group: GroupId) -> bool {
        let now_ms = self.caller.handle.now_ms();
        if let Some(view) = self.usable(group) {
            let patience = 3 * self.election.as_millis() as u64;
            let since = view.shared.leaderless_since_ms();
            return since.is_some_and(|since| now_ms > since + patience);
        }
        let Some(peers) = &self.caller.peers else { return true };
        let known = self.caller.directory.leadership(group, now_ms);
        if known.ask {
            peers.spawn(self.caller.clone().ask_for_leader(group));
        }
        known.lost
    }
}

/// Watches of a group that nobody is known to have. Each is closed as it is created; the router
/// pauses before it creates it anew.
struct Nowhere {
    sink: Arc<dyn WatchSink>,
}

// === impl Nowhere ===

impl WatchControl for Nowhere {
    fn create(&self, spec: WatchSpec) {
        let _ = self.sink.offer(WatchOutput::Closed { key: spec.key });
    }

    fn cancel(&self, _key: u64) {}

    fn progress(&self) {}

    fn progress_at(&self, _revision: i64) {}

    fn watch_progress(&self, _key: u64) {}
}
