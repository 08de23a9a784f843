//! What raft-rs reads of its log: entries in memory where they are young, the node's log
//! where they are old.
//!
//! Everything that was handed out to be persisted is shown as stored at once (raft-rs's
//! asynchronous mode asks for that); what of it is durable is counted elsewhere
//! (`group/core.rs`). An old entry that cannot be read is *compacted*, also when one of its large
//! values has gone meanwhile (`group/large.rs`): the follower that needed it gets a snapshot,
//! raft-rs would panic at any other error.

use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::large;
use crate::extents::Extents;
use crate::log::{Log, LogEntry, ReplicaKey};

/// Bytes of applied entries kept in memory for followers that are a little behind.
const KEEP_BYTES: usize = 1024 * 1024;

/// See the module.
pub struct GroupStorage {
    key: ReplicaKey,
    log: Arc<Log>,
    extents: Arc<Extents>,
    /// Nothing is applied before a snapshot: an old entry may have lost its values.
    hollow: bool,
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term before the first entry: the birth or the last restored snapshot.
    base: (u64, u64),
    /// The newest entries, without a gap, up to the last.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    last: (u64, u64),
    /// What a snapshot taken now stands for.
    applied: (u64, u64),
    /// Up to here entries are durable in the log.
    durable: u64,
}

/// Indexes and terms of what a start found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Before the first entry.
    pub base: (u64, u64),
    /// Of the last entry, or the base if there is none.
    pub last: (u64, u64),
    /// Of the last entry that the machine has applied.
    pub applied: (u64, u64),
}

impl GroupStorage {
    /// The log of a replica as found at start, with its large values in `extents`.
    pub fn new(
        key: ReplicaKey,
        log: Arc<Log>,
        extents: Arc<Extents>,
        hard_state: HardState,
        conf_state: ConfState,
        found: Found,
    ) -> GroupStorage {
        let Found { base, last, applied } = found;
        GroupStorage {
            key,
            log,
            extents,
            hollow: false,
            hard_state,
            conf_state,
            base,
            cache: VecDeque::new(),
            cache_bytes: 0,
            last,
            applied,
            durable: last.0,
        }
    }

    /// Until a snapshot comes nothing is applied, and values of old entries may be missing.
    pub fn set_hollow(&mut self) {
        self.hollow = true;
    }

    /// Takes new entries; a suffix they overlap goes.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index <= self.last.0 + 1, "entries are appended without a gap");
        while self.cache.back().is_some_and(|entry| entry.index >= first.index) {
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry.data.len();
            }
        }
        // What is left of the cache must touch the new entries; older ones are in the log.
        if self.cache.back().is_some_and(|entry| entry.index + 1 != first.index) {
            self.cache.clear();
            self.cache_bytes = 0;
        }
        self.durable = self.durable.min(first.index - 1);
        for entry in entries {
            self.cache_bytes += entry.data.len();
            self.last = (entry.index, entry.term);
            self.cache.push_back(entry.clone());
        }
    }

    /// Entries up to here are durable.
    pub fn set_durable(&mut self, index: u64) {
        self.durable = index.min(self.last.0);
    }

    /// Notes how far the machine is, and lets go of entries beyond the byte budget.
    pub fn set_applied(&mut self, index: u64, term: u64) {
        self.applied = (index, term);
        while self.cache_bytes > KEEP_BYTES
            && self
                .cache
                .front()
                .is_some_and(|entry| entry.index <= index.min(self.durable) && self.cache.len() > 1)
        {
            if let Some(entry) = self.cache.pop_front() {
                self.cache_bytes -= entry.data.len();
            }
        }
    }

    /// Lets go of all entries that are durable and applied: nobody is behind while a group rests, and the
    /// log has them. One that a peer sent keeps the whole message in memory, with what that had
    /// for other groups.
    pub fn slim(&mut self) {
        let index = self.applied.0.min(self.durable);
        let kept = self.cache.partition_point(|entry| entry.index <= index);
        for entry in self.cache.drain(..kept) {
            self.cache_bytes -= entry.data.len();
        }
        self.cache.shrink_to_fit();
    }

    /// How many entries are in memory.
    #[cfg(test)]
    pub fn cached(&self) -> usize {
        self.cache.len()
    }

    /// The hard state to be shown at a restart.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// The configuration as of the applied index.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// The log begins anew behind a snapshot.
    pub fn restore(&mut self, index: u64, term: u64, conf_state: ConfState) {
        self.cache.clear();
        self.cache_bytes = 0;
        self.base = (index, term);
        self.last = (index, term);
        self.applied = (index, term);
        self.durable = index;
        self.conf_state = conf_state;
        self.hollow = false;
    }

    /// An entry as it was before its large values were cut out.
    fn whole(&self, mut entry: LogEntry) -> Option<Entry> {
        let data = std::mem::take(&mut entry.data);
        match large::whole(&self.extents, entry.entry_type, data) {
            Some((entry_type, data)) => Some(from_log(LogEntry { entry_type, data, ..entry })),
            None if self.hollow => Some(from_log(LogEntry { entry_type: 0, ..entry })),
            None => None,
        }
    }

    fn first(&self) -> u64 {
        let kept = self.log.first_index(self.key).unwrap_or(0);
        let cached = self.cache.front().map_or(u64::MAX, |entry| entry.index);
        // A log without entries of this replica has no first index; then the base counts.
        let first = if kept == 0 { cached.min(self.last.0 + 1) } else { kept.min(cached) };
        first.max(self.base.0 + 1)
    }
}

