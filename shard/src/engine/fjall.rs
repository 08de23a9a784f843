//! The engine on fjall: one keyspace, written by ingestion only.
//!
//! Why so narrow: fjall's journal doubles every value and cuts silently at the first damage,
//! its batches may tear over keyspaces, and one keyspace per group does not scale (measured,
//! see docs/decisions). A sorted ingestion has none of this: its `finish` switches the
//! tree's version atomically after all files are synced.
//!
//! Invariants: never `insert`, `remove`, `batch` or `clear` on the keyspace; only this file
//! names fjall.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode, UserKey,
    UserValue,
};

use super::merge::{Entries, Entry, Merge, Open};
use super::{Engine, EngineError, EngineRow, EngineScan};

/// Bytes of decompressed blocks kept in memory.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// A whole merge is made when at least so many rows were removed,
const SHRINK_ROWS_MIN: u64 = 10_000;
/// and they are at least one in so many of those in the tables.
const SHRINK_PART: u64 = 5;
/// Closed snapshots at which fjall looks for versions to forget (`snapshot_tracker.rs`).
const SNAPSHOTS_PER_LOOK: usize = 10_000;

/// See the module.
pub struct FjallEngine {
    database: Database,
    main: Keyspace,
    /// Rows removed since the last whole merge.
    removed: AtomicU64,
    /// The tree changed since the last look at what can be given back.
    changed: AtomicBool,
}

fn failed(what: &'static str) -> impl Fn(fjall::Error) -> EngineError {
    move |error| EngineError::Failed(format!("{what}: {error}"))
}

fn scan_failed(error: LsmError) -> EngineError {
    EngineError::Failed(format!("scan: {error}"))
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
        let (removed, changed) = (AtomicU64::new(0), AtomicBool::new(true));
        Ok(FjallEngine { database, main, removed, changed })
    }

    /// Lets the engine forget versions of its tree, and with them tables, that nobody reads any
    /// more. By itself it does so only when its own memtable is flushed, which is never used here.
    fn forget_versions(&self) -> Result<(), EngineError> {
        // What a merge may drop is judged anew at every so many closed snapshots: milliseconds.
        for _ in 0..SNAPSHOTS_PER_LOOK {
            drop(self.database.snapshot());
        }
        // Reads take the newest version and keep it as long as they need it: no older one is asked
        // for any more.
        let visible = self.database.visible_seqno();
        let forgotten = {
            let mut versions = self.main.tree.get_version_history_lock();
            versions.maintenance(self.main.path(), visible)
        };
        forgotten.map_err(|error| EngineError::Failed(format!("forget old tables: {error}")))
    }
}

