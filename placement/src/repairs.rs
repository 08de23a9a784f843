//! Replaces what is lost: which operators of priority repair are to begin, and which others are to
//! be given up. Pure.
//!
//! One replica of a group at a time: it is removed, and then its place is taken by a new one with a
//! number of its own, which gets everything by snapshot; on the same node if only the replica was
//! damaged, else on one that the ring proposes. A dead voter goes before the new one comes: it
//! counts against the quorum, the new one would too.
//!
//! One that comes back before it was removed stays, and its repair is over: a group that gives away
//! a voter that is well stands one loss less for a while.
//!
//! A group that was recovered (`recovery.rs`) has fewer voters than it had: it gets new ones as soon
//! as there are nodes for an odd number of them.
//!
//! Invariants:
//! * nothing is removed unless most of the voters that stay are well;
//! * nothing is begun unless most of all voters are well: without them the group changes nothing;
//! * nothing is brought to a node that does not answer, or that was given up;
//! * a group that has nobody to take the place of a lost replica keeps it: it may come back.

use crate::health::{Health, Loss};
use crate::inventory::Inventory;
use crate::ledger::{Change, Ledger};
use crate::operators::{self, Displaced, RUNNING_MAX, begin, holder, one_more, ongoing, voters};
use crate::record::{Group, Meta, NodeState, Operator, Priority, Record, Replica, node_key};

/// What is to begin, and what is to be given up; `None` when that is nothing.
pub fn plan(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Option<Change> {
    let health = Health::of(ledger, inventory, now_ms);
    let is_short = |group: &Group| !group.dead && voters(group).count() < group.wanted;
    let is_over = |operator: &Operator| is_needless(&health, ledger, operator);
    if health.is_all_well()
        && !ledger.groups.values().any(|group| is_short(group))
        && !ongoing(ledger).any(is_over)
    {
        return None;
    }
    let seen = ledger.with_silent(health.silent.clone());
    let mut plan = Plan { ledger: &seen, health: &health, now_ms, meta: ledger.meta.clone()? };
    let mut change = plan.forget(Change::default());
    let mut groups: Vec<(usize, &Group)> = Vec::new();
    let waits = |group: &Group| group.dead || group.recovering().is_some();
    for group in seen.groups.values().filter(|group| !waits(group)) {
        // The more endangered one first.
        let (well, all) = health.count(group);
        groups.push((well.saturating_sub(all / 2), group));
    }
    groups.sort_by_key(|(margin, group)| (*margin, group.id));
    let under_way = ongoing(ledger).filter(|operator| operator.priority == Priority::Repair);
    let mut room = RUNNING_MAX.saturating_sub(under_way.count());
    let mut begun = false;
    let mut ended = Displaced::default();
    for (_, group) in groups {
        let on_keys = |it: &&Operator| it.has_asked() || it.group != group.id;
        if let Some(holder) = holder(ledger, group.id).filter(on_keys) {
            // It has to see first what has become of what it asked for, or, if it was to merge another
            // group into this one, to put that one in order: it does not ask any more.
            if !holder.cancelled() && lost(&health, group).next().is_some() {
                ended.add(Some(operators::take_back(ledger, holder, now_ms)));
            }
        } else if let Some(given_up) = plan.hopeless(group) {
            ended.add(Some(given_up));
        } else if let Some(better) =
            plan.elsewhere(group).or_else(|| plan.afresh(group)).or_else(|| plan.another(group))
        {
            change = change.put(Record::Operator(better));
        } else if let Some(operator) =
            plan.replace(group).or_else(|| plan.grow(group)).filter(|_| room > 0)
        {
            ended.add(holder(ledger, group.id).map(|holder| holder.given_up(now_ms)));
            change = change.put(Record::Operator(operator));
            room -= 1;
            begun = true;
        }
    }
    change = ended.put(change);
    if begun {
        change = change.put(Record::Meta(plan.meta));
    }
    (!change.is_empty()).then_some(change)
}

/// Can the group's lost replicas not be replaced for want of another node?
pub fn is_stuck(health: &Health<'_>, ledger: &Ledger, group: &Group) -> bool {
    let mut lost = lost(health, group).peekable();
    let is_short = voters(group).count() < group.wanted && grown(health, ledger, group).is_none();
    (lost.peek().is_some() || is_short)
        && holder(ledger, group.id).is_none_or(|o| o.priority != Priority::Repair)
        && lost.all(|(replica, loss)| target(health, ledger, group, replica, loss).is_none())
}

/// Is it a repair for the sake of a replica that is well again, and still a member? It takes no more
/// steps; the next plan gives it something else to do, or takes it back.
pub fn is_needless(health: &Health<'_>, ledger: &Ledger, operator: &Operator) -> bool {
    let Some(group) = ledger.groups.get(&operator.group).filter(|group| !group.dead) else {
        return false;
    };
    let mut left = group.replicas.iter().filter(|r| operator.lost.contains(&r.replica));
    operator.priority == Priority::Repair
        && left.next().is_some_and(|replica| health.is_well(group.id, replica))
}

/// Where a group is to be that has fewer voters than it had; `None` if there is no room for more.
fn grown(health: &Health<'_>, ledger: &Ledger, group: &Group) -> Option<Vec<u64>> {
    let now = voters(group).count();
    let mut target: Vec<u64> = voters(group).map(|replica| replica.node).collect();
    let fits = |node| health.is_node_well(node);
    while target.len() < group.wanted
        && let Some(next) = one_more(ledger, group.id, &target, fits)
    {
        target.push(next);
    }
    // An even number of voters stands no more losses than one less.
    if target.len().is_multiple_of(2) {
        target.pop();
    }
    (target.len() > now).then_some(target)
}

struct Plan<'a> {
    /// With the silent nodes.
    ledger: &'a Ledger,
    health: &'a Health<'a>,
    now_ms: u64,
    meta: Meta,
}

