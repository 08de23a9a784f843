//! The node's one log: everything that all its Raft groups must not forget, in one stream of
//! batches with one sync for all of them.
//!
//! ```text
//!   worker -- append(batch), append(batch), sync() --> [ header | directory | batch | batch | ...
//!   readers -- entries, term, first_index ---------->    older segments, each read is checked
//!   checkpoints -- release(key, applied) ----------->    segments nobody needs become spares
//! ```
//!
//! A segment is a preallocated file (`segment.rs`). When it is full a new one begins with a
//! directory: the state of every replica, so that an idle replica pins nothing. What a replica's
//! records mean in sum is kept in memory (`index.rs`), the bytes of a record are in `record.rs`,
//! how far the log was synced is in `mark.rs`, what a start makes of all this in `recover.rs`.
//!
//! Invariants:
//!
//! * One thread appends and syncs. Readers run beside it on any thread.
//! * What [`Log::sync`] has returned for survives a crash. What was only appended may or may not,
//!   but always a prefix of the batches, and each batch whole.
//! * A batch is in a new segment only when all older segments are durable.
//! * An error of a write or sync is final: the log answers everything that writes with
//!   [`LogError::Poisoned`] from then on, and the process is to end. Nothing is retried, because
//!   after a failed sync nobody knows what the disk holds.
//! * Damage is never repaired in silence: the replicas that it may concern are reported by
//!   [`Log::open`], and stay reported until their lost records are out of use.
//!
//! # A start
//!
//! Every start begins a fresh segment, because the cache from which the end of the last one was
//! read may hold what the disk never got.

mod index;
mod mark;
mod record;
mod recover;
mod segment;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;

use self::index::{Index, Replica, SegmentFile};
use self::mark::Mark;
use self::record::{
    BatchFrame, Draft, Kind, RecordHeader, batch_len, decode_record, encode_batch, record_position,
    records_len,
};
use self::recover::Source;
use self::segment::{
    FIRST_BATCH, RECORD_HEADER_BYTES, SEGMENT_BYTES_MAX, Salt, SegmentHeader, segment_name,
    spare_name,
};
use crate::disk::{Disk, DiskFile};
use crate::room::Space;

/// One replica of one group, as the log names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaKey {
    /// The group.
    pub group: u64,
    /// The replica of that group; ids are never reused.
    pub replica: u64,
}

/// A place in the log. Later places are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// Number of the segment, from 1; never reused.
    pub segment: u64,
    /// Offset in the segment, in bytes.
    pub offset: u64,
}

/// A Raft index with the term of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexTerm {
    /// Raft index, from 1; 0 before the first entry.
    pub index: u64,
    /// Raft term; 0 when damage took the knowledge of it.
    pub term: u64,
}

/// Raft's hard state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// Current term.
    pub term: u64,
    /// Replica id that got this replica's vote in the term, 0 for none.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: u64,
}

/// An entry to append; its index follows from its place in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Raft term.
    pub term: u64,
    /// Raft's entry type, kept as it is.
    pub entry_type: u8,
    /// Payload.
    pub data: Bytes,
}

/// An entry read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Raft's entry type.
    pub entry_type: u8,
    /// Payload. It shares memory with the other entries of one read.
    pub data: Bytes,
}

/// A completed checkpoint of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// Number of the checkpoint.
    pub n: u64,
    /// Where replay on top of it begins: [`Log::position`] at the freeze.
    pub start: Position,
}

/// What can be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Entries of one replica. A first index at or below the last one cuts the suffix.
    Entries {
        /// Whose entries.
        key: ReplicaKey,
        /// Index of the first one: above the truncation point, at most one above the last index.
        first_index: u64,
        /// At least one; their terms may differ.
        entries: Vec<Entry>,
    },
    /// A replica's hard state.
    HardState {
        /// Whose.
        key: ReplicaKey,
        /// The new state.
        state: HardState,
    },
    /// A snapshot was installed: the log begins anew behind `index`.
    Restore {
        /// Whose.
        key: ReplicaKey,
        /// Index of the last entry that the snapshot holds.
        index: u64,
        /// Its term.
        term: u64,
        /// Raft's membership, encoded by the caller.
        conf_state: Bytes,
        /// Shelf with the snapshot's rows.
        shelf: u64,
    },
    /// A child of a split: its first record, before its first vote.
    Born {
        /// The child.
        key: ReplicaKey,
        /// Group it came from.
        parent: u64,
        /// Index of the split in the parent's log.
        index: u64,
        /// First key of its interval.
        start: Bytes,
        /// End of its interval, exclusive.
        end: Bytes,
        /// Shelf for its new rows.
        shelf: u64,
    },
    /// Replicas of a group are removed for good. Kept for ever.
    Tombstone {
        /// The group.
        group: u64,
        /// Replica ids below this one are removed and can never come back.
        lowest_replica: u64,
    },
    /// The replica must not take part; kept until its tombstone.
    Quarantine {
        /// Whose.
        key: ReplicaKey,
        /// Why, for a person.
        reason: String,
    },
    /// A snapshot is about to be received onto a shelf; kept until a restore or the next install.
    Install {
        /// Whose.
        key: ReplicaKey,
        /// The shelf.
        shelf: u64,
    },
    /// The engine holds checkpoint `n`.
    Checkpoint {
        /// Number of the checkpoint.
        n: u64,
        /// Where replay begins.
        start: Position,
    },
}

/// Bounds and the secret of a log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Length of a segment file in bytes, at most 1 GiB. A larger directory or batch gets a longer
    /// segment of its own.
    pub segment_bytes: u64,
    /// Bytes of full segments kept for slow followers, those included that are kept anyway because
    /// no checkpoint holds their entries: who lacks more gets a snapshot. What is kept takes disk
    /// on every node, whether somebody needs it or not; etcd keeps 5,000 entries.
    pub keep_bytes: u64,
    /// Recycled files kept ready; more are removed.
    pub spare_segments: usize,
    /// Secret number of this node that seeds all checksums, so that a tenant cannot write a value
    /// that passes for a part of the log when recovery looks for the next valid batch. Drawn once
    /// by the caller, kept outside the log; with another one nothing validates.
    pub salt: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { segment_bytes: 32 << 20, keep_bytes: 32 << 20, spare_segments: 1, salt: 0 }
    }
}

/// Where a batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Start of the batch.
    pub start: Position,
    /// End of the batch: durable when [`Log::sync`] returns at least this.
    pub end: Position,
}

/// Bytes whose records could not be read; which replicas had records there is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// Where it begins.
    pub at: Position,
    /// Its length in bytes; 0 when only the order of the batches around it is wrong.
    pub len_bytes: u64,
}

/// How much damage took from a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageExtent {
    /// Entries below `lowest_intact` are lost, at least one. Harmless when they are all applied.
    Entries,
    /// The hard state, the newest entries or other records may be lost: quarantine.
    State,
}

/// Damage of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What may be lost.
    pub extent: DamageExtent,
    /// What was found, for a person.
    pub reason: String,
}

