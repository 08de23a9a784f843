//! The watches of one stream: ids, order, what was delivered. Pure: no clock, no channel.
//!
//! Requests come in and wait in one queue; outputs from upstream come in; responses go out as
//! bytes. Each watch is known to the client by its *id*, upstream by its *key*, which is
//! never used twice on a stream, so that late outputs of a cancelled watch find nobody.
//!
//! Invariants:
//! * requests are carried out in the order in which they came;
//! * `next` of a watch is one behind the last revision it is known to have had whole;
//! * nothing with a revision below a watch's start is sent for it, and a progress of the whole
//!   stream only when no watch would be taken back by it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use proto::{
    Error, KeyRange,
    etcd::{
        ResponseHeader, WatchCreateRequest, WatchResponse, watch_create_request::FilterType,
        watch_request::RequestUnion,
    },
    group::{Identity, WatchEvent, WatchOutput},
};

use super::{encoding, merge::Wish};

/// The id in responses that concern no watch or all.
const NO_WATCH: i64 = -1;
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// One watch.
struct Watcher {
    id: i64,
    range: KeyRange,
    /// First revision that the client asked for; 0 means from now on.
    start: i64,
    /// First revision that it has not had for certain.
    next: i64,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    progress_notify: bool,
    fragment: bool,
}

// === impl Watcher ===

impl Watcher {
    /// Has had everything up to `revision`.
    fn had(&mut self, revision: i64) {
        self.next = self.next.max(revision.saturating_add(1));
    }
}

/// All watches of one stream.
pub(super) struct Watchers {
    identity: Identity,
    /// Size above which responses are cut for watches that want it.
    fragment_bytes: usize,
    /// Requests that wait, oldest first.
    queue: VecDeque<RequestUnion>,
    /// How many of them the linearizable answer under way, or just come, covers.
    covered: usize,
    /// That answer, once it is there.
    linear: Option<ResponseHeader>,
    /// By key: renewals and ticks go in order of creation.
    watchers: BTreeMap<u64, Watcher>,
    keys: HashMap<i64, u64>,
    next_id: i64,
    next_key: u64,
    /// Newest header heard: its term is put into all responses.
    raft_term: u64,
    /// Highest revision of a progress of the whole stream.
    progress: i64,
    /// Highest revision in any response.
    shown: i64,
    responses: BytesMut,
    messages: u64,
    /// How many watches the metrics know of.
    counted: usize,
}

// === impl Watchers ===

impl Watchers {
    pub(super) fn new(identity: Identity, fragment_bytes: usize) -> Watchers {
        Watchers {
            identity,
            fragment_bytes,
            queue: VecDeque::new(),
            covered: 0,
            linear: None,
            watchers: BTreeMap::new(),
            keys: HashMap::new(),
            next_id: 0,
            next_key: 1,
            raft_term: 0,
            progress: 0,
            shown: 0,
            responses: BytesMut::new(),
            messages: 0,
            counted: 0,
        }
    }

    // --- requests

    pub(super) fn enqueue(&mut self, request: RequestUnion) {
        self.queue.push_back(request);
    }

    /// The oldest request, if it can be carried out now.
    pub(super) fn next_ready(&mut self) -> Option<RequestUnion> {
        let create = matches!(self.queue.front()?, RequestUnion::CreateRequest(_));
        if create && (self.linear.is_none() || self.covered == 0) {
            return None;
        }
        self.covered = self.covered.saturating_sub(1);
        self.queue.pop_front()
    }

    /// Must a linearizable answer be asked for? It covers what waits now.
    pub(super) fn begin_linearize(&mut self) -> bool {
        self.linear = None;
        self.covered = self.queue.len();
        self.covered > 0
    }

    /// The answer has come.
    pub(super) fn linearized(&mut self, header: ResponseHeader) {
        self.raft_term = self.raft_term.max(header.raft_term);
        self.linear = Some(header);
    }

