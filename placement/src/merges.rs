//! Bringing the keys of an etcd together again: a group goes into its left neighbour. What an
//! operator is to ask for, and what the ledger learns from the groups. Pure.
//!
//! ```text
//!   the right group moves to the nodes of the left one, like any other that moves
//!   it is written down that the left one is asked from now on
//!   the left one is asked, at the version that the ledger knows ── its log decides
//!   its keys reach further, its version rose ──> the right place leaves the map, its group is dead
//! ```
//!
//! As with cuts (`splits.rs`) the log of the group that is asked decides, and every step may be lost or
//! repeated. An operator that was taken back before anybody was asked has nothing to find out: it puts
//! the right group's members in order and ends. Afterwards it ends when the left group's log says what
//! became of it. Should that answer never come, because the left group has no leader, it ends all the
//! same after a while; a merge that comes true later is learned from the report of the left group.
//!
//! With several cuts to go, one goes after the other: each operator knows the rest, and whoever leads
//! placement begins the next one when it is done. So each merge has an operator of its own.
//!
//! Invariants:
//! * an operator holds both groups, from its beginning to its end, or until it is taken back with
//!   nothing asked; then it holds the right one, as far as it has moved it;
//! * the left group is asked only while both are on the same nodes and all of them vote;
//! * a cut that a rule asks for does not go;
//! * a group that went is dead in the same change that says who has its keys.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::command::{Answer, Refusal, TenantView, refused};
use crate::health::Health;
use crate::inventory::Inventory;
use crate::ledger::{Change, Ledger};
use crate::operators::{self, Step, holder, move_step, voters};
use crate::record::{
    FORMAT, Group, Merge, Meta, Namespace, NodeState, Operator, OperatorState, Place, Priority,
    Record, Tenant, keys_of, text,
};
use crate::splits::{self, CutOff, PATIENCE_MS, Said, rule_at};
use crate::tenants::{self, Planned};

/// An operator that has not brought the right group to the left one's nodes by then gives up.
pub const MOVING_MS: u64 = 1_800_000;
/// A question that was asked so long ago has been answered, or lost: groups take some seconds for it.
pub const SETTLED_MS: u64 = 15_000;

/// Which cuts of an etcd are to go.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The tenant, or TENANT/NAMESPACE.
    pub name: &'a str,
    /// The one at this key.
    pub at: Option<&'a str>,
    /// All that no rule asks for.
    pub all: bool,
}

/// Begins to take cuts of an etcd away; with neither key nor all it only shows them.
pub fn merge(ledger: &Ledger, inventory: &Inventory, wish: &Wish<'_>, now_ms: u64) -> Planned {
    let mut meta = ledger.meta.clone().ok_or(refused("the service is not set up yet"))?;
    let name = wish.name;
    let (tenant, namespace) = splits::etcd(ledger, name, |of, part, prefix| {
        format!(
            "atoll namespace delete {of} {part} takes its rule away, then atoll tenant merge {of} \
             --at {prefix} the cut"
        )
    })?;
    let places = namespace.places();
    let done = |said: String| Ok((Change::default(), Answer::Done(said)));
    if places.len() == 1 {
        return done(format!("\"{name}\" is on one group: there is no cut to take away"));
    }
    let chains = match (wish.at, wish.all) {
        (Some(_), true) => return Err(refused("say --at KEY or --all, not both")),
        (None, false) => return shown(ledger, name),
        (None, true) => chains(ledger, inventory, tenant, namespace),
        (Some(at), false) => {
            let key = splits::read_key(at)?;
            if !cuts(&places).any(|place| place.start == key) {
                let at = text::of(&key);
                let others: Vec<String> = cuts(&places).map(|p| text::of(&p.start)).collect();
                let others = others.join(", ");
                return done(format!("\"{name}\" is not cut at {at}, but at {others}"));
            }
            if let Some(rule) = rule_at(tenant, namespace, &key) {
                return Err(forced(tenant, rule, &key));
            }
            vec![vec![key]]
        }
    };
    if chains.is_empty() {
        return done(format!("every cut of \"{name}\" is for a rule: it stays with that"));
    }
    let health = Health::of(ledger, inventory, now_ms);
    let mut change = Change::default();
    let mut begun = Vec::new();
    for chain in chains {
        // What comes later is looked at now, so that nothing is begun that cannot go on.
        for key in &chain {
            let pair = pair(namespace, key).map_or([0, 0], |(left, right)| [left, right]);
            for group in pair {
                splits::fit(ledger, inventory, &health, group)?;
            }
        }
        let Some((key, rest)) = chain.split_first() else { continue };
        let etcd = Etcd { ledger, inventory, health: &health, tenant, namespace };
        let rest = rest.iter().map(|key| text::of(key)).collect();
        let operator = etcd.begin(&mut meta, key, rest, "", now_ms)?;
        change = change.put(Record::Operator(operator.clone()));
        begun.push(operator);
    }
    let change = change.put(Record::Meta(meta));
    let view = |operator: &Operator| operators::view(ledger, operator);
    Ok((change, Answer::Operators(begun.iter().map(view).collect())))
}

/// The cuts that there are.
fn shown(ledger: &Ledger, name: &str) -> Planned {
    let of = name.split('/').next().unwrap_or_default();
    let Answer::Tenants(mut views) = tenants::show(ledger, Some(of))? else {
        return Err(refused("the answer is of another kind"));
    };
    views.retain(|view: &TenantView| view.name == name);
    Ok((Change::default(), Answer::Tenants(views)))
}

/// The places that begin with a cut.
fn cuts(places: &[Place]) -> impl Iterator<Item = &Place> {
    places.iter().skip(1)
}

fn forced(tenant: &Tenant, rule: &Namespace, key: &Bytes) -> Refusal {
    let (of, name, at) = (&tenant.name, &rule.name, text::of(key));
    refused(format!(
        "the cut at {at} is for the rule \"{name}\" of \"{of}\": atoll namespace delete {of} {name} \
         takes the rule away first"
    ))
}

/// The groups left and right of a cut.
fn pair(namespace: &Namespace, key: &Bytes) -> Option<(u64, u64)> {
    let places = namespace.places();
    let at = places.iter().position(|place| place.start == *key)?;
    Some((places.get(at.checked_sub(1)?)?.group, places.get(at)?.group))
}

