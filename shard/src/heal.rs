//! Healing: a large value that cannot be read here any more is fetched from another member and
//! written once more into its place.
//!
//! ```text
//!   a read fails ──> noted (`store/view.rs`) ──> Range(key, revision) to the others
//!                                                     │ same bytes: the checksum in the pointer says so
//!                                                     v
//!                                     written into the same pages, synced
//! ```
//!
//! Invariants:
//! - Nothing is written but the bytes that the pointer names: another value, also one of a peer
//!   that is damaged itself, does not pass.
//! - Nothing is written into pages that are not the row's any more: a view holds them.

use std::sync::Arc;
use std::time::Duration;

use proto::cluster::group::GroupRequest;
use proto::etcd::RangeRequest;
use proto::group::{Reply, Request};
use proto::mvccpb::KeyValue;
use proto::{GroupId, NodeId};

use crate::store::view::Damage;
use crate::transport::Peers;
use crate::worker::NodeHandle;

/// How often it is looked at what cannot be read.
const PAUSE: Duration = Duration::from_secs(1);

/// Heals what reads of a node have met, until the process ends.
pub async fn heal(node: NodeId, handle: NodeHandle, peers: Arc<Peers>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        for damage in handle.store().take_damages() {
            let key = String::from_utf8_lossy(&damage.key).into_owned();
            match heal_one(node, &handle, &peers, &damage).await {
                Ok(()) => tracing::warn!(key, revision = damage.revision, "a value is healed"),
                Err(reason) => {
                    tracing::error!(key, revision = damage.revision, reason, "a value is damaged");
                }
            }
        }
    }
}

async fn heal_one(
    node: NodeId,
    handle: &NodeHandle,
    peers: &Peers,
    damage: &Damage,
) -> Result<(), String> {
    let found = handle.group_of_row(damage.shelf, &damage.key);
    let (group, range_version, owner) = found.ok_or("its replica is not here any more")?;
    for member in peers.members_of(group) {
        if member == node {
            continue;
        }
        let request = GroupRequest {
            tenant: owner.tenant,
            namespace: owner.namespace,
            range_version,
            ..ask(group, damage)
        };
        let Ok(Reply::Range(reply)) = peers.call(member, request).await else {
            continue;
        };
        let same = |kv: &&KeyValue| kv.mod_revision == damage.revision;
        if let Some(kv) = reply.kvs.iter().find(same)
            && handle.store().heal(damage, &kv.value)?
        {
            return Ok(());
        }
    }
    Err("no other member gives the value".into())
}

fn ask(group: GroupId, damage: &Damage) -> GroupRequest {
    let range = RangeRequest {
        key: damage.key.clone(),
        revision: damage.revision,
        serializable: true,
        ..Default::default()
    };
    GroupRequest { group: group.0, body: Some(Request::Range(range)), ..Default::default() }
}
