//! The service Watch: one client stream with any number of watches.
//!
//! ```text
//! client --requests--> run() --create, cancel, progress--> WatchControl --> hub
//!        <--responses--   |  <----------- sink (bounded) <--------------------'
//! ```
//!
//! The loop ([`run`]) waits for five things: a request, an output of the hub, the linearizable
//! answer that pending creates need, the tick of periodic progress, and what ends the stream.
//! What they mean is decided by [`Watchers`] (pure: no clock, no channel), which writes
//! responses into one buffer; the loop sends the buffer when it has drained what was waiting.
//!
//! *Creating.* A watch "from now" starts behind a linearizable revision R, and R is the header
//! of its created message. Creates that wait share one answer, begun after the last of them
//! came. Everything that comes behind a waiting create waits with it, so that answers keep the
//! order of requests, which clients rely on.
//!
//! *Losing touch.* When the hub closes a watch, all watches of the stream are created anew
//! under new keys, with a new sink, from behind what each has had; the client notices nothing.
//! What the old sink still holds is dropped with it: it comes again.
//!
//! Invariants:
//! * per watch: created first, then events with ascending revisions, none twice, none left out;
//! * a progress message with revision R leaves only when all events up to R have left.

mod encoding;
pub(super) mod follow;
mod watchers;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    sync::atomic::Ordering,
    time::Duration,
};

use proto::{
    Error,
    cluster::group::LinearizeRequest,
    etcd::{ResponseHeader, WatchRequest, watch_request::RequestUnion},
    group::{Identity, Reply, Request, WatchControl, WatchOutput, WatchSink},
    limits,
    map::Target,
};
use tokio::{sync::mpsc, time::Sleep};
use tonic::{Code, Status};

use self::watchers::Watchers;
use crate::{
    caller::{Caller, Moved, misplaced},
    door::Door,
    grpc::{inbound::Inbound, live::Outlet},
    metrics::Rpc,
};

/// Encoded responses that leave together at most (a single one may be larger).
const SEND_BYTES: usize = 64 * 1024;
/// First and longest pause before a lost hub is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The bounded queue between a hub and a stream.
struct Sink {
    outputs: mpsc::Sender<WatchOutput>,
}

// === impl Sink ===

impl Sink {
    fn new() -> (Arc<Sink>, mpsc::Receiver<WatchOutput>) {
        let (outputs, queue) = mpsc::channel(limits::WATCH_STREAM_DEPTH);
        (Arc::new(Sink { outputs }), queue)
    }
}

impl WatchSink for Sink {
    fn offer(&self, output: WatchOutput) -> Result<(), WatchOutput> {
        self.outputs.try_send(output).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(output) | mpsc::error::TrySendError::Closed(output) => {
                output
            }
        })
    }

    fn is_closed(&self) -> bool {
        self.outputs.is_closed()
    }
}

/// The stream's connection to a hub.
enum Hub {
    /// No watch was created yet.
    Idle,
    Open {
        control: Box<dyn WatchControl>,
        queue: mpsc::Receiver<WatchOutput>,
    },
    /// Lost; tried again when the sleep is over.
    Lost {
        retry: Pin<Box<Sleep>>,
        pause: Duration,
    },
}

/// What a hub has to say.
enum Heard {
    Output(WatchOutput),
    /// The pause after a loss is over.
    Retry,
}

// === impl Hub ===

impl Hub {
    fn open(door: &Door, target: Target) -> Hub {
        let (sink, queue) = Sink::new();
        Hub::Open { control: door.groups.watch(target.group, sink), queue }
    }

    fn control(&self) -> Option<&dyn WatchControl> {
        match self {
            Hub::Open { control, .. } => Some(control.as_ref()),
            _ => None,
        }
    }

    /// Waits for an output. May be dropped while it waits.
    async fn hear(&mut self) -> Heard {
        match self {
            Hub::Idle => std::future::pending().await,
            Hub::Open { queue, .. } => match queue.recv().await {
                Some(output) => Heard::Output(output),
                // The hub let go of the sink: as good as closed.
                None => Heard::Output(WatchOutput::Closed { key: Watchers::ANY }),
            },
            Hub::Lost { retry, .. } => {
                retry.as_mut().await;
                Heard::Retry
            }
        }
    }

    /// One more output, if one waits.
    fn hear_now(&mut self) -> Option<WatchOutput> {
        match self {
            Hub::Open { queue, .. } => queue.try_recv().ok(),
            _ => None,
        }
    }
}

