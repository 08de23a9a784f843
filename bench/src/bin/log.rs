//! What the log costs: against the bare disk, and with `--peer` against TiKV's raft-engine.
//!
//! Each measurement is a process of its own in an empty folder (`bench/src/bin/log/drive.rs` says
//! what it does), and all subjects take turns, so that what else the machine does hits all of them.
//! A figure is the median of the rounds with the least and the greatest; a ratio is taken inside a
//! round, ours to the other. raft-engine is built on demand from `bench/peers/raft-engine`, which
//! is outside of our workspace and needs a C compiler; without it the rest is measured.
//!
//! `cargo run --release -p bench --bin log -- --peer`

#[path = "log/bare.rs"]
mod bare;
#[path = "log/drive.rs"]
mod drive;
#[path = "log/own.rs"]
mod own;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;

use crate::bare::Bare;
use crate::drive::Subject;
use crate::own::Own;

/// Measures the log against the bare disk and raft-engine.
#[derive(Parser)]
struct Args {
    /// Builds raft-engine and measures it as well.
    #[arg(long)]
    peer: bool,
    /// Rounds; tables show medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of each timed part, in seconds.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Folder on the disk to be measured; 2 GiB are used.
    #[arg(long, default_value = "target/log-bench")]
    folder: PathBuf,
}

/// Groups, and bytes of each entry.
const MIXES: [(u64, u64); 4] = [(1, 256), (64, 256), (1_000, 256), (64, 4096)];
/// Many groups with one entry each, for what a group takes.
const MANY: (u64, u64) = (100_000, 16);

const OWN: Measured = ("own", "life");
const OWN_FRESH: Measured = ("own", "fresh");
const OWN_UNPREPARED: Measured = ("own-unprepared", "fresh");
const PEER: Measured = ("raft-engine", "life");
const PEER_FRESH: Measured = ("raft-engine", "fresh");
const PEER_PREFILLED: Measured = ("raft-engine-prefilled", "fresh");
const ZEROED: Measured = ("zeroed", "fresh");
const GROWING: Measured = ("growing", "fresh");
/// What is measured of each mix, in this order.
const TURN: [Measured; 8] =
    [OWN, PEER, ZEROED, OWN_FRESH, PEER_FRESH, GROWING, OWN_UNPREPARED, PEER_PREFILLED];

const OWN_GROUPS: Measured = ("own", "groups");
const PEER_GROUPS: Measured = ("raft-engine", "groups");

/// Subject and phase.
type Measured = (&'static str, &'static str);

const TABLES: [Table; 4] = [
    Table {
        title: "rounds on recycled files",
        mixes: &MIXES,
        columns: &[
            ("ours", OWN),
            ("raft-engine", PEER),
            ("zero-filled file", ZEROED),
            ("growing file", GROWING),
        ],
        rows: ROUND,
    },
    Table {
        title: "rounds on files nobody has used yet",
        mixes: &MIXES,
        columns: &[
            ("ours", OWN_FRESH),
            ("raft-engine", PEER_FRESH),
            ("ours, no segment made ahead", OWN_UNPREPARED),
            ("raft-engine, prefilled", PEER_PREFILLED),
        ],
        rows: ROUND,
    },
    Table {
        title: "a log of 512 MiB that nobody has released",
        mixes: &MIXES,
        columns: &[("ours", OWN), ("raft-engine", PEER)],
        rows: &[
            ("append without sync, CPU µs an entry", "fill_cpu_us_per_entry"),
            ("memory an entry, bytes", "memory_per_entry"),
            ("read of one old entry, CPU µs", "read_cpu_us"),
            ("start, ms", "reopen_ms"),
            ("start, CPU ms", "reopen_cpu_ms"),
            ("release, µs a group", "release_us_per_group"),
            ("the same written over it with releases, CPU µs an entry", "rewrite_cpu_us_per_entry"),
        ],
    },
    Table {
        title: "one entry for each of many groups",
        mixes: &[MANY],
        columns: &[("ours", OWN_GROUPS), ("raft-engine", PEER_GROUPS)],
        rows: &[("memory a group, bytes", "memory_per_group"), ("start, ms", "reopen_ms")],
    },
];

const ROUND: &[(&str, &str)] = &[
    ("entries/s", "entries_per_s"),
    ("CPU µs an entry", "cpu_us_per_entry"),
    ("round p50, µs", "round_p50_us"),
    ("round p99, µs", "round_p99_us"),
    ("worst round, µs", "round_worst_us"),
    ("bytes written a byte", "written_per_byte"),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // The program starts itself for each measurement.
    match words.split_first() {
        Some((first, rest)) if first == "measure" => drive::run(rest, open),
        _ => compare(&Args::parse()),
    }
}

