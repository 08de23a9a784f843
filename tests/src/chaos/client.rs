//! A client: asks one thing at a time, notes what it hears, and never asks twice.
//!
//! Every value is unique, so that a write that is lost or done twice shows. After an outcome it
//! does not know it lets go of the connection and goes to another node, chosen at random; a new
//! connection is a new client to the judges.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcd::kv_client::KvClient;
use proto::etcd::request_op::Request as Op;
use proto::etcd::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use proto::group::{Reply, Request};
use proto::mvccpb::KeyValue;
use tonic::Status;
use tonic::transport::Channel;

use super::cluster::connect;
use super::record::{Record, outcome};
use crate::check::history::Outcome;
use crate::sim::random::Random;

/// How long a client waits for an answer: longer than a node is ever frozen.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// What the server may take, by the request's own deadline.
const DEADLINE: Duration = Duration::from_secs(4);
/// How soon a client knocks again where nobody answers.
const KNOCK_AGAIN: Duration = Duration::from_millis(20);
/// Longest pause between an answer and the next request, in microseconds.
const PAUSE_MAX_US: u64 = 12_000;
/// Keys that clients share: few, so that they meet.
pub(super) const KEYS: u64 = 10;
/// Size of a large value: some of them make the log roll over.
const LARGE_VALUE_BYTES: usize = 16 * 1024;

/// One client.
pub(super) struct Client {
    record: Arc<Record>,
    urls: Arc<Vec<String>>,
    number: u64,
    random: Random,
    asked: u64,
    /// A key as the client last read it: what it compares with.
    seen: Option<KeyValue>,
}

// === impl Client ===

impl Client {
    /// A client that has not connected yet.
    pub(super) fn new(
        record: Arc<Record>,
        urls: Arc<Vec<String>>,
        number: u64,
        random: Random,
    ) -> Client {
        Client { record, urls, number, random, asked: 0, seen: None }
    }

    /// Asks until it is told to stop.
    pub(super) async fn run(mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            let node = self.random.below(self.urls.len() as u64) as usize;
            match connect(&self.urls[node]).await {
                Some(channel) => self.talk(channel, &stop).await,
                None => tokio::time::sleep(KNOCK_AGAIN).await,
            }
        }
    }

    /// Asks on one connection until an outcome is unknown, or it feels like another node.
    async fn talk(&mut self, channel: Channel, stop: &AtomicBool) {
        let connection = self.record.connection();
        while !stop.load(Ordering::Relaxed) {
            let request = self.next();
            let op = self.record.call(connection, request.clone());
            let outcome = outcome(ask(channel.clone(), request).await);
            if let Outcome::Done(reply) = &outcome {
                self.learn(reply);
            }
            let lost = matches!(outcome, Outcome::Unknown);
            self.record.end(op, outcome);
            if lost || self.random.permille(5) {
                return;
            }
            let pause = Duration::from_micros(self.random.below(PAUSE_MAX_US));
            tokio::time::sleep(pause).await;
        }
    }

    fn learn(&mut self, reply: &Reply) {
        if let Reply::Range(range) = reply
            && let Some(kv) = range.kvs.first()
        {
            self.seen = Some(kv.clone());
        }
    }

    fn next(&mut self) -> Request {
        let key: Bytes = format!("k{}", self.random.below(KEYS)).into();
        let get = |key: &Bytes| RangeRequest { key: key.clone(), ..Default::default() };
        match self.random.below(100) {
            0..=39 => {
                let prev_kv = self.random.permille(300);
                Request::Put(PutRequest { prev_kv, ..self.put(key) })
            }
            40..=64 => Request::Range(get(&key)),
            65..=69 => Request::Range(RangeRequest {
                range_end: Bytes::from_static(b"l"),
                key: Bytes::from_static(b"k"),
                limit: self.random.below(4) as i64,
                ..Default::default()
            }),
            70..=75 => Request::DeleteRange(DeleteRangeRequest {
                key,
                prev_kv: self.random.permille(500),
                ..Default::default()
            }),
            76 => Request::DeleteRange(DeleteRangeRequest {
                key,
                range_end: Bytes::from_static(b"l"),
                prev_kv: false,
            }),
            _ => match self.seen.take() {
                Some(seen) => self.swap(&seen),
                None => Request::Range(get(&key)),
            },
        }
    }

    /// A put whose value nobody else puts.
    fn put(&mut self, key: Bytes) -> PutRequest {
        self.asked += 1;
        let mut value = format!("c{}-{}", self.number, self.asked);
        if self.random.permille(20) {
            value.push(' ');
            value.push_str(&".".repeat(LARGE_VALUE_BYTES));
        }
        PutRequest { key, value: value.into(), ..Default::default() }
    }

    /// Puts a new value if the key is still as it was seen, in one of three ways.
    fn swap(&mut self, seen: &KeyValue) -> Request {
        let (target, union) = if self.random.permille(500) {
            (CompareTarget::Value, TargetUnion::Value(seen.value.clone()))
        } else {
            (CompareTarget::Mod, TargetUnion::ModRevision(seen.mod_revision))
        };
        let compare = Compare {
            result: CompareResult::Equal as i32,
            target: target as i32,
            key: seen.key.clone(),
            target_union: Some(union),
            ..Default::default()
        };
        let op = |op: Op| RequestOp { request: Some(op) };
        let get =
            op(Op::RequestRange(RangeRequest { key: seen.key.clone(), ..Default::default() }));
        let put = op(Op::RequestPut(self.put(seen.key.clone())));
        let other: Bytes = format!("k{}", self.random.below(KEYS)).into();
        let success = match self.random.below(3) {
            0 => vec![put],
            1 if other != seen.key => {
                // A revision of several events.
                let second = op(Op::RequestPut(self.put(other)));
                vec![put, second, get.clone()]
            }
            _ => vec![get.clone(), put],
        };
        Request::Txn(TxnRequest { compare: vec![compare], success, failure: vec![get] })
    }
}

/// Sends a request once.
pub(super) async fn ask(channel: Channel, request: Request) -> Result<Reply, Status> {
    let mut kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
    let answer = async move {
        Ok(match request {
            Request::Range(it) => Reply::Range(kv.range(timed(it)).await?.into_inner()),
            Request::Put(it) => Reply::Put(kv.put(timed(it)).await?.into_inner()),
            Request::Txn(it) => Reply::Txn(kv.txn(timed(it)).await?.into_inner()),
            Request::DeleteRange(it) => {
                Reply::DeleteRange(kv.delete_range(timed(it)).await?.into_inner())
            }
            _ => return Err(Status::unimplemented("clients do not ask this")),
        })
    };
    let given_up = |_| Err(Status::deadline_exceeded("no answer"));
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(given_up)
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(DEADLINE);
    request
}
