//! The yardstick: how fast and how small, against what.
//!
//! Five commands:
//! * `load` sends one *mix* (a kind of traffic with its usual numbers of clients, connections and
//!   bytes) to any endpoints that speak etcd's API, and tells throughput, latencies and what the
//!   servers' processes paid in CPU and memory.
//! * `compare` starts Atoll and etcd itself, in turns (A B A B ...), loads both with the same code,
//!   and tells medians and the ratio of each pair of turns. Machines are shared and noisy: only
//!   ratios of neighbours in time, and CPU per operation, mean much.
//! * `yardstick` does that for the whole table of the yardstick, with its goals, and draws pictures.
//! * `groups` starts Atoll with many idle tenants, and tells what each costs.
//! * `live` starts Atoll under load like Kubernetes', splits it, and tells what its clients felt.
//!
//! In reading order: [`mixes`] (what is sent), [`load`] (how it is driven and timed), [`connection`]
//! (one HTTP/2 connection), [`cpu`] (what the system says about processes), [`servers`] (start, stop,
//! restart), [`sides`] (which two systems), [`trials`] (what a turn does), [`turns`] (A B A B),
//! [`goals`] (what is asked), [`results`] (ratios and verdicts), [`report`] (text, JSON, Markdown),
//! [`plots`] (SVG), [`compare`], [`yardstick`] and [`groups`] (the commands).

mod compare;
mod connection;
mod cpu;
mod error;
mod goals;
mod groups;
mod live;
mod load;
mod mixes;
mod plots;
mod report;
mod results;
mod servers;
mod sides;
mod trials;
mod turns;
mod yardstick;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use error::Error;

/// Loads etcd endpoints, and compares Atoll with etcd.
#[derive(Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Loads running endpoints with one mix.
    Load(load::Args),
    /// Runs Atoll and etcd in turns and compares them.
    Compare(compare::Args),
    /// Runs the whole table of the yardstick against Atoll and etcd, into a folder of tables and plots.
    ///
    /// Both run in turns, on fresh data, with default settings and fsync, on this machine. A turn of a
    /// mix takes some seconds more than its window; `footprint`, `growth`, `overwrite-*` and `catch-up`
    /// take minutes each and are done in fewer rounds. The rows that write more than etcd's default
    /// quota of 2 GiB (`growth`, `overwrite-*`, `catch-up`) raise --quota-backend-bytes for both.
    /// A row that fails is told and left out; the command then ends with a failure.
    #[command(after_help = yardstick::EXAMPLES)]
    Yardstick(yardstick::Args),
    /// Tells what idle tenants cost: memory, CPU, creation, restart.
    Groups(groups::Args),
    /// Tells what clients feel while their etcd is split over groups.
    Live(live::Args),
    /// Lists the mixes with their usual shapes.
    Mixes,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Only steers; each run under load has a runtime of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    // The command is dropped when a signal wins, and takes the servers that it started with it.
    let result = runtime.block_on(async {
        tokio::select! {
            result = run(cli.command) => result,
            () = interrupted() => Err(Error::Interrupted),
        }
    });
    drop(runtime);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Load(args) => Box::pin(load::command(args)).await,
        Command::Compare(args) => Box::pin(compare::command(args)).await,
        Command::Yardstick(args) => Box::pin(yardstick::command(args)).await,
        Command::Groups(args) => Box::pin(groups::command(args)).await,
        Command::Live(args) => Box::pin(live::command(args)).await,
        Command::Mixes => {
            print!("{}", report::mix_list(&mixes::all()));
            Ok(())
        }
    }
}

/// Returns at the first signal that asks the program to end.
async fn interrupted() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let waits = kinds.map(|kind| {
        Box::pin(async move {
            signal(kind).expect("signals can be listened for").recv().await;
        })
    });
    futures::future::select_all(waits).await;
}
