//! A replica that leads a group, or believes so: it has applied some of the committed log, holds a
//! tail that may never be committed, and runs the protocol's two roles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proto::GroupId;
use shard::split::participant::{Participant, Ticket};
use shard::split::sequencer::{Marks, Sequencer};
use shard::split::stream::{Down, Place, StreamId, TxId, Up};

use super::groups::Logged;

/// A leader among all that there ever were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    /// Place of its group.
    pub(super) group: usize,
    /// Which of the group's leaders.
    pub(super) nth: usize,
}

/// An entry that was proposed.
#[derive(Clone, Debug)]
pub(super) struct Proposed {
    pub(super) logged: Logged,
    /// By whom, and how it calls it.
    pub(super) by: Option<(At, i64)>,
}

/// A read over several groups.
pub(super) struct Reading {
    pub(super) ticket: Ticket,
    pub(super) revision: i64,
    pub(super) last: BTreeMap<GroupId, i64>,
    pub(super) map: BTreeMap<GroupId, Place>,
    /// Since when it waits.
    pub(super) since: u64,
}

/// A merge that this leader drives from the left.
pub(super) struct Driven {
    pub(super) number: u64,
    /// Version of the right one's range.
    pub(super) version: u64,
    pub(super) since: u64,
    pub(super) absorbing: bool,
}

/// The group alone has the tenant: what a leader does that is not split at all.
#[derive(Default)]
pub(super) struct Alone {
    pub(super) next: i64,
    /// Proposed.
    pub(super) writes: BTreeMap<i64, Ticket>,
    pub(super) reads: Vec<Ticket>,
    /// The range is to be split: nothing new is taken on. With the proposal's tag.
    pub(super) splitting: Option<(Bytes, GroupId, Option<i64>)>,
}

/// See the module.
pub(super) struct Leader {
    pub(super) alive: bool,
    pub(super) term: u64,
    /// Committed entries that it knows of.
    pub(super) base: usize,
    pub(super) applied: usize,
    pub(super) tail: Vec<Proposed>,
    pub(super) alone: Option<Alone>,
    pub(super) participant: Option<Participant>,
    /// The last number of a stream.
    pub(super) number: u64,
    pub(super) sequencer: Option<Sequencer>,
    /// The participant's stream.
    pub(super) stream: Option<usize>,
    /// Sequencers that wait for a seal of this group.
    pub(super) seals: Vec<(At, u64)>,
    /// Groups that this sequencer waits for.
    pub(super) unsealed: BTreeSet<GroupId>,
    /// Read rounds under way.
    pub(super) rounds: Vec<u64>,
    /// When transactions were first seen waiting.
    pub(super) begun: BTreeMap<TxId, u64>,
    pub(super) reading: Vec<Reading>,
    /// What watches are told, one after the other.
    pub(super) marks: Vec<Marks>,
    /// Requests over several groups that it took.
    pub(super) taken: Vec<Ticket>,
    /// A planned transfer was begun then.
    pub(super) handing: Option<u64>,
    pub(super) driven: Option<Driven>,
    /// Asked already: merges to freeze for, to thaw from, to abort, and absorbed groups that are gone.
    pub(super) told: BTreeSet<(&'static str, u64)>,
}

impl Leader {
    pub(super) fn new(term: u64, base: usize, applied: usize, tail: Vec<Proposed>) -> Leader {
        Leader {
            alive: true,
            term,
            base,
            applied,
            tail,
            alone: None,
            participant: None,
            number: 0,
            sequencer: None,
            stream: None,
            seals: Vec::new(),
            unsealed: BTreeSet::new(),
            rounds: Vec::new(),
            begun: BTreeMap::new(),
            reading: Vec::new(),
            marks: Vec::new(),
            taken: Vec::new(),
            handing: None,
            driven: None,
            told: BTreeSet::new(),
        }
    }
}

/// Words on their way between a participant and a sequencer.
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) shard: At,
    pub(super) home: At,
    pub(super) up: VecDeque<Up>,
    pub(super) down: VecDeque<Down>,
    /// Broken: nothing comes through to the participant; a little may still reach home.
    pub(super) lost: bool,
}
