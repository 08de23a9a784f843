//! A tenant that is split on a node with one replica of each group.

use proto::cluster::group::refusal::Outcome;
use proto::cluster::group::{
    Charter, GroupRequest, MergeRange, SetCharter, Span, SpanRequest, SplitRange,
};
use proto::cluster::raft::{GroupMessage, Message};
use proto::cluster::split::split_message::Body as Said;
use proto::cluster::split::{AskFrozen, SplitMessage};
use proto::etcd::alarm_request::AlarmAction;
use proto::etcd::request_op::Request as Op;
use proto::etcd::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest,
    LeaseRevokeRequest, MemberListRequest, PutRequest, RangeRequest, RequestOp, ResponseOp,
    TxnRequest, TxnResponse,
};
use proto::group::{Reply, Request, request_to};
use proto::{Error, GroupId, limits};

use raft::eraftpb::MessageType;

use super::{OpAnswer, Written};
use crate::access;
use crate::group::{Then, Ticket};
use crate::machine::NO_SHELF;
use crate::node::tests::{Driven, GROUP};
use crate::node::{Answer, Input, Node, Output, Recover};

const CHILD: GroupId = GroupId(50);

impl Driven {
    fn version(&self, group: GroupId) -> u64 {
        self.node.group(group).map_or(1, |group| group.machine().state().range_version)
    }

    fn begin_in(&mut self, group: GroupId, body: Request) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let range_version = self.version(group);
        let (tenant, namespace) = (GROUP.0, 1);
        let request = GroupRequest { tenant, namespace, range_version, ..request_to(group, body) };
        self.node.step(self.now_ms, Input::Request { ticket, request }).unwrap();
        self.settle();
        ticket
    }

    /// Asks a group of the tenant; rows are read like a router does.
    fn call(&mut self, group: GroupId, body: Request) -> Result<Reply, Error> {
        let range_version = self.version(group);
        let ticket = self.begin_in(group, body.clone());
        if !self.answers.contains_key(&ticket) {
            self.pass(300);
        }
        match self.answers.remove(&ticket).expect("it is answered") {
            Ok(Answer::Reply(reply)) => Ok(reply),
            Ok(Answer::Readable(reading)) => {
                let shared = self.node.shared(group).unwrap();
                access::read(self.node.store(), &shared, &body, range_version, reading)
                    .map_err(|error| error.error)
            }
            Err(error) => Err(error.error),
        }
    }

    fn set(&mut self, group: GroupId, key: &'static str, lease: i64) -> i64 {
        let put = PutRequest { key: key.into(), value: "v".into(), lease, ..Default::default() };
        match self.call(group, Request::Put(put)) {
            Ok(Reply::Put(put)) => put.header.unwrap().revision,
            other => panic!("put {key}: {other:?}"),
        }
    }

    fn list(&mut self, group: GroupId, key: &'static str, end: &'static str) -> (Vec<String>, i64) {
        let (key, range_end) = (key.into(), end.into());
        let range = RangeRequest { key, range_end, ..Default::default() };
        match self.call(group, Request::Range(range)) {
            Ok(Reply::Range(range)) => {
                let key = |kv: proto::mvccpb::KeyValue| String::from_utf8(kv.key.into()).unwrap();
                (range.kvs.into_iter().map(key).collect(), range.header.unwrap().revision)
            }
            other => panic!("list: {other:?}"),
        }
    }

    fn split(&mut self, group: GroupId, at: &'static str, child: GroupId) {
        let wish = SplitRange { at: at.into(), child: child.0 };
        let reply = self.call(group, Request::SplitRange(wish));
        assert!(matches!(reply, Ok(Reply::Ranges(_))), "{reply:?}");
        self.pass(1000);
    }

    fn span(&mut self, weak: bool) -> Span {
        match self.call(GROUP, Request::Span(SpanRequest { weak })) {
            Ok(Reply::Span(span)) => span,
            other => panic!("span: {other:?}"),
        }
    }
}

