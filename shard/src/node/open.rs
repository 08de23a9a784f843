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
//! | an older checkpoint than the log knows, and there are page files | anything | seeded anew |
//! | nothing | anything: the engine lost it | seeded anew |
//! | applied a | ends before a, or damaged | refused |
//!
//! *Seeded anew*: what the replica promised stands in its log, which is whole; only its rows
//! are lost. It goes on voting and acknowledging, but it does not campaign, applies nothing
//! and serves nothing until the leader has sent it a snapshot. A replica that is alone has
//! nobody to send one and is refused.
//!
//! Pages of large values are in use by rows, as the engine's checkpoint says, or held by the
//! entries that will be applied on top of it. With an older engine nobody knows whose they are:
//! an entry that was applied may have lost its pages to another. So its rows own no pages any
//! more (`bare_below`), and no entry of a replica that is seeded anew does.
//!
//! *Refused*: promises may be lost. The replica does not vote, acknowledge or serve, and a
//! person (or placement) replaces it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::cluster::raft::ConfState;
use proto::etcd::Member;
use proto::{GroupId, NamespaceId, TenantId, id};
use raft::eraftpb;

use super::garbage::Stake;
use super::recovery::recovering;
use super::{Checkpoints, Node, NodeConfig, NodeError};
use crate::charter;
use crate::disk::Disk;
use crate::engine::Engine;
use crate::extents::{Bitmap, ExtentError, Extents, ExtentsConfig, Named};
use crate::group::core::Core;
use crate::group::large::{self, Slot};
use crate::group::storage::{Found, GroupStorage};
use crate::group::wire;
use crate::group::{Eager, Group};
use crate::log::{DamageExtent, IndexTerm, Log, Record, Recovered, RecoveredReplica, ReplicaKey};
use crate::machine::state::{BIRTH, State};
use crate::machine::{Machine, leases};
use crate::store::Store;
use crate::store::checkpoint::{FORMAT, LEASE_KEYS_WITH_VERSIONS, NodeRow};
use crate::store::layout::{self, Shelf};

/// Ticks after the start at which a replica asks for votes if no leader was heard, and how often it
/// asks again: the others may not be there yet.
const EARLY_TICKS: usize = 1;
const EARLY_EVERY: usize = 2;
/// Bytes of entries that are read from the log at a time.
const READ_BYTES: u64 = 8 << 20;

/// How a group comes to this node when there is nothing of it on disk.
#[derive(Clone, Debug)]
pub struct Birth {
    /// The group.
    pub group: GroupId,
    /// This node's replica.
    pub replica: u64,
    /// Its first members, the same on all nodes, whose replicas have the numbers of their nodes;
    /// empty for a replica that is added to a running group and gets everything by snapshot.
    pub members: Vec<Member>,
    /// Id of the virtual cluster.
    pub cluster_id: u64,
    /// Whose keys; 0 for the system group.
    pub tenant: TenantId,
    /// Which part of the tenant.
    pub namespace: NamespaceId,
}

/// A replica that cannot be trusted.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Group and replica.
    pub key: ReplicaKey,
    /// Why, for a person.
    pub reason: String,
    /// As far as is known nobody else has a replica of the group: it cannot be replaced.
    pub alone: bool,
}

/// A replica that was not opened, as the running node keeps it in mind.
pub(super) struct Shut {
    pub(super) replica: u64,
    /// Where its rows stand, as far as is known.
    pub(super) stake: Option<Stake>,
    pub(super) reason: String,
}

/// A node and the replicas it did not open.
pub struct Opened {
    /// The node.
    pub node: Node,
    /// Replicas left out.
    pub refused: Vec<Refused>,
}

/// Where the page files are, and how they are sealed.
pub struct Pages {
    /// Their directory.
    pub disk: Arc<dyn Disk>,
    /// Their settings.
    pub config: ExtentsConfig,
}

