//! A node with one replica, driven by hand: its clock is the test's.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::cluster::group::charter::Standing;
use proto::cluster::group::refusal::Outcome;
use proto::cluster::group::{
    Batch, ChangeReplica, Charter, Command, SetCharter, change_replica, command,
};
use proto::cluster::raft::{
    AmMember, Entry, GroupMessage, Message, NotMember, PeerMessage, peer_message,
};
use proto::etcd::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, Member,
    PutRequest,
};
use proto::group::{GroupError, Reply, Request, request_to};
use proto::{Error, GroupId, NamespaceId, NodeId, TenantId, limits};
use raft::eraftpb::{EntryType, MessageType};

use super::*;
use crate::disk::sim::SimDisk;
use crate::engine::memory::MemoryEngine;
use crate::extents::ExtentsConfig;
use crate::log::LogConfig;

pub(super) const GROUP: GroupId = GroupId(40);
pub(super) const OTHER: GroupId = GroupId(41);
pub(super) const TICK_MS: u64 = 100;
pub(super) const LARGE_BYTES: usize = 8 << 10;

pub(super) struct Driven {
    pub(super) node: Node,
    log: Arc<Log>,
    pub(super) disks: Disks,
    /// What was said to other nodes.
    pub(super) sent: Vec<(NodeId, PeerMessage)>,
    /// Groups whose watches were told to look at history.
    pub(super) replaced: Vec<GroupId>,
    pub(super) now_ms: u64,
    pub(super) tickets: Ticket,
    pub(super) answers: BTreeMap<Ticket, Result<Answer, GroupError>>,
}

/// What a node leaves behind when it ends.
#[derive(Clone, Default)]
pub(super) struct Disks {
    log: Arc<SimDisk>,
    pages: Arc<SimDisk>,
    pub(super) engine: Arc<MemoryEngine>,
}

/// Each group has a tenant with its number.
pub(super) fn birth(group: GroupId) -> Birth {
    birth_of(group, 1)
}

/// A group on nodes from 1 on.
fn birth_of(group: GroupId, nodes: u64) -> Birth {
    let member = |id| Member { id, name: format!("n{id}"), ..Default::default() };
    Birth {
        group,
        replica: 1,
        members: (1..=nodes).map(member).collect(),
        cluster_id: 7,
        tenant: TenantId(group.0),
        namespace: NamespaceId(1),
    }
}

impl Driven {
    pub(super) fn new() -> Driven {
        Driven::open(Disks::default(), &[birth(GROUP), birth(OTHER)], false)
    }

    fn open(disks: Disks, births: &[Birth], withhold: bool) -> Driven {
        let mut driven = Driven::open_still(NodeId(1), disks, births, withhold);
        driven.settle();
        driven
    }

    /// Another node, which was never used.
    pub(super) fn fresh(node: NodeId, births: &[Birth]) -> Driven {
        let mut driven = Driven::open_still(node, Disks::default(), births, false);
        driven.settle();
        driven
    }

