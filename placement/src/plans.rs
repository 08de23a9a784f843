//! Plans to even the load out: made, applied, taken back, and judged by what they led to. Pure.
//!
//! A plan is a row of the ledger. Whoever applies it says which one, and only the newest can be
//! applied, for [`LIFE_MS`]. Each of its moves has the members that it was planned for as its
//! precondition and is dropped, with a reason, when they are others. [`tend`] begins its moves as
//! operators, a few at a time, and writes down what came of them: whoever calls it goes on from
//! what the ledger says. A while after the end the nodes are measured, so that the prediction can
//! be held against what happened.
//!
//! Balancing by itself is the same: `tend` makes a plan and applies it, when nothing else is done.

use crate::balance::{self, BEGIN, Cluster, STOP, spread};
use crate::command::{
    Answer, BalanceView, MoveView, NodeLoadView, PlanState, PlanView, Refusal, refused,
};
use crate::inventory::Inventory;
use crate::ledger::{Change, Ledger};
use crate::operators;
use crate::record::{
    Fate, Meta, Move, NodeLoad, NodeState, Operator, OperatorState, Plan, Priority, Record,
};
use crate::tenants::Planned;

/// How long a plan can be applied, in milliseconds.
pub const LIFE_MS: u64 = 600_000;
/// Moves of a plan that an operator asks for.
const MOVES: usize = 200;
/// Moves of a plan that is made without one.
const MOVES_ALONE: usize = 50;
/// Leaders, and replicas, that are moved at a time.
const LEADS_AT_ONCE: usize = 4;
const REPLICAS_AT_ONCE: usize = 4;
/// A move that is not over by then is taken back; in milliseconds.
const MOVE_MS: u64 = 600_000;
/// A move that could not be begun by then is dropped; in milliseconds since the plan was applied.
const BEGUN_MS: u64 = 1_800_000;
/// Time after the end of a plan until the nodes are measured, in milliseconds.
const SETTLE_MS: u64 = 15_000;
/// Pause between two plans that are made without an operator, in milliseconds.
const PAUSE_MS: u64 = 60_000;
/// Plans that are kept.
const KEPT: usize = 30;
/// Who applies what is made without an operator.
const ITSELF: &str = "atoll";

fn meta(ledger: &Ledger) -> Result<Meta, Refusal> {
    ledger.meta.clone().ok_or(refused("the service is not set up yet: try again in a moment"))
}

fn plan(ledger: &Ledger, version: u64) -> Result<&Plan, Refusal> {
    let found = ledger.plans.get(&version);
    found.ok_or_else(|| refused(format!("there is no plan {version}")))
}

/// The plan that is being carried out.
fn running(ledger: &Ledger) -> Option<&Plan> {
    ledger.plans.values().find(|plan| plan.applied_ms != 0 && plan.ended_ms == 0)
}

/// A new plan as a change of the ledger, and old ones that go for it.
fn store(ledger: &Ledger, mut meta: Meta, plan: Plan) -> Change {
    meta.last_plan = plan.version;
    let old = ledger.plans.values().filter(|plan| plan.applied_ms == 0 || plan.ended_ms != 0);
    let over = (ledger.plans.len() + 1).saturating_sub(KEPT);
    let change = Change::default().put(Record::Meta(meta)).put(Record::Plan(plan));
    old.take(over).fold(change, |change, old| change.remove(crate::record::plan_key(old.version)))
}

fn percent(thousandths: i64) -> String {
    format!("{}%", (thousandths + if thousandths < 0 { -5 } else { 5 }) / 10)
}

