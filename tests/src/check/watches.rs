//! What etcd promises about watches, checked against the committed history.
//!
//! For each watch a cursor walks along the committed events that the watch wants, and each
//! message must move it the right way:
//!
//! ```text
//!   committed   2: a   3: b   4: a,c   5: b   6: a          (watch of a from 2)
//!   heard       Events[2: a]   Events[4: a]   Progress(5)   Events[6: a]
//!   cursor      ------^--------------^-------------^-------------^
//! ```
//!
//! etcd's nine: *filter* (only what was asked for), *ordered* (revisions never go down),
//! *unique* (no event twice), *atomic* (one revision is not torn over messages, except marked
//! fragments), *bookmarkable* (progress R: everything up to R came before, nothing of it after),
//! *resumable* (a start gets everything from there), *reliable* (no gap, nothing invented),
//! *previous value* and *creation* as the store had them. And ours: a compaction cancels only
//! whom it deprives, and names a revision that was compacted; nothing is lost or skipped where
//! a stream broke and was resumed; a header is never below what is delivered with it; a watch
//! "from now" starts no lower than what had been seen when it was asked for; at the end of a
//! healed run everything has arrived.
//!
//! A previous value may be missing only if the state one revision earlier may have been
//! compacted. Progress is allowed at one below an explicit start and above: the hub of a router
//! gets "from now" as an explicit revision.

use std::collections::BTreeSet;

use bytes::Bytes;
use proto::{
    group::Request,
    mvccpb::{Event, event::EventType},
};

use super::{
    history::{Heard, History, Outcome, Time, WatchId, WatchRecord},
    model::{Model, kv},
    sightings::Sightings,
    words::{event_words, events_words},
};

/// A broken promise to one watch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{watch} of client {client}, at {at}: {fault}")]
pub struct Violation {
    /// Which watch.
    pub watch: WatchId,
    /// Whose.
    pub client: u64,
    /// When it was heard.
    pub at: Time,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a message, or missing. Events are told in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Filter.
    #[error("{event} was not asked for")]
    Filter {
        /// Delivered.
        event: String,
    },
    /// Ordered.
    #[error("{event} came after revision {last}")]
    Order {
        /// Delivered.
        event: String,
        /// Delivered before.
        last: i64,
    },
    /// Unique.
    #[error("{event} came twice")]
    Twice {
        /// Delivered.
        event: String,
    },
    /// Atomic.
    #[error("{event} came in another message than the rest of its revision")]
    Torn {
        /// Delivered.
        event: String,
    },
    /// Bookmarkable, forward.
    #[error("{event} came after progress {progress}")]
    BehindProgress {
        /// Delivered.
        event: String,
        /// Delivered before.
        progress: i64,
    },
    /// Bookmarkable, backward.
    #[error("progress {progress} came before {event}")]
    EarlyProgress {
        /// Delivered.
        progress: i64,
        /// Not delivered.
        event: String,
    },
    /// Bookmarkable: progress only rises, above the start and below the end of history.
    #[error("progress {progress} after {least} and up to {most} was due")]
    ImpossibleProgress {
        /// Delivered.
        progress: i64,
        /// What was due at least.
        least: i64,
        /// What exists.
        most: i64,
    },
    /// Resumable: nothing is older than the start.
    #[error("{event} is older than the start, {start}")]
    BeforeStart {
        /// Delivered.
        event: String,
        /// First revision wanted.
        start: i64,
    },
    /// Resumable: nothing after the start is left out.
    #[error("{event}, first after the start at {start}, did not come")]
    MissingAtStart {
        /// Not delivered.
        event: String,
        /// First revision wanted.
        start: i64,
    },
    /// Reliable: nothing is left out.
    #[error("{event} did not come")]
    Missing {
        /// Not delivered.
        event: String,
    },
    /// Reliable: nothing is made up (or comes from another tenant).
    #[error("{event} never happened; the revision is {committed}")]
    Invented {
        /// Delivered.
        event: String,
        /// Committed at its revision.
        committed: String,
    },
    /// Reliable: events are what was committed.
    #[error("{event} differs from the committed {committed}: got {got}")]
    Altered {
        /// Delivered.
        event: String,
        /// Committed.
        committed: String,
        /// The delivered key-value in full.
        got: String,
    },
    /// Creation.
    #[error("{event} says it {says} the key, but it {did}")]
    Creation {
        /// Delivered.
        event: String,
        /// By its create revision.
        says: &'static str,
        /// By history.
        did: &'static str,
    },
    /// Previous value.
    #[error("{event} has the previous value {got}, not {due}")]
    Previous {
        /// Delivered.
        event: String,
        /// By history.
        due: String,
        /// Delivered.
        got: String,
    },
    /// A header may not hide what comes with it, nor run ahead of the store.
    #[error("the header says {header}, with events up to {last}; the store ends at {most}")]
    Header {
        /// In the header.
        header: i64,
        /// Last event of the message.
        last: i64,
        /// Last revision that exists.
        most: i64,
    },
    /// "From now" is after all that had been seen.
    #[error("from now is after {created}, but {floor} had been seen by {shown_by}")]
    StaleStart {
        /// In the header of the answer.
        created: i64,
        /// Seen before the call.
        floor: i64,
        /// By whom.
        shown_by: String,
    },
    /// A compaction cancels only whom it deprives.
    #[error("cancelled for compaction {compacted}, but only {next} and later was still needed")]
    NeedlessCancel {
        /// Told.
        compacted: i64,
        /// First revision not delivered.
        next: i64,
    },
    /// A compaction is named as it was made.
    #[error("cancelled for compaction {compacted}, which nobody had asked for")]
    UnknownCompaction {
        /// Told.
        compacted: i64,
    },
    /// Continuity: who resumes goes on where he was.
    #[error("resumed from {from}, which skips {event}")]
    Skipped {
        /// Resumed from.
        from: i64,
        /// Never delivered.
        event: String,
    },
    /// A cancelled watch is silent.
    #[error("went on after it was cancelled")]
    AfterEnd,
}

