//! A group's range, and how it is cut in two, or joined with its neighbour's, on one node without
//! moving a row (`store/shelves.rs`).
//!
//! The new group has the versions where they are, and the keys of leases with them, and its own shelf
//! for everything else. What is there at once: its counts, which are the blocks above the cut. What
//! changed before the split it finds on its parent's shelf.
//!
//! Sizes are not known by key. Each side gets as much of the parent's as it has of the live keys,
//! which is wrong as far as values differ in length and one side has more history. What is superseded
//! is subtracted by the side that has the key, so both together stay right until one of them would
//! fall below 0, where it stays; a replica that is brought by a snapshot measures anew.
//!
//! A group that absorbs its right neighbour has its versions where they are, and its older changes on
//! its shelves. Counts come to the group's own shelf, because only one may say how many keys live:
//! that is a row for some hundred keys.

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use proto::KeyRange;

use super::Machine;
use super::state::{PastChanges, State};
use crate::engine::EngineError;
use crate::store::counts::{self, Counts};
use crate::store::layout::{self, Shelf};
use crate::store::shelves::Past;

impl Machine {
    /// Cuts the keys from `at` on out of this group, and gives the first state of the group that has
    /// them from then on, with all other rows than versions on `shelf`. Its rows belong to the next
    /// checkpoint, like the states of both; nobody may read before that is durable.
    ///
    /// Both have `version`, which readers on other threads see with the new range or after it. The
    /// caller fills in what only it knows of the new group: where its log begins, its voters and the
    /// numbers of its replicas.
    pub fn split_off(
        &mut self,
        at: &Bytes,
        version: u64,
        shelf: Shelf,
    ) -> Result<State, EngineError> {
        let range = self.state.range();
        assert!(*at > range.start && range.contains(at), "a cut leaves keys on both sides");
        let left = self.count_below(at)?;
        let pieces = self.state.versions();
        let right = KeyRange { start: at.clone(), end: range.end.clone() };
        // Readers look at this once more when they have read: before the counts change.
        self.state.end = Some(at.clone());
        self.state.range_version = version;
        self.state.set_versions(&pieces.clipped(&self.state.range()));
        self.shelves_changed();
        self.publish();
        self.store.shared(pieces.shelf_of(at), at);
        let moved = self.published.counts().write().split(at, left);
        let keys = moved.values().map(|live| i64::from(*live)).sum();
        for (first, live) in moved {
            self.store.put_raw(layout::counts_key(shelf, &first), counts::row(live));
        }
        let size = share(self.state.size, keys, self.state.keys);
        self.state.keys -= keys;
        self.state.size -= size;
        self.publish();
        let mut past = self.state.past.clone();
        past.push(past_on(self.state.shelf, self.state.revision, &right));
        // What nobody can watch any more is not looked for.
        past.retain(|past| past.to_revision >= self.state.swept);
        let mut state = State {
            applied_index: 0,
            applied_term: 0,
            conf_state: self.state.conf_state.clone(),
            revision: self.state.revision,
            compacted: self.state.compacted,
            swept: self.state.swept,
            shelf: shelf.0,
            range_version: self.state.range_version,
            size,
            keys,
            members: self.state.members.clone(),
            removed: Vec::new(),
            alarms: self.state.alarms.clone(),
            digest: 0,
            cluster_id: self.state.cluster_id,
            membership_version: self.state.membership_version,
            places: Vec::new(),
            retired: Vec::new(),
            versions_shelf: 0,
            pieces: Vec::new(),
            past,
            start: at.clone(),
            end: range.end,
            split: None,
            recovered_term: 0,
            charter: self.state.charter,
        };
        state.set_versions(&pieces.clipped(&right));
        Ok(state)
    }

    /// Takes in the keys of the right neighbour, which stands here as it was frozen, and is not to be
    /// read any more. The log has said so: [`Machine::kept`] has the range of both. Everything belongs
    /// to the next checkpoint, and the neighbour's replica may go when that is durable.
    ///
    /// Panics if the other one has more of history given up than this one: whoever proposed it has
    /// looked.
    pub fn absorb(&mut self, right: &State, counts: &Counts) -> Result<(), EngineError> {
        let place = self.kept.as_ref().expect("the log said so").place.clone();
        let (own, other) = (self.state.range(), right.range());
        let at = other.start.clone();
        assert!(own.end.as_ref() == Some(&at), "the two are neighbours");
        assert!(right.compacted <= self.state.compacted, "history is given up by home");
        let pieces = self.state.versions().clipped(&own);
        let pieces = pieces.joined(&at, &right.versions().clipped(&other));
        let told = self.state.shelf;
        let mut past = clipped(&self.state.past, &own, 0);
        if right.swept < self.state.swept {
            // The sweep begins where the right one's was: what is removed here is removed.
            let here = past_on(told, self.state.swept, &own);
            past.extend(clipped(&[here], &own, self.state.swept));
        }
        let mut theirs = right.past.clone();
        theirs.push(past_on(right.shelf, right.revision, &other));
        let theirs = clipped(&theirs, &other, right.swept);
        // Where this group itself was cut from the other's keys its own shelf tells of them still.
        let theirs = theirs.into_iter().filter(|past| past.shelf != told);
        self.state.set_versions(&pieces);
        self.state.keys += right.keys;
        self.state.size += right.size;
        let swept = self.state.swept.min(right.swept);
        let all = past.into_iter().chain(theirs);
        self.state.past = all.filter(|past| past.to_revision >= swept).collect();
        self.state.swept = swept;
        self.state.digest = self.state.digest.wrapping_add(right.digest);
        self.state.end = place.range.end;
        self.state.range_version = place.version;
        self.published.counts().write().join(&at, counts, self.state.revision);
        // Before the range: whoever sees that looks for what is above what he knew.
        self.published.revision.store(self.state.revision, Ordering::Release);
        self.shelves_changed();
        self.publish();
        Ok(())
    }

    /// Live keys of the block that reaches over `at`, below it.
    fn count_below(&self, at: &Bytes) -> Result<u32, EngineError> {
        let crossing = self.published.counts().read().crossing(at);
        let Some(part) = crossing else { return Ok(0) };
        let mut live = 0;
        self.view().unseen().scan(&self.shelves.within(&part), &mut |_, _| {
            live += 1;
            ControlFlow::Continue(())
        })?;
        Ok(live)
    }
}

/// What was changed of some keys, up to a revision, and stands on a group's own shelf.
fn past_on(shelf: u64, to_revision: i64, keys: &KeyRange) -> PastChanges {
    PastChanges::of(&Past { shelf: Shelf(shelf), to_revision, range: keys.clone(), swept: 0 })
}

/// What older shelves tell of the keys of `range`, of which everything is swept up to `swept`.
fn clipped(past: &[PastChanges], range: &KeyRange, swept: i64) -> Vec<PastChanges> {
    let clip = |past: &PastChanges| {
        let Past { shelf, to_revision, range: told, swept: before } = past.past();
        let range = told.common(range)?;
        Some(PastChanges::of(&Past { shelf, to_revision, range, swept: before.max(swept) }))
    };
    past.iter().filter_map(clip).collect()
}

/// The part of `size` of those who have `keys` of `all` live keys.
fn share(size: i64, keys: i64, all: i64) -> i64 {
    let part = i128::from(size.max(0)) * i128::from(keys) / i128::from(all.max(1));
    // No more than the whole: keys are a part of all.
    part as i64
}
