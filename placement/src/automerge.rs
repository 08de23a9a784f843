//! Which groups of etcds are to be merged again without being asked, and why or why not. Pure: ledger,
//! inventory and time in; an operator, or words, out. What is told to people is what is decided on.
//!
//! ```text
//!   was it cut for load or size, and no rule asks for it ─ no ──> the cut stays
//!        │ yes
//!   have both together had little, for long enough ─ no ──> it stays
//!        │ yes
//!   may it be, and can it be now ─ no ──> it stays: for whom, or how long
//!        │ yes
//!        └──> an operator like that of `atoll tenant merge`, with what was seen as its reason
//! ```
//!
//! Little is less than a fifth of what would split the two if they were one (`policy.rs`), in all that
//! has a bar. That is what keeps splits and merges from chasing each other: it needs five times as much
//! to be split again. A lull is not enough: it has to be little for half an hour, and an hour after a split
//! or a merge, which bounds how often a load that comes and goes leads to either.
//!
//! Invariants:
//! * what somebody cut by hand, or a rule asks for, stays;
//! * one merge at a time that nobody asked for, and none while anything else changes cuts of the etcd;
//! * nothing is decided while balancing is paused, where splits are off, or on numbers that are old.

use bytes::Bytes;

use crate::autosplit::changed_ms;
use crate::balance::DISK_FREE;
use crate::command::counted_ms;
use crate::health::Health;
use crate::heat::together;
use crate::inventory::Inventory;
use crate::ledger::{Change, Ledger};
use crate::merges::Etcd;
use crate::operators::ongoing;
use crate::policy::{Load, MERGE_HOLD_MS, MERGE_REST_MS, SplitMode, SplitPolicy};
use crate::record::{Cause, Namespace, Place, Priority, Record, Tenant, TenantState, text};
use crate::splits::rule_at;

/// What all judgements look at.
struct Look<'a> {
    ledger: &'a Ledger,
    inventory: &'a Inventory,
    health: Health<'a>,
    policy: SplitPolicy,
    now_ms: u64,
}