fn put_op(key: &'static str) -> RequestOp {
    let put = PutRequest { key: key.into(), value: "w".into(), ..Default::default() };
    RequestOp { request: Some(Op::RequestPut(put)) }
}

/// A tenant with keys on both sides of the cut, split.
fn split() -> Driven {
    let mut driven = Driven::new();
    for key in ["a", "b", "x", "y"] {
        driven.set(GROUP, key, 0);
    }
    driven.split(GROUP, "m", CHILD);
    driven
}

#[test]
fn both_groups_go_on_with_one_sequence_without_a_gap() {
    let mut driven = split();
    assert_eq!(driven.list(GROUP, "a", "m"), (vec!["a".into(), "b".into()], 5));
    assert_eq!(driven.list(CHILD, "m", "zz"), (vec!["x".into(), "y".into()], 5));
    let revisions = [
        driven.set(GROUP, "c", 0),
        driven.set(CHILD, "z", 0),
        driven.set(CHILD, "n", 0),
        driven.set(GROUP, "a", 0),
    ];
    assert_eq!(revisions, [6, 7, 8, 9]);
    let keys = vec!["n".into(), "x".into(), "y".into(), "z".into()];
    assert_eq!(driven.list(CHILD, "m", "zz"), (keys, 9));
    let span = driven.span(false);
    let last: Vec<i64> = span.parts.iter().map(|part| part.last).collect();
    assert_eq!((span.revision, last), (9, vec![9, 8]));
    assert_eq!(driven.span(true).revision, 9);
}

#[test]
fn keys_of_the_other_group_are_refused() {
    let mut driven = split();
    let put = |key: &'static str| {
        let put = PutRequest { key: key.into(), ..Default::default() };
        Request::Put(put)
    };
    assert_eq!(driven.call(CHILD, put("a")).err(), Some(Error::StaleRange));
    // Home would give it to the other one as a transaction: it is the one that decides.
    assert!(driven.call(GROUP, put("x")).is_ok());
    assert_eq!(driven.list(CHILD, "x", "").1, 6);
}

#[test]
fn a_transaction_over_both_has_one_revision() {
    let mut driven = split();
    let txn = TxnRequest { success: vec![put_op("b"), put_op("x")], ..Default::default() };
    let Ok(Reply::Txn(reply)) = driven.call(GROUP, Request::Txn(txn)) else { panic!("txn") };
    assert_eq!(reply.header.unwrap().revision, 6);
    driven.pass(300);
    for (group, key) in [(GROUP, "b"), (CHILD, "x")] {
        let range = RangeRequest { key: key.into(), ..Default::default() };
        let Ok(Reply::Range(range)) = driven.call(group, Request::Range(range)) else {
            panic!("get")
        };
        assert_eq!((range.kvs[0].mod_revision, &range.kvs[0].value[..]), (6, &b"w"[..]));
    }
    let delete =
        DeleteRangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
    let Ok(Reply::DeleteRange(reply)) = driven.call(GROUP, Request::DeleteRange(delete)) else {
        panic!("delete")
    };
    assert_eq!((reply.deleted, reply.header.unwrap().revision), (4, 7));
    assert_eq!(driven.set(CHILD, "q", 0), 8);
    assert_eq!(driven.list(CHILD, "m", "zz"), (vec!["q".into()], 8));
}

