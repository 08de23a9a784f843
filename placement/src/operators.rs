//! Operators: fenced work on one group, towards the nodes where it is to be. Pure.
//!
//! An operator says only where the group is to end up. Its next step is read off the group's
//! members as their leader last reported them, never off memory: whoever executes, and however
//! often, goes on from what is. A step is refused by the group when its members are others than
//! the step was made for.
//!
//! ```text
//!   a recovery that was ordered    -> the replica goes on alone, and its node sees to it
//!   a replica that is lost         -> remove it
//!   a learner that is wanted       -> promote it        (refused until it has caught up)
//!   a learner that is not          -> remove it
//!   more voters than wanted        -> remove one that is not wanted
//!   a wanted node without replica  -> add a learner there
//!   a wanted leader                -> hand over to it   (nothing to do for one that leads)
//!   otherwise                      -> done
//! ```
//!
//! One that cuts the group's keys (`splits.rs`) leaves the members alone. One that merges
//! (`merges.rs`) brings the group to the nodes of its left neighbour, and then has that one take its
//! keys.
//!
//! So a group never has more than one voter above its number, and fewer only while one that is lost
//! and did not count for anything is replaced.
//!
//! At the same time there is one operator a group; one that merges holds two. A stronger one takes the
//! place of a weaker one, which may be given up after any step: each leaves the group whole. One that
//! has asked for something to be done to keys has to see first what has become of that.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{Answer, OperatorView, Refusal, refused};
use crate::ledger::{Change, Ledger};
use crate::record::{
    Cut, Group, Merge, Meta, Node, NodeState, Operator, OperatorState, Priority, Record, Replica,
    TenantState, text,
};
use crate::ring;
use crate::tenants::Planned;
use crate::{merges, splits};

/// Operators that may run at a time.
pub const RUNNING_MAX: usize = 8;
/// Replicas that a node may be brought at a time.
pub const TAKING_MAX: usize = 4;
/// Finished operators that are kept to be shown.
const KEPT: usize = 500;

/// What is to be done next for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give the node a learner.
    Add(u64),
    /// Make a learner a voter.
    Promote(Replica),
    /// Remove a replica.
    Remove(Replica),
    /// Have the node lead, and that is all.
    Lead(u64),
    /// Wait until the node's replica has gone on without the others.
    Recover(u64),
    /// Cut the group's keys.
    Cut(Cut),
    /// Find out whether they were cut, which is not asked for any more.
    Settle(Cut),
    /// Have the left neighbour take the group's keys.
    Merge(Merge),
    /// Find out whether it took them, which is not asked for any more.
    SettleMerge(Merge),
    /// Take it back: the groups are not any more what it was begun for.
    Withdraw,
    /// Nothing: the group is where it is to be.
    Done,
    /// Nothing: the group is no more.
    Void,
}

/// The next step of an operator.
pub fn next_step(ledger: &Ledger, operator: &Operator) -> Step {
    let Some(group) = ledger.groups.get(&operator.group).filter(|group| !group.dead) else {
        return Step::Void;
    };
    if let Some(recovery) = group.recovering() {
        return Step::Recover(recovery.node);
    }
    if operator.is_split() {
        return splits::next_step(ledger, operator);
    }
    if let Some(merge) = &operator.merge {
        return merges::next_step(ledger, group, operator, merge);
    }
    move_step(ledger, group, operator)
}

/// What brings a group to the nodes that its operator wants.
pub(crate) fn move_step(ledger: &Ledger, group: &Group, operator: &Operator) -> Step {
    if let Some(lost) = lost(group, operator) {
        return Step::Remove(lost.clone());
    }
    let is_wanted = |replica: &&Replica| operator.target.contains(&replica.node);
    let learners = || group.replicas.iter().filter(|replica| replica.learner);
    if let Some(learner) = learners().find(|r| !is_wanted(r) && !is_users(ledger, r)) {
        return Step::Remove(learner.clone());
    }
    if let Some(learner) = learners().find(is_wanted) {
        return Step::Promote(learner.clone());
    }
    if voters(group).count() > operator.target.len()
        && let Some(extra) = voters(group).find(|replica| !is_wanted(replica))
    {
        return Step::Remove(extra.clone());
    }
    let has = |node: u64| group.replicas.iter().any(|replica| replica.node == node);
    match operator.target.iter().find(|node| !has(**node)) {
        Some(node) => Step::Add(*node),
        None if operator.leader != 0 => Step::Lead(operator.leader),
        None => Step::Done,
    }
}

