//! Kills nodes of a real cluster again and again and judges what clients saw; see
//! `tests/src/chaos.rs`.
//!
//! The last line is `kills N, pauses N, acknowledged N, unknown N, revisions N, violations N`;
//! it exits non-zero on a violation and says where data, logs and history were left.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::chaos::{Options, Summary, run};
use tests::process::{Program, peers_dir};

/// Kills when nothing else is said: about a minute's worth.
const KILLS: u64 = 22;
/// Violations printed in full.
const SHOWN: usize = 20;

/// Kills nodes of a real cluster again and again and judges what clients saw.
#[derive(Debug, Parser)]
struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Kills with SIGKILL, among other faults; 22 unless --seconds is given.
    #[arg(long)]
    kills: Option<u64>,
    /// Ends the faults after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// What faults and requests are drawn from; by default the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Program to start as Atoll; by default the one next to this program.
    #[arg(long)]
    atoll_bin: Option<PathBuf>,
    /// Treats etcd in the same way, as tests/peers/build.sh built it: nothing may be found.
    #[arg(long, conflicts_with = "atoll_bin")]
    control: bool,
    /// Splits the tenant and merges it again all the while.
    #[arg(long, conflicts_with = "control")]
    cuts: bool,
    /// etcdctl to watch with; by default what tests/peers/build.sh built, if it is there.
    #[arg(long)]
    etcdctl: Option<PathBuf>,
    /// Where data and logs go; by default a new directory in the system's.
    #[arg(long)]
    work_dir: Option<PathBuf>,
}

impl Args {
    fn options(&self) -> Options {
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |now| now.as_secs())
        };
        let beside = || std::env::current_exe().unwrap_or_default().with_file_name("atoll");
        let own_dir = || std::env::temp_dir().join(format!("atoll-chaos-{}", std::process::id()));
        let peer = Some(peers_dir().join("bin").join("etcdctl")).filter(|path| path.exists());
        Options {
            nodes: self.nodes.max(1),
            kills: self.kills.or_else(|| self.seconds.is_none().then_some(KILLS)),
            time: self.seconds.map(Duration::from_secs),
            seed: self.seed.unwrap_or_else(clock),
            program: if self.control {
                Program::etcd_peer()
            } else {
                Program::Atoll(self.atoll_bin.clone().unwrap_or_else(beside))
            },
            cuts: self.cuts,
            etcdctl: self.etcdctl.clone().or(peer),
            work_dir: self.work_dir.clone().unwrap_or_else(own_dir),
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let options = Args::parse().options();
    println!("seed {}", options.seed);
    let begun = Instant::now();
    let summary = match run(&options).await {
        Ok(summary) => summary,
        Err(error) => {
            eprintln!("error: {error}\nkept: {}", options.work_dir.display());
            return ExitCode::from(2);
        }
    };
    report(&summary, begun.elapsed());
    for violation in summary.violations.iter().take(SHOWN) {
        println!("VIOLATION {violation}");
    }
    let good = summary.violations.is_empty();
    if good {
        // What a good run leaves is of no use; a directory that cannot be removed does no harm.
        let _ = std::fs::remove_dir_all(&options.work_dir);
    } else {
        println!("kept: {} (data, logs, history)", options.work_dir.display());
    }
    println!(
        "kills {}, pauses {}, acknowledged {}, unknown {}, revisions {}, violations {}",
        summary.kills,
        summary.pauses,
        summary.acknowledged,
        summary.unknown,
        summary.revisions,
        summary.violations.len()
    );
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(summary: &Summary, took: Duration) {
    println!(
        "{:.1} s: {:.1} s of faults, {:.1} s of judging; {} ended with SIGTERM",
        took.as_secs_f64(),
        summary.stormed.as_secs_f64(),
        summary.judged.as_secs_f64(),
        summary.stops
    );
    match summary.etcdctl_lives {
        0 => println!("no etcdctl watch was judged (tests/peers/build.sh builds etcdctl)"),
        lives => println!("etcdctl watch was started {lives} times"),
    }
    if let Some((splits, merges)) = summary.cuts {
        println!("{splits} splits, {merges} merges; {} revisions were skipped", summary.holes);
    }
    tell("after the kill of a leader a write was acknowledged within", &summary.gaps);
    tell("a node served again within", &summary.starts);
}

fn tell(what: &str, ascending: &[Duration]) {
    if let (Some(median), Some(longest)) = (ascending.get(ascending.len() / 2), ascending.last()) {
        let (median, longest) = (median.as_millis(), longest.as_millis());
        println!("{what} {median} ms (p50), {longest} ms (max), {} times", ascending.len());
    }
}
