//! What one turn does with a fresh cluster, row by row of a comparison.
//!
//! Most rows are a mix under load. The others are stories of several steps, each in a file of its own:
//! [`footprint`] (fill, rest, restart), [`overwrite`] (rewrite a live set with compaction), [`growth`]
//! (the same mixes at more and more keys), [`catch_up`] (a lost follower is replaced under load). All
//! end in [`Measured`]: figures to compare, and what they were taken from.

use std::time::Duration;

use serde::Serialize;

use crate::connection;
use crate::error::Error;
use crate::goals::{Goal, Metric};
use crate::load::{self, Drive, Figures, Overrides, Shape, Target, Timing};
use crate::mixes::{self, Kind, Mix, content::Filling};
use crate::servers::{Cluster, Settings};

pub(crate) mod catch_up;
pub(crate) mod footprint;
pub(crate) mod growth;
pub(crate) mod overwrite;

/// A row of the table: what is done, and what is asked of it.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) trial: Trial,
    pub(crate) goals: Vec<RowGoal>,
    pub(crate) settings: Settings,
    /// Clusters that it can be done with; none: any.
    pub(crate) nodes: Option<usize>,
    /// Whether a turn takes minutes.
    pub(crate) long: bool,
}

/// A goal and the row that it is for: a trial may yield figures of several rows.
pub(crate) type RowGoal = (String, Goal);

/// What a turn does.
pub(crate) enum Trial {
    Mix(Kind, Shape),
    /// Fill, start again with nothing in memory, and only then the mix.
    Cold(Kind, Shape),
    Footprint(Shape),
    Overwrite(overwrite::Plan),
    Growth(growth::Plan),
    CatchUp(catch_up::Plan),
}

impl Row {
    /// A mix with what the command line changed.
    pub(crate) fn of_mix(mix: &Mix, overrides: &Overrides) -> Result<Row, Error> {
        let shape = overrides.shape(&mix.shape)?;
        let cold = mix.name == mixes::COLD;
        let trial = if cold { Trial::Cold(mix.kind, shape) } else { Trial::Mix(mix.kind, shape) };
        Ok(Row::new(mix.name, trial, &mix.goals))
    }

    /// The weight of a filled node.
    pub(crate) fn of_footprint(keys: u64, overrides: &Overrides) -> Result<Row, Error> {
        let mut shape = overrides.shape(&mixes::find("put")?.shape)?;
        shape.keys = keys;
        let row = Row::new(footprint::NAME, Trial::Footprint(shape), &footprint::goals());
        Ok(Row { long: true, ..row })
    }

    /// A row whose goals are all for itself, on any cluster, with default settings.
    pub(crate) fn new(name: &str, trial: Trial, goals: &[Goal]) -> Row {
        Row {
            name: name.to_owned(),
            trial,
            goals: goals.iter().map(|goal| (name.to_owned(), *goal)).collect(),
            settings: Settings::default(),
            nodes: None,
            long: false,
        }
    }

    /// Does the row's trial once, with a fresh cluster.
    pub(crate) async fn run(
        &self,
        cluster: &mut Cluster,
        overrides: &Overrides,
    ) -> Result<Measured, Error> {
        match &self.trial {
            Trial::Mix(kind, shape) => {
                let drive = overrides.drive(shape);
                let window = Window::measure(&self.name, *kind, shape, drive, target(cluster));
                Ok(Measured::of_window(window.await?, cluster.disk_mib()))
            }
            Trial::Cold(kind, shape) => {
                let first = connection::open_leader(&cluster.endpoints()).await?;
                Filling::of(shape).fill(&first, 0..shape.keys).await?;
                cluster.restart_cold().await?;
                let shape = Shape { fill: false, ..shape.clone() };
                // A warm-up would read what shall be cold.
                let timing = Timing { warmup: Duration::ZERO, ..overrides.timing() };
                let drive = Drive { timing, ..overrides.drive(&shape) };
                let window = Window::measure(&self.name, *kind, &shape, drive, target(cluster));
                Ok(Measured::of_window(window.await?, cluster.disk_mib()))
            }
            Trial::Footprint(shape) => footprint::run(cluster, &self.name, shape).await,
            Trial::Overwrite(plan) => plan.run(cluster, &self.name).await,
            Trial::Growth(plan) => plan.run(cluster, overrides.timing()).await,
            Trial::CatchUp(plan) => plan.run(cluster, &self.name, overrides.timing()).await,
        }
    }
}

/// All nodes of a cluster, to be loaded.
fn target(cluster: &Cluster) -> Target {
    Target { endpoints: cluster.endpoints(), pids: cluster.pids() }
}

// === Measured ===

/// What a turn yields.
#[derive(Default, Serialize)]
pub(crate) struct Measured {
    pub(crate) windows: Vec<Window>,
    pub(crate) values: Vec<Value>,
    /// Of trials that watch the disk.
    #[serde(skip)]
    pub(crate) disk: Vec<DiskSample>,
}

/// One measured window under load.
#[derive(Serialize)]
pub(crate) struct Window {
    pub(crate) row: String,
    pub(crate) shape: Shape,
    pub(crate) figures: Figures,
}

/// One figure that is compared.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Value {
    pub(crate) row: String,
    /// For rows that are measured at several numbers of keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<u64>,
    pub(crate) metric: Metric,
    pub(crate) value: f64,
}

/// The size of a node's data at a moment.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct DiskSample {
    pub(crate) seconds: f64,
    pub(crate) disk_mib: f64,
    /// Live data and versions that are not compacted yet: what a client may ask for.
    pub(crate) readable_mib: f64,
}

impl Window {
    pub(crate) async fn measure(
        row: &str,
        kind: Kind,
        shape: &Shape,
        drive: Drive,
        target: Target,
    ) -> Result<Window, Error> {
        let figures = load::measure(kind, shape, drive, target).await?;
        Ok(Window { row: row.to_owned(), shape: shape.clone(), figures })
    }

    /// What every loaded row tells: cost, rate and latencies.
    fn speed(&self) -> [(Metric, f64); 5] {
        let f = &self.figures;
        [
            (Metric::Cpu, f.server_cpu_us_per_op.unwrap_or(0.0)),
            (Metric::Rate, f.ops_per_s),
            (Metric::P50, f.p50_ms),
            (Metric::P99, f.p99_ms),
            (Metric::Worst, f.max_ms),
        ]
    }
}

impl Measured {
    /// The figures of a plain mix.
    fn of_window(window: Window, disk_mib: f64) -> Measured {
        let memory = window.figures.memory.unwrap_or_default();
        let values = [
            (Metric::Memory, memory.resident_mib),
            (Metric::PeakMemory, memory.peak_mib),
            (Metric::Disk, disk_mib),
            (Metric::ClientCpu, window.figures.client_cpu_us_per_op),
        ];
        let mut measured = Measured::default();
        measured.add(&window.row, None, &window.speed());
        measured.add(&window.row, None, &values);
        measured.windows.push(window);
        measured
    }

    /// Adds figures of a row.
    fn add(&mut self, row: &str, keys: Option<u64>, values: &[(Metric, f64)]) {
        let value = |&(metric, value)| Value { row: row.to_owned(), keys, metric, value };
        self.values.extend(values.iter().map(value));
    }
}
