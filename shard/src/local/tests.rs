//! Whole nodes of one process over real sockets: groups asked and watched from elsewhere.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::cluster::group::charter::Standing;
use proto::cluster::group::refusal::Outcome;
use proto::cluster::group::{
    Charter, DescribeRequest, GroupRequest, LinearizeRequest, ReadAt, SetCharter,
};
use proto::etcd::request_op::Request as Op;
use proto::etcd::{
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, Member, MemberListRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};
use proto::group::{
    GroupError, Groups, Identity, Reply, Request, WatchControl, WatchOutput, WatchSink, WatchSpec,
    request_to,
};
use proto::map::Target;
use proto::{Error, GroupId, KeyRange, NamespaceId, NodeId, PlacementMap, TenantId, VirtualEtcd};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::service::Routes;

use super::LocalGroups;
use crate::disk::sim::SimDisk;
use crate::engine::memory::MemoryEngine;
use crate::extents::ExtentsConfig;
use crate::log::{Log, LogConfig};
use crate::node::{Birth, CheckpointPolicy, Node, NodeConfig, Pages, TransferPolicy};
use crate::transport::{PeerServices, Peers};
use crate::worker::{self, NodeHandle};

const GROUP: GroupId = GroupId(40);
const TENANT: TenantId = TenantId(9);
const NAMESPACE: NamespaceId = NamespaceId(1);
const CLUSTER: u64 = 7;
/// Long enough that nobody loses his lead only because the machine is busy.
const ELECTION: Duration = Duration::from_millis(20 * ELECTION_TICKS as u64);
const ELECTION_TICKS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(20);

/// How a node comes to the group.
#[derive(Clone, Copy, PartialEq)]
enum Has {
    Nothing,
    Replica,
    /// A replica that nobody knows of: it waits for its first snapshot for ever.
    Waiting,
}

/// A node with a runtime of its own, so that it can be killed.
struct TestNode {
    id: u64,
    handle: NodeHandle,
    groups: Arc<LocalGroups>,
    /// What other nodes ask.
    alone: Arc<LocalGroups>,
    runtime: Option<Runtime>,
}

fn node_config(node: u64) -> NodeConfig {
    NodeConfig {
        node: NodeId(node),
        cluster: CLUSTER,
        incarnation: node,
        seed: node,
        tick_ms: 20,
        election_ticks: ELECTION_TICKS,
        quota_bytes: 0,
        min_lease_ttl_s: 1,
        block_keys: 64,
        large_bytes: 8192,
        withhold: false,
        checkpoint: CheckpointPolicy::default(),
        transfer: TransferPolicy::default(),
    }
}

impl TestNode {
    fn start(
        id: u64,
        has: Has,
        founders: &[Member],
        listener: TcpListener,
        addresses: &BTreeMap<u64, String>,
    ) -> TestNode {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let entered = runtime.enter();
        let (log, recovered) =
            Log::open(Arc::new(SimDisk::new()), id, LogConfig::default()).unwrap();
        let log = Arc::new(log);
        let members = if has == Has::Replica { founders.to_vec() } else { Vec::new() };
        let (tenant, namespace) = (TENANT, NAMESPACE);
        let birth =
            Birth { group: GROUP, replica: id, members, cluster_id: CLUSTER, tenant, namespace };
        let births = if has == Has::Nothing { Vec::new() } else { vec![birth] };
        let config = ExtentsConfig {
            file_pages: 256,
            grow_pages: 64,
            cut_pages_min: 64,
            ahead_pages: 64,
            salt: id,
        };
        let pages = Pages { disk: Arc::new(SimDisk::new()), config };
        let engine = Arc::new(MemoryEngine::default());
        let opened =
            Node::open(node_config(id), engine, log.clone(), &recovered, &births, pages, 1000);
        let (peers, _) = Peers::new(NodeId(id), CLUSTER);
        for (node, address) in addresses {
            peers.introduce(NodeId(*node), address);
        }
        let fatal = move |reason: String| eprintln!("node {id} fails: {reason}");
        let node = opened.unwrap().node;
        let handle = worker::start(node, log, peers.clone(), Some(0), Arc::new(fatal));
        let make = |peers| {
            let (id, identity) = (NodeId(id), Identity::default());
            let groups =
                LocalGroups::new(id, handle.clone(), peers, identity, PATIENCE / 2, ELECTION);
            Arc::new(groups)
        };
        let (groups, alone) = (make(Some(peers)), make(None));
        let services = PeerServices::new(NodeId(id), CLUSTER, handle.clone(), alone.clone());
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        runtime.spawn(services.serve(listener, Routes::default(), std::future::pending()));
        drop(entered);
        TestNode { id, handle, groups, alone, runtime: Some(runtime) }
    }

