//! How many live keys there are, by blocks of keys, so that counting a range does not walk it.
//!
//! ```text
//!   first key of block   ""    "b"    "k"    "t"
//!   live keys            130   97     201    64
//!   count ["c", "v")          |<-walk  201   walk->|
//! ```
//!
//! A count adds up the blocks that lie wholly inside the range and walks the two at its ends.
//! Blocks tell the newest revision; a reader at an older one takes back what changed since.
//! They change only when a key is created or deleted, and go to disk with each checkpoint,
//! only those that changed.
//!
//! Invariants:
//! - The first block begins below every key; blocks tile all keys.
//! - The sum over all blocks is the machine's number of live keys (looked at when it opens).
//! - Blocks are of one group's shelves and one revision, both named beside them. Nothing outside the
//!   group's range is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use proto::KeyRange;

use super::Store;
use super::layout::{self, put_varint, take_varint};
use super::shelves::Shelves;
use super::view::View;
use crate::engine::EngineError;

/// Live keys that a block may hold before it is cut, unless somebody chose otherwise.
pub const BLOCK_KEYS: u32 = 256;
/// A reader behind by more changes than there are live keys, and than this, walks the range instead:
/// to look at a change costs about what a row of the walk costs.
const BEHIND_MIN: usize = 4096;

/// Live keys by block. See the module.
#[derive(Debug, Default)]
pub struct Counts {
    shelves: Arc<Shelves>,
    revision: i64,
    block_keys: u32,
    /// By first key.
    blocks: BTreeMap<Bytes, u32>,
    /// First keys of blocks that are not on disk as they are here; also of those gone.
    dirty: BTreeSet<Bytes>,
}

impl Counts {
    /// No keys yet.
    pub fn new(shelves: Arc<Shelves>, revision: i64, block_keys: u32) -> Counts {
        let blocks = BTreeMap::from([(Bytes::new(), 0)]);
        Counts { shelves, revision, block_keys: block_keys.max(1), blocks, dirty: BTreeSet::new() }
    }

    /// Reads a group's blocks. `keys` is how many there must be in all; if they do not add up
    /// (an older format) they are counted anew.
    pub fn load(
        store: &Store,
        shelves: Arc<Shelves>,
        revision: i64,
        keys: i64,
        block_keys: u32,
    ) -> Result<Counts, EngineError> {
        let mut counts = Counts::new(shelves.clone(), revision, block_keys);
        let (from, to) = layout::counts_bounds(shelves.own);
        let mut sum = 0;
        for (row_key, row) in store.rows(&from, &to)? {
            let live = take_varint(&row, &mut 0)
                .and_then(|live| u32::try_from(live).ok())
                .ok_or_else(|| EngineError::Failed("a count cannot be read".into()))?;
            sum += i64::from(live);
            counts.blocks.insert(owned(row_key.get(from.len()..).unwrap_or_default()), live);
        }
        if sum != keys {
            tracing::warn!(shelf = shelves.own.0, sum, keys, "live keys are counted anew");
            let mut builder = Builder::new(block_keys);
            store.view(&shelves.pieces, revision).scan(&shelves.range, &mut |key, _| {
                builder.live(&key);
                ControlFlow::Continue(())
            })?;
            counts.dirty = counts.blocks.keys().cloned().collect();
            counts.blocks = builder.blocks;
            counts.dirty.extend(counts.blocks.keys().cloned());
        }
        Ok(counts)
    }

    /// A revision created (+1) and deleted (-1) these keys. Names a range that has become too
    /// large for one block, if there is one: [`Counts::cut`] it.
    pub fn changed<'k>(
        &mut self,
        revision: i64,
        changes: impl Iterator<Item = (&'k Bytes, i32)>,
    ) -> Option<KeyRange> {
        assert!(revision >= self.revision, "counts follow the revisions");
        self.revision = revision;
        let mut large = None;
        for (key, change) in changes {
            let Some((first, live)) = self.blocks.range_mut::<Bytes, _>(..=key).next_back() else {
                continue;
            };
            let now = live.checked_add_signed(change);
            *live = now.expect("a block counts what lives in it");
            let (first, live) = (first.clone(), *live);
            if live > self.block_keys {
                large = Some(first.clone());
            } else if live == 0 && !first.is_empty() {
                // The block before takes its place.
                self.blocks.remove(&first);
            }
            self.dirty.insert(first);
        }
        let start = large.filter(|first| self.blocks.contains_key(first))?;
        let end = self.blocks.range((Excluded(start.clone()), Unbounded)).next();
        let end = end.map(|(first, _)| first.clone());
        Some(KeyRange { start, end })
    }

