//! Groups in memory: enough of etcd's machine to answer what handlers ask.
//!
//! Each group is there from the first time that it is asked. It keeps every event ever made and
//! finds any state by replaying them: slow and plain. No elections, no quotas, no auth. Tests
//! reach in to take the leader away, to close hubs, to set the version of a group's range, and
//! to see what was asked of whom.
//!
//! Several groups make one etcd after [`Fake::split`]: they share a store, and each has a range, a
//! version of it, the last revision that concerned it, and its own hubs. A group that is *held*
//! applies nothing: its hubs are fed nothing and what is read there at a revision waits. Whatever
//! should not have been asked of a group is refused as stale, or is a panic.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{
    Error, GroupId, KeyRange,
    cluster::group::{Description, GroupRequest, RangePlace, ReadAt, Span, SpanPart},
    etcd::{self, ResponseHeader, range_request::SortOrder, range_request::SortTarget},
    group::{
        GroupError, Groups, Identity, Reply, ReplyFuture, Request, WatchControl, WatchEvent,
        WatchOutput, WatchSink, WatchSpec,
    },
    id,
    mvccpb::{Event, KeyValue, event::EventType},
};

pub(super) const CLUSTER: u64 = 0xc1;
pub(super) const MEMBER: u64 = 0x4e;
const TERM: u64 = 5;

#[derive(Default)]
struct Store {
    revision: i64,
    compacted: i64,
    events: Vec<Arc<WatchEvent>>,
    leases: BTreeMap<i64, i64>,
    alarms: Vec<etcd::AlarmMember>,
    hubs: Vec<Hub>,
    /// The groups of the etcd; the first one is home.
    groups: BTreeMap<GroupId, Group>,
    /// Answers of home that are given instead of the true one, the last first.
    spans: Vec<Span>,
    /// Home's answers wait.
    mute: bool,
}

/// What one of the groups has.
#[derive(Clone)]
struct Group {
    range: KeyRange,
    /// Other versions of the range are refused; any is taken if it is 0.
    version: u64,
    /// Its last revision.
    last: i64,
    /// The last revision that it has applied.
    applied: i64,
    held: bool,
}

struct Hub {
    number: u64,
    group: GroupId,
    sink: Arc<dyn WatchSink>,
    watches: BTreeMap<u64, WatchSpec>,
    /// Progress that was asked for and waits for a revision.
    asked: Vec<i64>,
}

/// All groups.
#[derive(Default)]
pub(super) struct Fake {
    stores: Mutex<BTreeMap<GroupId, Arc<Mutex<Store>>>>,
    asked: Mutex<Vec<GroupRequest>>,
    refusals: Mutex<Vec<GroupError>>,
    /// What is said of requests that were done.
    doubts: Mutex<Vec<GroupError>>,
    watched: Arc<Mutex<Vec<WatchSpec>>>,
    leaderless: Mutex<BTreeSet<GroupId>>,
}

// === impl Fake ===

impl Fake {
    pub(super) fn new() -> Arc<Fake> {
        Arc::default()
    }

    fn store(&self, group: GroupId) -> Arc<Mutex<Store>> {
        let new = || {
            let range = KeyRange::all();
            let all = Group { range, version: 0, last: 1, applied: 1, held: false };
            let groups = BTreeMap::from([(group, all)]);
            Arc::new(Mutex::new(Store { revision: 1, groups, ..Default::default() }))
        };
        self.stores.lock().entry(group).or_insert_with(new).clone()
    }

    fn with<T>(&self, group: u64, act: impl FnOnce(&mut Store, &mut Group) -> T) -> T {
        let (id, store) = (GroupId(group), self.store(GroupId(group)));
        let mut store = store.lock();
        let mut group = store.groups.remove(&id).expect("the group is there");
        let done = act(&mut store, &mut group);
        store.groups.insert(id, group);
        store.advance();
        done
    }

