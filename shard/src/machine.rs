//! The machine: what a committed entry does to a group. Deterministic: the same entries on
//! the same state give the same rows, replies and effects on every replica, whatever the
//! time, the configuration or the order of anything in memory.
//!
//! ```text
//!   Batch ──> apply ──> rows (store), state ──> replies, effects
//! ```
//!
//! The revision is taken here: +1 for every command that changes something, so an unsplit
//! tenant's revisions are dense. A command is checked completely before it writes the first
//! row: no command is half done. Replies carry revision in their header; term and ids are
//! added further up.
//!
//! Invariants:
//! - `revision` never goes back; `compacted <= revision`.
//! - The only error that apply can fail with is the engine's, and then the process ends.
//! - Effects are returned in the order of their causes; nothing else leaves the machine.

mod charters;
pub mod effect;
mod keys;
pub mod leases;
mod ranges;
pub mod recovery;
mod split;
pub mod state;
mod sweep;
pub mod txn;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::RwLock;
use proto::cluster::group::{Batch, Charter, Command, command};
use proto::etcd::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, CompactionRequest, CompactionResponse,
    Member, ResponseHeader, alarm_request::AlarmAction,
};
use proto::group::{Reply, Request, cost};
use proto::{Error, GroupId, KeyRange};

use crate::charter;
use crate::engine::EngineError;
use crate::group::large::Placed;
use crate::split::entry::{Entry, Kept};
use crate::split::participant::Written;
use crate::split::wire;
use crate::store::Store;
use crate::store::changes;
use crate::store::counts::Counts;
use crate::store::layout::{self, Shelf};
use crate::store::shelves::Shelves;
use crate::store::view::View;
use effect::Effect;
use state::{LeaseState, ReplicaPlace, SnapshotState, State};

/// What others may know of a machine without asking its worker.
#[derive(Debug, Default)]
pub struct Published {
    revision: AtomicI64,
    compacted: AtomicI64,
    applied: AtomicU64,
    rows: AtomicU64,
    left: AtomicBool,
    shelves: ArcSwap<Shelves>,
    range_version: AtomicU64,
    split: AtomicBool,
    size_bytes: AtomicI64,
    charter: PublishedCharter,
    counts: RwLock<Counts>,
}

/// The part of a charter that readers on other threads go by.
#[derive(Debug, Default)]
struct PublishedCharter {
    tenant: AtomicU64,
    namespace: AtomicU64,
    standing: AtomicI32,
    version: AtomicU64,
}

/// Format of a batch with a recovery.
pub const RECOVERY_FORMAT: u32 = 3;
/// Format of batches whose commands are a split tenant's entries: they have fences of their own.
pub const SPLIT_FORMAT: u32 = 4;

/// No rows stand there, ever: the shelf of a replica that has left.
pub const NO_SHELF: Shelf = Shelf(0);

impl Published {
    /// Newest revision that may be read.
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Compacted revision.
    pub fn compacted(&self) -> i64 {
        self.compacted.load(Ordering::Acquire)
    }

