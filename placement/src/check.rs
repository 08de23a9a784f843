//! Is the ledger sound? Finds what no sequence of commands should lead to, and what an operator
//! should mend. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ledger::Ledger;
use crate::operators;
use crate::record::{
    Group, Merge, Namespace, NamespaceKind, NodeState, Operator, OperatorState, Replica, Tenant,
    TenantState,
};

/// Something that is not as it should be.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub gravity: Gravity,
    /// What it is, in words.
    pub what: String,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gravity {
    /// It must not be: the program or somebody's hand is at fault.
    Wrong,
    /// It may be, but is not good.
    Weak,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

// === impl Findings ===

impl Findings {
    fn wrong(&mut self, what: String) {
        self.0.push(Finding { gravity: Gravity::Wrong, what });
    }

    fn weak(&mut self, what: String) {
        self.0.push(Finding { gravity: Gravity::Weak, what });
    }
}

/// All findings, the gravest first.
pub fn check(ledger: &Ledger) -> Vec<Finding> {
    let mut found = Findings::default();
    tenants(ledger, &mut found);
    for group in ledger.groups.values().filter(|group| !group.dead) {
        owner(ledger, group, &mut found);
        replicas(ledger, group, &mut found);
    }
    work(ledger, &mut found);
    found.0.sort();
    found.0
}

fn tenants(ledger: &Ledger, found: &mut Findings) {
    let mut names: BTreeMap<&str, u64> = BTreeMap::new();
    let mut ports: BTreeMap<u16, String> = BTreeMap::new();
    let mut homes: BTreeMap<u64, String> = BTreeMap::new();
    for tenant in ledger.tenants.values() {
        let (name, id) = (tenant.name.as_str(), tenant.id);
        if let Some(other) = names.insert(name, id) {
            found.wrong(format!("tenants {other} and {id} are both called \"{name}\""));
        }
        if ledger.meta.as_ref().is_some_and(|meta| id >= meta.next_tenant) {
            found.wrong(format!("tenant {id} (\"{name}\") has a number that is still to be given"));
        }
        for namespace in &tenant.namespaces {
            let full = tenant.full_name(namespace);
            let NamespaceKind::Separate { port, group, .. } = &namespace.kind else { continue };
            if let Some(other) = ports.insert(*port, full.clone()).filter(|_| *port != 0) {
                found.wrong(format!("\"{other}\" and \"{full}\" have the same port {port}"));
            }
            places(&full, *group, namespace, found);
            for place in namespace.places().iter() {
                let group = place.group;
                if let Some(other) = homes.insert(group, full.clone()) {
                    found.wrong(format!("\"{other}\" and \"{full}\" have the same group {group}"));
                }
                let stored = ledger.groups.get(&group);
                let is_its = |stored: &Arc<Group>| {
                    !stored.dead && (stored.tenant, stored.namespace) == (id, namespace.id)
                };
                if !stored.is_some_and(is_its) {
                    found.wrong(format!("\"{full}\" has no group: {group} is not its own"));
                }
            }
        }
        if !tenant.namespaces.iter().any(|it| matches!(it.kind, NamespaceKind::Separate { .. })) {
            found.wrong(format!("tenant \"{name}\" has no group for keys outside its namespaces"));
        }
        overlaps(tenant, found);
    }
}

/// The places of an etcd: home is the first and begins with the first key of all, each other one
/// begins behind the one before, so that they have all keys and none twice.
fn places(full: &str, home: u64, namespace: &Namespace, found: &mut Findings) {
    let places = namespace.places();
    if let Some(first) = places.first()
        && first.group != home
    {
        let group = first.group;
        found.wrong(format!(
            "\"{full}\" has its first keys in group {group}, not at home in {home}"
        ));
    }
    if places.first().is_some_and(|first| !first.start.is_empty()) {
        found.wrong(format!("the first keys of \"{full}\" are in no group"));
    }
    for pair in places.windows(2) {
        if let [one, other] = pair
            && other.start <= one.start
        {
            let (one, other) = (one.group, other.group);
            found.wrong(format!("the keys of groups {one} and {other} of \"{full}\" overlap"));
        }
    }
    for place in places.iter().filter(|place| place.version == 0) {
        let group = place.group;
        found.wrong(format!("the keys of group {group} of \"{full}\" have no version"));
    }
}

fn overlaps(tenant: &Tenant, found: &mut Findings) {
    let prefix = |namespace: &'_ Namespace| match &namespace.kind {
        NamespaceKind::Shared { prefix } => Some((prefix.clone(), tenant.full_name(namespace))),
        NamespaceKind::Separate { .. } => None,
    };
    let mut prefixes: Vec<(String, String)> = tenant.namespaces.iter().filter_map(prefix).collect();
    prefixes.sort();
    // What begins with a prefix stands right behind it.
    for pair in prefixes.windows(2) {
        if let [(outer, one), (inner, other)] = pair
            && inner.starts_with(outer.as_str())
        {
            found.wrong(format!("\"{one}\" and \"{other}\" have the same keys: {outer}, {inner}"));
        }
    }
}

