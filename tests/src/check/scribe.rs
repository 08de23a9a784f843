//! Writes histories for the checkers' own tests: right ones, by way of the model. The tests
//! then make them wrong.

use bytes::Bytes;
use proto::{
    Error,
    etcd::{
        self, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
        LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request as Op,
    },
    group::{Reply, Request},
    mvccpb::Event,
};

use super::{
    history::{Heard, History, OpId, Outcome, Time, WatchId, WatchSpec},
    model::Model,
    sightings::Sightings,
    words::text,
};

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

pub(super) fn put(key: &str, value: &str) -> Request {
    Request::Put(put_request(key, value))
}

pub(super) fn leased(key: &str, value: &str, lease: i64) -> Request {
    Request::Put(PutRequest { lease, ..put_request(key, value) })
}

pub(super) fn range_request(key: &str, end: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}

pub(super) fn get(key: &str) -> Request {
    Request::Range(range_request(key, ""))
}

pub(super) fn range(key: &str, end: &str) -> Request {
    Request::Range(range_request(key, end))
}

pub(super) fn serializable(key: &str) -> Request {
    Request::Range(RangeRequest { serializable: true, ..range_request(key, "") })
}

pub(super) fn delete_request(key: &str, end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: true }
}

pub(super) fn delete(key: &str, end: &str) -> Request {
    Request::DeleteRange(delete_request(key, end))
}

pub(super) fn compact(revision: i64) -> Request {
    Request::Compact(etcd::CompactionRequest { revision, physical: false })
}

pub(super) fn grant(id: i64, ttl: i64) -> Request {
    Request::LeaseGrant(LeaseGrantRequest { ttl, id })
}

pub(super) fn keep_alive(id: i64) -> Request {
    Request::LeaseKeepAlive(LeaseKeepAliveRequest { id })
}

pub(super) fn revoke(id: i64) -> Request {
    Request::LeaseRevoke(LeaseRevokeRequest { id })
}

pub(super) fn time_to_live(id: i64) -> Request {
    Request::LeaseTimeToLive(etcd::LeaseTimeToLiveRequest { id, keys: true })
}

pub(super) fn op(op: Op) -> RequestOp {
    RequestOp { request: Some(op) }
}

pub(super) fn compare(
    key: &str,
    result: CompareResult,
    target: CompareTarget,
    union: TargetUnion,
) -> Compare {
    Compare {
        result: result as i32,
        target: target as i32,
        key: bytes(key),
        target_union: Some(union),
        range_end: Bytes::new(),
    }
}

/// Put `new` if the value is `old`, else read.
pub(super) fn swap(key: &str, old: &str, new: &str) -> Request {
    let union = TargetUnion::Value(bytes(old));
    Request::Txn(TxnRequest {
        compare: vec![compare(key, CompareResult::Equal, CompareTarget::Value, union)],
        success: vec![op(Op::RequestPut(PutRequest { prev_kv: true, ..put_request(key, new) }))],
        failure: vec![op(Op::RequestRange(range_request(key, "")))],
    })
}

/// Numbers that look random and never change.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A run in the making. Each step takes ten units of time: call at 0, effect at 5, answer at 9.
pub(super) struct Scribe {
    pub(super) model: Model,
    pub(super) history: History,
    pub(super) now: Time,
}

impl Scribe {
    pub(super) fn new() -> Scribe {
        Scribe { model: Model::new(), history: History::new(), now: 100 }
    }

    /// Applies a request and shows what it committed.
    pub(super) fn effect(&mut self, at: Time, request: &Request) -> Result<Reply, Error> {
        let before = self.model.revision();
        let answer = self.model.apply(request);
        if self.model.revision() > before {
            self.show(at, self.model.revision());
        }
        answer
    }

    fn show(&mut self, at: Time, revision: i64) {
        let events: Vec<Event> = self.model.changes()[&revision].clone();
        self.history.committed(1, at, revision, &events);
        self.history.committed(2, at + 1, revision, &events);
    }

    /// A request and its true answer.
    pub(super) fn ask(&mut self, client: u64, request: Request) -> OpId {
        let id = self.history.call(client, self.now, request.clone());
        let outcome = match self.effect(self.now + 5, &request) {
            Ok(reply) => Outcome::Done(reply),
            Err(error) => Outcome::Refused(error),
        };
        self.history.end(id, self.now + 9, outcome);
        self.now += 10;
        id
    }

