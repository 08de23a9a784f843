//! The yardstick: how fast and how small, against what.
//!
//! Two commands:
//! * `load` sends one *mix* (a kind of traffic with its usual numbers of clients, connections and
//!   bytes) to any endpoints that speak etcd's API, and tells throughput, latencies and what the
//!   servers' processes paid in CPU and memory.
//! * `compare` starts Atoll and etcd itself, in turns (A B A B ...), loads both with the same code,
//!   and tells medians and the ratio of each pair of turns. Machines are shared and noisy: only
//!   ratios of neighbours in time, and CPU per operation, mean much.
//!
//! In reading order: [`mixes`] (what is sent), [`load`] (how it is driven and timed), [`connection`]
//! (one HTTP/2 connection), [`cpu`] (what the system says about processes), [`servers`] (start, stop,
//! restart), [`compare`] (turns), [`footprint`] (memory, disk and restart of a filled node),
//! [`report`] (figures as text, JSON and Markdown).

mod compare;
mod connection;
mod cpu;
mod error;
mod footprint;
mod load;
mod mixes;
mod report;
mod servers;

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
