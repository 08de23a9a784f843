//! The home group's leader as the one who gives out a split tenant's revisions, decides its
//! transactions over several groups, and keeps its leases. Pure; lives as long as the leadership
//! while the tenant is split. Its *epoch* is home's Raft term.
//!
//! It knows of every group its `last[S]`: no revision above it, and up to the last one granted,
//! concerns the group. So a pair (R, `last[S]`) is a promise: who has applied `last[S]` has all of S
//! up to R.
//!
//! A new sequencer opens when every group of the map has sealed its epoch, and goes on above the
//! limit that home's log names: what the one before granted or showed is at or below it. Until
//! then it answers nothing.
//!
//! A decision takes its revision in the same step in which it is proposed. From then until it is
//! applied its participants get no answers (`undecided`): they would order something behind it
//! that is committed before it. Its record stays until all of them have applied their branches.
//!
//! Invariants:
//! - `next - 1` is the last revision granted or shown, and is at most the committed limit;
//! - `last` of a group is lowered only by a registration, which voids what older streams granted;
//! - an id that was called dead is never decided.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proto::etcd::{TxnRequest, TxnResponse};
use proto::mvccpb::KeyValue;
use proto::{Error, GroupId, KeyRange};

use super::entry::{Decision, Entry, Kept, note_place};
use super::evaluate::{Change, Revisions, Rows, evaluate};
use super::faults::{Fault, Faults};
use super::footprint::Footprint;
use super::participant::Ticket;
use super::stream::{Branch, Down, Granted, Place, StreamId, TxId, Up, Vote};

/// Revisions that the limit is ahead of the last one granted, when it is raised.
pub const WINDOW: i64 = 4096;

/// What a sequencer wants done, in this order.
#[derive(Debug, PartialEq)]
pub enum Do {
    /// Ask a group's leader, whoever it is, to seal this epoch; again until it is answered.
    Seal {
        /// Which group.
        group: GroupId,
    },
    /// Say this on a stream.
    Send {
        /// On which.
        to: StreamId,
        /// What.
        word: Down,
    },
    /// Propose an entry in home's log.
    Propose(Entry),
    /// Begin a read round of home, and say when it is done.
    Round {
        /// Names it.
        round: u64,
    },
    /// Answer a transaction over several groups.
    Answer {
        /// Whose.
        ticket: Ticket,
        /// How.
        answer: Result<TxnResponse, Error>,
    },
    /// Answer a revocation.
    Revoked {
        /// Whose.
        ticket: Ticket,
        /// The revision that deleted its keys, or the newest one if it had none.
        revision: i64,
        /// How many keys went.
        deleted: i64,
    },
    /// Answer a grant.
    LeaseGranted {
        /// Whose.
        ticket: Ticket,
        /// The newest revision.
        revision: i64,
    },
    /// Answer a compaction.
    Compacted {
        /// Whose.
        ticket: Ticket,
        /// The newest revision.
        revision: i64,
    },
    /// A read over several groups is done at `revision`, in each group once it has applied `last`.
    Readable {
        /// Whose.
        ticket: Ticket,
        /// At which.
        revision: i64,
        /// By group.
        last: BTreeMap<GroupId, i64>,
        /// Who has which keys at that revision: the only map to read by.
        map: BTreeMap<GroupId, Place>,
    },
    /// Certainly not done: may be tried again.
    NotDone {
        /// Whose.
        ticket: Ticket,
    },
    /// For watches over several groups: these are the pairs from now on, all at this revision.
    Marks(Marks),
    /// Somebody has sealed a higher epoch: this leader is not the last one.
    StepDown,
}

impl Do {
    /// Does it end a request?
    pub fn is_answer(&self) -> bool {
        matches!(
            self,
            Do::Answer { .. }
                | Do::Revoked { .. }
                | Do::LeaseGranted { .. }
                | Do::Compacted { .. }
                | Do::Readable { .. }
                | Do::NotDone { .. }
        )
    }
}

/// What watches over several groups wait for.
#[derive(Clone, Debug, PartialEq)]
pub struct Marks {
    /// The last revision granted.
    pub revision: i64,
    /// `last` of some groups.
    pub last: Vec<(GroupId, i64)>,
    /// Who has which keys from now on, if that changed. Where nobody has, nothing is complete.
    pub map: Option<BTreeMap<GroupId, Place>>,
}

#[derive(Debug)]
struct Shard {
    range: KeyRange,
    sealed: bool,
    last: i64,
    /// What it is known to have applied.
    applied: i64,
    /// The newest stream: term and number.
    stream: Option<(u64, u64)>,
    /// It is registered on that stream.
    live: bool,
    /// It is about to be absorbed, and votes on nothing until that is over.
    frozen: bool,
    /// It has lost what nobody knows; and the revision below which all history is given up for that.
    lost: bool,
    passed: Option<i64>,
    /// What its log held when it registered.
    registering: Option<i64>,
    /// What waits until no decision that concerns it is undecided.
    waiting: VecDeque<Up>,
}

impl Shard {
    fn new(place: &Place) -> Shard {
        Shard {
            range: place.range.clone(),
            sealed: false,
            last: 0,
            applied: 0,
            stream: None,
            live: false,
            frozen: false,
            lost: false,
            passed: None,
            registering: None,
            waiting: VecDeque::new(),
        }
    }

    /// What was said on its streams so far counts no more.
    fn part(&mut self) {
        self.live = false;
        self.registering = None;
        self.waiting.clear();
    }
}

#[derive(Debug)]
enum Kind {
    Txn(TxnRequest),
    Revoke(i64),
}

#[derive(Debug)]
struct Tx {
    ticket: Ticket,
    kind: Kind,
    parts: BTreeMap<GroupId, Footprint>,
    votes: BTreeMap<GroupId, ((u64, u64), Vote)>,
    /// All votes are in, but its revision is above the limit.
    waits_for_limit: bool,
    /// Only with a planted fault: it was called dead.
    dead: bool,
}

#[derive(Debug)]
struct Undecided {
    id: TxId,
    ticket: Ticket,
    parts: BTreeSet<GroupId>,
    revision: i64,
    end: End,
}

#[derive(Debug)]
enum End {
    Txn(TxnResponse),
    Revoke { deleted: i64 },
}

/// Which groups may have keys of a lease.
#[derive(Debug, Clone)]
enum Holders {
    /// All: this sequencer does not know what others granted.
    All,
    Some(BTreeSet<GroupId>),
}

