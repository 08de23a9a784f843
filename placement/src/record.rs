//! What the ledger holds: one JSON value a key of the system group, so that an operator in need
//! can read it with any etcd client.
//!
//! ```text
//!   atoll/meta              counters; written with every change
//!   atoll/node/<id>         a node
//!   atoll/tenant/<id>       a tenant with its namespaces
//!   atoll/group/<id>        a group and its replicas
//!   atoll/operator/<id>     work on a group, under way or over
//!   atoll/reserved/<name>   the name of a tenant that was purged not long ago
//!   atoll/plan/<version>    moves that would even the load out, and what came of them
//! ```
//!
//! Ids stand in keys and values as sixteen hexadecimal digits: they need all 64 bits, which JSON's
//! numbers do not have. Keys of tenants stand as text ([`text`]). Unknown fields are kept out of old
//! programs by `Meta::format`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use proto::KeyRange;
use serde::{Deserialize, Serialize};

use crate::policy::{SplitMode, SplitPolicy};

/// All keys begin with this.
pub const PREFIX: &str = "atoll/";
/// All keys are below this.
pub const END: &str = "atoll0";
/// Key of [`Meta`].
pub const META_KEY: &str = "atoll/meta";
/// The newest format that this program reads: that of a ledger in which groups were to be merged.
pub const FORMAT: u32 = 3;
/// Format of a ledger in which a tenant was to be split.
pub const SPLIT_FORMAT: u32 = 2;
/// Format of a new ledger.
pub const FIRST_FORMAT: u32 = 1;

/// Sixteen hexadecimal digits for an id.
pub mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes an id.
    pub fn serialize<S: Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{id:016x}"))
    }

    /// Reads an id.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

/// The same for a list of ids.
pub mod hex_list {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes ids.
    pub fn serialize<S: Serializer>(ids: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(|id| format!("{id:016x}")))
    }

    /// Reads ids.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let read = |text: &String| u64::from_str_radix(text, 16).map_err(D::Error::custom);
        texts.iter().map(read).collect()
    }
}

/// A key of a tenant as text that JSON and terminals can have: what cannot be printed stands as
/// `\xNN`, a backslash twice.
pub mod text {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes a key.
    pub fn serialize<S: Serializer>(key: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&of(key))
    }

    /// Reads a key.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        read(&text).ok_or_else(|| D::Error::custom("no key"))
    }

    /// The text of a key.
    pub fn of(key: &[u8]) -> String {
        let mut text = String::new();
        for chunk in key.utf8_chunks() {
            for found in chunk.valid().chars() {
                match found {
                    '\\' => text.push_str("\\\\"),
                    found if found.is_control() => {
                        let mut bytes = [0; 4];
                        let bytes = found.encode_utf8(&mut bytes).bytes();
                        text.extend(bytes.map(|byte| format!("\\x{byte:02x}")));
                    }
                    found => text.push(found),
                }
            }
            text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
        }
        text
    }

    /// The key of a text; `None` if it is not one that [`of`] could mean.
    pub fn read(text: &str) -> Option<Bytes> {
        let mut key = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some((plain, special)) = rest.split_once('\\') {
            key.extend(plain.bytes());
            rest = match special.strip_prefix('\\') {
                Some(rest) => {
                    key.push(b'\\');
                    rest
                }
                None => {
                    let (digits, rest) = special.strip_prefix('x')?.split_at_checked(2)?;
                    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                    key.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
                    rest
                }
            };
        }
        key.extend(rest.bytes());
        Some(key.into())
    }
}

/// Counters and settings of the whole.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Meta {
    /// See [`FORMAT`].
    pub format: u32,
    /// Id of the service's own cluster.
    #[serde(with = "hex")]
    pub cluster: u64,
    /// The next tenant's id.
    pub next_tenant: u64,
    /// The next group's id.
    pub next_group: u64,
    /// The next operator's id.
    pub next_operator: u64,
    /// Replicas of a group whose tenant says nothing else.
    pub replicas: usize,
    /// Clients who name no tenant get this one's default namespace; 0 for none.
    pub default_tenant: u64,
    /// How long a node may be silent before its replicas are replaced, in milliseconds.
    #[serde(default = "repair_after_ms")]
    pub repair_after_ms: u64,
    /// The version of the last plan, 0 if there was none.
    #[serde(default)]
    pub last_plan: u64,
    /// Nothing is balanced by itself.
    #[serde(default)]
    pub balance_paused: bool,
    /// When etcds are split without being asked.
    #[serde(default, skip_serializing_if = "SplitPolicy::is_default")]
    pub splits: SplitPolicy,
}

