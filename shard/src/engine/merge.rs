//! One walk over sorted runs that overlap: the rows of an ordered map that is kept in layers.
//!
//! ```text
//!   run, newest    b'      e-           e- takes e away
//!   run            a   c   e   f
//!   run, oldest    b   d   e
//!   the walk       a   b'  c   d   f
//! ```
//!
//! A list wants the newest version of each key and none of the older ones, which stand right behind
//! it: [`Merge::pass`] lets each run go past them by itself. They are neither put in order nor given
//! out, and where they are many they are not even read.
//!
//! Invariants:
//! - Runs stand in the order of their heads; of equal keys the newer entry comes first.
//! - No head is at or behind the end of the walk.
//! - After an error there is nothing more.

use bytes::Bytes;

use super::{EngineError, Scan};

/// Entries that are passed one by one before a run is opened anew behind them: about what opening
/// costs.
const PASS_MAX: usize = 32;

/// What a run says of a key.
pub(super) struct Entry {
    pub(super) key: Bytes,
    /// Of two entries of a key the one with the higher number counts.
    pub(super) number: u64,
    /// `None`: the key is taken away.
    pub(super) value: Option<Bytes>,
}

/// Entries of a run, ascending by key, of equal keys the newest first.
pub(super) type Entries = Box<dyn Iterator<Item = Result<Entry, EngineError>> + Send>;

/// Opens a run at a key.
pub(super) type Open = Box<dyn Fn(&[u8]) -> Entries + Send>;

/// See the module.
pub(super) struct Merge {
    runs: Vec<Run>,
    end: Bytes,
    failed: Option<EngineError>,
}

struct Run {
    open: Open,
    entries: Entries,
    head: Entry,
}

impl Run {
    fn at(open: Open, start: &[u8], end: &[u8]) -> Result<Option<Run>, EngineError> {
        let mut entries = open(start);
        let head = step(&mut entries, end)?;
        Ok(head.map(|head| Run { open, entries, head }))
    }

    /// Goes to the first entry at or behind `bound`; says whether there is one.
    fn pass(&mut self, bound: &[u8], end: &[u8]) -> Result<bool, EngineError> {
        for passed in 0.. {
            if passed == PASS_MAX {
                self.entries = (self.open)(bound);
            }
            let Some(head) = step(&mut self.entries, end)? else { return Ok(false) };
            self.head = head;
            if self.head.key >= bound {
                break;
            }
        }
        Ok(true)
    }

    fn comes_before(&self, other: &Run) -> bool {
        match self.head.key.cmp(&other.head.key) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => self.head.number > other.head.number,
            std::cmp::Ordering::Greater => false,
        }
    }
}

fn step(entries: &mut Entries, end: &[u8]) -> Result<Option<Entry>, EngineError> {
    Ok(entries.next().transpose()?.filter(|entry| entry.key < end))
}

impl Merge {
    /// The rows of these runs with `start <= key < end`.
    pub(super) fn new(runs: impl Iterator<Item = Open>, start: &[u8], end: &[u8]) -> Merge {
        let end = Bytes::copy_from_slice(end);
        let mut merge = Merge { runs: Vec::new(), end, failed: None };
        for open in runs {
            match Run::at(open, start, &merge.end) {
                Ok(Some(run)) => {
                    merge.runs.insert(0, run);
                    merge.settle();
                }
                Ok(None) => {}
                Err(error) => merge.failed = Some(error),
            }
        }
        merge
    }

    /// The first run's head is another one: brings the run to its place.
    fn settle(&mut self) {
        let mut at = 0;
        while let (Some(this), Some(next)) = (self.runs.get(at), self.runs.get(at + 1))
            && next.comes_before(this)
        {
            self.runs.swap(at, at + 1);
            at += 1;
        }
    }

    /// The first entry of all.
    fn pop(&mut self) -> Result<Option<Entry>, EngineError> {
        let Some(run) = self.runs.first_mut() else { return Ok(None) };
        let Some(next) = step(&mut run.entries, &self.end)? else {
            return Ok(Some(self.runs.remove(0).head));
        };
        let entry = std::mem::replace(&mut run.head, next);
        self.settle();
        Ok(Some(entry))
    }

