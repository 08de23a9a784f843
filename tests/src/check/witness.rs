//! The revision witness: the committed history is the linearization, so it only needs checking.
//!
//! Finding an order that explains a history is hard; etcd tells the order. Every answer carries
//! the revision at which it was true, and the union of what replicas applied says what each
//! revision did. So one walk over the revisions, with the [`Model`] beside it, decides:
//!
//! ```text
//!   revision   1      2          3           4            5
//!   committed         put a      put b       delete a     put c
//!   asked by          op 0       op 2 (?)    lease 7      op 5        <- origins
//!   gaps       op 1   op 3       op 4, 6     ...                      <- reads, no-ops
//! ```
//!
//! 1. revisions are dense from 2 on, and all sources tell each of them the same;
//! 2. an answered write stands at its revision, did there what the model says, and was answered
//!    what the model answers; nobody else claims the revision;
//! 3. every read, failed transaction and no-op equals the state at its header's revision;
//! 4. what was called after a revision had been seen is not answered from below it (a write:
//!    not from it either); serializable reads only never go back on their own client;
//! 5. a revision nobody was answered for belongs to one operation of unknown outcome that was
//!    called in time, or is a lease's expiry; what was refused is nowhere.
//!
//! Operations of unknown outcome are found by what they do: values are unique, so a put has one
//! candidate. Deletes look alike; which of several did which revision is a matching. The state
//! never depends on the choice, because the committed events, not the requests, drive the model.
//!
//! Not decided here: when a lease may die ([`super::leases`]); what a compaction hides is
//! decided by time alone (the model keeps all history). Compactions that the system makes by
//! itself must be recorded as operations, of unknown outcome if need be.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::{
    Error, etcd,
    etcd::{RequestOp, ResponseOp, request_op::Request as Op, response_op::Response as Answer},
    group::{Reply, Request},
    mvccpb::{Event, event::EventType},
};

use super::{
    history::{History, OpId, Operation, Outcome, Time},
    model::{Model, covers, kv},
    reply::difference,
    sightings::Sightings,
    words::{events_words, text},
};

/// A way in which a history is not what etcd promises. Operations are told in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Rule 1: revisions are dense.
    #[error("revisions {first} to {last} are missing from the committed history")]
    Hole {
        /// First missing.
        first: i64,
        /// Last missing.
        last: i64,
    },
    /// Rule 1: a revision consists of its own events.
    #[error("revision {revision} was committed as {events}, which is empty or of another revision")]
    Misplaced {
        /// Which.
        revision: i64,
        /// Its events.
        events: String,
    },
    /// Rule 1: replicas agree.
    #[error("revision {revision} is {first} on {first_source} but {second} on {second_source}")]
    SourcesDiffer {
        /// Which.
        revision: i64,
        /// Told first.
        first: String,
        /// By whom.
        first_source: u64,
        /// Told otherwise.
        second: String,
        /// By whom.
        second_source: u64,
    },
    /// Rule 1: hashes of the same revision agree.
    #[error("{first} and {second} hashed revision {revision} to {first_hash} and {second_hash}")]
    HashesDiffer {
        /// Which.
        revision: i64,
        /// Who hashed first.
        first: String,
        /// To what.
        first_hash: u32,
        /// Who hashed otherwise.
        second: String,
        /// To what.
        second_hash: u32,
    },
    /// An answer lacks its header.
    #[error("{op} was answered without a revision")]
    NoRevision {
        /// Whose.
        op: String,
    },
    /// Rule 2 and 3: an answer names a revision that does not exist.
    #[error("{op} was answered at revision {revision}, which nobody committed; the last is {last}")]
    Beyond {
        /// Whose.
        op: String,
        /// Named.
        revision: i64,
        /// Last that exists.
        last: i64,
    },
    /// Rule 2: one revision, one write.
    #[error("revision {revision} is claimed by {first} and by {second}")]
    ClaimedTwice {
        /// Which.
        revision: i64,
        /// First claimant.
        first: String,
        /// Second claimant.
        second: String,
    },
    /// Rule 2 and 3: an answered request would have been refused there.
    #[error("{op} was answered, but at revision {revision} it is refused: {error}")]
    Impossible {
        /// Whose.
        op: String,
        /// Where.
        revision: i64,
        /// Why.
        error: Error,
    },
    /// Rule 2: a write did what it asked.
    #[error("{op} should have done {expected}, but revision {revision} is {committed}")]
    WrongEffect {
        /// Whose.
        op: String,
        /// Where.
        revision: i64,
        /// By the model.
        expected: String,
        /// In fact.
        committed: String,
    },
    /// Rule 2 and 3: the answer is the model's.
    #[error("{op} was answered wrongly: {difference}")]
    WrongReply {
        /// Whose.
        op: String,
        /// First field that differs.
        difference: String,
    },
    /// Rule 5: every revision has somebody who asked for it.
    #[error("nobody asked for revision {revision}: {events}")]
    Unexplained {
        /// Which.
        revision: i64,
        /// What it did.
        events: String,
    },
    /// Rule 5: what was refused is nowhere.
    #[error("{op} was refused but stands at revision {revision}: {events}")]
    RefusedButDone {
        /// Whose.
        op: String,
        /// Where it stands.
        revision: i64,
        /// What it did.
        events: String,
    },
    /// Rule 2 and 5: an operation takes effect once.
    #[error("{op} took effect at revision {first} and again at revision {second}")]
    DoneTwice {
        /// Whose.
        op: String,
        /// Its revision.
        first: i64,
        /// Where it stands again.
        second: i64,
    },
    /// Rule 5: an operation takes effect after its call.
    #[error("{op} explains revision {revision}, but that was seen at {seen}, before the call")]
    DoneBeforeCall {
        /// Whose.
        op: String,
        /// Where it stands.
        revision: i64,
        /// When that was seen.
        seen: Time,
    },
    /// Rule 2: a revoke that was answered took the keys along.
    #[error("{op} was answered, but the keys of the lease were not deleted by it")]
    RevokeWithoutEffect {
        /// Whose.
        op: String,
    },
    /// Rule 4: real time.
    #[error("{op} was answered at revision {revision}, though {floor} had been seen by {shown_by}")]
    Stale {
        /// Whose.
        op: String,
        /// Answered at.
        revision: i64,
        /// Seen before its call.
        floor: i64,
        /// By whom.
        shown_by: String,
    },
    /// Rule 4: a client never goes back.
    #[error("{op} went back to revision {revision} from {floor}, which {shown_by} had shown")]
    WentBack {
        /// Whose.
        op: String,
        /// Answered at.
        revision: i64,
        /// Shown before on this client.
        floor: i64,
        /// By which operation.
        shown_by: String,
    },
    /// A read below a compaction that was over when it began.
    #[error("{op} read what {compaction} had compacted")]
    ReadCompacted {
        /// The read.
        op: String,
        /// The compaction.
        compaction: String,
    },
    /// A refusal without its reason.
    #[error("{op} was refused without reason: {why}")]
    Unfounded {
        /// Whose.
        op: String,
        /// What speaks against it.
        why: String,
    },
}

/// Who asked for a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An operation, answered or of unknown outcome.
    Op(OpId),
    /// The expiry of a lease.
    Expiry(i64),
    /// Nobody.
    Nobody,
}

/// What the walk over the revisions found.
#[derive(Clone, Debug)]
pub struct Witnessed {
    /// The whole committed history, with every state.
    pub model: Model,
    /// Who asked for each revision.
    pub origins: BTreeMap<i64, Origin>,
    /// Expiries that may as well be what an operation of unknown outcome did: one that now explains
    /// what may itself be an expiry.
    pub doubtful: BTreeSet<i64>,
    /// Who saw what when.
    pub sightings: Sightings,
    /// What is wrong.
    pub violations: Vec<Violation>,
}

