//! Removing what compaction gave up, in slices, while everything goes on.
//!
//! Compaction itself is one number. What lies below it goes later: the sweep walks the
//! changes between the last swept revision and the compacted one. A version that was
//! superseded at or below the compacted revision goes; a delete marker at or below it goes;
//! then the changes below it themselves. What a reader at or above the compacted revision
//! can see is not touched: the newest version of every key at that revision stays.
//!
//! The sweep is local: replicas may stand at different places and answer the same.

use super::Machine;
use crate::engine::EngineError;
use crate::store::layout::{self, Row};

/// Revisions swept at a time.
const SLICE: usize = 512;

impl Machine {
    /// Is there anything to remove?
    pub fn needs_sweep(&self) -> bool {
        self.state.swept < self.state.compacted
    }

    /// Removes a slice. Only the worker's thread may call this.
    pub fn sweep(&mut self) -> Result<(), EngineError> {
        let (shelf, to) = (self.shelf(), self.state.compacted);
        let from = self.state.swept.max(0) + 1;
        let history = self.store.history(shelf, from, to, SLICE)?;
        let view = self.view();
        let mut last = to;
        if history.len() >= SLICE {
            last = *history.last_key_value().expect("a full slice has a last revision").0;
        }
        for (revision, changes) in &history {
            for change in changes.iter() {
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
        // The changes of the compacted revision itself can still be watched.
        for row_key in self.store.packed_below(shelf, last, SLICE)? {
            self.store.remove(row_key.to_vec());
        }
        let (from, to) = (layout::twice_key(shelf, 0), layout::twice_key(shelf, last));
        for (row_key, _) in self.store.rows(&from, &to)? {
            self.store.remove(row_key.to_vec());
        }
        self.state.swept = last;
        Ok(())
    }
}
