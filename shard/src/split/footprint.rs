//! What a request touches: which keys it reads and writes, which leases it names. Two requests
//! whose footprints collide have an order; all others do not care about each other. Pure.

use bytes::Bytes;
use proto::KeyRange;
use proto::etcd::request_op::Request as Op;
use proto::etcd::{Compare, RequestOp, TxnRequest};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Keys whose newest versions decide or are answered.
    pub reads: Vec<KeyRange>,
    /// Keys that may change.
    pub writes: Vec<KeyRange>,
    /// Keys that are read at a revision that the request names.
    pub past: Vec<(KeyRange, i64)>,
    /// Leases that keys may be attached to, or that are revoked.
    pub leases: Vec<i64>,
    /// Whether it changes anything, or can be carried out at all, depends on what is there.
    pub conditional: bool,
}

fn any_overlap(a: &[KeyRange], b: &[KeyRange]) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.overlaps(y)))
}

impl Footprint {
    /// The footprint of a transaction: both its branches, nested ones too.
    pub fn of(txn: &TxnRequest) -> Footprint {
        let mut footprint = Footprint::default();
        footprint.conditional = !footprint.add(txn);
        footprint
    }

    /// Keys and leases that are named outright, for a latch without a transaction.
    pub fn of_lease(lease: i64) -> Footprint {
        Footprint { leases: vec![lease], conditional: true, ..Footprint::default() }
    }

    /// Adds a transaction; says whether it changes something whatever is there.
    fn add(&mut self, txn: &TxnRequest) -> bool {
        for compare in &txn.compare {
            self.reads.push(keys_of(compare));
        }
        let success = self.add_ops(&txn.success);
        self.add_ops(&txn.failure);
        success && txn.compare.is_empty()
    }

    fn add_ops(&mut self, ops: &[RequestOp]) -> bool {
        let (mut always, mut may_fail) = (false, false);
        for op in ops {
            match &op.request {
                Some(Op::RequestRange(range)) => {
                    let keys = KeyRange::parse(&range.key, &range.range_end);
                    if range.revision > 0 {
                        self.past.push((keys, range.revision));
                        may_fail = true;
                    } else {
                        self.reads.push(keys);
                    }
                }
                Some(Op::RequestPut(put)) => {
                    self.writes.push(KeyRange::single(&put.key));
                    if put.lease != 0 {
                        self.leases.push(put.lease);
                    }
                    may_fail |= put.ignore_value || put.ignore_lease;
                    always = true;
                }
                Some(Op::RequestDeleteRange(delete)) => {
                    self.writes.push(KeyRange::parse(&delete.key, &delete.range_end));
                }
                Some(Op::RequestTxn(nested)) => {
                    let changes = self.add(nested);
                    always |= changes;
                    may_fail |= !changes;
                }
                None => {}
            }
        }
        always && !may_fail
    }

    /// The part of it inside `range`; leases stay.
    pub fn within(&self, range: &KeyRange) -> Footprint {
        let cut = |keys: &[KeyRange]| keys.iter().filter_map(|k| k.common(range)).collect();
        let past = self.past.iter().filter_map(|(k, at)| Some((k.common(range)?, *at))).collect();
        Footprint {
            reads: cut(&self.reads),
            writes: cut(&self.writes),
            past,
            leases: self.leases.clone(),
            conditional: self.conditional,
        }
    }

    /// Does it name keys inside `range`?
    pub fn touches(&self, range: &KeyRange) -> bool {
        let past = self.past.iter().map(|(keys, _)| keys);
        self.reads.iter().chain(&self.writes).chain(past).any(|keys| keys.overlaps(range))
    }

    /// May one of the two change what the other reads or changes?
    pub fn collides(&self, other: &Footprint) -> bool {
        any_overlap(&self.writes, &other.writes)
            || any_overlap(&self.writes, &other.reads)
            || any_overlap(&self.reads, &other.writes)
    }

    /// Do both name one lease?
    pub fn shares_lease(&self, other: &Footprint) -> bool {
        self.leases.iter().any(|lease| other.leases.contains(lease))
    }

    /// Covers these keys as well, as if it changed them.
    pub fn cover(&mut self, keys: impl IntoIterator<Item = Bytes>) {
        self.writes.extend(keys.into_iter().map(|key| KeyRange::single(&key)));
    }
}

fn keys_of(compare: &Compare) -> KeyRange {
    KeyRange::parse(&compare.key, &compare.range_end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::etcd::{DeleteRangeRequest, PutRequest, RangeRequest};

    fn put(key: &'static str) -> RequestOp {
        let put = PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
        RequestOp { request: Some(Op::RequestPut(put)) }
    }

    fn delete(key: &'static str, end: &'static str) -> RequestOp {
        let (key, range_end) = (key.into(), end.into());
        let delete = DeleteRangeRequest { key, range_end, ..Default::default() };
        RequestOp { request: Some(Op::RequestDeleteRange(delete)) }
    }

    fn txn(success: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { success, ..Default::default() }
    }

    #[test]
    fn only_what_always_changes_something_is_unconditional() {
        assert!(!Footprint::of(&txn(vec![put("a")])).conditional);
        assert!(!Footprint::of(&txn(vec![put("a"), delete("b", "")])).conditional);
        assert!(Footprint::of(&txn(vec![delete("b", "")])).conditional);
        assert!(Footprint::of(&txn(Vec::new())).conditional);
        let nested = RequestOp { request: Some(Op::RequestTxn(txn(vec![delete("b", "")]))) };
        assert!(Footprint::of(&txn(vec![put("a"), nested])).conditional);
        let compare = Compare { key: "a".into(), ..Default::default() };
        let guarded = TxnRequest { compare: vec![compare], ..txn(vec![put("a")]) };
        assert!(Footprint::of(&guarded).conditional);
        let past = RangeRequest { key: "a".into(), revision: 3, ..Default::default() };
        let past = RequestOp { request: Some(Op::RequestRange(past)) };
        assert!(Footprint::of(&txn(vec![put("a"), past])).conditional);
    }

    #[test]
    fn readers_do_not_collide_writers_do() {
        let read = Footprint { reads: vec![KeyRange::single(&"b".into())], ..Default::default() };
        assert!(!read.collides(&read));
        let writes = Footprint::of(&txn(vec![delete("a", "c")]));
        assert!(read.collides(&writes) && writes.collides(&read) && writes.collides(&writes));
        let apart = Footprint::of(&txn(vec![put("c")]));
        assert!(!writes.collides(&apart));
    }

    #[test]
    fn it_is_cut_at_a_shards_ends() {
        let all = Footprint::of(&txn(vec![delete("a", "z"), put("k")]));
        let left = KeyRange { start: Bytes::new(), end: Some("k".into()) };
        let part = all.within(&left);
        assert_eq!(part.writes, vec![KeyRange { start: "a".into(), end: Some("k".into()) }]);
        assert!(all.touches(&left) && !part.touches(&KeyRange::single(&"k".into())));
    }
}
