//! What a split tenant's groups keep in their logs, and what an entry does to what is kept. Pure.
//!
//! Every group keeps its range, its seal and its last revision; home keeps the map, the limit, the
//! leases and the decisions that somebody has not applied yet besides.
//!
//! Two neighbours become one group again by four entries in two logs. The left one's log decides:
//!
//! ```text
//!   left   ── Begin ───────────────────────────── Absorb | Abort ──   the first of the two wins
//!   right  ──────────── Freeze ── (nothing) ──    gone   | Thaw  ──
//! ```
//!
//! A frozen group changes nothing, but seals pass. It thaws only when the left group says, of what
//! is committed there, that this merge is neither under way nor done.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::etcd::TxnRequest;
use proto::limits::RECOVERY_REVISIONS;
use proto::{GroupId, KeyRange};

use super::evaluate::{Change, Prediction};
use super::faults::{Fault, Faults};
use super::stream::{Branch, Place, TxId};

/// An entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Nothing of an older epoch counts from here on.
    Seal {
        /// Raft term of the home leader that asked for it.
        epoch: u64,
    },
    /// A change inside this group.
    Write {
        /// Epoch of the sequencer that granted the revision.
        epoch: u64,
        /// The revision.
        revision: i64,
        /// What is done.
        txn: TxnRequest,
        /// What was foreseen; if it comes to something else nothing is changed.
        predicted: Prediction,
    },
    /// This group's part of a decided transaction.
    Branch {
        /// Epoch of the sequencer that sent it.
        epoch: u64,
        /// What is changed.
        branch: Branch,
    },
    /// The keys from `at` on go to a new group, which begins with everything that is here. Proposed
    /// when nothing else is under way.
    Split {
        /// Epoch under which it was proposed; of a tenant that was on one group: home's Raft term.
        epoch: u64,
        /// Version of the range that is split.
        version: u64,
        /// First key of the new group.
        at: Bytes,
        /// The new group.
        child: GroupId,
        /// Of a tenant that was on one group: revisions up to this one may be granted.
        limit: i64,
    },
    /// The right neighbour is to be merged into this group.
    Begin {
        /// Epoch under which it was proposed.
        epoch: u64,
        /// Version of this group's range.
        version: u64,
        /// Which, and with whom.
        merge: Merge,
    },
    /// Nothing is changed here any more, until this merge is over.
    Freeze {
        /// Epoch under which it was proposed, when nothing else was under way.
        epoch: u64,
        /// Version of this group's range.
        version: u64,
        /// Number of the merge.
        merge: u64,
        /// The group whose log decides.
        left: GroupId,
    },
    /// The frozen right neighbour's keys are this group's.
    Absorb {
        /// Epoch under which it was proposed, when nothing else was under way.
        epoch: u64,
        /// Number of the merge.
        merge: u64,
        /// What the right neighbour has.
        place: Place,
        /// The last revision in its log.
        revision: i64,
        /// The tenant is on one group again: the last revision that was granted or shown.
        base: Option<i64>,
    },
    /// The merge is not to be.
    Abort {
        /// Number of the merge.
        merge: u64,
    },
    /// The merge was not to be: this group goes on.
    Thaw {
        /// Number of the merge.
        merge: u64,
    },
    /// Nothing of an absorbed group is left anywhere, and home's map does not list it.
    Gone {
        /// Which.
        right: GroupId,
    },
    /// Home: a group has this range from now on, and who had parts of it before has them no more.
    Map {
        /// The group.
        group: GroupId,
        /// Its range.
        place: Place,
    },
    /// Home: revisions up to this one may be granted.
    Limit {
        /// The highest.
        revision: i64,
    },
    /// Home: the sequencer moves, and has granted and shown nothing above this revision.
    Hand {
        /// The last one.
        revision: i64,
    },
    /// Home: a transaction over several groups has happened.
    Decision {
        /// Which.
        id: TxId,
        /// What it changes where.
        decision: Decision,
    },
    /// Home: every participant has applied its branch.
    Forget {
        /// Whose.
        id: TxId,
    },
    /// Home: a lease is there.
    LeaseGranted {
        /// Its id.
        lease: i64,
        /// Its granted TTL in seconds.
        ttl_s: i64,
    },
    /// Home: a lease without keys is gone.
    LeaseGone {
        /// Its id.
        lease: i64,
    },
    /// History below this revision is gone for readers: in home's log for the whole tenant, in
    /// another group's because home said so.
    Compact {
        /// The revision.
        revision: i64,
    },
}

/// A transaction that has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Its revision.
    pub revision: i64,
    /// What it changes in each participant; some have nothing to change.
    pub changes: BTreeMap<GroupId, Vec<Change>>,
    /// The lease that it revokes.
    pub lease: Option<i64>,
}

