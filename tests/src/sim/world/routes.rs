//! Routers of tenants that may be on several groups: by which map a request goes to which of them,
//! how a list over several groups is put together, and what all groups have committed, as if they
//! were one.
//!
//! Who plays placement says what map a router has: it may be old. Revisions of such a tenant have
//! holes, so its history is numbered anew before it is judged (`tests/src/split/names.rs`).

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::cluster::group::{GroupRequest, RangePlace, ReadAt, Span, SpanRequest, refusal};
use proto::etcd::{LeaseTimeToLiveRequest, RangeRequest, RangeResponse, ResponseHeader};
use proto::group::{GroupError, Reply, Request};
use proto::mvccpb::Event as KeyEvent;
use proto::{GroupId, KeyRange};
use shard::access;
use shard::group::Shared;
use shard::machine::effect::RevisionEvents;
use shard::node::Answer;
use shard::split::footprint::Footprint;

use super::{Tenant, Waiting, World};
use crate::check::history::{History, OpId};
use crate::check::leases;
use crate::sim::random::Random;
use crate::split::names::Names;

/// One range of the map that routers go by.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) start: Bytes,
    pub(super) group: GroupId,
    pub(super) version: u64,
}

/// A tenant's map, as some router knows it.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) tenant: u64,
    pub(super) namespace: u64,
    /// Ascending by start; home first.
    pub(super) places: Vec<Placed>,
}

/// Where a request goes.
pub(super) enum Route {
    /// To this group.
    One(GroupRequest),
    /// A list over several groups.
    Over(RangeRequest),
}

// === impl Map ===

impl Map {
    /// Of a tenant that is on one group.
    pub(super) fn of_one(tenant: u64, namespace: u64, group: GroupId) -> Map {
        let places = vec![Placed { start: Bytes::new(), group, version: 1 }];
        Map { tenant, namespace, places }
    }

    /// Where a watch goes that has keys of one group.
    pub(super) fn group_of(&self, range: &KeyRange) -> GroupId {
        self.only(std::slice::from_ref(range)).unwrap_or(&self.places[0]).group
    }

    /// A request to the home group.
    pub(super) fn at_home(&self, body: Request) -> GroupRequest {
        self.request(&self.places[0], body)
    }

    pub(super) fn end_of(&self, place: usize) -> Option<Bytes> {
        self.places.get(place + 1).map(|next| next.start.clone())
    }

    fn range_of(&self, place: usize) -> KeyRange {
        KeyRange { start: self.places[place].start.clone(), end: self.end_of(place) }
    }

    /// The only range that has all these keys.
    fn only(&self, keys: &[KeyRange]) -> Option<&Placed> {
        let has = |place: &usize| {
            let range = self.range_of(*place);
            keys.iter().all(|keys| keys.is_within(&range))
        };
        (0..self.places.len()).find(has).map(|place| &self.places[place])
    }