/// What [`Meta::repair_after_ms`] is before somebody has said something else.
pub fn repair_after_ms() -> u64 {
    600_000
}

/// A server process with its data directory.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its id.
    #[serde(with = "hex")]
    pub id: u64,
    /// What people call it.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Nodes of one zone fail together: replicas of a group go to different ones.
    #[serde(default)]
    pub zone: String,
    /// Its share of new groups, against other nodes; 0 for none.
    pub weight: u32,
    /// Secret number of the data directory that it began with, 0 before it has said so. A node with
    /// another one has lost what it promised.
    #[serde(default, with = "hex")]
    pub directory: u64,
    /// What may be put there.
    #[serde(default)]
    pub state: NodeState,
    /// What its operator wants to remember of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What may be put on a node.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Everything.
    #[default]
    Up,
    /// Nothing new; what is there stays.
    Cordoned,
    /// Nothing new, and what is there moves away.
    Draining,
    /// It will not come back: what was there is replaced, and then it is forgotten.
    Lost,
}

/// One customer.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Tenant {
    /// Its id.
    pub id: u64,
    /// Its name, unique among those that are not purged.
    pub name: String,
    /// What its clients may do.
    #[serde(default)]
    pub state: TenantState,
    /// When it was deleted, in milliseconds since 1970; 0 if it was not.
    #[serde(default)]
    pub deleted_ms: u64,
    /// Bytes from which on each of its etcds is refused more; 0 for the nodes' own setting.
    #[serde(default)]
    pub quota: u64,
    /// Rises with everything that its groups have to be told (`charters.rs`).
    #[serde(default = "first_version")]
    pub version: u64,
    /// The next namespace's id, unless one has a higher one.
    #[serde(default)]
    pub next_namespace: u64,
    /// Its virtual etcds: the default one first.
    pub namespaces: Vec<Namespace>,
    /// Where its groups may be, if not anywhere.
    #[serde(default)]
    pub pin: Option<Pin>,
    /// Are its etcds split without being asked?
    #[serde(default, skip_serializing_if = "SplitMode::is_default")]
    pub splits: SplitMode,
}

/// Where a tenant's groups may be.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pin {
    /// On these nodes.
    Nodes(#[serde(with = "hex_list")] Vec<u64>),
    /// On the nodes of this zone.
    Zone(String),
}

/// What a group is born with needs not be told.
pub const FIRST_VERSION: u64 = 1;

fn first_version() -> u64 {
    FIRST_VERSION
}

/// What clients of a tenant may do.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantState {
    /// Everything.
    #[default]
    Open,
    /// Nothing, until it is thawed.
    Frozen,
    /// Nothing; it can be undeleted until its grace is over.
    Deleted,
}

/// A part of a tenant's keys.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// Its id within the tenant; 1 is the default one.
    pub id: u64,
    /// Its name; empty for the default one.
    pub name: String,
    /// When it was deleted, in milliseconds since 1970; 0 if it was not.
    #[serde(default)]
    pub deleted_ms: u64,
    /// What it is.
    pub kind: NamespaceKind,
}

/// What a namespace is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// A virtual etcd of its own: own revisions, endpoint and group.
    Separate {
        /// Id of its virtual cluster.
        #[serde(with = "hex")]
        cluster_id: u64,
        /// Port of its own at every router, 0 for none.
        #[serde(default)]
        port: u16,
        /// Its home group.
        group: u64,
        /// Its groups and what keys each has, in order, home first; none while home has all of
        /// them and always had.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        places: Vec<Place>,
    },
    /// A stretch of the tenant's one key space that may be placed by itself.
    Shared {
        /// Keys that begin so.
        prefix: String,
    },
}

/// What a group of an etcd has: all keys from the first on, up to the next group's.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The first key.
    #[serde(with = "text")]
    pub start: Bytes,
    /// The group.
    pub group: u64,
    /// Counts the changes of its keys, as the group does.
    pub version: u64,
    /// Why its keys begin there, in words; empty for home.
    #[serde(default)]
    pub why: String,
    /// What its keys were cut off for.
    #[serde(default, skip_serializing_if = "Cause::is_default")]
    pub cause: Cause,
}