impl Decision {
    /// A participant's part.
    pub fn branch(&self, id: TxId, group: GroupId) -> Option<Branch> {
        let changes = self.changes.get(&group)?.clone();
        Some(Branch { id, revision: self.revision, changes })
    }
}

/// A merge: its number, which is never used twice, and the group that is to be absorbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Its number.
    pub number: u64,
    /// The right neighbour.
    pub right: GroupId,
}

/// What is kept of all entries so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The group.
    pub group: GroupId,
    /// The tenant's home group.
    pub home: GroupId,
    /// The group's own keys.
    pub place: Place,
    /// Home: which groups the tenant is split over. A key that no group has belongs to one that has
    /// not registered yet.
    pub map: BTreeMap<GroupId, Place>,
    /// The merge that is under way, with this group on the left.
    pub merging: Option<Merge>,
    /// The merge for which this group is frozen, and the group whose log decides it.
    pub frozen: Option<(u64, GroupId)>,
    /// Absorbed groups of which something may still be left.
    pub absorbed: BTreeSet<GroupId>,
    /// The highest sealed epoch.
    pub seal: u64,
    /// The last revision.
    pub revision: i64,
    /// Below this revision nothing can be read.
    pub compacted: i64,
    /// Home: the limit.
    pub limit: i64,
    /// Home: decisions that are not finished everywhere.
    pub decisions: BTreeMap<TxId, Decision>,
    /// Home: the tenant's leases.
    pub leases: BTreeSet<i64>,
    /// Not home: the group goes on with one of its replicas, and what only the others had is gone. It
    /// serves nothing before home has given up all history up to now ([`Entry::Compact`]).
    pub lost: bool,
}

/// What is to be done for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more.
    Kept,
    /// Its changes are to be made under its revision; a write is evaluated again first. A split's
    /// new group is to be begun; an absorbed one's rows are this group's.
    Make,
    /// Nothing, it is of an epoch that is over: it was *not done*.
    Refused,
}

/// A revision in a log is not above the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {next} stands behind {last} in a group's log")]
pub struct Disorder {
    /// The one before.
    pub last: i64,
    /// The one that is not above it.
    pub next: i64,
}

/// Notes who has a range: whoever had a part of it under a lower version has it no more. Says
/// nothing and changes nothing if somebody has a part of it under the same version or a higher one.
pub fn note_place(
    map: &mut BTreeMap<GroupId, Place>,
    group: GroupId,
    place: &Place,
) -> Option<Vec<GroupId>> {
    let others = || map.iter().filter(|(id, p)| **id != group && p.range.overlaps(&place.range));
    let own = map.get(&group).is_some_and(|known| known.version >= place.version);
    if own || others().any(|(_, known)| known.version >= place.version) {
        return None;
    }
    let cut: Vec<GroupId> = others().map(|(id, _)| *id).collect();
    for id in &cut {
        let Some(known) = map.get_mut(id) else { continue };
        // The new group is always the right side.
        known.range.end = Some(place.range.start.clone());
        if known.range.is_empty() {
            map.remove(id);
        }
    }
    map.insert(group, place.clone());
    Some(cut)
}

impl Kept {
    /// What a group with these keys begins with, which is home: an empty store stands at
    /// revision 1.
    pub fn new(group: GroupId, place: Place) -> Kept {
        Kept {
            group,
            home: group,
            place,
            map: BTreeMap::new(),
            merging: None,
            frozen: None,
            absorbed: BTreeSet::new(),
            seal: 0,
            revision: 1,
            compacted: 0,
            limit: 1,
            decisions: BTreeMap::new(),
            leases: BTreeSet::new(),
            lost: false,
        }
    }

    /// What the new group of a split begins with. `self` has applied the split.
    pub fn child(&self, group: GroupId, parent: &KeyRange, at: &Bytes) -> Kept {
        let range = KeyRange { start: at.clone(), end: parent.end.clone() };
        let place = Place { range, version: self.place.version };
        let (seal, revision, compacted) = (self.seal, self.revision, self.compacted);
        let limit = 0;
        Kept { home: self.home, seal, revision, compacted, limit, ..Kept::new(group, place) }
    }

    /// Most of the group's replicas are lost, and one goes on. At home nobody knows up to where
    /// revisions were granted and shown: it goes on far above, at least at `least`. Another group goes
    /// on when home has said where.
    pub fn recover(&mut self, least: i64) {
        if self.home != self.group {
            self.lost = true;
            return;
        }
        let beyond = (self.limit.max(self.revision) + RECOVERY_REVISIONS).max(least);
        (self.limit, self.revision, self.compacted) = (beyond, beyond, beyond);
    }

    /// Is the tenant on this group alone? Then the group gives out its revisions itself.
    pub fn is_alone(&self) -> bool {
        self.place.range == KeyRange::all()
    }

