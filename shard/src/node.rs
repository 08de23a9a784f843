//! All groups of one process, without I/O: inputs in, outputs out.
//!
//! Whoever drives a node (the worker thread, or the simulator) steps inputs into it, then
//! closes the round and carries out what comes back: sends messages, writes the log, writes
//! a checkpoint, answers tickets, feeds the watch hub. The same inputs at the same times
//! give the same outputs, byte for byte.
//!
//! ```text
//!   requests ┐                       ┌ messages (a leader's leave before the write)
//!   messages ├─> step ... round ──>  ├ one write for all groups, one sync
//!   ticks    │                       ├ answers, events
//!   written  ┘                       └ a checkpoint, now and then
//! ```
//!
//! Invariants:
//! - Writes are numbered in order and become durable in that order.
//! - One checkpoint at a time is on its way.
//! - What a round or a write costs does not grow with the groups that nothing happens to: each kind
//!   of work has a set of the groups that it is due for. A set may name a group too many, never
//!   one too few.
//! - A panic in one group's step or apply stops that replica, not its neighbours.
//! - A replica whose log or state cannot be trusted is not opened: it neither votes nor
//!   acknowledges nor serves (`Opened::refused` says why).

mod births;
mod garbage;
mod members;
mod merge;
mod open;
mod pulses;
mod recovery;
mod requests;
mod rounds;
#[cfg(test)]
mod shared_rows;
mod slow;
mod snapshots;
mod split;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use proto::cluster::group::GroupRequest;
use proto::cluster::raft::PeerMessage;
use proto::cluster::split::SplitMessage;
use proto::group::{GroupError, Reply};
use proto::{GroupId, NodeId};

use crate::engine::EngineError;
use crate::extents::Extents;
use crate::group::core::PersistId;
use crate::group::large::{self, Appended};
use crate::group::{Group, Shared, Ticket};
use crate::log::{Log, Record, ReplicaKey};
use crate::machine::effect::RevisionEvents;
use crate::room::Room;
use crate::store::Store;
use crate::store::checkpoint::Checkpoint;
use crate::store::layout::Shelf;
use crate::store::shelves::Pieces;

pub use open::{Birth, Opened, Pages, Refused};
pub use recovery::Recover;
pub(crate) use split::{Asked, Parting, Role};

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node.
    pub node: NodeId,
    /// Id of the cluster: messages of another one are dropped.
    pub cluster: u64,
    /// Different at every start: makes names of read rounds unique.
    pub incarnation: u64,
    /// Stands in for randomness.
    pub seed: u64,
    /// Milliseconds between ticks.
    pub tick_ms: u64,
    /// Ticks without a leader before a replica campaigns, at least; at most twice that.
    pub election_ticks: usize,
    /// Size from which on a tenant is refused more; below 1: never.
    pub quota_bytes: i64,
    /// Shortest TTL of a lease.
    pub min_lease_ttl_s: i64,
    /// Live keys that a block of the counts may hold (`store/counts.rs`).
    pub block_keys: u32,
    /// Values from this length on stand in extents (`group/large.rs`).
    pub large_bytes: usize,
    /// Replicas that were on disk take no part before [`Input::Release`] names them: they may have
    /// been left behind meanwhile. The system group's, who would have to say so, do not wait.
    pub withhold: bool,
    /// When checkpoints are taken.
    pub checkpoint: CheckpointPolicy,
    /// How snapshots are sent.
    pub transfer: TransferPolicy,
}

impl NodeConfig {
    /// The election timeout in milliseconds.
    pub fn election_ms(&self) -> u64 {
        self.tick_ms * self.election_ticks as u64
    }
}

/// When a checkpoint is taken.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointPolicy {
    /// As soon as so many bytes wait.
    pub bytes: u64,
    /// As soon as so many bytes of large values wait: pages that they take the place of are not
    /// free before, and a start reads them again.
    pub large_bytes: u64,
    /// As soon as so many commands were applied.
    pub commands: u64,
    /// At the latest so long after the first row that waits.
    pub age_ms: u64,
    /// So long after the last write.
    pub idle_ms: u64,
}

/// How snapshots are sent: reading, sending and taking them in wants the same cores and disks as
/// requests do.
#[derive(Clone, Copy, Debug)]
pub struct TransferPolicy {
    /// Bytes of rows in one piece: what comes for any group waits while a piece is read.
    pub piece_bytes: usize,
    /// Bytes of rows a second that a node sends at most, all transfers together.
    pub bytes_per_s: u64,
}

