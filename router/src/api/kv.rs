//! The service KV, except for its stream (`range_stream.rs`).
//!
//! Header revisions come from the group; nested answers of a transaction carry theirs already.

use proto::{
    Error,
    etcd::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
        PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
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
    let mut response = answer!(caller.ask(Request::Range(request)).await?, Range);
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
    let mut response = answer!(caller.ask(Request::Put(request)).await?, Put);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn delete_range(
    caller: Caller,
    request: DeleteRangeRequest,
) -> Result<DeleteRangeResponse, Status> {
    validate::delete_range(&request)?;
    check_size(&caller)?;
    let mut response = answer!(caller.ask(Request::DeleteRange(request)).await?, DeleteRange);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn txn(caller: Caller, request: TxnRequest) -> Result<TxnResponse, Status> {
    validate::txn(&request, caller.door().config.max_txn_ops)?;
    if !validate::reads_only(&request) {
        check_size(&caller)?;
    }
    let mut response = answer!(caller.ask(Request::Txn(request)).await?, Txn);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn compact(
    caller: Caller,
    request: CompactionRequest,
) -> Result<CompactionResponse, Status> {
    let mut response = answer!(caller.ask(Request::Compact(request)).await?, Compact);
    response.header = caller.fill(response.header);
    Ok(response)
}

fn check_size(caller: &Caller) -> Result<(), Status> {
    Ok(validate::size(caller.message_bytes, caller.door().config.max_request_bytes)?)
}
