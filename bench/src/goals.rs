//! What the yardstick asks for, and whether it was reached. Pure: figures in, verdicts out.
//!
//! A [`Goal`] names a [`Metric`] of a row and a [`Bound`], and what the bound is for ([`Against`]):
//! the ratio Atoll / etcd of the same run, Atoll's own figure in another row, or the figure itself.
//! A goal whose other side was not measured in this run is not judged, which is told as such and is
//! neither met nor missed.

use std::fmt;

use serde::{Serialize, Serializer};

/// A figure of a turn that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// CPU of all servers together per operation.
    Cpu,
    Rate,
    P50,
    P99,
    /// The slowest operation.
    Worst,
    /// Resident memory of all servers together.
    Memory,
    AnonymousMemory,
    PeakMemory,
    RestartedMemory,
    /// Space of all data folders.
    Disk,
    ClientCpu,
    FillSeconds,
    FillCpu,
    /// From the start of the processes until each has answered a put.
    RestartSeconds,
    /// CPU of all servers while nobody asks anything.
    IdleCores,
    /// Greatest size of a data folder, as a multiple of the live data.
    DiskPeak,
    /// The same, as a multiple of what can be read: live data and versions not compacted yet.
    DiskPeakReadable,
    /// Size of a data folder after a rest, as a multiple of the live data.
    DiskSettled,
    /// Bytes that a node wrote to its disk per byte that a user wrote.
    DiskWritten,
    /// From the start of an empty follower until it is a voter.
    CatchUpSeconds,
    /// p99 before a follower catches up.
    P99Before,
    /// p99 while it does, as a multiple of that before.
    P99Factor,
}

impl Metric {
    /// The name in tables and files, with its unit last.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Metric::Cpu => "cpu_us_per_op",
            Metric::Rate => "ops_per_s",
            Metric::P50 => "p50_ms",
            Metric::P99 => "p99_ms",
            Metric::Worst => "max_ms",
            Metric::Memory => "memory_mib",
            Metric::AnonymousMemory => "anonymous_mib",
            Metric::PeakMemory => "peak_memory_mib",
            Metric::RestartedMemory => "restarted_memory_mib",
            Metric::Disk => "disk_mib",
            Metric::ClientCpu => "client_cpu_us_per_op",
            Metric::FillSeconds => "fill_s",
            Metric::FillCpu => "fill_cpu_us_per_key",
            Metric::RestartSeconds => "restart_s",
            Metric::IdleCores => "idle_cores",
            Metric::DiskPeak => "disk_peak_per_live",
            Metric::DiskPeakReadable => "disk_peak_per_readable",
            Metric::DiskSettled => "disk_settled_per_live",
            Metric::DiskWritten => "disk_written_per_byte",
            Metric::CatchUpSeconds => "catch_up_s",
            Metric::P99Before => "p99_before_ms",
            Metric::P99Factor => "p99_factor",
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Which figure: a row may be measured at several numbers of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell<'a> {
    pub(crate) row: &'a str,
    pub(crate) keys: Option<u64>,
    pub(crate) metric: Metric,
    pub(crate) nodes: usize,
}

/// A limit for a figure or a ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(crate) fn met(self, value: f64) -> bool {
        match self {
            Bound::AtMost(limit) => value <= limit,
            Bound::AtLeast(limit) => value >= limit,
        }
    }

    pub(crate) fn limit(self) -> f64 {
        let (Bound::AtMost(limit) | Bound::AtLeast(limit)) = self;
        limit
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::AtMost(limit) => write!(f, "<= {limit}"),
            Bound::AtLeast(limit) => write!(f, ">= {limit}"),
        }
    }
}

/// What a bound is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    /// The ratio Atoll / etcd.
    Peer,
    /// Atoll's figure as a multiple of its own figure of the same metric in another row, or at
    /// another number of keys.
    Own { row: &'static str, keys: Option<u64> },
    /// Atoll's figure as it is.
    Nothing,
}

/// What the yardstick asks of one metric of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) metric: Metric,
    /// For clusters of this size only.
    pub(crate) nodes: Option<usize>,
    /// At this number of keys only.
    pub(crate) keys: Option<u64>,
    pub(crate) against: Against,
    pub(crate) bound: Bound,
}

impl Goal {
    /// A goal for the ratio Atoll / etcd: at least it for rates, at most it for costs.
    pub(crate) fn ratio(metric: Metric, ratio: f64) -> Goal {
        let bound =
            if metric == Metric::Rate { Bound::AtLeast(ratio) } else { Bound::AtMost(ratio) };
        Goal { metric, nodes: None, keys: None, against: Against::Peer, bound }
    }

    /// A goal for Atoll's figure itself.
    pub(crate) fn at_most(metric: Metric, limit: f64) -> Goal {
        Goal { against: Against::Nothing, ..Goal::ratio(metric, limit) }
    }

