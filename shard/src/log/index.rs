//! What the log knows in memory: one [`Replica`] per replica, one [`Run`] per stretch of entries.
//!
//! Both the append path and recovery feed records to [`Index::apply`], so a restarted node knows
//! what it knew before. The index is also what a directory is made of: each new segment begins with
//! one `state` record per replica and one `node` record, so that an older segment is needed only
//! for the entries in it.
//!
//! ```text
//!   truncated          applied                         last
//!       |                 |                              |
//!   ----+-----------------+------------------------------+
//!       |  for followers  |  pins its segments           |
//!       | run | run       | run                | run     |     a run lies in one segment
//!         \ waypoints: every 4th record; the others are found by the chain of `back` offsets
//! ```
//!
//! Invariants:
//!
//! * Runs are in order of index and of segment; runs and `unreadable` ranges together cover exactly
//!   `truncated + 1 ..= last`.
//! * `terms` covers the same interval, so that a term never needs the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::BufMut;

use super::record::{Body, Draft, Kind, put_carried, put_string, take_carried};
use super::segment::Fields;
use super::{Checkpoint, HardState, Hole, IndexTerm, Position, Record, ReplicaKey};
use crate::disk::DiskFile;

/// Every so many records a run remembers where one lies: 16 bytes against reads of headers.
const WAYPOINT_RECORDS: u32 = 4;

/// The node's log in memory.
#[derive(Default)]
pub(super) struct Index {
    pub(super) replicas: BTreeMap<ReplicaKey, Replica>,
    /// Lowest replica id that a group may still have on this node.
    pub(super) tombstones: BTreeMap<u64, u64>,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) segments: BTreeMap<u64, SegmentFile>,
    /// Damage of unknown owner that the caller has not yet dealt with, in order of place.
    pub(super) holes: Vec<Hole>,
}

/// A segment in use.
pub(super) struct SegmentFile {
    pub(super) file: Arc<dyn DiskFile>,
    /// Length of the file in bytes.
    pub(super) len: u64,
    /// End of the last batch; not kept current for the active segment.
    pub(super) end: u64,
}

/// Entries of one replica that lie in one segment, without a gap.
#[derive(Debug, Clone)]
struct Run {
    segment: u64,
    first: u64,
    last: u64,
    /// A record of this run's chain at or behind the one with the last entry.
    newest: u32,
    records: u32,
    waypoints: Vec<(u64, u32)>,
}

/// One replica's part of the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Replica {
    pub(super) number: u64,
    pub(super) hard_state: HardState,
    pub(super) truncated: IndexTerm,
    pub(super) last: u64,
    /// Restore, born, quarantine and install records still in effect, with their numbers.
    pub(super) controls: Vec<(u64, Record)>,
    /// Highest index that a durable checkpoint holds, as far as this process was told.
    pub(super) applied: u64,
    /// Value of the recovery's counter of holes up to which this replica is known to be complete.
    pub(super) holes: u64,
    pub(super) harm: Harm,
    /// First index and term of each stretch of equal terms. Term 0 stands for unknown.
    terms: Vec<(u64, u64)>,
    runs: Vec<Run>,
}

/// What damage took from a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Harm {
    /// The newest hard state may be lost.
    pub(super) hard_state: bool,
    /// Records of unknown kind may be lost, the newest entries among them.
    pub(super) records: bool,
    /// Ranges of indexes whose entries are lost, in order, not touching each other.
    pub(super) unreadable: Vec<(u64, u64)>,
    /// How the first harm was found; empty without harm.
    pub(super) reason: String,
}

/// Where to begin the search for an entry.
pub(super) struct Place {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) segment: u64,
    /// Offset of a record header at or before the wanted one in the chain, 0 if none is known.
    pub(super) lower: u32,
    /// Offset of a record header at or behind the wanted one in the chain.
    pub(super) upper: u32,
    /// Last index that the search may answer for.
    pub(super) last: u64,
}

// === impl Run ===

impl Run {
    fn push(&mut self, first: u64, last: u64, offset: u32) {
        if self.records.is_multiple_of(WAYPOINT_RECORDS) {
            self.waypoints.push((first, offset));
        }
        self.records += 1;
        self.last = last;
        self.newest = offset;
    }

