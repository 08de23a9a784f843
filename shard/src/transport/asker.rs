//! The asking side of watches between nodes: client streams here, hubs at another node.
//!
//! ```text
//!   WatchControl ──> steps (bounded) ──> run() ──asks──> the other node
//!   WatchSink <── offers, waiting for room ──┘  <──tells──
//! ```
//!
//! One stream for each pair of nodes carries all sinks, not one for each sink: ten thousand client
//! streams would be as many exchanges, each with its buffers and its window on both sides, and an
//! event that all of them see could not travel once. So back-pressure is not HTTP/2's, it is
//! credit: a sink may be told so many bytes before the client has taken some. We always read; what
//! a slow client has no room for waits here, at most its credit and one output, and nobody behind
//! it waits with it.
//!
//! When the stream breaks, or cannot be made, its sinks are let go of: that closes their watches,
//! and the router creates them anew elsewhere. It pauses before it does, and so do we before we
//! connect again.
//!
//! Invariants:
//! - What a sink gets is what the hub offered, in order, whole; it may end at any point.
//! - Nobody who asks ever waits: whose wish does not fit into the queue loses its sink.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::GroupId;
use proto::cluster::group::groups_client::GroupsClient;
use proto::cluster::group::sink_ask::Body;
use proto::cluster::group::{
    SinkAsk, SinkTell, WatchAsk, WatchClose, WatchCreate, WatchOpen, WatchProgressRequest,
    WatchTell,
};
use proto::group::{WatchControl, WatchEvent, WatchOutput, WatchSink, WatchSpec};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::packing::{self, Garbled, SinkNumber, Told, cost};
use super::{MESSAGE_BYTES, RECONNECT, Target, connect, of_cluster};

/// Wishes that may wait for the stream.
const STEP_DEPTH: usize = 65_536;
/// Wishes packed into one message.
const PACK: usize = 1024;
/// Messages of wishes on their way.
const ASK_DEPTH: usize = 4;
/// Bytes that a sink may be told before it has taken some.
const CREDIT: i64 = 128 * 1024;
/// How often sinks without room are tried again.
const RETRY: Duration = Duration::from_millis(10);

enum Step {
    Open(SinkNumber, GroupId, Arc<dyn WatchSink>),
    Ask(SinkNumber, Body),
}

/// The way to the stream of watches at one other node.
pub(super) struct Asker {
    steps: mpsc::Sender<Step>,
    /// Sinks that lost a wish.
    overrun: Mutex<Vec<SinkNumber>>,
    next: AtomicU64,
}

/// The other end of an [`Asker`].
pub(super) struct Steps {
    asker: Arc<Asker>,
    receiver: mpsc::Receiver<Step>,
}

// === impl Asker ===

impl Asker {
    pub(super) fn new() -> (Arc<Asker>, Steps) {
        let (steps, receiver) = mpsc::channel(STEP_DEPTH);
        let asker = Asker { steps, overrun: Mutex::default(), next: AtomicU64::new(1) };
        let asker = Arc::new(asker);
        (asker.clone(), Steps { asker, receiver })
    }

    /// Opens a client stream's watches at the other node's replica of `group`.
    pub(super) fn open(
        self: &Arc<Self>,
        group: GroupId,
        sink: Arc<dyn WatchSink>,
    ) -> Box<dyn WatchControl> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.step(number, Step::Open(number, group, sink));
        Box::new(Control { asker: self.clone(), number })
    }

    fn step(&self, number: SinkNumber, step: Step) {
        // With the other end all sinks are gone, too.
        if let Err(TrySendError::Full(_)) = self.steps.try_send(step) {
            // Whoever empties the queue looks here.
            self.overrun.lock().push(number);
        }
    }
}

struct Control {
    asker: Arc<Asker>,
    number: SinkNumber,
}

// === impl Control ===

impl Control {
    fn ask(&self, body: Body) {
        self.asker.step(self.number, Step::Ask(self.number, body));
    }
}

impl WatchControl for Control {
    fn create(&self, spec: WatchSpec) {
        self.ask(Body::Create(WatchCreate {
            tenant: spec.tenant.0,
            namespace: spec.namespace.0,
            key: spec.key,
            start: spec.range.start,
            end: spec.range.end,
            start_revision: spec.start_revision,
            prev_kv: spec.prev_kv,
            no_put: spec.no_put,
            no_delete: spec.no_delete,
        }));
    }

    fn cancel(&self, key: u64) {
        self.ask(Body::Cancel(key));
    }

    fn progress(&self) {
        self.ask(Body::Progress(WatchProgressRequest {}));
    }

    fn progress_at(&self, revision: i64) {
        self.ask(Body::ProgressAt(revision));
    }

    fn watch_progress(&self, key: u64) {
        self.ask(Body::WatchProgress(key));
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.ask(Body::Close(WatchClose {}));
    }
}