    /// Ends everything of it at once: its sockets close.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.handle.stop();
    }

    fn ask(&self, body: Request) -> Result<Reply, GroupError> {
        self.wait(self.groups.call(request(body)))
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let runtime = self.runtime.as_ref().unwrap();
        let limited = async { tokio::time::timeout(PATIENCE, future).await };
        runtime.block_on(limited).expect("it takes too long")
    }

    fn put(&self, key: &str, value: impl Into<Bytes>) -> i64 {
        let put =
            PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
        match self.ask(Request::Put(put)) {
            Ok(Reply::Put(reply)) => reply.header.unwrap().revision,
            other => panic!("put: {other:?}"),
        }
    }

    fn get(&self, key: &str, serializable: bool) -> Option<Bytes> {
        let range = RangeRequest { key: key.to_owned().into(), serializable, ..Default::default() };
        match self.ask(Request::Range(range)) {
            Ok(Reply::Range(reply)) => reply.kvs.first().map(|kv| kv.value.clone()),
            other => panic!("get: {other:?}"),
        }
    }

    fn watch(&self, depth: usize) -> (Box<dyn WatchControl>, Watched<'_>) {
        let (outputs, queue) = mpsc::channel(depth);
        let control = self.groups.watch(GROUP, Arc::new(Sink { outputs }));
        (control, Watched { node: self, queue })
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.kill();
    }
}

fn request(body: Request) -> GroupRequest {
    GroupRequest {
        tenant: TENANT.0,
        namespace: NAMESPACE.0,
        group: GROUP.0,
        range_version: 1,
        body: Some(body),
        ..Default::default()
    }
}

struct Sink {
    outputs: mpsc::Sender<WatchOutput>,
}

impl WatchSink for Sink {
    fn offer(&self, output: WatchOutput) -> Result<(), WatchOutput> {
        self.outputs.try_send(output).map_err(mpsc::error::TrySendError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.outputs.is_closed()
    }
}

struct Watched<'a> {
    node: &'a TestNode,
    queue: mpsc::Receiver<WatchOutput>,
}

impl Watched<'_> {
    /// The next output; `None` when the sink was let go of.
    fn next(&mut self) -> Option<WatchOutput> {
        self.node.wait(self.queue.recv())
    }

    /// Key, revision and values of the next events.
    fn events(&mut self) -> (u64, i64, Vec<Bytes>) {
        match self.next() {
            Some(WatchOutput::Events { key, revision, events }) => {
                let values = events.iter().map(|event| event.kv.as_ref().unwrap().value.clone());
                (key, revision, values.collect())
            }
            other => panic!("no events: {other:?}"),
        }
    }

    /// Revisions of the next events up to `last`.
    fn revisions(&mut self, last: i64) -> Vec<i64> {
        let mut revisions = Vec::new();
        while revisions.last() != Some(&last) {
            match self.next() {
                Some(WatchOutput::Events { events, .. }) => {
                    let of = |event: &proto::mvccpb::Event| event.kv.as_ref().unwrap().mod_revision;
                    revisions.extend(events.iter().map(|event| of(event)));
                }
                other => panic!("no events: {other:?}"),
            }
        }
        revisions
    }
}

fn spec(key: u64, start_revision: i64) -> WatchSpec {
    WatchSpec {
        tenant: TENANT,
        namespace: NAMESPACE,
        group: GROUP,
        key,
        range: KeyRange::all(),
        start_revision,
        prev_kv: false,
        no_put: false,
        no_delete: false,
    }
}

