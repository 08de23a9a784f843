//! What is refused, with which error, and what passes.

use super::*;
use proto::etcd::Compare;

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put_op(key: &str) -> RequestOp {
    op(Op::RequestPut(PutRequest { key: b(key), ..Default::default() }))
}

fn get_op(key: &str) -> RequestOp {
    op(Op::RequestRange(RangeRequest { key: b(key), ..Default::default() }))
}

fn del_op(key: &str, end: &str) -> RequestOp {
    op(Op::RequestDeleteRange(DeleteRangeRequest {
        key: b(key),
        range_end: b(end),
        ..Default::default()
    }))
}

fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    op(Op::RequestTxn(TxnRequest { compare: vec![], success, failure }))
}

fn branches(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> Result<(), Error> {
    txn(&TxnRequest { compare: vec![], success, failure }, 128)
}

fn success(ops: Vec<RequestOp>) -> Result<(), Error> {
    branches(ops, vec![])
}

#[test]
fn a_range_needs_a_key_before_all_else() {
    let request = RangeRequest { sort_order: 9, ..Default::default() };
    assert_eq!(range(&request), Err(Error::EmptyKey));
}

#[test]
fn unknown_sort_words_are_refused() {
    let order = RangeRequest { key: b("a"), sort_order: 3, ..Default::default() };
    let target = RangeRequest { key: b("a"), sort_target: 5, ..Default::default() };
    let negative = RangeRequest { key: b("a"), sort_target: -1, ..Default::default() };
    for request in [order, target, negative] {
        assert_eq!(range(&request), Err(Error::InvalidSortOption));
    }
    let known = RangeRequest { key: b("a"), sort_order: 2, sort_target: 4, ..Default::default() };
    assert_eq!(range(&known), Ok(()));
}

#[test]
fn a_reversed_range_is_not_an_error() {
    let request = RangeRequest { key: b("b"), range_end: b("a"), ..Default::default() };
    assert_eq!(range(&request), Ok(()));
}

#[test]
fn a_streamed_range_is_checked_as_a_range_first() {
    let status = range_stream(&RangeRequest { sort_order: 2, ..Default::default() }).unwrap_err();
    assert_eq!(status.message(), "etcdserver: key is not provided");
}

#[test]
fn a_streamed_range_takes_no_other_order() {
    let text = "RangeStream does not support custom sort orders";
    for (sort_order, sort_target) in [(2, 0), (1, 4), (2, 3), (1, 1)] {
        let request = RangeRequest { key: b("a"), sort_order, sort_target, ..Default::default() };
        let status = range_stream(&request).unwrap_err();
        assert_eq!((status.code(), status.message()), (tonic::Code::Unimplemented, text));
    }
    for (sort_order, sort_target) in [(0, 0), (1, 0), (0, 4)] {
        let request = RangeRequest { key: b("a"), sort_order, sort_target, ..Default::default() };
        assert!(range_stream(&request).is_ok());
    }
}

#[test]
fn a_streamed_range_takes_no_revision_filter() {
    let request = RangeRequest { key: b("a"), max_create_revision: 1, ..Default::default() };
    let status = range_stream(&request).unwrap_err();
    assert_eq!(status.message(), "RangeStream does not support revision filters");
}

#[test]
fn a_put_checks_key_then_value_then_lease() {
    let mut request = PutRequest {
        value: b("v"),
        lease: 1,
        ignore_value: true,
        ignore_lease: true,
        ..Default::default()
    };
    assert_eq!(put(&request), Err(Error::EmptyKey));
    request.key = b("a");
    assert_eq!(put(&request), Err(Error::ValueProvided));
    request.value = b("");
    assert_eq!(put(&request), Err(Error::LeaseProvided));
    request.lease = 0;
    assert_eq!(put(&request), Ok(()));
}

#[test]
fn a_delete_needs_a_key() {
    assert_eq!(delete_range(&DeleteRangeRequest::default()), Err(Error::EmptyKey));
}

#[test]
fn a_request_may_have_exactly_the_limits_size() {
    assert_eq!(size(1_572_864, 1_572_864), Ok(()));
    assert_eq!(size(1_572_865, 1_572_864), Err(Error::RequestTooLarge));
}

#[test]
fn an_empty_transaction_passes() {
    assert_eq!(success(vec![]), Ok(()));
}

#[test]
fn each_list_may_be_full_but_none_fuller() {
    let gets = |n| (0..n).map(|_| get_op("a")).collect::<Vec<_>>();
    let compare = |n| vec![Compare { key: b("a"), ..Default::default() }; n];
    let check =
        |c, s, f| txn(&TxnRequest { compare: compare(c), success: gets(s), failure: gets(f) }, 128);
    assert_eq!(check(128, 128, 128), Ok(()));
    for (c, s, f) in [(129, 0, 0), (0, 129, 0), (0, 0, 129)] {
        assert_eq!(check(c, s, f), Err(Error::TooManyOps));
    }
}

#[test]
fn a_nested_transaction_has_what_its_parent_left() {
    let nested = |n| txn_op((0..n).map(|_| get_op("a")).collect(), vec![]);
    let check = |inner| {
        txn(&TxnRequest { success: vec![nested(inner), get_op("b")], ..Default::default() }, 5)
    };
    assert_eq!(check(3), Ok(()));
    assert_eq!(check(4), Err(Error::TooManyOps));
}

#[test]
fn too_many_operations_are_seen_before_their_contents() {
    let ops = (0..129).map(|_| put_op("")).collect();
    assert_eq!(success(ops), Err(Error::TooManyOps));
}

#[test]
fn a_compare_needs_a_key() {
    let request = TxnRequest {
        compare: vec![Compare::default()],
        success: vec![RequestOp { request: None }],
        failure: vec![],
    };
    assert_eq!(txn(&request, 128), Err(Error::EmptyKey));
}

#[test]
fn an_operation_without_contents_is_key_not_found() {
    assert_eq!(success(vec![RequestOp { request: None }]), Err(Error::KeyNotFound));
    assert_eq!(branches(vec![], vec![RequestOp { request: None }]), Err(Error::KeyNotFound));
}

#[test]
fn operations_are_checked_at_every_depth() {
    assert_eq!(success(vec![txn_op(vec![], vec![put_op("")])]), Err(Error::EmptyKey));
}

#[test]
fn contents_are_judged_before_duplicates() {
    assert_eq!(branches(vec![put_op("a"), put_op("a")], vec![get_op("")]), Err(Error::EmptyKey));
}

#[test]
fn transactions_nested_beyond_the_bound_are_refused() {
    let mut innermost = txn_op(vec![], vec![]);
    for _ in 0..limits::MAX_TXN_DEPTH {
        innermost = txn_op(vec![innermost], vec![]);
    }
    assert_eq!(success(vec![innermost]), Err(Error::TooManyOps));
}

#[test]
fn a_key_is_put_once() {
    assert_eq!(success(vec![put_op("a"), put_op("a")]), Err(Error::DuplicateKey));
    assert_eq!(success(vec![put_op("a"), put_op("b")]), Ok(()));
}

#[test]
fn the_failure_branch_is_judged_as_well() {
    assert_eq!(branches(vec![], vec![put_op("a"), put_op("a")]), Err(Error::DuplicateKey));
}

#[test]
fn both_outer_branches_may_put_the_same_key() {
    assert_eq!(branches(vec![put_op("a")], vec![put_op("a")]), Ok(()));
}

#[test]
fn a_put_inside_a_deleted_range_is_refused_in_either_order() {
    assert_eq!(success(vec![put_op("b"), del_op("a", "c")]), Err(Error::DuplicateKey));
    assert_eq!(success(vec![del_op("a", "c"), put_op("b")]), Err(Error::DuplicateKey));
    assert_eq!(success(vec![del_op("a", ""), put_op("a")]), Err(Error::DuplicateKey));
}

#[test]
fn a_put_at_the_end_of_a_deleted_range_passes() {
    assert_eq!(success(vec![del_op("a", "c"), put_op("c")]), Ok(()));
    assert_eq!(success(vec![del_op("a", ""), put_op("a\0")]), Ok(()));
}

#[test]
fn deletes_may_overlap() {
    assert_eq!(success(vec![del_op("a", "c"), del_op("b", "d"), del_op("a", "")]), Ok(()));
}

#[test]
fn a_nested_put_may_not_meet_a_put_or_delete_above_it() {
    assert_eq!(
        success(vec![put_op("a"), txn_op(vec![put_op("a")], vec![])]),
        Err(Error::DuplicateKey)
    );
    assert_eq!(
        success(vec![del_op("a", "b"), txn_op(vec![], vec![put_op("a")])]),
        Err(Error::DuplicateKey)
    );
}

#[test]
fn a_nested_delete_may_not_meet_a_put_above_it() {
    assert_eq!(
        success(vec![put_op("a"), txn_op(vec![del_op("a", "b")], vec![])]),
        Err(Error::DuplicateKey)
    );
}

#[test]
fn both_branches_of_a_nested_transaction_may_put_the_same_key() {
    assert_eq!(success(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
    let twice = vec![txn_op(vec![put_op("a")], vec![put_op("a")]), put_op("a")];
    assert_eq!(success(twice), Err(Error::DuplicateKey));
}

#[test]
fn sibling_transactions_may_not_put_the_same_key() {
    let siblings = vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])];
    assert_eq!(success(siblings), Err(Error::DuplicateKey));
}

