//! The service KV, except for its stream (`range_stream.rs`).
//!
//! Header revisions come from the group; nested answers of a transaction carry theirs already.

use proto::{
    Error,
    etcd::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
        PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
        request_op::Request as Op,
    },
    group::Request,
};
use tonic::Status;

use crate::{
    caller::{Caller, answer},
    validate,
};

pub(super) async fn range(caller: Caller, request: RangeRequest) -> Result<RangeResponse, Status> {
    if !request.serializable && caller.is_learner() {
        return Err(Error::NotSupportedForLearner.into());
    }
    validate::range(&request)?;
    let target = caller.place(&request.key)?;
    let reply = caller.ask(target, Request::Range(request)).await.map_err(crate::caller::status)?;
    let mut response = answer!(reply, Range);
    response.header = caller.fill(response.header);
    Ok(response)
}

/// May the answer hold many rows?
pub(super) fn is_long_range(request: &RangeRequest) -> bool {
    !request.range_end.is_empty()
}

pub(super) async fn put(caller: Caller, request: PutRequest) -> Result<PutResponse, Status> {
    validate::put(&request)?;
    check_size(&caller)?;
    let target = caller.place(&request.key)?;
    let reply = caller.ask(target, Request::Put(request)).await.map_err(crate::caller::status)?;
    let mut response = answer!(reply, Put);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn delete_range(
    caller: Caller,
    request: DeleteRangeRequest,
) -> Result<DeleteRangeResponse, Status> {
    validate::delete_range(&request)?;
    check_size(&caller)?;
    let target = caller.place(&request.key)?;
    let reply = caller.ask(target, Request::DeleteRange(request)).await;
    let mut response = answer!(reply.map_err(crate::caller::status)?, DeleteRange);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn txn(caller: Caller, request: TxnRequest) -> Result<TxnResponse, Status> {
    validate::txn(&request, caller.door().config.max_txn_ops)?;
    if !validate::reads_only(&request) {
        check_size(&caller)?;
    }
    let target = match first_key(&request) {
        Some(key) => caller.place(key)?,
        None => caller.home()?,
    };
    let reply = caller.ask(target, Request::Txn(request)).await;
    let mut response = answer!(reply.map_err(crate::caller::status)?, Txn);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn compact(
    caller: Caller,
    request: CompactionRequest,
) -> Result<CompactionResponse, Status> {
    let mut response = answer!(caller.ask_home(Request::Compact(request)).await?, Compact);
    response.header = caller.fill(response.header);
    Ok(response)
}

fn check_size(caller: &Caller) -> Result<(), Status> {
    Ok(validate::size(caller.message_bytes, caller.door().config.max_request_bytes)?)
}

/// Some key that the transaction names: an unsplit tenant has all keys in one group.
fn first_key(request: &TxnRequest) -> Option<&[u8]> {
    if let Some(compare) = request.compare.first() {
        return Some(&compare.key);
    }
    request.success.iter().chain(&request.failure).find_map(op_key)
}

fn op_key(op: &RequestOp) -> Option<&[u8]> {
    match op.request.as_ref()? {
        Op::RequestRange(request) => Some(&request.key),
        Op::RequestPut(request) => Some(&request.key),
        Op::RequestDeleteRange(request) => Some(&request.key),
        Op::RequestTxn(request) => first_key(request),
    }
}
