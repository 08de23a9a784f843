//! What has become of nodes and replicas, from the ledger and from what nodes say. Pure.
//!
//! A replica is *well* when its node answers, with the data directory that placement knows, and
//! does not say that it is quarantined. It is *lost*, and is to be replaced, when
//!
//! ```text
//!   its node was given up by an operator             at once
//!   its node has another data directory              at once: what it promised is forgotten
//!   it is quarantined                                at once
//!   its node is silent and is to be empty            after SILENT_MS
//!   its node is silent                               after repair_after_ms
//! ```
//!
//! Between the two it is waited for. Are many nodes silent at once, then it is the network that is
//! ill, or whoever asks: nothing is lost then but what an operator has given up.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::Inventory;
use crate::ledger::Ledger;
use crate::operators::voters;
use crate::record::{Group, Node, NodeState, Replica, repair_after_ms};

/// What has become of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its node was given up.
    GivenUp,
    /// Its node has another data directory.
    Emptied,
    /// Its node is silent for too long.
    Silent,
    /// It is out of service; its node is well.
    Quarantined,
}

/// How all nodes stand at one time.
#[derive(Debug)]
pub struct Health<'a> {
    ledger: &'a Ledger,
    inventory: &'a Inventory,
    now_ms: u64,
    /// Nodes of which nothing is heard.
    pub silent: BTreeSet<u64>,
    /// Nodes with another data directory.
    pub emptied: BTreeSet<u64>,
    /// What has become of nodes, but for what stands on hold.
    lost: BTreeMap<u64, Loss>,
    /// Too many nodes are silent at once: nothing is replaced.
    pub on_hold: bool,
}

// === impl Health ===

impl<'a> Health<'a> {
    /// Looks at all nodes.
    pub fn of(ledger: &'a Ledger, inventory: &'a Inventory, now_ms: u64) -> Health<'a> {
        let silent = inventory.silent(ledger, now_ms);
        let emptied = inventory.emptied(ledger, now_ms);
        let on_hold = is_too_much(ledger, &silent);
        let lost = BTreeMap::new();
        let mut health = Health { ledger, inventory, now_ms, silent, emptied, lost, on_hold };
        let found = ledger.nodes.values().filter_map(|node| Some((node.id, health.judge(node)?)));
        health.lost = found.collect();
        health
    }

    fn judge(&self, node: &Node) -> Option<Loss> {
        let is_silent = self.silent.contains(&node.id);
        match node.state {
            NodeState::Lost => Some(Loss::GivenUp),
            _ if self.on_hold => None,
            _ if self.emptied.contains(&node.id) => Some(Loss::Emptied),
            NodeState::Draining if is_silent => Some(Loss::Silent),
            _ => (is_silent && self.left_ms(node.id) == 0).then_some(Loss::Silent),
        }
    }

    /// How long a silent node is still waited for, in milliseconds.
    pub fn left_ms(&self, node: u64) -> u64 {
        let patience = self.ledger.meta.as_ref().map_or(repair_after_ms(), |m| m.repair_after_ms);
        patience.saturating_sub(self.inventory.silence_ms(node, self.now_ms))
    }

    /// How long nothing was heard of a node, in milliseconds.
    pub fn silence_ms(&self, node: u64) -> u64 {
        self.inventory.silence_ms(node, self.now_ms)
    }

    /// What has become of a node; `None` while it is there, or waited for.
    pub fn of_node(&self, node: u64) -> Option<Loss> {
        self.lost.get(&node).copied()
    }

    /// Why a replica is out of service, as its node says.
    pub fn quarantined(&self, group: u64, replica: &Replica) -> Option<&str> {
        let report = self.inventory.fresh(replica.node, self.now_ms)?;
        report.groups.get(&group)?.quarantined.as_deref()
    }

    /// Does its node say that it is this one of its replicas of the group that is out of service? A
    /// report may be older than the replica, and tell of the one before.
    pub fn is_damaged_itself(&self, group: u64, replica: &Replica) -> bool {
        let report = self.inventory.fresh(replica.node, self.now_ms);
        let told = report.and_then(|report| report.groups.get(&group));
        self.of_replica(group, replica) == Some(Loss::Quarantined)
            && told.is_some_and(|told| told.quarantined_replica == replica.replica)
    }

    /// What has become of a replica; `None` while it is there, or waited for.
    pub fn of_replica(&self, group: u64, replica: &Replica) -> Option<Loss> {
        let quarantined = || {
            let found = !self.on_hold && self.quarantined(group, replica).is_some();
            found.then_some(Loss::Quarantined)
        };
        self.of_node(replica.node).or_else(quarantined)
    }

    /// May a node be counted on?
    pub fn is_node_well(&self, node: u64) -> bool {
        let state = self.ledger.nodes.get(&node).map(|node| node.state);
        state.is_some_and(|state| state != NodeState::Lost)
            && !self.silent.contains(&node)
            && !self.emptied.contains(&node)
            && self.inventory.fresh(node, self.now_ms).is_some()
    }

    /// May a replica be counted on?
    pub fn is_well(&self, group: u64, replica: &Replica) -> bool {
        self.is_node_well(replica.node) && self.quarantined(group, replica).is_none()
    }

    /// Voters of a group: those that may be counted on, and all.
    pub fn count(&self, group: &Group) -> (usize, usize) {
        let well = voters(group).filter(|replica| self.is_well(group.id, replica)).count();
        (well, voters(group).count())
    }

    /// Is there nothing to be seen to?
    pub fn is_all_well(&self) -> bool {
        let says = |node: &u64| {
            let report = self.inventory.fresh(*node, self.now_ms);
            report.is_some_and(|report| report.groups.values().all(|g| g.quarantined.is_none()))
        };
        self.ledger.nodes.keys().all(|node| self.is_node_well(*node) && says(node))
    }
}