#[test]
fn a_sibling_may_not_put_what_an_earlier_one_deletes() {
    let deletes = || txn_op(vec![del_op("a", "c")], vec![]);
    let puts = || txn_op(vec![put_op("b")], vec![]);
    assert_eq!(success(vec![deletes(), puts()]), Err(Error::DuplicateKey));
    assert_eq!(success(vec![puts(), deletes()]), Ok(()));
}

#[test]
fn an_open_ended_delete_covers_nothing_in_this_check() {
    assert_eq!(success(vec![del_op("b", "\0"), put_op("b")]), Ok(()));
    assert_eq!(success(vec![del_op("b", "b"), put_op("b")]), Ok(()));
    assert_eq!(success(vec![del_op("b", ""), put_op("b")]), Err(Error::DuplicateKey));
    assert_eq!(success(vec![del_op("b", "\0"), put_op("c")]), Ok(()));
}

#[test]
fn joined_intervals_answer_like_a_list_of_intervals() {
    let keys: Vec<Bytes> = (0..40u8).map(|n| Bytes::from(vec![n])).collect();
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as usize % keys.len()
    };
    for _ in 0..300 {
        let pairs: Vec<(usize, usize)> = (0..6).map(|_| (random(), random())).collect();
        let mut union = Intervals::default();
        for (start, end) in &pairs {
            union.insert(&keys[*start], &keys[*end]);
        }
        for (at, key) in keys.iter().enumerate() {
            let simple = pairs.iter().any(|(start, end)| at >= *start && at < *end);
            assert_eq!(union.contains(key), simple, "{pairs:?} at {at}");
        }
    }
}

#[test]
fn a_transaction_reads_only_when_all_its_operations_are_ranges() {
    let of = |success, failure| reads_only(&TxnRequest { compare: vec![], success, failure });
    assert!(of(vec![], vec![]));
    assert!(of(vec![get_op("a")], vec![get_op("b")]));
    assert!(!of(vec![get_op("a")], vec![put_op("b")]));
    assert!(!of(vec![txn_op(vec![get_op("a")], vec![])], vec![]));
}