/// What a cut is for.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Somebody asked for it.
    #[default]
    User,
    /// The group had too much to do.
    Load,
    /// The group was too large.
    Size,
}

impl Cause {
    fn is_default(&self) -> bool {
        *self == Cause::User
    }
}

/// Version of the keys that a group was founded with.
pub const FIRST_RANGE: u64 = 1;

/// A Raft group.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its id.
    pub id: u64,
    /// Whose keys; 0 for the system group.
    pub tenant: u64,
    /// Which namespace of the tenant.
    pub namespace: u64,
    /// Id of the virtual cluster.
    #[serde(with = "hex")]
    pub cluster_id: u64,
    /// Who began it. Never changes: their first state must be the same on all.
    pub founders: Vec<Founder>,
    /// Where it is, as its leader last reported.
    pub replicas: Vec<Replica>,
    /// Changes of membership that `replicas` has seen.
    #[serde(default)]
    pub membership_version: u64,
    /// Version of its tenant that it has taken in.
    #[serde(default)]
    pub told: u64,
    /// Its rows are to be removed everywhere.
    #[serde(default)]
    pub dead: bool,
    /// Voters that it had before most of them were lost, and is to have again; 0 if it has them.
    #[serde(default)]
    pub wanted: usize,
    /// The last time that one of its replicas was to go on alone.
    #[serde(default)]
    pub recovery: Option<Recovery>,
}

/// A replica goes on without the others, because most of them are lost. See `recovery.rs`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// The node of the one that goes on.
    #[serde(with = "hex")]
    pub node: u64,
    /// Its number.
    #[serde(with = "hex")]
    pub replica: u64,
    /// Version of the members from then on: it is done when the group reports it.
    pub version: u64,
    /// The group's revision from then on, at least.
    pub revision: i64,
    /// When it was ordered, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Group {
    /// Gives back room that decoding has left: every node keeps all groups as long as it runs.
    pub(crate) fn slim(&mut self) {
        for founder in &mut self.founders {
            founder.peer_urls.shrink_to_fit();
        }
        self.founders.shrink_to_fit();
        self.replicas.shrink_to_fit();
    }

    /// The recovery that was ordered and is not reported yet.
    pub fn recovering(&self) -> Option<&Recovery> {
        self.recovery.as_ref().filter(|recovery| recovery.version > self.membership_version)
    }
}

/// A node that a group began on. Its replica has the node's number.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Founder {
    /// The node.
    #[serde(with = "hex")]
    pub node: u64,
    /// What it was called.
    pub name: String,
    /// Where other nodes reached it.
    pub peer_urls: Vec<String>,
}

/// A replica of a group.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Replica {
    /// Its node.
    #[serde(with = "hex")]
    pub node: u64,
    /// Its number.
    #[serde(with = "hex")]
    pub replica: u64,
    /// It does not vote.
    #[serde(default)]
    pub learner: bool,
}

/// A name that is not given again for a while: certificates, passwords and settings of those who
/// used it may still be about.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Reserved {
    /// The name.
    pub name: String,
    /// The tenant that had it.
    pub tenant: u64,
    /// Until when, in milliseconds since 1970.
    pub until_ms: u64,
}

/// Work on one group: where it is to be. See `operators.rs`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Operator {
    /// Its id.
    pub id: u64,
    /// The group.
    pub group: u64,
    /// The nodes where the group is to be in the end.
    #[serde(with = "hex_list")]
    pub target: Vec<u64>,
    /// Replicas that are lost: they go first, also those whose nodes are wanted.
    #[serde(default, with = "hex_list")]
    pub lost: Vec<u64>,
    /// The one of them that is to lead it then; 0 if any may.
    #[serde(default, with = "hex")]
    pub leader: u64,
    /// What it may push aside.
    pub priority: Priority,
    /// What it is for, in words.
    pub why: String,
    /// Where the group's keys are to be cut, the highest first; such an operator does nothing else,
    /// and `target` is where the group is. See `splits.rs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cuts: Vec<Cut>,
    /// The group's keys are to go to its left neighbour, whose nodes are `target`, and it is to be no
    /// more. See `merges.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
    /// When it was taken back, in milliseconds since 1970; 0 if it was not, or is not about keys.
    #[serde(default)]
    pub given_up_ms: u64,
    /// Where it stands.
    pub state: OperatorState,
    /// When it was begun, in milliseconds since 1970.
    pub begun_ms: u64,
    /// When it ended, 0 while it runs.
    pub ended_ms: u64,
}

