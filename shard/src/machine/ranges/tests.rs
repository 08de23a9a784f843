//! Groups that were cut out of one another, joined again, and brought elsewhere, against one that has
//! everything: whatever is written to them, in whatever order of revisions between them, each says of
//! its keys what the one says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use proto::cluster::group::{Batch, Command, command::Body};
use proto::etcd::request_op::Request as Operation;
use proto::etcd::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use proto::{GroupId, KeyRange};

use crate::disk::sim::SimDisk;
use crate::engine::memory::MemoryEngine;
use crate::extents::{Extents, ExtentsConfig, Named};
use crate::group::large::Placed;
use crate::machine::state::State;
use crate::machine::{Machine, leases};
use crate::split::entry::{Kept, Merge};
use crate::split::stream::Place;
use crate::store::Store;
use crate::store::changes::{self, Change};
use crate::store::checkpoint::NodeRow;
use crate::store::counts::Counter;
use crate::store::layout::{self, Shelf, Value};
use crate::store::recent::ChangeMap;
use crate::store::shelves::{Pieces, Shelves};
use crate::store::view::{Found, View};

/// Few, so that blocks of counts are cut, and cut through.
const BLOCK_KEYS: u32 = 3;
const LEASES: [i64; 2] = [7, 8];

fn store(engine: &MemoryEngine, checkpoint: u64) -> Arc<Store> {
    let config =
        ExtentsConfig { file_pages: 64, grow_pages: 64, ahead_pages: 0, ..Default::default() };
    let named = Named { checkpoint, ..Named::default() };
    let extents = Extents::open(Arc::new(SimDisk::new()), config, named).unwrap();
    Arc::new(Store::new(Arc::new(engine.clone()), Arc::new(extents.extents)))
}

fn open(store: &Arc<Store>, state: State) -> Machine {
    let mut machine =
        Machine::open(GroupId(state.shelf), store.clone(), state, BLOCK_KEYS).unwrap();
    // That they are granted is said at home.
    machine.leases = LEASES.map(|lease| (lease, 60)).into();
    machine
}

/// An operation, all of which have one revision together.
type Ops = Vec<(Bytes, Operation)>;

/// What a group has still to do.
#[derive(Clone, Debug)]
enum Due {
    Write(i64, Ops),
    Compact(i64),
}

struct Sharer {
    machine: Machine,
    due: Vec<Due>,
}

impl Sharer {
    /// The group has everything up to here.
    fn reach(&self, now: i64) -> i64 {
        let writes = self.due.iter().filter_map(|due| match due {
            Due::Write(revision, _) => Some(*revision - 1),
            Due::Compact(_) => None,
        });
        writes.min().unwrap_or(now)
    }

    fn range(&self) -> KeyRange {
        self.machine.state.range()
    }
}

struct World {
    engine: MemoryEngine,
    store: Arc<Store>,
    /// By range.
    groups: Vec<Sharer>,
    /// Has all keys, and a store of its own.
    whole: Machine,
    next_shelf: u64,
    checkpoints: u64,
}

impl World {
    fn new() -> World {
        let engine = MemoryEngine::default();
        let store = store(&engine, 0);
        let first = || Machine::first_state(Shelf(1), Vec::new(), 1);
        let whole = open(&self::store(&MemoryEngine::default(), 0), first());
        let group = open(&store, first());
        let groups = vec![Sharer { machine: group, due: Vec::new() }];
        World { engine, store, groups, whole, next_shelf: 2, checkpoints: 0 }
    }

    fn now(&self) -> i64 {
        self.whole.state.revision
    }

    /// One revision for all operations, in whatever groups; groups do their part later.
    fn write(&mut self, ops: Ops) {
        let before = self.now();
        carry_out(&mut self.whole, ops.iter().map(|(_, op)| op.clone()).collect());
        if self.now() == before {
            return;
        }
        for group in &mut self.groups {
            let range = group.machine.state.range();
            let part: Ops = ops.iter().filter_map(|(key, op)| part_of(key, op, &range)).collect();
            if !part.is_empty() {
                group.due.push(Due::Write(before + 1, part));
            }
        }
    }

    fn compact(&mut self, revision: i64) {
        if revision > self.whole.state.compacted {
            self.whole.state.compacted = revision;
            self.groups.iter_mut().for_each(|group| group.due.push(Due::Compact(revision)));
        }
    }

