//! Single requests: mostly sound, sometimes odd, now and then wrong.

use bytes::Bytes;
use proto::etcd;
use proto::etcd::compare::TargetUnion;
use proto::etcd::request_op::Request;

use super::{ALL, Author, NO_LEASE};
use crate::differential::op::{compacted, rev};

/// How deep transactions are nested at most.
const DEPTH_MAX: u64 = 4;
/// etcd's limit of operations, which a crowded transaction meets or passes by one.
const OPS_MAX: u64 = 128;

impl Author {
    pub(super) fn key(&mut self) -> Bytes {
        match self.dice.below(60) {
            0 => Bytes::new(),
            1 => ALL.into(),
            2 => Bytes::from_static(b"elsewhere"),
            _ => self.dice.pick(&self.keys).clone(),
        }
    }

    pub(super) fn value(&mut self) -> Bytes {
        match self.dice.below(40) {
            0 => Bytes::from(vec![b'm'; 300]),
            1 => Bytes::from_static(b"\0\xff\xfe"),
            2..6 => Bytes::new(),
            _ => Bytes::from_static(self.dice.pick::<&[u8]>(&[b"1", b"2", b"3", b"9", b"a", b"b"])),
        }
    }

    /// Returns a range: a key and where it ends.
    fn interval(&mut self) -> (Bytes, Bytes) {
        let (one, other) = (self.key(), self.key());
        let (low, high) = if one <= other { (one, other) } else { (other, one) };
        match self.dice.below(100) {
            0..34 => (low, Bytes::new()),
            34..54 => (low, high),
            54..72 => (self.prefix.clone().into(), after(&self.prefix)),
            72..80 => (low, ALL.into()),
            80..88 => (ALL.into(), ALL.into()),
            88..92 => (high, low),
            92..94 => (low.clone(), low),
            94..96 => (Bytes::new(), high),
            96 => (ALL.into(), high),
            97 => (low, Bytes::from_static(b"\0\0")),
            _ => (low.clone(), Bytes::from([low.as_ref(), b"\0"].concat())),
        }
    }

    /// Returns a revision of the past, compacted perhaps.
    pub(super) fn old_revision(&mut self) -> i64 {
        let near = self.dice.within(-2, 3);
        match self.dice.below(3) {
            0 => rev(-self.dice.within(0, 7)),
            _ => compacted(near),
        }
    }

    fn read_revision(&mut self) -> i64 {
        match self.dice.below(40) {
            0..8 => rev(-self.dice.within(0, 6)),
            8 | 9 => self.old_revision(),
            10 => rev(self.dice.within(1, 2)),
            11 => *self.dice.pick(&[1, -1, i64::MAX, i64::MIN]),
            _ => 0,
        }
    }

    fn bound(&mut self) -> i64 {
        if self.dice.chance(92) {
            return 0;
        }
        match self.dice.below(6) {
            0 => *self.dice.pick(&[1, -1, i64::MAX]),
            _ => rev(-self.dice.within(0, 5)),
        }
    }

