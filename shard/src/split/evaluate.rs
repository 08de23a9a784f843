//! A transaction on rows that were brought together from several groups. Pure.
//!
//! The group that carries out a transaction over shards does not have the rows: participants vote
//! with what stands under its keys, and this evaluates it as the machine does on a group's own
//! rows (`machine/txn.rs`): compares on what was there before, then the path is checked, then it
//! is carried out. What comes out is the answer and the changes for each key, which participants
//! make without looking again: nobody could change these keys since they voted.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::etcd::request_op::Request as Op;
use proto::etcd::response_op::Response as Answer;
use proto::etcd::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use proto::mvccpb::KeyValue;
use proto::{Error, KeyRange};

use crate::machine::txn::{branch, holds_without, matches};
use crate::read;

/// Rows of one moment.
pub trait Rows {
    /// Live keys inside `range`, ascending: as they stand, or as they stood at revision `at`.
    fn scan(&self, range: &KeyRange, at: Option<i64>) -> Vec<KeyValue>;
}

/// What is done to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place among the changes of its revision.
    pub place: u32,
    /// The key.
    pub key: Bytes,
    /// What it is to hold; nothing if it is deleted.
    pub put: Option<Put>,
}

/// What a key is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Its value.
    pub value: Bytes,
    /// The lease it is attached to; 0 for none.
    pub lease: i64,
}

/// Revisions as a transaction sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revisions {
    /// The newest one before it.
    pub before: i64,
    /// Its own, if it changes anything.
    pub own: i64,
    /// Below this nothing can be read.
    pub compacted: i64,
}

/// What a transaction comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The answer. Its header says what a client may see: the own revision if anything changed.
    pub response: TxnResponse,
    /// In order of the operations.
    pub changes: Vec<Change>,
    /// Outcome of the compares along the path.
    pub path: Vec<bool>,
}

/// What was foreseen of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// Outcome of the compares along the path.
    pub path: Vec<bool>,
    /// It changes something.
    pub changes: bool,
}

impl Outcome {
    /// As a prediction.
    pub fn prediction(&self) -> Prediction {
        Prediction { path: self.path.clone(), changes: !self.changes.is_empty() }
    }
}

impl Change {
    /// The lease that it attaches the key to.
    pub fn attaches(&self) -> Option<i64> {
        self.put.as_ref().map(|put| put.lease).filter(|lease| *lease != 0)
    }
}

/// Evaluates `txn` on `rows`.
pub fn evaluate(rows: &dyn Rows, txn: &TxnRequest, revisions: Revisions) -> Result<Outcome, Error> {
    let mut path = Vec::new();
    choose(rows, txn, &mut path);
    let mut run = Run { rows, revisions, written: BTreeMap::new(), changes: Vec::new() };
    run.check(txn, &mut path.iter())?;
    let mut response = run.run(txn, &mut path.iter());
    response.header = run.header();
    Ok(Outcome { response, changes: run.changes, path })
}

fn take(path: &mut std::slice::Iter<'_, bool>) -> bool {
    *path.next().expect("the path has an outcome for every transaction on it")
}

fn choose(rows: &dyn Rows, txn: &TxnRequest, path: &mut Vec<bool>) {
    let holds = txn.compare.iter().all(|compare| {
        let found = rows.scan(&KeyRange::parse(&compare.key, &compare.range_end), None);
        match found.as_slice() {
            [] => holds_without(compare),
            found => found.iter().all(|kv| matches(compare, kv)),
        }
    });
    path.push(holds);
    for op in branch(txn, holds) {
        if let Some(Op::RequestTxn(nested)) = &op.request {
            choose(rows, nested, path);
        }
    }
}

struct Run<'a> {
    rows: &'a dyn Rows,
    revisions: Revisions,
    /// What this transaction wrote so far.
    written: BTreeMap<Bytes, Option<KeyValue>>,
    changes: Vec<Change>,
}

