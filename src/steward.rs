//! What ties a node to placement: it says who it is, follows the ledger, has the replicas that the
//! ledger wants here, tells its router and its connections where everything is, and reports the
//! members of the groups that it leads.
//!
//! Everything here is done over and over towards what the ledger says, never once in reaction to
//! an event: a step that was lost in a crash is simply still to be done.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use placement::record::{Node, Replica};
use placement::view::{self, Wanted};
use placement::{Ledger, Office};
use proto::cluster::group::DescribeRequest;
use proto::group::{Reply, Request, request_to};
use proto::{GroupId, NodeId, id};
use router::Router;
use shard::local::LocalGroups;
use shard::node::{Answer, Birth, Input};
use shard::transport::Peers;
use shard::worker::NodeHandle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::now_ms;

/// Pause before placement is told again what it did not hear.
const RETRY: Duration = Duration::from_millis(200);
/// How often what is here is compared with what the ledger says, without a change of it.
const LOOK: Duration = Duration::from_millis(500);
/// Looks between two copies of the ledger.
const LOOKS_PER_COPY: u32 = 4;
/// Looks between two rounds of what time alone asks for.
const LOOKS_PER_KEEP: u32 = 20;

/// See the module.
pub(crate) struct Steward {
    pub(crate) office: Office,
    pub(crate) handle: NodeHandle,
    pub(crate) groups: Arc<LocalGroups>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) router: Router,
    /// This node.
    pub(crate) node: Node,
    /// The nodes that began together; empty for one that came later.
    pub(crate) founders: Vec<Node>,
    /// Id of the cluster.
    pub(crate) cluster: u64,
    /// Where a copy of the ledger is kept.
    pub(crate) copy: PathBuf,
}

// === impl Steward ===

