//! A group that lost most of its voters for good goes on with one of its replicas: which one that
//! would be, what is lost with the others, and the order to do it. Pure.
//!
//! ```text
//!   the ledger: recovery ordered ──> the node's replica goes on alone ──> its leader reports
//!   nobody is removed yet            (members' version jumps)             who else has the group
//!                                                                         is behind, and drops it
//! ```
//!
//! The order is in the group's record before anything is done, and the replica's node carries it
//! out whenever it reads it (`view.rs`): whoever dies in between, the next one goes on from there,
//! and a replica that has the ordered version has nothing left to do. Until the group reports that
//! version the other replicas stay as they are, so that another one can be chosen if the first is
//! lost as well; afterwards all that know an older version are gone (`view::is_gone`). The number
//! of voters that the group had is brought up again by repairs.
//!
//! Members are those that placement has heard of. A replica that nobody leads tells them as well as a
//! leader (`view::has_news`): a group may have lost its majority by its newest change of members.
//!
//! An order may stand for long, because the chosen one is lost as well, or cannot do it. It is carried
//! out only while it is needed ([`is_needed`]). Are most well again before, then the command takes it
//! back, and nothing is lost.
//!
//! Invariants:
//! * while most voters are well nothing is ordered, and nothing is carried out;
//! * a node that was heard of a moment ago is not taken for lost unless an operator gave it up;
//! * no other one is chosen while the first may be about to go on, or has;
//! * what a later order says is above all that an earlier one said, version and revision, so it wins
//!   and no revision is given twice;
//! * of replicas that could go on, the one with the newest log is chosen, unless somebody says
//!   otherwise: all that was acknowledged and is left anywhere is in it, or in none.

use std::cmp::Reverse;

use proto::id;
use proto::limits::{RECOVERY_REVISIONS, RECOVERY_STEP};

use crate::command::{Answer, RecoveryView, Refusal, ReplicaView, refused};
use crate::health::{Health, Loss};
use crate::inventory::{Inventory, ReplicaReport};
use crate::ledger::{Change, Ledger};
use crate::nodes::{counted, words};
use crate::operators::{self, holder, voters};
use crate::record::{Group, Priority, Record, Recovery, Replica};
use crate::tenants::{Planned, owner};

/// How long a node must have been silent, in milliseconds, unless it was given up: one that is only
/// slow, or cut off for a moment, goes on serving.
const SILENCE_MS: u64 = 60_000;
/// How long an order is left to the one that was chosen and answers, in milliseconds.
const ORDER_MS: u64 = 30_000;

/// What an operator asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The group.
    pub group: u64,
    /// Name or id of the node whose replica is to go on; empty for the best.
    pub choose: &'a str,
    /// What is lost is accepted.
    pub accept_loss: bool,
}

/// Says what would be done, or orders it.
pub fn recover(ledger: &Ledger, inventory: &Inventory, wish: &Wish<'_>, now_ms: u64) -> Planned {
    let mut meta = ledger.meta.clone().ok_or(refused("the service is not set up yet"))?;
    let health = Health::of(ledger, inventory, now_ms);
    let found = ledger.groups.get(&wish.group).filter(|group| !group.dead);
    let group = found.ok_or_else(|| refused(format!("there is no group {}", wish.group)))?;
    check(ledger, inventory, &health, group, now_ms)?;
    if let Some(said) = under_way(ledger, inventory, &health, group, wish, now_ms)? {
        return Ok(said);
    }
    let chosen = choose(ledger, inventory, &health, group, wish.choose)?;
    let node = ledger.node_name(chosen.replica.node);
    if !wish.accept_loss {
        let view = preview(ledger, inventory, &health, group, &chosen);
        return Ok((Change::default(), Answer::Recovery(Box::new(view))));
    }
    check_silence(ledger, &health, group)?;
    let ReplicaReport { last_index, last_term, .. } = chosen.report;
    let why = format!(
        "recovery: {node} goes on alone, from entry {last_index} of term {last_term}; what only the \
         others had is lost"
    );
    let target = vec![chosen.replica.node];
    let operator = operators::begin(&mut meta, group, target, Priority::Repair, why, now_ms);
    let recovery = Recovery {
        node: chosen.replica.node,
        replica: chosen.replica.replica,
        version: version(inventory, group),
        revision: revision(inventory, group),
        at_ms: now_ms,
    };
    let ordered = Group { recovery: Some(recovery), ..Group::clone(group) };
    let mut change = Change::default();
    if let Some(holder) = holder(ledger, group.id) {
        let aside = operators::set_aside(ledger, holder, group.id, now_ms);
        change = change.put(Record::Operator(aside));
    }
    let change = change
        .put(Record::Operator(operator.clone()))
        .put(Record::Group(ordered))
        .put(Record::Meta(meta));
    let view = operators::view(&change.applied_to(ledger), &operator);
    Ok((change, Answer::Operators(vec![view])))
}

