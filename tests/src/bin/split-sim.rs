//! `split-sim`: runs seeds of the split tenant's protocol, with all rules or without one.
//!
//! Without a planted fault it exits non-zero on a violation and says how to repeat it. With
//! `--planted` it leaves out one rule after the other and tells after how many seeds that was
//! found, and what was seen: a table for the documents.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::process::ExitCode;

use clap::Parser;
use shard::split::faults::{Fault, Faults};
use tests::split::{Outcome, run};

/// How a rule is left out so that it can be seen: predictions are right as long as they wait for
/// what came before, so that looking again is only seen to matter when they do not; and when they
/// do not, that they are looked at again costs only holes.
fn planted(fault: Fault) -> (Faults, bool) {
    let faults = Faults::NONE.and(fault);
    match fault {
        Fault::NoVerify => (faults.and(Fault::PredictOnApplied), true),
        // A sequencer that did not see the leases granted believes that everybody has their keys.
        Fault::PredictOnApplied | Fault::HoldersNotSplit => (faults, false),
        _ => (faults, true),
    }
}

/// Runs seeds through the simulator of split tenants.
#[derive(Parser)]
struct Cli {
    /// How many seeds; with `--planted`, at most, for each fault.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nothing fails; then the revisions must have no holes.
    #[arg(long)]
    calm: bool,
    /// Tell everything that happens (one seed).
    #[arg(long)]
    tell: bool,
    /// Leaves out every rule in turn, or the one that is named, and counts the seeds until it is
    /// found.
    #[arg(long, num_args = 0..=1, default_missing_value = "all")]
    planted: Option<String>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(which) = &cli.planted {
        return plant(&cli, which);
    }
    if cli.tell {
        let outcome = run(cli.seed, Faults::NONE, !cli.calm, true);
        print!("{}", outcome.text);
        return told(&outcome);
    }
    let next = std::sync::atomic::AtomicU64::new(cli.seed);
    let totals = parking_lot::Mutex::new((0u64, Outcome::default(), 0u64));
    std::thread::scope(|scope| {
        for _ in 0..cli.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= cli.seed + cli.seeds || totals.lock().2 >= 5 {
                        return;
                    }
                    let outcome = catch_unwind(|| run(seed, Faults::NONE, !cli.calm, false));
                    let mut totals = totals.lock();
                    totals.0 += 1;
                    match outcome {
                        Ok(outcome) => {
                            add(&mut totals.1, &outcome);
                            if outcome.violations.is_empty() {
                                continue;
                            }
                            println!("seed {seed} (repeat: --seed {seed} --tell):");
                            for violation in outcome.violations.iter().take(4) {
                                println!("  {violation}");
                            }
                        }
                        Err(_) => println!("seed {seed} panicked"),
                    }
                    totals.2 += 1;
                }
            });
        }
    });
    let (seeds, sum, bad) = totals.into_inner();
    println!(
        "seeds {seeds}, answered {}, revisions {}, holes {}, leader changes {}, planned transfers \
         {}, splits {}, merges {}, changes between one group and several {}, transactions over groups {}, void {}, violations {bad}",
        sum.answered,
        sum.revisions,
        sum.holes,
        sum.elections,
        sum.transfers,
        sum.splits,
        sum.merges,
        sum.modes,
        sum.decisions,
        sum.voids
    );
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn told(outcome: &Outcome) -> ExitCode {
    for violation in &outcome.violations {
        println!("VIOLATION {violation}");
    }
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn add(sum: &mut Outcome, one: &Outcome) {
    sum.answered += one.answered;
    sum.revisions += one.revisions;
    sum.holes += one.holes;
    sum.elections += one.elections;
    sum.decisions += one.decisions;
    sum.voids += one.voids;
    sum.transfers += one.transfers;
    sum.splits += one.splits;
    sum.merges += one.merges;
    sum.modes += one.modes;
}

fn plant(cli: &Cli, which: &str) -> ExitCode {
    let named = |fault: &Fault| which == "all" || format!("{fault:?}") == which;
    println!("| left out | seeds until found | seen |\n|---|---|---|");
    let mut missed = 0;
    for fault in Fault::ALL.into_iter().filter(named) {
        let mut seen = BTreeMap::new();
        let mut tried = 0;
        for seed in cli.seed..cli.seed + cli.seeds {
            tried += 1;
            let (faults, failures) = planted(fault);
            let outcome = catch_unwind(|| run(seed, faults, failures && !cli.calm, false));
            match outcome {
                Ok(outcome) if outcome.violations.is_empty() => continue,
                Ok(outcome) => {
                    let first = outcome.violations.into_iter().next().unwrap_or_default();
                    seen.insert(first, seed);
                }
                Err(_) => drop(seen.insert("an assertion failed".to_owned(), seed)),
            }
            break;
        }
        let words = seen.keys().next().map(|text| text.chars().take(110).collect::<String>());
        match words {
            Some(words) => println!("| {fault:?} | {tried} | {words} |"),
            None => {
                missed += 1;
                println!("| {fault:?} | not in {tried} | |");
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
