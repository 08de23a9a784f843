//! The hub of one group's replica. Pure but for the sinks it offers to; see `watch.rs`.
//!
//! *A range that changes.* A watch that is not inside the group's range is closed, when it is created
//! or when the range shrinks, before anything is offered that happened later: what comes behind
//! may leave out what its keys saw in the group that has them now, so neither an event nor a
//! progress would be true of it. The range is published before what happens under it is fed, so the
//! hub looks at its version before it offers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::group::{WatchEvent, WatchOutput, WatchSink, WatchSpec};
use proto::mvccpb::{Event, KeyValue, event::EventType};
use proto::{KeyRange, limits};

use crate::charter;
use crate::engine::EngineError;
use crate::machine::effect::{ChangeEvent, RevisionEvents};
use crate::machine::{NO_SHELF, Published};
use crate::store::Store;
use crate::store::changes::Change;
use crate::store::view::{Found, View};

/// Names a client stream at the hub.
pub type SinkId = u64;

type WatcherId = (SinkId, u64);

struct Stream {
    sink: Arc<dyn WatchSink>,
    /// Highest key of a watch created on it.
    newest: u64,
    /// Progress that waits for a revision: the ask with the lowest, and the last one.
    asked: Vec<Asked>,
}

/// See [`Hub::progress_at`].
#[derive(Clone, Copy)]
struct Asked {
    revision: i64,
    /// It is about watches with keys up to this.
    newest: u64,
}

struct Watcher {
    spec: WatchSpec,
    /// Next revision it has not been given.
    next: i64,
    synced: bool,
    /// Nothing was offered since the last ask for progress.
    idle: bool,
}

/// How a slice of history ended.
enum Slice {
    /// The watcher needs no more.
    Synced,
    /// It could go on at once.
    More,
    /// Its sink has no room.
    Full,
}

/// See the module.
pub struct Hub {
    store: Arc<Store>,
    published: Arc<Published>,
    /// Newest revision fed.
    revision: i64,
    /// Version of the range that all watches are inside of.
    range_version: u64,
    /// Client streams with progress that waits.
    asking: BTreeSet<SinkId>,
    streams: BTreeMap<SinkId, Stream>,
    watchers: BTreeMap<WatcherId, Watcher>,
    /// Synced watchers by what they watch; many watch the same.
    ranges: BTreeMap<KeyRange, BTreeSet<WatcherId>>,
    unsynced: BTreeSet<WatcherId>,
    /// The unsynced watcher whose turn comes next.
    turn: WatcherId,
    /// What the events fed since the last flush give to whom.
    pending: BTreeMap<WatcherId, Vec<Arc<WatchEvent>>>,
    pending_revisions: usize,
}

impl Hub {
    /// A hub that has been fed nothing beyond the published revision.
    pub fn new(store: Arc<Store>, published: Arc<Published>) -> Hub {
        Hub {
            store,
            revision: published.revision(),
            range_version: published.range_version(),
            published,
            asking: BTreeSet::new(),
            streams: BTreeMap::new(),
            watchers: BTreeMap::new(),
            ranges: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            turn: (0, 0),
            pending: BTreeMap::new(),
            pending_revisions: 0,
        }
    }

    /// Registers a client stream.
    pub fn open(&mut self, id: SinkId, sink: Arc<dyn WatchSink>) {
        self.streams.insert(id, Stream { sink, newest: 0, asked: Vec::new() });
    }

    /// Forgets a client stream and all its watches.
    pub fn close(&mut self, id: SinkId) {
        self.streams.remove(&id);
        self.asking.remove(&id);
        let keys: Vec<_> = self.watchers.range((id, 0)..=(id, u64::MAX)).map(|(k, _)| *k).collect();
        for key in keys {
            self.remove(key);
        }
    }