/// What waits for a read round of home.
#[derive(Debug)]
enum Pending {
    Ask { to: StreamId, revision: i64, last: i64 },
    Leases { to: StreamId, found: Vec<bool> },
    Read { ticket: Ticket, marks: Marks },
    Idle { ticket: Ticket, answer: Result<TxnResponse, Error> },
    Refused { ticket: Ticket, error: Error },
    Gone { ticket: Ticket, revision: i64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hand {
    No,
    /// Nothing is granted or shown any more.
    Over,
    /// The transfer has failed: it goes on when a higher limit is applied.
    Back,
    /// The tenant is about to be on one group again.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub struct Sequencer {
    faults: Faults,
    epoch: u64,
    window: i64,
    kept: Kept,
    asked_limit: bool,
    next: i64,
    open: bool,
    /// The last revision before its own, when it opened, and how many below that nobody has used.
    began: (i64, i64),
    hand: Hand,
    shards: BTreeMap<GroupId, Shard>,
    /// Registrations of groups with ranges that home's log does not have yet.
    unplaced: BTreeMap<GroupId, (StreamId, Up)>,
    /// Ranges that are proposed for home's log.
    placing: BTreeMap<GroupId, Place>,
    holders: BTreeMap<i64, Holders>,
    revoking: BTreeSet<i64>,
    /// Revocations of leases without keys that are proposed, with who waits.
    leaving: BTreeMap<i64, (Ticket, i64)>,
    granting: BTreeMap<i64, Ticket>,
    /// Compactions that are proposed.
    compacting: Vec<(Ticket, i64)>,
    undecided: BTreeMap<TxId, Undecided>,
    txs: BTreeMap<TxId, Tx>,
    next_tx: u64,
    forgetting: BTreeSet<TxId>,
    /// Begun before the sequencer was open.
    early: VecDeque<(Ticket, Early)>,
    rounds: u64,
    fresh: Vec<Pending>,
    in_round: BTreeMap<u64, Vec<Pending>>,
    late: Vec<(StreamId, Down)>,
    out: Vec<Do>,
}

#[derive(Debug)]
enum Early {
    Read,
    Txn(TxnRequest),
    Revoke(i64),
    Grant(i64, i64),
    Compact(i64),
}

/// Rows that participants voted with.
struct Ballots<'a> {
    rows: BTreeMap<&'a Bytes, &'a KeyValue>,
    past: Vec<(&'a KeyRange, i64, &'a [KeyValue])>,
}

impl Rows for Ballots<'_> {
    fn scan(&self, range: &KeyRange, at: Option<i64>) -> Vec<KeyValue> {
        let Some(at) = at else {
            let inside = self.rows.iter().filter(|(key, _)| range.contains(key));
            return inside.map(|(_, kv)| (*kv).clone()).collect();
        };
        let mut found: BTreeMap<Bytes, KeyValue> = BTreeMap::new();
        for (part, revision, rows) in &self.past {
            if *revision == at && part.common(range).is_some() {
                let inside = rows.iter().filter(|kv| range.contains(&kv.key));
                found.extend(inside.map(|kv| (kv.key.clone(), kv.clone())));
            }
        }
        found.into_values().collect()
    }
}

impl Sequencer {
    /// A sequencer for home's leadership of term `epoch`, which has applied the first entry of that
    /// term; `kept` is home's state then. It opens when all groups of the map have sealed.
    pub fn new(epoch: u64, kept: Kept, window: i64, faults: Faults) -> Sequencer {
        let shards = kept.map.iter().map(|(group, place)| (*group, Shard::new(place)));
        let holders =
            kept.leases.iter().map(|lease| match faults.has(Fault::LeaseGroupsForgotten) {
                true => (*lease, Holders::Some(BTreeSet::new())),
                false => (*lease, Holders::All),
            });
        let mut sequencer = Sequencer {
            faults,
            epoch,
            window,
            asked_limit: false,
            next: 0,
            open: false,
            began: (0, 0),
            hand: Hand::No,
            shards: shards.collect(),
            unplaced: BTreeMap::new(),
            placing: BTreeMap::new(),
            holders: holders.collect(),
            kept,
            revoking: BTreeSet::new(),
            leaving: BTreeMap::new(),
            granting: BTreeMap::new(),
            compacting: Vec::new(),
            undecided: BTreeMap::new(),
            txs: BTreeMap::new(),
            next_tx: 1,
            forgetting: BTreeSet::new(),
            early: VecDeque::new(),
            rounds: 0,
            fresh: Vec::new(),
            in_round: BTreeMap::new(),
            late: Vec::new(),
            out: Vec::new(),
        };
        let groups = sequencer.shards.keys();
        sequencer.out.extend(groups.map(|group| Do::Seal { group: *group }));
        sequencer
    }

    /// The sequencer of the leader that proposed the tenant's first split, when it has applied it in
    /// the same term: both groups begin under its epoch, and nobody gave out a revision before it,
    /// so that it opens at once and goes on without a gap.
    pub fn begun(epoch: u64, kept: Kept, window: i64, faults: Faults) -> Sequencer {
        let revision = kept.revision;
        let mut sequencer = Sequencer::new(epoch, kept, window, faults);
        for shard in sequencer.shards.values_mut() {
            (shard.sealed, shard.last) = (true, revision);
        }
        (sequencer.next, sequencer.open) = (revision + 1, true);
        sequencer.began = (revision, 0);
        let marks = sequencer.marks();
        sequencer.out = vec![Do::Marks(marks)];
        sequencer
    }

    /// What is to be done.
    pub fn take(&mut self) -> Vec<Do> {
        std::mem::take(&mut self.out)
    }

    /// Does it give out revisions?
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The last revision granted or shown.
    pub fn last(&self) -> i64 {
        self.next - 1
    }

    /// Where it began to grant, once it is open: behind which revision, and how many up to that one
    /// nobody has used.
    pub fn began(&self) -> (i64, i64) {
        self.began
    }