impl Engine for FjallEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.main.get(key).map_err(failed("get"))?.map(Bytes::from))
    }

    fn scan(&self, start: &[u8], end: &[u8]) -> EngineScan {
        if start >= end {
            return Box::new(Merge::new(std::iter::empty(), start, end));
        }
        let version = self.main.tree.current_version();
        let end_key = UserKey::from(end);
        let runs = version.iter_levels().flat_map(|level| level.iter().cloned()).map(|run| {
            let end_key = end_key.clone();
            Box::new(move |from: &[u8]| -> Entries {
                let from = UserKey::from(from);
                let overlap = run.range_overlap_indexes(&(from.clone()..end_key.clone()));
                let tables = overlap.into_iter().flat_map(|(first, last)| first..=last);
                // Without an upper bound: fjall looks for it in every block, the merge once a row.
                let run = run.clone();
                let rows = tables.filter_map(move |at| Some(run.get(at)?.range(from.clone()..)));
                Box::new(rows.flatten().map(|row| {
                    let row = row.map_err(scan_failed)?;
                    let value = (!row.is_tombstone()).then(|| Bytes::from(row.value));
                    Ok(Entry { key: row.key.user_key.into(), number: row.key.seqno, value })
                }))
            }) as Open
        });
        Box::new(Merge::new(runs, start, end))
    }

    // What a look-up of one key needs, so it makes no walk: the first row of each run is enough.
    fn first(&self, start: &[u8], end: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        let from = UserKey::from(start);
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let version = self.main.tree.current_version();
        let mut first: Option<(UserKey, u64, Option<UserValue>)> = None;
        for run in version.iter_levels().flat_map(|level| level.iter()) {
            let Some((at, last)) = run.range_overlap_indexes::<&[u8], _>(&bounds) else { continue };
            let tables = run.get(at..=last).unwrap_or_default();
            let Some(row) = tables.iter().find_map(|table| table.range(from.clone()..).next())
            else {
                continue;
            };
            let row = row.map_err(scan_failed)?;
            let (key, number) = (row.key.user_key.clone(), row.key.seqno);
            let comes_first = first
                .as_ref()
                .is_none_or(|(other, than, _)| key < *other || (key == *other && number > *than));
            if key < end && comes_first {
                first = Some((key, number, (!row.is_tombstone()).then_some(row.value)));
            }
        }
        match first {
            None => Ok(None),
            Some((key, _, Some(value))) => Ok(Some((key.into(), value.into()))),
            // That row was taken away: what comes behind it is found by a walk.
            Some((_, _, None)) => self.scan(start, end).next().transpose(),
        }
    }

    fn ingest(&self, rows: &mut dyn Iterator<Item = EngineRow>) -> Result<(), EngineError> {
        // An ingestion does not look at the poison flag by itself.
        self.database.persist(PersistMode::Buffer).map_err(failed("probe the engine"))?;
        let mut removed = 0;
        let mut ingestion = self.main.start_ingestion().map_err(failed("begin a checkpoint"))?;
        for (key, value) in rows {
            match value {
                Some(value) => ingestion.write(key, value).map_err(failed("write a row"))?,
                None => {
                    removed += 1;
                    ingestion.write_tombstone(key).map_err(failed("write a tombstone"))?;
                }
            }
        }
        ingestion.finish().map_err(failed("finish a checkpoint"))?;
        self.removed.fetch_add(removed, Ordering::Relaxed);
        self.changed.store(true, Ordering::Relaxed);
        Ok(())
    }

    // The engine's own merges let go of removed rows only in the last level, which a small or
    // calm tree never reaches. A whole merge rewrites what is left, so it waits until that is not
    // more than some times what goes.
    //
    // Its thread merges when it likes and tells nobody: a merge that ends after the last ingestion
    // would keep all that it read on the disk until the next one.
    fn shrink(&self) -> Result<(), EngineError> {
        let changed = self.changed.swap(false, Ordering::Relaxed);
        if !changed && self.main.tree.version_free_list_len() == 0 {
            return Ok(());
        }
        self.forget_versions()?;
        let removed = self.removed.load(Ordering::Relaxed);
        let rows = self.main.approximate_len() as u64;
        if removed < SHRINK_ROWS_MIN || removed < rows / SHRINK_PART {
            return Ok(());
        }
        self.main.major_compact().map_err(failed("merge the tables"))?;
        self.removed.fetch_sub(removed, Ordering::Relaxed);
        self.forget_versions()
    }

    fn disk_bytes(&self) -> u64 {
        self.main.disk_space()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(engine: &FjallEngine, value: &'static [u8]) {
        let row = |n: u32| (Bytes::from(n.to_be_bytes().to_vec()), Some(Bytes::from(value)));
        engine.ingest(&mut (0..1000).map(row)).unwrap();
    }

    fn row(row: Option<(Bytes, Bytes)>) -> Option<(u8, u8)> {
        row.map(|(key, value)| (key[0], value[0]))
    }

    #[test]
    fn layers_are_read_as_one_map() {
        let path = std::env::temp_dir().join(format!("atoll-layers-{}", std::process::id()));
        let engine = FjallEngine::open(&path).unwrap();
        let bytes = |byte: u8| Bytes::copy_from_slice(&[byte]);
        let mut map = std::collections::BTreeMap::new();
        // The fifth ingestion makes fjall merge: some rows stand in a lower level by then.
        for layer in 1..=8u8 {
            let rows: Vec<_> = (0..=200u8)
                .filter(|key| (key.wrapping_mul(37) ^ layer.wrapping_mul(91)) % 3 == 0)
                .map(|key| (key, (key % 4 != layer % 4).then_some(layer)))
                .collect();
            let mut ingested = rows.iter().map(|(key, value)| (bytes(*key), value.map(bytes)));
            engine.ingest(&mut ingested).unwrap();
            for (key, value) in rows {
                match value {
                    Some(value) => map.insert(key, value),
                    None => map.remove(&key),
                };
            }
            for (start, end) in [(0, 255), (3, 9), (90, 91), (200, 255), (9, 3), (201, 255)] {
                let expected: Vec<_> = match start < end {
                    true => map.range(start..end).map(|(key, value)| (*key, *value)).collect(),
                    false => Vec::new(),
                };
                let scan = engine.scan(&[start], &[end]);
                let found: Vec<_> = scan.filter_map(|found| row(Some(found.unwrap()))).collect();
                assert_eq!(found, expected, "{layer}: {start}..{end}");
                let first = row(engine.first(&[start], &[end]).unwrap());
                assert_eq!(first, expected.first().copied(), "{layer}: {start}..{end}");
            }
        }
        drop(engine);
        std::fs::remove_dir_all(&path).unwrap();
    }

    fn files(engine: &FjallEngine) -> usize {
        std::fs::read_dir(engine.main.path().join("tables")).unwrap().count()
    }

    #[test]
    fn tables_go_that_were_merged_after_the_last_ingestion() {
        let path = std::env::temp_dir().join(format!("atoll-fjall-{}", std::process::id()));
        let engine = FjallEngine::open(&path).unwrap();
        fill(&engine, b"old");
        fill(&engine, b"new");
        engine.shrink().unwrap();
        assert_eq!(files(&engine), 2, "too few to be merged");
        engine.main.major_compact().unwrap();
        assert_eq!(files(&engine), 3, "what was read is kept for the older version");
        engine.shrink().unwrap();
        assert_eq!(files(&engine), 1);
        assert_eq!(engine.main.tree.version_free_list_len(), 0, "the next look has nothing to do");
        assert_eq!(engine.get(&7u32.to_be_bytes()).unwrap(), Some(Bytes::from_static(b"new")));
        drop(engine);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