/// The keys of a group from one on go to a new group.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// The first of them.
    #[serde(with = "text")]
    pub at: Bytes,
    /// The new group's number: nobody else has, had or gets it.
    pub child: u64,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Cause::is_default")]
    pub cause: Cause,
    /// What was seen of that, in words; empty if somebody asked for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub seen: String,
}

/// The keys of a group go to its left neighbour, and the cut between the two is no more.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Merge {
    /// The neighbour.
    pub left: u64,
    /// The first key of the group that goes.
    #[serde(with = "text")]
    pub at: Bytes,
    /// Since when the neighbour may have been asked for it, in milliseconds since 1970; 0 if it was
    /// not.
    #[serde(default)]
    pub asked_ms: u64,
    /// Cuts that are to go afterwards, in this order, as texts ([`text`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rest: Vec<String>,
    /// The operator that went on with them; 0 if none did.
    #[serde(default)]
    pub next: u64,
}

impl Operator {
    /// What `why` ends with when the operator was taken back.
    pub const CANCELLED: &str = " (taken back)";

    /// Must its work on a group make way for work of this priority?
    pub fn yields_to(&self, priority: Priority) -> bool {
        self.priority > priority
    }

    /// The same, given up where it stands.
    #[must_use]
    pub fn given_up(&self, now_ms: u64) -> Operator {
        let alone = |merge: &Merge| Merge { rest: Vec::new(), ..merge.clone() };
        Operator {
            why: self.why_back(),
            merge: self.merge.as_ref().map(alone),
            state: OperatorState::Cancelled,
            ended_ms: now_ms,
            ..self.clone()
        }
    }

    /// What it is for, in words, when it is taken back.
    pub(crate) fn why_back(&self) -> String {
        match self.cancelled() {
            true => self.why.clone(),
            false => format!("{}{}", self.why, Operator::CANCELLED),
        }
    }

    /// Does it cut the group's keys, and leave the group where it is?
    pub fn is_split(&self) -> bool {
        !self.cuts.is_empty()
    }

    /// Is it about keys, by a cut or by a merge?
    pub fn is_on_keys(&self) -> bool {
        self.is_split() || self.merge.is_some()
    }

    /// May a group's log have been asked for something by it whose fate is to be seen first?
    pub fn has_asked(&self) -> bool {
        self.is_split() || self.merge.as_ref().is_some_and(|merge| merge.asked_ms > 0)
    }

    /// Does nothing else work on the group while it runs? One that merges has both groups, until it
    /// is taken back and only puts the one in order that it has moved.
    pub fn holds(&self, group: u64) -> bool {
        let is_left = self.merge.as_ref().is_some_and(|merge| merge.left == group);
        self.group == group || (is_left && (!self.cancelled() || self.has_asked()))
    }

    /// Was it taken back?
    pub fn cancelled(&self) -> bool {
        self.why.ends_with(Operator::CANCELLED)
    }
}

/// What an operator is for; the strongest first.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// A replica is lost.
    Repair,
    /// A node is to be empty.
    Drain,
    /// Somebody asked for it.
    User,
    /// The load is uneven.
    Balance,
}

/// Where an operator stands.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorState {
    /// It is worked on.
    Running,
    /// The group is where it was to be.
    Done,
    /// It was taken back.
    Cancelled,
    /// Its group is no more.
    Void,
}

/// Moves that would even the load out, what they would lead to, and what came of them. See
/// `plans.rs`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Its number; the next one is one higher.
    pub version: u64,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
    /// Who had it applied; empty while nobody has.
    #[serde(default)]
    pub by: String,
    /// What it is for, in words.
    pub why: String,
    /// When it was applied, 0 if it was not.
    #[serde(default)]
    pub applied_ms: u64,
    /// When the last move was over, 0 before.
    #[serde(default)]
    pub ended_ms: u64,
    /// The moves, in order: at most one for a group.
    pub moves: Vec<Move>,
    /// The nodes as they were when it was made.
    pub before: Vec<NodeLoad>,
    /// The nodes as they would be after all moves.
    pub predicted: Vec<NodeLoad>,
    /// The nodes as they were a while after the end; empty before.
    #[serde(default)]
    pub measured: Vec<NodeLoad>,
    /// What stays uneven, and why.
    #[serde(default)]
    pub stays: Vec<String>,
}

