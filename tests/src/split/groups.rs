//! What Raft promises of a group: one committed log, and what applying it gives.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use proto::etcd::{TxnRequest, TxnResponse};
use proto::mvccpb::{Event, KeyValue, event::EventType};
use proto::{Error, GroupId, KeyRange};
use shard::split::entry::{Entry, Kept, Verdict};
use shard::split::evaluate::{Change, Prediction, Revisions, Rows, evaluate};
use shard::split::faults::{Fault, Faults};
use shard::split::participant::Replica;
use shard::split::stream::Place;

/// An entry of a group's log.
#[derive(Clone, Debug)]
pub(super) enum Logged {
    /// The first of a term.
    Noop(u64),
    /// Of the protocol.
    Split(Entry),
    /// Of a tenant that is on one group: the group gives out the revision itself.
    Plain {
        /// Version of the range for which it was proposed.
        version: u64,
        act: Plain,
    },
}

/// What a tenant on one group does.
#[derive(Clone, Debug)]
pub(super) enum Plain {
    Txn(TxnRequest),
    Grant(i64),
    Revoke(i64),
}

/// What applying an entry gave.
#[derive(Clone, Debug)]
pub(super) enum Made {
    /// Nothing to speak of.
    Nothing,
    /// Not done: its epoch was over.
    Refused,
    /// It came to something else than was foreseen.
    Void,
    /// A write was made.
    Done(TxnResponse),
    /// An error of the request's.
    Failed(Error),
    /// A lease was granted or revoked, at this revision.
    Lease(i64),
    /// The range was split.
    Split,
    /// The right neighbour was absorbed.
    Absorbed,
}

/// A committed change as watches see it: place in its revision, and the event.
pub(super) type Placed = (u32, Event);

/// A group as all its replicas agree on it.
pub(super) struct Group {
    pub(super) log: Vec<Logged>,
    /// After so many entries.
    pub(super) kept: Vec<Rc<Kept>>,
    pub(super) made: Vec<Made>,
    /// By key: all versions, ascending by revision.
    rows: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    /// What entries changed, and when, by their place in the log.
    pub(super) events: BTreeMap<usize, (i64, u64, Vec<Placed>)>,
}

/// A replica that has applied up to a revision.
pub(super) struct View<'a> {
    pub(super) group: &'a Group,
    pub(super) revision: i64,
    pub(super) seal: u64,
    pub(super) place: &'a Place,
    pub(super) frozen: bool,
    /// Sees also what went to other groups.
    pub(super) all: bool,
}

impl Rows for View<'_> {
    fn scan(&self, range: &KeyRange, at: Option<i64>) -> Vec<KeyValue> {
        let at = at.unwrap_or(self.revision).min(self.revision);
        let own = |key: &Bytes| self.all || self.place.range.contains(key);
        let inside = self.group.rows.iter().filter(|(key, _)| range.contains(key) && own(key));
        inside.filter_map(|(_, versions)| live(versions, at).cloned()).collect()
    }
}

impl Replica for View<'_> {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn seal(&self) -> u64 {
        self.seal
    }

    fn place(&self) -> &Place {
        self.place
    }

    fn is_frozen(&self) -> bool {
        self.frozen
    }

    fn is_lost(&self) -> bool {
        false
    }

    fn compacted(&self) -> i64 {
        0
    }

    fn keys(&self, range: &KeyRange) -> Vec<KeyValue> {
        let rows = self.scan(range, None).into_iter();
        rows.map(|kv| KeyValue { value: Bytes::new(), ..kv }).collect()
    }

    fn attached(&self, lease: i64) -> Vec<Bytes> {
        let all = self.scan(&KeyRange::all(), None);
        all.into_iter().filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
    }
}

fn live(versions: &[(i64, Option<KeyValue>)], at: i64) -> Option<&KeyValue> {
    let version = versions.iter().rev().find(|(revision, _)| *revision <= at);
    version.and_then(|(_, kv)| kv.as_ref())
}

/// What was foreseen, whether it still holds or not.
fn foreseen(txn: &TxnRequest, predicted: &Prediction) -> TxnRequest {
    let taken = predicted.path.first().copied().unwrap_or(true);
    let success = if taken { txn.success.clone() } else { txn.failure.clone() };
    TxnRequest { success, ..TxnRequest::default() }
}

impl Group {
    /// A group that begins like this.
    pub(super) fn new(kept: Kept) -> Group {
        let (log, made, rows, events) = (Vec::new(), Vec::new(), BTreeMap::new(), BTreeMap::new());
        Group { log, kept: vec![Rc::new(kept)], made, rows, events }
    }

    /// The group that a split which was committed just now begins: with its parent's rows.
    pub(super) fn child(&self, id: GroupId, at: &Bytes) -> Group {
        let before = &self.kept[self.kept.len() - 2].place.range;
        let kept = self.newest().child(id, before, at);
        let inside = self.rows.iter().filter(|(key, _)| kept.place.range.contains(key));
        let rows = inside.map(|(key, versions)| (key.clone(), versions.clone())).collect();
        Group { rows, ..Group::new(kept) }
    }

    /// An absorbed group's rows are this one's.
    pub(super) fn absorb(&mut self, right: &Group) {
        let range = &right.newest().place.range;
        self.rows.retain(|key, _| !range.contains(key));
        let inside = right.rows.iter().filter(|(key, _)| range.contains(key));
        self.rows.extend(inside.map(|(key, versions)| (key.clone(), versions.clone())));
    }

    /// Everything committed.
    pub(super) fn newest(&self) -> &Kept {
        &self.kept[self.kept.len() - 1]
    }

