//! What others are told of a ledger: the map for routers, and for each node the replicas that it
//! is to have. Pure.

use std::collections::BTreeMap;

use proto::etcd::Member;
use proto::map::{PlacementMap, RangePlacement, RouterPlace, Standing, Target, VirtualEtcd};
use proto::{GroupId, KeyRange, NamespaceId, NodeId, TenantId};

use crate::ledger::Ledger;
use crate::record::{
    Founder, Group, NamespaceKind, Place, Recovery, Replica, Tenant, TenantState, keys_of,
};

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
    /// Replicas here that are to go on alone.
    pub recoveries: Vec<Survivor>,
}

/// A replica that is to go on without the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Survivor {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: u64,
    /// Version of the members from then on.
    pub membership_version: u64,
    /// The revision from then on, at least.
    pub revision: i64,
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
        let NamespaceKind::Separate { cluster_id, port, .. } = namespace.kind else {
            return None;
        };
        let places = namespace.places();
        let range = |(at, place): (usize, &Place)| RangePlacement {
            range: keys_of(&places, at),
            target: Target {
                tenant: TenantId(tenant.id),
                namespace: NamespaceId(namespace.id),
                group: GroupId(place.group),
                range_version: place.version,
            },
        };
        let ranges: Vec<RangePlacement> = places.iter().enumerate().map(range).collect();
        let home = ranges.first()?.target;
        let etcd = VirtualEtcd::unsplit(&tenant.full_name(namespace), cluster_id, home);
        // Places that do not tile would be of somebody's hand: nobody is sent by them.
        let mut etcd = etcd.with_ranges(ranges)?;
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
        if let Some(recovery) = group.recovering().filter(|recovery| recovery.node == node.0)
            && has(GroupId(group.id)) == Some(recovery.replica)
        {
            duties.recoveries.push(Survivor {
                group: GroupId(group.id),
                replica: recovery.replica,
                membership_version: recovery.version,
                revision: recovery.revision,
            });
        }
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

/// May a replica of a group come to a node, of whose replicas `keys` tells the keys? Not while one
/// of the same etcd still has its first key: it will bring the new group with it, rows and all,
/// when it has applied what cuts them, and would find an empty one in its place.
pub fn may_come(
    ledger: &Ledger,
    group: GroupId,
    keys: impl Fn(GroupId) -> Option<KeyRange>,
) -> bool {
    let Some((namespace, at)) = ledger.place_of(group.0) else { return true };
    let places = namespace.places();
    let Some(own) = places.get(at) else { return true };
    let others = places.iter().filter(|place| place.group != group.0);
    let mut here = others.filter_map(|place| keys(GroupId(place.group)));
    !here.any(|keys| keys.contains(&own.start))
}

/// The nodes that have replicas of the groups of split etcds.
pub fn whereabouts(ledger: &Ledger) -> BTreeMap<GroupId, Vec<NodeId>> {
    let mut nodes = BTreeMap::new();
    for tenant in ledger.tenants.values() {
        for namespace in tenant.namespaces.iter().filter(|namespace| namespace.is_split()) {
            for place in namespace.places().iter() {
                let Some(group) = ledger.groups.get(&place.group) else { continue };
                let on = group.replicas.iter().map(|replica| NodeId(replica.node)).collect();
                nodes.insert(GroupId(place.group), on);
            }
        }
    }
    nodes
}

/// May a replica that was on disk when its node started take part in its group? Not one that the
/// group has left behind, and none but the chosen one while a recovery is under way. Of groups that
/// the ledger does not know placement has nothing to say.
pub fn may_take_part(
    ledger: &Ledger,
    group: GroupId,
    node: NodeId,
    replica: u64,
    version: u64,
) -> bool {
    let Some(group) = ledger.groups.get(&group.0) else { return true };
    let chosen = |r: &Recovery| (r.node, r.replica) == (node.0, replica);
    let listed = group.replicas.iter().find(|known| known.node == node.0);
    group.recovering().is_none_or(chosen)
        && listed.is_none_or(|listed| listed.replica <= replica)
        && !is_gone(group, node, replica, version)
}

