//! What all requests of one router share, and what all requests of one connection share.
//!
//! [`Door`] is made once and never changes except through its parts (the map is swapped, the
//! counters count). [`Connection`] lives as long as a client's socket.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use proto::{TenantId, group::Groups, id};
use tokio::sync::watch;

use crate::{
    RouterConfig,
    leadership::Leadership,
    metrics::{Metrics, StatusSource},
    route::PlacementMap,
};

/// The router's shared state.
pub(crate) struct Door {
    pub(crate) config: RouterConfig,
    pub(crate) groups: Arc<dyn Groups>,
    pub(crate) status: Arc<dyn StatusSource>,
    pub(crate) map: ArcSwap<PlacementMap>,
    pub(crate) metrics: Metrics,
    pub(crate) leadership: Arc<Leadership>,
    /// Becomes true once, when the server stops: streams end then.
    pub(crate) closing: watch::Sender<bool>,
    lease_ids: LeaseIds,
}

// === impl Door ===

impl Door {
    pub(crate) fn new(
        config: RouterConfig,
        groups: Arc<dyn Groups>,
        status: Arc<dyn StatusSource>,
    ) -> Arc<Door> {
        let leadership = Arc::new(Leadership::new(groups.clone(), config.election_timeout));
        let lease_ids = LeaseIds::new(groups.identity().member_id);
        Arc::new(Door {
            config,
            groups,
            status,
            map: ArcSwap::from_pointee(PlacementMap::embedded()),
            metrics: Metrics::default(),
            leadership,
            closing: watch::Sender::new(false),
            lease_ids,
        })
    }

    /// An id for a lease whose client left the choice to us.
    pub(crate) fn new_lease_id(&self) -> i64 {
        self.lease_ids.next()
    }
}

/// One client's socket.
pub(crate) struct Connection {
    pub(crate) door: Arc<Door>,
    pub(crate) tenant: TenantId,
    /// Highest revision that any answer on this connection has shown.
    floor: AtomicI64,
}

// === impl Connection ===

impl Connection {
    pub(crate) fn new(door: Arc<Door>) -> Arc<Connection> {
        Arc::new(Connection { door, tenant: id::DEFAULT_TENANT, floor: AtomicI64::new(0) })
    }

    pub(crate) fn floor(&self) -> i64 {
        self.floor.load(Ordering::Relaxed)
    }

    /// Notes that the client is about to see `revision`.
    pub(crate) fn show(&self, revision: i64) {
        if revision > self.floor.load(Ordering::Relaxed) {
            self.floor.fetch_max(revision, Ordering::Relaxed);
        }
    }
}

/// Gives out lease ids as etcd does: some bits of the member, the time of the start, a count.
/// Two routers, or one before and after a restart, do not give the same id; if they ever did,
/// the group would refuse the grant as existing and nothing would be harmed.
struct LeaseIds {
    prefix: u64,
    count: AtomicU64,
}

// === impl LeaseIds ===

impl LeaseIds {
    const COUNT_BITS: u32 = 48;

    fn new(member: u64) -> LeaseIds {
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let start_ms = elapsed.map(|time| time.as_millis() as u64).unwrap_or(0);
        // Fifteen bits of the member: the sign bit stays clear.
        let member = (member ^ (member >> 15) ^ (member >> 30) ^ (member >> 45)) & 0x7fff;
        LeaseIds { prefix: member << Self::COUNT_BITS, count: AtomicU64::new(start_ms << 8) }
    }

    fn next(&self) -> i64 {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let id = (self.prefix | (count & ((1 << Self::COUNT_BITS) - 1))) as i64;
        assert!(id >= 0, "the sign bit of a lease id is clear");
        // Zero means "choose for me" and can come up once in 2^48.
        if id == 0 { self.next() } else { id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ids_are_positive_and_differ() {
        let ids = LeaseIds::new(u64::MAX);
        let (a, b) = (ids.next(), ids.next());
        assert!(a > 0 && b > 0 && a != b);
        assert_ne!(LeaseIds::new(1).next() >> 48, LeaseIds::new(2).next() >> 48);
    }
}
