//! A split tenant on a node: the leader of each of its groups is a participant, that of its home
//! group the sequencer as well (`shard/src/split`). Here they get what they need: applied entries,
//! read rounds, a way to each other, requests; and what they want is carried out.
//!
//! ```text
//!   request ──> role { participant, sequencer } ── proposals ──> log ── applied ──> role
//!                        │        ^
//!                        └─ words ┴── streams between nodes, or to itself
//! ```
//!
//! *Streams.* Home's leader calls the leaders of all groups of the tenant at every tick, at all
//! nodes that have a replica ([`Node::tick_split`]). Whoever leads one answers with a seal, if that
//! was asked for, and begins a stream if it has none to this sequencer. Words are counted: one that
//! is missing, or was said on a stream that the other side does not know, ends the stream, and a
//! new one is begun. What was said is never repeated: the protocol begins anew with the stream.
//!
//! *Birth.* A split is applied like any entry. The new group's replica comes with the next
//! checkpoint, which is forced, like any other that is born (`births.rs`): so it and its parent's
//! new range are durable in one step.
//!
//! *Size, alarms, history.* At every tick a group's leader tells home's how much it has, and up to
//! where its history is gone; home's calls say what the others have and which alarms ring. A leader
//! that is new knows neither before its first call, a tick at most.
//!
//! *Planned changes of leaders.* See [`Handing`]: nothing that was granted is left behind.
//!
//! Invariants:
//! - A role lives as long as the leadership in which it was made, from the moment in which the
//!   leader serves. What it has proposed is not taken for what another one proposed: by its term.
//! - Proposals of a role go into the log in the order in which they were made.
//! - Every ticket that a role took is answered once: by it; or when it ends; or, of a write that
//!   is in the log, by what becomes of that entry.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proto::cluster::group::{RangePlace, Ranges, Span, SpanPart, SplitRange, command};
use proto::cluster::raft::{PeerMessage, peer_message};
use proto::cluster::split::split_message::Body as Said;
use proto::cluster::split::{
    Broken, Call, Hail, Sealed, SplitMessage, StreamWord, Weight, stream_word::Word,
};
use proto::etcd::alarm_request::AlarmAction;
use proto::etcd::request_op::Request as Op;
use proto::etcd::response_op::Response as OpAnswer;
use proto::etcd::{
    AlarmRequest, AlarmType, CompactionResponse, LeaseGrantResponse, LeaseRevokeResponse,
    RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use proto::group::{GroupError, Reply, Request, cost};
use proto::mvccpb::KeyValue;
use proto::{Error, GroupId, KeyRange, NodeId};

use super::merge::Merging;
use super::requests::place_of;
use super::{Answer, Node, NodeError, Output, Reading};
use crate::group::reads::Purpose;
use crate::group::{Group, Then, Ticket};
use crate::log::ReplicaKey;
use crate::machine::state::BIRTH;
use crate::machine::{Machine, SPLIT_FORMAT, leases};
use crate::room::Room;
use crate::split::entry::{Entry, Kept};
use crate::split::evaluate::Rows;
use crate::split::faults::Faults;
use crate::split::footprint::Footprint;
use crate::split::participant::{self, Participant, RangeChange, Replica, Written};
use crate::split::sequencer::{self, Sequencer, WINDOW};
use crate::split::stream::{Place, StreamId, TxId};
use crate::split::wire;
use crate::store::layout::Shelf;

/// Votes that are missing after so long: the transaction is not done.
const VOTE_MS: u64 = 2000;
/// A split that cannot begin within this time is given up: requests wait for it.
const PARTING_MS: u64 = 1000;
/// Calls that may go by before a stream that the sequencer does not know, or does not hear any more,
/// is begun anew.
const STUCK_CALLS: u32 = 3;
/// Tickets of the role's own from here on.
const OWN_TICKETS: Ticket = 1 << 62;

/// One side's hold of a stream.
#[derive(Debug)]
struct End {
    /// The node of the other side.
    node: NodeId,
    epoch: u64,
    term: u64,
    number: u64,
    /// Words said and heard on it.
    said: u64,
    heard: u64,
    /// Words that the other side had heard at its last call.
    arrived: u64,
    /// Calls in a row that did not know it, or by which nothing of what was said had arrived.
    stuck: u32,
}

/// What is to become of an answer.
#[derive(Debug)]
pub(crate) enum Asked {
    Put,
    Delete,
    Txn,
    Rows,
    Header,
    Span,
    Grant {
        lease: i64,
        ttl_s: i64,
    },
    Revoke,
    Compact {
        to: i64,
        physical: bool,
    },
    /// The lessor's own revocation.
    Expiry(i64),
}

/// A compaction that home has done. Its client may look for history anywhere once it is answered, also
/// where a watch is asked for without home: so it waits until all groups have given theirs up.
#[derive(Debug)]
struct Compacting {
    ticket: Ticket,
    to: i64,
    /// Until history is gone from the rows as well.
    physical: bool,
    /// What the answer says.
    revision: i64,
}

/// A leader's part in a split tenant. See the module.
#[derive(Debug)]
pub(crate) struct Role {
    term: u64,
    pub(super) participant: Participant,
    pub(super) sequencer: Option<Sequencer>,
    /// The participant's stream.
    own: Option<End>,
    /// The sequencer's streams.
    ends: BTreeMap<GroupId, End>,
    /// Groups that are asked to seal.
    unsealed: BTreeSet<GroupId>,
    /// Who is to be told of a seal once it is applied.
    sealing: Vec<(NodeId, u64)>,
    /// Since when transactions wait for votes.
    voting: BTreeMap<TxId, u64>,
    /// To be proposed, in this order.
    pending: VecDeque<Proposal>,
    next_own: Ticket,
    /// The leadership is on its way to another replica.
    handing: Option<Handing>,
    /// Since when requests over several groups are under way.
    begun: BTreeMap<Ticket, u64>,
    /// What the other groups of the tenant have, and its alarms, as home has said.
    others: i64,
    alarms: Vec<i32>,
    /// Something was refused because the quota is reached: home is to know.
    refused: bool,
    /// Home: what each group has said of how much it has.
    weights: BTreeMap<GroupId, Weight>,
    /// Home: compactions that home has done and that wait for the other groups.
    compacting: Vec<Compacting>,
    /// The last revision granted that was counted, once home's sequencer is open.
    counted: Option<i64>,
    /// A merge that this leader drives, and the number of one for which the group is to freeze.
    pub(super) merging: Option<Merging>,
    pub(super) freezing: u64,
    /// When an entry was last noted that ends a merge.
    pub(super) noted_ms: u64,
}

/// A planned change of a leader: what was granted to it is proposed first, and at home what was
/// granted is written down, so that no revision is missing and the next sequencer goes on without a
/// gap.
#[derive(Debug)]
struct Handing {
    target: u64,
    /// What does not come to an end until then does not hold it up.
    until_ms: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No more revisions are asked for; those that were are awaited, and proposed.
    Wanted,
    /// Home's sequencer has stopped, and says where in the log.
    Written,
    /// That is applied: Raft moves the leadership.
    Moving,
}

/// An entry that is to go into the log.
#[derive(Debug)]
pub(super) struct Proposal {
    /// The participant's name for it, or 0.
    pub(super) tag: i64,
    /// The write that it makes.
    pub(super) ticket: Option<Ticket>,
    pub(super) entry: Entry,
}

/// A split that somebody has asked for.
#[derive(Debug)]
pub(crate) struct Parting {
    ticket: Ticket,
    at: Bytes,
    child: GroupId,
    proposed: bool,
    until_ms: u64,
}

/// The applied state of a replica, as its participant looks at it.
pub(super) struct Applied<'a>(pub(super) &'a Machine);

