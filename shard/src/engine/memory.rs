//! An engine in memory, for the simulator and for tests. It survives the death of a node as
//! long as its handle does: an ingestion is durable at once, as the trait promises.
//!
//! The simulator can make it go back in time ([`MemoryEngine::roll_back`],
//! [`MemoryEngine::lose`]), which a real engine does when its files are damaged or restored
//! from elsewhere.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Engine, EngineError, EngineRow, EngineScan, Scan};

type Map = BTreeMap<Bytes, Bytes>;

/// See the module. Cloning shares the rows.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rows: Arc<Map>,
    /// The rows before the last ingestion.
    before: Arc<Map>,
}

impl MemoryEngine {
    /// Undoes the last ingestion, as an engine that lost its newest files would.
    pub fn roll_back(&self) {
        let mut state = self.state.lock();
        state.rows = state.before.clone();
    }

    /// Forgets everything, as an engine whose directory is gone.
    pub fn lose(&self) {
        *self.state.lock() = State::default();
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.state.lock().rows.len()
    }

    /// Holds it nothing?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rows of a scan: those from `next` on.
struct Rows {
    rows: Arc<Map>,
    next: Bound<Bytes>,
    end: Bytes,
}

impl Iterator for Rows {
    type Item = Result<(Bytes, Bytes), EngineError>;

    fn next(&mut self) -> Option<Result<(Bytes, Bytes), EngineError>> {
        let mut rows = self.rows.range((self.next.clone(), Bound::Unbounded));
        let (key, value) = rows.next().filter(|(key, _)| **key < self.end)?;
        self.next = Bound::Excluded(key.clone());
        Some(Ok((key.clone(), value.clone())))
    }
}

impl Scan for Rows {
    fn pass(&mut self, bound: &[u8]) {
        let behind = match &self.next {
            Bound::Included(next) | Bound::Excluded(next) => next < bound,
            Bound::Unbounded => false,
        };
        if behind {
            self.next = Bound::Included(Bytes::copy_from_slice(bound));
        }
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.state.lock().rows.get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8]) -> EngineScan {
        let rows = self.state.lock().rows.clone();
        let (next, end) =
            (Bound::Included(Bytes::copy_from_slice(start)), Bytes::copy_from_slice(end));
        Box::new(Rows { rows, next, end })
    }

    fn ingest(&self, rows: &mut dyn Iterator<Item = EngineRow>) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        state.before = state.rows.clone();
        let mut last: Option<Bytes> = None;
        let map = Arc::make_mut(&mut state.rows);
        for (key, value) in rows {
            assert!(last.as_ref().is_none_or(|last| *last < key), "an ingestion is not sorted");
            match value {
                Some(value) => map.insert(key.clone(), value),
                None => map.remove(&key),
            };
            last = Some(key);
        }
        Ok(())
    }

    fn shrink(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.state.lock().rows.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum()
    }
}
