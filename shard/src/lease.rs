//! When leases expire: the leader's clock beside the machine's leases.
//!
//! Only the leader counts. A new leader gives every lease its full TTL once more, so that no
//! lease ever expires early; a deposed one stops counting at once. Expiry is a proposal like
//! any other: until it is applied (or fails) the lease is *revoking*, it is not renewed any
//! more and who asks for it waits for the outcome.
//!
//! A deposed leader that has not heard of it must not prolong what its successor will end. So a
//! leader renews only behind a round that its quorum has confirmed, or *alone*, for a short time
//! after it began such a round: whoever answered that one votes for nobody else before an election
//! timeout is over, and the successor adds that short time to the TTLs. See decision 9.
//!
//! While the group is frozen or deleted the clocks stand still: what remained of a lease remains
//! for the time after.
//!
//! Pure: time is an argument, in milliseconds of a clock that never goes back. The worker decides;
//! other threads only renew ([`Lessor::renew_alone`]).
//!
//! Invariants:
//! - Every lease of the machine is in `deadlines` while this replica leads, and in `order`
//!   exactly if it is not revoking.

use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Default)]
pub struct Lessor {
    leads: bool,
    /// Until then nobody else can lead.
    alone_until_ms: u64,
    /// Leadership was offered to another replica, which may take it at any time.
    is_offered: bool,
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

/// What part of an election timeout a leader may renew alone after it began a round. Those who have
/// answered the round wait for all of it, less a tick, by their clocks.
const ALONE: u64 = 2;

/// Expiries proposed per second (etcd's lessor: leaseRevokeRate).
const EXPIRIES_PER_S: u64 = proto::limits::LEASE_EXPIRIES_PER_S as u64;

fn ms(ttl_s: i64) -> u64 {
    u64::try_from(ttl_s).unwrap_or(0).saturating_mul(1000)
}

impl Lessor {
    /// Begins to count: this replica leads and has applied all that came before. What the leader
    /// before it may have renewed alone, when this one led already, is added.
    pub fn promote(&mut self, now_ms: u64, election_ms: u64, leases: &BTreeMap<i64, i64>) {
        self.demote();
        self.leads = true;
        self.refilled_ms = now_ms;
        for (lease, ttl_s) in leases {
            self.granted(now_ms + election_ms / ALONE, *lease, *ttl_s);
        }
    }

    /// A round that was begun at that time is confirmed: a quorum has followed this leader since.
    pub fn confirmed(&mut self, begun_ms: u64, election_ms: u64) {
        if self.leads && !self.is_offered {
            self.alone_until_ms = self.alone_until_ms.max(begun_ms + election_ms / ALONE);
        }
    }

    /// Leadership is offered to another replica: it need not wait until the others would vote.
    pub fn offered(&mut self) {
        self.is_offered = true;
        self.alone_until_ms = 0;
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

    /// Gives a living lease its full TTL again if nobody else can lead now. Gives the TTL in seconds;
    /// `None`: ask the worker. What is not known here, or about to end, is its to say.
    pub fn renew_alone(&mut self, now_ms: u64, lease: i64) -> Option<i64> {
        if now_ms >= self.alone_until_ms || self.paused_ms.is_some() {
            return None;
        }
        match self.renew(now_ms, lease) {
            Standing::Alive { ttl_s, .. } => Some(ttl_s),
            Standing::Revoking | Standing::Unknown => None,
        }
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
        lessor.promote(1000, 0, &leases.iter().copied().collect());
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
    fn a_leader_renews_alone_for_half_an_election_timeout_behind_a_confirmed_round() {
        let mut lessor = lessor(&[(7, 5)]);
        assert_eq!(lessor.renew_alone(1001, 7), None, "nobody has confirmed it");
        lessor.confirmed(2000, 1000);
        lessor.confirmed(1900, 1000);
        assert_eq!(lessor.renew_alone(2499, 7), Some(5));
        assert_eq!(lessor.standing(2499, 7), Standing::Alive { remaining_ms: 5000, ttl_s: 5 });
        assert_eq!(lessor.renew_alone(2500, 7), None);
        assert_eq!(lessor.renew_alone(2499, 8), None, "who does not know it asks");
    }

    #[test]
    fn what_is_about_to_end_is_not_renewed_alone() {
        let mut lessor = lessor(&[(7, 5)]);
        lessor.confirmed(6000, 1000);
        assert_eq!(lessor.renew_alone(6000, 7), None);
        assert_eq!(lessor.expire(6000), vec![7]);
        assert_eq!(lessor.renew_alone(6000, 7), None);
    }

    #[test]
    fn who_has_offered_its_leadership_or_lost_it_renews_nothing_alone() {
        let mut lessor = lessor(&[(7, 5)]);
        lessor.confirmed(2000, 1000);
        lessor.offered();
        lessor.confirmed(2100, 1000);
        assert_eq!(lessor.renew_alone(2101, 7), None);
        lessor.promote(3000, 0, &BTreeMap::from([(7, 5)]));
        lessor.confirmed(3000, 1000);
        assert_eq!(lessor.renew_alone(3001, 7), Some(5), "it leads anew");
        lessor.demote();
        lessor.confirmed(3001, 1000);
        assert_eq!(lessor.renew_alone(3002, 7), None);
    }

    #[test]
    fn a_successor_adds_what_may_have_been_renewed_alone() {
        // The round was begun when the successor was elected; no leader renews alone later than so.
        let (elected_ms, election_ms) = (10_000, 1000);
        let (mut deposed, mut successor) = (lessor(&[(7, 5)]), Lessor::default());
        deposed.confirmed(5_500, election_ms);
        assert_eq!(deposed.renew_alone(5_501, 7), Some(5));
        deposed.confirmed(elected_ms, election_ms);
        let last_ms = elected_ms + election_ms / 2 - 1;
        assert_eq!(deposed.renew_alone(last_ms, 7), Some(5));
        successor.promote(elected_ms, election_ms, &BTreeMap::from([(7, 5)]));
        assert_eq!(successor.expire(last_ms + 5000), Vec::<i64>::new());
        assert_eq!(successor.expire(last_ms + 5001), vec![7]);
    }

    #[test]
    fn a_follower_knows_no_clock() {
        let mut lessor = lessor(&[(7, 5)]);
        lessor.demote();
        assert_eq!(lessor.expire(99_000), Vec::<i64>::new());
        assert_eq!(lessor.standing(99_000, 7), Standing::Unknown);
    }
}
