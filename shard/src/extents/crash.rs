//! Crashes at every point of the life of extents, against a model of the log and the engine.
//!
//! The model's log and engine are durable at one instant each and never wrong: what is tried here
//! is whether the pages that they name hold what was written, whatever the disk does to the rest.
//! A run is a fixed list of operations drawn from a seed. It is stopped after each change of the
//! disk, and between the steps that are no change of the disk; the power goes, un-synced sectors
//! are kept, lost or torn; the page files are opened, judged, used further, and at last emptied.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::disk::sim::SimDisk;

const CONFIG: ExtentsConfig =
    ExtentsConfig { file_pages: 64, grow_pages: 64, cut_pages_min: 8, ahead_pages: 8, salt: 77 };
const ROWS: u64 = 3;
const OPERATIONS: usize = 40;

/// The end of a run before its last operation.
struct Stopped;

impl From<ExtentError> for Stopped {
    fn from(error: ExtentError) -> Self {
        let expected = matches!(error, ExtentError::Io { .. } | ExtentError::Poisoned { .. });
        assert!(expected, "only the disk stops a run: {error}");
        Stopped
    }
}

/// A stored value and where it should be.
#[derive(Debug, Clone, PartialEq)]
struct Stored {
    pointer: Pointer,
    value: Bytes,
}

/// A log record: its command puts the value into a row, or uses nothing.
#[derive(Debug, Clone)]
struct Record {
    stored: Stored,
    row: Option<u64>,
}

/// What survives a crash beside the page files.
#[derive(Debug, Clone, Default)]
struct Durable {
    /// Checkpoint of the engine with its bitmaps, rows and applied index.
    checkpoint: u64,
    bitmaps: BTreeMap<u32, Bitmap>,
    rows: BTreeMap<u64, Stored>,
    applied: usize,
    /// All synced records; those below `applied` are not needed.
    log: Vec<Record>,
}

/// A node in its life between two starts.
struct Node {
    extents: Extents,
    durable: Durable,
    /// Records that are appended and not synced.
    appended: Vec<Record>,
    rows: BTreeMap<u64, Stored>,
    applied: usize,
    /// Views: the complete checkpoint when each was taken, and the rows that it shows.
    views: Vec<(u64, BTreeMap<u64, Stored>)>,
    /// Everything ever written.
    written: Vec<Stored>,
    random: Random,
    /// Steps without a change of the disk that are still taken.
    points_left: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

impl Node {
    /// Starts on what is there, judges it and replays.
    fn start(disk: &SimDisk, durable: Durable, written: Vec<Stored>, seed: u64) -> Self {
        let held: Vec<_> = durable.log.iter().skip(durable.applied).cloned().collect();
        let named = Named {
            checkpoint: durable.checkpoint,
            bitmaps: durable.bitmaps.clone(),
            held: held.iter().map(|record| record.stored.pointer).collect(),
        };
        let opened = Extents::open(Arc::new(disk.clone()), CONFIG, named).unwrap();
        assert_eq!(opened.repaired, [], "nothing that is named was cut off");
        let extents = opened.extents;
        extents.audit();
        let pages = |stored: &Stored| u64::from(stored.pointer.pages);
        let usage = extents.usage();
        let rows: u64 = durable.rows.values().map(pages).sum();
        let records: u64 = held.iter().map(|record| pages(&record.stored)).sum();
        assert_eq!(usage.row_pages, rows, "rows have their pages and no others");
        assert_eq!(usage.held_pages, records, "records have their pages and no others");
        assert_eq!(usage.free_pages, usage.pages - rows - records, "all others are free");
        for stored in durable.rows.values().chain(held.iter().map(|record| &record.stored)) {
            assert_eq!(extents.read(&stored.pointer).unwrap(), stored.value, "{stored:?}");
        }
        for stored in &written {
            match extents.read(&stored.pointer) {
                Ok(value) => assert_eq!(value, stored.value, "never other bytes: {stored:?}"),
                Err(error) => assert!(matches!(error, ExtentError::Damaged { .. }), "{error}"),
            }
        }
        let mut node = Self {
            extents,
            appended: Vec::new(),
            rows: durable.rows.clone(),
            applied: durable.applied,
            durable,
            views: Vec::new(),
            written,
            random: Random(seed),
            points_left: u64::MAX,
        };
        while node.applied < node.durable.log.len() {
            node.apply();
        }
        node
    }

    fn operate(&mut self) -> Result<(), Stopped> {
        match self.random.below(20) {
            0..=4 => self.append()?,
            5..=7 => self.sync()?,
            8..=10 => {
                let synced = self.durable.log.len() - self.applied;
                (0..synced.min(3)).for_each(|_| self.apply());
            }
            11 => self.overwrite(),
            12 | 13 => self.checkpoint()?,
            14..=17 => self.look(),
            18 => {
                let keep = self.random.below(80);
                self.extents.trim(keep)?;
            }
            _ => self.sync()?,
        }
        self.extents.audit();
        self.point()
    }

    fn point(&mut self) -> Result<(), Stopped> {
        self.points_left = self.points_left.checked_sub(1).ok_or(Stopped)?;
        Ok(())
    }

