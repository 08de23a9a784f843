//! Who saw which revision when: the real-time half of every check.
//!
//! A committed revision shows in answers, in watch messages and in what replicas applied. Two
//! questions are asked of all this: what was the highest revision anyone had seen *before* a
//! moment (nothing later may be answered from below it), and when was a revision, or a higher
//! one, *first* seen (what made it must have been called by then).

use std::fmt;

use super::history::{Heard, History, OpId, Time, WatchId};

/// Who showed a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody: the store begins there.
    Start,
    /// An answer.
    Op(OpId),
    /// A message of a watch.
    Watch(WatchId),
    /// A replica applied it (or the watch from the beginning delivered it).
    Replica(u64),
}

/// All sightings of a history, arranged for both questions.
#[derive(Clone, Debug, Default)]
pub struct Sightings {
    /// By time; the revision is the highest up to there.
    rising: Vec<(Time, i64, Source)>,
    /// By revision; the time is the earliest from there up.
    first: Vec<(i64, Time)>,
}

impl Sightings {
    /// Collects what a history shows.
    pub fn of(history: &History) -> Sightings {
        let mut all: Vec<(Time, i64, Source)> = Vec::new();
        for (id, op) in history.ops() {
            if let (Some(end), Some(revision)) = (op.end, op.revision()) {
                all.push((end, revision, Source::Op(id)));
            }
        }
        for (index, watch) in history.watches.iter().enumerate() {
            for (at, heard) in &watch.heard {
                let revision = match heard {
                    Heard::Created(revision)
                    | Heard::Progress(revision)
                    | Heard::Compacted(revision) => *revision,
                    Heard::Events { events, .. } => {
                        let revisions = events.iter().filter_map(|event| event.kv.as_ref());
                        revisions.map(|kv| kv.mod_revision).max().unwrap_or(0)
                    }
                    Heard::Canceled | Heard::Restarted(_) => continue,
                };
                all.push((*at, revision, Source::Watch(WatchId(index))));
            }
        }
        for (revision, change) in &history.changes {
            all.push((change.at, *revision, Source::Replica(change.source)));
        }
        all.sort_by_key(|(at, revision, _)| (*at, *revision));

        let mut first: Vec<(i64, Time)> = all.iter().map(|(at, rev, _)| (*rev, *at)).collect();
        first.sort_unstable();
        let mut earliest = Time::MAX;
        for (_, at) in first.iter_mut().rev() {
            earliest = earliest.min(*at);
            *at = earliest;
        }
        let mut rising: Vec<(Time, i64, Source)> = Vec::new();
        for sighting in all {
            if rising.last().is_none_or(|(_, highest, _)| sighting.1 > *highest) {
                rising.push(sighting);
            }
        }
        Sightings { rising, first }
    }

    /// Highest revision seen strictly before a moment, and by whom; 1 at the start.
    pub fn floor(&self, before: Time) -> (i64, Source) {
        let count = self.rising.partition_point(|(at, _, _)| *at < before);
        match count.checked_sub(1).and_then(|last| self.rising.get(last)) {
            Some((_, revision, source)) if *revision > 1 => (*revision, *source),
            _ => (1, Source::Start),
        }
    }

    /// When a revision, or a higher one, was first seen; never: [`Time::MAX`].
    pub fn first_seen(&self, revision: i64) -> Time {
        let at = self.first.partition_point(|(seen, _)| *seen < revision);
        self.first.get(at).map_or(Time::MAX, |(_, time)| *time)
    }
}

impl Source {
    /// The source in words.
    pub fn tell(self, history: &History) -> String {
        match self {
            Source::Op(op) => history.tell(op),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Start => f.write_str("the empty store"),
            Source::Op(op) => write!(f, "{op}"),
            Source::Watch(watch) => write!(f, "{watch}"),
            Source::Replica(replica) => write!(f, "replica {replica}"),
        }
    }
}
