//! Feeds and their threads, over a real machine and store.

use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use proto::cluster::group::{Batch, Command, command};
use proto::etcd::PutRequest;
use proto::group::{WatchControl, WatchEvent, WatchOutput, WatchSink, WatchSpec};
use proto::mvccpb::{Event, KeyValue};
use proto::{GroupId, KeyRange, NamespaceId, TenantId};

use super::feed::Feed;
use super::hub::Hub;
use super::threads::HubThreads;
use crate::disk::sim::SimDisk;
use crate::engine::memory::MemoryEngine;
use crate::extents::{Extents, ExtentsConfig, Named};
use crate::group::large::Placed;
use crate::machine::Machine;
use crate::machine::effect::{ChangeEvent, Effect, RevisionEvents};
use crate::machine::state::State;
use crate::store::Store;
use crate::store::layout::Shelf;

/// Long enough for anything that is to happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn store() -> Arc<Store> {
    let config =
        ExtentsConfig { file_pages: 64, grow_pages: 64, ahead_pages: 0, ..Default::default() };
    let extents = Extents::open(Arc::new(SimDisk::new()), config, Named::default()).unwrap();
    Arc::new(Store::new(Arc::new(MemoryEngine::default()), Arc::new(extents.extents)))
}

fn threads(store: &Arc<Store>, count: usize) -> Arc<HubThreads> {
    let fatal = |reason: String| eprintln!("a hub failed: {reason}");
    HubThreads::with_threads(count, store.clone(), Arc::new(fatal))
}

/// A replica without Raft, whose puts are fed.
struct Replica {
    machine: Machine,
    feed: Feed,
    index: u64,
}

impl Replica {
    fn new(threads: &Arc<HubThreads>, group: u64) -> Replica {
        let state = State {
            revision: 1,
            compacted: -1,
            shelf: group,
            range_version: 1,
            ..Default::default()
        };
        let machine = Machine::open(GroupId(group), threads.store().clone(), state, 1000).unwrap();
        let feed = Feed::start(threads, machine.published().clone());
        Replica { machine, feed, index: 0 }
    }

    /// Puts `key`; every put is a revision, the first one is 2.
    fn put(&mut self, key: &str) {
        let put = PutRequest {
            key: key.to_owned().into(),
            value: vec![1; 10].into(),
            ..Default::default()
        };
        let commands = vec![Command { body: Some(command::Body::Put(put)) }];
        let range_version = self.machine.state().range_version;
        let batch = Batch { format: 1, range_version, commands };
        self.index += 1;
        let applied = self.machine.apply(self.index, 1, &batch, Placed::default());
        for effect in applied.unwrap().unwrap().effects {
            if let Effect::Events(events) = effect {
                self.feed.events(events);
            }
        }
    }

    /// The keys from `end` on are another group's from now on.
    fn shrink(&mut self, end: &str) {
        let mut state = self.machine.state().clone();
        state.end = Some(end.to_owned().into());
        state.range_version += 1;
        self.machine.restore(state).unwrap();
    }

    fn watch(&self, sink: Arc<Sink>, start_revision: i64) -> Box<dyn WatchControl> {
        let control = self.feed.open(sink);
        let range = self.machine.published().range();
        control.create(WatchSpec { range, ..spec(1, start_revision) });
        control
    }
}

fn spec(key: u64, start_revision: i64) -> WatchSpec {
    WatchSpec {
        tenant: TenantId(1),
        namespace: NamespaceId(1),
        group: GroupId(2),
        key,
        range: KeyRange::all(),
        start_revision,
        prev_kv: false,
        no_put: false,
        no_delete: false,
    }
}

/// A sink of some depth.
struct Sink {
    outputs: Mutex<VecDeque<WatchOutput>>,
    offered: Condvar,
    depth: usize,
    /// Outputs that were given back.
    refused: AtomicBool,
}

impl Sink {
    fn new(depth: usize) -> Arc<Sink> {
        Arc::new(Sink {
            outputs: Mutex::default(),
            offered: Condvar::new(),
            depth,
            refused: AtomicBool::new(false),
        })
    }

    fn next(&self) -> WatchOutput {
        let mut outputs = self.outputs.lock();
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(output) = outputs.pop_front() {
                return output;
            }
            assert!(!self.offered.wait_until(&mut outputs, until).timed_out(), "nothing came");
        }
    }

    /// Revisions of the next events, until one is `last`.
    fn revisions(&self, last: i64) -> Vec<i64> {
        let mut revisions = Vec::new();
        while revisions.last() != Some(&last) {
            let WatchOutput::Events { events, .. } = self.next() else { continue };
            revisions.extend(events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision));
        }
        revisions
    }
}

