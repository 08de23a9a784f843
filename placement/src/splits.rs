//! Cutting an etcd's keys over several groups: what an operator is to ask for, and what the ledger
//! learns from the groups. Pure.
//!
//! ```text
//!   the ledger: where to cut, and the new group's number ──> the group's leader is asked for it,
//!        ^                                                   at the version that the ledger knows
//!        └─ places, versions, the new group <── its log: its keys end at the cut, its version rose
//! ```
//!
//! The log of the group that is cut decides, and nobody else. Whoever is asked, or reports by itself,
//! says what keys its replica has applied, under which version; a higher version than the ledger's
//! is the truth, whether it was asked for a moment ago, before a crash, or by an operator that is
//! long over. So every step may be lost or repeated.
//!
//! An operator that was taken back may have asked already. It ends when the log says that it was
//! done, or when an entry that was made at the known version, a while after the last question, was
//! applied: then what was asked for would have been applied before it. What nevertheless comes later,
//! out of a network that held it back, is learned from the group's report.
//!
//! The way back is in `merges.rs`. What groups report of either is learned here.
//!
//! Cuts of one group are made from the highest down, each the end of what is left: so a stretch in
//! the middle becomes a group of its own by two cuts of the group that it was in.
//!
//! Invariants:
//! * the places of an etcd tile all keys, home first, for life;
//! * a new group's number stands in the operator before anybody is asked, and is never given again;
//! * nothing else works on the group meanwhile, and nothing on the new one before its leader has
//!   told its members.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::KeyRange;
use proto::cluster::group::RangePlace;

use crate::command::{Answer, Refusal, refused};
use crate::health::Health;
use crate::inventory::Inventory;
use crate::ledger::{Change, Ledger};
use crate::merges;
use crate::operators::{self, Step, holder, voters};
use crate::record::{
    Cause, Cut, Group, Meta, Namespace, NamespaceKind, Operator, OperatorState, Place, Priority,
    Record, Replica, SPLIT_FORMAT, Tenant, TenantState, keys_of, text,
};
use crate::tenants::Planned;

/// Groups that an etcd may be on.
pub const PLACES_MAX: usize = 64;
/// Bytes of a key where an etcd is cut: it stands in the ledger and in the map of every node.
const CUT_BYTES: usize = 1024;
/// An operator whose group cannot do it for so long gives up.
pub const PATIENCE_MS: u64 = 120_000;
/// After a rule could not be followed it is left alone for so long.
const RULE_REST_MS: u64 = 600_000;
/// A question that was asked so long ago has been answered, or lost.
pub const SETTLED_MS: u64 = 10_000;

/// Where an etcd is to be cut.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The tenant, or TENANT/NAMESPACE.
    pub name: &'a str,
    /// The first keys of new groups.
    pub at: &'a [String],
    /// Keys that begin so get groups of their own.
    pub prefixes: &'a [String],
}

/// What a group's replica says of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// They are.
    pub keys: KeyRange,
    /// Under this version.
    pub version: u64,
}

impl From<RangePlace> for Said {
    fn from(place: RangePlace) -> Said {
        let RangePlace { start, end, version, .. } = place;
        Said { keys: KeyRange { start, end }, version }
    }
}

/// Begins to cut an etcd.
pub fn split(ledger: &Ledger, inventory: &Inventory, wish: &Wish<'_>, now_ms: u64) -> Planned {
    let mut meta = ledger.meta.clone().ok_or(refused("the service is not set up yet"))?;
    let name = wish.name;
    let (tenant, namespace) = etcd(ledger, name, |of, _, prefix| {
        format!("atoll tenant split {of} --at-prefix {prefix} gives it a group of its own")
    })?;
    let places = namespace.places();
    let mut cuts = cuts(wish)?;
    for place in places.iter() {
        cuts.remove(&place.start);
    }
    if cuts.is_empty() {
        return Ok((Change::default(), Answer::Done(format!("\"{name}\" is cut there already"))));
    }
    let is_of = |operator: &&Operator| {
        places.iter().any(|place| place.group == operator.group)
            && operator.state == OperatorState::Running
    };
    let under_way = ledger.operators.values().filter(is_of).flat_map(|operator| &operator.cuts);
    let under_way = under_way.filter(|cut| !ledger.groups.contains_key(&cut.child)).count();
    let count = places.len() + under_way + cuts.len();
    if count > PLACES_MAX {
        return Err(refused(format!(
            "\"{name}\" would be on {count} groups: {PLACES_MAX} are the most"
        )));
    }
    let health = Health::of(ledger, inventory, now_ms);
    let mut by_group: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
    for cut in cuts.into_iter().rev() {
        let next = places.partition_point(|place| place.start <= cut);
        if let Some(place) = places.get(next.saturating_sub(1)) {
            by_group.entry(place.group).or_default().push(cut);
        }
    }
    let mut change = Change::default();
    let mut begun = Vec::new();
    for (id, keys) in by_group {
        let group = fit(ledger, inventory, &health, id)?;
        let name = tenant.full_name(namespace);
        let operator = begin(ledger, &mut meta, &name, group, keys, &Reason::default(), now_ms);
        change = change.put(Record::Operator(operator.clone()));
        begun.push(operator);
    }
    let change = change.put(Record::Meta(meta));
    let view = |operator: &Operator| operators::view(ledger, operator);
    Ok((change, Answer::Operators(begun.iter().map(view).collect())))
}