/// Was a replica on `node` removed without a word to it? `version` is of the members that it
/// knows, 0 while it waits for its first snapshot. True only of a ledger that is not older than the
/// one by which the replica was begun.
pub fn is_gone(group: &Group, node: NodeId, replica: u64, version: u64) -> bool {
    let listed = group.replicas.iter().any(|known| known.node == node.0);
    let outdated = match version {
        // It was begun because a ledger listed it. But one that has its node's number was added by
        // a user with etcd's command: its leader may not have reported it yet. Not in a group that
        // was cut off another one, where the first replicas have these numbers.
        0 => replica != node.0 || group.founders.is_empty(),
        version => version < group.membership_version,
    };
    !listed && outdated
}

/// Has a replica on `node`, which knows the members of `version`, to tell placement of them? Its
/// leader does, of whom it knows. Where nobody leads whoever knows more than placement does: what a
/// replica has applied is so, whoever says it. A group that lost a voter right after it gave another
/// one away may never have a leader again, and nobody would see that most of its voters are gone.
pub fn has_news(group: &Group, node: NodeId, leader: Option<NodeId>, version: u64) -> bool {
    version > group.membership_version && leader.is_none_or(|leader| leader == node)
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
    use crate::record::Meta;

    #[test]
    fn who_was_left_behind_takes_no_part_when_it_comes_back() {
        let replica = |node| Replica { node, replica: node, learner: false };
        let group = |replicas: &[u64], version, recovery| Group {
            id: 3,
            tenant: 1,
            namespace: 1,
            cluster_id: 7,
            founders: Vec::new(),
            replicas: replicas.iter().map(|node| replica(*node)).collect(),
            membership_version: version,
            told: 1,
            dead: false,
            wanted: 0,
            recovery,
        };
        let order = || Some(Recovery { node: 1, replica: 1, version: 90, revision: 0, at_ms: 0 });
        let may = |group: Group, node: u64, replica| {
            let mut ledger = Ledger { meta: None::<Meta>, ..Ledger::default() };
            ledger.groups.insert(group.id, group.into());
            may_take_part(&ledger, GroupId(3), NodeId(node), replica, 4)
        };
        let whole = || group(&[1, 2, 3], 4, None);
        assert!(may(whole(), 1, 1) && may(whole(), 2, 2));
        let ordered = || group(&[1, 2, 3], 4, order());
        assert!(may(ordered(), 1, 1), "the chosen one");
        assert!(!may(ordered(), 2, 2) && !may(ordered(), 1, 7), "it is under way");
        let done = || group(&[1], 90, order());
        assert!(may(done(), 1, 1) && !may(done(), 2, 2) && !may(done(), 3, 3));
        // The node has the group again, under another number.
        let mut again = group(&[1, 2], 95, order());
        again.replicas[1].replica = 80;
        assert!(!may(again.clone(), 2, 2) && may(again, 2, 80));
        assert!(may_take_part(&Ledger::default(), GroupId(3), NodeId(2), 2, 4), "not of placement");
    }

    #[test]
    fn a_replica_that_was_removed_before_it_heard_a_word_is_gone() {
        let replica = |node| Replica { node, replica: node, learner: false };
        let group = Group {
            id: 3,
            tenant: 1,
            namespace: 1,
            cluster_id: 7,
            founders: vec![Founder { node: 1, name: "n1".to_owned(), peer_urls: Vec::new() }],
            replicas: vec![replica(1), replica(2)],
            membership_version: 4,
            dead: false,
            wanted: 0,
            recovery: None,
            told: 1,
        };
        let gone = |node, replica, version| is_gone(&group, NodeId(node), replica, version);
        assert!(gone(5, 4, 0) && gone(5, 4, 3));
        // Newer than the report; added by a user's command; listed.
        assert!(!gone(5, 4, 4) && !gone(5, 5, 0) && !gone(2, 2, 3));
        // Of a group that was cut off another one the first replicas have their nodes' numbers.
        let cut_off = Group { founders: Vec::new(), ..group.clone() };
        assert!(is_gone(&cut_off, NodeId(5), 5, 0) && !is_gone(&cut_off, NodeId(2), 2, 0));
        let news =
            |leader: Option<u64>, version| has_news(&group, NodeId(1), leader.map(NodeId), version);
        assert!(news(Some(1), 5) && news(None, 5), "it leads, or nobody does");
        assert!(!news(Some(2), 5), "the leader will tell");
        assert!(!news(Some(1), 4) && !news(None, 4), "it is known");
    }
}