fn pages_failed(error: &ExtentError) -> NodeError {
    NodeError::Damaged(format!("open the page files: {error}"))
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
        pages: Pages,
        now_ms: u64,
    ) -> Result<Opened, NodeError> {
        let row = read_node(engine.as_ref(), &config)?;
        let states = read_states(engine.as_ref())?;
        // Numbers of checkpoints rise, also behind an engine that forgot some.
        let number = recovered.checkpoint.map_or(0, |newest| newest.n).max(row.checkpoint);
        let is_old = row.checkpoint < number;
        // An engine that went back in time may have forgotten shelves that were taken.
        let shelves = recovered.replicas.values().flat_map(|found| &found.controls);
        let shelves = shelves.filter_map(|control| match control {
            Record::Install { shelf, .. } | Record::Restore { shelf, .. } => Some(*shelf),
            _ => None,
        });
        let next_shelf = shelves.fold(row.next_shelf, |next, shelf| next.max(shelf + 1));
        let mut dropped: BTreeSet<Shelf> = row.dropped.iter().map(|shelf| Shelf(*shelf)).collect();
        let mut rows: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        let mut present = BTreeMap::new();
        for (key, state) in &states {
            if recovered.tombstones.get(&key.group).is_some_and(|low| key.replica < *low) {
                dropped.extend(state.shelves().all());
                rows.insert(group_key(*key), None);
            } else {
                present.insert(*key, state.clone());
            }
        }
        let ground = Ground { recovered, engine: engine.as_ref(), row: &row };
        let mut judged = ground.judge_all(&present, None)?;
        let mut held = held_values(&log, &mut judged);
        let mut bitmaps = read_bitmaps(engine.as_ref())?;
        let any = Extents::any(pages.disk.as_ref()).map_err(|error| pages_failed(&error))?;
        let went_back = is_old && (any || !bitmaps.is_empty() || !held.is_empty());
        let mut stale = BTreeMap::new();
        if went_back {
            judged = ground.judge_all(&present, Some(number))?;
            held = held_values(&log, &mut judged);
            std::mem::swap(&mut bitmaps, &mut stale);
        }
        let slots = held.values().flat_map(BTreeMap::values).flatten();
        let held_now = slots.map(|slot| slot.pointer).collect();
        let extents = open_pages(pages, Named { checkpoint: number, bitmaps, held: held_now })?;
        let store = Arc::new(Store::new(engine.clone(), Arc::new(extents)));
        store.disown_below(Shelf(if went_back { next_shelf } else { row.bare_below }));
        let mut node = Node {
            store,
            log,
            groups: BTreeMap::new(),
            touched: BTreeSet::new(),
            roles: BTreeSet::new(),
            partings: BTreeSet::new(),
            merges: BTreeSet::new(),
            askers: BTreeMap::new(),
            swallowed: BTreeMap::new(),
            rests: BTreeMap::new(),
            whispers: VecDeque::new(),
            whereabouts: BTreeMap::new(),
            pulses: Default::default(),
            unsettled: BTreeSet::new(),
            sweeping: BTreeSet::new(),
            changed: BTreeSet::new(),
            freezing: BTreeSet::new(),
            holding: BTreeSet::new(),
            now_ms,
            last_tick_ms: now_ms,
            lease_rest_until_ms: 0,
            next_persist: 1,
            persisted: 0,
            records: Vec::new(),
            outputs: Vec::new(),
            news: 0,
            next_shelf,
            dropped,
            dropping: None,
            sharing: BTreeSet::new(),
            checkpoints: Checkpoints { number, ..Default::default() },
            transfers: Default::default(),
            next_lease: 0,
            draining: false,
            room: Default::default(),
            slow: Default::default(),
            moving: Default::default(),
            newborns: Vec::new(),
            leaving: BTreeSet::new(),
            departures: Vec::new(),
            bygone: Vec::new(),
            shut: BTreeMap::new(),
            holes: !recovered.holes.is_empty(),
            tombstones: recovered.tombstones.clone(),
            config,
        };
        rows.extend(stale.keys().map(|file| (layout::pages_key(*file).into(), None)));
        if row.format < LEASE_KEYS_WITH_VERSIONS {
            let kept = present.values().filter_map(|state| state.split.as_ref());
            let absorbed: BTreeSet<u64> = kept.flat_map(|kept| kept.absorbed.clone()).collect();
            for (_, state) in present.iter().filter(|(key, _)| !absorbed.contains(&key.group)) {
                leases::shelve_with_versions(&node.store, &state.shelves())?;
            }
        }
        // A staged state that is not the state of a replica will never be.
        let (from, to) = layout::staged_bounds();
        for entry in engine.scan(&from, &to) {
            let (key, _) = entry?;
            let states = judged.values().flatten().filter(|found| !found.seed_anew);
            if !states.into_iter().any(|found| key == layout::staged_key(Shelf(found.state.shelf)))
            {
                rows.insert(key, None);
            }
        }
        let records = node.give_birth(births, &states, &mut judged, &mut rows, recovered)?;
        let alone = present.values().all(is_alone);
        node.begin(Beginning { is_old, alone }, &mut judged, rows, records)?;
        let mut refused = Vec::new();
        for (key, found) in judged {
            let held = held.remove(&key).unwrap_or_default();
            let was_here = recovered.replicas.contains_key(&key);
            let waits = node.config.withhold && was_here && key.group != id::SYSTEM_GROUP.0;
            let opened = match found {
                Ok(found) => node.open_replica(key, found, held, waits)?,
                Err(reason) => Err(reason),
            };
            match opened {
                Ok(mut group) => {
                    group.eager = eager_after_start(&group, node.config.election_ticks);
                    node.touched.insert(group.id);
                    // The first checkpoint has all: what a snapshot brought is not in the group's
                    // row yet, and the log has forgotten what it was told to let go of.
                    node.changed.insert(group.id);
                    node.sweeping.insert(group.id);
                    node.pulses.add(group.id);
                    node.groups.insert(group.id, Box::new(group));
                }
                Err(reason) => {
                    let state = present.get(&key);
                    let stake = state.map(Stake::idle);
                    let shut = Shut { replica: key.replica, stake, reason: reason.clone() };
                    node.shut.insert(GroupId(key.group), shut);
                    refused.push(Refused { key, reason, alone: state.is_none_or(is_alone) });
                }
            }
        }
        node.sharing = node.groups.keys().copied().collect();
        node.sharing.retain(|id| {
            node.groups.get(id).is_some_and(|group| !group.machine.shelves().is_alone())
        });
        for id in node.groups.keys().copied().collect::<Vec<_>>() {
            node.swallow_covered(id);
        }
        node.find_garbage()?;
        Ok(Opened { node, refused })
    }

    /// Adds the first state of groups that are not here yet to `judged` and `rows`, and returns
    /// the records with which the logs of replicas begin whose logs know nothing of them.
    fn give_birth(
        &mut self,
        births: &[Birth],
        states: &BTreeMap<ReplicaKey, State>,
        judged: &mut BTreeMap<ReplicaKey, Judgement>,
        rows: &mut BTreeMap<Bytes, Option<Bytes>>,
        recovered: &Recovered,
    ) -> Result<Vec<Record>, NodeError> {
        let dead = |birth: &&Birth| {
            let lowest = recovered.tombstones.get(&birth.group.0);
            lowest.is_some_and(|lowest| birth.replica < *lowest)
        };
        // Replicas that came later and that the engine has lost: the log knows what they promised.
        let lost = recovered.replicas.keys().filter(|key| {
            let expected =
                |birth: &Birth| birth.group.0 == key.group && birth.replica == key.replica;
            !states.contains_key(key) && !births.iter().any(expected)
        });
        let lost = lost.map(|key| Birth {
            group: GroupId(key.group),
            replica: key.replica,
            members: Vec::new(),
            cluster_id: 0,
            tenant: TenantId(0),
            namespace: NamespaceId(0),
        });
        let births: Vec<Birth> = births.iter().cloned().chain(lost).collect();
        for birth in births.iter().filter(|birth| !dead(birth)) {
            let key = ReplicaKey { group: birth.group.0, replica: birth.replica };
            let lost = recovered.replicas.contains_key(&key);
            match states.get(&key) {
                Some(_) => {}
                None => {
                    let mut state = first_state(birth, self.take_shelf(), lost);
                    if birth.members.is_empty() {
                        state.conf_state = conf_in_log(recovered.replicas.get(&key));
                    }
                    let engine = self.store.engine().clone();
                    let row = self.node_row();
                    let ground = Ground { recovered, engine: engine.as_ref(), row: &row };
                    let found = ground.judge(key, state.clone(), None)?;
                    judged.insert(key, found);
                    rows.insert(group_key(key), Some(super::encode(&state)));
                }
            }
            if !lost && !recovered.holes.is_empty() {
                return Err(NodeError::Damaged(format!(
                    "the log has a damaged place that may have held replica {:x} of group {}: \
                     remove this member, empty its data directory and add it again",
                    key.replica, key.group
                )));
            }
        }
        // With this record the log of a replica begins; a crash may have come before it.
        let fresh = judged.iter().filter_map(|(key, found)| Some((key, found.as_ref().ok()?)));
        let fresh = fresh.filter(|(key, found)| {
            !recovered.replicas.contains_key(key) && found.state.applied_index == BIRTH.0
        });
        Ok(fresh.map(|(key, found)| birth_record(*key, &found.state)).collect())
    }

    /// Writes what the start has decided: engine first, then log, so that a crash between the
    /// two is repaired by the next start. With this the engine is the newest again, so what was
    /// decided because it `is_old` must stand in it, or in the log, at the same time.
    fn begin(
        &mut self,
        Beginning { is_old, alone }: Beginning,
        judged: &mut BTreeMap<ReplicaKey, Judgement>,
        mut rows: BTreeMap<Bytes, Option<Bytes>>,
        records: Vec<Record>,
    ) -> Result<(), NodeError> {
        if alone && !judged.is_empty() && judged.values().all(Result::is_err) {
            // Nothing will run: what is on disk stays as it is, for a person to look at.
            return Ok(());
        }
        let mut out_of_use = Vec::new();
        for (key, found) in judged {
            match found {
                Ok(found) if found.seed_anew => {
                    self.dropped.extend(found.state.shelves().all());
                    found.state = seeded_state(&found.state, self.take_shelf());
                    rows.insert(group_key(*key), Some(super::encode(&found.state)));
                }
                Ok(_) => {}
                Err(reason) => {
                    let (key, reason) = (*key, reason.clone());
                    out_of_use.push(Record::Quarantine { key, reason });
                }
            }
        }
        if is_old {
            self.write_log(&out_of_use)?;
        }
        if is_old || !rows.is_empty() {
            self.checkpoints.number += 1;
            let checkpoint = self.store.freeze(&self.node_row(), rows.into_iter().collect());
            checkpoint.write(self.store.engine().as_ref())?;
            self.store.finish(&checkpoint);
        }
        self.write_log(&records)
    }

    fn write_log(&self, records: &[Record]) -> Result<(), NodeError> {
        if records.is_empty() {
            return Ok(());
        }
        let written = self.log.append(records).and_then(|_| self.log.sync());
        written.map_err(|error| NodeError::Damaged(format!("write the log: {error}")))?;
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
            bare_below: self.store.bare_below().0,
        }
    }

    pub(super) fn open_replica(
        &mut self,
        key: ReplicaKey,
        judged: Judged,
        held: BTreeMap<u64, Vec<Slot>>,
        waits: bool,
    ) -> Result<Result<Group, String>, NodeError> {
        let Judged { state, restored_from, seed_anew, found } = judged;
        for slot in held.values().flatten() {
            if let Err(error) = self.store.extents().read(&slot.pointer) {
                return Ok(Err(format!("an entry has lost a value: {error}")));
            }
        }
        self.dropped.extend(restored_from);
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
            // Where nobody is known to vote Raft takes no learner either: as one that comes anew.
            if !conf_state.voters.is_empty() {
                conf_state.learners.push(key.replica);
            }
        }
        let mut storage = GroupStorage::new(
            key,
            self.log.clone(),
            self.store.extents().clone(),
            hard_state,
            wire::conf_from_wire(&conf_state),
            Found {
                base: (found.truncated.index, found.truncated.term),
                last: (found.last.index, found.last.term),
                applied,
            },
        );
        if seed_anew {
            storage.set_hollow();
        }
        let (ticks, seed) = (self.config.election_ticks, self.config.seed);
        let mut core = Core::open(key, storage, applied.0, ticks, seed);
        if !seed_anew && !waits && state.conf_state.voters == [key.replica] {
            core.campaign();
        }
        let machine =
            Machine::open(GroupId(key.group), self.store.clone(), state, self.config.block_keys)?;
        let mut group = Group::new(self.config.node, GroupId(key.group), core, machine);
        group.seed_anew = seed_anew;
        group.withhold(waits);
        // It was written, and is committed, but was not applied yet.
        group.recovering = if waits { 0 } else { recovering(&group) };
        group.held = held;
        group.publish_role(self.now_ms);
        Ok(Ok(group))
    }
}