type Linear = Pin<Box<dyn Future<Output = Result<ResponseHeader, Status>> + Send>>;

/// Everything of one client stream.
struct Stream {
    caller: Caller,
    target: Target,
    watchers: Watchers,
    hub: Hub,
    /// The pause that the next loss begins with; back to the first once the hub says anything.
    pause: Duration,
    /// Resolves when the etcd has another home.
    moved: Moved,
    /// The linearizable answer that the oldest waiting creates need.
    linear: Option<Linear>,
    /// Next tick of periodic progress; set with the first watch that asks for it.
    tick: Option<Pin<Box<Sleep>>>,
}

pub(super) async fn run(
    caller: Caller,
    mut inbound: Inbound<WatchRequest>,
    outlet: Outlet,
) -> Result<(), Status> {
    let target = caller.home()?;
    let mut interruption = pin!(interrupted(&caller, target));
    let _open = OpenStream::new(caller.door().clone());
    let config = &caller.door().config;
    let cluster_id = caller.etcd().cluster_id;
    let identity = Identity { cluster_id, member_id: caller.door().member_id };
    let watchers = Watchers::new(identity, config.max_message_bytes());
    let mut stream = Stream {
        caller: caller.clone(),
        target,
        watchers,
        hub: Hub::Idle,
        pause: RETRY.0,
        moved: caller.moved(target.group),
        linear: None,
        tick: None,
    };
    let mut open = true;
    loop {
        tokio::select! {
            request = inbound.next(), if open => match request {
                Ok(Some(request)) => {
                    stream.caller.door().metrics.received(Rpc::Watch);
                    stream.request(request);
                }
                // A client that will ask no more still wants its events.
                Ok(None) => open = false,
                Err(status) if status.code() == Code::Cancelled => {
                    return Err(Error::WatchCanceled.into());
                }
                Err(status) => return Err(status),
            },
            heard = stream.hub.hear() => stream.heard(heard),
            header = resolve(&mut stream.linear) => {
                stream.linear = None;
                stream.linear_at(header?);
            }
            () = pass(&mut stream.tick) => stream.ticked(),
            () = &mut stream.moved => {
                stream.follow_home();
                interruption.set(interrupted(&caller, stream.target));
            }
            status = &mut interruption => return Err(status),
        }
        let shown = stream.watchers.shown();
        caller.visit().show(shown);
        let (frames, messages) = stream.watchers.take_responses();
        if messages > 0 {
            outlet.send(frames, messages).await;
        }
    }
}

/// What ends the stream from outside. A freeze does not: nothing happens meanwhile that it could
/// miss.
fn interrupted(caller: &Caller, target: Target) -> impl Future<Output = Status> + use<> {
    caller.interruption(target.group).outliving_freeze().wait()
}

/// Waits for an answer, or for ever if none was asked for.
async fn resolve(linear: &mut Option<Linear>) -> Result<ResponseHeader, Status> {
    match linear {
        Some(linear) => linear.await,
        None => std::future::pending().await,
    }
}

async fn pass(tick: &mut Option<Pin<Box<Sleep>>>) {
    match tick {
        Some(tick) => tick.as_mut().await,
        None => std::future::pending().await,
    }
}

// === impl Stream ===

impl Stream {
    fn request(&mut self, request: WatchRequest) {
        // etcd ignores a request without contents.
        if let Some(request) = request.request_union {
            self.watchers.enqueue(request);
            self.advance();
        }
    }

    /// Carries out what waits, up to the first create that needs a linearizable answer.
    fn advance(&mut self) {
        while let Some(request) = self.watchers.next_ready() {
            self.carry_out(request);
        }
        if self.linear.is_none() && self.watchers.begin_linearize() {
            self.linear = Some(Box::pin(linearize(self.caller.clone())));
        }
    }

    fn carry_out(&mut self, request: RequestUnion) {
        match request {
            RequestUnion::CancelRequest(cancel) => {
                let newest = self.caller.door().groups.revision(self.target.group);
                let revision = self.caller.visit().floor().max(newest);
                if let Some(key) = self.watchers.cancel(cancel.watch_id, revision)
                    && let Some(control) = self.hub.control()
                {
                    control.cancel(key);
                }
            }
            RequestUnion::ProgressRequest(_) => {
                // Without watches, or out of touch, etcd's clients ask again.
                if !self.watchers.is_empty()
                    && let Some(control) = self.hub.control()
                {
                    control.progress();
                }
            }
            RequestUnion::CreateRequest(create) => self.create(create),
        }
        self.count();
    }