    /// Cuts the block that begins at `first` before `middle`, above `left` live keys of it.
    pub fn cut(&mut self, first: &Bytes, middle: Bytes, left: u32) {
        let Some(live) = self.blocks.get_mut(first) else { return };
        assert!(left < *live && middle > *first, "a cut leaves keys on both sides");
        let middle = owned(&middle);
        let right = *live - left;
        *live = left;
        self.blocks.insert(middle.clone(), right);
        self.dirty.insert(first.clone());
        self.dirty.insert(middle);
    }

    /// The part of a block, below `at`, that somebody must count before the counts can be
    /// [`Counts::split`] there; `None` if no block reaches over `at`.
    pub fn crossing(&self, at: &Bytes) -> Option<KeyRange> {
        let below = (Unbounded, Excluded(at.clone()));
        let (first, _) = self.blocks.range::<Bytes, _>(below).next_back()?;
        let live =
            self.blocks.get(first).filter(|live| **live > 0 && !self.blocks.contains_key(at));
        live.map(|_| KeyRange { start: first.clone(), end: Some(at.clone()) })
    }

    /// The group has only the keys below `at` from now on. Gives the blocks of the others, by first
    /// key. `left` live keys are in the part that [`Counts::crossing`] names.
    pub fn split(&mut self, at: &Bytes, left: u32) -> BTreeMap<Bytes, u32> {
        if let Some(crossing) = self.crossing(at)
            && let Some(live) = self.blocks.get_mut(&crossing.start)
        {
            let right = live.checked_sub(left).expect("a part of a block is not more than it");
            *live = left;
            if right > 0 {
                self.blocks.insert(owned(at), right);
            }
            // An empty block only stands at the beginning.
            if left == 0 && !crossing.start.is_empty() {
                self.blocks.remove(&crossing.start);
            }
            self.dirty.insert(crossing.start);
        }
        let moved = self.blocks.split_off(at);
        self.dirty.extend(moved.keys().cloned());
        moved
    }

    /// The group has the keys from `at` on as well, with these blocks of live keys, and has come to
    /// `revision`.
    pub fn join(&mut self, at: &Bytes, right: &Counts, revision: i64) {
        self.revision = self.revision.max(revision);
        for (first, live) in &right.blocks {
            let first = owned(first.max(at));
            if *live > 0 {
                // The first block of the right side reaches down below its range.
                *self.blocks.entry(first.clone()).or_insert(0) += live;
                self.dirty.insert(first);
            }
        }
    }

    /// Where the rows stand that are counted.
    pub fn set_shelves(&mut self, shelves: Arc<Shelves>) {
        self.shelves = shelves;
    }

    /// Takes what is to be written: row keys, and what stands under them now.
    pub fn take_dirty(&mut self) -> Vec<(Vec<u8>, Option<Bytes>)> {
        let rows = std::mem::take(&mut self.dirty).into_iter().map(|first| {
            let row = self.blocks.get(&first).map(|live| row(*live));
            (layout::counts_key(self.shelves.own, &first), row)
        });
        rows.collect()
    }

    /// Live keys in all.
    pub fn total(&self) -> i64 {
        self.blocks.values().map(|live| i64::from(*live)).sum()
    }

    /// Where the live keys are: at most `most` stretches, by their first keys, and what lives in each.
    pub fn stretches(&self, most: usize) -> Vec<(Bytes, u64)> {
        let each = self.blocks.len().div_ceil(most.max(1)).max(1);
        let mut stretches: Vec<(Bytes, u64)> = Vec::new();
        for (place, (first, live)) in self.blocks.iter().enumerate() {
            match stretches.last_mut() {
                Some((_, sum)) if place % each != 0 => *sum += u64::from(*live),
                _ => stretches.push((first.clone(), u64::from(*live))),
            }
        }
        stretches
    }

