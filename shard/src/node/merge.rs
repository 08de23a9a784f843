//! Merges on a node: two neighbours of a split tenant become one group again (`split/entry.rs`).
//!
//! The leader of the left group drives, and its log decides:
//!
//! ```text
//!   left    ── Begin ──> asks all its nodes ──────────────────────> Absorb | Abort
//!   right      its leader: nothing else under way ── Freeze ──┐        │
//!              every replica: a checkpoint ── "frozen" ───────┘        └─> on each node: its rows are
//!                                                                          the left one's, it leaves
//! ```
//!
//! Both groups have their replicas on the same nodes, so that rows only change hands. A replica says
//! that it is frozen when that is on its disk: so the left one, which may have to apply the log
//! again after a crash, finds it as it was. A replica of the left group that does not find the right
//! one like that cannot go on, and is brought anew from another node.
//!
//! Home's map lists the right group until the left one has registered with the keys of both, and
//! whoever comes to lead home asks all that are listed to seal. So an absorbed group stays, without
//! rows, until the left one's leader is registered, and tells the nodes to let it go. Its seal, should
//! it have lost its quorum by then, is told with that of the left one.
//!
//! Whoever is frozen for longer asks the left group, which answers after a read round, whether the
//! merge is under way still; home answers for a left group that is no more. A leader of the left group
//! that did not begin a merge itself aborts it.
//! The left group remembers whom it has absorbed until all its nodes say that nothing is left there.
//!
//! Invariants:
//! - While a merge is under way the members of both groups stay the same.
//! - A frozen replica leaves only when the left one here has its rows, by its log or by a snapshot,
//!   and home's map does not list its group.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use proto::cluster::group::{MergeRange, RangePlace, Ranges};
use proto::cluster::split::split_message::Body as Said;
use proto::cluster::split::{AskFrozen, Fate, Frozen, Rest};
use proto::group::{GroupError, Reply};
use proto::{Error, GroupId, NodeId};

use super::requests::place_of;
use super::split::{Applied, Proposal};
use super::{Node, NodeError, Output};
use crate::group::reads::Purpose;
use crate::group::{Group, Ticket};
use crate::split::entry::{Entry, Merge};
use crate::split::participant::RangeChange;
use crate::split::wire;

/// A merge that has not come to its end within this time is given up: requests wait for it.
const MERGE_MS: u64 = 2000;
/// Bits of a merge's number that tell the place in the log.
const INDEX_BITS: u32 = 40;
/// Between two entries that say the same.
const AGAIN_MS: u64 = 1000;

/// A merge that this leader drives from the left.
#[derive(Debug)]
pub(crate) struct Merging {
    ticket: Ticket,
    merge: Merge,
    /// First key of the right group.
    at: Bytes,
    until_ms: u64,
    /// Its end is to be proposed when nothing else is under way.
    absorbing: bool,
    /// What the nodes have said.
    frozen: Vec<(NodeId, Frozen)>,
}

/// A replica whose rows are another one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swallowed {
    /// No checkpoint says so yet.
    Fresh,
    /// One that is on its way does.
    Written,
    /// It is on the disk.
    Durable,
}

/// Somebody wants to know that a replica here is frozen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    node: NodeId,
    merge: Merge,
    left: GroupId,
    /// The replica was seen frozen when it had applied so much.
    since: Option<u64>,
}

impl Node {
    // === the left side ===

