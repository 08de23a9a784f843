//! What etcd's state machine does, written down as plainly as possible.
//!
//! The model is the judge of the shard's machine, so it shares no code with it: one map of
//! live keys, one map of every state a key ever had, the list of changes by revision. It has no
//! size to save and forgets nothing; compaction only moves a mark below which reads are refused.
//!
//! ```text
//!   live      a -> {create 2, mod 5, version 3}
//!   past      a -> { 2: {..}, 4: {..}, 5: {..} }     b -> { 3: {..}, 6: gone }
//!   changes   2: [put a]  3: [put b]  4: [put a]  5: [put a]  6: [delete b]
//! ```
//!
//! Rules that are easy to forget (all etcd's):
//! * the empty store has revision 1; a request that changes something adds exactly one;
//! * a transaction's compares, also the nested ones, look at the state before its first
//!   operation; what would make it fail is looked for on the taken path before anything is done;
//! * inside a transaction a read sees earlier writes, and its header says `revision + 1` from
//!   the first change on; a nested transaction's own header stays empty;
//! * the previous value of an event is the key's state one revision earlier, even if the same
//!   transaction touched the key before (put in one nested transaction, delete in a later one);
//! * among equal sort keys the order is that of the keys. (Go's sort promises no order among
//!   equals; it keeps theirs up to a dozen rows.)
//!
//! Of the alarms only NOSPACE refuses anything. It has no clock: a lease lives until it is revoked, TTLs are told as granted. Requests that
//! are not about the state (members, hashes, descriptions) get an answer that means nothing.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use bytes::Bytes;
use proto::{
    Error,
    etcd::{
        self, AlarmMember, AlarmType, Compare, DeleteRangeRequest, DeleteRangeResponse,
        LeaseGrantRequest, LeaseGrantResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
        alarm_request::AlarmAction,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request as Op,
        response_op::Response as Answer,
    },
    group::{Reply, Request},
    mvccpb::{Event, KeyValue, event::EventType},
};

/// Operations that one list of a transaction may hold.
const OPS_MAX: usize = 128;
/// Largest TTL that is granted, in seconds.
const TTL_MAX_S: i64 = 9_000_000_000;

/// One etcd store and all that ever happened to it.
///
/// Invariants:
/// * `live[k]` is the last state in `past[k]`, and absent if that is "gone";
/// * no key of `changes` is above `revision`.
#[derive(Clone, Debug)]
pub struct Model {
    revision: i64,
    /// Highest compacted revision; -1 before the first compaction.
    compacted: i64,
    live: BTreeMap<Bytes, KeyValue>,
    /// Every state of every key by the revision that made it; `None` is "deleted".
    past: BTreeMap<Bytes, BTreeMap<i64, Option<KeyValue>>>,
    changes: BTreeMap<i64, Vec<Event>>,
    /// Granted TTL by lease id.
    leases: BTreeMap<i64, i64>,
    alarms: BTreeSet<(u64, i32)>,
    ttl_min_s: i64,
}

impl Default for Model {
    fn default() -> Model {
        Model::new()
    }
}

impl Model {
    /// An empty store at revision 1. The shortest TTL it grants is etcd's default, 2 s.
    pub fn new() -> Model {
        Model {
            revision: 1,
            compacted: -1,
            live: BTreeMap::new(),
            past: BTreeMap::new(),
            changes: BTreeMap::new(),
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            ttl_min_s: 2,
        }
    }

    /// Sets the shortest TTL in seconds (etcd: 1.5 election timeouts, rounded up).
    pub fn with_ttl_min(mut self, seconds: i64) -> Model {
        self.ttl_min_s = seconds;
        self
    }

    /// Carries a request out and answers it. A refused request has no effect.
    pub fn apply(&mut self, request: &Request) -> Result<Reply, Error> {
        match request {
            Request::Range(range) => {
                check_range(range)?;
                self.range(range, self.revision).map(Reply::Range)
            }
            Request::Put(put) => self.put_alone(put).map(Reply::Put),
            Request::DeleteRange(delete) => {
                check_delete(delete)?;
                let mut work = Work::begin(self);
                let reply = work.delete_range(delete);
                work.finish();
                Ok(Reply::DeleteRange(reply))
            }
            Request::Txn(txn) => self.txn(txn).map(Reply::Txn),
            Request::Compact(compact) => self.compact(compact.revision),
            Request::LeaseGrant(grant) => self.lease_grant(grant).map(Reply::LeaseGrant),
            Request::LeaseRevoke(revoke) => self.lease_revoke(revoke.id),
            Request::LeaseKeepAlive(keep) => {
                Ok(Reply::LeaseKeepAlive(etcd::LeaseKeepAliveResponse {
                    header: self.header(),
                    id: keep.id,
                    ttl: self.leases.get(&keep.id).copied().unwrap_or(0),
                }))
            }
            Request::LeaseTimeToLive(ask) => Ok(Reply::LeaseTimeToLive(self.time_to_live(ask))),
            Request::LeaseLeases(_) => Ok(Reply::LeaseLeases(etcd::LeaseLeasesResponse {
                header: self.header(),
                leases: self.leases.keys().map(|id| etcd::LeaseStatus { id: *id }).collect(),
            })),
            Request::Alarm(alarm) => Ok(Reply::Alarm(self.alarm(alarm))),
            Request::HashKv(ask) => self.hash_kv(ask.revision),
            Request::Linearize(_) => Ok(Reply::Linearize(header(self.revision))),
            _ => Ok(Reply::Done(header(self.revision))),
        }
    }