#[test]
fn a_lease_holds_keys_of_both_groups_and_takes_them_along() {
    let mut driven = split();
    let grant = Request::LeaseGrant(LeaseGrantRequest { id: 77, ttl: 10 });
    assert!(driven.call(GROUP, grant.clone()).is_ok());
    assert_eq!(driven.call(GROUP, grant).err(), Some(Error::LeaseExists));
    driven.set(GROUP, "c", 77);
    driven.set(CHILD, "q", 77);
    let put = PutRequest { key: "r".into(), lease: 78, ..Default::default() };
    assert_eq!(driven.call(CHILD, Request::Put(put)).err(), Some(Error::LeaseNotFound));
    let revoke = Request::LeaseRevoke(LeaseRevokeRequest { id: 77 });
    let Ok(Reply::LeaseRevoke(reply)) = driven.call(GROUP, revoke) else { panic!("revoke") };
    assert_eq!(reply.header.unwrap().revision, 8);
    driven.pass(300);
    assert_eq!(driven.list(GROUP, "a", "m").0, ["a", "b"]);
    assert_eq!(driven.list(CHILD, "m", "zz").0, ["x", "y"]);
}

#[test]
fn a_lease_that_runs_out_takes_keys_of_both_groups() {
    let mut driven = split();
    let grant = Request::LeaseGrant(LeaseGrantRequest { id: 77, ttl: 5 });
    assert!(driven.call(GROUP, grant).is_ok());
    driven.set(GROUP, "c", 77);
    driven.set(CHILD, "q", 77);
    driven.pass(7000);
    assert_eq!(driven.list(GROUP, "a", "m").0, ["a", "b"]);
    assert_eq!(driven.list(CHILD, "m", "zz").0, ["x", "y"]);
}

#[test]
fn a_compaction_counts_in_all_groups() {
    let mut driven = split();
    driven.set(CHILD, "x", 0);
    let compact = |revision| Request::Compact(CompactionRequest { revision, ..Default::default() });
    assert!(driven.call(GROUP, compact(6)).is_ok());
    assert_eq!(driven.call(GROUP, compact(6)).err(), Some(Error::Compacted));
    assert_eq!(driven.call(GROUP, compact(7)).err(), Some(Error::FutureRevision));
    for (group, key) in [(GROUP, "a"), (CHILD, "x")] {
        let range = RangeRequest { key: key.into(), revision: 5, ..Default::default() };
        let answer = driven.call(group, Request::Range(range));
        assert_eq!(answer.err(), Some(Error::Compacted), "{key}");
    }
}

/// A watch is asked for without home: who knows of the compaction must not get what is gone.
#[test]
fn a_compaction_is_answered_when_all_groups_have_done_it() {
    let mut driven = split();
    driven.set(CHILD, "x", 0);
    let compact = CompactionRequest { revision: 6, ..Default::default() };
    let ticket = driven.begin(GROUP, Request::Compact(compact));
    driven.settle_until(|node| node.groups[&CHILD].machine.state().compacted == 6);
    assert_eq!(driven.node.groups[&GROUP].machine.state().compacted, 6);
    assert!(!driven.answers.contains_key(&ticket), "home has not heard of it yet");
    driven.settle();
    assert!(matches!(driven.answers.remove(&ticket), Some(Ok(Answer::Reply(Reply::Compact(_))))));
}

#[test]
fn a_physical_compaction_waits_for_all_groups() {
    let mut driven = split();
    driven.set(CHILD, "x", 0);
    driven.set(GROUP, "a", 0);
    let compact = CompactionRequest { revision: 7, physical: true };
    let ticket = driven.begin(GROUP, Request::Compact(compact));
    driven.settle();
    assert!(!driven.answers.contains_key(&ticket), "home has not heard of it yet");
    driven.pass(1000);
    assert!(matches!(driven.answers.remove(&ticket), Some(Ok(Answer::Reply(Reply::Compact(_))))));
    for group in [GROUP, CHILD] {
        assert_eq!(driven.node.groups[&group].machine.state().swept, 7);
    }
}

#[test]
fn a_group_is_split_again() {
    let mut driven = split();
    driven.split(CHILD, "y", GroupId(51));
    driven.split(GROUP, "b", GroupId(52));
    let places: Vec<u64> =
        driven.span(false).parts.iter().map(|part| part.place.as_ref().unwrap().group).collect();
    assert_eq!(places, [GROUP.0, CHILD.0, 51, 52]);
    let revisions = [
        driven.set(GroupId(51), "y", 0),
        driven.set(GroupId(52), "b", 0),
        driven.set(CHILD, "x", 0),
        driven.set(GROUP, "a", 0),
    ];
    assert_eq!(revisions, [6, 7, 8, 9]);
}

