//! The roll call: what this node says of itself, and, where placement is led, what all nodes have
//! said (`placement/src/inventory.rs`).
//!
//! A node answers from counters that are kept anyway; rates are over the time since it was asked
//! last. Whoever leads the system group asks all nodes at once, again and again, and forgets
//! everything when it leads no more. Any other node that needs the inventory asks for it there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use placement::heat::{Heat, Heats};
use placement::inventory::{self, ASK_MS, CutIdea, Inventory};
use placement::record::Node;
use placement::{Ledger, autosplit};
use proto::cluster::group::{DescribeRequest, SplitStatus};
use proto::cluster::node::cut_report::Reason;
use proto::cluster::node::nodes_client::NodesClient;
use proto::cluster::node::nodes_server::{Nodes, NodesServer};
use proto::cluster::node::{
    CutReport, FollowAsk, FollowReport, GroupHeat, GroupReport, InventoryAsk, InventoryReport,
    NodeReport, ReplicaAsk, ReplicaReport, ReportAsk, SplitReport,
};
use proto::group::{Reply, request_to};
use proto::{GroupId, id};
use shard::cut::{self, Cut, Uncut};
use shard::node::Answer;
use shard::transport::MESSAGE_BYTES;
use shard::worker::{GroupView, NodeHandle};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::admin::now_ms;

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it takes at most until a new leader begins to ask.
const LOOK: Duration = Duration::from_millis(100);
/// Stretches of keys that a cut for the sake of size is chosen from.
const STRETCHES: usize = 256;
/// Microseconds of a tick in which the system counts CPU time.
const CPU_TICK_US: u64 = 10_000;

/// See the module.
pub(crate) struct RollCall {
    node: u64,
    cluster: u64,
    /// Secret number of the data directory.
    directory: u64,
    handle: NodeHandle,
    /// What has been heard here; empty where placement is not led.
    heard: Mutex<Inventory>,
    /// How often all nodes have been asked.
    rounds: AtomicU64,
    /// Nodes that have been expected to answer.
    asked: Mutex<BTreeSet<u64>>,
    before: Mutex<Counted>,
    /// Where the nodes are.
    urls: Mutex<BTreeMap<u64, String>>,
    /// Ways to them.
    channels: Mutex<HashMap<String, Channel>>,
    /// Revision of the ledger that the router here goes by.
    followed: watch::Sender<i64>,
}

/// What had been counted when this node was asked last.
#[derive(Default)]
struct Counted {
    at_ms: u64,
    cpu_us: u64,
    /// Ascending.
    groups: Vec<(GroupId, Done)>,
}

/// What a replica had done.
#[derive(Clone, Copy, Default, PartialEq)]
struct Done {
    requests: u64,
    written_bytes: u64,
    split: SplitStatus,
}

/// Amounts a second.
fn rate(now: u64, before: u64, over_ms: u64) -> u64 {
    now.saturating_sub(before) * 1000 / over_ms.max(1)
}

/// CPU time of this process in microseconds; 0 where the system does not tell.
fn cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in brackets, may hold anything. The tenth and eleventh behind it are wanted.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks * CPU_TICK_US
}

fn endpoint(url: &str) -> Option<Endpoint> {
    let endpoint = Endpoint::from_shared(url.to_owned()).ok()?;
    Some(endpoint.connect_timeout(PATIENCE).timeout(PATIENCE).tcp_nodelay(true))
}

/// Does this node of the cluster run, and answer at this address?
pub(crate) async fn runs(cluster: u64, node: u64, url: &str) -> bool {
    let Some(endpoint) = endpoint(url) else { return false };
    let Ok(channel) = endpoint.connect().await else { return false };
    let ask = ReportAsk { cluster, node, ..ReportAsk::default() };
    NodesClient::new(channel).report(ask).await.is_ok()
}

// === impl RollCall ===

