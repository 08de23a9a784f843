//! Requests: what each needs before it can be answered.
//!
//! | request | needs |
//! |---|---|
//! | range, reading transaction | a confirmed read, on any replica |
//! | everything that changes | the serving leader, an entry |
//! | lease keepalive, time to live, list | the serving leader, a confirmed read (a keepalive soon behind one: nothing) |
//! | member add, remove, promote | the serving leader, a configuration entry |
//! | describe, hash | nothing: this replica as it is |
//!
//! Before all that the group looks at its charter: whose request it takes (`charter.rs`).

use proto::cluster::group::{
    Command, Description, GroupRequest, RangePlace, ReadAt, Span, SpanPart, command,
};
use proto::etcd::alarm_request::AlarmAction;
use proto::etcd::{
    AlarmRequest, AlarmType, LeaseGrantRequest, LeaseLeasesResponse, LeaseStatus,
    LeaseTimeToLiveResponse, ResponseHeader,
};
use proto::group::{GroupError, Reply, Request, cost};
use proto::{Error, GroupId, limits};

use super::{Answer, Node, Output, Reading, members};
use crate::access::{self, kept_alive};
use crate::charter;
use crate::group::core::mix;
use crate::group::reads::{Purpose, Read};
use crate::group::{Group, LeaseAsk, Then, Ticket};
use crate::lease::Standing;
use crate::machine::{leases, txn};
use crate::room::Room;

impl Node {
    /// Takes a request.
    pub(super) fn step_request(&mut self, ticket: Ticket, request: GroupRequest) {
        let id = GroupId(request.group);
        self.touch(id);
        let Some(group) = self.groups.get_mut(&id) else {
            return self.answer(ticket, Err(GroupError::not_done(Error::NoLeader, None)));
        };
        group.shared.work.request(&request, || self.now_ms);
        if group.stopped.is_some() {
            let error = GroupError::not_done(Error::Quarantined, group.leader_node());
            return self.answer(ticket, Err(error));
        }
        let current = group.machine.state().range_version;
        let is_known = request.range_version == current || !is_of_range(request.body.as_ref());
        if !is_known {
            return self.answer(ticket, Err(GroupError::not_done(Error::StaleRange, None)));
        }
        if let Err(error) = charter::admit(&group.machine.state().charter, &request) {
            return self.answer(ticket, Err(GroupError::not_done(error, None)));
        }
        let Some(body) = request.body else {
            return self.answer(ticket, Err(GroupError::refused(Error::KeyNotFound)));
        };
        if let Some(at) = request.read_at {
            return self.read_part(id, ticket, at, &body);
        }
        let body = match group.machine.is_split() {
            true => match self.split_request(id, ticket, body) {
                Some(body) => body,
                None => return,
            },
            false => body,
        };
        let Some(group) = self.groups.get_mut(&id) else { return };
        match body {
            Request::Range(_) => group.reads.push((ticket, Purpose::Rows)),
            Request::Txn(txn) if txn::is_read_only(&txn) => {
                group.reads.push((ticket, Purpose::Rows));
            }
            Request::Linearize(_) => group.reads.push((ticket, Purpose::Header)),
            Request::Span(_) => group.reads.push((ticket, Purpose::Span)),
            Request::MemberList(list) if list.linearizable => {
                group.reads.push((ticket, Purpose::Members));
            }
            Request::MemberList(_) => {
                let members = group.machine.member_list();
                self.answer(ticket, Ok(Reply::Members(with_term(members, id, self))));
            }
            Request::LeaseKeepAlive(ask) => {
                match access::keep_alive(&group.shared, ask.id, self.now_ms) {
                    Some(reply) => self.answer(ticket, Ok(reply)),
                    None => self.lead_read(id, ticket, Purpose::KeepAlive(ask.id)),
                }
            }
            Request::LeaseTimeToLive(ask) => {
                self.lead_read(id, ticket, Purpose::TimeToLive(ask.id, ask.keys));
            }
            Request::LeaseLeases(_) => self.lead_read(id, ticket, Purpose::Leases),
            Request::HashKv(_) => {
                self.outputs
                    .push(Output::Answer { ticket, answer: Ok(Answer::Readable(Reading::Newest)) });
            }
            Request::Describe(_) => {
                let description = self.describe(id);
                self.answer(ticket, Ok(Reply::Describe(description)));
            }
            Request::Put(put) => self.change(id, ticket, Request::Put(put)),
            Request::DeleteRange(delete) => self.change(id, ticket, Request::DeleteRange(delete)),
            Request::Txn(txn) => self.change(id, ticket, Request::Txn(txn)),
            Request::LeaseGrant(grant) => self.grant(id, ticket, grant),
            Request::Compact(compact) => {
                let then = if compact.physical {
                    Then::AfterSweep(ticket, compact.revision)
                } else {
                    Then::Answer(ticket)
                };
                self.queue(id, then, command::Body::Compact(compact));
            }
            Request::LeaseRevoke(revoke) => {
                self.queue(id, Then::Answer(ticket), command::Body::LeaseRevoke(revoke));
            }
            Request::Alarm(alarm) => {
                self.queue(id, Then::Answer(ticket), command::Body::Alarm(alarm));
            }
            Request::Publish(publish) => {
                self.queue(id, Then::Answer(ticket), command::Body::Publish(publish));
            }
            Request::MemberUpdate(update) => {
                self.queue(id, Then::Answer(ticket), command::Body::MemberUpdate(update));
            }
            Request::MemberAdd(add) => self.member_add(id, ticket, add),
            Request::MemberRemove(remove) => self.member_remove(id, ticket, remove),
            Request::MemberPromote(promote) => self.member_promote(id, ticket, promote),
            Request::MoveLeader(to) => self.move_leader(id, ticket, to.target_id),
            Request::ChangeReplica(change) => self.change_replica(id, ticket, change),
            Request::SplitRange(wish) => self.split_range(id, ticket, wish),
            Request::MergeRange(wish) => self.merge_range(id, ticket, &wish),
            Request::SetCharter(set) => {
                let charter = set.charter.unwrap_or_default();
                self.queue(id, Then::Answer(ticket), command::Body::Charter(charter));
            }
        }
    }