/// A cut that is to go now.
#[derive(Debug)]
struct Due {
    key: Bytes,
    /// What was seen, in words.
    seen: String,
    /// How much both have, against what would be too much: the least goes first.
    part: u64,
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
        }
    }

    /// Is the cut before one of the places to go now? If not, why.
    fn judge(&self, tenant: &Tenant, namespace: &Namespace, at: usize) -> Result<Due, String> {
        let places = namespace.places();
        let pair = at.checked_sub(1).and_then(|left| Some((places.get(left)?, places.get(at)?)));
        let Some((left, right)) = pair else { return Err("it is home".to_owned()) };
        if let Some(rule) = rule_at(tenant, namespace, &right.start) {
            return Err(format!("the rule \"{}\" asks for it", rule.name));
        }
        if right.cause == Cause::User {
            return Err("somebody asked for it".to_owned());
        }
        let heats = &self.inventory.heats.groups;
        let load = together(heats, self.inventory, left.group, right.group, self.now_ms);
        let Some(load) = load else {
            let (left, right) = (left.group, right.group);
            return Err(format!("whoever leads {left} or {right} has not said how it is"));
        };
        let bar = self.policy.merge_bar(places.len());
        let (left_id, beside) = (left.group, bar.beside(&load));
        let seen = format!("with group {left_id} it has {beside}");
        let since_ms = heats.get(&right.group).map_or(0, |heat| heat.quiet_ms);
        if !bar.is_little(&load, right.cause) || since_ms == 0 {
            return Err(seen);
        }
        let held_ms = self.now_ms.saturating_sub(since_ms);
        let (held, hold) = (counted_ms(held_ms), counted_ms(MERGE_HOLD_MS));
        if held_ms < MERGE_HOLD_MS {
            return Err(format!("{seen}, for {held}: it goes after {hold}"));
        }
        let seen = format!("{seen}, for {held}");
        match self.hindrance(tenant, namespace, left, right, &load) {
            Some(why) => Err(format!("{seen}; {why}")),
            None => Ok(Due { key: right.start.clone(), seen, part: bar.part(&load) }),
        }
    }

    /// Why a cut that is not needed any more cannot go now.
    fn hindrance(
        &self,
        tenant: &Tenant,
        namespace: &Namespace,
        left: &Place,
        right: &Place,
        load: &Load,
    ) -> Option<String> {
        if !self.policy.is_on_for(tenant) {
            return Some("nothing is split or merged by itself here".to_owned());
        }
        if self.ledger.meta.as_ref().is_none_or(|meta| meta.balance_paused) {
            return Some("balancing is paused: atoll rebalance resume".to_owned());
        }
        if tenant.state_of(namespace) != TenantState::Open {
            return Some("its tenant is not open".to_owned());
        }
        let changed = [left, right].into_iter().filter_map(|it| changed_ms(self.ledger, it.group));
        let rest_ms = changed.max().and_then(|ms| (ms + MERGE_REST_MS).checked_sub(self.now_ms));
        if let Some(rest_ms) = rest_ms.filter(|rest_ms| *rest_ms > 0) {
            return Some(format!("it rests for {} after a split or a merge", counted_ms(rest_ms)));
        }
        let places = namespace.places();
        let is_place = |group: u64| places.iter().any(|place| place.group == group);
        let busy = ongoing(self.ledger).find(|it| it.is_on_keys() && is_place(it.group));
        if let Some(other) = busy {
            return Some(format!("operator {} changes its cuts: {}", other.id, other.why));
        }
        let waits = |it: &&crate::record::Operator| {
            is_place(it.group) || it.merge.as_ref().is_some_and(|merge| is_place(merge.left))
        };
        let more = |it: &&crate::record::Operator| {
            it.merge.as_ref().is_some_and(|merge| !merge.rest.is_empty())
        };
        if let Some(other) = self.ledger.operators.values().filter(more).find(waits) {
            return Some(format!("operator {} has more cuts to take away", other.id));
        }
        let etcd = Etcd {
            ledger: self.ledger,
            inventory: self.inventory,
            health: &self.health,
            tenant,
            namespace,
        };
        match etcd.fit(&right.start) {
            Err(why) => Some(why.to_string()),
            Ok((left, right)) => {
                let has = |node: u64| right.replicas.iter().any(|replica| replica.node == node);
                let come = left.replicas.iter().map(|replica| replica.node).filter(|it| !has(*it));
                let full = come.into_iter().find(|node| !self.has_room(*node, load.size_bytes));
                full.map(|node| format!("{} has no room for it", self.ledger.node_name(node)))
            }
        }
    }

    /// May so many bytes come to a node? Where it is not known how large its disk is, they may.
    fn has_room(&self, node: u64, bytes: u64) -> bool {
        self.inventory.nodes.get(&node).is_none_or(|report| {
            let left = report.disk_free.saturating_sub(bytes) as f64;
            report.disk_total == 0 || left >= DISK_FREE * report.disk_total as f64
        })
    }
}

