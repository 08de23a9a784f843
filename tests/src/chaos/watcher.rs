//! A watch that goes on where it was, whatever happens to the node it is at.
//!
//! It remembers the next revision it needs: behind the last event, or behind a promise of
//! progress. When the stream ends, or now and then because it wants to, it connects to another
//! node and creates the watch anew from there. When told the last revision of the run it asks for
//! progress until it is promised to have heard of everything.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use proto::etcd::watch_client::WatchClient;
use proto::etcd::watch_create_request::FilterType;
use proto::etcd::watch_request::RequestUnion;
use proto::etcd::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::cluster::connect;
use super::record::Record;
use crate::check::history::{Heard, WatchId, WatchSpec};
use crate::sim::random::Random;

/// How long opening a stream may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a watcher knocks again where nobody answers.
const KNOCK_AGAIN: Duration = Duration::from_millis(20);
/// How often it asks for progress at the end.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How long it stays at one node, in milliseconds.
const STAY_MS: (u64, u64) = (1_000, 8_000);
/// The id in messages that concern the whole stream.
const WHOLE_STREAM: i64 = -1;

/// One watch.
pub(super) struct Watcher {
    record: Arc<Record>,
    urls: Arc<Vec<String>>,
    random: Random,
    /// The node it always stays at; `None`: any.
    home: Option<usize>,
    /// Set for a watch of everything from the beginning, whose events are the committed history:
    /// the name under which it tells them.
    source: Option<u64>,
    spec: WatchSpec,
    watch: WatchId,
    /// Next revision it needs; 0 as long as it does not know what "now" is.
    next: i64,
    /// Has it heard anything?
    begun: bool,
}

/// What a message means for the stream.
enum Then {
    GoOn,
    /// The watch is gone: create it anew.
    Again,
    /// It cannot go on anywhere.
    Over,
}

// === impl Watcher ===

impl Watcher {
    /// A watch that stands nowhere yet.
    pub(super) fn new(
        record: Arc<Record>,
        urls: Arc<Vec<String>>,
        random: Random,
        spec: WatchSpec,
    ) -> Watcher {
        let watch = record.watch(spec.clone());
        let next = spec.start_revision;
        Watcher { record, urls, random, home: None, source: None, spec, watch, next, begun: false }
    }

    /// A watch of everything from the beginning that tells the committed history as `source`.
    pub(super) fn full(
        record: Arc<Record>,
        urls: Arc<Vec<String>>,
        random: Random,
        source: u64,
    ) -> Watcher {
        let watcher = Watcher::new(record, urls, random, WatchSpec::new(b"\0", b"\0", 1));
        Watcher { source: Some(source), ..watcher }
    }

    /// Keeps it at one node.
    pub(super) fn at(self, node: usize) -> Watcher {
        Watcher { home: Some(node), ..self }
    }

    /// Its name in the history.
    pub(super) fn id(&self) -> WatchId {
        self.watch
    }

    /// Watches until everything up to the revision in `last` was heard; 0 there: not known yet.
    pub(super) async fn run(mut self, last: watch::Receiver<i64>) {
        while !self.done(&last) {
            let drawn = self.random.below(self.urls.len() as u64) as usize;
            let url = self.urls[self.home.unwrap_or(drawn)].clone();
            match self.stay(&url, &last).await {
                Then::Over => return,
                Then::Again | Then::GoOn => tokio::time::sleep(KNOCK_AGAIN).await,
            }
        }
    }

    fn done(&self, last: &watch::Receiver<i64>) -> bool {
        let last = *last.borrow();
        last != 0 && self.next > last
    }

    async fn stay(&mut self, url: &str, last: &watch::Receiver<i64>) -> Then {
        let Some(channel) = connect(url).await else { return Then::Again };
        let (requests, outgoing) = mpsc::unbounded_channel();
        let create = RequestUnion::CreateRequest(self.create());
        if self.begun {
            self.record.hear(self.watch, Heard::Restarted(self.next));
        }
        let send = |request| requests.send(WatchRequest { request_union: Some(request) }).is_ok();
        send(create);
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        // etcd sends the stream's headers with its first message, the answer to the create.
        let opened = client.watch(UnboundedReceiverStream::new(outgoing));
        let Ok(Ok(opened)) = timeout(OPEN_TIMEOUT, opened).await else { return Then::Again };
        let mut incoming = opened.into_inner();
        let stay = Duration::from_millis(self.random.between(STAY_MS.0, STAY_MS.1));
        let leave_at = Instant::now() + stay;
        while !self.done(last) {
            match timeout(PROGRESS_EVERY, incoming.next()).await {
                Ok(Some(Ok(response))) => match self.take(&response) {
                    Then::GoOn => {}
                    other => return other,
                },
                Ok(_) => return Then::Again,
                Err(_) if *last.borrow() != 0 => {
                    send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
                }
                Err(_) => {}
            }
            if self.home.is_none() && Instant::now() > leave_at {
                return Then::Again;
            }
        }
        Then::GoOn
    }

    fn create(&self) -> WatchCreateRequest {
        let spec = &self.spec;
        let filters = [(spec.no_put, FilterType::Noput), (spec.no_delete, FilterType::Nodelete)];
        let filters = filters.into_iter().filter(|(on, _)| *on);
        WatchCreateRequest {
            key: spec.key.clone(),
            range_end: spec.range_end.clone(),
            start_revision: self.next,
            filters: filters.map(|(_, filter)| filter as i32).collect(),
            prev_kv: spec.prev_kv,
            ..Default::default()
        }
    }

    fn take(&mut self, response: &WatchResponse) -> Then {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.watch_id == WHOLE_STREAM && response.events.is_empty() && !response.canceled {
            self.next = self.next.max(revision + 1);
            self.record.hear(self.watch, Heard::Progress(revision));
            return Then::GoOn;
        }
        let heard = Heard::of_response(response);
        self.begun = true;
        let then = match &heard {
            Heard::Created(now) => {
                self.next = if self.next == 0 { now + 1 } else { self.next };
                Then::GoOn
            }
            Heard::Events { events, .. } => {
                if let Some(source) = self.source {
                    self.record.committed(source, events);
                }
                let of = |event: &proto::mvccpb::Event| event.kv.as_ref().map(|kv| kv.mod_revision);
                let newest = events.iter().filter_map(of).max().unwrap_or(0);
                self.next = self.next.max(newest + 1);
                Then::GoOn
            }
            Heard::Progress(promised) => {
                self.next = self.next.max(promised + 1);
                Then::GoOn
            }
            Heard::Canceled | Heard::Restarted(_) => Then::Again,
            Heard::Compacted(compacted) => {
                let told = format!("{} was cut off by a compaction at {compacted}", self.watch);
                self.record.complain(told);
                Then::Over
            }
        };
        self.record.hear(self.watch, heard);
        then
    }
}
