//! `atoll recover-ledger`: placement's own group lost most of its nodes for good, so there is nobody
//! who could order its recovery. It is done by hand, on the data directory of a node that is left
//! and stands still: its replica goes on alone (`shard/src/node/recovery.rs`), with the ledger as
//! it knows it.
//!
//! The node is opened as at a start, and only as much is done as the recovery takes. Others that are
//! left hear of it when it is started, and are too few to be a majority until then. Those that are
//! lost are many enough: they must never come back with what they had.
//!
//! It knows nothing of other nodes but whether they run: while one of the members does it is refused,
//! because that one may be part of a majority, or have been recovered before. What is done on two
//! nodes that both stand still it cannot see; then `atoll status` says that two lead placement.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use proto::etcd::Member;
use proto::limits::RECOVERY_STEP;
use proto::{NodeId, id};
use shard::disk::os::OsDisk;
use shard::engine::fjall::FjallEngine;
use shard::extents::ExtentsConfig;
use shard::log::{Log, LogConfig};
use shard::node::{
    CheckpointPolicy, Input, Node, NodeConfig, Output, Pages, Recover, TransferPolicy,
};
use shard::store::counts::BLOCK_KEYS;

use crate::directory::{Directory, number};
use crate::rollcall;

/// The node's clock stands still.
const NOW_MS: u64 = 1000;
/// Rounds that a recovery takes at most: it takes a handful.
const ROUNDS_MAX: usize = 10_000;
/// Values from this length on stand in extents, as in a node that is told nothing else.
const LARGE_BYTES: usize = 8192;

/// Where, and whether.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Data directory of a node that is left, and that is stopped.
    #[arg(long)]
    data_dir: PathBuf,
    /// Do it: what only the others had is lost.
    #[arg(long)]
    accept_loss: bool,
}

/// Tells what the replica here has, and has it go on alone if that is wanted.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let path = options.data_dir.display();
    if !options.data_dir.join("identity").exists() {
        return Err(format!("{path} is no data directory of a node"));
    }
    let directory = Directory::open(&options.data_dir)?;
    let identity = directory.identity()?;
    let identity = identity.ok_or_else(|| format!("{path} is no data directory of a node"))?;
    let (node, cluster) = (number(&identity.node)?, number(&identity.cluster)?);
    let salt = number(&identity.salt)?;
    let disk = OsDisk::open(directory.log()).map_err(|error| format!("open the log: {error}"))?;
    let (log, recovered) =
        Log::open(Arc::new(disk), node, LogConfig { salt, ..Default::default() })
            .map_err(|error| format!("open the log: {error}"))?;
    let log = Arc::new(log);
    let engine = FjallEngine::open(&directory.engine()).map_err(|error| error.to_string())?;
    let disk = OsDisk::open(directory.pages()).map_err(|e| format!("open the page files: {e}"))?;
    let pages =
        Pages { disk: Arc::new(disk), config: ExtentsConfig { salt, ..Default::default() } };
    let opened = Node::open(
        config(node, cluster),
        Arc::new(engine),
        log.clone(),
        &recovered,
        &[],
        pages,
        NOW_MS,
    )
    .map_err(|error| error.to_string())?;
    let group = id::SYSTEM_GROUP;
    if let Some(refused) = opened.refused.iter().find(|refused| refused.key.group == group.0) {
        return Err(format!("the replica here is quarantined: {}", refused.reason));
    }
    let mut still = Still { node: opened.node, log };
    let found = still.node.group(group).ok_or("this node has no replica of placement's group")?;
    let state = found.machine().state();
    let replica = found.shared().replica();
    let members: Vec<String> =
        state.members.iter().map(|member| format!("{} ({:x})", member.name, member.id)).collect();
    println!(
        "Placement's group has {} members, as far as node {node:x} knows: {}.",
        members.len(),
        members.join(", ")
    );
    println!(
        "Its replica here stands at entry {} of term {}, has applied entry {}, revision {}.",
        found.last_entry().0,
        found.last_entry().1,
        state.applied_index,
        state.revision
    );
    let others = state.members.iter().filter(|member| member.id != node);
    let others: Vec<Other> = others.filter_map(Other::of).collect();
    if state.conf_state.voters == [replica] || found.is_recovering() {
        return Err(
            "it is the only voter already: there is nothing to recover, start the node".into()
        );
    }
    if !options.accept_loss {
        println!(
            "What placement has recorded behind that, and only the others have, would be lost. Compare \
             all nodes that are left, and take the one with the highest term and then entry."
        );
        return Err("nothing was changed: --accept-loss has it go on alone".to_owned());
    }
    if let Some(Other { name, url, .. }) = running(cluster, &others)? {
        return Err(format!(
            "{name} runs and answers at {url}: stop all nodes of placement's group first. Was this done \
             on {name} already, then start this node instead"
        ));
    }
    let version = state.membership_version + RECOVERY_STEP;
    still.recover(Recover { group, replica, membership_version: version, revision: 0 })?;
    println!(
        "It goes on alone. Do this on no other node, there would be two placements. Start this node, then \
         the others that are left. Never start those that are lost with the data that they had: empty \
         their data directories first."
    );
    Ok(())
}