/// Is it a learner that a user added with etcd's command, by its number, and that may stay? Not on
/// a node that is to be empty.
fn is_users(ledger: &Ledger, replica: &Replica) -> bool {
    replica.learner && replica.replica == replica.node && !is_draining(ledger, replica.node)
}

fn is_draining(ledger: &Ledger, node: u64) -> bool {
    ledger.nodes.get(&node).is_some_and(|node| node.state == NodeState::Draining)
}

/// The replicas that vote.
pub(crate) fn voters(group: &Group) -> impl Iterator<Item = &Replica> {
    group.replicas.iter().filter(|replica| !replica.learner)
}

/// A replica that is lost for this operator and still a member; one that votes first.
fn lost<'a>(group: &'a Group, operator: &Operator) -> Option<&'a Replica> {
    let lost = group.replicas.iter().filter(|replica| operator.lost.contains(&replica.replica));
    lost.min_by_key(|replica| replica.learner)
}

/// The steps of which one is to be taken next: of the replicas that are to go one may not go yet,
/// for the sake of the quorum. None when the operator is at its end.
pub fn choices(ledger: &Ledger, operator: &Operator) -> Vec<Step> {
    match (next_step(ledger, operator), ledger.groups.get(&operator.group)) {
        (Step::Done | Step::Void, _) | (_, None) => Vec::new(),
        (Step::Remove(_), Some(group)) => removals(ledger, group, operator),
        (step, Some(_)) => vec![step],
    }
}

/// All removals that an operator may begin with.
pub(crate) fn removals(ledger: &Ledger, group: &Group, operator: &Operator) -> Vec<Step> {
    if let Some(lost) = lost(group, operator) {
        return vec![Step::Remove(lost.clone())];
    }
    let is_extra = |replica: &&Replica| !operator.target.contains(&replica.node);
    let extra = group.replicas.iter().filter(is_extra);
    let extra = extra.filter(|replica| !is_users(ledger, replica));
    extra.map(|replica| Step::Remove(replica.clone())).collect()
}

/// All operators that are not over, worked on or waiting for their turn.
pub fn ongoing(ledger: &Ledger) -> impl Iterator<Item = &Operator> {
    ledger.operators.values().filter(|operator| operator.state == OperatorState::Running)
}

/// The operators that are to be worked on now, strongest first. Left out is what a silent node
/// would have to take, and what would be more for one node to take than it may at a time.
pub fn running(ledger: &Ledger) -> Vec<&Operator> {
    let mut waiting: Vec<&Operator> = ongoing(ledger).collect();
    waiting.sort_by_key(|operator| (operator.priority, operator.id));
    let mut taking: BTreeMap<u64, usize> = BTreeMap::new();
    let has_turn = |operator: &&Operator| {
        let (Step::Add(node) | Step::Promote(Replica { node, .. })) = next_step(ledger, operator)
        else {
            return true;
        };
        let count = taking.entry(node).or_default();
        let free = *count < TAKING_MAX && !ledger.silent.contains(&node);
        *count += usize::from(free);
        free
    };
    waiting.into_iter().filter(has_turn).take(RUNNING_MAX).collect()
}

/// The operator that works on a group.
pub fn holder(ledger: &Ledger, group: u64) -> Option<&Operator> {
    let running = |o: &&Operator| o.state == OperatorState::Running && o.holds(group);
    ledger.operators.values().find(running)
}

/// Operators that make way for others in one change. The same one may be in the way twice, of either
/// of the groups that it holds: that it is over counts.
#[derive(Debug, Default)]
pub(crate) struct Displaced(BTreeMap<u64, Operator>);

impl Displaced {
    pub(crate) fn add(&mut self, displaced: Option<Operator>) {
        let Some(operator) = displaced else { return };
        let known = self.0.get(&operator.id);
        if known.is_none_or(|known| known.state == OperatorState::Running) {
            self.0.insert(operator.id, operator);
        }
    }

