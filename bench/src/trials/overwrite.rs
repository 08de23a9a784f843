//! A live set of values is overwritten several times at full speed while old revisions are compacted.
//!
//! ```text
//!   fill the live set | overwrite random keys of it, PASSES x its size | rest   | settled
//!                     | compact every few seconds ...                  | compact once more
//!     disk sampled:   |.............. peak ...........................|........|
//! ```
//!
//! Sizes are those of one node's data folder (the mean of all nodes), as a multiple of the live data.
//! Between two compactions every version that was written can still be read, so no server can drop it:
//! the peak is therefore also told as a multiple of what is readable at that moment, and that one is
//! held against the yardstick's bound. etcd's file never shrinks without a defragmentation, which
//! stops the member; none is done here, for either system.
//!
//! The quota of both systems is raised: etcd's default of 2 GiB would end the row.

use std::cell::Cell;
use std::time::{Duration, Instant};

use proto::etcd;

use super::{DiskSample, Measured, Window, target};
use crate::connection::{self, Connection};
use crate::cpu;
use crate::error::Error;
use crate::goals::{Goal, Metric};
use crate::load::{Drive, Shape, Timing};
use crate::mixes::{self, Kind, content::Filling};
use crate::servers::Cluster;

const MIB: f64 = 1024.0 * 1024.0;
/// Between two looks at the data folders.
const SAMPLE: Duration = Duration::from_millis(250);
/// From the last put to the settled size.
const REST: Duration = Duration::from_secs(15);
/// A system that is slower overwrites less; the figures are per byte.
const LIMIT: Duration = Duration::from_secs(300);

/// Sizes and times.
pub(crate) struct Plan {
    pub(crate) value_bytes: usize,
    pub(crate) clients: usize,
    pub(crate) live_bytes: u64,
    /// How often the live set is overwritten.
    pub(crate) passes: u64,
    pub(crate) compact_every: Duration,
}

/// The yardstick's goals.
pub(crate) fn goals() -> [Goal; 3] {
    [
        Goal::at_most(Metric::DiskPeakReadable, 1.5),
        Goal::at_most(Metric::DiskSettled, 1.5),
        Goal::at_most(Metric::Worst, 100.0),
    ]
}

impl Plan {
    fn keys(&self) -> u64 {
        (self.live_bytes / self.value_bytes as u64).max(1)
    }

    /// Fills, overwrites and rests.
    pub(crate) async fn run(&self, cluster: &Cluster, row: &str) -> Result<Measured, Error> {
        let keys = self.keys();
        let shape = Shape {
            clients: self.clients,
            connections: self.clients,
            value_bytes: self.value_bytes,
            keys,
            total: Some(keys * self.passes),
            ..mixes::find("put")?.shape
        };
        let leader = connection::open_leader(&cluster.endpoints()).await?;
        Filling::of(&shape).fill(&leader, 0..keys).await?;
        let drive = Drive::new(&shape, Timing { warmup: Duration::ZERO, measured: LIMIT });
        let written = cpu::written_bytes(&cluster.pids());
        let ended = Cell::new(None);
        let load = async {
            let window = Window::measure(row, Kind::Put, &shape, drive, target(cluster)).await;
            ended.set(Some(Instant::now()));
            window
        };
        let (window, disk) = futures::try_join!(load, self.watch_disk(cluster, &leader, &ended))?;
        let written = cpu::written_bytes(&cluster.pids()) - written;
        Ok(self.measured(row, cluster.nodes(), window, disk, written))
    }

    /// Compacts and samples until the load has ended and the rest is over.
    async fn watch_disk(
        &self,
        cluster: &Cluster,
        leader: &Connection,
        ended: &Cell<Option<Instant>>,
    ) -> Result<Vec<DiskSample>, Error> {
        let began = Instant::now();
        let (mut compacted, mut compacted_at) = (revision(leader).await?, began);
        let mut last_compaction = false;
        let mut samples = Vec::new();
        loop {
            let now = revision(leader).await?;
            let unread = (now - compacted) as f64 * self.value_bytes as f64;
            let live = (self.keys() * self.value_bytes as u64) as f64;
            samples.push(DiskSample {
                seconds: began.elapsed().as_secs_f64(),
                disk_mib: cluster.disk_mib() / cluster.nodes() as f64,
                readable_mib: (live + unread) / MIB,
            });
            let over = ended.get();
            if over.is_some_and(|over| over.elapsed() >= REST) {
                return Ok(samples);
            }
            let due = compacted_at.elapsed() >= self.compact_every || over.is_some();
            if due && !last_compaction && now > compacted {
                compact(leader, now).await?;
                (compacted, compacted_at) = (now, Instant::now());
                last_compaction = over.is_some();
            }
            tokio::time::sleep(SAMPLE).await;
        }
    }

    fn measured(
        &self,
        row: &str,
        nodes: usize,
        window: Window,
        disk: Vec<DiskSample>,
        written_bytes: u64,
    ) -> Measured {
        let live_mib = (self.keys() * self.value_bytes as u64) as f64 / MIB;
        let user_bytes = (window.figures.ops * self.value_bytes as u64) as f64;
        let greatest = |of: fn(&DiskSample) -> f64| disk.iter().map(of).fold(0.0, f64::max);
        let memory = window.figures.memory.unwrap_or_default();
        let mut measured = Measured::default();
        let values = [
            (Metric::PeakMemory, memory.peak_mib),
            (Metric::DiskPeak, greatest(|sample| sample.disk_mib) / live_mib),
            (Metric::DiskPeakReadable, greatest(|s| s.disk_mib / s.readable_mib)),
            (Metric::DiskSettled, disk.last().map_or(0.0, |last| last.disk_mib) / live_mib),
            (Metric::DiskWritten, written_bytes as f64 / nodes as f64 / user_bytes.max(1.0)),
        ];
        measured.add(row, None, &window.speed());
        measured.add(row, None, &values);
        measured.windows.push(window);
        measured.disk = disk;
        measured
    }
}

/// The newest revision.
async fn revision(leader: &Connection) -> Result<i64, Error> {
    let request = etcd::RangeRequest { key: "~".into(), count_only: true, ..Default::default() };
    let answer = leader.kv().range(request).await.map_err(Error::request("read the revision"))?;
    Ok(answer.into_inner().header.map_or(0, |header| header.revision))
}

async fn compact(leader: &Connection, revision: i64) -> Result<(), Error> {
    let request = etcd::CompactionRequest { revision, physical: false };
    leader.kv().compact(request).await.map(drop).map_err(Error::request("compact"))
}
