//! What simulated clients ask. Every value is unique, so that a lost or doubled write shows.

use bytes::Bytes;
use proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcd::request_op::Request as Op;
use proto::etcd::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use proto::group::Request;

use super::random::Random;

/// A client: one request at a time.
#[derive(Default)]
pub struct Client {
    /// Whose: place among the world's tenants.
    pub tenant: usize,
    /// Its connection's number in the history; a new one after every reconnect.
    pub connection: u64,
    /// Host it talks to.
    pub host: usize,
    /// Highest revision it was shown on this connection.
    pub floor: i64,
    /// A revision that it knows a key to have.
    pub known: i64,
    /// Requests made so far: makes values unique.
    pub asked: u64,
}

/// Leases that clients share.
const LEASES: i64 = 3;

fn key(random: &mut Random, keys: u64) -> Bytes {
    format!("k{}", random.below(keys)).into()
}

impl Client {
    /// The next request.
    pub fn next(&mut self, random: &mut Random, spice: &mut Random, keys: u64) -> Request {
        self.asked += 1;
        let value: Bytes = format!("c{}-{}", self.connection, self.asked).into();
        let one = key(random, keys);
        let lease = random.below(LEASES as u64) as i64 + 1;
        let put = |key: Bytes, lease: i64, prev_kv| PutRequest {
            key,
            value: value.clone(),
            lease,
            prev_kv,
            ..Default::default()
        };
        match random.below(100) {
            0..=29 => Request::Put(put(one, 0, random.permille(300))),
            30..=34 => Request::Put(put(one, lease, false)),
            35..=49 => Request::Range(RangeRequest {
                key: one,
                serializable: random.permille(300),
                ..Default::default()
            }),
            50..=57 => Request::Range(RangeRequest {
                key: Bytes::from_static(b"k"),
                range_end: Bytes::from_static(b"l"),
                limit: random.below(4) as i64,
                serializable: random.permille(200),
                revision: if random.permille(200) { self.known } else { 0 },
                ..Default::default()
            }),
            58..=63 => Request::DeleteRange(DeleteRangeRequest {
                key: one,
                prev_kv: true,
                ..Default::default()
            }),
            64..=66 => Request::DeleteRange(DeleteRangeRequest {
                key: one,
                range_end: Bytes::from_static(b"l"),
                prev_kv: random.permille(500),
            }),
            67..=84 => self.txn(random, spice, keys, &one, put(one.clone(), 0, true)),
            85..=88 => Request::LeaseGrant(LeaseGrantRequest {
                id: lease,
                ttl: random.between(2, 5) as i64,
            }),
            89..=92 => Request::LeaseKeepAlive(LeaseKeepAliveRequest { id: lease }),
            93 => Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id: lease, keys: true }),
            94..=95 => Request::LeaseRevoke(LeaseRevokeRequest { id: lease }),
            _ => Request::Compact(CompactionRequest {
                revision: (self.floor - random.below(20) as i64).max(1),
                physical: random.permille(300),
            }),
        }
    }

    fn txn(
        &self,
        random: &mut Random,
        spice: &mut Random,
        keys: u64,
        one: &Bytes,
        put: PutRequest,
    ) -> Request {
        let other = key(random, keys);
        let get = |key: &Bytes| RequestOp {
            request: Some(Op::RequestRange(RangeRequest {
                key: key.clone(),
                ..Default::default()
            })),
        };
        let write = RequestOp { request: Some(Op::RequestPut(put)) };
        let compare = Compare {
            result: [CompareResult::Equal, CompareResult::Less, CompareResult::Greater]
                [random.below(3) as usize] as i32,
            target: CompareTarget::Mod as i32,
            key: one.clone(),
            target_union: Some(TargetUnion::ModRevision(self.known)),
            ..Default::default()
        };
        let delete = |key: &Bytes, end: &'static [u8]| {
            let range_end = Bytes::from_static(end);
            let delete = DeleteRangeRequest { key: key.clone(), range_end, prev_kv: true };
            RequestOp { request: Some(Op::RequestDeleteRange(delete)) }
        };
        let success = match random.below(3) {
            // Two changes of one key in one revision: etcd refuses them, but for a delete of
            // all keys from one on.
            _ if spice.permille(150) => vec![write, delete(one, b"\0"), get(one)],
            _ if spice.permille(150) => vec![delete(one, b"\0"), write],
            0 => vec![write],
            1 if other != *one => {
                vec![write, delete(&other, b""), get(one)]
            }
            _ => vec![get(one), write],
        };
        Request::Txn(TxnRequest { compare: vec![compare], success, failure: vec![get(one)] })
    }
}
