//! Numbers the revisions of a history anew, without the holes that a split tenant has. Order and
//! equality of revisions stay what they were. Pure.

use std::collections::BTreeSet;

use proto::etcd::compare::TargetUnion;
use proto::etcd::request_op::Request as Op;
use proto::etcd::response_op::Response as Answer;
use proto::etcd::{RequestOp, ResponseHeader, ResponseOp, TxnRequest};
use proto::group::{Reply, Request};
use proto::mvccpb::{Event, KeyValue};

use crate::check::history::{Heard, History, Outcome};

/// The revisions that something happened at.
pub(crate) struct Names(Vec<i64>);

impl Names {
    /// For these revisions.
    pub(crate) fn new(used: &BTreeSet<i64>) -> Names {
        Names(used.iter().copied().collect())
    }

    /// Revisions that were skipped.
    pub(crate) fn holes(&self) -> u64 {
        let last = self.0.last().copied().unwrap_or(1);
        (last - 1 - self.0.len() as i64).max(0) as u64
    }

    /// The new number: an empty store stands at 1.
    pub(crate) fn of(&self, revision: i64) -> i64 {
        match revision {
            ..=1 => revision,
            revision => 1 + self.0.partition_point(|used| *used <= revision) as i64,
        }
    }

    fn set(&self, revision: &mut i64) {
        *revision = self.of(*revision);
    }

    fn header(&self, header: &mut Option<ResponseHeader>) {
        if let Some(header) = header {
            self.set(&mut header.revision);
        }
    }

    fn kv(&self, kv: &mut KeyValue) {
        self.set(&mut kv.create_revision);
        self.set(&mut kv.mod_revision);
    }

    /// An event.
    pub(crate) fn event(&self, event: &mut Event) {
        event.kv.iter_mut().chain(&mut event.prev_kv).for_each(|kv| self.kv(kv));
    }

    fn request(&self, request: &mut Request) {
        match request {
            Request::Txn(txn) => self.txn(txn),
            Request::Range(range) => self.set(&mut range.revision),
            Request::HashKv(hash) => self.set(&mut hash.revision),
            _ => {}
        }
    }

    fn txn(&self, txn: &mut TxnRequest) {
        for compare in &mut txn.compare {
            if let Some(TargetUnion::ModRevision(at) | TargetUnion::CreateRevision(at)) =
                &mut compare.target_union
            {
                self.set(at);
            }
        }
        let nested = |op: &mut RequestOp| {
            if let Some(Op::RequestTxn(nested)) = &mut op.request {
                self.txn(nested);
            }
        };
        txn.success.iter_mut().chain(&mut txn.failure).for_each(nested);
    }

    fn reply(&self, reply: &mut Reply) {
        match reply {
            Reply::Range(r) => {
                self.header(&mut r.header);
                r.kvs.iter_mut().for_each(|kv| self.kv(kv));
            }
            Reply::Put(r) => {
                self.header(&mut r.header);
                r.prev_kv.iter_mut().for_each(|kv| self.kv(kv));
            }
            Reply::DeleteRange(r) => {
                self.header(&mut r.header);
                r.prev_kvs.iter_mut().for_each(|kv| self.kv(kv));
            }
            Reply::Txn(r) => {
                self.header(&mut r.header);
                r.responses.iter_mut().for_each(|op| self.op(op));
            }
            Reply::LeaseGrant(r) => self.header(&mut r.header),
            Reply::LeaseRevoke(r) => self.header(&mut r.header),
            Reply::LeaseKeepAlive(r) => self.header(&mut r.header),
            Reply::LeaseTimeToLive(r) => self.header(&mut r.header),
            Reply::HashKv(r) => {
                self.header(&mut r.header);
                self.set(&mut r.hash_revision);
                self.set(&mut r.compact_revision);
            }
            other => unreachable!("nobody asks for {other:?} here"),
        }
    }

    fn op(&self, op: &mut ResponseOp) {
        let Some(response) = op.response.take() else { return };
        let mut reply = match response {
            Answer::ResponseRange(r) => Reply::Range(r),
            Answer::ResponsePut(r) => Reply::Put(r),
            Answer::ResponseDeleteRange(r) => Reply::DeleteRange(r),
            Answer::ResponseTxn(r) => Reply::Txn(r),
        };
        self.reply(&mut reply);
        op.response = Some(match reply {
            Reply::Range(r) => Answer::ResponseRange(r),
            Reply::Put(r) => Answer::ResponsePut(r),
            Reply::DeleteRange(r) => Answer::ResponseDeleteRange(r),
            Reply::Txn(r) => Answer::ResponseTxn(r),
            other => unreachable!("{other:?} was put in above"),
        });
    }

    /// Numbers a history anew that already knows what was committed, by what it knows.
    pub(crate) fn rename_all(history: &mut History) {
        let names = Names::new(&history.changes.keys().copied().collect());
        names.rename(history);
        let renamed = std::mem::take(&mut history.changes).into_iter().map(|(revision, change)| {
            let mut change = change;
            change.events.iter_mut().for_each(|event| names.event(event));
            (names.of(revision), change)
        });
        history.changes = renamed.collect();
        for conflict in &mut history.conflicts {
            names.set(&mut conflict.revision);
            let both = conflict.first.1.iter_mut().chain(&mut conflict.second.1);
            both.for_each(|event| names.event(event));
        }
    }

    /// Numbers what clients asked and heard anew.
    pub(crate) fn rename(&self, history: &mut History) {
        for op in &mut history.operations {
            self.request(&mut op.request);
            if let Outcome::Done(reply) = &mut op.outcome {
                self.reply(reply);
            }
        }
        for (_, heard) in history.watches.iter_mut().flat_map(|watch| &mut watch.heard) {
            match heard {
                Heard::Events { revision, events, .. } => {
                    self.set(revision);
                    events.iter_mut().for_each(|event| self.event(event));
                }
                Heard::Progress(revision) | Heard::Created(revision) => self.set(revision),
                // What comes before it was heard.
                Heard::Restarted(from) => *from = self.of(*from - 1) + 1,
                Heard::Compacted(_) | Heard::Canceled => {}
            }
        }
    }
}
