//! Commands about nodes, and how the service is founded: what each would change in the ledger.
//! Pure.

use proto::id;

use crate::command::{Answer, NodeView, Refusal, refused};
use crate::ledger::{Change, Ledger};
use crate::record::{
    FORMAT, Founder, Group, Meta, Namespace, NamespaceKind, Node, NodeState, Operator,
    OperatorState, Record, Replica, Tenant, TenantState,
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
        format: FORMAT,
        cluster,
        next_tenant: id::DEFAULT_TENANT.0 + 1,
        next_group: id::DEFAULT_GROUP.0 + 1,
        next_operator: 1,
        replicas,
        default_tenant: if default_tenant { id::DEFAULT_TENANT.0 } else { 0 },
        last_plan: 0,
        balance_paused: false,
    };
    let kind = NamespaceKind::Separate { cluster_id: cluster, port: 0, group: id::DEFAULT_GROUP.0 };
    let tenant = Tenant {
        id: id::DEFAULT_TENANT.0,
        name: "default".to_owned(),
        state: TenantState::Open,
        deleted_ms: 0,
        namespaces: vec![Namespace { id: id::DEFAULT_NAMESPACE.0, name: String::new(), kind }],
        pin: None,
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
        dead: false,
    };
    let change = Change::default()
        .put(Record::Meta(meta))
        .put(Record::Tenant(tenant))
        .put(Record::Group(group(id::SYSTEM_GROUP.0, 0)))
        .put(Record::Group(group(id::DEFAULT_GROUP.0, id::DEFAULT_TENANT.0)));
    Some(founders.iter().fold(change, |change, node| change.put(Record::Node(node.clone()))))
}

/// A leader reports the members of its group, and the nodes that left the cluster: what else they
/// have is to move away. `None` when that is known.
pub fn report(
    ledger: &Ledger,
    group: u64,
    version: u64,
    replicas: &[Replica],
    retired: &[u64],
) -> Option<Change> {
    let known = ledger.groups.get(&group)?;
    if version <= known.membership_version {
        return None;
    }
    let group = Group { replicas: replicas.to_vec(), membership_version: version, ..known.clone() };
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

/// A node that is empty leaves for good; its id is never given again.
pub fn remove(ledger: &Ledger, name: &str) -> Planned {
    let node = find(ledger, name)?;
    let replicas = view(ledger, &node).replicas;
    if replicas > 0 {
        return Err(refused(format!(
            "node \"{name}\" has {replicas} replicas: atoll node drain {name} moves them away"
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

/// All nodes.
pub fn list(ledger: &Ledger) -> Answer {
    Answer::Nodes(ledger.nodes.values().map(|node| view(ledger, node)).collect())
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
    }
}
