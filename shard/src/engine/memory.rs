//! An engine in memory, for the simulator and for tests. It survives the death of a node as
//! long as its handle does: an ingestion is durable at once, as the trait promises.
//!
//! The simulator can make it go back in time ([`MemoryEngine::roll_back`],
//! [`MemoryEngine::lose`]), which a real engine does when its files are damaged or restored
//! from elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Engine, EngineError, EngineRow, EngineScan};

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

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.state.lock().rows.get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8]) -> EngineScan {
        let rows = self.state.lock().rows.clone();
        let end = Bytes::copy_from_slice(end);
        let mut next = Bytes::copy_from_slice(start);
        let mut inclusive = true;
        Box::new(std::iter::from_fn(move || {
            use std::ops::Bound::{Excluded, Included};
            if next >= end {
                return None;
            }
            let low = if inclusive { Included(&next) } else { Excluded(&next) };
            let (key, value) = rows.range::<Bytes, _>((low, Excluded(&end))).next()?;
            let row = (key.clone(), value.clone());
            next = row.0.clone();
            inclusive = false;
            Some(Ok(row))
        }))
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