    /// What a request would answer and change, without doing it.
    pub fn preview(&mut self, request: &Request) -> Result<(Reply, Vec<Event>), Error> {
        let (revision, compacted) = (self.revision, self.compacted);
        let lists =
            matches!(request, Request::LeaseGrant(_) | Request::LeaseRevoke(_) | Request::Alarm(_))
                .then(|| (self.leases.clone(), self.alarms.clone()));
        let answer = self.apply(request);
        let mut events = Vec::new();
        if self.revision != revision {
            events = self.changes.remove(&self.revision).unwrap_or_default();
            for event in &events {
                let key = &kv(event).key;
                if let Some(states) = self.past.get_mut(key) {
                    states.remove(&self.revision);
                    match states.values().next_back() {
                        Some(Some(state)) => self.live.insert(key.clone(), state.clone()),
                        _ => self.live.remove(key),
                    };
                }
            }
        }
        (self.revision, self.compacted) = (revision, compacted);
        if let Some(lists) = lists {
            (self.leases, self.alarms) = lists;
        }
        answer.map(|reply| (reply, events))
    }

    /// What a watch is told of as the previous value: etcd reads it one revision back
    /// (`before`), and not at all for a key that is created anew.
    fn previous(&self, kind: EventType, state: &KeyValue, before: i64) -> Option<&KeyValue> {
        let created = kind == EventType::Put && state.create_revision > before;
        self.kv_at(&state.key, before).filter(|_| !created)
    }