impl Default for TransferPolicy {
    fn default() -> TransferPolicy {
        TransferPolicy { piece_bytes: 64 << 10, bytes_per_s: 32 << 20 }
    }
}

impl Default for CheckpointPolicy {
    fn default() -> CheckpointPolicy {
        CheckpointPolicy {
            bytes: 32 << 20,
            large_bytes: 64 << 20,
            commands: 50_000,
            age_ms: 30_000,
            idle_ms: 5_000,
        }
    }
}

/// What comes into a node.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most inputs are requests or messages")]
pub enum Input {
    /// Time passed; once every tick.
    Tick,
    /// A request for one of the groups.
    Request {
        /// Names it in the answer.
        ticket: Ticket,
        /// The request.
        request: GroupRequest,
    },
    /// A message of another node.
    Peer {
        /// Who sent it.
        from: NodeId,
        /// The message.
        message: PeerMessage,
    },
    /// A write is durable, and with it all before.
    Persisted {
        /// Its number.
        id: PersistId,
        /// Milliseconds that the disk took for it.
        sync_ms: u64,
        /// What it appended of each replica, and of those before it.
        appended: Vec<Appended>,
    },
    /// The checkpoint on its way is durable.
    CheckpointWritten,
    /// Messages to a node cannot be delivered.
    Unreachable {
        /// The node.
        node: NodeId,
    },
    /// Replicas are to come to this node: see [`Birth`]. Those that are here, were here, or are on
    /// their way are left as they are.
    Births(Vec<Birth>),
    /// Replicas here that may take part: see [`NodeConfig::withhold`].
    Release(Vec<GroupId>),
    /// A replica here is to go on without the others: see [`Recover`].
    Recover(Recover),
    /// Groups that are no more, or no more here: their replicas go.
    Deaths(Vec<GroupId>),
    /// The nodes that have replicas of the groups of split tenants, as placement says.
    Whereabouts(BTreeMap<GroupId, Vec<NodeId>>),
    /// How the disk stands has changed.
    Room(Room),
    /// The process is about to stop: hand leaderships away.
    Drain,
}

/// A write to the log. Large values are cut out of it first (`group/large.rs`).
#[derive(Debug, Default)]
pub struct Persist {
    /// Its number.
    pub id: PersistId,
    /// What to append.
    pub records: Vec<Record>,
    /// Where the versions of the replicas stand whose entries are among them.
    pub shelves: BTreeMap<ReplicaKey, Pieces>,
}

impl Persist {
    /// Adds the write behind this one, so that both are one.
    pub fn join(&mut self, next: Persist) {
        assert!(self.id < next.id, "write {} is to go behind write {}", next.id, self.id);
        self.id = next.id;
        self.records.extend(next.records);
        self.shelves.extend(next.shelves);
    }

    /// Cuts large values out and appends the rest to the log. The caller syncs the log and then
    /// tells the node what this returns.
    pub fn write(
        &mut self,
        log: &Log,
        extents: &Extents,
        large_bytes: usize,
    ) -> Result<Vec<Appended>, NodeError> {
        let failed =
            |error: &dyn std::error::Error| NodeError::Damaged(format!("write the log: {error}"));
        let appended = large::cut_out(extents, &mut self.records, &self.shelves, large_bytes);
        let appended = appended.map_err(|error| failed(&error))?;
        log.append(&self.records).map_err(|error| failed(&error))?;
        Ok(appended)
    }
}

/// How a request is answered.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "it is moved once")]
pub enum Answer {
    /// Like this.
    Reply(Reply),
    /// Whoever asked may read this replica's rows now.
    Readable(Reading),
}

/// At which revision rows may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// At the published one or above.
    Newest,
    /// At this one, which the answer is to name.
    At {
        /// The revision.
        revision: i64,
        /// Below this one nothing is to be read, whatever this replica has applied.
        compacted: i64,
    },
}