    /// Tells the metrics how many watches the stream has now.
    fn count(&mut self) {
        let open = self.watchers.len();
        self.caller
            .door()
            .metrics
            .watchers
            .fetch_add(self.watchers.counted(open), Ordering::Relaxed);
    }

    fn create(&mut self, create: proto::etcd::WatchCreateRequest) {
        let notify = create.progress_notify;
        let Some(key) = self.watchers.create(create) else { return };
        if matches!(self.hub, Hub::Idle) {
            self.hub = Hub::open(self.caller.door(), self.target);
        }
        if let Some(control) = self.hub.control()
            && let Some(spec) = self.watchers.spec(key, self.target)
        {
            control.create(spec);
        }
        if notify && self.tick.is_none() {
            self.set_tick();
        }
    }

    fn linear_at(&mut self, header: ResponseHeader) {
        self.watchers.linearized(header);
        self.advance();
    }

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Retry => self.reopen(),
            Heard::Output(output) => {
                self.output(output);
                while self.watchers.waiting_bytes() < SEND_BYTES
                    && let Some(output) = self.hub.hear_now()
                {
                    self.output(output);
                }
            }
        }
    }

    fn output(&mut self, output: WatchOutput) {
        if let WatchOutput::Closed { key } = output {
            if key == Watchers::ANY || self.watchers.knows(key) {
                let pause = self.pause;
                self.pause = (pause * 2).min(RETRY.1);
                self.hub = Hub::Lost { retry: Box::pin(tokio::time::sleep(pause)), pause };
            }
            return;
        }
        self.pause = RETRY.0;
        self.watchers.output(output);
        self.count();
    }

    /// Goes to the etcd's new home, and takes the watches along.
    fn follow_home(&mut self) {
        if matches!(self.hub, Hub::Idle) {
            self.retarget();
        } else {
            self.reopen();
        }
    }

    fn retarget(&mut self) {
        if let Ok(target) = self.caller.home() {
            self.target = target;
        }
        self.moved = self.caller.moved(self.target.group);
    }

    /// Creates all watches anew, from behind what each has had.
    fn reopen(&mut self) {
        if let Hub::Lost { pause, .. } = &self.hub {
            tracing::debug!(group = %self.target.group, ?pause, "watching anew");
        }
        self.retarget();
        self.hub = Hub::open(self.caller.door(), self.target);
        let Some(control) = self.hub.control() else { return };
        for spec in self.watchers.renew(self.target) {
            control.create(spec);
        }
    }

    fn ticked(&mut self) {
        if let Some(control) = self.hub.control() {
            self.watchers.notified().for_each(|key| control.watch_progress(key));
        }
        self.set_tick();
    }

    fn set_tick(&mut self) {
        let interval = self.caller.door().config.progress_interval();
        self.tick = Some(Box::pin(tokio::time::sleep(interval + jitter(interval))));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let gone = self.watchers.counted(0);
        self.caller.door().metrics.watchers.fetch_add(gone, Ordering::Relaxed);
    }
}

/// Up to a tenth of `interval`, so that streams opened together do not tick together.
fn jitter(interval: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = RandomState::new().build_hasher().finish() % 1024;
    interval / 10 * (random as u32) / 1024
}

/// Asks for a linearizable revision until there is one. Creating a watch has no effect that
/// could happen twice, so whatever may pass is waited out; a client that does not want to
/// wait without a leader has said so.
async fn linearize(caller: Caller) -> Result<ResponseHeader, Status> {
    let mut pause = RETRY.0;
    loop {
        match caller.try_ask(Request::Linearize(LinearizeRequest {})).await {
            Ok(Reply::Linearize(header)) => return Ok(header),
            Ok(_) => return Err(misplaced()),
            Err(error) => {
                let status: Status = error.error.into();
                let passes = status.code() == Code::Unavailable && error.error != Error::Stopped;
                if !passes && error.error != Error::TenantFrozen {
                    return Err(status);
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Counts a stream while it is open.
struct OpenStream {
    door: Arc<Door>,
}

// === impl OpenStream ===

impl OpenStream {
    fn new(door: Arc<Door>) -> OpenStream {
        door.metrics.watch_streams.fetch_add(1, Ordering::Relaxed);
        OpenStream { door }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.door.metrics.watch_streams.fetch_sub(1, Ordering::Relaxed);
    }
}