    /// Takes over a revision as it was committed, whoever asked for it.
    pub fn absorb(&mut self, revision: i64, events: &[Event]) {
        let mut with_previous = Vec::with_capacity(events.len());
        for event in events {
            let state = kv(event);
            let prev_kv = self.previous(event.r#type(), state, revision - 1).cloned();
            with_previous.push(Event { prev_kv, ..event.clone() });
            let put = event.r#type() == EventType::Put;
            let states = self.past.entry(state.key.clone()).or_default();
            states.insert(revision, put.then(|| state.clone()));
            if put {
                self.live.insert(state.key.clone(), state.clone());
            } else {
                self.live.remove(&state.key);
            }
        }
        self.changes.insert(revision, with_previous);
        self.revision = self.revision.max(revision);
    }

    /// Makes a lease exist, as a grant that is known to have happened.
    pub fn grant(&mut self, id: i64, ttl_s: i64) {
        self.leases.entry(id).or_insert(ttl_s);
    }

    /// Takes a lease off the list; its keys are not touched.
    pub fn forget_lease(&mut self, id: i64) {
        self.leases.remove(&id);
    }

    /// Current revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Does the lease exist?
    pub fn has_lease(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Every change by revision, events with the previous value filled in.
    pub fn changes(&self) -> &BTreeMap<i64, Vec<Event>> {
        &self.changes
    }

    /// State of a key at a revision, compacted or not.
    pub fn kv_at(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        self.past.get(key)?.range(..=revision).next_back()?.1.as_ref()
    }

    /// Current state of a key.
    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.live.get(key)
    }

    /// All keys of etcd's `[key, range_end)` at a revision, in order, compacted or not.
    /// `i64::MAX` is the current state, inside a transaction with what it wrote so far.
    pub fn keys_at(&self, key: &Bytes, range_end: &Bytes, revision: i64) -> Vec<&KeyValue> {
        if range_end.is_empty() {
            return self.kv_at(key, revision).into_iter().collect();
        }
        if revision == i64::MAX {
            let live = self.live.range(key.clone()..);
            return live.map(|(_, kv)| kv).take_while(|kv| is_below(&kv.key, range_end)).collect();
        }
        self.past
            .range(key.clone()..)
            .take_while(|(key, _)| is_below(key, range_end))
            .filter_map(|(_, states)| states.range(..=revision).next_back()?.1.as_ref())
            .collect()
    }

    /// Keys that hang on a lease at a revision, in order.
    pub fn attached_at(&self, lease: i64, revision: i64) -> Vec<Bytes> {
        let all = self.keys_at(&Bytes::new(), &Bytes::from_static(&[0]), revision);
        all.into_iter().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect()
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(header(self.revision))
    }

    /// Answers a range; `now` is what the header says (one above while a transaction writes).
    fn range(&self, ask: &RangeRequest, now: i64) -> Result<RangeResponse, Error> {
        if ask.revision > now {
            return Err(Error::FutureRevision);
        }
        if ask.revision > 0 && ask.revision < self.compacted {
            return Err(Error::Compacted);
        }
        let at = if ask.revision <= 0 { i64::MAX } else { ask.revision };
        let all = self.keys_at(&ask.key, &ask.range_end, at);
        let count = i64::try_from(all.len()).unwrap_or(i64::MAX);
        let mut reply = RangeResponse { header: Some(header(now)), count, ..Default::default() };
        if ask.count_only {
            return Ok(reply);
        }
        let within = |value: i64, min: i64, max: i64| {
            (min == 0 || value >= min) && (max == 0 || value <= max)
        };
        let mut kvs: Vec<KeyValue> = all
            .into_iter()
            .filter(|kv| within(kv.mod_revision, ask.min_mod_revision, ask.max_mod_revision))
            .filter(|kv| {
                within(kv.create_revision, ask.min_create_revision, ask.max_create_revision)
            })
            .cloned()
            .collect();
        let target = ask.sort_target();
        let by = |a: &KeyValue, b: &KeyValue| match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        match ask.sort_order() {
            SortOrder::Descend => kvs.sort_by(|a, b| by(b, a)),
            SortOrder::Ascend | SortOrder::None => kvs.sort_by(by),
        }
        let limit = usize::try_from(ask.limit).unwrap_or(0);
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            reply.more = true;
        }
        if ask.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
                // Since 3.7 the answer comes from the index, which knows no leases.
                if target != SortTarget::Value {
                    kv.lease = 0;
                }
            }
        }
        reply.kvs = kvs;
        Ok(reply)
    }

    fn has_alarm(&self, alarm: AlarmType) -> bool {
        self.alarms.iter().any(|(_, kind)| *kind == alarm as i32)
    }

    fn put_alone(&mut self, put: &PutRequest) -> Result<PutResponse, Error> {
        check_put(put)?;
        if self.has_alarm(AlarmType::Nospace) {
            return Err(Error::NoSpace);
        }
        if put.lease != 0 && !self.has_lease(put.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && self.get(&put.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        let mut work = Work::begin(self);
        let reply = work.put(put);
        work.finish();
        Ok(reply)
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, Error> {
        check_txn(txn, OPS_MAX)?;
        Touched::of(&txn.success)?;
        Touched::of(&txn.failure)?;
        if self.has_alarm(AlarmType::Nospace) && has_put(txn) {
            return Err(Error::NoSpace);
        }
        let plan = self.plan(txn);
        self.check_plan(&plan)?;
        let mut work = Work::begin(self);
        let mut reply = work.run(&plan)?;
        reply.header = Some(header(work.now()));
        work.finish();
        Ok(reply)
    }

    /// Decides every compare on the state as it is.
    fn plan<'t>(&self, txn: &'t TxnRequest) -> Plan<'t> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let steps = ops
            .iter()
            .filter_map(|op| {
                Some(match op.request.as_ref()? {
                    Op::RequestRange(range) => Step::Range(range),
                    Op::RequestPut(put) => Step::Put(put),
                    Op::RequestDeleteRange(delete) => Step::DeleteRange(delete),
                    Op::RequestTxn(txn) => Step::Txn(self.plan(txn)),
                })
            })
            .collect();
        Plan { succeeded, steps }
    }

    fn check_plan(&self, plan: &Plan<'_>) -> Result<(), Error> {
        for step in &plan.steps {
            match step {
                Step::Range(range) if range.revision == 0 => {}
                Step::Range(range) if range.revision > self.revision => {
                    return Err(Error::FutureRevision);
                }
                Step::Range(range) if range.revision < self.compacted => {
                    return Err(Error::Compacted);
                }
                Step::Put(put) => {
                    if (put.ignore_value || put.ignore_lease) && self.get(&put.key).is_none() {
                        return Err(Error::KeyNotFound);
                    }
                    if put.lease != 0 && !self.has_lease(put.lease) {
                        return Err(Error::LeaseNotFound);
                    }
                }
                Step::Txn(plan) => self.check_plan(plan)?,
                Step::Range(_) | Step::DeleteRange(_) => {}
            }
        }
        Ok(())
    }

    /// Does every key of the compare's range satisfy it?
    fn holds(&self, compare: &Compare) -> bool {
        let keys = self.keys_at(&compare.key, &compare.range_end, i64::MAX);
        if keys.is_empty() {
            // No value equals, or differs from, the value of a key that is not there.
            return compare.target() != CompareTarget::Value
                && satisfies(compare, &KeyValue::default());
        }
        keys.into_iter().all(|kv| satisfies(compare, kv))
    }

    fn compact(&mut self, revision: i64) -> Result<Reply, Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        Ok(Reply::Compact(etcd::CompactionResponse { header: self.header() }))
    }

    fn lease_grant(&mut self, ask: &LeaseGrantRequest) -> Result<LeaseGrantResponse, Error> {
        if self.has_alarm(AlarmType::Nospace) {
            return Err(Error::NoSpace);
        }
        if ask.ttl > TTL_MAX_S {
            return Err(Error::LeaseTtlTooLarge);
        }
        if ask.id != 0 && self.has_lease(ask.id) {
            return Err(Error::LeaseExists);
        }
        // Whose id 0 is leaves the choice to the server; which one is nobody's business.
        let id = match ask.id {
            0 => (1..).find(|id| !self.has_lease(*id)).unwrap_or(i64::MAX),
            id => id,
        };
        let ttl = ask.ttl.max(self.ttl_min_s);
        self.leases.insert(id, ttl);
        Ok(LeaseGrantResponse { header: self.header(), id, ttl, error: String::new() })
    }

    fn lease_revoke(&mut self, id: i64) -> Result<Reply, Error> {
        if self.leases.remove(&id).is_none() {
            return Err(Error::LeaseNotFound);
        }
        let keys = self.attached_at(id, i64::MAX);
        let mut work = Work::begin(self);
        for key in keys {
            work.delete(&key);
        }
        work.finish();
        Ok(Reply::LeaseRevoke(etcd::LeaseRevokeResponse { header: self.header() }))
    }

    fn time_to_live(&self, ask: &etcd::LeaseTimeToLiveRequest) -> etcd::LeaseTimeToLiveResponse {
        let granted = self.leases.get(&ask.id).copied();
        let keys = match granted {
            Some(_) if ask.keys => self.attached_at(ask.id, i64::MAX),
            _ => Vec::new(),
        };
        etcd::LeaseTimeToLiveResponse {
            header: self.header(),
            id: ask.id,
            ttl: granted.unwrap_or(-1),
            granted_ttl: granted.unwrap_or(0),
            keys,
        }
    }

    fn alarm(&mut self, ask: &etcd::AlarmRequest) -> etcd::AlarmResponse {
        let one = (ask.member_id, ask.alarm);
        let told: Vec<(u64, i32)> = match ask.action() {
            AlarmAction::Get => {
                let all = ask.alarm == AlarmType::None as i32;
                self.alarms.iter().filter(|(_, kind)| all || *kind == ask.alarm).copied().collect()
            }
            AlarmAction::Activate => {
                self.alarms.insert(one);
                vec![one]
            }
            AlarmAction::Deactivate if self.alarms.remove(&one) => vec![one],
            AlarmAction::Deactivate => Vec::new(),
        };
        let alarms =
            told.into_iter().map(|(member_id, alarm)| AlarmMember { member_id, alarm }).collect();
        etcd::AlarmResponse { header: self.header(), alarms }
    }

    /// Refuses as etcd does; the hash itself is always 0.
    fn hash_kv(&self, revision: i64) -> Result<Reply, Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        if revision > 0 && revision < self.compacted {
            return Err(Error::Compacted);
        }
        let hash_revision = if revision <= 0 { self.revision } else { revision };
        Ok(Reply::HashKv(etcd::HashKvResponse {
            header: self.header(),
            hash: 0,
            compact_revision: self.compacted,
            hash_revision,
        }))
    }
}

