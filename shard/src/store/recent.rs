//! The recent table: every row written since the last checkpoint, in engine order.
//!
//! One thread (the worker, which applies) writes; any number of threads read at the same
//! time without a lock. Version rows are never overwritten while someone may read them at
//! their revision, so a reader that knows its revision sees a consistent state whatever is
//! being added.
//!
//! Beside the rows stand the changes: which keys each revision touched. They are what
//! watches catch up from; the checkpoint packs them into few rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;
use parking_lot::RwLock;

use super::changes::Change;
use super::layout::{Row, Shelf};

/// What stands under a row key.
#[derive(Clone, Debug)]
pub enum Cell {
    /// A version of a key; encoded when the checkpoint writes it.
    Row(Row),
    /// A version that was written before, whose extent stands elsewhere now. Unlike a
    /// [`Cell::Row`] it may be older than what older tables hold of its key.
    Moved(Row),
    /// Any other row, encoded.
    Raw(Bytes),
    /// The engine's row of this key is to go.
    Gone,
}

impl Cell {
    /// The bytes for the engine.
    pub fn encode(&self) -> Option<Bytes> {
        match self {
            Cell::Row(row) | Cell::Moved(row) => Some(row.encode()),
            Cell::Raw(bytes) => Some(bytes.clone()),
            Cell::Gone => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Cell::Row(row) | Cell::Moved(row) => row.value.row_bytes() + 64,
            Cell::Raw(bytes) => bytes.len(),
            Cell::Gone => 0,
        }
    }
}

/// Changes by revision.
pub type ChangeMap = BTreeMap<i64, Arc<[Change]>>;

/// Goes from row to row. The map's own ranges keep hold of rows that they have passed, for
/// ever once those are replaced (crossbeam issue 1178); entries do not.
pub struct Walk<'t> {
    rows: &'t SkipMap<Bytes, Cell>,
    /// The next row, below the end of the walk.
    next: Option<Entry<'t, Bytes, Cell>>,
    to: Option<Bytes>,
}

/// Rows that are passed one by one before the next one is looked for from above: about what that
/// costs.
const PASS_MAX: usize = 32;

impl Walk<'_> {
    /// Key of the next row.
    pub fn key(&self) -> Option<&Bytes> {
        self.next.as_ref().map(Entry::key)
    }

    /// Goes past all rows below `bound`.
    pub fn pass(&mut self, bound: &[u8]) {
        for passed in 0.. {
            let Some(entry) = self.next.take_if(|entry| entry.key() < bound) else { return };
            self.next = match passed {
                PASS_MAX => self.rows.lower_bound::<[u8]>(std::ops::Bound::Included(bound)),
                _ => entry.next(),
            };
            self.end();
        }
    }

    fn end(&mut self) {
        let to = self.to.as_ref();
        self.next.take_if(|entry| to.is_some_and(|to| entry.key() >= to));
    }
}

impl Iterator for Walk<'_> {
    type Item = (Bytes, Cell);

    fn next(&mut self) -> Option<(Bytes, Cell)> {
        let entry = self.next.take()?;
        self.next = entry.next();
        self.end();
        Some((entry.key().clone(), entry.value().clone()))
    }
}

/// What a revision's changes take.
fn noted_bytes(changes: &[Change]) -> u64 {
    changes.iter().map(|change| change.key.len() as u64 + 64).sum()
}

/// Rows newer than a checkpoint.
#[derive(Default)]
pub struct Table {
    rows: SkipMap<Bytes, Cell>,
    changes: RwLock<BTreeMap<Shelf, ChangeMap>>,
    bytes: AtomicU64,
    large_bytes: AtomicU64,
}

impl Table {
    /// Puts a row. Only the worker's thread may call this.
    pub fn put(&self, key: Bytes, cell: Cell) {
        if let Cell::Row(row) | Cell::Moved(row) = &cell
            && let Some(pointer) = row.value.extent()
        {
            self.large_bytes.fetch_add(u64::from(pointer.length), Ordering::Relaxed);
        }
        // 96: what an entry of the map takes beside its bytes.
        self.bytes.fetch_add((key.len() + cell.bytes() + 96) as u64, Ordering::Relaxed);
        self.rows.insert(key, cell);
    }