    /// The right neighbour is to be merged into this group.
    pub(super) fn merge_range(&mut self, id: GroupId, ticket: Ticket, wish: &MergeRange) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !group.serving {
            let error = group.elsewhere();
            return self.answer(ticket, Err(error));
        }
        let range = group.machine.state().range();
        if range.contains(&wish.at) && range.start != wish.at {
            let places = vec![place_of(group)];
            return self.answer(ticket, Ok(Reply::Ranges(Ranges { places })));
        }
        if range.end.as_ref() != Some(&wish.at) || wish.right == 0 {
            return self.answer(ticket, Err(GroupError::not_done(Error::StaleRange, None)));
        }
        let busy = group.is_changing();
        let Some(role) = &mut group.role else {
            let error = group.elsewhere();
            return self.answer(ticket, Err(error));
        };
        if busy || role.merging.is_some() || !role.participant.is_live() {
            return self.answer(ticket, Err(GroupError::not_done(Error::TooManyRequests, None)));
        }
        // No other try has it: neither in this term, of which this entry will be a later one, nor in
        // another.
        let number = (group.core.term() << INDEX_BITS) + group.core.last_index();
        let merge = Merge { number, right: GroupId(wish.right) };
        role.participant.begin(&Applied(&group.machine), merge);
        role.merging = Some(Merging {
            ticket,
            merge,
            at: wish.at.clone(),
            until_ms: self.now_ms + MERGE_MS,
            absorbing: false,
            frozen: Vec::new(),
        });
        self.merges.insert(id);
    }

    /// Lets a merge go on, from the left. What is not known yet is asked for, if `asks`: not as an
    /// answer to an answer, or that would go round for ever.
    fn drive_left(&mut self, id: GroupId, asks: bool) {
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (Some(kept), Some(role)) = (group.machine.kept(), &mut group.role) else { return };
        let own = role.merging.as_mut();
        let Some(merge) = kept.merging else {
            // It has not begun yet.
            if let Some(own) = own.filter(|own| now_ms > own.until_ms) {
                let number = own.merge.number;
                self.end_merge(id, number, None);
                self.note_merging(id);
            }
            return;
        };
        let own = own.filter(|own| own.merge == merge && now_ms <= own.until_ms);
        let Some(own) = own else {
            if now_ms >= role.noted_ms + AGAIN_MS {
                role.noted_ms = now_ms;
                role.participant.abort(merge.number);
            }
            return;
        };
        if own.absorbing {
            return;
        }
        let state = group.machine.state();
        match own.agreed(state.members.iter().map(|member| member.id), state.compacted) {
            Some((place, revision)) => {
                own.absorbing = true;
                let change = RangeChange::Absorb { merge: merge.number, place, revision };
                role.participant.change(change);
            }
            None if !asks => {}
            None => {
                let nodes: Vec<u64> = state.members.iter().map(|member| member.id).collect();
                let (merge, right) = (merge.number, merge.right.0);
                for node in nodes {
                    let ask = AskFrozen { merge, left: id.0, right };
                    self.say(NodeId(node), Said::AskFrozen(ask));
                }
            }
        }
    }

    /// A replica of the right group is frozen.
    fn heard_frozen(&mut self, from: NodeId, frozen: Frozen) {
        let id = GroupId(frozen.left);
        let own = self.role(id).and_then(|role| role.merging.as_mut());
        let Some(own) = own.filter(|own| own.merge.number == frozen.merge) else { return };
        own.frozen.retain(|(node, _)| *node != from);
        own.frozen.push((from, frozen));
        self.touch(id);
        self.drive_left(id, false);
    }

    /// The last entry of a merge cannot be proposed now: home has something undecided.
    pub(super) fn absorb_later(&mut self, id: GroupId, tag: i64) {
        let Some(role) = self.role(id) else { return };
        role.participant.ranged(tag);
        if let Some(own) = &mut role.merging {
            own.absorbing = false;
        }
    }

    /// A merge is over: done, with this range, or not. Nothing happens if this leader does not drive it.
    fn end_merge(&mut self, id: GroupId, number: u64, done: Option<RangePlace>) {
        let Some(role) = self.role(id) else { return };
        let Some(own) = role.merging.take_if(|own| own.merge.number == number) else { return };
        let answer = match done {
            Some(place) => Ok(Reply::Ranges(Ranges { places: vec![place] })),
            None => Err(GroupError::not_done(Error::TooManyRequests, None)),
        };
        self.answer(own.ticket, answer);
    }

    /// An entry was applied that may be about a merge.
    pub(super) fn merge_applied(&mut self, id: GroupId, own: bool, entry: &Entry, refused: bool) {
        match entry {
            Entry::Begin { .. } => self.drive_left(id, true),
            Entry::Freeze { .. } => self.tell_frozen(id),
            Entry::Absorb { merge, .. } if !refused => {
                let place = self.group(id).map(place_of);
                self.end_merge(id, *merge, place);
            }
            Entry::Absorb { .. } if own => {
                let Some(role) = self.role(id) else { return };
                if let Some(driven) = &mut role.merging {
                    driven.absorbing = false;
                }
                if let Some(home) = &mut role.sequencer {
                    home.reopen();
                }
            }
            Entry::Abort { merge } => self.end_merge(id, *merge, None),
            Entry::Thaw { .. } => {
                if let Some(role) = self.role(id) {
                    role.participant.ranged(0);
                }
            }
            Entry::Absorb { .. } | Entry::Gone { .. } => {}
            _ => return,
        }
        self.note_merging(id);
    }

    /// Notes whether a group has to do with a merge, so that ticks look at it.
    pub(super) fn note_merging(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else {
            self.merges.remove(&id);
            return;
        };
        let driven = group.role.as_ref().is_some_and(|role| role.merging.is_some());
        let remembers = group.machine.kept().is_some_and(|kept| !kept.absorbed.is_empty());
        match driven || remembers || group.is_merging() {
            true => self.merges.insert(id),
            false => self.merges.remove(&id),
        };
    }

    // === the right side ===

    /// A group's left neighbour wants to absorb it.
    fn asked_frozen(&mut self, from: NodeId, ask: AskFrozen) {
        let (id, left) = (GroupId(ask.right), GroupId(ask.left));
        let Some(group) = self.groups.get_mut(&id) else { return };
        let merge = Merge { number: ask.merge, right: id };
        // It would not be said to be frozen before it is swept.
        let busy = group.is_changing() || group.machine.needs_sweep();
        let known = self.askers.get(&id).filter(|it| it.merge == merge);
        let since = known.and_then(|it| it.since);
        self.askers.insert(id, Asker { node: from, merge, left, since });
        if let (Some(kept), Some(role)) = (group.machine.kept(), &mut group.role)
            && !busy
            && role.participant.is_live()
            && role.freezing != ask.merge
        {
            role.freezing = ask.merge;
            let version = kept.place.version;
            role.participant.change(RangeChange::Freeze { merge: ask.merge, left, version });
            self.touch(id);
        }
        self.tell_frozen(id);
    }

    /// Says that a replica here is frozen, to who has asked, if it is and that is durable.
    fn tell_frozen(&mut self, id: GroupId) {
        let Some(asker) = self.askers.get_mut(&id) else { return };
        let Some(group) = self.groups.get(&id) else { return };
        let Some(kept) = group.machine.kept() else { return };
        let is_out = group.stopped.is_some() || group.shared.is_withheld() || group.seed_anew;
        if is_out || kept.lost || kept.frozen != Some((asker.merge.number, asker.left)) {
            return;
        }
        let since = *asker.since.get_or_insert(group.machine.state().applied_index);
        if group.checkpointed < since {
            self.checkpoints.force(self.now_ms);
            return;
        }
        let state = group.machine.state();
        // What is swept is swept by the one that has the keys: both come to the same.
        if group.machine.needs_sweep() || state.members.iter().any(|member| member.is_learner) {
            return;
        }
        let frozen = Frozen {
            merge: asker.merge.number,
            left: asker.left.0,
            place: Some(wire::place_out(id, &kept.place)),
            revision: kept.revision,
            compacted: state.compacted,
            nodes: state.members.iter().map(|member| member.id).collect(),
        };
        let node = asker.node;
        self.say(node, Said::Frozen(frozen));
    }

    /// A checkpoint is durable, or a tick has passed.
    pub(super) fn tell_all_frozen(&mut self) {
        for id in self.askers.keys().copied().collect::<Vec<_>>() {
            self.tell_frozen(id);
        }
    }

    /// A frozen group's leader asks what is to become of it.
    fn ask_fate(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id).filter(|group| group.role.is_some()) else { return };
        let Some((merge, left)) = group.machine.kept().and_then(|kept| kept.frozen) else { return };
        let Some(home) = self.home_of(id) else { return };
        let (mut nodes, right) = (self.nodes_of(left), id.0);
        nodes.extend(self.nodes_of(id));
        nodes.extend(self.nodes_of(home));
        let (left, home) = (left.0, home.0);
        for node in nodes {
            let ask = Fate { merge, left, right, answer: false, over: false, home };
            self.say(node, Said::Fate(ask));
        }
    }

    fn heard_fate(&mut self, from: NodeId, fate: &Fate) {
        let (left, right) = (GroupId(fate.left), GroupId(fate.right));
        if !fate.answer {
            // Only who leads now knows what is committed.
            let (merge, node) = (fate.merge, from.0);
            let purpose = Purpose::Fate { merge, left: left.0, right: right.0, node };
            for id in BTreeSet::from([left, GroupId(fate.home)]) {
                if let Some(group) = self.groups.get_mut(&id).filter(|group| group.serving) {
                    group.reads.push((0, purpose));
                    self.touch(id);
                }
            }
            return;
        }
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&right) else { return };
        let is_it = group.machine.kept().is_some_and(|it| it.frozen == Some((fate.merge, left)));
        let Some(role) = group.role.as_mut().filter(|_| is_it) else { return };
        if fate.over {
            role.participant.leave();
        } else if now_ms >= role.noted_ms + AGAIN_MS {
            role.noted_ms = now_ms;
            role.participant.thaw(fate.merge);
        }
        self.touch(right);
    }

    /// Answers a frozen group: this leads the left side, or home, and has applied all that is committed.
    /// Home knows when the left one is no more: it went, too, and so it had neither a merge under way nor
    /// one of which anything was left, and home's map lists only who was not absorbed.
    pub(super) fn tell_fate(&mut self, id: GroupId, purpose: Purpose) {
        let Purpose::Fate { merge, left, right, node } = purpose else { return };
        let Some(kept) = self.groups.get(&id).and_then(|group| group.machine.kept()) else {
            return;
        };
        let (left, right) = (GroupId(left), GroupId(right));
        let over = id == left && kept.absorbed.contains(&right);
        let under_way = match id == left {
            true => kept.merging.is_some_and(|own| own.number == merge),
            false => kept.map.contains_key(&left) || !kept.map.contains_key(&right),
        };
        if under_way && !over {
            return;
        }
        let (left, right, home) = (left.0, right.0, kept.home.0);
        let fate = Fate { merge, left, right, answer: true, over, home };
        self.say(NodeId(node), Said::Fate(fate));
    }

    // === what an absorbed group leaves ===

    /// The log says that the right neighbour's keys are this group's. Says whether the replica goes
    /// on.
    pub(super) fn absorb(
        &mut self,
        id: GroupId,
        right: GroupId,
        revision: i64,
    ) -> Result<bool, NodeError> {
        let neighbour = self.groups.get(&right).filter(|neighbour| {
            let kept = neighbour.machine.kept();
            let frozen = kept.filter(|kept| kept.frozen.is_some_and(|(_, left)| left == id));
            let is_out = neighbour.stopped.is_some() || neighbour.seed_anew;
            frozen.is_some_and(|kept| kept.revision == revision) && !is_out
        });
        let Some(neighbour) = neighbour else {
            let reason = format!("group {} is to be absorbed and is not frozen here", right.0);
            self.quarantine(id, reason);
            return Ok(false);
        };
        let state = neighbour.machine.state().clone();
        let published = neighbour.machine.published().clone();
        if let Some(group) = self.groups.get_mut(&id) {
            group.machine.absorb(&state, &published.counts().read())?;
        }
        // Who waits for its keys is to ask there.
        if let Some(role) = self.role(right) {
            role.participant.leave();
        }
        self.touch(right);
        self.swallow(right);
        // It may have been swept further than the other one.
        self.sweeping.insert(id);
        self.note_sharing(id);
        self.outputs.push(Output::Ranged { group: id, revision });
        Ok(true)
    }

    /// A replica's rows are another one's: it may leave when that is durable.
    fn swallow(&mut self, right: GroupId) {
        self.swallowed.insert(right, Swallowed::Fresh);
        if let Some(group) = self.groups.get(&right) {
            group.machine.published().leave();
            // Its watches end; requests are still told that they are to go elsewhere.
            let revision = group.machine.state().revision;
            self.outputs.push(Output::Ranged { group: right, revision });
        }
        self.checkpoints.force(self.now_ms);
    }

    /// A snapshot was adopted, or the node opened: frozen replicas whose keys it has are of no use.
    pub(super) fn swallow_covered(&mut self, id: GroupId) {
        let Some(kept) = self.groups.get(&id).and_then(|group| group.machine.kept()) else {
            return;
        };
        let here = |right: &&GroupId| self.groups.contains_key(right);
        for right in kept.absorbed.iter().filter(here).copied().collect::<Vec<_>>() {
            self.swallow(right);
        }
        self.note_merging(id);
    }

    /// A checkpoint is frozen, in which the absorbed replicas' rows are others'.
    pub(super) fn freeze_swallowed(&mut self) {
        let fresh = self.swallowed.values_mut().filter(|state| **state == Swallowed::Fresh);
        fresh.for_each(|state| *state = Swallowed::Written);
    }

    /// It is durable: they may leave.
    pub(super) fn settle_swallowed(&mut self) {
        for state in self.swallowed.values_mut() {
            match state {
                Swallowed::Written => *state = Swallowed::Durable,
                Swallowed::Fresh => {
                    self.checkpoints.force(self.now_ms);
                }
                Swallowed::Durable => {}
            }
        }
    }

    /// Is the word that a group is no more to be heard? Not by a frozen replica whose left neighbour is
    /// here, and goes on: that one lets it go, unless it came here when all others were gone already.
    pub(super) fn may_die(&self, id: GroupId, dying: &[GroupId]) -> bool {
        let kept = self.groups.get(&id).and_then(|group| group.machine.kept());
        let Some((kept, (_, left))) = kept.and_then(|kept| Some((kept, kept.frozen?))) else {
            return true;
        };
        let Some(left) = self.groups.get(&left).filter(|_| !dying.contains(&left)) else {
            return true;
        };
        let (state, place) = (left.machine.state(), &kept.place);
        let covers = place.range.is_within(&state.range()) && state.range_version > place.version;
        covers && left.machine.kept().is_none_or(|left| !left.absorbed.contains(&id))
    }

    /// Has nodes let go of absorbed groups, and asks whether anything is left of them.
    fn ask_rest(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id).filter(|group| group.serving) else { return };
        let Some(kept) = group.machine.kept() else { return };
        // Home's map has the new range then.
        let is_known = match &group.role {
            Some(role) => role.participant.is_live(),
            None => !group.machine.is_split(),
        };
        if !is_known {
            return;
        }
        let absorbed: Vec<GroupId> = kept.absorbed.iter().copied().collect();
        let nodes: Vec<u64> = group.machine.state().members.iter().map(|m| m.id).collect();
        for right in absorbed {
            for node in &nodes {
                let rest = Rest { left: id.0, right: right.0, answer: false };
                self.say(NodeId(*node), Said::Rest(rest));
            }
        }
    }

    fn heard_rest(&mut self, from: NodeId, rest: Rest) {
        let (left, right) = (GroupId(rest.left), GroupId(rest.right));
        let Some(group) = self.groups.get(&left) else { return };
        let knows = group.machine.kept().is_some_and(|kept| kept.absorbed.contains(&right));
        if !knows || group.stopped.is_some() {
            return;
        }
        if !rest.answer {
            let there = self.groups.contains_key(&right) || self.shut.contains_key(&right);
            if self.swallowed.get(&right) == Some(&Swallowed::Durable) {
                self.swallowed.remove(&right);
                self.leaving.insert(right);
            }
            if !there && !self.departures.iter().any(|departure| departure.is_of(right)) {
                self.say(from, Said::Rest(Rest { answer: true, ..rest }));
            }
            return;
        }
        let members: BTreeSet<u64> =
            group.machine.state().members.iter().map(|member| member.id).collect();
        let told = self.rests.entry((left, right)).or_default();
        told.insert(from);
        if group.serving && members.iter().all(|node| told.contains(&NodeId(*node))) {
            self.rests.remove(&(left, right));
            let entry = Entry::Gone { right };
            let mut wanted = VecDeque::from([Proposal { tag: 0, ticket: None, entry }]);
            // What Raft does not take now is asked again.
            self.propose_split(left, &mut wanted);
            self.touch(left);
        }
    }

    // === ticks and words ===

    /// A tick passed.
    pub(super) fn tick_merges(&mut self, asks_rest: bool) {
        self.tell_all_frozen();
        for id in self.merges.clone() {
            let Some(group) = self.groups.get(&id).filter(|group| group.serving) else { continue };
            let driven = group.role.as_ref().is_some_and(|role| role.merging.is_some());
            // Who only remembers one rests between two questions.
            if driven || group.is_merging() || asks_rest {
                self.touch(id);
                self.drive_left(id, true);
                self.ask_fate(id);
                if asks_rest {
                    self.ask_rest(id);
                }
            }
        }
        let groups = &self.groups;
        self.askers.retain(|id, _| groups.contains_key(id));
        self.merges.retain(|id| groups.contains_key(id));
        self.swallowed.retain(|id, _| groups.contains_key(id));
    }

    /// Somebody said something about a merge.
    pub(super) fn step_merge(&mut self, from: NodeId, said: Said) {
        match said {
            Said::AskFrozen(ask) => self.asked_frozen(from, ask),
            Said::Frozen(frozen) => self.heard_frozen(from, frozen),
            Said::Fate(fate) => self.heard_fate(from, &fate),
            Said::Rest(rest) => self.heard_rest(from, rest),
            _ => {}
        }
    }
}