// === impl Work ===

/// One request's writes: all get revision `begin + 1`, which exists once there is one.
struct Work<'m> {
    model: &'m mut Model,
    begin: i64,
    events: Vec<Event>,
}

impl Work<'_> {
    fn begin(model: &mut Model) -> Work<'_> {
        let begin = model.revision;
        Work { model, begin, events: Vec::new() }
    }

    /// Revision as seen from inside.
    fn now(&self) -> i64 {
        self.begin + i64::from(!self.events.is_empty())
    }

    fn finish(self) {
        if !self.events.is_empty() {
            self.model.revision = self.begin + 1;
            self.model.changes.insert(self.begin + 1, self.events);
        }
    }

    fn run(&mut self, plan: &Plan<'_>) -> Result<TxnResponse, Error> {
        let mut responses = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let answer = match step {
                Step::Range(range) => Answer::ResponseRange(self.model.range(range, self.now())?),
                Step::Put(put) => Answer::ResponsePut(self.put(put)),
                Step::DeleteRange(delete) => Answer::ResponseDeleteRange(self.delete_range(delete)),
                Step::Txn(plan) => Answer::ResponseTxn(self.run(plan)?),
            };
            responses.push(ResponseOp { response: Some(answer) });
        }
        let header = Some(ResponseHeader::default());
        Ok(TxnResponse { header, succeeded: plan.succeeded, responses })
    }

    fn put(&mut self, put: &PutRequest) -> PutResponse {
        let old = self.model.get(&put.key).cloned();
        let keep = |ignore: bool| old.as_ref().filter(|_| ignore);
        let state = KeyValue {
            key: put.key.clone(),
            create_revision: old.as_ref().map_or(self.begin + 1, |old| old.create_revision),
            mod_revision: self.begin + 1,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            value: keep(put.ignore_value).map_or(&put.value, |old| &old.value).clone(),
            lease: keep(put.ignore_lease).map_or(put.lease, |old| old.lease),
        };
        self.write(EventType::Put, state);
        PutResponse { header: Some(header(self.begin + 1)), prev_kv: old.filter(|_| put.prev_kv) }
    }

    fn delete_range(&mut self, ask: &DeleteRangeRequest) -> DeleteRangeResponse {
        let old: Vec<KeyValue> =
            self.model.keys_at(&ask.key, &ask.range_end, i64::MAX).into_iter().cloned().collect();
        for kv in &old {
            self.delete(&kv.key);
        }
        DeleteRangeResponse {
            header: Some(header(self.now())),
            deleted: i64::try_from(old.len()).unwrap_or(i64::MAX),
            prev_kvs: if ask.prev_kv { old } else { Vec::new() },
        }
    }

    fn delete(&mut self, key: &Bytes) {
        let mod_revision = self.begin + 1;
        let gone = KeyValue { key: key.clone(), mod_revision, ..Default::default() };
        self.write(EventType::Delete, gone);
    }

    fn write(&mut self, kind: EventType, state: KeyValue) {
        let model = &mut *self.model;
        let put = kind == EventType::Put;
        let prev_kv = model.previous(kind, &state, self.begin).cloned();
        let states = model.past.entry(state.key.clone()).or_default();
        states.insert(self.begin + 1, put.then(|| state.clone()));
        if put {
            model.live.insert(state.key.clone(), state.clone());
        } else {
            model.live.remove(&state.key);
        }
        self.events.push(Event { r#type: kind as i32, kv: Some(state), prev_kv });
    }
}

/// A transaction whose compares are decided.
struct Plan<'t> {
    succeeded: bool,
    steps: Vec<Step<'t>>,
}

