//! How hot groups are: their load over time, as far as whoever leads placement has seen. Pure.
//!
//! A report tells of two seconds, and no split is decided on two seconds. So each report moves a
//! decayed mean, and it is noted since when that has been at the bar of the policy
//! (`policy.rs`). It is kept where placement is led, like the inventory and beside it: whoever leads
//! it next begins anew, and splits a little later.
//!
//! Invariants:
//! * heat is the group's, whoever leads it: it travels with leadership;
//! * it is halved when the group's keys change, and the bar is to be reached for its time anew;
//! * what has no load is forgotten, unless it is one of several groups of an etcd;
//! * since when two neighbours have had little together is counted anew when the keys of either change,
//!   and when nobody says how one of them is.

use std::collections::BTreeMap;

use crate::inventory::Inventory;
use crate::ledger::Ledger;
use crate::policy::{Load, SplitPolicy};
use crate::record::{Namespace, Place, TenantState};

/// The mean is that of about so much time, in milliseconds.
const MEAN_MS: u64 = 6_000;

/// How hot a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heat {
    /// Decayed mean of requests a second on all its nodes, in thousandths.
    pub requests_milli_per_s: u64,
    /// Decayed mean of bytes a second appended to its log.
    pub write_bytes_per_s: u64,
    /// Version of its keys.
    pub range_version: u64,
    /// Since when it has been at its bar, in milliseconds since 1970; 0 if it is not.
    pub since_ms: u64,
    /// Since when it and its left neighbour have had so little together that they could be one, in
    /// milliseconds since 1970; 0 if they have more.
    pub quiet_ms: u64,
}

/// The heat of all groups that have any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heats {
    /// When it was told last, in milliseconds since 1970.
    pub at_ms: u64,
    /// By group.
    pub groups: BTreeMap<u64, Heat>,
}

// === impl Heat ===

impl Heat {
    /// Requests a second.
    pub fn requests_per_s(&self) -> u64 {
        self.requests_milli_per_s.div_ceil(1000)
    }

    /// After `over_ms` more with this load.
    fn after(self, requests_per_s: u64, write_bytes_per_s: u64, over_ms: u64) -> Heat {
        let mean = |old: u64, new: u64| {
            let sum = u128::from(old) * u128::from(MEAN_MS) + u128::from(new) * u128::from(over_ms);
            (sum / u128::from(MEAN_MS + over_ms)) as u64
        };
        Heat {
            requests_milli_per_s: mean(self.requests_milli_per_s, requests_per_s * 1000),
            write_bytes_per_s: mean(self.write_bytes_per_s, write_bytes_per_s),
            ..self
        }
    }
}

// === impl Heats ===

impl Heats {
    /// Takes in what nodes have said since.
    pub fn take_in(&mut self, ledger: &Ledger, inventory: &Inventory, now_ms: u64) {
        let over_ms = match self.at_ms {
            0 => MEAN_MS,
            at_ms => now_ms.saturating_sub(at_ms),
        };
        self.at_ms = now_ms;
        let loads = loads(inventory, now_ms);
        let policy = SplitPolicy::of(ledger);
        let mut groups = BTreeMap::new();
        for tenant in ledger.tenants.values() {
            let open = |it: &&Namespace| tenant.state_of(it) == TenantState::Open;
            for namespace in tenant.namespaces.iter().filter(open) {
                let places = namespace.places();
                let bar = policy.bar(places.len());
                for place in places.iter() {
                    let before = self.groups.get(&place.group).copied();
                    let load = loads.get(&place.group).copied();
                    if load.is_none() && before.is_none() {
                        continue;
                    }
                    let mut heat = before.unwrap_or_default();
                    if before.is_some() && heat.range_version != place.version {
                        heat.requests_milli_per_s /= 2;
                        heat.write_bytes_per_s /= 2;
                        heat.since_ms = 0;
                    }
                    heat.range_version = place.version;
                    let (requests, writes) = load.unwrap_or_default();
                    heat = heat.after(requests, writes, over_ms);
                    let reached = bar.reached_by(heat.requests_per_s(), heat.write_bytes_per_s);
                    heat.since_ms = match (reached, heat.since_ms) {
                        (None, _) => 0,
                        (Some(_), 0) => now_ms,
                        (Some(_), since_ms) => since_ms,
                    };
                    let has_load = heat.requests_milli_per_s > 0 || heat.write_bytes_per_s > 0;
                    if has_load || places.len() > 1 {
                        groups.insert(place.group, heat);
                    }
                }
                for pair in places.windows(2) {
                    self.quiet(&mut groups, inventory, &policy, places.len(), pair, now_ms);
                }
            }
        }
        self.groups = groups;
    }

    /// Notes since when two neighbours have had little together.
    fn quiet(
        &self,
        groups: &mut BTreeMap<u64, Heat>,
        inventory: &Inventory,
        policy: &SplitPolicy,
        places: usize,
        pair: &[Place],
        now_ms: u64,
    ) {
        let [left, right] = pair else { return };
        let load = together(groups, inventory, left.group, right.group, now_ms);
        let bar = policy.merge_bar(places);
        let is_little = load.is_some_and(|load| bar.is_little(&load, right.cause));
        let is_same = |place: &Place| {
            let before = self.groups.get(&place.group);
            before.is_some_and(|before| before.range_version == place.version)
        };
        let Some(heat) = groups.get_mut(&right.group) else { return };
        heat.quiet_ms = match heat.quiet_ms {
            _ if !is_little => 0,
            0 => now_ms,
            since_ms if is_same(left) && is_same(right) => since_ms,
            _ => now_ms,
        };
    }
}

