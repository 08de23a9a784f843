//! What an operator may ask of placement, and what comes back. Travels as JSON, so that scripts
//! can read it; the command line prints it as tables.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::check::Finding;
use crate::inventory::SplitLoad;
use crate::policy::{Bar, PolicyView, PolicyWish};
use crate::record::{Fate, NodeLoad, NodeState, OperatorState, Recovery, TenantState, hex};

/// A command.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// A new tenant, with an etcd of its own.
    TenantCreate {
        /// Its name: a DNS label.
        name: String,
        /// Replicas of its groups; 0 for the service's default.
        #[serde(default)]
        replicas: usize,
        /// Port of its own at every router, 0 for none.
        #[serde(default)]
        port: u16,
        /// The name may be one that a tenant had which was purged lately.
        #[serde(default)]
        reuse_name: bool,
    },
    /// All tenants.
    TenantList,
    /// One tenant.
    TenantShow {
        /// Which.
        name: String,
    },
    /// Clients of the tenant are refused until it is thawed.
    TenantFreeze {
        /// Which.
        name: String,
    },
    /// Ends a freeze.
    TenantThaw {
        /// Which.
        name: String,
    },
    /// How much each of the tenant's etcds may hold.
    TenantQuota {
        /// Which.
        name: String,
        /// Bytes from which on it is refused more; 0 for the nodes' own setting.
        bytes: u64,
    },
    /// Refuses clients; the data goes when the grace is over.
    TenantDelete {
        /// Which.
        name: String,
    },
    /// Takes a deletion back.
    TenantUndelete {
        /// Which.
        name: String,
    },
    /// Changes the name, and nothing else.
    TenantRename {
        /// Which.
        name: String,
        /// The new name.
        to: String,
    },
    /// Clients who name no tenant get this one.
    TenantDefault {
        /// Which; empty for none.
        name: String,
    },
    /// A part of a tenant with its own placement.
    NamespaceCreate {
        /// The tenant.
        tenant: String,
        /// The part's name: a DNS label.
        name: String,
        /// Keys that begin so, for a part of the tenant's one key space; otherwise the part is a
        /// second etcd.
        #[serde(default)]
        prefix: Option<String>,
        /// Port of its own at every router, 0 for none.
        #[serde(default)]
        port: u16,
    },
    /// Refuses clients of a part; its data goes when the grace is over. Of a stretch of the tenant's
    /// keys only the rule goes.
    NamespaceDelete {
        /// The tenant.
        tenant: String,
        /// The part.
        name: String,
    },
    /// Takes a deletion back.
    NamespaceUndelete {
        /// The tenant.
        tenant: String,
        /// The part.
        name: String,
    },
    /// The parts of a tenant.
    NamespaceList {
        /// The tenant.
        tenant: String,
    },
    /// All nodes.
    NodeList,
    /// Nothing new is put on the node.
    NodeCordon {
        /// Which.
        name: String,
    },
    /// Ends a cordon or a drain.
    NodeUncordon {
        /// Which.
        name: String,
    },
    /// Its share of new groups, against other nodes.
    NodeWeight {
        /// Which.
        name: String,
        /// 0 for none.
        weight: u32,
    },
    /// The zone it is in.
    NodeZone {
        /// Which.
        name: String,
        /// Its name.
        zone: String,
    },
    /// Moves everything away from the node, and puts nothing there.
    NodeDrain {
        /// Which.
        name: String,
    },
    /// An empty node leaves for good.
    NodeRemove {
        /// Which.
        name: String,
        /// It is not empty and does not answer: what was there is replaced at once.
        #[serde(default)]
        force: bool,
    },
    /// How long a node may be silent before its replicas are replaced.
    NodeRepairAfter {
        /// In milliseconds.
        ms: u64,
    },
    /// How everything is.
    Status,
    /// All groups.
    GroupList,
    /// One group.
    GroupShow {
        /// Which.
        group: u64,
    },
    /// The groups that make the most work.
    GroupTop {
        /// So many of them; 0 for all.
        #[serde(default)]
        limit: usize,
    },
    /// A group that lost most of its replicas goes on with one of them.
    GroupRecover {
        /// Which.
        group: u64,
        /// Name or id of the node whose replica goes on; empty for the best.
        #[serde(default)]
        choose: String,
        /// What only the others had is lost. Without it nothing is changed.
        #[serde(default)]
        accept_loss: bool,
    },
    /// Cuts the keys of an etcd, so that they are on more groups.
    TenantSplit {
        /// The tenant, or TENANT/NAMESPACE.
        name: String,
        /// First keys of new groups, as texts (`record::text`).
        #[serde(default)]
        at: Vec<String>,
        /// Keys that begin so get groups of their own.
        #[serde(default)]
        prefixes: Vec<String>,
    },
    /// Takes cuts of an etcd away, so that it is on fewer groups.
    TenantMerge {
        /// The tenant, or TENANT/NAMESPACE.
        name: String,
        /// The first key of a group that goes into its left neighbour, as a text (`record::text`).
        #[serde(default)]
        at: Option<String>,
        /// Every cut that no rule asks for goes. With neither nothing is changed.
        #[serde(default)]
        all: bool,
    },
    /// Why an etcd is split or is not.
    TenantExplain {
        /// The tenant, or TENANT/NAMESPACE.
        name: String,
    },
    /// Puts the groups of an etcd on different nodes.
    TenantSpread {
        /// The tenant, or TENANT/NAMESPACE.
        name: String,
        /// Who wants it.
        #[serde(default)]
        by: String,
    },
    /// When etcds are split without being asked.
    PolicyShow,
    /// Changes that.
    PolicySet(Box<PolicyWish>),
    /// Moves all groups of the tenant to these nodes.
    TenantMove {
        /// Which.
        name: String,
        /// Names or ids of nodes.
        to: Vec<String>,
    },
    /// Where the tenant's groups may be; anywhere if nothing is named.
    TenantPin {
        /// Which.
        name: String,
        /// Names or ids of nodes.
        #[serde(default)]
        to: Vec<String>,
        /// A zone.
        #[serde(default)]
        zone: String,
    },
    /// Something to remember of a node.
    NodeLabel {
        /// Which.
        name: String,
        /// What is remembered.
        key: String,
        /// Its value; empty to forget it.
        value: String,
    },
    /// How even the load is.
    RebalanceShow,
    /// Makes a plan to even it out.
    RebalancePlan,
    /// A plan with the reason of each move.
    RebalanceExplain {
        /// Which; the newest without.
        #[serde(default)]
        version: Option<u64>,
    },
    /// Carries the newest plan out.
    RebalanceApply {
        /// Which that is.
        version: u64,
        /// Who wants it.
        #[serde(default)]
        by: String,
    },
    /// Balances nothing until it is resumed.
    RebalancePause,
    /// Ends a pause.
    RebalanceResume,
    /// Makes a plan that takes back what another has moved.
    RebalanceRevert {
        /// That other.
        version: u64,
    },
    /// The plans that were applied.
    RebalanceHistory,
    /// Is the ledger sound?
    RebalanceCheck,
    /// All operators, newest first.
    OperatorList,
    /// One operator.
    OperatorShow {
        /// Which.
        id: u64,
    },
    /// Takes an operator back at its next safe point.
    OperatorCancel {
        /// Which.
        id: u64,
    },
}