    pub(super) fn request(&self, placed: &Placed, body: Request) -> GroupRequest {
        GroupRequest {
            tenant: self.tenant,
            namespace: self.namespace,
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
        match (self.only(&keys), body) {
            (None, Request::Range(range)) => Route::Over(range),
            (Some(placed), body) if !keys.is_empty() => Route::One(self.request(placed, body)),
            (_, body) => Route::One(self.at_home(body)),
        }
    }
}

/// What the groups of a tenant have committed.
#[derive(Default)]
pub(super) struct Commits {
    /// What was committed under a revision, by place.
    changes: BTreeMap<i64, (u64, BTreeMap<u32, KeyEvent>)>,
    conflicts: Vec<String>,
}

// === impl Commits ===

impl Commits {
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
    fn rename(&mut self, history: &mut History, peaceful: bool, violations: &mut Vec<String>) {
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

/// A list over several groups on its way.
struct Gather {
    /// Names the try: parts of an earlier one may still come.
    number: u64,
    request: RangeRequest,
    revision: i64,
    missing: usize,
    rows: Vec<RangeResponse>,
}

/// A request of a client: its number, and that in the history of its tenant.
type Asker = (usize, OpId);

/// Lists over several groups.
#[derive(Default)]
pub(super) struct Gathers {
    under_way: BTreeMap<Asker, Gather>,
    next: u64,
}

// === impl Gathers ===

impl Gathers {
    /// The list of which this is still the newest try.
    fn get(&mut self, asker: Asker, number: u64) -> Option<&mut Gather> {
        self.under_way.get_mut(&asker).filter(|gather| gather.number == number)
    }
}

// === impl Tenant ===

impl Tenant {
    /// May it be on several groups?
    pub(super) fn is_wide(&self) -> bool {
        self.commits.is_some()
    }

    /// What clients ask: what needs all keys of a tenant on several groups is not simulated here.
    pub(super) fn adapt(&self, request: Request) -> Request {
        match request {
            _ if !self.is_wide() => request,
            Request::LeaseTimeToLive(ask) => {
                Request::LeaseTimeToLive(LeaseTimeToLiveRequest { keys: false, ..ask })
            }
            // Revisions are numbered anew: two compactions may become one.
            Request::Compact(_) => {
                Request::Range(RangeRequest { key: "k0".into(), ..Default::default() })
            }
            request => request,
        }
    }

    /// Numbers its history anew, if it may be on several groups.
    pub(super) fn rename(&mut self, peaceful: bool, violations: &mut Vec<String>) {
        if let Some(commits) = &mut self.commits {
            commits.rename(&mut self.history, peaceful, violations);
        }
    }

    /// Leases live as long as with one group, but for what it takes home to open.
    pub(super) fn lease_bounds(&self, bounds: leases::Bounds) -> leases::Bounds {
        match self.is_wide() {
            true => leases::Bounds { late: bounds.late + 6000, ..bounds },
            false => bounds,
        }
    }
}

// === impl World ===

impl World {
    /// The map by which the router at a host sends a tenant's requests.
    pub(super) fn map_at(&self, host: usize, tenant: usize) -> Map {
        let tenant = &self.tenants[tenant];
        let map = match (&self.splits, &self.service) {
            (Some(splits), _) => Some(splits.map.clone()),
            (None, Some(service)) if tenant.is_wide() => service.map_at(host, tenant),
            _ => None,
        };
        map.unwrap_or_else(|| Map::of_one(tenant.id, tenant.namespace, tenant.group))
    }

    /// A host that is asked for a part of what a router puts together.
    pub(super) fn part_at(&mut self) -> usize {
        let hosts = self.hosts.len() as u64;
        let random: &mut Random = match (&mut self.splits, &mut self.service) {
            (Some(splits), _) => &mut splits.random,
            (None, Some(service)) => service.random_of_places(),
            (None, None) => &mut self.spice,
        };
        random.below(hosts) as usize
    }

    /// Asks home where the revisions stand.
    pub(super) fn begin_gather(
        &mut self,
        asker: Asker,
        host: usize,
        range: RangeRequest,
        map: &Map,
    ) {
        let (client, op) = asker;
        self.gathers.next += 1;
        let number = self.gathers.next;
        let (revision, missing, rows) = (0, 0, Vec::new());
        let gather = Gather { number, request: range, revision, missing, rows };
        self.gathers.under_way.insert(asker, gather);
        let request = map.at_home(Request::Span(SpanRequest { weak: false }));
        self.request(host, Waiting::Span { client, op, number }, request);
    }

    pub(super) fn gather(&mut self, asker: Asker, number: u64, span: Span) {
        let (client, op) = asker;
        let Tenant { id, namespace, .. } = self.tenants[self.clients[client].tenant];
        let parts: Vec<(RangePlace, i64)> =
            span.parts.into_iter().filter_map(|part| Some((part.place?, part.last))).collect();
        let Some(gather) = self.gathers.get(asker, number) else { return };
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
                tenant: id,
                namespace,
                group: place.group,
                range_version: place.version,
                read_at: Some(ReadAt { revision: span.revision, last }),
                body: Some(Request::Range(body)),
                ..Default::default()
            });
        }
        gather.missing = asks.len();
        for request in asks {
            let host = self.part_at();
            let group = GroupId(request.group);
            let shared = self.hosts[host].process.as_ref().and_then(|p| p.node.shared(group));
            self.note(&format!("c{client} {op} asks n{} for its part of {group:?}", host + 1));
            let waiting = Waiting::Part { client, op, number, request: request.clone(), shared };
            match self.hosts[host].process.is_some() {
                true => self.request(host, waiting, request),
                false => self.lose_gather(asker, number, None),
            }
        }
    }

    /// A part did not come: the whole is asked for again.
    pub(super) fn lose_gather(&mut self, asker: Asker, number: u64, hint: Option<usize>) {
        if self.gathers.get(asker, number).is_none() {
            return;
        }
        self.gathers.under_way.remove(&asker);
        let (client, op) = asker;
        if self.busy[client] == Some(op) {
            self.try_elsewhere(client, op, hint);
        }
    }

    pub(super) fn part(
        &mut self,
        host: usize,
        asker: Asker,
        number: u64,
        request: &GroupRequest,
        answer: Result<Answer, GroupError>,
        shared: Option<std::sync::Arc<Shared>>,
    ) {
        let (client, op) = asker;
        if self.gathers.get(asker, number).is_none() {
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
                let Some(gather) = self.gathers.get(asker, number) else { return };
                gather.rows.push(rows);
                gather.missing -= 1;
                if gather.missing > 0 {
                    return;
                }
                let Some(gather) = self.gathers.under_way.remove(&asker) else { return };
                let answer = Ok(Reply::Range(together(gather)));
                if self.busy[client] == Some(op) {
                    self.heard(client, op, answer);
                }
            }
            Err(error) if error.outcome == refusal::Outcome::Final => {
                self.gathers.under_way.remove(&asker);
                if self.busy[client] == Some(op) {
                    self.heard(client, op, Err(error));
                }
            }
            _ => self.lose_gather(asker, number, None),
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
