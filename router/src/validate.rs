//! etcd's request checks: what is refused before anybody is asked. Pure.
//!
//! The order of checks is etcd's, because a request with two faults must get the same error:
//! key before sort option; value before lease; the number of operations before their
//! contents; contents of both branches before duplicate keys.
//!
//! **Duplicate keys.** No key may be put twice, nor put and deleted, by one pass through a
//! transaction. Judged are the success and the failure branch of the outermost transaction,
//! each for itself; inside a branch, both branches of a nested transaction count, except that
//! its two branches may put the same key, of which only one will run. Deletes of one level
//! are compared with all puts below it; deletes of a nested transaction with what stands
//! *after* it in the same list (etcd looks in this order, and so a nested put that stands
//! before a nested delete of the same key passes).
//!
//! Invariants: no recursion deeper than [`limits::MAX_TXN_DEPTH`]; work grows as n log n with
//! the number of operations, whatever they are (one message can carry a hundred thousand).

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use proto::{
    Error,
    etcd::{
        DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        range_request::{SortOrder, SortTarget},
        request_op::Request as Op,
    },
    limits,
};
use tonic::Status;

/// Checks a range.
pub(crate) fn range(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Error::InvalidSortOption) }
}

/// Checks a range that is to be answered in chunks. etcd 3.7 sends the last two texts without
/// its usual prefix.
pub(crate) fn range_stream(request: &RangeRequest) -> Result<(), Status> {
    range(request)?;
    let by_key = request.sort_target() == SortTarget::Key;
    let natural = match request.sort_order() {
        SortOrder::None => true,
        SortOrder::Ascend => by_key,
        SortOrder::Descend => false,
    };
    if !natural {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters.iter().any(|filter| *filter != 0) {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

/// Checks a put.
pub(crate) fn put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete.
pub(crate) fn delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Checks the size of a request that would be logged.
pub(crate) fn size(message_bytes: usize, max_request_bytes: usize) -> Result<(), Error> {
    if message_bytes > max_request_bytes { Err(Error::RequestTooLarge) } else { Ok(()) }
}

/// Checks a transaction with all it contains.
pub(crate) fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    contents(request, max_ops, limits::MAX_TXN_DEPTH)?;
    duplicates(&request.success)?;
    duplicates(&request.failure)
}

/// Does a transaction only read? Nested ones count as writing, as in etcd.
pub(crate) fn reads_only(request: &TxnRequest) -> bool {
    let range = |op: &RequestOp| matches!(op.request, Some(Op::RequestRange(_)));
    request.success.iter().all(range) && request.failure.iter().all(range)
}

fn contents(request: &TxnRequest, max_ops: usize, depth: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    // The budget shrinks with each level that holds anything, so depth is hardly ever reached.
    let Some(budget) = max_ops.checked_sub(ops) else { return Err(Error::TooManyOps) };
    let Some(depth) = depth.checked_sub(1) else { return Err(Error::TooManyOps) };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Op::RequestRange(request)) => range(request)?,
            Some(Op::RequestPut(request)) => put(request)?,
            Some(Op::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Op::RequestTxn(request)) => contents(request, budget, depth)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// Checks one outermost branch. The usual branch of a single operation is decided at once.
fn duplicates(branch: &[RequestOp]) -> Result<(), Error> {
    if let [] | [RequestOp { request: Some(Op::RequestPut(_) | Op::RequestRange(_)) }] = branch {
        return Ok(());
    }
    touched(branch).map(|_| ())
}

/// What one list of operations would put and delete.
#[derive(Default)]
struct Touched<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Intervals<'a>,
}

// === impl Touched ===

impl<'a> Touched<'a> {
    /// Notes a put that must be the only change of its key.
    fn put(&mut self, key: &'a [u8]) -> Result<(), Error> {
        if !self.puts.insert(key) || self.deletes.contains(key) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }

    /// Takes in what the two branches of a nested transaction touch.
    fn nested(&mut self, request: &'a TxnRequest) -> Result<(), Error> {
        let then = touched(&request.success)?;
        let otherwise = touched(&request.failure)?;
        for key in &otherwise.puts {
            if !then.puts.contains(key) {
                self.put(key)?;
            }
        }
        for key in &then.puts {
            self.put(key)?;
        }
        self.deletes.join(then.deletes);
        self.deletes.join(otherwise.deletes);
        Ok(())
    }
}

fn touched(ops: &[RequestOp]) -> Result<Touched<'_>, Error> {
    let mut touched = Touched::default();
    for op in ops {
        if let Some(Op::RequestDeleteRange(request)) = &op.request {
            touched.deletes.insert(&request.key, &request.range_end);
        }
    }
    for op in ops {
        if let Some(Op::RequestTxn(request)) = &op.request {
            touched.nested(request)?;
        }
    }
    for op in ops {
        if let Some(Op::RequestPut(request)) = &op.request {
            touched.put(&request.key)?;
        }
    }
    Ok(touched)
}

/// A union of key intervals: start -> end, none touching another.
///
/// Ends are taken as etcd's check takes them: an end that is not above its start, the end of a
/// single zero byte among them, covers nothing.
#[derive(Default)]
struct Intervals<'a> {
    keys: HashSet<&'a [u8]>,
    ranges: BTreeMap<&'a [u8], &'a [u8]>,
}

// === impl Intervals ===

impl<'a> Intervals<'a> {
    fn insert(&mut self, key: &'a Bytes, range_end: &'a Bytes) {
        if range_end.is_empty() {
            self.keys.insert(key);
        } else if range_end > key {
            self.insert_range(key, range_end);
        }
    }

    fn insert_range(&mut self, mut start: &'a [u8], mut end: &'a [u8]) {
        // What begins at or before the new end and ends at or behind the new start is joined.
        while let Some((&old_start, &old_end)) = self.ranges.range(..=end).next_back() {
            if old_end < start {
                break;
            }
            self.ranges.remove(old_start);
            start = start.min(old_start);
            end = end.max(old_end);
        }
        self.ranges.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        let below = self.ranges.range(..=key).next_back();
        self.keys.contains(key) || below.is_some_and(|(_, end)| key < *end)
    }

    fn join(&mut self, mut other: Intervals<'a>) {
        if other.keys.len() + other.ranges.len() > self.keys.len() + self.ranges.len() {
            std::mem::swap(self, &mut other);
        }
        self.keys.extend(other.keys);
        for (start, end) in other.ranges {
            self.insert_range(start, end);
        }
    }
}

#[cfg(test)]
mod tests;