impl WatchSink for Sink {
    fn offer(&self, output: WatchOutput) -> Result<(), WatchOutput> {
        let mut outputs = self.outputs.lock();
        if outputs.len() >= self.depth {
            self.refused.store(true, Ordering::SeqCst);
            return Err(output);
        }
        outputs.push_back(output);
        self.offered.notify_all();
        Ok(())
    }

    fn is_closed(&self) -> bool {
        false
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_idle_feed_is_small() {
    let bytes = Feed::idle_bytes();
    assert!(bytes < 300, "{bytes} bytes");
}

#[test]
fn what_happens_is_told_in_order_and_the_past_comes_from_history() {
    let mut replica = Replica::new(&threads(&store(), 1), 1);
    (0..5).for_each(|_| replica.put("a"));
    let (past, now) = (Sink::new(1000), Sink::new(1000));
    let _past = replica.watch(past.clone(), 3);
    let _now = replica.watch(now.clone(), 7);
    (0..50).for_each(|_| replica.put("a"));
    assert_eq!(past.revisions(56), (3..=56).collect::<Vec<_>>());
    assert_eq!(now.revisions(56), (7..=56).collect::<Vec<_>>());
}

#[test]
fn a_group_that_was_split_off_tells_its_past_and_goes_on_with_gaps() {
    let threads = threads(&store(), 1);
    let mut parent = Replica::new(&threads, 1);
    // Even revisions are the left side's.
    ["a", "x"].iter().cycle().take(40).for_each(|key| parent.put(key));
    let state = parent.machine.split_off(&"m".into(), 2, Shelf(2)).unwrap();
    parent.put("b");
    let child = Machine::open(GroupId(2), threads.store().clone(), state, 1000).unwrap();
    let feed = Feed::start(&threads, child.published().clone());
    let mut child = Replica { machine: child, feed, index: 0 };
    let (past, left, now) = (Sink::new(1000), Sink::new(1000), Sink::new(1000));
    let _past = child.watch(past.clone(), 6);
    let _left = parent.watch(left.clone(), 6);
    let _now = child.watch(now.clone(), 42);
    child.put("y");
    parent.put("b");
    let odd = (7..=41).step_by(2);
    assert_eq!(past.revisions(42), odd.chain([42]).collect::<Vec<_>>());
    assert_eq!(left.revisions(43), (6..=40).step_by(2).chain([42, 43]).collect::<Vec<_>>());
    assert_eq!(now.revisions(42), [42]);
    // The revisions between are other groups'.
    let kv = KeyValue { key: "z".into(), mod_revision: 60, ..Default::default() };
    let event = Event { kv: Some(kv), ..Default::default() };
    let event = ChangeEvent { event: WatchEvent::new(event), place: 0, previous: None };
    child.feed.events(Arc::new(RevisionEvents { revision: 60, after: 42, events: vec![event] }));
    assert_eq!((past.revisions(60), now.revisions(60)), (vec![60], vec![60]));
}

#[test]
fn a_hub_comes_with_the_first_stream_and_goes_with_the_last() {
    let mut replica = Replica::new(&threads(&store(), 1), 1);
    assert!(!replica.feed.has_hub());
    replica.put("a");
    for round in 0..3 {
        let sink = Sink::new(1000);
        let control = replica.watch(sink.clone(), round + 2);
        replica.put("a");
        assert_eq!(sink.revisions(round + 3), [round + 2, round + 3]);
        assert!(replica.feed.has_hub());
        eventually("the watch is counted", || replica.feed.counts() == (1, 1));
        drop(control);
        eventually("the hub goes", || !replica.feed.has_hub());
        assert_eq!(replica.feed.counts(), (0, 0));
        // The stream is counted until the hub has been told.
        eventually("the sink is let go of", || Arc::strong_count(&sink) == 1);
    }
}

#[test]
fn streams_that_come_and_go_beside_a_writer_miss_nothing() {
    let store = store();
    let mut replica = Replica::new(&threads(&store, 1), 1);
    let feed = replica.feed.clone();
    let published = replica.machine.published().clone();
    let done = Arc::new(AtomicBool::new(false));
    let watched = done.clone();
    let watcher = std::thread::spawn(move || {
        for _ in 0..30 {
            let sink = Sink::new(100_000);
            let first = published.revision() + 1;
            let control = feed.open(sink.clone());
            control.create(spec(1, first));
            sink.is_told(first, first + 20);
        }
        watched.store(true, Ordering::SeqCst);
    });
    while !done.load(Ordering::SeqCst) && !watcher.is_finished() {
        replica.put("a");
        std::thread::yield_now();
    }
    watcher.join().unwrap();
}

impl Sink {
    /// Is told every revision from `first` to `last`, each once and in order.
    fn is_told(&self, first: i64, last: i64) {
        let mut next = first;
        while next <= last {
            let WatchOutput::Events { events, .. } = self.next() else { continue };
            for event in events {
                assert_eq!(event.kv.as_ref().unwrap().mod_revision, next);
                next += 1;
            }
        }
    }
}

#[test]
fn one_thread_drives_many_hubs() {
    let threads = threads(&store(), 1);
    let mut replicas: Vec<_> = (1..=200).map(|group| Replica::new(&threads, group)).collect();
    let sinks: Vec<_> = replicas.iter().map(|_| Sink::new(100)).collect();
    let controls: Vec<_> =
        replicas.iter().zip(&sinks).map(|(r, sink)| r.watch(sink.clone(), 2)).collect();
    for _ in 0..10 {
        replicas.iter_mut().for_each(|replica| replica.put("a"));
    }
    for sink in &sinks {
        assert_eq!(sink.revisions(11), (2..=11).collect::<Vec<_>>());
    }
    drop(controls);
    for replica in &replicas {
        eventually("the hub goes", || !replica.feed.has_hub());
    }
}

#[test]
fn a_full_sink_and_a_long_history_hold_nobody_up() {
    let threads = threads(&store(), 1);
    let mut slow = Replica::new(&threads, 1);
    let mut quick = Replica::new(&threads, 2);
    (0..5000).for_each(|_| slow.put("a"));
    let full = Sink::new(1);
    let slow_control = slow.feed.open(full.clone());
    (1..=40).for_each(|key| slow_control.create(spec(key, 2)));
    let sink = Sink::new(10);
    let _control = quick.watch(sink.clone(), 2);
    eventually("the sink is full", || full.refused.load(Ordering::SeqCst));
    let begun = Instant::now();
    quick.put("a");
    assert_eq!(sink.revisions(2), [2]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // When there is room, each of them has its history, whole.
    let mut next = vec![2; 41];
    let mut unfinished = 40;
    while unfinished > 0 {
        let WatchOutput::Events { key, events, .. } = full.next() else { continue };
        for event in events {
            assert_eq!(event.kv.as_ref().unwrap().mod_revision, next[key as usize]);
            next[key as usize] += 1;
        }
        unfinished -= usize::from(next[key as usize] == 5002);
    }
}

#[test]
fn a_hub_that_cannot_keep_up_lets_its_watchers_catch_up() {
    let mut replica = Replica::new(&threads(&store(), 1), 1);
    let sink = Sink::new(1_000_000);
    let _control = replica.watch(sink.clone(), 2);
    replica.put("a");
    assert_eq!(sink.revisions(2), [2]);
    let feed = replica.feed.clone();
    let (release, held) = mpsc::channel::<()>();
    let (holding, is_held) = mpsc::channel();
    let holder = std::thread::spawn(move || {
        feed.hold(|| {
            holding.send(()).unwrap();
            let _ = held.recv();
        });
    });
    is_held.recv().unwrap();
    // More than its queue holds.
    (0..20_000).for_each(|_| replica.put("a"));
    release.send(()).unwrap();
    holder.join().unwrap();
    assert_eq!(sink.revisions(20_002), (3..=20_002).collect::<Vec<_>>());
    replica.put("a");
    assert_eq!(sink.revisions(20_003), [20_003]);
}

#[test]
fn a_removed_replica_closes_its_watches_and_leaves_no_memory() {
    let threads = threads(&store(), 1);
    let mut replica = Replica::new(&threads, 1);
    let (roomy, full) = (Sink::new(10), Sink::new(0));
    let _roomy = replica.watch(roomy.clone(), 2);
    let kept = Arc::downgrade(&full);
    let late = replica.watch(full, 2);
    replica.put("a");
    assert_eq!(roomy.revisions(2), [2]);
    replica.feed.shut();
    replica.feed.shut();
    assert!(matches!(roomy.next(), WatchOutput::Closed { key: 1 }));
    // It had no room to be told: that nobody holds it says it.
    eventually("the full sink is let go of", || kept.upgrade().is_none());
    late.create(spec(2, 2));
    late.progress();
    drop(late);
    let after = Sink::new(10);
    let control = replica.watch(after.clone(), 2);
    assert_eq!(Arc::strong_count(&after), 1, "nobody holds the sink of a stream opened later");
    replica.put("a");
    eventually("the hub goes", || !replica.feed.has_hub());
    drop((control, _roomy));
    let parts: Weak<_> = replica.feed.weak();
    drop(replica);
    eventually("nothing is left", || parts.strong_count() == 0);
}

#[test]
fn threads_end_when_nobody_needs_them() {
    let threads = threads(&store(), 2);
    let mut replica = Replica::new(&threads, 1);
    let sink = Sink::new(0);
    let control = replica.watch(sink, 2);
    replica.put("a");
    let gone = Arc::downgrade(&threads);
    drop((threads, replica));
    assert!(gone.strong_count() > 0, "the control still needs them");
    drop(control);
    eventually("the threads let go", || gone.strong_count() == 0);
}

#[test]
fn history_is_given_in_slices_and_everybody_has_a_turn() {
    let store = store();
    let mut replica = Replica::new(&threads(&store, 1), 1);
    (0..3).for_each(|_| replica.put("a"));
    let mut hub = Hub::new(store, replica.machine.published().clone());
    let sink = Sink::new(100);
    hub.open(1, sink.clone());
    (1..=3).for_each(|key| hub.create(1, spec(key, 2)));
    let mut keys = Vec::new();
    while hub.has_unsynced() {
        hub.catch_up(&mut || false).unwrap();
        let WatchOutput::Events { key, .. } = sink.next() else { panic!("only events come") };
        keys.push(key);
    }
    assert_eq!(keys, [1, 2, 3]);
}

/// A hub of one stream, whose sink has room for so much.
fn hub(store: &Arc<Store>, replica: &Replica, depth: usize) -> (Hub, Arc<Sink>) {
    let mut hub = Hub::new(store.clone(), replica.machine.published().clone());
    let sink = Sink::new(depth);
    hub.open(1, sink.clone());
    (hub, sink)
}

/// A put of `key` at `revision`, the group's next one behind `after`.
fn happened(key: &str, revision: i64, after: i64) -> RevisionEvents {
    let key = key.to_owned().into();
    let kv = KeyValue { key, mod_revision: revision, ..Default::default() };
    let event = WatchEvent::new(Event { kv: Some(kv), ..Default::default() });
    RevisionEvents {
        revision,
        after,
        events: vec![ChangeEvent { event, place: 0, previous: None }],
    }
}

fn over(key: u64, start: &str, end: &str) -> WatchSpec {
    let range = KeyRange { start: start.to_owned().into(), end: Some(end.to_owned().into()) };
    WatchSpec { range, ..spec(key, 2) }
}

impl Sink {
    /// What came since the last look, in few words.
    fn said(&self) -> Vec<String> {
        let revision = |event: &Arc<WatchEvent>| event.kv.as_ref().unwrap().mod_revision;
        let word = |output: WatchOutput| match output {
            WatchOutput::Events { key, events, .. } => {
                format!("{key}: {:?}", events.iter().map(revision).collect::<Vec<_>>())
            }
            WatchOutput::Progress { revision, newest } => format!("{revision} up to {newest}"),
            WatchOutput::Closed { key } => format!("{key} closed"),
            other => format!("{other:?}"),
        };
        self.outputs.lock().drain(..).map(word).collect()
    }
}

#[test]
fn revisions_of_other_groups_are_no_gap() {
    let store = store();
    let replica = Replica::new(&threads(&store, 1), 1);
    let (mut hub, sink) = hub(&store, &replica, 10);
    hub.create(1, spec(1, 2));
    hub.feed(&happened("a", 7, 1));
    hub.feed(&happened("a", 90, 7));
    hub.flush();
    assert_eq!(sink.said(), ["1: [7, 90]"]);
    assert_eq!(hub.revision(), 90);
}

#[test]
fn progress_that_waits_for_a_revision_comes_behind_its_events_and_once() {
    let store = store();
    let replica = Replica::new(&threads(&store, 1), 1);
    let (mut hub, sink) = hub(&store, &replica, 10);
    hub.create(1, spec(1, 2));
    hub.progress_at(1, 7);
    hub.feed(&happened("a", 5, 1));
    hub.catch_up(&mut || true).unwrap();
    assert_eq!(sink.said(), ["1: [5]"]);
    assert!(!hub.owes_progress());
    hub.feed(&happened("a", 8, 5));
    hub.catch_up(&mut || true).unwrap();
    assert_eq!(sink.said(), ["1: [8]", "8 up to 1"]);
    hub.feed(&happened("a", 9, 8));
    hub.catch_up(&mut || true).unwrap();
    assert_eq!(sink.said(), ["1: [9]"]);
    // What is reached already is told at once.
    hub.progress_at(1, 9);
    assert_eq!(sink.said(), ["9 up to 1"]);
}

#[test]
fn of_progress_that_waits_the_lowest_and_the_last_are_kept() {
    let store = store();
    let replica = Replica::new(&threads(&store, 1), 1);
    let (mut hub, sink) = hub(&store, &replica, 10);
    hub.create(1, spec(1, 2));
    [30, 40, 50, 20].into_iter().for_each(|revision| hub.progress_at(1, revision));
    hub.create(1, spec(2, 100));
    hub.progress_at(1, 60);
    let mut told = Vec::new();
    for (revision, after) in [(19, 1), (20, 19), (30, 20), (50, 30), (60, 50), (70, 60)] {
        hub.feed(&happened("a", revision, after));
        hub.catch_up(&mut || true).unwrap();
        told.extend(sink.said().into_iter().filter(|word| word.contains("up to")));
    }
    assert_eq!(told, ["20 up to 1", "60 up to 2"]);
}

#[test]
fn progress_waits_for_watches_that_catch_up_but_not_for_later_ones() {
    let store = store();
    let mut replica = Replica::new(&threads(&store, 1), 1);
    (0..4).for_each(|_| replica.put("a"));
    let (mut hub, sink) = hub(&store, &replica, 100);
    hub.create(1, spec(1, 6));
    hub.progress_at(1, 5);
    assert_eq!(sink.said(), ["5 up to 1"]);
    hub.create(1, spec(2, 2));
    hub.progress_at(1, 4);
    assert_eq!(sink.said(), [""; 0]);
    hub.catch_up(&mut || true).unwrap();
    assert_eq!(sink.said(), ["2: [2, 3, 4, 5]", "5 up to 2"]);
    hub.progress_at(1, 9);
    hub.create(1, spec(3, 2));
    hub.feed(&happened("a", 9, 5));
    // The third has not had its turn.
    hub.flush();
    hub.progress_at(1, 1);
    assert_eq!(sink.said(), ["1: [9]", "2: [9]", "9 up to 2"]);
}

#[test]
fn progress_waits_for_room() {
    let store = store();
    let replica = Replica::new(&threads(&store, 1), 1);
    let (mut hub, sink) = hub(&store, &replica, 1);
    hub.create(1, spec(1, 2));
    hub.feed(&happened("a", 5, 1));
    hub.progress_at(1, 5);
    assert!(hub.owes_progress());
    assert_eq!(sink.said(), ["1: [5]"]);
    hub.catch_up(&mut || true).unwrap();
    assert_eq!(sink.said(), ["5 up to 1"]);
    assert!(!hub.owes_progress());
}

#[test]
fn a_watch_that_is_not_inside_the_range_is_closed_at_once() {
    let store = store();
    let mut replica = Replica::new(&threads(&store, 1), 1);
    replica.shrink("m");
    let (mut hub, sink) = hub(&store, &replica, 10);
    hub.create(1, over(1, "a", "m"));
    hub.create(1, over(2, "a", "m\0"));
    hub.create(1, spec(3, 2));
    assert_eq!(sink.said(), ["2 closed", "3 closed"]);
    hub.feed(&happened("a", 5, 1));
    hub.flush();
    assert_eq!(sink.said(), ["1: [5]"]);
}

#[test]
fn a_range_that_shrinks_closes_what_is_outside_before_anything_later_is_offered() {
    let store = store();
    let mut replica = Replica::new(&threads(&store, 1), 1);
    let (mut hub, sink) = hub(&store, &replica, 10);
    hub.create(1, over(1, "a", "m"));
    hub.create(1, spec(2, 2));
    hub.feed(&happened("a", 5, 1));
    hub.flush();
    assert_eq!(sink.said(), ["1: [5]", "2: [5]"]);
    hub.progress_at(1, 8);
    // Fed, but not offered: it comes again where its key is now.
    hub.feed(&happened("z", 6, 5));
    replica.shrink("m");
    // The other group has had 7.
    hub.feed(&happened("a", 8, 6));
    hub.catch_up(&mut || true).unwrap();
    assert_eq!(sink.said(), ["2 closed", "1: [8]", "8 up to 2"]);
}

#[test]
fn history_is_not_offered_for_keys_that_went() {
    let store = store();
    let mut replica = Replica::new(&threads(&store, 1), 1);
    (0..3).for_each(|_| replica.put("a"));
    let (mut hub, sink) = hub(&store, &replica, 10);
    hub.create(1, spec(1, 2));
    replica.shrink("m");
    hub.catch_up(&mut || true).unwrap();
    assert_eq!(sink.said(), ["1 closed"]);
}
