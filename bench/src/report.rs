//! Figures as text, JSON lines and Markdown; medians and ratios.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::error::Error;
use crate::footprint::Footprint;
use crate::load::{Figures, Shape};
use crate::mixes::Mix;

/// Every single run, one a line.
pub(crate) const RUNS_FILE: &str = "runs.jsonl";
const RESULTS_FILE: &str = "compare.jsonl";
const TABLE_FILE: &str = "compare.md";

// === One run ===

/// A run as a line of JSON.
#[derive(Serialize)]
pub(crate) struct RunLine<'a> {
    pub(crate) mix: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) round: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes: Option<usize>,
    pub(crate) shape: &'a Shape,
    #[serde(flatten)]
    pub(crate) figures: Option<&'a Figures>,
    #[serde(flatten)]
    pub(crate) footprint: Option<&'a Footprint>,
}

impl<'a> RunLine<'a> {
    /// The line of a `bench load`, which knows no system.
    pub(crate) fn of_load(mix: &'a Mix, shape: &'a Shape, figures: &'a Figures) -> RunLine<'a> {
        RunLine {
            mix: mix.name,
            system: None,
            round: None,
            nodes: None,
            shape,
            figures: Some(figures),
            footprint: None,
        }
    }

    /// The run in one line, to watch a comparison.
    pub(crate) fn short_text(&self) -> String {
        let (round, system) = (self.round.unwrap_or(0), self.system.unwrap_or_default());
        let mut text = format!("{:<17} {round} {system:<14}", self.mix);
        if let Some(f) = self.figures {
            let cpu = f.server_cpu_us_per_op.unwrap_or(0.0);
            let _ = write!(
                text,
                " {:>9} ops/s  cpu {:>7} us/op  p50 {:>7}  p99 {:>7}  max {:>7} ms  client {:>5} us/op  \
                 others {:.2} cores",
                short(f.ops_per_s),
                short(cpu),
                short(f.p50_ms),
                short(f.p99_ms),
                short(f.max_ms),
                short(f.client_cpu_us_per_op),
                f.other_cores,
            );
            if f.errors > 0 {
                let _ = write!(text, "  {} ERRORS", f.errors);
            }
        }
        if let Some(footprint) = self.footprint {
            for (name, value, _) in footprint.figures() {
                let _ = write!(text, " {name} {}", short(value));
            }
        }
        text
    }
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
        "{:<17} memory, disk and restart of a filled node (compare only)",
        "footprint"
    );
    text
}

// === Comparisons ===

/// One figure of two systems over all rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) mix: String,
    pub(crate) metric: &'static str,
    pub(crate) nodes: usize,
    /// Median of the first system, which is Atoll unless this is a control.
    pub(crate) atoll: f64,
    /// Median of the second system.
    pub(crate) peer: f64,
    /// Median, least and greatest of the rounds' ratios, first / second.
    pub(crate) ratio: f64,
    pub(crate) ratio_min: f64,
    pub(crate) ratio_max: f64,
    pub(crate) rounds: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal_met: Option<bool>,
}

impl Comparison {
    /// Compares the pairs (first system, second system) of the rounds, of which there is at least one.
    pub(crate) fn new(
        mix: &str,
        metric: &'static str,
        nodes: usize,
        pairs: impl Iterator<Item = (f64, f64)>,
    ) -> Comparison {
        let (first, second): (Vec<f64>, Vec<f64>) = pairs.unzip();
        // Two zeros are alike (idle CPU below a tick).
        let ratio = |(&a, &b): (&f64, &f64)| if a == b { 1.0 } else { a / b };
        let ratios: Vec<f64> = first.iter().zip(&second).map(ratio).collect();
        Comparison {
            mix: mix.to_owned(),
            metric,
            nodes,
            atoll: median(&first),
            peer: median(&second),
            ratio: median(&ratios),
            ratio_min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratio_max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            rounds: ratios.len(),
            goal: None,
            goal_met: None,
        }
    }

    pub(crate) fn set_goal(&mut self, ratio: f64, met: bool, sign: &str) {
        self.goal = Some(format!("{sign} {ratio}"));
        self.goal_met = Some(met);
    }

    pub(crate) fn clear_goal(&mut self) {
        (self.goal, self.goal_met) = (None, None);
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Under what a comparison was made.
pub(crate) struct Surroundings {
    pub(crate) labels: [String; 2],
    pub(crate) programs: [String; 2],
    pub(crate) nodes: usize,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) file_system: String,
    pub(crate) cores: usize,
}

/// The whole comparison for people.
pub(crate) fn markdown(
    around: &Surroundings,
    noise: &[(&str, &Vec<f64>)],
    comparisons: &[Comparison],
) -> String {
    let [first, second] = &around.labels;
    let mut text = format!("# {first} / {second}, {} node(s)\n\n", around.nodes);
    let _ = writeln!(
        text,
        "Medians of {} rounds in turns, windows of {} s; ratio = {first} / {second} of each round: \
         median (least - greatest).\n{} cores, data on {}; {first} = `{}`, {second} = `{}`.",
        around.rounds,
        around.seconds,
        around.cores,
        around.file_system,
        around.programs[0],
        around.programs[1],
    );
    for (what, values) in noise {
        let greatest = values.iter().copied().fold(0.0, f64::max);
        if !values.is_empty() {
            let _ = writeln!(text, "Median {what}: {:.2}, greatest {greatest:.2}.", median(values));
        }
    }
    let _ = writeln!(
        text,
        "\n| mix | metric | {first} | {second} | ratio | goal |\n|---|---|---|---|---|---|"
    );
    for c in comparisons {
        let goal = match (&c.goal, c.goal_met) {
            (Some(goal), Some(met)) => format!("{goal} {}", if met { "met" } else { "**missed**" }),
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.2} ({:.2} - {:.2}) | {goal} |",
            c.mix,
            c.metric,
            short(c.atoll),
            short(c.peer),
            c.ratio,
            c.ratio_min,
            c.ratio_max
        );
    }
    text
}

/// A number with three figures that matter.
fn short(value: f64) -> String {
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
    let runs = folder.join(RUNS_FILE);
    fs::write(&runs, "").map_err(Error::file("write", runs))
}

pub(crate) fn write_results(
    folder: &Path,
    markdown: &str,
    comparisons: &[Comparison],
) -> Result<(), Error> {
    let table = folder.join(TABLE_FILE);
    fs::write(&table, markdown).map_err(Error::file("write", table))?;
    let lines = comparisons.iter().fold(String::new(), |text, c| text + &json_line(c));
    let results = folder.join(RESULTS_FILE);
    fs::write(&results, lines).map_err(Error::file("write", results))
}

/// Appends one line to a file, which is made if need be.
pub(crate) fn append_json(path: &Path, line: &impl Serialize) -> Result<(), Error> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(json_line(line).as_bytes()))
        .map_err(Error::file("write", path))
}

fn json_line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our own structs are valid JSON") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The medians' ratio would be 1.
        let pairs = [(1.0, 2.0), (2.0, 4.0), (4.0, 1.0)];
        let c = Comparison::new("put", "cpu_us_per_op", 3, pairs.into_iter());
        assert_eq!((c.atoll, c.peer, c.rounds), (2.0, 2.0, 3));
        assert_eq!((c.ratio, c.ratio_min, c.ratio_max), (0.5, 0.5, 4.0));
    }

    #[test]
    fn numbers_show_three_figures() {
        assert_eq!(
            [1234.5, 99.96, 12.34, 1.0, 0.0123].map(short),
            ["1234", "100", "12.3", "1.00", "0.012"]
        );
    }
}
