//! `atoll-sim`: runs seeds through the simulator, as many as one likes.
//!
//! It ends with how often came what a scene is to bring about, as executors that were lost between two
//! steps, and with the line `seeds N, faults N, ops N, violations N`; it exits non-zero on a
//! violation and says how to repeat it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Parser;
use tests::sim::{Fault, Outcome, Scene, Trial, run_trial};

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
    /// What stands in the worlds, instead of each seed's own.
    #[arg(long)]
    scene: Option<SceneName>,
    /// Plant each fault of a list into the seeds, until it is found.
    #[arg(long)]
    faults: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Stop after so many seeds with violations.
    #[arg(long, default_value_t = 5)]
    violations_max: usize,
}

/// See [`Scene`].
#[derive(Clone, Copy, clap::ValueEnum)]
enum SceneName {
    Still,
    Moved,
    Service,
    Split,
}

impl Cli {
    fn run(&self, seed: u64) -> Outcome {
        run_trial(seed, self.tell, &self.trial(seed))
    }

    fn trial(&self, seed: u64) -> Trial {
        let own = Trial::of(seed);
        let scene = match self.scene {
            None => own.scene,
            Some(SceneName::Still) => Scene::Still,
            Some(SceneName::Moved) => Scene::Moved,
            Some(SceneName::Service) => Scene::Service,
            Some(SceneName::Split) => Scene::Split,
        };
        Trial { scene, ..own }
    }

    /// Tries each planted fault until a seed finds it, and prints a table.
    fn find_faults(&self) -> ExitCode {
        println!("| fault | found by | as |\n|---|---|---|");
        let mut all = true;
        for fault in Fault::ALL {
            let found = (self.seed..self.seed + self.seeds).find_map(|seed| {
                let trial = Trial { fault: Some(fault), ..self.trial(seed) };
                match std::panic::catch_unwind(|| run_trial(seed, false, &trial)) {
                    Ok(outcome) => Some((seed, outcome.violations.into_iter().next()?)),
                    Err(_) => Some((seed, "an assertion of the node".to_owned())),
                }
            });
            all &= found.is_some();
            match found {
                Some((seed, how)) => println!("| {fault:?} | seed {seed} | {how} |"),
                None => println!("| {fault:?} | none of {} seeds | |", self.seeds),
            }
        }
        if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.faults {
        return cli.find_faults();
    }
    if cli.tell {
        let outcome = cli.run(cli.seed);
        print!("{}", outcome.text.unwrap_or_default());
        for violation in &outcome.violations {
            println!("VIOLATION {violation}");
        }
        return if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let next = std::sync::atomic::AtomicU64::new(cli.seed);
    let totals = parking_lot::Mutex::new((0u64, 0u64, 0u64, 0usize));
    let marks = parking_lot::Mutex::new(BTreeMap::<String, u64>::new());
    std::thread::scope(|scope| {
        for _ in 0..cli.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= cli.seed + cli.seeds || totals.lock().3 >= cli.violations_max {
                        return;
                    }
                    let run = std::panic::catch_unwind(|| cli.run(seed));
                    let mut totals = totals.lock();
                    totals.0 += 1;
                    match run {
                        Ok(outcome) => {
                            totals.1 += outcome.faults;
                            totals.2 += outcome.ops;
                            for (what, count) in outcome.marks {
                                *marks.lock().entry(what).or_default() += count;
                            }
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
    for (what, count) in marks.into_inner() {
        println!("{count:>9}  {what}");
    }
    let (seeds, faults, ops, violations) = *totals.lock();
    println!("seeds {seeds}, faults {faults}, ops {ops}, violations {violations}");
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
