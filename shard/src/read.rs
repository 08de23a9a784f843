//! Answers to reads: a range request and a view in, an answer out. Pure.
//!
//! Used by apply (reads inside transactions) and by whoever answers a client, on any thread.

use std::ops::ControlFlow;

use bytes::Bytes;
use proto::etcd::range_request::SortTarget;
use proto::etcd::{RangeRequest, RangeResponse, ResponseHeader};
use proto::mvccpb::KeyValue;
use proto::{Error, KeyRange, list};

use crate::engine::EngineError;
use crate::store::counts::Counter;
use crate::store::view::{Found, View};

/// The revision at which a request that names `asked` is to be read (etcd: 0 and below mean
/// the newest; the compacted revision itself is readable).
pub fn resolve(asked: i64, current: i64, compacted: i64) -> Result<i64, Error> {
    if asked > current {
        return Err(Error::FutureRevision);
    }
    let revision = if asked <= 0 { current } else { asked };
    if revision < compacted {
        return Err(Error::Compacted);
    }
    Ok(revision)
}

/// Answers `request` from `view`, which stands at the resolved revision. `revision` is the
/// one for the header: the newest, not the one asked for. Without a `counter` the whole range
/// is walked to be counted.
pub fn range(
    view: &View,
    request: &RangeRequest,
    revision: i64,
    counter: Option<&Counter<'_>>,
) -> Result<RangeResponse, EngineError> {
    let keys = KeyRange::parse(&request.key, &request.range_end);
    let header = Some(ResponseHeader { revision, ..Default::default() });
    let limit = usize::try_from(request.limit).unwrap_or(0);
    // Only the default order can stop early: any other must see all keys first.
    let keep =
        if list::is_natural(request) && limit > 0 { limit.saturating_add(1) } else { usize::MAX };
    // Values may be large and stand elsewhere: read only if somebody wants them.
    let with_values = !request.keys_only || request.sort_target() == SortTarget::Value;
    let kv = |key: Bytes, found: Found| match with_values {
        true => view.kv(key, &found),
        false => Ok(found.with(key, Bytes::new())),
    };

    let mut kvs = Vec::new();
    let mut count = 0i64;
    if request.range_end.is_empty() {
        if let Some(found) = view.get(&request.key)? {
            count = 1;
            if !request.count_only {
                kvs.push(kv(request.key.clone(), found)?);
            }
        }
    } else if let Some(counter) = counter.filter(|_| request.count_only) {
        count = counter.count(view, &keys)?;
    } else {
        let mut failed = None;
        view.scan(&keys, &mut |key, found| {
            count += 1;
            if !request.count_only && kvs.len() < keep {
                match kv(key, found) {
                    Ok(kv) => kvs.push(kv),
                    Err(error) => {
                        failed = Some(error);
                        return ControlFlow::Break(());
                    }
                }
            }
            // What is behind the page is counted without a walk.
            match counter {
                Some(_) if kvs.len() == keep => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some(counter) = counter.filter(|_| kvs.len() == keep) {
            count = counter.count(view, &keys)?;
        }
    }
    if request.count_only {
        return Ok(RangeResponse { header, kvs, more: false, count });
    }
    Ok(RangeResponse { header, ..shape(request, kvs, count) })
}

/// Filters, sorts and cuts the live keys of a range, which stand in order; `count` are there.
pub fn shape(request: &RangeRequest, mut kvs: Vec<KeyValue>, count: i64) -> RangeResponse {
    let limit = usize::try_from(request.limit).unwrap_or(0);
    if list::has_filters(request) {
        kvs.retain(|kv| list::passes(request, kv));
    }
    list::sort(request, &mut kvs);
    let more = limit > 0 && kvs.len() > limit;
    if more {
        kvs.truncate(limit);
    }
    if request.keys_only {
        // etcd 3.7 answers these from its index, which knows no lease either, except when it
        // had to read the values to sort by them.
        let from_index = request.sort_target() != SortTarget::Value;
        for kv in &mut kvs {
            kv.value = Bytes::new();
            if from_index {
                kv.lease = 0;
            }
        }
    }
    RangeResponse { header: None, kvs, more, count }
}
