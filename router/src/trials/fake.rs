//! Groups in memory: enough of etcd's machine to answer what handlers ask.
//!
//! Each group is there from the first time that it is asked. It keeps every event ever made and
//! finds any state by replaying them: slow and plain. No elections, no quotas, no auth. Tests
//! reach in to take the leader away, to close hubs, to set the version of a group's range, and
//! to see what was asked of whom.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{
    Error, GroupId, KeyRange,
    cluster::group::{Description, GroupRequest},
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
    /// Other versions of the range are refused; any is taken if it is 0.
    range_version: u64,
}

struct Hub {
    number: u64,
    sink: Arc<dyn WatchSink>,
    watches: BTreeMap<u64, WatchSpec>,
}

/// All groups.
#[derive(Default)]
pub(super) struct Fake {
    stores: Mutex<BTreeMap<GroupId, Arc<Mutex<Store>>>>,
    asked: Mutex<Vec<GroupRequest>>,
    refusals: Mutex<Vec<GroupError>>,
    watched: Arc<Mutex<Vec<WatchSpec>>>,
    leaderless: AtomicBool,
}

// === impl Fake ===

impl Fake {
    pub(super) fn new() -> Arc<Fake> {
        Arc::default()
    }

    fn store(&self, group: GroupId) -> Arc<Mutex<Store>> {
        let new = || Arc::new(Mutex::new(Store { revision: 1, ..Default::default() }));
        self.stores.lock().entry(group).or_insert_with(new).clone()
    }

    /// From now on the group refuses every other version of its range.
    pub(super) fn set_range_version(&self, group: u64, version: u64) {
        self.store(GroupId(group)).lock().range_version = version;
    }

    /// Gives group `to` all that `from` has; `from` stays as it is.
    pub(super) fn copy(&self, from: u64, to: u64) {
        let (from, to) = (self.store(GroupId(from)), self.store(GroupId(to)));
        let (from, mut to) = (from.lock(), to.lock());
        (to.revision, to.events, to.leases) =
            (from.revision, from.events.clone(), from.leases.clone());
    }

    pub(super) fn lose_leader(&self) {
        self.leaderless.store(true, Ordering::Relaxed);
    }

    /// Answers the next requests with these refusals, the last first.
    pub(super) fn refuse(&self, error: GroupError) {
        self.refusals.lock().push(error);
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
        self.stores.lock().values().cloned().collect()
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
        let outcome = match self.refusals.lock().pop() {
            Some(refusal) => Err(refusal),
            None => self.store(GroupId(request.group)).lock().answer(request),
        };
        Box::pin(async move { outcome })
    }

    fn watch(&self, group: GroupId, sink: Arc<dyn WatchSink>) -> Box<dyn WatchControl> {
        static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let store = self.store(group);
        store.lock().hubs.push(Hub { number, sink, watches: BTreeMap::new() });
        Box::new(Control { number, group, store, watched: self.watched.clone() })
    }

    fn revision(&self, group: GroupId) -> i64 {
        self.store(group).lock().revision
    }

    fn identity(&self) -> Identity {
        Identity { cluster_id: CLUSTER, member_id: MEMBER }
    }

    fn leaderless(&self, _group: GroupId) -> bool {
        self.leaderless.load(Ordering::Relaxed)
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
    fn with(&self, act: impl FnOnce(&mut Hub, &Arc<Vec<Arc<WatchEvent>>>, i64, i64)) {
        let mut store = self.store.lock();
        let (revision, compacted) = (store.revision, store.compacted);
        let events = Arc::new(store.events.clone());
        if let Some(hub) = store.hubs.iter_mut().find(|hub| hub.number == self.number) {
            act(hub, &events, revision, compacted);
        }
    }
}

impl WatchControl for Control {
    fn create(&self, spec: WatchSpec) {
        assert_eq!(spec.group, self.group, "a watch is made at the hub of its group");
        self.watched.lock().push(spec.clone());
        self.with(|hub, history, revision, compacted| {
            if spec.start_revision < compacted {
                let output = WatchOutput::Compacted { key: spec.key, revision: compacted };
                let _ = hub.sink.offer(output);
                return;
            }
            let events = visible(&spec, history);
            if !events.is_empty() {
                let _ = hub.sink.offer(WatchOutput::Events { key: spec.key, revision, events });
            }
            hub.watches.insert(spec.key, spec);
        });
    }

    fn cancel(&self, key: u64) {
        self.with(|hub, _, _, _| {
            hub.watches.remove(&key);
        });
    }

    fn progress(&self) {
        self.with(|hub, _, revision, _| {
            let newest = hub.watches.keys().max().copied().unwrap_or_default();
            let _ = hub.sink.offer(WatchOutput::Progress { revision, newest });
        });
    }

    fn watch_progress(&self, key: u64) {
        self.with(|hub, _, revision, _| {
            let _ = hub.sink.offer(WatchOutput::WatchProgress { key, revision });
        });
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.store.lock().hubs.retain(|hub| hub.number != self.number);
    }
}

fn visible(spec: &WatchSpec, events: &[Arc<WatchEvent>]) -> Vec<Arc<WatchEvent>> {
    let wanted = |event: &&Arc<WatchEvent>| {
        let kv = event.kv.as_ref().expect("events have keys");
        let filtered = match event.r#type() {
            EventType::Put => spec.no_put,
            EventType::Delete => spec.no_delete,
        };
        kv.mod_revision >= spec.start_revision && spec.range.contains(&kv.key) && !filtered
    };
    events.iter().filter(wanted).cloned().collect()
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

    fn answer(&mut self, request: GroupRequest) -> Result<Reply, GroupError> {
        if self.range_version != 0 && request.range_version != self.range_version {
            return Err(GroupError::not_done(Error::StaleRange, None));
        }
        let before = self.events.len();
        let reply = self.body(request.body.expect("requests have bodies"))?;
        let fresh = self.events[before..].to_vec();
        if !fresh.is_empty() {
            self.publish(&fresh);
        }
        Ok(reply)
    }

    fn publish(&mut self, fresh: &[Arc<WatchEvent>]) {
        let revision = self.revision;
        for hub in &self.hubs {
            for (key, spec) in &hub.watches {
                let events = visible(spec, fresh);
                if !events.is_empty() {
                    let output = WatchOutput::Events { key: *key, revision, events };
                    assert!(hub.sink.offer(output).is_ok(), "tests do not fill sinks");
                }
            }
        }
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
        self.events.push(WatchEvent::new(Event { kv: Some(kv), ..Default::default() }));
        Ok(etcd::PutResponse { header: None, prev_kv: old.filter(|_| request.prev_kv) })
    }

    fn delete(&mut self, request: &etcd::DeleteRangeRequest, at: i64) -> etcd::DeleteRangeResponse {
        let range = KeyRange::parse(&request.key, &request.range_end);
        let keys: Vec<_> = self.state(at).into_keys().filter(|key| range.contains(key)).collect();
        for key in &keys {
            let kv = KeyValue { key: key.clone(), mod_revision: at, ..Default::default() };
            let r#type = EventType::Delete as i32;
            self.events.push(WatchEvent::new(Event { r#type, kv: Some(kv), prev_kv: None }));
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