    /// Creates a watch and tells the client. Returns its key, or `None` if it was refused (the
    /// client is told that, too).
    pub(super) fn create(&mut self, create: WatchCreateRequest) -> Option<u64> {
        let revision = self.linear.map_or(self.shown, |header| header.revision);
        if create.start_revision < 0 {
            return self.refuse(revision, Error::Compacted.text());
        }
        let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() };
        let range = KeyRange::parse(&key, &create.range_end);
        if range.is_empty() {
            return self.refuse(revision, EMPTY_RANGE);
        }
        let Some(id) = self.new_id(create.watch_id) else {
            return self.refuse(revision, DUPLICATE_ID);
        };
        let start = create.start_revision;
        let next = if start == 0 { revision + 1 } else { start };
        let filtered = |filter| create.filters().any(|it| it == filter);
        let watcher = Watcher {
            id,
            range,
            start,
            next,
            prev_kv: create.prev_kv,
            no_put: filtered(FilterType::Noput),
            no_delete: filtered(FilterType::Nodelete),
            progress_notify: create.progress_notify,
            fragment: create.fragment,
        };
        let key = self.next_key;
        self.next_key += 1;
        self.keys.insert(id, key);
        self.watchers.insert(key, watcher);
        self.respond(revision, WatchResponse { watch_id: id, created: true, ..Default::default() });
        Some(key)
    }

    /// etcd's choice: the smallest id never given out here, past those that clients chose.
    fn new_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return (!self.keys.contains_key(&wanted)).then_some(wanted);
        }
        while self.keys.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    fn refuse(&mut self, revision: i64, reason: &str) -> Option<u64> {
        let response = WatchResponse {
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..Default::default()
        };
        self.respond(revision, response);
        None
    }

    /// Ends a watch at the client's wish; `floor` is what the connection has seen. Returns its
    /// key; unknown ids are passed over in silence, as in etcd.
    pub(super) fn cancel(&mut self, id: i64, floor: i64) -> Option<u64> {
        let key = self.keys.remove(&id)?;
        self.watchers.remove(&key);
        let response = WatchResponse { watch_id: id, canceled: true, ..Default::default() };
        self.respond(floor.max(self.shown), response);
        Some(key)
    }

    // --- outputs from upstream

    pub(super) fn output(&mut self, output: WatchOutput) {
        match output {
            WatchOutput::Events { key, revision, events } => self.events(key, revision, &events),
            WatchOutput::Progress { revision, newest } => self.stream_progress(revision, newest),
            WatchOutput::WatchProgress { key, revision } => self.watch_progress(key, revision),
            WatchOutput::Compacted { key, revision } => self.compacted(key, revision),
            // Whoever has the hub sees to it.
            WatchOutput::Closed { .. } => {}
        }
    }

    fn events(&mut self, key: u64, revision: i64, events: &[Arc<WatchEvent>]) {
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        let Some(last) = events.last().and_then(|event| event.kv.as_ref()) else { return };
        watcher.had(last.mod_revision);
        let bound = watcher.fragment.then_some(self.fragment_bytes);
        let head = WatchResponse {
            header: Some(self.identity.header(revision, self.raft_term)),
            watch_id: watcher.id,
            ..Default::default()
        };
        self.shown = self.shown.max(revision);
        self.messages += encoding::append_response(&mut self.responses, head, events, bound);
    }

    fn stream_progress(&mut self, revision: i64, newest: u64) {
        // A client would believe it of a watch created since, whose history is still to come.
        let another_came = self.watchers.last_key_value().is_some_and(|(key, _)| *key > newest);
        let goes_back = revision < self.progress
            || self.watchers.values().any(|it| revision < it.start || revision + 1 < it.next);
        let one_is_gone = self.keys.len() > self.watchers.len();
        if self.watchers.is_empty() || another_came || one_is_gone || goes_back {
            return;
        }
        self.progress = revision;
        self.watchers.values_mut().for_each(|watcher| watcher.had(revision));
        self.respond(revision, WatchResponse { watch_id: NO_WATCH, ..Default::default() });
    }

    /// Every watch has had everything up to `revision`. While one goes on ahead of that, what is told
    /// of the whole stream would take it back; the others are told one by one.
    pub(super) fn all_have(&mut self, revision: i64) {
        let ahead = |watcher: &Watcher| revision + 1 < watcher.next;
        let goes_back = revision < self.progress || self.watchers.values().any(ahead);
        let starts_later = self.watchers.values().any(|watcher| revision < watcher.start);
        if !goes_back {
            return self.stream_progress(revision, u64::MAX);
        }
        if !starts_later && self.keys.len() == self.watchers.len() {
            for key in self.watchers.keys().copied().collect::<Vec<_>>() {
                self.watch_progress(key, revision);
            }
        }
    }

    fn watch_progress(&mut self, key: u64, revision: i64) {
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        if revision < watcher.start || revision + 1 < watcher.next {
            return;
        }
        watcher.had(revision);
        let watch_id = watcher.id;
        self.respond(revision, WatchResponse { watch_id, ..Default::default() });
    }

    fn compacted(&mut self, key: u64, compact_revision: i64) {
        let Some(watcher) = self.watchers.remove(&key) else { return };
        // As in etcd the id stays taken, and the stream without progress, until the client
        // cancels it.
        let response = WatchResponse {
            watch_id: watcher.id,
            canceled: true,
            compact_revision,
            ..Default::default()
        };
        self.respond(0, response);
    }

    // --- for upstream

    /// What a watch is to be told.
    pub(super) fn wish(&self, key: u64) -> Option<Wish> {
        let watcher = self.watchers.get(&key)?;
        Some(Wish {
            range: watcher.range.clone(),
            start_revision: watcher.next.max(1),
            prev_kv: watcher.prev_kv,
            no_put: watcher.no_put,
            no_delete: watcher.no_delete,
        })
    }

    /// Keys of the watches that want periodic progress.
    pub(super) fn notified(&self) -> impl Iterator<Item = u64> {
        self.watchers.iter().filter(|(_, watcher)| watcher.progress_notify).map(|(key, _)| *key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.watchers.len()
    }

    /// By how much the number of watches has changed since this was asked, to be `now`.
    pub(super) fn counted(&mut self, now: usize) -> i64 {
        let before = std::mem::replace(&mut self.counted, now);
        now as i64 - before as i64
    }

    // --- responses

    fn respond(&mut self, revision: i64, mut response: WatchResponse) {
        self.shown = self.shown.max(revision);
        response.header = Some(self.identity.header(revision, self.raft_term));
        self.messages += encoding::append_response(&mut self.responses, response, &[], None);
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.responses.len()
    }

    /// Highest revision in any response so far.
    pub(super) fn shown(&self) -> i64 {
        self.shown
    }

    /// The responses that wait to leave, and their number.
    pub(super) fn take_responses(&mut self) -> (Bytes, u64) {
        (self.responses.split().freeze(), std::mem::take(&mut self.messages))
    }
}