#[test]
fn the_quota_and_the_alarm_are_the_whole_tenants() {
    let mut driven = split();
    let put =
        |key: &'static str| Request::Put(PutRequest { key: key.into(), ..Default::default() });
    let size = |driven: &Driven, group| driven.node.groups[&group].machine.state().size;
    let all = size(&driven, GROUP) + size(&driven, CHILD);
    let (tenant, namespace) = (GROUP.0, 1);
    let charter = |quota, version| {
        let charter = Charter { tenant, namespace, quota, version, ..Default::default() };
        Request::SetCharter(SetCharter { charter: Some(charter) })
    };
    for group in [GROUP, CHILD] {
        assert!(driven.call(group, charter(all + 200, 9)).is_ok());
    }
    driven.pass(300);
    // Neither group has half of it.
    assert_eq!(driven.call(CHILD, put("x")).err(), Some(Error::NoSpace));
    driven.pass(300);
    let alarms = |driven: &mut Driven, action: AlarmAction| {
        let (action, alarm) = (action as i32, AlarmType::Nospace as i32);
        let ask = Request::Alarm(AlarmRequest { action, alarm, member_id: 1 });
        let Ok(Reply::Alarm(reply)) = driven.call(GROUP, ask) else { panic!("alarm") };
        reply.alarms.len()
    };
    assert_eq!(alarms(&mut driven, AlarmAction::Get), 1, "home says so for all");
    for group in [GROUP, CHILD] {
        assert!(driven.call(group, charter(all + 100_000, 10)).is_ok());
    }
    driven.pass(300);
    for (group, key) in [(GROUP, "a"), (CHILD, "x")] {
        assert_eq!(driven.call(group, put(key)).err(), Some(Error::NoSpace), "until it is off");
        let delete = DeleteRangeRequest { key: key.into(), ..Default::default() };
        assert!(driven.call(group, Request::DeleteRange(delete)).is_ok());
    }
    assert_eq!(alarms(&mut driven, AlarmAction::Deactivate), 1);
    driven.pass(300);
    assert_eq!(alarms(&mut driven, AlarmAction::Get), 0);
    assert!(driven.call(GROUP, put("a")).is_ok() && driven.call(CHILD, put("x")).is_ok());
}

/// Requests that come while a tenant's first split waits are not done, and none is lost.
#[test]
fn what_comes_before_and_during_the_first_split_is_done_or_not_done() {
    let mut driven = Driven::new();
    let put =
        |key: &'static str| Request::Put(PutRequest { key: key.into(), ..Default::default() });
    let mut tickets = Vec::new();
    let mut send = |driven: &mut Driven, body: Request| {
        driven.tickets += 1;
        let (tenant, namespace) = (GROUP.0, 1);
        let request = GroupRequest { tenant, namespace, ..request_to(GROUP, body) };
        let ticket = driven.tickets;
        driven.node.step(driven.now_ms, Input::Request { ticket, request }).unwrap();
        tickets.push(ticket);
    };
    send(&mut driven, put("a"));
    send(&mut driven, Request::SplitRange(SplitRange { at: "m".into(), child: CHILD.0 }));
    send(&mut driven, put("z"));
    driven.pass(1000);
    let answers: Vec<_> = tickets.iter().map(|ticket| driven.answers.remove(ticket)).collect();
    assert!(matches!(answers[0], Some(Ok(Answer::Reply(Reply::Put(_))))), "{answers:?}");
    assert!(matches!(answers[1], Some(Ok(Answer::Reply(Reply::Ranges(_))))), "{answers:?}");
    let Some(Err(refused)) = &answers[2] else { panic!("{answers:?}") };
    assert_eq!((refused.error, refused.outcome), (Error::StaleRange, Outcome::NotDone));
    assert_eq!(driven.set(CHILD, "z", 0), 3);
}

