//! Opening a node: what the engine's checkpoint and the log say together.
//!
//! The engine is exactly one checkpoint; the log holds everything since. For each replica
//! the two must meet without a gap.
//!
//! | engine says | log says | then |
//! |---|---|---|
//! | applied a | entries from at most a + 1 | replay: ordinary apply |
//! | applied a | restored at r > a onto shelf s | the state staged on s is the state |
//! | applied a | entries from above a + 1: the engine went back in time | seeded anew |
//! | nothing | anything: the engine lost it | seeded anew |
//! | applied a | ends before a, or damaged | refused |
//!
//! *Seeded anew*: what the replica promised stands in its log, which is whole; only its rows
//! are lost. It goes on voting and acknowledging, but it does not campaign, applies nothing
//! and serves nothing until the leader has sent it a snapshot. A replica that is alone has
//! nobody to send one and is refused.
//!
//! *Refused*: promises may be lost. The replica does not vote, acknowledge or serve, and a
//! person (or placement) replaces it.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;

use prost::Message;
use proto::GroupId;
use proto::cluster::raft::ConfState;
use proto::etcd::Member;
use raft::eraftpb;

use super::{Checkpoints, Node, NodeConfig, NodeError};
use crate::engine::Engine;
use crate::group::Group;
use crate::group::core::Core;
use crate::group::storage::GroupStorage;
use crate::group::wire;
use crate::log::{DamageExtent, Log, Record, Recovered, RecoveredReplica, ReplicaKey};
use crate::machine::Machine;
use crate::machine::state::State;
use crate::store::Store;
use crate::store::checkpoint::{FORMAT, NodeRow};
use crate::store::layout::{self, Shelf};

/// Index and term of a group's birth: before the first entry (any constant above 0 serves).
const BIRTH: (u64, u64) = (5, 5);

/// How a group comes to this node when there is nothing of it on disk.
#[derive(Clone, Debug)]
pub struct Birth {
    /// The group.
    pub group: GroupId,
    /// This node's replica.
    pub replica: u64,
    /// Its first members, the same on all nodes; empty for a replica that is added to a
    /// running group and gets everything by snapshot.
    pub members: Vec<Member>,
    /// Id of the virtual cluster.
    pub cluster_id: u64,
}

/// A replica that cannot be trusted.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Group and replica.
    pub key: ReplicaKey,
    /// Why, for a person.
    pub reason: String,
}

/// A node and the replicas it did not open.
pub struct Opened {
    /// The node.
    pub node: Node,
    /// Replicas left out.
    pub refused: Vec<Refused>,
}

fn damaged(what: &str) -> NodeError {
    NodeError::Damaged(what.to_string())
}

impl Node {
    /// Opens a node over its engine and its recovered log. Groups of `births` that are not
    /// on disk are created; this writes to both.
    pub fn open(
        config: NodeConfig,
        engine: Arc<dyn Engine>,
        log: Arc<Log>,
        recovered: &Recovered,
        births: &[Birth],
        now_ms: u64,
    ) -> Result<Opened, NodeError> {
        let store = Arc::new(Store::new(engine.clone()));
        let row = match engine.get(layout::NODE_KEY)? {
            Some(row) => NodeRow::decode(row).map_err(|_| damaged("the engine's own row"))?,
            None => {
                NodeRow { format: FORMAT, next_shelf: 1, node: config.node.0, ..Default::default() }
            }
        };
        if row.format > FORMAT {
            return Err(NodeError::Damaged(format!(
                "the data directory has format {}, this program knows formats up to {FORMAT}: run \
                 a newer program",
                row.format
            )));
        }
        if row.node != config.node.0 {
            return Err(NodeError::Damaged(format!(
                "the data directory belongs to node {:x}, this is node {:x}",
                row.node, config.node.0
            )));
        }
        let mut states = BTreeMap::new();
        let (from, to) = layout::groups_bounds();
        for entry in engine.scan(&from, &to) {
            let (key, value) = entry?;
            let (group, replica) =
                layout::split_group(&key).ok_or_else(|| damaged("a group's row"))?;
            let state = State::decode(value).map_err(|_| damaged("a group's state"))?;
            states.insert(ReplicaKey { group, replica }, state);
        }
        let number = row.checkpoint;
        // An engine that went back in time may have forgotten shelves that were taken.
        let shelves = recovered.replicas.values().flat_map(|found| &found.controls);
        let shelves = shelves.filter_map(|control| match control {
            Record::Install { shelf, .. } | Record::Restore { shelf, .. } => Some(*shelf),
            _ => None,
        });
        let next_shelf = shelves.fold(row.next_shelf, |next, shelf| next.max(shelf + 1));
        let mut node = Node {
            store,
            log,
            groups: BTreeMap::new(),
            touched: BTreeSet::new(),
            now_ms,
            last_tick_ms: now_ms,
            lease_rest_until_ms: 0,
            next_persist: 1,
            records: Vec::new(),
            outputs: Vec::new(),
            next_shelf,
            dropped: row.dropped.iter().map(|shelf| Shelf(*shelf)).collect(),
            checkpoints: Checkpoints { number, ..Default::default() },
            transfers: Default::default(),
            next_lease: 0,
            draining: false,
            room: Default::default(),
            slow: Default::default(),
            config,
        };
        let mut refused = Vec::new();
        node.give_birth(births, &mut states, recovered)?;
        for (key, state) in states {
            if recovered.tombstones.get(&key.group).is_some_and(|low| key.replica < *low) {
                node.dropped.insert(Shelf(state.shelf));
                continue;
            }
            match node.open_replica(key, state, recovered)? {
                Ok(group) => {
                    node.touched.insert(group.id);
                    node.groups.insert(group.id, group);
                }
                Err(reason) => refused.push(Refused { key, reason }),
            }
        }
        node.drop_orphans()?;
        Ok(Opened { node, refused })
    }