fn config(node: u64, cluster: u64) -> NodeConfig {
    NodeConfig {
        node: NodeId(node),
        cluster,
        incarnation: 1,
        seed: 1,
        tick_ms: 100,
        election_ticks: 10,
        quota_bytes: 0,
        min_lease_ttl_s: 1,
        block_keys: BLOCK_KEYS,
        large_bytes: LARGE_BYTES,
        // Nobody but the system group is to do anything here.
        withhold: true,
        checkpoint: CheckpointPolicy::default(),
        transfer: TransferPolicy::default(),
    }
}

/// Another member of the group.
struct Other {
    node: u64,
    name: String,
    url: String,
}

impl Other {
    fn of(member: &Member) -> Option<Other> {
        let url = member.peer_ur_ls.first()?.clone();
        Some(Other { node: member.id, name: member.name.clone(), url })
    }
}

/// One of these nodes that runs, if one does.
fn running(cluster: u64, others: &[Other]) -> Result<Option<&Other>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start the runtime: {error}"))?;
    let runs = |other: &&Other| runtime.block_on(rollcall::runs(cluster, other.node, &other.url));
    Ok(others.iter().find(runs))
}

/// A node without threads, clock and network.
struct Still {
    node: Node,
    log: Arc<Log>,
}

// === impl Still ===

impl Still {
    /// Has a replica go on alone; durable on return.
    fn recover(&mut self, wish: Recover) -> Result<(), String> {
        let (group, version) = (wish.group, wish.membership_version);
        self.step(Input::Recover(wish))?;
        for _ in 0..ROUNDS_MAX {
            self.round()?;
            let known = self.node.group(group).map(|g| g.machine().state().membership_version);
            if known == Some(version) {
                return self.log.close().map_err(|error| format!("close the log: {error}"));
            }
        }
        Err("it could not be done: see what the node says when it is started".to_owned())
    }

    fn step(&mut self, input: Input) -> Result<(), String> {
        self.node.step(NOW_MS, input).map_err(|error| error.to_string())
    }

    fn round(&mut self) -> Result<(), String> {
        let outputs = self.node.round(NOW_MS).map_err(|error| error.to_string())?;
        for output in outputs {
            match output {
                Output::Persist(mut persist) => {
                    let extents = self.node.store().extents().clone();
                    let appended = persist.write(&self.log, &extents, LARGE_BYTES);
                    let appended = appended.map_err(|error| error.to_string())?;
                    self.log.sync().map_err(|error| format!("write the log: {error}"))?;
                    self.step(Input::Persisted { id: persist.id, sync_ms: 0, appended })?;
                }
                Output::Checkpoint(checkpoint) => {
                    let written = checkpoint.write(self.node.store().engine().as_ref());
                    written.map_err(|error| format!("write a checkpoint: {error}"))?;
                    self.step(Input::CheckpointWritten)?;
                }
                // Nobody listens, and nobody waits.
                _ => {}
            }
        }
        Ok(())
    }
}
