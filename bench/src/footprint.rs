//! What a filled server weighs: memory and disk after a fill and a rest, the time of a restart until
//! it is well, memory after that. No clients load it meanwhile.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::connection::{self, Connection};
use crate::cpu::{CpuTimes, Memory};
use crate::error::Error;
use crate::load::Shape;
use crate::mixes::content;
use crate::servers::Cluster;

/// The name under which `compare` knows this beside the mixes.
pub(crate) const NAME: &str = "footprint";
/// Keys of the yardstick's row.
pub(crate) const KEYS: u64 = 1_000_000;
/// "At rest" begins this long after the last request.
const REST: Duration = Duration::from_secs(10);

/// What one filled system weighs, all nodes together.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Footprint {
    fill_s: f64,
    fill_cpu_us_per_key: f64,
    memory_mib: f64,
    anonymous_mib: f64,
    disk_mib: f64,
    restart_s: f64,
    restarted_memory_mib: f64,
    /// CPU of all nodes while nobody asks anything.
    idle_cores: f64,
}

impl Footprint {
    /// Names, values and the yardstick's goals.
    pub(crate) fn figures(&self) -> [(&'static str, f64, Option<f64>); 8] {
        [
            ("fill_s", self.fill_s, None),
            ("fill_cpu_us_per_key", self.fill_cpu_us_per_key, None),
            ("memory_mib", self.memory_mib, Some(0.25)),
            ("anonymous_mib", self.anonymous_mib, None),
            ("disk_mib", self.disk_mib, Some(0.6)),
            ("restart_s", self.restart_s, Some(0.1)),
            ("restarted_memory_mib", self.restarted_memory_mib, Some(0.25)),
            ("idle_cores", self.idle_cores, None),
        ]
    }
}

/// Fills a fresh cluster and weighs it.
pub(crate) async fn weigh(cluster: &mut Cluster, shape: &Shape) -> Result<Footprint, Error> {
    let endpoints = connection::leader_first(&cluster.endpoints()).await?;
    let (began, before) = (Instant::now(), CpuTimes::read(&cluster.pids()));
    content::fill(&Connection::open(&endpoints[0]).await?, shape).await?;
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
    Ok(Footprint {
        fill_s,
        fill_cpu_us_per_key: filled.servers_us as f64 / shape.keys as f64,
        memory_mib: memory.resident_mib,
        anonymous_mib: memory.anonymous_mib,
        disk_mib,
        restart_s,
        restarted_memory_mib: Memory::read(&cluster.pids()).resident_mib,
        idle_cores: idle.servers_us as f64 / 1e6 / REST.as_secs_f64(),
    })
}