/// Whoever led before may have stopped as well. The group's replicas ask for votes one after the
/// other, with pauses in which an election can end, so that they do not take votes from each other.
fn eager_after_start(group: &Group, election_ticks: usize) -> Option<Eager> {
    let turn = group.turn()?;
    let wait = EARLY_TICKS + turn * election_ticks.div_ceil(3);
    let tries = election_ticks.saturating_sub(wait).div_ceil(EARLY_EVERY);
    let eager = Eager { wait, every: EARLY_EVERY, tries, term: group.core.term() };
    Some(eager).filter(|eager| eager.tries > 0)
}

pub(super) fn group_key(key: ReplicaKey) -> Bytes {
    layout::group_key(key.group, key.replica).into()
}

/// The record with which the log of a group's first replica begins.
pub(super) fn birth_record(key: ReplicaKey, state: &State) -> Record {
    Record::Restore {
        key,
        index: BIRTH.0,
        term: BIRTH.1,
        conf_state: super::encode(&state.conf_state),
        shelf: state.shelf,
    }
}

/// Who voted when the log of a replica began, as far as it says.
fn conf_in_log(found: Option<&RecoveredReplica>) -> ConfState {
    let controls = found.into_iter().flat_map(|found| &found.controls).rev();
    let known = controls.filter_map(|control| match control {
        Record::Restore { conf_state, .. } => ConfState::decode(conf_state.clone()).ok(),
        _ => None,
    });
    known.into_iter().next().unwrap_or_default()
}

