//! When a lease may die, and that it stays dead.
//!
//! A lease is renewed somewhere between the call and the answer of a grant or keepalive; it is
//! gone when its keys are, in one revision, without anyone having asked. Both moments are known
//! only as intervals, so each rule is drawn from the safe ends:
//!
//! ```text
//!   keepalive   |call .... renewed .... answer|
//!                |<------------- ttl - early -------------->|
//!   expiry                                         must not be seen before here
//! ```
//!
//! * *early*: an expiry is not seen before the last answered renewal's call plus TTL, less the
//!   given error of the leader's clock;
//! * *whole*: a lease takes all its keys in one revision;
//! * *dead is dead*: after it is known to be gone (expired, revoked, or a truthful "not found")
//!   nothing attaches to it, renews it or reports it alive, unless it is granted anew;
//! * *not lost*: nobody is told "not found" while it certainly lives;
//! * *overdue*: in health it is gone by twice its TTL and a bound after the last renewal (a new
//!   leader may give every lease its full TTL once more).
//!
//! Unknown outcomes weaken, never break: a grant that may have happened forgives what a new
//! life would explain, and so does a delete that may have taken the keys of a lease that lives on.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    Error,
    group::{Reply, Request},
    mvccpb::event::EventType,
};

use super::{
    history::{History, OpId, Outcome, Time},
    model::kv,
    sightings::Sightings,
    witness::{Origin, Witnessed, for_puts},
    words::text,
};

/// What the run allows a leader's clock, in the run's own unit of time.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Units in a second: TTLs are told in seconds.
    pub second: Time,
    /// How much too early an expiry may be (the clock's error over a TTL).
    pub early: Time,
    /// How late beyond twice the TTL (scan interval, rate limit, delivery, clock error).
    pub late: Time,
    /// Since when the cluster had a leader and nothing failed; `None`: nothing is overdue.
    pub healthy_since: Option<Time>,
    /// When the run ended.
    pub ended: Time,
}

/// A broken promise about a lease. Operations are told in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It died too soon.
    #[error("lease {lease} expired at {seen} (revision {revision}), not before {due} by {kept_by}")]
    Early {
        /// Which.
        lease: i64,
        /// Revision that took its keys.
        revision: i64,
        /// When that was seen.
        seen: Time,
        /// Earliest moment allowed.
        due: Time,
        /// The renewal that says so.
        kept_by: String,
    },
    /// It took only some of its keys.
    #[error("revision {revision} took only some keys of lease {lease}: {left} stayed")]
    Partial {
        /// Which.
        lease: i64,
        /// Where.
        revision: i64,
        /// A key that stayed.
        left: String,
    },
    /// It came back.
    #[error("lease {lease} was gone by {gone}, but {alive} knows it")]
    Resurrected {
        /// Which.
        lease: i64,
        /// How its death is known.
        gone: String,
        /// What says it lives.
        alive: String,
    },
    /// It was denied while it lived.
    #[error("{denied} was told that lease {lease} is gone, but {kept_by} holds until {until}")]
    Lost {
        /// Which.
        lease: i64,
        /// Who was told so.
        denied: String,
        /// The renewal that holds.
        kept_by: String,
        /// Until when at least.
        until: Time,
    },
    /// It lives too long.
    #[error("lease {lease} should have been gone by {deadline}: {alive}")]
    Overdue {
        /// Which.
        lease: i64,
        /// When it should have been gone at the latest.
        deadline: Time,
        /// What says it is not.
        alive: String,
    },
}

/// Checks every lease of a history that the witness has walked.
pub fn check(history: &History, witnessed: &Witnessed, bounds: &Bounds) -> Vec<Violation> {
    let mut lives = gather(history, witnessed);
    let mut violations = partial(witnessed);
    for (id, life) in &mut lives {
        let judge = Judge { id: *id, life, history, witnessed, bounds };
        judge.early(&mut violations);
        judge.resurrected(&mut violations);
        judge.lost(&mut violations);
        judge.overdue(&mut violations);
    }
    violations
}