/// One move of a plan.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Move {
    /// The group.
    pub group: u64,
    /// The members that it was planned for: with others it is dropped.
    pub membership_version: u64,
    /// The node that has less to do afterwards.
    #[serde(with = "hex")]
    pub from: u64,
    /// The node that has more to do afterwards.
    #[serde(with = "hex")]
    pub to: u64,
    /// The nodes where the group is to be.
    #[serde(with = "hex_list")]
    pub target: Vec<u64>,
    /// The node that is to lead it, 0 if any may.
    #[serde(default, with = "hex")]
    pub leader: u64,
    /// Bytes that travel, about.
    #[serde(default)]
    pub bytes: u64,
    /// Why, in words.
    pub why: String,
    /// What came of it.
    #[serde(default)]
    pub fate: Fate,
}

/// What came of a move of a plan.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Nothing yet.
    #[default]
    Waiting,
    /// This operator works on it.
    Begun(u64),
    /// It was done.
    Done,
    /// It was not done, for this reason.
    Dropped(String),
}

/// What a node has to do, against the mean of all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct NodeLoad {
    /// The node.
    #[serde(with = "hex")]
    pub node: u64,
    /// CPU time spent for groups, in microseconds a second.
    pub cpu_us_per_s: u64,
    /// Bytes a second appended for groups.
    pub write_bytes_per_s: u64,
    /// Groups led.
    pub leaders: u64,
    /// Replicas.
    pub replicas: u64,
    /// Bytes of groups.
    pub size_bytes: u64,
    /// How far it is over the mean in what it has most of, in thousandths of the mean; below 0 if
    /// it has less than the mean of everything.
    pub over: i64,
    /// What it has most of.
    pub most: String,
}

// === impl Founder, impl Replica ===

impl Founder {
    /// As the node is known now.
    pub fn of(node: &Node) -> Founder {
        Founder { node: node.id, name: node.name.clone(), peer_urls: node.peer_urls.clone() }
    }

    /// Its replica: a voter with the node's number.
    pub fn replica(&self) -> Replica {
        Replica { node: self.node, replica: self.node, learner: false }
    }
}

/// A row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Counters.
    Meta(Meta),
    /// A node.
    Node(Node),
    /// A tenant.
    Tenant(Tenant),
    /// A group.
    Group(Group),
    /// An operator.
    Operator(Operator),
    /// A name that nobody has now.
    Reserved(Reserved),
    /// A plan.
    Plan(Plan),
}

/// A row that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the ledger's row {key} cannot be read: {why}")]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// Why.
    pub why: String,
}

// === impl Record ===