    /// Forgets entries from `from` on; some remain.
    fn cut(&mut self, from: u64) {
        self.last = from - 1;
        let kept = self.waypoints.partition_point(|(first, _)| *first < from);
        if let Some((_, offset)) = self.waypoints.get(kept) {
            self.newest = *offset;
        }
        self.waypoints.truncate(kept);
        // The next record gets a waypoint: how many lie behind the last one is not known.
        self.records = 0;
    }

    /// Offsets of the records between which the search for `index` goes, and the last index that
    /// it can answer for: what the waypoint behind it may have replaced is not in its chain.
    fn between(&self, index: u64) -> (u32, u32, u64) {
        let behind = self.waypoints.partition_point(|(first, _)| *first <= index);
        let before = behind.checked_sub(1).and_then(|before| self.waypoints.get(before));
        let lower = before.map_or(0, |(_, offset)| *offset);
        match self.waypoints.get(behind) {
            Some((first, upper)) => (lower, *upper, first - 1),
            None => (lower, self.newest, self.last),
        }
    }
}

// === impl Harm ===

impl Harm {
    pub(super) fn blame(&mut self, reason: impl FnOnce() -> String) {
        if self.reason.is_empty() {
            self.reason = reason();
        }
    }

    fn lose(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        self.unreadable.push((first, last));
        self.unreadable.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.unreadable.len());
        for (first, last) in self.unreadable.drain(..) {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        self.unreadable = merged;
    }

    /// Keeps only what lies in `first..=last`.
    fn clip(&mut self, first: u64, last: u64) {
        self.unreadable.retain_mut(|range| {
            *range = (range.0.max(first), range.1.min(last));
            range.0 <= range.1
        });
        if !self.hard_state && !self.records && self.unreadable.is_empty() {
            self.reason.clear();
        }
    }

    fn is_unreadable(&self, index: u64) -> bool {
        self.unreadable.iter().any(|(first, last)| (*first..=*last).contains(&index))
    }
}

// === impl Replica ===

impl Replica {
    pub(super) fn last_term(&self) -> u64 {
        self.terms.last().map_or(self.truncated.term, |(_, term)| *term)
    }

    /// First index that is not lost and behind which nothing is.
    pub(super) fn lowest_intact(&self) -> u64 {
        self.harm.unreadable.last().map_or(self.truncated.index + 1, |(_, last)| last + 1)
    }

