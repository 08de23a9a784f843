//! Watch streams on both servers: the same requests go to both, and what comes back is
//! compared as, for each watch, one sequence of events and its control messages.
//!
//! Steps wait for what must come (`created`, the reply to a cancel), so that both servers see
//! the requests at the same revision. Events are only collected; they are compared when the
//! stream ends, up to a revision R that both servers have confirmed: by an answer to a progress
//! request, which promises that every event up to its revision was sent. etcd gives none while
//! any watch of the stream still catches up with history (it looks every 100 ms), so a stream's
//! end is best awaited while later scripts run already ([`DoubleWatch::finish`]).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use proto::etcd::watch_client::WatchClient;
use proto::etcd::watch_request::RequestUnion;
use proto::{etcd, mvccpb};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::answer::{Answer, show, side_by_side};
use super::exception::Exception;
use super::names::{Mask, Names};

/// How long something that must come may take.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// How long an answer to a progress request is waited for before asking again.
const PROGRESS_RETRY: Duration = Duration::from_millis(20);
/// The id in messages that concern no single watch.
const NO_WATCH: i64 = -1;

/// One server's end of a stream.
#[derive(Debug)]
struct Stream {
    requests: mpsc::UnboundedSender<etcd::WatchRequest>,
    answers: mpsc::UnboundedReceiver<Result<etcd::WatchResponse, Status>>,
    log: Vec<etcd::WatchResponse>,
    ended: Option<Status>,
}

