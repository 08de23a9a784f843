//! The way to a replica's hub: fed by the worker, asked by routers, driven by a hub thread.
//!
//! ```text
//!   worker ── events ──┐
//!                      ├──> queue (bounded) ──> a turn on a hub thread (`threads.rs`) ──> hub
//!   routers ── asks ───┘
//! ```
//!
//! The queue is bounded. When the hub cannot keep up the worker does not wait: it drops the event
//! and the hub, told so by the gap in revisions, lets everybody catch up from history. Routers
//! wait for room: a hub waits for nobody, so that is short.
//!
//! While no stream is open the hub is not woken at all, and there is none: it comes with the first
//! stream and goes with the last, so that a group that nobody watches costs the few words of a
//! [`Feed`].
//!
//! Why nothing is missed:
//! - The worker publishes a revision before it feeds it. A hub that is made later begins at or
//!   above it, so what is taken from the queue while there is no hub can be dropped.
//! - Whoever opens a stream counts it (`open`) before it asks for the hub. Whoever feeds notes what
//!   it does not feed (`missed`) before it looks at the count once more. So either the feeder sees
//!   the stream and wakes the hub, or the hub sees the note, because it looks at `missed` when it
//!   takes the stream in, before the stream has a watch. Both are sequentially consistent.
//! - A full queue needs no wake-up: its hub's turn comes, and each turn looks at `missed` after it
//!   has taken from the queue.
//! - From a note on until the hub has seen it nothing but notes is fed, so that no event jumps over
//!   what was dropped; if one does, the gap tells.
//!
//! Invariants:
//! - A feed stands in its thread's list at most once (`scheduled`), and only its thread drives it.
//! - Nothing is taken in behind [`Feed::shut`]: who opens a stream then has its sink let go of at
//!   once, which closes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use proto::KeyRange;
use proto::group::{WatchControl, WatchSink, WatchSpec};

use super::hub::{Hub, SinkId};
use super::threads::HubThreads;
use crate::engine::EngineError;
use crate::machine::Published;
use crate::machine::effect::RevisionEvents;

/// What may wait for a hub.
const DEPTH: usize = 8192;
/// Stretches of watched keys that are told at most.
const STRETCHES_MAX: usize = 4096;
/// What is taken from the queue at a time.
const BATCH: usize = 64;
/// How long a turn may take inputs, and then again history, give or take one batch and one
/// watcher's slice: the other hubs of the thread wait meanwhile.
const TURN: Duration = Duration::from_millis(2);

enum Input {
    Events(Arc<RevisionEvents>),
    Behind(i64),
    Open(SinkId, Arc<dyn WatchSink>),
    Close(SinkId),
    Create(SinkId, WatchSpec),
    Cancel(SinkId, u64),
    Progress(SinkId),
    ProgressAt(SinkId, i64),
    WatchProgress(SinkId, u64),
    Shut,
}

/// A hand on a replica's hub. Cloning is cheap.
#[derive(Clone)]
pub struct Feed {
    parts: Arc<Parts>,
}

struct Parts {
    threads: Arc<HubThreads>,
    /// Which of them drives the hub.
    thread: usize,
    published: Arc<Published>,
    /// Streams ever opened.
    sinks: AtomicU64,
    /// Streams open now.
    open: AtomicU64,
    /// Revision up to which events were dropped because nobody listened or the queue was full,
    /// 0 for none.
    missed: AtomicI64,
    counts: (AtomicU64, AtomicU64),
    queue: Mutex<Queue>,
    /// Told when a queue that was full is so no more.
    room: Condvar,
    driven: Mutex<Driven>,
}

struct Queue {
    inputs: VecDeque<Input>,
    /// Stands in its thread's list, or has its turn.
    scheduled: bool,
    shut: bool,
}

/// What only the hub's thread touches.
struct Driven {
    hub: Option<Box<Hub>>,
    /// The thread will come back by itself.
    resting: bool,
}

/// What a hub wants after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// To be left alone until it is fed or asked.
    Idle,
    /// Another turn, behind the others.
    Ready,
    /// Another turn a little later, when full sinks may have room.
    Later,
}

// === impl Feed ===

impl Feed {
    /// The feed of a new replica, whose hub is driven by one of `threads`.
    pub fn start(threads: &Arc<HubThreads>, published: Arc<Published>) -> Feed {
        let queue = Queue { inputs: VecDeque::new(), scheduled: false, shut: false };
        let parts = Parts {
            threads: threads.clone(),
            thread: threads.next(),
            published,
            sinks: AtomicU64::new(0),
            open: AtomicU64::new(0),
            missed: AtomicI64::new(0),
            counts: (AtomicU64::new(0), AtomicU64::new(0)),
            queue: Mutex::new(queue),
            room: Condvar::new(),
            driven: Mutex::new(Driven { hub: None, resting: false }),
        };
        Feed { parts: Arc::new(parts) }
    }

