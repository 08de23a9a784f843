//! One simulated machine: a disk and an engine that outlive crashes, and the process on it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use proto::etcd::Member;
use proto::group::{WatchOutput, WatchSink};
use proto::{GroupId, NamespaceId, NodeId, TenantId, id};
use shard::disk::sim::SimDisk;
use shard::engine::memory::MemoryEngine;
use shard::extents::ExtentsConfig;
use shard::group::large::Appended;
use shard::log::{Log, LogConfig, Record, ReplicaKey};
use shard::node::{Birth, CheckpointPolicy, Node, NodeConfig, Pages, Persist, TransferPolicy};
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
    /// The hubs of the replicas here.
    pub hubs: BTreeMap<GroupId, Hub>,
    /// Writes that wait for the disk.
    pub queue: VecDeque<Persist>,
    /// The write that the disk is syncing, and what it appended.
    pub syncing: Option<(u64, Vec<Appended>)>,
    /// The checkpoint on its way.
    pub checkpoint: Option<Arc<Checkpoint>>,
}

/// A machine.
pub struct Host {
    /// Its number, from 0.
    pub index: usize,
    /// Replica, node and member id.
    pub id: u64,
    /// Secret number of its data directory.
    pub directory: u64,
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
    /// Groups that begin with it.
    pub founds: Vec<GroupId>,
    /// It stops in its next round, with part of it done.
    pub dies_in_round: bool,
    /// Replicas that it did not open at its last start.
    pub shut: Vec<ReplicaKey>,
    /// Was removed: it stays down.
    pub removed: bool,
}

impl Host {
    /// A machine that was never used.
    pub fn new(index: usize) -> Host {
        Host {
            index,
            id: index as u64 + 1,
            directory: 1000 * (index as u64 + 1),
            disk: SimDisk::new(),
            pages: SimDisk::new(),
            engine: MemoryEngine::default(),
            process: None,
            life: 0,
            ahead_ms: 0,
            paused_until: 0,
            sync_ms: 2,
            joined: false,
            founds: vec![id::DEFAULT_GROUP],
            dies_in_round: false,
            shut: Vec::new(),
            removed: false,
        }
    }

    /// A machine to which the group may come.
    pub fn spare(index: usize) -> Host {
        Host { founds: Vec::new(), ..Host::new(index) }
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
            self.founds.iter().map(|group| birth(*group, self.id, founders)).collect();
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
            // Snapshots take several pieces, and some of these wait for a tick.
            transfer: TransferPolicy { piece_bytes: 700, bytes_per_s: 20_000 },
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
        let shut = std::mem::take(&mut self.shut);
        for refused in &opened.refused {
            if !shut.contains(&refused.key) {
                return Err(format!("a replica is refused: {}", refused.reason));
            }
            self.shut.push(refused.key);
        }
        let node = opened.node;
        let hubs = node.groups().filter_map(|(id, _)| Some((*id, hub_of(&node, *id)?))).collect();
        self.process = Some(Process {
            node,
            log,
            hubs,
            queue: VecDeque::new(),
            syncing: None,
            checkpoint: None,
        });
        Ok(())
    }

    /// While it is down one of its replicas, if it has any, is found damaged beyond trust.
    pub fn damage(&mut self, choose: usize) -> Result<Option<ReplicaKey>, String> {
        let config = LogConfig { segment_bytes: 64 << 10, ..Default::default() };
        let (log, found) = Log::open(Arc::new(self.disk.clone()), self.id, config)
            .map_err(|error| format!("open the log: {error}"))?;
        let is_shut = |record: &Record| matches!(record, Record::Quarantine { .. });
        let whole = found.replicas.iter().filter(|(_, found)| !found.controls.iter().any(is_shut));
        let Some(key) = whole.map(|(key, _)| *key).cycle().nth(choose) else { return Ok(None) };
        let record = Record::Quarantine { key, reason: "the simulator says so".to_owned() };
        log.append(&[record]).map_err(|error| format!("write the log: {error}"))?;
        log.sync().map_err(|error| format!("sync the log: {error}"))?;
        self.shut.push(key);
        Ok(Some(key))
    }

    /// The host's own monotonic clock.
    pub fn clock(&self, now: u64) -> u64 {
        now + self.ahead_ms + 1000
    }
}

/// How a replica of a group comes to a node.
pub fn birth(group: GroupId, replica: u64, founders: u64) -> Birth {
    let member = |n: u64| Member {
        id: n + 1,
        name: format!("n{}", n + 1),
        peer_ur_ls: vec![format!("http://n{}", n + 1)],
        ..Default::default()
    };
    // The groups that every service begins with.
    let tenant = if group == id::SYSTEM_GROUP { TenantId(0) } else { id::DEFAULT_TENANT };
    let namespace = if group == id::SYSTEM_GROUP { NamespaceId(0) } else { id::DEFAULT_NAMESPACE };
    let members = (0..founders).map(member).collect();
    Birth { group, replica, members, cluster_id: 7, tenant, namespace }
}

/// A hub for a group's replica on a node, if it has one.
pub fn hub_of(node: &Node, group: GroupId) -> Option<Hub> {
    let shared = node.shared(group)?;
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