/// What a command led to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was done.
    Done(String),
    /// Tenants.
    Tenants(Vec<TenantView>),
    /// Nodes.
    Nodes(Vec<NodeView>),
    /// Groups.
    Groups(Vec<GroupView>),
    /// One group.
    Group(Box<GroupDetail>),
    /// What groups give nodes to do.
    Loads(Vec<GroupLoad>),
    /// Why an etcd is split or is not.
    Explanation(Box<ExplanationView>),
    /// When etcds are split without being asked.
    Policy(Box<PolicyView>),
    /// What a recovery would do; nothing was changed.
    Recovery(Box<RecoveryView>),
    /// Operators.
    Operators(Vec<OperatorView>),
    /// How everything is.
    Status(Box<StatusView>),
    /// How even the load is.
    Balance(Box<BalanceView>),
    /// A plan.
    Plan(Box<PlanView>),
    /// A plan, with the reason of each move.
    Explained(Box<PlanView>),
    /// Plans.
    Plans(Vec<PlanView>),
    /// What is not sound.
    Findings(Vec<Finding>),
    /// It was not done, for this reason.
    Refused(String),
}

/// A tenant, or one of its namespaces, as an operator sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct TenantView {
    /// Id of the tenant.
    pub id: u64,
    /// What clients call it.
    pub name: String,
    /// What clients may do.
    pub state: TenantState,
    /// Has its group been told that, and the quota? Until then only routers refuse.
    #[serde(default)]
    pub heard: bool,
    /// Port of its own, 0 for none.
    pub port: u16,
    /// Id of its virtual cluster; 0 for a stretch of the tenant's keys.
    #[serde(with = "hex")]
    pub cluster_id: u64,
    /// Keys that begin so, for a stretch of the tenant's keys.
    pub prefix: Option<String>,
    /// Its home group; 0 for a stretch of the tenant's keys.
    pub group: u64,
    /// Names of the nodes that have it.
    pub nodes: Vec<String>,
    /// When its data goes, in milliseconds since 1970; 0 if it stays.
    pub purge_ms: u64,
    /// Bytes from which on it is refused more; 0 for the nodes' own setting.
    #[serde(default)]
    pub quota: u64,
    /// Bytes of all its versions, if its groups were asked and have said so.
    #[serde(default)]
    pub size: Option<u64>,
    /// Groups that it is on; 0 for a stretch of the tenant's keys.
    #[serde(default)]
    pub groups: usize,
    /// These groups and their keys, home first; not in a list of all tenants.
    #[serde(default)]
    pub places: Vec<PlaceView>,
}