    /// A part of a read over several groups: home has named the revision.
    fn read_part(&mut self, id: GroupId, ticket: Ticket, at: ReadAt, body: &Request) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let is_part =
            matches!(body, Request::Range(_) | Request::HashKv(_) | Request::LeaseTimeToLive(_));
        if !is_part {
            return self.answer(ticket, Err(GroupError::refused(Error::KeyNotFound)));
        }
        if group.machine.state().revision < at.last {
            return group.parts.entry(at.last).or_default().push((ticket, at.revision));
        }
        let answer = Ok(Answer::Readable(part_at(at.revision)));
        self.outputs.push(Output::Answer { ticket, answer });
    }

    /// Answers the parts of reads whose revision is applied. With other keys than before none is
    /// answered.
    pub(super) fn answer_parts(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.parts.is_empty() {
            return;
        }
        let later = group.parts.split_off(&(group.machine.state().revision + 1));
        let ready = std::mem::replace(&mut group.parts, later);
        for (ticket, revision) in ready.into_values().flatten() {
            let answer = Ok(Answer::Readable(part_at(revision)));
            self.outputs.push(Output::Answer { ticket, answer });
        }
    }

    /// Queues a command for this round's entry, if this replica may propose.
    pub(super) fn queue(&mut self, id: GroupId, then: Then, body: command::Body) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let parts = group.parting.is_some() && !group.machine.is_split();
        if !group.serving || group.core.is_transferring() || parts {
            let error = match parts {
                true => GroupError::not_done(Error::StaleRange, None),
                false => group.elsewhere(),
            };
            return self.give_up(id, then, error);
        }
        group.queued.push((Command { body: Some(body) }, then));
    }

    /// A request that may add data: the quota is judged here, by the leader, before it is
    /// proposed. The alarm is an entry, so that all replicas refuse alike from then on.
    fn change(&mut self, id: GroupId, ticket: Ticket, request: Request) {
        let added = cost(&request);
        let node = self.config.node.0;
        let quota = self.quota(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        if self.room != Room::Enough && added > 0 && group.serving {
            return self.answer(ticket, Err(GroupError::refused(Error::NoSpace)));
        }
        let full = quota > 0 && added > 0 && group.machine.state().size + added >= quota;
        if full && group.serving && !group.machine.alarm(AlarmType::Nospace) {
            let alarm = AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: node,
                alarm: AlarmType::Nospace as i32,
            };
            let then = Then::Refuse(ticket, Error::NoSpace);
            return self.queue(id, then, command::Body::Alarm(alarm));
        }
        let body = match request {
            Request::Put(put) => command::Body::Put(put),
            Request::DeleteRange(delete) => command::Body::DeleteRange(delete),
            Request::Txn(txn) => command::Body::Txn(txn),
            Request::LeaseGrant(grant) => command::Body::LeaseGrant(grant),
            _ => return self.answer(ticket, Err(GroupError::refused(Error::KeyNotFound))),
        };
        self.queue(id, Then::Answer(ticket), body);
    }

    /// Size from which on the group is refused more; below 1: never.
    pub(super) fn quota(&self, id: GroupId) -> i64 {
        let own = self.groups.get(&id).map_or(0, |group| group.machine.state().charter.quota);
        if own > 0 { own } else { self.config.quota_bytes }
    }

    fn grant(&mut self, id: GroupId, ticket: Ticket, mut grant: LeaseGrantRequest) {
        if grant.ttl > limits::MAX_LEASE_TTL_S {
            // etcd looks at its alarms before it looks at the lease.
            let raised = |alarm| self.groups.get(&id).is_some_and(|g| g.machine.alarm(alarm));
            let error = if raised(AlarmType::Corrupt) {
                Error::Corrupt
            } else if raised(AlarmType::Nospace) {
                Error::NoSpace
            } else {
                Error::LeaseTtlTooLarge
            };
            return self.answer(ticket, Err(GroupError::refused(error)));
        }
        grant.ttl = grant.ttl.max(self.config.min_lease_ttl_s);
        if grant.id == 0 {
            grant.id = self.fresh_lease(id);
        }
        if self.groups.get(&id).is_some_and(|group| group.machine.is_split()) {
            return self.split_grant(id, ticket, grant.id, grant.ttl);
        }
        self.change(id, ticket, Request::LeaseGrant(grant));
    }

    /// A positive id that no lease has.
    fn fresh_lease(&mut self, id: GroupId) -> i64 {
        loop {
            self.next_lease += 1;
            let parts =
                [self.config.node.0, self.config.incarnation, self.next_lease, self.config.seed];
            let lease = (mix(&parts) >> 1) as i64;
            let taken =
                self.groups.get(&id).is_some_and(|g| g.machine.leases().contains_key(&lease));
            if lease != 0 && !taken {
                return lease;
            }
        }
    }

    fn lead_read(&mut self, id: GroupId, ticket: Ticket, purpose: Purpose) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.serving {
            group.reads.push((ticket, purpose));
        } else {
            let error = group.elsewhere();
            self.answer(ticket, Err(error));
        }
    }

    /// Answers a read that is confirmed and whose index is applied.
    pub(super) fn answer_read(&mut self, id: GroupId, (ticket, purpose): Read) {
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&id) else { return };
        if purpose.needs_leader() && !group.serving {
            let error = group.elsewhere();
            return self.answer(ticket, Err(error));
        }
        // It may have been frozen since the read came.
        let open = charter::check_standing(group.machine.state().charter.standing());
        if let Err(error) = open
            && purpose.is_about_keys()
        {
            return self.answer(ticket, Err(GroupError::not_done(error, None)));
        }
        let header = header(group);
        match purpose {
            Purpose::Rows => {
                self.outputs
                    .push(Output::Answer { ticket, answer: Ok(Answer::Readable(Reading::Newest)) });
            }
            Purpose::Header => self.answer(ticket, Ok(Reply::Linearize(header))),
            Purpose::Span => {
                let span = span(group);
                self.answer(ticket, Ok(Reply::Span(span)));
            }
            Purpose::Members => {
                let members = group.machine.member_list();
                self.answer(ticket, Ok(Reply::Members(with_term(members, id, self))));
            }
            Purpose::KeepAlive(lease) => {
                let renewed = group.lessor().renew(now_ms, lease);
                let ttl = match renewed {
                    Standing::Alive { ttl_s, .. } => ttl_s,
                    Standing::Unknown => 0,
                    Standing::Revoking => {
                        let asks = group.lease_asks.entry(lease).or_default();
                        return asks.push(LeaseAsk::KeepAlive(ticket));
                    }
                };
                self.answer(ticket, Ok(kept_alive(header, lease, ttl)));
            }
            Purpose::TimeToLive(lease, keys) => {
                let standing = group.lessor().standing(now_ms, lease);
                match standing {
                    Standing::Alive { remaining_ms, ttl_s } => {
                        let attached = if keys {
                            leases::attached(&self.store, group.machine.shelves(), lease)
                        } else {
                            Ok(Vec::new())
                        };
                        let answer = match attached {
                            Ok(keys) => Ok(Reply::LeaseTimeToLive(LeaseTimeToLiveResponse {
                                header: Some(header),
                                id: lease,
                                ttl: (remaining_ms / 1000) as i64,
                                granted_ttl: ttl_s,
                                keys,
                            })),
                            Err(_) => Err(GroupError::unknown(Error::Stopped)),
                        };
                        self.answer(ticket, answer);
                    }
                    Standing::Unknown => self.answer(ticket, Ok(no_such_lease(header, lease))),
                    Standing::Revoking => {
                        let asks = group.lease_asks.entry(lease).or_default();
                        asks.push(LeaseAsk::TimeToLive(ticket));
                    }
                }
            }
            Purpose::Round(round) => self.round_done(id, round),
            Purpose::Fate { .. } => self.tell_fate(id, purpose),
            Purpose::Leases => {
                let leases =
                    group.lessor().by_expiry().into_iter().map(|id| LeaseStatus { id }).collect();
                let response = LeaseLeasesResponse { header: Some(header), leases };
                self.answer(ticket, Ok(Reply::LeaseLeases(response)));
            }
        }
    }

    /// A lease is gone: who waited for its outcome hears so.
    pub(super) fn lease_gone(&mut self, id: GroupId, lease: i64) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.lessor().revoked(lease);
        let header = header(group);
        for ask in group.lease_asks.remove(&lease).unwrap_or_default() {
            match ask {
                LeaseAsk::KeepAlive(ticket) => {
                    self.answer(ticket, Ok(kept_alive(header, lease, 0)));
                }
                LeaseAsk::TimeToLive(ticket) => {
                    self.answer(ticket, Ok(no_such_lease(header, lease)));
                }
            }
        }
    }

    fn describe(&self, id: GroupId) -> Description {
        let Some(group) = self.groups.get(&id) else { return Description::default() };
        let state = group.machine.state();
        let replica = group.core.key().replica;
        Description {
            header: Some(header(group)),
            leader: group.leader_node().unwrap_or(0),
            raft_index: group.core.last_index(),
            raft_applied_index: state.applied_index,
            raft_committed_index: group.core.committed(),
            size: self.store.disk_bytes().max(state.size as u64) as i64,
            size_in_use: state.size + prost::Message::encoded_len(state) as i64,
            quota: self.quota(id),
            is_learner: state.member_of(replica).is_some_and(|member| member.is_learner),
            compacted: state.compacted,
            keys: state.keys,
            alarms: state.alarms.clone(),
            leases: group.machine.leases().len() as i64,
            leader_changes: group.leader_changes,
            proposals_pending: group.proposals.len() as u64,
            proposals_failed: group.failed,
            membership_version: state.membership_version,
            replicas: members::statuses(group),
            retired: state.retired.clone(),
            charter: Some(state.charter),
            last_term: group.core.last_term(),
            is_hollow: group.seed_anew || state.applied_index == 0,
            place: Some(place_of(group)),
            split: group.shared().split.status(self.now_ms).map(Box::new),
        }
    }
}

