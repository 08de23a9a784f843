//! Reads that wait for a confirmation: first that the group is still led by whom we think
//! (one round for all that wait), then that this replica has applied what was committed
//! when the round began.
//!
//! Invariants:
//! - A read joins only a round that begins after the read came.
//! - A round's name is never used twice, over restarts too (etcd #20418 was such a reuse).

use std::collections::BTreeMap;

use super::Ticket;

/// What a confirmed read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Rows, which the asker reads itself.
    Rows,
    /// The header of a linearizable read.
    Header,
    /// Where the tenant's revisions stand.
    Span,
    /// The member list.
    Members,
    /// Renew a lease; leader only.
    KeepAlive(i64),
    /// A lease's remaining time; leader only. The flag asks for keys.
    TimeToLive(i64, bool),
    /// All leases; leader only.
    Leases,
    /// A round of a split tenant's sequencer; leader only.
    Round(u64),
    /// What has become of a merge, for the right group's leader at a node; leader only.
    Fate {
        /// Number of the merge.
        merge: u64,
        /// The left group.
        left: u64,
        /// The right group.
        right: u64,
        /// The node.
        node: u64,
    },
}

impl Purpose {
    /// Can only the leader answer?
    pub fn needs_leader(self) -> bool {
        matches!(
            self,
            Purpose::KeepAlive(_)
                | Purpose::TimeToLive(..)
                | Purpose::Leases
                | Purpose::Round(_)
                | Purpose::Fate { .. }
        )
    }

    /// Does the answer show keys or leases?
    pub fn is_about_keys(self) -> bool {
        let is_not = matches!(
            self,
            Purpose::Header
                | Purpose::Members
                | Purpose::Span
                | Purpose::Round(_)
                | Purpose::Fate { .. }
        );
        !is_not
    }
}

/// A waiting read.
pub type Read = (Ticket, Purpose);

/// See the module.
#[derive(Default)]
pub struct Reads {
    fresh: Vec<Read>,
    rounds: BTreeMap<u64, Round>,
    /// Confirmed, by the index that must be applied first.
    confirmed: BTreeMap<u64, Vec<Read>>,
    next: u64,
}

struct Round {
    reads: Vec<Read>,
    begun_ms: u64,
}

impl Reads {
    /// Adds a read; it joins the next round.
    pub fn push(&mut self, read: Read) {
        self.fresh.push(read);
    }

    /// Begins a round for what waits; gives its name, or `None` if nothing waits.
    pub fn begin(&mut self, now_ms: u64) -> Option<u64> {
        if self.fresh.is_empty() {
            return None;
        }
        self.next += 1;
        let reads = std::mem::take(&mut self.fresh);
        self.rounds.insert(self.next, Round { reads, begun_ms: now_ms });
        Some(self.next)
    }

    /// A round was confirmed: its reads may be answered once `index` is applied. Says when it was
    /// begun, unless it was given up.
    pub fn confirm(&mut self, round: u64, index: u64) -> Option<u64> {
        let Round { reads, begun_ms } = self.rounds.remove(&round)?;
        self.confirmed.entry(index).or_default().extend(reads);
        Some(begun_ms)
    }

    /// Reads that can be answered now.
    pub fn ready(&mut self, applied: u64) -> Vec<Read> {
        let mut ready = Vec::new();
        while let Some(entry) = self.confirmed.first_entry() {
            if *entry.key() > applied {
                break;
            }
            ready.extend(entry.remove());
        }
        ready
    }

    /// Rounds that were begun before `since_ms` and got no answer begin anew.
    pub fn retry(&mut self, since_ms: u64) {
        let late: Vec<_> =
            self.rounds.iter().filter(|(_, r)| r.begun_ms < since_ms).map(|(n, _)| *n).collect();
        for name in late {
            if let Some(round) = self.rounds.remove(&name) {
                self.fresh.extend(round.reads);
            }
        }
    }

    /// Takes out what only a leader could have answered, for whoever asked. Rounds of a sequencer
    /// end with it: nobody waits for them.
    pub fn take_leader_only(&mut self) -> Vec<Read> {
        let mut out = Vec::new();
        let mut sift = |reads: &mut Vec<Read>| {
            out.extend(reads.extract_if(.., |(_, purpose)| purpose.needs_leader()));
        };
        sift(&mut self.fresh);
        self.rounds.values_mut().for_each(|round| sift(&mut round.reads));
        self.confirmed.values_mut().for_each(sift);
        out.retain(|(_, purpose)| !matches!(purpose, Purpose::Round(_)));
        out
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<Read> {
        let mut out = std::mem::take(&mut self.fresh);
        out.extend(std::mem::take(&mut self.rounds).into_values().flat_map(|r| r.reads));
        out.extend(std::mem::take(&mut self.confirmed).into_values().flatten());
        out
    }

    /// Gives back memory while nothing waits: an emptied map keeps a node of eleven places.
    pub fn slim(&mut self) {
        if self.is_empty() {
            *self = Reads { next: self.next, ..Reads::default() };
        }
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.rounds.is_empty() && self.confirmed.is_empty()
    }

    /// Does anything wait for a round to begin?
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }
}