/// A group of an etcd as an operator sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PlaceView {
    /// Its id.
    pub group: u64,
    /// Is it the one with leases, compaction and members?
    pub home: bool,
    /// Its keys.
    #[serde(flatten)]
    pub keys: KeysView,
    /// Counts their changes.
    pub version: u64,
    /// Why they begin there, in words; empty for home.
    pub why: String,
    /// Why they begin there: for a user, for a rule of the namespaces, for load or size; empty for
    /// home.
    #[serde(default)]
    pub cause: String,
    /// Name of the node that leads it, if it was asked and has said so.
    pub leader: Option<String>,
    /// Names of the nodes that have it.
    pub nodes: Vec<String>,
    /// Bytes of all its versions, if it was asked and has said so.
    pub size: Option<u64>,
}

/// Keys as an operator sees them: all from the first on, up to the end, as texts (`record::text`).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct KeysView {
    /// The first.
    pub start: String,
    /// The first that is not among them; without it there is none.
    pub end: Option<String>,
}

/// A node as an operator sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// Its id.
    #[serde(with = "hex")]
    pub id: u64,
    /// What people call it.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its share of new groups.
    pub weight: u32,
    /// What may be put on it.
    pub state: NodeState,
    /// Replicas on it.
    pub replicas: usize,
    /// What its operator wants to remember of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where other nodes reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// For how long nothing has been heard of it, in milliseconds; 0 if it answers.
    #[serde(default)]
    pub silent_ms: u64,
    /// Groups that are led there.
    #[serde(default)]
    pub leaders: usize,
    /// Bytes of its disk, 0 if they are not known.
    #[serde(default)]
    pub disk_total: u64,
    /// Bytes of it that are free.
    #[serde(default)]
    pub disk_free: u64,
    /// What is to be known of it, in words.
    #[serde(default)]
    pub note: String,
}