/// What a node wants done, in this order.
#[allow(clippy::large_enum_variant, reason = "most outputs are answers or messages")]
pub enum Output {
    /// Send to another node.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// Append to the log and sync.
    Persist(Persist),
    /// Answer a request.
    Answer {
        /// Which.
        ticket: Ticket,
        /// How.
        answer: Result<Answer, GroupError>,
    },
    /// Tell watchers.
    Events {
        /// Of which group.
        group: GroupId,
        /// What happened.
        events: Arc<RevisionEvents>,
    },
    /// The group's rows were replaced by a snapshot: watchers catch up from history.
    Replaced {
        /// Which group.
        group: GroupId,
    },
    /// The group has fewer keys than before: watches of the others end.
    Ranged {
        /// Which group.
        group: GroupId,
        /// Its revision.
        revision: i64,
    },
    /// Write a checkpoint into the engine.
    Checkpoint(Arc<Checkpoint>),
    /// Names or addresses of members changed.
    Members {
        /// Of which group.
        group: GroupId,
    },
    /// A replica came to this node.
    Born {
        /// Of which group.
        group: GroupId,
    },
    /// A replica here is quarantined: nobody is to wait for it.
    Stopped {
        /// Of which group.
        group: GroupId,
    },
    /// A replica left this node.
    Gone {
        /// Of which group.
        group: GroupId,
    },
    /// This node left the cluster: it was removed as a member.
    Retired {
        /// Of the members of which group.
        group: GroupId,
    },
}

/// A replica that is out of service.
#[derive(Clone, Debug)]
pub struct Quarantine {
    /// Its number.
    pub replica: u64,
    /// Why, for a person.
    pub reason: String,
}

/// The node cannot go on; the process ends and a restart replays the log.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What is on disk does not fit together.
    #[error("{0}")]
    Damaged(String),
    /// The reserve of the disk is half gone, and others can go on.
    #[error("the disk is full but for a last reserve: make room, then start this node again")]
    DiskFull,
}

/// See the module.
pub struct Node {
    config: NodeConfig,
    store: Arc<Store>,
    log: Arc<Log>,
    /// Boxed: a map that fills in ascending order has room for nearly twice as many as there are.
    groups: BTreeMap<GroupId, Box<Group>>,
    /// Groups that something happened to in this round.
    touched: BTreeSet<GroupId>,
    pulses: pulses::Pulses,
    /// Groups of which something waits for a write to be durable.
    unsettled: BTreeSet<GroupId>,
    /// Groups with history to be removed.
    sweeping: BTreeSet<GroupId>,
    /// Groups that lead a part of a split tenant here.
    roles: BTreeSet<GroupId>,
    /// Groups of which somebody has asked a split.
    partings: BTreeSet<GroupId>,
    /// Groups that have to do with a merge.
    merges: BTreeSet<GroupId>,
    /// Who wants to know that groups here are frozen.
    askers: BTreeMap<GroupId, merge::Asker>,
    /// Replicas whose rows others here have.
    swallowed: BTreeMap<GroupId, merge::Swallowed>,
    /// Nodes on which nothing is left of an absorbed group, by that and by the one that absorbed it.
    rests: BTreeMap<(GroupId, GroupId), BTreeSet<NodeId>>,
    /// What leaders of split tenants' groups here say to each other.
    whispers: VecDeque<SplitMessage>,
    /// See [`Input::Whereabouts`].
    whereabouts: BTreeMap<GroupId, Vec<NodeId>>,
    /// Groups whose state is not as the newest checkpoint has it.
    changed: BTreeSet<GroupId>,
    /// Groups whose state is in the checkpoint on its way.
    freezing: BTreeSet<GroupId>,
    /// Groups whose records in the log hold large values.
    holding: BTreeSet<GroupId>,
    now_ms: u64,
    last_tick_ms: u64,
    /// Lease expiry rests until then: the loop stalled, keepalives may wait in its queue.
    lease_rest_until_ms: u64,
    next_persist: PersistId,
    /// All writes up to this one are durable.
    persisted: PersistId,
    records: Vec<Record>,
    outputs: Vec<Output>,
    /// See [`Node::news`].
    news: u64,
    next_shelf: u64,
    /// Shelves of which something may be garbage (`node/garbage.rs`).
    dropped: BTreeSet<Shelf>,
    /// What is removed of the first of them.
    dropping: Option<garbage::Plan>,
    /// Groups that read shelves beside their own.
    sharing: BTreeSet<GroupId>,
    checkpoints: Checkpoints,
    transfers: snapshots::Transfers,
    next_lease: u64,
    draining: bool,
    room: Room,
    slow: slow::SlowDisk,
    moving: Moving,
    /// Replicas that come with the next checkpoint, or with the one on its way.
    newborns: Vec<births::Newborn>,
    /// Replicas to be dropped at the end of the round.
    leaving: BTreeSet<GroupId>,
    departures: Vec<births::Departure>,
    /// Rows of the engine that the next checkpoint removes.
    bygone: Vec<Bytes>,
    /// Replicas that were not opened.
    shut: BTreeMap<GroupId, open::Shut>,
    /// The log had damage of unknown owner when the node was opened.
    holes: bool,
    /// Lowest number that a replica of a group may have here.
    tombstones: BTreeMap<u64, u64>,
}