/// Everything known of one lease id.
#[derive(Default)]
struct Life {
    /// Grants that were answered or may have happened.
    grants: Vec<Grant>,
    /// Answered grants and keepalives: they held for the TTL.
    renewals: Vec<Renewal>,
    /// Answers that it is gone.
    denials: Vec<OpId>,
    /// Answers that it lives.
    sights: Vec<OpId>,
    /// Revokes, answered or not.
    revokes: Vec<OpId>,
    /// Revisions that put a key on it.
    attached: Vec<i64>,
    /// Revisions that took its keys without being asked.
    expired: Vec<i64>,
    /// Keepalives of unknown outcome.
    unknown: Vec<OpId>,
}

struct Grant {
    op: OpId,
    /// Revision of the answer; `None` if it only may have happened.
    revision: Option<i64>,
}

struct Renewal {
    op: OpId,
    ttl_s: i64,
}

fn gather(history: &History, witnessed: &Witnessed) -> BTreeMap<i64, Life> {
    let mut lives: BTreeMap<i64, Life> = BTreeMap::new();
    for (op, operation) in history.ops() {
        match (&operation.request, &operation.outcome) {
            (Request::LeaseGrant(_), Outcome::Done(Reply::LeaseGrant(reply))) => {
                let life = lives.entry(reply.id).or_default();
                life.grants.push(Grant { op, revision: operation.revision() });
                life.renewals.push(Renewal { op, ttl_s: reply.ttl });
            }
            (Request::LeaseGrant(ask), Outcome::Unknown) if ask.id != 0 => {
                let life = lives.entry(ask.id).or_default();
                life.grants.push(Grant { op, revision: None });
            }
            (Request::LeaseKeepAlive(ask), Outcome::Done(Reply::LeaseKeepAlive(reply))) => {
                let life = lives.entry(ask.id).or_default();
                if reply.ttl > 0 {
                    life.renewals.push(Renewal { op, ttl_s: reply.ttl });
                    life.sights.push(op);
                } else {
                    life.denials.push(op);
                }
            }
            (Request::LeaseKeepAlive(ask), Outcome::Unknown) => {
                lives.entry(ask.id).or_default().unknown.push(op);
            }
            (Request::LeaseTimeToLive(ask), Outcome::Done(Reply::LeaseTimeToLive(reply))) => {
                let life = lives.entry(ask.id).or_default();
                let list = if reply.ttl >= 0 { &mut life.sights } else { &mut life.denials };
                list.push(op);
            }
            (Request::LeaseLeases(_), Outcome::Done(Reply::LeaseLeases(reply))) => {
                for lease in &reply.leases {
                    lives.entry(lease.id).or_default().sights.push(op);
                }
            }
            (Request::LeaseRevoke(ask), Outcome::Refused(Error::LeaseNotFound)) => {
                lives.entry(ask.id).or_default().denials.push(op);
            }
            (Request::LeaseRevoke(_), Outcome::Refused(_)) => {}
            (Request::LeaseRevoke(ask), _) => {
                lives.entry(ask.id).or_default().revokes.push(op);
            }
            (request, Outcome::Refused(Error::LeaseNotFound)) => {
                let mut named = BTreeSet::new();
                for_puts(request, &mut |put| {
                    named.insert(put.lease);
                });
                named.remove(&0);
                // With several leases in one transaction nobody knows which one was meant.
                if let (Some(lease), 1) = (named.first(), named.len()) {
                    lives.entry(*lease).or_default().denials.push(op);
                }
            }
            _ => {}
        }
    }
    for (revision, events) in witnessed.model.changes() {
        for event in events.iter().filter(|event| event.r#type() == EventType::Put) {
            if kv(event).lease != 0 {
                lives.entry(kv(event).lease).or_default().attached.push(*revision);
            }
        }
        if let Some(Origin::Expiry(lease)) = witnessed.origins.get(revision) {
            lives.entry(*lease).or_default().expired.push(*revision);
        }
    }
    lives
}