/// One replica after a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredReplica {
    /// Newest hard state.
    pub hard_state: HardState,
    /// The entry before the first one.
    pub truncated: IndexTerm,
    /// Index of the first entry, one above `truncated`.
    pub first_index: u64,
    /// Index and term of the last entry, or `truncated` without entries.
    pub last: IndexTerm,
    /// First index that can be read together with all behind it; `last.index + 1` when the last
    /// entry is lost.
    pub lowest_intact: u64,
    /// Set when anything is lost.
    pub damage: Option<Damage>,
    /// Restore, born, quarantine and install records in effect, in their order. A restore or born
    /// record may come back after [`Log::release`], until the next segment is begun.
    pub controls: Vec<Record>,
}

/// What a start found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// All replicas that are not below a tombstone.
    pub replicas: BTreeMap<ReplicaKey, RecoveredReplica>,
    /// Lowest replica id that each group may have here.
    pub tombstones: BTreeMap<u64, u64>,
    /// The newest checkpoint that the log knows. An older engine went back in time.
    pub checkpoint: Option<Checkpoint>,
    /// Damage of unknown owner. When there is any, a replica, tombstone or checkpoint may be
    /// missing here without a trace: a replica id that is not listed must not be created anew.
    /// Reported at every start until [`Log::forget_holes`].
    pub holes: Vec<Hole>,
    /// End of what was certainly synced by the last process.
    pub synced: Position,
}

/// Size of the log on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogUsage {
    /// Segments in use.
    pub segments: usize,
    /// Their length in bytes.
    pub segment_bytes: u64,
    /// Spare files.
    pub spares: usize,
}

/// Why the log refused or failed.
#[derive(Debug, Error)]
pub enum LogError {
    /// The disk failed. Final when it comes from an append or a sync.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The disk's answer.
        #[source]
        source: io::Error,
    },
    /// An earlier write or sync failed; this process must end.
    #[error("the log is stopped: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// Entries that would leave a gap behind the last one. Nothing was written.
    #[error("entries of {key} begin at {first_index}, but the last index is {last_index}")]
    Gap {
        /// Whose.
        key: ReplicaKey,
        /// First index of the refused entries.
        first_index: u64,
        /// Last index in the log.
        last_index: u64,
    },
    /// An entry at or below the truncation point.
    #[error("entry {index} of {key} is compacted, the first is {first_index}")]
    Compacted {
        /// Whose.
        key: ReplicaKey,
        /// The wanted index.
        index: u64,
        /// The lowest one there is.
        first_index: u64,
    },
    /// An entry above the last one.
    #[error("entry {index} of {key} is not there yet, the last is {last_index}")]
    Unavailable {
        /// Whose.
        key: ReplicaKey,
        /// The wanted index.
        index: u64,
        /// The highest one there is.
        last_index: u64,
    },
    /// An entry that cannot be read or does not validate.
    #[error("entry {index} of {key} is damaged")]
    Damaged {
        /// Whose.
        key: ReplicaKey,
        /// The wanted index.
        index: u64,
    },
    /// The log has no record of this replica.
    #[error("no log of {key}")]
    Unknown {
        /// Whose.
        key: ReplicaKey,
    },
    /// A record of a replica that a tombstone removed. Nothing was written.
    #[error("{key} is removed, the lowest replica allowed is {lowest_replica}")]
    Tombstoned {
        /// Whose.
        key: ReplicaKey,
        /// The tombstone.
        lowest_replica: u64,
    },
    /// A record without entries. Nothing was written.
    #[error("an entries record of {key} holds no entries")]
    Empty {
        /// Whose.
        key: ReplicaKey,
    },
    /// A batch that no segment can hold. Nothing was written.
    #[error("a batch of {len_bytes} bytes is too large for a log segment")]
    TooLarge {
        /// Its length.
        len_bytes: u64,
    },
    /// A newer program wrote a segment.
    #[error(
        "log segment {segment} has format {found}, this program knows formats up to {supported}: \
         run a newer program"
    )]
    Format {
        /// Number of the segment.
        segment: u64,
        /// Its format.
        found: u32,
        /// The newest one that this program reads.
        supported: u32,
    },
    /// A newer program wrote a record.
    #[error(
        "log segment {segment} has a record of kind {kind} with flags {flags} at {offset}, which \
         this program does not know: run a newer program"
    )]
    UnknownRecord {
        /// Number of the segment.
        segment: u64,
        /// Offset of the record's header.
        offset: u64,
        /// Its kind.
        kind: u8,
        /// Its flags.
        flags: u8,
    },
    /// There are segments, but nothing validates: most likely the salt is not the one they were
    /// written with. Nothing was changed.
    #[error("no log segment validates, not even {segment}: check the salt of this node")]
    Unreadable {
        /// Number of one of them.
        segment: u64,
    },
    /// The directory belongs to another node.
    #[error("the log belongs to node {found}, this is node {expected}")]
    WrongNode {
        /// This node.
        expected: u64,
        /// The node in the segment header.
        found: u64,
    },
}

/// The open log of a node.
pub struct Log {
    disk: Arc<dyn Disk>,
    node_id: u64,
    config: LogConfig,
    salt: Salt,
    index: RwLock<Index>,
    writer: Mutex<Writer>,
    poison: OnceLock<String>,
    /// Files that wait to become segments: number and length.
    spares: Mutex<Vec<(u64, u64)>>,
    next_number: AtomicU64,
    has_followers: AtomicBool,
}

/// A spare file is filled by so much at a time.
const SPARE_PIECE_BYTES: usize = 1 << 20;

/// What only the writing thread needs.
struct Writer {
    segment: u64,
    file: Option<Arc<dyn DiskFile>>,
    len: u64,
    offset: u64,
    previous: u32,
    synced: Position,
    mark: Mark,
    /// Whether the mark itself is made durable with the next sync.
    sync_mark: bool,
    buffer: Vec<u8>,
}

/// Number and chain of a record that is about to be written.
#[derive(Debug, Clone, Copy)]
struct Plan {
    number: u64,
    back: u32,
}

/// A replica as it will be after the records planned so far.
#[derive(Debug, Clone, Copy)]
struct Planned {
    number: u64,
    back: u32,
    truncated: u64,
    last: u64,
}

/// Whether records may be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Caller,
    Tail,
}

impl Log {
    /// Opens the log in `disk`, or makes an empty one, and says what it found. When it returns,
    /// everything reported is durable in a fresh segment. The directory must hold nothing else
    /// whose names begin with `seg-`, `spare-` or `mark`.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`], and what makes the log unreadable as a whole: [`LogError::Format`],
    /// [`LogError::UnknownRecord`], [`LogError::WrongNode`], [`LogError::Unreadable`]. Damage is
    /// not an error.
    pub fn open(
        disk: Arc<dyn Disk>,
        node_id: u64,
        config: LogConfig,
    ) -> Result<(Self, Recovered), LogError> {
        let salt = Salt(config.salt);
        let (mark, marked) =
            Mark::open(&*disk, salt).map_err(LogError::io("open the log's mark"))?;
        let found = Source { disk: &*disk, salt, node_id }.recover(marked)?;
        let synced = found.synced;
        let writer = Writer {
            // The end of the last segment: it is the predecessor of the one that begins below.
            segment: synced.segment,
            file: None,
            len: 0,
            offset: synced.offset,
            previous: 0,
            synced,
            mark,
            sync_mark: false,
            buffer: Vec::new(),
        };
        let log = Self {
            disk,
            node_id,
            config,
            salt,
            index: RwLock::new(found.index),
            writer: Mutex::new(writer),
            poison: OnceLock::new(),
            spares: Mutex::new(found.spares),
            next_number: AtomicU64::new(found.next_number),
            has_followers: AtomicBool::new(true),
        };
        log.begin_segment(&mut log.writer.lock(), &found.tail, 0)?;
        for number in found.dead {
            log.set_aside(number)?;
        }
        log.trim_spares()?;
        let recovered = log.recovered(synced);
        Ok((log, recovered))
    }