fn from_log(entry: LogEntry) -> Entry {
    let mut out = Entry::default();
    out.set_entry_type(match entry.entry_type {
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => EntryType::EntryNormal,
    });
    out.index = entry.index;
    out.term = entry.term;
    if entry.entry_type == 0 {
        out.data = entry.data;
    } else {
        (out.data, out.context) = super::wire::split_tail(entry.data);
    }
    out
}

impl Storage for GroupStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max = max_size.into().unwrap_or(u64::MAX);
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        assert!(high <= self.last.0 + 1, "entries above the last index are not asked for");
        let cached = self.cache.front().map_or(high, |entry| entry.index);
        let mut out = Vec::new();
        let mut bytes = 0u64;
        if low < cached {
            let to = high.min(cached);
            let old = self.log.entries(self.key, low, to, max);
            let Ok(old) = old else { return Err(StorageError::Compacted.into()) };
            if old.first().is_none_or(|entry| entry.index != low) {
                return Err(StorageError::Compacted.into());
            }
            for entry in old {
                bytes += large::whole_len(entry.entry_type, &entry.data) as u64;
                if bytes > max && !out.is_empty() {
                    return Ok(out);
                }
                match self.whole(entry) {
                    Some(entry) => out.push(entry),
                    None if out.is_empty() => return Err(StorageError::Compacted.into()),
                    None => return Ok(out),
                }
            }
            // A short answer is a prefix: the size limit was reached.
            if out.last().is_none_or(|entry| entry.index + 1 < to) || to == high {
                return Ok(out);
            }
        }
        let skip = low.saturating_sub(cached) as usize;
        for entry in self.cache.iter().skip(skip).take_while(|entry| entry.index < high) {
            bytes += entry.data.len() as u64;
            if bytes > max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index == self.last.0 {
            return Ok(self.last.1);
        }
        if index == self.applied.0 {
            return Ok(self.applied.1);
        }
        if index > self.last.0 {
            return Err(StorageError::Unavailable.into());
        }
        if let Some(front) = self.cache.front()
            && index >= front.index
            && let Some(entry) = self.cache.get((index - front.index) as usize)
        {
            return Ok(entry.term);
        }
        match self.log.term(self.key, index) {
            Ok(term) => Ok(term),
            Err(_) => Err(StorageError::Compacted.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.applied.0 < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        meta.index = self.applied.0;
        meta.term = self.applied.1;
        meta.set_conf_state(self.conf_state.clone());
        Ok(snapshot)
    }
}