impl Witnessed {
    /// Revision at which an operation took effect, if it made one.
    pub fn revision_of(&self, op: OpId) -> Option<i64> {
        let mut origins = self.origins.iter();
        origins.find(|(_, origin)| **origin == Origin::Op(op)).map(|(revision, _)| *revision)
    }

    /// Every operation that made a revision.
    pub fn placed(&self) -> BTreeMap<OpId, i64> {
        let of = |(revision, origin): (&i64, &Origin)| match origin {
            Origin::Op(op) => Some((*op, *revision)),
            _ => None,
        };
        self.origins.iter().filter_map(of).collect()
    }
}

/// Checks a history against its committed revisions.
pub fn check(history: &History) -> Witnessed {
    // Deletes that look alike fit many revisions; a few for each nearly always do.
    let (witnessed, cut_short) = walk(history, 8);
    let suspicious = |violation: &Violation| {
        matches!(violation, Violation::Unexplained { .. } | Violation::DoneTwice { .. })
    };
    if cut_short && witnessed.violations.iter().any(suspicious) {
        return walk(history, usize::MAX).0;
    }
    witnessed
}

/// Also says whether some operation that fits a revision was left out.
fn walk(history: &History, fits_max: usize) -> (Witnessed, bool) {
    let mut walk = Walk::begin(history, fits_max);
    walk.check_sources();
    walk.sort_operations();
    walk.replay();
    walk.match_open();
    walk.check_real_time();
    walk.check_compactions();
    walk.check_refusals();
    let Walk { model, origins, doubtful, sightings, violations, cut_short, .. } = walk;
    (Witnessed { model, origins, doubtful, sightings, violations }, cut_short)
}

/// Revisions without a claimant are diagnosed by trying every operation; not for more than this.
const DIAGNOSES_MAX: usize = 32;

struct Walk<'h> {
    history: &'h History,
    sightings: Sightings,
    model: Model,
    /// Answered writes that changed something, by their revision.
    claims: BTreeMap<i64, Vec<OpId>>,
    /// What changed nothing, by the revision at which it was answered.
    gaps: BTreeMap<i64, Vec<OpId>>,
    /// Operations of unknown outcome.
    suspects: Suspects,
    /// Revokes, answered or unknown, by lease.
    revokes: BTreeMap<i64, Vec<OpId>>,
    /// Revisions without a claimant that something explains.
    open: Vec<Open>,
    origins: BTreeMap<i64, Origin>,
    doubtful: BTreeSet<i64>,
    violations: Vec<Violation>,
    diagnoses: usize,
    /// Operations collected for one revision.
    fits_max: usize,
    cut_short: bool,
}

/// A revision without a claimant.
struct Open {
    revision: i64,
    /// Operations that would have done exactly this, called in time.
    fits: Vec<OpId>,
    /// The lease whose keys these are, all of them.
    expiry: Option<i64>,
}