/// Keeps a stream of watches to a peer, from the first sink on.
pub(super) async fn run(to: Target, steps: Steps) {
    let Steps { asker, mut receiver } = steps;
    loop {
        let mut session = Session::default();
        while session.sinks.is_empty() {
            match receiver.recv().await {
                Some(step) => session.step(step),
                None => return,
            }
        }
        if let Err(reason) = follow(&to, &asker, &mut receiver, &mut session).await {
            tracing::debug!(node = to.node.0, reason, "the watches at a peer end");
        }
        drop(session);
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Follows the watches until the stream breaks, which is told why.
async fn follow(
    to: &Target,
    asker: &Asker,
    receiver: &mut mpsc::Receiver<Step>,
    session: &mut Session,
) -> Result<(), String> {
    let channel = connect(&to.address).await.ok_or("it cannot be reached")?;
    let mut client = GroupsClient::new(channel)
        .max_encoding_message_size(MESSAGE_BYTES)
        .max_decoding_message_size(MESSAGE_BYTES);
    let (asks, waiting) = mpsc::channel(ASK_DEPTH);
    let asked = of_cluster(to.cluster, ReceiverStream::new(waiting));
    let tells = client.watch(asked).await;
    let mut tells: Streaming<WatchTell> = tells.map_err(|status| status.to_string())?.into_inner();
    let mut steps = Vec::new();
    let mut ticks = interval(RETRY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ask = WatchAsk { asks: std::mem::take(&mut session.asks) };
        if !ask.asks.is_empty() && asks.send(ask).await.is_err() {
            return Err("it takes no more".into());
        }
        tokio::select! {
            count = receiver.recv_many(&mut steps, PACK) => {
                if count == 0 {
                    return Ok(());
                }
                steps.drain(..).for_each(|step| session.step(step));
                std::mem::take(&mut *asker.overrun.lock())
                    .into_iter()
                    .for_each(|number| session.close(number));
            }
            tell = tells.message() => match tell {
                Ok(Some(tell)) => session.told(tell).map_err(|garbled| garbled.to_string())?,
                Ok(None) => return Err("it ended".into()),
                Err(status) => return Err(status.to_string()),
            },
            _ = ticks.tick(), if !session.stalled.is_empty() => session.retry(),
        }
    }
}

/// A client stream here.
struct Sink {
    sink: Arc<dyn WatchSink>,
    /// Parts of an output whose end has not come yet.
    parts: Vec<Arc<WatchEvent>>,
    /// What it had no room for, oldest first.
    waiting: VecDeque<WatchOutput>,
    /// Bytes that it has taken and that the other side does not know of.
    taken: i64,
}

/// What is known of all sinks at one peer, while the stream lasts.
#[derive(Default)]
struct Session {
    sinks: HashMap<SinkNumber, Sink>,
    /// Sinks with something waiting.
    stalled: BTreeSet<SinkNumber>,
    /// To be sent.
    asks: Vec<SinkAsk>,
}

// === impl Session ===

impl Session {
    fn step(&mut self, step: Step) {
        let (sink, body) = match step {
            Step::Open(number, group, sink) => {
                let (parts, waiting) = (Vec::new(), VecDeque::new());
                self.sinks.insert(number, Sink { sink, parts, waiting, taken: 0 });
                (number, Body::Open(WatchOpen { group: group.0, credit: CREDIT }))
            }
            Step::Ask(number, Body::Close(_)) => return self.close(number),
            Step::Ask(number, body) => (number, body),
        };
        // Those of an earlier stream, or that lost a wish, are gone.
        if self.sinks.contains_key(&sink) {
            self.asks.push(SinkAsk { sink, body: Some(body) });
        }
    }

    fn close(&mut self, number: SinkNumber) {
        self.stalled.remove(&number);
        if self.sinks.remove(&number).is_some() {
            let body = Some(Body::Close(WatchClose {}));
            self.asks.push(SinkAsk { sink: number, body });
        }
    }

    fn told(&mut self, tell: WatchTell) -> Result<(), Garbled> {
        let events = packing::events(&tell.events)?;
        for SinkTell { sink: number, body } in tell.tells {
            let Some(sink) = self.sinks.get_mut(&number) else { continue };
            // An output of a newer program would be a gap.
            let body = body.ok_or(Garbled)?;
            match packing::read(body, &events, &mut sink.parts)? {
                Told::Part => {}
                Told::Output(output) => {
                    sink.waiting.push_back(output);
                    self.deliver(number);
                }
                Told::Gone => {
                    self.stalled.remove(&number);
                    self.sinks.remove(&number);
                }
            }
        }
        Ok(())
    }

    /// Tries those again that had no room.
    fn retry(&mut self) {
        for number in std::mem::take(&mut self.stalled) {
            self.deliver(number);
        }
    }

    /// Offers a sink what waits for it, and gives credit for what it took.
    fn deliver(&mut self, number: SinkNumber) {
        let Some(sink) = self.sinks.get_mut(&number) else { return };
        while let Some(output) = sink.waiting.pop_front() {
            let cost = cost(&output);
            if let Err(output) = sink.sink.offer(output) {
                sink.waiting.push_front(output);
                self.stalled.insert(number);
                break;
            }
            sink.taken += cost;
        }
        // Less need not be told: the other side has the other half left.
        if sink.taken >= CREDIT / 2 {
            let body = Some(Body::Credit(std::mem::take(&mut sink.taken)));
            self.asks.push(SinkAsk { sink: number, body });
        }
    }
}