/// Headers of watch responses.
trait Headers {
    fn header(&self, revision: i64, raft_term: u64) -> ResponseHeader;
}

impl Headers for Identity {
    fn header(&self, revision: i64, raft_term: u64) -> ResponseHeader {
        let (cluster_id, member_id) = (self.cluster_id, self.member_id);
        ResponseHeader { cluster_id, member_id, revision, raft_term }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::etcd::WatchCancelRequest;
    use proto::mvccpb::{Event, KeyValue};

    fn at(revision: i64) -> Watchers {
        let mut watchers = Watchers::new(Identity { cluster_id: 1, member_id: 2 }, 1 << 20);
        watchers.linearized(ResponseHeader { revision, raft_term: 3, ..Default::default() });
        watchers
    }

    fn responses(watchers: &mut Watchers) -> Vec<WatchResponse> {
        let (bytes, _) = watchers.take_responses();
        let (mut rest, mut responses) = (bytes.as_ref(), Vec::new());
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            responses.push(WatchResponse::decode(&rest[5..5 + length]).unwrap());
            rest = &rest[5 + length..];
        }
        responses
    }

    fn create(key: &str) -> WatchCreateRequest {
        WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
    }

    fn revision(response: &WatchResponse) -> i64 {
        response.header.unwrap().revision
    }

    fn events(key: u64, at: i64) -> WatchOutput {
        let kv = KeyValue { key: "a".into(), mod_revision: at, ..Default::default() };
        let event = WatchEvent::new(Event { kv: Some(kv), ..Default::default() });
        WatchOutput::Events { key, revision: at, events: vec![event] }
    }