/// A stretch of a tenant's keys that has a rule of its own gets groups of its own: the next one that
/// has not. One that could not be cut is tried again, but not at once.
pub fn follow_rules(ledger: &Ledger, inventory: &Inventory, now_ms: u64) -> Option<Change> {
    let open = ledger.tenants.values().filter(|tenant| tenant.state == TenantState::Open);
    let rules = open.flat_map(|tenant| {
        tenant.namespaces.iter().filter_map(move |namespace| match &namespace.kind {
            NamespaceKind::Shared { prefix } => Some((tenant, Bytes::from(prefix.clone()))),
            _ => None,
        })
    });
    let was_tried = |prefix: &Bytes| {
        let late = |it: &&Operator| {
            it.state != OperatorState::Running && now_ms < it.ended_ms + RULE_REST_MS
        };
        let mut cuts = ledger.operators.values().filter(late).flat_map(|it| &it.cuts);
        cuts.any(|cut| cut.at == *prefix)
    };
    rules.filter(|(_, prefix)| !was_tried(prefix)).find_map(|(tenant, prefix)| {
        let prefixes = [text::of(&prefix)];
        let wish = Wish { name: &tenant.name, at: &[], prefixes: &prefixes };
        match split(ledger, inventory, &wish, now_ms) {
            Ok((change, Answer::Operators(_))) => Some(change),
            _ => None,
        }
    })
}

/// Why a group is cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reason {
    pub(crate) cause: Cause,
    /// What was seen, in words; empty if somebody asked for it.
    pub(crate) seen: String,
}

/// A new operator that cuts a group of the etcd `name` at these keys, the highest first.
pub(crate) fn begin(
    ledger: &Ledger,
    meta: &mut Meta,
    name: &str,
    group: &Group,
    keys: Vec<Bytes>,
    reason: &Reason,
    now_ms: u64,
) -> Operator {
    let mut at: Vec<String> = keys.iter().map(|key| text::of(key)).collect();
    at.reverse();
    let at = at.join(", ");
    let Reason { cause, seen } = reason;
    let (priority, why) = match cause {
        Cause::User => (Priority::User, format!("split {name} at {at}")),
        Cause::Load => (Priority::Balance, format!("split {name} at {at} for its load: {seen}")),
        Cause::Size => (Priority::Balance, format!("split {name} at {at} for its size: {seen}")),
    };
    let target = voters(group).map(|replica| replica.node).collect();
    let mut operator = operators::begin(meta, group, target, priority, why, now_ms);
    for at in keys {
        let child = asked_before(ledger, group.id, &at).unwrap_or(meta.next_group);
        meta.next_group += u64::from(child == meta.next_group);
        operator.cuts.push(Cut { at, child, cause: *cause, seen: seen.clone() });
    }
    // Programs that know nothing of places would write them away.
    meta.format = meta.format.max(SPLIT_FORMAT);
    operator
}

/// A tenant's namespace, by TENANT or TENANT/NAMESPACE.
pub(crate) fn known<'a>(
    ledger: &'a Ledger,
    name: &str,
) -> Result<(&'a Tenant, &'a Namespace), Refusal> {
    let (of, part) = name.split_once('/').unwrap_or((name, ""));
    let tenant = ledger.tenant(of);
    let tenant = tenant.ok_or_else(|| refused(format!("there is no tenant \"{of}\"")))?;
    let namespace = tenant.namespaces.iter().find(|namespace| namespace.name == part);
    let namespace =
        namespace.ok_or_else(|| refused(format!("tenant \"{of}\" has no namespace \"{part}\"")))?;
    Ok((tenant, namespace))
}

/// An etcd that clients use. Of a stretch of a tenant's keys it is said what to do instead, from
/// the tenant's name, its own and the prefix.
pub(crate) fn etcd<'a>(
    ledger: &'a Ledger,
    name: &str,
    instead: impl Fn(&str, &str, &str) -> String,
) -> Result<(&'a Tenant, &'a Namespace), Refusal> {
    let (tenant, namespace) = known(ledger, name)?;
    let of = &tenant.name;
    if let NamespaceKind::Shared { prefix } = &namespace.kind {
        let instead = instead(of, &namespace.name, prefix);
        let why = format!("\"{name}\" is a stretch of the keys of \"{of}\": {instead}");
        return Err(refused(why));
    }
    match tenant.state_of(namespace) {
        TenantState::Open => Ok((tenant, namespace)),
        TenantState::Frozen => Err(refused(format!("\"{name}\" is frozen: thaw it first"))),
        TenantState::Deleted => Err(refused(format!("\"{name}\" is deleted"))),
    }
}

/// A key that somebody has written.
pub(crate) fn read_key(said: &str) -> Result<Bytes, Refusal> {
    text::read(said).ok_or_else(|| {
        refused(format!("\"{said}\" is no key: a backslash stands as \\\\, a byte as \\xNN"))
    })
}

/// The rule of a tenant that asks for a cut of one of its etcds at a key.
pub(crate) fn rule_at<'a>(
    tenant: &'a Tenant,
    namespace: &Namespace,
    key: &[u8],
) -> Option<&'a Namespace> {
    // Stretches are of the tenant's default etcd.
    let rules = tenant.namespaces.iter().filter(|_| namespace.name.is_empty());
    rules.into_iter().find(|rule| match &rule.kind {
        NamespaceKind::Shared { prefix } => {
            let prefix = prefix.as_bytes();
            key == prefix || behind(prefix).is_some_and(|end| key == end)
        }
        NamespaceKind::Separate { .. } => false,
    })
}