/// A node that starts tells its name, and compaction goes on, whatever became of the group's keys.
#[test]
fn what_is_not_about_keys_needs_no_version() {
    let mut driven = split();
    let mut ask = |body: Request| {
        driven.tickets += 1;
        let (ticket, tenant, namespace) = (driven.tickets, GROUP.0, 1);
        let request = GroupRequest { tenant, namespace, ..request_to(GROUP, body) };
        assert_eq!(request.range_version, 1, "it is of the time before the split");
        driven.node.step(driven.now_ms, Input::Request { ticket, request }).unwrap();
        driven.pass(300);
        driven.answers.remove(&ticket).expect("it is answered")
    };
    let list = Request::MemberList(MemberListRequest { linearizable: true });
    assert!(matches!(ask(list), Ok(Answer::Reply(Reply::Members(_)))));
    let compact = Request::Compact(CompactionRequest { revision: 3, ..Default::default() });
    assert!(matches!(ask(compact), Ok(Answer::Reply(Reply::Compact(_)))));
    let put = Request::Put(PutRequest { key: "a".into(), ..Default::default() });
    assert_eq!(ask(put).map_err(|error| error.error).err(), Some(Error::StaleRange));
}

/// A split tenant with a put to its home group in the log that is not applied yet.
fn with_a_put_in_the_log() -> (Driven, Ticket) {
    let mut driven = split();
    let put = PutRequest { key: "c".into(), ..Default::default() };
    let range_version = driven.version(GROUP);
    driven.tickets += 1;
    let ticket = driven.tickets;
    let (tenant, namespace) = (GROUP.0, 1);
    let request = request_to(GROUP, Request::Put(put));
    let request = GroupRequest { tenant, namespace, range_version, ..request };
    driven.node.step(driven.now_ms, Input::Request { ticket, request }).unwrap();
    driven.settle_until(|node| is_logged(node, ticket));
    assert!(is_logged(&driven.node, ticket) && !driven.answers.contains_key(&ticket));
    (driven, ticket)
}

fn is_logged(node: &Node, ticket: Ticket) -> bool {
    let mut thens = node.groups[&GROUP].proposals.values().flatten();
    thens.any(|then| then.ticket() == Some(ticket))
}

/// Somebody leads in a later term, or says so.
fn depose(driven: &mut Driven) {
    let (from, to, term) = (2, 1, driven.node.groups[&GROUP].core.term() + 1);
    let kind = MessageType::MsgHeartbeat as u32;
    let message = Some(Message { kind, from, to, term, ..Default::default() });
    let raft = GroupMessage { group: GROUP.0, message };
    driven.node.step_raft(GROUP, raft).unwrap();
}

#[test]
fn a_write_in_the_log_of_a_leader_that_leads_no_more_is_answered_by_what_becomes_of_it() {
    let (mut driven, ticket) = with_a_put_in_the_log();
    depose(&mut driven);
    driven.settle();
    assert!(driven.node.groups[&GROUP].role.is_none(), "it leads no more");
    assert!(!driven.answers.contains_key(&ticket), "nobody knows yet");
    driven.pass(5000);
    let answer = driven.answers.remove(&ticket).expect("it is answered");
    let Ok(Answer::Reply(Reply::Put(put))) = answer else { panic!("{answer:?}") };
    assert_eq!(put.header.unwrap().revision, 6);
    assert_eq!(driven.list(GROUP, "a", "m").0, ["a", "b", "c"]);
    assert!(driven.node.groups[&GROUP].asked.is_empty());
}