/// How everything is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct StatusView {
    /// In a word.
    pub standing: Standing,
    /// In a sentence.
    pub verdict: String,
    /// Tenants that are not deleted.
    pub tenants: usize,
    /// Groups.
    pub groups: usize,
    /// The nodes.
    pub nodes: Vec<NodeView>,
    /// Groups that cannot change anything now.
    pub without_quorum: Vec<ShortView>,
    /// Groups with fewer replicas than they are to have.
    pub short: Vec<ShortView>,
    /// Replicas that are out of service.
    pub quarantined: Vec<QuarantineView>,
    /// Operators that are not over, oldest first.
    pub operators: Vec<OperatorView>,
}

/// How everything is, in a word.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Nothing is to be done.
    Well,
    /// Not all nodes have been heard yet.
    Unknown,
    /// Something is lost, or on its way to be.
    Degraded,
}

/// A group with too few replicas.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ShortView {
    /// Its id.
    pub group: u64,
    /// Whose keys it has.
    pub of: String,
    /// Replicas that can be counted on.
    pub well: usize,
    /// Replicas that it is to have.
    pub wanted: usize,
}

/// A replica that is out of service.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct QuarantineView {
    /// Its group.
    pub group: u64,
    /// Whose keys it has.
    pub of: String,
    /// The name of its node.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// A group as an operator sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct GroupView {
    /// Its id.
    pub id: u64,
    /// Whose keys it has.
    pub of: String,
    /// Names of the nodes that have it.
    pub nodes: Vec<String>,
    /// Its keys.
    #[serde(flatten)]
    pub keys: KeysView,
    /// Its rows are being removed.
    pub dead: bool,
}

/// All that is known of a group.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct GroupDetail {
    /// Its id.
    pub id: u64,
    /// Whose keys it has.
    pub of: String,
    /// Id of the tenant, 0 for placement's own group.
    pub tenant: u64,
    /// Id of the namespace.
    pub namespace: u64,
    /// Id of the virtual cluster.
    #[serde(with = "hex")]
    pub cluster_id: u64,
    /// Its rows are being removed.
    pub dead: bool,
    /// Its keys.
    #[serde(flatten)]
    pub range: KeysView,
    /// Counts their changes.
    pub range_version: u64,
    /// Stretches of these keys that have a rule of their own.
    pub stretches: Vec<String>,
    /// Name of the node that leads it.
    pub leader: Option<String>,
    /// Raft's term.
    pub term: u64,
    /// Its revision.
    pub revision: i64,
    /// The revision up to which history is compacted; -1 if it never was.
    pub compacted: i64,
    /// Live keys.
    pub keys: i64,
    /// Commands that wait to be applied.
    pub pending: u64,
    /// Changes of members, as placement knows them.
    pub membership_version: u64,
    /// Voters that it is to have again; 0 if it has them.
    pub wanted: usize,
    /// The last time that one replica was to go on alone.
    pub recovery: Option<Recovery>,
    /// Its replicas.
    pub replicas: Vec<ReplicaView>,
    /// What it gives its nodes to do.
    pub load: Option<GroupLoad>,
    /// Work on it, newest first.
    pub operators: Vec<OperatorView>,
}

/// A replica as an operator sees it. What is not known is 0.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ReplicaView {
    /// The name of its node.
    pub node: String,
    /// Its number.
    #[serde(with = "hex")]
    pub replica: u64,
    /// It does not vote.
    pub learner: bool,
    /// It leads.
    pub leads: bool,
    /// Why it cannot be counted on; empty if it can.
    pub trouble: String,
    /// Its term.
    pub term: u64,
    /// Term of the last entry in its log.
    pub last_term: u64,
    /// Index of that entry.
    pub last_index: u64,
    /// Index of the last entry that it knows to be committed.
    pub committed: u64,
    /// Index of the last entry that it has applied.
    pub applied: u64,
    /// Its revision.
    pub revision: i64,
    /// Bytes of its rows and large values.
    pub size: u64,
    /// Version of the members that it knows.
    pub membership_version: u64,
}