    /// Adds a watch. It catches up at the next [`Hub::catch_up`] if it starts in the past. One that
    /// the group's charter does not admit, or that is not inside its range, is closed: its router
    /// asks again, by a newer map.
    pub fn create(&mut self, sink: SinkId, spec: WatchSpec) {
        self.flush();
        let id = (sink, spec.key);
        let charter = self.published.charter();
        let owner = charter::check_owner(&charter, spec.group, spec.tenant, spec.namespace);
        let inside = spec.range.is_within(&self.published.range()) && !self.has_left();
        if !inside || owner.and(charter::check_standing(charter.standing())).is_err() {
            return self.refuse(id);
        }
        if let Some(stream) = self.streams.get_mut(&sink) {
            stream.newest = stream.newest.max(spec.key);
        }
        let next = spec.start_revision;
        let synced = next > self.revision;
        if synced {
            self.ranges.entry(spec.range.clone()).or_default().insert(id);
        } else {
            self.unsynced.insert(id);
        }
        self.watchers.insert(id, Watcher { spec, next, synced, idle: true });
    }

    /// Are the rows another group's, or gone?
    fn has_left(&self) -> bool {
        self.published.rows() == NO_SHELF
    }

    /// Closes a watch that this group does not serve, or not now.
    fn refuse(&mut self, (sink, key): WatcherId) {
        let Some(stream) = self.streams.get(&sink) else { return };
        if stream.sink.offer(WatchOutput::Closed { key }).is_err() {
            // It is full: letting go of it says that all its watches are closed.
            self.close(sink);
        }
    }

    /// Removes a watch.
    pub fn cancel(&mut self, sink: SinkId, key: u64) {
        self.flush();
        self.remove((sink, key));
    }

    fn remove(&mut self, id: WatcherId) {
        self.pending.remove(&id);
        self.unsynced.remove(&id);
        if let Some(watcher) = self.watchers.remove(&id)
            && let Some(set) = self.ranges.get_mut(&watcher.spec.range)
        {
            set.remove(&id);
            if set.is_empty() {
                self.ranges.remove(&watcher.spec.range);
            }
        }
    }

