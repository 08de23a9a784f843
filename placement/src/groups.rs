//! What is known of one group, and which groups make the most work. Pure.

use crate::balance::CpuShare;
use crate::command::{Answer, GroupDetail, GroupLoad, Refusal, refused};
use crate::health::Health;
use crate::inventory::{Inventory, ReplicaReport};
use crate::ledger::Ledger;
use crate::operators::view;
use crate::record::{NamespaceKind, Operator};
use crate::recovery::replicas;
use crate::tenants::{keys as keys_of, owner};

/// Operators of a group that are shown, newest first.
const OPERATORS: usize = 10;

/// All that is known of a group.
pub fn show(
    ledger: &Ledger,
    inventory: &Inventory,
    id: u64,
    now_ms: u64,
) -> Result<Answer, Refusal> {
    let group = ledger.groups.get(&id);
    let group = group.ok_or_else(|| refused(format!("there is no group {id}")))?;
    let health = Health::of(ledger, inventory, now_ms);
    let of_group = inventory.replicas.range((id, 0)..=(id, u64::MAX));
    // Whoever leads knows best; otherwise who has applied most.
    let best = of_group.max_by_key(|((_, node), r)| (r.leader == *node, r.term, r.applied));
    let leads = best.filter(|((_, node), report)| report.leader == *node);
    let leader = leads.map(|((_, node), _)| ledger.node_name(*node));
    let told = best.map(|(_, report)| report.clone()).unwrap_or_default();
    let ReplicaReport { term, revision, compacted, keys, pending, .. } = told;
    let load = loads(ledger, inventory, now_ms).into_iter().find(|load| load.group == id);
    let is_of = |operator: &&Operator| {
        operator.group == id || operator.merge.as_ref().is_some_and(|merge| merge.left == id)
    };
    let operators = ledger.operators.values().rev().filter(is_of);
    let shown = |operator: &Operator| view(ledger, operator);
    let tenant = ledger.tenants.get(&group.tenant);
    let rules = tenant.into_iter().flat_map(|tenant| &tenant.namespaces);
    let stretches = rules.filter_map(|namespace| match &namespace.kind {
        NamespaceKind::Shared { prefix } if group.namespace == 1 => Some(prefix.clone()),
        _ => None,
    });
    Ok(Answer::Group(Box::new(GroupDetail {
        id,
        of: owner(ledger, group),
        tenant: group.tenant,
        namespace: group.namespace,
        cluster_id: group.cluster_id,
        dead: group.dead,
        range: keys_of(ledger, id),
        range_version: ledger.range_version(id),
        stretches: stretches.collect(),
        leader,
        term,
        revision,
        compacted,
        keys,
        pending,
        membership_version: group.membership_version,
        wanted: group.wanted,
        recovery: group.recovery.clone(),
        replicas: replicas(ledger, inventory, &health, group),
        load,
        operators: operators.take(OPERATORS).map(shown).collect(),
    })))
}

/// The groups that make the most work, most first.
pub fn top(ledger: &Ledger, inventory: &Inventory, limit: usize, now_ms: u64) -> Answer {
    let mut loads = loads(ledger, inventory, now_ms);
    loads.sort_by_key(|load| {
        let work = (load.cpu_us_per_s, load.requests_per_s, load.write_bytes_per_s);
        (std::cmp::Reverse(work), std::cmp::Reverse(load.size), load.group)
    });
    if limit > 0 {
        loads.truncate(limit);
    }
    Answer::Loads(loads)
}

/// What each group that is led somewhere gives its leader to do, and all its nodes together.
fn loads(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Vec<GroupLoad> {
    let fresh = inventory.nodes.keys().filter_map(|id| Some((*id, inventory.fresh(*id, now_ms)?)));
    let shares: Vec<_> = fresh.map(|(id, report)| (id, report, CpuShare::of(report))).collect();
    let living = ledger.groups.values().filter(|group| !group.dead);
    let load = |group: &crate::record::Group| {
        let mut load = GroupLoad {
            group: group.id,
            of: owner(ledger, group),
            keys: keys_of(ledger, group.id),
            leader: None,
            nodes: group.replicas.iter().map(|r| ledger.node_name(r.node)).collect(),
            requests_per_s: 0,
            write_bytes_per_s: 0,
            cpu_us_per_s: 0,
            size: 0,
            split: None,
        };
        for (node, report, share) in &shares {
            let Some(told) = report.groups.get(&group.id) else { continue };
            load.cpu_us_per_s += share.cpu(told);
            load.requests_per_s += told.requests_per_s;
            load.size = load.size.max(told.size_bytes);
            if told.leads {
                load.leader = Some(ledger.node_name(*node));
                load.write_bytes_per_s = told.write_bytes_per_s;
                load.split = told.split;
            }
        }
        load
    };
    living.map(|group| load(group)).collect()
}
