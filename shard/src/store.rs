//! The store: every group's versions on one node, and how they get to disk.
//!
//! ```text
//!   apply --> active table --(freeze)--> frozen table --(ingest)--> engine
//!                 |                           |                       |
//!                 +------------- read views: newest first ------------+
//! ```
//!
//! The log is the truth. Rows newer than the last checkpoint stand in the active table (and,
//! while a checkpoint is being written, in the frozen one); the engine on disk is always
//! exactly one checkpoint: rows *and* the applied index they belong to. After a crash the
//! log is applied again from there, on exact state: nothing is skipped, nothing doubled.
//!
//! A key's life over time, and what a view at a revision sees:
//!
//! ```text
//!   revision   2      3      4      5      6
//!   key a     put    put     .     del     .        at 3: a@3   at 5: nothing
//!   key b      .      .     put     .     put       at 5: b@4   at 6: b@6
//! ```
//!
//! Invariants:
//! - One thread writes (the worker's); everybody may read.
//! - At most one table is frozen; the next freeze waits until it is in the engine.
//! - Rows stand under shelves; a shelf is never used twice.

pub mod changes;
pub mod checkpoint;
pub mod counts;
pub mod hot;
pub mod layout;
pub mod recent;
pub mod view;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::engine::{Engine, EngineError};
use changes::Change;
use hot::Hot;
use layout::{Row, Shelf};
use recent::{Cell, ChangeMap, Table};
use view::View;

/// One node's rows. See the module.
pub struct Store {
    engine: Arc<dyn Engine>,
    /// Newest first: the active table, then the frozen one if there is one.
    tables: ArcSwap<Arc<[Arc<Table>]>>,
    hot: Arc<Hot>,
}

impl Store {
    /// A store over what the engine holds.
    pub fn new(engine: Arc<dyn Engine>) -> Store {
        let tables: Arc<[Arc<Table>]> = Arc::from([Arc::new(Table::default())]);
        Store { engine, tables: ArcSwap::from_pointee(tables), hot: Arc::default() }
    }

    /// The engine below.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    fn tables(&self) -> Arc<[Arc<Table>]> {
        Arc::clone(&**self.tables.load())
    }

    fn active(&self) -> Arc<Table> {
        self.tables.load().first().expect("there is always an active table").clone()
    }

    /// A view of a shelf at a revision. The revision must have been read before this call.
    pub fn view(&self, shelf: Shelf, revision: i64) -> View {
        let tables = self.tables();
        View { shelf, revision, tables, hot: self.hot.clone(), engine: self.engine.clone() }
    }

    /// Adds a version that came with a snapshot: older ones may follow. Otherwise as
    /// [`Store::put_version`].
    pub fn install_version(&self, shelf: Shelf, key: &[u8], revision: i64, row: Row) {
        self.active().put(layout::version_key(shelf, key, revision).into(), Cell::Row(row));
    }

    /// Adds the newest version of a key. Only the worker's thread may call this and the other writing methods.
    pub fn put_version(&self, shelf: Shelf, key: &[u8], revision: i64, row: Row) {
        let row_key = layout::version_key(shelf, key, revision).into();
        self.active().put(row_key, Cell::Row(row.clone()));
        self.hot.wrote(shelf, key, revision, &row);
    }

    /// Adds or replaces a row of another kind.
    pub fn put_raw(&self, row_key: Vec<u8>, value: Bytes) {
        self.active().put(row_key.into(), Cell::Raw(value));
    }

    /// Takes a row away, wherever it stands.
    pub fn remove(&self, row_key: Vec<u8>) {
        self.active().put(row_key.into(), Cell::Gone);
    }

    /// Notes what a revision changed.
    pub fn note(&self, shelf: Shelf, revision: i64, changes: Arc<[Change]>) {
        self.active().note(shelf, revision, changes);
    }

    /// Changes of the revisions `from..=to`, at most about `limit` revisions, ascending and
    /// without a gap from `from` on.
    pub fn history(
        &self,
        shelf: Shelf,
        from: i64,
        to: i64,
        limit: usize,
    ) -> Result<ChangeMap, EngineError> {
        let tables = self.tables.load();
        let mut found = ChangeMap::new();
        let (_, end) = layout::changes_bounds(shelf);
        for row in self.engine.scan(&layout::changes_key(shelf, from), &end) {
            let (row_key, row) = row?;
            let last = layout::split_changes(&row_key).unwrap_or(0);
            let gone = tables.iter().any(|t| matches!(t.get(&row_key), Some(Cell::Gone)));
            if !gone {
                let map = changes::unpack(&row)
                    .ok_or_else(|| EngineError("packed changes cannot be read".into()))?;
                found.extend(map.into_iter().filter(|(r, _)| (from..=to).contains(r)));
            }
            if last >= to || found.len() >= limit {
                break;
            }
        }
        for table in tables.iter().rev() {
            if found.len() < limit {
                found.extend(table.changes(shelf, from, to, limit));
            }
        }
        while found.len() > limit {
            found.pop_last();
        }
        Ok(found)
    }

    /// Row keys of packed changes of `shelf` that end below `floor`, at most `limit`.
    pub fn packed_below(
        &self,
        shelf: Shelf,
        floor: i64,
        limit: usize,
    ) -> Result<Vec<Bytes>, EngineError> {
        let (start, _) = layout::changes_bounds(shelf);
        let end = layout::changes_key(shelf, floor);
        let keys = self.rows(&start, &end)?;
        Ok(keys.into_iter().map(|(key, _)| key).take(limit).collect())
    }

    /// Rows of an interval of any kind but versions, merged. Not for large intervals.
    pub fn rows(&self, from: &[u8], to: &[u8]) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut merged = std::collections::BTreeMap::new();
        let tables = self.tables();
        for row in self.engine.scan(from, to) {
            let (key, value) = row?;
            merged.insert(key, value);
        }
        for table in tables.iter().rev() {
            for (key, cell) in table.range(from, to) {
                match cell.encode() {
                    Some(value) => merged.insert(key, value),
                    None => merged.remove(&key),
                };
            }
        }
        Ok(merged.into_iter().collect())
    }

    /// One row of any kind but versions.
    pub fn row(&self, row_key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        for table in self.tables.load().iter() {
            if let Some(cell) = table.get(row_key) {
                return Ok(cell.encode());
            }
        }
        self.engine.get(row_key)
    }

    /// Keys of at most `limit` rows of a shelf and kind, for taking the shelf away in slices.
    pub fn some_rows(
        &self,
        kind: u8,
        shelf: Shelf,
        limit: usize,
    ) -> Result<Vec<Bytes>, EngineError> {
        let (from, to) = layout::shelf_bounds(kind, shelf);
        let tables = self.tables();
        let mut keys = Vec::new();
        for table in tables.iter() {
            let live = table.range(&from, &to).filter(|(_, cell)| !matches!(cell, Cell::Gone));
            keys.extend(live.map(|(key, _)| key).take(limit));
        }
        for row in self.engine.scan(&from, &to) {
            if keys.len() >= limit {
                break;
            }
            let (key, _) = row?;
            if !tables.iter().any(|t| t.get(&key).is_some()) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Bytes that wait for a checkpoint.
    pub fn recent_bytes(&self) -> u64 {
        self.active().bytes()
    }
}
