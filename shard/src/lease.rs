//! When leases expire: the leader's clock beside the machine's leases.
//!
//! Only the leader counts. A new leader gives every lease its full TTL once more, so that no
//! lease ever expires early; a deposed one stops counting at once. Expiry is a proposal like
//! any other: until it is applied (or fails) the lease is *revoking*, it is not renewed any
//! more and who asks for it waits for the outcome.
//!
//! While the group is frozen or deleted the clocks stand still: what remained of a lease remains
//! for the time after.
//!
//! Pure: time is an argument, in milliseconds of a clock that never goes back.
//!
//! Invariants:
//! - Every lease of the machine is in `deadlines` while this replica leads, and in `order`
//!   exactly if it is not revoking.

use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Default)]
pub struct Lessor {
    leads: bool,
    /// The clocks stand still since then.
    paused_ms: Option<u64>,
    deadlines: BTreeMap<i64, Entry>,
    order: BTreeSet<(u64, i64)>,
    /// Expiries that may be proposed now; refilled with time.
    budget: u64,
    refilled_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline_ms: u64,
    ttl_s: i64,
    revoking: bool,
}

/// What a lease's clock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Lives for so many milliseconds, of the granted seconds.
    Alive {
        /// Until it expires.
        remaining_ms: u64,
        /// As granted.
        ttl_s: i64,
    },
    /// Its end is under way: wait for the outcome.
    Revoking,
    /// There is none.
    Unknown,
}

/// Expiries proposed per second (etcd's lessor: leaseRevokeRate).
const EXPIRIES_PER_S: u64 = proto::limits::LEASE_EXPIRIES_PER_S as u64;

fn ms(ttl_s: i64) -> u64 {
    u64::try_from(ttl_s).unwrap_or(0).saturating_mul(1000)
}

impl Lessor {
    /// Begins to count: this replica leads and has applied all that came before.
    pub fn promote(&mut self, now_ms: u64, leases: &BTreeMap<i64, i64>) {
        self.demote();
        self.leads = true;
        self.refilled_ms = now_ms;
        for (lease, ttl_s) in leases {
            self.granted(now_ms, *lease, *ttl_s);
        }
    }

    /// Stops counting.
    pub fn demote(&mut self) {
        *self = Lessor::default();
    }

    /// The time by the leases' clocks.
    fn clock(&self, now_ms: u64) -> u64 {
        self.paused_ms.unwrap_or(now_ms)
    }

    /// Stops the clocks, unless they stand still already.
    pub fn pause(&mut self, now_ms: u64) {
        if self.leads {
            self.paused_ms.get_or_insert(now_ms);
        }
    }

    /// The clocks go on with what remained.
    pub fn resume(&mut self, now_ms: u64) {
        let Some(paused_ms) = self.paused_ms.take() else { return };
        let stood_ms = now_ms.saturating_sub(paused_ms);
        for entry in self.deadlines.values_mut() {
            entry.deadline_ms = entry.deadline_ms.saturating_add(stood_ms);
        }
        self.put_in_order();
        self.refilled_ms = now_ms;
    }

    /// Gives every lease its full TTL.
    pub fn refill(&mut self, now_ms: u64) {
        let clock_ms = self.clock(now_ms);
        for entry in self.deadlines.values_mut() {
            entry.deadline_ms = clock_ms.saturating_add(ms(entry.ttl_s));
        }
        self.put_in_order();
    }

    fn put_in_order(&mut self) {
        let alive = self.deadlines.iter().filter(|(_, entry)| !entry.revoking);
        self.order = alive.map(|(lease, entry)| (entry.deadline_ms, *lease)).collect();
    }

    /// A lease was granted.
    pub fn granted(&mut self, now_ms: u64, lease: i64, ttl_s: i64) {
        if !self.leads {
            return;
        }
        let deadline_ms = self.clock(now_ms).saturating_add(ms(ttl_s));
        self.deadlines.insert(lease, Entry { deadline_ms, ttl_s, revoking: false });
        self.order.insert((deadline_ms, lease));
    }

    /// A lease is gone.
    pub fn revoked(&mut self, lease: i64) {
        if let Some(entry) = self.deadlines.remove(&lease) {
            self.order.remove(&(entry.deadline_ms, lease));
        }
    }

    /// Gives a living lease its full TTL again.
    pub fn renew(&mut self, now_ms: u64, lease: i64) -> Standing {
        let now_ms = self.clock(now_ms);
        let Some(entry) = self.deadlines.get_mut(&lease) else { return Standing::Unknown };
        if entry.revoking || entry.deadline_ms <= now_ms {
            return Standing::Revoking;
        }
        self.order.remove(&(entry.deadline_ms, lease));
        entry.deadline_ms = now_ms.saturating_add(ms(entry.ttl_s));
        self.order.insert((entry.deadline_ms, lease));
        Standing::Alive { remaining_ms: ms(entry.ttl_s), ttl_s: entry.ttl_s }
    }

    /// How a lease stands.
    pub fn standing(&self, now_ms: u64, lease: i64) -> Standing {
        let now_ms = self.clock(now_ms);
        match self.deadlines.get(&lease) {
            None => Standing::Unknown,
            Some(entry) if entry.revoking || entry.deadline_ms <= now_ms => Standing::Revoking,
            Some(entry) => {
                Standing::Alive { remaining_ms: entry.deadline_ms - now_ms, ttl_s: entry.ttl_s }
            }
        }
    }