    pub(crate) fn put(self, change: Change) -> Change {
        self.0.into_values().map(Record::Operator).fold(change, Change::put)
    }
}

/// Makes room for an operator of `priority` on a group: the end of a weaker one, which needs no
/// more than that, since the next one goes on from the members that are. One that was to merge the
/// group's right neighbour into it puts that one in order first. Refused when a stronger or equal one
/// works there, or one that has asked for something: it must see what has become of that.
pub fn displace(
    ledger: &Ledger,
    group: u64,
    priority: Priority,
    now_ms: u64,
) -> Result<Option<Operator>, Refusal> {
    match holder(ledger, group) {
        None => Ok(None),
        Some(weaker) if weaker.yields_to(priority) && !weaker.has_asked() => {
            Ok(Some(set_aside(ledger, weaker, group, now_ms)))
        }
        Some(holder) => {
            let (id, why) = (holder.id, &holder.why);
            Err(refused(format!("operator {id} works on group {group}: {why}")))
        }
    }
}

/// The operator that holds a group without it: over, unless it has to put in order what it moved of
/// the group's right neighbour.
pub(crate) fn set_aside(ledger: &Ledger, holder: &Operator, group: u64, now_ms: u64) -> Operator {
    match holder.group == group || holder.has_asked() {
        true => holder.given_up(now_ms),
        false => take_back(ledger, holder, now_ms),
    }
}

/// A new operator without anything lost.
pub(crate) fn begin(
    meta: &mut Meta,
    group: &Group,
    target: Vec<u64>,
    priority: Priority,
    why: String,
    now_ms: u64,
) -> Operator {
    let id = meta.next_operator;
    meta.next_operator += 1;
    Operator {
        id,
        group: group.id,
        target,
        lost: Vec::new(),
        leader: 0,
        priority,
        why,
        cuts: Vec::new(),
        merge: None,
        given_up_ms: 0,
        state: OperatorState::Running,
        begun_ms: now_ms,
        ended_ms: 0,
    }
}

/// An operator has done its work, or there is nothing left to work on.
pub fn finish(ledger: &Ledger, id: u64, void: bool, now_ms: u64) -> Option<Change> {
    let operator = ledger.operators.get(&id)?;
    let state = match (&operator.state, void) {
        (OperatorState::Running, true) => OperatorState::Void,
        (OperatorState::Running, false) if operator.cancelled() => OperatorState::Cancelled,
        (OperatorState::Running, false) => OperatorState::Done,
        _ => return None,
    };
    let ended = Operator { state, ended_ms: now_ms, ..operator.clone() };
    let mut change = Change::default().put(Record::Operator(ended));
    let is_over = |o: &&Operator| o.state != OperatorState::Running;
    let over: Vec<u64> = ledger.operators.values().filter(is_over).map(|o| o.id).collect();
    for old in over.iter().take(over.len().saturating_sub(KEPT)) {
        change = change.remove(crate::record::operator_key(*old));
    }
    Some(change)
}

/// An operator that is taken back: the group stays with the voters that it has.
pub(crate) fn taken_back(ledger: &Ledger, operator: &Operator) -> Operator {
    let group = ledger.groups.get(&operator.group);
    let voters = group.into_iter().flat_map(|group| voters(group));
    let mut target: Vec<u64> = voters.map(|replica| replica.node).collect();
    // One voter too many is the one that was to go.
    while target.len() > operator.target.len() {
        let extra = target.iter().rposition(|node| !operator.target.contains(node));
        target.remove(extra.unwrap_or(target.len() - 1));
    }
    Operator { target, leader: 0, why: operator.why_back(), lost: Vec::new(), ..operator.clone() }
}

/// An operator of any kind that is taken back: it ends when what it did is whole, and known.
pub(crate) fn take_back(ledger: &Ledger, operator: &Operator, now_ms: u64) -> Operator {
    match operator {
        split if split.is_split() => splits::taken_back(split, now_ms),
        merge if merge.merge.is_some() => merges::taken_back(ledger, merge, now_ms),
        other => taken_back(ledger, other),
    }
}

