//! The ordered map on disk under the store, seen through the few verbs that the store needs.
//!
//! The engine is never the truth: the log is. Rows newer than the last checkpoint are in the
//! recent table; the engine on disk is always exactly one checkpoint, because the only way
//! to write is [`Engine::ingest`], which takes a sorted batch and makes all of it visible
//! and durable, or nothing.
//!
//! Invariants:
//! - `ingest` is atomic over a crash and its rows are durable when it returns.
//! - Readers see either none or all of an ingestion.
//! - An error is fatal for the process: nothing is retried (design: durability and faults).

pub mod fjall;
pub mod memory;
mod merge;

use bytes::Bytes;

/// A row as it goes into the engine: `None` removes the key.
pub type EngineRow = (Bytes, Option<Bytes>);

/// The rows of a scan, ascending by key.
pub trait Scan: Iterator<Item = Result<(Bytes, Bytes), EngineError>> + Send {
    /// Goes past all rows below `bound`, for less than taking them would cost.
    fn pass(&mut self, bound: &[u8]);
}

/// See [`Scan`].
pub type EngineScan = Box<dyn Scan>;

/// Rows could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine failed. The node stops: peers take over, the restart replays the log.
    #[error("engine: {0}")]
    Failed(String),
    /// The value of one row is damaged on this disk. Other rows are unharmed.
    #[error("a value is damaged: {0}")]
    Value(String),
}

/// An ordered map with atomic, durable, sorted batches.
pub trait Engine: Send + Sync {
    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Rows with `start <= key < end`, ascending, as of the call.
    fn scan(&self, start: &[u8], end: &[u8]) -> EngineScan;

    /// The first row of such a scan.
    fn first(&self, start: &[u8], end: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        self.scan(start, end).next().transpose()
    }

    /// Takes rows sorted by key, each key once; all or nothing, durable on return.
    fn ingest(&self, rows: &mut dyn Iterator<Item = EngineRow>) -> Result<(), EngineError>;

    /// Gives the space of removed rows back to the disk, if they are many by now. May take long
    /// and nobody waits for it meanwhile: for a background thread.
    fn shrink(&self) -> Result<(), EngineError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
}