/// Starts nodes 1, 2, ... each with what it has of the group, which all know by the map.
fn start(haves: &[Has]) -> Vec<TestNode> {
    let listeners: Vec<_> =
        haves.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let addresses: BTreeMap<u64, String> =
        (1..).zip(&listeners).map(|(id, listener)| (id, address(listener))).collect();
    let placed: Vec<u64> =
        (1..).zip(haves).filter(|(_, has)| **has == Has::Replica).map(|(id, _)| id).collect();
    let founders: Vec<Member> = placed
        .iter()
        .map(|id| Member {
            id: *id,
            name: format!("n{id}"),
            peer_ur_ls: vec![addresses[id].clone()],
            ..Default::default()
        })
        .collect();
    let map = Arc::new(map(placed.iter().map(|id| NodeId(*id)).collect()));
    let nodes = listeners.into_iter().zip(haves).zip(1..).map(|((listener, has), id)| {
        let node = TestNode::start(id, *has, &founders, listener, &addresses);
        node.groups.locate(map.clone());
        node
    });
    nodes.collect()
}

fn map(replicas: Vec<NodeId>) -> PlacementMap {
    let home = Target { tenant: TENANT, namespace: NAMESPACE, group: GROUP, range_version: 1 };
    PlacementMap::default()
        .with(VirtualEtcd::unsplit("acme", CLUSTER, home))
        .with_replicas(GROUP, replicas)
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The node that leads the group.
fn leader(nodes: &[TestNode]) -> u64 {
    let leads = |node: &&TestNode| {
        node.runtime.is_some()
            && node.handle.group(GROUP).is_some_and(|v| v.shared.leader() == Some(node.id))
    };
    let mut found = 0;
    eventually("somebody leads", || {
        found = nodes.iter().find(leads).map_or(0, |node| node.id);
        found != 0
    });
    found
}

#[test]
fn parts_of_reads_are_answered_at_the_revision_that_home_named() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    let grant = LeaseGrantRequest { ttl: 60, id: 5 };
    assert!(nodes[0].ask(Request::LeaseGrant(grant)).is_ok());
    let put = PutRequest { key: "a".into(), lease: 5, ..Default::default() };
    assert!(nodes[0].ask(Request::Put(put)).is_ok());
    assert_eq!(nodes[0].put("b", "1"), 3);
    let part =
        |body, last| GroupRequest { read_at: Some(ReadAt { revision: 90, last }), ..request(body) };
    for node in &nodes {
        let list = RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
        let list = node.wait(node.groups.call(part(Request::Range(list), 3)));
        let Ok(Reply::Range(list)) = list else { panic!("no list: {list:?}") };
        assert_eq!((list.count, list.header.unwrap().revision), (2, 90));
        let keys = Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id: 5, keys: true });
        let keys = node.wait(node.groups.call(part(keys, 3)));
        let Ok(Reply::LeaseTimeToLive(keys)) = keys else { panic!("no keys: {keys:?}") };
        assert_eq!((keys.keys, keys.header.unwrap().revision), (vec![Bytes::from("a")], 90));
    }
    // What is not applied yet is waited for.
    let read = RangeRequest { key: "c".into(), ..Default::default() };
    let ahead = nodes[0].groups.call(part(Request::Range(read), 4));
    let ahead = nodes[0].runtime.as_ref().unwrap().spawn(ahead);
    assert_eq!(nodes[0].put("c", "2"), 4);
    let answer = nodes[0].wait(ahead).unwrap();
    assert!(matches!(answer, Ok(Reply::Range(list)) if list.count == 1));
    // Nothing else can be read in parts.
    let linearize = part(Request::Linearize(LinearizeRequest {}), 3);
    assert!(nodes[0].wait(nodes[0].groups.call(linearize)).is_err());
}

#[test]
fn progress_at_a_revision_comes_from_a_hub_elsewhere_behind_its_events() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    for node in &nodes {
        let first = node.put("a", "1");
        let (control, mut watched) = node.watch(100);
        control.create(spec(1, first));
        control.progress_at(first + 1);
        assert_eq!(watched.revisions(first), [first]);
        node.put("a", "2");
        assert_eq!(watched.revisions(first + 1), [first + 1]);
        let progress = watched.next();
        let Some(WatchOutput::Progress { revision, newest }) = progress else {
            panic!("no progress: {progress:?}")
        };
        assert_eq!((revision, newest), (first + 1, 1));
    }
}

