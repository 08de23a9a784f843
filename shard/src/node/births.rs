//! Replicas that come to a running node, and that leave it.
//!
//! *Birth*: the replica's first state is part of a checkpoint, which is forced; it speaks only
//! when that is durable. *Crash before: there is no such replica; after: it is opened like any
//! other.* A replica that was here once never comes again under its number: its group's
//! tombstone, its quarantine, or its rows say so.
//!
//! *Departure*: a replica that is no member any more stops at the end of the round. Its tombstone
//! goes into the log, and no checkpoint is taken before that is durable; so the engine drops its
//! rows only when the log knows why. *Crash before: the replica is opened, hears that it is no
//! member, and leaves again.* Rows go, and pages that its entries hold are free, when the tombstone
//! is durable; who reads the rows meanwhile notices afterwards that the replica has left.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::cluster::raft::GroupMessage;
use proto::group::GroupError;
use proto::{Error, GroupId, NodeId};

use super::garbage::Stake;
use super::open::{Judged, Shut, birth_record, first_state, group_key};
use super::rounds::let_go;
use super::{Birth, Node, NodeError, Output};
use crate::group::Eager;
use crate::group::core::PersistId;
use crate::group::large::Slot;
use crate::log::{Record, ReplicaKey};
use crate::machine::state::{BIRTH, State};
use crate::store::layout::Shelf;

/// Ticks for which a new group's first leader tries to be it: the others may come later.
const EAGER_TICKS: usize = 50;

/// A replica whose first state is not durable yet.
pub(super) struct Newborn {
    pub(super) key: ReplicaKey,
    pub(super) state: State,
    /// It is in the checkpoint on its way.
    pub(super) frozen: bool,
    /// The newest wish for its vote: it is answered when the replica lives. Otherwise the group would
    /// wait for its first leader's next try.
    pub(super) asked: Option<(NodeId, GroupMessage)>,
}

/// A replica whose tombstone is not durable yet.
pub(super) struct Departure {
    key: ReplicaKey,
    persist: PersistId,
    shelves: Vec<Shelf>,
    held: BTreeMap<u64, Vec<Slot>>,
}

impl Departure {
    /// Is it a replica of this group?
    pub(super) fn is_of(&self, group: GroupId) -> bool {
        self.key.group == group.0
    }
}

impl Newborn {
    /// What it has.
    pub(super) fn stake(&self) -> Stake {
        Stake::idle(&self.state)
    }
}

impl Node {
    /// Takes in that a replica is to be here.
    pub(super) fn conceive(&mut self, birth: &Birth) {
        let id = birth.group;
        if let Some(group) = self.groups.get(&id)
            && birth.replica > group.core.key().replica
        {
            // Numbers rise: that one was removed, though nobody told it. The new one comes as soon
            // as it is gone.
            self.leaving.insert(id);
        }
        if self.holes && !birth.members.is_empty() {
            tracing::error!(group = id.0, "the log has a hole: a first replica is not begun");
            return;
        }
        let is_here = self.groups.contains_key(&id);
        let comes = self.newborns.iter().any(|newborn| newborn.key.group == id.0);
        let dead = self.tombstones.get(&id.0).is_some_and(|lowest| birth.replica < *lowest);
        if is_here || comes || dead {
            return;
        }
        if let Some(shut) = self.shut.get(&id) {
            let old = shut.replica;
            if birth.replica <= old {
                return;
            }
            self.clear(id, birth.replica);
        }
        let key = ReplicaKey { group: id.0, replica: birth.replica };
        let state = first_state(birth, self.take_shelf(), false);
        self.expect(key, state);
    }

    /// A replica with this first state lives as soon as the next checkpoint is durable. What it has
    /// of rows is its own from now on.
    pub(super) fn expect(&mut self, key: ReplicaKey, state: State) {
        self.newborns.push(Newborn { key, state, frozen: false, asked: None });
        self.checkpoints.force(self.now_ms);
    }

    /// Drops a replica that was not opened; none below `lowest` is ever to be here again.
    fn clear(&mut self, id: GroupId, lowest: u64) {
        let Some(Shut { replica, stake, .. }) = self.shut.remove(&id) else { return };
        let key = ReplicaKey { group: id.0, replica };
        self.bury(key, lowest);
        let (persist, held) = (self.next_persist, BTreeMap::new());
        let shelves = stake.iter().flat_map(Stake::all).collect();
        self.departures.push(Departure { key, persist, shelves, held });
        self.outputs.push(Output::Gone { group: id });
    }

    /// Writes that no replica below `lowest` is ever to be here again.
    fn bury(&mut self, key: ReplicaKey, lowest: u64) {
        self.records.push(Record::Tombstone { group: key.group, lowest_replica: lowest });
        self.tombstones.insert(key.group, lowest);
        self.bygone.push(group_key(key));
        self.checkpoints.not_before = self.next_persist;
        self.checkpoints.first_write_ms.get_or_insert(self.now_ms);
    }