    /// Progress that holds for every watch created so far.
    fn progress(revision: i64) -> WatchOutput {
        WatchOutput::Progress { revision, newest: u64::MAX }
    }

    #[test]
    fn a_watch_from_now_starts_behind_its_created_header() {
        let mut watchers = at(41);
        let key = watchers.create(create("a")).unwrap();
        assert_eq!(watchers.wish(key).unwrap().start_revision, 42);
        let response = responses(&mut watchers).remove(0);
        assert!(response.created && !response.canceled);
        assert_eq!((revision(&response), response.watch_id), (41, 0));
        assert_eq!(response.header.unwrap().raft_term, 3);
    }

    #[test]
    fn ids_count_up_and_pass_over_those_that_clients_chose() {
        let mut watchers = at(1);
        let ids = [0, 2, 0, 0, 0].map(|watch_id| {
            watchers.create(WatchCreateRequest { watch_id, ..create("a") });
            responses(&mut watchers).remove(0).watch_id
        });
        assert_eq!(ids, [0, 2, 1, 3, 4]);
    }

    #[test]
    fn an_id_in_use_is_refused_and_free_again_after_cancel() {
        let mut watchers = at(9);
        let wanted = || WatchCreateRequest { watch_id: 5, ..create("a") };
        assert!(watchers.create(wanted()).is_some());
        assert!(watchers.create(wanted()).is_none());
        let refusal = responses(&mut watchers).remove(1);
        assert!(refusal.created && refusal.canceled);
        assert_eq!((refusal.watch_id, refusal.cancel_reason.as_str()), (-1, DUPLICATE_ID));
        assert!(watchers.cancel(5, 0).is_some());
        assert!(watchers.create(wanted()).is_some());
    }

    #[test]
    fn bad_creates_get_their_reasons() {
        let mut watchers = at(9);
        let reversed = WatchCreateRequest { range_end: "a".into(), ..create("b") };
        let negative = WatchCreateRequest { start_revision: -1, ..create("b") };
        assert!(watchers.create(reversed).is_none() && watchers.create(negative).is_none());
        let answers = responses(&mut watchers);
        assert_eq!(answers[0].cancel_reason, EMPTY_RANGE);
        assert_eq!(
            answers[1].cancel_reason,
            "etcdserver: mvcc: required revision has been compacted"
        );
        assert!(
            answers.iter().all(|a| a.created && a.canceled && a.watch_id == -1 && revision(a) == 9)
        );
        assert_eq!(watchers.len(), 0);
    }

    #[test]
    fn an_empty_key_is_the_smallest_key() {
        let mut watchers = at(9);
        let all = WatchCreateRequest { range_end: Bytes::from_static(&[0]), ..create("") };
        let key = watchers.create(all).unwrap();
        let range = watchers.wish(key).unwrap().range;
        assert_eq!((range.start.as_ref(), range.end), (&[0][..], None));
    }

    #[test]
    fn cancelling_an_unknown_id_is_passed_over() {
        let mut watchers = at(9);
        assert_eq!(watchers.cancel(3, 9), None);
        assert!(responses(&mut watchers).is_empty());
    }