    /// Writes one batch behind the others, in one write. Readers see it at once; it is durable
    /// after the next [`Log::sync`]. A full segment is closed and synced first. An empty batch does
    /// nothing. Only the writing thread calls this.
    ///
    /// # Errors
    ///
    /// [`LogError::Gap`], [`LogError::Compacted`], [`LogError::Empty`], [`LogError::Tombstoned`]
    /// and [`LogError::TooLarge`] refuse the whole batch and change nothing. [`LogError::Io`] is
    /// final.
    pub fn append(&self, batch: &[Record]) -> Result<Appended, LogError> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        if batch.is_empty() {
            let at = writer.position();
            return Ok(Appended { start: at, end: at });
        }
        let len_bytes = records_len(batch);
        if len_bytes > SEGMENT_BYTES_MAX / 2 {
            return Err(LogError::TooLarge { len_bytes });
        }
        if writer.offset + len_bytes > writer.len {
            // What would be refused must not begin a segment.
            self.plan(batch, writer.position(), Origin::Caller)?;
            self.begin_segment(&mut writer, &[], len_bytes)?;
        }
        let start = writer.position();
        self.write_batch(&mut writer, batch, Origin::Caller)?;
        writer.sync_mark |= batch.iter().any(|record| matches!(record, Record::Checkpoint { .. }));
        Ok(Appended { start, end: writer.position() })
    }

    /// Makes everything appended durable, with one sync, and returns how far that is. Only the
    /// writing thread calls this.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`], which is final: nothing appended since the last sync may be acknowledged.
    pub fn sync(&self) -> Result<Position, LogError> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        self.sync_writer(&mut writer)?;
        Ok(writer.synced)
    }

    /// Syncs the log and its mark before a shutdown, so that the next start knows for certain where
    /// the log ended.
    ///
    /// # Errors
    ///
    /// As [`Log::sync`].
    pub fn close(&self) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        self.sync_writer(&mut writer)?;
        let synced = writer.mark.sync();
        self.fatal("sync the log's mark", synced)
    }

    /// End of the last batch. Taken at the freeze of a checkpoint it is where replay begins.
    pub fn position(&self) -> Position {
        self.writer.lock().position()
    }

    /// Reads the entries `low..high`, as many as fit into `max_bytes` of payload and at least one;
    /// nothing for an empty interval. Every read checks checksums.
    ///
    /// # Errors
    ///
    /// [`LogError::Unknown`], [`LogError::Compacted`] below the first index (also when the entry is
    /// compacted during the call), [`LogError::Unavailable`] above the last one,
    /// [`LogError::Damaged`] when the first wanted entry is lost or unreadable. None of them stops
    /// the log. When a later entry is unreadable, the intact ones before it are returned.
    pub fn entries(
        &self,
        key: ReplicaKey,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<LogEntry>, LogError> {
        self.check_range(key, low, high)?;
        let mut reading = Reading { next: low, high, room_bytes: max_bytes, found: Vec::new() };
        while reading.next < reading.high {
            match self.read_chunk(key, &mut reading) {
                Ok(()) => {}
                Err(_) if !reading.found.is_empty() => break,
                // The segment may have been recycled under the read.
                Err(error) => {
                    self.check_range(key, low, high)?;
                    return Err(error);
                }
            }
        }
        Ok(reading.found)
    }

    /// Term of an entry, or of the one before the first. Never reads the disk.
    ///
    /// # Errors
    ///
    /// As [`Log::entries`].
    pub fn term(&self, key: ReplicaKey, index: u64) -> Result<u64, LogError> {
        self.with_replica(key, |replica| {
            if index < replica.truncated.index {
                let first_index = replica.truncated.index + 1;
                return Err(LogError::Compacted { key, index, first_index });
            }
            if index > replica.last {
                return Err(LogError::Unavailable { key, index, last_index: replica.last });
            }
            replica.term(index).ok_or(LogError::Damaged { key, index })
        })?
    }

    /// Index of the first entry that the log still has; one above the last index without entries.
    ///
    /// # Errors
    ///
    /// [`LogError::Unknown`].
    pub fn first_index(&self, key: ReplicaKey) -> Result<u64, LogError> {
        self.with_replica(key, |replica| replica.truncated.index + 1)
    }

    /// Index of the last entry, synced or not.
    ///
    /// # Errors
    ///
    /// [`LogError::Unknown`].
    pub fn last_index(&self, key: ReplicaKey) -> Result<u64, LogError> {
        self.with_replica(key, |replica| replica.last)
    }

    /// Says that a durable checkpoint holds a replica up to `applied_index`: its entries up to
    /// there pin no segment any more, its born record and older restore records are forgotten.
    /// Takes effect on disk when the next segment is begun; a start forgets calls since then, so
    /// the caller repeats them. A replica that is not known is ignored.
    pub fn release(&self, key: ReplicaKey, applied_index: u64) {
        if let Some(replica) = self.index.write().replicas.get_mut(&key) {
            replica.release(applied_index);
        }
    }

    /// Says whether anybody may ask for old entries; without followers no segment is kept for
    /// them. True until said otherwise.
    pub fn set_followers(&self, any: bool) {
        self.has_followers.store(any, Ordering::Relaxed);
    }

    /// Says that the caller has noted the holes that [`Log::open`] reported and has durably decided
    /// what to do about them. Takes effect on disk when the next segment is begun.
    pub fn forget_holes(&self) {
        self.index.write().holes.clear();
    }

    /// Prepares a spare file when there is none, so that [`Log::append`] need not write a whole
    /// segment of zeros when it begins one. For a background thread: it writes a piece at a time
    /// and rests for `pause` between them, or the syncs of the log would wait for all of it.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]. The log itself is not concerned and goes on.
    pub fn prepare_spare(&self, pause: Duration) -> Result<(), LogError> {
        if !self.spares.lock().is_empty() {
            return Ok(());
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (name, len) = (spare_name(number), self.config.segment_bytes);
        if let Err(source) = self.fill_spare(&name, len, pause) {
            // What is left of the file would only take space from the one who ran out of it.
            let _ = self.disk.remove(&name);
            return Err(LogError::Io { action: "prepare a log segment", source });
        }
        self.spares.lock().push((number, len));
        Ok(())
    }

    fn fill_spare(&self, name: &str, len: u64, pause: Duration) -> io::Result<()> {
        let file = self.disk.create(name, 0)?;
        let zeros = vec![0; SPARE_PIECE_BYTES];
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(SPARE_PIECE_BYTES as u64);
            file.write_at(at, zeros.get(..piece as usize).unwrap_or(&zeros))?;
            file.sync_data()?;
            at += piece;
            std::thread::sleep(pause);
        }
        self.disk.sync_dir()
    }

    /// Room on the disk below.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]. The log itself is not concerned and goes on.
    pub fn space(&self) -> Result<Space, LogError> {
        self.disk.space().map_err(|source| LogError::Io { action: "ask for free space", source })
    }

    /// Size of the log on disk.
    pub fn usage(&self) -> LogUsage {
        let index = self.index.read();
        LogUsage {
            segments: index.segments.len(),
            segment_bytes: index.segments.values().map(|segment| segment.len).sum(),
            spares: self.spares.lock().len(),
        }
    }
}

