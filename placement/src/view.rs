//! What others are told of a ledger: the map for routers, and for each node the replicas that it
//! is to have. Pure.

use proto::etcd::Member;
use proto::map::{PlacementMap, RouterPlace, Standing, Target, VirtualEtcd};
use proto::{GroupId, NamespaceId, NodeId, TenantId};

use crate::ledger::Ledger;
use crate::record::{Founder, Group, NamespaceKind, Replica, Tenant, TenantState};

/// A replica that a node is to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: u64,
    /// The group's first members, if this replica is one; otherwise it gets all by snapshot.
    pub founders: Vec<Member>,
    /// Id of the virtual cluster.
    pub cluster_id: u64,
    /// Whose keys.
    pub tenant: TenantId,
    /// Which part of the tenant.
    pub namespace: NamespaceId,
}

/// What a node is to have and has not, and what it must have no more and has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Duties {
    /// Replicas to have.
    pub wanted: Vec<Wanted>,
    /// Groups whose rows are to go.
    pub dead: Vec<GroupId>,
}

/// The map.
pub fn map(ledger: &Ledger) -> PlacementMap {
    let mut map = PlacementMap::default();
    map.version = ledger.revision.max(0) as u64;
    for tenant in ledger.tenants.values() {
        for etcd in etcds(tenant) {
            map = map.with(etcd);
        }
    }
    let default = ledger.meta.as_ref().map_or(0, |meta| meta.default_tenant);
    if let Some(first) = ledger.tenants.get(&default).and_then(|t| t.namespaces.first()) {
        map = map.with_default(TenantId(default), NamespaceId(first.id));
    }
    for group in ledger.groups.values().filter(|group| !group.dead) {
        let nodes = group.replicas.iter().map(|replica| NodeId(replica.node)).collect();
        map = map.with_replicas(GroupId(group.id), nodes);
    }
    let router = |node: &crate::record::Node| RouterPlace {
        node: NodeId(node.id),
        name: node.name.clone(),
        client_urls: node.client_urls.clone(),
    };
    map.with_routers(ledger.nodes.values().map(router).collect())
}

fn etcds(tenant: &Tenant) -> impl Iterator<Item = VirtualEtcd> {
    tenant.namespaces.iter().filter_map(move |namespace| {
        let NamespaceKind::Separate { cluster_id, port, group } = namespace.kind else {
            return None;
        };
        let home = Target {
            tenant: TenantId(tenant.id),
            namespace: NamespaceId(namespace.id),
            group: GroupId(group),
            range_version: 1,
        };
        let mut etcd = VirtualEtcd::unsplit(&tenant.full_name(namespace), cluster_id, home);
        etcd.port = port;
        etcd.standing = match tenant.state_of(namespace) {
            TenantState::Open => Standing::Open,
            TenantState::Frozen => Standing::Frozen,
            TenantState::Deleted => Standing::Deleted,
        };
        Some(etcd)
    })
}

/// What is left to do for `node`, which has the replicas that `has` tells by their groups. A lower
/// number than what it is to have is of a replica that was removed before.
pub fn duties(ledger: &Ledger, node: NodeId, has: impl Fn(GroupId) -> Option<u64>) -> Duties {
    let mut duties = Duties::default();
    for group in ledger.groups.values() {
        let here = group.replicas.iter().find(|replica| replica.node == node.0);
        match here {
            _ if group.dead && has(GroupId(group.id)).is_some() => {
                duties.dead.push(GroupId(group.id));
            }
            _ if group.dead => {}
            Some(wanted) if has(GroupId(group.id)).is_some_and(|r| r >= wanted.replica) => {}
            Some(replica) => duties.wanted.push(Wanted {
                group: GroupId(group.id),
                replica: replica.replica,
                founders: founders(group, replica),
                cluster_id: group.cluster_id,
                tenant: TenantId(group.tenant),
                namespace: NamespaceId(group.namespace),
            }),
            None => {}
        }
    }
    duties
}

/// Was a replica on `node` removed without a word to it? `version` is of the members that it
/// knows, 0 while it waits for its first snapshot. True only of a ledger that is not older than the
/// one by which the replica was begun.
pub fn is_gone(group: &Group, node: NodeId, replica: u64, version: u64) -> bool {
    let listed = group.replicas.iter().any(|known| known.node == node.0);
    let outdated = match version {
        // It was begun because a ledger listed it. But one that has its node's number was added by
        // a user with etcd's command: its leader may not have reported it yet.
        0 => replica != node.0,
        version => version < group.membership_version,
    };
    !listed && outdated
}

/// The first members of a group; none if `replica` is not of one of them.
fn founders(group: &Group, replica: &Replica) -> Vec<Member> {
    let is_first = |f: &Founder| f.node == replica.node && f.node == replica.replica;
    if !group.founders.iter().any(is_first) {
        return Vec::new();
    }
    let member = |founder: &Founder| Member {
        id: founder.node,
        name: founder.name.clone(),
        peer_ur_ls: founder.peer_urls.clone(),
        ..Default::default()
    };
    group.founders.iter().map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_was_removed_before_it_heard_a_word_is_gone() {
        let replica = |node| Replica { node, replica: node, learner: false };
        let group = Group {
            id: 3,
            tenant: 1,
            namespace: 1,
            cluster_id: 7,
            founders: Vec::new(),
            replicas: vec![replica(1), replica(2)],
            membership_version: 4,
            dead: false,
            told: 1,
        };
        let gone = |node, replica, version| is_gone(&group, NodeId(node), replica, version);
        assert!(gone(5, 4, 0) && gone(5, 4, 3));
        // Newer than the report; added by a user's command; listed.
        assert!(!gone(5, 4, 4) && !gone(5, 5, 0) && !gone(2, 2, 3));
    }
}
