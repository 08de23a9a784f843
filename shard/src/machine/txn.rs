//! Transactions: compares choose a path, the path is checked, then carried out.
//!
//! All compares, nested ones too, are evaluated against the state before the transaction, so
//! the path is known before the first write. Then everything on the path that could fail is
//! checked; only then rows are written. Sources: etcd's api reference; behaviour of 3.7.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use bytes::Bytes;
use proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcd::request_op::Request as Op;
use proto::etcd::response_op::Response as OpResponse;
use proto::etcd::{
    Compare, RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use proto::group::Reply;
use proto::mvccpb::KeyValue;
use proto::{Error, KeyRange};

use super::effect::Effect;
use super::keys::Changes;
use super::{Answer, Machine};
use crate::engine::EngineError;
use crate::read;
use crate::store::view::{Found, View};

/// Outcomes of the compares along the taken path, in the order in which the path is walked.
pub(super) struct Path {
    taken: Vec<bool>,
    next: usize,
}

impl Path {
    /// The path that a transaction takes on what `view` sees.
    pub(super) fn choose(view: &View, request: &TxnRequest) -> Result<Path, EngineError> {
        let mut path = Path { taken: Vec::new(), next: 0 };
        choose(view, request, &mut path.taken)?;
        Ok(path)
    }

    /// The outcomes.
    pub(super) fn outcomes(&self) -> &[bool] {
        &self.taken
    }

    /// Walks it from its beginning again.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
    }

    fn take(&mut self) -> bool {
        let taken = self.taken.get(self.next).copied();
        self.next += 1;
        taken.expect("the path has an outcome for every transaction on it")
    }
}

/// The operations on a path.
pub(crate) fn branch(request: &TxnRequest, taken: bool) -> &[RequestOp] {
    if taken { &request.success } else { &request.failure }
}

/// Evaluates the compares of a transaction and of those nested on its path.
fn choose(view: &View, request: &TxnRequest, taken: &mut Vec<bool>) -> Result<(), EngineError> {
    let mut holds = true;
    for compare in &request.compare {
        if !evaluate(view, compare)? {
            holds = false;
            break;
        }
    }
    taken.push(holds);
    for op in branch(request, holds) {
        if let Some(Op::RequestTxn(nested)) = &op.request {
            choose(view, nested, taken)?;
        }
    }
    Ok(())
}

fn evaluate(view: &View, compare: &Compare) -> Result<bool, EngineError> {
    let mut any = false;
    let mut holds = Ok(true);
    let judge = |found: &Found| {
        let value = match compare.target() {
            CompareTarget::Value => view.value(&found.row)?,
            _ => Bytes::new(),
        };
        Ok(matches(compare, &found.with(compare.key.clone(), value)))
    };
    if compare.range_end.is_empty() {
        if let Some(found) = view.get(&compare.key)? {
            any = true;
            holds = judge(&found);
        }
    } else {
        let range = KeyRange::parse(&compare.key, &compare.range_end);
        view.scan(&range, &mut |_, found| {
            any = true;
            holds = judge(&found);
            match holds {
                Ok(true) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })?;
    }
    let holds: bool = holds?;
    if any {
        return Ok(holds);
    }
    Ok(holds_without(compare))
}

/// Does a compare hold where there is no key? It has no value at all: no comparison with one
/// holds.
pub(crate) fn holds_without(compare: &Compare) -> bool {
    compare.target() != CompareTarget::Value && matches(compare, &KeyValue::default())
}

/// Does a compare hold for a key?
pub(crate) fn matches(compare: &Compare, kv: &KeyValue) -> bool {
    let union = &compare.target_union;
    let order = match (CompareTarget::try_from(compare.target), union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(v))) => kv.version.cmp(v),
        (Ok(CompareTarget::Version), _) => kv.version.cmp(&0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(v))) => {
            kv.create_revision.cmp(v)
        }
        (Ok(CompareTarget::Create), _) => kv.create_revision.cmp(&0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(v))) => kv.mod_revision.cmp(v),
        (Ok(CompareTarget::Mod), _) => kv.mod_revision.cmp(&0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(v))) => kv.value.cmp(v),
        (Ok(CompareTarget::Value), _) => kv.value.as_ref().cmp(&[]),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(v))) => kv.lease.cmp(v),
        (Ok(CompareTarget::Lease), _) => kv.lease.cmp(&0),
        // etcd compares nothing for a target it does not know.
        (Err(_), _) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order == Ordering::Equal,
        Ok(CompareResult::NotEqual) => order != Ordering::Equal,
        Ok(CompareResult::Greater) => order == Ordering::Greater,
        Ok(CompareResult::Less) => order == Ordering::Less,
        Err(_) => true,
    }
}

