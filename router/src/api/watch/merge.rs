//! Watches over all groups of an etcd, put together from a watch at each group. Pure: no clock, no
//! channel; what is to be asked of whom is left in [`Merge::take_asks`].
//!
//! A watch has a *part* at each group that has keys of its range. With one part nothing is held back:
//! the group's hub gives the events in order. With more, events wait until all parts are complete up
//! to their revision, and then leave whole, in the order of the groups' keys (events do not say which
//! operation of their revision they come from).
//!
//! *Marks.* A part's mark is the revision up to which it has had everything that concerns its keys:
//!
//! * up to an event that came, because a hub tells revisions whole and in order;
//! * up to the revision that its hub has reached;
//! * up to R, if it has had everything up to `last`, and home has said that who has `last` has
//!   everything up to R ([`Span`]).
//!
//! Nobody pushes marks to us: when events wait, or the client asks for progress, home is asked once
//! for all watches of the stream, and then the hubs that are not as far, to tell when they are. An
//! etcd on one group needs none of this, and has none of it.
//!
//! *Another map.* What a group says is about the range that it has at that place of its log, and what
//! home says about the places that it says it with. So an answer of home with other places is not
//! used: if they are newer, all watches are created anew by them, from behind what each has
//! released; what was held back comes again, from whoever has the keys now, also when their group
//! was absorbed by another. Promises of before are forgotten with the places.
//!
//! *Running ahead.* A part that is far ahead of the others of its watch is cancelled, once too much
//! waits, and created again from there when it is the one that the others wait for. The part that is
//! behind all others is never stopped, so somebody always moves.
//!
//! Invariants:
//! * a watch hears whole revisions, ascending, each once;
//! * what is held is above the lowest mark of its watch, and at or below the mark of its part.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use proto::{
    GroupId, KeyRange, NamespaceId, TenantId,
    cluster::group::Span,
    group::{WatchEvent, WatchOutput, WatchSpec},
    limits,
};

use super::places::Places;

/// What a watch is to be told.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) range: KeyRange,
    /// First revision wanted; at least 1.
    pub(super) start_revision: i64,
    pub(super) prev_kv: bool,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
}

/// What is to be asked.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// All hubs are to be let go of.
    Reset,
    /// At the hub of its group.
    Create(WatchSpec),
    /// At the hub of a group, a watch by its key.
    Cancel(GroupId, u64),
    Progress(GroupId),
    ProgressAt(GroupId, i64),
    WatchProgress(GroupId, u64),
    /// Of home; one at a time. Not at once if the last answer was of no use.
    Span {
        weak: bool,
        later: bool,
    },
}

/// What the stream is told. Keys are those that watches were created with.
#[derive(Debug)]
pub(super) enum Output {
    Watch(WatchOutput),
    /// Every watch has had everything up to the revision.
    AllHave(i64),
}

/// A watch at one group.
struct Part {
    group: GroupId,
    range: KeyRange,
    /// At the hub; 0 while it is not there.
    key: u64,
    mark: i64,
    /// It ran ahead and was cancelled.
    parked: bool,
}

struct Watch {
    wish: Wish,
    /// In the order of their keys.
    parts: Vec<Part>,
    /// By revision, with the places of their parts.
    held: BTreeMap<i64, Vec<(usize, Arc<WatchEvent>)>>,
    held_bytes: usize,
    /// Nothing was released since the last tick.
    idle: bool,
}

// === impl Watch ===

impl Watch {
    fn new(wish: Wish) -> Watch {
        let (parts, held) = (Vec::new(), BTreeMap::new());
        Watch { wish, parts, held, held_bytes: 0, idle: true }
    }

    /// Up to where it is complete.
    fn mark(&self) -> i64 {
        self.parts.iter().map(|part| part.mark).min().unwrap_or(0)
    }

    fn is_merged(&self) -> bool {
        self.parts.len() > 1
    }

    /// Divides its range among the groups, from behind `mark`; what was held comes again.
    fn divide(&mut self, places: &Places, mark: i64) {
        self.held.clear();
        self.held_bytes = 0;
        let part = |(group, range)| Part { group, range, key: 0, mark, parked: false };
        self.parts = places.within(&self.wish.range).map(part).collect();
    }

    fn hold(&mut self, at: usize, events: Vec<Arc<WatchEvent>>) {
        for event in events {
            self.held_bytes += event.encoded().len();
            self.held.entry(revision_of(&event)).or_default().push((at, event));
        }
    }