    /// Writes the first state of groups that are not here yet: engine first, then log, so
    /// that a crash between the two is repaired by the next start.
    fn give_birth(
        &mut self,
        births: &[Birth],
        states: &mut BTreeMap<ReplicaKey, State>,
        recovered: &Recovered,
    ) -> Result<(), NodeError> {
        let mut records = Vec::new();
        for birth in births {
            let key = ReplicaKey { group: birth.group.0, replica: birth.replica };
            let joins = birth.members.is_empty();
            if let Entry::Vacant(vacant) = states.entry(key) {
                let lost = recovered.replicas.contains_key(&key);
                let shelf = self.take_shelf();
                let mut state =
                    Machine::first_state(shelf, birth.members.clone(), birth.cluster_id);
                if joins {
                    state.membership_version = 0;
                } else {
                    if !lost {
                        (state.applied_index, state.applied_term) = BIRTH;
                    }
                    let learner = |m: &&Member| m.is_learner;
                    state.conf_state = ConfState {
                        voters: birth
                            .members
                            .iter()
                            .filter(|m| !m.is_learner)
                            .map(|m| m.id)
                            .collect(),
                        learners: birth.members.iter().filter(learner).map(|m| m.id).collect(),
                        ..Default::default()
                    };
                }
                let row_key = layout::group_key(key.group, key.replica);
                let row = super::encode(&state);
                self.checkpoints.number += 1;
                let checkpoint =
                    self.store.freeze(&self.node_row(), vec![(row_key.into(), Some(row))]);
                checkpoint.write(self.store.engine().as_ref())?;
                self.store.finish(&checkpoint);
                vacant.insert(state);
            }
            let Some(state) = states.get(&key) else { continue };
            let unborn = !recovered.replicas.contains_key(&key);
            if unborn && !recovered.holes.is_empty() {
                return Err(NodeError::Damaged(format!(
                    "the log has a damaged place that may have held replica {:x} of group {}: \
                     remove this member, empty its data directory and add it again",
                    key.replica, key.group
                )));
            }
            if unborn && !joins && state.applied_index == BIRTH.0 {
                records.push(Record::Restore {
                    key,
                    index: BIRTH.0,
                    term: BIRTH.1,
                    conf_state: super::encode(&state.conf_state),
                    shelf: state.shelf,
                });
            }
        }
        if !records.is_empty() {
            let failed = |error| NodeError::Damaged(format!("write the log: {error}"));
            self.log.append(&records).map_err(failed)?;
            self.log.sync().map_err(failed)?;
        }
        Ok(())
    }

    /// The node's own row as of now.
    pub(super) fn node_row(&self) -> NodeRow {
        NodeRow {
            format: FORMAT,
            checkpoint: self.checkpoints.number,
            next_shelf: self.next_shelf,
            node: self.config.node.0,
            dropped: self.dropped.iter().map(|shelf| shelf.0).collect(),
        }
    }