    /// From now on the group refuses every other version of its range.
    pub(super) fn set_range_version(&self, group: u64, version: u64) {
        self.with(group, |_, group| group.version = version);
    }

    /// Gives group `to` all that `from` has; `from` stays as it is.
    pub(super) fn copy(&self, from: u64, to: u64) {
        let (from, to) = (self.store(GroupId(from)), self.store(GroupId(to)));
        let (from, mut to) = (from.lock(), to.lock());
        (to.revision, to.events, to.leases) =
            (from.revision, from.events.clone(), from.leases.clone());
        let revision = to.revision;
        to.groups.values_mut().for_each(|group| {
            (group.last, group.applied) = (revision, revision);
        });
    }

    /// The keys of `group` from `at` on go to `child`. Both have the next version.
    pub(super) fn split(&self, group: u64, at: &str, child: u64) {
        let store = self.store(GroupId(group));
        self.stores.lock().insert(GroupId(child), store);
        self.with(group, |store, group| {
            let at = Bytes::copy_from_slice(at.as_bytes());
            let above = KeyRange { start: at.clone(), end: group.range.end.replace(at) };
            group.version = group.version.max(1) + 1;
            store.groups.insert(GroupId(child), Group { range: above, ..group.clone() });
        });
    }

    /// `left` takes all that its right neighbour has.
    pub(super) fn absorb(&self, left: u64, right: u64) {
        self.with(left, |store, left| {
            let gone = store.groups.remove(&GroupId(right)).expect("the group is there");
            left.range.end = gone.range.end;
            left.version = left.version.max(gone.version) + 1;
            left.last = left.last.max(gone.last);
            left.applied = left.last;
        });
    }

    /// From now on the group applies nothing, or goes on.
    pub(super) fn hold(&self, group: u64, held: bool) {
        self.with(group, |_, group| group.held = held);
    }

    /// Home answers nothing that is asked of where the revisions stand, or goes on.
    pub(super) fn mute(&self, home: u64, mute: bool) {
        self.store(GroupId(home)).lock().mute = mute;
    }

    /// What home says now of where the revisions stand.
    pub(super) fn span(&self, home: u64) -> Span {
        self.store(GroupId(home)).lock().span()
    }

    /// Home says this once instead, before what was told it earlier.
    pub(super) fn tell(&self, home: u64, span: Span) {
        self.store(GroupId(home)).lock().spans.push(span);
    }

    pub(super) fn lose_leader(&self, group: GroupId) {
        self.leaderless.lock().insert(group);
    }

    /// Answers the next requests with these refusals, the last first.
    pub(super) fn refuse(&self, error: GroupError) {
        self.refusals.lock().push(error);
    }

    /// Does the next requests, and says this of them, the last first.
    pub(super) fn doubt(&self, error: GroupError) {
        self.doubts.lock().push(error);
    }

    /// Raises an alarm of the default group.
    pub(super) fn raise(&self, alarm: etcd::AlarmType) {
        let alarm = etcd::AlarmMember { member_id: MEMBER, alarm: alarm as i32 };
        self.store(id::DEFAULT_GROUP).lock().alarms.push(alarm);
    }

    /// Requests so far.
    pub(super) fn asked(&self) -> Vec<GroupRequest> {
        self.asked.lock().clone()
    }

    /// Watches created so far.
    pub(super) fn watched(&self) -> Vec<WatchSpec> {
        self.watched.lock().clone()
    }

    fn all(&self) -> Vec<Arc<Mutex<Store>>> {
        let mut all: Vec<Arc<Mutex<Store>>> = Vec::new();
        for store in self.stores.lock().values() {
            // The groups of one etcd share theirs.
            if !all.iter().any(|other| Arc::ptr_eq(other, store)) {
                all.push(store.clone());
            }
        }
        all
    }

    /// Closes all watches, as a stopping replica does.
    pub(super) fn close_hubs(&self) {
        for store in self.all() {
            for hub in std::mem::take(&mut store.lock().hubs) {
                for key in hub.watches.keys() {
                    let _ = hub.sink.offer(WatchOutput::Closed { key: *key });
                }
            }
        }
    }