    /// The blocks wholly inside `range`: where they begin and end, and what lives there.
    fn inside(&self, range: &KeyRange) -> Option<(KeyRange, i64)> {
        let start = self.blocks.range::<Bytes, _>(&range.start..).next()?.0.clone();
        let end = match &range.end {
            // The last block whose beginning is not above the end is cut by it, or ends there.
            Some(end) => Some(self.blocks.range::<Bytes, _>(..=end).next_back()?.0.clone()),
            None => None,
        };
        let inside = KeyRange { start, end };
        if inside.is_empty() {
            return None;
        }
        let blocks = match &inside.end {
            Some(end) => self.blocks.range::<Bytes, _>(&inside.start..end),
            None => self.blocks.range::<Bytes, _>(&inside.start..),
        };
        let sum = blocks.map(|(_, live)| i64::from(*live)).sum();
        Some((inside, sum))
    }
}

/// A key that lives long must not keep the engine's block that it came in.
fn owned(key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(key)
}

/// The row of a block.
pub fn row(live: u32) -> Bytes {
    let mut out = Vec::new();
    put_varint(&mut out, u64::from(live));
    out.into()
}

/// Makes blocks of live keys that come in order.
#[derive(Debug)]
pub struct Builder {
    block_keys: u32,
    last: Bytes,
    /// By first key.
    pub blocks: BTreeMap<Bytes, u32>,
}

impl Builder {
    /// No keys yet.
    pub fn new(block_keys: u32) -> Builder {
        let blocks = BTreeMap::from([(Bytes::new(), 0)]);
        Builder { block_keys: block_keys.max(1), last: Bytes::new(), blocks }
    }

    /// The next live key.
    pub fn live(&mut self, key: &[u8]) {
        let full = self.block_keys.div_ceil(2);
        match self.blocks.get_mut(&self.last) {
            Some(live) if *live < full => *live += 1,
            _ => {
                self.last = owned(key);
                self.blocks.insert(self.last.clone(), 1);
            }
        }
    }
}

/// Counts for readers: the blocks and the rows they are about.
pub struct Counter<'a> {
    store: &'a Store,
    counts: &'a RwLock<Counts>,
}

impl<'a> Counter<'a> {
    /// A counter over a replica's rows.
    pub fn new(store: &'a Store, counts: &'a RwLock<Counts>) -> Counter<'a> {
        Counter { store, counts }
    }

    /// Live keys of `range`, which the group must have, at the view's revision. That may be above
    /// the counted one if nothing will happen between the two any more.
    pub fn count(&self, view: &View, range: &KeyRange) -> Result<i64, EngineError> {
        match self.by_blocks(view, range)? {
            Some(count) => Ok(count),
            None => walk(view, range),
        }
    }

    fn by_blocks(&self, view: &View, range: &KeyRange) -> Result<Option<i64>, EngineError> {
        let (inside, sum, newest, shelves) = {
            let counts = self.counts.read();
            if counts.shelves.pieces != *view.pieces() {
                return Ok(None);
            }
            let Some((inside, sum)) = counts.inside(range) else { return Ok(None) };
            (inside, sum, counts.revision, counts.shelves.clone())
        };
        let behind_max = usize::try_from(sum).unwrap_or(0).max(BEHIND_MIN);
        let since = self.since(view, &inside, newest, &shelves, behind_max)?;
        let Some(since) = since else { return Ok(None) };
        let below = KeyRange { start: range.start.clone(), end: Some(inside.start.clone()) };
        let above = match &inside.end {
            Some(end) => walk(view, &KeyRange { start: end.clone(), end: range.end.clone() })?,
            None => 0,
        };
        Ok(Some(sum - since + walk(view, &below)? + above))
    }

    /// How many more keys live in `range` at `newest` than at the view's revision; `None` if that
    /// is more than `behind_max` revisions to look at.
    fn since(
        &self,
        view: &View,
        range: &KeyRange,
        newest: i64,
        shelves: &Shelves,
        behind_max: usize,
    ) -> Result<Option<i64>, EngineError> {
        if newest <= view.revision {
            return Ok(Some(0));
        }
        let (history, through) =
            self.store.history(shelves, view.revision + 1, newest, behind_max)?;
        if through < newest {
            return Ok(None);
        }
        // The first change of a key tells whether it lived before, the last one whether it does now.
        let mut lives: BTreeMap<&Bytes, (bool, bool)> = BTreeMap::new();
        for change in history.values().flat_map(|changes| changes.iter()) {
            if range.contains(&change.key) {
                let before = change.previous > 0;
                lives.entry(&change.key).or_insert((before, before)).1 = !change.deleted;
            }
        }
        let more = lives.values().map(|(before, now)| i64::from(*now) - i64::from(*before));
        Ok(Some(more.sum()))
    }
}