/// The next cut that is to go: that of the two groups that have least. `None` if there is none.
pub fn plan(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Option<Change> {
    let mut meta = ledger.meta.clone()?;
    let policy = SplitPolicy::of(ledger);
    if !policy.on && ledger.tenants.values().all(|tenant| tenant.splits != SplitMode::On) {
        return None;
    }
    if ongoing(ledger).any(|it| it.merge.is_some() && it.priority == Priority::Balance) {
        return None;
    }
    let quiet = |place: &Place| {
        inventory.heats.groups.get(&place.group).is_some_and(|heat| heat.quiet_ms > 0)
    };
    let mut look = None;
    let mut due: Option<(Due, &Tenant, &Namespace)> = None;
    for tenant in ledger.tenants.values().filter(|tenant| policy.is_on_for(tenant)) {
        for namespace in tenant.namespaces.iter().filter(|namespace| namespace.is_split()) {
            let places = namespace.places();
            for (at, _) in places.iter().enumerate().filter(|(_, place)| quiet(place)) {
                let look = look.get_or_insert_with(|| Look::new(ledger, inventory, now_ms));
                let Ok(found) = look.judge(tenant, namespace, at) else { continue };
                if due.as_ref().is_none_or(|(least, ..)| found.part < least.part) {
                    due = Some((found, tenant, namespace));
                }
            }
        }
    }
    let (Due { key, seen, .. }, tenant, namespace) = due?;
    let health = &look?.health;
    let etcd = Etcd { ledger, inventory, health, tenant, namespace };
    let operator = etcd.begin(&mut meta, &key, Vec::new(), &seen, now_ms).ok()?;
    Some(Change::default().put(Record::Operator(operator)).put(Record::Meta(meta)))
}

/// Why the cut before one of the places of an etcd stays or goes; nothing of home.
pub(crate) fn explain(
    ledger: &Ledger,
    inventory: &Inventory,
    tenant: &Tenant,
    namespace: &Namespace,
    at: usize,
    now_ms: u64,
) -> Option<String> {
    let places = namespace.places();
    let cut = text::of(&places.get(at).filter(|_| at > 0)?.start);
    Some(match Look::new(ledger, inventory, now_ms).judge(tenant, namespace, at) {
        Ok(Due { seen, .. }) => format!("the cut at {cut} goes: {seen}"),
        Err(why) => format!("the cut at {cut} stays: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::autosplit;
    use crate::autosplit::tests::{Play, cpu};
    use crate::check::{Gravity, check};
    use crate::command::ExplanationView;
    use crate::merges;
    use crate::nodes;
    use crate::operators::Step;
    use crate::policy::{self, BarWish, PolicyWish};
    use crate::record::{Group, NamespaceKind, Operator, OperatorState, keys_of};
    use crate::splits::{self, Said};
    use crate::{operators, plans, tenants};

    /// Time between two looks, in milliseconds.
    const TICK_MS: u64 = 30_000;
    const HOUR: usize = 3_600_000 / TICK_MS as usize;

    /// The cluster of `autosplit.rs`, whose etcd has so much to do as is said, evenly over its keys.
    struct Sim {
        play: Play,
        requests_per_s: f64,
        size_bytes: f64,
        /// When its cuts came and went, in ticks, each with what it had to do then.
        splits: Vec<(usize, f64)>,
        merges: Vec<(usize, f64)>,
        /// When a group was split or merged last.
        changed_ms: BTreeMap<u64, u64>,
        tick: usize,
    }

    impl Sim {
        /// Split by itself from 1,000 requests a second on, or from 8 MiB, and later from half of that.
        fn new() -> Sim {
            let play = Play::new(3, &[1, 2, 3], 0.0);
            let (splits, merges, changed_ms) = (Vec::new(), Vec::new(), BTreeMap::new());
            let (requests_per_s, size_bytes, tick) = (0.0, 1.0, 0);
            Sim { play, requests_per_s, size_bytes, splits, merges, changed_ms, tick }
        }

        /// All its keys are shared out anew.
        fn share_out(&mut self) {
            let groups: Vec<u64> = self.play.world.groups.keys().copied().collect();
            let number = |key: &Bytes| {
                let digits = std::str::from_utf8(key.get(1..).unwrap_or_default()).unwrap_or("");
                digits.parse::<f64>().unwrap_or(0.0)
            };
            for group in groups {
                let keys = self.play.keys(group);
                let part = keys.end.as_ref().map_or(100.0, number) - number(&keys.start);
                let truth = self.play.world.groups.get_mut(&group).expect("it is a group");
                truth.lead_cpu = cpu(self.requests_per_s * part / 100.0);
                truth.size = self.size_bytes * part / 100.0;
            }
        }

        fn round(&mut self) {
            self.tick += 1;
            self.play.world.now_ms += TICK_MS;
            self.share_out();
            let inventory = self.play.inventory();
            let now_ms = self.play.world.now_ms;
            if let Some(change) = autosplit::plan(&self.play.world.ledger, &inventory, now_ms) {
                let operator = self.begun(&change);
                self.play.cut(&operator);
                self.splits.push((self.tick, self.requests_per_s));
                for group in [operator.group, operator.cuts[0].child] {
                    self.changed_ms.insert(group, now_ms);
                }
                self.share_out();
            }
            if let Some(change) = plan(&self.play.world.ledger, &inventory, now_ms) {
                let operator = self.begun(&change);
                assert!(
                    plan(&self.play.world.ledger, &inventory, now_ms).is_none(),
                    "one at a time"
                );
                let left = operator.merge.as_ref().expect("it merges").left;
                for group in [operator.group, left] {
                    let before = self.changed_ms.insert(group, now_ms);
                    assert!(before.is_none_or(|ms| now_ms >= ms + MERGE_REST_MS), "it rests");
                }
                self.merged(&operator);
                self.merges.push((self.tick, self.requests_per_s));
            }
        }

        fn begun(&mut self, change: &Change) -> Operator {
            self.play.world.apply(change);
            let wrong = check(&self.play.world.ledger);
            let wrong = wrong.iter().find(|found| found.gravity == Gravity::Wrong);
            assert_eq!(wrong, None);
            let newest = self.play.world.ledger.operators.values().next_back();
            newest.expect("it was begun").clone()
        }

        /// What the left group's log says.
        fn merged(&mut self, operator: &Operator) {
            let world = &mut self.play.world;
            let (id, right) = (operator.id, operator.group);
            let left = operator.merge.as_ref().expect("it merges").left;
            assert!(matches!(operators::next_step(&world.ledger, operator), Step::Merge(_)));
            let asked = merges::note_asked(&world.ledger, id, world.now_ms);
            world.apply(&asked.expect("it was not asked yet"));
            let (namespace, at) = world.ledger.place_of(left).expect("it has keys");
            let places = namespace.places();
            let (mut keys, version) = (keys_of(&places, at), places[at].version);
            keys.end = keys_of(&places, at + 1).end;
            let version = version.max(places[at + 1].version) + 1;
            let said = Said { keys, version };
            let learned = splits::learn(&world.ledger, left, &said, world.now_ms);
            world.apply(&learned.expect("it is news"));
            assert_eq!(world.ledger.operators[&id].state, OperatorState::Done);
            world.groups.remove(&right);
        }

        fn rounds(&mut self, rounds: usize) {
            for _ in 0..rounds {
                self.round();
            }
        }

        /// So many hours with so much to do.
        fn hours(&mut self, hours: usize, requests_per_s: f64) {
            self.requests_per_s = requests_per_s;
            self.rounds(hours * HOUR);
        }

        fn groups(&self) -> usize {
            self.play.world.ledger.tenants[&2].namespaces[0].places().len()
        }

        fn said(&mut self, at: usize) -> String {
            let view: ExplanationView = self.play.explained();
            view.groups[at].said.join("; ")
        }
    }

    #[test]
    fn what_a_burst_has_cut_comes_together_again() {
        let mut sim = Sim::new();
        sim.hours(1, 3_000.0);
        assert_eq!((sim.groups(), sim.merges.len()), (8, 0));
        let said = sim.said(1);
        let beside =
            "the cut at /12 stays: with group 2 it has 750 requests/s (below 100 is little)";
        assert!(said.contains(beside), "{said}");
        assert!(!sim.said(0).contains("the cut at"), "it is home");
        sim.requests_per_s = 40.0;
        sim.rounds(HOUR / 12);
        let said = sim.said(1);
        assert!(said.contains(" requests/s (below 100 is little)"), "{said}");
        assert!(said.contains("it goes after 30 min"), "{said}");
        sim.hours(4, 40.0);
        assert_eq!(sim.groups(), 1);
        let merges: Vec<&Operator> =
            sim.play.world.ledger.operators.values().filter(|it| it.merge.is_some()).collect();
        assert!(merges.len() == 7 && merges.iter().all(|it| it.priority == Priority::Balance));
        let why = &merges[0].why;
        assert!(why.starts_with("merge t2 at /12 into group 2: with group 2 it has "), "{why}");
    }

    #[test]
    fn a_merge_that_is_due_says_what_it_waits_for() {
        let mut sim = Sim::new();
        sim.requests_per_s = 1_100.0;
        sim.rounds(HOUR / 10);
        sim.requests_per_s = 40.0;
        sim.rounds(HOUR / 2 + HOUR / 4);
        assert_eq!(sim.groups(), 4);
        let said = sim.said(1);
        assert!(
            said.contains("; it rests for ") && said.contains("after a split or a merge"),
            "{said}"
        );
        let (change, _) = plans::pause(&sim.play.world.ledger, 5).unwrap();
        sim.play.world.apply(&change);
        sim.hours(2, 40.0);
        assert_eq!(sim.groups(), 4);
        assert!(sim.said(1).contains("atoll rebalance resume"));
        let (change, _) = plans::resume(&sim.play.world.ledger).unwrap();
        sim.play.world.apply(&change);
        let off = policy::SplitMode::Off;
        sim.play.set(PolicyWish { mode: Some(off), ..PolicyWish::default() });
        sim.hours(1, 40.0);
        assert_eq!(sim.groups(), 4);
        assert!(sim.said(1).contains("nothing is split or merged by itself here"));
        let on = policy::SplitMode::On;
        sim.play.set(PolicyWish { mode: Some(on), ..PolicyWish::default() });
        // What a user did to one of them is in the way.
        let right = sim.play.world.ledger.tenants[&2].namespaces[0].places()[1].group;
        let mut replicas = sim.play.world.ledger.groups[&right].replicas.clone();
        assert_eq!(replicas[2].node, 3);
        replicas[2].learner = true;
        let report = nodes::report(&sim.play.world.ledger, right, 9, &replicas, &[]).unwrap();
        let before = sim.play.world.ledger.groups[&right].clone();
        sim.play.world.ledger = report.applied_to(&sim.play.world.ledger);
        assert!(sim.said(1).contains("has a learner on n3"), "{}", sim.said(1));
        let before = Group { membership_version: 10, ..Group::clone(&before) };
        let change = Change::default().put(Record::Group(before));
        sim.play.world.apply(&change);
        sim.rounds(3);
        assert_eq!(sim.groups(), 2, "two pairs, one after the other");
    }

    #[test]
    fn what_somebody_wanted_stays() {
        let mut sim = Sim::new();
        sim.hours(1, 1_100.0);
        assert_eq!(sim.groups(), 4);
        let ledger = &sim.play.world.ledger;
        let mut tenant = Tenant::clone(&ledger.tenants[&2]);
        if let NamespaceKind::Separate { places, .. } = &mut tenant.namespaces[0].kind {
            places[1].cause = Cause::User;
            assert_eq!(places[2].start.as_ref(), b"/50");
            assert_eq!(places[2].cause, Cause::Load);
        }
        sim.play.world.apply(&Change::default().put(Record::Tenant(tenant)));
        let rule = tenants::create_namespace(&sim.play.world.ledger, "t2", "e", Some("/50"), 0);
        sim.play.world.ledger = rule.unwrap().0.applied_to(&sim.play.world.ledger);
        sim.hours(3, 40.0);
        assert_eq!(sim.groups(), 3, "the one that nobody asked for is gone");
        assert!(sim.said(1).contains("the cut at /25 stays: somebody asked for it"));
        assert!(sim.said(2).contains("the cut at /50 stays: the rule \"e\" asks for it"));
    }

    #[test]
    fn what_was_cut_for_its_size_comes_together_when_it_is_small() {
        let mut sim = Sim::new();
        sim.size_bytes = 9.0 * f64::from(1 << 20);
        sim.hours(1, 1.0);
        assert_eq!(sim.groups(), 4);
        sim.size_bytes = f64::from(3 << 20);
        sim.hours(3, 1.0);
        assert_eq!(sim.groups(), 4, "1.5 MiB each two, below 0.8 is little");
        sim.size_bytes = f64::from(1 << 20);
        sim.hours(3, 1.0);
        assert_eq!(sim.groups(), 1);
        // Of a measure without a bar nobody can say what is little.
        let mut sim = Sim::new();
        sim.hours(1, 1_100.0);
        let none =
            BarWish { requests_per_s: Some(0), write_bytes_per_s: Some(0), ..Default::default() };
        sim.play.set(PolicyWish { first: none, later: none, ..PolicyWish::default() });
        sim.hours(3, 1.0);
        assert_eq!(sim.groups(), 4);
    }

    #[test]
    fn splits_and_merges_do_not_chase_each_other() {
        // A load that stays what it is, give or take a third, leads to one or the other.
        let mut both = 0;
        for step in (0..12).step_by(2) {
            let mut sim = Sim::new();
            sim.play.world.noise = 33.0;
            let load = 10.0 * 2f64.powi(step);
            sim.hours(5, load);
            assert!(sim.merges.is_empty(), "{load}: {:?} {:?}", sim.splits, sim.merges);
            let late = sim.splits.iter().filter(|(tick, _)| *tick > HOUR);
            both += late.count();
            // The same from the other side: it had more before.
            let mut sim = Sim::new();
            sim.hours(1, 5_000.0);
            let before = sim.splits.len();
            sim.play.world.noise = 33.0;
            sim.hours(8, load);
            assert!(sim.splits.len() == before || sim.merges.is_empty(), "{load}");
            let late = |events: &[(usize, f64)]| events.iter().any(|(tick, _)| *tick > 6 * HOUR);
            assert!(!late(&sim.splits) && !late(&sim.merges), "{load}");
        }
        assert_eq!(both, 0, "all splits are early");
    }

    #[test]
    fn no_settings_make_them_chase_each_other() {
        let (mut split, mut merged) = (0, 0);
        for seed in 0..24u64 {
            let roll = |what: u64, sides: u64| crate::ring::stable(&(seed, what)) % sides;
            let mut sim = Sim::new();
            let bar = |what: u64| BarWish {
                requests_per_s: Some([0, 4, 200, 1_000, 6_000][roll(what, 5) as usize]),
                write_bytes_per_s: Some([0, 1, 1 << 20, 1 << 20][roll(what + 1, 4) as usize]),
                hold_ms: Some([0, 10_000, 60_000][roll(what + 2, 3) as usize]),
                size_bytes: Some([0, 1, 1 << 20, 9 << 20, 9 << 20][roll(what + 3, 5) as usize]),
            };
            sim.size_bytes = 5.0e6;
            sim.hours(1, [0.0, 5_000.0][roll(40, 2) as usize]);
            let wish = PolicyWish {
                first: bar(10),
                later: bar(20),
                groups_max: Some(1 + roll(30, 9) as usize),
                rest_ms: Some([0, 60_000][roll(31, 2) as usize]),
                ..PolicyWish::default()
            };
            sim.play.set(wish);
            sim.play.world.noise = 20.0;
            sim.size_bytes = [1.0, 1.0e5, 2.0e6][roll(32, 3) as usize];
            sim.splits.clear();
            sim.merges.clear();
            sim.hours(6, [0.0, 3.0, 40.0, 700.0][roll(33, 4) as usize]);
            let last = sim.splits.iter().chain(&sim.merges).map(|(tick, _)| *tick).max();
            assert!(
                last.is_none_or(|tick| tick < 6 * HOUR),
                "{seed}: {:?} {:?}",
                sim.splits,
                sim.merges
            );
            split += usize::from(!sim.splits.is_empty());
            merged += usize::from(!sim.merges.is_empty());
        }
        assert!(split > 0 && merged > 0, "{split} {merged}");
    }

    #[test]
    fn a_load_that_comes_and_goes_leads_to_few_of_both() {
        for minutes in [6.0, 30.0, 50.0, 120.0, 360.0] {
            let mut sim = Sim::new();
            for _ in 0..12 * HOUR {
                let hours = sim.tick as f64 / HOUR as f64;
                let phase = (hours * 60.0 / minutes * std::f64::consts::TAU).sin();
                // Between 20 and 3,000.
                sim.requests_per_s = 20.0 * 150f64.powf((phase + 1.0) / 2.0);
                sim.round();
            }
            let (splits, merges) = (sim.splits.len(), sim.merges.len());
            assert!(splits > 0, "it is hot at times: {minutes}");
            // Never for a lull that is short, and once for each that is long.
            let longest = 12.0 * 60.0 / minutes * 7.0;
            assert!(splits as f64 <= longest.max(14.0), "{minutes} min: {splits} splits");
            assert!(merges <= splits, "{minutes} min: {splits} splits, {merges} merges");
            match minutes {
                ..60.0 => assert_eq!(merges, 0, "{minutes} min"),
                _ => assert!(merges > 0, "{minutes} min"),
            }
            // Each was done at a time when it was right.
            assert!(sim.merges.iter().all(|(_, load)| *load < 1_000.0), "{:?}", sim.merges);
        }
    }
}
