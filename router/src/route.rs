//! Who has which key: the placement map and its look-up.
//!
//! The map is immutable and stands in an `ArcSwap`: a request takes it, looks its tenant and
//! key up, and stamps what it found into the group request. A newer map replaces the whole.
//! Nothing is asked of anybody on the request path.
//!
//! Invariants:
//! * the ranges of a tenant are sorted, do not overlap, and tile all keys;
//! * the home group, which holds leases, compaction and members, is one of the tenant's groups.

use std::collections::HashMap;

use proto::{GroupId, KeyRange, NamespaceId, TenantId, id};

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
#[derive(Clone, Debug)]
pub struct RangePlacement {
    /// The keys.
    pub range: KeyRange,
    /// Where requests for them go.
    pub target: Target,
}

/// All ranges of one tenant.
#[derive(Clone, Debug)]
pub struct TenantPlacement {
    ranges: Vec<RangePlacement>,
    home: Target,
}

// === impl TenantPlacement ===

impl TenantPlacement {
    /// Takes ranges in any order. `home` must be the group of one of them; `None` when the
    /// ranges leave a gap, overlap, or do not contain `home`.
    pub fn new(mut ranges: Vec<RangePlacement>, home: GroupId) -> Option<TenantPlacement> {
        ranges.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        let starts_at_all = ranges.first()?.range.start.is_empty();
        let ends_at_all = ranges.last()?.range.end.is_none();
        let tiles = ranges
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if a.range.end.as_ref() == Some(&b.range.start)));
        let home = ranges.iter().find(|place| place.target.group == home)?.target;
        (starts_at_all && ends_at_all && tiles).then_some(TenantPlacement { ranges, home })
    }

    /// The group of `key`.
    fn lookup(&self, key: &[u8]) -> Target {
        let after = self.ranges.partition_point(|place| place.range.start.as_ref() <= key);
        match self.ranges.get(after.saturating_sub(1)) {
            Some(place) => place.target,
            // Cannot happen: the first range starts below every key.
            None => self.home,
        }
    }
}

/// Where every tenant's keys are, at one moment.
#[derive(Clone, Debug, Default)]
pub struct PlacementMap {
    tenants: HashMap<TenantId, TenantPlacement>,
}

// === impl PlacementMap ===

impl PlacementMap {
    /// The map of the embedded default: one tenant, one range, one group.
    pub fn embedded() -> PlacementMap {
        let target = Target {
            tenant: id::DEFAULT_TENANT,
            namespace: id::DEFAULT_NAMESPACE,
            group: id::DEFAULT_GROUP,
            range_version: 1,
        };
        let whole = RangePlacement { range: KeyRange::all(), target };
        let tenant = TenantPlacement { ranges: vec![whole], home: target };
        PlacementMap { tenants: HashMap::from([(id::DEFAULT_TENANT, tenant)]) }
    }

    /// The same map with one tenant put in or replaced.
    pub fn with(mut self, tenant: TenantId, placement: TenantPlacement) -> PlacementMap {
        self.tenants.insert(tenant, placement);
        self
    }

    /// The group that has `key`; `None` for an unknown tenant.
    pub fn lookup(&self, tenant: TenantId, key: &[u8]) -> Option<Target> {
        Some(self.tenants.get(&tenant)?.lookup(key))
    }

    /// The home group; `None` for an unknown tenant.
    pub fn home(&self, tenant: TenantId) -> Option<Target> {
        Some(self.tenants.get(&tenant)?.home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn place(start: &'static str, end: Option<&'static str>, group: u64) -> RangePlacement {
        let range =
            KeyRange { start: Bytes::from_static(start.as_bytes()), end: end.map(Bytes::from) };
        let target = Target {
            tenant: TenantId(7),
            namespace: NamespaceId(1),
            group: GroupId(group),
            range_version: 3,
        };
        RangePlacement { range, target }
    }

    #[test]
    fn the_embedded_map_sends_every_key_to_the_default_group() {
        let map = PlacementMap::embedded();
        for key in [&b"\0"[..], b"a", b"\xff\xff"] {
            let target = map.lookup(id::DEFAULT_TENANT, key).expect("the tenant is known");
            assert_eq!((target.group, target.range_version), (id::DEFAULT_GROUP, 1));
        }
    }

    #[test]
    fn an_unknown_tenant_has_no_group() {
        assert_eq!(PlacementMap::embedded().lookup(TenantId(99), b"a"), None);
        assert_eq!(PlacementMap::embedded().home(TenantId(99)), None);
    }

    #[test]
    fn a_key_goes_to_the_range_that_holds_it() {
        let ranges = vec![place("m", None, 11), place("", Some("m"), 10)];
        let tenant = TenantPlacement::new(ranges, GroupId(10)).expect("tiles all keys");
        let map = PlacementMap::default().with(TenantId(7), tenant);
        let group = |key: &[u8]| map.lookup(TenantId(7), key).map(|t| t.group.0);
        assert_eq!(
            (group(b"a"), group(b"lzz"), group(b"m"), group(b"z")),
            (Some(10), Some(10), Some(11), Some(11))
        );
        assert_eq!(map.home(TenantId(7)).map(|t| t.group.0), Some(10));
    }

    #[test]
    fn ranges_with_a_gap_or_without_home_are_refused() {
        assert!(
            TenantPlacement::new(vec![place("", Some("m"), 10), place("n", None, 11)], GroupId(10))
                .is_none()
        );
        assert!(TenantPlacement::new(vec![place("", Some("m"), 10)], GroupId(10)).is_none());
        assert!(TenantPlacement::new(vec![place("", None, 10)], GroupId(12)).is_none());
        assert!(TenantPlacement::new(vec![], GroupId(12)).is_none());
    }
}