    /// Before its first round.
    fn open_still(node: NodeId, disks: Disks, births: &[Birth], withhold: bool) -> Driven {
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
            withhold,
            checkpoint: CheckpointPolicy::default(),
            transfer: TransferPolicy::default(),
        };
        let (log, recovered) = Log::open(disks.log.clone(), node.0, LogConfig::default()).unwrap();
        let log = Arc::new(log);
        let pages = Pages {
            disk: disks.pages.clone(),
            config: ExtentsConfig {
                file_pages: 64,
                grow_pages: 64,
                ahead_pages: 0,
                ..Default::default()
            },
        };
        let engine = disks.engine.clone();
        let opened =
            Node::open(config, engine, log.clone(), &recovered, births, pages, 1000).unwrap();
        Driven {
            node: opened.node,
            log,
            disks,
            sent: Vec::new(),
            replaced: Vec::new(),
            now_ms: 1000,
            tickets: 0,
            answers: BTreeMap::new(),
        }
    }

    /// The node after an end without warning, which takes what was not synced.
    pub(super) fn killed(self, withhold: bool) -> Driven {
        let mut driven = self.killed_still(withhold);
        driven.settle();
        driven
    }

    /// The same before its first round.
    fn killed_still(self, withhold: bool) -> Driven {
        let (node, disks) = (self.node.config.node, self.disks.clone());
        drop(self);
        disks.log.crash(&mut |_| 0);
        disks.pages.crash(&mut |_| 0);
        Driven::open_still(node, disks, &[], withhold)
    }

    /// Closes rounds until nothing is left to be done.
    pub(super) fn settle(&mut self) {
        self.settle_until(|_| false);
    }

    /// Closes rounds until `is_there`, after one of them, or until nothing is left to be done.
    pub(super) fn settle_until(&mut self, is_there: impl Fn(&Node) -> bool) {
        loop {
            if is_there(&self.node) {
                return;
            }
            let outputs = self.node.round(self.now_ms).unwrap();
            let mut inputs = Vec::new();
            for output in outputs {
                match output {
                    Output::Persist(mut persist) => {
                        let extents = self.node.store().extents().clone();
                        let appended = persist.write(&self.log, &extents, LARGE_BYTES).unwrap();
                        self.log.sync().unwrap();
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
                    Output::Send { to, message } => self.sent.push((to, message)),
                    Output::Replaced { group } => self.replaced.push(group),
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

    pub(super) fn begin(&mut self, group: GroupId, body: Request) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let (tenant, namespace) = (group.0, 1);
        let request = GroupRequest { tenant, namespace, ..request_to(group, body) };
        self.node.step(self.now_ms, Input::Request { ticket, request }).unwrap();
        ticket
    }

    pub(super) fn ask(&mut self, group: GroupId, body: Request) -> Result<Reply, Error> {
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
    let mut driven = Driven::open(Disks::default(), &[of(42), of(44)], false);
    let mut asked = BTreeMap::new();
    for tick in 1..driven.node.config.election_ticks {
        driven.now_ms += TICK_MS;
        driven.node.step(driven.now_ms, Input::Tick).unwrap();
        driven.settle();
        for (_, message) in std::mem::take(&mut driven.sent) {
            let Some(peer_message::Body::Raft(raft)) = message.body else { continue };
            let kind = raft.message.expect("it has one").kind;
            assert_eq!(kind, MessageType::MsgRequestPreVote as u32, "a living leader stays");
            asked.entry(raft.group).or_insert(tick);
        }
    }
    assert_eq!(asked, BTreeMap::from([(42, 2), (44, 6)]));
}

/// What a leader on node 2 says: entries behind index `before`, of which all up to `commit` are
/// committed.
fn append(term: u64, before: (u64, u64), entries: Vec<Entry>, commit: u64) -> Input {
    let message = Message {
        kind: MessageType::MsgAppend as u32,
        to: 1,
        from: 2,
        term,
        log_term: before.1,
        index: before.0,
        entries,
        commit,
        ..Default::default()
    };
    let raft = GroupMessage { group: GROUP.0, message: Some(message) };
    let message = PeerMessage { body: Some(peer_message::Body::Raft(raft)) };
    Input::Peer { from: NodeId(2), message }
}

fn put_entry(term: u64, index: u64, key: &str) -> Entry {
    let put = PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
    let commands = vec![Command { body: Some(command::Body::Put(put)) }];
    let data = encode(&Batch { format: 1, range_version: 1, commands });
    Entry { kind: EntryType::EntryNormal as u32, term, index, data, ..Default::default() }
}

/// One of three, which has heard of three puts from a leader, the last two not as committed, and
/// then of nobody any more.
fn survivor() -> Driven {
    let mut driven = Driven::new_with(3);
    let entries = vec![put_entry(6, 6, "a"), put_entry(6, 7, "b"), put_entry(6, 8, "c")];
    driven.node.step(driven.now_ms, append(6, (5, 5), entries, 6)).unwrap();
    driven.settle();
    let state = driven.state();
    assert_eq!((state.applied_index, state.revision), (6, 2), "the others are not committed");
    driven.pass(5000);
    assert_eq!(driven.put(GROUP, b"v").err(), Some(Error::NoLeader), "it has no quorum");
    driven
}

fn wish(membership_version: u64, revision: i64) -> Input {
    Input::Recover(Recover { group: GROUP, replica: 1, membership_version, revision })
}

const VERSION: u64 = 1 + limits::RECOVERY_STEP;

impl Driven {
    fn new_with(nodes: u64) -> Driven {
        Driven::open(Disks::default(), &[birth_of(GROUP, nodes)], false)
    }

    fn state(&self) -> crate::machine::state::State {
        self.node.group(GROUP).unwrap().machine().state().clone()
    }

    fn recover(&mut self, version: u64, revision: i64) {
        self.node.step(self.now_ms, wish(version, revision)).unwrap();
        self.settle();
        self.pass(1000);
    }

    fn is_stored(&self, key: &[u8]) -> bool {
        let group = self.node.group(GROUP).unwrap();
        group.machine().view().get(key).unwrap().is_some()
    }
}

#[test]
fn a_survivor_goes_on_with_all_that_its_log_held() {
    let mut driven = survivor();
    driven.recover(VERSION, 0);
    let state = driven.state();
    assert_eq!(state.conf_state.voters, [1]);
    assert_eq!(state.members.len(), 1);
    assert_eq!(state.membership_version, VERSION);
    assert_eq!(state.revision, 4 + limits::RECOVERY_REVISIONS);
    assert_eq!(state.compacted, state.revision);
    assert_eq!(driven.replaced, [GROUP], "watches hear that history is gone");
    assert!([b"a", b"b", b"c"].iter().all(|key| driven.is_stored(*key)));
    assert!(driven.put(GROUP, b"v").is_ok());
    assert_eq!(driven.state().revision, 5 + limits::RECOVERY_REVISIONS);
}

#[test]
fn the_revision_is_above_what_placement_has_heard_of() {
    let mut driven = survivor();
    driven.recover(VERSION, 7 * limits::RECOVERY_REVISIONS);
    assert_eq!(driven.state().revision, 7 * limits::RECOVERY_REVISIONS);
}

#[test]
fn a_recovery_is_done_once_and_another_one_is_another() {
    let mut driven = survivor();
    for _ in 0..3 {
        driven.recover(VERSION, 0);
    }
    let revision = 4 + limits::RECOVERY_REVISIONS;
    assert_eq!(driven.state().revision, revision);
    driven.recover(VERSION - 1, 0);
    assert_eq!(driven.state().membership_version, VERSION);
    driven.recover(2 * VERSION, 0);
    assert_eq!(driven.state().revision, revision + limits::RECOVERY_REVISIONS);
    assert!(driven.put(GROUP, b"v").is_ok());
}

#[test]
fn another_replica_than_the_one_that_is_meant_is_left_alone() {
    let mut driven = survivor();
    let other = Recover { group: GROUP, replica: 9, membership_version: VERSION, revision: 0 };
    driven.node.step(driven.now_ms, Input::Recover(other)).unwrap();
    driven.settle();
    assert_eq!(driven.state().membership_version, 1);
}

#[test]
fn who_is_lost_and_comes_back_is_told_so_and_not_heard() {
    let mut driven = survivor();
    driven.recover(VERSION, 0);
    driven.sent.clear();
    let before = driven.state();
    let term = driven.node.group(GROUP).unwrap().shared().term();
    // With a longer log, and as the leader of a term that nobody here has heard of.
    let entries = vec![put_entry(term + 9, 9, "x"), put_entry(term + 9, 10, "y")];
    driven.node.step(driven.now_ms, append(term + 9, (8, 6), entries, 10)).unwrap();
    driven.settle();
    assert_eq!(driven.state(), before);
    assert!(driven.node.group(GROUP).unwrap().is_leader());
    let told = driven.sent.iter().any(|(to, message)| {
        let word = match &message.body {
            Some(peer_message::Body::NotMember(word)) => word,
            _ => return false,
        };
        *to == NodeId(2) && word.replica == 2 && word.membership_version == VERSION
    });
    assert!(told, "{:?}", driven.sent);
    assert!(!driven.is_stored(b"x"));
}

/// A message of a replica that the survivor may know or not.
fn said(kind: MessageType, from: u64, to: u64, term: u64) -> Input {
    let message = Message {
        kind: kind as u32,
        to,
        from,
        term,
        log_term: term,
        index: 1000,
        commit: 5,
        ..Default::default()
    };
    let raft = GroupMessage { group: GROUP.0, message: Some(message) };
    let message = PeerMessage { body: Some(peer_message::Body::Raft(raft)) };
    Input::Peer { from: NodeId(from), message }
}

/// What a member may say without having been asked.
const UNASKED: [MessageType; 4] = [
    MessageType::MsgAppend,
    MessageType::MsgHeartbeat,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestPreVote,
];

#[test]
fn members_whom_only_the_lost_knew_are_told_so_and_not_heard() {
    for kind in UNASKED {
        let mut driven = survivor();
        // It was behind: meanwhile the others had replaced the third one by a replica on node 4.
        let before = driven.node.group(GROUP).unwrap().shared().term();
        driven.recover(VERSION, 0);
        driven.sent.clear();
        let term = driven.node.group(GROUP).unwrap().shared().term();
        for old in [before, before + 1, term - 2] {
            driven.node.step(driven.now_ms, said(kind, 4, 1, old)).unwrap();
            driven.settle();
        }
        let to_4: Vec<_> = driven.sent.iter().filter(|(to, _)| *to == NodeId(4)).collect();
        assert_eq!(to_4.len(), 3, "{kind:?}: {to_4:?}");
        let is_word = |message: &PeerMessage| {
            matches!(&message.body, Some(peer_message::Body::NotMember(word))
                if word.replica == 4 && word.membership_version == VERSION)
        };
        assert!(to_4.iter().all(|(_, message)| is_word(message)), "{kind:?}: {to_4:?}");
        assert!(driven.node.group(GROUP).unwrap().is_leader());
        assert_eq!(driven.node.group(GROUP).unwrap().shared().term(), term);
        // Whoever came after the recovery has heard of its term, and may not be known here yet.
        driven.node.step(driven.now_ms, said(MessageType::MsgAppend, 99, 1, term + 1)).unwrap();
        driven.settle();
        assert_eq!(driven.node.group(GROUP).unwrap().shared().term(), term + 1);
    }
}

#[test]
fn nobody_is_heard_while_a_recovery_is_written_and_not_applied() {
    for is_killed in [false, true] {
        let mut driven = survivor();
        driven.node.step(driven.now_ms, wish(VERSION, 0)).unwrap();
        if is_killed {
            for output in driven.node.round(driven.now_ms).unwrap() {
                if let Output::Persist(mut persist) = output {
                    let extents = driven.node.store().extents().clone();
                    persist.write(&driven.log, &extents, 1 << 20).unwrap();
                    driven.log.sync().unwrap();
                }
            }
            driven = driven.killed_still(false);
        }
        // Two that are lost have elected each other meanwhile, again and again.
        let term = 10 << 20;
        let entries = vec![put_entry(term, 7, "x"), put_entry(term, 8, "y")];
        driven.node.step(driven.now_ms, append(term, (6, 6), entries, 8)).unwrap();
        driven.settle();
        driven.pass(1000);
        assert_eq!(driven.state().membership_version, VERSION, "killed: {is_killed}");
        assert!(driven.put(GROUP, b"v").is_ok());
        assert!(!driven.is_stored(b"x") && driven.is_stored(b"c"));
    }
}

#[test]
fn who_was_left_behind_does_not_hear_the_others_and_goes_when_it_is_told() {
    let mut driven = survivor();
    let before = driven.state();
    let sent = driven.sent.len();
    // Node 2 has gone on, and its node brings the group to node 1 anew: that is another replica.
    let anew = 4 + limits::RECOVERY_STEP;
    for kind in UNASKED {
        driven.node.step(driven.now_ms, said(kind, 2, anew, 8 << 20)).unwrap();
        driven.settle();
    }
    assert_eq!((driven.state(), driven.sent.len()), (before, sent));
    let word =
        NotMember { group: GROUP.0, replica: 1, membership_version: VERSION, ..Default::default() };
    let message = PeerMessage { body: Some(peer_message::Body::NotMember(word)) };
    driven.node.step(driven.now_ms, Input::Peer { from: NodeId(2), message }).unwrap();
    driven.settle();
    assert!(driven.node.group(GROUP).is_none_or(|group| group.shared().is_stopped()));
    assert!(driven.put(GROUP, b"v").is_err());
}

#[test]
fn a_recovery_survives_a_kill_at_any_time() {
    // Of the write that makes it, before and after it is synced.
    for is_synced in [false, true] {
        let mut driven = survivor();
        driven.node.step(driven.now_ms, wish(VERSION, 0)).unwrap();
        for output in driven.node.round(driven.now_ms).unwrap() {
            if let Output::Persist(mut persist) = output {
                let extents = driven.node.store().extents().clone();
                persist.write(&driven.log, &extents, 1 << 20).unwrap();
                if is_synced {
                    driven.log.sync().unwrap();
                }
            }
        }
        let mut driven = driven.killed(false);
        driven.pass(1000);
        let version = if is_synced { VERSION } else { 1 };
        assert_eq!(driven.state().membership_version, version);
        driven.recover(VERSION, 0);
        assert_eq!(driven.state().revision, 4 + limits::RECOVERY_REVISIONS);
        assert!(driven.put(GROUP, b"v").is_ok());
        let mut driven = driven.killed(false);
        driven.pass(1000);
        assert!(driven.put(GROUP, b"v").is_ok());
    }
}

#[test]
fn new_replicas_have_numbers_that_nobody_can_have_had() {
    let mut driven = survivor();
    driven.recover(VERSION, 0);
    let change = ChangeReplica {
        kind: change_replica::Kind::Add as i32,
        membership_version: VERSION,
        replica: 0,
        member: Some(Member { id: 3, ..Default::default() }),
    };
    assert!(driven.ask(GROUP, Request::ChangeReplica(change)).is_ok());
    let added = driven.state().replica_of(3);
    assert!(added > 3 + limits::RECOVERY_STEP, "{added}");
}

#[test]
fn a_replica_that_was_being_removed_does_not_go_on() {
    let mut driven = Driven::new_with(3);
    let member = crate::machine::MemberChange {
        member: Member { id: 1, ..Default::default() },
        remove: true,
        replica: 1,
        retire: false,
    };
    // Only the context of such an entry counts.
    let context = encode(&members::Change { kind: 1, replica: 1, member });
    let kind = EntryType::EntryConfChangeV2 as u32;
    let leaves = Entry { kind, term: 6, index: 6, data: Bytes::new(), context };
    driven.node.step(driven.now_ms, append(6, (5, 5), vec![leaves], 5)).unwrap();
    driven.settle();
    driven.recover(VERSION, 0);
    assert_eq!(driven.state().membership_version, 1);
}

#[test]
fn a_replica_that_was_on_disk_takes_no_part_before_it_is_released() {
    let mut driven = survivor().killed(true);
    let group = |driven: &Driven| driven.node.group(GROUP).unwrap().shared().clone();
    driven.pass(20_000);
    let asks = |(_, message): &(NodeId, PeerMessage)| matches!(&message.body, Some(peer_message::Body::AmMember(ask)) if ask.replica == 1);
    assert!(!driven.sent.is_empty() && driven.sent.iter().all(asks), "it stands for no election");
    driven.sent.clear();
    assert!(!group(&driven).is_usable());
    // Nor does it listen to who may have been left behind like itself.
    let term = group(&driven).term();
    driven.node.step(driven.now_ms, append(9, (8, 6), vec![put_entry(9, 9, "x")], 9)).unwrap();
    driven.settle();
    assert_eq!((group(&driven).term(), driven.sent.len()), (term, 0));
    driven.node.step(driven.now_ms, Input::Release(vec![GROUP])).unwrap();
    driven.pass(5000);
    assert!(group(&driven).is_usable() && !driven.sent.is_empty(), "it asks for votes");
}

#[test]
fn who_waits_for_placement_tells_and_hears_who_was_left_behind() {
    // The one that went on, which waits as well.
    let mut driven = survivor();
    driven.recover(VERSION, 0);
    let mut driven = driven.killed(true);
    let ask = AmMember { group: GROUP.0, replica: 2 };
    let message = PeerMessage { body: Some(peer_message::Body::AmMember(ask)) };
    driven.sent.clear();
    driven.node.step(driven.now_ms, Input::Peer { from: NodeId(2), message }).unwrap();
    driven.settle();
    let [(NodeId(2), word)] = &driven.sent[..] else { panic!("{:?}", driven.sent) };
    let Some(peer_message::Body::NotMember(word)) = word.body.clone() else { panic!("{word:?}") };
    assert_eq!((word.replica, word.membership_version), (2, VERSION));
    // One that is left behind, and gets such an answer.
    let mut left = survivor().killed(true);
    let body = Some(peer_message::Body::NotMember(NotMember { replica: 1, ..word }));
    let message = Input::Peer { from: NodeId(2), message: PeerMessage { body } };
    left.node.step(left.now_ms, message).unwrap();
    left.settle();
    left.node.step(left.now_ms, Input::Release(vec![GROUP])).unwrap();
    left.sent.clear();
    left.pass(5000);
    assert!(left.node.group(GROUP).is_none_or(|group| group.shared().is_stopped()));
    assert_eq!(left.sent, [], "it stands for no election");
}

#[test]
fn a_sole_voter_leads_when_it_is_released_and_not_before() {
    let mut driven = survivor();
    driven.recover(VERSION, 0);
    let mut driven = driven.killed(true);
    driven.pass(20_000);
    assert_eq!(driven.put(GROUP, b"v").err(), Some(Error::NoLeader));
    driven.node.step(driven.now_ms, Input::Release(vec![GROUP])).unwrap();
    driven.settle();
    assert!(driven.put(GROUP, b"v").is_ok());
}

#[test]
fn what_comes_to_a_running_node_does_not_wait() {
    let mut driven = survivor().killed(true);
    driven.node.step(driven.now_ms, Input::Births(vec![birth(OTHER)])).unwrap();
    driven.settle();
    driven.pass(200);
    assert!(driven.put(OTHER, b"v").is_ok());
}

/// Clients that mind end their streams where a group has had no leader for long: not where it is new.
#[test]
fn a_replica_that_has_just_come_has_been_without_a_leader_since_then() {
    let mut driven = Driven::new();
    driven.pass(60_000);
    let begun_ms = driven.now_ms;
    driven.node.step(begun_ms, Input::Births(vec![birth_of(GroupId(43), 3)])).unwrap();
    driven.settle();
    let shared = driven.node.group(GroupId(43)).unwrap().shared().clone();
    assert_eq!(shared.leaderless_since_ms(), Some(begun_ms));
    driven.pass(200);
    assert_eq!(shared.leaderless_since_ms(), Some(begun_ms));
}

/// The first leader of a new group may be there before the others are.
#[test]
fn who_asks_for_the_vote_of_a_replica_that_is_about_to_come_hears_from_it() {
    let mut driven = Driven::new();
    let group = GroupId(60);
    driven.node.step(driven.now_ms, Input::Births(vec![birth_of(group, 3)])).unwrap();
    let (from, to) = (NodeId(2), 1);
    let kind = MessageType::MsgRequestPreVote as u32;
    let message = Message { kind, to, from: 2, term: 50, log_term: 50, ..Default::default() };
    let raft = GroupMessage { group: group.0, message: Some(Message { index: 50, ..message }) };
    driven.node.hear_raft(from, raft).unwrap();
    driven.settle();
    let is_answer = |(to, message): &&(NodeId, PeerMessage)| {
        let Some(peer_message::Body::Raft(raft)) = &message.body else { return false };
        let kind = raft.message.as_ref().map(|message| message.kind);
        *to == from
            && raft.group == group.0
            && kind == Some(MessageType::MsgRequestPreVoteResponse as u32)
    };
    assert_eq!(driven.sent.iter().filter(is_answer).count(), 1, "{:?}", driven.sent);
}

/// Nodes that hear each other at once.
struct Together(Vec<Driven>);

impl Together {
    /// Time passes, and what is said is heard by those who are there.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / TICK_MS {
            self.0.iter_mut().for_each(|one| one.pass(TICK_MS));
            self.talk();
        }
    }

    fn talk(&mut self) {
        loop {
            let said = |one: &mut Driven| {
                let from = one.node.config.node;
                std::mem::take(&mut one.sent).into_iter().map(move |(to, word)| (from, to, word))
            };
            let said: Vec<_> = self.0.iter_mut().flat_map(said).collect();
            if said.is_empty() {
                return;
            }
            for (from, to, message) in said {
                let hears = |one: &&mut Driven| one.node.config.node == to;
                let Some(one) = self.0.iter_mut().find(hears) else { continue };
                one.node.step(one.now_ms, Input::Peer { from, message }).unwrap();
                one.settle();
            }
        }
    }

    fn leader(&mut self) -> Option<&mut Driven> {
        self.0.iter_mut().find(|one| one.node.group(GROUP).unwrap().is_leader())
    }
}

#[test]
fn a_change_of_members_that_is_the_last_entry_is_known_after_a_restart() {
    let births = |replica: u64| {
        let mut birth = Birth { replica, ..birth_of(GROUP, 3) };
        birth.members[2].is_learner = true;
        [birth]
    };
    let nodes = [1, 2, 3].map(|node| Driven::fresh(NodeId(node), &births(node)));
    let mut together = Together(nodes.into());
    together.pass(5000);
    let change = ChangeReplica {
        kind: change_replica::Kind::Promote as i32,
        membership_version: 1,
        replica: 3,
        member: None,
    };
    let leader = together.leader().expect("two of two vote");
    let ticket = leader.begin(GROUP, Request::ChangeReplica(change));
    leader.settle();
    together.pass(5000);
    let leader = together.leader().expect("it leads on");
    assert!(matches!(leader.answers.remove(&ticket), Some(Ok(_))));
    // All stop, and one that voted before the change does not come back.
    let Together(nodes) = together;
    let left = nodes.into_iter().skip(1).map(|one| one.killed(false));
    let mut left = Together(left.collect());
    left.pass(10_000);
    let leader = left.leader().expect("two of three vote");
    assert_eq!(leader.state().conf_state.voters.len(), 3);
}

/// A leader that was stopped for longer than its followers wait does not know yet that it is deposed.
#[test]
fn who_led_a_moment_ago_renews_alone_and_who_was_deposed_meanwhile_does_not() {
    let births = |replica: u64| [Birth { replica, ..birth_of(GROUP, 3) }];
    let nodes = [1, 2, 3].map(|node| Driven::fresh(NodeId(node), &births(node)));
    let mut together = Together(nodes.into());
    together.pass(5000);
    let keep_alive = || Request::LeaseKeepAlive(LeaseKeepAliveRequest { id: 7 });
    let led = together.0.iter().position(|one| one.node.group(GROUP).unwrap().is_leader()).unwrap();
    let begin = |one: &mut Driven, body| {
        let ticket = one.begin(GROUP, body);
        one.settle();
        ticket
    };
    let ttl = |answer: Option<Result<Answer, GroupError>>| match answer {
        Some(Ok(Answer::Reply(Reply::LeaseKeepAlive(kept)))) => Some(kept.ttl),
        _ => None,
    };
    let grant = Request::LeaseGrant(LeaseGrantRequest { id: 7, ttl: 60 });
    let granted = begin(&mut together.0[led], grant);
    together.talk();
    assert!(matches!(together.0[led].answers.remove(&granted), Some(Ok(_))));

    let first = begin(&mut together.0[led], keep_alive());
    assert!(together.0[led].answers.is_empty(), "it asks the others whether it leads");
    together.talk();
    assert_eq!(ttl(together.0[led].answers.remove(&first)), Some(60));
    let second = begin(&mut together.0[led], keep_alive());
    assert!(together.0[led].sent.is_empty(), "it has just asked");
    assert_eq!(ttl(together.0[led].answers.remove(&second)), Some(60));

    let mut stopped = together.0.remove(led);
    together.pass(5000);
    let successor = together.leader().expect("two of three vote");
    let revoke = Request::LeaseRevoke(LeaseRevokeRequest { id: 7 });
    let revoked = begin(successor, revoke);
    together.talk();
    let successor = together.leader().expect("it leads on");
    assert!(matches!(successor.answers.remove(&revoked), Some(Ok(_))));

    stopped.now_ms = successor.now_ms;
    let late = begin(&mut stopped, keep_alive());
    assert!(stopped.answers.is_empty(), "{:?}", stopped.answers);
    together.0.push(stopped);
    together.pass(2000);
    let stopped = together.0.last_mut().unwrap();
    let answer = stopped.answers.remove(&late).expect("it has heard of its successor");
    assert_eq!(answer.unwrap_err().outcome, Outcome::NotDone);
}

/// What was written before is in the log alone then, and goes to whoever lacks it from there.
#[test]
fn a_group_at_rest_keeps_no_entries_in_memory_and_has_them_all() {
    let births = |replica: u64| [Birth { replica, ..birth_of(GROUP, 3) }];
    let nodes = [1, 2, 3].map(|node| Driven::fresh(NodeId(node), &births(node)));
    let mut together = Together(nodes.into());
    together.pass(5000);
    let write = |together: &mut Together, value: &'static str| {
        let leader = together.leader().expect("it leads on");
        let put = PutRequest { key: "k".into(), value: value.into(), ..Default::default() };
        let ticket = leader.begin(GROUP, Request::Put(put));
        leader.settle();
        together.talk();
        let leader = together.leader().expect("it leads on");
        assert!(matches!(leader.answers.remove(&ticket), Some(Ok(_))));
    };
    let cached = |one: &Driven| one.node.group(GROUP).unwrap().core.cached();
    write(&mut together, "first");
    assert!(together.0.iter().all(|one| cached(one) > 0));
    together.pass(3000);
    assert!(together.0.iter().all(|one| cached(one) == 0));

    let led = together.0.iter().position(|one| one.node.group(GROUP).unwrap().is_leader()).unwrap();
    let late = together.0.remove((led + 1) % 3);
    let before = late.state().applied_index;
    write(&mut together, "second");
    together.pass(500);
    write(&mut together, "third");
    together.0.push(late);
    together.pass(3000);
    let applied: Vec<_> = together.0.iter().map(|one| one.state().applied_index).collect();
    assert_eq!(applied, [before + 2; 3]);
    assert!(together.0.iter().all(|one| cached(one) == 0));
}
