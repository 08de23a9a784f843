//! Leaves: the newest live rows of stretches of keys that were listed lately, so that a list does
//! not walk old versions, delete markers and the engine's tables again.
//!
//! ```text
//!   keys    a    c    f    h    k    m    p    t
//!   leaves  [--- leaf: a c f ---)    [-- leaf: k m --)      the rest is in tables and engine
//!                  + changed since: c'
//! ```
//!
//! A reader that finds no leaf walks as ever and leaves behind what it has seen. Writes to keys
//! under a leaf are noted beside it; when they are many the next reader makes the leaf anew, and
//! when they are too many it goes.
//!
//! Invariants:
//! - Leaves of a shelf do not overlap. A leaf with its changes holds the newest version of every
//!   live key of its interval, as of the last call of [`Leaves::wrote`].
//! - What a reader at revision R has seen becomes a leaf only if nothing above R was ever written to
//!   its interval: the last writes are remembered for that, and up to which revision they are not
//!   ([`Leaves::opened`]).
//! - A reader at R takes a leaf that was seen at or below R, and of its changes those that are not
//!   above R: so the pages of one long list, which all ask for the revision of the first, find leaves
//!   while others write.
//! - A reader below the revision at which a leaf was seen does not take it: of what was replaced or
//!   deleted before, nothing is left in it.
//! - Two groups may write to one shelf, each to its keys ([`Leaves::shared`]). In each of them
//!   revisions rise, between them they do not: what was written last is not the newest then.
//! - [`Leaves::wrote`] is called for every newest version, after the row stands in the table, by
//!   the one thread that writes; [`Leaves::moved`] when an extent stands elsewhere.
//! - Bytes are bounded, and copied: a value's slice would keep its whole log entry alive.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::RwLock;

use super::layout::{Row, Shelf, Value};
use super::view::Found;

/// Bytes of a node's leaves.
const CAPACITY_BYTES: usize = 64 << 20;
/// Keys of a leaf.
pub const LEAF_KEYS: usize = 128;
/// Changes beside a leaf after which the next reader makes it anew, and after which it goes.
const RENEW_CHANGES: usize = 16;
const CHANGES_MAX: usize = 64;
/// Writes that are remembered.
const RECENT_MAX: usize = 4096;
/// A change with a larger value takes the leaf away.
const VALUE_MAX: usize = 16 * 1024;
/// What a row and a leaf take beside keys and values, about.
const ROW_BYTES: usize = 120;
const LEAF_BYTES: usize = 300;

/// See the module.
#[derive(Default)]
pub struct Leaves {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    leaves: BTreeMap<(Shelf, Bytes), Held>,
    /// In the order of their making, for the second chance. Numbers of leaves that went otherwise
    /// are passed over.
    order: VecDeque<(u64, (Shelf, Bytes))>,
    next: u64,
    bytes: usize,
    /// The last writes, of all shelves.
    recent: VecDeque<(Shelf, i64, Bytes)>,
    /// The newest write of each shelf that is remembered no more.
    forgotten: BTreeMap<Shelf, i64>,
    /// Shelves to which more than one group writes.
    shared: BTreeSet<Shelf>,
    /// Extents that moved so far.
    moves: u64,
}

struct Held {
    number: u64,
    leaf: Arc<Leaf>,
    changes: Vec<(Bytes, Found)>,
    used: AtomicBool,
}

/// Live rows of an interval of keys.
pub struct Leaf {
    /// First key above it; `None`: it reaches to the end of the shelf.
    end: Option<Bytes>,
    rows: Vec<(Bytes, Found)>,
    /// Revision as of which it holds everything.
    revision: i64,
    bytes: usize,
}

/// What stands at a key.
pub enum Place {
    /// A leaf.
    Leaf(Covered),
    /// None, up to this key, or to the end.
    Gap {
        /// Where the next leaf begins, or the one ends that is too new.
        until: Option<Bytes>,
        /// If what is seen there may become a leaf: to be given to [`Leaves::seen`].
        open: Option<Seeing>,
    },
}

/// When a reader began to look.
#[derive(Clone, Copy, Debug)]
pub struct Seeing {
    moves: u64,
}

