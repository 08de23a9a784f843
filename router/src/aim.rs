//! Where a request goes: to which of an etcd's groups, or over several of them.
//!
//! What is inside one group goes straight there, and the group answers it by itself. What changes
//! something in several, or names no key, goes to home, which coordinates. What only reads several
//! is put together here (`gather.rs`). An etcd on one group has none of this.
//!
//! Invariant: the answer is always one of the etcd's own groups, whatever keys and ends a request
//! spells: they choose among the etcd's ranges, which hold nobody else's keys.

use proto::{
    KeyRange, VirtualEtcd,
    etcd::{RangeRequest, TxnRequest, request_op::Request as Op},
    group::Request,
    map::Target,
};

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// To one group.
    One(Target),
    /// It reads what may stand in several groups; this is home.
    Several(Target),
}

/// Where `body` goes in `etcd`.
pub(crate) fn aim(etcd: &VirtualEtcd, body: &Request) -> Aim {
    let home = etcd.home();
    if etcd.ranges().len() == 1 {
        return Aim::One(home);
    }
    let one = match body {
        Request::Range(range) => {
            let group = (!is_of_the_past(range)).then(|| inside(etcd, interval(range))).flatten();
            return group.map_or(Aim::Several(home), Aim::One);
        }
        Request::HashKv(_) => return Aim::Several(home),
        Request::LeaseTimeToLive(ask) if ask.keys => return Aim::Several(home),
        Request::Put(put) => Some(etcd.lookup(&put.key)),
        Request::DeleteRange(delete) => {
            inside(etcd, KeyRange::parse(&delete.key, &delete.range_end))
        }
        Request::Txn(txn) => of_txn(etcd, txn),
        _ => None,
    };
    Aim::One(one.unwrap_or(home))
}

/// Is it to be read without a round at a revision that it names? A group's own log does not say how
/// far a revision of the etcd's is behind it: home does.
fn is_of_the_past(range: &RangeRequest) -> bool {
    range.serializable && range.revision > 0
}

fn interval(range: &RangeRequest) -> KeyRange {
    KeyRange::parse(&range.key, &range.range_end)
}

/// The group that has all keys of `range`.
fn inside(etcd: &VirtualEtcd, range: KeyRange) -> Option<Target> {
    let place = etcd.place(&range.start)?;
    range.is_within(&place.range).then_some(place.target)
}

/// The group that has all keys that a transaction names, whichever way it takes.
fn of_txn(etcd: &VirtualEtcd, txn: &TxnRequest) -> Option<Target> {
    let mut found = None;
    let mut agrees = |range| {
        let group = inside(etcd, range);
        let other = group.is_none() || found.is_some_and(|before| Some(before) != group);
        found = group;
        !other
    };
    each_interval(txn, &mut agrees).then_some(found).flatten()
}

