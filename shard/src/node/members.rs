//! Members: adding, promoting and removing replicas, and handing leadership over.
//!
//! One change at a time, by one configuration entry. A member's id is its replica's and, as
//! long as a group has one replica a node, its node's id; it is drawn when the member is
//! added and never used again.

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

/// Learners that a group may have (etcd's --max-learners).
const MAX_LEARNERS: usize = 1;

/// What stands in the context of a configuration entry.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Change {
    /// What it means to Raft: 0 adds a voter, 1 removes, 2 adds a learner (raft-rs's ordinals).
    #[prost(uint32, tag = "1")]
    kind: u32,
    /// Which replica.
    #[prost(uint64, tag = "2")]
    replica: u64,
    /// What it means to the machine.
    #[prost(message, required, tag = "3")]
    member: MemberChange,
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
                self.propose_change(id, ticket, kind, MemberChange { member, remove: false });
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
            let voters = || group.machine.state().members.iter().filter(|m| !m.is_learner);
            // etcd's strict check: the voters that stay must be a quorum of the living.
            let rest: Vec<u64> = voters().map(|m| m.id).filter(|m| *m != request.id).collect();
            let alive = rest.iter().filter(|m| group.core.recently_active(**m)).count();
            if !member.is_learner && (rest.is_empty() || alive <= (rest.len() - 1) / 2) {
                return Err(GroupError::refused(Error::MemberNotEnoughStarted));
            }
            Ok(member)
        });
        match checked {
            Ok(member) => {
                self.propose_change(id, ticket, 1, MemberChange { member, remove: true });
            }
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
            let matched = group.core.matched(request.id).unwrap_or(0);
            if matched * 10 < group.core.last_index() * 9 {
                return Err(GroupError::refused(Error::LearnerNotReady));
            }
            member.is_learner = false;
            Ok(member)
        });
        match checked {
            Ok(member) => {
                self.propose_change(id, ticket, 0, MemberChange { member, remove: false });
            }
            Err(error) => self.answer(ticket, Err(error)),
        }
    }

    fn serving(&self, id: GroupId) -> Result<&Group, GroupError> {
        let none = GroupError::not_done(Error::NoLeader, None);
        let group = self.groups.get(&id).ok_or(none)?;
        if group.serving { Ok(group) } else { Err(group.elsewhere()) }
    }

    fn propose_change(&mut self, id: GroupId, ticket: Ticket, number: u32, member: MemberChange) {
        let replica = member.member.id;
        let context = prost::Message::encode_to_vec(&Change { kind: number, replica, member });
        let Some(group) = self.groups.get_mut(&id) else { return };
        match group.core.propose_change(kind(number), replica, context) {
            Some((index, term)) => {
                group.proposals.insert((index, term), vec![Then::Answer(ticket)]);
            }
            // Another change is under way.
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
        let known = group.machine.state().members.iter().any(|m| m.id == change.replica);
        // A voter that was known is a learner promoted.
        let added = (change.kind != 1 && !known).then(|| change.member.member.clone());
        let removed_us = change.kind == 1 && change.replica == group.core.key().replica;
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
            self.outputs.push(Output::Removed { group: id });
        }
        Ok((Ok(reply), effects))
    }

    /// Tells a replica that was removed so, and says whether it was.
    pub(super) fn tell_removed(&mut self, id: GroupId, replica: u64) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        let state = group.machine.state();
        let removed = state.removed.contains(&replica);
        if removed {
            let membership_version = state.membership_version;
            let word = NotMember { group: id.0, replica, membership_version };
            let body = Some(peer_message::Body::NotMember(word));
            let to = NodeId(replica);
            self.outputs.push(Output::Send { to, message: PeerMessage { body } });
        }
        removed
    }

    /// Asks the members that are known whether this replica still is one.
    pub(super) fn ask_members(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else { return };
        let replica = group.core.key().replica;
        let others = group.machine.state().members.iter().map(|member| member.id);
        for other in others.filter(|other| *other != replica) {
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
            self.outputs.push(Output::Removed { group: id });
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
        if target == group.core.key().replica {
            return self.answer(ticket, Ok(Reply::Done(header)));
        }
        group.core.transfer(target);
        if let Some(before) = group.transfer.replace(Transfer { ticket, target, until_ms }) {
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
        for (id, group) in &mut self.groups {
            if !group.core.is_leader() || group.core.is_transferring() {
                continue;
            }
            let own = group.core.key().replica;
            let others = group.machine.state().members.iter().filter(|m| !m.is_learner);
            let best = others
                .map(|member| member.id)
                .filter(|replica| *replica != own && group.core.recently_active(*replica))
                .max_by_key(|replica| (group.core.matched(*replica), *replica));
            if let Some(target) = best {
                group.core.transfer(target);
                self.touched.insert(*id);
            }
        }
    }
}

fn find(group: &Group, id: u64) -> Result<Member, GroupError> {
    let members = &group.machine.state().members;
    members.iter().find(|m| m.id == id).cloned().ok_or(GroupError::refused(Error::MemberNotFound))
}

/// Would the group still have a quorum of living voters with one more that has not started?
/// A single voter may grow: there is no other way from one to more.
fn quorum_with_one_more(group: &Group) -> bool {
    let voters = || group.machine.state().members.iter().filter(|m| !m.is_learner);
    let alive = voters().filter(|m| group.core.recently_active(m.id)).count();
    let with_one_more = voters().count() + 1;
    with_one_more == 2 || alive > with_one_more / 2
}
