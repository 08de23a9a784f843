//! Who has which key, and who answers for whom: the placement map and its look-up.
//!
//! Placement makes maps, routers and nodes go by them; none is ever changed, a newer one
//! replaces the whole. What a client sees as "an etcd" is a [`VirtualEtcd`]: a tenant, or a
//! *separate* namespace of one. Nothing is asked of anybody on the request path.
//!
//! Invariants:
//! * the ranges of a virtual etcd are sorted, do not overlap, and tile all keys;
//! * its home group, which holds leases, compaction and members, serves one of them;
//! * no two virtual etcds share a name, a port, or a group.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{GroupId, KeyRange, NamespaceId, NodeId, TenantId, id};

/// Where one request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose keys.
    pub tenant: TenantId,
    /// The part of the tenant's keys.
    pub namespace: NamespaceId,
    /// The group that serves them.
    pub group: GroupId,
    /// Version of the range's descriptor; the group refuses another one.
    pub range_version: u64,
}

/// One range and the group that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePlacement {
    /// The keys.
    pub range: KeyRange,
    /// Where requests for them go.
    pub target: Target,
}

/// What clients of a virtual etcd may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Everything.
    #[default]
    Open,
    /// Nothing, until it is thawed.
    Frozen,
    /// Nothing; its data goes when its grace is over.
    Deleted,
}

/// What a client sees as one etcd: its own revisions, leases, watches, members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualEtcd {
    /// Whose.
    pub tenant: TenantId,
    /// Which part of the tenant.
    pub namespace: NamespaceId,
    /// What clients call it: `acme`, or `acme/events` for a separate namespace.
    pub name: String,
    /// The cluster id in its headers.
    pub cluster_id: u64,
    /// Port of its own at every router, 0 for none.
    pub port: u16,
    /// What its clients may do.
    pub standing: Standing,
    ranges: Vec<RangePlacement>,
    home: Target,
}

// === impl VirtualEtcd ===

impl VirtualEtcd {
    /// The etcd `name` whose keys are all in one group.
    pub fn unsplit(name: &str, cluster_id: u64, home: Target) -> VirtualEtcd {
        VirtualEtcd {
            tenant: home.tenant,
            namespace: home.namespace,
            name: name.to_owned(),
            cluster_id,
            port: 0,
            standing: Standing::Open,
            ranges: vec![RangePlacement { range: KeyRange::all(), target: home }],
            home,
        }
    }

    /// The same over other ranges, in any order. `None` when they leave a gap, overlap, or none
    /// of them is served by the home group.
    pub fn with_ranges(mut self, mut ranges: Vec<RangePlacement>) -> Option<VirtualEtcd> {
        ranges.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        let starts_at_all = ranges.first()?.range.start.is_empty();
        let ends_at_all = ranges.last()?.range.end.is_none();
        let tiles = ranges
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if a.range.end.as_ref() == Some(&b.range.start)));
        self.home = ranges.iter().find(|place| place.target.group == self.home.group)?.target;
        self.ranges = ranges;
        (starts_at_all && ends_at_all && tiles).then_some(self)
    }

    /// Where requests for `key` go.
    pub fn lookup(&self, key: &[u8]) -> Target {
        // There always is one: the first range starts below every key.
        self.place(key).map_or(self.home, |place| place.target)
    }

    /// The range that has `key`.
    pub fn place(&self, key: &[u8]) -> Option<&RangePlacement> {
        let after = self.ranges.partition_point(|place| place.range.start.as_ref() <= key);
        self.ranges.get(after.saturating_sub(1))
    }

    /// The group that has leases, compaction and members.
    pub fn home(&self) -> Target {
        self.home
    }

    /// All its ranges, in order.
    pub fn ranges(&self) -> &[RangePlacement] {
        &self.ranges
    }
}

/// A node that answers clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterPlace {
    /// Which.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Where clients reach it, without a tenant's own port.
    pub client_urls: Vec<String>,
}

/// Where everything is, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacementMap {
    /// Rises with each map of one placement service.
    pub version: u64,
    etcds: HashMap<(TenantId, NamespaceId), Arc<VirtualEtcd>>,
    names: HashMap<String, (TenantId, NamespaceId)>,
    ports: HashMap<u16, (TenantId, NamespaceId)>,
    default: Option<(TenantId, NamespaceId)>,
    routers: Vec<RouterPlace>,
    replicas: HashMap<GroupId, Vec<NodeId>>,
}

// === impl PlacementMap ===

impl PlacementMap {
    /// The map of the embedded default: one tenant, one range, one group.
    pub fn embedded(cluster_id: u64) -> PlacementMap {
        let home = Target {
            tenant: id::DEFAULT_TENANT,
            namespace: id::DEFAULT_NAMESPACE,
            group: id::DEFAULT_GROUP,
            range_version: 1,
        };
        PlacementMap::default()
            .with(VirtualEtcd::unsplit("default", cluster_id, home))
            .with_default(id::DEFAULT_TENANT, id::DEFAULT_NAMESPACE)
    }

    /// The same map with one etcd put in, or replaced.
    pub fn with(mut self, etcd: VirtualEtcd) -> PlacementMap {
        let key = (etcd.tenant, etcd.namespace);
        // Only an etcd that is there has a name and a port to be given up: walking all of them for
        // each that is put in would make a map of many cost their square.
        if let Some(before) = self.etcds.get(&key) {
            self.names.remove(&before.name);
            self.ports.remove(&before.port);
        }
        self.names.insert(etcd.name.clone(), key);
        if etcd.port != 0 {
            self.ports.insert(etcd.port, key);
        }
        self.etcds.insert(key, Arc::new(etcd));
        self
    }

