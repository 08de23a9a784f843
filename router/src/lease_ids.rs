//! Ids for leases whose clients leave the choice to us.
//!
//! As etcd's: fifteen bits of the member, then what counts up from the time of the start. But
//! one router counts for all tenants, and a tenant that sees the count in its own ids sees how
//! many leases the others are granted. So the count is shuffled under a secret of this process:
//! four rounds of a Feistel network, which is one to one, so that a router never gives the same
//! id twice. After a restart, with another secret, it could, once in 2^48; the group would
//! refuse the grant as existing and nothing would be harmed.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

const COUNT_BITS: u32 = 48;
const HALF_BITS: u32 = COUNT_BITS / 2;
const HALF: u64 = (1 << HALF_BITS) - 1;
/// Fewer would let who sees many ids find the secret's working.
const ROUNDS: u8 = 4;

/// See the module.
pub(crate) struct LeaseIds {
    prefix: u64,
    count: AtomicU64,
    secret: RandomState,
}

// === impl LeaseIds ===

impl LeaseIds {
    pub(crate) fn new(member: u64) -> LeaseIds {
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let start_ms = elapsed.map(|time| time.as_millis() as u64).unwrap_or(0);
        // Fifteen bits of the member: the sign bit stays clear.
        let member = (member ^ (member >> 15) ^ (member >> 30) ^ (member >> 45)) & 0x7fff;
        LeaseIds {
            prefix: member << COUNT_BITS,
            count: AtomicU64::new(start_ms << 8),
            secret: RandomState::new(),
        }
    }

    pub(crate) fn next(&self) -> i64 {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let id = (self.prefix | self.shuffled(count & ((1 << COUNT_BITS) - 1))) as i64;
        assert!(id >= 0, "the sign bit of a lease id is clear");
        // Zero means "choose for me" and can come up once in 2^48.
        if id == 0 { self.next() } else { id }
    }

    /// Another number of 48 bits for each.
    fn shuffled(&self, count: u64) -> u64 {
        let (mut left, mut right) = (count >> HALF_BITS, count & HALF);
        for round in 0..ROUNDS {
            let mask = self.secret.hash_one((round, right)) & HALF;
            (left, right) = (right, left ^ mask);
        }
        (left << HALF_BITS) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn lease_ids_are_positive_and_differ() {
        let ids = LeaseIds::new(u64::MAX);
        let many: BTreeSet<i64> = (0..10_000).map(|_| ids.next()).collect();
        assert_eq!(many.len(), 10_000);
        assert!(many.iter().all(|id| *id > 0));
        assert_ne!(LeaseIds::new(1).next() >> 48, LeaseIds::new(2).next() >> 48);
    }

    #[test]
    fn two_ids_do_not_tell_how_many_came_between() {
        let ids = LeaseIds::new(1);
        let differences: BTreeSet<i64> = (0..100).map(|_| ids.next() - ids.next()).collect();
        assert_eq!(differences.len(), 100);
    }
}
