//! Watch fan-out: one writer, many watchers of its key.
//!
//! ```text
//!   writer --put(value starts with the time)--> server --event--> watcher 1..N, on M streams
//!      ^                                                                |
//!      +---------- waits when the slowest is too far behind ------------+
//! ```
//!
//! An operation is one event delivered to one watcher; its latency runs from the start of the put to
//! the event's arrival. Watchers share streams: as many streams as clients, one per connection in
//! the usual shapes. The writer has a connection of its own. It puts as fast as it is answered, yet
//! never more than [`BACKLOG_WRITES`] ahead of what is delivered: otherwise a server that takes puts
//! faster than it delivers would show a latency that only grows with the length of the run. At the
//! end every watcher must have got every write, else the run has errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use proto::etcd;
use proto::etcd::watch_request::RequestUnion;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::content::{self, Dice, Values};
use crate::connection::Connection;
use crate::error::Error;
use crate::load::{self, Pace, Samples, Session, Tally, Window};

/// Writes whose events may be under way at once.
const BACKLOG_WRITES: u64 = 32;
/// Bytes of a value that hold the time of its put.
const STAMP_BYTES: usize = 8;

pub(super) async fn run(session: &Session) -> Result<Tally, Error> {
    let shape = &session.shape;
    if shape.watchers < shape.clients || shape.value_bytes < STAMP_BYTES {
        return Err(Error::Usage("a watcher per stream and 8 bytes per value at least".to_owned()));
    }
    let mut streams = Vec::with_capacity(shape.clients);
    for n in 0..shape.clients {
        let watchers =
            shape.watchers / shape.clients + usize::from(n < shape.watchers % shape.clients);
        let opened = open(session.connection(n), watchers).await;
        streams.push((watchers, opened.map_err(Error::request("open a watch"))?));
    }
    let window = session.open_window();
    let progress = Arc::new(Progress::default());
    let (announce, writes) = watch::channel(None);
    let mut tasks = JoinSet::new();
    for (watchers, events) in streams {
        let receiver = Receiver {
            events,
            watchers: watchers as u64,
            window: window.clone(),
            progress: progress.clone(),
            writes: writes.clone(),
        };
        tasks.spawn(receiver.run());
    }
    let writer = Writer {
        connection: session.side.clone(),
        watchers: shape.watchers as u64,
        values: Values::new(shape.value_bytes - STAMP_BYTES),
        pace: shape.rate.map(|rate| Pace::new(window.start, rate, 0, 1)),
        window: window.clone(),
        progress,
        announce,
    };
    tasks.spawn(writer.run());
    Ok(load::meter(session, &window, tasks).await)
}

/// Opens a stream with so many watches of the writer's key, and waits until all are confirmed.
async fn open(
    connection: &Connection,
    watchers: usize,
) -> Result<Streaming<etcd::WatchResponse>, Status> {
    let creation = etcd::WatchCreateRequest { key: content::key(0), ..Default::default() };
    let request = etcd::WatchRequest { request_union: Some(RequestUnion::CreateRequest(creation)) };
    // The requests' side stays open as long as the stream lives.
    let requests = stream::iter(vec![request; watchers]).chain(stream::pending());
    let mut events = connection.watch().watch(requests).await?.into_inner();
    for _ in 0..watchers {
        let answer = events.message().await?;
        if !answer.is_some_and(|answer| answer.created && !answer.canceled) {
            return Err(Status::unavailable("a watch was not created"));
        }
    }
    Ok(events)
}

/// How far delivery is, for the writer.
#[derive(Default)]
struct Progress {
    delivered: AtomicU64,
    writer_waits: AtomicBool,
    wake: Notify,
}