/// Checks every watch of a history. `truth` is the whole committed history
/// ([`super::witness::Witnessed::model`]). `settled`: the run ended in health and waited for the
/// watches, so that each that stands has heard of everything up to this revision.
pub fn check(
    history: &History,
    truth: &Model,
    sightings: &Sightings,
    settled: Option<i64>,
) -> Vec<Violation> {
    let compactions: Vec<(Time, i64)> = history
        .operations
        .iter()
        .filter(|op| !matches!(op.outcome, Outcome::Refused(_)))
        .filter_map(|op| match &op.request {
            Request::Compact(compact) => Some((op.call, compact.revision)),
            _ => None,
        })
        .collect();
    let mut violations = Vec::new();
    for (index, record) in history.watches.iter().enumerate() {
        let mut cursor = Cursor::new(WatchId(index), record, truth, &compactions);
        if let Some((at, created)) = record.heard.iter().find_map(|(at, heard)| match heard {
            Heard::Created(revision) => Some((*at, *revision)),
            _ => None,
        }) {
            let (floor, source) = sightings.floor(record.call);
            if record.spec.start_revision == 0 && created < floor {
                cursor.at = at;
                let shown_by = source.tell(history);
                cursor.fault(Fault::StaleStart { created, floor, shown_by });
            }
        }
        for (at, heard) in &record.heard {
            cursor.at = *at;
            cursor.take(heard);
        }
        if let Some(last) = settled {
            cursor.settle(last);
        }
        violations.append(&mut cursor.violations);
    }
    violations
}