/// What nodes have said of the group's replicas just now.
fn told(inventory: &Inventory, group: u64) -> impl Iterator<Item = &ReplicaReport> {
    let told = inventory.replicas.range((group, 0)..=(group, u64::MAX));
    told.map(|(_, report)| report)
}

/// A version of the members above all that anybody can have counted.
fn version(inventory: &Inventory, group: &Group) -> u64 {
    let known = told(inventory, group.id).map(|report| report.membership_version);
    let ordered = group.recovery.iter().map(|recovery| recovery.version);
    let newest = known.chain(ordered).chain([group.membership_version]).max().unwrap_or(0);
    newest + RECOVERY_STEP
}

/// A revision above all that anybody can have given.
fn revision(inventory: &Inventory, group: &Group) -> i64 {
    let known = told(inventory, group.id).map(|report| report.revision);
    let ordered = group.recovery.iter().map(|recovery| recovery.revision);
    known.chain(ordered).max().unwrap_or(0) + RECOVERY_REVISIONS
}

/// Is the group one that needs this?
fn check(
    ledger: &Ledger,
    inventory: &Inventory,
    health: &Health<'_>,
    group: &Group,
    now_ms: u64,
) -> Result<(), Refusal> {
    let id = group.id;
    if id == id::SYSTEM_GROUP.0 {
        let said = "placement's own group answers, so there is nothing to recover. When it does not: \
                    atoll recover-ledger";
        return Err(refused(said));
    }
    if inventory.since_ms == 0 {
        return Err(refused("no node says that it leads placement: nothing is known of the nodes"));
    }
    if let Some(node) = unheard(ledger, inventory, health, group, now_ms) {
        return Err(refused(format!(
            "nothing has been heard of {node} yet: try again in a moment"
        )));
    }
    let (well, all) = health.count(group);
    if group.recovering().is_none() && 2 * well > all {
        // By other members most may be lost: placement hears of them next (`view::has_news`).
        let is_newer = |r: &ReplicaReport| r.membership_version > group.membership_version;
        if told(inventory, id).any(|report| report.leader == 0 && is_newer(report)) {
            return Err(refused(format!(
                "nobody leads group {id}, and its members have changed since placement heard of them: try \
                 again in a moment"
            )));
        }
        return Err(refused(format!(
            "group {id} has nothing to recover: {well} of its {} are well",
            counted(all, "replica")
        )));
    }
    Ok(())
}

/// Name of a node with a voter of which nobody can tell yet whether it is there.
fn unheard(
    ledger: &Ledger,
    inventory: &Inventory,
    health: &Health<'_>,
    group: &Group,
    now_ms: u64,
) -> Option<String> {
    let unheard = voters(group).find(|replica| {
        let node = replica.node;
        let known = ledger.nodes.contains_key(&node);
        known
            && inventory.fresh(node, now_ms).is_none()
            && !health.silent.contains(&node)
            && health.of_node(node).is_none()
    });
    unheard.map(|replica| ledger.node_name(replica.node))
}

/// Is a recovery that was ordered to be carried out now?
pub fn is_needed(ledger: &Ledger, inventory: &Inventory, group: u64, now_ms: u64) -> bool {
    let health = Health::of(ledger, inventory, now_ms);
    ledger.groups.get(&group).is_some_and(|group| {
        let (well, all) = health.count(group);
        let is_known =
            inventory.since_ms != 0 && unheard(ledger, inventory, &health, group, now_ms).is_none();
        is_known && 2 * well <= all
    })
}

/// Refuses while a node may only be slow.
fn check_silence(ledger: &Ledger, health: &Health<'_>, group: &Group) -> Result<(), Refusal> {
    let is_slow = |replica: &&Replica| {
        let node = replica.node;
        health.silent.contains(&node)
            && health.of_node(node) != Some(Loss::GivenUp)
            && health.silence_ms(node) < SILENCE_MS
    };
    let Some(slow) = voters(group).find(is_slow) else { return Ok(()) };
    let node = ledger.node_name(slow.node);
    Err(refused(format!(
        "{node} was heard of {} ago and may only be slow: it is taken for lost after {}, or when it is \
         given up with atoll node remove --force {node}",
        words(health.silence_ms(slow.node)),
        words(SILENCE_MS)
    )))
}

