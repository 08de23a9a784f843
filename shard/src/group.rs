//! A replica of one group: its Raft core, its machine, and who waits for what.
//!
//! The life of a command: the worker hands a request to its group; the group's commands of
//! one round are packed into one entry and proposed; when the entry is committed and applied
//! the machine's answers go to the tickets that wait under its index. A ticket whose index
//! was taken by an entry of another term was certainly *not done*.
//!
//! Invariants:
//! - A leader takes commands, confirms reads and counts leases only once it has applied an
//!   entry of its own term (`serving`): then it knows everything its predecessors committed.
//! - Every ticket is answered exactly once; a proposal is settled when its index is applied.

pub mod core;
pub mod large;
pub mod reads;
pub mod split_costs;
pub mod storage;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use proto::cluster::group::{Command, GroupRequest};
use proto::group::{GroupError, Reply};
use proto::{Error, GroupId, NodeId};

use crate::lease::Lessor;
use crate::machine::{Machine, Published};
use crate::node::{Asked, Parting, Role};
use crate::touched::{Touch, Touched, is_drawn};
use core::Core;
use large::Slot;
use reads::Reads;
use split_costs::SplitCosts;

/// Names one waiting request to whoever drives the node.
pub type Ticket = u64;

/// What a replica has done since it was opened, for whoever balances the load.
#[derive(Debug, Default)]
pub struct Work {
    requests: AtomicU64,
    written_bytes: AtomicU64,
    /// Taken for few requests only, and by those who look.
    touched: Mutex<Touched>,
}

impl Work {
    /// One request more. Few of them ask for the time, in milliseconds of the node's clock.
    pub(crate) fn request(&self, request: &GroupRequest, now_ms: impl FnOnce() -> u64) {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if is_drawn(number)
            && let Some(body) = &request.body
        {
            self.touched.lock().note(body, now_ms());
        }
    }

    /// What requests have touched lately.
    pub fn touches(&self, now_ms: u64) -> Vec<Touch> {
        self.touched.lock().touches(now_ms)
    }

    /// So many bytes more were appended to the log.
    pub(crate) fn wrote(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Requests that were taken here.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of entries that were appended to the log.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }
}

/// What others may know of a replica without asking its worker.
#[derive(Debug, Default)]
pub struct Shared {
    /// The machine's side.
    pub published: Arc<Published>,
    /// What it has done.
    pub work: Work,
    /// What it costs that its tenant is split.
    pub split: SplitCosts,
    leader: AtomicU64,
    term: AtomicU64,
    learner: AtomicBool,
    replica: u64,
    membership_version: AtomicU64,
    stopped: AtomicBool,
    withheld: AtomicBool,
    /// Milliseconds of the node's clock when the leader was lost, 0 while there is one.
    leaderless_since_ms: AtomicU64,
    /// Clocks of its leases. Held for a moment only.
    lessor: Mutex<Lessor>,
}

impl Shared {
    /// Renews a lease here and now, if nobody else can lead the group. Gives its TTL in seconds.
    pub(crate) fn renew_alone(&self, now_ms: u64, lease: i64) -> Option<i64> {
        self.lessor.lock().renew_alone(now_ms, lease)
    }

    /// The node whose replica leads, if one is known.
    pub fn leader(&self) -> Option<u64> {
        Some(self.leader.load(Ordering::Acquire)).filter(|leader| *leader != 0)
    }

    /// Is the replica that of a member that was added as a learner, as far as it has applied?
    pub fn is_learner(&self) -> bool {
        self.learner.load(Ordering::Acquire)
    }

    /// The replica's number.
    pub fn replica(&self) -> u64 {
        self.replica
    }

    /// Changes of membership that the replica has applied.
    pub fn membership_version(&self) -> u64 {
        self.membership_version.load(Ordering::Acquire)
    }

    /// Is it known that the replica is quarantined?
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The replica is quarantined, now and for ever.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Does the replica wait for a word before it takes part?
    pub fn is_withheld(&self) -> bool {
        self.withheld.load(Ordering::Acquire)
    }

    /// May the replica be asked, and watched? Not while it waits for its first snapshot.
    pub fn is_usable(&self) -> bool {
        !self.is_stopped() && !self.is_withheld() && self.published.applied() > 0
    }

    /// Raft's term.
    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    /// Since when no leader is known, in milliseconds of the node's clock.
    pub fn leaderless_since_ms(&self) -> Option<u64> {
        Some(self.leaderless_since_ms.load(Ordering::Acquire)).filter(|since| *since != 0)
    }
}

/// What is to happen when a proposed command has been applied.
#[derive(Debug)]
pub(crate) enum Then {
    /// The ticket gets the machine's answer.
    Answer(Ticket),
    /// The ticket is refused with this, whatever the machine said.
    Refuse(Ticket, Error),
    /// The ticket gets the answer when history is physically gone up to this revision.
    AfterSweep(Ticket, i64),
    /// The lessor's own revocation.
    Expiry(i64),
    /// A split tenant's entry: the tag that its role gave it, and the request that it is for.
    Split(i64, Option<Ticket>),
}

