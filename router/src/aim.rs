//! Where a request goes: which of an etcd's groups answers a body.
//!
//! Invariant: the answer is always one of the etcd's own groups. Which one is decided by the
//! first key that the body names; `range_end` has no say, so that no spelling of an end can
//! lead to a group that holds somebody else's keys.

use proto::{
    VirtualEtcd,
    etcd::{RequestOp, TxnRequest, request_op::Request as Op},
    group::Request,
    map::Target,
};

/// The group of `etcd` that answers `body`: the one that has its first key, and the home group
/// for what names no key.
pub(crate) fn aim(etcd: &VirtualEtcd, body: &Request) -> Target {
    let key: Option<&[u8]> = match body {
        Request::Range(request) => Some(&request.key),
        Request::Put(request) => Some(&request.key),
        Request::DeleteRange(request) => Some(&request.key),
        Request::Txn(request) => first_key(request),
        _ => None,
    };
    key.map_or(etcd.home(), |key| etcd.lookup(key))
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proto::{
        GroupId, KeyRange, NamespaceId, TenantId,
        cluster::group::DescribeRequest,
        etcd::{self, Compare},
        map::RangePlacement,
    };

    fn target(group: u64) -> Target {
        let (tenant, namespace) = (TenantId(7), NamespaceId(1));
        Target { tenant, namespace, group: GroupId(group), range_version: 1 }
    }

    /// Two groups: 10, the home, has what is below `m`.
    fn split() -> VirtualEtcd {
        let m = Bytes::from_static(b"m");
        let low = KeyRange { start: Bytes::new(), end: Some(m.clone()) };
        let places = vec![
            RangePlacement { range: low, target: target(10) },
            RangePlacement { range: KeyRange { start: m, end: None }, target: target(11) },
        ];
        VirtualEtcd::unsplit("acme", 9, target(10)).with_ranges(places).expect("tiles all keys")
    }

    fn group(body: Request) -> u64 {
        aim(&split(), &body).group.0
    }

    fn put(key: &'static str) -> etcd::PutRequest {
        etcd::PutRequest { key: key.into(), ..Default::default() }
    }

    #[test]
    fn a_body_goes_to_the_group_of_its_first_key() {
        assert_eq!(group(Request::Put(put("a"))), 10);
        assert_eq!(group(Request::Put(put("z"))), 11);
        let range = |key: &'static str, range_end: &'static str| {
            let (key, range_end) = (key.into(), range_end.into());
            Request::Range(etcd::RangeRequest { key, range_end, ..Default::default() })
        };
        assert_eq!((group(range("a", "\0")), group(range("z", "a"))), (10, 11));
        assert_eq!(group(range("\0", "\0")), 10);
        let compare = Compare { key: "z".into(), ..Default::default() };
        let op = || etcd::RequestOp { request: Some(Op::RequestPut(put("a"))) };
        let txn = etcd::TxnRequest { success: vec![op()], ..Default::default() };
        assert_eq!(group(Request::Txn(txn.clone())), 10);
        let txn = etcd::TxnRequest { compare: vec![compare], ..txn };
        assert_eq!(group(Request::Txn(txn.clone())), 11);
        let nested = etcd::RequestOp { request: Some(Op::RequestTxn(txn)) };
        let txn = etcd::TxnRequest { failure: vec![nested], ..Default::default() };
        assert_eq!(group(Request::Txn(txn)), 11);
    }

    #[test]
    fn what_names_no_key_goes_home() {
        assert_eq!(group(Request::Describe(DescribeRequest {})), 10);
        assert_eq!(group(Request::Txn(etcd::TxnRequest::default())), 10);
        let grant = etcd::LeaseGrantRequest { ttl: 1, id: 11 };
        assert_eq!(group(Request::LeaseGrant(grant)), 10);
    }
}
