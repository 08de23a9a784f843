//! What a filled server weighs: memory and disk after a fill and a rest, the time of a restart until
//! it is well, memory after that. No clients load it meanwhile.

use std::time::{Duration, Instant};

use super::Measured;
use crate::connection;
use crate::cpu::{CpuTimes, Memory};
use crate::error::Error;
use crate::goals::{Goal, Metric};
use crate::load::Shape;
use crate::mixes::content::Filling;
use crate::servers::Cluster;

/// The name of the row.
pub(crate) const NAME: &str = "footprint";
/// Keys of the yardstick's row.
pub(crate) const KEYS: u64 = 1_000_000;
/// "At rest" begins this long after the last request.
const REST: Duration = Duration::from_secs(10);

/// The yardstick's goals.
pub(crate) fn goals() -> [Goal; 4] {
    [
        Goal::ratio(Metric::Memory, 0.25),
        Goal::ratio(Metric::RestartedMemory, 0.25),
        Goal::ratio(Metric::RestartSeconds, 0.1),
        Goal::ratio(Metric::Disk, 0.6),
    ]
}

/// Fills a fresh cluster and weighs it, all nodes together.
pub(crate) async fn run(
    cluster: &mut Cluster,
    row: &str,
    shape: &Shape,
) -> Result<Measured, Error> {
    let leader = connection::open_leader(&cluster.endpoints()).await?;
    let (began, before) = (Instant::now(), CpuTimes::read(&cluster.pids()));
    Filling::of(shape).fill(&leader, 0..shape.keys).await?;
    let fill_s = began.elapsed().as_secs_f64();
    tokio::time::sleep(REST).await;
    let filled = CpuTimes::read(&cluster.pids()) - before;
    let memory = Memory::read(&cluster.pids());
    let disk_mib = cluster.disk_mib();
    let restart_s = cluster.restart().await?.as_secs_f64();
    tokio::time::sleep(REST).await;
    let before = CpuTimes::read(&cluster.pids());
    tokio::time::sleep(REST).await;
    let idle = CpuTimes::read(&cluster.pids()) - before;
    let mut measured = Measured::default();
    let values = [
        (Metric::FillSeconds, fill_s),
        (Metric::FillCpu, filled.servers_us as f64 / shape.keys as f64),
        (Metric::Memory, memory.resident_mib),
        (Metric::AnonymousMemory, memory.anonymous_mib),
        (Metric::PeakMemory, memory.peak_mib),
        (Metric::Disk, disk_mib),
        (Metric::RestartSeconds, restart_s),
        (Metric::RestartedMemory, Memory::read(&cluster.pids()).resident_mib),
        (Metric::IdleCores, idle.servers_us as f64 / 1e6 / REST.as_secs_f64()),
    ];
    measured.add(row, None, &values);
    Ok(measured)
}
