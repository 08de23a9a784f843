//! Members: adding, promoting and removing replicas, and handing leadership over.
//!
//! One change at a time, by one configuration entry. A member's id is its node's. The first
//! replicas of a group have the numbers of their nodes; a replica that placement adds later has a
//! number of its own, so that a node that comes back to a group is not taken for what it was.
//!
//! Two ways lead here: etcd's member commands, by which a node comes to the cluster or leaves it
//! (a removed node stops), and placement's [`ChangeReplica`], by which the group comes to a node
//! or leaves it (the node drops the replica and goes on).

use proto::cluster::group::{ChangeReplica, ReplicaStatus, change_replica};
use proto::cluster::raft::{AmMember, NotMember, PeerMessage, peer_message};
use proto::etcd::{
    Member, MemberAddRequest, MemberAddResponse, MemberPromoteRequest, MemberRemoveRequest,
    ResponseHeader,
};
use proto::group::{GroupError, Reply};
use proto::{Error, GroupId, NodeId};
use raft::eraftpb::{ConfChangeType, Entry};

use super::requests::header;
use super::{Node, NodeError, Output};
use crate::group::core::mix;
use crate::group::{Group, Then, Ticket, Transfer, wire};
use crate::machine::effect::Effect;
use crate::machine::{Answer, MemberChange};

/// Entries that a learner may lack when it becomes a voter: under load there are always some.
const PROMOTE_LAG: u64 = 200;
/// Learners that a group may have (etcd's --max-learners).
const MAX_LEARNERS: usize = 1;

/// What stands in the context of a configuration entry.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Change {
    /// What it means to Raft: 0 adds a voter, 1 removes, 2 adds a learner (raft-rs's ordinals).
    #[prost(uint32, tag = "1")]
    pub(super) kind: u32,
    /// Which replica.
    #[prost(uint64, tag = "2")]
    pub(super) replica: u64,
    /// What it means to the machine.
    #[prost(message, required, tag = "3")]
    pub(super) member: MemberChange,
}

impl Change {
    /// Does it take this replica out?
    pub(super) fn removes(&self, replica: u64) -> bool {
        kind(self.kind) == ConfChangeType::RemoveNode && self.replica == replica
    }
}

fn kind(number: u32) -> ConfChangeType {
    match number {
        0 => ConfChangeType::AddNode,
        1 => ConfChangeType::RemoveNode,
        _ => ConfChangeType::AddLearnerNode,
    }
}

impl Node {
    pub(super) fn member_add(&mut self, id: GroupId, ticket: Ticket, request: MemberAddRequest) {
        let checked = self.serving(id).and_then(|group| {
            let state = group.machine.state();
            let taken = |url: &String| state.members.iter().any(|m| m.peer_ur_ls.contains(url));
            if request.peer_ur_ls.iter().any(taken) {
                return Err(GroupError::refused(Error::PeerUrlExists));
            }
            let learners = state.members.iter().filter(|m| m.is_learner).count();
            if request.is_learner && learners >= MAX_LEARNERS {
                return Err(GroupError::refused(Error::TooManyLearners));
            }
            if !request.is_learner && !quorum_with_one_more(group) {
                return Err(GroupError::refused(Error::UnhealthyCluster));
            }
            let mut parts = vec![state.cluster_id, group.core.term(), group.core.last_index()];
            let url = request.peer_ur_ls.join(",");
            parts.push(u64::from(crc32fast::hash(url.as_bytes())));
            // Ids are shown as hexadecimal; 0 means nobody.
            Ok(mix(&parts).max(1))
        });
        match checked {
            Ok(replica) => {
                let member = Member {
                    id: replica,
                    peer_ur_ls: request.peer_ur_ls,
                    is_learner: request.is_learner,
                    ..Default::default()
                };
                let kind = if request.is_learner { 2 } else { 0 };
                let change = MemberChange { member, ..Default::default() };
                self.propose_change(id, ticket, kind, change);
            }
            Err(error) => self.answer(ticket, Err(error)),
        }
    }

    pub(super) fn member_remove(
        &mut self,
        id: GroupId,
        ticket: Ticket,
        request: MemberRemoveRequest,
    ) {
        let checked = self.serving(id).and_then(|group| {
            let member = find(group, request.id)?;
            if !member.is_learner && !quorum_without(group, request.id) {
                return Err(GroupError::refused(Error::MemberNotEnoughStarted));
            }
            let replica = group.machine.state().replica_of(member.id);
            Ok(MemberChange { member, remove: true, replica, retire: true })
        });
        match checked {
            Ok(change) => self.propose_change(id, ticket, 1, change),
            Err(error) => self.answer(ticket, Err(error)),
        }
    }

