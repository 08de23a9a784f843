//! A node with one replica, driven by hand: its clock is the test's.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::cluster::group::charter::Standing;
use proto::cluster::group::{Charter, SetCharter};
use proto::cluster::raft::peer_message;
use proto::etcd::{LeaseGrantRequest, LeaseTimeToLiveRequest, Member, PutRequest};
use proto::group::{GroupError, Reply, Request, request_to};
use proto::{Error, GroupId, NamespaceId, NodeId, TenantId};
use raft::eraftpb::MessageType;

use super::*;
use crate::disk::sim::SimDisk;
use crate::engine::Engine;
use crate::engine::memory::MemoryEngine;
use crate::extents::ExtentsConfig;
use crate::log::LogConfig;
use crate::machine::state::State;
use crate::store::layout;

const GROUP: GroupId = GroupId(40);
const OTHER: GroupId = GroupId(41);
/// It is cut out of one of the others.
const CHILD: GroupId = GroupId(42);
const TICK_MS: u64 = 100;
const LARGE_BYTES: usize = 8 << 10;

struct Driven {
    node: Node,
    log: Arc<Log>,
    births: Vec<Birth>,
    engine: MemoryEngine,
    /// Of the log, and of large values.
    disks: (SimDisk, SimDisk),
    now_ms: u64,
    tickets: Ticket,
    answers: BTreeMap<Ticket, Result<Answer, GroupError>>,
    sent: Vec<PeerMessage>,
}

/// Each group has a tenant with its number.
fn birth(group: GroupId) -> Birth {
    Birth {
        group,
        replica: 1,
        members: vec![Member { id: 1, name: "n1".into(), ..Default::default() }],
        cluster_id: 7,
        tenant: TenantId(group.0),
        namespace: NamespaceId(1),
    }
}

impl Driven {
    fn new() -> Driven {
        Driven::with(&[birth(GROUP), birth(OTHER)])
    }

    fn with(births: &[Birth]) -> Driven {
        let disks = (SimDisk::new(), SimDisk::new());
        Driven::open(NodeId(1), births.to_vec(), MemoryEngine::default(), disks, 1000)
    }

    fn open(
        node: NodeId,
        births: Vec<Birth>,
        engine: MemoryEngine,
        disks: (SimDisk, SimDisk),
        now_ms: u64,
    ) -> Driven {
        let config = NodeConfig {
            node,
            cluster: 7,
            incarnation: 1,
            seed: 1,
            tick_ms: TICK_MS,
            election_ticks: 10,
            quota_bytes: 0,
            min_lease_ttl_s: 1,
            block_keys: 64,
            large_bytes: LARGE_BYTES,
            checkpoint: CheckpointPolicy::default(),
            transfer: TransferPolicy::default(),
        };
        let log = Log::open(Arc::new(disks.0.clone()), node.0, LogConfig::default());
        let (log, recovered) = log.unwrap();
        let log = Arc::new(log);
        let pages = Pages {
            disk: Arc::new(disks.1.clone()),
            config: ExtentsConfig {
                file_pages: 64,
                grow_pages: 64,
                ahead_pages: 0,
                ..Default::default()
            },
        };
        let below = Arc::new(engine.clone());
        let opened =
            Node::open(config, below, log.clone(), &recovered, &births, pages, now_ms).unwrap();
        let (tickets, answers, sent) = (0, BTreeMap::new(), Vec::new());
        let node = opened.node;
        let mut driven =
            Driven { node, log, births, engine, disks, now_ms, tickets, answers, sent };
        driven.settle();
        driven
    }

    /// The process ends, and begins anew.
    fn restart(self) -> Driven {
        let Driven { node, births, engine, disks, now_ms, .. } = self;
        Driven::open(node.config.node, births, engine, disks, now_ms)
    }