#[test]
fn every_kind_of_request_reaches_a_group_that_is_elsewhere() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    let far = &nodes[1];
    assert_eq!(far.put("a", "1"), 2);
    for serializable in [false, true] {
        assert_eq!(far.get("a", serializable).as_deref(), Some(&b"1"[..]));
    }
    let read = RangeRequest { key: "a".into(), ..Default::default() };
    let write = PutRequest { key: "b".into(), ..Default::default() };
    for (op, revision) in [(Op::RequestRange(read), 2), (Op::RequestPut(write), 3)] {
        let success = vec![RequestOp { request: Some(op) }];
        let txn = TxnRequest { success, ..Default::default() };
        let Ok(Reply::Txn(reply)) = far.ask(Request::Txn(txn)) else { panic!("no transaction") };
        assert_eq!((reply.succeeded, reply.header.unwrap().revision), (true, revision));
    }
    let grant = LeaseGrantRequest { ttl: 60, id: 5 };
    assert!(matches!(far.ask(Request::LeaseGrant(grant)), Ok(Reply::LeaseGrant(_))));
    let keep = LeaseKeepAliveRequest { id: 5 };
    let kept = far.ask(Request::LeaseKeepAlive(keep));
    assert!(matches!(kept, Ok(Reply::LeaseKeepAlive(reply)) if reply.ttl == 60));
    let ttl = LeaseTimeToLiveRequest { id: 5, keys: true };
    let told = far.ask(Request::LeaseTimeToLive(ttl));
    assert!(matches!(told, Ok(Reply::LeaseTimeToLive(reply)) if reply.granted_ttl == 60));
    assert!(far.ask(Request::LeaseRevoke(LeaseRevokeRequest { id: 5 })).is_ok());
    let linear = far.ask(Request::Linearize(LinearizeRequest {}));
    assert!(matches!(linear, Ok(Reply::Linearize(header)) if header.revision == 3));
    let described = far.ask(Request::Describe(DescribeRequest {}));
    assert!(matches!(described, Ok(Reply::Describe(description)) if description.leader == 1));
    for linearizable in [false, true] {
        let list = far.ask(Request::MemberList(MemberListRequest { linearizable }));
        assert!(matches!(list, Ok(Reply::Members(list)) if list.members.len() == 1));
    }
    let compact = CompactionRequest { revision: 3, physical: true };
    assert!(far.ask(Request::Compact(compact)).is_ok());
    let old = RangeRequest { key: "a".into(), revision: 2, ..Default::default() };
    let refused = far.ask(Request::Range(old)).unwrap_err();
    assert_eq!(refused, GroupError::refused(Error::Compacted));
    assert!(!far.groups.is_learner(GROUP) && far.groups.revision(GROUP) == 0);
}

#[test]
fn a_group_refuses_the_requests_of_other_tenants_whatever_the_way_they_come() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    nodes[0].put("a", "1");
    let foreign = [(TENANT.0 + 1, NAMESPACE.0), (TENANT.0, NAMESPACE.0 + 1), (0, 0)];
    for node in &nodes {
        for (tenant, namespace) in foreign {
            let range = |serializable| {
                Request::Range(RangeRequest { key: "a".into(), serializable, ..Default::default() })
            };
            let put = Request::Put(PutRequest { key: "a".into(), ..Default::default() });
            let grant = Request::LeaseGrant(LeaseGrantRequest { ttl: 60, id: 5 });
            let keep = Request::LeaseKeepAlive(LeaseKeepAliveRequest { id: 5 });
            for body in [range(false), range(true), put, grant, keep] {
                let asked = GroupRequest { tenant, namespace, ..request(body) };
                let refused = node.wait(node.groups.call(asked));
                assert_eq!(refused.unwrap_err(), GroupError::not_done(Error::ForeignGroup, None));
            }
            let (control, mut watched) = node.watch(8);
            let (tenant, namespace) = (TenantId(tenant), NamespaceId(namespace));
            control.create(WatchSpec { tenant, namespace, ..spec(3, 1) });
            assert!(matches!(watched.next(), Some(WatchOutput::Closed { key: 3 })));
        }
        assert_eq!(node.get("a", false).as_deref(), Some(&b"1"[..]), "and nothing was changed");
    }
}