    pub(super) fn member_promote(
        &mut self,
        id: GroupId,
        ticket: Ticket,
        request: MemberPromoteRequest,
    ) {
        let checked = self.serving(id).and_then(|group| {
            let mut member = find(group, request.id)?;
            if !member.is_learner {
                return Err(GroupError::refused(Error::MemberNotLearner));
            }
            let replica = group.machine.state().replica_of(member.id);
            let matched = group.core.matched(replica).unwrap_or(0);
            if matched * 10 < group.core.last_index() * 9 {
                return Err(GroupError::refused(Error::LearnerNotReady));
            }
            member.is_learner = false;
            Ok(MemberChange { member, replica, ..Default::default() })
        });
        match checked {
            Ok(change) => self.propose_change(id, ticket, 0, change),
            Err(error) => self.answer(ticket, Err(error)),
        }
    }

    /// Placement brings the group to a node, makes the replica there a voter, or takes the group
    /// from the node. Refused as stale when the members are others than placement knows.
    pub(super) fn change_replica(&mut self, id: GroupId, ticket: Ticket, change: ChangeReplica) {
        let checked = self.serving(id).and_then(|group| {
            let state = group.machine.state();
            if change.membership_version != state.membership_version {
                return Err(GroupError::refused(Error::StaleRange));
            }
            judge_change(group, &change)
        });
        match checked {
            Ok((kind, member)) => self.propose_change(id, ticket, kind, member),
            Err(error) => {
                if error.error == Error::NotSupportedForLeader {
                    // Whoever leads next can remove this replica.
                    self.hand_over_group(id);
                }
                self.answer(ticket, Err(error));
            }
        }
    }

    fn serving(&self, id: GroupId) -> Result<&Group, GroupError> {
        let none = GroupError::not_done(Error::NoLeader, None);
        let group = self.groups.get(&id).ok_or(none)?;
        if group.serving { Ok(group) } else { Err(group.elsewhere()) }
    }

    fn propose_change(&mut self, id: GroupId, ticket: Ticket, number: u32, member: MemberChange) {
        let replica = member.replica();
        let context = prost::Message::encode_to_vec(&Change { kind: number, replica, member });
        let Some(group) = self.groups.get_mut(&id) else { return };
        let role = group.role.as_ref();
        let wants = role.is_some_and(|role| role.merging.is_some() || role.freezing != 0);
        let change = match wants || group.is_merging() {
            true => None,
            false => group.core.propose_change(kind(number), replica, context),
        };
        match change {
            Some((index, term)) => {
                group.proposals.insert((index, term), vec![Then::Answer(ticket)]);
            }
            // Another change is under way, or a merge.
            None => self.answer(ticket, Err(GroupError::refused(Error::UnhealthyCluster))),
        }
    }

    /// Applies a configuration entry.
    pub(super) fn apply_change(
        &mut self,
        id: GroupId,
        entry: &Entry,
    ) -> Result<(Answer, Vec<Effect>), NodeError> {
        let change = super::rounds::read_change(entry)?;
        let Some(group) = self.groups.get_mut(&id) else {
            return Ok((Err(Error::MemberNotFound), Vec::new()));
        };
        let conf = group.core.apply_change(kind(change.kind), change.replica);
        let conf = wire::conf_to_wire(&conf);
        let known = group.machine.state().member_of(change.replica).is_some();
        // A voter that was known is a learner promoted.
        let added = (change.kind != 1 && !known).then(|| change.member.member.clone());
        let removed_us = change.kind == 1 && change.replica == group.core.key().replica;
        let retired = change.member.retire;
        let effects =
            group.machine.apply_members(entry.index, entry.term, conf, Some(change.member));
        let list = group.machine.member_list();
        let reply = match added {
            Some(member) => Reply::MemberAdd(MemberAddResponse {
                header: Some(ResponseHeader::default()),
                member: Some(member),
                members: list.members,
            }),
            None => Reply::Members(list),
        };
        if removed_us {
            self.leave(id, retired);
        }
        Ok((Ok(reply), effects))
    }