impl RollCall {
    /// Of a node and its data directory.
    pub(crate) fn new(node: u64, cluster: u64, directory: u64, handle: NodeHandle) -> RollCall {
        RollCall {
            node,
            cluster,
            directory,
            handle,
            heard: Mutex::default(),
            rounds: AtomicU64::new(0),
            asked: Mutex::default(),
            before: Mutex::default(),
            urls: Mutex::default(),
            channels: Mutex::default(),
            followed: watch::Sender::default(),
        }
    }

    /// Its side that other nodes ask.
    pub(crate) fn routes(self: &Arc<Self>) -> Routes {
        let service = NodesServer::from_arc(self.clone());
        Routes::new(service.max_encoding_message_size(MESSAGE_BYTES))
    }

    /// Does this node lead the system group?
    fn leads(&self) -> bool {
        let view = self.handle.group(id::SYSTEM_GROUP);
        view.is_some_and(|view| view.shared.leader() == Some(self.node))
    }

    /// What has been heard here; nothing where placement is not led.
    pub(crate) fn heard(&self) -> Inventory {
        self.heard.lock().clone()
    }

    /// How often all nodes have been asked from here: since it was the same, nothing new was heard.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }

    /// Asks all nodes of the ledger while this node leads placement, for ever.
    pub(crate) async fn run(self: Arc<Self>, ledger: watch::Receiver<Arc<Ledger>>) {
        loop {
            if !self.leads() {
                *self.heard.lock() = Inventory::default();
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let ledger = ledger.borrow().clone();
            {
                let mut heard = self.heard.lock();
                if heard.since_ms == 0 {
                    heard.since_ms = now_ms();
                    *self.asked.lock() = ledger.nodes.keys().copied().collect();
                }
                heard.later_ms.retain(|node, _| ledger.nodes.contains_key(node));
                heard.nodes.retain(|node, _| ledger.nodes.contains_key(node));
            }
            self.ask_all(&ledger).await;
            tokio::time::sleep(Duration::from_millis(ASK_MS)).await;
        }
    }

    async fn ask_all(&self, ledger: &Ledger) {
        let (cut_requests_per_s, cut_write_bytes_per_s, cut_size_bytes) = autosplit::asks(ledger);
        let ask = |node: u64| ReportAsk {
            cluster: self.cluster,
            node,
            cut_requests_per_s,
            cut_write_bytes_per_s,
            cut_size_bytes,
        };
        let asked = ledger.nodes.values().map(|node| async {
            let ask = ask(node.id);
            let report = if node.id == self.node {
                Some(self.report(&ask))
            } else {
                let url = node.peer_urls.first()?;
                self.client(url)?.report(ask).await.ok().map(Response::into_inner)
            };
            let report = from_wire(NodeReport { heard_ms: now_ms(), ..report? });
            // Each as it comes: one that does not answer is waited for long.
            self.heard.lock().nodes.insert(node.id, report);
            Some(())
        });
        join_all(asked).await;
        let mut heard = self.heard.lock();
        let mut heats = std::mem::take(&mut heard.heats);
        heats.take_in(ledger, &heard, now_ms());
        heard.heats = heats;
        self.rounds.fetch_add(1, Ordering::AcqRel);
    }

    fn client(&self, url: &str) -> Option<NodesClient<Channel>> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(url) {
            Some(channel) => channel.clone(),
            None => {
                let channel = endpoint(url)?.connect_lazy();
                channels.insert(url.to_owned(), channel.clone());
                channel
            }
        };
        Some(NodesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES))
    }

    /// Takes in where the nodes are.
    pub(crate) fn introduce(&self, ledger: &Ledger) {
        let url = |node: &Node| Some((node.id, node.peer_urls.first()?.clone()));
        *self.urls.lock() = ledger.nodes.values().filter_map(url).collect();
        let mut heard = self.heard.lock();
        let mut asked = self.asked.lock();
        for node in ledger.nodes.keys() {
            // Who came just now has not been silent.
            if heard.since_ms != 0 && asked.insert(*node) {
                heard.later_ms.insert(*node, now_ms());
            }
        }
    }

    /// The router here goes by the ledger of that revision.
    pub(crate) fn goes_by(&self, revision: i64) {
        self.followed.send_replace(revision);
    }

    /// Waits until the routers of all nodes but these go by the ledger of that revision. A node that
    /// does not say so in time is not waited for: it will hear of it when it hears of anything.
    pub(crate) async fn await_routers(&self, revision: i64, but: &BTreeSet<u64>) {
        let urls = self.urls.lock().clone();
        let others = urls.into_iter().filter(|(node, _)| *node != self.node && !but.contains(node));
        let asked = others.map(|(node, url)| async move {
            let ask = FollowAsk { cluster: self.cluster, node, revision };
            let answer = self.client(&url)?.follow(ask).await;
            if let Err(error) = &answer {
                tracing::debug!(%error, node, "a router may not know of a change yet");
            }
            answer.ok()
        });
        let here = async {
            let mut followed = self.followed.subscribe();
            let _ = tokio::time::timeout(PATIENCE, followed.wait_for(|now| *now >= revision)).await;
        };
        tokio::join!(join_all(asked), here);
    }

    /// What is known of all nodes: here, or where placement is led. Empty if nobody says that it
    /// leads.
    pub(crate) async fn inventory(&self) -> Inventory {
        if self.leads() {
            return self.heard();
        }
        let urls = self.urls.lock().clone();
        let others = urls.into_iter().filter(|(node, _)| *node != self.node);
        let mut asked: FuturesUnordered<_> = others
            .filter_map(|(_, url)| self.client(&url))
            .map(|mut client| async move {
                client.inventory(InventoryAsk { cluster: self.cluster }).await
            })
            .collect();
        while let Some(answer) = asked.next().await {
            let told = answer.map(Response::into_inner).ok().filter(|told| told.since_ms != 0);
            if let Some(told) = told {
                let nodes = told.nodes.into_iter().map(|node| (node.node, from_wire(node)));
                let later_ms = told.later_ms.into_iter().collect();
                let nodes = nodes.collect();
                let since_ms = told.since_ms;
                let heats = heats_from_wire(told.heats_at_ms, &told.heats);
                return Inventory { since_ms, later_ms, nodes, heats, ..Inventory::default() };
            }
        }
        Inventory::default()
    }

    /// What all nodes say of their replicas of a group, now. Who does not answer is left out.
    pub(crate) async fn replicas(
        &self,
        group: u64,
    ) -> BTreeMap<(u64, u64), inventory::ReplicaReport> {
        let urls = self.urls.lock().clone();
        let asked = urls.into_iter().map(|(node, url)| async move {
            let report = if node == self.node {
                self.replica(GroupId(group)).await
            } else {
                let ask = ReplicaAsk { cluster: self.cluster, node, group };
                self.client(&url)?.replica(ask).await.ok()?.into_inner()
            };
            Some(((group, node), replica_from_wire(report)?))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// What this node says of its replica of a group.
    async fn replica(&self, group: GroupId) -> ReplicaReport {
        if let Some(found) = self.handle.quarantined().remove(&group) {
            let (replica, quarantined) = (found.replica, Some(found.reason));
            return ReplicaReport { replica, quarantined, description: None };
        }
        let Some(view) = self.handle.group(group) else { return ReplicaReport::default() };
        let request = request_to(group, proto::group::Request::Describe(DescribeRequest {}));
        let told = tokio::time::timeout(PATIENCE, self.handle.request(request)).await;
        let description = match told {
            Ok(Ok(Answer::Reply(Reply::Describe(description)))) => Some(description),
            _ => None,
        };
        ReplicaReport { replica: view.shared.replica(), quarantined: None, description }
    }

    /// What this node says of itself.
    fn report(&self, ask: &ReportAsk) -> NodeReport {
        let mut before = self.before.lock();
        let (at_ms, cpu_us) = (self.handle.now_ms(), cpu_us());
        let over_ms = at_ms.saturating_sub(before.at_ms);
        // Both are in the order of the groups, of which there may be many thousands.
        let mut counted = Vec::with_capacity(before.groups.len());
        let mut others = std::mem::take(&mut before.groups).into_iter().peekable();
        let mut groups = Vec::new();
        self.handle.each_group(|id, view| {
            let work = &view.shared.work;
            let split = view.shared.split.status(at_ms);
            let now = Done {
                requests: work.requests(),
                written_bytes: work.written_bytes(),
                split: split.unwrap_or_default(),
            };
            while others.next_if(|(other, _)| *other < id).is_some() {}
            let then = others.next_if(|(other, _)| *other == id);
            let then = then.map(|(_, done)| done).unwrap_or_default();
            let leads = view.shared.leader() == Some(self.node);
            if leads || now != then {
                let report = GroupReport {
                    group: id.0,
                    leads,
                    size_bytes: view.shared.published.size_bytes(),
                    requests_per_s: rate(now.requests, then.requests, over_ms),
                    write_bytes_per_s: rate(now.written_bytes, then.written_bytes, over_ms),
                    split: split.map(|split| split_report(&split, &then.split, over_ms)),
                    ..GroupReport::default()
                };
                groups.push(with_cuts(report, ask, view, at_ms));
            }
            counted.push((id, now));
        });
        let quarantined = self.handle.quarantined();
        groups.retain(|report| !quarantined.contains_key(&GroupId(report.group)));
        groups.extend(quarantined.into_iter().map(|(id, found)| {
            let (quarantined, quarantined_replica) = (Some(found.reason), found.replica);
            GroupReport { group: id.0, quarantined, quarantined_replica, ..Default::default() }
        }));
        let (disk_total, disk_free) = self.handle.space();
        let report = NodeReport {
            node: self.node,
            directory: self.directory,
            disk_total,
            disk_free,
            cpu_us_per_s: rate(cpu_us, before.cpu_us, over_ms),
            groups,
            heard_ms: 0,
        };
        *before = Counted { at_ms, cpu_us, groups: counted };
        report
    }
}

fn split_report(now: &SplitStatus, then: &SplitStatus, over_ms: u64) -> SplitReport {
    let transactions = now.transactions.saturating_sub(then.transactions);
    let took_ms = now.transaction_ms.saturating_sub(then.transaction_ms);
    SplitReport {
        grants_per_s: rate(now.grants, then.grants, over_ms),
        transactions_per_s: rate(now.transactions, then.transactions, over_ms),
        transaction_ms: took_ms.checked_div(transactions).unwrap_or(0),
        holes: now.holes,
        waits_for: now.waits_for,
        waits_ms: now.waits_ms,
    }
}

/// The same report, with where the group could be cut if that was asked for.
fn with_cuts(report: GroupReport, ask: &ReportAsk, view: &GroupView, now_ms: u64) -> GroupReport {
    let is_asked = |of: u64, from: u64| report.leads && from > 0 && of >= from;
    let shared = &view.shared;
    let range = || shared.published.shelves().range.clone();
    let by_load = is_asked(report.requests_per_s, ask.cut_requests_per_s)
        || is_asked(report.write_bytes_per_s, ask.cut_write_bytes_per_s);
    let by_size = is_asked(report.size_bytes, ask.cut_size_bytes);
    let watched = if by_load || by_size { view.feed.watched() } else { Vec::new() };
    let load_cut = by_load.then(|| cut::by_load(&shared.work.touches(now_ms), &watched, &range()));
    let size_cut = by_size.then(|| {
        let stretches = shared.published.counts().read().stretches(STRETCHES);
        cut::by_size(&stretches, &watched, &range())
    });
    GroupReport {
        load_cut: load_cut.map(cut_to_wire),
        size_cut: size_cut.map(cut_to_wire),
        ..report
    }
}

fn cut_to_wire(chosen: Result<Cut, Uncut>) -> CutReport {
    let part = |part: u64| part.min(1000) as u32;
    let because = |reason: Reason, share: u64| CutReport {
        reason: reason.into(),
        share: part(share),
        ..CutReport::default()
    };
    match chosen {
        Ok(Cut { at, below, above, across, watches }) => CutReport {
            key: at,
            below: part(below),
            above: part(above),
            across: part(across),
            watches: watches as u32,
            ..CutReport::default()
        },
        Err(Uncut::TooLittle) => because(Reason::TooLittle, 0),
        Err(Uncut::SingleKey(key, share)) => CutReport { key, ..because(Reason::SingleKey, share) },
        Err(Uncut::AppendFront(share)) => because(Reason::AppendFront, share),
        Err(Uncut::WideRanges(share)) => because(Reason::WideRanges, share),
    }
}

fn heats_from_wire(at_ms: u64, told: &[GroupHeat]) -> Heats {
    let heat = |told: &GroupHeat| {
        let heat = Heat {
            requests_milli_per_s: told.requests_milli_per_s,
            write_bytes_per_s: told.write_bytes_per_s,
            range_version: told.range_version,
            since_ms: told.since_ms,
            quiet_ms: told.quiet_ms,
        };
        (told.group, heat)
    };
    Heats { at_ms, groups: told.iter().map(heat).collect() }
}

fn heats_to_wire(heats: &Heats) -> Vec<GroupHeat> {
    let heat = |(group, heat): (&u64, &Heat)| GroupHeat {
        group: *group,
        requests_milli_per_s: heat.requests_milli_per_s,
        write_bytes_per_s: heat.write_bytes_per_s,
        range_version: heat.range_version,
        since_ms: heat.since_ms,
        quiet_ms: heat.quiet_ms,
    };
    heats.groups.iter().map(heat).collect()
}

fn from_wire(told: NodeReport) -> inventory::NodeReport {
    let group = |group: GroupReport| {
        let report = inventory::GroupReport {
            leads: group.leads,
            quarantined: group.quarantined,
            quarantined_replica: group.quarantined_replica,
            size_bytes: group.size_bytes,
            requests_per_s: group.requests_per_s,
            write_bytes_per_s: group.write_bytes_per_s,
            cpu_us_per_s: group.cpu_us_per_s,
            split: group.split.map(|split| inventory::SplitLoad {
                grants_per_s: split.grants_per_s,
                transactions_per_s: split.transactions_per_s,
                transaction_ms: split.transaction_ms,
                holes: split.holes,
                waits_for: split.waits_for,
                waits_ms: split.waits_ms,
            }),
            load_cut: group.load_cut.as_ref().and_then(CutIdea::read),
            size_cut: group.size_cut.as_ref().and_then(CutIdea::read),
        };
        (group.group, report)
    };
    inventory::NodeReport {
        heard_ms: told.heard_ms,
        directory: told.directory,
        disk_total: told.disk_total,
        disk_free: told.disk_free,
        cpu_us_per_s: told.cpu_us_per_s,
        groups: told.groups.into_iter().map(group).collect(),
    }
}

/// Without a description nothing is known of a replica that is in service.
fn replica_from_wire(told: ReplicaReport) -> Option<inventory::ReplicaReport> {
    let ReplicaReport { replica, quarantined, description } = told;
    if description.is_none() && quarantined.is_none() {
        return None;
    }
    let described = description.unwrap_or_default();
    let header = described.header.unwrap_or_default();
    Some(inventory::ReplicaReport {
        replica,
        quarantined,
        leader: described.leader,
        term: header.raft_term,
        last_index: described.raft_index,
        last_term: described.last_term,
        committed: described.raft_committed_index,
        applied: described.raft_applied_index,
        revision: header.revision,
        compacted: described.compacted,
        keys: described.keys,
        size_bytes: u64::try_from(described.size_in_use).unwrap_or(0),
        membership_version: described.membership_version,
        pending: described.proposals_pending,
        is_hollow: described.is_hollow,
    })
}

fn to_wire(node: u64, report: &inventory::NodeReport) -> NodeReport {
    let group = |(id, group): (&u64, &inventory::GroupReport)| GroupReport {
        group: *id,
        leads: group.leads,
        quarantined: group.quarantined.clone(),
        quarantined_replica: group.quarantined_replica,
        size_bytes: group.size_bytes,
        requests_per_s: group.requests_per_s,
        write_bytes_per_s: group.write_bytes_per_s,
        cpu_us_per_s: group.cpu_us_per_s,
        split: group.split.map(|split| SplitReport {
            grants_per_s: split.grants_per_s,
            transactions_per_s: split.transactions_per_s,
            transaction_ms: split.transaction_ms,
            holes: split.holes,
            waits_for: split.waits_for,
            waits_ms: split.waits_ms,
        }),
        load_cut: group.load_cut.as_ref().map(CutIdea::write),
        size_cut: group.size_cut.as_ref().map(CutIdea::write),
    };
    NodeReport {
        node,
        directory: report.directory,
        disk_total: report.disk_total,
        disk_free: report.disk_free,
        cpu_us_per_s: report.cpu_us_per_s,
        groups: report.groups.iter().map(group).collect(),
        heard_ms: report.heard_ms,
    }
}

#[tonic::async_trait]
impl Nodes for RollCall {
    async fn report(&self, request: Request<ReportAsk>) -> Result<Response<NodeReport>, Status> {
        let ask = request.into_inner();
        if (ask.cluster, ask.node) != (self.cluster, self.node) {
            return Err(Status::failed_precondition("another node is asked for"));
        }
        Ok(Response::new(RollCall::report(self, &ask)))
    }

    async fn replica(
        &self,
        request: Request<ReplicaAsk>,
    ) -> Result<Response<ReplicaReport>, Status> {
        let ask = request.into_inner();
        if (ask.cluster, ask.node) != (self.cluster, self.node) {
            return Err(Status::failed_precondition("another node is asked for"));
        }
        Ok(Response::new(RollCall::replica(self, GroupId(ask.group)).await))
    }

    async fn follow(&self, request: Request<FollowAsk>) -> Result<Response<FollowReport>, Status> {
        let ask = request.into_inner();
        if (ask.cluster, ask.node) != (self.cluster, self.node) {
            return Err(Status::failed_precondition("another node is asked for"));
        }
        let mut followed = self.followed.subscribe();
        let arrived = followed.wait_for(|now| *now >= ask.revision);
        match tokio::time::timeout(PATIENCE, arrived).await {
            Ok(Ok(revision)) => Ok(Response::new(FollowReport { revision: *revision })),
            _ => Err(Status::deadline_exceeded("this node has not heard of it yet")),
        }
    }

    async fn inventory(
        &self,
        request: Request<InventoryAsk>,
    ) -> Result<Response<InventoryReport>, Status> {
        if request.into_inner().cluster != self.cluster {
            return Err(Status::failed_precondition("another cluster is asked for"));
        }
        let heard = self.heard.lock();
        let nodes = heard.nodes.iter().map(|(node, report)| to_wire(*node, report)).collect();
        let later_ms = heard.later_ms.clone().into_iter().collect();
        Ok(Response::new(InventoryReport {
            since_ms: heard.since_ms,
            later_ms,
            nodes,
            heats: heats_to_wire(&heard.heats),
            heats_at_ms: heard.heats.at_ms,
        }))
    }
}
