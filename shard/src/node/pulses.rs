//! Heartbeats of groups at rest: many groups in one message, and no group touched.
//!
//! A group is *at rest* on a node when nothing is under way in it: a leader is known, everything is
//! committed, applied and durable, and, on the leader, every follower has it all. Then all that
//! Raft does is count ticks and say that it is there. This is done here for all groups together, in
//! a list that is walked from end to end at every tick: the leader's heartbeats and their answers
//! go as one packed message per pair of nodes ([`Beats`]), and what they would have changed in
//! Raft's own counters is noted in the list.
//!
//! A packed heartbeat is that heartbeat, only shorter. Whoever gets one for a group that is not at
//! rest here, or of another term, leader or commit than it knows, puts the message together again
//! and steps it like any other. So a heartbeat means the same on both ways, is sent as often, and
//! groups fail over as fast as they ever did; nothing sleeps (see the design: no hibernation).
//!
//! Invariants:
//! - Before anything else happens to a group it is *woken*: its Raft core gets the ticks that went
//!   by, and who has answered, as if it had counted itself. A core whose pulse is at rest is only
//!   looked at for what does not change at rest.
//! - At rest only what Raft would do as well is done without it. What needs a decision (a leader that
//!   is silent, followers that do not answer, a lease whose time is up) wakes the group first.
//! - A group at rest has promised nothing that is not durable, so its answers may leave at once.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use proto::cluster::raft::{Beats, GroupMessage, Message, PeerMessage, peer_message};
use proto::{GroupId, NodeId};
use raft::eraftpb::MessageType;

use super::{Node, NodeError, Output};
use crate::group::Group;

/// How far the next group of a packed message may be from the last one before it is searched for.
const NEAR: usize = 16;
/// Length of a packed heartbeat.
const RECORD_BYTES: usize = 40;

/// See the module.
#[derive(Default)]
pub(super) struct Pulses {
    /// Ascending by group.
    list: Vec<Pulse>,
    /// Ticks so far.
    tick: u64,
    packs: Packs,
}

/// Records of heartbeats, and of answers, by node.
#[derive(Default)]
struct Packs {
    /// To be sent with the round.
    waiting: BTreeMap<(NodeId, bool), Vec<u8>>,
    /// How long the last ones were: as much room is taken at once.
    lengths: BTreeMap<(NodeId, bool), usize>,
}

impl Packs {
    /// Puts a heartbeat to a node, or the answer to one, behind the others.
    fn add(&mut self, to: NodeId, is_answer: bool, beat: &Beat) {
        let place = (to, is_answer);
        let room = || self.lengths.get(&place).copied().unwrap_or(0);
        let records = self.waiting.entry(place);
        beat.pack(records.or_insert_with(|| Vec::with_capacity(room())));
    }

    fn take(&mut self) -> BTreeMap<(NodeId, bool), Vec<u8>> {
        let packs = std::mem::take(&mut self.waiting);
        self.lengths.extend(packs.iter().map(|(place, records)| (*place, records.len())));
        packs
    }
}

struct Pulse {
    group: GroupId,
    /// `None` while the group is not at rest: it is ticked by itself.
    rest: Option<Rest>,
}

/// What is known of a group at rest.
struct Rest {
    replica: u64,
    term: u64,
    commit: u64,
    leader: u64,
    leader_node: NodeId,
    /// Whom this replica sends heartbeats; nobody unless it leads.
    peers: Vec<Peer>,
    /// The tick as of which Raft's own counter of ticks stands.
    from: u64,
    /// The tick at which the leader was heard last, or at which a leader counted answers last.
    since: u64,
    /// A lease has to be looked at then.
    lease_ms: u64,
    /// The group still has the memory of its busy time.
    is_roomy: bool,
}

struct Peer {
    replica: u64,
    node: NodeId,
    /// Has answered since the answers were counted last.
    active: bool,
}

/// One heartbeat of a packed message, or its answer.
struct Beat {
    group: GroupId,
    to: u64,
    from: u64,
    term: u64,
    commit: u64,
}

// === impl Beat ===

