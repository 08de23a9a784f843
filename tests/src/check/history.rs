//! What a run writes down, and in which words it is told.
//!
//! One [`History`] is about one tenant: one revision sequence. Whoever drives the run (the
//! simulator, the chaos test) records four things, in any order:
//!
//! * operations: [`History::call`] when a client sends, [`History::end`] when it hears or gives
//!   up. An operation that never ended, or ended [`Outcome::Unknown`], may have taken effect at
//!   any time after its call;
//! * committed changes: [`History::committed`] for each revision that a replica applied (again
//!   after a restart, if it does), or that a full watch from the beginning delivered;
//! * watches: [`History::watch`] and [`History::hear`], as the client sees them;
//! * leases need nothing of their own: grants, keepalives and revokes are operations.
//!
//! All times are of one clock that every part of the run shares (the simulator's own, or the
//! test process's), in any unit. At equal times two things count as concurrent.
//!
//! A `client` is whatever is promised not to go back in time: one connection. When a client
//! reconnects and drops its floor, give it another number.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use proto::{
    Error,
    cluster::group::refusal,
    etcd,
    group::{GroupError, Reply, Request, WatchOutput},
    mvccpb::{Event, event::EventType},
};

use super::{model::kv, reply::reply_header, words::request_words};

/// A moment of the run's one clock, in the run's own unit.
pub type Time = u64;

/// Which operation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub usize);

/// Which watch of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub usize);

/// Everything one run showed of one tenant.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// By [`OpId`].
    pub operations: Vec<Operation>,
    /// By [`WatchId`].
    pub watches: Vec<WatchRecord>,
    /// Every committed revision that anyone showed.
    pub changes: BTreeMap<i64, Change>,
    /// Pairs of accounts of one revision that do not agree.
    pub conflicts: Vec<Conflict>,
    /// When the clocks of leases stood still at least, from and until: in order, apart.
    pub stills: Vec<(Time, Time)>,
}

/// A revision as it was committed.
#[derive(Clone, Debug)]
pub struct Change {
    /// When it was first seen.
    pub at: Time,
    /// Who showed it first.
    pub source: u64,
    /// Without previous values; these follow from the revisions before.
    pub events: Vec<Event>,
}

/// Two sources (replicas) that tell a revision differently.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// Of what.
    pub revision: i64,
    /// Who told it first, and how.
    pub first: (u64, Vec<Event>),
    /// Who told it otherwise, and how.
    pub second: (u64, Vec<Event>),
}

/// One request of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Whose connection.
    pub client: u64,
    /// When it was sent.
    pub call: Time,
    /// When the client heard or gave up.
    pub end: Option<Time>,
    /// What was asked.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a client knows about its request.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "most operations are done")]
pub enum Outcome {
    /// It was carried out and answered.
    Done(Reply),
    /// It certainly had no effect.
    Refused(Error),
    /// It may have had its effect, may have it later, or never.
    Unknown,
}

/// What was asked of a watch. `key` and `range_end` in etcd's spelling.
#[derive(Clone, Debug, Default)]
pub struct WatchSpec {
    /// First key.
    pub key: Bytes,
    /// End of the keys.
    pub range_end: Bytes,
    /// First revision wanted; 0 is "from now", which the `Created` message makes exact. Leave
    /// it 0 also for a hub's watch whose start the router resolved.
    pub start_revision: i64,
    /// Previous values wanted.
    pub prev_kv: bool,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
}

/// One watch of one client stream, through all its reconnects.
#[derive(Clone, Debug)]
pub struct WatchRecord {
    /// Whose.
    pub client: u64,
    /// The stream it is on; gets stream-wide progress.
    pub stream: u64,
    /// When it was asked for.
    pub call: Time,
    /// What was asked.
    pub spec: WatchSpec,
    /// What was heard, in order.
    pub heard: Vec<(Time, Heard)>,
}

