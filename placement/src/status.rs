//! How everything is: first a sentence that says whether somebody has to do something, then
//! numbers. Pure.

use std::collections::BTreeMap;

use proto::id;

use crate::command::{NodeView, QuarantineView, ShortView, Standing, StatusView};
use crate::health::{Health, Loss};
use crate::inventory::{Inventory, SplitLoad};
use crate::ledger::Ledger;
use crate::nodes::{self, counted, words};
use crate::operators::{holder, ongoing, view, voters};
use crate::record::{Group, Node, NodeState, Priority, TenantState};
use crate::repairs;
use crate::tenants::owner;

/// A split tenant whose requests wait for so long is in trouble.
const LONG_MS: u64 = 3_000;

/// How everything is.
pub fn of(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> StatusView {
    let health = Health::of(ledger, inventory, now_ms);
    let groups = || ledger.groups.values().filter(|group| !group.dead);
    let mut status = StatusView {
        standing: Standing::Well,
        verdict: String::new(),
        tenants: ledger.tenants.values().filter(|t| t.state != TenantState::Deleted).count(),
        groups: groups().count(),
        nodes: nodes::list(ledger, inventory, now_ms),
        without_quorum: Vec::new(),
        short: Vec::new(),
        quarantined: quarantined(ledger, &health),
        operators: ongoing(ledger).map(|operator| view(ledger, operator)).collect(),
    };
    let mut stuck = 0;
    for group in groups() {
        let (well, all) = health.count(group);
        let repair = holder(ledger, group.id).filter(|o| o.priority == Priority::Repair);
        let wanted = repair.map_or(all, |operator| operator.target.len().max(all));
        let wanted = wanted.max(group.wanted);
        let short = ShortView { group: group.id, of: owner(ledger, group), well, wanted };
        // What has not been heard of yet is not missing.
        if well < wanted && is_known(&health, inventory, group, now_ms) {
            if 2 * well <= all {
                status.without_quorum.push(short);
            } else {
                status.short.push(short);
            }
        }
        stuck += usize::from(repairs::is_stuck(&health, ledger, group));
    }
    let unheard: Vec<&Node> = ledger
        .nodes
        .values()
        .filter(|node| inventory.fresh(node.id, now_ms).is_none())
        .filter(|node| node.state != NodeState::Lost && !health.silent.contains(&node.id))
        .collect();
    let mut troubles = troubles(ledger, &health, &status, stuck);
    troubles.extend(waits(ledger, inventory, now_ms));
    let leads = |node: &&Node| {
        let report = inventory.fresh(node.id, now_ms);
        report.is_some_and(|r| r.groups.get(&id::SYSTEM_GROUP.0).is_some_and(|group| group.leads))
    };
    let leaders: Vec<&str> =
        ledger.nodes.values().filter(leads).map(|node| node.name.as_str()).collect();
    if leaders.len() > 1 {
        // Each was told by hand to go on alone.
        let names = leaders.join(" and ");
        troubles.insert(0, format!("{names} both lead placement: stop one, and empty its disk"));
    }
    (status.standing, status.verdict) = if inventory.since_ms == 0 {
        let said = "Cannot tell: no node says that it leads placement.";
        (Standing::Unknown, said.to_owned())
    } else if !troubles.is_empty() {
        (Standing::Degraded, format!("{}.", troubles.join("; ")))
    } else if !unheard.is_empty() {
        let names: Vec<&str> = unheard.iter().map(|node| node.name.as_str()).collect();
        let said = format!("Cannot tell yet: nothing has been heard of {}.", names.join(", "));
        (Standing::Unknown, said)
    } else {
        let (tenants, nodes) = (status.tenants, status.nodes.len());
        let said =
            format!("All well: {} on {}.", counted(tenants, "tenant"), counted(nodes, "node"));
        (Standing::Well, said)
    };
    status
}

/// Have all nodes of the group been heard of, be it by their silence?
fn is_known(health: &Health<'_>, inventory: &Inventory, group: &Group, now_ms: u64) -> bool {
    voters(group).all(|replica| {
        inventory.fresh(replica.node, now_ms).is_some()
            || health.silent.contains(&replica.node)
            || health.of_node(replica.node).is_some()
    })
}

fn quarantined(ledger: &Ledger, health: &Health<'_>) -> Vec<QuarantineView> {
    let mut views = Vec::new();
    for group in ledger.groups.values().filter(|group| !group.dead) {
        for replica in &group.replicas {
            let Some(reason) = health.quarantined(group.id, replica) else { continue };
            views.push(QuarantineView {
                group: group.id,
                of: owner(ledger, group),
                node: name(ledger, replica.node),
                reason: reason.to_owned(),
            });
        }
    }
    views
}

fn name(ledger: &Ledger, node: u64) -> String {
    ledger.nodes.get(&node).map_or_else(|| format!("{node:x}"), |node| node.name.clone())
}

/// Split tenants whose requests wait for one of their groups.
fn waits(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Vec<String> {
    let fresh = inventory.nodes.keys().filter_map(|node| inventory.fresh(*node, now_ms));
    let groups = fresh.flat_map(|report| &report.groups).filter(|(_, group)| group.leads);
    let mut waits = BTreeMap::new();
    for (id, split) in groups.filter_map(|(id, group)| Some((id, group.split?))) {
        let group = ledger.groups.get(id).filter(|group| !group.dead);
        let (Some(group), true) = (group, split.waits_ms >= LONG_MS) else { continue };
        let longest: &mut SplitLoad = waits.entry(owner(ledger, group)).or_default();
        if split.waits_ms > longest.waits_ms {
            *longest = split;
        }
    }
    let said = |(of, split): (String, SplitLoad)| {
        let since = words(split.waits_ms);
        format!("requests to {of} wait for its group {} since {since}", split.waits_for)
    };
    waits.into_iter().map(said).collect()
}

/// What is wrong, the worst first, and what is done about it.
fn troubles(
    ledger: &Ledger,
    health: &Health<'_>,
    status: &StatusView,
    stuck: usize,
) -> Vec<String> {
    let mut troubles = Vec::new();
    let silent: Vec<&NodeView> = status.nodes.iter().filter(|node| node.silent_ms > 0).collect();
    let is_are = |count: usize| if count == 1 { "is" } else { "are" };
    if !status.without_quorum.is_empty() {
        let count = status.without_quorum.len();
        let have = if count == 1 { "has" } else { "have" };
        troubles.push(format!("{} {have} no quorum", counted(count, "group")));
    }
    if !silent.is_empty() {
        let each = |node: &&NodeView| format!("{} since {}", node.name, words(node.silent_ms));
        let names: Vec<String> = silent.iter().map(each).collect();
        let (count, are) = (counted(silent.len(), "node"), is_are(silent.len()));
        troubles.push(format!("{count} {are} silent: {}", names.join(", ")));
    }
    if !health.emptied.is_empty() {
        let names: Vec<String> = health.emptied.iter().map(|node| name(ledger, *node)).collect();
        let said = "came back with another data directory";
        troubles.push(format!("{} {said}: {}", counted(names.len(), "node"), names.join(", ")));
    }
    if !status.quarantined.is_empty() {
        let count = status.quarantined.len();
        troubles.push(format!("{} {} quarantined", counted(count, "replica"), is_are(count)));
    }
    let mut short: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for group in &status.short {
        *short.entry((group.well, group.wanted)).or_default() += 1;
    }
    for ((well, wanted), count) in short {
        let have = if count == 1 { "has" } else { "have" };
        troubles.push(format!("{} {have} {well} of {wanted} replicas", counted(count, "group")));
    }
    for group in ledger.groups.values().filter(|group| !group.dead) {
        let Some(ordered) = group.recovering() else { continue };
        let (id, node) = (group.id, name(ledger, ordered.node));
        troubles.push(format!("group {id} waits for {node} to go on alone"));
    }
    let repairs = ongoing(ledger).filter(|o| o.priority == Priority::Repair).count();
    if repairs > 0 {
        troubles.push(format!("{} {} under way", counted(repairs, "repair"), is_are(repairs)));
    }
    if stuck > 0 {
        let groups = counted(stuck, "group");
        troubles.push(format!("{groups} cannot be repaired: no other node is there for it"));
    }
    if health.on_hold {
        troubles.push("nothing is replaced while so many nodes are silent at once".to_owned());
        return troubles;
    }
    let holds = |node: u64| ledger.groups.values().any(|g| voters(g).any(|r| r.node == node));
    let waited = silent.iter().filter(|node| health.of_node(node.id).is_none() && holds(node.id));
    let next = waited.map(|node| health.left_ms(node.id)).min();
    if let Some(left_ms) = next {
        troubles.push(format!("repair begins in {}", words(left_ms)));
    }
    // One that was given up and is empty is only still to be forgotten.
    let lost = status.nodes.iter().filter(|node| health.of_node(node.id) == Some(Loss::GivenUp));
    let names: Vec<&str> = lost.filter(|n| n.replicas > 0).map(|n| n.name.as_str()).collect();
    if !names.is_empty() {
        let (count, are) = (counted(names.len(), "node"), is_are(names.len()));
        troubles.push(format!("{count} {are} given up: {}", names.join(", ")));
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Answer;
    use crate::health::tests::{World, now_ms};
    use crate::inventory::GroupReport;
    use crate::ledger::Change;
    use crate::record::{NodeState, Operator, Record, Recovery, Replica};
    use crate::{operators, tenants};

    /// Four nodes, the default tenant on three, one more.
    fn world() -> World {
        let mut world = World::new();
        let change = tenants::create(&world.ledger, "acme", 0, 0).unwrap().0;
        world.ledger = change.applied_to(&world.ledger);
        world
    }

    fn verdict(world: &World) -> (Standing, String) {
        let status = of(&world.ledger, &world.inventory(), now_ms());
        (status.standing, status.verdict)
    }

    #[test]
    fn the_first_sentence_says_what_is_to_be_known() {
        use Standing::{Degraded, Unknown, Well};
        let mut world = world();
        let said = |standing, text: &str| (standing, text.to_owned());
        assert_eq!(verdict(&world), said(Well, "All well: 2 tenants on 4 nodes."));
        world.silence(1, 5_000);
        assert_eq!(verdict(&world), said(Well, "All well: 2 tenants on 4 nodes."));
        world.silence(1, 180_000);
        let text = "1 node is silent: n1 since 3 min; 3 groups have 2 of 3 replicas; repair begins \
                    in 7 min.";
        assert_eq!(verdict(&world), said(Degraded, text));
        world.silence(2, 180_000);
        let (standing, text) = verdict(&world);
        assert_eq!(standing, Degraded);
        assert!(text.starts_with("2 groups have no quorum; 2 nodes are silent: n1 "), "{text}");
        assert!(text.ends_with("nothing is replaced while so many nodes are silent at once."));
        world.silence(1, 0);
        world.silence(2, 0);
        world.quarantine(1, 3);
        let text = "1 replica is quarantined; 1 group has 2 of 3 replicas.";
        assert_eq!(verdict(&world), said(Degraded, text));
        let nobody = of(&world.ledger, &Inventory::default(), now_ms());
        assert_eq!(nobody.standing, Unknown);
        let mut partly = world.inventory();
        partly.nodes.remove(&4);
        partly.nodes.values_mut().for_each(|report| report.groups.clear());
        partly.since_ms = now_ms() - 1_000;
        let partly = of(&world.ledger, &partly, now_ms());
        assert_eq!(partly.verdict, "Cannot tell yet: nothing has been heard of n4.");
    }

    #[test]
    fn a_recovery_that_waits_and_two_placements_are_told() {
        let mut world = world();
        let mut group = Group::clone(&world.ledger.groups[&2]);
        let Replica { node, replica, .. } = group.replicas[0].clone();
        group.recovery = Some(Recovery { node, replica, version: 99, revision: 0, at_ms: 0 });
        let change = Change::default().put(Record::Group(group));
        world.ledger = change.applied_to(&world.ledger);
        let text = format!("group 2 waits for n{node} to go on alone.");
        assert_eq!(verdict(&world), (Standing::Degraded, text));
        let mut inventory = world.inventory();
        for (node, report) in &mut inventory.nodes {
            let leads = [1, 3].contains(node);
            let group = GroupReport { leads, ..Default::default() };
            report.groups.insert(id::SYSTEM_GROUP.0, group);
        }
        let verdict = of(&world.ledger, &inventory, now_ms()).verdict;
        assert!(verdict.starts_with("n1 and n3 both lead placement: "), "{verdict}");
    }

    #[test]
    fn a_split_tenant_that_waits_for_one_of_its_groups_is_told() {
        let world = world();
        let mut inventory = world.inventory();
        let mut waiting = |waits_ms| {
            let split = Some(SplitLoad { waits_for: 77, waits_ms, ..SplitLoad::default() });
            let group = GroupReport { leads: true, split, ..GroupReport::default() };
            inventory.nodes.get_mut(&1).unwrap().groups.insert(2, group);
            of(&world.ledger, &inventory, now_ms()).verdict
        };
        let text = "requests to default wait for its group 77 since 4 s.";
        assert_eq!(waiting(4_000), text);
        assert!(waiting(LONG_MS - 1).starts_with("All well"));
    }

    #[test]
    fn a_group_that_nobody_can_take_is_told() {
        let mut world = world();
        let group = world.ledger.groups.values().next_back().expect("there is one").clone();
        let away = (1..=4).find(|id| group.replicas.iter().all(|r| r.node != *id)).unwrap();
        let (change, _) =
            nodes::set_state(&world.ledger, &format!("n{away}"), NodeState::Cordoned).unwrap();
        world.ledger = change.applied_to(&world.ledger);
        world.silence(group.replicas[0].node, 3_600_000);
        let (_, text) = verdict(&world);
        assert!(text.contains("no other node"), "{text}");
    }

    #[test]
    fn a_drain_tells_how_far_it_has_come() {
        let mut world = world();
        let note = |world: &World| {
            let inventory = world.inventory();
            let list = nodes::list(&world.ledger, &inventory, now_ms());
            list.into_iter().find(|node| node.name == "n1").expect("it is there").note
        };
        let (change, answer) = nodes::set_state(&world.ledger, "n1", NodeState::Draining).unwrap();
        assert!(matches!(answer, Answer::Nodes(_)));
        world.ledger = change.applied_to(&world.ledger);
        assert!(note(&world).ends_with("replicas to go"), "{}", note(&world));
        let drains = operators::plan_drains(&world.ledger, now_ms() - 60_000);
        world.ledger = drains.expect("it is drained").applied_to(&world.ledger);
        let first: Operator = operators::running(&world.ledger)[0].clone();
        let change = operators::finish(&world.ledger, first.id, false, now_ms()).unwrap();
        world.ledger = change.applied_to(&world.ledger);
        assert!(note(&world).contains(", about "), "{}", note(&world));
        for id in 2..=4 {
            world.silence(id, 20_000);
        }
        world.ledger.operators.clear();
        assert!(note(&world).ends_with("only leaders move away"), "{}", note(&world));
    }
}