// === writing ===

impl Log {
    fn check_poison(&self) -> Result<(), LogError> {
        match self.poison.get() {
            Some(reason) => Err(LogError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Passes a result of the disk on, and stops the log when it is an error.
    fn fatal<T>(&self, action: &'static str, result: io::Result<T>) -> Result<T, LogError> {
        result.map_err(|source| {
            // Of two failures the first one explains more.
            let _ = self.poison.set(format!("{action}: {source}"));
            LogError::Io { action, source }
        })
    }

    /// Gives every record its number and chain, and checks records of the caller.
    fn plan(
        &self,
        records: &[Record],
        at: Position,
        origin: Origin,
    ) -> Result<Vec<Plan>, LogError> {
        let index = self.index.read();
        let mut planned: BTreeMap<ReplicaKey, Planned> = BTreeMap::new();
        let mut plans = Vec::with_capacity(records.len());
        for (number, record) in records.iter().enumerate() {
            let key = record.key();
            if matches!(record, Record::Tombstone { .. } | Record::Checkpoint { .. }) {
                plans.push(Plan { number: 0, back: 0 });
                continue;
            }
            if origin == Origin::Caller
                && let Some(lowest) = index.tombstones.get(&key.group)
                && key.replica < *lowest
            {
                return Err(LogError::Tombstoned { key, lowest_replica: *lowest });
            }
            let next = planned.entry(key).or_insert_with(|| {
                let replica = index.replicas.get(&key);
                replica.map_or_else(Planned::empty, |replica| Planned::of(replica, at.segment))
            });
            next.number += 1;
            plans.push(Plan { number: next.number, back: next.back });
            match record {
                Record::Entries { first_index, entries, .. } => {
                    if origin == Origin::Caller {
                        next.check(key, *first_index, entries.len())?;
                    }
                    next.last = first_index + entries.len() as u64 - 1;
                    next.back = record_position(at, number).offset as u32;
                }
                Record::Restore { index, .. } => {
                    (next.truncated, next.last, next.back) = (*index, *index, 0);
                }
                _ => {}
            }
        }
        Ok(plans)
    }

    /// Writes one batch into the active segment, which has room for it, and shows it to readers.
    fn write_batch(
        &self,
        writer: &mut Writer,
        records: &[Record],
        origin: Origin,
    ) -> Result<(), LogError> {
        let at = writer.position();
        let plans = self.plan(records, at, origin)?;
        let drafts: Vec<_> = records
            .iter()
            .zip(&plans)
            .map(|(record, plan)| Draft::new(record, plan.number, plan.back))
            .collect();
        self.write_drafts(writer, &drafts)?;
        let mut index = self.index.write();
        for (number, (record, plan)) in records.iter().zip(&plans).enumerate() {
            index.apply(record, plan.number, record_position(at, number));
        }
        Ok(())
    }

    fn write_drafts(&self, writer: &mut Writer, drafts: &[Draft<'_>]) -> Result<(), LogError> {
        let (at, previous, synced) = (writer.position(), writer.previous, writer.synced);
        let frame = BatchFrame { at, previous, synced };
        let checksum = encode_batch(self.salt, frame, drafts, &mut writer.buffer);
        let end = at.offset + writer.buffer.len() as u64;
        assert!(end <= writer.len, "a batch never grows its segment");
        let written = writer.file().write_at(at.offset, &writer.buffer);
        self.fatal("write to the log", written)?;
        writer.offset = end;
        writer.previous = checksum;
        Ok(())
    }

    fn sync_writer(&self, writer: &mut Writer) -> Result<(), LogError> {
        let end = writer.position();
        if writer.synced == end {
            return Ok(());
        }
        let synced = writer.file().sync_data();
        self.fatal("sync the log", synced)?;
        writer.synced = end;
        let marked = writer.mark.write(end);
        self.fatal("write the log's mark", marked)?;
        if std::mem::take(&mut writer.sync_mark) {
            let synced = writer.mark.sync();
            self.fatal("sync the log's mark", synced)?;
        }
        Ok(())
    }

    /// Closes the active segment and begins the next one: a directory, then `tail`, both durable
    /// before the header makes the segment count. There is room for `more_bytes` behind that.
    fn begin_segment(
        &self,
        writer: &mut Writer,
        tail: &[Vec<Record>],
        more_bytes: u64,
    ) -> Result<(), LogError> {
        if writer.file.is_some() {
            self.sync_writer(writer)?;
        }
        let (dropped, directory) = {
            let mut index = self.index.write();
            if let Some(active) = index.segments.get_mut(&writer.segment) {
                active.end = writer.offset;
            }
            // Before a process knows what is applied, everything is pinned anyway.
            let keep_bytes = match self.has_followers.load(Ordering::Relaxed) {
                true => self.config.keep_bytes,
                false => 0,
            };
            let dropped = index.drop_segments(writer.segment, keep_bytes);
            (dropped, index.directory())
        };
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let tail_bytes: u64 = tail.iter().map(|batch| records_len(batch)).sum();
        let needed = FIRST_BATCH + batch_len(&directory) + tail_bytes + more_bytes;
        let taken = if needed > SEGMENT_BYTES_MAX {
            Err(io::Error::other("the directory of the log has grown too large"))
        } else {
            self.take_file(number, needed.max(self.config.segment_bytes))
        };
        let (file, len) = self.fatal("make a log segment", taken)?;
        let opened = SegmentFile { file: Arc::clone(&file), len, end: FIRST_BATCH };
        self.index.write().segments.insert(number, opened);
        writer.file = Some(file);
        (writer.segment, writer.len, writer.offset) = (number, len, FIRST_BATCH);
        self.write_drafts(writer, &directory)?;
        for batch in tail.iter().filter(|batch| !batch.is_empty()) {
            self.write_batch(writer, batch, Origin::Tail)?;
        }
        self.establish(writer)?;
        for number in dropped {
            self.set_aside(number)?;
        }
        self.trim_spares()
    }

    /// Makes the new segment durable, then makes it count.
    fn establish(&self, writer: &mut Writer) -> Result<(), LogError> {
        let end = writer.position();
        let synced = writer.file().sync_data();
        self.fatal("sync a new log segment", synced)?;
        let header = SegmentHeader { node_id: self.node_id, established: end.offset };
        let written = writer.file().write_at(0, &header.encode(self.salt, end.segment));
        self.fatal("write the header of a log segment", written)?;
        let synced = writer.file().sync_data();
        self.fatal("sync the header of a log segment", synced)?;
        writer.synced = end;
        // The durable mark is what tells a damaged header from a segment that was never finished.
        let marked = writer.mark.write(end).and_then(|()| writer.mark.sync());
        self.fatal("write the log's mark", marked)
    }

    /// Gives a spare, or a new file, the name of segment `number`. The name is durable before
    /// anything is written under it, so that no two files ever hold bytes of one number.
    fn take_file(&self, number: u64, len: u64) -> io::Result<(Arc<dyn DiskFile>, u64)> {
        let name = segment_name(number);
        let spare = {
            let mut spares = self.spares.lock();
            let found = spares.iter().position(|(_, spare)| *spare >= len);
            found.map(|found| spares.swap_remove(found))
        };
        let taken = match spare {
            Some((spare, len)) => {
                self.disk.rename(&spare_name(spare), &name)?;
                (self.disk.open(&name)?, len)
            }
            None => (self.disk.create(&name, len)?, len),
        };
        self.disk.sync_dir()?;
        Ok(taken)
    }

    /// Makes a segment that nothing durable counts on a spare.
    fn set_aside(&self, number: u64) -> Result<(), LogError> {
        let name = spare_name(number);
        let renamed = self.disk.rename(&segment_name(number), &name);
        let len = renamed.and_then(|()| self.disk.open(&name)?.len());
        let len = self.fatal("set a log segment aside", len)?;
        self.spares.lock().push((number, len));
        Ok(())
    }

    fn trim_spares(&self) -> Result<(), LogError> {
        let removed = {
            let mut spares = self.spares.lock();
            spares.retain(|(number, len)| {
                *len >= self.config.segment_bytes || self.disk.remove(&spare_name(*number)).is_err()
            });
            let keep = self.config.spare_segments.min(spares.len());
            spares.split_off(keep)
        };
        for (number, _) in removed {
            self.fatal("remove a spare log segment", self.disk.remove(&spare_name(number)))?;
        }
        Ok(())
    }

    fn recovered(&self, synced: Position) -> Recovered {
        let index = self.index.read();
        let replicas = index.replicas.iter().map(|(key, replica)| (*key, replica.recovered()));
        Recovered {
            replicas: replicas.collect(),
            tombstones: index.tombstones.clone(),
            checkpoint: index.checkpoint,
            holes: index.holes.clone(),
            synced,
        }
    }
}

// === reading ===

/// Up to this distance reading everything between two records costs less than reading the records
/// one by one.
const WINDOW_BYTES_MAX: u64 = 32 << 10;

/// A read of entries under way.
struct Reading {
    next: u64,
    high: u64,
    room_bytes: u64,
    found: Vec<LogEntry>,
}

impl Log {
    fn with_replica<T>(
        &self,
        key: ReplicaKey,
        look: impl FnOnce(&Replica) -> T,
    ) -> Result<T, LogError> {
        self.index.read().replicas.get(&key).map(look).ok_or(LogError::Unknown { key })
    }

    fn check_range(&self, key: ReplicaKey, low: u64, high: u64) -> Result<(), LogError> {
        self.with_replica(key, |replica| {
            let (first_index, last_index) = (replica.truncated.index + 1, replica.last);
            if low < first_index {
                return Err(LogError::Compacted { key, index: low, first_index });
            }
            if low.max(high) > last_index + 1 {
                return Err(LogError::Unavailable { key, index: low.max(high) - 1, last_index });
            }
            Ok(())
        })?
    }

    /// Reads from `reading.next` to the next waypoint or the end of the run: goes back from there
    /// along the chain of record headers, then forward through the bodies.
    fn read_chunk(&self, key: ReplicaKey, reading: &mut Reading) -> Result<(), LogError> {
        let wanted = reading.next;
        let damaged = || LogError::Damaged { key, index: wanted };
        let place = self.index.read().place(key, wanted).ok_or_else(damaged)?;
        let window = Window::open(&*place.file, place.lower, place.upper);
        let mut chain = Vec::new();
        let mut limit = place.last;
        let mut offset = place.upper;
        loop {
            let at = Position { segment: place.segment, offset: u64::from(offset) };
            let header = window.header(self.salt, at).ok_or_else(damaged)?;
            if header.kind != Kind::Entries || header.key != key {
                return Err(damaged());
            }
            let (first, last) = header.span();
            chain.push((at, header, limit.min(last)));
            if first <= wanted {
                break;
            }
            // A record replaces its first entry and everything behind that in all earlier ones.
            limit = limit.min(first - 1);
            if header.back == 0 || header.back >= offset {
                return Err(damaged());
            }
            offset = header.back;
        }
        for (at, header, limit) in chain.into_iter().rev() {
            let first = header.span().0;
            if limit < reading.next || reading.next >= reading.high {
                continue;
            }
            let record = window.record(self.salt, at, &header).ok_or_else(damaged)?;
            let Record::Entries { entries, .. } = record else {
                return Err(damaged());
            };
            for (index, entry) in (first..=limit).zip(entries) {
                if index >= reading.next {
                    reading.take(index, entry);
                }
            }
        }
        if reading.next == wanted { Err(damaged()) } else { Ok(()) }
    }
}

impl Reading {
    /// Takes an entry if there is room; else the reading is over.
    fn take(&mut self, index: u64, entry: Entry) {
        if index >= self.high {
            return;
        }
        let len = entry.data.len() as u64;
        if len > self.room_bytes && !self.found.is_empty() {
            self.high = index;
            return;
        }
        self.room_bytes = self.room_bytes.saturating_sub(len);
        let Entry { term, entry_type, data } = entry;
        self.found.push(LogEntry { index, term, entry_type, data });
        self.next = index + 1;
    }
}

// === impl Window ===

/// Reads of a segment. Where the records of a chain lie close together, as those of a lone group
/// do, they are read with one call instead of two for each.
struct Window<'a> {
    file: &'a dyn DiskFile,
    start: u64,
    /// What the file holds from `start` on; empty when that is not worth it.
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    /// Made for the records whose headers lie from `lower` to `upper`; no `lower` is known when it
    /// is 0.
    fn open(file: &'a dyn DiskFile, lower: u32, upper: u32) -> Self {
        let len = u64::from(upper.saturating_sub(lower));
        let worth = lower != 0 && (1..=WINDOW_BYTES_MAX).contains(&len);
        let mut bytes = vec![0; if worth { len as usize + RECORD_HEADER_BYTES } else { 0 }];
        let start = u64::from(lower);
        if file.read_at(start, &mut bytes).is_err() {
            // The parts that can be read are read for themselves.
            bytes.clear();
        }
        Self { file, start, bytes }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let begin = offset.checked_sub(self.start).map(|begin| begin as usize);
        let held = begin.and_then(|begin| self.bytes.get(begin..begin + buffer.len()));
        match held {
            Some(held) => buffer.copy_from_slice(held),
            None => self.file.read_at(offset, buffer).ok()?,
        }
        Some(())
    }

    fn header(&self, salt: Salt, at: Position) -> Option<RecordHeader> {
        let mut header = [0; RECORD_HEADER_BYTES];
        self.read_at(at.offset, &mut header)?;
        RecordHeader::decode(salt, at, &header)?.ok()
    }

    fn record(&self, salt: Salt, at: Position, header: &RecordHeader) -> Option<Record> {
        let mut body = vec![0; header.body_length as usize];
        self.read_at(u64::from(header.body_offset), &mut body)?;
        if !header.body_is_intact(salt, at, &body) {
            return None;
        }
        decode_record(header, &Bytes::from(body))
    }
}

// === impl Writer ===

impl Writer {
    fn position(&self) -> Position {
        Position { segment: self.segment, offset: self.offset }
    }

    fn file(&self) -> &dyn DiskFile {
        &**self.file.as_ref().expect("`Log::open` begins a segment before anything is written")
    }
}

// === impl Planned ===

impl Planned {
    fn empty() -> Self {
        Self { number: 0, back: 0, truncated: 0, last: 0 }
    }

    fn of(replica: &Replica, segment: u64) -> Self {
        Self {
            number: replica.number,
            back: replica.back(segment),
            truncated: replica.truncated.index,
            last: replica.last,
        }
    }

    fn check(&self, key: ReplicaKey, first_index: u64, count: usize) -> Result<(), LogError> {
        if count == 0 {
            return Err(LogError::Empty { key });
        }
        if first_index <= self.truncated {
            let first = self.truncated + 1;
            return Err(LogError::Compacted { key, index: first_index, first_index: first });
        }
        if first_index > self.last + 1 {
            return Err(LogError::Gap { key, first_index, last_index: self.last });
        }
        Ok(())
    }
}

// === impl Record ===

impl Record {
    /// Whose record it is. A tombstone has replica 0 of its group, a checkpoint group 0.
    pub fn key(&self) -> ReplicaKey {
        match self {
            Self::Entries { key, .. }
            | Self::HardState { key, .. }
            | Self::Restore { key, .. }
            | Self::Born { key, .. }
            | Self::Quarantine { key, .. }
            | Self::Install { key, .. } => *key,
            Self::Tombstone { group, .. } => ReplicaKey { group: *group, replica: 0 },
            Self::Checkpoint { .. } => ReplicaKey::default(),
        }
    }

    /// A copy that keeps no larger buffer alive.
    fn detached(&self) -> Self {
        let mut copy = self.clone();
        let own = |bytes: &mut Bytes| *bytes = Bytes::copy_from_slice(bytes);
        match &mut copy {
            Self::Restore { conf_state, .. } => own(conf_state),
            Self::Born { start, end, .. } => {
                own(start);
                own(end);
            }
            _ => {}
        }
        copy
    }
}

// === impl Replica ===

impl Replica {
    fn recovered(&self) -> RecoveredReplica {
        let harm = &self.harm;
        let extent = if harm.hard_state || harm.records {
            Some(DamageExtent::State)
        } else {
            (!harm.unreadable.is_empty()).then_some(DamageExtent::Entries)
        };
        RecoveredReplica {
            hard_state: self.hard_state,
            truncated: self.truncated,
            first_index: self.truncated.index + 1,
            last: IndexTerm { index: self.last, term: self.last_term() },
            lowest_intact: self.lowest_intact(),
            damage: extent.map(|extent| Damage { extent, reason: harm.reason.clone() }),
            controls: self.controls.iter().map(|(_, record)| record.clone()).collect(),
        }
    }
}

// === impl LogError ===

impl LogError {
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

// === impl Display ===

impl fmt::Display for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "replica {} of group {}", self.replica, self.group)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} offset {}", self.segment, self.offset)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let position = self.position();
        f.debug_struct("Log").field("node_id", &self.node_id).field("position", &position).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::os::OsDisk;
    use crate::disk::sim::SimDisk;

    const ONE: ReplicaKey = ReplicaKey { group: 1, replica: 10 };
    const TWO: ReplicaKey = ReplicaKey { group: 2, replica: 20 };

    fn config() -> LogConfig {
        LogConfig { segment_bytes: 16 << 10, keep_bytes: 0, spare_segments: 2, salt: 5 }
    }

    fn open(disk: &SimDisk) -> (Log, Recovered) {
        Log::open(Arc::new(disk.clone()), 1, config()).unwrap()
    }

    fn payload(index: u64, term: u64, len: usize) -> Bytes {
        let seed = [index as u8, (index >> 8) as u8, term as u8];
        seed.iter().copied().cycle().take(len).collect()
    }

    fn entries(key: ReplicaKey, first_index: u64, terms: &[u64], len: usize) -> Record {
        let entry = |(index, term): (u64, &u64)| Entry {
            term: *term,
            entry_type: 3,
            data: payload(index, *term, len),
        };
        let entries = (first_index..).zip(terms).map(entry).collect();
        Record::Entries { key, first_index, entries }
    }

    fn hard_state(key: ReplicaKey, term: u64) -> Record {
        Record::HardState { key, state: HardState { term, vote: 1, commit: term } }
    }

    /// Checks that the log reads `low..=high` as entries of these terms, with `len` bytes each.
    fn check(log: &Log, key: ReplicaKey, low: u64, terms: &[u64], len: usize) {
        let found = log.entries(key, low, low + terms.len() as u64, u64::MAX).unwrap();
        let expected = (low..).zip(terms).map(|(index, term)| {
            let data = payload(index, *term, len);
            LogEntry { index, term: *term, entry_type: 3, data }
        });
        assert_eq!(found, expected.collect::<Vec<_>>());
        for (index, term) in (low..).zip(terms) {
            assert_eq!(log.term(key, index).unwrap(), *term);
        }
    }

    /// Appends one-entry batches of 1,000 bytes until `segments` more segments have begun.
    fn fill(log: &Log, key: ReplicaKey, segments: u64) {
        let goal = log.position().segment + segments;
        while log.position().segment < goal {
            let next = log.last_index(key).map_or(1, |last| last + 1);
            log.append(&[entries(key, next, &[1], 1000)]).unwrap();
        }
        log.sync().unwrap();
    }

    fn restart(disk: Arc<dyn Disk>) {
        let (log, found) = Log::open(Arc::clone(&disk), 1, config()).unwrap();
        assert_eq!(found.replicas.len(), 0);
        let first = log.append(&[entries(ONE, 1, &[1, 1, 2], 10), hard_state(ONE, 2)]).unwrap();
        let second = log.append(&[entries(TWO, 1, &[7], 0), entries(ONE, 4, &[2], 300)]).unwrap();
        assert_eq!(first.end, second.start);
        assert_eq!(log.sync().unwrap(), second.end);
        check(&log, ONE, 1, &[1, 1, 2], 10);
        log.close().unwrap();
        drop(log);
        let (log, found) = Log::open(disk, 1, config()).unwrap();
        assert_eq!(found.synced, second.end);
        let one = &found.replicas[&ONE];
        assert_eq!(one.hard_state, HardState { term: 2, vote: 1, commit: 2 });
        assert_eq!((one.first_index, one.lowest_intact), (1, 1));
        assert_eq!((one.last, one.damage.as_ref()), (IndexTerm { index: 4, term: 2 }, None));
        check(&log, ONE, 1, &[1, 1, 2], 10);
        check(&log, ONE, 4, &[2], 300);
        check(&log, TWO, 1, &[7], 0);
    }

    #[test]
    fn a_simulated_log_is_read_back_after_a_restart() {
        restart(Arc::new(SimDisk::new()));
    }

    #[test]
    fn a_real_log_is_read_back_after_a_restart() {
        let path = std::env::temp_dir().join(format!("atoll-log-{}", std::process::id()));
        restart(Arc::new(OsDisk::open(&path).unwrap()));
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn one_sync_serves_all_batches_and_none_is_wasted() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        let before = disk.syncs();
        for group in 1..=20 {
            let key = ReplicaKey { group, replica: 1 };
            log.append(&[entries(key, 1, &[1], 10), hard_state(key, 1)]).unwrap();
        }
        log.sync().unwrap();
        log.sync().unwrap();
        assert_eq!(disk.syncs(), before + 1);
    }

    #[test]
    fn a_read_ends_at_its_byte_budget_but_returns_at_least_one_entry() {
        let (log, _) = open(&SimDisk::new());
        log.append(&[entries(ONE, 1, &[1, 1, 1, 1], 100)]).unwrap();
        log.append(&[entries(ONE, 5, &[1, 1], 100)]).unwrap();
        let count = |low, high, max| log.entries(ONE, low, high, max).unwrap().len();
        assert_eq!(count(1, 7, 0), 1);
        assert_eq!(count(2, 7, 200), 2);
        assert_eq!(count(2, 7, 450), 4);
        assert_eq!(count(2, 4, 450), 2);
        assert_eq!(count(1, 7, u64::MAX), 6);
        assert_eq!(count(7, 7, 100), 0);
        let beyond = log.entries(ONE, 6, 8, 0).unwrap_err();
        assert!(matches!(beyond, LogError::Unavailable { index: 7, last_index: 6, .. }));
        assert!(matches!(log.term(ONE, 7), Err(LogError::Unavailable { .. })));
        assert!(matches!(log.entries(TWO, 1, 2, 0), Err(LogError::Unknown { .. })));
    }

    #[test]
    fn an_overwritten_suffix_is_gone_and_the_entries_before_it_stay() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        for index in 1..=60 {
            log.append(&[entries(ONE, index, &[1], 10)]).unwrap();
        }
        log.append(&[entries(ONE, 25, &[2, 3], 10)]).unwrap();
        log.append(&[entries(ONE, 26, &[4], 10), entries(ONE, 27, &[4, 5], 10)]).unwrap();
        let mut terms = vec![1; 24];
        terms.extend([2, 4, 4, 5]);
        for low in 1..=28 {
            check(&log, ONE, low, &terms[low as usize - 1..], 10);
        }
        log.sync().unwrap();
        drop(log);
        let (log, found) = open(&disk);
        assert_eq!(found.replicas[&ONE].last, IndexTerm { index: 28, term: 5 });
        for low in 1..=28 {
            check(&log, ONE, low, &terms[low as usize - 1..], 10);
        }
    }

