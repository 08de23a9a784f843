//! What operators want of splits that nobody asks for one by one. Pure.
//!
//! The first split of an etcd is dear: from then on each write takes a trip to the home group, unless
//! it is home's own, and what reaches over several groups takes more. Later ones cost next to
//! nothing. So there are two bars, a high one for the first and a lower one for those behind it.
//!
//! Why these figures: a put costs all servers together about 50 µs of CPU and a get 27
//! (`docs/measurements.md`), so 15,000 requests a second are about 60 % of a core, and half of them
//! 30 %. CPU is not told apart by groups, so requests and bytes stand for it. Sixty seconds are longer
//! than a burst; when an etcd is split already ten will do. Off, until somebody turns it on.
//!
//! Whoever turns it on has groups merged again as well (`automerge.rs`): two neighbours that together
//! have less than a fifth, [`MERGE_PART`], of the bar that would then be theirs. So splits and merges
//! cannot chase each other, whatever is set: the one that was merged needs five times as much to be
//! split, and of two that were split just now all that they have had to be over the same bar.
//!
//! Invariants: what was never set is not written, so a ledger that knows nothing of this is what it
//! was; a bar of 0 is never reached.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::balance::bytes;
use crate::command::{Answer, Refusal, refused};
use crate::ledger::{Change, Ledger};
use crate::record::{Cause, Meta, Record, Tenant};
use crate::splits::PLACES_MAX;
use crate::tenants::Planned;

/// Longest time that may be asked for, in milliseconds.
const TIME_MAX_MS: u64 = 24 * 3600 * 1000;

/// Two groups are merged when what they have, so many times, is still below the bar of a split.
pub const MERGE_PART: u64 = 5;
/// For so long, in milliseconds: longer than most lulls.
pub const MERGE_HOLD_MS: u64 = 1_800_000;
/// A group that was split or merged is not merged for so long, in milliseconds.
pub const MERGE_REST_MS: u64 = 3_600_000;

/// When etcds are split without being asked.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitPolicy {
    /// Are they, unless their tenant says otherwise?
    pub on: bool,
    /// The bar for an etcd that is on one group.
    pub first: Bar,
    /// The bar for one that is on several.
    pub later: Bar,
    /// Groups that an etcd may come to be on by itself.
    pub groups_max: usize,
    /// How long both sides of a cut are left alone, in milliseconds.
    pub rest_ms: u64,
}

/// What makes a group one that is to be split. Zero: nothing does.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bar {
    /// So many requests a second, on all its nodes.
    pub requests_per_s: u64,
    /// So many bytes a second appended to its log.
    pub write_bytes_per_s: u64,
    /// One of these for so long, in milliseconds.
    pub hold_ms: u64,
    /// So many bytes of rows and large values.
    pub size_bytes: u64,
}

/// What a tenant says of its own etcds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitMode {
    /// As all others.
    #[default]
    Default,
    /// They are split.
    On,
    /// They are not.
    Off,
}

/// What is to be changed; the rest stays.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyWish {
    /// Are etcds split by themselves? With a tenant only its own are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<SplitMode>,
    /// The tenant that is meant; empty for the whole service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// The bar of the first split.
    #[serde(default)]
    pub first: BarWish,
    /// The bar of later ones.
    #[serde(default)]
    pub later: BarWish,
    /// See [`SplitPolicy::groups_max`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups_max: Option<usize>,
    /// See [`SplitPolicy::rest_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest_ms: Option<u64>,
}

/// What of a bar is to be changed.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BarWish {
    /// See [`Bar::requests_per_s`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<u64>,
    /// See [`Bar::write_bytes_per_s`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_s: Option<u64>,
    /// See [`Bar::hold_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_ms: Option<u64>,
    /// See [`Bar::size_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// The policy as people see it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// What is set.
    pub split: SplitPolicy,
    /// What would be if nothing had been set.
    pub default: SplitPolicy,
    /// Tenants that say something of their own.
    pub tenants: BTreeMap<String, SplitMode>,
}

impl Default for SplitPolicy {
    fn default() -> SplitPolicy {
        let first = Bar {
            requests_per_s: 15_000,
            write_bytes_per_s: 60 << 20,
            hold_ms: 60_000,
            size_bytes: 8 << 30,
        };
        let later = Bar {
            requests_per_s: 7_500,
            write_bytes_per_s: 30 << 20,
            hold_ms: 10_000,
            size_bytes: 1 << 30,
        };
        SplitPolicy { on: true, first, later, groups_max: PLACES_MAX, rest_ms: 60_000 }
    }
}

// === impl SplitPolicy ===

impl SplitPolicy {
    /// The policy of a ledger.
    pub fn of(ledger: &Ledger) -> SplitPolicy {
        ledger.meta.as_ref().map_or_else(SplitPolicy::default, |meta| meta.splits)
    }

