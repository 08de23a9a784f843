//! Figures as text, JSON lines and Markdown.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::cpu;
use crate::error::Error;
use crate::goals::{Verdict, count};
use crate::load::{Figures, Shape, Timing};
use crate::mixes::Mix;
use crate::results::{Comparison, Failure, Results, median};
use crate::servers::System;
use crate::sides::Sides;
use crate::trials::{Measured, Window};

/// Every single turn, one a line.
pub(crate) const RUNS_FILE: &str = "runs.jsonl";
/// Sizes of disks over time, one turn a line.
const DISK_FILE: &str = "disk.jsonl";
/// Names of results, without their endings.
pub(crate) const COMPARE: &str = "compare";
pub(crate) const YARDSTICK: &str = "yardstick";

// === One run ===

/// A `bench load` as a line of JSON.
#[derive(Serialize)]
pub(crate) struct LoadLine<'a> {
    pub(crate) mix: &'a str,
    pub(crate) shape: &'a Shape,
    #[serde(flatten)]
    pub(crate) figures: &'a Figures,
}

/// A turn in a line per window, or in one of its figures, to watch a comparison.
pub(crate) fn turn_text(
    row: &str,
    nodes: usize,
    round: usize,
    label: &str,
    measured: &Measured,
) -> String {
    let mut text = String::new();
    for Window { row, shape, figures: f } in &measured.windows {
        let _ = write!(
            text,
            "{row:<19} x{nodes} {round} {label:<14} {:>9} ops/s  cpu {:>7} us/op  p50 {:>7}  \
             p99 {:>7}  max {:>7} ms  client {:>5} us/op  others {:.2} cores  {} keys",
            short(f.ops_per_s),
            short(f.server_cpu_us_per_op.unwrap_or(0.0)),
            short(f.p50_ms),
            short(f.p99_ms),
            short(f.max_ms),
            short(f.client_cpu_us_per_op),
            f.other_cores,
            count(shape.keys),
        );
        if f.errors > 0 {
            let _ = write!(text, "  {} ERRORS", f.errors);
        }
        text.push('\n');
    }
    // A plain mix has said everything; what came of several steps has not.
    if measured.windows.len() != 1 || !measured.disk.is_empty() {
        let _ = write!(text, "{row:<19} x{nodes} {round} {label:<14}");
        for value in measured.values.iter().filter(|value| value.row == row) {
            let at = value.keys.map(|keys| format!("@{}", count(keys))).unwrap_or_default();
            let _ = write!(text, " {}{at} {}", value.metric.name(), short(value.value));
        }
        text.push('\n');
    }
    text
}

/// A run for people.
pub(crate) fn figures_text(mix: &Mix, shape: &Shape, f: &Figures) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: String| {
        let _ = writeln!(text, "{name:<14} {what}");
    };
    line("mix", format!("{}: {}", mix.name, mix.about));
    line("shape", shape_text(shape));
    line("throughput", format!("{} ops/s ({} in {:.2} s)", short(f.ops_per_s), f.ops, f.seconds));
    if let Some(writes) = f.writes_per_s {
        line("writes", format!("{} /s", short(writes)));
    }
    line(
        "latency",
        format!(
            "p50 {}  p90 {}  p99 {}  max {} ms",
            short(f.p50_ms),
            short(f.p90_ms),
            short(f.p99_ms),
            short(f.max_ms)
        ),
    );
    if let (Some(cpu), Some(memory)) = (f.server_cpu_us_per_op, f.memory) {
        line("server CPU", format!("{} us/op ({:.2} cores)", short(cpu), f.server_cores));
        line(
            "server memory",
            format!(
                "{} MiB resident ({} anonymous), peak {}",
                short(memory.resident_mib),
                short(memory.anonymous_mib),
                short(memory.peak_mib)
            ),
        );
    }
    let client = short(f.client_cpu_us_per_op);
    line("client CPU", format!("{client} us/op ({:.2} cores)", f.client_cores));
    line(
        "surroundings",
        format!(
            "load average {}, others {:.2} cores, stolen {:.2}",
            f.load_average, f.other_cores, f.stolen_cores
        ),
    );
    if f.errors > 0 {
        let first = f.first_error.as_deref().unwrap_or_default();
        line("ERRORS", format!("{}, first: {first}", f.errors));
    }
    text
}