impl Beat {
    /// All records of a packed message, or none if the last one is not whole.
    fn read(records: &[u8]) -> Option<impl Iterator<Item = Beat>> {
        let (whole, rest) = records.as_chunks::<RECORD_BYTES>();
        let beat = |record: &[u8; RECORD_BYTES]| {
            let mut record = record.as_slice();
            Beat {
                group: GroupId(record.get_u64_le()),
                to: record.get_u64_le(),
                from: record.get_u64_le(),
                term: record.get_u64_le(),
                commit: record.get_u64_le(),
            }
        };
        rest.is_empty().then(|| whole.iter().map(beat))
    }

    fn pack(&self, records: &mut Vec<u8>) {
        let mut record = [0; RECORD_BYTES];
        let mut fields = record.as_mut_slice();
        for field in [self.group.0, self.to, self.from, self.term, self.commit] {
            fields.put_u64_le(field);
        }
        records.extend_from_slice(&record);
    }

    /// The message that it stands for.
    fn whole(&self, is_answer: bool) -> GroupMessage {
        let kind = match is_answer {
            true => MessageType::MsgHeartbeatResponse,
            false => MessageType::MsgHeartbeat,
        };
        let message = Message {
            kind: kind as u32,
            to: self.to,
            from: self.from,
            term: self.term,
            commit: self.commit,
            ..Default::default()
        };
        GroupMessage { group: self.group.0, message: Some(message) }
    }
}

// === impl Rest ===

impl Rest {
    fn leads(&self) -> bool {
        self.leader == self.replica
    }

    /// Can the group stay at rest over this tick?
    fn lasts(&mut self, tick: u64, now_ms: u64, election_ticks: u64) -> bool {
        if now_ms >= self.lease_ms {
            return false;
        }
        if tick < self.since + election_ticks {
            return true;
        }
        // An election timeout is over. If all have answered, Raft would begin to count anew.
        let counted = self.leads() && self.peers.iter().all(|peer| peer.active);
        if counted {
            self.since = tick;
            self.peers.iter_mut().for_each(|peer| peer.active = false);
        }
        counted
    }

    /// A heartbeat came. Says whether Raft would only have noted that the leader is there.
    fn hears(&mut self, from: NodeId, beat: &Beat, tick: u64) -> bool {
        let plain = !self.leads()
            && (self.leader, self.leader_node) == (beat.from, from)
            && (self.replica, self.term) == (beat.to, beat.term)
            && beat.commit == self.commit;
        if plain {
            self.since = tick;
        }
        plain
    }

    /// An answer came. Says whether Raft would only have noted that the follower is there.
    fn is_answered(&mut self, from: NodeId, beat: &Beat) -> bool {
        let plain = self.leads()
            && (self.replica, self.term) == (beat.to, beat.term)
            && self.commit == beat.commit;
        let is_it = |peer: &&mut Peer| peer.replica == beat.from && peer.node == from;
        match self.peers.iter_mut().find(is_it).filter(|_| plain) {
            Some(peer) => {
                peer.active = true;
                true
            }
            None => false,
        }
    }
}

// === impl Pulses ===

impl Pulses {
    /// A group came, which is not at rest yet.
    pub(super) fn add(&mut self, group: GroupId) {
        if let Err(place) = self.list.binary_search_by_key(&group, |pulse| pulse.group) {
            self.list.insert(place, Pulse { group, rest: None });
        }
    }

    /// A group is gone.
    pub(super) fn remove(&mut self, group: GroupId) {
        if let Ok(place) = self.list.binary_search_by_key(&group, |pulse| pulse.group) {
            self.list.remove(place);
        }
    }

    fn rest_mut(&mut self, group: GroupId) -> Option<&mut Option<Rest>> {
        let place = self.list.binary_search_by_key(&group, |pulse| pulse.group).ok()?;
        self.list.get_mut(place).map(|pulse| &mut pulse.rest)
    }

    /// The rest of a group, which is likely to be found soon behind `place`.
    fn rest_near(&mut self, group: GroupId, place: &mut usize) -> Option<&mut Rest> {
        let near = self.list.iter().skip(*place).take(NEAR).position(|pulse| pulse.group == group);
        let found = match near {
            Some(ahead) => *place + ahead,
            None => self.list.binary_search_by_key(&group, |pulse| pulse.group).ok()?,
        };
        *place = found + 1;
        self.list.get_mut(found)?.rest.as_mut()
    }
}