#[test]
fn a_write_that_is_done_when_the_role_ends_is_not_told_to_be_tried_again() {
    let (mut driven, ticket) = with_a_put_in_the_log();
    let group = driven.node.groups.get_mut(&GROUP).unwrap();
    let thens = std::mem::take(&mut group.proposals).into_values().flatten();
    let mut tags = thens.filter_map(|then| match then {
        Then::Split(tag, Some(_)) => Some(tag),
        _ => None,
    });
    let tag = tags.next_back().unwrap();
    let put = OpAnswer::ResponsePut(Default::default());
    let responses = vec![ResponseOp { response: Some(put) }];
    let response = TxnResponse { responses, ..Default::default() };
    let role = group.role.as_mut().unwrap();
    role.participant.written(tag, Written::Done(response));
    driven.node.end_role(GROUP);
    let outputs = std::mem::take(&mut driven.node.outputs);
    let answers = outputs.into_iter().filter_map(|output| match output {
        Output::Answer { ticket, answer } => Some((ticket, answer.is_ok())),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), vec![(ticket, true)]);
}

// === merges ===

impl Driven {
    fn merge(&mut self, left: GroupId, right: GroupId, at: &'static str) {
        let wish = MergeRange { right: right.0, at: at.into() };
        let reply = self.call(left, Request::MergeRange(wish));
        assert!(matches!(reply, Ok(Reply::Ranges(_))), "{reply:?}");
    }

    fn is_split(&self) -> bool {
        self.node.groups[&GROUP].machine.is_split()
    }

    /// What a group's history tells of each revision.
    fn told(&self, group: GroupId) -> Vec<(i64, Vec<String>)> {
        let machine = self.node.group(group).unwrap().machine();
        let (shelves, to) = (machine.shelves().clone(), machine.state().revision);
        let (history, _) = self.node.store().history(&shelves, 2, to, 100).unwrap();
        let key = |change: &crate::store::changes::Change| {
            String::from_utf8(change.key.to_vec()).unwrap()
        };
        history.iter().map(|(at, list)| (*at, list.iter().map(key).collect())).collect()
    }
}

#[test]
fn a_tenant_that_is_on_one_group_again_goes_on_without_a_gap() {
    // The process ends at once, before anything is let go, or when all that is done; or not.
    for dies_ms in [Some(0), Some(20), Some(200), Some(8000), None] {
        let mut driven = split();
        let grant = Request::LeaseGrant(LeaseGrantRequest { id: 77, ttl: 60 });
        assert!(driven.call(GROUP, grant).is_ok());
        driven.set(GROUP, "c", 77);
        driven.set(CHILD, "q", 77);
        let txn = TxnRequest { success: vec![put_op("x"), put_op("b")], ..Default::default() };
        assert!(driven.call(GROUP, Request::Txn(txn)).is_ok());
        driven.merge(GROUP, CHILD, "m");
        assert!(!driven.is_split());
        // Nobody reads there any more.
        let there = driven.node.groups.get(&CHILD).map(|it| it.machine.published().rows());
        assert!(there.is_none_or(|rows| rows == NO_SHELF));
        if let Some(ms) = dies_ms {
            driven.pass(ms);
            driven = driven.killed(false);
            driven.pass(1000);
            let there = driven.node.groups.get(&CHILD).map(|it| it.machine.published().rows());
            assert!(there.is_none_or(|rows| rows == NO_SHELF), "nor after a restart");
        }
        let keys = ["a", "b", "c", "q", "x", "y"];
        assert_eq!(driven.list(GROUP, "a", "zz"), (keys.map(String::from).to_vec(), 8));
        assert_eq!([driven.set(GROUP, "z", 0), driven.set(GROUP, "a", 77)], [9, 10]);
        let each = [(2, "a"), (3, "b"), (4, "x"), (5, "y"), (6, "c"), (7, "q")];
        let mut wanted: Vec<(i64, Vec<String>)> =
            each.map(|(at, key)| (at, vec![key.to_owned()])).to_vec();
        // In the order of the operations.
        wanted.push((8, vec!["x".to_owned(), "b".to_owned()]));
        wanted.extend([(9, vec!["z".to_owned()]), (10, vec!["a".to_owned()])]);
        assert_eq!(driven.told(GROUP), wanted, "dies {dies_ms:?}");
        let machine = &driven.node.groups[&GROUP].machine;
        assert_eq!((machine.state().keys, machine.published().counts().read().total()), (7, 7));
        let revoke = Request::LeaseRevoke(LeaseRevokeRequest { id: 77 });
        let Ok(Reply::LeaseRevoke(reply)) = driven.call(GROUP, revoke) else { panic!("revoke") };
        assert_eq!(reply.header.unwrap().revision, 11);
        assert_eq!(driven.list(GROUP, "a", "zz").0, ["b", "x", "y", "z"]);
        driven.pass(8000);
        assert!(!driven.node.groups.contains_key(&CHILD), "it is gone");
        assert!(driven.node.groups[&GROUP].machine.kept().unwrap().absorbed.is_empty());
        assert!(driven.node.swallowed.is_empty() && driven.node.merges.is_empty());
        driven.node.store().audit().unwrap();
        let driven = driven.killed(false);
        assert_eq!(driven.told(GROUP).len(), 10);
    }
}