    /// Was nothing set?
    pub(crate) fn is_default(&self) -> bool {
        *self == SplitPolicy::default()
    }

    /// Are the tenant's etcds split without being asked?
    pub fn is_on_for(&self, tenant: &Tenant) -> bool {
        match tenant.splits {
            SplitMode::Default => self.on,
            SplitMode::On => true,
            SplitMode::Off => false,
        }
    }

    /// The bar for an etcd on so many groups.
    pub fn bar(&self, groups: usize) -> &Bar {
        if groups > 1 { &self.later } else { &self.first }
    }

    /// What would split one group of an etcd on so many, if two of them were one. Where that has no
    /// bar the other one counts: somebody has to say what is little.
    pub fn merge_bar(&self, groups: usize) -> Bar {
        let merged = self.bar(groups.saturating_sub(1));
        let other = if *merged == self.first { self.later } else { self.first };
        let of = |of: fn(&Bar) -> u64| match of(merged) {
            0 => of(&other),
            bar => bar,
        };
        Bar {
            requests_per_s: of(|bar| bar.requests_per_s),
            write_bytes_per_s: of(|bar| bar.write_bytes_per_s),
            hold_ms: MERGE_HOLD_MS,
            size_bytes: of(|bar| bar.size_bytes),
        }
    }
}

/// What a group has to do and to keep, or several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests a second.
    pub requests_per_s: u64,
    /// Bytes a second written.
    pub write_bytes_per_s: u64,
    /// Bytes stored.
    pub size_bytes: u64,
}

// === impl SplitMode ===

impl SplitMode {
    /// Does the tenant say nothing?
    pub(crate) fn is_default(&self) -> bool {
        *self == SplitMode::Default
    }
}

// === impl Bar ===

impl Bar {
    /// What load reaches it, in words; `None` if none does.
    pub fn reached_by(&self, requests_per_s: u64, write_bytes_per_s: u64) -> Option<String> {
        let over = |load: u64, bar: u64| bar > 0 && load >= bar;
        if over(requests_per_s, self.requests_per_s) {
            let bar = self.requests_per_s;
            return Some(format!("{requests_per_s} requests/s, the bar is {bar}"));
        }
        let (load, bar) = (write_bytes_per_s, self.write_bytes_per_s);
        let words = || {
            let (load, bar) = (bytes(load as f64), bytes(bar as f64));
            format!("{load}/s are written, the bar is {bar}/s")
        };
        over(load, bar).then(words)
    }

