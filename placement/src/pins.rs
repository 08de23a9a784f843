//! Where a tenant may be: on nodes that are named, or on those of a zone. Pure.
//!
//! A pin binds whatever chooses nodes for the tenant: new groups, moves, drains, repairs, balance.
//! When it is set, groups that are elsewhere begin to move.

use std::collections::BTreeSet;

use crate::command::{Answer, Refusal, refused};
use crate::ledger::{Change, Ledger};
use crate::operators;
use crate::record::{Group, NodeState, Pin, Priority, Record, Tenant, TenantState};
use crate::ring;
use crate::tenants::Planned;

/// Binds a tenant to nodes or to a zone; with neither it is bound no more.
pub fn pin(ledger: &Ledger, name: &str, to: &[String], zone: &str, now_ms: u64) -> Planned {
    let found = ledger.tenant(name).cloned();
    let mut tenant = found.ok_or_else(|| refused(format!("there is no tenant \"{name}\"")))?;
    if tenant.state == TenantState::Deleted {
        return Err(refused(format!("tenant \"{name}\" is deleted")));
    }
    let mut meta = ledger.meta.clone().ok_or(refused("the service is not set up yet"))?;
    tenant.pin = chosen(ledger, to, zone)?;
    let mut change = Change::default().put(Record::Tenant(tenant.clone()));
    let pinned = change.applied_to(ledger);
    let mut moved = 0;
    let mut displaced = operators::Displaced::default();
    for group in ledger.groups.values().filter(|group| group.tenant == tenant.id && !group.dead) {
        let target = home(&pinned, &tenant, group)?;
        let here: BTreeSet<u64> = group.replicas.iter().map(|replica| replica.node).collect();
        if target == here {
            continue;
        }
        displaced.add(operators::displace(ledger, group.id, Priority::User, now_ms)?);
        let (target, why) = (target.into_iter().collect(), format!("pin tenant {name}"));
        let operator = operators::begin(&mut meta, group, target, Priority::User, why, now_ms);
        change = change.put(Record::Operator(operator));
        moved += 1;
    }
    let bound = match &tenant.pin {
        None => format!("tenant {name} may be on any node"),
        Some(Pin::Zone(zone)) => format!("tenant {name} stays in zone {zone}"),
        Some(Pin::Nodes(_)) => format!("tenant {name} stays on {}", to.join(", ")),
    };
    let said = match moved {
        0 => bound,
        moved => format!("{bound}; {moved} of its groups move there: see atoll op list"),
    };
    Ok((displaced.put(change).put(Record::Meta(meta)), Answer::Done(said)))
}

fn chosen(ledger: &Ledger, to: &[String], zone: &str) -> Result<Option<Pin>, Refusal> {
    match (to, zone) {
        ([], "") => Ok(None),
        ([], zone) if ledger.nodes.values().any(|node| node.zone == zone) => {
            Ok(Some(Pin::Zone(zone.to_owned())))
        }
        ([], zone) => Err(refused(format!("there is no node in zone \"{zone}\""))),
        (names, "") => {
            let mut nodes = BTreeSet::new();
            for name in names {
                let node = ledger.node(name);
                nodes.insert(
                    node.ok_or_else(|| refused(format!("there is no node \"{name}\"")))?.id,
                );
            }
            Ok(Some(Pin::Nodes(nodes.into_iter().collect())))
        }
        _ => Err(refused("name nodes or a zone, not both")),
    }
}

