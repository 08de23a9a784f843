//! What ties a node to placement: it says who it is, follows the ledger, has the replicas that the
//! ledger wants here, tells its router and its connections where everything is, and reports the
//! members of the groups that it leads, and of those that nobody leads.
//!
//! Everything here is done over and over towards what the ledger says, never once in reaction to
//! an event: a step that was lost in a crash is simply still to be done. With many groups a look at
//! all of them is not free, so none is taken while nothing can have changed: the ledger is the same,
//! the node has no news of its replicas, and nothing was left to be done. In the same way the executor
//! goes to work only when the ledger is another, the nodes have reported anew, or it had something to do.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use placement::record::{Node, Replica};
use placement::recovery::is_needed;
use placement::splits::{self, Said};
use placement::view::{self, Duties, Survivor, Wanted};
use placement::{Ledger, Office};
use proto::cluster::group::DescribeRequest;
use proto::group::{Reply, Request, request_to};
use proto::{GroupId, KeyRange, NodeId, id};
use router::Router;
use shard::local::LocalGroups;
use shard::node::{Answer, Birth, Input, Recover};
use shard::transport::Peers;
use shard::worker::{Fatal, NodeHandle};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admin::now_ms;
use crate::resident;
use crate::rollcall::RollCall;

/// Pause before placement is told again what it did not hear.
const RETRY: Duration = Duration::from_millis(200);
/// How often what is here is compared with what the ledger says, without a change of it.
const LOOK: Duration = Duration::from_millis(500);
/// After a look the steward rests so many times as long as the look computed, but no longer than
/// [`LOOK`]. What it waits for others costs nothing here.
const LOOK_REST: u32 = 4;
/// How long replicas that were on disk wait for placement's word at most: without placement they
/// take part all the same.
const PLACEMENT_PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two copies of the ledger, and how many times as long as one took it is at least.
const COPY_PAUSE: Duration = Duration::from_secs(2);
const COPY_REST: u32 = 10;
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
    /// What nodes say of themselves.
    pub(crate) roll_call: Arc<RollCall>,
    /// Where a copy of the ledger is kept.
    pub(crate) copy: PathBuf,
}

// === impl Steward ===

impl Steward {
    /// Begins, for as long as the node runs.
    pub(crate) fn start(self, fatal: &Fatal) {
        let ledger = self.office.follow();
        let steward = Arc::new(self);
        let (roll_call, look) = (steward.roll_call.clone(), steward.clone());
        resident::spawn("roll call", fatal, roll_call.run(ledger.clone()));
        resident::spawn("word", fatal, steward.clone().spread_word(ledger.clone()));
        resident::spawn("copies", fatal, steward.clone().keep_copies(ledger.clone()));
        resident::spawn("settle", fatal, steward.clone().settle());
        resident::spawn("release", fatal, steward.release());
        resident::spawn("steward", fatal, look.look(ledger));
    }

    async fn look(self: Arc<Self>, mut ledger: watch::Receiver<Arc<Ledger>>) {
        let mut looks = 0u32;
        // As of the look that left nothing to be done.
        let mut settled = None;
        let mut working: Option<JoinHandle<bool>> = None;
        // What the executor has gone by.
        let mut worked = None;
        loop {
            let _ = tokio::time::timeout(LOOK, ledger.changed()).await;
            let mut busy = Duration::ZERO;
            let now = ledger.borrow_and_update().clone();
            if now.meta.is_some() {
                let seen = Some((now.revision, self.handle.news()));
                if settled != seen || looks.is_multiple_of(LOOKS_PER_KEEP) {
                    let look = async { self.fulfil(&now).await & self.report(&now).await };
                    let is_done;
                    (is_done, busy) = timed(look).await;
                    settled = seen.filter(|_| is_done);
                }
            }
            looks += 1;
            if self.leads(id::SYSTEM_GROUP) {
                // Groups may be slow to take a step: the rest of this does not wait for them.
                let is_free = working.as_ref().is_none_or(JoinHandle::is_finished);
                if let Some(done) = working.take_if(|_| is_free) {
                    // There is more to do if it panicked, too.
                    worked = worked.filter(|_| matches!(done.now_or_never(), Some(Ok(false))));
                }
                let seen = Some((now.revision, self.roll_call.rounds()));
                if is_free && worked != seen {
                    worked = seen;
                    let (office, ledger) = (self.office.clone(), now.clone());
                    let inventory = self.roll_call.heard();
                    let work = async move { office.execute(&ledger, &inventory, now_ms()).await };
                    working = Some(tokio::spawn(work));
                }
                if looks.is_multiple_of(LOOKS_PER_KEEP) {
                    self.keep(&now).await;
                }
            }
            // While many tenants come one after the other, not each is worth a look at all.
            tokio::time::sleep((LOOK_REST * busy).min(LOOK)).await;
        }
    }