    /// Applied Raft index.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Bytes of rows and large values.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed).max(0) as u64
    }

    /// Live keys by block, at the revision that apply has reached.
    pub fn counts(&self) -> &RwLock<Counts> {
        &self.counts
    }

    /// The group's own shelf, or [`NO_SHELF`]. It changes when a snapshot replaces all rows: whoever
    /// has read looks afterwards that it is still the same.
    pub fn rows(&self) -> Shelf {
        match self.left.load(Ordering::Acquire) {
            true => NO_SHELF,
            false => Shelf(self.rows.load(Ordering::Acquire)),
        }
    }

    /// Where all rows stand, and which keys are the group's. Whoever has read looks afterwards that
    /// [`Published::rows`] are still those.
    pub fn shelves(&self) -> Arc<Shelves> {
        self.shelves.load_full()
    }

    /// The replica has left, or its rows are another one's: whoever reads them may not find them any
    /// more. For good.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Whose the group is and what its clients may do, without the quota.
    pub fn charter(&self) -> Charter {
        let charter = &self.charter;
        // First: with it came everything else.
        let version = charter.version.load(Ordering::Acquire);
        Charter {
            tenant: charter.tenant.load(Ordering::Acquire),
            namespace: charter.namespace.load(Ordering::Acquire),
            standing: charter.standing.load(Ordering::Acquire),
            version,
            quota: 0,
        }
    }

    fn set_charter(&self, charter: &Charter) {
        self.charter.tenant.store(charter.tenant, Ordering::Release);
        self.charter.namespace.store(charter.namespace, Ordering::Release);
        self.charter.standing.store(charter.standing, Ordering::Release);
        self.charter.version.store(charter.version, Ordering::Release);
    }

    /// Is the tenant on other groups as well? Then only leaders answer reads that are not to be old.
    pub fn is_split(&self) -> bool {
        self.split.load(Ordering::Acquire)
    }

    /// Version of the range that the group serves.
    pub fn range_version(&self) -> u64 {
        self.range_version.load(Ordering::Acquire)
    }

    /// The range, of the version that was read before or a later one.
    pub fn range(&self) -> KeyRange {
        self.shelves.load().range.clone()
    }
}

/// A reply or the machine's final refusal.
pub type Answer = Result<Reply, Error>;

/// See the module.
pub struct Machine {
    group: GroupId,
    store: Arc<Store>,
    state: State,
    leases: BTreeMap<i64, i64>,
    /// Of a split tenant's entries, since there was one.
    kept: Option<Box<Kept>>,
    /// The last revision of which watches were told.
    fed: i64,
    /// Keys that a block of counts may hold.
    block_keys: u32,
    published: Arc<Published>,
    /// As the state has them.
    shelves: Arc<Shelves>,
    /// Where large values of the entry stand that is being applied.
    placed: Placed,
}

/// What a command came to.
#[derive(Debug)]
pub enum Settled {
    /// One of an unsplit tenant, or about the group itself.
    Answer(Answer),
    /// A split tenant's entry.
    Split(Entry, Written),
}

/// What applying one entry gave.
#[derive(Debug, Default)]
pub struct Applied {
    /// One per command, in order.
    pub answers: Vec<Settled>,
    /// For the worker.
    pub effects: Vec<Effect>,
}

/// A change of membership as it stands in a configuration entry's context.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberChange {
    /// The member as it is to be; only its id counts for a removal.
    #[prost(message, required, tag = "1")]
    pub member: Member,
    /// It is to go.
    #[prost(bool, tag = "2")]
    pub remove: bool,
    /// Its replica, unless that has the number of its node.
    #[prost(uint64, tag = "3")]
    pub replica: u64,
    /// Its node leaves the cluster with it.
    #[prost(bool, tag = "4")]
    pub retire: bool,
}

impl MemberChange {
    /// The replica that comes, goes or changes.
    pub fn replica(&self) -> u64 {
        if self.replica == 0 { self.member.id } else { self.replica }
    }
}

impl Machine {
    /// A machine at `state`, whose rows are in the store. Reads the leases and the counts,
    /// whose blocks are cut above `block_keys` keys.
    pub fn open(
        group: GroupId,
        store: Arc<Store>,
        state: State,
        block_keys: u32,
    ) -> Result<Machine, EngineError> {
        let mut machine = Machine {
            group,
            store,
            state: State::default(),
            leases: BTreeMap::new(),
            kept: None,
            fed: 0,
            block_keys,
            published: Arc::default(),
            shelves: Arc::default(),
            placed: Placed::default(),
        };
        machine.restore(state)?;
        Ok(machine)
    }

