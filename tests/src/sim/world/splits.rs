//! A tenant that is split while it works: real nodes with logs, crashes and a network, real groups
//! that part from others and take in their neighbours. The simulator plays placement, which asks
//! leaders to split and to merge and learns of it a while later, has leaders change and watches a key here and there, and the routers, which go
//! by an old map until then, and put lists over several groups together. Watches over several groups
//! have trials of their own (`router/src/trials/split.rs`).
//!
//! What clients saw is judged as if there were one group, after the revisions were numbered anew
//! without their holes (`tests/src/split/names.rs`).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::cluster::group::{
    GroupRequest, MergeRange, RangePlace, ReadAt, Span, SpanRequest, SplitRange, refusal,
};
use proto::etcd::{MoveLeaderRequest, RangeRequest, RangeResponse, ResponseHeader};
use proto::group::{GroupError, Reply, Request};
use proto::mvccpb::Event as KeyEvent;
use proto::{GroupId, KeyRange, NodeId, id};
use shard::access;
use shard::machine::effect::RevisionEvents;
use shard::node::{Answer, Input};
use shard::split::footprint::Footprint;

use super::{Event, FAULTS_MS, Waiting, World};
use crate::check::history::{History, OpId};
use crate::check::leases;
use crate::sim::host;
use crate::sim::random::Random;
use crate::split::names::Names;

/// Groups that the tenant is split over at most.
const GROUPS_MAX: usize = 5;
/// First of the new groups.
const FIRST_CHILD: u64 = 100;

/// One range of the map that routers go by.
#[derive(Clone, Debug)]
struct Placed {
    start: Bytes,
    group: GroupId,
    version: u64,
}

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

/// A list over several groups on its way.
struct Gather {
    /// Names the try: parts of an earlier one may still come.
    number: u64,
    request: RangeRequest,
    revision: i64,
    missing: usize,
    rows: Vec<RangeResponse>,
}

/// See the module.
pub(super) struct Splits {
    random: Random,
    /// For what came later.
    spice: Random,
    crowded: bool,
    /// For what came later still.
    salt: Random,
    merges: bool,
    union: Option<Union>,
    /// Groups that are no more.
    dead: Vec<GroupId>,
    /// Ascending by start.
    map: Vec<Placed>,
    wish: Option<Wish>,
    /// What the map is to become, and when.
    coming: Option<(u64, Wish, u64)>,
    next_child: u64,
    /// From whom each group was split off.
    parents: BTreeMap<GroupId, GroupId>,
    leaders: BTreeMap<GroupId, u64>,
    gathers: BTreeMap<OpId, Gather>,
    next_gather: u64,
    /// What was committed under a revision, by place.
    changes: BTreeMap<i64, (u64, BTreeMap<u32, KeyEvent>)>,
    conflicts: Vec<String>,
    /// Splits that happened.
    pub(super) done: u64,
}

/// Where a request goes.
pub(super) enum Route {
    /// To this group.
    One(GroupRequest),
    /// A list over several groups.
    Over(RangeRequest),
}

impl Splits {
    pub(super) fn new(seed: u64, crowded: bool, merges: bool) -> Splits {
        let first = Placed { start: Bytes::new(), group: id::DEFAULT_GROUP, version: 1 };
        Splits {
            random: Random::new(seed.rotate_left(48)),
            spice: Random::new(!seed.rotate_left(48)),
            crowded,
            salt: Random::new(!seed.rotate_left(16)),
            merges,
            union: None,
            dead: Vec::new(),
            map: vec![first],
            wish: None,
            coming: None,
            next_child: FIRST_CHILD,
            parents: BTreeMap::new(),
            leaders: BTreeMap::new(),
            gathers: BTreeMap::new(),
            next_gather: 0,
            changes: BTreeMap::new(),
            conflicts: Vec::new(),
            done: 0,
        }
    }