    /// Takes out what is complete, in outputs that are not too large.
    fn release(&mut self, key: u64, out: &mut Vec<Output>) {
        let later = self.held.split_off(&self.mark().saturating_add(1));
        let ready = std::mem::replace(&mut self.held, later);
        let mut revisions = ready.into_iter().peekable();
        while revisions.peek().is_some() {
            let (mut revision, mut events) = (0, Vec::new());
            for (of, mut parts) in revisions.by_ref().take(limits::WATCH_BATCH_REVISIONS) {
                // Stable: within a part as they came.
                parts.sort_by_key(|(at, _)| *at);
                revision = of;
                events.extend(parts.into_iter().map(|(_, event)| event));
            }
            self.held_bytes -= events.iter().map(|event| event.encoded().len()).sum::<usize>();
            self.idle = false;
            out.push(Output::Watch(WatchOutput::Events { key, revision, events }));
        }
    }
}

/// What is known of a group under the places of now.
#[derive(Default)]
struct Known {
    /// Progress that was asked for and has not come: at which revision, and for watches up to which
    /// key.
    asked: Option<(i64, u64)>,
    /// (last, R) of the asks: see the module.
    promises: Vec<(i64, i64)>,
    /// Its hub is not there.
    lost: bool,
}

/// What waits for an answer of home that is asked for later than now.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Wants {
    /// Progress of the stream.
    progress: bool,
    /// Progress of the watches that were idle at the tick.
    tick: bool,
    /// Whether the places are still these.
    places: bool,
}

impl Wants {
    fn join(self, other: Wants) -> Wants {
        Wants {
            progress: self.progress || other.progress,
            tick: self.tick || other.tick,
            places: self.places || other.places,
        }
    }
}

/// Home is being asked.
struct Asking {
    /// What for.
    wants: Wants,
    /// A revision that it must know of, because somebody has told us of it.
    wanted: i64,
}

/// Progress that waits until every part has reached a revision.
struct Round {
    revision: i64,
    wants: Wants,
}

/// See the module.
pub(super) struct Merge {
    tenant: TenantId,
    namespace: NamespaceId,
    places: Places,
    watches: BTreeMap<u64, Watch>,
    /// The watch of each part that is at a hub.
    parts: HashMap<u64, u64>,
    next_key: u64,
    groups: BTreeMap<GroupId, Known>,
    /// Watches that hold events.
    holding: BTreeSet<u64>,
    /// Home's last answer that holds for these places.
    span: Option<(i64, BTreeMap<GroupId, i64>)>,
    asking: Option<Asking>,
    wants: Wants,
    round: Option<Round>,
    /// Watches that get progress at the end of the round of a tick.
    ticked: BTreeSet<u64>,
    /// Home's last answer was of no use.
    useless: bool,
    asks: Vec<Ask>,
}

// === impl Merge ===

impl Merge {
    pub(super) fn new(tenant: TenantId, namespace: NamespaceId, places: Places) -> Merge {
        Merge {
            tenant,
            namespace,
            places,
            watches: BTreeMap::new(),
            parts: HashMap::new(),
            next_key: 1,
            groups: BTreeMap::new(),
            holding: BTreeSet::new(),
            span: None,
            asking: None,
            wants: Wants::default(),
            round: None,
            ticked: BTreeSet::new(),
            useless: false,
            asks: Vec::new(),
        }
    }

