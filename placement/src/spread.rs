//! `atoll tenant spread`: the groups of an etcd that is split are put on different nodes. Pure.
//!
//! New groups begin where the one was that they were cut from, and are led somewhere there. Balance
//! moves them apart when a node has too much to do; whoever does not want to wait for that asks for it.
//! The moves are found by the planner that balances nodes (`balance.rs`), which is shown nothing but this
//! etcd's groups, and are a plan like any other (`plans.rs`): with progress and history, and it can
//! be reverted.
//!
//! Invariants: pins, zones, room on disks and operators under way bind these moves as any; no plan
//! is begun while another one is carried out.

use std::collections::BTreeSet;

use crate::balance;
use crate::command::{Answer, refused};
use crate::inventory::Inventory;
use crate::ledger::{Change, Ledger};
use crate::plans;
use crate::record::TenantState;
use crate::splits;
use crate::tenants::Planned;

/// Begins to put the groups of an etcd on different nodes.
pub fn spread(
    ledger: &Ledger,
    inventory: &Inventory,
    name: &str,
    by: &str,
    now_ms: u64,
) -> Planned {
    let (tenant, namespace) = splits::known(ledger, name)?;
    if tenant.state_of(namespace) == TenantState::Deleted {
        return Err(refused(format!("\"{name}\" is deleted")));
    }
    if !namespace.is_split() {
        return Err(refused(format!("\"{name}\" is not split: it has nothing to be spread")));
    }
    let groups: BTreeSet<u64> = namespace.places().iter().map(|place| place.group).collect();
    let proposal = balance::spread_out(ledger, inventory, now_ms, &groups);
    let proposal = proposal.map_err(|unknown| refused(unknown.to_string()))?;
    if proposal.moves.is_empty() {
        let count = groups.len();
        let mut said = format!("the {count} groups of {name} are spread as well as they can be");
        for stays in &proposal.stays {
            said.push_str(&format!("\n{stays}"));
        }
        return Ok((Change::default(), Answer::Done(said)));
    }
    let why = format!("puts the {} groups of {name} on different nodes", groups.len());
    plans::begun(ledger, inventory, proposal, why, by, now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::PlanState;
    use crate::record::{Pin, Record, Replica};
    use crate::world::{Truth, World};

    /// An etcd on so many groups, all of them on nodes 1 to 3 and led by the first.
    fn split(nodes: u64, groups: u64) -> (World, BTreeSet<u64>) {
        let mut world = World::new(1, nodes, 0);
        let truth = || Truth { lead_cpu: 10.0, follow_cpu: 3.0, writes: 1.0, size: 1.0, leader: 0 };
        let home = world.tenant(&[1, 2, 3], truth());
        let places = (1..groups).map(|n| {
            let mut place = world.ledger.tenants[&2].namespaces[0].places()[0].clone();
            (place.start, place.group) = (format!("k{n}").into(), home + n);
            place
        });
        let places: Vec<_> = places.collect();
        let mut tenant = crate::record::Tenant::clone(&world.ledger.tenants[&2]);
        let mut all = tenant.namespaces[0].places().into_owned();
        all.extend(places);
        if let crate::record::NamespaceKind::Separate { places, .. } =
            &mut tenant.namespaces[0].kind
        {
            *places = all;
        }
        let mut change = Change::default().put(Record::Tenant(tenant));
        for n in 1..groups {
            let group = crate::record::Group {
                id: home + n,
                ..crate::record::Group::clone(&world.ledger.groups[&home])
            };
            world.groups.insert(group.id, Truth { leader: 1, ..truth() });
            change = change.put(Record::Group(group));
        }
        let mut meta = world.ledger.meta.clone().unwrap();
        meta.next_group += groups;
        world.apply(&change.put(Record::Meta(meta)));
        (world, (home..home + groups).collect())
    }

    fn leaders(world: &World, groups: &BTreeSet<u64>) -> Vec<u64> {
        let mut leaders: Vec<u64> = groups.iter().map(|id| world.groups[id].leader).collect();
        leaders.sort_unstable();
        leaders
    }

    fn carried_out(world: &mut World) {
        let inventory = world.inventory();
        let planned = spread(&world.ledger, &inventory, "t2", "me", world.now_ms);
        let (change, answer) = planned.expect("it is allowed");
        let Answer::Plan(plan) = answer else { panic!("a plan: {answer:?}") };
        assert_eq!((plan.state, plan.by.as_str()), (PlanState::Running, "me"));
        assert!(plan.why.contains("groups of t2 on different nodes"), "{}", plan.why);
        world.apply(&change);
        for _ in 0..20 {
            world.round(500);
        }
        assert!(world.ledger.plans.values().all(|plan| plan.ended_ms > 0));
    }

    fn said(world: &mut World) -> String {
        let inventory = world.inventory();
        match spread(&world.ledger, &inventory, "t2", "me", world.now_ms) {
            Ok((change, Answer::Done(said))) if change.is_empty() => said,
            Err(refusal) => refusal.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn groups_that_stand_on_the_same_nodes_are_led_by_different_ones() {
        let (mut world, groups) = split(3, 3);
        assert_eq!(leaders(&world, &groups), [1, 1, 1]);
        carried_out(&mut world);
        assert_eq!(leaders(&world, &groups), [1, 2, 3]);
        assert!(said(&mut world).contains("as well as they can be"));
    }

    #[test]
    fn where_there_are_more_nodes_replicas_move_as_well() {
        let (mut world, groups) = split(6, 4);
        carried_out(&mut world);
        for _ in 0..3 {
            carried_out_if_any(&mut world);
        }
        let on = |node: u64| {
            let has = |id: &&u64| {
                world.ledger.groups[*id].replicas.iter().any(|it: &Replica| it.node == node)
            };
            groups.iter().filter(has).count()
        };
        assert_eq!((1..=6).map(on).max(), Some(2), "twelve replicas on six nodes");
        let mut once = leaders(&world, &groups);
        once.dedup();
        assert_eq!(once.len(), 4);
    }

    /// A group moves once in a plan: what needs two moves of one takes two.
    fn carried_out_if_any(world: &mut World) {
        let inventory = world.inventory();
        let planned = spread(&world.ledger, &inventory, "t2", "me", world.now_ms);
        if matches!(planned, Ok((_, Answer::Plan(_)))) {
            carried_out(world);
        }
    }

    #[test]
    fn pins_bind_and_what_is_not_split_is_refused() {
        let (mut world, groups) = split(6, 3);
        let mut tenant = crate::record::Tenant::clone(&world.ledger.tenants[&2]);
        tenant.pin = Some(Pin::Nodes(vec![1, 2, 3]));
        world.apply(&Change::default().put(Record::Tenant(tenant)));
        carried_out(&mut world);
        assert_eq!(leaders(&world, &groups), [1, 2, 3]);
        let (mut whole, _) = split(3, 1);
        assert!(said(&mut whole).contains("is not split"));
    }

    #[test]
    fn two_plans_are_not_carried_out_at_a_time() {
        let (mut world, _) = split(3, 3);
        let inventory = world.inventory();
        let planned = spread(&world.ledger, &inventory, "t2", "me", world.now_ms).unwrap();
        world.apply(&planned.0);
        assert!(said(&mut world).contains("is being carried out"));
    }
}