    /// Are there watches, and planned changes of leaders?
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded
    }

    /// Where a watch goes that has keys of one group.
    pub(super) fn group_of(&self, range: &KeyRange) -> GroupId {
        self.only(std::slice::from_ref(range)).unwrap_or(&self.map[0]).group
    }

    /// A request to the home group.
    pub(super) fn at_home(&self, body: Request) -> GroupRequest {
        self.request(&self.map[0], body)
    }

    fn end_of(&self, place: usize) -> Option<Bytes> {
        self.map.get(place + 1).map(|next| next.start.clone())
    }

    fn range_of(&self, place: usize) -> KeyRange {
        KeyRange { start: self.map[place].start.clone(), end: self.end_of(place) }
    }

    /// The only range that has all these keys.
    fn only(&self, keys: &[KeyRange]) -> Option<&Placed> {
        let has = |place: &usize| {
            let range = self.range_of(*place);
            keys.iter().all(|keys| keys.is_within(&range))
        };
        (0..self.map.len()).find(has).map(|place| &self.map[place])
    }

    fn request(&self, placed: &Placed, body: Request) -> GroupRequest {
        GroupRequest {
            tenant: id::DEFAULT_TENANT.0,
            namespace: id::DEFAULT_NAMESPACE.0,
            group: placed.group.0,
            range_version: placed.version,
            body: Some(body),
            ..Default::default()
        }
    }

    /// Where a router sends a request.
    pub(super) fn route(&self, body: Request) -> Route {
        let keys = match &body {
            Request::Range(r) => vec![KeyRange::parse(&r.key, &r.range_end)],
            Request::Put(put) => vec![KeyRange::single(&put.key)],
            Request::DeleteRange(d) => vec![KeyRange::parse(&d.key, &d.range_end)],
            Request::Txn(txn) => {
                let footprint = Footprint::of(txn);
                let past = footprint.past.iter().map(|(keys, _)| keys);
                let keys = footprint.reads.iter().chain(&footprint.writes).chain(past);
                keys.cloned().collect()
            }
            _ => Vec::new(),
        };
        let home = &self.map[0];
        match (self.only(&keys), body) {
            (None, Request::Range(range)) => Route::Over(range),
            (Some(placed), body) if !keys.is_empty() => Route::One(self.request(placed, body)),
            (_, body) => Route::One(self.request(home, body)),
        }
    }

    /// A replica has applied a revision.
    pub(super) fn committed(&mut self, now: u64, events: &RevisionEvents) {
        let (_, known) =
            self.changes.entry(events.revision).or_insert_with(|| (now, BTreeMap::new()));
        for change in &events.events {
            let event = KeyEvent { prev_kv: None, ..KeyEvent::clone(&change.event) };
            let before = known.insert(change.event.place(), event.clone());
            if before.as_ref().is_some_and(|before| *before != event) {
                let revision = events.revision;
                self.conflicts.push(format!("revision {revision} is told in two ways: {event:?}"));
            }
        }
    }

    /// Numbers the history anew, and tells it what was committed.
    pub(super) fn rename(
        &mut self,
        history: &mut History,
        peaceful: bool,
        violations: &mut Vec<String>,
    ) {
        violations.append(&mut self.conflicts);
        self.changes.retain(|_, (_, events)| !events.is_empty());
        let names = Names::new(&self.changes.keys().copied().collect());
        if peaceful && names.holes() > 0 {
            violations.push(format!("nothing failed, and {} revisions are missing", names.holes()));
        }
        names.rename(history);
        for (revision, (at, events)) in &self.changes {
            let mut events: Vec<KeyEvent> = events.values().cloned().collect();
            events.iter_mut().for_each(|event| names.event(event));
            history.committed(0, *at, names.of(*revision), &events);
        }
    }
}

impl World {
    fn splits(&mut self) -> &mut Splits {
        self.splits.as_mut().expect("only in a scene with splits")
    }

