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
//! - Rows stand under shelves (`shelves.rs`); a shelf is never used twice.
//! - Large values stand in extents (`extents.rs`). A row that comes or goes says so there, in
//!   the same call, so that the bitmaps of a checkpoint belong to its rows.
//! - A view keeps the pages that its rows name from being used again while it lives.

pub mod changes;
pub mod checkpoint;
pub mod counts;
pub mod hot;
pub mod layout;
pub mod leaves;
pub mod recent;
pub mod shelves;
pub mod view;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use proto::KeyRange;

use crate::engine::{Engine, EngineError};
use crate::extents::{ExtentError, Extents, Pointer};
use changes::Change;
use hot::Hot;
use layout::{Row, Shelf, Value};
use leaves::Leaves;
use recent::{Cell, ChangeMap, Table};
use shelves::{Pieces, Shelves};
use view::{Damage, Damages, View};

/// One node's rows. See the module.
pub struct Store {
    engine: Arc<dyn Engine>,
    extents: Arc<Extents>,
    tables: ArcSwap<Tables>,
    /// Every set of tables that a view may still have, oldest first.
    seen: Mutex<VecDeque<(u64, Weak<Tables>)>>,
    hot: Arc<Hot>,
    leaves: Arc<Leaves>,
    damages: Arc<Damages>,
    /// Rows of shelves below this one own no pages, whatever they say.
    bare_below: AtomicU64,
}

/// What a view reads beside the engine.
pub struct Tables {
    /// Newest first: the active table, then the frozen one if there is one.
    list: Vec<Arc<Table>>,
    /// Newest checkpoint that was complete when these became the tables.
    complete: u64,
}

impl Store {
    /// A store over what the engine holds.
    pub fn new(engine: Arc<dyn Engine>, extents: Arc<Extents>) -> Store {
        let list = vec![Arc::new(Table::default())];
        let tables = Arc::new(Tables { list, complete: extents.complete() });
        let seen = Mutex::new(VecDeque::from([(tables.complete, Arc::downgrade(&tables))]));
        Store {
            engine,
            extents,
            tables: ArcSwap::new(tables),
            seen,
            hot: Arc::default(),
            leaves: Arc::default(),
            damages: Arc::default(),
            bare_below: AtomicU64::new(0),
        }
    }

    /// The engine below.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Where large values stand.
    pub fn extents(&self) -> &Arc<Extents> {
        &self.extents
    }

