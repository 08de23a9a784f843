//! Reading a replica's rows from any thread, once its worker said that they may be read (or
//! for reads that any replica may answer as it is). And renewing leases there, while the worker is
//! known to lead.

use std::ops::ControlFlow;

use proto::etcd::{
    HashKvResponse, LeaseKeepAliveResponse, LeaseTimeToLiveResponse, ResponseHeader,
};
use proto::group::{GroupError, Reply, Request};
use proto::{Error, KeyRange};

use crate::engine::EngineError;
use crate::group::Shared;
use crate::machine::{NO_SHELF, leases, txn};
use crate::node::Reading;
use crate::read;
use crate::store::Store;
use crate::store::counts::Counter;
use crate::store::layout;

/// Tries before a read that always loses against compaction gives up.
const TRIES: usize = 8;

/// May this replica answer without asking anybody?
pub fn is_serializable(request: &Request) -> bool {
    match request {
        Request::Range(range) => range.serializable,
        Request::Txn(request) => txn::is_read_only(request) && txn::is_serializable(request),
        _ => false,
    }
}

/// Renews a lease of a group that is led here, soon after its quorum has confirmed that; otherwise the
/// worker has to be asked.
pub fn keep_alive(shared: &Shared, lease: i64, now_ms: u64) -> Option<Reply> {
    // Before it is renewed, as etcd does.
    let revision = shared.published.revision();
    let ttl = shared.renew_alone(now_ms, lease)?;
    let header = ResponseHeader { revision, raft_term: shared.term(), ..Default::default() };
    Some(kept_alive(header, lease, ttl))
}

/// The answer to a keepalive; a lease that is gone has no TTL.
pub(crate) fn kept_alive(header: ResponseHeader, id: i64, ttl: i64) -> Reply {
    Reply::LeaseKeepAlive(LeaseKeepAliveResponse { header: Some(header), id, ttl })
}

/// Answers a read from the rows of the group under `range_version`.
pub fn read(
    store: &Store,
    shared: &Shared,
    request: &Request,
    range_version: u64,
    reading: Reading,
) -> Result<Reply, GroupError> {
    let published = &shared.published;
    for _ in 0..TRIES {
        // In this order: a view must not be older than the revision it is read at.
        let (compacted, current) = match reading {
            Reading::Newest => (published.compacted(), published.revision()),
            Reading::At { revision, compacted } => (compacted.max(published.compacted()), revision),
        };
        let rows = published.rows();
        if rows == NO_SHELF {
            return Err(GroupError::not_done(Error::NoLeader, None));
        }
        let view = store.view(&published.shelves().pieces, current);
        let header =
            ResponseHeader { revision: current, raft_term: shared.term(), ..Default::default() };
        let read_at;
        let answer = match request {
            Request::Range(range) => {
                let at = read::resolve(range.revision, current, compacted)
                    .map_err(GroupError::refused)?;
                read_at = at;
                let counter = Counter::new(store, published.counts());
                read::range(&view.at(at), range, current, Some(&counter)).map(|mut response| {
                    response.header = Some(header);
                    Ok(Reply::Range(response))
                })
            }
            Request::Txn(request) => {
                read_at = oldest(request, current);
                txn::read_only(&view, request, compacted).map(|answer| {
                    answer.map(|mut response| {
                        response.header = Some(header);
                        Reply::Txn(response)
                    })
                })
            }
            Request::HashKv(request) => {
                let at = if request.revision == 0 { current } else { request.revision };
                if at > current {
                    return Err(GroupError::refused(Error::FutureRevision));
                }
                if at > 0 && at < compacted {
                    return Err(GroupError::refused(Error::Compacted));
                }
                read_at = at;
                hash(&view.at(at), &published.shelves().range, compacted, header).map(Ok)
            }
            Request::LeaseTimeToLive(ask) => {
                read_at = current;
                attached(store, shared, ask.id, header).map(Ok)
            }
            _ => return Err(GroupError::refused(Error::KeyNotFound)),
        };
        // What was compacted while we read may be missing from the answer, and so may rows that a
        // snapshot has replaced meanwhile: look again.
        if published.rows() != rows {
            continue;
        }
        // So may keys that are another group's by now. Shelves change a moment before the version.
        if published.range_version() != range_version
            || published.shelves().version != range_version
        {
            return Err(GroupError::not_done(Error::StaleRange, None));
        }
        if read_at > 0 && read_at < published.compacted() && read_at >= compacted {
            continue;
        }
        return match answer {
            Ok(answer) => answer.map_err(GroupError::refused),
            Err(EngineError::Value(_)) => Err(GroupError::refused(Error::DamagedValue)),
            Err(EngineError::Failed(_)) => Err(GroupError::unknown(Error::Stopped)),
        };
    }
    Err(GroupError::refused(Error::Compacted))
}

/// The keys that are attached to a lease in this group: the group's part of an answer that home
/// completes, which has the lease.
fn attached(
    store: &Store,
    shared: &Shared,
    lease: i64,
    header: ResponseHeader,
) -> Result<Reply, EngineError> {
    let keys = leases::attached(store, &shared.published.shelves(), lease)?;
    let header = Some(header);
    let part = LeaseTimeToLiveResponse { header, id: lease, keys, ..Default::default() };
    Ok(Reply::LeaseTimeToLive(part))
}

/// Lowest revision that a reading transaction reads at.
fn oldest(request: &proto::etcd::TxnRequest, current: i64) -> i64 {
    use proto::etcd::request_op::Request as Op;
    let ops = request.success.iter().chain(&request.failure);
    ops.filter_map(|op| match &op.request {
        Some(Op::RequestRange(range)) if range.revision > 0 => Some(range.revision),
        _ => None,
    })
    .fold(current, i64::min)
}

/// Hashes content, not storage: every version above the compacted revision, and each key's
/// newest at or below it unless it is a delete. Equal on all replicas, whatever they swept.
fn hash(
    view: &crate::store::view::View,
    range: &KeyRange,
    compacted: i64,
    header: ResponseHeader,
) -> Result<Reply, EngineError> {
    let mut hash = crc32fast::Hasher::new();
    let mut settled: Option<Vec<u8>> = None;
    view.all_versions(range, None, &mut |row_key, row| {
        let Some((escaped, revision)) = layout::split_version(row_key) else {
            return Ok(ControlFlow::Continue(()));
        };
        if revision <= compacted {
            if settled.as_deref() == Some(escaped) {
                return Ok(ControlFlow::Continue(()));
            }
            settled = Some(escaped.to_vec());
            if row.deleted {
                return Ok(ControlFlow::Continue(()));
            }
        }
        hash.update(escaped);
        hash.update(&revision.to_be_bytes());
        hash.update(&view.inline(row)?.encode());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Reply::HashKv(HashKvResponse {
        hash: hash.finalize(),
        compact_revision: compacted,
        hash_revision: view.revision,
        header: Some(header),
    }))
}