    /// A request whose answer got lost.
    pub(super) fn lose(&mut self, client: u64, request: Request, done: bool) -> OpId {
        let id = self.history.call(client, self.now, request.clone());
        if done {
            self.effect(self.now + 5, &request).expect("a lost request is a legal one");
        }
        self.history.end(id, self.now + 9, Outcome::Unknown);
        self.now += 10;
        id
    }

    /// A request that is refused whatever the model says.
    pub(super) fn refuse(&mut self, client: u64, request: Request, error: Error) -> OpId {
        let id = self.history.call(client, self.now, request);
        self.history.end(id, self.now + 9, Outcome::Refused(error));
        self.now += 10;
        id
    }

    /// A request and an answer of the test's own making.
    pub(super) fn answer(&mut self, client: u64, request: Request, reply: Reply) -> OpId {
        let id = self.history.call(client, self.now, request);
        self.history.end(id, self.now + 9, Outcome::Done(reply));
        self.now += 10;
        id
    }

    /// Something takes effect that no client asked for.
    pub(super) fn unasked(&mut self, request: Request) {
        self.effect(self.now + 5, &request).expect("what happens is legal");
        self.now += 10;
    }

    /// The reply of an operation, to be made wrong.
    pub(super) fn reply(&mut self, id: OpId) -> &mut Reply {
        match &mut self.history.operations[id.0].outcome {
            Outcome::Done(reply) => reply,
            other => panic!("{other:?} has no reply"),
        }
    }

    /// A watch that hears one message a revision.
    pub(super) fn watch(&mut self, spec: WatchSpec) -> WatchId {
        let now = self.now;
        let watch = self.history.watch(9, 9, now, spec.clone());
        self.history.hear(watch, now + 1, Heard::Created(self.model.revision()));
        for (revision, events) in self.model.changes().clone().range(spec.start_revision..) {
            let events = delivered(&spec, events);
            if !events.is_empty() {
                let heard = Heard::Events { revision: *revision, events, fragment: false };
                self.history.hear(watch, now + 2, heard);
            }
        }
        self.now += 10;
        watch
    }

    pub(super) fn sightings(&self) -> Sightings {
        Sightings::of(&self.history)
    }
}

/// The events that a watch gets of a revision.
pub(super) fn delivered(spec: &WatchSpec, events: &[Event]) -> Vec<Event> {
    let shown = |event: &Event| Event {
        prev_kv: event.prev_kv.clone().filter(|_| spec.prev_kv),
        ..event.clone()
    };
    events.iter().filter(|event| spec.wants(event)).map(shown).collect()
}

/// A long right history of clients that overlap, lose answers and are refused.
pub(super) fn busy(seed: u64, count: usize, clients: u64, lost_percent: u64) -> Scribe {
    let mut dice = Dice(seed);
    let mut scribe = Scribe::new();
    // (moment of effect, call, end, request, is the answer lost, is it done)
    let mut plan: Vec<(Time, Time, Time, u64, Request, bool, bool)> = Vec::new();
    let mut free: Vec<Time> = vec![100; usize::try_from(clients).unwrap_or(1)];
    for number in 0..count {
        let client = dice.roll(clients);
        let call = free[client as usize] + dice.roll(20);
        let effect = call + 1 + dice.roll(20);
        let end = effect + 1 + dice.roll(20);
        free[client as usize] = end + 1;
        let key = format!("k{}", dice.roll(8));
        let value = format!("v{number}");
        let request = match dice.roll(10) {
            0..=3 => put(&key, &value),
            4..=5 => get(&key),
            6 => range("k", "l"),
            7 => delete(&key, ""),
            8 => swap(&key, &format!("v{}", dice.roll(count as u64)), &value),
            _ => delete(&key, &text(b"k9")),
        };
        let lost = dice.roll(100) < lost_percent;
        plan.push((effect, call, end, client, request, lost, !lost || dice.roll(2) == 0));
    }
    plan.sort_by_key(|(effect, call, ..)| (*effect, *call));
    for (effect, call, end, client, request, lost, done) in plan {
        let id = scribe.history.call(client, call, request.clone());
        let answer = done.then(|| scribe.effect(effect, &request));
        let outcome = match answer {
            Some(Ok(reply)) if !lost => Outcome::Done(reply),
            Some(Err(error)) => Outcome::Refused(error),
            _ => Outcome::Unknown,
        };
        scribe.history.end(id, end, outcome);
        scribe.now = scribe.now.max(end + 10);
    }
    scribe
}