    /// The replica here is no member any more: the node drops it, or, if it is `retired`, stops.
    fn leave(&mut self, id: GroupId, retired: bool) {
        if retired {
            self.outputs.push(Output::Retired { group: id });
        } else if self.may_die(id, &[]) {
            self.leaving.insert(id);
        }
    }

    /// Tells a replica that was removed, or left behind, so, and says whether it was.
    pub(super) fn tell_removed(
        &mut self,
        id: GroupId,
        from: NodeId,
        replica: u64,
        term: u64,
    ) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        let state = group.machine.state();
        let removed = state.is_left_behind(replica, term);
        if removed {
            let membership_version = state.membership_version;
            let retired = state.retired.contains(&replica);
            let word = NotMember { group: id.0, replica, membership_version, retired };
            let body = Some(peer_message::Body::NotMember(word));
            self.outputs.push(Output::Send { to: from, message: PeerMessage { body } });
        }
        removed
    }

    /// Asks the members that are known whether this replica still is one.
    pub(super) fn ask_members(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else { return };
        let replica = group.core.key().replica;
        let own = self.config.node.0;
        let others = group.machine.state().members.iter().map(|member| member.id);
        for other in others.filter(|other| *other != own) {
            let ask = AmMember { group: id.0, replica };
            let message = PeerMessage { body: Some(peer_message::Body::AmMember(ask)) };
            self.outputs.push(Output::Send { to: NodeId(other), message });
        }
    }

    /// A member says that a replica here is none.
    pub(super) fn step_not_member(&mut self, word: NotMember) {
        let id = GroupId(word.group);
        let Some(group) = self.groups.get(&id) else { return };
        let state = group.machine.state();
        if group.core.key().replica == word.replica
            && word.membership_version > state.membership_version
        {
            self.leave(id, word.retired);
        }
    }

    pub(super) fn move_leader(&mut self, id: GroupId, ticket: Ticket, target: u64) {
        let until_ms = self.now_ms + self.config.election_ms();
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !group.serving {
            return self.answer(ticket, Err(GroupError::refused(Error::NotLeader)));
        }
        let members = &group.machine.state().members;
        if !members.iter().any(|m| m.id == target && !m.is_learner) {
            return self.answer(ticket, Err(GroupError::refused(Error::BadLeaderTransferee)));
        }
        let header = header(group);
        let target = group.machine.state().replica_of(target);
        if target == group.core.key().replica {
            return self.answer(ticket, Ok(Reply::Done(header)));
        }
        if group.is_first_split_under_way() {
            return self.answer(ticket, Err(GroupError::not_done(Error::TooManyRequests, None)));
        }
        let before = group.transfer.replace(Transfer { ticket, target, until_ms });
        self.hand_to(id, target);
        if let Some(before) = before {
            self.answer(before.ticket, Err(GroupError::unknown(Error::Timeout)));
        }
    }

    /// Answers who waits for a handover, when it is done or its time is up.
    pub(super) fn check_transfer(&mut self, id: GroupId) {
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(transfer) = &group.transfer else { return };
        let done = group.core.leader() == Some(transfer.target);
        if !done && now_ms < transfer.until_ms {
            return;
        }
        let ticket = transfer.ticket;
        group.transfer = None;
        let answer = if done {
            Ok(Reply::Done(header(group)))
        } else {
            Err(GroupError::unknown(Error::Timeout))
        };
        self.answer(ticket, answer);
    }

    /// Hands the leaderships of this node to the followers that are furthest.
    pub(super) fn hand_over(&mut self) {
        let led = self.groups.iter().filter(|(_, group)| group.core.is_leader());
        for id in led.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.hand_over_group(id);
        }
    }

    fn hand_over_group(&mut self, id: GroupId) {
        self.wake(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !group.core.is_leader() || group.is_transferring() || group.is_first_split_under_way() {
            return;
        }
        let own = group.core.key().replica;
        let others = group.machine.state().members.iter().filter(|m| !m.is_learner);
        let best = others
            .map(|member| group.machine.state().replica_of(member.id))
            .filter(|replica| *replica != own && group.core.recently_active(*replica))
            .max_by_key(|replica| (group.core.matched(*replica), *replica));
        if let Some(target) = best {
            self.hand_to(id, target);
        }
    }

    /// Begins to hand a leadership to replica `target`.
    fn hand_to(&mut self, id: GroupId, target: u64) {
        let until_ms = self.now_ms + 2 * self.config.election_ms();
        let Some(group) = self.groups.get_mut(&id) else { return };
        self.touched.insert(id);
        let role = group.role.as_mut();
        if !role.is_some_and(|role| role.hand_over(target, until_ms)) {
            group.offer(target);
        }
    }
}