fn owner(ledger: &Ledger, group: &Group, found: &mut Findings) {
    let id = group.id;
    if ledger.meta.as_ref().is_some_and(|meta| id >= meta.next_group) {
        found.wrong(format!("group {id} has a number that is still to be given"));
    }
    if group.tenant == 0 {
        return;
    }
    let Some(tenant) = ledger.tenants.get(&group.tenant) else {
        return found
            .wrong(format!("group {id} belongs to tenant {}, which is no more", group.tenant));
    };
    match tenant.place_of(id) {
        Some((namespace, _)) if namespace.id == group.namespace => {}
        _ => found.wrong(format!("group {id} belongs to no namespace of \"{}\"", tenant.name)),
    }
}

fn replicas(ledger: &Ledger, group: &Group, found: &mut Findings) {
    let called = format!("group {} ({})", group.id, ledger.group_name(group));
    let held = operators::holder(ledger, group.id).is_some();
    let voters: Vec<&Replica> = group.replicas.iter().filter(|replica| !replica.learner).collect();
    if voters.is_empty() {
        return found.wrong(format!("{called} has no replica that votes"));
    }
    let nodes: BTreeSet<u64> = group.replicas.iter().map(|replica| replica.node).collect();
    let numbers: BTreeSet<u64> = group.replicas.iter().map(|replica| replica.replica).collect();
    if nodes.len() != group.replicas.len() || numbers.len() != group.replicas.len() {
        found.wrong(format!("{called} has two replicas on a node, or of one number"));
    }
    for node in nodes.iter().filter(|node| !ledger.nodes.contains_key(node)) {
        found.wrong(format!("{called} has a replica on node {node:016x}, which is no more"));
    }
    if !held {
        for learner in group.replicas.iter().filter(|r| r.learner && r.replica != r.node) {
            let node = ledger.node_name(learner.node);
            found.weak(format!("{called} has a learner on {node} that nobody works on"));
        }
        if voters.len().is_multiple_of(2) {
            found.weak(format!("{called} has {} voters: one more than it gains by", voters.len()));
        }
    }
    let deleted =
        ledger.tenants.get(&group.tenant).is_some_and(|t| t.state == TenantState::Deleted);
    if held || deleted {
        return;
    }
    let elsewhere = |id: &&u64| ledger.nodes.get(id).is_some_and(|n| !ledger.fits(group.tenant, n));
    for node in nodes.iter().filter(elsewhere) {
        let node = ledger.node_name(*node);
        found.weak(format!("{called} is on {node}, where its tenant is not pinned to"));
    }
    zones(ledger, group, &voters, &called, found);
}

/// Replicas of one zone fail together: that is for want of other zones only.
fn zones(ledger: &Ledger, group: &Group, voters: &[&Replica], called: &str, found: &mut Findings) {
    let zone = |id: u64| ledger.nodes.get(&id).map_or("", |node| node.zone.as_str());
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    for voter in voters {
        *taken.entry(zone(voter.node)).or_default() += 1;
    }
    let crowded = taken.iter().find(|(zone, count)| !zone.is_empty() && **count > 1);
    let usable = ledger.nodes.values().filter(|n| n.state == NodeState::Up && n.weight > 0);
    let usable = usable.filter(|node| ledger.fits(group.tenant, node));
    let free = usable.map(|node| node.zone.as_str()).find(|zone| !taken.contains_key(zone));
    if let (Some((zone, count)), Some(free)) = (crowded, free) {
        let free = if free.is_empty() { "nodes of no zone" } else { free };
        found.weak(format!("{called} has {count} replicas in zone {zone}, and none in {free}"));
    }
}