enum Step<'t> {
    Range(&'t RangeRequest),
    Put(&'t PutRequest),
    DeleteRange(&'t DeleteRangeRequest),
    Txn(Plan<'t>),
}

// === impl Touched ===

/// Keys that a list of operations may put, and ranges it may delete.
#[derive(Default)]
struct Touched {
    puts: BTreeSet<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

impl Touched {
    /// Refuses what puts a key twice or puts and deletes it. The deletes of a nested
    /// transaction count for what stands after it only, as in etcd.
    fn of(ops: &[RequestOp]) -> Result<Touched, Error> {
        let mut touched = Touched::default();
        for op in ops {
            if let Some(Op::RequestDeleteRange(delete)) = &op.request {
                touched.deletes.push((delete.key.clone(), delete.range_end.clone()));
            }
        }
        for op in ops {
            let Some(Op::RequestTxn(txn)) = &op.request else { continue };
            let success = Touched::of(&txn.success)?;
            let failure = Touched::of(&txn.failure)?;
            // Only one of the two branches will run: they may put the same key.
            let either: BTreeSet<&Bytes> = success.puts.union(&failure.puts).collect();
            for key in either {
                touched.put(key)?;
            }
            touched.deletes.extend(success.deletes);
            touched.deletes.extend(failure.deletes);
        }
        for op in ops {
            if let Some(Op::RequestPut(put)) = &op.request {
                touched.put(&put.key)?;
            }
        }
        Ok(touched)
    }

    fn put(&mut self, key: &Bytes) -> Result<(), Error> {
        // etcd looks at a "\0" that means "to the end" as at any key here: it covers nothing.
        let real = self.deletes.iter().filter(|(_, end)| end.as_ref() != [0]);
        let deleted = real.into_iter().any(|(start, end)| covers(start, end, key));
        if deleted || !self.puts.insert(key.clone()) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}

/// A header that tells a revision and nothing else.
pub(crate) fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { revision, ..Default::default() }
}

/// The key-value of an event; every event has one.
pub(crate) fn kv(event: &Event) -> &KeyValue {
    event.kv.as_ref().expect("an event names its key")
}

/// Is `key` inside etcd's `[start, range_end)`?
pub(crate) fn covers(start: &[u8], range_end: &[u8], key: &[u8]) -> bool {
    if range_end.is_empty() { key == start } else { key >= start && is_below(key, range_end) }
}

fn is_below(key: &[u8], range_end: &[u8]) -> bool {
    range_end == [0] || key < range_end
}

fn check_range(range: &RangeRequest) -> Result<(), Error> {
    if range.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let order = SortOrder::try_from(range.sort_order).is_ok();
    if !order || SortTarget::try_from(range.sort_target).is_err() {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

fn check_put(put: &PutRequest) -> Result<(), Error> {
    if put.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

fn check_delete(delete: &DeleteRangeRequest) -> Result<(), Error> {
    if delete.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

fn check_txn(txn: &TxnRequest, ops_max: usize) -> Result<(), Error> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if ops > ops_max {
        return Err(Error::TooManyOps);
    }
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Op::RequestRange(range)) => check_range(range)?,
            Some(Op::RequestPut(put)) => check_put(put)?,
            Some(Op::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(Op::RequestTxn(txn)) => check_txn(txn, ops_max - ops)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

fn has_put(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(Op::RequestPut(_)) => true,
        Some(Op::RequestTxn(txn)) => has_put(txn),
        _ => false,
    })
}

/// Compares one key's state with what the compare holds against it; a missing or foreign
/// union counts as 0 or empty.
fn satisfies(compare: &Compare, kv: &KeyValue) -> bool {
    let union = compare.target_union.as_ref();
    let number = |pick: fn(&TargetUnion) -> Option<i64>| union.and_then(pick).unwrap_or(0);
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => {
            let value: &[u8] = match union {
                Some(TargetUnion::Value(value)) => value,
                _ => &[],
            };
            kv.value.as_ref().cmp(value)
        }
        Ok(CompareTarget::Version) => kv.version.cmp(&number(|union| match union {
            TargetUnion::Version(version) => Some(*version),
            _ => None,
        })),
        Ok(CompareTarget::Create) => kv.create_revision.cmp(&number(|union| match union {
            TargetUnion::CreateRevision(revision) => Some(*revision),
            _ => None,
        })),
        Ok(CompareTarget::Mod) => kv.mod_revision.cmp(&number(|union| match union {
            TargetUnion::ModRevision(revision) => Some(*revision),
            _ => None,
        })),
        Ok(CompareTarget::Lease) => kv.lease.cmp(&number(|union| match union {
            TargetUnion::Lease(lease) => Some(*lease),
            _ => None,
        })),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::scribe::{
            bytes, compact, compare, delete, delete_request, get, grant, keep_alive, leased, op,
            put, put_request, range, range_request, revoke, time_to_live,
        },
        *,
    };

    fn kvs(model: &mut Model, ask: RangeRequest) -> Vec<String> {
        let Ok(Reply::Range(reply)) = model.apply(&Request::Range(ask)) else {
            panic!("it is readable")
        };
        let words = |kv: &KeyValue| {
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            let (create, modified, version) = (kv.create_revision, kv.mod_revision, kv.version);
            format!("{}={}/{create}/{modified}/{version}", text(&kv.key), text(&kv.value))
        };
        reply.kvs.iter().map(words).collect()
    }

    fn revision(reply: &Reply) -> i64 {
        super::super::reply::reply_header(reply).expect("it has a header").revision
    }

    /// a=3 (created at 2, changed at 4), b=2 (3), c=1 (5).
    fn filled() -> Model {
        let mut model = Model::new();
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "1")] {
            model.apply(&put(key, value)).expect("a put");
        }
        model
    }

    fn run(model: &mut Model, compare: Vec<Compare>, then: Vec<Op>) -> Result<TxnResponse, Error> {
        let success = then.into_iter().map(op).collect();
        let txn = TxnRequest { compare, success, failure: Vec::new() };
        match model.apply(&Request::Txn(txn))? {
            Reply::Txn(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn nested(success: Vec<Op>, failure: Vec<Op>) -> Op {
        let ops = |list: Vec<Op>| list.into_iter().map(op).collect();
        Op::RequestTxn(TxnRequest {
            compare: Vec::new(),
            success: ops(success),
            failure: ops(failure),
        })
    }

    fn put_op(key: &str, value: &str) -> Op {
        Op::RequestPut(put_request(key, value))
    }

    #[test]
    fn revisions_count_changes_only() {
        let mut model = Model::new();
        assert_eq!(revision(&model.apply(&get("a")).expect("a read")), 1);
        assert_eq!(revision(&model.apply(&put("a", "1")).expect("a put")), 2);
        assert_eq!(revision(&model.apply(&delete("x", "")).expect("a no-op")), 2);
        assert_eq!(revision(&model.apply(&delete("a", "")).expect("a delete")), 3);
        assert_eq!(run(&mut model, vec![], vec![]).expect("empty").header, Some(header(3)));
    }

    #[test]
    fn a_key_is_born_again_after_a_delete() {
        let mut model = filled();
        let all = range_request("a", "z");
        assert_eq!(kvs(&mut model, all.clone()), ["a=3/2/4/2", "b=2/3/3/1", "c=1/5/5/1"]);
        model.apply(&delete("a", "")).expect("a delete");
        model.apply(&put("a", "4")).expect("a put");
        assert_eq!(kvs(&mut model, range_request("a", "")), ["a=4/7/7/1"]);
        let old = RangeRequest { revision: 3, ..all };
        assert_eq!(kvs(&mut model, old), ["a=1/2/2/1", "b=2/3/3/1"]);
    }

    #[test]
    fn ranges_take_every_option() {
        let mut model = filled();
        let all = RangeRequest { range_end: bytes("\0"), ..range_request("a", "") };
        assert_eq!(kvs(&mut model, all.clone()).len(), 3);
        assert!(kvs(&mut model, range_request("b", "a")).is_empty());
        let cases = [
            (RangeRequest { sort_order: SortOrder::Descend as i32, ..all.clone() }, "cba"),
            (RangeRequest { sort_target: SortTarget::Mod as i32, ..all.clone() }, "bac"),
            (RangeRequest { sort_target: SortTarget::Value as i32, ..all.clone() }, "cba"),
            (RangeRequest { sort_target: SortTarget::Version as i32, ..all.clone() }, "bca"),
            (
                RangeRequest {
                    sort_target: SortTarget::Create as i32,
                    sort_order: SortOrder::Descend as i32,
                    ..all.clone()
                },
                "cba",
            ),
            (RangeRequest { min_mod_revision: 4, ..all.clone() }, "ac"),
            (RangeRequest { max_create_revision: 3, ..all.clone() }, "ab"),
            (RangeRequest { limit: 2, ..all.clone() }, "ab"),
        ];
        for (ask, keys) in cases {
            let found = kvs(&mut model, ask.clone());
            let found: String = found.iter().filter_map(|kv| kv.chars().next()).collect();
            assert_eq!(found, keys, "{ask:?}");
        }
        let reply = |model: &mut Model, ask| match model.apply(&Request::Range(ask)) {
            Ok(Reply::Range(reply)) => (reply.kvs.len(), reply.count, reply.more),
            other => panic!("{other:?}"),
        };
        let limited = RangeRequest { limit: 2, ..all.clone() };
        assert_eq!(reply(&mut model, limited.clone()), (2, 3, true));
        let filtered = RangeRequest { min_mod_revision: 4, ..limited.clone() };
        assert_eq!(reply(&mut model, filtered), (2, 3, false));
        let counted = RangeRequest { count_only: true, ..limited };
        assert_eq!(reply(&mut model, counted), (0, 3, false));
        let keys = RangeRequest { keys_only: true, ..range_request("b", "") };
        assert_eq!(kvs(&mut model, keys), ["b=/3/3/1"]);
        let bad = RangeRequest { sort_order: 9, ..all };
        assert_eq!(model.apply(&Request::Range(bad)), Err(Error::InvalidSortOption));
        assert_eq!(model.apply(&get("")), Err(Error::EmptyKey));
    }

    #[test]
    fn compaction_hides_what_is_older() {
        let mut model = filled();
        let at = |revision| Request::Range(RangeRequest { revision, ..range_request("a", "") });
        assert_eq!(model.apply(&at(6)), Err(Error::FutureRevision));
        assert_eq!(model.apply(&compact(6)), Err(Error::FutureRevision));
        assert!(model.apply(&compact(0)).is_ok());
        assert!(model.apply(&compact(3)).is_ok());
        assert_eq!(model.apply(&compact(3)), Err(Error::Compacted));
        assert_eq!(model.apply(&at(2)), Err(Error::Compacted));
        assert!(model.apply(&at(3)).is_ok());
        assert_eq!(model.kv_at(b"a", 2).map(|kv| kv.version), Some(1));
        let in_txn = |model: &mut Model, revision| {
            let ask = RangeRequest { revision, ..range_request("a", "") };
            run(model, vec![], vec![put_op("x", "1"), Op::RequestRange(ask)])
        };
        assert_eq!(in_txn(&mut model, 2), Err(Error::Compacted));
        assert_eq!(in_txn(&mut model, 6), Err(Error::FutureRevision));
        assert_eq!(model.revision(), 5);
        assert!(in_txn(&mut model, 5).is_ok());
    }

    #[test]
    fn puts_keep_what_they_are_told_to() {
        let mut model = Model::new();
        model.apply(&grant(7, 10)).expect("a grant");
        model.apply(&leased("a", "1", 7)).expect("a put");
        let with = |change: fn(&mut PutRequest)| {
            let mut put = put_request("a", "");
            change(&mut put);
            Request::Put(put)
        };
        let keep_value = with(|put| put.ignore_value = true);
        let keep_lease = with(|put| {
            put.ignore_lease = true;
            put.value = bytes("2");
            put.prev_kv = true;
        });
        let Ok(Reply::Put(reply)) = model.apply(&keep_lease) else { panic!("it is there") };
        assert_eq!(reply.prev_kv.map(|kv| (kv.value, kv.lease)), Some((bytes("1"), 7)));
        assert_eq!(model.get(b"a").map(|kv| (kv.lease, kv.version)), Some((7, 2)));
        assert!(model.apply(&keep_value).is_ok());
        assert_eq!(model.get(b"a").map(|kv| (kv.value.clone(), kv.lease)), Some((bytes("2"), 0)));
        assert!(model.attached_at(7, i64::MAX).is_empty());
        assert_eq!(model.attached_at(7, 3), [bytes("a")]);

        model.apply(&delete("a", "")).expect("a delete");
        assert_eq!(model.apply(&keep_value), Err(Error::KeyNotFound));
        let both = with(|put| (put.ignore_value, put.value) = (true, bytes("1")));
        assert_eq!(model.apply(&both), Err(Error::ValueProvided));
        let both = with(|put| (put.ignore_lease, put.lease) = (true, 7));
        assert_eq!(model.apply(&both), Err(Error::LeaseProvided));
        assert_eq!(model.apply(&leased("a", "1", 8)), Err(Error::LeaseNotFound));
        assert_eq!(model.apply(&put("", "1")), Err(Error::EmptyKey));
    }

    #[test]
    fn leases_take_their_keys_along_in_one_revision() {
        let mut model = Model::new();
        let Ok(Reply::LeaseGrant(reply)) = model.apply(&grant(7, 0)) else { panic!("a grant") };
        assert_eq!((reply.id, reply.ttl, reply.header), (7, 2, Some(header(1))));
        assert_eq!(model.apply(&grant(7, 10)), Err(Error::LeaseExists));
        assert_eq!(model.apply(&grant(8, TTL_MAX_S + 1)), Err(Error::LeaseTtlTooLarge));
        let Ok(Reply::LeaseGrant(chosen)) = model.apply(&grant(0, 5)) else { panic!("a grant") };
        assert!(chosen.id > 0 && chosen.id != 7);
        for key in ["b", "a", "c"] {
            model.apply(&leased(key, "1", 7)).expect("a put");
        }
        model.apply(&put("c", "free")).expect("a put");
        let Ok(Reply::LeaseTimeToLive(ttl)) = model.apply(&time_to_live(7)) else { panic!() };
        assert_eq!((ttl.ttl, ttl.granted_ttl, ttl.keys), (2, 2, vec![bytes("a"), bytes("b")]));
        assert_eq!(revision(&model.apply(&revoke(7)).expect("a revoke")), 6);
        let keys: Vec<&Bytes> = model.changes()[&6].iter().map(|event| &kv(event).key).collect();
        assert_eq!(keys, ["a", "b"]);
        assert_eq!(model.apply(&revoke(7)), Err(Error::LeaseNotFound));
        assert_eq!(revision(&model.apply(&revoke(chosen.id)).expect("a revoke")), 6);
        let Ok(Reply::LeaseKeepAlive(gone)) = model.apply(&keep_alive(7)) else { panic!() };
        assert_eq!((gone.id, gone.ttl), (7, 0));
        let Ok(Reply::LeaseTimeToLive(gone)) = model.apply(&time_to_live(7)) else { panic!() };
        assert_eq!((gone.id, gone.ttl, gone.granted_ttl), (7, -1, 0));
    }

    #[test]
    fn compares_judge_missing_keys_and_ranges() {
        use CompareResult::{Equal, Greater, Less, NotEqual};
        use CompareTarget::{Create, Lease, Mod, Value, Version};
        let mut model = filled();
        let cases = [
            (compare("a", Equal, Value, TargetUnion::Value(bytes("3"))), true),
            (compare("a", Greater, Value, TargetUnion::Value(bytes("30"))), false),
            (compare("a", Less, Value, TargetUnion::Value(bytes("30"))), true),
            (compare("a", Equal, Version, TargetUnion::Version(2)), true),
            (compare("a", Equal, Create, TargetUnion::CreateRevision(2)), true),
            (compare("a", Less, Mod, TargetUnion::ModRevision(4)), false),
            (compare("a", NotEqual, Lease, TargetUnion::Lease(0)), false),
            (compare("x", Equal, Create, TargetUnion::CreateRevision(0)), true),
            (compare("x", Greater, Create, TargetUnion::CreateRevision(0)), false),
            (compare("x", Equal, Value, TargetUnion::Value(bytes(""))), false),
            (compare("x", NotEqual, Value, TargetUnion::Value(bytes("1"))), false),
            // A foreign union counts as zero.
            (compare("a", Greater, Version, TargetUnion::Lease(9)), true),
        ];
        for (compare, holds) in cases {
            let reply = run(&mut model, vec![compare.clone()], vec![]).expect("a txn");
            assert_eq!(reply.succeeded, holds, "{compare:?}");
        }
        let over = |start: &str, end: &str, number| Compare {
            range_end: bytes(end),
            ..compare(start, Greater, Mod, TargetUnion::ModRevision(number))
        };
        for (compare, holds) in [
            (over("a", "z", 2), true),
            (over("a", "z", 3), false),
            (over("x", "z", 0), false),
            (over("x", "z", -1), true),
            (over("a", "\0", 2), true),
        ] {
            let reply = run(&mut model, vec![compare.clone()], vec![]).expect("a txn");
            assert_eq!(reply.succeeded, holds, "{compare:?}");
        }
        assert_eq!(model.revision(), 5);
    }

    #[test]
    fn a_transaction_sees_its_own_writes_and_has_one_revision() {
        let mut model = filled();
        let read = || Op::RequestRange(range_request("a", "z"));
        let steps = vec![read(), put_op("x", "9"), read(), nested(vec![read()], vec![])];
        let steps = [steps, vec![Op::RequestDeleteRange(delete_request("b", "d"))]].concat();
        let reply = run(&mut model, vec![], steps).expect("a txn");
        assert_eq!(reply.header, Some(header(6)));
        let told: Vec<(Option<ResponseHeader>, i64)> = reply
            .responses
            .iter()
            .map(|answer| match answer.response.clone().expect("an answer") {
                Answer::ResponseRange(range) => (range.header, range.count),
                Answer::ResponsePut(put) => (put.header, -1),
                Answer::ResponseDeleteRange(delete) => (delete.header, delete.deleted),
                Answer::ResponseTxn(txn) => (txn.header, -2),
            })
            .collect();
        assert_eq!(
            told,
            [
                (Some(header(5)), 3),
                (Some(header(6)), -1),
                (Some(header(6)), 4),
                (Some(ResponseHeader::default()), -2),
                (Some(header(6)), 2),
            ]
        );
        assert_eq!(model.changes()[&6].len(), 3);
        assert_eq!(kvs(&mut model, range_request("a", "z")), ["a=3/2/4/2", "x=9/6/6/1"]);
    }

    #[test]
    fn nested_compares_look_at_the_state_before() {
        let mut model = filled();
        let absent = compare(
            "x",
            CompareResult::Equal,
            CompareTarget::Create,
            TargetUnion::CreateRevision(0),
        );
        let inner = TxnRequest {
            compare: vec![absent],
            success: vec![op(put_op("y", "was absent"))],
            failure: vec![],
        };
        run(&mut model, vec![], vec![put_op("x", "1"), Op::RequestTxn(inner)]).expect("a txn");
        assert!(model.get(b"y").is_some());
    }

    #[test]
    fn a_transaction_is_refused_before_it_does_anything() {
        let mut model = filled();
        let keep = PutRequest { ignore_value: true, ..put_request("none", "") };
        let lease = PutRequest { lease: 9, ..put_request("b", "1") };
        for (step, error) in [(keep, Error::KeyNotFound), (lease, Error::LeaseNotFound)] {
            let steps = vec![put_op("x", "1"), nested(vec![Op::RequestPut(step)], vec![])];
            assert_eq!(run(&mut model, vec![], steps), Err(error));
        }
        assert!(model.revision() == 5 && model.get(b"x").is_none());
        let many = (0..129).map(|n| put_op(&format!("k{n}"), "1")).collect();
        assert_eq!(run(&mut model, vec![], many), Err(Error::TooManyOps));
        let deep = nested((0..127).map(|n| put_op(&format!("k{n}"), "1")).collect(), vec![]);
        assert!(run(&mut model, vec![], vec![deep.clone()]).is_ok());
        assert_eq!(run(&mut model, vec![], vec![deep, put_op("x", "1")]), Err(Error::TooManyOps));
        let empty = TxnRequest { success: vec![RequestOp { request: None }], ..Default::default() };
        assert_eq!(model.apply(&Request::Txn(empty)), Err(Error::KeyNotFound));
    }

    #[test]
    fn duplicate_keys_are_refused_as_etcd_does() {
        let refused = Err(Error::DuplicateKey);
        let gone = |key: &str, end: &str| Op::RequestDeleteRange(delete_request(key, end));
        let mut model = filled();
        let mut check = |steps: Vec<Op>, ok: bool| {
            let reply = run(&mut model, vec![], steps.clone()).map(|_| ());
            assert_eq!(reply, if ok { Ok(()) } else { refused }, "{steps:?}");
        };
        check(vec![put_op("a", "1"), put_op("a", "2")], false);
        check(vec![put_op("a", "1"), gone("a", "")], false);
        check(vec![gone("0", "b"), put_op("a", "1")], false);
        // To etcd's check an end of "\0" is a key like any other, below all these.
        check(vec![gone("a", "\0"), put_op("q", "1")], true);
        check(vec![gone("a", ""), gone("a", "z")], true);
        check(vec![put_op("a", "1"), nested(vec![put_op("a", "2")], vec![])], false);
        check(vec![nested(vec![put_op("a", "1")], vec![put_op("a", "2")])], true);
        let one = || nested(vec![put_op("a", "1")], vec![]);
        check(vec![one(), one()], false);
        check(vec![nested(vec![gone("a", "")], vec![]), one()], false);
        check(vec![one(), nested(vec![gone("a", "")], vec![])], true);
    }

    #[test]
    fn a_key_put_and_deleted_in_one_revision_has_two_events() {
        let mut model = filled();
        let gone = Op::RequestDeleteRange(delete_request("a", ""));
        let steps = vec![nested(vec![put_op("a", "1")], vec![]), nested(vec![gone], vec![])];
        run(&mut model, vec![], steps).expect("a txn");
        let events = &model.changes()[&6];
        assert_eq!(events.len(), 2);
        for event in events {
            assert_eq!(event.prev_kv.as_ref().map(|kv| kv.mod_revision), Some(4));
        }
        assert!(model.get(b"a").is_none() && model.kv_at(b"a", 6).is_none());
    }

    #[test]
    fn a_full_store_refuses_what_adds() {
        let mut model = filled();
        let alarm = |action: AlarmAction| {
            Request::Alarm(etcd::AlarmRequest {
                action: action as i32,
                member_id: 3,
                alarm: AlarmType::Nospace as i32,
            })
        };
        let told = |reply: Result<Reply, Error>| match reply {
            Ok(Reply::Alarm(reply)) => reply.alarms.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(told(model.apply(&alarm(AlarmAction::Activate))), 1);
        assert_eq!(told(model.apply(&alarm(AlarmAction::Get))), 1);
        assert_eq!(model.apply(&put("a", "1")), Err(Error::NoSpace));
        assert_eq!(model.apply(&grant(1, 5)), Err(Error::NoSpace));
        assert_eq!(run(&mut model, vec![], vec![put_op("a", "1")]), Err(Error::NoSpace));
        let gone = Op::RequestDeleteRange(delete_request("a", ""));
        assert!(run(&mut model, vec![], vec![gone]).is_ok());
        assert!(model.apply(&range("a", "z")).is_ok());
        assert_eq!(told(model.apply(&alarm(AlarmAction::Deactivate))), 1);
        assert_eq!(told(model.apply(&alarm(AlarmAction::Deactivate))), 0);
        assert!(model.apply(&put("a", "1")).is_ok());
    }

    #[test]
    fn a_preview_leaves_no_trace() {
        let mut model = filled();
        model.apply(&grant(1, 5)).expect("a grant");
        model.apply(&leased("d", "1", 1)).expect("a put");
        let before = format!("{model:?}");
        for request in [put("a", "9"), delete("a", "z"), revoke(1), grant(2, 5), compact(3)] {
            let (reply, events) = model.preview(&request).expect("it is legal");
            assert_eq!(format!("{model:?}"), before, "{request:?}");
            let mut other = model.clone();
            assert_eq!(other.apply(&request), Ok(reply));
            assert_eq!(other.changes().get(&7).cloned().unwrap_or_default(), events);
            other.absorb(7, &events);
        }
    }

    #[test]
    fn absorbing_is_as_good_as_applying() {
        let applied = filled();
        let mut absorbed = Model::new();
        for (revision, events) in applied.changes() {
            let bare: Vec<Event> =
                events.iter().map(|event| Event { prev_kv: None, ..event.clone() }).collect();
            absorbed.absorb(*revision, &bare);
        }
        assert_eq!(format!("{absorbed:?}"), format!("{applied:?}"));
    }
}
