//! Where groups have replicas, and what was heard of them: hints for who asks other nodes.
//!
//! The map comes from placement and is replaced as a whole. What was heard comes from answers. No
//! hint is relied on: a wrong one costs a try, and a group that is forgotten is asked anew.
//!
//! Is a group that has no replica here without a leader? Its replicas would have to be asked, and
//! who wants to know cannot wait. So every answer that shows a leader is noted, and every ask to
//! which nobody answered with a leader; a group is leaderless when such asks, and nothing else,
//! have come in for three election timeouts. What was heard longer ago than that says nothing.
//! Whoever wants to know has the replicas asked once more if nothing was heard lately
//! ([`Leadership::ask`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use proto::cluster::group::GroupRequest;
use proto::{GroupId, NamespaceId, NodeId, PlacementMap, TenantId};

/// Groups of which something is remembered.
const HEARD_MAX: usize = 16_384;

/// See the module.
pub(super) struct Directory {
    election_ms: u64,
    map: ArcSwap<PlacementMap>,
    heard: Mutex<HashMap<GroupId, Heard>>,
    turns: AtomicU64,
}

/// What was heard of one group. Times are the node's, in milliseconds.
#[derive(Clone, Copy, Default)]
struct Heard {
    /// Answered last what only a leader answers.
    leader: Option<NodeId>,
    /// Answered a read last.
    reader: Option<NodeId>,
    /// Since when nobody answers with a leader.
    silent_since_ms: Option<u64>,
    /// When anything was heard of a leader, or that there is none.
    word_ms: u64,
    /// When its replicas were last asked for a leader.
    asked_ms: u64,
}

/// What is known of a group's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leadership {
    /// Nobody has answered with a leader for too long.
    pub(super) lost: bool,
    /// The replicas are to be asked, by whom is told so.
    pub(super) ask: bool,
}

// === impl Directory ===

impl Directory {
    /// A directory that has no map and has heard nothing yet.
    pub(super) fn new(election: Duration) -> Directory {
        Directory {
            election_ms: u64::try_from(election.as_millis()).unwrap_or(u64::MAX),
            map: ArcSwap::default(),
            heard: Mutex::default(),
            turns: AtomicU64::new(0),
        }
    }

    /// Goes by `map` from now on.
    pub(super) fn locate(&self, map: Arc<PlacementMap>) {
        self.map.store(map);
    }

    /// The nodes that have a replica, as placement says.
    pub(super) fn replicas(&self, group: GroupId) -> Vec<NodeId> {
        self.map.load().replicas(group).to_vec()
    }

    /// Is the group, by the map, none of the etcd's any more that the request is for?
    pub(super) fn is_gone(&self, request: &GroupRequest) -> bool {
        let map = self.map.load();
        let etcd = map.etcd(TenantId(request.tenant), NamespaceId(request.namespace));
        etcd.is_some_and(|etcd| etcd.ranges().iter().all(|it| it.target.group.0 != request.group))
    }

    /// Version of the group's range. Looks at all ranges, so it is not for every request.
    pub(super) fn range_version(&self, group: GroupId) -> u64 {
        let map = self.map.load();
        let mut places = map.etcds().flat_map(|etcd| etcd.ranges());
        places.find(|place| place.target.group == group).map_or(1, |p| p.target.range_version)
    }

    /// A number that rises, so that who tries again tries another node.
    pub(super) fn turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// The leader that answered last.
    pub(super) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.heard.lock().get(&group)?.leader
    }

    /// The node that answered a read last.
    pub(super) fn reader(&self, group: GroupId) -> Option<NodeId> {
        self.heard.lock().get(&group)?.reader
    }

    /// `node` answered as the leader of `group`.
    pub(super) fn led(&self, group: GroupId, node: NodeId) {
        self.note(group, |heard| heard.leader = Some(node));
    }

    /// `node` answered a read of `group`.
    pub(super) fn gave(&self, group: GroupId, node: NodeId) {
        if self.reader(group) != Some(node) {
            self.note(group, |heard| heard.reader = Some(node));
        }
    }

    /// `node` did not answer: the others come first.
    pub(super) fn failed(&self, group: GroupId, node: NodeId) {
        self.note(group, |heard| {
            heard.leader = heard.leader.filter(|leader| *leader != node);
            heard.reader = heard.reader.filter(|reader| *reader != node);
        });
    }

    /// An answer has shown that the group has a leader.
    pub(super) fn has_leader(&self, group: GroupId, now_ms: u64) {
        self.note(group, |heard| {
            heard.silent_since_ms = None;
            heard.word_ms = now_ms;
        });
    }

    /// Who was asked did not answer with a leader.
    pub(super) fn no_leader(&self, group: GroupId, now_ms: u64) {
        self.note(group, |heard| {
            self.forget(heard, now_ms);
            heard.silent_since_ms.get_or_insert(now_ms);
            heard.word_ms = now_ms;
        });
    }

    /// What is known of the group's leader; see the module.
    pub(super) fn leadership(&self, group: GroupId, now_ms: u64) -> Leadership {
        let mut found = Leadership { lost: false, ask: false };
        self.note(group, |heard| {
            self.forget(heard, now_ms);
            found.lost = heard.silent_since_ms.is_some_and(|since| self.is_late(since, now_ms));
            let lately_ms = heard.word_ms.max(heard.asked_ms) + self.election_ms / 2;
            found.ask = now_ms >= lately_ms;
            if found.ask {
                heard.asked_ms = now_ms;
            }
        });
        found
    }

    /// Forgets a silence that was heard of too long ago.
    fn forget(&self, heard: &mut Heard, now_ms: u64) {
        if self.is_late(heard.word_ms, now_ms) {
            heard.silent_since_ms = None;
        }
    }

    fn is_late(&self, since_ms: u64, now_ms: u64) -> bool {
        now_ms > since_ms.saturating_add(3 * self.election_ms)
    }

    fn note(&self, group: GroupId, note: impl FnOnce(&mut Heard)) {
        let mut heard = self.heard.lock();
        if heard.len() >= HEARD_MAX
            && !heard.contains_key(&group)
            && let Some(any) = heard.keys().next().copied()
        {
            heard.remove(&any);
        }
        note(heard.entry(group).or_default());
    }
}

