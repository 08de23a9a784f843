//! A group's leader as a part of a split tenant: it takes the requests for its range, asks the
//! sequencer for revisions, and keeps what collides with a transaction over several groups away
//! until that is decided. Pure; lives as long as the leadership.
//!
//! Everything that changes something stands in one *line*, in order of arrival, until it is
//! applied. An item goes on when nothing before it in the line holds it up:
//!
//! | before it | it | held up |
//! |---|---|---|
//! | a latch | anything that collides or names its lease | until the latch ends |
//! | a write without a revision yet | a write that collides | until that has asked |
//! | a write or branch on its way | a conditional write that collides | until that is applied |
//! | a write or branch | a latch that collides or names its lease | until that is applied |
//!
//! Nothing ever waits for what came later, so there is no deadlock and no starvation. A
//! conditional write is evaluated on applied rows when its turn has come: everything that collides
//! and came before is among them, and what comes later gets a higher revision.
//!
//! What would change nothing is a read: it is evaluated at the revision that the sequencer names.
//!
//! Made by a leader that has applied the first entry of its term; dropped when it leads no more:
//! whoever drives it answers what is left, what was proposed when that is applied or lost
//! ([`Participant::ticket`]), the rest as *not done*.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use bytes::Bytes;
use proto::etcd::request_op::Request as Op;
use proto::etcd::{RequestOp, TxnRequest, TxnResponse};
use proto::mvccpb::KeyValue;
use proto::{Error, GroupId, KeyRange};

use super::entry::{Entry, Merge};
use super::evaluate::{Change, Outcome, Prediction, Revisions, Rows, evaluate};
use super::faults::{Fault, Faults};
use super::footprint::Footprint;
use super::stream::{Branch, Down, Granted, Place, TxId, Up, Vote, Wanted};

/// Names a waiting request to whoever drives the participant.
pub type Ticket = u64;
/// Writes that ask together, at most.
const WANT_MAX: usize = 256;

/// The applied state of the group's replica here.
pub trait Replica: Rows {
    /// The last revision in the log, as far as it is applied.
    fn revision(&self) -> i64;
    /// The highest sealed epoch, as far as it is applied.
    fn seal(&self) -> u64;
    /// The group's keys, as far as it has applied.
    fn place(&self) -> &Place;
    /// Is it frozen, as far as it has applied?
    fn is_frozen(&self) -> bool;
    /// Has it lost what nobody knows, as far as it has applied?
    fn is_lost(&self) -> bool;
    /// Below this nothing can be read.
    fn compacted(&self) -> i64;
    /// The live keys inside `range`, as they stand, without values.
    fn keys(&self, range: &KeyRange) -> Vec<KeyValue>;
    /// Keys that are attached to a lease.
    fn attached(&self, lease: i64) -> Vec<Bytes>;
}

/// What a participant wants done, in this order.
#[derive(Debug, PartialEq)]
pub enum Do {
    /// Say this on the stream.
    Send(Up),
    /// Propose an entry; `tag` comes back when it is applied. Where a tenant comes to be on one
    /// group again, [`Entry::Absorb`] is to be given its base first (`Sequencer::close`).
    Propose {
        /// Names the proposal.
        tag: i64,
        /// The entry.
        entry: Entry,
    },
    /// Answer a request: a change, or what would have changed nothing.
    Answer {
        /// Whose.
        ticket: Ticket,
        /// How.
        answer: Result<TxnResponse, Error>,
    },
    /// Rows may be read for a request, at this revision.
    Readable {
        /// Whose.
        ticket: Ticket,
        /// At which.
        revision: i64,
        /// What lies below this one is gone.
        compacted: i64,
    },
    /// The stream is of no use any more: begin a new one.
    Break,
    /// Certainly not done: the keys are not, or no more, this group's.
    Elsewhere {
        /// Whose.
        ticket: Ticket,
    },
}

impl Do {
    /// Does it end a request?
    pub fn is_answer(&self) -> bool {
        matches!(self, Do::Answer { .. } | Do::Readable { .. } | Do::Elsewhere { .. })
    }
}

/// What applying a write gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// It was made.
    Done(TxnResponse),
    /// It came to something else than was foreseen: nothing was changed.
    Void,
    /// Its epoch is over: nothing was changed.
    Refused,
    /// It was made, but a value for the answer is damaged on this disk.
    Unread,
}

#[derive(Clone, Debug)]
enum Body {
    Write {
        ticket: Ticket,
        txn: TxnRequest,
        stage: Stage,
    },
    Latch {
        id: TxId,
        voted: bool,
    },
    /// Proposed, not applied yet.
    Branch,
    /// A change of the range: it goes alone.
    Range {
        change: RangeChange,
        proposed: bool,
    },
}

/// What may become of a group's range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeChange {
    /// The keys from `at` on go to a new group.
    Split {
        /// Its first key.
        at: Bytes,
        /// The new group.
        child: GroupId,
    },
    /// The group is about to be absorbed by its left neighbour, which has said so in its log.
    Freeze {
        /// Number of the merge.
        merge: u64,
        /// The neighbour.
        left: GroupId,
        /// Version of the range that it is about.
        version: u64,
    },
    /// The right neighbour is frozen, in all its replicas: its keys are this group's.
    Absorb {
        /// Number of the merge.
        merge: u64,
        /// What it has.
        place: Place,
        /// The last revision in its log.
        revision: i64,
    },
}