fn work(ledger: &Ledger, found: &mut Findings) {
    let mut held: BTreeMap<u64, u64> = BTreeMap::new();
    for operator in ledger.operators.values().filter(|o| o.state == OperatorState::Running) {
        let (id, group) = (operator.id, operator.group);
        let left = operator.merge.as_ref().map(|merge| merge.left);
        for group in [Some(group), left].into_iter().flatten().filter(|it| operator.holds(*it)) {
            if let Some(other) = held.insert(group, id) {
                found.wrong(format!("operators {other} and {id} both work on group {group}"));
            }
        }
        if let Some(merge) = &operator.merge {
            merging(ledger, operator, merge, found);
        }
        if ledger.groups.get(&group).is_none_or(|group| group.dead) {
            found.wrong(format!("operator {id} works on group {group}, which is no more"));
        }
        for node in operator.target.iter().filter(|node| !ledger.nodes.contains_key(node)) {
            found.wrong(format!(
                "operator {id} brings group {group} to {node:016x}, which is no more"
            ));
        }
        for cut in &operator.cuts {
            let child = cut.child;
            if ledger.meta.as_ref().is_some_and(|meta| child >= meta.next_group) {
                found.wrong(format!(
                    "operator {id} cuts off group {child}, whose number is still to be given"
                ));
            }
        }
        if operator.leader != 0 && !operator.target.contains(&operator.leader) {
            found.wrong(format!("operator {id} wants a leader where it puts no replica"));
        }
    }
    for operator in ledger.operators.values() {
        let next = operator.merge.as_ref().map_or(0, |merge| merge.next);
        if ledger.meta.as_ref().is_some_and(|meta| operator.id.max(next) >= meta.next_operator) {
            let id = operator.id;
            found.wrong(format!("operator {id} has, or names, a number that is still to be given"));
        }
    }
    if ledger.plans.values().filter(|p| p.applied_ms != 0 && p.ended_ms == 0).count() > 1 {
        found.wrong("more than one plan is being carried out".to_owned());
    }
}