/// Makes a plan and stores it.
pub fn make(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Planned {
    let meta = meta(ledger)?;
    let proposal = balance::propose(ledger, inventory, now_ms, MOVES);
    let proposal = proposal.map_err(|unknown| refused(unknown.to_string()))?;
    let over = spread(&proposal.before);
    if proposal.moves.is_empty() {
        let mut said = match over < BEGIN {
            true => format!(
                "nothing to do: no node is over the mean by more than {} (moves begin at {})",
                percent(over.max(0)),
                percent(BEGIN)
            ),
            false => "no move helps".to_owned(),
        };
        for stays in &proposal.stays {
            said.push_str(&format!("\n{stays}"));
        }
        return Ok((Change::default(), Answer::Done(said)));
    }
    let plan = drawn(&meta, proposal, now_ms);
    let answer = Answer::Plan(Box::new(view(ledger, &plan, now_ms)));
    Ok((store(ledger, meta, plan), answer))
}

fn drawn(meta: &Meta, proposal: balance::Proposal, now_ms: u64) -> Plan {
    let (over, after) = (spread(&proposal.before), spread(&proposal.after));
    Plan {
        version: meta.last_plan + 1,
        made_ms: now_ms,
        by: String::new(),
        why: format!(
            "the worst node is {} over the mean, {} after these moves",
            percent(over),
            percent(after)
        ),
        applied_ms: 0,
        ended_ms: 0,
        moves: proposal.moves,
        before: proposal.before,
        predicted: proposal.after,
        measured: Vec::new(),
        stays: proposal.stays,
    }
}

/// Why a move cannot be made now, if it cannot.
fn hindrance(
    ledger: &Ledger,
    inventory: &Inventory,
    planned: &Move,
    now_ms: u64,
) -> Option<String> {
    let Some(group) = ledger.groups.get(&planned.group).filter(|group| !group.dead) else {
        return Some("its group is no more".to_owned());
    };
    if group.membership_version != planned.membership_version {
        return Some("its members have changed since".to_owned());
    }
    if let Some(holder) = operators::holder(ledger, planned.group) {
        return Some(format!("operator {} works on it: {}", holder.id, holder.why));
    }
    let name = ledger.node_name(planned.to);
    let Some(node) = ledger.nodes.get(&planned.to) else {
        return Some(format!("node {name} is no more"));
    };
    if node.state != NodeState::Up {
        return Some(format!("node {name} takes nothing new"));
    }
    if inventory.since_ms != 0 && inventory.fresh(planned.to, now_ms).is_none() {
        return Some(format!("node {name} does not answer"));
    }
    let moves = !group.replicas.iter().any(|replica| replica.node == planned.to);
    (moves && !ledger.fits(group.tenant, node))
        .then(|| format!("its tenant is pinned to other nodes than {name}"))
}

/// Has the newest plan carried out.
pub fn apply(
    ledger: &Ledger,
    inventory: &Inventory,
    version: u64,
    by: &str,
    now_ms: u64,
) -> Planned {
    let mut plan = plan(ledger, version)?.clone();
    let newest = meta(ledger)?.last_plan;
    if plan.applied_ms != 0 {
        return Err(refused(format!("plan {version} was applied before")));
    }
    if version != newest {
        return Err(refused(format!("plan {version} is not the newest: that is {newest}")));
    }
    if now_ms >= plan.made_ms + LIFE_MS {
        let why = format!("plan {version} is older than ten minutes: make a new one");
        return Err(refused(why));
    }
    if let Some(other) = running(ledger) {
        let other = other.version;
        return Err(refused(format!("plan {other} is being carried out: wait for its end")));
    }
    for planned in &mut plan.moves {
        if let Some(why) = hindrance(ledger, inventory, planned, now_ms) {
            planned.fate = Fate::Dropped(why);
        }
    }
    if plan.moves.iter().all(|planned| planned.fate != Fate::Waiting) {
        let why = format!("no move of plan {version} can be made any more: make a new one");
        return Err(refused(why));
    }
    plan.applied_ms = now_ms;
    plan.by = if by.is_empty() { "somebody".to_owned() } else { by.to_owned() };
    let answer = Answer::Plan(Box::new(view(ledger, &plan, now_ms)));
    Ok((Change::default().put(Record::Plan(plan)), answer))
}

/// Has moves carried out that somebody wants for another reason than balance.
pub(crate) fn begun(
    ledger: &Ledger,
    inventory: &Inventory,
    proposal: balance::Proposal,
    why: String,
    by: &str,
    now_ms: u64,
) -> Planned {
    let meta = meta(ledger)?;
    if let Some(other) = running(ledger) {
        let other = other.version;
        return Err(refused(format!("plan {other} is being carried out: wait for its end")));
    }
    // The nodes with all that they do, not only with what is moved.
    let mut cluster = Cluster::new(ledger, inventory, now_ms);
    let mut standings = |moves: &[Move]| -> Result<Vec<NodeLoad>, Refusal> {
        let cluster = cluster.as_mut().map_err(|unknown| refused(unknown.to_string()))?;
        cluster.play(moves);
        Ok(cluster.standings())
    };
    let (before, predicted) = (standings(&[])?, standings(&proposal.moves)?);
    let plan = Plan {
        by: if by.is_empty() { "somebody".to_owned() } else { by.to_owned() },
        why,
        applied_ms: now_ms,
        before,
        predicted,
        ..drawn(&meta, proposal, now_ms)
    };
    let answer = Answer::Plan(Box::new(view(ledger, &plan, now_ms)));
    Ok((store(ledger, meta, plan), answer))
}

/// Plans to take back what a plan has moved.
pub fn revert(ledger: &Ledger, inventory: &Inventory, version: u64, now_ms: u64) -> Planned {
    let meta = meta(ledger)?;
    let before = plan(ledger, version)?;
    if before.applied_ms == 0 {
        return Err(refused(format!("plan {version} was not applied: there is nothing to revert")));
    }
    if before.ended_ms == 0 {
        return Err(refused(format!("plan {version} is being carried out: wait for its end")));
    }
    let mut moves = Vec::new();
    let mut stays = Vec::new();
    for made in before.moves.iter().rev().filter(|planned| planned.fate == Fate::Done) {
        let Some(group) = ledger.groups.get(&made.group) else { continue };
        let name = ledger.group_name(group);
        let mut there: Vec<u64> = group.replicas.iter().map(|replica| replica.node).collect();
        let mut left: Vec<u64> = made.target.clone();
        there.sort_unstable();
        left.sort_unstable();
        if there != left {
            stays.push(format!("{name} stays: it was moved again since"));
            continue;
        }
        let lead_only = made.target.contains(&made.from);
        let mut target = made.target.clone();
        for node in target.iter_mut().filter(|node| !lead_only && **node == made.to) {
            *node = made.from;
        }
        let back = Move {
            membership_version: group.membership_version,
            from: made.to,
            to: made.from,
            target,
            leader: if made.leader == 0 { 0 } else { made.from },
            why: format!("{name} goes back from where plan {version} has put it"),
            fate: Fate::Waiting,
            ..made.clone()
        };
        match hindrance(ledger, inventory, &back, now_ms) {
            Some(why) => stays.push(format!("{name} stays: {why}")),
            None => moves.push(back),
        }
    }
    if moves.is_empty() {
        let mut why = format!("plan {version} has nothing to take back");
        for stays in stays {
            why.push_str(&format!("; {stays}"));
        }
        return Err(refused(why));
    }
    // Without numbers it can be taken back all the same, but nothing is predicted.
    let (mut now, mut predicted) = (Vec::new(), Vec::new());
    if let Ok(mut cluster) = Cluster::new(ledger, inventory, now_ms) {
        now = cluster.standings();
        cluster.play(&moves);
        predicted = cluster.standings();
    }
    let plan = Plan {
        version: meta.last_plan + 1,
        made_ms: now_ms,
        by: String::new(),
        why: format!("takes back what plan {version} has moved"),
        applied_ms: 0,
        ended_ms: 0,
        moves,
        before: now,
        predicted,
        measured: Vec::new(),
        stays,
    };
    let answer = Answer::Plan(Box::new(view(ledger, &plan, now_ms)));
    Ok((store(ledger, meta, plan), answer))
}

/// Stops what is being balanced at its next safe point, and begins nothing more by itself.
pub fn pause(ledger: &Ledger, now_ms: u64) -> Planned {
    let meta = Meta { balance_paused: true, ..meta(ledger)? };
    let mut change = Change::default().put(Record::Meta(meta));
    let mut stopped = 0;
    for operator in ledger.operators.values() {
        if operator.state == OperatorState::Running && operator.priority == Priority::Balance {
            let back = operators::take_back(ledger, operator, now_ms);
            change = change.put(Record::Operator(back));
            stopped += 1;
        }
    }
    if let Some(plan) = running(ledger) {
        let mut plan = plan.clone();
        for planned in plan.moves.iter_mut().filter(|planned| planned.fate == Fate::Waiting) {
            planned.fate = Fate::Dropped("balancing was paused".to_owned());
        }
        let under_way = |planned: &Move| matches!(planned.fate, Fate::Begun(_));
        if !plan.moves.iter().any(under_way) {
            plan.ended_ms = now_ms;
        }
        change = change.put(Record::Plan(plan));
    }
    let said = match stopped {
        0 => "nothing is balanced by itself until atoll rebalance resume".to_owned(),
        _ => format!(
            "{stopped} moves stop at their next safe point; nothing is balanced by itself until \
             atoll rebalance resume"
        ),
    };
    Ok((change, Answer::Done(said)))
}

/// Ends a pause.
pub fn resume(ledger: &Ledger) -> Planned {
    let meta = Meta { balance_paused: false, ..meta(ledger)? };
    let said = format!("nodes are balanced when one is {} over the mean", percent(BEGIN));
    Ok((Change::default().put(Record::Meta(meta)), Answer::Done(said)))
}

/// What is to be written next for the sake of balance: moves of the plan that is carried out are
/// begun and ended, a plan that is over is judged, a new one is made when it is time. `None` when
/// there is nothing to do.
pub fn tend(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Option<Change> {
    if let Some(plan) = running(ledger) {
        return carry_on(ledger, inventory, plan, now_ms);
    }
    judge(ledger, inventory, now_ms).or_else(|| begin_alone(ledger, inventory, now_ms))
}

fn carry_on(ledger: &Ledger, inventory: &Inventory, before: &Plan, now_ms: u64) -> Option<Change> {
    let mut meta = ledger.meta.clone()?;
    let mut plan = before.clone();
    let mut change = Change::default();
    let (mut leads, mut replicas) = (0, 0);
    let is_lead = |planned: &Move| planned.target.contains(&planned.from);
    for planned in &mut plan.moves {
        let Fate::Begun(id) = planned.fate else { continue };
        let operator = ledger.operators.get(&id);
        match operator.map(|operator| operator.state) {
            Some(OperatorState::Done) => planned.fate = Fate::Done,
            Some(OperatorState::Void) => {
                planned.fate = Fate::Dropped("its group is no more".to_owned());
            }
            None | Some(OperatorState::Cancelled) => {
                planned.fate = Fate::Dropped("it was taken back".to_owned());
            }
            Some(OperatorState::Running) => {
                let counted = if is_lead(planned) { &mut leads } else { &mut replicas };
                *counted += 1;
                if let Some(operator) = operator.filter(|operator| !operator.cancelled())
                    && is_lost(ledger, inventory, operator, planned, now_ms)
                {
                    let back = operators::taken_back(ledger, operator);
                    change = change.put(Record::Operator(back));
                }
            }
        }
    }
    for planned in plan.moves.iter_mut().filter(|planned| planned.fate == Fate::Waiting) {
        if now_ms >= before.applied_ms + BEGUN_MS {
            planned.fate = Fate::Dropped("the numbers it was planned on are old".to_owned());
            continue;
        }
        if let Some(why) = hindrance(ledger, inventory, planned, now_ms) {
            planned.fate = Fate::Dropped(why);
            continue;
        }
        let (counted, most) = match is_lead(planned) {
            true => (&mut leads, LEADS_AT_ONCE),
            false => (&mut replicas, REPLICAS_AT_ONCE),
        };
        if *counted >= most {
            continue;
        }
        *counted += 1;
        let Some(group) = ledger.groups.get(&planned.group) else { continue };
        let why = format!("plan {}: {}", before.version, planned.why);
        let target = planned.target.clone();
        let mut operator =
            operators::begin(&mut meta, group, target, Priority::Balance, why, now_ms);
        operator.leader = planned.leader;
        planned.fate = Fate::Begun(operator.id);
        change = change.put(Record::Operator(operator));
    }
    let is_over = |planned: &Move| matches!(planned.fate, Fate::Done | Fate::Dropped(_));
    if plan.moves.iter().all(is_over) {
        plan.ended_ms = now_ms;
    }
    if plan == *before && change.is_empty() {
        return None;
    }
    Some(change.put(Record::Plan(plan)).put(Record::Meta(meta)))
}

/// Is there no hope that a move comes to its end?
fn is_lost(
    ledger: &Ledger,
    inventory: &Inventory,
    operator: &Operator,
    planned: &Move,
    now_ms: u64,
) -> bool {
    let up = ledger.nodes.get(&planned.to).is_some_and(|node| node.state == NodeState::Up);
    let silent = inventory.since_ms != 0 && inventory.fresh(planned.to, now_ms).is_none();
    !up || silent || now_ms >= operator.begun_ms + MOVE_MS
}

/// Measures the nodes a while after the end of a plan.
fn judge(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Option<Change> {
    let waits = |plan: &&Plan| plan.ended_ms != 0 && plan.measured.is_empty();
    let plan = ledger.plans.values().rev().find(waits)?;
    let time = plan.ended_ms + SETTLE_MS..plan.ended_ms + LIFE_MS;
    if !time.contains(&now_ms) {
        return None;
    }
    let measured = Cluster::new(ledger, inventory, now_ms).ok()?.standings();
    (!measured.is_empty())
        .then(|| Change::default().put(Record::Plan(Plan { measured, ..plan.clone() })))
}

/// A plan that nobody has asked for, when one is needed and nothing else is going on.
fn begin_alone(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Option<Change> {
    let meta = ledger.meta.clone().filter(|meta| !meta.balance_paused)?;
    let busy = |operator: &Operator| operator.state == OperatorState::Running;
    // Somebody looks at a plan, or the last one has just ended.
    let recent = |plan: &Plan| match plan.applied_ms {
        0 => plan.version == meta.last_plan && now_ms < plan.made_ms + LIFE_MS,
        _ => now_ms < plan.ended_ms + PAUSE_MS,
    };
    if ledger.operators.values().any(busy) || ledger.plans.values().any(recent) {
        return None;
    }
    let proposal = balance::propose(ledger, inventory, now_ms, MOVES_ALONE).ok()?;
    if proposal.moves.is_empty() {
        return None;
    }
    let mut plan = drawn(&meta, proposal, now_ms);
    plan.applied_ms = now_ms;
    plan.by = ITSELF.to_owned();
    Some(store(ledger, meta, plan))
}

/// How the nodes stand, and what is being done about it.
pub fn show(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Answer {
    let paused = ledger.meta.as_ref().is_some_and(|meta| meta.balance_paused);
    let plan = running(ledger).map(|plan| view(ledger, plan, now_ms));
    let mut shown = BalanceView { paused, plan, ..BalanceView::default() };
    match Cluster::new(ledger, inventory, now_ms) {
        Err(unknown) => shown.verdict = format!("Nothing is known: {unknown}."),
        Ok(cluster) => {
            let standings = cluster.standings();
            shown.spread = spread(&standings);
            shown.heaviest = cluster.heaviest();
            shown.nodes = loads(ledger, &standings, &[], &[]);
            shown.verdict = verdict(shown.spread);
        }
    }
    Answer::Balance(Box::new(shown))
}

fn verdict(spread: i64) -> String {
    let over = percent(spread.max(0));
    if spread < STOP {
        format!("The load is even: no node is more than {over} over the mean.")
    } else if spread < BEGIN {
        let begin = percent(BEGIN);
        format!(
            "The load is even enough: the worst node is {over} over the mean, moves begin at {begin}."
        )
    } else {
        format!("The load is uneven: the worst node is {over} over the mean.")
    }
}

/// A plan with the reason of each move; the newest without a number.
pub fn explain(ledger: &Ledger, version: Option<u64>, now_ms: u64) -> Result<Answer, Refusal> {
    let newest = ledger.plans.keys().last().copied();
    let Some(version) = version.or(newest) else {
        return Err(refused("there is no plan yet: atoll rebalance plan makes one"));
    };
    Ok(Answer::Explained(Box::new(view(ledger, plan(ledger, version)?, now_ms))))
}

/// The plans that were applied, newest first.
pub fn history(ledger: &Ledger, now_ms: u64) -> Answer {
    let applied = ledger.plans.values().rev().filter(|plan| plan.applied_ms != 0);
    Answer::Plans(applied.map(|plan| view(ledger, plan, now_ms)).collect())
}

fn loads(
    ledger: &Ledger,
    before: &[NodeLoad],
    predicted: &[NodeLoad],
    measured: &[NodeLoad],
) -> Vec<NodeLoadView> {
    let of = |list: &[NodeLoad], node: u64| list.iter().find(|it| it.node == node).cloned();
    let load = |before: &NodeLoad| NodeLoadView {
        name: ledger.node_name(before.node),
        now: before.clone(),
        predicted: of(predicted, before.node),
        measured: of(measured, before.node),
    };
    before.iter().map(load).collect()
}

fn view(ledger: &Ledger, plan: &Plan, now_ms: u64) -> PlanView {
    let is_over = |planned: &&Move| matches!(planned.fate, Fate::Done | Fate::Dropped(_));
    let over = plan.moves.iter().filter(is_over).count();
    let done = plan.moves.iter().filter(|planned| planned.fate == Fate::Done).count();
    let state = match (plan.applied_ms, plan.ended_ms) {
        (0, _) if now_ms >= plan.made_ms + LIFE_MS => PlanState::Expired,
        (0, _) => PlanState::Made,
        (_, 0) => PlanState::Running,
        _ => PlanState::Over,
    };
    let moves = plan.moves.iter().map(|planned| MoveView {
        group: planned.group,
        of: ledger.groups.get(&planned.group).map_or_else(String::new, |g| ledger.group_name(g)),
        from: ledger.node_name(planned.from),
        to: ledger.node_name(planned.to),
        lead_only: planned.target.contains(&planned.from),
        bytes: planned.bytes,
        why: planned.why.clone(),
        fate: planned.fate.clone(),
    });
    let known = |list: &[NodeLoad]| (!list.is_empty()).then(|| spread(list));
    let took_ms = now_ms.saturating_sub(plan.applied_ms);
    let left = (plan.moves.len() - over) as u64;
    PlanView {
        version: plan.version,
        state,
        made_ms: plan.made_ms,
        applied_ms: plan.applied_ms,
        ended_ms: plan.ended_ms,
        by: plan.by.clone(),
        why: plan.why.clone(),
        moves: moves.collect(),
        done,
        over,
        left_ms: (state == PlanState::Running && over > 0).then(|| took_ms * left / over as u64),
        spread_before: known(&plan.before),
        spread_predicted: known(&plan.predicted),
        spread_measured: known(&plan.measured),
        nodes: loads(ledger, &plan.before, &plan.predicted, &plan.measured),
        stays: plan.stays.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Truth, World};

    /// Thirty tenants on three nodes of four, all led by the first.
    fn lopsided() -> World {
        let mut world = World::new(5, 4, 0);
        let truth = Truth {
            lead_cpu: 30_000.0,
            follow_cpu: 10_000.0,
            writes: 100_000.0,
            size: 1_000_000.0,
            leader: 0,
        };
        for _ in 0..30 {
            world.tenant(&[1, 2, 3], truth.clone());
        }
        world
    }

    fn run(world: &mut World, planned: Planned) -> Answer {
        let (change, answer) = planned.expect("it is allowed");
        if !change.is_empty() {
            world.apply(&change);
        }
        answer
    }

    fn refusal(planned: Planned) -> String {
        planned.expect_err("it is refused").to_string()
    }

    fn made(world: &mut World) -> PlanView {
        let inventory = world.inventory();
        let planned = make(&world.ledger, &inventory, world.now_ms);
        let Answer::Plan(plan) = run(world, planned) else { panic!("no plan") };
        *plan
    }

    fn applied(world: &mut World, version: u64) -> Planned {
        let inventory = world.inventory();
        apply(&world.ledger, &inventory, version, "me", world.now_ms)
    }

    /// Until the plan is over and measured.
    fn finish(world: &mut World, version: u64) -> PlanView {
        for _ in 0..100 {
            world.round(1000);
            let plan = &world.ledger.plans[&version];
            if !plan.measured.is_empty() {
                return view(&world.ledger, plan, world.now_ms);
            }
        }
        panic!("plan {version} does not come to an end");
    }

    #[test]
    fn a_plan_is_made_explained_applied_and_judged() {
        let mut world = lopsided();
        run_pause(&mut world);
        let plan = made(&mut world);
        assert_eq!((plan.version, plan.state), (1, PlanState::Made));
        let before = world.ledger.clone();
        world.round(1000);
        assert_eq!(world.ledger.groups, before.groups, "a plan alone moves nothing");
        let Ok(Answer::Explained(explained)) = explain(&world.ledger, None, world.now_ms) else {
            panic!("it is there")
        };
        assert!(explained.moves.iter().all(|it| it.why.contains("over the mean")));
        let planned = applied(&mut world, 1);
        run(&mut world, planned);
        let plan = finish(&mut world, 1);
        assert_eq!((plan.done, plan.moves.len()), (plan.moves.len(), plan.over));
        assert_eq!(plan.spread_measured, plan.spread_predicted);
        assert!(plan.spread_measured < plan.spread_before);
        assert_eq!(plan.by, "me");
        let Answer::Plans(history) = history(&world.ledger, world.now_ms) else { panic!("plans") };
        assert_eq!(history, [plan]);
    }

    fn run_pause(world: &mut World) {
        let planned = pause(&world.ledger, world.now_ms);
        run(world, planned);
    }

    #[test]
    fn only_the_newest_plan_is_applied_while_it_is_young() {
        let mut world = lopsided();
        assert!(refusal(applied(&mut world, 1)).contains("there is no plan 1"));
        made(&mut world);
        made(&mut world);
        assert!(refusal(applied(&mut world, 1)).contains("not the newest: that is 2"));
        world.now_ms += LIFE_MS;
        assert!(refusal(applied(&mut world, 2)).contains("older than ten minutes"));
        let plan = made(&mut world);
        let planned = applied(&mut world, plan.version);
        run(&mut world, planned);
        assert!(refusal(applied(&mut world, plan.version)).contains("applied before"));
        let next = made(&mut world);
        assert!(refusal(applied(&mut world, next.version)).contains("plan 3 is being carried out"));
    }

    #[test]
    fn moves_whose_groups_have_changed_are_dropped_and_named() {
        let mut world = lopsided();
        let plan = made(&mut world);
        let changed = plan.moves[0].group;
        let mut group = crate::record::Group::clone(&world.ledger.groups[&changed]);
        group.membership_version += 1;
        world.apply(&Change::default().put(Record::Group(group)));
        let planned = applied(&mut world, 1);
        let Answer::Plan(plan) = run(&mut world, planned) else { panic!("a plan") };
        let dropped: Vec<_> = plan.moves.iter().filter(|it| it.fate != Fate::Waiting).collect();
        assert_eq!(dropped.len(), 1);
        assert_eq!(dropped[0].group, changed);
        assert_eq!(dropped[0].fate, Fate::Dropped("its members have changed since".to_owned()));
        let plan = finish(&mut world, 1);
        assert_eq!(plan.done + 1, plan.moves.len());
    }

    #[test]
    fn a_pause_stops_a_plan_and_nothing_begins_by_itself() {
        let mut world = lopsided();
        world.round(1000);
        assert_eq!(world.ledger.plans.len(), 1, "it begins by itself");
        let inventory = world.inventory();
        let change = tend(&world.ledger, &inventory, world.now_ms).expect("moves begin");
        world.apply(&change);
        assert!(!operators::running(&world.ledger).is_empty());
        run_pause(&mut world);
        for operator in operators::running(&world.ledger) {
            assert!(operator.cancelled());
            let step = operators::next_step(&world.ledger, operator);
            assert_eq!(step, operators::Step::Done, "nothing was done yet: it stays");
        }
        let groups = world.ledger.groups.clone();
        for _ in 0..200 {
            world.round(2000);
        }
        assert_eq!(world.ledger.groups, groups);
        assert_eq!(world.ledger.plans.len(), 1);
        assert!(world.ledger.plans[&1].ended_ms != 0);
        let resumed = resume(&world.ledger);
        run(&mut world, resumed);
        for _ in 0..200 {
            world.round(2000);
        }
        assert!(world.spread() < BEGIN, "{}", world.spread());
    }

    #[test]
    fn a_plan_is_taken_back_by_another() {
        let mut world = lopsided();
        run_pause(&mut world);
        let sorted = |world: &World| {
            let nodes = |group: &std::sync::Arc<crate::record::Group>| {
                let mut nodes: Vec<u64> = group.replicas.iter().map(|r| r.node).collect();
                nodes.sort_unstable();
                nodes
            };
            world.ledger.groups.values().map(nodes).collect::<Vec<_>>()
        };
        let leaders = |world: &World| world.groups.values().map(|it| it.leader).collect::<Vec<_>>();
        let before = (sorted(&world), leaders(&world));
        made(&mut world);
        assert!(
            refusal(revert(&world.ledger, &Inventory::default(), 1, world.now_ms))
                .contains("was not applied")
        );
        let planned = applied(&mut world, 1);
        run(&mut world, planned);
        finish(&mut world, 1);
        assert_ne!((sorted(&world), leaders(&world)), before);
        let inventory = world.inventory();
        let planned = revert(&world.ledger, &inventory, 1, world.now_ms);
        let Answer::Plan(plan) = run(&mut world, planned) else { panic!("a plan") };
        assert_eq!(plan.version, 2);
        assert!(plan.spread_predicted > plan.spread_before, "it will be uneven again");
        let planned = applied(&mut world, 2);
        run(&mut world, planned);
        finish(&mut world, 2);
        assert_eq!((sorted(&world), leaders(&world)), before);
    }

    #[test]
    fn a_plan_that_somebody_looks_at_is_not_overtaken() {
        let mut world = lopsided();
        made(&mut world);
        for _ in 0..5 {
            world.round(LIFE_MS / 10);
        }
        assert_eq!(world.ledger.plans.keys().copied().collect::<Vec<_>>(), [1]);
        for _ in 0..6 {
            world.round(LIFE_MS / 10);
        }
        assert!(world.ledger.plans.len() > 1, "nobody wants it any more");
    }

    #[test]
    fn a_move_to_a_node_that_falls_silent_is_taken_back() {
        let mut world = lopsided();
        run_pause(&mut world);
        let plan = made(&mut world);
        let planned = applied(&mut world, plan.version);
        run(&mut world, planned);
        let inventory = world.inventory();
        let change = tend(&world.ledger, &inventory, world.now_ms).expect("moves begin");
        world.apply(&change);
        let to_last = |world: &World| {
            let running = operators::running(&world.ledger).into_iter();
            running.filter(|o| !o.cancelled() && o.target.contains(&4)).count()
        };
        assert!(to_last(&world) > 0);
        let mut inventory = world.inventory();
        inventory.nodes.remove(&4);
        let change = tend(&world.ledger, &inventory, world.now_ms).expect("they are taken back");
        world.apply(&change);
        assert_eq!(to_last(&world), 0);
    }

    #[test]
    fn old_plans_are_forgotten() {
        let mut world = lopsided();
        for _ in 0..KEPT + 5 {
            made(&mut world);
        }
        let kept: Vec<u64> = world.ledger.plans.keys().copied().collect();
        assert_eq!(kept, (6..=KEPT as u64 + 5).collect::<Vec<_>>());
    }
}