impl Merging {
    /// Its end is not in the line any more.
    pub(super) fn wait(&mut self) {
        self.absorbing = false;
    }

    /// Whose answer waits for it.
    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// What the right group has, and its last revision, if it is frozen on all of these nodes and
    /// nowhere else, and has given up no more of history than this group.
    fn agreed(
        &self,
        nodes: impl Iterator<Item = u64>,
        compacted: i64,
    ) -> Option<(crate::split::stream::Place, i64)> {
        let nodes: BTreeSet<u64> = nodes.collect();
        let (_, first) = self.frozen.first()?;
        let same = self.frozen.iter().all(|(_, frozen)| frozen == first);
        let told: BTreeSet<u64> = self.frozen.iter().map(|(node, _)| node.0).collect();
        let there: BTreeSet<u64> = first.nodes.iter().copied().collect();
        let (right, place) = wire::place_in(first.place.clone()?);
        let fits = right == self.merge.right && place.range.start == self.at;
        let all = same && told == nodes && there == nodes && fits;
        (all && first.compacted <= compacted).then_some((place, first.revision))
    }
}

impl Group {
    /// Is a merge under way that this group has to do with?
    pub(super) fn is_merging(&self) -> bool {
        let kept = self.machine.kept();
        kept.is_some_and(|kept| kept.merging.is_some() || kept.frozen.is_some())
    }
}