fn shape_text(shape: &Shape) -> String {
    let mut text = format!(
        "{} clients on {} connections, {} B, {} keys",
        shape.clients, shape.connections, shape.value_bytes, shape.keys
    );
    if shape.watchers > 0 {
        let _ = write!(text, ", {} watchers", shape.watchers);
    }
    if let Some(rate) = shape.rate {
        let _ = write!(text, ", {rate} ops/s asked");
    }
    if let Some(total) = shape.total {
        let _ = write!(text, ", {total} ops at most");
    }
    text
}

/// The mixes as a table.
pub(crate) fn mix_list(mixes: &[Mix]) -> String {
    let mut text = String::new();
    for mix in mixes {
        let _ = writeln!(text, "{:<17} {} ({})", mix.name, mix.about, shape_text(&mix.shape));
    }
    let _ = writeln!(
        text,
        "{:<17} memory, disk and restart of a filled node (not with load)",
        "footprint"
    );
    text
}

// === Comparisons ===

/// Under what a comparison was made.
pub(crate) struct Surroundings {
    labels: [String; 2],
    /// What the programs say of their versions.
    programs: [String; 2],
    nodes: Vec<usize>,
    rounds: usize,
    seconds: f64,
    file_system: String,
    /// What else is to be known, a sentence each.
    pub(crate) notes: Vec<String>,
}

impl Surroundings {
    pub(crate) fn new(
        sides: &Sides,
        nodes: &[usize],
        rounds: usize,
        timing: Timing,
    ) -> Surroundings {
        Surroundings {
            labels: sides.systems.each_ref().map(|system| system.label.clone()),
            programs: sides.systems.each_ref().map(System::version),
            nodes: nodes.to_vec(),
            rounds,
            seconds: timing.measured.as_secs_f64(),
            file_system: sides.file_system.clone(),
            notes: Vec::new(),
        }
    }

    /// The names of the two sides.
    pub(crate) fn labels(&self) -> [&str; 2] {
        self.labels.each_ref().map(String::as_str)
    }

    /// For a picture's heading.
    pub(crate) fn in_short(&self) -> String {
        let seconds = self.seconds;
        format!("median (least - greatest) of the rounds, windows of {seconds} s")
    }
}

/// The whole comparison for people: one table for each size of cluster.
pub(crate) fn markdown(around: &Surroundings, results: &Results) -> String {
    let [first, second] = around.labels();
    let mut text = format!("# {first} / {second}\n\n");
    let _ = writeln!(
        text,
        "Medians of {} rounds in turns, windows of {} s; ratio = {first} / {second} of each round: \
         median (least - greatest).\nCPU and memory are of all servers together. {} cores, data on \
         {}; {first} = `{}`, {second} = `{}`.",
        around.rounds,
        around.seconds,
        cpu::cores(),
        around.file_system,
        around.programs[0],
        around.programs[1],
    );
    for note in &around.notes {
        let _ = writeln!(text, "{note}");
    }
    let noise = [
        ("load average before a turn", &results.load_averages),
        ("cores used by others", &results.other_cores),
    ];
    for (what, values) in noise {
        let greatest = values.iter().copied().fold(0.0, f64::max);
        if !values.is_empty() {
            let _ = writeln!(text, "Median {what}: {:.2}, greatest {greatest:.2}.", median(values));
        }
    }
    text.push_str(&score(&results.comparisons));
    for &nodes in &around.nodes {
        let of_nodes = results.comparisons.iter().filter(|c| c.nodes == nodes);
        text.push_str(&table(around, nodes, &of_nodes.collect::<Vec<_>>()));
    }
    for Failure { row, nodes, reason } in &results.failures {
        let _ = writeln!(text, "\n* {row}, {nodes} node(s) **failed**: {reason}");
    }
    for error in &results.errors {
        let _ = writeln!(text, "\n* {error}");
    }
    text
}

