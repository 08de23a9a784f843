//! What all turns of a command found: comparisons with their verdicts, sizes of disks over time, and
//! what went wrong. Figures of the two systems are paired by what they are of; a figure that only one
//! side has (etcd is spared the largest numbers of keys) is told without a ratio.

use serde::Serialize;

use crate::error::Error;
use crate::goals::{Cell, Metric, Verdict};
use crate::trials::{DiskSample, Measured, Row, RowGoal, Value, Window};

/// One figure of two systems over all rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) row: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<u64>,
    pub(crate) metric: Metric,
    pub(crate) nodes: usize,
    /// Median of the first system, which is Atoll unless this is a control.
    pub(crate) atoll: f64,
    /// Median of the second system.
    pub(crate) peer: Option<f64>,
    #[serde(flatten)]
    pub(crate) ratio: Option<Ratio>,
    pub(crate) rounds: usize,
    #[serde(flatten, serialize_with = "verdict_fields")]
    pub(crate) verdict: Option<Verdict>,
}

/// The ratios of the rounds, first / second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Ratio {
    #[serde(rename = "ratio")]
    pub(crate) median: f64,
    #[serde(rename = "ratio_min")]
    pub(crate) min: f64,
    #[serde(rename = "ratio_max")]
    pub(crate) max: f64,
}

fn verdict_fields<S: serde::Serializer>(
    verdict: &Option<Verdict>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields<'a> {
        goal: &'a str,
        reached: Option<f64>,
        goal_met: Option<bool>,
    }
    let fields = verdict.as_ref().map(|verdict| Fields {
        goal: &verdict.text,
        reached: verdict.value,
        goal_met: verdict.met(),
    });
    fields.serialize(serializer)
}

impl Comparison {
    /// Compares one figure: that of each round of the first system, and those of the second.
    fn new(of: &Value, nodes: usize, first: &[f64], second: &[f64]) -> Comparison {
        // Two zeros are alike (idle CPU below a tick).
        let ratio = |(&a, &b): (&f64, &f64)| if a == b { 1.0 } else { a / b };
        let ratios: Vec<f64> = first.iter().zip(second).map(ratio).collect();
        let ratio = (!ratios.is_empty()).then(|| Ratio {
            median: median(&ratios),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        });
        Comparison {
            row: of.row.clone(),
            keys: of.keys,
            metric: of.metric,
            nodes,
            atoll: median(first),
            peer: (!second.is_empty()).then(|| median(second)),
            ratio,
            rounds: first.len(),
            verdict: None,
        }
    }

    pub(crate) fn cell(&self) -> Cell<'_> {
        Cell { row: &self.row, keys: self.keys, metric: self.metric, nodes: self.nodes }
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The sizes of one system's disk in one turn.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DiskRun {
    pub(crate) row: String,
    pub(crate) nodes: usize,
    pub(crate) round: usize,
    /// 0 is the first system, 1 the second.
    pub(crate) side: usize,
    pub(crate) samples: Vec<DiskSample>,
}

/// A row that could not be done.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) row: String,
    pub(crate) nodes: usize,
    pub(crate) reason: String,
}

/// All that was found so far.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) comparisons: Vec<Comparison>,
    pub(crate) disk_runs: Vec<DiskRun>,
    pub(crate) failures: Vec<Failure>,
    /// Windows with failed requests, in words.
    pub(crate) errors: Vec<String>,
    pub(crate) load_averages: Vec<f64>,
    pub(crate) other_cores: Vec<f64>,
    /// Those of the rows so far.
    pub(crate) goals: Vec<RowGoal>,
}

impl Results {
    /// Adds all rounds of a row; figures and rows of earlier calls may be what its goals are against.
    pub(crate) fn add(&mut self, row: &Row, nodes: usize, pairs: &[[Measured; 2]], judged: bool) {
        for value in pairs.first().map(|[first, _]| &first.values[..]).unwrap_or_default() {
            let of = |side: usize| -> Vec<f64> {
                let rounds = pairs.iter().map(|pair| &pair[side].values);
                rounds.filter_map(|values| find(values, value)).collect()
            };
            self.comparisons.push(Comparison::new(value, nodes, &of(0), &of(1)));
        }
        for (at, pair) in pairs.iter().enumerate() {
            for (side, measured) in pair.iter().enumerate().filter(|(_, m)| !m.disk.is_empty()) {
                self.disk_runs.push(DiskRun {
                    row: row.name.clone(),
                    nodes,
                    round: at + 1,
                    side,
                    samples: measured.disk.clone(),
                });
            }
        }
        if judged {
            self.goals.extend(row.goals.iter().cloned());
            self.judge();
        }
    }