/// The first state of a replica; its entries may be in the log although the engine `lost` it.
pub(super) fn first_state(birth: &Birth, shelf: Shelf, lost: bool) -> State {
    let mut state = Machine::first_state(shelf, birth.members.clone(), birth.cluster_id);
    if birth.members.is_empty() {
        state.membership_version = 0;
        return state;
    }
    state.charter = charter::first(birth.group, birth.tenant, birth.namespace);
    if !lost {
        (state.applied_index, state.applied_term) = BIRTH;
    }
    let ids = |learners: bool| {
        let chosen = birth.members.iter().filter(|member| member.is_learner == learners);
        chosen.map(|member| member.id).collect()
    };
    state.conf_state = ConfState { voters: ids(false), learners: ids(true), ..Default::default() };
    state
}

/// The state of a replica that waits for a snapshot: nothing but who is a member.
fn seeded_state(before: &State, shelf: Shelf) -> State {
    State {
        conf_state: before.conf_state.clone(),
        removed: before.removed.clone(),
        membership_version: before.membership_version,
        places: before.places.clone(),
        retired: before.retired.clone(),
        charter: before.charter,
        ..Machine::first_state(shelf, before.members.clone(), before.cluster_id)
    }
}

fn read_node(engine: &dyn Engine, config: &NodeConfig) -> Result<NodeRow, NodeError> {
    let row = match engine.get(layout::NODE_KEY)? {
        Some(row) => NodeRow::decode(row).map_err(|_| damaged("the engine's own row"))?,
        None => {
            NodeRow { format: FORMAT, next_shelf: 1, node: config.node.0, ..Default::default() }
        }
    };
    if row.format > FORMAT {
        return Err(NodeError::Damaged(format!(
            "the data directory has format {}, this program knows formats up to {FORMAT}: run a \
             newer program",
            row.format
        )));
    }
    if row.node != config.node.0 {
        return Err(NodeError::Damaged(format!(
            "the data directory belongs to node {:x}, this is node {:x}",
            row.node, config.node.0
        )));
    }
    Ok(row)
}

