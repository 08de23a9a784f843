//! `bench yardstick`: the whole table against Atoll and etcd, into a folder.
//!
//! The rows are the mixes of [`mixes`] and the longer stories of [`trials`](crate::trials), each with its
//! goals. What is written, anew after every row:
//!
//! * `yardstick.md`, `yardstick.jsonl`: every figure, ratio and goal;
//! * `cpu.svg`, `rate.svg`, `p99.svg`, `size.svg`: ratios with whiskers against goals;
//! * `growth-N.svg`, `overwrite-N.svg`: cost over keys and disk over time, N nodes;
//! * `runs.jsonl`, `disk.jsonl`: every turn by itself.

use std::path::PathBuf;
use std::time::Duration;

use crate::compare::parse_nodes;
use crate::error::Error;
use crate::load::Overrides;
use crate::mixes;
use crate::plots;
use crate::report::{self, Surroundings};
use crate::results::Results;
use crate::servers::Settings;
use crate::sides;
use crate::trials::{Row, Trial, catch_up, footprint, growth, overwrite};
use crate::turns::Stage;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
/// The rows that overwrite, with the lengths of their values and their clients.
const OVERWRITES: [(&str, usize, usize); 3] = [
    ("overwrite-10k", 10 * 1024, 10),
    ("overwrite-100k", 100 * 1024, 10),
    ("overwrite-1m", 1024 * 1024, 4),
];

/// Arguments of `bench yardstick`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for tables and pictures; files of an earlier run are replaced.
    #[arg(long, required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Sizes of cluster, separated by commas: 1, 3.
    #[arg(long, value_delimiter = ',', default_value = "1,3", value_parser = parse_nodes)]
    nodes: Vec<usize>,
    /// Only these rows, separated by commas, each a name or its beginning and `*` (see --list).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Shows the names of the rows and ends.
    #[arg(long)]
    list: bool,
    /// Turns of each system and mix.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Turns of each system in the rows that take minutes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    long_rounds: u16,
    /// Length of a measured window.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Time under load before the window.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    sides: sides::Args,
}

/// How much the long rows hold. The yardstick's goals are for the defaults.
#[derive(clap::Args)]
struct Sizes {
    /// Keys of `footprint`.
    #[arg(long, default_value_t = footprint::KEYS)]
    footprint_keys: u64,
    /// Numbers of keys of `growth`, in growing order.
    #[arg(long, value_delimiter = ',', default_value = "10000,1000000,10000000")]
    growth_keys: Vec<u64>,
    /// etcd grows to so many keys only: with 10 million a node of it wants about 7 GB of memory.
    #[arg(long, default_value_t = 1_000_000)]
    growth_etcd_keys_max: u64,
    /// Live data of `overwrite-*`.
    #[arg(long, default_value_t = 400)]
    overwrite_mib: u64,
    /// How often the live data is overwritten.
    #[arg(long, default_value_t = 4)]
    overwrite_passes: u64,
    /// Seconds between two compactions of `overwrite-*`.
    #[arg(long, default_value_t = 5.0)]
    compact_seconds: f64,
    /// Data that a new follower catches up with in `catch-up`.
    #[arg(long, default_value_t = 1024)]
    catch_up_mib: u64,
}

/// Said below the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  The whole table, some hours:       bench yardstick --out target/yardstick
  A first look, some minutes:        bench yardstick --out target/yardstick --only 'put*,get*,range*' --rounds 2 --seconds 2
  What noise alone does:             bench yardstick --out target/control --control --nodes 3 --only put,get
  Two builds of Atoll:               bench yardstick --out target/pair --peer-atoll-bin OTHER --only 'put*'";