/// Whole: looks at revisions that nobody asked for and that begin to take a lease's keys.
fn partial(witnessed: &Witnessed) -> Vec<Violation> {
    let mut found = Vec::new();
    for (revision, origin) in &witnessed.origins {
        let events = &witnessed.model.changes()[revision];
        let deletes = events.iter().all(|event| event.r#type() == EventType::Delete);
        if *origin != Origin::Nobody || !deletes {
            continue;
        }
        let leases: BTreeSet<i64> =
            events.iter().filter_map(|event| event.prev_kv.as_ref()).map(|kv| kv.lease).collect();
        let (Some(lease), 1) = (leases.first().copied().filter(|id| *id != 0), leases.len()) else {
            continue;
        };
        if let Some(left) = witnessed.model.attached_at(lease, *revision).first() {
            let (revision, left) = (*revision, text(left));
            found.push(Violation::Partial { lease, revision, left });
        }
    }
    found
}

/// How it is known that a lease was gone.
struct Death {
    /// At this time it was gone.
    at: Time,
    /// It was gone by this revision.
    revision: Option<i64>,
    /// It was not gone before (as far as is known).
    after: Time,
    /// Did its keys go by themselves?
    expiry: bool,
    told: String,
}

struct Judge<'a> {
    id: i64,
    life: &'a Life,
    history: &'a History,
    witnessed: &'a Witnessed,
    bounds: &'a Bounds,
}

impl Judge<'_> {
    fn sightings(&self) -> &Sightings {
        &self.witnessed.sightings
    }

    fn span(&self, ttl_s: i64) -> Time {
        Time::try_from(ttl_s).unwrap_or(0).saturating_mul(self.bounds.second)
    }

    /// Until when a renewal holds at least.
    fn holds_until(&self, renewal: &Renewal) -> Time {
        let call = self.history.op(renewal.op).call;
        let due = call.saturating_add(self.span(renewal.ttl_s)).saturating_sub(self.bounds.early);
        // Nobody was answered while the clocks stood still: the renewal was before.
        let stills = self.history.stills.iter().filter(|(_, to)| *to > call);
        stills.fold(due, |due, (from, to)| match *from < due {
            true => due.saturating_add(to - call.max(*from)),
            false => due,
        })
    }

    /// Revisions that can be nothing but the lease's end.
    fn ends(&self) -> impl Iterator<Item = &i64> {
        self.life.expired.iter().filter(|revision| !self.witnessed.doubtful.contains(revision))
    }

    fn early(&self, violations: &mut Vec<Violation>) {
        for revision in self.ends() {
            let seen = self.sightings().first_seen(*revision);
            let before = |grant: &&Grant| match grant.revision {
                Some(granted) => granted < *revision,
                None => self.history.op(grant.op).call <= seen,
            };
            // The life that ended here began with the last grant before.
            let grants = self.life.grants.iter().filter(before);
            let Some(born) = grants.map(|grant| self.history.op(grant.op).call).max() else {
                continue;
            };
            let reborn = self.life.grants.iter().any(|grant| match grant.revision {
                Some(granted) => granted >= *revision,
                None => true,
            });
            for renewal in &self.life.renewals {
                let op = self.history.op(renewal.op);
                // What ends later may be about a next life.
                let next_life = op.over() >= seen && reborn;
                let due = self.holds_until(renewal);
                if op.call >= born && op.call < seen && !next_life && seen < due {
                    violations.push(Violation::Early {
                        lease: self.id,
                        revision: *revision,
                        seen,
                        due,
                        kept_by: self.history.tell(renewal.op),
                    });
                }
            }
        }
    }

    fn deaths(&self) -> Vec<Death> {
        let mut deaths = Vec::new();
        for revision in self.ends() {
            deaths.push(Death {
                at: self.sightings().first_seen(*revision),
                revision: Some(*revision),
                after: 0,
                expiry: true,
                told: format!("its expiry at revision {revision}"),
            });
        }
        let answered =
            self.life.revokes.iter().filter(|op| self.history.op(**op).reply().is_some());
        for op in answered.chain(&self.life.denials) {
            let operation = self.history.op(*op);
            deaths.push(Death {
                at: operation.over(),
                revision: operation.revision(),
                after: operation.call,
                expiry: false,
                told: self.history.tell(*op),
            });
        }
        deaths
    }

    fn resurrected(&self, violations: &mut Vec<Violation>) {
        for death in self.deaths() {
            // From when on a new life may have begun.
            let reborn = self
                .life
                .grants
                .iter()
                .filter(|grant| {
                    let op = self.history.op(grant.op);
                    let later = |granted: i64| death.revision.is_none_or(|gone| granted >= gone);
                    op.over() >= death.after && grant.revision.is_none_or(later)
                })
                .map(|grant| self.history.op(grant.op).call)
                .min()
                .unwrap_or(Time::MAX);
            let by_op = self.life.sights.iter().find(|op| {
                let op = self.history.op(**op);
                op.call > death.at && op.over() < reborn
            });
            let by_key = self.life.attached.iter().find(|revision| {
                let called = match self.witnessed.origins.get(revision) {
                    Some(Origin::Op(op)) => self.history.op(*op).call,
                    _ => 0,
                };
                // A denial's header is no date of death; its time is.
                let later = death.expiry && death.revision.is_some_and(|gone| **revision > gone);
                let seen = self.sightings().first_seen(**revision);
                (later || called > death.at) && seen < reborn
            });
            let alive = by_op
                .map(|op| self.history.tell(*op))
                .or_else(|| by_key.map(|revision| format!("revision {revision}")));
            if let Some(alive) = alive {
                violations.push(Violation::Resurrected {
                    lease: self.id,
                    gone: death.told.clone(),
                    alive,
                });
            }
        }
    }

    fn lost(&self, violations: &mut Vec<Violation>) {
        for denial in &self.life.denials {
            let denied = self.history.op(*denial);
            let held = self.life.renewals.iter().find(|renewal| {
                let kept = self.history.op(renewal.op);
                let revoked = self.life.revokes.iter().any(|op| {
                    let revoke = self.history.op(*op);
                    revoke.call <= denied.over() && revoke.over() >= kept.call
                });
                kept.over() < denied.call && denied.over() < self.holds_until(renewal) && !revoked
            });
            if let Some(renewal) = held {
                violations.push(Violation::Lost {
                    lease: self.id,
                    denied: self.history.tell(*denial),
                    kept_by: self.history.tell(renewal.op),
                    until: self.holds_until(renewal),
                });
            }
        }
    }

    fn overdue(&self, violations: &mut Vec<Violation>) {
        let Some(healthy) = self.bounds.healthy_since else { return };
        let Some(ttl_s) = self.life.renewals.iter().map(|renewal| renewal.ttl_s).max() else {
            return;
        };
        let asked = self.life.renewals.iter().map(|renewal| renewal.op);
        let grants = self.life.grants.iter().map(|grant| grant.op);
        let all = asked.chain(grants).chain(self.life.unknown.iter().copied());
        let renewed = all.map(|op| self.history.op(op).end.unwrap_or(self.bounds.ended)).max();
        let last = renewed.unwrap_or(0).max(healthy);
        let span = self.span(ttl_s).saturating_mul(2);
        let deadline = last.saturating_add(span).saturating_add(self.bounds.late);
        if deadline >= self.bounds.ended {
            return;
        }
        let model = &self.witnessed.model;
        let late = self
            .life
            .expired
            .iter()
            .find(|revision| self.sightings().first_seen(**revision) > deadline);
        let sight = self.life.sights.iter().find(|op| self.history.op(**op).call > deadline);
        let alive = if let Some(key) = model.attached_at(self.id, i64::MAX).first() {
            format!("{} is still there", text(key))
        } else if let Some(revision) = late {
            let seen = self.sightings().first_seen(*revision);
            format!("it went at {seen}, with revision {revision}")
        } else if let Some(op) = sight {
            format!("{} knows it", self.history.tell(*op))
        } else {
            return;
        };
        violations.push(Violation::Overdue { lease: self.id, deadline, alive });
    }
}