/// Moving extents to the front of the page files.
struct Moving {
    /// Bytes that may be moved until the next tick.
    budget: u64,
    /// Where the next try begins: page file and page; files above are done.
    skip: (u32, u32),
    rest_until_ms: u64,
    /// Commands applied since the last checkpoint, as of the last tick.
    commands: u64,
}

/// Begins with the last page file.
const NO_SKIP: (u32, u32) = (u32::MAX, 0);

impl Default for Moving {
    fn default() -> Moving {
        Moving { budget: 0, skip: NO_SKIP, rest_until_ms: 0, commands: 0 }
    }
}

/// Where checkpoints stand.
#[derive(Default)]
struct Checkpoints {
    number: u64,
    on_its_way: Option<Arc<Checkpoint>>,
    /// The position of the log when it was frozen.
    start: crate::log::Position,
    commands: u64,
    /// Rows of dropped shelves removed since the last freeze.
    drops: usize,
    first_write_ms: Option<u64>,
    last_write_ms: u64,
    /// Take one as soon as none is on its way.
    forced: bool,
    /// Take none before this write is durable.
    not_before: PersistId,
}

impl Checkpoints {
    /// The next one is to be taken as soon as it can be.
    fn force(&mut self, now_ms: u64) {
        self.forced = true;
        self.first_write_ms.get_or_insert(now_ms);
    }

    /// Rows wait for the next one.
    fn wrote(&mut self, now_ms: u64) {
        self.first_write_ms.get_or_insert(now_ms);
        self.last_write_ms = now_ms;
    }
}

impl Node {
    /// The group's replica here.
    pub fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id).map(Box::as_ref)
    }

    /// All replicas here.
    pub fn groups(&self) -> impl Iterator<Item = (&GroupId, &Group)> {
        self.groups.iter().map(|(id, group)| (id, group.as_ref()))
    }

    /// Tells of the group's replica here if it is out of service.
    pub fn quarantined(&self, id: GroupId) -> Option<Quarantine> {
        if let Some(shut) = self.shut.get(&id) {
            return Some(Quarantine { replica: shut.replica, reason: shut.reason.clone() });
        }
        let group = self.groups.get(&id)?;
        let reason = group.stopped.clone()?;
        Some(Quarantine { replica: group.core.key().replica, reason })
    }

    /// The groups whose replicas here were not opened.
    pub fn shut(&self) -> impl Iterator<Item = GroupId> {
        self.shut.keys().copied()
    }

    /// For other threads: how replicas here stand.
    pub fn shared(&self, id: GroupId) -> Option<Arc<Shared>> {
        self.groups.get(&id).map(|group| group.shared.clone())
    }

    /// Rises when a replica came or went, changed its members or its leader, or was stopped.
    pub fn news(&self) -> u64 {
        self.news
    }

    /// Has no group here a replica elsewhere?
    pub fn is_alone(&self) -> bool {
        self.groups.values().all(|group| group.is_alone())
    }

    /// How the disk stands.
    pub fn room(&self) -> Room {
        self.room
    }

    /// The rows of all groups.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Settings.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Reply, GroupError>) {
        self.outputs.push(Output::Answer { ticket, answer: answer.map(Answer::Reply) });
    }

    /// Puts out a word about a replica that others follow.
    fn announce(&mut self, output: Output) {
        self.news += 1;
        self.outputs.push(output);
    }

    fn take_shelf(&mut self) -> Shelf {
        let shelf = Shelf(self.next_shelf);
        self.next_shelf += 1;
        shelf
    }
}

/// Bytes of a prost message.
fn encode(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}