    /// Closes rounds until nothing is left to be done.
    fn settle(&mut self) {
        loop {
            let outputs = self.node.round(self.now_ms).unwrap();
            let mut inputs = Vec::new();
            for output in outputs {
                match output {
                    Output::Persist(mut persist) => {
                        let extents = self.node.store().extents().clone();
                        let appended = persist.write(&self.log, &extents, LARGE_BYTES).unwrap();
                        inputs.push(Input::Persisted { id: persist.id, sync_ms: 0, appended });
                    }
                    Output::Answer { ticket, answer } => {
                        let before = self.answers.insert(ticket, answer);
                        assert!(before.is_none(), "a ticket is answered once");
                    }
                    Output::Checkpoint(checkpoint) => {
                        checkpoint.write(self.node.store().engine().as_ref()).unwrap();
                        inputs.push(Input::CheckpointWritten);
                    }
                    Output::Send { message, .. } => self.sent.push(message),
                    _ => {}
                }
            }
            if inputs.is_empty() && !self.node.is_busy() {
                return;
            }
            for input in inputs {
                self.node.step(self.now_ms, input).unwrap();
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        let until_ms = self.now_ms + ms;
        while self.now_ms < until_ms {
            self.now_ms = until_ms.min(self.now_ms + TICK_MS);
            self.node.step(self.now_ms, Input::Tick).unwrap();
            self.settle();
        }
    }

    fn begin(&mut self, group: GroupId, body: Request) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let (tenant, namespace) = (group.0, 1);
        let request = GroupRequest { tenant, namespace, ..request_to(group, body) };
        self.node.step(self.now_ms, Input::Request { ticket, request }).unwrap();
        ticket
    }

    fn ask(&mut self, group: GroupId, body: Request) -> Result<Reply, Error> {
        let ticket = self.begin(group, body);
        self.settle();
        match self.answers.remove(&ticket).expect("it is answered") {
            Ok(Answer::Reply(reply)) => Ok(reply),
            Ok(Answer::Readable) => panic!("rows were not asked for"),
            Err(error) => Err(error.error),
        }
    }

    fn tell(&mut self, group: GroupId, standing: Standing, quota: i64, version: u64) {
        let (tenant, namespace, standing) = (group.0, 1, standing as i32);
        let charter = Charter { tenant, namespace, standing, quota, version };
        let set = Request::SetCharter(SetCharter { charter: Some(charter) });
        assert!(matches!(self.ask(group, set), Ok(Reply::Done(_))));
    }

    fn put(&mut self, group: GroupId, value: &[u8]) -> Result<Reply, Error> {
        let value = value.to_vec().into();
        self.ask(group, Request::Put(PutRequest { key: "k".into(), value, ..Default::default() }))
    }

    fn grant(&mut self, id: i64, ttl: i64) {
        let grant = Request::LeaseGrant(LeaseGrantRequest { id, ttl });
        assert!(self.ask(GROUP, grant).is_ok());
    }

    /// Seconds that a lease still has, -1 if it is gone.
    fn remains(&mut self, id: i64) -> i64 {
        let ask = Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id, keys: false });
        match self.ask(GROUP, ask) {
            Ok(Reply::LeaseTimeToLive(reply)) => reply.ttl,
            other => panic!("time to live: {other:?}"),
        }
    }

    fn leases(&self) -> usize {
        self.node.group(GROUP).unwrap().machine().leases().len()
    }
}

#[test]
fn a_lease_keeps_over_a_freeze_what_remained_of_it_and_expires_afterwards() {
    let mut driven = Driven::new();
    driven.grant(5, 10);
    driven.pass(4000);
    driven.tell(GROUP, Standing::Frozen, 0, 2);
    driven.pass(60_000);
    assert_eq!(driven.leases(), 1);
    driven.tell(GROUP, Standing::Open, 0, 3);
    assert_eq!(driven.remains(5), 6);
    driven.pass(5900);
    assert_eq!(driven.leases(), 1);
    driven.pass(200);
    assert_eq!(driven.leases(), 0);
}

#[test]
fn what_is_undeleted_has_full_ttls() {
    let mut driven = Driven::new();
    driven.grant(5, 10);
    driven.pass(8000);
    driven.tell(GROUP, Standing::Frozen, 0, 2);
    driven.tell(GROUP, Standing::Deleted, 0, 3);
    driven.pass(60_000);
    // Placement froze it again before the group heard that it was undeleted.
    driven.tell(GROUP, Standing::Frozen, 0, 5);
    driven.pass(60_000);
    driven.tell(GROUP, Standing::Open, 0, 6);
    assert_eq!(driven.remains(5), 10);
}