impl Then {
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        match self {
            Then::Answer(ticket) | Then::Refuse(ticket, _) | Then::AfterSweep(ticket, _) => {
                Some(*ticket)
            }
            Then::Split(_, ticket) => *ticket,
            Then::Expiry(_) => None,
        }
    }
}

/// Entries on their way: who waits, by index and term. One index may stand under several
/// terms: an entry of an old leadership may still win over the one that took its place here.
pub(crate) type Proposals = BTreeMap<(u64, u64), Vec<Then>>;

/// Who asks about a lease whose end is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeaseAsk {
    KeepAlive(Ticket),
    TimeToLive(Ticket),
}

/// A leadership handover that somebody waits for.
pub(crate) struct Transfer {
    pub(crate) ticket: Ticket,
    pub(crate) target: u64,
    pub(crate) until_ms: u64,
}

/// How a replica stands for election before its election timeout is over. It asks first (Raft's
/// pre-vote), so that a living leader stays: who hears of one refuses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eager {
    /// Ticks until the next try.
    pub(crate) wait: usize,
    /// Ticks from one try to the next.
    pub(crate) every: usize,
    /// Tries that are left.
    pub(crate) tries: usize,
    /// Raft's term: once it has risen somebody stands, whom this one must not disturb.
    pub(crate) term: u64,
}

impl Eager {
    /// A tick passed. Says whether to try now.
    fn is_due(&mut self) -> bool {
        let is_due = self.wait == 0;
        if is_due {
            self.wait = self.every;
            self.tries = self.tries.saturating_sub(1);
        }
        self.wait = self.wait.saturating_sub(1);
        is_due
    }
}

/// One replica. See the module.
pub struct Group {
    pub(crate) id: GroupId,
    /// This node.
    pub(crate) node: NodeId,
    pub(crate) core: Core,
    pub(crate) machine: Machine,
    pub(crate) shared: Arc<Shared>,
    pub(crate) queued: Vec<(Command, Then)>,
    pub(crate) proposals: Proposals,
    pub(crate) reads: Reads,
    /// Parts of reads over several groups, by the revision that is to be applied first.
    pub(crate) parts: BTreeMap<i64, Vec<(Ticket, i64)>>,
    pub(crate) sweeping: Vec<(Ticket, i64, Reply)>,
    pub(crate) lease_asks: BTreeMap<i64, Vec<LeaseAsk>>,
    pub(crate) transfer: Option<Transfer>,
    pub(crate) serving: bool,
    pub(crate) leader_changes: u64,
    pub(crate) failed: u64,
    /// Applied index of the last checkpoint, and of the one being written.
    pub(crate) checkpointed: u64,
    pub(crate) freezing: u64,
    /// The rows were lost, the log was not: nothing is applied or served before the leader has
    /// sent a snapshot.
    pub(crate) seed_anew: bool,
    /// Cannot take part any more: waits to be removed.
    pub(crate) stopped: Option<String>,
    /// Large values that records in the log hold, by index.
    pub(crate) held: BTreeMap<u64, Vec<Slot>>,
    /// It stands for election although no timeout is over: there was no leader to be heard.
    pub(crate) eager: Option<Eager>,
    /// Its part in a split tenant, while it leads.
    pub(crate) role: Option<Box<Role>>,
    /// Term and number of the last stream of a role before it.
    pub(crate) last_stream: (u64, u64),
    /// Requests to a split tenant that are not answered: those of the role, and those that a role
    /// before it has proposed.
    pub(crate) asked: BTreeMap<Ticket, Asked>,
    /// A split that is under way.
    pub(crate) parting: Option<Parting>,
    /// Nodes of replicas that spoke to this one before it knew the members.
    pub(crate) heard: BTreeMap<u64, NodeId>,
    /// Version of the members in a recovery that stands in the log and is not applied yet, or was.
    pub(crate) recovering: u64,
}

impl Group {
    /// Puts a replica of `node` together.
    pub fn new(node: NodeId, id: GroupId, core: Core, machine: Machine) -> Group {
        let shared = Arc::new(Shared {
            published: machine.published().clone(),
            work: Work::default(),
            split: SplitCosts::default(),
            leader: AtomicU64::new(0),
            term: AtomicU64::new(core.term()),
            learner: AtomicBool::new(false),
            replica: core.key().replica,
            membership_version: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            withheld: AtomicBool::new(false),
            leaderless_since_ms: AtomicU64::new(0),
            lessor: Mutex::default(),
        });
        let checkpointed = machine.state().applied_index;
        let group = Group {
            id,
            node,
            core,
            machine,
            shared,
            queued: Vec::new(),
            proposals: Proposals::new(),
            reads: Reads::default(),
            parts: BTreeMap::new(),
            sweeping: Vec::new(),
            lease_asks: BTreeMap::new(),
            transfer: None,
            serving: false,
            leader_changes: 0,
            failed: 0,
            checkpointed,
            freezing: 0,
            seed_anew: false,
            stopped: None,
            held: BTreeMap::new(),
            eager: None,
            role: None,
            last_stream: (0, 0),
            asked: BTreeMap::new(),
            parting: None,
            heard: BTreeMap::new(),
            recovering: 0,
        };
        group.publish_membership();
        group
    }

