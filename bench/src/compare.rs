//! `bench compare`: some mixes against two systems in turns, as chosen and shaped on the command line.

use std::path::PathBuf;

use crate::error::Error;
use crate::load::Overrides;
use crate::mixes;
use crate::report::{self, Surroundings};
use crate::results::Results;
use crate::sides;
use crate::trials::{Row, footprint};
use crate::turns::Stage;

/// Arguments of `bench compare`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Mixes, separated by commas, or `all`; `footprint` weighs a filled, idle server.
    #[arg(long, value_delimiter = ',', default_value = "put,get,get-serializable,range,cas,txn")]
    mixes: Vec<String>,
    /// Turns of each system.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Nodes of each cluster.
    #[arg(long, default_value_t = 3, value_parser = parse_nodes)]
    nodes: usize,
    /// Writes compare.md, compare.jsonl and runs.jsonl into this folder.
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    sides: sides::Args,
    #[command(flatten)]
    overrides: Overrides,
}

/// The sizes of cluster that both systems are laid out for.
pub(crate) fn parse_nodes(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3".to_owned()),
    }
}

/// Runs `bench compare`.
pub(crate) async fn command(args: Args) -> Result<(), Error> {
    let rows = rows(&args)?;
    let sides = args.sides.find()?;
    if let Some(folder) = &args.out {
        report::clear(folder)?;
    }
    let around = Surroundings::new(&sides, &[args.nodes], args.rounds, args.overrides.timing());
    let stage = Stage { sides, overrides: args.overrides, out: args.out };
    let mut results = Results::default();
    for row in &rows {
        stage.rounds(row, args.nodes, args.rounds, &mut results).await;
        if let Some(folder) = &stage.out {
            report::write_results(folder, report::COMPARE, &around, &results)?;
        }
    }
    println!("\n{}", report::markdown(&around, &results));
    results.verdict()
}

fn rows(args: &Args) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for name in &args.mixes {
        match name.as_str() {
            "all" => {
                for mix in mixes::all() {
                    rows.push(Row::of_mix(&mix, &args.overrides)?);
                }
            }
            footprint::NAME => {
                let keys = args.overrides.keys().unwrap_or(footprint::KEYS);
                rows.push(Row::of_footprint(keys, &args.overrides)?);
            }
            name => rows.push(Row::of_mix(&mixes::find(name)?, &args.overrides)?),
        }
    }
    Ok(rows)
}