impl Applied<'_> {
    fn kept(&self) -> &Kept {
        self.0.kept().expect("a role is made only for a split tenant")
    }
}

impl Rows for Applied<'_> {
    fn scan(&self, range: &KeyRange, at: Option<i64>) -> Vec<KeyValue> {
        // Without its rows a leader must not go on; another one may have them.
        self.0.rows(range, at).unwrap_or_else(|error| panic!("rows cannot be read: {error}"))
    }
}

impl Replica for Applied<'_> {
    fn revision(&self) -> i64 {
        self.0.state().revision
    }

    fn seal(&self) -> u64 {
        self.kept().seal
    }

    fn place(&self) -> &Place {
        &self.kept().place
    }

    fn is_frozen(&self) -> bool {
        self.kept().frozen.is_some()
    }

    fn is_lost(&self) -> bool {
        self.kept().lost
    }

    fn compacted(&self) -> i64 {
        self.0.state().compacted
    }

    fn keys(&self, range: &KeyRange) -> Vec<KeyValue> {
        self.0.keys(range).unwrap_or_else(|error| panic!("rows cannot be read: {error}"))
    }

    fn attached(&self, lease: i64) -> Vec<Bytes> {
        let attached = leases::attached(self.0.store(), self.0.shelves(), lease);
        attached.unwrap_or_else(|error| panic!("rows cannot be read: {error}"))
    }
}

/// A single operation as a transaction.
fn alone(op: Op) -> TxnRequest {
    TxnRequest { success: vec![RequestOp { request: Some(op) }], ..Default::default() }
}

/// Does a request change rows or leases? A damaged etcd answers none of these (etcd:
/// `applierV3Corrupt`).
fn is_change(body: &Request) -> bool {
    matches!(
        body,
        Request::Put(_)
            | Request::DeleteRange(_)
            | Request::Txn(_)
            | Request::Compact(_)
            | Request::LeaseGrant(_)
            | Request::LeaseRevoke(_)
    )
}

/// The answer of the only operation.
fn only(asked: &Asked, response: TxnResponse) -> Option<Reply> {
    let header = response.header;
    let mut answers = response.responses.into_iter().filter_map(|answer| answer.response);
    Some(match (asked, answers.next()?) {
        (Asked::Put, OpAnswer::ResponsePut(mut put)) => {
            put.header = header;
            Reply::Put(put)
        }
        (Asked::Delete, OpAnswer::ResponseDeleteRange(mut delete)) => {
            delete.header = header;
            Reply::DeleteRange(delete)
        }
        _ => return None,
    })
}

impl Role {
    fn new(term: u64, number: u64, kept: &Kept, sequencer: Option<Sequencer>) -> Role {
        Role {
            term,
            participant: Participant::new(term, number, kept.seal, Faults::NONE),
            sequencer,
            own: None,
            ends: BTreeMap::new(),
            unsealed: BTreeSet::new(),
            sealing: Vec::new(),
            voting: BTreeMap::new(),
            pending: VecDeque::new(),
            next_own: OWN_TICKETS,
            handing: None,
            begun: BTreeMap::new(),
            others: 0,
            alarms: Vec::new(),
            refused: false,
            weights: BTreeMap::new(),
            compacting: Vec::new(),
            counted: None,
            merging: None,
            freezing: 0,
            noted_ms: 0,
        }
    }

    /// The leadership is to go to replica `target`. Says whether this sees to it.
    pub(super) fn hand_over(&mut self, target: u64, until_ms: u64) -> bool {
        let moves = self.handing.as_ref().is_some_and(|handing| handing.stage == Stage::Moving);
        if moves || self.sequencer.as_ref().is_some_and(|home| !home.is_open()) {
            return false;
        }
        self.participant.rest(true);
        let stage = self.handing.as_ref().map_or(Stage::Wanted, |handing| handing.stage);
        self.handing = Some(Handing { target, until_ms, stage });
        true
    }

    /// Was it made in this leadership?
    pub(crate) fn is_of(&self, term: u64) -> bool {
        self.term == term
    }

    /// What home has put into the log for a request, or is about to, without telling of the request
    /// there: it may be done.
    fn doubtful(&self) -> BTreeSet<Ticket> {
        let open = self.sequencer.iter().flat_map(Sequencer::open_tickets);
        let open = open.filter(|(_, proposed)| *proposed).map(|(ticket, _)| ticket);
        open.chain(self.compacting.iter().map(|one| one.ticket)).collect()
    }
}

impl Node {
    pub(super) fn role(&mut self, id: GroupId) -> Option<&mut Role> {
        self.groups.get_mut(&id)?.role.as_deref_mut()
    }

    fn header_of(&self, id: GroupId, revision: i64) -> ResponseHeader {
        let raft_term = self.groups.get(&id).map_or(0, |group| group.core.term());
        ResponseHeader { revision, raft_term, ..Default::default() }
    }

    // === a role's life ===

