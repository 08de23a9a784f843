//! The themes: which steps follow each other.

use bytes::Bytes;
use proto::etcd;

use super::{ALL, Author, MEMBERS, NO_LEASE};
use crate::differential::op::{Op, SELF, chosen_lease, rev};
use crate::differential::raw;

const ACTIVATE: i32 = 1;
const DEACTIVATE: i32 = 2;
const NOSPACE: i32 = 1;
const CORRUPT: i32 = 2;
/// A lease for locks, and one for who waits for them.
const OWNER: i64 = 0x0123_4567_89ab;
const NEXT_OWNER: i64 = 0x00ff_0000_0001;

impl Author {
    pub(super) fn mixed(&mut self) {
        for _ in 0..self.dice.within(4, 12) {
            self.any_step();
        }
    }

    pub(super) fn transactions(&mut self) {
        for _ in 0..self.dice.within(0, 4) {
            self.write();
        }
        if self.dice.chance(30) {
            self.grant();
        }
        for _ in 0..self.dice.within(2, 6) {
            self.txn();
            if self.dice.chance(20) {
                self.range();
            }
        }
        if self.dice.one_in(40) {
            let txn = self.crowded_txn();
            self.ops.push(Op::Txn(txn));
        }
    }

    pub(super) fn watches(&mut self) {
        for _ in 0..self.dice.within(0, 4) {
            self.write();
        }
        for _ in 0..self.dice.within(1, 3) {
            self.watch_step();
        }
        for _ in 0..self.dice.within(3, 8) {
            match self.dice.below(10) {
                0..7 => self.write(),
                7 => self.lease_step(),
                _ => self.watch_step(),
            }
        }
    }

    pub(super) fn lease_life(&mut self) {
        self.grant();
        for _ in 0..self.dice.within(3, 9) {
            match self.dice.below(10) {
                0..5 => self.lease_step(),
                5..8 => self.put(),
                8 => self.range(),
                _ => self.any_step(),
            }
        }
    }

    /// Writes, compacts, and looks at what is left of the history.
    pub(super) fn history(&mut self) {
        for _ in 0..self.dice.within(2, 6) {
            self.write();
        }
        if self.dice.chance(50) {
            self.watch_step();
        }
        self.compaction();
        for _ in 0..self.dice.within(3, 9) {
            match self.dice.below(10) {
                0..4 => {
                    let mut range = self.range_request();
                    range.revision = self.old_revision();
                    self.ops.push(Op::Range(range));
                }
                4 => {
                    let mut create = self.watch_request();
                    create.start_revision = self.old_revision();
                    self.watched = true;
                    self.ops.push(Op::Watch { slot: 0, create });
                }
                5 => {
                    let revision = self.old_revision();
                    self.ops.push(Op::HashKv(etcd::HashKvRequest { revision }));
                }
                6 => self.refused_compaction(),
                7 if self.dice.one_in(3) => self.compaction(),
                _ => self.any_step(),
            }
        }
    }

    pub(super) fn locks(&mut self) {
        let name = self.name();
        self.grant_owner(OWNER);
        let holds = [OWNER, OWNER, 0, NO_LEASE];
        let lease = *self.dice.pick(&holds);
        self.ops.push(Op::Lock { name: name.clone(), lease });
        if lease == 0 {
            self.note_lease(chosen_lease(self.chosen));
            self.chosen += 1;
        }
        if self.dice.chance(30) {
            self.ops.push(Op::Range(etcd::RangeRequest {
                key: ALL.into(),
                range_end: ALL.into(),
                count_only: true,
                ..Default::default()
            }));
        }
        if lease == OWNER && self.dice.chance(30) {
            self.ops.push(Op::Lock { name: name.clone(), lease });
        }
        if lease == OWNER && self.dice.chance(50) {
            self.grant_owner(NEXT_OWNER);
            self.ops.push(Op::HandOver { name: name.clone(), lease: NEXT_OWNER });
        }
        self.ops.push(Op::Unlock);
        if self.dice.chance(40) {
            let key = self.keys[0].clone();
            self.ops.push(Op::UnlockKey(key));
        }
        if self.dice.one_in(8) {
            self.ops.push(Op::UnlockKey(Bytes::new()));
        }
        self.ops.push(Op::Unlock);
    }

    fn grant_owner(&mut self, id: i64) {
        self.ops.push(Op::Grant(etcd::LeaseGrantRequest { ttl: 900, id }));
        self.note_lease(id);
    }

    pub(super) fn elections(&mut self) {
        let name = self.name();
        self.grant_owner(OWNER);
        if self.dice.chance(40) {
            self.ops.push(Op::Leader(name.clone()));
        }
        let lease = *self.dice.pick(&[OWNER, OWNER, 0, NO_LEASE]);
        let value = self.value();
        self.ops.push(Op::Campaign { name: name.clone(), lease, value });
        if lease == 0 {
            self.note_lease(chosen_lease(self.chosen));
            self.chosen += 1;
        }
        for _ in 0..self.dice.within(1, 4) {
            let value = self.value();
            match self.dice.below(6) {
                0 => self.ops.push(Op::Leader(name.clone())),
                1 if lease != NO_LEASE => self.ops.push(Op::Observe(name.clone())),
                2 | 3 => {
                    let held = self.dice.chance(85);
                    self.ops.push(Op::Proclaim { value, held });
                }
                4 if lease == OWNER => {
                    self.ops.push(Op::Campaign { name: name.clone(), lease, value });
                }
                _ => self.range(),
            }
        }
        let held = self.dice.chance(90);
        self.ops.push(Op::Resign { held });
        self.ops.push(Op::Leader(name));
        if self.dice.chance(50) {
            let value = self.value();
            self.ops.push(Op::Proclaim { value, held: true });
            self.ops.push(Op::Resign { held: true });
        }
    }