#[cfg(test)]
mod tests {
    use proto::VirtualEtcd;
    use proto::map::Target;

    use super::*;

    const GROUP: GroupId = GroupId(7);

    fn directory() -> Directory {
        Directory::new(Duration::from_secs(1))
    }

    fn lost(directory: &Directory, now_ms: u64) -> bool {
        directory.leadership(GROUP, now_ms).lost
    }

    #[test]
    fn a_group_is_leaderless_when_nobody_answered_with_a_leader_for_three_election_timeouts() {
        let directory = directory();
        assert!(!lost(&directory, 10_000), "nobody was asked");
        for now_ms in (10_000..=13_000).step_by(500) {
            directory.no_leader(GROUP, now_ms);
            assert!(!lost(&directory, now_ms));
        }
        assert!(lost(&directory, 13_001));
        directory.has_leader(GROUP, 13_002);
        assert!(!lost(&directory, 13_003));
    }

    #[test]
    fn a_group_is_gone_when_the_map_has_its_etcd_without_it() {
        let directory = directory();
        let request =
            |tenant, group| GroupRequest { tenant, namespace: 1, group, ..Default::default() };
        assert!(!directory.is_gone(&request(3, 7)), "nothing is known");
        let (tenant, namespace, group) = (TenantId(3), NamespaceId(1), GROUP);
        let home = Target { tenant, namespace, group, range_version: 1 };
        let etcd = VirtualEtcd::unsplit("acme", 1, home);
        directory.locate(Arc::new(PlacementMap::default().with(etcd)));
        assert!(!directory.is_gone(&request(3, 7)));
        assert!(directory.is_gone(&request(3, 8)));
        assert!(!directory.is_gone(&request(0, 8)), "it is not said whose it is");
    }

    #[test]
    fn what_was_heard_long_ago_says_nothing() {
        let directory = directory();
        directory.no_leader(GROUP, 10_000);
        assert!(!lost(&directory, 60_000));
        directory.no_leader(GROUP, 60_001);
        directory.no_leader(GROUP, 90_001);
        assert!(!lost(&directory, 90_002), "nobody was asked between");
        let directory = self::directory();
        directory.no_leader(GROUP, 10_000);
        directory.no_leader(GROUP, 60_001);
        assert!(!lost(&directory, 60_002), "the silence begins anew");
    }

    #[test]
    fn one_who_wants_to_know_asks_and_not_all_of_them() {
        let directory = directory();
        assert!(directory.leadership(GROUP, 10_000).ask);
        assert!(!directory.leadership(GROUP, 10_001).ask);
        assert!(directory.leadership(GROUP, 10_500).ask);
        directory.has_leader(GROUP, 10_900);
        assert!(!directory.leadership(GROUP, 11_100).ask);
    }

    #[test]
    fn who_did_not_answer_is_not_remembered() {
        let directory = directory();
        directory.led(GROUP, NodeId(1));
        directory.gave(GROUP, NodeId(2));
        directory.failed(GROUP, NodeId(2));
        assert_eq!((directory.leader(GROUP), directory.reader(GROUP)), (Some(NodeId(1)), None));
        directory.failed(GROUP, NodeId(1));
        assert_eq!(directory.leader(GROUP), None);
    }

    #[test]
    fn hints_of_only_so_many_groups_are_kept() {
        let directory = directory();
        for group in 0..2 * HEARD_MAX as u64 {
            directory.led(GroupId(group), NodeId(1));
        }
        assert_eq!(directory.heard.lock().len(), HEARD_MAX);
    }
}