    /// Keeps a copy of the newest ledger, for ever. To write down a long one takes long, so nothing
    /// waits for it.
    async fn keep_copies(self: Arc<Self>, mut ledger: watch::Receiver<Arc<Ledger>>) {
        while ledger.changed().await.is_ok() {
            let now = ledger.borrow_and_update().clone();
            if now.meta.is_none() {
                continue;
            }
            let (begun, steward) = (Instant::now(), self.clone());
            // It fails only when the process ends.
            let _ = tokio::task::spawn_blocking(move || steward.keep_copy(&now)).await;
            tokio::time::sleep(COPY_PAUSE.max(COPY_REST * begun.elapsed())).await;
        }
    }

    /// Tells router, connections and node of each change of the ledger, for ever. It waits for nothing
    /// else: what a look does may take long, and clients may use a new tenant anywhere.
    async fn spread_word(self: Arc<Self>, mut ledger: watch::Receiver<Arc<Ledger>>) {
        // The groups of split etcds, as the node was told.
        let mut whereabouts = BTreeMap::new();
        while ledger.changed().await.is_ok() {
            let now = ledger.borrow_and_update().clone();
            if now.meta.is_none() {
                continue;
            }
            let begun = Instant::now();
            self.tell(&now);
            let split = view::whereabouts(&now);
            if split != whereabouts {
                self.handle.input(Input::Whereabouts(split.clone()));
                whereabouts = split;
            }
            self.roll_call.goes_by(now.revision);
            // While many tenants come one after the other, not each is worth a map of them all.
            tokio::time::sleep((LOOK_REST * begun.elapsed()).min(LOOK)).await;
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

    /// Lets the replicas that were on disk take part, but for those that the ledger has left behind:
    /// two of them could elect each other before they hear of it. It is asked until none waits.
    async fn release(self: Arc<Self>) {
        let begun = Instant::now();
        loop {
            let waiting: Vec<GroupId> = self.withheld();
            if waiting.is_empty() {
                return;
            }
            let free = |ledger: &Ledger| {
                let node = NodeId(self.node.id);
                let has = self.replicas();
                let may = |id: &GroupId| {
                    let view = self.handle.group(*id);
                    let version = view.map_or(0, |view| view.shared.membership_version());
                    has(*id).is_some_and(|r| view::may_take_part(ledger, *id, node, r, version))
                };
                waiting.iter().copied().filter(may).collect::<Vec<_>>()
            };
            match self.office.look(free).await {
                Ok(free) => self.handle.input(Input::Release(free)),
                Err(error) if begun.elapsed() >= PLACEMENT_PATIENCE => {
                    tracing::warn!(%error, "placement does not answer: replicas go by what they know");
                    return self.handle.input(Input::Release(waiting));
                }
                Err(error) => tracing::debug!(%error, "replicas wait for placement"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The groups whose replicas here wait for placement's word.
    fn withheld(&self) -> Vec<GroupId> {
        let mut waiting = Vec::new();
        self.handle.each_group(|id, view| {
            if view.shared.is_withheld() {
                waiting.push(id);
            }
        });
        waiting
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
        self.roll_call.introduce(ledger);
        let map = Arc::new(view::map(ledger));
        self.groups.locate(map.clone());
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

    /// The replicas here, also those that are out of service.
    fn replicas(&self) -> impl Fn(GroupId) -> Option<u64> {
        let quarantined = self.handle.quarantined();
        move |group| {
            let here = self.handle.group(group).map(|view| view.shared.replica());
            here.or(quarantined.get(&group).map(|found| found.replica))
        }
    }

    /// The keys of a replica here, as far as it has applied.
    fn keys(&self, group: GroupId) -> Option<KeyRange> {
        self.handle.group(group).map(|view| view.shared.published.range())
    }

    /// Has the replicas that the ledger wants here, and has no more what is dead. Says whether that
    /// was so already.
    async fn fulfil(&self, ledger: &Ledger) -> bool {
        let node = NodeId(self.node.id);
        let duties = view::duties(ledger, node, self.replicas());
        let mut is_done = duties == Duties::default();
        if !duties.dead.is_empty() {
            self.handle.input(Input::Deaths(duties.dead));
        }
        is_done &= self.leave(ledger).await;
        if duties.wanted.is_empty() && duties.recoveries.is_empty() {
            return is_done;
        }
        // What is followed may be old: a replica is begun, or goes on alone, only on what placement
        // says now.
        let newest = |ledger: &Ledger| {
            let known = ledger.nodes.get(&self.node.id).map(|known| known.directory);
            let mut duties = view::duties(ledger, node, self.replicas());
            // What a group here will bring itself is waited for.
            duties.wanted.retain(|wanted| view::may_come(ledger, wanted.group, |id| self.keys(id)));
            (known, duties)
        };
        let Ok((known, duties)) = self.office.look(newest).await else { return false };
        // A founder that has not said yet who it is: it will, in a moment.
        if known == Some(0) {
            return false;
        }
        if known.is_some_and(|directory| directory != self.node.directory) {
            tracing::error!(
                "placement knows this node with another data directory: it is not used"
            );
            return false;
        }
        if !duties.recoveries.is_empty() {
            self.go_alone().await;
        }
        let births: Vec<Birth> = duties.wanted.into_iter().map(birth).collect();
        if !births.is_empty() {
            self.handle.input(Input::Births(births));
        }
        false
    }

    /// Has replicas here go on alone that were told to, where that is needed still: an order may be old.
    async fn go_alone(&self) {
        let (inventory, now_ms) = (self.roll_call.inventory().await, now_ms());
        let needed = |ledger: &Ledger| {
            let ordered = view::duties(ledger, NodeId(self.node.id), self.replicas()).recoveries;
            let is_needed = |s: &Survivor| is_needed(ledger, &inventory, s.group.0, now_ms);
            ordered.into_iter().filter(is_needed).collect::<Vec<_>>()
        };
        let Ok(needed) = self.office.look(needed).await else { return };
        for survivor in needed {
            self.handle.input(Input::Recover(recover(survivor)));
        }
    }

    /// Drops replicas that were removed without a word: nobody whom they know has the group. Says
    /// whether there were none.
    async fn leave(&self, ledger: &Ledger) -> bool {
        let quarantined = self.handle.quarantined();
        let is_gone = |ledger: &Ledger, id: &GroupId| {
            let Some(group) = ledger.groups.get(&id.0) else { return false };
            let listed = group.replicas.iter().any(|replica| replica.node == self.node.id);
            let Some(view) = self.handle.group(*id) else {
                // It was not opened; it had been listed before it was begun.
                return !listed && quarantined.contains_key(id);
            };
            let (replica, version) = (view.shared.replica(), view.shared.membership_version());
            view::is_gone(group, NodeId(self.node.id), replica, version)
        };
        let mut gone = self.handle.group_ids();
        gone.extend(quarantined.keys());
        gone.sort_unstable();
        gone.dedup();
        gone.retain(|id| is_gone(ledger, id));
        if gone.is_empty() {
            return true;
        }
        let still = self.office.look(|newest| gone.retain(|id| is_gone(newest, id))).await;
        if still.is_ok() && !gone.is_empty() {
            tracing::info!(?gone, "groups have left this node");
            self.handle.input(Input::Deaths(gone));
        }
        false
    }

    /// Reports the members of groups that are led here, or nowhere, and the keys of those that are led
    /// here, where placement does not know them. Says whether it knew all.
    async fn report(&self, ledger: &Ledger) -> bool {
        let mut is_done = true;
        for group in ledger.groups.values().filter(|group| !group.dead) {
            let id = GroupId(group.id);
            let Some(here) = self.handle.group(id) else { continue };
            let (leader, node) = (here.shared.leader(), self.node.id);
            if leader == Some(node)
                && here.shared.published.range_version() > ledger.range_version(group.id)
            {
                is_done &= self.report_keys(ledger, id).await;
            }
            let version = here.shared.membership_version();
            if !view::has_news(group, NodeId(node), leader.map(NodeId), version) {
                continue;
            }
            is_done = false;
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
        is_done
    }

    /// Reports the keys of a group that is led here: it was cut, or took those of its neighbour, and
    /// placement did not hear of it from who asked for that. Says whether there was nothing to be reported.
    async fn report_keys(&self, ledger: &Ledger, group: GroupId) -> bool {
        let request = request_to(group, Request::Describe(DescribeRequest {}));
        let answer = self.handle.request(request).await;
        let Ok(Answer::Reply(Reply::Describe(told))) = answer else { return false };
        let Some(said) = told.place.map(Said::from) else { return true };
        if splits::learn(ledger, group.0, &said, now_ms()).is_none() {
            // Nobody's command led to it: `atoll rebalance check` is for people.
            tracing::debug!(%group, ?said, "its keys are others than placement knows");
            return true;
        }
        if let Err(error) = self.office.report_keys(group, &said, now_ms()).await {
            tracing::debug!(%error, %group, "placement has not heard of its keys yet");
        }
        false
    }

    async fn keep(&self, ledger: &Ledger) {
        if let Err(error) = self.office.keep(ledger, now_ms()).await {
            tracing::debug!(%error, "placement does not answer");
        }
    }
}

/// What `work` gives, and how long it has computed: without the time in which it waited.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let mut work = pin!(work);
    let mut busy = Duration::ZERO;
    let done = poll_fn(|context| {
        let begun = Instant::now();
        let polled = work.as_mut().poll(context);
        busy += begun.elapsed();
        polled
    });
    let done = done.await;
    (done, busy)
}

fn recover(survivor: Survivor) -> Recover {
    Recover {
        group: survivor.group,
        replica: survivor.replica,
        membership_version: survivor.membership_version,
        revision: survivor.revision,
    }
}

fn birth(wanted: Wanted) -> Birth {
    Birth {
        group: wanted.group,
        replica: wanted.replica,
        members: wanted.founders,
        cluster_id: wanted.cluster_id,
        tenant: wanted.tenant,
        namespace: wanted.namespace,
    }
}