fn read_states(engine: &dyn Engine) -> Result<BTreeMap<ReplicaKey, State>, NodeError> {
    let mut states = BTreeMap::new();
    let (from, to) = layout::groups_bounds();
    for entry in engine.scan(&from, &to) {
        let (key, value) = entry?;
        let (group, replica) = layout::split_group(&key).ok_or_else(|| damaged("a group's row"))?;
        let state = State::decode(value).map_err(|_| damaged("a group's state"))?;
        states.insert(ReplicaKey { group, replica }, state);
    }
    Ok(states)
}

fn read_bitmaps(engine: &dyn Engine) -> Result<BTreeMap<u32, Bitmap>, NodeError> {
    let mut bitmaps = BTreeMap::new();
    let (from, to) = layout::pages_bounds();
    for entry in engine.scan(&from, &to) {
        let (key, value) = entry?;
        let file = layout::split_pages(&key).zip(Bitmap::decode(&value));
        let (file, bitmap) = file.ok_or_else(|| damaged("a bitmap of pages"))?;
        bitmaps.insert(file, bitmap);
    }
    Ok(bitmaps)
}

fn open_pages(pages: Pages, named: Named) -> Result<Extents, NodeError> {
    let opened = Extents::open(pages.disk, pages.config, named);
    let opened = opened.map_err(|error| pages_failed(&error))?;
    for repaired in &opened.repaired {
        tracing::error!(
            file = repaired.file,
            found = repaired.pages_found,
            named = repaired.pages_named,
            "a page file has lost pages: the values in them are damaged"
        );
    }
    Ok(opened.extents)
}