impl Stream {
    fn open(channel: Channel) -> Self {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let (heard, answers) = mpsc::unbounded_channel();
        // etcd sends the stream's headers with its first message, so opening must not be awaited.
        tokio::spawn(async move {
            let outgoing = UnboundedReceiverStream::new(outgoing);
            let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
            match client.watch(outgoing).await {
                Err(status) => drop(heard.send(Err(status))),
                Ok(response) => {
                    let mut incoming = response.into_inner();
                    while let Some(answer) = incoming.next().await {
                        if heard.send(answer).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Self { requests, answers, log: Vec::new(), ended: None }
    }

    fn send(&self, request: RequestUnion) {
        // A stream that ended shows in what is awaited next.
        let _ = self.requests.send(etcd::WatchRequest { request_union: Some(request) });
    }

    /// Reads until a message is `wanted`; `None` when the time is over or the stream.
    async fn read_until(
        &mut self,
        from: usize,
        until: Instant,
        wanted: impl Fn(&etcd::WatchResponse) -> bool,
    ) -> Option<etcd::WatchResponse> {
        if let Some(found) = self.log[from.min(self.log.len())..].iter().find(|r| wanted(r)) {
            return Some(found.clone());
        }
        loop {
            let answer = timeout_at(until, self.answers.recv()).await.ok().flatten()?;
            match answer {
                Ok(response) => {
                    let found = wanted(&response);
                    self.log.push(response);
                    if found {
                        return self.log.last().cloned();
                    }
                }
                Err(status) => {
                    self.ended = Some(status);
                    return None;
                }
            }
        }
    }

    /// Asks for progress until a revision of at least `revision` is promised.
    async fn sync(&mut self, revision: i64, patience: Instant) -> Option<i64> {
        let from = self.log.len();
        loop {
            self.send(RequestUnion::ProgressRequest(etcd::WatchProgressRequest {}));
            let retry = (Instant::now() + PROGRESS_RETRY).min(patience);
            let promised = |r: &etcd::WatchResponse| is_progress(r) && revision_of(r) >= revision;
            if let Some(progress) = self.read_until(from, retry, promised).await {
                return Some(revision_of(&progress));
            }
            if self.ended.is_some() || Instant::now() >= patience {
                return None;
            }
        }
    }

    /// Returns how it ended or that it did not answer, for a report.
    fn silence(&self, what: &str) -> String {
        match &self.ended {
            Some(status) => format!("stream ended: {:?} {}", status.code(), status.message()),
            None => format!("no {what} within {WAIT_MAX:?}"),
        }
    }
}

/// From where a watch reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// From now, or from a revision still to come.
    Now { start: i64 },
    /// From a revision of the past.
    History,
    /// From a revision that is compacted already.
    Compacted,
}

/// A watch that both servers have created.
#[derive(Debug)]
struct Watcher {
    id: i64,
    from: From,
    /// Its client cancelled it, when not everything had surely been sent.
    cut: bool,
    ended: bool,
    /// How much each server had sent when it was created.
    since: [usize; 2],
}

/// The same stream on both servers.
#[derive(Debug)]
pub struct DoubleWatch {
    streams: [Stream; 2],
    watchers: Vec<Watcher>,
    /// Ids under which etcd may still hold back events of an earlier watch.
    tainted: HashSet<i64>,
}

/// What is wrong, as text for the report.
pub type Wrong = String;

impl DoubleWatch {
    /// Opens it on both servers.
    pub fn open(channels: [Channel; 2]) -> Self {
        let streams = channels.map(Stream::open);
        Self { streams, watchers: Vec::new(), tainted: HashSet::new() }
    }

    /// Creates a watch, whose start revision is a plain number, and compares the replies.
    pub async fn create(
        &mut self,
        request: &etcd::WatchCreateRequest,
        revision: i64,
        compacted: i64,
        names: [&Names; 2],
    ) -> Result<(), Wrong> {
        if self.tainted.contains(&request.watch_id) {
            return Ok(());
        }
        let from_lengths = self.lengths();
        self.send(RequestUnion::CreateRequest(request.clone()));
        let replies = self.await_both(from_lengths, "reply to create", |r| r.created).await?;
        let reply = agree(replies, names)?;
        if reply.canceled {
            return Ok(());
        }
        let start = request.start_revision;
        self.watchers.push(Watcher {
            id: reply.watch_id,
            from: match start {
                0 => From::Now { start: 0 },
                _ if start > revision => From::Now { start },
                _ if start < compacted => From::Compacted,
                _ => From::History,
            },
            cut: false,
            ended: false,
            since: from_lengths,
        });
        Ok(())
    }

    /// Cancels a watch; for one that lives the replies are compared.
    pub async fn cancel(
        &mut self,
        id: i64,
        revision: i64,
        names: [&Names; 2],
    ) -> Result<(), Wrong> {
        let Some(at) = self.watchers.iter().position(|w| w.id == id && !w.ended) else {
            self.send(RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id: id }));
            return Ok(());
        };
        if self.watchers[at].from == From::Compacted {
            return self.await_compacted(names).await;
        }
        let surely_sent = self.answers_progress_at_once(revision);
        if surely_sent {
            self.sync_to(revision).await?;
        } else {
            Exception::CancelRace.used();
            self.tainted.insert(id);
        }
        self.cancel_now(at, !surely_sent, Some(names)).await
    }

    async fn cancel_now(
        &mut self,
        at: usize,
        cut: bool,
        names: Option<[&Names; 2]>,
    ) -> Result<(), Wrong> {
        let id = self.watchers[at].id;
        let from = self.lengths();
        self.send(RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id: id }));
        let canceled = |r: &etcd::WatchResponse| r.canceled && r.watch_id == id;
        let mut replies = self.await_both(from, "reply to cancel", canceled).await?;
        self.watchers[at].ended = true;
        self.watchers[at].cut = cut;
        let own_names = [Names::default(), Names::default()];
        let names = names.unwrap_or_else(|| {
            Exception::LateHeader.used();
            replies.iter_mut().for_each(|reply| reply.header = None);
            [&own_names[0], &own_names[1]]
        });
        agree(replies, names).map(drop)
    }