    /// The same goal, for clusters of this size only.
    pub(crate) fn on(self, nodes: usize) -> Goal {
        Goal { nodes: Some(nodes), ..self }
    }

    /// Whether the goal is for this figure of its row.
    pub(crate) fn is_for(&self, cell: &Cell<'_>) -> bool {
        self.metric == cell.metric
            && self.nodes.is_none_or(|nodes| nodes == cell.nodes)
            && (self.keys.is_none() || self.keys == cell.keys)
    }

    /// Judges Atoll's figure and its ratio to the peer's; `own` finds another figure of Atoll's.
    pub(crate) fn judge(
        &self,
        cell: &Cell<'_>,
        atoll: f64,
        ratio: Option<f64>,
        own: impl Fn(&Cell<'_>) -> Option<f64>,
    ) -> Verdict {
        let (value, of) = match self.against {
            Against::Peer => (ratio, String::new()),
            Against::Nothing => (Some(atoll), " by itself".to_owned()),
            Against::Own { row, keys } => {
                let base = own(&Cell { row, keys, ..*cell });
                let at = keys.map(|keys| format!(" at {}", count(keys))).unwrap_or_default();
                (base.map(|base| atoll / base), format!(" of own {row}{at}"))
            }
        };
        Verdict {
            text: format!("{}{of}", self.bound),
            against: self.against,
            bound: self.bound,
            value,
        }
    }
}

/// A goal beside what was reached.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// The goal in words.
    pub(crate) text: String,
    pub(crate) against: Against,
    pub(crate) bound: Bound,
    /// What is held against the bound; none if the other side is missing.
    pub(crate) value: Option<f64>,
}

impl Verdict {
    /// None: not judged.
    pub(crate) fn met(&self) -> Option<bool> {
        self.value.map(|value| self.bound.met(value))
    }
}

/// A number of keys as people say it: 10k, 1M.
pub(crate) fn count(number: u64) -> String {
    match number {
        n if n >= 1_000_000 && n % 1_000_000 == 0 => format!("{}M", n / 1_000_000),
        n if n >= 1_000 && n % 1_000 == 0 => format!("{}k", n / 1_000),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: Cell<'_> = Cell { row: "put", keys: None, metric: Metric::Cpu, nodes: 3 };

    fn check(goal: Goal, atoll: f64, ratio: Option<f64>, own: Option<f64>) -> Option<bool> {
        goal.judge(&CELL, atoll, ratio, |_| own).met()
    }

    #[test]
    fn rates_are_floors_and_costs_are_ceilings() {
        let (rate, cpu) = (Goal::ratio(Metric::Rate, 2.0), Goal::ratio(Metric::Cpu, 0.3));
        assert_eq!(check(rate, 1.0, Some(2.5), None), Some(true));
        assert_eq!(check(rate, 1.0, Some(1.5), None), Some(false));
        assert_eq!(check(cpu, 1.0, Some(0.3), None), Some(true));
        assert_eq!(check(cpu, 1.0, Some(0.31), None), Some(false));
    }

    #[test]
    fn a_goal_against_an_own_row_divides_by_it_and_needs_it() {
        let against = Against::Own { row: "range", keys: None };
        let goal = Goal { against, ..Goal::ratio(Metric::Cpu, 1.5) };
        assert_eq!(check(goal, 14.0, Some(9.0), Some(10.0)), Some(true));
        assert_eq!(check(goal, 16.0, Some(0.1), Some(10.0)), Some(false));
        assert_eq!(check(goal, 16.0, Some(0.1), None), None);
        assert_eq!(goal.judge(&CELL, 1.0, None, |_| None).text, "<= 1.5 of own range");
    }

    #[test]
    fn a_goal_for_the_figure_itself_needs_no_peer() {
        assert_eq!(check(Goal::at_most(Metric::Worst, 100.0), 99.0, None, None), Some(true));
        assert_eq!(check(Goal::ratio(Metric::Worst, 100.0), 99.0, None, None), None);
    }

    #[test]
    fn goals_hold_for_their_metric_nodes_and_keys() {
        let goal = Goal::ratio(Metric::Cpu, 0.3);
        assert!(goal.is_for(&CELL) && goal.on(3).is_for(&CELL) && !goal.on(1).is_for(&CELL));
        assert!(!Goal::ratio(Metric::P99, 0.3).is_for(&CELL));
        let large = Goal { keys: Some(1_000), ..goal };
        assert!(!large.is_for(&CELL) && large.is_for(&Cell { keys: Some(1_000), ..CELL }));
    }

    #[test]
    fn numbers_of_keys_are_short() {
        assert_eq!([500, 10_000, 1_500_000, 10_000_000].map(count), ["500", "10k", "1500k", "10M"]);
    }
}
