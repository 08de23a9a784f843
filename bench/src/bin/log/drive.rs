//! The load that every measured log is put under, so that all are measured by one method: ours and
//! the bare disk by `bench/src/bin/log.rs`, raft-engine by `bench/peers/raft-engine/src/main.rs`,
//! which includes this file.
//!
//! A measurement is a process of its own, `SUBJECT PHASE GROUPS BYTES SECONDS FOLDER`, that prints
//! one line of JSON, a number for each name. The folder is empty or missing. In a *round* each
//! group appends one entry; all of them are one batch with one sync. Entries hold random bytes and
//! count as applied whenever so many have been written as a node takes between two checkpoints.
//!
//! | phase | what happens |
//! |---|---|
//! | `fresh` | timed rounds on files that nobody has used yet |
//! | `life` | filled without release, read, opened again, released, written over, timed rounds |
//! | `groups` | one entry for each of many groups, opened again |
//!
//! Nothing depends on more than `std` and `bytes`, so that a peer needs no crate of ours.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Payload between two releases: what a node takes between two checkpoints.
pub(crate) const RELEASE_BYTES: u64 = 32 << 20;
/// Payload of the log that is opened again, and of what is then written over it.
const FILL_BYTES: u64 = 512 << 20;
/// Payload between two syncs where the sync is not what is measured.
const FILL_SYNC_BYTES: u64 = 4 << 20;
/// Single entries read.
const READS: u64 = 10_000;
/// Random bytes that payloads are cut from.
const POOL_BYTES: usize = 1 << 20;

/// A log under measurement. Failures end the process: a measurement has no use for them.
pub(crate) trait Subject {
    /// Appends the entry `index` of all groups as one batch; with `sync` it and all before it are
    /// durable afterwards.
    fn append(&mut self, index: u64, load: &Load, sync: bool);
    /// Says that all groups have applied their entries up to `applied`.
    fn release(&mut self, applied: u64, load: &Load);
    /// Reads one entry and returns the length of its payload.
    fn read(&mut self, group: u64, index: u64) -> usize;
    /// Waits for what goes on in the background, so that it is not taken for what comes next.
    fn settle(&mut self) {}
}

/// What is appended in a round.
pub(crate) struct Load {
    /// Groups, numbered from 1.
    pub(crate) groups: u64,
    /// Length of each payload.
    bytes: usize,
    pool: Bytes,
}

impl Load {
    fn new(groups: u64, bytes: usize) -> Self {
        let mut random = Random(1);
        let pool: Vec<u8> = (0..POOL_BYTES).map(|_| random.below(256) as u8).collect();
        Self { groups, bytes, pool: pool.into() }
    }

    /// Payload of an entry; cheap.
    pub(crate) fn payload(&self, group: u64, index: u64) -> Bytes {
        let starts = (POOL_BYTES - self.bytes) as u64;
        let start = (group.wrapping_mul(7919).wrapping_add(index.wrapping_mul(104_729))) % starts;
        self.pool.slice(start as usize..start as usize + self.bytes)
    }

    /// Payload of a round in bytes.
    pub(crate) fn round_bytes(&self) -> u64 {
        self.groups * self.bytes as u64
    }
}

/// Measures what the arguments behind the program's name say and prints the figures. `open` makes
/// or opens the named subject in a folder.
pub(crate) fn run(args: &[String], open: impl Fn(&str, &Path) -> Box<dyn Subject>) {
    let [subject, phase, groups, bytes, seconds, folder] = args else {
        panic!("SUBJECT PHASE GROUPS BYTES SECONDS FOLDER, not {args:?}");
    };
    let number = |text: &String| text.parse::<u64>().expect("a number");
    let folder = Path::new(folder);
    let mut run = Run {
        load: Load::new(number(groups), number(bytes) as usize),
        time: Duration::from_secs(number(seconds)),
        folder,
        open: &|| open(subject, folder),
        figures: BTreeMap::new(),
    };
    match phase.as_str() {
        "fresh" => run.timed(&mut *(run.open)(), 1),
        "life" => run.life(),
        "groups" => run.groups(),
        _ => panic!("no phase {phase}"),
    }
    let pairs: Vec<String> =
        run.figures.iter().map(|(name, figure)| format!("\"{name}\":{figure}")).collect();
    println!("{{{}}}", pairs.join(","));
}

/// One measurement.
struct Run<'a> {
    load: Load,
    /// Length of timed rounds.
    time: Duration,
    folder: &'a Path,
    open: &'a dyn Fn() -> Box<dyn Subject>,
    /// What was found, by name.
    figures: BTreeMap<&'static str, f64>,
}