    /// All leases, soonest to expire first; those under way come first.
    pub fn by_expiry(&self) -> Vec<i64> {
        let mut list: Vec<_> =
            self.deadlines.iter().map(|(lease, entry)| (entry.deadline_ms, *lease)).collect();
        list.sort_unstable();
        list.into_iter().map(|(_, lease)| lease).collect()
    }

    /// When a lease's time is up next, as far as it counts here.
    pub fn next_ms(&self) -> u64 {
        self.order.first().map_or(u64::MAX, |(deadline_ms, _)| *deadline_ms)
    }

    /// Leases whose time is up, to be revoked now: marked, and no more than the rate allows.
    pub fn expire(&mut self, now_ms: u64) -> Vec<i64> {
        if self.paused_ms.is_some() {
            return Vec::new();
        }
        let gained = now_ms.saturating_sub(self.refilled_ms) * EXPIRIES_PER_S / 1000;
        if gained > 0 {
            self.budget = (self.budget + gained).min(EXPIRIES_PER_S);
            self.refilled_ms = now_ms;
        }
        let mut expired = Vec::new();
        while self.budget > 0 {
            let Some((deadline_ms, lease)) = self.order.first().copied() else { break };
            if deadline_ms > now_ms {
                break;
            }
            self.order.remove(&(deadline_ms, lease));
            if let Some(entry) = self.deadlines.get_mut(&lease) {
                entry.revoking = true;
            }
            self.budget -= 1;
            expired.push(lease);
        }
        expired
    }

    /// The proposal to revoke came to nothing: it will be tried again.
    pub fn revoke_failed(&mut self, lease: i64) {
        if let Some(entry) = self.deadlines.get_mut(&lease)
            && entry.revoking
        {
            entry.revoking = false;
            self.order.insert((entry.deadline_ms, lease));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lessor(leases: &[(i64, i64)]) -> Lessor {
        let mut lessor = Lessor::default();
        lessor.promote(1000, &leases.iter().copied().collect());
        lessor
    }

    #[test]
    fn a_lease_expires_after_its_ttl_and_not_before() {
        let mut lessor = lessor(&[(7, 5)]);
        assert_eq!(lessor.expire(5999), Vec::<i64>::new());
        assert_eq!(lessor.expire(6000), vec![7]);
        assert_eq!(lessor.expire(9000), Vec::<i64>::new(), "it is proposed once");
        assert_eq!(lessor.renew(6001, 7), Standing::Revoking, "it does not come back to life");
    }

    #[test]
    fn renewing_gives_the_full_ttl() {
        let mut lessor = lessor(&[(7, 5)]);
        assert_eq!(lessor.renew(5000, 7), Standing::Alive { remaining_ms: 5000, ttl_s: 5 });
        assert_eq!(lessor.expire(6000), Vec::<i64>::new());
        assert_eq!(lessor.expire(10_000), vec![7]);
    }

    #[test]
    fn an_overdue_lease_is_not_renewed_even_before_it_was_proposed() {
        let mut lessor = lessor(&[(7, 5)]);
        assert_eq!(lessor.renew(6000, 7), Standing::Revoking);
    }

    #[test]
    fn expiry_keeps_to_its_rate() {
        let many: Vec<_> = (0..5000).map(|lease| (lease, 1)).collect();
        let mut lessor = lessor(&many);
        let first = lessor.expire(3000).len();
        assert!(first <= EXPIRIES_PER_S as usize);
        assert_eq!(lessor.expire(3100).len(), 100);
    }

    #[test]
    fn while_the_clocks_stand_still_nothing_expires_and_what_remained_remains() {
        let mut lessor = lessor(&[(7, 5), (8, 60)]);
        lessor.pause(4000);
        lessor.pause(9000);
        assert_eq!(lessor.expire(99_000), Vec::<i64>::new());
        let remains = Standing::Alive { remaining_ms: 2000, ttl_s: 5 };
        assert_eq!(lessor.standing(99_000, 7), remains);
        lessor.resume(100_000);
        assert_eq!(lessor.standing(100_000, 7), remains);
        assert_eq!(lessor.expire(101_999), Vec::<i64>::new());
        assert_eq!(lessor.expire(102_000), vec![7]);
        assert_eq!(lessor.expire(157_000), vec![8]);
    }

    #[test]
    fn a_lease_that_was_about_to_expire_does_so_after_the_pause() {
        let mut lessor = lessor(&[(7, 5)]);
        assert_eq!(lessor.expire(6000), vec![7]);
        lessor.revoke_failed(7);
        lessor.pause(6000);
        lessor.resume(50_000);
        assert_eq!(lessor.expire(50_001), vec![7]);
    }

    #[test]
    fn a_refill_gives_full_ttls_also_while_the_clocks_stand_still() {
        let mut lessor = lessor(&[(7, 5)]);
        lessor.pause(5000);
        lessor.refill(20_000);
        lessor.resume(30_000);
        assert_eq!(lessor.expire(34_999), Vec::<i64>::new());
        assert_eq!(lessor.expire(35_000), vec![7]);
    }

    #[test]
    fn a_follower_knows_no_clock() {
        let mut lessor = lessor(&[(7, 5)]);
        lessor.demote();
        assert_eq!(lessor.expire(99_000), Vec::<i64>::new());
        assert_eq!(lessor.standing(99_000, 7), Standing::Unknown);
    }
}