    /// Asks for progress; when it must be answered at once, also checks that it is, with the
    /// current revision.
    pub async fn progress(&mut self, revision: i64) -> Result<(), Wrong> {
        if !self.answers_progress_at_once(revision) {
            self.send(RequestUnion::ProgressRequest(etcd::WatchProgressRequest {}));
            return Ok(());
        }
        let promised = self.sync_to(revision).await?;
        if promised != [revision; 2] {
            let [one, other] = promised.map(|revision| format!("progress {revision}"));
            return Err(side_by_side(&one, &other));
        }
        Ok(())
    }

    /// Waits until everything up to `revision` has come; leaves out watches from the future.
    pub async fn settle(&mut self, revision: i64, names: [&Names; 2]) -> Result<(), Wrong> {
        self.await_compacted(names).await?;
        let living = self.watchers.iter().filter(|w| !w.ended);
        let starts = living.map(|w| if let From::Now { start } = w.from { start } else { 0 });
        if starts.max().is_some_and(|start| start <= revision) {
            self.sync_to(revision).await?;
        }
        Ok(())
    }

    /// Ends the stream at `revision` and compares all that it gave.
    pub async fn finish(mut self, revision: i64, names: [Arc<Names>; 2]) -> Result<(), Wrong> {
        let names = [names[0].as_ref(), names[1].as_ref()];
        for at in 0..self.watchers.len() {
            // A watch from beyond the end would keep etcd from answering.
            let Watcher { from, ended, .. } = self.watchers[at];
            if !ended && matches!(from, From::Now { start } if start > revision) {
                self.cancel_now(at, false, None).await?;
            }
        }
        self.settle(revision, names).await?;
        self.compare(revision, names)
    }

    /// Says whether no watch waits for a revision that is still to come.
    pub fn can_settle(&self, revision: i64) -> bool {
        let mut living = self.watchers.iter().filter(|w| !w.ended);
        !living.any(|w| matches!(w.from, From::Now { start } if start > revision))
    }

    /// Says whether every watch is one that etcd takes up without catching up.
    fn answers_progress_at_once(&self, revision: i64) -> bool {
        let mut living = self.watchers.iter().filter(|w| !w.ended).peekable();
        living.peek().is_some()
            && living.all(|w| matches!(w.from, From::Now { start } if start <= revision))
    }