/// The keys that are to be the first of a group.
fn cuts(wish: &Wish<'_>) -> Result<BTreeSet<Bytes>, Refusal> {
    let read = |said: &String| {
        let key = read_key(said)?;
        if key.is_empty() {
            return Err(refused("an empty key is below all keys: nothing can be cut there"));
        }
        if key.len() > CUT_BYTES {
            return Err(refused(format!("keys to cut at have up to {CUT_BYTES} bytes")));
        }
        Ok(key)
    };
    let mut cuts = BTreeSet::new();
    for at in wish.at {
        cuts.insert(read(at)?);
    }
    for prefix in wish.prefixes {
        let prefix = read(prefix)?;
        cuts.extend(behind(&prefix));
        cuts.insert(prefix);
    }
    match cuts.is_empty() {
        true => Err(refused("say where: --at KEY, or --at-prefix PREFIX")),
        false => Ok(cuts),
    }
}

/// The first key behind all that begin with `prefix`; `None` if there is none.
pub(crate) fn behind(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut next = prefix.get(..=last)?.to_vec();
    *next.last_mut()? += 1;
    Some(next.into())
}

/// The new group's number in a question that was asked for the same cut and came to nothing: should
/// it come late it is the same question, and the same group.
fn asked_before(ledger: &Ledger, group: u64, at: &Bytes) -> Option<u64> {
    let operators = ledger.operators.values().rev().filter(|operator| operator.group == group);
    let mut cuts = operators.flat_map(|operator| &operator.cuts);
    let same = |cut: &&Cut| cut.at == *at && !ledger.groups.contains_key(&cut.child);
    cuts.find(same).map(|cut| cut.child)
}

/// A group whose keys can be cut, or go together with others, now.
pub(crate) fn fit<'a>(
    ledger: &'a Ledger,
    inventory: &Inventory,
    health: &Health<'_>,
    id: u64,
) -> Result<&'a Group, Refusal> {
    let group = ledger.groups.get(&id).filter(|group| !group.dead);
    let group = group.ok_or_else(|| refused(format!("there is no group {id}")))?;
    if let Some(holder) = holder(ledger, id) {
        let (operator, why) = (holder.id, &holder.why);
        return Err(refused(format!("operator {operator} works on group {id}: {why}")));
    }
    if inventory.since_ms == 0 {
        return Err(refused("no node says that it leads placement: nothing is known of the nodes"));
    }
    if let Some(learner) = group.replicas.iter().find(|replica| replica.learner) {
        let node = ledger.node_name(learner.node);
        return Err(refused(format!(
            "group {id} has a learner on {node}: let it vote, or remove it, first"
        )));
    }
    let (well, all) = health.count(group);
    if well < all || group.wanted > 0 || group.recovering().is_some() {
        return Err(refused(format!(
            "{well} of {all} replicas of group {id} are well: its keys are changed when all it is to \
             have are"
        )));
    }
    if group.membership_version == 0 {
        return Err(refused(format!("group {id} is new: try again in a moment")));
    }
    Ok(group)
}

/// The cut that is to be made next.
pub(crate) fn next_cut<'a>(ledger: &Ledger, operator: &'a Operator) -> Option<&'a Cut> {
    operator.cuts.iter().find(|cut| !ledger.groups.contains_key(&cut.child))
}

/// What is next for an operator that cuts.
pub(crate) fn next_step(ledger: &Ledger, operator: &Operator) -> Step {
    match next_cut(ledger, operator) {
        None => Step::Done,
        Some(cut) if operator.cancelled() => Step::Settle(cut.clone()),
        Some(cut) => Step::Cut(cut.clone()),
    }
}

/// The same operator, asking for nothing more.
pub(crate) fn taken_back(operator: &Operator, now_ms: u64) -> Operator {
    if operator.cancelled() {
        return operator.clone();
    }
    let why = format!("{}{}", operator.why, Operator::CANCELLED);
    Operator { why, given_up_ms: now_ms.max(1), ..operator.clone() }
}

/// An operator that has tried for too long is taken back; `None` if there is nothing to be changed.
pub fn give_up(ledger: &Ledger, id: u64, now_ms: u64) -> Option<Change> {
    let operator = ledger.operators.get(&id)?;
    let late = now_ms >= operator.begun_ms + PATIENCE_MS;
    let under_way = operator.state == OperatorState::Running && !operator.cancelled();
    (late && under_way)
        .then(|| Change::default().put(Record::Operator(taken_back(operator, now_ms))))
}

/// Has whatever the operator asked for been answered, or lost?
pub fn is_settled(operator: &Operator, now_ms: u64) -> bool {
    operator.cancelled() && now_ms >= operator.given_up_ms + SETTLED_MS
}