    /// A group does the next of what is due.
    fn deliver(&mut self, at: usize) {
        let at = at % self.groups.len();
        let group = &mut self.groups[at];
        if group.due.is_empty() {
            return;
        }
        match group.due.remove(0) {
            Due::Write(revision, ops) => {
                group.machine.state.revision = revision - 1;
                carry_out(&mut group.machine, ops.into_iter().map(|(_, op)| op).collect());
            }
            Due::Compact(revision) => group.machine.state.compacted = revision,
        }
    }

    fn deliver_all(&mut self) {
        for at in 0..self.groups.len() {
            while !self.groups[at].due.is_empty() {
                self.deliver(at);
            }
        }
    }

    /// What the node does for a group that sweeps.
    fn sweep(&mut self, at: usize) {
        let at = at % self.groups.len();
        let mut floors: BTreeMap<Shelf, i64> = BTreeMap::new();
        let others = self.groups.iter().enumerate().filter(|(other, _)| *other != at);
        for (_, group) in others {
            for shelf in group.machine.shelves.told_by() {
                let floor = floors.entry(shelf).or_insert(i64::MAX);
                *floor = group.machine.state.swept.min(*floor);
            }
        }
        let machine = &mut self.groups[at].machine;
        if machine.needs_sweep() {
            machine.sweep(&floors).unwrap();
        }
    }

    /// Cuts the group that has `at`, unless that is where it begins.
    fn split(&mut self, at: &Bytes) {
        let index = self.groups.iter().position(|group| group.range().contains(at)).unwrap();
        if self.groups[index].range().start == *at {
            return;
        }
        // A split waits until nothing else is under way.
        while !self.groups[index].due.is_empty() {
            self.deliver(index);
        }
        let machine = &mut self.groups[index].machine;
        let (size, keys) = (machine.state.size, machine.state.keys);
        let child =
            machine.split_off(at, machine.state().range_version, Shelf(self.next_shelf)).unwrap();
        assert_eq!(
            (machine.state.size + child.size, machine.state.keys + child.keys),
            (size, keys)
        );
        assert!(machine.state.size >= 0 && child.size >= 0);
        self.next_shelf += 1;
        // Its first state is durable before it speaks.
        let child = State { applied_index: 5, applied_term: 5, ..child };
        self.checkpoint();
        let machine = open(&self.store, child);
        self.groups.insert(index + 1, Sharer { machine, due: Vec::new() });
    }

    fn checkpoint(&mut self) {
        self.checkpoints += 1;
        self.groups.iter().for_each(|group| group.machine.store_counts());
        let row = NodeRow { checkpoint: self.checkpoints, ..Default::default() };
        let checkpoint = self.store.freeze(&row, Vec::new());
        checkpoint.write(&self.engine).unwrap();
        self.store.finish(&checkpoint);
    }

    fn restart(&mut self) {
        self.checkpoint();
        self.store = store(&self.engine, self.checkpoints);
        for group in &mut self.groups {
            let state = group.machine.state.encode_to_vec();
            group.machine = open(&self.store, State::decode(&state[..]).unwrap());
        }
    }

    /// The group that has `at` absorbs its right neighbour, if there is one.
    fn merge(&mut self, at: u8) {
        let left = usize::from(at) % self.groups.len();
        if left + 1 == self.groups.len() {
            return;
        }
        // Nothing else is under way on both sides, and the right one is swept.
        for index in [left, left + 1] {
            while !self.groups[index].due.is_empty() {
                self.deliver(index);
            }
        }
        while self.groups[left + 1].machine.needs_sweep() {
            self.sweep(left + 1);
        }
        let right = self.groups.remove(left + 1).machine;
        let own = &mut self.groups[left].machine;
        let (size, keys) = (own.state.size, own.state.keys);
        let merge = Merge { number: 1, right: right.group };
        let mut kept = Kept::new(own.group, Place { range: own.state.range(), version: 1 });
        kept.place.range.end = right.state.end.clone();
        kept.place.version = own.state.range_version.max(right.state.range_version) + 1;
        (kept.merging, kept.revision) = (Some(merge), own.state.revision);
        own.kept = Some(Box::new(kept));
        own.state.revision = own.state.revision.max(right.state.revision);
        own.absorb(right.state(), &right.published().counts().read()).unwrap();
        own.kept = None;
        assert_eq!(
            (own.state.size, own.state.keys),
            (size + right.state.size, keys + right.state.keys)
        );
        self.checkpoint();
    }