/// All goals in one table, for who wants to know only that.
fn score(comparisons: &[Comparison]) -> String {
    let judged: Vec<(&Comparison, &Verdict)> =
        comparisons.iter().filter_map(|c| Some((c, c.verdict.as_ref()?))).collect();
    if judged.is_empty() {
        return String::new();
    }
    let of = |met: Option<bool>| judged.iter().filter(|(_, verdict)| verdict.met() == met).count();
    let mut text = format!(
        "\n## Goals\n\n{} met, {} missed, {} not judged (what they are against was not measured).\n\n\
         | row | nodes | metric | goal | |\n|---|---|---|---|---|\n",
        of(Some(true)),
        of(Some(false)),
        of(None)
    );
    for (c, verdict) in judged {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            row_text(c),
            c.nodes,
            c.metric.name(),
            verdict.text,
            verdict_text(verdict)
        );
    }
    text
}

fn row_text(c: &Comparison) -> String {
    let at = c.keys.map(|keys| format!(" at {} keys", count(keys))).unwrap_or_default();
    format!("{}{at}", c.row)
}

fn table(around: &Surroundings, nodes: usize, comparisons: &[&Comparison]) -> String {
    if comparisons.is_empty() {
        return String::new();
    }
    let [first, second] = around.labels();
    let plural = if nodes == 1 { "" } else { "s" };
    let mut text = format!(
        "\n## {nodes} node{plural}\n\n| row | metric | {first} | {second} | ratio | goal | |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for c in comparisons {
        let peer = c.peer.map_or("-".to_owned(), short);
        let ratio = c.ratio.map_or("-".to_owned(), |ratio| {
            format!("{} ({} - {})", short(ratio.median), short(ratio.min), short(ratio.max))
        });
        let goal = c.verdict.as_ref().map(|verdict| verdict.text.as_str()).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {peer} | {ratio} | {goal} | {} |",
            row_text(c),
            c.metric.name(),
            short(c.atoll),
            c.verdict.as_ref().map(verdict_text).unwrap_or_default(),
        );
    }
    text
}

fn verdict_text(verdict: &Verdict) -> String {
    match (verdict.met(), verdict.value) {
        (Some(true), Some(value)) => format!("met ({})", short(value)),
        (Some(false), Some(value)) => format!("**missed** ({})", short(value)),
        _ => "not judged".to_owned(),
    }
}

/// A number with three figures that matter.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

// === Files ===

/// Makes the folder and removes an earlier comparison's runs.
pub(crate) fn clear(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(Error::file("make folder", folder))?;
    write(folder, RUNS_FILE, "")
}

/// Rewrites the table and its lines, so that what is done survives whatever comes next.
pub(crate) fn write_results(
    folder: &Path,
    name: &str,
    around: &Surroundings,
    results: &Results,
) -> Result<(), Error> {
    write(folder, &format!("{name}.md"), &markdown(around, results))?;
    write(folder, &format!("{name}.jsonl"), &json_lines(&results.comparisons))?;
    if results.disk_runs.is_empty() {
        return Ok(());
    }
    write(folder, DISK_FILE, &json_lines(&results.disk_runs))
}

pub(crate) fn write(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(Error::file("write", path))
}

/// Appends one line to a file, which is made if need be.
pub(crate) fn append_json(path: &Path, line: &impl Serialize) -> Result<(), Error> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(json_line(line).as_bytes()))
        .map_err(Error::file("write", path))
}

fn json_lines(values: &[impl Serialize]) -> String {
    values.iter().fold(String::new(), |text, value| text + &json_line(value))
}