    /// Replaces everything by what a snapshot brought; readers go on with the same handle.
    pub fn restore(&mut self, mut state: State) -> Result<(), EngineError> {
        state.slim();
        let shelves = Arc::new(state.shelves());
        let (revision, keys, block_keys) = (state.revision, state.keys, self.block_keys);
        let counts = if state.is_bare() {
            // To look for rows that are not there would read, and keep in the engine's cache, blocks
            // of its neighbours, for each of many tenants that are created.
            self.leases.clear();
            Counts::new(shelves.clone(), revision, block_keys)
        } else {
            self.leases = leases::load(&self.store, shelves.own)?;
            Counts::load(&self.store, shelves.clone(), revision, keys, block_keys)?
        };
        *self.published.counts.write() = counts;
        for (shelf, part) in shelves.versions() {
            self.store.opened(shelf, revision);
            if shelf != shelves.own {
                self.store.shared(shelf, &part.start);
            }
        }
        self.fed = state.revision;
        self.state = state;
        self.restore_kept()?;
        self.shelves_changed();
        self.published.set_charter(&self.state.charter);
        self.publish();
        Ok(())
    }

    /// Puts the counts that changed into the store: they belong to the next checkpoint.
    pub fn store_counts(&self) {
        for (row_key, row) in self.published.counts.write().take_dirty() {
            match row {
                Some(row) => self.store.put_raw(row_key, row),
                None => self.store.remove(row_key),
            }
        }
    }

    /// The state of a group that was never written to.
    pub fn first_state(shelf: Shelf, members: Vec<Member>, cluster_id: u64) -> State {
        State {
            revision: 1,
            compacted: -1,
            shelf: shelf.0,
            range_version: 1,
            members,
            cluster_id,
            membership_version: 1,
            ..Default::default()
        }
    }

