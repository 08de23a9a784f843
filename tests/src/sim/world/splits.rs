//! A tenant that is split while it works: real nodes with logs, crashes and a network, real groups
//! that part from others and take in their neighbours. The simulator plays placement, which asks
//! leaders to split and to merge and learns of it a while later, has leaders change and watches a key
//! here and there. Routers go by an old map until then (`routes.rs`). Watches over several groups
//! have trials of their own (`router/src/trials/split.rs`).
//!
//! What clients saw is judged as if there were one group, after the revisions were numbered anew
//! without their holes (`tests/src/split/names.rs`).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::cluster::group::{GroupRequest, MergeRange, SplitRange};
use proto::etcd::MoveLeaderRequest;
use proto::group::{GroupError, Reply, Request};
use proto::{GroupId, NodeId, id};
use shard::node::{Answer, Input};

use super::routes::{Map, Placed};
use super::{Event, FAULTS_MS, Waiting, World};
use crate::sim::host;
use crate::sim::random::Random;

/// Groups that the tenant is split over at most.
const GROUPS_MAX: usize = 5;
/// First of the new groups.
const FIRST_CHILD: u64 = 100;

/// A split that placement wants.
#[derive(Clone, Debug)]
struct Wish {
    group: GroupId,
    at: Bytes,
    child: GroupId,
}

/// A merge that placement wants.
#[derive(Clone, Debug)]
struct Union {
    left: GroupId,
    right: GroupId,
    at: Bytes,
}

/// See the module.
pub(super) struct Splits {
    pub(super) random: Random,
    /// For what came later.
    spice: Random,
    crowded: bool,
    /// For what came later still.
    salt: Random,
    merges: bool,
    union: Option<Union>,
    /// Groups that are no more.
    dead: Vec<GroupId>,
    pub(super) map: Map,
    wish: Option<Wish>,
    /// What the map is to become, and when.
    coming: Option<(u64, Wish, u64)>,
    next_child: u64,
    /// From whom each group was split off.
    parents: BTreeMap<GroupId, GroupId>,
    leaders: BTreeMap<GroupId, u64>,
    /// Splits that happened.
    pub(super) done: u64,
}

impl Splits {
    pub(super) fn new(seed: u64, crowded: bool, merges: bool) -> Splits {
        Splits {
            random: Random::new(seed.rotate_left(48)),
            spice: Random::new(!seed.rotate_left(48)),
            crowded,
            salt: Random::new(!seed.rotate_left(16)),
            merges,
            union: None,
            dead: Vec::new(),
            map: Map::of_one(id::DEFAULT_TENANT.0, id::DEFAULT_NAMESPACE.0, id::DEFAULT_GROUP),
            wish: None,
            coming: None,
            next_child: FIRST_CHILD,
            parents: BTreeMap::new(),
            leaders: BTreeMap::new(),
            done: 0,
        }
    }

    /// Are there watches, and planned changes of leaders?
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded
    }
}

impl World {
    fn splits(&mut self) -> &mut Splits {
        self.splits.as_mut().expect("only in a scene with splits")
    }

    /// Where a group of the split tenant was led last.
    pub(super) fn led(&mut self, group: GroupId, node: u64) {
        if let Some(splits) = &mut self.splits {
            splits.leaders.insert(group, node);
        }
    }

    /// The nodes of all groups.
    pub(super) fn tell_whereabouts(&mut self, host: usize) {
        let Some(splits) = &self.splits else { return };
        let nodes: Vec<NodeId> = self.hosts.iter().map(|host| NodeId(host.id)).collect();
        let all = splits.map.places.iter().map(|placed| (placed.group, nodes.clone())).collect();
        self.step(host, Input::Whereabouts(all));
    }

