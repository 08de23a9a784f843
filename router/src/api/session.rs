//! What locks and elections share: a lease that lives while its owner waits, keys under a
//! name in order of creation, waiting for those before us to go.
//!
//! etcd builds both on its own client, inside the server. The shapes are an interface, because
//! programs mix this service with the same recipes in client libraries:
//!
//! * the key of a contender is `<name>/<lease in hex>`;
//! * the owner is the key with the lowest create revision under `<name>/`;
//! * errors arrive with code Unknown and the text alone.
//!
//! A waiting contender whose client goes away removes its key ([`OwnKey`]).

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use proto::{
    KeyRange,
    etcd::{
        Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse,
        RequestOp, ResponseOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request as Op,
        response_op::Response as Done,
    },
    group::Request,
    mvccpb::{KeyValue, event::EventType},
};
use tonic::Status;

use super::{lease, watch::follow::Follow};
use crate::caller::{Caller, answer, misplaced};

/// TTL of a session that the server opens, in seconds (etcd's default session TTL).
const TTL_S: i64 = 60;
/// How often a waiting session's lease is renewed: at a third, as clients do.
const RENEWAL: Duration = Duration::from_secs(TTL_S as u64 / 3);

/// A status as it leaves these two services.
pub(super) fn plain(status: Status) -> Status {
    Status::unknown(status.message())
}

/// A contender's lease.
pub(super) struct Session {
    caller: Caller,
    pub(super) lease: i64,
    /// Opened here: nobody else will renew it.
    own: bool,
}

// === impl Session ===

impl Session {
    /// Opens a session on `lease`, or on a new one if that is zero.
    pub(super) async fn open(caller: Caller, lease: i64) -> Result<Session, Status> {
        if lease != 0 {
            return Ok(Session { caller, lease, own: false });
        }
        let id = caller.door().new_lease_id();
        let grant = Request::LeaseGrant(LeaseGrantRequest { ttl: TTL_S, id });
        let granted = answer!(caller.ask(grant).await?, LeaseGrant);
        Ok(Session { caller, lease: granted.id, own: true })
    }

    /// The key of this contender under `prefix`.
    pub(super) fn key(&self, prefix: &[u8]) -> Bytes {
        let sign = if self.lease < 0 { "-" } else { "" };
        let mut key = prefix.to_vec();
        key.extend_from_slice(format!("{sign}{:x}", self.lease.unsigned_abs()).as_bytes());
        key.into()
    }

    /// Waits for `wait` and renews the lease meanwhile, if it is our own. Waiting ends with an
    /// etcd that is frozen or gone.
    pub(super) async fn alive_during<T>(
        &self,
        wait: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let (mut wait, mut refused) = (pin!(wait), pin!(self.caller.refused()));
        loop {
            tokio::select! {
                outcome = &mut wait => return outcome,
                status = &mut refused => return Err(status),
                () = tokio::time::sleep(RENEWAL), if self.own => {
                    // A renewal that fails is tried again next time; if the lease is gone, so
                    // is the key, and the check after the wait will say it.
                    if let Err(status) = lease::renew(&self.caller, self.lease).await {
                        tracing::debug!(%status, "a session was not renewed");
                    }
                }
            }
        }
    }
}

/// The prefix under which contenders for `name` stand.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The first key behind all keys with `prefix`, which ends with a slash.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// All keys under a prefix, as an interval.
pub(super) fn prefix_range(prefix: &Bytes) -> KeyRange {
    KeyRange { start: prefix.clone(), end: Some(prefix_end(prefix)) }
}

/// Asks for the owner: the oldest key under `prefix`.
pub(super) fn oldest(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Create as i32,
        ..Default::default()
    }
}

/// Holds when `key` was created at `revision`; zero means that it does not exist.
pub(super) fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

pub(super) fn get_op(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Op::RequestRange(request)) }
}

pub(super) fn put_op(key: &Bytes, value: Bytes, lease: i64) -> RequestOp {
    let put = PutRequest { key: key.clone(), value, lease, ..Default::default() };
    RequestOp { request: Some(Op::RequestPut(put)) }
}

pub(super) fn delete_op(key: &Bytes) -> RequestOp {
    let delete = DeleteRangeRequest { key: key.clone(), ..Default::default() };
    RequestOp { request: Some(Op::RequestDeleteRange(delete)) }
}

pub(super) fn get_key(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..Default::default() }
}

pub(super) async fn txn(caller: &Caller, request: TxnRequest) -> Result<TxnResponse, Status> {
    let mut response = answer!(caller.ask(Request::Txn(request)).await?, Txn);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn range(caller: &Caller, request: RangeRequest) -> Result<RangeResponse, Status> {
    let mut response = answer!(caller.ask(Request::Range(request)).await?, Range);
    response.header = caller.fill(response.header);
    Ok(response)
}

/// The keys that the operation at `at` of a transaction found.
pub(super) fn found(response: &TxnResponse, at: usize) -> Result<&[KeyValue], Status> {
    match response.responses.get(at) {
        Some(ResponseOp { response: Some(Done::ResponseRange(range)) }) => Ok(&range.kvs),
        _ => Err(misplaced()),
    }
}

/// The revision that an answer's header shows.
pub(super) fn revision(header: Option<proto::etcd::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// Waits until no key under `prefix` is older than `max_create_revision`, that included. Only
/// the youngest of them is watched: when it goes, the next youngest is asked for.
pub(super) async fn wait_for_older(
    caller: &Caller,
    prefix: &Bytes,
    max_create_revision: i64,
) -> Result<(), Status> {
    loop {
        let youngest = RangeRequest {
            sort_order: SortOrder::Descend as i32,
            max_create_revision,
            ..oldest(prefix)
        };
        let response = range(caller, youngest).await?;
        let Some(kv) = response.kvs.first() else { return Ok(()) };
        let start = revision(response.header);
        let mut follow = Follow::new(caller.clone(), KeyRange::single(&kv.key), start);
        'gone: loop {
            for event in follow.next().await?.1 {
                if event.r#type() == EventType::Delete {
                    break 'gone;
                }
            }
        }
    }
}

/// A contender's key; removed if it is dropped before it was kept or given up.
pub(super) struct OwnKey {
    caller: Caller,
    key: Bytes,
    /// How it is removed: only if still of this creation, or whatever it is.
    created: Option<i64>,
    armed: bool,
}

// === impl OwnKey ===

impl OwnKey {
    /// The key of a locker, removed by name.
    pub(super) fn named(caller: Caller, key: Bytes) -> OwnKey {
        OwnKey { caller, key, created: None, armed: true }
    }

    /// The key of a candidate, removed only if it was created at `revision`.
    pub(super) fn created_at(caller: Caller, key: Bytes, revision: i64) -> OwnKey {
        OwnKey { caller, key, created: Some(revision), armed: true }
    }

    /// Leaves the key where it is.
    pub(super) fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for OwnKey {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let compare = self.created.map(|revision| created_at(&self.key, revision));
        let request = TxnRequest {
            compare: compare.into_iter().collect(),
            success: vec![delete_op(&self.key)],
            failure: vec![],
        };
        let caller = self.caller.clone();
        tokio::spawn(async move {
            if let Err(status) = caller.ask(Request::Txn(request)).await {
                tracing::debug!(%status, "a contender's key waits for its lease to end");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_stand_under_the_name_and_a_slash() {
        let prefix = prefix(b"my/lock");
        assert_eq!(prefix.as_ref(), b"my/lock/");
        assert_eq!(prefix_range(&prefix).end.as_deref(), Some(&b"my/lock0"[..]));
    }
}