impl Record {
    /// The key that a record of this kind and id has.
    pub fn key(&self) -> String {
        match self {
            Record::Meta(_) => META_KEY.to_owned(),
            Record::Node(node) => node_key(node.id),
            Record::Tenant(tenant) => tenant_key(tenant.id),
            Record::Group(group) => group_key(group.id),
            Record::Operator(operator) => operator_key(operator.id),
            Record::Reserved(reserved) => reserved_key(&reserved.name),
            Record::Plan(plan) => plan_key(plan.version),
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let written = match self {
            Record::Meta(meta) => serde_json::to_vec(meta),
            Record::Node(node) => serde_json::to_vec(node),
            Record::Tenant(tenant) => serde_json::to_vec(tenant),
            Record::Group(group) => serde_json::to_vec(group),
            Record::Operator(operator) => serde_json::to_vec(operator),
            Record::Reserved(reserved) => serde_json::to_vec(reserved),
            Record::Plan(plan) => serde_json::to_vec(plan),
        };
        written.expect("records have nothing that JSON cannot say")
    }

    /// Reads a row; `None` for a key of no kind that this program knows.
    pub fn decode(key: &str, value: &[u8]) -> Result<Option<Record>, Unreadable> {
        let why = |error: serde_json::Error| Unreadable { key: key.into(), why: error.to_string() };
        let Some(rest) = key.strip_prefix(PREFIX) else { return Ok(None) };
        let kind = rest.split('/').next().unwrap_or_default();
        let record = match kind {
            "meta" => {
                let meta: Meta = serde_json::from_slice(value).map_err(why)?;
                if meta.format > FORMAT {
                    let why = format!("it has format {}, run a newer program", meta.format);
                    return Err(Unreadable { key: key.into(), why });
                }
                Record::Meta(meta)
            }
            "node" => Record::Node(serde_json::from_slice(value).map_err(why)?),
            "tenant" => Record::Tenant(serde_json::from_slice(value).map_err(why)?),
            "group" => Record::Group(serde_json::from_slice(value).map_err(why)?),
            "operator" => Record::Operator(serde_json::from_slice(value).map_err(why)?),
            "reserved" => Record::Reserved(serde_json::from_slice(value).map_err(why)?),
            "plan" => Record::Plan(serde_json::from_slice(value).map_err(why)?),
            _ => return Ok(None),
        };
        Ok(Some(record))
    }
}

/// Key of a node.
pub fn node_key(id: u64) -> String {
    format!("{PREFIX}node/{id:016x}")
}

/// Key of a tenant.
pub fn tenant_key(id: u64) -> String {
    format!("{PREFIX}tenant/{id:016x}")
}

/// Key of a group.
pub fn group_key(id: u64) -> String {
    format!("{PREFIX}group/{id:016x}")
}

/// Key of an operator.
pub fn operator_key(id: u64) -> String {
    format!("{PREFIX}operator/{id:016x}")
}

/// Key of a name that is reserved.
pub fn reserved_key(name: &str) -> String {
    format!("{PREFIX}reserved/{name}")
}

/// Key of a plan.
pub fn plan_key(version: u64) -> String {
    format!("{PREFIX}plan/{version:016x}")
}

// === impl Tenant ===

impl Tenant {
    /// Gives back room that decoding has left: every node keeps all tenants as long as it runs.
    pub(crate) fn slim(&mut self) {
        self.namespaces.shrink_to_fit();
    }

    /// What clients of a namespace of it may do.
    pub fn state_of(&self, namespace: &Namespace) -> TenantState {
        if namespace.deleted_ms > 0 { TenantState::Deleted } else { self.state }
    }

    /// May its groups be on the node?
    pub fn fits(&self, node: &Node) -> bool {
        match &self.pin {
            None => true,
            Some(Pin::Nodes(nodes)) => nodes.contains(&node.id),
            Some(Pin::Zone(zone)) => *zone == node.zone,
        }
    }

    /// The namespace that has a group, and which of its places that is.
    pub fn place_of(&self, group: u64) -> Option<(&Namespace, usize)> {
        self.namespaces.iter().find_map(|namespace| {
            let place = namespace.places().iter().position(|place| place.group == group)?;
            Some((namespace, place))
        })
    }

    /// Name by which clients choose a namespace of it.
    pub fn full_name(&self, namespace: &Namespace) -> String {
        match namespace.name.as_str() {
            "" => self.name.clone(),
            name => format!("{}/{name}", self.name),
        }
    }
}

// === impl Namespace ===

impl Namespace {
    /// Its groups and their keys, home first; none of a stretch of the tenant's keys.
    pub fn places(&self) -> Cow<'_, [Place]> {
        match &self.kind {
            NamespaceKind::Separate { places, .. } if !places.is_empty() => Cow::Borrowed(places),
            NamespaceKind::Separate { group, .. } => {
                let why = String::new();
                let (start, version) = (Bytes::new(), FIRST_RANGE);
                let cause = Cause::User;
                Cow::Owned(vec![Place { start, group: *group, version, why, cause }])
            }
            NamespaceKind::Shared { .. } => Cow::Borrowed(&[]),
        }
    }

    /// Is it an etcd that is on several groups?
    pub fn is_split(&self) -> bool {
        matches!(&self.kind, NamespaceKind::Separate { places, .. } if places.len() > 1)
    }
}