/// What engine and log say together about a replica that can be opened.
pub(super) struct Judged {
    state: State,
    /// Where rows stood that a snapshot has replaced.
    restored_from: Vec<Shelf>,
    seed_anew: bool,
    found: RecoveredReplica,
}

impl Judged {
    /// A replica at its birth, of which the log knows nothing.
    pub(super) fn newborn(state: State) -> Judged {
        let at = IndexTerm { index: state.applied_index, term: state.applied_term };
        Judged { state, restored_from: Vec::new(), seed_anew: false, found: unknown(at) }
    }
}

/// How a start finds the node.
struct Beginning {
    /// The engine is older than the log.
    is_old: bool,
    /// No group here has a replica elsewhere.
    alone: bool,
}

/// Has nobody else a vote?
fn is_alone(state: &State) -> bool {
    state.conf_state.voters.len() <= 1
}

/// What the log says of a replica of which it says nothing.
fn unknown(at: IndexTerm) -> RecoveredReplica {
    RecoveredReplica {
        hard_state: Default::default(),
        truncated: at,
        first_index: at.index + 1,
        last: at,
        lowest_intact: at.index + 1,
        damage: None,
        controls: Vec::new(),
    }
}

/// What replicas are judged by.
struct Ground<'a> {
    recovered: &'a Recovered,
    engine: &'a dyn Engine,
    row: &'a NodeRow,
}

type Judgement = Result<Judged, String>;