fn find(group: &Group, id: u64) -> Result<Member, GroupError> {
    let members = &group.machine.state().members;
    members.iter().find(|m| m.id == id).cloned().ok_or(GroupError::refused(Error::MemberNotFound))
}

/// The replicas that vote, without the one of node `but`.
fn voters(group: &Group, but: u64) -> Vec<u64> {
    let state = group.machine.state();
    let voters = state.members.iter().filter(|member| !member.is_learner && member.id != but);
    voters.map(|member| state.replica_of(member.id)).collect()
}

/// Would the group still have a quorum of living voters with one more that has not started?
/// A single voter may grow: there is no other way from one to more.
fn quorum_with_one_more(group: &Group) -> bool {
    let voters = voters(group, 0);
    let with_one_more = voters.len() + 1;
    with_one_more == 2 || living(group, &voters) > with_one_more / 2
}

/// The same when the one more is a learner that lives: so a voter can be replaced that is lost.
fn quorum_with_learner(group: &Group) -> bool {
    let voters = voters(group, 0);
    let with_one_more = voters.len() + 1;
    living(group, &voters) + 1 > with_one_more / 2
}

fn living(group: &Group, voters: &[u64]) -> usize {
    voters.iter().filter(|replica| group.core.recently_active(**replica)).count()
}

/// etcd's strict check: the voters that stay must be a quorum of the living.
fn quorum_without(group: &Group, node: u64) -> bool {
    let rest = voters(group, node);
    living(group, &rest) > rest.len() / 2
}

/// What Raft and the machine are to do about placement's wish.
fn judge_change(group: &Group, change: &ChangeReplica) -> Result<(u32, MemberChange), GroupError> {
    let state = group.machine.state();
    let replica = change.replica;
    let member = change.member.clone().unwrap_or_default();
    match change.kind() {
        change_replica::Kind::Add => {
            if state.members.iter().any(|m| m.id == member.id) {
                return Err(GroupError::refused(Error::MemberExists));
            }
            // Above all that ever were, here and so on every node.
            let now = state.members.iter().map(|m| state.replica_of(m.id));
            let replica = now.chain(state.removed.iter().copied()).max().unwrap_or(0) + 1;
            let member = Member { is_learner: true, ..member };
            Ok((2, MemberChange { member, replica, ..Default::default() }))
        }
        change_replica::Kind::Promote => {
            let known = state.member_of(replica).cloned();
            let member = known.ok_or(GroupError::refused(Error::MemberNotFound))?;
            let matched = group.core.matched(replica).unwrap_or(0);
            let behind = group.core.committed().saturating_sub(matched);
            // Raft takes a learner that was just added for active, though nobody may have begun it.
            let active = matched > 0 && group.core.recently_active(replica);
            if !active || behind > PROMOTE_LAG || !quorum_with_learner(group) {
                return Err(GroupError::refused(Error::LearnerNotReady));
            }
            let member = Member { is_learner: false, ..member };
            Ok((0, MemberChange { member, replica, ..Default::default() }))
        }
        change_replica::Kind::Remove => {
            let known = state.member_of(replica).cloned();
            let member = known.ok_or(GroupError::refused(Error::MemberNotFound))?;
            if !member.is_learner && !quorum_without(group, member.id) {
                return Err(GroupError::refused(Error::MemberNotEnoughStarted));
            }
            if replica == group.core.key().replica {
                return Err(GroupError::refused(Error::NotSupportedForLeader));
            }
            Ok((1, MemberChange { member, replica, remove: true, retire: false }))
        }
    }
}

/// What this replica knows of all.
pub(super) fn statuses(group: &Group) -> Vec<ReplicaStatus> {
    let state = group.machine.state();
    let status = |member: &Member| {
        let replica = state.replica_of(member.id);
        ReplicaStatus {
            node: member.id,
            replica,
            is_learner: member.is_learner,
            matched: group.core.matched(replica).unwrap_or(0),
            active: group.core.is_leader() && group.core.recently_active(replica),
        }
    };
    state.members.iter().map(status).collect()
}