/// A leaf and what changed since it was made.
pub struct Covered {
    start: Bytes,
    leaf: Arc<Leaf>,
    changes: Vec<(Bytes, Found)>,
}

impl Covered {
    /// First key above the leaf; `None` at the end of the shelf.
    pub fn end(&self) -> Option<&Bytes> {
        self.leaf.end.as_ref()
    }

    /// The live rows from `from` on, ascending.
    pub fn rows(&self, from: &[u8]) -> impl Iterator<Item = (Bytes, Found)> + '_ {
        let mut changed: BTreeMap<&Bytes, &Found> = BTreeMap::new();
        changed.extend(self.changes.iter().map(|(key, found)| (key, found)));
        changed.retain(|key, _| key.as_ref() >= from);
        let skip = self.leaf.rows.partition_point(|(key, _)| key.as_ref() < from);
        let mut rows = self.leaf.rows.iter().skip(skip).peekable();
        let mut changed = changed.into_iter().peekable();
        std::iter::from_fn(move || {
            loop {
                let take_row = match (rows.peek(), changed.peek()) {
                    (Some((key, _)), Some((other, _))) if key == *other => {
                        // The change is newer.
                        rows.next();
                        continue;
                    }
                    (Some((key, _)), Some((other, _))) => key < *other,
                    (Some(_), None) => true,
                    (None, Some(_)) => false,
                    (None, None) => return None,
                };
                if take_row {
                    return rows.next().cloned();
                }
                if let Some((key, found)) = changed.next()
                    && !found.row.deleted
                {
                    return Some((key.clone(), found.clone()));
                }
            }
        })
    }
}

impl Leaf {
    /// Copies `rows`, which are all live rows below `end` at `revision`, ascending.
    pub fn new(rows: &[(Bytes, Found)], end: Option<Bytes>, revision: i64) -> Leaf {
        let here = |found: &Found| found.row.value.row_bytes();
        let total = rows.iter().map(|(key, found)| key.len() + here(found)).sum();
        let mut bytes = BytesMut::with_capacity(total);
        for (key, found) in rows {
            bytes.put_slice(key);
            if let Value::Here(value) = &found.row.value {
                bytes.put_slice(value);
            }
        }
        let mut bytes = bytes.freeze();
        let copied = rows.iter().map(|(key, found)| {
            let key = bytes.split_to(key.len());
            let value = match &found.row.value {
                Value::Here(value) => Value::Here(bytes.split_to(value.len())),
                Value::There(pointer) => Value::There(*pointer),
            };
            let row = Row { value, ..found.row.clone() };
            (key, Found { revision: found.revision, row })
        });
        Leaf {
            rows: copied.collect(),
            revision,
            end,
            bytes: total + rows.len() * ROW_BYTES + LEAF_BYTES,
        }
    }

    fn reaches(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }
}

impl Leaves {
    /// What a reader at `revision` finds at `key`.
    pub fn find(&self, shelf: Shelf, key: &Bytes, revision: i64) -> Place {
        let inner = self.inner.read();
        let at = (shelf, key.clone());
        if let Some(((found, start), held)) = inner.leaves.range(..=&at).next_back()
            && *found == shelf
            && held.leaf.reaches(key)
        {
            if held.leaf.revision > revision {
                return Place::Gap { until: held.leaf.end.clone(), open: None };
            }
            held.used.store(true, Ordering::Relaxed);
            let seen = held.changes.iter().filter(|(_, found)| found.revision <= revision);
            let (start, changes) = (start.clone(), seen.cloned().collect());
            return Place::Leaf(Covered { start, leaf: held.leaf.clone(), changes });
        }
        let next = inner.leaves.range(&at..).next().filter(|((found, _), _)| *found == shelf);
        let open = inner.forgotten.get(&shelf).is_none_or(|newest| *newest <= revision);
        let open = open.then_some(Seeing { moves: inner.moves });
        Place::Gap { until: next.map(|((_, start), _)| start.clone()), open }
    }

