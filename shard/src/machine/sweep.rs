//! Removing what compaction gave up, in slices, while everything goes on.
//!
//! Compaction itself is one number. What lies below it goes later: the sweep walks the
//! changes between the last swept revision and the compacted one. A version that was
//! superseded at or below the compacted revision goes; a delete marker at or below it goes;
//! then the changes below it themselves. What a reader at or above the compacted revision
//! can see is not touched: the newest version of every key at that revision stays.
//!
//! The sweep is local: replicas may stand at different places and answer the same.
//!
//! Groups that share rows (`store/shelves.rs`) sweep each for itself: a version goes with the group
//! that has its key, and changes go when the last group that reads them is past them. Who is past
//! what the node knows, which has all groups.

use std::collections::BTreeMap;

use super::Machine;
use crate::engine::EngineError;
use crate::store::layout::{self, Row, Shelf};

/// Revisions swept at a time.
const SLICE: usize = 512;

impl Machine {
    /// Is there anything to remove?
    pub fn needs_sweep(&self) -> bool {
        self.state.swept < self.state.compacted
    }

    /// Removes a slice; gives the shelves that the group reads no more. `floors` says of shelves that
    /// other groups here read as well up to where the last of them has swept. Only the worker's
    /// thread may call this.
    pub fn sweep(&mut self, floors: &BTreeMap<Shelf, i64>) -> Result<Vec<Shelf>, EngineError> {
        let to = self.state.compacted;
        let from = self.state.swept.max(0) + 1;
        let (history, last) = self.store.history(&self.shelves, from, to, SLICE)?;
        let view = self.view();
        for (revision, changes) in &history {
            let here = |key: &[u8]| !self.shelves.is_swept(key, *revision);
            for change in changes.iter().filter(|change| here(&change.key)) {
                let shelf = self.shelves.pieces.shelf_of(&change.key);
                // A transaction may change one key more than once: the first change that names
                // the superseded row takes it away, and of the row of its own revision, which
                // is what the last one left, only a delete marker may go. Nothing is read that
                // the change tells: reading was most of what a sweep cost.
                match change.previous_cost {
                    _ if change.previous == 0 => {}
                    Some(cost) => {
                        self.state.size -= cost;
                        self.store.remove(layout::version_key(shelf, &change.key, change.previous));
                    }
                    None => {
                        if let Some(row) = view.exactly(&change.key, change.previous)? {
                            self.state.size -= row.cost(change.key.len());
                            self.store.remove_version(shelf, &change.key, change.previous, &row);
                        }
                    }
                }
                if change.deleted && change.overwritten.is_none() {
                    let marker = Row { deleted: true, ..Default::default() };
                    self.state.size -= marker.cost(change.key.len());
                    self.store.remove_version(shelf, &change.key, *revision, &marker);
                }
            }
        }
        // What a split gave to each side is only about right.
        self.state.size = self.state.size.max(0);
        self.state.swept = last;
        for shelf in self.shelves.told_by() {
            // The changes of the compacted revision itself can still be watched.
            let floor = floors.get(&shelf).map_or(last, |floor| last.min(*floor));
            for row_key in self.store.packed_below(shelf, floor, SLICE)? {
                self.store.remove(row_key.to_vec());
            }
            let (from, to) = (layout::twice_key(shelf, 0), layout::twice_key(shelf, floor));
            for (row_key, _) in self.store.rows(&from, &to)? {
                self.store.remove(row_key.to_vec());
            }
        }
        Ok(self.forget_past())
    }

    /// Forgets the older shelves that tell of nothing any more that could be watched.
    fn forget_past(&mut self) -> Vec<Shelf> {
        let swept = self.state.swept;
        let over = self.state.past.extract_if(.., |past| past.to_revision < swept);
        let over: Vec<Shelf> = over.map(|past| Shelf(past.shelf)).collect();
        if !over.is_empty() {
            self.shelves_changed();
        }
        over
    }
}