    /// Rows of replicas that come or went, for the checkpoint that is frozen now.
    pub(super) fn newborn_rows(&mut self) -> Vec<(Bytes, Option<Bytes>)> {
        let gone = std::mem::take(&mut self.bygone).into_iter().map(|key| (key, None));
        let mut rows: Vec<_> = gone.collect();
        for newborn in &mut self.newborns {
            newborn.frozen = true;
            rows.push((group_key(newborn.key), Some(super::encode(&newborn.state))));
        }
        rows
    }

    /// A checkpoint is durable: the replicas that are in it begin to live.
    pub(super) fn deliver(&mut self) -> Result<(), NodeError> {
        let born: Vec<Newborn> = self.newborns.extract_if(.., |newborn| newborn.frozen).collect();
        if !self.newborns.is_empty() {
            self.checkpoints.force(self.now_ms);
        }
        let resting = self.slow.is_resting(self.now_ms);
        for Newborn { key, state, asked, .. } in born {
            let id = GroupId(key.group);
            if state.applied_index == BIRTH.0 {
                self.records.push(birth_record(key, &state));
            }
            match self.open_replica(key, Judged::newborn(state), BTreeMap::new(), false)? {
                Ok(mut group) => {
                    // The one that had better lead it.
                    let term = group.core.term();
                    let eager = Eager { wait: 0, every: 1, tries: EAGER_TICKS, term };
                    group.eager = group.turn().filter(|turn| *turn == 0).map(|_| eager);
                    group.stand_early(resting);
                    if group.machine.needs_sweep() {
                        self.sweeping.insert(id);
                    }
                    self.groups.insert(id, Box::new(group));
                    self.note_sharing(id);
                    self.pulses.add(id);
                    self.touched.insert(id);
                    self.announce(Output::Born { group: id });
                    if let Some((from, raft)) = asked {
                        self.hear_raft(from, raft)?;
                    }
                }
                Err(reason) => return Err(NodeError::Damaged(reason)),
            }
        }
        Ok(())
    }

    /// Drops the replicas that are no members any more.
    pub(super) fn depart(&mut self) {
        for id in std::mem::take(&mut self.leaving) {
            if let Some(shut) = self.shut.get(&id) {
                self.clear(id, shut.replica.saturating_add(1));
            }
            self.abandon(id);
            self.transfers.forget(id);
            self.step_down(id);
            let Some(mut group) = self.groups.remove(&id) else { continue };
            self.touched.remove(&id);
            self.pulses.remove(id);
            let elsewhere = GroupError::not_done(Error::NoLeader, None);
            let reads = group.reads.take_all().into_iter().map(|(ticket, _)| ticket);
            let parts = std::mem::take(&mut group.parts).into_values().flatten().map(|part| part.0);
            for ticket in reads.chain(parts) {
                self.answer(ticket, Err(elsewhere));
            }
            let unknown = GroupError::unknown(Error::LeaderChanged);
            let proposed = std::mem::take(&mut group.proposals).into_values().flatten();
            let waiting = proposed.filter_map(|then| then.ticket());
            let swept = group.sweeping.iter().map(|(ticket, ..)| *ticket);
            let moved = group.transfer.iter().map(|transfer| transfer.ticket);
            let tickets: Vec<_> = waiting.chain(swept).chain(moved).collect();
            for ticket in tickets {
                self.answer(ticket, Err(unknown));
            }
            let key = group.core.key();
            // Readers look at this after they have read; rows go only later.
            group.machine.published().leave();
            self.bury(key, key.replica.saturating_add(1));
            let (persist, shelves) = (self.next_persist, group.machine.shelves().all().collect());
            self.departures.push(Departure { key, persist, shelves, held: group.held });
            self.note_sharing(id);
            self.announce(Output::Gone { group: id });
        }
    }

    /// A write is durable: pages that replicas held who left are free.
    pub(super) fn departed(&mut self) {
        let persisted = self.persisted;
        let known = self.departures.extract_if(.., |departure| departure.persist <= persisted);
        for departure in known.collect::<Vec<_>>() {
            self.discard(departure.shelves);
            let_go(&self.store, departure.held);
        }
    }

    /// Records of a replica are durable that is not here any more.
    pub(super) fn appended_late(&mut self, key: ReplicaKey, slots: BTreeMap<u64, Vec<Slot>>) {
        match self.departures.iter_mut().find(|departure| departure.key == key) {
            Some(departure) => departure.held.extend(slots),
            None => let_go(&self.store, slots),
        }
    }
}