    /// A group comes to another disk, which is this one: with a snapshot, onto a shelf of its own.
    fn bring(&mut self, at: u8) {
        let at = usize::from(at) % self.groups.len();
        // A real one measures anew what is there.
        while self.groups[at].machine.needs_sweep() {
            self.sweep(at);
        }
        let shelf = Shelf(self.next_shelf);
        self.next_shelf += 1;
        let machine = &self.groups[at].machine;
        let (before, store) = (machine.shelves.clone(), &self.store);
        let view = store.view(&before.pieces, i64::MAX);
        let mut rows = Vec::new();
        view.all_versions(&before.range, None, &mut |row_key, row| {
            let key = layout::version_user_key(row_key).unwrap();
            let (_, revision) = layout::split_version(row_key).unwrap();
            rows.push((key, revision, row));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        for (key, revision, row) in rows {
            store.install_version(shelf, &key, revision, row);
            store.remove(layout::version_key(before.pieces.shelf_of(&key), &key, revision));
        }
        let from = machine.state.compacted.min(machine.state.swept).max(1);
        let to = machine.state.revision;
        let (history, _) = store.history(&before, from, to, usize::MAX).unwrap();
        for (revision, list) in history {
            if list.iter().any(|change| change.overwritten.is_some()) {
                store.put_raw(layout::twice_key(shelf, revision), Bytes::new());
            }
            store.note(shelf, revision, list);
        }
        for lease in LEASES {
            for key in leases::attached(store, &before, lease).unwrap() {
                store.put_raw(layout::lease_key_key(shelf, lease, &key), Bytes::new());
            }
        }
        // Its counts are made anew because they do not add up.
        let (versions_shelf, pieces, past) = (0, Vec::new(), Vec::new());
        let state = State { shelf: shelf.0, versions_shelf, pieces, past, ..machine.state.clone() };
        self.groups[at].machine = open(store, state);
        self.checkpoint();
    }

    /// Every group says at `revision`, or as near to it as can be read, what the whole says.
    fn check(&self, revision: i64) {
        for group in &self.groups {
            let machine = &group.machine;
            let reach = group.reach(self.now());
            // What is due to be compacted there is so for whoever asks.
            let least = self.whole.state.compacted.max(1);
            if least > reach {
                continue;
            }
            let at = revision.clamp(least, reach);
            let range = group.range();
            let view = self.store.view(&machine.shelves.pieces, at);
            let whole = self.whole.store.view(Shelf(1), at);
            let wanted = scan(&whole, &range);
            assert_eq!(scan(&view, &range), wanted, "{range:?} at {at}");
            for number in 0..16 {
                let key = Bytes::from(key(number));
                let get = |view: &View| view.get(&key).unwrap().map(|found| seen(view, &found));
                let wanted = get(&whole).filter(|_| range.contains(&key));
                assert_eq!(get(&view).filter(|_| range.contains(&key)), wanted, "{key:?} at {at}");
            }
            let counter = Counter::new(&self.store, machine.published.counts());
            let count = counter.count(&view, &range).unwrap();
            assert_eq!(count, wanted.len() as i64, "keys of {range:?} at {at}");
            assert_eq!(machine.state.keys, machine.published.counts().read().total());
            let part = KeyRange { start: Bytes::from_static(b"d"), end: Some("k".into()) };
            let part = machine.shelves.within(&part);
            if !part.is_empty() {
                let wanted = scan(&whole, &part).len() as i64;
                assert_eq!(
                    counter.count(&view, &part).unwrap(),
                    wanted,
                    "keys of {part:?} at {at}"
                );
            }
            self.check_history(group, at, reach);
        }
    }

    fn check_history(&self, group: &Sharer, from: i64, to: i64) {
        let shelves = Shelves { range: group.range(), ..Shelves::of(Shelf(1)) };
        let wanted = history(&self.whole.store, &shelves, from, to, usize::MAX);
        for limit in [1, 3, usize::MAX] {
            let found = history(&self.store, &group.machine.shelves, from, to, limit);
            assert_eq!(found, wanted, "from {from} to {to} by {limit}");
        }
        // What versions alone do not tell goes along with a snapshot.
        let mut sent = Happened::new();
        for packed in group.machine.snapshot_state().unwrap().changes {
            sent.extend(told(changes::unpack(&packed).unwrap()));
        }
        let twice = wanted.iter().filter(|(_, list)| list.iter().any(|(.., row)| row.is_some()));
        for (revision, list) in twice.filter(|(at, _)| **at <= group.machine.state.revision) {
            assert_eq!(sent.get(revision), Some(list), "of {revision}");
        }
    }

    /// Everything is delivered and swept: what is left is exactly what the whole has.
    fn check_settled(&mut self) {
        self.deliver_all();
        while self.whole.needs_sweep() {
            self.whole.sweep(&BTreeMap::new()).unwrap();
        }
        while self.groups.iter().any(|group| group.machine.needs_sweep()) {
            (0..self.groups.len()).for_each(|at| self.sweep(at));
        }
        let mut size = 0;
        let mut all = 0;
        for group in &self.groups {
            let machine = &group.machine;
            let range = group.range();
            let found = versions(&self.store, &machine.shelves.pieces, &range);
            let wanted = versions(&self.whole.store, &Shelf(1).into(), &range);
            assert_eq!(found, wanted, "{range:?}");
            all += found.len();
            size += machine.state.size;
            assert!(machine.state.size >= 0);
            for lease in LEASES {
                let whole = Shelves { range: range.clone(), ..Shelves::of(Shelf(1)) };
                let wanted = leases::attached(&self.whole.store, &whole, lease).unwrap();
                let found = leases::attached(&self.store, &machine.shelves, lease).unwrap();
                assert_eq!(found, wanted, "{range:?}");
            }
            let swept = machine.state.swept;
            assert!(machine.shelves.past.iter().all(|past| past.to_revision >= swept));
        }
        let on = |shelf: Shelf| versions(&self.store, &shelf.into(), &KeyRange::all()).len();
        let rows: usize = (1..self.next_shelf).map(Shelf).map(on).sum();
        assert_eq!(rows, all, "no other rows");
        assert!(size >= self.whole.state.size, "{size} of {}", self.whole.state.size);
        self.check_changes_gone();
    }

    /// Changes that nobody can watch any more are gone with the last who sweeps.
    fn check_changes_gone(&mut self) {
        self.write(vec![put("a", "last", 0)]);
        self.deliver_all();
        self.checkpoint();
        self.compact(self.now());
        self.deliver_all();
        while self.groups.iter().any(|group| group.machine.needs_sweep()) {
            (0..self.groups.len()).for_each(|at| self.sweep(at));
        }
        // What nobody has as its own goes with the garbage.
        for shelf in self.groups.iter().map(|group| group.machine.shelf()) {
            let rows = self.store.packed_below(shelf, self.now(), 10).unwrap();
            assert_eq!(rows, Vec::<Bytes>::new(), "changes on {shelf:?}");
            let twice = layout::twice_key(shelf, 0)..layout::twice_key(shelf, self.now());
            assert_eq!(self.store.rows(&twice.start, &twice.end).unwrap(), []);
        }
        assert!(self.groups.iter().all(|group| group.machine.shelves.past.is_empty()));
    }
}

fn carry_out(machine: &mut Machine, ops: Vec<Operation>) {
    let success = ops.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
    let body = Body::Txn(TxnRequest { success, ..Default::default() });
    let commands = vec![Command { body: Some(body) }];
    let batch = Batch { format: 1, range_version: machine.state.range_version, commands };
    let index = machine.state.applied_index + 1;
    let applied = machine.apply(index, 1, &batch, Placed::default()).unwrap().unwrap();
    assert!(
        applied.answers.iter().all(|it| matches!(it, crate::machine::Settled::Answer(Ok(_)))),
        "{:?}",
        applied.answers
    );
}

/// What an operation is for a group with this range.
fn part_of(key: &Bytes, op: &Operation, range: &KeyRange) -> Option<(Bytes, Operation)> {
    let Operation::RequestDeleteRange(delete) = op else {
        return range.contains(key).then(|| (key.clone(), op.clone()));
    };
    let shelves = Shelves { range: range.clone(), ..Shelves::default() };
    let part = shelves.within(&KeyRange::parse(&delete.key, &delete.range_end));
    let (from, to) = (part.start.clone(), part.end.clone().unwrap_or(Bytes::from_static(&[0])));
    (!part.is_empty()).then(|| delete_range(from, to))
}

fn put(key: &str, value: &str, lease: i64) -> (Bytes, Operation) {
    let key = Bytes::from(key.to_owned());
    let value = Bytes::from(value.to_owned());
    let request = PutRequest { key: key.clone(), value, lease, ..Default::default() };
    (key, Operation::RequestPut(request))
}

fn delete_range(key: Bytes, range_end: Bytes) -> (Bytes, Operation) {
    let request = DeleteRangeRequest { key: key.clone(), range_end, ..Default::default() };
    (key, Operation::RequestDeleteRange(request))
}

/// What a client sees of a version but its key: revisions, version, lease, value.
type Seen = (i64, i64, i64, i64, Bytes);

fn seen(view: &View, found: &Found) -> Seen {
    let row = &found.row;
    let value = view.value(row).unwrap();
    (found.revision, row.create_revision, row.version, row.lease, value)
}

fn scan(view: &View, range: &KeyRange) -> Vec<(Bytes, Seen)> {
    let mut all = Vec::new();
    view.scan(range, &mut |key, found| {
        all.push((key, seen(view, &found)));
        ControlFlow::Continue(())
    })
    .unwrap();
    all
}

/// All version rows of a range, but for the place of the operation in its revision: a part has
/// fewer.
fn versions(store: &Store, pieces: &Pieces, range: &KeyRange) -> Vec<(Bytes, bool, Seen)> {
    let view = store.view(pieces, i64::MAX);
    let mut all = Vec::new();
    view.all_versions(range, None, &mut |row_key, row| {
        let key = layout::version_user_key(row_key).unwrap();
        let (_, revision) = layout::split_version(row_key).unwrap();
        let deleted = row.deleted;
        all.push((key, deleted, seen(&view, &Found { revision, row })));
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    all
}

type Happened = BTreeMap<i64, Vec<(Bytes, bool, i64, Option<Value>)>>;

fn told(found: ChangeMap) -> Happened {
    let what = |change: &Change| {
        let overwritten = change.overwritten.as_ref().map(|row| row.value.clone());
        (change.key.clone(), change.deleted, change.previous, overwritten)
    };
    // Parts do not know of each other's places here: in the order of keys.
    let in_order = |list: Arc<[Change]>| {
        let mut all: Vec<_> = list.iter().map(what).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    };
    found.into_iter().map(|(at, list)| (at, in_order(list))).collect()
}

/// What happened, asked for by `limit` revisions at a time.
fn history(store: &Store, shelves: &Shelves, from: i64, to: i64, limit: usize) -> Happened {
    let mut all = Happened::new();
    let mut next = from;
    while next <= to {
        let (found, through) = store.history(shelves, next, to, limit).unwrap();
        assert!(through >= next && through <= to && found.len() <= limit);
        assert!(found.keys().all(|revision| (next..=through).contains(revision)));
        all.extend(told(found));
        next = through + 1;
    }
    all
}

/// A step of a test.
#[derive(Clone, Debug)]
enum Step {
    /// Key, length of the value, lease if it names one.
    Put(u8, u8, u8),
    /// Two keys at one revision, wherever they are.
    Both(u8, u8),
    /// A key is deleted and put at one revision.
    Twice(u8),
    Delete(u8, u8),
    Split(u8),
    Merge(u8),
    Bring(u8),
    Deliver(u8),
    DeliverAll,
    /// So many revisions back.
    Compact(u8),
    Sweep(u8),
    /// So many revisions back.
    Check(u8),
    Checkpoint,
    Restart,
}

fn key(number: u8) -> String {
    String::from_utf8(vec![b'a' + number % 16]).unwrap()
}

impl World {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Put(at, length, lease) => {
                let lease = LEASES.get(usize::from(lease)).copied().unwrap_or(0);
                self.write(vec![put(&key(at), &"v".repeat(usize::from(length)), lease)]);
            }
            Step::Both(one, other) => {
                self.write(vec![put(&key(one), "one", 0), put(&key(other), "other", LEASES[0])]);
            }
            Step::Twice(at) => {
                let from = Bytes::from(key(at));
                let gone = delete_range(from.clone(), Bytes::from(key(at) + "\0"));
                self.write(vec![put(&key(at), "first", 0), gone, put(&key(at), "again", 0)]);
            }
            Step::Delete(from, count) => {
                let to = (from % 16).saturating_add(count % 8 + 1);
                let to = Bytes::from(vec![b'a' + to]);
                self.write(vec![delete_range(Bytes::from(key(from)), to)]);
            }
            Step::Split(at) => self.split(&Bytes::from(key(at))),
            Step::Merge(at) => self.merge(at),
            Step::Bring(at) => self.bring(at),
            Step::Deliver(at) => self.deliver(usize::from(at)),
            Step::DeliverAll => self.deliver_all(),
            Step::Compact(back) => self.compact(self.now() - i64::from(back)),
            Step::Sweep(at) => self.sweep(usize::from(at)),
            Step::Check(back) => self.check(self.now() - i64::from(back)),
            Step::Checkpoint => self.checkpoint(),
            Step::Restart => self.restart(),
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (any::<u8>(), 0..40u8, 0..6u8).prop_map(|(at, length, lease)| Step::Put(at, length, lease)),
        2 => any::<(u8, u8)>().prop_map(|(one, other)| Step::Both(one, other)),
        2 => any::<u8>().prop_map(Step::Twice),
        3 => any::<(u8, u8)>().prop_map(|(from, count)| Step::Delete(from, count)),
        2 => any::<u8>().prop_map(Step::Split),
        1 => any::<u8>().prop_map(Step::Merge),
        1 => any::<u8>().prop_map(Step::Bring),
        10 => any::<u8>().prop_map(Step::Deliver),
        1 => Just(Step::DeliverAll),
        1 => (0..20u8).prop_map(Step::Compact),
        2 => any::<u8>().prop_map(Step::Sweep),
        4 => (0..20u8).prop_map(Step::Check),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 20..250)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn each_part_says_what_the_whole_says(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.deliver_all();
        world.check(world.now());
        world.check_settled();
    }
}

fn stretch((start, end): &(String, Option<String>)) -> KeyRange {
    let end = end.clone().map(Bytes::from);
    KeyRange { start: Bytes::from(start.clone()), end }
}

proptest! {
    /// Keys of leases, on disk and newer ones, some of them removed: in slices of any length those
    /// go that nobody has.
    #[test]
    fn keys_of_leases_that_nobody_has_go(
        writes in proptest::collection::vec((0..3usize, 1..4i64, "[a-d]{1,2}", any::<bool>()), 0..60),
        ranges in proptest::collection::vec(("[a-d]{0,2}", proptest::option::of("[a-d]{0,2}")), 0..3),
        slice in 1..8usize,
    ) {
        let store = store(&MemoryEngine::default(), 0);
        let shelf = Shelf(1);
        let (mut live, mut number) = (BTreeSet::new(), 0);
        // What was written first is on disk, then comes a frozen table, then the active one.
        for stage in 0..3 {
            for (_, lease, key, attaches) in writes.iter().filter(|write| write.0 == stage) {
                let row = layout::lease_key_key(shelf, *lease, key.as_bytes());
                if *attaches {
                    store.put_raw(row, Bytes::new());
                    live.insert((*lease, key.clone()));
                } else {
                    store.remove(row);
                    live.remove(&(*lease, key.clone()));
                }
            }
            if stage < 2 {
                number += 1;
                let row = NodeRow { checkpoint: number, ..NodeRow::default() };
                let checkpoint = store.freeze(&row, Vec::new());
                if stage == 0 {
                    checkpoint.write(store.engine().as_ref()).unwrap();
                    store.finish(&checkpoint);
                }
            }
        }
        let kept: Vec<KeyRange> = ranges.iter().map(stretch).collect();
        let is_kept = |key: &String| kept.iter().any(|range| range.contains(key.as_bytes()));
        let outside = live.iter().any(|(_, key)| !is_kept(key));
        prop_assert_eq!(store.has_lease_keys_outside(shelf, &kept, slice).unwrap(), outside);
        let (mut from, mut gone) = (Some(layout::all_lease_keys_bounds(shelf).0), 0);
        while let Some(begin) = from {
            let (dropped, next) = store.drop_lease_keys(shelf, &kept, &begin, slice).unwrap();
            gone += dropped;
            from = next;
        }
        prop_assert_eq!(gone, live.iter().filter(|(_, key)| !is_kept(key)).count());
        live.retain(|(_, key)| is_kept(key));
        let (from, to) = layout::all_lease_keys_bounds(shelf);
        let left = store.rows(&from, &to).unwrap();
        let left = left.iter().map(|(row, _)| layout::split_lease_key(row).unwrap());
        let left: Vec<_> = left.map(|(lease, key)| (lease, Vec::from(key))).collect();
        let wanted: Vec<_> =
            live.into_iter().map(|(lease, key)| (lease, key.into_bytes())).collect();
        prop_assert_eq!(left, wanted);
    }
}