impl Node {
    /// A tick passed: heartbeats for all that stays at rest. Gives the other groups, which are
    /// awake now, to be ticked one by one.
    pub(super) fn pulse(&mut self) -> Vec<GroupId> {
        let tick = self.pulses.tick + 1;
        let election_ticks = self.config.election_ticks as u64;
        let (mut others, mut idle) = (Vec::new(), Vec::new());
        let Pulses { list, packs, .. } = &mut self.pulses;
        for Pulse { group, rest } in list {
            let now_ms = self.now_ms;
            let lasting =
                rest.as_mut().and_then(|r| r.lasts(tick, now_ms, election_ticks).then_some(r));
            let Some(rest) = lasting else {
                others.push(*group);
                continue;
            };
            // A group that rests between two requests of a client would only have to ask for the
            // same memory again.
            if rest.is_roomy && tick >= rest.from + election_ticks {
                rest.is_roomy = false;
                idle.push(*group);
            }
            let Rest { replica, term, commit, .. } = *rest;
            for peer in &rest.peers {
                let beat = Beat { group: *group, to: peer.replica, from: replica, term, commit };
                packs.add(peer.node, false, &beat);
            }
        }
        for id in idle {
            if let Some(group) = self.groups.get_mut(&id) {
                group.slim();
            }
        }
        // As of the tick before: this one they count themselves.
        for id in &others {
            self.wake(*id);
        }
        self.pulses.tick = tick;
        others
    }

    /// Something is about to happen to a group: its core is brought up to date, and it is driven at
    /// the end of the round.
    pub(super) fn touch(&mut self, id: GroupId) {
        self.wake(id);
        self.touched.insert(id);
    }

    /// Ends a group's rest.
    pub(super) fn wake(&mut self, id: GroupId) {
        let tick = self.pulses.tick;
        let Some(rest) = self.pulses.rest_mut(id).and_then(Option::take) else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let active = rest.peers.iter().map(|peer| (peer.replica, peer.active));
        group.core.wake(tick - rest.from, (tick - rest.since) as usize, active);
    }

    /// Lets a group rest if nothing is under way in it.
    pub(super) fn lull(&mut self, id: GroupId) {
        let tick = self.pulses.tick;
        let rest = self.groups.get(&id).and_then(|group| rest_of(group, tick));
        if let Some(place) = self.pulses.rest_mut(id) {
            *place = rest;
        }
    }

    /// Packed heartbeats came, or answers to them.
    pub(super) fn step_beats(&mut self, from: NodeId, beats: &Beats) -> Result<(), NodeError> {
        let Some(records) = Beat::read(&beats.records) else {
            let bytes = beats.records.len();
            tracing::warn!(node = from.0, bytes, "packed heartbeats that are not whole: refused");
            return Ok(());
        };
        let mut place = 0;
        for beat in records {
            let tick = self.pulses.tick;
            let rest = self.pulses.rest_near(beat.group, &mut place);
            let is_plain = rest.is_some_and(|rest| match beats.answers {
                true => rest.is_answered(from, &beat),
                false => rest.hears(from, &beat, tick),
            });
            if !is_plain {
                self.hear_raft(from, beat.whole(beats.answers))?;
            } else if !beats.answers {
                // At rest this replica has committed as much as it was told, and no more.
                let answer = Beat { to: beat.from, from: beat.to, ..beat };
                self.pulses.packs.add(from, true, &answer);
            }
        }
        Ok(())
    }

    /// Puts out what is packed.
    pub(super) fn send_beats(&mut self) {
        for ((to, answers), records) in self.pulses.packs.take() {
            let beats = Beats { answers, records: records.into() };
            let body = Some(peer_message::Body::Beats(beats));
            self.outputs.push(Output::Send { to, message: PeerMessage { body } });
        }
    }
}