/// Where a group is to be: replicas that may stay do, others go where the ring proposes.
fn home(pinned: &Ledger, tenant: &Tenant, group: &Group) -> Result<BTreeSet<u64>, Refusal> {
    let voters = group.replicas.iter().filter(|replica| !replica.learner);
    let voters: Vec<u64> = voters.map(|replica| replica.node).collect();
    let fits = |id: &u64| pinned.nodes.get(id).is_some_and(|node| tenant.fits(node));
    let mut home: BTreeSet<u64> = voters.iter().copied().filter(fits).collect();
    let others = pinned.nodes.values().filter(|node| tenant.fits(node) && !home.contains(&node.id));
    let others = ring::propose(others, group.id, pinned.nodes.len());
    let missing = voters.len() - home.len();
    home.extend(others.iter().take(missing).map(|node| node.id));
    if home.len() < voters.len() {
        let up = |id: &&u64| pinned.nodes.get(id).is_some_and(|n| n.state == NodeState::Up);
        let (name, count, usable) = (&tenant.name, voters.len(), home.iter().filter(up).count());
        let why =
            format!("tenant \"{name}\" has {count} replicas, {usable} such nodes can take one");
        return Err(refused(why));
    }
    Ok(home)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::OperatorState;
    use crate::tenants::tests::founded;
    use crate::{nodes, tenants};

    fn after(ledger: &Ledger, planned: Planned) -> Ledger {
        planned.expect("it is allowed").0.applied_to(ledger)
    }

    fn why(planned: Planned) -> String {
        planned.expect_err("it is refused").to_string()
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_pin_moves_what_is_elsewhere_and_binds_what_comes() {
        let ledger = founded();
        let ledger = after(&ledger, tenants::create(&ledger, "acme", 0, 0));
        for pinned in [["n1", "n2", "n3"], ["n2", "n3", "n4"]] {
            let ledger = after(&ledger, pin(&ledger, "acme", &names(&pinned), "", 5));
            let wanted: BTreeSet<u64> =
                pinned.iter().map(|name| ledger.node(name).unwrap().id).collect();
            let group = ledger.groups.values().last().expect("it has one");
            let here: BTreeSet<u64> = group.replicas.iter().map(|replica| replica.node).collect();
            let running = operators::holder(&ledger, group.id);
            assert_eq!(running.is_none(), here == wanted);
            assert!(running.is_none_or(|o| o.target.iter().copied().eq(wanted.iter().copied())));
            let ledger =
                after(&ledger, tenants::create_namespace(&ledger, "acme", "events", None, 0));
            let born = ledger.groups.values().last().expect("it was just made");
            assert!(born.replicas.iter().all(|replica| wanted.contains(&replica.node)));
        }
    }

    #[test]
    fn a_pinned_tenant_is_moved_to_no_other_node() {
        let ledger = founded();
        let ledger = after(&ledger, tenants::create(&ledger, "acme", 0, 0));
        let ledger = after(&ledger, pin(&ledger, "acme", &names(&["n1", "n2", "n3"]), "", 5));
        let moved = operators::move_tenant(&ledger, "acme", &names(&["n1", "n2", "n4"]), 5);
        assert!(why(moved).contains("pinned to other nodes than \"n4\""));
        // Nor does a drain bring it elsewhere; what has no other place stays.
        let mut ledger = after(&ledger, nodes::set_state(&ledger, "n2", NodeState::Draining));
        for operator in ledger.operators.values_mut() {
            operator.state = OperatorState::Done;
        }
        let acme = ledger.tenant("acme").expect("it is there").id;
        let drained = operators::plan_drains(&ledger, 6).expect("others can go");
        let drained = drained.applied_to(&ledger);
        for operator in operators::running(&drained) {
            let group = &drained.groups[&operator.group];
            assert!(group.tenant != acme, "{operator:?}");
        }
    }

    #[test]
    fn a_pin_that_cannot_be_is_refused() {
        let ledger = founded();
        let ledger = after(&ledger, tenants::create(&ledger, "acme", 0, 0));
        assert!(why(pin(&ledger, "acme", &names(&["n9"]), "", 5)).contains("no node \"n9\""));
        let few = pin(&ledger, "acme", &names(&["n1", "n2"]), "", 5);
        assert!(why(few).contains("has 3 replicas, 2 such nodes"));
        assert!(why(pin(&ledger, "acme", &[], "attic", 5)).contains("zone \"attic\""));
        let ledger = after(&ledger, nodes::set_zone(&ledger, "n1", "attic"));
        assert!(why(pin(&ledger, "acme", &[], "attic", 5)).contains("1 such nodes"));
        let none = after(&ledger, pin(&ledger, "acme", &[], "", 5));
        assert_eq!(none.tenant("acme").expect("it is there").pin, None);
    }
}
