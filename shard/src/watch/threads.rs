//! The threads that drive all hubs of a node: a few, whatever the number of groups.
//!
//! Each feed belongs to one thread and puts itself into the thread's list when its hub has
//! something to do. The thread gives the feeds in its list a turn each, in order; one that has not
//! finished goes to the end. A hub whose watchers wait for room in their sinks rests a little and
//! has its turn again. What is neither in the list nor resting costs nothing.
//!
//! Invariants:
//! - A list holds a feed at most once, so it is bounded by the number of groups.
//! - A hub that cannot read its store, or panics, ends the process: without its thread all
//!   watches would only seem to live.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::feed::{Feed, Rest};
use crate::engine::EngineError;
use crate::store::Store;

/// Most threads that drive hubs: they copy no data, the runtime's threads do.
const THREADS_MAX: usize = 4;
/// How often watchers with full sinks are tried again.
const RETRY: Duration = Duration::from_millis(10);

/// See the module. The threads end when nobody has a hand on them or a feed any more.
pub struct HubThreads {
    lists: Vec<Sender<Feed>>,
    store: Arc<Store>,
    /// Feeds ever started.
    feeds: AtomicUsize,
}

// === impl HubThreads ===

impl HubThreads {
    /// Starts as many threads as the machine has cores for, at most a few. `fatal` is called when
    /// the store fails or a hub panics.
    pub fn start(store: Arc<Store>, fatal: Arc<dyn Fn(String) + Send + Sync>) -> Arc<HubThreads> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        HubThreads::with_threads(cores.min(THREADS_MAX), store, fatal)
    }

    pub(super) fn with_threads(
        threads: usize,
        store: Arc<Store>,
        fatal: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Arc<HubThreads> {
        let lists = (0..threads).map(|_| {
            let (sender, list) = unbounded();
            let fatal = fatal.clone();
            let run = move || match catch_unwind(AssertUnwindSafe(|| run(&list))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => fatal(error.to_string()),
                Err(_) => fatal("the thread \"watch\" panicked, see above".into()),
            };
            let thread = std::thread::Builder::new().name("watch".into());
            thread.spawn(run).expect("a thread can be started");
            sender
        });
        let lists = lists.collect();
        Arc::new(HubThreads { lists, store, feeds: AtomicUsize::new(0) })
    }

    /// The rows that hubs read.
    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The thread of the next feed: they go round.
    pub(super) fn next(&self) -> usize {
        self.feeds.fetch_add(1, Ordering::Relaxed) % self.lists.len()
    }

    /// Puts a feed at the end of a thread's list.
    pub(super) fn ready(&self, thread: usize, feed: Feed) {
        if let Some(list) = self.lists.get(thread) {
            // The thread only ends when the process does.
            let _ = list.send(feed);
        }
    }
}

/// Gives turns until nobody could ask for one any more.
fn run(list: &Receiver<Feed>) -> Result<(), EngineError> {
    // In order of their ends: every rest takes as long.
    let mut resting: VecDeque<(Instant, Feed)> = VecDeque::new();
    loop {
        let next = match resting.front() {
            Some((until, _)) => list.recv_deadline(*until),
            None => list.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(feed) => match feed.turn()? {
                Rest::Idle => {}
                Rest::Ready => feed.again(),
                Rest::Later => resting.push_back((Instant::now() + RETRY, feed)),
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        while resting.front().is_some_and(|(until, _)| *until <= Instant::now())
            && let Some((_, feed)) = resting.pop_front()
        {
            feed.rested();
        }
    }
}
