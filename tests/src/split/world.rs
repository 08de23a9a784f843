//! The run: chance decides who acts next, who fails, what clients ask.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcd::request_op::Request as Op;
use proto::etcd::response_op::Response as OpAnswer;
use proto::etcd::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse,
};
use proto::group::{Reply, Request};
use proto::mvccpb::KeyValue;
use proto::{Error, GroupId, KeyRange};
use shard::split::entry::{Entry, Kept, Merge, note_place};
use shard::split::evaluate::Rows;
use shard::split::faults::{Fault, Faults};
use shard::split::participant::{self, Participant, RangeChange, Ticket, Written};
use shard::split::sequencer::{self, Marks, Sequencer};
use shard::split::stream::{Place, StreamId};

use super::groups::{Group, Logged, Made, Placed, Plain, View};
use super::leaders::{Alone, At, Driven, Leader, Proposed, Reading, Stream};
use super::names::Names;
use crate::check::history::{Heard, History, OpId, Outcome as Ended, WatchId, WatchSpec};
use crate::check::{linear, watches, witness};
use crate::sim::random::Random;

/// Groups that the tenant begins with; the first one is home.
const GROUPS: usize = 3;
/// Most groups that it is split over, and that there ever are.
const GROUPS_MAX: usize = 5;
const BORN_MAX: usize = 12;
/// A merge that is not over after so long is aborted.
const MERGE_PATIENCE: u64 = 400;
/// Letters that keys begin with; each has so many keys. Splits are between letters.
const LETTERS: u64 = 6;
const KEYS: u64 = 2;
/// Revisions that the limit is ahead.
const WINDOW: i64 = 40;
/// Steps with clients and failures, and after them in calm until everything has come to an end.
const STEPS: u64 = 2600;
/// Watches of everything from the beginning.
const FULL_WATCHES: usize = 2;
/// Watches that begin later, at most.
const LATE_WATCHES: usize = 4;
const CALM: u64 = 12_000;

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was wrong; empty for a good run.
    pub violations: Vec<String>,
    /// Requests that were answered.
    pub answered: u64,
    /// Revisions that something happened at.
    pub revisions: u64,
    /// Revisions that were skipped.
    pub holes: u64,
    /// Changes of a leader.
    pub elections: u64,
    /// Transactions over several groups that changed something.
    pub decisions: u64,
    /// Predictions that did not hold.
    pub voids: u64,
    /// Planned transfers of home.
    pub transfers: u64,
    /// Ranges that were split.
    pub splits: u64,
    /// Groups that were absorbed.
    pub merges: u64,
    /// Times that the tenant came to be on one group, or to be on several.
    pub modes: u64,
    /// What happened, if it was asked for.
    pub text: String,
}

/// Runs a seed. Without `failures` nothing fails, and the revisions must have no holes.
pub fn run(seed: u64, faults: Faults, failures: bool, tell: bool) -> Outcome {
    let mut world = World::new(seed, faults, failures, tell);
    world.run();
    world.judge()
}

#[derive(Clone, Debug)]
enum Ask {
    Put,
    Delete,
    Txn,
    Get,
    Range(RangeRequest),
    Grant(i64),
    Revoke,
}

struct Client {
    op: OpId,
    ask: Ask,
    open: bool,
    /// Leases that were known to be there when it was asked.
    leases: BTreeSet<i64>,
    lease: i64,
}

/// A client of a router that merges all groups.
struct Watch {
    id: WatchId,
    home: Option<At>,
    seen_marks: usize,
    revision: i64,
    last: BTreeMap<GroupId, i64>,
    map: BTreeMap<GroupId, Place>,
    /// Entries of each group's log that it has seen, and its mark there.
    position: Vec<usize>,
    mark: BTreeMap<GroupId, i64>,
    waiting: BTreeMap<i64, Vec<Placed>>,
    progress: i64,
    /// Absorbed groups whose logs it has not read to the end.
    retired: BTreeSet<GroupId>,
}

impl Watch {
    fn take(&mut self, marks: Marks) {
        self.revision = marks.revision;
        // With a map come all pairs: what is known of a group that it does not list is no pair of
        // this revision.
        if marks.map.is_some() {
            self.last.clear();
        }
        self.last.extend(marks.last);
        // Never back: a mark stands for the range that its group had when it was made.
        for (group, place) in marks.map.into_iter().flatten() {
            self.place(group, &place);
        }
    }

    fn place(&mut self, group: GroupId, place: &Place) {
        let before: BTreeSet<GroupId> = self.map.keys().copied().collect();
        note_place(&mut self.map, group, place);
        self.retired.extend(before.into_iter().filter(|id| !self.map.contains_key(id)));
    }

    /// The revision up to which everything is here; nothing new while a key has no group.
    fn ready(&self) -> i64 {
        let mut places: Vec<_> = self.map.values().map(|place| &place.range).collect();
        places.sort_by(|a, b| a.start.cmp(&b.start));
        let joined = places.windows(2).all(|two| two[0].end.as_ref() == Some(&two[1].start));
        let whole = joined && places.last().is_some_and(|range| range.end.is_none());
        let groups = self.map.keys().chain(&self.retired);
        let marks = groups.map(|group| self.mark.get(group).copied().unwrap_or(0));
        let least = marks.min().unwrap_or(0);
        if whole { least } else { self.progress }
    }
}

struct World {
    random: Random,
    /// For watches that begin later.
    spice: Random,
    faults: Faults,
    failures: bool,
    may_split: bool,
    /// Most groups that it is split over: with two it is often on one again.
    most: usize,
    /// Groups that there were when a split was last asked for.
    splitting: Option<usize>,
    now: u64,
    calm: bool,
    groups: Vec<Group>,
    ids: Vec<GroupId>,
    next_group: u64,
    next_merge: u64,
    /// Groups of which nothing is left.
    gone: BTreeSet<usize>,
    /// Who proposed the entries of the logs.
    by: BTreeMap<(usize, usize), Option<(At, i64)>>,
    leaders: Vec<Vec<Leader>>,
    streams: Vec<Stream>,
    clients: Vec<Client>,
    watches: Vec<Watch>,
    history: History,
    /// Newest known modification of keys: what clients compare with.
    hints: BTreeMap<Bytes, i64>,
    leases: BTreeSet<i64>,
    next_lease: i64,
    next_value: u64,
    outcome: Outcome,
    tell: bool,
}

fn letter(nth: u64) -> Bytes {
    Bytes::from(format!("{}", (b'a' + nth as u8) as char))
}

fn key(nth: u64, which: u64) -> Bytes {
    Bytes::from([letter(nth).as_ref(), which.to_string().as_bytes()].concat())
}

/// Ids of the groups in the beginning.
fn first_id(group: usize) -> GroupId {
    GroupId(group as u64 + 10)
}

/// Who has what in the beginning.
fn places() -> BTreeMap<GroupId, Place> {
    let edge = |group: usize| letter(group as u64 * LETTERS / GROUPS as u64);
    let start = |group: usize| if group == 0 { Bytes::new() } else { edge(group) };
    let end = |group: usize| (group + 1 < GROUPS).then(|| edge(group + 1));
    let range = |group| KeyRange { start: start(group), end: end(group) };
    (0..GROUPS).map(|group| (first_id(group), Place { range: range(group), version: 1 })).collect()
}