impl Ground<'_> {
    fn judge_all(
        &self,
        states: &BTreeMap<ReplicaKey, State>,
        newer: Option<u64>,
    ) -> Result<BTreeMap<ReplicaKey, Judgement>, NodeError> {
        let judge = |(key, state): (&ReplicaKey, &State)| {
            Ok((*key, self.judge(*key, state.clone(), newer)?))
        };
        states.iter().map(judge).collect()
    }

    /// Judges a replica, see the module; an error in words says why it is refused. `newer` is the
    /// checkpoint that the log knows, when the engine went back behind it.
    fn judge(
        &self,
        key: ReplicaKey,
        mut state: State,
        newer: Option<u64>,
    ) -> Result<Judgement, NodeError> {
        let Ground { recovered, engine, row } = *self;
        let at = IndexTerm { index: state.applied_index, term: state.applied_term };
        let found = match recovered.replicas.get(&key) {
            Some(found) => found.clone(),
            // Just born here, or waiting for its first snapshot and never voted.
            None if state.applied_index <= BIRTH.0 && recovered.holes.is_empty() => unknown(at),
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
        let mut restored_from = Vec::new();
        for control in &found.controls {
            match control {
                Record::Quarantine { reason, .. } => return Ok(Err(reason.clone())),
                Record::Restore { index, shelf, .. } if *index > state.applied_index => {
                    // One that was given up in an earlier start is not to come back.
                    if *shelf < row.bare_below || row.dropped.contains(shelf) {
                        continue;
                    }
                    let staged = engine.get(&layout::staged_key(Shelf(*shelf)))?;
                    // Without it the log's first entry, behind the snapshot, shows the gap.
                    let Some(staged) = staged else { continue };
                    restored_from.extend(state.shelves().all());
                    state = State::decode(staged).map_err(|_| damaged("a staged state"))?;
                }
                _ => {}
            }
        }
        let seed_anew = newer.is_some() || found.truncated.index > state.applied_index;
        if seed_anew {
            let reason = match newer {
                Some(newer) => format!(
                    "the engine went back in time: it is at checkpoint {}, the log knows {newer}",
                    row.checkpoint
                ),
                None => format!(
                    "the engine went back in time: it has applied entry {}, the log begins at {}",
                    state.applied_index, found.first_index
                ),
            };
            if state.conf_state.voters == [key.replica] {
                return Ok(Err(format!("{reason}; nobody else has the data")));
            }
            tracing::warn!(group = key.group, reason, "the leader is asked for a snapshot");
        }
        if !seed_anew && found.last.index < state.applied_index {
            return Ok(Err(format!(
                "the log ends at entry {}, but entry {} was applied",
                found.last.index, state.applied_index
            )));
        }
        Ok(Ok(Judged { state, restored_from, seed_anew, found }))
    }
}

/// The large values of all entries that will be applied, by replica and index. A replica whose
/// entries cannot be read is refused: others could get the pages of what was not seen.
fn held_values(
    log: &Log,
    judged: &mut BTreeMap<ReplicaKey, Judgement>,
) -> BTreeMap<ReplicaKey, BTreeMap<u64, Vec<Slot>>> {
    let mut held = BTreeMap::new();
    for (key, judgement) in judged {
        let Ok(found) = judgement else { continue };
        if found.seed_anew {
            continue;
        }
        match held_of(log, *key, found.state.applied_index + 1, found.found.last.index) {
            Ok(slots) if slots.is_empty() => {}
            Ok(slots) => {
                held.insert(*key, slots);
            }
            Err(reason) => *judgement = Err(reason),
        }
    }
    held
}

fn held_of(
    log: &Log,
    key: ReplicaKey,
    mut next: u64,
    last: u64,
) -> Result<BTreeMap<u64, Vec<Slot>>, String> {
    let mut held = BTreeMap::new();
    while next <= last {
        let entries = log.entries(key, next, last + 1, READ_BYTES);
        for entry in entries.map_err(|error| error.to_string())? {
            next = entry.index + 1;
            let slots = large::slots(entry.entry_type, &entry.data)
                .ok_or_else(|| format!("entry {} cannot be read", entry.index))?;
            if !slots.is_empty() {
                held.insert(entry.index, slots);
            }
        }
    }
    Ok(held)
}
