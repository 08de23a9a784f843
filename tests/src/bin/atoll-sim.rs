//! `atoll-sim`: runs seeds through the simulator, as many as one likes.
//!
//! The last line is `seeds N, faults N, ops N, violations N`; it exits non-zero on a
//! violation and says how to repeat it.

use std::process::ExitCode;

use clap::Parser;

/// Runs seeds through the deterministic simulator.
#[derive(Parser)]
struct Cli {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tell everything that happens (one seed).
    #[arg(long)]
    tell: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Stop after so many seeds with violations.
    #[arg(long, default_value_t = 5)]
    violations_max: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.tell {
        let outcome = tests::sim::run(cli.seed, true);
        print!("{}", outcome.text.unwrap_or_default());
        for violation in &outcome.violations {
            println!("VIOLATION {violation}");
        }
        return if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let next = std::sync::atomic::AtomicU64::new(cli.seed);
    let totals = parking_lot::Mutex::new((0u64, 0u64, 0u64, 0usize));
    std::thread::scope(|scope| {
        for _ in 0..cli.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= cli.seed + cli.seeds || totals.lock().3 >= cli.violations_max {
                        return;
                    }
                    let run = std::panic::catch_unwind(|| tests::sim::run(seed, false));
                    let mut totals = totals.lock();
                    totals.0 += 1;
                    match run {
                        Ok(outcome) => {
                            totals.1 += outcome.faults;
                            totals.2 += outcome.ops;
                            if !outcome.violations.is_empty() {
                                totals.3 += 1;
                                println!("seed {seed} (repeat: --seed {seed} --seeds 1 --tell):");
                                for violation in outcome.violations.iter().take(5) {
                                    println!("  {violation}");
                                }
                            }
                        }
                        Err(_) => {
                            totals.3 += 1;
                            println!("seed {seed}: a panic, see above");
                        }
                    }
                }
            });
        }
    });
    let (seeds, faults, ops, violations) = *totals.lock();
    println!("seeds {seeds}, faults {faults}, ops {ops}, violations {violations}");
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