impl Run<'_> {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.shown(), ..Default::default() })
    }

    /// Newest revision that an operation is told.
    fn shown(&self) -> i64 {
        if self.changes.is_empty() { self.revisions.before } else { self.revisions.own }
    }

    fn live(&self, range: &KeyRange) -> Vec<KeyValue> {
        let mut found: BTreeMap<Bytes, KeyValue> =
            self.rows.scan(range, None).into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        for (key, kv) in self.written.iter().filter(|(key, _)| range.contains(key)) {
            match kv {
                Some(kv) => found.insert(key.clone(), kv.clone()),
                None => found.remove(key),
            };
        }
        found.into_values().collect()
    }

    fn get(&self, key: &Bytes) -> Option<KeyValue> {
        self.live(&KeyRange::single(key)).pop()
    }

    /// Everything on the path that can fail, before anything is done.
    fn check(&self, txn: &TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<(), Error> {
        for op in branch(txn, take(path)) {
            match &op.request {
                Some(Op::RequestRange(range)) if range.revision > self.revisions.before => {
                    return Err(Error::FutureRevision);
                }
                Some(Op::RequestRange(range))
                    if range.revision > 0 && range.revision < self.revisions.compacted =>
                {
                    return Err(Error::Compacted);
                }
                Some(Op::RequestPut(put))
                    if (put.ignore_value || put.ignore_lease) && self.get(&put.key).is_none() =>
                {
                    return Err(Error::KeyNotFound);
                }
                Some(Op::RequestTxn(nested)) => self.check(nested, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, txn: &TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> TxnResponse {
        let succeeded = take(path);
        let mut responses = Vec::new();
        for op in branch(txn, succeeded) {
            let answer = match &op.request {
                Some(Op::RequestRange(range)) => Answer::ResponseRange(self.range(range)),
                Some(Op::RequestPut(put)) => Answer::ResponsePut(self.put(put)),
                Some(Op::RequestDeleteRange(delete)) => {
                    Answer::ResponseDeleteRange(self.delete(delete))
                }
                Some(Op::RequestTxn(nested)) => Answer::ResponseTxn(self.run(nested, path)),
                None => continue,
            };
            responses.push(ResponseOp { response: Some(answer) });
        }
        TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses }
    }

    fn put(&mut self, put: &PutRequest) -> PutResponse {
        let before = self.get(&put.key);
        let old = before.as_ref();
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.map_or(self.revisions.own, |kv| kv.create_revision),
            mod_revision: self.revisions.own,
            version: old.map_or(0, |kv| kv.version) + 1,
            value: match old {
                Some(kv) if put.ignore_value => kv.value.clone(),
                _ => put.value.clone(),
            },
            lease: match old {
                Some(kv) if put.ignore_lease => kv.lease,
                _ => put.lease,
            },
        };
        self.note(&kv.key, Some(Put { value: kv.value.clone(), lease: kv.lease }));
        self.written.insert(put.key.clone(), Some(kv));
        PutResponse { header: self.header(), prev_kv: before.filter(|_| put.prev_kv) }
    }

    fn note(&mut self, key: &Bytes, put: Option<Put>) {
        let place = self.changes.len() as u32;
        self.changes.push(Change { place, key: key.clone(), put });
    }

    fn delete(&mut self, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
        let found = self.live(&KeyRange::parse(&delete.key, &delete.range_end));
        for kv in &found {
            self.note(&kv.key, None);
            self.written.insert(kv.key.clone(), None);
        }
        let deleted = found.len() as i64;
        let prev_kvs = if delete.prev_kv { found } else { Vec::new() };
        DeleteRangeResponse { header: self.header(), deleted, prev_kvs }
    }

    fn range(&self, range: &RangeRequest) -> RangeResponse {
        let keys = KeyRange::parse(&range.key, &range.range_end);
        let found = match range.revision {
            at if at > 0 => self.rows.scan(&keys, Some(at)),
            _ => self.live(&keys),
        };
        let count = found.len() as i64;
        let header = self.header();
        match range.count_only {
            true => RangeResponse { header, count, ..Default::default() },
            false => RangeResponse { header, ..read::shape(range, found, count) },
        }
    }
}
