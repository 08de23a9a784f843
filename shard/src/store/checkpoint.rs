//! A checkpoint: the recent table becomes part of the engine, in one atomic ingestion.
//!
//! 1. Freeze, at a batch boundary of apply: the active table is closed, the state of every
//!    group is copied, a new table is opened. *Crash here: the last checkpoint and replay.*
//! 2. Page files that received snapshots or moved extents are synced. Then one sorted
//!    ingestion: rows, removals, packed changes, states, bitmaps of pages, the number. Its end
//!    is the commit point. *Crash before: the last checkpoint; after: this one.*
//! 3. The log learns the number with its next batch. *Crash before: the engine is one ahead
//!    of what the log remembers, which is fine. An engine older than the log's newest number
//!    went back in time: its replicas are seeded anew.*
//! 4. The frozen table leaves the list, log segments before the applied indexes are free.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::recent::Table;
use super::{Store, changes, layout};
use crate::engine::{EngineError, EngineRow};
use crate::extents::Extents;

/// The node's own row.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeRow {
    /// Format of everything in the engine.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Number of this checkpoint.
    #[prost(uint64, tag = "2")]
    pub checkpoint: u64,
    /// Next shelf to hand out.
    #[prost(uint64, tag = "3")]
    pub next_shelf: u64,
    /// The node that wrote it.
    #[prost(uint64, tag = "4")]
    pub node: u64,
    /// Shelves whose rows are to be removed.
    #[prost(uint64, repeated, tag = "5")]
    pub dropped: Vec<u64>,
    /// Rows of shelves below this one own no pages.
    #[prost(uint64, tag = "6")]
    pub bare_below: u64,
}

/// Format that this program writes and the newest it reads. 2: changes have places, states pieces. 3: the
/// keys of leases stand with their versions.
pub const FORMAT: u32 = 3;
/// The first format whose keys of leases stand with their versions.
pub const LEASE_KEYS_WITH_VERSIONS: u32 = 3;

/// A frozen table on its way into the engine.
pub struct Checkpoint {
    /// Its number.
    pub number: u64,
    table: Arc<Table>,
    meta: Vec<EngineRow>,
    extents: Arc<Extents>,
}

impl Store {
    /// Closes the active table. `node` and `groups` are the states that belong to it; the
    /// latter sorted by key. Panics if the last checkpoint has not been [`Store::finish`]ed.
    pub fn freeze(&self, node: &NodeRow, groups: Vec<EngineRow>) -> Checkpoint {
        let tables = self.tables();
        assert_eq!(tables.list.len(), 1, "a checkpoint is frozen while another is being written");
        let frozen = self.active();
        self.set_tables(vec![Arc::new(Table::default()), frozen.clone()], tables.complete);
        let mut meta =
            vec![(Bytes::from_static(layout::NODE_KEY), Some(node.encode_to_vec().into()))];
        meta.extend(groups);
        for (file, bitmap) in self.extents().freeze(node.checkpoint) {
            let row = (!bitmap.is_empty()).then(|| bitmap.encode());
            meta.push((layout::pages_key(file).into(), row));
        }
        Checkpoint { number: node.checkpoint, table: frozen, meta, extents: self.extents().clone() }
    }

    /// Lets go of the frozen table, whose rows are in the engine now.
    pub fn finish(&self, checkpoint: &Checkpoint) {
        let active = self.active();
        let tables = self.tables();
        let frozen = tables.list.get(1).expect("a checkpoint finishes while its table is frozen");
        assert!(Arc::ptr_eq(frozen, &checkpoint.table), "another table is frozen");
        drop(tables);
        self.set_tables(vec![active], checkpoint.number);
        self.extents().checkpointed(checkpoint.number, 0);
        self.reclaim();
    }
}

impl Checkpoint {
    /// Bytes that writing it takes on the disk, at most, without the engine's merging.
    pub fn bytes(&self) -> u64 {
        let meta: usize =
            self.meta.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Bytes::len)).sum();
        2 * self.table.bytes() + meta as u64 + (1 << 20)
    }

    /// Writes everything into the engine; durable on return. May run on any thread.
    pub fn write(&self, engine: &dyn crate::engine::Engine) -> Result<(), EngineError> {
        self.extents.sync().map_err(|error| super::failed(&error))?;
        let mut extra = self.meta.clone();
        for (shelf, map) in self.table.all_changes() {
            extra.extend(changes::pack(shelf, &map).into_iter().map(|(k, v)| (k, Some(v))));
        }
        extra.sort_by(|a, b| a.0.cmp(&b.0));
        let mut extra = extra.into_iter().peekable();
        let mut rows = self.table.iter().map(|(k, cell)| (k, cell.encode())).peekable();
        let mut merged = std::iter::from_fn(|| match (extra.peek(), rows.peek()) {
            (Some(a), Some(b)) if a.0 == b.0 => {
                // A packed row removed and written anew under the same key: the new one stands.
                rows.next();
                extra.next()
            }
            (Some(a), Some(b)) if a.0 < b.0 => extra.next(),
            (_, Some(_)) => rows.next(),
            (Some(_), None) => extra.next(),
            (None, None) => None,
        });
        engine.ingest(&mut merged)
    }
}