impl Progress {
    fn add(&self, events: u64) {
        self.delivered.fetch_add(events, Ordering::SeqCst);
        if self.writer_waits.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Returns once `events` are delivered.
    async fn reach(&self, events: u64) {
        while self.delivered.load(Ordering::SeqCst) < events {
            self.writer_waits.store(true, Ordering::SeqCst);
            if self.delivered.load(Ordering::SeqCst) < events {
                self.wake.notified().await;
            }
            self.writer_waits.store(false, Ordering::SeqCst);
        }
    }
}

// === Writer ===

struct Writer {
    connection: Connection,
    watchers: u64,
    values: Values,
    pace: Option<Pace>,
    window: Arc<Window>,
    progress: Arc<Progress>,
    /// Tells the receivers how many writes there were, at the end.
    announce: watch::Sender<Option<u64>>,
}

impl Writer {
    async fn run(mut self) -> Samples {
        let mut samples = Samples::default();
        let (mut kv, mut dice, mut writes) = (self.connection.kv(), Dice::new(1), 0_u64);
        let mut now = Instant::now();
        loop {
            if let Some(pace) = &mut self.pace {
                now = pace.wait(now, self.window.stop_at).await;
            }
            if !self.window.admits(now) {
                break;
            }
            let value = self.stamped(now, &mut dice);
            let put = etcd::PutRequest { key: content::key(0), value, ..Default::default() };
            match kv.put(put).await {
                Ok(_) => writes += 1,
                Err(status) => {
                    // Nobody knows whether it was written: the count would be worthless.
                    samples.fail(|| format!("writer: {status}"));
                    break;
                }
            }
            samples.writes += u64::from(self.window.counts(Instant::now()));
            let behind = writes.saturating_sub(BACKLOG_WRITES) * self.watchers;
            let lag_max = self.window.stop_at + Duration::from_secs(1);
            if tokio::time::timeout_at(lag_max, self.progress.reach(behind)).await.is_err() {
                break;
            }
            now = Instant::now();
        }
        self.announce.send_replace(Some(writes));
        samples
    }

    fn stamped(&self, now: Instant, dice: &mut Dice) -> Bytes {
        let rest = self.values.any(dice);
        let mut value = BytesMut::with_capacity(STAMP_BYTES + rest.len());
        value.put_u64((now - self.window.start).as_nanos() as u64);
        value.put(rest);
        value.freeze()
    }
}

// === Receiver ===

/// Takes one stream's events until all writes have reached all its watchers.
struct Receiver {
    events: Streaming<etcd::WatchResponse>,
    watchers: u64,
    window: Arc<Window>,
    progress: Arc<Progress>,
    writes: watch::Receiver<Option<u64>>,
}

impl Receiver {
    async fn run(mut self) -> Samples {
        let mut samples = Samples::default();
        let (mut received, mut expected) = (0, u64::MAX);
        while received < expected {
            tokio::select! {
                biased;
                answer = self.events.message() => match answer {
                    Ok(Some(answer)) if !answer.canceled => {
                        received += self.take(&answer, &mut samples);
                    }
                    Ok(_) => {
                        samples.fail(|| "a watch was ended by the server".to_owned());
                        return samples;
                    }
                    Err(status) => {
                        samples.fail(|| format!("watch: {status}"));
                        return samples;
                    }
                },
                changed = self.writes.changed(), if expected == u64::MAX => {
                    let writes = changed.ok().and_then(|()| *self.writes.borrow());
                    expected = writes.map_or(received, |writes| writes * self.watchers);
                }
            }
        }
        if received > expected {
            samples.fail(|| format!("{received} events of {expected} arrived"));
        }
        samples
    }

    fn take(&self, answer: &etcd::WatchResponse, samples: &mut Samples) -> u64 {
        let now = Instant::now();
        for event in &answer.events {
            let stamp = event.kv.as_ref().and_then(|kv| kv.value.first_chunk::<STAMP_BYTES>());
            match stamp {
                Some(stamp) => {
                    let nanos = u64::from_be_bytes(*stamp);
                    samples.record(
                        &self.window,
                        self.window.start + Duration::from_nanos(nanos),
                        now,
                    );
                }
                None => samples.fail(|| "an event without our value".to_owned()),
            }
        }
        let events = answer.events.len() as u64;
        self.progress.add(events);
        events
    }
}