// === impl Plan ===

impl Plan<'_> {
    /// Nodes that were given up and have nothing left are forgotten.
    fn forget(&self, mut change: Change) -> Change {
        for node in self.ledger.nodes.values().filter(|node| node.state == NodeState::Lost) {
            let mut replicas = self.ledger.groups.values().filter(|group| !group.dead);
            let is_used = replicas.any(|g| g.replicas.iter().any(|r| r.node == node.id));
            if !is_used && !ongoing(self.ledger).any(|o| o.target.contains(&node.id)) {
                change = change.remove(node_key(node.id));
            }
        }
        change
    }

    /// A move whose target is lost is taken back: the group stays with the voters that it has.
    fn hopeless(&self, group: &Group) -> Option<Operator> {
        let operator = holder(self.ledger, group.id)?;
        if operator.priority == Priority::Repair || operator.cancelled() {
            return None;
        }
        self.missing(group, operator)?;
        Some(operators::take_back(self.ledger, operator, self.now_ms))
    }

    /// A repair whose target is lost as well takes another one.
    fn elsewhere(&self, group: &Group) -> Option<Operator> {
        let operator = holder(self.ledger, group.id)?;
        let missing = self.missing(group, operator)?;
        let stay: Vec<u64> =
            operator.target.iter().copied().filter(|node| *node != missing).collect();
        let fits = |node| self.health.is_node_well(node);
        let other = one_more(self.ledger, group.id, &stay, fits)?;
        let target = stay.into_iter().chain([other]).collect();
        (operator.priority == Priority::Repair).then(|| Operator { target, ..operator.clone() })
    }

    /// A repair whose newcomer is damaged before it votes brings another one to the same node.
    fn afresh(&self, group: &Group) -> Option<Operator> {
        let operator = holder(self.ledger, group.id)?;
        let is_brought =
            |r: &&Replica| operator.target.contains(&r.node) && !operator.lost.contains(&r.replica);
        let mut learners = group.replicas.iter().filter(|replica| replica.learner);
        let damaged = learners.find(|replica| {
            is_brought(replica) && self.health.is_damaged_itself(group.id, replica)
        })?;
        let lost = operator.lost.iter().copied().chain([damaged.replica]).collect();
        (operator.priority == Priority::Repair).then(|| Operator { lost, ..operator.clone() })
    }

    /// A node that the operator wants, that is lost, and that has no voter yet.
    fn missing(&self, group: &Group, operator: &Operator) -> Option<u64> {
        let votes = |node: u64| voters(group).any(|replica| replica.node == node);
        let wanted = operator.target.iter().copied();
        wanted.filter(|node| !votes(*node)).find(|node| self.health.of_node(*node).is_some())
    }

    /// A repair for the sake of a replica that has come back sees to one that is lost now: without
    /// that one the other may not go, for the sake of the quorum, and would be in the way for ever.
    /// Are all well, then it is taken back.
    fn another(&self, group: &Group) -> Option<Operator> {
        let operator = holder(self.ledger, group.id)?;
        if !is_needless(self.health, self.ledger, operator) {
            return None;
        }
        Some(match self.next_lost(group) {
            Some((lost, target, why)) => {
                Operator { lost: vec![lost], target, why, ..operator.clone() }
            }
            None => operators::taken_back(self.ledger, operator),
        })
    }

    fn replace(&mut self, group: &Group) -> Option<Operator> {
        if holder(self.ledger, group.id).is_some_and(|o| !o.yields_to(Priority::Repair)) {
            return None;
        }
        let (lost, target, why) = self.next_lost(group)?;
        let operator = begin(&mut self.meta, group, target, Priority::Repair, why, self.now_ms);
        Some(Operator { lost: vec![lost], ..operator })
    }

    /// The replica that is to be replaced next, where the group is to be then, and why.
    fn next_lost(&self, group: &Group) -> Option<(u64, Vec<u64>, String)> {
        let found = lost(self.health, group).find_map(|(replica, loss)| {
            let target = target(self.health, self.ledger, group, replica, loss)?;
            Some((replica, loss, target))
        });
        let (replica, loss, target) = found?;
        let name = match self.ledger.nodes.get(&replica.node) {
            Some(node) => node.name.clone(),
            None => format!("{:x}", replica.node),
        };
        let why = match loss {
            Loss::GivenUp => format!("repair: node {name} was given up"),
            Loss::Emptied => format!("repair: node {name} has an empty disk"),
            Loss::Silent => format!("repair: node {name} is silent"),
            Loss::Quarantined => format!("repair: the replica on {name} is quarantined"),
        };
        Some((replica.replica, target, why))
    }

    fn grow(&mut self, group: &Group) -> Option<Operator> {
        let (well, all) = self.health.count(group);
        let is_held = holder(self.ledger, group.id).is_some_and(|o| !o.yields_to(Priority::Repair));
        if all >= group.wanted || well < all || is_held {
            return None;
        }
        let target = grown(self.health, self.ledger, group)?;
        let why = format!("repair: it has {all} of {} replicas", group.wanted);
        Some(begin(&mut self.meta, group, target, Priority::Repair, why, self.now_ms))
    }
}

