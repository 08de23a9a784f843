//! Order and filters of a list, as a `RangeRequest` asks for them (etcd:
//! `server/etcdserver/txn/range.go`). Pure: used by the group that reads the rows and by the router
//! that puts the lists of several groups together.

use std::cmp::Ordering;

use crate::etcd::RangeRequest;
use crate::etcd::range_request::{SortOrder, SortTarget};
use crate::mvccpb::KeyValue;

/// Is the list in the order of its keys, with nothing left out? Only then its first part is known
/// before the rest.
pub fn is_natural(request: &RangeRequest) -> bool {
    request.sort_target() == SortTarget::Key
        && request.sort_order() != SortOrder::Descend
        && !has_filters(request)
}

/// May keys be left out by their revisions?
pub fn has_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Do a key's revisions lie within the bounds? 0 is no bound.
pub fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let inside =
        |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    inside(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && inside(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Sorts what stands in the order of its keys. Among equals the lower key stands first, also when
/// descending; without an order, a target other than the key means ascending by it.
pub fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let target = request.sort_target();
    let compare = |a: &KeyValue, b: &KeyValue| -> Ordering {
        match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    match (request.sort_order(), target) {
        (SortOrder::Descend, _) => kvs.sort_by(|a, b| compare(b, a)),
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => {}
        (SortOrder::None | SortOrder::Ascend, _) => kvs.sort_by(compare),
    }
}