    pub(super) fn open_watches(&self) -> usize {
        let open = |store: &Arc<Mutex<Store>>| -> usize {
            store.lock().hubs.iter().map(|hub| hub.watches.len()).sum()
        };
        self.all().iter().map(open).sum()
    }
}

impl Groups for Fake {
    fn call(&self, request: GroupRequest) -> ReplyFuture {
        self.asked.lock().push(request.clone());
        let store = self.store(GroupId(request.group));
        let refusal = self.refusals.lock().pop();
        if refusal.is_none() && store.lock().is_ahead(&request) {
            return Box::pin(async move {
                while store.lock().is_ahead(&request) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                store.lock().answer(request)
            });
        }
        let outcome = match refusal {
            Some(refusal) => Err(refusal),
            None => {
                let answer = store.lock().answer(request);
                self.doubts.lock().pop().map_or(answer, Err)
            }
        };
        Box::pin(async move { outcome })
    }

    fn watch(&self, group: GroupId, sink: Arc<dyn WatchSink>) -> Box<dyn WatchControl> {
        static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let store = self.store(group);
        let (watches, asked) = (BTreeMap::new(), Vec::new());
        store.lock().hubs.push(Hub { number, group, sink, watches, asked });
        Box::new(Control { number, group, store, watched: self.watched.clone() })
    }

    fn revision(&self, group: GroupId) -> i64 {
        self.store(group).lock().revision
    }

    fn identity(&self) -> Identity {
        Identity { cluster_id: CLUSTER, member_id: MEMBER }
    }

    fn leaderless(&self, group: GroupId) -> bool {
        self.leaderless.lock().contains(&group)
    }
}

struct Control {
    number: u64,
    group: GroupId,
    store: Arc<Mutex<Store>>,
    watched: Arc<Mutex<Vec<WatchSpec>>>,
}

// === impl Control ===

impl Control {
    /// Lets the hub act, which has been fed up to a revision.
    fn with(&self, act: impl FnOnce(&mut Hub, &Store, i64)) {
        let mut store = self.store.lock();
        let mut hubs = std::mem::take(&mut store.hubs);
        // The hubs of a group that was absorbed are as they were.
        let fed = store.groups.get(&self.group).map_or(0, |group| group.applied);
        if let Some(hub) = hubs.iter_mut().find(|hub| hub.number == self.number) {
            act(hub, &store, fed);
        }
        store.hubs = hubs;
    }
}

impl WatchControl for Control {
    fn create(&self, spec: WatchSpec) {
        assert_eq!(spec.group, self.group, "a watch is made at the hub of its group");
        self.watched.lock().push(spec.clone());
        self.with(|hub, store, fed| {
            let has = store.groups.get(&hub.group);
            if !has.is_some_and(|group| spec.range.is_within(&group.range)) {
                let _ = hub.sink.offer(WatchOutput::Closed { key: spec.key });
                return;
            }
            if spec.start_revision < store.compacted {
                let (key, revision) = (spec.key, store.compacted);
                let _ = hub.sink.offer(WatchOutput::Compacted { key, revision });
                return;
            }
            let events = visible(&spec, &store.events, fed);
            if !events.is_empty() {
                let (key, revision) = (spec.key, fed);
                let _ = hub.sink.offer(WatchOutput::Events { key, revision, events });
            }
            hub.watches.insert(spec.key, spec);
        });
    }

    fn cancel(&self, key: u64) {
        self.with(|hub, _, _| {
            hub.watches.remove(&key);
        });
    }

    fn progress(&self) {
        self.with(|hub, _, fed| hub.tell_progress(fed));
    }

    fn progress_at(&self, revision: i64) {
        self.with(|hub, _, fed| {
            hub.asked.push(revision);
            hub.answer(fed);
        });
    }

