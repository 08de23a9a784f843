//! Commands about nodes, and how the service is founded: what each would change in the ledger.
//! Pure.

use std::collections::BTreeMap;

use proto::id;
use proto::limits::RECOVERY_STEP;

use crate::command::{Answer, NodeView, Refusal, refused};
use crate::health::Health;
use crate::inventory::{Inventory, SILENT_MS};
use crate::ledger::{Change, Ledger};
use crate::operators;
use crate::policy::{SplitMode, SplitPolicy};
use crate::record::{
    FIRST_FORMAT, FIRST_VERSION, Founder, Group, Meta, Namespace, NamespaceKind, Node, NodeState,
    Operator, OperatorState, Record, Replica, Tenant, TenantState, repair_after_ms,
};
use crate::tenants::Planned;

/// Replicas of a group at most, unless its tenant says something else.
const REPLICAS: usize = 3;

/// The first ledger: the nodes that began together, the system group, and the tenant that clients
/// get who name none, if there is to be one. `None` when the service is founded already.
pub fn found(
    ledger: &Ledger,
    cluster: u64,
    founders: &[Node],
    default_tenant: bool,
) -> Option<Change> {
    if ledger.meta.is_some() {
        return None;
    }
    let replicas = if founders.len() < REPLICAS { 1 } else { REPLICAS };
    let meta = Meta {
        format: FIRST_FORMAT,
        cluster,
        next_tenant: id::DEFAULT_TENANT.0 + 1,
        next_group: id::DEFAULT_GROUP.0 + 1,
        next_operator: 1,
        replicas,
        default_tenant: if default_tenant { id::DEFAULT_TENANT.0 } else { 0 },
        repair_after_ms: repair_after_ms(),
        last_plan: 0,
        balance_paused: false,
        splits: SplitPolicy::default(),
    };
    let group = id::DEFAULT_GROUP.0;
    let kind = NamespaceKind::Separate { cluster_id: cluster, port: 0, group, places: Vec::new() };
    let tenant = Tenant {
        id: id::DEFAULT_TENANT.0,
        name: "default".to_owned(),
        state: TenantState::Open,
        deleted_ms: 0,
        quota: 0,
        version: FIRST_VERSION,
        next_namespace: 0,
        namespaces: vec![Namespace {
            id: id::DEFAULT_NAMESPACE.0,
            name: String::new(),
            deleted_ms: 0,
            kind,
        }],
        pin: None,
        splits: SplitMode::Default,
    };
    let first: Vec<Founder> = founders.iter().map(Founder::of).collect();
    let group = |id: u64, tenant: u64| Group {
        id,
        tenant,
        namespace: if tenant == 0 { 0 } else { id::DEFAULT_NAMESPACE.0 },
        cluster_id: cluster,
        founders: first.clone(),
        replicas: first.iter().map(Founder::replica).collect(),
        membership_version: 1,
        told: FIRST_VERSION,
        dead: false,
        wanted: 0,
        recovery: None,
    };
    let change = Change::default()
        .put(Record::Meta(meta))
        .put(Record::Tenant(tenant))
        .put(Record::Group(group(id::SYSTEM_GROUP.0, 0)))
        .put(Record::Group(group(id::DEFAULT_GROUP.0, id::DEFAULT_TENANT.0)));
    Some(founders.iter().fold(change, |change, node| change.put(Record::Node(node.clone()))))
}

/// A replica reports the members of its group (`view::has_news`), and the nodes that left the cluster:
/// what else they have is to move away. `None` when that is known.
pub fn report(
    ledger: &Ledger,
    group: u64,
    version: u64,
    replicas: &[Replica],
    retired: &[u64],
) -> Option<Change> {
    let known = ledger.groups.get(&group)?;
    // While a recovery is under way nobody else's word counts: they are about to be left behind.
    let is_old = known.recovering().is_some_and(|recovery| version < recovery.version);
    if version <= known.membership_version || is_old {
        return None;
    }
    let before = operators::voters(known).count();
    let now = replicas.iter().filter(|replica| !replica.learner).count();
    let wanted = if version - known.membership_version >= RECOVERY_STEP {
        known.wanted.max(before | 1)
    } else {
        known.wanted
    };
    let mut group = Group::clone(known);
    group.replicas = replicas.to_vec();
    group.membership_version = version;
    group.wanted = if now < wanted { wanted } else { 0 };
    let gone = ledger.nodes.values().filter(|node| retired.contains(&node.id));
    let gone = gone.filter(|node| node.state != NodeState::Draining);
    let change = Change::default().put(Record::Group(group));
    Some(gone.fold(change, |change, node| {
        change.put(Record::Node(Node { state: NodeState::Draining, ..node.clone() }))
    }))
}

