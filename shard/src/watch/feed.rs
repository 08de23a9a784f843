//! The hub's loop: one thread a group, fed by the worker, asked by routers.
//!
//! The queue from the worker is bounded. When the hub cannot keep up the worker does not
//! wait: it drops the event and the hub, told so by the gap in revisions, lets everybody
//! catch up from history. While no stream is open it is not woken at all: it learns of what it
//! was not told with the first stream, before that has a watch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use proto::group::{WatchControl, WatchSink, WatchSpec};

use super::hub::{Hub, SinkId};
use crate::machine::Published;
use crate::machine::effect::RevisionEvents;
use crate::store::Store;

/// What may wait for the hub.
const DEPTH: usize = 8192;
/// How often watchers with full sinks are tried again.
const RETRY: Duration = Duration::from_millis(10);

enum Input {
    Events(Arc<RevisionEvents>),
    Behind(i64),
    Open(SinkId, Arc<dyn WatchSink>),
    Close(SinkId),
    Create(SinkId, WatchSpec),
    Cancel(SinkId, u64),
    Progress(SinkId),
    WatchProgress(SinkId, u64),
    Shut,
}

/// A hand on a hub's thread.
#[derive(Clone)]
pub struct Feed {
    sender: Sender<Input>,
    sinks: Arc<AtomicU64>,
    /// Streams open now.
    open: Arc<AtomicU64>,
    /// Revision up to which events were dropped because nobody listened or the queue was full,
    /// 0 for none.
    missed: Arc<AtomicI64>,
    counts: Arc<(AtomicU64, AtomicU64)>,
}

impl Feed {
    /// Starts the hub of a replica. `fatal` is called when its store fails.
    pub fn start(
        store: Arc<Store>,
        published: Arc<Published>,
        fatal: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Feed {
        let (sender, receiver) = bounded(DEPTH);
        let missed = Arc::new(AtomicI64::new(0));
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let hub = Hub::new(store, published);
        let feed = Feed {
            sender,
            sinks: Arc::default(),
            open: Arc::default(),
            missed: missed.clone(),
            counts: counts.clone(),
        };
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || {
                let ran = catch_unwind(AssertUnwindSafe(|| run(hub, &receiver, &missed, &counts)));
                match ran {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => fatal(error.to_string()),
                    Err(_) => fatal("the thread \"watch\" panicked, see above".into()),
                }
            })
            .expect("a thread can be started");
        feed
    }

    /// Feeds a revision's events. Never waits.
    pub fn events(&self, events: Arc<RevisionEvents>) {
        let revision = events.revision;
        let nobody = self.open.load(Ordering::SeqCst) == 0;
        if nobody || self.missed.load(Ordering::SeqCst) != 0 {
            return self.behind(revision);
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send(Input::Events(events)) {
            self.behind(revision);
        }
    }

    /// The hub is not given the events up to `revision`: all rows were replaced by a snapshot,
    /// nobody listens, or the queue is full.
    pub fn behind(&self, revision: i64) {
        self.missed.fetch_max(revision, Ordering::SeqCst);
        // Whoever opens a stream counts it first, and the hub looks at `missed` when it takes the
        // stream in: either it sees the line above, or the stream is seen here.
        if self.open.load(Ordering::SeqCst) > 0 {
            // A full queue means that the hub is about to look.
            let _ = self.sender.try_send(Input::Behind(revision));
        }
    }

    /// Opens a client stream.
    pub fn open(&self, sink: Arc<dyn WatchSink>) -> Box<dyn WatchControl> {
        let id = self.sinks.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.fetch_add(1, Ordering::SeqCst);
        let _ = self.sender.send(Input::Open(id, sink));
        Box::new(Control { feed: self.clone(), id })
    }

    /// Ends all watches.
    pub fn shut(&self) {
        let _ = self.sender.send(Input::Shut);
    }

    /// (all, synced) watchers.
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.0.load(Ordering::Relaxed), self.counts.1.load(Ordering::Relaxed))
    }
}

struct Control {
    feed: Feed,
    id: SinkId,
}

impl Control {
    fn send(&self, input: Input) {
        // The hub never waits for anybody, so this wait is short.
        let _ = self.feed.sender.send(input);
    }
}

impl WatchControl for Control {
    fn create(&self, spec: WatchSpec) {
        self.send(Input::Create(self.id, spec));
    }

    fn cancel(&self, key: u64) {
        self.send(Input::Cancel(self.id, key));
    }

    fn progress(&self) {
        self.send(Input::Progress(self.id));
    }

    fn watch_progress(&self, key: u64) {
        self.send(Input::WatchProgress(self.id, key));
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.send(Input::Close(self.id));
        self.feed.open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn run(
    mut hub: Hub,
    receiver: &Receiver<Input>,
    missed: &AtomicI64,
    counts: &(AtomicU64, AtomicU64),
) -> Result<(), crate::engine::EngineError> {
    let mut more = false;
    loop {
        let behind = hub.has_unsynced();
        let wait = match (more, behind) {
            (true, _) => Duration::ZERO,
            (false, true) => RETRY,
            (false, false) => Duration::from_secs(1),
        };
        match receiver.recv_timeout(wait) {
            Ok(input) => step(&mut hub, input, missed),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        while let Ok(input) = receiver.try_recv() {
            step(&mut hub, input, missed);
        }
        skip(&mut hub, missed);
        hub.flush();
        more = hub.catch_up()?;
        let (all, synced) = hub.counts();
        counts.0.store(all as u64, Ordering::Relaxed);
        counts.1.store(synced as u64, Ordering::Relaxed);
    }
}

/// Goes over what the hub was not given.
fn skip(hub: &mut Hub, missed: &AtomicI64) {
    let lost = missed.swap(0, Ordering::SeqCst);
    if lost != 0 {
        hub.behind(lost);
    }
}

fn step(hub: &mut Hub, input: Input, missed: &AtomicI64) {
    match input {
        // A gap means that events were dropped between: catch up over it.
        Input::Events(events) if events.revision > hub.revision() + 1 => {
            hub.behind(events.revision);
        }
        Input::Events(events) => hub.feed(&events),
        Input::Behind(revision) => hub.behind(revision),
        Input::Open(id, sink) => {
            skip(hub, missed);
            hub.open(id, sink);
        }
        Input::Close(id) => hub.close(id),
        Input::Create(id, spec) => hub.create(id, spec),
        Input::Cancel(id, key) => hub.cancel(id, key),
        Input::Progress(id) => hub.progress(id),
        Input::WatchProgress(id, key) => hub.watch_progress(id, key),
        Input::Shut => hub.shut(),
    }
}
