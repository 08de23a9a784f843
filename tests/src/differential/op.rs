//! One step of a script. Requests are stored as they go over the wire, but for numbers that
//! are only known when the step runs: revisions relative to the store's, leases whose id the
//! server picked, the server's own member id. Those stand in the requests as far-away
//! numbers ([`rev`], [`chosen_lease`], [`SELF`]) and are replaced by [`Numbers`].

use bytes::Bytes;
use proto::etcd;
use proto::etcd::request_op::Request;

/// Stands for the server's own member id.
pub const SELF: u64 = 0x5e1f_5e1f_5e1f_5e1f;
/// Stands for the lease that the server picked last.
const CHOSEN: i64 = -(1 << 59);
const CURRENT: i64 = -(1 << 60);
const COMPACTED: i64 = -(1 << 61);
/// How far a relative number may lie from its base.
const REACH: i64 = 1 << 20;

/// Returns the number that stands for the current revision plus `offset`.
pub const fn rev(offset: i64) -> i64 {
    CURRENT + offset
}

/// Returns the number that stands for the compacted revision plus `offset`.
pub const fn compacted(offset: i64) -> i64 {
    COMPACTED + offset
}

/// Returns the number that stands for the `n`-th lease picked by the server in this script.
pub const fn chosen_lease(n: i64) -> i64 {
    CHOSEN + n
}

/// A step.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Range(etcd::RangeRequest),
    RangeStream(etcd::RangeRequest),
    Put(etcd::PutRequest),
    DeleteRange(etcd::DeleteRangeRequest),
    Txn(etcd::TxnRequest),
    Compact(etcd::CompactionRequest),
    Grant(etcd::LeaseGrantRequest),
    Revoke(etcd::LeaseRevokeRequest),
    TimeToLive(etcd::LeaseTimeToLiveRequest),
    Leases,
    /// One stream, one message for each id.
    KeepAlive(Vec<i64>),
    /// Creates a watch on the script's stream `slot`, which opens at its first use.
    Watch {
        slot: usize,
        create: etcd::WatchCreateRequest,
    },
    CancelWatch {
        slot: usize,
        watch_id: i64,
    },
    WatchProgress {
        slot: usize,
    },
    /// Waits until both servers have sent everything up to the current revision.
    SyncWatch {
        slot: usize,
    },
    Alarm(etcd::AlarmRequest),
    Status,
    Members {
        linearizable: bool,
    },
    Hash,
    HashKv(etcd::HashKvRequest),
    MoveLeader {
        target: u64,
    },
    Downgrade(etcd::DowngradeRequest),
    Defragment,
    AuthStatus,
    Lock {
        name: Bytes,
        lease: i64,
    },
    /// Unlocks the key that the last lock returned.
    Unlock,
    /// A second owner queues up behind the last lock, which is then unlocked.
    HandOver {
        name: Bytes,
        lease: i64,
    },
    UnlockKey(Bytes),
    Campaign {
        name: Bytes,
        lease: i64,
        value: Bytes,
    },
    /// Proclaims with the key that the last campaign returned, if `held`.
    Proclaim {
        value: Bytes,
        held: bool,
    },
    Leader(Bytes),
    /// Opens an observing stream and takes its first message.
    Observe(Bytes),
    Resign {
        held: bool,
    },
    /// Bytes sent to a method as they are.
    Raw {
        method: &'static str,
        body: Bytes,
        why: &'static str,
    },
    /// Waits until a lease of the shortest TTL has expired and taken `key` with it.
    Expire {
        lease: i64,
        key: Bytes,
    },
}

impl Op {
    /// Returns what kind of step it is.
    pub fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    }
}

/// What the stand-in numbers mean to one server right now.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// The store's revision.
    pub revision: i64,
    /// The compacted revision; -1 before the first compaction.
    pub compacted: i64,
    /// The server's member id.
    pub member_id: u64,
    /// Leases that the server picked in this script, in order.
    pub chosen: Vec<i64>,
}