    /// Notes what a revision changed. Only the worker's thread may call this.
    pub fn note(&self, shelf: Shelf, revision: i64, changes: Arc<[Change]>) {
        self.bytes.fetch_add(noted_bytes(&changes), Ordering::Relaxed);
        self.changes.write().entry(shelf).or_default().insert(revision, changes);
    }

    /// Forgets what was noted of a shelf. Only the worker's thread may call this.
    pub fn forget(&self, shelf: Shelf) {
        let noted = self.changes.write().remove(&shelf).unwrap_or_default();
        let bytes = noted.values().map(|changes| noted_bytes(changes)).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Is anything noted of a shelf?
    pub fn has_noted(&self, shelf: Shelf) -> bool {
        self.changes.read().contains_key(&shelf)
    }

    /// The cell under exactly this row key.
    pub fn get(&self, key: &[u8]) -> Option<Cell> {
        self.rows.get(key).map(|entry| entry.value().clone())
    }

    /// The first row at or above `from` and below `to`.
    pub fn first(&self, from: &[u8], to: &[u8]) -> Option<(Bytes, Cell)> {
        let entry = self.rows.lower_bound::<[u8]>(std::ops::Bound::Included(from))?;
        (entry.key().as_ref() < to).then(|| (entry.key().clone(), entry.value().clone()))
    }

    /// Rows of an interval, ascending.
    pub fn range(&self, from: &[u8], to: &[u8]) -> Walk<'_> {
        let next = self.rows.lower_bound::<[u8]>(std::ops::Bound::Included(from));
        let mut walk = Walk { rows: &self.rows, next, to: Some(Bytes::copy_from_slice(to)) };
        walk.end();
        walk
    }

    /// All rows, ascending.
    pub fn iter(&self) -> Walk<'_> {
        Walk { rows: &self.rows, next: self.rows.front(), to: None }
    }

    /// Changes of revisions `from..=to`, at most `limit` revisions.
    pub fn changes(&self, shelf: Shelf, from: i64, to: i64, limit: usize) -> ChangeMap {
        let changes = self.changes.read();
        let Some(map) = changes.get(&shelf) else { return ChangeMap::new() };
        if from > to {
            return ChangeMap::new();
        }
        map.range(from..=to).take(limit).map(|(r, c)| (*r, c.clone())).collect()
    }

    /// All changes, for the checkpoint.
    pub fn all_changes(&self) -> BTreeMap<Shelf, ChangeMap> {
        self.changes.read().clone()
    }

    /// Bytes held, about.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the large values whose rows were put.
    pub fn large_bytes(&self) -> u64 {
        self.large_bytes.load(Ordering::Relaxed)
    }

    /// Nothing to write?
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.changes.read().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Counted(Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            b"counted"
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_walk_goes_past_rows_be_they_few_or_many() {
        let table = Table::default();
        for row in 0..200u8 {
            table.put(Bytes::copy_from_slice(&[row]), Cell::Gone);
        }
        for (bound, next) in [(0, Some(3)), (3, Some(3)), (9, Some(9)), (99, Some(99)), (150, None)]
        {
            let mut walk = table.range(&[3], &[150]);
            walk.pass(&[bound]);
            assert_eq!(walk.key().map(|key| key[0]), next, "past what is below {bound}");
            let rest = (next.unwrap_or(150)..150).count();
            assert_eq!(walk.count(), rest, "behind {bound}");
        }
    }

    #[test]
    fn rows_that_were_read_and_replaced_are_freed() {
        const ROWS: usize = 100;
        let freed = Arc::new(AtomicUsize::new(0));
        let table = Table::default();
        for row in 0..ROWS as u8 {
            let value = Bytes::from_owner(Counted(freed.clone()));
            table.put(Bytes::copy_from_slice(&[row]), Cell::Raw(value));
        }
        for row in 0..ROWS as u8 {
            assert!(table.first(&[row], &[255]).is_some());
            assert!(table.range(&[0], &[row]).count() <= ROWS && table.iter().count() == ROWS);
            table.put(Bytes::copy_from_slice(&[row]), Cell::Gone);
        }
        drop(table);
        // What was taken out is freed a little later, as other tables are used.
        let other = Table::default();
        for _ in 0..1_000_000 {
            if freed.load(Ordering::SeqCst) == ROWS {
                return;
            }
            other.put(Bytes::from_static(b"k"), Cell::Gone);
        }
        panic!("{} rows of {ROWS} are freed", freed.load(Ordering::SeqCst));
    }
}