/// What is to be said of a recovery that was ordered and is not reported yet; `None` if another one
/// may be ordered.
fn under_way(
    ledger: &Ledger,
    inventory: &Inventory,
    health: &Health<'_>,
    group: &Group,
    wish: &Wish<'_>,
    now_ms: u64,
) -> Result<Option<(Change, Answer)>, Refusal> {
    let Some(ordered) = group.recovering() else { return Ok(None) };
    let name = ledger.node_name(ordered.node);
    let is_chosen = |r: &&Replica| (r.node, r.replica) == (ordered.node, ordered.replica);
    let Some(replica) = group.replicas.iter().find(is_chosen) else { return Ok(None) };
    let Ok(Survivor { report, .. }) = judge(inventory, health, group, replica) else {
        let is_mute = !inventory.replicas.contains_key(&(group.id, ordered.node));
        if is_mute && health.is_well(group.id, replica) {
            let said = format!("{name} was told to go on alone and does not answer now: try again");
            return Err(refused(said));
        }
        return Ok(None);
    };
    let has_gone_on = report.membership_version >= ordered.version;
    let (well, all) = health.count(group);
    let operator = holder(ledger, group.id);
    if !has_gone_on && 2 * well > all {
        let as_before = Group { recovery: None, ..Group::clone(group) };
        let change = Change::default().put(Record::Group(as_before));
        let over = operator.map(|operator| Record::Operator(operator.given_up(now_ms)));
        let change = over.into_iter().fold(change, Change::put);
        let said = format!(
            "{well} of {} of group {} are well again: what was ordered is taken back, nothing is lost",
            counted(all, "replica"),
            group.id
        );
        return Ok(Some((change, Answer::Done(said))));
    }
    let is_same = wish.choose.is_empty()
        || ledger.node(wish.choose).is_some_and(|node| node.id == ordered.node);
    let is_new = now_ms.saturating_sub(ordered.at_ms) < ORDER_MS;
    match operator {
        Some(operator) if is_same => {
            // It was said before.
            let view = operators::view(ledger, operator);
            Ok(Some((Change::default(), Answer::Operators(vec![view]))))
        }
        _ if has_gone_on => Err(refused(format!(
            "{name} has gone on alone: group {} has nothing to recover",
            group.id
        ))),
        _ if is_new => Err(refused(format!(
            "{name} was told to go on alone a moment ago, and answers: try again in {}",
            words(ORDER_MS)
        ))),
        _ => Ok(None),
    }
}

/// A replica that could go on alone.
#[derive(Clone, Copy, Debug)]
struct Survivor<'a> {
    replica: &'a Replica,
    report: &'a ReplicaReport,
}

/// Why a replica cannot go on alone, if it cannot; otherwise what it says of itself.
fn judge<'a>(
    inventory: &'a Inventory,
    health: &Health<'_>,
    group: &'a Group,
    replica: &'a Replica,
) -> Result<Survivor<'a>, String> {
    let node = replica.node;
    if let Some(reason) = health.quarantined(group.id, replica) {
        return Err(format!("quarantined: {reason}"));
    }
    if !health.is_node_well(node) {
        return Err(match health.of_node(node) {
            Some(Loss::GivenUp) => "its node was given up".to_owned(),
            Some(Loss::Emptied) => "its node has another data directory".to_owned(),
            _ => format!("its node is silent for {}", words(health.silence_ms(node))),
        });
    }
    let Some(report) = inventory.replicas.get(&(group.id, node)) else {
        return Err("its node does not answer now, or has no such replica".to_owned());
    };
    match report {
        ReplicaReport { quarantined: Some(reason), .. } => Err(format!("quarantined: {reason}")),
        ReplicaReport { replica: other, .. } if *other != replica.replica => {
            Err("its node has another replica of the group".to_owned())
        }
        ReplicaReport { is_hollow: true, .. } => Err("its rows are not there".to_owned()),
        _ => Ok(Survivor { replica, report }),
    }
}