    /// For readers on other threads.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// The small state, without what is kept of a split tenant's entries.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The small state as it is written.
    pub fn whole_state(&self) -> State {
        let split = self.kept.as_ref().map(|kept| wire::kept_out(kept));
        State { split, ..self.state.clone() }
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Where all rows but the versions stand.
    pub fn shelf(&self) -> Shelf {
        Shelf(self.state.shelf)
    }

    /// Where all rows stand, and which keys are the group's.
    pub fn shelves(&self) -> &Arc<Shelves> {
        &self.shelves
    }

    /// To be called when the state says something else of them.
    fn shelves_changed(&mut self) {
        self.shelves = Arc::new(self.state.shelves());
        self.published.shelves.store(self.shelves.clone());
        self.published.counts.write().set_shelves(self.shelves.clone());
    }

    /// Leases and their granted TTLs.
    pub fn leases(&self) -> &BTreeMap<i64, i64> {
        &self.leases
    }

    /// Everything beside rows, for a snapshot at the applied index.
    pub fn snapshot_state(&self) -> Result<SnapshotState, EngineError> {
        let leases = self.leases.iter().map(|(id, ttl_s)| LeaseState { id: *id, ttl_s: *ttl_s });
        let leases = leases.collect();
        let mut packed = Vec::new();
        for shelf in self.shelves.told_by() {
            // On a shelf that others read as well there may be older ones, and those of others, of
            // which nothing is found then.
            let from = layout::twice_key(shelf, self.state.swept.max(0));
            for (row_key, _) in self.store.rows(&from, &layout::twice_key(shelf, i64::MAX))? {
                let revision = layout::split_twice(&row_key).unwrap_or_default();
                let (history, _) = self.store.history(&self.shelves, revision, revision, 1)?;
                packed.extend(changes::pack(shelf, &history).into_iter().map(|(_, row)| row));
            }
        }
        Ok(SnapshotState { state: self.whole_state(), leases, changes: packed })
    }

    /// A view of the newest revision.
    pub fn view(&self) -> View {
        self.store.view(&self.shelves.pieces, self.state.revision)
    }

    fn publish(&self) {
        let published = &self.published;
        published.rows.store(self.state.shelf, Ordering::Release);
        published.range_version.store(self.state.range_version, Ordering::Release);
        published.split.store(self.is_split(), Ordering::Release);
        published.compacted.store(self.state.compacted, Ordering::Release);
        published.size_bytes.store(self.state.size, Ordering::Relaxed);
        published.applied.store(self.state.applied_index, Ordering::Release);
        // Last: whoever sees the revision may read its rows.
        published.revision.store(self.state.revision, Ordering::Release);
    }

    /// Is an alarm of this type raised?
    pub fn alarm(&self, alarm: AlarmType) -> bool {
        self.state.alarms.iter().any(|member| member.alarm == alarm as i32)
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.state.revision, ..Default::default() })
    }

    /// Applies an entry of commands, whose large values stand where `placed` says. A batch made
    /// under another range version has no effect and gets no answers: it was *not done*.
    pub fn apply(
        &mut self,
        index: u64,
        term: u64,
        batch: &Batch,
        placed: Placed,
    ) -> Result<Option<Applied>, EngineError> {
        self.placed = placed;
        // A recovery goes by the version of the members.
        let has_fences = batch.format >= RECOVERY_FORMAT;
        let current = has_fences || batch.range_version == self.state.range_version;
        let mut applied = Applied::default();
        if current {
            applied.answers.reserve(batch.commands.len());
            for command in &batch.commands {
                if let Some(command::Body::Split(entry)) = &command.body {
                    let unreadable = || EngineError::Failed("an entry cannot be read".into());
                    let entry = wire::entry_in(entry.clone()).ok_or_else(unreadable)?;
                    let written = self.apply_split(&entry, &mut applied.effects)?;
                    applied.answers.push(Settled::Split(entry, written));
                    continue;
                }
                let answer = match self.apply_command(command, term, &mut applied.effects) {
                    // Nothing was written yet, and nobody else has the value.
                    Err(EngineError::Value(_)) if self.state.members.len() <= 1 => {
                        Err(Error::DamagedValue)
                    }
                    answer => answer?,
                };
                applied.answers.push(Settled::Answer(answer));
            }
        }
        self.placed = Placed::default();
        self.advance(index, term);
        Ok(current.then_some(applied))
    }

    /// Notes an entry without commands as applied.
    pub fn advance(&mut self, index: u64, term: u64) {
        assert!(index > self.state.applied_index, "entries are applied in order, each once");
        self.state.applied_index = index;
        self.state.applied_term = term;
        self.publish();
    }

    fn apply_command(
        &mut self,
        command: &Command,
        term: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Answer, EngineError> {
        use command::Body;
        let Some(body) = &command.body else { return Ok(Err(Error::KeyNotFound)) };
        if touches_data(body)
            && let Err(error) = charter::check_standing(self.state.charter.standing())
        {
            return Ok(Err(error));
        }
        if self.alarm(AlarmType::Corrupt) && touches_data(body) {
            return Ok(Err(Error::Corrupt));
        }
        if self.alarm(AlarmType::Nospace) && adds_data(body) {
            return Ok(Err(Error::NoSpace));
        }
        match body {
            Body::Put(request) => self.apply_put(request, effects),
            Body::DeleteRange(request) => self.apply_delete(request, effects),
            Body::Txn(request) => self.apply_txn(request, effects),
            Body::Compact(request) => Ok(self.apply_compact(request, effects)),
            Body::LeaseGrant(request) => Ok(self.apply_grant(request, effects)),
            Body::LeaseRevoke(request) => self.apply_revoke(request.id, effects),
            Body::Alarm(request) => Ok(Ok(self.apply_alarm(request))),
            Body::Publish(publish) => {
                if let Some(member) = &publish.member {
                    self.apply_publish(member);
                    effects.push(Effect::Members);
                }
                Ok(Ok(Reply::Done(self.header().unwrap_or_default())))
            }
            Body::MemberUpdate(request) => Ok(self.apply_member_update(request, effects)),
            Body::Charter(charter) => Ok(self.apply_charter(charter, effects)),
            Body::Recovery(recovery) => Ok(self.apply_recovery(recovery, term, effects)),
            Body::Split(_) => unreachable!("it is applied before"),
        }
    }

    fn apply_compact(&mut self, request: &CompactionRequest, effects: &mut Vec<Effect>) -> Answer {
        if request.revision <= self.state.compacted {
            return Err(Error::Compacted);
        }
        if request.revision > self.state.revision {
            return Err(Error::FutureRevision);
        }
        self.state.compacted = request.revision;
        effects.push(Effect::Compacted { revision: request.revision });
        Ok(Reply::Compact(CompactionResponse { header: self.header() }))
    }

    fn apply_alarm(&mut self, request: &AlarmRequest) -> Reply {
        let named = AlarmMember { member_id: request.member_id, alarm: request.alarm };
        let alarms = match request.action() {
            AlarmAction::Get => self
                .state
                .alarms
                .iter()
                .filter(|member| request.alarm == 0 || member.alarm == request.alarm)
                .copied()
                .collect(),
            AlarmAction::Activate => {
                if !self.state.alarms.contains(&named) {
                    self.state.alarms.push(named);
                    self.state.alarms.sort_by_key(|member| (member.alarm, member.member_id));
                }
                vec![named]
            }
            AlarmAction::Deactivate => {
                let before = self.state.alarms.len();
                self.state.alarms.retain(|member| *member != named);
                if self.state.alarms.len() < before { vec![named] } else { Vec::new() }
            }
        };
        Reply::Alarm(AlarmResponse { header: self.header(), alarms })
    }

    fn apply_publish(&mut self, publish: &Member) {
        if let Some(member) = self.state.members.iter_mut().find(|m| m.id == publish.id) {
            member.name = publish.name.clone();
            member.client_ur_ls = publish.client_ur_ls.clone();
        }
    }

    fn apply_member_update(
        &mut self,
        request: &proto::etcd::MemberUpdateRequest,
        effects: &mut Vec<Effect>,
    ) -> Answer {
        let Some(member) = self.state.members.iter_mut().find(|m| m.id == request.id) else {
            return Err(Error::MemberNotFound);
        };
        member.peer_ur_ls = request.peer_ur_ls.clone();
        effects.push(Effect::Members);
        Ok(Reply::Members(self.member_list()))
    }

    /// Members as the Cluster API lists them; its header has no revision.
    pub fn member_list(&self) -> proto::etcd::MemberListResponse {
        let cluster_id = self.state.cluster_id;
        proto::etcd::MemberListResponse {
            header: Some(ResponseHeader { cluster_id, ..Default::default() }),
            members: self.state.members.clone(),
        }
    }

    /// Applies a change of the configuration that Raft accepted.
    pub fn apply_members(
        &mut self,
        index: u64,
        term: u64,
        conf_state: proto::cluster::raft::ConfState,
        change: Option<MemberChange>,
    ) -> Vec<Effect> {
        self.state.conf_state = conf_state;
        if let Some(change) = change {
            self.state.membership_version += 1;
            let (node, replica) = (change.member.id, change.replica());
            self.state.members.retain(|member| member.id != node);
            self.state.places.retain(|place| place.node != node);
            if change.remove {
                self.state.removed.push(replica);
            }
            if change.remove && change.retire {
                self.state.retired.push(replica);
            }
            if !change.remove {
                if replica != node {
                    self.state.places.push(ReplicaPlace { replica, node });
                    self.state.places.sort_by_key(|place| place.node);
                }
                self.state.members.push(change.member);
                self.state.members.sort_by_key(|member| member.id);
            }
        }
        self.advance(index, term);
        vec![Effect::Members]
    }

    /// Mixes a change into the running digest.
    fn digest(&mut self, key: &[u8], revision: i64, value: Option<&Bytes>) {
        let mut hash = crc32fast::Hasher::new();
        hash.update(key);
        hash.update(&revision.to_be_bytes());
        hash.update(value.map_or(&[], |value| value.as_ref()));
        let mixed = self.state.digest.rotate_left(7) ^ u64::from(hash.finalize());
        self.state.digest = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Would a quota that is exceeded refuse this?
fn adds_data(body: &command::Body) -> bool {
    use command::Body;
    match body {
        Body::Put(_) | Body::LeaseGrant(_) => true,
        Body::Txn(request) => cost(&Request::Txn(request.clone())) > 0,
        _ => false,
    }
}

/// Would a corrupt member refuse this, or a frozen group?
fn touches_data(body: &command::Body) -> bool {
    use command::Body;
    !matches!(
        body,
        Body::Alarm(_)
            | Body::Publish(_)
            | Body::MemberUpdate(_)
            | Body::Charter(_)
            | Body::Recovery(_)
            | Body::Split(_)
    )
}