#[test]
fn an_expiry_that_comes_behind_the_freeze_in_the_log_waits_for_the_thaw() {
    let mut driven = Driven::new();
    driven.grant(5, 10);
    driven.pass(9900);
    // Both are proposed in the same round.
    let (tenant, namespace, standing) = (GROUP.0, 1, Standing::Frozen as i32);
    let charter = Charter { tenant, namespace, standing, quota: 0, version: 2 };
    driven.begin(GROUP, Request::SetCharter(SetCharter { charter: Some(charter) }));
    driven.now_ms += TICK_MS;
    driven.node.step(driven.now_ms, Input::Tick).unwrap();
    let ask = LeaseTimeToLiveRequest { id: 5, keys: false };
    let waits = driven.begin(GROUP, Request::LeaseTimeToLive(ask));
    driven.settle();
    let refused = driven.answers.remove(&waits).expect("nobody waits for the thaw");
    assert_eq!(refused.err().map(|error| error.error), Some(Error::TenantFrozen));
    driven.pass(5000);
    assert_eq!(driven.leases(), 1);
    driven.tell(GROUP, Standing::Open, 0, 3);
    driven.pass(200);
    assert_eq!(driven.leases(), 0);
}

#[test]
fn a_quota_is_its_groups_alone() {
    let mut driven = Driven::new();
    driven.tell(GROUP, Standing::Open, 10_000, 2);
    let value = [7; 4000];
    let mut puts = 0;
    while driven.put(GROUP, &value).is_ok() {
        puts += 1;
        assert!(puts < 3, "the quota is over");
    }
    assert_eq!(driven.put(GROUP, &value).err(), Some(Error::NoSpace));
    for _ in 0..10 {
        assert!(driven.put(OTHER, &value).is_ok());
    }
    let described = driven.ask(GROUP, Request::Describe(Default::default()));
    assert!(matches!(described, Ok(Reply::Describe(told)) if told.quota == 10_000));
}

#[test]
fn after_a_start_replicas_ask_for_votes_in_turn_before_a_timeout() {
    let members = [1, 2, 3].map(|id| Member { id, name: format!("n{id}"), ..Default::default() });
    let of = |group| Birth { members: members.to_vec(), ..birth(GroupId(group)) };
    // Node 1 has the first turn in group 42, and the second in group 44.
    let mut driven = Driven::with(&[of(42), of(44)]);
    let mut asked = BTreeMap::new();
    for tick in 1..driven.node.config.election_ticks {
        driven.now_ms += TICK_MS;
        driven.node.step(driven.now_ms, Input::Tick).unwrap();
        driven.settle();
        for message in driven.sent.drain(..) {
            let Some(peer_message::Body::Raft(raft)) = message.body else { continue };
            let kind = raft.message.expect("it has one").kind;
            assert_eq!(kind, MessageType::MsgRequestPreVote as u32, "a living leader stays");
            asked.entry(raft.group).or_insert(tick);
        }
    }
    assert_eq!(asked, BTreeMap::from([(42, 2), (44, 6)]));
}

impl Driven {
    fn put_at(&mut self, group: GroupId, key: &str, value: &[u8]) {
        let (key, value) = (key.to_owned().into(), value.to_vec().into());
        let put = Request::Put(PutRequest { key, value, ..Default::default() });
        assert!(self.ask(group, put).is_ok());
    }

    /// What an entry in the log of `parent` does.
    fn split(&mut self, parent: GroupId, at: &'static str, child: GroupId) {
        let shelf = self.node.take_shelf();
        let group = self.node.groups.get_mut(&parent).unwrap();
        let state = group.machine.split_off(&at.into(), shelf).unwrap();
        let (applied_index, applied_term) = open::BIRTH;
        let charter = crate::charter::first(child, TenantId(child.0), NamespaceId(1));
        let state = State { applied_index, applied_term, charter, ..state };
        self.node.changed.insert(parent);
        self.node.expect(ReplicaKey { group: child.0, replica: 1 }, state);
        self.pass(1000);
    }