fn open(subject: &str, folder: &Path) -> Box<dyn Subject> {
    match subject {
        "own" => Box::new(Own::open(folder, true)),
        "own-unprepared" => Box::new(Own::open(folder, false)),
        "zeroed" => Box::new(Bare::zeroed(folder)),
        "growing" => Box::new(Bare::growing(folder)),
        _ => panic!("no subject {subject}"),
    }
}

fn compare(args: &Args) {
    let peer = args.peer.then(build_peer).flatten();
    let mut found = Found::new();
    for round in 1..=args.rounds {
        for mix in MIXES {
            for measured in TURN {
                measure(args, peer.as_deref(), mix, measured, &mut found);
            }
            eprintln!("round {round}: {} x {} B done", mix.0, mix.1);
        }
        for measured in [OWN_GROUPS, PEER_GROUPS] {
            measure(args, peer.as_deref(), MANY, measured, &mut found);
        }
    }
    for table in &TABLES {
        table.print(&found, peer.is_some());
    }
    println!("\nmedian of {} rounds (least - greatest)", args.rounds);
}

/// The program that measures raft-engine, or `None` with the reason on the terminal.
fn build_peer() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/raft-engine");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--locked", "--target-dir", "target"])
        .current_dir(&folder)
        .status();
    match built {
        Ok(status) if status.success() => Some(folder.join("target/release/raft-engine-peer")),
        Ok(status) => {
            eprintln!("raft-engine does not build here ({status}), the rest goes on without it");
            None
        }
        Err(error) => {
            eprintln!("no cargo to build raft-engine ({error}), the rest goes on without it");
            None
        }
    }
}

/// Figures of each round, by mix, what was measured, and name.
type Found = BTreeMap<((u64, u64), Measured, String), Vec<f64>>;

fn measure(
    args: &Args,
    peer: Option<&Path>,
    (groups, bytes): (u64, u64),
    (subject, phase): Measured,
    found: &mut Found,
) {
    let mut command = if subject.starts_with("raft-engine") {
        let Some(peer) = peer else { return };
        Command::new(peer)
    } else {
        let mut command = Command::new(std::env::current_exe().expect("this program's file"));
        command.arg("measure");
        command
    };
    remove(&args.folder);
    command.args([subject, phase]).args([groups, bytes, args.seconds].map(|n| n.to_string()));
    let output = command.arg(&args.folder).stderr(Stdio::inherit()).output().expect("run it");
    assert!(output.status.success(), "{subject} {phase} of {groups} x {bytes} B failed");
    remove(&args.folder);
    let figures: BTreeMap<String, f64> =
        serde_json::from_slice(&output.stdout).expect("it prints one line of JSON");
    for (name, figure) in figures {
        found.entry(((groups, bytes), (subject, phase), name)).or_default().push(figure);
    }
}

fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            panic!("empty {folder:?}: {error}")
        }
        _ => {}
    }
}

/// A part of the answer.
struct Table {
    title: &'static str,
    mixes: &'static [(u64, u64)],
    /// Heading and what stands below it. The first is ours, the second what it is compared with.
    columns: &'static [(&'static str, Measured)],
    /// Heading and name of the figure.
    rows: &'static [(&'static str, &'static str)],
}

impl Table {
    fn print(&self, found: &Found, peer: bool) {
        let columns: Vec<_> = self
            .columns
            .iter()
            .filter(|(_, (subject, _))| peer || !subject.starts_with("raft-engine"))
            .collect();
        let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
        println!("\n{}:\n", self.title);
        println!("| groups x size | | {} | ours to raft-engine |", headings.join(" | "));
        println!("|{}", "---|".repeat(columns.len() + 3));
        for mix in self.mixes {
            for (heading, name) in self.rows {
                let figures = |measured: Measured| {
                    found.get(&(*mix, measured, (*name).to_owned())).map_or(&[][..], Vec::as_slice)
                };
                let cells: Vec<String> =
                    columns.iter().map(|(_, measured)| spread(figures(*measured))).collect();
                let pair = [self.columns.first(), self.columns.get(1)]
                    .map(|column| column.map_or(&[][..], |(_, measured)| figures(*measured)));
                let ratios: Vec<f64> =
                    pair[0].iter().zip(pair[1]).map(|(own, peer)| own / peer).collect();
                let (groups, bytes) = mix;
                println!(
                    "| {groups} x {bytes} B | {heading} | {} | {} |",
                    cells.join(" | "),
                    spread(&ratios)
                );
            }
        }
    }
}

/// Median, least and greatest; nothing without figures.
fn spread(figures: &[f64]) -> String {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(median), Some(greatest)) =
        (sorted.first(), sorted.get(sorted.len() / 2), sorted.last())
    else {
        return String::new();
    };
    format!("{} ({} - {})", number(*median), number(*least), number(*greatest))
}

/// Three digits are more than a shared machine can tell.
fn number(figure: f64) -> String {
    match figure.abs() {
        1e6.. => format!("{:.2}M", figure / 1e6),
        1e4.. => format!("{:.0}k", figure / 1e3),
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}