fn first_state(group: usize, alone: bool) -> Kept {
    if alone {
        return Kept::new(first_id(0), Place { range: KeyRange::all(), version: 1 });
    }
    let map = places();
    let kept = Kept::new(first_id(group), map[&first_id(group)].clone());
    if group == 0 { Kept { map, ..kept } } else { kept }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

impl World {
    fn new(seed: u64, faults: Faults, failures: bool, tell: bool) -> World {
        let alone = seed % 4 == 1;
        let groups = if alone { 1 } else { GROUPS };
        let mut world = World {
            random: Random::new(seed),
            spice: Random::new(!seed),
            faults,
            failures,
            may_split: !seed.is_multiple_of(3),
            most: if seed % 8 == 1 { 2 } else { GROUPS_MAX },
            splitting: None,
            now: 0,
            calm: false,
            groups: (0..groups).map(|group| Group::new(first_state(group, alone))).collect(),
            ids: (0..groups).map(first_id).collect(),
            next_group: 100,
            next_merge: 1,
            gone: BTreeSet::new(),
            by: BTreeMap::new(),
            leaders: (0..groups).map(|_| Vec::new()).collect(),
            streams: Vec::new(),
            clients: Vec::new(),
            watches: Vec::new(),
            history: History::new(),
            hints: BTreeMap::new(),
            leases: BTreeSet::new(),
            next_lease: 1,
            next_value: 1,
            outcome: Outcome::default(),
            tell,
        };
        for _ in 0..FULL_WATCHES {
            let spec = WatchSpec { prev_kv: false, ..WatchSpec::new(b"\0", b"\0", 2) };
            world.begin_watch(0, spec, 1);
        }
        for group in 0..groups {
            world.elect(group, true);
        }
        world
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.tell {
            let line = format!("{:6} {}\n", self.now, text());
            self.outcome.text.push_str(&line);
        }
    }

    fn wrong(&mut self, text: String) {
        self.note(|| format!("WRONG {text}"));
        self.outcome.violations.push(text);
    }

    fn chance(&mut self, permille: u64) -> bool {
        self.random.permille(permille)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        let at = self.random.below(list.len() as u64) as usize;
        list.get(at).copied()
    }

    fn real(&self, group: usize) -> At {
        At { group, nth: self.leaders[group].len() - 1 }
    }

    fn place(&self, group: GroupId) -> usize {
        let found = self.ids.iter().position(|id| *id == group);
        found.expect("nobody speaks of a group that was never born")
    }

    /// The group that has a key: of all that claim it the one whose range changed most.
    fn owner(&self, key: &[u8]) -> usize {
        let claims = self.groups.iter().map(|group| &group.newest().place).enumerate();
        let claims = claims.filter(|(_, place)| place.range.contains(key));
        let owner = claims.max_by_key(|(_, place)| place.version);
        owner.expect("every key has a group").0
    }

    fn is_living(&self, group: usize) -> bool {
        let place = &self.groups[group].newest().place;
        self.owner(&place.range.start) == group
    }

    fn is_real(&self, at: At) -> bool {
        self.real(at.group) == at
    }

    fn leader(&mut self, at: At) -> &mut Leader {
        &mut self.leaders[at.group][at.nth]
    }

    fn alive(&self, group: usize) -> Vec<At> {
        let all = self.leaders[group].iter().enumerate();
        all.filter(|(_, leader)| leader.alive).map(|(nth, _)| At { group, nth }).collect()
    }

    // === the run ===

    fn run(&mut self) {
        for now in 1..=STEPS {
            self.now = now;
            self.step();
            self.drive_late_watches(15);
        }
        self.calm = true;
        self.now += 1;
        for group in 0..self.groups.len() {
            for at in self.alive(group) {
                if !self.is_real(at) {
                    self.die(at);
                }
            }
            if !self.leaders[group][self.real(group).nth].alive {
                self.elect(group, false);
            }
        }
        for turn in 0..CALM {
            self.now += 1;
            let at = self.real(turn as usize % self.groups.len());
            match self.leader(at).alive {
                true => self.act(at),
                false => self.elect(at.group, false),
            }
            if turn % 20 == 0 {
                self.watch((turn / 20) as usize % FULL_WATCHES);
            }
            self.drive_late_watches(20);
            let open = self.clients.iter().any(|client| client.open);
            if turn > 3000 && turn % 300 == 299 && !open {
                break;
            }
        }
        for _ in 0..200 {
            for watch in 0..FULL_WATCHES {
                self.watch(watch);
            }
            self.drive_late_watches(1000);
        }
    }

    fn step(&mut self) {
        let group = self.random.below(self.groups.len() as u64) as usize;
        match self.random.below(10_000) {
            0..1000 if self.now < STEPS * 4 / 5 => self.ask(),
            0..1000 => {}
            1000..1035 if self.failures && self.now < STEPS * 18 / 25 => {
                // Home changes as often as all the others.
                let other = self.random.below(self.groups.len() as u64) as usize;
                let group = if self.chance(500) { 0 } else { other };
                self.elect(group, false);
                if self.chance(300) {
                    let other = self.random.below(self.groups.len() as u64) as usize;
                    self.elect(other, false);
                }
            }
            1035..1120 => {
                for at in
                    (0..self.groups.len()).flat_map(|group| self.alive(group)).collect::<Vec<_>>()
                {
                    if !self.is_real(at) && self.chance(120) {
                        self.die(at);
                    }
                }
            }
            1120..1125 if self.may_split => self.split(),
            1125..1132 if self.may_split => self.merge(),
            1132..1150 if self.may_split && self.most == 2 => match self.chance(500) {
                true => self.merge(),
                false => self.split(),
            },
            1120..1500 => {
                let watch = self.random.below(FULL_WATCHES as u64) as usize;
                self.watch(watch);
            }
            _ => {
                let mut at = self.real(group);
                if self.chance(450) {
                    let alive = self.alive(group);
                    let lately = &alive[alive.len().saturating_sub(4)..];
                    at = self.pick(lately).unwrap_or(at);
                }
                match self.leader(at).alive {
                    true => self.act(at),
                    false => self.elect(group, false),
                }
            }
        }
    }

    /// Some group is to absorb its right neighbour.
    fn merge(&mut self) {
        let left = self.random.below(self.groups.len() as u64) as usize;
        if !self.is_living(left) {
            return;
        }
        let Some(edge) = self.groups[left].newest().place.range.end.clone() else { return };
        let right = self.owner(&edge);
        let Place { range, version } = self.groups[right].newest().place.clone();
        if range.start != edge {
            return;
        }
        let (number, since) = (self.next_merge, self.now);
        self.next_merge += 1;
        let at = self.real(left);
        if self.leader(at).participant.is_some() {
            let absorbing = false;
            self.leader(at).driven = Some(Driven { number, version, since, absorbing });
            let merge = Merge { number, right: self.ids[right] };
            self.with_view(at, |participant, view| participant.begin(view, merge));
            self.drive_shard(at);
        }
    }

    /// Some group's range is to be split.
    fn split(&mut self) {
        let under_way = self.splitting.is_some_and(|groups| groups == self.groups.len());
        let living = (0..self.groups.len()).filter(|group| self.is_living(*group)).count();
        let many = living >= self.most || self.groups.len() >= BORN_MAX;
        if many || under_way && !self.chance(200) {
            return;
        }
        let at = letter(self.random.below(LETTERS));
        let group = self.owner(&at);
        let range = &self.groups[group].newest().place.range;
        // A home without keys is of no use.
        if range.start == at || group == 0 && at <= letter(0) {
            return;
        }
        // Never used twice: an intent that came to nothing takes its number with it.
        let child = GroupId(self.next_group);
        self.next_group += 1;
        let leader = self.real(group);
        if let Some(alone) = &mut self.leader(leader).alone {
            alone.splitting.get_or_insert((at, child, None));
            self.splitting = Some(self.groups.len());
        } else if let Some(participant) = &mut self.leader(leader).participant {
            participant.change(RangeChange::Split { at, child });
            self.splitting = Some(self.groups.len());
            self.drive_shard(leader);
        }
    }

    /// A new leader: it may have the beginning of an old leader's tail, and may not have applied
    /// all that is committed.
    fn elect(&mut self, group: usize, first: bool) {
        if self.gone.contains(&group) {
            return;
        }
        let committed = self.groups[group].log.len();
        let mut tail = Vec::new();
        if !first {
            self.outcome.elections += 1;
            let known = self.leaders[group].iter().enumerate();
            let known: Vec<usize> =
                known.filter(|(_, l)| l.base == committed).map(|(nth, _)| nth).collect();
            let newest = known.last().copied();
            let source = if self.chance(700) { newest } else { self.pick(&known) };
            if let Some(source) = source {
                let from = &self.leaders[group][source].tail;
                let length = self.random.below(from.len() as u64 + 1) as usize;
                tail = self.leaders[group][source].tail[..length].to_vec();
            }
        }
        let term = self.leaders[group].last().map_or(1, |leader| leader.term + 1);
        let behind = [0, 0, 1, 3][self.random.below(4) as usize];
        tail.push(Proposed { logged: Logged::Noop(term), by: None });
        let leader = Leader::new(term, committed, committed.saturating_sub(behind), tail);
        let old = (!first).then(|| self.real(group));
        self.leaders[group].push(leader);
        self.note(|| format!("group {group}: leader of term {term}"));
        if let Some(old) = old
            && self.chance(500)
            && self.leader(old).alive
        {
            self.die(old);
        }
    }

    fn die(&mut self, at: At) {
        self.note(|| format!("{at:?} ends"));
        let leader = self.leader(at);
        leader.alive = false;
        let participant = leader.participant.take();
        leader.sequencer = None;
        let taken = std::mem::take(&mut leader.taken);
        let alone = leader.alone.take().unwrap_or_default();
        for ticket in alone.writes.into_values() {
            self.end(ticket, Ended::Unknown);
        }
        for ticket in alone.reads {
            self.end(ticket, Ended::Refused(Error::LeaderChanged));
        }
        for (ticket, proposed) in participant.map(|p| p.open_tickets()).unwrap_or_default() {
            let ended = match proposed {
                true => Ended::Unknown,
                false => Ended::Refused(Error::LeaderChanged),
            };
            self.end(ticket, ended);
        }
        for ticket in taken {
            self.end(ticket, Ended::Unknown);
        }
        for stream in &mut self.streams {
            stream.lost |= stream.shard == at || stream.home == at;
        }
    }

    // === a leader's turn ===

    fn act(&mut self, at: At) {
        let coin = self.random.below(1000);
        let real = self.is_real(at);
        let leader = &self.leaders[at.group][at.nth];
        if real && !leader.tail.is_empty() && coin < 300 {
            return self.commit(at);
        }
        if leader.applied < leader.base && coin < 600 {
            return self.apply(at);
        }
        if leader.alone.is_some() {
            self.act_alone(at);
        } else if at.group == 0 && self.chance(600) {
            self.act_home(at);
        } else {
            self.act_shard(at);
        }
    }

    fn commit(&mut self, at: At) {
        let calm = self.calm;
        let tail = &self.leaders[at.group][at.nth].tail;
        // An older term's entries are committed by the first one of the leader's own.
        let noop = tail.iter().rposition(|p| matches!(p.logged, Logged::Noop(_)));
        let least = noop.map_or(1, |place| place + 1);
        let most = tail.len();
        let count = match calm {
            true => most,
            false => self.random.between(least.min(most) as u64, most as u64) as usize,
        };
        let entries: Vec<Proposed> = self.leader(at).tail.drain(..count).collect();
        for entry in entries {
            self.note(|| format!("group {}: committed {:?}", at.group, entry.logged));
            if let Logged::Split(Entry::Decision { .. }) = entry.logged {
                self.outcome.decisions += 1;
            }
            let place = self.groups[at.group].log.len();
            let committed = self.groups[at.group].commit(entry.logged, self.now, self.faults);
            if let Err(text) = committed {
                self.wrong(text);
            }
            let made = &self.groups[at.group].made[place];
            self.outcome.voids += u64::from(matches!(made, Made::Void));
            let (split, absorbed) = (matches!(made, Made::Split), matches!(made, Made::Absorbed));
            self.by.insert((at.group, place), entry.by);
            let group = &self.groups[at.group];
            let alone = |after: usize| group.kept[after].is_alone();
            self.outcome.modes += u64::from(alone(place) != alone(place + 1));
            if split {
                self.give_birth(at.group, place);
            }
            if absorbed {
                self.absorb(at.group, place);
            }
        }
        let committed = self.groups[at.group].log.len();
        self.leader(at).base = committed;
    }

    /// A split is committed: its new group begins, and has a leader soon.
    fn give_birth(&mut self, parent: usize, place: usize) {
        let Logged::Split(Entry::Split { at, child, .. }) = &self.groups[parent].log[place] else {
            return;
        };
        let child = *child;
        self.ids.push(child);
        let child = self.groups[parent].child(child, at);
        self.outcome.splits += 1;
        self.groups.push(child);
        self.leaders.push(Vec::new());
        self.elect(self.groups.len() - 1, true);
    }

    fn absorb(&mut self, left: usize, place: usize) {
        let Some(Merge { right, .. }) = self.groups[left].kept[place].merging else { return };
        let right = self.place(right);
        self.outcome.merges += 1;
        let [left, right] = self.groups.get_disjoint_mut([left, right]).expect("two groups");
        left.absorb(right);
    }

    fn apply(&mut self, at: At) {
        let leader = &self.leaders[at.group][at.nth];
        let count = self.random.between(1, (leader.base - leader.applied) as u64);
        for _ in 0..count {
            let leader = &mut self.leaders[at.group][at.nth];
            let place = leader.applied;
            leader.applied += 1;
            let group = &self.groups[at.group];
            let (logged, made) = (group.log[place].clone(), group.made[place].clone());
            let tag = match self.by.get(&(at.group, place)) {
                Some(Some((by, tag))) if *by == at => Some(*tag),
                _ => None,
            };
            match logged {
                Logged::Noop(term) if term == leader.term => self.begin(at),
                Logged::Noop(_) => {}
                Logged::Split(entry) => self.applied(at, &entry, made, tag),
                Logged::Plain { .. } => self.applied_alone(at, made, tag),
            }
        }
    }

    /// The first entry of its own term is applied: the leader takes part from now on.
    fn begin(&mut self, at: At) {
        let kept = (*self.kept(at)).clone();
        let faults = self.faults;
        let term = self.leader(at).term;
        if kept.is_alone() {
            self.leader(at).alone = Some(Alone { next: 1, ..Alone::default() });
            return;
        }
        self.leader(at).participant = Some(Participant::new(term, 0, kept.seal, faults));
        if at.group == 0 {
            self.leader(at).sequencer = Some(Sequencer::new(term, kept, WINDOW, faults));
            self.drive_home(at);
        }
    }

    fn kept(&self, at: At) -> std::rc::Rc<Kept> {
        self.groups[at.group].kept[self.leaders[at.group][at.nth].applied].clone()
    }

    fn applied(&mut self, at: At, entry: &Entry, made: Made, tag: Option<i64>) {
        let now_alone = self.kept(at).is_alone();
        if self.leader(at).alone.is_some() && matches!(entry, Entry::Split { .. }) {
            return self.leave_alone(at);
        }
        if now_alone && self.leader(at).participant.is_some() {
            return self.become_alone(at);
        }
        if let Some(participant) = &mut self.leader(at).participant {
            match (entry, tag) {
                (Entry::Write { .. }, Some(tag)) => participant.written(
                    tag,
                    match made {
                        Made::Done(response) => Written::Done(response),
                        Made::Void => Written::Void,
                        _ => Written::Refused,
                    },
                ),
                (Entry::Branch { .. }, Some(tag)) => participant.branched(tag),
                (Entry::Split { .. } | Entry::Freeze { .. } | Entry::Absorb { .. }, Some(tag)) => {
                    participant.ranged(tag)
                }
                (Entry::Thaw { .. }, _) => participant.ranged(0),
                _ => {}
            }
        }
        let refused = matches!(entry, Entry::Absorb { .. }) && tag.is_some();
        self.drive_shard(at);
        if let Some(sequencer) = &mut self.leader(at).sequencer {
            sequencer.applied(entry);
            if refused {
                sequencer.reopen();
            }
            self.drive_home(at);
        }
    }

    // === a tenant on one group ===

    /// The tenant's first split, of this leader's own, is applied.
    fn leave_alone(&mut self, at: At) {
        let kept = (*self.kept(at)).clone();
        if kept.is_alone() {
            if let Some(alone) = &mut self.leader(at).alone {
                alone.splitting = None;
            }
            return;
        }
        let (faults, term) = (self.faults, self.leader(at).term);
        let leader = self.leader(at);
        let alone = leader.alone.take().unwrap_or_default();
        leader.participant = Some(Participant::new(term, leader.number, kept.seal, faults));
        leader.sequencer = Some(Sequencer::begun(term, kept, WINDOW, faults));
        for ticket in alone.reads {
            self.end(ticket, Ended::Refused(Error::StaleRange));
        }
        self.drive_home(at);
    }

    /// The last other group is absorbed.
    fn become_alone(&mut self, at: At) {
        let leader = self.leader(at);
        leader.number = leader.participant.as_ref().map_or(0, Participant::number);
        let participant = leader.participant.take().map(|role| role.open_tickets());
        let sequencer = leader.sequencer.take().map(|role| role.open_tickets());
        leader.alone = Some(Alone { next: 1, ..Alone::default() });
        (leader.driven, leader.handing) = (None, None);
        let reading = std::mem::take(&mut leader.reading).into_iter();
        let reading: Vec<_> = reading.map(|reading| (reading.ticket, false)).collect();
        leader.taken.clear();
        leader.rounds.clear();
        let open = participant.into_iter().chain(sequencer).flatten().chain(reading);
        for (ticket, done) in open {
            let refused = Ended::Refused(Error::StaleRange);
            self.end(ticket, if done { Ended::Unknown } else { refused });
        }
        for stream in &mut self.streams {
            stream.lost |= stream.shard == at || stream.home == at;
        }
        self.leader(at).stream = None;
    }

    fn applied_alone(&mut self, at: At, made: Made, tag: Option<i64>) {
        let Some(alone) = &mut self.leader(at).alone else { return };
        let Some(ticket) = tag.and_then(|tag| alone.writes.remove(&tag)) else { return };
        match made {
            Made::Done(response) => self.answer(ticket, Ok(response)),
            Made::Failed(error) => self.end(ticket, Ended::Refused(error)),
            Made::Lease(revision) => match self.clients[ticket as usize].ask {
                Ask::Grant(lease) => self.granted(ticket, lease, revision),
                _ => {
                    let reply = LeaseRevokeResponse { header: header(revision) };
                    self.end(ticket, Ended::Done(Reply::LeaseRevoke(reply)));
                }
            },
            _ => self.end(ticket, Ended::Refused(Error::StaleRange)),
        }
    }

    fn act_alone(&mut self, at: At) {
        self.forget_absorbed(at);
        let kept = self.kept(at);
        let real = self.is_real(at);
        let current = self.leaders[at.group][at.nth].applied == self.groups[at.group].log.len();
        let term = self.leader(at).term;
        let Some(alone) = &mut self.leader(at).alone else { return };
        if let Some((key, child, tag @ None)) = &mut alone.splitting
            && alone.writes.is_empty()
        {
            let (version, at_key, child) = (kept.place.version, key.clone(), *child);
            *tag = Some(alone.next);
            let by = Some((at, alone.next));
            alone.next += 1;
            let limit = match self.faults.has(Fault::SplitWithoutLimit) {
                true => kept.limit,
                false => kept.revision + WINDOW,
            };
            let split = Entry::Split { epoch: term, version, at: at_key, child, limit };
            self.note(|| format!("{at:?} proposes {split:?}"));
            self.leader(at).tail.push(Proposed { logged: Logged::Split(split), by });
        }
        if real && current {
            let Some(alone) = &mut self.leader(at).alone else { return };
            for ticket in std::mem::take(&mut alone.reads) {
                self.answer_read(ticket, kept.revision, at);
            }
        }
    }

    fn ask_alone(&mut self, at: At, ticket: Ticket, request: Request) {
        let version = self.kept(at).place.version;
        let Some(alone) = &mut self.leader(at).alone else { return };
        if alone.splitting.is_some() {
            return self.end(ticket, Ended::Refused(Error::StaleRange));
        }
        let plain = |op| Plain::Txn(TxnRequest { success: vec![self::op(op)], ..none() });
        let act = match request {
            Request::Range(_) => return alone.reads.push(ticket),
            Request::Put(put) => plain(Op::RequestPut(put)),
            Request::DeleteRange(delete) => plain(Op::RequestDeleteRange(delete)),
            Request::Txn(txn) => Plain::Txn(txn),
            Request::LeaseGrant(grant) => Plain::Grant(grant.id),
            Request::LeaseRevoke(revoke) => Plain::Revoke(revoke.id),
            other => unreachable!("nobody asks for {other:?}"),
        };
        let tag = alone.next;
        alone.next += 1;
        alone.writes.insert(tag, ticket);
        let (logged, by) = (Logged::Plain { version, act }, Some((at, tag)));
        self.leader(at).tail.push(Proposed { logged, by });
    }

    // === merges ===

    /// What a leader does for a merge, on either side.
    fn drive_merge(&mut self, at: At) {
        self.forget_absorbed(at);
        let kept = self.kept(at);
        let own = self.ids[at.group];
        if let Some((number, left)) = kept.frozen
            && self.chance(200)
        {
            let state = self.groups[self.place(left)].newest();
            let gone = state.absorbed.contains(&own);
            let under_way = state.merging.is_some_and(|merge| merge.number == number);
            let clock = self.faults.has(Fault::ThawOnClock) && self.chance(100);
            let leader = self.leader(at);
            let Some(participant) = &mut leader.participant else { return };
            if gone && !clock {
                participant.leave();
            } else if (!under_way || clock) && leader.told.insert(("thaw", number)) {
                participant.thaw(number);
            }
        }
        let Some(Merge { number, right }) = kept.merging else { return };
        let (now, right) = (self.now, self.place(right));
        let target = match self.chance(850) {
            true => self.real(right),
            false => {
                let nth = self.random.below(self.leaders[right].len() as u64) as usize;
                At { group: right, nth }
            }
        };
        let answer = self.real(right);
        let frozen = Some(self.kept(answer)).filter(|kept| kept.frozen == Some((number, own)));
        let (speaks, asks) = (self.chance(200), self.chance(300));
        let leader = self.leader(at);
        let Some(participant) = &mut leader.participant else { return };
        let driven = leader.driven.as_mut().filter(|driven| driven.number == number);
        let patient = driven.as_ref().is_some_and(|driven| now < driven.since + MERGE_PATIENCE);
        let Some(driven) = driven.filter(|_| patient) else {
            if speaks && leader.told.insert(("abort", number)) {
                participant.abort(number);
            }
            return;
        };
        if let Some(Kept { place, revision, .. }) = frozen.as_deref()
            && speaks
            && !driven.absorbing
        {
            driven.absorbing = true;
            let (place, revision) = (place.clone(), *revision);
            participant.change(RangeChange::Absorb { merge: number, place, revision });
        } else if asks {
            let version = driven.version;
            let target = self.leader(target);
            if let Some(participant) = &mut target.participant
                && target.told.insert(("freeze", number))
            {
                participant.change(RangeChange::Freeze { merge: number, left: own, version });
            }
        }
    }

    /// What was absorbed is dropped once home's map does not list it.
    fn forget_absorbed(&mut self, at: At) {
        let listed = self.groups[0].newest().map.clone();
        let absorbed = self.kept(at).absorbed.clone();
        for right in absorbed.into_iter().filter(|right| !listed.contains_key(right)) {
            if !self.chance(100) || !self.leader(at).told.insert(("gone", right.0)) {
                continue;
            }
            let group = self.place(right);
            for gone in self.alive(group) {
                self.die(gone);
            }
            self.gone.insert(group);
            let entry = Logged::Split(Entry::Gone { right });
            let leader = self.leader(at);
            match &mut leader.participant {
                Some(participant) => participant.forget(right),
                None => leader.tail.push(Proposed { logged: entry, by: None }),
            }
        }
    }

    // === the participant ===

    fn act_shard(&mut self, at: At) {
        if self.leader(at).participant.is_none() {
            return;
        }
        self.answer_seals(at);
        self.drive_merge(at);
        let gone = |role: &Participant| role.is_gone();
        if self.leader(at).participant.as_ref().is_some_and(gone) {
            return self.drive_shard(at);
        }
        let fit = self.leader(at).stream.filter(|stream| {
            let stream = &self.streams[*stream];
            !stream.lost && self.leaders[0][stream.home.nth].alive
        });
        let Some(stream) = fit else {
            self.connect(at);
            return self.drive_shard(at);
        };
        let strange = !self.is_real(self.streams[stream].home);
        if !self.calm && self.failures && self.chance(6)
            || at.group != 0 && strange && self.chance(80)
        {
            return self.lose(stream);
        }
        if self.chance(650)
            && let Some(word) = self.streams[stream].down.pop_front()
        {
            self.note(|| format!("{at:?} hears {word:?}"));
            self.with_view(at, |participant, view| participant.hear(view, word));
        }
        self.drive_shard(at);
    }

    fn with_view(&mut self, at: At, act: impl FnOnce(&mut Participant, &View<'_>)) {
        let kept = self.kept(at);
        let Some(mut participant) = self.leader(at).participant.take() else { return };
        let (group, revision) = (&self.groups[at.group], kept.revision);
        act(
            &mut participant,
            &View {
                group,
                revision,
                seal: kept.seal,
                place: &kept.place,
                frozen: kept.frozen.is_some(),
                all: false,
            },
        );
        self.leader(at).participant = Some(participant);
    }

    fn lose(&mut self, stream: usize) {
        self.streams[stream].lost = true;
        let (shard, home) = (self.streams[stream].shard, self.streams[stream].home);
        if self.leader(shard).stream == Some(stream) {
            self.leader(shard).stream = None;
            if let Some(participant) = &mut self.leader(shard).participant {
                participant.disconnect();
            }
        }
        let known = self.streams[stream].id;
        // Home may hear of it much later, or by the next registration only.
        if self.chance(500)
            && let Some(sequencer) = &mut self.leader(home).sequencer
        {
            sequencer.disconnected(known);
        }
    }

    fn connect(&mut self, at: At) {
        if let Some(old) = self.leader(at).stream {
            self.lose(old);
        }
        let home = match at.group {
            0 => Some(at),
            _ => {
                let homes = self.alive(0);
                if self.chance(300) { self.pick(&homes) } else { homes.last().copied() }
            }
        };
        let Some(home) = home else { return };
        if self.leader(home).sequencer.is_none() {
            return;
        }
        let epoch = self.leader(home).term;
        let term = self.leader(at).term;
        let Some(participant) = &mut self.leader(at).participant else { return };
        let number = participant.connect(epoch);
        let id = StreamId { group: self.ids[at.group], term, number };
        let (up, down) = Default::default();
        self.streams.push(Stream { id, shard: at, home, up, down, lost: false });
        self.leader(at).stream = Some(self.streams.len() - 1);
    }

    /// Lets the participant go on, and does what it wants.
    fn drive_shard(&mut self, at: At) {
        if !self.leader(at).alive {
            return;
        }
        self.with_view(at, |participant, view| participant.advance(view));
        let wishes = match &mut self.leader(at).participant {
            Some(participant) => participant.take(),
            None => return,
        };
        for wish in wishes {
            self.note(|| format!("{at:?} does {wish:?}"));
            match wish {
                participant::Do::Send(word) => {
                    if let Some(stream) = self.leader(at).stream {
                        self.streams[stream].up.push_back(word);
                    }
                }
                participant::Do::Propose { tag, entry } => {
                    let Some(entry) = self.with_base(at, tag, entry) else { continue };
                    let logged = Logged::Split(entry);
                    self.leader(at).tail.push(Proposed { logged, by: Some((at, tag)) });
                }
                participant::Do::Answer { ticket, answer } => self.answer(ticket, answer),
                participant::Do::Readable { ticket, revision, .. } => {
                    self.answer_read(ticket, revision, at);
                }
                participant::Do::Elsewhere { ticket } => {
                    self.end(ticket, Ended::Refused(Error::StaleRange));
                }
                participant::Do::Break => {
                    if let Some(stream) = self.leader(at).stream {
                        self.lose(stream);
                    }
                }
            }
        }
    }

    /// The entry that makes a tenant be on one group again says what was granted and shown.
    fn with_base(&mut self, at: At, tag: i64, entry: Entry) -> Option<Entry> {
        let Entry::Absorb { epoch, merge, place, revision, .. } = entry else { return Some(entry) };
        if at.group != 0 || place.range.end.is_some() {
            return Some(Entry::Absorb { epoch, merge, place, revision, base: None });
        }
        let without = self.faults.has(Fault::AbsorbWithoutBase);
        let leader = self.leader(at);
        let base = leader.sequencer.as_mut().and_then(Sequencer::close);
        if base.is_none() {
            // Not now.
            if let Some(participant) = &mut leader.participant {
                participant.ranged(tag);
            }
            if let Some(driven) = &mut leader.driven {
                driven.absorbing = false;
            }
        }
        base.map(|base| {
            let base = (!without).then_some(base);
            Entry::Absorb { epoch, merge, place, revision, base }
        })
    }

    fn answer_seals(&mut self, at: At) {
        let kept = self.kept(at);
        let asks = std::mem::take(&mut self.leader(at).seals);
        for (home, epoch) in asks {
            if kept.seal < epoch {
                self.leader(at).seals.push((home, epoch));
                continue;
            }
            let group = self.ids[at.group];
            if let Some(sequencer) = &mut self.leader(home).sequencer {
                sequencer.sealed(group, kept.seal, kept.revision);
                self.leader(home).unsealed.remove(&group);
                self.drive_home(home);
            }
        }
    }

    // === home ===

    fn act_home(&mut self, at: At) {
        if self.leader(at).sequencer.is_none() {
            return;
        }
        self.ask_seals(at);
        if self.failures {
            self.transfer(at);
        }
        let mine: Vec<usize> = (0..self.streams.len())
            .filter(|stream| self.streams[*stream].home == at)
            .filter(|stream| !self.streams[*stream].up.is_empty())
            .collect();
        if let Some(stream) = self.pick(&mine)
            && (!self.streams[stream].lost || self.chance(300))
            && self.chance(700)
        {
            let from = self.streams[stream].id;
            if let Some(word) = self.streams[stream].up.pop_front() {
                self.note(|| format!("{at:?} hears {word:?} from {from:?}"));
                if let Some(sequencer) = &mut self.leader(at).sequencer {
                    sequencer.hear(from, word);
                }
                return self.drive_home(at);
            }
        }
        let real = self.is_real(at);
        if real && self.chance(500) {
            for round in std::mem::take(&mut self.leader(at).rounds) {
                if let Some(sequencer) = &mut self.leader(at).sequencer {
                    sequencer.round_done(round);
                }
            }
        }
        self.give_up_old(at);
        if self.chance(300)
            && let Some(sequencer) = &mut self.leader(at).sequencer
        {
            sequencer.send_late();
        }
        self.read_all(at);
        self.drive_home(at);
    }

    /// Asks a leader of each group that is not sealed: mostly the last one.
    fn ask_seals(&mut self, at: At) {
        let epoch = self.leader(at).term;
        for group in self.leader(at).unsealed.clone() {
            let group = self.place(group);
            if !self.chance(500) {
                continue;
            }
            let real = self.real(group);
            let target = match group {
                0 => at,
                _ if self.chance(800) => real,
                _ => At { group, nth: self.random.below(real.nth as u64 + 1) as usize },
            };
            let waits = self.leader(target).seals.contains(&(at, epoch));
            if !self.leader(target).alive || waits {
                continue;
            }
            if let Some(participant) = &mut self.leader(target).participant {
                participant.seal(epoch);
                self.leader(target).seals.push((at, epoch));
                self.drive_shard(target);
            }
        }
    }

    fn transfer(&mut self, at: At) {
        let real = self.is_real(at);
        let handing = self.leader(at).handing;
        match handing {
            None if real && !self.calm && self.chance(2) => {
                let Some(sequencer) = &mut self.leader(at).sequencer else { return };
                if sequencer.hand_over() {
                    let now = self.now;
                    self.leader(at).handing = Some(now);
                    self.drive_home(at);
                }
            }
            Some(since) => {
                let leader = self.leader(at);
                let done = leader.tail.is_empty() && leader.applied == leader.base;
                if !done {
                    return;
                }
                if real && !self.calm && self.chance(500) {
                    self.outcome.transfers += 1;
                    self.leader(at).handing = None;
                    self.elect(0, false);
                } else if self.now > since + 150 {
                    self.leader(at).handing = None;
                    if let Some(sequencer) = &mut self.leader(at).sequencer {
                        sequencer.take_back();
                    }
                    self.drive_home(at);
                }
            }
            None => {}
        }
    }

    /// Transactions that have waited long for votes are not done.
    fn give_up_old(&mut self, at: At) {
        let Some(sequencer) = &self.leader(at).sequencer else { return };
        let waiting: Vec<_> = sequencer.waiting().collect();
        let (now, rare) = (self.now, if self.calm { 10 } else { 4 });
        for tx in waiting {
            let begun = *self.leader(at).begun.entry(tx).or_insert(now);
            if now > begun + 60 && self.chance(rare) {
                self.leader(at).begun.insert(tx, now + 100_000);
                if let Some(sequencer) = &mut self.leader(at).sequencer {
                    sequencer.kill(tx);
                }
            }
        }
    }

    /// Reads over several groups: each part at any replica that has applied enough.
    fn read_all(&mut self, at: At) {
        let reading = std::mem::take(&mut self.leader(at).reading);
        for one in reading {
            let Ask::Range(range) = &self.clients[one.ticket as usize].ask else { continue };
            let keys = KeyRange::parse(&range.key, &range.range_end);
            let mut found: Vec<KeyValue> = Vec::new();
            let mut complete = true;
            for (group, has) in &one.map {
                let known = &self.groups[self.place(*group)];
                let committed = known.log.len();
                let part = keys.common(&has.range);
                let lag =
                    if self.calm { 0 } else { [0, 0, 1, 2, 5][self.random.below(5) as usize] };
                let behind = lag.min(committed);
                let Kept { revision: applied, place, .. } = &*known.kept[committed - behind];
                let applied = *applied;
                // A replica that has not absorbed its neighbour yet has nothing of it.
                let inside = |part: &KeyRange| {
                    let common = part.common(&place.range);
                    common.as_ref() == Some(part) || place.version >= has.version
                };
                let least = one.last.get(group).copied().unwrap_or(0);
                let late = applied < least && !self.faults.has(Fault::NoWaitForLast);
                if late || !part.as_ref().is_none_or(inside) {
                    complete = false;
                    break;
                }
                if let Some(part) = part {
                    found.extend(known.at(applied).scan(&part, Some(one.revision)));
                }
            }
            // What it waits for may be void: after a while it is asked for anew.
            if !complete && self.now > one.since + 150 {
                if let Some(sequencer) = &mut self.leader(at).sequencer {
                    sequencer.read(one.ticket);
                }
                continue;
            }
            if !complete {
                self.leader(at).reading.push(one);
                continue;
            }
            self.leader(at).taken.retain(|taken| *taken != one.ticket);
            found.sort_by(|a, b| a.key.cmp(&b.key));
            self.answer_range(one.ticket, one.revision, found);
            self.watch_from_now(one.ticket, one.revision);
        }
    }

    fn drive_home(&mut self, at: At) {
        if !self.leader(at).alive {
            return;
        }
        let wishes = match &mut self.leader(at).sequencer {
            Some(sequencer) => sequencer.take(),
            None => return,
        };
        for wish in wishes {
            self.note(|| format!("{at:?} does {wish:?}"));
            match wish {
                sequencer::Do::Seal { group } => {
                    self.leader(at).unsealed.insert(group);
                }
                sequencer::Do::Send { to, word } => {
                    let known =
                        |stream: &&mut Stream| stream.home == at && stream.id == to && !stream.lost;
                    if let Some(stream) = self.streams.iter_mut().rev().find(known) {
                        stream.down.push_back(word);
                    }
                }
                sequencer::Do::Propose(entry) => {
                    let logged = Logged::Split(entry);
                    self.leader(at).tail.push(Proposed { logged, by: Some((at, 0)) });
                }
                sequencer::Do::Round { round } => self.leader(at).rounds.push(round),
                sequencer::Do::Answer { ticket, answer } => {
                    self.leader(at).taken.retain(|taken| *taken != ticket);
                    self.answer(ticket, answer);
                }
                sequencer::Do::Revoked { ticket, revision, .. } => {
                    self.leader(at).taken.retain(|taken| *taken != ticket);
                    let reply = LeaseRevokeResponse { header: header(revision) };
                    self.end(ticket, Ended::Done(Reply::LeaseRevoke(reply)));
                }
                sequencer::Do::LeaseGranted { ticket, revision } => {
                    self.leader(at).taken.retain(|taken| *taken != ticket);
                    let Ask::Grant(lease) = self.clients[ticket as usize].ask else { continue };
                    self.granted(ticket, lease, revision);
                }
                sequencer::Do::Readable { ticket, revision, last, map } => {
                    let since = self.now;
                    let reading = Reading { ticket, revision, last, map, since };
                    self.leader(at).reading.push(reading);
                }
                sequencer::Do::NotDone { ticket } => {
                    self.leader(at).taken.retain(|taken| *taken != ticket);
                    self.end(ticket, Ended::Refused(Error::LeaderChanged));
                }
                sequencer::Do::Compacted { .. } => unreachable!("nobody compacts"),
                sequencer::Do::Marks(marks) => self.leader(at).marks.push(marks),
                sequencer::Do::StepDown => return self.die(at),
            }
        }
    }

    // === clients ===

    fn ask(&mut self) {
        let one = key(self.random.below(LETTERS), self.random.below(KEYS));
        let known: Vec<i64> = self.leases.iter().rev().take(4).copied().collect();
        let lease = if self.chance(350) { self.pick(&known).unwrap_or(0) } else { 0 };
        let value = Bytes::from(format!("v{}", self.next_value));
        self.next_value += 1;
        let name = one.clone();
        let put = |key: &Bytes, lease: i64| PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease,
            ..Default::default()
        };
        let (request, ask, txn, named) = match self.random.below(25) {
            0..5 => {
                let put = put(&one, lease);
                let txn = TxnRequest { success: vec![op(Op::RequestPut(put.clone()))], ..none() };
                (Request::Put(put), Ask::Put, Some(txn), lease)
            }
            5..10 => {
                let compare = self.compare(&one);
                let success = vec![op(Op::RequestPut(put(&one, lease)))];
                let get = RangeRequest { key: one.clone(), ..Default::default() };
                let failure = vec![op(Op::RequestRange(get))];
                let txn = TxnRequest { compare: vec![compare], success, failure };
                (Request::Txn(txn.clone()), Ask::Txn, Some(txn), lease)
            }
            10 => {
                let delete = DeleteRangeRequest { key: one, ..Default::default() };
                let ops = vec![op(Op::RequestDeleteRange(delete.clone()))];
                (
                    Request::DeleteRange(delete),
                    Ask::Delete,
                    Some(TxnRequest { success: ops, ..none() }),
                    0,
                )
            }
            11..16 => {
                let get = RangeRequest { key: one, ..Default::default() };
                (Request::Range(get), Ask::Get, None, 0)
            }
            16..18 => {
                let (key, range_end) = (Bytes::from_static(b"a"), Bytes::from_static(&[0]));
                let range = RangeRequest { key, range_end, ..Default::default() };
                return self.ask_home(Request::Range(range.clone()), Ask::Range(range), 0);
            }
            18..22 => {
                let txn = self.txn_over_groups(&value, lease);
                return self.ask_home(Request::Txn(txn), Ask::Txn, lease);
            }
            22 => {
                let range_end = Bytes::from_static(&[0]);
                let key = key(self.random.below(4), self.random.below(KEYS));
                let delete = DeleteRangeRequest { key, range_end, ..Default::default() };
                return self.ask_home(Request::DeleteRange(delete), Ask::Delete, 0);
            }
            23 => {
                let Some(lease) = self.pick(&known) else { return };
                let revoke = LeaseRevokeRequest { id: lease };
                return self.ask_home(Request::LeaseRevoke(revoke), Ask::Revoke, lease);
            }
            _ => {
                let lease = self.next_lease;
                self.next_lease += 1;
                let grant = LeaseGrantRequest { id: lease, ttl: 1000 };
                return self.ask_home(Request::LeaseGrant(grant), Ask::Grant(lease), 0);
            }
        };
        // Now and then by a map of long ago.
        let had = |group: &Group| group.kept[0].place.range.contains(&name);
        let owner = self.owner(&name);
        let old = self.chance(100).then(|| self.groups.iter().position(had)).flatten();
        let group = old.unwrap_or(owner);
        let ready = |at: &At| {
            let leader = &self.leaders[at.group][at.nth];
            leader.participant.is_some() || leader.alone.is_some()
        };
        let able: Vec<At> = self.alive(group).into_iter().filter(ready).collect();
        let chosen = if self.chance(350) { self.pick(&able) } else { able.last().copied() };
        let Some(at) = chosen else { return };
        let ticket = self.call(request.clone(), ask, named);
        let Some(participant) = &mut self.leader(at).participant else {
            return self.ask_alone(at, ticket, request);
        };
        match txn {
            Some(txn) => participant.write(ticket, txn),
            None => participant.read(ticket, KeyRange::single(&name)),
        }
        self.drive_shard(at);
    }

    fn compare(&mut self, key: &Bytes) -> Compare {
        let hint = self.hints.get(key).copied().unwrap_or(0);
        let revision = if self.chance(900) { hint } else { 0 };
        Compare {
            key: key.clone(),
            target: CompareTarget::Mod as i32,
            result: CompareResult::Equal as i32,
            target_union: Some(TargetUnion::ModRevision(revision)),
            ..Default::default()
        }
    }

    fn txn_over_groups(&mut self, value: &Bytes, lease: i64) -> TxnRequest {
        let mut txn = none();
        let letters: BTreeSet<u64> = (0..3).map(|_| self.random.below(LETTERS)).collect();
        for letter in letters {
            let key = key(letter, self.random.below(KEYS));
            if self.chance(600) {
                let compare = self.compare(&key);
                txn.compare.push(compare);
            }
            let get = RangeRequest { key: key.clone(), ..Default::default() };
            txn.failure.push(op(Op::RequestRange(get)));
            let request = match self.random.below(10) {
                0 => Op::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() }),
                1 => Op::RequestRange(RangeRequest { key, ..Default::default() }),
                _ => {
                    let value = Bytes::from([value.as_ref(), b".", key.as_ref()].concat());
                    Op::RequestPut(PutRequest { key, value, lease, ..Default::default() })
                }
            };
            txn.success.push(op(request));
        }
        txn
    }

    fn ask_home(&mut self, request: Request, ask: Ask, lease: i64) {
        let ready = |at: &At| {
            let leader = &self.leaders[at.group][at.nth];
            leader.sequencer.is_some() || leader.alone.is_some()
        };
        let able: Vec<At> = self.alive(0).into_iter().filter(ready).collect();
        let chosen = if self.chance(350) { self.pick(&able) } else { able.last().copied() };
        let Some(at) = chosen else { return };
        let ticket = self.call(request.clone(), ask, lease);
        if self.leader(at).alone.is_some() {
            return self.ask_alone(at, ticket, request);
        }
        self.leader(at).taken.push(ticket);
        let Some(sequencer) = &mut self.leader(at).sequencer else { return };
        match request {
            Request::Range(_) => sequencer.read(ticket),
            Request::Txn(txn) => sequencer.transact(ticket, txn),
            Request::DeleteRange(delete) => {
                let success = vec![op(Op::RequestDeleteRange(delete))];
                sequencer.transact(ticket, TxnRequest { success, ..none() });
            }
            Request::LeaseGrant(grant) => sequencer.grant(ticket, grant.id, grant.ttl),
            Request::LeaseRevoke(revoke) => sequencer.revoke(ticket, revoke.id),
            other => unreachable!("nobody asks home for {other:?}"),
        }
        self.drive_home(at);
    }

    fn call(&mut self, request: Request, ask: Ask, lease: i64) -> Ticket {
        let ticket = self.clients.len() as Ticket;
        let op = self.history.call(ticket, self.now, request);
        let leases = self.leases.clone();
        self.clients.push(Client { op, ask, open: true, leases, lease });
        ticket
    }

    fn granted(&mut self, ticket: Ticket, lease: i64, revision: i64) {
        let (header, ttl) = (header(revision), 1000);
        let reply = LeaseGrantResponse { header, id: lease, ttl, ..Default::default() };
        self.leases.insert(lease);
        self.end(ticket, Ended::Done(Reply::LeaseGrant(reply)));
    }

    fn end(&mut self, ticket: Ticket, outcome: Ended) {
        let now = self.now;
        let client = &mut self.clients[ticket as usize];
        if !std::mem::replace(&mut client.open, false) {
            return;
        }
        let op = client.op;
        self.note(|| format!("request {ticket} ends: {outcome:?}"));
        if let Ended::Done(reply) = &outcome {
            self.outcome.answered += 1;
            self.remember(reply);
        }
        self.history.end(op, now, outcome);
    }

    /// What clients will compare with.
    fn remember(&mut self, reply: &Reply) {
        let kvs: Vec<KeyValue> = match reply {
            Reply::Range(range) => range.kvs.clone(),
            Reply::Txn(txn) => {
                let range = |op: &proto::etcd::ResponseOp| match &op.response {
                    Some(OpAnswer::ResponseRange(range)) => range.kvs.clone(),
                    _ => Vec::new(),
                };
                txn.responses.iter().flat_map(range).collect()
            }
            _ => Vec::new(),
        };
        for kv in kvs {
            self.hints.insert(kv.key, kv.mod_revision);
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<TxnResponse, Error>) {
        let client = &self.clients[ticket as usize];
        if !client.open {
            return;
        }
        if answer == Err(Error::LeaseNotFound) {
            let known = client.leases.contains(&client.lease);
            if known && self.groups[0].newest().leases.contains(&client.lease) {
                let lease = client.lease;
                self.wrong(format!("request {ticket}: lease {lease} is said not to be there"));
            }
        }
        let ask = self.clients[ticket as usize].ask.clone();
        let ended = match (answer, ask) {
            (Err(error), _) => Ended::Refused(error),
            (Ok(response), Ask::Txn) => Ended::Done(Reply::Txn(response)),
            (Ok(response), Ask::Put | Ask::Delete) => {
                let top = response.header;
                let only = response.responses.into_iter().next().and_then(|op| op.response);
                Ended::Done(match only {
                    Some(OpAnswer::ResponsePut(mut put)) => {
                        put.header = top;
                        Reply::Put(put)
                    }
                    Some(OpAnswer::ResponseDeleteRange(mut delete)) => {
                        delete.header = top;
                        Reply::DeleteRange(delete)
                    }
                    other => unreachable!("a put or delete answers with {other:?}"),
                })
            }
            (Ok(_), other) => unreachable!("{other:?} is answered as what it is"),
        };
        self.end(ticket, ended);
    }

    fn answer_read(&mut self, ticket: Ticket, revision: i64, at: At) {
        let Some(Request::Range(range)) =
            self.clients.get(ticket as usize).map(|client| &self.history.op(client.op).request)
        else {
            return;
        };
        let keys = KeyRange::parse(&range.key, &range.range_end);
        let applied = self.kept(at).revision;
        let found = self.groups[at.group].at(applied).scan(&keys, Some(revision));
        self.answer_range(ticket, revision, found);
    }

    fn answer_range(&mut self, ticket: Ticket, revision: i64, kvs: Vec<KeyValue>) {
        let count = kvs.len() as i64;
        let reply = RangeResponse { header: header(revision), kvs, more: false, count };
        self.end(ticket, Ended::Done(Reply::Range(reply)));
    }

    // === watches over all groups ===

    /// A client begins to watch; it is told that the watch begins behind `revision`.
    fn begin_watch(&mut self, call: u64, spec: WatchSpec, revision: i64) {
        let client = 9000 + self.watches.len() as u64;
        let id = self.history.watch(client, client, call, spec);
        self.history.hear(id, self.now, Heard::Created(revision));
        // Of what a group's log has up to there nothing is wanted.
        let first = |group: &Group| match self.faults.has(Fault::WatchFromEachGroup) {
            true => group.kept.len() - 1,
            false => group.kept.partition_point(|kept| kept.revision <= revision).max(1) - 1,
        };
        self.watches.push(Watch {
            id,
            home: None,
            seen_marks: 0,
            revision: 1,
            last: BTreeMap::new(),
            map: BTreeMap::new(),
            position: self.groups.iter().map(first).collect(),
            mark: BTreeMap::new(),
            waiting: BTreeMap::new(),
            progress: revision,
            retired: BTreeSet::new(),
        });
    }

    /// Some clients go on with a watch "from now" where a list has shown them the revision. They and
    /// their watches have a chance of their own, so that what else happens is the same without them.
    fn watch_from_now(&mut self, ticket: Ticket, revision: i64) {
        if self.watches.len() < FULL_WATCHES + LATE_WATCHES && self.spice.permille(50) {
            let call = self.history.operations[self.clients[ticket as usize].op.0].call;
            let spec = WatchSpec { prev_kv: false, ..WatchSpec::new(b"\0", b"\0", 0) };
            self.begin_watch(call, spec, revision);
        }
    }

    fn drive_late_watches(&mut self, permille: u64) {
        std::mem::swap(&mut self.random, &mut self.spice);
        for which in FULL_WATCHES..self.watches.len() {
            if self.chance(permille) {
                self.watch(which);
            }
        }
        std::mem::swap(&mut self.random, &mut self.spice);
    }

    fn watch(&mut self, which: usize) {
        let lost = match self.watches[which].home {
            Some(home) => !self.leader(home).alive || self.chance(30),
            None => true,
        };
        if lost {
            // On one group nobody gives marks: then the log of home says what is complete.
            self.watches[which].home = None;
            self.subscribe(which);
        }
        if let Some(home) = self.watches[which].home {
            let marks = self.leaders[0][home.nth].marks.len();
            let seen = self.watches[which].seen_marks;
            let take = self.random.below((marks - seen) as u64 + 1) as usize;
            let new: Vec<Marks> = self.leaders[0][home.nth].marks[seen..seen + take].to_vec();
            let watch = &mut self.watches[which];
            watch.seen_marks = seen + take;
            new.into_iter().for_each(|marks| watch.take(marks));
        }
        let groups = self.groups.len();
        self.watches[which].position.resize(groups, 0);
        for group in 0..self.groups.len() {
            let entries = self.random.below(7) as usize;
            let id = self.ids[group];
            let watch = &mut self.watches[which];
            let known = &self.groups[group];
            for _ in 0..entries.min(known.log.len() - watch.position[group]) {
                if let Some((revision, _, events)) = known.events.get(&watch.position[group]) {
                    watch.waiting.entry(*revision).or_default().extend(events.iter().cloned());
                }
                watch.position[group] += 1;
            }
            let Kept { revision: applied, place, .. } = &*known.kept[watch.position[group]];
            let caught_up = watch.last.get(&id).is_some_and(|last| applied >= last);
            if place.range == KeyRange::all() {
                watch.place(id, place);
            }
            // What a log says of itself holds for the range that the group has there: one that was
            // split says nothing of the keys that went, as long as the map does not know.
            let has = watch.map.get(&id).map(|has| &has.range);
            let speaks =
                has.is_some_and(|has| has.is_within(&place.range)) || watch.retired.contains(&id);
            let mark = watch.mark.entry(id).or_insert(1);
            *mark = (*mark).max(if speaks { *applied } else { 1 });
            *mark = (*mark).max(if caught_up { watch.revision } else { 1 });
            if watch.position[group] == self.groups[group].log.len() {
                watch.retired.remove(&id);
            }
        }
        self.release(which);
    }

    fn subscribe(&mut self, which: usize) {
        let open = |at: &At| {
            let sequencer = &self.leaders[0][at.nth].sequencer;
            sequencer.as_ref().is_some_and(Sequencer::is_open)
        };
        let able: Vec<At> = self.alive(0).into_iter().filter(open).collect();
        let chosen = if self.chance(400) { self.pick(&able) } else { able.last().copied() };
        let Some(at) = chosen else { return };
        let Some(sequencer) = &self.leaders[0][at.nth].sequencer else { return };
        let marks = sequencer.marks();
        let seen_marks = self.leaders[0][at.nth].marks.len();
        let watch = &mut self.watches[which];
        (watch.home, watch.seen_marks) = (Some(at), seen_marks);
        watch.take(marks);
    }

    /// Whole revisions go out once every group's mark has reached them.
    fn release(&mut self, which: usize) {
        let now = self.now;
        let watch = &mut self.watches[which];
        let ready = watch.ready();
        let later = watch.waiting.split_off(&(ready + 1));
        let out = std::mem::replace(&mut watch.waiting, later);
        let progress = watch.progress;
        watch.progress = ready.max(progress);
        let id = watch.id;
        for (revision, mut events) in out {
            events.sort_by_key(|placed| placed.0);
            let events = events.into_iter().map(|(_, event)| event).collect();
            self.history.hear(id, now, Heard::Events { revision, events, fragment: false });
        }
        if ready > progress {
            self.history.hear(id, now, Heard::Progress(ready));
        }
    }

    // === the judges ===

    fn judge(mut self) -> Outcome {
        let stuck = self.clients.iter().filter(|client| client.open).count();
        if stuck > 0 {
            let ticket = self.clients.iter().position(|client| client.open).unwrap_or(0);
            self.wrong(format!("{stuck} requests were never answered, the first is {ticket}"));
        }
        let leases = self.groups[0].newest().leases.clone();
        for group in 0..self.groups.len() {
            if !self.is_living(group) {
                continue;
            }
            let Kept { revision, place, .. } = self.groups[group].newest().clone();
            for kv in self.groups[group].at(revision).scan(&place.range, None) {
                if kv.lease != 0 && !leases.contains(&kv.lease) {
                    let key = String::from_utf8_lossy(&kv.key).into_owned();
                    self.wrong(format!(
                        "key {key} is attached to lease {}, which is gone",
                        kv.lease
                    ));
                }
            }
        }
        let mut changes: BTreeMap<i64, (u64, Vec<Placed>)> = BTreeMap::new();
        for (revision, at, events) in self.groups.iter().flat_map(|group| group.events.values()) {
            let change = changes.entry(*revision).or_insert((*at, Vec::new()));
            change.0 = change.0.min(*at);
            change.1.extend(events.iter().cloned());
        }
        let names = Names::new(&changes.keys().copied().collect());
        names.rename(&mut self.history);
        self.outcome.revisions = changes.len() as u64;
        self.outcome.holes = names.holes();
        for (revision, (at, mut events)) in changes {
            events.sort_by_key(|placed| placed.0);
            let mut events: Vec<_> = events.into_iter().map(|(_, event)| event).collect();
            events.iter_mut().for_each(|event| names.event(event));
            self.history.committed(0, at, names.of(revision), &events);
        }
        let witnessed = witness::check(&self.history);
        let settled = Some(witnessed.model.revision());
        let heard = watches::check(&self.history, &witnessed.model, &witnessed.sightings, settled);
        let limits = linear::Limits { window: 2000, steps: 200_000 };
        let search = linear::check(&self.history, &limits, Some(&witnessed));
        let mut found: Vec<String> = witnessed.violations.iter().map(ToString::to_string).collect();
        found.extend(heard.iter().map(ToString::to_string));
        found.extend(search.violations.iter().map(ToString::to_string));
        found.into_iter().for_each(|text| self.wrong(text));
        if !self.failures && self.outcome.holes > 0 {
            let holes = self.outcome.holes;
            self.wrong(format!("{holes} revisions were skipped though nothing failed"));
        }
        self.outcome
    }
}

fn none() -> TxnRequest {
    TxnRequest::default()
}