impl Run<'_> {
    /// Rounds with a sync each, from the entry `index` on, for a while.
    fn timed(&mut self, subject: &mut dyn Subject, mut index: u64) {
        subject.settle();
        let load = &self.load;
        let mut rounds_us = Vec::new();
        let mut unreleased = 0;
        let (cpu, written, begin) = (cpu_us(), written_bytes(self.folder), Instant::now());
        while begin.elapsed() < self.time {
            let round = Instant::now();
            subject.append(index, load, true);
            rounds_us.push(round.elapsed().as_secs_f64() * 1e6);
            unreleased += load.round_bytes();
            if unreleased >= RELEASE_BYTES {
                subject.release(index, load);
                unreleased = 0;
            }
            index += 1;
        }
        let seconds = begin.elapsed().as_secs_f64();
        let rounds = rounds_us.len() as f64;
        let entries = rounds * load.groups as f64;
        let cpu = cpu_us() - cpu;
        let written = written_bytes(self.folder).zip(written).map(|(end, begin)| end - begin);
        if let Some(written) = written {
            let part = written / (rounds * load.round_bytes() as f64);
            self.figures.insert("written_per_byte", part);
        }
        rounds_us.sort_by(f64::total_cmp);
        let at =
            |part: f64| rounds_us.get(((rounds - 1.0) * part) as usize).copied().unwrap_or(0.0);
        self.figures.extend([
            ("entries_per_s", entries / seconds),
            ("cpu_us_per_entry", cpu / entries),
            ("round_p50_us", at(0.5)),
            ("round_p99_us", at(0.99)),
            ("round_worst_us", at(1.0)),
        ]);
    }

    /// Fills, reads, opens again, releases, writes over, and then takes the time of rounds.
    fn life(&mut self) {
        let mut subject = (self.open)();
        let rounds = FILL_BYTES / self.load.round_bytes();
        let entries = (rounds * self.load.groups) as f64;
        let (memory, cpu) = (memory_bytes(), cpu_us());
        self.fill(&mut *subject, 1..rounds + 1, false);
        self.figures.insert("fill_cpu_us_per_entry", (cpu_us() - cpu) / entries);
        self.figures.insert("memory_per_entry", (memory_bytes() - memory) / entries);
        self.read(&mut *subject, rounds);
        let mut subject = self.reopen(subject);
        let begin = Instant::now();
        subject.release(rounds, &self.load);
        let release_us = begin.elapsed().as_secs_f64() * 1e6;
        self.figures.insert("release_us_per_group", release_us / self.load.groups as f64);
        let cpu = cpu_us();
        self.fill(&mut *subject, rounds + 1..2 * rounds + 1, true);
        self.figures.insert("rewrite_cpu_us_per_entry", (cpu_us() - cpu) / entries);
        self.timed(&mut *subject, 2 * rounds + 1);
    }

    /// One entry for each group.
    fn groups(&mut self) {
        let mut subject = (self.open)();
        let memory = memory_bytes();
        self.fill(&mut *subject, 1..2, false);
        let memory = memory_bytes() - memory;
        self.figures.insert("memory_per_group", memory / self.load.groups as f64);
        self.reopen(subject);
    }

    /// Appends the entries `indexes` of all groups, with few syncs.
    fn fill(&self, subject: &mut dyn Subject, indexes: Range<u64>, releases: bool) {
        let (mut unsynced, mut unreleased) = (0, 0);
        for index in indexes.clone() {
            unsynced += self.load.round_bytes();
            unreleased += self.load.round_bytes();
            let sync = unsynced >= FILL_SYNC_BYTES || index + 1 == indexes.end;
            subject.append(index, &self.load, sync);
            if sync {
                unsynced = 0;
            }
            if releases && unreleased >= RELEASE_BYTES {
                subject.release(index, &self.load);
                unreleased = 0;
            }
        }
    }

    /// Reads single entries of a log that goes up to `last`, each for itself.
    fn read(&mut self, subject: &mut dyn Subject, last: u64) {
        subject.settle();
        let mut random = Random(2);
        let begin = thread_cpu_us();
        for _ in 0..READS {
            let read = subject.read(1 + random.below(self.load.groups), 1 + random.below(last));
            assert_eq!(read, self.load.bytes, "an entry comes back whole");
        }
        self.figures.insert("read_cpu_us", (thread_cpu_us() - begin) / READS as f64);
    }

    /// Closes and opens, with everything in the page cache.
    fn reopen(&mut self, subject: Box<dyn Subject>) -> Box<dyn Subject> {
        drop(subject);
        let (begin, cpu) = (Instant::now(), cpu_us());
        let subject = (self.open)();
        self.figures.insert("reopen_ms", begin.elapsed().as_secs_f64() * 1e3);
        self.figures.insert("reopen_cpu_ms", (cpu_us() - cpu) / 1e3);
        subject
    }
}

// === this process ===

/// User and system time of all threads, in steps of 10 ms.
fn cpu_us() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("this is Linux");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() * 1e4
}

/// Time that this thread has been running.
fn thread_cpu_us() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("this is Linux");
    let nanos = stat.split(' ').next().and_then(|field| field.parse::<f64>().ok());
    nanos.expect("its first field is the time on a CPU") / 1e3
}

/// What was written to the disk below `folder`, also by others. What the kernel counts by process
/// is of no use: it takes a whole large folio for written when one page of it is. Not every file
/// system stands on one device.
fn written_bytes(folder: &Path) -> Option<f64> {
    let device = fs::metadata(folder).expect("the folder is there").dev();
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    Some(stat.split_whitespace().nth(6)?.parse::<f64>().ok()? * 512.0)
}

/// Memory that is not backed by files.
fn memory_bytes() -> f64 {
    field("/proc/self/status", "RssAnon:") * 1024.0
}

fn field(file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(file).expect("this is Linux");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.expect("the kernel tells it")
}

/// A small generator, so that all subjects are given the same.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        ((self.0 >> 32) * bound) >> 32
    }
}