/// All cuts that may go, those of neighbours together and in the order in which less moves.
fn chains(
    ledger: &Ledger,
    inventory: &Inventory,
    tenant: &Tenant,
    namespace: &Namespace,
) -> Vec<Vec<Bytes>> {
    let places = namespace.places();
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut is_open = false;
    for (at, place) in places.iter().enumerate().skip(1) {
        if rule_at(tenant, namespace, &place.start).is_some() {
            is_open = false;
            continue;
        }
        match runs.last_mut().filter(|_| is_open) {
            Some(run) => run.push(at),
            None => runs.push(vec![at]),
        }
        is_open = true;
    }
    let weigh = |at: usize| places.get(at).map_or(0, |place| size(inventory, place.group));
    // Replicas of a place that have to move to where another one is.
    let away = |from: usize, to: usize| {
        let nodes = |at: usize| places.get(at).map(|place| nodes_of(ledger, place.group));
        let (from, to) = (nodes(from).unwrap_or_default(), nodes(to).unwrap_or_default());
        from.difference(&to).count() as u128
    };
    let ordered = |mut run: Vec<usize>| {
        let base = run.first().map_or(0, |first| first - 1);
        let to_right: u128 = run.iter().map(|at| weigh(*at) * away(*at, base)).sum();
        let mut carried = 0;
        let to_left = run.iter().rev().map(|at| {
            carried += weigh(*at);
            carried * away(*at, at - 1)
        });
        if to_left.sum::<u128>() < to_right {
            run.reverse();
        }
        run.iter().filter_map(|at| Some(places.get(*at)?.start.clone())).collect()
    };
    runs.into_iter().map(ordered).collect()
}

/// Bytes of a group, and one more: also an empty one is work to move.
fn size(inventory: &Inventory, group: u64) -> u128 {
    let told = inventory.nodes.values().filter_map(|report| report.groups.get(&group));
    u128::from(told.map(|group| group.size_bytes).max().unwrap_or(0)) + 1
}

fn nodes_of(ledger: &Ledger, group: u64) -> BTreeSet<u64> {
    let group = ledger.groups.get(&group);
    group.into_iter().flat_map(|group| voters(group)).map(|replica| replica.node).collect()
}

/// An etcd whose cuts go, and what is known around it.
pub(crate) struct Etcd<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) inventory: &'a Inventory,
    pub(crate) health: &'a Health<'a>,
    pub(crate) tenant: &'a Tenant,
    pub(crate) namespace: &'a Namespace,
}

// === impl Etcd ===

impl Etcd<'_> {
    /// The groups left and right of a cut, if they can go together now.
    pub(crate) fn fit(&self, key: &Bytes) -> Result<(&Group, &Group), Refusal> {
        let at = text::of(key);
        let none = || refused(format!("there is no cut at {at}"));
        let (left, right) = pair(self.namespace, key).ok_or_else(none)?;
        if let Some(rule) = rule_at(self.tenant, self.namespace, key) {
            return Err(forced(self.tenant, rule, key));
        }
        let fit = |group: u64| splits::fit(self.ledger, self.inventory, self.health, group);
        let (left, right) = (fit(left)?, fit(right)?);
        for node in voters(left).map(|replica| replica.node) {
            let is_there = voters(right).any(|replica| replica.node == node);
            self.check_node(left.id, node, is_there)?;
        }
        Ok((left, right))
    }

    /// May a group stay on the node, and its right neighbour come there?
    fn check_node(&self, left: u64, id: u64, is_there: bool) -> Result<(), Refusal> {
        let name = self.ledger.node_name(id);
        let node = self.ledger.nodes.get(&id);
        let node = node.ok_or_else(|| refused(format!("node {name} is no more")))?;
        if matches!(node.state, NodeState::Draining | NodeState::Lost) {
            return Err(refused(format!("group {left} leaves node {name}: wait until it has")));
        }
        if !self.tenant.fits(node) {
            let tenant = &self.tenant.name;
            let why = format!("tenant \"{tenant}\" is pinned to other nodes than {name}, where");
            return Err(refused(format!("{why} group {left} is: move it first")));
        }
        if !is_there && (node.state != NodeState::Up || self.ledger.silent.contains(&id)) {
            return Err(refused(format!("node {name}, where group {left} is, takes nothing new")));
        }
        Ok(())
    }

    /// A new operator that takes a cut away, and knows which are to follow. `seen` says why, if nobody
    /// asked for it.
    pub(crate) fn begin(
        &self,
        meta: &mut Meta,
        key: &Bytes,
        rest: Vec<String>,
        seen: &str,
        now_ms: u64,
    ) -> Result<Operator, Refusal> {
        let (left, right) = self.fit(key)?;
        let (name, at) = (self.tenant.full_name(self.namespace), text::of(key));
        let why = format!("merge {name} at {at} into group {}", left.id);
        let (priority, why) = match seen {
            "" => (Priority::User, why),
            seen => (Priority::Balance, format!("{why}: {seen}")),
        };
        let target = voters(left).map(|replica| replica.node).collect();
        let operator = operators::begin(meta, right, target, priority, why, now_ms);
        // Programs that know nothing of merges would take it for a move.
        meta.format = meta.format.max(FORMAT);
        let merge = Merge { left: left.id, at: key.clone(), asked_ms: 0, rest, next: 0 };
        Ok(Operator { merge: Some(merge), ..operator })
    }
}