    /// What is to be asked, in order.
    pub(super) fn take_asks(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.asks)
    }

    /// Adds a watch. Keys ascend.
    pub(super) fn create(&mut self, key: u64, wish: Wish, out: &mut Vec<Output>) {
        let mut watch = Watch::new(wish);
        watch.divide(&self.places, watch.wish.start_revision - 1);
        self.watches.insert(key, watch);
        self.open(key, |_| true);
        self.poke(out);
    }

    pub(super) fn cancel(&mut self, key: u64, out: &mut Vec<Output>) {
        let Some(watch) = self.watches.remove(&key) else { return };
        self.holding.remove(&key);
        for part in watch.parts.iter().filter(|part| part.key != 0) {
            self.parts.remove(&part.key);
            self.asks.push(Ask::Cancel(part.group, part.key));
        }
        self.poke(out);
    }

    /// The client asks how far all its watches are.
    pub(super) fn progress(&mut self, out: &mut Vec<Output>) {
        match self.places.only() {
            Some(group) => self.asks.push(Ask::Progress(group)),
            None => {
                self.wants.progress = true;
                self.poke(out);
            }
        }
    }

    /// It is time to tell these watches how far they are, those of them that heard nothing lately.
    pub(super) fn tick(&mut self, keys: impl Iterator<Item = u64>, out: &mut Vec<Output>) {
        let only = self.places.only();
        for key in keys {
            let Some(watch) = self.watches.get_mut(&key) else { continue };
            match only {
                // The hub knows which are idle.
                Some(group) => {
                    let parts = watch.parts.iter().filter(|part| part.key != 0);
                    self.asks.extend(parts.map(|part| Ask::WatchProgress(group, part.key)));
                }
                None if std::mem::replace(&mut watch.idle, true) => {
                    self.ticked.insert(key);
                }
                None => {
                    self.ticked.remove(&key);
                }
            }
        }
        if !self.ticked.is_empty() {
            self.wants.tick = true;
            self.poke(out);
        }
    }

    /// Creates those parts of a watch at their hubs that are wanted and not there.
    fn open(&mut self, key: u64, wanted: impl Fn(&Part) -> bool) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        for part in watch.parts.iter_mut().filter(|part| part.key == 0 && wanted(part)) {
            if self.groups.entry(part.group).or_default().lost {
                continue;
            }
            part.parked = false;
            part.key = self.next_key;
            self.next_key += 1;
            self.parts.insert(part.key, key);
            self.asks.push(Ask::Create(WatchSpec {
                tenant: self.tenant,
                namespace: self.namespace,
                group: part.group,
                key: part.key,
                range: part.range.clone(),
                start_revision: (part.mark + 1).max(1),
                prev_kv: watch.wish.prev_kv,
                no_put: watch.wish.no_put,
                no_delete: watch.wish.no_delete,
            }));
        }
    }

    // --- what hubs say

    /// Is the key at a hub that of a watch that is there?
    pub(super) fn knows(&self, key: u64) -> bool {
        self.parts.contains_key(&key)
    }

    /// The hub of `group` is gone, or has closed a watch.
    pub(super) fn lost(&mut self, group: GroupId, out: &mut Vec<Output>) {
        *self.groups.entry(group).or_default() = Known { lost: true, ..Known::default() };
        for part in self.watches.values_mut().flat_map(|watch| &mut watch.parts) {
            if part.group == group && part.key != 0 {
                self.parts.remove(&part.key);
                part.key = 0;
            }
        }
        // Perhaps it has no such keys any more.
        self.wants.places = true;
        self.poke(out);
    }

    /// It can be asked again.
    pub(super) fn found(&mut self, group: GroupId, out: &mut Vec<Output>) {
        self.groups.entry(group).or_default().lost = false;
        for key in self.watches.keys().copied().collect::<Vec<_>>() {
            self.open(key, |part| part.group == group);
        }
        self.poke(out);
    }

    pub(super) fn heard(&mut self, group: GroupId, output: WatchOutput, out: &mut Vec<Output>) {
        match output {
            WatchOutput::Events { key, revision, events } => {
                self.events(key, revision, events, out);
            }
            WatchOutput::Progress { revision, newest } => {
                self.reached(group, revision, newest, out);
            }
            WatchOutput::WatchProgress { key, revision } => {
                if let Some(watch) = self.parts.get(&key) {
                    let key = *watch;
                    out.push(Output::Watch(WatchOutput::WatchProgress { key, revision }));
                }
            }
            WatchOutput::Compacted { key, revision } => {
                if let Some(watch) = self.parts.remove(&key) {
                    self.ended(watch, key);
                    let key = watch;
                    self.cancel(key, out);
                    out.push(Output::Watch(WatchOutput::Compacted { key, revision }));
                }
            }
            // Who has the hub sees to it.
            WatchOutput::Closed { .. } => {}
        }
    }

    /// A part is not at its hub any more.
    fn ended(&mut self, watch: u64, key: u64) {
        let parts = self.watches.get_mut(&watch).into_iter().flat_map(|watch| &mut watch.parts);
        parts.filter(|part| part.key == key).for_each(|part| part.key = 0);
    }

    fn events(
        &mut self,
        part_key: u64,
        revision: i64,
        events: Vec<Arc<WatchEvent>>,
        out: &mut Vec<Output>,
    ) {
        let Some(key) = self.parts.get(&part_key).copied() else { return };
        let Some(watch) = self.watches.get_mut(&key) else { return };
        let Some(at) = watch.parts.iter().position(|part| part.key == part_key) else { return };
        let Some(last) = events.last().map(revision_of) else { return };
        let (merged, lowest) = (watch.is_merged(), watch.mark());
        let full = watch.held_bytes > limits::WATCH_HELD_BYTES;
        let Some(part) = watch.parts.get_mut(at) else { return };
        if full && part.mark > lowest {
            part.parked = true;
            part.key = 0;
            self.parts.remove(&part_key);
            self.asks.push(Ask::Cancel(part.group, part_key));
            return;
        }
        part.mark = part.mark.max(last);
        if merged {
            watch.hold(at, events);
            self.keep_promise(key);
            self.moved(key, out);
            self.poke(out);
        } else {
            watch.idle = false;
            out.push(Output::Watch(WatchOutput::Events { key, revision, events }));
        }
    }

    /// A hub has reached `revision`, and so have all its watches with keys up to `newest`.
    fn reached(&mut self, group: GroupId, revision: i64, newest: u64, out: &mut Vec<Output>) {
        let known = self.groups.entry(group).or_default();
        let kept = known.promises.iter().filter(|(last, _)| *last <= revision);
        let mark = kept.map(|(_, promised)| *promised).max().unwrap_or(0).max(revision);
        known.promises.retain(|(last, _)| *last > revision);
        known.asked = known.asked.filter(|(at, _)| *at > revision);
        let mut covered = 0;
        for (key, watch) in &mut self.watches {
            let parts = watch.parts.iter_mut().filter(|part| part.group == group);
            for part in parts.filter(|part| part.key != 0 && part.key <= newest) {
                part.mark = part.mark.max(mark);
                covered = *key;
            }
        }
        if self.places.only().is_some() {
            // Keys at a hub ascend with those of the watches: created, and created anew, in order.
            let output = WatchOutput::Progress { revision, newest: covered };
            return out.push(Output::Watch(output));
        }
        for key in self.holding.iter().copied().collect::<Vec<_>>() {
            self.keep_promise(key);
            self.moved(key, out);
        }
        self.poke(out);
    }

    /// The marks of a watch have risen.
    fn moved(&mut self, key: u64, out: &mut Vec<Output>) {
        let Some(watch) = self.watches.get_mut(&key) else { return };
        watch.release(key, out);
        if watch.held.is_empty() {
            self.holding.remove(&key);
        } else {
            self.holding.insert(key);
        }
        let (lowest, room) = (watch.mark(), watch.held.is_empty());
        self.open(key, |part| part.parked && (room || part.mark <= lowest));
    }

    // --- what home says

    /// Home's answer.
    pub(super) fn span(&mut self, span: &Span, out: &mut Vec<Output>) {
        let Some(Asking { wants, wanted }) = self.asking.take() else { return };
        let told = Places::told(span);
        // A leader that is none any more does not know what has happened since.
        self.useless = told.as_ref() != Some(&self.places) || span.revision < wanted;
        if self.useless {
            self.wants = self.wants.join(wants);
            if let Some(places) = told {
                self.follow(places, out);
            }
            return self.poke(out);
        }
        let last = |part: &proto::cluster::group::SpanPart| {
            Some((GroupId(part.place.as_ref()?.group), part.last))
        };
        self.span = Some((span.revision, span.parts.iter().filter_map(last).collect()));
        if self.places.only().is_none() && (wants.progress || wants.tick) {
            self.round = Some(Round { revision: span.revision, wants });
        }
        self.poke(out);
    }

    /// Other places were told of, by home or by a map; followed if they are newer.
    pub(super) fn follow(&mut self, places: Places, out: &mut Vec<Output>) {
        if !places.replace(&self.places) {
            return;
        }
        let same_hub = places.only().is_some() && places.only() == self.places.only();
        self.places = places;
        if same_hub {
            return;
        }
        tracing::debug!("watching anew, by other places");
        self.useless = false;
        self.parts.clear();
        self.groups.clear();
        self.holding.clear();
        self.span = None;
        if let Some(round) = self.round.take() {
            self.wants = self.wants.join(round.wants);
        }
        // The client asks again, of one group as well as of several.
        if self.places.only().is_some() {
            self.wants = Wants::default();
            self.ticked.clear();
        }
        self.asks.push(Ask::Reset);
        for key in self.watches.keys().copied().collect::<Vec<_>>() {
            if let Some(watch) = self.watches.get_mut(&key) {
                let mark = watch.mark();
                watch.divide(&self.places, mark);
            }
            self.open(key, |_| true);
        }
        self.poke(out);
    }

    /// The revision that watches wait for and home's last answer does not tell of, 0 for none.
    fn wanted(&self) -> i64 {
        let known = self.span.as_ref().map_or(0, |(revision, _)| *revision);
        let first = |key| self.watches.get(key)?.held.keys().next().copied();
        let firsts = self.holding.iter().filter_map(first).filter(|first| *first > known);
        firsts.max().unwrap_or(0)
    }

    /// Asks for whatever is waited for, and not asked for yet; ends what has all that it waits for.
    fn poke(&mut self, out: &mut Vec<Output>) {
        if self.places.only().is_some() {
            return;
        }
        self.keep_promises(out);
        self.end_round(out);
        let fresh = self.round.is_none() && (self.wants.progress || self.wants.tick);
        let wanted = self.wanted();
        if self.asking.is_none() && (fresh || self.wants.places || wanted > 0) {
            let rest = match self.round {
                // One at a time.
                Some(_) => Wants { places: false, ..self.wants },
                None => Wants::default(),
            };
            let wants = std::mem::replace(&mut self.wants, rest);
            let progress = wants.progress && self.round.is_none();
            let tick = wants.tick && self.round.is_none();
            let wants = Wants { progress, tick, places: wants.places };
            self.asking = Some(Asking { wants, wanted });
            self.asks.push(Ask::Span { weak: !self.useless, later: self.useless });
        }
        self.ask_hubs();
    }

    /// Raises the marks of all that waits for something and has had what home's last answer asks for.
    fn keep_promises(&mut self, out: &mut Vec<Output>) {
        let keys: Vec<u64> = match self.round {
            Some(_) => self.watches.keys().copied().collect(),
            None => self.holding.iter().copied().collect(),
        };
        for key in keys {
            if self.keep_promise(key) {
                self.moved(key, out);
            }
        }
    }

    /// Raises the marks of a watch's parts that have had everything up to their groups' `last`.
    fn keep_promise(&mut self, key: u64) -> bool {
        let (Some((revision, lasts)), Some(watch)) = (&self.span, self.watches.get_mut(&key))
        else {
            return false;
        };
        let mut risen = false;
        for part in watch.parts.iter_mut().filter(|part| part.mark < *revision) {
            if lasts.get(&part.group).is_some_and(|last| part.mark >= *last) {
                part.mark = *revision;
                risen = true;
            }
        }
        risen
    }

    fn end_round(&mut self, out: &mut Vec<Output>) {
        let Some(round) = &self.round else { return };
        let revision = round.revision;
        if self.watches.values().any(|watch| watch.mark() < revision) {
            return;
        }
        if round.wants.tick {
            for key in std::mem::take(&mut self.ticked) {
                if self.watches.get(&key).is_some_and(|watch| watch.idle) {
                    out.push(Output::Watch(WatchOutput::WatchProgress { key, revision }));
                }
            }
        }
        if round.wants.progress {
            out.push(Output::AllHave(revision));
        }
        self.round = None;
    }

    /// Asks the hubs that lack something below what home has promised.
    fn ask_hubs(&mut self) {
        let Some((revision, lasts)) = &self.span else { return };
        let mut lacking: BTreeMap<GroupId, u64> = BTreeMap::new();
        let mut note = |watch: &Watch, wanted: i64| {
            let parts = watch.parts.iter().filter(|part| part.key != 0 && part.mark < wanted);
            for part in parts {
                let newest = lacking.entry(part.group).or_default();
                *newest = part.key.max(*newest);
            }
        };
        if let Some(round) = &self.round {
            self.watches.values().for_each(|watch| note(watch, round.revision));
        }
        for watch in self.holding.iter().filter_map(|key| self.watches.get(key)) {
            let first = watch.held.keys().next().copied().filter(|first| first <= revision);
            note(watch, first.unwrap_or(0));
        }
        for (group, newest) in lacking {
            let Some(last) = lasts.get(&group) else { continue };
            let known = self.groups.entry(group).or_default();
            if known.asked.is_some_and(|(_, key)| key >= newest) {
                continue;
            }
            known.asked = Some((*last, self.next_key - 1));
            // As the hub: the lowest that waits, and the last.
            known.promises.truncate(1);
            known.promises.push((*last, *revision));
            self.asks.push(Ask::ProgressAt(group, *last));
        }
    }
}

fn revision_of(event: &Arc<WatchEvent>) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests;