fn choose<'a>(
    ledger: &Ledger,
    inventory: &'a Inventory,
    health: &Health<'_>,
    group: &'a Group,
    wanted: &str,
) -> Result<Survivor<'a>, Refusal> {
    if !wanted.is_empty() {
        let node = ledger.node(wanted);
        let node = node.ok_or_else(|| refused(format!("there is no node \"{wanted}\"")))?;
        let replica = group.replicas.iter().find(|replica| replica.node == node.id);
        let none = || refused(format!("group {} has no replica on \"{wanted}\"", group.id));
        return judge(inventory, health, group, replica.ok_or_else(none)?)
            .map_err(|why| refused(format!("the replica on \"{wanted}\" cannot go on: {why}")));
    }
    let is_mute = |replica: &&Replica| {
        let told = inventory.replicas.contains_key(&(group.id, replica.node));
        health.is_well(group.id, replica) && !told
    };
    if let Some(mute) = group.replicas.iter().find(is_mute) {
        return Err(refused(format!(
            "{} is well but does not say how far its replica is, and may have the newest log: try again, \
             or name the replica that is to go on with --choose",
            ledger.node_name(mute.node)
        )));
    }
    let judged = group.replicas.iter().map(|replica| judge(inventory, health, group, replica));
    best(judged.filter_map(Result::ok)).ok_or_else(|| {
        let why = group.replicas.iter().filter_map(|replica| {
            let why = judge(inventory, health, group, replica).err()?;
            Some(format!("{}: {why}", ledger.node_name(replica.node)))
        });
        let why: Vec<String> = why.collect();
        refused(format!("no replica of group {} can go on: {}", group.id, why.join("; ")))
    })
}

/// The one with the newest log; of equal ones a voter.
fn best<'a>(survivors: impl Iterator<Item = Survivor<'a>>) -> Option<Survivor<'a>> {
    survivors.max_by_key(|Survivor { replica, report }| {
        (report.last_term, report.last_index, !replica.learner, Reverse(replica.node))
    })
}

/// What is known of all replicas of a group.
pub(crate) fn replicas(
    ledger: &Ledger,
    inventory: &Inventory,
    health: &Health<'_>,
    group: &Group,
) -> Vec<ReplicaView> {
    let view = |replica: &Replica| {
        let judged = judge(inventory, health, group, replica);
        let report = inventory.replicas.get(&(group.id, replica.node));
        let report = report.filter(|report| report.replica == replica.replica);
        let report = report.cloned().unwrap_or_default();
        ReplicaView {
            node: ledger.node_name(replica.node),
            replica: replica.replica,
            learner: replica.learner,
            leads: judged.is_ok() && report.leader == replica.node,
            trouble: judged.err().unwrap_or_default(),
            term: report.term,
            last_term: report.last_term,
            last_index: report.last_index,
            committed: report.committed,
            applied: report.applied,
            revision: report.revision,
            size: report.size_bytes,
            membership_version: report.membership_version,
        }
    };
    group.replicas.iter().map(view).collect()
}