fn walk(view: &View, range: &KeyRange) -> Result<i64, EngineError> {
    let mut count = 0;
    view.scan(range, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Cuts a block as the machine does, with a set of keys in place of rows.
    fn cut(counts: &mut Counts, live: &BTreeSet<Bytes>, large: &KeyRange) {
        let keys: Vec<_> = live.iter().filter(|key| large.contains(key)).collect();
        let left = keys.len() / 2;
        counts.cut(&large.start, keys[left].clone(), left as u32);
    }

    proptest! {
        #[test]
        fn blocks_tell_what_a_walk_tells(
            changes in proptest::collection::vec(any::<[u8; 1]>(), 1..400),
            ranges in proptest::collection::vec((any::<[u8; 1]>(), any::<Option<[u8; 1]>>()), 20),
        ) {
            let mut counts = Counts::new(Arc::default(), 1, 4);
            let mut live: BTreeSet<Bytes> = BTreeSet::new();
            for (place, key) in changes.iter().enumerate() {
                let key = Bytes::copy_from_slice(key);
                let created = live.insert(key.clone());
                if !created {
                    live.remove(&key);
                }
                let change = if created { 1 } else { -1 };
                let large = counts.changed(place as i64 + 2, std::iter::once((&key, change)));
                if let Some(large) = large {
                    cut(&mut counts, &live, &large);
                }
                prop_assert!(counts.blocks.values().all(|block| *block <= 4));
                prop_assert_eq!(counts.total(), live.len() as i64);
            }
            for (start, end) in &ranges {
                let end = end.map(|end| Bytes::copy_from_slice(&end));
                let range = KeyRange { start: Bytes::copy_from_slice(start), end };
                if range.is_empty() {
                    continue;
                }
                if let Some((inside, sum)) = counts.inside(&range) {
                    prop_assert!(inside.start >= range.start);
                    let walked = live.iter().filter(|key| inside.contains(key)).count();
                    prop_assert_eq!(sum, walked as i64);
                    // What is left at the ends is less than a block each.
                    let rest = live.iter().filter(|key| range.contains(key)).count() - walked;
                    prop_assert!(rest <= 8);
                }
            }
        }
    }

    #[test]
    fn stretches_have_all_that_lives() {
        let mut builder = Builder::new(4);
        let keys: Vec<[u8; 2]> = (0..1000u16).map(u16::to_be_bytes).collect();
        keys.iter().for_each(|key| builder.live(key));
        let counts = Counts { blocks: builder.blocks, ..Counts::new(Arc::default(), 1, 4) };
        for most in [1, 2, 7, 100, 5000] {
            let stretches = counts.stretches(most);
            assert_eq!(stretches.iter().map(|(_, live)| live).sum::<u64>(), 1000);
            assert!(stretches.len() <= most && stretches[0].0.is_empty());
            assert!(stretches.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
        assert_eq!(counts.stretches(5000).len(), counts.blocks.len());
    }

    #[test]
    fn a_builder_fills_blocks_by_half() {
        let mut builder = Builder::new(4);
        for key in [b"a", b"b", b"c", b"d", b"e"] {
            builder.live(key);
        }
        let blocks: Vec<_> = builder.blocks.into_iter().collect();
        let wanted = [("", 2), ("c", 2), ("e", 1)].map(|(key, live)| (Bytes::from(key), live));
        assert_eq!(blocks, wanted);
    }
}