/// Takes an operator back.
pub fn cancel(ledger: &Ledger, id: u64, now_ms: u64) -> Planned {
    let operator = ledger.operators.get(&id);
    let operator = operator.ok_or_else(|| refused(format!("there is no operator {id}")))?;
    if operator.state != OperatorState::Running {
        return Err(refused(format!("operator {id} is over")));
    }
    if operator.priority == Priority::Repair {
        return Err(refused(format!("operator {id} replaces what is lost: it goes on")));
    }
    let operator = take_back(ledger, operator, now_ms);
    let answer = Answer::Operators(vec![view(ledger, &operator)]);
    Ok((Change::default().put(Record::Operator(operator)), answer))
}

/// Moves all groups of a tenant to the nodes that are named.
pub fn move_tenant(ledger: &Ledger, name: &str, to: &[String], now_ms: u64) -> Planned {
    let mut meta = ledger.meta.clone().ok_or(refused("the service is not set up yet"))?;
    let tenant = ledger.tenant(name);
    let tenant = tenant.ok_or_else(|| refused(format!("there is no tenant \"{name}\"")))?;
    if tenant.state == TenantState::Deleted {
        return Err(refused(format!("tenant \"{name}\" is deleted")));
    }
    let target = chosen(ledger, to)?;
    let elsewhere = |id: &&u64| ledger.nodes.get(id).is_some_and(|node| !tenant.fits(node));
    if let Some(node) = target.iter().find(elsewhere) {
        let node = ledger.node_name(*node);
        return Err(refused(format!("tenant \"{name}\" is pinned to other nodes than \"{node}\"")));
    }
    let mut change = Change::default();
    let mut views = Vec::new();
    let mut ended = Displaced::default();
    for group in ledger.groups.values().filter(|g| g.tenant == tenant.id && !g.dead) {
        let displaced = displace(ledger, group.id, Priority::User, now_ms)?;
        let target: Vec<u64> = target.iter().copied().collect();
        let why = format!("move tenant {name}");
        let operator = begin(&mut meta, group, target, Priority::User, why, now_ms);
        if next_step(ledger, &operator) != Step::Done {
            views.push(view(ledger, &operator));
            if group.wanted > 0 {
                // Somebody says how many there are to be from now on.
                change = change.put(Record::Group(Group { wanted: 0, ..Group::clone(group) }));
            }
            ended.add(displaced);
            change = change.put(Record::Operator(operator));
        }
    }
    if views.is_empty() {
        return Ok((Change::default(), Answer::Done(format!("tenant {name} is there already"))));
    }
    Ok((ended.put(change).put(Record::Meta(meta)), Answer::Operators(views)))
}

fn chosen(ledger: &Ledger, names: &[String]) -> Result<BTreeSet<u64>, Refusal> {
    let mut target = BTreeSet::new();
    for name in names {
        let node = ledger.node(name);
        let node = node.ok_or_else(|| refused(format!("there is no node \"{name}\"")))?;
        if node.state != NodeState::Up {
            return Err(refused(format!("node \"{name}\" takes nothing new: uncordon it first")));
        }
        if ledger.silent.contains(&node.id) {
            return Err(refused(format!("node \"{name}\" does not answer")));
        }
        target.insert(node.id);
    }
    if target.len().is_multiple_of(2) || target.len() > 7 {
        let count = target.len();
        return Err(refused(format!("{count} different nodes are named: name 1, 3, 5 or 7")));
    }
    Ok(target)
}

/// What drained nodes ask for: each group that is on one, and that nobody works on, goes where the
/// ring proposes. `None` when there is nothing to begin.
pub fn plan_drains(ledger: &Ledger, now_ms: u64) -> Option<Change> {
    let ahead = ongoing(ledger).filter(|operator| !operator.yields_to(Priority::Drain)).count();
    let mut room = RUNNING_MAX.saturating_sub(ahead);
    let mut meta = ledger.meta.clone()?;
    let mut change = Change::default();
    let mut ended = Displaced::default();
    for group in ledger.groups.values().filter(|group| !group.dead) {
        let leaving = group.replicas.iter().find(|replica| is_draining(ledger, replica.node));
        let Some(leaving) = leaving.filter(|_| room > 0) else { continue };
        let Some(target) = without(ledger, group, leaving.node) else { continue };
        let Ok(displaced) = displace(ledger, group.id, Priority::Drain, now_ms) else {
            ended.add(merges::stopped(ledger, group.id, Priority::Drain, now_ms));
            continue;
        };
        let node = ledger.nodes.get(&leaving.node).map_or("", |node| &node.name);
        let why = drain_of(node);
        let operator = begin(&mut meta, group, target, Priority::Drain, why, now_ms);
        ended.add(displaced);
        change = change.put(Record::Operator(operator));
        room -= 1;
    }
    let change = ended.put(change);
    (!change.is_empty()).then(|| change.put(Record::Meta(meta)))
}

