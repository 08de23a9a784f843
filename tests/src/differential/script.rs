//! Scripts: the steps of script `index` of a seed, the same on every machine.
//!
//! A script keeps to a handful of keys, so that its steps meet each other's traces, and to one
//! theme, so that rare states (compacted history, a held lock, a raised alarm) are followed by
//! steps that notice them. It leaves no leases and no alarms behind; keys it may leave.

use bytes::Bytes;
use proto::etcd;

use super::dice::Dice;
use super::op::{Op, SELF, chosen_lease, compacted, rev};
use super::raw;

mod request;
mod scene;

/// The whole keyspace, as a range.
pub(super) const ALL: &[u8] = b"\0";
/// TTLs long enough to outlive any script.
const LONG_TTLS: &[i64] = &[600, 601, 3600, 100_000, 9_000_000_000];
/// TTLs that the server raises to its least, or refuses.
const ODD_TTLS: &[i64] = &[0, 1, 2, -1, i64::MIN, 9_000_000_001, i64::MAX];
/// Lease ids to ask for.
const LEASE_IDS: &[i64] = &[1, 2, 3, 0x7fff, -1, -77, i64::MIN, i64::MAX];
/// A lease that nobody grants.
const NO_LEASE: i64 = 424_242;

/// What a script is mostly about.
#[derive(Clone, Copy, Debug)]
enum Theme {
    Mixed,
    Transactions,
    Watches,
    Leases,
    History,
    Locks,
    Elections,
    Alarms,
    Upkeep,
    Broken,
    Large,
    Expiry,
}

/// Themes by weight, of 10,000.
const THEMES: &[(u64, Theme)] = &[
    (4000, Theme::Mixed),
    (2000, Theme::Transactions),
    (1700, Theme::Watches),
    (1000, Theme::Leases),
    (160, Theme::History),
    (250, Theme::Locks),
    (250, Theme::Elections),
    (150, Theme::Alarms),
    (250, Theme::Upkeep),
    (220, Theme::Broken),
    (18, Theme::Large),
    (2, Theme::Expiry),
];

/// Returns the steps of script `index`.
pub fn write(seed: u64, index: u64) -> Vec<Op> {
    let mut author = Author::new(Dice::new(seed, index), index);
    if author.dice.chance(75) {
        author.delete_all();
    }
    match author.dice.weighted(THEMES) {
        Theme::Mixed => author.mixed(),
        Theme::Transactions => author.transactions(),
        Theme::Watches => author.watches(),
        Theme::Leases => author.lease_life(),
        Theme::History => author.history(),
        Theme::Locks => author.locks(),
        Theme::Elections => author.elections(),
        Theme::Alarms => author.alarms(),
        Theme::Upkeep => author.upkeep(),
        Theme::Broken => author.broken(),
        Theme::Large => author.large(),
        Theme::Expiry => author.expiry(),
    }
    author.clean_up()
}

/// Writes one script.
struct Author {
    dice: Dice,
    index: u64,
    prefix: Vec<u8>,
    keys: Vec<Bytes>,
    /// Leases that should exist, by the number that stands for them.
    leases: Vec<i64>,
    /// Leases to revoke at the end.
    granted: Vec<i64>,
    chosen: i64,
    watched: bool,
    ops: Vec<Op>,
}

impl Author {
    fn new(mut dice: Dice, index: u64) -> Self {
        let own = format!("s{index}/").into_bytes();
        let prefixes: [&[u8]; 7] =
            [&own, &own, b"a", b"/registry/pods/", b"\0", b"\xff\xff", b"k\xff"];
        let prefix = dice.pick(&prefixes).to_vec();
        let suffixes: [&[u8]; 10] =
            [b"", b"a", b"b", b"c", b"aa", b"a/b", b"\0", b"\xff", b"a\0", b"z"];
        let count = dice.within(2, 7);
        let keys = (0..count)
            .map(|_| Bytes::from([prefix.as_slice(), *dice.pick(&suffixes)].concat()))
            .collect();
        Self {
            dice,
            index,
            prefix,
            keys,
            leases: Vec::new(),
            granted: Vec::new(),
            chosen: 0,
            watched: false,
            ops: Vec::new(),
        }
    }

    fn clean_up(mut self) -> Vec<Op> {
        for id in std::mem::take(&mut self.granted) {
            self.ops.push(Op::Revoke(etcd::LeaseRevokeRequest { id }));
        }
        self.ops
    }

    fn delete_all(&mut self) {
        self.ops.push(Op::DeleteRange(etcd::DeleteRangeRequest {
            key: ALL.into(),
            range_end: ALL.into(),
            prev_kv: false,
        }));
    }

    /// Adds a step of any common kind.
    fn any_step(&mut self) {
        match self.dice.below(100) {
            0..24 => self.put(),
            24..46 => self.range(),
            46..54 => self.delete_range(),
            54..68 => self.txn(),
            68..73 => self.range_stream(),
            73..80 => self.lease_step(),
            80..88 => self.watch_step(),
            88..91 => self.refused_compaction(),
            _ => self.write(),
        }
    }

    /// Adds a step that most likely changes keys.
    fn write(&mut self) {
        match self.dice.below(10) {
            0..6 => self.put(),
            6..8 => self.delete_range(),
            _ => self.txn(),
        }
    }

    fn put(&mut self) {
        let put = self.put_request();
        self.ops.push(Op::Put(put));
    }

