//! Which groups of etcds are to be split without being asked, and why or why not. Pure: ledger,
//! inventory and time in; an operator, or words, out. What is told to people is what is decided on.
//!
//! ```text
//!   over its bar long enough ─ no ──> cool, or warming
//!        │ yes
//!   is it wanted ─ no ──> off
//!        │ yes
//!   is there a cut ─ no ──> unsplittable: single key, append front, ...
//!        │ yes
//!   can it be now ─ no ──> waits: for whom, or how long
//!        │ yes
//!        └──> an operator like that of `atoll tenant split`, with what was seen as its reason
//! ```
//!
//! A split by load makes two leaders of one, which helps only on two nodes: with a single one it is not
//! done. The first split of an etcd waits as long as moving leads or replicas would help its node.
//!
//! Invariants:
//! * one split of an etcd at a time, and none while anything else holds the group;
//! * both sides of a cut rest, also when it came to nothing;
//! * nothing is decided while balancing is paused, or on numbers that are old.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::automerge;
use crate::balance::{self, bytes};
use crate::command::{
    Answer, CutView, ExplanationView, GroupExplained, Refusal, Verdict, counted_ms, refused,
};
use crate::health::Health;
use crate::heat::Heat;
use crate::inventory::{CutIdea, GroupReport, Inventory};
use crate::ledger::{Change, Ledger};
use crate::operators::holder;
use crate::policy::{Bar, SplitMode, SplitPolicy};
use crate::record::{
    Cause, Namespace, NamespaceKind, NodeState, Operator, OperatorState, Record, Tenant,
    TenantState, keys_of, text,
};
use crate::splits::{self, Reason};
use crate::tenants;

/// Moves are waited for no longer than so many times what the bar is to be held.
const MOVES_PATIENCE: u64 = 5;
/// Moves that are looked at for one that helps a node.
const MOVES: usize = 16;

/// What all judgements look at.
struct Look<'a> {
    ledger: &'a Ledger,
    inventory: &'a Inventory,
    health: Health<'a>,
    policy: SplitPolicy,
    now_ms: u64,
    /// Nodes that moves would help, or why that cannot be told.
    helped: OnceCell<Result<BTreeSet<u64>, String>>,
}

/// A group of an etcd.
#[derive(Clone, Copy)]
struct Part<'a> {
    tenant: &'a Tenant,
    namespace: &'a Namespace,
    /// Which of its places.
    at: usize,
}

/// What was found out about a group.
struct Judged {
    verdict: Verdict,
    said: String,
    heat: Heat,
    size: u64,
    leader: Option<u64>,
    idea: Option<CutIdea>,
    /// How far over its bar it is, in thousandths of it.
    over: u64,
    /// To be done now.
    due: Option<(Bytes, Reason)>,
}

fn thousandths(part: u32) -> String {
    format!("{} %", (part + 5) / 10)
}

/// Why a group cannot be cut, in words.
fn uncut(idea: &CutIdea) -> String {
    match idea {
        CutIdea::At { .. } => String::new(),
        CutIdea::TooLittle => "too little of it was seen lately to say where".to_owned(),
        CutIdea::SingleKey { key, share } => {
            let (key, share) = (text::of(key), thousandths(*share));
            format!("single key: {key} has {share} of the load, on whatever side of a cut it is")
        }
        CutIdea::AppendFront(share) => {
            let share = thousandths(*share);
            format!("append front: {share} of what came last is on one side of any even cut")
        }
        CutIdea::WideRanges(share) => {
            let share = thousandths(*share);
            format!("wide ranges: {share} reaches over any cut, or stays on one side of it")
        }
    }
}

/// What a cut would do, in words.
fn effect(idea: &CutIdea) -> Option<String> {
    let CutIdea::At { key, below, above, across, watches } = idea else { return None };
    let key = text::of(key);
    let parts = [*below, *above, *across].map(thousandths);
    let [below, above, across] = parts;
    let watched = match watches {
        0 => String::new(),
        1 => "; watches of 1 stretch of keys would be merged from both".to_owned(),
        _ => format!("; watches of {watches} stretches of keys would be merged from both"),
    };
    Some(format!(
        "a cut at {key} would leave {below} of it here, give {above} to a new group, and have \
         {across} touch both{watched}"
    ))
}

// === impl Look ===

