//! Tells open streams when the map sends their etcd elsewhere, or takes it away.
//!
//! A request reads the map by itself; a stream that waits must be told. Those who wait follow
//! their etcd here, and a new map wakes only the streams of etcds that it treats otherwise:
//! a map changes for some etcd all the time, and ten thousand streams of the others sleep on.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use proto::{Error, PlacementMap, VirtualEtcd};
use tokio::sync::watch;

use crate::identify::{EtcdId, admit};

/// The etcd as those see it who go by its ranges, or why nobody may go there.
pub(crate) type Course = Result<Arc<VirtualEtcd>, Error>;

/// Who follows which etcd.
#[derive(Default)]
pub(crate) struct Courses {
    followed: Mutex<HashMap<EtcdId, watch::Sender<Course>>>,
}

// === impl Courses ===

impl Courses {
    /// The course of `etcd` from now on. `map` gives the newest map; it is asked for under the
    /// lock, so that no map comes between looking and following.
    pub(crate) fn follow(
        &self,
        etcd: EtcdId,
        map: impl FnOnce() -> Arc<PlacementMap>,
    ) -> watch::Receiver<Course> {
        let mut followed = self.followed.lock();
        let course = course(&map(), etcd);
        let sender = followed.entry(etcd).or_insert_with(|| watch::Sender::new(course.clone()));
        set(sender, course);
        sender.subscribe()
    }

    /// Goes by the newest map.
    pub(crate) fn change(&self, map: impl FnOnce() -> Arc<PlacementMap>) {
        let mut followed = self.followed.lock();
        let map = map();
        followed.retain(|etcd, sender| {
            set(sender, course(&map, *etcd));
            sender.receiver_count() > 0
        });
    }
}

fn set(sender: &watch::Sender<Course>, course: Course) {
    sender.send_if_modified(|now| {
        let goes_on = leads_alike(now, &course);
        *now = course;
        !goes_on
    });
}

fn leads_alike(one: &Course, other: &Course) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => Arc::ptr_eq(one, other) || one.ranges() == other.ranges(),
        (Err(one), Err(other)) => one == other,
        _ => false,
    }
}

fn course(map: &PlacementMap, (tenant, namespace): EtcdId) -> Course {
    let etcd = map.etcd(tenant, namespace).ok_or(Error::UnknownTenant)?;
    admit(etcd)?;
    Ok(etcd.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{VirtualEtcd, id, map::Standing};

    const DEFAULT: EtcdId = (id::DEFAULT_TENANT, id::DEFAULT_NAMESPACE);

    fn frozen(map: &PlacementMap) -> PlacementMap {
        let etcd = map.default_etcd().expect("there is a default");
        let mut etcd = VirtualEtcd::clone(etcd);
        etcd.standing = Standing::Frozen;
        map.clone().with(etcd)
    }

    #[test]
    fn followers_are_woken_by_what_concerns_them_and_nothing_else() {
        let courses = Courses::default();
        let open = Arc::new(PlacementMap::embedded(1));
        let mut course = courses.follow(DEFAULT, || open.clone());
        assert!(course.borrow_and_update().is_ok());
        courses.change(|| open.clone());
        assert_eq!(course.has_changed().ok(), Some(false));
        courses.change(|| Arc::new(frozen(&open)));
        assert_eq!(course.has_changed().ok(), Some(true));
        assert_eq!(course.borrow_and_update().as_ref().err(), Some(&Error::TenantFrozen));
        courses.change(|| Arc::new(PlacementMap::default()));
        assert_eq!(*course.borrow_and_update(), Err(Error::UnknownTenant));
        courses.change(|| open.clone());
        assert!(course.borrow_and_update().is_ok());
    }

    #[test]
    fn a_range_that_changes_wakes_them_and_a_port_does_not() {
        let courses = Courses::default();
        let open = Arc::new(PlacementMap::embedded(1));
        let mut course = courses.follow(DEFAULT, || open.clone());
        let mut etcd = VirtualEtcd::clone(open.default_etcd().expect("there is a default"));
        etcd.port = 4001;
        courses.change(|| Arc::new(PlacementMap::clone(&open).with(etcd.clone())));
        assert_eq!(course.has_changed().ok(), Some(false));
        let mut places = etcd.ranges().to_vec();
        places[0].target.range_version += 1;
        let etcd = etcd.with_ranges(places).expect("tiles all keys");
        courses.change(|| Arc::new(PlacementMap::clone(&open).with(etcd)));
        assert_eq!(course.has_changed().ok(), Some(true));
        assert!(course.borrow_and_update().is_ok());
    }

    #[test]
    fn nothing_is_kept_for_those_who_left() {
        let courses = Courses::default();
        let open = Arc::new(PlacementMap::embedded(1));
        drop(courses.follow(DEFAULT, || open.clone()));
        courses.change(|| open.clone());
        assert!(courses.followed.lock().is_empty());
    }
}