fn preview(
    ledger: &Ledger,
    inventory: &Inventory,
    health: &Health<'_>,
    group: &Group,
    chosen: &Survivor<'_>,
) -> RecoveryView {
    let ReplicaReport { last_index, last_term, revision, applied, .. } = *chosen.report;
    let node = ledger.node_name(chosen.replica.node);
    let (well, all) = health.count(group);
    let better = best(
        group.replicas.iter().filter_map(|r| judge(inventory, health, group, r).ok()),
    )
    .filter(|best| (best.report.last_term, best.report.last_index) > (last_term, last_index));
    let why = match better {
        Some(better) => format!(
            "{node} was named, but {} has a newer log: entry {} of term {}",
            ledger.node_name(better.replica.node),
            better.report.last_index,
            better.report.last_term
        ),
        None => format!(
            "{node} has the newest log of those that are left: entry {last_index} of term {last_term}"
        ),
    };
    let behind = last_index.saturating_sub(applied);
    let mut loss = format!(
        "Lost is what was acknowledged and stands only with the others: changes behind entry \
         {last_index}, which is revision {revision}{}. Nobody can tell how many those are.",
        match behind {
            0 => String::new(),
            1 => " with one entry that it has not applied yet".to_owned(),
            _ => format!(" with {behind} entries that it has not applied yet"),
        }
    );
    if let Some(ordered) = group.recovering().filter(|r| r.node != chosen.replica.node) {
        let before = ledger.node_name(ordered.node);
        loss +=
            &format!(" {before} was told to go on alone before: what it took since is lost too.");
    }
    RecoveryView {
        group: group.id,
        of: owner(ledger, group),
        well,
        all,
        replicas: replicas(ledger, inventory, health, group),
        chosen: node,
        why,
        loss,
        revision: self::revision(inventory, group).max(revision + RECOVERY_REVISIONS),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::nodes;
    use crate::operators::Step;
    use crate::record::{Meta, Node, NodeState, OperatorState};
    use crate::{repairs, view};
    use proto::{GroupId, NodeId};

    const GROUP: u64 = 7;
    const NOW: u64 = 1_000_000;

    /// Five nodes, and a group on the first three of them.
    fn ledger() -> Ledger {
        let node = |id: u64| Node {
            id,
            name: format!("n{id}"),
            peer_urls: Vec::new(),
            client_urls: Vec::new(),
            zone: String::new(),
            weight: 1,
            directory: 0,
            state: NodeState::Up,
            labels: Default::default(),
        };
        let founders: Vec<Node> = (1..=5).map(node).collect();
        let ledger = nodes::found(&Ledger::default(), 9, &founders, false)
            .expect("nobody has founded it")
            .applied_to(&Ledger::default());
        let replica = |node| Replica { node, replica: node, learner: false };
        let group = Group {
            id: GROUP,
            replicas: vec![replica(1), replica(2), replica(3)],
            membership_version: 4,
            ..Group::clone(&ledger.groups[&2])
        };
        let meta = Meta { next_group: 9, ..ledger.meta.clone().expect("it was founded") };
        let change = Change::default().put(Record::Group(group)).put(Record::Meta(meta));
        change.applied_to(&ledger)
    }

    /// These nodes answer, with replicas at these last entries; the rest is silent.
    fn heard(alive: &[u64], at: &[(u64, u64, u64)]) -> Inventory {
        let mut inventory = Inventory { since_ms: 1, ..Inventory::default() };
        for node in alive {
            let report = crate::inventory::NodeReport { heard_ms: NOW, ..Default::default() };
            inventory.nodes.insert(*node, report);
        }
        for (node, last_term, last_index) in at {
            let report = ReplicaReport {
                replica: *node,
                term: *last_term,
                last_term: *last_term,
                last_index: *last_index,
                applied: *last_index,
                revision: *last_index as i64,
                membership_version: 4,
                ..Default::default()
            };
            inventory.replicas.insert((GROUP, *node), report);
        }
        inventory
    }

    fn wish(choose: &str, accept_loss: bool) -> Wish<'_> {
        Wish { group: GROUP, choose, accept_loss }
    }

    fn ordered(ledger: &Ledger, inventory: &Inventory, choose: &str) -> Ledger {
        let (change, answer) =
            recover(ledger, inventory, &wish(choose, true), NOW).expect("it can be");
        assert!(matches!(answer, Answer::Operators(_)));
        change.applied_to(ledger)
    }

    fn refusal(planned: Planned) -> String {
        planned.expect_err("it is refused").to_string()
    }

    /// The chosen replica has gone on and says so.
    fn reported(ledger: &Ledger) -> Ledger {
        let recovery = ledger.groups[&GROUP].recovery.clone().expect("one was ordered");
        let alone = Replica { node: recovery.node, replica: recovery.replica, learner: false };
        let change = nodes::report(ledger, GROUP, recovery.version, &[alone], &[]);
        change.expect("it is new").applied_to(ledger)
    }

    #[test]
    fn a_group_with_a_majority_is_left_as_it_is() {
        let inventory = heard(&[1, 2, 4, 5], &[(1, 3, 9), (2, 3, 9)]);
        let why = refusal(recover(&ledger(), &inventory, &wish("", true), NOW));
        assert!(why.contains("nothing to recover: 2 of its 3 replicas are well"), "{why}");
    }

    /// Two of the three are well, but the group gave one of them away right before the third was lost.
    #[test]
    fn the_members_that_were_applied_last_count() {
        let mut inventory = heard(&[1, 2, 4, 5], &[(1, 3, 9), (2, 3, 8)]);
        inventory.replicas.get_mut(&(GROUP, 1)).expect("it is there").membership_version = 5;
        let why = refusal(recover(&ledger(), &inventory, &wish("", true), NOW));
        assert!(why.contains("its members have changed"), "{why}");
        assert!(view::has_news(&ledger().groups[&GROUP], NodeId(1), None, 5));
        let now = [1, 3].map(|node| Replica { node, replica: node, learner: false });
        let told = nodes::report(&ledger(), GROUP, 5, &now, &[]).expect("it is new");
        let after = ordered(&told.applied_to(&ledger()), &inventory, "");
        assert_eq!(after.groups[&GROUP].recovery.as_ref().map(|r| r.node), Some(1));
    }

    #[test]
    fn without_consent_it_is_only_told() {
        let inventory = heard(&[1, 4, 5], &[(1, 3, 9)]);
        let (change, answer) = recover(&ledger(), &inventory, &wish("", false), NOW).expect("told");
        assert!(change.is_empty());
        let Answer::Recovery(view) = answer else { panic!("{answer:?}") };
        assert_eq!((view.well, view.all, view.chosen.as_str()), (1, 3, "n1"));
        assert!(view.why.contains("entry 9 of term 3"), "{}", view.why);
        assert!(view.loss.contains("entry 9"), "{}", view.loss);
        let trouble: Vec<bool> = view.replicas.iter().map(|r| r.trouble.is_empty()).collect();
        assert_eq!(trouble, [true, false, false]);
    }

    #[test]
    fn the_newest_log_is_chosen_and_not_the_longest() {
        let ledger = on_five();
        let inventory = heard(&[1, 2], &[(1, 3, 90), (2, 4, 10)]);
        let after = ordered(&ledger, &inventory, "");
        assert_eq!(after.groups[&GROUP].recovery.as_ref().map(|r| r.node), Some(2));
        // Unless somebody says otherwise, and then it is said what that costs.
        let (_, answer) = recover(&ledger, &inventory, &wish("n1", false), NOW).expect("told");
        let Answer::Recovery(view) = answer else { panic!("{answer:?}") };
        assert!(view.why.contains("n2 has a newer log"), "{}", view.why);
        let after = ordered(&ledger, &inventory, "n1");
        assert_eq!(after.groups[&GROUP].recovery.as_ref().map(|r| r.node), Some(1));
    }

    #[test]
    fn what_is_lost_damaged_or_hollow_is_not_chosen() {
        let mut inventory = heard(&[1, 2, 4, 5], &[(1, 9, 90), (2, 3, 9)]);
        let report = inventory.nodes.get_mut(&1).expect("it answers");
        let damaged = Some("rot".to_owned());
        let group = crate::inventory::GroupReport { quarantined: damaged, ..Default::default() };
        report.groups.insert(GROUP, group);
        let after = ordered(&ledger(), &inventory, "");
        assert_eq!(after.groups[&GROUP].recovery.as_ref().map(|r| r.node), Some(2));
        for (node, why) in [("n1", "quarantined: rot"), ("n3", "silent"), ("n4", "no replica")] {
            let said = refusal(recover(&ledger(), &inventory, &wish(node, true), NOW));
            assert!(said.contains(why), "{said}");
        }
        inventory.replicas.get_mut(&(GROUP, 2)).expect("it is there").is_hollow = true;
        let said = refusal(recover(&ledger(), &inventory, &wish("", true), NOW));
        assert!(said.contains("n2: its rows are not there"), "{said}");
    }

    #[test]
    fn nothing_is_ordered_while_a_node_may_only_not_have_been_heard_yet() {
        let mut inventory = heard(&[1, 4, 5], &[(1, 3, 9)]);
        inventory.since_ms = NOW - 1;
        let said = refusal(recover(&ledger(), &inventory, &wish("", true), NOW));
        assert!(said.contains("nothing has been heard of n2 yet"), "{said}");
        let said = refusal(recover(&ledger(), &Inventory::default(), &wish("", true), NOW));
        assert!(said.contains("no node says that it leads placement"), "{said}");
    }

    #[test]
    fn the_order_is_carried_out_by_the_node_and_nobody_goes_before_it_is() {
        let inventory = heard(&[1, 4, 5], &[(1, 3, 9)]);
        let after = ordered(&ledger(), &inventory, "");
        let has = |_| Some(1);
        let duties = view::duties(&after, NodeId(1), has);
        assert_eq!(duties.recoveries.len(), 1);
        assert_eq!(duties.recoveries[0].revision, 9 + RECOVERY_REVISIONS);
        assert_eq!(view::duties(&after, NodeId(2), |_| Some(2)).recoveries, []);
        let operator = holder(&after, GROUP).expect("one works on it").clone();
        assert_eq!(operators::next_step(&after, &operator), Step::Recover(1));
        let gone =
            |ledger: &Ledger, node| view::is_gone(&ledger.groups[&GROUP], NodeId(node), node, 4);
        assert!(!gone(&after, 2) && !gone(&after, 3));
        // A late word of those who were members before changes nothing any more.
        let others = [2, 3].map(|node| Replica { node, replica: node, learner: false });
        assert!(nodes::report(&after, GROUP, 5, &others, &[]).is_none());
        let done = reported(&after);
        assert_eq!(view::duties(&done, NodeId(1), has).recoveries, []);
        assert!(gone(&done, 2) && gone(&done, 3));
        assert_eq!(operators::next_step(&done, &operator), Step::Done);
        assert!(!view::may_take_part(&done, GroupId(GROUP), NodeId(2), 2, 4));
    }

    #[test]
    fn an_order_can_be_repeated_and_another_one_wins() {
        let inventory = heard(&[1, 2], &[(1, 3, 9), (2, 3, 8)]);
        let first = ordered(&on_five(), &inventory, "");
        let (change, answer) = recover(&first, &inventory, &wish("", true), NOW).expect("again");
        assert!(change.is_empty() && matches!(answer, Answer::Operators(_)), "it is under way");
        // The chosen one is lost before it has said anything.
        let later = heard(&[2], &[(2, 3, 8)]);
        let second = ordered(&first, &later, "");
        let [old, new] = [&first, &second].map(|l| l.groups[&GROUP].recovery.clone().unwrap());
        assert!(new.version > old.version && new.revision >= old.revision + RECOVERY_REVISIONS);
        let running = second.operators.values().filter(|o| o.state == OperatorState::Running);
        assert_eq!(running.count(), 1);
        // It had gone on, and comes back.
        let alone = [Replica { node: 1, replica: 1, learner: false }];
        assert!(nodes::report(&second, GROUP, old.version, &alone, &[]).is_none());
        let done = reported(&second);
        assert!(view::is_gone(&done.groups[&GROUP], NodeId(1), 1, old.version));
    }

    /// The group on all five nodes.
    fn on_five() -> Ledger {
        let mut five = ledger();
        let group = Arc::make_mut(five.groups.get_mut(&GROUP).expect("it is there"));
        group.replicas.extend([4, 5].map(|node| Replica { node, replica: node, learner: false }));
        five
    }

    /// All that answer have been heard at another time.
    fn heard_at(mut inventory: Inventory, at_ms: u64) -> Inventory {
        inventory.nodes.values_mut().for_each(|report| report.heard_ms = at_ms);
        inventory
    }

    #[test]
    fn a_node_that_may_only_be_slow_is_not_taken_for_lost() {
        let mut inventory = heard(&[1, 2, 4, 5], &[(1, 3, 9)]);
        inventory.nodes.get_mut(&2).expect("it was heard").heard_ms = NOW - 12_000;
        assert!(recover(&ledger(), &inventory, &wish("", false), NOW).is_ok(), "it is told");
        let said = refusal(recover(&ledger(), &inventory, &wish("", true), NOW));
        assert!(said.contains("n2 was heard of 12 s ago and may only be slow"), "{said}");
        inventory.nodes.get_mut(&2).expect("it was heard").heard_ms = NOW - SILENCE_MS;
        ordered(&ledger(), &inventory, "");
        // Or somebody knows better.
        inventory.nodes.get_mut(&2).expect("it was heard").heard_ms = NOW - 12_000;
        let mut given_up = ledger();
        let node = given_up.nodes.get_mut(&2).expect("it is there");
        *node = Node { state: NodeState::Lost, ..Node::clone(node) };
        ordered(&given_up, &inventory, "");
    }

    #[test]
    fn one_that_is_well_and_does_not_say_how_far_it_is_may_be_the_best() {
        let inventory = heard(&[1, 2], &[(1, 3, 9)]);
        let said = refusal(recover(&on_five(), &inventory, &wish("", true), NOW));
        assert!(said.contains("n2 is well but does not say"), "{said}");
        ordered(&on_five(), &inventory, "n1");
    }

    #[test]
    fn no_other_one_is_chosen_while_the_first_may_be_about_to_go_on() {
        let mut inventory = heard(&[1, 2], &[(1, 3, 9), (2, 3, 8)]);
        let first = ordered(&on_five(), &inventory, "n1");
        let said = refusal(recover(&first, &inventory, &wish("n2", true), NOW));
        assert!(said.contains("n1 was told to go on alone a moment ago"), "{said}");
        let mute = heard(&[1, 2], &[(2, 3, 8)]);
        let said = refusal(recover(&first, &mute, &wish("", true), NOW));
        assert!(said.contains("n1 was told to go on alone and does not answer now"), "{said}");
        let later_ms = NOW + ORDER_MS;
        inventory = heard_at(inventory, later_ms);
        let (_, told) = recover(&first, &inventory, &wish("n2", false), later_ms).expect("told");
        let Answer::Recovery(view) = told else { panic!("{told:?}") };
        assert!(view.loss.contains("what it took since is lost too"), "{}", view.loss);
        assert!(recover(&first, &inventory, &wish("n2", true), later_ms).is_ok(), "it cannot");
        let version = first.groups[&GROUP].recovery.as_ref().map_or(0, |r| r.version);
        inventory.replicas.get_mut(&(GROUP, 1)).expect("it is there").membership_version = version;
        let said = refusal(recover(&first, &inventory, &wish("n2", true), later_ms));
        assert!(said.contains("n1 has gone on alone"), "{said}");
    }

    #[test]
    fn an_order_that_is_not_needed_any_more_is_not_carried_out_and_taken_back() {
        let alone = heard(&[1, 4, 5], &[(1, 3, 9)]);
        let after = ordered(&ledger(), &alone, "");
        assert!(is_needed(&after, &alone, GROUP, NOW));
        let mut new_leader = alone.clone();
        new_leader.since_ms = NOW - 1;
        assert!(!is_needed(&after, &new_leader, GROUP, NOW), "who knows");
        assert!(!is_needed(&after, &Inventory::default(), GROUP, NOW), "who knows");
        let back = heard(&[1, 2, 3, 4, 5], &[(1, 3, 9), (2, 3, 9), (3, 3, 9)]);
        assert!(!is_needed(&after, &back, GROUP, NOW));
        assert!(!view::may_take_part(&after, GroupId(GROUP), NodeId(2), 2, 4));
        let (change, answer) = recover(&after, &back, &wish("", false), NOW).expect("it is well");
        assert!(matches!(answer, Answer::Done(_)), "{answer:?}");
        let whole = change.applied_to(&after);
        assert_eq!(whole.groups[&GROUP].recovering(), None);
        assert!(holder(&whole, GROUP).is_none());
        assert!(view::may_take_part(&whole, GroupId(GROUP), NodeId(2), 2, 4));
        // Not when it was carried out, and placement only has not heard of it.
        let mut gone_on = back.clone();
        let version = after.groups[&GROUP].recovery.as_ref().map_or(0, |r| r.version);
        gone_on.replicas.get_mut(&(GROUP, 1)).expect("it is there").membership_version = version;
        let (change, _) = recover(&after, &gone_on, &wish("", false), NOW).expect("it is done");
        assert!(change.is_empty());
    }

    #[test]
    fn repairs_bring_as_many_voters_as_there_were() {
        let inventory = heard(&[1, 4, 5], &[(1, 3, 9)]);
        let after = ordered(&ledger(), &inventory, "");
        assert!(repairs::plan(&after, &inventory, NOW).is_none_or(|change| {
            holder(&change.applied_to(&after), GROUP).map(|o| o.id)
                == holder(&after, GROUP).map(|o| o.id)
        }));
        let done = reported(&after);
        assert_eq!(done.groups[&GROUP].wanted, 3);
        let operator = holder(&done, GROUP).expect("it is not written down yet").id;
        let over = operators::finish(&done, operator, false, NOW).expect("it is over");
        let done = over.applied_to(&done);
        let grown = repairs::plan(&done, &inventory, NOW).expect("it is short").applied_to(&done);
        let repair = holder(&grown, GROUP).expect("a repair");
        assert_eq!(repair.target, [1, 4, 5]);
        // One other node is no help: two voters stand no more losses than one.
        let alone = heard(&[1, 4], &[]);
        let planned = repairs::plan(&done, &alone, NOW);
        assert!(planned.is_none_or(|change| holder(&change.applied_to(&done), GROUP).is_none()));
        let whole = [1, 4, 5].map(|node| Replica { node, replica: node, learner: false });
        let version = done.groups[&GROUP].membership_version + 4;
        let whole = nodes::report(&done, GROUP, version, &whole, &[]).expect("it is new");
        assert_eq!(whole.applied_to(&done).groups[&GROUP].wanted, 0);
    }

    #[test]
    fn placements_own_group_is_not_recovered_by_placement() {
        let inventory = heard(&[1, 2, 3, 4, 5], &[]);
        let wish = Wish { group: id::SYSTEM_GROUP.0, choose: "", accept_loss: true };
        let said = refusal(recover(&ledger(), &inventory, &wish, NOW));
        assert!(said.contains("recover-ledger"), "{said}");
    }
}