/// What an operator is for that empties a node.
pub(crate) fn drain_of(node: &str) -> String {
    format!("drain node {node}")
}

/// The group's nodes with another one in the place of `node`; `None` if there is no other.
pub(crate) fn without(ledger: &Ledger, group: &Group, node: u64) -> Option<Vec<u64>> {
    let stay: Vec<u64> = voters(group).map(|replica| replica.node).filter(|n| *n != node).collect();
    // A learner, or one voter too many, left behind by an operator that was taken back.
    let votes = voters(group).any(|replica| replica.node == node);
    if !votes || voters(group).count().is_multiple_of(2) {
        return Some(stay);
    }
    let next = one_more(ledger, group.id, &stay, |other| other != node)?;
    Some(stay.into_iter().chain([next]).collect())
}

/// A node for a group beside those that it is on: in another zone, if there is one.
pub(crate) fn one_more(
    ledger: &Ledger,
    group: u64,
    stay: &[u64],
    fits: impl Fn(u64) -> bool,
) -> Option<u64> {
    let zones: BTreeSet<&str> =
        stay.iter().filter_map(|id| ledger.nodes.get(id)).map(|n| n.zone.as_str()).collect();
    let pinned =
        |node: &Node| ledger.groups.get(&group).is_none_or(|g| ledger.fits(g.tenant, node));
    let others = ledger.answering().filter(|n| !stay.contains(&n.id) && fits(n.id) && pinned(n));
    let proposed = ring::propose(others, group, ledger.nodes.len());
    let apart = |node: &&&Node| node.zone.is_empty() || !zones.contains(node.zone.as_str());
    Some(proposed.iter().find(apart).or(proposed.first())?.id)
}

/// Groups that are to leave a drained node and fit on no other: whoever leads them there had better
/// not. Each with its other voters.
pub fn stranded(ledger: &Ledger) -> Vec<(&Group, u64, Vec<u64>)> {
    let mut stranded = Vec::new();
    for node in ledger.nodes.values().filter(|node| node.state == NodeState::Draining) {
        for group in ledger.groups.values().filter(|group| !group.dead) {
            let is_here = voters(group).any(|replica| replica.node == node.id);
            if is_here
                && holder(ledger, group.id).is_none()
                && without(ledger, group, node.id).is_none()
            {
                let others = voters(group).map(|replica| replica.node);
                stranded.push((&**group, node.id, others.filter(|n| *n != node.id).collect()));
            }
        }
    }
    stranded
}

/// One operator, or all.
pub fn show(ledger: &Ledger, id: Option<u64>) -> Result<Answer, Refusal> {
    let shown: Vec<&Operator> = match id {
        Some(id) => {
            let found = ledger.operators.get(&id);
            vec![found.ok_or_else(|| refused(format!("there is no operator {id}")))?]
        }
        None => ledger.operators.values().rev().collect(),
    };
    Ok(Answer::Operators(shown.into_iter().map(|operator| view(ledger, operator)).collect()))
}

