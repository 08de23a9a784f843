//! Judges of what a run showed: was it etcd?
//!
//! The simulator and the chaos test write down what clients asked and heard, what replicas
//! applied and what watches delivered, as one [`history::History`] per tenant. [`run`] puts all
//! judges on it:
//!
//! ```text
//!                         +-> witness  revisions as the linearization, against the model
//!   History (one tenant) -+-> watches  every delivery, against the committed history
//!                         +-> leases   deaths, against acknowledged renewals
//!                         +-> linear   single keys by search, without revisions
//! ```
//!
//! [`model`] is the specification they judge by. Nothing here shares code with the system under
//! test, has a clock, randomness or I/O, or depends on hash order: the same history gives the
//! same report. Each kind of violation is one variant with one sentence that names operations.
//!
//! Not judged: users and roles, membership, hashes other than for equality; revisions of a
//! split tenant, which need not be dense (its serializability is another checker's matter).

pub mod history;
pub mod leases;
pub mod linear;
pub mod model;
pub mod reply;
pub mod sightings;
pub mod watches;
pub mod witness;
pub mod words;

#[cfg(test)]
mod scribe;

use history::History;

/// What a run promised beyond being etcd.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Of the leader's clock.
    pub leases: leases::Bounds,
    /// Did the run wait, in health, until every watch had heard of everything?
    pub settled: bool,
    /// Of the search; `None` leaves it out.
    pub linear: Option<linear::Limits>,
}

/// Any broken promise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
#[allow(missing_docs)]
pub enum Violation {
    Witness(#[from] witness::Violation),
    Watch(#[from] watches::Violation),
    Lease(#[from] leases::Violation),
    Linear(#[from] linear::Violation),
}

/// What all judges found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Everything that is wrong; empty for a good run.
    pub violations: Vec<Violation>,
    /// The witness's account, for those who want to look further.
    pub witnessed: witness::Witnessed,
    /// What the search looked at.
    pub linear: linear::Report,
}

impl Report {
    /// All violations, one to a line.
    pub fn text(&self) -> String {
        self.violations.iter().map(|violation| format!("{violation}\n")).collect()
    }
}

/// Puts all judges on a history.
pub fn run(history: &History, settings: &Settings) -> Report {
    let witnessed = witness::check(history);
    let settled = settings.settled.then(|| witnessed.model.revision());
    let watches = watches::check(history, &witnessed.model, &witnessed.sightings, settled);
    let leases = leases::check(history, &witnessed, &settings.leases);
    let search = |limits: &_| linear::check(history, limits, Some(&witnessed));
    let linear = settings.linear.as_ref().map(search).unwrap_or_default();
    let mut violations: Vec<Violation> = Vec::new();
    violations.extend(witnessed.violations.iter().cloned().map(Violation::from));
    violations.extend(watches.into_iter().map(Violation::from));
    violations.extend(leases.into_iter().map(Violation::from));
    violations.extend(linear.violations.iter().cloned().map(Violation::from));
    Report { violations, witnessed, linear }
}

#[cfg(test)]
mod tests {
    use super::{
        history::WatchSpec,
        scribe::{Scribe, busy, delete, get, grant, leased, put},
        *,
    };

    fn settings(scribe: &Scribe) -> Settings {
        Settings {
            leases: leases::Bounds {
                second: 100,
                early: 10,
                late: 50,
                healthy_since: Some(0),
                ended: scribe.now,
            },
            settled: true,
            linear: Some(linear::Limits::default()),
        }
    }

    #[test]
    fn a_good_run_passes_all_judges() {
        let mut scribe = busy(11, 500, 8, 5);
        scribe.watch(WatchSpec::new(b"k", b"l", 2));
        let report = run(&scribe.history, &settings(&scribe));
        assert_eq!(report.text(), "");
        assert!(report.linear.operations > 500 && report.linear.given_up == 0);
    }

    #[test]
    fn each_judge_is_heard() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(7, 3));
        scribe.ask(1, leased("l", "1", 7));
        // Leases: an expiry much too early.
        scribe.unasked(delete("l", ""));
        scribe.ask(1, put("a", "1"));
        scribe.ask(1, put("a", "2"));
        let watch = scribe.watch(WatchSpec::new(b"a", b"", 2));
        // Watches: the last event is lost. Witness and search: an old answer, too late.
        scribe.history.watches[watch.0].heard.pop();
        let read = scribe.ask(2, get("a"));
        let old = scribe.model.kv_at(b"a", 4).cloned().expect("it was there");
        if let proto::group::Reply::Range(reply) = scribe.reply(read) {
            reply.kvs = vec![old];
        }
        let report = run(&scribe.history, &settings(&scribe));
        let heard = |pick: fn(&Violation) -> bool| report.violations.iter().any(pick);
        assert!(heard(|v| matches!(v, Violation::Witness(_))), "{}", report.text());
        assert!(heard(|v| matches!(v, Violation::Watch(_))), "{}", report.text());
        assert!(heard(|v| matches!(v, Violation::Lease(_))), "{}", report.text());
        assert!(heard(|v| matches!(v, Violation::Linear(_))), "{}", report.text());
    }
}