    /// Bytes of engine and page files on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes() + self.extents.disk_bytes()
    }

    fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    fn set_tables(&self, list: Vec<Arc<Table>>, complete: u64) {
        let tables = Arc::new(Tables { list, complete });
        self.seen.lock().push_back((complete, Arc::downgrade(&tables)));
        self.tables.store(tables);
    }

    fn active(&self) -> Arc<Table> {
        self.tables.load().list.first().expect("there is always an active table").clone()
    }

    /// A view of versions at a revision. The revision must have been read before this call.
    pub fn view(&self, pieces: impl Into<Pieces>, revision: i64) -> View {
        View {
            pieces: pieces.into(),
            revision,
            tables: self.tables(),
            hot: self.hot.clone(),
            leaves: self.leaves.clone(),
            engine: self.engine.clone(),
            extents: self.extents.clone(),
            damages: self.damages.clone(),
            see_max: view::SEEN_MAX,
        }
    }

    /// Takes what reads have met that cannot be read.
    pub fn take_damages(&self) -> Vec<Damage> {
        self.damages.take()
    }

    /// Writes the value of a damaged version once more. Says whether it was the right one.
    pub fn heal(&self, damage: &Damage, value: &[u8]) -> Result<bool, String> {
        // The view keeps the pages from being used again.
        let view = self.view(damage.shelf, i64::MAX);
        let row = view.exactly(&damage.key, damage.revision).map_err(|error| error.to_string())?;
        let row = row.ok_or("the version is gone")?;
        let Some(pointer) = row.value.extent() else { return Ok(true) };
        self.extents.heal(pointer, damage.shelf, &damage.key, value).map_err(|e| e.to_string())
    }

    /// Frees pages for which only views were waited that are closed by now.
    pub fn reclaim(&self) {
        let mut seen = self.seen.lock();
        while seen.front().is_some_and(|(_, tables)| tables.strong_count() == 0) {
            seen.pop_front();
        }
        let oldest = seen.front().map_or(u64::MAX, |(complete, _)| *complete);
        self.extents.checkpointed(self.extents.complete(), oldest);
    }

    /// Rows of shelves below this one own no pages from now on: the engine that they stand in
    /// went back in time, and nobody knows whose the pages are.
    pub fn disown_below(&self, shelf: Shelf) {
        self.bare_below.store(shelf.0, Ordering::Relaxed);
    }

    /// See [`Store::disown_below`].
    pub fn bare_below(&self) -> Shelf {
        Shelf(self.bare_below.load(Ordering::Relaxed))
    }

    /// Writes a value into an extent of its own if it has at least `least` bytes and there is
    /// room. The extent is held by the caller, see [`Store::put_version`]; it is durable with the
    /// next checkpoint.
    pub fn place(
        &self,
        shelf: Shelf,
        key: &[u8],
        value: Bytes,
        least: usize,
    ) -> Result<Value, EngineError> {
        if value.len() < least {
            return Ok(Value::Here(value));
        }
        match self.extents.write(shelf, key, &value) {
            Ok(pointer) => Ok(Value::There(pointer)),
            Err(error) if self.extents.is_stopped() => Err(failed(&error)),
            Err(error) => {
                tracing::warn!(%error, "a large value stays in its row");
                Ok(Value::Here(value))
            }
        }
    }

    /// Adds a version that came with a snapshot: older ones may follow. Otherwise as
    /// [`Store::put_version`].
    pub fn install_version(&self, shelf: Shelf, key: &[u8], revision: i64, row: Row) {
        if let Some(pointer) = row.value.extent() {
            self.extents.keep(pointer);
        }
        self.active().put(layout::version_key(shelf, key, revision).into(), Cell::Row(row));
    }

    /// A shelf's rows up to `revision` came from the disk or with a snapshot. To be called before
    /// anybody reads them.
    pub fn opened(&self, shelf: Shelf, revision: i64) {
        self.leaves.opened(shelf, revision);
    }

    /// More than one group reads and writes a shelf's versions, one of them from `at` on: their
    /// revisions rise in each of them, but not in the order of all writes.
    pub fn shared(&self, shelf: Shelf, at: &Bytes) {
        self.leaves.shared(shelf, at);
    }

    /// Adds the newest version of a key; its extent, if it has one, is held by somebody and in no
    /// other row. Only the worker's thread may call this and the other writing methods.
    pub fn put_version(&self, shelf: Shelf, key: &[u8], revision: i64, row: Row) {
        self.install_version(shelf, key, revision, row.clone());
        self.hot.wrote(shelf, key, revision, &row);
        self.leaves.wrote(shelf, key, revision, &row);
    }

    /// Takes a version away.
    pub fn remove_version(&self, shelf: Shelf, key: &[u8], revision: i64, row: &Row) {
        self.release(shelf, row.value.extent());
        self.remove(layout::version_key(shelf, key, revision));
    }

    /// A version is about to be replaced by another of the same key and revision.
    pub fn replaces(&self, shelf: Shelf, row: &Row) {
        self.release(shelf, row.value.extent());
    }

    fn release(&self, shelf: Shelf, extent: Option<&Pointer>) {
        if let Some(pointer) = extent
            && shelf >= self.bare_below()
        {
            self.extents.release(pointer);
        }
    }

    /// Moves an extent to the front of the page files, so that their end can be cut off. Says how
    /// many bytes moved, or where to look next time if there was nothing to move.
    pub fn move_extent(&self, skip: (u32, u32)) -> Result<Moved, EngineError> {
        let found = match self.extents.to_move(skip) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Moved::Nothing),
            // Whoever reads it is told so; it stays where it is.
            Err(ExtentError::Damaged { file, page, .. }) => return Ok(Moved::Past(file, page + 1)),
            Err(error) if self.extents.is_stopped() => return Err(failed(&error)),
            Err(_) => return Ok(Moved::Nothing),
        };
        let (from, extent) = found;
        let past = Moved::Past(from.file, from.page + from.pages);
        let view = self.view(extent.shelf, i64::MAX);
        let Some((revision, row)) = view.row_with(&extent.key, &from)? else { return Ok(past) };
        let to = match self.extents.write_before(&from, &extent) {
            Ok(Some(to)) => to,
            Ok(None) => return Ok(past),
            Err(error) => return Err(failed(&error)),
        };
        let row = Row { value: Value::There(to), ..row };
        self.extents.keep(&to);
        self.extents.let_go(&to);
        self.extents.release(&from);
        let row_key = layout::version_key(extent.shelf, &extent.key, revision).into();
        self.active().put(row_key, Cell::Moved(row.clone()));
        self.hot.moved(extent.shelf, &extent.key, revision, &row);
        self.leaves.moved(extent.shelf, &extent.key);
        Ok(Moved::Bytes(u64::from(from.length)))
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

    /// What a group's revisions `from..=to` changed, ascending and without a gap from `from` on, and
    /// the revision up to which that is all: below `to` if it looked at `limit` revisions before.
    pub fn history(
        &self,
        shelves: &Shelves,
        from: i64,
        to: i64,
        limit: usize,
    ) -> Result<(ChangeMap, i64), EngineError> {
        if shelves.past.is_empty() && shelves.range == KeyRange::all() {
            let found = self.changes(shelves.own, from, to, limit)?;
            let through = through(&found, to, limit);
            return Ok((found, through));
        }
        // Each shelf tells of its keys alone, up to its last revision.
        let past = shelves.past.iter().filter(|past| past.to_revision >= from);
        let past = past.map(|past| (past.shelf, past.to_revision, &past.range));
        let (mut told, mut end) = (Vec::new(), to);
        for (shelf, last, range) in past.chain([(shelves.own, to, &shelves.range)]) {
            let last = last.min(end);
            let found = self.changes(shelf, from, last, limit)?;
            // One that has told all that it has says nothing of what comes behind.
            let reached = through(&found, last, limit);
            end = if reached < last { reached } else { end };
            told.push((found, range));
        }
        let mut all = ChangeMap::new();
        for (found, range) in told {
            for (revision, changes) in found.into_iter().take_while(|(at, _)| *at <= end) {
                let ours = within(changes, range).and_then(|c| within(c, &shelves.range));
                let Some(ours) = ours else { continue };
                let list = match all.remove(&revision) {
                    None => ours,
                    Some(other) => in_order(&other, &ours),
                };
                all.insert(revision, list);
            }
        }
        while all.len() > limit {
            all.pop_last();
            end = all.last_key_value().map_or(end, |(last, _)| *last);
        }
        Ok((all, end))
    }

    /// Changes of the revisions `from..=to` that a shelf tells of, at most `limit` revisions,
    /// ascending and without a gap from `from` on.
    fn changes(
        &self,
        shelf: Shelf,
        from: i64,
        to: i64,
        limit: usize,
    ) -> Result<ChangeMap, EngineError> {
        let tables = &self.tables().list;
        let mut found = ChangeMap::new();
        let (_, end) = layout::changes_bounds(shelf);
        for row in self.engine.scan(&layout::changes_key(shelf, from), &end) {
            let (row_key, row) = row?;
            let last = layout::split_changes(&row_key).unwrap_or(0);
            let gone = tables.iter().any(|t| matches!(t.get(&row_key), Some(Cell::Gone)));
            if !gone {
                let map = changes::unpack(&row)
                    .ok_or_else(|| EngineError::Failed("packed changes cannot be read".into()))?;
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
        let tables = &self.tables().list;
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
        for table in &self.tables().list {
            if let Some(cell) = table.get(row_key) {
                return Ok(cell.encode());
            }
        }
        self.engine.get(row_key)
    }

    /// Takes at most `limit` rows of an interval of one shelf and kind away, and says how many.
    pub fn drop_rows(
        &self,
        shelf: Shelf,
        (from, to): &(Vec<u8>, Vec<u8>),
        limit: usize,
    ) -> Result<usize, EngineError> {
        let found = self.some_rows(from, to, limit)?;
        for (row_key, extent) in &found {
            self.release(shelf, extent.as_ref());
            self.remove(row_key.to_vec());
        }
        Ok(found.len())
    }

    /// Looks at about `limit` keys of leases of a shelf, from row `from` on, and takes those away that
    /// are in none of the ranges. Says how many went, and where to go on if there are more.
    pub fn drop_lease_keys(
        &self,
        shelf: Shelf,
        kept: &[KeyRange],
        from: &[u8],
        limit: usize,
    ) -> Result<(usize, Option<Vec<u8>>), EngineError> {
        let (_, to) = layout::all_lease_keys_bounds(shelf);
        let (rows, next) = self.first_rows(from, &to, limit)?;
        let mut dropped = 0;
        for row_key in rows {
            let Some((_, key)) = layout::split_lease_key(&row_key) else {
                return Err(EngineError::Failed("a lease's key cannot be read".into()));
            };
            if !kept.iter().any(|range| range.contains(&key)) {
                self.remove(row_key.to_vec());
                dropped += 1;
            }
        }
        Ok((dropped, next))
    }

    /// Is a key of a lease of a shelf in none of the ranges?
    pub fn has_lease_keys_outside(
        &self,
        shelf: Shelf,
        kept: &[KeyRange],
        look: usize,
    ) -> Result<bool, EngineError> {
        let (from, to) = layout::all_lease_keys_bounds(shelf);
        let mut from = Some(from);
        while let Some(begin) = from {
            let (rows, next) = self.first_rows(&begin, &to, look)?;
            let mut keys = rows.iter().filter_map(layout::split_lease_key);
            if keys.any(|(_, key)| !kept.iter().any(|range| range.contains(&key))) {
                return Ok(true);
            }
            from = next;
        }
        Ok(false)
    }

    /// The first rows of an interval of one shelf and kind that has no versions, and where the next
    /// ones begin if there are any: about `limit` of them, which may be none if many are removed.
    fn first_rows(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<(Vec<Bytes>, Option<Vec<u8>>), EngineError> {
        let mut live = std::collections::BTreeMap::new();
        // Behind the last row that every source has told of nothing is known.
        let mut horizon: Option<Bytes> = None;
        let mut told = |rows: &[(Bytes, bool)]| {
            if let Some((last, _)) = rows.last().filter(|_| rows.len() >= limit) {
                horizon =
                    Some(horizon.take().map_or(last.clone(), |least| least.min(last.clone())));
            }
            live.extend(rows.iter().cloned());
        };
        let rows = self.engine.scan(from, to).take(limit).map(|row| Ok((row?.0, true)));
        told(&rows.collect::<Result<Vec<_>, EngineError>>()?);
        for table in self.tables().list.iter().rev() {
            let rows = table.range(from, to).take(limit);
            told(&rows.map(|(key, cell)| (key, cell.encode().is_some())).collect::<Vec<_>>());
        }
        let next = horizon.as_ref().map(|last| [last.as_ref(), &[0]].concat());
        let known = |row: &Bytes| horizon.as_ref().is_none_or(|last| row <= last);
        let rows = live.into_iter().filter(|(row, is_live)| *is_live && known(row));
        Ok((rows.map(|(row, _)| row).collect(), next))
    }

    /// Forgets what revisions of a dropped shelf changed, which the next checkpoint would write as
    /// rows. False while one on its way writes some.
    pub fn forget_changes(&self, shelf: Shelf) -> bool {
        self.active().forget(shelf);
        !self.tables().list.iter().any(|table| table.has_noted(shelf))
    }

    /// Has an interval of one shelf and kind any row?
    pub fn has_rows(&self, (from, to): &(Vec<u8>, Vec<u8>)) -> Result<bool, EngineError> {
        Ok(!self.some_rows(from, to, 1)?.is_empty())
    }

    /// Keys of at most `limit` rows of an interval of one shelf and kind, and the extents that they
    /// have.
    fn some_rows(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Option<Pointer>)>, EngineError> {
        let tables = &self.tables().list;
        let newer = |before: usize, key: &[u8]| {
            tables.iter().take(before).any(|table| table.get(key).is_some())
        };
        let mut found = Vec::new();
        for (number, table) in tables.iter().enumerate() {
            for (key, cell) in table.range(from, to) {
                if found.len() >= limit {
                    return Ok(found);
                }
                if newer(number, &key) {
                    continue;
                }
                match cell {
                    Cell::Row(row) | Cell::Moved(row) => {
                        found.push((key, row.value.extent().copied()));
                    }
                    Cell::Raw(_) => found.push((key, None)),
                    Cell::Gone => {}
                }
            }
        }
        for row in self.engine.scan(from, to) {
            if found.len() >= limit {
                break;
            }
            let (key, row) = row?;
            if !newer(tables.len(), &key) {
                let extent = layout::extent_of(&key, &row);
                found.push((key, extent));
            }
        }
        Ok(found)
    }

    /// Checks that pages are in use exactly by the rows that there are; says what is wrong. Walks
    /// everything: for tests.
    #[doc(hidden)]
    pub fn audit(&self) -> Result<(), String> {
        self.extents.audit();
        let (from, _) = layout::versions_bounds(self.bare_below());
        let (_, to) = layout::versions_bounds(Shelf(u64::MAX - 1));
        let mut expected = 0;
        for (row_key, row) in self.rows(&from, &to).map_err(|error| error.to_string())? {
            if let Some(pointer) = layout::extent_of(&row_key, &row) {
                expected += u64::from(pointer.pages);
                self.extents.read(&pointer).map_err(|error| error.to_string())?;
            }
        }
        let found = self.extents.usage().row_pages;
        match found == expected {
            true => Ok(()),
            false => Err(format!("rows use {expected} pages, {found} are said to be in use")),
        }
    }

    /// Bytes that wait for a checkpoint.
    pub fn recent_bytes(&self) -> u64 {
        self.active().bytes()
    }

    /// Bytes of the large values whose rows wait for a checkpoint.
    pub fn recent_large_bytes(&self) -> u64 {
        self.active().large_bytes()
    }
}

/// What came of a try to move an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// There is none worth it.
    Nothing,
    /// One was left where it is: the next try begins at this page of this file.
    Past(u32, u32),
    /// One moved, of so many bytes.
    Bytes(u64),
}

/// The page files cannot go on.
fn failed(error: &ExtentError) -> EngineError {
    EngineError::Failed(error.to_string())
}

/// The revision up to which `found` is everything, if at most `limit` revisions up to `to` were
/// looked for.
fn through(found: &ChangeMap, to: i64, limit: usize) -> i64 {
    match found.last_key_value() {
        Some((last, _)) if found.len() >= limit => *last,
        _ => to,
    }
}

/// What two shelves tell of one revision: parts of it, or the same, if a snapshot has brought what
/// stood here already.
fn in_order(one: &[Change], other: &[Change]) -> Arc<[Change]> {
    let mut all: Vec<Change> = one.iter().chain(other).cloned().collect();
    all.sort_by(|a, b| (a.place, &a.key).cmp(&(b.place, &b.key)));
    all.dedup_by(|a, b| (a.place, &a.key) == (b.place, &b.key));
    all.into()
}

/// The changes of keys inside `range`, if there are any.
fn within(changes: Arc<[Change]>, range: &KeyRange) -> Option<Arc<[Change]>> {
    let inside = changes.iter().filter(|change| range.contains(&change.key)).count();
    match inside {
        0 => None,
        all if all == changes.len() => Some(changes),
        _ => Some(changes.iter().filter(|c| range.contains(&c.key)).cloned().collect()),
    }
}
