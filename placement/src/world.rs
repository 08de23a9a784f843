//! A cluster in memory that planners are let loose on: groups with a true load, reports of it with
//! noise, operators that are carried out. What must hold of it is checked after every change.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::{GroupReport, Inventory, NodeReport};
use crate::ledger::{Change, Ledger};
use crate::operators;
use crate::plans;
use crate::policy::{SplitMode, SplitPolicy};
use crate::record::{
    FIRST_VERSION, FORMAT, Group, Meta, Namespace, NamespaceKind, Node, NodeState, Operator,
    OperatorState, Record, Replica, Tenant, TenantState, repair_after_ms,
};

/// What is true of a group.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    pub(crate) lead_cpu: f64,
    pub(crate) follow_cpu: f64,
    pub(crate) writes: f64,
    pub(crate) size: f64,
    pub(crate) leader: u64,
}

/// See the module.
pub(crate) struct World {
    pub(crate) ledger: Ledger,
    pub(crate) groups: BTreeMap<u64, Truth>,
    pub(crate) now_ms: u64,
    /// Reports say what is true give or take this many per cent.
    pub(crate) noise: f64,
    /// Operators that were carried out.
    pub(crate) moves: usize,
    random: u64,
}

// === impl World ===

impl World {
    /// Nodes with numbers from 1, in this many zones if not 0.
    pub(crate) fn new(seed: u64, nodes: u64, zones: u64) -> World {
        let mut ledger = Ledger {
            meta: Some(Meta {
                format: FORMAT,
                cluster: 9,
                next_tenant: 2,
                next_group: 2,
                next_operator: 1,
                replicas: 3,
                default_tenant: 0,
                repair_after_ms: repair_after_ms(),
                last_plan: 0,
                balance_paused: false,
                splits: SplitPolicy::default(),
            }),
            ..Ledger::default()
        };
        for id in 1..=nodes {
            let node = Node {
                id,
                name: format!("n{id}"),
                peer_urls: Vec::new(),
                client_urls: Vec::new(),
                zone: if zones == 0 { String::new() } else { format!("z{}", id % zones) },
                weight: 1,
                directory: 0,
                state: NodeState::Up,
                labels: BTreeMap::new(),
            };
            ledger.nodes.insert(id, node);
        }
        World {
            ledger,
            groups: BTreeMap::new(),
            now_ms: 1_000_000,
            noise: 0.0,
            moves: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// A number below `below`.
    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    /// A tenant with one group on these nodes; the first one leads.
    pub(crate) fn tenant(&mut self, nodes: &[u64], truth: Truth) -> u64 {
        let meta = self.ledger.meta.as_mut().expect("a world has one");
        let (id, group) = (meta.next_tenant, meta.next_group);
        meta.next_tenant += 1;
        meta.next_group += 1;
        let kind = NamespaceKind::Separate { cluster_id: group, port: 0, group, places: vec![] };
        let tenant = Tenant {
            id,
            name: format!("t{id}"),
            state: TenantState::Open,
            deleted_ms: 0,
            quota: 0,
            version: FIRST_VERSION,
            next_namespace: 0,
            namespaces: vec![Namespace { id: 1, name: String::new(), deleted_ms: 0, kind }],
            pin: None,
            splits: SplitMode::Default,
        };
        let replica = |node: &u64| Replica { node: *node, replica: *node, learner: false };
        let record = Group {
            id: group,
            tenant: id,
            namespace: 1,
            cluster_id: group,
            founders: Vec::new(),
            replicas: nodes.iter().map(replica).collect(),
            membership_version: 1,
            dead: false,
            told: FIRST_VERSION,
            wanted: 0,
            recovery: None,
        };
        self.ledger.tenants.insert(id, tenant.into());
        self.ledger.groups.insert(group, record.into());
        self.groups.insert(group, Truth { leader: nodes[0], ..truth });
        group
    }

    fn noisy(&mut self, truth: f64) -> u64 {
        let noise = self.random(2001) as f64 / 1000.0 - 1.0;
        (truth * (1.0 + self.noise / 100.0 * noise)).round() as u64
    }

    /// What the nodes report now.
    pub(crate) fn inventory(&mut self) -> Inventory {
        let mut inventory = Inventory { since_ms: 1, ..Inventory::default() };
        for id in self.ledger.nodes.keys() {
            let report = NodeReport {
                heard_ms: self.now_ms,
                disk_total: 1 << 40,
                disk_free: 1 << 39,
                ..NodeReport::default()
            };
            inventory.nodes.insert(*id, report);
        }
        let groups: Vec<(u64, Truth)> =
            self.groups.iter().map(|(id, truth)| (*id, truth.clone())).collect();
        for (id, truth) in groups {
            for replica in self.ledger.groups[&id].replicas.clone() {
                let leads = replica.node == truth.leader;
                let cpu = if leads { truth.lead_cpu } else { truth.follow_cpu };
                let report = GroupReport {
                    leads,
                    size_bytes: truth.size as u64,
                    write_bytes_per_s: self.noisy(truth.writes),
                    cpu_us_per_s: self.noisy(cpu),
                    requests_per_s: self.noisy(truth.lead_cpu / 20.0),
                    ..GroupReport::default()
                };
                let node = inventory.nodes.get_mut(&replica.node).expect("it is a node");
                node.groups.insert(id, report);
            }
        }
        inventory
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        self.ledger = change.applied_to(&self.ledger);
        self.hold();
    }

    /// Time goes on; what is to be written for balance is, and operators are carried out.
    pub(crate) fn round(&mut self, ms: u64) {
        self.now_ms += ms;
        let inventory = self.inventory();
        if let Some(change) = plans::tend(&self.ledger, &inventory, self.now_ms) {
            self.apply(&change);
        }
        self.carry_out();
    }

    /// Carries all running operators out.
    pub(crate) fn carry_out(&mut self) {
        let running: Vec<_> = operators::running(&self.ledger).into_iter().cloned().collect();
        for operator in running {
            let mut group = Group::clone(&self.ledger.groups[&operator.group]);
            let replica = |node: &u64| Replica { node: *node, replica: *node, learner: false };
            let before = group.replicas.clone();
            group.replicas = operator.target.iter().map(replica).collect();
            group.membership_version += u64::from(before != group.replicas);
            let truth = self.groups.get_mut(&operator.group).expect("it is a group");
            if operator.leader != 0 {
                truth.leader = operator.leader;
            } else if !operator.target.contains(&truth.leader) {
                truth.leader = operator.target[0];
            }
            let report = Change::default().put(Record::Group(group));
            self.apply(&report);
            let ended = operators::finish(&self.ledger, operator.id, false, self.now_ms);
            self.apply(&ended.expect("it was running"));
            self.moves += 1;
        }
    }

    /// What must hold at any time.
    fn hold(&self) {
        let zone = |node: u64| self.ledger.nodes[&node].zone.clone();
        let zones: BTreeSet<String> = self.ledger.nodes.values().map(|n| n.zone.clone()).collect();
        for group in self.ledger.groups.values() {
            let nodes: BTreeSet<u64> = group.replicas.iter().map(|r| r.node).collect();
            assert_eq!(nodes.len(), group.replicas.len(), "two replicas on a node: {group:?}");
            assert!(nodes.len() % 2 == 1, "an even number of replicas: {group:?}");
            if zones.len() >= nodes.len() {
                let taken: BTreeSet<String> = nodes.iter().map(|node| zone(*node)).collect();
                assert_eq!(taken.len(), nodes.len(), "two replicas in a zone: {group:?}");
            }
            for node in nodes {
                let fits = self.ledger.fits(group.tenant, &self.ledger.nodes[&node]);
                assert!(fits, "not where its tenant is pinned to: {group:?}");
            }
        }
        let held = self.ledger.operators.values().filter(|o| o.state == OperatorState::Running);
        let of = |operator: &Operator| {
            let left = operator.merge.as_ref().map(|merge| merge.left);
            let groups: Vec<u64> = [Some(operator.group), left].into_iter().flatten().collect();
            groups.into_iter().filter(|group| operator.holds(*group)).collect::<Vec<_>>()
        };
        let held: Vec<u64> = held.flat_map(of).collect();
        let once: BTreeSet<u64> = held.iter().copied().collect();
        assert_eq!(held.len(), once.len(), "two operators hold a group");
    }

    /// How far the worst node truly is over the mean, in thousandths of it.
    pub(crate) fn spread(&mut self) -> i64 {
        let noise = std::mem::take(&mut self.noise);
        let inventory = self.inventory();
        self.noise = noise;
        let cluster = crate::balance::Cluster::new(&self.ledger, &inventory, self.now_ms);
        crate::balance::spread(&cluster.expect("all nodes report").standings())
    }
}
