//! A split tenant's entries in the machine: what stands in the log, and what it does to rows,
//! leases and the group's range (`shard/src/split`).
//!
//! Each entry has fences of its own, the epoch and its seal, so that it counts or does not count on
//! all replicas alike. A write is carried out again as it was asked for, at the revision that was
//! granted; if it comes to something else than its leader foresaw, nothing is changed, and the
//! revision is void. What a decision changes is written as it stands there: nobody could change
//! these keys since they were voted with.
//!
//! Invariant: while the tenant is on several groups the state's revision, compacted revision and
//! range are those of what is kept.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use proto::etcd::{PutRequest, TxnRequest, TxnResponse};
use proto::group::Reply;
use proto::mvccpb::KeyValue;
use proto::{GroupId, KeyRange};

use super::Machine;
use super::effect::{Effect, RevisionEvents};
use super::leases;
use super::txn::Path;
use crate::engine::EngineError;
use crate::split::entry::{Decision, Entry, Kept, Verdict};
use crate::split::evaluate::Change;
use crate::split::faults::Faults;
use crate::split::participant::Written;
use crate::split::stream::Place;
use crate::split::wire;
use crate::store::view::{Found, View};
use crate::store::{Store, layout};

fn found(view: &View, range: &KeyRange) -> Result<Vec<(Bytes, Found)>, EngineError> {
    let mut found = Vec::new();
    view.scan(range, &mut |key, one| {
        found.push((key, one));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

impl Machine {
    /// What is kept of the split tenant's entries, if there were any.
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_deref()
    }

    /// Is the tenant on other groups as well?
    pub fn is_split(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.is_alone())
    }

    /// Takes up what a checkpoint or a snapshot says. To be called when the leases are known.
    pub(super) fn restore_kept(&mut self) -> Result<(), EngineError> {
        self.kept = match self.state.split.take() {
            None => None,
            Some(kept) => {
                let damaged = || EngineError::Failed("a split group's state cannot be read".into());
                let mut kept = wire::kept_in(kept).ok_or_else(damaged)?;
                kept.leases = self.leases.keys().copied().collect();
                Some(Box::new(kept))
            }
        };
        Ok(())
    }

    /// What is kept, as of now. A group that has its tenant for itself changes without it.
    fn take_kept(&mut self) -> Box<Kept> {
        let state = &self.state;
        let mut kept = self.kept.take().unwrap_or_else(|| {
            let place = Place { range: state.range(), version: state.range_version };
            Box::new(Kept::new(self.group, place))
        });
        if kept.is_alone() {
            kept.revision = state.revision;
            kept.compacted = state.compacted;
            kept.leases = self.leases.keys().copied().collect();
        }
        kept
    }

    /// Applies an entry.
    pub(super) fn apply_split(
        &mut self,
        entry: &Entry,
        effects: &mut Vec<Effect>,
    ) -> Result<Written, EngineError> {
        let mut kept = self.take_kept();
        let (before, right) = (kept.place.range.clone(), kept.merging.map(|merge| merge.right));
        let was_lost = kept.lost;
        let verdict = kept.apply(entry, Faults::NONE);
        // The protocol's promise: a replica that goes on would serve something else than others.
        let verdict = verdict.unwrap_or_else(|disorder| panic!("group {}: {disorder}", self.group));
        self.kept = Some(kept);
        let written = match verdict {
            Verdict::Refused => Ok(Written::Refused),
            Verdict::Kept => Ok(self.keep(entry, was_lost, effects)),
            Verdict::Make => self.make(entry, &before, right, effects),
        };
        self.follow_kept(entry);
        match written {
            // Nobody else has the value.
            Err(EngineError::Value(_)) if self.state.members.len() <= 1 => Ok(Written::Unread),
            written => written,
        }
    }

    /// The state follows what is kept. After a split [`Machine::split_off`] takes the keys away, and
    /// [`Machine::absorb`] takes the neighbour's in, when the whole log entry is applied.
    fn follow_kept(&mut self, entry: &Entry) {
        let Some(kept) = &self.kept else { return };
        self.state.revision = kept.revision;
        if matches!(entry, Entry::Thaw { .. }) {
            self.state.range_version = kept.place.version;
            self.state.start = kept.place.range.start.clone();
            self.state.end = kept.place.range.end.clone();
            self.shelves_changed();
        }
    }

    /// What an entry does beside what is kept, if it changes no rows of keys.
    fn keep(&mut self, entry: &Entry, was_lost: bool, effects: &mut Vec<Effect>) -> Written {
        let shelf = self.shelf();
        match entry {
            Entry::LeaseGranted { lease, ttl_s } => {
                self.leases.insert(*lease, *ttl_s);
                self.store.put_raw(layout::lease_key(shelf, *lease), leases::row(*ttl_s));
                effects.push(Effect::LeaseGranted { lease: *lease, ttl_s: *ttl_s });
            }
            Entry::LeaseGone { lease }
            | Entry::Decision { decision: Decision { lease: Some(lease), .. }, .. } => {
                self.leases.remove(lease);
                self.store.remove(layout::lease_key(shelf, *lease));
                effects.push(Effect::LeaseRevoked { lease: *lease });
            }
            Entry::Compact { revision } if *revision > self.state.compacted => {
                self.state.compacted = *revision;
                if was_lost {
                    effects.push(Effect::Passed);
                }
                effects.push(Effect::Compacted { revision: *revision });
            }
            _ => {}
        }
        Written::Done(TxnResponse::default())
    }

    fn make(
        &mut self,
        entry: &Entry,
        before: &KeyRange,
        right: Option<GroupId>,
        effects: &mut Vec<Effect>,
    ) -> Result<Written, EngineError> {
        match entry {
            Entry::Write { revision, txn, predicted, .. } => {
                self.write_at(*revision, txn, &predicted.path, effects)
            }
            Entry::Branch { branch, .. } => {
                self.change_at(branch.revision, &branch.changes, effects)?;
                Ok(Written::Done(Default::default()))
            }
            Entry::Split { at, child, .. } => {
                let kept = self.kept.as_ref().map(|kept| kept.child(*child, before, at));
                let kept = Box::new(kept.expect("it was applied just now"));
                effects.push(Effect::Split { at: at.clone(), kept });
                Ok(Written::Done(Default::default()))
            }
            Entry::Absorb { revision, .. } => {
                let right = right.expect("it was about to be merged");
                effects.push(Effect::Absorb { right, revision: *revision });
                Ok(Written::Done(Default::default()))
            }
            other => unreachable!("{other:?} changes no rows of keys"),
        }
    }

    /// A transaction under the revision that was granted to it, if it comes to what was foreseen.
    fn write_at(
        &mut self,
        revision: i64,
        txn: &TxnRequest,
        foreseen: &[bool],
        effects: &mut Vec<Effect>,
    ) -> Result<Written, EngineError> {
        // Everything below it that concerns this group is applied.
        self.state.revision = revision - 1;
        let mut changes = self.begin();
        let mut path = Path::choose(&self.view(), txn)?;
        let as_foreseen = path.outcomes() == foreseen;
        if !as_foreseen || self.check_path(&changes.view, txn, &mut path)?.is_err() {
            self.skip(revision, effects);
            return Ok(Written::Void);
        }
        path.rewind();
        let mut response = self.run(&mut changes, txn, &mut path)?;
        response.header = changes.header();
        let is_void = changes.list.is_empty();
        let answer = self.commit(changes, Reply::Txn(response), effects)?;
        if is_void {
            self.skip(revision, effects);
            return Ok(Written::Void);
        }
        Ok(match answer {
            Ok(Reply::Txn(response)) => Written::Done(response),
            _ => Written::Unread,
        })
    }

    /// Changes that were decided elsewhere.
    fn change_at(
        &mut self,
        revision: i64,
        wanted: &[Change],
        effects: &mut Vec<Effect>,
    ) -> Result<(), EngineError> {
        self.state.revision = revision - 1;
        let mut changes = self.begin();
        for change in wanted {
            changes.next_place = change.place;
            match &change.put {
                Some(put) => {
                    let (key, value) = (change.key.clone(), put.value.clone());
                    let put = PutRequest { key, value, lease: put.lease, ..Default::default() };
                    self.put(&mut changes, &put)?;
                }
                None => {
                    if let Some(live) = changes.view.get(&change.key)? {
                        self.delete(&mut changes, change.key.clone(), live)?;
                    }
                }
            }
        }
        if changes.list.is_empty() {
            self.skip(revision, effects);
            return Ok(());
        }
        let reply = Reply::Done(Default::default());
        self.commit(changes, reply, effects).map(drop)
    }

    /// A revision that changes nothing here: watches are to know that it has passed.
    fn skip(&mut self, revision: i64, effects: &mut Vec<Effect>) {
        self.state.revision = revision;
        let after = self.fed;
        self.fed = revision;
        let events = RevisionEvents { revision, after, events: Vec::new() };
        effects.push(Effect::Events(Arc::new(events)));
    }

    /// The group's live keys inside `range`, ascending: as they stand, or as they stood at revision
    /// `at`.
    pub fn rows(&self, range: &KeyRange, at: Option<i64>) -> Result<Vec<KeyValue>, EngineError> {
        let view = self.store.view(&self.shelves.pieces, at.unwrap_or(self.state.revision));
        let found = found(&view, range)?;
        found.into_iter().map(|(key, one)| view.kv(key, &one)).collect()
    }

    /// The group's live keys inside `range`, ascending, without values.
    pub fn keys(&self, range: &KeyRange) -> Result<Vec<KeyValue>, EngineError> {
        let found = found(&self.view(), range)?;
        Ok(found.into_iter().map(|(key, one)| one.with(key, Bytes::new())).collect())
    }

    /// Where the rows stand.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Must a lease be known here before a key is attached to it? Of a split tenant's leases home
    /// knows, and has checked it.
    pub(super) fn checks_leases(&self) -> bool {
        !self.is_split()
    }
}