impl<'h> Walk<'h> {
    fn begin(history: &'h History, fits_max: usize) -> Walk<'h> {
        Walk {
            history,
            sightings: Sightings::of(history),
            model: Model::new(),
            claims: BTreeMap::new(),
            gaps: BTreeMap::new(),
            suspects: Suspects::default(),
            revokes: BTreeMap::new(),
            open: Vec::new(),
            origins: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            violations: Vec::new(),
            diagnoses: 0,
            fits_max,
            cut_short: false,
        }
    }

    fn tell(&self, op: OpId) -> String {
        self.history.tell(op)
    }

    /// Rule 1.
    fn check_sources(&mut self) {
        let mut next = 2;
        for (revision, change) in &self.history.changes {
            if *revision > next {
                self.violations.push(Violation::Hole { first: next, last: revision - 1 });
            }
            let own = |event: &Event| kv(event).mod_revision == *revision;
            if change.events.is_empty() || !change.events.iter().all(own) || *revision < 2 {
                let events = events_words(&change.events);
                self.violations.push(Violation::Misplaced { revision: *revision, events });
            }
            next = revision + 1;
        }
        for conflict in &self.history.conflicts {
            self.violations.push(Violation::SourcesDiffer {
                revision: conflict.revision,
                first: events_words(&conflict.first.1),
                first_source: conflict.first.0,
                second: events_words(&conflict.second.1),
                second_source: conflict.second.0,
            });
        }
        let mut hashes: BTreeMap<(i64, i64), (OpId, u32)> = BTreeMap::new();
        for (id, op) in self.history.ops() {
            let Some(Reply::HashKv(reply)) = op.reply() else { continue };
            let subject = (reply.hash_revision, reply.compact_revision);
            let (first, hash) = *hashes.entry(subject).or_insert((id, reply.hash));
            if hash != reply.hash {
                self.violations.push(Violation::HashesDiffer {
                    revision: reply.hash_revision,
                    first: self.history.tell(first),
                    first_hash: hash,
                    second: self.history.tell(id),
                    second_hash: reply.hash,
                });
            }
        }
    }

    fn sort_operations(&mut self) {
        for (id, op) in self.history.ops() {
            match &op.outcome {
                Outcome::Refused(_) => {}
                Outcome::Unknown => match &op.request {
                    Request::LeaseRevoke(revoke) => {
                        self.revokes.entry(revoke.id).or_default().push(id);
                    }
                    request => self.suspects.add(id, request),
                },
                Outcome::Done(reply) => {
                    let Some(revision) = op.revision() else {
                        self.violations.push(Violation::NoRevision { op: self.history.tell(id) });
                        continue;
                    };
                    match &op.request {
                        Request::LeaseRevoke(revoke) => {
                            self.revokes.entry(revoke.id).or_default().push(id);
                        }
                        Request::Range(_)
                        | Request::LeaseGrant(_)
                        | Request::LeaseTimeToLive(_)
                        | Request::Linearize(_) => self.gaps.entry(revision).or_default().push(id),
                        Request::Put(_) | Request::DeleteRange(_) | Request::Txn(_) => {
                            let list =
                                if changed(reply) { &mut self.claims } else { &mut self.gaps };
                            list.entry(revision).or_default().push(id);
                        }
                        _ => {}
                    }
                }
            }
        }
        let history = self.history;
        for list in self.gaps.values_mut() {
            list.sort_by_key(|id| history.op(*id).call);
        }
    }

    fn replay(&mut self) {
        let history = self.history;
        self.fill_gap(1);
        for (revision, change) in &history.changes {
            self.explain(*revision, &change.events);
            self.model.absorb(*revision, &change.events);
            self.fill_gap(*revision);
        }
        let last = self.model.revision();
        let beyond = |(revision, ops): (&i64, &Vec<OpId>)| {
            let exists = *revision == 1 || history.changes.contains_key(revision);
            let tell = |op: &OpId| (history.tell(*op), *revision);
            if exists { Vec::new() } else { ops.iter().map(tell).collect() }
        };
        let lost: Vec<(String, i64)> =
            self.claims.iter().chain(&self.gaps).flat_map(beyond).collect();
        for (op, revision) in lost {
            self.violations.push(Violation::Beyond { op, revision, last });
        }
    }

    /// Finds who asked for a revision, with the model in the state before it.
    fn explain(&mut self, revision: i64, events: &[Event]) {
        let claimants = self.claims.get(&revision).cloned().unwrap_or_default();
        if let [first, others @ ..] = claimants.as_slice() {
            for second in others {
                let (first, second) = (self.tell(*first), self.tell(*second));
                self.violations.push(Violation::ClaimedTwice { revision, first, second });
            }
            let mut owner = *first;
            if !others.is_empty() {
                let fits = claimants.iter().copied().find(|op| self.does(*op, events));
                owner = fits.unwrap_or(owner);
            }
            self.check_claim(owner, revision, events);
            self.origins.insert(revision, Origin::Op(owner));
            return;
        }
        let seen = self.sightings.first_seen(revision);
        let expiry = self.expired_lease(events);
        let (in_time, late) = self.candidates(events, seen);
        let mut fits = Vec::new();
        for op in in_time {
            if fits.len() < self.fits_max && self.does(op, events) {
                fits.push(op);
            }
        }
        self.cut_short |= fits.len() >= self.fits_max;
        if fits.is_empty() && expiry.is_none() {
            self.origins.insert(revision, Origin::Nobody);
            let late = late.into_iter().find(|op| self.does(*op, events));
            let violation = match late {
                Some(op) => Violation::DoneBeforeCall { op: self.tell(op), revision, seen },
                None => self.diagnose(revision, events),
            };
            self.violations.push(violation);
            return;
        }
        self.open.push(Open { revision, fits, expiry });
    }

    /// Rule 2: the effect and the answer of an answered write.
    fn check_claim(&mut self, op: OpId, revision: i64, events: &[Event]) {
        let operation = self.history.op(op);
        self.assume_leases(&operation.request);
        let violation = match self.model.preview(&operation.request) {
            Err(error) => Violation::Impossible { op: self.tell(op), revision, error },
            Ok((_, expected)) if !same_events(&expected, events) => Violation::WrongEffect {
                op: self.tell(op),
                revision,
                expected: events_words(&expected),
                committed: events_words(events),
            },
            Ok((expected, _)) => {
                let Some(difference) = operation.reply().and_then(|got| difference(&expected, got))
                else {
                    return;
                };
                Violation::WrongReply { op: self.tell(op), difference }
            }
        };
        self.violations.push(violation);
    }

    /// Operations without an answer that might have begun with the first of these events, the
    /// latest call first: those called by the time it was seen, and the others.
    fn candidates(&self, events: &[Event], seen: Time) -> (Vec<OpId>, Vec<OpId>) {
        let Some(first) = events.first() else { return (Vec::new(), Vec::new()) };
        let mut found = self.suspects.of(first);
        if let Some(lease) = self.model.get(&kv(first).key).map(|kv| kv.lease) {
            found.extend(self.revokes.get(&lease).into_iter().flatten());
        }
        let call = |op: &OpId| self.history.op(*op).call;
        found.sort_by_key(|op| std::cmp::Reverse((call(op), *op)));
        found.dedup();
        found.into_iter().partition(|op| call(op) <= seen)
    }

    /// Would the operation do exactly this now?
    fn does(&mut self, op: OpId, events: &[Event]) -> bool {
        let request = &self.history.op(op).request;
        self.assume_leases(request);
        let done = self.model.preview(request);
        done.is_ok_and(|(_, done)| !done.is_empty() && same_events(&done, events))
    }

    /// Leases live and die unseen; here each one that is named exists.
    fn assume_leases(&mut self, request: &Request) {
        let model = &mut self.model;
        match request {
            Request::LeaseRevoke(revoke) => model.grant(revoke.id, 0),
            request => for_puts(request, &mut |put| {
                if put.lease != 0 {
                    model.grant(put.lease, 0);
                }
            }),
        }
    }

    /// The lease whose keys, all of them and in order, these events delete.
    fn expired_lease(&self, events: &[Event]) -> Option<i64> {
        if events.iter().any(|event| event.r#type() != EventType::Delete) {
            return None;
        }
        let lease = self.model.get(&kv(events.first()?).key)?.lease;
        let deleted = events.iter().map(|event| &kv(event).key);
        (lease != 0 && deleted.eq(&self.model.attached_at(lease, i64::MAX))).then_some(lease)
    }

    /// Says whose a revision is that it should not be.
    fn diagnose(&mut self, revision: i64, events: &[Event]) -> Violation {
        let told = events_words(events);
        let nobody = Violation::Unexplained { revision, events: told.clone() };
        self.diagnoses += 1;
        let Some(first) = events.first() else { return nobody };
        if self.diagnoses > DIAGNOSES_MAX {
            return nobody;
        }
        let history = self.history;
        for (id, op) in history.ops() {
            if !touches(&op.request, &kv(first).key) || !self.does(id, events) {
                continue;
            }
            match op.outcome {
                Outcome::Refused(_) => {
                    return Violation::RefusedButDone { op: self.tell(id), revision, events: told };
                }
                Outcome::Done(_) if op.reply().is_some_and(changed) => {
                    let first = op.revision().unwrap_or(0);
                    return Violation::DoneTwice { op: self.tell(id), first, second: revision };
                }
                _ => {}
            }
        }
        nobody
    }

    /// Rule 3: everything that was answered at this revision and changed nothing.
    fn fill_gap(&mut self, revision: i64) {
        for op in self.gaps.get(&revision).cloned().unwrap_or_default() {
            let operation = self.history.op(op);
            let Some(got) = operation.reply() else { continue };
            let found = match (&operation.request, got) {
                (Request::LeaseGrant(ask), Reply::LeaseGrant(got)) => {
                    self.model.grant(got.id, got.ttl);
                    let own_id = got.id != 0 && (ask.id == 0 || ask.id == got.id);
                    (!own_id || got.ttl < ask.ttl.max(1))
                        .then(|| format!("granted lease {} with ttl {}", got.id, got.ttl))
                }
                (Request::LeaseTimeToLive(ask), Reply::LeaseTimeToLive(got)) => {
                    self.wrong_keys(operation, ask, got, revision)
                }
                (request, got) => match self.model.preview(request) {
                    Err(error) => {
                        let op = self.tell(op);
                        self.violations.push(Violation::Impossible { op, revision, error });
                        None
                    }
                    Ok((expected, _)) => difference(&expected, got),
                },
            };
            if let Some(difference) = found {
                self.violations.push(Violation::WrongReply { op: self.tell(op), difference });
            }
        }
    }

    /// A lease's keys may be read a little before the header is written.
    fn wrong_keys(
        &self,
        operation: &Operation,
        ask: &etcd::LeaseTimeToLiveRequest,
        got: &etcd::LeaseTimeToLiveResponse,
        revision: i64,
    ) -> Option<String> {
        if got.id != ask.id {
            return Some(format!("asked for lease {}, told of {}", ask.id, got.id));
        }
        if !ask.keys || got.ttl < 0 {
            return None;
        }
        let (floor, _) = self.sightings.floor(operation.call);
        let from = floor.min(revision);
        let known = (from..=revision).any(|at| self.model.attached_at(ask.id, at) == got.keys);
        (!known).then(|| {
            let keys: Vec<String> = got.keys.iter().map(|key| text(key)).collect();
            format!("keys {keys:?} were not those of the lease at {from} to {revision}")
        })
    }

    /// Rule 5: gives each revision without a claimant an operation of its own.
    fn match_open(&mut self) {
        let open = std::mem::take(&mut self.open);
        let history = self.history;
        let mut matching = Matching::default();
        // Revokes that were answered must have a revision, so they choose first.
        let mut choices: BTreeMap<OpId, Vec<usize>> = BTreeMap::new();
        for (index, one) in open.iter().enumerate() {
            for op in one.fits.iter().filter(|op| history.op(**op).reply().is_some()) {
                let operation = history.op(*op);
                let answered_at = operation.revision().unwrap_or(i64::MAX);
                if one.revision <= answered_at {
                    choices.entry(*op).or_default().push(index);
                }
            }
        }
        for op in choices.keys() {
            matching.place(*op, &choices, &mut BTreeSet::new());
        }
        let placed = matching.by_revision.clone();
        for (index, one) in open.iter().enumerate() {
            if !placed.contains_key(&index) {
                let unknown = |op: &&OpId| history.op(**op).reply().is_none();
                let fits: Vec<OpId> = one.fits.iter().filter(unknown).copied().collect();
                matching.fits.insert(index, fits);
            }
        }
        // What can be no expiry chooses before what can.
        let indices = matching.fits.keys().copied();
        let (expiries, others): (Vec<_>, Vec<_>) =
            indices.partition(|index| open[*index].expiry.is_some());
        for index in others.into_iter().chain(expiries) {
            matching.explain(index, &mut BTreeSet::new());
        }
        let may_expire = |index: usize| open[index].expiry.is_some();
        for (index, one) in open.iter().enumerate() {
            if !matching.by_revision.contains_key(&index)
                && matching.might_explain(index, &may_expire, &mut BTreeSet::new())
            {
                self.doubtful.insert(one.revision);
            }
        }
        for (index, one) in open.iter().enumerate() {
            let origin = match (matching.by_revision.get(&index), one.expiry) {
                (Some(op), _) => Origin::Op(*op),
                (None, Some(lease)) => Origin::Expiry(lease),
                (None, None) => {
                    let taken = |op: &OpId| matching.by_op.get(op).copied();
                    let twice = one.fits.iter().find_map(|op| Some((*op, taken(op)?)));
                    let revision = one.revision;
                    self.violations.push(match twice {
                        Some((op, first)) => Violation::DoneTwice {
                            op: self.tell(op),
                            first: open[first].revision,
                            second: revision,
                        },
                        None => Violation::Unexplained {
                            revision,
                            events: events_words(&history.changes[&revision].events),
                        },
                    });
                    Origin::Nobody
                }
            };
            self.origins.insert(one.revision, origin);
        }
        self.check_revokes(&matching);
    }

    /// Rule 2 for revokes: one that made no revision found no keys at some moment of its life.
    fn check_revokes(&mut self, matching: &Matching) {
        for (lease, ops) in &self.revokes {
            for id in ops {
                let op = self.history.op(*id);
                let Some(answered_at) = op.revision() else { continue };
                let (floor, _) = self.sightings.floor(op.call);
                let mut span = floor.min(answered_at)..=answered_at;
                let keyless = |at: i64| self.model.attached_at(*lease, at).is_empty();
                if !matching.by_op.contains_key(id) && !span.any(keyless) {
                    self.violations
                        .push(Violation::RevokeWithoutEffect { op: self.history.tell(*id) });
                }
            }
        }
    }

    /// Rule 4.
    fn check_real_time(&mut self) {
        let history = self.history;
        let mut by_client: BTreeMap<u64, Vec<(Time, i64, OpId)>> = BTreeMap::new();
        for (id, op) in history.ops() {
            if let (Some(end), Some(revision)) = (op.end, op.revision()) {
                by_client.entry(op.client).or_default().push((end, revision, id));
            }
        }
        for shown in by_client.values_mut() {
            shown.sort_unstable();
            let mut highest = (0, OpId(0));
            for (_, revision, id) in shown {
                highest = highest.max((*revision, *id));
                (*revision, *id) = highest;
            }
        }
        for (id, op) in history.ops() {
            let Some(revision) = op.revision() else { continue };
            let written = op.reply().is_some_and(changed);
            let (floor, source) = self.sightings.floor(op.call);
            match standing(&op.request) {
                Standing::Linearizable if revision < floor + i64::from(written) => {
                    self.violations.push(Violation::Stale {
                        op: history.tell(id),
                        revision,
                        floor,
                        shown_by: source.tell(history),
                    });
                }
                Standing::Serializable => {
                    let Some(shown) = by_client.get(&op.client) else { continue };
                    let before = shown.partition_point(|(end, _, _)| *end < op.call);
                    let last = before.checked_sub(1).and_then(|last| shown.get(last));
                    if let Some((_, floor, by)) = last.filter(|(_, floor, _)| revision < *floor) {
                        self.violations.push(Violation::WentBack {
                            op: history.tell(id),
                            revision,
                            floor: *floor,
                            shown_by: history.tell(*by),
                        });
                    }
                }
                _ => {}
            }
        }
    }

    /// What a compaction hides, and only that, is refused as compacted.
    fn check_compactions(&mut self) {
        let history = self.history;
        let mut all: Vec<(OpId, &Operation, i64)> = Vec::new();
        for (id, op) in history.ops() {
            if let (Request::Compact(compact), false) =
                (&op.request, matches!(op.outcome, Outcome::Refused(_)))
            {
                all.push((id, op, compact.revision));
            }
        }
        let over = Highest::of(
            all.iter()
                .filter(|(_, op, _)| op.reply().is_some())
                .filter_map(|(id, op, revision)| Some((op.end?, *revision, *id))),
        );
        let begun = Highest::of(all.iter().map(|(id, op, revision)| (op.call, *revision, *id)));
        for (id, op) in history.ops() {
            match (&op.outcome, &op.request) {
                (Outcome::Done(_), Request::Range(range))
                    if range.revision > 0 && standing(&op.request) == Standing::Linearizable =>
                {
                    let hidden = over.before(op.call).filter(|(mark, _)| *mark > range.revision);
                    if let Some((_, compaction)) = hidden {
                        self.violations.push(Violation::ReadCompacted {
                            op: history.tell(id),
                            compaction: history.tell(compaction),
                        });
                    }
                }
                (Outcome::Refused(Error::Compacted), request) => {
                    let end = op.end.unwrap_or(Time::MAX).saturating_add(1);
                    let mark = begun.before(end).map_or(-1, |(mark, _)| mark);
                    let hides = |asked: i64| match request {
                        Request::Compact(_) => asked <= mark,
                        _ => asked < mark,
                    };
                    if !asked_revisions(request).into_iter().any(hides) {
                        let why = format!("nothing was compacted beyond {mark} by then");
                        let op = history.tell(id);
                        self.violations.push(Violation::Unfounded { op, why });
                    }
                }
                _ => {}
            }
        }
    }

    /// "Future revision" and "key not found" must have been true at some moment of the call.
    fn check_refusals(&mut self) {
        let history = self.history;
        for (id, op) in history.ops() {
            let (floor, source) = self.sightings.floor(op.call);
            let why = match (&op.outcome, &op.request) {
                (Outcome::Refused(Error::FutureRevision), request)
                    if standing(request) == Standing::Linearizable
                        && asked_revisions(request).into_iter().all(|asked| asked <= floor) =>
                {
                    format!("{floor} had been seen by {}", source.tell(history))
                }
                (Outcome::Refused(Error::KeyNotFound), Request::Put(put))
                    if !self.absent_during(&put.key, op, floor) =>
                {
                    format!("{} was there all the time", text(&put.key))
                }
                _ => continue,
            };
            self.violations.push(Violation::Unfounded { op: history.tell(id), why });
        }
    }

    /// May a key have been absent between a call, which knows `floor`, and its end?
    fn absent_during(&self, key: &Bytes, op: &Operation, floor: i64) -> bool {
        let end = op.end.unwrap_or(Time::MAX);
        let begun = |revision: &i64| match self.origins.get(revision) {
            Some(Origin::Op(by)) => self.history.op(*by).call <= end,
            _ => true,
        };
        let later = (floor + 1..=self.model.revision()).take_while(begun);
        std::iter::once(floor).chain(later).any(|at| self.model.kv_at(key, at).is_none())
    }
}

// === impl Suspects ===

/// Operations of unknown outcome, by what a revision of theirs could begin with.
#[derive(Default)]
struct Suspects {
    puts: BTreeMap<(Bytes, Bytes), Vec<OpId>>,
    keys: BTreeMap<Bytes, Vec<OpId>>,
    /// With a delete of a range: any key.
    wide: Vec<OpId>,
}

impl Suspects {
    fn add(&mut self, id: OpId, request: &Request) {
        for_puts(request, &mut |put| {
            if put.ignore_value {
                self.keys.entry(put.key.clone()).or_default().push(id);
            } else {
                let content = (put.key.clone(), put.value.clone());
                self.puts.entry(content).or_default().push(id);
            }
        });
        for_deletes(request, &mut |delete| {
            if delete.range_end.is_empty() {
                self.keys.entry(delete.key.clone()).or_default().push(id);
            } else {
                self.wide.push(id);
            }
        });
    }