/// An operator that merges groups of two etcds, or a group into itself, or home into another one.
fn merging(ledger: &Ledger, operator: &Operator, merge: &Merge, found: &mut Findings) {
    let (id, right, left) = (operator.id, operator.group, merge.left);
    let of = |group: u64| ledger.groups.get(&group).map(|group| (group.tenant, group.namespace));
    if left == right || of(left) != of(right) {
        found.wrong(format!(
            "operator {id} merges groups {left} and {right}, which are no neighbours"
        ));
    }
    if ledger.place_of(right).is_some_and(|(_, at)| at == 0) {
        found.wrong(format!("operator {id} merges group {right}, which is home, into another one"));
    }
    if !operator.cuts.is_empty() {
        found.wrong(format!("operator {id} both cuts and merges group {right}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Priority;
    use crate::tenants::tests::founded;
    use crate::{nodes, tenants};

    fn sound() -> Ledger {
        let mut ledger = founded();
        for name in ["acme", "beta"] {
            ledger = tenants::create(&ledger, name, 0, 0).expect("it can").0.applied_to(&ledger);
        }
        let events = tenants::create_namespace(&ledger, "acme", "events", Some("/e/"), 0);
        events.expect("it can").0.applied_to(&ledger)
    }

    fn found(ledger: &Ledger) -> Vec<String> {
        check(ledger).into_iter().map(|finding| finding.what).collect()
    }

    /// What is found in a sound ledger after `harm`, which is one thing.
    fn after(harm: impl FnOnce(&mut Ledger)) -> String {
        let mut ledger = sound();
        harm(&mut ledger);
        let found = found(&ledger);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    fn group(ledger: &mut Ledger) -> &mut Group {
        Arc::make_mut(ledger.groups.values_mut().last().expect("there is one"))
    }

    fn acme(ledger: &mut Ledger) -> &mut Tenant {
        let mut tenants = ledger.tenants.values_mut();
        Arc::make_mut(tenants.find(|tenant| tenant.name == "acme").expect("it is there"))
    }

    #[test]
    fn what_commands_lead_to_is_sound() {
        assert_eq!(found(&sound()), [""; 0]);
    }

    #[test]
    fn what_is_not_sound_is_found() {
        let said = after(|ledger| acme(ledger).name = "beta".to_owned());
        assert!(said.contains("both called \"beta\""), "{said}");
        let said = after(|ledger| {
            let kind = NamespaceKind::Shared { prefix: "/e/vents/".to_owned() };
            let name = "more".to_owned();
            acme(ledger).namespaces.push(Namespace { id: 7, name, deleted_ms: 0, kind });
        });
        assert!(said.contains("have the same keys: /e/, /e/vents/"), "{said}");
        let said = after(|ledger| {
            for tenant in ledger.tenants.values_mut() {
                let tenant = Arc::make_mut(tenant);
                for namespace in &mut tenant.namespaces {
                    if let NamespaceKind::Separate { port, .. } = &mut namespace.kind
                        && tenant.name != "default"
                    {
                        *port = 4001;
                    }
                }
            }
        });
        assert!(said.contains("have the same port 4001"), "{said}");
        let said = after(|ledger| group(ledger).replicas.clear());
        assert!(said.contains("has no replica that votes"), "{said}");
        let said = after(|ledger| {
            let replica = group(ledger).replicas[0].clone();
            group(ledger).replicas[1] = replica;
        });
        assert!(said.contains("two replicas on a node"), "{said}");
        let said = after(|ledger| group(ledger).replicas[0].node = 99);
        assert!(said.contains("on node 0000000000000063, which is no more"), "{said}");
        let said = after(|ledger| {
            let stray = Replica { node: 4, replica: 77, learner: true };
            let group = group(ledger);
            group.replicas.retain(|replica| replica.node != 4);
            group.replicas.push(stray);
            while group.replicas.len() < 4 {
                let node = (1..4).find(|n| group.replicas.iter().all(|r| r.node != *n));
                let node = node.expect("three of three");
                group.replicas.push(Replica { node, replica: node, learner: false });
            }
        });
        assert!(said.contains("has a learner on n4 that nobody works on"), "{said}");
        let mut ledger = sound();
        group(&mut ledger).namespace = 9;
        let said = found(&ledger);
        assert!(said[0].contains("has no group") && said[1].contains("belongs to no namespace"));
    }

    #[test]
    fn work_on_what_is_gone_is_found() {
        let operator = |group: u64| Operator {
            id: 1,
            group,
            target: vec![1, 2, 3],
            lost: Vec::new(),
            leader: 4,
            priority: Priority::User,
            why: String::new(),
            cuts: Vec::new(),
            merge: None,
            given_up_ms: 0,
            state: OperatorState::Running,
            begun_ms: 1,
            ended_ms: 0,
        };
        let mut ledger = sound();
        ledger.operators.insert(1, operator(500));
        ledger.meta.as_mut().expect("it has one").next_operator = 2;
        let found = found(&ledger);
        assert!(found[0].contains("wants a leader where it puts no replica"), "{found:?}");
        assert!(found[1].contains("works on group 500, which is no more"), "{found:?}");
    }

    #[test]
    fn replicas_crowd_in_a_zone_only_for_want_of_others() {
        let mut ledger = sound();
        for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c"), ("n4", "c")] {
            ledger = nodes::set_zone(&ledger, node, zone).expect("it can").0.applied_to(&ledger);
        }
        let replica = |node: u64| Replica { node, replica: node, learner: false };
        for group in ledger.groups.values_mut() {
            Arc::make_mut(group).replicas = [1, 2, 3].map(replica).to_vec();
        }
        assert_eq!(found(&ledger), [""; 0]);
        group(&mut ledger).replicas = [1, 3, 4].map(replica).to_vec();
        let crowded = found(&ledger);
        assert!(crowded[0].contains("has 2 replicas in zone c, and none in b"), "{crowded:?}");
        assert_eq!(check(&ledger)[0].gravity, Gravity::Weak);
        ledger.nodes.get_mut(&2).expect("it is there").state = NodeState::Cordoned;
        assert_eq!(found(&ledger), [""; 0]);
    }
}