impl<'a> Look<'a> {
    fn new(ledger: &'a Ledger, inventory: &'a Inventory, now_ms: u64) -> Look<'a> {
        Look {
            ledger,
            inventory,
            health: Health::of(ledger, inventory, now_ms),
            policy: SplitPolicy::of(ledger),
            now_ms,
            helped: OnceCell::new(),
        }
    }

    fn judge(&self, part: Part<'a>) -> Judged {
        let places = part.namespace.places();
        let group = places.get(part.at).map_or(0, |place| place.group);
        let bar = self.policy.bar(places.len());
        let led = self.inventory.leader_of(group, self.now_ms);
        let heat = self.inventory.heats.groups.get(&group).copied().unwrap_or_default();
        let mut judged = Judged {
            verdict: Verdict::Cool,
            said: String::new(),
            heat,
            size: led.map_or(0, |(_, report)| report.size_bytes),
            leader: led.map(|(node, _)| node),
            idea: led.and_then(|(_, report)| report.load_cut.clone().or(report.size_cut.clone())),
            over: 0,
            due: None,
        };
        let Some((leader, report)) = led else {
            judged.verdict = Verdict::Unknown;
            judged.said = "whoever leads it has not said how it is".to_owned();
            return judged;
        };
        match self.wanted(&mut judged, bar, report) {
            Err((verdict, said)) => (judged.verdict, judged.said) = (verdict, said),
            Ok(reason) => match self.doable(&judged, part, group, leader, &reason) {
                Err((verdict, why)) => {
                    judged.verdict = verdict;
                    judged.said = format!("{}; {why}", reason.seen);
                }
                Ok(key) => {
                    judged.verdict = Verdict::Due;
                    judged.said = format!("{}; it is split at {}", reason.seen, text::of(&key));
                    judged.due = Some((key, reason));
                }
            },
        }
        judged
    }

    /// Is the group over its bar, and for long enough?
    fn wanted(
        &self,
        judged: &mut Judged,
        bar: &Bar,
        report: &GroupReport,
    ) -> Result<Reason, (Verdict, String)> {
        let heat = judged.heat;
        let (requests, writes) = (heat.requests_per_s(), heat.write_bytes_per_s);
        let over = |of: u64, bar: u64| (u128::from(of) * 1000 / u128::from(bar.max(1))) as u64;
        if bar.size_bytes > 0 && judged.size >= bar.size_bytes {
            judged.over = over(judged.size, bar.size_bytes);
            judged.idea = report.size_cut.clone().or(judged.idea.take());
            let (size, bar) = (bytes(judged.size as f64), bytes(bar.size_bytes as f64));
            let seen = format!("{size} are stored, the bar is {bar}");
            return Ok(Reason { cause: Cause::Size, seen });
        }
        let Some(seen) = bar.reached_by(requests, writes).filter(|_| heat.since_ms > 0) else {
            let amounts = [
                (format!("{requests} requests/s"), bar.requests_per_s.to_string()),
                (format!("{}/s written", bytes(writes as f64)), rate(bar.write_bytes_per_s)),
                (format!("{} stored", bytes(judged.size as f64)), bytes(bar.size_bytes as f64)),
            ];
            let each = amounts.map(|(is, bar)| match bar.as_str() {
                "0" | "0 B" | "0 B/s" => format!("{is} (no bar)"),
                bar => format!("{is} (the bar is {bar})"),
            });
            return Err((Verdict::Cool, format!("it is not hot: {}", each.join(", "))));
        };
        judged.over = [(requests, bar.requests_per_s), (writes, bar.write_bytes_per_s)]
            .into_iter()
            .filter(|(_, bar)| *bar > 0)
            .map(|(load, bar)| over(load, bar))
            .max()
            .unwrap_or_default();
        let held_ms = self.now_ms.saturating_sub(heat.since_ms);
        let (held, hold) = (counted_ms(held_ms), counted_ms(bar.hold_ms));
        if held_ms < bar.hold_ms {
            let said = format!("{seen}, for {held}: that is too much after {hold}");
            return Err((Verdict::Warming, said));
        }
        Ok(Reason { cause: Cause::Load, seen: format!("{seen}, for {held}") })
    }

    /// Where it is to be cut, if that is wanted and can be done now.
    fn doable(
        &self,
        judged: &Judged,
        part: Part<'a>,
        group: u64,
        leader: u64,
        reason: &Reason,
    ) -> Result<Bytes, (Verdict, String)> {
        let waits = |why: String| (Verdict::Waits, why);
        let places = part.namespace.places();
        let key = match &judged.idea {
            None => return Err(waits("its leader has not said yet where it could be cut".into())),
            Some(CutIdea::TooLittle) => return Err(waits(uncut(&CutIdea::TooLittle))),
            Some(CutIdea::At { key, .. }) => key.clone(),
            Some(idea) => {
                return Err((Verdict::Unsplittable, format!("unsplittable: {}", uncut(idea))));
            }
        };
        if !self.policy.is_on_for(part.tenant) {
            let how = match part.tenant.splits {
                SplitMode::Off => {
                    let name = &part.tenant.name;
                    format!("atoll policy split --tenant {name} --mode on")
                }
                _ => "atoll policy split --mode on".to_owned(),
            };
            return Err((Verdict::Off, format!("nothing is split by itself here: {how}")));
        }
        if self.ledger.meta.as_ref().is_none_or(|meta| meta.balance_paused) {
            return Err(waits("balancing is paused: atoll rebalance resume".to_owned()));
        }
        if part.tenant.state_of(part.namespace) != TenantState::Open {
            return Err(waits("its tenant is not open".to_owned()));
        }
        let most = self.policy.groups_max;
        if places.len() >= most {
            let why = format!("it is on {most} groups, which are the most");
            return Err((Verdict::Unsplittable, why));
        }
        let keys = keys_of(&places, part.at);
        if key <= keys.start || !keys.contains(&key) {
            return Err(waits("its keys have just changed".to_owned()));
        }
        if let Some(left_ms) = self.rests(group) {
            let left = counted_ms(left_ms);
            return Err(waits(format!("it rests for {left} after a split or a merge")));
        }
        let is_place = |of: u64| places.iter().any(|place| place.group == of);
        let changes = |operator: &&Operator| operator.is_on_keys() && is_place(operator.group);
        let running = |operator: &&Operator| operator.state == OperatorState::Running;
        if let Some(other) = self.ledger.operators.values().filter(running).find(changes) {
            return Err(waits(format!("operator {} changes its cuts: {}", other.id, other.why)));
        }
        let found = splits::fit(self.ledger, self.inventory, &self.health, group);
        let found = found.map_err(|why| waits(why.to_string()))?;
        if reason.cause == Cause::Load {
            let takes = |node: &&crate::record::Node| {
                let is_here = found.replicas.iter().any(|replica| replica.node == node.id);
                is_here || (node.state == NodeState::Up && part.tenant.fits(node))
            };
            if self.ledger.answering().filter(takes).count() < 2 {
                let why = "both groups would have to stay on its one node, which has as much to do";
                return Err(waits(why.to_owned()));
            }
            self.moves_first(judged.heat, places.len(), leader).map_err(waits)?;
        }
        Ok(key)
    }

    /// The first split of an etcd waits for moves that would help its node.
    fn moves_first(&self, heat: Heat, places: usize, leader: u64) -> Result<(), String> {
        let patience_ms = MOVES_PATIENCE * self.policy.first.hold_ms;
        if places > 1 || self.now_ms >= heat.since_ms + patience_ms {
            return Ok(());
        }
        let helped = self.helped.get_or_init(|| {
            let proposal = balance::propose(self.ledger, self.inventory, self.now_ms, MOVES);
            let moves = proposal.map_err(|unknown| unknown.to_string())?.moves;
            Ok(moves.iter().map(|planned| planned.from).collect())
        });
        match helped {
            Err(unknown) => Err(unknown.clone()),
            Ok(helped) if helped.contains(&leader) => {
                let node = self.ledger.node_name(leader);
                Err(format!("moves come before a first split, and some would help {node}"))
            }
            Ok(_) => Ok(()),
        }
    }

    /// How long a group is still left alone, in milliseconds.
    fn rests(&self, group: u64) -> Option<u64> {
        let ended_ms = changed_ms(self.ledger, group)?;
        (ended_ms + self.policy.rest_ms).checked_sub(self.now_ms).filter(|left| *left > 0)
    }
}

