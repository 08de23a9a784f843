//! What nodes say of themselves: what they have, how full they are, how much work each group makes.
//!
//! The node that leads the system group asks every node every [`ASK_MS`] and keeps the answers in
//! memory: they are too many and too short-lived for the ledger, and a new leader has them again
//! after one round. Planners get an [`Inventory`] beside the ledger and decide nothing on what is
//! older than [`STALE_MS`]. Pure data.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::cluster::node::CutReport;
use proto::cluster::node::cut_report::Reason;
use serde::{Deserialize, Serialize};

use crate::heat::Heats;
use crate::ledger::Ledger;
use crate::record::Node;

/// Pause between two questions to a node, in milliseconds.
pub const ASK_MS: u64 = 2_000;
/// A node of which nothing is heard for so long gets nothing new, in milliseconds.
pub const SILENT_MS: u64 = 10_000;
/// Reports older than this decide nothing, in milliseconds.
pub const STALE_MS: u64 = 15_000;

/// What is known of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Since when somebody has been asking, in milliseconds since 1970: silence is counted from
    /// then on.
    pub since_ms: u64,
    /// Since when nodes that came later have been asked.
    pub later_ms: BTreeMap<u64, u64>,
    /// The last report of each node that has answered.
    pub nodes: BTreeMap<u64, NodeReport>,
    /// What nodes were asked about single replicas just now, by group and node.
    pub replicas: BTreeMap<(u64, u64), ReplicaReport>,
    /// How hot groups have been over time.
    pub heats: Heats,
}

/// What a node says of its replica of a group when it is asked for that one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Its number.
    pub replica: u64,
    /// Why it was taken out of service, if it was; nothing else is known of it then.
    pub quarantined: Option<String>,
    /// The node that leads, as far as it knows; 0 if it knows of nobody.
    pub leader: u64,
    /// Its term.
    pub term: u64,
    /// Index of the last entry in its log.
    pub last_index: u64,
    /// Term of that entry.
    pub last_term: u64,
    /// Index of the last entry that it knows to be committed.
    pub committed: u64,
    /// Index of the last entry that it has applied.
    pub applied: u64,
    /// Its revision.
    pub revision: i64,
    /// The revision up to which history is compacted.
    pub compacted: i64,
    /// Live keys.
    pub keys: i64,
    /// Bytes of its rows and large values.
    pub size_bytes: u64,
    /// Version of the members that it knows.
    pub membership_version: u64,
    /// Commands that wait to be applied.
    pub pending: u64,
    /// Its rows are not here yet, or not any more.
    pub is_hollow: bool,
}

/// The last that a node said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// When it was heard, in milliseconds since 1970.
    pub heard_ms: u64,
    /// Secret number of its data directory, 0 if it did not say.
    pub directory: u64,
    /// Bytes of the file system that its data is on.
    pub disk_total: u64,
    /// Bytes of it that are free.
    pub disk_free: u64,
    /// CPU time of the process, in microseconds a second, over the time since the last report.
    pub cpu_us_per_s: u64,
    /// The replicas there that have something to tell: what is led there, what had work since the
    /// last report, what is quarantined. Others are there, quiet and well.
    pub groups: BTreeMap<u64, GroupReport>,
}

/// What a node says of its replica of a group. Rates are over the time since the last report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupReport {
    /// It leads the group.
    pub leads: bool,
    /// Why the replica was taken out of service, if it was.
    pub quarantined: Option<String>,
    /// Number of the replica that was; what the ledger lists may be its successor already.
    pub quarantined_replica: u64,
    /// Bytes of the group's rows and large values.
    pub size_bytes: u64,
    /// Requests a second.
    pub requests_per_s: u64,
    /// Bytes a second appended to the group's log.
    pub write_bytes_per_s: u64,
    /// CPU time spent for the group, in microseconds a second, as far as it can be told apart.
    pub cpu_us_per_s: u64,
    /// Where it could be cut for the sake of its load, if it leads and was asked.
    pub load_cut: Option<CutIdea>,
    /// Where it could be cut for the sake of its size, if it leads and was asked.
    pub size_cut: Option<CutIdea>,
    /// What it costs that the tenant is split, told by its groups' leaders.
    pub split: Option<SplitLoad>,
}

/// What it costs a group that its tenant is split. Rates are over the time since the last report.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct SplitLoad {
    /// Of the home group: revisions given out a second.
    pub grants_per_s: u64,
    /// Of the home group: transactions, deletions and revocations over several groups, a second.
    pub transactions_per_s: u64,
    /// How long one of them took on average, in milliseconds.
    pub transaction_ms: u64,
    /// Revisions that nobody will ever use, since the leader's replica was opened.
    pub holes: u64,
    /// The group for which requests wait, 0 for none.
    pub waits_for: u64,
    /// For how long, in milliseconds.
    pub waits_ms: u64,
}

/// Where a group could be cut in two, or why nowhere. Parts are thousandths of its load, or of its
/// keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutIdea {
    /// There.
    At {
        /// The first key of the new group.
        key: Bytes,
        /// What is below.
        below: u32,
        /// What is above.
        above: u32,
        /// What reaches over it.
        across: u32,
        /// Different stretches of keys that are watched and reach over it.
        watches: u32,
    },
    /// Too little was seen of it to say.
    TooLittle,
    /// One key has most of the load.
    SingleKey {
        /// That one.
        key: Bytes,
        /// Its part.
        share: u32,
    },
    /// So much of what came last is on one side of every cut that would be even.
    AppendFront(u32),
    /// So much, at least, reaches over every cut or lies on one side of it.
    WideRanges(u32),
}

