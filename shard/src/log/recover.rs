//! Reads the log after a start and tells a torn tail from damage.
//!
//! `D` is the highest position of which anything valid says that it was synced: the mark, the
//! `synced` field of any batch, the `established` field of a segment header.
//!
//! ```text
//!   older live segments      newest established segment         never finished
//!   [........ end]  ...      [ directory | batch batch | batch bat ]  [ ... ]
//!                                                      D       ^
//!    before D: damage, go on behind it                 |  the first bad batch and
//!                                                      |  all behind it is cut off
//! ```
//!
//! A damaged body harms the replica that its header names. A damaged header may have been
//! anybody's: such a *hole* harms every replica that is not shown complete by a later record or
//! directory with the record number that follows.
//!
//! The valid batches behind `D` are given back as a tail: the caller writes them again into a fresh
//! segment, because the cache from which they were read may hold what the disk never got.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use super::index::{Index, Listed, NodeState, SegmentFile};
use super::record::{Kind, RecordHeader, decode_record, record_position};
use super::segment::{
    BatchHeader, FIRST_BATCH, HEADER_BYTES, RECORD_HEADER_BYTES, Salt, SegmentHeader, SegmentRole,
    padded, parse_name, segment_name, spare_name,
};
use super::{Hole, LogError, Position, Record};
use crate::disk::Disk;

/// What was found, before the fresh segment is written.
pub(super) struct Recovery {
    /// State at the end of what was certainly synced.
    pub(super) index: Index,
    /// Whole batches behind it, in order.
    pub(super) tail: Vec<Vec<Record>>,
    /// `D`.
    pub(super) synced: Position,
    /// A segment number above all that were ever used.
    pub(super) next_number: u64,
    /// Files to recycle, under their names as spares: number and length.
    pub(super) spares: Vec<(u64, u64)>,
    /// Segments that count for nothing any more. What says so may be only in the cache, so they
    /// are set aside after the fresh segment is durable.
    pub(super) dead: BTreeSet<u64>,
}

/// Which disk, and how its log is sealed.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) salt: Salt,
    pub(super) node_id: u64,
}

impl Source<'_> {
    /// Reads the log and changes nothing.
    pub(super) fn recover(self, mark: Option<Position>) -> Result<Recovery, LogError> {
        let (files, spares) = self.files()?;
        let mark = mark.unwrap_or_default();
        let used = files.last().copied().max(spares.last().copied()).unwrap_or(0);
        let (newest, synced) = self.newest(&files, mark)?;
        let mut replay = Replay::new(self.salt);
        let mut tail = Vec::new();
        let mut live = BTreeSet::new();
        if let Some(newest) = &newest {
            live = self.replay_older(newest, &files, &mut replay)?;
            live.insert(newest.number);
            tail = self.replay_newest(newest, synced, &mut replay)?;
        }
        if newest.as_ref().is_none_or(|newest| newest.number < synced.segment) && synced.segment > 0
        {
            replay.hole(synced.segment, 0..synced.offset);
        }
        replay.finish();
        let mut lengths = Vec::with_capacity(spares.len());
        for number in spares {
            let file = self.disk.open(&spare_name(number)).and_then(|file| file.len());
            lengths.push((number, file.map_err(LogError::io("look at a spare log segment"))?));
        }
        Ok(Recovery {
            index: replay.index,
            tail,
            synced,
            next_number: used.max(synced.segment) + 1,
            spares: lengths,
            dead: files.difference(&live).copied().collect(),
        })
    }

    /// Numbers of the segments and of the spares.
    fn files(self) -> Result<(BTreeSet<u64>, BTreeSet<u64>), LogError> {
        let names = self.disk.list().map_err(LogError::io("list the log directory"))?;
        let (mut files, mut spares) = (BTreeSet::new(), BTreeSet::new());
        for (role, number) in names.iter().filter_map(|name| parse_name(name)) {
            match role {
                SegmentRole::Log => files.insert(number),
                SegmentRole::Spare => spares.insert(number),
            };
        }
        Ok((files, spares))
    }

    fn load(self, number: u64) -> Result<Loaded, LogError> {
        self.load_into(number, Vec::new())
    }

    /// Reads a whole segment into `buffer`, whatever that held. A new buffer for each segment costs
    /// as much as reading it, because the system hands out its pages one by one.
    fn load_into(self, number: u64, mut buffer: Vec<u8>) -> Result<Loaded, LogError> {
        let read = || {
            let file = self.disk.open(&segment_name(number))?;
            buffer.resize(file.len()? as usize, 0);
            file.read_at(0, &mut buffer)?;
            Ok(Bytes::from(buffer))
        };
        let bytes = read().map_err(LogError::io("read a log segment"))?;
        Ok(Loaded { salt: self.salt, number, bytes })
    }

    /// Finds the newest segment that was finished, and `D`.
    fn newest(
        self,
        files: &BTreeSet<u64>,
        mark: Position,
    ) -> Result<(Option<Loaded>, Position), LogError> {
        let mut synced = mark;
        let mut newest = None;
        let mut foreign = None;
        for number in files.iter().rev() {
            let segment = self.load(*number)?;
            if SegmentHeader::was_written(*number, &segment.bytes) {
                foreign = Some(*number);
            }
            let header = SegmentHeader::decode(self.salt, *number, self.node_id, &segment.bytes)?;
            synced = synced.max(segment.evidence());
            if let Some(header) = header {
                let offset = header.established;
                synced = synced.max(Position { segment: *number, offset });
                newest = Some(segment);
                break;
            }
        }
        let found = newest.as_ref().map_or(0, |segment| segment.number);
        if synced.segment > found && files.contains(&synced.segment) {
            // Its header was written, or nobody could have synced batches in it.
            newest = Some(self.load(synced.segment)?);
        }
        if let (None, Some(segment)) = (&newest, foreign) {
            // To begin an empty log over this one would destroy it.
            return Err(LogError::Unreadable { segment });
        }
        Ok((newest, synced))
    }

    /// Replays what lies before the newest segment and returns the numbers of the live segments.
    fn replay_older(
        self,
        newest: &Loaded,
        files: &BTreeSet<u64>,
        replay: &mut Replay,
    ) -> Result<BTreeSet<u64>, LogError> {
        let mut live: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        if let Some(node) = newest.node_state()? {
            live.extend(node.segments.iter().map(|(number, end)| (*number, Some(*end))));
        } else {
            live.extend(files.range(..newest.number).map(|number| (*number, None)));
        }
        let mut numbers = BTreeSet::new();
        let mut buffer = Vec::new();
        for (number, end) in live {
            if !files.contains(&number) {
                replay.hole(number, 0..end.unwrap_or(0));
                continue;
            }
            let segment = self.load_into(number, std::mem::take(&mut buffer))?;
            let limit = end.map_or(Limit::Unknown, Limit::Known);
            let end = replay.segment(&segment, limit)?;
            self.open_live(&segment, end, replay)?;
            numbers.insert(number);
            buffer = Vec::from(segment.bytes);
        }
        Ok(numbers)
    }

    fn replay_newest(
        self,
        newest: &Loaded,
        synced: Position,
        replay: &mut Replay,
    ) -> Result<Vec<Vec<Record>>, LogError> {
        if synced.segment != newest.number {
            let end = replay.segment(newest, Limit::Unknown)?;
            self.open_live(newest, end, replay)?;
            return Ok(Vec::new());
        }
        replay.segment(newest, Limit::Known(synced.offset))?;
        self.open_live(newest, synced.offset, replay)?;
        replay.tail(newest, synced.offset)
    }

    fn open_live(self, segment: &Loaded, end: u64, replay: &mut Replay) -> Result<(), LogError> {
        let file = self
            .disk
            .open(&segment_name(segment.number))
            .map_err(LogError::io("open a log segment"))?;
        let len = segment.bytes.len() as u64;
        replay.index.segments.insert(segment.number, SegmentFile { file, len, end });
        Ok(())
    }
}