#[test]
fn a_frozen_group_refuses_its_tenant_until_it_is_thawed() {
    let nodes = start(&[Has::Replica, Has::Replica, Has::Replica, Has::Nothing]);
    let standing = |standing: Standing, version| {
        let (tenant, namespace, standing) = (TENANT.0, NAMESPACE.0, standing as i32);
        let charter = Charter { tenant, namespace, standing, version, quota: 0 };
        let set = Request::SetCharter(SetCharter { charter: Some(charter) });
        let asked = nodes[3].wait(nodes[3].groups.call(request_to(GROUP, set)));
        assert!(matches!(asked, Ok(Reply::Done(_))), "{asked:?}");
    };
    let revision = nodes[3].put("a", "1");
    let (control, mut watched) = nodes[3].watch(8);
    control.create(spec(1, revision + 1));
    standing(Standing::Frozen, 2);
    for node in &nodes {
        // A replica that has not heard of it yet says so after the confirmation.
        let read = Request::Range(RangeRequest { key: "a".into(), ..Default::default() });
        let put = Request::Put(PutRequest { key: "a".into(), ..Default::default() });
        for body in [read, put] {
            let refused = node.ask(body).unwrap_err();
            assert_eq!((refused.error, refused.outcome), (Error::TenantFrozen, Outcome::NotDone));
        }
        let is_frozen = |node: &TestNode| {
            let serializable = true;
            let read = RangeRequest { key: "a".into(), serializable, ..Default::default() };
            node.ask(Request::Range(read)).is_err_and(|error| error.error == Error::TenantFrozen)
        };
        eventually("every replica knows", || is_frozen(node));
    }
    let (late, mut waits) = nodes[3].watch(8);
    late.create(spec(7, 1));
    assert!(matches!(waits.next(), Some(WatchOutput::Closed { key: 7 })));
    standing(Standing::Open, 3);
    standing(Standing::Frozen, 2);
    let next = nodes[3].put("a", "2");
    assert_eq!(watched.events(), (1, next, vec!["2".into()]), "the watch went through it");
    let described = nodes[3].ask(Request::Describe(DescribeRequest {}));
    let Ok(Reply::Describe(described)) = described else { panic!("no description") };
    assert_eq!(described.charter.map(|charter| charter.version), Some(3));
}

#[test]
fn the_leader_is_found_remembered_and_found_again_when_it_is_gone() {
    let mut nodes = start(&[Has::Replica, Has::Replica, Has::Replica, Has::Nothing]);
    let first = leader(&nodes);
    nodes[3].put("a", "1");
    assert_eq!(nodes[3].groups.caller.directory.leader(GROUP), Some(NodeId(first)));
    nodes[first as usize - 1].kill();
    // What was on its way when the leader went has an unknown outcome: ask again.
    let put = || Request::Put(PutRequest { key: "b".into(), ..Default::default() });
    eventually("another one leads", || nodes[3].ask(put()).is_ok());
    for serializable in [false, true] {
        for _ in 0..10 {
            assert_eq!(nodes[3].get("a", serializable).as_deref(), Some(&b"1"[..]));
        }
    }
    let second = nodes[3].groups.caller.directory.leader(GROUP).unwrap();
    assert_ne!(second.0, first);
}

#[test]
fn a_group_elsewhere_is_leaderless_only_after_nobody_was_leading_for_long() {
    let mut nodes = start(&[Has::Replica, Has::Replica, Has::Nothing]);
    leader(&nodes);
    nodes[2].put("a", "1");
    let until = Instant::now() + 5 * ELECTION;
    while Instant::now() < until {
        assert!(!nodes[2].groups.leaderless(GROUP));
        std::thread::sleep(ELECTION / 4);
    }
    nodes[0].kill();
    let begun = Instant::now();
    eventually("it is leaderless", || {
        std::thread::sleep(ELECTION / 4);
        nodes[2].groups.leaderless(GROUP)
    });
    assert!(begun.elapsed() > 3 * ELECTION, "{:?}", begun.elapsed());
}

