//! The engine on fjall: one keyspace, written by ingestion only.
//!
//! Why so narrow: fjall's journal doubles every value and cuts silently at the first damage,
//! its batches may tear over keyspaces, and one keyspace per group does not scale (measured,
//! see docs/decisions). A sorted ingestion has none of this: its `finish` switches the
//! tree's version atomically after all files are synced.
//!
//! Invariants: never `insert`, `remove`, `batch` or `clear` on the keyspace; only this file
//! names fjall.

use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Engine, EngineError, EngineRow, EngineScan};

/// Bytes of decompressed blocks kept in memory.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// See the module.
pub struct FjallEngine {
    database: Database,
    main: Keyspace,
}

fn failed(what: &'static str) -> impl Fn(fjall::Error) -> EngineError {
    move |error| EngineError::Failed(format!("{what}: {error}"))
}

impl FjallEngine {
    /// Opens the engine in `path`, or creates it there.
    pub fn open(path: &Path) -> Result<FjallEngine, EngineError> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .worker_threads(1)
            .open()
            .map_err(failed("open the engine"))?;
        let main = database
            .keyspace("main", KeyspaceCreateOptions::default)
            .map_err(failed("open the keyspace"))?;
        Ok(FjallEngine { database, main })
    }
}

impl Engine for FjallEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.main.get(key).map_err(failed("get"))?.map(Bytes::from))
    }

    fn scan(&self, start: &[u8], end: &[u8]) -> EngineScan {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        Box::new(self.main.range(start.to_vec()..end.to_vec()).map(|guard| {
            let (key, value) = guard.into_inner().map_err(failed("scan"))?;
            Ok((Bytes::from(key), Bytes::from(value)))
        }))
    }

    fn ingest(&self, rows: &mut dyn Iterator<Item = EngineRow>) -> Result<(), EngineError> {
        // An ingestion does not look at the poison flag by itself.
        self.database.persist(PersistMode::Buffer).map_err(failed("probe the engine"))?;
        let mut ingestion = self.main.start_ingestion().map_err(failed("begin a checkpoint"))?;
        for (key, value) in rows {
            match value {
                Some(value) => ingestion.write(key, value).map_err(failed("write a row"))?,
                None => ingestion.write_tombstone(key).map_err(failed("write a tombstone"))?,
            }
        }
        ingestion.finish().map_err(failed("finish a checkpoint"))
    }

    fn disk_bytes(&self) -> u64 {
        self.main.disk_space()
    }
}