/// The keys of one of the places of an etcd.
pub fn keys_of(places: &[Place], place: usize) -> KeyRange {
    let start = places.get(place).map(|place| place.start.clone()).unwrap_or_default();
    KeyRange { start, end: places.get(place + 1).map(|next| next.start.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let group = Group {
            id: 3,
            tenant: 2,
            namespace: 1,
            cluster_id: u64::MAX,
            founders: vec![Founder { node: 7, name: "n".into(), peer_urls: vec!["u".into()] }],
            replicas: vec![Replica { node: 7, replica: u64::MAX - 1, learner: true }],
            membership_version: 3,
            told: 2,
            dead: false,
            wanted: 3,
            recovery: Some(Recovery { node: 7, replica: 7, version: 9, revision: 8, at_ms: 5 }),
        };
        let shared = NamespaceKind::Shared { prefix: "/registry/events/".into() };
        let tenant = Tenant {
            id: 2,
            name: "acme".into(),
            state: TenantState::Frozen,
            deleted_ms: 0,
            quota: 1 << 40,
            version: 2,
            next_namespace: 3,
            namespaces: vec![Namespace {
                id: 2,
                name: "events".into(),
                deleted_ms: 5,
                kind: shared,
            }],
            pin: Some(Pin::Nodes(vec![u64::MAX])),
            splits: SplitMode::Off,
        };
        let reserved = Reserved { name: "beef".into(), tenant: 2, until_ms: 9 };
        for record in [Record::Group(group), Record::Tenant(tenant), Record::Reserved(reserved)] {
            let read = Record::decode(&record.key(), &record.encode()).expect("it can be read");
            assert_eq!(read, Some(record));
        }
    }

    #[test]
    fn a_record_of_an_older_program_is_read() {
        let old = br#"{"id":2,"name":"acme","namespaces":[{"id":1,"name":"","kind":
            {"separate":{"cluster_id":"1","port":0,"group":3}}}]}"#;
        let Some(Record::Tenant(tenant)) = Record::decode("atoll/tenant/2", old).unwrap() else {
            panic!("a tenant")
        };
        assert_eq!((tenant.quota, tenant.version, tenant.namespaces[0].deleted_ms), (0, 1, 0));
        let old = br#"{"id":3,"tenant":2,"namespace":1,"cluster_id":"1","founders":[],
            "replicas":[]}"#;
        let Some(Record::Group(group)) = Record::decode("atoll/group/3", old).unwrap() else {
            panic!("a group")
        };
        assert_eq!(group.told, 0, "it does not know whose it is");
        assert_eq!((group.wanted, group.recovery), (0, None));
        let why = String::new();
        let place = Place { start: Bytes::new(), group: 3, version: 1, why, cause: Cause::User };
        let etcd = &tenant.namespaces[0];
        assert!(!etcd.is_split() && etcd.places()[..] == [place], "its group has all keys");
        let old = br#"{"id":1,"group":3,"target":[],"priority":"user","why":"move","state":"done",
            "begun_ms":1,"ended_ms":2}"#;
        let Some(Record::Operator(operator)) = Record::decode("atoll/operator/1", old).unwrap()
        else {
            panic!("an operator")
        };
        assert!(!operator.is_split() && operator.merge.is_none());
    }

    #[test]
    fn an_etcd_that_was_never_split_is_written_as_old_programs_read_it() {
        let kind = NamespaceKind::Separate { cluster_id: 1, port: 0, group: 3, places: vec![] };
        let written = serde_json::to_string(&kind).unwrap();
        assert_eq!(written, r#"{"separate":{"cluster_id":"0000000000000001","port":0,"group":3}}"#);
    }

    #[test]
    fn any_key_is_a_text_and_back() {
        let of = |key: &[u8]| text::of(key);
        assert_eq!(of(b"/registry/events/"), "/registry/events/");
        assert_eq!(of("/ä b".as_bytes()), "/ä b");
        assert_eq!(of(b"a\\b\0\xff\x7f\n"), r"a\\b\x00\xff\x7f\x0a");
        for one in 0..=255u8 {
            for key in [vec![one], vec![b'a', one, 0xc3], vec![one, b'\\', b'x', one]] {
                assert_eq!(text::read(&of(&key)).as_deref(), Some(&key[..]), "{key:?}");
            }
        }
        for no_key in [r"\", r"\x", r"\x0", r"\n", r"a\xg0", r"\x+1", "\\xä"] {
            assert_eq!(text::read(no_key), None, "{no_key}");
        }
    }

    #[test]
    fn what_a_newer_program_wrote_is_not_taken_for_something_else() {
        assert_eq!(Record::decode("atoll/hat/1", b"{}").expect("not ours"), None);
        let newer = br#"{"format":4,"cluster":"1","next_tenant":1,"next_group":1,"next_operator":1,"replicas":3,"default_tenant":1}"#;
        assert!(Record::decode(META_KEY, newer).is_err());
        assert!(Record::decode("atoll/node/1", b"{").is_err());
    }
}