/// What a group gives nodes to do.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct GroupLoad {
    /// Its id.
    pub group: u64,
    /// Whose keys it has.
    pub of: String,
    /// Its keys.
    #[serde(flatten)]
    pub keys: KeysView,
    /// Name of the node that leads it.
    pub leader: Option<String>,
    /// Names of its nodes.
    pub nodes: Vec<String>,
    /// Requests a second, on all its nodes.
    pub requests_per_s: u64,
    /// Bytes a second appended to its log.
    pub write_bytes_per_s: u64,
    /// CPU time on all its nodes, in microseconds a second.
    pub cpu_us_per_s: u64,
    /// Bytes of its rows and large values.
    pub size: u64,
    /// What it costs that its tenant is split.
    #[serde(default)]
    pub split: Option<SplitLoad>,
}

/// Why an etcd is split or is not.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ExplanationView {
    /// Which.
    pub name: String,
    /// It in a sentence.
    pub verdict: String,
    /// Is it split without being asked?
    pub is_on: bool,
    /// What makes a group of it one that is to be split.
    pub bar: Bar,
    /// Its groups, home first.
    pub groups: Vec<GroupExplained>,
}

/// Why a group is to be split or is not.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct GroupExplained {
    /// Its id.
    pub group: u64,
    /// Its keys.
    #[serde(flatten)]
    pub keys: KeysView,
    /// Why they begin there; empty for home.
    pub why: String,
    /// Name of the node that leads it.
    pub leader: Option<String>,
    /// Requests a second, over some seconds.
    pub requests_per_s: u64,
    /// Bytes a second appended to its log, over some seconds.
    pub write_bytes_per_s: u64,
    /// Bytes of its rows and large values.
    pub size: u64,
    /// How it stands, in a word.
    pub verdict: Verdict,
    /// The same in sentences.
    pub said: Vec<String>,
    /// Where it could be cut, if that is known.
    pub cut: Option<CutView>,
}

/// How a group stands, the most urgent last.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is below its bar.
    Cool,
    /// Nobody has said how it is.
    Unknown,
    /// It is over its bar, but not for long enough.
    Warming,
    /// It would be split if that were on.
    Off,
    /// It is to be split, but not now.
    Waits,
    /// It is to be split and cannot be.
    Unsplittable,
    /// It is split now.
    Due,
}

/// A cut, and what it would lead to. Parts are thousandths.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct CutView {
    /// The first key of the new group.
    pub at: String,
    /// What stays.
    pub below: u32,
    /// What goes.
    pub above: u32,
    /// What reaches over it.
    pub across: u32,
    /// Different stretches of keys that are watched and reach over it.
    #[serde(default)]
    pub watches: u32,
}

/// A time in words, to the second.
pub(crate) fn counted_ms(ms: u64) -> String {
    match ms.div_ceil(1000) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}

/// What a recovery would do.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct RecoveryView {
    /// The group.
    pub group: u64,
    /// Whose keys it has.
    pub of: String,
    /// Voters that can be counted on.
    pub well: usize,
    /// All voters.
    pub all: usize,
    /// The replicas.
    pub replicas: Vec<ReplicaView>,
    /// Name of the node whose replica would go on.
    pub chosen: String,
    /// Why that one.
    pub why: String,
    /// What would be lost, in words.
    pub loss: String,
    /// The revision would be this one, about, and history before it gone.
    pub revision: i64,
}