#[test]
fn a_replica_that_cannot_answer_lets_the_others() {
    let nodes = start(&[Has::Replica, Has::Waiting]);
    nodes[0].put("a", "1");
    let waiting = &nodes[1];
    for serializable in [false, true] {
        assert_eq!(waiting.get("a", serializable).as_deref(), Some(&b"1"[..]));
    }
    waiting.put("a", "2");
    let (control, mut watched) = waiting.watch(10);
    control.create(spec(1, 3));
    assert_eq!(watched.events(), (1, 3, vec!["2".into()]));
    let refused =
        waiting.wait(waiting.alone.call(request(Request::Linearize(LinearizeRequest {}))));
    assert_eq!(refused.unwrap_err(), GroupError::not_done(Error::NoLeader, None));
}

#[test]
fn a_quarantined_replica_lets_the_others() {
    let nodes = start(&[Has::Replica, Has::Replica, Has::Replica]);
    let leads = leader(&nodes);
    let here = nodes.iter().find(|node| node.id != leads).unwrap();
    here.put("a", "1");
    here.handle.group(GROUP).unwrap().shared.stop();
    for serializable in [false, true] {
        assert_eq!(here.get("a", serializable).as_deref(), Some(&b"1"[..]));
    }
    assert_eq!(here.put("a", "2"), 3);
    let (control, mut watched) = here.watch(10);
    control.create(spec(1, 3));
    assert_eq!(watched.events(), (1, 3, vec!["2".into()]));
    let refused = here.wait(here.alone.call(request(Request::Linearize(LinearizeRequest {}))));
    assert_eq!(refused.unwrap_err().error, Error::Quarantined);
}

#[test]
fn what_came_from_another_node_is_not_passed_on() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    nodes[1].put("a", "1");
    let refused =
        nodes[1].wait(nodes[1].alone.call(request(Request::Linearize(LinearizeRequest {}))));
    assert_eq!(refused.unwrap_err(), GroupError::not_done(Error::NoLeader, None));
}

#[test]
fn a_group_that_nobody_has_is_asked_for_until_the_time_is_up() {
    let nodes = start(&[Has::Nothing, Has::Nothing]);
    let mut request = request(Request::Linearize(LinearizeRequest {}));
    request.timeout_ms = 300;
    let begun = Instant::now();
    let refused = nodes[0].wait(nodes[0].groups.call(request));
    assert_eq!(refused.unwrap_err().error, Error::Timeout);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let (control, mut watched) = nodes[0].watch(10);
    control.create(spec(4, 1));
    assert!(matches!(watched.next(), Some(WatchOutput::Closed { key: 4 })));
}

#[test]
fn watches_of_a_group_elsewhere_are_told_all_that_a_hub_tells() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    let far = &nodes[1];
    far.put("a", "1");
    far.put("a", "2");
    let (control, mut watched) = far.watch(1000);
    control.create(spec(1, 2));
    control.create(WatchSpec { prev_kv: true, ..spec(7, 4) });
    assert_eq!(watched.revisions(3), [2, 3]);
    control.progress();
    assert!(matches!(watched.next(), Some(WatchOutput::Progress { revision: 3, newest: 7 })));
    control.watch_progress(7);
    assert!(matches!(watched.next(), Some(WatchOutput::WatchProgress { key: 7, revision: 3 })));
    far.put("a", "3");
    assert_eq!(watched.events(), (1, 4, vec!["3".into()]));
    let Some(WatchOutput::Events { key: 7, events, .. }) = watched.next() else {
        panic!("the second watch is told")
    };
    assert_eq!(events[0].prev_kv.as_ref().unwrap().value.as_ref(), b"2");
    assert_eq!(events[0].encoded().as_ref(), prost::Message::encode_to_vec(&**events[0]));
    control.cancel(1);
    far.put("a", "4");
    assert_eq!(watched.events().0, 7);
    let compact = CompactionRequest { revision: 4, physical: false };
    assert!(far.ask(Request::Compact(compact)).is_ok());
    control.create(spec(8, 2));
    assert!(matches!(watched.next(), Some(WatchOutput::Compacted { key: 8, revision: 4 })));
    drop(control);
    let feed = nodes[0].handle.group(GROUP).unwrap().feed;
    eventually("the hub forgets the watches", || feed.counts() == (0, 0));
    assert!(watched.next().is_none());
}