#[test]
fn who_was_merged_is_split_again_in_the_same_term() {
    let mut driven = split();
    driven.merge(GROUP, CHILD, "m");
    driven.pass(3000);
    driven.split(GROUP, "b", GroupId(51));
    driven.split(GroupId(51), "x", GroupId(52));
    let revisions = [
        driven.set(GroupId(51), "b", 0),
        driven.set(GroupId(52), "x", 0),
        driven.set(GROUP, "a", 0),
    ];
    assert_eq!(revisions, [6, 7, 8]);
    driven.merge(GroupId(51), GroupId(52), "x");
    assert!(driven.is_split());
    assert_eq!([driven.set(GroupId(51), "y", 0), driven.set(GROUP, "a", 0)], [9, 10]);
    // One that has absorbed somebody waits until nothing is left of that one.
    driven.pass(5000);
    driven.merge(GROUP, GroupId(51), "b");
    assert_eq!(driven.list(GROUP, "a", "zz").0, ["a", "b", "x", "y"]);
    assert_eq!(driven.set(GROUP, "q", 0), 11);
}

#[test]
fn a_merge_that_comes_to_nothing_leaves_both_as_they_were() {
    let mut driven = split();
    let wish =
        |right: u64, at: &'static str| Request::MergeRange(MergeRange { right, at: at.into() });
    assert_eq!(driven.call(GROUP, wish(CHILD.0, "n")).err(), Some(Error::StaleRange));
    // Nobody has such a group.
    let ticket = driven.begin_in(GROUP, wish(99, "m"));
    driven.pass(1000);
    assert!(driven.node.groups[&GROUP].is_merging() && !driven.answers.contains_key(&ticket));
    assert_eq!([driven.set(GROUP, "a", 0), driven.set(CHILD, "x", 0)], [6, 7]);
    driven.pass(2500);
    let answer = driven.answers.remove(&ticket).expect("it is given up");
    assert_eq!(answer.unwrap_err().error, Error::TooManyRequests);
    assert!(!driven.node.groups[&GROUP].is_merging());
    // One who was asked to freeze by nobody who knows of it.
    let (merge, left, right) = (5, GROUP.0, CHILD.0);
    let body = Some(Said::AskFrozen(AskFrozen { merge, left, right }));
    driven.node.step_split(driven.node.config.node, SplitMessage { body });
    driven.settle();
    assert!(driven.node.groups[&CHILD].is_merging());
    let before = driven.version(CHILD);
    driven.pass(3000);
    assert!(!driven.node.groups[&CHILD].is_merging(), "it thaws");
    assert_eq!(driven.version(CHILD), before + 1);
    assert_eq!([driven.set(GROUP, "a", 0), driven.set(CHILD, "x", 0)], [8, 9]);
    let get = RangeRequest { key: "x".into(), ..Default::default() };
    assert!(driven.call(CHILD, Request::Range(get)).is_ok());
    driven.merge(GROUP, CHILD, "m");
}