    fn unsync(&mut self, id: WatcherId, next: i64) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        watcher.next = next;
        watcher.synced = false;
        if let Some(set) = self.ranges.get_mut(&watcher.spec.range) {
            set.remove(&id);
            if set.is_empty() {
                self.ranges.remove(&watcher.spec.range);
            }
        }
        self.unsynced.insert(id);
    }

    /// Feeds one revision. They come in order; after a gap the hub is told [`Hub::behind`].
    pub fn feed(&mut self, happened: &RevisionEvents) {
        if happened.revision <= self.revision {
            return;
        }
        // Of a split tenant a group has only some revisions.
        assert!(happened.after <= self.revision, "the hub is fed every revision of its group");
        self.revision = happened.revision;
        for change in &happened.events {
            self.feed_event(change, happened.revision);
        }
        self.pending_revisions += 1;
        if self.pending_revisions >= limits::WATCH_BATCH_REVISIONS {
            self.flush();
        }
    }

    fn feed_event(&mut self, change: &ChangeEvent, revision: i64) {
        let deleted = change.event.r#type() == EventType::Delete;
        let mut with_previous: Option<Option<Arc<WatchEvent>>> = None;
        let mut behind = Vec::new();
        // Ranges that begin above the key cannot hold it.
        for (range, watchers) in &self.ranges {
            if range.start.as_ref() > change.key() {
                break;
            }
            if !range.contains(change.key()) {
                continue;
            }
            for id in watchers {
                let Some(watcher) = self.watchers.get(id) else { continue };
                let spec = &watcher.spec;
                let filtered = if deleted { spec.no_delete } else { spec.no_put };
                if filtered || watcher.next > revision {
                    continue;
                }
                let event = if spec.prev_kv {
                    let read = || change.with_previous(self.store.extents()).ok();
                    with_previous.get_or_insert_with(read).clone()
                } else {
                    Some(change.event.clone())
                };
                match event {
                    Some(event) => self.pending.entry(*id).or_default().push(event),
                    None => behind.push(*id),
                }
            }
        }
        for id in behind {
            // What is pending for it comes again with its history.
            let pending = self.pending.remove(&id).unwrap_or_default();
            let next = pending.first().map_or(revision, revision_of);
            self.unsync(id, next);
        }
    }

    /// Offers what was fed. The revision in the header is that of the last event.
    pub fn flush(&mut self) {
        self.pending_revisions = 0;
        self.ranged();
        for (id, events) in std::mem::take(&mut self.pending) {
            let first = events.first().map_or(self.revision, revision_of);
            let last = events.last().map_or(self.revision, revision_of);
            let Some(stream) = self.streams.get(&id.0) else { continue };
            let output = WatchOutput::Events { key: id.1, revision: last, events };
            if stream.sink.offer(output).is_err() {
                self.unsync(id, first);
            } else if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.idle = false;
            }
        }
    }

    /// Closes the watches that are not inside the group's range any more, or all if its rows are
    /// another group's. What was fed for them comes again where their keys are now.
    pub fn ranged(&mut self) {
        // Before the range: with the version came a range that is as new.
        let version = self.published.range_version();
        let left = self.has_left() && !self.watchers.is_empty();
        if std::mem::replace(&mut self.range_version, version) == version && !left {
            return;
        }
        let range = self.published.range();
        let stays = |it: &Watcher| !left && it.spec.range.is_within(&range);
        let outside = self.watchers.iter().filter(|(_, it)| !stays(it));
        let outside: Vec<WatcherId> = outside.map(|(id, _)| *id).collect();
        for id in outside {
            self.remove(id);
            self.refuse(id);
        }
        // Keys may have come that were changed elsewhere before: who watches them from there reads it.
        self.behind(self.published.revision());
    }

    /// The hub missed revisions, up to `revision`: everybody catches up from history who does
    /// not start beyond them.
    pub fn behind(&mut self, revision: i64) {
        self.flush();
        if revision <= self.revision {
            return;
        }
        let missed = self.revision + 1;
        let lacking = |watcher: &Watcher| watcher.synced && watcher.next <= revision;
        let watchers = self.watchers.iter().filter(|(_, watcher)| lacking(watcher));
        let lacking: Vec<_> = watchers.map(|(id, watcher)| (*id, watcher.next)).collect();
        for (id, next) in lacking {
            self.unsync(id, next.max(missed));
        }
        self.revision = revision;
    }

    /// Answers an ask for the whole stream's progress, if every watch of it is synced.
    pub fn progress(&mut self, sink: SinkId) {
        self.flush();
        let mut watchers = self.watchers.range((sink, 0)..=(sink, u64::MAX));
        if watchers.all(|(_, watcher)| watcher.synced)
            && let Some(stream) = self.streams.get(&sink)
        {
            let output = WatchOutput::Progress { revision: self.revision, newest: stream.newest };
            // A full sink means the client is slow: it asks again.
            let _ = stream.sink.offer(output);
        }
    }

    /// Answers an ask for the whole stream's progress once the hub has reached `revision` and every
    /// watch of it is synced that is there now.
    pub fn progress_at(&mut self, sink: SinkId, revision: i64) {
        self.flush();
        let Some(stream) = self.streams.get_mut(&sink) else { return };
        let asked = Asked { revision, newest: stream.newest };
        match stream.asked.as_mut_slice() {
            [lowest, last] => {
                if last.revision < lowest.revision {
                    *lowest = *last;
                }
                *last = asked;
            }
            _ => stream.asked.push(asked),
        }
        self.asking.insert(sink);
        self.answer_asked(sink);
    }

    /// Answers what was asked for a revision that is reached. Everything fed must have been offered.
    fn answer_asked(&mut self, sink: SinkId) {
        let Some(stream) = self.streams.get_mut(&sink) else { return };
        let synced = |newest| {
            let mut watchers = self.watchers.range((sink, 0)..=(sink, newest));
            watchers.all(|(_, watcher)| watcher.synced)
        };
        let reached = stream.asked.iter().filter(|asked| asked.revision <= self.revision);
        let answered = reached.map(|asked| asked.newest).filter(|newest| synced(*newest)).max();
        let Some(newest) = answered else { return };
        let output = WatchOutput::Progress { revision: self.revision, newest };
        // Without room it waits for the next turn.
        if stream.sink.offer(output).is_ok() {
            let revision = self.revision;
            stream.asked.retain(|asked| asked.revision > revision || asked.newest > newest);
        }
        if stream.asked.is_empty() {
            self.asking.remove(&sink);
        }
    }

    fn answer_all_asked(&mut self) {
        for sink in self.asking.iter().copied().collect::<Vec<_>>() {
            self.answer_asked(sink);
        }
    }

    /// Answers an ask for one watch's progress, if it is synced and was idle.
    pub fn watch_progress(&mut self, sink: SinkId, key: u64) {
        self.flush();
        let revision = self.revision;
        let Some(watcher) = self.watchers.get_mut(&(sink, key)) else { return };
        let idle = std::mem::replace(&mut watcher.idle, true);
        if watcher.synced
            && idle
            && revision + 1 >= watcher.spec.start_revision
            && let Some(stream) = self.streams.get(&sink)
        {
            let _ = stream.sink.offer(WatchOutput::WatchProgress { key, revision });
        }
    }

    /// Gives unsynced watchers a slice of history each, as long as `go_on` says so after each of
    /// them; the next call begins where this one ended. Says whether any is left that could go
    /// on at once; those whose sinks are full wait for the next call.
    pub fn catch_up(&mut self, go_on: &mut dyn FnMut() -> bool) -> Result<bool, EngineError> {
        self.flush();
        let more = self.catch_up_in_turn(go_on)?;
        self.answer_all_asked();
        Ok(more)
    }

    fn catch_up_in_turn(&mut self, go_on: &mut dyn FnMut() -> bool) -> Result<bool, EngineError> {
        let mut more = false;
        // What one watch of a sink finds no room for, the others would not either.
        let mut full = BTreeSet::new();
        let ids: Vec<_> = self.in_turn().collect();
        for (at, id) in ids.iter().enumerate() {
            if full.contains(&id.0) {
                continue;
            }
            match self.catch_up_one(*id)? {
                Slice::Synced => {}
                Slice::More => more = true,
                Slice::Full => {
                    full.insert(id.0);
                }
            }
            if let Some(next) = ids.get(at + 1)
                && !go_on()
            {
                self.turn = *next;
                return Ok(true);
            }
        }
        Ok(more)
    }

    /// Unsynced watchers, from the one whose turn it is around to the one before it.
    fn in_turn(&self) -> impl Iterator<Item = WatcherId> {
        let first = self.unsynced.range(self.turn..);
        first.chain(self.unsynced.range(..self.turn)).copied()
    }

    fn catch_up_one(&mut self, id: WatcherId) -> Result<Slice, EngineError> {
        let Some(stream) = self.streams.get(&id.0) else { return Ok(Slice::Full) };
        let sink = stream.sink.clone();
        let Some(watcher) = self.watchers.get(&id) else { return Ok(Slice::Synced) };
        if sink.is_closed() {
            return Ok(Slice::Full);
        }
        let (from, to) = (watcher.next, self.revision);
        let spec = watcher.spec.clone();
        let shelves = self.published.shelves();
        let rows = shelves.own;
        if self.published.rows() == NO_SHELF {
            return Ok(self.end(id, WatchOutput::Closed { key: id.1 }));
        }
        let limit = limits::WATCH_BATCH_REVISIONS;
        let (history, done) = self.store.history(&shelves, from, to, limit)?;
        let view = self.store.view(&shelves.pieces, to);
        let floor = self.published.compacted();
        let mut events = Vec::new();
        for (revision, changes) in &history {
            for change in changes.iter() {
                if !spec.range.contains(&change.key) {
                    continue;
                }
                let filtered = if change.deleted { spec.no_delete } else { spec.no_put };
                if !filtered {
                    // What stood before the compacted revision is gone, swept already or not.
                    let prev_kv = spec.prev_kv && *revision > floor;
                    match replay(&view, change, *revision, prev_kv) {
                        Ok(event) => events.push(WatchEvent::new(event, change.place)),
                        Err(EngineError::Value(what)) if self.published.rows() == rows => {
                            tracing::error!(what, "a watch ends");
                            return Ok(self.end(id, WatchOutput::Closed { key: id.1 }));
                        }
                        Err(EngineError::Value(_)) => return Ok(Slice::More),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        // A snapshot may have replaced the rows meanwhile: read its own.
        if self.published.rows() != rows {
            return Ok(Slice::More);
        }
        // With another range its keys may have gone on elsewhere: it is closed first.
        if self.published.range_version() != self.range_version {
            return Ok(Slice::More);
        }
        // Compaction may have taken rows away meanwhile: look after reading.
        let compacted = self.published.compacted();
        if from < compacted {
            return Ok(self.end(id, WatchOutput::Compacted { key: id.1, revision: compacted }));
        }
        if !events.is_empty() {
            let output = WatchOutput::Events { key: id.1, revision: to, events };
            if sink.offer(output).is_err() {
                return Ok(Slice::Full);
            }
        }
        let Some(watcher) = self.watchers.get_mut(&id) else { return Ok(Slice::Synced) };
        watcher.next = done + 1;
        watcher.idle = false;
        if watcher.next > self.revision {
            watcher.synced = true;
            self.unsynced.remove(&id);
            self.ranges.entry(watcher.spec.range.clone()).or_default().insert(id);
            return Ok(Slice::Synced);
        }
        Ok(Slice::More)
    }

    /// Ends a watch with its last word, if there is room for it.
    fn end(&mut self, id: WatcherId, word: WatchOutput) -> Slice {
        let stream = self.streams.get(&id.0);
        if stream.is_none_or(|stream| stream.sink.offer(word).is_err()) {
            return Slice::Full;
        }
        self.remove(id);
        Slice::Synced
    }

    /// Ends all watches: the replica is going away. A sink that is full is not told; the hub is
    /// to be dropped, and with it its hold of the sink, which says the same.
    pub fn shut(&mut self) {
        self.flush();
        for id in self.watchers.keys() {
            if let Some(stream) = self.streams.get(&id.0) {
                let _ = stream.sink.offer(WatchOutput::Closed { key: id.1 });
            }
        }
        self.watchers.clear();
        self.ranges.clear();
        self.unsynced.clear();
    }

    /// What synced watches look at, each stretch of keys once, so many at most.
    pub fn watched(&self, max: usize) -> Vec<KeyRange> {
        let stretches = self.ranges.keys().filter(|range| !range.is_single());
        stretches.take(max).cloned().collect()
    }

    /// (all, synced) watchers, for metrics.
    pub fn counts(&self) -> (usize, usize) {
        (self.watchers.len(), self.watchers.len() - self.unsynced.len())
    }

    /// Is no client stream open?
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Does any watcher still have to catch up?
    pub fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Does an answer wait for room in a sink, or for a watcher that has to catch up?
    pub fn owes_progress(&self) -> bool {
        let due = |sink| self.streams.get(sink).into_iter().flat_map(|stream| &stream.asked);
        self.asking.iter().flat_map(due).any(|asked| asked.revision <= self.revision)
    }

    /// Newest revision fed.
    pub fn revision(&self) -> i64 {
        self.revision
    }
}

fn revision_of(event: &Arc<WatchEvent>) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// Makes the event of a change of `revision` anew from history, and says its place among those of
/// its revision, if that is wanted: of a deletion only its row knows it.
fn replay(
    view: &View,
    change: &Change,
    revision: i64,
    prev_kv: bool,
) -> Result<Event, EngineError> {
    let key = change.key.clone();
    let row = match &change.overwritten {
        Some(row) => Some(row.clone()),
        None if change.deleted => None,
        None => view.exactly(&change.key, revision)?,
    };
    let row = row.unwrap_or_default();
    let (kind, kv) = if change.deleted {
        (EventType::Delete, KeyValue { key, mod_revision: revision, ..Default::default() })
    } else {
        (EventType::Put, view.kv(key, &Found { revision, row })?)
    };
    let mut previous = None;
    if prev_kv && change.previous > 0 {
        let row = view.exactly(&change.key, change.previous)?;
        if let Some(row) = row {
            let found = Found { revision: change.previous, row };
            previous = Some(view.kv(change.key.clone(), &found)?);
        }
    }
    Ok(Event { r#type: kind as i32, kv: Some(kv), prev_kv: previous })
}