/// Where the batches of a segment end.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// Everything before this offset was synced.
    Known(u64),
    /// At the last batch that validates.
    Unknown,
}

// === impl Loaded ===

/// A segment in memory.
struct Loaded {
    salt: Salt,
    number: u64,
    bytes: Bytes,
}

impl Loaded {
    fn at(&self, offset: u64) -> Position {
        Position { segment: self.number, offset }
    }

    fn slice(&self, range: Range<u64>) -> Option<Bytes> {
        let range = range.start as usize..range.end as usize;
        self.bytes.get(range.clone())?;
        Some(self.bytes.slice(range))
    }

    fn batch(&self, offset: u64) -> Option<(BatchHeader, u32)> {
        BatchHeader::decode(self.salt, self.at(offset), &self.bytes)
    }

    /// Offset of the first valid batch in `range`.
    fn next_batch(&self, range: Range<u64>) -> Option<u64> {
        let mut offsets = (padded(range.start)..range.end).step_by(8);
        offsets.find(|offset| self.batch(*offset).is_some())
    }

    fn record(&self, at: Position) -> Result<Option<RecordHeader>, LogError> {
        let end = at.offset + RECORD_HEADER_BYTES as u64;
        let Some(header) = self.slice(at.offset..end) else {
            return Ok(None);
        };
        match RecordHeader::decode(self.salt, at, &header) {
            None => Ok(None),
            Some(Ok(header)) => Ok(Some(header)),
            Some(Err(unknown)) => Err(LogError::UnknownRecord {
                segment: at.segment,
                offset: at.offset,
                kind: unknown.kind,
                flags: unknown.flags,
            }),
        }
    }

    /// The record headers of the batch at `offset`, `None` where one is damaged.
    fn table(&self, offset: u64, count: u32) -> Result<Vec<Option<RecordHeader>>, LogError> {
        (0..count as usize)
            .map(|number| self.record(record_position(self.at(offset), number)))
            .collect()
    }

    /// The body of the record at `at`, if it is what was written.
    fn body(&self, at: Position, header: &RecordHeader) -> Option<Bytes> {
        let start = u64::from(header.body_offset);
        let body = self.slice(start..start + u64::from(header.body_length))?;
        header.body_is_intact(self.salt, at, &body).then_some(body)
    }

    /// The `node` record of the directory.
    fn node_state(&self) -> Result<Option<NodeState>, LogError> {
        let at = record_position(self.at(FIRST_BATCH), 0);
        let Some(header) = self.record(at)?.filter(|header| header.kind == Kind::Node) else {
            return Ok(None);
        };
        Ok(self.body(at, &header).and_then(|body| NodeState::decode(header.words, &body)))
    }