    /// Placement looks after the split tenant.
    pub(super) fn tend_splits(&mut self) {
        let at = self.now + self.splits().random.between(30, 400);
        self.schedule(at, Event::Split);
        let now = self.now;
        if let Some((_, wish, version)) = self.splits().coming.take_if(|(at, ..)| *at <= now) {
            self.learn_split(&wish, version);
        }
        self.bring_replicas();
        self.change_a_leader();
        self.tend_merges();
        let splits = self.splits();
        if splits.union.is_some() {
            return;
        }
        if let Some(wish) = splits.wish.clone() {
            return self.ask_split(wish);
        }
        let may =
            splits.coming.is_none() && splits.map.places.len() < GROUPS_MAX && now < FAULTS_MS;
        if may && splits.random.permille(150) {
            let at = Bytes::from(format!("k{}", splits.random.below(8)));
            let place =
                splits.map.places.iter().rposition(|placed| placed.start <= at).unwrap_or(0);
            if splits.map.places[place].start != at {
                let group = splits.map.places[place].group;
                let child = GroupId(splits.next_child);
                splits.next_child += 1;
                splits.wish = Some(Wish { group, at, child });
            }
        }
    }

    /// Placement wants neighbours to be one, and learns what has become of groups.
    fn tend_merges(&mut self) {
        if !self.splits().merges {
            return;
        }
        self.learn_places();
        let (hosts, calm) = (self.hosts.len() as u64, self.now >= FAULTS_MS);
        let splits = self.splits();
        let idle = splits.union.is_none() && splits.wish.is_none() && splits.coming.is_none();
        if idle && !calm && splits.map.places.len() > 1 && splits.salt.permille(150) {
            let right = splits.salt.between(1, splits.map.places.len() as u64 - 1) as usize;
            let (left, placed) = (splits.map.places[right - 1].group, &splits.map.places[right]);
            let (right, at) = (placed.group, placed.start.clone());
            splits.union = Some(Union { left, right, at });
        }
        // It may be given up after it was asked for.
        if splits.salt.permille(20) {
            splits.union = None;
        }
        // Nodes hear again and again that a group is no more.
        let host = splits.salt.below(hosts) as usize;
        let dead = splits.dead.clone();
        if !dead.is_empty() && splits.salt.permille(200) && self.hosts[host].process.is_some() {
            self.step(host, Input::Deaths(dead));
        }
        let splits = self.splits();
        let Some(Union { left, right, at }) = splits.union.clone() else { return };
        let Some(placed) = splits.map.places.iter().find(|placed| placed.group == left).cloned()
        else {
            return;
        };
        let body = Request::MergeRange(MergeRange { right: right.0, at });
        let request = GroupRequest { tenant: 0, ..splits.map.request(&placed, body) };
        let any = splits.salt.below(hosts) as usize;
        let led = splits.leaders.get(&left).copied();
        let hinted = led.filter(|_| splits.salt.permille(900));
        let host = hinted.and_then(|node| self.host_of(node)).unwrap_or(any);
        if self.hosts[host].process.is_some() {
            self.note(&format!("placement asks n{}: {left:?} takes in {right:?}", host + 1));
            self.request(host, Waiting::Merge { group: left }, request);
        }
    }

    pub(super) fn merge_heard(&mut self, group: GroupId, answer: &Result<Answer, GroupError>) {
        self.note(&format!("placement hears of {group:?}: {answer:?}"));
        if let Err(GroupError { leader_node: Some(leader), .. }) = answer {
            self.led(group, *leader);
        }
    }

