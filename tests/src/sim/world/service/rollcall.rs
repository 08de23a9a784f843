//! The roll call: the node that leads placement asks every node, over the world's network, what it
//! is and has, and whoever plans is given what it has heard. No planner here knows more of a node
//! that is silent, or has lost its disk, than a real one.

use std::collections::BTreeSet;

use placement::Ledger;
use placement::health::Health;
use placement::inventory::{ASK_MS, GroupReport, Inventory, NodeReport};
use placement::record::Group;
use placement::repairs;
use proto::id;

use super::super::World;
use super::balance::load_of;
use super::{Event, SCALE};
use crate::sim::fault::Fault;
use crate::sim::host::Host;

/// What one process has heard while it leads placement.
pub(super) struct Call {
    life: u64,
    heard: Inventory,
    asked: BTreeSet<u64>,
}

// === impl World ===

impl World {
    /// Placement's time: its patience is longer than a run.
    pub(super) fn placement_ms(&self) -> u64 {
        1_000_000 + self.now * SCALE
    }

    /// What somebody who leads placement has heard; nothing if nobody does.
    pub(super) fn inventory(&mut self) -> Inventory {
        let service = self.service.as_ref();
        let lives = |host: usize, call: &Call| self.hosts[host].life == call.life;
        let calls = service.into_iter().flat_map(|service| &service.calls);
        let heard: Vec<&Inventory> =
            calls.filter(|(host, call)| lives(**host, call)).map(|(_, call)| &call.heard).collect();
        let mut random = self.service.as_ref().expect("there is a service").random.clone();
        let pick = random.below(heard.len() as u64) as usize;
        let heard = heard.get(pick).map_or_else(Inventory::default, |heard| (*heard).clone());
        self.service().random = random;
        heard
    }

    pub(super) fn call_the_roll(&mut self, host: usize) {
        let at = self.now + ASK_MS / SCALE;
        self.schedule(at, super::super::Event::Service(Event::RollCall { host }));
        if self.hosts[host].paused_until > self.now {
            return;
        }
        let (life, now_ms) = (self.hosts[host].life, self.placement_ms());
        let process = self.hosts[host].process.as_ref();
        let system = process.and_then(|process| process.node.group(id::SYSTEM_GROUP));
        if !system.is_some_and(|group| group.is_leader()) {
            self.service().calls.remove(&host);
            return;
        }
        let service = self.service();
        let Some((_, ledger)) = service.seen.get(&host).filter(|(of, _)| *of == life).cloned()
        else {
            return;
        };
        let call = service.calls.entry(host).or_insert_with(|| Call {
            life,
            heard: Inventory { since_ms: now_ms, ..Inventory::default() },
            asked: ledger.nodes.keys().copied().collect(),
        });
        if call.life != life {
            service.calls.remove(&host);
            return;
        }
        for node in ledger.nodes.keys() {
            // Who came just now has not been silent.
            if call.asked.insert(*node) {
                call.heard.later_ms.insert(*node, now_ms);
            }
        }
        call.heard.later_ms.retain(|node, _| ledger.nodes.contains_key(node));
        call.heard.nodes.retain(|node, _| ledger.nodes.contains_key(node));
        for node in ledger.nodes.keys() {
            let ask = Event::Called { by: host, life, node: *node };
            self.carry(self.hosts[host].id, *node, ask);
        }
    }

    /// Sends a word between nodes, which may be lost.
    fn carry(&mut self, from: u64, to: u64, word: Event) {
        let (drop_permille, delay_ms) = (self.weather.drop_permille, self.weather.delay_ms);
        if self.is_cut(from, to) || self.chance().permille(drop_permille) {
            return;
        }
        let at = self.now + 1 + self.chance().below(delay_ms);
        self.schedule(at, super::super::Event::Service(word));
    }

    /// A node is asked what it is and has.
    pub(super) fn called(&mut self, by: usize, life: u64, node: u64) {
        let Some(host) = self.host_of(node) else { return };
        if self.hosts[host].paused_until > self.now {
            let at = self.hosts[host].paused_until;
            let again = Event::Called { by, life, node };
            return self.schedule(at, super::super::Event::Service(again));
        }
        let Some(report) = self.report_of(host) else { return };
        let said = Event::Said { by, life, node, report: Box::new(report) };
        self.carry(node, self.hosts[by].id, said);
    }

    fn report_of(&self, host: usize) -> Option<NodeReport> {
        let process = self.hosts[host].process.as_ref()?;
        let mut report = NodeReport { directory: self.hosts[host].directory, ..Default::default() };
        for (id, group) in process.node.groups() {
            let found = process.node.quarantined(*id);
            let quarantined_replica = found.as_ref().map_or(0, |found| found.replica);
            let quarantined = found.map(|found| found.reason);
            let leads = group.is_leader();
            if leads || quarantined.is_some() {
                let load = if leads { load_of(self.seed, *id) } else { GroupReport::default() };
                let told = GroupReport { leads, quarantined, quarantined_replica, ..load };
                report.groups.insert(id.0, told);
            }
        }
        for id in process.node.shut() {
            let Some(found) = process.node.quarantined(id) else { continue };
            let (quarantined, quarantined_replica) = (Some(found.reason), found.replica);
            let told = GroupReport { quarantined, quarantined_replica, ..GroupReport::default() };
            report.groups.insert(id.0, told);
        }
        Some(report)
    }

    /// A node has said what it is and has.
    pub(super) fn said(&mut self, by: usize, life: u64, node: u64, report: NodeReport) {
        let heard_ms = self.placement_ms();
        let call = self.service().calls.get_mut(&by).filter(|call| call.life == life);
        if let Some(call) = call {
            call.heard.nodes.insert(node, NodeReport { heard_ms, ..report });
        }
    }

    /// A machine gets an empty disk, and goes on as the node that it was.
    pub(super) fn empty(&mut self) {
        let hosts = self.hosts.len() as u64;
        let host = self.chance().below(hosts) as usize;
        if self.calm || self.service().newest.meta.is_none() {
            return;
        }
        if !self.is_registered(host) || !self.can_spare(host) {
            return self.schedule_in(300, super::super::Event::Service(Event::Empty));
        }
        if self.hosts[host].process.is_some() {
            self.crash(host);
        }
        self.faults += 1;
        let (old, sync_ms) = (&self.hosts[host], self.weather.sync_ms);
        // A real node that had been founded asks the others, and does not begin anew.
        let directory = match self.fault {
            Some(Fault::SameDirectory) => old.directory,
            _ => old.directory + 1,
        };
        let (node, life) = (old.id, old.life);
        self.hosts[host] = Host { id: node, life, directory, sync_ms, ..Host::spare(host) };
        self.service().emptied.push(node);
        self.mark("disks emptied".to_owned());
        self.note(&format!("the disk of n{node} is empty"));
    }

    fn is_registered(&mut self, host: usize) -> bool {
        let id = self.hosts[host].id;
        self.service().newest.nodes.get(&id).is_some_and(|node| node.directory != 0)
    }

    /// Is there nobody to take the place of what a group has lost?
    pub(super) fn is_stuck(&self, ledger: &Ledger, group: &Group) -> bool {
        let service = self.service.as_ref().expect("there is a service in this world");
        let now_ms = self.placement_ms();
        let lives = |host: &usize, call: &Call| self.hosts[*host].life == call.life;
        let mut calls = service.calls.iter().filter(|(host, call)| lives(host, call));
        calls.any(|(_, call)| {
            let health = Health::of(ledger, &call.heard, now_ms);
            repairs::is_stuck(&health, ledger, group)
        })
    }
}