    /// Highest position of which a batch in this segment says that it was synced.
    fn evidence(&self) -> Position {
        let end = self.bytes.len() as u64;
        let mut synced = Position::default();
        let mut offset = FIRST_BATCH;
        while let Some(found) = self.next_batch(offset..end) {
            let Some((batch, _)) = self.batch(found) else {
                break;
            };
            synced = synced.max(batch.synced);
            offset = found + u64::from(batch.length);
        }
        synced
    }
}

// === impl Replay ===

/// Rebuilds the index record by record.
struct Replay {
    salt: Salt,
    index: Index,
    holes: Vec<Hole>,
    /// The segment replayed before this one.
    replayed: Option<u64>,
    /// Whether a segment that was recycled lay between that one and this one, which explains a
    /// jump of the record numbers.
    skipped: bool,
    /// Holes that the last directory lists.
    listed_holes: Vec<Hole>,
    /// Checksum of the last batch header, when nothing lies between it and what comes next.
    previous: Option<u32>,
}

impl Replay {
    fn new(salt: Salt) -> Self {
        let index = Index::default();
        Self {
            salt,
            index,
            holes: Vec::new(),
            replayed: None,
            skipped: true,
            listed_holes: Vec::new(),
            previous: None,
        }
    }

    fn hole(&mut self, segment: u64, range: Range<u64>) {
        let at = Position { segment, offset: range.start };
        let hole = Hole { at, len_bytes: range.end.saturating_sub(range.start) };
        self.holes.push(hole);
        self.index.holes.push(hole);
        self.previous = None;
    }

    fn hole_count(&self) -> u64 {
        self.holes.len() as u64
    }

    /// Replays the batches of one segment and returns where they end.
    fn segment(&mut self, segment: &Loaded, limit: Limit) -> Result<u64, LogError> {
        assert_eq!(self.salt, segment.salt, "a log has one salt");
        self.previous = None;
        self.skipped = false;
        let file_end = segment.bytes.len() as u64;
        let end = match limit {
            Limit::Known(end) => end,
            Limit::Unknown => file_end,
        };
        let mut offset = FIRST_BATCH;
        while offset < end {
            let batch = segment.batch(offset);
            let fits = batch.filter(|(batch, _)| offset + u64::from(batch.length) <= end);
            if let Some((batch, checksum)) = fits {
                if self.previous.is_some_and(|previous| previous != batch.previous) {
                    self.hole(segment.number, offset..offset);
                }
                let table = segment.table(offset, batch.records)?;
                self.table(segment, offset, &table);
                offset += u64::from(batch.length);
                self.previous = Some(checksum);
            } else if let Some(next) = self.salvage(segment, offset, end, limit)? {
                offset = next;
                self.previous = None;
            } else {
                return Ok(offset);
            }
        }
        self.replayed = Some(segment.number);
        Ok(offset.min(end))
    }

    /// Goes on behind a damaged batch header: with its records if their headers are there, else at
    /// the next batch that validates. `None` at an end that was not known.
    fn salvage(
        &mut self,
        segment: &Loaded,
        offset: u64,
        end: u64,
        limit: Limit,
    ) -> Result<Option<u64>, LogError> {
        let mut resume = offset + 8;
        let at = record_position(segment.at(offset), 0);
        if let Some(first) = segment.record(at)? {
            let table = segment.table(offset, first.after.saturating_add(1))?;
            self.table(segment, offset, &table);
            let table_bytes = table.len() * RECORD_HEADER_BYTES;
            resume = offset + (HEADER_BYTES + table_bytes) as u64;
            if table.iter().all(Option::is_some) {
                let bodies = table
                    .iter()
                    .flatten()
                    .map(|header| u64::from(header.body_offset) + u64::from(header.body_length));
                return Ok(Some(padded(bodies.fold(resume, u64::max))));
            }
        }
        let next = segment.next_batch(resume..end);
        if next.is_none() && matches!(limit, Limit::Unknown) {
            self.replayed = Some(segment.number);
            return Ok(None);
        }
        let next = next.unwrap_or(end);
        self.hole(segment.number, offset..next);
        Ok(Some(next))
    }

    /// Replays the records of the batch at `offset`.
    fn table(&mut self, segment: &Loaded, offset: u64, table: &[Option<RecordHeader>]) {
        let position = |number| record_position(segment.at(offset), number);
        let hole = |at: Position| at.offset..at.offset + RECORD_HEADER_BYTES as u64;
        if offset == FIRST_BATCH {
            // The order of a directory means nothing, and whom the rest of it lists is complete.
            for (number, _) in table.iter().enumerate().filter(|(_, header)| header.is_none()) {
                self.hole(segment.number, hole(position(number)));
            }
        }
        let holes = self.hole_count();
        for (number, header) in table.iter().enumerate() {
            let at = position(number);
            match header {
                Some(header) => self.record(at, header, segment.body(at, header)),
                None if offset != FIRST_BATCH => self.hole(at.segment, hole(at)),
                None => {}
            }
        }
        if offset == FIRST_BATCH {
            let listed_holes = std::mem::take(&mut self.listed_holes);
            let complete = table.iter().all(Option::is_some);
            if complete {
                // Who is not listed was removed, even if the list of tombstones is damaged.
                let states = table.iter().flatten().filter(|header| header.kind == Kind::State);
                let listed: BTreeSet<_> = states.map(|header| header.key).collect();
                self.index.replicas.retain(|key, _| listed.contains(key));
            }
            if complete && holes == self.hole_count() {
                // Nothing that an older hole swallowed can be missing in this directory.
                self.index.holes = listed_holes;
            } else {
                self.index.holes.extend(listed_holes);
            }
        }
    }