/// How a group rests from now on, if it is at rest.
fn rest_of(group: &Group, tick: u64) -> Option<Rest> {
    let busy = group.stopped.is_some()
        || group.seed_anew
        || group.shared.is_withheld()
        || group.eager.is_some()
        || group.transfer.is_some()
        || !group.queued.is_empty()
        || !group.reads.is_empty();
    if busy || (group.core.is_leader() && !group.serving) {
        return None;
    }
    let rest = group.core.at_rest()?;
    let state = group.machine.state();
    if state.applied_index != rest.commit || state.removed.contains(&rest.leader) {
        return None;
    }
    let peer = |(replica, active): &(u64, bool)| {
        let node = group.node_of(*replica);
        Peer { replica: *replica, node, active: *active }
    };
    Some(Rest {
        replica: group.core.key().replica,
        term: group.core.term(),
        commit: rest.commit,
        leader: rest.leader,
        leader_node: group.node_of(rest.leader),
        peers: rest.peers.iter().map(peer).collect(),
        from: tick,
        since: tick - (rest.elapsed as u64).min(tick),
        lease_ms: group.lessor().next_ms(),
        is_roomy: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: NodeId = NodeId(7);
    const TICKS: u64 = 10;

    fn follower() -> Rest {
        Rest {
            replica: 2,
            term: 3,
            commit: 9,
            leader: 1,
            leader_node: LEADER,
            peers: Vec::new(),
            from: 0,
            since: 0,
            lease_ms: u64::MAX,
            is_roomy: true,
        }
    }

    fn leader() -> Rest {
        let peers = [2, 3].map(|replica| Peer { replica, node: NodeId(replica), active: false });
        Rest { replica: 1, peers: peers.into(), ..follower() }
    }

    fn beat() -> Beat {
        Beat { group: GroupId(5), to: 2, from: 1, term: 3, commit: 9 }
    }

    #[test]
    fn what_is_packed_comes_out_as_the_same_messages() {
        let mut records = Vec::new();
        beat().pack(&mut records);
        Beat { group: GroupId(6), commit: u64::MAX, ..beat() }.pack(&mut records);
        let read = |records| -> Option<Vec<GroupMessage>> {
            Beat::read(records).map(|beats| beats.map(|beat| beat.whole(false)).collect())
        };
        let out = read(&records).unwrap();
        let message = out[0].message.clone().unwrap();
        assert_eq!((out.len(), out[0].group, out[1].group), (2, 5, 6));
        assert_eq!(message.kind, MessageType::MsgHeartbeat as u32);
        assert_eq!((message.to, message.from, message.term, message.commit), (2, 1, 3, 9));
        assert_eq!(out[1].message.as_ref().unwrap().commit, u64::MAX);
        assert_eq!(read(&records[..records.len() - 1]), None, "one that is not whole");
        assert_eq!(read(&[]), Some(Vec::new()));
    }

    #[test]
    fn only_a_heartbeat_that_tells_nothing_new_is_not_stepped() {
        assert!(follower().hears(LEADER, &beat(), 4));
        let others = [
            Beat { term: 4, ..beat() },
            Beat { term: 2, ..beat() },
            Beat { commit: 10, ..beat() },
            Beat { from: 3, ..beat() },
            Beat { to: 8, ..beat() },
        ];
        assert!(others.iter().all(|other| !follower().hears(LEADER, other, 4)));
        assert!(!follower().hears(NodeId(8), &beat(), 4), "another node speaks for the leader");
        assert!(!leader().hears(LEADER, &beat(), 4));
    }

    #[test]
    fn a_follower_wakes_an_election_timeout_after_the_last_word_of_its_leader() {
        let mut rest = follower();
        assert!(rest.lasts(TICKS - 1, 0, TICKS) && rest.hears(LEADER, &beat(), TICKS - 1));
        assert!(rest.lasts(2 * TICKS - 2, 0, TICKS));
        assert!(!rest.lasts(2 * TICKS - 1, 0, TICKS));
    }

    #[test]
    fn a_leader_wakes_when_a_follower_is_silent_for_an_election_timeout() {
        let answer = |from| Beat { to: 1, from, ..beat() };
        let mut rest = leader();
        assert!(rest.is_answered(NodeId(2), &answer(2)) && rest.is_answered(NodeId(3), &answer(3)));
        assert!(!rest.is_answered(NodeId(4), &answer(4)), "nobody knows that one");
        assert!(rest.lasts(TICKS, 0, TICKS), "all have answered");
        assert!(rest.is_answered(NodeId(2), &answer(2)));
        assert!(rest.lasts(2 * TICKS - 1, 0, TICKS) && !rest.lasts(2 * TICKS, 0, TICKS));
    }

    #[test]
    fn a_lease_whose_time_is_up_wakes_its_leader() {
        let mut rest = Rest { lease_ms: 50, ..leader() };
        assert!(rest.lasts(1, 49, TICKS) && !rest.lasts(1, 50, TICKS));
    }
}