    /// A reader has seen everything from `start` to the end of the leaf at the leaf's revision.
    pub fn seen(&self, shelf: Shelf, start: Bytes, leaf: Leaf, seeing: Seeing) {
        let revision = leaf.revision;
        if !leaf.reaches(&start) {
            // Nothing lies between.
            return;
        }
        let mut inner = self.inner.write();
        let forgotten = inner.forgotten.get(&shelf).is_some_and(|newest| *newest > revision);
        if forgotten || inner.moves != seeing.moves {
            return;
        }
        let in_order = !inner.shared.contains(&shelf);
        for (other, written, key) in inner.recent.iter().rev() {
            if *other != shelf {
                continue;
            }
            if *written <= revision {
                match in_order {
                    true => break,
                    false => continue,
                }
            }
            if *key >= start && leaf.reaches(key) {
                return;
            }
        }
        let at = (shelf, start);
        let before = inner.leaves.range(..=&at).next_back();
        let behind = inner.leaves.range(&at..).next();
        let overlaps = before
            .is_some_and(|((other, _), held)| *other == shelf && held.leaf.reaches(&at.1))
            || behind.is_some_and(|((other, next), _)| *other == shelf && leaf.reaches(next));
        if overlaps {
            return;
        }
        inner.bytes += leaf.bytes;
        inner.next += 1;
        let (number, leaf, used) = (inner.next, Arc::new(leaf), AtomicBool::new(false));
        inner.order.push_back((number, at.clone()));
        inner.leaves.insert(at, Held { number, leaf, changes: Vec::new(), used });
        inner.evict();
    }

    /// A reader that met many changes beside a leaf makes it anew, unless there are more by now.
    pub fn renew(&self, shelf: Shelf, covered: &Covered) {
        if covered.changes.len() < RENEW_CHANGES {
            return;
        }
        let rows: Vec<_> = covered.rows(&[]).collect();
        let newest = covered.changes.iter().map(|(_, found)| found.revision).max();
        let revision = covered.leaf.revision.max(newest.unwrap_or(0));
        let leaf = Leaf::new(&rows, covered.leaf.end.clone(), revision);
        let mut inner = self.inner.write();
        let Some(held) = inner.leaves.get_mut(&(shelf, covered.start.clone())) else { return };
        let same = Arc::ptr_eq(&held.leaf, &covered.leaf);
        if same && held.changes.len() == covered.changes.len() {
            let (before, now) = (held.leaf.bytes, leaf.bytes);
            held.leaf = Arc::new(leaf);
            held.changes = Vec::new();
            inner.bytes = inner.bytes + now - before;
            inner.evict();
        }
    }

    /// The extent of a version of `key` stands elsewhere. Only the worker's thread may call this.
    pub fn moved(&self, shelf: Shelf, key: &[u8]) {
        let at = (shelf, Bytes::copy_from_slice(key));
        let mut inner = self.inner.write();
        inner.moves += 1;
        let before = inner.leaves.range(..=&at).next_back();
        let start = before.filter(|((other, _), held)| *other == shelf && held.leaf.reaches(&at.1));
        if let Some(start) = start.map(|(start, _)| start.clone()) {
            inner.remove(&start);
        }
    }

    /// The rows of a shelf stand at `revision`, and its writes so far were not told here: they came
    /// from the disk or with a snapshot.
    pub fn opened(&self, shelf: Shelf, revision: i64) {
        self.inner.write().forget(shelf, revision);
    }

    /// More than one group writes to a shelf from now on, one of them from `at` on. A leaf that
    /// reaches over it would be right, but of no use: each of them takes only what is not above its
    /// own revision.
    pub fn shared(&self, shelf: Shelf, at: &Bytes) {
        let mut inner = self.inner.write();
        inner.shared.insert(shelf);
        let before = inner.leaves.range(..(shelf, at.clone())).next_back();
        let over = before.filter(|((other, _), held)| *other == shelf && held.leaf.reaches(at));
        if let Some(start) = over.map(|(start, _)| start.clone()) {
            inner.remove(&start);
        }
    }