    /// A leader serves: if its tenant is split, it begins its part. One that has proposed the
    /// tenant's first split itself goes on with the revisions where it stands.
    pub(super) fn take_role(&mut self, id: GroupId, begun: bool) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.role.is_some() || !group.serving || !group.machine.is_split() {
            return;
        }
        let Some(kept) = group.machine.kept() else { return };
        let term = group.core.term();
        let at_home = (kept.home == id).then(|| {
            let kept = kept.clone();
            match begun {
                true => Sequencer::begun(term, kept, WINDOW, Faults::NONE),
                false => Sequencer::new(term, kept, WINDOW, Faults::NONE),
            }
        });
        // A tenant may have been on one group in between.
        let (last_term, last) = group.last_stream;
        let number = if last_term == term { last } else { 0 };
        group.role = Some(Box::new(Role::new(term, number, kept, at_home)));
        group.shared.split.set_on(true);
        self.roles.insert(id);
        self.touch(id);
        self.hail(id);
    }

    /// The leadership is over. Writes that are in the log are answered when it is known what became
    /// of them.
    pub(super) fn end_role(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let elsewhere = group.elsewhere();
        self.roles.remove(&id);
        if let Some(parting) = group.parting.take() {
            self.answer(parting.ticket, Err(elsewhere));
        }
        self.tell_what_is_known(id);
        self.count_costs(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(role) = group.role.take() else { return };
        group.last_stream = (role.term, role.participant.number());
        group.shared.split.set_on(false);
        let mut open = std::mem::take(&mut group.asked);
        let logged = group.proposals.values().flatten().filter_map(Then::ticket);
        group.asked = logged.filter_map(|ticket| open.remove_entry(&ticket)).collect();
        let doubtful = role.doubtful();
        if let Some(merging) = &role.merging {
            self.answer(merging.ticket(), Err(elsewhere));
        }
        for (ticket, asked) in open {
            let error = match doubtful.contains(&ticket) {
                true => GroupError::unknown(Error::LeaderChanged),
                false => elsewhere,
            };
            self.end_asked(id, ticket, &asked, Err(error));
        }
    }

    /// What was applied and found out already, and not told yet, because the role was not driven
    /// since.
    fn tell_what_is_known(&mut self, id: GroupId) {
        let Some(role) = self.role(id) else { return };
        let wishes = role.participant.take();
        let at_home = role.sequencer.as_mut().map(Sequencer::take).unwrap_or_default();
        for wish in wishes.into_iter().filter(participant::Do::is_answer) {
            self.do_part(id, wish);
        }
        for wish in at_home.into_iter().filter(sequencer::Do::is_answer) {
            self.do_home(id, wish);
        }
    }

    fn end_asked(
        &mut self,
        id: GroupId,
        ticket: Ticket,
        asked: &Asked,
        answer: Result<Reply, GroupError>,
    ) {
        if let Asked::Expiry(lease) = asked {
            if answer.is_err()
                && let Some(group) = self.groups.get_mut(&id)
            {
                group.lessor().revoke_failed(*lease);
            }
            return;
        }
        self.answer(ticket, answer);
    }

    pub(super) fn finish(
        &mut self,
        id: GroupId,
        ticket: Ticket,
        answer: Result<Reply, GroupError>,
    ) {
        if let Some(asked) = self.asked(id, ticket) {
            self.end_asked(id, ticket, &asked, answer);
        }
    }

    fn asked(&mut self, id: GroupId, ticket: Ticket) -> Option<Asked> {
        self.groups.get_mut(&id)?.asked.remove(&ticket)
    }

    // === requests ===

    /// A request to a group of a split tenant that needs its leader: gives back what is like for
    /// any other group.
    pub(super) fn split_request(
        &mut self,
        id: GroupId,
        ticket: Ticket,
        body: Request,
    ) -> Option<Request> {
        if let Err(error) = self.check_room(id, &body) {
            self.answer(ticket, Err(GroupError::refused(error)));
            return None;
        }
        match body {
            Request::Put(put) => self.write(id, ticket, Asked::Put, alone(Op::RequestPut(put))),
            Request::DeleteRange(delete) => {
                self.write(id, ticket, Asked::Delete, alone(Op::RequestDeleteRange(delete)));
            }
            Request::Txn(txn) => self.write(id, ticket, Asked::Txn, txn),
            Request::Range(range) => {
                let keys = KeyRange::parse(&range.key, &range.range_end);
                self.ask_participant(id, ticket, Asked::Rows, |p, _| p.read(ticket, keys));
            }
            Request::Linearize(_) => {
                self.ask_participant(id, ticket, Asked::Header, |participant, place| {
                    participant.read(ticket, KeyRange::single(&place.range.start));
                });
            }
            Request::Span(ask) if ask.weak => {
                let span = self.weak_span(id);
                self.answer(ticket, span);
            }
            Request::Span(_) => self.ask_home(id, ticket, Asked::Span, |home| home.read(ticket)),
            Request::LeaseRevoke(revoke) => {
                self.transact(id, ticket, Asked::Revoke, |home| home.revoke(ticket, revoke.id));
            }
            Request::Compact(compact) => {
                let to = compact.revision;
                let asked = Asked::Compact { to, physical: compact.physical };
                self.ask_home(id, ticket, asked, |home| home.compact(ticket, to));
            }
            other => return Some(other),
        }
        None
    }

    /// Alarms and quota are the whole tenant's: home has them, and sums up what its groups have.
    fn check_room(&mut self, id: GroupId, body: &Request) -> Result<(), Error> {
        let added = cost(body);
        if added > 0 && self.room != Room::Enough {
            return Err(Error::NoSpace);
        }
        let quota = self.quota(id);
        let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
        let Some(role) = &mut group.role else { return Ok(()) };
        let rings = |alarm: AlarmType| role.alarms.contains(&(alarm as i32));
        if rings(AlarmType::Corrupt) && is_change(body) {
            return Err(Error::Corrupt);
        }
        if added > 0 && rings(AlarmType::Nospace) {
            return Err(Error::NoSpace);
        }
        if added > 0 && quota > 0 && group.machine.state().size + role.others + added >= quota {
            role.refused = true;
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// A grant whose id and TTL are settled.
    pub(super) fn split_grant(&mut self, id: GroupId, ticket: Ticket, lease: i64, ttl_s: i64) {
        let asked = Asked::Grant { lease, ttl_s };
        self.ask_home(id, ticket, asked, |home| home.grant(ticket, lease, ttl_s));
    }

    /// A lease has run out. Says whether this is for the sequencer to see to.
    pub(super) fn split_expiry(&mut self, id: GroupId, lease: i64) -> bool {
        let Some(group) = self.groups.get_mut(&id) else { return false };
        let Some(role) = &mut group.role else { return false };
        let Some(home) = &mut role.sequencer else { return false };
        let ticket = role.next_own;
        role.next_own += 1;
        group.asked.insert(ticket, Asked::Expiry(lease));
        home.revoke(ticket, lease);
        self.touch(id);
        true
    }

    fn write(&mut self, id: GroupId, ticket: Ticket, asked: Asked, txn: TxnRequest) {
        let footprint = Footprint::of(&txn);
        let inside = |place: &Place| {
            let past = footprint.past.iter().map(|(keys, _)| keys);
            let mut keys = footprint.reads.iter().chain(&footprint.writes).chain(past);
            keys.all(|keys| keys.is_within(&place.range))
        };
        let fits = self.groups.get(&id).and_then(|group| group.machine.kept());
        match fits.is_some_and(|kept| inside(&kept.place)) {
            true => self.ask_participant(id, ticket, asked, |p, _| p.write(ticket, txn)),
            false => self.transact(id, ticket, asked, |home| home.transact(ticket, txn)),
        }
    }

    /// Asks home for something that concerns several groups.
    fn transact(
        &mut self,
        id: GroupId,
        ticket: Ticket,
        asked: Asked,
        ask: impl FnOnce(&mut Sequencer),
    ) {
        let now_ms = self.now_ms;
        self.ask_home(id, ticket, asked, ask);
        if let Some(role) = self.role(id).filter(|role| role.sequencer.is_some()) {
            role.begun.insert(ticket, now_ms);
        }
    }

    /// Such a request is answered, or goes again.
    fn transacted(&mut self, id: GroupId, ticket: Ticket, given_up: bool) {
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&id) else { return };
        let begun = group.role.as_mut().and_then(|role| role.begun.remove(&ticket));
        match begun {
            Some(_) if given_up => group.shared.split.gave_up(),
            Some(begun_ms) => group.shared.split.transacted(now_ms.saturating_sub(begun_ms)),
            None => {}
        }
    }

    fn ask_participant(
        &mut self,
        id: GroupId,
        ticket: Ticket,
        asked: Asked,
        ask: impl FnOnce(&mut Participant, &Place),
    ) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let place = group.machine.kept().map(|kept| kept.place.clone());
        let (Some(role), Some(place)) = (&mut group.role, place) else {
            let error = group.elsewhere();
            return self.answer(ticket, Err(error));
        };
        group.asked.insert(ticket, asked);
        ask(&mut role.participant, &place);
    }

    fn ask_home(
        &mut self,
        id: GroupId,
        ticket: Ticket,
        asked: Asked,
        ask: impl FnOnce(&mut Sequencer),
    ) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let error = match group.machine.kept().is_some_and(|kept| kept.home == id) {
            true => group.elsewhere(),
            // Home's keys are asked for, or keys of several groups: not here.
            false => GroupError::not_done(Error::StaleRange, None),
        };
        match &mut group.role {
            Some(role) if role.sequencer.is_some() => {
                group.asked.insert(ticket, asked);
                if let Some(home) = &mut role.sequencer {
                    ask(home);
                }
            }
            _ => self.answer(ticket, Err(error)),
        }
    }

    fn weak_span(&self, id: GroupId) -> Result<Reply, GroupError> {
        let Some(group) = self.groups.get(&id) else {
            return Err(GroupError::not_done(Error::NoLeader, None));
        };
        let home = group.role.as_ref().and_then(|role| role.sequencer.as_ref());
        let Some(home) = home.filter(|home| home.is_open()) else { return Err(group.elsewhere()) };
        let marks = home.marks();
        let last = marks.last.into_iter().collect();
        Ok(self.span_of(id, marks.revision, &last, &marks.map.unwrap_or_default()))
    }

    fn span_of(
        &self,
        id: GroupId,
        revision: i64,
        last: &BTreeMap<GroupId, i64>,
        map: &BTreeMap<GroupId, Place>,
    ) -> Reply {
        let part = |(group, place): (&GroupId, &Place)| SpanPart {
            place: Some(wire::place_out(*group, place)),
            last: last.get(group).copied().unwrap_or_default(),
        };
        let compacted = self.groups.get(&id).map_or(0, |group| group.machine.state().compacted);
        Reply::Span(Span {
            header: Some(self.header_of(id, revision)),
            revision,
            parts: map.iter().map(part).collect(),
            compacted,
        })
    }

    // === splitting ===

    /// The keys from `at` on are to go to a new group.
    pub(super) fn split_range(&mut self, id: GroupId, ticket: Ticket, wish: SplitRange) {
        let until_ms = self.now_ms + PARTING_MS;
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !group.serving {
            let error = group.elsewhere();
            return self.answer(ticket, Err(error));
        }
        let state = group.machine.state();
        let range = state.range();
        if range.end.as_ref() == Some(&wish.at) {
            let places = vec![place_of(group)];
            return self.answer(ticket, Ok(Reply::Ranges(Ranges { places })));
        }
        if !range.contains(&wish.at) || range.start == wish.at || wish.child == 0 {
            return self.answer(ticket, Err(GroupError::not_done(Error::StaleRange, None)));
        }
        if group.is_changing() {
            return self.answer(ticket, Err(GroupError::not_done(Error::TooManyRequests, None)));
        }
        if group.machine.is_split() && group.role.is_none() {
            let error = group.elsewhere();
            return self.answer(ticket, Err(error));
        }
        let (at, child) = (wish.at, GroupId(wish.child));
        if let Some(role) = &mut group.role {
            role.participant.change(RangeChange::Split { at: at.clone(), child });
        }
        let proposed = group.role.is_some();
        group.parting = Some(Parting { ticket, at, child, proposed, until_ms });
        self.partings.insert(id);
    }

    /// A tenant that is on this group alone is split when nothing of it is under way.
    pub(super) fn propose_parting(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let waits = !group.queued.is_empty() || !group.proposals.is_empty();
        let state = group.machine.state();
        let (revision, version) = (state.revision, state.range_version);
        let Some(parting) = group.parting.as_mut().filter(|parting| !parting.proposed) else {
            return;
        };
        if waits || !group.serving {
            return;
        }
        parting.proposed = true;
        let entry = Entry::Split {
            epoch: group.core.term(),
            version,
            at: parting.at.clone(),
            child: parting.child,
            limit: revision + WINDOW,
        };
        let mut wanted = VecDeque::from([Proposal { tag: 0, ticket: None, entry }]);
        self.propose_split(id, &mut wanted);
        if let (false, Some(group)) = (wanted.is_empty(), self.groups.get_mut(&id))
            && let Some(parting) = &mut group.parting
        {
            // Raft takes nothing now: again with the next round, or not at all.
            parting.proposed = false;
        }
    }

    /// Nothing is under way any more: a first split that waited for that is proposed in the next
    /// round.
    pub(super) fn wake_parting(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let waits = group.parting.as_ref().is_some_and(|parting| !parting.proposed);
        if waits && group.serving && group.proposals.is_empty() {
            self.touched.insert(id);
        }
    }

    /// The first split of a tenant waits for too long.
    fn check_parting(&mut self, id: GroupId) {
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&id) else { return };
        let late = |parting: &mut Parting| !parting.proposed && now_ms > parting.until_ms;
        if let Some(parting) = group.parting.take_if(late) {
            let error = GroupError::not_done(Error::TooManyRequests, None);
            return self.answer(parting.ticket, Err(error));
        }
        if group.parting.is_some() {
            self.partings.insert(id);
        }
    }

    /// The log says that the keys from `at` on are a new group's.
    pub(super) fn part(&mut self, id: GroupId, at: &Bytes, kept: Kept) -> Result<(), NodeError> {
        let shelf = self.take_shelf();
        let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
        let child = kept.group;
        let mut state = group.machine.split_off(at, kept.place.version, shelf)?;
        let own = group.machine.state();
        let ids = |learners: bool| {
            let chosen = own.members.iter().filter(|member| member.is_learner == learners);
            chosen.map(|member| member.id).collect()
        };
        (state.applied_index, state.applied_term) = BIRTH;
        state.conf_state.voters = ids(false);
        state.conf_state.learners = ids(true);
        state.membership_version = 1;
        state.split = Some(wire::kept_out(&kept));
        let revision = own.revision;
        let is_member = own.members.iter().any(|member| member.id == self.config.node.0);
        let versions: Vec<Shelf> = state.versions().iter().map(|piece| piece.shelf).collect();
        let is_here = self.groups.contains_key(&child) || self.tombstones.contains_key(&child.0);
        self.outputs.push(Output::Ranged { group: id, revision });
        if !is_member || is_here {
            // Its keys are nobody's here.
            self.discard(versions.into_iter().chain([shelf]));
            return Ok(());
        }
        let key = ReplicaKey { group: child.0, replica: self.config.node.0 };
        self.expect(key, state);
        Ok(())
    }

    // === what was applied ===

    /// An entry of a split tenant was applied; `then` belongs to who proposed it under `term`.
    pub(super) fn split_applied(
        &mut self,
        id: GroupId,
        term: u64,
        then: Option<Then>,
        entry: &Entry,
        written: Written,
    ) {
        let place = self.group(id).map(place_of);
        let then_is_own = then.is_some();
        let Some(group) = self.groups.get_mut(&id) else { return };
        let refused = written == Written::Refused;
        let unused = matches!(written, Written::Void | Written::Refused);
        if matches!(entry, Entry::Write { .. }) && unused && then.is_some() {
            group.shared.split.skipped(1);
        }
        if let Entry::Split { at, .. } = entry
            && let Some(parting) = group.parting.take_if(|parting| parting.at == *at)
        {
            let own = group.core.is_leader() && term == group.core.term() && then.is_some();
            self.answer_parting(parting.ticket, refused, place);
            // It was alone before: nobody else has given out a revision.
            self.take_role(id, own && !refused);
        }
        let (tag, ticket) = match then {
            Some(Then::Split(tag, ticket)) => (tag, ticket),
            _ => (0, None),
        };
        let own = self.role(id).filter(|role| role.is_of(term));
        match (own, entry, ticket) {
            (Some(role), Entry::Write { .. }, _) if tag != 0 => {
                role.participant.written(tag, written);
            }
            (Some(role), Entry::Branch { .. }, _) if tag != 0 => role.participant.branched(tag),
            (Some(role), ..) if tag != 0 => role.participant.ranged(tag),
            (None, Entry::Write { .. }, Some(ticket)) => {
                self.written_late(id, ticket, written);
            }
            _ => {}
        }
        let own = then_is_own && self.role(id).is_some_and(|role| role.is_of(term));
        if let Some(role) = self.role(id)
            && let (Some(home), false) = (&mut role.sequencer, refused)
        {
            home.applied(entry);
        }
        if let Entry::Compact { .. } = entry {
            self.tell_weight(id);
        }
        self.merge_applied(id, own, entry, refused);
    }

    /// A write was applied whose role is over.
    fn written_late(&mut self, id: GroupId, ticket: Ticket, written: Written) {
        let leader = self.group(id).and_then(Group::leader_node);
        match written {
            Written::Done(response) => self.answer_txn(id, ticket, Ok(response)),
            Written::Unread => self.answer_txn(id, ticket, Err(Error::DamagedValue)),
            Written::Void | Written::Refused => {
                let error = GroupError::not_done(Error::LeaderChanged, leader);
                self.finish(id, ticket, Err(error));
            }
        }
    }

    fn answer_parting(&mut self, ticket: Ticket, refused: bool, place: Option<RangePlace>) {
        let places = place.into_iter().collect();
        let answer = match refused {
            true => Err(GroupError::not_done(Error::StaleRange, None)),
            false => Ok(Reply::Ranges(Ranges { places })),
        };
        self.answer(ticket, answer);
    }

    /// A read round of the sequencer is done.
    pub(super) fn round_done(&mut self, id: GroupId, round: u64) {
        if let Some(home) = self.role(id).and_then(|role| role.sequencer.as_mut()) {
            home.round_done(round);
        }
    }

    // === what goes on ===

    /// Lets a planned change of the leader go on. Says whether it did.
    fn drive_handing(&mut self, id: GroupId) -> bool {
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&id) else { return false };
        let Some(role) = &mut group.role else { return false };
        let Some(handing) = &mut role.handing else { return false };
        let (target, late) = (handing.target, now_ms >= handing.until_ms);
        let drained = role.participant.has_asked_nothing() && role.pending.is_empty();
        let next = match (handing.stage, &mut role.sequencer) {
            (Stage::Wanted, _) if !drained && !late => return false,
            (Stage::Wanted, Some(home)) => match home.hand_over() {
                true => Some(Stage::Written),
                false if late => Some(Stage::Moving),
                // Something is undecided.
                false => return false,
            },
            (Stage::Wanted, None) => Some(Stage::Moving),
            (Stage::Written, Some(home)) if !home.is_handed_over() => return false,
            (Stage::Written, _) => Some(Stage::Moving),
            (Stage::Moving, _) if group.core.is_transferring() => return false,
            (Stage::Moving, home) => {
                home.iter_mut().for_each(|home| home.take_back());
                role.participant.rest(false);
                None
            }
        };
        match next {
            Some(stage) => handing.stage = stage,
            None => role.handing = None,
        }
        if let Some(Stage::Moving) = next {
            group.offer(target);
        }
        self.touched.insert(id);
        true
    }

    /// Lets a group's role go on, until it wants nothing more.
    pub(super) fn drive_role(&mut self, id: GroupId) {
        self.carry_on(id);
        // Behind it: what was granted is among the proposals.
        if self.drive_handing(id) {
            self.carry_on(id);
        }
    }

    fn carry_on(&mut self, id: GroupId) {
        loop {
            let Some(group) = self.groups.get_mut(&id) else { return };
            let Some(role) = &mut group.role else { return };
            if !group.machine.is_split() {
                return self.end_role(id);
            }
            role.participant.advance(&Applied(&group.machine));
            let wishes = role.participant.take();
            let at_home = role.sequencer.as_mut().map(Sequencer::take).unwrap_or_default();
            if wishes.is_empty() && at_home.is_empty() {
                break;
            }
            for wish in wishes {
                self.do_part(id, wish);
            }
            for wish in at_home {
                self.do_home(id, wish);
            }
        }
        self.tell_seals(id);
        let Some(role) = self.role(id) else { return };
        let mut pending = std::mem::take(&mut role.pending);
        if pending.is_empty() {
            return;
        }
        self.propose_split(id, &mut pending);
        if let Some(role) = self.role(id) {
            role.pending = pending;
        }
        self.touched.insert(id);
    }

    /// Proposes as many entries as Raft takes.
    pub(super) fn propose_split(&mut self, id: GroupId, pending: &mut VecDeque<Proposal>) {
        while !pending.is_empty() {
            let (mut commands, mut tags, mut bytes) = (Vec::new(), Vec::new(), 0);
            for Proposal { tag, ticket, entry } in pending.iter() {
                let body = command::Body::Split(wire::entry_out(entry));
                bytes += body.encoded_len();
                if !commands.is_empty() && bytes > proto::limits::MAX_ENTRY_BYTES {
                    break;
                }
                commands.push(proto::cluster::group::Command { body: Some(body) });
                tags.push(Then::Split(*tag, *ticket));
            }
            let count = tags.len();
            if self.propose_batch(id, SPLIT_FORMAT, commands, tags).is_err() {
                return;
            }
            pending.drain(..count);
        }
    }

    fn do_part(&mut self, id: GroupId, wish: participant::Do) {
        use participant::Do;
        match wish {
            Do::Send(word) => {
                let word = wire::up_out(id, word);
                let Some(home) = self.home_of(id) else { return };
                let Some(end) = self.role(id).and_then(|role| role.own.as_mut()) else { return };
                end.said += 1;
                let (term, number, count) = (end.term, end.number, end.said);
                let (node, word) = (end.node, Some(Word::Up(word)));
                let said = StreamWord { home: home.0, group: id.0, term, number, count, word };
                self.say(node, Said::Word(said));
            }
            Do::Propose { tag, entry } => {
                let Some(entry) = self.with_base(id, entry) else {
                    return self.absorb_later(id, tag);
                };
                if let Some(role) = self.role(id) {
                    let ticket = role.participant.ticket(tag);
                    role.pending.push_back(Proposal { tag, ticket, entry });
                }
            }
            Do::Answer { ticket, answer } => self.answer_txn(id, ticket, answer),
            Do::Readable { ticket, revision, compacted } => {
                let Some(asked) = self.asked(id, ticket) else { return };
                match asked {
                    Asked::Header => {
                        let header = self.header_of(id, revision);
                        self.answer(ticket, Ok(Reply::Linearize(header)));
                    }
                    _ => {
                        let answer = Answer::Readable(Reading::At { revision, compacted });
                        self.outputs.push(Output::Answer { ticket, answer: Ok(answer) });
                    }
                }
            }
            Do::Break => {
                if let Some(role) = self.role(id) {
                    role.own = None;
                }
                self.hail(id);
            }
            Do::Elsewhere { ticket } => {
                let error = GroupError::not_done(Error::StaleRange, None);
                self.finish(id, ticket, Err(error));
            }
        }
    }

    /// The entry with which a tenant comes to be on one group again says what was granted and shown;
    /// `None` while home has something undecided.
    fn with_base(&mut self, id: GroupId, mut entry: Entry) -> Option<Entry> {
        if let Entry::Absorb { place, base, .. } = &mut entry
            && place.range.end.is_none()
            && let Some(home) = self.role(id).and_then(|role| role.sequencer.as_mut())
        {
            *base = Some(home.close()?);
        }
        Some(entry)
    }

    fn do_home(&mut self, id: GroupId, wish: sequencer::Do) {
        use sequencer::Do;
        match wish {
            Do::Seal { group } => {
                if let Some(role) = self.role(id) {
                    role.unsealed.insert(group);
                }
                self.call(id, group, None);
            }
            Do::Send { to, word } => {
                let known = |end: &&mut End| (end.term, end.number) == (to.term, to.number);
                let Some(end) =
                    self.role(id).and_then(|role| role.ends.get_mut(&to.group)).filter(known)
                else {
                    return;
                };
                end.said += 1;
                let (count, node) = (end.said, end.node);
                let (term, number) = (to.term, to.number);
                let word = Some(Word::Down(wire::down_out(word)));
                let group = to.group.0;
                let said = StreamWord { home: id.0, group, term, number, count, word };
                self.say(node, Said::Word(said));
            }
            Do::Propose(entry) => {
                if let Some(role) = self.role(id) {
                    role.pending.push_back(Proposal { tag: 0, ticket: None, entry });
                }
            }
            Do::Round { round } => {
                let Some(group) = self.groups.get_mut(&id) else { return };
                group.reads.push((0, Purpose::Round(round)));
                self.begin_reads(id);
                self.touched.insert(id);
            }
            Do::Answer { ticket, answer } => {
                self.transacted(id, ticket, false);
                self.answer_txn(id, ticket, answer);
            }
            Do::Revoked { ticket, revision, .. } => {
                self.transacted(id, ticket, false);
                let header = Some(self.header_of(id, revision));
                self.finish(id, ticket, Ok(Reply::LeaseRevoke(LeaseRevokeResponse { header })));
            }
            Do::LeaseGranted { ticket, revision } => {
                let header = Some(self.header_of(id, revision));
                if let Some(Asked::Grant { lease, ttl_s }) = self.asked(id, ticket) {
                    let error = String::new();
                    let granted = LeaseGrantResponse { header, id: lease, ttl: ttl_s, error };
                    self.answer(ticket, Ok(Reply::LeaseGrant(granted)));
                }
            }
            Do::Compacted { ticket, revision } => {
                let asked = self.groups.get(&id).and_then(|group| group.asked.get(&ticket));
                let Some(Asked::Compact { to, physical }) = asked else { return };
                let compacting = Compacting { ticket, to: *to, physical: *physical, revision };
                if let Some(role) = self.role(id) {
                    role.compacting.push(compacting);
                }
                self.answer_compacted(id);
            }
            Do::Readable { ticket, revision, last, map } => {
                let span = self.span_of(id, revision, &last, &map);
                self.finish(id, ticket, Ok(span));
            }
            Do::NotDone { ticket } => {
                self.transacted(id, ticket, true);
                let error = GroupError::not_done(Error::StaleRange, None);
                self.finish(id, ticket, Err(error));
            }
            // Routers ask for them.
            Do::Marks(_) => {}
            Do::StepDown => {
                tracing::info!(group = id.0, "a later leader has sealed: no revisions from here");
                self.end_role(id);
            }
        }
    }

    /// Answers compactions that all groups have done.
    fn answer_compacted(&mut self, id: GroupId) {
        let Some(role) = self.role(id) else { return };
        let groups = role.sequencer.iter().flat_map(Sequencer::groups);
        let weights = groups.map(|group| role.weights.get(&group).cloned().unwrap_or_default());
        let (compacted, swept) = weights
            .fold((i64::MAX, i64::MAX), |(compacted, swept), weight| {
                (compacted.min(weight.compacted), swept.min(weight.swept))
            });
        let is_done = |one: &mut Compacting| match one.physical {
            true => one.to <= swept,
            false => one.to <= compacted,
        };
        for one in role.compacting.extract_if(.., is_done).collect::<Vec<_>>() {
            let header = Some(self.header_of(id, one.revision));
            self.finish(id, one.ticket, Ok(Reply::Compact(CompactionResponse { header })));
        }
    }

    fn answer_txn(&mut self, id: GroupId, ticket: Ticket, answer: Result<TxnResponse, Error>) {
        let Some(asked) = self.asked(id, ticket) else { return };
        let term = self.groups.get(&id).map_or(0, |group| group.core.term());
        let answer = match answer {
            Ok(mut response) => {
                let header = response.header.unwrap_or_default();
                response.header = Some(ResponseHeader { raft_term: term, ..header });
                let reply = match asked {
                    Asked::Txn => Some(Reply::Txn(response)),
                    _ => only(&asked, response),
                };
                reply.ok_or_else(|| GroupError::unknown(Error::Stopped))
            }
            Err(Error::DamagedValue) => Err(GroupError::unknown(Error::DamagedValue)),
            // It was gone before it was to be revoked.
            Err(Error::LeaseNotFound) if matches!(asked, Asked::Expiry(_)) => return,
            Err(error) => Err(GroupError::refused(error)),
        };
        self.end_asked(id, ticket, &asked, answer);
    }

    // === between nodes ===

    pub(super) fn home_of(&self, id: GroupId) -> Option<GroupId> {
        Some(self.groups.get(&id)?.machine.kept()?.home)
    }

    /// The nodes that have, or may have, a replica of a group.
    pub(super) fn nodes_of(&self, id: GroupId) -> BTreeSet<NodeId> {
        let told = self.whereabouts.get(&id).into_iter().flatten().copied();
        let members = self.groups.get(&id).into_iter();
        let members = members.flat_map(|group| &group.machine.state().members);
        members.map(|m| NodeId(m.id)).chain(told).collect()
    }

    pub(super) fn say(&mut self, to: NodeId, said: Said) {
        let message = SplitMessage { body: Some(said) };
        if to == self.config.node {
            return self.whispers.push_back(message);
        }
        let body = Some(peer_message::Body::Split(message));
        self.outputs.push(Output::Send { to, message: PeerMessage { body } });
    }

    /// What this node said to itself.
    pub(super) fn hear_whispers(&mut self) {
        for message in std::mem::take(&mut self.whispers) {
            self.step_split(self.config.node, message);
        }
    }

    /// Asks to be called by home's leader.
    fn hail(&mut self, id: GroupId) {
        let Some(home) = self.home_of(id) else { return };
        let mut nodes = self.nodes_of(home);
        // Until placement has told where home is, it is where this group was born.
        nodes.extend(self.nodes_of(id));
        for node in nodes {
            self.say(node, Said::Hail(Hail { home: home.0, group: id.0 }));
        }
    }

    /// Calls the leader of a group, at one node or at all that may have it.
    fn call(&mut self, home: GroupId, group: GroupId, only: Option<NodeId>) {
        let nodes = match only {
            Some(node) => BTreeSet::from([node]),
            None => {
                let mut nodes = self.nodes_of(group);
                nodes.extend(self.nodes_of(home));
                nodes
            }
        };
        let alarms = self.groups.get(&home).map(|home| &home.machine.state().alarms);
        let alarms: Vec<i32> = alarms.into_iter().flatten().map(|alarm| alarm.alarm).collect();
        let Some(role) = self.role(home) else { return };
        let known: BTreeSet<GroupId> = role.sequencer.iter().flat_map(Sequencer::groups).collect();
        let others = role.weights.iter().filter(|(id, _)| **id != group && known.contains(id));
        let others = others.map(|(_, weight)| weight.size).sum();
        let (epoch, seal) = (role.term, role.unsealed.contains(&group));
        let end = role.ends.get(&group);
        let known = end.map_or((0, 0, 0, 0), |e| (e.term, e.number, e.said, e.heard));
        let (term, number, said, heard) = known;
        let (home, group) = (home.0, group.0);
        for node in nodes {
            let alarms = alarms.clone();
            let call = Call { home, epoch, group, seal, term, number, said, heard, others, alarms };
            self.say(node, Said::Call(call));
        }
    }

    /// For whoever looks at the group.
    fn count_costs(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (Some(role), Some(kept)) = (&mut group.role, group.machine.kept()) else { return };
        let costs = &group.shared.split;
        let count = |revisions: i64| u64::try_from(revisions).unwrap_or(0);
        if let Some(home) = role.sequencer.as_ref().filter(|home| home.is_open()) {
            let before = role.counted.replace(home.last()).unwrap_or_else(|| {
                let (began, unused) = home.began();
                costs.skipped(count(unused));
                began
            });
            costs.granted(count(home.last() - before));
        }
        let apart = (!role.participant.is_live()).then_some(kept.home);
        let waits_for = role.sequencer.as_ref().and_then(Sequencer::waits_for).or(apart);
        costs.waits(waits_for.map_or(0, |group| group.0), self.now_ms);
    }

    /// A tick passed.
    pub(super) fn tick_roles(&mut self) {
        let now_ms = self.now_ms;
        for id in self.roles.clone() {
            self.touch(id);
            self.count_costs(id);
            let Some(role) = self.role(id) else { continue };
            // Home may not know of a group whose first word was lost.
            let apart = !role.participant.is_live();
            let mut groups = BTreeSet::new();
            if let Some(home) = &mut role.sequencer {
                groups = home.groups().collect();
                let waiting: BTreeSet<TxId> = home.waiting().collect();
                role.voting.retain(|tx, _| waiting.contains(tx));
                for tx in waiting {
                    if now_ms > *role.voting.entry(tx).or_insert(now_ms) + VOTE_MS {
                        home.kill(tx);
                    }
                }
            }
            for group in groups {
                self.call(id, group, None);
            }
            if apart {
                self.hail(id);
            }
            self.tell_weight(id);
        }
        for id in std::mem::take(&mut self.partings) {
            self.check_parting(id);
        }
    }

    /// Tells home how much the group has, and of history.
    fn tell_weight(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let state = group.machine.state();
        let (size, swept, compacted) = (state.size, state.swept, state.compacted);
        let (Some(kept), Some(role)) = (group.machine.kept(), &mut group.role) else { return };
        let Some(own) = &role.own else { return };
        let (home, node) = (kept.home.0, own.node);
        let refused = std::mem::take(&mut role.refused);
        let weight = Weight { home, group: id.0, size, refused, swept, compacted };
        self.say(node, Said::Weight(weight));
    }

    /// A group has told how much it has. Where it has refused something the tenant has no space.
    fn weighed(&mut self, from: NodeId, weight: &Weight) {
        let id = GroupId(weight.home);
        let Some(role) = self.role(id).filter(|role| role.sequencer.is_some()) else { return };
        role.weights.insert(GroupId(weight.group), *weight);
        self.answer_compacted(id);
        let rings = |group: &Group| group.machine.alarm(AlarmType::Nospace);
        if weight.refused && !self.group(id).is_some_and(rings) {
            let alarm = AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: from.0,
                alarm: AlarmType::Nospace as i32,
            };
            self.queue(id, Then::Split(0, None), command::Body::Alarm(alarm));
            self.touch(id);
        }
    }

    /// Somebody said something about a split tenant.
    pub(super) fn step_split(&mut self, from: NodeId, message: SplitMessage) {
        match message.body {
            Some(Said::Call(call)) => self.called(from, &call),
            Some(Said::Hail(hail)) => {
                let home = GroupId(hail.home);
                if self.role(home).is_some_and(|role| role.sequencer.is_some()) {
                    self.call(home, GroupId(hail.group), Some(from));
                }
            }
            Some(Said::Sealed(Sealed { home, group, epoch, last, absorbed })) => {
                let (id, group) = (GroupId(home), GroupId(group));
                self.touch(id);
                let Some(role) = self.role(id) else { return };
                // Whom it has absorbed it speaks for: nothing is in their logs that is not in its own.
                let absorbed = absorbed.into_iter().map(GroupId);
                for group in absorbed.chain([group]) {
                    if epoch >= role.term {
                        role.unsealed.remove(&group);
                    }
                    if let Some(home) = &mut role.sequencer {
                        home.sealed(group, epoch, last);
                    }
                }
            }
            Some(Said::Broken(broken)) => self.broken(&broken),
            Some(Said::Weight(weight)) => self.weighed(from, &weight),
            Some(Said::Word(word)) => self.heard_word(from, word),
            Some(said) => self.step_merge(from, said),
            None => {}
        }
    }

    fn called(&mut self, from: NodeId, call: &Call) {
        let id = GroupId(call.group);
        if self.role(id).is_none() {
            return;
        }
        self.touch(id);
        let Some(role) = self.role(id) else { return };
        if call.epoch >= role.own.as_ref().map_or(0, |own| own.epoch) {
            (role.others, role.alarms) = (call.others, call.alarms.clone());
        }
        if call.seal {
            role.participant.seal(call.epoch);
            if !role.sealing.contains(&(from, call.epoch)) {
                role.sealing.push((from, call.epoch));
            }
        }
        let begins = match &mut role.own {
            None => true,
            Some(own) if call.epoch < own.epoch => false,
            Some(own) if call.epoch > own.epoch || own.node != from => true,
            Some(own) if (own.term, own.number) == (call.term, call.number) => {
                let arrives = call.heard == own.said || call.heard > own.arrived;
                own.arrived = call.heard;
                own.stuck = if arrives { 0 } else { own.stuck + 1 };
                // What was said before the call has come before it.
                call.said > own.heard || own.stuck > STUCK_CALLS
            }
            Some(own) => {
                own.stuck += 1;
                own.stuck > STUCK_CALLS
            }
        };
        if begins {
            self.connect(id, from, call.epoch);
        }
    }

    fn connect(&mut self, id: GroupId, node: NodeId, epoch: u64) {
        let Some(role) = self.role(id) else { return };
        let number = role.participant.connect(epoch);
        role.freezing = 0;
        role.merging.iter_mut().for_each(Merging::wait);
        let term = role.term;
        role.own = Some(End { node, epoch, term, number, said: 0, heard: 0, arrived: 0, stuck: 0 });
    }

    fn broken(&mut self, broken: &Broken) {
        let id = GroupId(broken.group);
        let Some(role) = self.role(id) else { return };
        let name = (broken.term, broken.number);
        let Some(own) = role.own.as_ref().filter(|own| (own.term, own.number) == name) else {
            return;
        };
        let (node, epoch) = (own.node, own.epoch);
        self.touch(id);
        self.connect(id, node, epoch);
    }

    fn heard_word(&mut self, from: NodeId, said: StreamWord) {
        match said.word {
            Some(Word::Up(_)) => self.heard_up(from, said),
            Some(Word::Down(_)) => self.heard_down(from, said),
            None => {}
        }
    }

    fn heard_up(&mut self, from: NodeId, said: StreamWord) {
        let StreamWord { home, group, term, number, count, word } = said;
        let (home, group) = (GroupId(home), GroupId(group));
        let Some(Word::Up(word)) = word else { return };
        let broken = Broken { home: home.0, group: group.0, term, number };
        let Some(role) = self.role(home).filter(|role| role.sequencer.is_some()) else {
            return self.say(from, Said::Broken(broken));
        };
        let known = role.ends.get(&group).map(|end| (end.term, end.number));
        if known.is_some_and(|known| (term, number) < known) {
            return;
        }
        if known.is_none_or(|known| (term, number) > known) && count == 1 {
            let epoch = role.term;
            let end =
                End { node: from, epoch, term, number, said: 0, heard: 0, arrived: 0, stuck: 0 };
            role.ends.insert(group, end);
        }
        let end = role.ends.get_mut(&group).filter(|end| (end.term, end.number) == (term, number));
        if end.as_ref().is_some_and(|end| count <= end.heard) {
            // Once more.
            return;
        }
        let next = end.filter(|end| count == end.heard + 1);
        let word = wire::up_in(term, number, word);
        let (Some(end), Some(word)) = (next, word) else {
            let stream = StreamId { group, term, number };
            role.ends.remove(&group);
            if let Some(home) = &mut role.sequencer {
                home.disconnected(stream);
            }
            self.touch(home);
            return self.say(from, Said::Broken(broken));
        };
        end.heard = count;
        end.node = from;
        if let Some(sequencer) = &mut role.sequencer {
            sequencer.hear(StreamId { group, term, number }, word);
        }
        self.touch(home);
    }

    fn heard_down(&mut self, from: NodeId, said: StreamWord) {
        let id = GroupId(said.group);
        let Some(Word::Down(word)) = said.word else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(role) = &mut group.role else { return };
        let name = (said.term, said.number);
        let own = role.own.as_mut().filter(|own| (own.term, own.number) == name);
        let Some(own) = own.filter(|own| own.node == from) else { return };
        if said.count <= own.heard {
            // Once more.
            return;
        }
        let (node, epoch) = (own.node, own.epoch);
        let word = wire::down_in(word).filter(|_| said.count == own.heard + 1);
        own.heard = said.count;
        match word {
            Some(word) => role.participant.hear(&Applied(&group.machine), word),
            None => self.connect(id, node, epoch),
        }
        self.touch(id);
    }

    /// Tells of seals that are applied.
    fn tell_seals(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (Some(kept), Some(role)) = (group.machine.kept(), &mut group.role) else { return };
        let (seal, last, home) = (kept.seal, kept.revision, kept.home.0);
        let absorbed: Vec<u64> = kept.absorbed.iter().map(|group| group.0).collect();
        let applied = |(_, epoch): &mut (NodeId, u64)| *epoch <= seal;
        let told: Vec<(NodeId, u64)> = role.sealing.extract_if(.., applied).collect();
        for (node, _) in told {
            let absorbed = absorbed.clone();
            let sealed = Sealed { home, group: id.0, epoch: seal, last, absorbed };
            self.say(node, Said::Sealed(sealed));
        }
    }
}

impl Group {
    /// Is its leadership on its way to another replica?
    pub(super) fn is_transferring(&self) -> bool {
        let handing = self.role.as_ref().is_some_and(|role| role.handing.is_some());
        handing || self.core.is_transferring()
    }

    /// Is anything under way beside which its range is not to change?
    pub(super) fn is_changing(&self) -> bool {
        let moves = self.is_transferring() || self.has_change_under_way();
        self.parting.is_some() || self.is_merging() || moves
    }

    /// Only the leader that has proposed the tenant's first split goes on without a gap.
    pub(super) fn is_first_split_under_way(&self) -> bool {
        self.parting.is_some() && self.role.is_none()
    }

    /// Is a change of members under way?
    fn has_change_under_way(&self) -> bool {
        let has_learner = self.machine.state().members.iter().any(|member| member.is_learner);
        has_learner || self.core.has_pending_change()
    }
}