    /// Term of an entry between the truncation point and the end; `None` when it is lost.
    pub(super) fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        if index != self.last && self.harm.is_unreadable(index) {
            return None;
        }
        let behind = self.terms.partition_point(|(first, _)| *first <= index);
        let (_, term) = self.terms.get(behind.checked_sub(1)?)?;
        (*term != 0).then_some(*term)
    }

    /// Offset for the `back` field of this replica's next entries record in `segment`.
    pub(super) fn back(&self, segment: u64) -> u32 {
        self.runs.last().filter(|run| run.segment == segment).map_or(0, |run| run.newest)
    }

    fn run(&self, index: u64) -> Option<&Run> {
        let run = self.runs.get(self.runs.partition_point(|run| run.last < index))?;
        (run.first <= index).then_some(run)
    }

    fn cut(&mut self, from: u64) {
        if from > self.last {
            return;
        }
        self.last = from - 1;
        self.terms.truncate(self.terms.partition_point(|(first, _)| *first < from));
        self.runs.truncate(self.runs.partition_point(|run| run.first < from));
        if let Some(run) = self.runs.last_mut().filter(|run| run.last >= from) {
            run.cut(from);
        }
        self.harm.clip(0, self.last);
    }

    /// Raises the truncation point.
    fn truncate(&mut self, to: IndexTerm) {
        if to.index <= self.truncated.index {
            return;
        }
        if to.index >= self.last {
            self.reset(to);
            return;
        }
        self.truncated = to;
        let first = to.index + 1;
        let passed = self.terms.partition_point(|(start, _)| *start <= first);
        self.terms.drain(..passed.saturating_sub(1));
        if let Some((start, _)) = self.terms.first_mut() {
            *start = first.max(*start);
        }
        self.runs.drain(..self.runs.partition_point(|run| run.last < first));
        if let Some(run) = self.runs.first_mut() {
            run.first = run.first.max(first);
        }
        self.harm.clip(first, self.last);
    }

    /// Forgets all entries; the log goes on behind `to`.
    fn reset(&mut self, to: IndexTerm) {
        self.truncated = to;
        self.last = to.index;
        self.terms.clear();
        self.runs.clear();
        self.harm.clip(to.index + 1, to.index);
    }

    /// Makes room for entries from `first` on: cuts what they replace, marks what is missing.
    fn prepare(&mut self, first: u64) {
        if first <= self.truncated.index {
            // Only damage leads here; the replacement begins a log of its own.
            self.reset(IndexTerm { index: first.saturating_sub(1), term: 0 });
        }
        self.cut(first);
        if first > self.last + 1 {
            let start = self.last + 1;
            self.harm.lose(start, first - 1);
            self.harm.blame(|| format!("entries {start} to {} are missing", first - 1));
            self.push_term(start, 0);
            self.last = first - 1;
        }
    }

    fn push_term(&mut self, index: u64, term: u64) {
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
    }

    fn append(&mut self, first: u64, terms: impl Iterator<Item = u64>, at: Position) {
        self.prepare(first);
        for (index, term) in (first..).zip(terms) {
            self.push_term(index, term);
            self.last = index;
        }
        let (last, offset) = (self.last, at.offset as u32);
        match self.runs.last_mut() {
            Some(run) if run.segment == at.segment && run.last + 1 == first => {
                run.push(first, last, offset);
            }
            _ => {
                let (segment, waypoints) = (at.segment, Vec::new());
                let mut run = Run { segment, first, last, newest: offset, records: 0, waypoints };
                run.push(first, last, offset);
                if self.runs.is_empty() {
                    // A quiet replica never has more.
                    self.runs.reserve_exact(1);
                }
                self.runs.push(run);
            }
        }
    }

    /// Takes note of an entries record whose body is lost.
    pub(super) fn append_unreadable(&mut self, first: u64, last: u64, term: u64, reason: String) {
        self.prepare(first);
        self.push_term(first, term);
        self.last = last;
        self.harm.lose(first, last);
        self.harm.blame(|| reason);
    }

    /// Takes note of records that were lost before record `number`.
    pub(super) fn lose_records(&mut self, number: u64, reason: String) {
        // One of them may have replaced any of the entries.
        self.harm.lose(self.truncated.index + 1, self.last);
        self.harm.hard_state = true;
        self.harm.records = true;
        self.harm.blame(|| reason);
        self.number = number - 1;
    }

    fn control(&mut self, number: u64, record: Record) {
        let replaced = |old: &Record| match (&record, old) {
            (Record::Restore { .. }, old) => !matches!(old, Record::Quarantine { .. }),
            (Record::Install { .. }, Record::Install { .. })
            | (Record::Born { .. }, Record::Born { .. })
            | (Record::Quarantine { .. }, Record::Quarantine { .. }) => true,
            _ => false,
        };
        self.controls.retain(|(_, old)| !replaced(old));
        // Few have more than one, and most have none once a checkpoint is behind them.
        self.controls.reserve_exact(1);
        self.controls.push((number, record));
    }

    pub(super) fn release(&mut self, applied: u64) {
        self.applied = self.applied.max(applied);
        self.controls.retain(|(_, record)| match record {
            Record::Born { .. } => false,
            Record::Restore { index, .. } => *index > applied,
            _ => true,
        });
        self.controls.shrink_to_fit();
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(64);
        body.put_u64_le(self.truncated.index);
        body.put_u64_le(self.truncated.term);
        body.put_u64_le(self.last);
        body.put_u64_le(self.last_term());
        body.put_u8(u8::from(self.harm.hard_state) | u8::from(self.harm.records) << 1);
        put_string(&mut body, self.harm.reason.as_bytes());
        body.put_u32_le(self.harm.unreadable.len() as u32);
        for (first, last) in &self.harm.unreadable {
            body.put_u64_le(*first);
            body.put_u64_le(*last);
        }
        body.put_u32_le(self.controls.len() as u32);
        for (number, record) in &self.controls {
            put_carried(&mut body, *number, record);
        }
        body
    }

    /// Replaces what replay found by what a directory says, and keeps replayed entries that the
    /// directory confirms. `gap` says that records of this replica were lost before it.
    pub(super) fn resync(&mut self, listed: Listed, gap: Option<String>) {
        let mut harm = listed.harm;
        if let Some(reason) = gap {
            self.harm.lose(self.truncated.index + 1, self.last);
            harm.blame(|| reason);
        }
        for (first, last) in self.harm.unreadable.drain(..) {
            harm.lose(first, last);
        }
        harm.blame(|| std::mem::take(&mut self.harm.reason));
        self.harm = harm;
        self.number = listed.number;
        self.hard_state = listed.hard_state;
        self.controls = listed.controls;
        self.truncate(listed.truncated);
        let first = self.truncated.index + 1;
        if self.last >= listed.last {
            self.cut(listed.last + 1);
            if self.last >= first && self.last_term() != listed.last_term {
                // Its replacement lay in a segment that was recycled since, so this one and all
                // other stale entries are replaced again further on.
                let stale = self.last;
                let reason = format!("entry {stale} is not the one of the directory");
                self.cut(stale);
                self.append_unreadable(stale, stale, listed.last_term, reason);
            }
        } else {
            let start = self.last + 1;
            let reason = format!("entries {start} to {} are missing", listed.last);
            self.append_unreadable(start, listed.last, listed.last_term, reason);
        }
        self.harm.clip(first, self.last);
    }
}