/// One message about a watch.
#[derive(Clone, Debug)]
pub enum Heard {
    /// The watch stands; header revision of the answer.
    Created(i64),
    /// Events.
    Events {
        /// Header revision.
        revision: i64,
        /// As delivered.
        events: Vec<Event>,
        /// Is the rest in the next message?
        fragment: bool,
    },
    /// All up to this revision was delivered (of the watch, or of the whole stream).
    Progress(i64),
    /// Cancelled because history up to this revision is compacted.
    Compacted(i64),
    /// Cancelled for another reason, or by the client.
    Canceled,
    /// The stream was lost; the client created the watch anew from this revision (0: from now).
    Restarted(i64),
}

// === impl History ===

impl History {
    /// A run that has not begun.
    pub fn new() -> History {
        History::default()
    }

    /// Lease clocks stood still, and nobody was answered about leases: see [`History::stills`].
    /// Stretches may overlap with the last one, and begin no earlier.
    pub fn stand_still(&mut self, from: Time, until: Time) {
        match self.stills.last_mut() {
            Some((_, last)) if *last >= from => *last = until.max(*last),
            _ => self.stills.push((from, until)),
        }
    }

    /// A client sends a request. Until [`History::end`] its outcome is unknown.
    pub fn call(&mut self, client: u64, at: Time, request: Request) -> OpId {
        let outcome = Outcome::Unknown;
        self.operations.push(Operation { client, call: at, end: None, request, outcome });
        OpId(self.operations.len() - 1)
    }

    /// A client hears of its request, or gives up on it.
    pub fn end(&mut self, op: OpId, at: Time, outcome: Outcome) {
        let operation = &mut self.operations[op.0];
        assert!(operation.end.is_none(), "an operation ends once");
        assert!(at >= operation.call, "an operation ends after its call");
        operation.end = Some(at);
        operation.outcome = outcome;
    }

    /// `source` (a replica, or the watch from the beginning) shows a committed revision. May be
    /// told again; what does not agree with the first account is kept as a conflict.
    pub fn committed(&mut self, source: u64, at: Time, revision: i64, events: &[Event]) {
        let told = || events.iter().map(|e| Event { prev_kv: None, ..e.clone() }).collect();
        let Some(known) = self.changes.get_mut(&revision) else {
            self.changes.insert(revision, Change { at, source, events: told() });
            return;
        };
        known.at = known.at.min(at);
        let same = |(a, b): (&Event, &Event)| a.r#type == b.r#type && a.kv == b.kv;
        if known.events.len() != events.len() || !known.events.iter().zip(events).all(same) {
            self.conflicts.push(Conflict {
                revision,
                first: (known.source, known.events.clone()),
                second: (source, told()),
            });
        }
    }

    /// A client asks for a watch.
    pub fn watch(&mut self, client: u64, stream: u64, at: Time, spec: WatchSpec) -> WatchId {
        self.watches.push(WatchRecord { client, stream, call: at, spec, heard: Vec::new() });
        WatchId(self.watches.len() - 1)
    }

    /// A watch gets a message.
    pub fn hear(&mut self, watch: WatchId, at: Time, heard: Heard) {
        self.watches[watch.0].heard.push((at, heard));
    }

    /// A stream-wide progress message (watch id -1): it speaks for every watch of the stream
    /// that was created and not cancelled.
    pub fn hear_stream(&mut self, stream: u64, at: Time, revision: i64) {
        for watch in self.watches.iter_mut().filter(|watch| watch.stream == stream) {
            let last = watch.heard.last();
            let gone = matches!(last, None | Some((_, Heard::Compacted(_) | Heard::Canceled)));
            if !gone {
                watch.heard.push((at, Heard::Progress(revision)));
            }
        }
    }

    /// The operation.
    pub fn op(&self, id: OpId) -> &Operation {
        &self.operations[id.0]
    }

    /// Every operation with its name.
    pub fn ops(&self) -> impl Iterator<Item = (OpId, &Operation)> {
        self.operations.iter().enumerate().map(|(index, op)| (OpId(index), op))
    }