    pub(super) fn range_request(&mut self) -> etcd::RangeRequest {
        let (key, range_end) = self.interval();
        let limit = match self.dice.below(20) {
            0..12 => 0,
            12..18 => self.dice.within(1, 4),
            _ => *self.dice.pick(&[-1, 1000, i64::MAX, i64::MIN]),
        };
        let sorted = self.dice.chance(35);
        let order = |dice: &mut super::Dice, most: i64| match dice.one_in(60) {
            true => *dice.pick(&[-1, 9]),
            false if sorted => dice.within(0, most) as i32,
            false => 0,
        };
        etcd::RangeRequest {
            key,
            range_end,
            limit,
            revision: self.read_revision(),
            sort_order: order(&mut self.dice, 2),
            sort_target: order(&mut self.dice, 4),
            serializable: self.dice.chance(20),
            keys_only: self.dice.chance(12),
            count_only: self.dice.chance(10),
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    pub(super) fn put_request(&mut self) -> etcd::PutRequest {
        let lease = match self.dice.below(20) {
            0..4 if !self.leases.is_empty() => self.some_lease(),
            0 => NO_LEASE,
            _ => 0,
        };
        let ignore_value = self.dice.one_in(14);
        let ignore_lease = self.dice.one_in(14);
        // Together with what it ignores a put is refused; let that be the rare case.
        let keep = self.dice.one_in(5);
        let value = self.value();
        etcd::PutRequest {
            key: self.key(),
            value: if ignore_value && !keep { Bytes::new() } else { value },
            lease: if ignore_lease && !keep { 0 } else { lease },
            prev_kv: self.dice.chance(30),
            ignore_value,
            ignore_lease,
        }
    }

    pub(super) fn delete_range_request(&mut self) -> etcd::DeleteRangeRequest {
        let (key, range_end) = self.interval();
        etcd::DeleteRangeRequest { key, range_end, prev_kv: self.dice.chance(40) }
    }

    pub(super) fn txn_request(&mut self) -> etcd::TxnRequest {
        let depth = 1 + self.dice.below(DEPTH_MAX);
        // Keys still to be put, so that most transactions put no key twice.
        let mut free = self.keys.clone();
        let mut txn = self.nested_txn(depth, &mut free);
        if deletes_from_key(&txn) {
            ignore_nothing(&mut txn);
        }
        txn
    }

    fn nested_txn(&mut self, depth: u64, free: &mut Vec<Bytes>) -> etcd::TxnRequest {
        let compares = self.dice.weighted(&[(4, 0), (8, 1), (3, 2), (1, 3)]);
        let compare = (0..compares).map(|_| self.compare()).collect();
        // What one branch puts the other may put as well.
        let mut other_free = free.clone();
        let success = self.branch(depth, free);
        let failure = self.branch(depth, &mut other_free);
        free.retain(|key| other_free.contains(key));
        etcd::TxnRequest { compare, success, failure }
    }

    fn branch(&mut self, depth: u64, free: &mut Vec<Bytes>) -> Vec<etcd::RequestOp> {
        let count = self.dice.weighted(&[(3, 0), (6, 1), (4, 2), (2, 3), (1, 5)]);
        (0..count).map(|_| self.request_op(depth, free)).collect()
    }

    fn request_op(&mut self, depth: u64, free: &mut Vec<Bytes>) -> etcd::RequestOp {
        let request = match self.dice.below(100) {
            0 => None,
            1..40 => {
                let mut put = self.put_request();
                if self.dice.chance(93) && !free.is_empty() {
                    put.key = free.swap_remove(self.dice.below(free.len() as u64) as usize);
                }
                Some(Request::RequestPut(put))
            }
            40..50 => {
                let mut delete = self.delete_range_request();
                if self.dice.chance(60) && !free.is_empty() {
                    let key = free.swap_remove(self.dice.below(free.len() as u64) as usize);
                    (delete.key, delete.range_end) = (key, Bytes::new());
                }
                Some(Request::RequestDeleteRange(delete))
            }
            50..70 if depth > 1 => Some(Request::RequestTxn(self.nested_txn(depth - 1, free))),
            _ => Some(Request::RequestRange(self.range_request())),
        };
        etcd::RequestOp { request }
    }

    fn compare(&mut self) -> etcd::Compare {
        let (key, range_end) = match self.dice.chance(75) {
            true => (self.key(), Bytes::new()),
            false => self.interval(),
        };
        let target = self.dice.within(0, 4);
        let number = match self.dice.below(4) {
            0 => 0,
            1 => self.dice.within(-1, 3),
            _ => rev(-self.dice.within(0, 4)),
        };
        // Now and then the union speaks of something else than the target.
        let named = if self.dice.one_in(30) { self.dice.within(0, 4) } else { target };
        let target_union = match named {
            _ if self.dice.one_in(30) => None,
            0 => Some(TargetUnion::Version(self.dice.within(-1, 3))),
            1 => Some(TargetUnion::CreateRevision(number)),
            2 => Some(TargetUnion::ModRevision(number)),
            3 => Some(TargetUnion::Value(self.value())),
            _ => Some(TargetUnion::Lease(if self.dice.chance(50) { 0 } else { self.some_lease() })),
        };
        let odd = self.dice.one_in(80);
        etcd::Compare {
            result: if odd { 9 } else { self.dice.within(0, 3) as i32 },
            target: if self.dice.one_in(80) { 9 } else { target as i32 },
            key,
            target_union,
            range_end,
        }
    }

    /// Returns a transaction with as many entries as are allowed, or one more.
    pub(super) fn crowded_txn(&mut self) -> etcd::TxnRequest {
        let count = OPS_MAX + self.dice.below(2);
        let mut txn = etcd::TxnRequest::default();
        let put = |n: u64| etcd::RequestOp {
            request: Some(Request::RequestPut(etcd::PutRequest {
                key: format!("crowd/{n}").into(),
                ..Default::default()
            })),
        };
        match self.dice.below(4) {
            0 => txn.compare = (0..count).map(|_| self.compare()).collect(),
            1 => txn.success = (0..count).map(put).collect(),
            2 => txn.failure = (0..count).map(put).collect(),
            _ => {
                // The inner one may have what the outer one leaves of the limit.
                let inner = etcd::TxnRequest {
                    success: (0..count - 3).map(put).collect(),
                    ..Default::default()
                };
                let nested = etcd::RequestOp { request: Some(Request::RequestTxn(inner)) };
                txn.success = vec![put(1000), put(1001), nested];
            }
        }
        txn
    }

    pub(super) fn watch_request(&mut self) -> etcd::WatchCreateRequest {
        let (key, range_end) = self.interval();
        let start_revision = match self.dice.below(100) {
            0..68 => 0,
            68..80 => rev(-self.dice.within(0, 8)),
            80..88 => rev(self.dice.within(1, 4)),
            88..93 => self.old_revision(),
            93..96 => 1,
            _ => *self.dice.pick(&[-1, i64::MIN, i64::MAX - 2]),
        };
        let filters = match self.dice.below(20) {
            0..15 => vec![],
            15 | 16 => vec![0],
            17 | 18 => vec![1],
            _ => self.dice.pick(&[vec![0, 1], vec![0, 0], vec![5], vec![-1, 1]]).clone(),
        };
        etcd::WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: self.dice.chance(10),
            filters,
            prev_kv: self.dice.chance(40),
            watch_id: *self.dice.pick(&[0, 0, 0, 0, 0, 0, 0, 1, 2, 100, -7]),
            fragment: self.dice.chance(15),
        }
    }
}

/// Says whether a transaction deletes everything from a key on. etcd (3.7.3) does not see that
/// this covers keys which the transaction puts, too; a put that then looks for the deleted
/// value or lease to keep kills it.
fn deletes_from_key(txn: &etcd::TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(Request::RequestDeleteRange(delete)) => delete.range_end == ALL,
        Some(Request::RequestTxn(txn)) => deletes_from_key(txn),
        _ => false,
    })
}

/// Makes every put of a transaction one that keeps nothing.
fn ignore_nothing(txn: &mut etcd::TxnRequest) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Request::RequestPut(put)) => (put.ignore_value, put.ignore_lease) = (false, false),
            Some(Request::RequestTxn(txn)) => ignore_nothing(txn),
            _ => {}
        }
    }
}

/// Returns the end of the range of all keys that start with `prefix`.
fn after(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte < 0xff);
    match kept {
        Some(at) => {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            end.into()
        }
        None => ALL.into(),
    }
}