    /// What groups' replicas say of their ranges is the truth, and is reported now and then.
    fn learn_places(&mut self) {
        let splits = self.splits();
        let place = splits.salt.below(splits.map.places.len() as u64) as usize;
        if splits.coming.is_some() || !splits.salt.permille(400) {
            return;
        }
        let placed = splits.map.places[place].clone();
        let own = splits.map.end_of(place);
        let told = |host: &host::Host| {
            let group = host.process.as_ref()?.node.group(placed.group)?;
            let state = group.machine().state();
            Some((state.range_version, state.end.clone()))
        };
        let Some((version, end)) = self.hosts.iter().filter_map(told).max_by_key(|told| told.0)
        else {
            return;
        };
        let splits = self.splits();
        let shrank = end.is_some() && own.as_ref().is_none_or(|own| end.as_ref() < Some(own));
        if version <= placed.version || shrank {
            return;
        }
        splits.map.places[place].version = version;
        let mut merged = 0;
        let covered = |next: &Placed| end.as_ref().is_none_or(|end| next.start < *end);
        while splits.map.places.get(place + 1).is_some_and(covered) {
            let gone = splits.map.places.remove(place + 1);
            merged += 1;
            splits.dead.push(gone.group);
            splits.parents.remove(&gone.group);
            // Who came out of it came out of the one that has its keys now.
            for parent in splits.parents.values_mut().filter(|parent| **parent == gone.group) {
                *parent = placed.group;
            }
            splits.union.take_if(|union| union.right == gone.group || union.left == gone.group);
            // A merge that was given up may come after a split was asked for.
            if let Some(wish) = splits.wish.as_mut().filter(|wish| wish.group == gone.group) {
                wish.group = placed.group;
            }
        }
        if merged > 0 {
            *self.marks.entry("a merge".to_owned()).or_default() += merged;
        }
        self.note(&format!("routers learn of {:?} at version {version}", placed.group));
        for host in 0..self.hosts.len() {
            self.tell_whereabouts(host);
        }
    }

    fn ask_split(&mut self, wish: Wish) {
        let hosts = self.hosts.len() as u64;
        let splits = self.splits();
        let placed = splits.map.places.iter().find(|placed| placed.group == wish.group).cloned();
        let Some(placed) = placed else { return };
        let body = Request::SplitRange(SplitRange { at: wish.at.clone(), child: wish.child.0 });
        let request = GroupRequest { tenant: 0, ..splits.map.request(&placed, body) };
        let any = splits.random.below(hosts) as usize;
        let led = splits.leaders.get(&wish.group).copied();
        let hinted = led.filter(|_| splits.random.permille(800));
        let host = hinted.and_then(|node| self.host_of(node)).unwrap_or(any);
        if self.hosts[host].process.is_some() {
            self.note(&format!("placement asks n{}: {wish:?}", host + 1));
            self.request(host, Waiting::Split { group: wish.group }, request);
        }
    }

    /// Somebody wants another node to lead a group.
    fn change_a_leader(&mut self) {
        let (hosts, calm) = (self.hosts.len() as u64, self.now >= FAULTS_MS);
        let splits = self.splits();
        if calm || !splits.crowded || !splits.spice.permille(120) {
            return;
        }
        let place = splits.spice.below(splits.map.places.len() as u64) as usize;
        let placed = splits.map.places[place].clone();
        let target_id = splits.spice.between(1, hosts);
        let body = Request::MoveLeader(MoveLeaderRequest { target_id });
        let request = GroupRequest { tenant: 0, ..splits.map.request(&placed, body) };
        let any = splits.spice.below(hosts);
        let led = splits.leaders.get(&placed.group).copied();
        let host = led.and_then(|node| self.host_of(node)).unwrap_or(any as usize);
        if self.hosts[host].process.is_some() {
            let group = placed.group;
            self.note(&format!("n{} is to hand {group:?} to n{target_id}", host + 1));
            self.request(host, Waiting::Handed { group }, request);
        }
    }

