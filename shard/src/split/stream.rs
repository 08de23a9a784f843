//! What a participant and the sequencer say to each other. In order on one stream per group; a
//! stream that breaks is begun anew with a higher number, and what the older one carried is
//! dropped by both.

use std::fmt;

use proto::mvccpb::KeyValue;
use proto::{GroupId, KeyRange};

use super::evaluate::Change;
use super::footprint::Footprint;

/// Which keys a group has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The keys.
    pub range: KeyRange,
    /// Counts the changes of the range: of two groups that claim a key the higher one has it.
    pub version: u64,
}

/// A transaction over several groups: the sequencer's epoch and its number there. Never used
/// twice; latches go out in this order on every stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId {
    /// Raft term of the home group under which it was begun.
    pub epoch: u64,
    /// Counted there.
    pub number: u64,
}

impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

/// What a write wants with its revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Leases that it attaches keys to.
    pub leases: Vec<i64>,
}

/// What a wanted revision came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// This one.
    Revision(i64),
    /// Not now: a lease is being revoked. To be asked again, behind the latch that comes.
    Later,
    /// A lease is not there, as far as the sequencer has applied.
    NoLease,
}

/// Rows as a participant voted with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vote {
    /// Live keys under the latch, ascending.
    pub rows: Vec<KeyValue>,
    /// Live keys of an interval at a revision that the transaction names.
    pub past: Vec<(KeyRange, i64, Vec<KeyValue>)>,
}

/// A decided transaction's part in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Which transaction.
    pub id: TxId,
    /// Its revision.
    pub revision: i64,
    /// Changes of this group's keys, in order.
    pub changes: Vec<Change>,
}

/// A participant's word. `applied` is always the last revision in its log that it has applied.
#[derive(Clone, Debug, PartialEq)]
pub enum Up {
    /// The first word on a stream, from a leader that has applied all that it proposed itself.
    Register {
        /// The range that it has, as far as it has applied.
        place: Place,
        /// Its Raft term.
        term: u64,
        /// Number of the stream within the term.
        number: u64,
        /// The highest epoch that it has sealed.
        seal: u64,
        /// See above.
        applied: i64,
        /// It is about to be absorbed: it votes on nothing.
        frozen: bool,
        /// What only lost replicas had is gone: all history is to be given up first.
        lost: bool,
    },
    /// Revisions are wanted, in this order. One such word is under way at a time.
    Want {
        /// For each one.
        items: Vec<Wanted>,
        /// See above.
        applied: i64,
    },
    /// Reads wait for a revision. One such word is under way at a time.
    Ask {
        /// See above.
        applied: i64,
    },
    /// Are these leases there? One such word is under way at a time.
    AskLeases {
        /// Of each request that asks.
        leases: Vec<Vec<i64>>,
    },
    /// What stands under a latch.
    Vote {
        /// Whose.
        id: TxId,
        /// The rows.
        vote: Vote,
        /// See above.
        applied: i64,
    },
}

/// The sequencer's word.
#[derive(Clone, Debug, PartialEq)]
pub enum Down {
    /// The group must seal this epoch before it can register.
    NeedSeal {
        /// The sequencer's.
        epoch: u64,
    },
    /// The stream is open.
    Registered {
        /// Decided branches that the group's log lacks, ascending by revision.
        branches: Vec<Branch>,
    },
    /// Answer to the last [`Up::Want`], one for each item.
    Granted {
        /// In the order of the items.
        items: Vec<Granted>,
    },
    /// Answer to the last [`Up::Ask`].
    Answer {
        /// Reads are answered at this revision...
        revision: i64,
        /// ...once this one is applied.
        last: i64,
    },
    /// Answer to the last [`Up::AskLeases`]: which requests found all their leases.
    Leases {
        /// In the order of the requests.
        found: Vec<bool>,
    },
    /// Keep what collides with this away until it is decided, and vote.
    Latch {
        /// Whose.
        id: TxId,
        /// The transaction's part in this group.
        footprint: Footprint,
        /// It revokes the leases that it names: their keys are covered too.
        revokes: bool,
    },
    /// The transaction changes nothing here, or is dead.
    Release {
        /// Whose.
        id: TxId,
    },
    /// The transaction is decided.
    Decided(Branch),
    /// History below this revision is gone, for every later word too.
    Compact {
        /// The revision.
        revision: i64,
    },
}

/// Where something is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId {
    /// The participant's group.
    pub group: GroupId,
    /// Raft term of its leader.
    pub term: u64,
    /// Counted by that leader.
    pub number: u64,
}