    async fn await_compacted(&mut self, names: [&Names; 2]) -> Result<(), Wrong> {
        for at in 0..self.watchers.len() {
            let Watcher { id, from, ended, since, .. } = self.watchers[at];
            if ended || from != From::Compacted {
                continue;
            }
            let canceled = |r: &etcd::WatchResponse| r.canceled && r.watch_id == id;
            let replies = self.await_both(since, "cancel by compaction", canceled).await?;
            self.watchers[at].ended = true;
            agree(replies, names)?;
            // etcd answers no progress request until the client gives the id up as well.
            Exception::SecondCancel.used();
            self.tainted.insert(id);
            self.send(RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id: id }));
        }
        Ok(())
    }

    async fn sync_to(&mut self, revision: i64) -> Result<[i64; 2], Wrong> {
        Exception::ProgressDropped.used();
        let patience = Instant::now() + WAIT_MAX;
        let [one, other] = &mut self.streams;
        let synced = tokio::join!(one.sync(revision, patience), other.sync(revision, patience));
        match synced {
            (Some(one), Some(other)) => Ok([one, other]),
            (one, other) => {
                let what = format!("progress to revision {revision}");
                Err(self.uneven(&what, [one.is_some(), other.is_some()]))
            }
        }
    }

    async fn await_both(
        &mut self,
        from: [usize; 2],
        what: &str,
        wanted: impl Fn(&etcd::WatchResponse) -> bool + Copy,
    ) -> Result<[etcd::WatchResponse; 2], Wrong> {
        let until = Instant::now() + WAIT_MAX;
        let [one, other] = &mut self.streams;
        let heard = tokio::join!(
            one.read_until(from[0], until, wanted),
            other.read_until(from[1], until, wanted)
        );
        match heard {
            (Some(one), Some(other)) => Ok([one, other]),
            (one, other) => Err(self.uneven(what, [one.is_some(), other.is_some()])),
        }
    }

    fn uneven(&self, what: &str, came: [bool; 2]) -> Wrong {
        let text =
            |i: usize| if came[i] { format!("{what} came") } else { self.streams[i].silence(what) };
        side_by_side(&text(0), &text(1))
    }

    fn send(&self, request: RequestUnion) {
        for stream in &self.streams {
            stream.send(request.clone());
        }
    }

    fn lengths(&self) -> [usize; 2] {
        [self.streams[0].log.len(), self.streams[1].log.len()]
    }

    /// Compares, watch by watch, the events up to `revision`.
    fn compare(&self, revision: i64, names: [&Names; 2]) -> Result<(), Wrong> {
        let told = |i: usize| self.told(i, revision, names[i]);
        let (one, other) = (told(0)?, told(1)?);
        for (at, (mut one, mut other)) in one.into_iter().zip(other).enumerate() {
            if self.watchers[at].cut {
                let both = one.len().min(other.len());
                one.truncate(both);
                other.truncate(both);
            }
            if one != other {
                let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
                let watcher = &self.watchers[at];
                let head =
                    format!("watch {at}: {watcher:?}, up to {revision}, from event {same} on\n");
                let logs = self.streams.each_ref().map(|stream| brief(&stream.log));
                let told = side_by_side(&show(&rest(&one, same)), &show(&rest(&other, same)));
                return Err(head + &told + &side_by_side(&logs[0], &logs[1]));
            }
        }
        Ok(())
    }

    /// Returns what each watch was told by server `i`, checking that its promises hold.
    fn told(&self, i: usize, revision: i64, names: &Names) -> Result<Vec<Vec<Told>>, Wrong> {
        let mut told: Vec<Vec<Told>> = self.watchers.iter().map(|_| Vec::new()).collect();
        let mut begun = Vec::new();
        let mut promised = 0;
        for response in &self.streams[i].log {
            if is_progress(response) {
                promised = promised.max(revision_of(response));
                continue;
            }
            if response.created {
                if !response.canceled {
                    begun.push(response.watch_id);
                }
                continue;
            }
            let Some(at) = begun.iter().rposition(|id| *id == response.watch_id) else {
                return Err(format!("server {i}: message for no watch\n{}", show(response)));
            };
            if response.canceled && !self.watchers[at].ended {
                return Err(format!("server {i}: cancelled unasked\n{}", show(response)));
            }
            for event in &response.events {
                let at_revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                let late = at_revision <= promised && self.watchers[at].from != From::History;
                if late && !self.watchers[at].cut {
                    return Err(format!(
                        "server {i}: event at {at_revision} after progress {promised}"
                    ));
                }
                if at_revision <= revision {
                    let header_ahead = self.header_ahead(at, response, at_revision);
                    let mut event = event.clone();
                    event.mask(names);
                    told[at].push(Told { header_ahead, event });
                }
            }
        }
        Ok(told)
    }

    fn header_ahead(&self, at: usize, response: &etcd::WatchResponse, event: i64) -> i64 {
        Exception::WatchBatches.used();
        if self.watchers[at].from == From::History {
            Exception::CatchUpHeader.used();
            let possible = revision_of(response) >= event;
            return if possible { 0 } else { revision_of(response) };
        }
        // A batch carries the revision of its last event.
        let last =
            response.events.last().and_then(|e| e.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        revision_of(response) - last
    }
}

/// What a watch was told, in the words of both servers.
#[derive(Debug, PartialEq)]
struct Told {
    /// Header's revision minus that of the batch's last event, where that is settled.
    header_ahead: i64,
    event: mvccpb::Event,
}

fn agree(
    replies: [etcd::WatchResponse; 2],
    names: [&Names; 2],
) -> Result<etcd::WatchResponse, Wrong> {
    let [mut one, mut other] = replies.map(Answer::Watch);
    one.mask(names[0]);
    other.mask(names[1]);
    if one != other {
        return Err(side_by_side(&show(&one), &show(&other)));
    }
    match one {
        Answer::Watch(reply) => Ok(reply),
        _ => unreachable!("it was made of a watch response"),
    }
}