    fn watch_progress(&self, key: u64) {
        self.with(|hub, _, revision| {
            let _ = hub.sink.offer(WatchOutput::WatchProgress { key, revision });
        });
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.store.lock().hubs.retain(|hub| hub.number != self.number);
    }
}

/// The events up to `fed` that a watch sees.
fn visible(spec: &WatchSpec, events: &[Arc<WatchEvent>], fed: i64) -> Vec<Arc<WatchEvent>> {
    let wanted = |event: &&Arc<WatchEvent>| {
        let kv = event.kv.as_ref().expect("events have keys");
        let filtered = match event.r#type() {
            EventType::Put => spec.no_put,
            EventType::Delete => spec.no_delete,
        };
        (spec.start_revision..=fed).contains(&kv.mod_revision)
            && spec.range.contains(&kv.key)
            && !filtered
    };
    events.iter().filter(wanted).cloned().collect()
}

// === impl Hub ===

impl Hub {
    fn feed(&mut self, events: &[Arc<WatchEvent>], before: i64, to: i64) {
        for (key, spec) in &self.watches {
            let from =
                WatchSpec { start_revision: spec.start_revision.max(before + 1), ..spec.clone() };
            let events = visible(&from, events, to);
            if !events.is_empty() {
                let output = WatchOutput::Events { key: *key, revision: to, events };
                assert!(self.sink.offer(output).is_ok(), "tests do not fill sinks");
            }
        }
        self.answer(to);
    }

    /// Closes what is not inside the range any more.
    fn ranged(&mut self, range: &KeyRange) {
        let sink = &self.sink;
        self.watches.retain(|key, spec| {
            let inside = spec.range.is_within(range);
            if !inside {
                let _ = sink.offer(WatchOutput::Closed { key: *key });
            }
            inside
        });
    }

    fn answer(&mut self, fed: i64) {
        let before = self.asked.len();
        self.asked.retain(|asked| *asked > fed);
        if self.asked.len() < before {
            self.tell_progress(fed);
        }
    }

    fn tell_progress(&self, revision: i64) {
        let newest = self.watches.keys().max().copied().unwrap_or_default();
        let _ = self.sink.offer(WatchOutput::Progress { revision, newest });
    }
}

// === impl Store ===