    fn leave(&mut self, group: GroupId) {
        self.node.step(self.now_ms, Input::Deaths(vec![group])).unwrap();
        self.settle();
    }

    /// The keys that a group has, each read as a whole.
    fn keys(&self, group: GroupId) -> BTreeSet<Bytes> {
        let machine = self.node.group(group).unwrap().machine();
        let view = machine.view();
        let mut keys = BTreeSet::new();
        view.scan(&machine.shelves().range, &mut |key, found| {
            assert!(!view.value(&found.row).unwrap().is_empty());
            keys.insert(key);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        keys
    }

    /// Keys of all versions in the engine, by shelf.
    fn on_disk(&self) -> BTreeMap<Shelf, BTreeSet<Bytes>> {
        let mut found: BTreeMap<Shelf, BTreeSet<Bytes>> = BTreeMap::new();
        for shelf in (1..self.node.next_shelf).map(Shelf) {
            let (from, to) = layout::versions_bounds(shelf);
            for row in self.engine.scan(&from, &to) {
                let key = layout::version_user_key(&row.unwrap().0).unwrap();
                found.entry(shelf).or_default().insert(key);
            }
        }
        found
    }

    /// Shelves on which the engine has any row.
    fn used(&self) -> BTreeSet<Shelf> {
        let used = (1..self.node.next_shelf).map(Shelf).filter(|shelf| {
            layout::SHELF_KINDS.iter().any(|kind| {
                let (from, to) = layout::shelf_bounds(*kind, *shelf);
                self.engine.scan(&from, &to).next().is_some()
            })
        });
        used.collect()
    }
}

/// GROUP was split, and both sides were written to before and since, small and large.
fn split() -> Driven {
    let mut driven = Driven::new();
    let large = vec![7; 2 * LARGE_BYTES];
    driven.put_at(OTHER, "a", b"v");
    for key in ["a", "b", "c", "x", "y", "z"] {
        driven.put_at(GROUP, key, b"v");
    }
    driven.put_at(GROUP, "b", &large);
    driven.put_at(GROUP, "y", &large);
    driven.split(GROUP, "m", CHILD);
    for (group, key) in [(CHILD, "w"), (GROUP, "d"), (CHILD, "v"), (GROUP, "a")] {
        driven.put_at(group, key, &large);
    }
    driven
}

#[test]
fn whoever_leaves_takes_its_rows_and_nobody_elses() {
    for (leaves, stays) in [(GROUP, CHILD), (CHILD, GROUP)] {
        // The process ends: not, before the rest is on disk, or before anything is dropped.
        for dies in 0..3 {
            let mut driven = split();
            let shared = driven.node.group(GROUP).unwrap().machine().shelves().versions;
            let kept = driven.keys(stays);
            assert!(kept.len() >= 4);
            if dies == 1 {
                driven.pass(8000);
            }
            driven.leave(leaves);
            if dies > 0 {
                driven = driven.restart();
            }
            driven.pass(8000);
            assert_eq!(driven.keys(stays), kept, "{leaves:?} leaves, dies {dies}");
            assert_eq!(
                driven.on_disk().get(&shared),
                Some(&kept),
                "{leaves:?} leaves, dies {dies}"
            );
            driven.node.store().audit().unwrap();
            assert!(driven.node.dropped.is_empty());
            // The past is still told: by whoever stays.
            let machine = driven.node.group(stays).unwrap().machine();
            let (shelves, to) = (machine.shelves().clone(), machine.state().revision);
            let (history, _) = driven.node.store().history(&shelves, 2, to, 100).unwrap();
            let told: BTreeSet<_> =
                history.values().flat_map(|list| list.iter().map(|c| c.key.clone())).collect();
            assert_eq!(told, kept);
            driven.leave(stays);
            driven.pass(8000);
            let other = driven.node.group(OTHER).unwrap().machine().shelf();
            assert_eq!(driven.used(), BTreeSet::from([other]));
            driven.node.store().audit().unwrap();
        }
    }
}

#[test]
fn what_a_group_has_on_a_shelf_that_it_shares_is_found_after_a_restart() {
    let mut driven = split();
    let (left, right) = (driven.keys(GROUP), driven.keys(CHILD));
    for _ in 0..2 {
        driven = driven.restart();
        driven.pass(8000);
        assert_eq!((driven.keys(GROUP), driven.keys(CHILD)), (left.clone(), right.clone()));
        assert!(driven.node.dropped.is_empty(), "nothing was given up");
    }
    let compact =
        |revision| Request::Compact(proto::etcd::CompactionRequest { revision, physical: true });
    let revision = driven.node.group(CHILD).unwrap().machine().state().revision;
    let shelf = driven.node.group(GROUP).unwrap().machine().shelf();
    let packed =
        |driven: &Driven| driven.node.store().packed_below(shelf, i64::MAX, 100).unwrap().len();
    assert!(driven.ask(CHILD, compact(revision)).is_ok());
    assert!(driven.node.group(CHILD).unwrap().machine().shelves().past.is_empty());
    assert!(packed(&driven) > 0, "its parent still reads them");
    driven.put_at(GROUP, "a", b"v");
    driven.pass(8000);
    let revision = driven.node.group(GROUP).unwrap().machine().state().revision;
    assert!(driven.ask(GROUP, compact(revision)).is_ok());
    driven.pass(8000);
    assert_eq!(packed(&driven), 1, "what the compacted revision changed can be watched");
    let driven = driven.restart();
    assert_eq!((driven.keys(GROUP), driven.keys(CHILD)), (left, right));
}

#[test]
fn a_snapshot_has_what_the_group_has_and_nothing_else() {
    let mut sender = split();
    let add = proto::etcd::MemberAddRequest { peer_ur_ls: vec!["u".into()], is_learner: true };
    let Ok(Reply::MemberAdd(added)) = sender.ask(CHILD, Request::MemberAdd(add)) else {
        panic!("a learner can be added");
    };
    let id = added.member.unwrap().id;
    let comes = Birth { replica: id, members: Vec::new(), ..birth(CHILD) };
    let disks = (SimDisk::new(), SimDisk::new());
    let mut receiver =
        Driven::open(NodeId(id), vec![comes], MemoryEngine::default(), disks, sender.now_ms);
    let happened = |driven: &Driven| {
        let machine = driven.node.group(CHILD).unwrap().machine();
        let (shelves, to) = (machine.shelves().clone(), machine.state().revision);
        let (history, _) = driven.node.store().history(&shelves, 2, to, 100).unwrap();
        let told = |list: &Arc<[crate::store::changes::Change]>| {
            list.iter().map(|c| (c.key.clone(), c.deleted, c.previous)).collect::<Vec<_>>()
        };
        history.iter().map(|(revision, list)| (*revision, told(list))).collect::<Vec<_>>()
    };
    for _ in 0..200 {
        for (from, to) in [(1, true), (id, false)] {
            let (one, other) = match to {
                true => (&mut sender, &mut receiver),
                false => (&mut receiver, &mut sender),
            };
            one.pass(TICK_MS);
            for message in std::mem::take(&mut one.sent) {
                let input = Input::Peer { from: NodeId(from), message };
                other.node.step(other.now_ms, input).unwrap();
            }
            other.settle();
        }
    }
    assert_eq!(receiver.keys(CHILD), sender.keys(CHILD));
    assert_eq!(happened(&receiver), happened(&sender));
    let machine = receiver.node.group(CHILD).unwrap().machine();
    let state = machine.state();
    let sent = sender.node.group(CHILD).unwrap().machine().state();
    assert!(machine.shelves().is_alone());
    assert_eq!(
        (state.keys, state.range(), state.revision),
        (sent.keys, sent.range(), sent.revision)
    );
    assert_eq!(machine.published().counts().read().total(), state.keys);
    let on_disk: Vec<_> = receiver.on_disk().into_values().collect();
    assert_eq!(on_disk, [receiver.keys(CHILD)]);
}