/// What two groups have together, as those who lead them say; `None` if one of them does not.
pub fn together(
    heats: &BTreeMap<u64, Heat>,
    inventory: &Inventory,
    left: u64,
    right: u64,
    now_ms: u64,
) -> Option<Load> {
    let mut sum = Load::default();
    for group in [left, right] {
        let heat = heats.get(&group)?;
        let (_, report) = inventory.leader_of(group, now_ms)?;
        sum.requests_per_s += heat.requests_per_s();
        sum.write_bytes_per_s += heat.write_bytes_per_s;
        sum.size_bytes += report.size_bytes;
    }
    Some(sum)
}

/// Requests a second on all nodes, and bytes a second that leaders append.
fn loads(inventory: &Inventory, now_ms: u64) -> BTreeMap<u64, (u64, u64)> {
    let mut loads: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for node in inventory.nodes.keys() {
        let Some(report) = inventory.fresh(*node, now_ms) else { continue };
        for (id, group) in &report.groups {
            let (requests, writes) = loads.entry(*id).or_default();
            *requests += group.requests_per_s;
            *writes += if group.leads { group.write_bytes_per_s } else { 0 };
        }
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::ASK_MS;
    use crate::policy::{self, BarWish, PolicyWish};
    use crate::world::{Truth, World};

    const WRITES: f64 = 1_000_000.0;

    /// A group on three nodes, with 1,000 requests a second on its leader.
    fn world() -> (World, u64) {
        let mut world = World::new(1, 3, 0);
        let truth =
            Truth { lead_cpu: 20_000.0, follow_cpu: 0.0, writes: WRITES, size: 1.0, leader: 0 };
        let group = world.tenant(&[1, 2, 3], truth);
        let first = BarWish { requests_per_s: Some(2_000), ..BarWish::default() };
        let wish = PolicyWish { first, ..PolicyWish::default() };
        let (change, _) = policy::set(&world.ledger, &wish).expect("it is allowed");
        world.apply(&change);
        (world, group)
    }

    fn rounds(world: &mut World, heats: &mut Heats, rounds: usize) {
        for _ in 0..rounds {
            world.now_ms += ASK_MS;
            let inventory = world.inventory();
            heats.take_in(&world.ledger, &inventory, world.now_ms);
        }
    }

    #[test]
    fn heat_comes_to_be_the_load_and_decays_to_nothing() {
        let (mut world, group) = world();
        let mut heats = Heats::default();
        rounds(&mut world, &mut heats, 60);
        let heat = heats.groups[&group];
        // Each of the three nodes says so much of it.
        assert_eq!((heat.requests_per_s(), heat.since_ms > 0), (3_000, true));
        assert!(heat.write_bytes_per_s.abs_diff(WRITES as u64) < 10);
        world.groups.get_mut(&group).unwrap().lead_cpu = 0.0;
        world.groups.get_mut(&group).unwrap().writes = 0.0;
        rounds(&mut world, &mut heats, 3);
        let cooler = heats.groups[&group];
        assert!(cooler.requests_per_s() < 1_500 && cooler.since_ms == 0, "{cooler:?}");
        rounds(&mut world, &mut heats, 200);
        assert!(heats.groups.is_empty());
    }

    #[test]
    fn a_bar_is_reached_since_the_mean_was_there() {
        let (mut world, group) = world();
        let mut heats = Heats::default();
        let begun_ms = world.now_ms;
        rounds(&mut world, &mut heats, 1);
        assert_eq!(heats.groups[&group].since_ms, 0, "one report is not enough");
        rounds(&mut world, &mut heats, 20);
        let since_ms = heats.groups[&group].since_ms;
        assert!(since_ms > begun_ms + ASK_MS && since_ms < world.now_ms, "{since_ms}");
        // The one who leads changes: it stays as hot, and for as long.
        world.groups.get_mut(&group).unwrap().leader = 3;
        rounds(&mut world, &mut heats, 1);
        assert_eq!(heats.groups[&group].since_ms, since_ms);
    }

    #[test]
    fn heat_is_halved_when_the_keys_change() {
        let (mut world, group) = world();
        let mut heats = Heats::default();
        rounds(&mut world, &mut heats, 60);
        let before = heats.groups[&group];
        heats.groups.insert(group, Heat { range_version: before.range_version + 1, ..before });
        rounds(&mut world, &mut heats, 1);
        let after = heats.groups[&group];
        assert!(after.requests_per_s() < before.requests_per_s() * 3 / 4, "{after:?}");
        assert_eq!((after.since_ms, after.range_version), (0, before.range_version));
    }

    #[test]
    fn of_what_is_gone_or_closed_nothing_is_kept() {
        let (mut world, group) = world();
        let mut heats = Heats::default();
        rounds(&mut world, &mut heats, 3);
        assert!(heats.groups.contains_key(&group));
        let frozen = crate::tenants::set_frozen(&world.ledger, "t2", true).unwrap().0;
        world.apply(&frozen);
        rounds(&mut world, &mut heats, 1);
        assert!(heats.groups.is_empty());
    }
}
