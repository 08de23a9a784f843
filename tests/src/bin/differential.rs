//! Plays random scripts against Atoll and etcd and compares every answer; see
//! `tests/src/differential.rs`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::differential::pair::Source;
use tests::differential::{Options, exception, run, script};
use tests::process::Program;

/// Plays random scripts against Atoll and etcd and compares every answer.
#[derive(Debug, Parser)]
struct Args {
    /// Scripts to play.
    #[arg(long, default_value_t = 1000)]
    scripts: u64,
    /// What the scripts are drawn from; by default the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Index of the first script.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Program to start as Atoll; by default the one next to this program.
    #[arg(long, conflicts_with = "atoll")]
    atoll_bin: Option<PathBuf>,
    /// An Atoll that runs already.
    #[arg(long)]
    atoll: Option<String>,
    /// Program to start as etcd; by default what tests/peers/build.sh built.
    #[arg(long, conflicts_with = "etcd")]
    etcd_bin: Option<PathBuf>,
    /// An etcd that runs already.
    #[arg(long)]
    etcd: Option<String>,
    /// Compares etcd with etcd, which must give no difference.
    #[arg(long, conflicts_with_all = ["atoll", "atoll_bin"])]
    control: bool,
    /// Starts both servers anew after so many scripts.
    #[arg(long, default_value_t = 2500)]
    fresh_every: u64,
    /// Stops after so many differences.
    #[arg(long, default_value_t = 1)]
    differences_max: u64,
    /// Stops after so many seconds.
    #[arg(long)]
    budget_seconds: Option<u64>,
    /// Seconds to spend on shortening a script that shows a difference; 0: none.
    #[arg(long, default_value_t = 60)]
    shrink_seconds: u64,
    /// Where data directories go; by default a new one in the system's.
    #[arg(long)]
    work_dir: Option<PathBuf>,
    /// Prints what may differ, why, and how often it was met.
    #[arg(long)]
    exceptions: bool,
    /// Prints how long each kind of step took.
    #[arg(long)]
    timings: bool,
    /// Only prints the scripts.
    #[arg(long)]
    print: bool,
}

impl Args {
    fn options(&self) -> Options {
        let etcd = self.etcd_bin.clone().map_or_else(Program::etcd_peer, Program::Etcd);
        let reference = self.etcd.clone().map_or(Source::Start(etcd.clone()), Source::Url);
        let beside = || {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("atoll")
        };
        let candidate = match (&self.atoll, &self.atoll_bin) {
            (Some(url), _) => Source::Url(url.clone()),
            _ if self.control => Source::Start(etcd),
            (None, bin) => Source::Start(Program::Atoll(bin.clone().unwrap_or_else(beside))),
        };
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |now| now.as_secs())
        };
        let own_dir =
            || std::env::temp_dir().join(format!("atoll-differential-{}", std::process::id()));
        Options {
            scripts: self.scripts,
            first: self.first,
            seed: self.seed.unwrap_or_else(clock),
            sources: [candidate, reference],
            fresh_every: self.fresh_every.max(1),
            differences_max: self.differences_max.max(1),
            budget: self.budget_seconds.map(Duration::from_secs),
            shrink_for: Duration::from_secs(self.shrink_seconds),
            work_dir: self.work_dir.clone().unwrap_or_else(own_dir),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let options = args.options();
    println!("seed {}", options.seed);
    if args.print {
        for index in options.first..options.first + options.scripts {
            println!("script {index}");
            for (at, op) in script::write(options.seed, index).iter().enumerate() {
                println!("  {at}: {op:?}");
            }
        }
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    let outcome = run(&options).await;
    if args.work_dir.is_none() {
        // Servers remove their own directories, but not one that did not start.
        let _ = std::fs::remove_dir_all(&options.work_dir);
    }
    let summary = match outcome {
        Ok(summary) => summary,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if args.exceptions {
        print!("{}", exception::table());
    }
    if args.timings {
        for (kind, (count, spent)) in &summary.timings {
            let total_ms = spent.as_secs_f64() * 1e3;
            println!(
                "{kind:<14} {count:>8} {total_ms:>10.0} ms {:>9.3} ms each",
                total_ms / *count as f64
            );
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{seconds:.1} s, {:.0} scripts/s", summary.scripts as f64 / seconds);
    println!(
        "scripts {}, requests {}, differences {}",
        summary.scripts, summary.requests, summary.differences
    );
    if summary.differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