    /// How much a load is of this bar, in thousandths of the measure it has most of, times
    /// [`MERGE_PART`]: below 1000 it is little.
    pub(crate) fn part(&self, load: &Load) -> u64 {
        let part = |of: u64, bar: u64| match bar {
            0 => 0,
            // Whole numbers are told: of each of two there may be one more.
            bar => (u128::from(of) + 2) * u128::from(1000 * MERGE_PART) / u128::from(bar),
        };
        let parts = [
            part(load.requests_per_s, self.requests_per_s),
            part(load.write_bytes_per_s, self.write_bytes_per_s),
            part(load.size_bytes, self.size_bytes),
        ];
        u64::try_from(parts.into_iter().max().unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Is it little, for what was cut for this cause? Of a measure without a bar that cannot be said.
    pub(crate) fn is_little(&self, load: &Load, cause: Cause) -> bool {
        let has_bar = match cause {
            Cause::User => false,
            Cause::Load => self.requests_per_s > 0 || self.write_bytes_per_s > 0,
            Cause::Size => self.size_bytes > 0,
        };
        has_bar && self.part(load) < 1000
    }

    /// A load beside what of it would be little, in words.
    pub(crate) fn beside(&self, load: &Load) -> String {
        let is = [
            (format!("{} requests/s", load.requests_per_s), self.requests_per_s),
            (format!("{}/s written", bytes(load.write_bytes_per_s as f64)), self.write_bytes_per_s),
            (format!("{} stored", bytes(load.size_bytes as f64)), self.size_bytes),
        ];
        let little = |(at, (is, bar)): (usize, (String, u64))| match (at, bar) {
            (_, 0) => is,
            (0, bar) => format!("{is} (below {} is little)", bar.div_ceil(MERGE_PART)),
            (1, bar) => {
                format!("{is} (below {}/s is little)", bytes((bar / MERGE_PART) as f64))
            }
            (_, bar) => format!("{is} (below {} is little)", bytes((bar / MERGE_PART) as f64)),
        };
        is.into_iter().enumerate().map(little).collect::<Vec<_>>().join(", ")
    }

    fn changed(self, wish: BarWish) -> Bar {
        Bar {
            requests_per_s: wish.requests_per_s.unwrap_or(self.requests_per_s),
            write_bytes_per_s: wish.write_bytes_per_s.unwrap_or(self.write_bytes_per_s),
            hold_ms: wish.hold_ms.unwrap_or(self.hold_ms),
            size_bytes: wish.size_bytes.unwrap_or(self.size_bytes),
        }
    }
}

// === commands ===

/// What is set.
pub fn show(ledger: &Ledger) -> Answer {
    let own = ledger.tenants.values().filter(|tenant| !tenant.splits.is_default());
    Answer::Policy(Box::new(PolicyView {
        split: SplitPolicy::of(ledger),
        default: SplitPolicy::default(),
        tenants: own.map(|tenant| (tenant.name.clone(), tenant.splits)).collect(),
    }))
}

/// Changes what is set.
pub fn set(ledger: &Ledger, wish: &PolicyWish) -> Planned {
    let meta = ledger.meta.clone().ok_or(refused("the service is not set up yet"))?;
    let change = match wish.tenant.as_str() {
        "" => Change::default().put(Record::Meta(Meta { splits: changed(&meta, wish)?, ..meta })),
        name => {
            let of_all =
                PolicyWish { mode: wish.mode, tenant: name.to_owned(), ..PolicyWish::default() };
            let (true, Some(splits)) = (*wish == of_all, wish.mode) else {
                let why = "for one tenant splits are on, off or default; bars are those of all";
                return Err(refused(why));
            };
            let tenant = ledger.tenant(name);
            let tenant = tenant.ok_or_else(|| refused(format!("there is no tenant \"{name}\"")))?;
            let tenant = Tenant { splits, ..tenant.clone() };
            Change::default().put(Record::Meta(meta)).put(Record::Tenant(tenant))
        }
    };
    let answer = show(&change.applied_to(ledger));
    Ok((change, answer))
}

fn changed(meta: &Meta, wish: &PolicyWish) -> Result<SplitPolicy, Refusal> {
    let before = meta.splits;
    let after = SplitPolicy {
        on: match wish.mode {
            None => before.on,
            Some(SplitMode::Default) => SplitPolicy::default().on,
            Some(mode) => mode == SplitMode::On,
        },
        first: before.first.changed(wish.first),
        later: before.later.changed(wish.later),
        groups_max: wish.groups_max.unwrap_or(before.groups_max),
        rest_ms: wish.rest_ms.unwrap_or(before.rest_ms),
    };
    if !(1..=PLACES_MAX).contains(&after.groups_max) {
        return Err(refused(format!("an etcd is on 1 to {PLACES_MAX} groups")));
    }
    let times = [after.first.hold_ms, after.later.hold_ms, after.rest_ms];
    if times.iter().any(|time| *time > TIME_MAX_MS) {
        return Err(refused("times are of a day at most"));
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants;
    use crate::tenants::tests::founded;

    fn after(ledger: &Ledger, wish: &PolicyWish) -> Ledger {
        set(ledger, wish).expect("it is allowed").0.applied_to(ledger)
    }

    fn refusal(ledger: &Ledger, wish: &PolicyWish) -> String {
        set(ledger, wish).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_is_set_is_shown_and_the_rest_stays() {
        let ledger = founded();
        assert_eq!(SplitPolicy::of(&ledger), SplitPolicy::default());
        let first = BarWish { requests_per_s: Some(100), ..BarWish::default() };
        let wish = PolicyWish { mode: Some(SplitMode::Off), first, ..PolicyWish::default() };
        let ledger = after(&ledger, &wish);
        let policy = SplitPolicy::of(&ledger);
        let default = SplitPolicy::default();
        let first = Bar { requests_per_s: 100, ..default.first };
        assert_eq!(policy, SplitPolicy { on: false, first, ..default });
        let Answer::Policy(view) = show(&ledger) else { panic!("a policy") };
        assert_eq!((view.split, view.default), (policy, default));
        let command = crate::Command::PolicySet(Box::new(wish));
        let said = serde_json::to_string(&command).expect("it can be said");
        assert_eq!(serde_json::from_str::<crate::Command>(&said).ok(), Some(command));
        let unknown = r#"{"command":"policy-set","frist":{}}"#;
        assert!(serde_json::from_str::<crate::Command>(unknown).is_err());
        let wish = PolicyWish { mode: Some(SplitMode::Default), ..PolicyWish::default() };
        assert!(SplitPolicy::of(&after(&ledger, &wish)).on, "on is what it is by default");
    }

    #[test]
    fn a_tenant_has_its_own_way() {
        let ledger = founded();
        let ledger = tenants::create(&ledger, "acme", 0, 0).unwrap().0.applied_to(&ledger);
        let of = |mode| PolicyWish {
            mode: Some(mode),
            tenant: "acme".to_owned(),
            ..PolicyWish::default()
        };
        let is_on = |ledger: &Ledger| {
            SplitPolicy::of(ledger).is_on_for(ledger.tenant("acme").expect("it is there"))
        };
        assert!(is_on(&ledger));
        let off = after(&ledger, &of(SplitMode::Off));
        assert!(!is_on(&off));
        let Answer::Policy(view) = show(&off) else { panic!("a policy") };
        assert_eq!(view.tenants, BTreeMap::from([("acme".to_owned(), SplitMode::Off)]));
        let none = PolicyWish { mode: Some(SplitMode::Off), ..PolicyWish::default() };
        let none = after(&ledger, &none);
        assert!(!is_on(&none) && is_on(&after(&none, &of(SplitMode::On))));
        let nobody = PolicyWish { tenant: "nobody".to_owned(), ..of(SplitMode::On) };
        assert!(refusal(&ledger, &nobody).contains("no tenant \"nobody\""));
        let bar = PolicyWish { groups_max: Some(3), ..of(SplitMode::On) };
        assert!(refusal(&ledger, &bar).contains("those of all"));
        let nothing = PolicyWish { mode: None, ..of(SplitMode::On) };
        assert!(refusal(&ledger, &nothing).contains("on, off or default"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let ledger = founded();
        for groups_max in [0, 65] {
            let wish = PolicyWish { groups_max: Some(groups_max), ..PolicyWish::default() };
            assert!(refusal(&ledger, &wish).contains("1 to 64 groups"));
        }
        let rest_ms = Some(TIME_MAX_MS + 1);
        assert!(refusal(&ledger, &PolicyWish { rest_ms, ..PolicyWish::default() }).contains("day"));
    }

    #[test]
    fn a_bar_of_nothing_is_not_reached() {
        let bar = Bar { requests_per_s: 10, ..Bar::default() };
        assert_eq!(bar.reached_by(9, u64::MAX), None);
        assert_eq!(bar.reached_by(10, 0).as_deref(), Some("10 requests/s, the bar is 10"));
        let bar = Bar { write_bytes_per_s: 1 << 20, ..Bar::default() };
        let said = bar.reached_by(u64::MAX, 3 << 20);
        assert_eq!(said.as_deref(), Some("3.0 MiB/s are written, the bar is 1.0 MiB/s"));
    }

    #[test]
    fn little_is_a_fifth_of_what_would_split_both() {
        let mut policy = SplitPolicy::default();
        let load = |requests_per_s| Load { requests_per_s, write_bytes_per_s: 0, size_bytes: 0 };
        let is_little = |policy: &SplitPolicy, groups, requests| {
            policy.merge_bar(groups).is_little(&load(requests), Cause::Load)
        };
        // Two would be one, whose bar is that of a first split; three would be two.
        assert!(is_little(&policy, 2, 2_997) && !is_little(&policy, 2, 2_998));
        assert!(is_little(&policy, 3, 1_497) && !is_little(&policy, 3, 1_498));
        let large = Load { size_bytes: 300 << 20, ..load(0) };
        let bar = policy.merge_bar(3);
        assert!(!bar.is_little(&large, Cause::Load), "in all that has a bar");
        assert!(!bar.is_little(&load(0), Cause::User));
        let said = bar.beside(&large);
        let words = "0 requests/s (below 1500 is little), 0 B/s written (below 6.0 MiB/s is little), \
                     300.0 MiB stored (below 204.8 MiB is little)";
        assert_eq!(said, words);
        // Without a bar of its own that of the others counts; without any, nobody can say.
        policy.first.requests_per_s = 0;
        assert!(is_little(&policy, 2, 1_497) && !is_little(&policy, 2, 1_498));
        policy.later.requests_per_s = 0;
        assert!(is_little(&policy, 2, u64::MAX), "writes have a bar");
        (policy.first.write_bytes_per_s, policy.later.write_bytes_per_s) = (0, 0);
        assert!(!is_little(&policy, 2, 0));
        assert!(policy.merge_bar(2).is_little(&load(9), Cause::Size));
        // A bar of a few is nothing that two can be below together.
        policy.later.requests_per_s = MERGE_PART;
        assert!(!is_little(&policy, 3, 0));
    }

    #[test]
    fn what_was_never_set_is_not_written() {
        let ledger = founded();
        let written = |ledger: &Ledger| String::from_utf8(ledger.save()).expect("text");
        assert!(!written(&ledger).contains("splits"));
        let wish = PolicyWish { mode: Some(SplitMode::Off), ..PolicyWish::default() };
        let set = after(&ledger, &wish);
        assert_eq!(Ledger::load(&set.save()).expect("it can be read").meta, set.meta);
    }
}
