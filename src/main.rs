//! The switchboard: one binary, start-up and commands. The only code that names shard, placement
//! and router together.

mod admin;
mod commands;
mod config;
mod directory;
mod hot;
mod members;
mod offline;
mod playground;
mod rebalance;
mod resident;
mod rollcall;
mod start;
mod steward;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use config::Settings;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    /// Run three nodes and two tenants in one process, to look around.
    Playground {
        #[command(flatten)]
        options: playground::Options,
    },
    /// Show and change the members of a cluster.
    Member {
        /// Client URL of any node.
        #[arg(long, global = true, default_value = "http://localhost:2379")]
        endpoint: String,
        #[command(subcommand)]
        command: members::Command,
    },
    /// Tenants: each one an etcd of its own.
    Tenant {
        #[command(flatten)]
        way: commands::Way,
        #[command(subcommand)]
        command: commands::TenantVerb,
    },
    /// Parts of a tenant with their own placement.
    Namespace {
        #[command(flatten)]
        way: commands::Way,
        #[command(subcommand)]
        command: commands::NamespaceVerb,
    },
    /// Nodes and what may be put on them.
    Node {
        #[command(flatten)]
        way: commands::Way,
        #[command(subcommand)]
        command: commands::NodeVerb,
    },
    /// Raft groups and where they are.
    Group {
        #[command(flatten)]
        way: commands::Way,
        #[command(subcommand)]
        command: commands::GroupVerb,
    },
    /// Placement's own group lost most of its nodes for good: have the replica in the data directory
    /// of a stopped node go on alone. Without --accept-loss it only says how far it is.
    RecoverLedger {
        #[command(flatten)]
        options: offline::Options,
    },
    /// Work on groups, under way or over.
    Op {
        #[command(flatten)]
        way: commands::Way,
        #[command(subcommand)]
        command: commands::OperatorVerb,
    },
    /// Say how everything is, first in a sentence. Ends with 0 if all is well, 2 if something is
    /// lost or missing, 1 if that cannot be told.
    Status {
        #[command(flatten)]
        way: commands::Way,
    },
    /// How even the load of the nodes is, and moves that even it out.
    Rebalance {
        #[command(flatten)]
        way: commands::Way,
        #[command(subcommand)]
        command: rebalance::RebalanceVerb,
    },
    /// What is done without being asked: when tenants are split.
    Policy {
        #[command(flatten)]
        way: commands::Way,
        #[command(subcommand)]
        command: hot::PolicyVerb,
    },
    /// Print what sets etcdctl up for a tenant: eval $(atoll env acme).
    Env {
        #[command(flatten)]
        way: commands::Way,
        /// The tenant, or TENANT/NAMESPACE.
        tenant: String,
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
        Verb::Status { way } => return ended(commands::status(&way)),
        Verb::Dev { settings } => run(settings, true),
        Verb::Start { config_file, settings } => settings
            .with_file(config_file.as_deref())
            .map_err(|error| error.0)
            .and_then(|settings| run(settings, false)),
        Verb::Playground { options } => playground::run(&options),
        Verb::Member { endpoint, command } => members::run(&endpoint, command),
        Verb::Tenant { way, command } => commands::tenant(&way, command),
        Verb::Namespace { way, command } => commands::run(&way, command.into()),
        Verb::Node { way, command } => commands::run(&way, command.into()),
        Verb::Group { way, command } => commands::group(&way, command),
        Verb::RecoverLedger { options } => offline::run(&options),
        Verb::Op { way, command } => commands::run(&way, command.into()),
        Verb::Rebalance { way, command } => rebalance::run(&way, command),
        Verb::Policy { way, command } => hot::run(&way, command),
        Verb::Env { way, tenant } => commands::env(&way, &tenant),
    };
    ended(done.map(|()| ExitCode::SUCCESS))
}

fn ended(done: Result<ExitCode, String>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(message) => {
            eprintln!("atoll: {message}");
            ExitCode::FAILURE
        }
    }
}