// === impl Listed ===

/// A `state` record of a directory: one replica when a segment was begun.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) number: u64,
    hard_state: HardState,
    truncated: IndexTerm,
    last: u64,
    last_term: u64,
    harm: Harm,
    controls: Vec<(u64, Record)>,
}

impl Listed {
    pub(super) fn decode(
        key: ReplicaKey,
        number: u64,
        words: [u64; 3],
        body: &[u8],
    ) -> Option<Self> {
        let [term, vote, commit] = words;
        let mut fields = Fields(body);
        let truncated = IndexTerm { index: fields.u64()?, term: fields.u64()? };
        let (last, last_term) = (fields.u64()?, fields.u64()?);
        let flags = fields.u8()?;
        let reason = String::from_utf8_lossy(fields.string()?).into_owned();
        let mut unreadable = Vec::new();
        for _ in 0..fields.u32()? {
            unreadable.push((fields.u64()?, fields.u64()?));
        }
        let mut controls = Vec::new();
        for _ in 0..fields.u32()? {
            controls.push(take_carried(&mut fields, key)?);
        }
        let harm = Harm { hard_state: flags & 1 != 0, records: flags & 2 != 0, unreadable, reason };
        let hard_state = HardState { term, vote, commit };
        Some(Self { number, hard_state, truncated, last, last_term, harm, controls })
    }
}

// === impl NodeState ===

/// A `node` record of a directory: what concerns no single replica.
#[derive(Debug, Default)]
pub(super) struct NodeState {
    /// The older segments that are in use, with the end of the last batch in each.
    pub(super) segments: BTreeMap<u64, u64>,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) tombstones: BTreeMap<u64, u64>,
    pub(super) holes: Vec<Hole>,
}

impl NodeState {
    pub(super) fn decode(words: [u64; 3], body: &[u8]) -> Option<Self> {
        let [n, segment, offset] = words;
        let mut fields = Fields(body);
        let start = Position { segment, offset };
        let checkpoint = (fields.u8()? == 1).then_some(Checkpoint { n, start });
        let mut node = Self { checkpoint, ..Self::default() };
        for _ in 0..fields.u32()? {
            node.segments.insert(fields.u64()?, fields.u64()?);
        }
        for _ in 0..fields.u32()? {
            node.tombstones.insert(fields.u64()?, fields.u64()?);
        }
        for _ in 0..fields.u32()? {
            node.holes.push(Hole { at: fields.position()?, len_bytes: fields.u64()? });
        }
        Some(node)
    }
}

// === impl Index ===

impl Index {
    /// Carries out one record that lies at `at`. Records of replicas below a tombstone are ignored.
    pub(super) fn apply(&mut self, record: &Record, number: u64, at: Position) {
        match record {
            Record::Tombstone { group, lowest_replica } => {
                self.bury(*group, *lowest_replica);
                return;
            }
            Record::Checkpoint { n, start } => {
                self.checkpoint = Some(Checkpoint { n: *n, start: *start });
                return;
            }
            _ => {}
        }
        let key = record.key();
        if self.is_buried(key) {
            return;
        }
        let replica = self.replicas.entry(key).or_default();
        replica.number = number;
        match record {
            Record::Entries { first_index, entries, .. } => {
                replica.append(*first_index, entries.iter().map(|entry| entry.term), at);
            }
            Record::HardState { state, .. } => {
                replica.hard_state = *state;
                replica.harm.hard_state = false;
            }
            Record::Restore { index, term, .. } => {
                replica.harm.records = false;
                replica.reset(IndexTerm { index: *index, term: *term });
                replica.control(number, record.detached());
            }
            _ => replica.control(number, record.detached()),
        }
    }