impl Numbers {
    /// Returns the revision that `number` stands for.
    pub fn rev(&self, number: i64) -> i64 {
        if number.wrapping_sub(CURRENT).unsigned_abs() < REACH.unsigned_abs() {
            self.revision + (number - CURRENT)
        } else if number.wrapping_sub(COMPACTED).unsigned_abs() < REACH.unsigned_abs() {
            self.compacted + (number - COMPACTED)
        } else {
            number
        }
    }

    /// Returns the lease that `number` stands for.
    pub fn lease(&self, number: i64) -> i64 {
        if (0..REACH).contains(&number.wrapping_sub(CHOSEN)) {
            // A script that was shrunk may name a lease that was never granted.
            let n = (number - CHOSEN) as usize;
            self.chosen.get(n).copied().unwrap_or(777_777_777)
        } else {
            number
        }
    }

    /// Returns the member id that `number` stands for.
    pub fn member(&self, number: u64) -> u64 {
        if number == SELF { self.member_id } else { number }
    }

    /// Replaces the stand-ins of a range request.
    pub fn range(&self, request: &etcd::RangeRequest) -> etcd::RangeRequest {
        let mut request = request.clone();
        request.revision = self.rev(request.revision);
        request.min_mod_revision = self.rev(request.min_mod_revision);
        request.max_mod_revision = self.rev(request.max_mod_revision);
        request.min_create_revision = self.rev(request.min_create_revision);
        request.max_create_revision = self.rev(request.max_create_revision);
        request
    }

    /// Replaces the stand-ins of a put.
    pub fn put(&self, request: &etcd::PutRequest) -> etcd::PutRequest {
        let mut request = request.clone();
        request.lease = self.lease(request.lease);
        request
    }

    /// Replaces the stand-ins of a transaction and of those nested in it.
    pub fn txn(&self, request: &etcd::TxnRequest) -> etcd::TxnRequest {
        etcd::TxnRequest {
            compare: request.compare.iter().map(|compare| self.compare(compare)).collect(),
            success: request.success.iter().map(|op| self.request_op(op)).collect(),
            failure: request.failure.iter().map(|op| self.request_op(op)).collect(),
        }
    }

    fn compare(&self, compare: &etcd::Compare) -> etcd::Compare {
        use etcd::compare::TargetUnion;
        let mut compare = compare.clone();
        match &mut compare.target_union {
            Some(TargetUnion::CreateRevision(n) | TargetUnion::ModRevision(n)) => *n = self.rev(*n),
            Some(TargetUnion::Lease(n)) => *n = self.lease(*n),
            Some(TargetUnion::Version(_) | TargetUnion::Value(_)) | None => {}
        }
        compare
    }

    fn request_op(&self, op: &etcd::RequestOp) -> etcd::RequestOp {
        let request = op.request.as_ref().map(|request| match request {
            Request::RequestRange(range) => Request::RequestRange(self.range(range)),
            Request::RequestPut(put) => Request::RequestPut(self.put(put)),
            Request::RequestDeleteRange(delete) => Request::RequestDeleteRange(delete.clone()),
            Request::RequestTxn(txn) => Request::RequestTxn(self.txn(txn)),
        });
        etcd::RequestOp { request }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_replaced_and_plain_numbers_kept() {
        let numbers = Numbers { revision: 90, compacted: 40, member_id: 5, chosen: vec![11, 12] };
        assert_eq!(numbers.rev(rev(-3)), 87);
        assert_eq!(numbers.rev(compacted(1)), 41);
        assert_eq!(numbers.lease(chosen_lease(1)), 12);
        assert_eq!(numbers.member(SELF), 5);
        for plain in [0, 1, -1, 7, i64::MIN, i64::MAX] {
            assert_eq!(numbers.rev(plain), plain);
            assert_eq!(numbers.lease(plain), plain);
        }
    }
}
