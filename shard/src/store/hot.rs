//! The newest version of keys that were written lately, so that a put, a compare or a get of
//! such a key does not search tables and engine.
//!
//! Every put needs what stood before (create revision, version, lease). Looking it up in the
//! engine was a fifth of all CPU of a put (docs/measurements.md).
//!
//! Invariants:
//! - What is held for a key is its newest version: only [`Hot::wrote`] fills it, called by the
//!   one thread that writes, after the row stands in the table. Readers never fill.
//! - A reader at revision R takes it only if it is not above R.
//! - Bytes are bounded, and copied: a value's slice would keep its whole log entry alive.

use std::hash::{Hash, Hasher};

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use super::layout::{Row, Shelf, Value};
use super::view::Found;

/// Bytes of a node's hot versions.
const CAPACITY_BYTES: u64 = 32 << 20;
/// Larger values are not held.
const VALUE_MAX: usize = 2048;
/// What an entry takes beside key and value, about.
const ENTRY_BYTES: usize = 160;

/// See the module.
pub struct Hot {
    newest: Cache<Place, Found, Weigh>,
}

#[derive(Clone, PartialEq, Eq)]
struct Place {
    shelf: Shelf,
    key: Bytes,
}

/// A place that is looked for, without a copy of its key.
struct Wanted<'k> {
    shelf: Shelf,
    key: &'k [u8],
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Wanted { shelf: self.shelf, key: &self.key }.hash(state);
    }
}

impl Hash for Wanted<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.shelf.hash(state);
        self.key.hash(state);
    }
}

impl Equivalent<Place> for Wanted<'_> {
    fn equivalent(&self, place: &Place) -> bool {
        self.shelf == place.shelf && self.key == place.key
    }
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Place, Found> for Weigh {
    fn weight(&self, place: &Place, found: &Found) -> u64 {
        (place.key.len() + found.row.value.row_bytes() + ENTRY_BYTES) as u64
    }
}

impl Default for Hot {
    fn default() -> Hot {
        Hot { newest: Cache::with_weighter(1024, CAPACITY_BYTES, Weigh) }
    }
}

impl Hot {
    /// The newest version of `key`, delete markers too, if it is held.
    pub fn get(&self, shelf: Shelf, key: &[u8]) -> Option<Found> {
        self.newest.get(&Wanted { shelf, key })
    }

    /// `key` has a new newest version. Only the worker's thread may call this.
    pub fn wrote(&self, shelf: Shelf, key: &[u8], revision: i64, row: &Row) {
        let value = match &row.value {
            Value::Here(bytes) if bytes.len() > VALUE_MAX => {
                self.newest.remove(&Wanted { shelf, key });
                return;
            }
            Value::Here(bytes) => Value::Here(Bytes::copy_from_slice(bytes)),
            Value::There(pointer) => Value::There(*pointer),
        };
        let row = Row { value, ..row.clone() };
        let place = Place { shelf, key: Bytes::copy_from_slice(key) };
        self.newest.insert(place, Found { revision, row });
    }

    /// The extent of a version stands elsewhere now. Only the worker's thread may call this.
    pub fn moved(&self, shelf: Shelf, key: &[u8], revision: i64, row: &Row) {
        if self.get(shelf, key).is_some_and(|found| found.revision == revision) {
            self.wrote(shelf, key, revision, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: &[u8]) -> Row {
        Row { value: Bytes::copy_from_slice(value).into(), ..Default::default() }
    }

    #[test]
    fn what_was_written_last_is_held() {
        let hot = Hot::default();
        hot.wrote(Shelf(1), b"k", 2, &row(b"old"));
        hot.wrote(Shelf(1), b"k", 3, &row(b"new"));
        let found = hot.get(Shelf(1), b"k").unwrap();
        assert_eq!((found.revision, found.row), (3, row(b"new")));
        assert_eq!(hot.get(Shelf(2), b"k"), None);
    }

    #[test]
    fn a_large_value_takes_the_older_version_away() {
        let hot = Hot::default();
        hot.wrote(Shelf(1), b"k", 2, &row(b"small"));
        hot.wrote(Shelf(1), b"k", 3, &row(&[0; VALUE_MAX + 1]));
        assert_eq!(hot.get(Shelf(1), b"k"), None);
    }

    #[test]
    fn it_is_bounded() {
        let hot = Hot::default();
        for key in 0..100_000u32 {
            hot.wrote(Shelf(1), &key.to_be_bytes(), 2, &row(&[7; 1024]));
        }
        assert!(hot.newest.weight() <= CAPACITY_BYTES);
    }
}