impl Steward {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        let mut ledger = self.office.follow();
        let steward = Arc::new(self);
        tokio::spawn(steward.clone().settle());
        steward.look(&mut ledger).await;
    }

    async fn look(self: Arc<Self>, ledger: &mut watch::Receiver<Arc<Ledger>>) {
        let mut looks = 0u32;
        let (mut told, mut copied) = (0, 0);
        let mut working: Option<JoinHandle<()>> = None;
        loop {
            let _ = tokio::time::timeout(LOOK, ledger.changed()).await;
            let now = ledger.borrow_and_update().clone();
            if now.meta.is_some() {
                if now.revision != told {
                    self.tell(&now);
                    told = now.revision;
                }
                if looks.is_multiple_of(LOOKS_PER_COPY) && now.revision != copied {
                    self.keep_copy(&now);
                    copied = now.revision;
                }
                self.fulfil(&now).await;
                self.report(&now).await;
            }
            looks += 1;
            if self.leads(id::SYSTEM_GROUP) {
                // Groups may be slow to take a step: the rest of this does not wait for them.
                if working.as_ref().is_none_or(JoinHandle::is_finished) {
                    let (office, ledger) = (self.office.clone(), now.clone());
                    let work = async move { office.execute(&ledger, now_ms()).await };
                    working = Some(tokio::spawn(work));
                }
                if looks.is_multiple_of(LOOKS_PER_KEEP) {
                    self.keep(&now).await;
                }
            }
        }
    }

    /// Founds the service if this is the beginning, and says who this node is.
    async fn settle(self: Arc<Self>) {
        loop {
            let founded = match self.founders.as_slice() {
                [] => Ok(()),
                founders => self.office.found(self.cluster, founders, true).await,
            };
            let done = match founded {
                Ok(()) => self.office.register(&self.node).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "placement has not heard of this node yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn leads(&self, group: GroupId) -> bool {
        let view = self.handle.group(group);
        view.is_some_and(|view| view.shared.leader() == Some(self.node.id))
    }

    /// Tells the router and the connections where everything is.
    fn tell(&self, ledger: &Ledger) {
        for node in ledger.nodes.values() {
            if let Some(url) = node.peer_urls.first() {
                self.peers.introduce(NodeId(node.id), url);
            }
        }
        let map = view::map(ledger);
        self.groups.locate(Arc::new(map.clone()));
        self.router.place(map);
    }

    /// Keeps a copy of the ledger for a start without placement. It may be lost: the next one comes.
    fn keep_copy(&self, ledger: &Ledger) {
        let next = self.copy.with_extension("next");
        let kept =
            std::fs::write(&next, ledger.save()).and_then(|()| std::fs::rename(&next, &self.copy));
        if let Err(error) = kept {
            tracing::warn!(%error, "keep a copy of placement's ledger");
        }
    }

    /// Has the replicas that the ledger wants here, and has no more what is dead.
    async fn fulfil(&self, ledger: &Ledger) {
        let node = NodeId(self.node.id);
        // A lower number is of a replica that was removed before.
        let lacks = |wanted: &Wanted| {
            let here = self.handle.group(wanted.group);
            here.is_none_or(|view| view.shared.replica() < wanted.replica)
        };
        let duties = view::duties(ledger, node);
        let dead: Vec<GroupId> =
            duties.dead.into_iter().filter(|id| self.handle.group(*id).is_some()).collect();
        if !dead.is_empty() {
            self.handle.input(Input::Deaths(dead));
        }
        self.leave(ledger).await;
        if !duties.wanted.iter().any(lacks) {
            return;
        }
        // What is followed may be old: a replica is begun only on what placement says now.
        let Ok(newest) = self.office.read().await else { return };
        let known = newest.nodes.get(&self.node.id);
        if known.is_some_and(|known| known.directory != self.node.directory) {
            tracing::error!(
                "placement knows this node with another data directory: it is not used"
            );
            return;
        }
        let wanted = view::duties(&newest, node).wanted;
        let births: Vec<Birth> = wanted.into_iter().filter(lacks).map(birth).collect();
        if !births.is_empty() {
            self.handle.input(Input::Births(births));
        }
    }

    /// Drops replicas that were removed without a word: nobody whom they know has the group.
    async fn leave(&self, ledger: &Ledger) {
        let is_gone = |ledger: &Ledger, id: &GroupId| {
            let Some(view) = self.handle.group(*id) else { return false };
            let Some(group) = ledger.groups.get(&id.0) else { return false };
            let (replica, version) = (view.shared.replica(), view.shared.membership_version());
            view::is_gone(group, NodeId(self.node.id), replica, version)
        };
        let mut gone = self.handle.group_ids();
        gone.retain(|id| is_gone(ledger, id));
        if gone.is_empty() {
            return;
        }
        let Ok(newest) = self.office.read().await else { return };
        gone.retain(|id| is_gone(&newest, id));
        if !gone.is_empty() {
            tracing::info!(?gone, "groups have left this node");
            self.handle.input(Input::Deaths(gone));
        }
    }

    /// Reports the members of the groups that are led here, where placement does not know them.
    async fn report(&self, ledger: &Ledger) {
        for group in ledger.groups.values() {
            let id = GroupId(group.id);
            let newer = self.handle.group(id).is_some_and(|view| {
                view.shared.leader() == Some(self.node.id)
                    && view.shared.membership_version() > group.membership_version
            });
            if !newer {
                continue;
            }
            let request = request_to(id, Request::Describe(DescribeRequest {}));
            let answer = self.handle.request(request).await;
            let Ok(Answer::Reply(Reply::Describe(told))) = answer else { continue };
            let replicas: Vec<Replica> = told
                .replicas
                .iter()
                .map(|r| Replica { node: r.node, replica: r.replica, learner: r.is_learner })
                .collect();
            let (version, retired) = (told.membership_version, &told.retired);
            let reported = self.office.report(id, version, &replicas, retired).await;
            if let Err(error) = reported {
                tracing::debug!(%error, group = %id, "placement has not heard of its members yet");
            }
        }
    }

    async fn keep(&self, ledger: &Ledger) {
        if let Err(error) = self.office.keep(ledger, now_ms()).await {
            tracing::debug!(%error, "placement does not answer");
        }
    }
}

fn birth(wanted: Wanted) -> Birth {
    Birth {
        group: wanted.group,
        replica: wanted.replica,
        members: wanted.founders,
        cluster_id: wanted.cluster_id,
    }
}