    /// The same map with the etcd that clients get who name none.
    pub fn with_default(mut self, tenant: TenantId, namespace: NamespaceId) -> PlacementMap {
        self.default = Some((tenant, namespace));
        self
    }

    /// The same map with these routers.
    pub fn with_routers(mut self, routers: Vec<RouterPlace>) -> PlacementMap {
        self.routers = routers;
        self
    }

    /// The same map with the nodes that have a replica of `group`.
    pub fn with_replicas(mut self, group: GroupId, nodes: Vec<NodeId>) -> PlacementMap {
        self.replicas.insert(group, nodes);
        self
    }

    /// An etcd by its ids.
    pub fn etcd(&self, tenant: TenantId, namespace: NamespaceId) -> Option<&Arc<VirtualEtcd>> {
        self.etcds.get(&(tenant, namespace))
    }

    /// An etcd by its name.
    pub fn named(&self, name: &str) -> Option<&Arc<VirtualEtcd>> {
        self.etcds.get(self.names.get(name)?)
    }

    /// The etcd that has `port` for itself.
    pub fn on_port(&self, port: u16) -> Option<&Arc<VirtualEtcd>> {
        self.etcds.get(self.ports.get(&port)?)
    }

    /// The etcd of clients who name none.
    pub fn default_etcd(&self) -> Option<&Arc<VirtualEtcd>> {
        self.etcds.get(&self.default?)
    }

    /// All etcds, in no order.
    pub fn etcds(&self) -> impl Iterator<Item = &Arc<VirtualEtcd>> {
        self.etcds.values()
    }

    /// All ports that belong to one etcd, ascending.
    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.ports.keys().copied().collect();
        ports.sort_unstable();
        ports
    }

    /// The nodes that answer clients.
    pub fn routers(&self) -> &[RouterPlace] {
        &self.routers
    }

    /// Has a node replicas of tenants, beside those of the default one?
    pub fn is_used(&self, node: NodeId) -> bool {
        let own = [id::SYSTEM_GROUP, id::DEFAULT_GROUP];
        let others = self.replicas.iter().filter(|(group, _)| !own.contains(group));
        others.into_iter().any(|(_, nodes)| nodes.contains(&node))
    }

    /// The nodes that have a replica of `group`, as far as placement knows.
    pub fn replicas(&self, group: GroupId) -> &[NodeId] {
        self.replicas.get(&group).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn target(group: u64) -> Target {
        Target {
            tenant: TenantId(7),
            namespace: NamespaceId(1),
            group: GroupId(group),
            range_version: 3,
        }
    }

    fn place(start: &'static str, end: Option<&'static str>, group: u64) -> RangePlacement {
        let range =
            KeyRange { start: Bytes::from_static(start.as_bytes()), end: end.map(Bytes::from) };
        RangePlacement { range, target: target(group) }
    }

    fn acme() -> VirtualEtcd {
        VirtualEtcd { port: 4001, ..VirtualEtcd::unsplit("acme", 9, target(10)) }
    }

    #[test]
    fn the_embedded_map_sends_every_key_to_the_default_group() {
        let map = PlacementMap::embedded(5);
        let etcd = map.default_etcd().expect("there is a default");
        for key in [&b"\0"[..], b"a", b"\xff\xff"] {
            let target = etcd.lookup(key);
            assert_eq!((target.group, target.range_version), (id::DEFAULT_GROUP, 1));
        }
    }

    #[test]
    fn an_etcd_is_found_by_id_name_and_port_and_by_nothing_else() {
        let map = PlacementMap::embedded(5).with(acme());
        let found = [map.etcd(TenantId(7), NamespaceId(1)), map.named("acme"), map.on_port(4001)];
        assert!(found.iter().all(|etcd| etcd.is_some_and(|etcd| etcd.cluster_id == 9)));
        assert!(map.named("beta").is_none() && map.on_port(4002).is_none());
        assert!(map.etcd(TenantId(7), NamespaceId(2)).is_none());
    }

    #[test]
    fn a_new_name_and_port_replace_the_old_ones() {
        let map = PlacementMap::default().with(acme());
        let map = map.with(VirtualEtcd { name: "acorn".into(), port: 4002, ..acme() });
        assert!(map.named("acme").is_none() && map.on_port(4001).is_none());
        assert!(map.named("acorn").is_some() && map.on_port(4002).is_some());
        assert!(map.default_etcd().is_none());
    }

    #[test]
    fn a_key_goes_to_the_range_that_holds_it() {
        let ranges = vec![place("m", None, 11), place("", Some("m"), 10)];
        let etcd = acme().with_ranges(ranges).expect("tiles all keys");
        let group = |key: &[u8]| etcd.lookup(key).group.0;
        assert_eq!((group(b"a"), group(b"lzz"), group(b"m"), group(b"z")), (10, 10, 11, 11));
        assert_eq!(etcd.home().group.0, 10);
    }

    #[test]
    fn ranges_with_a_gap_or_without_home_are_refused() {
        let with = |ranges| acme().with_ranges(ranges);
        assert!(with(vec![place("", Some("m"), 10), place("n", None, 11)]).is_none());
        assert!(with(vec![place("", Some("m"), 10)]).is_none());
        assert!(with(vec![place("", None, 12)]).is_none());
        assert!(with(vec![]).is_none());
    }
}