    /// `key` has a new newest version. Only the worker's thread may call this.
    pub fn wrote(&self, shelf: Shelf, key: &[u8], revision: i64, row: &Row) {
        let key = Bytes::copy_from_slice(key);
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        if inner.recent.len() >= RECENT_MAX
            && let Some((shelf, revision, _)) = inner.recent.pop_front()
        {
            inner.forget(shelf, revision);
        }
        inner.recent.push_back((shelf, revision, key.clone()));
        let at = (shelf, key);
        let Some((start, held)) = inner.leaves.range_mut(..=&at).next_back() else { return };
        if start.0 != shelf || !held.leaf.reaches(&at.1) {
            return;
        }
        let large = row.value.row_bytes() > VALUE_MAX;
        if large || held.changes.len() >= CHANGES_MAX {
            let start = start.clone();
            inner.remove(&start);
            return;
        }
        let value = match &row.value {
            Value::Here(bytes) => Value::Here(Bytes::copy_from_slice(bytes)),
            Value::There(pointer) => Value::There(*pointer),
        };
        held.changes.push((at.1, Found { revision, row: Row { value, ..row.clone() } }));
    }
}

impl Inner {
    /// Nothing is remembered of a shelf's writes up to `revision`.
    fn forget(&mut self, shelf: Shelf, revision: i64) {
        let newest = self.forgotten.entry(shelf).or_default();
        *newest = revision.max(*newest);
    }

    fn remove(&mut self, at: &(Shelf, Bytes)) {
        if let Some(held) = self.leaves.remove(at) {
            self.bytes -= held.leaf.bytes;
        }
    }