    /// Feeds a revision's events. Never waits.
    pub fn events(&self, events: Arc<RevisionEvents>) {
        let parts = &self.parts;
        let revision = events.revision;
        let nobody = parts.open.load(Ordering::SeqCst) == 0;
        if nobody || parts.missed.load(Ordering::SeqCst) != 0 {
            return self.behind(revision);
        }
        if !self.try_push(Input::Events(events)) {
            self.behind(revision);
        }
    }

    /// The hub is not given the events up to `revision`: all rows were replaced by a snapshot,
    /// nobody listens, or the queue is full.
    pub fn behind(&self, revision: i64) {
        self.parts.missed.fetch_max(revision, Ordering::SeqCst);
        if self.parts.open.load(Ordering::SeqCst) > 0 {
            let _ = self.try_push(Input::Behind(revision));
        }
    }

    /// The group has other keys than before, and its revision is `revision`, perhaps without an event
    /// of its own. The hub finds out by itself before it offers anything later: it is only to be
    /// woken, and what came with the keys is history.
    pub fn ranged(&self, revision: i64) {
        self.behind(revision);
    }

    /// Opens a client stream.
    pub fn open(&self, sink: Arc<dyn WatchSink>) -> Box<dyn WatchControl> {
        let id = self.parts.sinks.fetch_add(1, Ordering::Relaxed) + 1;
        self.parts.open.fetch_add(1, Ordering::SeqCst);
        self.push(Input::Open(id, sink));
        Box::new(Control { feed: self.clone(), id })
    }

    /// Ends all watches, and those that somebody still asks for.
    pub fn shut(&self) {
        let mut queue = self.parts.queue.lock();
        if std::mem::replace(&mut queue.shut, true) {
            return;
        }
        // One more than fits: this is the last.
        queue.inputs.push_back(Input::Shut);
        self.schedule(queue);
        self.parts.room.notify_all();
    }

    /// The stretches of keys that are watched here, some of them if there are many; none while the hub
    /// has its turn: who asks does not wait.
    pub fn watched(&self) -> Vec<KeyRange> {
        let driven = self.parts.driven.try_lock();
        let hub = driven.as_ref().and_then(|driven| driven.hub.as_ref());
        hub.map_or_else(Vec::new, |hub| hub.watched(STRETCHES_MAX))
    }

    /// (all, synced) watchers.
    pub fn counts(&self) -> (u64, u64) {
        let (all, synced) = &self.parts.counts;
        (all.load(Ordering::Relaxed), synced.load(Ordering::Relaxed))
    }

    /// Puts an input in, unless the queue is full. Behind the end there is always room: it goes
    /// nowhere.
    fn try_push(&self, input: Input) -> bool {
        let mut queue = self.parts.queue.lock();
        if queue.shut {
            return true;
        }
        if queue.inputs.len() >= DEPTH {
            return false;
        }
        queue.inputs.push_back(input);
        self.schedule(queue);
        true
    }

    /// Puts an input in; waits for room.
    fn push(&self, input: Input) {
        let mut queue = self.parts.queue.lock();
        while queue.inputs.len() >= DEPTH && !queue.shut {
            self.parts.room.wait(&mut queue);
        }
        if !queue.shut {
            queue.inputs.push_back(input);
            self.schedule(queue);
        }
    }

    /// Asks for a turn, unless one is to come anyway.
    fn schedule(&self, mut queue: MutexGuard<'_, Queue>) {
        if !std::mem::replace(&mut queue.scheduled, true) {
            drop(queue);
            self.again();
        }
    }

    /// Puts itself at the end of its thread's list.
    pub(super) fn again(&self) {
        self.parts.threads.ready(self.parts.thread, self.clone());
    }

    /// Moves some inputs into `batch`.
    fn take(&self, batch: &mut Vec<Input>) {
        let mut queue = self.parts.queue.lock();
        let was_full = queue.inputs.len() >= DEPTH;
        let count = queue.inputs.len().min(BATCH);
        batch.extend(queue.inputs.drain(..count));
        if was_full {
            self.parts.room.notify_all();
        }
    }