    /// Judges everything anew: a goal may be against a row that came later.
    fn judge(&mut self) {
        let own: Vec<(Comparison, f64)> =
            self.comparisons.iter().map(|c| (c.clone(), c.atoll)).collect();
        for comparison in &mut self.comparisons {
            let cell = comparison.cell();
            let goal = self.goals.iter().find(|(row, goal)| *row == cell.row && goal.is_for(&cell));
            let find_own =
                |wanted: &Cell<'_>| own.iter().find(|(c, _)| c.cell() == *wanted).map(|o| o.1);
            let ratio = comparison.ratio.map(|ratio| ratio.median);
            let verdict =
                goal.map(|(_, goal)| goal.judge(&cell, comparison.atoll, ratio, find_own));
            comparison.verdict = verdict;
        }
    }

    pub(crate) fn note_failure(&mut self, row: &str, nodes: usize, error: &Error) {
        let reason = error.to_string();
        self.failures.push(Failure { row: row.to_owned(), nodes, reason });
    }

    pub(crate) fn note_window(&mut self, nodes: usize, label: &str, window: &Window) {
        let figures = &window.figures;
        self.load_averages.push(figures.load_average);
        self.other_cores.push(figures.other_cores);
        if figures.errors > 0 {
            let first = figures.first_error.as_deref().unwrap_or_default();
            self.errors.push(format!(
                "{}, {nodes} node(s), {label}: {} errors, first: {first}",
                window.row, figures.errors
            ));
        }
    }

    /// Fails if a row failed.
    pub(crate) fn verdict(&self) -> Result<(), Error> {
        if self.failures.is_empty() {
            return Ok(());
        }
        let told = |f: &Failure| format!("{} ({} nodes)", f.row, f.nodes);
        let failed: Vec<String> = self.failures.iter().map(told).collect();
        Err(Error::Rows(failed))
    }
}

/// The same figure in another turn.
fn find(values: &[Value], wanted: &Value) -> Option<f64> {
    let same =
        |v: &&Value| v.row == wanted.row && v.keys == wanted.keys && v.metric == wanted.metric;
    values.iter().find(same).map(|value| value.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::{Against, Goal};
    use crate::trials::{Trial, catch_up};

    fn value(row: &str, keys: Option<u64>, value: f64) -> Value {
        Value { row: row.to_owned(), keys, metric: Metric::Cpu, value }
    }

    fn turn(values: &[Value]) -> Measured {
        Measured { values: values.to_vec(), ..Measured::default() }
    }

    fn row(name: &str, goals: &[Goal]) -> Row {
        Row::new(name, Trial::CatchUp(catch_up::Plan { data_bytes: 1 }), goals)
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The medians' ratio would be 1.
        let pairs = [(1.0, 2.0), (2.0, 4.0), (4.0, 1.0)];
        let pairs = pairs.map(|(a, b)| [a, b].map(|v| turn(&[value("put", None, v)])));
        let mut results = Results::default();
        results.add(&row("put", &[Goal::ratio(Metric::Cpu, 0.5)]), 3, &pairs, true);
        let c = &results.comparisons[0];
        assert_eq!((c.atoll, c.peer, c.rounds), (2.0, Some(2.0), 3));
        assert_eq!(c.ratio, Some(Ratio { median: 0.5, min: 0.5, max: 4.0 }));
        assert_eq!(c.verdict.as_ref().and_then(Verdict::met), Some(true));
    }

    #[test]
    fn a_figure_of_one_side_has_no_ratio() {
        let (few, many) = (value("growth", Some(10), 2.0), value("growth", Some(100), 3.0));
        let pairs = [[turn(&[few.clone(), many]), turn(&[few])]];
        let mut results = Results::default();
        results.add(&row("growth", &[]), 1, &pairs, true);
        assert_eq!(results.comparisons.len(), 2);
        assert_eq!((results.comparisons[1].atoll, results.comparisons[1].peer), (3.0, None));
        assert!(results.comparisons[0].ratio.is_some() && results.comparisons[1].ratio.is_none());
    }

    #[test]
    fn a_goal_against_a_row_that_comes_later_is_judged_then() {
        let against = Against::Own { row: "range", keys: None };
        let goal = Goal { against, ..Goal::ratio(Metric::Cpu, 1.5) };
        let pair = |row: &str, cost: f64| [[cost, 1.0].map(|v| turn(&[value(row, None, v)]))];
        let mut results = Results::default();
        let met = |results: &Results| results.comparisons[0].verdict.as_ref().map(Verdict::met);
        results.add(&row("versions", &[goal]), 1, &pair("versions", 20.0), true);
        assert_eq!(met(&results), Some(None));
        results.add(&row("range", &[]), 1, &pair("range", 10.0), true);
        assert_eq!(met(&results), Some(Some(false)));
    }

    #[test]
    fn a_control_is_not_judged() {
        let mut results = Results::default();
        let pairs = [[1.0, 2.0].map(|v| turn(&[value("put", None, v)]))];
        results.add(&row("put", &[Goal::ratio(Metric::Cpu, 0.5)]), 3, &pairs, false);
        assert!(results.comparisons[0].verdict.is_none());
    }
}