    /// Lets go of the oldest leaves that were not used since they were looked at last.
    fn evict(&mut self) {
        while self.bytes > CAPACITY_BYTES
            && let Some((number, at)) = self.order.pop_front()
        {
            match self.leaves.get(&at).filter(|held| held.number == number) {
                Some(held) if held.used.swap(false, Ordering::Relaxed) => {
                    self.order.push_back((number, at));
                }
                Some(_) => self.remove(&at),
                None => {}
            }
        }
        // One number a leaf is left, so this is paid for by what went.
        if self.order.len() > 2 * self.leaves.len() + 1024 {
            let leaves = &self.leaves;
            let lives = |(number, at): &(u64, (Shelf, Bytes))| {
                leaves.get(at).is_some_and(|held| held.number == *number)
            };
            self.order.retain(lives);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELF: Shelf = Shelf(1);

    fn key(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn found(revision: i64, value: &str) -> Found {
        let deleted = value.is_empty();
        Found { revision, row: Row { deleted, value: key(value).into(), ..Default::default() } }
    }

    fn see(leaves: &Leaves, start: &str, revision: i64, rows: &[(&str, i64)], end: Option<&str>) {
        let Place::Gap { open: Some(seeing), .. } = leaves.find(SHELF, &key(start), revision)
        else {
            panic!("{start} is open")
        };
        let rows: Vec<_> = rows.iter().map(|(k, r)| (key(k), found(*r, "v"))).collect();
        leaves.seen(SHELF, key(start), Leaf::new(&rows, end.map(key), revision), seeing);
    }

    /// What a reader gets of the leaf at `from`, or where the gap there ends.
    fn read(leaves: &Leaves, from: &str, revision: i64) -> Result<Vec<(String, i64)>, String> {
        match leaves.find(SHELF, &key(from), revision) {
            Place::Leaf(covered) => {
                let rows = covered.rows(from.as_bytes());
                let text = |k: Bytes| String::from_utf8(k.to_vec()).unwrap();
                Ok(rows.map(|(k, found)| (text(k), found.revision)).collect())
            }
            Place::Gap { until, open } => {
                let until = until.map_or("end".into(), |u| String::from_utf8(u.to_vec()).unwrap());
                Err(format!("{until} {}", open.is_some()))
            }
        }
    }

    fn rows(list: &[(&str, i64)]) -> Result<Vec<(String, i64)>, String> {
        Ok(list.iter().map(|(k, r)| ((*k).to_owned(), *r)).collect())
    }

    #[test]
    fn what_was_seen_is_found_with_what_changed_since() {
        let leaves = Leaves::default();
        assert_eq!(read(&leaves, "a", 9), Err("end true".into()));
        see(&leaves, "b", 9, &[("b", 2), ("d", 7)], Some("f"));
        assert_eq!(read(&leaves, "a", 9), Err("b true".into()));
        assert_eq!(read(&leaves, "b", 9), rows(&[("b", 2), ("d", 7)]));
        assert_eq!(read(&leaves, "c", 10), rows(&[("d", 7)]));
        assert_eq!(read(&leaves, "f", 9), Err("end true".into()));
        assert_eq!(read(&leaves, "b", 8), Err("f false".into()), "a delete may be missing");
        for (k, revision, value) in [("c", 10, "new"), ("d", 11, ""), ("c", 12, "newer")] {
            leaves.wrote(SHELF, k.as_bytes(), revision, &found(revision, value).row);
        }
        assert_eq!(read(&leaves, "b", 9), rows(&[("b", 2), ("d", 7)]));
        assert_eq!(read(&leaves, "b", 10), rows(&[("b", 2), ("c", 10), ("d", 7)]));
        assert_eq!(read(&leaves, "b", 11), rows(&[("b", 2), ("c", 10)]));
        assert_eq!(read(&leaves, "b", 12), rows(&[("b", 2), ("c", 12)]));
    }

    #[test]
    fn what_was_written_while_somebody_looked_makes_no_leaf() {
        for (written, revision, made) in [("c", 10, false), ("c", 9, true), ("x", 10, true)] {
            let leaves = Leaves::default();
            leaves.wrote(SHELF, written.as_bytes(), revision, &found(revision, "v").row);
            see(&leaves, "b", 9, &[("b", 2)], Some("f"));
            assert_eq!(read(&leaves, "b", 20).is_ok(), made, "{written} {revision}");
        }
        let leaves = Leaves::default();
        for revision in 1..=RECENT_MAX as i64 + 10 {
            leaves.wrote(SHELF, b"x", revision, &found(revision, "v").row);
        }
        assert_eq!(read(&leaves, "b", 9), Err("end false".into()), "too much is forgotten");
        let Place::Gap { open: Some(seeing), .. } = leaves.find(SHELF, &key("b"), 10_000) else {
            panic!("open")
        };
        leaves.moved(SHELF, b"c");
        leaves.seen(SHELF, key("b"), Leaf::new(&[], None, 10_000), seeing);
        assert!(read(&leaves, "b", 10_000).is_err(), "an extent moved meanwhile");
    }

    #[test]
    fn what_was_seen_below_writes_that_nobody_told_makes_no_leaf() {
        let leaves = Leaves::default();
        leaves.opened(SHELF, 9);
        assert!(matches!(leaves.find(SHELF, &key("b"), 8), Place::Gap { open: None, .. }));
        let leaf = Leaf::new(&[(key("b"), found(3, "v"))], None, 8);
        leaves.seen(SHELF, key("a"), leaf, Seeing { moves: 0 });
        assert_eq!(read(&leaves, "b", 12), Err("end true".into()), "a leaf of the past is there");
        see(&leaves, "a", 9, &[("b", 3)], None);
        assert_eq!(read(&leaves, "b", 12), rows(&[("b", 3)]));
    }

    #[test]
    fn two_groups_of_a_shelf_write_in_no_order() {
        let leaves = Leaves::default();
        see(&leaves, "a", 5, &[("a", 1), ("x", 2)], None);
        leaves.shared(SHELF, &key("m"));
        assert_eq!(read(&leaves, "a", 5), Err("end true".into()), "it reached over the cut");
        see(&leaves, "n", 5, &[("x", 2)], None);
        leaves.wrote(SHELF, b"b", 9, &found(9, "v").row);
        leaves.wrote(SHELF, b"x", 7, &found(7, "v").row);
        // The left side was written to above what this reader saw, though not last.
        see(&leaves, "a", 8, &[("a", 1)], Some("m"));
        assert_eq!(read(&leaves, "a", 10), Err("n true".into()));
        see(&leaves, "a", 9, &[("a", 1), ("b", 9)], Some("m"));
        assert_eq!(read(&leaves, "a", 9), rows(&[("a", 1), ("b", 9)]));
        assert_eq!(read(&leaves, "n", 7), rows(&[("x", 7)]));
        // So it is when too much was written to be remembered.
        for revision in 10..10 + RECENT_MAX as i64 {
            leaves.wrote(SHELF, b"c", 10_000 + revision, &found(10_000 + revision, "v").row);
            leaves.wrote(SHELF, b"y", revision, &found(revision, "v").row);
        }
        leaves.wrote(SHELF, b"y", 9000, &found(9000, "v").row);
        let oldest = 10_000 + 10 + RECENT_MAX as i64 / 2;
        assert!(matches!(
            leaves.find(SHELF, &key("c"), oldest - 100),
            Place::Gap { open: None, .. }
        ));
    }

    #[test]
    fn a_leaf_of_two_groups_gives_each_what_is_not_above_its_revision() {
        let leaves = Leaves::default();
        leaves.shared(SHELF, &key("m"));
        see(&leaves, "a", 5, &[("a", 1), ("x", 2)], None);
        leaves.wrote(SHELF, b"b", 9, &found(9, "v").row);
        leaves.wrote(SHELF, b"x", 7, &found(7, "v").row);
        assert_eq!(read(&leaves, "a", 8), rows(&[("a", 1), ("x", 7)]));
        assert_eq!(read(&leaves, "a", 9), rows(&[("a", 1), ("b", 9), ("x", 7)]));
    }

    #[test]
    fn leaves_do_not_overlap() {
        let leaves = Leaves::default();
        see(&leaves, "c", 5, &[("c", 1)], Some("e"));
        see(&leaves, "a", 5, &[("a", 1), ("c", 1)], Some("d"));
        assert_eq!(read(&leaves, "a", 5), Err("c true".into()));
        see(&leaves, "a", 5, &[("a", 1)], Some("c"));
        see(&leaves, "e", 5, &[], None);
        assert_eq!(read(&leaves, "a", 5), rows(&[("a", 1)]));
        assert_eq!(read(&leaves, "z", 5), rows(&[]));
        leaves.moved(SHELF, b"d");
        assert_eq!(read(&leaves, "c", 5), Err("e true".into()));
    }

    #[test]
    fn many_changes_make_a_leaf_anew_or_take_it_away() {
        let leaves = Leaves::default();
        see(&leaves, "a", 5, &[("a", 1), ("b", 2)], None);
        for revision in 6..6 + RENEW_CHANGES as i64 {
            let value = if revision % 2 == 0 { "" } else { "v" };
            leaves.wrote(SHELF, b"a", revision, &found(revision, value).row);
        }
        let Place::Leaf(covered) = leaves.find(SHELF, &key("a"), 100) else { panic!("a leaf") };
        let before = read(&leaves, "a", 100);
        leaves.renew(SHELF, &covered);
        assert_eq!(read(&leaves, "a", 100), before);
        assert_eq!(read(&leaves, "a", 20), Err("end false".into()), "the last change was 21");
        for revision in 100..102 + CHANGES_MAX as i64 {
            leaves.wrote(SHELF, b"a", revision, &found(revision, "v").row);
        }
        assert_eq!(read(&leaves, "a", 1000), Err("end true".into()));
        assert_eq!(leaves.inner.read().bytes, 0);
    }

    #[test]
    fn leaves_that_come_and_go_leave_no_names_behind() {
        let leaves = Leaves::default();
        for round in 0..5000 {
            see(&leaves, "a", 5, &[("a", 1)], Some("b"));
            leaves.moved(SHELF, b"a");
            see(&leaves, "c", 5, &[], Some("c"));
            assert!(leaves.inner.read().order.len() < 1100, "{round}");
        }
        assert!(leaves.inner.read().leaves.is_empty());
    }

    #[test]
    fn bytes_are_bounded_and_used_leaves_stay() {
        let leaves = Leaves::default();
        let big = "v".repeat(100_000);
        for number in 0..1000 {
            let name = format!("{number:04}");
            let Place::Gap { open: Some(seeing), .. } = leaves.find(SHELF, &key(&name), 5) else {
                panic!("open")
            };
            let row = (key(&name), found(1, &big));
            let end = Some(key(&format!("{name}+")));
            leaves.seen(SHELF, key(&name), Leaf::new(&[row], end, 5), seeing);
            assert!(read(&leaves, "0000", 5).is_ok());
        }
        assert!(leaves.inner.read().bytes <= CAPACITY_BYTES);
        assert!(read(&leaves, "0001", 5).is_err());
    }
}
