//! What each revision changed, packed by some hundred into one engine row.
//!
//! A put would cost two engine rows if every revision had a row of its own; packed, the
//! second is nearly free. A packed row's key carries its *last* revision, so that a scan
//! from revision r begins with the row that holds r. A revision is never cut over rows.

use std::sync::Arc;

use bytes::Bytes;

use super::layout::{Row, Shelf, changes_key, put_varint, take_varint};
use super::recent::ChangeMap;

/// One key touched by one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Bytes,
    /// It was deleted.
    pub deleted: bool,
    /// The place of the operation in its revision: groups that are one now may have changed other
    /// keys in the same one.
    pub place: u32,
    /// Revision of the version that this revision superseded, 0 if the key was not there or
    /// the change creates it anew.
    pub previous: i64,
    /// [`Row::cost`] of that version, if it is whole in its row and this is the revision's first
    /// change of the key: then it can be removed without a look at it.
    pub previous_cost: Option<i64>,
    /// What the operation wrote, if a later operation of the same revision wrote the key
    /// again: then the row of the revision tells only the last one.
    pub overwritten: Option<Row>,
}

const DELETED: u8 = 1;
const OVERWRITTEN: u8 = 2;
const COSTED: u8 = 4;
const PLACED: u8 = 8;

/// Changes that one packed row holds at least, unless there are no more.
const PACK: usize = 256;

/// Packs the changes of a shelf into engine rows, ascending.
pub fn pack(shelf: Shelf, changes: &ChangeMap) -> Vec<(Bytes, Bytes)> {
    let mut rows = Vec::new();
    let mut out = Vec::new();
    let mut count = 0;
    let mut last = 0;
    for (revision, list) in changes {
        put_varint(&mut out, *revision as u64);
        put_varint(&mut out, list.len() as u64);
        for change in list.iter() {
            let overwritten = change.overwritten.as_ref().map(Row::encode);
            let flag = |set: bool, flag: u8| if set { flag } else { 0 };
            out.push(
                flag(change.deleted, DELETED)
                    | flag(overwritten.is_some(), OVERWRITTEN)
                    | flag(change.previous_cost.is_some(), COSTED)
                    | flag(change.place > 0, PLACED),
            );
            if change.place > 0 {
                put_varint(&mut out, u64::from(change.place));
            }
            put_varint(&mut out, change.previous as u64);
            if let Some(cost) = change.previous_cost {
                put_varint(&mut out, cost as u64);
            }
            put_varint(&mut out, change.key.len() as u64);
            out.extend_from_slice(&change.key);
            if let Some(row) = overwritten {
                put_varint(&mut out, row.len() as u64);
                out.extend_from_slice(&row);
            }
        }
        count += list.len();
        last = *revision;
        if count >= PACK {
            rows.push((changes_key(shelf, last).into(), std::mem::take(&mut out).into()));
            count = 0;
        }
    }
    if !out.is_empty() {
        rows.push((changes_key(shelf, last).into(), out.into()));
    }
    rows
}

/// Reads what [`pack`] wrote; `None` if it is damaged.
pub fn unpack(row: &Bytes) -> Option<ChangeMap> {
    let mut map = ChangeMap::new();
    let mut at = 0;
    while at < row.len() {
        let revision = take_varint(row, &mut at)? as i64;
        let count = take_varint(row, &mut at)?;
        let mut list = Vec::new();
        for _ in 0..count {
            let flags = *row.get(at)?;
            at += 1;
            let place = match flags & PLACED {
                0 => 0,
                _ => u32::try_from(take_varint(row, &mut at)?).ok()?,
            };
            let previous = take_varint(row, &mut at)? as i64;
            let previous_cost = match flags & COSTED {
                0 => None,
                _ => Some(take_varint(row, &mut at)? as i64),
            };
            let key = take_bytes(row, &mut at)?;
            let overwritten = if flags & OVERWRITTEN != 0 {
                Some(Row::decode(&take_bytes(row, &mut at)?)?)
            } else {
                None
            };
            let deleted = flags & DELETED != 0;
            list.push(Change { key, deleted, place, previous, previous_cost, overwritten });
        }
        map.insert(revision, Arc::from(list));
    }
    Some(map)
}

fn take_bytes(row: &Bytes, at: &mut usize) -> Option<Bytes> {
    let len = usize::try_from(take_varint(row, at)?).ok()?;
    let end = at.checked_add(len).filter(|end| *end <= row.len())?;
    let taken = row.slice(*at..end);
    *at = end;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_changes_come_back(
            lists in proptest::collection::btree_map(
                1i64..10_000,
                proptest::collection::vec((any::<bool>(), 0i64..99, any::<[u8; 3]>()), 1..4),
                0..600,
            ),
        ) {
            let changes: ChangeMap = lists
                .into_iter()
                .map(|(revision, list)| {
                    let list = list.into_iter().map(|(deleted, previous, key)| Change {
                        key: Bytes::copy_from_slice(&key),
                        deleted,
                        place: previous as u32 % 3,
                        previous,
                        previous_cost: (previous % 2 == 1).then_some(previous * 100),
                        overwritten: (previous == 7).then(Row::default),
                    });
                    (revision, list.collect())
                })
                .collect();
            let mut back = ChangeMap::new();
            let mut last = Bytes::new();
            for (key, row) in pack(Shelf(1), &changes) {
                prop_assert!(key > last);
                last = key;
                back.extend(unpack(&row).unwrap());
            }
            prop_assert_eq!(back, changes);
        }
    }
}
