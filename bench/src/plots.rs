//! Results as pictures: SVG, written by hand because two kinds of chart need no library.
//!
//! Pure: comparisons in, text out. In reading order: [`scale`] (values to pixels, ticks), [`canvas`]
//! (shapes to SVG), [`bars`] (ratios with whiskers and goals), [`lines`] (figures over keys or time).
//! Here it is said which figures go into which picture. Nothing is left out because it looks bad: every
//! row that was measured has its bar, in the order of the table.

use crate::goals::{Against, Metric};
use crate::report::Surroundings;
use crate::results::{Comparison, DiskRun, Results};
use crate::trials::growth;

use bars::{Bar, Section};
use lines::{Mark, MarkSide, Panel, Series};

mod bars;
mod canvas;
mod lines;
mod scale;

/// A file's name and its text.
pub(crate) type Picture = (String, String);

/// All pictures that the results have figures for.
pub(crate) fn all(around: &Surroundings, results: &Results) -> Vec<Picture> {
    let labels = around.labels();
    let mut pictures = Vec::new();
    for figure in FIGURES {
        let sections = sections(figure, &results.comparisons);
        if !sections.is_empty() {
            let title = format!("{}: {} / {}", figure.title, labels[0], labels[1]);
            let hint = format!("{}; {}", figure.better, around.in_short());
            let name = format!("{}.svg", figure.name);
            pictures.push((name, bars::figure(&title, &hint, &sections)));
        }
    }
    for nodes in distinct(results.comparisons.iter().map(|c| c.nodes)) {
        let panels = growth_panels(&labels, nodes, &results.comparisons);
        if !panels.is_empty() {
            let title = format!("Growth with keys, {}", nodes_text(nodes));
            pictures.push((format!("growth-{nodes}.svg"), lines::figure(&title, 3, &panels)));
        }
        let panels = disk_panels(&labels, nodes, &results.disk_runs);
        if !panels.is_empty() {
            let title = format!("Disk while values are overwritten, {}", nodes_text(nodes));
            pictures.push((format!("overwrite-{nodes}.svg"), lines::figure(&title, 3, &panels)));
        }
    }
    pictures
}

// === Bars ===

/// Which ratios one picture holds.
struct Figure {
    name: &'static str,
    title: &'static str,
    better: &'static str,
    /// Shown for every row that has it.
    metrics: &'static [Metric],
    /// Shown only where there is a goal for it.
    with_goal: &'static [Metric],
}

const LOWER: &str = "lower is better";
const FIGURES: &[Figure] = &[
    Figure {
        name: "cpu",
        title: "CPU of all servers per operation",
        better: LOWER,
        metrics: &[Metric::Cpu],
        with_goal: &[],
    },
    Figure {
        name: "rate",
        title: "Operations per second",
        better: "higher is better",
        metrics: &[Metric::Rate],
        with_goal: &[],
    },
    Figure {
        name: "p99",
        title: "Latency, p99",
        better: LOWER,
        metrics: &[Metric::P99],
        with_goal: &[Metric::P50],
    },
    Figure {
        name: "size",
        title: "Memory, disk and restart",
        better: LOWER,
        metrics: &[
            Metric::PeakMemory,
            Metric::RestartedMemory,
            Metric::RestartSeconds,
            Metric::DiskPeak,
            Metric::DiskSettled,
            Metric::DiskWritten,
        ],
        with_goal: &[Metric::Memory, Metric::Disk],
    },
];

fn sections(figure: &Figure, comparisons: &[Comparison]) -> Vec<Section> {
    let mut sections = Vec::new();
    for nodes in distinct(comparisons.iter().map(|c| c.nodes)) {
        let shown = |c: &&Comparison| {
            let goal = c.verdict.as_ref().is_some_and(|v| v.against == Against::Peer);
            c.nodes == nodes
                && (figure.metrics.contains(&c.metric)
                    || (goal && figure.with_goal.contains(&c.metric)))
        };
        let several = figure.metrics.len() > 1;
        let bars: Vec<Bar> = comparisons
            .iter()
            .filter(shown)
            .filter_map(|c| bar(c, several || !figure.metrics.contains(&c.metric)))
            .collect();
        if !bars.is_empty() {
            sections.push(Section { title: nodes_text(nodes), bars });
        }
    }
    sections
}

fn bar(c: &Comparison, names_metric: bool) -> Option<Bar> {
    let at = c.keys.map(|keys| format!(" at {}", crate::goals::count(keys))).unwrap_or_default();
    let metric = if names_metric { format!(", {}", c.metric.name()) } else { String::new() };
    Some(Bar {
        label: format!("{}{at}{metric}", c.row),
        ratio: c.ratio?,
        verdict: c.verdict.clone(),
    })
}

// === Lines ===

fn growth_panels(labels: &[&str; 2], nodes: usize, comparisons: &[Comparison]) -> Vec<Panel> {
    let metrics = [(Metric::Cpu, "CPU, µs per op"), (Metric::P99, "p99, ms")];
    let mut panels = Vec::new();
    for (metric, y_label) in metrics {
        for mix in growth::MIXES {
            let row = growth::row_of(mix);
            let of_row = |c: &&Comparison| c.row == row && c.nodes == nodes && c.metric == metric;
            let rows: Vec<&Comparison> = comparisons.iter().filter(of_row).collect();
            let points = |of: fn(&Comparison) -> Option<f64>| -> Vec<(f64, f64)> {
                rows.iter().filter_map(|c| Some((c.keys? as f64, of(c)?))).collect()
            };
            let series = [points(|c| Some(c.atoll)), points(|c| c.peer)];
            if !rows.is_empty() {
                panels.push(Panel {
                    title: mix.to_owned(),
                    x_label: "keys",
                    y_label: y_label.to_owned(),
                    x_log: true,
                    series: two_sides(labels, series),
                    marks: Vec::new(),
                });
            }
        }
    }
    panels
}

/// One panel a row; every round of each system is a line.
fn disk_panels(labels: &[&str; 2], nodes: usize, runs: &[DiskRun]) -> Vec<Panel> {
    let of_nodes: Vec<&DiskRun> = runs.iter().filter(|run| run.nodes == nodes).collect();
    let rows = distinct(of_nodes.iter().map(|run| run.row.as_str()));
    let panel = |row: &str| {
        let series = of_nodes.iter().filter(|run| run.row == row).filter_map(|run| {
            let live = run.samples.first()?.readable_mib;
            let points = run.samples.iter().map(|s| (s.seconds, s.disk_mib / live)).collect();
            Some(Series { label: labels[run.side].to_owned(), side: run.side, points })
        });
        Panel {
            title: row.to_owned(),
            x_label: "seconds",
            y_label: "size of a node's disk / live data".to_owned(),
            x_log: false,
            series: series.collect(),
            marks: vec![
                Mark { at: 1.0, text: "live data", side: MarkSide::Below },
                Mark { at: 1.5, text: "goal when settled", side: MarkSide::Above },
            ],
        }
    };
    rows.into_iter().map(panel).collect()
}

fn two_sides(labels: &[&str; 2], points: [Vec<(f64, f64)>; 2]) -> Vec<Series> {
    let series = points.into_iter().enumerate();
    series
        .map(|(side, points)| Series { label: labels[side].to_owned(), side, points })
        .filter(|series| !series.points.is_empty())
        .collect()
}

fn nodes_text(nodes: usize) -> String {
    format!("{nodes} node{}", if nodes == 1 { "" } else { "s" })
}

/// Each value once, in the order of its first appearance.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}