impl RangeChange {
    fn is_of_merge(&self) -> bool {
        matches!(self, RangeChange::Freeze { .. } | RangeChange::Absorb { .. })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Asked(Prediction),
    Proposed,
}

#[derive(Clone, Debug)]
struct Item {
    footprint: Footprint,
    body: Body,
}

#[derive(Clone, Debug)]
enum Read {
    Rows(Ticket, KeyRange),
    /// A transaction that would have changed nothing.
    Idle(Ticket, TxnRequest),
}

/// Somebody asks for a lease that the sequencer does not have.
#[derive(Clone, Debug)]
struct Doubt {
    ticket: Ticket,
    txn: TxnRequest,
    leases: Vec<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No stream.
    Apart,
    /// Has a stream; what was proposed is not applied yet.
    Joining,
    Registering,
    /// Registered; branches up to this revision are not applied yet.
    Catching(i64),
    Live,
}

/// See the module.
#[derive(Debug)]
pub struct Participant {
    faults: Faults,
    term: u64,
    number: u64,
    /// Epoch of the sequencer at the other end of the stream.
    epoch: u64,
    /// The highest epoch that is sealed, or proposed to be.
    seal: u64,
    phase: Phase,
    line: BTreeMap<i64, Item>,
    first: i64,
    next: i64,
    /// Latches that came before the branches were applied.
    latches: VecDeque<(TxId, Footprint, bool)>,
    asked: Option<Vec<i64>>,
    reads: Vec<Read>,
    asking: Option<Vec<Read>>,
    told: Vec<(Read, i64, i64)>,
    doubts: Vec<Doubt>,
    doubting: Option<Vec<Doubt>>,
    /// Home has said so; it may not be applied here yet.
    compacted: i64,
    /// Its keys are another group's for good.
    gone: bool,
    /// Asks for no revisions: the leadership is about to move.
    resting: bool,
    /// Proposals that are not applied.
    unapplied: BTreeSet<i64>,
    out: Vec<Do>,
}

/// Rows of another moment.
struct At<'a>(&'a dyn Replica, i64);

impl Rows for At<'_> {
    fn scan(&self, range: &KeyRange, at: Option<i64>) -> Vec<KeyValue> {
        self.0.scan(range, Some(at.unwrap_or(self.1)))
    }
}

fn leases_of(changes: &[Change]) -> Vec<i64> {
    let leases: BTreeSet<i64> = changes.iter().filter_map(Change::attaches).collect();
    leases.into_iter().collect()
}

/// The path of a transaction without compares.
fn plain_path(txn: &TxnRequest) -> Vec<bool> {
    let nested = |op: &RequestOp| match &op.request {
        Some(Op::RequestTxn(nested)) => plain_path(nested),
        _ => Vec::new(),
    };
    std::iter::once(true).chain(txn.success.iter().flat_map(nested)).collect()
}

fn of_branch(branch: &Branch) -> Footprint {
    let mut footprint = Footprint { leases: leases_of(&branch.changes), ..Footprint::default() };
    footprint.cover(branch.changes.iter().map(|change| change.key.clone()));
    footprint
}