/// Where one watch stands in the committed history.
struct Cursor<'h> {
    watch: WatchId,
    record: &'h WatchRecord,
    truth: &'h Model,
    compactions: &'h [(Time, i64)],
    at: Time,
    /// First revision this incarnation wants; `None` until "from now" is known.
    start: Option<i64>,
    /// Next committed event: revision, and place within it.
    next: (i64, usize),
    /// Has this incarnation delivered an event or progress?
    fresh: bool,
    last: i64,
    progress: i64,
    /// May the next message go on with the last revision?
    fragment: bool,
    /// Events of this incarnation.
    delivered: BTreeSet<(i64, Bytes, i32)>,
    over: bool,
    violations: Vec<Violation>,
}

impl<'h> Cursor<'h> {
    fn new(
        watch: WatchId,
        record: &'h WatchRecord,
        truth: &'h Model,
        compactions: &'h [(Time, i64)],
    ) -> Cursor<'h> {
        let start = Some(record.spec.start_revision).filter(|start| *start > 0);
        Cursor {
            watch,
            record,
            truth,
            compactions,
            at: record.call,
            start,
            next: (start.unwrap_or(0), 0),
            fresh: true,
            last: 0,
            progress: 0,
            fragment: false,
            delivered: BTreeSet::new(),
            over: false,
            violations: Vec::new(),
        }
    }

    fn fault(&mut self, fault: Fault) {
        let (watch, client, at) = (self.watch, self.record.client, self.at);
        self.violations.push(Violation { watch, client, at, fault });
    }

    fn take(&mut self, heard: &Heard) {
        if self.over && !matches!(heard, Heard::Restarted(_)) {
            return self.fault(Fault::AfterEnd);
        }
        match heard {
            Heard::Created(revision) => {
                if self.start.is_none() {
                    self.begin(revision + 1);
                }
            }
            Heard::Events { revision, events, fragment } => {
                self.message(*revision, events, *fragment);
            }
            Heard::Progress(revision) => self.take_progress(*revision),
            Heard::Compacted(revision) => self.take_compacted(*revision),
            Heard::Canceled => self.over = true,
            Heard::Restarted(from) => self.restart(*from),
        }
    }

    fn begin(&mut self, start: i64) {
        self.start = Some(start);
        self.next = (start, 0);
    }

    fn message(&mut self, header: i64, events: &[Event], fragment: bool) {
        let went_on = self.fragment;
        let before = self.last;
        for event in events {
            self.event(event, before, went_on);
        }
        self.fragment = fragment;
        let last = events.iter().map(|event| kv(event).mod_revision).max().unwrap_or(0);
        let most = self.truth.revision();
        if header < last || header > most {
            self.fault(Fault::Header { header, last, most });
        }
    }

    /// `before` is the last revision of earlier messages, which may go on if `went_on`.
    fn event(&mut self, event: &Event, before: i64, went_on: bool) {
        let told = || event_words(event);
        let revision = kv(event).mod_revision;
        if self.start.is_none() {
            // Nobody said where "now" was: it is here.
            self.begin(revision);
        }
        if !self.record.spec.wants(event) {
            return self.fault(Fault::Filter { event: told() });
        }
        let start = self.start.unwrap_or(0);
        if revision < start {
            return self.fault(Fault::BeforeStart { event: told(), start });
        }
        let name = (revision, kv(event).key.clone(), event.r#type);
        if !self.delivered.insert(name) {
            return self.fault(Fault::Twice { event: told() });
        }
        if revision <= self.progress {
            return self.fault(Fault::BehindProgress { event: told(), progress: self.progress });
        }
        if revision < self.last {
            return self.fault(Fault::Order { event: told(), last: self.last });
        }
        if revision == before && !went_on {
            self.fault(Fault::Torn { event: told() });
        }
        let Some(place) = self.compare(event) else { return };
        if (revision, place) < self.next {
            return self.fault(Fault::Order { event: told(), last: self.last });
        }
        if let Some(missing) = self.missing_before((revision, place)) {
            let start = self.start.unwrap_or(0);
            self.fault(if self.fresh {
                Fault::MissingAtStart { event: missing, start }
            } else {
                Fault::Missing { event: missing }
            });
        }
        self.next = (revision, place + 1);
        self.last = revision;
        self.fresh = false;
    }

    /// Finds the event in the committed history and compares every part of it.
    fn compare(&mut self, event: &Event) -> Option<usize> {
        let truth = self.truth;
        let got = kv(event);
        let committed =
            truth.changes().get(&got.mod_revision).map_or(&[] as &[Event], Vec::as_slice);
        let same = |one: &Event| one.r#type == event.r#type && kv(one).key == got.key;
        let Some(place) = committed.iter().position(same) else {
            let (event, committed) = (event_words(event), events_words(committed));
            self.fault(Fault::Invented { event, committed });
            return None;
        };
        let due = &committed[place];
        let told = event_words(event);
        let creates = |event: &Event| {
            event.r#type() == EventType::Put && kv(event).create_revision == kv(event).mod_revision
        };
        let word = |creates| if creates { "creates" } else { "changes" };
        if creates(event) != creates(due) {
            let (says, did) = (word(creates(event)), word(creates(due)));
            self.fault(Fault::Creation { event: told, says, did });
        } else if due.kv != event.kv {
            let (committed, got) = (event_words(due), format!("{got:?}"));
            self.fault(Fault::Altered { event: told, committed, got });
        }
        self.compare_previous(event, due);
        Some(place)
    }

    fn compare_previous(&mut self, event: &Event, due: &Event) {
        let wanted = if self.record.spec.prev_kv { due.prev_kv.as_ref() } else { None };
        let got = event.prev_kv.as_ref();
        if got == wanted {
            return;
        }
        let revision = kv(event).mod_revision;
        let compacted =
            self.compactions.iter().any(|(call, mark)| *call <= self.at && *mark >= revision);
        if got.is_none() && compacted {
            return;
        }
        self.fault(Fault::Previous {
            event: event_words(event),
            due: format!("{wanted:?}"),
            got: format!("{got:?}"),
        });
    }

    /// First wanted event from the cursor up to a place, which it does not include.
    fn missing_before(&self, end: (i64, usize)) -> Option<String> {
        if end <= self.next {
            return None;
        }
        for (revision, events) in self.truth.changes().range(self.next.0..=end.0) {
            for (place, event) in events.iter().enumerate() {
                let here = (*revision, place);
                if here >= self.next && here < end && self.record.spec.wants(event) {
                    return Some(event_words(event));
                }
            }
        }
        None
    }

    fn take_progress(&mut self, progress: i64) {
        let start = match self.start {
            Some(start) => start,
            None => {
                self.begin(progress + 1);
                progress + 1
            }
        };
        let least = self.last.max(self.progress).max(start - 1);
        let most = self.truth.revision();
        if progress < least || progress > most {
            return self.fault(Fault::ImpossibleProgress { progress, least, most });
        }
        if let Some(event) = self.missing_before((progress + 1, 0)) {
            self.fault(Fault::EarlyProgress { progress, event });
        }
        self.next = self.next.max((progress + 1, 0));
        self.progress = progress;
        self.fragment = false;
        self.fresh = false;
    }

    fn take_compacted(&mut self, compacted: i64) {
        self.over = true;
        // Of the revision last heard of the rest may be missing; nobody knows but the history.
        let unfinished = self.fragment;
        let next = match self.start {
            Some(start) if unfinished => start.max(self.last),
            Some(start) => start.max(self.last + 1).max(self.progress + 1),
            None => 0,
        };
        if self.start.is_some() && next >= compacted {
            self.fault(Fault::NeedlessCancel { compacted, next });
        }
        if !self.compactions.iter().any(|(call, mark)| *call <= self.at && *mark == compacted) {
            self.fault(Fault::UnknownCompaction { compacted });
        }
    }

    fn restart(&mut self, from: i64) {
        let goes_on = from > 0 && self.start.is_some() && !self.over;
        if let Some(event) = self.missing_before((from, 0)).filter(|_| goes_on) {
            self.fault(Fault::Skipped { from, event });
        }
        self.start = None;
        if from > 0 {
            self.begin(from);
        }
        (self.last, self.progress, self.fragment) = (0, 0, false);
        (self.fresh, self.over) = (true, false);
        self.delivered.clear();
    }

    fn settle(&mut self, last: i64) {
        if self.over || self.start.is_none() {
            return;
        }
        if let Some(event) = self.missing_before((last + 1, 0)) {
            self.fault(Fault::Missing { event });
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::mvccpb::KeyValue;

    use super::{
        super::{
            history::WatchSpec,
            scribe::{Scribe, busy, bytes, compact, delete, op, put, put_request},
            witness,
        },
        *,
    };

    fn faults(scribe: &Scribe, settled: bool) -> Vec<Fault> {
        let witnessed = witness::check(&scribe.history);
        let settled = settled.then(|| witnessed.model.revision());
        check(&scribe.history, &witnessed.model, &witnessed.sightings, settled)
            .into_iter()
            .map(|violation| {
                assert!(!violation.to_string().is_empty());
                violation.fault
            })
            .collect()
    }

    macro_rules! caught {
        ($scribe:expr, $pattern:pat) => {
            let faults = faults(&$scribe, false);
            let found = faults.iter().any(|fault| matches!(fault, $pattern));
            assert!(found, "not caught, only {faults:#?}");
        };
    }

    /// 2: put a, 3: put b, 4: put a, 5: delete a, 6: put a and b, 7: put c; watched from 2 on
    /// with one message a revision.
    fn watched(spec: WatchSpec) -> (Scribe, WatchId) {
        let mut scribe = Scribe::new();
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
            scribe.ask(1, put(key, value));
        }
        scribe.ask(1, delete("a", ""));
        let puts = ["a", "b"]
            .map(|key| op(proto::etcd::request_op::Request::RequestPut(put_request(key, "both"))));
        let txn = proto::etcd::TxnRequest { success: puts.to_vec(), ..Default::default() };
        scribe.ask(1, Request::Txn(txn));
        scribe.ask(1, put("c", "5"));
        let watch = scribe.watch(spec);
        (scribe, watch)
    }

    fn all() -> WatchSpec {
        WatchSpec::new(b"a", b"z", 2)
    }

    fn heard(scribe: &mut Scribe, watch: WatchId) -> &mut Vec<(Time, Heard)> {
        &mut scribe.history.watches[watch.0].heard
    }

    fn events(scribe: &mut Scribe, watch: WatchId, message: usize) -> &mut Vec<Event> {
        match &mut heard(scribe, watch)[message].1 {
            Heard::Events { events, .. } => events,
            other => panic!("{other:?} has no events"),
        }
    }

    fn event_of(revision: i64, key: &str) -> Event {
        let (key, value) = (bytes(key), bytes("x"));
        let (create_revision, mod_revision) = (revision, revision);
        let kv = KeyValue { key, value, create_revision, mod_revision, version: 1, lease: 0 };
        Event { kv: Some(kv), ..Event::default() }
    }

    #[test]
    fn right_watches_of_every_kind_are_clean() {
        let specs = [
            all(),
            WatchSpec::new(b"a", b"", 2),
            WatchSpec::new(b"a", b"\0", 4),
            WatchSpec { no_put: true, ..all() },
            WatchSpec { no_delete: true, ..all() },
            WatchSpec { prev_kv: false, ..all() },
            WatchSpec::new(b"a", b"z", 99),
        ];
        for spec in specs {
            let (mut scribe, watch) = watched(spec.clone());
            let last = scribe.model.revision();
            if spec.start_revision <= last {
                heard(&mut scribe, watch).push((990, Heard::Progress(last)));
            }
            assert_eq!(faults(&scribe, true), Vec::new(), "{spec:?}");
        }
        for seed in 0..10 {
            let mut scribe = busy(seed, 200, 6, 10);
            scribe.watch(WatchSpec::new(b"k", b"l", 2));
            scribe.watch(WatchSpec::new(b"k3", b"", 20));
            assert_eq!(faults(&scribe, true), Vec::new());
        }
    }

    #[test]
    fn a_watch_from_now_begins_behind_its_answer() {
        let (mut scribe, watch) = watched(all());
        scribe.history.watches[watch.0].spec.start_revision = 0;
        heard(&mut scribe, watch).truncate(1);
        assert_eq!(faults(&scribe, true), Vec::new());
        heard(&mut scribe, watch)[0].1 = Heard::Created(6);
        caught!(scribe, Fault::StaleStart { created: 6, floor: 7, .. });
        let Some(Fault::Missing { .. }) = faults(&scribe, true).pop() else {
            panic!("revision 7 did not come")
        };
    }

    #[test]
    fn an_event_not_asked_for_is_caught() {
        let (mut scribe, watch) = watched(WatchSpec { no_delete: true, ..all() });
        let gone = scribe.model.changes()[&5].clone();
        let late = Heard::Events { revision: 7, events: gone, fragment: false };
        heard(&mut scribe, watch).insert(4, (990, late));
        caught!(scribe, Fault::Filter { .. });
        let (mut scribe, watch) = watched(WatchSpec::new(b"a", b"", 2));
        let other = scribe.model.changes()[&3].clone();
        events(&mut scribe, watch, 1).extend(other);
        caught!(scribe, Fault::Filter { .. });
    }

    #[test]
    fn events_out_of_order_are_caught() {
        let (mut scribe, watch) = watched(all());
        heard(&mut scribe, watch).swap(1, 2);
        caught!(scribe, Fault::Order { last: 3, .. });
        // Within a revision, too.
        let (mut scribe, watch) = watched(all());
        events(&mut scribe, watch, 5).reverse();
        caught!(scribe, Fault::Order { last: 6, .. });
    }

    #[test]
    fn an_event_that_comes_twice_is_caught() {
        let (mut scribe, watch) = watched(all());
        let again = heard(&mut scribe, watch)[3].clone();
        heard(&mut scribe, watch).insert(4, again);
        caught!(scribe, Fault::Twice { .. });
        let (mut scribe, watch) = watched(all());
        let again = events(&mut scribe, watch, 5)[0].clone();
        events(&mut scribe, watch, 5).push(again);
        caught!(scribe, Fault::Twice { .. });
    }

    fn torn(fragment: bool) -> Scribe {
        let (mut scribe, watch) = watched(all());
        let second = events(&mut scribe, watch, 5).pop().expect("two events");
        let rest = Heard::Events { revision: 6, events: vec![second], fragment: false };
        heard(&mut scribe, watch).insert(6, (990, rest));
        if let Heard::Events { fragment: flag, .. } = &mut heard(&mut scribe, watch)[5].1 {
            *flag = fragment;
        }
        scribe
    }

    #[test]
    fn a_torn_revision_is_caught_unless_fragmented() {
        assert_eq!(faults(&torn(true), true), Vec::new());
        caught!(torn(false), Fault::Torn { .. });
    }

    #[test]
    fn progress_that_runs_ahead_is_caught() {
        let (mut scribe, watch) = watched(all());
        heard(&mut scribe, watch).insert(3, (990, Heard::Progress(3)));
        assert_eq!(faults(&scribe, true), Vec::new());
        heard(&mut scribe, watch)[3].1 = Heard::Progress(4);
        caught!(scribe, Fault::EarlyProgress { progress: 4, .. });
        caught!(scribe, Fault::BehindProgress { progress: 4, .. });
    }

    #[test]
    fn progress_between_the_fragments_of_a_revision_is_caught() {
        let mut scribe = torn(true);
        heard(&mut scribe, WatchId(0)).insert(6, (990, Heard::Progress(6)));
        caught!(scribe, Fault::EarlyProgress { progress: 6, .. });
    }

    #[test]
    fn impossible_progress_is_caught() {
        let (mut scribe, watch) = watched(all());
        for progress in [6, 8] {
            heard(&mut scribe, watch).push((990, Heard::Progress(progress)));
            caught!(scribe, Fault::ImpossibleProgress { .. });
            heard(&mut scribe, watch).pop();
        }
        heard(&mut scribe, watch).push((990, Heard::Progress(7)));
        assert_eq!(faults(&scribe, true), Vec::new());
        // Below the start of a watch in the future.
        let (mut scribe, watch) = watched(WatchSpec::new(b"a", b"z", 20));
        heard(&mut scribe, watch).push((990, Heard::Progress(7)));
        caught!(scribe, Fault::ImpossibleProgress { progress: 7, least: 19, .. });
    }

    #[test]
    fn stream_wide_progress_speaks_for_every_watch() {
        let (mut scribe, watch) = watched(all());
        let other = scribe.history.watch(9, 9, 980, WatchSpec::new(b"a", b"", 2));
        scribe.history.hear(other, 981, Heard::Created(7));
        let fresh = scribe.history.watch(9, 9, 982, all());
        scribe.history.hear_stream(9, 990, 7);
        assert!(matches!(heard(&mut scribe, watch).last(), Some((_, Heard::Progress(7)))));
        assert!(heard(&mut scribe, fresh).is_empty());
        // The other one has not had its events.
        caught!(scribe, Fault::EarlyProgress { progress: 7, .. });
    }

    #[test]
    fn an_event_before_the_start_is_caught() {
        let (mut scribe, watch) = watched(WatchSpec::new(b"a", b"z", 4));
        let old = scribe.model.changes()[&3].clone();
        let early = Heard::Events { revision: 7, events: old, fragment: false };
        heard(&mut scribe, watch).insert(1, (985, early));
        caught!(scribe, Fault::BeforeStart { start: 4, .. });
        // A watch of the future that hears of the present.
        let (mut scribe, watch) = watched(WatchSpec::new(b"a", b"z", 9));
        let present = scribe.model.changes()[&7].clone();
        let early = Heard::Events { revision: 7, events: present, fragment: false };
        heard(&mut scribe, watch).push((985, early));
        caught!(scribe, Fault::BeforeStart { start: 9, .. });
    }

    #[test]
    fn a_gap_is_caught_wherever_it_is() {
        let (mut scribe, watch) = watched(all());
        heard(&mut scribe, watch).remove(1);
        caught!(scribe, Fault::MissingAtStart { start: 2, .. });
        let (mut scribe, watch) = watched(all());
        heard(&mut scribe, watch).remove(3);
        caught!(scribe, Fault::Missing { .. });
        // Half a revision: etcd once lost deletes at a compacted revision.
        let (mut scribe, watch) = watched(all());
        events(&mut scribe, watch, 5).remove(1);
        caught!(scribe, Fault::Missing { .. });
        let (mut scribe, watch) = watched(all());
        heard(&mut scribe, watch).pop();
        assert_eq!(faults(&scribe, false), Vec::new());
        assert!(matches!(faults(&scribe, true).as_slice(), [Fault::Missing { .. }]));
    }

    #[test]
    fn invented_events_are_caught() {
        let (mut scribe, watch) = watched(all());
        events(&mut scribe, watch, 2).push(event_of(3, "foreign"));
        caught!(scribe, Fault::Invented { .. });
    }

    #[test]
    fn altered_events_are_caught() {
        let (mut scribe, watch) = watched(all());
        events(&mut scribe, watch, 2)[0].kv.as_mut().expect("a key").value = bytes("x");
        caught!(scribe, Fault::Altered { .. });
        // A delete carries nothing but key and revision.
        let (mut scribe, watch) = watched(all());
        events(&mut scribe, watch, 4)[0].kv.as_mut().expect("a key").version = 2;
        caught!(scribe, Fault::Altered { .. });
    }

    #[test]
    fn wrong_creations_are_caught() {
        let (mut scribe, watch) = watched(all());
        events(&mut scribe, watch, 3)[0].kv.as_mut().expect("a key").create_revision = 4;
        caught!(scribe, Fault::Creation { says: "creates", .. });
        let (mut scribe, watch) = watched(all());
        events(&mut scribe, watch, 5)[0].kv.as_mut().expect("a key").create_revision = 2;
        caught!(scribe, Fault::Creation { says: "changes", .. });
    }

    #[test]
    fn wrong_previous_values_are_caught() {
        let (mut scribe, watch) = watched(all());
        events(&mut scribe, watch, 3)[0].prev_kv.as_mut().expect("a value").version = 9;
        caught!(scribe, Fault::Previous { .. });
        events(&mut scribe, watch, 3)[0].prev_kv = None;
        caught!(scribe, Fault::Previous { .. });
        // Unless it may have been compacted by then.
        scribe.ask(1, compact(4));
        caught!(scribe, Fault::Previous { .. });
        heard(&mut scribe, watch)[3].0 = 999;
        assert_eq!(faults(&scribe, true), Vec::new());
        let (mut scribe, watch) = watched(WatchSpec { prev_kv: false, ..all() });
        let previous = scribe.model.changes()[&4][0].prev_kv.clone();
        events(&mut scribe, watch, 3)[0].prev_kv = previous;
        caught!(scribe, Fault::Previous { .. });
    }

    #[test]
    fn impossible_headers_are_caught() {
        for wrong in [4, 8] {
            let (mut scribe, watch) = watched(all());
            if let Heard::Events { revision, .. } = &mut heard(&mut scribe, watch)[4].1 {
                *revision = wrong;
            }
            caught!(scribe, Fault::Header { last: 5, .. });
        }
    }

    #[test]
    fn a_compaction_cancels_only_whom_it_deprives() {
        let deprived = |compaction: i64, told: i64| {
            let (mut scribe, watch) = watched(all());
            heard(&mut scribe, watch).truncate(3);
            let asked = scribe.ask(1, compact(compaction));
            let at = scribe.history.op(asked).call + 1;
            scribe.history.hear(watch, at, Heard::Compacted(told));
            scribe
        };
        // Up to 3 was delivered, 4 is needed next.
        assert_eq!(faults(&deprived(6, 6), true), Vec::new());
        assert_eq!(faults(&deprived(5, 5), true), Vec::new());
        caught!(deprived(4, 4), Fault::NeedlessCancel { compacted: 4, next: 4 });
        caught!(deprived(6, 5), Fault::UnknownCompaction { compacted: 5 });
        let mut early = deprived(6, 6);
        heard(&mut early, WatchId(0))[3].0 = 5;
        caught!(early, Fault::UnknownCompaction { compacted: 6 });
    }

    #[test]
    fn a_cancelled_watch_is_silent() {
        let (mut scribe, watch) = watched(all());
        heard(&mut scribe, watch).insert(3, (990, Heard::Canceled));
        caught!(scribe, Fault::AfterEnd);
        heard(&mut scribe, watch).truncate(4);
        assert_eq!(faults(&scribe, true), Vec::new());
    }

    #[test]
    fn a_restarted_watch_goes_on_without_a_gap() {
        let broken = |from: i64| {
            let (mut scribe, watch) = watched(all());
            heard(&mut scribe, watch).insert(3, (990, Heard::Restarted(from)));
            heard(&mut scribe, watch).insert(4, (990, Heard::Created(7)));
            scribe
        };
        assert_eq!(faults(&broken(4), true), Vec::new());
        caught!(broken(3), Fault::MissingAtStart { start: 3, .. });
        caught!(broken(5), Fault::Skipped { from: 5, .. });
        // Going back is the client's right: it hears the same again.
        let (mut scribe, watch) = watched(all());
        let again = heard(&mut scribe, watch)[2..].to_vec();
        heard(&mut scribe, watch).push((990, Heard::Restarted(3)));
        heard(&mut scribe, watch).extend(again);
        assert_eq!(faults(&scribe, true), Vec::new());
    }
}