    fn open_replica(
        &mut self,
        key: ReplicaKey,
        mut state: State,
        recovered: &Recovered,
    ) -> Result<Result<Group, String>, NodeError> {
        let born = RecoveredReplica {
            hard_state: Default::default(),
            truncated: crate::log::IndexTerm {
                index: state.applied_index,
                term: state.applied_term,
            },
            first_index: state.applied_index + 1,
            last: crate::log::IndexTerm { index: state.applied_index, term: state.applied_term },
            lowest_intact: state.applied_index + 1,
            damage: None,
            controls: Vec::new(),
        };
        let found = match recovered.replicas.get(&key) {
            Some(found) => found,
            // Just born here, or waiting for its first snapshot and never voted.
            None if state.applied_index <= BIRTH.0 => &born,
            None => return Ok(Err("the log has lost this replica".into())),
        };
        if let Some(damage) = &found.damage {
            // Entries that the engine's checkpoint covers are not needed any more.
            let covered = damage.extent == DamageExtent::Entries
                && state.applied_index + 1 >= found.lowest_intact;
            if !covered {
                return Ok(Err(format!("the log is damaged: {}", damage.reason)));
            }
            tracing::warn!(reason = damage.reason, "entries below the checkpoint are damaged");
        }
        let mut seed_anew = false;
        for control in &found.controls {
            match control {
                Record::Quarantine { reason, .. } => return Ok(Err(reason.clone())),
                Record::Restore { index, shelf, .. } if *index > state.applied_index => {
                    let staged = self.store.engine().get(&layout::staged_key(Shelf(*shelf)))?;
                    // Without it the log's first entry, behind the snapshot, shows the gap.
                    let Some(staged) = staged else { continue };
                    self.dropped.insert(Shelf(state.shelf));
                    state = State::decode(staged).map_err(|_| damaged("a staged state"))?;
                }
                _ => {}
            }
        }
        if found.truncated.index > state.applied_index {
            let reason = format!(
                "the engine went back in time: it has applied entry {}, the log begins at {}",
                state.applied_index, found.first_index
            );
            if state.conf_state.voters == [key.replica] {
                return Ok(Err(format!("{reason}; nobody else has the data")));
            }
            tracing::warn!(group = key.group, reason, "the leader is asked for a snapshot");
            self.dropped.insert(Shelf(state.shelf));
            state = State {
                shelf: self.take_shelf().0,
                conf_state: state.conf_state,
                removed: state.removed,
                membership_version: state.membership_version,
                ..Machine::first_state(Shelf(0), state.members, state.cluster_id)
            };
            seed_anew = true;
        }
        if found.last.index < state.applied_index {
            return Ok(Err(format!(
                "the log ends at entry {}, but entry {} was applied",
                found.last.index, state.applied_index
            )));
        }
        let mut hard_state = eraftpb::HardState::default();
        hard_state.term = found.hard_state.term.max(state.applied_term);
        hard_state.vote = found.hard_state.vote;
        hard_state.commit = found.hard_state.commit.max(state.applied_index);
        if hard_state.commit > found.last.index {
            return Ok(Err(format!(
                "entry {} was committed, but the log ends at {}",
                hard_state.commit, found.last.index
            )));
        }
        let mut applied = (state.applied_index, state.applied_term);
        let mut conf_state = state.conf_state.clone();
        if seed_anew {
            // As far as Raft is concerned everything before the log is applied. A learner
            // votes and acknowledges when it is asked to, and never campaigns.
            applied = (found.truncated.index, found.truncated.term);
            hard_state.commit = hard_state.commit.max(applied.0);
            conf_state.voters.retain(|voter| *voter != key.replica);
            conf_state.learners.retain(|learner| *learner != key.replica);
            conf_state.learners.push(key.replica);
        }
        let storage = GroupStorage::new(
            key,
            self.log.clone(),
            hard_state,
            wire::conf_from_wire(&conf_state),
            (found.truncated.index, found.truncated.term),
            (found.last.index, found.last.term),
            applied,
        );
        let (ticks, seed) = (self.config.election_ticks, self.config.seed);
        let mut core = Core::open(key, storage, applied.0, ticks, seed);
        if !seed_anew && state.conf_state.voters == [key.replica] {
            core.campaign();
        }
        let machine =
            Machine::open(GroupId(key.group), self.store.clone(), state, self.config.block_keys)?;
        let mut group = Group::new(GroupId(key.group), core, machine);
        group.seed_anew = seed_anew;
        Ok(Ok(group))
    }

    /// Shelves that a snapshot was being received onto belong to nobody after a restart.
    fn drop_orphans(&mut self) -> Result<(), NodeError> {
        let owned: BTreeSet<Shelf> = self.groups.values().map(|g| g.machine.shelf()).collect();
        for number in 1..self.next_shelf {
            let shelf = Shelf(number);
            if owned.contains(&shelf) || self.dropped.contains(&shelf) {
                continue;
            }
            for kind in layout::SHELF_KINDS {
                if !self.store.some_rows(kind, shelf, 1)?.is_empty() {
                    self.dropped.insert(shelf);
                }
            }
        }
        Ok(())
    }
}