    #[test]
    fn a_refused_batch_changes_nothing() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        log.append(&[entries(ONE, 1, &[1, 1], 10)]).unwrap();
        log.append(&[Record::Tombstone { group: 2, lowest_replica: 21 }]).unwrap();
        let at = log.position();
        let gap = log.append(&[entries(ONE, 3, &[1], 9), entries(ONE, 5, &[1], 9)]).unwrap_err();
        assert!(matches!(gap, LogError::Gap { first_index: 5, last_index: 3, .. }));
        let empty = log.append(&[entries(ONE, 3, &[], 0)]).unwrap_err();
        assert!(matches!(empty, LogError::Empty { .. }));
        let buried = log.append(&[hard_state(TWO, 1)]).unwrap_err();
        assert!(matches!(buried, LogError::Tombstoned { lowest_replica: 21, .. }));
        let zero = log.append(&[entries(ONE, 0, &[1], 0)]).unwrap_err();
        assert!(matches!(zero, LogError::Compacted { .. }));
        assert_eq!(log.position(), at);
        check(&log, ONE, 1, &[1, 1], 10);
        log.append(&[entries(ONE, 3, &[1], 10)]).unwrap();
    }

    #[test]
    fn released_segments_are_recycled_and_the_truncation_point_is_remembered() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        log.append(&[hard_state(TWO, 9), entries(TWO, 1, &[8, 9], 10)]).unwrap();
        fill(&log, ONE, 4);
        assert_eq!((log.usage().segments, log.first_index(ONE).unwrap()), (5, 1));
        log.release(TWO, 2);
        log.release(ONE, 30);
        fill(&log, ONE, 1);
        let first = log.first_index(ONE).unwrap();
        assert!((2..=31).contains(&first), "whole segments up to the released index went");
        assert!(log.usage().segments < 6);
        assert_eq!(log.term(ONE, first - 1).unwrap(), 1);
        assert!(matches!(log.entries(ONE, 1, 9, 99), Err(LogError::Compacted { .. })));
        assert_eq!(log.first_index(TWO).unwrap(), 3);
        let last = log.last_index(ONE).unwrap();
        drop(log);
        let (log, found) = open(&disk);
        let (one, two) = (&found.replicas[&ONE], &found.replicas[&TWO]);
        assert_eq!((one.first_index, one.last.index, one.damage.as_ref()), (first, last, None));
        assert_eq!((two.truncated, two.last), (two.last, IndexTerm { index: 2, term: 9 }));
        assert_eq!((two.hard_state.term, two.damage.as_ref()), (9, None));
        check(&log, ONE, first, &vec![1; (last + 1 - first) as usize], 1000);
        log.append(&[entries(TWO, 3, &[9], 10)]).unwrap();
        check(&log, TWO, 3, &[9], 10);
    }

    #[test]
    fn entries_for_slow_followers_stay_within_their_budget() {
        let disk = SimDisk::new();
        let config = LogConfig { keep_bytes: 40 << 10, ..config() };
        let (log, _) = Log::open(Arc::new(disk.clone()), 1, config).unwrap();
        for _ in 0..8 {
            fill(&log, ONE, 1);
            log.release(ONE, log.last_index(ONE).unwrap());
        }
        assert_eq!(log.usage().segments, 3, "the active one, the last one, one for followers");
        let first = log.first_index(ONE).unwrap();
        assert!(first > 1 && log.entries(ONE, first, first + 1, 0).is_ok());
        // What pins its segment stays, however much there is, and then nothing only for followers.
        (0..4).for_each(|_| fill(&log, ONE, 1));
        assert_eq!(log.usage().segments, 5, "the active one and four that are pinned");
        assert!(log.first_index(ONE).unwrap() > first);
    }

    #[test]
    fn a_replica_that_does_not_apply_pins_only_its_own_segments() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        log.append(&[entries(TWO, 1, &[4, 4], 10)]).unwrap();
        for _ in 0..6 {
            fill(&log, ONE, 1);
            log.append(&[hard_state(TWO, log.position().segment)]).unwrap();
            log.release(ONE, log.last_index(ONE).unwrap());
        }
        fill(&log, ONE, 1);
        assert!(log.usage().segments <= 3);
        let term = log.position().segment - 1;
        drop(log);
        let (log, found) = open(&disk);
        let two = &found.replicas[&TWO];
        assert_eq!((two.hard_state.term, two.damage.as_ref()), (term, None));
        assert_eq!(found.replicas[&ONE].damage, None);
        check(&log, TWO, 1, &[4, 4], 10);
    }

    #[test]
    fn a_recycled_segment_never_shows_its_former_life() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        for _ in 0..12 {
            fill(&log, ONE, 1);
            log.release(ONE, log.last_index(ONE).unwrap());
        }
        let recycled = disk.list().unwrap().len();
        assert!(recycled <= 6, "two spares, the mark and the segments in use: {recycled}");
        // The active file is full of batches of the same shape at the same offsets.
        let last = log.last_index(ONE).unwrap();
        let synced = log.position();
        drop(log);
        for _ in 0..5 {
            let (log, found) = open(&disk);
            assert_eq!(found.replicas[&ONE].last.index, last);
            assert_eq!((found.replicas[&ONE].damage.as_ref(), found.holes.len()), (None, 0));
            assert!(log.position() > synced);
        }
    }

    #[test]
    fn records_in_effect_outlive_their_segments() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        let three = ReplicaKey { group: 3, replica: 30 };
        let key = Bytes::from_static(b"key");
        let conf_state = Bytes::from_static(b"conf");
        let born =
            Record::Born { key: TWO, parent: 1, index: 7, start: key.clone(), end: key, shelf: 2 };
        let install = Record::Install { key: three, shelf: 4 };
        let restore = Record::Restore { key: three, index: 50, term: 6, conf_state, shelf: 4 };
        let quarantine = Record::Quarantine { key: three, reason: "bad block".to_owned() };
        let start = log.position();
        log.append(&[born.clone(), hard_state(TWO, 1), install.clone()]).unwrap();
        log.append(&[entries(three, 1, &[1, 1], 10)]).unwrap();
        log.append(&[Record::Checkpoint { n: 9, start }]).unwrap();
        log.append(&[hard_state(ReplicaKey { group: 4, replica: 2 }, 1)]).unwrap();
        log.append(&[Record::Tombstone { group: 4, lowest_replica: 3 }]).unwrap();
        let advance = |log: &Log| {
            for _ in 0..4 {
                fill(log, ONE, 1);
                log.release(ONE, log.last_index(ONE).unwrap());
            }
        };
        advance(&log);
        drop(log);
        let (log, found) = open(&disk);
        assert_eq!(found.replicas[&TWO].controls, std::slice::from_ref(&born));
        assert_eq!(found.replicas[&three].controls, [install]);
        assert_eq!(found.checkpoint, Some(Checkpoint { n: 9, start }));
        assert_eq!(found.tombstones, BTreeMap::from([(4, 3)]));
        assert!(!found.replicas.contains_key(&ReplicaKey { group: 4, replica: 2 }));

        log.append(&[restore.clone(), hard_state(three, 6), quarantine.clone()]).unwrap();
        log.append(&[entries(three, 51, &[6], 10)]).unwrap();
        assert!(matches!(log.term(three, 49), Err(LogError::Compacted { .. })));
        assert_eq!(log.term(three, 50).unwrap(), 6);
        log.release(TWO, 0);
        advance(&log);
        drop(log);
        let (log, found) = open(&disk);
        assert!(found.replicas[&TWO].controls.is_empty());
        let restored = &found.replicas[&three];
        assert_eq!(restored.controls, [restore, quarantine.clone()]);
        assert_eq!(restored.truncated, IndexTerm { index: 50, term: 6 });
        check(&log, three, 51, &[6], 10);
        log.release(three, 50);
        advance(&log);
        drop(log);
        assert_eq!(open(&disk).1.replicas[&three].controls, [quarantine]);
    }

    #[test]
    fn a_failed_sync_is_final_and_the_restart_trusts_no_cached_page() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        log.append(&[entries(ONE, 1, &[1], 2000)]).unwrap();
        log.sync().unwrap();
        log.append(&[entries(ONE, 2, &[1], 2000)]).unwrap();
        disk.fail_next_sync();
        assert!(matches!(log.sync(), Err(LogError::Io { action: "sync the log", .. })));
        assert!(matches!(log.sync(), Err(LogError::Poisoned { .. })));
        assert!(matches!(log.append(&[hard_state(ONE, 1)]), Err(LogError::Poisoned { .. })));
        assert!(matches!(log.close(), Err(LogError::Poisoned { .. })));
        check(&log, ONE, 1, &[1], 2000);
        drop(log);
        // The process starts again on the same cache, which shows entry 2 although the disk has
        // nothing of it; then the power goes.
        let (log, found) = open(&disk);
        assert_eq!(found.replicas[&ONE].last.index, 2);
        drop(log);
        disk.crash(&mut |_| 0);
        let (log, found) = open(&disk);
        assert_eq!(found.replicas[&ONE].last.index, 2);
        check(&log, ONE, 1, &[1, 1], 2000);
    }

    #[test]
    fn a_full_disk_stops_the_log_but_not_a_spare_made_ahead() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        disk.set_capacity(Some(30 << 10));
        assert!(matches!(log.prepare_spare(Duration::ZERO), Err(LogError::Io { .. })));
        disk.set_capacity(Some(60 << 10));
        log.prepare_spare(Duration::ZERO).unwrap();
        log.prepare_spare(Duration::ZERO).unwrap();
        assert_eq!(log.usage().spares, 1);
        disk.set_capacity(Some(41 << 10));
        fill(&log, ONE, 1);
        let last = log.last_index(ONE).unwrap();
        let full = loop {
            let next = log.last_index(ONE).unwrap() + 1;
            if let Err(error) = log.append(&[entries(ONE, next, &[1], 1000)]) {
                break error;
            }
        };
        assert!(matches!(full, LogError::Io { action: "make a log segment", .. }));
        assert!(matches!(log.sync(), Err(LogError::Poisoned { .. })));
        drop(log);
        disk.set_capacity(None);
        disk.crash(&mut |_| 0);
        assert!(open(&disk).1.replicas[&ONE].last.index >= last);
    }

    #[test]
    fn a_batch_larger_than_a_segment_gets_a_segment_of_its_own() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        log.append(&[entries(ONE, 1, &[1], 100_000), entries(TWO, 1, &[1], 100_000)]).unwrap();
        log.append(&[entries(ONE, 2, &[1], 100)]).unwrap();
        log.sync().unwrap();
        drop(log);
        let (log, found) = open(&disk);
        assert_eq!(found.replicas[&ONE].damage, None);
        check(&log, ONE, 1, &[1], 100_000);
        check(&log, ONE, 2, &[1], 100);
        check(&log, TWO, 1, &[1], 100_000);
    }

    #[test]
    fn readers_beside_the_writer_see_right_entries_or_compaction() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        fill(&log, ONE, 1);
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while done.load(Ordering::Relaxed) == 0 {
                        let low = log.first_index(ONE).unwrap();
                        let high = log.last_index(ONE).unwrap() + 1;
                        match log.entries(ONE, low, high, 20_000) {
                            Ok(found) => {
                                for (index, entry) in (low..).zip(&found) {
                                    assert_eq!(entry.index, index);
                                    assert_eq!(entry.data, payload(index, 1, 1000));
                                }
                            }
                            Err(LogError::Compacted { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            for _ in 0..100 {
                fill(&log, ONE, 1);
                log.release(ONE, log.last_index(ONE).unwrap());
            }
            done.store(1, Ordering::Relaxed);
        });
    }
}