fn json_line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our own structs are valid JSON") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::{Cell, Goal, Metric};
    use crate::results::Ratio;

    fn around() -> Surroundings {
        Surroundings {
            labels: ["atoll", "etcd"].map(str::to_owned),
            programs: ["a", "e"].map(str::to_owned),
            nodes: vec![1, 3],
            rounds: 5,
            seconds: 2.0,
            file_system: "ext4".to_owned(),
            notes: vec!["A note.".to_owned()],
        }
    }

    fn comparison(nodes: usize, ratio: f64, goal: Option<Goal>) -> Comparison {
        let cell = Cell { row: "put", keys: None, metric: Metric::Cpu, nodes };
        Comparison {
            row: "put".to_owned(),
            keys: None,
            metric: Metric::Cpu,
            nodes,
            atoll: 10.0 * ratio,
            peer: Some(10.0),
            ratio: Some(Ratio { median: ratio, min: ratio / 2.0, max: ratio * 2.0 }),
            rounds: 5,
            verdict: goal.map(|goal| goal.judge(&cell, 10.0 * ratio, Some(ratio), |_| None)),
        }
    }

    #[test]
    fn a_table_tells_figures_ratio_goal_and_verdict() {
        let goal = Goal::ratio(Metric::Cpu, 0.25);
        let comparisons = vec![comparison(1, 2.0, None), comparison(3, 0.5, Some(goal))];
        let results = Results { comparisons, ..Results::default() };
        let text = markdown(&around(), &results);
        assert!(text.contains("| put | cpu_us_per_op | 20.0 | 10.0 | 2.00 (1.00 - 4.00) |  |  |"));
        let judged = "| 5.00 | 10.0 | 0.500 (0.250 - 1.00) | <= 0.25 | **missed** (0.500) |";
        assert!(text.contains(judged), "{text}");
        assert!(text.contains("## 1 node\n") && text.contains("## 3 nodes\n"));
        assert!(text.contains("0 met, 1 missed, 0 not judged") && text.contains("A note."));
        assert!(text.contains("| put | 3 | cpu_us_per_op | <= 0.25 | **missed** (0.500) |"));
    }

    #[test]
    fn a_figure_without_a_peer_has_dashes_and_its_keys() {
        let mut alone = comparison(1, 1.0, None);
        (alone.peer, alone.ratio, alone.keys) = (None, None, Some(10_000_000));
        let text = table(&around(), 1, &[&alone]);
        assert!(
            text.contains("| put at 10M keys | cpu_us_per_op | 10.0 | - | - |  |  |"),
            "{text}"
        );
        assert_eq!(
            json_line(&alone),
            "{\"row\":\"put\",\"keys\":10000000,\"metric\":\"cpu_us_per_op\",\"nodes\":1,\
             \"atoll\":10.0,\"peer\":null,\"rounds\":5}\n"
        );
    }

    #[test]
    fn a_line_has_the_goal_and_whether_it_was_met() {
        let line = json_line(&comparison(3, 0.5, Some(Goal::ratio(Metric::Cpu, 0.5))));
        assert!(line.contains("\"ratio\":0.5,\"ratio_min\":0.25,\"ratio_max\":1.0"), "{line}");
        assert!(line.contains("\"goal\":\"<= 0.5\",\"reached\":0.5,\"goal_met\":true"), "{line}");
    }

    #[test]
    fn failures_are_told() {
        let failure =
            Failure { row: "get".to_owned(), nodes: 3, reason: "it would not start".to_owned() };
        let results = Results { failures: vec![failure], ..Results::default() };
        let text = markdown(&around(), &results);
        assert!(text.contains("get, 3 node(s) **failed**: it would not start"));
    }

    #[test]
    fn numbers_show_three_figures() {
        assert_eq!(
            [1234.5, 99.96, 12.34, 1.0, 0.0123].map(short),
            ["1234", "100", "12.3", "1.00", "0.012"]
        );
    }
}
