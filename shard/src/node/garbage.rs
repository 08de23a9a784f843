//! Rows that no replica here has any more, and what groups that share rows owe each other
//! (`store/shelves.rs`).
//!
//! Whoever gives a shelf up says so ([`Node::discard`]), and what is garbage there is found from what
//! all replicas here still have: versions and keys of leases outside all ranges that stand on it, and
//! everything else if nobody reads it. So a restart finds the same.
//!
//! Invariants:
//! - A shelf is given up only in memory that the next checkpoint makes durable together with the
//!   reason, or when the log knows the reason and no checkpoint was taken before.
//! - What is garbage stays it: ranges on a shelf only shrink in sum, and nobody begins to read a
//!   shelf that nobody read. So a plan is made once, and anew when more was given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::{GroupId, KeyRange};

use super::{Node, NodeError};
use crate::engine::EngineError;
use crate::group::Group;
use crate::machine::state::State;
use crate::store::Store;
use crate::store::layout::{self, Shelf};
use crate::store::shelves::Shelves;

/// Rows of dropped shelves removed per round, and per checkpoint.
const DROP_ROUND: usize = 256;
const DROP_CHECKPOINT: usize = 20_000;

/// Keys of leases looked at per round.
const LOOK_ROUND: usize = 1024;

/// What is to go of a shelf.
pub(super) struct Plan {
    shelf: Shelf,
    /// Nobody reads what it tells of changes.
    silent: bool,
    /// Intervals of rows, each of one kind.
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// The keys that somebody has: keys of leases are sorted by lease first, so those that nobody
    /// has are found one by one.
    kept: Vec<KeyRange>,
    /// The first row of a lease's key that was not looked at.
    look_from: Option<Vec<u8>>,
}

/// What a replica here has.
#[derive(Clone)]
pub(super) struct Stake {
    shelves: Arc<Shelves>,
    /// See [`State::swept`].
    swept: i64,
}

impl Stake {
    /// Of a replica that is not running.
    pub(super) fn idle(state: &State) -> Stake {
        Stake { shelves: Arc::new(state.shelves()), swept: state.swept }
    }

    fn running(group: &Group) -> Stake {
        let (shelves, swept) = (group.machine.shelves().clone(), group.machine.state().swept);
        Stake { shelves, swept }
    }

    /// The shelves on which it has something.
    pub(super) fn all(&self) -> impl Iterator<Item = Shelf> + '_ {
        self.shelves.all()
    }
}

impl Plan {
    /// What is garbage on a shelf beside what replicas have.
    fn new(shelf: Shelf, stakes: impl IntoIterator<Item = Stake>) -> Plan {
        let (mut ranges, mut silent) = (Vec::new(), true);
        for Stake { shelves, .. } in stakes {
            silent &= shelves.told_by().all(|told| told != shelf);
            let here = shelves.versions().filter(|(stands, _)| *stands == shelf);
            ranges.extend(here.map(|(_, keys)| keys));
        }
        let gaps = gaps(ranges.clone());
        let mut rows: Vec<_> = gaps.iter().map(|gap| layout::versions_of(shelf, gap)).collect();
        if silent {
            rows.extend(layout::OWN_KINDS.map(|kind| layout::shelf_bounds(kind, shelf)));
        }
        let look_from = (!gaps.is_empty()).then(|| layout::all_lease_keys_bounds(shelf).0);
        Plan { shelf, silent, rows, kept: ranges, look_from }
    }

    /// Is there anything to go?
    fn finds(&self, store: &Store) -> Result<bool, EngineError> {
        for rows in &self.rows {
            if store.has_rows(rows)? {
                return Ok(true);
            }
        }
        match self.look_from {
            Some(_) => store.has_lease_keys_outside(self.shelf, &self.kept, LOOK_ROUND),
            None => Ok(false),
        }
    }
}

/// The keys outside all ranges.
fn gaps(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    let mut gaps = Vec::new();
    let mut from = KeyRange::all().start;
    for range in ranges {
        if range.start > from {
            gaps.push(KeyRange { start: from.clone(), end: Some(range.start) });
        }
        match range.end {
            Some(end) => from = from.max(end),
            None => return gaps,
        }
    }
    gaps.push(KeyRange { start: from, end: None });
    gaps
}

impl Node {
    /// Somebody gives these shelves up: what nobody else here has of them goes.
    pub(super) fn discard(&mut self, shelves: impl IntoIterator<Item = Shelf>) {
        for shelf in shelves {
            self.dropped.insert(shelf);
            self.dropping.take_if(|plan| plan.shelf == shelf);
        }
    }