    /// The clocks of its leases. Not to be held while another is taken.
    pub(crate) fn lessor(&self) -> MutexGuard<'_, Lessor> {
        self.shared.lessor.lock()
    }

    /// Offers leadership to another voter.
    pub(crate) fn offer(&mut self, replica: u64) {
        // Before it can take it.
        self.lessor().offered();
        self.core.transfer(replica);
    }

    /// Has the replica take no part, or take part again.
    pub(crate) fn withhold(&self, withheld: bool) {
        self.shared.withheld.store(withheld, Ordering::Release);
    }

    /// Stands a recovery in the log that is not applied yet? Whoever speaks meanwhile is left behind.
    pub fn is_recovering(&self) -> bool {
        self.recovering > self.machine.state().membership_version
    }

    /// Gives back memory that is only needed while something is under way.
    pub(crate) fn slim(&mut self) {
        self.core.slim();
        self.reads.slim();
        self.queued.shrink_to_fit();
        self.sweeping.shrink_to_fit();
        // An emptied map keeps a node of eleven places.
        if self.proposals.is_empty() {
            self.proposals = Proposals::new();
        }
        if self.held.is_empty() {
            self.held = BTreeMap::new();
        }
    }

    /// For other threads.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Index and term of the last entry in its log.
    pub fn last_entry(&self) -> (u64, u64) {
        (self.core.last_index(), self.core.last_term())
    }

    /// Does this replica lead, as far as it knows?
    pub fn is_leader(&self) -> bool {
        self.core.is_leader()
    }

    /// A tick passed: stands for election if it need not wait for a timeout. One that `rests`
    /// lets its turn pass.
    pub(crate) fn stand_early(&mut self, rests: bool) {
        let Some(mut eager) = self.eager.take() else { return };
        if !self.core.is_unclaimed(eager.term) {
            return;
        }
        if eager.is_due() && !rests {
            self.core.campaign();
        }
        self.eager = Some(eager).filter(|eager| eager.tries > 0);
    }

    /// The place of this node's replica in the line of those that may lead the group: another one
    /// is the first of each group, so that leaders are spread. `None` if it is no member.
    pub(crate) fn turn(&self) -> Option<usize> {
        let members = &self.machine.state().members;
        let place = members.iter().position(|member| member.id == self.node.0)?;
        let first = self.id.0 as usize % members.len();
        Some((place + members.len() - first) % members.len())
    }

    /// Is this the group's only replica? One that waits for its first snapshot is not.
    pub fn is_alone(&self) -> bool {
        self.machine.state().members.len() == 1
    }

    /// Has this replica lost its rows, and waits for the leader's?
    pub fn is_seeded_anew(&self) -> bool {
        self.seed_anew
    }

    /// The node of a replica, as well as it is known.
    pub(crate) fn node_of(&self, replica: u64) -> NodeId {
        let known = self.machine.state().node_of(replica).map(NodeId);
        known.or(self.heard.get(&replica).copied()).unwrap_or(NodeId(replica))
    }

    /// The node of the leader, if one is known.
    pub(crate) fn leader_node(&self) -> Option<u64> {
        self.core.leader().map(|leader| self.node_of(leader).0)
    }

    /// Why a request cannot be taken here now; names the leader if one is known.
    pub(crate) fn elsewhere(&self) -> GroupError {
        let leads = self.core.is_leader();
        GroupError::not_done(Error::NoLeader, self.leader_node().filter(|_| !leads))
    }

    /// Shows to other threads whether this replica votes, after a change of members.
    pub(crate) fn publish_membership(&self) {
        let state = self.machine.state();
        let replica = self.core.key().replica;
        let votes = state.member_of(replica).is_some_and(|member| !member.is_learner);
        // A replica that placement has put here has a number of its own.
        let by_placement = replica != self.node.0;
        self.shared.learner.store(!votes && !by_placement, Ordering::Release);
        let version = self.machine.state().membership_version;
        self.shared.membership_version.store(version, Ordering::Release);
    }

    /// Shows role, term and leader to other threads.
    pub(crate) fn publish_role(&mut self, now_ms: u64) {
        let leader = self.leader_node().unwrap_or(0);
        let before = self.shared.leader.swap(leader, Ordering::AcqRel);
        self.shared.term.store(self.core.term(), Ordering::Release);
        if leader != before && leader != 0 {
            self.leader_changes += 1;
        }
        // One that has just come has its time to find a leader, as one that has lost it.
        let since = &self.shared.leaderless_since_ms;
        if leader != 0 {
            since.store(0, Ordering::Release);
        } else if since.load(Ordering::Acquire) == 0 {
            since.store(now_ms.max(1), Ordering::Release);
        }
    }
}