/// When an operator that was to change the keys of a group was over last.
pub(crate) fn changed_ms(ledger: &Ledger, group: u64) -> Option<u64> {
    let is_of = |operator: &&Operator| {
        let is_left = operator.merge.as_ref().is_some_and(|merge| merge.left == group);
        let is_child = operator.cuts.iter().any(|cut| cut.child == group);
        operator.is_on_keys()
            && operator.state != OperatorState::Running
            && (operator.group == group || is_left || is_child)
    };
    ledger.operators.values().filter(is_of).map(|it| it.ended_ms).max()
}

fn rate(bytes_per_s: u64) -> String {
    format!("{}/s", bytes(bytes_per_s as f64))
}

/// Loads from which on nodes are to say where a group could be cut: requests and bytes a second,
/// and bytes stored. A part of the lower bars, so that it is known when one is reached, and people can
/// be told of what is warm: a bar is for the load on all nodes, and the leader has its own part only.
pub fn asks(ledger: &Ledger) -> (u64, u64, u64) {
    let SplitPolicy { first, later, .. } = SplitPolicy::of(ledger);
    let lower = |of: fn(&Bar) -> u64, part: u64| {
        let bars = [of(&first), of(&later)].into_iter().filter(|bar| *bar > 0);
        bars.min().map_or(0, |bar| bar.div_ceil(part))
    };
    let size = lower(|bar| bar.size_bytes, 2);
    (lower(|bar| bar.requests_per_s, 8), lower(|bar| bar.write_bytes_per_s, 8), size)
}