    /// The first row of all.
    fn row(&mut self) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        while let Some(entry) = self.pop()? {
            // What is older of the same key.
            while self.runs.first().is_some_and(|run| run.head.key == entry.key) {
                self.pop()?;
            }
            if let Some(value) = entry.value {
                return Ok(Some((entry.key, value)));
            }
        }
        Ok(None)
    }

    fn pass_to(&mut self, bound: &[u8]) -> Result<(), EngineError> {
        while let Some(run) = self.runs.first_mut()
            && run.head.key < bound
        {
            match run.pass(bound, &self.end)? {
                true => self.settle(),
                false => drop(self.runs.remove(0)),
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: EngineError) {
        self.runs.clear();
        self.failed = Some(error);
    }
}

impl Iterator for Merge {
    type Item = Result<(Bytes, Bytes), EngineError>;

    fn next(&mut self) -> Option<Result<(Bytes, Bytes), EngineError>> {
        if self.failed.is_none() {
            match self.row() {
                Ok(row) => return row.map(Ok),
                Err(error) => self.fail(error),
            }
        }
        self.runs.clear();
        self.failed.take().map(Err)
    }
}

impl Scan for Merge {
    fn pass(&mut self, bound: &[u8]) {
        if let Err(error) = self.pass_to(bound) {
            self.fail(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    type Layer = BTreeMap<u8, Option<u8>>;

    fn bytes(byte: u8) -> Bytes {
        Bytes::copy_from_slice(&[byte])
    }

    /// A run of that layer; counts the entries that are read of it.
    fn run(layer: &Layer, number: u64, read: &Arc<AtomicUsize>) -> Open {
        let (layer, read) = (layer.clone(), read.clone());
        Box::new(move |from| {
            let read = read.clone();
            let rows: Vec<_> = layer.range(from[0]..).map(|(k, v)| (*k, *v)).collect();
            Box::new(rows.into_iter().map(move |(key, value)| {
                read.fetch_add(1, Ordering::Relaxed);
                Ok(Entry { key: bytes(key), number, value: value.map(bytes) })
            }))
        })
    }

    /// The newest layer comes last.
    fn merge(layers: &[Layer], start: u8, end: u8, read: &Arc<AtomicUsize>) -> Merge {
        let runs = layers.iter().enumerate().map(|(at, layer)| run(layer, at as u64, read));
        Merge::new(runs, &[start], &[end])
    }

    fn layers() -> impl Strategy<Value = Vec<Layer>> {
        let layer = prop::collection::btree_map(any::<u8>(), any::<Option<u8>>(), 0..200);
        prop::collection::vec(layer, 0..6)
    }

    proptest! {
        #[test]
        fn a_merge_is_what_one_map_would_be(
            layers in layers(),
            start: u8,
            end: u8,
            passes in prop::collection::vec(prop::option::weighted(0.3, 0u8..80), 256),
        ) {
            let mut map = BTreeMap::new();
            for layer in &layers {
                map.extend(layer.clone());
            }
            map.retain(|key, value| value.is_some() && (start..end).contains(key));
            let mut merge = merge(&layers, start, end, &Arc::default());
            let mut from = start;
            for pass in passes {
                let expected = map.range(from..).next();
                let found = merge.next().map(Result::unwrap);
                let row = expected.map(|(key, value)| (bytes(*key), bytes(value.unwrap())));
                prop_assert_eq!(found, row);
                let Some((key, _)) = expected else { break };
                from = key.saturating_add(1);
                if let Some(far) = pass {
                    from = key.saturating_add(far);
                    merge.pass(&[from]);
                    from = from.max(key.saturating_add(1));
                }
            }
        }
    }

    #[test]
    fn what_is_passed_is_not_read_where_it_is_much() {
        let read = Arc::default();
        let layer: Layer = (0..250).map(|key| (key, Some(1))).collect();
        let mut merge = merge(&[layer.clone(), layer], 0, 255, &read);
        assert_eq!(merge.next().unwrap().unwrap().0, bytes(0));
        merge.pass(&[240]);
        assert_eq!(merge.next().unwrap().unwrap().0, bytes(240));
        assert!(read.load(Ordering::Relaxed) < 2 * (PASS_MAX + 10));
    }

    #[test]
    fn an_error_ends_the_walk() {
        let open: Open = Box::new(|_| {
            let good = Entry { key: bytes(1), number: 0, value: Some(bytes(1)) };
            let bad = Err(EngineError::Failed("the disk".into()));
            Box::new([Ok(good), bad].into_iter())
        });
        let mut merge = Merge::new([open].into_iter(), &[0], &[9]);
        assert!(merge.next().unwrap().is_err());
        assert!(merge.next().is_none());
    }
}