impl Store {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision, raft_term: TERM, ..Default::default() })
    }

    fn state(&self, revision: i64) -> BTreeMap<Bytes, KeyValue> {
        let mut state = BTreeMap::new();
        for event in &self.events {
            let kv = event.kv.clone().expect("events have keys");
            if kv.mod_revision > revision {
                break;
            }
            match event.r#type() {
                EventType::Put => state.insert(kv.key.clone(), kv),
                EventType::Delete => state.remove(&kv.key),
            };
        }
        state
    }

    /// Does it have to wait?
    fn is_ahead(&self, request: &GroupRequest) -> bool {
        let applied = |id| self.groups.get(&id).map_or(i64::MAX, |group| group.applied);
        let waits = |at: ReadAt| at.last > applied(GroupId(request.group));
        request.read_at.is_some_and(waits)
            || (self.mute && matches!(request.body, Some(Request::Span(_))))
    }

    fn answer(&mut self, request: GroupRequest) -> Result<Reply, GroupError> {
        let stale = Err(GroupError::not_done(Error::StaleRange, None));
        let Some(group) = self.groups.get(&GroupId(request.group)) else { return stale };
        if group.version != 0 && request.range_version != group.version {
            return stale;
        }
        let body = request.body.expect("requests have bodies");
        let is_home = self.groups.keys().next() == Some(&GroupId(request.group));
        if let Some(at) = request.read_at {
            return self.part(group.range.clone(), at, body);
        }
        if !is_home {
            let range = group.range.clone();
            let single = |key: &Bytes| KeyRange::single(key).is_within(&range);
            let within = match &body {
                Request::Range(it) => KeyRange::parse(&it.key, &it.range_end).is_within(&range),
                Request::DeleteRange(it) => {
                    KeyRange::parse(&it.key, &it.range_end).is_within(&range)
                }
                Request::Put(it) => single(&it.key),
                Request::Txn(it) => it.compare.iter().all(|it| single(&it.key)),
                _ => false,
            };
            assert!(within, "{range:?} is asked for {body:?}");
        }
        let before = self.events.len();
        let reply = self.body(body)?;
        let revision = self.revision;
        for event in &self.events[before..] {
            let key = &event.kv.as_ref().expect("events have keys").key;
            let concerned = self.groups.values_mut().filter(|group| group.range.contains(key));
            concerned.for_each(|group| group.last = revision);
        }
        self.advance();
        Ok(reply)
    }

    /// A group's part of a read at a revision.
    fn part(&self, range: KeyRange, at: ReadAt, body: Request) -> Result<Reply, GroupError> {
        let header = self.header().map(|header| ResponseHeader { revision: at.revision, ..header });
        Ok(match body {
            Request::Range(mut request) => {
                let asked = KeyRange::parse(&request.key, &request.range_end);
                assert!(asked.is_within(&range), "{range:?} is asked for {asked:?}");
                assert!(request.revision <= at.revision, "home has looked at the revision");
                if request.revision <= 0 {
                    request.revision = at.revision;
                }
                Reply::Range(etcd::RangeResponse { header, ..self.range(&request)? })
            }
            Request::HashKv(_) => Reply::HashKv(etcd::HashKvResponse {
                header,
                hash: 77,
                compact_revision: self.compacted,
                hash_revision: at.revision,
            }),
            Request::LeaseTimeToLive(ask) => {
                let attached = self.state(at.revision).into_values();
                let attached = attached.filter(|kv| kv.lease == ask.id && range.contains(&kv.key));
                let keys = attached.map(|kv| kv.key).collect();
                let (id, ttl, granted_ttl) = (ask.id, 0, 0);
                Reply::LeaseTimeToLive(etcd::LeaseTimeToLiveResponse {
                    header,
                    id,
                    ttl,
                    granted_ttl,
                    keys,
                })
            }
            other => panic!("no part of a read: {other:?}"),
        })
    }

    fn span(&self) -> Span {
        let part = |(id, group): (&GroupId, &Group)| SpanPart {
            place: Some(RangePlace {
                group: id.0,
                start: group.range.start.clone(),
                end: group.range.end.clone(),
                version: group.version,
            }),
            last: group.last,
        };
        let parts = self.groups.iter().map(part).collect();
        let (revision, compacted) = (self.revision, self.compacted);
        Span { header: self.header(), revision, parts, compacted }
    }

    /// Lets the groups apply what they have, and tells who watches.
    fn advance(&mut self) {
        for (id, group) in &mut self.groups {
            let hubs = self.hubs.iter_mut().filter(|hub| hub.group == *id);
            let before = group.applied;
            if !group.held {
                group.applied = group.last;
            }
            for hub in hubs {
                hub.ranged(&group.range);
                hub.feed(&self.events, before, group.applied);
            }
        }
        let groups = &self.groups;
        let gone = |hub: &&mut Hub| !groups.contains_key(&hub.group);
        self.hubs.iter_mut().filter(gone).for_each(|hub| {
            std::mem::take(&mut hub.watches).into_keys().for_each(|key| {
                let _ = hub.sink.offer(WatchOutput::Closed { key });
            });
        });
    }

    fn body(&mut self, request: Request) -> Result<Reply, GroupError> {
        Ok(match request {
            Request::Range(request) => Reply::Range(self.range(&request)?),
            Request::Put(request) => {
                let response = self.put(&request, self.revision + 1)?;
                self.revision += 1;
                Reply::Put(etcd::PutResponse { header: self.header(), ..response })
            }
            Request::DeleteRange(request) => {
                let response = self.delete(&request, self.revision + 1);
                self.revision += i64::from(response.deleted > 0);
                Reply::DeleteRange(etcd::DeleteRangeResponse { header: self.header(), ..response })
            }
            Request::Txn(request) => Reply::Txn(self.txn(&request)?),
            Request::Compact(request) => {
                if request.revision > self.revision {
                    return Err(GroupError::refused(Error::FutureRevision));
                }
                self.compacted = request.revision;
                Reply::Compact(etcd::CompactionResponse { header: self.header() })
            }
            Request::LeaseGrant(request) => {
                self.leases.insert(request.id, request.ttl);
                let (id, ttl) = (request.id, request.ttl);
                Reply::LeaseGrant(etcd::LeaseGrantResponse {
                    header: self.header(),
                    id,
                    ttl,
                    error: String::new(),
                })
            }
            Request::LeaseLeases(_) => {
                let leases = self.leases.keys().map(|id| etcd::LeaseStatus { id: *id }).collect();
                Reply::LeaseLeases(etcd::LeaseLeasesResponse { header: self.header(), leases })
            }
            Request::LeaseRevoke(request) => {
                if self.leases.remove(&request.id).is_none() {
                    return Err(GroupError::refused(Error::LeaseNotFound));
                }
                Reply::LeaseRevoke(etcd::LeaseRevokeResponse { header: self.header() })
            }
            Request::LeaseKeepAlive(request) => match self.leases.get(&request.id) {
                Some(ttl) => Reply::LeaseKeepAlive(etcd::LeaseKeepAliveResponse {
                    header: self.header(),
                    id: request.id,
                    ttl: *ttl,
                }),
                None => return Err(GroupError::refused(Error::LeaseNotFound)),
            },
            Request::Alarm(_) => Reply::Alarm(etcd::AlarmResponse {
                header: self.header(),
                alarms: self.alarms.clone(),
            }),
            Request::HashKv(_) => Reply::HashKv(etcd::HashKvResponse {
                header: self.header(),
                hash: 77,
                compact_revision: self.compacted,
                hash_revision: self.revision,
            }),
            Request::Span(_) => Reply::Span(self.spans.pop().unwrap_or_else(|| self.span())),
            Request::LeaseTimeToLive(ask) => {
                let granted_ttl = self.leases.get(&ask.id).copied();
                let attached = self.state(self.revision).into_values();
                let attached = attached.filter(|kv| ask.keys && kv.lease == ask.id);
                Reply::LeaseTimeToLive(etcd::LeaseTimeToLiveResponse {
                    header: self.header(),
                    id: ask.id,
                    ttl: granted_ttl.unwrap_or(-1),
                    granted_ttl: granted_ttl.unwrap_or(0),
                    keys: attached.map(|kv| kv.key).collect(),
                })
            }
            Request::Linearize(_) => Reply::Linearize(self.header().expect("always there")),
            Request::Describe(_) => Reply::Describe(self.describe()),
            Request::MemberList(_) => {
                let member = etcd::Member { id: MEMBER, name: "fake".into(), ..Default::default() };
                Reply::Members(etcd::MemberListResponse {
                    header: self.header(),
                    members: vec![member],
                })
            }
            Request::MoveLeader(_) => return Err(GroupError::refused(Error::BadLeaderTransferee)),
            other => panic!("the fake does not know {other:?}"),
        })
    }

    fn describe(&self) -> Description {
        Description {
            header: self.header(),
            leader: MEMBER,
            raft_index: 40,
            raft_applied_index: 39,
            raft_committed_index: 40,
            size: 2000,
            size_in_use: 1000,
            alarms: self.alarms.clone(),
            keys: self.state(self.revision).len() as i64,
            ..Default::default()
        }
    }

    fn range(&self, request: &etcd::RangeRequest) -> Result<etcd::RangeResponse, GroupError> {
        if request.revision > self.revision {
            return Err(GroupError::refused(Error::FutureRevision));
        }
        let at = if request.revision > 0 { request.revision } else { self.revision };
        if at < self.compacted {
            return Err(GroupError::refused(Error::Compacted));
        }
        let range = KeyRange::parse(&request.key, &request.range_end);
        let state = self.state(at);
        let mut kvs: Vec<_> = state.into_values().filter(|kv| range.contains(&kv.key)).collect();
        let count = kvs.len() as i64;
        let newest = request.max_create_revision;
        kvs.retain(|kv| newest == 0 || kv.create_revision <= newest);
        if request.sort_target() == SortTarget::Create {
            kvs.sort_by_key(|kv| kv.create_revision);
        }
        if request.sort_order() == SortOrder::Descend {
            kvs.reverse();
        }
        let more = request.limit > 0 && kvs.len() as i64 > request.limit;
        if more {
            kvs.truncate(request.limit as usize);
        }
        if request.count_only {
            kvs.clear();
        }
        Ok(etcd::RangeResponse { header: self.header(), kvs, more, count })
    }

    fn put(
        &mut self,
        request: &etcd::PutRequest,
        at: i64,
    ) -> Result<etcd::PutResponse, GroupError> {
        if request.lease != 0 && !self.leases.contains_key(&request.lease) {
            return Err(GroupError::refused(Error::LeaseNotFound));
        }
        let old = self.state(at).remove(&request.key);
        let kv = KeyValue {
            key: request.key.clone(),
            value: request.value.clone(),
            create_revision: old.as_ref().map_or(at, |old| old.create_revision),
            mod_revision: at,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            lease: request.lease,
        };
        self.events.push(WatchEvent::new(Event { kv: Some(kv), ..Default::default() }, 0));
        Ok(etcd::PutResponse { header: None, prev_kv: old.filter(|_| request.prev_kv) })
    }

    fn delete(&mut self, request: &etcd::DeleteRangeRequest, at: i64) -> etcd::DeleteRangeResponse {
        let range = KeyRange::parse(&request.key, &request.range_end);
        let keys: Vec<_> = self.state(at).into_keys().filter(|key| range.contains(key)).collect();
        for key in &keys {
            let kv = KeyValue { key: key.clone(), mod_revision: at, ..Default::default() };
            let r#type = EventType::Delete as i32;
            self.events.push(WatchEvent::new(Event { r#type, kv: Some(kv), prev_kv: None }, 0));
        }
        etcd::DeleteRangeResponse { deleted: keys.len() as i64, ..Default::default() }
    }

    fn txn(&mut self, request: &etcd::TxnRequest) -> Result<etcd::TxnResponse, GroupError> {
        use etcd::{request_op::Request as Op, response_op::Response as Done};
        let state = self.state(self.revision);
        let succeeded = request.compare.iter().all(|compare| match compare.target_union {
            Some(etcd::compare::TargetUnion::CreateRevision(wanted)) => {
                state.get(&compare.key).map_or(0, |kv| kv.create_revision) == wanted
            }
            _ => panic!("the fake compares create revisions"),
        });
        let (at, before) = (self.revision + 1, self.events.len());
        let ops = if succeeded { &request.success } else { &request.failure };
        let mut responses = Vec::new();
        for op in ops {
            let response = match op.request.as_ref().expect("checked at the door") {
                Op::RequestPut(request) => Done::ResponsePut(self.put(request, at)?),
                Op::RequestDeleteRange(request) => {
                    Done::ResponseDeleteRange(self.delete(request, at))
                }
                Op::RequestRange(request) => {
                    let now = self.revision;
                    self.revision = at;
                    let response = self.range(request);
                    self.revision = now;
                    Done::ResponseRange(response?)
                }
                Op::RequestTxn(_) => panic!("the fake nests nothing"),
            };
            responses.push(etcd::ResponseOp { response: Some(response) });
        }
        self.revision += i64::from(self.events.len() > before);
        Ok(etcd::TxnResponse { header: self.header(), succeeded, responses })
    }
}