    fn of(&self, event: &Event) -> Vec<OpId> {
        let state = kv(event);
        let mut found: Vec<OpId> = Vec::new();
        if event.r#type() == EventType::Put {
            let content = (state.key.clone(), state.value.clone());
            found.extend(self.puts.get(&content).into_iter().flatten());
        } else {
            found.extend(&self.wide);
        }
        found.extend(self.keys.get(&state.key).into_iter().flatten());
        found
    }
}

// === impl Matching ===

/// Operations and revisions in pairs, improved along augmenting paths.
#[derive(Default)]
struct Matching {
    by_op: BTreeMap<OpId, usize>,
    by_revision: BTreeMap<usize, OpId>,
    /// What may explain the revisions that still look for somebody.
    fits: BTreeMap<usize, Vec<OpId>>,
}

impl Matching {
    /// Finds a revision for an operation, moving others if need be.
    fn place(
        &mut self,
        op: OpId,
        choices: &BTreeMap<OpId, Vec<usize>>,
        tried: &mut BTreeSet<usize>,
    ) -> bool {
        for index in choices.get(&op).into_iter().flatten() {
            if !tried.insert(*index) {
                continue;
            }
            let free = match self.by_revision.get(index).copied() {
                None => true,
                Some(other) => self.place(other, choices, tried),
            };
            if free {
                self.pair(op, *index);
                return true;
            }
        }
        false
    }