    pub(super) fn split_heard(&mut self, group: GroupId, answer: Result<Answer, GroupError>) {
        self.note(&format!("placement hears of {group:?}: {answer:?}"));
        match answer {
            Ok(Answer::Reply(Reply::Ranges(ranges))) => {
                let now = self.now;
                let splits = self.splits();
                let Some(place) = ranges.places.first() else { return };
                if let Some(wish) = splits.wish.take_if(|wish| wish.group == group) {
                    let at = now + splits.random.below(600);
                    splits.coming = Some((at, wish, place.version));
                }
            }
            Err(GroupError { leader_node: Some(leader), .. }) => self.led(group, leader),
            // It may have been done under a version that placement does not know yet.
            Err(error) if error.error == proto::Error::StaleRange => self.look_for_split(group),
            _ => {}
        }
    }

    /// What a group's replicas say of its range is the truth.
    fn look_for_split(&mut self, group: GroupId) {
        let place = |host: &host::Host| {
            let state = host.process.as_ref()?.node.group(group)?.machine().state();
            Some((state.range_version, state.end.clone()))
        };
        let newest = self.hosts.iter().filter_map(place).max();
        let now = self.now;
        let splits = self.splits();
        if let (Some((version, end)), Some(wish)) = (newest, splits.wish.clone())
            && wish.group == group
            && end.as_ref() == Some(&wish.at)
        {
            splits.wish = None;
            splits.coming = Some((now, wish, version));
        }
    }

    fn learn_split(&mut self, wish: &Wish, version: u64) {
        let splits = self.splits();
        splits.done += 1;
        splits.parents.insert(wish.child, wish.group);
        let place = splits.map.places.iter().position(|placed| placed.group == wish.group);
        let Some(place) = place else { return };
        splits.map.places[place].version = version;
        let child = Placed { start: wish.at.clone(), group: wish.child, version };
        splits.map.places.insert(place + 1, child);
        self.note(&format!("routers learn of {wish:?} at version {version}"));
        for host in 0..self.hosts.len() {
            self.tell_whereabouts(host);
        }
    }

    /// A node that has missed a split gets the new group's replica like any other.
    fn bring_replicas(&mut self) {
        let hosts = self.hosts.len() as u64;
        let splits = self.splits();
        let host = splits.random.below(hosts) as usize;
        let wanted: Vec<(GroupId, GroupId, Bytes)> = splits
            .map
            .places
            .iter()
            .filter_map(|placed| {
                let parent = splits.parents.get(&placed.group)?;
                Some((placed.group, *parent, placed.start.clone()))
            })
            .collect();
        let Some(process) = &self.hosts[host].process else { return };
        let lacks = |(child, parent, start): &&(GroupId, GroupId, Bytes)| {
            let has_parted = process.node.group(*parent).is_none_or(|group| {
                let end = &group.machine().state().end;
                !group.is_seeded_anew() && end.as_ref().is_some_and(|end| end <= start)
            });
            process.node.group(*child).is_none() && has_parted
        };
        let births: Vec<_> = wanted.iter().filter(lacks).collect();
        let births: Vec<_> = births
            .into_iter()
            .map(|(child, ..)| host::birth(*child, self.hosts[host].id, 0))
            .collect();
        if !births.is_empty() {
            self.note(&format!("placement wants {births:?}"));
            self.step(host, Input::Births(births));
        }
    }

    // === the end ===

    pub(super) fn judge_splits(&mut self, violations: &mut Vec<String>) {
        let Some(splits) = self.splits.take() else { return };
        self.tenants[0].rename(self.peaceful, violations);
        if splits.wish.is_some() || splits.coming.is_some() || splits.union.is_some() {
            violations.push(format!(
                "it did not end after the world calmed down: {:?} {:?} {:?}",
                splits.wish, splits.coming, splits.union
            ));
        }
        let wanted: BTreeSet<GroupId> =
            splits.map.places.iter().map(|placed| placed.group).collect();
        for host in &self.hosts {
            let groups = host.process.iter().flat_map(|process| process.node.groups());
            let there: BTreeSet<GroupId> = groups.map(|(id, _)| *id).collect();
            if there != wanted {
                violations.push(format!("n{} has {there:?}, not {wanted:?}", host.id));
            }
        }
    }
}