    /// Removes all replicas of `group` below `lowest`.
    pub(super) fn bury(&mut self, group: u64, lowest: u64) {
        let allowed = self.tombstones.entry(group).or_default();
        *allowed = lowest.max(*allowed);
        let range = ReplicaKey { group, replica: 0 }..ReplicaKey { group, replica: *allowed };
        let buried: Vec<_> = self.replicas.range(range).map(|(key, _)| *key).collect();
        for key in buried {
            self.replicas.remove(&key);
        }
    }

    pub(super) fn is_buried(&self, key: ReplicaKey) -> bool {
        self.tombstones.get(&key.group).is_some_and(|lowest| key.replica < *lowest)
    }

    /// Where to look for entry `index`; `None` when it is lost.
    pub(super) fn place(&self, key: ReplicaKey, index: u64) -> Option<Place> {
        let replica = self.replicas.get(&key)?;
        if replica.harm.is_unreadable(index) {
            return None;
        }
        let run = replica.run(index)?;
        let file = Arc::clone(&self.segments.get(&run.segment)?.file);
        let (lower, upper, last) = run.between(index);
        Some(Place { file, segment: run.segment, lower, upper, last })
    }

    /// Removes the segments that nobody needs, `active` excepted, and returns their numbers. Those
    /// with entries for slow followers stay while they and all newer ones are within `keep_bytes`:
    /// what is pinned is there for followers as well.
    pub(super) fn drop_segments(&mut self, active: u64, keep_bytes: u64) -> BTreeSet<u64> {
        let mut pinned = BTreeSet::from([active]);
        let mut useful = BTreeSet::new();
        for replica in self.replicas.values() {
            for run in &replica.runs {
                let set = if run.last > replica.applied { &mut pinned } else { &mut useful };
                set.insert(run.segment);
            }
        }
        let mut kept_bytes = 0;
        let mut dropped = BTreeSet::new();
        for (number, segment) in self.segments.iter().rev() {
            let (is_pinned, is_useful) = (pinned.contains(number), useful.contains(number));
            kept_bytes += if is_pinned || is_useful { segment.len } else { 0 };
            let is_kept = is_useful && kept_bytes <= keep_bytes;
            if !is_pinned && !is_kept {
                dropped.insert(*number);
            }
        }
        for replica in self.replicas.values_mut() {
            let gone = replica.runs.iter().rfind(|run| dropped.contains(&run.segment));
            if let Some(index) = gone.map(|run| run.last) {
                let term = replica.term(index).unwrap_or(0);
                replica.truncate(IndexTerm { index, term });
            }
        }
        self.segments.retain(|number, _| !dropped.contains(number));
        dropped
    }

    /// The records of a directory that begins the segment after those in `self.segments`.
    pub(super) fn directory(&self) -> Vec<Draft<'static>> {
        let mut body = Vec::new();
        body.put_u8(u8::from(self.checkpoint.is_some()));
        body.put_u32_le(self.segments.len() as u32);
        for (number, segment) in &self.segments {
            body.put_u64_le(*number);
            body.put_u64_le(segment.end);
        }
        body.put_u32_le(self.tombstones.len() as u32);
        for (group, lowest) in &self.tombstones {
            body.put_u64_le(*group);
            body.put_u64_le(*lowest);
        }
        body.put_u32_le(self.holes.len() as u32);
        for hole in &self.holes {
            body.put_u64_le(hole.at.segment);
            body.put_u64_le(hole.at.offset);
            body.put_u64_le(hole.len_bytes);
        }
        let Checkpoint { n, start } = self.checkpoint.unwrap_or_default();
        let mut drafts = Vec::with_capacity(self.replicas.len() + 1);
        drafts.push(Draft {
            key: ReplicaKey::default(),
            number: 0,
            back: 0,
            kind: Kind::Node,
            count: 0,
            words: [n, start.segment, start.offset],
            body: Body::Bytes(body),
        });
        drafts.extend(self.replicas.iter().map(|(key, replica)| {
            let HardState { term, vote, commit } = replica.hard_state;
            Draft {
                key: *key,
                number: replica.number,
                back: 0,
                kind: Kind::State,
                count: 0,
                words: [term, vote, commit],
                body: Body::Bytes(replica.encode()),
            }
        }));
        drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(segment: u64, offset: u64) -> Position {
        Position { segment, offset }
    }

