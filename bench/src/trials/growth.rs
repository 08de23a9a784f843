//! The same mixes on one cluster as its keys grow: what an operation costs at each number of keys.
//!
//! ```text
//!   fill to 10k -> rest -> put, get, range -> restart -> fill to 1M -> rest -> put, get, range -> ...
//! ```
//!
//! A cost per operation should be flat or logarithmic in the number of keys. The rest after a fill
//! lets work that the fill left behind (merges of an engine, snapshots) end before the windows.
//! etcd may be spared the largest numbers: with 10 million keys it wants more memory than many
//! machines have.

use std::time::{Duration, Instant};

use super::{Measured, RowGoal, Window, target};
use crate::connection;
use crate::cpu::Memory;
use crate::error::Error;
use crate::goals::{Against, Goal, Metric};
use crate::load::{Drive, Shape, Timing};
use crate::mixes::{self, content::Filling};
use crate::servers::{Cluster, Kind};

/// The name of the row; those of its mixes begin with it.
pub(crate) const NAME: &str = "growth";
/// The mixes that are run at each number of keys.
pub(crate) const MIXES: [&str; 3] = ["put", "get", "range"];
/// The least and the greatest number of keys of the yardstick.
const FEW: u64 = 10_000;
const MANY: u64 = 10_000_000;
const REST: Duration = Duration::from_secs(10);

/// Numbers of keys, in growing order.
pub(crate) struct Plan {
    pub(crate) keys: Vec<u64>,
    /// etcd is filled with so many at most.
    pub(crate) etcd_keys_max: u64,
}

/// The yardstick's goals: at 10 million keys within 1.3 of the own cost at 10 thousand; and a restart
/// that is flat in the number of keys, for which the same factor is taken.
pub(crate) fn goals() -> Vec<RowGoal> {
    let mut goals = Vec::new();
    let mut add = |row: &'static str, metric| {
        let against = Against::Own { row, keys: Some(FEW) };
        let goal = Goal { keys: Some(MANY), against, ..Goal::ratio(metric, 1.3) };
        goals.push((row.to_owned(), goal));
    };
    add("growth-put", Metric::Cpu);
    add("growth-get", Metric::Cpu);
    add(NAME, Metric::RestartSeconds);
    goals
}

/// The row of a mix.
pub(crate) fn row_of(mix: &str) -> String {
    format!("{NAME}-{mix}")
}

impl Plan {
    /// Fills, measures and restarts, number by number.
    pub(crate) async fn run(
        &self,
        cluster: &mut Cluster,
        timing: Timing,
    ) -> Result<Measured, Error> {
        let mut measured = Measured::default();
        let mut filled = 0;
        for keys in self.keys_for(cluster.kind()) {
            let leader = connection::open_leader(&cluster.endpoints()).await?;
            let began = Instant::now();
            let shape = &mixes::find("put")?.shape;
            Filling::of(shape).fill(&leader, filled..keys).await?;
            let fill_s = began.elapsed().as_secs_f64();
            tokio::time::sleep(REST).await;
            for name in MIXES {
                self.measure(cluster, name, keys, timing, &mut measured).await?;
            }
            let (memory, disk_mib) = (Memory::read(&cluster.pids()), cluster.disk_mib());
            let restart_s = cluster.restart().await?.as_secs_f64();
            let values = [
                (Metric::Memory, memory.resident_mib),
                (Metric::Disk, disk_mib),
                (Metric::RestartSeconds, restart_s),
                (Metric::FillSeconds, fill_s),
            ];
            measured.add(NAME, Some(keys), &values);
            filled = keys;
        }
        Ok(measured)
    }

    async fn measure(
        &self,
        cluster: &Cluster,
        name: &str,
        keys: u64,
        timing: Timing,
        measured: &mut Measured,
    ) -> Result<(), Error> {
        let mix = mixes::find(name)?;
        let span = mix.shape.span.min(keys);
        let shape = Shape { keys, span, fill: false, ..mix.shape };
        let row = row_of(name);
        let drive = Drive::new(&shape, timing);
        let window = Window::measure(&row, mix.kind, &shape, drive, target(cluster)).await?;
        let figures = &window.figures;
        let values = [
            (Metric::Cpu, figures.server_cpu_us_per_op.unwrap_or(0.0)),
            (Metric::Rate, figures.ops_per_s),
            (Metric::P99, figures.p99_ms),
        ];
        measured.add(&row, Some(keys), &values);
        measured.windows.push(window);
        Ok(())
    }

    fn keys_for(&self, kind: Kind) -> impl Iterator<Item = u64> {
        let keys_max = match kind {
            Kind::Atoll => u64::MAX,
            Kind::Etcd => self.etcd_keys_max,
        };
        self.keys.iter().copied().filter(move |&keys| keys <= keys_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_is_spared_the_largest_numbers() {
        let plan = Plan { keys: vec![10, 100, 1_000], etcd_keys_max: 100 };
        assert_eq!(plan.keys_for(Kind::Etcd).collect::<Vec<_>>(), [10, 100]);
        assert_eq!(plan.keys_for(Kind::Atoll).count(), 3);
    }

    #[test]
    fn goals_are_for_rows_that_are_measured() {
        for (row, _) in goals() {
            assert!(row == NAME || MIXES.iter().any(|mix| row_of(mix) == row), "{row}");
        }
    }
}