/// An operator as people see it.
pub(crate) fn view(ledger: &Ledger, operator: &Operator) -> OperatorView {
    let name = |node: &u64| ledger.node_name(*node);
    let rest = operator.merge.as_ref().map_or_else(Vec::new, |merge| merge.rest.clone());
    let step = match next_step(ledger, operator) {
        _ if operator.state == OperatorState::Done && !rest.is_empty() => {
            format!("then the cut at {}", rest.join(", "))
        }
        _ if operator.state != OperatorState::Running => String::new(),
        Step::Add(node) => format!("add a learner on {}", name(&node)),
        Step::Promote(replica) => format!("let {} catch up and vote", name(&replica.node)),
        Step::Remove(replica) => format!("remove {}", name(&replica.node)),
        Step::Lead(node) => format!("hand over to {}", name(&node)),
        Step::Recover(node) => format!("{} goes on alone", name(&node)),
        Step::Cut(cut) => format!("group {} begins at {}", cut.child, text::of(&cut.at)),
        Step::Settle(cut) => format!("see whether it was cut at {}", text::of(&cut.at)),
        Step::Merge(merge) => format!("group {} takes its keys", merge.left),
        Step::SettleMerge(merge) => format!("see whether group {} took its keys", merge.left),
        Step::Withdraw => "take it back: the groups are others now".to_owned(),
        Step::Done | Step::Void => "finish".to_owned(),
    };
    OperatorView {
        id: operator.id,
        group: operator.group,
        target: operator.target.iter().map(name).collect(),
        why: operator.why.clone(),
        state: operator.state,
        step,
        begun_ms: operator.begun_ms,
        ended_ms: operator.ended_ms,
        rest,
        next: operator.merge.as_ref().map_or(0, |merge| merge.next),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tenants::tests::founded;
    use crate::{nodes, tenants};

    /// Does to the group what a step says, as its leader would report it.
    pub(crate) fn carry_out(ledger: &Ledger, operator: &Operator, step: &Step) -> Ledger {
        let group = &ledger.groups[&operator.group];
        let mut replicas = group.replicas.clone();
        match step {
            Step::Add(node) => {
                // Never one that was there before.
                let number = 1_000 + group.membership_version;
                replicas.push(Replica { node: *node, replica: number, learner: true });
            }
            Step::Promote(which) => {
                let found = replicas.iter_mut().find(|r| r.replica == which.replica);
                found.expect("it is a replica").learner = false;
            }
            Step::Remove(which) => replicas.retain(|r| r.replica != which.replica),
            Step::Lead(_)
            | Step::Recover(_)
            | Step::Cut(_)
            | Step::Settle(_)
            | Step::Merge(_)
            | Step::SettleMerge(_)
            | Step::Withdraw
            | Step::Done
            | Step::Void => return ledger.clone(),
        }
        let version = group.membership_version + 1;
        let change = nodes::report(ledger, group.id, version, &replicas, &[]);
        change.expect("it is newer").applied_to(ledger)
    }

    /// Executes all operators to their end; gives the number of steps.
    fn execute(ledger: &mut Ledger) -> usize {
        for steps in 0..200 {
            let Some(operator) = running(ledger).first().map(|o| (*o).clone()) else {
                return steps;
            };
            let step = next_step(ledger, &operator);
            let group = &ledger.groups[&operator.group];
            let voters = group.replicas.iter().filter(|replica| !replica.learner).count();
            assert!((3..=4).contains(&voters), "{voters} voters before {step:?}");
            if step == Step::Done {
                let change = finish(ledger, operator.id, false, 7).expect("it was running");
                *ledger = change.applied_to(ledger);
            } else {
                *ledger = carry_out(ledger, &operator, &step);
            }
        }
        panic!("operators do not come to an end");
    }

    fn nodes_of(ledger: &Ledger, group: u64) -> Vec<u64> {
        let mut nodes: Vec<u64> = ledger.groups[&group].replicas.iter().map(|r| r.node).collect();
        nodes.sort_unstable();
        nodes
    }

    #[test]
    fn a_tenant_moves_one_replica_at_a_time() {
        let ledger = founded();
        let mut ledger = tenants::create(&ledger, "acme", 0, 0).unwrap().0.applied_to(&ledger);
        let group = *ledger.groups.keys().last().unwrap();
        for to in [["n1", "n2", "n4"], ["n4", "n3", "n2"], ["n1", "n2", "n3"]] {
            let names: Vec<String> = to.iter().map(|name| (*name).to_owned()).collect();
            let (change, _) = move_tenant(&ledger, "acme", &names, 5).expect("it can move");
            ledger = change.applied_to(&ledger);
            execute(&mut ledger);
            let mut wanted: Vec<u64> =
                names.iter().map(|name| ledger.node(name).unwrap().id).collect();
            wanted.sort_unstable();
            assert_eq!(nodes_of(&ledger, group), wanted);
        }
    }

    #[test]
    fn a_drained_node_is_empty_in_the_end() {
        let mut ledger = founded();
        for name in ["a", "b", "c"] {
            ledger = tenants::create(&ledger, name, 0, 0).unwrap().0.applied_to(&ledger);
        }
        let (change, _) = nodes::set_state(&ledger, "n2", NodeState::Draining).unwrap();
        ledger = change.applied_to(&ledger);
        while let Some(change) = plan_drains(&ledger, 5) {
            ledger = change.applied_to(&ledger);
            execute(&mut ledger);
        }
        let left = ledger.groups.values().flat_map(|g| &g.replicas).filter(|r| r.node == 2);
        assert_eq!(left.count(), 0);
        assert!(ledger.groups.values().all(|group| group.replicas.len() == 3));
    }

    #[test]
    fn a_cancelled_move_keeps_the_voters_it_has() {
        let ledger = founded();
        let mut ledger = tenants::create(&ledger, "acme", 0, 0).unwrap().0.applied_to(&ledger);
        let group = *ledger.groups.keys().last().unwrap();
        let before = nodes_of(&ledger, group);
        let there: Vec<String> =
            (1..=4).filter(|id| *id != before[0]).map(|id| format!("n{id}")).collect();
        let (change, _) = move_tenant(&ledger, "acme", &there, 5).unwrap();
        ledger = change.applied_to(&ledger);
        let operator = running(&ledger)[0].clone();
        ledger = carry_out(&ledger, &operator, &next_step(&ledger, &operator));
        ledger = cancel(&ledger, operator.id, 6).unwrap().0.applied_to(&ledger);
        execute(&mut ledger);
        assert_eq!(nodes_of(&ledger, group), before);
        assert_eq!(ledger.operators[&operator.id].state, OperatorState::Cancelled);
    }

    #[test]
    fn a_node_takes_so_many_replicas_at_a_time() {
        let mut ledger = founded();
        for number in 0..40 {
            let name = format!("t{number}");
            ledger = tenants::create(&ledger, &name, 0, 0).unwrap().0.applied_to(&ledger);
        }
        let mut meta = ledger.meta.clone().expect("it is founded");
        let mut change = Change::default();
        for group in ledger.groups.values().filter(|g| !nodes_of(&ledger, g.id).contains(&4)) {
            let why = "all to one".to_owned();
            let operator = begin(&mut meta, group, vec![1, 2, 4], Priority::User, why, 5);
            change = change.put(Record::Operator(operator));
        }
        ledger = change.applied_to(&ledger);
        assert!(ongoing(&ledger).count() > TAKING_MAX, "there is more than it may take");
        let takes = |ledger: &Ledger, node: u64| {
            let step = |operator: &&Operator| match next_step(ledger, operator) {
                Step::Add(to) | Step::Promote(Replica { node: to, .. }) => to == node,
                _ => false,
            };
            running(ledger).into_iter().filter(step).count()
        };
        assert_eq!(takes(&ledger, 4), TAKING_MAX);
        let quiet = ledger.with_silent(BTreeSet::from([4])).into_owned();
        assert_eq!(takes(&quiet, 4), 0, "nothing is brought to a silent node");
        execute(&mut ledger);
        assert!(ledger.groups.keys().all(|group| nodes_of(&ledger, *group).contains(&4)));
    }

    #[test]
    fn a_drain_takes_a_group_over_and_a_user_does_not_take_it_back() {
        let ledger = founded();
        let mut ledger = tenants::create(&ledger, "acme", 0, 0).unwrap().0.applied_to(&ledger);
        let group = *ledger.groups.keys().last().unwrap();
        let from = nodes_of(&ledger, group);
        let there: Vec<String> =
            (1..=4).filter(|id| *id != from[0]).map(|id| format!("n{id}")).collect();
        ledger = move_tenant(&ledger, "acme", &there, 5).unwrap().0.applied_to(&ledger);
        let moved = running(&ledger)[0].id;
        let leaves = format!("n{}", from[1]);
        let drained = nodes::set_state(&ledger, &leaves, NodeState::Draining).unwrap().0;
        ledger = drained.applied_to(&ledger);
        ledger = plan_drains(&ledger, 6).expect("it is drained").applied_to(&ledger);
        assert_eq!(ledger.operators[&moved].state, OperatorState::Cancelled);
        let held = holder(&ledger, group).expect("the drain has it");
        assert_eq!(held.priority, Priority::Drain);
        let home: Vec<String> =
            from.iter().filter(|id| **id != from[1]).map(|id| format!("n{id}")).take(1).collect();
        assert!(move_tenant(&ledger, "acme", &home, 7).is_err());
    }

    #[test]
    fn a_drain_takes_the_voter_that_is_too_many_and_adds_none() {
        let ledger = founded();
        let mut ledger = tenants::create(&ledger, "acme", 0, 0).unwrap().0.applied_to(&ledger);
        let group = *ledger.groups.keys().last().unwrap();
        let mut replicas = ledger.groups[&group].replicas.clone();
        let nodes = nodes_of(&ledger, group);
        let fourth = (1..=4).find(|id| !nodes.contains(id)).expect("there are four nodes");
        replicas.push(Replica { node: fourth, replica: 9, learner: false });
        ledger = nodes::report(&ledger, group, 5, &replicas, &[]).unwrap().applied_to(&ledger);
        let name = format!("n{fourth}");
        ledger =
            nodes::set_state(&ledger, &name, NodeState::Draining).unwrap().0.applied_to(&ledger);
        let change = plan_drains(&ledger, 5).expect("a group is on it");
        ledger = change.applied_to(&ledger);
        let operator = running(&ledger).into_iter().find(|o| o.group == group).unwrap().clone();
        assert_eq!(next_step(&ledger, &operator), Step::Remove(replicas[3].clone()));
        ledger = carry_out(&ledger, &operator, &Step::Remove(replicas[3].clone()));
        assert_eq!(next_step(&ledger, &operator), Step::Done);
        assert_eq!(nodes_of(&ledger, group), nodes);
    }

    /// It was passed over by every drain, which then brought a voter more instead.
    #[test]
    fn a_drain_takes_away_a_learner_that_a_user_added_and_adds_none() {
        let ledger = founded();
        let mut ledger = tenants::create(&ledger, "acme", 0, 0).unwrap().0.applied_to(&ledger);
        let group = *ledger.groups.keys().last().unwrap();
        let mut replicas = ledger.groups[&group].replicas.clone();
        let nodes = nodes_of(&ledger, group);
        let fourth = (1..=4).find(|id| !nodes.contains(id)).expect("there are four nodes");
        replicas.push(Replica { node: fourth, replica: fourth, learner: true });
        ledger = nodes::report(&ledger, group, 5, &replicas, &[]).unwrap().applied_to(&ledger);
        let name = format!("n{fourth}");
        ledger =
            nodes::set_state(&ledger, &name, NodeState::Draining).unwrap().0.applied_to(&ledger);
        while let Some(change) = plan_drains(&ledger, 5) {
            ledger = change.applied_to(&ledger);
            assert!(execute(&mut ledger) > 0);
        }
        assert_eq!(nodes_of(&ledger, group), nodes);
        assert!(nodes_of(&ledger, group).iter().all(|node| *node != fourth));
    }

    #[test]
    fn two_operators_do_not_hold_one_group() {
        let ledger = founded();
        let ledger = tenants::create(&ledger, "acme", 0, 0).unwrap().0.applied_to(&ledger);
        let names = |list: [&str; 3]| list.map(str::to_owned).to_vec();
        let all = [names(["n1", "n2", "n3"]), names(["n2", "n3", "n4"])];
        let moved = all.iter().find_map(|to| {
            let (change, _) = move_tenant(&ledger, "acme", to, 5).ok()?;
            (!change.is_empty()).then(|| change.applied_to(&ledger))
        });
        let ledger = moved.expect("one of the two is another place");
        let again = all.iter().map(|to| move_tenant(&ledger, "acme", to, 5));
        assert!(again.into_iter().all(|planned| planned.is_err()));
    }
}