/// Runs `bench yardstick`.
pub(crate) async fn command(args: Args) -> Result<(), Error> {
    let overrides = Overrides::timed(args.seconds, args.warmup)?;
    let rows = chosen(rows(&args.sizes, &overrides)?, &args.only)?;
    if args.list {
        rows.iter().for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    let (rows, left_out) = split_by_nodes(rows, &args.nodes);
    if rows.is_empty() {
        return Err(Error::Usage(left_out_text(&left_out)));
    }
    let out = args.out.expect("needed unless rows are listed");
    let sides = args.sides.find()?;
    report::clear(&out)?;
    let (rounds, long_rounds) = (usize::from(args.rounds), usize::from(args.long_rounds));
    let mut around = Surroundings::new(&sides, &args.nodes, rounds, overrides.timing());
    around.notes = notes(&rows, long_rounds, &args.sizes);
    if !left_out.is_empty() {
        around.notes.push(left_out_text(&left_out));
    }
    let stage = Stage { sides, overrides, out: Some(out.clone()) };
    let mut results = Results::default();
    for &nodes in &args.nodes {
        for row in rows.iter().filter(|row| row.nodes.is_none_or(|of_row| of_row == nodes)) {
            let rounds = if row.long { long_rounds } else { rounds };
            stage.rounds(row, nodes, rounds, &mut results).await;
            report::write_results(&out, report::YARDSTICK, &around, &results)?;
            for (name, picture) in plots::all(&around, &results) {
                report::write(&out, &name, &picture)?;
            }
        }
    }
    println!("\n{}", report::markdown(&around, &results));
    results.verdict()
}

// === Rows ===

/// The whole table.
fn rows(sizes: &Sizes, overrides: &Overrides) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for mix in mixes::all() {
        rows.push(Row::of_mix(&mix, overrides)?);
    }
    rows.push(Row::of_footprint(sizes.footprint_keys, overrides)?);
    let with_quota = |gib: u64| Settings { quota_bytes: Some(gib * GIB), ..Default::default() };
    if sizes.growth_keys.is_empty() || !sizes.growth_keys.is_sorted() {
        return Err(Error::Usage("growth-keys must grow".to_owned()));
    }
    let plan =
        growth::Plan { keys: sizes.growth_keys.clone(), etcd_keys_max: sizes.growth_etcd_keys_max };
    let settings = with_quota(16);
    // Three nodes on one disk would hold everything three times and tell the same.
    let nodes = Some(1);
    let row = Row::new(growth::NAME, Trial::Growth(plan), &[]);
    rows.push(Row { goals: growth::goals(), settings, nodes, long: true, ..row });
    for (name, value_bytes, clients) in OVERWRITES {
        let plan = overwrite::Plan {
            value_bytes,
            clients,
            live_bytes: sizes.overwrite_mib * MIB,
            passes: sizes.overwrite_passes,
            compact_every: Duration::from_secs_f64(sizes.compact_seconds),
        };
        let row = Row::new(name, Trial::Overwrite(plan), &overwrite::goals());
        rows.push(Row { settings: with_quota(8), long: true, ..row });
    }
    let plan = catch_up::Plan { data_bytes: sizes.catch_up_mib * MIB };
    let row = Row::new(catch_up::NAME, Trial::CatchUp(plan), &catch_up::goals());
    let (settings, nodes) = (with_quota(8), Some(catch_up::NODES));
    rows.push(Row { settings, nodes, long: true, ..row });
    Ok(rows)
}

/// The rows that are asked for, in the order of the table; all if none is named.
fn chosen(rows: Vec<Row>, only: &[String]) -> Result<Vec<Row>, Error> {
    let fits = |wanted: &String, name: &str| match wanted.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => wanted == name,
    };
    if let Some(unknown) = only.iter().find(|w| !rows.iter().any(|row| fits(w, &row.name))) {
        return Err(Error::Usage(format!("no row {unknown:?}; --list shows them")));
    }
    let wanted = |row: &Row| only.is_empty() || only.iter().any(|w| fits(w, &row.name));
    Ok(rows.into_iter().filter(wanted).collect())
}

