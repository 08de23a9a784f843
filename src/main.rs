//! The switchboard: one binary, start-up and commands. The only code that names shard and
//! router together.

mod config;
mod directory;
mod members;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use config::Settings;

/// Multi-tenant, sharded key-value service that speaks the etcd v3 API.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run everything in one process, for development: no flags needed.
    Dev {
        #[command(flatten)]
        settings: Settings,
    },
    /// Run a node.
    Start {
        /// Settings in TOML, with the names of the flags; flags and environment win.
        #[arg(long, env = "ATOLL_CONFIG_FILE")]
        config_file: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show and change the members of a cluster.
    Member {
        /// Client URL of any node.
        #[arg(long, global = true, default_value = "http://localhost:2379")]
        endpoint: String,
        #[command(subcommand)]
        command: members::Command,
    },
}

fn run(settings: Settings, alone: bool) -> Result<(), String> {
    if let Some(note) = settings.without_effect() {
        eprintln!("atoll: {note}");
    }
    settings.check(alone).map_err(|error| error.0).and_then(start::run)
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Verb::Dev { settings } => run(settings, true),
        Verb::Start { config_file, settings } => settings
            .with_file(config_file.as_deref())
            .map_err(|error| error.0)
            .and_then(|settings| run(settings, false)),
        Verb::Member { endpoint, command } => members::run(&endpoint, command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("atoll: {message}");
            ExitCode::FAILURE
        }
    }
}
