//! The service Watch: one client stream with any number of watches.
//!
//! ```text
//! client --requests--> run() --create, cancel, progress--> Upstream --> hubs of the groups
//!        <--responses--   |  <------------ outputs <----------'
//! ```
//!
//! The loop ([`run`]) waits for five things: a request, an output from upstream, the linearizable
//! answer that pending creates need, the tick of periodic progress, and what ends the stream.
//! What they mean is decided by [`Watchers`] (pure: no clock, no channel), which writes
//! responses into one buffer; the loop sends the buffer when it has drained what was waiting.
//! Where events come from, one group or several, and what happens when that changes, is the matter
//! of `upstream.rs` and `merge.rs`.
//!
//! *Creating.* A watch "from now" starts behind a linearizable revision R, and R is the header
//! of its created message. Creates that wait share one answer, begun after the last of them
//! came. Everything that comes behind a waiting create waits with it, so that answers keep the
//! order of requests, which clients rely on.
//!
//! Invariants:
//! * per watch: created first, then events with ascending revisions, none twice, none left out;
//! * a progress message with revision R leaves only when all events up to R have left.

mod encoding;
pub(super) mod follow;
mod merge;
mod places;
mod upstream;
mod watchers;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    sync::atomic::Ordering,
    time::Duration,
};

use proto::{
    Error, GroupId,
    cluster::group::LinearizeRequest,
    etcd::{ResponseHeader, WatchRequest, watch_request::RequestUnion},
    group::{Identity, Reply, Request},
};
use tokio::time::Sleep;
use tonic::{Code, Status};

use self::{merge::Output, upstream::Upstream, watchers::Watchers};
use crate::{
    caller::{Caller, misplaced},
    door::Door,
    grpc::{inbound::Inbound, live::Outlet},
    metrics::Rpc,
};

/// Encoded responses that leave together at most (a single one may be larger).
const SEND_BYTES: usize = 64 * 1024;
/// First and longest pause before a lost hub is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

type Linear = Pin<Box<dyn Future<Output = Result<ResponseHeader, Status>> + Send>>;

/// Everything of one client stream.
struct Stream {
    caller: Caller,
    watchers: Watchers,
    upstream: Upstream,
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
    let mut needed = vec![caller.home()?.group];
    let mut interruption = pin!(interrupted(&caller, &needed));
    let _open = OpenStream::new(caller.door().clone());
    let config = &caller.door().config;
    let cluster_id = caller.etcd().cluster_id;
    let identity = Identity { cluster_id, member_id: caller.door().member_id };
    let watchers = Watchers::new(identity, config.max_message_bytes());
    let mut stream = Stream {
        caller: caller.clone(),
        watchers,
        upstream: Upstream::new(caller.clone())?,
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
            () = stream.upstream.hear() => stream.heard(),
            header = resolve(&mut stream.linear) => {
                stream.linear = None;
                stream.linear_at(header?);
            }
            () = pass(&mut stream.tick) => stream.ticked(),
            status = &mut interruption => return Err(status),
        }
        if let Ok(home) = caller.home() {
            let others = || stream.upstream.groups().filter(|group| *group != home.group);
            let now = || std::iter::once(home.group).chain(others());
            if !now().eq(needed.iter().copied()) {
                needed = now().collect();
                interruption.set(interrupted(&caller, &needed));
            }
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
fn interrupted(caller: &Caller, needed: &[GroupId]) -> impl Future<Output = Status> + use<> {
    caller.interruption(needed).outliving_freeze().wait()
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
                let home = self
                    .caller
                    .home()
                    .map_or(0, |home| self.caller.door().groups.revision(home.group));
                let revision = self.caller.visit().floor().max(home);
                if let Some(key) = self.watchers.cancel(cancel.watch_id, revision) {
                    self.upstream.cancel(key);
                }
            }
            RequestUnion::ProgressRequest(_) => {
                // Without watches, or out of touch, etcd's clients ask again.
                if !self.watchers.is_empty() {
                    self.upstream.progress();
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
        if let Some(wish) = self.watchers.wish(key) {
            self.upstream.create(key, wish);
        }
        if notify && self.tick.is_none() {
            self.set_tick();
        }
    }

    fn linear_at(&mut self, header: ResponseHeader) {
        self.watchers.linearized(header);
        self.advance();
    }

    fn heard(&mut self) {
        loop {
            for output in self.upstream.take() {
                match output {
                    Output::Watch(output) => self.watchers.output(output),
                    Output::AllHave(revision) => self.watchers.all_have(revision),
                }
            }
            if self.watchers.waiting_bytes() >= SEND_BYTES || !self.upstream.hear_now() {
                break;
            }
        }
        self.count();
    }

    fn ticked(&mut self) {
        self.upstream.tick(self.watchers.notified());
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
