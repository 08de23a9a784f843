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
use crate::engine::memory::MemoryEngine;
use crate::extents::ExtentsConfig;
use crate::log::LogConfig;

pub(super) const GROUP: GroupId = GroupId(40);
const OTHER: GroupId = GroupId(41);
const TICK_MS: u64 = 100;

pub(super) struct Driven {
    pub(super) node: Node,
    log: Arc<Log>,
    pub(super) now_ms: u64,
    pub(super) tickets: Ticket,
    pub(super) answers: BTreeMap<Ticket, Result<Answer, GroupError>>,
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
    pub(super) fn new() -> Driven {
        Driven::with(&[birth(GROUP), birth(OTHER)])
    }

    fn with(births: &[Birth]) -> Driven {
        let config = NodeConfig {
            node: NodeId(1),
            cluster: 7,
            incarnation: 1,
            seed: 1,
            tick_ms: TICK_MS,
            election_ticks: 10,
            quota_bytes: 0,
            min_lease_ttl_s: 1,
            block_keys: 64,
            large_bytes: 1 << 20,
            checkpoint: CheckpointPolicy::default(),
            transfer: TransferPolicy::default(),
        };
        let (log, recovered) =
            Log::open(Arc::new(SimDisk::new()), 1, LogConfig::default()).unwrap();
        let log = Arc::new(log);
        let pages = Pages {
            disk: Arc::new(SimDisk::new()),
            config: ExtentsConfig {
                file_pages: 64,
                grow_pages: 64,
                ahead_pages: 0,
                ..Default::default()
            },
        };
        let engine = Arc::new(MemoryEngine::default());
        let opened =
            Node::open(config, engine, log.clone(), &recovered, births, pages, 1000).unwrap();
        let (tickets, answers, sent) = (0, BTreeMap::new(), Vec::new());
        let mut driven = Driven { node: opened.node, log, now_ms: 1000, tickets, answers, sent };
        driven.settle();
        driven
    }

    /// Closes rounds until nothing is left to be done.
    pub(super) fn settle(&mut self) {
        loop {
            let outputs = self.node.round(self.now_ms).unwrap();
            let mut inputs = Vec::new();
            for output in outputs {
                match output {
                    Output::Persist(mut persist) => {
                        let extents = self.node.store().extents().clone();
                        let appended = persist.write(&self.log, &extents, 1 << 20).unwrap();
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

    pub(super) fn pass(&mut self, ms: u64) {
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
            Ok(Answer::Readable(_)) => panic!("rows were not asked for"),
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