/// The lost replicas of a group, voters first.
fn lost<'a>(health: &'a Health<'_>, group: &'a Group) -> impl Iterator<Item = (&'a Replica, Loss)> {
    let learners = group.replicas.iter().filter(|replica| replica.learner);
    let all = voters(group).chain(learners);
    all.filter_map(|replica| Some((replica, health.of_replica(group.id, replica)?)))
}

/// Where the group is to be without a replica that is lost; `None` if it has to stay as it is.
fn target(
    health: &Health<'_>,
    ledger: &Ledger,
    group: &Group,
    replica: &Replica,
    loss: Loss,
) -> Option<Vec<u64>> {
    let stay: Vec<u64> =
        voters(group).map(|r| r.node).filter(|node| *node != replica.node).collect();
    let (well, all) = health.count(group);
    // Those that are well are among those that stay.
    if 2 * well <= all {
        return None;
    }
    if replica.learner {
        return Some(stay);
    }
    let is_up = |id: u64| ledger.nodes.get(&id).is_some_and(|n| n.state != NodeState::Draining);
    let again = loss == Loss::Quarantined && is_up(replica.node);
    let fits = |node| health.is_node_well(node) && node != replica.node;
    let other = || one_more(ledger, group.id, &stay, fits);
    // Better again on a node that is drained than nowhere.
    let damaged = || (loss == Loss::Quarantined).then_some(replica.node);
    let next = if again { Some(replica.node) } else { other().or_else(damaged) }?;
    Some(stay.iter().copied().chain([next]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::tests::{World, now_ms};
    use crate::inventory::SILENT_MS;
    use crate::operators::tests::carry_out;
    use crate::operators::{Step, finish, next_step, removals, running};
    use crate::record::OperatorState;
    use crate::{merges, nodes, splits, tenants};

    const REPAIR_MS: u64 = 60_000;

    /// Four nodes and a tenant; its group.
    fn world() -> (World, u64) {
        let mut world = World::new();
        let ledger = &world.ledger;
        let change = tenants::create(ledger, "acme", 0, 0).unwrap().0;
        world.ledger = change.applied_to(ledger);
        let change = nodes::set_repair_after(&world.ledger, REPAIR_MS).unwrap().0;
        world.ledger = change.applied_to(&world.ledger);
        let group = *world.ledger.groups.keys().last().unwrap();
        (world, group)
    }

    fn nodes_of(world: &World, group: u64) -> Vec<u64> {
        let mut nodes: Vec<u64> =
            voters(&world.ledger.groups[&group]).map(|replica| replica.node).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Plans and takes steps until there is nothing left to be done; checks each step.
    fn settle(world: &mut World) {
        for _ in 0..2_000 {
            let inventory = world.inventory();
            if let Some(change) = plan(&world.ledger, &inventory, now_ms()) {
                world.ledger = change.applied_to(&world.ledger);
            }
            let health = Health::of(&world.ledger, &inventory, now_ms());
            let seen = world.ledger.with_silent(health.silent.clone()).into_owned();
            let mut took = None;
            let due = |operator: &&Operator| !is_needless(&health, &seen, operator);
            for operator in running(&seen).into_iter().filter(due) {
                let group = &seen.groups[&operator.group];
                let step = match next_step(&seen, operator) {
                    Step::Remove(_) => removals(&seen, group, operator).swap_remove(0),
                    step => step,
                };
                let next = match &step {
                    Step::Done => {
                        finish(&world.ledger, operator.id, false, 7).map(|c| c.applied_to(&seen))
                    }
                    Step::Void
                    | Step::Lead(_)
                    | Step::Recover(_)
                    | Step::Cut(_)
                    | Step::Settle(_)
                    | Step::Merge(_)
                    | Step::SettleMerge(_)
                    | Step::Withdraw => {
                        panic!("nobody wants {step:?} here")
                    }
                    Step::Add(node) => {
                        assert!(health.is_node_well(*node), "brought to node {node}");
                        Some(carry_out(&seen, operator, &step))
                    }
                    Step::Promote(replica) => {
                        health.is_well(group.id, replica).then(|| carry_out(&seen, operator, &step))
                    }
                    Step::Remove(gone) => {
                        let rest = voters(group).filter(|r| r.replica != gone.replica);
                        let (well, all) = rest.fold((0, 0), |(well, all), replica| {
                            (well + usize::from(health.is_well(group.id, replica)), all + 1)
                        });
                        assert!(2 * well > all, "{well} of {all} are left when {gone:?} goes");
                        Some(carry_out(&seen, operator, &step))
                    }
                };
                if let Some(next) = next {
                    took = Some(next);
                    break;
                }
            }
            match took {
                Some(next) => world.ledger = Ledger { silent: Default::default(), ..next },
                None => return,
            }
        }
        let last = world.ledger.operators.values().next_back();
        panic!("it does not come to an end: {last:?}");
    }

    #[test]
    fn a_silent_node_is_waited_for_and_then_replaced() {
        let (mut world, group) = world();
        let dead = nodes_of(&world, group)[0];
        world.silence(dead, REPAIR_MS - 1);
        settle(&mut world);
        assert!(nodes_of(&world, group).contains(&dead));
        world.silence(dead, REPAIR_MS);
        settle(&mut world);
        let now = nodes_of(&world, group);
        assert!(now.len() == 3 && !now.contains(&dead), "{now:?}");
        let left = world.ledger.groups.values().flat_map(|group| &group.replicas);
        assert_eq!(left.filter(|replica| replica.node == dead).count(), 0);
    }

    #[test]
    fn many_silent_nodes_are_nobody_s_loss() {
        let (mut world, group) = world();
        let before = nodes_of(&world, group);
        world.silence(1, 10 * REPAIR_MS);
        world.silence(4, 10 * REPAIR_MS);
        settle(&mut world);
        assert_eq!(nodes_of(&world, group), before);
        assert_eq!(world.ledger.operators.len(), 0);
    }

    #[test]
    fn a_quarantined_replica_is_replaced_on_its_node() {
        let (mut world, group) = world();
        let before = nodes_of(&world, group);
        let replica = world.quarantine(group, before[1]);
        settle(&mut world);
        assert_eq!(nodes_of(&world, group), before);
        let now = voters(&world.ledger.groups[&group]).find(|r| r.node == before[1]).unwrap();
        assert!(now.replica > replica, "it has a number of its own");
    }

    #[test]
    fn a_newcomer_that_is_damaged_before_it_votes_is_replaced_as_well() {
        let (mut world, group) = world();
        let before = nodes_of(&world, group);
        world.quarantine(group, before[1]);
        let begun = plan(&world.ledger, &world.inventory(), now_ms()).expect("it is lost");
        world.ledger = begun.applied_to(&world.ledger);
        for _ in 0..2 {
            let repair = holder(&world.ledger, group).expect("it is under way").clone();
            let step = next_step(&world.ledger, &repair);
            world.ledger = carry_out(&world.ledger, &repair, &step);
        }
        let repair = holder(&world.ledger, group).expect("it is under way");
        assert!(matches!(next_step(&world.ledger, repair), Step::Promote(_)));
        let newcomer = world.quarantine(group, before[1]);
        settle(&mut world);
        assert!(holder(&world.ledger, group).is_none(), "it is over");
        assert_eq!(nodes_of(&world, group), before);
        let left = &world.ledger.groups[&group].replicas;
        assert!(left.iter().all(|replica| replica.replica != newcomer));
    }

    #[test]
    fn a_newcomer_is_not_taken_for_the_damaged_one_before_it() {
        let (mut world, group) = world();
        let before = nodes_of(&world, group);
        world.quarantine(group, before[1]);
        let told = world.inventory();
        let begun = plan(&world.ledger, &told, now_ms()).expect("it is lost");
        world.ledger = begun.applied_to(&world.ledger);
        for _ in 0..2 {
            let repair = holder(&world.ledger, group).expect("it is under way").clone();
            let step = next_step(&world.ledger, &repair);
            world.ledger = carry_out(&world.ledger, &repair, &step);
        }
        // The node has not been asked since.
        assert!(plan(&world.ledger, &told, now_ms()).is_none());
    }

    #[test]
    fn an_emptied_node_is_replaced_elsewhere_at_once() {
        let (mut world, group) = world();
        let emptied = nodes_of(&world, group)[2];
        world.empty(emptied);
        settle(&mut world);
        assert!(!nodes_of(&world, group).contains(&emptied));
    }

    /// The repair would take that back, and the drain would begin anew.
    #[test]
    fn a_drain_brings_nothing_to_an_emptied_node() {
        let (mut world, group) = world();
        let on = nodes_of(&world, group);
        let fourth = (1..=4).find(|node| !on.contains(node)).expect("there are four nodes");
        world.empty(fourth);
        let name = format!("n{}", on[0]);
        let drained = nodes::set_state(&world.ledger, &name, NodeState::Draining).unwrap().0;
        world.ledger = drained.applied_to(&world.ledger);
        let unfit = world.inventory().unfit(&world.ledger, now_ms());
        let seen = world.ledger.with_silent(unfit).into_owned();
        let begun = operators::plan_drains(&seen, now_ms());
        let begun = begun.map_or(seen.clone(), |change| change.applied_to(&seen));
        assert!(holder(&begun, group).is_none(), "there is no other node");
    }

    #[test]
    fn without_a_majority_nothing_is_touched() {
        let (mut world, group) = world();
        let before = nodes_of(&world, group);
        world.quarantine(group, before[0]);
        world.quarantine(group, before[1]);
        settle(&mut world);
        let of_group = world.ledger.operators.values().filter(|o| o.group == group);
        assert_eq!(of_group.count(), 0);
    }

    #[test]
    fn a_node_that_was_given_up_is_replaced_and_forgotten() {
        let (mut world, group) = world();
        let dead = nodes_of(&world, group)[0];
        let name = format!("n{dead}");
        assert!(nodes::give_up(&world.ledger, &name).is_err(), "it answers");
        world.silence(dead, SILENT_MS);
        let silent = world.inventory().silent(&world.ledger, now_ms());
        let (change, _) = nodes::give_up(&world.ledger.with_silent(silent), &name).unwrap();
        world.ledger = change.applied_to(&world.ledger);
        settle(&mut world);
        assert!(!nodes_of(&world, group).contains(&dead));
        assert!(!world.ledger.nodes.contains_key(&dead));
    }

    #[test]
    fn a_repair_takes_a_group_over_from_a_move() {
        let (mut world, group) = world();
        let before = nodes_of(&world, group);
        let names: Vec<String> =
            (1..=4).filter(|id| *id != before[0]).map(|id| format!("n{id}")).collect();
        let (change, _) = operators::move_tenant(&world.ledger, "acme", &names, 5).unwrap();
        world.ledger = change.applied_to(&world.ledger);
        let moved = *world.ledger.operators.keys().next().unwrap();
        world.quarantine(group, before[1]);
        settle(&mut world);
        assert_eq!(world.ledger.operators[&moved].state, OperatorState::Cancelled);
        assert_eq!(nodes_of(&world, group), before);
    }

    #[test]
    fn a_repair_makes_way_for_another_when_its_replica_is_back() {
        let (mut world, group) = world();
        let before = nodes_of(&world, group);
        world.silence(before[0], REPAIR_MS);
        let begun = plan(&world.ledger, &world.inventory(), now_ms()).expect("it is lost");
        world.ledger = begun.applied_to(&world.ledger);
        // Before the first step was taken that node is back, and another one's replica is damaged: of
        // the two that would be left only one is well.
        world.silence(before[0], 0);
        let damaged = world.quarantine(group, before[1]);
        settle(&mut world);
        assert!(holder(&world.ledger, group).is_none(), "it is over");
        assert_eq!(nodes_of(&world, group), before, "the one that is back stays");
        let left = &world.ledger.groups[&group].replicas;
        assert!(left.iter().all(|replica| replica.replica != damaged));
    }

    #[test]
    fn a_replica_that_is_back_before_it_was_removed_stays() {
        let (mut world, group) = world();
        let before = world.ledger.groups[&group].replicas.clone();
        world.silence(before[0].node, REPAIR_MS);
        let begun = plan(&world.ledger, &world.inventory(), now_ms()).expect("it is lost");
        world.ledger = begun.applied_to(&world.ledger);
        let takes_steps = |world: &World| {
            let inventory = world.inventory();
            let health = Health::of(&world.ledger, &inventory, now_ms());
            let repair = holder(&world.ledger, group).expect("it is under way");
            !is_needless(&health, &world.ledger, repair)
        };
        assert!(takes_steps(&world));
        world.silence(before[0].node, 0);
        assert!(!takes_steps(&world), "it would remove one that is well");
        settle(&mut world);
        assert_eq!(world.ledger.groups[&group].replicas, before, "all are well");
        let mut ended = world.ledger.operators.values();
        assert!(ended.all(|operator| operator.state == OperatorState::Cancelled));
    }

    /// Half of the voters are no majority, although those that stay would have one.
    #[test]
    fn with_half_of_an_even_number_nothing_is_touched() {
        let (mut world, group) = world();
        let mut two = Group::clone(&world.ledger.groups[&group]);
        two.replicas.truncate(2);
        let lost = two.replicas[1].node;
        world.ledger.groups.insert(group, two.into());
        world.silence(lost, REPAIR_MS);
        settle(&mut world);
        assert!(holder(&world.ledger, group).is_none());
        let inventory = world.inventory();
        let health = Health::of(&world.ledger, &inventory, now_ms());
        assert!(is_stuck(&health, &world.ledger, &world.ledger.groups[&group]));
    }

    /// Worlds by the thousand: see the checks in `settle`, and what must be so in the end.
    #[test]
    fn whatever_happens_majorities_stay_and_what_can_be_replaced_is() {
        let mut replaced = 0;
        for seed in 0..1_000 {
            let mut world = World::random(seed);
            settle(&mut world);
            replaced += world.ledger.operators.len();
            let inventory = world.inventory();
            let health = Health::of(&world.ledger, &inventory, now_ms());
            for group in world.ledger.groups.values() {
                let (well, all) = health.count(group);
                let lost = lost(&health, group).next();
                let stuck = is_stuck(&health, &world.ledger, group);
                let under_way = holder(&world.ledger, group.id).is_some();
                assert!(
                    lost.is_none() || stuck || under_way,
                    "seed {seed}: {lost:?} of {well} of {all} is left in group {}",
                    group.id
                );
            }
        }
        assert!(replaced > 300, "only {replaced} replicas were replaced");
    }

    /// The etcd cut at "m", its groups, and an operator that merges them; if `asked`, it has.
    fn merging(asked: bool) -> (World, [u64; 2], u64) {
        let (mut world, left) = world();
        let mut truth = splits::tests::Truth::of(&world.ledger);
        splits::tests::begun(&mut world, &["m"], &[]);
        splits::tests::execute(&mut world.ledger, &mut truth);
        let right = *world.ledger.groups.keys().last().unwrap();
        let wish = merges::Wish { name: "acme", at: Some("m"), all: false };
        let planned = merges::merge(&world.ledger, &world.inventory(), &wish, now_ms());
        world.ledger = planned.expect("it is allowed").0.applied_to(&world.ledger);
        let id = *world.ledger.operators.keys().last().unwrap();
        if asked {
            let noted = merges::note_asked(&world.ledger, id, now_ms());
            world.ledger = noted.expect("they are on the same nodes").applied_to(&world.ledger);
        }
        (world, [left, right], id)
    }

    #[test]
    fn a_merge_makes_way_when_a_replica_of_either_group_is_lost() {
        for asked in [false, true] {
            for which in [0, 1] {
                let (mut world, groups, id) = merging(asked);
                let node = world.ledger.groups[&groups[which]].replicas[0].node;
                world.quarantine(groups[which], node);
                let planned = plan(&world.ledger, &world.inventory(), now_ms());
                world.ledger = planned.expect("there is a loss").applied_to(&world.ledger);
                let merge = world.ledger.operators[&id].clone();
                assert!(merge.cancelled(), "{merge:?}");
                let of = |group: u64| holder(&world.ledger, group).map(|it| it.priority);
                if asked {
                    // It sees first what became of what it asked for.
                    assert!(matches!(next_step(&world.ledger, &merge), Step::SettleMerge(_)));
                    assert_eq!(groups.map(of), [Some(Priority::User); 2]);
                    assert!(plan(&world.ledger, &world.inventory(), now_ms()).is_none());
                    let ended = finish(&world.ledger, id, false, 7).expect("it ran");
                    world.ledger = ended.applied_to(&world.ledger);
                }
                settle(&mut world);
                let repairs = world.ledger.operators.values();
                let repairs = repairs.filter(|it| it.priority == Priority::Repair);
                assert_eq!(repairs.map(|it| it.group).collect::<Vec<_>>(), [groups[which]]);
                assert_eq!(world.ledger.operators[&id].state, OperatorState::Cancelled);
                assert!(groups.iter().all(|group| holder(&world.ledger, *group).is_none()));
            }
        }
    }
}
