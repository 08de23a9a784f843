//! What all requests of one router share.
//!
//! Made once; never changes except through its parts (the map is swapped, the counters count).
//! Each map that comes gets the next *number* here, whatever its version says: what was looked
//! up is as old as the number that it was looked up under.

use std::sync::Arc;

use arc_swap::ArcSwap;
use proto::{Error, PlacementMap, VirtualEtcd, group::Groups};
use tokio::sync::watch;

use crate::{
    RouterConfig,
    course::{Course, Courses},
    identify::{Entrance, EtcdId, Evidence, admit, identify},
    leadership::Leadership,
    lease_ids::LeaseIds,
    metrics::{Metrics, StatusSource},
};

/// A map that routers go by, or went by.
pub(crate) struct Placed {
    /// How many maps came before it.
    pub(crate) number: u64,
    pub(crate) map: Arc<PlacementMap>,
}

/// The router's shared state.
pub(crate) struct Door {
    pub(crate) config: RouterConfig,
    pub(crate) groups: Arc<dyn Groups>,
    pub(crate) status: Arc<dyn StatusSource>,
    pub(crate) metrics: Metrics,
    pub(crate) leadership: Arc<Leadership>,
    /// This node's id, in the headers of all answers.
    pub(crate) member_id: u64,
    pub(crate) placed: ArcSwap<Placed>,
    /// The number of the newest map.
    placements: watch::Sender<u64>,
    courses: Courses,
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
        let identity = groups.identity();
        let map = Arc::new(PlacementMap::embedded(identity.cluster_id));
        Arc::new(Door {
            config,
            groups,
            status,
            metrics: Metrics::default(),
            leadership,
            member_id: identity.member_id,
            placed: ArcSwap::from_pointee(Placed { number: 0, map }),
            placements: watch::Sender::new(0),
            courses: Courses::default(),
            lease_ids: LeaseIds::new(identity.member_id),
        })
    }

    /// Goes by `map` from now on.
    pub(crate) fn place(&self, map: Arc<PlacementMap>) {
        // Under the sender's lock, so that two maps that come at once get their own numbers.
        self.placements.send_modify(|number| {
            *number += 1;
            self.placed.store(Arc::new(Placed { number: *number, map }));
        });
        self.courses.change(|| self.map());
    }

    /// The newest map.
    pub(crate) fn map(&self) -> Arc<PlacementMap> {
        self.placed.load().map.clone()
    }

    /// The number of the newest map, whenever one comes.
    pub(crate) fn placements(&self) -> watch::Receiver<u64> {
        self.placements.subscribe()
    }

    /// The course of an etcd from now on.
    pub(crate) fn course(&self, etcd: EtcdId) -> watch::Receiver<Course> {
        self.courses.follow(etcd, || self.map())
    }

    /// The etcd that a request is for, if its clients may do anything.
    pub(crate) fn whose<'m>(
        &self,
        map: &'m PlacementMap,
        entrance: Entrance,
        evidence: &Evidence<'_>,
    ) -> Result<&'m Arc<VirtualEtcd>, Error> {
        let named = identify(map, &self.config.tenant_domains, entrance, evidence)?;
        let etcd = named.or(map.default_etcd()).ok_or(Error::NoTenant)?;
        admit(etcd)?;
        Ok(etcd)
    }

    /// An id for a lease whose client left the choice to us.
    pub(crate) fn new_lease_id(&self) -> i64 {
        self.lease_ids.next()
    }
}