    /// Replays one record; `body` is `None` when it is damaged.
    fn record(&mut self, at: Position, header: &RecordHeader, body: Option<Bytes>) {
        match header.kind {
            Kind::Node => self.node(at, header, body),
            Kind::State => self.state(at, header, body),
            Kind::Tombstone | Kind::Checkpoint => {
                if let Some(record) = body.and_then(|body| decode_record(header, &body)) {
                    self.index.apply(&record, 0, at);
                }
            }
            _ if self.index.is_buried(header.key) => {}
            _ => {
                let holes = self.hole_count();
                let replica = self.index.replicas.entry(header.key).or_default();
                if header.number <= replica.number {
                    return;
                }
                if header.number > replica.number + 1 {
                    let (known, number) = (replica.number, header.number);
                    replica
                        .lose_records(number, format!("records {known} to {number} are missing"));
                }
                replica.holes = holes;
                match body.and_then(|body| decode_record(header, &body)) {
                    Some(record) => self.index.apply(&record, header.number, at),
                    None => self.damaged(at, header),
                }
            }
        }
    }

    fn node(&mut self, at: Position, header: &RecordHeader, body: Option<Bytes>) {
        match body.and_then(|body| NodeState::decode(header.words, &body)) {
            Some(node) => {
                let before = node.segments.keys().next_back().copied();
                self.skipped = self.replayed.is_none() || before != self.replayed;
                self.index.checkpoint = node.checkpoint;
                self.listed_holes = node.holes;
                for (group, lowest) in node.tombstones {
                    self.index.bury(group, lowest);
                }
            }
            None => self.hole(at.segment, at.offset..at.offset + u64::from(header.body_length)),
        }
    }

    fn state(&mut self, at: Position, header: &RecordHeader, body: Option<Bytes>) {
        let holes = self.hole_count();
        let skipped = self.skipped;
        let listed =
            body.and_then(|body| Listed::decode(header.key, header.number, header.words, &body));
        let replica = self.index.replicas.entry(header.key).or_default();
        let Some(listed) = listed else {
            replica.harm.records = true;
            replica.harm.blame(|| format!("the directory at {at} is damaged"));
            replica.number = header.number;
            let [term, vote, commit] = header.words;
            replica.hard_state = super::HardState { term, vote, commit };
            return;
        };
        let known = replica.number;
        let jumped = known > 0 && known < listed.number && !(skipped && replica.holes == holes);
        let gap = jumped.then(|| format!("records {known} to {} are missing", listed.number));
        replica.resync(listed, gap);
        replica.holes = holes;
    }

    /// Does what is left of a record whose body is lost.
    fn damaged(&mut self, at: Position, header: &RecordHeader) {
        let (key, number) = (header.key, header.number);
        let reason = format!("a record at {at} is damaged");
        let [term, index, shelf] = header.words;
        match header.kind {
            Kind::Restore => {
                let conf_state = Bytes::new();
                let record = Record::Restore { key, index, term, conf_state, shelf };
                self.index.apply(&record, number, at);
            }
            Kind::Quarantine => {
                let record = Record::Quarantine { key, reason: reason.clone() };
                self.index.apply(&record, number, at);
            }
            _ => {}
        }
        let Some(replica) = self.index.replicas.get_mut(&key) else {
            return;
        };
        replica.number = number;
        if header.kind == Kind::Entries {
            let (first, last) = header.span();
            replica.append_unreadable(first, last, term, reason);
        } else {
            replica.harm.records = true;
            replica.harm.blame(|| reason);
        }
    }

    /// Reads the batches behind `offset` up to the first bad one.
    fn tail(&mut self, segment: &Loaded, offset: u64) -> Result<Vec<Vec<Record>>, LogError> {
        let mut offset = offset;
        let mut tail = Vec::new();
        let mut seen = BTreeSet::new();
        while let Some((batch, checksum)) = segment.batch(offset) {
            if self.previous.is_some_and(|previous| previous != batch.previous) {
                break;
            }
            let table = segment.table(offset, batch.records)?;
            let mut records = Vec::with_capacity(table.len());
            for (number, header) in table.iter().enumerate() {
                let at = record_position(segment.at(offset), number);
                let Some(header) = header else { break };
                let body = segment.body(at, header);
                let Some(record) = body.and_then(|body| decode_record(header, &body)) else {
                    break;
                };
                records.push((*header, record));
            }
            if records.len() != table.len() {
                break;
            }
            tail.push(
                records
                    .into_iter()
                    .filter_map(|(header, record)| {
                        self.expect_number(&header, &mut seen).then_some(record)
                    })
                    .collect(),
            );
            offset += u64::from(batch.length);
            self.previous = Some(checksum);
        }
        Ok(tail)
    }