/// The rows that can be done with these sizes of cluster, and in words those that cannot.
fn split_by_nodes(rows: Vec<Row>, nodes: &[usize]) -> (Vec<Row>, Vec<String>) {
    let fits = |row: &Row| row.nodes.is_none_or(|of_row| nodes.contains(&of_row));
    let (rows, rest): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(fits);
    let told = |row: &Row| format!("{} (needs {})", row.name, row.nodes.unwrap_or_default());
    (rows, rest.iter().map(told).collect())
}

fn left_out_text(rows: &[String]) -> String {
    format!("Not done with these sizes of cluster: {}.", rows.join(", "))
}

/// What a reader must know of the long rows.
fn notes(rows: &[Row], long_rounds: usize, sizes: &Sizes) -> Vec<String> {
    let mut notes = Vec::new();
    let long: Vec<&str> = rows.iter().filter(|row| row.long).map(|row| &row.name[..]).collect();
    if !long.is_empty() {
        notes.push(format!("Rounds of {}: {long_rounds}.", long.join(", ")));
    }
    let raised = rows.iter().filter_map(|row| Some((&row.name, row.settings.quota_bytes?)));
    let raised: Vec<String> =
        raised.map(|(name, bytes)| format!("{name} {} GiB", bytes / GIB)).collect();
    if !raised.is_empty() {
        notes.push(format!(
            "`--quota-backend-bytes` of both systems is raised for {}; everything else is default.",
            raised.join(", ")
        ));
    }
    if rows.iter().any(|row| matches!(row.trial, Trial::Overwrite(_))) {
        notes.push(format!(
            "Overwriting: {} MiB of live data {} times, old revisions compacted every {} s. etcd's \
             file never shrinks without a defragmentation, which stops the member: none is done.",
            sizes.overwrite_mib, sizes.overwrite_passes, sizes.compact_seconds
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn all_rows() -> Vec<Row> {
        let line = Line::parse_from(["bench", "--out", "x"]);
        let overrides = Overrides::timed(1.0, 1.0).expect("times above 0");
        rows(&line.args.sizes, &overrides).expect("the defaults are possible")
    }

    fn names(only: &[&str]) -> Vec<String> {
        let only: Vec<String> = only.iter().map(|&w| w.to_owned()).collect();
        let rows = chosen(all_rows(), &only).expect("rows of the table");
        rows.into_iter().map(|row| row.name).collect()
    }

    #[test]
    fn rows_have_names_of_their_own() {
        let rows = all_rows();
        let names: HashSet<_> = rows.iter().map(|row| &row.name).collect();
        assert_eq!(names.len(), rows.len());
    }

    #[test]
    fn rows_are_chosen_by_name_or_beginning_in_the_order_of_the_table() {
        assert_eq!(names(&["get-1", "put"]), ["put", "get-1"]);
        assert_eq!(names(&["overwrite*"]).len(), OVERWRITES.len());
        assert_eq!(names(&[]).len(), all_rows().len());
        assert!(chosen(all_rows(), &["pat".to_owned()]).is_err());
    }

    #[test]
    fn rows_for_other_sizes_of_cluster_are_left_out_and_told() {
        let (rows, left_out) = split_by_nodes(all_rows(), &[3]);
        assert_eq!(left_out, ["growth (needs 1)"]);
        assert!(rows.iter().any(|row| row.name == catch_up::NAME));
        assert_eq!(split_by_nodes(all_rows(), &[1, 3]).1, [""; 0]);
    }

    #[test]
    fn what_is_not_default_is_told() {
        let line = Line::parse_from(["bench", "--out", "x"]);
        let told = notes(&all_rows(), 2, &line.args.sizes).join(" ");
        assert!(told.contains("growth 16 GiB") && told.contains("overwrite-1m 8 GiB"), "{told}");
        let plain = chosen(all_rows(), &["put".to_owned()]).expect("a row of the table");
        assert!(notes(&plain, 2, &line.args.sizes).is_empty());
    }
}
