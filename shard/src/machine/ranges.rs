//! A group's range, and how it is cut in two on one node without moving a row
//! (`store/shelves.rs`).
//!
//! The new group has the versions where they are, and its own shelf for everything else. What is
//! there at once: its counts, which are the blocks above the cut, and the keys that are attached to
//! leases. What changed before the split it finds on its parent's shelf.
//!
//! Sizes are not known by key. Each side gets as much of the parent's as it has of the live keys,
//! which is wrong as far as values differ in length and one side has more history. What is superseded
//! is subtracted by the side that has the key, so both together stay right until one of them would
//! fall below 0, where it stays; a replica that is brought by a snapshot measures anew.

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use bytes::Bytes;

use super::Machine;
use super::state::{PastChanges, State};
use crate::engine::EngineError;
use crate::store::counts;
use crate::store::layout::{self, Shelf};

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
        // Readers look at this once more when they have read: before the counts change.
        self.state.end = Some(at.clone());
        self.state.range_version = version;
        self.shelves_changed();
        self.publish();
        self.store.shared(self.state.versions(), at);
        let moved = self.published.counts().write().split(at, left);
        let keys = moved.values().map(|live| i64::from(*live)).sum();
        for (first, live) in moved {
            self.store.put_raw(layout::counts_key(shelf, &first), counts::row(live));
        }
        self.move_lease_keys(at, shelf)?;
        let size = share(self.state.size, keys, self.state.keys);
        self.state.keys -= keys;
        self.state.size -= size;
        self.publish();
        let mut past = self.state.past.clone();
        past.push(PastChanges { shelf: self.state.shelf, to_revision: self.state.revision });
        Ok(State {
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
            versions_shelf: self.state.versions().0,
            past,
            start: at.clone(),
            end: range.end,
            split: None,
            recovered_term: 0,
            charter: self.state.charter,
        })
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

    /// Attached keys from `at` on stand on `shelf` from now on. Their leases are the home group's.
    fn move_lease_keys(&self, at: &Bytes, shelf: Shelf) -> Result<(), EngineError> {
        let (from, to) = layout::all_lease_keys_bounds(self.shelf());
        for (row_key, row) in self.store.rows(&from, &to)? {
            let Some((lease, key)) = layout::split_lease_key(&row_key) else {
                return Err(EngineError::Failed("a lease's key cannot be read".into()));
            };
            if key >= *at {
                self.store.put_raw(layout::lease_key_key(shelf, lease, &key), row);
                self.store.remove(row_key.to_vec());
            }
        }
        Ok(())
    }
}

/// The part of `size` of those who have `keys` of `all` live keys.
fn share(size: i64, keys: i64, all: i64) -> i64 {
    let part = i128::from(size.max(0)) * i128::from(keys) / i128::from(all.max(1));
    // No more than the whole: keys are a part of all.
    part as i64
}