    fn append(&mut self) -> Result<(), Stopped> {
        let (len, fill) = (self.random.below(60_000), self.random.below(256) as u8);
        let value = Bytes::from(vec![fill; len as usize]);
        let pointer = self.extents.write(Shelf(1), b"key", &value)?;
        let stored = Stored { pointer, value };
        self.written.push(stored.clone());
        let row = self.random.below(ROWS + 1);
        self.appended.push(Record { stored, row: (row < ROWS).then_some(row) });
        Ok(())
    }

    /// The log's group commit: extents first, then the records.
    fn sync(&mut self) -> Result<(), Stopped> {
        self.extents.sync()?;
        self.point()?;
        self.durable.log.append(&mut self.appended);
        Ok(())
    }

    fn apply(&mut self) {
        let record = &self.durable.log[self.applied];
        self.applied += 1;
        let Some(row) = record.row else { return };
        self.extents.keep(&record.stored.pointer);
        if let Some(old) = self.rows.insert(row, record.stored.clone()) {
            self.extents.release(&old.pointer);
        }
    }

    /// A new leader's entries take the place of what is not applied.
    fn overwrite(&mut self) {
        let cut = self.durable.log.split_off(self.applied);
        for record in cut.iter().chain(&self.appended) {
            self.extents.let_go(&record.stored.pointer);
        }
        self.appended.clear();
    }

    fn checkpoint(&mut self) -> Result<(), Stopped> {
        let n = self.durable.checkpoint + 1;
        let (rows, applied) = (self.rows.clone(), self.applied);
        let bitmaps = self.extents.freeze(n);
        self.point()?;
        // Writes and apply go on while the checkpoint is written.
        self.append()?;
        self.extents.sync()?;
        self.point()?;
        let before = std::mem::replace(&mut self.durable.applied, applied);
        self.durable.checkpoint = n;
        self.durable.rows = rows;
        for (file, bitmap) in bitmaps {
            if bitmap.is_empty() {
                self.durable.bitmaps.remove(&file);
            } else {
                self.durable.bitmaps.insert(file, Bitmap::decode(&bitmap.encode()).unwrap());
            }
        }
        self.point()?;
        self.extents.checkpointed(n, self.oldest_view());
        for record in self.durable.log.get(before..applied).unwrap() {
            self.extents.let_go(&record.stored.pointer);
        }
        Ok(())
    }

    /// Opens a view, or reads through the oldest one and closes it.
    fn look(&mut self) {
        if self.views.len() < 2 {
            return self.views.push((self.extents.complete(), self.rows.clone()));
        }
        for (_, rows) in &self.views {
            for stored in rows.values() {
                assert_eq!(self.extents.read(&stored.pointer).unwrap(), stored.value);
            }
        }
        self.views.remove(0);
        self.extents.checkpointed(self.durable.checkpoint, self.oldest_view());
    }

    fn oldest_view(&self) -> u64 {
        self.views.iter().map(|(number, _)| *number).min().unwrap_or(self.durable.checkpoint)
    }

    /// Gives everything back; nothing may remain.
    fn empty(mut self) {
        self.overwrite();
        self.views.clear();
        for stored in std::mem::take(&mut self.rows).into_values() {
            self.extents.release(&stored.pointer);
        }
        assert!(self.checkpoint().is_ok());
        self.overwrite();
        self.extents.audit();
        let usage = self.extents.usage();
        assert_eq!(usage.free_pages, usage.pages, "no page leaks: {usage:?}");
        self.extents.trim(0).unwrap();
        assert_eq!(self.extents.usage(), Usage::default());
    }
}

/// Runs a seed's operations until the disk or the node stops, cuts the power and judges. Returns
/// whether the run came to its end.
fn run(seed: u64, disk_changes: u64, points: u64) -> bool {
    let disk = SimDisk::new();
    let mut node = Node::start(&disk, Durable::default(), Vec::new(), seed);
    node.points_left = points;
    disk.halt_after(disk_changes);
    let finished = (0..OPERATIONS).all(|_| node.operate().is_ok());
    let mut choices = Random(seed ^ disk_changes ^ points << 32);
    let mode = choices.below(4);
    disk.crash(&mut |bound| match mode {
        0 => 0,
        1 => bound - 1,
        _ => choices.below(bound),
    });
    let mut node = Node::start(&disk, node.durable, node.written, seed + 1);
    assert!((0..OPERATIONS / 3).all(|_| node.operate().is_ok()), "the disk is well again");
    disk.crash(&mut |_| 0);
    Node::start(&disk, node.durable, node.written, seed + 2).empty();
    finished
}

#[test]
fn a_crash_after_any_change_of_the_disk_loses_nothing_that_is_named() {
    for seed in 0..6 {
        let ran = (0..).position(|changes| run(seed * 1000, changes, u64::MAX));
        assert!(ran.is_some_and(|changes| changes > 10), "seed {seed}: {ran:?} changes");
    }
}

#[test]
fn a_crash_between_any_two_steps_loses_nothing_that_is_named() {
    for seed in 100..112 {
        let ran = (0..).position(|points| run(seed * 1000, u64::MAX, points));
        assert!(ran.is_some_and(|points| points > OPERATIONS), "seed {seed}: {ran:?} points");
    }
}

#[test]
fn views_read_what_they_show_however_often_pages_are_used_again() {
    for seed in 0..4 {
        let mut node = Node::start(&SimDisk::new(), Durable::default(), Vec::new(), seed);
        assert!((0..400).all(|_| node.operate().is_ok()));
        node.empty();
    }
}