    #[test]
    fn a_cancel_behind_a_waiting_create_waits_for_it() {
        let mut watchers = Watchers::new(Identity::default(), 1 << 20);
        watchers.enqueue(RequestUnion::CreateRequest(create("a")));
        watchers.enqueue(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 }));
        assert!(watchers.next_ready().is_none());
        assert!(watchers.begin_linearize());
        watchers.enqueue(RequestUnion::CreateRequest(create("b")));
        watchers.linearized(ResponseHeader { revision: 4, ..Default::default() });
        assert!(matches!(watchers.next_ready(), Some(RequestUnion::CreateRequest(_))));
        assert!(matches!(watchers.next_ready(), Some(RequestUnion::CancelRequest(_))));
        // The third came after the answer was asked for: it needs another.
        assert!(watchers.next_ready().is_none());
        assert!(watchers.begin_linearize());
    }

    #[test]
    fn progress_never_goes_back_and_waits_for_every_start() {
        let mut watchers = at(9);
        let key = watchers.create(create("a")).unwrap();
        let future = WatchCreateRequest { start_revision: 20, ..create("b") };
        watchers.create(future).unwrap();
        watchers.take_responses();
        watchers.output(progress(15));
        assert!(responses(&mut watchers).is_empty(), "one watch starts later");
        watchers.output(progress(20));
        watchers.output(progress(19));
        watchers.output(events(key, 25));
        watchers.output(progress(24));
        watchers.output(progress(25));
        let seen: Vec<_> =
            responses(&mut watchers).iter().map(|r| (r.watch_id, revision(r))).collect();
        assert_eq!(seen, [(-1, 20), (0, 25), (-1, 25)]);
    }

    #[test]
    fn progress_asked_for_before_a_watch_was_created_is_not_told_behind_it() {
        let mut watchers = at(9);
        let first = watchers.create(create("a")).unwrap();
        let second = watchers.create(WatchCreateRequest { start_revision: 3, ..create("b") });
        watchers.take_responses();
        watchers.output(WatchOutput::Progress { revision: 9, newest: first });
        assert!(responses(&mut watchers).is_empty(), "the second has not had its history");
        watchers.output(WatchOutput::Progress { revision: 9, newest: second.unwrap() });
        assert_eq!(responses(&mut watchers).len(), 1);
    }

    #[test]
    fn progress_that_would_take_one_watch_back_is_told_to_the_others() {
        let mut watchers = at(9);
        let busy = watchers.create(create("a")).unwrap();
        watchers.create(create("b")).unwrap();
        watchers.take_responses();
        watchers.output(events(busy, 15));
        watchers.all_have(12);
        watchers.all_have(16);
        // The stream has heard more.
        watchers.all_have(15);
        let seen: Vec<_> =
            responses(&mut watchers).iter().map(|r| (r.watch_id, revision(r))).collect();
        assert_eq!(seen, [(0, 15), (1, 12), (-1, 16)]);
        let later = WatchCreateRequest { start_revision: 30, ..create("c") };
        watchers.create(later).unwrap();
        watchers.take_responses();
        watchers.output(events(busy, 21));
        watchers.all_have(20);
        assert!(responses(&mut watchers).len() == 1, "one starts later");
    }

    #[test]
    fn progress_without_watches_is_dropped() {
        let mut watchers = at(9);
        watchers.output(progress(9));
        assert!(responses(&mut watchers).is_empty());
    }

    #[test]
    fn progress_of_one_watch_carries_its_id() {
        let mut watchers = at(9);
        watchers.create(create("a")).unwrap();
        let key =
            watchers.create(WatchCreateRequest { progress_notify: true, ..create("b") }).unwrap();
        assert_eq!(watchers.notified().collect::<Vec<_>>(), [key]);
        watchers.take_responses();
        watchers.output(WatchOutput::WatchProgress { key, revision: 9 });
        let response = responses(&mut watchers).remove(0);
        assert_eq!((response.watch_id, revision(&response), response.events.len()), (1, 9, 0));
    }

    #[test]
    fn a_compacted_watch_is_cancelled_with_the_revision_and_an_empty_header_revision() {
        let mut watchers = at(9);
        let key = watchers.create(WatchCreateRequest { start_revision: 2, ..create("a") }).unwrap();
        watchers.take_responses();
        watchers.output(WatchOutput::Compacted { key, revision: 5 });
        let response = responses(&mut watchers).remove(0);
        assert!(response.canceled && !response.created && response.cancel_reason.is_empty());
        assert_eq!((response.compact_revision, revision(&response), watchers.len()), (5, 0, 0));
        // Its id is free only once the client has cancelled it.
        watchers.output(progress(9));
        assert!(responses(&mut watchers).is_empty());
        let id = response.watch_id;
        let again = || WatchCreateRequest { watch_id: id, ..create("b") };
        if id != 0 {
            assert_eq!(watchers.create(again()), None);
        }
        assert_eq!(watchers.cancel(id, 9), Some(key));
        assert!(watchers.create(again()).is_some());
    }
}