/// The next cut of those that are to go one after the other. What cannot be done for too long is given
/// up with all that would follow.
pub fn go_on(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Option<Change> {
    let waits = |operator: &&Operator| {
        let rest = operator.merge.as_ref().is_some_and(|merge| !merge.rest.is_empty());
        operator.state == OperatorState::Done && rest
    };
    ledger.operators.values().filter(waits).find_map(|before| {
        let mut meta = ledger.meta.clone()?;
        let mut change = Change::default();
        let mut after = before.clone();
        let merge = after.merge.as_mut()?;
        match next_of(ledger, inventory, &mut meta, before, now_ms) {
            Ok(next) => {
                merge.next = next.as_ref().map_or(0, |next| next.id);
                change = next.map(Record::Operator).into_iter().fold(change, Change::put);
            }
            Err(why) if now_ms >= before.ended_ms + PATIENCE_MS => {
                let rest = merge.rest.join(", ");
                after.why = format!("{}; {rest} stays: {why}", before.why);
            }
            Err(_) => return None,
        }
        merge.rest.clear();
        Some(change.put(Record::Operator(after)).put(Record::Meta(meta)))
    })
}

/// The operator behind one that is done; `None` if the other cuts are gone, or are to stay.
fn next_of(
    ledger: &Ledger,
    inventory: &Inventory,
    meta: &mut Meta,
    before: &Operator,
    now_ms: u64,
) -> Result<Option<Operator>, Refusal> {
    let owner = ledger.groups.get(&before.group).and_then(|group| {
        let tenant = ledger.tenants.get(&group.tenant)?;
        Some((tenant, tenant.namespaces.iter().find(|it| it.id == group.namespace)?))
    });
    let (tenant, namespace) = owner.ok_or_else(|| refused("its tenant is no more"))?;
    splits::etcd(ledger, &tenant.full_name(namespace), |_, _, _| String::new())?;
    let rest = before.merge.as_ref().map_or(&[][..], |merge| &merge.rest);
    let keys = rest.iter().filter_map(|said| text::read(said));
    let is_left =
        |key: &Bytes| pair(namespace, key).is_some() && rule_at(tenant, namespace, key).is_none();
    let mut keys = keys.filter(is_left);
    let Some(key) = keys.next() else { return Ok(None) };
    let rest = keys.map(|key| text::of(&key)).collect();
    let health = Health::of(ledger, inventory, now_ms);
    let etcd = Etcd { ledger, inventory, health: &health, tenant, namespace };
    etcd.begin(meta, &key, rest, "", now_ms).map(Some)
}

/// What is next for an operator that merges its group into the left neighbour.
pub(crate) fn next_step(
    ledger: &Ledger,
    right: &Group,
    operator: &Operator,
    merge: &Merge,
) -> Step {
    if operator.cancelled() {
        let is_open = operator.has_asked() && are_neighbours(ledger, right, merge);
        return match is_open {
            true => Step::SettleMerge(merge.clone()),
            false => move_step(ledger, right, operator),
        };
    }
    if !stands(ledger, right, operator, merge) {
        return Step::Withdraw;
    }
    match move_step(ledger, right, operator) {
        Step::Done => Step::Merge(merge.clone()),
        step => step,
    }
}

/// Does the cut still stand between the two?
fn are_neighbours(ledger: &Ledger, right: &Group, merge: &Merge) -> bool {
    let Some((namespace, _)) = ledger.place_of(right.id) else { return false };
    pair(namespace, &merge.at) == Some((merge.left, right.id))
}

/// Are the groups still what the operator was begun for?
fn stands(ledger: &Ledger, right: &Group, operator: &Operator, merge: &Merge) -> bool {
    let Some(left) = ledger.groups.get(&merge.left).filter(|left| !left.dead) else { return false };
    let Some(tenant) = ledger.tenants.get(&right.tenant) else { return false };
    let Some((namespace, _)) = tenant.place_of(right.id) else { return false };
    let target: BTreeSet<u64> = operator.target.iter().copied().collect();
    are_neighbours(ledger, right, merge)
        && rule_at(tenant, namespace, &merge.at).is_none()
        && left.recovering().is_none()
        && left.replicas.iter().all(|replica| !replica.learner)
        && nodes_of(ledger, left.id) == target
}

/// Writes down that the left group is asked from now on, if that is what is next.
pub fn note_asked(ledger: &Ledger, id: u64, now_ms: u64) -> Option<Change> {
    let operator = running(ledger, id)?;
    let Step::Merge(merge) = operators::next_step(ledger, operator) else { return None };
    let asked = Merge { asked_ms: now_ms.max(1), ..merge };
    let is_first = operator.merge.as_ref().is_some_and(|merge| merge.asked_ms == 0);
    let operator = Operator { merge: Some(asked), ..operator.clone() };
    is_first.then(|| Change::default().put(Record::Operator(operator)))
}

fn running(ledger: &Ledger, id: u64) -> Option<&Operator> {
    let is_running = |it: &&Operator| it.state == OperatorState::Running && it.merge.is_some();
    ledger.operators.get(&id).filter(is_running)
}

/// The same operator, asking for nothing more. If it never has, only what it moved is put in order.
pub(crate) fn taken_back(ledger: &Ledger, operator: &Operator, now_ms: u64) -> Operator {
    if operator.cancelled() {
        return operator.clone();
    }
    let alone = |merge: &Merge| Merge { rest: Vec::new(), ..merge.clone() };
    Operator {
        merge: operator.merge.as_ref().map(alone),
        given_up_ms: now_ms.max(1),
        ..operators::taken_back(ledger, operator)
    }
}

/// An operator that has tried for too long, or whose groups are others now, is taken back; `None` if
/// there is nothing to be changed.
pub fn give_up(ledger: &Ledger, id: u64, now_ms: u64) -> Option<Change> {
    let operator = running(ledger, id).filter(|operator| !operator.cancelled())?;
    let is_late = match operator.merge.as_ref().map_or(0, |merge| merge.asked_ms) {
        0 => now_ms >= operator.begun_ms + MOVING_MS,
        asked_ms => now_ms >= asked_ms + PATIENCE_MS,
    };
    let is_over = is_late || operators::next_step(ledger, operator) == Step::Withdraw;
    let back = || Record::Operator(taken_back(ledger, operator, now_ms));
    is_over.then(|| Change::default().put(back()))
}

/// The end of a merge that is in the way of something stronger and has asked already: it finds out
/// what became of that. `None` if there is no such one, or it does so already.
pub(crate) fn stopped(
    ledger: &Ledger,
    group: u64,
    priority: Priority,
    now_ms: u64,
) -> Option<Operator> {
    let merge = holder(ledger, group).filter(|it| it.merge.is_some() && it.yields_to(priority))?;
    (!merge.cancelled()).then(|| taken_back(ledger, merge, now_ms))
}

/// Has whatever the operator asked for been answered, or lost?
pub fn is_settled(operator: &Operator, now_ms: u64) -> bool {
    operator.cancelled() && now_ms >= operator.given_up_ms + SETTLED_MS
}

/// Has it been tried for too long to find out what became of what the operator asked for?
pub fn is_forlorn(operator: &Operator, now_ms: u64) -> bool {
    operator.cancelled() && now_ms >= operator.given_up_ms + PATIENCE_MS
}

/// The keys of the group at a place reach further than was known: those behind it went into it, and
/// are no more. `None` if that cannot be.
pub(crate) fn absorbed(
    ledger: &Ledger,
    places: &mut Vec<Place>,
    at: usize,
    said: &Said,
    now_ms: u64,
) -> Option<Change> {
    let end = said.keys.end.as_ref();
    let last = places.iter().rposition(|place| end.is_none_or(|end| place.start < *end))?;
    let mut change = Change::default();
    let mut over: BTreeMap<u64, Operator> = BTreeMap::new();
    if let Some(end) = end
        && keys_of(places, last).end.as_ref() != Some(end)
    {
        // It had been cut before it went, and nobody else is left to tell of that.
        let CutOff { child, operator } = splits::cut_off(ledger, places, last, end, now_ms)?;
        change = change.put(Record::Group(child));
        over.extend(operator.map(|operator| (operator.id, operator)));
    }
    let gone = places.get(at + 1..=last)?.to_vec();
    if gone.is_empty() || gone.iter().any(|place| place.version >= said.version) {
        return None;
    }
    places.drain(at + 1..=last);
    for place in gone {
        let group = ledger.groups.get(&place.group)?;
        change = change.put(Record::Group(Group { dead: true, ..Group::clone(group) }));
        for operator in ended(ledger, place.group, now_ms) {
            over.entry(operator.id).or_insert(operator);
        }
    }
    Some(over.into_values().map(Record::Operator).fold(change, Change::put))
}

/// What becomes of operators when their group went into its neighbour: the newest one that asked for
/// that has done it, others have nothing left to work on.
fn ended(ledger: &Ledger, group: u64, now_ms: u64) -> Vec<Operator> {
    let of_group = || ledger.operators.values().filter(move |it| it.group == group);
    let asked = |it: &&Operator| {
        let is_merge = it.merge.as_ref().is_some_and(|merge| merge.asked_ms > 0);
        is_merge && matches!(it.state, OperatorState::Running | OperatorState::Cancelled)
    };
    let done = of_group().rev().find(asked);
    let others = of_group().filter(|it| it.state == OperatorState::Running);
    let others = others.filter(|it| done.is_none_or(|done| done.id != it.id));
    let void =
        others.map(|it| Operator { state: OperatorState::Void, ended_ms: now_ms, ..it.clone() });
    let done = done.map(|it| Operator {
        why: it.why.strip_suffix(Operator::CANCELLED).unwrap_or(&it.why).to_owned(),
        state: OperatorState::Done,
        ended_ms: if it.ended_ms == 0 { now_ms.max(1) } else { it.ended_ms },
        ..it.clone()
    });
    void.chain(done).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::{GroupId, NodeId};

    use super::*;
    use crate::check::check;
    use crate::health::tests::{World, now_ms};
    use crate::operators::tests::carry_out;
    use crate::operators::{cancel, finish};
    use crate::record::{Cut, Replica};
    use crate::ring::stable;
    use crate::splits::learn;
    use crate::splits::tests::{Truth, acme, begun, execute as cut, starts, told, why};
    use crate::{nodes, tenants, view};

    /// What a group answers that is asked to take its neighbour's keys.
    #[derive(Debug, PartialEq)]
    enum Said3 {
        Done(Said),
        Stale,
        Later,
    }

    /// As the left group's leader answers it. `fails`: it begins, and gives up.
    fn asked(truth: &mut Truth, version: u64, merge: &Merge, right: u64, fails: bool) -> Said3 {
        let Some(own) = truth.0.get(&merge.left).cloned() else { return Said3::Stale };
        if own.keys.contains(&merge.at) && own.keys.start != merge.at {
            return Said3::Done(own);
        }
        if own.version != version || own.keys.end.as_ref() != Some(&merge.at) {
            return Said3::Stale;
        }
        let Some(other) = truth.0.get_mut(&right).filter(|it| it.keys.start == merge.at) else {
            return Said3::Later;
        };
        if fails {
            other.version += 1;
            return Said3::Later;
        }
        let other = truth.0.remove(&right).expect("it was just there");
        let after = truth.0.get_mut(&merge.left).expect("it was just there");
        after.version = own.version.max(other.version) + 1;
        after.keys.end = other.keys.end;
        Said3::Done(after.clone())
    }

    fn wish(world: &World, at: Option<&str>, all: bool) -> Planned {
        let wish = Wish { name: "acme", at, all };
        merge(&world.ledger, &world.inventory(), &wish, now_ms())
    }

    fn merging(world: &mut World, at: Option<&str>, all: bool) {
        let (change, answer) = wish(world, at, all).expect("it is allowed");
        assert!(matches!(answer, Answer::Operators(_)), "{answer:?}");
        world.ledger = change.applied_to(&world.ledger);
    }

    /// The tenant, cut at these keys.
    fn cut_at(keys: &[&str]) -> (World, Truth) {
        let mut world = acme();
        let mut truth = Truth::of(&world.ledger);
        begun(&mut world, keys, &[]);
        cut(&mut world.ledger, &mut truth);
        (world, truth)
    }

    fn running(ledger: &Ledger) -> Option<Operator> {
        operators::running(ledger).first().map(|operator| (*operator).clone())
    }

    /// One step of an operator, as the executor takes it.
    fn step(ledger: &mut Ledger, truth: &mut Truth, operator: &Operator, now_ms: u64) {
        let id = operator.id;
        let change = give_up(ledger, id, now_ms).or_else(|| {
            let group = operator.group;
            let version = |group: u64| ledger.range_version(group);
            match operators::next_step(ledger, operator) {
                Step::Cut(cut) => {
                    // It may have gone, by a merge that nobody has heard of yet.
                    let there = truth.0.get(&group).cloned()?;
                    let said = truth.asked(group, version(group), &cut).unwrap_or(there);
                    learn(ledger, group, &said, now_ms)
                        .or_else(|| splits::give_up(ledger, id, now_ms))
                }
                Step::Merge(merge) if merge.asked_ms == 0 => note_asked(ledger, id, now_ms),
                Step::Merge(merge) => {
                    aligned(ledger, operator, &merge);
                    let said = match asked(truth, version(merge.left), &merge, group, false) {
                        Said3::Done(said) => Some(said),
                        Said3::Stale => truth.0.get(&merge.left).cloned(),
                        Said3::Later => None,
                    };
                    learn(ledger, merge.left, &said?, now_ms)
                }
                Step::Settle(_) => settle(ledger, truth, operator, group, now_ms),
                Step::SettleMerge(_) if is_forlorn(operator, now_ms) => {
                    finish(ledger, id, false, now_ms)
                }
                Step::SettleMerge(merge) => settle(ledger, truth, operator, merge.left, now_ms),
                Step::Done => finish(ledger, id, false, now_ms),
                Step::Void => finish(ledger, id, true, now_ms),
                moves => {
                    *ledger = carry_out(ledger, operator, &moves);
                    None
                }
            }
        });
        if let Some(change) = change {
            *ledger = change.applied_to(ledger);
        }
        sound(ledger, &format!("after {operator:?}"));
    }

    fn settle(
        ledger: &Ledger,
        truth: &Truth,
        operator: &Operator,
        group: u64,
        now_ms: u64,
    ) -> Option<Change> {
        let is_settled = match operator.is_split() {
            true => splits::is_settled(operator, now_ms),
            false => is_settled(operator, now_ms),
        };
        let said = truth.0.get(&group)?;
        let over = || is_settled.then(|| finish(ledger, operator.id, false, now_ms)).flatten();
        learn(ledger, group, said, now_ms).or_else(over)
    }

    /// Nobody is asked before both groups are on the same nodes, and all of them vote.
    fn aligned(ledger: &Ledger, operator: &Operator, merge: &Merge) {
        let (left, right) = (&ledger.groups[&merge.left], &ledger.groups[&operator.group]);
        let learner = |group: &Group| group.replicas.iter().any(|replica| replica.learner);
        assert!(!learner(left) && !learner(right), "{left:?} {right:?}");
        assert_eq!(nodes_of(ledger, left.id), nodes_of(ledger, right.id));
    }

    fn sound(ledger: &Ledger, when: &str) {
        let wrong = |it: &crate::check::Finding| it.gravity == crate::check::Gravity::Wrong;
        assert_eq!(check(ledger).into_iter().find(wrong), None, "{when}");
    }

    /// Carries everything out to its end.
    fn execute(world: &mut World, truth: &mut Truth) {
        for round in 0..400 {
            let at_ms = now_ms() + round;
            if let Some(change) = go_on(&world.ledger, &world.inventory(), at_ms) {
                world.ledger = change.applied_to(&world.ledger);
            }
            let Some(operator) = running(&world.ledger) else { return };
            step(&mut world.ledger, truth, &operator, at_ms);
            told(&mut world.ledger, truth);
        }
        panic!("operators do not come to an end: {:?}", running(&world.ledger));
    }

    /// Does the ledger say of every group what is true, and is what went dead?
    fn agree(ledger: &Ledger, truth: &Truth) -> bool {
        ledger.groups.values().filter(|group| group.tenant > 0).all(|group| {
            let Some(said) = truth.0.get(&group.id) else { return group.dead };
            let Some((namespace, at)) = ledger.place_of(group.id) else { return false };
            let keys = keys_of(&namespace.places(), at);
            !group.dead && keys == said.keys && ledger.range_version(group.id) == said.version
        }) && truth.0.keys().all(|group| ledger.groups.contains_key(group))
    }

    /// Puts a group on these nodes.
    fn put_on(world: &mut World, group: u64, on: &[u64]) {
        let known = &world.ledger.groups[&group];
        let number = 100 * (1 + known.membership_version);
        let replica = |node: &u64| Replica { node: *node, replica: number + node, learner: false };
        let replicas: Vec<Replica> = on.iter().map(replica).collect();
        let version = known.membership_version + 3;
        let report = nodes::report(&world.ledger, group, version, &replicas, &[]);
        world.ledger = report.expect("it is newer").applied_to(&world.ledger);
    }

    fn keys(world: &World) -> Vec<String> {
        starts(&world.ledger).into_iter().skip(1).map(|(start, ..)| start).collect()
    }

    fn group_at(world: &World, key: &str) -> u64 {
        let found = starts(&world.ledger).into_iter().find(|(start, ..)| start == key);
        found.expect("it begins there").1
    }

    #[test]
    fn a_cut_goes_and_the_right_group_dies() {
        let (mut world, mut truth) = cut_at(&["g", "p"]);
        let (home, middle, last) =
            (group_at(&world, ""), group_at(&world, "g"), group_at(&world, "p"));
        put_on(&mut world, home, &[1, 2, 3]);
        put_on(&mut world, middle, &[2, 3, 4]);
        let before = world.ledger.range_version(home).max(world.ledger.range_version(middle));
        merging(&mut world, Some("g"), false);
        let operator = running(&world.ledger).expect("it was begun");
        assert_eq!(
            (operator.group, operator.why.as_str()),
            (middle, "merge acme at g into group 3")
        );
        for group in [home, middle] {
            assert_eq!(holder(&world.ledger, group).map(|it| it.id), Some(operator.id));
        }
        assert!(holder(&world.ledger, last).is_none());
        let refusal = why(wish(&world, Some("p"), false));
        assert!(refusal.contains("works on group"), "{refusal}");
        assert!(operators::move_tenant(&world.ledger, "acme", &["n4".to_owned()], 5).is_err());
        assert_eq!(world.ledger.meta.as_ref().unwrap().format, FORMAT);
        execute(&mut world, &mut truth);
        assert_eq!(
            nodes_of(&world.ledger, middle),
            nodes_of(&world.ledger, home),
            "it moved first"
        );
        let ledger = &world.ledger;
        assert_eq!(starts(ledger), [(String::new(), home, before + 1), ("p".into(), last, 2)]);
        assert!(agree(ledger, &truth) && ledger.groups[&middle].dead);
        assert_eq!(ledger.operators[&operator.id].state, OperatorState::Done);
        let to = |key: &[u8]| view::map(ledger).named("acme").unwrap().lookup(key).group.0;
        assert_eq!((to(b"h"), to(b"q")), (home, last));
        assert!(view::map(ledger).replicas(GroupId(middle)).is_empty());
        // Each node that has still a replica of it is told to drop it, and nobody is to have one.
        let duties = view::duties(ledger, NodeId(1), |group| (group.0 == middle).then_some(1));
        assert_eq!(duties.dead, [GroupId(middle)]);
        assert!(duties.wanted.iter().all(|wanted| wanted.group.0 != middle));
        assert_eq!(view::whereabouts(ledger).len(), 2);
        assert!(crate::charters::untold(ledger).all(|(group, _)| group.id != middle));
        // What the dead one says is not listened to.
        let old = Said { keys: proto::KeyRange::all(), version: 99 };
        assert!(learn(ledger, middle, &old, now_ms()).is_none());
        let (_, again) = wish(&world, Some("g"), false).expect("nothing to do");
        assert_eq!(again, Answer::Done("\"acme\" is not cut at g, but at p".to_owned()));
        merging(&mut world, Some("p"), false);
        execute(&mut world, &mut truth);
        assert!(agree(&world.ledger, &truth) && keys(&world).is_empty());
        assert_eq!(Ledger::load(&world.ledger.save()).unwrap().groups, world.ledger.groups);
        let (_, none) = wish(&world, None, true).expect("nothing to do");
        assert!(matches!(none, Answer::Done(said) if said.contains("is on one group")));
        // And back: the same key, another group.
        begun(&mut world, &["p"], &[]);
        cut(&mut world.ledger, &mut truth);
        assert!(group_at(&world, "p") > last && agree(&world.ledger, &truth));
    }

    #[test]
    fn all_cuts_go_one_after_the_other_but_for_those_of_rules() {
        let (mut world, mut truth) = cut_at(&["a", "b", "c", "x"]);
        begun(&mut world, &[], &["/e/"]);
        cut(&mut world.ledger, &mut truth);
        let rule = tenants::create_namespace(&world.ledger, "acme", "events", Some("/e/"), 0);
        world.ledger = rule.unwrap().0.applied_to(&world.ledger);
        assert_eq!(keys(&world), ["/e/", "/e0", "a", "b", "c", "x"]);
        for at in ["/e/", "/e0"] {
            let refusal = why(wish(&world, Some(at), false));
            let words =
                "is for the rule \"events\" of \"acme\": atoll namespace delete acme events";
            assert!(refusal.contains(words), "{refusal}");
        }
        let (change, shown) = wish(&world, None, false).expect("it shows");
        let Answer::Tenants(views) = shown else { panic!("{shown:?}") };
        assert!(change.is_empty() && views.len() == 1 && views[0].places.len() == 7);
        merging(&mut world, None, true);
        assert_eq!(world.ledger.operators.values().filter(|it| it.merge.is_some()).count(), 1);
        execute(&mut world, &mut truth);
        assert_eq!(keys(&world), ["/e/", "/e0"]);
        assert!(agree(&world.ledger, &truth));
        let merges: Vec<_> =
            world.ledger.operators.values().filter(|it| it.merge.is_some()).collect();
        assert_eq!(merges.len(), 4, "each has a number of its own");
        assert!(merges.iter().all(|it| it.state == OperatorState::Done));
        let next: Vec<u64> = merges.iter().map(|it| it.merge.as_ref().unwrap().next).collect();
        assert_eq!(next, [merges[1].id, merges[2].id, merges[3].id, 0]);
        let (_, none) = wish(&world, None, true).expect("nothing to do");
        assert!(
            matches!(none, Answer::Done(said) if said.contains("every cut of \"acme\" is for a rule"))
        );
        let without = tenants::delete_namespace(&world.ledger, "acme", "events", 5).unwrap();
        world.ledger = without.0.applied_to(&world.ledger);
        merging(&mut world, None, true);
        execute(&mut world, &mut truth);
        assert!(keys(&world).is_empty() && agree(&world.ledger, &truth));
    }

    #[test]
    fn many_merges_begin_where_less_moves() {
        let order = |on: &[[u64; 3]]| {
            let (mut world, mut truth) = cut_at(&["g", "p"]);
            for (key, on) in ["", "g", "p"].iter().zip(on) {
                let group = group_at(&world, key);
                put_on(&mut world, group, on);
            }
            merging(&mut world, None, true);
            let operator = running(&world.ledger).expect("it was begun");
            execute(&mut world, &mut truth);
            assert!(keys(&world).is_empty() && agree(&world.ledger, &truth));
            text::of(&operator.merge.unwrap().at)
        };
        assert_eq!(order(&[[1, 2, 3], [1, 2, 3], [2, 3, 4]]), "g");
        // From the right two are moved once, the last one with the middle one's node.
        assert_eq!(order(&[[1, 2, 3], [1, 2, 4], [1, 2, 4]]), "g");
        assert_eq!(order(&[[1, 2, 3], [1, 2, 3], [1, 2, 3]]), "g");
    }

    #[test]
    fn what_cannot_go_is_refused_in_words() {
        let (mut world, _) = cut_at(&["g"]);
        let ask = |world: &World, name: &str, at: Option<&str>, all| {
            let wish = Wish { name, at, all };
            why(merge(&world.ledger, &world.inventory(), &wish, now_ms()))
        };
        assert!(ask(&world, "nobody", None, true).contains("no tenant \"nobody\""));
        assert!(ask(&world, "acme", Some(r"\"), false).contains("is no key"));
        assert!(ask(&world, "acme", Some("g"), true).contains("not both"));
        let stretch = tenants::create_namespace(&world.ledger, "acme", "e", Some("/e/"), 0);
        let mut with = acme();
        with.ledger = stretch.unwrap().0.applied_to(&world.ledger);
        let said = ask(&with, "acme/e", None, true);
        assert!(said.contains("atoll namespace delete acme e takes its rule away"), "{said}");
        let frozen = tenants::set_frozen(&world.ledger, "acme", true).unwrap().0;
        with.ledger = frozen.applied_to(&world.ledger);
        assert!(ask(&with, "acme", None, true).contains("is frozen"));
        let nobody = Wish { name: "acme", at: Some("g"), all: false };
        let nobody = merge(&world.ledger, &Inventory::default(), &nobody, now_ms());
        assert!(why(nobody).contains("nothing is known of the nodes"));
        let (home, right) = (group_at(&world, ""), group_at(&world, "g"));
        put_on(&mut world, home, &[1, 2, 3]);
        put_on(&mut world, right, &[1, 2, 4]);
        for (state, words) in [
            (NodeState::Draining, "leaves node n3: wait until it has"),
            (NodeState::Cordoned, "node n3, where group 3 is, takes nothing new"),
        ] {
            let (change, _) = nodes::set_state(&world.ledger, "n3", state).unwrap();
            with.ledger = change.applied_to(&world.ledger);
            let said = ask(&with, "acme", Some("g"), false);
            assert!(said.contains(words), "{said}");
        }
        let mut tenant = world.ledger.tenant("acme").unwrap().clone();
        tenant.pin = Some(crate::record::Pin::Nodes(vec![1, 2, 4]));
        with.ledger = Change::default().put(Record::Tenant(tenant)).applied_to(&world.ledger);
        assert!(ask(&with, "acme", Some("g"), false).contains("pinned to other nodes than n3"));
        world.silence(4, 60_000);
        let words = format!("2 of 3 replicas of group {right} are well");
        assert!(ask(&world, "acme", Some("g"), false).contains(&words));
    }

    #[test]
    fn one_that_has_asked_nobody_makes_way_at_once() {
        for steps in 0..5 {
            let (mut world, mut truth) = cut_at(&["g"]);
            let (home, right) = (group_at(&world, ""), group_at(&world, "g"));
            put_on(&mut world, home, &[1, 2, 3]);
            put_on(&mut world, right, &[2, 3, 4]);
            merging(&mut world, Some("g"), false);
            let operator = running(&world.ledger).expect("it was begun");
            for _ in 0..steps {
                let operator = world.ledger.operators[&operator.id].clone();
                step(&mut world.ledger, &mut truth, &operator, now_ms());
            }
            let has_asked = world.ledger.operators[&operator.id].has_asked();
            assert_eq!(has_asked, steps == 4, "{steps}");
            let drained = nodes::set_state(&world.ledger, "n1", NodeState::Draining).unwrap();
            world.ledger = drained.0.applied_to(&world.ledger);
            let plan = |world: &World| operators::plan_drains(&world.ledger, now_ms());
            world.ledger = plan(&world).expect("there is a drain").applied_to(&world.ledger);
            sound(&world.ledger, "a drain");
            let merge = &world.ledger.operators[&operator.id];
            assert!(merge.cancelled(), "{merge:?}");
            let of_home = holder(&world.ledger, home).expect("it is held");
            if has_asked {
                assert_eq!(of_home.id, merge.id, "it sees first what became of it");
            } else {
                assert!(of_home.why.starts_with("drain node n1"), "{of_home:?}");
            }
            // In the end everything is away from the node, whole, and nobody works on it.
            for round in 0..200 {
                if let Some(change) = plan(&world) {
                    world.ledger = change.applied_to(&world.ledger);
                }
                let Some(operator) = running(&world.ledger) else { break };
                step(&mut world.ledger, &mut truth, &operator, now_ms() + 1000 * round);
            }
            assert!(running(&world.ledger).is_none() && agree(&world.ledger, &truth));
            for group in [home, right] {
                assert!(!nodes_of(&world.ledger, group).contains(&1));
                assert!(world.ledger.groups[&group].replicas.iter().all(|r| !r.learner));
                assert_eq!(world.ledger.groups[&group].replicas.len(), 3);
            }
        }
    }

    #[test]
    fn one_that_was_taken_back_finds_out_first() {
        for was_done in [false, true] {
            let (mut world, mut truth) = cut_at(&["g"]);
            merging(&mut world, Some("g"), false);
            let operator = running(&world.ledger).expect("it was begun");
            let (id, right) = (operator.id, operator.group);
            step(&mut world.ledger, &mut truth, &operator, now_ms());
            let operator = world.ledger.operators[&id].clone();
            let merge = operator.merge.clone().unwrap();
            assert_eq!(merge.asked_ms, now_ms());
            if was_done {
                let version = world.ledger.range_version(merge.left);
                asked(&mut truth, version, &merge, right, false);
            }
            let ledger = &mut world.ledger;
            *ledger = cancel(ledger, id, now_ms()).unwrap().0.applied_to(ledger);
            let operator = ledger.operators[&id].clone();
            assert!(matches!(operators::next_step(ledger, &operator), Step::SettleMerge(_)));
            assert!(operators::displace(ledger, merge.left, Priority::Repair, 5).is_err());
            step(ledger, &mut truth, &operator, now_ms() + SETTLED_MS - 1);
            let early = if was_done { OperatorState::Done } else { OperatorState::Running };
            assert_eq!(ledger.operators[&id].state, early);
            if !was_done {
                step(ledger, &mut truth, &operator, now_ms() + SETTLED_MS);
            }
            let ended = &ledger.operators[&id];
            assert_eq!(ended.cancelled(), !was_done);
            assert_eq!(ended.state == OperatorState::Cancelled, !was_done);
            assert!(agree(ledger, &truth));
        }
    }

    #[test]
    fn one_that_cannot_gives_up_and_the_rest_stays() {
        let (mut world, mut truth) = cut_at(&["g", "p"]);
        merging(&mut world, None, true);
        let operator = running(&world.ledger).expect("it was begun");
        assert_eq!(operator.merge.as_ref().unwrap().rest, ["p"]);
        assert!(give_up(&world.ledger, operator.id, now_ms() + MOVING_MS - 1).is_none());
        let moving = give_up(&world.ledger, operator.id, now_ms() + MOVING_MS);
        assert!(moving.unwrap().applied_to(&world.ledger).operators[&operator.id].cancelled());
        step(&mut world.ledger, &mut truth, &operator, now_ms());
        let late = now_ms() + PATIENCE_MS;
        assert!(give_up(&world.ledger, operator.id, late - 1).is_none());
        let asked = give_up(&world.ledger, operator.id, late).unwrap();
        world.ledger = asked.applied_to(&world.ledger);
        assert!(
            give_up(&world.ledger, operator.id, late + PATIENCE_MS).is_none(),
            "it was already"
        );
        // The left group has no leader that would tell.
        let operator = world.ledger.operators[&operator.id].clone();
        let nobody = &mut Truth::default();
        step(&mut world.ledger, nobody, &operator, late + PATIENCE_MS - 1);
        assert!(running(&world.ledger).is_some());
        step(&mut world.ledger, nobody, &operator, late + PATIENCE_MS);
        assert!(running(&world.ledger).is_none());
        assert!(go_on(&world.ledger, &world.inventory(), late).is_none());
        assert_eq!(keys(&world), ["g", "p"]);
    }

    #[test]
    fn what_cannot_be_gone_on_with_says_so() {
        let (mut world, mut truth) = cut_at(&["g", "p"]);
        merging(&mut world, None, true);
        for _ in 0..2 {
            let operator = running(&world.ledger).expect("it was begun");
            step(&mut world.ledger, &mut truth, &operator, now_ms());
        }
        assert_eq!(keys(&world), ["p"]);
        world.silence(world.ledger.groups[&group_at(&world, "p")].replicas[0].node, 60_000);
        let late = now_ms() + PATIENCE_MS;
        let mut inventory = world.inventory();
        inventory.nodes.values_mut().for_each(|report| report.heard_ms += PATIENCE_MS);
        assert!(go_on(&world.ledger, &inventory, late - 1).is_none());
        let stopped = go_on(&world.ledger, &inventory, late).expect("it is too late");
        world.ledger = stopped.applied_to(&world.ledger);
        let why = &world.ledger.operators.values().next_back().unwrap().why;
        assert!(why.contains("; p stays: 2 of 3 replicas"), "{why}");
        assert!(go_on(&world.ledger, &inventory, late).is_none());
    }

    #[test]
    fn groups_that_are_others_by_then_are_left_alone() {
        // A cut of the left group that was given up came true after all.
        let (mut world, mut truth) = cut_at(&["p"]);
        begun(&mut world, &["g"], &[]);
        let split = running(&world.ledger).expect("it was begun");
        let version = world.ledger.range_version(split.group);
        let given_up = split.given_up(now_ms());
        world.ledger = Change::default().put(Record::Operator(given_up)).applied_to(&world.ledger);
        merging(&mut world, Some("p"), false);
        let merge = running(&world.ledger).expect("it was begun");
        step(&mut world.ledger, &mut truth, &merge, now_ms());
        let said = truth.asked(split.group, version, &split.cuts[0]).expect("it can");
        let learned = learn(&world.ledger, split.group, &said, now_ms()).expect("it is news");
        world.ledger = learned.applied_to(&world.ledger);
        let merge = world.ledger.operators[&merge.id].clone();
        assert_eq!(operators::next_step(&world.ledger, &merge), Step::Withdraw);
        execute(&mut world, &mut truth);
        assert_eq!(world.ledger.operators[&merge.id].state, OperatorState::Cancelled);
        assert!(keys(&world) == ["g", "p"] && agree(&world.ledger, &truth));
        // A rule came in between.
        merging(&mut world, Some("p"), false);
        let merge = running(&world.ledger).expect("it was begun");
        let rule = tenants::create_namespace(&world.ledger, "acme", "q", Some("p"), 0);
        world.ledger = rule.unwrap().0.applied_to(&world.ledger);
        assert_eq!(operators::next_step(&world.ledger, &merge), Step::Withdraw);
    }

    #[test]
    fn one_that_was_cut_before_it_went_leaves_its_other_half() {
        let (mut world, mut truth) = cut_at(&["g"]);
        let right = group_at(&world, "g");
        begun(&mut world, &["p"], &[]);
        let split = running(&world.ledger).expect("it was begun");
        assert_eq!(split.group, right);
        truth.asked(right, world.ledger.range_version(right), &split.cuts[0]).expect("it can");
        let given_up = split.given_up(now_ms());
        world.ledger = Change::default().put(Record::Operator(given_up)).applied_to(&world.ledger);
        merging(&mut world, Some("g"), false);
        execute(&mut world, &mut truth);
        assert!(
            keys(&world) == ["p"] && agree(&world.ledger, &truth),
            "{:?}",
            starts(&world.ledger)
        );
        assert!(world.ledger.groups[&right].dead);
        assert_eq!(world.ledger.operators[&split.id].state, OperatorState::Done);
    }

    #[test]
    fn merges_that_are_not_sound_are_found() {
        let (mut world, _) = cut_at(&["g"]);
        merging(&mut world, Some("g"), false);
        let after = |harm: &dyn Fn(&mut Operator)| {
            let mut ledger = world.ledger.clone();
            let id = running(&ledger).expect("it was begun").id;
            harm(ledger.operators.get_mut(&id).unwrap());
            let found: Vec<String> = check(&ledger).into_iter().map(|it| it.what).collect();
            found.join("; ")
        };
        let merge = |harm: &'static dyn Fn(&mut Merge)| {
            after(&|it: &mut Operator| harm(it.merge.as_mut().unwrap()))
        };
        let right = group_at(&world, "g");
        assert_eq!(after(&|_| {}), "");
        assert!(merge(&|it| it.left = 2).contains("which are no neighbours"));
        assert!(after(&|it| it.group = it.merge.as_ref().unwrap().left).contains("which is home"));
        assert!(merge(&|it| it.next = 99).contains("is still to be given"));
        let cut =
            Cut { at: Bytes::new(), child: right, cause: Default::default(), seen: "".into() };
        assert!(after(&|it| it.cuts.push(cut.clone())).contains("both cuts and merges"));
        // Both groups are held.
        for group in [right, group_at(&world, "")] {
            let mut ledger = world.ledger.clone();
            let mut second = running(&ledger).expect("it was begun");
            (second.id, second.group, second.merge) = (1, group, None);
            ledger.operators.insert(1, second);
            let found = check(&ledger).into_iter().next().expect("there are two").what;
            assert!(found.contains(&format!("both work on group {group}")), "{found}");
        }
    }

    #[test]
    fn what_cannot_be_true_is_not_learned() {
        let (world, truth) = cut_at(&["g", "p"]);
        let home = group_at(&world, "");
        let said = |end: Option<&str>, version| {
            let end = end.map(|end| Bytes::copy_from_slice(end.as_bytes()));
            let keys = proto::KeyRange { end, ..truth.0[&home].keys.clone() };
            learn(&world.ledger, home, &Said { keys, version }, now_ms()).is_some()
        };
        assert!(said(Some("p"), 9) && said(None, 9), "of one neighbour, of both");
        assert!(!said(Some("p"), 2) && !said(None, 1), "it is no news");
        assert!(!said(Some("k"), 9) && !said(Some("x"), 9), "nobody cut there");
    }

    /// Whatever is lost, repeated, taken back or comes late: the ledger says in the end what the
    /// groups' logs say, and is sound all the time.
    #[test]
    fn the_ledger_follows_the_logs_of_groups_whatever_is_lost() {
        let (mut made, mut gone, mut cancelled, mut late) = (0, 0, 0, 0);
        for seed in 0..300u64 {
            let mut rolls = 0u64;
            let mut roll = |sides: u64| {
                rolls += 1;
                stable(&(seed, rolls)) % sides
            };
            let mut world = acme();
            let mut truth = Truth::of(&world.ledger);
            let mut at_ms = now_ms();
            // Questions on their way.
            let mut cuts: Vec<(u64, u64, Cut)> = Vec::new();
            let mut merges: Vec<(u64, Merge, u64)> = Vec::new();
            let mut all = 0;
            for _ in 0..120 {
                at_ms += roll(SETTLED_MS / 2);
                let key = format!("k{}", roll(9));
                let inventory = world.inventory();
                match roll(12) {
                    0 => {
                        let at = [key];
                        let wish = splits::Wish { name: "acme", at: &at, prefixes: &[] };
                        let planned = splits::split(&world.ledger, &inventory, &wish, now_ms());
                        if let Ok((change, _)) = planned {
                            world.ledger = change.applied_to(&world.ledger);
                        }
                    }
                    1 | 2 => {
                        let every = roll(4) == 0;
                        let at = Some(key.as_str()).filter(|_| !every);
                        let wish = Wish { name: "acme", at, all: every };
                        let planned = merge(&world.ledger, &inventory, &wish, now_ms());
                        if let Ok((change, _)) = planned {
                            world.ledger = change.applied_to(&world.ledger);
                        }
                    }
                    3 => {
                        let id = roll(1 + world.ledger.operators.len() as u64);
                        if let Ok((change, _)) = cancel(&world.ledger, id, at_ms) {
                            world.ledger = change.applied_to(&world.ledger);
                            cancelled += 1;
                        }
                    }
                    // Questions that were lost come after all.
                    4 if !cuts.is_empty() => {
                        let place = roll(cuts.len() as u64) as usize;
                        let (group, version, cut) = cuts.swap_remove(place);
                        if truth.0.contains_key(&group) {
                            late += u64::from(truth.asked(group, version, &cut).is_some());
                        }
                    }
                    5 if !merges.is_empty() => {
                        let place = roll(merges.len() as u64) as usize;
                        let (version, merge, right) = merges.swap_remove(place);
                        let before = truth.0.len();
                        asked(&mut truth, version, &merge, right, roll(4) == 0);
                        late += u64::from(truth.0.len() < before);
                    }
                    // A leader reports by itself.
                    6 => {
                        let groups: Vec<u64> = truth.0.keys().copied().collect();
                        let group = groups[roll(groups.len() as u64) as usize];
                        if let Some(change) = learn(&world.ledger, group, &truth.0[&group], at_ms) {
                            world.ledger = change.applied_to(&world.ledger);
                        }
                        told(&mut world.ledger, &truth);
                    }
                    // A group is elsewhere, by a move that is over.
                    7 => {
                        let living = world.ledger.groups.values();
                        let living = living.filter(|it| it.tenant > 1 && !it.dead);
                        let free: Vec<u64> = living
                            .filter(|it| {
                                holder(&world.ledger, it.id).is_none() && it.membership_version > 0
                            })
                            .map(|it| it.id)
                            .collect();
                        let without = 1 + roll(4);
                        let on: Vec<u64> = (1..=4).filter(|node| *node != without).collect();
                        if let Some(group) = free.first() {
                            put_on(&mut world, *group, &on);
                        }
                    }
                    8 => {
                        if let Some(change) = go_on(&world.ledger, &inventory, now_ms()) {
                            world.ledger = change.applied_to(&world.ledger);
                        }
                    }
                    _ => {
                        let Some(operator) = running(&world.ledger) else { continue };
                        let ledger = &world.ledger;
                        match operators::next_step(ledger, &operator) {
                            // The executor dies before the question arrives, or before it has
                            // written the answer down.
                            Step::Cut(cut) if roll(2) == 0 => {
                                let version = ledger.range_version(operator.group);
                                match roll(2) {
                                    0 => cuts.push((operator.group, version, cut)),
                                    _ if truth.0.contains_key(&operator.group) => {
                                        drop(truth.asked(operator.group, version, &cut));
                                    }
                                    _ => {}
                                }
                            }
                            Step::Merge(merge) if merge.asked_ms > 0 && roll(2) == 0 => {
                                aligned(ledger, &operator, &merge);
                                let version = ledger.range_version(merge.left);
                                match roll(2) {
                                    0 => merges.push((version, merge, operator.group)),
                                    _ => {
                                        let fails = roll(2) == 0;
                                        asked(&mut truth, version, &merge, operator.group, fails);
                                    }
                                }
                            }
                            _ => step(&mut world.ledger, &mut truth, &operator, at_ms),
                        }
                    }
                }
                sound(&world.ledger, &format!("seed {seed}"));
                all = all.max(truth.0.len());
            }
            for (version, merge, right) in merges {
                let before = truth.0.len();
                asked(&mut truth, version, &merge, right, false);
                late += u64::from(truth.0.len() < before);
            }
            // The others report, and operators come to their end.
            for round in 0..120 {
                for (group, said) in truth.0.clone() {
                    if let Some(change) = learn(&world.ledger, group, &said, at_ms) {
                        world.ledger = change.applied_to(&world.ledger);
                    }
                }
                told(&mut world.ledger, &truth);
                if let Some(operator) = running(&world.ledger) {
                    at_ms += PATIENCE_MS / 8;
                    step(&mut world.ledger, &mut truth, &operator, at_ms);
                } else if let Some(change) = go_on(&world.ledger, &world.inventory(), now_ms()) {
                    world.ledger = change.applied_to(&world.ledger);
                } else if round > 3 {
                    break;
                }
            }
            let left = running(&world.ledger);
            assert!(left.is_none(), "seed {seed}: {left:?}");
            let starts = starts(&world.ledger);
            assert!(agree(&world.ledger, &truth), "seed {seed}: {starts:?} {truth:?}");
            made += all;
            gone += world.ledger.groups.values().filter(|group| group.dead).count();
        }
        let enough = made > 1500 && gone > 600 && cancelled > 250 && late > 30;
        assert!(enough, "{made} {gone} {cancelled} {late}");
    }
}