/// A node says who it is and where it is reached; what an operator has set stays. `None` when that
/// is known.
pub fn register(ledger: &Ledger, node: Node) -> Option<Change> {
    let known = ledger.nodes.get(&node.id);
    let node = match known {
        Some(known) => Node {
            zone: if node.zone.is_empty() { known.zone.clone() } else { node.zone },
            weight: known.weight,
            state: known.state,
            labels: known.labels.clone(),
            directory: if known.directory == 0 { node.directory } else { known.directory },
            ..node
        },
        None => node,
    };
    (known != Some(&node)).then(|| Change::default().put(Record::Node(node)))
}

fn find(ledger: &Ledger, name: &str) -> Result<Node, Refusal> {
    let found = ledger.node(name).cloned();
    found.ok_or_else(|| refused(format!("there is no node \"{name}\"")))
}

fn changed(ledger: &Ledger, node: Node) -> Planned {
    let answer = Answer::Nodes(vec![view(ledger, &node)]);
    Ok((Change::default().put(Record::Node(node)), answer))
}

/// What may be put on a node.
pub fn set_state(ledger: &Ledger, name: &str, state: NodeState) -> Planned {
    changed(ledger, Node { state, ..find(ledger, name)? })
}

/// A node that is lost: what was there is replaced at once, and then it is forgotten. Not one that
/// answers, which can be drained.
pub fn give_up(ledger: &Ledger, name: &str) -> Planned {
    let node = find(ledger, name)?;
    if !ledger.silent.contains(&node.id) {
        return Err(refused(format!(
            "node \"{name}\" answers, or did not long ago: atoll node drain {name} moves everything \
             away"
        )));
    }
    changed(ledger, Node { state: NodeState::Lost, ..node })
}

/// How long a node may be silent before its replicas are replaced.
pub fn set_repair_after(ledger: &Ledger, ms: u64) -> Planned {
    let meta = ledger.meta.clone().ok_or(refused("the service is not set up yet"))?;
    if ms < SILENT_MS {
        return Err(refused(format!(
            "a node counts as silent after {}: say more",
            words(SILENT_MS)
        )));
    }
    let said = format!("what is on a node that is silent for {} is replaced", words(ms));
    let meta = Meta { repair_after_ms: ms, ..meta };
    Ok((Change::default().put(Record::Meta(meta)), Answer::Done(said)))
}

/// A node that is empty leaves for good; its id is never given again.
pub fn remove(ledger: &Ledger, name: &str) -> Planned {
    let node = find(ledger, name)?;
    let replicas = view(ledger, &node).replicas;
    if replicas > 0 {
        return Err(refused(format!(
            "node \"{name}\" has {replicas} replicas: atoll node drain {name} moves them away, --force \
             replaces them if it is lost"
        )));
    }
    let targets = |o: &&Operator| o.state == OperatorState::Running && o.target.contains(&node.id);
    if let Some(operator) = ledger.operators.values().find(targets) {
        let id = operator.id;
        return Err(refused(format!("operator {id} brings a group to node \"{name}\"")));
    }
    let said = format!("node \"{name}\" is removed: its process can be stopped");
    let change = Change::default().remove(crate::record::node_key(node.id));
    Ok((change, Answer::Done(said)))
}

/// A node's share of new groups.
pub fn set_weight(ledger: &Ledger, name: &str, weight: u32) -> Planned {
    changed(ledger, Node { weight, ..find(ledger, name)? })
}

/// The zone that a node is in.
pub fn set_zone(ledger: &Ledger, name: &str, zone: &str) -> Planned {
    changed(ledger, Node { zone: zone.to_owned(), ..find(ledger, name)? })
}