/// Calls `seen` with all that a transaction names, nested ones too, until it says no.
fn each_interval(txn: &TxnRequest, seen: &mut dyn FnMut(KeyRange) -> bool) -> bool {
    let compared = txn.compare.iter().map(|it| KeyRange::parse(&it.key, &it.range_end));
    for range in compared {
        if !seen(range) {
            return false;
        }
    }
    txn.success.iter().chain(&txn.failure).all(|op| match &op.request {
        Some(Op::RequestRange(range)) => seen(interval(range)),
        Some(Op::RequestPut(put)) => seen(KeyRange::single(&put.key)),
        Some(Op::RequestDeleteRange(delete)) => {
            seen(KeyRange::parse(&delete.key, &delete.range_end))
        }
        Some(Op::RequestTxn(txn)) => each_interval(txn, seen),
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proto::{
        GroupId, NamespaceId, TenantId,
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

    /// The group, or 0 for several.
    fn group(body: Request) -> u64 {
        let unsplit = VirtualEtcd::unsplit("acme", 9, target(10));
        assert_eq!(aim(&unsplit, &body), Aim::One(target(10)));
        match aim(&split(), &body) {
            Aim::One(target) => target.group.0,
            Aim::Several(home) => home.group.0 - 10,
        }
    }

    fn put(key: &'static str) -> etcd::PutRequest {
        etcd::PutRequest { key: key.into(), ..Default::default() }
    }

    fn get(key: &'static str, range_end: &'static str) -> RangeRequest {
        let (key, range_end) = (key.into(), range_end.into());
        RangeRequest { key, range_end, ..Default::default() }
    }

    fn delete(key: &'static str, range_end: &'static str) -> etcd::DeleteRangeRequest {
        let (key, range_end) = (key.into(), range_end.into());
        etcd::DeleteRangeRequest { key, range_end, ..Default::default() }
    }

    fn op(op: Op) -> etcd::RequestOp {
        etcd::RequestOp { request: Some(op) }
    }

    #[test]
    fn what_is_inside_one_group_goes_there() {
        assert_eq!((group(Request::Put(put("a"))), group(Request::Put(put("z")))), (10, 11));
        let range = |key, end| group(Request::Range(get(key, end)));
        assert_eq!((range("a", ""), range("lz", "m"), range("m", "")), (10, 10, 11));
        assert_eq!((range("m", "\0"), range("n", "z"), range("z", "a")), (11, 11, 11));
        let deletion = |key, end| group(Request::DeleteRange(delete(key, end)));
        assert_eq!((deletion("a", "b"), deletion("m", "\0"), deletion("l", "")), (10, 11, 10));
    }

    #[test]
    fn reads_of_several_groups_are_gathered_and_changes_go_home() {
        let range = |key, end| group(Request::Range(get(key, end)));
        assert_eq!((range("a", "\0"), range("\0", "\0"), range("l", "m\0")), (0, 0, 0));
        let old = RangeRequest { serializable: true, revision: 3, ..get("z", "") };
        assert_eq!(group(Request::Range(old)), 0);
        assert_eq!(group(Request::HashKv(etcd::HashKvRequest::default())), 0);
        let lease = |keys| etcd::LeaseTimeToLiveRequest { id: 1, keys };
        assert_eq!(group(Request::LeaseTimeToLive(lease(true))), 0);
        assert_eq!(group(Request::LeaseTimeToLive(lease(false))), 10);
        let deletion = |key, end| group(Request::DeleteRange(delete(key, end)));
        assert_eq!((deletion("a", "z"), deletion("n", "\0")), (10, 11));
    }

    #[test]
    fn a_transaction_goes_to_the_group_that_has_all_its_keys_or_home() {
        let txn = |compare: &[Compare], success: &[Op], failure: &[Op]| TxnRequest {
            compare: compare.to_vec(),
            success: success.iter().cloned().map(op).collect(),
            failure: failure.iter().cloned().map(op).collect(),
        };
        let of = |request: TxnRequest| group(Request::Txn(request));
        let compare = |key: &'static str, range_end: &'static str| Compare {
            key: key.into(),
            range_end: range_end.into(),
            ..Default::default()
        };
        let (low, high) = (Op::RequestPut(put("a")), Op::RequestPut(put("z")));
        let high = std::slice::from_ref(&high);
        assert_eq!(of(txn(&[compare("x", "")], high, high)), 11);
        assert_eq!(of(txn(&[compare("x", "\0")], high, &[])), 11);
        assert_eq!(of(txn(&[compare("a", "")], high, &[])), 10);
        assert_eq!(of(txn(&[compare("a", "z")], &[], &[])), 10);
        assert_eq!(of(txn(&[], high, std::slice::from_ref(&low))), 10);
        let list = Op::RequestRange(get("n", "\0"));
        assert_eq!(of(txn(&[], &[list], high)), 11);
        let wide = Op::RequestDeleteRange(delete("l", "n"));
        assert_eq!(of(txn(&[], &[wide], high)), 10);
        let nested = |inner| Op::RequestTxn(txn(&[], &[], &[inner]));
        assert_eq!(of(txn(&[], &[nested(high[0].clone())], high)), 11);
        assert_eq!(of(txn(&[], high, &[nested(low)])), 10);
    }

    #[test]
    fn what_names_no_key_goes_home() {
        assert_eq!(group(Request::Describe(DescribeRequest {})), 10);
        assert_eq!(group(Request::Txn(TxnRequest::default())), 10);
        let grant = etcd::LeaseGrantRequest { ttl: 1, id: 11 };
        assert_eq!(group(Request::LeaseGrant(grant)), 10);
    }
}