    /// A replica with one record per entry: 1 to 40 in segment 1, 41 to 50 in segment 2.
    fn replica() -> Replica {
        let mut replica = Replica::default();
        for index in 1..=50_u64 {
            let segment = 1 + u64::from(index > 40);
            replica.append(index, [index / 20 + 1].into_iter(), at(segment, index * 100));
        }
        replica
    }

    #[test]
    fn a_run_holds_a_stretch_of_records_with_few_waypoints() {
        let replica = replica();
        assert_eq!(replica.runs.len(), 2);
        assert_eq!(replica.runs[0].waypoints[..3], [(1, 100), (5, 500), (9, 900)]);
        assert_eq!(replica.runs[0].waypoints.len(), 10);
        assert_eq!(replica.run(16).unwrap().between(16), (1300, 1700, 16));
        assert_eq!(replica.run(40).unwrap().between(40), (3700, 4000, 40));
        assert_eq!(replica.terms, [(1, 1), (20, 2), (40, 3)]);
    }

    #[test]
    fn a_cut_keeps_a_way_to_the_entries_before_it() {
        let mut replica = replica();
        replica.append(20, [9].into_iter(), at(2, 6000));
        assert_eq!((replica.last, replica.last_term()), (20, 9));
        assert_eq!(replica.runs.len(), 2);
        assert_eq!(replica.run(19).unwrap().between(19), (1700, 2100, 19));
        assert_eq!(replica.term(19), Some(1));
    }

    #[test]
    fn a_truncated_replica_still_knows_the_term_before_its_first_entry() {
        let mut replica = replica();
        replica.truncate(IndexTerm { index: 45, term: 3 });
        assert_eq!(replica.term(45), Some(3));
        assert_eq!(replica.term(46), Some(3));
        assert_eq!(replica.term(44), None);
        assert_eq!(replica.runs.len(), 1);
        replica.truncate(IndexTerm { index: 50, term: 3 });
        assert!(replica.runs.is_empty());
        assert_eq!((replica.last, replica.last_term()), (50, 3));
    }

    #[test]
    fn lost_ranges_merge_and_heal_when_they_are_replaced_or_truncated() {
        let mut replica = replica();
        replica.append_unreadable(51, 55, 4, "first".to_owned());
        replica.append_unreadable(56, 56, 4, "second".to_owned());
        assert_eq!(replica.harm.unreadable, [(51, 56)]);
        assert_eq!((replica.lowest_intact(), replica.term(53)), (57, None));
        assert_eq!(replica.harm.reason, "first");
        replica.append(53, [5].into_iter(), at(2, 7000));
        assert_eq!(replica.harm.unreadable, [(51, 52)]);
        replica.truncate(IndexTerm { index: 52, term: 4 });
        assert_eq!(replica.harm, Harm::default());
    }

    #[test]
    fn a_directory_repeats_a_replica() {
        let key = ReplicaKey { group: 1, replica: 2 };
        let mut replica = replica();
        replica.truncate(IndexTerm { index: 40, term: 3 });
        replica.number = 99;
        replica.hard_state = HardState { term: 3, vote: 2, commit: 41 };
        replica.control(98, Record::Install { key, shelf: 5 });
        replica.harm.records = true;
        replica.harm.blame(|| "why".to_owned());
        let listed = Listed::decode(key, 99, [3, 2, 41], &replica.encode()).unwrap();
        let mut other = replica.clone();
        other.controls.clear();
        other.harm = Harm::default();
        other.resync(listed, None);
        assert_eq!(other.encode(), replica.encode());
        assert_eq!(other.runs.len(), 1);
    }

    #[test]
    fn a_directory_shows_which_entries_replay_did_not_find() {
        let key = ReplicaKey { group: 1, replica: 2 };
        let full = replica();
        let listed = Listed::decode(key, 50, [0; 3], &full.encode()).unwrap();
        let mut found = replica();
        found.cut(30);
        found.resync(listed, None);
        assert_eq!(found.harm.unreadable, [(30, 50)]);
        assert_eq!(found.term(50), Some(3));
        assert_eq!(found.harm.reason, "entries 30 to 50 are missing");
    }
}