/// Home has looked at what is compacted when it named the revision.
fn part_at(revision: i64) -> Reading {
    Reading::At { revision, compacted: 0 }
}

/// The group's keys, as others are told.
pub(super) fn place_of(group: &Group) -> RangePlace {
    let state = group.machine.state();
    RangePlace {
        group: group.id.0,
        start: state.start.clone(),
        end: state.end.clone(),
        version: state.range_version,
    }
}

/// Where the revisions of a tenant stand that is on this group alone.
fn span(group: &Group) -> Span {
    let state = group.machine.state();
    let part = SpanPart { place: Some(place_of(group)), last: state.revision };
    Span {
        header: Some(header(group)),
        revision: state.revision,
        parts: vec![part],
        compacted: state.compacted,
    }
}

/// Must the asker know the version of the group's range? Members and descriptions are the group's
/// whatever keys it has, and what is compacted is home's matter. Placement's words are fenced by it:
/// what one is told behind a split is not what was meant before.
fn is_of_range(body: Option<&Request>) -> bool {
    let Some(body) = body else { return true };
    match body {
        Request::Compact(_) => false,
        Request::Linearize(_) | Request::Span(_) => true,
        Request::SplitRange(_)
        | Request::MergeRange(_)
        | Request::ChangeReplica(_)
        | Request::SetCharter(_) => true,
        body => charter::is_about_keys(body),
    }
}

/// A header with what the group knows.
pub(super) fn header(group: &Group) -> ResponseHeader {
    ResponseHeader {
        revision: group.machine.state().revision,
        raft_term: group.core.term(),
        ..Default::default()
    }
}

fn with_term(
    mut members: proto::etcd::MemberListResponse,
    id: GroupId,
    node: &Node,
) -> proto::etcd::MemberListResponse {
    if let (Some(header), Some(group)) = (&mut members.header, node.groups.get(&id)) {
        header.raft_term = group.core.term();
    }
    members
}

fn no_such_lease(header: ResponseHeader, id: i64) -> Reply {
    Reply::LeaseTimeToLive(LeaseTimeToLiveResponse {
        header: Some(header),
        id,
        ttl: -1,
        granted_ttl: 0,
        keys: Vec::new(),
    })
}
