//! One simulated machine: a disk and an engine that outlive crashes, and the process on it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use proto::etcd::Member;
use proto::group::{WatchOutput, WatchSink};
use proto::{NodeId, id};
use shard::disk::sim::SimDisk;
use shard::engine::memory::MemoryEngine;
use shard::extents::ExtentsConfig;
use shard::group::large::Appended;
use shard::log::{Log, LogConfig};
use shard::node::{Birth, CheckpointPolicy, Node, NodeConfig, Pages, Persist};
use shard::store::checkpoint::Checkpoint;
use shard::watch::hub::Hub;

/// Milliseconds between ticks in simulated nodes.
pub const TICK_MS: u64 = 100;
/// Ticks of an election timeout.
pub const ELECTION_TICKS: usize = 10;

/// A process on a host.
pub struct Process {
    /// The node.
    pub node: Node,
    /// Its log.
    pub log: Arc<Log>,
    /// The hub of its replica of the default group, while it has one.
    pub hub: Option<Hub>,
    /// Writes that wait for the disk.
    pub queue: VecDeque<Persist>,
    /// The write that the disk is syncing, and what it appended.
    pub syncing: Option<(u64, Vec<Appended>)>,
    /// The checkpoint on its way.
    pub checkpoint: Option<Arc<Checkpoint>>,
    /// Client streams by hub id.
    pub sinks: BTreeMap<u64, Arc<Sink>>,
}

/// A machine.
pub struct Host {
    /// Its number, from 0.
    pub index: usize,
    /// Replica, node and member id.
    pub id: u64,
    /// Survives crashes, loses what was not synced.
    pub disk: SimDisk,
    /// As the disk, with the page files.
    pub pages: SimDisk,
    /// Survives crashes.
    pub engine: MemoryEngine,
    /// The process, while it runs.
    pub process: Option<Process>,
    /// Rises with every start: what was meant for an earlier process is dropped.
    pub life: u64,
    /// The host's clock is so far ahead of the world's.
    pub ahead_ms: u64,
    /// The process stands still until then.
    pub paused_until: u64,
    /// Milliseconds that a sync takes at most.
    pub sync_ms: u64,
    /// Came to a running group: it knows no first members.
    pub joined: bool,
    /// Has no replica of the group before placement says so.
    pub spare: bool,
    /// Was removed: it stays down.
    pub removed: bool,
}

impl Host {
    /// A machine that was never used.
    pub fn new(index: usize) -> Host {
        Host {
            index,
            id: index as u64 + 1,
            disk: SimDisk::new(),
            pages: SimDisk::new(),
            engine: MemoryEngine::default(),
            process: None,
            life: 0,
            ahead_ms: 0,
            paused_until: 0,
            sync_ms: 2,
            joined: false,
            spare: false,
            removed: false,
        }
    }

    /// A machine to which the group may come.
    pub fn spare(index: usize) -> Host {
        Host { spare: true, ..Host::new(index) }
    }

    /// A machine for the member `id`, added to a running group.
    pub fn joining(index: usize, id: u64) -> Host {
        Host { id, joined: true, ..Host::new(index) }
    }

    /// Starts the process; an error says why it will not start.
    pub fn start(
        &mut self,
        now: u64,
        seed: u64,
        hosts: usize,
        commands: u64,
        large_bytes: usize,
    ) -> Result<(), String> {
        self.life += 1;
        let config =
            LogConfig { segment_bytes: 64 << 10, keep_bytes: 64 << 10, ..Default::default() };
        let (log, recovered) = Log::open(Arc::new(self.disk.clone()), self.id, config)
            .map_err(|error| format!("open the log: {error}"))?;
        let log = Arc::new(log);
        let founders = if self.joined { 0 } else { hosts as u64 };
        let births: Vec<Birth> =
            (!self.spare).then(|| birth(self.id, founders)).into_iter().collect();
        let config = NodeConfig {
            node: NodeId(self.id),
            cluster: 7,
            incarnation: self.life,
            seed,
            tick_ms: TICK_MS,
            election_ticks: ELECTION_TICKS,
            quota_bytes: 0,
            min_lease_ttl_s: 2,
            // Small, so that blocks are cut and go.
            block_keys: 2,
            large_bytes,
            withhold: false,
            checkpoint: CheckpointPolicy {
                commands,
                age_ms: 4000,
                idle_ms: 1500,
                ..Default::default()
            },
        };
        let clock = self.clock(now);
        let engine = Arc::new(self.engine.clone());
        let pages = Pages {
            disk: Arc::new(self.pages.clone()),
            // Small files, so that they come and go.
            config: ExtentsConfig {
                file_pages: 64,
                grow_pages: 64,
                cut_pages_min: 8,
                ahead_pages: 8,
                salt: self.id,
            },
        };
        let opened = Node::open(config, engine, log.clone(), &recovered, &births, pages, clock)
            .map_err(|error| format!("open the node: {error}"))?;
        if let Some(refused) = opened.refused.first() {
            return Err(format!("a replica is refused: {}", refused.reason));
        }
        let node = opened.node;
        let hub = hub_of(&node);
        self.process = Some(Process {
            node,
            log,
            hub,
            queue: VecDeque::new(),
            syncing: None,
            checkpoint: None,
            sinks: BTreeMap::new(),
        });
        Ok(())
    }

    /// The host's own monotonic clock.
    pub fn clock(&self, now: u64) -> u64 {
        now + self.ahead_ms + 1000
    }
}

/// How a replica of the group comes to a node.
pub fn birth(replica: u64, founders: u64) -> Birth {
    let member = |n: u64| Member {
        id: n + 1,
        name: format!("n{}", n + 1),
        peer_ur_ls: vec![format!("http://n{}", n + 1)],
        ..Default::default()
    };
    Birth {
        group: id::DEFAULT_GROUP,
        replica,
        members: (0..founders).map(member).collect(),
        cluster_id: 7,
        tenant: id::DEFAULT_TENANT,
        namespace: id::DEFAULT_NAMESPACE,
    }
}

/// A hub for the group's replica on a node, if it has one.
pub fn hub_of(node: &Node) -> Option<Hub> {
    let shared = node.shared(id::DEFAULT_GROUP)?;
    Some(Hub::new(node.store().clone(), shared.published.clone()))
}

/// A client stream's end at a hub: bounded, emptied by the client when it likes.
#[derive(Default)]
pub struct Sink {
    queue: Mutex<VecDeque<WatchOutput>>,
}

/// Outputs that a sink holds: few, so that watchers often fall back to history.
const SINK_DEPTH: usize = 6;

impl Sink {
    /// Takes everything.
    pub fn drain(&self) -> Vec<WatchOutput> {
        self.queue.lock().drain(..).collect()
    }
}

impl WatchSink for Sink {
    fn offer(&self, output: WatchOutput) -> Result<(), WatchOutput> {
        let mut queue = self.queue.lock();
        if queue.len() >= SINK_DEPTH {
            return Err(output);
        }
        queue.push_back(output);
        Ok(())
    }

    fn is_closed(&self) -> bool {
        false
    }
}