// === impl CutIdea ===

impl CutIdea {
    /// As a node says it; `None` for a reason that this program does not know.
    pub fn read(told: &CutReport) -> Option<CutIdea> {
        let CutReport { key, below, above, across, share, watches, .. } = told.clone();
        Some(match Reason::try_from(told.reason).ok()? {
            Reason::None => CutIdea::At { key, below, above, across, watches },
            Reason::TooLittle => CutIdea::TooLittle,
            Reason::SingleKey => CutIdea::SingleKey { key, share },
            Reason::AppendFront => CutIdea::AppendFront(share),
            Reason::WideRanges => CutIdea::WideRanges(share),
        })
    }

    /// To be passed on.
    pub fn write(&self) -> CutReport {
        let because = |reason: Reason, share: u32| CutReport {
            reason: reason.into(),
            share,
            ..CutReport::default()
        };
        match self.clone() {
            CutIdea::At { key, below, above, across, watches } => {
                CutReport { key, below, above, across, watches, ..CutReport::default() }
            }
            CutIdea::TooLittle => because(Reason::TooLittle, 0),
            CutIdea::SingleKey { key, share } => {
                CutReport { key, ..because(Reason::SingleKey, share) }
            }
            CutIdea::AppendFront(share) => because(Reason::AppendFront, share),
            CutIdea::WideRanges(share) => because(Reason::WideRanges, share),
        }
    }
}

// === impl Inventory ===

impl Inventory {
    /// How long nothing was heard of a node, in milliseconds.
    pub fn silence_ms(&self, node: u64, now_ms: u64) -> u64 {
        let since = self.later_ms.get(&node).copied().unwrap_or(self.since_ms).max(self.since_ms);
        let heard = self.nodes.get(&node).map_or(since, |report| report.heard_ms);
        now_ms.saturating_sub(heard.max(since))
    }

    /// The report of a node, unless it is too old to decide on.
    pub fn fresh(&self, node: u64, now_ms: u64) -> Option<&NodeReport> {
        self.nodes.get(&node).filter(|report| report.heard_ms + STALE_MS > now_ms)
    }

    /// Is nothing heard of a node?
    pub fn is_silent(&self, node: u64, now_ms: u64) -> bool {
        self.silence_ms(node, now_ms) >= SILENT_MS
    }

    /// The nodes of the ledger of which nothing is heard.
    pub fn silent(&self, ledger: &Ledger, now_ms: u64) -> BTreeSet<u64> {
        // Nobody has been asking: nothing is known.
        let asked = self.since_ms != 0;
        let nodes = ledger.nodes.keys().copied().filter(|_| asked);
        nodes.filter(|node| self.is_silent(*node, now_ms)).collect()
    }

    /// The nodes of the ledger that have another data directory than placement knows.
    pub fn emptied(&self, ledger: &Ledger, now_ms: u64) -> BTreeSet<u64> {
        let is_emptied = |node: &&Node| {
            let said = self.fresh(node.id, now_ms).map_or(0, |report| report.directory);
            said != 0 && node.directory != 0 && said != node.directory
        };
        ledger.nodes.values().filter(is_emptied).map(|node| node.id).collect()
    }

    /// The nodes that nothing is to be brought to: those of which nothing is heard, and those that
    /// would not take it. What a drain brought to one of these a repair would take back at once, and
    /// the drain would begin anew, for ever.
    pub fn unfit(&self, ledger: &Ledger, now_ms: u64) -> BTreeSet<u64> {
        let mut unfit = self.silent(ledger, now_ms);
        unfit.extend(self.emptied(ledger, now_ms));
        unfit
    }

    /// The report of whoever leads a group.
    pub fn leader_of(&self, group: u64, now_ms: u64) -> Option<(u64, &GroupReport)> {
        let fresh = self.nodes.keys().filter_map(|node| Some((*node, self.fresh(*node, now_ms)?)));
        let mut led = fresh.filter_map(|(node, report)| {
            report.groups.get(&group).filter(|group| group.leads).map(|group| (node, group))
        });
        led.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_read_as_it_was_written() {
        let key = Bytes::from_static(b"k");
        for idea in [
            CutIdea::At { key: key.clone(), below: 1, above: 2, across: 3, watches: 4 },
            CutIdea::TooLittle,
            CutIdea::SingleKey { key, share: 700 },
            CutIdea::AppendFront(900),
            CutIdea::WideRanges(950),
        ] {
            assert_eq!(CutIdea::read(&idea.write()), Some(idea));
        }
        assert_eq!(CutIdea::read(&CutReport { reason: 99, ..CutReport::default() }), None);
    }

    #[test]
    fn silence_is_counted_from_when_somebody_began_to_ask() {
        let mut inventory = Inventory { since_ms: 1_000, ..Inventory::default() };
        assert_eq!(inventory.silence_ms(7, 4_000), 3_000);
        inventory.nodes.insert(7, NodeReport { heard_ms: 3_500, ..NodeReport::default() });
        assert_eq!(inventory.silence_ms(7, 4_000), 500);
        inventory.later_ms.insert(8, 3_900);
        assert_eq!(inventory.silence_ms(8, 4_000), 100, "it came late");
        assert!(inventory.fresh(7, 3_500 + STALE_MS - 1).is_some());
        assert!(inventory.fresh(7, 3_500 + STALE_MS).is_none());
    }
}