/// What a group says of its keys, against what the ledger says; `None` when that is not newer, or
/// is nothing that can have come of what somebody asked for.
pub fn learn(ledger: &Ledger, id: u64, said: &Said, now_ms: u64) -> Option<Change> {
    let group = ledger.groups.get(&id).filter(|group| !group.dead)?;
    let tenant = ledger.tenants.get(&group.tenant)?;
    let (namespace, at) = tenant.place_of(id)?;
    let mut places = namespace.places().into_owned();
    let known = keys_of(&places, at);
    if said.version <= places.get(at)?.version || said.keys.start != known.start {
        return None;
    }
    let is_more = match (&said.keys.end, &known.end) {
        (None, Some(_)) => true,
        (Some(said), Some(known)) => said > known,
        (_, None) => false,
    };
    let mut change = Change::default();
    if is_more {
        change = merges::absorbed(ledger, &mut places, at, said, now_ms)?;
    } else if let Some(end) = &said.keys.end
        && said.keys.end != known.end
    {
        let CutOff { child, operator } = cut_off(ledger, &mut places, at, end, now_ms)?;
        let after = operator.map(Record::Operator);
        change = after.into_iter().fold(change.put(Record::Group(child)), Change::put);
    }
    places.get_mut(at)?.version = said.version;
    let mut tenant = Tenant::clone(tenant);
    let namespace = tenant.namespaces.iter_mut().find(|it| it.id == group.namespace)?;
    if let NamespaceKind::Separate { places: stored, .. } = &mut namespace.kind {
        *stored = places;
    }
    Some(change.put(Record::Tenant(tenant)))
}

/// A cut that was made.
pub(crate) struct CutOff {
    /// The new group.
    pub(crate) child: Group,
    /// The operator that asked for it, as it is afterwards, if that is something else.
    pub(crate) operator: Option<Operator>,
}

/// The keys of one of the places end earlier than was known: the cut that somebody asked for there was
/// made. `None` if nobody did.
pub(crate) fn cut_off(
    ledger: &Ledger,
    places: &mut Vec<Place>,
    at: usize,
    end: &Bytes,
    now_ms: u64,
) -> Option<CutOff> {
    let parent = places.get(at)?;
    let keys = keys_of(places, at);
    if *end <= keys.start || !keys.contains(end) {
        return None;
    }
    let is_new = |cut: &&Cut| cut.at == *end && !ledger.groups.contains_key(&cut.child);
    let mut asked = ledger.operators.values().rev().filter(|it| it.group == parent.group);
    let (operator, cut) = asked.find_map(|it| Some((it, it.cuts.iter().find(is_new)?)))?;
    let by = format!("by operator {}", operator.id);
    let place = Place {
        start: cut.at.clone(),
        group: cut.child,
        // It was asked for, and made, under the version that was known.
        version: parent.version + 1,
        why: if cut.seen.is_empty() { by } else { format!("{by}: {}", cut.seen) },
        cause: cut.cause,
    };
    let child = newborn(ledger.groups.get(&parent.group)?, cut.child);
    places.insert(at + 1, place);
    Some(CutOff { child, operator: after_cut(ledger, operator, cut, now_ms) })
}

/// The new group beside the one that it was cut from, as far as that can be known: the leader tells
/// who its members are, and until then nobody changes them.
fn newborn(parent: &Group, id: u64) -> Group {
    let replica = |old: &Replica| Replica { replica: old.node, ..old.clone() };
    Group {
        id,
        // Nobody began it: it came out of a log.
        founders: Vec::new(),
        replicas: parent.replicas.iter().map(replica).collect(),
        membership_version: 0,
        // It knows what its parent knew when it was cut, which is not known here.
        told: 0,
        dead: false,
        wanted: 0,
        recovery: None,
        ..parent.clone()
    }
}

/// The operator after one of its cuts; `None` if that changes nothing.
fn after_cut(ledger: &Ledger, operator: &Operator, cut: &Cut, now_ms: u64) -> Option<Operator> {
    let is_made = |it: &Cut| it == cut || ledger.groups.contains_key(&it.child);
    let all = operator.cuts.iter().all(is_made);
    let state = match operator.state {
        _ if all => OperatorState::Done,
        OperatorState::Running if operator.cancelled() => OperatorState::Cancelled,
        _ => return None,
    };
    let was_asked = operator.why.strip_suffix(Operator::CANCELLED).filter(|_| all);
    let why = was_asked.unwrap_or(&operator.why).to_owned();
    let ended_ms = if operator.ended_ms == 0 { now_ms.max(1) } else { operator.ended_ms };
    Some(Operator { why, state, ended_ms, ..operator.clone() })
}