/// Remembers something of a node, or forgets it.
pub fn set_label(ledger: &Ledger, name: &str, key: &str, value: &str) -> Planned {
    let mut node = find(ledger, name)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    for text in [key, value] {
        if text.len() > 63 || !text.bytes().all(plain) {
            let rule = "labels have up to 63 of a-z, A-Z, 0-9, -, _, . and /";
            return Err(refused(format!("\"{text}\" cannot be: {rule}")));
        }
    }
    match (key, value) {
        ("", _) => return Err(refused("a label has a name: KEY=VALUE")),
        (key, "") => drop(node.labels.remove(key)),
        (key, value) => drop(node.labels.insert(key.to_owned(), value.to_owned())),
    }
    if node.labels.len() > 32 {
        return Err(refused(format!("node \"{name}\" has 32 labels already")));
    }
    changed(ledger, node)
}

/// All nodes, with what they say of themselves.
pub fn list(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Vec<NodeView> {
    let health = Health::of(ledger, inventory, now_ms);
    let stranded = operators::stranded(&ledger.with_silent(health.silent.clone()))
        .into_iter()
        .fold(BTreeMap::<u64, usize>::new(), |mut counts, (_, node, _)| {
            *counts.entry(node).or_default() += 1;
            counts
        });
    let list = ledger.nodes.values().map(|node| {
        let view = view(ledger, node);
        let is_silent = health.silent.contains(&node.id);
        let report = inventory.nodes.get(&node.id);
        let stays = stranded.get(&node.id).copied().unwrap_or(0);
        let note = match node.state {
            NodeState::Draining => drain_note(ledger, &view, stays, now_ms),
            NodeState::Lost if view.replicas > 0 => "what was there is replaced".to_owned(),
            _ if health.emptied.contains(&node.id) => "it has another data directory".to_owned(),
            _ => String::new(),
        };
        let silent_ms = if is_silent { inventory.silence_ms(node.id, now_ms) } else { 0 };
        let leaders = report.filter(|_| !is_silent).into_iter().flat_map(|r| r.groups.values());
        NodeView {
            silent_ms,
            leaders: leaders.filter(|group| group.leads).count(),
            disk_total: report.map_or(0, |report| report.disk_total),
            disk_free: report.map_or(0, |report| report.disk_free),
            note,
            ..view
        }
    });
    list.collect()
}

/// How far a drain has come: what is left, how long that takes at the rate so far, what stays.
fn drain_note(ledger: &Ledger, node: &NodeView, stays: usize, now_ms: u64) -> String {
    if node.replicas == 0 {
        return "it is empty".to_owned();
    }
    let mut notes = Vec::new();
    let left = node.replicas.saturating_sub(stays);
    let why = operators::drain_of(&node.name);
    let drains = || ledger.operators.values().filter(|operator| operator.why == why);
    let done = drains().filter(|operator| operator.state == OperatorState::Done).count() as u64;
    let begun_ms = drains().map(|operator| operator.begun_ms).min().unwrap_or(now_ms);
    if left > 0 {
        let each_ms = now_ms.saturating_sub(begun_ms).checked_div(done);
        let eta = each_ms.map(|ms| format!(", about {} more", words(ms * left as u64)));
        notes.push(format!("{} to go{}", counted(left, "replica"), eta.unwrap_or_default()));
    }
    if stays > 0 {
        let replicas = counted(stays, "replica");
        let fit = if stays == 1 { "fits" } else { "fit" };
        notes.push(format!("{replicas} {fit} nowhere else: only leaders move away"));
    }
    notes.join("; ")
}

/// A number of things.
pub(crate) fn counted(count: usize, thing: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{s}")
}

/// A time in words, coarsely.
pub(crate) fn words(ms: u64) -> String {
    let seconds = ms.div_ceil(1000);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn view(ledger: &Ledger, node: &Node) -> NodeView {
    let replicas = ledger.groups.values().filter(|group| !group.dead);
    let replicas = replicas.flat_map(|group| &group.replicas);
    NodeView {
        id: node.id,
        name: node.name.clone(),
        zone: node.zone.clone(),
        weight: node.weight,
        state: node.state,
        replicas: replicas.filter(|replica| replica.node == node.id).count(),
        labels: node.labels.clone(),
        peer_urls: node.peer_urls.clone(),
        client_urls: node.client_urls.clone(),
        silent_ms: 0,
        leaders: 0,
        disk_total: 0,
        disk_free: 0,
        note: String::new(),
    }
}