#[cfg(test)]
mod tests {
    use proto::etcd;

    use super::{
        super::{
            scribe::{
                Scribe, bytes, compact, delete, grant, keep_alive, leased, put, revoke,
                time_to_live,
            },
            witness,
        },
        *,
    };

    /// A second is 100 units of time; a step of the scribe takes ten.
    const BOUNDS: Bounds =
        Bounds { second: 100, early: 20, late: 50, healthy_since: Some(0), ended: 0 };

    fn found(scribe: &Scribe) -> Vec<Violation> {
        let witnessed = witness::check(&scribe.history);
        let bounds = Bounds { ended: scribe.now, ..BOUNDS };
        let violations = check(&scribe.history, &witnessed, &bounds);
        assert!(violations.iter().all(|violation| !violation.to_string().is_empty()));
        violations
    }

    macro_rules! caught {
        ($scribe:expr, $pattern:pat) => {
            let violations = found(&$scribe);
            let found = violations.iter().any(|violation| matches!(violation, $pattern));
            assert!(found, "not caught, only {violations:#?}");
        };
    }

    /// Lease 7 of 3 s with keys a and b, granted at 100 (until 400 at least), kept alive at 200
    /// (until 500).
    fn leased_keys() -> Scribe {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(7, 3));
        scribe.ask(1, leased("a", "1", 7));
        scribe.ask(1, leased("b", "2", 7));
        scribe.now = 200;
        scribe.ask(1, keep_alive(7));
        scribe
    }

    #[test]
    fn a_lease_that_dies_in_time_is_clean() {
        for at in [480, 700, 850] {
            let mut scribe = leased_keys();
            scribe.now = at;
            scribe.unasked(revoke(7));
            scribe.ask(1, keep_alive(7));
            scribe.ask(1, time_to_live(7));
            scribe.now = 2000;
            assert_eq!(found(&scribe), Vec::new());
        }
    }

    #[test]
    fn an_early_expiry_is_caught() {
        let mut scribe = leased_keys();
        scribe.now = 470;
        scribe.unasked(revoke(7));
        caught!(scribe, Violation::Early { lease: 7, revision: 4, seen: 475, due: 480, .. });
    }

    #[test]
    fn an_expiry_that_takes_no_notice_of_a_standstill_is_caught() {
        let mut scribe = leased_keys();
        scribe.history.stand_still(250, 300);
        scribe.history.stand_still(290, 350);
        scribe.now = 500;
        scribe.unasked(revoke(7));
        caught!(scribe, Violation::Early { lease: 7, due: 580, .. });
    }

    /// The first revision is taken for what the lost delete did; it may as well have been the
    /// lease's end, and the second one the delete.
    #[test]
    fn a_lost_delete_may_have_taken_the_keys_of_a_lease_that_lives() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(7, 1));
        scribe.ask(1, leased("a", "1", 7));
        let lost = scribe.history.call(2, scribe.now, delete("a", ""));
        scribe.now += 200;
        scribe.unasked(revoke(7));
        scribe.ask(1, grant(7, 3));
        scribe.ask(1, leased("a", "2", 7));
        scribe.unasked(delete("a", ""));
        assert_eq!(found(&scribe), Vec::new());
        // Without it the lease has died too soon.
        scribe.history.operations[lost.0].outcome = Outcome::Refused(Error::Timeout);
        caught!(scribe, Violation::Early { lease: 7, .. });
    }

    #[test]
    fn an_expiry_that_a_keepalive_should_have_moved_is_caught() {
        let mut scribe = leased_keys();
        scribe.now = 395;
        scribe.ask(1, keep_alive(7));
        scribe.now = 500;
        scribe.unasked(revoke(7));
        caught!(scribe, Violation::Early { due: 675, .. });
        // The same keepalive without an answer promises nothing.
        scribe.history.operations.last_mut().expect("the keepalive").outcome = Outcome::Unknown;
        assert_eq!(found(&scribe), Vec::new());
    }

    #[test]
    fn a_revoke_may_come_at_any_time() {
        let mut scribe = leased_keys();
        scribe.ask(1, revoke(7));
        scribe.ask(1, time_to_live(7));
        // A new life under the same id is judged by its own renewals.
        scribe.ask(1, grant(7, 2));
        scribe.ask(1, leased("a", "3", 7));
        scribe.now = 415;
        scribe.unasked(revoke(7));
        assert_eq!(found(&scribe), Vec::new());
        let mut scribe = leased_keys();
        scribe.lose(1, revoke(7), true);
        assert_eq!(found(&scribe), Vec::new());
    }

    #[test]
    fn a_lease_that_leaves_a_key_is_caught() {
        let mut scribe = leased_keys();
        scribe.now = 600;
        scribe.unasked(delete("a", ""));
        caught!(scribe, Violation::Partial { lease: 7, revision: 4, .. });
    }

    #[test]
    fn an_expired_lease_that_is_renewed_is_caught() {
        let expired = || {
            let mut scribe = leased_keys();
            scribe.now = 600;
            scribe.unasked(revoke(7));
            scribe
        };
        let header = Some(super::super::model::header(4));
        let mut scribe = expired();
        let alive = etcd::LeaseKeepAliveResponse { header, id: 7, ttl: 3 };
        scribe.answer(1, keep_alive(7), Reply::LeaseKeepAlive(alive));
        caught!(scribe, Violation::Resurrected { lease: 7, .. });

        let mut scribe = expired();
        let leases = vec![etcd::LeaseStatus { id: 7 }];
        let listed = etcd::LeaseLeasesResponse { header, leases };
        let list = Request::LeaseLeases(etcd::LeaseLeasesRequest {});
        scribe.answer(1, list, Reply::LeaseLeases(listed));
        caught!(scribe, Violation::Resurrected { lease: 7, .. });

        let mut scribe = expired();
        scribe.model.grant(7, 3);
        scribe.ask(1, leased("c", "1", 7));
        caught!(scribe, Violation::Resurrected { lease: 7, .. });

        // A grant that may have happened explains all of it.
        let mut scribe = expired();
        scribe.lose(1, grant(7, 3), true);
        scribe.ask(1, leased("c", "1", 7));
        scribe.ask(1, keep_alive(7));
        assert_eq!(found(&scribe), Vec::new());
    }

    #[test]
    fn a_revoked_lease_that_is_renewed_is_caught() {
        let mut scribe = leased_keys();
        scribe.ask(1, revoke(7));
        scribe.model.grant(7, 3);
        scribe.ask(1, time_to_live(7));
        caught!(scribe, Violation::Resurrected { lease: 7, .. });
    }

    #[test]
    fn a_lease_that_was_denied_stays_denied() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(7, 3));
        scribe.model.forget_lease(7);
        scribe.now = 600;
        scribe.ask(1, keep_alive(7));
        assert_eq!(found(&scribe), Vec::new());
        scribe.model.grant(7, 3);
        scribe.ask(1, leased("a", "1", 7));
        caught!(scribe, Violation::Resurrected { lease: 7, .. });
    }

    #[test]
    fn a_living_lease_that_is_denied_is_caught() {
        let requests = [keep_alive(7), time_to_live(7), revoke(7), leased("c", "1", 7)];
        for request in requests {
            let mut scribe = leased_keys();
            scribe.model.forget_lease(7);
            scribe.now = 400;
            scribe.ask(2, request.clone());
            caught!(scribe, Violation::Lost { lease: 7, until: 480, .. });
            // When its time is over nobody knows.
            let mut scribe = leased_keys();
            scribe.model.forget_lease(7);
            scribe.now = 480;
            scribe.ask(2, request);
            assert_eq!(found(&scribe), Vec::new());
        }
        // Nor when somebody may have revoked it.
        let mut scribe = leased_keys();
        scribe.lose(3, revoke(7), true);
        scribe.ask(2, keep_alive(7));
        assert_eq!(found(&scribe), Vec::new());
    }

    #[test]
    fn a_lease_that_lives_too_long_is_caught() {
        // Renewed by 209, so gone by 209 + 600 + 50.
        let mut scribe = leased_keys();
        scribe.now = 859;
        assert_eq!(found(&scribe), Vec::new());
        scribe.now = 860;
        caught!(scribe, Violation::Overdue { lease: 7, deadline: 859, .. });
        // It went, but late.
        scribe.unasked(revoke(7));
        caught!(scribe, Violation::Overdue { lease: 7, .. });
        // It has no keys, but somebody saw it.
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(7, 3));
        scribe.now = 900;
        scribe.ask(1, time_to_live(7));
        caught!(scribe, Violation::Overdue { lease: 7, .. });
    }

    #[test]
    fn nothing_is_overdue_before_health_has_lasted() {
        let mut scribe = leased_keys();
        scribe.now = 5000;
        let witnessed = witness::check(&scribe.history);
        let since = |healthy_since| Bounds { healthy_since, ended: 5000, ..BOUNDS };
        for healthy_since in [None, Some(4900)] {
            assert_eq!(check(&scribe.history, &witnessed, &since(healthy_since)), Vec::new());
        }
        assert_eq!(check(&scribe.history, &witnessed, &since(Some(4000))).len(), 1);
    }

    #[test]
    fn other_traffic_says_nothing_of_leases() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        scribe.ask(1, delete("a", ""));
        scribe.ask(1, compact(2));
        scribe.now = 9000;
        assert_eq!(found(&scribe), Vec::new());
        assert_eq!(bytes("a"), "a");
    }
}