    pub(super) fn alarms(&mut self) {
        self.grant();
        self.put();
        let kind = if self.dice.chance(75) { NOSPACE } else { CORRUPT };
        let member = *self.dice.pick(MEMBERS);
        self.alarm(ACTIVATE, member, kind);
        for _ in 0..self.dice.within(2, 6) {
            match self.dice.below(10) {
                0 => self.alarm(0, 0, 0),
                1 => {
                    let (member, kind) = (*self.dice.pick(MEMBERS), self.dice.within(0, 3) as i32);
                    self.alarm(0, member, kind);
                }
                2 => self.ops.push(Op::Status),
                3 => self.lease_step(),
                4 => self.refused_compaction(),
                _ => self.any_step(),
            }
        }
        self.alarm(DEACTIVATE, 999, kind);
        self.put();
        self.alarm(DEACTIVATE, member, kind);
        if self.dice.chance(30) {
            self.alarm(DEACTIVATE, member, kind);
        }
        self.put();
        self.alarm(0, 0, 0);
    }

    pub(super) fn upkeep(&mut self) {
        self.any_step();
        for _ in 0..self.dice.within(2, 6) {
            // Alarm with an unknown action is left out: it kills etcd (3.7.3).
            let step = match self.dice.below(19) {
                0..4 => Op::Status,
                4..7 => Op::Members { linearizable: self.dice.chance(50) },
                7 => Op::Hash,
                8..12 => {
                    let ahead = self.dice.within(-5, 2);
                    let revisions = [0, rev(ahead), rev(ahead), -1, 1, i64::MAX];
                    Op::HashKv(etcd::HashKvRequest { revision: *self.dice.pick(&revisions) })
                }
                12 | 13 => Op::MoveLeader { target: *self.dice.pick(&[SELF, 0, 12_345]) },
                14..17 => {
                    // No action that would begin a real downgrade.
                    let bad = ["", "x", "9.9.9", "1.0.0", "3", "3.0.0", "v3.6.0", "3.99"];
                    let action = *self.dice.pick(&[0, 0, 1, 2, 7]);
                    let version = (*self.dice.pick(&bad)).to_owned();
                    Op::Downgrade(etcd::DowngradeRequest { action, version })
                }
                17 => Op::Defragment,
                _ => Op::AuthStatus,
            };
            self.ops.push(step);
        }
        self.any_step();
    }

    pub(super) fn broken(&mut self) {
        self.put();
        for _ in 0..self.dice.within(2, 6) {
            if self.dice.one_in(8) {
                let method = *self.dice.pick(raw::NO_METHODS);
                self.ops.push(Op::Raw { method, body: Bytes::new(), why: "no such method" });
            } else {
                self.raw();
            }
            self.ops.push(Op::Range(etcd::RangeRequest {
                key: ALL.into(),
                range_end: ALL.into(),
                ..Default::default()
            }));
        }
        // What broken messages may have left.
        self.alarm(DEACTIVATE, 0, NOSPACE);
        self.alarm(DEACTIVATE, 0, CORRUPT);
    }

    /// Requests around the size limits, and events too large for one message.
    pub(super) fn large(&mut self) {
        const KIB: usize = 1024;
        self.delete_all();
        let key = self.keys[0].clone();
        let of = |kib: usize| Bytes::from(vec![b'x'; kib * KIB]);
        for kib in [1400, 1537, 2000, 2047, 2049, 2700] {
            if self.dice.chance(40) {
                let put =
                    etcd::PutRequest { key: key.clone(), value: of(kib), ..Default::default() };
                self.ops.push(Op::Put(put));
            }
        }
        let fragment = self.dice.chance(70);
        let create = etcd::WatchCreateRequest {
            key: ALL.into(),
            range_end: ALL.into(),
            prev_kv: true,
            fragment,
            ..Default::default()
        };
        self.ops.push(Op::Watch { slot: 0, create });
        let put = |key: &'static str| etcd::RequestOp {
            request: Some(etcd::request_op::Request::RequestPut(etcd::PutRequest {
                key: key.into(),
                value: of(700),
                ..Default::default()
            })),
        };
        let txn = etcd::TxnRequest {
            success: vec![put("large/1"), put("large/2")],
            ..Default::default()
        };
        self.ops.push(Op::Txn(txn.clone()));
        self.ops.push(Op::Txn(txn));
        let all =
            etcd::RangeRequest { key: ALL.into(), range_end: ALL.into(), ..Default::default() };
        self.ops.push(Op::RangeStream(all.clone()));
        self.ops.push(Op::Range(all));
        self.delete_all();
    }

    pub(super) fn expiry(&mut self) {
        self.watched = true;
        let create = etcd::WatchCreateRequest {
            key: ALL.into(),
            range_end: ALL.into(),
            prev_kv: true,
            ..Default::default()
        };
        self.ops.push(Op::Watch { slot: 0, create });
        self.write();
        let key = self.keys[0].clone();
        self.ops.push(Op::Expire { lease: 5_150, key });
        let id = 5_150;
        self.ops.push(Op::TimeToLive(etcd::LeaseTimeToLiveRequest { id, keys: true }));
        self.ops.push(Op::KeepAlive(vec![id]));
        self.ops.push(Op::Leases);
        self.write();
    }
}