    /// What clients of a split tenant ask: what needs the whole tenant's keys is not simulated here.
    pub(super) fn adapt(&self, request: Request) -> Request {
        match request {
            _ if self.splits.is_none() => request,
            Request::LeaseTimeToLive(ask) => {
                Request::LeaseTimeToLive(proto::etcd::LeaseTimeToLiveRequest { keys: false, ..ask })
            }
            // Revisions are numbered anew: two compactions may become one.
            Request::Compact(_) => {
                Request::Range(RangeRequest { key: "k0".into(), ..Default::default() })
            }
            request => request,
        }
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
        let all = splits.map.iter().map(|placed| (placed.group, nodes.clone())).collect();
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
        let may = splits.coming.is_none() && splits.map.len() < GROUPS_MAX && now < FAULTS_MS;
        if may && splits.random.permille(150) {
            let at = Bytes::from(format!("k{}", splits.random.below(8)));
            let place = splits.map.iter().rposition(|placed| placed.start <= at).unwrap_or(0);
            if splits.map[place].start != at {
                let group = splits.map[place].group;
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
        if idle && !calm && splits.map.len() > 1 && splits.salt.permille(150) {
            let right = splits.salt.between(1, splits.map.len() as u64 - 1) as usize;
            let (left, placed) = (splits.map[right - 1].group, &splits.map[right]);
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
        let Some(placed) = splits.map.iter().find(|placed| placed.group == left).cloned() else {
            return;
        };
        let body = Request::MergeRange(MergeRange { right: right.0, at });
        let request = GroupRequest { tenant: 0, ..splits.request(&placed, body) };
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
        let place = splits.salt.below(splits.map.len() as u64) as usize;
        if splits.coming.is_some() || !splits.salt.permille(400) {
            return;
        }
        let placed = splits.map[place].clone();
        let own = splits.end_of(place);
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
        splits.map[place].version = version;
        let mut merged = 0;
        let covered = |next: &Placed| end.as_ref().is_none_or(|end| next.start < *end);
        while splits.map.get(place + 1).is_some_and(covered) {
            let gone = splits.map.remove(place + 1);
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
        let placed = splits.map.iter().find(|placed| placed.group == wish.group).cloned();
        let Some(placed) = placed else { return };
        let body = Request::SplitRange(SplitRange { at: wish.at.clone(), child: wish.child.0 });
        let request = GroupRequest { tenant: 0, ..splits.request(&placed, body) };
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
        let place = splits.spice.below(splits.map.len() as u64) as usize;
        let placed = splits.map[place].clone();
        let target_id = splits.spice.between(1, hosts);
        let body = Request::MoveLeader(MoveLeaderRequest { target_id });
        let request = GroupRequest { tenant: 0, ..splits.request(&placed, body) };
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
        let place = splits.map.iter().position(|placed| placed.group == wish.group);
        let Some(place) = place else { return };
        splits.map[place].version = version;
        let child = Placed { start: wish.at.clone(), group: wish.child, version };
        splits.map.insert(place + 1, child);
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

    // === lists over several groups ===

    /// Asks home where the revisions stand.
    pub(super) fn begin_gather(
        &mut self,
        client: usize,
        op: OpId,
        host: usize,
        range: RangeRequest,
    ) {
        let splits = self.splits();
        splits.next_gather += 1;
        let number = splits.next_gather;
        let (revision, missing, rows) = (0, 0, Vec::new());
        let gather = Gather { number, request: range, revision, missing, rows };
        splits.gathers.insert(op, gather);
        let home = splits.map[0].clone();
        let body = Request::Span(SpanRequest { weak: false });
        let request = splits.request(&home, body);
        self.request(host, Waiting::Span { client, op, number }, request);
    }

    pub(super) fn gather(&mut self, (client, op): (usize, OpId), number: u64, span: Span) {
        let hosts = self.hosts.len() as u64;
        let parts: Vec<(RangePlace, i64)> =
            span.parts.into_iter().filter_map(|part| Some((part.place?, part.last))).collect();
        let gather = self.splits().gathers.get_mut(&op);
        let Some(gather) = gather.filter(|gather| gather.number == number) else { return };
        let keys = KeyRange::parse(&gather.request.key, &gather.request.range_end);
        gather.revision = span.revision;
        let mut asks = Vec::new();
        for (place, last) in parts {
            let range = KeyRange { start: place.start, end: place.end };
            let Some(both) = keys.common(&range) else { continue };
            let (key, range_end) = (both.start, both.end.unwrap_or_else(|| "\0".into()));
            let key = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
            let body = RangeRequest { key, range_end, ..gather.request.clone() };
            asks.push(GroupRequest {
                tenant: id::DEFAULT_TENANT.0,
                namespace: id::DEFAULT_NAMESPACE.0,
                group: place.group,
                range_version: place.version,
                read_at: Some(ReadAt { revision: span.revision, last }),
                body: Some(Request::Range(body)),
                ..Default::default()
            });
        }
        gather.missing = asks.len();
        for request in asks {
            let host = self.splits().random.below(hosts) as usize;
            let group = GroupId(request.group);
            let shared = self.hosts[host].process.as_ref().and_then(|p| p.node.shared(group));
            self.note(&format!("c{client} {op} asks n{} for its part of {group:?}", host + 1));
            let waiting = Waiting::Part { client, op, number, request: request.clone(), shared };
            match self.hosts[host].process.is_some() {
                true => self.request(host, waiting, request),
                false => self.lose_gather((client, op), number, None),
            }
        }
    }

    /// A part did not come: the whole is asked for again.
    pub(super) fn lose_gather(
        &mut self,
        (client, op): (usize, OpId),
        number: u64,
        hint: Option<usize>,
    ) {
        let gather = self.splits().gathers.get(&op);
        if gather.is_none_or(|gather| gather.number != number) {
            return;
        }
        self.splits().gathers.remove(&op);
        if self.busy[client] == Some(op) {
            self.try_elsewhere(client, op, hint);
        }
    }

    pub(super) fn part(
        &mut self,
        host: usize,
        (client, op): (usize, OpId),
        number: u64,
        request: &GroupRequest,
        answer: Result<Answer, GroupError>,
        shared: Option<std::sync::Arc<shard::group::Shared>>,
    ) {
        let gather = self.splits().gathers.get(&op);
        if gather.is_none_or(|gather| gather.number != number) {
            return;
        }
        let read = match (answer, shared, &request.body) {
            (Ok(Answer::Readable(reading)), Some(shared), Some(body)) => {
                let process = self.hosts[host].process.as_ref().expect("it has just answered");
                let version = request.range_version;
                access::read(process.node.store(), &shared, body, version, reading)
            }
            (Err(error), ..) => Err(error),
            _ => unreachable!("a part is read or refused"),
        };
        match read {
            Ok(Reply::Range(rows)) => {
                let Some(gather) = self.splits().gathers.get_mut(&op) else { return };
                gather.rows.push(rows);
                gather.missing -= 1;
                if gather.missing > 0 {
                    return;
                }
                let Some(gather) = self.splits().gathers.remove(&op) else { return };
                let answer = Ok(Reply::Range(together(gather)));
                if self.busy[client] == Some(op) {
                    self.heard(client, op, answer);
                }
            }
            Err(error) if error.outcome == refusal::Outcome::Final => {
                self.splits().gathers.remove(&op);
                if self.busy[client] == Some(op) {
                    self.heard(client, op, Err(error));
                }
            }
            _ => self.lose_gather((client, op), number, None),
        }
    }

    // === the end ===

    pub(super) fn judge_splits(&mut self, violations: &mut Vec<String>) {
        let Some(mut splits) = self.splits.take() else { return };
        splits.rename(&mut self.tenants[0].history, self.peaceful, violations);
        if splits.wish.is_some() || splits.coming.is_some() || splits.union.is_some() {
            violations.push(format!(
                "it did not end after the world calmed down: {:?} {:?} {:?}",
                splits.wish, splits.coming, splits.union
            ));
        }
        let wanted: BTreeSet<GroupId> = splits.map.iter().map(|placed| placed.group).collect();
        for host in &self.hosts {
            let groups = host.process.iter().flat_map(|process| process.node.groups());
            let there: BTreeSet<GroupId> = groups.map(|(id, _)| *id).collect();
            if there != wanted {
                violations.push(format!("n{} has {there:?}, not {wanted:?}", host.id));
            }
        }
    }

    /// Leases live as long as with one group, but for what it takes home to open.
    pub(super) fn lease_bounds(&self, bounds: leases::Bounds) -> leases::Bounds {
        match self.splits {
            Some(_) => leases::Bounds { late: bounds.late + 6000, ..bounds },
            None => bounds,
        }
    }
}

/// The parts of a list as one.
fn together(gather: Gather) -> RangeResponse {
    let Gather { request, revision, mut rows, .. } = gather;
    rows.sort_by_key(|part| part.kvs.first().map(|kv| kv.key.clone()));
    let count = rows.iter().map(|part| part.count).sum();
    let mut kvs: Vec<_> = rows.into_iter().flat_map(|part| part.kvs).collect();
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let more = limit > 0 && count > request.limit;
    if limit > 0 {
        kvs.truncate(limit);
    }
    let header = Some(ResponseHeader { revision, ..Default::default() });
    RangeResponse { header, kvs, more, count }
}