    fn range(&mut self) {
        let range = self.range_request();
        self.ops.push(Op::Range(range));
    }

    fn range_stream(&mut self) {
        let mut range = self.range_request();
        if self.dice.chance(70) {
            (range.sort_order, range.sort_target) = (0, 0);
            (range.min_mod_revision, range.max_mod_revision) = (0, 0);
            (range.min_create_revision, range.max_create_revision) = (0, 0);
        }
        self.ops.push(Op::RangeStream(range));
    }

    fn delete_range(&mut self) {
        let delete = self.delete_range_request();
        self.ops.push(Op::DeleteRange(delete));
    }

    fn txn(&mut self) {
        let txn = self.txn_request();
        self.ops.push(Op::Txn(txn));
    }

    fn refused_compaction(&mut self) {
        let ahead = self.dice.within(1, 3);
        let revisions = [compacted(0), compacted(-1), -5, rev(ahead), i64::MAX, i64::MIN];
        let revision = *self.dice.pick(&revisions);
        let physical = self.dice.chance(30);
        self.ops.push(Op::Compact(etcd::CompactionRequest { revision, physical }));
    }

    fn compaction(&mut self) {
        let revision = match self.dice.below(4) {
            0 => rev(0),
            1 => compacted(1),
            _ => rev(-self.dice.within(0, 6)),
        };
        let physical = self.dice.chance(30);
        self.ops.push(Op::Compact(etcd::CompactionRequest { revision, physical }));
    }

    /// Grants a lease that will not expire; returns the number that stands for it.
    fn grant(&mut self) -> i64 {
        let ttl = *self.dice.pick(LONG_TTLS);
        if self.dice.chance(25) {
            self.ops.push(Op::Grant(etcd::LeaseGrantRequest { ttl, id: 0 }));
            let lease = chosen_lease(self.chosen);
            self.chosen += 1;
            self.note_lease(lease);
            return lease;
        }
        let id = *self.dice.pick(LEASE_IDS);
        self.ops.push(Op::Grant(etcd::LeaseGrantRequest { ttl, id }));
        self.note_lease(id);
        id
    }

    fn note_lease(&mut self, lease: i64) {
        if !self.leases.contains(&lease) {
            self.leases.push(lease);
        }
        if !self.granted.contains(&lease) {
            self.granted.push(lease);
        }
    }

    /// Returns a lease that most likely exists.
    fn some_lease(&mut self) -> i64 {
        if self.leases.is_empty() || self.dice.one_in(12) {
            return *self.dice.pick(&[NO_LEASE, -9, 1, 0]);
        }
        *self.dice.pick(&self.leases)
    }

    fn lease_step(&mut self) {
        match self.dice.below(12) {
            0..4 => drop(self.grant()),
            4 => {
                // Gone before it could expire; no key ever hangs on it.
                let (ttl, id) = (*self.dice.pick(ODD_TTLS), 31_337);
                self.ops.push(Op::Grant(etcd::LeaseGrantRequest { ttl, id }));
                self.ops.push(Op::Revoke(etcd::LeaseRevokeRequest { id }));
            }
            5 | 6 => {
                let (id, keys) = (self.some_lease(), self.dice.chance(60));
                self.ops.push(Op::TimeToLive(etcd::LeaseTimeToLiveRequest { id, keys }));
            }
            7 => self.ops.push(Op::Leases),
            8 | 9 => {
                let count = self.dice.within(1, 3);
                let ids = (0..count).map(|_| self.some_lease()).collect();
                self.ops.push(Op::KeepAlive(ids));
            }
            _ => {
                let id = self.some_lease();
                self.leases.retain(|lease| *lease != id);
                self.ops.push(Op::Revoke(etcd::LeaseRevokeRequest { id }));
            }
        }
    }

    fn watch_step(&mut self) {
        let slot = usize::from(self.dice.one_in(10));
        if !self.watched || self.dice.chance(60) {
            self.watched = true;
            let create = self.watch_request();
            self.ops.push(Op::Watch { slot, create });
            return;
        }
        match self.dice.below(10) {
            0..5 => {
                let watch_id = *self.dice.pick(&[0, 0, 1, 1, 2, 100, -7, 55]);
                self.ops.push(Op::CancelWatch { slot, watch_id });
            }
            5..9 => self.ops.push(Op::WatchProgress { slot }),
            _ => self.ops.push(Op::SyncWatch { slot }),
        }
    }

    fn name(&mut self) -> Bytes {
        let n = self.dice.below(2);
        match self.dice.below(20) {
            0 if !self.prefix.starts_with(b"/") => {
                // Without a name every key under "/" is a rival.
                self.delete_all();
                Bytes::new()
            }
            1 => Bytes::from_static(b"\xff\0"),
            _ => Bytes::from(format!("{}n{n}", self.index)),
        }
    }

    fn alarm(&mut self, action: i32, member_id: u64, alarm: i32) {
        self.ops.push(Op::Alarm(etcd::AlarmRequest { action, member_id, alarm }));
    }

    fn raw(&mut self) {
        let method = *self.dice.pick(raw::METHODS);
        let (body, why) = raw::broken(&mut self.dice, method);
        self.ops.push(Op::Raw { method, body, why });
    }
}

/// Member ids for alarms and transfers.
const MEMBERS: &[u64] = &[SELF, SELF, 0, 12_345];