    /// The operation in one line, for a sentence about it.
    pub fn tell(&self, id: OpId) -> String {
        format!("{id} ({})", self.op(id))
    }
}

// === impl Operation ===

impl Operation {
    /// The answer, if there was one.
    pub fn reply(&self) -> Option<&Reply> {
        match &self.outcome {
            Outcome::Done(reply) => Some(reply),
            _ => None,
        }
    }

    /// Revision in the header of the answer.
    pub fn revision(&self) -> Option<i64> {
        reply_header(self.reply()?).map(|header| header.revision)
    }

    /// When it was over for certain; an unknown outcome never is.
    pub fn over(&self) -> Time {
        match self.outcome {
            Outcome::Unknown => Time::MAX,
            _ => self.end.unwrap_or(Time::MAX),
        }
    }
}

impl Outcome {
    /// The outcome of a call through the seam to groups.
    pub fn of(result: Result<Reply, GroupError>) -> Outcome {
        match result {
            Ok(reply) => Outcome::Done(reply),
            Err(error) if error.outcome == refusal::Outcome::Unknown => Outcome::Unknown,
            Err(error) => Outcome::Refused(error.error),
        }
    }
}

// === impl WatchSpec ===

impl WatchSpec {
    /// A watch of `[key, range_end)` from a revision on, with previous values.
    pub fn new(key: &[u8], range_end: &[u8], start_revision: i64) -> WatchSpec {
        WatchSpec {
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(range_end),
            start_revision,
            prev_kv: true,
            ..WatchSpec::default()
        }
    }

    /// Does the watch want this event?
    pub fn wants(&self, event: &Event) -> bool {
        let out = match event.r#type() {
            EventType::Put => self.no_put,
            EventType::Delete => self.no_delete,
        };
        !out && super::model::covers(&self.key, &self.range_end, &kv(event).key)
    }
}

// === impl Heard ===

impl Heard {
    /// Reads a message of etcd's watch stream. (Stream-wide progress, watch id -1, is for
    /// [`History::hear_stream`].)
    pub fn of_response(response: &etcd::WatchResponse) -> Heard {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.compact_revision != 0 {
            Heard::Compacted(response.compact_revision)
        } else if response.canceled {
            Heard::Canceled
        } else if response.created {
            Heard::Created(revision)
        } else if response.events.is_empty() {
            Heard::Progress(revision)
        } else {
            let (events, fragment) = (response.events.clone(), response.fragment);
            Heard::Events { revision, events, fragment }
        }
    }

    /// Reads what a group's hub says, with the key of the watch it is about (`None`: all of the
    /// sink). A closed watch is to be created anew: [`Heard::Restarted`] is the caller's to add.
    pub fn of_output(output: &WatchOutput) -> Option<(Option<u64>, Heard)> {
        Some(match output {
            WatchOutput::Events { key, revision, events } => {
                let events = events.iter().map(|event| Event::clone(event)).collect();
                (Some(*key), Heard::Events { revision: *revision, events, fragment: false })
            }
            WatchOutput::Progress { revision, .. } => (None, Heard::Progress(*revision)),
            WatchOutput::WatchProgress { key, revision } => {
                (Some(*key), Heard::Progress(*revision))
            }
            WatchOutput::Compacted { key, revision } => (Some(*key), Heard::Compacted(*revision)),
            WatchOutput::Closed { .. } => return None,
        })
    }
}

// === words ===

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op {}", self.0)
    }
}

impl fmt::Display for WatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "watch {}", self.0)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}, {}..", self.client, self.call)?;
        if let Some(end) = self.end {
            write!(f, "{end}")?;
        }
        write!(f, ": {}", request_words(&self.request))?;
        match &self.outcome {
            Outcome::Unknown => f.write_str(" -> unknown"),
            Outcome::Refused(error) => write!(f, " -> refused: {error}"),
            Outcome::Done(reply) => match reply_header(reply) {
                Some(header) => write!(f, " -> revision {}", header.revision),
                None => f.write_str(" -> done"),
            },
        }
    }
}
