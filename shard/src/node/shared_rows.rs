//! Groups that share the rows of one shelf on a node, driven by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::etcd::{LeaseGrantRequest, PutRequest};
use proto::group::{Reply, Request};
use proto::{GroupId, NamespaceId, NodeId, TenantId};

use super::tests::{Driven, GROUP, LARGE_BYTES, OTHER, TICK_MS, birth};
use super::{Birth, Input};
use crate::engine::Engine;
use crate::log::ReplicaKey;
use crate::machine::leases;
use crate::machine::state::{BIRTH, State};
use crate::store::checkpoint::NodeRow;
use crate::store::layout::{self, Shelf};

/// It is cut out of one of the others.
const CHILD: GroupId = GroupId(42);
/// A lease with keys of both.
const LEASE: i64 = 7;

impl Driven {
    fn put_at(&mut self, group: GroupId, key: &str, value: &[u8]) {
        let (key, value) = (key.to_owned().into(), value.to_vec().into());
        let put = Request::Put(PutRequest { key, value, ..Default::default() });
        assert!(self.ask(group, put).is_ok());
    }

    /// What an entry in the log of `parent` does.
    fn cut_off(&mut self, parent: GroupId, at: &'static str, child: GroupId) {
        let shelf = self.node.take_shelf();
        let group = self.node.groups.get_mut(&parent).unwrap();
        let version = group.machine.state().range_version;
        let state = group.machine.split_off(&at.into(), version, shelf).unwrap();
        let (applied_index, applied_term) = BIRTH;
        let charter = crate::charter::first(child, TenantId(child.0), NamespaceId(1));
        let state = State { applied_index, applied_term, charter, ..state };
        self.node.changed.insert(parent);
        self.node.expect(ReplicaKey { group: child.0, replica: 1 }, state);
        self.pass(1000);
    }

    fn leave(&mut self, group: GroupId) {
        self.node.step(self.now_ms, Input::Deaths(vec![group])).unwrap();
        self.settle();
    }