fn is_progress(response: &etcd::WatchResponse) -> bool {
    response.watch_id == NO_WATCH && !response.created && !response.canceled
}

/// A few events from the first that differs on, for a report.
fn rest(told: &[Told], same: usize) -> &[Told] {
    &told[same..told.len().min(same + 4)]
}

/// One line for each message of a stream, for a report.
fn brief(log: &[etcd::WatchResponse]) -> String {
    let mut lines = String::from("all that the stream said:\n");
    for response in log {
        let events: Vec<i64> = response
            .events
            .iter()
            .map(|event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision))
            .collect();
        let (id, at) = (response.watch_id, revision_of(response));
        let what = match (response.created, response.canceled) {
            (true, true) => "refused",
            (true, false) => "created",
            (false, true) => "canceled",
            (false, false) if events.is_empty() => "progress",
            (false, false) => "events",
        };
        lines += &format!("watch {id} at {at}: {what} {events:?}\n");
    }
    lines
}

fn revision_of(response: &etcd::WatchResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(revision: i64) -> Option<etcd::ResponseHeader> {
        Some(etcd::ResponseHeader { revision, ..Default::default() })
    }

    fn created() -> etcd::WatchResponse {
        etcd::WatchResponse { header: header(1), created: true, ..Default::default() }
    }

    fn events(revisions: &[i64]) -> etcd::WatchResponse {
        let event = |revision: &i64| mvccpb::Event {
            kv: Some(mvccpb::KeyValue { mod_revision: *revision, ..Default::default() }),
            ..Default::default()
        };
        etcd::WatchResponse {
            header: header(*revisions.last().expect("a batch has events")),
            events: revisions.iter().map(event).collect(),
            ..Default::default()
        }
    }

    fn progress(revision: i64) -> etcd::WatchResponse {
        etcd::WatchResponse { header: header(revision), watch_id: NO_WATCH, ..Default::default() }
    }

    /// Compares what two servers sent, up to revision 5, to one watch from now on.
    fn compare(one: &[etcd::WatchResponse], other: &[etcd::WatchResponse]) -> Result<(), Wrong> {
        let streams = [one, other].map(|log| Stream {
            requests: mpsc::unbounded_channel().0,
            answers: mpsc::unbounded_channel().1,
            log: log.to_vec(),
            ended: None,
        });
        let watcher = Watcher {
            id: 0,
            from: From::Now { start: 0 },
            cut: false,
            ended: false,
            since: [0; 2],
        };
        let both = DoubleWatch { streams, watchers: vec![watcher], tainted: HashSet::new() };
        both.compare(5, [&Names::default(), &Names::default()])
    }

    #[test]
    fn only_the_sequence_of_events_counts() {
        let single = [created(), events(&[2]), events(&[3]), progress(3), events(&[5, 5])];
        let later = [created(), events(&[2]), events(&[3]), events(&[5, 5]), events(&[6])];
        assert_eq!(compare(&single, &later), Ok(()));
        assert!(compare(&single, &single[..4]).is_err(), "an event is missing");
        let swapped = [created(), events(&[3]), events(&[2]), events(&[5, 5])];
        assert!(compare(&single, &swapped).is_err(), "events are out of order");
    }

    #[test]
    fn promises_and_unasked_cancels_are_found_on_either_server() {
        let kept = [created(), events(&[2]), progress(2)];
        let broken = [created(), progress(2), events(&[2])];
        let cancel = etcd::WatchResponse { canceled: true, ..Default::default() };
        let cancelled = [created(), events(&[2]), cancel];
        for bad in [&broken, &cancelled] {
            assert!(compare(&kept, bad).is_err());
            assert!(compare(bad, &kept).is_err());
        }
    }
}