impl Participant {
    /// A participant for the leadership of `term`, of a replica that has sealed `seal`. A leader
    /// whose tenant was split before, in the same term, goes on with the numbers of its streams:
    /// `number` is the last one, or 0.
    pub fn new(term: u64, number: u64, seal: u64, faults: Faults) -> Participant {
        Participant {
            faults,
            term,
            number,
            epoch: 0,
            seal,
            phase: Phase::Apart,
            line: BTreeMap::new(),
            first: 0,
            next: 1,
            latches: VecDeque::new(),
            asked: None,
            reads: Vec::new(),
            asking: None,
            told: Vec::new(),
            doubts: Vec::new(),
            doubting: None,
            compacted: 0,
            gone: false,
            resting: false,
            unapplied: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    /// What is to be done.
    pub fn take(&mut self) -> Vec<Do> {
        std::mem::take(&mut self.out)
    }

    /// Is nothing waiting or on its way here?
    pub fn is_idle(&self) -> bool {
        let reads = self.reads.is_empty() && self.asking.is_none() && self.told.is_empty();
        let doubts = self.doubts.is_empty() && self.doubting.is_none();
        self.line.is_empty() && reads && doubts && self.unapplied.is_empty()
    }

    /// Requests that are not answered, and whether each may have been proposed.
    pub fn open_tickets(&self) -> Vec<(Ticket, bool)> {
        let writes = self.line.values().filter_map(|item| match &item.body {
            Body::Write { ticket, stage, .. } => Some((*ticket, *stage == Stage::Proposed)),
            _ => None,
        });
        let asking = self.asking.iter().flatten();
        let reads = self.reads.iter().chain(asking).chain(self.told.iter().map(|told| &told.0));
        let reads = reads.map(|read| match read {
            Read::Rows(ticket, _) | Read::Idle(ticket, _) => (*ticket, false),
        });
        let doubts = self.doubts.iter().chain(self.doubting.iter().flatten());
        writes.chain(reads).chain(doubts.map(|doubt| (doubt.ticket, false))).collect()
    }

    /// The request for which `tag` was proposed.
    pub fn ticket(&self, tag: i64) -> Option<Ticket> {
        match &self.line.get(&tag)?.body {
            Body::Write { ticket, stage: Stage::Proposed, .. } => Some(*ticket),
            _ => None,
        }
    }

    // === requests ===

    /// A transaction whose keys are all in this group's range.
    pub fn write(&mut self, ticket: Ticket, txn: TxnRequest) {
        let footprint = Footprint::of(&txn);
        let body = Body::Write { ticket, txn, stage: Stage::Waiting };
        self.push(Item { footprint, body });
    }

    /// A linearizable read.
    pub fn read(&mut self, ticket: Ticket, keys: KeyRange) {
        self.reads.push(Read::Rows(ticket, keys));
    }

    /// The range is to change. What came before is done first; what comes later waits until it is.
    pub fn change(&mut self, change: RangeChange) {
        let whole = vec![KeyRange::all()];
        let footprint = Footprint { writes: whole, conditional: true, ..Footprint::default() };
        self.push(Item { footprint, body: Body::Range { change, proposed: false } });
    }

    /// The right neighbour is to be merged into this group: says so in the log, if this takes
    /// requests on now. From then on the neighbour may be asked to freeze.
    pub fn begin(&mut self, replica: &dyn Replica, merge: Merge) {
        if self.phase == Phase::Live && !replica.is_frozen() {
            let (epoch, version) = (self.epoch, replica.place().version);
            self.note(Entry::Begin { epoch, version, merge });
        }
    }

    /// The merge takes too long, or there is any doubt: it is not to be, unless it is already.
    pub fn abort(&mut self, merge: u64) {
        self.note(Entry::Abort { merge });
    }

    /// The merge for which this group is frozen was not to be; the left group's log says so.
    pub fn thaw(&mut self, merge: u64) {
        self.note(Entry::Thaw { merge });
    }

    /// Of an absorbed group nothing is left.
    pub fn forget(&mut self, right: GroupId) {
        self.note(Entry::Gone { right });
    }

    /// The left neighbour has absorbed this group: everybody is to ask there.
    pub fn leave(&mut self) {
        self.disconnect();
        self.gone = true;
    }

    /// Proposes something that nothing here waits for.
    fn note(&mut self, entry: Entry) {
        self.out.push(Do::Propose { tag: 0, entry });
    }

    fn push(&mut self, item: Item) {
        self.line.insert(self.next, item);
        self.next += 1;
    }

    /// In front of everything that waits.
    fn push_front(&mut self, item: Item) -> i64 {
        self.first -= 1;
        self.line.insert(self.first, item);
        self.first
    }

    // === the stream ===

    /// There is a way to the sequencer of `epoch`; gives the number of the stream.
    pub fn connect(&mut self, epoch: u64) -> u64 {
        self.disconnect();
        self.epoch = epoch;
        self.number += 1;
        self.phase = Phase::Joining;
        self.number
    }

    /// The stream is broken: what was asked on it is asked again on the next.
    pub fn disconnect(&mut self) {
        self.phase = Phase::Apart;
        for tag in self.asked.take().into_iter().flatten() {
            if let Some(Item { body: Body::Write { stage, .. }, .. }) = self.line.get_mut(&tag) {
                *stage = Stage::Waiting;
            }
        }
        // A merge may be over when there is a stream again: who drives it asks again.
        let goes = |item: &Item| match &item.body {
            Body::Latch { .. } => true,
            Body::Range { change, proposed: false } => change.is_of_merge(),
            _ => false,
        };
        self.line.retain(|_, item| !goes(item));
        self.latches.clear();
        let told = std::mem::take(&mut self.told).into_iter().map(|told| told.0);
        self.reads.extend(self.asking.take().into_iter().flatten().chain(told));
        self.doubts.extend(self.doubting.take().into_iter().flatten());
    }

    /// The leadership is to move, or stays after all: asks for no more revisions meanwhile, because
    /// those that nobody proposes would be missing.
    pub fn rest(&mut self, rests: bool) {
        self.resting = rests;
    }

    /// Was everything answered that it has asked the sequencer for on behalf of writes?
    pub fn has_asked_nothing(&self) -> bool {
        self.asked.is_none()
    }

    /// Are its keys another group's for good?
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// The number of its last stream.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Is there no stream?
    pub fn is_apart(&self) -> bool {
        self.phase == Phase::Apart
    }

    /// Are requests taken on, on the stream of now?
    pub fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// A sequencer of `epoch` wants everything older to end. From now on nothing of an older one
    /// is taken; the caller answers it with the last revision once the seal is applied.
    pub fn seal(&mut self, epoch: u64) {
        if epoch <= self.seal {
            return;
        }
        self.seal = epoch;
        if self.phase != Phase::Apart && self.epoch < epoch {
            self.give_up_stream();
        }
        self.note(Entry::Seal { epoch });
    }

    fn give_up_stream(&mut self) {
        self.disconnect();
        self.out.push(Do::Break);
    }

    /// The sequencer said something on the stream of now.
    pub fn hear(&mut self, replica: &dyn Replica, word: Down) {
        if self.epoch < self.seal && !self.faults.has(Fault::NoSeal) {
            return self.give_up_stream();
        }
        match word {
            Down::NeedSeal { epoch } => {
                self.seal(epoch);
                if self.phase != Phase::Apart {
                    self.give_up_stream();
                }
            }
            Down::Registered { branches } => self.registered(replica, branches),
            Down::Granted { items } => self.granted(items),
            Down::Answer { revision, last } => {
                let reads = self.asking.take().into_iter().flatten();
                self.told.extend(reads.map(|read| (read, revision, last)));
            }
            Down::Leases { found } => self.found(found),
            Down::Latch { id, footprint, revokes } => {
                self.latches.push_back((id, footprint, revokes));
            }
            Down::Release { id } => {
                self.latches.retain(|latch| latch.0 != id);
                self.line.retain(|_, item| !is_latch(item, id));
            }
            Down::Decided(branch) => self.decided(branch),
            Down::Compact { revision } => {
                self.compacted = self.compacted.max(revision);
                if revision > replica.compacted() {
                    self.note(Entry::Compact { revision });
                }
            }
        }
    }

    fn registered(&mut self, replica: &dyn Replica, branches: Vec<Branch>) {
        let last = branches.last().map_or(0, |branch| branch.revision);
        self.phase = Phase::Catching(last.max(replica.revision()));
        // Each goes in front of all that waits, the first one first.
        self.first -= branches.len() as i64;
        for (place, branch) in (self.first..).zip(branches) {
            self.propose_branch(place, branch);
        }
    }

    fn decided(&mut self, branch: Branch) {
        self.latches.retain(|latch| latch.0 != branch.id);
        let latch = self.line.iter().find(|(_, item)| is_latch(item, branch.id));
        // What the latch held up waits for the branch now.
        let place = latch.map(|(tag, _)| *tag);
        let place = place.unwrap_or_else(|| {
            let footprint = Footprint::default();
            self.push_front(Item { footprint, body: Body::Branch })
        });
        self.propose_branch(place, branch);
    }

    fn propose_branch(&mut self, tag: i64, branch: Branch) {
        self.line.insert(tag, Item { footprint: of_branch(&branch), body: Body::Branch });
        self.propose(tag, Entry::Branch { epoch: self.epoch, branch });
    }

    fn propose(&mut self, tag: i64, entry: Entry) {
        self.unapplied.insert(tag);
        self.out.push(Do::Propose { tag, entry });
    }

    fn granted(&mut self, items: Vec<Granted>) {
        for (tag, granted) in self.asked.take().into_iter().flatten().zip(items) {
            let Some(item) = self.line.remove(&tag) else { continue };
            let Body::Write { ticket, txn, stage: Stage::Asked(predicted) } = item.body else {
                continue;
            };
            match granted {
                Granted::Revision(revision) => {
                    let body = Body::Write { ticket, txn: txn.clone(), stage: Stage::Proposed };
                    self.line.insert(tag, Item { footprint: item.footprint, body });
                    let epoch = self.epoch;
                    self.propose(tag, Entry::Write { epoch, revision, txn, predicted });
                }
                // At the end of the line: the latch that is to come must not wait for it.
                Granted::Later => self.write(ticket, txn),
                Granted::NoLease => {
                    let leases = item.footprint.leases;
                    self.doubts.push(Doubt { ticket, txn, leases });
                }
            }
        }
    }

    fn found(&mut self, found: Vec<bool>) {
        for (doubt, found) in self.doubting.take().into_iter().flatten().zip(found) {
            match found {
                true => self.write(doubt.ticket, doubt.txn),
                false => self.answer(doubt.ticket, Err(Error::LeaseNotFound)),
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<TxnResponse, Error>) {
        self.out.push(Do::Answer { ticket, answer });
    }

    // === what was applied ===

    /// A proposed write was applied.
    pub fn written(&mut self, tag: i64, written: Written) {
        self.unapplied.remove(&tag);
        let Some(Item { body: Body::Write { ticket, txn, .. }, .. }) = self.line.remove(&tag)
        else {
            return;
        };
        match written {
            Written::Done(response) => self.answer(ticket, Ok(response)),
            Written::Void | Written::Refused => self.write(ticket, txn),
            Written::Unread => self.answer(ticket, Err(Error::DamagedValue)),
        }
    }

    /// A proposed branch was applied, or refused: then it comes again.
    pub fn branched(&mut self, tag: i64) {
        self.unapplied.remove(&tag);
        self.line.remove(&tag);
    }

    /// A change of the range was applied, or refused: the group registers anew with the keys that
    /// it has now.
    pub fn ranged(&mut self, tag: i64) {
        self.unapplied.remove(&tag);
        self.line.remove(&tag);
        if self.phase != Phase::Apart {
            self.give_up_stream();
        }
    }

    // === what goes on ===

    /// Does what can be done now. To be called after anything else.
    pub fn advance(&mut self, replica: &dyn Replica) {
        let applied = replica.revision();
        // A seal that is only proposed says nothing: a deposed leader can propose one, too.
        let sealed = replica.seal() >= self.seal;
        let drained = self.unapplied.is_empty() || self.faults.has(Fault::RegisterUndrained);
        if self.phase == Phase::Joining && drained && sealed {
            self.phase = Phase::Registering;
            let (term, number, seal) = (self.term, self.number, replica.seal());
            let place = replica.place().clone();
            let (frozen, lost) = (replica.is_frozen(), replica.is_lost());
            let register = Up::Register { place, term, number, seal, applied, frozen, lost };
            self.out.push(Do::Send(register));
        }
        let caught_up = matches!(self.phase, Phase::Catching(last) if last <= applied);
        if caught_up && !replica.is_lost() {
            self.phase = Phase::Live;
        }
        if self.gone {
            let tickets = self.open_tickets();
            self.out.extend(tickets.into_iter().map(|(ticket, _)| Do::Elsewhere { ticket }));
            self.line.clear();
            self.reads.clear();
            self.doubts.clear();
        }
        let serves = !replica.is_frozen() || self.faults.has(Fault::FrozenServes);
        if self.phase != Phase::Live || !serves {
            return;
        }
        self.turn_away(replica.place());
        while let Some((id, mut footprint, revokes)) = self.latches.pop_front() {
            if revokes && !self.faults.has(Fault::LeaseKeysFree) {
                self.cover_keys(replica, &mut footprint);
            }
            self.push(Item { footprint, body: Body::Latch { id, voted: false } });
        }
        self.vote(replica, applied);
        self.answer_reads(replica, applied);
        if self.doubting.is_none() && !self.doubts.is_empty() {
            let leases = self.doubts.iter().map(|doubt| doubt.leases.clone()).collect();
            self.doubting = Some(std::mem::take(&mut self.doubts));
            self.out.push(Do::Send(Up::AskLeases { leases }));
        }
        if self.asked.is_none() && !self.resting {
            self.want(replica, applied);
        }
        self.change_range(replica);
        if self.asking.is_none() && !self.reads.is_empty() {
            self.asking = Some(std::mem::take(&mut self.reads));
            self.out.push(Do::Send(Up::Ask { applied }));
        }
    }

    /// Whoever asks for keys that are not this group's is to ask elsewhere.
    fn turn_away(&mut self, place: &Place) {
        let inside = |keys: &KeyRange| keys.is_within(&place.range);
        let fits = |footprint: &Footprint| {
            let past = footprint.past.iter().map(|(keys, _)| keys);
            footprint.reads.iter().chain(&footprint.writes).chain(past).all(inside)
        };
        let mut away = Vec::new();
        self.line.retain(|_, item| match &item.body {
            Body::Write { ticket, stage: Stage::Waiting, .. } if !fits(&item.footprint) => {
                away.push(*ticket);
                false
            }
            _ => true,
        });
        self.reads.retain(|read| {
            let (ticket, stays) = match read {
                Read::Rows(ticket, keys) => (ticket, inside(keys)),
                Read::Idle(ticket, txn) => (ticket, fits(&Footprint::of(txn))),
            };
            if !stays {
                away.push(*ticket);
            }
            stays
        });
        self.out.extend(away.into_iter().map(|ticket| Do::Elsewhere { ticket }));
    }

    /// Proposes a change of the range once nothing else is under way.
    fn change_range(&mut self, replica: &dyn Replica) {
        let hurries = |item: &Item| match &item.body {
            Body::Range { change: RangeChange::Absorb { .. }, .. } => {
                self.faults.has(Fault::AbsorbNotAlone)
            }
            Body::Range { .. } => self.faults.has(Fault::RangeNotAlone),
            _ => false,
        };
        let hurried = self.line.iter().find(|(_, item)| hurries(item));
        let alone = || self.line.iter().next().filter(|_| self.unapplied.is_empty());
        let Some((tag, item)) = hurried.or_else(alone) else { return };
        let Body::Range { change, proposed: false } = &item.body else { return };
        let (tag, epoch, own) = (*tag, self.epoch, replica.place().version);
        let entry = match change.clone() {
            RangeChange::Split { at, child } => {
                Entry::Split { epoch, version: own, at, child, limit: 0 }
            }
            RangeChange::Freeze { merge, left, version } => {
                Entry::Freeze { epoch, version, merge, left }
            }
            RangeChange::Absorb { merge, place, revision } => {
                Entry::Absorb { epoch, merge, place, revision, base: None }
            }
        };
        if let Some(Item { body: Body::Range { proposed, .. }, .. }) = self.line.get_mut(&tag) {
            *proposed = true;
        }
        self.propose(tag, entry);
    }

    /// A latch that revokes leases covers their keys, attached or about to be.
    fn cover_keys(&self, replica: &dyn Replica, footprint: &mut Footprint) {
        let named = Footprint { leases: footprint.leases.clone(), ..Footprint::default() };
        for lease in &named.leases {
            footprint.cover(replica.attached(*lease));
        }
        let attaching = self.line.values().filter(|item| item.footprint.shares_lease(&named));
        let writes = attaching.flat_map(|item| item.footprint.writes.iter().cloned());
        footprint.writes.extend(writes);
    }

    fn is_held_up(&self, tag: i64, item: &Item) -> bool {
        self.line.range(..tag).any(|(_, earlier)| self.holds_up(earlier, item))
    }

    /// See the module's table.
    fn holds_up(&self, earlier: &Item, item: &Item) -> bool {
        let collides = earlier.footprint.collides(&item.footprint);
        let lease = || earlier.footprint.shares_lease(&item.footprint);
        match (&earlier.body, &item.body) {
            (Body::Range { .. }, _) | (_, Body::Range { .. }) => true,
            (Body::Latch { .. }, _) | (_, Body::Latch { .. })
                if self.faults.has(Fault::NoLatch) =>
            {
                false
            }
            (Body::Latch { .. }, _) => collides || lease(),
            (Body::Write { stage, .. }, Body::Latch { .. }) => {
                let jumps = self.faults.has(Fault::LatchJumps) && *stage != Stage::Proposed;
                let early = self.faults.has(Fault::VoteEarly) && *stage == Stage::Proposed;
                (collides || lease()) && !jumps && !early
            }
            (Body::Branch, Body::Latch { .. }) => {
                (collides || lease()) && !self.faults.has(Fault::VoteEarly)
            }
            (Body::Write { stage: Stage::Waiting, .. }, _) => collides,
            (Body::Write { .. } | Body::Branch, _) => {
                collides && item.footprint.conditional && !self.faults.has(Fault::PredictOnApplied)
            }
        }
    }

    fn vote(&mut self, replica: &dyn Replica, applied: i64) {
        if self.faults.has(Fault::LatchDropped) && applied % 7 == 3 {
            let voted = |item: &Item| matches!(item.body, Body::Latch { voted: true, .. });
            self.line.retain(|_, item| !voted(item));
        }
        let unheld = |(tag, item): (&i64, &Item)| match item.body {
            Body::Latch { id, voted: false } if !self.is_held_up(*tag, item) => Some((*tag, id)),
            _ => None,
        };
        let ready: Vec<(i64, TxId)> = self.line.iter().filter_map(unheld).collect();
        for (tag, id) in ready {
            let Some(item) = self.line.get_mut(&tag) else { continue };
            item.body = Body::Latch { id, voted: true };
            let vote = ballot(replica, &item.footprint);
            self.out.push(Do::Send(Up::Vote { id, vote, applied }));
        }
    }

    fn answer_reads(&mut self, replica: &dyn Replica, applied: i64) {
        let waits = |last: i64| applied < last && !self.faults.has(Fault::NoWaitForLast);
        let told = std::mem::take(&mut self.told);
        let (late, ready): (Vec<_>, Vec<_>) = told.into_iter().partition(|told| waits(told.2));
        self.told = late;
        for (read, revision, _) in ready {
            match read {
                // The group may have lost the keys since it was asked.
                Read::Rows(ticket, keys) if !keys.is_within(&replica.place().range) => {
                    self.out.push(Do::Elsewhere { ticket });
                }
                Read::Rows(ticket, _) => {
                    let compacted = self.compacted.max(replica.compacted());
                    self.out.push(Do::Readable { ticket, revision, compacted });
                }
                Read::Idle(ticket, txn) => {
                    let (before, compacted) = (revision, self.compacted.max(replica.compacted()));
                    let revisions = Revisions { before, own: before + 1, compacted };
                    match evaluate(&At(replica, revision), &txn, revisions) {
                        Ok(outcome) if outcome.changes.is_empty() => {
                            self.answer(ticket, Ok(outcome.response));
                        }
                        // Something came between: it is a write after all.
                        Ok(_) => self.write(ticket, txn),
                        Err(error) => self.answer(ticket, Err(error)),
                    }
                }
            }
        }
    }

    /// Writes whose turn has come, as many as may ask together.
    fn in_turn(&self) -> Vec<i64> {
        let mut before = Before::default();
        let mut turn = Vec::new();
        for (tag, item) in &self.line {
            let mut waits = false;
            if matches!(item.body, Body::Write { stage: Stage::Waiting, .. }) {
                waits = before.may_hold_up(item) && self.is_held_up(*tag, item);
                if !waits {
                    turn.push(*tag);
                }
                if turn.len() == WANT_MAX {
                    break;
                }
            }
            before.add(item, waits);
        }
        turn
    }

    /// Asks for the revisions of all writes whose turn has come.
    fn want(&mut self, replica: &dyn Replica, applied: i64) {
        let (mut wanted, mut tags) = (Vec::new(), Vec::new());
        for tag in self.in_turn() {
            let Some(item) = self.line.get(&tag) else { continue };
            let Body::Write { ticket, txn, .. } = &item.body else { continue };
            let foreseen = if item.footprint.conditional {
                foresee(replica, txn)
            } else {
                let predicted = Prediction { path: plain_path(txn), changes: true };
                Some((predicted, item.footprint.leases.clone()))
            };
            let Some((predicted, leases)) = foreseen else {
                self.reads.push(Read::Idle(*ticket, txn.clone()));
                self.line.remove(&tag);
                continue;
            };
            if let Some(Item { body: Body::Write { stage, .. }, .. }) = self.line.get_mut(&tag) {
                *stage = Stage::Asked(predicted);
            }
            tags.push(tag);
            wanted.push(Wanted { leases });
        }
        if !tags.is_empty() {
            self.asked = Some(tags);
            self.out.push(Do::Send(Up::Want { items: wanted, applied }));
        }
    }
}

fn is_latch(item: &Item, which: TxId) -> bool {
    matches!(item.body, Body::Latch { id, .. } if id == which)
}

/// What stands before an item in the line, as far as it can be told by keys, so that not everything
/// is compared with everything: most writes are of one key each.
#[derive(Default)]
struct Before<'a> {
    /// Keys of writes of one key that wait, and of those that are on their way.
    waiting: HashSet<&'a Bytes>,
    moving: HashSet<&'a Bytes>,
    /// Something else, with which everything is to be compared.
    other: bool,
}

impl<'a> Before<'a> {
    /// May something of it hold this one up? If not nothing does.
    fn may_hold_up(&self, item: &Item) -> bool {
        let Some(key) = item.footprint.only_key().filter(|_| !self.other) else { return true };
        self.waiting.contains(key) || (item.footprint.conditional && self.moving.contains(key))
    }

    fn add(&mut self, item: &'a Item, waits: bool) {
        match (&item.body, item.footprint.only_key()) {
            (Body::Write { .. }, Some(key)) if waits => self.waiting.insert(key),
            (Body::Write { .. } | Body::Branch, Some(key)) => self.moving.insert(key),
            _ => std::mem::replace(&mut self.other, true),
        };
    }
}

/// What a write would come to on applied rows; `None` if it would change nothing.
fn foresee(replica: &dyn Replica, txn: &TxnRequest) -> Option<(Prediction, Vec<i64>)> {
    let before = replica.revision();
    let revisions = Revisions { before, own: before + 1, compacted: replica.compacted() };
    let outcome: Outcome = evaluate(replica, txn, revisions).ok()?;
    let leases = leases_of(&outcome.changes);
    (!outcome.changes.is_empty()).then(|| (outcome.prediction(), leases))
}

/// Everything that a transaction needs to know of this group.
fn ballot(replica: &dyn Replica, footprint: &Footprint) -> Vote {
    let ranges = footprint.reads.iter().chain(&footprint.writes);
    let rows = ranges.flat_map(|range| match footprint.keys_only {
        true => replica.keys(range),
        false => replica.scan(range, None),
    });
    let rows: BTreeMap<Bytes, KeyValue> = rows.map(|kv| (kv.key.clone(), kv)).collect();
    let past = footprint.past.iter();
    let past = past.map(|(range, at)| (range.clone(), *at, replica.scan(range, Some(*at))));
    Vote { rows: rows.into_values().collect(), past: past.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replica with nothing in it.
    struct Bare {
        seal: u64,
        place: Place,
        lost: bool,
    }

    fn bare(seal: u64) -> Bare {
        Bare { seal, place: Place { range: KeyRange::all(), version: 1 }, lost: false }
    }

    impl Rows for Bare {
        fn scan(&self, _: &KeyRange, _: Option<i64>) -> Vec<KeyValue> {
            Vec::new()
        }
    }

    impl Replica for Bare {
        fn revision(&self) -> i64 {
            1
        }

        fn seal(&self) -> u64 {
            self.seal
        }

        fn place(&self) -> &Place {
            &self.place
        }

        fn is_frozen(&self) -> bool {
            false
        }

        fn is_lost(&self) -> bool {
            self.lost
        }

        fn compacted(&self) -> i64 {
            0
        }

        fn keys(&self, _: &KeyRange) -> Vec<KeyValue> {
            Vec::new()
        }

        fn attached(&self, _: i64) -> Vec<Bytes> {
            Vec::new()
        }
    }

    fn put(key: &'static str) -> TxnRequest {
        let put = proto::etcd::PutRequest { key: key.into(), ..Default::default() };
        let success = vec![RequestOp { request: Some(Op::RequestPut(put)) }];
        TxnRequest { success, ..Default::default() }
    }

    fn live() -> Participant {
        let mut participant = Participant::new(1, 0, 0, Faults::NONE);
        let replica = bare(0);
        participant.connect(2);
        participant.advance(&replica);
        participant.hear(&replica, Down::Registered { branches: Vec::new() });
        participant.advance(&replica);
        participant.take();
        participant
    }

    #[test]
    fn a_seal_that_is_only_proposed_is_not_told() {
        let mut participant = Participant::new(1, 0, 0, Faults::NONE);
        participant.seal(5);
        participant.connect(5);
        participant.take();
        participant.advance(&bare(0));
        assert_eq!(participant.take(), Vec::new());
        participant.advance(&bare(5));
        let (place, term, number, seal, applied) = (bare(5).place, 1, 1, 5, 1);
        let (frozen, lost) = (false, false);
        let register = Up::Register { place, term, number, seal, applied, frozen, lost };
        assert_eq!(participant.take(), vec![Do::Send(register)]);
    }

    #[test]
    fn what_is_lost_is_given_up_before_anything_is_served() {
        let (mut participant, mut replica) = (Participant::new(1, 0, 0, Faults::NONE), bare(0));
        replica.lost = true;
        participant.connect(2);
        participant.advance(&replica);
        participant.read(7, KeyRange::all());
        participant.hear(&replica, Down::Registered { branches: Vec::new() });
        participant.hear(&replica, Down::Compact { revision: 9 });
        participant.advance(&replica);
        let given_up = Do::Propose { tag: 0, entry: Entry::Compact { revision: 9 } };
        assert_eq!(participant.take().pop(), Some(given_up));
        replica.lost = false;
        participant.advance(&replica);
        assert_eq!(participant.take(), vec![Do::Send(Up::Ask { applied: 1 })]);
    }

    #[test]
    fn a_latch_holds_back_what_comes_later_and_ends_with_its_branch() {
        let (mut participant, replica) = (live(), bare(0));
        let id = TxId { epoch: 2, number: 1 };
        let footprint = Footprint::of(&put("a"));
        participant.hear(&replica, Down::Latch { id, footprint, revokes: false });
        participant.advance(&replica);
        let vote = Up::Vote { id, vote: Vote::default(), applied: 1 };
        assert_eq!(participant.take(), vec![Do::Send(vote)]);
        participant.write(7, put("a"));
        participant.write(8, put("b"));
        participant.advance(&replica);
        let one = vec![Wanted::default()];
        let want = Do::Send(Up::Want { items: one.clone(), applied: 1 });
        assert_eq!(participant.take(), vec![want], "only the other key's write asks");
        participant.hear(&replica, Down::Granted { items: vec![Granted::Revision(3)] });
        participant.take();
        let branch = Branch { id, revision: 4, changes: Vec::new() };
        participant.hear(&replica, Down::Decided(branch.clone()));
        participant.advance(&replica);
        let (tag, entry) = (1, Entry::Branch { epoch: 2, branch });
        let want = Do::Send(Up::Want { items: one, applied: 1 });
        assert_eq!(participant.take(), vec![Do::Propose { tag, entry }, want]);
    }

    #[test]
    fn a_split_goes_alone_and_sends_others_away() {
        let (mut participant, mut replica) = (live(), bare(0));
        participant.write(7, put("a"));
        let (at, child) = (Bytes::from("m"), GroupId(9));
        participant.change(RangeChange::Split { at, child });
        participant.write(8, put("b"));
        participant.write(9, put("x"));
        participant.advance(&replica);
        let want = Do::Send(Up::Want { items: vec![Wanted::default()], applied: 1 });
        assert_eq!(participant.take(), vec![want], "what came later waits");
        participant.hear(&replica, Down::Granted { items: vec![Granted::Revision(2)] });
        participant.advance(&replica);
        assert_eq!(participant.take().len(), 1, "the split waits for the write");
        participant.written(1, Written::Done(TxnResponse::default()));
        participant.advance(&replica);
        let (epoch, version, at, child) = (2, 1, "m".into(), GroupId(9));
        let split =
            Do::Propose { tag: 2, entry: Entry::Split { epoch, version, at, child, limit: 0 } };
        assert_eq!(participant.take().pop(), Some(split));
        let range = KeyRange { start: Bytes::new(), end: Some("m".into()) };
        replica.place = Place { range, version: 2 };
        participant.ranged(2);
        assert_eq!(participant.take(), vec![Do::Break]);
        participant.connect(2);
        participant.advance(&replica);
        participant.hear(&replica, Down::Registered { branches: Vec::new() });
        participant.advance(&replica);
        assert!(participant.take().contains(&Do::Elsewhere { ticket: 9 }));
        assert_eq!(participant.open_tickets(), vec![(8, false)]);
    }

    #[test]
    fn writes_of_one_key_wait_for_each_other_only() {
        let compare = |key: &'static str| {
            let compare = proto::etcd::Compare { key: key.into(), ..Default::default() };
            TxnRequest { compare: vec![compare], ..put(key) }
        };
        let turn = |writes: &[TxnRequest]| {
            let mut participant = live();
            (1..).zip(writes).for_each(|(ticket, txn)| participant.write(ticket, txn.clone()));
            participant.in_turn()
        };
        assert_eq!(turn(&[put("a"), put("a"), put("b")]), [1, 2, 3]);
        // A guarded one is judged on what is applied, and what follows it comes later.
        assert_eq!(turn(&[put("a"), compare("a"), put("a"), compare("b")]), [1, 4]);
        let mut both = put("a");
        both.success.extend(put("b").success);
        let over = TxnRequest { compare: compare("b").compare, ..both };
        assert_eq!(turn(&[over.clone(), put("c"), compare("b")]), [1, 2]);
        assert_eq!(turn(&[compare("a"), over, put("b")]), [1]);
    }

    #[test]
    fn what_was_asked_on_a_broken_stream_is_asked_again() {
        let (mut participant, replica) = (live(), bare(0));
        participant.write(7, put("a"));
        participant.read(8, KeyRange::all());
        participant.advance(&replica);
        assert_eq!(participant.take().len(), 2);
        participant.disconnect();
        participant.connect(3);
        participant.advance(&replica);
        participant.hear(&replica, Down::Registered { branches: Vec::new() });
        participant.advance(&replica);
        let asked = participant.take();
        let want = Do::Send(Up::Want { items: vec![Wanted::default()], applied: 1 });
        assert!(asked.contains(&want), "{asked:?}");
        assert!(asked.contains(&Do::Send(Up::Ask { applied: 1 })), "{asked:?}");
        assert_eq!(participant.open_tickets(), vec![(7, false), (8, false)]);
    }
}