    /// Is no merge under way that this group has to do with?
    fn is_free(&self) -> bool {
        self.merging.is_none() && self.frozen.is_none()
    }

    /// Takes an entry in. Fails if the log breaks the protocol's promise: the group cannot go on.
    pub fn apply(&mut self, entry: &Entry, faults: Faults) -> Result<Verdict, Disorder> {
        match entry {
            Entry::Write { epoch, .. } | Entry::Branch { epoch, .. }
                if *epoch < self.seal && !faults.has(Fault::NoSeal) =>
            {
                return Ok(Verdict::Refused);
            }
            Entry::Write { .. } | Entry::Branch { .. }
                if self.frozen.is_some() && !faults.has(Fault::FrozenServes) =>
            {
                return Ok(Verdict::Refused);
            }
            Entry::Write { revision, .. }
            | Entry::Branch { branch: Branch { revision, .. }, .. } => {
                let (last, next) = (self.revision, *revision);
                if next <= last {
                    return Err(Disorder { last, next });
                }
                self.revision = next;
                return Ok(Verdict::Make);
            }
            Entry::Split { epoch, version, at, child, limit } => {
                let current = *epoch >= self.seal && *version == self.place.version;
                let inside = self.place.range.contains(at) && *at != self.place.range.start;
                if !current || !inside || !self.is_free() {
                    return Ok(Verdict::Refused);
                }
                let alone = self.is_alone();
                let right = KeyRange { start: at.clone(), end: self.place.range.end.clone() };
                self.place.range.end = Some(at.clone());
                self.place.version += 1;
                if alone {
                    let right = Place { range: right, version: self.place.version };
                    self.map = [(self.group, self.place.clone()), (*child, right)].into();
                    self.seal = *epoch;
                    self.limit = *limit;
                }
                return Ok(Verdict::Make);
            }
            Entry::Begin { epoch, version, merge } => {
                let current = *epoch >= self.seal && *version == self.place.version;
                if !current || !self.is_free() {
                    return Ok(Verdict::Refused);
                }
                self.merging = Some(*merge);
            }
            Entry::Freeze { epoch, version, merge, left } => {
                let current = *epoch >= self.seal && *version == self.place.version;
                // Who is still asked about a merge must be there to answer.
                if !current || !self.is_free() || !self.absorbed.is_empty() {
                    return Ok(Verdict::Refused);
                }
                self.frozen = Some((*merge, *left));
            }
            Entry::Absorb { epoch, merge, place, revision, base } => {
                let Some(Merge { right, .. }) =
                    self.merging.filter(|own| own.number == *merge && *epoch >= self.seal)
                else {
                    return Ok(Verdict::Refused);
                };
                self.merging = None;
                self.absorbed.insert(right);
                self.place.range.end = place.range.end.clone();
                self.place.version = self.place.version.max(place.version) + 1;
                self.revision = self.revision.max(*revision).max(base.unwrap_or(0));
                if self.is_alone() {
                    // Both sides had nothing under way: every decision is carried out.
                    self.map.clear();
                    self.decisions.clear();
                }
                return Ok(Verdict::Make);
            }
            Entry::Abort { merge } => {
                self.merging = self.merging.filter(|own| own.number != *merge);
            }
            Entry::Thaw { merge } => {
                if self.frozen.is_some_and(|(own, _)| own == *merge) {
                    self.frozen = None;
                    self.place.version += 1;
                }
            }
            Entry::Gone { right } => drop(self.absorbed.remove(right)),
            Entry::Map { group, place } => drop(note_place(&mut self.map, *group, place)),
            Entry::Seal { epoch } => self.seal = self.seal.max(*epoch),
            Entry::Limit { revision } => self.limit = self.limit.max(*revision),
            // The only way down: whoever wrote it grants nothing more.
            Entry::Hand { revision } => self.limit = *revision,
            Entry::Decision { id, decision } => {
                if let Some(lease) = decision.lease {
                    self.leases.remove(&lease);
                }
                self.decisions.insert(*id, decision.clone());
            }
            Entry::Forget { id } => drop(self.decisions.remove(id)),
            Entry::LeaseGranted { lease, .. } => drop(self.leases.insert(*lease)),
            Entry::LeaseGone { lease } => drop(self.leases.remove(lease)),
            // Whoever absorbs it goes by what it was when it was frozen.
            Entry::Compact { .. } if self.frozen.is_some() => return Ok(Verdict::Refused),
            Entry::Compact { revision } => {
                self.compacted = self.compacted.max(*revision);
                if std::mem::take(&mut self.lost) {
                    // What was lost lies below it.
                    self.revision = self.revision.max(*revision);
                }
            }
        }
        Ok(Verdict::Kept)
    }
}