/// Are so many nodes silent that it is not theirs? Two or more that are a third of all, or a zone
/// of several. What was given up does not count.
fn is_too_much(ledger: &Ledger, silent: &BTreeSet<u64>) -> bool {
    let nodes: Vec<&Node> =
        ledger.nodes.values().filter(|node| node.state != NodeState::Lost).collect();
    let is_silent = |node: &&&Node| silent.contains(&node.id);
    let count = nodes.iter().filter(is_silent).count();
    let mut zones: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for node in nodes.iter().filter(|node| !node.zone.is_empty()) {
        let (of_zone, quiet) = zones.entry(&node.zone).or_default();
        *of_zone += 1;
        *quiet += usize::from(is_silent(&node));
    }
    let a_zone = zones.values().any(|(of_zone, quiet)| *of_zone > 1 && quiet == of_zone);
    (count >= 2 && 3 * count >= nodes.len()) || (zones.len() > 1 && a_zone)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::inventory::{GroupReport, NodeReport};
    use crate::nodes;
    use crate::record::{Founder, Group};
    use crate::ring::stable;
    use crate::tenants::tests::founded;

    /// Long after everybody began to be asked.
    pub(crate) fn now_ms() -> u64 {
        100_000_000
    }

    /// A ledger, and how its nodes really are.
    pub(crate) struct World {
        pub(crate) ledger: Ledger,
        silent_ms: BTreeMap<u64, u64>,
        emptied: BTreeSet<u64>,
        /// Group and number.
        quarantined: BTreeSet<(u64, u64)>,
    }

    impl World {
        /// Four nodes, all well.
        pub(crate) fn new() -> World {
            let mut ledger = founded();
            ledger.nodes.values_mut().for_each(|node| node.directory = node.id);
            let (silent_ms, emptied) = (BTreeMap::new(), BTreeSet::new());
            World { ledger, silent_ms, emptied, quarantined: BTreeSet::new() }
        }

        /// Some nodes, some groups, some of both not well.
        pub(crate) fn random(seed: u64) -> World {
            let mut rolls = 0u64;
            let mut roll = |sides: u64| {
                rolls += 1;
                stable(&(seed, rolls)) % sides
            };
            let mut world = World::new();
            let mut ledger = world.ledger.clone();
            let model = ledger.nodes[&1].clone();
            let count = 3 + roll(5);
            ledger.nodes.clear();
            for id in 1..=count {
                let zone = ["", "", "a", "b"][roll(4) as usize].to_owned();
                let state = match roll(12) {
                    0 => NodeState::Draining,
                    1 => NodeState::Cordoned,
                    2 => NodeState::Lost,
                    _ => NodeState::Up,
                };
                let name = format!("n{id}");
                let node = Node { id, name, zone, state, directory: id, ..model.clone() };
                ledger.nodes.insert(id, node);
            }
            let model = ledger.groups.values().next().expect("there is one").clone();
            ledger.groups.clear();
            for id in 1..=1 + roll(6) {
                let replicas = [1, 3, 3, 5][roll(4) as usize].min(count | 1);
                let mut on: Vec<&Node> = ledger.nodes.values().collect();
                on.sort_by_key(|node| stable(&(seed, id, node.id)));
                on.truncate(if replicas > count { 1 } else { replicas as usize });
                let founders: Vec<Founder> = on.into_iter().map(Founder::of).collect();
                let replicas = founders.iter().map(Founder::replica).collect();
                let group = Group { id, founders, replicas, ..Group::clone(&model) };
                ledger.groups.insert(id, group.into());
            }
            for node in 1..=count {
                match roll(8) {
                    0 => world.silence(node, roll(2_000_000)),
                    1 => world.empty(node),
                    _ => {}
                }
            }
            world.ledger = ledger;
            let groups = world.ledger.groups.values();
            let all = groups.flat_map(|g| g.replicas.iter().map(|r| (g.id, r.replica)));
            world.quarantined = all.filter(|_| roll(8) == 0).collect();
            world
        }

        /// Nothing has been heard of a node for so long.
        pub(crate) fn silence(&mut self, node: u64, ms: u64) {
            self.silent_ms.insert(node, ms);
        }

        /// A node has lost its disk, and goes on with another one.
        pub(crate) fn empty(&mut self, node: u64) {
            self.emptied.insert(node);
        }

        /// The group's replica on a node is damaged; its number.
        pub(crate) fn quarantine(&mut self, group: u64, node: u64) -> u64 {
            let replicas = &self.ledger.groups[&group].replicas;
            let found = replicas.iter().find(|replica| replica.node == node);
            let replica = found.expect("the node has the group").replica;
            self.quarantined.insert((group, replica));
            replica
        }

        /// What the nodes say.
        pub(crate) fn inventory(&self) -> Inventory {
            let report = |node: &Node| {
                let groups = self.ledger.groups.values().filter_map(|group| {
                    let replica = group.replicas.iter().find(|r| r.node == node.id)?;
                    let is_damaged = self.quarantined.contains(&(group.id, replica.replica));
                    let quarantined = is_damaged.then(|| "a test".to_owned());
                    let quarantined_replica = replica.replica;
                    let report =
                        GroupReport { quarantined, quarantined_replica, ..GroupReport::default() };
                    Some((group.id, report))
                });
                let silent_ms = self.silent_ms.get(&node.id).copied().unwrap_or(0);
                NodeReport {
                    heard_ms: now_ms() - silent_ms,
                    directory: node.id + u64::from(self.emptied.contains(&node.id)) * 1_000,
                    groups: groups.collect(),
                    ..NodeReport::default()
                }
            };
            let nodes = self.ledger.nodes.values().map(|node| (node.id, report(node)));
            Inventory { since_ms: 1, nodes: nodes.collect(), ..Inventory::default() }
        }
    }

    #[test]
    fn a_zone_of_several_that_is_silent_is_not_lost() {
        let mut world = World::new();
        for id in 5..=9 {
            let node = Node { id, name: format!("n{id}"), ..world.ledger.nodes[&1].clone() };
            world.ledger.nodes.insert(id, node);
        }
        for (id, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "c")] {
            let (change, _) = nodes::set_zone(&world.ledger, &format!("n{id}"), zone).unwrap();
            world.ledger = change.applied_to(&world.ledger);
        }
        let on_hold = |world: &World| {
            let inventory = world.inventory();
            Health::of(&world.ledger, &inventory, now_ms()).on_hold
        };
        world.silence(3, 1_000_000);
        assert!(!on_hold(&world), "one node, though it is all of its zone");
        world.silence(4, 1_000_000);
        assert!(!on_hold(&world), "two of nine, and half a zone");
        world.silence(3, 0);
        world.silence(5, 1_000_000);
        assert!(on_hold(&world), "a zone of two");
    }

    #[test]
    fn nothing_is_known_before_somebody_has_asked() {
        let world = World::new();
        let nobody = Inventory::default();
        let health = Health::of(&world.ledger, &nobody, now_ms());
        assert!(health.silent.is_empty() && health.of_node(1).is_none());
        assert!(!health.is_node_well(1));
    }
}