#[test]
fn a_slow_client_holds_up_no_other_and_misses_nothing() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    let (here, far) = (&nodes[0], &nodes[1]);
    let (slow_control, mut slow) = far.watch(8);
    let (control, mut quick) = far.watch(1000);
    slow_control.create(spec(1, 2));
    control.create(spec(1, 2));
    let value = Bytes::from(vec![7; 4000]);
    for revision in 2..=400 {
        assert_eq!(here.put("a", value.clone()), revision);
        assert_eq!(quick.revisions(revision), [revision]);
    }
    let feed = here.handle.group(GROUP).unwrap().feed;
    eventually("the slow one falls behind", || feed.counts() == (2, 1));
    assert_eq!(slow.revisions(400), (2..=400).collect::<Vec<_>>());
    eventually("it has caught up", || feed.counts() == (2, 2));
}

#[test]
fn a_history_larger_than_a_message_comes_whole() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    for revision in 2..=31 {
        assert_eq!(nodes[0].put("a", vec![7; 200_000]), revision);
    }
    let (control, mut watched) = nodes[1].watch(1000);
    control.create(spec(1, 2));
    assert_eq!(watched.revisions(31), (2..=31).collect::<Vec<_>>());
    assert_eq!(nodes[0].put("a", "end"), 32);
    assert_eq!(watched.events(), (1, 32, vec!["end".into()]));
}

#[test]
fn many_client_streams_share_one_stream_between_nodes() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    nodes[1].put("a", "1");
    let mut open: Vec<_> = (0..300).map(|_| nodes[1].watch(100)).collect();
    for (control, _) in &open {
        (1..=3).for_each(|key| control.create(spec(key, 3)));
    }
    nodes[1].put("a", "2");
    for (_, watched) in &mut open {
        let mut keys: Vec<_> = (0..3).map(|_| watched.events().0).collect();
        keys.sort_unstable();
        assert_eq!(keys, [1, 2, 3]);
    }
}

#[test]
fn a_watch_is_closed_when_its_node_dies_and_goes_on_at_another() {
    let mut nodes = start(&[Has::Replica, Has::Replica, Has::Replica, Has::Nothing]);
    leader(&nodes);
    let far = nodes.pop().unwrap();
    assert_eq!(far.put("a", "1"), 2);
    let (control, mut watched) = far.watch(1000);
    control.create(spec(1, 2));
    assert_eq!(watched.revisions(2), [2]);
    let serves = |node: &TestNode| node.handle.group(GROUP).unwrap().feed.counts().0 > 0;
    // A hub counts its watches when it has served them.
    eventually("a hub counts the watch", || nodes.iter().any(serves));
    let at = nodes.iter().position(serves).unwrap();
    nodes[at].kill();
    let last = watched.next();
    assert!(matches!(last, None | Some(WatchOutput::Closed { key: 1 })), "{last:?}");
    let put = || Request::Put(PutRequest { key: "b".into(), ..Default::default() });
    eventually("another one leads", || far.ask(put()).is_ok());
    let until = Instant::now() + PATIENCE;
    loop {
        let (control, mut watched) = far.watch(1000);
        control.create(spec(1, 3));
        match watched.next() {
            Some(WatchOutput::Events { revision, .. }) => break assert!(revision >= 3),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
        assert!(Instant::now() < until, "no other node serves the watch");
    }
}

#[test]
fn a_watch_is_closed_when_its_replica_is_removed() {
    let nodes = start(&[Has::Replica, Has::Nothing]);
    nodes[1].put("a", "1");
    let (control, mut watched) = nodes[1].watch(1000);
    control.create(spec(1, 2));
    assert_eq!(watched.revisions(2), [2]);
    nodes[0].handle.group(GROUP).unwrap().feed.shut();
    assert!(matches!(watched.next(), Some(WatchOutput::Closed { key: 1 })));
    assert!(watched.next().is_none(), "the hub has let go of the sink");
    control.create(spec(2, 2));
    let (_control, mut later) = nodes[1].watch(1000);
    assert!(later.next().is_none());
}