/// An operator as people see it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct OperatorView {
    /// Its id.
    pub id: u64,
    /// The group it works on.
    pub group: u64,
    /// Names of the nodes where the group is to be.
    pub target: Vec<String>,
    /// What it is for.
    pub why: String,
    /// Where it stands.
    pub state: OperatorState,
    /// What is to be done next, in words.
    pub step: String,
    /// When it was begun, in milliseconds since 1970.
    pub begun_ms: u64,
    /// When it ended, 0 while it runs.
    pub ended_ms: u64,
    /// Cuts that are to go afterwards, if it merges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rest: Vec<String>,
    /// The operator that went on with them; 0 if none did.
    #[serde(default)]
    pub next: u64,
}

/// How even the load is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct BalanceView {
    /// That in a sentence.
    pub verdict: String,
    /// How far the worst node is over the mean, in thousandths of it.
    pub spread: i64,
    /// Nothing is balanced by itself.
    pub paused: bool,
    /// What each node has to do.
    pub nodes: Vec<NodeLoadView>,
    /// What makes the load of nodes that are over the mean.
    pub heaviest: Vec<String>,
    /// The plan that is being carried out.
    pub plan: Option<PlanView>,
}

/// What a node has to do.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct NodeLoadView {
    /// The node.
    pub name: String,
    /// What it has to do, or had when the plan was made.
    pub now: NodeLoad,
    /// What it would have to do after the plan.
    pub predicted: Option<NodeLoad>,
    /// What it had to do after the plan.
    pub measured: Option<NodeLoad>,
}

/// Where a plan stands.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanState {
    /// It can be applied.
    Made,
    /// It cannot be applied any more.
    Expired,
    /// It is being carried out.
    Running,
    /// It was carried out, as far as it could be.
    Over,
}

/// A plan as people see it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PlanView {
    /// Its version.
    pub version: u64,
    /// Where it stands.
    pub state: PlanState,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
    /// When it was applied, 0 if it was not.
    pub applied_ms: u64,
    /// When it was over, 0 before.
    pub ended_ms: u64,
    /// Who had it applied.
    pub by: String,
    /// What it is for.
    pub why: String,
    /// Its moves.
    pub moves: Vec<MoveView>,
    /// Moves that were done.
    pub done: usize,
    /// Moves that were done or dropped.
    pub over: usize,
    /// How much longer it will take at the pace so far, if that can be told.
    pub left_ms: Option<u64>,
    /// How far the worst node was over the mean before, in thousandths of it.
    pub spread_before: Option<i64>,
    /// What that is to be afterwards.
    pub spread_predicted: Option<i64>,
    /// What it was afterwards.
    pub spread_measured: Option<i64>,
    /// The nodes before and after.
    pub nodes: Vec<NodeLoadView>,
    /// What stays as it is, and why.
    pub stays: Vec<String>,
}

/// A move of a plan as people see it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct MoveView {
    /// The group.
    pub group: u64,
    /// Whose keys it has.
    pub of: String,
    /// The node that has less to do afterwards.
    pub from: String,
    /// The node that has more to do afterwards.
    pub to: String,
    /// Only the lead moves, and no data.
    pub lead_only: bool,
    /// Bytes that travel, about.
    pub bytes: u64,
    /// Why.
    pub why: String,
    /// What came of it.
    pub fate: Fate,
}

/// Why a command was not carried out, in words for an operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing was changed, and trying again will not help.
    #[error("{0}")]
    Refused(String),
    /// Placement cannot be reached now; whether a change was made is not known.
    #[error("placement does not answer: {0}")]
    Unreachable(String),
}

/// A refusal in words.
pub fn refused(why: impl Into<String>) -> Refusal {
    Refusal::Refused(why.into())
}

impl Command {
    /// The group about whose replicas all nodes are to be asked first.
    pub fn asks_of(&self) -> Option<u64> {
        match self {
            Command::GroupShow { group } | Command::GroupRecover { group, .. } => Some(*group),
            _ => None,
        }
    }
}