    /// A replica that has applied this revision, and nothing is known of its seals.
    pub(super) fn at(&self, revision: i64) -> View<'_> {
        let Kept { place, frozen, .. } = self.newest();
        View { group: self, revision, seal: 0, place, frozen: frozen.is_some(), all: true }
    }

    /// Commits an entry; an error is a promise of the protocol that was broken.
    /// [`Made::Split`] asks for the new group, [`Made::Absorbed`] for the other one's rows.
    pub(super) fn commit(
        &mut self,
        logged: Logged,
        now: u64,
        faults: Faults,
    ) -> Result<(), String> {
        let mut made = Made::Nothing;
        let mut broken = Ok(());
        let mut kept = self.newest().clone();
        match &logged {
            Logged::Noop(_) => {}
            Logged::Split(entry) => match kept.apply(entry, faults) {
                Ok(Verdict::Kept) => {}
                Ok(Verdict::Refused) => made = Made::Refused,
                Ok(Verdict::Make) => {
                    made = self.make(entry, now, faults);
                    if let Some(key) = self.strange(&kept) {
                        broken = Err(format!("key {key} was changed where it is not"));
                    }
                }
                Err(disorder) => broken = Err(disorder.to_string()),
            },
            Logged::Plain { version, act } => {
                made = match kept.is_alone() && kept.place.version == *version {
                    true => self.make_plain(&mut kept, act, now),
                    false => Made::Refused,
                };
            }
        }
        self.kept.push(Rc::new(kept));
        self.log.push(logged);
        self.made.push(made);
        broken
    }

    /// A key that the last entry changed though the group does not have it.
    fn strange(&self, kept: &Kept) -> Option<String> {
        let (_, _, events) = self.events.get(&self.log.len())?;
        let keys = events.iter().filter_map(|(_, event)| event.kv.as_ref()).map(|kv| &kv.key);
        let strange = keys.into_iter().find(|key| !kept.place.range.contains(key));
        strange.map(|key| String::from_utf8_lossy(key).into_owned())
    }

    fn make(&mut self, entry: &Entry, now: u64, faults: Faults) -> Made {
        match entry {
            Entry::Write { revision, txn, predicted, .. } => {
                let own = *revision;
                let revisions = Revisions { before: own - 1, own, compacted: 0 };
                let unseen = faults.has(Fault::NoVerify).then(|| foreseen(txn, predicted));
                match evaluate(&self.at(own), unseen.as_ref().unwrap_or(txn), revisions) {
                    Ok(outcome) if unseen.is_some() || outcome.prediction() == *predicted => {
                        self.change(own, now, &outcome.changes);
                        let succeeded = predicted.path.first().copied().unwrap_or(true);
                        Made::Done(TxnResponse { succeeded, ..outcome.response })
                    }
                    _ => Made::Void,
                }
            }
            Entry::Branch { branch, .. } => {
                self.change(branch.revision, now, &branch.changes);
                Made::Nothing
            }
            Entry::Split { .. } => Made::Split,
            Entry::Absorb { .. } => Made::Absorbed,
            _ => Made::Nothing,
        }
    }

    fn make_plain(&mut self, kept: &mut Kept, act: &Plain, now: u64) -> Made {
        let (before, own) = (kept.revision, kept.revision + 1);
        match act {
            Plain::Txn(txn) => {
                let revisions = Revisions { before, own, compacted: 0 };
                let outcome = match evaluate(&self.at(before), txn, revisions) {
                    Ok(outcome) => outcome,
                    Err(error) => return Made::Failed(error),
                };
                let mut leases = outcome.changes.iter().filter_map(Change::attaches);
                if leases.any(|lease| !kept.leases.contains(&lease)) {
                    return Made::Failed(Error::LeaseNotFound);
                }
                if !outcome.changes.is_empty() {
                    self.change(own, now, &outcome.changes);
                    kept.revision = own;
                }
                Made::Done(outcome.response)
            }
            Plain::Grant(lease) => {
                kept.leases.insert(*lease);
                Made::Lease(before)
            }
            Plain::Revoke(lease) => {
                if !kept.leases.remove(lease) {
                    return Made::Failed(Error::LeaseNotFound);
                }
                let attached = self.at(before).attached(*lease);
                let changes: Vec<Change> = (0..)
                    .zip(attached)
                    .map(|(place, key)| Change { place, key, put: None })
                    .collect();
                if !changes.is_empty() {
                    self.change(own, now, &changes);
                    kept.revision = own;
                }
                Made::Lease(kept.revision)
            }
        }
    }

    fn change(&mut self, revision: i64, now: u64, changes: &[Change]) {
        let mut events = Vec::new();
        for change in changes {
            let versions = self.rows.entry(change.key.clone()).or_default();
            let old = versions.last().and_then(|(_, kv)| kv.clone());
            let kv = change.put.as_ref().map(|put| KeyValue {
                key: change.key.clone(),
                create_revision: old.as_ref().map_or(revision, |kv| kv.create_revision),
                mod_revision: revision,
                version: old.as_ref().map_or(0, |kv| kv.version) + 1,
                value: put.value.clone(),
                lease: put.lease,
            });
            let kind = if kv.is_some() { EventType::Put } else { EventType::Delete };
            let gone =
                KeyValue { key: change.key.clone(), mod_revision: revision, ..Default::default() };
            let told = Some(kv.clone().unwrap_or(gone));
            events.push((change.place, Event { r#type: kind as i32, kv: told, prev_kv: None }));
            versions.push((revision, kv));
        }
        if !events.is_empty() {
            self.events.insert(self.log.len(), (revision, now, events));
        }
    }
}