    /// Finds an operation for a revision, moving others if need be.
    fn explain(&mut self, index: usize, tried: &mut BTreeSet<OpId>) -> bool {
        let fits = self.fits.get(&index).cloned().unwrap_or_default();
        let free = fits.iter().find(|op| !self.by_op.contains_key(op));
        if let Some(op) = free {
            self.pair(*op, index);
            return true;
        }
        for op in fits {
            if !tried.insert(op) {
                continue;
            }
            let other = self.by_op.get(&op).copied();
            if other.is_none_or(|other| self.explain(other, tried)) {
                self.pair(op, index);
                return true;
            }
        }
        false
    }

    /// Could an operation explain this revision if another revision that needs none gave it up?
    fn might_explain(
        &self,
        index: usize,
        needs_none: &impl Fn(usize) -> bool,
        tried: &mut BTreeSet<OpId>,
    ) -> bool {
        self.fits.get(&index).into_iter().flatten().any(|op| {
            tried.insert(*op)
                && self.by_op.get(op).is_some_and(|other| {
                    // What an answered revoke has done is nobody else's.
                    self.fits.contains_key(other)
                        && (needs_none(*other) || self.might_explain(*other, needs_none, tried))
                })
        })
    }

    fn pair(&mut self, op: OpId, index: usize) {
        self.by_op.insert(op, index);
        self.by_revision.insert(index, op);
    }
}

// === impl Highest ===

/// The highest mark before a moment.
struct Highest(Vec<(Time, i64, OpId)>);

impl Highest {
    fn of(marks: impl Iterator<Item = (Time, i64, OpId)>) -> Highest {
        let mut marks: Vec<(Time, i64, OpId)> = marks.collect();
        marks.sort_unstable();
        let mut highest = (i64::MIN, OpId(0));
        for (_, mark, id) in &mut marks {
            highest = highest.max((*mark, *id));
            (*mark, *id) = highest;
        }
        Highest(marks)
    }

    fn before(&self, moment: Time) -> Option<(i64, OpId)> {
        let count = self.0.partition_point(|(at, _, _)| *at < moment);
        self.0.get(count.checked_sub(1)?).map(|(_, mark, id)| (*mark, *id))
    }
}

/// What a request promises about real time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Takes effect between call and answer.
    Linearizable,
    /// True at some revision that this client has not left behind.
    Serializable,
    /// Answered by whoever is asked; its header is only some committed revision.
    Loose,
}

/// What a request promises about real time.
pub fn standing(request: &Request) -> Standing {
    let local =
        |op: &RequestOp| matches!(&op.request, Some(Op::RequestRange(range)) if range.serializable);
    match request {
        Request::Range(range) if range.serializable => Standing::Serializable,
        Request::Txn(txn) if txn.success.iter().chain(&txn.failure).all(local) => {
            Standing::Serializable
        }
        Request::Range(_)
        | Request::Put(_)
        | Request::DeleteRange(_)
        | Request::Txn(_)
        | Request::Compact(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_)
        | Request::Linearize(_) => Standing::Linearizable,
        _ => Standing::Loose,
    }
}

/// Does the answer tell of a change? (A revoke's does not.)
pub fn changed(reply: &Reply) -> bool {
    fn any(ops: &[ResponseOp]) -> bool {
        ops.iter().any(|op| match &op.response {
            Some(Answer::ResponsePut(_)) => true,
            Some(Answer::ResponseDeleteRange(reply)) => reply.deleted > 0,
            Some(Answer::ResponseTxn(reply)) => any(&reply.responses),
            Some(Answer::ResponseRange(_)) | None => false,
        })
    }
    match reply {
        Reply::Put(_) => true,
        Reply::DeleteRange(reply) => reply.deleted > 0,
        Reply::Txn(reply) => any(&reply.responses),
        _ => false,
    }
}

/// Events without their previous values.
fn same_events(a: &[Event], b: &[Event]) -> bool {
    let same = |(a, b): (&Event, &Event)| a.r#type == b.r#type && a.kv == b.kv;
    a.len() == b.len() && a.iter().zip(b).all(same)
}

fn for_ops(ops: &[RequestOp], visit: &mut dyn FnMut(&Op)) {
    for op in ops.iter().filter_map(|op| op.request.as_ref()) {
        visit(op);
        if let Op::RequestTxn(txn) = op {
            for_ops(&txn.success, visit);
            for_ops(&txn.failure, visit);
        }
    }
}

/// Visits every put that a request may carry out.
pub(crate) fn for_puts(request: &Request, visit: &mut dyn FnMut(&etcd::PutRequest)) {
    match request {
        Request::Put(put) => visit(put),
        Request::Txn(txn) => {
            let mut pick = |op: &Op| {
                if let Op::RequestPut(put) = op {
                    visit(put);
                }
            };
            for_ops(&txn.success, &mut pick);
            for_ops(&txn.failure, &mut pick);
        }
        _ => {}
    }
}

fn for_deletes(request: &Request, visit: &mut dyn FnMut(&etcd::DeleteRangeRequest)) {
    match request {
        Request::DeleteRange(delete) => visit(delete),
        Request::Txn(txn) => {
            let mut pick = |op: &Op| {
                if let Op::RequestDeleteRange(delete) = op {
                    visit(delete);
                }
            };
            for_ops(&txn.success, &mut pick);
            for_ops(&txn.failure, &mut pick);
        }
        _ => {}
    }
}