    /// Looks for a gap before a replica's first record in the tail; false for a record that was
    /// replayed already.
    fn expect_number(
        &mut self,
        header: &RecordHeader,
        seen: &mut BTreeSet<super::ReplicaKey>,
    ) -> bool {
        if self.index.is_buried(header.key) {
            return header.number == 0;
        }
        if header.number == 0 || !seen.insert(header.key) {
            return true;
        }
        let holes = self.hole_count();
        let replica = self.index.replicas.entry(header.key).or_default();
        if header.number <= replica.number {
            seen.remove(&header.key);
            return false;
        }
        if header.number > replica.number + 1 {
            let (known, number) = (replica.number, header.number);
            replica.lose_records(number, format!("records {known} to {number} are missing"));
        }
        replica.holes = holes;
        true
    }

    /// Blames the holes for everything that is not shown complete.
    fn finish(&mut self) {
        let holes = self.hole_count();
        let Some(first) = self.holes.first() else {
            return;
        };
        for replica in self.index.replicas.values_mut() {
            if replica.holes < holes {
                replica.harm.hard_state = true;
                replica.harm.records = true;
                replica.harm.blame(|| {
                    format!("damage of {} bytes at {} may hide records", first.len_bytes, first.at)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{
        Checkpoint, DamageExtent, Entry, HardState, Log, LogConfig, Recovered, ReplicaKey,
    };
    use super::*;
    use crate::disk::sim::{SECTOR_BYTES, SimDisk};

    fn config() -> LogConfig {
        LogConfig { segment_bytes: 12 << 10, keep_bytes: 20 << 10, spare_segments: 1, salt: 5 }
    }

    fn open(disk: &SimDisk) -> Result<(Log, Recovered), LogError> {
        Log::open(Arc::new(disk.clone()), 1, config())
    }

    fn key(group: u64) -> ReplicaKey {
        ReplicaKey { group, replica: 1 }
    }

    // === the model ===

    /// What a log means, in the simplest form.
    #[derive(Debug, Clone, PartialEq, Default)]
    struct Model {
        replicas: BTreeMap<ReplicaKey, ModelReplica>,
        tombstones: BTreeMap<u64, u64>,
        checkpoint: Option<Checkpoint>,
    }

    #[derive(Debug, Clone, PartialEq, Default)]
    struct ModelReplica {
        hard_state: HardState,
        /// Index of the last restore.
        base: u64,
        applied: u64,
        entries: BTreeMap<u64, Entry>,
        quarantine: Option<String>,
        install: Option<u64>,
    }

    impl ModelReplica {
        fn last(&self) -> u64 {
            self.entries.keys().next_back().copied().unwrap_or(self.base)
        }
    }

    impl Model {
        fn apply(&mut self, record: &Record) {
            match record {
                Record::Tombstone { group, lowest_replica } => {
                    let lowest = self.tombstones.entry(*group).or_default();
                    *lowest = *lowest_replica.max(lowest);
                    let lowest = *lowest;
                    self.replicas.retain(|key, _| key.group != *group || key.replica >= lowest);
                    return;
                }
                Record::Checkpoint { n, start } => {
                    self.checkpoint = Some(Checkpoint { n: *n, start: *start });
                    return;
                }
                _ => {}
            }
            let replica = self.replicas.entry(record.key()).or_default();
            match record {
                Record::Entries { first_index, entries, .. } => {
                    replica.entries.split_off(first_index);
                    replica.entries.extend((*first_index..).zip(entries.iter().cloned()));
                }
                Record::HardState { state, .. } => replica.hard_state = *state,
                Record::Restore { index, .. } => {
                    replica.base = *index;
                    replica.entries.clear();
                    replica.install = None;
                }
                Record::Quarantine { reason, .. } => replica.quarantine = Some(reason.clone()),
                Record::Install { shelf, .. } => replica.install = Some(*shelf),
                _ => {}
            }
        }

        /// Compares a replica without damage with what the log says and reads.
        fn check_replica(
            &self,
            log: &Log,
            found: &Recovered,
            key: ReplicaKey,
        ) -> Result<(), String> {
            let model = &self.replicas[&key];
            let replica = found.replicas.get(&key).ok_or(format!("{key} is missing"))?;
            if replica.damage.is_some() {
                return Err(format!("{key} is damaged: {:?}", replica.damage));
            }
            let last = model.last();
            if replica.hard_state != model.hard_state || replica.last.index != last {
                return Err(format!("{key}: {replica:?} instead of {model:?}"));
            }
            if replica.lowest_intact != replica.first_index
                || replica.first_index > model.applied.max(model.base) + 1
            {
                return Err(format!("{key}: begins at {}", replica.first_index));
            }
            self.check_entries(log, key, replica.first_index, last)?;
            let before = replica.first_index - 1;
            let term = log.term(key, before).map_err(|error| error.to_string())?;
            if model.entries.get(&before).is_some_and(|entry| entry.term != term) {
                return Err(format!("{key}: the term before the first entry is {term}"));
            }
            let quarantine = model.quarantine.clone();
            let wanted = quarantine.map(|reason| Record::Quarantine { key, reason });
            let install = model.install.map(|shelf| Record::Install { key, shelf });
            for wanted in wanted.iter().chain(&install) {
                if !replica.controls.contains(wanted) {
                    return Err(format!("{key}: {wanted:?} is missing"));
                }
            }
            Ok(())
        }

        fn check_entries(
            &self,
            log: &Log,
            key: ReplicaKey,
            first: u64,
            last: u64,
        ) -> Result<(), String> {
            let read = log.entries(key, first, last + 1, u64::MAX);
            let read = read.map_err(|error| format!("{key} from {first}: {error}"))?;
            let right = read.iter().all(|entry| {
                self.replicas[&key]
                    .entries
                    .get(&entry.index)
                    .is_some_and(|wanted| (wanted.term, &wanted.data) == (entry.term, &entry.data))
            });
            if right && read.len() as u64 == last + 1 - first {
                Ok(())
            } else {
                Err(format!("{key} from {first}: {} of {last} entries", read.len()))
            }
        }

        fn check(&self, log: &Log, found: &Recovered) -> Result<(), String> {
            if found.tombstones != self.tombstones || found.checkpoint != self.checkpoint {
                return Err("tombstones or checkpoint".to_owned());
            }
            let keys: Vec<_> = self.replicas.keys().collect();
            if found.replicas.keys().collect::<Vec<_>>() != keys || !found.holes.is_empty() {
                return Err(format!("{keys:?} instead of {:?}", found.replicas.keys()));
            }
            keys.into_iter().try_for_each(|key| self.check_replica(log, found, *key))
        }
    }

    // === random work ===

    /// SplitMix64: the test needs repeatable numbers, not good ones.
    struct Rng(u64);

    impl Rng {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }

        /// A batch that the log accepts in the state `model`, which it is also applied to.
        fn batch(&mut self, model: &mut Model) -> Vec<Record> {
            let mut batch = Vec::new();
            for _ in 0..=self.below(3) {
                let record = self.record(model);
                model.apply(&record);
                let over = matches!(record, Record::Tombstone { .. });
                batch.push(record);
                if over {
                    break;
                }
            }
            batch
        }

        fn record(&mut self, model: &Model) -> Record {
            let group = 1 + self.below(5);
            let replica = model.tombstones.get(&group).copied().unwrap_or(1);
            let key = ReplicaKey { group, replica };
            let known = model.replicas.get(&key).cloned().unwrap_or_default();
            let last = known.last();
            match self.below(24) {
                0 => Record::Tombstone { group, lowest_replica: replica + 1 },
                1 => Record::Checkpoint { n: self.below(99), start: Position::default() },
                2 => Record::Quarantine { key, reason: "why".to_owned() },
                3 => Record::Install { key, shelf: self.below(99) },
                4 => Record::Restore {
                    key,
                    index: last + self.below(9),
                    term: 1,
                    conf_state: Bytes::from_static(b"c"),
                    shelf: 1,
                },
                5..=9 => {
                    let state =
                        HardState { term: self.below(99), vote: self.below(3), commit: last };
                    Record::HardState { key, state }
                }
                _ => {
                    let lowest = known.applied.max(known.base) + 1;
                    let back = if self.below(4) == 0 { self.below(5) } else { 0 };
                    let first_index = (last + 1).saturating_sub(back).max(lowest);
                    let entries = (0..=self.below(4)).map(|_| {
                        let len = self.below(400) as usize;
                        let data = Bytes::from(vec![self.below(256) as u8; len]);
                        Entry { term: 1 + self.below(3), entry_type: 0, data }
                    });
                    Record::Entries { key, first_index, entries: entries.collect() }
                }
            }
        }
    }

    /// One run of random work with crashes against the model. `candidates` are the states that a
    /// crash may leave: the last synced one and those behind it.
    fn run(seed: u64) {
        let mut rng = Rng(seed);
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk).unwrap();
        let mut candidates = vec![Model::default()];
        for _ in 0..150 {
            let mut failed = false;
            match rng.below(20) {
                0..=9 => {
                    let mut next = candidates.last().unwrap().clone();
                    let batch = rng.batch(&mut next);
                    failed = log.append(&batch).is_err();
                    candidates.push(next);
                }
                10..=13 => {
                    failed = log.sync().is_err();
                    if !failed {
                        candidates.drain(..candidates.len() - 1);
                    }
                }
                14..=15 => {
                    // Only what is synced is ever applied.
                    let group = key(1 + rng.below(5)).group;
                    let synced = candidates.first().unwrap().clone();
                    for (key, replica) in synced.replicas.iter().filter(|(k, _)| k.group == group) {
                        let applied = replica.last() - rng.below(3).min(replica.last());
                        log.release(*key, applied);
                        for model in &mut candidates {
                            if let Some(model) = model.replicas.get_mut(key) {
                                model.applied = model.applied.max(applied);
                            }
                        }
                    }
                }
                16 => disk.halt_after(rng.below(25)),
                17 => disk.fail_next_sync(),
                18 => failed = true,
                _ => {
                    let _ = log.prepare_spare(std::time::Duration::ZERO);
                }
            }
            if failed {
                log = restart(&disk, &mut rng, &mut candidates, log, seed);
            }
        }
    }

    fn restart(
        disk: &SimDisk,
        rng: &mut Rng,
        candidates: &mut Vec<Model>,
        log: Log,
        seed: u64,
    ) -> Log {
        drop(log);
        loop {
            if rng.below(3) > 0 {
                disk.crash(&mut |bound| rng.below(bound));
            }
            if rng.below(3) == 0 {
                disk.halt_after(rng.below(12));
            }
            match open(disk) {
                Ok((log, found)) => {
                    let all = candidates.iter().map(|model| model.check(&log, &found));
                    let all: Vec<_> = all.collect();
                    let right = all.iter().rposition(Result::is_ok);
                    let right = right.unwrap_or_else(|| panic!("seed {seed}: {all:#?}"));
                    let now = candidates.swap_remove(right);
                    *candidates = vec![now];
                    return log;
                }
                // The disk stopped again, in the middle of the recovery.
                Err(LogError::Io { .. }) => disk.crash(&mut |bound| rng.below(bound)),
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
    }

    #[test]
    fn everything_synced_survives_crashes_at_any_point() {
        for seed in 0..60 {
            run(seed);
        }
    }

    // === tears and damage ===

    /// A log of several segments with everything synced, and what it means.
    fn sample() -> (SimDisk, Model) {
        let disk = SimDisk::new();
        let (log, _) = open(&disk).unwrap();
        let mut model = Model::default();
        let mut rng = Rng(3);
        for round in 0..40 {
            let batch = rng.batch(&mut model);
            log.append(&batch).unwrap();
            log.sync().unwrap();
            if round == 20 {
                for (key, replica) in &mut model.replicas {
                    replica.applied = replica.last() / 2;
                    log.release(*key, replica.applied);
                }
            }
        }
        (disk, model)
    }

    #[test]
    fn a_torn_last_batch_leaves_the_batches_before_it() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk).unwrap();
        let mut model = Model::default();
        let mut rng = Rng(8);
        for _ in 0..4 {
            log.append(&rng.batch(&mut model)).unwrap();
        }
        log.sync().unwrap();
        let synced = model.clone();
        let batch: Vec<_> = (0..3).flat_map(|_| rng.batch(&mut model)).collect();
        let place = log.append(&batch).unwrap();
        assert_eq!(place.start.segment, place.end.segment);
        let name = segment_name(place.start.segment);
        for offset in place.start.offset..=place.end.offset {
            for filler in [0x00, 0xa5] {
                let torn = disk.fork();
                let rest = vec![filler; (place.end.offset - offset) as usize];
                let mut old = vec![0; rest.len()];
                let file = torn.open(&name).unwrap();
                file.read_at(offset, &mut old).unwrap();
                file.write_at(offset, &rest).unwrap();
                let (log, found) = open(&torn).unwrap();
                // The padding, or bytes that happen to be the filler, may be all that was torn off.
                let whole = old.iter().all(|byte| *byte == filler);
                let padding = place.end.offset - offset < 8 && model.check(&log, &found).is_ok();
                let wanted = if whole || padding { &model } else { &synced };
                wanted.check(&log, &found).unwrap();
            }
        }
    }

    /// Opens a damaged log twice and checks that nothing is lost in silence. Returns whether any
    /// damage was reported.
    fn check_damaged(disk: &SimDisk, model: &Model, what: &str) -> bool {
        let mut reported = false;
        for _ in 0..2 {
            let (log, found) = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            reported |= !found.holes.is_empty();
            for key in model.replicas.keys() {
                let Some(replica) = found.replicas.get(key) else {
                    assert!(!found.holes.is_empty(), "{what}: {key} is lost in silence");
                    continue;
                };
                let Some(damage) = &replica.damage else {
                    let right = model.check_replica(&log, &found, *key);
                    right.unwrap_or_else(|error| panic!("{what}: {error}"));
                    continue;
                };
                reported = true;
                assert!(!damage.reason.is_empty(), "{what}: {key} has no reason");
                if damage.extent == DamageExtent::Entries {
                    let last = model.replicas[key].last();
                    assert_eq!(replica.last.index, last, "{what}: {key}");
                    assert_eq!(replica.hard_state, model.replicas[key].hard_state, "{what}");
                    let first = replica.lowest_intact;
                    assert!(first > replica.first_index, "{what}: {key}");
                    let right = model.check_entries(&log, *key, first, last);
                    right.unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
            let lost = found.tombstones != model.tombstones || found.checkpoint != model.checkpoint;
            assert!(!lost || !found.holes.is_empty(), "{what}: node state is lost in silence");
        }
        reported
    }

    #[test]
    fn a_flipped_bit_is_never_a_silent_loss() {
        let (disk, model) = sample();
        let (mut flips, mut reported) = (0, 0);
        for name in disk.list().unwrap() {
            let len = disk.open(&name).unwrap().len().unwrap();
            for offset in (0..len).step_by(31) {
                let damaged = disk.fork();
                damaged.flip_bit(&name, offset, (offset % 8) as u8).unwrap();
                flips += 1;
                let what = format!("{name} at {offset}");
                reported += u64::from(check_damaged(&damaged, &model, &what));
            }
        }
        assert!(reported * 10 > flips, "{reported} of {flips} flips hit something");
    }

    #[test]
    fn an_unreadable_sector_or_a_missing_file_is_never_a_silent_loss() {
        let (disk, model) = sample();
        for name in disk.list().unwrap() {
            let len = disk.open(&name).unwrap().len().unwrap();
            for offset in (0..len).step_by(SECTOR_BYTES as usize) {
                let damaged = disk.fork();
                let file = damaged.open(&name).unwrap();
                file.write_at(offset, &[0xee; SECTOR_BYTES as usize]).unwrap();
                check_damaged(&damaged, &model, &format!("{name} from {offset}"));
            }
            let damaged = disk.fork();
            damaged.remove(&name).unwrap();
            check_damaged(&damaged, &model, &format!("without {name}"));
        }
    }

    /// Two replicas, each with a record before and after the middle batch, which is `TWO`'s alone.
    fn three_batches(damage: impl FnOnce(&SimDisk, Position)) -> (Log, Recovered, SimDisk) {
        let disk = SimDisk::new();
        let (log, _) = open(&disk).unwrap();
        let entries = |group, first_index| {
            let entry = Entry { term: 1, entry_type: 0, data: Bytes::from_static(b"data") };
            Record::Entries { key: key(group), first_index, entries: vec![entry] }
        };
        log.append(&[entries(1, 1), entries(2, 1), entries(3, 1)]).unwrap();
        let middle = log.append(&[entries(2, 2)]).unwrap();
        log.append(&[entries(1, 2), entries(2, 3)]).unwrap();
        log.sync().unwrap();
        drop(log);
        damage(&disk, middle.start);
        let (log, found) = open(&disk).unwrap();
        (log, found, disk)
    }

    fn extents(found: &Recovered) -> Vec<Option<DamageExtent>> {
        let damage = found.replicas.values().map(|replica| replica.damage.as_ref());
        damage.map(|damage| damage.map(|damage| damage.extent)).collect()
    }

    #[test]
    fn a_damaged_body_harms_the_replica_it_belongs_to() {
        let (log, found, _) = three_batches(|disk, middle| {
            let body = (HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
            disk.flip_bit(&segment_name(middle.segment), middle.offset + body, 1).unwrap();
        });
        assert_eq!(extents(&found), [None, Some(DamageExtent::Entries), None]);
        assert_eq!(found.replicas[&key(2)].lowest_intact, 3);
        assert!(matches!(log.entries(key(2), 2, 4, 99), Err(LogError::Damaged { index: 2, .. })));
        assert_eq!(log.entries(key(2), 1, 4, 99).unwrap().len(), 1);
        assert!(found.holes.is_empty());
    }

    #[test]
    fn a_damaged_record_header_harms_whom_nothing_shows_complete() {
        let (log, found, disk) = three_batches(|disk, middle| {
            let header = middle.offset + HEADER_BYTES as u64;
            disk.flip_bit(&segment_name(middle.segment), header + 20, 1).unwrap();
        });
        let state = Some(DamageExtent::State);
        assert_eq!(extents(&found), [None, state, state]);
        assert_eq!(found.holes.len(), 1);
        drop(log);
        let (log, again) = open(&disk).unwrap();
        assert_eq!((extents(&again), &again.holes), (extents(&found), &found.holes));
        log.forget_holes();
        drop(log);
        assert_eq!(open(&disk).unwrap().1.holes.len(), 1, "no segment has begun since then");
    }

    #[test]
    fn a_damaged_batch_header_harms_nobody_when_its_records_are_intact() {
        let (log, found, _) = three_batches(|disk, middle| {
            disk.flip_bit(&segment_name(middle.segment), middle.offset + 30, 1).unwrap();
        });
        assert_eq!(extents(&found), [None, None, None]);
        assert_eq!(log.entries(key(2), 1, 4, 99).unwrap().len(), 3);
    }

    #[test]
    fn damage_above_the_mark_is_cut_off_as_a_tear() {
        let disk = SimDisk::new();
        let (log, _) = open(&disk).unwrap();
        let state = HardState { term: 1, vote: 1, commit: 0 };
        log.append(&[Record::HardState { key: key(1), state }]).unwrap();
        let synced = log.sync().unwrap();
        for group in 2..5 {
            log.append(&[Record::HardState { key: key(group), state }]).unwrap();
        }
        drop(log);
        let second = synced.offset + (HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
        disk.flip_bit(&segment_name(synced.segment), second + 50, 0).unwrap();
        let (_, found) = open(&disk).unwrap();
        assert_eq!(found.replicas.keys().copied().collect::<Vec<_>>(), [key(1), key(2)]);
        assert_eq!((extents(&found), found.holes.len()), (vec![None, None], 0));
        assert_eq!(found.synced, synced);
    }

    #[test]
    fn a_log_under_another_salt_is_refused_and_left_alone() {
        let (disk, model) = sample();
        let config = LogConfig { salt: 6, ..config() };
        let wrong = Log::open(Arc::new(disk.clone()), 1, config).unwrap_err();
        assert!(matches!(wrong, LogError::Unreadable { .. }));
        let (log, found) = open(&disk).unwrap();
        model.check(&log, &found).unwrap();
    }

    #[test]
    fn another_nodes_log_is_refused() {
        let disk = SimDisk::new();
        drop(open(&disk).unwrap());
        let wrong = Log::open(Arc::new(disk), 2, config()).unwrap_err();
        assert!(matches!(wrong, LogError::WrongNode { expected: 2, found: 1 }));
    }
}