#[test]
fn what_is_frozen_keeps_its_rows_whatever_is_said_of_its_death() {
    let mut driven = split();
    let (merge, left, right) = (5, GROUP.0, CHILD.0);
    let body = Some(Said::AskFrozen(AskFrozen { merge, left, right }));
    driven.node.step_split(driven.node.config.node, SplitMessage { body });
    driven.settle();
    driven.node.step(driven.now_ms, Input::Deaths(vec![CHILD])).unwrap();
    driven.settle();
    assert!(driven.node.groups.contains_key(&CHILD));
    driven.node.step(driven.now_ms, Input::Deaths(vec![GROUP, CHILD])).unwrap();
    driven.settle();
    assert!(!driven.node.groups.contains_key(&CHILD), "the whole tenant is gone");
}

// === recoveries ===

impl Driven {
    fn recover_one(&mut self, group: GroupId, version: u64) {
        let membership_version = version * limits::RECOVERY_STEP;
        let wish = Recover { group, replica: 1, membership_version, revision: 0 };
        self.node.step(self.now_ms, Input::Recover(wish)).unwrap();
        self.settle();
        self.pass(3000);
    }

    fn read_at(&mut self, group: GroupId, key: &'static str, revision: i64) -> Result<i64, Error> {
        let range = RangeRequest { key: key.into(), revision, ..Default::default() };
        match self.call(group, Request::Range(range))? {
            Reply::Range(range) => Ok(range.count),
            other => panic!("range: {other:?}"),
        }
    }
}

#[test]
fn a_group_that_has_lost_most_replicas_goes_on_and_old_history_is_given_up() {
    let mut driven = split();
    driven.replaced.clear();
    driven.recover_one(CHILD, 2);
    // Two revisions are nobody's: whoever has heard of 5 asks from 6 on, and that is given up.
    assert_eq!(driven.replaced, [CHILD, CHILD], "watches hear that history is gone");
    for (group, key) in [(GROUP, "a"), (CHILD, "x")] {
        assert_eq!(driven.read_at(group, key, 6), Err(Error::Compacted));
        assert_eq!(driven.read_at(group, key, 7), Ok(1));
    }
    assert_eq!([driven.set(CHILD, "x", 0), driven.set(GROUP, "a", 0)], [8, 9]);
    driven = driven.killed(false);
    driven.pass(2000);
    assert!(driven.set(CHILD, "x", 0) > 9);
    assert_eq!(driven.read_at(CHILD, "x", 6), Err(Error::Compacted));
}

#[test]
fn a_home_that_has_lost_most_replicas_goes_on_above_all_that_it_may_have_given() {
    let mut driven = split();
    driven.recover_one(GROUP, 2);
    let first = driven.set(CHILD, "x", 0);
    assert!(first > limits::RECOVERY_REVISIONS);
    assert_eq!([driven.set(GROUP, "a", 0), driven.set(CHILD, "y", 0)], [first + 1, first + 2]);
    for (group, key) in [(GROUP, "a"), (CHILD, "x")] {
        assert_eq!(driven.read_at(group, key, 5), Err(Error::Compacted));
        assert_eq!(driven.read_at(group, key, first + 2), Ok(1));
    }
    // And again: with what was given since.
    driven.recover_one(CHILD, 2);
    driven.recover_one(GROUP, 3);
    assert!(driven.set(CHILD, "x", 0) > first + limits::RECOVERY_REVISIONS);
    driven.merge(GROUP, CHILD, "m");
    assert_eq!(driven.list(GROUP, "a", "zz").0, ["a", "b", "x", "y"]);
}