/// The next group that is to be split: the one that is furthest over its bar. `None` if there is none.
pub fn plan(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Option<Change> {
    let policy = SplitPolicy::of(ledger);
    let mut meta = ledger.meta.clone()?;
    if !policy.on && ledger.tenants.values().all(|tenant| tenant.splits != SplitMode::On) {
        return None;
    }
    let hot = inventory.heats.groups.iter().filter(|(_, heat)| heat.since_ms > 0);
    let mut suspects: BTreeSet<u64> = hot.map(|(group, _)| *group).collect();
    let sizes = [policy.first.size_bytes, policy.later.size_bytes];
    let size = sizes.into_iter().filter(|bar| *bar > 0).min().unwrap_or(u64::MAX);
    for report in inventory.nodes.values() {
        let large = report.groups.iter().filter(|(_, it)| it.leads && it.size_bytes >= size);
        suspects.extend(large.map(|(group, _)| *group));
    }
    if suspects.is_empty() {
        return None;
    }
    let look = Look::new(ledger, inventory, now_ms);
    let mut due: Option<(u64, Part<'_>, u64, Bytes, Reason)> = None;
    for id in suspects {
        let owner = ledger.groups.get(&id).and_then(|group| ledger.tenants.get(&group.tenant));
        let Some(tenant) = owner else { continue };
        let Some((namespace, at)) = tenant.place_of(id) else { continue };
        let part = Part { tenant, namespace, at };
        let judged = look.judge(part);
        if let Some((key, reason)) = judged.due
            && due.as_ref().is_none_or(|(over, ..)| judged.over > *over)
        {
            due = Some((judged.over, part, id, key, reason));
        }
    }
    let (_, part, id, key, reason) = due?;
    let group = ledger.groups.get(&id)?;
    let name = part.tenant.full_name(part.namespace);
    let operator = splits::begin(ledger, &mut meta, &name, group, vec![key], &reason, now_ms);
    Some(Change::default().put(Record::Operator(operator)).put(Record::Meta(meta)))
}

/// Why an etcd is split or is not, and what a split would change.
pub fn explain(
    ledger: &Ledger,
    inventory: &Inventory,
    name: &str,
    now_ms: u64,
) -> Result<Answer, Refusal> {
    let (tenant, namespace) = splits::known(ledger, name)?;
    if let NamespaceKind::Shared { prefix } = &namespace.kind {
        let of = &tenant.name;
        let why =
            format!("\"{name}\" is a stretch of the keys of \"{of}\", {prefix}: ask for {of}");
        return Err(refused(why));
    }
    let look = Look::new(ledger, inventory, now_ms);
    let places = namespace.places();
    let views = tenants::place_views(ledger, tenant, namespace);
    let mut groups = Vec::new();
    for (at, place) in views.into_iter().enumerate() {
        let judged = look.judge(Part { tenant, namespace, at });
        let mut said = vec![judged.said];
        if judged.due.is_none()
            && let Some(effect) = judged.idea.as_ref().and_then(effect)
        {
            said.push(effect);
        }
        said.extend(automerge::explain(ledger, inventory, tenant, namespace, at, now_ms));
        if let Some(operator) = holder(ledger, place.group) {
            said.push(format!("operator {} works on it: {}", operator.id, operator.why));
        }
        let cut = match &judged.idea {
            Some(CutIdea::At { key, below, above, across, watches }) => Some(CutView {
                at: text::of(key),
                below: *below,
                above: *above,
                across: *across,
                watches: *watches,
            }),
            _ => None,
        };
        groups.push(GroupExplained {
            group: place.group,
            keys: place.keys,
            why: place.why,
            leader: judged.leader.map(|node| ledger.node_name(node)),
            requests_per_s: judged.heat.requests_per_s(),
            write_bytes_per_s: judged.heat.write_bytes_per_s,
            size: judged.size,
            verdict: judged.verdict,
            said,
            cut,
        });
    }
    let is_on = look.policy.is_on_for(tenant);
    Ok(Answer::Explanation(Box::new(ExplanationView {
        name: name.to_owned(),
        verdict: verdict(name, &groups),
        is_on,
        bar: *look.policy.bar(places.len()),
        groups,
    })))
}

/// It in a sentence.
fn verdict(name: &str, groups: &[GroupExplained]) -> String {
    let count = groups.len();
    let on = match count {
        1 => format!("{name} is on one group"),
        _ => format!("{name} is split over {count} groups"),
    };
    let worst = groups.iter().max_by_key(|group| group.verdict);
    let group = |group: u64| if count == 1 { "it".to_owned() } else { format!("group {group}") };
    match worst.map(|worst| (worst.verdict, group(worst.group))) {
        None | Some((Verdict::Cool, _)) => match count {
            1 => format!("{on}, and not hot."),
            _ => format!("{on}, and none of them is hot."),
        },
        Some((Verdict::Unknown, which)) => format!("{on}; of {which} nothing is known now."),
        Some((Verdict::Warming, which)) => format!("{on}; {which} is getting hot."),
        Some((Verdict::Off, which)) => {
            format!("{on}; {which} is too much, and nothing is split by itself.")
        }
        Some((Verdict::Waits, which)) => format!("{on}; {which} is too much, and waits."),
        Some((Verdict::Unsplittable, which)) => {
            format!("{on}; {which} is too much, and cannot be split.")
        }
        Some((Verdict::Due, which)) => format!("{on}; {which} is too much, and is being split."),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use proto::KeyRange;

    use super::*;
    use crate::check::{Finding, Gravity, check};
    use crate::heat::Heats;
    use crate::inventory::ASK_MS;
    use crate::policy::{self, BarWish, PolicyWish};
    use crate::record::Group;
    use crate::splits::Said;
    use crate::world::{Truth, World};
    use crate::{nodes, plans};

    /// Requests a second that a group has for so much CPU in `World`: each of three nodes says so.
    pub(crate) fn cpu(requests_per_s: f64) -> f64 {
        requests_per_s / 3.0 * 20.0
    }

    /// A cluster whose tenant "t2" has keys "/00" to "/99", all as hot.
    pub(crate) struct Play {
        pub(crate) world: World,
        pub(crate) heats: Heats,
        /// What leaders say instead of a cut in the middle.
        say: Option<CutIdea>,
        /// Groups whose new sides were learned, in order.
        pub(crate) made: Vec<u64>,
    }

    pub(crate) fn at(key: &str) -> CutIdea {
        let key = Bytes::copy_from_slice(key.as_bytes());
        CutIdea::At { key, below: 500, above: 490, across: 10, watches: 0 }
    }

    impl Play {
        /// Split by itself from 1,000 requests a second on, and from 500.
        pub(crate) fn new(nodes: u64, replicas: &[u64], requests_per_s: f64) -> Play {
            let mut world = World::new(1, nodes, 0);
            let lead_cpu = cpu(requests_per_s) * 3.0 / replicas.len() as f64;
            world.tenant(
                replicas,
                Truth { lead_cpu, follow_cpu: 0.0, writes: 1.0, size: 1e6, leader: 0 },
            );
            let mut play = Play { world, heats: Heats::default(), say: None, made: Vec::new() };
            let first = BarWish {
                requests_per_s: Some(1_000),
                hold_ms: Some(20_000),
                size_bytes: Some(8 << 20),
                ..BarWish::default()
            };
            let later = BarWish { requests_per_s: Some(500), size_bytes: Some(4 << 20), ..first };
            play.set(PolicyWish {
                mode: Some(SplitMode::On),
                first,
                later,
                ..PolicyWish::default()
            });
            play
        }

        pub(crate) fn set(&mut self, wish: PolicyWish) {
            let (change, _) = policy::set(&self.world.ledger, &wish).expect("it is allowed");
            self.world.apply(&change);
        }

        pub(crate) fn keys(&self, group: u64) -> KeyRange {
            let (namespace, at) = self.world.ledger.place_of(group).expect("it has keys");
            keys_of(&namespace.places(), at)
        }

        pub(crate) fn inventory(&mut self) -> Inventory {
            let mut inventory = self.world.inventory();
            let number = |key: &Bytes| {
                let digits = std::str::from_utf8(key.get(1..).unwrap_or_default()).unwrap_or("");
                digits.parse::<u64>().unwrap_or(0)
            };
            for group in self.world.groups.keys() {
                let KeyRange { start, end } = self.keys(*group);
                let (start, end) = (number(&start), end.as_ref().map_or(100, number));
                let middle = at(&format!("/{:02}", (start + end) / 2));
                let idea = self.say.clone().unwrap_or(middle);
                for report in inventory.nodes.values_mut() {
                    if let Some(told) = report.groups.get_mut(group).filter(|it| it.leads) {
                        told.load_cut = Some(idea.clone());
                    }
                }
            }
            self.heats.take_in(&self.world.ledger, &inventory, self.world.now_ms);
            inventory.heats = self.heats.clone();
            inventory
        }

        /// Time goes on by one report; gives what was begun.
        fn round(&mut self) -> Option<Operator> {
            self.world.now_ms += ASK_MS;
            let inventory = self.inventory();
            let before: BTreeSet<u64> = self.world.ledger.operators.keys().copied().collect();
            let change = plan(&self.world.ledger, &inventory, self.world.now_ms)?;
            self.world.apply(&change);
            let wrong = |found: &Finding| found.gravity == Gravity::Wrong;
            assert!(
                !check(&self.world.ledger).iter().any(wrong),
                "{:?}",
                check(&self.world.ledger)
            );
            let operators = &self.world.ledger.operators;
            let begun = operators.values().find(|operator| !before.contains(&operator.id));
            let again = plan(&self.world.ledger, &inventory, self.world.now_ms);
            assert!(again.is_none(), "one at a time");
            begun.cloned()
        }

        /// What the group's log says after a cut: both sides have half of the load.
        pub(crate) fn cut(&mut self, operator: &Operator) {
            let (group, cut) = (operator.group, &operator.cuts[0]);
            let version = self.world.ledger.range_version(group) + 1;
            let KeyRange { start, .. } = self.keys(group);
            let said = Said { keys: KeyRange { start, end: Some(cut.at.clone()) }, version };
            let now_ms = self.world.now_ms;
            let learned = splits::learn(&self.world.ledger, group, &said, now_ms);
            self.world.apply(&learned.expect("it is news"));
            let replicas = self.world.ledger.groups[&cut.child].replicas.clone();
            let told = nodes::report(&self.world.ledger, cut.child, 1, &replicas, &[]);
            self.world.apply(&told.expect("it is news"));
            let parent = self.world.groups.get_mut(&group).expect("it is a group");
            parent.lead_cpu /= 2.0;
            parent.size /= 2.0;
            let child = parent.clone();
            self.world.groups.insert(cut.child, child);
            self.made.push(cut.child);
        }

        fn rounds(&mut self, rounds: usize) {
            for _ in 0..rounds {
                if let Some(operator) = self.round() {
                    self.cut(&operator);
                }
            }
        }

        pub(crate) fn explained(&mut self) -> ExplanationView {
            let inventory = self.inventory();
            match explain(&self.world.ledger, &inventory, "t2", self.world.now_ms) {
                Ok(Answer::Explanation(view)) => *view,
                other => panic!("{other:?}"),
            }
        }

        /// Neither is it split now, nor is that not said.
        fn stays(&mut self, verdict: Verdict, words: &str) {
            self.rounds(40);
            assert!(self.made.is_empty(), "{words}");
            let view = self.explained();
            let group = &view.groups[0];
            assert_eq!(group.verdict, verdict, "{group:?}");
            assert!(group.said.join("; ").contains(words), "{words}: {:?}", group.said);
        }
    }

    #[test]
    fn a_hot_etcd_is_split_when_it_has_been_hot_for_long_enough() {
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        let begun_ms = play.world.now_ms;
        let operator = (0..40).find_map(|_| play.round()).expect("it is begun");
        let took_ms = play.world.now_ms - begun_ms;
        assert!((20_000..40_000).contains(&took_ms), "{took_ms}");
        assert_eq!(operator.cuts[0].at.as_ref(), b"/50");
        let why = &operator.why;
        let words = "split t2 at /50 for its load: ";
        assert!(why.starts_with(words) && why.contains("requests/s, the bar is 1000"), "{why}");
        assert_eq!(operator.priority, crate::record::Priority::Balance);
        play.cut(&operator);
        let ledger = &play.world.ledger;
        let Ok(Answer::Tenants(views)) = tenants::show(ledger, Some("t2")) else { panic!() };
        let place = &views[0].places[1];
        assert_eq!(place.cause, "load");
        let words = format!("load: by operator {}: ", operator.id);
        assert!(place.why.starts_with(&words) && place.why.contains("requests/s"), "{place:?}");
    }

    #[test]
    fn a_burst_splits_nothing() {
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        let group = *play.world.groups.keys().next().unwrap();
        for _ in 0..5 {
            play.rounds(5);
            play.world.groups.get_mut(&group).unwrap().lead_cpu = 0.0;
            play.rounds(12);
            play.world.groups.get_mut(&group).unwrap().lead_cpu = cpu(3_000.0);
        }
        assert!(play.made.is_empty());
        play.rounds(7);
        let view = play.explained();
        assert_eq!(view.groups[0].verdict, Verdict::Warming);
        let said = view.groups[0].said.join("; ");
        assert!(said.contains("that is too much after 20 s"), "{said}");
        assert!(said.contains("a cut at /50 would leave 50 % of it here"), "{said}");
        assert!(view.verdict.contains("getting hot"), "{}", view.verdict);
    }

    #[test]
    fn later_splits_are_cheap_rest_between_and_come_to_an_end() {
        let mut play = Play::new(3, &[1, 2, 3], 6_000.0);
        play.set(PolicyWish { groups_max: Some(6), ..PolicyWish::default() });
        let mut times: BTreeMap<u64, u64> = BTreeMap::new();
        for _ in 0..600 {
            let Some(operator) = play.round() else { continue };
            if let Some(before) = times.insert(operator.group, play.world.now_ms) {
                assert!(play.world.now_ms >= before + 60_000, "it rests");
            }
            play.cut(&operator);
            times.insert(operator.cuts[0].child, play.world.now_ms);
        }
        assert_eq!(play.made.len(), 5, "six groups are the most");
        let view = play.explained();
        assert!(view.groups.iter().any(|group| group.said[0].contains("which are the most")));
        assert!(view.verdict.contains("t2 is split over 6 groups"), "{}", view.verdict);
        // Two times 500 and a bit: each half is below the bar.
        let mut play = Play::new(3, &[1, 2, 3], 1_100.0 * 0.9);
        play.rounds(100);
        assert!(play.made.is_empty(), "below the first bar");
        let mut play = Play::new(3, &[1, 2, 3], 1_900.0);
        play.rounds(300);
        assert_eq!(play.made.len(), 3, "950 are over the later bar, 475 are not");
        assert_eq!(play.explained().groups[3].verdict, Verdict::Cool);
    }

    #[test]
    fn what_cannot_be_cut_says_why() {
        let key = Bytes::from_static(b"/leader");
        for (idea, words) in [
            (CutIdea::SingleKey { key, share: 700 }, "unsplittable: single key: /leader has 70 %"),
            (CutIdea::AppendFront(905), "unsplittable: append front: 91 %"),
            (CutIdea::WideRanges(950), "unsplittable: wide ranges: 95 %"),
        ] {
            let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
            play.say = Some(idea);
            play.stays(Verdict::Unsplittable, words);
            assert!(play.explained().verdict.contains("cannot be split"));
        }
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        play.say = Some(CutIdea::TooLittle);
        play.stays(Verdict::Waits, "too little of it was seen");
        play.say = Some(at(""));
        play.stays(Verdict::Waits, "its keys have just changed");
    }

    #[test]
    fn what_is_cool_or_off_is_left_alone() {
        let mut play = Play::new(3, &[1, 2, 3], 900.0);
        play.stays(Verdict::Cool, "900 requests/s (the bar is 1000)");
        let tenant = "t2".to_owned();
        let off = PolicyWish { mode: Some(SplitMode::Off), tenant, ..PolicyWish::default() };
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        play.set(off.clone());
        play.stays(Verdict::Off, "atoll policy split --tenant t2 --mode on");
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        play.set(PolicyWish { mode: Some(SplitMode::Off), ..PolicyWish::default() });
        play.stays(Verdict::Off, "atoll policy split --mode on");
        play.set(PolicyWish { mode: Some(SplitMode::On), ..off });
        play.rounds(1);
        assert_eq!(play.made.len(), 1, "the tenant has its own way");
    }

    #[test]
    fn what_cannot_be_now_waits_and_says_for_what() {
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        let (change, _) = plans::pause(&play.world.ledger, 5).unwrap();
        play.world.apply(&change);
        play.stays(Verdict::Waits, "atoll rebalance resume");
        let (change, _) = plans::resume(&play.world.ledger).unwrap();
        play.world.apply(&change);
        play.rounds(1);
        assert_eq!(play.made.len(), 1);
        let mut play = Play::new(1, &[1], 3_000.0);
        play.stays(Verdict::Waits, "its one node");
        let mut play = Play::new(2, &[1], 3_000.0);
        play.rounds(40);
        assert!(!play.made.is_empty(), "there is another node");
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        let id = *play.world.groups.keys().next().unwrap();
        let group = Group { wanted: 3, ..Group::clone(&play.world.ledger.groups[&id]) };
        play.world.apply(&Change::default().put(Record::Group(group)));
        play.stays(Verdict::Waits, "its keys are changed when all it is to have are");
    }

    #[test]
    fn a_split_that_was_begun_by_itself_is_taken_back_by_a_pause() {
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        let operator = (0..40).find_map(|_| play.round()).expect("it is begun");
        let view = play.explained();
        assert!(view.groups[0].said.join("; ").contains("works on it: split t2 at /50"));
        let (change, _) = plans::pause(&play.world.ledger, play.world.now_ms).unwrap();
        play.world.apply(&change);
        let back = &play.world.ledger.operators[&operator.id];
        assert!(back.cancelled() && back.given_up_ms == play.world.now_ms, "{back:?}");
        assert!(!splits::is_settled(back, play.world.now_ms), "it looks first what was done");
    }

    #[test]
    fn moves_that_help_come_before_a_first_split() {
        let mut play = Play::new(3, &[1, 2, 3], 3_000.0);
        // Its neighbours are all led by the same node.
        for _ in 0..30 {
            let truth =
                Truth { lead_cpu: 30_000.0, follow_cpu: 100.0, writes: 1.0, size: 1.0, leader: 0 };
            play.world.tenant(&[1, 2, 3], truth);
        }
        play.say = Some(at("/50"));
        let neighbours = PolicyWish { mode: Some(SplitMode::Off), ..PolicyWish::default() };
        play.set(neighbours);
        let tenant = "t2".to_owned();
        play.set(PolicyWish { mode: Some(SplitMode::On), tenant, ..PolicyWish::default() });
        play.stays(Verdict::Waits, "moves come before a first split, and some would help n1");
        // They were not made for long enough.
        play.rounds(20);
        assert_eq!(play.made.len(), 1);
    }

    #[test]
    fn a_large_etcd_is_split_as_well() {
        let mut play = Play::new(1, &[1], 1.0);
        let id = *play.world.groups.keys().next().unwrap();
        play.world.groups.get_mut(&id).unwrap().size = (9 << 20) as f64;
        let operator = play.round().expect("it is begun");
        let why = &operator.why;
        assert!(why.ends_with("for its size: 9.0 MiB are stored, the bar is 8.0 MiB"), "{why}");
        play.cut(&operator);
        play.rounds(100);
        // 4.5 MiB each are above the later bar.
        assert_eq!(play.made.len(), 3);
        let Ok(Answer::Tenants(views)) = tenants::show(&play.world.ledger, Some("t2")) else {
            panic!()
        };
        assert!(views[0].places[1..].iter().all(|place| place.cause == "size"));
    }

    #[test]
    fn nodes_are_asked_for_cuts_of_what_is_warm() {
        let play = Play::new(3, &[1, 2, 3], 1.0);
        assert_eq!(asks(&play.world.ledger), (63, 30 << 17, 2 << 20));
    }

    #[test]
    fn what_is_no_etcd_is_refused() {
        let mut play = Play::new(3, &[1, 2, 3], 1.0);
        let stretch =
            tenants::create_namespace(&play.world.ledger, "t2", "e", Some("/e/"), 0).unwrap();
        play.world.ledger = stretch.0.applied_to(&play.world.ledger);
        let inventory = play.inventory();
        let ask = |name: &str| {
            let asked = explain(&play.world.ledger, &inventory, name, play.world.now_ms);
            asked.expect_err("it is refused").to_string()
        };
        assert!(ask("t2/e").contains("ask for t2"));
        assert!(ask("t3").contains("no tenant"));
        assert!(ask("t2/x").contains("no namespace"));
    }
}