    /// The keys that a group has, each read as a whole.
    fn keys(&self, group: GroupId) -> BTreeSet<Bytes> {
        let machine = self.node.group(group).unwrap().machine();
        let view = machine.view();
        let mut keys = BTreeSet::new();
        view.scan(&machine.shelves().range, &mut |key, found| {
            assert!(!view.value(&found.row).unwrap().is_empty());
            keys.insert(key);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        keys
    }

    /// Keys of all versions in the engine, by shelf.
    fn on_disk(&self) -> BTreeMap<Shelf, BTreeSet<Bytes>> {
        let mut found: BTreeMap<Shelf, BTreeSet<Bytes>> = BTreeMap::new();
        for shelf in (1..self.node.next_shelf).map(Shelf) {
            let (from, to) = layout::versions_bounds(shelf);
            for row in self.disks.engine.scan(&from, &to) {
                let key = layout::version_user_key(&row.unwrap().0).unwrap();
                found.entry(shelf).or_default().insert(key);
            }
        }
        found
    }

    /// The keys that a group has of the lease.
    fn leased(&self, group: GroupId) -> Vec<Bytes> {
        let machine = self.node.group(group).unwrap().machine();
        leases::attached(self.node.store(), machine.shelves(), LEASE).unwrap()
    }

    /// Keys of leases in the engine, by shelf.
    fn leased_on_disk(&self) -> BTreeMap<Shelf, Vec<Bytes>> {
        let mut found: BTreeMap<Shelf, Vec<Bytes>> = BTreeMap::new();
        for shelf in (1..self.node.next_shelf).map(Shelf) {
            let (from, to) = layout::all_lease_keys_bounds(shelf);
            for row in self.disks.engine.scan(&from, &to) {
                let (_, key) = layout::split_lease_key(&row.unwrap().0).unwrap();
                found.entry(shelf).or_default().push(key);
            }
        }
        found
    }

    /// Shelves on which the engine has any row.
    fn used(&self) -> BTreeSet<Shelf> {
        let used = (1..self.node.next_shelf).map(Shelf).filter(|shelf| {
            layout::SHELF_KINDS.iter().any(|kind| {
                let (from, to) = layout::shelf_bounds(*kind, *shelf);
                self.disks.engine.scan(&from, &to).next().is_some()
            })
        });
        used.collect()
    }
}

/// GROUP was split, and both sides were written to before and since, small and large.
fn split() -> Driven {
    let mut driven = Driven::new();
    let large = vec![7; 2 * LARGE_BYTES];
    driven.put_at(OTHER, "a", b"v");
    for key in ["a", "b", "c", "x", "y", "z"] {
        driven.put_at(GROUP, key, b"v");
    }
    driven.put_at(GROUP, "b", &large);
    driven.put_at(GROUP, "y", &large);
    let grant = LeaseGrantRequest { id: LEASE, ttl: 1_000_000 };
    assert!(driven.ask(GROUP, Request::LeaseGrant(grant)).is_ok());
    for key in ["a", "c", "x", "z"] {
        let (key, value) = (key.into(), b"leased".as_slice().into());
        let put = PutRequest { key, value, lease: LEASE, ..Default::default() };
        assert!(driven.ask(GROUP, Request::Put(put)).is_ok());
    }
    driven.cut_off(GROUP, "m", CHILD);
    for (group, key) in [(CHILD, "w"), (GROUP, "d"), (CHILD, "v"), (GROUP, "a")] {
        driven.put_at(group, key, &large);
    }
    driven
}

#[test]
fn whoever_leaves_takes_its_rows_and_nobody_elses() {
    for (leaves, stays) in [(GROUP, CHILD), (CHILD, GROUP)] {
        // The process ends: not, before the rest is on disk, or before anything is dropped.
        for dies in 0..3 {
            let mut driven = split();
            let shared =
                driven.node.group(GROUP).unwrap().machine().shelves().pieces.shelf_of(b"a");
            let kept = driven.keys(stays);
            let leased = driven.leased(stays);
            let wanted: &[&str] = if stays == GROUP { &["c"] } else { &["x", "z"] };
            assert_eq!(leased, wanted);
            assert!(kept.len() >= 4);
            if dies == 1 {
                driven.pass(8000);
            }
            driven.leave(leaves);
            if dies > 0 {
                driven = driven.killed(false);
            }
            driven.pass(8000);
            assert_eq!(driven.keys(stays), kept, "{leaves:?} leaves, dies {dies}");
            assert_eq!(
                driven.on_disk().get(&shared),
                Some(&kept),
                "{leaves:?} leaves, dies {dies}"
            );
            assert_eq!(driven.leased(stays), leased);
            assert_eq!(driven.leased_on_disk(), BTreeMap::from([(shared, leased)]));
            driven.node.store().audit().unwrap();
            assert!(driven.node.dropped.is_empty());
            // The past is still told: by whoever stays.
            let machine = driven.node.group(stays).unwrap().machine();
            let (shelves, to) = (machine.shelves().clone(), machine.state().revision);
            let (history, _) = driven.node.store().history(&shelves, 2, to, 100).unwrap();
            let told: BTreeSet<_> =
                history.values().flat_map(|list| list.iter().map(|c| c.key.clone())).collect();
            assert_eq!(told, kept);
            driven.leave(stays);
            driven.pass(8000);
            let other = driven.node.group(OTHER).unwrap().machine().shelf();
            assert_eq!(driven.used(), BTreeSet::from([other]));
            driven.node.store().audit().unwrap();
        }
    }
}

#[test]
fn what_a_group_has_on_a_shelf_that_it_shares_is_found_after_a_restart() {
    let mut driven = split();
    let (left, right) = (driven.keys(GROUP), driven.keys(CHILD));
    let leased = (driven.leased(GROUP), driven.leased(CHILD));
    for _ in 0..2 {
        driven = driven.killed(false);
        driven.pass(8000);
        assert_eq!((driven.keys(GROUP), driven.keys(CHILD)), (left.clone(), right.clone()));
        assert_eq!((driven.leased(GROUP), driven.leased(CHILD)), leased);
        assert!(driven.node.dropped.is_empty(), "nothing was given up");
    }
    let compact =
        |revision| Request::Compact(proto::etcd::CompactionRequest { revision, physical: true });
    let revision = driven.node.group(CHILD).unwrap().machine().state().revision;
    let shelf = driven.node.group(GROUP).unwrap().machine().shelf();
    let packed =
        |driven: &Driven| driven.node.store().packed_below(shelf, i64::MAX, 100).unwrap().len();
    assert!(driven.ask(CHILD, compact(revision)).is_ok());
    assert!(driven.node.group(CHILD).unwrap().machine().shelves().past.is_empty());
    assert!(packed(&driven) > 0, "its parent still reads them");
    driven.put_at(GROUP, "a", b"v");
    driven.pass(8000);
    let revision = driven.node.group(GROUP).unwrap().machine().state().revision;
    assert!(driven.ask(GROUP, compact(revision)).is_ok());
    driven.pass(8000);
    assert_eq!(packed(&driven), 1, "what the compacted revision changed can be watched");
    let driven = driven.killed(false);
    assert_eq!((driven.keys(GROUP), driven.keys(CHILD)), (left, right));
}

/// Before format 3 they stood on the group's own shelf.
#[test]
fn keys_of_leases_that_stand_elsewhere_are_found_after_an_upgrade() {
    let mut driven = split();
    driven.pass(8000);
    let own = driven.node.group(CHILD).unwrap().machine().shelf();
    let shared = driven.node.group(GROUP).unwrap().machine().shelf();
    let leased = (driven.leased(GROUP), driven.leased(CHILD));
    let (mut rows, engine) = (Vec::new(), driven.disks.engine.clone());
    for key in &leased.1 {
        rows.push((layout::lease_key_key(shared, LEASE, key).into(), None));
        rows.push((layout::lease_key_key(own, LEASE, key).into(), Some(Bytes::new())));
    }
    // A merge may have left one there that says nothing any more.
    rows.push((layout::lease_key_key(shared, LEASE, b"w").into(), Some(Bytes::new())));
    let node = NodeRow::decode(engine.get(layout::NODE_KEY).unwrap().unwrap()).unwrap();
    let older = NodeRow { format: 2, ..node };
    rows.push((Bytes::from_static(layout::NODE_KEY), Some(older.encode_to_vec().into())));
    rows.sort();
    engine.ingest(&mut rows.into_iter()).unwrap();
    let mut driven = driven.killed(false);
    assert_eq!((driven.leased(GROUP), driven.leased(CHILD)), leased);
    driven.pass(8000);
    let all = [leased.0, leased.1].concat();
    assert_eq!(driven.leased_on_disk(), BTreeMap::from([(shared, all)]));
}

#[test]
fn a_snapshot_has_what_the_group_has_and_nothing_else() {
    let mut sender = split();
    let add = proto::etcd::MemberAddRequest { peer_ur_ls: vec!["u".into()], is_learner: true };
    let Ok(Reply::MemberAdd(added)) = sender.ask(CHILD, Request::MemberAdd(add)) else {
        panic!("a learner can be added");
    };
    let id = added.member.unwrap().id;
    let comes = Birth { replica: id, members: Vec::new(), ..birth(CHILD) };
    let mut receiver = Driven::fresh(NodeId(id), &[comes]);
    let happened = |driven: &Driven| {
        let machine = driven.node.group(CHILD).unwrap().machine();
        let (shelves, to) = (machine.shelves().clone(), machine.state().revision);
        let (history, _) = driven.node.store().history(&shelves, 2, to, 100).unwrap();
        let told = |list: &Arc<[crate::store::changes::Change]>| {
            list.iter().map(|c| (c.key.clone(), c.deleted, c.previous)).collect::<Vec<_>>()
        };
        history.iter().map(|(revision, list)| (*revision, told(list))).collect::<Vec<_>>()
    };
    for _ in 0..200 {
        for (from, to) in [(1, true), (id, false)] {
            let (one, other) = match to {
                true => (&mut sender, &mut receiver),
                false => (&mut receiver, &mut sender),
            };
            one.pass(TICK_MS);
            for (_, message) in std::mem::take(&mut one.sent) {
                let input = Input::Peer { from: NodeId(from), message };
                other.node.step(other.now_ms, input).unwrap();
            }
            other.settle();
        }
    }
    assert_eq!(receiver.keys(CHILD), sender.keys(CHILD));
    assert_eq!(happened(&receiver), happened(&sender));
    let machine = receiver.node.group(CHILD).unwrap().machine();
    let state = machine.state();
    let sent = sender.node.group(CHILD).unwrap().machine().state();
    assert!(machine.shelves().is_alone());
    assert_eq!(
        (state.keys, state.range(), state.revision),
        (sent.keys, sent.range(), sent.revision)
    );
    assert_eq!(machine.published().counts().read().total(), state.keys);
    let on_disk: Vec<_> = receiver.on_disk().into_values().collect();
    assert_eq!(on_disk, [receiver.keys(CHILD)]);
}