    /// What replicas have that are not running: not born yet, or not opened.
    fn idle_stakes(&self) -> impl Iterator<Item = Stake> {
        let shut = self.shut.values().filter_map(|shut| shut.stake.clone());
        self.newborns.iter().map(|newborn| newborn.stake()).chain(shut)
    }

    fn stakes(&self) -> impl Iterator<Item = Stake> {
        self.groups.values().map(|group| Stake::running(group)).chain(self.idle_stakes())
    }

    /// Notes whether a group reads shelves of others.
    pub(super) fn note_sharing(&mut self, id: GroupId) {
        match self.groups.get(&id) {
            Some(group) if !group.machine.shelves().is_alone() => self.sharing.insert(id),
            _ => self.sharing.remove(&id),
        };
    }

    /// Up to where others here have swept of what a group reads, who read it as well.
    pub(super) fn floors(&self, id: GroupId) -> BTreeMap<Shelf, i64> {
        let mut floors = BTreeMap::new();
        let Some(group) = self.groups.get(&id) else { return floors };
        let mine = group.machine.shelves();
        // Whoever reads the group's own shelf shares; of its older ones anybody may be the owner.
        let others: Box<dyn Iterator<Item = &GroupId>> = match mine.past.is_empty() {
            true => Box::new(self.sharing.iter()),
            false => Box::new(self.groups.keys()),
        };
        let others = others.filter(|other| **other != id);
        let running = others.filter_map(|other| self.group(*other)).map(Stake::running);
        for Stake { shelves, swept } in running.chain(self.idle_stakes()) {
            for shelf in shelves.told_by().filter(|shelf| mine.told_by().any(|own| own == *shelf)) {
                let floor = floors.entry(shelf).or_insert(swept);
                *floor = swept.min(*floor);
            }
        }
        floors
    }

    /// Removes a slice of what is garbage.
    pub(super) fn drop_garbage(&mut self) -> Result<(), NodeError> {
        let Some(shelf) = self.dropped.first().copied() else { return Ok(()) };
        // A snapshot may want keys that were another group's when it began.
        if self.checkpoints.drops >= DROP_CHECKPOINT || self.transfers.reads_shelf(shelf) {
            return Ok(());
        }
        let mut plan = match self.dropping.take().filter(|plan| plan.shelf == shelf) {
            Some(plan) => plan,
            None => Plan::new(shelf, self.stakes()),
        };
        let mut writes = plan.silent && !self.store.forget_changes(shelf);
        for rows in &plan.rows {
            let dropped = self.store.drop_rows(shelf, rows, DROP_ROUND)?;
            self.checkpoints.drops += dropped;
            writes |= dropped > 0;
        }
        if let Some(from) = plan.look_from.take() {
            let (dropped, next) =
                self.store.drop_lease_keys(shelf, &plan.kept, &from, LOOK_ROUND)?;
            self.checkpoints.drops += dropped;
            writes |= dropped > 0;
            plan.look_from = next;
        }
        if writes {
            self.checkpoints.first_write_ms.get_or_insert(self.now_ms);
        }
        match writes || plan.look_from.is_some() {
            true => self.dropping = Some(plan),
            false => drop(self.dropped.remove(&shelf)),
        }
        Ok(())
    }

    /// Finds again what is garbage after a restart: what a snapshot was being received onto, and
    /// what nobody has of a shelf that is given up in part.
    pub(super) fn find_garbage(&mut self) -> Result<(), NodeError> {
        let mut by_shelf: BTreeMap<Shelf, Vec<Stake>> = BTreeMap::new();
        for stake in self.stakes() {
            for shelf in stake.all().collect::<BTreeSet<_>>() {
                by_shelf.entry(shelf).or_default().push(stake.clone());
            }
        }
        for shelf in (1..self.next_shelf).map(Shelf) {
            if self.dropped.contains(&shelf) {
                continue;
            }
            let plan = Plan::new(shelf, by_shelf.remove(&shelf).unwrap_or_default());
            if plan.finds(&self.store)? {
                self.dropped.insert(shelf);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_is_in_a_gap_or_in_a_range(
            ranges in proptest::collection::vec(("[a-d]{0,2}", proptest::option::of("[a-d]{0,2}")), 0..5),
            key in "[a-d]{0,3}",
        ) {
            let range = |(start, end): &(String, Option<String>)| KeyRange {
                start: Bytes::from(start.clone()),
                end: end.clone().map(Bytes::from),
            };
            let ranges: Vec<_> = ranges.iter().map(range).collect();
            let owned = ranges.iter().any(|range| range.contains(key.as_bytes()));
            let gaps = gaps(ranges);
            let holding = gaps.iter().filter(|gap| gap.contains(key.as_bytes())).count();
            prop_assert_eq!(holding, usize::from(!owned));
        }
    }
}