    /// Drives the hub for a while. Only its thread may call this.
    pub(super) fn turn(&self) -> Result<Rest, EngineError> {
        let mut driven = self.parts.driven.lock();
        let until = Instant::now() + TURN;
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            if batch.is_empty() {
                break;
            }
            for input in batch.drain(..) {
                self.step(&mut driven.hub, input);
            }
            if Instant::now() >= until {
                break;
            }
        }
        let (more, unsynced) = self.advance(&mut driven.hub)?;
        let mut queue = self.parts.queue.lock();
        if more || !queue.inputs.is_empty() {
            return Ok(Rest::Ready);
        }
        queue.scheduled = false;
        if driven.hub.is_none() {
            queue.inputs = VecDeque::new();
        }
        if unsynced && !std::mem::replace(&mut driven.resting, true) {
            return Ok(Rest::Later);
        }
        Ok(Rest::Idle)
    }

    /// The rest that was asked for is over. Only the hub's thread may call this.
    pub(super) fn rested(&self) {
        self.parts.driven.lock().resting = false;
        self.schedule(self.parts.queue.lock());
    }

    fn step(&self, slot: &mut Option<Box<Hub>>, input: Input) {
        if let Input::Open(id, sink) = input {
            let make = || {
                let store = self.parts.threads.store().clone();
                Box::new(Hub::new(store, self.parts.published.clone()))
            };
            let hub = slot.get_or_insert_with(make);
            self.skip(hub);
            return hub.open(id, sink);
        }
        // Without a stream there is nobody to tell.
        let Some(hub) = slot else { return };
        match input {
            // A gap means that events were dropped between: catch up over it.
            Input::Events(events) if events.after > hub.revision() => {
                hub.behind(events.revision);
            }
            Input::Events(events) => hub.feed(&events),
            Input::Behind(revision) => hub.behind(revision),
            Input::Open(..) => {}
            Input::Close(id) => hub.close(id),
            Input::Create(id, spec) => hub.create(id, spec),
            Input::Cancel(id, key) => hub.cancel(id, key),
            Input::Progress(id) => hub.progress(id),
            Input::ProgressAt(id, revision) => hub.progress_at(id, revision),
            Input::WatchProgress(id, key) => hub.watch_progress(id, key),
            Input::Shut => {
                hub.shut();
                *slot = None;
            }
        }
    }

    /// Goes over what the hub was not given.
    fn skip(&self, hub: &mut Hub) {
        let lost = self.parts.missed.swap(0, Ordering::SeqCst);
        if lost != 0 {
            hub.behind(lost);
        }
    }

    /// Offers what was fed and lets watchers catch up. Says whether there is more to do at once,
    /// and whether anything is left that waits for room.
    fn advance(&self, slot: &mut Option<Box<Hub>>) -> Result<(bool, bool), EngineError> {
        let until = Instant::now() + TURN;
        let (mut more, mut unsynced, mut counts) = (false, false, (0, 0));
        if let Some(hub) = slot {
            self.skip(hub);
            hub.flush();
            more = hub.catch_up(&mut || Instant::now() < until)?;
            (unsynced, counts) = (hub.has_unsynced() || hub.owes_progress(), hub.counts());
            if hub.is_idle() {
                *slot = None;
            }
        }
        self.parts.counts.0.store(counts.0 as u64, Ordering::Relaxed);
        self.parts.counts.1.store(counts.1 as u64, Ordering::Relaxed);
        Ok((more, unsynced))
    }
}

#[cfg(test)]
impl Feed {
    /// What a feed takes that nobody watches.
    pub(super) fn idle_bytes() -> usize {
        size_of::<Feed>() + 2 * size_of::<usize>() + size_of::<Parts>()
    }

    pub(super) fn has_hub(&self) -> bool {
        self.parts.driven.lock().hub.is_some()
    }

    /// Keeps the hub's thread from its turn meanwhile.
    pub(super) fn hold(&self, act: impl FnOnce()) {
        let _driven = self.parts.driven.lock();
        act();
    }

    pub(super) fn weak(&self) -> std::sync::Weak<impl Sized + use<>> {
        Arc::downgrade(&self.parts)
    }
}

struct Control {
    feed: Feed,
    id: SinkId,
}

// === impl Control ===

impl WatchControl for Control {
    fn create(&self, spec: WatchSpec) {
        self.feed.push(Input::Create(self.id, spec));
    }

    fn cancel(&self, key: u64) {
        self.feed.push(Input::Cancel(self.id, key));
    }

    fn progress(&self) {
        self.feed.push(Input::Progress(self.id));
    }

    fn progress_at(&self, revision: i64) {
        self.feed.push(Input::ProgressAt(self.id, revision));
    }

    fn watch_progress(&self, key: u64) {
        self.feed.push(Input::WatchProgress(self.id, key));
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.feed.push(Input::Close(self.id));
        self.feed.parts.open.fetch_sub(1, Ordering::SeqCst);
    }
}