/// Is this a transaction that only reads? (A nested one counts as a write, as in etcd.)
pub fn is_read_only(request: &TxnRequest) -> bool {
    let reads =
        |ops: &[RequestOp]| ops.iter().all(|op| matches!(op.request, Some(Op::RequestRange(_))));
    reads(&request.success) && reads(&request.failure)
}

/// May a reading transaction be answered from this replica without asking the leader?
pub fn is_serializable(request: &TxnRequest) -> bool {
    let local = |ops: &[RequestOp]| {
        ops.iter().all(|op| matches!(&op.request, Some(Op::RequestRange(r)) if r.serializable))
    };
    local(&request.success) && local(&request.failure)
}

fn check_range(request: &RangeRequest, revision: i64, compacted: i64) -> Result<(), Error> {
    match request.revision {
        0 => Ok(()),
        asked if asked > revision => Err(Error::FutureRevision),
        asked if asked < compacted => Err(Error::Compacted),
        _ => Ok(()),
    }
}

/// Answers a reading transaction from a view of the newest revision.
pub fn read_only(
    view: &View,
    request: &TxnRequest,
    compacted: i64,
) -> Result<Result<TxnResponse, Error>, EngineError> {
    let mut taken = Vec::new();
    choose(view, request, &mut taken)?;
    let succeeded = taken.first().copied().unwrap_or(true);
    let mut responses = Vec::new();
    let ops = branch(request, succeeded);
    for op in ops {
        if let Some(Op::RequestRange(range)) = &op.request
            && let Err(error) = check_range(range, view.revision, compacted)
        {
            return Ok(Err(error));
        }
    }
    for op in ops {
        if let Some(Op::RequestRange(range)) = &op.request {
            responses.push(read_op(view, range, view.revision)?);
        }
    }
    let header = Some(ResponseHeader { revision: view.revision, ..Default::default() });
    Ok(Ok(TxnResponse { header, succeeded, responses }))
}

fn read_op(view: &View, request: &RangeRequest, revision: i64) -> Result<ResponseOp, EngineError> {
    let at = if request.revision > 0 { request.revision } else { revision };
    let response = read::range(&view.at(at), request, revision, None)?;
    Ok(ResponseOp { response: Some(OpResponse::ResponseRange(response)) })
}

impl Machine {
    pub(super) fn apply_txn(
        &mut self,
        request: &TxnRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<Answer, EngineError> {
        let mut changes = self.begin();
        let before = self.view();
        let mut path = Path::choose(&before, request)?;
        if let Err(error) = self.check_path(&before, request, &mut path)? {
            return Ok(Err(error));
        }
        path.rewind();
        let mut response = self.run(&mut changes, request, &mut path)?;
        response.header = changes.header();
        self.commit(changes, Reply::Txn(response), effects)
    }

    pub(super) fn check_path(
        &self,
        view: &View,
        request: &TxnRequest,
        path: &mut Path,
    ) -> Result<Result<(), Error>, EngineError> {
        for op in branch(request, path.take()) {
            let checked = match &op.request {
                Some(Op::RequestRange(range)) => {
                    check_range(range, self.state.revision, self.state.compacted)
                }
                Some(Op::RequestPut(put)) => self.check_put(view, put)?,
                Some(Op::RequestTxn(nested)) => self.check_path(view, nested, path)?,
                Some(Op::RequestDeleteRange(_)) | None => Ok(()),
            };
            if checked.is_err() {
                return Ok(checked);
            }
        }
        Ok(Ok(()))
    }

    pub(super) fn run(
        &mut self,
        changes: &mut Changes,
        request: &TxnRequest,
        path: &mut Path,
    ) -> Result<TxnResponse, EngineError> {
        let succeeded = path.take();
        let ops = branch(request, succeeded);
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            let response = match &op.request {
                Some(Op::RequestRange(range)) => {
                    match read_op(&changes.view, range, changes.revision()) {
                        Ok(response) => responses.push(response),
                        Err(EngineError::Value(_)) => changes.damaged = true,
                        Err(error) => return Err(error),
                    }
                    continue;
                }
                Some(Op::RequestPut(put)) => OpResponse::ResponsePut(self.put(changes, put)?),
                Some(Op::RequestDeleteRange(delete)) => {
                    OpResponse::ResponseDeleteRange(self.delete_range(changes, delete)?)
                }
                Some(Op::RequestTxn(nested)) => {
                    OpResponse::ResponseTxn(self.run(changes, nested, path)?)
                }
                None => continue,
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
    }
}