    /// The groups that it knows.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.shards.keys().copied()
    }

    /// What watches over several groups begin with.
    pub fn marks(&self) -> Marks {
        let last = self.shards.iter().map(|(group, shard)| (*group, shard.last)).collect();
        Marks { revision: self.next - 1, last, map: Some(self.kept.map.clone()) }
    }

    /// A group that it waits for, before it grants and decides: one that has not sealed, or has not
    /// registered since it was born.
    pub fn waits_for(&self) -> Option<GroupId> {
        let unsealed = || self.shards.iter().find(|(_, shard)| !shard.sealed);
        match self.open {
            false => unsealed().map(|(group, _)| *group),
            true if !self.is_whole() => {
                let unknown = self.kept.map.keys().find(|group| !self.shards.contains_key(group));
                unknown.or(self.kept.map.keys().next()).copied()
            }
            true => None,
        }
    }

    /// Has every key a group?
    fn is_whole(&self) -> bool {
        let mut places: Vec<&KeyRange> = self.shards.values().map(|shard| &shard.range).collect();
        places.sort_by(|a, b| a.start.cmp(&b.start));
        let joined = places.windows(2).all(|two| two[0].end.as_ref() == Some(&two[1].start));
        let first = places.first().is_some_and(|range| range.start.is_empty());
        first && joined && places.last().is_some_and(|range| range.end.is_none())
    }

    // === opening ===

    /// A group has applied the seal of an epoch; `last` is the last revision in its log.
    pub fn sealed(&mut self, group: GroupId, epoch: u64, last: i64) {
        if epoch > self.epoch {
            return self.out.push(Do::StepDown);
        }
        let Some(shard) = self.shards.get_mut(&group).filter(|_| epoch == self.epoch) else {
            return;
        };
        if self.open || shard.sealed {
            return;
        }
        shard.sealed = true;
        shard.last = last;
        let missing = self.shards.values().filter(|shard| !shard.sealed).count();
        if missing > usize::from(self.faults.has(Fault::NoSeal)) {
            return;
        }
        for (group, shard) in &mut self.shards {
            let decided = self.kept.decisions.values().filter(|d| d.changes.contains_key(group));
            shard.last = decided.map(|decision| decision.revision).fold(shard.last, i64::max);
        }
        self.next = self.kept.limit + 1;
        let newest = self.shards.values().map(|shard| shard.last).max().unwrap_or(0);
        self.began = (self.kept.limit, self.kept.limit - newest);
        if self.faults.has(Fault::RestartAtMax) {
            let max = self.shards.values().map(|shard| shard.last).max().unwrap_or(0);
            self.next = max + 1;
        }
        self.open = true;
        self.out.push(Do::Marks(self.marks()));
        self.go_on();
    }

    // === requests over several groups ===

    /// A linearizable read over several groups.
    pub fn read(&mut self, ticket: Ticket) {
        self.begin(ticket, Early::Read);
    }

    /// A transaction over several groups.
    pub fn transact(&mut self, ticket: Ticket, txn: TxnRequest) {
        self.begin(ticket, Early::Txn(txn));
    }

    /// Ends a lease, and with it the keys that are attached to it.
    pub fn revoke(&mut self, ticket: Ticket, lease: i64) {
        self.begin(ticket, Early::Revoke(lease));
    }

    /// A new lease, with its granted TTL in seconds.
    pub fn grant(&mut self, ticket: Ticket, lease: i64, ttl_s: i64) {
        self.begin(ticket, Early::Grant(lease, ttl_s));
    }

    /// History below `revision` is to go.
    pub fn compact(&mut self, ticket: Ticket, revision: i64) {
        self.begin(ticket, Early::Compact(revision));
    }

    fn begin(&mut self, ticket: Ticket, what: Early) {
        self.early.push_back((ticket, what));
        self.go_on();
    }

    fn is_quiet(&self) -> bool {
        let goes_on = match self.hand {
            Hand::No => true,
            Hand::Over | Hand::Back => self.faults.has(Fault::HandGoesOn),
            Hand::Closed => false,
        };
        !self.open || !goes_on
    }

    /// Everything that could not be done before.
    fn go_on(&mut self) {
        if self.is_quiet() {
            return;
        }
        self.place_new();
        let mut again = VecDeque::new();
        let whole = self.is_whole();
        while let Some((ticket, what)) = self.early.pop_front() {
            match what {
                Early::Grant(lease, _)
                    if self.kept.leases.contains(&lease) || self.granting.contains_key(&lease) =>
                {
                    let error = Error::LeaseExists;
                    self.pend(Pending::Refused { ticket, error });
                }
                Early::Grant(lease, ttl_s) => {
                    self.granting.insert(lease, ticket);
                    self.out.push(Do::Propose(Entry::LeaseGranted { lease, ttl_s }));
                }
                Early::Compact(revision) if revision <= self.kept.compacted => {
                    let error = Error::Compacted;
                    self.pend(Pending::Refused { ticket, error });
                }
                Early::Compact(revision) if revision >= self.next => {
                    let error = Error::FutureRevision;
                    self.pend(Pending::Refused { ticket, error });
                }
                Early::Compact(revision) => {
                    self.compacting.push((ticket, revision));
                    self.out.push(Do::Propose(Entry::Compact { revision }));
                }
                // A group of the map has not registered since it was born.
                what if !whole => again.push_back((ticket, what)),
                Early::Read => {
                    let marks = self.marks();
                    self.pend(Pending::Read { ticket, marks });
                }
                Early::Txn(txn) if self.is_frozen(&Footprint::of(&txn)) => {
                    again.push_back((ticket, Early::Txn(txn)));
                }
                Early::Txn(txn) => self.begin_txn(ticket, txn),
                Early::Revoke(lease)
                    if self.revoking.contains(&lease) || self.holder_is_frozen(lease) =>
                {
                    again.push_back((ticket, Early::Revoke(lease)));
                }
                Early::Revoke(lease) if !self.kept.leases.contains(&lease) => {
                    let error = Error::LeaseNotFound;
                    self.pend(Pending::Refused { ticket, error });
                }
                Early::Revoke(lease) => self.begin_revoke(ticket, lease),
            }
        }
        self.early = again;
        self.raise_limit();
        let waiting = self.txs.iter().filter(|(_, tx)| tx.waits_for_limit);
        let waiting: Vec<TxId> = waiting.map(|(id, _)| *id).collect();
        for id in waiting {
            self.decide(id);
        }
        let groups: Vec<GroupId> = self.shards.keys().copied().collect();
        for group in groups {
            self.answer(group);
        }
        self.forget();
    }

    fn raise_limit(&mut self) {
        if self.kept.limit - self.next < self.window / 2 && !self.asked_limit {
            self.asked_limit = true;
            let revision = self.kept.limit.max(self.next) + self.window;
            self.out.push(Do::Propose(Entry::Limit { revision }));
        }
    }

    fn begin_txn(&mut self, ticket: Ticket, txn: TxnRequest) {
        let footprint = Footprint::of(&txn);
        let touched = self.shards.iter().filter(|(_, shard)| footprint.touches(&shard.range));
        let parts: BTreeMap<GroupId, Footprint> =
            touched.map(|(group, shard)| (*group, footprint.within(&shard.range))).collect();
        for lease in &footprint.leases {
            self.hold(*lease, parts.keys().copied());
        }
        self.latch(ticket, Kind::Txn(txn), parts);
    }

    /// From now on these groups may have keys of the lease.
    fn hold(&mut self, lease: i64, groups: impl Iterator<Item = GroupId>) {
        if let Some(Holders::Some(holders)) = self.holders.get_mut(&lease) {
            holders.extend(groups);
        }
    }

    /// Does it touch a group that votes on nothing?
    fn is_frozen(&self, footprint: &Footprint) -> bool {
        self.shards.values().any(|shard| shard.frozen && footprint.touches(&shard.range))
    }

    fn holder_is_frozen(&self, lease: i64) -> bool {
        let frozen = |group: &GroupId| self.shards.get(group).is_some_and(|shard| shard.frozen);
        self.holders_of(lease).iter().any(frozen)
    }

    /// The groups that may have keys of a lease.
    fn holders_of(&self, lease: i64) -> Vec<GroupId> {
        match self.holders.get(&lease) {
            Some(Holders::Some(groups)) => groups.iter().copied().collect(),
            Some(Holders::All) | None => self.shards.keys().copied().collect(),
        }
    }

    fn begin_revoke(&mut self, ticket: Ticket, lease: i64) {
        if !self.faults.has(Fault::LeaseNotMarked) {
            self.revoking.insert(lease);
        }
        let parts = self
            .holders_of(lease)
            .into_iter()
            .map(|group| (group, Footprint::of_lease(lease)))
            .collect();
        self.latch(ticket, Kind::Revoke(lease), parts);
    }

    fn latch(&mut self, ticket: Ticket, kind: Kind, parts: BTreeMap<GroupId, Footprint>) {
        let id = TxId { epoch: self.epoch, number: self.next_tx };
        self.next_tx += 1;
        let (votes, waits_for_limit, dead) = (BTreeMap::new(), false, false);
        let groups: Vec<GroupId> = parts.keys().copied().collect();
        self.txs.insert(id, Tx { ticket, kind, parts, votes, waits_for_limit, dead });
        for group in &groups {
            self.send_latch(*group, id);
        }
        if groups.is_empty() {
            self.decide(id);
        }
    }

    fn send_latch(&mut self, group: GroupId, id: TxId) {
        let Some(tx) = self.txs.get(&id) else { return };
        let Some(footprint) = tx.parts.get(&group).cloned() else { return };
        let revokes = matches!(tx.kind, Kind::Revoke(_));
        self.say(group, Down::Latch { id, footprint, revokes });
    }

    /// Says something to a group that is registered.
    fn say(&mut self, group: GroupId, word: Down) {
        let Some(shard) = self.shards.get(&group).filter(|shard| shard.live) else { return };
        if let Some((term, number)) = shard.stream {
            self.out.push(Do::Send { to: StreamId { group, term, number }, word });
        }
    }

    // === streams ===

    /// A group's leader said something.
    pub fn hear(&mut self, from: StreamId, word: Up) {
        let stream = (from.term, from.number);
        if let Up::Register { place, seal, applied, frozen, lost, .. } = &word {
            if *seal > self.epoch && !self.faults.has(Fault::NoSeal) {
                return self.out.push(Do::StepDown);
            }
            let waiting = self.unplaced.get(&from.group).map(|(id, _)| (id.term, id.number));
            let known = self.shards.get(&from.group).and_then(|shard| shard.stream);
            let newest = known.max(waiting);
            let older = newest.is_some_and(|seen| stream <= seen);
            if older && !self.faults.has(Fault::OldRegistration) {
                return;
            }
            if *seal < self.epoch && !self.faults.has(Fault::NoSeal) {
                let epoch = self.epoch;
                return self.out.push(Do::Send { to: from, word: Down::NeedSeal { epoch } });
            }
            let known = self.kept.map.get(&from.group);
            if known.is_some_and(|known| known.version > place.version) {
                return;
            }
            if known != Some(place) {
                if self.faults.has(Fault::ServedBeforeMap) {
                    let place = place.clone();
                    self.placed(from.group, &place);
                    return self.hear(from, word);
                }
                self.unplaced.insert(from.group, (from, word));
                return self.go_on();
            }
            let (applied, frozen, lost) = (*applied, *frozen, *lost);
            let Some(shard) = self.shards.get_mut(&from.group) else { return };
            (shard.frozen, shard.lost) = (frozen, lost);
            shard.passed = shard.passed.filter(|_| lost);
            shard.part();
            shard.stream = Some(stream);
            shard.registering = Some(applied);
            shard.applied = shard.applied.max(applied);
            if frozen {
                // What it has not voted on must not hold up the one that is to absorb it.
                self.kill_all(&BTreeSet::from([from.group]));
            }
            return self.go_on();
        }
        let Some(shard) = self.shards.get_mut(&from.group) else { return };
        let current = shard.stream == Some(stream) && shard.live;
        if !current && !self.faults.has(Fault::OldStream) {
            return;
        }
        match word {
            Up::Vote { id, vote, applied } => {
                shard.applied = shard.applied.max(applied);
                self.voted(from.group, stream, id, vote);
            }
            word => shard.waiting.push_back(word),
        }
        self.go_on();
    }

    /// Has home's log say what groups that came, grew or shrank have now; they are served after that.
    fn place_new(&mut self) {
        let mut map = self.kept.map.clone();
        self.unplaced.retain(|group, (_, word)| match word {
            Up::Register { place, .. } => note_place(&mut map, *group, place).is_some(),
            _ => false,
        });
        let words = self.unplaced.iter();
        let places = words.filter_map(|(group, (_, word))| match word {
            Up::Register { place, .. } => Some((*group, place.clone())),
            _ => None,
        });
        for (group, place) in places.collect::<Vec<_>>() {
            if self.placing.get(&group) != Some(&place) {
                self.placing.insert(group, place.clone());
                self.out.push(Do::Propose(Entry::Map { group, place }));
            }
        }
    }

    /// Home's log says that a group has a range.
    fn placed(&mut self, group: GroupId, place: &Place) {
        let Some(cut) = note_place(&mut self.kept.map, group, place) else { return };
        let changed: BTreeSet<GroupId> = cut.into_iter().chain([group]).collect();
        self.shards.entry(group).or_insert_with(|| Shard::new(place));
        for id in &changed {
            let Some(shard) = self.shards.get_mut(id) else { continue };
            match self.kept.map.get(id) {
                Some(place) => shard.range = place.range.clone(),
                None => drop(self.shards.remove(id)),
            }
        }
        // Who lost keys registers anew, too, before it gets anything else.
        for id in &changed {
            if let Some(shard) = self.shards.get_mut(id)
                && !self.faults.has(Fault::OldMapDecided)
            {
                shard.part();
            }
        }
        if !self.faults.has(Fault::HoldersNotSplit) {
            self.holders.values_mut().for_each(|holders| *holders = Holders::All);
        }
        if !self.faults.has(Fault::OldMapDecided) {
            self.kill_all(&changed);
        }
        self.out.push(Do::Marks(self.marks()));
    }

    /// Transactions that one of these groups has a part in are not done.
    fn kill_all(&mut self, groups: &BTreeSet<GroupId>) {
        let concerns = |tx: &Tx| tx.parts.keys().any(|part| groups.contains(part));
        let over = self.txs.iter().filter(|(_, tx)| concerns(tx));
        for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.kill(id);
        }
    }

    /// The way to a group is broken. What it asked comes again when it registers anew.
    pub fn disconnected(&mut self, from: StreamId) {
        let Some(shard) = self.shards.get_mut(&from.group) else { return };
        if shard.stream == Some((from.term, from.number)) {
            shard.part();
        }
    }

    fn concerns_undecided(&self, group: GroupId) -> bool {
        self.undecided.values().any(|undecided| undecided.parts.contains(&group))
    }

    /// Answers what a group waits for, as far as that can be done.
    fn answer(&mut self, group: GroupId) {
        self.answer_registration(group);
        loop {
            if self.concerns_undecided(group) && !self.faults.has(Fault::AnswersNotWithheld) {
                return;
            }
            let Some(shard) = self.shards.get_mut(&group) else { return };
            let Some(word) = shard.waiting.pop_front() else { return };
            let Some((term, number)) = shard.stream else { return };
            let to = StreamId { group, term, number };
            match word {
                Up::Want { items, applied } => {
                    let fits = self.next + items.len() as i64 - 1 <= self.kept.limit;
                    if !fits && !self.faults.has(Fault::GrantAboveLimit) {
                        shard.waiting.push_front(Up::Want { items, applied });
                        return self.raise_limit();
                    }
                    shard.applied = shard.applied.max(applied);
                    let leases = items.into_iter().map(|item| item.leases);
                    let items: Vec<Granted> =
                        leases.map(|leases| self.grant_one(group, &leases)).collect();
                    self.out.push(Do::Send { to, word: Down::Granted { items } });
                }
                Up::Ask { applied } => {
                    shard.applied = shard.applied.max(applied);
                    let (revision, last) = (self.next - 1, shard.last);
                    self.pend(Pending::Ask { to, revision, last });
                }
                Up::AskLeases { leases } => {
                    let known = |leases: &Vec<i64>| {
                        leases.iter().all(|lease| self.kept.leases.contains(lease))
                    };
                    let found = leases.iter().map(known).collect();
                    self.pend(Pending::Leases { to, found });
                }
                Up::Register { .. } | Up::Vote { .. } => {}
            }
        }
    }

    fn grant_one(&mut self, group: GroupId, leases: &[i64]) -> Granted {
        let missing = |lease: &i64| !self.kept.leases.contains(lease);
        if leases.iter().any(missing) && !self.faults.has(Fault::LeaseNotChecked) {
            return Granted::NoLease;
        }
        if leases.iter().any(|lease| self.revoking.contains(lease)) {
            return Granted::Later;
        }
        let revision = match self.faults.has(Fault::BlocksInAdvance) {
            true => self.own_revision(group),
            false => self.next,
        };
        self.next = self.next.max(revision + 1);
        for lease in leases {
            self.hold(*lease, std::iter::once(group));
        }
        self.set_last(&BTreeSet::from([group]), revision);
        Granted::Revision(revision)
    }

    /// The group's next one, where every group has some of the revisions to come: a fault.
    fn own_revision(&self, group: GroupId) -> i64 {
        let place = self.shards.keys().take_while(|other| **other < group).count() as i64;
        let (groups, last) = (self.shards.len() as i64, self.shards[&group].last);
        (last + 1..).find(|revision| revision % groups == place).unwrap_or(self.next)
    }

    fn set_last(&mut self, groups: &BTreeSet<GroupId>, last: i64) {
        let mut changed = Vec::new();
        for group in groups {
            if let Some(shard) = self.shards.get_mut(group).filter(|shard| shard.last != last) {
                shard.last = last;
                changed.push((*group, last));
            }
        }
        if !changed.is_empty() {
            let revision = self.next - 1;
            self.out.push(Do::Marks(Marks { revision, last: changed, map: None }));
        }
    }

    /// A registration is answered when no decision that concerns the group is undecided: then the
    /// group gets every branch that it lacks, and after them the latches that are alive.
    fn answer_registration(&mut self, group: GroupId) {
        let Some(shard) = self.shards.get(&group) else { return };
        let Some(applied) = shard.registering else { return };
        if self.concerns_undecided(group) && !self.faults.has(Fault::RegisteredEarly) {
            return;
        }
        let Some(passed) = self.give_up_history(group) else { return };
        let lacks = |(id, decision): (&TxId, &Decision)| {
            decision.branch(*id, group).filter(|branch| branch.revision > applied)
        };
        let mut branches: Vec<Branch> = self.kept.decisions.iter().filter_map(lacks).collect();
        branches.sort_by_key(|branch| branch.revision);
        let last = branches.last().map_or(applied, |branch| branch.revision.max(applied));
        let last = last.max(passed);
        if self.faults.has(Fault::RegisteredWithoutBranches) {
            branches.clear();
        }
        // What else was granted to this group is void: it is in no log.
        self.set_last(&BTreeSet::from([group]), last);
        if let Some(shard) = self.shards.get_mut(&group) {
            shard.registering = None;
            shard.live = true;
        }
        self.say(group, Down::Registered { branches });
        if self.kept.compacted > 0 {
            self.say(group, Down::Compact { revision: self.kept.compacted });
        }
        let alive = self.txs.iter().filter(|(_, tx)| tx.parts.contains_key(&group) && !tx.dead);
        let alive: Vec<TxId> = alive.map(|(id, _)| *id).collect();
        for id in alive {
            if let Some(tx) = self.txs.get_mut(&id)
                && !self.faults.has(Fault::VotesNotChecked)
            {
                tx.votes.remove(&group);
                tx.waits_for_limit = false;
            }
            self.send_latch(group, id);
        }
    }

    /// What a group has lost may have been shown: nothing below a revision that comes after all that is
    /// to be read or watched any more, in all groups. Gives that revision when home's log says so, and
    /// 0 for a group that has lost nothing.
    fn give_up_history(&mut self, group: GroupId) -> Option<i64> {
        let shard = self.shards.get(&group).filter(|shard| shard.lost);
        let Some(shard) = shard else { return Some(0) };
        if let Some(passed) = shard.passed {
            return Some(passed).filter(|passed| self.kept.compacted >= *passed);
        }
        // Who has heard of the last one asks from the next one on, which is below this.
        let passed = self.next + 1;
        if passed > self.kept.limit {
            self.raise_limit();
            return None;
        }
        self.next = passed + 1;
        if let Some(shard) = self.shards.get_mut(&group) {
            shard.passed = Some(passed);
        }
        self.out.push(Do::Propose(Entry::Compact { revision: passed }));
        None
    }

    // === decisions ===

    fn voted(&mut self, group: GroupId, stream: (u64, u64), id: TxId, vote: Vote) {
        let Some(tx) = self.txs.get_mut(&id) else { return };
        if !tx.parts.contains_key(&group) {
            return;
        }
        tx.votes.insert(group, (stream, vote));
        if tx.votes.len() == tx.parts.len() {
            self.decide(id);
        }
    }

    fn decide(&mut self, id: TxId) {
        if self.is_quiet() {
            // It is looked at again when this goes on.
            if let Some(tx) = self.txs.get_mut(&id) {
                tx.waits_for_limit = true;
            }
            return;
        }
        let Some(tx) = self.txs.get(&id) else { return };
        let holds = tx.votes.iter().all(|(group, (stream, _))| {
            let shard = self.shards.get(group);
            shard.is_some_and(|shard| shard.live && shard.stream == Some(*stream))
        });
        if !holds && !self.faults.has(Fault::VotesNotChecked) {
            return self.kill(id);
        }
        match &tx.kind {
            Kind::Txn(_) => self.decide_txn(id),
            Kind::Revoke(lease) => self.decide_revoke(id, *lease),
        }
    }

    fn decide_txn(&mut self, id: TxId) {
        let Some(tx) = self.txs.get(&id) else { return };
        let Kind::Txn(txn) = &tx.kind else { return };
        let rows = tx.votes.values().flat_map(|(_, vote)| &vote.rows);
        let past = tx.votes.values().flat_map(|(_, vote)| &vote.past);
        let ballots = Ballots {
            rows: rows.map(|kv| (&kv.key, kv)).collect(),
            past: past.map(|(range, at, rows)| (range, *at, rows.as_slice())).collect(),
        };
        let revisions =
            Revisions { before: self.next - 1, own: self.next, compacted: self.kept.compacted };
        let (ticket, outcome) = (tx.ticket, evaluate(&ballots, txn, revisions));
        let outcome = match outcome {
            Ok(outcome) if !outcome.changes.is_empty() => outcome,
            idle => {
                let answer = idle.map(|outcome| outcome.response);
                self.pend(Pending::Idle { ticket, answer });
                return self.release(id);
            }
        };
        let leases: BTreeSet<i64> = outcome.changes.iter().filter_map(Change::attaches).collect();
        if leases.iter().any(|lease| self.revoking.contains(lease)) {
            return self.kill(id);
        }
        if leases.iter().any(|lease| !self.kept.leases.contains(lease)) {
            self.pend(Pending::Refused { ticket, error: Error::LeaseNotFound });
            return self.release(id);
        }
        self.conclude(id, outcome.changes, None, End::Txn(outcome.response));
    }

    fn decide_revoke(&mut self, id: TxId, lease: i64) {
        let Some(tx) = self.txs.get(&id) else { return };
        let rows = tx.votes.values().flat_map(|(_, vote)| &vote.rows);
        let attached = rows.filter(|kv| kv.lease == lease);
        // In the order of the keys, as etcd deletes them.
        let keys: BTreeSet<Bytes> = attached.map(|kv| kv.key.clone()).collect();
        let changes: Vec<Change> =
            (0..).zip(keys).map(|(place, key)| Change { place, key, put: None }).collect();
        if changes.is_empty() {
            // No revision holds anything back for it: the mark does, until this is applied.
            self.leaving.insert(lease, (tx.ticket, self.next - 1));
            self.out.push(Do::Propose(Entry::LeaseGone { lease }));
            if self.faults.has(Fault::MarkEndsEarly) {
                self.revoking.remove(&lease);
            }
            return self.release(id);
        }
        let deleted = changes.len() as i64;
        self.conclude(id, changes, Some(lease), End::Revoke { deleted });
    }

    /// Gives a decision its revision and proposes it, in one step.
    fn conclude(&mut self, id: TxId, changes: Vec<Change>, lease: Option<i64>, end: End) {
        if self.next > self.kept.limit && !self.faults.has(Fault::GrantAboveLimit) {
            if let Some(tx) = self.txs.get_mut(&id) {
                tx.waits_for_limit = true;
            }
            return self.raise_limit();
        }
        let Some(tx) = self.txs.remove(&id) else { return };
        let revision = self.next;
        self.next += 1;
        let mut by_group: BTreeMap<GroupId, Vec<Change>> =
            tx.parts.keys().map(|group| (*group, Vec::new())).collect();
        for change in changes {
            let owner = self.shards.iter().find(|(_, shard)| shard.range.contains(&change.key));
            let owner = owner.map(|(group, _)| *group);
            if let Some(changes) = owner.and_then(|group| by_group.get_mut(&group)) {
                changes.push(change);
            }
        }
        let parts: BTreeSet<GroupId> = tx.parts.keys().copied().collect();
        if !self.faults.has(Fault::LastAtCommit) {
            self.set_last(&parts, revision);
        }
        let ticket = tx.ticket;
        self.undecided.insert(id, Undecided { id, ticket, parts, revision, end });
        let decision = Decision { revision, changes: by_group, lease };
        self.out.push(Do::Propose(Entry::Decision { id, decision }));
    }

    /// The latches of a transaction end without a branch.
    fn release(&mut self, id: TxId) {
        let Some(tx) = self.txs.remove(&id) else { return };
        for group in tx.parts.keys() {
            self.say(*group, Down::Release { id });
        }
    }

    /// A transaction that waits too long for its votes is not done. For good.
    pub fn kill(&mut self, id: TxId) {
        let Some(tx) = self.txs.get_mut(&id).filter(|tx| !tx.dead) else { return };
        let ticket = tx.ticket;
        if let Kind::Revoke(lease) = tx.kind {
            self.revoking.remove(&lease);
        }
        self.out.push(Do::NotDone { ticket });
        if self.faults.has(Fault::DeadDecided) {
            tx.dead = true;
        } else {
            self.release(id);
        }
        self.go_on();
    }

    /// Transactions that wait for votes, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = TxId> {
        self.txs.keys().copied()
    }

    /// Decisions that everybody has applied are forgotten.
    fn forget(&mut self) {
        let early = self.faults.has(Fault::ForgetEarly);
        let done = |decision: &Decision| {
            decision.changes.keys().all(|group| {
                let shard = self.shards.get(group);
                shard.is_none_or(|shard| shard.applied >= decision.revision) || early
            })
        };
        let decisions = self.kept.decisions.iter();
        let over = decisions.filter(|(id, d)| !self.forgetting.contains(id) && done(d));
        let over: Vec<TxId> = over.map(|(id, _)| *id).collect();
        for id in over {
            self.forgetting.insert(id);
            self.out.push(Do::Propose(Entry::Forget { id }));
        }
    }

    // === what home has applied ===

    /// Home has applied an entry: its own, or one of its predecessors.
    pub fn applied(&mut self, entry: &Entry) {
        match entry {
            Entry::Limit { revision } => {
                self.kept.limit = self.kept.limit.max(*revision);
                self.asked_limit = false;
                if self.hand == Hand::Back {
                    self.hand = Hand::No;
                }
            }
            Entry::Hand { revision } => self.kept.limit = *revision,
            Entry::Decision { id, decision } => {
                self.kept.decisions.insert(*id, decision.clone());
                if let Some(lease) = decision.lease {
                    self.kept.leases.remove(&lease);
                    self.revoking.remove(&lease);
                }
                self.decided(*id, decision);
            }
            Entry::Forget { id } => {
                self.kept.decisions.remove(id);
                self.forgetting.remove(id);
            }
            Entry::LeaseGranted { lease, .. } => {
                self.kept.leases.insert(*lease);
                self.holders.insert(*lease, Holders::Some(BTreeSet::new()));
                if let Some(ticket) = self.granting.remove(lease) {
                    let revision = self.next - 1;
                    self.out.push(Do::LeaseGranted { ticket, revision });
                }
            }
            Entry::LeaseGone { lease } => {
                self.kept.leases.remove(lease);
                self.revoking.remove(lease);
                if let Some((ticket, revision)) = self.leaving.remove(lease) {
                    self.pend(Pending::Gone { ticket, revision });
                }
            }
            Entry::Compact { revision } => {
                self.kept.compacted = self.kept.compacted.max(*revision);
                let (done, rest) =
                    self.compacting.drain(..).partition::<Vec<_>, _>(|(_, to)| to <= revision);
                self.compacting = rest;
                for (ticket, to) in done {
                    match to == *revision {
                        true => self.out.push(Do::Compacted { ticket, revision: self.next - 1 }),
                        // Another one went further meanwhile.
                        false => self.pend(Pending::Refused { ticket, error: Error::Compacted }),
                    }
                }
                for group in self.shards.keys().copied().collect::<Vec<_>>() {
                    self.say(group, Down::Compact { revision: *revision });
                }
            }
            Entry::Map { group, place } => {
                self.placing.remove(group);
                let waiting = self.unplaced.remove(group);
                self.placed(*group, place);
                if let Some((from, word)) = waiting {
                    self.hear(from, word);
                }
            }
            Entry::Seal { .. }
            | Entry::Write { .. }
            | Entry::Branch { .. }
            | Entry::Split { .. }
            | Entry::Begin { .. }
            | Entry::Freeze { .. }
            | Entry::Absorb { .. }
            | Entry::Abort { .. }
            | Entry::Thaw { .. }
            | Entry::Gone { .. } => return,
        }
        self.go_on();
    }

    fn decided(&mut self, id: TxId, decision: &Decision) {
        let Some(undecided) = self.undecided.remove(&id) else { return };
        if self.faults.has(Fault::LastAtCommit) {
            self.set_last(&undecided.parts, undecided.revision);
        }
        for group in &undecided.parts {
            let Some(branch) = decision.branch(undecided.id, *group) else { continue };
            if self.faults.has(Fault::BranchLate) {
                let stream = self.shards.get(group).and_then(|shard| shard.stream);
                let Some((term, number)) = stream else { continue };
                let to = StreamId { group: *group, term, number };
                self.late.push((to, Down::Decided(branch)));
            } else {
                self.say(*group, Down::Decided(branch));
            }
        }
        let ticket = undecided.ticket;
        self.out.push(match undecided.end {
            End::Txn(response) => Do::Answer { ticket, answer: Ok(response) },
            End::Revoke { deleted, .. } => {
                Do::Revoked { ticket, revision: undecided.revision, deleted }
            }
        });
    }

    /// Only with a planted fault: the branches that were left behind go out.
    pub fn send_late(&mut self) {
        for (to, word) in std::mem::take(&mut self.late) {
            self.out.push(Do::Send { to, word });
        }
    }

    // === read rounds ===

    fn pend(&mut self, pending: Pending) {
        let without = match &pending {
            Pending::Refused { .. } | Pending::Leases { .. } => {
                self.faults.has(Fault::LeaseNotConfirmed)
            }
            _ => self.faults.has(Fault::NoReadRound),
        };
        if without {
            return self.confirmed(pending);
        }
        self.fresh.push(pending);
        self.begin_round();
    }

    /// What came while a round is under way shares the next one.
    fn begin_round(&mut self) {
        if self.in_round.is_empty() && !self.fresh.is_empty() {
            self.rounds += 1;
            self.in_round.insert(self.rounds, std::mem::take(&mut self.fresh));
            self.out.push(Do::Round { round: self.rounds });
        }
    }

    /// A read round that was begun when it was asked for is done: this leads still, then.
    pub fn round_done(&mut self, round: u64) {
        for pending in self.in_round.remove(&round).into_iter().flatten() {
            self.confirmed(pending);
        }
        self.begin_round();
    }

    fn confirmed(&mut self, pending: Pending) {
        match pending {
            Pending::Ask { to, revision, last } => {
                self.out.push(Do::Send { to, word: Down::Answer { revision, last } });
            }
            Pending::Leases { to, found } => {
                self.out.push(Do::Send { to, word: Down::Leases { found } });
            }
            Pending::Read { ticket, marks } => {
                let last = marks.last.into_iter().collect();
                let map = marks.map.unwrap_or_default();
                self.out.push(Do::Readable { ticket, revision: marks.revision, last, map });
            }
            Pending::Idle { ticket, answer } => self.out.push(Do::Answer { ticket, answer }),
            Pending::Refused { ticket, error } => {
                self.out.push(Do::Answer { ticket, answer: Err(error) });
            }
            Pending::Gone { ticket, revision } => {
                self.out.push(Do::Revoked { ticket, revision, deleted: 0 });
            }
        }
    }

    // === planned transfer ===

    /// Home's leadership is to move: grants and shows nothing more, and writes down where it
    /// stopped, so that the next sequencer goes on without a gap. Says whether it could; not while
    /// something is undecided.
    pub fn hand_over(&mut self) -> bool {
        if !self.open || self.hand != Hand::No || !self.undecided.is_empty() || self.asked_limit {
            return false;
        }
        self.hand = Hand::Over;
        self.out.push(Do::Propose(Entry::Hand { revision: self.next - 1 }));
        true
    }

    /// Does the log say where it stopped?
    pub fn is_handed_over(&self) -> bool {
        self.hand == Hand::Over && self.kept.limit == self.next - 1
    }

    /// The transfer has come to nothing: goes on as soon as a higher limit is applied. To be
    /// called when the entry of [`Sequencer::hand_over`] was applied.
    pub fn take_back(&mut self) {
        if self.hand == Hand::Over {
            self.hand = Hand::Back;
            self.asked_limit = true;
            let revision = self.kept.limit.max(self.next) + self.window;
            self.out.push(Do::Propose(Entry::Limit { revision }));
        }
    }

    // === one group again ===

    /// Home is about to absorb the last other group: from now on nothing is granted or shown.
    /// Gives the last revision that was, which the entry must carry; nothing while a decision is
    /// not applied or a transfer is under way.
    pub fn close(&mut self) -> Option<i64> {
        if !self.open || self.hand != Hand::No || !self.undecided.is_empty() {
            return None;
        }
        self.hand = Hand::Closed;
        Some(self.next - 1)
    }

    /// It came to nothing: the entry was applied, and refused.
    pub fn reopen(&mut self) {
        if self.hand == Hand::Closed {
            self.hand = Hand::No;
            self.go_on();
        }
    }

    /// Requests that are not answered, and whether each may be done.
    pub fn open_tickets(&self) -> Vec<(Ticket, bool)> {
        let early = self.early.iter().map(|(ticket, _)| (*ticket, false));
        let txs = self.txs.values().map(|tx| (tx.ticket, false));
        let pending = self.fresh.iter().chain(self.in_round.values().flatten());
        let pending = pending.filter_map(|pending| match pending {
            Pending::Ask { .. } | Pending::Leases { .. } => None,
            Pending::Read { ticket, .. }
            | Pending::Idle { ticket, .. }
            | Pending::Refused { ticket, .. } => Some((*ticket, false)),
            Pending::Gone { ticket, .. } => Some((*ticket, true)),
        });
        let leaving = self.leaving.values().map(|(ticket, _)| *ticket);
        let undecided = self.undecided.values().map(|undecided| undecided.ticket);
        let compacting = self.compacting.iter().map(|(ticket, _)| *ticket);
        let proposed = self.granting.values().copied().chain(leaving).chain(undecided);
        let proposed = proposed.chain(compacting);
        early.chain(txs).chain(pending).chain(proposed.map(|ticket| (ticket, true))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(start: &'static str, end: Option<&'static str>, version: u64) -> Place {
        let range = KeyRange { start: start.into(), end: end.map(Bytes::from) };
        Place { range, version }
    }

    /// Home after a change of its leader: the other group is sealed, too.
    fn opened() -> (Kept, Sequencer) {
        let (home, right) = (GroupId(1), GroupId(2));
        let (low, high) = (place("", Some("m"), 2), place("m", None, 2));
        let map = [(home, low.clone()), (right, high)].into();
        let kept = Kept { map, revision: 7, limit: 40, seal: 3, ..Kept::new(home, low) };
        let mut sequencer = Sequencer::new(3, kept.clone(), 10, Faults::NONE);
        sequencer.sealed(home, 3, 7);
        sequencer.sealed(right, 3, 5);
        (kept, sequencer)
    }

    /// What was shown at home's limit is in no log: random runs meet it once in thousands.
    #[test]
    fn a_tenant_on_one_group_again_goes_on_above_all_that_was_shown() {
        let (mut kept, mut sequencer) = opened();
        sequencer.read(1);
        let round = sequencer.take().into_iter().find_map(|wish| match wish {
            Do::Round { round } => Some(round),
            _ => None,
        });
        sequencer.round_done(round.expect("a read needs a round"));
        let shown = sequencer.take().into_iter().find_map(|wish| match wish {
            Do::Readable { revision, .. } => Some(revision),
            _ => None,
        });
        assert_eq!(shown, Some(40));
        let base = sequencer.close();
        assert_eq!(base, shown);
        let merge = crate::split::entry::Merge { number: 1, right: GroupId(2) };
        let (epoch, version) = (3, 2);
        kept.apply(&Entry::Begin { epoch, version, merge }, Faults::NONE).expect("in order");
        let place = place("m", None, 2);
        let absorb = Entry::Absorb { epoch, merge: 1, place, revision: 5, base };
        kept.apply(&absorb, Faults::NONE).expect("in order");
        assert!(kept.is_alone() && kept.revision == 40 && kept.map.is_empty());
    }

    /// A group goes on with one of its replicas: nobody knows what only the others had.
    #[test]
    fn history_is_given_up_before_a_group_that_has_lost_some_is_served() {
        let (kept, mut sequencer) = opened();
        sequencer.take();
        sequencer.applied(&Entry::Limit { revision: 100 });
        sequencer.take();
        let right = GroupId(2);
        let from = StreamId { group: right, term: 9, number: 1 };
        let (place, applied) = (kept.map[&right].clone(), 5);
        let register = |lost| {
            let (term, number, seal, place) = (9, 1, 3, place.clone());
            Up::Register { place, term, number, seal, applied, frozen: false, lost }
        };
        sequencer.hear(from, register(true));
        // 41 was the next: who has heard of 40 asks from there.
        assert_eq!(sequencer.take(), vec![Do::Propose(Entry::Compact { revision: 42 })]);
        assert_eq!(sequencer.last(), 42);
        sequencer.applied(&Entry::Compact { revision: 42 });
        let words: Vec<Down> = sequencer
            .take()
            .into_iter()
            .filter_map(|wish| match wish {
                Do::Send { word, .. } => Some(word),
                _ => None,
            })
            .collect();
        let registered = Down::Registered { branches: Vec::new() };
        assert_eq!(words, [registered, Down::Compact { revision: 42 }]);
    }

    #[test]
    fn nothing_is_granted_or_shown_while_the_last_group_is_absorbed() {
        let (_, mut sequencer) = opened();
        assert_eq!(sequencer.close(), Some(40));
        assert_eq!(sequencer.close(), None, "not twice");
        sequencer.take();
        sequencer.read(1);
        assert_eq!(sequencer.take(), Vec::new());
        assert_eq!(sequencer.open_tickets(), vec![(1, false)]);
        sequencer.reopen();
        assert!(matches!(sequencer.take().as_slice(), [.., Do::Round { .. }]));
    }

    /// A frozen group is asked about by its number: only the left group's log ends it.
    #[test]
    fn the_first_of_absorb_and_abort_wins() {
        let (mut left, _) = opened();
        let merge = crate::split::entry::Merge { number: 4, right: GroupId(2) };
        let begin = Entry::Begin { epoch: 3, version: 2, merge };
        left.apply(&begin, Faults::NONE).expect("in order");
        left.apply(&Entry::Abort { merge: 4 }, Faults::NONE).expect("in order");
        let place = place("m", None, 2);
        let absorb = Entry::Absorb { epoch: 3, merge: 4, place, revision: 9, base: None };
        let late = left.apply(&absorb, Faults::NONE).expect("in order");
        assert_eq!((late, left.revision), (crate::split::entry::Verdict::Refused, 7));
        assert!(left.absorbed.is_empty() && !left.is_alone());
    }
}
