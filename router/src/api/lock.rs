//! The service Lock: the oldest key under a name owns it.

use bytes::Bytes;
use proto::{
    etcd::{DeleteRangeRequest, ResponseHeader, TxnRequest},
    group::Request,
    v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse},
};
use tonic::Status;

use super::session::{self, OwnKey, Session, plain};
use crate::{
    caller::{Caller, answer},
    validate,
};

const SESSION_EXPIRED: &str = "mutex: session is expired";

/// Waits until the client owns the lock.
pub(super) async fn lock(caller: Caller, request: LockRequest) -> Result<LockResponse, Status> {
    acquire(caller.unhurried(), request).await.map_err(plain)
}

async fn acquire(caller: Caller, request: LockRequest) -> Result<LockResponse, Status> {
    let session = Session::open(caller.clone(), request.lease).await?;
    let prefix = session::prefix(&request.name);
    let key = session.key(&prefix);
    let owner = || session::get_op(session::oldest(&prefix));
    let contend = TxnRequest {
        compare: vec![session::created_at(&key, 0)],
        success: vec![session::put_op(&key, Bytes::new(), session.lease), owner()],
        failure: vec![session::get_op(session::get_key(&key)), owner()],
    };
    let response = session::txn(&caller, contend).await?;
    let created = if response.succeeded {
        session::revision(response.header)
    } else {
        session::found(&response, 0)?.first().map_or(0, |kv| kv.create_revision)
    };
    let owner = session::found(&response, 1)?.first();
    if owner.is_none_or(|owner| owner.create_revision == created) {
        return Ok(LockResponse { header: response.header, key });
    }
    let own = OwnKey::named(caller.clone(), key.clone());
    let header = session.alive_during(wait(&caller, &prefix, &key, created)).await?;
    own.keep();
    match header {
        Some(header) => Ok(LockResponse { header: Some(header), key }),
        None => Err(Status::unknown(SESSION_EXPIRED)),
    }
}

/// Waits for those before us; the header of the proof that our key is still there, or `None`.
async fn wait(
    caller: &Caller,
    prefix: &Bytes,
    key: &Bytes,
    created: i64,
) -> Result<Option<ResponseHeader>, Status> {
    session::wait_for_older(caller, prefix, created - 1).await?;
    let proof = session::range(caller, session::get_key(key)).await?;
    Ok(if proof.kvs.is_empty() { None } else { proof.header })
}

/// Gives the lock back: removes the key.
pub(super) async fn unlock(
    caller: Caller,
    request: UnlockRequest,
) -> Result<UnlockResponse, Status> {
    let request = DeleteRangeRequest { key: request.key, ..Default::default() };
    validate::delete_range(&request).map_err(|error| plain(error.into()))?;
    let reply = caller.ask(Request::DeleteRange(request)).await.map_err(plain)?;
    let response = answer!(reply, DeleteRange);
    Ok(UnlockResponse { header: caller.fill(response.header) })
}