/// Groups that may have come out of a group's log though the ledger does not know them yet: they
/// die with it.
pub(crate) fn unborn(ledger: &Ledger, group: &Group) -> BTreeMap<u64, Group> {
    let operators = ledger.operators.values().filter(|operator| operator.group == group.id);
    let cuts = operators.flat_map(|operator| &operator.cuts);
    let new = cuts.filter(|cut| !ledger.groups.contains_key(&cut.child));
    new.map(|cut| (cut.child, newborn(group, cut.child))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::check::check;
    use crate::health::tests::{World, now_ms};
    use crate::operators::{cancel, finish, running};
    use crate::ring::stable;
    use crate::{charters, nodes, tenants, view};
    use proto::GroupId;
    use std::collections::BTreeMap;

    /// What groups truly are: their logs.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Truth(pub(crate) BTreeMap<u64, Said>);

    impl Truth {
        pub(crate) fn of(ledger: &Ledger) -> Truth {
            let whole = |id: &u64| (*id, Said { keys: KeyRange::all(), version: 1 });
            Truth(ledger.groups.keys().map(whole).collect())
        }

        /// As the node answers it; `None` when it is refused.
        pub(crate) fn asked(&mut self, group: u64, version: u64, cut: &Cut) -> Option<Said> {
            let own = self.0.get_mut(&group).expect("it is a group");
            if own.version != version {
                return None;
            }
            if own.keys.end.as_ref() == Some(&cut.at) {
                return Some(own.clone());
            }
            if !own.keys.contains(&cut.at) || own.keys.start == cut.at {
                return None;
            }
            let end = own.keys.end.replace(cut.at.clone());
            own.version += 1;
            let (answer, keys) = (own.clone(), KeyRange { start: cut.at.clone(), end });
            let child = Said { keys, version: answer.version };
            assert!(self.0.insert(cut.child, child).is_none(), "a group begins twice");
            Some(answer)
        }
    }

    pub(crate) fn acme() -> World {
        let mut world = World::new();
        world.ledger =
            tenants::create(&world.ledger, "acme", 0, 0).unwrap().0.applied_to(&world.ledger);
        world
    }

    pub(crate) fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    pub(crate) fn begin(world: &World, at: &[&str], prefixes: &[&str]) -> Planned {
        let (at, prefixes) = (texts(at), texts(prefixes));
        let wish = Wish { name: "acme", at: &at, prefixes: &prefixes };
        split(&world.ledger, &world.inventory(), &wish, now_ms())
    }

    pub(crate) fn begun(world: &mut World, at: &[&str], prefixes: &[&str]) {
        let (change, _) = begin(world, at, prefixes).expect("it is allowed");
        world.ledger = change.applied_to(&world.ledger);
    }

    pub(crate) fn why(planned: Planned) -> String {
        planned.expect_err("it is refused").to_string()
    }

    /// Carries operators out to their end, as the executor does.
    pub(crate) fn execute(ledger: &mut Ledger, truth: &mut Truth) {
        for _ in 0..100 {
            let Some(operator) = running(ledger).first().map(|o| (*o).clone()) else { return };
            step(ledger, truth, &operator, now_ms() + SETTLED_MS);
            told(ledger, truth);
        }
        panic!("operators do not come to an end");
    }

    fn step(ledger: &mut Ledger, truth: &mut Truth, operator: &Operator, now_ms: u64) {
        let group = operator.group;
        let version = ledger.range_version(group);
        let change = match operators::next_step(ledger, operator) {
            Step::Cut(cut) => {
                let said = truth.asked(group, version, &cut);
                let said = said.unwrap_or_else(|| truth.0[&group].clone());
                learn(ledger, group, &said, now_ms).or_else(|| give_up(ledger, operator.id, now_ms))
            }
            Step::Settle(_) => {
                let said = truth.0[&group].clone();
                learn(ledger, group, &said, now_ms).or_else(|| {
                    let is_over = is_settled(operator, now_ms);
                    is_over.then(|| finish(ledger, operator.id, false, now_ms)).flatten()
                })
            }
            _ => finish(ledger, operator.id, false, now_ms),
        };
        if let Some(change) = change {
            *ledger = change.applied_to(ledger);
        }
        assert_eq!(check(ledger), [], "after {operator:?}");
    }

    /// The leaders of new groups tell their members.
    pub(crate) fn told(ledger: &mut Ledger, truth: &Truth) {
        for id in truth.0.keys() {
            let Some(group) = ledger.groups.get(id) else { continue };
            let replicas = group.replicas.clone();
            if let Some(change) = nodes::report(ledger, *id, 1, &replicas, &[]) {
                *ledger = change.applied_to(ledger);
            }
        }
    }

    /// Does the ledger say of every group what is true?
    fn agree(ledger: &Ledger, truth: &Truth) -> bool {
        truth.0.iter().all(|(id, said)| {
            let Some((namespace, at)) = ledger.place_of(*id) else {
                return ledger.groups[id].tenant == 0;
            };
            let keys = keys_of(&namespace.places(), at);
            keys == said.keys && ledger.range_version(*id) == said.version
        })
    }

    pub(crate) fn starts(ledger: &Ledger) -> Vec<(String, u64, u64)> {
        let etcd = &ledger.tenant("acme").expect("it is there").namespaces[0];
        let place = |p: &Place| (text::of(&p.start), p.group, p.version);
        etcd.places().iter().map(place).collect()
    }

    #[test]
    fn a_prefix_gets_a_group_of_its_own_and_routers_are_told() {
        let mut world = acme();
        let mut truth = Truth::of(&world.ledger);
        let home = world.ledger.meta.as_ref().map(|meta: &Meta| meta.next_group - 1).unwrap();
        begun(&mut world, &[], &["/registry/events/"]);
        let ledger = &mut world.ledger;
        execute(ledger, &mut truth);
        let want = [
            (String::new(), home, 3),
            ("/registry/events/".to_owned(), home + 2, 3),
            ("/registry/events0".to_owned(), home + 1, 2),
        ];
        assert_eq!(starts(ledger), want);
        assert!(agree(ledger, &truth));
        let map = view::map(ledger);
        let etcd = map.named("acme").expect("routers know it");
        let to = |key: &[u8]| (etcd.lookup(key).group.0, etcd.lookup(key).range_version);
        assert_eq!((to(b"/a"), to(b"/registry/events/x")), ((home, 3), (home + 2, 3)));
        assert_eq!((to(b"/registry/events0"), etcd.home().group.0), ((home + 1, 2), home));
        assert_eq!(map.replicas(GroupId(home + 2)).len(), 3);
        let Ok(Answer::Tenants(shown)) = tenants::show(ledger, Some("acme")) else { panic!() };
        let whys: Vec<_> = shown[0].places.iter().map(|place| place.why.as_str()).collect();
        let by = "user: by operator 1";
        assert_eq!((shown[0].groups, whys), (3, vec!["", by, by]));
        assert!(shown[0].places[0].home && !shown[0].places[1].home && !shown[0].heard);
        assert_eq!(view::whereabouts(ledger).len(), 3);
        let (_, answer) = begin(&world, &[], &["/registry/events/"]).expect("nothing to do");
        assert_eq!(answer, Answer::Done("\"acme\" is cut there already".to_owned()));
    }

    #[test]
    fn a_stretch_with_a_rule_is_cut_out_by_itself() {
        let mut world = acme();
        let mut truth = Truth::of(&world.ledger);
        let plan = |world: &World| follow_rules(&world.ledger, &world.inventory(), now_ms());
        assert!(plan(&world).is_none());
        let rule = Some("/registry/events/");
        let (change, _) =
            tenants::create_namespace(&world.ledger, "acme", "events", rule, 0).unwrap();
        world.ledger = change.applied_to(&world.ledger);
        world.ledger = plan(&world).expect("it has no group yet").applied_to(&world.ledger);
        assert!(plan(&world).is_none(), "it is under way");
        execute(&mut world.ledger, &mut truth);
        let cuts: Vec<_> = starts(&world.ledger).into_iter().map(|(start, ..)| start).collect();
        assert_eq!(cuts, ["", "/registry/events/", "/registry/events0"]);
        assert!(plan(&world).is_none(), "it is done");
    }

    #[test]
    fn all_groups_of_the_etcd_are_told_frozen_moved_and_buried() {
        let mut world = acme();
        let mut truth = Truth::of(&world.ledger);
        begun(&mut world, &["b", "c"], &[]);
        let mut ledger = world.ledger.clone();
        execute(&mut ledger, &mut truth);
        ledger = tenants::set_frozen(&ledger, "acme", true).unwrap().0.applied_to(&ledger);
        let charters: Vec<_> = charters::untold(&ledger).collect();
        assert_eq!(charters.len(), 3);
        assert!(charters.iter().all(|(_, charter)| charter == &charters[0].1));
        ledger = tenants::set_frozen(&ledger, "acme", false).unwrap().0.applied_to(&ledger);
        let to: Vec<String> = (2..=4).map(|id| format!("n{id}")).collect();
        let (change, _) = operators::move_tenant(&ledger, "acme", &to, 5).unwrap();
        let moved = change.applied_to(&ledger);
        let there = ledger.groups.values().filter(|group| {
            group.tenant > 1 && group.replicas.iter().all(|replica| replica.node > 1)
        });
        assert_eq!(running(&moved).len() + there.count(), 3);
        let deleted = tenants::delete(&ledger, "acme", 5).unwrap().0.applied_to(&ledger);
        let purged = tenants::purge(&deleted, 5 + tenants::GRACE_MS).unwrap().applied_to(&deleted);
        assert_eq!(purged.groups.values().filter(|group| group.dead).count(), 3);
        assert_eq!(check(&purged), []);
    }

    #[test]
    fn a_group_that_nobody_has_heard_of_dies_with_its_etcd() {
        let mut world = acme();
        let mut truth = Truth::of(&world.ledger);
        begun(&mut world, &["m"], &[]);
        let ledger = &world.ledger;
        let cut = ledger.operators[&1].cuts[0].clone();
        truth.asked(ledger.operators[&1].group, 1, &cut).expect("it can");
        let deleted = tenants::delete(ledger, "acme", 5).unwrap().0.applied_to(ledger);
        let purged = tenants::purge(&deleted, 5 + tenants::GRACE_MS).unwrap().applied_to(&deleted);
        assert!(purged.groups[&cut.child].dead);
        let has = |group: GroupId| (group.0 == cut.child).then_some(1);
        assert_eq!(view::duties(&purged, proto::NodeId(1), has).dead, [GroupId(cut.child)]);
    }

    #[test]
    fn what_cannot_be_cut_is_refused_in_words() {
        let mut world = acme();
        for (at, said) in
            [("", "an empty key"), (r"\", "is no key"), ("k".repeat(1025).as_str(), "1024 bytes")]
        {
            assert!(why(begin(&world, &[at], &[])).contains(said), "{at}");
        }
        assert!(why(begin(&world, &[], &[])).contains("say where"));
        let many: Vec<String> = (10..74).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(why(begin(&world, &many, &[])).contains("65 groups: 64 are the most"));
        let ask = |world: &World, name: &str| {
            let at = texts(&["m"]);
            let wish = Wish { name, at: &at, prefixes: &[] };
            why(split(&world.ledger, &world.inventory(), &wish, now_ms()))
        };
        assert!(ask(&world, "nobody").contains("no tenant \"nobody\""));
        assert!(ask(&world, "acme/events").contains("no namespace \"events\""));
        let stretch = tenants::create_namespace(&world.ledger, "acme", "e", Some("/e/"), 0);
        let mut with = acme();
        with.ledger = stretch.unwrap().0.applied_to(&world.ledger);
        assert!(ask(&with, "acme/e").contains("atoll tenant split acme --at-prefix /e/"));
        let frozen = tenants::set_frozen(&world.ledger, "acme", true).unwrap().0;
        with.ledger = frozen.applied_to(&world.ledger);
        assert!(ask(&with, "acme").contains("is frozen"));
        with.ledger =
            tenants::delete(&world.ledger, "acme", 5).unwrap().0.applied_to(&world.ledger);
        assert!(ask(&with, "acme").contains("is deleted"));
        let nobody = split(
            &world.ledger,
            &Inventory::default(),
            &Wish { name: "acme", at: &texts(&["m"]), prefixes: &[] },
            now_ms(),
        );
        assert!(why(nobody).contains("nothing is known of the nodes"));
        let group = *world.ledger.groups.keys().last().unwrap();
        let node = world.ledger.groups[&group].replicas[0].node;
        let mut ill = acme();
        ill.silence(node, 60_000);
        assert!(ask(&ill, "acme").contains(&format!("2 of 3 replicas of group {group} are well")));
        let mut replicas = world.ledger.groups[&group].replicas.clone();
        let fourth = (1..=4).find(|n| replicas.iter().all(|r| r.node != *n)).unwrap();
        replicas.push(Replica { node: fourth, replica: 9, learner: true });
        with.ledger = nodes::report(&world.ledger, group, 5, &replicas, &[])
            .unwrap()
            .applied_to(&world.ledger);
        assert!(ask(&with, "acme").contains("has a learner"));
        begun(&mut world, &["m"], &[]);
        assert!(ask(&world, "acme").contains("operator 1 works on group"));
        let to = texts(&["n2", "n3", "n4"]);
        assert!(operators::move_tenant(&world.ledger, "acme", &to, 5).is_err());
        assert!(operators::displace(&world.ledger, group, Priority::Repair, 5).is_err());
    }

    /// Whatever is lost, repeated, taken back or comes late: the ledger says in the end what the
    /// groups' logs say, and is sound all the time.
    #[test]
    fn the_ledger_follows_the_logs_of_groups_whatever_is_lost() {
        let (mut made, mut cancelled, mut late) = (0, 0, 0);
        for seed in 0..300u64 {
            let mut rolls = 0u64;
            let mut roll = |sides: u64| {
                rolls += 1;
                stable(&(seed, rolls)) % sides
            };
            let mut world = acme();
            let mut truth = Truth::of(&world.ledger);
            let mut now_ms = now_ms();
            // Questions on their way.
            let mut asked: Vec<(u64, u64, Cut)> = Vec::new();
            for _ in 0..60 {
                now_ms += roll(SETTLED_MS / 2);
                let key = format!("k{}", roll(9));
                match roll(8) {
                    0 | 1 => {
                        let planned = match roll(2) {
                            0 => begin(&world, &[&key], &[]),
                            _ => begin(&world, &[], &[&key]),
                        };
                        if let Ok((change, _)) = planned {
                            world.ledger = change.applied_to(&world.ledger);
                        }
                    }
                    2 => {
                        let id = roll(1 + world.ledger.operators.len() as u64);
                        if let Ok((change, _)) = cancel(&world.ledger, id, now_ms) {
                            world.ledger = change.applied_to(&world.ledger);
                            cancelled += 1;
                        }
                    }
                    // A question that was lost comes after all.
                    3 if !asked.is_empty() => {
                        let place = roll(asked.len() as u64) as usize;
                        let (group, version, cut) = asked.swap_remove(place);
                        late += u64::from(truth.asked(group, version, &cut).is_some());
                    }
                    // A leader reports by itself.
                    4 => {
                        let groups: Vec<u64> = truth.0.keys().copied().collect();
                        let group = groups[roll(groups.len() as u64) as usize];
                        if let Some(change) = learn(&world.ledger, group, &truth.0[&group], now_ms)
                        {
                            world.ledger = change.applied_to(&world.ledger);
                        }
                        told(&mut world.ledger, &truth);
                    }
                    _ => {
                        let Some(operator) = running(&world.ledger).first().map(|o| (*o).clone())
                        else {
                            continue;
                        };
                        let next = operators::next_step(&world.ledger, &operator);
                        match next {
                            Step::Cut(cut) if roll(2) == 0 => {
                                // The executor dies before the question arrives, or before it
                                // has written the answer down.
                                let version = world.ledger.range_version(operator.group);
                                match roll(2) {
                                    0 => asked.push((operator.group, version, cut)),
                                    _ => drop(truth.asked(operator.group, version, &cut)),
                                }
                            }
                            _ => step(&mut world.ledger, &mut truth, &operator, now_ms),
                        }
                    }
                }
                assert_eq!(check(&world.ledger), [], "seed {seed}");
            }
            for (group, version, cut) in asked {
                late += u64::from(truth.asked(group, version, &cut).is_some());
            }
            // The others report, and operators come to their end.
            for _ in 0..20 {
                for (group, said) in truth.0.clone() {
                    if let Some(change) = learn(&world.ledger, group, &said, now_ms) {
                        world.ledger = change.applied_to(&world.ledger);
                    }
                }
                told(&mut world.ledger, &truth);
            }
            for _ in 0..40 {
                now_ms += PATIENCE_MS;
                if let Some(operator) = running(&world.ledger).first().map(|o| (*o).clone()) {
                    step(&mut world.ledger, &mut truth, &operator, now_ms);
                    told(&mut world.ledger, &truth);
                }
            }
            let left: Vec<_> = running(&world.ledger);
            assert!(left.is_empty(), "seed {seed}: {left:?}");
            assert!(
                agree(&world.ledger, &truth),
                "seed {seed}: {:?} {truth:?}",
                starts(&world.ledger)
            );
            made += truth.0.len();
        }
        assert!(made > 1500 && cancelled > 300 && late > 30, "{made} {cancelled} {late}");
    }

    #[test]
    fn an_operator_that_was_taken_back_finds_out_first() {
        for was_done in [false, true] {
            let mut world = acme();
            let mut truth = Truth::of(&world.ledger);
            begun(&mut world, &["m"], &[]);
            let ledger = &mut world.ledger;
            let operator = ledger.operators[&1].clone();
            if was_done {
                truth.asked(operator.group, 1, &operator.cuts[0]).expect("it can");
            }
            *ledger = cancel(ledger, 1, now_ms()).unwrap().0.applied_to(ledger);
            let operator = ledger.operators[&1].clone();
            assert!(matches!(operators::next_step(ledger, &operator), Step::Settle(_)));
            step(ledger, &mut truth, &operator, now_ms() + SETTLED_MS - 1);
            let state = ledger.operators[&1].state;
            let early = if was_done { OperatorState::Done } else { OperatorState::Running };
            assert_eq!(state, early);
            execute(ledger, &mut truth);
            let ended = &ledger.operators[&1];
            assert_eq!(ended.cancelled(), !was_done);
            assert_eq!(ended.state == OperatorState::Cancelled, !was_done);
            assert!(agree(ledger, &truth));
        }
    }

    #[test]
    fn an_operator_that_cannot_gives_up() {
        let mut world = acme();
        begun(&mut world, &["m"], &[]);
        let ledger = &world.ledger;
        let begun_ms = ledger.operators[&1].begun_ms;
        assert!(give_up(ledger, 1, begun_ms + PATIENCE_MS - 1).is_none());
        let after = give_up(ledger, 1, begun_ms + PATIENCE_MS).unwrap().applied_to(ledger);
        assert!(after.operators[&1].cancelled());
        assert!(give_up(&after, 1, begun_ms + 2 * PATIENCE_MS).is_none(), "it was already");
    }

    /// An old program would write the places away.
    #[test]
    fn a_ledger_with_a_split_is_of_a_newer_format() {
        let mut world = acme();
        assert_eq!(world.ledger.meta.as_ref().unwrap().format, 1);
        begun(&mut world, &["m"], &[]);
        assert_eq!(world.ledger.meta.as_ref().unwrap().format, SPLIT_FORMAT);
        let mut truth = Truth::of(&world.ledger);
        execute(&mut world.ledger, &mut truth);
        world.ledger.operators.clear();
        assert_eq!(Ledger::load(&world.ledger.save()).expect("it can be read"), world.ledger);
    }

    #[test]
    fn a_replica_does_not_come_before_its_parent_has_been_cut() {
        let mut world = acme();
        let mut truth = Truth::of(&world.ledger);
        let home = world.ledger.meta.as_ref().unwrap().next_group - 1;
        begun(&mut world, &["m", "t"], &[]);
        execute(&mut world.ledger, &mut truth);
        let places = starts(&world.ledger);
        let (middle, last) = (places[1].1, places[2].1);
        let keys = |start: &str, end: Option<&str>| KeyRange {
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: end.map(|end| Bytes::copy_from_slice(end.as_bytes())),
        };
        let may = |group: u64, here: &[(u64, KeyRange)]| {
            let here: BTreeMap<u64, KeyRange> = here.iter().cloned().collect();
            view::may_come(&world.ledger, GroupId(group), |id| here.get(&id.0).cloned())
        };
        assert!(may(middle, &[]) && may(last, &[]), "nobody will bring it");
        assert!(may(home, &[(middle, keys("m", Some("t")))]));
        let uncut = [(home, keys("", None))];
        assert!(!may(middle, &uncut) && !may(last, &uncut));
        // The last one was cut off first.
        let half = [(home, keys("", Some("t")))];
        assert!(!may(middle, &half) && may(last, &half));
        let both = [(home, keys("", Some("m")))];
        assert!(may(middle, &both) && may(last, &both));
        assert!(may(home, &[]) && may(1, &uncut), "of others nothing is said");
    }

    #[test]
    fn behind_a_prefix_is_the_first_key_without_it() {
        assert_eq!(behind(b"/e/").as_deref(), Some(&b"/e0"[..]));
        assert_eq!(behind(b"a\xff\xff").as_deref(), Some(&b"b"[..]));
        assert_eq!((behind(b"\xff"), behind(b"\xff\xff")), (None, None));
    }

    #[test]
    fn places_that_are_not_sound_are_found() {
        let mut world = acme();
        let mut truth = Truth::of(&world.ledger);
        begun(&mut world, &["m"], &[]);
        execute(&mut world.ledger, &mut truth);
        let after = |harm: &dyn Fn(&mut Vec<Place>)| {
            let mut ledger = world.ledger.clone();
            let acme = ledger.tenant("acme").unwrap().id;
            let tenant = std::sync::Arc::make_mut(ledger.tenants.get_mut(&acme).unwrap());
            if let NamespaceKind::Separate { places, .. } = &mut tenant.namespaces[0].kind {
                harm(places);
            }
            let found: Vec<String> = check(&ledger).into_iter().map(|it| it.what).collect();
            found.join("; ")
        };
        assert_eq!(after(&|_| {}), "");
        assert!(after(&|places| places.swap(0, 1)).contains("not at home"));
        assert!(
            after(&|places| places[0].start = Bytes::from_static(b"a")).contains("in no group")
        );
        assert!(after(&|places| places[1].start = Bytes::new()).contains("overlap"));
        assert!(after(&|places| places[1].version = 0).contains("no version"));
        assert!(after(&|places| places[1].group = 1).contains("1 is not its own"));
        assert!(after(&|places| places[1].group = places[0].group).contains("the same group"));
        assert!(after(&|places| drop(places.pop())).contains("belongs to no namespace"));
    }
}