fn touches(request: &Request, key: &Bytes) -> bool {
    let mut found = matches!(request, Request::LeaseRevoke(_));
    for_puts(request, &mut |put| found |= put.key == *key);
    for_deletes(request, &mut |delete| found |= covers(&delete.key, &delete.range_end, key));
    found
}

/// Revisions that a request asks for by number.
fn asked_revisions(request: &Request) -> Vec<i64> {
    match request {
        Request::Range(range) => vec![range.revision],
        Request::Compact(compact) => vec![compact.revision],
        Request::HashKv(ask) => vec![ask.revision],
        Request::Txn(txn) => {
            let mut asked = Vec::new();
            let mut pick = |op: &Op| {
                if let Op::RequestRange(range) = op {
                    asked.push(range.revision);
                }
            };
            for_ops(&txn.success, &mut pick);
            for_ops(&txn.failure, &mut pick);
            asked
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proto::etcd::{PutRequest, ResponseHeader, TxnRequest};

    use super::{
        super::{
            history::WatchSpec,
            scribe::{
                Scribe, busy, bytes, compact, delete, delete_request, get, grant, leased, op, put,
                put_request, range, range_request, revoke, serializable, swap, time_to_live,
            },
        },
        *,
    };

    /// Demands exactly one kind of violation, and that its sentence says so.
    macro_rules! caught {
        ($scribe:expr, $pattern:pat) => {
            let violations = check(&$scribe.history).violations;
            let found = violations.iter().any(|violation| matches!(violation, $pattern));
            assert!(found, "not caught, only {violations:#?}");
            assert!(violations.iter().all(|violation| !violation.to_string().is_empty()));
        };
    }

    #[track_caller]
    fn clean(scribe: &Scribe) -> Witnessed {
        let witnessed = check(&scribe.history);
        assert_eq!(witnessed.violations, Vec::new());
        witnessed
    }

    /// Three writes of a and a read.
    fn simple() -> (Scribe, [OpId; 4]) {
        let mut scribe = Scribe::new();
        let first = scribe.ask(1, put("a", "1"));
        let second = scribe.ask(2, put("b", "2"));
        let third = scribe.ask(1, put("a", "3"));
        let read = scribe.ask(2, range("a", "z"));
        (scribe, [first, second, third, read])
    }

    /// Moves an operation in time.
    fn shift(scribe: &mut Scribe, id: OpId, call: Time, end: Time) {
        let op = &mut scribe.history.operations[id.0];
        (op.call, op.end) = (call, Some(end));
    }

    fn see_at(scribe: &mut Scribe, revision: i64, at: Time) {
        scribe.history.changes.get_mut(&revision).expect("it is committed").at = at;
    }

    #[test]
    fn overlapping_clients_with_lost_answers_are_clean() {
        for seed in 0..40 {
            let scribe = busy(seed, 400, 8, seed % 4 * 5);
            let witnessed = clean(&scribe);
            assert_eq!(witnessed.model.revision(), scribe.model.revision());
            assert_eq!(witnessed.model.changes(), scribe.model.changes());
        }
    }

    #[test]
    fn the_same_history_gives_the_same_report() {
        let scribe = busy(7, 300, 8, 20);
        let (a, b) = (check(&scribe.history), check(&scribe.history));
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }

    #[test]
    fn leases_and_nested_transactions_are_clean() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(7, 10));
        scribe.ask(1, leased("a", "1", 7));
        scribe.ask(1, leased("b", "2", 7));
        scribe.ask(1, time_to_live(7));
        scribe.unasked(revoke(7));
        scribe.ask(1, grant(7, 10));
        scribe.ask(1, leased("a", "3", 7));
        let revoked = scribe.ask(2, revoke(7));
        scribe.ask(2, grant(8, 10));
        let keyless = scribe.ask(2, revoke(8));
        let nested = TxnRequest {
            success: vec![
                op(Op::RequestPut(put_request("c", "4"))),
                op(Op::RequestTxn(TxnRequest {
                    success: vec![op(Op::RequestRange(range_request("a", "z")))],
                    ..Default::default()
                })),
            ],
            ..Default::default()
        };
        let txn = scribe.ask(3, Request::Txn(nested));
        let witnessed = clean(&scribe);
        assert_eq!(witnessed.origins[&4], Origin::Expiry(7));
        assert_eq!(witnessed.revision_of(revoked), Some(6));
        assert_eq!(witnessed.revision_of(keyless), None);
        assert_eq!(witnessed.revision_of(txn), Some(7));
    }

    #[test]
    fn lost_deletes_are_told_apart_by_matching() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        // The wide one fits both revisions, the narrow one only the first.
        let wide = scribe.history.call(2, scribe.now, delete("a", "z"));
        let narrow = scribe.history.call(3, scribe.now, delete("a", ""));
        scribe.unasked(delete("a", ""));
        scribe.ask(1, put("b", "2"));
        scribe.unasked(delete("b", ""));
        let witnessed = clean(&scribe);
        assert_eq!(witnessed.revision_of(narrow), Some(3));
        assert_eq!(witnessed.revision_of(wide), Some(5));
    }

    #[test]
    fn many_lost_deletes_that_look_alike_all_find_their_revision() {
        let mut scribe = Scribe::new();
        for client in 0..12 {
            scribe.history.call(client, scribe.now, delete("a", ""));
        }
        for round in 0..12 {
            scribe.ask(20, put("a", &round.to_string()));
            scribe.unasked(delete("a", ""));
        }
        assert_eq!(clean(&scribe).placed().len(), 24);
        // One more delete than there were requests.
        scribe.ask(20, put("a", "last"));
        scribe.unasked(delete("a", ""));
        caught!(scribe, Violation::DoneTwice { .. });
    }

    #[test]
    fn a_lost_revoke_and_an_expiry_are_both_fine() {
        let mut scribe = Scribe::new();
        for (id, key) in [(1, "a"), (2, "b")] {
            scribe.ask(1, grant(id, 10));
            scribe.ask(1, leased(key, key, id));
        }
        let lost = scribe.lose(1, revoke(1), true);
        scribe.lose(1, revoke(2), false);
        let witnessed = clean(&scribe);
        assert_eq!(witnessed.revision_of(lost), Some(4));
    }

    /// The lost delete fits both revisions; the first may be the lease's own end, the second not.
    #[test]
    fn a_lost_delete_is_left_to_what_is_no_expiry() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(7, 1));
        scribe.ask(1, leased("a", "1", 7));
        let lost = scribe.history.call(2, scribe.now, delete("a", ""));
        scribe.now += 1000;
        scribe.unasked(revoke(7));
        scribe.ask(1, put("a", "2"));
        scribe.unasked(delete("a", ""));
        let witnessed = clean(&scribe);
        assert_eq!(witnessed.origins[&3], Origin::Expiry(7));
        assert_eq!(witnessed.revision_of(lost), Some(5));
        assert!(witnessed.doubtful.is_empty());
        // There is one delete too many.
        scribe.ask(1, put("a", "3"));
        scribe.unasked(delete("a", ""));
        caught!(scribe, Violation::DoneTwice { .. });
    }

    #[test]
    fn a_missing_revision_is_caught() {
        let (mut scribe, _) = simple();
        scribe.history.changes.remove(&3);
        caught!(scribe, Violation::Hole { first: 3, last: 3 });
    }

    #[test]
    fn an_event_of_another_revision_is_caught() {
        let (mut scribe, _) = simple();
        let change = scribe.history.changes.get_mut(&3).expect("it is committed");
        change.events[0].kv.as_mut().expect("it has a key").mod_revision = 2;
        caught!(scribe, Violation::Misplaced { revision: 3, .. });
        scribe.history.changes.get_mut(&3).expect("it is committed").events.clear();
        caught!(scribe, Violation::Misplaced { revision: 3, .. });
    }

    #[test]
    fn replicas_that_differ_are_caught() {
        let (mut scribe, _) = simple();
        let other = scribe.model.changes()[&2].clone();
        scribe.history.committed(3, 500, 2, &other);
        clean(&scribe);
        scribe.history.committed(3, 500, 3, &other);
        caught!(scribe, Violation::SourcesDiffer { revision: 3, second_source: 3, .. });
    }

    #[test]
    fn hashes_that_differ_are_caught() {
        let (mut scribe, _) = simple();
        for hash in [5, 6] {
            let reply = etcd::HashKvResponse {
                header: Some(ResponseHeader { revision: 4, ..Default::default() }),
                hash,
                compact_revision: -1,
                hash_revision: 3,
            };
            let ask = etcd::HashKvRequest { revision: 3 };
            scribe.answer(1, Request::HashKv(ask), Reply::HashKv(reply));
        }
        caught!(scribe, Violation::HashesDiffer { revision: 3, .. });
    }

    #[test]
    fn an_answer_without_a_revision_is_caught() {
        let (mut scribe, [.., read]) = simple();
        if let Reply::Range(reply) = scribe.reply(read) {
            reply.header = None;
        }
        caught!(scribe, Violation::NoRevision { .. });
    }

    #[test]
    fn an_acknowledged_write_that_is_lost_is_caught() {
        let (mut scribe, _) = simple();
        scribe.history.changes.remove(&4);
        caught!(scribe, Violation::Beyond { revision: 4, last: 3, .. });
    }

    #[test]
    fn a_revision_given_out_twice_is_caught() {
        let (mut scribe, [_, second, ..]) = simple();
        let reply = scribe.reply(second).clone();
        let late = scribe.answer(3, put("b", "2"), reply);
        shift(&mut scribe, late, 105, 200);
        caught!(scribe, Violation::ClaimedTwice { revision: 3, .. });
    }

    #[test]
    fn an_impossible_write_is_caught() {
        let (mut scribe, [first, ..]) = simple();
        let put = PutRequest { value: bytes(""), ignore_value: true, ..put_request("a", "") };
        scribe.history.operations[first.0].request = Request::Put(put);
        caught!(scribe, Violation::Impossible { revision: 2, error: Error::KeyNotFound, .. });
    }

    #[test]
    fn a_write_replaced_by_another_is_caught() {
        let (mut scribe, _) = simple();
        let change = scribe.history.changes.get_mut(&3).expect("it is committed");
        change.events[0].kv.as_mut().expect("it has a key").value = bytes("other");
        caught!(scribe, Violation::WrongEffect { revision: 3, .. });
    }

    #[test]
    fn a_wrong_version_is_caught() {
        let (mut scribe, _) = simple();
        let change = scribe.history.changes.get_mut(&4).expect("it is committed");
        change.events[0].kv.as_mut().expect("it has a key").version = 1;
        caught!(scribe, Violation::WrongEffect { revision: 4, .. });
    }

    #[test]
    fn a_read_of_another_state_is_caught() {
        let (mut scribe, [.., read]) = simple();
        if let Reply::Range(reply) = scribe.reply(read) {
            reply.kvs[0].value = bytes("1");
        }
        caught!(scribe, Violation::WrongReply { .. });
        let (mut scribe, [.., read]) = simple();
        if let Reply::Range(reply) = scribe.reply(read) {
            reply.count = 1;
        }
        caught!(scribe, Violation::WrongReply { .. });
    }

    #[test]
    fn wrong_previous_values_are_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        let second = PutRequest { prev_kv: true, ..put_request("a", "2") };
        let id = scribe.ask(1, Request::Put(second));
        let gone = scribe.ask(1, delete("a", ""));
        clean(&scribe);
        if let Reply::DeleteRange(reply) = scribe.reply(gone) {
            reply.prev_kvs[0].version = 1;
        }
        caught!(scribe, Violation::WrongReply { .. });
        scribe.history.operations.pop();
        scribe.history.changes.remove(&4);
        clean(&scribe);
        if let Reply::Put(reply) = scribe.reply(id) {
            reply.prev_kv = None;
        }
        caught!(scribe, Violation::WrongReply { .. });
    }

    #[test]
    fn a_wrong_count_of_deletes_is_caught() {
        let (mut scribe, _) = simple();
        let gone = scribe.ask(1, delete("a", "z"));
        if let Reply::DeleteRange(reply) = scribe.reply(gone) {
            reply.deleted = 1;
        }
        caught!(scribe, Violation::WrongReply { .. });
    }

    #[test]
    fn a_failed_transaction_is_a_read() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        let failed = scribe.ask(1, swap("a", "0", "2"));
        clean(&scribe);
        scribe.ask(1, put("a", "0"));
        // Its header now says a revision at which it would have succeeded.
        if let Reply::Txn(reply) = scribe.reply(failed) {
            reply.header = Some(ResponseHeader { revision: 3, ..Default::default() });
        }
        caught!(scribe, Violation::WrongReply { .. });
    }

    #[test]
    fn a_wrong_answer_inside_a_transaction_is_caught() {
        let mut scribe = Scribe::new();
        let txn = TxnRequest {
            success: vec![
                op(Op::RequestPut(put_request("a", "1"))),
                op(Op::RequestRange(range_request("a", ""))),
                op(Op::RequestDeleteRange(delete_request("b", ""))),
            ],
            ..Default::default()
        };
        let id = scribe.ask(1, Request::Txn(txn));
        clean(&scribe);
        let good = scribe.reply(id).clone();
        for place in 0..3 {
            let Reply::Txn(reply) = scribe.reply(id) else { unreachable!() };
            match reply.responses[place].response.as_mut() {
                Some(Answer::ResponsePut(put)) => put.header = None,
                Some(Answer::ResponseRange(range)) => range.kvs.clear(),
                Some(Answer::ResponseDeleteRange(delete)) => {
                    delete.header = Some(ResponseHeader { revision: 1, ..Default::default() });
                }
                _ => unreachable!(),
            }
            caught!(scribe, Violation::WrongReply { .. });
            *scribe.reply(id) = good.clone();
        }
        let Reply::Txn(reply) = scribe.reply(id) else { unreachable!() };
        reply.succeeded = false;
        caught!(scribe, Violation::WrongReply { .. });
    }

    #[test]
    fn a_grant_of_another_lease_is_caught() {
        let mut scribe = Scribe::new();
        let id = scribe.ask(1, grant(5, 10));
        if let Reply::LeaseGrant(reply) = scribe.reply(id) {
            reply.ttl = 9;
        }
        caught!(scribe, Violation::WrongReply { .. });
    }

    #[test]
    fn wrong_keys_of_a_lease_are_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(5, 10));
        scribe.ask(1, leased("a", "1", 5));
        let id = scribe.ask(1, time_to_live(5));
        clean(&scribe);
        if let Reply::LeaseTimeToLive(reply) = scribe.reply(id) {
            reply.keys.clear();
        }
        caught!(scribe, Violation::WrongReply { .. });
    }

    #[test]
    fn a_revision_of_nobody_is_caught() {
        let (mut scribe, _) = simple();
        scribe.unasked(put("c", "foreign"));
        caught!(scribe, Violation::Unexplained { revision: 5, .. });
        let (mut scribe, _) = simple();
        scribe.unasked(delete("a", ""));
        caught!(scribe, Violation::Unexplained { revision: 5, .. });
    }

    #[test]
    fn half_an_expiry_is_nobodys() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(5, 10));
        scribe.ask(1, leased("a", "1", 5));
        scribe.ask(1, leased("b", "2", 5));
        scribe.unasked(delete("a", ""));
        caught!(scribe, Violation::Unexplained { revision: 4, .. });
    }

    #[test]
    fn a_refused_write_that_stands_is_caught() {
        let (mut scribe, _) = simple();
        let id = scribe.refuse(3, put("c", "4"), Error::TooManyRequests);
        clean(&scribe);
        let request = scribe.history.op(id).request.clone();
        scribe.unasked(request);
        caught!(scribe, Violation::RefusedButDone { revision: 5, .. });
    }

    #[test]
    fn a_write_done_twice_is_caught() {
        let (mut scribe, _) = simple();
        scribe.unasked(put("b", "2"));
        caught!(scribe, Violation::DoneTwice { first: 3, second: 5, .. });
        let (mut scribe, _) = simple();
        scribe.lose(3, put("c", "4"), true);
        clean(&scribe);
        scribe.unasked(put("c", "4"));
        caught!(scribe, Violation::DoneTwice { .. });
    }

    #[test]
    fn an_effect_before_its_call_is_caught() {
        let (mut scribe, _) = simple();
        let id = scribe.lose(3, put("c", "4"), true);
        shift(&mut scribe, id, 400, 409);
        caught!(scribe, Violation::DoneBeforeCall { revision: 5, .. });
    }

    #[test]
    fn a_revoke_that_left_its_keys_is_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(5, 10));
        scribe.ask(1, leased("a", "1", 5));
        let header = Some(ResponseHeader { revision: 2, ..Default::default() });
        scribe.answer(1, revoke(5), Reply::LeaseRevoke(etcd::LeaseRevokeResponse { header }));
        caught!(scribe, Violation::RevokeWithoutEffect { .. });
    }

    #[test]
    fn a_stale_read_is_caught() {
        let (mut scribe, [.., third, read]) = simple();
        let early = scribe.history.op(third).call + 1;
        shift(&mut scribe, read, early, early + 20);
        clean(&scribe);
        // The same answer long after another write was acknowledged.
        scribe.ask(1, put("c", "5"));
        shift(&mut scribe, read, 400, 409);
        caught!(scribe, Violation::Stale { revision: 4, floor: 5, .. });
    }

    #[test]
    fn a_watch_that_saw_more_makes_a_read_stale() {
        let (mut scribe, [.., read]) = simple();
        scribe.ask(1, put("a", "5"));
        see_at(&mut scribe, 5, 900);
        let id = OpId(4);
        shift(&mut scribe, id, 110, 950);
        let watch = scribe.history.watch(7, 7, 120, WatchSpec::new(b"a", b"", 2));
        let events = scribe.model.changes()[&5].clone();
        let heard = super::super::history::Heard::Events { revision: 5, events, fragment: false };
        scribe.history.hear(watch, 125, heard);
        caught!(scribe, Violation::Stale { revision: 4, floor: 5, .. });
        let _ = read;
    }

    #[test]
    fn writes_in_the_wrong_order_are_caught() {
        let (mut scribe, [first, second, ..]) = simple();
        shift(&mut scribe, second, 100, 101);
        see_at(&mut scribe, 2, 900);
        see_at(&mut scribe, 3, 900);
        shift(&mut scribe, first, 102, 105);
        caught!(scribe, Violation::Stale { revision: 2, floor: 3, .. });
    }

    #[test]
    fn a_write_at_the_floor_itself_is_caught() {
        let (mut scribe, [_, second, ..]) = simple();
        scribe.ask(5, get("b"));
        // Somebody had seen revision 3 before the put that made it was sent.
        shift(&mut scribe, second, 119, 130);
        caught!(scribe, Violation::Stale { revision: 3, floor: 3, .. });
    }

    #[test]
    fn a_serializable_read_may_be_stale_but_never_goes_back() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        let old = scribe.ask(2, serializable("a"));
        scribe.ask(1, put("a", "2"));
        shift(&mut scribe, old, 400, 409);
        clean(&scribe);
        scribe.history.operations[old.0].client = 1;
        caught!(scribe, Violation::WentBack { revision: 2, floor: 3, .. });
    }

    #[test]
    fn a_serializable_read_of_a_state_that_never_was_is_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        let id = scribe.ask(2, serializable("a"));
        if let Reply::Range(reply) = scribe.reply(id) {
            reply.kvs.clear();
            reply.count = 0;
        }
        caught!(scribe, Violation::WrongReply { .. });
    }

    #[test]
    fn a_read_of_compacted_history_is_caught() {
        let (mut scribe, _) = simple();
        let old = etcd::RangeRequest { revision: 2, ..range_request("a", "") };
        let id = scribe.ask(1, Request::Range(old));
        scribe.ask(1, compact(3));
        clean(&scribe);
        shift(&mut scribe, id, 400, 409);
        caught!(scribe, Violation::ReadCompacted { .. });
    }

    #[test]
    fn refusals_without_reason_are_caught() {
        let (mut scribe, _) = simple();
        let old = etcd::RangeRequest { revision: 2, ..range_request("a", "") };
        let refused = scribe.refuse(1, Request::Range(old), Error::Compacted);
        caught!(scribe, Violation::Unfounded { .. });
        scribe.ask(2, compact(3));
        let end = scribe.now;
        scribe.history.operations[refused.0].end = Some(end);
        clean(&scribe);

        let (mut scribe, _) = simple();
        let future = etcd::RangeRequest { revision: 5, ..range_request("a", "") };
        let refused = scribe.refuse(1, Request::Range(future), Error::FutureRevision);
        clean(&scribe);
        scribe.ask(1, put("a", "5"));
        shift(&mut scribe, refused, 400, 409);
        caught!(scribe, Violation::Unfounded { .. });

        let (mut scribe, _) = simple();
        let keep = PutRequest { value: bytes(""), ignore_value: true, ..put_request("a", "") };
        scribe.refuse(1, Request::Put(keep.clone()), Error::KeyNotFound);
        caught!(scribe, Violation::Unfounded { .. });
        let (mut scribe, _) = simple();
        scribe.ask(1, delete("a", ""));
        scribe.refuse(1, Request::Put(keep), Error::KeyNotFound);
        clean(&scribe);
    }

    #[test]
    fn any_answer_of_a_busy_run_made_older_is_caught() {
        // A linearizable read answered from one revision below the floor, wherever it happens.
        let mut caught = 0;
        for seed in 0..20 {
            let mut scribe = busy(seed, 60, 4, 0);
            let sightings = scribe.sightings();
            let reads: Vec<OpId> = scribe
                .history
                .ops()
                .filter(|(_, op)| matches!(op.request, Request::Range(_)))
                .filter(|(_, op)| sightings.floor(op.call).0 > 1)
                .map(|(id, _)| id)
                .collect();
            let Some(read) = reads.last().copied() else { continue };
            let op = scribe.history.op(read);
            let old = sightings.floor(op.call).0 - 1;
            let Request::Range(ask) = op.request.clone() else { continue };
            let kvs: Vec<_> =
                scribe.model.keys_at(&ask.key, &ask.range_end, old).into_iter().cloned().collect();
            if let Reply::Range(reply) = scribe.reply(read) {
                reply.count = kvs.len() as i64;
                reply.kvs = kvs;
                reply.header = Some(ResponseHeader { revision: old, ..Default::default() });
            }
            caught!(scribe, Violation::Stale { .. });
            caught += 1;
        }
        assert!(caught >= 10, "{caught}");
    }
}
